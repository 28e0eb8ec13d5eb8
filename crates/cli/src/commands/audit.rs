//! `bulkhead audit`.

use crate::{
    Context,
    args::MaybeEnvironment,
    error::{Error, ErrorBody, Kind, Result},
    ledger::{KnownBy, Ledger},
    output::{Paint, printable},
    proposal::signer_name,
    session::{Answer, As, Session, summary},
    table::Table,
    workspace::{read_if_present, shown, write_durably, write_json},
};
use bulkhead_core::{NodeName, SignedText, fleet::FleetNode};
use bulkhead_fleet::sign::Signer;
use bulkhead_trust::{
    PublicKey,
    audit::{Chain, Entry, Head, WITNESS_NAMESPACE, Witnessed},
};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The folder of witnessed heads, beside `fleet.toml`.
pub const WITNESS: &str = ".bulkhead/witness";

/// Shows nodes' audit logs, and checks that nothing in them was changed or left out
///
/// Each node keeps a hash chain of the orders and other signed documents that it accepted or refused, and signs
/// where it ends. This checks every line against the one before, the end against the node's signature, and that
/// all that this machine ever saw of the log (heads, and the receipts of its orders) is still its beginning. What
/// `--witness` writes can be checked in, so that others hold the log against it too. Where a node does not answer the
/// exit code is 9, or 4 where none does; where a log cannot be believed it is 5.
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,

    /// One node only.
    #[arg(value_name = "NODE")]
    pub node: Option<NodeName>,

    /// How many entries to show, the newest; all are checked.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    pub lines: usize,

    /// Writes all entries to a file, one a line as JSON with its node.
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,

    /// Signs with your key where the logs end now, and writes that to `.bulkhead/witness/NODE.json` beside `fleet.toml`.
    #[arg(long)]
    pub witness: bool,
}

/// What nodes' audit logs say.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuditReport {
    /// Each node that answered.
    pub nodes: Vec<NodeAudit>,
    /// The newest entries of all of them, oldest first.
    pub entries: Vec<AuditEntry>,
    /// What went wrong, where a log cannot be believed.
    pub error: Option<ErrorBody>,
}

/// A node's audit log.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodeAudit {
    /// The node.
    pub node: NodeName,
    /// How many entries it has; absent where the log cannot be believed.
    pub entries: Option<u64>,
    /// sha256 of the last one.
    pub head: Option<String>,
    /// Fingerprint of the key that signed this.
    pub key: Option<String>,
    /// How that key is known: `policy`, `before` (seen before by this machine) or `first` (seen now for the first time).
    pub key_by: Option<String>,
    /// Who witnessed an earlier end of the log.
    pub witnesses: Vec<String>,
    /// Why it cannot be believed, or did not come.
    pub error: Option<ErrorBody>,
}

impl NodeAudit {
    /// Of which nothing is known yet.
    fn of(node: &NodeName) -> Self {
        Self { node: node.clone(), entries: None, head: None, key: None, key_by: None, witnesses: vec![], error: None }
    }
}

/// An entry of a node's audit log.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AuditEntry {
    /// The node.
    pub node: NodeName,
    /// Its number in the node's log.
    pub number: u64,
    /// When, by the node's clock, in seconds since 1970.
    pub at: i64,
    /// `accepted`, `refused`, `done`, `failed` or `brought`.
    pub event: String,
    /// sha256 of the order or other document.
    pub order: String,
    /// The app.
    pub app: Option<String>,
    /// The order's counter on the node.
    pub counter: Option<u64>,
    /// Who signed it.
    pub signers: Vec<String>,
    /// Who brought it.
    pub courier: Option<String>,
    /// The rule that refused, or the step that failed.
    pub rule: Option<String>,
    /// Why.
    pub message: Option<String>,
}

/// A log that holds.
pub(crate) struct Good {
    signed: SignedText,
    head: Head,
    chain: Chain,
    key: String,
    by: KnownBy,
    witnesses: Vec<String>,
}

/// Shows and checks the logs.
///
/// # Errors
/// No node answered, or a log cannot be believed.
pub async fn run(context: &Context, args: &AuditArgs) -> Result<()> {
    let session = Session::open(context)?;
    let nodes = chosen(&session, args)?;
    let signer = match args.witness {
        false => None,
        true => Some(witness_key(&session).await?),
    };
    let answers = session.ask_all(&nodes, As::Observer, |client| async move { client.audit(0).await }).await?;
    let mut report = AuditReport { nodes: vec![], entries: vec![], error: None };
    let (mut errors, mut away) = (Vec::new(), Vec::new());
    for Answer { node, result } in answers {
        let (signed, lines) = match result {
            Ok(answer) => answer,
            Err(error) => {
                report.nodes.push(NodeAudit { error: Some(error.report().error), ..NodeAudit::of(&node) });
                away.push(error);
                continue;
            }
        };
        let known = nodes.iter().find(|(name, _)| *name == node).map(|(_, known)| known);
        let ledger = known.map(|known| Ledger::of(&session.files.fleet.fleet, &node, known)).transpose()?;
        let Some(ledger) = ledger else { continue };
        let mut report_one = NodeAudit::of(&node);
        match examine(context, &session, &ledger, &node, signed, &lines) {
            Ok(good) => {
                ledger.keep_head(&good.signed)?;
                if let Some(signer) = &signer {
                    witness(&session, signer, &node, &good).await?;
                }
                report_one.entries = Some(good.head.entries);
                report_one.head = Some(good.head.head.to_string());
                report_one.key = PublicKey::parse(&good.key).ok().map(|key| key.fingerprint());
                report_one.key_by = Some(word(good.by).into());
                report_one.witnesses = good.witnesses;
                report.entries.extend(good.chain.entries.iter().map(|entry| shown_entry(&node, entry)));
            }
            Err(mut error) => {
                error.message = format!("{node}: {}", error.message);
                report_one.error = Some(error.report().error);
                errors.push(error);
            }
        }
        report.nodes.push(report_one);
    }
    // Stable: entries of one node stay as its log has them.
    report.entries.sort_by_key(|entry| entry.at);
    if let Some(path) = &args.export {
        export(path, &report.entries)?;
    }
    let surplus = report.entries.len().saturating_sub(args.lines);
    report.entries.drain(..surplus);
    // That a log cannot be believed is worse than that one is not known.
    let error = if errors.is_empty() { summary(&away, nodes.len()) } else { Some(folded(errors)) };
    report.error = error.as_ref().map(|error| error.report().error);
    let name = |signer: &String| signer_name(&session.policy.policy, signer);
    context.ui.result(&report, |report, paint| render(report, &name, paint))?;
    match error {
        None => Ok(()),
        Some(mut error) => {
            error.shown = true;
            Err(error)
        }
    }
}

fn chosen(session: &Session, args: &AuditArgs) -> Result<Vec<(NodeName, FleetNode)>> {
    let nodes = session.files.all_nodes(args.environment.environment.as_ref())?;
    match &args.node {
        Some(wanted) => Ok(vec![session.files.named(&nodes, wanted)?]),
        None => Ok(nodes),
    }
}

fn word(by: KnownBy) -> &'static str {
    match by {
        KnownBy::Policy => "policy",
        KnownBy::Before => "before",
        KnownBy::First => "first",
    }
}

/// Checks all that can be checked of a log.
pub(crate) fn examine(
    context: &Context,
    session: &Session,
    ledger: &Ledger,
    node: &NodeName,
    signed: SignedText,
    lines: &[u8],
) -> Result<Good> {
    let refused = |error: &dyn std::error::Error| Error::of(Kind::Refused, error);
    let policy = &session.policy.policy;
    let (head, key, by): (Head, _, _) = ledger.verify(policy, &signed, "the end of the audit log")?;
    if by == KnownBy::First {
        let fingerprint = PublicKey::parse(&key).map(|key| key.fingerprint()).unwrap_or_default();
        context.ui.note(&format!(
            "{node}: the policy lists no keys of it; its audit key {fingerprint} is taken as seen first"
        ));
    }
    let text = std::str::from_utf8(lines).map_err(|error| refused(&error))?;
    let chain = Chain::check(text).map_err(|error| refused(&error))?;
    chain.ends_at(&head).map_err(|error| refused(&error))?;
    for seen in ledger.seen()? {
        chain.continues(&seen).map_err(|error| refused(&error))?;
    }
    let mut witnesses = Vec::new();
    if let Some((path, witnessed)) = read_witness(&session.files.directory, node)? {
        let seen = witnessed.seen(policy, &key, &session.files.fleet.fleet, node);
        match seen.map_err(|error| refused(&error))? {
            Some(seen) => chain.continues(&seen).map_err(|error| refused(&error))?,
            None => context.ui.note(&format!(
                "{} is signed neither by the node nor by anyone of the policy: it counts for nothing",
                shown(&path)
            )),
        }
        witnesses = witnessed.people(policy);
    }
    Ok(Good { signed, head, chain, key, by, witnesses })
}

fn read_witness(directory: &Path, node: &NodeName) -> Result<Option<(PathBuf, Witnessed)>> {
    let path = directory.join(WITNESS).join(format!("{node}.json"));
    let Some(text) = read_if_present(&path)? else { return Ok(None) };
    let witnessed = serde_json::from_str(&text).map_err(|error| {
        Error::during(Kind::Configuration, format!("{} is not a witnessed head", shown(&path)), &error)
    })?;
    Ok(Some((path, witnessed)))
}

/// A key of a person's that the policy names.
async fn witness_key(session: &Session) -> Result<Signer> {
    let keys = session.policy.policy.keys.values().map(|key| key.key.as_str());
    Signer::find(&session.identities, keys).await.map_err(|error| {
        Error::of(Kind::Configuration, &error).hint("a witness signs with a key that the policy names")
    })
}

async fn witness(session: &Session, signer: &Signer, node: &NodeName, good: &Good) -> Result<()> {
    let signature = signer
        .sign(WITNESS_NAMESPACE, good.signed.text.as_bytes())
        .await
        .map_err(|error| Error::of(Kind::Configuration, &error))?;
    let witnessed = Witnessed { head: good.signed.clone(), witnesses: vec![signature] };
    let path = session.files.directory.join(WITNESS).join(format!("{node}.json"));
    write_json(&path, &witnessed)
}

fn shown_entry(node: &NodeName, entry: &Entry) -> AuditEntry {
    AuditEntry {
        node: node.clone(),
        number: entry.number,
        at: entry.at.0,
        event: entry.event.as_str().into(),
        order: entry.order.to_string(),
        app: entry.app.as_ref().map(ToString::to_string),
        counter: entry.counter,
        signers: entry.signers.clone(),
        courier: entry.courier.clone(),
        rule: entry.rule.clone(),
        message: entry.message.clone(),
    }
}

fn export(path: &Path, entries: &[AuditEntry]) -> Result<()> {
    let mut bytes = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut bytes, entry)
            .map_err(|error| Error::during(Kind::Internal, "an entry cannot be written as JSON", &error))?;
        bytes.push(b'\n');
    }
    write_durably(path, &bytes)
}

/// One error for all logs that cannot be believed.
fn folded(mut errors: Vec<Error>) -> Error {
    let mut first = errors.remove(0);
    for other in errors {
        first.causes.extend(other.as_causes());
        first.hints.extend(other.hints);
    }
    first
}

/// Nodes name root keys by fingerprints alone; `name` says whose they are.
fn render(report: &AuditReport, name: &dyn Fn(&String) -> String, paint: Paint) -> String {
    let mut out = String::new();
    let mut table = Table::new(&["TIME", "NODE", ">#", "EVENT", "APP", ">ORDER", "SIGNED BY", "BROUGHT BY", "WHAT"]);
    for entry in &report.entries {
        let short = entry.order.get(..12).unwrap_or(&entry.order);
        let order = entry.counter.map_or_else(|| short.to_owned(), |counter| format!("{counter} {short}"));
        let what = match (&entry.rule, &entry.message) {
            (Some(rule), Some(message)) => format!("{rule}: {message}"),
            (rule, message) => rule.clone().or_else(|| message.clone()).unwrap_or_default(),
        };
        table.row([
            bulkhead_core::Timestamp(entry.at).to_string(),
            entry.node.to_string(),
            entry.number.to_string(),
            entry.event.clone(),
            entry.app.clone().unwrap_or_default(),
            order,
            entry.signers.iter().map(name).collect::<Vec<_>>().join(", "),
            entry.courier.clone().unwrap_or_default(),
            what,
        ]);
    }
    if !table.is_empty() {
        out.push_str(&table.render(paint));
        out.push('\n');
    }
    for node in &report.nodes {
        let name = paint.bold(node.node.as_str());
        match (&node.error, node.entries, &node.key) {
            (Some(error), ..) => {
                putln!(out, "{name}: {} {}", paint.error("NOT TO BE BELIEVED:"), printable(&error.message))
            }
            (None, Some(entries), Some(key)) => {
                let witnessed = match node.witnesses.as_slice() {
                    [] => String::new(),
                    people => format!("; an earlier end was witnessed by {}", people.join(", ")),
                };
                putln!(out, "{name}: {entries} entries, unbroken, signed with {key}{witnessed}");
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report() {
        let entry = AuditEntry {
            node: "n1".parse().unwrap(),
            number: 2,
            at: 1_795_430_996,
            event: "refused".into(),
            order: "ab".repeat(32),
            app: None,
            counter: None,
            signers: vec![],
            courier: Some("ada".into()),
            rule: Some("threshold".into()),
            message: Some("no \u{1b}[31mkey".into()),
        };
        let node = NodeAudit {
            node: "n1".parse().unwrap(),
            entries: Some(2),
            head: Some("cd".repeat(32)),
            key: Some("SHA256:x".into()),
            key_by: Some("first".into()),
            witnesses: vec!["ada".into()],
            error: None,
        };
        let error = Error::new(Kind::Refused, "n2: line 3 \u{7}").report().error;
        let bad = NodeAudit { node: "n2".parse().unwrap(), entries: None, key: None, error: Some(error), ..node_of() };
        let report = AuditReport { nodes: vec![node, bad], entries: vec![entry], error: None };
        insta::assert_snapshot!(render(&report, &|signer| signer.clone(), Paint { colour: false }));
    }

    fn node_of() -> NodeAudit {
        NodeAudit {
            node: "n".parse().unwrap(),
            entries: None,
            head: None,
            key: None,
            key_by: None,
            witnesses: vec![],
            error: None,
        }
    }
}
