//! `bulkhead start`.

use crate::{
    Context,
    args::{AppOrService, Environment, OrderArgs},
    commands::stop::services_order,
    error::Result,
    session::Purpose,
};
use bulkhead_core::order::Action;
use clap::Args;

/// Starts stopped services of the live release
///
/// They start again after every boot of the node, as before they were stopped.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    environment: Environment,

    /// The app, or one service of it.
    #[arg(value_name = "APP[/SERVICE]")]
    pub target: AppOrService,

    #[command(flatten)]
    order: OrderArgs,
}

/// Starts.
///
/// # Errors
/// Nobody agreed, or a node did not do it.
pub async fn run(context: &Context, args: &StartArgs) -> Result<()> {
    let environment = &args.environment.environment;
    let action = |services| Action::Start { services };
    services_order(context, "start", environment, Purpose::People, &args.target, &args.order, action).await
}
