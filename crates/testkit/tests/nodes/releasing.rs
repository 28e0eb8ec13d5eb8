//! A node is given back from afar: by the root keys, and by nobody else.

use crate::{
    audit::verify,
    orders::{converse, sign},
    trust::key,
};
use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_testkit::world::{App, World};
use bulkhead_wire::{Ask, Event, FailureKind, PROTOCOL, Request};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};

/// To take a node apart takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody is at work any more, and the agent itself is gone.
const FINISHED: &str = "! pgrep -x bulkhead-agent && ! test -e /usr/lib/bulkhead";

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_node_becomes_a_stock_machine_again", released),
    ("without_a_stock_server_it_stays_a_node", stays),
    ("what_a_power_cut_broke_off_is_finished", finished_after_a_cut),
];

/// A discharge of stage-1 in its present boot, by the only root key.
fn discharge(world: &World, app: &App<'_>) -> Result<(Vec<u8>, Vec<String>)> {
    let releases = app.node_root("stage-1")?.join("var/lib/bulkhead/apps").join(&app.name).join("releases");
    let order: Value = serde_json::from_slice(&fs::read(releases.join("1/order.json"))?)?;
    let now = order["issued"].as_i64().context("no time")?;
    let bytes = serde_json::to_vec_pretty(&json!({
        "format": 1, "fleet": order["fleet"], "node": "stage-1", "boot": order["targets"]["stage-1"]["boot"],
        "issued": now, "not_after": now + 600, "volumes": false, "reason": "sold",
    }))?;
    let signatures = vec![sign(&world.key(), "discharge@bulkhead", &bytes, world.folder())?];
    Ok((bytes, signatures))
}

fn hand_over(world: &World, bytes: &[u8], signatures: &[String]) -> Result<Event> {
    let ask = Ask::Discharge { signatures: signatures.to_vec() };
    converse(world, "stage-1", &Request { protocol: PROTOCOL, ask }, &[bytes])?.pop().context("no event")
}

/// Where the machine's own server is broken the node's comes back, and with it what ran.
fn stays(world: &World) -> Result<()> {
    let app = world.app("lodger", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
    app.deploy("staging", 0)?;
    world.on_node("stage-1", &["sh", "-c", "echo 'Nonsense yes' >> /etc/ssh/sshd_config"])?;
    let (bytes, signatures) = discharge(world, &app)?;
    ensure!(matches!(hand_over(world, &bytes, &signatures)?, Event::Done(_)), "it is not taken");
    let failed = "systemctl is-failed --quiet bulkhead-discharge@keep.service";
    within(|| world.on_node("stage-1", &["sh", "-c", failed]).is_ok()).context("it did not fail")?;
    within(|| app.serves("stage-1", "1").is_ok()).context("it serves no more")?;
    for unit in ["ssh.service", "ssh.socket"] {
        let state = world.on_node("stage-1", &["sh", "-c", &format!("systemctl is-enabled {unit} || true")])?;
        ensure!(matches!(state.trim(), "masked" | "not-found" | ""), "{unit} would start at the next boot: {state}");
    }
    world.on_node("stage-1", &["systemctl", "is-active", "bulkhead-scrub.timer", "bulkhead-drop.path"])?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")?;
    Ok(())
}

/// The boot after a power cut goes on with it, and starts no app on a machine without a packet filter.
fn finished_after_a_cut(world: &World) -> Result<()> {
    let app = world.app("leaver", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
    app.deploy("staging", 0)?;
    let (bytes, signatures) = discharge(world, &app)?;
    ensure!(matches!(hand_over(world, &bytes, &signatures)?, Event::Done(_)), "it is not taken");
    // Meanwhile it takes nothing more, the same discharge included.
    match hand_over(world, &bytes, &signatures) {
        Ok(Event::Failed(failure)) => ensure!(failure.rule == "discharging", "{failure:?}"),
        Ok(other) => bail!("{other:?}"),
        // Its server has gone by now.
        Err(_) => {}
    }
    world.kill_node("stage-1")?;
    // Whether its sshd or the stock one answers, the machine is up.
    world.start_node("stage-1")?;
    within(|| world.on_node("stage-1", &["sh", "-c", FINISHED]).is_ok()).context("not finished")?;
    let left = "systemctl is-active ssh.service; nft list tables; ls -d /etc/bulkhead /run/bulkhead 2>/dev/null; pgrep -a testapp; true";
    let left = world.on_node("stage-1", &["sh", "-c", left])?;
    ensure!(left.trim() == "active", "{left}");
    Ok(())
}

fn within(mut is_so: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !is_so() {
        ensure!(began.elapsed() < PATIENCE, "not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn released(world: &World) -> Result<()> {
    let fleet = world.fleet();
    let (bob, line) = key(world, "bob")?;
    let public = format!("{}.pub", bob.display());
    world.run(&fleet, &["key", "add", "bob", &public, "--yes"])?.expect(0)?;
    let app = world.app("tenant", &["serve", "3000"], "port = 3000\nstop = \"1s\"\nvolumes = { data = \"/data\" }")?;
    app.deploy("staging", 0)?;
    app.get("stage-1", "/append/data/notes/precious")?;

    // A release key is no root key, and a discharge is for one node, in one boot.
    let status = world.run(&fleet, &["node", "ls", "-o", "json"])?.expect(0)?.json()?;
    ensure!(status["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2), "{status}");
    let order: Value = serde_json::from_slice(&fs::read(
        app.node_root("stage-1")?.join("var/lib/bulkhead/apps/tenant/releases/1/order.json"),
    )?)?;
    let now = order["issued"].as_i64().context("no time")?;
    let good = json!({
        "format": 1, "fleet": order["fleet"], "node": "stage-1", "boot": order["targets"]["stage-1"]["boot"],
        "issued": now, "not_after": now + 600, "volumes": false, "reason": "stolen",
    });
    let changed = |field: &str, value: Value| {
        let mut document = good.clone();
        document[field] = value;
        document
    };
    let owner = world.key();
    for (document, signer, namespace, rule) in [
        (good.clone(), &bob, "discharge@bulkhead", "threshold"),
        (good.clone(), &owner, "policy@bulkhead", "threshold"),
        (changed("node", json!("prod-1")), &owner, "discharge@bulkhead", "node"),
        (changed("boot", json!("0".repeat(64))), &owner, "discharge@bulkhead", "boot"),
        (changed("not_after", json!(now + 90_000)), &owner, "discharge@bulkhead", "expired"),
    ] {
        let bytes = serde_json::to_vec_pretty(&document)?;
        let signatures = vec![sign(signer, namespace, &bytes, world.folder())?];
        let request = Request { protocol: PROTOCOL, ask: Ask::Discharge { signatures } };
        match converse(world, "stage-1", &request, &[&bytes])?.pop() {
            Some(Event::Failed(failure)) if failure.kind == FailureKind::Refused && failure.rule == rule => {}
            other => bail!("{other:?} instead of a refusal by {rule}"),
        }
    }
    app.serves("stage-1", "1")?;

    // Two roots must sign: the document goes round.
    let mut two = world.run(&fleet, &["policy", "show", "-o", "json"])?.expect(0)?.json()?;
    ensure!(two["version"].take().is_u64(), "no version");
    let edit = world.folder().join("two-roots.sh");
    let script = format!(
        "#!/bin/sh\nexec python3 - \"$1\" <<'END'\nimport json, sys\np = json.load(open(sys.argv[1]))\n\
         p['root']['keys'].append('{}')\np['root']['threshold'] = 2\njson.dump(p, open(sys.argv[1], 'w'))\nEND\n",
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    );
    fs::write(&edit, script)?;
    fs::set_permissions(&edit, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    world.run_with_env(&fleet, &["policy", "edit", "--yes"], &[("EDITOR", &edit)])?;
    world.run_with_key(&fleet, &["policy", "sign", "--yes"], &bob)?.expect(0)?;

    world.run(&fleet, &["node", "release", "nobody", "--yes"])?.expect(2)?.says("prod-1, stage-1")?;
    world.run(&fleet, &["node", "release", "stage-1"])?.expect(2)?;
    world.run(&fleet, &["node", "release", "stage-1", "--yes"])?.expect(3)?.says("takes 2 root keys")?;
    let file = world.folder().join("release.json").display().to_string();
    let words = ["node", "release", "stage-1", "--document", &file, "--yes"];
    world.run(&fleet, &words)?.expect(0)?.says("is signed by")?;
    let owner_line = fs::read_to_string(owner.with_extension("pub"))?;
    let signed: Value = serde_json::from_slice(&fs::read(&file)?)?;
    ensure!(verify(world.folder(), &signed, "discharge@bulkhead", owner_line.trim())?, "stock ssh-keygen: {signed}");
    app.serves("stage-1", "1")?;
    let other = ["node", "release", "stage-1", "--document", &file, "--delete-volumes", "--yes"];
    world.run_with_key(&fleet, &other, &bob)?.expect(3)?.says("says something else")?;
    let ran = world.run_with_key(&fleet, &words, &bob)?.expect(0)?.says("is a node no longer")?;
    ensure!(ran.stdout.contains(".bulkhead/released/stage-1-"), "{ran}");

    // It may not be one whole yet, and is laid out again for all that by nobody.
    let up = ["local", "up", "--nodes", "stage-1=staging,prod-1=production"];
    world.run(&fleet, &up)?.expect(0)?.says("stage-1 was released and stays a stock machine")?;

    // It is a stock machine: its own SSH server, nothing of ours, the data where it was.
    let listed = world.run(&fleet, &["node", "ls"])?.expect(0)?;
    ensure!(!listed.stdout.contains("stage-1"), "{listed}");
    // The stock server answers before the last of ours is gone.
    within(|| world.on_node("stage-1", &["sh", "-c", FINISHED]).is_ok())?;
    let left = "systemctl is-active ssh.service; ls -d /etc/bulkhead /run/bulkhead 2>/dev/null; \
                find /etc/systemd -name '*bulkhead*' ! -name 'bulkhead-local-*'; systemctl --failed --no-legend --plain; \
                getent passwd bulkhead bulkhead-drop bulkhead-observe bulkhead-operate; nft list tables; \
                pgrep -a testapp; cat /var/lib/bulkhead/volumes/tenant/data/notes";
    let left = world.on_node("stage-1", &["sh", "-c", left])?;
    ensure!(left.trim() == "active\nprecious", "{left}");
    in_the_local_fleet(world)
}

/// One that was released is shown as that among the local nodes, and keeps none of the others from anything.
fn in_the_local_fleet(world: &World) -> Result<()> {
    let fleet = world.fleet();
    let local = |words: &[&str]| world.run(&fleet, &[&["local"][..], words].concat());
    let is_entered =
        || Ok::<_, anyhow::Error>(fs::read_to_string(fleet.join("fleet.toml"))?.contains("[nodes.stage-1]"));
    local(&["ls"])?.expect(0)?.says("released")?;
    let json = local(&["ls", "-o", "json"])?.expect(0)?.json()?;
    let states: Vec<_> = json["nodes"].as_array().context("none")?.iter().map(|node| &node["released"]).collect();
    ensure!(states == [&json!(false), &json!(true)], "{json}");
    let up = ["up", "--nodes", "stage-1=staging,prod-1=production"];
    local(&up)?.expect(0)?.says("stage-1 was released and stays a stock machine")?;
    ensure!(!is_entered()?, "it is in fleet.toml again");
    world.on_node("stage-1", &["test", "!", "-e", "/etc/bulkhead"])?;
    world.kill_node("prod-1")?;
    world.start_node("prod-1")?;
    ensure!(!is_entered()?, "it is in fleet.toml again");
    // Down, and not started for nothing either.
    local(&["down", "stage-1"])?.expect(0)?;
    local(&up)?.expect(0)?.says("released")?;
    local(&["down", "--remove", "nobody", "--yes"])?.expect(2)?.says("prod-1, stage-1")?;
    let ran = local(&["down", "--remove", "stage-1", "--yes"])?.expect(0)?.says("prod-1")?;
    ensure!(!ran.stdout.contains("stage-1"), "{ran}");
    world.run(&fleet, &["ps"])?.expect(0)?;
    let ran = local(&up)?.expect(0)?;
    ensure!(is_entered()? && !ran.stdout.contains("released"), "{ran}");
    Ok(())
}
