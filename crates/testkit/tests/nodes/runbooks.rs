//! The runbooks, with the very commands that they show, and whether what they promise comes true.

use crate::{
    orders::sign,
    trust::{deploy_with, fleet, key, mark, refused},
};
use anyhow::{Context as _, Result, ensure};
use bulkhead_core::OrderId;
use bulkhead_testkit::world::{App, Ran, World};
use bulkhead_wire::{ACCOUNT, Ask, Submit};
use serde_json::Value;
use std::{fs, path::Path};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("keys_are_made_and_handed_out", ceremony),
    ("a_laptop_is_lost", lost_laptop),
    ("a_person_leaves", person_leaves),
    ("ci_was_broken_into", ci_break_in),
    ("a_node_was_put_back_to_a_snapshot", snapshot),
];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\ndrain = \"100ms\"\nstop = \"1s\"";
/// Commands that ask a person before they go on.
const ASKING: [&str; 6] = ["key", "policy push", "revoke", "rollback", "deploy", "restart"];

fn text(runbook: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/runbooks").join(runbook);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The lines of its fenced blocks.
fn fenced(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").skip(1).step_by(2).flat_map(str::lines).map(str::trim).filter(|line| !line.is_empty())
}

/// The words of a command line: quotes as a shell has them, `#` begins a comment.
fn words(line: &str) -> Vec<String> {
    let line = line.split(" #").next().unwrap_or(line);
    let parts = line.split('"').enumerate();
    parts
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

/// Runs every command of a runbook in its order, with these names for its own.
fn follow(app: &App<'_>, runbook: &str, names: &[(&str, &str)]) -> Result<Vec<Ran>> {
    let text = text(runbook)?;
    let mut all = Vec::new();
    for line in fenced(&text).filter(|line| line.starts_with("bulkhead ")) {
        let mut words = words(line);
        words.remove(0);
        for word in &mut words {
            if let Some((_, name)) = names.iter().find(|(shown, _)| shown == word) {
                *word = (*name).to_owned();
            }
        }
        if ASKING.iter().any(|asking| words.join(" ").starts_with(asking)) {
            words.push("--yes".into());
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        all.push(app.run(&words)?.expect(0).with_context(|| format!("{runbook}: {line}"))?);
    }
    ensure!(!all.is_empty(), "{runbook} has no command");
    Ok(all)
}

fn image_of(app: &App<'_>) -> Result<String> {
    let built = app.run(&["build", "-o", "json"])?.expect(0)?.json()?;
    Ok(built["image"].as_str().context("no image")?.to_owned())
}

/// That a key neither connects nor signs anything that counts.
fn counts_for_nothing(world: &World, app: &App<'_>, lost: &Path) -> Result<()> {
    let releases = app.node_root("prod-1")?.join("var/lib/bulkhead/apps").join(&app.name).join("releases");
    let order = fs::read(releases.join("1/order.json"))?;
    let submit =
        Submit { signatures: vec![sign(lost, "order@bulkhead", &order, world.folder())?], ..Submit::default() };
    let request = bulkhead_wire::Request { protocol: bulkhead_wire::PROTOCOL, ask: Ask::Submit(submit) };
    let event = crate::orders::converse(world, "prod-1", &request, &[&order])?.pop().context("no event")?;
    refused(&event, "threshold")?;
    let mut ssh = crate::orders::ssh_with_key(world, "prod-1", ACCOUNT, lost)?;
    let said = ssh.arg(bulkhead_wire::COMMAND).output()?;
    let said = String::from_utf8_lossy(&said.stderr);
    ensure!(said.contains("Permission denied"), "it connects: {said}");
    Ok(())
}

/// Two of three new root keys must sign, and each of them shows that it can.
fn ceremony(world: &World) -> Result<()> {
    let app = world.app("crowned", SERVE, WEB)?;
    let holders = ["root-ada", "root-bob", "root-safe"].map(|name| key(world, name));
    let [ada, bob, safe] = holders.map(|made| made.map(|(path, _)| path));
    let (ada, bob, safe) = (ada?, bob?, safe?);
    let text = text("key-ceremony.md")?;
    let mut shown = String::new();
    for line in fenced(&text).filter(|line| line.starts_with("bulkhead ")) {
        let mut words = words(line);
        words.remove(0);
        for word in words.iter_mut().filter(|word| word.ends_with(".pub")) {
            *word = world.folder().join(&*word).display().to_string();
        }
        let with: &[&Path] = if line == "bulkhead policy sign" { &[&ada, &safe] } else { &[&world.key()] };
        if !line.ends_with("show") {
            words.push("--yes".into());
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for key in with {
            let ran = world.run_with_key(&world.fleet(), &words, key)?;
            shown = ran.expect(0).with_context(|| line.to_owned())?.stdout;
        }
    }
    ensure!(shown.contains("the next one needs 2 of 3 root key(s)"), "{shown}");
    app.deploy("production", 0)?;
    // Whoever was the root is none any more, and one of the new ones is not enough.
    let change = ["policy", "require", "-e", "production", "--heartbeat", "9000", "--yes"];
    fleet(world, &change)?.expect(0)?.says("signed by nobody")?;
    world.run_with_key(&world.fleet(), &["policy", "sign", "--yes"], &bob)?.expect(0)?.says("wanting: 1")?;
    app.deploy("production", 0)?;
    Ok(())
}

fn lost_laptop(world: &World) -> Result<()> {
    let ((lost, lost_line), (new, _)) = (key(world, "ada")?, key(world, "new-ada")?);
    let all = ["release", "courier", "observe", "operate", "root"].map(|role| ["--role", role]).concat();
    fleet(world, &[&["key", "add", "ada", &lost_line, "--yes"][..], &all].concat())?.expect(0)?;
    let app = world.app("shop", SERVE, WEB)?;
    app.deploy("production", 0)?;
    app.write("version.txt", "stolen")?;
    deploy_with(world, &app, "production", &lost, &[])?.expect(0)?;
    let image = image_of(&app)?;
    let new_public = format!("{}.pub", new.display());
    let names = [("new-ada.pub", new_public.as_str()), ("APP", "shop"), ("IMAGE", &image)];
    follow(&app, "lost-laptop.md", &names)?.iter().find(|ran| ran.stdout.contains("ada")).context("not shown")?;
    app.serves("prod-1", "1")?;
    app.deploy("production", 5)?.says("was revoked")?;
    app.write("version.txt", "3")?;
    deploy_with(world, &app, "production", &new, &[])?.expect(0)?;
    app.serves("prod-1", "3")?;
    counts_for_nothing(world, &app, &lost)
}

fn person_leaves(world: &World) -> Result<()> {
    let (ada, line) = key(world, "ada")?;
    fleet(world, &["key", "add", "ada", &line, "--yes"])?.expect(0)?;
    let app = world.app("shop", SERVE, WEB)?;
    deploy_with(world, &app, "production", &ada, &[])?.expect(0)?;
    follow(&app, "person-leaves.md", &[])?;
    app.serves("prod-1", "1")?;
    let shown = fleet(world, &["policy", "show"])?.expect(0)?;
    ensure!(!shown.stdout.contains("ada"), "{shown}");
    counts_for_nothing(world, &app, &ada)?;
    // The last root key is not taken out.
    let policy: Value = serde_json::from_slice(&fs::read(world.fleet().join("policy.json"))?)?;
    let owner = policy["keys"].as_object().and_then(|keys| keys.keys().next()).context("nobody")?.clone();
    let ran = fleet(world, &["key", "revoke", &owner, "--yes"])?;
    ensure!(ran.code != 0, "the last root key went: {ran}");
    ran.says("bulkhead key add")?.says("root").map(drop)
}

fn ci_break_in(world: &World) -> Result<()> {
    let ((old, old_line), (new, _)) = (key(world, "ci")?, key(world, "new-ci")?);
    let add = ["key", "add", "ci", &old_line, "--role", "green", "--role", "courier", "--yes"];
    fleet(world, &add)?.expect(0)?;
    fleet(world, &["policy", "require", "-e", "production", "green+release", "green+standing", "--yes"])?.expect(0)?;
    let app = world.app("shop", SERVE, WEB)?;
    mark(world, &app, &old, &[])?.expect(0)?;
    app.deploy("production", 0)?;
    let file = world.folder().join("standing.json").display().to_string();
    app.run(&["standing", "-e", "production", "--uses", "9", "--days", "7", "--out", &file, "--yes"])?.expect(0)?;
    // Whoever is in CI's signer brings something of their own.
    app.write("version.txt", "evil")?;
    mark(world, &app, &old, &[])?.expect(0)?;
    deploy_with(world, &app, "production", &old, &["--standing", &file])?.expect(0)?;
    app.serves("prod-1", "evil")?;
    let image = image_of(&app)?;
    let standing: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let id = OrderId::of(standing["text"].as_str().context("no text")?.as_bytes()).to_string();
    let new_public = format!("{}.pub", new.display());
    let names = [("new-ci.pub", new_public.as_str()), ("ID", &id), ("IMAGE", &image)];
    let ran = follow(&app, "ci-break-in.md", &names)?;
    ensure!(ran.iter().any(|ran| ran.stdout.contains(&image)), "the image is not shown");

    // Neither what the old key states nor the standing order is worth anything, nor the image that it brought.
    app.deploy("production", 5)?.says("revoked")?;
    app.write("version.txt", "3")?;
    mark(world, &app, &old, &[])?;
    app.deploy("production", 5)?.says("not-green")?;
    mark(world, &app, &new, &[])?.expect(0)?;
    let ran = deploy_with(world, &app, "production", &new, &["--standing", &file])?;
    ensure!(ran.code != 0, "the standing order stands: {ran}");
    app.serves("prod-1", "evil")?;
    app.deploy("production", 0)?;
    app.serves("prod-1", "3")?;
    counts_for_nothing(world, &app, &old)
}

fn snapshot(world: &World) -> Result<()> {
    let (app, other) = (world.app("shop", SERVE, WEB)?, world.app("bakery", SERVE, WEB)?);
    app.deploy("production", 0)?;
    other.deploy("production", 0)?;
    world.on_node("prod-1", &["sh", "-c", "sync; cp -a /var/lib/bulkhead /var/tmp/snapshot"])?;
    for version in ["2", "3"] {
        for app in [&app, &other] {
            app.write("version.txt", version)?;
            app.deploy("production", 0)?;
        }
    }
    let (_, eve) = key(world, "eve")?;
    fleet(world, &["key", "add", "eve", &eve, "--role", "observe", "--yes"])?.expect(0)?;
    let releases = app.node_root("prod-1")?.join("var/lib/bulkhead/apps/shop/releases");
    let captured = fs::read(releases.join("2/order.json"))?;
    let signatures: Vec<String> = serde_json::from_slice(&fs::read(releases.join("2/signatures.json"))?)?;
    let back = "systemctl stop 'bulkhead-keeper*.socket'; mv /var/lib/bulkhead/store /var/tmp/store; \
                rm -rf /var/lib/bulkhead; mv /var/tmp/snapshot /var/lib/bulkhead; \
                rm -rf /var/lib/bulkhead/store; mv /var/tmp/store /var/lib/bulkhead/store; sync";
    world.on_node("prod-1", &["sh", "-c", back])?;
    world.kill_node("prod-1")?;
    world.start_node("prod-1")?;
    let request = bulkhead_wire::Request {
        protocol: bulkhead_wire::PROTOCOL,
        ask: Ask::Submit(Submit { signatures, ..Submit::default() }),
    };
    let event = crate::orders::converse(world, "prod-1", &request, &[&captured])?.pop().context("no event")?;
    refused(&event, "boot")?;
    app.write("version.txt", "4")?;
    app.deploy("production", 5)?.says("bulkhead policy push")?;
    follow(&app, "snapshot.md", &[])?;
    app.serves("prod-1", "4")?;
    // The runbook shows what such a node says, of other numbers.
    let text = text("snapshot.md")?;
    let shown = fenced(&text).find_map(|line| line.strip_prefix("error: ")).context("no message is shown")?;
    let said = other.run(&["deploy", "-e", "production", "--yes"])?.expect(5)?;
    said.says(&shown.replace("6 orders", "1 orders").replace("9 were", "3 were"))?;
    other.serves("prod-1", "1")?;
    follow(&other, "snapshot.md", &[])?;
    other.serves("prod-1", "3")?;
    // The policy that came after the snapshot is enforced again.
    let json = fleet(world, &["node", "ls", "-o", "json"])?.expect(0)?.json()?;
    ensure!(json["nodes"][0]["facts"]["policy_version"] == 2, "{json}");
    app.write("version.txt", "5")?;
    app.deploy("production", 0).map(drop)
}
