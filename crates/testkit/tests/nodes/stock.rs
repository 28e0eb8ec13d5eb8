//! Nobody needs this project's programs to check what was signed: stock `ssh-keygen -Y verify` does.

use crate::{
    audit::{found, verify},
    trust::{deploy_with, fleet, key, mark},
};
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::World;
use serde_json::{Value, json};
use std::{fs, path::Path};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("ssh_keygen_verifies_every_kind_of_document", all_kinds)];

const NAMESPACES: [&str; 9] =
    ["order", "policy", "green", "revocation", "heartbeat", "standing", "grant", "audit", "receipt"];

fn read(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

/// The one file, or one of them, whose path has this in it.
fn one(directory: &Path, part: &str) -> Result<Value> {
    let is_it = |path: &Path| path.display().to_string().contains(part);
    read(&found(directory, &is_it)?.pop().with_context(|| format!("no {part} in {}", directory.display()))?)
}

fn all_kinds(world: &World) -> Result<()> {
    let (ci, ci_line) = key(world, "ci")?;
    let owner = fs::read_to_string(world.key().with_extension("pub"))?;
    let add = ["key", "add", "ci", &ci_line, "--role", "green", "--role", "courier", "--yes"];
    fleet(world, &add)?.expect(0)?;
    fleet(world, &["policy", "require", "-e", "staging", "release", "green+standing", "--yes"])?.expect(0)?;
    fleet(world, &["policy", "heartbeat"])?.expect(0)?;
    fleet(world, &["revoke", "--image", &"ab".repeat(32), "--reason", "to see its signature", "--yes"])?.expect(0)?;
    let app = world.app("signed", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
    let standing = world.folder().join("standing.json");
    let file = standing.display().to_string();
    app.run(&["standing", "-e", "staging", "--uses", "3", "--days", "7", "--out", &file, "--yes"])?.expect(0)?;
    let (_, scaler) = key(world, "scaler")?;
    fleet(world, &["key", "add", "scaler", &scaler, "--role", "scale", "--yes"])?.expect(0)?;
    let inventory = world.fleet().join("fleet.toml");
    let pool = "\n[pools.kernels]\nenvironment = \"staging\"\nprovider = \"local\"\nmachines_max = 1\n";
    fs::write(&inventory, fs::read_to_string(&inventory)? + pool)?;
    let grant = world.folder().join("grant.json");
    let words = ["pool", "grant", "kernels", "-e", "staging", "--yes", "--out", &grant.display().to_string()];
    app.run(&words)?.expect(0)?;
    mark(world, &app, &ci, &["-e", "staging"])?.expect(0)?;
    deploy_with(world, &app, "staging", &ci, &["--standing", &file])?.expect(0)?;
    fleet(world, &["audit", "-e", "staging"])?.expect(0)?;

    let node = app.node_root("stage-1")?.join("var/lib/bulkhead");
    let state = world.folder().join(".local/state/bulkhead");
    let release = node.join("apps/signed/releases/1");
    let order = json!({
        "text": fs::read_to_string(release.join("order.json"))?,
        "signatures": read(&release.join("signatures.json"))?,
    });
    let audit_key = found(&state, &|path| path.ends_with("audit-key"))?.pop().context("no audit key is kept")?;
    let audit_key = fs::read_to_string(audit_key)?;
    let documents = [
        (order, &ci_line),
        (read(&node.join("policy/signed.json"))?, &owner),
        (one(&node, "policy/statements/")?, &ci_line),
        (one(&node, "policy/revocations/")?, &owner),
        (read(&node.join("policy/heartbeat.json"))?, &owner),
        (read(&standing)?, &owner),
        (read(&grant)?, &owner),
        (one(&state, "head.json")?, &audit_key),
        (one(&state, "receipts/")?, &audit_key),
    ];
    for (kind, (document, key)) in NAMESPACES.iter().zip(&documents) {
        for namespace in NAMESPACES {
            let is_good = verify(world.folder(), document, &format!("{namespace}@bulkhead"), key.trim())?;
            ensure!(is_good == (namespace == *kind), "{kind} as {namespace}: {is_good}: {document}");
        }
        let mut altered = document.clone();
        altered["text"] = format!("{} ", document["text"].as_str().context("no text")?).into();
        let is_good = verify(world.folder(), &altered, &format!("{kind}@bulkhead"), key.trim())?;
        ensure!(!is_good, "{kind} was altered, and verifies");
    }
    Ok(())
}
