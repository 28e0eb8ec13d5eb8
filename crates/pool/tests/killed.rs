//! The loop is killed, again and again, at any moment, while it buys and gives back machines of a fake of DigitalOcean's
//! API that misbehaves. In the end nothing is left over, and nothing was forgotten.
//!
//! This program is both sides: the test, and the loop that it kills (`CHILD`). `CREATES=1000` kills for longer.

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "it is a test with its own `main`")]

use bulkhead_core::{FleetName, PoolName};
use bulkhead_fake_do::{Fake, Faults, Options};
use bulkhead_pool::{Clock, Database, Means, Nodes, Provided, Request, Runner, Start, View, ask, decisions};
use bulkhead_provider::{DigitalOcean, Image, Settings, Token, UserData, Wanted};
use bulkhead_scale::{Billing, Caps, InstanceId, Limits, Machine, Micros, Pool, Room, SECOND_MS, State, Time};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// So many seconds pass here in each real one: a boot takes a fifth of one.
const SPEED: u32 = 240;
/// Requests to create after which no more are provoked.
const CREATES: u64 = 60;
const SLOTS: u32 = 3;
const MACHINES: u32 = 12;
/// How long everything may take to come to rest: deletions that are undone come back within hours of the fake's clock.
const PATIENCE: Duration = Duration::from_secs(600);

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Machines that are folders: what runs on one is a file each.
struct Folders(PathBuf);

impl Folders {
    fn of(&self, machine: &Machine) -> PathBuf {
        self.0.join(machine.server.map_or_else(String::new, |server| server.to_string()))
    }
}

impl Nodes for Folders {
    fn join(&self, machine: &Machine, reached: &mut dyn FnMut(), is_wanted: &dyn Fn() -> bool) -> bool {
        thread::sleep(Duration::from_millis(300));
        reached();
        thread::sleep(Duration::from_millis(100));
        is_wanted() && fs::create_dir_all(self.of(machine)).is_ok()
    }

    fn running(&self, machine: &Machine) -> Option<u32> {
        let entries = fs::read_dir(self.of(machine)).ok()?;
        u32::try_from(entries.count()).ok()
    }

    fn start(&self, machine: &Machine, instance: InstanceId, workload: &str) -> Start {
        let written = fs::write(self.of(machine).join(instance.0.to_string()), workload);
        if written.is_ok() { Start::Running } else { Start::Failed }
    }

    fn stop(&self, machine: &Machine, instance: InstanceId, _: &str) -> bool {
        match fs::remove_file(self.of(machine).join(instance.0.to_string())) {
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            Ok(()) => true,
        }
    }
}

fn pool_name() -> PoolName {
    "kernels".parse().unwrap()
}

fn open(folder: &Path, url: &str, began_ms: u64) -> Runner {
    let fleet: FleetName = "acme".parse().unwrap();
    let mut pool = Pool::new(pool_name(), SLOTS, Micros(8_930), Billing::DIGITALOCEAN);
    pool.caps = Caps { machines: Some(MACHINES), ..Caps::default() };
    pool.idle_ms = 20 * SECOND_MS;
    let limits = Limits { creations: 10_000, ..Limits::default() };
    let settings =
        Settings { timeout: Duration::from_millis(500), ..Settings::new(url, Token::new("secret").unwrap()) };
    let wanted = Wanted {
        name: "".into(),
        user_data: UserData::default(),
        ssh_keys: vec![],
        region: "fra1".into(),
        size: "s-1vcpu-1gb".into(),
        image: Image::Slug("debian-13-x64".into()),
        network: None,
        tags: vec!["bulkhead".into()],
    };
    let provider = Arc::new(DigitalOcean::new(settings, &fleet).unwrap());
    let clock: Clock = Arc::new(move || Time(began_ms + (unix_ms() - began_ms) * u64::from(SPEED)));
    let quiet = env::var_os("LOUD").is_none();
    let means = Means {
        servers: Arc::new(Provided::new(
            provider,
            BTreeMap::from([(pool_name(), wanted)]),
            Box::new(move |line| {
                if !quiet {
                    eprintln!("  {line}")
                }
            }),
        )),
        nodes: Arc::new(Folders(folder.join("machines"))),
        clock,
        log: Box::new(move |at, line| {
            if !quiet {
                eprintln!("{at} {line}")
            }
        }),
        told: mpsc::channel().1,
    };
    let database = Database::open(&folder.join("pool.db")).unwrap();
    Runner::new(database, fleet, limits, vec![pool], means).unwrap()
}

fn child(folder: &Path, url: &str, began_ms: u64) {
    open(folder, url, began_ms).run(&AtomicBool::new(false)).unwrap();
}

/// What the loop knows, and what it decided last.
fn known(path: &Path) -> String {
    let view = View::read(path).unwrap().unwrap();
    let rows = view.rows.machines.iter().filter(|row| row.state != State::Gone).collect::<Vec<_>>();
    let told = decisions(path, 0, 60).unwrap();
    let told: Vec<String> = told.iter().map(|told| format!("{} {}", told.at, told.text)).collect();
    let frozen = view.rows.is_frozen;
    format!("{rows:#?}, frozen by a person: {frozen}, orphans: {:?}, decided:\n{}", view.orphans, told.join("\n"))
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Ok(folder) = env::var("CHILD") {
        let began_ms = env::var("BEGAN").unwrap().parse().unwrap();
        return child(Path::new(&folder), &env::var("URL").unwrap(), began_ms);
    }
    // `cargo test -- --list` and filters, as other tests have them.
    if arguments.iter().any(|argument| argument == "--list") {
        return println!("killed_at_any_moment: test");
    }
    if arguments.iter().skip(1).any(|argument| !argument.starts_with('-') && !"killed_at_any_moment".contains(argument))
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let began_ms = unix_ms();
    let faults = Faults { late_commit: 0, ..Faults::USUAL };
    let fake = Fake::start(Options { faults, quota: 100, speed: SPEED, seed: 7, ..Options::default() }).unwrap();
    let spawn = || {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("CHILD", folder.path()).env("URL", fake.url()).env("BEGAN", began_ms.to_string());
        Killed(command.stdin(Stdio::null()).spawn().unwrap())
    };
    let path = folder.path().join("pool.db");
    drop(Database::open(&path).unwrap());
    let mut rng = fastrand::Rng::with_seed(7);
    let scale = |count: u32| {
        let request = Request::Scale {
            workload: "app/kernel".into(),
            pool: pool_name(),
            needs: Room::slots(1),
            is_movable: true,
            count,
        };
        ask(&path, &request).unwrap();
    };
    let began = Instant::now();
    let enough = env::var("CREATES").map_or(CREATES, |text| text.parse().unwrap());
    let within = Duration::from_secs(300 + 3 * enough);
    let (mut kills, mut creates) = (0, 0);
    while creates < enough {
        assert!(began.elapsed() < within, "{creates} requests to create in {:?}", began.elapsed());
        let life = spawn();
        let ends = Instant::now() + Duration::from_millis(rng.u64(20..3_000));
        while Instant::now() < ends {
            scale(rng.u32(0..=MACHINES * SLOTS));
            thread::sleep((ends - Instant::now()).min(Duration::from_millis(300)));
        }
        drop(life);
        kills += 1;
        creates = fake.creates();
        let there = fake.existing().len();
        assert!(there <= MACHINES as usize + fake.undone().0, "{there} machines");
    }
    // Nothing is wanted any more, nothing misbehaves, nobody kills.
    scale(0);
    fake.set_faults(Faults::NONE);
    let life = spawn();
    let began_rest = Instant::now();
    loop {
        thread::sleep(Duration::from_millis(500));
        if fake.existing().is_empty() && fake.undone() == (0, 0) {
            break;
        }
        assert!(began_rest.elapsed() < PATIENCE, "left over: {:?}; known: {}", fake.existing(), known(&path));
    }
    // What it knows agrees, once it has seen that nothing is there.
    thread::sleep(Duration::from_secs(10));
    drop(life);
    let runner = open(folder.path(), fake.url(), began_ms);
    let rows: Vec<&Machine> = runner.scaler().machines().filter(|row| row.state != State::Gone).collect();
    assert!(rows.is_empty(), "on record, and not there: {rows:?}");
    assert_eq!(runner.scaler().instances().count(), 0);
    assert_eq!(runner.scaler().orphans().count(), 0);
    assert_eq!(fake.deletes_by_tag(), 0);
    println!("test killed_at_any_moment ... ok ({kills} kills, {creates} requests to create, {:?})", began.elapsed());
}
