//! Building the product's binaries.
//!
//! The agent is one static binary, so that it runs on any node. Its flags would
//! rebuild everything if they were shared with the host's builds; `--target`
//! gives it a directory of its own below the target directory.

use crate::{paths, run, setup};
use anyhow::{Context as _, Result};
use std::{path::PathBuf, process::Command};

/// What was built, and where.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `bulkhead`.
    pub cli: PathBuf,
    /// The static `bulkhead-agent`.
    pub agent: PathBuf,
    /// The static app of tests and benchmarks; built on demand, see [`build_static`].
    pub testapp: PathBuf,
}

/// The target triple of this machine, with glibc: the agent is for nodes like the one at hand.
pub fn node_target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Where [`build`] leaves the binaries.
pub fn locate() -> Binaries {
    let for_nodes = paths::target().join(node_target()).join("release");
    Binaries {
        cli: paths::target().join("release/bulkhead"),
        agent: for_nodes.join("bulkhead-agent"),
        testapp: for_nodes.join("testapp"),
    }
}

/// Builds both.
pub fn build() -> Result<Binaries> {
    setup::ensure(&[setup::For::Build])?;
    run::run(run::cargo().args(["build", "--quiet", "--release", "-p", "bulkhead-cli"]))?;
    build_static("bulkhead-agent")?;
    Ok(locate())
}

/// Builds one package as a static binary for nodes like this machine.
pub fn build_static(package: &str) -> Result<()> {
    run::run(
        run::cargo()
            .args(["build", "--quiet", "--release", "-p", package, "--target", &node_target()])
            // Over `RUSTFLAGS` of the environment: with other flags the binary would not be static.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("OPENSSL_STATIC", "1"),
    )
}

impl Binaries {
    /// `bulkhead`, told which agent to put on nodes.
    pub fn bulkhead(&self) -> Command {
        let mut command = Command::new(&self.cli);
        command.env("BULKHEAD_AGENT", &self.agent);
        command
    }
}

/// `cargo xtask build`.
pub fn report() -> Result<()> {
    let binaries = build()?;
    for path in [&binaries.cli, &binaries.agent] {
        let bytes = path.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len();
        println!("{:>6.1} MB  {}", bytes as f64 / 1e6, path.display());
    }
    Ok(())
}

/// `cargo xtask docs`.
pub fn generate_docs() -> Result<()> {
    let binaries = build()?;
    run::show(binaries.bulkhead().arg("generate-docs").arg(paths::root().join("docs")))
}
