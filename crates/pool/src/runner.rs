//! The loop: events in, rows to disk, commands out.
//!
//! It blocks in one place and does not care where it runs: in the foreground
//! of a terminal, or as a task of a larger program. Whatever it asks of
//! providers and nodes is asked by threads beside it, whose answers are events.

use crate::{
    database::{Database, DatabaseError, Written},
    desk::Desk,
    lanes::{Lanes, Work},
};
use bulkhead_core::PoolName;
use bulkhead_scale::{
    Command, CreateAnswer, DeleteAnswer, Event, InstanceId, Limits, Machine, MachineId, Names, Output, Pool, PoolIndex,
    Room, Scaler, Server, ServerId, State, Time, Wish,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How often requests of other processes are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Events that one transaction is written for, at most.
const BATCH_MAX: usize = 256;
/// Requests to providers that are under way at once.
const SERVER_WORKERS: usize = 8;
/// Each node is asked whether it answers once in so many seconds, in large pools less often.
const HEAR_EVERY_S: usize = 60;
/// Nodes that are asked that, or what runs there, at once. Starts and stops on nodes that hang do not hold these up.
const HEARING_MAX: usize = 32;
/// Starts and stops that are under way at once.
const NODE_WORKERS: usize = 64;
/// How often it is looked how many machines are granted.
const BOUND_EVERY: Duration = Duration::from_secs(5);

/// Where machines are bought. Calls block; none is ever made twice for one command.
pub trait Servers: Send + Sync + 'static {
    /// Asks once for a machine of a pool.
    fn create(&self, pool: &PoolName, name: &str) -> CreateAnswer;
    /// All machines of the fleet, every page of them; nothing where that cannot be had.
    fn list(&self) -> Option<Vec<Server>>;
    /// Reads the machine by its number and deletes it by that number, if it still has the name.
    fn delete(&self, server: ServerId, name: &str) -> DeleteAnswer;
}

/// What is done on machines. Calls block.
pub trait Nodes: Send + Sync + 'static {
    /// Waits until a machine answers, says so, and makes a node of it. Ends early once it is wanted no more.
    fn join(&self, machine: &Machine, reached: &mut dyn FnMut(), is_wanted: &dyn Fn() -> bool) -> bool;
    /// How many services run there.
    fn running(&self, machine: &Machine) -> Option<u32>;
    /// Whether instances of a workload may be started in a pool at all. Asked before anything is bought for them.
    ///
    /// # Errors
    /// Why not, in a sentence.
    fn may_start(&self, pool: &PoolName, workload: &str) -> Result<(), String> {
        let _ = (pool, workload);
        Ok(())
    }
    /// How many machines people let a pool have at this moment; `None` where nothing but its caps counts.
    fn machines_granted(&self, pool: &PoolName) -> Option<u32> {
        let _ = pool;
        None
    }
    /// Starts an instance there, which may run already.
    fn start(&self, machine: &Machine, instance: InstanceId, workload: &str) -> Start;
    /// Stops an instance there, which may have stopped already.
    fn stop(&self, machine: &Machine, instance: InstanceId, workload: &str) -> bool;
    /// The machine is gone; what was kept for it is of no use.
    fn gone(&self, machine: &Machine) {
        let _ = machine;
    }
}

/// What came of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It runs.
    Running,
    /// It does not, for all that is known.
    Failed,
    /// It was not tried, for a reason that is not the machine's.
    NotTried,
}

/// What people ask of the loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// So many more instances of a workload.
    Start {
        /// Its name, `APP/SERVICE`.
        workload: String,
        /// Where.
        pool: PoolName,
        /// What each needs.
        needs: Room,
        /// Whether one may be moved while it runs.
        is_movable: bool,
        /// How many.
        count: u32,
    },
    /// So many instances of a workload, no more and no less.
    Scale {
        /// Its name, `APP/SERVICE`.
        workload: String,
        /// Where.
        pool: PoolName,
        /// What each needs.
        needs: Room,
        /// Whether one may be moved while it runs.
        is_movable: bool,
        /// How many.
        count: u32,
    },
    /// So many instances fewer.
    Stop {
        /// Its name, `APP/SERVICE`.
        workload: String,
        /// Where; in all pools where none is named.
        #[serde(default)]
        pool: Option<PoolName>,
        /// How many.
        count: u32,
    },
    /// Buy, empty and delete nothing.
    Freeze,
    /// Go on.
    Thaw,
    /// About one machine.
    Machine {
        /// Which.
        machine: MachineId,
        /// What is wanted of it.
        wish: Wish,
    },
    /// Delete a machine that is on no record.
    DeleteOrphan {
        /// Which.
        server: ServerId,
    },
}

/// Takes a line of the log, and when it was.
pub type Log = Box<dyn FnMut(Time, &str) + Send>;

/// What time it is. It goes on while nothing runs.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// The loop and all it knows.
pub struct Runner {
    database: Database,
    desk: Desk,
    pools: Vec<PoolName>,
    servers: Arc<dyn Servers>,
    nodes: Arc<dyn Nodes>,
    events: (Sender<Event>, Receiver<Event>),
    to_servers: Sender<Work>,
    to_watch: Sender<Work>,
    lanes: Lanes,
    /// When it was last looked how many machines are granted.
    bounded: Option<Instant>,
    /// The last node that was asked whether it answers, and when; and how many are being asked.
    heard: (Option<MachineId>, Instant),
    hearing: Arc<AtomicUsize>,
    /// What those beside the loop have to say.
    told: Receiver<String>,
    /// Machines whose join is under way, and that are still wanted.
    joining: Arc<Mutex<BTreeSet<MachineId>>>,
    clock: Clock,
    log: Log,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("scaler", &self.desk.scaler).finish_non_exhaustive()
    }
}

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    })
}

/// What a loop works with.
pub struct Means {
    /// Where machines are bought.
    pub servers: Arc<dyn Servers>,
    /// What is done on machines.
    pub nodes: Arc<dyn Nodes>,
    /// What time it is.
    pub clock: Clock,
    /// Where decisions are told.
    pub log: Log,
    /// What those who carry commands out have to say; it goes where decisions go.
    pub told: Receiver<String>,
}

impl std::fmt::Debug for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Means").finish_non_exhaustive()
    }
}

/// Threads that do what they are sent, one thing after another each.
fn workers(count: usize) -> Sender<Work> {
    let (sender, receiver) = mpsc::channel::<Work>();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..count {
        let receiver = Arc::clone(&receiver);
        thread::spawn(move || {
            loop {
                let work = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(work) = work else { break };
                work();
            }
        });
    }
    sender
}

impl Runner {
    /// Takes up what the database knows.
    ///
    /// # Errors
    /// It cannot be read, or written.
    pub fn new(
        mut database: Database,
        fleet: bulkhead_core::FleetName,
        limits: Limits,
        pools: Vec<Pool>,
        means: Means,
    ) -> Result<Self, DatabaseError> {
        let Means { servers, nodes, clock, log, told } = means;
        let pools = database.pools(pools)?;
        let names = Names { fleet, token: database.token()? };
        let (workloads, next_instance) = database.workloads()?;
        let rows = database.rows()?;
        let pool_names = pools.iter().map(|pool| pool.name.clone()).collect();
        let scaler = Scaler::restore(names, limits, pools, rows, clock());
        Ok(Self {
            database,
            desk: Desk { scaler, workloads: workloads.into_iter().collect(), next_instance },
            pools: pool_names,
            servers,
            nodes,
            events: mpsc::channel(),
            to_servers: workers(SERVER_WORKERS),
            lanes: Lanes::new(workers(NODE_WORKERS)),
            to_watch: workers(HEARING_MAX),
            bounded: None,
            heard: (None, Instant::now()),
            hearing: Arc::default(),
            told,
            joining: Arc::default(),
            clock,
            log,
        })
    }

    /// What it knows.
    #[must_use]
    pub fn scaler(&self) -> &Scaler {
        &self.desk.scaler
    }

    /// Runs until it is told to end. Whatever is under way then is taken up by the next one.
    ///
    /// # Errors
    /// The database cannot be written, or another process took it over. Nothing was begun that is not on record.
    pub fn run(&mut self, ends: &AtomicBool) -> Result<(), DatabaseError> {
        let mut first = Some(Event::Tick);
        while !ends.load(Ordering::Relaxed) {
            let mut batch: Vec<Event> = first.take().into_iter().collect();
            if batch.is_empty() {
                let wake = Duration::from_millis(self.desk.scaler.next_wake().since((self.clock)()));
                match self.events.1.recv_timeout(wake.min(LOOK_EVERY)) {
                    Ok(event) => batch.push(event),
                    Err(RecvTimeoutError::Timeout) if self.desk.scaler.next_wake() <= (self.clock)() => {
                        batch.push(Event::Tick)
                    }
                    Err(_) => {}
                }
            }
            batch.extend(self.events.1.try_iter().take(BATCH_MAX));
            let mut outputs = Vec::new();
            let mut notes: Vec<String> = self.told.try_iter().collect();
            if self.bounded.is_none_or(|last| last.elapsed() > BOUND_EVERY) {
                self.bound(&mut notes, &mut outputs);
            }
            for event in batch {
                self.desk.step(event, (self.clock)(), &mut outputs);
            }
            self.hear();
            let mut done = None;
            for asked in self.database.requests::<Request>()? {
                match asked.request {
                    Ok(request) => {
                        // What was granted a moment ago counts for what is asked now.
                        self.bound(&mut notes, &mut outputs);
                        let nodes = &self.nodes;
                        let may_start = |pool: &PoolName, workload: &str| nodes.may_start(pool, workload);
                        notes.extend(self.desk.carry(request, (self.clock)(), &may_start, &mut outputs));
                    }
                    Err(error) => notes.push(format!("request {} cannot be understood: {error}", asked.id)),
                }
                done = Some(asked.id);
            }
            if outputs.is_empty() && done.is_none() && notes.is_empty() {
                continue;
            }
            self.write(&outputs, &notes, done)?;
            for note in &notes {
                (self.log)((self.clock)(), note);
            }
            for output in &outputs {
                for decision in &output.decisions {
                    (self.log)((self.clock)(), &decision.to_string());
                }
                for command in &output.commands {
                    self.begin(command);
                }
            }
        }
        Ok(())
    }

    /// Holds each pool to what people grant at this moment.
    fn bound(&mut self, notes: &mut Vec<String>, outputs: &mut Vec<Output>) {
        self.bounded = Some(Instant::now());
        for (index, pool) in (0..).map(PoolIndex).zip(self.pools.clone()) {
            let machines = self.nodes.machines_granted(&pool);
            if self.desk.scaler.bound(index, machines) {
                let many = machines.map_or_else(|| "any number of".to_owned(), |many| many.to_string());
                notes.push(format!("grants let {pool} have {many} machines"));
                self.desk.step(Event::Tick, (self.clock)(), outputs);
            }
        }
    }

    /// Asks some nodes whether they answer; all of them in a minute, or as long as that takes.
    fn hear(&mut self) {
        let (last, at) = self.heard;
        if at.elapsed() < Duration::from_secs(1) {
            return;
        }
        let nodes = || self.desk.scaler.machines().filter(|machine| machine.is_node());
        let room = HEARING_MAX.saturating_sub(self.hearing.load(Ordering::Relaxed));
        let share = nodes().count().div_ceil(HEAR_EVERY_S).min(room);
        if share == 0 {
            return;
        }
        let next: Vec<Machine> =
            nodes().filter(|machine| last.is_none_or(|last| machine.id > last)).take(share).cloned().collect();
        // After the last one the first comes again.
        let last = next.last().filter(|_| next.len() == share).map(|machine| machine.id);
        self.heard = (last, Instant::now());
        for machine in next {
            let (nodes, events) = (Arc::clone(&self.nodes), self.events.0.clone());
            let hearing = Arc::clone(&self.hearing);
            hearing.fetch_add(1, Ordering::Relaxed);
            self.visit(move || {
                let answers = nodes.running(&machine).is_some();
                hearing.fetch_sub(1, Ordering::Relaxed);
                drop(events.send(Event::Heard { machine: machine.id, answers }));
            });
        }
    }

    fn write(&mut self, outputs: &[Output], notes: &[String], requests_done: Option<i64>) -> Result<(), DatabaseError> {
        let workloads = &self.desk.workloads;
        let written = Written {
            outputs,
            notes,
            workload: &|id| workloads.get(&id).map_or("", String::as_str),
            next_instance: self.desk.next_instance,
            now: (self.clock)(),
            requests_done,
        };
        self.database.write(&self.desk.scaler, &written)?;
        for id in outputs.iter().flat_map(|output| &output.instances) {
            if self.desk.scaler.instance(*id).is_none() {
                self.desk.workloads.remove(id);
            }
        }
        for id in outputs.iter().flat_map(|output| &output.machines) {
            let Some(machine) = self.desk.scaler.machine(*id).filter(|machine| machine.state == State::Gone) else {
                continue;
            };
            // One that was bought twice has the name of the one that stays.
            let has_its_name = |other: &Machine| other.name == machine.name && other.state != State::Gone;
            if !self.desk.scaler.machines().any(has_its_name) {
                self.nodes.gone(machine);
            }
        }
        let mut joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let is_coming = |id: &MachineId| {
            let state = self.desk.scaler.machine(*id).map(|machine| machine.state);
            matches!(state, Some(State::Booting | State::Joining))
        };
        joining.retain(is_coming);
        Ok(())
    }

    /// Hands a command, whose rows are on disk, to a thread.
    fn begin(&mut self, command: &Command) {
        let events = self.events.0.clone();
        let row = |id: MachineId| self.desk.scaler.machine(id).cloned();
        // A receiver that is gone has ended: what was under way is taken up by the next.
        let tell = move |event: Event| drop(events.send(event));
        match *command {
            Command::Create { machine } => {
                let Some(row) = row(machine) else { return };
                let (servers, pool) = (Arc::clone(&self.servers), self.pools[usize::from(row.pool.0)].clone());
                self.serve(move || tell(Event::Created { machine, answer: servers.create(&pool, &row.name) }));
            }
            Command::List => {
                let (servers, clock) = (Arc::clone(&self.servers), Arc::clone(&self.clock));
                self.serve(move || {
                    let asked = clock();
                    tell(match servers.list() {
                        Some(servers) => Event::Listed { asked, servers },
                        None => Event::ListFailed,
                    });
                });
            }
            Command::Delete { machine, server } => {
                let Some(row) = row(machine) else { return };
                let servers = Arc::clone(&self.servers);
                self.serve(move || tell(Event::Deleted { machine, answer: servers.delete(server, &row.name) }));
            }
            Command::Join { machine, server } => {
                let Some(row) = row(machine) else { return };
                let (nodes, joining) = (Arc::clone(&self.nodes), Arc::clone(&self.joining));
                joining.lock().unwrap_or_else(PoisonError::into_inner).insert(machine);
                thread::spawn(move || {
                    let is_wanted = || joining.lock().unwrap_or_else(PoisonError::into_inner).contains(&machine);
                    let joined = nodes.join(&row, &mut || tell(Event::Reached { machine, server }), &is_wanted);
                    tell(if joined {
                        Event::Joined { machine, server }
                    } else {
                        Event::JoinFailed { machine, server }
                    });
                });
            }
            Command::Confirm { machine } => {
                let Some(row) = row(machine) else { return };
                let nodes = Arc::clone(&self.nodes);
                self.visit(move || tell(Event::Confirmed { machine, running: nodes.running(&row) }));
            }
            Command::Start { instance, machine } => {
                let Some(row) = row(machine) else { return };
                let (nodes, workload) = (Arc::clone(&self.nodes), self.desk.workloads.get(&instance).cloned());
                let work = move || {
                    tell(match nodes.start(&row, instance, workload.as_deref().unwrap_or_default()) {
                        Start::NotTried => Event::NotTried { instance, machine },
                        came => Event::Started { instance, machine, is_running: came == Start::Running },
                    });
                };
                self.lanes.add(machine, instance, Box::new(work));
            }
            Command::Stop { instance, machine } => {
                let Some(row) = row(machine) else {
                    return tell(Event::Stopped { instance, machine, is_stopped: true });
                };
                let (nodes, workload) = (Arc::clone(&self.nodes), self.desk.workloads.get(&instance).cloned());
                let work = move || {
                    let is_stopped = nodes.stop(&row, instance, workload.as_deref().unwrap_or_default());
                    tell(Event::Stopped { instance, machine, is_stopped });
                };
                self.lanes.add(machine, instance, Box::new(work));
            }
        }
    }

    fn serve(&self, work: impl FnOnce() + Send + 'static) {
        self.to_servers.send(Box::new(work)).expect("workers live as long as the loop");
    }

    fn visit(&self, work: impl FnOnce() + Send + 'static) {
        self.to_watch.send(Box::new(work)).expect("workers live as long as the loop");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::ask;
    use bulkhead_scale::{Billing, Micros};

    /// A provider of one machine, which may fall silent.
    #[derive(Default)]
    struct One {
        name: Mutex<Option<Arc<str>>>,
        is_deaf: AtomicBool,
    }

    impl Servers for One {
        fn create(&self, _: &PoolName, name: &str) -> CreateAnswer {
            *self.name.lock().unwrap() = Some(name.into());
            CreateAnswer::Made(ServerId(1))
        }

        fn list(&self) -> Option<Vec<Server>> {
            let server = |name: Arc<str>| Server { id: ServerId(1), name, created: system_clock()() };
            Some(self.name.lock().unwrap().clone().map(server).into_iter().collect())
        }

        fn delete(&self, _: ServerId, _: &str) -> DeleteAnswer {
            DeleteAnswer::Busy
        }
    }

    impl Nodes for One {
        fn join(&self, _: &Machine, reached: &mut dyn FnMut(), _: &dyn Fn() -> bool) -> bool {
            reached();
            true
        }

        fn running(&self, _: &Machine) -> Option<u32> {
            (!self.is_deaf.load(Ordering::Relaxed)).then_some(1)
        }

        fn may_start(&self, _: &PoolName, workload: &str) -> Result<(), String> {
            if workload == "notes/web" { Ok(()) } else { Err("nobody granted it".into()) }
        }

        fn start(&self, _: &Machine, _: InstanceId, _: &str) -> Start {
            Start::Running
        }

        fn stop(&self, _: &Machine, _: InstanceId, _: &str) -> bool {
            true
        }
    }

    fn until(what: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it did not come about that {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn nothing_is_bought_for_what_nobody_granted_and_silence_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.sqlite");
        let pool = Pool::new("kernels".parse().unwrap(), 2, Micros(1), Billing::Free);
        let one = Arc::new(One::default());
        let means = Means {
            servers: Arc::clone(&one) as Arc<dyn Servers>,
            nodes: Arc::clone(&one) as Arc<dyn Nodes>,
            clock: system_clock(),
            log: Box::new(|_, _| {}),
            told: mpsc::channel().1,
        };
        let database = Database::open(&path).unwrap();
        let fleet = "acme".parse().unwrap();
        let mut runner = Runner::new(database, fleet, Limits::default(), vec![pool], means).unwrap();
        let start = |workload: &str| {
            let (workload, pool, needs) = (workload.to_owned(), "kernels".parse().unwrap(), Room::slots(1));
            ask(&path, &Request::Start { workload, pool, needs, is_movable: false, count: 1 }).unwrap();
        };
        let ends = AtomicBool::new(false);
        let view = || crate::View::read(&path).unwrap().unwrap();
        let logged =
            |words: &str| crate::decisions(&path, 0, 100).unwrap().iter().any(|told| told.text.contains(words));
        thread::scope(|scope| {
            let running = scope.spawn(|| runner.run(&ends).unwrap());
            start("notes/other");
            until("the refusal is in the log", || logged("nobody granted it"));
            assert!(view().rows.machines.is_empty());
            start("notes/web");
            let is_ready = |machine: &Machine| machine.state == State::Ready;
            until("the machine is ready", || view().rows.machines.iter().any(is_ready));
            one.is_deaf.store(true, Ordering::Relaxed);
            let is_silent = |machine: &Machine| machine.silent_since.is_some();
            until("its silence is noticed", || view().rows.machines.iter().any(is_silent));
            one.is_deaf.store(false, Ordering::Relaxed);
            until("it is over", || !view().rows.machines.iter().any(is_silent));
            ends.store(true, Ordering::Relaxed);
            running.join().unwrap();
        });
    }
}
