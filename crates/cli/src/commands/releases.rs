//! `bulkhead releases`.

use crate::{
    Context,
    args::MaybeEnvironment,
    error::{Error, ErrorBody, Result},
    output::{Paint, age, printable},
    plan::short,
    session::{As, Session, now, those_and_the_rest},
    table::Table,
};
use bulkhead_core::{AppName, NodeName, OrderId, Timestamp, order::Source};
use bulkhead_wire::{Outcome, Release};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// Shows every release ever: when, who signed it, image, outcome, what is live
///
/// One row per order, newest last; nodes that differ are named. Where a node does not
/// answer, the history of the others is shown, and the exit code is 9.
#[derive(Debug, Args)]
pub struct ReleasesArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,

    /// One app only.
    #[arg(value_name = "APP")]
    pub app: Option<AppName>,
}

/// The history.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ReleasesReport {
    /// The orders that nodes accepted, oldest first.
    pub releases: Vec<ReleaseRow>,
    /// What is wrong where a node did not answer; the exit code is its.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// One order and what came of it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ReleaseRow {
    /// The app.
    pub app: String,
    /// The environment.
    pub environment: String,
    /// The order's id.
    pub order: String,
    /// `run`, `stop`, `start`, `restart` or `remove`.
    pub verb: String,
    /// The image's id, of an order that runs one.
    pub image: Option<String>,
    /// Who signed it.
    pub signers: Vec<String>,
    /// When the first node accepted it, in seconds since 1970.
    pub accepted: i64,
    /// The signer's words.
    pub message: Option<String>,
    /// What it was made from, where it was not built.
    pub origin: Option<String>,
    /// The version-control commit of the sources.
    pub commit: Option<String>,
    /// Whether files differed from that commit.
    pub dirty: Option<bool>,
    /// On which grounds nodes accepted it, in words.
    pub grounds: Option<String>,
    /// Why glass was broken for it, where it was.
    pub break_glass: Option<String>,
    /// Every node that accepted it.
    pub nodes: Vec<ReleaseOnNode>,
}

/// What came of an order on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ReleaseOnNode {
    /// The node.
    pub node: String,
    /// The release's number there.
    pub number: u64,
    /// `underway`, `done`, `failed` or `interrupted`.
    pub outcome: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// Whether it is what runs.
    pub live: bool,
    /// Whether the node still holds its image.
    pub image_present: bool,
}

/// Shows the history.
///
/// # Errors
/// A node did not answer.
pub async fn run(context: &Context, args: &ReleasesArgs) -> Result<()> {
    let session = Session::open(context)?;
    let nodes = session.files.all_nodes(args.environment.environment.as_ref())?;
    let app = args.app.clone();
    let answers = session
        .ask_all(&nodes, As::Observer, move |client| {
            let app = app.clone();
            async move { client.releases(app).await }
        })
        .await?;
    let (answers, rest) = those_and_the_rest(answers)?;
    let environment_of = |node: &NodeName| {
        nodes.iter().find(|(name, _)| name == node).map(|(_, node)| node.environment.to_string()).unwrap_or_default()
    };
    let mut report = merge(answers, environment_of);
    report.error = rest.as_ref().map(|error| error.report().error);
    context.ui.result(&report, |report, paint| render(report, now(), paint))?;
    rest.map_or(Ok(()), |error| Err(Error { shown: true, ..error }))
}

/// One row per order, from all nodes' histories.
fn merge(answers: Vec<(NodeName, Vec<Release>)>, environment_of: impl Fn(&NodeName) -> String) -> ReleasesReport {
    let mut rows: BTreeMap<(AppName, OrderId), ReleaseRow> = BTreeMap::new();
    for (node, releases) in answers {
        for release in releases {
            let row = rows.entry((release.app.clone(), release.order)).or_insert_with(|| ReleaseRow {
                app: release.app.to_string(),
                environment: environment_of(&node),
                order: release.order.to_string(),
                verb: release.verb.clone(),
                image: release.image.map(|image| image.to_string()),
                signers: release.signers.clone(),
                accepted: release.accepted.0,
                message: release.message.clone(),
                origin: release.origin.clone(),
                commit: release.source.as_ref().map(|Source { commit, .. }| commit.clone()),
                dirty: release.source.as_ref().map(|Source { dirty, .. }| *dirty),
                grounds: release.grounds.clone(),
                break_glass: release.break_glass.clone(),
                nodes: vec![],
            });
            row.accepted = row.accepted.min(release.accepted.0);
            let (outcome, reason) = outcome_word(&release.outcome);
            row.nodes.push(ReleaseOnNode {
                node: node.to_string(),
                number: release.number,
                outcome: outcome.into(),
                reason,
                live: release.live,
                image_present: release.image_present,
            });
        }
    }
    let mut releases: Vec<ReleaseRow> = rows.into_values().collect();
    releases.sort_by_key(|row| {
        (row.environment.clone(), row.app.clone(), row.nodes.iter().map(|node| node.number).max(), row.accepted)
    });
    ReleasesReport { releases, error: None }
}

/// The stable word for an outcome, and why it failed.
pub(crate) fn outcome_word(outcome: &Outcome) -> (&'static str, Option<String>) {
    match outcome {
        Outcome::Underway => ("underway", None),
        Outcome::Done => ("done", None),
        Outcome::Failed { reason } => ("failed", Some(reason.clone())),
        Outcome::Interrupted => ("interrupted", None),
    }
}

fn render(report: &ReleasesReport, now: Timestamp, paint: Paint) -> String {
    if report.releases.is_empty() {
        return "no releases yet\n".into();
    }
    let mut table =
        Table::new(&["ENV", "APP", ">RELEASE", "", ">AGE", "BY", "VERB", "IMAGE", "OUTCOME", "NODES", "MESSAGE"]);
    for row in &report.releases {
        let numbers = agree(&row.nodes, |node| node.number.to_string());
        let outcomes = agree(&row.nodes, |node| node.outcome.clone());
        let live = row.nodes.iter().filter(|node| node.live).count();
        let mark = match live {
            0 => String::new(),
            live if live == row.nodes.len() => "live".into(),
            live => format!("live on {live}"),
        };
        let reason = row.nodes.iter().find_map(|node| node.reason.as_deref());
        let broken = row.break_glass.as_ref().map(|reason| format!("GLASS BROKEN: {reason}"));
        let words = [broken.as_deref(), row.message.as_deref(), row.origin.as_deref(), reason].into_iter().flatten();
        table.row([
            row.environment.clone(),
            row.app.clone(),
            numbers,
            mark,
            age(Timestamp(row.accepted), now),
            row.signers.join(", "),
            row.verb.clone(),
            row.image.as_deref().map(short).unwrap_or_default(),
            outcomes,
            row.nodes.iter().map(|node| node.node.as_str()).collect::<Vec<_>>().join(" "),
            words.map(printable).collect::<Vec<_>>().join("; "),
        ]);
    }
    table.render(paint)
}

/// The value that most nodes have, and those that have another.
fn agree(nodes: &[ReleaseOnNode], value: impl Fn(&ReleaseOnNode) -> String) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes {
        *counts.entry(value(node)).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    let usual = nodes.iter().map(&value).find(|text| counts[text] == most).unwrap_or_default();
    let others: Vec<String> = nodes
        .iter()
        .filter(|node| value(node) != usual)
        .map(|node| format!("{} on {}", value(node), node.node))
        .collect();
    if others.is_empty() { usual } else { format!("{usual} ({})", others.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::ImageId;

    fn release(number: u64, order: u8, outcome: Outcome, live: bool) -> Release {
        Release {
            app: "notes".parse().unwrap(),
            number,
            order: OrderId([order; 32]),
            verb: "run".into(),
            image: Some(ImageId([order; 32])),
            image_present: true,
            signers: vec!["ada".into()],
            accepted: Timestamp(1000 + i64::from(order)),
            outcome,
            live,
            source: None,
            origin: (order == 3).then(|| "rollback to 1".into()),
            message: (order == 1).then(|| "first".into()),
            services: vec![],
            signed: None,
            statements: vec![],
            standing: None,
            grounds: None,
            break_glass: None,
        }
    }

    #[test]
    fn merged_by_order() {
        let failed = || Outcome::Failed { reason: "exit-code 1".into() };
        let one = vec![
            release(1, 1, Outcome::Done, false),
            release(2, 2, Outcome::Done, false),
            release(3, 3, Outcome::Done, true),
        ];
        let two = vec![
            release(1, 1, Outcome::Done, false),
            release(2, 2, failed(), false),
            release(4, 3, Outcome::Done, true),
        ];
        let answers = vec![("prod-1".parse().unwrap(), one), ("prod-2".parse().unwrap(), two)];
        let report = merge(answers, |_| "production".into());
        insta::assert_snapshot!(render(&report, Timestamp(5000), Paint { colour: false }));
    }
}
