//! What only a kernel of its own can show: limits that are enforced, contents that are checked as they are read.

use crate::{Lane, NODE, Test};
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::qemu;
use std::{fs::OpenOptions, os::unix::fs::FileExt as _};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_memory_hog_is_killed_by_its_limit", memory),
    ("a_fork_bomb_is_stopped_by_its_limit", tasks),
    ("what_is_altered_on_the_disk_cannot_be_read", verity),
];

pub(crate) const WEB: &str =
    "port = 3000\nhealth = { http = \"/health\", within = \"60s\" }\nstop = \"1s\"\ndrain = \"300ms\"\n";

/// The node still lets couriers in, and says what runs.
fn answers(lane: &Lane) -> Result<()> {
    ensure!(qemu::greets(qemu::ADDRESS), "sshd does not greet");
    lane.world.run(&lane.world.fleet(), &["ps", "-e", "staging"])?.expect(0).map(drop)
}

fn memory(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    {
        let app = lane.world.app("hog", &["serve", "3000"], &format!("{WEB}memory = \"64M\""))?;
        app.deploy("staging", 0)?;
    }
    lane.served("hog")?;
    ensure!(lane.get("hog", "/hog/16")?.1 == "16777216 bytes", "what its limit allows is refused");
    // It is killed in the middle of its answer.
    let greedy = lane.get("hog", "/hog/900");
    ensure!(!matches!(&greedy, Ok((200, body)) if body.contains("bytes")), "it got 900 MiB: {greedy:?}");
    answers(lane)?;
    let kernel = lane
        .machine
        .console("journalctl -k --no-pager | grep -c 'Memory cgroup out of memory: Killed process' || true")?;
    ensure!(kernel.trim().parse::<u32>()? >= 1, "the kernel killed nothing for its group's limit");
    let others = lane.machine.console("journalctl -k --no-pager | grep 'Out of memory: Killed' || true")?;
    ensure!(others.trim().is_empty(), "the machine as a whole ran short: {others}");
    // systemd starts it again.
    lane.served("hog").map(drop)
}

fn tasks(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    {
        let app = lane.world.app("bomb", &["serve", "3000"], &format!("{WEB}tasks = 40"))?;
        app.deploy("staging", 0)?;
    }
    lane.served("bomb")?;
    let (_, started) = lane.get("bomb", "/fork/5000")?;
    let started: u32 = started.parse().with_context(|| format!("it says {started}"))?;
    ensure!((1..40).contains(&started), "it started {started} processes of 5000, with a limit of 40");
    answers(lane)?;
    let held = lane.machine.console("cat /sys/fs/cgroup/bulkhead.slice/bulkhead-bomb.web.r1.service/pids.events")?;
    let refused = held.split_whitespace().nth(1).unwrap_or_default();
    ensure!(refused != "0", "the kernel refused no process: {held}");
    lane.world.run(&lane.world.fleet(), &["rm", "-e", "staging", "bomb", "--yes"])?.expect(0)?;
    // One that never gives up: each of its processes starts others for as long as it lives.
    {
        let app = lane.world.app("endless", &["serve", "3000"], &format!("{WEB}tasks = 40\ncpu_percent = 50"))?;
        app.deploy("staging", 0)?;
    }
    lane.served("endless")?;
    ensure!(lane.get("endless", "/multiply")?.1 == "started", "it did not begin");
    lane.until("it has as many processes as it may", |machine| {
        let group = "/sys/fs/cgroup/bulkhead.slice/bulkhead-endless.web.r1.service";
        let held = machine.console(&format!("grep -c . {group}/cgroup.procs; cat {group}/pids.events"))?;
        Ok(held.lines().nth(1).is_some_and(|line| line != "max 0"))
    })?;
    answers(lane)?;
    lane.world.run(&lane.world.fleet(), &["stop", "-e", "staging", "endless", "--yes"])?.expect(0)?;
    let services =
        lane.machine.console("systemctl list-units --no-legend --plain 'bulkhead-endless*.service' --state=active")?;
    ensure!(!services.contains("endless.web.r1.service"), "it goes on: {services}");
    lane.world.run(&lane.world.fleet(), &["rm", "-e", "staging", "endless", "--yes"])?.expect(0).map(drop)
}

fn verity(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    let secret = "this text is on the disk as it is, and long enough to have a block of its own. ".repeat(60);
    {
        let app = lane.world.app("sealed", &["serve", "3000"], WEB)?;
        app.write("known.txt", &secret)?;
        app.deploy("staging", 0)?;
    }
    ensure!(lane.facility("fs-verity")?, "the node says it has no fs-verity");
    ensure!(lane.facility("sealed-images")?, "the node says it cannot mount sealed images");
    lane.served("sealed")?;
    ensure!(lane.get("sealed", "/read/app/known.txt")?.1 == secret.trim(), "the file is not what was deployed");
    let object =
        lane.machine.console("grep -rlF 'this text is on the disk as it is' /var/lib/bulkhead/store | head -n 1")?;
    let object = object.trim().to_owned();
    ensure!(!object.is_empty(), "no object holds the text");
    // Nobody writes to it through the file system, not even root.
    let (code, said) = lane.machine.try_console(&format!("printf x | dd of={object} conv=notrunc 2>&1"))?;
    ensure!(code != 0, "root wrote to an object: {said}");
    lane.machine.power_off()?;
    let block = lane.machine.first_block(&object)?;
    let disk = OpenOptions::new().read(true).write(true).open(lane.machine.disk())?;
    let mut start = [0; 9];
    disk.read_exact_at(&mut start, block * 4096)?;
    ensure!(&start == b"this text", "block {block} holds something else");
    disk.write_all_at(b"THAT", block * 4096)?;
    disk.sync_all()?;
    lane.machine.start()?;
    lane.machine.await_ssh()?;
    lane.served("sealed")?;
    let (_, read) = lane.get("sealed", "/read/app/known.txt")?;
    ensure!(read.starts_with("error:") && !read.contains("THAT"), "altered contents were read: {read}");
    ensure!(lane.get("sealed", "/read/app/version.txt")?.1 == "1", "another file cannot be read");
    // A scrub finds it and says so.
    lane.machine.try_console("systemctl start bulkhead-scrub.service")?;
    ensure!(!lane.facility("intact-images")?, "the node says that its images are whole");
    // What is deployed next brings the object again, though only another file has changed.
    {
        let app = lane.world.app("sealed", &["serve", "3000"], WEB)?;
        app.write("version.txt", "2")?;
        app.write("known.txt", &secret)?;
        app.deploy("staging", 0)?;
    }
    lane.served("sealed")?;
    let (_, read) = lane.get("sealed", "/read/app/known.txt")?;
    ensure!(read == secret.trim(), "a new deploy did not mend it on {NODE}: {read}");
    Ok(())
}
