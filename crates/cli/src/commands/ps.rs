//! `bulkhead ps`.

use crate::{
    Context,
    args::MaybeEnvironment,
    error::{ErrorBody, Result},
    output::{Paint, age, printable, size},
    plan::short,
    session::{Session, now, summary},
    table::Table,
};
use bulkhead_core::{AppName, Timestamp};
use bulkhead_wire::NodeStatus;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

/// Shows what runs where
#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,

    /// One app only.
    #[arg(value_name = "APP")]
    pub app: Option<AppName>,
}

/// What runs where.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PsReport {
    /// Every service on every node that answered.
    pub services: Vec<RunningService>,
    /// Nodes that did not answer.
    pub unreachable: Vec<UnreachableNode>,
    /// What went wrong, where a node did not answer.
    pub error: Option<ErrorBody>,
}

/// A service on a node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RunningService {
    /// The node.
    pub node: String,
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// The service.
    pub service: String,
    /// systemd's active state: `active`, `failed`, `inactive`, …; or `unreadable`, of an app whose state on the
    /// node is damaged.
    pub state: String,
    /// How it ended, where it failed; or what is damaged.
    pub result: Option<String>,
    /// Of which release.
    pub release: u64,
    /// The release's image.
    pub image: Option<String>,
    /// The port inside its private network.
    pub port: Option<u16>,
    /// When it started, in seconds since 1970.
    pub since: Option<i64>,
    /// How often it was restarted.
    pub restarts: u32,
    /// Memory in use.
    pub memory_bytes: Option<u64>,
    /// CPU time used.
    pub cpu_ms: Option<u64>,
    /// Its first process, as the node numbers it.
    pub pid: Option<u32>,
    /// Why glass was broken for its release, where it was: nobody has stated that its image is green.
    pub break_glass: Option<String>,
}

/// A node that did not answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UnreachableNode {
    /// The node.
    pub node: String,
    /// Why.
    pub error: ErrorBody,
}

/// Shows what runs.
///
/// # Errors
/// A node did not answer, or the fleet's files are wrong.
pub async fn run(context: &Context, args: &PsArgs) -> Result<()> {
    let session = Session::open(context)?;
    let nodes = session.files.all_nodes(args.environment.environment.as_ref())?;
    let mut report = PsReport { services: vec![], unreachable: vec![], error: None };
    let mut errors = Vec::new();
    for answer in session.statuses(&nodes).await? {
        match answer.result {
            Ok(status) => report.services.extend(services(&status, args.app.as_ref())),
            Err(error) => {
                report.unreachable.push(UnreachableNode { node: answer.node.to_string(), error: error.report().error });
                errors.push(error);
            }
        }
    }
    report.error = summary(&errors, nodes.len()).map(|error| error.report().error);
    context.ui.result(&report, |report, paint| render(report, now(), paint))?;
    match summary(&errors, nodes.len()) {
        None => Ok(()),
        Some(mut error) => {
            error.shown = true;
            Err(error)
        }
    }
}

fn services(status: &NodeStatus, only: Option<&AppName>) -> Vec<RunningService> {
    let apps = status.apps.iter().filter(|app| only.is_none_or(|only| app.app == *only));
    apps.flat_map(|app| {
        // So that an app that is there but cannot be read is not taken for one that is not there.
        let unreadable = app.damaged.as_ref().map(|why| RunningService {
            node: status.node.to_string(),
            environment: status.environment.to_string(),
            app: app.app.to_string(),
            service: "?".into(),
            state: "unreadable".into(),
            result: Some(why.clone()),
            release: 0,
            image: None,
            port: None,
            since: None,
            restarts: 0,
            memory_bytes: None,
            cpu_ms: None,
            pid: None,
            break_glass: None,
        });
        let broken = app.live.as_ref().and_then(|live| live.break_glass.clone());
        let image_of = |number| app.live.as_ref().filter(|live| live.number == number).and_then(|live| live.image);
        app.services
            .iter()
            .map(move |service| RunningService {
                node: status.node.to_string(),
                environment: status.environment.to_string(),
                app: app.app.to_string(),
                service: service.service.to_string(),
                state: service.state.clone(),
                result: service.result.clone(),
                release: service.release,
                image: image_of(service.release).map(|image| image.to_string()),
                port: service.port,
                since: service.since.map(|since| since.0),
                restarts: service.restarts,
                memory_bytes: service.memory_bytes,
                cpu_ms: service.cpu_ms,
                pid: service.pid,
                break_glass: broken.clone(),
            })
            .chain(unreadable)
    })
    .collect()
}

fn render(report: &PsReport, now: Timestamp, paint: Paint) -> String {
    let mut table = Table::new(&[
        "NODE",
        "ENV",
        "SERVICE",
        "STATE",
        ">RELEASE",
        "IMAGE",
        ">PORT",
        ">UP",
        ">RESTARTS",
        ">MEMORY",
        ">CPU",
    ]);
    for service in &report.services {
        table.row([
            service.node.clone(),
            service.environment.clone(),
            format!("{}/{}", service.app, service.service),
            match &service.result {
                Some(result) => format!("{} ({result})", service.state),
                None => service.state.clone(),
            },
            service.release.to_string(),
            service.image.as_deref().map(short).unwrap_or_default(),
            service.port.map(|port| port.to_string()).unwrap_or_default(),
            service.since.map(|since| age(Timestamp(since), now)).unwrap_or_default(),
            service.restarts.to_string(),
            service.memory_bytes.map(size).unwrap_or_default(),
            service.cpu_ms.map(|ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100)).unwrap_or_default(),
        ]);
    }
    for node in &report.unreachable {
        table.row([node.node.as_str(), "", "", "unreachable"]);
    }
    if table.is_empty() {
        return "nothing runs\n".into();
    }
    let mut out = table.render(paint);
    let mut told: Vec<String> = Vec::new();
    for service in &report.services {
        let Some(reason) = &service.break_glass else { continue };
        let text = format!("GLASS BROKEN for {} on {}: {}", service.app, service.node, printable(reason));
        if !told.contains(&text) {
            putln!(out, "{}", paint.error(&text));
            told.push(text);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let service = |node: &str, state: &str| RunningService {
            node: node.into(),
            environment: "production".into(),
            app: "notes".into(),
            service: "web".into(),
            state: state.into(),
            result: (state == "failed").then(|| "exit-code 1".into()),
            release: 12,
            image: Some("0123456789abcdef".into()),
            port: Some(3000),
            since: Some(1000),
            restarts: 0,
            memory_bytes: Some(61_200_000),
            cpu_ms: Some(3456),
            pid: Some(7),
            break_glass: None,
        };
        let error = crate::error::Error::new(crate::error::Kind::Unreachable, "no").report().error;
        let report = PsReport {
            services: vec![service("prod-1", "active"), service("prod-2", "failed")],
            unreachable: vec![UnreachableNode { node: "prod-3".into(), error }],
            error: None,
        };
        insta::assert_snapshot!(render(&report, Timestamp(8300), Paint { colour: false }));
    }
}
