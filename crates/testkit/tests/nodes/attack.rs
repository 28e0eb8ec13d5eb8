//! `bulkhead attack`: against nodes as they are, and against one that somebody was careless with.

use crate::trust::people;
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::World;
use serde_json::Value;
use std::collections::BTreeSet;

pub(crate) const TESTS: &[(&str, crate::Test)] =
    &[("all_of_it_is_refused", refused), ("a_careless_node_is_found_out", careless)];

/// What was tried, or not, with an outcome.
fn with(report: &Value, outcome: &str) -> BTreeSet<String> {
    let all = report["attacks"].as_array().into_iter().flatten();
    let some = all.filter(|tried| tried["outcome"] == outcome);
    some.filter_map(|tried| tried["attack"].as_str().map(str::to_owned)).collect()
}

fn refused(world: &World) -> Result<()> {
    let (_, ci) = people(world)?;
    let app = world.app("besieged", &["serve", "3000"], "port = 3000\ndrain = \"100ms\"\nstop = \"1s\"")?;
    app.deploy("staging", 0)?;
    let before = world.run(&world.fleet(), &["releases", "-e", "staging", "-o", "json"])?.expect(0)?.stdout;

    let shown = world.run(&world.fleet(), &["attack", "-e", "production"])?.expect(0)?.says("all refused")?;
    ensure!(shown.stdout.contains("nobody stated green") && shown.stdout.contains("not-green"), "{shown}");

    let report = world.run(&world.fleet(), &["attack", "-e", "staging", "-o", "json"])?.expect(0)?.json()?;
    ensure!(with(&report, "unclear").is_empty() && with(&report, "got through").is_empty(), "{report}");
    ensure!(with(&report, "refused").contains("to connect to a service"), "{report}");
    // The owner's key has no green role, and CI's alone is at hand to nobody here.
    ensure!(with(&report, "not tried") == ["an order that a green key signed alone".to_owned()].into(), "{report}");

    // A key that may do little tries what it can, and says what it could not.
    let report = world.run_with_key(&world.fleet(), &["attack", "-e", "staging", "-o", "json"], &ci)?;
    let report = report.expect(0)?.json()?;
    ensure!(with(&report, "refused").contains("an order that a green key signed alone"), "{report}");

    // Nothing came of it but entries in the log.
    let after = world.run(&world.fleet(), &["releases", "-e", "staging", "-o", "json"])?.expect(0)?.stdout;
    ensure!(before == after, "{before}\n{after}");
    app.serves("stage-1", "1")?;
    world.run(&world.fleet(), &["audit", "-e", "staging"])?.expect(0)?.says("refused")?;
    Ok(())
}

fn careless(world: &World) -> Result<()> {
    let settings = "s/^DisableForwarding yes/DisableForwarding no/; s/^AllowTcpForwarding no/AllowTcpForwarding yes/; \
                    s/^PermitOpen none/PermitOpen any/; s/^AllowStreamLocalForwarding no/AllowStreamLocalForwarding yes/; \
                    s/^PasswordAuthentication no/PasswordAuthentication yes/; s/^AuthenticationMethods .*//";
    world.on_node("stage-1", &["sed", "-i", settings, "/etc/bulkhead/sshd_config"])?;
    // Each key's line forbids it all once more.
    world.on_node("stage-1", &["sh", "-c", "sed -i 's/^restrict[^ ]* //' /etc/bulkhead/keys/*"])?;
    world.on_node("stage-1", &["systemctl", "restart", "bulkhead-sshd.service"])?;
    world.on_node("stage-1", &["nft", "flush", "ruleset"])?;
    let listen = ["systemd-run", "--socket-property=ListenStream=8080", "--socket-property=Accept=yes", "cat"];
    world.on_node("stage-1", &listen)?;
    let ran = world.run(&world.fleet(), &["attack", "-e", "staging", "-o", "json"])?.expect(8)?;
    let report: Value = ran.json()?;
    let through = with(&report, "got through");
    for attack in [
        "to connect onwards to the node itself",
        "to connect to the keeper's socket",
        "to log in by password or without a key",
    ] {
        ensure!(through.contains(attack), "{attack}: {through:?} {ran}");
    }
    let port = through.iter().find(|attack| attack.contains("TCP ports")).context("the port is not found")?;
    ensure!(ran.stdout.contains("port 8080 answers"), "{port}: {ran}");
    // What it still keeps is told as well.
    ensure!(with(&report, "refused").contains("a shell"), "{report}");
    Ok(())
}
