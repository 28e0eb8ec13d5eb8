//! Demand, the scaler, the provider and the nodes, driven by one queue of events.
//!
//! Everything that must hold is checked against what really is, at every step:
//! against the provider's own books and against what really runs on machines.
//! A crash of the scaler may fall between any durable write and its effects,
//! and between effects and their answers; what it knows afterwards is what a
//! database would have kept.

use crate::{
    cloud::{Cloud, Create, Delete, Faults, TIME_OUT_MS},
    demand::{Arrivals, Demand},
    report::{Report, Sample},
};
use bulkhead_scale::{
    Billing, Command, Consolidation, CreateAnswer, DAY_MS, Decision, DeleteAnswer, Doing, Event, HOUR_MS, Headroom,
    Instance, InstanceId, Ledger, Limits, MINUTE_MS, Machine, MachineId, Micros, Names, Output, Pool, PoolIndex, Room,
    Rows, SECOND_MS, Scaler, ServerId, State, Time, Why,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    fmt,
};

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The most machines that may be bought; the peak of demand fills them to nine tenths.
    pub machines: u32,
    /// Instances on one machine.
    pub slots: u32,
    /// For how long there is demand. A day follows in which it ends and everything must come to rest.
    pub days: u32,
    /// The shape of demand.
    pub demand: Demand,
    /// How long an instance lives, on average.
    pub lifetime_ms: u64,
    /// How the provider misbehaves.
    pub faults: Faults,
    /// Crashes of the scaler a day, on average.
    pub crashes_a_day: u32,
    /// How machines are billed.
    pub billing: Billing,
    /// What one costs an hour.
    pub price: Micros,
    /// What is kept free.
    pub headroom: Headroom,
    /// After how long an empty machine goes.
    pub idle_ms: u64,
    /// Machines that are asked for in any ten minutes.
    pub creations: u32,
    /// Whether instances are moved together, one machine in ten minutes, where it is less than half full.
    pub consolidates: bool,
    /// Chance.
    pub seed: u64,
    /// Whether decisions are told as they are taken.
    pub is_told: bool,
    /// Ends demand after so many requests to create, if that comes first.
    pub creates_max: Option<u64>,
}

impl Setup {
    /// A pool of so many machines for so many days, and all else as it comes.
    #[must_use]
    pub fn new(machines: u32, days: u32, seed: u64) -> Self {
        Self {
            machines,
            slots: 23,
            days,
            demand: Demand::Daily,
            lifetime_ms: DAY_MS,
            faults: Faults::USUAL,
            crashes_a_day: 0,
            billing: Billing::DIGITALOCEAN,
            price: Micros(35_710),
            headroom: Headroom::Slots(0),
            idle_ms: 10 * MINUTE_MS,
            creations: machines.max(20),
            consolidates: false,
            seed,
            is_told: false,
            creates_max: None,
        }
    }
}

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at {at}, after {steps} steps: {what}")]
pub struct Violation {
    /// When.
    pub at: Time,
    /// After how many events.
    pub steps: u64,
    /// What.
    pub what: String,
}

#[derive(Debug)]
enum What {
    /// For the scaler, from its life of that number: what was under way is lost with it.
    Tell(u32, Event),
    /// Wakes it, if nothing was told since.
    Wake(u64),
    Arrival,
    Departure(InstanceId),
    /// An instance begins to run, or ends.
    Runs(InstanceId, MachineId, ServerId),
    Ends(InstanceId, MachineId, ServerId),
    Trace(usize),
    Crash,
    Sample,
    DemandEnds,
}

struct Queued {
    at: Reverse<(Time, u64)>,
    what: What,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// What a database holds: rows, as they were last written.
#[derive(Debug, Default)]
struct Database {
    machines: BTreeMap<MachineId, Machine>,
    instances: BTreeMap<InstanceId, Instance>,
    ledger: Option<Ledger>,
    next: MachineId,
}

/// The pool's only place in the list.
const POOL: PoolIndex = PoolIndex(0);
/// Where simulated time begins: 2026-03-01.
const BEGIN: Time = Time(1_772_323_200_000);
/// How long everything has to come to rest: the latest resurrection and its deletion, and headroom that looks back on
/// slow boots.
const REST_MS: u64 = DAY_MS;
/// Samples of one run.
const SAMPLES: u64 = 1_000;

/// A run.
struct World {
    setup: Setup,
    rng: fastrand::Rng,
    now: Time,
    end: Time,
    steps: u64,
    serial: u64,
    queue: BinaryHeap<Queued>,
    cloud: Cloud,
    scaler: Scaler,
    names: Names,
    limits: Limits,
    pools: Vec<Pool>,
    life: u32,
    woken: u64,
    out: Output,
    database: Database,
    arrivals: Option<Arrivals>,
    has_demand: bool,
    next_instance: u64,
    wanted: usize,
    live: BTreeSet<InstanceId>,
    /// What really runs, by server.
    running: HashMap<ServerId, Vec<InstanceId>>,
    asked: HashMap<InstanceId, Time>,
    broken: Option<String>,
    report: Report,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("now", &self.now).field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// Runs a simulation to its end.
///
/// # Errors
/// The first thing that did not hold.
pub fn run(setup: &Setup) -> Result<Report, Violation> {
    World::new(setup.clone()).run()
}

impl World {
    fn new(setup: Setup) -> Self {
        let names = Names { fleet: "sim".parse().expect("a name"), token: "t0".into() };
        let mut pool = Pool::new("kernels".parse().expect("a name"), setup.slots, setup.price, setup.billing);
        pool.caps.machines = Some(setup.machines);
        pool.caps.per_hour = Some(setup.price.times(u64::from(setup.machines)));
        pool.headroom = setup.headroom;
        pool.idle_ms = setup.idle_ms;
        let consolidation = Consolidation { below_percent: 50, every_ms: 10 * MINUTE_MS };
        pool.consolidation = setup.consolidates.then_some(consolidation);
        let limits = Limits { creations: setup.creations, ..Limits::default() };
        let pools = vec![pool];
        let end = BEGIN.plus(u64::from(setup.days) * DAY_MS);
        let peak = setup.machines * setup.slots * 9 / 10;
        let arrivals = match setup.demand {
            Demand::Trace(_) => None,
            _ => Some(Arrivals::new(setup.demand.clone(), peak, setup.lifetime_ms, BEGIN)),
        };
        Self {
            rng: fastrand::Rng::with_seed(setup.seed),
            now: BEGIN,
            end,
            steps: 0,
            serial: 0,
            queue: BinaryHeap::new(),
            cloud: Cloud::new(setup.faults, setup.price, setup.billing, setup.seed ^ 0x5eed),
            scaler: Scaler::new(names.clone(), limits, pools.clone(), BEGIN),
            names,
            limits,
            pools,
            life: 0,
            woken: 0,
            out: Output::default(),
            database: Database::default(),
            arrivals,
            has_demand: true,
            next_instance: 0,
            wanted: 0,
            live: BTreeSet::new(),
            running: HashMap::new(),
            asked: HashMap::new(),
            broken: None,
            report: Report::new(&setup, BEGIN),
            setup,
        }
    }

    fn run(mut self) -> Result<Report, Violation> {
        match &self.setup.demand {
            Demand::Trace(points) => {
                for index in 0..points.len() {
                    self.at(self.trace_time(index), What::Trace(index));
                }
            }
            _ => self.at(self.now, What::Arrival),
        }
        self.at(self.end, What::DemandEnds);
        self.at(self.now, What::Sample);
        self.at(self.now, What::Wake(0));
        if self.setup.crashes_a_day > 0 {
            self.next_crash();
        }
        let last = self.end.plus(REST_MS);
        while let Some(Queued { at: Reverse((time, _)), what }) = self.queue.pop() {
            if time > last {
                break;
            }
            self.now = time;
            self.steps += 1;
            self.handle(what)?;
        }
        self.now = last;
        self.at_rest()?;
        let made = self.cloud.made;
        let bill = self.cloud.bill(self.now);
        Ok(self.report.finish(self.steps, made, self.cloud.asked, bill, self.life))
    }

    fn trace_time(&self, index: usize) -> Time {
        let Demand::Trace(points) = &self.setup.demand else { return self.now };
        BEGIN.plus(points[index].0.0)
    }

    fn at(&mut self, time: Time, what: What) {
        self.serial += 1;
        self.queue.push(Queued { at: Reverse((time, self.serial)), what });
    }

    fn tell_at(&mut self, time: Time, event: Event) {
        self.at(time, What::Tell(self.life, event));
    }

    fn next_crash(&mut self) {
        let mean = DAY_MS / u64::from(self.setup.crashes_a_day);
        let time = self.now.plus(self.rng.u64(1..2 * mean));
        if time < self.end {
            self.at(time, What::Crash);
        }
    }

    fn violated(&self, what: impl Into<String>) -> Violation {
        Violation { at: self.now, steps: self.steps, what: what.into() }
    }

    fn handle(&mut self, what: What) -> Result<(), Violation> {
        match what {
            What::Tell(life, event) if life == self.life => self.tell(event),
            What::Tell(..) => Ok(()),
            What::Wake(serial) if serial == self.woken => self.tell(Event::Tick),
            What::Wake(_) => Ok(()),
            What::Arrival => {
                if self.has_demand {
                    self.arrive()?;
                    let mut arrivals = self.arrivals.take().expect("there are arrivals where one came");
                    let next = arrivals.next(self.now, self.live.len(), &mut self.rng);
                    self.arrivals = Some(arrivals);
                    self.at(next, What::Arrival);
                }
                Ok(())
            }
            What::Departure(id) => self.depart(id),
            What::Runs(id, machine, server) => self.runs(id, machine, server),
            What::Ends(id, machine, server) => {
                if let Some(running) = self.running.get_mut(&server) {
                    running.retain(|other| *other != id);
                }
                let answer = Event::Stopped { instance: id, machine, is_stopped: true };
                self.tell(answer)
            }
            What::Trace(index) => {
                let Demand::Trace(points) = &self.setup.demand else { return Ok(()) };
                let wanted = points[index].1 as usize;
                while self.has_demand && self.live.len() < wanted {
                    self.arrive()?;
                }
                while self.live.len() > wanted {
                    let newest = *self.live.last().expect("one more than wanted is one");
                    self.depart(newest)?;
                }
                Ok(())
            }
            What::Crash => {
                // With nothing under way: what is under way is lost in `carry_out`, more often.
                self.crash();
                self.next_crash();
                Ok(())
            }
            What::Sample => {
                self.sample();
                let every = (self.end.since(BEGIN) + REST_MS) / SAMPLES;
                self.at(self.now.plus(every.max(SECOND_MS)), What::Sample);
                Ok(())
            }
            What::DemandEnds => self.end_demand(),
        }
    }

    fn end_demand(&mut self) -> Result<(), Violation> {
        if !self.has_demand {
            return Ok(());
        }
        self.has_demand = false;
        self.end = self.now;
        self.cloud.behave();
        for id in self.live.clone() {
            // Not all at once: a pool that empties slowly must come to rest too.
            let time = self.now.plus(self.rng.u64(0..2 * HOUR_MS));
            self.at(time, What::Departure(id));
        }
        Ok(())
    }

    fn arrive(&mut self) -> Result<(), Violation> {
        let id = InstanceId(self.next_instance);
        self.next_instance += 1;
        self.live.insert(id);
        self.wanted += 1;
        self.report.wanted(self.now, self.wanted);
        self.asked.insert(id, self.now);
        if let Some(arrivals) = &self.arrivals {
            let ends = self.now.plus(arrivals.lifetime(&mut self.rng));
            self.at(ends, What::Departure(id));
        }
        self.tell(Event::Start { instance: id, pool: POOL, needs: Room::slots(1), is_movable: true })
    }

    fn depart(&mut self, id: InstanceId) -> Result<(), Violation> {
        if !self.live.remove(&id) {
            return Ok(());
        }
        self.wanted -= 1;
        self.report.wanted(self.now, self.wanted);
        self.asked.remove(&id);
        self.tell(Event::Stop { instance: id })
    }

    /// Tells the scaler, writes down what it wants written, and does what it wants done.
    fn tell(&mut self, event: Event) -> Result<(), Violation> {
        let was_started = match event {
            Event::Started { instance, is_running: true, .. } => Some(instance),
            _ => None,
        };
        let mut out = std::mem::take(&mut self.out);
        self.scaler.step(event, self.now, &mut out);
        if let Some(id) = was_started
            && let Some(asked) = self.asked.remove(&id)
        {
            self.report.waited(self.now.since(asked));
        }
        let keeps = self.setup.crashes_a_day > 0;
        if keeps {
            self.write(&out);
        }
        self.check_decisions(&out)?;
        // Between the write and its effects, or between effects and answers: one step in some hundred, where there
        // are crashes at all, while something is under way.
        let dies = keeps && self.has_demand && !out.commands.is_empty() && self.rng.u32(0..400) == 0;
        let done = if dies { self.rng.usize(0..=out.commands.len()) } else { out.commands.len() };
        for index in 0..done {
            let command = out.commands[index].clone();
            self.carry_out(&command);
        }
        self.out = out;
        if dies {
            self.crash();
        }
        self.check()?;
        let next = self.scaler.next_wake().max(self.now.plus(1));
        self.woken = self.serial + 1;
        self.at(next, What::Wake(self.woken));
        Ok(())
    }

    fn write(&mut self, out: &Output) {
        for id in &out.machines {
            match self.scaler.machine(*id) {
                Some(row) => drop(self.database.machines.insert(*id, row.clone())),
                None => drop(self.database.machines.remove(id)),
            }
        }
        for id in &out.instances {
            match self.scaler.instance(*id) {
                Some(row) => drop(self.database.instances.insert(*id, row.clone())),
                None => drop(self.database.instances.remove(id)),
            }
        }
        self.database.next = self.scaler.next_machine();
        self.database.ledger = self.scaler.pool(POOL).map(|pool| pool.ledger);
    }

    /// What is in memory is lost, and so is every answer under way. It is back after a while.
    fn crash(&mut self) {
        self.life += 1;
        self.out = Output::default();
        let back = self.now.plus(self.rng.u64(SECOND_MS..MINUTE_MS));
        // Whatever is told it before, it knows already how it stood.
        let rows = Rows {
            machines: self.database.machines.values().cloned().collect(),
            instances: self.database.instances.values().cloned().collect(),
            ledgers: self.database.ledger.map(|ledger| (POOL, ledger)).into_iter().collect(),
            next_machine: self.database.next,
            is_frozen: false,
        };
        self.scaler = Scaler::restore(self.names.clone(), self.limits, self.pools.clone(), rows, self.now);
        self.tell_at(back, Event::Tick);
    }

    fn carry_out(&mut self, command: &Command) {
        let now = self.now;
        let soon = now.plus(self.rng.u64(200..2_000));
        match *command {
            Command::Create { machine } => {
                let Some(row) = self.scaler.machine(machine) else { return };
                let name = row.name.clone();
                let (at, answer) = match self.cloud.create(&name, now) {
                    Create::Made(server) => (soon, CreateAnswer::Made(server)),
                    Create::Nothing => (now.plus(TIME_OUT_MS), CreateAnswer::Unclear),
                    Create::Refused => (soon, CreateAnswer::Refused),
                    Create::Quota => (soon, CreateAnswer::Quota),
                    Create::TooMany { retry_after_ms } => (soon, CreateAnswer::RateLimited { retry_after_ms }),
                };
                self.tell_at(at, Event::Created { machine, answer });
            }
            Command::List => {
                let pages = self.cloud.alive().div_ceil(200) as u64;
                let at = now.plus(500 + pages * 300);
                match self.cloud.list(now) {
                    Some(servers) => self.tell_at(at, Event::Listed { asked: now, servers }),
                    None => self.tell_at(at, Event::ListFailed),
                }
            }
            Command::Join { machine, server } => {
                let Some(usable) = self.cloud.real(server, now).and_then(|real| real.usable) else { return };
                let reached = usable.max(soon);
                self.tell_at(reached, Event::Reached { machine, server });
                let joined = reached.plus(self.rng.u64(8_000..20_000));
                self.tell_at(joined, Event::Joined { machine, server });
            }
            Command::Confirm { machine } => {
                let server = self.scaler.machine(machine).and_then(|row| row.server);
                let real = server.filter(|server| self.cloud.real(*server, now).is_some());
                let count = real.map(|server| self.running.get(&server).map_or(0, Vec::len));
                let running = count.and_then(|count| u32::try_from(count).ok());
                self.tell_at(soon, Event::Confirmed { machine, running });
            }
            Command::Delete { machine, server } => {
                let Some(row) = self.scaler.machine(machine) else { return };
                let exists = self.cloud.real(server, now).is_some();
                if let Some(running) = self.running.get(&server).filter(|running| exists && !running.is_empty()) {
                    self.broken = Some(format!("server {server} is deleted with {} instances", running.len()));
                }
                let answer = match self.cloud.get(server, now) {
                    None => DeleteAnswer::Absent,
                    Some(real) if real.name != row.name => DeleteAnswer::Renamed,
                    Some(_) => match self.cloud.delete(server, now) {
                        Delete::Accepted => DeleteAnswer::Accepted,
                        Delete::Absent => DeleteAnswer::Absent,
                        Delete::Pending => DeleteAnswer::Busy,
                        Delete::Nothing => DeleteAnswer::Unclear,
                        Delete::TooMany { retry_after_ms } => DeleteAnswer::RateLimited { retry_after_ms },
                    },
                };
                let at = if answer == DeleteAnswer::Unclear { now.plus(TIME_OUT_MS) } else { soon };
                self.tell_at(at, Event::Deleted { machine, answer });
            }
            Command::Start { instance, machine } => match self.scaler.machine(machine).and_then(|row| row.server) {
                Some(server) => self.at(soon, What::Runs(instance, machine, server)),
                None => self.tell_at(soon, Event::Started { instance, machine, is_running: false }),
            },
            Command::Stop { instance, machine } => match self.scaler.machine(machine).and_then(|row| row.server) {
                Some(server) => self.at(soon, What::Ends(instance, machine, server)),
                None => self.tell_at(soon, Event::Stopped { instance, machine, is_stopped: true }),
            },
        }
    }

    fn runs(&mut self, id: InstanceId, machine: MachineId, server: ServerId) -> Result<(), Violation> {
        let is_running = self.cloud.real(server, self.now).is_some();
        // An order that came after the one that stops it is refused by its node: its counter is behind.
        let is_wanted = self.scaler.instance(id).is_some_and(|row| {
            row.doing != Doing::Stopping && (row.machine == Some(machine) || row.to == Some(machine))
        });
        if is_running && is_wanted {
            let running = self.running.entry(server).or_default();
            if !running.contains(&id) {
                running.push(id);
            }
            let count = running.len();
            if count > self.setup.slots as usize {
                return Err(self.violated(format!("{count} instances run on server {server}")));
            }
        }
        self.tell(Event::Started { instance: id, machine, is_running })
    }

    /// Nothing is bought while there is room.
    fn check_decisions(&mut self, out: &Output) -> Result<(), Violation> {
        for decision in &out.decisions {
            if self.setup.is_told {
                #[expect(clippy::print_stderr, reason = "it was asked for")]
                {
                    eprintln!("{} {decision}", self.now);
                }
            }
            self.report.decided(decision);
            if let Decision::Buy { machine, why: Why::Instance(_), free_slots } = decision
                && *free_slots > 0
            {
                return Err(self.violated(format!("machine {} was bought with {free_slots} slots free", machine.0)));
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), Violation> {
        if let Some(what) = self.broken.take() {
            return Err(self.violated(what));
        }
        self.cloud.settle(self.now);
        let counted = self.cloud.alive() - self.cloud.undead();
        if counted > self.setup.machines as usize {
            let rows = self.scaler.machines().filter(|row| row.state != State::Gone).map(|row| {
                format!("\n  row {} {} server {:?}, {} in doubt", row.id.0, row.state, row.server, row.attempts.len())
            });
            let real = self.cloud.existing(self.now).map(|real| format!("\n  server {} {}", real.id, real.name));
            let detail: String = real.chain(rows).collect();
            let most = self.setup.machines;
            return Err(self.violated(format!("{counted} machines exist, of {most} at most{detail}")));
        }
        if self.cloud.asked >= self.setup.creates_max.unwrap_or(u64::MAX) {
            self.end_demand()?;
        }
        Ok(())
    }

    fn sample(&mut self) {
        let (mut waiting, mut coming) = (0, 0);
        if let Some(pool) = self.scaler.pool(POOL) {
            (waiting, coming) = (pool.waiting, pool.coming);
        }
        self.cloud.settle(self.now);
        let sample = Sample {
            at_s: self.now.since(BEGIN) / SECOND_MS,
            wanted: self.wanted,
            machines: self.cloud.alive(),
            coming,
            waiting,
            spent: self.cloud.bill(self.now),
        };
        self.report.sample(sample);
    }

    /// Demand has ended, faults have stopped, and time has passed: nothing is left over, nothing is forgotten.
    fn at_rest(&mut self) -> Result<(), Violation> {
        self.cloud.settle(self.now);
        if let Some(instance) = self.scaler.instances().next() {
            return Err(self.violated(format!("instance {} is still {}", instance.id.0, instance.doing)));
        }
        let left: Vec<String> = self
            .cloud
            .existing(self.now)
            .map(|real| {
                let row = self.scaler.machines().find(|row| row.server == Some(real.id));
                format!(
                    "server {} ({}), {}",
                    real.id,
                    real.name,
                    row.map_or("on no record".into(), |row| row.state.to_string())
                )
            })
            .collect();
        let headroom = self.scaler.pool(POOL).map_or(0, |pool| pool.headroom);
        let kept = headroom.div_ceil(self.setup.slots);
        if left.len() > kept as usize {
            return Err(self.violated(format!("{} machines are left: {}", left.len(), left.join("; "))));
        }
        let rows = self.scaler.machines().filter(|row| row.state != State::Gone).count();
        if rows != left.len() {
            return Err(self.violated(format!("{rows} machines are on record, {} exist", left.len())));
        }
        if let Some((server, name)) = self.scaler.orphans().next() {
            return Err(self.violated(format!("{name} ({server}) is taken for an orphan")));
        }
        Ok(())
    }
}
