//! `cargo xtask bench deploy`: what a deploy costs, beside what people use instead.
//!
//! Everything runs in one run on one machine against local nodes: real systemd,
//! real OpenSSH, the node's own disk. The peers (`rsync`, `tar | zstd`) go over
//! SSH to the same node, through an ordinary sshd that the benchmark starts
//! inside it for the while (see `peers.rs`); `bulkhead` goes through the node's own.
//!
//! Figures are medians of wall-clock times as whoever types the command sees
//! them. "To healthy" ends when the new release answers its health check, which
//! the old release's drain and stop come after. Nothing here fails when a figure
//! is missed: timed assertions belong to no test. `docs/benchmarks.md` holds the
//! figures and what limits them.
//!
//! `bench/lab.rs` is the fleet and the app, `bench/peers.rs` the peers,
//! `bench/sections.rs` what is measured.

mod lab;
mod peers;
mod sections;

use crate::{
    run,
    setup::{self, For},
};
use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What can be measured.
#[derive(Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Deploys: one changed file, first upload, rollback, a thin line, many files, many nodes, memory.
    Deploy(DeployArguments),
}

#[derive(Debug, clap::Args)]
pub struct DeployArguments {
    /// Writes the figures as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measures these only.
    #[arg(long, value_name = "SECTION", value_delimiter = ',', value_enum)]
    only: Vec<Section>,
    /// How often each is done; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Leaves the nodes up.
    #[arg(long)]
    keep: bool,
}

/// A part of the benchmark that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Section {
    /// A large app onto an empty node, beside rsync and tar; memory of gate and keeper meanwhile.
    FirstUpload,
    /// One changed file of a large app, beside rsync and a restart.
    OneFile,
    /// Back to the release before.
    Rollback,
    /// One small file over a line of 50 ms and 50 Mbit/s.
    Wan,
    /// Patch releases of a dependency and of the runtime, beside compressed layers.
    Deltas,
    /// One changed file among 1,000, 10,000 and 100,000.
    Files,
    /// One changed file to 1, 3 and 10 nodes at once.
    Nodes,
}

impl Section {
    const ALL: [Self; 7] =
        [Self::FirstUpload, Self::OneFile, Self::Rollback, Self::Wan, Self::Deltas, Self::Files, Self::Nodes];
}

/// Figures by name.
#[derive(Debug, Default)]
pub struct Figures(Map<String, Value>);

impl Figures {
    /// Keeps a figure and prints it.
    pub fn put(&mut self, name: &str, value: f64, what: &str) {
        // Milliseconds and thousandths of a ratio are as fine as anything here repeats.
        let rounded = (value * 1000.0).round() / 1000.0;
        println!("  {name:<34} {rounded:>12}  {what}");
        self.0.insert(name.into(), json!(rounded));
    }

    /// Keeps something that is not one number.
    pub fn note(&mut self, name: &str, value: Value) {
        self.0.insert(name.into(), value);
    }
}

/// The middle one, or the mean of the two in the middle. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

pub fn deploy(arguments: &DeployArguments) -> Result<()> {
    setup::require_root("the benchmark")?;
    setup::ensure(&[For::Build, For::Fleet, For::Example, For::Bench])?;
    let sections = if arguments.only.is_empty() { Section::ALL.to_vec() } else { arguments.only.clone() };
    let mut figures = Figures::default();
    let mut lab = lab::Lab::new()?;
    let result = sections::measure(&mut lab, &sections, arguments.runs, &mut figures);
    if !arguments.keep {
        // What went wrong first is what must be heard.
        let closed = lab.close();
        result?;
        closed?;
    } else {
        result?;
        println!("\nthe nodes are left up; fleet files are in {}", lab.folder().display());
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures.0).context("figures are plain data")? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        run::heading(&format!("figures written to {}", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let check = |values: &[f64], expected| assert_eq!(median(values), expected);
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[9.0, 1.0, 2.0], Some(2.0));
        check(&[4.0, 1.0, 2.0, 3.0], Some(2.5));
    }

    #[test]
    fn figures_are_rounded() {
        let mut figures = Figures::default();
        figures.put("a", 0.123_456, "");
        assert_eq!(figures.0["a"], json!(0.123));
    }
}
