//! One order from draft to what came of it: position, signatures, push, table.
//!
//! The draft says what is wanted. Positions come from memory (or from nodes
//! that were asked a moment ago); where a node stands elsewhere it says so and
//! the push makes a new order over the same draft.

use crate::{
    Context,
    args::OrderArgs,
    deployment::{MadeLive, forget_live, remember_live},
    error::{Error, ErrorBody, Kind, Result},
    grants::{read_signed, write_signed},
    ledger::Ledger,
    left::Left,
    output::{Paint, printable, seconds, size},
    secrets,
    session::{As, Session, app_of, now, push_error},
    table::Table,
};
use bulkhead_core::{
    AppName, BootId, EnvironmentName, NodeName, SecretName,
    fleet::FleetNode,
    order::{Action, NAMESPACE, Order, Target as Position},
};
use bulkhead_fleet::{
    push::{Early, NodeOutcome, Papers, Payload, Progress, Push, SignedOrder, next, push_over},
    sign::{SignError, Signer},
};
use bulkhead_wire::{Done, LogLine, Position as Standing, SignedText, StepKind};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    future::Future,
    path::Path,
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// From issue to expiry: until then a node must have all of it. Long enough for
/// an upload over a slow line (what arrived stays for the next order), short
/// enough that a copied order is soon worthless; counters guard it besides.
const LIFETIME_S: i64 = 3600;

/// What an interruption means while an order is being carried out.
const UNDERWAY: &str = "the old release goes on serving until a node has received everything; \
    a node finishes what it has fully received, and the next run goes on where this one stopped";

/// An order not yet signed.
#[derive(Debug)]
pub struct Draft {
    /// The word for it: `deploy`, `rollback`, `stop`.
    pub verb: &'static str,
    /// The app.
    pub app: AppName,
    /// Where.
    pub environment: EnvironmentName,
    /// The nodes it is for.
    pub nodes: Vec<(NodeName, FleetNode)>,
    /// What to do.
    pub action: Action,
    /// For an order that runs an image.
    pub payload: Option<Payload>,
    /// What comes with it.
    pub papers: Papers,
    /// Why the image must run although it is not green.
    pub break_glass: Option<String>,
    /// Connections that were begun already.
    pub early: Early,
    /// Nodes that were asked, did not answer, and are left as they are.
    pub left: Vec<Left>,
    /// The command line that does the same on nodes that could not be reached, once they can be.
    pub again: String,
}

/// What came of an order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OrderReport {
    /// The command.
    pub verb: String,
    /// The app.
    pub app: AppName,
    /// The environment.
    pub environment: EnvironmentName,
    /// The image's id, of an order that runs one.
    pub image: Option<String>,
    /// What changed, of an order that runs an image.
    pub plan: Option<crate::plan::Plan>,
    /// What came of it on each node.
    pub nodes: Vec<NodeReport>,
    /// How long everything took, in milliseconds.
    pub total_ms: u64,
    /// What went wrong, where something did.
    pub error: Option<ErrorBody>,
}

/// What came of an order on one node.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct NodeReport {
    /// The node.
    pub node: NodeName,
    /// Whether it was done.
    pub done: bool,
    /// Whether the node had already carried out this very order.
    pub already: bool,
    /// The live release's number.
    pub release: Option<u64>,
    /// The order's id.
    pub order: Option<String>,
    /// What went wrong, where something did.
    pub error: Option<ErrorBody>,
    /// What the node could not do once the order held; it tries again with the next order or boot.
    pub warnings: Vec<String>,
    /// The last log lines of a service that did not become healthy.
    pub log: Vec<ReportedLine>,
    /// How long the steps took.
    pub timings: Steps,
}

/// A log line.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ReportedLine {
    /// Which service wrote it.
    pub service: String,
    /// The line.
    pub text: String,
}

/// How long the steps took, in milliseconds; absent where one did not happen.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct Steps {
    /// TCP, key exchange and authentication.
    pub connect_ms: u64,
    /// From connected to everything received.
    pub transfer_ms: Option<u64>,
    /// Until it would survive a power cut, since the node read the request; likewise those below.
    pub durable_ms: Option<u64>,
    /// Until the image was mounted.
    pub mounted_ms: Option<u64>,
    /// Until the services were started.
    pub started_ms: Option<u64>,
    /// Until they were healthy.
    pub healthy_ms: Option<u64>,
    /// Until new connections went to them.
    pub switched_ms: Option<u64>,
    /// From the start of sending until this node was healthy, as this machine saw it.
    pub until_healthy_ms: Option<u64>,
    /// All of it, as this machine saw it.
    pub total_ms: u64,
    /// Bytes sent, SSH's own included.
    pub sent_bytes: u64,
    /// Bytes received, SSH's own included.
    pub received_bytes: u64,
    /// Rounds of sending contents: one where the memory of the node was right.
    pub packs: u32,
    /// Orders that were signed: one where the memory of the node was right.
    pub orders: u32,
}

/// Has an order signed and carried out, and prints what came of it.
///
/// # Errors
/// What went wrong; already shown as far as it concerns single nodes.
pub async fn carry_out(
    context: &Context,
    session: &Session,
    signers: &[Signer],
    mut draft: Draft,
    plan: Option<crate::plan::Plan>,
    args: &OrderArgs,
) -> Result<()> {
    let sealed = sealed(session, &draft)?;
    let template = template(session, &draft, args, &sealed)?;
    if let Some(path) = &args.draft {
        return write_draft(context, session, signers, draft, template, &sealed, path).await;
    }
    let drafted = args.order.as_deref().map(|path| read_drafted(path, &template)).transpose()?;
    let first = AtomicBool::new(true);
    let make = |targets: BTreeMap<NodeName, Position>| -> Pin<Box<dyn Future<Output = _> + Send + '_>> {
        if let Some(drafted) = &drafted {
            // It is as it was signed. A node that stands elsewhere by now needs another one.
            let is_first = first.swap(false, Ordering::Relaxed);
            let moved_on = || SignError::Document("nodes have moved on since it was drafted: draft it again".into());
            let order = if is_first { Ok(drafted.clone()) } else { Err(moved_on()) };
            return Box::pin(std::future::ready(order));
        }
        let mut order = template.clone();
        order.targets = targets;
        pin(&mut order.targets, &sealed);
        Box::pin(signed(order, signers))
    };
    let display = Display::new(context, draft.verb);
    let request = Push {
        fleet: session.files.fleet.fleet.clone(),
        app: draft.app.clone(),
        nodes: session.targets(&draft.nodes)?,
        payload: draft.payload.clone(),
        wait: args.wait,
        interruptions: None,
        papers: Papers { secrets: sealed.clone(), ..draft.papers.clone() },
        accept_restored: args.accept_restored,
    };
    context.ui.stage(UNDERWAY);
    let hear = |node: &NodeName, progress: Progress| display.hear(node, &progress);
    let early = std::mem::take(&mut draft.early);
    let (identities, timeouts, memory) = (&session.identities, session.timeouts, &session.memory);
    let outcomes = push_over(&request, early, identities, timeouts, memory, &make, &hear).await;
    context.ui.clear();
    remember(context, session, &draft, &sealed, &outcomes);
    keep_receipts(context, session, &draft.nodes, &outcomes);
    report(context, &draft, plan, outcomes, args)
}

/// Writes an order for others to sign: for the places where nodes stand now.
async fn write_draft(
    context: &Context,
    session: &Session,
    signers: &[Signer],
    draft: Draft,
    mut order: Order,
    sealed: &SealedSecrets,
    path: &Path,
) -> Result<()> {
    if path.exists() {
        return Err(Error::usage(format!("{} is there already, with the signatures that it has", path.display()))
            .hint("send it with `--order`, or remove it and draft again"));
    }
    let (app, nodes) = (draft.app.clone(), draft.nodes.clone());
    let answers = session.ask_all(&nodes, As::Courier, |client| async move { client.status().await }).await?;
    for answer in answers {
        let status = answer.result?;
        let stands = app_of(&status, &app).map(|known| known.position.clone());
        let position = stands.unwrap_or(Standing { boot: status.boot, ..Standing::default() });
        order.targets.insert(answer.node, next(&position));
    }
    pin(&mut order.targets, sealed);
    let count = signers.len();
    let SignedOrder { bytes, signatures } =
        signed(order, signers).await.map_err(|error| crate::session::sign_error(&error))?;
    let text =
        String::from_utf8(bytes).map_err(|error| Error::during(Kind::Internal, "the order is not text", &error))?;
    write_signed(path, &SignedText { text, signatures })?;
    let report = DraftReport { file: path.display().to_string(), signatures: count };
    context.ui.result(&report, |report, _| {
        format!(
            "{} has {} signature(s). Others add theirs with `bulkhead order sign {0}`; then the same command with \
             `--order {0}` sends it, within the hour.\n",
            report.file, report.signatures
        )
    })
}

/// An order that was drafted, if it does what the command line says.
fn read_drafted(path: &Path, template: &Order) -> Result<SignedOrder> {
    let SignedText { text, signatures } = read_signed(path)?;
    let order = Order::parse(text.as_bytes())
        .map_err(|error| Error::of(Kind::Configuration, &error).hint(format!("it is in {}", path.display())))?;
    let same = order.fleet == template.fleet
        && order.environment == template.environment
        && order.app == template.app
        && has_the_effect_of(&order.action, &template.action)
        && order.break_glass == template.break_glass;
    if !same {
        let message = format!("the order in {} does something else than this command", path.display());
        return Err(Error::configuration(message).hint("image and settings must be those that it was drafted with"));
    }
    Ok(SignedOrder { bytes: text.into_bytes(), signatures })
}

/// Whether both leave the same running. What may be put in its place later, and where it came from, was settled by
/// those who signed, and is different once it runs.
fn has_the_effect_of(one: &Action, other: &Action) -> bool {
    match (one, other) {
        (Action::Run(one), Action::Run(other)) => one.id() == other.id(),
        _ => one == other,
    }
}

/// Where a drafted order is.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DraftReport {
    /// The file.
    pub file: String,
    /// How many signatures it has.
    pub signatures: usize,
}

/// Keeps the receipts: each is a place at which the node's audit log was seen to end.
pub(crate) fn keep_receipts(
    context: &Context,
    session: &Session,
    nodes: &[(NodeName, FleetNode)],
    outcomes: &[NodeOutcome],
) {
    for outcome in outcomes {
        let Ok(Done { order: Some(order), receipt: Some(receipt), .. }) = &outcome.result else { continue };
        let Some((name, node)) = nodes.iter().find(|(name, _)| *name == outcome.node) else { continue };
        let kept = Ledger::of(&session.files.fleet.fleet, name, node)
            .and_then(|ledger| ledger.keep_receipt(&session.policy.policy, *order, receipt));
        if let Err(error) = kept {
            // The order is carried out all the same, and `audit` will say what is wrong with the node.
            context.ui.warn(&error);
        }
    }
}

/// Keeps what is live now, so that the next plan can be shown without asking.
fn remember(context: &Context, session: &Session, draft: &Draft, sealed: &SealedSecrets, outcomes: &[NodeOutcome]) {
    if matches!(draft.action, Action::Remove { .. }) {
        for outcome in outcomes.iter().filter(|outcome| outcome.result.is_ok()) {
            forget_live(&session.files.fleet.fleet, &outcome.node, &draft.app);
        }
    }
    let Action::Run(run) = &draft.action else { return };
    for outcome in outcomes {
        let Ok(Done { release: Some(release), order: Some(order), .. }) = outcome.result else { continue };
        let live = MadeLive {
            order,
            release,
            image: run.image,
            services: run.services.clone(),
            secrets: sealed.get(&outcome.node).map(secrets::digests).unwrap_or_default(),
        };
        if let Err(error) = remember_live(&session.files.fleet.fleet, &outcome.node, &draft.app, &live) {
            context.ui.warn(&error);
        }
    }
}

/// Sealed values for each node, in base64.
type SealedSecrets = BTreeMap<NodeName, BTreeMap<SecretName, String>>;

/// The sealed values that the draft's services need, as they lie beside `fleet.toml` now.
fn sealed(session: &Session, draft: &Draft) -> Result<SealedSecrets> {
    let Action::Run(run) = &draft.action else { return Ok(SealedSecrets::new()) };
    let nodes = draft.nodes.iter().map(|(node, _)| node);
    let (folder, policy) = (&session.files.directory, &session.policy.policy);
    secrets::for_order(folder, policy, &draft.environment, &draft.app, &run.services, nodes)
}

/// Pins them in an order.
fn pin(targets: &mut BTreeMap<NodeName, Position>, sealed: &SealedSecrets) {
    for (node, target) in targets {
        target.secrets = sealed.get(node).map(secrets::digests).unwrap_or_default();
    }
}

fn template(session: &Session, draft: &Draft, args: &OrderArgs, sealed: &SealedSecrets) -> Result<Order> {
    let issued = now();
    let mut order = Order {
        format: 1,
        fleet: session.files.fleet.fleet.clone(),
        environment: draft.environment.clone(),
        app: draft.app.clone(),
        // Stands in until positions are known, so that everything else is checked before anyone is asked.
        targets: draft.nodes.iter().map(|(name, _)| (name.clone(), stand_in())).collect(),
        issued,
        not_after: issued.plus_s(LIFETIME_S),
        policy: session.policy.policy.version,
        action: draft.action.clone(),
        break_glass: draft.break_glass.clone(),
        message: args.message.clone(),
    };
    pin(&mut order.targets, sealed);
    order.check().map_err(|what| Error::configuration(format!("this order would be refused: {what}")))?;
    order.targets.clear();
    Ok(order)
}

/// A place in a history that stands in until the real one is known.
pub(crate) fn stand_in() -> Position {
    Position::new(1, None, BootId([0; 32]))
}

/// Checks that the order of these arguments would be in order, before anything is built or asked.
///
/// # Errors
/// The message is too long or not one line.
pub fn check_message(args: &OrderArgs) -> Result<()> {
    match &args.message {
        Some(text) if text.len() > 1000 || text.chars().any(char::is_control) => {
            Err(Error::usage("the message is one line of at most 1000 bytes"))
        }
        _ => Ok(()),
    }
}

pub(crate) async fn signed(order: Order, signers: &[Signer]) -> std::result::Result<SignedOrder, SignError> {
    let bytes = order.to_bytes();
    let mut signatures = Vec::with_capacity(signers.len());
    for signer in signers {
        signatures.push(signer.sign(NAMESPACE, &bytes).await?);
    }
    Ok(SignedOrder { bytes, signatures })
}

/// The moving line: what each node is at.
struct Display<'a> {
    context: &'a Context,
    verb: &'static str,
    nodes: Mutex<BTreeMap<NodeName, String>>,
}

impl<'a> Display<'a> {
    fn new(context: &'a Context, verb: &'static str) -> Self {
        Self { context, verb, nodes: Mutex::new(BTreeMap::new()) }
    }

    fn hear(&self, node: &NodeName, progress: &Progress) {
        let text = match progress {
            Progress::Connecting => "connecting".into(),
            Progress::Connected => "connected".into(),
            Progress::Fetching { from, objects, received: 0 } => {
                let files = if *objects == 1 { "file" } else { "files" };
                self.context.ui.step(&format!("fetching {objects} {files} from {from}"));
                format!("fetching from {from}")
            }
            Progress::Fetching { from, received, .. } => format!("fetching from {from}: {}", size(*received)),
            Progress::Uploading { sent, total: Some(total) } => format!("sent {} of {}", size(*sent), size(*total)),
            Progress::Uploading { sent, total: None } => format!("sent {}", size(*sent)),
            Progress::Waiting { holder, since } => {
                self.context.ui.note(&format!("{node} waits for an order of {holder}, under way since {since}"));
                "waiting".into()
            }
            Progress::Step(step) => step_word(step.step).into(),
            Progress::Lost => {
                self.context.ui.step(&format!("{node}: the connection broke; asking over another how it ended"));
                "connecting again".into()
            }
            Progress::Repositioned(position) => {
                // What was shown as there before is not what this order follows.
                self.context.ui.note(&format!(
                    "{node} stands elsewhere than this machine remembered: its last order is number {}, and this one follows it",
                    position.counter
                ));
                "signing again".into()
            }
            Progress::Done(_) | Progress::Output { .. } | Progress::Ended(_) => "done".into(),
            Progress::Failed(_) => "failed".into(),
        };
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(node.clone(), text);
        let line: Vec<String> = nodes.iter().map(|(node, text)| format!("{node}: {text}")).collect();
        self.context.ui.progress(&format!("{}  {}", self.verb, line.join("   ")));
    }
}

pub(crate) fn step_word(step: StepKind) -> &'static str {
    match step {
        StepKind::Accepted => "accepted",
        StepKind::Received => "received",
        StepKind::Durable => "durable",
        StepKind::Mounted => "mounted",
        StepKind::Started => "started",
        StepKind::Healthy => "healthy",
        StepKind::Switched => "switched",
        StepKind::Drained => "drained",
        StepKind::Stopped => "old one stopped",
    }
}

fn report(
    context: &Context,
    draft: &Draft,
    plan: Option<crate::plan::Plan>,
    outcomes: Vec<NodeOutcome>,
    args: &OrderArgs,
) -> Result<()> {
    let mut errors: Vec<(NodeName, Error)> = Vec::new();
    let mut nodes: Vec<NodeReport> = outcomes
        .into_iter()
        .map(|outcome| {
            let timings = steps(&outcome.timings);
            match outcome.result {
                Ok(done) => NodeReport {
                    node: outcome.node,
                    done: true,
                    already: done.already,
                    release: done.release,
                    order: done.order.map(|order| order.to_string()),
                    warnings: done.warnings,
                    error: None,
                    log: vec![],
                    timings,
                },
                Err(error) => {
                    let error = push_error(&error);
                    errors.push((outcome.node.clone(), error.clone()));
                    not_done(outcome.node, &error, timings)
                }
            }
        })
        .collect();
    for left in &draft.left {
        nodes.push(not_done(left.node.clone(), &left.error, Steps::default()));
        errors.push((left.node.clone(), left.error.clone()));
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let error = summary(draft, &nodes, errors);
    let report = OrderReport {
        verb: draft.verb.into(),
        app: draft.app.clone(),
        environment: draft.environment.clone(),
        image: match &draft.action {
            Action::Run(run) => Some(run.image.to_string()),
            _ => None,
        },
        plan,
        nodes,
        total_ms: u64::try_from(context.ui.elapsed().as_millis()).unwrap_or(u64::MAX),
        error: error.as_ref().map(|error| error.report().error),
    };
    context.ui.result(&report, |report, paint| render(report, args.timings, paint))?;
    match error {
        None => Ok(()),
        Some(mut error) => {
            error.shown = true;
            Err(error)
        }
    }
}

fn not_done(node: NodeName, error: &Error, timings: Steps) -> NodeReport {
    NodeReport {
        node,
        done: false,
        already: false,
        release: None,
        order: None,
        warnings: vec![],
        log: error.log.iter().map(reported_line).collect(),
        error: Some(error.report().error),
        timings,
    }
}

fn reported_line(line: &LogLine) -> ReportedLine {
    ReportedLine { service: line.service.to_string(), text: line.text.clone() }
}

/// One error for the whole order: the nodes' own where they agree in kind. Where the only trouble is
/// that nodes could not be reached, that is the kind, whatever the others did.
fn summary(draft: &Draft, nodes: &[NodeReport], errors: Vec<(NodeName, Error)>) -> Option<Error> {
    let is_unreachable = |error: &Error| error.kind == Kind::Unreachable;
    let away: Vec<&str> =
        errors.iter().filter(|(_, error)| is_unreachable(error)).map(|(node, _)| node.as_str()).collect();
    let again = (!away.is_empty()).then(|| format!("once {} can be reached again: `{}`", away.join(", "), draft.again));
    let mut errors: Vec<Error> = errors.into_iter().map(|(_, error)| error).collect();
    if errors.is_empty() {
        return None;
    }
    let mut first = errors.remove(0);
    if errors.is_empty() && nodes.len() == 1 {
        first.hints.extend(again);
        return Some(first);
    }
    let done = nodes.iter().filter(|node| node.done).count();
    let same = errors.iter().all(|error| error.kind == first.kind);
    let kind = if same && (done == 0 || is_unreachable(&first)) { first.kind } else { Kind::Partial };
    let message = format!("{} of {}: done on {done} of {} nodes", draft.verb, draft.app, nodes.len());
    let mut error = Error::new(kind, message);
    error.log.clone_from(&first.log);
    for cause in std::iter::once(&first).chain(&errors) {
        let because = if cause.causes.is_empty() { String::new() } else { format!(": {}", cause.causes.join(": ")) };
        error.causes.push(format!("{}{because}", cause.message));
        for hint in &cause.hints {
            if !error.hints.contains(hint) {
                error.hints.push(hint.clone());
            }
        }
    }
    error.hints.extend(again);
    if done > 0 && kind == Kind::Partial {
        error.hints.push("the same command again goes on where this one stopped".into());
    }
    Some(error)
}

fn steps(timings: &bulkhead_fleet::push::Timings) -> Steps {
    Steps {
        connect_ms: timings.connect_ms,
        transfer_ms: timings.transfer_ms,
        durable_ms: timings.durable_ms,
        mounted_ms: timings.mounted_ms,
        started_ms: timings.started_ms,
        healthy_ms: timings.healthy_ms,
        switched_ms: timings.switched_ms,
        until_healthy_ms: timings.until_healthy_ms,
        total_ms: timings.total_ms,
        sent_bytes: timings.sent_bytes,
        received_bytes: timings.received_bytes,
        packs: timings.packs,
        orders: timings.orders,
    }
}

/// The table of nodes.
#[must_use]
pub fn render(report: &OrderReport, timings: bool, paint: Paint) -> String {
    let mut out = String::from("\n");
    let runs = report.image.is_some();
    let titles: &[&str] = match (runs, timings) {
        (false, _) => &["NODE", "RESULT", ">TIME"],
        (true, false) => &["NODE", "RESULT", ">RELEASE", ">SENT", ">HEALTHY", ">TIME"],
        (true, true) => &[
            "NODE",
            "RESULT",
            ">RELEASE",
            ">SENT",
            ">CONNECT",
            ">TRANSFER",
            ">DURABLE",
            ">MOUNTED",
            ">STARTED",
            ">HEALTHY",
            ">SWITCHED",
            ">TIME",
        ],
    };
    let mut table = Table::new(titles);
    for node in &report.nodes {
        let result = match (&node.error, node.already) {
            (Some(error), _) => error_word(error.kind),
            (None, true) => "done before",
            (None, false) => "done",
        };
        let ms = |value: Option<u64>| value.map(|ms| seconds(Duration::from_millis(ms))).unwrap_or_default();
        let steps = &node.timings;
        let release = node.release.map(|release| release.to_string()).unwrap_or_default();
        let total = ms(Some(steps.total_ms));
        match (runs, timings) {
            (false, _) => table.row([node.node.to_string(), result.into(), total]),
            (true, false) => table.row([
                node.node.to_string(),
                result.into(),
                release,
                size(steps.sent_bytes),
                ms(steps.until_healthy_ms),
                total,
            ]),
            (true, true) => table.row([
                node.node.to_string(),
                result.into(),
                release,
                size(steps.sent_bytes),
                ms(Some(steps.connect_ms)),
                ms(steps.transfer_ms),
                ms(steps.durable_ms),
                ms(steps.mounted_ms),
                ms(steps.started_ms),
                ms(steps.healthy_ms),
                ms(steps.switched_ms),
                total,
            ]),
        }
    }
    out.push_str(&table.render(paint));
    for node in &report.nodes {
        for warning in &node.warnings {
            putln!(out, "warning: {}: {}", node.node, printable(warning));
        }
    }
    // The error that follows names one node's log; the others' would be lost.
    for node in report.nodes.iter().filter(|node| !node.log.is_empty()).skip(1) {
        putln!(out, "\nlast log lines on {}", node.node);
        for line in &node.log {
            putln!(out, "  {} | {}", printable(&line.service), printable(&line.text));
        }
    }
    out
}

fn error_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Unreachable => "unreachable",
        Kind::Refused => "refused",
        Kind::Unhealthy => "unhealthy, not switched",
        Kind::Locked => "locked",
        Kind::Internal | Kind::Usage | Kind::Configuration | Kind::Node | Kind::Partial | Kind::Interrupted => "failed",
    }
}
