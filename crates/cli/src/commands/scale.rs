//! `bulkhead scale`.

use crate::{
    Context,
    args::AppService,
    error::Result,
    instances::{COUNT_MAX, LoopArgs, Verb, run as ask},
};
use clap::Args;

/// Has so many instances of a service run in its pool, no more and no less
///
/// Asks the loop, which buys machines where there is no room, and shows where each instance is. See
/// docs/elasticity.md.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// The service.
    #[arg(value_name = "APP/SERVICE")]
    pub target: AppService,

    /// How many.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=i64::from(COUNT_MAX)))]
    pub count: u32,

    /// New ones may be moved while they run, started elsewhere and then stopped here, so that machines
    /// fall empty. What they hold in memory is lost then.
    #[arg(long)]
    pub movable: bool,

    #[command(flatten)]
    pool: LoopArgs,
}

/// Scales.
///
/// # Errors
/// Nothing was granted, no machine has room for one, or not all was done in time.
pub async fn run(context: &Context, args: &ScaleArgs) -> Result<()> {
    ask(context, Verb::Scale { is_movable: args.movable }, &args.target, args.count, None, &args.pool).await
}
