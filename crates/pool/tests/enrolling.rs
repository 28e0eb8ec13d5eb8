//! Machines are bought of this machine, made nodes of a pool, given instances to run, and given back; over real SSH
//! servers, with the real agent.
//!
//! Needs root, the static agent (`BULKHEAD_AGENT`) and the static test service (`BULKHEAD_TESTAPP`), or both as cargo
//! builds them.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why it skips")]

use bulkhead_core::{
    FileDigest, NodeName, PoolName, SignedText, Timestamp,
    fleet::FleetNode,
    grant::Grant,
    image::{Entry, Image, ImageConfig, Node},
    order::{Health, HealthCheck, Run, ServiceSpec},
    policy::{Demand, Environment, Key, Policy, Role, Root},
    verity,
};
use bulkhead_fleet::{
    Identities, Timeouts, bootstrap::find_agent, config::SshConfig, local::Local, memory::Memory, push::Payload,
    sign::Signer,
};
use bulkhead_pool::{
    Database, Enrolment, FleetNodes, Granted, Grants, LocalProvider, Means, NodeMeans, Nodes as _, PoolSettings,
    Provided, Request, Runner, Sealed, Servers as _, Start, ask, nodes, records, system_clock,
};
use bulkhead_provider::{Fixed, FixedMachine, Image as Boots, Provider, UserData, Wanted};
use bulkhead_scale::{
    Billing, CreateAnswer, DeleteAnswer, InstanceId, Limits, Machine, MachineId, Micros, Names, Pool, PoolIndex, Room,
    ServerId, State, Time,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Tells a process of this program which world's machine it is to make a node of.
const JOINS: &str = "BULKHEAD_TEST_JOINS";
const WORKLOAD: &str = "notes/web";
const PATIENCE: Duration = Duration::from_secs(120);

fn pool() -> PoolName {
    "kernels".parse().unwrap()
}

/// A folder with a key that may do everything, a policy, and machines.
struct World {
    folder: PathBuf,
    runtime: tokio::runtime::Runtime,
    provider: Arc<dyn Provider>,
    enrolment: Arc<Enrolment>,
}

/// What a world leaves behind, also where its test fails.
struct Cleared(tempfile::TempDir);

impl Drop for Cleared {
    fn drop(&mut self) {
        if let Err(error) = local(self.0.path()).destroy() {
            eprintln!("cannot remove the local fleet: {error}");
        }
    }
}

/// A folder with a key; `None`, after saying so, where machines cannot be booted.
fn begin(test: &str) -> Option<Cleared> {
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !is_root || env::var("BULKHEAD_TEST_NODES").is_ok_and(|value| value == "skip") {
        eprintln!("skipped {test}: it needs root, and no BULKHEAD_TEST_NODES=skip");
        return None;
    }
    let directory = tempfile::Builder::new().prefix("pool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    keygen(&["-t", "ed25519", "-N", "", "-C", "ann", "-f", directory.path().join("key").to_str().unwrap()]);
    Some(Cleared(directory))
}

fn local(folder: &Path) -> Local {
    Local::open(folder.join("state"), "shop".parse().unwrap()).unwrap()
}

fn keygen(arguments: &[&str]) {
    let status = Command::new("ssh-keygen").arg("-q").args(arguments).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{arguments:?}");
}

fn signed(folder: &Path, namespace: &str, bytes: &[u8]) -> SignedText {
    let path = folder.join(namespace);
    let signature = folder.join(format!("{namespace}.sig"));
    drop(fs::remove_file(&signature));
    fs::write(&path, bytes).unwrap();
    let key = folder.join("key");
    keygen(&["-Y", "sign", "-n", namespace, "-f", key.to_str().unwrap(), path.to_str().unwrap()]);
    SignedText {
        text: String::from_utf8(bytes.to_vec()).unwrap(),
        signatures: vec![fs::read_to_string(signature).unwrap()],
    }
}

fn policy_of(signed: SignedText) -> bulkhead_pool::ReadPolicy {
    Box::new(move || Ok((signed.clone(), 1)))
}

fn now_s() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// What a person granted: the test service, twice on a machine.
struct OneGrant(Granted);

impl Grants for OneGrant {
    fn granted(&self, of: &PoolName, workload: &str) -> Result<Granted, String> {
        if *of == pool() && workload == WORKLOAD { Ok(self.0.clone()) } else { Err("nothing is granted".into()) }
    }

    fn known(&self, of: &PoolName, workload: &str) -> Result<(Grant, Sealed), String> {
        self.granted(of, workload).map(|granted| (granted.grant, granted.secrets))
    }

    fn machines(&self, _: &PoolName) -> Result<u32, String> {
        Ok(self.0.grant.machines)
    }
}

fn testapp() -> Vec<u8> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let built = || target.join("x86_64-unknown-linux-gnu/release/testapp");
    let path = env::var_os("BULKHEAD_TESTAPP").map_or_else(built, PathBuf::from);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; build it first", path.display()))
}

impl World {
    fn open(folder: &Path) -> Self {
        let public = fs::read_to_string(folder.join("key.pub")).unwrap().trim().to_owned();
        Self {
            folder: folder.to_owned(),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            provider: Arc::new(LocalProvider::new(local(folder), &"shop".parse().unwrap())),
            enrolment: Arc::new(Enrolment::new(&folder.join("pool"), vec![public])),
        }
    }

    fn public(&self) -> String {
        fs::read_to_string(self.folder.join("key.pub")).unwrap().trim().to_owned()
    }

    fn policy(&self) -> SignedText {
        let roles = BTreeSet::from([Role::Release, Role::Courier, Role::Observe, Role::Scale]);
        let key = Key { key: self.public(), roles, verify_user: false };
        let policy = Policy {
            format: 1,
            fleet: "shop".parse().unwrap(),
            version: 1,
            root: Root { threshold: 1, keys: vec![self.public()], verify_user: false },
            keys: BTreeMap::from([("ann".parse().unwrap(), key)]),
            environments: BTreeMap::from([("staging".parse().unwrap(), Environment::accepting(Demand::release(1)))]),
            nodes: BTreeMap::new(),
            revoked: bulkhead_core::notice::Revoked::default(),
        };
        signed(&self.folder, "policy@bulkhead", &policy.to_bytes())
    }

    fn granted(&self) -> Granted {
        let bytes = testapp();
        let digest = verity::digest(&bytes);
        let file = Node::File { mode: 0o755, size_bytes: bytes.len() as u64, digest };
        // Each service needs these.
        let points = ["app", "dev", "proc", "run", "sys", "tmp", "var", "var/tmp"];
        let directory = |path: &str| Entry { path: path.into(), node: Node::Directory { mode: 0o755 } };
        let mut entries: Vec<Entry> = points.into_iter().map(directory).collect();
        entries.push(Entry { path: b"app/testapp".to_vec(), node: file });
        let config = ImageConfig { platform: "linux/amd64".into(), allowed: vec![], tools: false };
        let image = Image::new(config, entries).unwrap();
        let service = ServiceSpec {
            name: "web".parse().unwrap(),
            command: vec!["/app/testapp".into(), "idle".into()],
            workdir: "/".into(),
            env: BTreeMap::new(),
            port: None,
            health: Health { check: HealthCheck::StaysUp, within_ms: 20_000 },
            volumes: vec![],
            memory_max_bytes: None,
            tasks_max: None,
            cpu_percent: None,
            jit: false,
            drain_ms: 0,
            stop_ms: 1000,
            secrets: BTreeSet::new(),
        };
        let grant = Grant {
            format: 1,
            fleet: "shop".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            pool: pool(),
            app: "notes".parse().unwrap(),
            run: Run::new(image.id(), vec![service]),
            secrets: BTreeMap::new(),
            scratch: false,
            key: self.public(),
            machines: 3,
            instances: 2,
            issued: Timestamp(now_s()),
            not_after: Timestamp(now_s() + 3600),
        };
        let contents: HashMap<FileDigest, Vec<u8>> = HashMap::from([(digest, bytes)]);
        Granted {
            signed: signed(&self.folder, bulkhead_core::grant::NAMESPACE, &grant.to_bytes()),
            grant,
            statements: vec![],
            secrets: BTreeMap::new(),
            payload: Payload {
                document: Arc::new(image.encode()),
                image: Arc::new(image),
                contents: Arc::new(contents),
                cache: None,
                holders: None,
                options: bulkhead_store::pack::Options { level: 1, delta_level: 1, threads: 1 },
                dropped: None,
            },
        }
    }

    fn nodes(&self) -> FleetNodes {
        self.nodes_of(Arc::clone(&self.provider), None)
    }

    /// Nodes of a pool whose machines this provider has; adopted ones where any are given.
    fn nodes_of(&self, provider: Arc<dyn Provider>, adopted: Option<BTreeMap<NodeName, FleetNode>>) -> FleetNodes {
        let mut identities = Identities::new(&self.folder).with_file(self.folder.join("key"));
        identities.agent = None;
        let signer = self.runtime.block_on(Signer::find(&identities, [self.public().as_str()])).unwrap();
        let settings = PoolSettings {
            environment: "staging".parse().unwrap(),
            provider: "local".into(),
            is_adopted: adopted.is_some(),
        };
        FleetNodes::new(NodeMeans {
            fleet: "shop".parse().unwrap(),
            policy: policy_of(self.policy()),
            notices: Box::new(|| Ok(vec![])),
            identities,
            timeouts: Timeouts::default(),
            ssh: SshConfig::load(&self.folder).unwrap(),
            memory: Memory::at(self.folder.join("memory")),
            signer,
            opener: Err("nothing here has secrets".into()),
            agent: fs::read(find_agent().expect("it is built before this test runs")).unwrap().into(),
            directory: self.folder.join("pool"),
            pools: BTreeMap::from([(pool(), settings)]),
            adopted: adopted.unwrap_or_default(),
            provider,
            enrolment: Arc::clone(&self.enrolment),
            grants: Arc::new(OneGrant(self.granted())),
            runtime: self.runtime.handle().clone(),
            log: Box::new(|what| eprintln!("{what}")),
        })
        .unwrap()
    }

    fn provided(&self) -> Provided {
        Provided::new(
            Arc::clone(&self.provider),
            BTreeMap::from([(pool(), like())]),
            Box::new(|what| eprintln!("{what}")),
        )
        .enrolling(Arc::clone(&self.enrolment))
    }
}

/// What a machine of the pool is bought as.
fn like() -> Wanted {
    Wanted {
        name: "".into(),
        user_data: UserData::default(),
        ssh_keys: vec![],
        region: "here".into(),
        size: "any".into(),
        image: Boots::Slug("debian".into()),
        network: None,
        tags: vec![],
    }
}

/// A machine's row, as the loop has it while it is joined.
fn row(id: u64, server: ServerId) -> Machine {
    let names = Names { fleet: "shop".parse().unwrap(), token: "t".into() };
    let now = Time(u64::try_from(now_s()).unwrap() * 1000);
    Machine {
        id: MachineId(id),
        name: names.of(&pool(), MachineId(id)),
        pool: PoolIndex(0),
        state: State::Booting,
        since: now,
        cause: None,
        planned: now,
        asked: Some(now),
        server: Some(server),
        known: Some(now),
        attempts: vec![],
        used: Room::slots(0),
        empty_since: None,
        instances: vec![],
        not_before: now,
        failures: 0,
        silent_since: None,
        absent_since: None,
        deleted: None,
    }
}

fn bought(provided: &Provided, id: u64) -> Machine {
    let name = row(id, ServerId(0)).name;
    let CreateAnswer::Made(server) = provided.create(&pool(), &name) else { panic!("it was not made") };
    row(id, server)
}

/// A process that is killed where the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Everything that names the fleet: machines' processes, bridges, mounts.
fn traces(tag: &str) -> Vec<String> {
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
    let text = String::from_utf8_lossy(&links).into_owned() + &fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut found: Vec<String> = text.lines().filter(|line| line.contains(tag)).map(str::to_owned).collect();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        found.extend(command.contains(tag).then_some(command));
    }
    found
}

fn tag(folder: &Path) -> String {
    let state: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("state/fleet.json")).unwrap()).unwrap();
    state["tag"].as_str().unwrap().to_owned()
}

#[test]
fn machines_become_nodes_and_go() {
    if let Some(folder) = env::var_os(JOINS) {
        let world = World::open(Path::new(&folder));
        let server = world.provider.list().unwrap().into_iter().find(|seen| seen.name == row(2, ServerId(0)).name);
        world.nodes().join(&row(2, server.unwrap().id), &mut || (), &|| true);
        return;
    }
    let Some(cleared) = begin("machines_become_nodes_and_go") else { return };
    let folder = cleared.0.path().to_owned();
    let world = World::open(&folder);
    let (provided, fleet_nodes) = (world.provided(), world.nodes());

    let one = bought(&provided, 1);
    assert_eq!(bought(&provided, 1), one, "asked for again it is the same");
    let mut times_reached = 0;
    assert!(fleet_nodes.join(&one, &mut || times_reached += 1, &|| true));
    assert!(fleet_nodes.join(&one, &mut || times_reached += 1, &|| true), "it is a node already");
    assert_eq!(times_reached, 2);
    assert_eq!(fleet_nodes.running(&one), Some(0));
    assert!(world.enrolment.key(&one.name).unwrap().is_none(), "the key was for once");
    let known = nodes(&folder.join("pool")).unwrap();
    assert_eq!(known.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["kernels-t-1"]);
    assert_eq!(known.values().next().unwrap().pool, Some(pool()));

    instances_run(&fleet_nodes, &one, &folder);
    adopted_by_hand(&world, known);
    joins_are_killed(&world, &provided, &fleet_nodes);

    // One that never answers is given up when it is wanted no more.
    let three = bought(&provided, 3);
    assert!(!fleet_nodes.join(&three, &mut || (), &|| false));

    let tag = tag(&folder);
    assert!(!traces(&tag).is_empty(), "what runs can be seen");
    for seen in world.provider.list().unwrap() {
        assert_eq!(provided.delete(seen.id, "another"), DeleteAnswer::Renamed);
        assert_eq!(provided.delete(seen.id, &seen.name), DeleteAnswer::Accepted);
        assert_eq!(provided.delete(seen.id, &seen.name), DeleteAnswer::Absent);
    }
    assert_eq!(fleet_nodes.running(&one), None);
    assert_eq!(world.provider.list().unwrap(), []);
    fleet_nodes.forget(|_| false).unwrap();
    assert_eq!(records(&folder.join("pool")).unwrap().len(), 0);
    assert!(world.enrolment.key(&three.name).unwrap().is_none());
    assert_eq!(traces(&tag), Vec::<String>::new());
    drop(cleared);
}

fn instances_run(nodes: &FleetNodes, machine: &Machine, folder: &Path) {
    let numbers = || {
        let all = records(&folder.join("pool")).unwrap();
        let instances = &all["kernels-t-1"].instances;
        instances.iter().map(|(id, known)| (id.0, known.number)).collect::<BTreeMap<_, _>>()
    };
    let started: Vec<Start> = thread::scope(|scope| {
        let starts = [7, 8].map(|id| scope.spawn(move || nodes.start(machine, InstanceId(id), WORKLOAD)));
        starts.map(|start| start.join().unwrap()).into()
    });
    assert_eq!(started, [Start::Running; 2]);
    assert_eq!(nodes.running(machine), Some(2));
    let begun = numbers();
    assert_eq!(begun.values().copied().collect::<BTreeSet<_>>(), BTreeSet::from([1, 2]));
    let milestones = records(&folder.join("pool")).unwrap()["kernels-t-1"].milestones;
    eprintln!("{:?}", milestones.parts());
    assert_eq!(milestones.parts().len(), 6, "{milestones:?}");

    assert_eq!(nodes.start(machine, InstanceId(7), WORKLOAD), Start::Running, "it runs already");
    assert_eq!(nodes.start(machine, InstanceId(9), WORKLOAD), Start::NotTried, "two are granted");
    assert_eq!(nodes.start(machine, InstanceId(9), "notes/other"), Start::NotTried, "nothing is granted for it");
    assert!(nodes.stop(machine, InstanceId(9), WORKLOAD), "it has no number");
    assert_eq!(numbers(), begun);
    assert!(nodes.stop(machine, InstanceId(7), WORKLOAD));
    assert!(nodes.stop(machine, InstanceId(7), WORKLOAD), "it has stopped already");
    assert_eq!(nodes.running(machine), Some(1));
    assert_eq!(nodes.start(machine, InstanceId(9), WORKLOAD), Start::Running, "there is room again");
    assert_eq!(numbers(), BTreeMap::from([(8, begun[&8]), (9, begun[&7])]));
    for id in [8, 9] {
        assert!(nodes.stop(machine, InstanceId(id), WORKLOAD));
    }
    assert_eq!((nodes.running(machine), numbers().len()), (Some(0), 0));
}

/// A node that somebody adopted is leased, and only asked.
fn adopted_by_hand(world: &World, known: BTreeMap<NodeName, FleetNode>) {
    let address = known.values().next().unwrap().address.parse().unwrap();
    let others = "192.0.2.7".parse().unwrap();
    let machines = [("one", address), ("other", others)]
        .map(|(name, address)| FixedMachine { name: name.into(), address })
        .to_vec();
    let leases = world.folder.join("leases.json");
    let fixed: Arc<dyn Provider> = Arc::new(Fixed::open(machines, &"shop".parse().unwrap(), &leases).unwrap());
    let provided =
        Provided::new(Arc::clone(&fixed), BTreeMap::from([(pool(), like())]), Box::new(|what| eprintln!("{what}")));
    let nodes = world.nodes_of(fixed, Some(known));
    let leased = bought(&provided, 20);
    assert!(nodes.join(&leased, &mut || (), &|| true));
    assert_eq!(nodes.start(&leased, InstanceId(30), WORKLOAD), Start::Running);
    assert_eq!(nodes.running(&leased), Some(1));
    assert!(nodes.stop(&leased, InstanceId(30), WORKLOAD));
    assert_eq!(nodes.running(&leased), Some(0));
    assert!(!nodes.join(&bought(&provided, 21), &mut || (), &|| true), "nobody adopted it");
    let shown = bulkhead_pool::nodes(&world.folder.join("pool")).unwrap();
    assert_eq!(shown.len(), 1, "fleet.toml has the other: {shown:?}");
}

/// Whoever makes a node of a machine is killed, once it was reached and once more when it was laid out.
fn joins_are_killed(world: &World, provided: &Provided, nodes: &FleetNodes) {
    let two = bought(provided, 2);
    let is_reached = |milestones: bulkhead_pool::Milestones| milestones.reached.is_some();
    let is_laid_out = |milestones: bulkhead_pool::Milestones| milestones.laid_out.is_some();
    for is_far_enough in [is_reached, is_laid_out] {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "machines_become_nodes_and_go"]).env(JOINS, &world.folder);
        let joins = Killed(command.stdout(Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        let record = || records(&world.folder.join("pool")).unwrap().remove("kernels-t-2");
        while !record().is_some_and(|record| is_far_enough(record.milestones)) {
            assert!(began.elapsed() < PATIENCE, "{:?}", record());
            thread::sleep(Duration::from_millis(2));
        }
        drop(joins);
    }
    assert!(world.enrolment.key(&two.name).unwrap().is_some(), "it is not a node yet, as far as anyone knows");
    assert!(nodes.join(&two, &mut || (), &|| true));
    assert_eq!(nodes.running(&two), Some(0));
}

/// Ends a loop, also where its test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has a loop run while something else is done.
fn with_loop(world: &World, then: impl FnOnce()) {
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pool = Pool::new(pool(), 1, Micros(0), Billing::Free);
            pool.idle_ms = 1000;
            let means = Means {
                servers: Arc::new(world.provided()),
                nodes: Arc::new(world.nodes()),
                clock: system_clock(),
                log: Box::new(|_, line| eprintln!("  {line}")),
                told: mpsc::channel().1,
            };
            let database = Database::open(&world.folder.join("pool.db")).unwrap();
            let fleet = "shop".parse().unwrap();
            // This provider's lists are true at once, and a machine goes when the one before is seen to be gone.
            let limits = Limits { lag_ms: 500, list_gap_ms: 500, list_every_ms: 2000, ..Limits::default() };
            Runner::new(database, fleet, limits, vec![pool], means).unwrap().run(&ends).unwrap();
        });
        let _ends = Ends(&ends);
        then();
    });
}

#[test]
fn a_loop_runs_instances_on_machines_it_buys() {
    let Some(cleared) = begin("a_loop_runs_instances_on_machines_it_buys") else { return };
    let folder = cleared.0.path().to_owned();
    let world = World::open(&folder);
    drop(Database::open(&folder.join("pool.db")).unwrap());
    let scale = |count| {
        let (workload, needs) = (WORKLOAD.to_owned(), Room::slots(1));
        let request = Request::Scale { workload, pool: pool(), needs, is_movable: false, count };
        ask(&folder.join("pool.db"), &request).unwrap();
    };
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "{what}");
            thread::sleep(Duration::from_millis(50));
        }
    };
    // What nodes themselves say.
    let running = |nodes: &FleetNodes| -> u32 {
        let seen = world.provider.list().unwrap();
        seen.iter().filter_map(|seen| nodes.running(&Machine { name: seen.name.clone(), ..row(0, seen.id) })).sum()
    };
    let observer = world.nodes();
    with_loop(&world, || {
        scale(2);
        until("two machines, an instance on each", &|| running(&observer) == 2);
        assert_eq!(world.provider.list().unwrap().len(), 2);
    });
    // Another loop takes up what the one before had.
    with_loop(&world, || {
        scale(1);
        until("the empty machine goes", &|| world.provider.list().unwrap().len() == 1);
        assert_eq!(running(&observer), 1);
        scale(0);
        until("the other goes", &|| world.provider.list().unwrap().is_empty());
        // One that is still being removed is not listed any more.
        until("nothing is left", &|| traces(&tag(&folder)).is_empty());
    });
}
