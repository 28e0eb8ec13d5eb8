//! `bulkhead logs`.

use crate::{
    Context,
    args::{AppOrService, MaybeEnvironment},
    error::{Error, Result},
    output::{Paint, printable},
    session::{As, Session, node_error, those_and_the_rest},
};
use bulkhead_core::{NodeName, Timestamp};
use bulkhead_wire::LogLine;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::mpsc;

/// Lines that wait to be printed while a terminal is slow; nodes then wait too.
const QUEUE_LINES: usize = 1024;

/// Shows log lines, merged by time over all nodes
///
/// Where a node does not answer, the lines of the others are shown, and the exit
/// code is 9.
#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,

    /// The app, or one service of it.
    #[arg(value_name = "APP[/SERVICE]")]
    pub target: AppOrService,

    /// Goes on with new lines until interrupted.
    #[arg(short, long)]
    pub follow: bool,

    /// How many past lines of each node, at most.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub lines: u32,
}

/// A log line; with `-o json` each is a document of its own.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownLine {
    /// When, in microseconds since 1970.
    pub at_us: i64,
    /// The node.
    pub node: String,
    /// The service.
    pub service: String,
    /// Of which release.
    pub release: u64,
    /// syslog priority: 0 (emergency) to 7 (debug).
    pub priority: u8,
    /// The line as the service wrote it.
    pub text: String,
}

/// Shows the lines.
///
/// # Errors
/// A node did not answer, or while following all connections ended.
pub async fn run(context: &Context, args: &LogsArgs) -> Result<()> {
    let session = Session::open(context)?;
    let environment = session.files.environment_or_only(args.environment.environment.as_ref())?;
    let nodes = session.files.all_nodes_in(&environment)?;
    if args.follow {
        context.ui.until_interrupted();
        return follow(context, &session, &nodes, args).await;
    }
    let (target, lines) = (args.target.clone(), args.lines);
    let answers = session
        .ask_all(&nodes, As::Observer, move |client| {
            let target = target.clone();
            async move {
                let mut logs = client.logs(target.app, target.service, lines, false).await?;
                let mut past = Vec::new();
                while let Some(line) = logs.next().await? {
                    past.push(line);
                }
                Ok(past)
            }
        })
        .await?;
    let mut all: Vec<(NodeName, LogLine)> = Vec::new();
    let (answered, rest) = those_and_the_rest(answers)?;
    for (node, lines) in answered {
        all.extend(lines.into_iter().map(|line| (node.clone(), line)));
    }
    if all.is_empty() && args.lines > 0 {
        let what = match &args.target.service {
            Some(service) => format!("{}/{service}", args.target.app),
            None => args.target.app.to_string(),
        };
        context.ui.note(&format!("no lines of {what} in {environment}; `bulkhead ps` shows what runs"));
    }
    // Stable: lines of one node with one time stay as the node gave them.
    all.sort_by_key(|(_, line)| line.at_us);
    for (node, line) in &all {
        show(context, node, line)?;
    }
    rest.map_or(Ok(()), Err)
}

async fn follow(
    context: &Context,
    session: &Session,
    nodes: &[(NodeName, bulkhead_core::fleet::FleetNode)],
    args: &LogsArgs,
) -> Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(NodeName, std::result::Result<LogLine, Error>)>(QUEUE_LINES);
    for (name, node) in nodes {
        let (session, name, node) = (session.clone(), name.clone(), node.clone());
        let (target, lines, sender) = (args.target.clone(), args.lines, sender.clone());
        tokio::spawn(async move {
            let ended = async {
                let client = session.connect(&name, &node, As::Observer).await?;
                let logs = client.logs(target.app, target.service, lines, true).await;
                let mut logs = logs.map_err(|error| node_error(&error))?;
                while let Some(line) = logs.next().await.map_err(|error| node_error(&error))? {
                    if sender.send((name.clone(), Ok(line))).await.is_err() {
                        return Ok(());
                    }
                }
                Err(Error::new(crate::error::Kind::Unreachable, format!("{name}: the connection ended")))
            };
            if let Err(error) = ended.await {
                // The receiver is gone only when the command ends.
                sender.send((name, Err(error))).await.ok();
            }
        });
    }
    drop(sender);
    let mut last = None;
    while let Some((node, line)) = receiver.recv().await {
        match line {
            Ok(line) => show(context, &node, &line)?,
            Err(error) => {
                context.ui.warn(&error);
                last = Some(error);
            }
        }
    }
    last.map_or(Ok(()), Err)
}

fn show(context: &Context, node: &NodeName, line: &LogLine) -> Result<()> {
    let shown = ShownLine {
        at_us: line.at_us,
        node: node.to_string(),
        service: line.service.to_string(),
        release: line.release,
        priority: line.priority,
        text: line.text.clone(),
    };
    context.ui.result(&shown, render)
}

fn render(line: &ShownLine, paint: Paint) -> String {
    let milliseconds = line.at_us.rem_euclid(1_000_000) / 1000;
    let second = Timestamp(line.at_us.div_euclid(1_000_000)).to_string();
    let time = format!("{}.{milliseconds:03}Z", second.trim_end_matches('Z'));
    let text = printable(&line.text);
    // systemd's "error" and worse stand out.
    let text = if line.priority <= 3 { paint.error(&text) } else { text };
    format!("{} {} {text}\n", paint.faint(&time), paint.bold(&format!("{}/{}", line.node, line.service)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let line = ShownLine {
            at_us: 1_795_430_996_012_345,
            node: "prod-1".into(),
            service: "web".into(),
            release: 3,
            priority: 6,
            text: "GET / \u{1b}[31m200".into(),
        };
        assert_eq!(render(&line, Paint { colour: false }), "2026-11-23T10:49:56.012Z prod-1/web GET / ^[[31m200\n");
    }
}
