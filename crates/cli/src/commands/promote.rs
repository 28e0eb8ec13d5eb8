//! `bulkhead promote`.

use crate::{
    Context,
    args::{GrantArgs, OrderArgs},
    deployment::{asked_over, document_of_held, fallback, payload_of_held, plan_over},
    error::{Error, Kind, Result},
    grants::papers,
    left::command_line,
    orders::{Draft, carry_out, check_message},
    plan::Wanted,
    promotion::{Promotion, promotion},
    proof::Proof,
    session::{Session, app_of, those_that_answered},
    workspace::{App, FleetFiles},
};
use bulkhead_core::{
    AppName, EnvironmentName, ImageId, NodeName,
    fleet::FleetNode,
    order::{Action, Run},
};
use bulkhead_wire::{NodeStatus, Release};
use clap::Args;
use std::collections::BTreeMap;

/// Runs in TO what runs in FROM, with TO's settings
///
/// The image and each service's command, workdir, port, health check, volumes, jit,
/// drain and stop are those of the release that FROM runs. Environment variables,
/// memory, tasks, cpu_percent and the nodes are those that this folder's
/// `bulkhead.toml` has for TO.
///
/// Shows first what changes in TO, and where `bulkhead.toml` has changed since that
/// release. What this machine has not got of the image is fetched from FROM's nodes.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// The environment to take the image from.
    #[arg(value_name = "FROM")]
    pub from: EnvironmentName,

    /// The environment to run it in.
    #[arg(value_name = "TO")]
    pub to: EnvironmentName,

    /// The node of FROM to take it from, where FROM's nodes differ.
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeName>,

    /// What the environment may demand besides signatures.
    #[command(flatten)]
    pub grant: GrantArgs,

    #[command(flatten)]
    order: OrderArgs,
}

/// Promotes.
///
/// # Errors
/// FROM's nodes differ or run nothing, nobody agreed, or a node did not do it.
pub async fn run(context: &Context, args: &PromoteArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.order.yes)?;
    check_message(&args.order)?;
    if args.from == args.to {
        return Err(Error::usage(format!("`{}` twice: promote from one environment to another", args.from)));
    }
    let app = App::load(&context.places)?;
    let name = &app.manifest.app;
    let files = FleetFiles::load(&context.places)?;
    let sources = from_nodes(&files, args)?;
    let nodes = app.nodes_in(&files, &args.to)?;
    let session = Session::of(context, files)?;
    let (early, from) = (session.begin(&nodes)?, session.begin(&sources)?);
    let asking = session.ask_over(from, |client| async move { client.status().await });
    let ((mut from, statuses), present, signers) = tokio::join!(
        asking,
        asked_over(&session, early, name),
        session.signers_of(&args.to, args.grant.purpose(), &args.order)
    );
    let (statuses, asked, signers) = (those_that_answered(context, statuses)?, present?, signers?);
    let proof = Proof::of(&session, &args.from);
    let (release, image, names) = agreed(name, &args.from, &statuses, &|node, release| proof.release(node, release))?;

    let (document, decoded) = document_of_held(&session, image, &mut from, &names).await?;
    let mut holders = sources;
    holders.retain(|(node, _)| names.contains(node));
    let payload = payload_of_held(context, &session, document, decoded, &holders)?;
    let manifest = &app.manifest;
    let Promotion { services, notes } =
        promotion(&release.services, &manifest.services_in(&args.from), &manifest.services_in(&args.to))?;
    let origin = format!("promoted from {}", args.from);
    let wanted = Wanted {
        verb: "promote",
        app: name,
        environment: &args.to,
        image_id: &image.to_string(),
        image: Some(&payload.image),
        services: &services,
        origin: Some(&origin),
    };
    let mut plan = plan_over(&session, wanted, image, &asked.present, &asked.left);
    plan.notes = notes;
    context.ui.preview(|paint| plan.render(paint))?;
    context.ui.confirm(&format!("\nPromote to {}?", args.to), args.order.yes).await?;

    let mut again = vec!["promote", args.from.as_str(), args.to.as_str()];
    again.extend(args.node.iter().flat_map(|node| ["--node", node.as_str()]));
    let draft = Draft {
        verb: "promote",
        app: name.clone(),
        environment: args.to.clone(),
        nodes: asked.reached(nodes),
        action: Action::Run(Run {
            image,
            services,
            source: release.source.clone(),
            origin: Some(origin),
            fallback: fallback(&Proof::of(&session, &args.to), &asked.present),
        }),
        papers: papers(&session, &args.grant, image, release.statements.clone())?,
        break_glass: args.grant.break_glass.clone(),
        payload: Some(payload),
        early: asked.early,
        left: asked.left,
        again: command_line(&again),
    };
    carry_out(context, &session, &signers, draft, Some(plan), &args.order).await
}

fn from_nodes(files: &FleetFiles, args: &PromoteArgs) -> Result<Vec<(NodeName, FleetNode)>> {
    let nodes = files.nodes_in(&args.from)?;
    match &args.node {
        Some(wanted) => Ok(vec![files.named(&nodes, wanted)?]),
        None => Ok(nodes),
    }
}

/// The live release that all nodes of FROM agree on, as its order has it, its image, and the nodes that run it.
fn agreed(
    app: &AppName,
    from: &EnvironmentName,
    statuses: &[(NodeName, NodeStatus)],
    proven: &dyn Fn(&NodeName, &Release) -> Result<Release>,
) -> Result<(Release, ImageId, Vec<NodeName>)> {
    let mut by_image: BTreeMap<ImageId, Vec<&NodeName>> = BTreeMap::new();
    let mut first: Option<(Release, ImageId)> = None;
    for (node, status) in statuses {
        let live = app_of(status, app).and_then(|known| known.live.as_ref()).filter(|live| live.image.is_some());
        let Some(release) = live.map(|release| proven(node, release)).transpose()? else { continue };
        let Some(image) = release.image else { continue };
        by_image.entry(image).or_default().push(node);
        match &first {
            None => first = Some((release, image)),
            Some((one, its)) if *its == image && one.services != release.services => {
                let other = by_image[&image][0];
                let message = format!("{other} and {node} of `{from}` run {app} with different settings");
                return Err(Error::new(Kind::Partial, message).hint("choose one with `--node NODE`"));
            }
            Some(_) => {}
        }
    }
    match (first, by_image.len()) {
        (None, _) => Err(Error::configuration(format!("nothing of {app} runs in `{from}`"))
            .hint(format!("`bulkhead deploy -e {from}` first"))),
        (Some((release, image)), 1) => {
            let nodes = by_image.into_values().flatten().cloned().collect();
            Ok((release, image, nodes))
        }
        (Some(_), _) => {
            let mut error = Error::new(Kind::Partial, format!("nodes of `{from}` run different images of {app}"));
            for (image, nodes) in by_image {
                let names: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
                error.causes.push(format!("image {} on {}", image.short(), names.join(", ")));
            }
            Err(error.hint("choose one with `--node NODE`"))
        }
    }
}
