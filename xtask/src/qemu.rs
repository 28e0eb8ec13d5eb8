//! `cargo xtask qemu`: a stock machine is bought, so to speak, adopted, and lives as a node, in a virtual machine.
//!
//! What the local fleet's machines cannot show, because they share this machine's kernel, disk and clock, is tested
//! here: `crates/testkit/tests/qemu`. The machine's processor is emulated, so a boot takes some 30 s.

use crate::{
    binaries, run,
    setup::{self, For},
};
use anyhow::Result;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct QemuArguments {
    /// Leaves the machine on at the end, and says how to get at it.
    #[arg(long)]
    keep: bool,
    /// Runs only tests whose name contains this.
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

pub fn qemu(arguments: &QemuArguments) -> Result<()> {
    setup::ensure(&[For::Build, For::Fleet, For::Test, For::Qemu])?;
    setup::require_root("the lane with a virtual machine")?;
    run::heading("bulkhead, the agent and the test app");
    let binaries = binaries::build()?;
    binaries::build_static("bulkhead-testapp")?;
    run::heading("a stock machine, adopted (the first time its disk is made from packages: a minute and a download)");
    let started = Instant::now();
    let mut tests = run::cargo();
    tests.args(["test", "--quiet", "--release", "-p", "bulkhead-testkit", "--test", "qemu", "--", "--nocapture"]);
    tests.args(&arguments.filter);
    tests.env("BULKHEAD_QEMU", if arguments.keep { "keep" } else { "1" });
    tests.env("BULKHEAD_BIN", &binaries.cli).env("BULKHEAD_AGENT", &binaries.agent);
    tests.env("BULKHEAD_TESTAPP", &binaries.testapp);
    run::run(&mut tests)?;
    println!("\nall of it worked, in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
