//! What a node makes of its own mishaps: a keeper that dies, a file that cannot
//! be written, damaged state, a disk that is not there.

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{PATIENCE, World};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_keeper_killed_at_any_moment_of_a_deploy", killed_keeper),
    ("a_switch_that_cannot_be_recorded", unrecorded_switch),
    ("a_volume_whose_new_release_fails", failed_takeover),
    ("a_damaged_app_is_alone_in_it", damaged_app),
    ("a_volume_that_is_not_where_it_was", absent_volume),
    ("a_scrub_finds_a_damaged_object", scrub),
];

const WEB: &str = "port = 3000\nhealth = { http = \"/health\", within = \"20s\" }\nstop = \"1s\"\ndrain = \"300ms\"";
const ON_DATA: &[&str] = &["serve", "3000", "--alone", "/var/lib/data"];

fn on_volume() -> String {
    format!("{WEB}\nvolumes = {{ data = \"/var/lib/data\" }}")
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < end, "in vain: {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
    Ok(())
}

/// The releases of an app of which the node has any unit, by files and by control groups.
fn releases_there(root: &Path, app: &str) -> Result<BTreeSet<String>> {
    let prefix = format!("bulkhead-{app}.web.r");
    let mut found = BTreeSet::new();
    for directory in ["run/systemd/system", "sys/fs/cgroup/bulkhead.slice"] {
        let directory = root.join(directory);
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(rest) = name.strip_prefix(&prefix) {
                found.insert(rest.split(['.', '-']).next().unwrap_or_default().to_owned());
            }
        }
    }
    Ok(found)
}

fn live_release(root: &Path, app: &str) -> Result<String> {
    let text = fs::read_to_string(root.join("var/lib/bulkhead/apps").join(app).join("live.json"))?;
    let live: serde_json::Value = serde_json::from_str(&text)?;
    Ok(live["release"].to_string())
}

/// The keepers that run on a node, as this machine numbers them.
fn keepers(root: &Path) -> Result<Vec<String>> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/pid"));
    let own = namespace(root.parent().context("a node's root is below its process")?)?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let is_keeper = fs::read(process.join("cmdline"))
            .is_ok_and(|line| line.starts_with(b"/usr/lib/bulkhead/bulkhead-agent\0keeper\0"));
        if is_keeper && namespace(&process).is_ok_and(|namespace| namespace == own) {
            found.extend(process.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(found)
}

/// Whatever moment it is: with no order coming after it, what serves is the old
/// release or the new one, nothing is left of the other, and no two were ever on the volume.
fn killed_keeper(world: &World) -> Result<()> {
    let apps = [world.app("orphan", &["serve", "3000"], WEB)?, world.app("orphan-data", ON_DATA, &on_volume())?];
    for app in &apps {
        app.deploy("staging", 0)?;
        app.write("version.txt", "probe")?;
        let began = Instant::now();
        app.deploy("staging", 0)?;
        let usual = began.elapsed();
        let root = app.node_root("stage-1")?;
        let mut old = "probe".to_owned();
        let mut killed = 0;
        for round in 0..10u32 {
            let new = format!("round-{round}");
            app.write("version.txt", &new)?;
            let mut deploy = app.spawn_deploy("staging")?;
            // Spread over the time that a deploy takes here, its drain included.
            let moment = Instant::now() + usual * (round + 1) / 10;
            thread::park_timeout(moment.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
            let victims = keepers(&root)?;
            killed += victims.len();
            if round % 3 == 2 {
                // As an administrator would, or a machine that goes down.
                world.on_node("stage-1", &["systemctl", "stop", "bulkhead-keeper@*.service"])?;
            } else {
                for victim in &victims {
                    // One that has just ended by itself is no victim.
                    Command::new("kill").args(["-KILL", victim]).output()?;
                }
            }
            deploy.wait()?;
            let told = || {
                let journal = ["journalctl", "-b", "-n", "60", "-o", "short-precise", "--no-pager"];
                let said = world.on_node("stage-1", &journal).unwrap_or_default();
                format!("{} round {round}; the node's journal:\n{said}", app.name)
            };
            let serving = app.served("stage-1").with_context(told)?;
            ensure!(serving == old || serving == new, "round {round}: `{serving}` serves");
            until("one release is left, the live one", || {
                Ok(releases_there(&root, &app.name)? == BTreeSet::from([live_release(&root, &app.name)?]))
            })
            .with_context(told)?;
            app.deploy("staging", 0).with_context(|| format!("round {round}: the next deploy"))?;
            app.serves("stage-1", &new)?;
            old = new;
        }
        ensure!(killed >= 4, "only {killed} keepers were there to be killed");
    }
    let met = world.on_node("stage-1", &["ls", "/var/lib/bulkhead/volumes/orphan-data/data"])?;
    ensure!(!met.contains("met"), "two processes were on one volume: {met}");
    Ok(())
}

/// The worst moment for a disk to refuse: everything is healthy, and the switch cannot be written down.
fn unrecorded_switch(world: &World) -> Result<()> {
    let plain = world.app("stuck", &["serve", "3000"], WEB)?;
    let on_data = world.app("stuck-data", ON_DATA, &on_volume())?;
    for app in [&plain, &on_data] {
        app.deploy("staging", 0)?;
        app.write("version.txt", "2")?;
        let root = app.node_root("stage-1")?;
        let live = root.join("var/lib/bulkhead/apps").join(&app.name).join("live.json");
        let immutable = |flag: &str| -> Result<()> {
            let ran = Command::new("chattr").arg(flag).arg(&live).output().context("cannot run chattr")?;
            ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            Ok(())
        };
        immutable("+i")?;
        let failed = app.run(&["deploy", "-e", "staging", "--yes"]);
        immutable("-i")?;
        failed?.expect(8)?.says("live.json")?;
        ensure!(app.served("stage-1")? == "1");
        ensure!(releases_there(&root, &app.name)? == BTreeSet::from(["1".to_owned()]), "{}", app.name);
        app.deploy("staging", 0)?;
        app.serves("stage-1", "2")?;
    }
    Ok(())
}

/// The predecessor was stopped for it, and is told to run again; the failure says so.
fn failed_takeover(world: &World) -> Result<()> {
    let app = world.app("usurper", ON_DATA, &on_volume())?;
    app.deploy("staging", 0)?;
    app.manifest(&["exit", "5"], &on_volume())?;
    app.deploy("staging", 6)?.says("release 1 runs again")?;
    app.serves("stage-1", "1")
}

fn damaged_app(world: &World) -> Result<()> {
    let damaged = world.app("rotten", &["serve", "3000"], WEB)?;
    let healthy = world.app("sound", &["serve", "3000"], WEB)?;
    damaged.deploy("staging", 0)?;
    healthy.deploy("staging", 0)?;
    let path = damaged.node_root("stage-1")?.join("var/lib/bulkhead/apps/rotten/live.json");
    let good = fs::read(&path)?;
    fs::write(&path, "{")?;
    healthy.write("version.txt", "2")?;
    healthy.deploy("staging", 0)?;
    healthy.serves("stage-1", "2")?;
    let seen = healthy.run(&["ps", "-e", "staging"])?.expect(0)?;
    ensure!(seen.stdout.contains("rotten/?") && seen.stdout.contains("unreadable"), "{seen}");
    // Of itself it says which file, and it goes on serving.
    damaged.write("version.txt", "2")?;
    damaged.deploy("staging", 8)?.says("live.json")?;
    damaged.serves("stage-1", "1")?;
    fs::write(&path, good)?;
    damaged.deploy("staging", 0)?;
    damaged.serves("stage-1", "2")
}

/// As of a disk that was not mounted: a service must not start on an empty directory in its place.
fn absent_volume(world: &World) -> Result<()> {
    let app = world.app("elsewhere", ON_DATA, &on_volume())?;
    app.deploy("staging", 0)?;
    let (status, _) = app.get("stage-1", "/append//var/lib/data/notes/one")?;
    ensure!(status == 200);
    app.run(&["stop", "-e", "staging", "elsewhere", "--yes"])?.expect(0)?;
    let volumes: PathBuf = app.node_root("stage-1")?.join("var/lib/bulkhead/volumes");
    fs::rename(volumes.join("elsewhere"), volumes.join("elsewhere-unplugged"))?;
    app.run(&["start", "-e", "staging", "elsewhere", "--yes"])?.expect(8)?.says("what it holds is missing")?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 8)?.says("mount the disk")?;
    fs::rename(volumes.join("elsewhere-unplugged"), volumes.join("elsewhere"))?;
    app.deploy("staging", 0)?;
    let (_, body) = app.get("stage-1", "/read//var/lib/data/notes")?;
    ensure!(body.trim() == "one", "{body}");
    Ok(())
}

fn scrub(world: &World) -> Result<()> {
    let app = world.app("scrubbed", &["serve", "3000"], WEB)?;
    let text = "an object of its own, to be damaged";
    app.write("own.txt", text)?;
    app.deploy("staging", 0)?;
    world.on_node("stage-1", &["systemctl", "start", "bulkhead-scrub.service"])?;
    let objects = app.node_root("stage-1")?.join("var/lib/bulkhead/store/objects");
    let mut damaged = 0;
    for high in fs::read_dir(&objects).with_context(|| objects.display().to_string())? {
        let high = high?.path();
        for low in fs::read_dir(&high).with_context(|| high.display().to_string())? {
            let path = low?.path();
            if fs::read(&path).with_context(|| path.display().to_string())? == text.as_bytes() {
                fs::write(&path, text.replace("damaged", "DAMAGED")).with_context(|| path.display().to_string())?;
                damaged += 1;
            }
        }
    }
    ensure!(damaged == 1, "{damaged} objects hold the text");
    // The unit fails, which is how a watched node tells.
    let ran = world
        .run(&world.fleet(), &["local", "exec", "stage-1", "--", "systemctl", "start", "bulkhead-scrub.service"])?;
    ensure!(ran.code != 0, "{ran}");
    app.run(&["node", "ls", "-o", "json"])?.expect(0)?.says("deploy scrubbed again")?;
    // What is deployed next brings it again, though only another file has changed.
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    let (_, body) = app.get("stage-1", "/read//app/own.txt")?;
    ensure!(body.trim() == text, "{body}");
    world.on_node("stage-1", &["systemctl", "start", "bulkhead-scrub.service"])?;
    Ok(())
}
