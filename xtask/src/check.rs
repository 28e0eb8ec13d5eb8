//! `cargo xtask test`: every check and test, cheap ones first, the test runner's own summary last.

use crate::{
    binaries, layers, run,
    setup::{self, For},
};
use anyhow::{Context as _, Result};
use std::process::Command;

/// Set to `skip` for tests on real nodes to pass over themselves, saying so.
pub const NODES_VARIABLE: &str = "BULKHEAD_TEST_NODES";

#[derive(Debug, clap::Args)]
pub struct TestArguments {
    /// Leaves out what needs real nodes, and so root.
    #[arg(long)]
    quick: bool,
    /// Installs cargo-deny if it is missing (minutes), and checks advisories too (fetches their database).
    #[arg(long)]
    deny: bool,
}

pub fn test(arguments: &TestArguments) -> Result<()> {
    setup::ensure(&[For::Build, For::Test])?;
    setup::ensure_components()?;
    if !arguments.quick {
        setup::ensure(&[For::Fleet, For::Example])?;
        setup::require_root("testing on real nodes (leave it out with --quick)")?;
    }

    run::heading("format");
    run::run(run::cargo().args(["fmt", "--all", "--check"])).context("`cargo fmt --all` would change files")?;

    run::heading("dependencies between crates");
    layers::check()?;
    deny(arguments.deny)?;

    run::heading("clippy");
    run::run(run::cargo().args([
        "clippy",
        "--quiet",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;

    run::heading("build");
    let binaries = binaries::build()?;
    binaries::build_static("bulkhead-testapp")?;

    run::heading("documentation tests");
    run::run(run::cargo().args(["test", "--quiet", "--release", "--workspace", "--doc"]))?;

    // Last, so that its summary is what the reader, and CI, sees at the end.
    run::heading("tests");
    let mut tests = run::cargo();
    tests.args(["test", "--release", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]);
    tests.env("BULKHEAD_BIN", &binaries.cli).env("BULKHEAD_AGENT", &binaries.agent);
    tests.env("BULKHEAD_TESTAPP", &binaries.testapp);
    if arguments.quick {
        tests.env(NODES_VARIABLE, "skip");
    }
    run::run(&mut tests)
}

/// Licences, sources and duplicates where cargo-deny is at hand: compiling it takes minutes,
/// and the advisory database must be fetched, so both are asked for with `--deny`.
fn deny(wanted: bool) -> Result<()> {
    let present = run::find_program("cargo-deny").is_some();
    if !present && !wanted {
        println!("cargo-deny is not installed: licences and advisories are not checked (`--deny` does)");
        return Ok(());
    }
    run::heading("cargo-deny");
    if !present {
        run::show(Command::new("cargo").args(["install", "--locked", "cargo-deny"]))?;
    }
    let mut command = run::cargo();
    command.args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]);
    if wanted {
        command.arg("advisories");
    }
    run::run(&mut command)
}
