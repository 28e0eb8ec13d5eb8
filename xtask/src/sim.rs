//! `cargo xtask sim`: hands its arguments on to the simulator, which is a small program of its own.

use crate::run;
use anyhow::Result;

/// Simulates a pool; `cargo xtask sim -- --help` shows the simulator's own arguments.
#[derive(Debug, clap::Args)]
pub struct SimArguments {
    /// Of the simulator: `--nodes N --days D --seed S --json FILE --svg FILE` and more.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and runs it.
pub fn sim(arguments: &SimArguments) -> Result<()> {
    let mut command = run::cargo();
    command.args(["run", "--quiet", "--release", "--package", "bulkhead-sim", "--"]).args(&arguments.arguments);
    run::run(&mut command)
}
