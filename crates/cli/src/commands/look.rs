//! `bulkhead look`.

use crate::{
    Context,
    args::{AppService, MaybeEnvironment},
    commands::open::running_on,
    error::{Error, Result},
    output::{Paint, printable_lines},
    session::{Session, node_error},
    table::Table,
};
use bulkhead_core::NodeName;
use bulkhead_wire::{Look, View};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

/// Looks into a running service from outside; nothing enters it
///
/// Tools after `--`: `ps`, `sockets`, `fds`, `limits`, `files PATH`, `cat PATH`.
/// Paths are as the service sees them. Without a tool: processes, sockets and
/// limits.
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

    /// The tool and its path.
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
    let nodes = session.files.nodes_in(&environment)?;
    let (name, node) = running_on(context, &session, &nodes, &args.target, args.node.as_ref()).await?;
    let client = session.connect(&name, &node).await?;
    let mut report = LookReport { node: name.to_string(), parts: vec![] };
    for (tool, view) in views {
        let seen = client.look(args.target.app.clone(), args.target.service.clone(), view).await;
        report.parts.push(part(tool, seen.map_err(|error| node_error(&error))?));
    }
    client.close().await;
    context.ui.result(&report, render)
}

fn views(words: &[String]) -> Result<Vec<(&'static str, View)>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words.as_slice() {
        [] => vec![("ps", View::Processes), ("sockets", View::Sockets), ("limits", View::Limits)],
        ["ps"] => vec![("ps", View::Processes)],
        ["sockets"] => vec![("sockets", View::Sockets)],
        ["fds"] => vec![("fds", View::OpenFiles)],
        ["limits"] => vec![("limits", View::Limits)],
        ["files"] => vec![("files", View::Files { path: "/".into() })],
        ["files", path] => vec![("files", View::Files { path: absolute(path)? })],
        ["cat", path] => vec![("cat", View::Files { path: absolute(path)? })],
        ["cat"] => return Err(Error::usage("`cat` needs a path, as the service sees it")),
        [tool, ..] => {
            return Err(Error::usage(format!("there is no tool `{tool}` with these arguments"))
                .hint("tools are ps, sockets, fds, limits, files PATH, cat PATH"));
        }
    })
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
        assert_eq!(views(&[]).unwrap().len(), 3);
        assert_eq!(views(&words("cat /etc/hosts")).unwrap(), [("cat", View::Files { path: "/etc/hosts".into() })]);
        for bad in ["cat", "cat etc", "ps aux", "sh"] {
            assert!(views(&words(bad)).is_err(), "{bad}");
        }
    }
}
