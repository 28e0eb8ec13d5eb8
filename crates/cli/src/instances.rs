//! Instances of a service in a pool: asks the loop for more, fewer or so many, and shows where each of them is.
//!
//! What is asked is durable, and done once, whether or not a loop runs; waiting for it changes nothing of it.

use crate::{
    Context,
    args::{AppOrService, AppService, parse_duration},
    commands::pool::{Looked, NO_LOOP, does_not_fit, span},
    error::{Error, Kind, Result},
    notices::revoked,
    output::{Paint, seconds},
    pools::{GrantFile, database_error, grants, needs},
    session::now,
    table::Table,
    workspace::shown,
};
use bulkhead_core::{
    EnvironmentName, PoolName,
    grant::{Grant, workload},
    name::nearest,
    notice::Revoked,
};
use bulkhead_pool::{Request, View, ask, make, system_clock};
use bulkhead_scale::{Doing, Instance, InstanceId, MachineId, Pool, State, Time};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

/// The most instances that one command asks for: more is a slip, and machines are bought for it.
pub use bulkhead_pool::COUNT_MAX;
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
    Start {
        /// Whether one may be moved while it runs: what it holds in memory is lost then.
        is_movable: bool,
    },
    /// So many fewer.
    Stop,
    /// So many, no more and no less.
    Scale {
        /// As for those that are started.
        is_movable: bool,
    },
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

/// Asks, and waits where that is wanted. Where an environment is named it must be the pool's.
///
/// # Errors
/// Nothing was granted, no machine has room for one, or not all was done in time.
pub async fn run(
    context: &Context,
    verb: Verb,
    target: &AppService,
    count: u32,
    environment: Option<&EnvironmentName>,
    args: &LoopArgs,
) -> Result<()> {
    // To stop, nothing need be in order with what would be bought.
    let looked = if verb == Verb::Stop { Looked::unchecked(context)? } else { Looked::at(context)? };
    let workload = workload(&target.app, &target.service);
    let request = match verb {
        Verb::Stop => {
            is_there(&looked, &workload, args.pool.as_ref(), environment, &[])?;
            Request::Stop { workload: workload.clone(), pool: args.pool.clone(), count }
        }
        // As with every stop, no grant is needed for it.
        Verb::Scale { .. } if count == 0 => {
            is_there(
                &looked,
                &workload,
                args.pool.as_ref(),
                environment,
                &grants(&looked.files, &|error| context.ui.warn(error))?,
            )?;
            Request::Stop { workload: workload.clone(), pool: args.pool.clone(), count: u32::MAX }
        }
        Verb::Start { is_movable } | Verb::Scale { is_movable } => {
            let revoked = revoked(&looked.files.directory, &looked.files.policy()?.policy)?;
            let grant = granted(
                grants(&looked.files, &|error| context.ui.warn(error))?,
                &workload,
                args.pool.as_ref(),
                &revoked,
            )?;
            let pool = looked.pools.named(&grant.grant.pool)?;
            must_be_of(&looked, &pool.name, environment)?;
            let needs = needs(pool, grant.grant.service());
            if !pool.machine.fits(needs) {
                return Err(does_not_fit(&pool.name, pool.machine, needs));
            }
            covers_slots(&grant, pool)?;
            if is_movable && grant.grant.scratch {
                let message = format!("{workload} stores data that goes with each instance: to move one is to lose it");
                return Err(Error::usage(message).hint("leave `--movable` out"));
            }
            let (workload, pool) = (workload.clone(), pool.name.clone());
            if matches!(verb, Verb::Start { .. }) {
                Request::Start { workload, pool, needs, is_movable, count }
            } else {
                Request::Scale { workload, pool, needs, is_movable, count }
            }
        }
    };
    if let Some(text) = looked.view.as_ref().and_then(waits_already) {
        context.ui.note(&text);
    }
    make(&looked.path).map_err(|error| database_error(&error))?;
    let before = read(&looked.path)?.next_instance;
    let number = ask(&looked.path, &request).map_err(|error| database_error(&error))?;
    context.ui.stage("what was asked stays asked");
    let follow = Follow { workload, verb, count, before, number };
    let within = args.within.unwrap_or(if context.ui.is_interactive() { WITHIN } else { Duration::ZERO });
    let has_loop = read(&looked.path)?.is_running;
    if args.within.is_some_and(|within| !within.is_zero()) && !has_loop {
        context.ui.note(&format!("{NO_LOOP}; waiting for one"));
    }
    // Who says how long waits for a loop too.
    let view = wait(context, &looked.path, &follow, within, args.within.is_none() && !has_loop).await?;
    let report = follow.report(&view, system_clock()());
    context.ui.result(&report, render)?;
    if !report.running && (within.is_zero() || args.within.is_none() && !has_loop) {
        context.ui.note(&format!("warning: {NO_LOOP}; what was asked is kept for it"));
        return Ok(());
    }
    if report.done || within.is_zero() {
        return Ok(());
    }
    let message = if !report.running {
        format!("the loop ended, and no other began within {}; what was asked stays asked", seconds(within))
    } else if follow.is_taken(&view) && follow.is_short(&view) {
        "the loop started fewer than were asked for".to_owned()
    } else {
        format!("not all was done within {}; what was asked stays asked", seconds(within))
    };
    let error =
        Error::new(Kind::Partial, message).hint("`bulkhead pool ls` shows what it waits for, `bulkhead pool log` why");
    Err(Error { shown: true, ..error })
}

/// That requests wait and no loop takes them: whoever types a command again because nothing happened asks twice.
fn waits_already(view: &View) -> Option<String> {
    let what = match view.pending.len() {
        0 => return None,
        _ if view.is_running => return None,
        1 => "1 request waits already".to_owned(),
        many => format!("{many} requests wait already"),
    };
    Some(format!("{what}; `scale --count` sets a total"))
}

/// The named environment must be the pool's.
fn must_be_of(looked: &Looked, pool: &PoolName, environment: Option<&EnvironmentName>) -> Result<()> {
    let section = looked.files.fleet.pools.get(pool);
    match (section, environment) {
        (Some(section), Some(environment)) if section.environment != *environment => {
            let message = format!("pool `{pool}` is for `{}`, and not for `{environment}`", section.environment);
            Err(Error::usage(message).hint("leave `-e` and BULKHEAD_ENV out: a pool has one environment"))
        }
        _ => Ok(()),
    }
}

/// Whether there is anything of a workload that could be stopped, in a pool or in any: instances, requests for some, or a
/// grant. The named environment must be that of its pools.
fn is_there(
    looked: &Looked,
    workload: &str,
    pool: Option<&PoolName>,
    environment: Option<&EnvironmentName>,
    grants: &[GrantFile],
) -> Result<()> {
    let mut known: Vec<(String, &PoolName)> =
        grants.iter().map(|file| (file.grant.workload(), &file.grant.pool)).collect();
    if let Some(view) = &looked.view {
        for instance in &view.rows.instances {
            let of = view.workloads.get(&instance.id).zip(view.pools.get(usize::from(instance.pool.0)));
            known.extend(of.map(|(workload, pool)| (workload.clone(), &pool.name)));
        }
        for asked in &view.pending {
            if let Ok(Request::Start { workload, pool, .. } | Request::Scale { workload, pool, .. }) = &asked.request {
                known.push((workload.clone(), pool));
            }
        }
    }
    known.retain(|(_, place)| pool.is_none_or(|pool| pool == *place));
    let pools: BTreeSet<&PoolName> = known.iter().filter(|(of, _)| of == workload).map(|(_, pool)| *pool).collect();
    if pools.is_empty() {
        let place = pool.map(|pool| format!(" in pool `{pool}`")).unwrap_or_default();
        let error = Error::usage(format!("there is no instance of {workload}{place}, and none was asked for"));
        let names: BTreeSet<&str> = known.iter().map(|(of, _)| of.as_str()).collect();
        return Err(match nearest(workload, names.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if names.is_empty() => error,
            None => error.hint(format!("there are {}", names.into_iter().collect::<Vec<_>>().join(", "))),
        });
    }
    pools.into_iter().try_for_each(|pool| must_be_of(looked, pool, environment))
}

/// A grant for fewer on a machine than the pool puts there would have starts refused.
fn covers_slots(file: &GrantFile, pool: &Pool) -> Result<()> {
    let (granted, slots) = (file.grant.instances, pool.machine.slots);
    if granted >= slots {
        return Ok(());
    }
    let place = shown(&file.path);
    let message =
        format!("the grant in {place} is for {granted} on a machine; one of pool `{}` takes {slots}", pool.name);
    Err(Error::configuration(message).hint("slots were raised since: `bulkhead pool grant` again"))
}

/// The grant by which a service may run in a pool now.
fn granted(all: Vec<GrantFile>, workload: &str, pool: Option<&PoolName>, revoked: &Revoked) -> Result<GrantFile> {
    let is_of =
        |file: &GrantFile| file.grant.workload() == workload && pool.is_none_or(|pool| file.grant.pool == *pool);
    let mut grants: Vec<GrantFile> = all.into_iter().filter(is_of).collect();
    // Of several for a pool the loop takes the newest that was not revoked.
    let is_revoked = |file: &GrantFile| revoked.orders.contains(&Grant::id(file.signed.text.as_bytes()));
    grants.sort_by_key(|file| (file.grant.pool.clone(), is_revoked(file), Reverse(file.grant.issued)));
    grants.dedup_by(|later, first| later.grant.pool == first.grant.pool);
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
    if is_revoked(&file) {
        let message = format!("the grant was revoked: {}", shown(&file.path));
        return Err(Error::new(Kind::Refused, message).hint(again));
    }
    let image = file.grant.run.image;
    if revoked.images.contains(&image) {
        let message = format!("image {} of the grant in {} was revoked", image.short(), shown(&file.path));
        return Err(Error::new(Kind::Refused, message).hint(again));
    }
    Ok(file)
}

fn read(path: &Path) -> Result<View> {
    let view = View::read(path).map_err(|error| database_error(&error))?;
    view.ok_or_else(|| Error::new(Kind::Internal, format!("{} is gone", path.display())))
}

/// Looks until all is done, no loop runs, or the time is over; says meanwhile what is waited for.
async fn wait(context: &Context, path: &Path, follow: &Follow, within: Duration, needs_loop: bool) -> Result<View> {
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let view = read(path)?;
        let is_over = (needs_loop && !view.is_running) || begun.elapsed() >= within;
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
                && (!matches!(self.verb, Verb::Start { .. }) || instance.id >= self.before)
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
                Verb::Start { .. } => all_run && !self.is_short(view),
                Verb::Stop => !is_stopping,
                Verb::Scale { .. } => all_run && instances.len() == self.count as usize,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::pool::tests::looked;
    use bulkhead_core::{
        ImageId, SignedText, Timestamp,
        order::{Run, ServiceSpec},
    };
    use bulkhead_pool::{Asked, Database, Means, Nodes, Runner, Servers, Start};
    use bulkhead_scale::{Billing, CreateAnswer, DeleteAnswer, Limits, Machine, Micros, Room, Server, ServerId};
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    };

    /// A provider and machines that do at once what they are asked.
    #[derive(Default)]
    struct Prompt(Mutex<Vec<Server>>);

    impl Servers for Prompt {
        fn create(&self, _: &PoolName, name: &str) -> CreateAnswer {
            let mut servers = self.0.lock().unwrap();
            let id = ServerId(servers.len() as u64 + 1);
            servers.push(Server { id, name: name.into(), created: system_clock()() });
            CreateAnswer::Made(id)
        }
        fn list(&self) -> Option<Vec<Server>> {
            Some(self.0.lock().unwrap().clone())
        }
        fn delete(&self, _: ServerId, _: &str) -> DeleteAnswer {
            DeleteAnswer::Busy
        }
    }

    impl Nodes for Prompt {
        fn join(&self, _: &Machine, reached: &mut dyn FnMut(), _: &dyn Fn() -> bool) -> bool {
            reached();
            true
        }
        fn running(&self, _: &Machine) -> Option<u32> {
            None
        }
        fn start(&self, _: &Machine, _: InstanceId, _: &str) -> Start {
            Start::Running
        }
        fn stop(&self, _: &Machine, _: InstanceId, _: &str) -> bool {
            true
        }
    }

    #[test]
    fn a_running_loop_is_followed_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.sqlite");
        let pool = Pool::new("kernels".parse().unwrap(), 2, Micros(1), Billing::Free);
        // What is asked before the first loop is kept for it.
        make(&path).unwrap();
        let start = |count| Request::Start {
            workload: "notes/kernel".into(),
            pool: pool.name.clone(),
            needs: Room::slots(1),
            is_movable: false,
            count,
        };
        let number = ask(&path, &start(3)).unwrap();
        let database = Database::open(&path).unwrap();
        let pools = vec![pool.clone()];
        let ends = AtomicBool::new(false);
        let ui = Arc::new(crate::output::Ui::new(crate::output::Format::Json));
        let context = Context { ui, places: crate::workspace::Places::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let done = |verb, count, before, number| {
            let follow = Follow { workload: "notes/kernel".into(), verb, count, before: InstanceId(before), number };
            let view = runtime.block_on(wait(&context, &path, &follow, Duration::from_secs(60), true)).unwrap();
            follow.report(&view, system_clock()())
        };
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let means = Means {
                    servers: Arc::new(Prompt::default()),
                    nodes: Arc::new(Prompt::default()),
                    clock: system_clock(),
                    log: Box::new(|_, _| {}),
                    told: std::sync::mpsc::channel().1,
                };
                Runner::new(database, "acme".parse().unwrap(), Limits::default(), pools, means)?.run(&ends)
            });
            let report = done(Verb::Start { is_movable: false }, 3, 0, number);
            assert!(report.done && report.running, "{report:?}");
            assert_eq!(report.instances.len(), 3);
            assert!(report.instances.iter().all(|instance| instance.machine.is_some()));
            let number = ask(&path, &Request::Stop { workload: "notes/kernel".into(), pool: None, count: 2 }).unwrap();
            assert_eq!(done(Verb::Stop, 2, 3, number).instances.len(), 1);
            // What the loop does not know is not waited for.
            let elsewhere = Request::Start {
                workload: "notes/kernel".into(),
                pool: "elsewhere".parse().unwrap(),
                needs: Room::slots(1),
                is_movable: false,
                count: 1,
            };
            let number = ask(&path, &elsewhere).unwrap();
            let report = done(Verb::Start { is_movable: false }, 1, 3, number);
            assert!(!report.done && report.instances.is_empty(), "{report:?}");
            ends.store(true, Ordering::Relaxed);
            running.join().unwrap().unwrap();
        });
    }

    fn follow(verb: Verb, count: u32, before: u64) -> Follow {
        Follow { workload: "notes/kernel".into(), verb, count, before: InstanceId(before), number: 7 }
    }

    #[test]
    fn each_instance_says_what_it_waits_for() {
        let folder = tempfile::tempdir().unwrap();
        let looked = looked(folder.path());
        let mut view = looked.view.unwrap();
        let scale = follow(Verb::Scale { is_movable: false }, 5, 0);
        let lines: Vec<String> = scale.waits(&view, looked.now).iter().map(Wait::line).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        2 wait for kernels-k3f9-1 (booting since 15 s, usually 40 s)
        1 waits for a place (waiting since 5 s)
        ");
        view.is_running = true;
        insta::assert_snapshot!(render(&scale.report(&view, looked.now), Paint { colour: false }), @r"
        INSTANCE        STATE     MACHINE          WAITED
        notes/kernel#0  running   kernels-k3f9-0  41.00 s
        notes/kernel#1  running   kernels-k3f9-0  41.00 s
        notes/kernel#2  reserved  kernels-k3f9-1  15.00 s
        notes/kernel#3  reserved  kernels-k3f9-1  15.00 s
        notes/kernel#4  waiting   -                5.00 s
        ");
        assert!(!scale.is_done(&view) && !scale.is_short(&view));
        // Of a start, only what is new counts.
        let start = follow(Verb::Start { is_movable: false }, 1, 4);
        assert_eq!(start.instances(&view).len(), 1);
        assert!(follow(Verb::Start { is_movable: false }, 2, 4).is_short(&view));
        assert!(follow(Verb::Start { is_movable: false }, 2, 0).instances(&view).len() == 5);
        assert!(follow(Verb::Stop, 1, 5).is_done(&view));
        // As long as the loop has not taken it, nothing of it is done.
        view.pending.push(Asked { id: 7, request: Ok(Request::Freeze) });
        assert!(!follow(Verb::Stop, 1, 5).is_done(&view));
    }

    #[test]
    fn grants_decide_where() {
        let file = |pool: &str, not_after| {
            let run = Run::new(ImageId::of(b"x"), vec![ServiceSpec::new("kernel".parse().unwrap(), vec!["k".into()])]);
            let grant = Grant {
                format: 1,
                fleet: "acme".parse().unwrap(),
                environment: "production".parse().unwrap(),
                pool: pool.parse().unwrap(),
                app: "notes".parse().unwrap(),
                run,
                secrets: BTreeMap::new(),
                scratch: false,
                key: "ssh-ed25519 AAAA".into(),
                machines: 1,
                instances: 2,
                issued: Timestamp(0),
                not_after: Timestamp(not_after),
            };
            let signed = SignedText { text: String::new(), signatures: vec![] };
            GrantFile { path: format!("{pool}.json").into(), signed, grant }
        };
        let (one, two, over) = (file("one", i64::MAX), file("two", i64::MAX), file("one", 1));
        let of = |files: &[&GrantFile], pool: Option<&str>| {
            let pool = pool.map(|pool| pool.parse().unwrap());
            let files = files.iter().map(|file| (*file).clone()).collect();
            let granted = granted(files, "notes/kernel", pool.as_ref(), &Revoked::default());
            granted.map(|file| file.grant.pool.to_string()).map_err(|error| error.message)
        };
        assert_eq!(of(&[&one], None).unwrap(), "one");
        assert_eq!(of(&[&one, &two], Some("two")).unwrap(), "two");
        assert!(of(&[&one, &two], None).unwrap_err().contains("name one with `--pool`"));
        assert!(of(&[], None).unwrap_err().contains("not granted to any pool"));
        assert!(of(&[&one], Some("two")).unwrap_err().contains("not granted to pool `two`"));
        assert!(of(&[&over], None).unwrap_err().contains("ended at"));
        let by_id = Revoked { orders: [Grant::id(one.signed.text.as_bytes())].into(), ..Revoked::default() };
        let by_image = Revoked { images: [one.grant.run.image].into(), ..Revoked::default() };
        for (revoked, words) in [(by_id, "the grant was revoked: one.json"), (by_image, "in one.json was revoked")] {
            let error = granted(vec![one.clone()], "notes/kernel", None, &revoked).unwrap_err();
            assert!(error.kind == Kind::Refused && error.message.contains(words), "{error:?}");
        }
        let pool = |slots| Pool::new("one".parse().unwrap(), slots, Micros(1), Billing::Free);
        assert!(covers_slots(&one, &pool(2)).is_ok());
        let error = covers_slots(&one, &pool(3)).unwrap_err();
        assert_eq!(error.hints, ["slots were raised since: `bulkhead pool grant` again"]);
    }

    #[test]
    fn only_what_is_there_can_be_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let mut looked = looked(folder.path());
        let of = |looked: &Looked, workload: &str, environment: Option<&str>| {
            let environment = environment.map(|name| name.parse().unwrap());
            is_there(looked, workload, None, environment.as_ref(), &[]).map_err(|error| (error.message, error.hints))
        };
        assert!(of(&looked, "notes/kernel", None).is_ok());
        assert!(of(&looked, "notes/kernel", Some("production")).is_ok());
        let (message, _) = of(&looked, "notes/kernel", Some("staging")).unwrap_err();
        assert_eq!(message, "pool `kernels` is for `production`, and not for `staging`");
        let (message, hints) = of(&looked, "notes/kernle", None).unwrap_err();
        assert_eq!(message, "there is no instance of notes/kernle, and none was asked for");
        assert_eq!(hints, ["did you mean `notes/kernel`?"]);
        let elsewhere = "elsewhere".parse().unwrap();
        let error = is_there(&looked, "notes/kernel", Some(&elsewhere), None, &[]).unwrap_err();
        assert_eq!(error.message, "there is no instance of notes/kernel in pool `elsewhere`, and none was asked for");
        // What was asked for and not begun yet can be taken back.
        let view = looked.view.as_mut().unwrap();
        assert_eq!(waits_already(view), None);
        let request = Request::Start {
            workload: "notes/kernle".into(),
            pool: "kernels".parse().unwrap(),
            needs: Room::slots(1),
            is_movable: false,
            count: 1,
        };
        view.pending.push(Asked { id: 1, request: Ok(request) });
        assert_eq!(waits_already(view).unwrap(), "1 request waits already; `scale --count` sets a total");
        assert!(of(&looked, "notes/kernle", None).is_ok());
        assert!(of(&looked, "notes/kernle", Some("staging")).is_err());
    }
}
