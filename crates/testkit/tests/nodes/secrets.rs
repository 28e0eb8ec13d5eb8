//! Secrets: a service reads them from files, and they are nowhere else.

use crate::orders::converse_as;
use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_testkit::world::{App, World};
use bulkhead_wire::{ACCOUNT, Ask, Event, OPERATE_ACCOUNT, PROTOCOL, Request, Submit, View};
use std::{fs, path::Path, process::Command};

/// Nodes are restarted and files on them removed: nothing else is done there.
pub(crate) const TESTS: &[(&str, crate::Test)] = &[("a_secrets_life", life)];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\ndrain = \"100ms\"\nstop = \"1s\"";
const FIRST: &str = "first-value-3b1f9c77a0";
const SECOND: &str = "second-value-90d2e4416c";
const PRODUCTION: &str = "production-value-71ac05e3";

/// Sets a value by a command's output, so that it is in a file of this test's alone.
fn set(app: &App<'_>, verb: &str, environment: &str, value: &str, code: i32) -> Result<bulkhead_testkit::world::Ran> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), format!("{value}\n"))?;
    let command = format!("cat {}", file.path().display());
    let mut words = vec!["secret", verb, &app.name, "TOKEN", "-e", environment, "--command", &command];
    if verb == "rotate" {
        words.push("--yes");
    }
    app.run(&words)?.expect(code)
}

/// Where the service finds its secrets.
fn directory(app: &App<'_>, node: &str) -> Result<String> {
    let (_, env) = app.get(node, "/env")?;
    let line = env.lines().find_map(|line| line.strip_prefix("CREDENTIALS_DIRECTORY="));
    line.map(str::to_owned).with_context(|| format!("no directory of secrets in {env}"))
}

fn reads(app: &App<'_>, node: &str, value: &str) -> Result<()> {
    let (_, found) = app.get(node, &format!("/read{}/TOKEN", directory(app, node)?))?;
    ensure!(found == value, "{} reads `{found}` on {node}, not `{value}`", app.name);
    Ok(())
}

/// No process of a node has it in its environment or command line.
fn in_no_process(world: &World, value: &str) -> Result<()> {
    // As a pattern that does not match itself, for it is in the command line of whoever looks.
    let (first, rest) = value.split_at(1);
    let script = format!("grep -lasE '[{first}]{rest}' /proc/[0-9]*/environ /proc/[0-9]*/cmdline || true");
    let found = world.on_node("stage-1", &["sh", "-c", &script])?;
    ensure!(found.is_empty(), "the value is in {found}");
    Ok(())
}

/// Files below a directory that have this text in them.
fn having(text: &str, directory: &Path) -> Result<String> {
    let output = Command::new("grep").args(["-rlaF", "-D", "skip", text]).arg(directory).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn nowhere(value: &str, root: &Path) -> Result<()> {
    for place in ["var", "etc", "tmp", "root", "home", "run/systemd", "run/log", "run/bulkhead"] {
        let found = having(value, &root.join(place))?;
        ensure!(found.is_empty(), "the value is in {found}");
    }
    Ok(())
}

fn look(world: &World, account: &str, path: &str) -> Result<String> {
    let (app, service) = ("keeping".parse()?, "web".parse()?);
    let ask = Ask::Look { app, service, view: View::Files { path: path.into() } };
    let request = Request { protocol: PROTOCOL, ask };
    match converse_as(world, "stage-1", account, &request, &[])?.pop() {
        Some(Event::Failed(failure)) => Ok(format!("{}: {}", failure.rule, failure.message)),
        other => anyhow::bail!("{other:?} instead of a refusal"),
    }
}

fn life(world: &World) -> Result<()> {
    let more = format!("{WEB}\nsecrets = [\"TOKEN\"]");
    let app = world.app("keeping", SERVE, &more)?;
    app.deploy("staging", 3)?.says("secret `TOKEN` of keeping has no value in staging")?;
    let ran = set(&app, "set", "staging", FIRST, 0)?.says("sealed to stage-1")?.says("taken as seen first")?;
    ensure!(!ran.stderr.contains("warning"), "{ran}");
    let sealed = world.fleet().join(".bulkhead/secrets/staging/keeping/TOKEN.json");
    ensure!(sealed.is_file(), "no sealed value is kept");
    app.deploy("staging", 0)?;
    reads(&app, "stage-1", FIRST)?;

    // Nowhere else: not in its environment, its units, what nodes tell, their logs, their disks, or here.
    let root = app.node_root("stage-1")?;
    let (_, env) = app.get("stage-1", "/env")?;
    ensure!(!env.contains(FIRST), "{env}");
    let units = world.on_node("stage-1", &["systemctl", "cat", "bulkhead-keeping.web.r1.service"])?;
    ensure!(units.contains("LoadCredentialEncrypted=TOKEN:") && !units.contains(FIRST), "{units}");
    let releases = app.run(&["releases", "-e", "staging", "keeping", "-o", "json"])?.expect(0)?;
    ensure!(!releases.stdout.contains(FIRST), "{releases}");
    let journal = world.on_node("stage-1", &["journalctl", "--no-pager", "-o", "export"])?;
    ensure!(!journal.contains(FIRST), "the value is in the journal");
    nowhere(FIRST, &root)?;
    in_no_process(world, FIRST)?;
    // This folder is the person's home, with the repository and what `bulkhead` remembers.
    let here = having(FIRST, world.folder())?;
    ensure!(here.is_empty(), "the value is in {here}");

    // The machine that runs CI's jobs: a clone of the repository, and no key that anybody knows.
    let runner = tempfile::tempdir()?;
    let clone = runner.path().join("clone");
    let copied = Command::new("cp").arg("-a").arg(world.fleet()).arg(&clone).status()?;
    ensure!(copied.success(), "cannot clone");
    let (own, _) = crate::trust::key(world, "runner")?;
    let here = |name: &str| runner.path().join(name);
    let (state, cache) = (here("state"), here("cache"));
    let settings = [("HOME", runner.path()), ("BULKHEAD_FLEET", &clone), ("BULKHEAD_KEY", &own)];
    let settings = [&settings[..], &[("BULKHEAD_STATE", &state), ("BULKHEAD_CACHE", &cache)]].concat();
    for words in
        [&["deploy", "-e", "staging", "--yes"][..], &["releases", "-e", "staging"], &["restart", "keeping", "--yes"]]
    {
        let ran = world.run_with_env(&app.folder, words, &settings)?;
        ensure!(ran.code != 0, "a runner may: {ran}");
    }
    ensure!(clone.join(".bulkhead/secrets/staging/keeping/TOKEN.json").is_file(), "the clone has no sealed value");
    let found = having(FIRST, runner.path())?;
    ensure!(found.is_empty(), "the value is in {found}");

    // Neither another app nor whoever may look at files reads it.
    let other = world.app("nosy", SERVE, WEB)?;
    other.deploy("staging", 0)?;
    let place = directory(&app, "stage-1")?;
    let (_, tried) = other.get("stage-1", &format!("/read{place}/TOKEN"))?;
    ensure!(tried.starts_with("error"), "{tried}");
    let (_, env) = other.get("stage-1", "/env")?;
    ensure!(!env.contains("CREDENTIALS_DIRECTORY"), "{env}");
    let path = format!("{place}/TOKEN");
    let said = look(world, ACCOUNT, &path)?;
    ensure!(said.starts_with("role:"), "{said}");
    for path in [&path, &place] {
        let said = look(world, OPERATE_ACCOUNT, path)?;
        ensure!(said.contains("secrets, which are not shown"), "{path}: {said}");
    }

    let older = fs::read(root.join("var/lib/bulkhead/apps/keeping/releases/1/secrets/TOKEN.sealed"))?;
    // With nobody connected.
    world.kill_node("stage-1")?;
    world.start_node("stage-1")?;
    app.served("stage-1")?;
    reads(&app, "stage-1", FIRST)?;

    // Another value comes with another order, and the plan says so by name.
    set(&app, "set", "staging", SECOND, 0)?;
    let plan = app.run(&["plan", "-e", "staging"])?.expect(0)?.says("secrets.TOKEN")?;
    ensure!(!plan.stdout.contains(SECOND), "{plan}");
    reads(&app, "stage-1", FIRST)?;
    set(&app, "rotate", "staging", SECOND, 0)?;
    reads(&app, "stage-1", SECOND)?;
    let root = app.node_root("stage-1")?;
    nowhere(SECOND, &root)?;
    in_no_process(world, SECOND)?;
    let here = having(SECOND, world.folder())?;
    ensure!(here.is_empty(), "the value is in {here}");
    let kept = |number: u64| root.join(format!("var/lib/bulkhead/apps/keeping/releases/{number}/secrets"));
    ensure!(!kept(1).exists() && kept(2).exists(), "secrets of releases that run no more are kept");

    // A courier brings an order that somebody signed, with an older sealed value, or with none.
    let second = root.join("var/lib/bulkhead/apps/keeping/releases/2/order.json");
    let bytes = fs::read(&second)?;
    let mut order: serde_json::Value = serde_json::from_slice(&bytes)?;
    order["targets"]["stage-1"]["counter"] = 3.into();
    order["targets"]["stage-1"]["previous"] = bulkhead_core::OrderId::of(&bytes).to_string().into();
    let bytes = serde_json::to_vec_pretty(&order)?;
    let signature = crate::orders::sign(&world.key(), "order@bulkhead", &bytes, world.folder())?;
    for secrets in [[("TOKEN".parse()?, STANDARD.encode(&older))].into(), std::collections::BTreeMap::new()] {
        let submit = Submit { signatures: vec![signature.clone()], secrets, ..Submit::default() };
        let event = crate::trust::last(world, ACCOUNT, Ask::Submit(submit), &[&bytes])?;
        crate::trust::refused(&event, "secret")?;
    }
    reads(&app, "stage-1", SECOND)?;

    // Going back takes the value of now.
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")?;
    app.run(&["rollback", "-e", "staging", "keeping", "--yes"])?.expect(0)?;
    app.serves("stage-1", "1")?;
    reads(&app, "stage-1", SECOND)?;

    // Sealed for another app, or another node: refused by name, and nothing is touched.
    let good = fs::read(&sealed)?;
    set(&other, "set", "staging", "for another app", 0)?;
    fs::copy(world.fleet().join(".bulkhead/secrets/staging/nosy/TOKEN.json"), &sealed)?;
    app.deploy("staging", 5)?.says("secret `TOKEN`: sealed for another node or pool, app, environment or name")?;
    app.run(&["promote", "staging", "production", "--yes"])?.expect(3)?.says("has no value in production")?;
    set(&app, "set", "production", PRODUCTION, 0)?;
    let of_production = fs::read_to_string(world.fleet().join(".bulkhead/secrets/production/keeping/TOKEN.json"))?;
    fs::write(&sealed, of_production.replace("prod-1", "stage-1"))?;
    app.deploy("staging", 5)?.says("secret `TOKEN`: sealed for another node or pool, app, environment or name")?;
    let audit = world.on_node("stage-1", &["tail", "-n", "1", "/var/lib/bulkhead/audit.jsonl"])?;
    ensure!(audit.contains("\"refused\"") && audit.contains("\"rule\":\"secret\""), "{audit}");
    reads(&app, "stage-1", SECOND)?;
    fs::write(&sealed, good)?;

    // What runs in staging is promoted with production's value.
    app.run(&["promote", "staging", "production", "--yes"])?.expect(0)?;
    reads(&app, "prod-1", PRODUCTION)?;

    // A value that is gone from the node is missed by name before anything stops.
    let live = root.join("var/lib/bulkhead/apps/keeping/live.json");
    let live: serde_json::Value = serde_json::from_slice(&fs::read(live)?)?;
    let number = live["release"].as_u64().context("nothing is live")?;
    fs::remove_file(kept(number).join("TOKEN.cred"))?;
    app.run(&["restart", "-e", "staging", "keeping", "--yes"])?.expect(5)?.says("secret `TOKEN` of release")?;
    reads(&app, "stage-1", SECOND)?;
    app.run(&["secret", "ls", "-o", "json"])?.expect(0)?.says("prod-1")?;

    // Once the policy lists a node, another one is given secrets only if it is listed too, whatever `fleet.toml` says.
    app.run(&["policy", "nodes", "-e", "staging", "--yes"])?.expect(0)?.says("version 1 → 2")?;
    let policy: serde_json::Value = serde_json::from_slice(&fs::read(world.fleet().join("policy.json"))?)?;
    ensure!(policy["nodes"]["stage-1"]["sealing"].is_string() && policy["nodes"]["prod-1"].is_null(), "{policy}");
    set(&app, "set", "staging", SECOND, 0)?;
    let unlisted = "none of `prod-1`";
    set(&app, "set", "production", PRODUCTION, 3)?.says(unlisted)?.says("bulkhead policy nodes -e production")?;
    app.deploy("production", 3)?.says(unlisted)?;
    other.deploy("production", 0)?;
    app.run(&["policy", "nodes", "--yes"])?.expect(0)?.says("version 2 → 3")?;
    let ran = set(&app, "set", "production", PRODUCTION, 0)?;
    ensure!(!ran.stdout.contains("seen first"), "{ran}");
    app.deploy("production", 0)?;
    reads(&app, "prod-1", PRODUCTION)?;
    app.run(&["policy", "nodes", "--yes"])?.expect(0)?.says("lists these keys already")?;

    // One that was made anew has other keys than the policy lists: nothing is sealed that it could not open.
    let seed = "/var/lib/bulkhead/keys/sealing";
    world.on_node("prod-1", &["sh", "-c", &format!("tr -dc 0-9a-f </dev/urandom | head -c 64 > {seed}")])?;
    let file = world.fleet().join(".bulkhead/secrets/production/keeping/TOKEN.json");
    let before = fs::read(&file)?;
    let anew = "prod-1 has another sealing key than the policy lists";
    for verb in ["set", "rotate"] {
        set(&app, verb, "production", SECOND, 3)?.says(anew)?.says("bulkhead policy nodes -e production")?;
        ensure!(fs::read(&file)? == before, "it was sealed all the same");
    }
    app.run(&["restart", "-e", "production", "keeping", "--yes"])?.expect(0)?;
    app.write("version.txt", "3")?;
    app.deploy("production", 5)?.says("rule: secret")?.says("if the node was made anew")?;
    app.run(&["policy", "nodes", "--yes"])?.expect(0)?.says("version 3 → 4")?;
    set(&app, "set", "production", PRODUCTION, 0)?;
    app.deploy("production", 0)?;
    reads(&app, "prod-1", PRODUCTION)?;
    // One that is away is sealed to as the policy says.
    world.kill_node("prod-1")?;
    set(&app, "set", "production", PRODUCTION, 0)?
        .says("prod-1: whether the key that is sealed to is still its own was not asked")?;
    world.start_node("prod-1")?;

    // A name that nobody reads, or an app that nobody knows, is taken with a warning.
    let from = |folder: &Path, words: &[&str]| {
        let all = [&["secret", "set", "-e", "staging", "--command", "echo x"][..], words].concat();
        world.run(folder, &all)?.expect(0)
    };
    from(&app.folder, &["keeping", "TOKEM"])?.says("did you mean `TOKEN`?")?;
    from(&app.folder, &["kepping", "TOKEN"])?.says("has an app `kepping` (the bulkhead.toml here is of `keeping`)")?;
    from(&world.fleet(), &["keeping", "TOKEM"])?.says("by what runs of keeping: did you mean `TOKEN`?")?;
    let ran = from(&world.fleet(), &["keeping", "TOKEN"])?;
    ensure!(!ran.stderr.contains("warning"), "{ran}");

    app.run(&["secret", "rm", "keeping", "TOKEN", "-e", "staging", "--yes"])?.expect(0)?;
    app.deploy("staging", 3).map(drop)
}
