//! `bulkhead rm`.

use crate::{
    Context,
    args::{Environment, OrderArgs},
    error::{Error, Kind, Result},
    left::{Left, answered, command_line},
    orders::{Draft, carry_out, check_message},
    output::printable,
    session::{Purpose, Session, app_of},
};
use bulkhead_core::{AppName, order::Action};
use bulkhead_fleet::push::Papers;
use clap::Args;

/// Stops an app and forgets its releases
///
/// Volumes stay unless `--volumes` says otherwise. The app's name must be typed,
/// or `--yes` be given. A node that does not answer is left as it is, and the exit
/// code is 4.
#[derive(Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    environment: Environment,

    /// The app.
    #[arg(value_name = "APP")]
    pub app: AppName,

    /// Deletes the app's volumes and all data in them too.
    #[arg(long)]
    pub volumes: bool,

    #[command(flatten)]
    order: OrderArgs,
}

/// Removes.
///
/// # Errors
/// Nobody agreed, or a node did not do it.
pub async fn run(context: &Context, args: &RmArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.order.yes)?;
    check_message(&args.order)?;
    let session = Session::open(context)?;
    let environment = &args.environment.environment;
    let nodes = session.files.nodes_in(environment)?;
    let early = session.begin(&nodes)?;
    let asking = session.ask_over(early, |client| async move { client.status().await });
    let ((early, answers), signers) =
        tokio::join!(asking, session.signers_of(environment, Purpose::People, &args.order));
    let ((statuses, left), signers) = (answered(answers)?, signers?);
    // A name that was mistyped would be done at once: there is nothing to remove.
    if statuses.iter().all(|(_, status)| app_of(status, &args.app).is_none()) {
        let error = match left.first() {
            None => Error::usage(format!("no node of `{environment}` knows an app `{}`", args.app)),
            // One that does not answer may.
            Some(Left { error, .. }) => {
                let message = format!("no node of `{environment}` that answers knows an app `{}`", args.app);
                Error { causes: error.as_causes(), ..Error::new(Kind::Unreachable, message) }
            }
        };
        return Err(error.hint("`bulkhead ps` shows what runs"));
    }
    let mut nodes = nodes;
    nodes.retain(|(name, _)| left.iter().all(|left| left.node != *name));
    let names: Vec<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
    let data = if args.volumes { "its volumes are DELETED" } else { "its volumes stay" };
    context.ui.preview(|paint| {
        let title = format!("remove {} from {environment} on {}", args.app, names.join(", "));
        let mut text = format!("{}\nits releases are forgotten; {data}\n", paint.bold(&title));
        for left in &left {
            putln!(text, "{} is left as it is: {}", left.node, printable(&left.reason()));
        }
        text
    })?;
    context.ui.confirm_word("This cannot be undone.", args.app.as_str(), args.order.yes).await?;
    let mut words = vec!["rm", "-e", environment.as_str(), args.app.as_str()];
    words.extend(args.volumes.then_some("--volumes"));
    let again = command_line(&words);
    let draft = Draft {
        verb: "rm",
        app: args.app.clone(),
        environment: environment.clone(),
        nodes,
        action: Action::Remove { volumes: args.volumes },
        payload: None,
        papers: Papers::default(),
        break_glass: None,
        early,
        left,
        again,
    };
    carry_out(context, &session, &signers, draft, None, &args.order).await
}
