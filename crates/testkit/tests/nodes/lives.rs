//! Reboots, power cuts and full disks: what a test does to a node of its own.

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{PATIENCE, World, noise};
use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("power_cut_at_any_moment_of_a_deploy", power_cut),
    ("a_full_disk_on_the_node", full_disk),
    ("an_image_that_cannot_be_mounted_at_boot", dark_boot),
];

/// Also the test of a reboot with nobody connected: after each cut the node
/// comes back and serves before anything but the test's own look at its socket.
fn power_cut(world: &World) -> Result<()> {
    let app = world.app("mains", &["serve", "3000"], "port = 3000\nstop = \"1s\"\ndrain = \"100ms\"")?;
    app.deploy("staging", 0)?;
    let mut old = "1".to_owned();
    let began = Instant::now();
    app.write("version.txt", "probe")?;
    app.deploy("staging", 0)?;
    let usual = began.elapsed();
    old.replace_range(.., "probe");
    for round in 0..8u32 {
        let new = format!("round-{round}");
        app.write("version.txt", &new)?;
        let mut deploy = app.spawn_deploy("staging")?;
        // Spread over the time that a deploy takes here; what matters is that the moments differ.
        let moment = Instant::now() + usual * (round + 1) / 9;
        thread::park_timeout(moment.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        world.kill_node("stage-1")?;
        deploy.wait()?;
        world.start_node("stage-1")?;
        let serving = app.served("stage-1").with_context(|| format!("after the cut in round {round}"))?;
        ensure!(serving == old || serving == new, "round {round}: `{serving}` serves");
        app.deploy("staging", 0).with_context(|| format!("round {round}: the next deploy"))?;
        app.serves("stage-1", &new)?;
        old = new;
    }
    // While no node runs, another fleet takes the network.
    world.kill_node("stage-1")?;
    let (before, _) = world.address("stage-1")?;
    let (network, _) = before.rsplit_once('.').context("no address")?;
    let bridge = format!("bulkx{}", std::process::id());
    let ip = |words: &[&str]| Command::new("ip").args(words).status();
    ip(&["link", "add", &bridge, "type", "bridge"])?;
    ip(&["address", "add", &format!("{network}.1/24"), "dev", &bridge])?;
    let started = world.start_node("stage-1");
    ip(&["link", "delete", &bridge])?;
    started?;
    ensure!(world.address("stage-1")?.0 != before, "the address is another fleet's");
    app.deploy("staging", 0).map(drop)
}

fn full_disk(world: &World) -> Result<()> {
    let app = world.app("heavy", &["serve", "3000"], "port = 3000\nstop = \"1s\"\ndrain = \"100ms\"")?;
    app.deploy("staging", 0)?;
    std::fs::write(app.folder.join("noise"), noise(3 << 20, 1))?;
    app.write("version.txt", "2")?;
    let store = "/var/lib/bulkhead/store";
    world.on_node("stage-1", &["mount", "-t", "tmpfs", "-o", "size=9M,mode=0700", "tmpfs", store])?;
    let failed = app.run(&["deploy", "-e", "staging", "--yes"]);
    world.on_node("stage-1", &["umount", store])?;
    failed?.expect(8)?.says("disk")?;
    app.serves("stage-1", "1")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")
}

/// The node comes back without what one app needs: that app is told to be down, the other serves, and the next
/// order brings it back once it can be.
fn dark_boot(world: &World) -> Result<()> {
    let web = "port = 3000\nstop = \"1s\"\ndrain = \"100ms\"";
    let [app, other] = [world.app("dark", &["serve", "3000"], web)?, world.app("lit", &["serve", "3000"], web)?];
    for one in [&app, &other] {
        one.write("version.txt", &one.name)?;
        one.deploy("staging", 0)?;
    }
    let built = app.run(&["build", "-o", "json"])?.expect(0)?.json()?;
    let image = built["image"].as_str().context("no image")?;
    let drop_in = format!("/etc/systemd/system/bulkhead-image@{image}.service.d");
    let without = "[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_FOWNER CAP_CHOWN\n";
    world.on_node("stage-1", &["mkdir", "-p", &drop_in])?;
    world.on_node("stage-1", &["sh", "-c", &format!("printf '{without}' > {drop_in}/lacking.conf")])?;
    world.kill_node("stage-1")?;
    world.start_node("stage-1")?;

    let state = || world.on_node("stage-1", &["systemctl", "show", "-P", "ActiveState", "bulkhead-boot.service"]);
    let end = Instant::now() + PATIENCE;
    while state()?.trim() != "failed" {
        ensure!(Instant::now() < end, "the boot's unit is {}", state()?);
        thread::park_timeout(Duration::from_millis(100));
    }
    let journal = world.on_node("stage-1", &["journalctl", "-b", "-u", "bulkhead-boot.service", "--no-pager"])?;
    ensure!(journal.contains("app `dark`") && !journal.contains("app `lit`"), "{journal}");
    other.serves("stage-1", "lit")?;
    let seen = app.run(&["ps", "-e", "staging", "-o", "json"])?.expect(0)?.json()?;
    let states = |name: &str| -> Vec<String> {
        let services = seen["services"].as_array().into_iter().flatten();
        services.filter(|one| one["app"] == name).map(|one| one["state"].to_string()).collect()
    };
    ensure!(states("lit") == ["\"active\""], "{seen}");
    ensure!(states("dark").len() == 1 && states("dark") != ["\"active\""], "{seen}");
    // Nor does an order claim that it runs.
    let restart = ["restart", "-e", "staging", "dark", "--yes"];
    app.run(&restart)?.expect(8)?;

    world.on_node("stage-1", &["rm", "-r", &drop_in])?;
    world.on_node("stage-1", &["systemctl", "daemon-reload"])?;
    app.run(&restart)?.expect(0)?;
    app.serves("stage-1", "dark")
}
