//! `bulkhead`: the operator's command line.
//!
//! Everything it does is done by the crates below it; this one reads
//! arguments and files, shows plans, asks, and prints.
//!
//! | module | duty |
//! |---|---|
//! | [`args`] | arguments that commands share, the list of commands |
//! | [`commands`] | one file per command: its doc comment is its help, its body the story |
//! | [`workspace`] | `bulkhead.toml`, `fleet.toml`, `policy.json`: where they are and what they say |
//! | [`instances`] | instances of a service in a pool: asked of its loop, and followed |
//! | [`inventory`] | `fleet.toml` edited in place: comments and order stay |
//! | [`session`] | a fleet ready to be talked to: keys, SSH settings, memory; asking many nodes at once |
//! | [`ledger`] | what this machine keeps of nodes' audit logs: keys, heads, receipts |
//! | [`left`] | nodes that an order leaves as they are because they did not answer |
//! | [`orders`] | one order from draft to the table of what came of it |
//! | [`deployment`] | what plan, deploy, promote and rollback share |
//! | [`mod@plan`] | what an order would change, as data and text |
//! | [`pools`] | `[pools]` of `fleet.toml` as the loop takes them, and where it keeps its files |
//! | [`secrets`] | sealed secrets beside `fleet.toml` |
//! | [`promotion`] | what promote takes from a release and what from the manifest |
//! | [`packfile`] | a pack in a file, for a node's drop box |
//! | [`output`] | standard output and error, the question, progress |
//! | [`error`] | one shape for errors; exit codes |
//! | [`table`] | tables that line up |
//! | [`reference`](mod@reference) | the generated documentation |
//!
//! # Invariants
//! - Nothing changes before its plan was shown and agreed to (`--yes` agrees).
//! - With `-o json` standard output carries JSON and nothing else.
//! - Text from a node is made printable before it reaches a terminal.
//! - An interruption at any moment leaves local files whole and nodes with a release that serves.

/// Appends formatted text to a string, which cannot fail as writing to other things can.
macro_rules! put {
    ($out:expr, $($text:tt)*) => { $out.push_str(&format!($($text)*)) };
}

/// As `put!`, and ends the line.
macro_rules! putln {
    ($out:expr, $($text:tt)*) => {{
        $out.push_str(&format!($($text)*));
        $out.push('\n');
    }};
}

pub mod args;
pub mod commands;
pub mod deployment;
pub mod error;
pub mod instances;
pub mod inventory;
pub mod ledger;
pub mod left;
pub mod notices;
pub mod orders;
pub mod output;
pub mod packfile;
pub mod plan;
pub mod pools;
pub mod promotion;
pub mod proof;
pub mod proposal;
pub mod reference;
pub mod secrets;
pub mod session;
pub mod table;
pub mod workspace;

mod git;
pub mod grants;
mod starter;

use crate::{
    args::{Cli, Command},
    error::{Error, Kind, Result},
    output::{Format, Ui},
    workspace::Places,
};
use clap::Parser as _;
use std::{process::ExitCode, sync::Arc};

/// What every command gets.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where its words go.
    pub ui: Arc<Ui>,
    /// Where to look for files.
    pub places: Places,
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_arguments(&error),
    };
    let ui = Arc::new(Ui::new(cli.output));
    let places = Places { manifest: cli.manifest, fleet: cli.fleet };
    let context = Context { ui: Arc::clone(&ui), places };
    let result = match &cli.directory {
        Some(directory) => std::env::set_current_dir(directory)
            .map_err(|error| Error::during(Kind::Usage, format!("cannot work in {}", directory.display()), &error)),
        None => Ok(()),
    };
    let silent = matches!(cli.command, Command::Completions(_) | Command::GenerateDocs(_));
    let result = result.and_then(|()| block_on(&context, &cli.command));
    ui.close();
    if !silent {
        ui.total();
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error { tool: Some(code), .. }) => ExitCode::from(code),
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Runs a command until it ends or is interrupted.
fn block_on(context: &Context, command: &Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::during(Kind::Internal, "cannot start", &error))?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = commands::run(context, command) => result,
            () = interruption(context) => context.ui.interrupted(),
        }
    });
    // A question or a build under way on another thread must not hold the end up, and a thread that waits for what the
    // runtime does must not find it gone: all of them end with the process.
    std::mem::forget(runtime);
    result
}

/// Waits for an interruption that is the command's, and not a tool's on a node.
async fn interruption(context: &Context) {
    loop {
        // Where signals cannot be heard, the system's own way with them holds.
        if tokio::signal::ctrl_c().await.is_err() {
            return std::future::pending().await;
        }
        if !context.ui.passes_interruption_on() {
            return;
        }
    }
}

/// Help and versions go to standard output; mistakes to standard error, with exit code 2.
fn wrong_arguments(error: &clap::Error) -> ExitCode {
    // clap chooses the stream; nobody is left to be told when it is closed.
    error.print().ok();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if wants_json() {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let report = Error::usage(message).report();
        Ui::new(Format::Json).result(&report, |_, _| String::new()).ok();
    }
    ExitCode::from(Kind::Usage.exit_code())
}

/// Whether arguments that do not parse ask for JSON.
fn wants_json() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    arguments.iter().any(|word| word == "--output=json" || word == "-ojson" || word == "-o=json")
        || arguments.windows(2).any(|pair| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json")
}
