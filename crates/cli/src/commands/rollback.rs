//! `bulkhead rollback`.

use crate::{
    Context,
    args::{Environment, GrantArgs, OrderArgs},
    deployment::{
        Present, document_of_held, fallback, live_of, payload_of_held, plan_over, present_by_history, remembered,
    },
    error::{Error, Kind, Result},
    grants::papers,
    left::{answered, command_line},
    orders::{Draft, carry_out, check_message},
    plan::Wanted,
    proof::Proof,
    session::{Purpose, Session},
};
use bulkhead_core::{
    AppName, ImageId, NodeName, SignedText,
    fleet::FleetNode,
    order::{Action, Order, Run, ServiceSpec},
};
use bulkhead_fleet::{memory::KnownImage, push::Early};
use bulkhead_wire::{Outcome, Release};
use clap::Args;
use std::{collections::BTreeSet, sync::Arc};

/// The images that ran last, of which a rollback most likely needs two.
const IMAGES_AHEAD: usize = 2;

/// Runs an earlier release again, as an order like any other
///
/// Without RELEASE: the last good one before the live one that differs from it.
/// Image and settings are the earlier release's own. Nothing is uploaded where a
/// node still has the image; one that has it no more gets it from this machine, or
/// through it from a node that does.
///
/// Every node numbers its own releases. All nodes that answer and run the app must
/// mean the same image and settings by RELEASE (or by the one before), or nothing
/// happens; `--node` takes one node's word for all. A node that does not answer is
/// left as it is, and the exit code is 4: what to type once it is back is a command
/// with number and node, which means the same then, whatever that node's history.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    environment: Environment,

    /// The app.
    #[arg(value_name = "APP")]
    pub app: AppName,

    /// The release's number, as `bulkhead releases` shows it.
    #[arg(value_name = "RELEASE")]
    pub release: Option<u64>,

    /// The node whose history RELEASE is from, where nodes' histories differ.
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeName>,

    /// What the environment may demand besides signatures.
    #[command(flatten)]
    pub grant: GrantArgs,

    #[command(flatten)]
    order: OrderArgs,
}

/// Rolls back.
///
/// # Errors
/// There is no such release, nobody agreed, or a node did not do it.
pub async fn run(context: &Context, args: &RollbackArgs) -> Result<()> {
    carry(context, args, args.release.map_or(Which::Before, Which::Number)).await
}

/// Runs the live release again, with the secrets that have values now.
///
/// # Errors
/// As [`run`].
pub(crate) async fn run_again(context: &Context, args: &RollbackArgs) -> Result<()> {
    carry(context, args, Which::Live).await
}

/// Which release is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// This one.
    Number(u64),
    /// The last good one before the live one that differs from it.
    Before,
    /// The live one.
    Live,
}

impl RollbackArgs {
    /// The live release of an app.
    pub(crate) fn again(environment: Environment, app: AppName, grant: GrantArgs, order: OrderArgs) -> Self {
        Self { environment, app, release: None, node: None, grant, order }
    }
}

async fn carry(context: &Context, args: &RollbackArgs, which: Which) -> Result<()> {
    context.ui.must_be_able_to_ask(args.order.yes)?;
    check_message(&args.order)?;
    let session = Session::open(context)?;
    let environment = &args.environment.environment;
    let nodes = session.files.nodes_in(environment)?;
    if let Some(wanted) = &args.node {
        session.files.named(&nodes, wanted)?;
    }
    let early = session.begin(&nodes)?;
    let app = args.app.clone();
    let asking = session.ask_over(early, move |client| {
        let app = app.clone();
        async move { client.releases(Some(app)).await }
    });
    let ((mut early, answers), hand, ()) =
        tokio::join!(asking, session.hand(), read_ahead(&session, &nodes, &args.app));
    let hand = hand?;
    let (histories, left) = answered(answers)?;
    if let Some(left) = left.iter().find(|left| Some(&left.node) == args.node.as_ref()) {
        return Err(left.error.clone());
    }
    let known: Vec<Present> =
        histories.iter().map(|(node, releases)| present_by_history(node.clone(), releases)).collect();

    let proof = Proof::of(&session, environment);
    let proven = |node: &NodeName, release: &Release| proof.release(node, release);
    let chosen = choose(&args.app, which, args.node.as_ref(), &histories, &proven)?;
    let run = Run {
        image: chosen.image,
        services: chosen.services.clone(),
        source: chosen.source.clone(),
        origin: Some(origin(which, chosen.number)),
        fallback: fallback(&proof, &known),
    };
    let is_listed = args.grant.break_glass.is_none() && is_fallback(&run, &chosen.nodes, &histories);
    let purpose = if is_listed { Purpose::AnyOne } else { args.grant.purpose() };
    let signers = hand.signers_of(&session, environment, purpose, &args.order)?;
    let holds = |node: &NodeName| known.iter().any(|it| it.node == *node && it.images.contains(&chosen.image));
    let holders: Vec<_> = nodes.iter().filter(|(name, _)| holds(name)).cloned().collect();
    let names: Vec<NodeName> = holders.iter().map(|(name, _)| name.clone()).collect();
    let held = known_image(&session, chosen.image, &mut early, &names).await;
    learn_live(&session, &known, &mut early).await;
    let nodes: Vec<_> = nodes.into_iter().filter(|(name, _)| chosen.nodes.contains(name)).collect();
    early.retain(|name, _| chosen.nodes.contains(name));
    let present: Vec<_> = known.into_iter().filter(|known| chosen.nodes.contains(&known.node)).collect();
    let origin = origin(which, chosen.number);
    let verb = if which == Which::Live { "rotate" } else { "rollback" };
    let wanted = Wanted {
        verb,
        app: &args.app,
        environment,
        image_id: &chosen.image.to_string(),
        image: held.as_ref().ok().map(|held| &held.image),
        services: &chosen.services,
        origin: Some(&origin),
    };
    let plan = plan_over(&session, wanted, chosen.image, &present, &left);
    context.ui.preview(|paint| plan.render(paint))?;
    let question = if which == Which::Live { "Run it again" } else { "Roll back" };
    context.ui.confirm(&format!("\n{question} in {environment}?"), args.order.yes).await?;

    // Only where some node dropped the image must it come from elsewhere.
    let payload = if present.iter().all(|known| known.images.contains(&chosen.image)) {
        None
    } else {
        let held = held?;
        Some(payload_of_held(context, &session, held.document.to_vec(), held.image.clone(), &holders)?)
    };
    let number = chosen.number.to_string();
    let again = ["rollback", "-e", environment.as_str(), args.app.as_str(), &number, "--node", chosen.of.as_str()];
    let again = command_line(&again);
    let draft = Draft {
        verb,
        app: args.app.clone(),
        environment: environment.clone(),
        nodes,
        papers: papers(&session, &args.grant, run.image, chosen.statements)?,
        break_glass: args.grant.break_glass.clone(),
        action: Action::Run(run),
        payload,
        early,
        left,
        again,
    };
    carry_out(context, &session, &signers, draft, Some(plan), &args.order).await
}

fn origin(which: Which, number: u64) -> String {
    match which {
        Which::Live => format!("release {number} with other secrets"),
        Which::Number(_) | Which::Before => format!("rollback to {number}"),
    }
}

/// Reads what this machine has of the images that ran last, while the nodes are asked: the plan looks at two of them.
async fn read_ahead(session: &Session, nodes: &[(NodeName, FleetNode)], app: &AppName) {
    let remembered = remembered(session, nodes, app).into_iter();
    let images: BTreeSet<ImageId> = remembered.flat_map(|node| node.images.into_iter().take(IMAGES_AHEAD)).collect();
    let memory = session.memory.clone();
    let reading = move || images.into_iter().take(IMAGES_AHEAD).for_each(|image| drop(memory.image(image)));
    tokio::task::spawn_blocking(reading).await.ok();
}

/// An image that was not built here: see [`document_of_held`].
async fn known_image(
    session: &Session,
    id: ImageId,
    early: &mut Early,
    holders: &[NodeName],
) -> Result<Arc<KnownImage>> {
    if let Some(known) = session.memory.image(id) {
        return Ok(known);
    }
    let (document, image) = document_of_held(session, id, early, holders).await?;
    Ok(Arc::new(KnownImage { id, document: Arc::new(document), image }))
}

/// Gets the documents of live images that this machine does not know, so that the plan can say which files change.
async fn learn_live(session: &Session, known: &[Present], early: &mut Early) {
    for (node, image) in known.iter().filter_map(|known| Some((&known.node, known.image?))) {
        // Without it the plan says less, which is no reason to fail.
        known_image(session, image, early, std::slice::from_ref(node)).await.ok();
    }
}

/// Whether what is live on each of these nodes lists this to go back to, so that any one release key may order it.
fn is_fallback(run: &Run, nodes: &[NodeName], histories: &[(NodeName, Vec<Release>)]) -> bool {
    let id = run.id();
    let lists = |releases: &[Release]| {
        let order = live_of(releases).and_then(|live| Order::parse(live.signed.as_ref()?.text.as_bytes()).ok());
        matches!(order.map(|order| order.action), Some(Action::Run(run)) if run.fallback.contains(&id))
    };
    histories.iter().filter(|(node, _)| nodes.contains(node)).all(|(_, releases)| lists(releases))
}

/// The release to go back to and the nodes that know it.
#[derive(Debug)]
struct Chosen {
    number: u64,
    /// The node that numbers it so.
    of: NodeName,
    image: ImageId,
    services: Vec<ServiceSpec>,
    source: Option<bulkhead_core::order::Source>,
    statements: Vec<SignedText>,
    nodes: Vec<NodeName>,
}

fn nothing_runs(app: &AppName) -> Error {
    Error::usage(format!("nothing of {app} runs")).hint("`bulkhead deploy` first")
}

fn no_release(app: &AppName) -> Error {
    Error::usage(format!("{app} has no release to go back to")).hint(format!("`bulkhead releases {app}` shows all"))
}

/// One release for all nodes that run the app: nodes must mean the same by it, unless one of them decides.
fn choose(
    app: &AppName,
    which: Which,
    of: Option<&NodeName>,
    histories: &[(NodeName, Vec<Release>)],
    proven: &dyn Fn(&NodeName, &Release) -> Result<Release>,
) -> Result<Chosen> {
    let mut chosen: Option<Chosen> = None;
    let known = || histories.iter().filter(|(_, releases)| !releases.is_empty());
    for (node, releases) in known().filter(|(node, _)| of.is_none_or(|of| of == node)) {
        let release = match which {
            Which::Number(number) => named(app, node, number, releases)?,
            Which::Before => previous(releases).ok_or_else(|| no_release(app))?,
            Which::Live => live_of(releases).cloned().ok_or_else(|| nothing_runs(app))?,
        };
        let release = Arc::new(proven(node, &release)?);
        let Some(image) = release.image else { return Err(no_release(app)) };
        match &mut chosen {
            None => {
                chosen = Some(Chosen {
                    number: release.number,
                    of: node.clone(),
                    image,
                    services: release.services.clone(),
                    source: release.source.clone(),
                    statements: release.statements.clone(),
                    nodes: vec![node.clone()],
                });
            }
            Some(chosen) if chosen.image == image && chosen.services == release.services => {
                chosen.nodes.push(node.clone());
            }
            Some(chosen) => {
                let message = format!(
                    "nodes differ: going back means release {} (image {}) on {} and release {} (image {}) on {node}",
                    chosen.number,
                    chosen.image.short(),
                    chosen.nodes[0],
                    release.number,
                    image.short(),
                );
                return Err(Error::new(Kind::Partial, message)
                    .hint(format!(
                        "`--node {}` takes that node's release for all, `--node {node}` the other",
                        chosen.of
                    ))
                    .hint(format!("`bulkhead releases {app}` shows each node's history")));
            }
        }
    }
    let mut chosen = chosen.ok_or_else(|| no_release(app))?;
    if of.is_some() {
        chosen.nodes = known().map(|(node, _)| node.clone()).collect();
    }
    Ok(chosen)
}

/// The release of a number, which must be one that ran well.
fn named(app: &AppName, node: &NodeName, number: u64, releases: &[Release]) -> Result<Release> {
    let known = releases.iter().find(|release| release.number == number);
    let Some(release) = known else {
        let error = Error::usage(format!("{node} has no release {number} of {app}"));
        return Err(error.hint(format!("`bulkhead releases {app}` shows all")));
    };
    if release.image.is_none() {
        return Err(Error::usage(format!("release {number} of {app} is a `{}`: it has no image to run", release.verb)));
    }
    if release.outcome != Outcome::Done {
        return Err(Error::usage(format!("release {number} of {app} never ran well on {node}"))
            .hint("choose one whose outcome is `done`"));
    }
    Ok(release.clone())
}

/// The last good release before the live one that differs from it.
fn previous(releases: &[Release]) -> Option<Release> {
    let live = live_of(releases)?;
    releases
        .iter()
        .rev()
        .filter(|release| release.number < live.number && release.outcome == Outcome::Done && release.image.is_some())
        .find(|release| release.image != live.image || release.services != live.services)
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{OrderId, Timestamp};

    fn release(number: u64, image: u8, outcome: Outcome, live: bool) -> Release {
        Release {
            app: "notes".parse().unwrap(),
            number,
            order: OrderId([u8::try_from(number).unwrap(); 32]),
            verb: if image == 0 { "stop" } else { "run" }.into(),
            image: (image != 0).then_some(ImageId([image; 32])),
            image_present: true,
            signers: vec![],
            accepted: Timestamp(0),
            outcome,
            live,
            source: None,
            origin: None,
            message: None,
            services: vec![],
            signed: None,
            statements: vec![],
            standing: None,
            grounds: None,
            break_glass: None,
        }
    }

    fn as_it_is(_: &NodeName, release: &Release) -> Result<Release> {
        Ok(release.clone())
    }

    fn failed() -> Outcome {
        Outcome::Failed { reason: "x".into() }
    }

    #[test]
    fn which_release() {
        let app: AppName = "notes".parse().unwrap();
        let good = [
            release(1, 1, Outcome::Done, false),
            release(2, 2, failed(), false),
            release(3, 0, Outcome::Done, false),
            release(4, 3, Outcome::Done, false),
            release(5, 3, Outcome::Done, true),
        ];
        let check = |number: Option<u64>, histories: &[&[Release]], expected: std::result::Result<u64, &str>| {
            let histories: Vec<(NodeName, Vec<Release>)> = histories
                .iter()
                .enumerate()
                .map(|(index, releases)| (format!("n{index}").parse().unwrap(), releases.to_vec()))
                .collect();
            match (choose(&app, number.map_or(Which::Before, Which::Number), None, &histories, &as_it_is), expected) {
                (Ok(chosen), Ok(number)) => assert_eq!(chosen.number, number),
                (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
                (other, expected) => panic!("{other:?} where {expected:?} was expected"),
            }
        };
        check(None, &[&good], Ok(1));
        check(None, &[&good, &good], Ok(1));
        check(None, &[&good, &[]], Ok(1));
        check(Some(4), &[&good], Ok(4));
        check(Some(2), &[&good], Err("never ran well"));
        check(Some(3), &[&good], Err("no image to run"));
        check(Some(9), &[&good], Err("no release 9"));
        check(None, &[&good[..1]], Err("no release to go back to"));
        check(None, &[&[]], Err("no release to go back to"));
        let other = [release(1, 7, Outcome::Done, false), release(2, 3, Outcome::Done, true)];
        check(None, &[&good, &other], Err("nodes differ"));
    }

    #[test]
    fn one_node_decides_for_all() {
        let app: AppName = "notes".parse().unwrap();
        let node = |name: &str| name.parse::<NodeName>().unwrap();
        // b was away when a was rolled back to 1, so their numbers differ from there on.
        let a = [
            release(1, 1, Outcome::Done, false),
            release(2, 2, Outcome::Done, false),
            release(3, 1, Outcome::Done, true),
        ];
        let b = [release(1, 1, Outcome::Done, false), release(2, 2, Outcome::Done, true)];
        let histories = [(node("a"), a.to_vec()), (node("b"), b.to_vec()), (node("c"), vec![])];
        let error = choose(&app, Which::Before, None, &histories, &as_it_is).unwrap_err();
        assert!(error.message.contains("nodes differ"), "{error}");
        assert!(error.hints[0].contains("--node a"), "{error:?}");
        let check = |number: Option<u64>, of: &str, expected: (u64, u8)| {
            let chosen =
                choose(&app, number.map_or(Which::Before, Which::Number), Some(&node(of)), &histories, &as_it_is)
                    .unwrap();
            assert_eq!((chosen.number, chosen.image), (expected.0, ImageId([expected.1; 32])));
            assert_eq!(chosen.nodes, [node("a"), node("b")]);
            assert_eq!(chosen.of, node(of));
        };
        check(Some(1), "a", (1, 1));
        check(None, "a", (2, 2));
        check(None, "b", (1, 1));
        assert!(
            choose(&app, Which::Number(3), Some(&node("b")), &histories, &as_it_is)
                .unwrap_err()
                .message
                .contains("b has no release 3")
        );
        assert!(choose(&app, Which::Before, Some(&node("c")), &histories, &as_it_is).is_err());
    }

    #[test]
    fn what_a_history_says_of_a_node() {
        let gone = Release { image_present: false, ..release(1, 1, Outcome::Done, false) };
        let history = [gone, release(2, 2, Outcome::Done, false), release(3, 3, Outcome::Done, true)];
        let history = [&history[..], &[release(4, 2, failed(), false), release(5, 0, Outcome::Done, false)]].concat();
        let present = present_by_history("n".parse().unwrap(), &history);
        assert_eq!((present.counter, present.live, present.image), (5, Some(3), Some(ImageId([3; 32]))));
        assert_eq!(present.images, [ImageId([2; 32]), ImageId([3; 32])]);
        assert!(present.services.is_some());
        let nothing = present_by_history("n".parse().unwrap(), &[]);
        assert_eq!((nothing.counter, nothing.live, nothing.services), (0, None, None));
    }
}
