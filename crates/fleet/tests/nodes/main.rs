//! The client's half against a real sshd, ssh-agent and ssh-keygen, which the
//! tests start on loopback and end. Without OpenSSH's programs there is nothing
//! to test against: the tests then say so and pass.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connecting;
mod gate;
mod hostile;
mod pushing;
mod signing;

use bulkhead_core::{NodeName, fleet::FleetNode};
use bulkhead_fleet::{Identities, Target, Timeouts, config::SshConfig, resolve};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A program of OpenSSH, where it is installed.
fn program(name: &str) -> Option<PathBuf> {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists());
    if found.is_none() {
        let mut error = std::io::stderr();
        std::io::Write::write_all(&mut error, format!("skipped: {name} is not installed\n").as_bytes()).unwrap();
    }
    found
}

/// An sshd of the user who runs the tests, with one command for everybody.
struct Sshd {
    directory: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Sshd {
    /// `command` is run by the shell for whatever a client asks.
    fn start(command: &str) -> Option<Self> {
        let sshd = program("sshd")?;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        make_key(&path("host"), "");
        make_key(&path("user"), "");
        fs::copy(path("user.pub"), path("authorized")).unwrap();
        // sshd wants its empty directory where it runs as root.
        if whoami() == "root" {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        // Free a moment ago; sshd says so where it is taken again.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {host}\nAuthorizedKeysFile {authorized}\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin yes\nMaxAuthTries 2\nMaxSessions 20\nAllowTcpForwarding yes\nForceCommand {command}\n",
            host = path("host").display(),
            authorized = path("authorized").display(),
        );
        fs::write(path("sshd_config"), config).unwrap();
        let mut child = Command::new(sshd)
            .args(["-D", "-e", "-f"])
            .arg(path("sshd_config"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("Server listening") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "sshd ended");
        }
        // What it says later must not fill a pipe that nobody reads.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Some(Self { directory, port, child })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn host_key(&self) -> String {
        fs::read_to_string(self.path("host.pub")).unwrap()
    }

    fn fleet_node(&self) -> FleetNode {
        FleetNode {
            environment: "staging".parse().unwrap(),
            address: "127.0.0.1".into(),
            port: Some(self.port),
            host_key: Some(self.host_key()),
            provider: None,
            pool: None,
        }
    }

    fn target(&self) -> Target {
        self.target_with("node-1", &self.fleet_node(), "")
    }

    fn target_with(&self, name: &str, node: &FleetNode, config: &str) -> Target {
        let config = format!("Host 127.0.0.1 jump\nUser {}\n{config}", whoami());
        let home = self.directory.path();
        let config = SshConfig::parse(&config, &home.join("config"), home).unwrap();
        resolve(&name.parse::<NodeName>().unwrap(), node, &config).unwrap()
    }

    fn identities(&self) -> Identities {
        self.no_identities().with_file(self.path("user"))
    }

    fn no_identities(&self) -> Identities {
        let mut identities = Identities::new(self.directory.path());
        identities.agent = None;
        identities
    }
}

fn whoami() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn make_key(path: &Path, passphrase: &str) {
    let keygen = program("ssh-keygen").unwrap();
    let made = Command::new(keygen)
        .args(["-q", "-t", "ed25519", "-C", "a comment", "-N", passphrase, "-f"])
        .arg(path)
        .status();
    assert!(made.unwrap().success());
}

fn timeouts() -> Timeouts {
    Timeouts { idle: Duration::from_secs(20), ..Timeouts::default() }
}

/// An ssh-agent of the test.
struct Agent {
    directory: tempfile::TempDir,
    child: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Agent {
    fn start(keys: &[PathBuf]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent");
        let mut child = Command::new(program("ssh-agent")?)
            .args(["-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It says where it listens once it does.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let agent = Self { directory, child };
        for key in keys {
            let added = Command::new(program("ssh-add")?)
                .args(["-q"])
                .arg(key)
                .env("SSH_AUTH_SOCK", agent.address())
                .stderr(Stdio::null())
                .status();
            assert!(added.unwrap().success());
        }
        Some(agent)
    }

    fn address(&self) -> String {
        self.directory.path().join("agent").display().to_string()
    }
}
