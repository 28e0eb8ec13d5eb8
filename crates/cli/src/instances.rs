//! Instances of a service in a pool: asks the loop for more, fewer or so many, and shows where each of them is.
//!
//! What is asked is durable, and done once, whether or not a loop runs; waiting for it changes nothing of it.

use crate::{
    Context,
    args::{AppOrService, AppService, parse_duration},
    commands::pool::{Looked, NO_LOOP, does_not_fit, span},
    error::{Error, Kind, Result},
    output::{Paint, seconds},
    pools::{GrantFile, database_error, grants, needs},
    session::now,
    table::Table,
    workspace::shown,
};
use bulkhead_core::{PoolName, grant::workload};
use bulkhead_pool::{Request, View, ask, make, system_clock};
use bulkhead_scale::{Doing, Instance, InstanceId, MachineId, State, Time};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

/// How often it is looked how far the loop is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long is waited at a terminal where nothing is said: more than a machine takes to boot, or to be given up.
const WITHIN: Duration = Duration::from_secs(15 * 60);

/// `--pool` and how long to wait, for what is asked of a loop.
#[derive(Debug, Clone, Args)]
pub struct LoopArgs {
    /// With `--count`: the pool, where the service is granted to several.
    #[arg(long, value_name = "POOL", requires = "count")]
    pub pool: Option<PoolName>,

    /// With `--count`: how long to wait until all of it is done. 15m at a terminal; elsewhere nothing is waited for
    /// unless this says so, and `0s` never waits.
    #[arg(long, value_name = "DURATION", requires = "count", value_parser = parse_duration)]
    pub within: Option<Duration>,
}

/// What is wanted of a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// So many more.
    Start,
    /// So many fewer.
    Stop,
    /// So many, no more and no less.
    Scale,
}

/// Where the instances are.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InstancesReport {
    /// What they are instances of, `APP/SERVICE`.
    pub workload: String,
    /// Whether a loop runs, which carries it out; if not the request waits for the next one.
    pub running: bool,
    /// Whether all that was asked is done.
    pub done: bool,
    /// Those that were asked for; after a stop, those that are left.
    pub instances: Vec<ListedInstance>,
}

/// One instance.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedInstance {
    /// Its number.
    pub instance: u64,
    /// What it does.
    pub state: String,
    /// The machine that it is on, or will be on.
    pub machine: Option<String>,
    /// How long it took until it ran; as long as it has waited so far where it does not.
    pub waited_ms: u64,
}

/// The service of what was named: an instance is of one.
///
/// # Errors
/// None was named.
pub fn one_service(target: &AppOrService) -> Result<AppService> {
    match &target.service {
        Some(service) => Ok(AppService { app: target.app.clone(), service: service.clone() }),
        None => Err(Error::usage(format!("`--count` is about one service: name it, such as `{}/web`", target.app))),
    }
}

/// Asks, and waits where that is wanted.
///
/// # Errors
/// Nothing was granted, no machine has room for one, or not all was done in time.
pub async fn run(context: &Context, verb: Verb, target: &AppService, count: u32, args: &LoopArgs) -> Result<()> {
    let looked = Looked::at(context)?;
    let workload = workload(&target.app, &target.service);
    let request = match verb {
        Verb::Stop => Request::Stop { workload: workload.clone(), count },
        Verb::Start | Verb::Scale => {
            let grant = granted(grants(&looked.files)?, &workload, args.pool.as_ref())?;
            let pool = looked.pools.named(&grant.grant.pool)?;
            let needs = needs(pool, grant.grant.service());
            if !pool.machine.fits(needs) {
                return Err(does_not_fit(&pool.name, pool.machine, needs));
            }
            let (workload, pool) = (workload.clone(), pool.name.clone());
            // What an instance holds in memory is lost where it is moved: none is while nobody says that it may be.
            let is_movable = false;
            if verb == Verb::Start {
                Request::Start { workload, pool, needs, is_movable, count }
            } else {
                Request::Scale { workload, pool, needs, is_movable, count }
            }
        }
    };
    make(&looked.path).map_err(|error| database_error(&error))?;
    let before = read(&looked.path)?.next_instance;
    let number = ask(&looked.path, &request).map_err(|error| database_error(&error))?;
    context.ui.stage("what was asked stays asked");
    let follow = Follow { workload, verb, count, before, number };
    let within = args.within.unwrap_or(if context.ui.is_interactive() { WITHIN } else { Duration::ZERO });
    let view = wait(context, &looked.path, &follow, within).await?;
    let report = follow.report(&view, system_clock()());
    context.ui.result(&report, |report, paint| render(report, paint))?;
    if !report.running {
        context.ui.note(&format!("warning: {NO_LOOP}; what was asked is kept for it"));
        return Ok(());
    }
    if report.done || within.is_zero() {
        return Ok(());
    }
    let message = if follow.is_taken(&view) && follow.is_short(&view) {
        "the loop started fewer than were asked for".to_owned()
    } else {
        format!("not all was done within {}; what was asked stays asked", seconds(within))
    };
    let error =
        Error::new(Kind::Partial, message).hint("`bulkhead pool ls` shows what it waits for, `bulkhead pool log` why");
    Err(Error { shown: true, ..error })
}

/// The grant by which a service may run in a pool now.
fn granted(all: Vec<GrantFile>, workload: &str, pool: Option<&PoolName>) -> Result<GrantFile> {
    let is_of =
        |file: &GrantFile| file.grant.workload() == workload && pool.is_none_or(|pool| file.grant.pool == *pool);
    let mut grants: Vec<GrantFile> = all.into_iter().filter(is_of).collect();
    let again = "`bulkhead pool grant POOL -e ENV` in the app's folder makes one";
    if grants.len() > 1 {
        let pools: Vec<&str> = grants.iter().map(|file| file.grant.pool.as_str()).collect();
        return Err(Error::usage(format!("{workload} is granted to several pools: name one with `--pool`"))
            .hint(format!("there are {}", pools.join(", "))));
    }
    let Some(file) = grants.pop() else {
        let place = pool.map_or_else(|| "any pool".to_owned(), |pool| format!("pool `{pool}`"));
        return Err(Error::configuration(format!("{workload} is not granted to {place}")).hint(again));
    };
    if file.grant.not_after <= now() {
        let message = format!("the grant in {} ended at {}", shown(&file.path), file.grant.not_after);
        return Err(Error::new(Kind::Refused, message).hint(again));
    }
    Ok(file)
}

fn read(path: &Path) -> Result<View> {
    let view = View::read(path).map_err(|error| database_error(&error))?;
    view.ok_or_else(|| Error::new(Kind::Internal, format!("{} is gone", path.display())))
}

/// Looks until all is done, no loop runs, or the time is over; says meanwhile what is waited for.
async fn wait(context: &Context, path: &Path, follow: &Follow, within: Duration) -> Result<View> {
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let view = read(path)?;
        let is_over = !view.is_running || begun.elapsed() >= within;
        if is_over || follow.is_done(&view) || (follow.is_taken(&view) && follow.is_short(&view)) {
            context.ui.clear();
            return Ok(view);
        }
        let waits = follow.waits(&view, system_clock()());
        let lines: Vec<String> = waits.iter().map(Wait::line).collect();
        context.ui.progress(&if lines.is_empty() { "waiting for the loop".to_owned() } else { lines.join("; ") });
        // Where no moving line shows it, each is said again only when it is another machine's or another state's.
        let kinds = waits.iter().map(|wait| wait.what.as_str()).collect::<Vec<_>>().join("; ");
        if kinds != told {
            lines.iter().for_each(|line| context.ui.step(line));
            told = kinds;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was asked, to be found again in the database.
#[derive(Debug)]
struct Follow {
    workload: String,
    verb: Verb,
    count: u32,
    /// What is new has this number or a higher one.
    before: InstanceId,
    /// The request's number.
    number: i64,
}

/// Instances that wait for the same thing.
#[derive(Debug, PartialEq, Eq)]
struct Wait {
    count: usize,
    /// For what, without how long.
    what: String,
    /// How long so far, and how long it usually takes.
    since: String,
}

impl Wait {
    fn line(&self) -> String {
        let waits = if self.count == 1 { "waits" } else { "wait" };
        format!("{} {waits} for {} ({})", self.count, self.what, self.since)
    }
}

impl Follow {
    /// Whether the loop has taken the request.
    fn is_taken(&self, view: &View) -> bool {
        view.pending.iter().all(|asked| asked.id != self.number)
    }

    /// Of the workload, those that it is about.
    fn instances<'a>(&self, view: &'a View) -> Vec<&'a Instance> {
        let is_of = |instance: &&Instance| {
            view.workloads.get(&instance.id) == Some(&self.workload)
                && (self.verb != Verb::Start || instance.id >= self.before)
        };
        view.rows.instances.iter().filter(is_of).collect()
    }

    /// Whether there are fewer than were asked for: the loop said no, or somebody stopped some.
    fn is_short(&self, view: &View) -> bool {
        let there = self.instances(view).iter().filter(|instance| instance.doing != Doing::Stopping).count();
        self.verb != Verb::Stop && there < self.count as usize
    }

    fn is_done(&self, view: &View) -> bool {
        let instances = self.instances(view);
        let is_stopping = instances.iter().any(|instance| instance.doing == Doing::Stopping);
        let all_run = instances.iter().all(|instance| runs(instance));
        self.is_taken(view)
            && match self.verb {
                Verb::Start => all_run && !self.is_short(view),
                Verb::Stop => !is_stopping,
                Verb::Scale => all_run && instances.len() == self.count as usize,
            }
    }

    /// What those that do not run wait for, the most first.
    fn waits(&self, view: &View, now: Time) -> Vec<Wait> {
        let mut by_what: BTreeMap<(String, String), usize> = BTreeMap::new();
        for instance in self.instances(view).into_iter().filter(|instance| !runs(instance)) {
            *by_what.entry(waits_for(instance, view, now)).or_default() += 1;
        }
        let mut waits: Vec<Wait> =
            by_what.into_iter().map(|((what, since), count)| Wait { count, what, since }).collect();
        waits.sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.what.cmp(&other.what)));
        waits
    }

    fn report(&self, view: &View, now: Time) -> InstancesReport {
        let listed = |instance: &Instance| ListedInstance {
            instance: instance.id.0,
            state: instance.doing.to_string(),
            machine: instance.machine.and_then(|machine| view.node(machine)).map(str::to_owned),
            waited_ms: if runs(instance) { instance.since } else { now }.since(instance.asked),
        };
        InstancesReport {
            workload: self.workload.clone(),
            running: view.is_running,
            done: self.is_done(view),
            instances: self.instances(view).into_iter().map(listed).collect(),
        }
    }
}

fn runs(instance: &Instance) -> bool {
    matches!(instance.doing, Doing::Running | Doing::Moving | Doing::Leaving)
}

/// What an instance waits for, and since when.
fn waits_for(instance: &Instance, view: &View, now: Time) -> (String, String) {
    let since = |word: &str, then: Time| format!("{word} since {}", span(now.since(then)));
    let machine = instance.machine.and_then(|id| view.rows.machines.iter().find(|machine| machine.id == id));
    match (instance.doing, machine) {
        (Doing::Waiting, _) | (_, None) => ("a place".into(), since("waiting", instance.since)),
        (Doing::Reserved, Some(machine)) => {
            let node = view.node(machine.id).unwrap_or_default().to_owned();
            let begun = machine.asked.unwrap_or(machine.planned);
            let so_far = since(machine.state.as_str(), begun);
            let usual = usual_boot_ms(view, machine.id);
            (node, usual.map_or(so_far.clone(), |usual| format!("{so_far}, usually {}", span(usual))))
        }
        (Doing::Stopping, Some(machine)) => {
            (format!("its end on {}", view.node(machine.id).unwrap_or_default()), since("stopping", instance.since))
        }
        (_, Some(machine)) => {
            (format!("its start on {}", view.node(machine.id).unwrap_or_default()), since("starting", instance.since))
        }
    }
}

/// How long machines of the same pool took from being asked for to being ready: the middle one of those that stand.
fn usual_boot_ms(view: &View, like: MachineId) -> Option<u64> {
    let pool = view.rows.machines.iter().find(|machine| machine.id == like)?.pool;
    let ready = view.rows.machines.iter().filter(|machine| machine.pool == pool && machine.state == State::Ready);
    let mut took: Vec<u64> = ready.filter_map(|machine| Some(machine.since.since(machine.asked?))).collect();
    took.sort_unstable();
    took.get(took.len() / 2).copied()
}

fn render(report: &InstancesReport, paint: Paint) -> String {
    if report.instances.is_empty() {
        let what = if report.done { "no instances" } else { "asked; no instances yet" };
        return format!("{}: {what}\n", report.workload);
    }
    let mut table = Table::new(&["INSTANCE", "STATE", "MACHINE", ">WAITED"]);
    for instance in &report.instances {
        table.row([
            format!("{}#{}", report.workload, instance.instance),
            instance.state.clone(),
            instance.machine.clone().unwrap_or_default(),
            seconds(Duration::from_millis(instance.waited_ms)),
        ]);
    }
    table.render(paint)
}
