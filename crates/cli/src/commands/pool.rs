//! `bulkhead pool`.
//!
//! These commands look at the database of the loop that runs on this machine, and ask things of it. None of them buys,
//! deletes or starts anything itself: only `bulkhead pool run` does.

mod ask;
mod cost;
mod grant;
mod log;
mod ls;
mod plan;
mod run;

pub use ask::PoolAskedReport;
pub use cost::PoolCostReport;
pub use grant::PoolGrantReport;
pub(crate) use grant::does_not_fit;
pub use log::ToldLine;
pub use ls::PoolLsReport;
pub use plan::PoolPlanReport;

use crate::{
    Context,
    error::{Error, Result},
    pools::{self, Pools, database_error},
    workspace::{FLEET, FleetFiles},
};
use bulkhead_pool::{View, system_clock};
use bulkhead_scale::{Micros, Scaler, Time};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What to say where no loop runs.
pub(crate) const NO_LOOP: &str = "no loop runs here: `bulkhead pool run` buys machines and starts instances";

/// What a freeze means.
const FROZEN: &str =
    "frozen: nothing is bought, emptied or deleted; instances still start and stop: `bulkhead pool thaw`";

/// Shows and brakes machines that are bought by program, and says what may run there
///
/// `[pools.NAME]` of `fleet.toml` says what is bought. See docs/elasticity.md.
#[derive(Debug, Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    Run(run::RunArgs),
    Ls(ls::LsArgs),
    Plan(plan::PlanArgs),
    Cost(cost::CostArgs),
    Log(log::LogArgs),
    Grant(grant::GrantArgs),
    Freeze(ask::FreezeArgs),
    Thaw(ask::ThawArgs),
    Cordon(ask::CordonArgs),
    Uncordon(ask::UncordonArgs),
    Drain(ask::DrainArgs),
    Discard(ask::DiscardArgs),
    ReleaseOrphan(ask::ReleaseOrphanArgs),
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever it could not do.
pub async fn run(context: &Context, args: &PoolArgs) -> Result<()> {
    match &args.command {
        PoolCommand::Run(args) => run::run(context, args).await,
        PoolCommand::Ls(args) => ls::run(context, args),
        PoolCommand::Plan(args) => plan::run(context, args),
        PoolCommand::Cost(args) => cost::run(context, args),
        PoolCommand::Log(args) => log::run(context, args).await,
        PoolCommand::Grant(args) => grant::run(context, args).await,
        PoolCommand::Freeze(_) => ask::freeze(context),
        PoolCommand::Thaw(args) => ask::thaw(context, args).await,
        PoolCommand::Cordon(args) => ask::cordon(context, args),
        PoolCommand::Uncordon(args) => ask::uncordon(context, args),
        PoolCommand::Drain(args) => ask::drain(context, args).await,
        PoolCommand::Discard(args) => ask::discard(context, args).await,
        PoolCommand::ReleaseOrphan(args) => ask::release_orphan(context, args).await,
    }
}

/// A fleet's pools, and what the loop's database says of them.
pub(crate) struct Looked {
    pub(crate) files: FleetFiles,
    pub(crate) pools: Pools,
    pub(crate) path: PathBuf,
    /// None where no loop ever ran here, and nobody asked anything of one.
    pub(crate) view: Option<View>,
    pub(crate) now: Time,
}

impl Looked {
    /// With a check of all that a loop would find wrong.
    pub(crate) fn at(context: &Context) -> Result<Self> {
        let looked = Self::unchecked(context)?;
        pools::check(&looked.files.fleet, &looked.files.policy()?.policy)?;
        Ok(looked)
    }

    /// For what must be possible whatever is wrong with what would be bought: brakes, stops.
    pub(crate) fn unchecked(context: &Context) -> Result<Self> {
        let files = FleetFiles::load(&context.places)?;
        let pools = Pools::of(&files.fleet)?;
        let path = pools::database(&files.fleet.fleet)?;
        let view = View::read(&path).map_err(|error| database_error(&error))?;
        if pools.pools.is_empty() && view.is_none() {
            return Err(Error::configuration(format!("{FLEET} has no pools"))
                .hint("`[pools.NAME]` there makes one, see docs/elasticity.md"));
        }
        Ok(Self { files, pools, path, view, now: system_clock()() })
    }

    /// A copy of the scaler; one without machines where there is no database yet.
    pub(crate) fn scaler(&self) -> Scaler {
        let fleet = self.files.fleet.fleet.clone();
        let (limits, pools) = (self.pools.limits, self.pools.pools.clone());
        match &self.view {
            Some(view) => view.scaler(fleet, limits, pools, self.now),
            None => {
                let names = bulkhead_scale::Names { fleet, token: "new".into() };
                Scaler::new(names, limits, pools, self.now)
            }
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.is_running)
    }
}

/// A span of time for people, in one unit: `12 s`, `5 min`, `3 h`.
pub(crate) fn span(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// An amount against its limit: `$3.21 of $50.00`.
pub(crate) fn against(amount: Micros, most: Option<Micros>) -> String {
    most.map_or_else(|| amount.to_string(), |most| format!("{amount} of {most}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bulkhead_core::manifest::parse_toml;
    use bulkhead_pool::{Database, Written};
    use bulkhead_scale::{
        CreateAnswer, Event, InstanceId, MachineId, Names, Output, PoolIndex, Room, SECOND_MS, ServerId,
    };
    use std::path::Path;

    const FLEET: &str = r#"
        fleet = "acme"
        [pools.kernels]
        environment = "production"
        provider = "digitalocean"
        slots = 2
        price = "0.03571"
        machines_max = 2
        per_month = "20"
        [scaling]
        per_hour = "1"
    "#;

    /// A pool of two machines of two slots each, one ready and one booting, of which five instances are wanted.
    pub(crate) fn looked(folder: &Path) -> Looked {
        let fleet = parse_toml(FLEET).unwrap();
        let pools = Pools::of(&fleet).unwrap();
        let path = folder.join("pool.sqlite");
        let begun = Time(1_795_600_000_000);
        let at = |second: u64| begun.plus(second * SECOND_MS);
        let mut database = Database::open(&path).unwrap();
        let in_order = database.pools(pools.pools.clone()).unwrap();
        let names = Names { fleet: fleet.fleet.clone(), token: "k3f9".into() };
        let mut scaler = Scaler::new(names, pools.limits, in_order, begun);
        let start = |number| Event::Start {
            instance: InstanceId(number),
            pool: PoolIndex(0),
            needs: Room::slots(1),
            is_movable: false,
        };
        let (first, second) = (MachineId(0), MachineId(1));
        let (one, two) = (ServerId(1000), ServerId(1001));
        let started = |number| Event::Started { instance: InstanceId(number), machine: first, is_running: true };
        let events = [
            (0, start(0)),
            (0, start(1)),
            (1, Event::Created { machine: first, answer: CreateAnswer::Made(one) }),
            (30, Event::Reached { machine: first, server: one }),
            (40, Event::Joined { machine: first, server: one }),
            (41, started(0)),
            (41, started(1)),
            (60, start(2)),
            (60, start(3)),
            (61, Event::Created { machine: second, answer: CreateAnswer::Made(two) }),
            (70, start(4)),
        ];
        let mut outputs = Vec::new();
        for (second, event) in events {
            let mut output = Output::default();
            scaler.step(event, at(second), &mut output);
            outputs.push(output);
        }
        let written = Written {
            notes: &[],
            outputs: &outputs,
            workload: &|_| "notes/kernel",
            next_instance: InstanceId(5),
            now: at(70),
            requests_done: None,
        };
        database.write(&scaler, &written).unwrap();
        drop(database);
        let view = View::read(&path).unwrap().map(|view| View { token: "k3f9".into(), is_running: false, ..view });
        Looked { files: FleetFiles { directory: folder.to_owned(), fleet }, pools, path, view, now: at(75) }
    }
}
