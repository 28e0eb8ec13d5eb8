//! `bulkhead node release`.

use crate::{
    Context,
    commands::audit::examine,
    error::{Error, Kind, Result},
    grants::{read_signed, write_signed},
    inventory,
    ledger::Ledger,
    output::{Paint, printable},
    proposal::name_of,
    session::{As, Session, node_error, now, sign_error},
    workspace::{FLEET, shown, write_durably},
};
use bulkhead_core::{
    NodeName, SignedText,
    fleet::FleetNode,
    notice::{DISCHARGE_NAMESPACE, Discharge},
};
use bulkhead_fleet::{ConnectError, NodeClient, sign::Signer, ssh::attempt::greet};
use bulkhead_trust::{PublicKey, sshsig};
use bulkhead_wire::NodeStatus;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where the audit logs of released nodes are kept, beside `fleet.toml`.
const RELEASED: &str = ".bulkhead/released";
/// How long a discharge may be gathered signatures for.
const LASTS_S: i64 = 3600;
/// Apps that hear no signal take their whole `stop`, one after another.
const PATIENCE: Duration = Duration::from_secs(180);
/// A greeting without a login counts against an address for a second.
const PAUSE: Duration = Duration::from_secs(2);
/// Longer than the node's own server needs to come back where the stock one does not start.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// What an interruption means once the node has its discharge.
const ON_ITS_WAY: &str = "the machine is giving itself back; the same command again finds out";

/// Makes a node a stock machine again: its apps stop, and what the adoption changed is undone
///
/// It takes as many root keys as a policy does, because whoever could log in to the machine before it was adopted can
/// do so again. With `--document` they sign one after another: the file goes round, and whoever completes the
/// signatures sends it, within the hour. Volumes stay on the machine, in `/var/lib/bulkhead/volumes`, unless their
/// deletion is asked for. The node's audit log is fetched first and kept in `.bulkhead/released` beside `fleet.toml`.
/// Where the machine's stock SSH server does not come back, the node goes on as it was.
#[derive(Debug, Args)]
pub struct NodeReleaseArgs {
    /// The node.
    #[arg(value_name = "NODE")]
    pub node: NodeName,

    /// Why, in a line.
    #[arg(long, value_name = "TEXT", default_value = "released")]
    pub reason: String,

    /// Deletes the volumes of all its apps, for ever.
    #[arg(long)]
    pub delete_volumes: bool,

    /// A file that goes round until enough root keys have signed it.
    #[arg(long, value_name = "FILE")]
    pub document: Option<PathBuf>,

    /// Goes on without a question.
    #[arg(short, long)]
    pub yes: bool,
}

/// A node that is one no longer, or a document that more must sign.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodeReleaseReport {
    /// The node.
    pub node: String,
    /// Whether it is a stock machine now.
    pub released: bool,
    /// Who has signed.
    pub signed_by: Vec<String>,
    /// How many must.
    pub needed: u32,
    /// Where its audit log is kept, once it is released.
    pub audit_log: Option<String>,
}

/// Releases it.
///
/// # Errors
/// Nobody agreed, too few root keys signed, or the node refused or is still one.
pub(super) async fn run(context: &Context, args: &NodeReleaseArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let session = Session::open(context)?;
    // Those of pools among them; one that the loop bought goes by `bulkhead pool drain`.
    let nodes: Vec<_> = session.files.fleet.nodes.clone().into_iter().collect();
    let (_, node) = session.files.named(&nodes, &args.node)?;
    let client = session.connect(&args.node, &node, As::Courier).await.map_err(|error| {
        if !was_begun(&session, &args.node) {
            return error;
        }
        error.hint(format!(
            "a release of it was begun from here: if the machine is a stock one by now, take it out of {FLEET}"
        ))
    })?;
    let status = client.status().await.map_err(|error| node_error(&error))?;
    let mut document = document(&session, args, &status)?;
    let discharge = parse(&document)?;
    context.ui.preview(|_| preview(&session, &discharge, &status))?;
    context.ui.confirm_word("\nRelease it?", args.node.as_str(), args.yes).await?;
    let root = &session.policy.policy.root;
    sign(&session, &mut document, args.document.as_deref()).await?;
    let signed_by = signers(&session, &document);
    let is_enough = signed_by.len() >= root.threshold as usize;
    let mut report = NodeReleaseReport {
        node: args.node.to_string(),
        released: false,
        signed_by,
        needed: root.threshold,
        audit_log: None,
    };
    if !is_enough {
        let Some(path) = &args.document else {
            let message = format!(
                "to release a node takes {} root keys, and {} are at hand",
                root.threshold,
                report.signed_by.len()
            );
            return Err(Error::configuration(message)
                .hint("`--document FILE` writes what was signed to a file, which the others sign the same way"));
        };
        return context.ui.result(&report, |report, _| {
            format!(
                "{} is signed by {}; {} must. Others: `bulkhead node release {} --document {0}`, within the hour.\n",
                shown(path),
                report.signed_by.join(", "),
                report.needed,
                report.node
            )
        });
    }
    let kept = keep_log(context, &session, &args.node, &node, &client).await?;
    client.discharge(&document).await.map_err(|error| node_error(&error))?;
    client.close().await;
    context.ui.stage(ON_ITS_WAY);
    gone(context, &session, &args.node, &node).await?;
    inventory::edit(&session.files, |document| inventory::remove(document, &args.node))?;
    (report.released, report.audit_log) = (true, Some(shown(&kept).to_string()));
    context.ui.result(&report, |report, paint| render(&session, report, &discharge, paint))
}

/// The document that is at hand, if it is about this; else a new one.
fn document(session: &Session, args: &NodeReleaseArgs, status: &NodeStatus) -> Result<SignedText> {
    if let Some(path) = &args.document
        && matches!(path.try_exists(), Ok(true))
    {
        let document = read_signed(path)?;
        let discharge = parse(&document)?;
        let is_of_now = discharge.not_after > now() && Some(discharge.boot) == status.boot;
        let is_same = discharge.fleet == session.files.fleet.fleet
            && discharge.node == args.node
            && discharge.volumes == args.delete_volumes;
        if !is_same {
            return Err(Error::configuration(format!("{} says something else than this command", shown(path)))
                .hint("fleet, node and `--delete-volumes` must be those that it was made with"));
        }
        if !is_of_now {
            return Err(Error::configuration(format!("{} has expired, or the node has booted since", shown(path)))
                .hint("remove it and begin anew"));
        }
        return Ok(document);
    }
    let boot = status.boot.ok_or_else(|| Error::new(Kind::Node, "the node does not say which boot it is in"))?;
    let issued = now();
    let discharge = Discharge {
        format: 1,
        fleet: session.files.fleet.fleet.clone(),
        node: args.node.clone(),
        boot,
        issued,
        not_after: issued.plus_s(LASTS_S),
        volumes: args.delete_volumes,
        reason: args.reason.clone(),
    };
    discharge.check().map_err(|what| Error::usage(format!("this would be refused: {what}")))?;
    let text = String::from_utf8_lossy(&discharge.to_bytes()).into_owned();
    Ok(SignedText { text, signatures: vec![] })
}

fn parse(document: &SignedText) -> Result<Discharge> {
    Discharge::parse(document.text.as_bytes()).map_err(Error::configuration)
}

fn preview(session: &Session, discharge: &Discharge, status: &NodeStatus) -> String {
    let mut text = String::new();
    let live: Vec<String> =
        status.apps.iter().filter(|app| app.live.is_some()).map(|app| app.app.to_string()).collect();
    let others = session.files.nodes_in(&status.environment).map_or(0, |nodes| nodes.len().saturating_sub(1));
    putln!(
        text,
        "node {} ({}) becomes a stock machine again: {}",
        discharge.node,
        status.environment,
        printable(&discharge.reason)
    );
    match live.as_slice() {
        [] => putln!(text, "  nothing runs there"),
        live => putln!(text, "  stops there for good: {}", live.join(", ")),
    }
    if !live.is_empty() && others == 0 {
        putln!(text, "  it is the only node of {}: nothing will run there any more", status.environment);
    }
    let volumes = status.apps.iter().flat_map(|app| app.volumes.keys().map(|name| format!("{}/{name}", app.app)));
    let volumes: Vec<String> = volumes.collect();
    if !volumes.is_empty() {
        let fate = if discharge.volumes { "DELETED, FOR EVER" } else { "left on the machine" };
        putln!(text, "  volumes {fate}: {}", volumes.join(", "));
    }
    putln!(text, "  whoever could log in to the machine before it was adopted can do so again");
    text
}

/// Signs with the root keys at hand that have not signed: with as many as are needed, or for a file that goes round
/// with all of them. Each signature is in the file before the next is asked for.
async fn sign(session: &Session, document: &mut SignedText, file: Option<&Path>) -> Result<()> {
    let root = &session.policy.policy.root;
    let is_enough = |document: &SignedText| signers(session, document).len() >= root.threshold as usize;
    if is_enough(document) {
        return Ok(());
    }
    let found = Signer::find_all(&session.identities, root.keys.iter().map(String::as_str)).await;
    let found = found.map_err(|error| {
        sign_error(&error).hint("to release a node takes root keys of the policy: `bulkhead policy show`")
    })?;
    let bytes = document.text.clone().into_bytes();
    for signer in found {
        if signed_keys(document).contains(signer.public_key()) || file.is_none() && is_enough(document) {
            continue;
        }
        let signature = signer.sign(DISCHARGE_NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?;
        document.signatures.push(signature);
        if let Some(path) = file {
            write_signed(path, document)?;
        }
    }
    Ok(())
}

fn signed_keys(document: &SignedText) -> BTreeSet<PublicKey> {
    let verified = |armoured: &String| sshsig::verify(armoured, DISCHARGE_NAMESPACE, document.text.as_bytes());
    document.signatures.iter().filter_map(|armoured| Some(verified(armoured).ok()?.key)).collect()
}

/// The holders of root keys that signed.
fn signers(session: &Session, document: &SignedText) -> Vec<String> {
    let policy = &session.policy.policy;
    let keys = signed_keys(document);
    let is_root =
        |key: &PublicKey| policy.root.keys.iter().any(|root| PublicKey::parse(root).is_ok_and(|root| root == *key));
    keys.iter().filter(|key| is_root(key)).map(|key| name_of(policy, &key.to_openssh())).collect()
}

/// Fetches the node's audit log, which goes with the node.
async fn keep_log(
    context: &Context,
    session: &Session,
    name: &NodeName,
    node: &FleetNode,
    client: &NodeClient,
) -> Result<PathBuf> {
    let (head, lines) = client.audit(0).await.map_err(|error| node_error(&error))?;
    let ledger = Ledger::of(&session.files.fleet.fleet, name, node)?;
    if let Err(error) = examine(context, session, &ledger, name, head.clone(), &lines) {
        context.ui.warn(&error.hint("it is kept as the node sent it"));
    }
    let folder = session.files.directory.join(RELEASED);
    std::fs::create_dir_all(&folder)
        .map_err(|error| Error::during(Kind::Internal, format!("cannot make {}", shown(&folder)), &error))?;
    // A name may come back: its next machine's log is another.
    let path = folder.join(format!("{name}-{}.jsonl", now().0));
    write_durably(&path, &lines)?;
    write_signed(&path.with_extension("head.json"), &head)?;
    Ok(path)
}

/// Whether a log was kept of a node of this name.
fn was_begun(session: &Session, name: &NodeName) -> bool {
    let entries = std::fs::read_dir(session.files.directory.join(RELEASED)).into_iter().flatten().flatten();
    let begins = format!("{name}-");
    entries.filter_map(|entry| entry.file_name().into_string().ok()).any(|file| {
        file.strip_prefix(&begins)
            .and_then(|rest| rest.strip_suffix(".jsonl"))
            .is_some_and(|at| at.parse::<i64>().is_ok())
    })
}

/// Waits until another SSH server has taken the place of the node's own. That alone says so: a connection that fails
/// may have failed on its way, and where the stock server does not start the node's own comes back.
async fn gone(context: &Context, session: &Session, name: &NodeName, node: &FleetNode) -> Result<()> {
    let target = session.target(name, node, As::Courier)?;
    let began = Instant::now();
    let mut refused_since = None;
    let mut last = "it still answers as a node".to_owned();
    while began.elapsed() < PATIENCE {
        tokio::time::sleep(PAUSE).await;
        context.ui.progress(&format!("{name}: gives itself back, {} s", began.elapsed().as_secs()));
        match greet(&target, &session.identities, session.timeouts).await {
            Err(ConnectError::HostKeyChanged { .. }) => {
                context.ui.clear();
                return Ok(());
            }
            // The stock server may have another port.
            Err(ConnectError::Refused { .. }) => {
                let since = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() > REFUSED_FOR {
                    context.ui.clear();
                    return Ok(());
                }
            }
            Err(error) => (refused_since, last) = (None, printable(&error.to_string())),
            Ok(()) => (refused_since, last) = (None, "it still answers as a node".to_owned()),
        }
    }
    context.ui.clear();
    Err(Error::new(Kind::Node, format!("{name} took its discharge, and after {} s: {last}", PATIENCE.as_secs()))
        .hint(format!("it stays in {FLEET}: it may be stopping apps still, or its stock SSH server did not start and it went on as a node"))
        .hint("`bulkhead ps` tells whether it is one; on its console: `journalctl -t bulkhead-discharge`"))
}

fn render(session: &Session, report: &NodeReleaseReport, discharge: &Discharge, paint: Paint) -> String {
    let mut text = format!("{} is a node no longer; it is out of {FLEET}\n", paint.bold(&report.node));
    if let Some(log) = &report.audit_log {
        putln!(text, "its audit log is in {log}");
    }
    if !discharge.volumes {
        putln!(text, "volumes that it had are in its /var/lib/bulkhead/volumes");
    }
    if session.policy.policy.nodes.contains_key(&discharge.node) {
        putln!(text, "the policy still lists its keys: `bulkhead policy edit` takes them out");
    }
    text
}
