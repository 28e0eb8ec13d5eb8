//! `cargo xtask sim`: a pool's months in seconds, figures and plots of it, and what must hold at every step.

use bulkhead_scale::{Billing, Headroom, MINUTE_MS};
use bulkhead_sim::{Demand, Report, Setup, cloud::Faults, run};
use clap::{Parser, ValueEnum};
use std::{path::PathBuf, process::ExitCode, time::Instant};

/// Simulates a pool: demand, a provider that misbehaves, crashes of the scaler.
///
/// Everything that must hold is checked at every step against what really is: caps, slots, no busy machine deleted,
/// nothing bought while there is room, and in the end nothing left over and nothing forgotten. A run that fails says
/// its seed, and the same arguments with that seed fail again.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim", max_term_width = 100)]
struct Arguments {
    /// The most machines; demand's peak fills nine tenths of them.
    #[arg(long, default_value_t = 100)]
    nodes: u32,
    /// For how many days there is demand.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// Chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instances on one machine.
    #[arg(long, default_value_t = 23)]
    slots: u32,
    /// The shape of demand.
    #[arg(long, value_enum, default_value_t = Shape::Daily)]
    demand: Shape,
    /// Demand from a file instead: lines of SECONDS,INSTANCES.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// How the provider misbehaves.
    #[arg(long, value_enum, default_value_t = Faulty::Usual)]
    faults: Faulty,
    /// Crashes of the scaler a day, besides those in the middle of its work.
    #[arg(long, default_value_t = 0)]
    crashes: u32,
    /// How long an instance lives on average, in minutes.
    #[arg(long, default_value_t = 24 * 60)]
    lifetime_minutes: u64,
    /// After how many minutes an empty machine goes.
    #[arg(long, default_value_t = 10)]
    idle_minutes: u64,
    /// Slots that are kept free, or `auto`: what arrives during a boot, at the 95th percentile.
    #[arg(long, default_value = "0")]
    headroom: String,
    /// Move instances together, so that machines fall empty.
    #[arg(long)]
    consolidate: bool,
    /// Bill whole hours, as Hetzner does.
    #[arg(long)]
    per_hour: bool,
    /// Ends demand after so many requests to create a machine.
    #[arg(long, value_name = "N")]
    creates_max: Option<u64>,
    /// So many runs, with this seed and the ones after it.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// How cost grows: 100, 1,000, 10,000 and 100,000 nodes, for as many days as make each about as long.
    #[arg(long)]
    growth: bool,
    /// Tells every decision as it is taken.
    #[arg(long)]
    verbose: bool,
    /// Writes figures and samples there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a plot there.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shape {
    Steady,
    Daily,
    Burst,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Faulty {
    None,
    Usual,
    Heavy,
}

fn setup(arguments: &Arguments) -> Result<Setup, String> {
    let demand = match &arguments.trace {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Demand::trace(&text).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => match arguments.demand {
            Shape::Steady => Demand::Steady,
            Shape::Daily => Demand::Daily,
            Shape::Burst => Demand::Burst,
        },
    };
    let headroom = match arguments.headroom.as_str() {
        "auto" => Headroom::Arrivals { percentile: 95 },
        slots => Headroom::Slots(slots.parse().map_err(|_| format!("--headroom {slots}: a number, or `auto`"))?),
    };
    if arguments.nodes == 0 || arguments.slots == 0 || arguments.days == 0 || arguments.lifetime_minutes == 0 {
        return Err("--nodes, --slots, --days and --lifetime-minutes are at least 1".into());
    }
    Ok(Setup {
        slots: arguments.slots,
        demand,
        lifetime_ms: arguments.lifetime_minutes * MINUTE_MS,
        faults: match arguments.faults {
            Faulty::None => Faults::NONE,
            Faulty::Usual => Faults::USUAL,
            Faulty::Heavy => Faults::HEAVY,
        },
        crashes_a_day: arguments.crashes,
        billing: if arguments.per_hour { Billing::PerHour } else { Billing::DIGITALOCEAN },
        headroom,
        consolidates: arguments.consolidate,
        idle_ms: arguments.idle_minutes * MINUTE_MS,
        is_told: arguments.verbose,
        creates_max: arguments.creates_max,
        ..Setup::new(arguments.nodes, arguments.days, arguments.seed)
    })
}

/// One run, with how long it took.
fn timed(setup: &Setup) -> Result<(Report, f64), String> {
    let begun = Instant::now();
    let report = run(setup)
        .map_err(|violation| format!("{violation}\nreplay: the same arguments with --seed {} --runs 1", setup.seed))?;
    Ok((report, begun.elapsed().as_secs_f64()))
}

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn simulate(arguments: &Arguments) -> Result<(), String> {
    let setup = setup(arguments)?;
    if arguments.growth {
        println!("{:>9} {:>6} {:>12} {:>9} {:>13} {:>12}", "nodes", "days", "events", "seconds", "per event", "cost");
        for (nodes, days) in [(100, 1_000), (1_000, 100), (10_000, 10), (100_000, 1)] {
            let setup = Setup { machines: nodes, creations: nodes, days, ..setup.clone() };
            let (report, seconds) = timed(&setup)?;
            let per_event = seconds * 1e9 / report.steps as f64;
            println!(
                "{nodes:>9} {days:>6} {:>12} {seconds:>9.2} {per_event:>10.0} ns {:>12}",
                report.steps,
                report.cost.to_string()
            );
        }
        return Ok(());
    }
    let (mut creates, mut made, mut crashes, mut whole) = (0, 0, 0, 0.0);
    for index in 0..arguments.runs.max(1) {
        let setup = Setup { seed: setup.seed.wrapping_add(index), ..setup.clone() };
        let (report, seconds) = timed(&setup)?;
        (creates, made, crashes) = (creates + report.creates, made + report.made, crashes + report.crashes);
        whole += seconds;
        if arguments.runs > 1 {
            continue;
        }
        print!("{report}");
        println!("  took            {seconds:.2} s, {:.0} ns an event", seconds * 1e9 / report.steps as f64);
        if let Some(path) = &arguments.json {
            let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
            std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
        }
        if let Some(path) = &arguments.svg {
            std::fs::write(path, report.svg()?).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    if arguments.runs > 1 {
        println!(
            "{} runs: {creates} requests to create, {made} machines made, {crashes} crashes; all held, {whole:.1} s",
            arguments.runs
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    match simulate(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            #[expect(clippy::print_stderr, reason = "it is where errors go")]
            {
                eprintln!("error: {message}");
            }
            ExitCode::FAILURE
        }
    }
}
