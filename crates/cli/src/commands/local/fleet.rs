//! The local fleet and its entries in `fleet.toml`.
//!
//! State lies in `/var/lib/bulkhead-local/FLEET-HASH`, one directory per folder
//! that holds a `fleet.toml`, or where `BULKHEAD_LOCAL` says.

use super::{LocalDownArgs, LocalReport, LocalUpArgs, ShownLocalNode};
use crate::{
    Context,
    error::{Error, Kind, Result},
    inventory,
    output::Paint,
    session::Session,
    table::Table,
    workspace::{FLEET, FleetFiles},
};
use bulkhead_core::{
    NodeName,
    digest::{hex, sha256},
    fleet::FleetNode,
};
use bulkhead_fleet::local::{Local, LocalError, LocalNode, NodeSpec, SignedPolicy, Suite, find_agent};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use toml_edit::Item;

/// Where nodes' trees lie: root owns them, and they outlive a login.
const STATE: &str = "/var/lib/bulkhead-local";
/// Who made a node that stands in `fleet.toml`.
const PROVIDER: &str = "local";

fn state_directory(files: &FleetFiles) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("BULKHEAD_LOCAL").filter(|path| !path.is_empty()) {
        return Ok(named.into());
    }
    let folder = std::fs::canonicalize(&files.directory)
        .map_err(|error| Error::during(Kind::Internal, "the fleet's folder is unknown", &error))?;
    let hash = hex(&sha256(folder.as_os_str().as_encoded_bytes())[..3]);
    Ok(Path::new(STATE).join(format!("{}-{hash}", files.fleet.fleet)))
}

pub(crate) fn open(files: &FleetFiles) -> Result<Local> {
    Local::open(state_directory(files)?, files.fleet.fleet.clone()).map_err(|error| local_error(&error))
}

fn local_error(error: &LocalError) -> Error {
    let kind = match error {
        LocalError::UnknownNode { .. } | LocalError::TwiceNamed { .. } => Kind::Usage,
        LocalError::NotRoot
        | LocalError::MissingTools(_)
        | LocalError::NoAgent { .. }
        | LocalError::OtherFleet { .. }
        | LocalError::OtherEnvironment { .. }
        | LocalError::Overlay { .. }
        | LocalError::NotRunning { .. } => Kind::Configuration,
        _ => Kind::Internal,
    };
    let folded = Error::of(kind, error);
    match error {
        LocalError::NotRoot => folded.hint("run it as root, with `sudo --preserve-env=HOME,SSH_AUTH_SOCK`"),
        LocalError::MissingTools(tools) => {
            let packages: std::collections::BTreeSet<&str> = tools.iter().map(|tool| tool.package).collect();
            folded.hint(format!("apt-get install {}", packages.into_iter().collect::<Vec<_>>().join(" ")))
        }
        LocalError::NoAgent { .. } => folded.hint("name the binary in BULKHEAD_AGENT"),
        LocalError::Overlay { .. } => folded.hint("name a directory on another file system in BULKHEAD_LOCAL"),
        LocalError::OtherEnvironment { name, .. } => {
            folded.hint(format!("`bulkhead local down --remove {name}` deletes it, to make it anew"))
        }
        _ => folded,
    }
}

/// Runs blocking work on a thread of its own, so that an interruption is heard.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::during(Kind::Internal, "the work ended early", &error)),
    }
}

pub(super) async fn up(context: &Context, args: &LocalUpArgs) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    let session = Session::of(context, files.clone())?;
    for wanted in &args.nodes {
        refuse_others_name(&files, &wanted.node)?;
        if !session.policy.policy.environments.contains_key(&wanted.environment) {
            let environments = session.policy.policy.environments.keys();
            let known: Vec<&str> = environments.map(bulkhead_core::EnvironmentName::as_str).collect();
            return Err(Error::configuration(format!(
                "the policy has no environment `{}`: a node of it would accept no order",
                wanted.environment
            ))
            .hint(format!("it has {}", known.join(", "))));
        }
    }
    let policy = SignedPolicy {
        policy: String::from_utf8(session.policy.bytes)
            .map_err(|error| Error::during(Kind::Configuration, "the policy is not text", &error))?,
        signatures: session.policy.signatures,
    };
    let specs: Vec<NodeSpec> = args
        .nodes
        .iter()
        .map(|wanted| NodeSpec { name: wanted.node.clone(), environment: wanted.environment.clone() })
        .collect();
    let suite = if args.suite == "bookworm" { Suite::Bookworm } else { Suite::Trixie };
    let (ui, for_work) = (Arc::clone(&context.ui), files.clone());
    context.ui.stage("nodes that already run go on; `bulkhead local down` stops them");
    let nodes = blocking(move || {
        let agent = find_agent().map_err(|error| local_error(&error))?;
        let mut local = open(&for_work)?.suite(suite);
        local
            .up(&specs, &policy, &agent, &|progress| {
                ui.progress(&progress.to_string());
                ui.step(&progress.to_string());
            })
            .map_err(|error| local_error(&error))
    })
    .await?;
    context.ui.clear();
    enter(&files, &nodes)?;
    for node in nodes.iter().filter(|node| node.host_key.is_none()) {
        let name = &node.name;
        context.ui.note(&format!(
            "{name} was released and stays a stock machine; to make it a node anew: \
             `bulkhead local down --remove {name}`, then `bulkhead local up`"
        ));
    }
    show(context, &nodes)
}

/// A node of this name that is not ours must not be overwritten.
fn refuse_others_name(files: &FleetFiles, name: &NodeName) -> Result<()> {
    match files.fleet.nodes.get(name) {
        Some(node) if node.provider.as_deref() != Some(PROVIDER) => {
            let path = files.directory.join(FLEET);
            Err(Error::configuration(format!("{} has a node `{name}` that is not local", path.display()))
                .hint("choose other names with `--nodes`"))
        }
        _ => Ok(()),
    }
}

pub(super) async fn ls(context: &Context) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    let nodes = blocking(move || open(&files)?.ls().map_err(|error| local_error(&error))).await?;
    show(context, &nodes)
}

pub(super) async fn down(context: &Context, args: &LocalDownArgs) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    if args.remove {
        context.ui.must_be_able_to_ask(args.yes)?;
        let which = match args.nodes.as_slice() {
            [] => format!("all local nodes of {}", files.fleet.fleet),
            some => some.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", "),
        };
        context.ui.confirm(&format!("Delete {which} with all data?"), args.yes).await?;
        context.ui.progress("deleting local nodes");
        let (for_work, names) = (files.clone(), args.nodes.clone());
        let left = blocking(move || {
            let local = open(&for_work)?;
            let done = if names.is_empty() {
                local.destroy().map(|()| vec![])
            } else {
                local.remove(&names).and_then(|()| local.ls())
            };
            done.map_err(|error| local_error(&error))
        })
        .await?;
        take_out(&files, &args.nodes)?;
        return show(context, &left);
    }
    context.ui.progress("stopping local nodes");
    let names = args.nodes.clone();
    let nodes = blocking(move || {
        let local = open(&files)?;
        local.down(&names).and_then(|()| local.ls()).map_err(|error| local_error(&error))
    })
    .await?;
    show(context, &nodes)
}

pub(super) async fn kill(context: &Context, name: &NodeName) -> Result<()> {
    let (files, name) = (FleetFiles::load(&context.places)?, name.clone());
    let nodes = blocking(move || {
        let local = open(&files)?;
        local.kill(&name).and_then(|()| local.ls()).map_err(|error| local_error(&error))
    })
    .await?;
    show(context, &nodes)
}

pub(super) async fn start(context: &Context, name: &NodeName) -> Result<()> {
    let (files, name) = (FleetFiles::load(&context.places)?, name.clone());
    let for_work = files.clone();
    let nodes = blocking(move || {
        let mut local = open(&for_work)?;
        local.start(&name).and_then(|_| local.ls()).map_err(|error| local_error(&error))
    })
    .await?;
    // Where no node ran, another fleet may have taken the network: then the addresses are others.
    enter(&files, &nodes)?;
    show(context, &nodes)
}

pub(super) async fn exec(context: &Context, name: &NodeName, words: &[String]) -> Result<()> {
    let (files, name, words) = (FleetFiles::load(&context.places)?, name.clone(), words.to_vec());
    let status = blocking(move || {
        let (program, arguments) = words.split_first().ok_or_else(|| Error::usage("name a program after `--`"))?;
        let mut command = open(&files)?.command(&name, program).map_err(|error| local_error(&error))?;
        command.args(arguments).status().map_err(|error| Error::during(Kind::Internal, "cannot run it", &error))
    })
    .await?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(Kind::Node, format!("the program ended with {status}")))
}

fn show(context: &Context, nodes: &[LocalNode]) -> Result<()> {
    let report = LocalReport {
        nodes: nodes
            .iter()
            .map(|node| ShownLocalNode {
                node: node.name.to_string(),
                environment: node.environment.to_string(),
                address: node.address.to_string(),
                running: node.leader.is_some(),
                released: node.host_key.is_none(),
                pid: node.leader,
                machine: node.machine.clone(),
                root: node.root.display().to_string(),
            })
            .collect(),
    };
    context.ui.result(&report, render)
}

fn render(report: &LocalReport, paint: Paint) -> String {
    if report.nodes.is_empty() {
        return "no local nodes\n".into();
    }
    let mut table = Table::new(&["NODE", "ENV", "ADDRESS", "STATE", ">PID", "ROOT"]);
    for node in &report.nodes {
        table.row([
            node.node.clone(),
            node.environment.clone(),
            node.address.clone(),
            match (node.released, node.running) {
                (true, _) => "released",
                (false, true) => "running",
                (false, false) => "stopped",
            }
            .into(),
            node.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            node.root.clone(),
        ]);
    }
    table.render(paint)
}

// ---- fleet.toml ----

fn enter(files: &FleetFiles, nodes: &[LocalNode]) -> Result<()> {
    inventory::edit(files, |document| {
        // One that was released was taken out, and is none of the fleet's any more.
        for node in nodes.iter().filter(|node| node.host_key.is_some()) {
            let entry = FleetNode {
                environment: node.environment.clone(),
                address: node.address.to_string(),
                port: None,
                host_key: node.host_key.clone(),
                provider: Some(PROVIDER.to_owned()),
                pool: None,
            };
            inventory::set(document, &node.name, &entry);
        }
    })
}

/// Takes these local nodes out; all of them where none is named.
fn take_out(files: &FleetFiles, names: &[NodeName]) -> Result<()> {
    inventory::edit(files, |document| {
        if let Some(nodes) = document.get_mut("nodes").and_then(Item::as_table_like_mut) {
            let local: Vec<String> = nodes
                .iter()
                .filter(|(_, node)| {
                    let provider = node.as_table_like().and_then(|node| node.get("provider"));
                    provider.and_then(Item::as_str) == Some(PROVIDER)
                })
                .map(|(name, _)| name.to_owned())
                .filter(|name| names.is_empty() || names.iter().any(|wanted| wanted.as_str() == name))
                .collect();
            for name in local {
                nodes.remove(&name);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str) -> LocalNode {
        LocalNode {
            name: name.parse().unwrap(),
            environment: "staging".parse().unwrap(),
            address: address.parse().unwrap(),
            host_key: Some("ssh-ed25519 AAAA".into()),
            machine: "m".into(),
            leader: None,
            root: "/r".into(),
        }
    }

    #[test]
    fn comments_and_other_nodes_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FLEET);
        let before = "# ours\nfleet = \"acme\" # the name\n\n[nodes.prod-1] # bought\nenvironment = \"production\"\naddress = \"203.0.113.7\"\n";
        std::fs::write(&path, before).unwrap();
        let files = FleetFiles::read(directory.path().to_owned()).unwrap();
        enter(&files, &[node("stage-1", "10.86.1.2")]).unwrap();
        enter(&files, &[node("stage-1", "10.86.1.3")]).unwrap();
        insta::assert_snapshot!(std::fs::read_to_string(&path).unwrap());
        let files = FleetFiles::read(directory.path().to_owned()).unwrap();
        assert_eq!(files.fleet.nodes.len(), 2);
        assert!(refuse_others_name(&files, &"prod-1".parse().unwrap()).is_err());
        assert!(refuse_others_name(&files, &"stage-1".parse().unwrap()).is_ok());
        // One that was released is not entered again.
        enter(&files, &[LocalNode { host_key: None, ..node("stage-2", "10.86.1.4") }]).unwrap();
        assert_eq!(FleetFiles::read(directory.path().to_owned()).unwrap().fleet.nodes.len(), 2);
        take_out(&files, &["stage-9".parse().unwrap()]).unwrap();
        assert_eq!(FleetFiles::read(directory.path().to_owned()).unwrap().fleet.nodes.len(), 2);
        take_out(&files, &["stage-1".parse().unwrap()]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        enter(&files, &[node("stage-1", "10.86.1.2")]).unwrap();
        take_out(&files, &[]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }
}
