//! Tools from a tool image, let at a service from outside: what they see and can
//! do, what the service sees of them, and who may have them run.

use crate::orders::{converse, sign};
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{App, PATIENCE, Ran, World};
use bulkhead_wire::{Ask, Event, FailureKind, PROTOCOL, Request, Submit};
use serde_json::{Value, json};
use std::{
    fs,
    process::{Child, Command},
    time::Instant,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_tracer_counts_system_calls", traced),
    ("a_tool_sees_the_services_tree_and_cannot_write_it", target),
    ("a_tool_reaches_no_other_service_and_nothing_of_the_node", confined),
    ("a_service_sees_nothing_of_a_tool", unseen),
    ("a_capture_sees_packets_and_nothing_else", captured),
    ("a_tool_makes_no_namespace_and_no_mount", shut_in),
    ("exit_codes_time_and_interruptions", ends),
    ("a_tool_is_gone_with_its_client", client_gone),
    ("a_tool_is_gone_with_its_keeper", keeper_gone),
    ("orders_to_look_are_signed_and_used_once", authorised),
    ("tool_images_and_app_images_are_not_mixed_up", images),
    ("looking_is_in_the_history_and_stops_no_deploy", history),
];

const WEB: &str = "port = 3000\nstop = \"1s\"\nvolumes = { data = \"/data\" }";

fn app<'a>(world: &'a World, name: &str) -> Result<App<'a>> {
    let app = world.app(name, &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    Ok(app)
}

fn target_of(app: &App<'_>) -> String {
    format!("{}/web", app.name)
}

/// Runs a tool and leaves its exit code to the caller.
fn look(app: &App<'_>, more: &[&str], tool: &[&str]) -> Result<Ran> {
    let target = target_of(app);
    let words = [&["look", "-e", "staging", target.as_str()], more, &["--"], tool].concat();
    app.run(&words)
}

fn shell(app: &App<'_>, script: &str) -> Result<String> {
    Ok(look(app, &[], &["sh", "-c", script])?.expect(0)?.stdout)
}

/// Starts a tool and waits until its unit is there.
fn begin(world: &World, app: &App<'_>, tool: &[&str]) -> Result<(Child, String)> {
    let target = target_of(app);
    let words = [&["look", "-e", "staging", target.as_str(), "--"], tool].concat();
    let child = world.spawn(&app.folder, &words)?;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(unit) = units(world, app)?.first() {
            let processes = format!("/sys/fs/cgroup/bulkhead.slice/bulkhead-tools.slice/{unit}/cgroup.procs");
            let found = world.on_node("stage-1", &["cat", &processes]).unwrap_or_default();
            // The agent, and the tool.
            if found.lines().count() > 1 {
                return Ok((child, unit.clone()));
            }
        }
        ensure!(Instant::now() < end, "no tool runs for {}", app.name);
    }
}

/// Units of tools that look into this app.
fn units(world: &World, app: &App<'_>) -> Result<Vec<String>> {
    let words = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", "bulkhead-tool-*.service"];
    let text = world.on_node("stage-1", &words)?;
    let own = format!("{}/web,", app.name);
    Ok(text
        .lines()
        .filter(|line| line.contains(&own))
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect())
}

/// The number that the service's process has on the node.
fn pid_of(world: &World, app: &App<'_>) -> Result<String> {
    let unit = format!("bulkhead-{}.web.r1.service", app.name);
    Ok(world.on_node("stage-1", &["systemctl", "show", "-P", "MainPID", &unit])?.trim().to_owned())
}

/// Waits until a tracer has the service's process.
fn attached(world: &World, app: &App<'_>) -> Result<()> {
    let status = format!("/proc/{}/status", pid_of(world, app)?);
    let end = Instant::now() + PATIENCE;
    while world.on_node("stage-1", &["cat", &status])?.contains("TracerPid:\t0\n") {
        ensure!(Instant::now() < end, "no tracer came");
    }
    Ok(())
}

fn none_is_left(world: &World, app: &App<'_>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !units(world, app)?.is_empty() {
        ensure!(Instant::now() < end, "a tool is left: {:?}", units(world, app)?);
    }
    Ok(())
}

fn traced(world: &World) -> Result<()> {
    let app = app(world, "traced")?;
    let (mut child, _) = begin(world, &app, &["timeout", "-s", "INT", "3", "strace", "-f", "-c", "-p", "1"])?;
    while child.try_wait()?.is_none() {
        app.get("stage-1", "/work/300")?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let opened = text.lines().find(|line| line.ends_with("openat") || line.ends_with("open"));
    let count = opened.and_then(|line| line.split_whitespace().nth(3)?.parse::<u32>().ok());
    ensure!(count.is_some_and(|count| count >= 300), "{text}");
    app.serves("stage-1", "1")?;
    // The same with a debugger, by the number that the process has inside.
    let ran = look(&app, &[], &["gdb", "-p", "1", "-batch", "-ex", "info threads"])?.expect(0)?;
    ensure!(ran.stdout.contains("testapp"), "{ran}");
    app.serves("stage-1", "1")?;
    look(&app, &[], &["lsof", "-p", "1"])?.expect(0)?.says("TCP")?;
    look(&app, &[], &["top", "-b", "-n", "1"])?.expect(0)?.says("testapp")?;
    // A service that ends takes the tracer's work with it, and nothing else.
    let (child, _) = begin(world, &app, &["strace", "-f", "-p", "1"])?;
    attached(world, &app)?;
    app.get("stage-1", "/crash").ok();
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && text.contains("exited with 3"), "{text}");
    none_is_left(world, &app)?;
    ensure!(app.served("stage-1")? == "1", "the service did not come back");
    Ok(())
}

fn target(world: &World) -> Result<()> {
    let app = app(world, "seen")?;
    app.get("stage-1", "/append/data/note/hello")?;
    app.get("stage-1", "/append/tmp/mine/hello")?;
    let text = shell(&app, "cat /target/app/version.txt /target/data/note; ls /target/proc /target/sys /target/dev")?;
    ensure!(text.starts_with("1hello\n"), "{text}");
    ensure!(!text.contains("self") && !text.contains("null"), "{text}");
    for path in ["/target/app/x", "/target/data/x", "/target/tmp/x", "/target/data/note", "/etc/x", "/proc/sys/x"] {
        let ran = look(&app, &[], &["sh", "-c", &format!("echo x >> {path}")])?;
        ensure!(ran.code != 0, "{path} was written: {ran}");
        ensure!(path.ends_with("/x") || app.get("stage-1", "/read/data/note")?.1 == "hello\n", "{path} was written");
    }
    let mounts = shell(&app, "cat /proc/self/mountinfo")?;
    let writable: Vec<&str> = mounts
        .lines()
        .filter(|line| line.split(' ').nth(5).is_some_and(|options| options.split(',').any(|one| one == "rw")))
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|place| !place.starts_with("/dev/") && !place.starts_with("/proc/"))
        .collect();
    ensure!(writable == ["/tmp"], "{writable:?} in {mounts}");
    shell(&app, "echo x > /tmp/x && cat /tmp/x").map(drop)
}

fn confined(world: &World) -> Result<()> {
    let app = app(world, "looked-at")?;
    let other = self::app(world, "bystander")?;
    other.get("stage-1", "/append/data/secret/hidden")?;
    let (own, others) = (pid_of(world, &app)?, pid_of(world, &other)?);
    // Its processes and the tool's own: of what the service is, one.
    let seen = shell(&app, "for p in /proc/[0-9]*; do cat $p/comm 2>/dev/null; done; ls -d /proc/[0-9]*")?;
    ensure!(seen.contains("testapp") && seen.lines().any(|line| line == format!("/proc/{own}")), "{seen}");
    ensure!(!seen.lines().any(|line| line == format!("/proc/{others}") || line == "/proc/1"), "{seen}");
    ensure!(!seen.contains("systemd") && !seen.contains("sshd") && !seen.contains("bulkhead-agent"), "{seen}");
    let unit = ["systemctl", "show", "-P", "MainPID", "systemd-journald.service"];
    let journald = world.on_node("stage-1", &unit)?.trim().to_owned();
    for pid in [others.as_str(), &journald] {
        for tool in [&["strace", "-p"][..], &["gdb", "-batch", "-ex", "bt", "-p"]] {
            let ran = look(&app, &[], &[tool, &[pid]].concat())?;
            ensure!(ran.stdout.contains("not permitted") || ran.stderr.contains("not permitted"), "{pid}: {ran}");
        }
        for script in [format!("kill -9 {pid}"), format!("cat /proc/{pid}/environ"), format!("ls /proc/{pid}/root/")] {
            let ran = look(&app, &[], &["sh", "-c", &script])?;
            ensure!(ran.code != 0, "`{script}`: {ran}");
        }
    }
    other.serves("stage-1", "1")?;
    let rights = shell(&app, "cat /proc/self/status; id -u")?;
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000080024", "CapBnd:\t0000000000080024"] {
        ensure!(rights.contains(line), "no `{line}` in {rights}");
    }
    let (address, _) = world.address("prod-1")?;
    let (node, _) = world.address("stage-1")?;
    for (host, port) in [(node.as_str(), "22"), (&address, "22"), ("127.0.0.1", "22"), ("169.254.169.254", "80")] {
        let ran = look(&app, &[], &["busybox", "nc", "-w", "2", host, port])?;
        ensure!(ran.code != 0 && !ran.stdout.contains("SSH"), "{host}:{port}: {ran}");
    }
    // The service's own network it is in.
    let ran = look(&app, &[], &["ss", "-Hltn"])?.expect(0)?;
    ensure!(ran.stdout.lines().count() == 1 && ran.stdout.contains(":3000"), "{ran}");
    for script in [
        "ls /var/lib/bulkhead",
        "ls /run/bulkhead",
        "busybox mount -t tmpfs x /tmp",
        "chroot /target /x",
        "busybox nsenter -t 1 -m true",
    ] {
        let ran = look(&app, &[], &["sh", "-c", script])?;
        ensure!(ran.code != 0, "`{script}`: {ran}");
    }
    // Nor the node by a link that the service could have made.
    let ran = look(&app, &[], &["cat", "/proc/1/root/etc/shadow"])?;
    ensure!(ran.code != 0 && !ran.stdout.contains("root:"), "{ran}");
    Ok(())
}

/// All that a service can look at by itself: its numbers of processes, mounts, sockets, files.
fn inside(app: &App<'_>) -> Result<Vec<String>> {
    let get = |path: &str| app.get("stage-1", path).map(|(_, body)| body);
    let pids = get("/list/proc")?.lines().filter(|line| line.parse::<u32>().is_ok()).collect::<Vec<_>>().join(" ");
    let sockets = |text: &str| text.lines().count().to_string();
    Ok(vec![
        pids,
        get("/read/proc/self/mountinfo")?,
        sockets(&get("/read/proc/net/unix")?),
        sockets(&get("/read/proc/net/packet")?),
        sockets(&get("/read/proc/net/netlink")?),
        get("/list/")?,
        get("/list/tmp")?,
        get("/list/dev/shm")?,
        get("/list/run")?,
        get("/list/data")?,
    ])
}

fn unseen(world: &World) -> Result<()> {
    let app = app(world, "unaware")?;
    let before = inside(&app)?;
    let spawned = || -> Result<u32> { Ok(app.get("stage-1", "/spawn")?.1.trim().parse()?) };
    let number = spawned()?;
    // A thread for each connection and a process each time: what a number costs the service itself.
    let each = spawned()? - number;
    let script = "touch /tmp/x; sleep 1 & for i in $(seq 50); do true | cat; done; sleep 30";
    let (mut child, unit) = begin(world, &app, &["sh", "-c", script])?;
    ensure!(inside(&app)? == before, "{:?} was {before:?}", inside(&app)?);
    // No number of the service's was used up by all that the tool started.
    let (first, second) = (spawned()?, spawned()?);
    ensure!(second - first == each, "numbers {first} and {second}, {each} apart before");
    ensure!(first - number < 100, "{number} before, {first} after");
    let status = app.get("stage-1", "/read/proc/self/status")?.1;
    ensure!(status.contains("TracerPid:\t0"), "{status}");
    child.kill()?;
    child.wait()?;
    none_is_left(world, &app)?;
    ensure!(inside(&app)? == before, "{unit} left something");
    // What a tracer leaves behind when it is killed: nothing.
    let (mut child, _) = begin(world, &app, &["strace", "-f", "-o", "/tmp/x", "-p", "1"])?;
    attached(world, &app)?;
    let traced = app.get("stage-1", "/read/proc/self/status")?.1;
    ensure!(traced.contains("TracerPid:\t0"), "{traced}");
    child.kill()?;
    child.wait()?;
    none_is_left(world, &app)?;
    ensure!(inside(&app)? == before, "a tracer left something");
    app.serves("stage-1", "1")
}

fn captured(world: &World) -> Result<()> {
    let app = app(world, "captured")?;
    let (child, _) = begin(world, &app, &["tcpdump", "-n", "-i", "lo", "-c", "4", "port", "3000"])?;
    let end = Instant::now() + PATIENCE;
    let mut child = child;
    while child.try_wait()?.is_none() {
        app.get("stage-1", "/version")?;
        ensure!(Instant::now() < end, "nothing was captured");
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.lines().filter(|line| line.contains(".3000")).count() == 4,
        "{text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rights = look(&app, &["--capture"], &["sh", "-c", "ls /target; ls -d /proc/[0-9]*; cat /proc/self/status"])?
        .expect(0)?;
    ensure!(rights.stdout.contains("CapEff:\t0000000000002000") && !rights.stdout.contains("app"), "{rights}");
    let ran = look(&app, &["--capture"], &["strace", "-p", "1"])?;
    ensure!(ran.code != 0, "{ran}");
    Ok(())
}

/// A service whose packets break the tool that captures them reaches no more of the kernel than it did.
fn shut_in(world: &World) -> Result<()> {
    let app = app(world, "shut-in")?;
    for rights in [&["--capture"][..], &[]] {
        for script in [
            "busybox unshare -U true",
            "busybox unshare -r -m busybox mount -t tmpfs x /tmp",
            "busybox unshare -r -n true",
            "busybox mount -t tmpfs x /tmp",
            "busybox umount /proc",
            "busybox chroot / /usr/bin/busybox true",
        ] {
            let ran = look(&app, rights, &["sh", "-c", script])?;
            let said = ran.to_string();
            let is_refused = said.contains("not permitted") || said.contains("ermission denied");
            ensure!(ran.code != 0 && is_refused, "{rights:?} `{script}`: {said}");
        }
        // What else it starts, it can: pipes, and threads.
        look(&app, rights, &["sh", "-c", "seq 3 | wc -l"])?.expect(0)?.says("3")?;
    }
    // And packets are captured as before.
    let target = target_of(&app);
    let tool = ["tcpdump", "-n", "-i", "lo", "-c", "2", "port", "3000"];
    let mut child =
        world.spawn(&app.folder, &[&["look", "-e", "staging", &target, "--capture", "--"][..], &tool].concat())?;
    let end = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        app.get("stage-1", "/version")?;
        ensure!(Instant::now() < end, "nothing was captured");
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.matches(".3000").count() >= 2, "{output:?}");
    Ok(())
}

fn ends(world: &World) -> Result<()> {
    let app = app(world, "ending")?;
    look(&app, &[], &["sh", "-c", "echo out; echo err >&2; exit 3"])?.expect(3)?.says("out")?.says("err")?;
    look(&app, &[], &["no-such-tool"])?.expect(127)?.says("no-such-tool: applet not found")?;
    look(&app, &[], &["/usr/bin/no-such-tool"])?.expect(5)?.says("has no `/usr/bin/no-such-tool`")?;
    let begun = Instant::now();
    look(&app, &["--within", "1s"], &["sleep", "60"])?.expect(130)?.says("its time was up")?;
    look(&app, &["--within", "1s"], &["sh", "-c", "trap '' INT; sleep 60"])?.expect(137)?.says("its time was up")?;
    ensure!(begun.elapsed() < PATIENCE, "the bound on time did not hold");
    none_is_left(world, &app)?;
    // Ctrl-C reaches the tool, which says its last words.
    let script = "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 1; done";
    let (child, _) = begin(world, &app, &["sh", "-c", script])?;
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    ensure!(sent.success(), "no signal");
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(4) && text.contains("interrupted"), "{output:?}");
    let json = look(&app, &["-o", "json"], &["sh", "-c", "echo out; exit 2"])?.expect(2)?.json()?;
    ensure!(json["ran"]["stdout"] == "out\n" && json["ran"]["code"] == 2, "{json}");
    // More than fits into all buffers on the way.
    let ran = look(&app, &[], &["sh", "-c", "seq 1000000"])?.expect(0)?;
    ensure!(ran.stdout.lines().count() == 1_000_000 && ran.stdout.ends_with("1000000\n"), "{} bytes", ran.stdout.len());
    // The node's own views still need neither an image nor an order.
    look(&app, &[], &["ps"])?.expect(0)?.says("testapp").map(drop)
}

fn client_gone(world: &World) -> Result<()> {
    let app = app(world, "left")?;
    let (mut child, unit) = begin(world, &app, &["sh", "-c", "trap '' INT TERM HUP; sleep 200 & sleep 200"])?;
    child.kill()?;
    child.wait()?;
    none_is_left(world, &app)?;
    let text = world.on_node("stage-1", &["ps", "-e", "-o", "args="])?;
    ensure!(!text.contains("sleep 200"), "{unit}: {text}");
    traces(world, &unit)
}

/// Waits until nothing of a tool is in `/run`: no unit, no socket, no user id.
fn traces(world: &World, unit: &str) -> Result<()> {
    let id = unit.trim_start_matches("bulkhead-tool-").trim_end_matches(".service");
    let script = "ls /run/bulkhead/tools /run/systemd/system; cat /run/bulkhead/tools/ids/* 2>/dev/null; true";
    let end = Instant::now() + PATIENCE;
    loop {
        let files = world.on_node("stage-1", &["sh", "-c", script])?;
        if !files.contains(id) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "something of {id} is left: {files}");
    }
}

fn keeper_gone(world: &World) -> Result<()> {
    let app = app(world, "bereft")?;
    let (mut child, unit) = begin(world, &app, &["sleep", "201"])?;
    // The keeper whose connection this is, told by what it has open.
    let socket = format!("tools/{}", unit.trim_start_matches("bulkhead-tool-").trim_end_matches(".service"));
    let script = "for p in $(pgrep -f 'bulkhead-agent keeper'); do grep -q \"$0\" /proc/$p/net/unix && kill -KILL $p; done; true";
    world.on_node("stage-1", &["sh", "-c", script, &socket])?;
    none_is_left(world, &app)?;
    child.wait()?;
    traces(world, &unit)?;
    app.serves("stage-1", "1")
}

/// A tool image of the fleet, as it is on stage-1, and a good order to look with it.
fn order(app: &App<'_>) -> Result<Value> {
    look(app, &[], &["true"])?.expect(0)?;
    let root = app.node_root("stage-1")?.join(format!("var/lib/bulkhead/apps/{}", app.name));
    let head: Value = serde_json::from_slice(&fs::read(root.join("head.json"))?)?;
    let number = head["counter"].as_u64().context("no counter")?;
    let bytes = fs::read(root.join(format!("releases/{number}/order.json")))?;
    let mut order: Value = serde_json::from_slice(&bytes)?;
    let previous = bulkhead_core::OrderId::of(&bytes).to_string();
    let boot = order["targets"]["stage-1"]["boot"].take();
    order["targets"]["stage-1"] = json!({ "counter": number + 1, "previous": previous, "boot": boot });
    Ok(order)
}

fn submit(world: &World, bytes: &[u8], signatures: Vec<String>) -> Result<Vec<Event>> {
    let submit = Submit { signatures, ..Submit::default() };
    converse(world, "stage-1", &Request { protocol: PROTOCOL, ask: Ask::Submit(submit) }, &[bytes])
}

fn refused(events: &[Event], rule: &str) -> Result<()> {
    match events.last() {
        Some(Event::Failed(failure)) if failure.kind == FailureKind::Refused && failure.rule == rule => Ok(()),
        other => anyhow::bail!("{other:?} instead of a refusal by {rule}"),
    }
}

fn authorised(world: &World) -> Result<()> {
    let app = app(world, "guarded")?;
    let mut order = order(&app)?;
    let bytes = serde_json::to_vec_pretty(&order)?;
    // A courier's key opens the connection and no more.
    refused(&submit(world, &bytes, vec![])?, "threshold")?;
    let stranger = app.folder.join("stranger");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&stranger).status()?;
    ensure!(made.success(), "ssh-keygen failed");
    refused(&submit(world, &bytes, vec![sign(&stranger, "order@bulkhead", &bytes, &app.folder)?])?, "threshold")?;
    let good = sign(&world.key(), "order@bulkhead", &bytes, &app.folder)?;
    order["action"]["command"] = json!(["sh", "-c", "id"]);
    refused(&submit(world, &serde_json::to_vec_pretty(&order)?, vec![good.clone()])?, "threshold")?;
    // Signed it runs, once: what was caught on the way is of no use.
    let events = submit(world, &bytes, vec![good.clone()])?;
    ensure!(events.iter().any(|event| matches!(event, Event::Ended(end) if end.code == Some(0))), "{events:?}");
    let again = submit(world, &bytes, vec![good.clone()])?;
    ensure!(matches!(again.last(), Some(Event::Done(done)) if done.already), "{again:?}");
    ensure!(!again.iter().any(|event| matches!(event, Event::Ended(_) | Event::Stream { .. })), "{again:?}");
    look(&app, &[], &["true"])?.expect(0)?;
    refused(&submit(world, &bytes, vec![good])?, "counter")?;
    let audit = world.on_node("stage-1", &["grep", "guarded", "/var/lib/bulkhead/audit.jsonl"])?;
    ensure!(audit.contains("`true` in web") && audit.contains("exit code 0"), "{audit}");
    whole_chain(world)
}

/// The whole log is still one chain: every line names the sha256 of the one before.
fn whole_chain(world: &World) -> Result<()> {
    let log = world.on_node("stage-1", &["cat", "/var/lib/bulkhead/audit.jsonl"])?;
    let mut previous = "0".repeat(64);
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line)?;
        ensure!(entry["previous"] == previous, "the chain breaks at {line}");
        previous = bulkhead_core::digest::hex(&bulkhead_core::digest::sha256(line.as_bytes()));
    }
    Ok(())
}

fn images(world: &World) -> Result<()> {
    let app = app(world, "mixed")?;
    let mut order = order(&app)?;
    let root = app.node_root("stage-1")?.join("var/lib/bulkhead/apps/mixed");
    let first: Value = serde_json::from_slice(&fs::read(root.join("releases/1/order.json"))?)?;
    let tools = order["action"]["image"].clone();
    let send = |order: &Value| -> Result<Vec<Event>> {
        let bytes = serde_json::to_vec_pretty(order)?;
        let signature = sign(&world.key(), "order@bulkhead", &bytes, &app.folder)?;
        submit(world, &bytes, vec![signature])
    };
    order["action"]["image"] = first["action"]["image"].clone();
    refused(&send(&order)?, "tool-image")?;
    order["action"] = first["action"].clone();
    order["action"]["image"] = tools;
    refused(&send(&order)?, "tool-image")?;
    app.serves("stage-1", "1")
}

fn history(world: &World) -> Result<()> {
    let app = app(world, "noted")?;
    let (mut child, _) = begin(world, &app, &["sleep", "60"])?;
    // A tool that runs holds up no order, and its service may go.
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")?;
    child.kill()?;
    child.wait()?;
    none_is_left(world, &app)?;
    look(&app, &["-m", "slow since noon"], &["true"])?.expect(0)?;
    app.run(&["releases", "-e", "staging", "noted"])?.expect(0)?.says("look")?.says("slow since noon")?;
    app.run(&["rollback", "-e", "staging", "noted", "--yes"])?.expect(0)?;
    app.serves("stage-1", "1")
}
