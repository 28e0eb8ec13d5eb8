//! What a machine was before it became a node: written once, before anything
//! of it is changed, and given back when it stops being one.

use super::{
    InstallError,
    layout::{CLOUD_INIT_OFF, Item, RESOLV_CONF, UNIT_DIRECTORY, masks, unwanted},
    live::SYSTEMCTL,
    tree::{Tree, Was},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Where it is kept.
pub(super) const PATH: &str = "var/lib/bulkhead/before.json";

/// What was before.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Before {
    /// What stood where something else stands now, by path relative to the root.
    replaced: BTreeMap<String, Was>,
    /// Units that ran and were stopped.
    running: BTreeSet<String>,
    /// Directories that were made.
    made: BTreeSet<String>,
}

impl Before {
    /// What was recorded; `None` where nothing was.
    pub(super) fn read(tree: &Tree) -> Result<Option<Self>, InstallError> {
        let Some(bytes) = tree.read(PATH)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| InstallError::Unreadable { path: tree.path(PATH), what: error.to_string() })
    }

    /// Records what is about to be changed, beside what was recorded earlier. `is_node` says that an earlier
    /// installation, which recorded nothing, may have made what is here.
    pub(super) fn record(tree: &mut Tree, items: &[Item], is_node: bool) -> Result<(), InstallError> {
        let known = Self::read(tree)?;
        let ours_already = is_node && known.is_none();
        let mut before = known.unwrap_or_default();
        let replaced = masks(tree).into_iter().map(|item| item.path().to_owned());
        for path in replaced.chain([RESOLV_CONF, CLOUD_INIT_OFF].map(str::to_owned)) {
            if before.replaced.contains_key(&path) {
                continue;
            }
            let was = if ours_already { Was::Absent } else { tree.what_is(&path)? };
            before.replaced.insert(path, was);
        }
        for item in items {
            if let Item::Directory { path, .. } = item
                && !ours_already
                && !tree.exists(path)
            {
                before.made.insert(path.clone());
            }
        }
        if tree.is_live() {
            for unit in unwanted(tree).collect::<Vec<_>>() {
                if tree.run_any(SYSTEMCTL, &["is-active", "--quiet", unit])?.0 {
                    before.running.insert(unit.to_owned());
                }
            }
        }
        let contents = serde_json::to_vec_pretty(&before).expect("names and text always serialise");
        tree.make_directory("var/lib/bulkhead", 0o711)?;
        tree.apply(&Item::File { path: PATH.to_owned(), mode: 0o600, contents })
    }

    /// Puts back what stood in the way of stock units: the masks go.
    pub(super) fn unmask(&self, tree: &mut Tree) -> Result<(), InstallError> {
        for item in masks(tree) {
            self.give_back(tree, item.path())?;
        }
        Ok(())
    }

    /// Puts one path back to what it was. A mask of which nothing was recorded goes.
    pub(super) fn give_back(&self, tree: &mut Tree, path: &str) -> Result<(), InstallError> {
        let is_mask = tree.link_target(path)?.is_some_and(|target| target.as_os_str() == "/dev/null");
        match self.replaced.get(path) {
            Some(was) => tree.give_back(path, was),
            None if is_mask => tree.give_back(path, &Was::Absent),
            None => Ok(()),
        }
    }

    /// The stock units that ran.
    pub(super) fn running(&self) -> impl Iterator<Item = &str> {
        self.running.iter().map(String::as_str)
    }

    /// The directories that were made, the deepest first.
    pub(super) fn made(&self) -> impl Iterator<Item = &str> {
        self.made.iter().rev().map(String::as_str)
    }

    /// The SSH units to start so that the machine can be reached as it was.
    pub(super) fn ssh_units(&self, tree: &Tree) -> Vec<String> {
        const SSH: [&str; 4] = ["ssh.socket", "ssh.service", "sshd.socket", "sshd.service"];
        let there = |unit: &str| {
            ["usr/lib/systemd/system", "lib/systemd/system", UNIT_DIRECTORY]
                .iter()
                .any(|directory| tree.exists(&format!("{directory}/{unit}")))
        };
        let ran: Vec<String> = SSH
            .iter()
            .filter(|unit| self.running.contains(**unit) && there(unit))
            .map(|unit| (*unit).to_owned())
            .collect();
        match ran.is_empty() {
            false => ran,
            // Nobody saw it run; a machine without any SSH server could not be reached any more.
            true => SSH[1..].iter().find(|unit| there(unit)).map(|unit| (*unit).to_owned()).into_iter().collect(),
        }
    }
}
