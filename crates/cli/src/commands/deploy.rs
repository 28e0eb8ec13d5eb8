//! `bulkhead deploy`.

use crate::{
    Context,
    args::{Environment, GrantArgs, OrderArgs},
    deployment::{Asked, asked_over, build_image, fallback, note_build, payload_of, plan_over, remembered},
    error::Result,
    git,
    grants::papers,
    left::command_line,
    orders::{Draft, carry_out, check_message},
    packfile,
    plan::Wanted,
    proof::Proof,
    session::Session,
    workspace::{App, FleetFiles},
};
use bulkhead_core::{
    NodeName,
    fleet::FleetNode,
    order::{Action, Run},
    policy::Demand,
};
use bulkhead_fleet::push::{Early, Payload};
use clap::Args;

/// Builds, signs, sends, starts beside the old, checks health, switches, drains, stops the old
///
/// All nodes of the environment at once, or those that the manifest names for
/// it. Where the new release does not become healthy the old one was never
/// touched: its last log lines are shown and the exit code is 6. A node that cannot
/// be reached is left as it is; the others do it, and the exit code is 4. With `--yes`
/// no node is asked first; the plan then shows what this machine remembers.
#[derive(Debug, Args)]
pub struct DeployArgs {
    #[command(flatten)]
    environment: Environment,

    #[command(flatten)]
    order: OrderArgs,

    /// Refuses to change `bulkhead.lock`.
    #[arg(long)]
    pub locked: bool,

    /// What the environment may demand besides signatures.
    #[command(flatten)]
    pub grant: GrantArgs,

    /// A pack in the nodes' drop boxes: `bulkhead build --pack` writes one, any SFTP client brings it there. The
    /// nodes take from it what they miss, and are sent only what it has not.
    #[arg(long, value_name = "NAME", value_parser = packfile::parse_name)]
    pub dropped: Option<String>,
}

/// Deploys.
///
/// # Errors
/// The image cannot be built, nobody agreed, or a node did not do it.
pub async fn run(context: &Context, args: &DeployArgs) -> Result<()> {
    context
        .ui
        .must_be_able_to_ask(args.order.yes)
        .map_err(|error| error.hint("`bulkhead plan -e ENV` shows what would change and changes nothing"))?;
    check_message(&args.order)?;
    let app = App::load(&context.places)?;
    if let Some(file) = args.order.draft.as_ref().or(args.order.order.as_ref()) {
        app.must_be_outside(file)?;
    }
    let files = FleetFiles::load(&context.places)?;
    let environment = &args.environment.environment;
    let nodes = app.nodes_in(&files, environment)?;
    let session = Session::of(context, files)?;

    // Where more is demanded than a release key, nodes are asked what one alone may put back.
    let is_blind = args.order.yes && session.environment(environment)?.accepts == [Demand::release(1)];
    // Nothing of these waits for another: nodes are connected to, and asked, while the folder is scanned.
    let early = session.begin(&nodes)?;
    let directory = app.directory.clone();
    let (built, source, signers, present) = tokio::join!(
        build_image(context, &app, args.locked),
        tokio::task::spawn_blocking(move || git::source(&directory)),
        session.signers_of(environment, args.grant.purpose(), &args.order),
        present(&session, early, &nodes, &app, is_blind),
    );
    let (built, signers, asked) = (built?, signers?, present?);
    note_build(context, &built);

    let services = app.manifest.services_in(environment);
    let wanted = Wanted {
        verb: "deploy",
        app: &app.manifest.app,
        environment,
        image_id: &built.id.to_string(),
        image: Some(&built.image),
        services: &services,
        origin: None,
    };
    let plan = plan_over(&session, wanted, built.id, &asked.present, &asked.left);
    context.ui.preview(|paint| plan.render(paint))?;
    context.ui.confirm(&format!("\nDeploy to {environment}?"), args.order.yes).await?;

    let image = built.id;
    let draft = Draft {
        verb: "deploy",
        app: app.manifest.app.clone(),
        environment: environment.clone(),
        nodes: asked.reached(nodes),
        action: Action::Run(Run {
            image,
            services,
            source: source.ok().flatten(),
            origin: None,
            fallback: fallback(&Proof::of(&session, environment), &asked.present),
        }),
        papers: papers(&session, &args.grant, image, vec![])?,
        break_glass: args.grant.break_glass.clone(),
        payload: Some(Payload { dropped: args.dropped.clone(), ..payload_of(context, built) }),
        early: asked.early,
        left: asked.left,
        again: command_line(&["deploy", "-e", environment.as_str()]),
    };
    carry_out(context, &session, &signers, draft, Some(plan), &args.order).await
}

/// What runs now: asked where a person will decide by it, remembered otherwise.
async fn present(
    session: &Session,
    early: Early,
    nodes: &[(NodeName, FleetNode)],
    app: &App,
    is_blind: bool,
) -> Result<Asked> {
    if is_blind {
        let present = remembered(session, nodes, &app.manifest.app);
        let (memory, images) =
            (session.memory.clone(), present.iter().filter_map(|node| node.image).collect::<Vec<_>>());
        // The plan and the push read these; here nothing waits for it.
        let reading = tokio::task::spawn_blocking(move || images.into_iter().for_each(|id| drop(memory.image(id))));
        reading.await.ok();
        Ok(Asked { early, present, left: vec![] })
    } else {
        asked_over(session, early, &app.manifest.app).await
    }
}
