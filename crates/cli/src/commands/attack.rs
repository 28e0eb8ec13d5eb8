//! `bulkhead attack`.
//!
//! | module | holds |
//! |---|---|
//! | `siege` | one node under attack: what is tried, and by which rule it must fail |
//! | `forge` | orders that a release key signed and that no node may accept |

mod forge;
mod siege;

use crate::{
    Context,
    args::Environment,
    error::{Error, ErrorBody, Kind, Result},
    output::{Paint, count},
    session::Session,
    table::Table,
};
use bulkhead_core::NodeName;
use bulkhead_wire::{ACCOUNT, DROP_ACCOUNT, OBSERVE_ACCOUNT, OPERATE_ACCOUNT};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siege::{Keys, Siege};
use std::fmt::Display;

/// Tries to break into your own nodes, and shows who refused what
///
/// It goes as far as your keys let it: it asks for shells and forwarding on every account that lets you in, speaks
/// garbage, asks what its role may not, and brings orders and other documents that nobody must accept. All of them
/// are such that a node which accepted one would change nothing that runs: orders are about an app that is not there.
/// Refusals are on record in the nodes' audit logs, with your name as who brought them. Where your key has no role on
/// an account, or must be touched for each signature, the attacks that need it are listed as not tried.
#[derive(Debug, Args)]
pub struct AttackArgs {
    #[command(flatten)]
    environment: Environment,

    /// One node only.
    #[arg(value_name = "NODE")]
    pub node: Option<NodeName>,

    /// Tries all 65,535 TCP ports, and not only the first 1,024 and those of well-known programs.
    #[arg(long)]
    pub all_ports: bool,

    /// Tries also what needs signatures by your security key: a touch each.
    #[arg(long)]
    pub touch: bool,
}

/// What came of the attacks.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AttackReport {
    /// Every attack on every node.
    pub attacks: Vec<Tried>,
    /// How many were refused.
    pub refused: usize,
    /// How many got through.
    pub got_through: usize,
    /// How many ended otherwise than by the refusal that was expected.
    pub unclear: usize,
    /// How many were not tried.
    pub not_tried: usize,
    /// What went wrong, where an attack got through or a node did not answer.
    pub error: Option<ErrorBody>,
}

/// An attack on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Tried {
    /// The node.
    pub node: String,
    /// What was held: `nothing`, or the account that was let in.
    pub holding: String,
    /// What was tried.
    pub attack: String,
    /// `refused`, `got through`, `unclear` or `not tried`.
    pub outcome: String,
    /// Who refused: `this machine`, `packet filter`, `sshd`, `gate` or `keeper`.
    pub by: Option<String>,
    /// The rule that refused, where there is one.
    pub rule: Option<String>,
    /// In what words, or why not.
    pub said: String,
}

const REFUSED: &str = "refused";
const GOT_THROUGH: &str = "got through";
const UNCLEAR: &str = "unclear";
const NOT_TRIED: &str = "not tried";

/// Attacks.
///
/// # Errors
/// An attack got through, or a node could not be reached.
pub async fn run(context: &Context, args: &AttackArgs) -> Result<()> {
    let session = Session::open(context)?;
    let mut nodes = session.files.nodes_in(&args.environment.environment)?;
    if let Some(wanted) = &args.node {
        nodes = vec![session.files.named(&nodes, wanted)?];
    }
    let keys = Keys::of(&session, args.touch).await?;
    let mut report =
        AttackReport { attacks: vec![], refused: 0, got_through: 0, unclear: 0, not_tried: 0, error: None };
    let mut errors = Vec::new();
    for (name, node) in &nodes {
        let mut siege = Siege { context, session: &session, args, name, node, keys: &keys, tried: vec![] };
        if let Err(error) = siege.all().await {
            context.ui.clear();
            errors.push(error);
        }
        report.attacks.append(&mut siege.tried);
    }
    context.ui.clear();
    let number = |outcome: &str| report.attacks.iter().filter(|tried| tried.outcome == outcome).count();
    (report.refused, report.got_through) = (number(REFUSED), number(GOT_THROUGH));
    (report.unclear, report.not_tried) = (number(UNCLEAR), number(NOT_TRIED));
    let error = verdict(&report, &errors, nodes.len());
    report.error = error.as_ref().map(|error| error.report().error);
    context.ui.result(&report, |report, paint| render(report, nodes.len(), paint))?;
    match error {
        None => Ok(()),
        Some(mut error) => {
            error.shown = true;
            Err(error)
        }
    }
}

fn verdict(report: &AttackReport, errors: &[Error], nodes: usize) -> Option<Error> {
    let each = |outcome: &str| {
        let found = report.attacks.iter().filter(|tried| tried.outcome == outcome);
        found.map(|tried| format!("{}: {}: {}", tried.node, tried.attack, tried.said)).collect::<Vec<_>>()
    };
    let mut error = if report.got_through > 0 {
        let mut error = Error::new(Kind::Node, format!("{} attack(s) got through", count(report.got_through as u64)));
        error.causes = each(GOT_THROUGH);
        error.hint("this is a fault of Bulkhead's, or the node is not set up by it: SECURITY.md says how to report it")
    } else if report.unclear > 0 {
        let message = format!("{} attack(s) ended otherwise than was expected", count(report.unclear as u64));
        let mut error = Error::new(Kind::Partial, message);
        error.causes = each(UNCLEAR);
        error.hint("what cuts connections on the way does this too: try again, once")
    } else {
        return crate::session::summary(errors, nodes);
    };
    error.causes.extend(errors.iter().map(|error| error.message.clone()));
    Some(error)
}

/// One line for each attack, whatever the number of nodes and of keys it was tried with, and what was not tried.
fn render(report: &AttackReport, nodes: usize, paint: Paint) -> String {
    let (left, tried): (Vec<&Tried>, Vec<&Tried>) = report.attacks.iter().partition(|tried| tried.outcome == NOT_TRIED);
    let mut lines: Vec<(&str, Vec<&Tried>)> = Vec::new();
    for one in tried {
        match lines.iter_mut().find(|(attack, all)| *attack == one.attack && all[0].outcome == one.outcome) {
            Some((_, all)) => all.push(one),
            None => lines.push((&one.attack, vec![one])),
        }
    }
    let mut table = Table::new(&["TRIED", "HOLDING THE KEY OF", "OUTCOME", "BY", "RULE"]);
    for (attack, all) in &lines {
        let holding = distinct(all.iter().map(|tried| role_of(&tried.holding))).join(", ");
        let by = distinct(all.iter().filter_map(|tried| tried.by.as_deref())).join(", ");
        let rule = distinct(all.iter().filter_map(|tried| tried.rule.as_deref())).join(", ");
        table.row([attack, holding.as_str(), &all[0].outcome, &by, &rule]);
    }
    let mut out = table.render(paint);
    if !left.is_empty() {
        let lines = distinct(left.iter().map(|tried| format!("  {} ({})", tried.attack, tried.said)));
        put!(out, "\nNot tried:\n{}\n", lines.join("\n"));
    }
    putln!(out, "\n{}", summed_up(report, nodes));
    out
}

/// Each once, in order of first appearance.
fn distinct(texts: impl Iterator<Item = impl Into<String>>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for text in texts {
        let text = text.into();
        if !distinct.contains(&text) {
            distinct.push(text);
        }
    }
    distinct
}

fn summed_up(report: &AttackReport, nodes: usize) -> impl Display {
    let all = report.refused + report.got_through + report.unclear;
    let on = if nodes == 1 { "one node".to_owned() } else { format!("{} nodes", count(nodes as u64)) };
    match (report.got_through, report.unclear) {
        (0, 0) => format!("{} attacks on {on}, all refused.", count(all as u64)),
        (through, unclear) => format!(
            "{} attacks on {on}: {} refused, {} GOT THROUGH, {} unclear.",
            count(all as u64),
            count(report.refused as u64),
            count(through as u64),
            count(unclear as u64)
        ),
    }
}

/// Who connects to the account.
fn role_of(holding: &str) -> &str {
    match holding {
        ACCOUNT => "courier",
        OBSERVE_ACCOUNT => "observer",
        OPERATE_ACCOUNT => "operator",
        DROP_ACCOUNT => "courier (drop box)",
        other => other,
    }
}
