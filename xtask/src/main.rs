//! `cargo xtask`: everything that developing Bulkhead takes, as programs instead of instructions.
//!
//! | command | does |
//! |---|---|
//! | `setup` | installs what is missing from Debian's packages, and says why |
//! | `build` | builds `bulkhead` and the static `bulkhead-agent` |
//! | `demo` | a local fleet of three nodes, deploys, promotes, rolls back; `--down` leaves nothing behind |
//! | `test` | every check and test; what CI runs |
//! | `bench deploy` | the deploy benchmark, beside rsync and tar over SSH |
//! | `qemu` | a virtual machine with stock Debian: adopted, altered, booted, cut off, released |
//! | `windows` | the command line as a Windows program, cross-compiled and run by Wine |
//! | `sim` | a pool of bought machines, simulated: demand, a provider that misbehaves, crashes |
//! | `docs` | writes the generated pages of `docs/` again |
//!
//! Each of them begins by installing what it needs, so a fresh machine with a
//! Rust toolchain and root needs nothing else.

mod bench;
mod binaries;
mod check;
mod demo;
mod fuzz;
mod layers;
mod mutants;
mod paths;
mod qemu;
mod run;
mod setup;
mod sim;
mod windows;

use clap::{Parser, Subcommand};

/// Everything that developing Bulkhead takes.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Installs what is missing from Debian's packages, and says what and why.
    Setup,
    /// Builds `bulkhead` and the static `bulkhead-agent`, and prints where they are.
    Build,
    /// Shows the product on a local fleet of three real nodes.
    Demo(demo::DemoArguments),
    /// Runs every check and test, those on real nodes included.
    Test(check::TestArguments),
    /// Measures.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Adopts a virtual machine with stock Debian and tests what a machine in a container cannot show. Takes minutes.
    Qemu(qemu::QemuArguments),
    /// Builds `bulkhead.exe` and runs it under Wine: same digests as on Linux, deploys to a real node. Takes long.
    Windows(windows::WindowsArguments),
    /// Runs libFuzzer over every decoder of untrusted bytes, two minutes each.
    Fuzz(fuzz::FuzzArguments),
    /// Changes the code that decides, one small change at a time, and demands that a test notices. Takes an hour.
    Mutants(mutants::MutantsArguments),
    /// Simulates a pool of bought machines, with a provider that misbehaves. Shows figures, writes plots.
    Sim(sim::SimArguments),
    /// Writes the generated pages of `docs/` again.
    Docs,
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::report(),
        Command::Build => binaries::report(),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Test(arguments) => check::test(&arguments),
        Command::Bench(bench::BenchCommand::Deploy(arguments)) => bench::deploy(&arguments),
        Command::Qemu(arguments) => qemu::qemu(&arguments),
        Command::Windows(arguments) => windows::windows(&arguments),
        Command::Fuzz(arguments) => fuzz::fuzz(&arguments),
        Command::Mutants(arguments) => mutants::mutants(&arguments),
        Command::Sim(arguments) => sim::sim(&arguments),
        Command::Docs => binaries::generate_docs(),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` prints the whole chain on one line.
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
