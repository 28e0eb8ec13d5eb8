//! How long it takes from somebody's asking until the provider is asked, and what a decision costs, with so many machines
//! on record, all full. `cargo run --release -p bulkhead-pool --example demand -- 100 1000 10000`.
//!
//! Everything is as in earnest (the file, its syncs, the request through the file, the threads) but the provider and the
//! nodes, which answer at once.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "it is a measurement for whoever runs it")]

use bulkhead_core::{FleetName, PoolName};
use bulkhead_pool::{Database, Means, Nodes, Request, Runner, Servers, Start, Written, ask, system_clock};
use bulkhead_scale::{
    Billing, CreateAnswer, DeleteAnswer, Doing, Event, Instance, InstanceId, Limits, Machine, MachineId, Micros, Names,
    Output, Pool, PoolIndex, Room, Rows, Scaler, Server, ServerId, State, Time,
};
use std::{
    env, fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const SLOTS: u32 = 23;
/// Of each figure the median of so many.
const TRIES: usize = 11;

fn pool_name() -> PoolName {
    "kernels".parse().unwrap()
}

fn pool() -> Pool {
    let mut pool = Pool::new(pool_name(), SLOTS, Micros(8_930), Billing::DIGITALOCEAN);
    pool.idle_ms = u64::MAX / 4;
    pool
}

fn machine(names: &Names, id: u64, now: Time) -> Machine {
    Machine {
        id: MachineId(id),
        name: names.of(&pool_name(), MachineId(id)),
        pool: PoolIndex(0),
        state: State::Ready,
        since: now,
        cause: None,
        planned: now,
        asked: Some(now),
        server: Some(ServerId(1000 + id)),
        known: Some(now),
        attempts: vec![],
        used: Room::slots(SLOTS),
        empty_since: None,
        instances: (0..u64::from(SLOTS)).map(|slot| InstanceId(id * u64::from(SLOTS) + slot)).collect(),
        not_before: Time(0),
        failures: 0,
        silent_since: None,
        absent_since: None,
        deleted: None,
    }
}

fn rows(names: &Names, machines: u64, now: Time) -> Rows {
    let machines: Vec<Machine> = (0..machines).map(|id| machine(names, id, now)).collect();
    let instances = machines.iter().flat_map(|machine| {
        machine.instances.iter().map(|id| Instance {
            id: *id,
            pool: PoolIndex(0),
            needs: Room::slots(1),
            is_movable: false,
            doing: Doing::Running,
            since: now,
            asked: now,
            machine: Some(machine.id),
            to: None,
            failures: 0,
            not_before: Time(0),
        })
    });
    let instances = instances.collect();
    let next_machine = MachineId(machines.len() as u64);
    Rows { machines, instances, ledgers: vec![], next_machine, is_frozen: false }
}

/// A provider that has all of them, takes note of when it is asked for one more, and refuses.
struct Asked {
    list: Vec<Server>,
    told: Mutex<mpsc::Sender<Instant>>,
}

impl Servers for Asked {
    fn create(&self, _: &PoolName, _: &str) -> CreateAnswer {
        self.told.lock().unwrap().send(Instant::now()).ok();
        CreateAnswer::RateLimited { retry_after_ms: 100 }
    }

    fn list(&self) -> Option<Vec<Server>> {
        Some(self.list.clone())
    }

    fn delete(&self, _: ServerId, _: &str) -> DeleteAnswer {
        DeleteAnswer::Forbidden
    }
}

struct Quiet;

impl Nodes for Quiet {
    fn join(&self, _: &Machine, _: &mut dyn FnMut(), _: &dyn Fn() -> bool) -> bool {
        false
    }

    fn running(&self, _: &Machine) -> Option<u32> {
        Some(SLOTS)
    }

    fn start(&self, _: &Machine, _: InstanceId, _: &str) -> Start {
        Start::Running
    }

    fn stop(&self, _: &Machine, _: InstanceId, _: &str) -> bool {
        true
    }
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

/// One instance more goes to a free slot of one machine among so many, and away again.
fn placement(names: &Names, machines: u64, now: Time) -> Duration {
    let mut rows = rows(names, machines, now);
    // One slot is free, on one machine in the middle.
    let middle = rows.machines.len() / 2;
    let free = rows.machines[middle].instances.pop().unwrap();
    rows.machines[middle].used = Room::slots(SLOTS - 1);
    rows.instances.retain(|instance| instance.id != free);
    let mut scaler = Scaler::restore(names.clone(), Limits::default(), vec![pool()], rows, now);
    let mut output = Output::default();
    scaler.step(Event::Tick, now, &mut output);
    let next = machines * u64::from(SLOTS) + 1;
    let rounds = 100_000;
    let began = Instant::now();
    for round in 0..rounds {
        let instance = InstanceId(next + round);
        output.clear();
        scaler.step(
            Event::Start { instance, pool: PoolIndex(0), needs: Room::slots(1), is_movable: false },
            now,
            &mut output,
        );
        let machine = scaler.instance(instance).and_then(|row| row.machine).unwrap();
        scaler.step(Event::Started { instance, machine, is_running: true }, now, &mut output);
        scaler.step(Event::Stop { instance }, now, &mut output);
        scaler.step(Event::Stopped { instance, machine, is_stopped: true }, now, &mut output);
    }
    began.elapsed() / u32::try_from(rounds * 4).unwrap()
}

fn measure(machines: u64, folder: &Path) {
    let path = folder.join("pool.sqlite");
    let fleet: FleetName = "acme".parse().unwrap();
    let now = system_clock()();
    let mut database = Database::open(&path).unwrap();
    let names = Names { fleet: fleet.clone(), token: database.token().unwrap() };
    database.pools(vec![pool()]).unwrap();
    let rows = rows(&names, machines, now);
    let output = Output {
        machines: rows.machines.iter().map(|row| row.id).collect(),
        instances: rows.instances.iter().map(|row| row.id).collect(),
        ..Output::default()
    };
    let next_instance = InstanceId(rows.instances.len() as u64);
    let list = rows.machines.iter().map(|row| Server { id: row.server.unwrap(), name: row.name.clone(), created: now });
    let list: Vec<Server> = list.collect();
    let scaler = Scaler::restore(names.clone(), Limits::default(), vec![pool()], rows, now);
    let written = Written {
        outputs: &[output],
        notes: &[],
        workload: &|_| "app/kernel",
        next_instance,
        now,
        requests_done: None,
    };
    database.write(&scaler, &written).unwrap();
    drop(database);

    let began = Instant::now();
    let (told, heard) = mpsc::channel();
    let means = Means {
        servers: Arc::new(Asked { list, told: Mutex::new(told) }),
        nodes: Arc::new(Quiet),
        clock: system_clock(),
        log: Box::new(|_, _| {}),
        told: mpsc::channel().1,
    };
    let limits = Limits { creations: 1_000_000, ..Limits::default() };
    let database = Database::open(&path).unwrap();
    let mut runner = Runner::new(database, fleet, limits, vec![pool()], means).unwrap();
    let restored = began.elapsed();
    let ends = Arc::new(AtomicBool::new(false));
    let for_loop = Arc::clone(&ends);
    let running = thread::spawn(move || runner.run(&for_loop).unwrap());
    thread::sleep(Duration::from_secs(1));
    let mut took = Vec::new();
    for _ in 0..TRIES {
        // What was refused before is asked for again; only what comes after the question counts.
        while heard.try_recv().is_ok() {}
        let asked = Instant::now();
        let (pool, needs) = (pool_name(), Room::slots(1));
        let workload = "app/kernel".to_owned();
        ask(&path, &Request::Start { workload: workload.clone(), pool, needs, is_movable: false, count: SLOTS })
            .unwrap();
        took.push(heard.recv_timeout(Duration::from_secs(60)).unwrap() - asked);
        ask(&path, &Request::Stop { workload, pool: None, count: SLOTS }).unwrap();
        thread::sleep(Duration::from_millis(700));
    }
    ends.store(true, Ordering::Relaxed);
    running.join().unwrap();
    let size = fs::metadata(&path).unwrap().len();
    println!(
        "{machines:>8} machines {:>9} instances   a step {:>7.2} µs   asked to provider {:>6.0} ms   taken up in {:>6.2} s   {:>5} MB on disk",
        machines * u64::from(SLOTS),
        placement(&names, machines, now).as_secs_f64() * 1e6,
        median(took).as_secs_f64() * 1e3,
        restored.as_secs_f64(),
        size >> 20
    );
}

fn main() {
    let sizes: Vec<u64> = env::args().skip(1).map(|text| text.parse().unwrap()).collect();
    for machines in if sizes.is_empty() { vec![100, 1_000, 10_000] } else { sizes } {
        let folder = env::temp_dir().join(format!("bulkhead-demand-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        measure(machines, &folder);
        fs::remove_dir_all(&folder).unwrap();
    }
}
