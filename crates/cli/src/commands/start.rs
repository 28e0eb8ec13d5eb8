//! `bulkhead start`.

use crate::{
    Context,
    args::{AppOrService, EnvironmentOrCount, OrderArgs},
    commands::stop::services_order,
    error::{Error, Result},
    instances::{self, COUNT_MAX, LoopArgs, Verb, one_service},
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
    environment: EnvironmentOrCount,

    /// The app, or one service of it.
    #[arg(value_name = "APP[/SERVICE]")]
    pub target: AppOrService,

    /// Instead: so many more instances of the service in its pool. Asks the loop, makes no order, and prints what
    /// `bulkhead scale` does.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(COUNT_MAX)),
        conflicts_with_all = ["draft", "order", "message", "accept_restored"]
    )]
    pub count: Option<u32>,

    /// With `--count`: one of them may be moved while it runs, started elsewhere and then stopped here, so that machines
    /// fall empty. What it holds in memory is lost then.
    #[arg(long, requires = "count")]
    pub movable: bool,

    #[command(flatten)]
    pool: LoopArgs,

    #[command(flatten)]
    order: OrderArgs,
}

/// Starts.
///
/// # Errors
/// Nobody agreed, or a node did not do it.
pub async fn run(context: &Context, args: &StartArgs) -> Result<()> {
    if let Some(count) = args.count {
        return instances::run(
            context,
            Verb::Start { is_movable: args.movable },
            &one_service(&args.target)?,
            count,
            args.environment.environment.as_ref(),
            &args.pool,
        )
        .await;
    }
    let environment = args.environment.environment.as_ref();
    let environment = environment.ok_or_else(|| Error::usage("name the environment with `-e ENV`"))?;
    let action = |services| Action::Start { services };
    services_order(context, "start", environment, Purpose::People, &args.target, &args.order, action).await
}
