//! `bulkhead restart`.

use crate::{
    Context,
    args::{AppOrService, Environment, OrderArgs},
    commands::stop::services_order,
    error::Result,
    session::Purpose,
};
use bulkhead_core::order::Action;
use clap::Args;

/// Restarts services of the live release
///
/// In place: connections that are open are cut, and new ones wait until the service
/// listens again. A `deploy` of the same image switches without that.
#[derive(Debug, Args)]
pub struct RestartArgs {
    #[command(flatten)]
    environment: Environment,

    /// The app, or one service of it.
    #[arg(value_name = "APP[/SERVICE]")]
    pub target: AppOrService,

    #[command(flatten)]
    order: OrderArgs,
}

/// Restarts.
///
/// # Errors
/// Nobody agreed, or a node did not do it.
pub async fn run(context: &Context, args: &RestartArgs) -> Result<()> {
    let environment = &args.environment.environment;
    let action = |services| Action::Restart { services };
    services_order(context, "restart", environment, Purpose::AnyOne, &args.target, &args.order, action).await
}
