//! Which OpenSSH is there, the configuration for it, and the node's host key.

use super::{
    InstallError, bare_key,
    layout::{HOST_KEY, Item, SSHD_CONFIG},
    tree::Tree,
};
use bulkhead_core::node::NodeConfig;
use std::fmt;

/// The oldest that has all settings a node relies on (`UnusedConnectionTimeout`).
const OLDEST: Version = Version { major: 9, minor: 2 };
/// The first with `PerSourcePenalties`.
const PENALTIES: Version = Version { major: 9, minor: 8 };
/// The first with the key exchange `mlkem768x25519-sha256`.
const MLKEM: Version = Version { major: 9, minor: 9 };

/// A version of OpenSSH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Reads `OpenSSH_10.0p2 Debian-7, OpenSSL …`, wherever it stands in the text.
    fn parse(text: &str) -> Option<Self> {
        let rest = &text[text.find("OpenSSH_")? + "OpenSSH_".len()..];
        let (major, rest) = rest.split_once('.')?;
        let minor = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// The version of the system's sshd.
pub(super) fn version(tree: &Tree) -> Result<Version, InstallError> {
    tree.require("usr/sbin/sshd", "openssh-server")?;
    // Before 9.3 `-V` is unknown, and the usage that comes instead begins with the version.
    let (_, output) = tree.run_any("/usr/sbin/sshd", &["-V"])?;
    let version = Version::parse(&output).ok_or_else(|| InstallError::Program {
        program: "sshd -V".to_owned(),
        message: format!("no version in `{}`", output.trim()),
    })?;
    if version < OLDEST {
        return Err(InstallError::OldOpenSsh { found: version.to_string() });
    }
    Ok(version)
}

/// The whole configuration, for this version.
pub(super) fn config(version: &Version) -> String {
    let mut exchanges = vec!["curve25519-sha256", "curve25519-sha256@libssh.org", "sntrup761x25519-sha512@openssh.com"];
    let mut versioned = "# A connection that carries nothing is closed.\nUnusedConnectionTimeout 60\n".to_owned();
    if *version >= MLKEM {
        exchanges.insert(0, "mlkem768x25519-sha256");
    }
    if *version >= PENALTIES {
        versioned.push_str(
            "# Slows a flood of strangers down; a person whose first key was the wrong one is not locked out.\n\
             PerSourcePenalties authfail:5s noauth:1s crash:90s grace-exceeded:20s max:10m min:15s\n",
        );
    }
    include_str!("../../files/sshd_config").replace("@KEX@", &exchanges.join(",")).replace("@VERSIONED@", &versioned)
}

/// Puts the host key in place, making one where there is none. Returns its public half.
pub(super) fn host_key(tree: &mut Tree, config: &NodeConfig) -> Result<String, InstallError> {
    if let Some(given) = &config.host_key {
        let mut contents = given.trim_end().as_bytes().to_vec();
        contents.push(b'\n');
        tree.apply(&Item::File { path: HOST_KEY.to_owned(), mode: 0o600, contents })?;
    } else if tree.read(HOST_KEY)?.is_none() {
        tree.require("usr/bin/ssh-keygen", "openssh-client")?;
        let made = format!("{HOST_KEY}.made");
        for left in [made.clone(), format!("{made}.pub")] {
            tree.remove(&left)?;
        }
        let path = format!("/{made}");
        tree.run("/usr/bin/ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", config.node.as_str(), "-f", &path])?;
        let contents = tree.read(&made)?.unwrap_or_default();
        tree.apply(&Item::File { path: HOST_KEY.to_owned(), mode: 0o600, contents })?;
        for left in [made.clone(), format!("{made}.pub")] {
            tree.remove(&left)?;
        }
    }
    let output = tree.run("/usr/bin/ssh-keygen", &["-y", "-f", &format!("/{HOST_KEY}")])?;
    let public = bare_key(&output).ok_or_else(|| InstallError::Unreadable {
        path: tree.path(HOST_KEY),
        what: "it is not an ssh-ed25519 key".to_owned(),
    })?;
    let contents = format!("{public} {}\n", config.node).into_bytes();
    tree.apply(&Item::File { path: format!("{HOST_KEY}.pub"), mode: 0o644, contents })?;
    Ok(public)
}

/// Has sshd itself check the configuration.
pub(super) fn check(tree: &Tree) -> Result<(), InstallError> {
    // sshd insists on its empty directory even to check; a boot puts a fresh one in its place.
    tree.make_directory("run/sshd", 0o755)?;
    tree.run("/usr/sbin/sshd", &["-t", "-f", &format!("/{SSHD_CONFIG}")]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, major, minor) in [
            ("OpenSSH_10.0p2 Debian-7+deb13u4, OpenSSL 3.5.9 29 Sep 2026", 10, 0),
            ("OpenSSH_9.2, OpenSSL 3.0.22", 9, 2),
            ("unknown option -- V\nOpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.17\nusage: sshd", 9, 2),
            ("OpenSSH_8.9p1 Ubuntu-3", 8, 9),
        ] {
            assert_eq!(Version::parse(text), Some(Version { major, minor }), "{text}");
        }
        for text in ["", "Dropbear v2024", "OpenSSH_", "OpenSSH_x.y"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn settings_follow_the_version() {
        for (minor, penalties, mlkem) in [(2, false, false), (8, true, false), (9, true, true)] {
            let text = config(&Version { major: 9, minor });
            assert_eq!(text.contains("\nPerSourcePenalties"), penalties, "9.{minor}");
            assert_eq!(text.contains("mlkem"), mlkem, "9.{minor}");
            assert!(!text.contains('@') || !text.contains("@KEX@") && !text.contains("@VERSIONED@"));
            assert!(!text.lines().any(|line| line.trim_start().starts_with("Include")));
        }
    }
}
