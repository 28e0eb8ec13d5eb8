//! What a deploy is compared with: `rsync` and `tar | zstd` over SSH.
//!
//! They need an ordinary sshd with a root login, which a node does not have. So
//! a second one is started inside the node for the while, on port 2222 (which the node's packet
//! filter is told to let in, as the port of the peers' service), with a host key and a client key made for it. `rsync` and `zstd` are this machine's
//! own with the libraries they need, copied to `/opt/peer`, so that both ends are the same version.
//! The tree goes to `/srv/peer`, on the same file system as the node's own
//! store, and is run by a plain unit.

use super::lab::{HEALTH_PORT_OF_PEER, Lab, Node};
use crate::run;
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const SSH_PORT: u16 = 2222;
/// Where the peers put the tree, as seen inside the node.
pub const TREE: &str = "/srv/peer";
const TOOLS: &str = "opt/peer";
/// A peer that does not answer by then never will.
const HEALTHY_WITHIN: Duration = Duration::from_secs(30);

/// An ordinary SSH way into a node.
#[derive(Debug)]
pub struct Peer {
    address: std::net::IpAddr,
    key: PathBuf,
}

impl Peer {
    /// Starts the second sshd in a node and lays out what the peers need there.
    pub fn start(lab: &Lab, node: &Node) -> Result<Self> {
        let key = lab.folder().join("peer-key");
        if !key.exists() {
            run::output(
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"]).arg(&key),
            )?;
        }
        let directory = node.root.join("etc/peer-sshd");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let host_key = directory.join("host_key");
        if !host_key.exists() {
            run::output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&host_key))?;
        }
        fs::copy(key.with_extension("pub"), directory.join("authorized_keys")).context("cannot copy the peer's key")?;
        let config = format!(
            "Port {SSH_PORT}\nHostKey /etc/peer-sshd/host_key\nAuthorizedKeysFile /etc/peer-sshd/authorized_keys\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nPidFile /run/peer-sshd.pid\n\
             Subsystem sftp internal-sftp\nMaxStartups 100\n"
        );
        fs::write(directory.join("sshd_config"), config).context("cannot write the peer's sshd_config")?;
        let unit = format!(
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart={TREE}/bin/node {TREE}/app/server.js\nWorkingDirectory={TREE}/app\n\
             Environment=PORT={HEALTH_PORT_OF_PEER} HOST=0.0.0.0\n"
        );
        let units = node.root.join("etc/systemd/system");
        fs::write(units.join("peer.service"), unit).context("cannot write the peer's unit")?;
        for program in ["rsync", "zstd"] {
            copy_program(program, &node.root.join(TOOLS))?;
        }
        lab.inside(node, &["systemctl", "daemon-reload"])?;
        lab.inside(node, &["mkdir", "-p", "/run/sshd", TREE])?;
        lab.inside(node, &["/usr/sbin/sshd", "-f", "/etc/peer-sshd/sshd_config"])?;
        // The node's packet filter lets nothing but port 22 in.
        let ports = format!("{{ {SSH_PORT}, {HEALTH_PORT_OF_PEER} }}");
        lab.inside(node, &["nft", "add", "rule", "inet", "bulkhead", "input", "tcp", "dport", &ports, "accept"])?;
        let peer = Self { address: node.address, key };
        peer.ssh("true")?;
        Ok(peer)
    }

    /// `ssh …` up to the host, as one would type it.
    fn ssh_words(&self) -> String {
        format!(
            "ssh -p {SSH_PORT} -i {} -o IdentitiesOnly=yes -o IdentityAgent=none -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            self.key.display()
        )
    }

    fn bash(&self, script: &str) -> Result<Duration> {
        let start = Instant::now();
        run::output(Command::new("bash").args(["-c", &format!("set -euo pipefail; {script}")]))?;
        Ok(start.elapsed())
    }

    /// Runs something in the node.
    pub fn ssh(&self, command: &str) -> Result<Duration> {
        self.bash(&format!("{} root@{} '{command}'", self.ssh_words(), self.address))
    }

    /// `rsync -a --delete` of a tree.
    pub fn rsync(&self, tree: &Path) -> Result<Duration> {
        self.bash(&format!(
            "rsync -a --delete --rsync-path=/{TOOLS}/rsync -e '{}' {}/ root@{}:{TREE}/",
            self.ssh_words(),
            tree.display(),
            self.address
        ))
    }

    /// `tar | zstd -1 | ssh 'zstd -d | tar x'` of a tree.
    pub fn tar(&self, tree: &Path) -> Result<Duration> {
        self.bash(&format!(
            "tar -c -C {} . | zstd -q -1 | {} root@{} '/{TOOLS}/zstd -q -d | tar -x -C {TREE}'",
            tree.display(),
            self.ssh_words(),
            self.address
        ))
    }

    /// Empties the peer's tree.
    pub fn empty(&self) -> Result<()> {
        self.ssh(&format!("rm -rf {TREE} && mkdir {TREE} && sync -f {TREE}")).map(drop)
    }

    /// `systemctl restart` of the peer's unit; returns when systemctl does.
    pub fn restart(&self) -> Result<Duration> {
        self.ssh("systemctl restart peer.service")
    }

    /// Waits until the peer's service answers with this text.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let start = Instant::now();
        let address = SocketAddr::new(self.address, HEALTH_PORT_OF_PEER);
        while start.elapsed() < HEALTHY_WITHIN {
            if get(address).is_ok_and(|body| body.contains(text)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("the peer's service did not answer with `{text}` in {} s", HEALTHY_WITHIN.as_secs())
    }
}

/// A GET of `/`, whole.
pub fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: local\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Copies a program with its libraries and its loader, and a script that runs it with them.
fn copy_program(name: &str, to: &Path) -> Result<()> {
    let path = run::find_program(name).with_context(|| format!("{name} is not on PATH"))?;
    let libraries = to.join("lib");
    fs::create_dir_all(&libraries).with_context(|| format!("cannot make {}", libraries.display()))?;
    let mut loader = None;
    for line in run::read(Command::new("ldd").arg(&path))?.lines() {
        // `libz.so.1 => /lib/…/libz.so.1 (0x…)`, and for the loader `/lib64/ld-linux-x86-64.so.2 (0x…)`.
        let Some(file) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let base = Path::new(file).file_name().context("ldd printed a path without a name")?;
        fs::copy(file, libraries.join(base)).with_context(|| format!("cannot copy {file}"))?;
        if base.to_string_lossy().starts_with("ld-linux") {
            loader = Some(base.to_string_lossy().into_owned());
        }
    }
    let binary = to.join(format!("{name}.bin"));
    fs::copy(&path, &binary).with_context(|| format!("cannot copy {}", path.display()))?;
    let script = match loader {
        Some(loader) => {
            format!("#!/bin/sh\nexec /{TOOLS}/lib/{loader} --library-path /{TOOLS}/lib /{TOOLS}/{name}.bin \"$@\"\n")
        }
        None => format!("#!/bin/sh\nexec /{TOOLS}/{name}.bin \"$@\"\n"),
    };
    let wrapper = to.join(name);
    fs::write(&wrapper, script).with_context(|| format!("cannot write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", wrapper.display()))
}
