//! A pool of machines, from the command line: bought of this machine, made nodes, given instances, and given back. The
//! loop has a key that may nothing but scale, and is killed.

use crate::{
    orders::sign,
    trust::{fleet, key},
};
use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_testkit::world::{App, World, get, live_socket};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::{Duration, Instant},
};

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str =
    "port = 3000\ndrain = \"100ms\"\nstop = \"1s\"\nvolumes = { data = \"/var/lib/kernel\" }\nsecrets = [\"TOKEN\"]";
const FIRST: &str = "first-value-5d0c81be42";
const SECOND: &str = "second-value-c74e09a3f1";
const PATIENCE: Duration = Duration::from_secs(90);

/// A loop that is killed when this is dropped.
struct Loop(Child);

impl Loop {
    fn start(world: &World, key: &Path) -> Result<Self> {
        let this = Self(world.spawn_with_key(&world.fleet(), &["pool", "run"], key)?);
        until(world, "the loop runs", |pool| pool["running"] == true)?;
        Ok(this)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // With SIGKILL, as whatever may happen to it.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn look(world: &World) -> Result<Value> {
    fleet(world, &["pool", "ls", "-o", "json"])?.expect(0)?.json()
}

fn until(world: &World, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let pool = look(world)?;
        if is_so(&pool) {
            return Ok(pool);
        }
        if begun.elapsed() > PATIENCE {
            let log = fleet(world, &["pool", "log", "-n", "30"])?;
            bail!("it did not come about that {what}: {pool:#}\n{log}");
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn machines(pool: &Value) -> Vec<(String, u64)> {
    let machines = pool["machines"].as_array().into_iter().flatten();
    let one = |machine: &Value| {
        (machine["machine"].as_str().unwrap_or_default().to_owned(), machine["slots_used"].as_u64().unwrap_or_default())
    };
    machines.map(one).collect()
}

pub(crate) fn life(world: &World) -> Result<()> {
    let (scaler, _) = key(world, "scaler")?;
    let public = format!("{}.pub", scaler.display());
    let roles = ["--role", "scale", "--role", "courier", "--role", "observe", "--yes"];
    fleet(world, &[&["key", "add", "scaler", &public][..], &roles].concat())?.expect(0)?;
    let mut file = fs::File::options().append(true).open(world.fleet().join("fleet.toml"))?;
    file.write_all(
        b"\n[pools.kernels]\nenvironment = \"staging\"\nprovider = \"local\"\nslots = 2\nmachines_max = 3\nidle = \"3s\"\n",
    )?;
    let app = world.app("kernel", SERVE, WEB)?;
    let _down = Down(world);

    // Nothing starts that nobody granted, and data that goes with its instance must be said to.
    app.run(&["start", "kernel/web", "--count", "1"])?.expect(3)?.says("pool grant")?;
    app.run(&["pool", "grant", "kernels", "-e", "staging", "--yes"])?
        .expect(3)?
        .says("has no value in pool kernels")?;
    set(world, &app, FIRST)?;
    app.run(&["pool", "grant", "kernels", "-e", "staging", "--yes"])?.expect(3)?.says("--scratch")?;
    let granted = app.run(&["pool", "grant", "kernels", "-e", "staging", "--scratch", "--yes", "-o", "json"])?;
    let grant = granted.expect(0)?.json()?["grant"].as_str().context("no grant")?.to_owned();

    forge(world)?;

    let first = Loop::start(world, &scaler)?;
    // A machine for two; then the third buys another.
    app.run(&["start", "kernel/web", "--count", "2", "--within", "2m"])?.expect(0)?.says("running")?;
    let pool = look(world)?;
    let [(one, 2)] = &machines(&pool)[..] else { bail!("not one full machine: {pool:#}") };
    app.run(&["start", "kernel/web", "--count", "1", "--within", "2m"])?.expect(0)?;
    let pool = look(world)?;
    let [(_, 2), (other, 1)] = &machines(&pool)[..] else { bail!("not two and one: {pool:#}") };
    fleet(world, &["ps"])?.expect(0)?.says(one)?.says(other)?.says("kernel-1/web")?.says("kernel-2/web")?;
    fleet(world, &["pool", "ls", "--timings"])?.expect(0)?.says("FIRST INSTANCE")?;
    for name in [one, other] {
        let audit = fleet(world, &["audit", name, "-o", "json"])?.expect(0)?;
        audit.says(&format!("scale grant {}", &grant[..12]))?.says("scaler")?;
    }
    let keys = logins(world)?;
    let own = fs::read_to_string(&public)?;
    let blob = own.split_whitespace().nth(1).context("no key")?;
    ensure!(keys.len() == 2 && keys.iter().all(|keys| keys.lines().count() == 1 && keys.contains(blob)), "{keys:?}");

    // What is sealed is for the next grant: until then instances start with what theirs pins.
    set(world, &app, SECOND)?;
    reads(world, one, "kernel-2", FIRST)?;
    reads(world, other, "kernel-1", FIRST)?;

    // It is killed with two instances on their way out, and the next one goes on.
    app.run(&["scale", "kernel/web", "--count", "1", "--within", "0s"])?.expect(0)?;
    drop(first);
    let second = Loop::start(world, &scaler)?;
    let pool = until(world, "one is left, on one machine", |pool| machines(pool).len() == 1)?;
    ensure!(machines(&pool)[0].1 == 1, "{pool:#}");

    // What is revoked starts nothing more, on machines to come neither.
    fleet(world, &["revoke", "--order", &grant, "--reason", "the loop was taken", "--yes"])?;
    app.run(&["start", "kernel/web", "--count", "1"])?.expect(5)?.says("revoked")?;
    app.run(&["stop", "kernel/web", "--count", "1", "--within", "1m"])?.expect(0)?;
    until(world, "every machine is given back", |pool| machines(pool).is_empty())?;
    let place = world.fleet().join(".bulkhead/grants/kernels.kernel.web.json");
    let first_grant = fs::read(&place)?;
    app.run(&["pool", "grant", "kernels", "-e", "staging", "--scratch", "--yes"])?.expect(0)?;
    app.run(&["start", "kernel/web", "--count", "1", "--within", "2m"])?.expect(0)?;
    let pool = look(world)?;
    let [(third, 1)] = &machines(&pool)[..] else { bail!("not one machine: {pool:#}") };
    fleet(world, &["audit", third])?.expect(0)?.says("revocation")?;
    reads(world, third, "kernel-1", SECOND)?;
    nowhere(world, &[FIRST, SECOND])?;

    // Whoever writes beside fleet.toml puts the first grant back, and takes away that it was revoked.
    let second_grant = fs::read(&place)?;
    let (notices, away) = (world.fleet().join(".bulkhead/notices"), world.folder().join("away"));
    fs::rename(&notices, &away)?;
    fs::write(&place, first_grant)?;
    app.run(&["start", "kernel/web", "--count", "1", "--within", "30s"])?.expect(9)?;
    fleet(world, &["pool", "log", "-n", "5"])?.expect(0)?.says("no grant lets kernel/web run in kernels")?;
    fs::write(&place, second_grant)?;
    fs::rename(&away, &notices)?;
    app.run(&["scale", "kernel/web", "--count", "0", "--within", "1m"])?.expect(0)?;
    until(world, "that one is given back too", |pool| machines(pool).is_empty())?;
    drop(second);
    let machines = std::process::Command::new("pgrep").args(["-f", &format!("{one}|{other}")]).output()?;
    ensure!(machines.stdout.is_empty(), "left over: {}", String::from_utf8_lossy(&machines.stdout));
    Ok(())
}

/// Puts newer grants beside the good one, for another command: one that nobody signed, and another fleet's.
fn forge(world: &World) -> Result<()> {
    let folder = world.fleet().join(".bulkhead/grants");
    let signed: Value = serde_json::from_slice(&fs::read(folder.join("kernels.kernel.web.json"))?)?;
    let mut grant: Value = serde_json::from_str(signed["text"].as_str().context("no text")?)?;
    grant["issued"] = (grant["issued"].as_i64().context("no time")? + 60).into();
    grant["run"]["services"][0]["command"][1] = "evil".into();
    let forged = serde_json::json!({ "text": grant.to_string(), "signatures": signed["signatures"] });
    fs::write(folder.join("zz.json"), serde_json::to_vec(&forged)?)?;
    // One more that people did sign, newer still, for a fleet that they have besides.
    grant["issued"] = (grant["issued"].as_i64().context("no time")? + 30).into();
    grant["fleet"] = "another".into();
    let text = serde_json::to_string_pretty(&grant)?;
    let signature = sign(&world.key(), bulkhead_core::grant::NAMESPACE, text.as_bytes(), world.folder())?;
    let signed = serde_json::json!({ "text": text, "signatures": [signature] });
    fs::write(folder.join("zzz.json"), serde_json::to_vec(&signed)?)?;
    Ok(())
}

/// Seals a value to the pool.
fn set(world: &World, app: &App<'_>, value: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), value)?;
    let path = file.path().to_string_lossy().into_owned();
    let words = ["secret", "set", "kernel", "TOKEN", "-e", "staging", "--pool", "kernels", "--file", &path];
    app.run(&words)?.expect(0)?.says("pool kernels")?;
    fleet(world, &["secret", "ls"])?.expect(0)?.says("pool kernels").map(drop)
}

/// Demands what an instance reads as its secret.
fn reads(world: &World, machine: &str, instance: &str, value: &str) -> Result<()> {
    let folder = folders(world)?.into_iter().find(|folder| {
        let known = fs::read_to_string(folder.join("machine.json")).unwrap_or_default();
        known.contains(&format!("\"{machine}."))
    });
    let folder = folder.with_context(|| format!("no machine is called {machine}"))?;
    let run: Value = serde_json::from_slice(&fs::read(folder.join("run.json"))?)?;
    let supervisor = run["pid"].as_u64().context("no process")?;
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
    let roots = children.split_whitespace().map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
    let root = roots.into_iter().find(|root| root.join("run/bulkhead").is_dir()).context("it has no process 1")?;
    let socket = live_socket(&root, instance, "web")?;
    let (_, env) = get(&socket, "/env")?;
    let place = env.lines().find_map(|line| line.strip_prefix("CREDENTIALS_DIRECTORY="));
    let (_, found) = get(&socket, &format!("/read{}/TOKEN", place.context("it has no secrets")?))?;
    ensure!(found == value, "{instance} reads `{found}` on {machine}, not `{value}`");
    Ok(())
}

/// Beside `fleet.toml`, and where the loop keeps what it knows, no value lies open.
fn nowhere(world: &World, values: &[&str]) -> Result<()> {
    for value in values {
        let output =
            std::process::Command::new("grep").args(["-rlaF", "-D", "skip", value]).arg(world.folder()).output()?;
        ensure!(output.stdout.is_empty(), "the value is in {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

/// What lets root in on the stock servers of the machines that are there.
fn logins(world: &World) -> Result<Vec<String>> {
    let keys = |folder: PathBuf| fs::read_to_string(folder.join("root/root/.ssh/authorized_keys")).ok();
    Ok(folders(world)?.into_iter().filter_map(keys).collect())
}

/// The machines that are there, each a folder.
fn folders(world: &World) -> Result<Vec<PathBuf>> {
    let name = world.fleet().file_name().context("no name")?.to_string_lossy().into_owned();
    let mut all = Vec::new();
    for fleet in fs::read_dir("/var/lib/bulkhead-local")? {
        let fleet = fleet?;
        if fleet.file_name().to_string_lossy().starts_with(&format!("{name}-")) {
            let machines = fs::read_dir(fleet.path().join("machines"))?;
            all.extend(machines.flatten().map(|machine| machine.path()));
        }
    }
    Ok(all)
}

/// What of the local fleet is left is removed, also where the test fails.
struct Down<'a>(&'a World);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let down = fleet(self.0, &["local", "down", "--remove", "--yes"]).and_then(|ran| ran.expect(0));
        if let Err(error) = down {
            std::io::stderr().write_all(format!("the pool's machines were not removed: {error:#}\n").as_bytes()).ok();
        }
    }
}
