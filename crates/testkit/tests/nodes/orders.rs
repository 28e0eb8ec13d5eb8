//! Orders that a node must not accept, brought by a stock `ssh` client whose
//! key may connect: the right to connect is not the right to deploy.

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::World;
use bulkhead_wire::{Ask, Event, FailureKind, Kind, PROTOCOL, Request, Submit, read_frame, write_frame};
use serde_json::Value;
use std::{
    fs,
    io::{BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("unsigned", unsigned),
    ("signed_by_a_stranger", stranger),
    ("signed_in_another_namespace", namespace),
    ("tampered_after_signing", tampered),
    ("settings_altered_after_signing", settings),
    ("for_another_node", another_node),
    ("for_another_app", another_app),
    ("for_another_fleet", another_fleet),
    ("replayed", replayed),
    ("counted_too_low_or_to_the_end", counted),
    ("of_another_time", times),
];

/// A plain `ssh` to a node, with nothing of this machine's own configuration.
pub(crate) fn ssh(world: &World, node: &str, account: &str) -> Result<Command> {
    ssh_with_key(world, node, account, &world.key())
}

/// Likewise with another key.
pub(crate) fn ssh_with_key(world: &World, node: &str, account: &str, key: &Path) -> Result<Command> {
    ssh_as(world, node, account, key, &["-T"])
}

/// Likewise with more options, before the others.
pub(crate) fn ssh_with_options(world: &World, node: &str, account: &str, options: &[&str]) -> Result<Command> {
    ssh_as(world, node, account, &world.key(), options)
}

fn ssh_as(world: &World, node: &str, account: &str, key: &Path, options: &[&str]) -> Result<Command> {
    let (address, host_key) = world.address(node)?;
    let known_hosts = world.folder().join(format!("known-hosts-{node}"));
    // Other tests read it at this moment: it is there whole or not at all.
    let mut fresh = tempfile::NamedTempFile::new_in(world.folder())?;
    fresh.write_all(format!("{address} {host_key}\n").as_bytes())?;
    fresh.persist(&known_hosts)?;
    let mut command = Command::new("ssh");
    command.args(options);
    command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"]);
    command.arg("-o").arg(format!("UserKnownHostsFile={}", known_hosts.display()));
    command.arg("-i").arg(key).arg(format!("{account}@{address}"));
    Ok(command)
}

/// One conversation with a node's gate: the request, its streams, and all events it answers.
pub(crate) fn converse(world: &World, node: &str, request: &Request, streams: &[&[u8]]) -> Result<Vec<Event>> {
    converse_as(world, node, bulkhead_wire::ACCOUNT, request, streams)
}

/// Likewise as another of the node's accounts.
pub(crate) fn converse_as(
    world: &World,
    node: &str,
    account: &str,
    request: &Request,
    streams: &[&[u8]],
) -> Result<Vec<Event>> {
    let mut child = ssh(world, node, account)?
        .arg(bulkhead_wire::COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no stdin")?;
    write_frame(&mut input, Kind::Message, &serde_json::to_vec(request)?)?;
    for stream in streams {
        for piece in stream.chunks(bulkhead_wire::DATA_MAX_BYTES) {
            write_frame(&mut input, Kind::Data, piece)?;
        }
        write_frame(&mut input, Kind::End, &[])?;
    }
    input.flush()?;
    let mut output = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut events = Vec::new();
    while let Some(frame) = read_frame(&mut output)? {
        if frame.kind == Kind::Message {
            let event: Event = serde_json::from_slice(&frame.payload)?;
            let last = matches!(event, Event::Done(_) | Event::Failed(_));
            events.push(event);
            if last {
                break;
            }
        }
    }
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(!events.is_empty(), "no answer: {}", String::from_utf8_lossy(&output.stderr));
    Ok(events)
}

/// Signs with stock `ssh-keygen`.
pub(crate) fn sign(key: &Path, namespace: &str, bytes: &[u8], folder: &Path) -> Result<String> {
    let file = folder.join("document");
    fs::write(&file, bytes)?;
    let signature = folder.join("document.sig");
    if signature.exists() {
        fs::remove_file(&signature)?;
    }
    let status =
        Command::new("ssh-keygen").args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(key).arg(&file).status()?;
    ensure!(status.success(), "ssh-keygen cannot sign");
    Ok(fs::read_to_string(signature)?)
}

/// A good order to stop an app that runs on stage-1, as JSON to be changed, and a folder to work in.
pub(crate) struct Bench<'a> {
    world: &'a World,
    name: &'static str,
    pub(crate) order: Value,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(world: &'a World, name: &'static str) -> Result<Self> {
        let app = world.app(name, &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
        app.deploy("staging", 0)?;
        let root = app.node_root("stage-1")?;
        let bytes = fs::read(root.join(format!("var/lib/bulkhead/apps/{name}/releases/1/order.json")))?;
        let mut order: Value = serde_json::from_slice(&bytes)?;
        order["targets"]["stage-1"] = serde_json::json!({
            "counter": 2,
            "boot": order["targets"]["stage-1"]["boot"],
            "previous": bulkhead_core::OrderId::of(&bytes).to_string(),
        });
        order["action"] = serde_json::json!({"do": "stop", "services": []});
        Ok(Self { world, name, order })
    }

    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(&self.order)?)
    }

    fn signed(&self, bytes: &[u8]) -> Result<String> {
        let app = self.world.folder().join("apps").join(self.name);
        sign(&self.world.key(), "order@bulkhead", bytes, &app)
    }

    pub(crate) fn submit(&self, bytes: &[u8], signatures: Vec<String>) -> Result<Event> {
        let submit = Submit { signatures, ..Submit::default() };
        let request = Request { protocol: PROTOCOL, ask: Ask::Submit(submit) };
        converse(self.world, "stage-1", &request, &[bytes])?.pop().context("no event")
    }

    /// Demands a refusal by this rule, that the app serves on, and that the audit log has it.
    pub(crate) fn refused(&self, bytes: &[u8], signatures: Vec<String>, rule: &str) -> Result<()> {
        match self.submit(bytes, signatures)? {
            Event::Failed(failure) => {
                ensure!(failure.kind == FailureKind::Refused && failure.rule == rule, "{failure:?}");
            }
            other => anyhow::bail!("{other:?} instead of a refusal"),
        }
        let app = self.world.app(self.name, &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
        app.serves("stage-1", "1")?;
        let audit = self.world.on_node("stage-1", &["tail", "-n", "50", "/var/lib/bulkhead/audit.jsonl"])?;
        ensure!(
            audit.lines().any(|line| line.contains("refused") && line.contains(rule)),
            "no such refusal in {audit}"
        );
        Ok(())
    }
}

fn unsigned(world: &World) -> Result<()> {
    let bench = Bench::new(world, "unsigned")?;
    bench.refused(&bench.bytes()?, vec![], "threshold")?;
    // The same bytes, signed, are carried out: the refusal was for want of a signature.
    let bytes = bench.bytes()?;
    let event = bench.submit(&bytes, vec![bench.signed(&bytes)?])?;
    ensure!(matches!(event, Event::Done(_)), "{event:?}");
    Ok(())
}

fn stranger(world: &World) -> Result<()> {
    let bench = Bench::new(world, "strange")?;
    let folder = world.folder().join("apps/strange");
    let key = folder.join("../strange-key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status()?;
    ensure!(made.success(), "ssh-keygen failed");
    let bytes = bench.bytes()?;
    bench.refused(&bytes, vec![sign(&key, "order@bulkhead", &bytes, &folder)?], "threshold")
}

fn namespace(world: &World) -> Result<()> {
    let bench = Bench::new(world, "misnamed")?;
    let bytes = bench.bytes()?;
    let signature = sign(&world.key(), "file", &bytes, &world.folder().join("apps/misnamed"))?;
    bench.refused(&bytes, vec![signature], "threshold")
}

fn tampered(world: &World) -> Result<()> {
    let mut bench = Bench::new(world, "tampered")?;
    let signature = bench.signed(&bench.bytes()?)?;
    bench.order["action"] = serde_json::json!({"do": "remove", "volumes": true});
    bench.refused(&bench.bytes()?, vec![signature], "threshold")
}

type Change = fn(&mut Value);

/// A new release on its way, with one thing changed that decides what runs.
fn settings(world: &World) -> Result<()> {
    let mut bench = Bench::new(world, "altered")?;
    let app = world.app("altered", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
    let stored = app.node_root("stage-1")?.join("var/lib/bulkhead/apps/altered/releases/1/order.json");
    let run: Value = serde_json::from_slice(&fs::read(stored)?)?;
    bench.order["action"] = run["action"].clone();
    let bytes = bench.bytes()?;
    let signature = bench.signed(&bytes)?;
    let good = bench.order.clone();
    let changes: [(&str, Change); 9] = [
        ("environment", |run| run["services"][0]["env"]["LD_PRELOAD"] = "/data/evil.so".into()),
        ("mounts", |run| run["services"][0]["volumes"] = serde_json::json!([{"name": "etc", "path": "/etc"}])),
        ("command", |run| run["services"][0]["command"] = serde_json::json!(["/app/testapp", "exit", "0"])),
        ("port", |run| run["services"][0]["port"] = 22.into()),
        ("executable memory", |run| run["services"][0]["jit"] = true.into()),
        ("limits", |run| run["services"][0]["tasks_max"] = 1_000_000.into()),
        ("secrets", |run| run["services"][0]["secrets"] = serde_json::json!(["TOKEN"])),
        ("image", |run| run["image"] = "ab".repeat(32).into()),
        ("what to go back to", |run| run["fallback"] = serde_json::json!(["ab".repeat(32)])),
    ];
    for (what, change) in changes {
        bench.order = good.clone();
        change(&mut bench.order["action"]);
        let altered = bench.bytes()?;
        ensure!(altered != bytes, "{what}: nothing was changed");
        bench.refused(&altered, vec![signature.clone()], "threshold").context(what)?;
    }
    let spaced = [&bytes[..], b" "].concat();
    bench.refused(&spaced, vec![signature.clone()], "threshold").context("a space")?;
    let event = bench.submit(&bytes, vec![signature])?;
    ensure!(matches!(event, Event::Done(_)), "{event:?}");
    Ok(())
}

fn another_app(world: &World) -> Result<()> {
    let mut bench = Bench::new(world, "own-app")?;
    let other = Bench::new(world, "other-app")?;
    let signature = other.signed(&other.bytes()?)?;
    bench.order = other.order.clone();
    bench.order["app"] = "own-app".into();
    let bytes = bench.bytes()?;
    bench.refused(&bytes, vec![signature], "threshold")?;
    // Signed for this one, with where the other stands.
    bench.refused(&bytes, vec![bench.signed(&bytes)?], "previous")
}

fn another_node(world: &World) -> Result<()> {
    let mut bench = Bench::new(world, "elsewhere")?;
    let target = bench.order["targets"]["stage-1"].take();
    bench.order["targets"] = serde_json::json!({ "stage-2": target });
    let bytes = bench.bytes()?;
    bench.refused(&bytes, vec![bench.signed(&bytes)?], "node")?;
    // Of an app that no order was accepted of nothing is left.
    bench.order["app"] = "never-here".into();
    let bytes = bench.bytes()?;
    bench.refused(&bytes, vec![bench.signed(&bytes)?], "node")?;
    world.on_node("stage-1", &["test", "!", "-e", "/var/lib/bulkhead/apps/never-here"]).map(drop)
}

fn another_fleet(world: &World) -> Result<()> {
    let mut bench = Bench::new(world, "foreigner")?;
    bench.order["fleet"] = "other".into();
    let bytes = bench.bytes()?;
    bench.refused(&bytes, vec![bench.signed(&bytes)?], "fleet")
}

fn replayed(world: &World) -> Result<()> {
    let bench = Bench::new(world, "replayed")?;
    let root = world.app("replayed", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?.node_root("stage-1")?;
    let first = root.join("var/lib/bulkhead/apps/replayed/releases/1");
    let old = fs::read(first.join("order.json"))?;
    let signatures: Vec<String> = serde_json::from_slice(&fs::read(first.join("signatures.json"))?)?;
    let bytes = bench.bytes()?;
    let stop = bench.signed(&bytes)?;
    ensure!(matches!(bench.submit(&bytes, vec![stop.clone()])?, Event::Done(_)), "the good order was not accepted");
    let app = world.app("replayed", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
    app.run(&["start", "-e", "staging", "replayed", "--yes"])?.expect(0)?;
    ensure!(app.served("stage-1")? == "1", "not started");
    bench.refused(&bytes, vec![stop], "counter")?;
    bench.refused(&old, signatures, "counter")
}

fn counted(world: &World) -> Result<()> {
    let mut bench = Bench::new(world, "counted")?;
    let good = bench.order.clone();
    let end = u64::MAX;
    for (counter, floor, rule) in
        [(0, None, "malformed"), (1, None, "counter"), (end, None, "counter"), (end, Some(end - 1), "counter")]
    {
        bench.order["targets"]["stage-1"]["counter"] = counter.into();
        if let Some(floor) = floor {
            bench.order["targets"]["stage-1"]["floor"] = floor.into();
        }
        let bytes = bench.bytes()?;
        bench.refused(&bytes, vec![bench.signed(&bytes)?], rule).with_context(|| format!("{counter}, {floor:?}"))?;
    }
    // None of them used anything up.
    bench.order = good;
    let bytes = bench.bytes()?;
    let event = bench.submit(&bytes, vec![bench.signed(&bytes)?])?;
    ensure!(matches!(event, Event::Done(_)), "{event:?}");
    Ok(())
}

fn times(world: &World) -> Result<()> {
    const MINUTE: i64 = 60;
    const YEAR: i64 = 365 * 24 * 60 * MINUTE;
    let mut bench = Bench::new(world, "timely")?;
    let now = bench.order["issued"].as_i64().context("no time")?;
    for (case, issued, not_after) in [
        ("expired long ago", now - YEAR, now - YEAR + 60 * MINUTE),
        ("expired a moment ago", now - 60 * MINUTE, now - MINUTE),
        ("good for a year", now, now + YEAR),
        ("of a year ago and still good", now - YEAR, now + 60 * MINUTE),
        ("of a clock that is ahead", now + 30 * MINUTE, now + 60 * MINUTE),
        ("of ten years on", now + 10 * YEAR, now + 10 * YEAR + MINUTE),
    ] {
        bench.order["issued"] = issued.into();
        bench.order["not_after"] = not_after.into();
        let bytes = bench.bytes()?;
        bench.refused(&bytes, vec![bench.signed(&bytes)?], "expired").with_context(|| case)?;
    }
    Ok(())
}
