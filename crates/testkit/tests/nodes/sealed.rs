//! What a service can do from inside, and what a node shows outside.

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{App, World};
use bulkhead_wire::{Ask, Event, Kind, PROTOCOL, Request, View, read_frame, write_frame};
use std::{
    io::BufReader,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_service_sees_its_image_and_nothing_else", inside),
    ("a_service_reaches_no_network", network),
    ("a_service_reaches_nothing_of_another", neighbours),
    ("the_kernel_refuses_a_service_what_escapes_are_made_of", forbidden),
    ("what_a_service_writes_it_cannot_execute", no_exec),
    ("a_service_reaches_no_socket_of_the_journal", no_journal),
    ("looking_at_a_service_that_restarts_never_shows_the_node", look_races),
    ("a_service_sees_no_control_group_of_another", own_control_group),
    ("exposure_grows_no_worse", exposure),
    ("a_node_listens_on_port_22_alone", ports),
    ("nothing_of_ours_is_resident", resident),
];

const WEB: &str = "port = 3000\nstop = \"1s\"\nenv = { GREETING = \"hello $HOME %n \\\"x\\\" \\\\ ünï\" }\nvolumes = { data = \"/data\" }";

fn inside(world: &World) -> Result<()> {
    let app = world.app("inside", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let ask = |path: &str| app.get("stage-1", path).map(|(_, body)| body);
    let check = |path: &str, words: &str| {
        let body = ask(path)?;
        ensure!(body.contains(words), "{path}: {body}");
        anyhow::Ok(())
    };
    check("/env", "GREETING=hello $HOME %n \"x\" \\ ünï\n")?;
    check("/append/app/version.txt/x", "error")?;
    check("/append/etc/x/x", "error")?;
    check("/append/data/x/x", "written")?;
    check("/exec/app/testapp", "ran")?;
    check("/list/var/lib/bulkhead", "error")?;
    check("/list/root", "error")?;
    // PID 1 of a PID namespace of its own: no other process is to be seen.
    let processes = ask("/list/proc")?;
    let pids: Vec<&str> = processes.lines().filter(|line| line.chars().all(|c| c.is_ascii_digit())).collect();
    ensure!(pids == ["1"], "{pids:?}");
    let root = ask("/list/")?;
    for absent in ["boot", "srv", "opt", "media"] {
        ensure!(!root.lines().any(|line| line == absent), "/{absent} is in {root}");
    }
    ensure!(ask("/list/home")?.is_empty() || ask("/list/home")?.starts_with("error"), "/home has something");
    let bin = ask("/list/usr/bin").unwrap_or_default();
    ensure!(!bin.contains("sh"), "{bin}");
    let status = ask("/read/proc/self/status")?;
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        ensure!(status.contains(line), "no `{line}` in {status}");
    }
    Ok(())
}

fn neighbours(world: &World) -> Result<()> {
    let mine = world.app("mine", &["serve", "4000"], &WEB.replace("3000", "4000"))?;
    mine.deploy("staging", 0)?;
    ensure!(mine.get("stage-1", "/append/data/diary/hidden")?.1 == "written", "nothing was written");
    let theirs = world.app("theirs", &["serve", "3000"], WEB)?;
    theirs.deploy("staging", 0)?;
    let pid = world.on_node("stage-1", &["systemctl", "show", "-P", "MainPID", "bulkhead-mine.web.r1.service"])?;
    let pid = pid.trim();
    for path in [
        "/read/var/lib/bulkhead/volumes/mine/data/diary".to_owned(),
        "/list/var/lib/bulkhead/volumes".to_owned(),
        "/list/run/bulkhead/live/mine".to_owned(),
        "/list/run/credentials".to_owned(),
        "/connect/127.0.0.1:4000".to_owned(),
        format!("/read/proc/{pid}/environ"),
        format!("/read/proc/{pid}/root/data/diary"),
        format!("/list/proc/{pid}/fd"),
        // Its own, by ways around the bounds of its tree.
        "/read/proc/1/root/../../var/lib/bulkhead/volumes/mine/data/diary".to_owned(),
        "/read/data/../../../var/lib/bulkhead/volumes/mine/data/diary".to_owned(),
    ] {
        let (_, body) = theirs.get("stage-1", &path)?;
        ensure!(body.starts_with("error"), "{path}: {body}");
    }
    ensure!(theirs.get("stage-1", "/list/data")?.1.is_empty(), "volumes of one name are one volume");
    Ok(())
}

/// EPERM, of the filter of system calls; EACCES, of memory that is written and executed; EAFNOSUPPORT, of the families
/// of sockets.
const REFUSALS: [&str; 3] = ["1", "13", "97"];

/// That a running app is refused all of it.
pub(crate) fn cannot_escape(app: &App<'_>) -> Result<()> {
    let (_, tried) = app.get("stage-1", "/try")?;
    let bad: Vec<&str> =
        tried.lines().filter(|line| !REFUSALS.iter().any(|number| line.ends_with(&format!(" {number}")))).collect();
    ensure!(tried.lines().count() == 30 && bad.is_empty(), "not refused: {bad:?} of\n{tried}");
    Ok(())
}

fn forbidden(world: &World) -> Result<()> {
    let app = world.app("escaping", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    cannot_escape(&app)?;
    // The same program, as a user without rights, outside a service: what it asks for can be had.
    let copy = app.node_root("stage-1")?.join("var/tmp/testapp");
    std::fs::copy(app.folder.join("testapp"), &copy)?;
    let words =
        ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "-p", "User=nobody", "/var/tmp/testapp", "try"];
    let outside = world.on_node("stage-1", &words)?;
    for name in ["unshare user", "a socket of netlink", "memory to write and execute"] {
        ensure!(outside.contains(&format!("{name} done")), "{name} is refused outside too: {outside}");
    }
    app.serves("stage-1", "1")
}

fn no_exec(world: &World) -> Result<()> {
    let app = world.app("writer", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    for directory in ["data", "tmp", "var/tmp", "dev/shm"] {
        let (_, body) = app.get("stage-1", &format!("/exec-copy/{directory}/copy"))?;
        ensure!(body.contains("Permission denied"), "/{directory}: {body}");
        let (_, copied) = app.get("stage-1", &format!("/list/{directory}"))?;
        ensure!(copied.contains("copy"), "/{directory}: not even written: {copied}");
    }
    Ok(())
}

fn no_journal(world: &World) -> Result<()> {
    let victim = world.app("victim", &["serve", "3000"], WEB)?;
    victim.deploy("staging", 0)?;
    let forger = world.app("forger", &["serve", "3000"], WEB)?;
    forger.deploy("staging", 0)?;
    let (_, body) = forger.get("stage-1", "/list/run/systemd/journal")?;
    ensure!(body.starts_with("error"), "{body}");
    let (_, body) = forger.get("stage-1", "/journal/victim/forged-inside")?;
    ensure!(body.starts_with("error"), "{body}");
    // Whatever else could set the fields: another unit's lines are not the service's.
    let fields = ["APP=victim", "SERVICE=web", "RELEASE=1"].map(|field| format!("LogExtraFields=BULKHEAD_{field}"));
    let mut words = vec!["systemd-run", "--quiet", "--wait", "--collect"];
    words.extend(fields.iter().flat_map(|field| ["-p", field]));
    words.extend(["echo", "forged-outside"]);
    world.on_node("stage-1", &words)?;
    world.on_node("stage-1", &["journalctl", "--sync"])?;
    let journal = world.on_node("stage-1", &["journalctl", "--output=cat", "BULKHEAD_APP=victim"])?;
    ensure!(journal.contains("forged-outside"), "nothing was forged: {journal}");
    let shown = victim.run(&["logs", "victim", "-e", "staging"])?.expect(0)?.stdout;
    ensure!(shown.contains("listening on 3000") && !shown.contains("forged"), "{shown}");
    Ok(())
}

fn own_control_group(world: &World) -> Result<()> {
    let neighbour = world.app("neighbour", &["serve", "3000"], WEB)?;
    neighbour.deploy("staging", 0)?;
    let app = world.app("groups", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    for path in ["/list/sys/fs/cgroup", "/list/sys/fs/cgroup/bulkhead.slice", "/read/proc/self/cgroup"] {
        let (_, body) = app.get("stage-1", path)?;
        ensure!(!body.contains(".slice") && !body.contains("neighbour"), "{path}: {body}");
    }
    let limits = world.on_node("stage-1", &["systemctl", "show", "bulkhead-groups.web.r1-proxy.service"])?;
    for limit in ["MemoryMax=134217728", "TasksMax=64", "CPUQuotaPerSecUSec=1s"] {
        ensure!(limits.lines().any(|line| line == limit), "the proxy has no {limit}");
    }
    Ok(())
}

/// One conversation with the keeper itself, as root: many in the time of one over SSH.
fn ask_keeper(socket: &Path, request: &Request) -> Result<Vec<Event>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(bulkhead_testkit::world::PATIENCE))?;
    write_frame(&mut stream, Kind::Message, b"{}")?;
    write_frame(&mut stream, Kind::Message, &serde_json::to_vec(request)?)?;
    let mut input = BufReader::new(stream);
    let mut events = Vec::new();
    while let Some(frame) = read_frame(&mut input)? {
        events.push(serde_json::from_slice(&frame.payload)?);
        if matches!(events.last(), Some(Event::Done(_) | Event::Failed(_))) {
            break;
        }
    }
    Ok(events)
}

/// While systemd prepares a service its processes still have the node's own tree.
fn look_races(world: &World) -> Result<()> {
    let app = world.app("flapping", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let keeper = app.node_root("stage-1")?.join("run/bulkhead/keeper.sock");
    let running = std::sync::atomic::AtomicBool::new(true);
    let restart = "for i in $(seq 10); do systemctl kill --signal=KILL $0; systemctl restart $0; done";
    thread::scope(|scope| {
        let restarts = scope.spawn(|| {
            while running.load(Ordering::Relaxed) {
                world.on_node("stage-1", &["sh", "-c", restart, "bulkhead-flapping.web.r1.service"])?;
            }
            anyhow::Ok(())
        });
        let paths = ["/etc/bulkhead/ssh_host_ed25519_key", "/etc/shadow", "/../etc/shadow"];
        let mut inside = 0;
        let looked = paths.iter().cycle().take(150).try_for_each(|path| {
            let (app, service) = ("flapping".parse()?, "web".parse()?);
            let ask = Ask::Look { app, service, view: View::Files { path: (*path).into() } };
            for event in ask_keeper(&keeper, &Request { protocol: PROTOCOL, ask })? {
                ensure!(!matches!(event, Event::Look(_)), "{path} of the node was shown: {event:?}");
                inside += usize::from(matches!(event, Event::Failed(failure) if failure.rule == "path"));
            }
            Ok(())
        });
        running.store(false, Ordering::Relaxed);
        restarts.join().map_err(|_| anyhow::anyhow!("restarting panicked"))??;
        looked?;
        ensure!(inside > 0, "no look met the service");
        Ok(())
    })
}

fn network(world: &World) -> Result<()> {
    let app = world.app("alone", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let (address, _) = world.address("prod-1")?;
    let (own, _) = world.address("stage-1")?;
    for target in [
        format!("{own}:22"),
        format!("{address}:22"),
        "127.0.0.1:22".to_owned(),
        "1.1.1.1:443".to_owned(),
        "[2606:4700:4700::1111]:443".to_owned(),
        "169.254.169.254:80".to_owned(),
        "[fd00:ec2::254]:80".to_owned(),
    ] {
        let (_, body) = app.get("stage-1", &format!("/connect/{target}"))?;
        ensure!(body.starts_with("error"), "{target}: {body}");
    }
    Ok(())
}

/// What `systemd-analyze security` says of each kind of unit, from 0 to 10: these numbers may fall, and not rise.
const EXPOSURE: [(&str, f64); 3] = [
    ("bulkhead-exposed.web.r1.service", 0.4),
    ("bulkhead-exposed.web.r1-proxy.service", 0.7),
    ("bulkhead-keeper@.service", 2.2),
];

fn exposure(world: &World) -> Result<()> {
    let app = world.app("exposed", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "1")?;
    for (unit, at_most) in EXPOSURE {
        let text = world.on_node("stage-1", &["systemd-analyze", "security", "--no-pager", unit])?;
        let line = text.lines().find(|line| line.contains("Overall exposure level")).context("no exposure level")?;
        let number = line.split(':').nth(1).and_then(|rest| rest.split_whitespace().next()).context("no number")?;
        let level: f64 = number.parse()?;
        ensure!(level <= at_most, "{line}, and it was {at_most}");
    }
    Ok(())
}

fn ports(world: &World) -> Result<()> {
    let app = world.app("behind", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "1")?;
    let listening = world.on_node("stage-1", &["ss", "-H", "-ltnu"])?;
    ensure!(listening.lines().all(|line| line.contains(":22 ")), "{listening}");
    // Closed ports are dropped by the firewall, so each costs a time-out: a bounded sample besides every low port.
    let (address, _) = world.address("stage-1")?;
    let address: std::net::IpAddr = address.parse()?;
    let ports: Vec<u16> = (1..=1024).chain([3000, 5355, 8080, 9000, 9100, 19531, 65535]).collect();
    let open = std::sync::Mutex::new(Vec::new());
    let found = &open;
    thread::scope(|scope| {
        for chunk in ports.chunks(ports.len().div_ceil(64)) {
            scope.spawn(move || {
                for port in chunk {
                    if TcpStream::connect_timeout(&SocketAddr::new(address, *port), Duration::from_millis(150)).is_ok()
                    {
                        found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(*port);
                    }
                }
            });
        }
    });
    let open = open.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(open == [22], "{open:?}");
    Ok(())
}

fn resident(world: &World) -> Result<()> {
    // prod-2 of this fleet is asked for nothing else while this runs but deploys of other tests, which end.
    let end = std::time::Instant::now() + bulkhead_testkit::world::PATIENCE;
    loop {
        let processes = world.on_node("prod-2", &["ps", "-e", "-o", "args="])?;
        let ours: Vec<&str> = processes
            .lines()
            .filter(|line| line.contains("bulkhead-agent") || line.contains("bulkhead-gate"))
            .collect();
        if ours.is_empty() {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < end, "{ours:?}");
    }
}
