//! `cargo xtask fuzz`: libFuzzer over every decoder of untrusted bytes.
//!
//! The fuzzer in `fuzz/` is built with coverage by the stable compiler. Corpora
//! grow in the target directory; what makes a decoder fail is kept in
//! `crates/fuzz/corpus/NAME`, where the smoke test finds it from then on.

use crate::{paths, run, setup};
use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_fuzz::TARGETS;
use std::{fs, process::Command};

/// SanitizerCoverage by LLVM itself; the compiler's own flag for it is not stable.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=yes";

/// Fuzzes.
#[derive(Debug, clap::Args)]
pub struct FuzzArguments {
    /// Only these decoders.
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// How long each.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    seconds: u32,
}

/// Builds the fuzzer and runs it over each decoder.
pub fn fuzz(arguments: &FuzzArguments) -> Result<()> {
    for name in &arguments.names {
        ensure!(
            TARGETS.iter().any(|target| target.name == name),
            "no decoder `{name}`; there are {}",
            TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ")
        );
    }
    setup::ensure(&[setup::For::Build])?;
    let root = paths::root();
    let target_directory = paths::target().join("fuzz");
    let host = crate::binaries::node_target();
    run::run(
        run::cargo()
            .current_dir(root.join("fuzz"))
            .args(["build", "--quiet", "--release", "--target", &host])
            .arg("--target-dir")
            .arg(&target_directory)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", COVERAGE),
    )?;
    let fuzzer = target_directory.join(&host).join("release/bulkhead-fuzzer");
    let mut failed = Vec::new();
    for target in TARGETS
        .iter()
        .filter(|target| arguments.names.is_empty() || arguments.names.iter().any(|name| name == target.name))
    {
        println!("── {}", target.name);
        let corpus = target_directory.join("corpus").join(target.name);
        let found = root.join("crates/fuzz/corpus").join(target.name);
        fs::create_dir_all(&corpus).context("cannot make the corpus")?;
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(corpus.join(format!("seed-{number}")), seed).context("cannot write the corpus")?;
        }
        let crashes = target_directory.join("found").join(target.name);
        fs::create_dir_all(&crashes).context("cannot make a directory for what is found")?;
        let mut command = Command::new(&fuzzer);
        command
            .arg(format!("-max_total_time={}", arguments.seconds))
            .args(["-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1", "-verbosity=0", "-max_len=65536"])
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .arg(&corpus);
        if found.exists() {
            command.arg(&found);
        }
        let status = command.env("BULKHEAD_FUZZ", target.name).status().context("cannot run the fuzzer")?;
        if !status.success() {
            fs::create_dir_all(&found).context("cannot keep what was found")?;
            for entry in fs::read_dir(&crashes).context("cannot list what was found")? {
                let path = entry.context("cannot list what was found")?.path();
                if let Some(name) = path.file_name() {
                    fs::copy(&path, found.join(name)).context("cannot keep what was found")?;
                }
            }
            failed.push(target.name);
        }
    }
    if !failed.is_empty() {
        bail!("decoders that fail: {}; what makes them is in crates/fuzz/corpus", failed.join(", "));
    }
    Ok(())
}
