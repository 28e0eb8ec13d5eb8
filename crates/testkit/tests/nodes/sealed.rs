//! What a service can do from inside, and what a node shows outside.

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::World;
use std::{
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::Duration,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_service_sees_its_image_and_nothing_else", inside),
    ("a_service_reaches_no_network", network),
    ("what_a_service_writes_it_cannot_execute", no_exec),
    ("a_service_reaches_no_socket_of_the_journal", no_journal),
    ("looking_at_a_service_that_restarts_never_shows_the_node", look_races),
    ("exposure_is_below_one", exposure),
    ("a_node_listens_on_port_22_alone", ports),
    ("nothing_of_ours_is_resident", resident),
    ("accounts_give_no_shell_and_no_forwarding", accounts),
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
    let app = world.app("quiet", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let (_, body) = app.get("stage-1", "/list/run/systemd/journal")?;
    ensure!(body.starts_with("error"), "{body}");
    Ok(())
}

/// While systemd prepares a service its processes still have the node's own tree.
fn look_races(world: &World) -> Result<()> {
    let app = world.app("flapping", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let ask = |path: &str| bulkhead_wire::Request {
        protocol: bulkhead_wire::PROTOCOL,
        ask: bulkhead_wire::Ask::Look {
            app: "flapping".parse().expect("a name"),
            service: "web".parse().expect("a name"),
            view: bulkhead_wire::View::Files { path: path.into() },
        },
    };
    let unit = "bulkhead-flapping.web.r1.service";
    let running = std::sync::atomic::AtomicBool::new(true);
    thread::scope(|scope| {
        let restarts = scope.spawn(|| {
            while running.load(std::sync::atomic::Ordering::Relaxed) {
                world.on_node("stage-1", &["systemctl", "restart", unit])?;
            }
            anyhow::Ok(())
        });
        let looked = (0..60).try_for_each(|_| {
            let request = ask("/etc/bulkhead/node.json");
            for event in super::orders::converse(world, "stage-1", &request, &[])? {
                ensure!(!matches!(event, bulkhead_wire::Event::Look(_)), "the node's own file was shown: {event:?}");
            }
            Ok(())
        });
        running.store(false, std::sync::atomic::Ordering::Relaxed);
        restarts.join().map_err(|_| anyhow::anyhow!("restarting panicked"))??;
        looked
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
        "169.254.169.254:80".to_owned(),
        "[fd00:ec2::254]:80".to_owned(),
    ] {
        let (_, body) = app.get("stage-1", &format!("/connect/{target}"))?;
        ensure!(body.starts_with("error"), "{target}: {body}");
    }
    Ok(())
}

fn exposure(world: &World) -> Result<()> {
    let app = world.app("exposed", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let text =
        world.on_node("stage-1", &["systemd-analyze", "security", "--no-pager", "bulkhead-exposed.web.r1.service"])?;
    let line = text.lines().find(|line| line.contains("Overall exposure level")).context("no exposure level")?;
    let level: f64 =
        line.split(':').nth(1).and_then(|rest| rest.split_whitespace().next()).context("no number")?.parse()?;
    ensure!(level < 1.0, "{line}");
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

fn accounts(world: &World) -> Result<()> {
    for account in [bulkhead_wire::ACCOUNT, bulkhead_wire::DROP_ACCOUNT] {
        for command in ["id", "cat /etc/passwd", "/bin/sh -c id", "scp -t /tmp"] {
            let output = super::orders::ssh(world, "stage-1", account)?.arg(command).stdin(Stdio::null()).output()?;
            ensure!(!output.status.success(), "{account} ran `{command}`");
            ensure!(!String::from_utf8_lossy(&output.stdout).contains("uid="), "{account} ran `{command}`");
        }
        let forward = super::orders::ssh(world, "stage-1", account)?
            .args(["-W", "127.0.0.1:22"])
            .stdin(Stdio::null())
            .output()?;
        ensure!(!String::from_utf8_lossy(&forward.stdout).contains("SSH-2.0"), "{account} may forward");
    }
    Ok(())
}
