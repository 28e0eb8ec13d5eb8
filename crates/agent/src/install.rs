//! Laying a node out: from a stock Debian-like system to a machine that listens
//! on SSH alone and knows its fleet, its name and its policy.
//!
//! [`install`] works on the running system (root `/`) or on a tree that has not
//! booted yet. It may be repeated: it compares before it writes, reports each
//! change, and a second run changes nothing. What must be on disk is one list
//! of items ([`layout`]), which [`verify`] compares without writing.
//!
//! ```text
//! install/layout.rs  what goes where: the list of items, from `files/` and the configuration
//! install/tree.rs    a system's tree: compare, write durably, run its programs
//! install/sshd.rs    which OpenSSH is there, and the configuration for it
//! install/live.rs    taking over on a running system, and who else listens
//! install/before.rs  what the machine was before, to be given back
//! install/trial.rs   the dead man's switch of an adoption
//! install/uninstall.rs  the way back
//! ```
//!
//! Invariants:
//! - The stock SSH server is put out of service only after the new
//!   configuration has passed `sshd -t`, and comes back if the new unit fails.
//! - An installed node is not given another identity, nor a policy that does
//!   not follow from the one it has pinned.

mod before;
mod layout;
mod live;
mod sshd;
mod tree;
mod trial;
mod uninstall;

use crate::{keys, state::Paths};
use bulkhead_core::{
    SignedText, digest,
    node::{NodeConfig, NodeIdentity},
    policy::{NodeKeys, Policy, Role},
};
use bulkhead_trust::{PublicKey, Refusal, accept_policy, pin_first_policy};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use before::Before;
use layout::Item;
pub use layout::{authorized_keys, key_files};
use tree::Tree;
pub use trial::{confirm, revert};
pub use uninstall::{Removal, UninstallOptions, uninstall};

/// The longest configuration that is read: a policy and its signatures, escaped as JSON.
const CONFIG_MAX_BYTES: u64 = 4 << 20;

/// What an installation did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Each change, in the order it was made. Empty where all was in place.
    pub changes: Vec<String>,
    /// What somebody should know: programs that listen, a policy without couriers.
    pub notes: Vec<String>,
    /// The node's public host key, `ssh-ed25519 AAAA…`.
    pub host_key: String,
    /// The public halves of its own keys, for the policy.
    #[serde(default)]
    pub keys: Option<NodeKeys>,
}

/// Why a node could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Standard input did not hold a configuration.
    #[error("cannot read the node's configuration from standard input: {what}")]
    Config {
        /// What is wrong.
        what: String,
    },
    /// The policy was refused.
    #[error("the policy is refused: {0}")]
    Policy(Refusal),
    /// The node belongs to another fleet, or is another node.
    #[error(
        "this machine is node `{found_node}` of fleet `{found_fleet}`, environment `{found_environment}`; it is not made another one. Install a fresh system for that"
    )]
    OtherIdentity {
        /// Its name.
        found_node: String,
        /// Its fleet.
        found_fleet: String,
        /// Its environment.
        found_environment: String,
    },
    /// A file that an earlier installation wrote cannot be understood.
    #[error("cannot understand {path}: {what}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file operation failed.
    #[error("cannot {operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program that is needed is not installed.
    #[error("{path} is missing: install the package `{package}`")]
    Missing {
        /// Which program.
        path: PathBuf,
        /// The Debian package that holds it.
        package: &'static str,
    },
    /// A program could not be run.
    #[error("cannot run `{program}`")]
    Run {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{program}` failed: {message}")]
    Program {
        /// Which, with its arguments.
        program: String,
        /// What it said.
        message: String,
    },
    /// The OpenSSH that is there cannot be used.
    #[error("OpenSSH {found} is too old: 9.2 or later is needed")]
    OldOpenSsh {
        /// Its version.
        found: String,
    },
    /// An ordinary account has a name that the node needs.
    #[error("the account `{name}` exists and belongs to a person (user id {uid}); remove or rename it")]
    AccountTaken {
        /// Which.
        name: &'static str,
        /// Its user id.
        uid: u32,
    },
    /// The stock SSH server did not start; the node's own was started again.
    #[error("the stock SSH server does not start, so the node's own goes on: {message}")]
    StockSshFailed {
        /// What systemd said.
        message: String,
    },
    /// The new SSH server did not start; the stock one was put back.
    #[error("bulkhead-sshd.service did not start, the stock SSH server was put back: {message}")]
    SshdFailed {
        /// What systemd said.
        message: String,
    },
}

/// Lays out the system at `root`: the running one where it is `/`. `agent` is
/// the static binary to install; it may be the one that is installed already.
///
/// # Errors
/// What could not be done. Changes made before it stay, and a repetition goes on from there.
pub fn install(root: &Path, config: &NodeConfig, agent: &Path) -> Result<Report, InstallError> {
    lay_out(root, config, agent, false)
}

/// As [`install`]; where that takes the place of a stock SSH server that runs, it comes back by itself unless a request
/// reaches the keeper within [`bulkhead_core::node::CONFIRM_WITHIN_S`].
///
/// # Errors
/// As [`install`].
pub fn adopt(root: &Path, config: &NodeConfig, agent: &Path) -> Result<Report, InstallError> {
    lay_out(root, config, agent, true)
}

fn lay_out(root: &Path, config: &NodeConfig, agent: &Path, on_trial: bool) -> Result<Report, InstallError> {
    let mut tree = Tree::open(root)?;
    let version = check_facilities(&tree)?;
    check_identity(&tree, config)?;
    let policy = check_policy(&tree, config)?;

    let is_node = tree.exists(layout::IDENTITY);
    tree.accounts(&layout::ACCOUNTS)?;
    let items = layout::items(&tree, config, &policy, &version, agent)?;
    Before::record(&mut tree, &items, is_node)?;
    for item in items {
        tree.apply(&item)?;
    }
    let host_key = sshd::host_key(&mut tree, config)?;
    let keys = node_keys(&mut tree)?;
    sshd::check(&tree)?;
    if tree.is_live() {
        live::prepare(&mut tree)?;
        if on_trial && live::stock_ssh_runs(&tree)? {
            trial::arm(&mut tree)?;
        }
    }
    // Only now, when the new server's configuration is known to be good.
    for item in layout::masks(&tree) {
        tree.apply(&item)?;
    }
    let mut notes = Vec::new();
    if policy.holders(Role::Courier).next().is_none() {
        notes.push("the policy names no courier: nobody can connect to this node".to_owned());
    }
    if tree.is_live() {
        live::take_over(&mut tree)?;
        notes.extend(live::listeners(&tree)?);
    }
    Ok(Report { changes: tree.into_changes(), notes, host_key, keys: Some(keys) })
}

/// Draws the node's own keys where it has none: they are what tells it apart from one that was made anew.
fn node_keys(tree: &mut Tree) -> Result<NodeKeys, InstallError> {
    let mut seed = |path: &'static str| {
        let unreadable = |what: String| InstallError::Unreadable { path: Path::new("/").join(path), what };
        if tree.read(path)?.is_none() {
            let mut drawn = [0; 32];
            // Cannot be short: the kernel gives up to 256 bytes whole.
            rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty())
                .map_err(|error| unreadable(format!("no random number can be drawn for it: {error}")))?;
            let contents = format!("{}\n", digest::hex(&drawn)).into_bytes();
            tree.apply(&Item::File { path: path.to_owned(), mode: 0o600, contents })?;
        }
        let text = tree.read(path)?.unwrap_or_default();
        let parsed = std::str::from_utf8(&text).ok().and_then(|text| digest::parse(text.trim_end()).ok());
        parsed.ok_or_else(|| unreadable("it is not 64 hexadecimal digits".to_owned()))
    };
    let audit = seed(layout::AUDIT_KEY)?;
    Ok(keys::of_seeds(audit, &seed(layout::SEALING_KEY)?))
}

/// Compares an installed node with what [`install`] would write. Empty where nothing differs.
///
/// # Errors
/// Where the comparison itself cannot be made, as on a machine that is no node.
pub fn verify(root: &Path) -> Result<Vec<String>, InstallError> {
    let tree = Tree::open(root)?;
    let identity = read_identity(&tree)?.ok_or_else(|| InstallError::Unreadable {
        path: tree.path(layout::IDENTITY),
        what: "it does not exist, so this machine is not a node".to_owned(),
    })?;
    let (policy_text, signatures) = read_policy(&tree)?.ok_or_else(|| InstallError::Unreadable {
        path: tree.path(layout::POLICY),
        what: "it does not exist".to_owned(),
    })?;
    let policy = Policy::parse(policy_text.as_bytes())
        .map_err(|what| InstallError::Unreadable { path: tree.path(layout::POLICY), what })?;
    let config = NodeConfig {
        fleet: identity.fleet,
        node: identity.node,
        environment: identity.environment,
        pool: identity.pool,
        policy: policy_text,
        signatures,
        host_key: None,
    };
    let version = sshd::version(&tree)?;
    let agent = tree.path(layout::AGENT);
    let mut differences = Vec::new();
    for account in &layout::ACCOUNTS {
        differences.extend(tree.account_difference(account)?);
    }
    if !differences.is_empty() {
        // Who owns what cannot be told without them.
        return Ok(differences);
    }
    for item in layout::items(&tree, &config, &policy, &version, &agent)?.iter().chain(&layout::masks(&tree)) {
        differences.extend(tree.difference(item)?);
    }
    Ok(differences)
}

/// `bulkhead-agent install [--root DIR] [--verify | --adopt]`: reads a [`NodeConfig`] as
/// JSON from standard input and writes a [`Report`] as JSON to standard output.
///
/// # Errors
/// A sentence for standard error, its causes included.
pub fn command(arguments: &[String]) -> Result<String, String> {
    let mut root = PathBuf::from("/");
    let mut compare = false;
    let mut on_trial = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--root" => root = rest.next().ok_or("--root needs a directory")?.into(),
            "--verify" => compare = true,
            "--adopt" => on_trial = true,
            other => return Err(format!("unknown argument `{other}`; known: --root DIR, --verify, --adopt")),
        }
    }
    let result = if compare {
        verify(&root).map(|differences| to_json(&differences))
    } else {
        read_config(io::stdin().lock())
            .and_then(|config| {
                let agent = std::env::current_exe()
                    .map_err(|source| InstallError::Run { program: "bulkhead-agent".to_owned(), source })?;
                lay_out(&root, &config, &agent, on_trial)
            })
            .map(|report| to_json(&report))
    };
    result.map_err(|error| chain(&error))
}

/// `bulkhead-agent uninstall [--root DIR] [--volumes]`: writes a [`Removal`] as JSON to standard output.
///
/// # Errors
/// A sentence for standard error, its causes included.
pub fn uninstall_command(arguments: &[String]) -> Result<String, String> {
    let mut root = PathBuf::from("/");
    let mut options = UninstallOptions::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--root" => root = rest.next().ok_or("--root needs a directory")?.into(),
            "--volumes" => options.volumes = true,
            other => return Err(format!("unknown argument `{other}`; known: --root DIR, --volumes")),
        }
    }
    uninstall(&root, options).map(|removal| to_json(&removal)).map_err(|error| chain(&error))
}

/// `bulkhead-agent discharge keep|delete`: makes the running system no node any more, and tells the journal.
///
/// # Errors
/// A sentence for standard error, its causes included.
pub fn discharge(paths: &Paths, volumes: bool) -> Result<String, String> {
    // Whoever asked has the answer first: its connection ends with the node's SSH server.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let removal = uninstall(Path::new("/"), UninstallOptions { volumes }).map_err(|error| {
        if matches!(error, InstallError::StockSshFailed { .. }) {
            // It stays a node, and what was stopped is started again by the boot's unit, which follows on a failure.
            crate::durable::remove(&paths.discharging()).ok();
        }
        chain(&error)
    })?;
    Ok([removal.changes, removal.notes].concat().join("\n"))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("lists of text always serialise")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        write!(text, ": {cause}").expect("a String takes all that is written");
        source = cause.source();
    }
    text
}

fn read_config(input: impl io::Read) -> Result<NodeConfig, InstallError> {
    let mut bytes = Vec::new();
    input
        .take(CONFIG_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| InstallError::Config { what: error.to_string() })?;
    if bytes.len() as u64 > CONFIG_MAX_BYTES {
        return Err(InstallError::Config { what: "it is longer than 4 MiB".to_owned() });
    }
    serde_json::from_slice(&bytes).map_err(|error| InstallError::Config { what: error.to_string() })
}

/// What a node cannot do without, before anything is changed.
fn check_facilities(tree: &Tree) -> Result<sshd::Version, InstallError> {
    tree.require("usr/bin/systemctl", "systemd")?;
    // Not every distribution has it with systemd itself.
    tree.require("usr/lib/systemd/systemd-socket-proxyd", "systemd")?;
    tree.require("usr/sbin/nft", "nftables")?;
    sshd::version(tree)
}

fn read_identity(tree: &Tree) -> Result<Option<NodeIdentity>, InstallError> {
    let Some(bytes) = tree.read(layout::IDENTITY)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| InstallError::Unreadable { path: tree.path(layout::IDENTITY), what: error.to_string() })
}

fn check_identity(tree: &Tree, config: &NodeConfig) -> Result<(), InstallError> {
    match read_identity(tree)? {
        Some(found) if found != config.identity() => Err(InstallError::OtherIdentity {
            found_node: found.node.to_string(),
            found_fleet: found.fleet.to_string(),
            found_environment: found.environment.to_string(),
        }),
        _ => Ok(()),
    }
}

fn read_policy(tree: &Tree) -> Result<Option<(String, Vec<String>)>, InstallError> {
    let Some(bytes) = tree.read(layout::POLICY)? else { return Ok(None) };
    let SignedText { text, signatures } = serde_json::from_slice(&bytes)
        .map_err(|error| InstallError::Unreadable { path: tree.path(layout::POLICY), what: error.to_string() })?;
    Ok(Some((text, signatures)))
}

/// The first policy vouches for itself; a later one must follow from the pinned one, as the keeper demands.
fn check_policy(tree: &Tree, config: &NodeConfig) -> Result<Policy, InstallError> {
    let bytes = config.policy.as_bytes();
    match read_policy(tree)? {
        Some((pinned, _)) if pinned != config.policy => {
            let pinned = Policy::parse(pinned.as_bytes())
                .map_err(|what| InstallError::Unreadable { path: tree.path(layout::POLICY), what })?;
            accept_policy(bytes, &config.signatures, &pinned)
        }
        _ => pin_first_policy(bytes, &config.signatures, &config.fleet),
    }
    .map(bulkhead_trust::Verified::into_value)
    .map_err(InstallError::Policy)
}

/// A public key reduced to its type and its key: no options, no comment, nothing else that a line could hold.
fn bare_key(openssh: &str) -> Option<String> {
    PublicKey::parse(openssh).ok().map(|key| key.to_openssh())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    /// A system with all that is looked for; `sshd` says that it is this version.
    fn system(openssh: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let script = format!("#!/bin/sh\necho OpenSSH_{openssh}, OpenSSL 3.0 >&2\n");
        let programs = ["usr/bin/systemctl", "usr/lib/systemd/systemd-socket-proxyd", "usr/sbin/nft"];
        for (path, text) in programs.map(|path| (path, "")).into_iter().chain([("usr/sbin/sshd", script.as_str())]) {
            write(root.path(), path, text.as_bytes());
        }
        // What the script needs to run there.
        for path in ["/bin/sh", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"] {
            if let Ok(bytes) = fs::read(path) {
                write(root.path(), &path[1..], &bytes);
            }
        }
        root
    }

    fn write(root: &Path, path: &str, bytes: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Every path with its time of change, which no change keeps.
    fn state(root: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
        let (mut seen, mut left) = (vec![], vec![root.to_owned()]);
        while let Some(path) = left.pop() {
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            seen.push((path, metadata.modified().unwrap()));
        }
        seen.sort();
        seen
    }

    fn refusal(root: &Path) -> String {
        let config = NodeConfig {
            fleet: "f".parse().unwrap(),
            node: "n".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            pool: None,
            policy: "no policy".into(),
            signatures: vec![],
            host_key: None,
        };
        let before = state(root);
        let error = install(root, &config, Path::new("/proc/self/exe")).unwrap_err();
        assert_eq!(state(root), before, "something was changed: {error}");
        chain(&error)
    }

    #[test]
    fn a_system_without_what_is_needed_is_told_and_left_as_it_is() {
        for (path, words) in [
            ("usr/bin/systemctl", "/usr/bin/systemctl is missing: install the package `systemd`"),
            ("usr/lib/systemd/systemd-socket-proxyd", "install the package `systemd`"),
            ("usr/sbin/nft", "/usr/sbin/nft is missing: install the package `nftables`"),
            ("usr/sbin/sshd", "/usr/sbin/sshd is missing: install the package `openssh-server`"),
        ] {
            let root = system("10.0p2");
            fs::remove_file(root.path().join(path)).unwrap();
            let said = refusal(root.path());
            assert!(said.contains(words), "{path}: {said}");
        }
    }

    /// Needs root, to run the tree's own sshd in it.
    #[test]
    fn an_openssh_that_is_too_old_is_told() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let said = refusal(system("8.4p1 Debian-5+deb11u3").path());
        assert_eq!(said, "OpenSSH 8.4 is too old: 9.2 or later is needed");
        // With one that is new enough it comes as far as the policy.
        let said = refusal(system("9.2p1 Debian-2+deb12u10").path());
        assert!(said.starts_with("the policy is refused"), "{said}");
    }
}
