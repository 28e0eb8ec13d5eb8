//! `cargo xtask demo`: the product at work, with every command that a person would type.
//!
//! All it makes lies in `~/.cache/bulkhead-demo`: a copy of `examples/notes`
//! with the fleet's files, and a key made for it; and the nodes' data below
//! `/var/lib/bulkhead-local`. `--down` removes it all, machines and bridge
//! first; what stays are caches, which it names. A second run takes up what
//! the first left.

use crate::{
    binaries::{self, Binaries},
    paths, run,
    setup::{self, For},
};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const NODES: &str = "staging-1=staging,prod-1=production,prod-2=production";
/// As many instances as a machine of the demo's pool takes. Experiments with kernels found this number.
const SLOTS: &str = "23";
/// How long the loop may take to give its machines back once nothing runs on them: they are kept for a few seconds.
const IDLE_WITHIN: Duration = Duration::from_secs(120);
/// How long the tunnel may take to say where it listens.
const PAGE_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub struct DemoArguments {
    /// Stops the nodes and removes all that the demo made, caches excepted.
    #[arg(long)]
    down: bool,
}

pub fn demo(arguments: &DemoArguments) -> Result<()> {
    setup::require_root("the demo")?;
    if arguments.down { down() } else { up() }
}

struct Demo {
    binaries: Binaries,
    folder: PathBuf,
    /// What was done and how long it took.
    steps: Vec<(&'static str, Duration)>,
}

impl Demo {
    fn at(binaries: Binaries) -> Result<Self> {
        Ok(Self { binaries, folder: paths::workshop("demo")?, steps: vec![] })
    }

    fn key(&self) -> PathBuf {
        self.folder.join("demo-key")
    }

    /// The loop's key, with the role `scale`.
    fn loop_key(&self) -> PathBuf {
        self.folder.join("loop-key")
    }

    /// The app, with the fleet's files beside its manifest.
    fn app(&self) -> PathBuf {
        self.folder.join("notes")
    }

    /// The variables that keep the demo apart from whatever else its user does with Bulkhead.
    fn variables(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("BULKHEAD_KEY", self.key()),
            ("BULKHEAD_AGENT", self.binaries.agent.clone()),
            // What must not be forgotten of a fleet goes with this one.
            ("BULKHEAD_STATE", self.folder.join("state")),
        ]
    }

    /// `bulkhead` in the app's folder, with the demo's key and no other.
    fn bulkhead(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.cli);
        command
            .current_dir(self.app())
            .envs(self.variables())
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("BULKHEAD_FLEET")
            .env_remove("BULKHEAD_ENV")
            .args(arguments);
        command
    }

    fn step<T>(&mut self, name: &'static str, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        run::heading(name);
        let start = Instant::now();
        let result = work(self)?;
        self.steps.push((name, start.elapsed()));
        Ok(result)
    }

    /// Shows a `bulkhead` command and runs it.
    fn show(&self, arguments: &[&str]) -> Result<()> {
        run::show(&mut self.bulkhead(arguments))
    }
}

fn up() -> Result<()> {
    let start = Instant::now();
    setup::ensure(&[For::Build, For::Fleet, For::Example])?;
    run::heading("build: bulkhead, and the agent as one static binary");
    let mut demo = Demo::at(binaries::build()?)?;
    demo.steps.push(("build: bulkhead, and the agent as one static binary", start.elapsed()));

    demo.step("the example app, with its dependencies from npm", copy_app)?;
    demo.step("a fleet file, and a policy with a key made for this demo", make_fleet)?;
    demo.step("three nodes: booted Debian machines that listen on 22 alone", |demo| {
        demo.show(&["local", "up", "--nodes", NODES])?;
        demo.show(&["node", "ls"])
    })?;
    write_version(&demo, "first version")?;
    demo.step("deploy to staging", |demo| demo.show(&["deploy", "-e", "staging", "--yes"]))?;
    demo.step("promote to production: the same image, production's settings", |demo| {
        demo.show(&["promote", "staging", "production", "--yes"])
    })?;
    write_version(&demo, "second version")?;
    demo.step("change one file (version.txt) and deploy again", |demo| {
        run::say("echo 'second version' > version.txt");
        demo.show(&["deploy", "-e", "staging", "--yes", "-m", "a better text"])
    })?;
    demo.step("the page, through SSH", |demo| page(demo, "second version"))?;
    demo.step("roll back", |demo| demo.show(&["rollback", "-e", "staging", "notes", "--yes"]))?;
    demo.step("the page again", |demo| page(demo, "first version"))?;
    demo.step("what listens on a node that runs the app: sshd, and nothing else", |demo| {
        demo.show(&["local", "exec", "staging-1", "--", "ss", "-ltn"])
    })?;
    demo.step("every release ever", |demo| {
        demo.show(&["releases", "-e", "staging", "notes"])?;
        demo.show(&["ps", "-e", "production"])
    })?;
    demo.step("a pool of machines that are made when they are needed, and a grant for it", make_pool)?;
    let looped = demo.step("the loop that buys machines, with a key of its own", run_pool)?;
    demo.step("23 instances: one machine is made, becomes a node, and takes them all", |demo| {
        demo.show(&["scale", "notes/web", "--count", SLOTS, "--within", "10m"])
    })?;
    demo.step("the 24th lands on a machine that is made at this moment", |demo| {
        demo.show(&["start", "notes/web", "--count", "1", "--within", "10m"])?;
        demo.show(&["pool", "ls", "--timings"])?;
        demo.show(&["pool", "log", "-n", "12"])?;
        check_pool(demo, &[(23, 1), (1, 1)])
    })?;
    demo.step("nothing runs any more: the machines are given back", |demo| {
        demo.show(&["stop", "notes/web", "--count", "24", "--within", "5m"])?;
        until_given_back(demo)?;
        demo.show(&["pool", "ls"])?;
        demo.show(&["pool", "log", "-n", "6"])
    })?;
    drop(looped);
    finish(&demo, start.elapsed());
    Ok(())
}

/// Copies the example and installs its dependencies, unless they are there from the same lock file.
fn copy_app(demo: &Demo) -> Result<()> {
    let (from, to) = (paths::root().join("examples/notes"), demo.app());
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    let lock = |folder: &Path| fs::read(folder.join("package-lock.json")).ok();
    let installed = to.join("node_modules/.package-lock.json").exists() && lock(&from) == lock(&to);
    run::output(Command::new("bash").args([
        "-c",
        r#"cd "$0" && tar -c --exclude=./node_modules --exclude=./data --exclude=./bulkhead.lock . | tar -x -C "$1""#,
        &from.display().to_string(),
        &to.display().to_string(),
    ]))?;
    if installed {
        println!("node_modules is there, from the same package-lock.json");
        return Ok(());
    }
    run::show(Command::new("npm").current_dir(&to).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]))
}

fn make_fleet(demo: &Demo) -> Result<()> {
    if demo.app().join("fleet.toml").exists() && demo.key().exists() {
        println!("fleet.toml, policy.json and the key are there from the last run");
        return Ok(());
    }
    // The key lies outside the app's folder: the lint refuses images with private keys.
    run::show(demo.bulkhead(&["init", "--new-key", "../demo-key"]).env_remove("BULKHEAD_KEY"))
}

fn write_version(demo: &Demo, text: &str) -> Result<()> {
    let path = demo.app().join("version.txt");
    fs::write(&path, format!("{text}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// Adds a pool to the demo's fleet, a key for the loop, and lets it run the example.
fn make_pool(demo: &Demo) -> Result<()> {
    let path = demo.app().join("fleet.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if !text.contains("[pools.kernels]") {
        let pool = format!(
            "\n[pools.kernels]\nenvironment = \"staging\"\nprovider = \"local\"\nslots = {SLOTS}\n\
             machines_max = 3\nidle = \"5s\"\n"
        );
        print!("{pool}");
        fs::write(&path, text + &pool).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !demo.loop_key().exists() {
        let key = demo.loop_key().display().to_string();
        run::show(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "loop", "-f", &key]))?;
        let public = format!("{key}.pub");
        let roles = ["--role", "scale", "--role", "courier", "--role", "observe", "--yes"];
        demo.show(&[&["key", "add", "loop", &public][..], &roles].concat())?;
    }
    demo.show(&["pool", "grant", "kernels", "-e", "staging", "--scratch", "--yes"])
}

/// Starts the loop in the background; it ends with this value.
fn run_pool(demo: &Demo) -> Result<Background> {
    let mut command = demo.bulkhead(&["pool", "run"]);
    command.env("BULKHEAD_KEY", demo.loop_key()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    run::say(&format!("BULKHEAD_KEY={} {} &", demo.loop_key().display(), run::display(&command)));
    let looped = Background(command.spawn().context("cannot run bulkhead pool run")?);
    let start = Instant::now();
    while !listed(demo)?.running {
        if start.elapsed() > PAGE_WITHIN {
            bail!("the loop does not run");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(looped)
}

/// What of `pool ls -o json` is of interest here.
#[derive(Deserialize)]
struct PoolLs {
    running: bool,
    machines: Vec<PoolMachine>,
}

#[derive(Deserialize)]
struct PoolMachine {
    state: String,
    slots_used: u32,
}

fn listed(demo: &Demo) -> Result<PoolLs> {
    let text = run::read(&mut demo.bulkhead(&["pool", "ls", "-o", "json"]))?;
    serde_json::from_str(&text).context("cannot read the output of `bulkhead pool ls`")
}

fn machines(demo: &Demo) -> Result<Vec<PoolMachine>> {
    let mut machines = listed(demo)?.machines;
    machines.retain(|machine| machine.state != "gone");
    Ok(machines)
}

/// So many machines are ready with so many instances each, and no others are there.
fn check_pool(demo: &Demo, expected: &[(u32, usize)]) -> Result<()> {
    let machines = machines(demo)?;
    let ready = machines.iter().filter(|machine| machine.state == "ready").count();
    let all = expected.iter().map(|(_, count)| count).sum::<usize>();
    let fits = expected
        .iter()
        .all(|(used, count)| machines.iter().filter(|machine| machine.slots_used == *used).count() == *count);
    if machines.len() == all && ready == all && fits {
        return Ok(());
    }
    bail!("the pool is not as it should be: {} machines, {ready} of them ready", machines.len())
}

fn until_given_back(demo: &Demo) -> Result<()> {
    let start = Instant::now();
    while !machines(demo)?.is_empty() {
        if start.elapsed() > IDLE_WITHIN {
            bail!("machines are still there, {} s after the last instance ended", IDLE_WITHIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("both machines were given back within {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A child that ends with this value.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about it then.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[derive(Deserialize)]
struct Opened {
    port: u16,
}

/// Opens a tunnel, fetches the page through it and shows its text.
fn page(demo: &Demo, expected: &str) -> Result<()> {
    let arguments = ["open", "-e", "staging", "notes/web"];
    run::say(&format!("{} &", run::display(&demo.bulkhead(&arguments))));
    let mut command = demo.bulkhead(&arguments);
    command.args(["-o", "json"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut tunnel = Background(command.spawn().context("cannot run bulkhead open")?);
    let stdout = tunnel.0.stdout.take().context("the tunnel's standard output is a pipe")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // One JSON document, perhaps over many lines; then nothing more comes until the tunnel ends.
        let mut text = String::new();
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            text.push_str(&line);
            if let Ok(opened) = serde_json::from_str::<Opened>(&text) {
                // The receiver gave up: nobody wants to know.
                drop(sender.send(opened));
                return;
            }
        }
    });
    let opened = receiver.recv_timeout(PAGE_WITHIN).context("bulkhead open did not say where it listens")?;
    run::say(&format!("curl http://127.0.0.1:{}/", opened.port));
    let html = get(opened.port)?;
    for line in text_of(&html) {
        println!("  {line}");
    }
    if !html.contains(expected) {
        bail!("the page does not show `{expected}`");
    }
    Ok(())
}

/// A GET of `/`, with nothing but a socket.
fn get(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot connect to the tunnel")?;
    stream.set_read_timeout(Some(PAGE_WITHIN)).context("cannot bound the wait for the page")?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: notes\r\nconnection: close\r\n\r\n")
        .context("cannot send through the tunnel")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("cannot read through the tunnel")?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of its headers")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("the page answered `{}`", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// What a browser would show of a simple page.
fn text_of(html: &str) -> Vec<String> {
    let mut text = String::new();
    let mut rest = html;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let end = if tag.starts_with("style") { "</style>" } else { ">" };
        rest = tag.split_once(end).map_or("", |(_, after)| after);
        if ["/h1", "/p", "/span", "/title", "/article"].iter().any(|word| tag.starts_with(word)) {
            text.push('\n');
        }
    }
    text.push_str(rest);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Into::into).collect()
}

fn finish(demo: &Demo, total: Duration) {
    run::heading("how long it took");
    for (name, duration) in &demo.steps {
        println!("{:>8.2} s  {name}", duration.as_secs_f64());
    }
    println!("{:>8.2} s  in all", total.as_secs_f64());
    run::heading("go on by hand");
    let bin = demo.binaries.cli.parent().unwrap_or(Path::new("."));
    println!("export PATH={}:$PATH", bin.display());
    for (name, value) in demo.variables() {
        println!("export {name}={}", value.display());
    }
    println!("cd {}", demo.app().display());
    println!("bulkhead --help");
    println!("\n`cargo xtask demo --down` removes the nodes and the folder.");
}

fn down() -> Result<()> {
    let mut demo = Demo::at(binaries::locate())?;
    if !demo.folder.exists() {
        println!("there is no demo: {} does not exist", demo.folder.display());
        return Ok(());
    }
    if demo.app().join("fleet.toml").exists() {
        // The nodes may outlive `cargo clean`: whoever takes them down needs the program again.
        if !demo.binaries.cli.exists() {
            demo.binaries = binaries::build()?;
        }
        demo.show(&["local", "down", "--remove", "--yes"])?;
    }
    remove(&demo)
}

fn remove(demo: &Demo) -> Result<()> {
    fs::remove_dir_all(&demo.folder).with_context(|| format!("cannot remove {}", demo.folder.display()))?;
    println!("removed {}", demo.folder.display());
    // Other local fleets may have their state there; it goes with the last one.
    drop(fs::remove_dir("/var/lib/bulkhead-local"));
    println!("kept, for next time:");
    println!("  {}  packages and scans, may be deleted", paths::cache()?.display());
    println!("  /var/cache/bulkhead  the Debian system that local nodes are copied from, may be deleted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_as_text() {
        let html = "<!doctype html>\n<title>Notes</title>\n<style>\n  p { color: red }\n</style>\n\
                    <header><h1>Notes</h1><span id=\"version\">v1</span></header>\n<p>None.</p>";
        assert_eq!(text_of(html), ["Notes", "Notes", "v1", "None."]);
    }
}
