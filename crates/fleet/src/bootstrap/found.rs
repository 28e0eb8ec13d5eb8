//! What there is on a machine before it is a node, and what stands in the way.

use super::Architecture;
use crate::client::printable;
use bulkhead_core::node::{NodeIdentity, UNWANTED_UNITS};
use std::collections::{BTreeMap, BTreeSet};

/// Prints a line for each fact, name and value with a tab between. Reads only.
pub(super) const SCRIPT: &str = r#"say() { printf '%s\t%s\n' "$1" "$2"; }
say arch "$(uname -m)"
say hostname "$(uname -n)"
if [ -r /etc/os-release ]; then (. /etc/os-release; say os "$PRETTY_NAME"; say id "$ID"; say version "$VERSION_ID"); fi
[ -d /run/systemd/system ] && say systemd "$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')"
[ -x /usr/sbin/sshd ] && say sshd "$(/usr/sbin/sshd -V 2>&1 | head -n 2 | tr '\n\t' '  ')"
for program in /usr/sbin/sshd /usr/sbin/nft /usr/bin/ssh-keygen /usr/sbin/useradd /usr/bin/apt-get; do [ -x $program ] && say has $program; done
set -- $(df -Pk /var/lib | tail -n 1); say free_kib "$4"
for unit in $(systemctl list-units --plain --no-legend --state=active,activating --type=service,socket | cut -d ' ' -f 1); do say runs "$unit"; done
[ -e /usr/bin/cloud-init ] && [ ! -e /etc/cloud/cloud-init.disabled ] && say cloud_init yes
[ -e /etc/bulkhead/node.json ] && say node "$(head -c 4096 /etc/bulkhead/node.json | tr '\n\t' '  ')"
command -v ss >/dev/null && ss -Hltunp | while read -r line; do say listens "$line"; done
exit 0"#;

/// The oldest OpenSSH that a node can run.
const SSH_OLDEST: (u32, u32) = (9, 2);
/// The oldest systemd: Debian 12's.
const SYSTEMD_OLDEST: u32 = 252;
/// For the agent and a first image.
const FREE_MIN_KIB: u64 = 1 << 20;
/// More of anything is of no use in a plan.
const LINES_MAX: usize = 2000;

/// `os-release`'s words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// Such as `debian`.
    pub id: String,
    /// Such as `13`.
    pub version: String,
    /// Such as `Debian GNU/Linux 13 (trixie)`.
    pub pretty: String,
}

/// A program that listens beyond the machine itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port.
    pub port: u16,
    /// The program's name, where it could be seen.
    pub program: String,
}

/// A machine as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its operating system.
    pub os: OsRelease,
    /// Its name for itself.
    pub hostname: String,
    /// `uname -m`.
    pub arch: String,
    /// systemd's version, where systemd runs it.
    pub systemd: Option<u32>,
    /// OpenSSH's version.
    pub openssh: Option<(u32, u32)>,
    /// Free space below `/var/lib`.
    pub free_kib: u64,
    /// Stock units that run and will be stopped.
    pub unwanted: Vec<String>,
    /// Whether cloud-init runs at each boot.
    pub cloud_init: bool,
    /// Who listens on what, besides SSH.
    pub listeners: BTreeSet<Listener>,
    /// Which node it is already.
    pub node: Option<NodeIdentity>,
    has: BTreeSet<String>,
}

/// Why a machine cannot become a node, or not without being changed first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// No Debian and no Ubuntu.
    #[error("it runs {0}; nodes are Debian 12 or later, or Ubuntu 24.04 or later")]
    Os(String),
    /// systemd does not run it, or is too old.
    #[error("{}", match .0 { Some(version) => format!("its systemd is {version}; {SYSTEMD_OLDEST} or later is needed"), None => "systemd does not run it".to_owned() })]
    Systemd(Option<u32>),
    /// Too old.
    #[error("its OpenSSH is {}.{}; {}.{} or later is needed", .0.0, .0.1, SSH_OLDEST.0, SSH_OLDEST.1)]
    OpenSsh((u32, u32)),
    /// Another instruction set than the agent's.
    #[error("it is {machine}, and the agent at hand is for {agent}")]
    Architecture {
        /// Its own.
        machine: String,
        /// The agent's.
        agent: Architecture,
    },
    /// Too little room.
    #[error("it has {} MiB free below /var/lib; {} MiB are needed", .0 / 1024, FREE_MIN_KIB / 1024)]
    Disk(u64),
    /// Packages cannot be installed.
    #[error("packages are missing ({0}), and there is no apt-get")]
    NoApt(String),
    /// It is another node.
    #[error("it is node `{}` of fleet `{}`, environment `{}`, already", .0.node, .0.fleet, .0.environment)]
    OtherNode(Box<NodeIdentity>),
}

impl Found {
    /// Reads what the script printed. What makes no sense is left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let mut facts: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, value) in text.lines().take(LINES_MAX).filter_map(|line| line.split_once('\t')) {
            let value = value.trim();
            match name {
                "has" => drop(found.has.insert(value.to_owned())),
                "runs" if UNWANTED_UNITS.contains(&value) => found.unwanted.push(value.to_owned()),
                "listens" => found.listeners.extend(listener(value)),
                _ => drop(facts.insert(name, value)),
            }
        }
        let fact = |name: &str| printable(facts.get(name).copied().unwrap_or_default());
        found.os = OsRelease { id: fact("id"), version: fact("version"), pretty: fact("os") };
        found.hostname = fact("hostname");
        found.arch = fact("arch");
        found.systemd = fact("systemd").parse().ok();
        found.openssh = openssh(&fact("sshd"));
        found.free_kib = fact("free_kib").parse().unwrap_or(0);
        found.cloud_init = facts.contains_key("cloud_init");
        found.node = facts.get("node").and_then(|text| serde_json::from_str(text).ok());
        found.listeners.retain(|listener| !listener.program.starts_with("sshd"));
        found
    }

    /// Debian packages that are needed and not there.
    #[must_use]
    pub fn missing_packages(&self) -> Vec<&'static str> {
        let needed = [
            ("/usr/sbin/sshd", "openssh-server"),
            ("/usr/bin/ssh-keygen", "openssh-client"),
            ("/usr/sbin/nft", "nftables"),
            ("/usr/sbin/useradd", "passwd"),
        ];
        needed.into_iter().filter(|(program, _)| !self.has.contains(*program)).map(|(_, package)| package).collect()
    }

    /// Everything that stands in the way.
    #[must_use]
    pub fn obstacles(&self, agent: Architecture, wanted: &NodeIdentity) -> Vec<Obstacle> {
        let mut obstacles = Vec::new();
        let major: u32 = self.os.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        // A Debian in the making has no number yet.
        let fits = match self.os.id.as_str() {
            "debian" => major >= 12 || self.os.version.is_empty(),
            "ubuntu" => major >= 24,
            _ => false,
        };
        if !fits {
            let name = if self.os.pretty.is_empty() { "an unknown system".to_owned() } else { self.os.pretty.clone() };
            obstacles.push(Obstacle::Os(name));
        }
        if self.systemd.is_none_or(|version| version < SYSTEMD_OLDEST) {
            obstacles.push(Obstacle::Systemd(self.systemd));
        }
        if let Some(version) = self.openssh.filter(|version| *version < SSH_OLDEST) {
            obstacles.push(Obstacle::OpenSsh(version));
        }
        if self.arch != agent.to_string() {
            obstacles.push(Obstacle::Architecture { machine: self.arch.clone(), agent });
        }
        if self.free_kib < FREE_MIN_KIB {
            obstacles.push(Obstacle::Disk(self.free_kib));
        }
        let missing = self.missing_packages();
        if !missing.is_empty() && !self.has.contains("/usr/bin/apt-get") {
            obstacles.push(Obstacle::NoApt(missing.join(", ")));
        }
        if let Some(node) = self.node.as_ref().filter(|node| *node != wanted) {
            obstacles.push(Obstacle::OtherNode(Box::new(node.clone())));
        }
        obstacles
    }
}

/// `OpenSSH_10.0p2 Debian-7 …`, wherever it stands.
fn openssh(text: &str) -> Option<(u32, u32)> {
    let rest = text.split_once("OpenSSH_")?.1;
    let (major, rest) = rest.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A line of `ss -Hltunp`: protocol, state, two queues, local address, peer, processes.
fn listener(line: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (host, port) = fields.get(4)?.rsplit_once(':')?;
    let host = host.split('%').next().unwrap_or(host).trim_matches(['[', ']']);
    let is_loopback = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    if is_loopback {
        return None;
    }
    let program = line.split_once("((\"").and_then(|(_, rest)| rest.split('"').next()).unwrap_or_default();
    Some(Listener {
        protocol: printable(fields.first()?),
        port: port.parse().ok()?,
        program: printable(program).chars().take(40).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "arch\tx86_64\nhostname\tweb\nos\tDebian GNU/Linux 13 (trixie)\nid\tdebian\nversion\t13\n\
        systemd\t257\nsshd\tOpenSSH_10.0p2 Debian-7, OpenSSL 3.5\nhas\t/usr/sbin/sshd\nhas\t/usr/bin/ssh-keygen\n\
        has\t/usr/sbin/useradd\nhas\t/usr/bin/apt-get\nfree_kib\t9000000\nruns\tssh.service\nruns\tcron.service\n\
        cloud_init\tyes\n\
        listens\ttcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:((\"sshd\",pid=1,fd=3))\n\
        listens\ttcp LISTEN 0 128 *:80 *:* users:((\"nginx\",pid=2,fd=3))\n\
        listens\ttcp LISTEN 0 128 [::1]:25 [::]:* users:((\"exim\",pid=2,fd=3))\n\
        listens\tudp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:*\nlistens\trubbish\n";

    fn wanted() -> NodeIdentity {
        NodeIdentity {
            fleet: "acme".parse().unwrap(),
            node: "web-1".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            pool: None,
        }
    }

    #[test]
    fn a_stock_machine() {
        let found = Found::parse(GOOD);
        assert_eq!(found.missing_packages(), ["nftables"]);
        assert_eq!(found.unwanted, ["ssh.service"]);
        assert_eq!((found.systemd, found.openssh, found.cloud_init), (Some(257), Some((10, 0)), true));
        let listeners: Vec<_> = found.listeners.iter().map(|one| (one.protocol.as_str(), one.port)).collect();
        assert_eq!(listeners, [("tcp", 80)]);
        assert_eq!(found.obstacles(Architecture::X86_64, &wanted()), []);
    }

    #[test]
    fn what_stands_in_the_way() {
        for (from, to, words) in [
            ("id\tdebian", "id\tfedora", "Debian 12"),
            ("version\t13", "version\t11", "Debian 12"),
            ("systemd\t257", "systemd\t249", "249"),
            ("systemd\t257\n", "", "systemd does not run it"),
            ("OpenSSH_10.0p2", "OpenSSH_8.9p1", "8.9"),
            ("arch\tx86_64", "arch\taarch64", "aarch64"),
            ("free_kib\t9000000", "free_kib\t100", "free"),
            ("has\t/usr/bin/apt-get\n", "", "apt-get"),
            (
                "cloud_init\tyes",
                "node\t{ \"fleet\": \"other\", \"node\": \"web-1\", \"environment\": \"staging\" }",
                "`other`",
            ),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD);
            let obstacles = Found::parse(&text).obstacles(Architecture::X86_64, &wanted());
            let [obstacle] = obstacles.as_slice() else { panic!("{from:?} -> {to:?}: {obstacles:?}") };
            assert!(obstacle.to_string().contains(words), "{obstacle}");
        }
        let other = Found::parse("").obstacles(Architecture::Aarch64, &wanted());
        assert!(other.len() >= 4, "{other:?}");
    }
}
