//! From a stock machine to a node, over the login that its provider gave.
//!
//! ```text
//! reach    one connection to the stock SSH server, host key known; root, or a user whose `sudo` asks nothing
//! look     what is there, changing nothing
//! install  packages that are missing, the agent (its digest checked over there), `bulkhead-agent install --adopt`
//! greet    a fresh connection to the node's own SSH server: the first request makes it stay
//! ```
//!
//! The node makes its host key itself and tells the public half over the first connection, whose host key was known.
//! Until the first request through the new server, a timer on the machine is set to give the stock one back
//! (`agent/src/install/trial.rs`), so whatever happens here the machine can be reached.
//!
//! What a machine says is bounded in size and time and believed only as far as it is about itself.

mod found;
mod one_time;

pub use found::{Found, Listener, Obstacle, OsRelease};
pub use one_time::{FirstBoot, OneTimeKey};

use crate::{
    client::{NodeClient, NodeError, printable},
    identity::Identities,
    ssh::{ChannelError, ConnectError, Connection, Ending, Target, Timeouts, connect},
};
use bulkhead_core::{
    digest::{hex, sha256},
    node::{CONFIRM_WITHIN_S, NodeConfig},
};
use bulkhead_wire::NodeStatus;
use serde::Deserialize;
use std::{
    fmt, io,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// For a command that only looks.
const LOOK_WITHIN: Duration = Duration::from_secs(60);
/// For the agent's upload: 7 MB at a modem's speed.
const UPLOAD_WITHIN: Duration = Duration::from_secs(600);
/// For the packages: an index and a few packages from a slow mirror.
const PACKAGES_WITHIN: Duration = Duration::from_secs(900);
/// For `bulkhead-agent install`: a slow disk that syncs some sixty files.
const INSTALL_WITHIN: Duration = Duration::from_secs(200);
/// How long before the machine gives up waiting this side does: who comes at the last moment must not be told of success.
const MARGIN: Duration = Duration::from_secs(30);
/// Between attempts to reach the new server.
const PAUSE: Duration = Duration::from_millis(500);
/// What a command may print here.
const OUTPUT_MAX_BYTES: u64 = 1 << 20;
/// Root's alone, so nobody can put another file in the agent's place.
const INCOMING: &str = "/var/lib/bulkhead-incoming";

/// Why a machine could not be made a node.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// No connection with its provider's login.
    #[error("cannot log in to {address}")]
    Reach {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: Box<ConnectError>,
    },
    /// The account is not root and may not become it.
    #[error("the account {user} of {address} is not root, and cannot become it by `sudo` without a password")]
    NotRoot {
        /// Which.
        user: String,
        /// Where.
        address: String,
    },
    /// A command could not be started.
    #[error("{address} did not run a command")]
    Channel {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: Box<ChannelError>,
    },
    /// The connection broke while a command ran.
    #[error("the connection to {address} broke ({step})")]
    Broken {
        /// Where.
        address: String,
        /// During what.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command failed.
    #[error("{step} failed on {address}{}", said(ending))]
    Failed {
        /// Where.
        address: String,
        /// What was being done.
        step: &'static str,
        /// How it ended.
        ending: Box<Ending>,
    },
    /// A command took too long.
    #[error("{step} took longer than {} s on {address}", after.as_secs())]
    Timeout {
        /// Where.
        address: String,
        /// What was being done.
        step: &'static str,
        /// After how long.
        after: Duration,
    },
    /// An answer that makes no sense.
    #[error("{address} gave an answer that makes no sense ({step}): {what}")]
    Unexpected {
        /// Where.
        address: String,
        /// To what.
        step: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// What arrived over there is not what was sent.
    #[error("the agent arrived at {address} with another digest than it was sent with")]
    Digest {
        /// Where.
        address: String,
    },
    /// The new SSH server does not let this side in.
    #[error("{address} was laid out as a node, but a fresh connection to its own SSH server does not work")]
    Shut {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: Box<NodeError>,
    },
}

fn said(ending: &Ending) -> String {
    let mut text = match (ending.exit_status, &ending.signal) {
        (Some(status), _) => format!(" (exit status {status})"),
        (None, Some(signal)) => format!(" (signal {signal})"),
        (None, None) => " (the connection ended)".to_owned(),
    };
    let words = ending.stderr.trim();
    if !words.is_empty() {
        text.push_str(": ");
        text.push_str(&printable(words));
    }
    text
}

/// What `bulkhead-agent install` reported.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Installed {
    /// Each change, in order.
    pub changes: Vec<String>,
    /// What somebody should know.
    pub notes: Vec<String>,
    /// The node's public host key, `ssh-ed25519 AAAA…`, as it came over the first connection.
    pub host_key: String,
}

/// A machine over its provider's login.
#[derive(Debug)]
pub struct Machine {
    connection: Connection,
    address: String,
    sudo: bool,
    /// The port that this connection arrived at over there; another one than here behind a forwarding.
    arrived_at: Option<u16>,
    /// When the new server began to wait for a first request.
    armed: Option<Instant>,
}

impl Machine {
    /// Logs in, and sees whether the account is root or can become it without being asked.
    ///
    /// # Errors
    /// No connection, or no right.
    pub async fn reach(target: &Target, identities: &Identities, timeouts: Timeouts) -> Result<Self, BootstrapError> {
        let address = target.address();
        let connection = connect(target, identities, timeouts)
            .await
            .map_err(|source| BootstrapError::Reach { address: address.clone(), source: Box::new(source) })?;
        let mut machine = Self { connection, address, sudo: false, arrived_at: None, armed: None };
        // Before any sudo, which would take the variable away.
        let probe = r#"echo "${SSH_CONNECTION##* }"; if [ "$(id -u)" = 0 ]; then echo root; elif sudo -n true 2>/dev/null; then echo sudo; fi"#;
        let text = machine.text("looking who we are there", probe, &[], LOOK_WITHIN).await?;
        let mut lines = text.lines();
        machine.arrived_at = lines.next().and_then(|port| port.trim().parse().ok());
        match lines.next().map(str::trim) {
            Some("root") => {}
            Some("sudo") => machine.sudo = true,
            _ => {
                let (user, address) = (target.user.clone(), machine.address.clone());
                machine.close().await;
                return Err(BootstrapError::NotRoot { user, address });
            }
        }
        Ok(machine)
    }

    /// The port that the connection arrived at, as the machine sees it.
    #[must_use]
    pub fn arrived_at(&self) -> Option<u16> {
        self.arrived_at
    }

    /// What is there. Changes nothing.
    ///
    /// # Errors
    /// The connection broke, or the answer makes no sense.
    pub async fn look(&self) -> Result<Found, BootstrapError> {
        let step = "looking at what is there";
        let text = self.text(step, found::SCRIPT, &[], LOOK_WITHIN).await?;
        Ok(Found::parse(&text))
    }

    /// Installs Debian packages, and fetches the index of packages where that stands in the way.
    ///
    /// # Errors
    /// apt-get fails; what it said last is told.
    pub async fn install_packages(&self, packages: &[&'static str]) -> Result<(), BootstrapError> {
        // Output goes to a file: a client that is interrupted must not break dpkg by a closed pipe.
        let script = format!(
            r#"set -e; umask 077; mkdir -p {INCOMING}; log={INCOMING}/apt.log; export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
get() {{ apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" </dev/null >>"$log" 2>&1; }}
: >"$log"
get install --no-install-recommends {names} || {{ get update && get install --no-install-recommends {names}; }} || {{ tail -n 8 "$log" >&2; exit 1; }}"#,
            names = packages.join(" ")
        );
        self.run("installing packages", &script, &[], PACKAGES_WITHIN).await.map(drop)
    }

    /// Brings the agent, checks over there what arrived, and has it lay the machine out as a node that waits for a
    /// first request through its own SSH server.
    ///
    /// # Errors
    /// The agent did not arrive whole, or its installation failed.
    pub async fn install(&mut self, agent: &[u8], config: &NodeConfig) -> Result<Installed, BootstrapError> {
        let receive = format!(
            "set -e; umask 077; mkdir -p {INCOMING}; cd {INCOMING}; cat >bulkhead-agent; chmod 700 bulkhead-agent; sha256sum bulkhead-agent"
        );
        let digest = self.text("bringing the agent", &receive, agent, UPLOAD_WITHIN).await?;
        if digest.split_whitespace().next() != Some(hex(&sha256(agent)).as_str()) {
            return Err(BootstrapError::Digest { address: self.address.clone() });
        }
        let step = "laying it out as a node";
        let input = serde_json::to_vec(config).expect("names and text always serialise");
        // The clock over there starts later than this one, so this side gives up first.
        self.armed = Some(Instant::now());
        let script = format!("exec {INCOMING}/bulkhead-agent install --adopt");
        let text = self.text(step, &script, &input, INSTALL_WITHIN).await?;
        serde_json::from_str(&text).map_err(|error| BootstrapError::Unexpected {
            address: self.address.clone(),
            step,
            what: error.to_string(),
        })
    }

    /// Makes a fresh connection to the node's own SSH server and asks for its status, which makes it stay. Tries until
    /// shortly before the machine gives up waiting.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn greet(
        &self,
        node: &Target,
        identities: &Identities,
        timeouts: Timeouts,
    ) -> Result<NodeStatus, BootstrapError> {
        let armed = self.armed.unwrap_or_else(Instant::now);
        let end = armed + (Duration::from_secs(CONFIRM_WITHIN_S) - MARGIN);
        loop {
            let attempt = async {
                let client = NodeClient::connect(node, identities, timeouts).await?;
                let status = client.status().await;
                client.close().await;
                status
            };
            match attempt.await {
                Ok(status) => return Ok(status),
                // Another attempt changes nothing about these.
                Err(source) if Instant::now() + PAUSE > end || is_final(&source) => {
                    return Err(BootstrapError::Shut { address: node.address(), source: Box::new(source) });
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Has the machine give its stock SSH server back at once, where this connection to it still lasts.
    ///
    /// # Errors
    /// The connection broke, or the machine could not; its timer is still set then.
    pub async fn revert(&self) -> Result<(), BootstrapError> {
        let script = "exec /usr/lib/bulkhead/bulkhead-agent revert";
        self.run("giving the stock SSH server back", script, &[], INSTALL_WITHIN).await.map(drop)
    }

    /// Removes what was only of use on the way. With `one_time_key`, also the stock server's host keys and
    /// cloud-init's copies of the user data that brought one: whoever reads them could stand in for the stock server.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn clear(&self, one_time_key: bool) -> Result<(), BootstrapError> {
        let keys = if one_time_key {
            "; rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub; rm -rf /var/lib/cloud/instances /var/lib/cloud/seed /run/cloud-init"
        } else {
            ""
        };
        self.run("clearing up", &format!("rm -rf {INCOMING}{keys}"), &[], LOOK_WITHIN).await.map(drop)
    }

    /// Says goodbye.
    pub async fn close(&self) {
        self.connection.close().await;
    }

    async fn text(
        &self,
        step: &'static str,
        script: &str,
        input: &[u8],
        within: Duration,
    ) -> Result<String, BootstrapError> {
        let output = self.run(step, script, input, within).await?;
        String::from_utf8(output).map_err(|error| BootstrapError::Unexpected {
            address: self.address.clone(),
            step,
            what: error.to_string(),
        })
    }

    /// Runs a script as root over there, with this as its input, and gives what it printed.
    async fn run(
        &self,
        step: &'static str,
        script: &str,
        input: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, BootstrapError> {
        let command = command(self.sudo, script);
        let address = || self.address.clone();
        let work = async {
            let channel = self
                .connection
                .open(&command)
                .await
                .map_err(|source| BootstrapError::Channel { address: address(), source: Box::new(source) })?;
            let (mut reader, mut writer) = (channel.reader, channel.writer);
            let mut output = Vec::new();
            let write = async {
                writer.write_all(input).await?;
                writer.shutdown().await
            };
            let mut bounded = (&mut reader).take(OUTPUT_MAX_BYTES + 1);
            // A command that ends before it has read everything says itself why.
            let (_, read) = tokio::join!(write, bounded.read_to_end(&mut output));
            read.map_err(|source| BootstrapError::Broken { address: address(), step, source })?;
            if output.len() as u64 > OUTPUT_MAX_BYTES {
                let what = "over 1 MiB of output".to_owned();
                return Err(BootstrapError::Unexpected { address: address(), step, what });
            }
            let ending = reader.ending();
            if ending.exit_status == Some(0) {
                Ok(output)
            } else {
                Err(BootstrapError::Failed { address: address(), step, ending: Box::new(ending) })
            }
        };
        match tokio::time::timeout(within, work).await {
            Ok(result) => result,
            Err(_) => Err(BootstrapError::Timeout { address: address(), step, after: within }),
        }
    }
}

/// Whether the new server is there and has said no for good.
fn is_final(error: &NodeError) -> bool {
    match error {
        NodeError::Connect { source, .. } => matches!(
            **source,
            ConnectError::NoKeys { .. }
                | ConnectError::Identity { .. }
                | ConnectError::Authentication { .. }
                | ConnectError::HostKeyChanged { .. }
                | ConnectError::HostKeyRevoked { .. }
        ),
        NodeError::Failed { .. } => true,
        _ => false,
    }
}

/// A script as one command line for a login shell.
fn command(sudo: bool, script: &str) -> String {
    let script = format!("export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n{script}");
    let quoted = script.replace('\'', r"'\''");
    if sudo { format!("sudo -n sh -c '{quoted}'") } else { format!("sh -c '{quoted}'") }
}

/// No static binary of the agent.
#[derive(Debug, thiserror::Error)]
#[error("no static bulkhead-agent binary for the nodes; looked at {}", .looked_at.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
pub struct NoAgent {
    /// Where it was looked for.
    pub looked_at: Vec<PathBuf>,
}

/// The agent's static binary, as nodes run it: the file that `BULKHEAD_AGENT`
/// names, else `bulkhead-agent` beside this program, else the one that cargo
/// built for `x86_64-unknown-linux-gnu` in the target directory this program is in.
///
/// # Errors
/// Where it was looked for in vain.
pub fn find_agent() -> Result<PathBuf, NoAgent> {
    const NAME: &str = "bulkhead-agent";
    let mut looked_at = Vec::new();
    if let Some(path) = std::env::var_os("BULKHEAD_AGENT") {
        looked_at.push(PathBuf::from(path));
    } else if let Ok(program) = std::env::current_exe() {
        // Within cargo's target directory the binary beside this one is linked dynamically.
        let target = program.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file());
        match target {
            Some(target) => looked_at.push(target.join("x86_64-unknown-linux-gnu/release").join(NAME)),
            None => looked_at.push(program.with_file_name(NAME)),
        }
    }
    match looked_at.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(NoAgent { looked_at }),
    }
}

/// A machine's instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `x86_64`.
    X86_64,
    /// `aarch64`.
    Aarch64,
}

impl Architecture {
    /// What an ELF file is for: its field `e_machine`, elf(5).
    #[must_use]
    pub fn of_elf(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(b"\x7fELF") {
            return None;
        }
        match bytes.get(18..20)? {
            [62, 0] => Some(Self::X86_64),
            [183, 0] => Some(Self::Aarch64),
            _ => None,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_survive_the_login_shell() {
        let script = "printf '%s|' \"a b\" 'it'\\''s' $((1 + 1))";
        let output = std::process::Command::new("sh").args(["-c", &command(false, script)]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|2|");
        assert!(command(true, "id").starts_with("sudo -n sh -c 'export "));
    }

    #[test]
    fn what_a_binary_is_for() {
        let mut elf = b"\x7fELF".to_vec();
        elf.resize(64, 0);
        assert_eq!(Architecture::of_elf(&elf), None);
        elf[18] = 62;
        assert_eq!(Architecture::of_elf(&elf), Some(Architecture::X86_64));
        elf[18] = 183;
        assert_eq!(Architecture::of_elf(&elf), Some(Architecture::Aarch64));
        assert_eq!(Architecture::of_elf(b"MZ"), None);
    }
}
