//! `bulkhead node`.

mod adopt;
mod release;

pub use adopt::{AdoptReport, NodeAdoptArgs};
pub use release::{NodeReleaseArgs, NodeReleaseReport};

use crate::{
    Context,
    args::MaybeEnvironment,
    error::{Error, ErrorBody, Kind, Result},
    output::{Paint, age, size},
    session::{Session, cache_directory, now, summary},
    table::Table,
    workspace::write_durably,
};
use bulkhead_core::{FleetName, NodeName, Timestamp};
use bulkhead_wire::NodeStatus;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// Shows the fleet's nodes, makes a machine one of them, and gives one back
#[derive(Debug, Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    Ls(NodeLsArgs),
    Adopt(NodeAdoptArgs),
    Release(NodeReleaseArgs),
}

/// Lists nodes: environment, address, OS, agent, what isolation each offers, disk, last contact
///
/// All nodes are asked at once. One that cannot be reached is shown as this
/// machine last saw it, and the exit code is 9, or 4 where no node answered.
#[derive(Debug, Args)]
pub struct NodeLsArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,
}

/// The nodes.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodeLsReport {
    /// The nodes of `fleet.toml`, by name.
    pub nodes: Vec<ListedNode>,
}

/// One node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedNode {
    /// Its name.
    pub node: String,
    /// Its environment.
    pub environment: String,
    /// Its address, as in `fleet.toml`.
    pub address: String,
    /// Whether it answered now.
    pub reachable: bool,
    /// When it last answered this machine, in seconds since 1970.
    pub last_contact: Option<i64>,
    /// What it said then.
    pub facts: Option<Facts>,
    /// Why it did not answer now.
    pub error: Option<ErrorBody>,
}

/// What a node says of itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// Such as `Debian GNU/Linux 13 (trixie)`.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// systemd's version.
    pub systemd: u32,
    /// The agent's version.
    pub agent: String,
    /// Version of the policy it enforces.
    pub policy_version: u64,
    /// What isolation and integrity it offers, by name.
    pub facilities: BTreeMap<String, ListedFacility>,
    /// Bytes free where images are kept.
    pub disk_free_bytes: u64,
    /// Bytes in all there.
    pub disk_total_bytes: u64,
    /// Bytes that images take.
    pub store_bytes: u64,
    /// How many apps it has.
    pub apps: u64,
}

/// One facility.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ListedFacility {
    /// Whether the node has it.
    pub present: bool,
    /// Its form, or what stands in.
    pub detail: String,
}

/// What is kept of a node between runs.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    at: i64,
    facts: Facts,
}

/// Runs the subcommand.
///
/// # Errors
/// The fleet's files are wrong, or a node did not answer.
pub async fn run(context: &Context, args: &NodeArgs) -> Result<()> {
    match &args.command {
        NodeCommand::Ls(args) => ls(context, args).await,
        NodeCommand::Adopt(args) => adopt::run(context, args).await,
        NodeCommand::Release(args) => release::run(context, args).await,
    }
}

async fn ls(context: &Context, args: &NodeLsArgs) -> Result<()> {
    let session = Session::open(context)?;
    let nodes = session.files.all_nodes(args.environment.environment.as_ref())?;
    let fleet = &session.files.fleet.fleet;
    let mut report = NodeLsReport { nodes: vec![] };
    let mut errors = Vec::new();
    let answers = session.statuses(&nodes).await?;
    for (answer, (name, node)) in answers.into_iter().zip(&nodes) {
        let (seen, error) = match answer.result {
            Ok(status) => {
                let seen = Seen { at: now().0, facts: facts(&status) };
                keep(context, fleet, name, &seen);
                (Some(seen), None)
            }
            Err(error) => {
                let body = error.report().error;
                errors.push(error);
                (last_seen(fleet, name), Some(body))
            }
        };
        report.nodes.push(ListedNode {
            node: name.to_string(),
            environment: node.environment.to_string(),
            address: match node.port {
                Some(port) => format!("{}:{port}", node.address),
                None => node.address.clone(),
            },
            reachable: error.is_none(),
            last_contact: seen.as_ref().map(|seen| seen.at),
            facts: seen.map(|seen| seen.facts),
            error,
        });
    }
    context.ui.result(&report, |report, paint| render(report, now(), paint))?;
    summary(&errors, nodes.len()).map_or(Ok(()), |error| Err(Error { shown: true, ..error }))
}

fn facts(status: &NodeStatus) -> Facts {
    let facility = |facility: &bulkhead_wire::Facility| ListedFacility {
        present: facility.present,
        detail: facility.detail.clone(),
    };
    Facts {
        os: status.os.clone(),
        kernel: status.kernel.clone(),
        systemd: status.systemd,
        agent: status.agent.clone(),
        policy_version: status.policy_version,
        facilities: status.facilities.iter().map(|(name, value)| (name.clone(), facility(value))).collect(),
        disk_free_bytes: status.disk_free_bytes,
        disk_total_bytes: status.disk_total_bytes,
        store_bytes: status.store_bytes,
        apps: status.apps.len() as u64,
    }
}

fn seen_path(fleet: &FleetName, node: &NodeName) -> Result<PathBuf> {
    Ok(cache_directory()?.join("seen").join(fleet.as_str()).join(format!("{node}.json")))
}

fn last_seen(fleet: &FleetName, node: &NodeName) -> Option<Seen> {
    // A memory that cannot be read is no memory.
    let text = std::fs::read_to_string(seen_path(fleet, node).ok()?).ok()?;
    serde_json::from_str(&text).ok()
}

fn keep(context: &Context, fleet: &FleetName, node: &NodeName, seen: &Seen) {
    let write = || {
        let path = seen_path(fleet, node)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|error| Error::during(Kind::Internal, format!("cannot make {}", parent.display()), &error))?;
        }
        let text = serde_json::to_vec(seen)
            .map_err(|error| Error::during(Kind::Internal, "cannot remember a node", &error))?;
        write_durably(&path, &text)
    };
    if let Err(error) = write() {
        context.ui.warn(&error);
    }
}

fn render(report: &NodeLsReport, now: Timestamp, paint: Paint) -> String {
    if report.nodes.is_empty() {
        return "no nodes; `bulkhead local up` makes local ones, `bulkhead node adopt` takes a machine you have\n"
            .into();
    }
    let mut table = Table::new(&["NODE", "ENV", "ADDRESS", "OS", "AGENT", "ISOLATION", ">DISK FREE", "CONTACT"]);
    for node in &report.nodes {
        let facts = node.facts.as_ref();
        table.row([
            node.node.clone(),
            node.environment.clone(),
            node.address.clone(),
            facts.map(|facts| facts.os.clone()).unwrap_or_default(),
            facts.map(|facts| facts.agent.clone()).unwrap_or_default(),
            facts.map(isolation).unwrap_or_default(),
            facts
                .map(|facts| format!("{} of {}", size(facts.disk_free_bytes), size(facts.disk_total_bytes)))
                .unwrap_or_default(),
            match (node.reachable, node.last_contact) {
                (true, _) => "now".into(),
                (false, Some(then)) => format!("unreachable, {} ago", age(Timestamp(then), now)),
                (false, None) => "unreachable".into(),
            },
        ]);
    }
    table.render(paint)
}

/// `all 9`, or what is missing.
fn isolation(facts: &Facts) -> String {
    let missing: Vec<&str> =
        facts.facilities.iter().filter(|(_, facility)| !facility.present).map(|(name, _)| name.as_str()).collect();
    match (facts.facilities.len(), missing.as_slice()) {
        (0, _) => String::new(),
        (all, []) => format!("all {all}"),
        (all, missing) => format!("{} of {all}, without {}", all - missing.len(), missing.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let facility = |present| ListedFacility { present, detail: String::new() };
        let facts = |cgroups| Facts {
            os: "Debian GNU/Linux 13 (trixie)".into(),
            kernel: "6.12.0".into(),
            systemd: 257,
            agent: "0.1.0".into(),
            policy_version: 1,
            facilities: [("private-pids".to_owned(), facility(true)), ("memory-limit".to_owned(), facility(cgroups))]
                .into(),
            disk_free_bytes: 12_000_000_000,
            disk_total_bytes: 25_000_000_000,
            store_bytes: 0,
            apps: 1,
        };
        let node = |name: &str, facts: Option<Facts>, reachable, last_contact| ListedNode {
            node: name.into(),
            environment: "production".into(),
            address: "10.90.0.2".into(),
            reachable,
            last_contact,
            facts,
            error: None,
        };
        let report = NodeLsReport {
            nodes: vec![
                node("prod-1", Some(facts(true)), true, Some(10_000)),
                node("prod-2", Some(facts(false)), false, Some(1_000)),
                node("prod-3", None, false, None),
            ],
        };
        insta::assert_snapshot!(render(&report, Timestamp(10_000), Paint { colour: false }));
    }
}
