//! What the four accounts give beyond the gate and the drop box: nothing.

use crate::{
    dropbox::sftp_as,
    orders::{ssh, ssh_with_options},
};
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::World;
use bulkhead_wire::{ACCOUNT, DROP_ACCOUNT, OBSERVE_ACCOUNT, OPERATE_ACCOUNT};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("no_account_gives_a_shell_or_a_terminal", shells),
    ("no_account_forwards_anything", forwarding),
    ("only_the_drop_box_takes_files", files),
    ("an_audit_of_sshd_finds_no_fault", audited),
    ("one_source_keeps_no_other_out", crowded),
];

const ACCOUNTS: [&str; 4] = [ACCOUNT, OBSERVE_ACCOUNT, OPERATE_ACCOUNT, DROP_ACCOUNT];
const PATIENCE: Duration = Duration::from_secs(20);

fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn shells(world: &World) -> Result<()> {
    for account in ACCOUNTS {
        for command in ["id", "cat /etc/passwd", "/bin/sh -c id", "scp -t /tmp", ""] {
            let output = ssh(world, "stage-1", account)?.arg(command).stdin(Stdio::null()).output()?;
            let said = said(&output);
            ensure!(!output.status.success(), "{account} ran `{command}`: {said}");
            ensure!(!said.contains("uid=") && !said.contains("root:"), "{account} ran `{command}`: {said}");
        }
        let output = ssh_with_options(world, "stage-1", account, &["-tt"])?.arg("id").stdin(Stdio::null()).output()?;
        ensure!(said(&output).contains("PTY allocation request failed"), "{account} has a terminal: {}", said(&output));
    }
    Ok(())
}

/// A connection that asks for something and carries no command, ended when this is dropped.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Connects to what `ssh` forwards from here, and gives all that comes from there.
fn heard_through(world: &World, account: &str, to: &str) -> Result<Vec<u8>> {
    let here = world.folder().join(format!("forwarded-{account}"));
    fs::remove_file(&here).ok();
    let forward = format!("{}:{to}", here.display());
    let mut command = ssh_with_options(world, "stage-1", account, &["-N", "-L", &forward])?;
    let held = Held(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let end = Instant::now() + PATIENCE;
    let mut stream = loop {
        match UnixStream::connect(&here) {
            Ok(stream) => break stream,
            Err(error) => ensure!(Instant::now() < end, "ssh does not listen: {error}"),
        }
        std::thread::yield_now();
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    // A service would answer this; sshd and the keeper speak to whatever comes.
    stream.write_all(b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n").ok();
    stream.shutdown(std::net::Shutdown::Write).ok();
    let mut heard = Vec::new();
    // Reset or closed: it is the bytes that count.
    stream.read_to_end(&mut heard).ok();
    drop(held);
    Ok(heard)
}

fn forwarding(world: &World) -> Result<()> {
    let app = world.app("unforwarded", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
    app.deploy("staging", 0)?;
    let service = fs::read_link(app.node_root("stage-1")?.join("run/bulkhead/live/unforwarded/web"))?;
    let service = Path::new("/run/bulkhead/live/unforwarded").join(service).join("sock").display().to_string();
    for account in ACCOUNTS {
        // From here: to the node's ports, to others through it, to its sockets; `-D` asks for the same.
        let (peer, _) = world.address("prod-1")?;
        for to in ["127.0.0.1:22", &format!("{peer}:22"), "/run/bulkhead/keeper.sock", &service] {
            let heard = heard_through(world, account, to)?;
            ensure!(heard.is_empty(), "{account} forwards to {to}: {}", String::from_utf8_lossy(&heard));
        }
        // From there: a port, and a socket.
        for to in ["4022:127.0.0.1:22", "/tmp/forwarded:127.0.0.1:22"] {
            let more = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", to];
            let output = ssh_with_options(world, "stage-1", account, &more)?.stdin(Stdio::null()).output()?;
            let said = said(&output);
            ensure!(!output.status.success() && said.contains("forwarding failed"), "{account}, -R {to}: {said}");
        }
    }
    // An agent and a display, as long as a connection lasts: nothing of them is on the node.
    let agent = world.folder().join("no-agent");
    let listener = UnixListener::bind(&agent)?;
    // It is there, and says nothing: ssh does without, and would not wait for one that is silent.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    for account in [ACCOUNT, OBSERVE_ACCOUNT, OPERATE_ACCOUNT] {
        let mut command = ssh_with_options(world, "stage-1", account, &["-A", "-Y"])?;
        command.env("SSH_AUTH_SOCK", &agent).env("DISPLAY", ":7").arg(bulkhead_wire::COMMAND);
        let held = Held(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        // The gate is started once all else was asked for.
        let gate = format!("until pgrep -u {account} -f gate; do :; done >/dev/null");
        let left = "find /tmp /run /var/tmp -name 'ssh-*' -o -name 'agent.*'; ss -Hltn | grep -v ':22 ' || true";
        let script = format!("{gate}; {left}");
        let left = world.on_node("stage-1", &["timeout", "20", "sh", "-c", &script])?;
        drop(held);
        ensure!(left.trim().is_empty(), "{account}: {left}");
    }
    Ok(())
}

/// `dropbox::the_box_takes_and_gives_nothing` has what the box itself refuses.
fn files(world: &World) -> Result<()> {
    let mine = world.folder().join("from-an-account");
    fs::write(&mine, "mine")?;
    let mine = mine.display();
    for account in [ACCOUNT, OBSERVE_ACCOUNT, OPERATE_ACCOUNT] {
        for command in
            [format!("get /etc/passwd {mine}"), "ls /".into(), format!("put {mine} /tmp/x"), "rename a b".into()]
        {
            let (code, said) = sftp_as(world, "stage-1", account, &format!("{command}\n"))?;
            ensure!(code != 0, "{account}: `{command}` was done: {said}");
        }
    }
    ensure!(fs::read_to_string(world.folder().join("from-an-account"))? == "mine", "something was fetched");
    Ok(())
}

fn ip(words: &str) -> Result<String> {
    let output = Command::new("ip").args(words.split(' ')).output()?;
    ensure!(output.status.success(), "ip {words}: {}", said(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A machine on the nodes' network with an address of its own, as far as IP goes.
struct Elsewhere {
    name: String,
    address: String,
}

impl Elsewhere {
    fn new(node: &str) -> Result<Self> {
        let route = ip(&format!("-o route get {node}"))?;
        let bridge = route.split_whitespace().skip_while(|word| *word != "dev").nth(1).context("no bridge")?;
        let (network, _) = node.rsplit_once('.').context("no IPv4 address")?;
        let name = format!("bx{}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let elsewhere = Self { name, address: format!("{network}.250") };
        let Self { name, address } = &elsewhere;
        ip(&format!("link add {name} type veth peer name up0 netns {name}"))?;
        ip(&format!("link set {name} master {bridge} up"))?;
        ip(&format!("-n {name} address add {address}/24 dev up0"))?;
        ip(&format!("-n {name} link set up0 up"))?;
        Ok(elsewhere)
    }

    fn run(&self, command: &Command) -> Command {
        let mut there = Command::new("ip");
        there.args(["netns", "exec", &self.name]).arg(command.get_program()).args(command.get_args());
        there
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        ip(&format!("netns delete {}", self.name)).ok();
    }
}

/// A connection that was let in, from elsewhere; none where the node hangs up.
fn held_open(world: &World, elsewhere: &Elsewhere) -> Result<Option<Held>> {
    let options = ["-N", "-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo in"];
    let mut command = elsewhere.run(&ssh_with_options(world, "prod-2", ACCOUNT, &options)?);
    let mut held = Held(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
    let mut first = [0; 2];
    let is_in = held.0.stdout.take().context("no stdout")?.read_exact(&mut first).is_ok();
    Ok(is_in.then_some(held))
}

/// Whoever may connect holds as many connections as he can; who comes from elsewhere is let in all the same.
fn crowded(world: &World) -> Result<()> {
    /// The bound in the packet filter.
    const SOURCE_MAX: usize = 64;
    let (node, _) = world.address("prod-2")?;
    let elsewhere = Elsewhere::new(&node)?;
    // Somebody begins connections in that one's name, as whoever sees no answer can: they count for nothing.
    let name = &elsewhere.name;
    let first = held_open(world, &elsewhere)?.context("not even one is let in")?;
    let hardware = |text: String| -> Result<String> {
        let mut words = text.split_whitespace().skip_while(|word| !matches!(*word, "lladdr" | "link/ether"));
        words.nth(1).map(str::to_owned).context("no hardware address")
    };
    let there = hardware(ip(&format!("-n {name} neighbour show {node}"))?)?;
    let here = hardware(ip(&format!("-n {name} -o link show up0"))?)?;
    // Neither asks for the other any more, and what the node sends there is lost.
    ip(&format!("-n {name} neighbour replace {node} lladdr {there} dev up0 nud permanent"))?;
    let known = format!("ip neighbour replace {} lladdr {here} dev host0 nud permanent", elsewhere.address);
    world.on_node("prod-2", &known.split(' ').collect::<Vec<_>>())?;
    ip(&format!("-n {name} rule add pref 10 lookup local"))?;
    ip(&format!("-n {name} rule add pref 5 iif up0 blackhole"))?;
    ip(&format!("-n {name} rule delete pref 0"))?;
    let mut script = Command::new("bash");
    let begin = format!("for at in $(seq 200); do timeout 1 bash -c 'exec 3<>/dev/tcp/{node}/22' & done; wait");
    elsewhere.run(script.arg("-c").arg(begin)).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let begun = world.on_node("prod-2", &["ss", "-Htn", "state", "syn-recv"])?;
    ip(&format!("-n {name} rule delete pref 5"))?;
    ensure!(begun.lines().count() > SOURCE_MAX, "nothing was begun: {begun}");

    let mut held = vec![first];
    while held.len() <= SOURCE_MAX {
        match held_open(world, &elsewhere)? {
            Some(more) => held.push(more),
            None => break,
        }
    }
    ensure!(held.len() == SOURCE_MAX, "{} connections from one source", held.len());
    for _ in 0..5 {
        ensure!(held_open(world, &elsewhere)?.is_none(), "one more is let in");
    }
    // All of them are there still, and who comes from here sees nothing of it.
    let app = world.app("crowded", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
    app.deploy("production", 0)?;
    app.serves("prod-2", "1")?;
    let there = world.on_node("prod-2", &["ss", "-Htn", "state", "established", "( sport = :22 )"])?;
    let there = there.lines().filter(|line| line.contains(".250:")).count();
    ensure!(there == SOURCE_MAX, "{there} connections are left");
    // With one less there is room for one again.
    held.truncate(SOURCE_MAX - 1);
    let end = Instant::now() + PATIENCE;
    while held_open(world, &elsewhere)?.is_none() {
        ensure!(Instant::now() < end, "nobody is let in any more");
    }
    Ok(())
}

/// `ssh-audit` knows what is broken in SSH, and prints nothing else when asked for failures alone.
fn audited(world: &World) -> Result<()> {
    let (address, _) = world.address("prod-2")?;
    let output = Command::new("ssh-audit").args(["--no-colors", "--batch", &address]).output();
    let text = said(&output.context("ssh-audit cannot be started: `cargo xtask setup` installs it")?);
    ensure!(text.contains("ssh-ed25519") && text.contains("chacha20-poly1305"), "nothing was audited: {text}");
    let bad: Vec<&str> = text.lines().filter(|line| line.contains("[fail]")).collect();
    ensure!(bad.is_empty(), "{bad:#?}");
    Ok(())
}
