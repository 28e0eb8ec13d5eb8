//! Policy, roles, green images, revocations, snapshots: each against real
//! nodes, and each from what an attacker would hold. Every test has a fleet of
//! its own, because it changes the policy.

use crate::orders::{converse_as, sign};
use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_testkit::world::{App, Ran, World};
use bulkhead_wire::{
    ACCOUNT, Ask, Bring, Event, FailureKind, Kind, OBSERVE_ACCOUNT, OPERATE_ACCOUNT, PROTOCOL, Paper, Request, Submit,
    View, read_frame, write_frame,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_policy_reaches_all_nodes_and_those_that_were_away", policy_life),
    ("a_policy_needs_the_roots_of_both_versions", policy_roots),
    ("production_takes_only_green", green),
    ("two_of_three", two_of_three),
    ("any_one_release_key_goes_back_and_stops", asymmetry),
    ("breaking_glass_is_loud_and_takes_two", break_glass),
    ("what_is_revoked_starts_nowhere", revoked),
    ("a_revoked_key_is_out_at_once", revoked_key),
    ("each_role_does_what_it_is_for", roles),
    ("an_observer_keeps_no_order_out", crowd),
    ("a_snapshot_forgets_nothing_unseen", snapshot),
    ("a_silent_fleet_starts_nothing_new", heartbeat),
    ("a_clock_that_went_back_starts_nothing_new", clock),
    ("a_node_without_what_is_demanded_runs_nothing", isolation),
    ("ci_deploys_within_a_standing_order", standing),
];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\ndrain = \"100ms\"\nstop = \"1s\"";
/// Within this a node ends a connection that may not be any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// A new key of the world, and its public line.
pub(crate) fn key(world: &World, name: &str) -> Result<(PathBuf, String)> {
    let path = world.folder().join(name);
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path).status()?;
    ensure!(made.success(), "ssh-keygen failed");
    let line = fs::read_to_string(path.with_extension("pub"))?.trim().to_owned();
    Ok((path, line))
}

pub(crate) fn fleet(world: &World, words: &[&str]) -> Result<Ran> {
    world.run(&world.fleet(), words)
}

/// Makes a key that is at hand besides the one of the command line, as a person's usual one.
fn at_hand(world: &World, key: Option<&Path>) -> Result<()> {
    let usual = world.folder().join(".ssh/id_ed25519");
    fs::create_dir_all(world.folder().join(".ssh"))?;
    for (suffix, from) in [("", key.map(Path::to_owned)), (".pub", key.map(|key| key.with_extension("pub")))] {
        let to = PathBuf::from(format!("{}{suffix}", usual.display()));
        match from {
            Some(from) => drop(fs::copy(from, to)?),
            None => drop(fs::remove_file(to)),
        }
    }
    Ok(())
}

/// Bob with a release key, CI with a green one, and production that takes "green and one of us".
pub(crate) fn people(world: &World) -> Result<(PathBuf, PathBuf)> {
    let ((bob, _), (ci, _)) = (key(world, "bob")?, key(world, "ci")?);
    let public = |key: &Path| format!("{}.pub", key.display());
    fleet(world, &["key", "add", "bob", &public(&bob), "--yes"])?.expect(0)?;
    fleet(world, &["key", "add", "ci", &public(&ci), "--role", "green", "--role", "courier", "--yes"])?.expect(0)?;
    fleet(world, &["policy", "require", "-e", "production", "green+release", "--yes"])?.expect(0)?;
    Ok((bob, ci))
}

pub(crate) fn mark<'a>(world: &World, app: &App<'a>, ci: &Path, more: &[&str]) -> Result<Ran> {
    let words = ["ci", "mark", "--repository", "r", "--commit", "c", "--builder", "b"];
    world.run_with_key(&app.folder, &[&words[..], more].concat(), ci)
}

pub(crate) fn deploy_with(world: &World, app: &App<'_>, environment: &str, key: &Path, more: &[&str]) -> Result<Ran> {
    world.run_with_key(&app.folder, &[&["deploy", "-e", environment, "--yes"][..], more].concat(), key)
}

/// What the last conversation of this request ended with.
pub(crate) fn last(world: &World, account: &str, ask: Ask, streams: &[&[u8]]) -> Result<Event> {
    converse_as(world, "stage-1", account, &Request { protocol: PROTOCOL, ask }, streams)?.pop().context("no event")
}

pub(crate) fn refused(event: &Event, rule: &str) -> Result<()> {
    match event {
        Event::Failed(failure) if failure.kind == FailureKind::Refused && failure.rule == rule => Ok(()),
        other => bail!("{other:?} instead of a refusal by {rule}"),
    }
}

pub(crate) fn is_on_record(world: &World, node: &str, words: &[&str]) -> Result<()> {
    let audit = world.on_node(node, &["cat", "/var/lib/bulkhead/audit.jsonl"])?;
    ensure!(audit.lines().any(|line| words.iter().all(|word| line.contains(word))), "no line with {words:?}: {audit}");
    Ok(())
}

fn version_of(world: &World, node: &str) -> Result<u64> {
    let json = fleet(world, &["node", "ls", "-o", "json"])?.expect(0)?.json()?;
    let nodes = json["nodes"].as_array().context("no nodes")?;
    let found = nodes.iter().find(|one| one["node"] == node).context("no such node")?;
    found["facts"]["policy_version"].as_u64().context("no version")
}

fn policy_life(world: &World) -> Result<()> {
    let (_, bob) = key(world, "bob")?;
    fleet(world, &["key", "add", "bob", &bob, "--yes"])?.expect(0)?.says("version 1 → 2")?;
    ensure!((version_of(world, "stage-1")?, version_of(world, "prod-1")?) == (2, 2), "not brought");
    // One is away for two versions, and takes both once it is back.
    world.kill_node("prod-1")?;
    let (_, eve) = key(world, "eve")?;
    fleet(world, &["key", "add", "eve", &eve, "--role", "observe", "--yes"])?.expect(9)?.says("policy push")?;
    fleet(world, &["key", "revoke", "eve", "--yes"])?.expect(9)?.says("1 of 2 nodes did not take it")?;
    // Nor is a word to all of them heard by it; what the others took counts.
    fleet(world, &["policy", "heartbeat"])?.expect(9)?.says("heard")?.says("did not take it")?;
    let nobody = ["revoke", "--image", &"ab".repeat(32), "--reason", "x", "--yes"];
    fleet(world, &nobody)?.expect(9)?.says("revoked")?.says("no node that answered ever ran image abababababab")?;
    world.start_node("prod-1")?;
    fleet(world, &["policy", "push", "--yes"])?.expect(0)?.says("version 2 → 4")?;
    ensure!(version_of(world, "prod-1")? == 4, "not brought");
    is_on_record(world, "prod-1", &["brought", "policy: version 4"])?;
    // The next boot enforces it as well, and the installation still is what it should be.
    world.kill_node("prod-1")?;
    world.start_node("prod-1")?;
    ensure!(version_of(world, "prod-1")? == 4, "forgotten");
    let differences = world.on_node("prod-1", &["/usr/lib/bulkhead/bulkhead-agent", "install", "--verify"])?;
    ensure!(differences.trim() == "[]", "{differences}");
    fleet(world, &["policy", "show"])?.expect(0)?.says("policy version 4")?.says("bob")?;
    fleet(world, &["policy", "push", "--yes"])?.expect(0)?.says("has version 4").map(drop)
}

fn policy_roots(world: &World) -> Result<()> {
    let (bob, bob_line) = key(world, "bob")?;
    let (eve, eve_line) = key(world, "eve")?;
    // Two roots, of which both must sign from now on.
    fleet(world, &["key", "add", "bob", &bob_line, "--role", "root", "--role", "courier", "--yes"])?.expect(0)?;
    let path = world.fleet().join("policy.json");
    let two = |text: &str| text.replacen("\"threshold\": 1", "\"threshold\": 2", 1);
    let script = world.folder().join("editor");
    fs::write(&script, "#!/bin/sh\nsed -i 's/\"threshold\": 1/\"threshold\": 2/' \"$1\"\n")?;
    Command::new("chmod").arg("+x").arg(&script).status()?;
    let edit = world.run_with_env(&world.fleet(), &["policy", "edit", "--yes"], &[("EDITOR", &script)])?;
    edit.expect(0)?.says("of the new")?;
    ensure!(version_of(world, "stage-1")? == 2, "taken with one of two");
    world.run_with_key(&world.fleet(), &["policy", "sign", "--yes"], &bob)?.expect(0)?.says("version 2 → 3")?;
    ensure!(version_of(world, "stage-1")? == 3, "not taken with both");

    // From what an attacker holds: a key of their own, one of the two roots, an old policy.
    let current: Value = serde_json::from_str(&two(&fs::read_to_string(&path)?))?;
    let bring = |policy: &Value, keys: &[&Path]| -> Result<Event> {
        let bytes = serde_json::to_vec_pretty(policy)?;
        let signatures: Result<Vec<String>> =
            keys.iter().map(|key| sign(key, "policy@bulkhead", &bytes, world.folder())).collect();
        let bring = Bring { paper: Paper::Policy, signatures: signatures? };
        last(world, ACCOUNT, Ask::Bring(bring), &[&bytes])
    };
    let owner = world.key();
    let change = |change: fn(&mut Value)| {
        let mut policy = current.clone();
        policy["version"] = json!(4);
        change(&mut policy);
        policy
    };
    let mut own = change(|_| ());
    own["root"] = json!({"threshold": 1, "keys": [eve_line]});
    refused(&bring(&own, &[&eve])?, "threshold")?;
    refused(&bring(&own, &[&eve, &owner])?, "threshold")?;
    refused(&bring(&change(|_| ()), &[&owner])?, "threshold")?;
    refused(&bring(&change(|_| ()), &[&owner, &owner])?, "threshold")?;
    refused(&bring(&change(|policy| policy["version"] = json!(5)), &[&owner, &bob])?, "policy-version")?;
    refused(&bring(&change(|policy| policy["version"] = json!(2)), &[&owner, &bob])?, "policy-version")?;
    refused(&bring(&change(|policy| policy["fleet"] = json!("other")), &[&owner, &bob])?, "fleet")?;
    // One key would count as two people.
    let mut twice = change(|_| ());
    let eve_may = json!({"key": eve_line, "roles": ["release"]});
    twice["keys"]["eve"] = eve_may.clone();
    twice["keys"]["evelyn"] = eve_may;
    refused(&bring(&twice, &[&owner, &bob])?, "malformed")?;
    let mut root = change(|_| ());
    root["root"]["keys"] = json!([eve_line, eve_line]);
    refused(&bring(&root, &[&owner, &bob])?, "malformed")?;
    is_on_record(world, "stage-1", &["refused", "policy-version"])?;
    ensure!(version_of(world, "stage-1")? == 3, "taken");
    // An order's signature is none over a policy.
    let bytes = serde_json::to_vec_pretty(&change(|_| ()))?;
    let signatures = vec![
        sign(&owner, "order@bulkhead", &bytes, world.folder())?,
        sign(&bob, "order@bulkhead", &bytes, world.folder())?,
    ];
    let bring = Bring { paper: Paper::Policy, signatures };
    refused(&last(world, ACCOUNT, Ask::Bring(bring), &[&bytes])?, "threshold")
}

fn green(world: &World) -> Result<()> {
    let (_, ci) = people(world)?;
    let app = world.app("green", SERVE, WEB)?;
    // A release key is not enough, and neither is CI's.
    app.deploy("production", 5)?.says("is stated green by nobody")?.says("green keys by ci")?;
    app.deploy("staging", 0)?;
    app.run(&["promote", "staging", "production", "--yes"])?.expect(5)?.says("not-green")?;
    mark(world, &app, &ci, &["-e", "staging"])?.expect(0)?.says("is green")?;
    deploy_with(world, &app, "production", &ci, &[])?.expect(3)?.says("keys at hand give 0")?;
    // A person whose folder has no statement promotes what staging has.
    fs::remove_dir_all(world.fleet().join(".bulkhead/green"))?;
    app.run(&["promote", "staging", "production", "--yes"])?.expect(0)?;
    app.serves("prod-1", "1")?;
    let releases = app.run(&["releases", "-e", "production", "-o", "json"])?.expect(0)?;
    releases.says("green and 1 release key; stated green by ci")?;

    // A red mark on the nodes stays, whatever the folder says.
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    mark(world, &app, &ci, &["-e", "production", "--red"])?.expect(0)?.says("is red")?;
    fs::remove_dir_all(world.fleet().join(".bulkhead/green"))?;
    mark(world, &app, &ci, &[])?.expect(0)?;
    app.deploy("production", 5)?.says("marked red by ci")?;
    app.serves("prod-1", "1")?;

    // A statement by somebody else, and one about another image.
    app.write("version.txt", "3")?;
    let statement = world.fleet().join(".bulkhead/green");
    let forged = fs::read_dir(&statement)?.next().context("no statement")??.path();
    let text = fs::read_to_string(&forged)?;
    app.run(&["deploy", "-e", "production", "--yes", "--green", &forged.display().to_string()])?
        .expect(5)?
        .says("not-green")?;
    let build = app.run(&["build", "-o", "json"])?.expect(0)?.json()?;
    let image = build["image"].as_str().or(build["id"].as_str()).context("no image id")?.to_owned();
    let about: Value = serde_json::from_str(&text)?;
    let old: Value = serde_json::from_str(about[0]["text"].as_str().context("no text")?)?;
    let altered = about[0]["text"]
        .as_str()
        .context("no text")?
        .replace(old["subject"][0]["digest"]["sha256"].as_str().context("no digest")?, &image);
    let file = world.folder().join("forged.json");
    fs::write(&file, serde_json::to_vec(&json!([{"text": altered, "signatures": about[0]["signatures"]}]))?)?;
    let forged = file.display().to_string();
    app.run(&["deploy", "-e", "production", "--yes", "--green", &forged])?.expect(5)?.says("does not match")?;
    app.serves("prod-1", "1")
}

fn two_of_three(world: &World) -> Result<()> {
    let (bob, _) = key(world, "bob")?;
    let (cleo, _) = key(world, "cleo")?;
    for (name, key) in [("bob", &bob), ("cleo", &cleo)] {
        fleet(world, &["key", "add", name, &format!("{}.pub", key.display()), "--yes"])?.expect(0)?;
    }
    fleet(world, &["policy", "require", "-e", "production", "2-release", "--yes"])?.expect(0)?;
    let app = world.app("council", SERVE, WEB)?;
    app.deploy("production", 3)?.says("demands 2 release signature(s)")?;
    at_hand(world, Some(&bob))?;
    app.deploy("production", 0)?;
    app.serves("prod-1", "1")?;
    let releases = app.run(&["releases", "-e", "production", "-o", "json"])?.expect(0)?;
    ensure!(releases.stdout.contains("bob"), "{releases}");
    at_hand(world, None)?;

    // Two people on two machines: the order goes round as a file.
    app.write("version.txt", "2")?;
    let file = world.folder().join("council.json").display().to_string();
    app.run(&["deploy", "-e", "production", "--yes", "--draft", &file])?.expect(0)?.says("has 1 signature(s)")?;
    app.serves("prod-1", "1")?;
    app.run(&["deploy", "-e", "production", "--yes", "--order", &file])?.expect(5)?.says("needs 2 release keys")?;
    world.run_with_key(&app.folder, &["order", "sign", &file, "--yes"], &cleo)?.expect(0)?.says("cleo")?;
    app.run(&["deploy", "-e", "production", "--yes", "--order", &file])?.expect(0)?;
    app.serves("prod-1", "2")?;
    // It was for that image and place, once.
    let again = app.run(&["deploy", "-e", "production", "--yes", "--order", &file])?;
    ensure!(again.code == 0 && again.stdout.contains("done before"), "carried out twice, or refused: {again}");
    app.write("version.txt", "3")?;
    app.run(&["deploy", "-e", "production", "--yes", "--order", &file])?.expect(3)?.says("something else")?;

    // One person's signature twice is one person.
    let root = app.node_root("prod-1")?.join("var/lib/bulkhead/apps/council/releases/2");
    let bytes = fs::read(root.join("order.json"))?;
    let mut order: Value = serde_json::from_slice(&bytes)?;
    order["targets"]["prod-1"]["counter"] = json!(3);
    order["targets"]["prod-1"]["previous"] = json!(bulkhead_core::OrderId::of(&bytes).to_string());
    let bytes = serde_json::to_vec_pretty(&order)?;
    let one = sign(&world.key(), "order@bulkhead", &bytes, world.folder())?;
    let submit = |signatures: Vec<String>| -> Result<Event> {
        let submit = Submit { signatures, ..Submit::default() };
        let request = Request { protocol: PROTOCOL, ask: Ask::Submit(submit) };
        converse_as(world, "prod-1", ACCOUNT, &request, &[&bytes])?.pop().context("no event")
    };
    refused(&submit(vec![one.clone(), one.clone()])?, "threshold")?;
    let other = sign(&cleo, "order@bulkhead", &bytes, world.folder())?;
    let event = submit(vec![one, other])?;
    ensure!(matches!(event, Event::Done(_)), "{event:?}");
    Ok(())
}

fn asymmetry(world: &World) -> Result<()> {
    let (bob, ci) = people(world)?;
    fleet(world, &["policy", "require", "-e", "production", "green+2-release", "--yes"])?.expect(0)?;
    let app = world.app("strict", SERVE, WEB)?;
    at_hand(world, Some(&bob))?;
    for version in ["1", "2"] {
        app.write("version.txt", version)?;
        mark(world, &app, &ci, &[])?.expect(0)?;
        app.deploy("production", 0)?;
    }
    at_hand(world, None)?;
    app.serves("prod-1", "2")?;
    // One key can neither bring something new, nor start or remove…
    app.write("version.txt", "3")?;
    mark(world, &app, &ci, &[])?.expect(0)?;
    app.deploy("production", 3)?;
    for words in [&["start", "-e", "production", "strict", "--yes"][..], &["rm", "-e", "production", "strict", "--yes"]]
    {
        app.run(words)?.expect(3)?.says("demands 2 release signature(s)")?;
    }
    // Nor list something new to go back to in an order that is let in on one key, to bring it in on the next.
    let releases = app.node_root("prod-1")?.join("var/lib/bulkhead/apps/strict/releases");
    let stored = |number: u32| fs::read(releases.join(number.to_string()).join("order.json"));
    let (first, second) = (stored(1)?, stored(2)?);
    let mut order: Value = serde_json::from_slice(&second)?;
    order["action"] = serde_json::from_slice::<Value>(&first)?["action"].take();
    order["action"]["fallback"] = json!(["ab".repeat(32)]);
    order["targets"]["prod-1"]["counter"] = json!(3);
    order["targets"]["prod-1"]["previous"] = json!(bulkhead_core::OrderId::of(&second).to_string());
    let bytes = serde_json::to_vec_pretty(&order)?;
    let submit =
        Submit { signatures: vec![sign(&world.key(), "order@bulkhead", &bytes, world.folder())?], ..Submit::default() };
    let request = Request { protocol: PROTOCOL, ask: Ask::Submit(submit) };
    let event = converse_as(world, "prod-1", ACCOUNT, &request, &[&bytes])?.pop().context("no event")?;
    refused(&event, "threshold")?;
    ensure!(format!("{event:?}").contains("neither is live here"), "{event:?}");
    // … but it can go back to what was listed, and stop.
    app.run(&["rollback", "-e", "production", "strict", "--yes"])?.expect(0)?;
    app.serves("prod-1", "1")?;
    let releases = app.run(&["releases", "-e", "production", "-o", "json"])?.expect(0)?;
    releases.says("a fallback of what was live")?;
    app.run(&["stop", "-e", "production", "strict", "--yes"])?.expect(0)?;
    ensure!(app.get("prod-1", "/version").is_err(), "still serves");
    Ok(())
}

fn break_glass(world: &World) -> Result<()> {
    let (bob, _) = people(world)?;
    let app = world.app("glass", SERVE, WEB)?;
    let broken = ["deploy", "-e", "production", "--yes", "--break-glass", "CI is down and so are we"];
    app.run(&broken)?.expect(5)?.says("break glass")?;
    fleet(world, &["policy", "require", "-e", "production", "--break-glass", "2", "--yes"])?.expect(0)?;
    app.run(&broken)?.expect(3)?.says("demands 2 release signature(s)")?;
    at_hand(world, Some(&bob))?;
    app.run(&broken)?.expect(0)?;
    app.serves("prod-1", "1")?;
    app.run(&["releases", "-e", "production"])?.expect(0)?.says("GLASS BROKEN: CI is down and so are we")?;
    app.run(&["ps", "-e", "production"])?.expect(0)?.says("GLASS BROKEN")?;
    is_on_record(world, "prod-1", &["accepted", "GLASS BROKEN", "CI is down"])
}

fn revoked(world: &World) -> Result<()> {
    let app = world.app("faulty", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let image = app.run(&["build", "-o", "json"])?.expect(0)?.json()?;
    let image = image["image"].as_str().or(image["id"].as_str()).context("no image id")?.to_owned();
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    // What runs is shown, and beginnings of ids are enough.
    let live = app.run(&["build", "-o", "json"])?.expect(0)?.json()?;
    let live = live["image"].as_str().context("no image id")?.to_owned();
    let ask = ["revoke", "--image", &live[..12], "--reason", "not yet"];
    let ran = world.on_a_terminal(&world.fleet(), &ask, "n\n")?.expect(130)?;
    ran.says(&live)?.says("faulty runs of it and goes on until it is stopped: stage-1 (release 2)")?;
    let unseen = ["revoke", "--image", &live[..12], "--reason", "x", "--yes"];
    fleet(world, &unseen)?.expect(2)?.says("with --yes nobody sees which image is meant")?;
    let nowhere = "0".repeat(32);
    let unknown = ["revoke", "--image", &nowhere, "--reason", "x", "--yes"];
    fleet(world, &unknown)?.expect(2)?.says("begins with 0000")?;
    let ran = fleet(world, &["revoke", "--image", &image[..32], "--reason", "it leaks", "--yes"])?.expect(0)?;
    ensure!(!ran.stderr.contains("warning"), "{ran}");
    is_on_record(world, "stage-1", &["brought", "it leaks"])?;
    app.run(&["rollback", "-e", "staging", "faulty", "--yes"])?.expect(5)?.says("was revoked")?;
    app.write("version.txt", "1")?;
    app.deploy("staging", 5)?.says("was revoked")?;
    app.serves("stage-1", "2")?;
    // A stranger revokes nothing.
    let (eve, _) = key(world, "eve")?;
    let bytes = serde_json::to_vec(&json!({
        "format": 1, "fleet": world.fleet().file_name().and_then(|name| name.to_str()), "issued": 1,
        "reason": "x", "revoked": {"images": ["ab".repeat(32)]},
    }))?;
    let bring = Bring {
        paper: Paper::Revocation,
        signatures: vec![sign(&eve, "revocation@bulkhead", &bytes, world.folder())?],
    };
    refused(&last(world, ACCOUNT, Ask::Bring(bring), &[&bytes])?, "threshold")
}

fn revoked_key(world: &World) -> Result<()> {
    let (bob, _) = key(world, "bob")?;
    fleet(world, &["key", "add", "bob", &format!("{}.pub", bob.display()), "--yes"])?.expect(0)?;
    let app = world.app("leaver", SERVE, WEB)?;
    deploy_with(world, &app, "staging", &bob, &[])?.expect(0)?;
    let follow = ["logs", "-e", "staging", "-f", "leaver"];
    let mut following = world.spawn_with_key(&app.folder, &follow, &bob)?;
    // It is connected once the node has a session of the observers' account.
    wait_for("bob's connection", || {
        Ok(!world.on_node("stage-1", &["sh", "-c", "pgrep -u bulkhead-observe || true"])?.trim().is_empty())
    })?;
    fleet(world, &["key", "revoke", "bob", "--yes"])?.expect(0)?;
    wait_for("its end", || {
        Ok(world.on_node("stage-1", &["sh", "-c", "pgrep -u bulkhead-observe || true"])?.trim().is_empty())
    })?;
    following.kill().ok();
    following.wait()?;
    app.write("version.txt", "2")?;
    // Neither may they connect, nor does what they sign count.
    let ran = deploy_with(world, &app, "staging", &bob, &[])?;
    ensure!(ran.code != 0, "{ran}");
    app.serves("stage-1", "1")?;
    let (address, _) = world.address("stage-1")?;
    let ran = crate::orders::ssh_with_key(world, "stage-1", ACCOUNT, &bob)?.arg(bulkhead_wire::COMMAND).output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(said.contains("Permission denied"), "{address}: {said}");
    Ok(())
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < end, "{what} did not come");
        std::thread::yield_now();
    }
    Ok(())
}

fn roles(world: &World) -> Result<()> {
    let app = world.app("public", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let (eye, _) = key(world, "eye")?;
    let (mule, _) = key(world, "mule")?;
    let add = |name: &str, key: &Path, role: &str| {
        fleet(world, &["key", "add", name, &format!("{}.pub", key.display()), "--role", role, "--yes"])?.expect(0)
    };
    add("eye", &eye, "observe")?;
    add("mule", &mule, "courier")?;
    let run = |key: &Path, words: &[&str]| world.run_with_key(&app.folder, words, key);
    // At the wire, whatever the client would do: the account decides.
    let look =
        |view| Ask::Look { app: "public".parse().expect("a name"), service: "web".parse().expect("a name"), view };
    let submit = Submit::default();
    let logs = Ask::Logs { app: "public".parse()?, service: None, lines: 1, follow: false };
    let files = || View::Files { path: "/app".into() };
    for (account, ask) in [
        (OBSERVE_ACCOUNT, Ask::Submit(submit.clone())),
        (OPERATE_ACCOUNT, Ask::Submit(submit)),
        (OBSERVE_ACCOUNT, Ask::Bring(Bring { paper: Paper::Policy, signatures: vec![] })),
        (OPERATE_ACCOUNT, Ask::Bring(Bring { paper: Paper::Policy, signatures: vec![] })),
        (OBSERVE_ACCOUNT, look(files())),
        (ACCOUNT, look(files())),
        (ACCOUNT, look(View::Processes)),
        (ACCOUNT, logs),
    ] {
        let event = last(world, account, ask.clone(), &[b"{}"]).with_context(|| format!("{account}: {ask:?}"))?;
        refused(&event, "role").with_context(|| format!("{account}: {ask:?}"))?;
    }
    let open = Ask::Open { app: "public".parse()?, service: "web".parse()? };
    for account in [ACCOUNT, OBSERVE_ACCOUNT] {
        let event = last(world, account, open.clone(), &[])?;
        ensure!(matches!(&event, Event::Failed(_)), "{account} talks to a service: {event:?}");
    }
    // No account has a shell, a terminal, a file transfer or a forwarding.
    for account in [ACCOUNT, OBSERVE_ACCOUNT, OPERATE_ACCOUNT] {
        let output = crate::orders::ssh(world, "stage-1", account)?.arg("id").output()?;
        ensure!(!output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("uid="), "{output:?}");
    }
    // Last, because sshd lets nobody in for a while from where logins failed.
    // What an observer's key gives, and what it does not.
    run(&eye, &["ps", "-e", "staging"])?.expect(0)?.says("public/web")?;
    run(&eye, &["logs", "-e", "staging", "public"])?.expect(0)?;
    run(&eye, &["look", "-e", "staging", "public/web", "--", "ps"])?.expect(0)?;
    for words in [
        &["look", "-e", "staging", "public/web", "--", "files", "/app"][..],
        &["look", "-e", "staging", "public/web", "--", "ls", "/app"],
        &["deploy", "-e", "staging", "--yes"],
        &["stop", "-e", "staging", "public", "--yes"],
    ] {
        let ran = run(&eye, words)?;
        ensure!(ran.code == 3 || ran.code == 4, "{ran}");
    }
    // A courier brings what is signed, and cannot read logs or files.
    for words in
        [&["logs", "-e", "staging", "public"][..], &["ps", "-e", "staging"], &["deploy", "-e", "staging", "--yes"]]
    {
        let ran = run(&mule, words)?;
        ensure!(ran.code == 3 || ran.code == 4, "{ran}");
    }
    app.serves("stage-1", "1")
}

/// An observer's key that takes every place there is.
fn crowd(world: &World) -> Result<()> {
    const PLACES: usize = 32;
    let app = world.app("crowded", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let logs = Ask::Logs { app: "crowded".parse()?, service: None, lines: 1, follow: true };
    let request = serde_json::to_vec(&Request { protocol: PROTOCOL, ask: logs })?;
    let follow = || -> Result<(Child, Event)> {
        let mut ssh = crate::orders::ssh(world, "stage-1", OBSERVE_ACCOUNT)?;
        let mut child = ssh
            .arg(bulkhead_wire::COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        write_frame(child.stdin.as_mut().context("no input")?, Kind::Message, &request)?;
        let frame = read_frame(child.stdout.as_mut().context("no output")?)?.context("no answer")?;
        Ok((child, serde_json::from_slice(&frame.payload)?))
    };
    let mut held = Vec::new();
    let crowded = (0..PLACES).try_for_each(|_| -> Result<()> {
        let (child, event) = follow()?;
        held.push(child);
        ensure!(!matches!(event, Event::Failed(_)), "{event:?}");
        Ok(())
    });
    let checks = || -> Result<()> {
        crowded?;
        let (mut child, event) = follow()?;
        child.kill()?;
        child.wait()?;
        ensure!(matches!(&event, Event::Failed(failure) if failure.rule == "busy"), "{event:?}");
        // Orders and operators pass.
        app.write("version.txt", "2")?;
        app.deploy("staging", 0)?;
        app.serves("stage-1", "2")?;
        let ask = Ask::Logs { app: "crowded".parse()?, service: None, lines: 1, follow: false };
        ensure!(matches!(last(world, OPERATE_ACCOUNT, ask, &[])?, Event::Done(_)), "operators are kept out");
        // Whoever breaks the gate of observers cannot take the places of others either.
        let connect = "use IO::Socket::UNIX; print IO::Socket::UNIX->new(Peer => $ARGV[0]) ? 'in' : $!";
        for (socket, said) in [
            ("keeper.sock", "Permission denied"),
            ("keeper-operate.sock", "Permission denied"),
            ("keeper-observe.sock", "in"),
        ] {
            let path = format!("/run/bulkhead/{socket}");
            let user = ["setpriv", "--reuid", OBSERVE_ACCOUNT, "--regid", OBSERVE_ACCOUNT, "--init-groups"];
            let words = [&user[..], &["perl", "-e", connect, &path]].concat();
            let answer = world.on_node("stage-1", &words)?;
            ensure!(answer == said, "{socket}: {answer}");
        }
        Ok(())
    };
    let checked = checks();
    for mut child in held {
        child.kill()?;
        child.wait()?;
    }
    checked
}

/// A machine that is put back to an older state of its disk.
fn snapshot(world: &World) -> Result<()> {
    let app = world.app("elder", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    world.on_node("stage-1", &["sh", "-c", "sync; cp -a /var/lib/bulkhead /var/tmp/snapshot"])?;
    for version in ["2", "3"] {
        app.write("version.txt", version)?;
        app.deploy("staging", 0)?;
    }
    let releases = app.node_root("stage-1")?.join("var/lib/bulkhead/apps/elder/releases");
    let captured = |number: u32| -> Result<(Vec<u8>, Vec<String>)> {
        let directory = releases.join(number.to_string());
        Ok((
            fs::read(directory.join("order.json"))?,
            serde_json::from_slice(&fs::read(directory.join("signatures.json"))?)?,
        ))
    };
    let (second, third) = (captured(2)?, captured(3)?);
    // The disk is put back, and the machine boots from it. What is not state of ours stays as it is.
    let back = "systemctl stop 'bulkhead-keeper*.socket'; cp -a /var/lib/bulkhead/store /var/tmp/store; \
                rm -rf /var/lib/bulkhead; mv /var/tmp/snapshot /var/lib/bulkhead; \
                rm -rf /var/lib/bulkhead/store; mv /var/tmp/store /var/lib/bulkhead/store; sync";
    world.on_node("stage-1", &["sh", "-c", back])?;
    world.kill_node("stage-1")?;
    world.start_node("stage-1")?;
    ensure!(app.served("stage-1")? == "1", "not put back");
    // Orders from between, captured on their way, are worth nothing: they were for another boot.
    let submit = |(bytes, signatures): &(Vec<u8>, Vec<String>)| {
        let submit = Submit { signatures: signatures.clone(), ..Submit::default() };
        last(world, ACCOUNT, Ask::Submit(submit), &[bytes])
    };
    refused(&submit(&second)?, "boot")?;
    ensure!(app.served("stage-1")? == "1", "the old order was carried out");
    // One further on is proof that the node has forgotten something, and it remembers that.
    refused(&submit(&third)?, "restored")?;
    is_on_record(world, "stage-1", &["refused", "restored"])?;
    app.write("version.txt", "4")?;
    app.deploy("staging", 5)?.says("put back to a snapshot")?.says("--accept-restored")?;
    let elsewhere = tempfile::tempdir()?;
    let deploy = ["deploy", "-e", "staging", "--yes"];
    world.run_with_cache(&app.folder, &deploy, elsewhere.path())?.expect(5)?.says("put back to a snapshot")?;
    ensure!(app.served("stage-1")? == "1", "carried out unseen");
    app.run(&["deploy", "-e", "staging", "--yes", "--accept-restored"])?.expect(0)?;
    app.serves("stage-1", "4")?;
    // From then on as ever.
    app.write("version.txt", "5")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "5")
}

fn heartbeat(world: &World) -> Result<()> {
    let app = world.app("pulse", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    fleet(world, &["policy", "require", "-e", "staging", "--heartbeat", "3600", "--yes"])?.expect(0)?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 5)?.says("demands a heartbeat every 3600 seconds")?.says("policy heartbeat")?;
    // Silence stops nothing.
    app.serves("stage-1", "1")?;
    app.run(&["restart", "-e", "staging", "pulse", "--yes"])?.expect(0)?;
    app.run(&["stop", "-e", "staging", "pulse", "--yes"])?.expect(0)?;
    app.run(&["start", "-e", "staging", "pulse", "--yes"])?.expect(5)?.says("heartbeat")?;
    fleet(world, &["policy", "heartbeat"])?.expect(0)?.says("heard")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")
}

/// The clock of these nodes is this machine's. So what the node remembers is moved ahead of it instead.
fn clock(world: &World) -> Result<()> {
    let app = world.app("timely", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let head = app.node_root("stage-1")?.join("var/lib/bulkhead/apps/timely/head.json");
    let was = fs::read(&head)?;
    let mut ahead: Value = serde_json::from_slice(&was)?;
    let accepted = ahead["accepted"].as_i64().context("no time")?;
    ahead["accepted"] = (accepted + 365 * 24 * 3600).into();
    fs::write(&head, serde_json::to_vec(&ahead)?)?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 5)?.says("clock")?;
    // Of another app as well: a node has one clock.
    let other = world.app("untimely", SERVE, WEB)?;
    other.deploy("staging", 5)?.says("clock")?;
    is_on_record(world, "stage-1", &["refused", "\"clock\""])?;
    app.serves("stage-1", "1")?;
    fs::write(&head, was)?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")
}

fn isolation(world: &World) -> Result<()> {
    let app = world.app("picky", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    // These nodes have no controllers of memory, and say so.
    fleet(world, &["policy", "require", "-e", "staging", "--isolation", "limit-memory", "--yes"])?.expect(0)?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 5)?.says("demands limit-memory of nodes")?.says("bulkhead node ls")?;
    app.serves("stage-1", "1")?;
    fleet(world, &["policy", "require", "-e", "staging", "--isolation", "sealed-images", "--yes"])?.expect(0)?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")
}

fn standing(world: &World) -> Result<()> {
    let (_, ci) = people(world)?;
    fleet(world, &["policy", "require", "-e", "staging", "release", "green+standing", "--yes"])?.expect(0)?;
    let app = world.app("robot", SERVE, WEB)?;
    let file = world.folder().join("standing.json").display().to_string();
    mark(world, &app, &ci, &[])?.expect(0)?;
    deploy_with(world, &app, "staging", &ci, &[])?.expect(5)?.says("no standing order")?;
    app.run(&["standing", "-e", "staging", "--uses", "3", "--days", "7", "--out", &file, "--yes"])?.expect(0)?;
    for version in ["1", "2"] {
        app.write("version.txt", version)?;
        mark(world, &app, &ci, &[])?.expect(0)?;
        deploy_with(world, &app, "staging", &ci, &["--standing", &file])?.expect(0)?;
        app.serves("stage-1", version)?;
    }
    app.write("version.txt", "3")?;
    // Not green, other settings, and once too often.
    deploy_with(world, &app, "staging", &ci, &["--standing", &file])?.expect(5)?.says("not-green")?;
    mark(world, &app, &ci, &[])?.expect(0)?;
    deploy_with(world, &app, "staging", &ci, &["--standing", &file])?.expect(0)?;
    app.write("version.txt", "4")?;
    mark(world, &app, &ci, &[])?.expect(0)?;
    deploy_with(world, &app, "staging", &ci, &["--standing", &file])?.expect(5)?.says("as often as it allows")?;
    app.run(&["standing", "-e", "staging", "--uses", "9", "--days", "7", "--out", &file, "--yes"])?.expect(0)?;
    app.manifest(SERVE, &format!("{WEB}\nenv = {{ LEVEL = \"evil\" }}"))?;
    deploy_with(world, &app, "staging", &ci, &["--standing", &file])?.expect(5)?.says("other settings")?;
    app.serves("stage-1", "3")
}
