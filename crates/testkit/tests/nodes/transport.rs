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
