//! A real node of a local fleet: what it answers, what it refuses, what it
//! keeps, and that nothing is left when it goes.
//!
//! Needs root and the static agent (`BULKHEAD_AGENT`, or as cargo builds it).
#![cfg(target_os = "linux")]
#![expect(clippy::print_stderr, reason = "a test says why it skips, and what it waits for")]

use bulkhead_core::policy::{Demand, Environment, Key, Policy, Role, Root};
use bulkhead_fleet::bootstrap::{FirstBoot, OneTimeKey};
use bulkhead_fleet::local::{Local, LocalError, LocalNode, NodeSpec, SignedPolicy, find_agent};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A directory with a person's key, a policy signed with it, and a fleet's state.
struct Scene {
    directory: tempfile::TempDir,
    agent: PathBuf,
}

impl Scene {
    /// `None`, after saying so, where nodes cannot be booted.
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped {test}: booting nodes needs root");
            return None;
        }
        let agent = find_agent().expect("the agent's static binary is built before this test runs");
        let directory =
            tempfile::Builder::new().prefix("local-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let scene = Self { directory, agent };
        for name in ["key", "stranger"] {
            let output = run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", &scene.path(name)]);
            assert!(output.status.success(), "{}", text(&output));
        }
        Some(scene)
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("the path is text").to_owned()
    }

    fn open(&self) -> Result<Local, LocalError> {
        Local::open(self.directory.path().join("state"), "shop".parse().expect("a name"))
    }

    fn policy(&self, version: u64) -> SignedPolicy {
        let key = fs::read_to_string(self.path("key.pub")).expect("ssh-keygen made it");
        let roles = BTreeSet::from([Role::Release, Role::Courier, Role::Observe, Role::Operate]);
        let policy = Policy {
            format: 1,
            fleet: "shop".parse().expect("a name"),
            version,
            root: Root { threshold: 1, keys: vec![key.trim().to_owned()], verify_user: false },
            keys: BTreeMap::from([(
                "ann".parse().expect("a name"),
                Key { key: key.trim().to_owned(), roles, verify_user: false },
            )]),
            environments: BTreeMap::from([(
                "staging".parse().expect("a name"),
                Environment::accepting(Demand::release(1)),
            )]),
            nodes: BTreeMap::new(),
            revoked: bulkhead_core::notice::Revoked::default(),
        };
        let path = self.path("policy.json");
        fs::write(&path, policy.to_bytes()).expect("the directory is writable");
        drop(fs::remove_file(self.path("policy.json.sig")));
        let output = run("ssh-keygen", &["-q", "-Y", "sign", "-n", "policy@bulkhead", "-f", &self.path("key"), &path]);
        assert!(output.status.success(), "{}", text(&output));
        SignedPolicy {
            policy: fs::read_to_string(&path).expect("just written"),
            signatures: vec![fs::read_to_string(self.path("policy.json.sig")).expect("ssh-keygen made it")],
        }
    }

    fn up(&self, local: &mut Local, names: &[&str]) -> Result<Vec<LocalNode>, LocalError> {
        let specs: Vec<NodeSpec> = names
            .iter()
            .map(|name| NodeSpec {
                name: name.parse().expect("a name"),
                environment: "staging".parse().expect("a name"),
            })
            .collect();
        local.up(&specs, &self.policy(1), &self.agent, &|step| eprintln!("{step}"))
    }

    /// `ssh` or `sftp` with these arguments and a key, knowing the node's host key and nothing else.
    fn client(&self, program: &str, node: &LocalNode, key: &str, arguments: &[&str]) -> Output {
        let known = self.path("known_hosts");
        fs::write(&known, format!("{} {}\n", node.address, node.host_key.as_deref().expect("it is a node")))
            .expect("the directory is writable");
        let known = format!("UserKnownHostsFile={known}");
        let key = self.path(key);
        let mut all = vec!["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"];
        all.extend(["-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10", "-o", &known, "-i", &key]);
        all.extend(arguments);
        run(program, &all)
    }

    fn sftp(&self, node: &LocalNode, account: &str, commands: &str) -> Output {
        let batch = self.path("batch");
        fs::write(&batch, commands).expect("the directory is writable");
        self.client("sftp", node, "key", &["-b", &batch, &format!("{account}@{}", node.address)])
    }
}

/// A test that fails leaves no machine either.
impl Drop for Scene {
    fn drop(&mut self) {
        if thread::panicking()
            && let Ok(local) = self.open()
            && let Err(error) = local.destroy()
        {
            eprintln!("cannot remove the local fleet: {error}");
        }
    }
}

/// TCP ports that accept a connection. The node drops what it does not accept,
/// so all the others time out: many at once, and twice, so that a lost packet hides nothing.
fn open_ports(address: Ipv4Addr) -> BTreeSet<u16> {
    let next = AtomicU32::new(1);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..512)
            .map(|_| {
                scope.spawn(|| {
                    let mut open = Vec::new();
                    loop {
                        let Ok(port) = u16::try_from(next.fetch_add(1, Ordering::Relaxed)) else { return open };
                        let target = SocketAddr::from((address, port));
                        if TcpStream::connect_timeout(&target, Duration::from_millis(100)).is_ok() {
                            open.push(port);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a scanner does not panic")).collect()
    })
}

/// Everything of this machine that a fleet may leave behind and that names it.
fn traces(tag: &str) -> Vec<String> {
    let mut found = Vec::new();
    let links = text(&run("ip", &["-o", "link"]));
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts can be listed");
    found.extend(links.lines().chain(mounts.lines()).filter(|line| line.contains(tag)).map(str::to_owned));
    for entry in fs::read_dir("/proc").expect("/proc can be listed").flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        if command.contains(tag) || group.contains(tag) || mounts.contains(tag) {
            found.push(format!("process {}: {command}", entry.path().display()));
        }
    }
    for directory in
        ["/run/systemd/nspawn/propagate", "/run/systemd/nspawn/unix-export", "/run/netns", "/var/log/journal"]
    {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path().display().to_string()).filter(|path| path.contains(tag)));
    }
    found.extend(groups(Path::new("/sys/fs/cgroup"), tag));
    found
}

fn groups(directory: &Path, tag: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .flat_map(|entry| {
            let path = entry.path();
            let shown = path.display().to_string();
            if shown.contains(tag) { vec![shown] } else { groups(&path, tag) }
        })
        .collect()
}

#[test]
fn a_node_lives() {
    let Some(scene) = Scene::new("a_node_lives") else { return };
    let mut local = scene.open().expect("a new directory");
    let node = scene.up(&mut local, &["one"]).expect("the node boots").remove(0);
    let tag = node.machine.split('-').nth(1).expect("the tag is in the name").to_owned();
    assert!(!traces(&tag).is_empty(), "what runs can be seen");

    only_ssh_answers(&node);
    accounts_are_shut(&scene, &node);
    drop_box_takes_only(&scene, &local, &node);
    is_laid_out(&local, &node);

    // Once more with the node running: nothing changes, nothing restarts.
    let again = scene.up(&mut local, &["one"]).expect("it runs already");
    assert_eq!(again, std::slice::from_ref(&node));

    // Data and identity survive being down, and a power cut.
    local.exec(&node.name, "/bin/sh", &["-c", "echo kept > /var/lib/bulkhead/volumes/kept; sync"]).expect("it runs");
    local.down(&[]).expect("it powers off");
    assert_eq!(traces(&tag), Vec::<String>::new());
    assert!(matches!(local.kill(&node.name), Err(LocalError::NotRunning { .. })));
    let back = local.start(&node.name).expect("it boots again");
    // While it was down another test's fleet may have taken its network.
    assert_eq!((back.address.octets()[3], &back.host_key), (node.address.octets()[3], &node.host_key));
    local.kill(&node.name).expect("it runs");
    assert_eq!(traces(&tag), Vec::<String>::new());
    assert_eq!(local.ls().expect("the state is readable")[0].leader, None);
    local.start(&node.name).expect("it boots after a power cut");
    let kept = local.exec(&node.name, "/bin/cat", &["/var/lib/bulkhead/volumes/kept"]).expect("it runs");
    assert_eq!(text(&kept), "kept\n");

    local.destroy().expect("it can be removed");
    assert_eq!(traces(&tag), Vec::<String>::new());
    assert!(!scene.directory.path().join("state").exists());
}

fn only_ssh_answers(node: &LocalNode) {
    assert_eq!(open_ports(node.address), BTreeSet::from([22]));
}

fn accounts_are_shut(scene: &Scene, node: &LocalNode) {
    let bulkhead = format!("bulkhead@{}", node.address);
    let dropbox = format!("bulkhead-drop@{}", node.address);
    let root = format!("root@{}", node.address);
    // Arguments, and what must not come back.
    for (key, arguments) in [
        ("key", vec![root.as_str(), "id"]),
        ("stranger", vec![bulkhead.as_str(), "id"]),
        ("key", vec![bulkhead.as_str()]),
        ("key", vec![bulkhead.as_str(), "id"]),
        ("key", vec!["-tt", bulkhead.as_str(), "id"]),
        ("key", vec!["-s", bulkhead.as_str(), "id"]),
        ("key", vec!["-W", "127.0.0.1:22", bulkhead.as_str()]),
        ("key", vec!["-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:7001:127.0.0.1:22", bulkhead.as_str(), "id"]),
        ("key", vec!["-w", "0:0", bulkhead.as_str(), "id"]),
        ("key", vec![dropbox.as_str()]),
        ("key", vec![dropbox.as_str(), "id"]),
        ("key", vec!["-tt", dropbox.as_str(), "id"]),
        ("key", vec!["-W", "127.0.0.1:22", dropbox.as_str()]),
        ("key", vec!["-o", "ExitOnForwardFailure=yes", "-R", "/run/x.sock:127.0.0.1:22", dropbox.as_str(), "id"]),
    ] {
        let output = scene.client("ssh", node, key, &arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output));
        let said = text(&output);
        assert!(!said.contains("uid=") && !said.contains("SSH-2.0"), "{arguments:?}: {said}");
    }
    let output = scene.sftp(node, "bulkhead", "ls\n");
    assert!(!output.status.success(), "the gate's account has no SFTP: {}", text(&output));
}

fn drop_box_takes_only(scene: &Scene, local: &Local, node: &LocalNode) {
    let pack = scene.path("pack");
    fs::write(&pack, b"a pack").expect("the directory is writable");
    let output = scene.sftp(node, "bulkhead-drop", &format!("put {pack} first\nput {pack} /in/second\n"));
    assert!(output.status.success(), "{}", text(&output));
    let kept = local.exec(&node.name, "/bin/cat", &["/var/lib/bulkhead/drop/in/first"]).expect("it runs");
    assert_eq!(text(&kept), "a pack");

    for refused in [
        "ls".to_owned(),
        "ls /in".to_owned(),
        format!("get first {pack}.back"),
        "rm first".to_owned(),
        "rename first third".to_owned(),
        "ln -s first third".to_owned(),
        "ln first third".to_owned(),
        "mkdir third".to_owned(),
        "chmod 777 first".to_owned(),
        format!("put {pack} /outside"),
        format!("put {pack} ../outside"),
    ] {
        let output = scene.sftp(node, "bulkhead-drop", &format!("{refused}\n"));
        let said = text(&output);
        // `ls` in a batch says that it was refused and yet succeeds.
        assert!(!output.status.success() || said.contains("Permission denied"), "`{refused}` must be refused: {said}");
    }
    let listed = local.exec(&node.name, "/bin/ls", &["/var/lib/bulkhead/drop", "/var/lib/bulkhead/drop/in"]);
    let listed = text(&listed.expect("it runs"));
    assert_eq!(listed, "/var/lib/bulkhead/drop:\nin\n\n/var/lib/bulkhead/drop/in:\nfirst\nsecond\n");
}

fn is_laid_out(local: &Local, node: &LocalNode) {
    let exec = |program: &str, arguments: &[&str]| text(&local.exec(&node.name, program, arguments).expect("it runs"));

    assert_eq!(exec("/usr/lib/bulkhead/bulkhead-agent", &["install", "--verify"]).trim(), "[]");
    assert_eq!(
        exec("systemctl", &["is-active", "bulkhead-sshd", "bulkhead-nftables", "bulkhead-keeper.socket"]),
        "active\nactive\nactive\n"
    );
    // Each account reaches the keeper by a socket of its own, and by no other.
    let sockets = exec(
        "stat",
        &[
            "--format=%U %a",
            "/run/bulkhead/keeper.sock",
            "/run/bulkhead/keeper-observe.sock",
            "/run/bulkhead/keeper-operate.sock",
        ],
    );
    assert_eq!(sockets, "bulkhead 600\nbulkhead-observe 600\nbulkhead-operate 600\n");
    assert_eq!(exec("systemctl", &["is-enabled", "ssh.service"]).trim(), "masked");
    // What listens, as the node itself sees it: not even on its loopback is there anything else.
    let listening = exec("ss", &["-Hltun"]);
    assert!(listening.lines().all(|line| line.contains(":22 ")), "{listening}");

    for account in ["bulkhead", "bulkhead-drop", "bulkhead-observe", "bulkhead-operate"] {
        let effective = exec(
            "sshd",
            &["-T", "-f", "/etc/bulkhead/sshd_config", "-C", &format!("user={account},host=h,addr=192.0.2.1")],
        );
        let expected = fs::read_to_string(format!("{}/tests/local/sshd-{account}.txt", env!("CARGO_MANIFEST_DIR")));
        let expected = expected.unwrap_or_default();
        if effective != expected {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sshd-{account}.txt"));
            fs::write(&path, &effective).expect("the directory is writable");
            panic!("sshd's settings for {account} are not those in tests/local; compare with {}", path.display());
        }
    }
}

#[test]
fn a_node_that_cannot_be_laid_out_leaves_nothing() {
    let Some(scene) = Scene::new("a_node_that_cannot_be_laid_out_leaves_nothing") else { return };
    let mut local = scene.open().expect("a new directory");
    let mut policy = scene.policy(1);
    policy.policy = policy.policy.replace("\"version\": 1", "\"version\": 2");
    let spec = NodeSpec { name: "two".parse().expect("a name"), environment: "staging".parse().expect("a name") };
    let error = local.up(&[spec], &policy, &scene.agent, &|_| ()).expect_err("nobody signed this policy");
    assert!(error.to_string().contains("policy"), "{error}");
    assert_eq!(local.ls().expect("the state is readable"), []);
    let state = fs::read_to_string(scene.directory.path().join("state/fleet.json")).expect("the fleet is there");
    let state: serde_json::Value = serde_json::from_str(&state).expect("it is JSON");
    let tag = state["tag"].as_str().expect("it has a tag");
    assert_eq!(traces(tag), Vec::<String>::new());
    local.destroy().expect("it can be removed");
}

/// Waits until the stock server lets root in, and gives what it is called.
fn logs_in(scene: &Scene, address: Ipv4Addr, user_data: &str) -> String {
    let public = FirstBoot::read(user_data).expect("it was made here").public_host_key;
    let known = scene.path(&format!("known-{address}"));
    fs::write(&known, format!("{address} {public}\n")).expect("the directory is writable");
    let root = format!("root@{address}");
    let options = ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10"];
    for _ in 0..300 {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-o", "IdentityAgent=none", "-i", &scene.path("key")]);
        command.args(options.iter().flat_map(|option| ["-o", option]));
        command.args(["-o", &format!("UserKnownHostsFile={known}"), &root, "hostname; ls -A /etc/bulkhead"]);
        let output = command.stdin(Stdio::null()).output().expect("ssh runs");
        if output.status.code() != Some(255) {
            return text(&output);
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("nobody answers at {address}");
}

#[test]
fn stock_machines_come_and_go() {
    let Some(scene) = Scene::new("stock_machines_come_and_go") else { return };
    let mut local = scene.open().expect("a new directory");
    let public = fs::read_to_string(scene.path("key.pub")).expect("ssh-keygen made it").trim().to_owned();
    let key = OneTimeKey::make().expect("a key");
    let user_data = key.user_data(std::slice::from_ref(&public));
    for bad in ["", "9.shop", "a b"] {
        assert!(matches!(local.create_stock(bad, &user_data), Err(LocalError::MachineName { .. })), "{bad}");
    }
    assert!(matches!(local.create_stock("one", "#!/bin/sh"), Err(LocalError::UserData)));

    // Several at once, and one of them asked for three times.
    let names = ["one.shop", "two.shop", "one.shop", "three.shop", "one.shop"];
    let ids: Vec<u64> = thread::scope(|scope| {
        let create = |name| (scene.open().expect("it is there"), &user_data, name);
        let started: Vec<_> = names
            .map(create)
            .into_iter()
            .map(|(local, user_data, name)| {
                scope.spawn(move || local.create_stock(name, user_data).expect("it is made"))
            })
            .collect();
        started.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    assert!(ids[0] == ids[2] && ids[0] == ids[4], "{ids:?}");
    let machines = local.stock().expect("they can be listed");
    assert_eq!(machines.len(), 3, "{machines:?}");
    assert!(machines.iter().all(|machine| machine.is_running), "{machines:?}");
    let addresses: BTreeSet<Ipv4Addr> = machines.iter().filter_map(|machine| machine.address).collect();
    assert_eq!(addresses.len(), 3, "{machines:?}");
    for machine in &machines {
        let said = logs_in(&scene, machine.address.expect("it boots"), &user_data);
        assert!(said.starts_with(&format!("{}\n", machine.name.split('.').next().expect("a part"))), "{said}");
        assert!(said.contains("No such file"), "nothing of ours is there: {said}");
    }

    // A node has another address, and the network stays for the machines when it goes.
    let node = scene.up(&mut local, &["node"]).expect("the node boots").remove(0);
    assert!(!addresses.contains(&node.address));
    let tag = node.machine.split('-').nth(1).expect("the tag is in the name").to_owned();
    local.down(&[]).expect("it powers off");
    logs_in(&scene, machines[0].address.expect("it boots"), &user_data);

    // Numbers are given once.
    local.delete_stock(ids[1]).expect("it goes");
    local.delete_stock(ids[1]).expect("it is gone");
    assert_eq!(local.stock_machine(ids[1]).expect("it can be asked"), None);
    let again = local.create_stock("two.shop", &user_data).expect("it is made");
    assert!(ids.iter().all(|id| *id != again));

    // What a killed process leaves is not listed, and goes with the look: one that runs, one without a tree, one
    // without anything.
    let directory = scene.directory.path().join("state/machines");
    let record = directory.join(again.to_string()).join("machine.json");
    let state = fs::read_to_string(&record).expect("it has a record");
    let mut state: serde_json::Value = serde_json::from_str(&state).expect("it is JSON");
    state["phase"] = "making".into();
    fs::write(&record, state.to_string()).expect("it is writable");
    fs::create_dir(directory.join("90")).expect("it is writable");
    state["id"] = 91.into();
    fs::create_dir(directory.join("91")).expect("it is writable");
    fs::write(directory.join("91/machine.json"), state.to_string()).expect("it is writable");
    assert_eq!(local.stock().expect("they can be listed").len(), 2);
    for id in [again, 90, 91] {
        assert!(!directory.join(id.to_string()).exists(), "{id}");
    }

    local.destroy().expect("it can be removed");
    assert_eq!(traces(&tag), Vec::<String>::new());
}

/// Whatever a process that is killed was doing with a machine, nothing is left that nobody knows of.
#[test]
fn makers_are_killed() {
    const PLACE: &str = "BULKHEAD_TEST_MAKER";
    let make = |state: &Path| {
        let local = Local::open(state, "shop".parse().expect("a name")).expect("it is there");
        let user_data = OneTimeKey::make().expect("a key").user_data(&[]);
        for number in 0.. {
            local.create_stock(&format!("m{number}"), &user_data).expect("it is made");
            local.delete_stock(local.stock().expect("a list")[0].id).expect("it goes");
        }
    };
    if let Some(state) = std::env::var_os(PLACE) {
        return make(Path::new(&state));
    }
    let Some(scene) = Scene::new("makers_are_killed") else { return };
    let local = scene.open().expect("a new directory");
    for round in 0..8_u64 {
        let mut maker = Command::new(std::env::current_exe().expect("this program has a place"))
            .args(["--exact", "makers_are_killed"])
            .env(PLACE, scene.directory.path().join("state"))
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        thread::sleep(Duration::from_millis(200 + 370 * round));
        maker.kill().expect("it runs");
        maker.wait().expect("it is ours");
        // What its `cp` still copies ends first.
        let left = (0..200).find_map(|_| {
            let left = local.stock().expect("they can be listed");
            let is_settled = left.iter().all(|machine| machine.address.is_some());
            thread::sleep(Duration::from_millis(if is_settled { 0 } else { 50 }));
            is_settled.then_some(left)
        });
        let left = left.expect("copying ends");
        for machine in left {
            assert!(machine.is_running, "round {round}: {machine:?}");
            local.delete_stock(machine.id).expect("it goes");
        }
        // A program that the maker had begun outlives it by a moment.
        let tag = fleet_tag(&scene).expect("a tag");
        let traces = || traces(&tag);
        (0..100).take_while(|_| !traces().is_empty()).for_each(|_| thread::sleep(Duration::from_millis(50)));
        assert_eq!(traces(), Vec::<String>::new(), "round {round}");
    }
    local.destroy().expect("it can be removed");
}

fn fleet_tag(scene: &Scene) -> Option<String> {
    let bytes = fs::read(scene.directory.path().join("state/fleet.json")).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    Some(state["tag"].as_str()?.to_owned())
}
