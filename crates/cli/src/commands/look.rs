//! `bulkhead look`.

use crate::{
    Context,
    args::{AppService, MaybeEnvironment, parse_duration},
    commands::open::running_on,
    deployment::{build_tools, note_build, payload_of, still_live},
    error::{Error, Kind, Result},
    orders::{keep_receipts, signed, stand_in, step_word},
    output::{Paint, printable_lines},
    session::{As, Purpose, Session, node_error, now, push_error},
    table::Table,
};
use bulkhead_core::{
    NodeName,
    fleet::FleetNode,
    order::{Action, Order, Rights, Target as Position, Tool},
};
use bulkhead_fleet::{
    push::{Early, Papers, Progress, Push, push_over},
    sign::Signer,
};
use bulkhead_wire::{Look, StepKind, ToolEnd, View};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// From issue to expiry of an order to look: long enough to bring a tool image over a slow line once.
const LIFETIME_S: i64 = 1800;
/// What is kept of a tool's output where it is not shown as it comes, of each of its two.
const KEPT_MAX_BYTES: usize = 4 << 20;
/// Tools that capture packets, for which they need a right of its own and no other.
const CAPTURING: [&str; 3] = ["tcpdump", "tshark", "dumpcap"];

/// Looks into a running service from outside; nothing enters it
///
/// Without a tool: processes, sockets and limits. The node itself knows `ps`,
/// `sockets`, `fds`, `limits`, `files PATH`, `cat PATH`; paths are as the service
/// sees them. These need no signature.
///
/// Any other tool comes from the fleet's tool image (`[tools]` in `fleet.toml`),
/// which is built of Debian's packages and brought to the node once. It has power
/// over the service, so it needs an order that is signed as a deploy is; it is in
/// the history of the app. It runs outside the service, sees its processes, its
/// network and, read-only at `/target`, its files, and nothing else of the node;
/// it has no terminal and no input. After `-p` the service's own numbers of
/// processes count, so `-p 1` is its first; `{pid}` is its first process anywhere.
/// The first Ctrl-C interrupts the tool, the second leaves, which ends it. The
/// exit code is the tool's.
#[derive(Debug, Args)]
pub struct LookArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,

    /// The service.
    #[arg(value_name = "APP/SERVICE")]
    pub target: AppService,

    /// The node, where several run it; by default the first.
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeName>,

    /// How long a tool may run.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub within: Duration,

    /// Lets the tool capture the service's packets, and do nothing else; for tcpdump, tshark and dumpcap by itself.
    #[arg(long)]
    pub capture: bool,

    /// How long to wait for another order of the app that is being carried out, such as `30s`.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub wait: Duration,

    /// Why, in a line; shown by `bulkhead releases`.
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,

    /// The tool and its arguments.
    #[arg(value_name = "TOOL", last = true)]
    pub tool: Vec<String>,
}

/// What was seen.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LookReport {
    /// The node.
    pub node: String,
    /// One part for each thing looked at.
    pub parts: Vec<LookPart>,
    /// The tool that ran, where one of the tool image did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ran: Option<RanTool>,
}

/// A tool that ran.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct RanTool {
    /// The tool image.
    pub image: String,
    /// The beginning of what it wrote to standard output.
    pub stdout: String,
    /// The beginning of what it wrote to standard error.
    pub stderr: String,
    /// Whether there was more of either.
    pub truncated: bool,
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its time was up.
    pub out_of_time: bool,
}

/// One thing looked at.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LookPart {
    /// `ps`, `sockets`, `fds`, `limits`, `files` or `cat`.
    pub tool: String,
    /// Column titles; empty where `text` is the answer.
    pub columns: Vec<String>,
    /// Rows, as many cells as columns.
    pub rows: Vec<Vec<String>>,
    /// A file's beginning.
    pub text: Option<String>,
    /// Whether there was more than is sent.
    pub truncated: bool,
}

/// Looks.
///
/// # Errors
/// There is no such tool or service, or its node does not answer.
pub async fn run(context: &Context, args: &LookArgs) -> Result<()> {
    let views = views(&args.tool)?;
    let session = Session::open(context)?;
    let environment = session.files.environment_or_only(args.environment.environment.as_ref())?;
    let nodes = session.files.all_nodes_in(&environment)?;
    // Whoever may not look need not wait for a tool image to be built.
    let signers = match views {
        None => Some(session.signers(&environment, Purpose::Look).await?),
        Some(_) => None,
    };
    let (name, node) = running_on(context, &session, &nodes, &args.target, args.node.as_ref()).await?;
    let Some(views) = views else {
        return run_tool(context, args, &session, signers.unwrap_or_default(), name, node).await;
    };
    // Whoever sees files must be let at them; the rest is for whoever may observe.
    let sees_files = views.iter().any(|(_, view)| matches!(view, View::Files { .. } | View::OpenFiles));
    let who = if sees_files { As::Operator } else { As::Observer };
    let client = session.connect(&name, &node, who).await?;
    let mut report = LookReport { node: name.to_string(), parts: vec![], ran: None };
    for (tool, view) in views {
        let seen = client.look(args.target.app.clone(), args.target.service.clone(), view).await;
        report.parts.push(part(tool, seen.map_err(|error| node_error(&error))?));
    }
    client.close().await;
    context.ui.result(&report, render)
}

/// What a tool wrote and how it ended, as it comes.
#[derive(Debug, Default)]
struct Heard {
    ran: RanTool,
    end: Option<ToolEnd>,
    /// Output could not be written here.
    failed: Option<Error>,
}

/// Has the order signed, brings the tool image where it is missing, and passes on what the tool says.
async fn run_tool(
    context: &Context,
    args: &LookArgs,
    session: &Session,
    signers: Vec<Signer>,
    name: NodeName,
    node: FleetNode,
) -> Result<()> {
    let fleet = session.files.fleet.fleet.clone();
    let nodes = [(name.clone(), node)];
    let early: Early = session.begin(&nodes)?;
    let environment = nodes[0].1.environment.clone();
    let built = build_tools(context, &session.files).await?;
    note_build(context, &built);
    if built.report.lock_changed {
        context.ui.note("tools.lock was written beside fleet.toml: check it in");
    }
    let program = args.tool[0].rsplit('/').next().unwrap_or_default();
    let rights = if args.capture || CAPTURING.contains(&program) { Rights::Capture } else { Rights::Trace };
    let tool = Tool {
        service: args.target.service.clone(),
        image: built.id,
        command: args.tool.clone(),
        rights,
        within_ms: u32::try_from(args.within.as_millis()).unwrap_or(u32::MAX),
    };
    let issued = now();
    let template = Order {
        format: 1,
        fleet: fleet.clone(),
        environment,
        app: args.target.app.clone(),
        targets: [(name.clone(), stand_in())].into(),
        issued,
        not_after: issued.plus_s(LIFETIME_S),
        policy: session.policy.policy.version,
        action: Action::Look(tool),
        break_glass: None,
        message: args.message.clone(),
    };
    template.check().map_err(|what| Error::usage(format!("this order would be refused: {what}")))?;
    let make = |targets: BTreeMap<NodeName, Position>| -> Pin<Box<dyn Future<Output = _> + Send + '_>> {
        Box::pin(signed(Order { targets, ..template.clone() }, &signers))
    };
    let interruptions = Arc::new(Notify::new());
    let request = Push {
        fleet: fleet.clone(),
        app: args.target.app.clone(),
        nodes: session.targets(&nodes)?,
        payload: Some(payload_of(context, built)),
        wait: args.wait,
        interruptions: Some(Arc::clone(&interruptions)),
        papers: Papers::default(),
        accept_restored: false,
    };
    let heard = Mutex::new(Heard::default());
    let hear = |_: &NodeName, progress: Progress| {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Step(step) if step.step == StepKind::Started => {
                context.ui.clear();
                context.ui.stage("the tool was ended");
                context.ui.pass_next_interruption_to(&interruptions);
            }
            Progress::Step(step) => context.ui.progress(&format!("look  {name}: {}", step_word(step.step))),
            Progress::Connecting => context.ui.progress(&format!("look  {name}: connecting")),
            Progress::Uploading { sent, .. } => {
                context.ui.progress(&format!("look  {name}: sent {} of the tools", crate::output::size(sent)));
            }
            Progress::Output { is_error, bytes } => heard.take(context, is_error, &bytes),
            Progress::Ended(end) => heard.end = Some(end),
            _ => {}
        }
    };
    let before = session.memory.recall(&fleet, &name, &args.target.app).position.previous;
    let (identities, timeouts, memory) = (&session.identities, session.timeouts, &session.memory);
    let outcomes = push_over(&request, early, identities, timeouts, memory, &make, &hear).await;
    context.ui.clear();
    keep_receipts(context, session, &nodes, &outcomes);
    let Some(outcome) = outcomes.into_iter().next() else {
        return Err(Error::new(Kind::Internal, "no node was asked"));
    };
    let done = outcome.result.map_err(|error| push_error(&error))?;
    if let Some(order) = done.order
        && let Err(error) = still_live(&fleet, &name, &args.target.app, before, order)
    {
        context.ui.warn(&error);
    }
    let Heard { mut ran, end, failed } = heard.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = failed {
        return Err(error);
    }
    let Some(end) = end else {
        let what = format!("{name}: this very order ran before; the same command again signs a new one");
        return Err(Error::new(Kind::Refused, what));
    };
    (ran.code, ran.signal, ran.out_of_time) = (end.code, end.signal, end.out_of_time);
    if context.ui.is_json() {
        ran.image = match &template.action {
            Action::Look(tool) => tool.image.to_string(),
            _ => String::new(),
        };
        context
            .ui
            .result(&LookReport { node: name.to_string(), parts: vec![], ran: Some(ran) }, |_, _| String::new())?;
    }
    if end.signal.is_some() || end.out_of_time {
        context.ui.note(&format!("{program}: {end}"));
    }
    match exit_code(&end) {
        0 => Ok(()),
        code => Err(Error { tool: Some(code), ..Error::new(Kind::Node, format!("{program}: {end}")) }),
    }
}

/// As shells have it: of a signal 128 and its number.
fn exit_code(end: &ToolEnd) -> u8 {
    let code = end.code.or(end.signal.map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

impl Heard {
    fn take(&mut self, context: &Context, is_error: bool, bytes: &[u8]) {
        if context.ui.is_json() {
            let kept = if is_error { &mut self.ran.stderr } else { &mut self.ran.stdout };
            self.ran.truncated |= kept.len() + bytes.len() > KEPT_MAX_BYTES;
            if !self.ran.truncated {
                kept.push_str(&String::from_utf8_lossy(bytes));
            }
        } else if self.failed.is_none() {
            self.failed = context.ui.tool_output(is_error, bytes).err();
        }
    }
}

/// The node's own views; `None` for a tool of the tool image.
fn views(words: &[String]) -> Result<Option<Vec<(&'static str, View)>>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(Some(match words.as_slice() {
        [] => vec![("ps", View::Processes), ("sockets", View::Sockets), ("limits", View::Limits)],
        ["ps"] => vec![("ps", View::Processes)],
        ["sockets"] => vec![("sockets", View::Sockets)],
        ["fds"] => vec![("fds", View::OpenFiles)],
        ["limits"] => vec![("limits", View::Limits)],
        ["files"] => vec![("files", View::Files { path: "/".into() })],
        ["files", path] => vec![("files", View::Files { path: absolute(path)? })],
        ["cat", path] => vec![("cat", View::Files { path: absolute(path)? })],
        ["cat"] => return Err(Error::usage("`cat` needs a path, as the service sees it")),
        _ => return Ok(None),
    }))
}

fn absolute(path: &str) -> Result<String> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    Err(Error::usage(format!("`{path}` is not an absolute path as the service sees it")))
}

fn part(tool: &str, look: Look) -> LookPart {
    LookPart { tool: tool.into(), columns: look.columns, rows: look.rows, text: look.text, truncated: look.truncated }
}

fn render(report: &LookReport, paint: Paint) -> String {
    let mut out = String::new();
    for part in &report.parts {
        if report.parts.len() > 1 {
            putln!(out, "{}", paint.faint(&format!("-- {} on {}", part.tool, report.node)));
        }
        match &part.text {
            // A file of numbers, pictures, code: nothing that a person reads.
            Some(text) if text.contains('\0') => {
                out.push_str("not text; `-o json` shows its beginning all the same\n");
                continue;
            }
            Some(text) => out.push_str(&(printable_lines(text.strip_suffix('\n').unwrap_or(text)) + "\n")),
            None if part.rows.is_empty() => out.push_str("nothing\n"),
            None => {
                let titles: Vec<String> = part.columns.iter().map(|title| title.to_uppercase()).collect();
                let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
                let mut table = Table::new(&titles);
                for row in &part.rows {
                    table.row(row.clone());
                }
                out.push_str(&table.render(paint));
            }
        }
        if part.truncated {
            out.push_str("… there is more than a node sends\n");
        }
        if report.parts.len() > 1 {
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(views(&[]).unwrap().unwrap().len(), 3);
        let cat = views(&words("cat /etc/hosts")).unwrap().unwrap();
        assert_eq!(cat, [("cat", View::Files { path: "/etc/hosts".into() })]);
        for bad in ["cat", "cat etc"] {
            assert!(views(&words(bad)).is_err(), "{bad}");
        }
        for tool in ["ps aux", "sh", "strace -p 1", "/usr/bin/ps"] {
            assert_eq!(views(&words(tool)).unwrap(), None, "{tool}");
        }
    }

    #[test]
    fn exit_codes() {
        let end = |code, signal| ToolEnd { code, signal, out_of_time: false };
        for (end, expected) in [(end(Some(3), None), 3), (end(None, Some(9)), 137), (end(None, None), 1)] {
            assert_eq!(exit_code(&end), expected);
        }
    }
}
