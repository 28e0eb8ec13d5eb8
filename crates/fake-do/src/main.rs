//! `fake-do`: the fake as a process, for clients that are tried by hand.

use bulkhead_fake_do::{Fake, Faults, Options, StartError};
use clap::{Parser, ValueEnum};
use std::{
    io::{Write as _, stdout},
    net::SocketAddr,
    process::ExitCode,
};

/// DigitalOcean's API on this machine; any token will do.
#[derive(Parser)]
struct Arguments {
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// How it misbehaves.
    #[arg(long, value_enum, default_value = "none")]
    faults: Misbehaves,
    /// How many droplets the account may have.
    #[arg(long, default_value_t = 10)]
    quota: u32,
    /// So many seconds pass here in each real one.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    speed: u32,
    /// What chance comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Misbehaves {
    /// Not at all.
    None,
    /// As is seen in the field, more often.
    Usual,
    /// As on its worst day, every day.
    Heavy,
}

fn main() -> ExitCode {
    let Arguments { listen, faults, quota, speed, seed } = Arguments::parse();
    let faults = match faults {
        Misbehaves::None => Faults::NONE,
        Misbehaves::Usual => Faults::USUAL,
        Misbehaves::Heavy => Faults::HEAVY,
    };
    match serve(Options { listen, faults, quota, speed, seed, ..Options::default() }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
            // Nobody is left to tell, where this fails.
            drop(writeln!(std::io::stderr(), "fake-do: {error}{cause}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> Result<(), StartError> {
    let fake = Fake::start(options)?;
    drop(writeln!(stdout(), "{}", fake.url()));
    fake.wait();
    Ok(())
}
