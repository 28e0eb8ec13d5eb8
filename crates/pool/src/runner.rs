//! The loop: events in, rows to disk, commands out.
//!
//! It blocks in one place and does not care where it runs: in the foreground
//! of a terminal, or as a task of a larger program. Whatever it asks of
//! providers and nodes is asked by threads beside it, whose answers are events.

use crate::database::{Database, DatabaseError, Written};
use bulkhead_core::PoolName;
use bulkhead_scale::{
    Command, CreateAnswer, DeleteAnswer, Doing, Event, InstanceId, Limits, Machine, MachineId, Names, Output, Pool,
    PoolIndex, Room, Scaler, Server, ServerId, State, Time, Wish,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often requests of other processes are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Events that one transaction is written for, at most.
const BATCH_MAX: usize = 256;
/// Requests to providers that are under way at once.
const SERVER_WORKERS: usize = 8;
/// Requests to nodes that are under way at once, besides joins.
const NODE_WORKERS: usize = 64;

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
    /// Starts an instance there, which may run already.
    fn start(&self, machine: &Machine, instance: InstanceId, workload: &str) -> bool;
    /// Stops an instance there, which may have stopped already.
    fn stop(&self, machine: &Machine, instance: InstanceId, workload: &str) -> bool;
    /// The machine is gone; what was kept for it is of no use.
    fn gone(&self, machine: &Machine) {
        let _ = machine;
    }
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

/// A unit of work for a worker.
type Work = Box<dyn FnOnce() + Send>;

/// The loop and all it knows.
pub struct Runner {
    database: Database,
    scaler: Scaler,
    workloads: BTreeMap<InstanceId, String>,
    next_instance: InstanceId,
    pools: Vec<PoolName>,
    servers: Arc<dyn Servers>,
    nodes: Arc<dyn Nodes>,
    events: (Sender<Event>, Receiver<Event>),
    to_servers: Sender<Work>,
    to_nodes: Sender<Work>,
    /// Machines whose join is under way, and that are still wanted.
    joining: Arc<Mutex<BTreeSet<MachineId>>>,
    clock: Clock,
    log: Log,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("scaler", &self.scaler).finish_non_exhaustive()
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
        let Means { servers, nodes, clock, log } = means;
        let pools = database.pools(pools)?;
        let names = Names { fleet, token: database.token()? };
        let (workloads, next_instance) = database.workloads()?;
        let rows = database.rows()?;
        let pool_names = pools.iter().map(|pool| pool.name.clone()).collect();
        let scaler = Scaler::restore(names, limits, pools, rows, clock());
        Ok(Self {
            database,
            scaler,
            workloads: workloads.into_iter().collect(),
            next_instance,
            pools: pool_names,
            servers,
            nodes,
            events: mpsc::channel(),
            to_servers: workers(SERVER_WORKERS),
            to_nodes: workers(NODE_WORKERS),
            joining: Arc::default(),
            clock,
            log,
        })
    }

    /// What it knows.
    #[must_use]
    pub fn scaler(&self) -> &Scaler {
        &self.scaler
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
                let wake = Duration::from_millis(self.scaler.next_wake().since((self.clock)()));
                match self.events.1.recv_timeout(wake.min(LOOK_EVERY)) {
                    Ok(event) => batch.push(event),
                    Err(RecvTimeoutError::Timeout) if self.scaler.next_wake() <= (self.clock)() => {
                        batch.push(Event::Tick)
                    }
                    Err(_) => {}
                }
            }
            batch.extend(self.events.1.try_iter().take(BATCH_MAX));
            let mut outputs = Vec::new();
            for event in batch {
                self.step(event, &mut outputs);
            }
            let mut done = None;
            for asked in self.database.requests::<Request>()? {
                match asked.request {
                    Ok(request) => self.carry(request, &mut outputs),
                    Err(error) => {
                        (self.log)((self.clock)(), &format!("request {} cannot be understood: {error}", asked.id))
                    }
                }
                done = Some(asked.id);
            }
            if outputs.is_empty() && done.is_none() {
                continue;
            }
            self.write(&outputs, done)?;
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

    fn step(&mut self, event: Event, outputs: &mut Vec<Output>) {
        let mut output = Output::default();
        self.scaler.step(event, (self.clock)(), &mut output);
        if output != Output::default() {
            outputs.push(output);
        }
    }

    fn write(&mut self, outputs: &[Output], requests_done: Option<i64>) -> Result<(), DatabaseError> {
        let workloads = &self.workloads;
        let written = Written {
            outputs,
            workload: &|id| workloads.get(&id).map_or("", String::as_str),
            next_instance: self.next_instance,
            now: (self.clock)(),
            requests_done,
        };
        self.database.write(&self.scaler, &written)?;
        for id in outputs.iter().flat_map(|output| &output.instances) {
            if self.scaler.instance(*id).is_none() {
                self.workloads.remove(id);
            }
        }
        for id in outputs.iter().flat_map(|output| &output.machines) {
            if let Some(machine) = self.scaler.machine(*id).filter(|machine| machine.state == State::Gone) {
                self.nodes.gone(machine);
            }
        }
        let mut joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let is_coming = |id: &MachineId| {
            let state = self.scaler.machine(*id).map(|machine| machine.state);
            matches!(state, Some(State::Booting | State::Joining))
        };
        joining.retain(is_coming);
        Ok(())
    }

    fn carry(&mut self, request: Request, outputs: &mut Vec<Output>) {
        match request {
            Request::Freeze => self.step(Event::Freeze, outputs),
            Request::Thaw => self.step(Event::Thaw, outputs),
            Request::Machine { machine, wish } => self.step(Event::Person { machine, wish }, outputs),
            Request::DeleteOrphan { server } => self.step(Event::DeleteOrphan { server }, outputs),
            Request::Start { workload, pool, needs, is_movable, count } => {
                self.start(&workload, &pool, needs, is_movable, count, outputs);
            }
            Request::Stop { workload, count } => self.stop(&workload, count as usize, outputs),
            Request::Scale { workload, pool, needs, is_movable, count } => {
                let there = self.wanted(&workload).len();
                if let Some(more) = (count as usize).checked_sub(there) {
                    let more = u32::try_from(more).unwrap_or(u32::MAX);
                    self.start(&workload, &pool, needs, is_movable, more, outputs);
                } else {
                    self.stop(&workload, there - count as usize, outputs);
                }
            }
        }
    }

    /// The instances of a workload that nobody stops yet.
    fn wanted(&self, workload: &str) -> Vec<InstanceId> {
        let of_it = self.workloads.iter().filter(|(_, of)| *of == workload).map(|(id, _)| *id);
        of_it.filter(|id| self.scaler.instance(*id).is_some_and(|row| row.doing != Doing::Stopping)).collect()
    }

    fn start(
        &mut self,
        workload: &str,
        pool: &PoolName,
        needs: Room,
        is_movable: bool,
        count: u32,
        outputs: &mut Vec<Output>,
    ) {
        let Some(place) = self.pools.iter().position(|known| known == pool) else {
            return (self.log)((self.clock)(), &format!("{workload}: there is no pool `{pool}`"));
        };
        let pool_index = PoolIndex(u16::try_from(place).unwrap_or(u16::MAX));
        if !self.scaler.fits(pool_index, needs) {
            return (self.log)((self.clock)(), &format!("{workload}: no machine of pool `{pool}` has {needs}"));
        }
        for _ in 0..count {
            let instance = self.next_instance;
            self.next_instance = InstanceId(instance.0 + 1);
            self.workloads.insert(instance, workload.to_owned());
            self.step(Event::Start { instance, pool: pool_index, needs, is_movable }, outputs);
        }
    }

    /// Stops those that cost the least to stop: which wait first, then those on the emptiest machines.
    fn stop(&mut self, workload: &str, count: usize, outputs: &mut Vec<Output>) {
        let mut instances = self.wanted(workload);
        instances.sort_by_key(|id| {
            let row = self.scaler.instance(*id);
            let machine = row.and_then(|row| row.machine).and_then(|machine| self.scaler.machine(machine));
            let rank = row.map_or(0, |row| match row.doing {
                Doing::Waiting => 0,
                Doing::Reserved => 1,
                Doing::Starting => 2,
                _ => 3,
            });
            (rank, machine.map_or(0, |machine| machine.used.slots), std::cmp::Reverse(*id))
        });
        for instance in instances.into_iter().take(count) {
            self.step(Event::Stop { instance }, outputs);
        }
    }

    /// Hands a command, whose rows are on disk, to a thread.
    fn begin(&mut self, command: &Command) {
        let events = self.events.0.clone();
        let row = |id: MachineId| self.scaler.machine(id).cloned();
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
                let (nodes, workload) = (Arc::clone(&self.nodes), self.workloads.get(&instance).cloned());
                self.visit(move || {
                    let is_running = nodes.start(&row, instance, workload.as_deref().unwrap_or_default());
                    tell(Event::Started { instance, machine, is_running });
                });
            }
            Command::Stop { instance, machine } => {
                let Some(row) = row(machine) else {
                    return tell(Event::Stopped { instance, machine, is_stopped: true });
                };
                let (nodes, workload) = (Arc::clone(&self.nodes), self.workloads.get(&instance).cloned());
                self.visit(move || {
                    let is_stopped = nodes.stop(&row, instance, workload.as_deref().unwrap_or_default());
                    tell(Event::Stopped { instance, machine, is_stopped });
                });
            }
        }
    }

    fn serve(&self, work: impl FnOnce() + Send + 'static) {
        self.to_servers.send(Box::new(work)).expect("workers live as long as the loop");
    }

    fn visit(&self, work: impl FnOnce() + Send + 'static) {
        self.to_nodes.send(Box::new(work)).expect("workers live as long as the loop");
    }
}
