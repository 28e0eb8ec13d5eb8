//! Audit logs: what is in them, that whoever saw one notices when it is changed
//! later, and that stock `ssh-keygen` takes what a node signs.

use crate::orders::converse;
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{Ran, World};
use bulkhead_wire::{Ask, Event, PROTOCOL, Request, Submit};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Nothing else is done on these nodes while a log is changed there.
pub(crate) const TESTS: &[(&str, crate::Test)] = &[("what_is_in_it_and_what_was_changed", log)];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\ndrain = \"100ms\"\nstop = \"1s\"";

fn audit(world: &World, more: &[&str], code: i32) -> Result<Ran> {
    let words: Vec<&str> = ["audit", "-e", "staging"].iter().chain(more).copied().collect();
    world.run(&world.fleet(), &words)?.expect(code)
}

/// The files of this kind below a directory.
pub(crate) fn found(directory: &Path, what: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(found(&path, what)?);
        } else if what(&path) {
            all.push(path);
        }
    }
    Ok(all)
}

/// Has stock `ssh-keygen` verify a signed document with an OpenSSH public key.
pub(crate) fn verify(folder: &Path, signed: &Value, namespace: &str, key: &str) -> Result<bool> {
    let allowed = folder.join("allowed");
    fs::write(&allowed, format!("node {key}\n"))?;
    let signature = folder.join("signature");
    fs::write(&signature, signed["signatures"][0].as_str().context("no signature")?)?;
    let document = folder.join("document");
    fs::write(&document, signed["text"].as_str().context("no text")?)?;
    let verified = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "node", "-n", namespace, "-f"])
        .arg(&allowed)
        .arg("-s")
        .arg(&signature)
        .stdin(fs::File::open(document)?)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(verified.success())
}

fn log(world: &World) -> Result<()> {
    let app = world.app("noted", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;

    // What happened is there, with who signed and who brought it.
    let ran = audit(world, &["-o", "json"], 0)?;
    let report = ran.json()?;
    let entries = report["entries"].as_array().context("no entries")?;
    let accepted: Vec<&Value> =
        entries.iter().filter(|entry| entry["app"] == "noted" && entry["event"] == "accepted").collect();
    ensure!(accepted.len() == 2, "{ran}");
    for (entry, counter) in accepted.iter().zip(1..) {
        ensure!(entry["counter"] == counter && entry["courier"] != Value::Null, "{ran}");
        ensure!(entry["signers"].as_array().is_some_and(|signers| signers.len() == 1), "{ran}");
    }
    ensure!(entries.iter().filter(|entry| entry["app"] == "noted" && entry["event"] == "done").count() == 2, "{ran}");
    // The receipts of the two orders showed the key already.
    ensure!(report["nodes"][0]["key_by"] == "before" && report["nodes"][0]["error"] == Value::Null, "{ran}");

    // A refusal is there too, by its rule, and without an app: nobody who counts signed it.
    let submit = Submit::default();
    let request = Request { protocol: PROTOCOL, ask: Ask::Submit(submit) };
    let refusal = match converse(world, "stage-1", &request, &[b"{}"])?.pop() {
        Some(Event::Failed(failure)) => failure.rule,
        other => anyhow::bail!("{other:?} instead of a refusal"),
    };
    let ran = audit(world, &["-o", "json"], 0)?;
    let report = ran.json()?;
    let last = report["entries"].as_array().and_then(|entries| entries.last()).context("no entries")?.clone();
    ensure!(last["event"] == "refused" && last["rule"] == *refusal && last["app"] == Value::Null, "{ran}");
    audit(world, &[], 0)?.says("unbroken")?.says("refused")?;

    // Everything, a line each.
    let export = world.folder().join("export.jsonl");
    audit(world, &["--export", &export.display().to_string(), "-n", "1"], 0)?;
    let lines = fs::read_to_string(&export)?;
    ensure!(lines.lines().count() as u64 == report["nodes"][0]["entries"].as_u64().unwrap_or(0), "{lines}");
    ensure!(lines.lines().all(|line| line.starts_with("{\"node\":\"stage-1\"")), "{lines}");

    // Stock ssh-keygen takes head and receipts, and only in their own namespaces.
    let state = world.folder().join(".local/state/bulkhead");
    let is = |name: &'static str| move |path: &Path| path.ends_with(name);
    let head = found(&state, &is("head.json"))?.pop().context("no head is kept")?;
    let key = found(&state, &is("audit-key"))?.pop().context("no key is kept")?;
    let key = fs::read_to_string(key)?;
    let receipts = found(&state, &|path| path.parent().is_some_and(|folder| folder.ends_with("receipts")))?;
    ensure!(receipts.len() == 2, "{receipts:?}");
    let read = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    ensure!(verify(world.folder(), &read(&head)?, "audit@bulkhead", key.trim())?, "the head does not verify");
    ensure!(!verify(world.folder(), &read(&head)?, "receipt@bulkhead", key.trim())?, "a head passes for a receipt");
    for receipt in &receipts {
        let receipt = read(receipt)?;
        ensure!(verify(world.folder(), &receipt, "receipt@bulkhead", key.trim())?, "{receipt} does not verify");
        let said: Value = serde_json::from_str(receipt["text"].as_str().unwrap_or_default())?;
        ensure!(said["node"] == "stage-1" && said["outcome"] == "done", "{said}");
        ensure!(
            lines.contains(said["order"].as_str().context("no order")?),
            "{said} is of an order that is not logged"
        );
    }

    // The key is the node's alone.
    let mode =
        world.on_node("stage-1", &["stat", "-c", "%a %U", "/var/lib/bulkhead/keys/audit", "/var/lib/bulkhead/keys"])?;
    ensure!(mode.trim() == "600 root\n700 root", "{mode}");

    audit(world, &["--witness"], 0)?;
    let witness = fs::read_to_string(world.fleet().join(".bulkhead/witness/stage-1.json"))?;
    ensure!(witness.matches("BEGIN SSH SIGNATURE").count() == 2, "{witness}");

    // Root of the node changes what was seen: each is noticed, and says where.
    let path = app.node_root("stage-1")?.join("var/lib/bulkhead/audit.jsonl");
    let good = fs::read_to_string(&path)?;
    let good: Vec<&str> = good.lines().collect();
    let index = good.iter().position(|line| line.contains("\"event\":\"done\"")).context("nothing was done")?;
    let altered = good[index].replacen("\"event\":\"done\"", "\"event\":\"failed\"", 1);
    let whole = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let with = |index: usize, line: Option<&str>| {
        let mut lines = good.clone();
        match line {
            Some(line) => lines[index] = line,
            None => drop(lines.remove(index)),
        }
        whole(&lines)
    };
    let last = good.len() - 1;
    for (case, text, says) in [
        ("altered", with(index, Some(&altered)), format!("line {} of the audit log does not follow", index + 2)),
        ("dropped", with(index, None), format!("line {} of the audit log does not follow", index + 1)),
        ("truncated", whole(&good[..last]), format!("cut off after line {last}")),
        ("emptied", String::new(), "cut off after line 0".to_owned()),
        (
            "written anew",
            whole(&anew(&good)?.iter().map(String::as_str).collect::<Vec<_>>()),
            "was written anew".to_owned(),
        ),
    ] {
        fs::write(&path, text)?;
        let ran = audit(world, &[], 5)?;
        ran.says(&says).with_context(|| case.to_owned())?.says("NOT TO BE BELIEVED")?;
    }

    // Somebody else, who has never seen the node, has the witnessed head beside fleet.toml.
    fs::write(&path, whole(&good[..last]))?;
    let elsewhere = tempfile::tempdir()?;
    let words = ["audit", "-e", "staging"];
    let state = [("BULKHEAD_STATE", elsewhere.path())];
    world
        .run_with_env(&world.fleet(), &words, &state)?
        .expect(5)?
        .says("witnessed by")?
        .says("cut off after")?
        .says("taken as seen first")?;
    fs::write(&path, whole(&good))?;
    world.run_with_env(&world.fleet(), &words, &state)?.expect(0)?.says("unbroken")?;

    // What was put back is believed again, and goes on.
    app.write("version.txt", "3")?;
    app.deploy("staging", 0)?;
    audit(world, &[], 0)?.says("unbroken")?.says("was witnessed by")?;

    // A node with another key is another node.
    let key = app.node_root("stage-1")?.join("var/lib/bulkhead/keys/audit");
    let seed = fs::read_to_string(&key)?;
    fs::write(&key, format!("{}\n", "7".repeat(64)))?;
    audit(world, &[], 5)?.says("is not signed with the audit key of node stage-1")?;
    fs::write(&key, seed)?;
    audit(world, &[], 0).map(drop)
}

/// A log of as many lines in which each follows the one before, and all are others.
fn anew(good: &[&str]) -> Result<Vec<String>> {
    let mut previous = "0".repeat(64);
    let mut lines = Vec::new();
    for line in good {
        let mut entry: bulkhead_trust::audit::Entry = serde_json::from_str(line)?;
        entry.previous = previous.parse()?;
        entry.at.0 += 1;
        let line = serde_json::to_string(&entry)?;
        previous = bulkhead_core::EntryId::of(line.as_bytes()).to_string();
        lines.push(line);
    }
    Ok(lines)
}
