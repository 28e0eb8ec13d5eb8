//! What a scale key may do on a node of its pool, and what whoever took it may not.

use crate::{
    orders::sign,
    trust::{fleet, is_on_record, key, last, refused},
};
use anyhow::{Context as _, Result, ensure};
use bulkhead_core::{OrderId, grant::NAMESPACE};
use bulkhead_testkit::world::{App, World};
use bulkhead_wire::{ACCOUNT, Ask, Event, SignedText, Submit};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("a_scale_key_does_what_it_was_granted", granted)];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\ndrain = \"100ms\"\nstop = \"1s\"";
const DAY_S: u64 = 24 * 3600;

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// An order of a scale key, and the grant that comes with it.
struct Attempt<'a> {
    world: &'a World,
    order: Value,
    grant: Value,
    /// Who signed the grant.
    person: PathBuf,
    /// Who signs the order.
    scaler: PathBuf,
}

impl Attempt<'_> {
    fn grant_id(&self) -> Result<OrderId> {
        Ok(OrderId::of(&serde_json::to_vec_pretty(&self.grant)?))
    }

    fn submit(&self) -> Result<Event> {
        let folder = self.world.folder();
        let grant = serde_json::to_vec_pretty(&self.grant)?;
        let signatures = vec![sign(&self.person, NAMESPACE, &grant, folder)?];
        let grant = Some(SignedText { text: String::from_utf8(grant)?, signatures });
        self.submit_with(grant)
    }

    fn submit_with(&self, grant: Option<SignedText>) -> Result<Event> {
        let order = serde_json::to_vec_pretty(&self.order)?;
        let signatures = vec![sign(&self.scaler, "order@bulkhead", &order, self.world.folder())?];
        last(self.world, ACCOUNT, Ask::Submit(Submit { signatures, grant, ..Submit::default() }), &[&order])
    }

    /// As it would be for the app `name`, which has no order yet.
    fn of(&self, name: &str) -> Self {
        let mut order = self.order.clone();
        order["app"] = name.into();
        Self { order, grant: self.grant.clone(), person: self.person.clone(), scaler: self.scaler.clone(), ..*self }
    }

    fn but(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.of(self.order["app"].as_str().unwrap_or_default());
        change(&mut changed);
        changed
    }

    /// The next order for the same app.
    fn then(&self, action: Value) -> Result<Self> {
        let previous = OrderId::of(&serde_json::to_vec_pretty(&self.order)?).to_string();
        Ok(self.but(|next| {
            let target = &mut next.order["targets"]["stage-1"];
            target["counter"] = json!(target["counter"].as_u64().unwrap_or_default() + 1);
            target["previous"] = json!(previous);
            next.order["action"] = action;
        }))
    }
}

fn done(event: &Event) -> Result<()> {
    ensure!(matches!(event, Event::Done(_)), "{event:?}");
    Ok(())
}

fn says(event: &Event, rule: &str, words: &str) -> Result<()> {
    refused(event, rule)?;
    ensure!(format!("{event:?}").contains(words), "{event:?}");
    Ok(())
}

fn pool(world: &World, name: Option<&str>) -> Result<()> {
    let file = "/etc/bulkhead/node.json";
    let mut identity: Value = serde_json::from_str(&world.on_node("stage-1", &["cat", file])?)?;
    match name {
        Some(name) => identity["pool"] = name.into(),
        None => drop(identity.as_object_mut().and_then(|identity| identity.remove("pool"))),
    }
    let script = format!("cat >{file} <<'END'\n{identity}\nEND");
    world.on_node("stage-1", &["sh", "-c", &script]).map(drop)
}

fn units(world: &World, name: &str) -> Result<String> {
    world.on_node("stage-1", &["systemctl", "list-units", "--plain", "--no-legend", &format!("bulkhead-{name}.*")])
}

fn attempt<'a>(world: &'a World, app: &App<'_>, scaler: (PathBuf, String)) -> Result<Attempt<'a>> {
    let root = app.node_root("stage-1")?.join("var/lib/bulkhead/apps/kernel/releases/1");
    let mut order: Value = serde_json::from_slice(&fs::read(root.join("order.json"))?)?;
    let run = order["action"].as_object_mut().context("no action")?;
    run.remove("fallback");
    let mut granted = run.clone();
    granted.remove("do");
    let targets = order["targets"].as_object_mut().context("no targets")?;
    targets.retain(|node, _| node == "stage-1");
    order["targets"]["stage-1"]["previous"] = Value::Null;
    let grant = json!({
        "format": 1, "fleet": order["fleet"], "environment": "staging", "pool": "kernels", "app": "kernel",
        "run": granted, "key": scaler.1, "machines": 3, "instances": 5,
        "issued": now()?, "not_after": now()? + DAY_S,
    });
    Ok(Attempt { world, order, grant, person: world.key(), scaler: scaler.0 })
}

fn add(world: &World, name: &str, role: &str) -> Result<(PathBuf, String)> {
    let (path, line) = key(world, name)?;
    let public = format!("{}.pub", path.display());
    fleet(world, &["key", "add", name, &public, "--role", role, "--yes"])?.expect(0)?;
    Ok((path, line))
}

fn granted(world: &World) -> Result<()> {
    let scaler = add(world, "zorro", "scale")?;
    let app = world.app("kernel", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let good = attempt(world, &app, scaler.clone())?.of("kernel-1");

    // A node of no pool, or of another, knows nothing of grants.
    says(&good.submit()?, "grant", "this node is of none")?;
    pool(world, Some("others"))?;
    says(&good.submit()?, "grant", "this node is of `others`")?;
    pool(world, Some("kernels"))?;

    // Without a grant, under another's, or under one that nobody signed who may, the key is nothing.
    refused(&good.submit_with(None)?, "threshold")?;
    says(&good.but(|it| it.person = scaler.0.clone()).submit()?, "grant", "no such role")?;
    let (other, line) = add(world, "other", "scale")?;
    says(&good.but(|it| it.scaler = other).submit()?, "grant", "for another key")?;
    says(&good.but(|it| it.grant["key"] = line.clone().into()).submit()?, "grant", "for another key")?;

    // It runs what was granted, and nothing else.
    says(&good.of("kernel").submit()?, "grant", "`kernel-1` to `kernel-5`")?;
    says(&good.of("kernel-6").submit()?, "grant", "`kernel-1` to `kernel-5`")?;
    let evil = |it: &mut Attempt<'_>| it.order["action"]["services"][0]["env"]["LEVEL"] = "evil".into();
    says(&good.but(evil).submit()?, "grant", "something else")?;
    let look = json!({ "do": "look", "service": "web", "image": good.order["action"]["image"], "command": ["strace"],
                       "rights": "trace", "within_ms": 1000 });
    says(&good.but(|it| it.order["action"] = look).submit()?, "grant", "not to look")?;
    let late = |it: &mut Attempt<'_>| {
        it.grant["issued"] = json!(1);
        it.grant["not_after"] = json!(2);
    };
    says(&good.but(late).submit()?, "grant", "the grant ended")?;
    ensure!(units(world, "kernel-1")?.is_empty(), "something runs");

    done(&good.submit()?)?;
    done(&good.of("kernel-2").submit()?)?;
    for name in ["kernel-1", "kernel-2"] {
        ensure!(units(world, name)?.contains(&format!("bulkhead-{name}.web.r1.service")), "{name} does not run");
    }
    is_on_record(world, "stage-1", &["accepted", "kernel-1", "zorro", "scale grant", "of "])?;
    is_on_record(world, "stage-1", &["refused", "\"grant\""])?;
    // A replay does nothing, and the same order again says what came of it.
    done(&good.submit()?)?;
    let replayed = good.then(json!({ "do": "stop", "services": [] }))?;
    done(&replayed.submit()?)?;
    refused(&good.submit()?, "counter")?;
    ensure!(!units(world, "kernel-1")?.contains("web.r1.service"), "it was not stopped");

    // What people deployed there stays theirs.
    app.write(
        "bulkhead.toml",
        &fs::read_to_string(app.folder.join("bulkhead.toml"))?.replace("\"kernel\"", "\"kernel-3\""),
    )?;
    app.run(&["deploy", "-e", "staging", "--yes"])?.expect(0)?;
    let third = app.node_root("stage-1")?.join("var/lib/bulkhead/apps/kernel-3/releases/1/order.json");
    let theirs: Value = serde_json::from_slice(&fs::read(&third)?)?;
    let remove = json!({ "do": "remove", "volumes": false });
    let taken = good.but(|it| it.order = theirs).then(remove.clone())?;
    says(&taken.submit()?, "grant", "by an order of people")?;
    ensure!(units(world, "kernel-3")?.contains("web.r1.service"), "it was taken");

    // So does data of theirs, whose app is gone.
    let volumes = "/var/lib/bulkhead/volumes/kernel-4";
    world.on_node("stage-1", &["mkdir", "-p", volumes])?;
    says(&good.of("kernel-4").submit()?, "grant", "or its data is")?;
    world.on_node("stage-1", &["rmdir", volumes])?;

    // Two keys where two are demanded; one who took the scale key and one release key is not two.
    let (bob, _) = add(world, "bob", "release")?;
    fleet(world, &["policy", "require", "-e", "staging", "2-release", "--yes"])?.expect(0)?;
    says(&good.of("kernel-4").submit()?, "grant", "needs 2 release keys")?;
    done(&both(&good.of("kernel-4"), &[&world.key(), &bob])?)?;

    // Revoked, it runs nothing any more; what runs goes on.
    let id = good.grant_id()?.to_string();
    fleet(world, &["revoke", "--order", &id, "--reason", "the hub was taken", "--yes"])?.expect(0)?;
    says(&both(&good.of("kernel-5"), &[&world.key(), &bob])?, "revoked", "scale grant")?;
    ensure!(units(world, "kernel-2")?.contains("web.r1.service"), "what ran was ended");
    // And a key that is in the policy no more has no say.
    fleet(world, &["key", "revoke", "zorro", "--yes"])?.expect(0)?;
    refused(&good.of("kernel-2").then(remove)?.submit()?, "threshold")
}

/// Submits with a grant that several signed.
fn both(attempt: &Attempt<'_>, people: &[&Path]) -> Result<Event> {
    let grant = serde_json::to_vec_pretty(&attempt.grant)?;
    let folder = attempt.world.folder();
    let signatures = people.iter().map(|person| sign(person, NAMESPACE, &grant, folder)).collect::<Result<_>>()?;
    attempt.submit_with(Some(SignedText { text: String::from_utf8(grant)?, signatures }))
}
