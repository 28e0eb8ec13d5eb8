//! A node is given back from afar: by the root keys, and by nobody else.

use crate::{
    orders::{converse, sign},
    trust::key,
};
use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_testkit::world::World;
use bulkhead_wire::{Ask, Event, FailureKind, PROTOCOL, Request};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};

/// To take a node apart takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("a_node_becomes_a_stock_machine_again", released)];

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
    app.serves("stage-1", "1")?;
    let other = ["node", "release", "stage-1", "--document", &file, "--delete-volumes", "--yes"];
    world.run_with_key(&fleet, &other, &bob)?.expect(3)?.says("says something else")?;
    let ran = world.run_with_key(&fleet, &words, &bob)?.expect(0)?.says("is a node no longer")?;
    ensure!(ran.stdout.contains(".bulkhead/released/stage-1-"), "{ran}");

    // It is a stock machine: its own SSH server, nothing of ours, the data where it was.
    let listed = world.run(&fleet, &["node", "ls"])?.expect(0)?;
    ensure!(!listed.stdout.contains("stage-1"), "{listed}");
    // The stock server answers before the last of ours is gone.
    let began = Instant::now();
    let state = "! pgrep -x bulkhead-agent && ! test -e /usr/lib/bulkhead";
    while world.on_node("stage-1", &["sh", "-c", state]).is_err() {
        ensure!(began.elapsed() < PATIENCE, "it never ended");
        std::thread::sleep(Duration::from_millis(200));
    }
    let left = "systemctl is-active ssh.service; ls -d /etc/bulkhead /run/bulkhead 2>/dev/null; \
                find /etc/systemd -name '*bulkhead*' ! -name 'bulkhead-local-*'; systemctl --failed --no-legend --plain; \
                getent passwd bulkhead bulkhead-drop bulkhead-observe bulkhead-operate; nft list tables; \
                pgrep -a testapp; cat /var/lib/bulkhead/volumes/tenant/data/notes";
    let left = world.on_node("stage-1", &["sh", "-c", left])?;
    ensure!(left.trim() == "active\nprecious", "{left}");
    Ok(())
}
