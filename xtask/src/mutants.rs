//! `cargo xtask mutants`: changes the code that decides, one small change at a time, and demands that a test notices.
//!
//! What no test can notice, or need not, is listed in `.cargo/mutants.toml`, each with its reason.

use crate::{paths, run, setup};
use anyhow::{Context as _, Result, ensure};
use std::process::Command;

/// Changes code, and demands that tests notice.
#[derive(Debug, clap::Args)]
pub struct MutantsArguments {
    /// Only what differs from this commit.
    #[arg(long, value_name = "COMMIT")]
    since: Option<String>,

    /// More arguments of `cargo mutants`, after `--`.
    #[arg(last = true)]
    more: Vec<String>,
}

/// Runs `cargo mutants` over the crate that decides.
pub fn mutants(arguments: &MutantsArguments) -> Result<()> {
    setup::ensure(&[setup::For::Build])?;
    let is_there = Command::new("cargo").args(["mutants", "--version"]).output().is_ok_and(|ran| ran.status.success());
    ensure!(is_there, "cargo-mutants is missing; `cargo install --locked cargo-mutants` installs it");
    let output = paths::target().join("mutants");
    std::fs::create_dir_all(&output).context("cannot make the folder of results")?;
    let mut command = run::cargo();
    command
        .current_dir(paths::root())
        .args(["mutants", "--package", "bulkhead-trust", "--profile", "mutants", "--jobs", "1", "--timeout", "120"])
        .arg("--output")
        .arg(&output);
    if let Some(commit) = &arguments.since {
        let difference = Command::new("git").current_dir(paths::root()).args(["diff", commit]).output()?;
        ensure!(difference.status.success(), "`git diff {commit}` failed");
        let file = output.join("since.diff");
        std::fs::write(&file, difference.stdout)?;
        command.arg("--in-diff").arg(file);
    }
    run::run(command.args(&arguments.more))
}
