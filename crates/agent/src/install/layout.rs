//! What goes where on a node: one list of items, a function of the
//! configuration and of the OpenSSH that is there.

use super::{InstallError, bare_key, sshd, tree::Tree};
use bulkhead_core::{
    SignedText,
    node::{NodeConfig, UNWANTED_UNITS},
    policy::{Policy, Role},
};
use bulkhead_wire::{ACCOUNT, DROP_ACCOUNT, OBSERVE_ACCOUNT, OPERATE_ACCOUNT};
use std::{fmt::Write as _, path::Path};

/// Who the node is.
pub(super) const IDENTITY: &str = "etc/bulkhead/node.json";
/// The policy it enforces with its signatures: a `SignedText`, so that both are replaced at once.
pub(super) const POLICY: &str = "var/lib/bulkhead/policy/signed.json";
/// The one binary.
pub(super) const AGENT: &str = "usr/lib/bulkhead/bulkhead-agent";
/// Its second name, by which it is the gate.
pub(super) const GATE: &str = "usr/lib/bulkhead/bulkhead-gate";
/// The SSH server's configuration.
pub(super) const SSHD_CONFIG: &str = "etc/bulkhead/sshd_config";
/// The packet filter.
pub(super) const NFTABLES: &str = "etc/bulkhead/nftables.conf";
/// Journal settings.
pub(super) const JOURNALD: &str = "etc/systemd/journald.conf.d/bulkhead.conf";
/// Directories that do not outlive a boot.
pub(super) const TMPFILES: &str = "etc/tmpfiles.d/bulkhead.conf";
/// While this is there cloud-init(1) does not run.
pub(super) const CLOUD_INIT_OFF: &str = "etc/cloud/cloud-init.disabled";
/// There while an adoption is not confirmed.
pub(super) const TRIAL: &str = "var/lib/bulkhead/adoption-pending";
/// Where the resolver's addresses are found.
pub(super) const RESOLV_CONF: &str = "etc/resolv.conf";
/// systemd's generator of more SSH listeners, and what masks it.
const SSH_GENERATOR: (&str, &str) =
    ("usr/lib/systemd/system-generators/systemd-ssh-generator", "etc/systemd/system-generators/systemd-ssh-generator");
/// The host key; its public half is beside it with `.pub`.
pub(super) const HOST_KEY: &str = "etc/bulkhead/ssh_host_ed25519_key";

/// The seeds of the node's own keys: see `crate::keys`.
pub(super) const AUDIT_KEY: &str = "var/lib/bulkhead/keys/audit";
pub(super) const SEALING_KEY: &str = "var/lib/bulkhead/keys/sealing";

pub(super) const UNIT_DIRECTORY: &str = "etc/systemd/system";
pub(super) const RESOLVED: &str = "etc/systemd/resolved.conf.d/bulkhead.conf";

/// An account of the node.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: &'static str,
    pub(super) shell: &'static str,
    pub(super) comment: &'static str,
    /// Groups besides its own; made before it.
    pub(super) groups: &'static [&'static str],
    /// The roles of the keys that may connect as it.
    pub(super) roles: &'static [Role],
}

/// The home directory of all: root's, empty.
pub(super) const HOME: &str = "/var/empty";

const GATE_SHELL: &str = "/usr/lib/bulkhead/bulkhead-gate";

/// The accounts that may connect, one for each role that is told apart. What each may ask is decided by the keeper,
/// to whom the kernel says which account asks. The group `bulkhead` is let into
/// `/run/bulkhead`, where each has a socket of the keeper's; the group of `bulkhead-operate` reaches the sockets of
/// services. The drop box's shell never runs: its sessions are `internal-sftp`.
pub(super) const ACCOUNTS: [Account; 4] = [
    Account { name: ACCOUNT, shell: GATE_SHELL, comment: "Bulkhead gate", groups: &[], roles: &[Role::Courier] },
    Account {
        name: DROP_ACCOUNT,
        shell: "/usr/sbin/nologin",
        comment: "Bulkhead drop box",
        groups: &[],
        roles: &[Role::Courier],
    },
    Account {
        name: OBSERVE_ACCOUNT,
        shell: GATE_SHELL,
        comment: "Bulkhead gate of observers",
        groups: &[ACCOUNT],
        roles: &[Role::Observe],
    },
    Account {
        name: OPERATE_ACCOUNT,
        shell: GATE_SHELL,
        comment: "Bulkhead gate of operators",
        groups: &[ACCOUNT],
        roles: &[Role::Operate],
    },
];

/// Who owns an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Root,
    Drop,
}

/// One thing that must be in the tree. Paths are relative to its root.
#[derive(Debug)]
pub(super) enum Item {
    Directory { path: String, mode: u32, owner: Owner },
    File { path: String, mode: u32, contents: Vec<u8> },
    Symlink { path: String, target: String },
    HardLink { path: String, to: String },
}

impl Item {
    pub(super) fn path(&self) -> &str {
        match self {
            Self::Directory { path, .. }
            | Self::File { path, .. }
            | Self::Symlink { path, .. }
            | Self::HardLink { path, .. } => path,
        }
    }
}

/// One keeper for all; a socket that accepts connections starts instances of a unit of its own name only.
const KEEPER: &str = include_str!("../../files/bulkhead-keeper@.service");

/// The sockets of the keeper: one for each account whose shell is the gate, so that none can use up another's places.
pub(super) const KEEPER_SOCKETS: [&str; 3] =
    ["bulkhead-keeper.socket", "bulkhead-keeper-observe.socket", "bulkhead-keeper-operate.socket"];

/// Units and their texts. Instances of templates are started by what needs them.
pub(super) const UNITS: [(&str, &str); 18] = [
    ("bulkhead-sshd.service", include_str!("../../files/bulkhead-sshd.service")),
    ("bulkhead-nftables.service", include_str!("../../files/bulkhead-nftables.service")),
    ("bulkhead-keeper.socket", include_str!("../../files/bulkhead-keeper.socket")),
    ("bulkhead-keeper@.service", KEEPER),
    ("bulkhead-keeper-observe.socket", include_str!("../../files/bulkhead-keeper-observe.socket")),
    ("bulkhead-keeper-observe@.service", KEEPER),
    ("bulkhead-keeper-operate.socket", include_str!("../../files/bulkhead-keeper-operate.socket")),
    ("bulkhead-keeper-operate@.service", KEEPER),
    ("bulkhead-image@.service", include_str!("../../files/bulkhead-image@.service")),
    ("bulkhead-settle@.service", include_str!("../../files/bulkhead-settle@.service")),
    ("bulkhead-discharge@.service", include_str!("../../files/bulkhead-discharge@.service")),
    ("bulkhead-boot.service", include_str!("../../files/bulkhead-boot.service")),
    ("bulkhead-scrub.service", include_str!("../../files/bulkhead-scrub.service")),
    ("bulkhead-scrub.timer", include_str!("../../files/bulkhead-scrub.timer")),
    ("bulkhead-drop.path", include_str!("../../files/bulkhead-drop.path")),
    ("bulkhead-drop.service", include_str!("../../files/bulkhead-drop.service")),
    ("bulkhead-adoption.service", include_str!("../../files/bulkhead-adoption.service")),
    ("bulkhead-adoption.timer", include_str!("../../files/bulkhead-adoption.timer")),
];

/// Everything but accounts, the host key and the masks, in the order it is to be written.
pub(super) fn items(
    tree: &Tree,
    config: &NodeConfig,
    policy: &Policy,
    version: &sshd::Version,
    agent: &Path,
) -> Result<Vec<Item>, InstallError> {
    let mut items = Vec::new();
    for (path, mode) in [
        ("usr/lib/bulkhead", 0o755),
        ("etc/bulkhead", 0o755),
        ("etc/bulkhead/keys", 0o755),
        ("var/empty", 0o755),
        ("var/lib/bulkhead", 0o711),
        ("var/lib/bulkhead/policy", 0o700),
        ("var/lib/bulkhead/keys", 0o700),
        ("var/lib/bulkhead/store", 0o700),
        ("var/lib/bulkhead/apps", 0o700),
        ("var/lib/bulkhead/volumes", 0o711),
        // sshd demands that a chroot and all above it are root's and nobody else can write there.
        ("var/lib/bulkhead/drop", 0o755),
        ("var/log/journal", 0o755),
    ] {
        items.push(Item::Directory { path: path.to_owned(), mode, owner: Owner::Root });
    }
    // Entered and written, never listed.
    items.push(Item::Directory { path: "var/lib/bulkhead/drop/in".to_owned(), mode: 0o300, owner: Owner::Drop });

    let agent_bytes = std::fs::read(agent).map_err(|source| InstallError::File {
        operation: "read the agent's binary",
        path: agent.to_owned(),
        source,
    })?;
    items.push(Item::File { path: AGENT.to_owned(), mode: 0o755, contents: agent_bytes });
    items.push(Item::HardLink { path: GATE.to_owned(), to: AGENT.to_owned() });

    let mut text = |path: &str, mode: u32, contents: String| {
        items.push(Item::File { path: path.to_owned(), mode, contents: contents.into_bytes() });
    };
    let mut identity = serde_json::to_string_pretty(&config.identity()).expect("names always serialise");
    identity.push('\n');
    text(IDENTITY, 0o644, identity);
    let signed = SignedText { text: config.policy.clone(), signatures: config.signatures.clone() };
    text(POLICY, 0o600, format!("{}\n", serde_json::to_string(&signed).expect("text always serialises")));
    // sshd reads these with the account's rights. The keeper writes them anew with a new policy.
    for account in &ACCOUNTS {
        text(&format!("etc/bulkhead/keys/{}", account.name), 0o644, authorized_keys(policy, account.roles));
    }
    text(SSHD_CONFIG, 0o644, sshd::config(version));
    text(NFTABLES, 0o644, include_str!("../../files/nftables.conf").to_owned());
    text(TMPFILES, 0o644, include_str!("../../files/tmpfiles.conf").to_owned());
    for path in ["etc/systemd/journald.conf.d", "etc/tmpfiles.d", UNIT_DIRECTORY] {
        items.push(Item::Directory { path: path.to_owned(), mode: 0o755, owner: Owner::Root });
    }
    let mut text = |path: &str, contents: &str| {
        items.push(Item::File { path: path.to_owned(), mode: 0o644, contents: contents.as_bytes().to_vec() });
    };
    text(JOURNALD, include_str!("../../files/journald.conf"));
    for (name, contents) in UNITS {
        text(&format!("{UNIT_DIRECTORY}/{name}"), contents);
    }
    if tree.exists("usr/lib/systemd/systemd-resolved") || tree.exists("lib/systemd/systemd-resolved") {
        resolver(tree, &mut items)?;
    }
    if tree.exists(SSH_GENERATOR.0) {
        items.push(Item::Directory {
            path: "etc/systemd/system-generators".to_owned(),
            mode: 0o755,
            owner: Owner::Root,
        });
    }
    if tree.exists("usr/bin/cloud-init") {
        // At each boot it would make accounts, keys and an sshd configuration by what the provider's metadata says,
        // which a node cannot ask anyway.
        let contents = b"# Bulkhead: what a node is, its orders say.\n".to_vec();
        items.push(Item::File { path: CLOUD_INIT_OFF.to_owned(), mode: 0o644, contents });
    }
    for (name, contents) in UNITS {
        for target in contents.lines().filter_map(|line| line.strip_prefix("WantedBy=")) {
            let wants = format!("{UNIT_DIRECTORY}/{target}.wants");
            items.push(Item::Directory { path: wants.clone(), mode: 0o755, owner: Owner::Root });
            items.push(Item::Symlink { path: format!("{wants}/{name}"), target: format!("/{UNIT_DIRECTORY}/{name}") });
        }
    }
    Ok(items)
}

/// systemd-resolved without its listeners; `resolv.conf` must then name the servers themselves.
fn resolver(tree: &Tree, items: &mut Vec<Item>) -> Result<(), InstallError> {
    items.push(Item::Directory { path: "etc/systemd/resolved.conf.d".to_owned(), mode: 0o755, owner: Owner::Root });
    items.push(Item::File {
        path: RESOLVED.to_owned(),
        mode: 0o644,
        contents: include_bytes!("../../files/resolved.conf").to_vec(),
    });
    let link = RESOLV_CONF;
    if tree.link_target(link)?.is_some_and(|target| target.ends_with("stub-resolv.conf")) {
        items.push(Item::Symlink { path: link.to_owned(), target: "/run/systemd/resolve/resolv.conf".to_owned() });
    }
    Ok(())
}

/// Masks for the stock services that are installed here.
pub(super) fn masks(tree: &Tree) -> Vec<Item> {
    let units = unwanted(tree).map(|unit| format!("{UNIT_DIRECTORY}/{unit}"));
    let generator = tree.exists(SSH_GENERATOR.0).then(|| SSH_GENERATOR.1.to_owned());
    units.chain(generator).map(|path| Item::Symlink { path, target: "/dev/null".to_owned() }).collect()
}

/// The unwanted services that are installed here.
pub(super) fn unwanted(tree: &Tree) -> impl Iterator<Item = &'static str> {
    UNWANTED_UNITS.into_iter().filter(|unit| {
        ["usr/lib/systemd/system", "lib/systemd/system", UNIT_DIRECTORY, "run/systemd/generator"]
            .iter()
            .any(|directory| tree.exists(&format!("{directory}/{unit}")))
    })
}

/// The accounts' key files below `etc/bulkhead/keys`, and whose keys are in each.
pub fn key_files() -> impl Iterator<Item = (&'static str, &'static [Role])> {
    ACCOUNTS.iter().map(|account| (account.name, account.roles))
}

/// The text of an account's authorized keys: those that the policy gives one of the roles, with nothing allowed but a
/// session.
#[must_use]
pub fn authorized_keys(policy: &Policy, roles: &[Role]) -> String {
    let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    let mut text = format!("# The policy's keys with the role {}. Written by Bulkhead.\n", names.join(" or "));
    for (holder, key) in policy.keys.iter().filter(|(_, key)| roles.iter().any(|role| key.roles.contains(role))) {
        if let Some(key) = bare_key(&key.key) {
            writeln!(text, "restrict {key} {holder}").expect("a String takes all that is written");
        }
    }
    text
}
