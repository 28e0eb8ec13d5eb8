//! `bulkhead local`.

#[cfg(target_os = "linux")]
pub(crate) mod fleet;

use crate::{Context, error::Result};
use bulkhead_core::{EnvironmentName, NodeName};
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use std::str::FromStr;

/// Runs real nodes on this machine: booted systemd machines with their own sshd
///
/// Needs Linux and root. They behave as nodes elsewhere do, and stand in
/// `fleet.toml` beside them.
#[derive(Debug, Args)]
pub struct LocalArgs {
    #[command(subcommand)]
    command: LocalCommand,
}

#[derive(Debug, Subcommand)]
enum LocalCommand {
    Up(LocalUpArgs),
    Ls(LocalLsArgs),
    Down(LocalDownArgs),
    #[command(hide = true)]
    Kill(LocalNodeArgs),
    #[command(hide = true)]
    Start(LocalNodeArgs),
    Exec(LocalExecArgs),
}

/// Starts local nodes and writes them into `fleet.toml`
///
/// Those that run already stay as they are; those that were stopped come back
/// with their data; those that were released (`bulkhead node release`) stay the stock
/// machines that they are. The first time a Debian system is made from packages.
#[derive(Debug, Args)]
pub struct LocalUpArgs {
    /// The nodes, as NAME=ENVIRONMENT.
    #[arg(
        long,
        value_name = "NAME=ENV,…",
        value_delimiter = ',',
        default_value = "stage-1=staging,prod-1=production,prod-2=production"
    )]
    pub nodes: Vec<NodeInEnvironment>,

    /// The Debian suite of new nodes: `trixie` or `bookworm`.
    #[arg(long, value_name = "SUITE", default_value = "trixie", value_parser = ["trixie", "bookworm"])]
    pub suite: String,
}

/// Lists local nodes
#[derive(Debug, Args)]
pub struct LocalLsArgs {}

/// Stops local nodes; their data stays
#[derive(Debug, Args)]
pub struct LocalDownArgs {
    /// Deletes them with their data and takes them out of `fleet.toml`.
    #[arg(long)]
    pub remove: bool,

    /// Goes on without a question; only `--remove` asks one.
    #[arg(short, long)]
    pub yes: bool,

    /// Which; all by default.
    #[arg(value_name = "NODE")]
    pub nodes: Vec<NodeName>,
}

/// Acts on one local node
#[derive(Debug, Args)]
pub struct LocalNodeArgs {
    /// The node.
    #[arg(value_name = "NODE")]
    pub node: NodeName,
}

/// Runs a program inside a local node, as root and past the gate
///
/// As one who sits at the machine: `bulkhead local exec stage-1 -- ss -ltn`. It works for
/// local nodes alone, for their machine is this one; other nodes let nobody in to do that.
/// Where the program fails, the exit code is 8.
#[derive(Debug, Args)]
pub struct LocalExecArgs {
    /// The node.
    #[arg(value_name = "NODE")]
    pub node: NodeName,

    /// The program and its arguments.
    #[arg(value_name = "PROGRAM", last = true, required = true)]
    pub program: Vec<String>,
}

/// `prod-1=production`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInEnvironment {
    /// The node.
    pub node: NodeName,
    /// Its environment.
    pub environment: EnvironmentName,
}

impl FromStr for NodeInEnvironment {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (node, environment) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}`: write NAME=ENVIRONMENT, such as prod-1=production"))?;
        Ok(Self {
            node: node.parse().map_err(|error| format!("{error}"))?,
            environment: environment.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

/// The local nodes.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LocalReport {
    /// Every one, by name.
    pub nodes: Vec<ShownLocalNode>,
}

/// A local node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownLocalNode {
    /// Its name.
    pub node: String,
    /// Its environment.
    pub environment: String,
    /// Its address; sshd answers on port 22.
    pub address: String,
    /// Whether it runs.
    pub running: bool,
    /// Whether it was released: it is a stock machine then, and a node no longer.
    pub released: bool,
    /// Its process 1 as this machine sees it.
    pub pid: Option<u32>,
    /// The machine's name for systemd-nspawn.
    pub machine: String,
    /// Its file tree on this machine.
    pub root: String,
}

/// Runs the subcommand.
///
/// # Errors
/// This machine cannot run nodes, or one did not come up.
#[cfg(target_os = "linux")]
pub async fn run(context: &Context, args: &LocalArgs) -> Result<()> {
    match &args.command {
        LocalCommand::Up(args) => fleet::up(context, args).await,
        LocalCommand::Ls(_) => fleet::ls(context).await,
        LocalCommand::Down(args) => fleet::down(context, args).await,
        LocalCommand::Kill(args) => fleet::kill(context, &args.node).await,
        LocalCommand::Start(args) => fleet::start(context, &args.node).await,
        LocalCommand::Exec(args) => fleet::exec(context, &args.node, &args.program).await,
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Always: only Linux boots these machines.
#[cfg(not(target_os = "linux"))]
pub async fn run(_: &Context, _: &LocalArgs) -> Result<()> {
    Err(crate::error::Error::usage("local nodes are Linux machines, which only Linux can boot")
        .hint("run `bulkhead local` on Linux, or write the machines you have into fleet.toml"))
}
