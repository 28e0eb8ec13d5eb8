//! `bulkhead stop`.

use crate::{
    Context,
    args::{AppOrService, EnvironmentOrCount, OrderArgs},
    error::{Error, Result},
    instances::{self, COUNT_MAX, LoopArgs, Verb, one_service},
    left::command_line,
    orders::{Draft, carry_out, check_message},
    session::{Purpose, Session},
};
use bulkhead_core::{EnvironmentName, ServiceName, order::Action};
use bulkhead_fleet::push::Papers;
use clap::Args;

/// Stops services of the live release
///
/// The release stays, and a boot of the node does not start them again; `bulkhead
/// start` does.
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    environment: EnvironmentOrCount,

    /// The app, or one service of it.
    #[arg(value_name = "APP[/SERVICE]")]
    pub target: AppOrService,

    /// Instead: so many fewer instances of the service in its pool. Asks the loop, makes no order, and prints what
    /// `bulkhead scale` does.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(COUNT_MAX)),
        conflicts_with_all = ["draft", "order", "message", "accept_restored"]
    )]
    pub count: Option<u32>,

    #[command(flatten)]
    pool: LoopArgs,

    #[command(flatten)]
    order: OrderArgs,
}

/// Stops.
///
/// # Errors
/// Nobody agreed, or a node did not do it.
pub async fn run(context: &Context, args: &StopArgs) -> Result<()> {
    if let Some(count) = args.count {
        let (target, environment) = (one_service(&args.target)?, args.environment.environment.as_ref());
        return instances::run(context, Verb::Stop, &target, count, environment, &args.pool).await;
    }
    let environment = args.environment.environment.as_ref();
    let environment = environment.ok_or_else(|| Error::usage("name the environment with `-e ENV`"))?;
    let action = |services| Action::Stop { services };
    services_order(context, "stop", environment, Purpose::AnyOne, &args.target, &args.order, action).await
}

/// What `start`, `stop` and `restart` have in common.
pub(crate) async fn services_order(
    context: &Context,
    verb: &'static str,
    environment: &EnvironmentName,
    purpose: Purpose,
    target: &AppOrService,
    order: &OrderArgs,
    action: impl FnOnce(Vec<ServiceName>) -> Action,
) -> Result<()> {
    context.ui.must_be_able_to_ask(order.yes)?;
    check_message(order)?;
    let session = Session::open(context)?;
    let nodes = session.files.nodes_in(environment)?;
    let early = session.begin(&nodes)?;
    let signers = session.signers_of(environment, purpose, order).await?;
    let names: Vec<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
    let named = match &target.service {
        Some(service) => format!("{}/{service}", target.app),
        None => target.app.to_string(),
    };
    let what = if target.service.is_some() { named.clone() } else { format!("all services of {named}") };
    context.ui.preview(|paint| {
        format!("{}\n", paint.bold(&format!("{verb} {what} in {environment} on {}", names.join(", "))))
    })?;
    context.ui.confirm(&format!("{} {what}?", capitalised(verb)), order.yes).await?;
    let draft = Draft {
        verb,
        app: target.app.clone(),
        environment: environment.clone(),
        nodes,
        action: action(target.service.iter().cloned().collect()),
        payload: None,
        papers: Papers::default(),
        break_glass: None,
        early,
        left: vec![],
        again: command_line(&[verb, "-e", environment.as_str(), &named]),
    };
    carry_out(context, &session, &signers, draft, None, order).await
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}
