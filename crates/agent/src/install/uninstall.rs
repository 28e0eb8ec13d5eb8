//! Taking a node apart: what [`super::install`] did, undone.
//!
//! Invariants:
//! - The stock SSH server answers before the node's own is taken away for good;
//!   where it does not start, the node's own comes back and nothing is removed.
//! - What says that the machine is a node, and what it was before, goes last: an
//!   interrupted run is finished by the next.
//! - Volumes stay unless their removal was asked for.

use super::{
    InstallError,
    before::{self, Before},
    layout::{self, ACCOUNTS, CLOUD_INIT_OFF, JOURNALD, RESOLV_CONF, RESOLVED, TMPFILES, UNIT_DIRECTORY, UNITS},
    live::{self, SYSTEMCTL},
    tree::Tree,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, path::Path};

/// Where units of releases are.
const RELEASES: &str = "run/systemd/system";
const STATE: &str = "var/lib/bulkhead";

/// What to take away besides what always goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UninstallOptions {
    /// The volumes of all apps, for ever.
    pub volumes: bool,
}

/// What was undone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Removal {
    /// Each change, in the order it was made. Empty where there was nothing of a node.
    pub changes: Vec<String>,
    /// What somebody should know: what stays.
    pub notes: Vec<String>,
}

/// Undoes an installation at `root`: the running system's where it is `/`.
///
/// On a running system it stops every unit whose name begins with `bulkhead-` but the one that it runs in, which is
/// `bulkhead-discharge@.service` for a request from afar. May be repeated.
///
/// # Errors
/// What could not be done. What was undone before stays so, and a repetition goes on from there.
pub fn uninstall(root: &Path, options: UninstallOptions) -> Result<Removal, InstallError> {
    let mut tree = Tree::open(root)?;
    let before = Before::read(&tree)?;
    let traces = [layout::IDENTITY, layout::AGENT, before::PATH, "etc/systemd/system/bulkhead-sshd.service"];
    if !traces.iter().any(|path| tree.exists(path)) {
        return Ok(Removal::default());
    }
    let before = before.unwrap_or_default();
    let mut notes = Vec::new();
    if tree.is_live() {
        stop_apps(&mut tree)?;
        live::give_back(&mut tree, &before)?;
        stop_the_rest(&mut tree)?;
    } else {
        before.unmask(&mut tree)?;
    }

    for (name, text) in UNITS {
        for target in text.lines().filter_map(|line| line.strip_prefix("WantedBy=")) {
            tree.take_away(&format!("{UNIT_DIRECTORY}/{target}.wants/{name}"))?;
        }
        tree.take_away(&format!("{UNIT_DIRECTORY}/{name}"))?;
    }
    for path in [JOURNALD, TMPFILES, RESOLVED] {
        tree.take_away(path)?;
    }
    for path in [RESOLV_CONF, CLOUD_INIT_OFF] {
        before.give_back(&mut tree, path)?;
    }
    if tree.is_live() {
        tree.run(SYSTEMCTL, &["daemon-reload"])?;
        for (path, service) in [(JOURNALD, "systemd-journald.service"), (RESOLVED, "systemd-resolved.service")] {
            if tree.wrote(path) {
                tree.run(SYSTEMCTL, &["try-restart", service])?;
            }
        }
        // What failed earlier is no news any more, and there may be none.
        tree.run_any(SYSTEMCTL, &["reset-failed", "bulkhead-*"])?;
    }
    for account in &ACCOUNTS {
        tree.remove_account(account.name)?;
    }
    // When a timer of ours last ran.
    tree.take_away("var/lib/systemd/timers/stamp-bulkhead-scrub.timer")?;
    tree.take_away("run/bulkhead")?;
    tree.take_away("usr/lib/bulkhead")?;
    notes.extend(state(&mut tree, options)?);
    tree.take_away("etc/bulkhead")?;
    for directory in before.made() {
        tree.take_away_if_empty(directory)?;
    }
    tree.take_away(before::PATH)?;
    tree.take_away_if_empty(STATE)?;
    notes.push("packages that the adoption installed stay, and so does what the journal holds".to_owned());
    Ok(Removal { changes: tree.into_changes(), notes })
}

/// Stops what runs of apps and unmounts their images.
fn stop_apps(tree: &mut Tree) -> Result<(), InstallError> {
    let own = own_unit(tree)?;
    let is_access = |unit: &str| {
        unit.starts_with("bulkhead-sshd.")
            || unit.starts_with("bulkhead-nftables.")
            || unit.starts_with("bulkhead-keeper")
            || unit.starts_with("bulkhead-adoption.")
    };
    let units = loaded(tree)?;
    let (images, others): (Vec<_>, Vec<_>) = units
        .iter()
        .map(String::as_str)
        .filter(|unit| !is_access(unit) && Some(*unit) != own.as_deref())
        .partition(|unit| unit.starts_with("bulkhead-image@"));
    // Timers and the boot first, or they would start again what stops.
    for units in [others, images] {
        if !units.is_empty() {
            tree.run(SYSTEMCTL, &[&["stop"], units.as_slice()].concat())?;
            tree.changed(format!("stopped {}", units.join(", ")));
        }
    }
    for point in mounts_below_run(tree)? {
        tree.run("/usr/bin/umount", &[&point])?;
        tree.changed(format!("unmounted {point}"));
    }
    for name in tree.names(RELEASES)? {
        if name.starts_with("bulkhead-") {
            tree.take_away(&format!("{RELEASES}/{name}"))?;
        }
    }
    Ok(())
}

/// The keeper and the adoption's timer; whoever has this run in one of them is not ended by it.
fn stop_the_rest(tree: &mut Tree) -> Result<(), InstallError> {
    let own = own_unit(tree)?;
    let units = loaded(tree)?;
    let units: Vec<&str> = units.iter().map(String::as_str).filter(|unit| Some(*unit) != own.as_deref()).collect();
    if !units.is_empty() {
        tree.run(SYSTEMCTL, &[&["stop"], units.as_slice()].concat())?;
        tree.changed(format!("stopped {}", units.join(", ")));
    }
    Ok(())
}

/// The units of Bulkhead that systemd has loaded and that are not over.
fn loaded(tree: &Tree) -> Result<BTreeSet<String>, InstallError> {
    let text = tree.run(
        SYSTEMCTL,
        &["list-units", "--plain", "--no-legend", "--state=active,activating,reloading,deactivating", "bulkhead-*"],
    )?;
    // A slice ends with what is in it.
    let units = text.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| !name.ends_with(".slice"));
    Ok(units.map(str::to_owned).collect())
}

/// The unit that this process runs in.
fn own_unit(tree: &Tree) -> Result<Option<String>, InstallError> {
    let groups = tree.read("proc/self/cgroup")?.unwrap_or_default();
    let text = String::from_utf8_lossy(&groups);
    Ok(unit_of(&text))
}

/// The service in a process's list of control groups. Beside systemd's own hierarchy there may be others, whose groups
/// are no units.
fn unit_of(groups: &str) -> Option<String> {
    let mut names = groups.lines().filter_map(|line| line.rsplit('/').next());
    names.rfind(|name| name.ends_with(".service")).map(str::to_owned)
}

/// What is mounted below `/run/bulkhead`, the deepest first: proc_pid_mountinfo(5), field 5.
fn mounts_below_run(tree: &Tree) -> Result<Vec<String>, InstallError> {
    let table = tree.read("proc/self/mountinfo")?.unwrap_or_default();
    let text = String::from_utf8_lossy(&table);
    let points =
        text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| path.starts_with("/run/bulkhead/"));
    let mut points: Vec<String> = points.map(str::to_owned).collect();
    points.sort();
    points.reverse();
    Ok(points)
}

/// Removes the node's state; what was before is kept to the end. Gives notes on what stays.
fn state(tree: &mut Tree, options: UninstallOptions) -> Result<Vec<String>, InstallError> {
    let mut notes = Vec::new();
    for name in tree.names(STATE)? {
        let path = format!("{STATE}/{name}");
        if path == before::PATH {
            continue;
        }
        if name == "volumes" && !options.volumes {
            let apps = tree.names(&path)?;
            if !apps.is_empty() {
                notes.push(format!("volumes of {} stay in /{path}", apps.join(", ")));
                continue;
            }
        }
        tree.take_away(&path)?;
    }
    tree.take_away("var/lib/bulkhead-incoming")?;
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{layout::Item, tree::Was};
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn the_unit_that_this_runs_in() {
        for (groups, unit) in [
            ("0::/system.slice/bulkhead-adoption.service\n", Some("bulkhead-adoption.service")),
            ("12:pids:/machine\n1:name=systemd:/machine\n0::/system.slice/release.service\n", Some("release.service")),
            ("0::/user.slice/user-0.slice/session-3.scope\n", None),
            ("0::/\n", None),
        ] {
            assert_eq!(unit_of(groups).as_deref(), unit, "{groups}");
        }
    }

    /// A tree as an installation leaves it, as far as needs no program of the tree.
    fn node(root: &Path, with_volume: bool) {
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("it has a parent")).expect("it can be made");
            fs::write(path, text).expect("it can be written");
        };
        let stock = "etc/systemd/system/ssh.service";
        write("usr/lib/systemd/system/ssh.service", "[Service]\n");
        write("usr/lib/systemd/system/rpcbind.service", "[Service]\n");
        write(stock, "[Service]\n# an administrator's own\n");
        fs::create_dir_all(root.join("etc/systemd/system")).expect("it can be made");
        symlink("/usr/lib/systemd/system/ssh.service", root.join("etc/systemd/system/sshd.service")).expect("a link");
        symlink("/dev/null", root.join("etc/systemd/system/rpcbind.service")).expect("a link");
        symlink("../run/systemd/resolve/stub-resolv.conf", root.join(RESOLV_CONF)).expect("a link");
        write("etc/passwd", "root:x:0:0::/root:/bin/sh\n");

        let mut tree = Tree::open(root).expect("it is there");
        let items = [Item::Directory {
            path: "usr/lib/bulkhead".into(),
            mode: 0o755,
            owner: crate::install::layout::Owner::Root,
        }];
        Before::record(&mut tree, &items, false).expect("it can be recorded");
        for item in layout::masks(&tree) {
            tree.apply(&item).expect("it can be masked");
        }
        for (name, text) in UNITS {
            write(&format!("{UNIT_DIRECTORY}/{name}"), text);
        }
        write("etc/systemd/system/multi-user.target.wants/bulkhead-sshd.service", "");
        for path in [JOURNALD, TMPFILES, RESOLVED, CLOUD_INIT_OFF, layout::AGENT, layout::IDENTITY, layout::POLICY] {
            write(path, "ours");
        }
        tree.apply(&Item::Symlink { path: RESOLV_CONF.into(), target: "/run/systemd/resolve/resolv.conf".into() })
            .expect("it can be linked");
        if with_volume {
            write("var/lib/bulkhead/volumes/notes/data/file", "precious");
        }
    }

    /// Every path with what it is, so that trees can be compared.
    fn contents(tree: &Tree, relative: &str, into: &mut Vec<(String, Was)>) {
        for name in tree.names(relative).expect("it can be listed") {
            let path = if relative.is_empty() { name } else { format!("{relative}/{name}") };
            if tree.path(&path).is_dir() && !tree.path(&path).is_symlink() {
                contents(tree, &path, into);
            } else {
                into.push((path.clone(), tree.what_is(&path).expect("it can be examined")));
            }
        }
    }

    #[test]
    fn a_node_is_the_stock_system_again() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give files to root.
            return;
        }
        for (with_volume, options, kept) in [
            (false, UninstallOptions::default(), false),
            (true, UninstallOptions::default(), true),
            (true, UninstallOptions { volumes: true }, false),
        ] {
            let directory = tempfile::tempdir().expect("a directory can be made");
            node(directory.path(), with_volume);
            let removal = uninstall(directory.path(), options).expect("it can be undone");
            assert!(!removal.changes.is_empty());
            assert_eq!(removal.notes.iter().any(|note| note.contains("volumes of notes")), kept, "{removal:?}");
            let mut left = Vec::new();
            contents(&Tree::open(directory.path()).expect("it is there"), "", &mut left);
            let names: Vec<&str> = left.iter().map(|(path, _)| path.as_str()).collect();
            let mut wanted = vec![
                "etc/passwd",
                "etc/resolv.conf",
                "etc/systemd/system/rpcbind.service",
                "etc/systemd/system/ssh.service",
                "etc/systemd/system/sshd.service",
                "usr/lib/systemd/system/rpcbind.service",
                "usr/lib/systemd/system/ssh.service",
            ];
            if kept {
                wanted.push("var/lib/bulkhead/volumes/notes/data/file");
            }
            assert_eq!(names, wanted);
            let was = |path: &str| left.iter().find(|(known, _)| known == path).map(|(_, was)| was.clone());
            assert_eq!(was(RESOLV_CONF), Some(Was::Link("../run/systemd/resolve/stub-resolv.conf".into())));
            // What an administrator had masked or written stays masked and written.
            assert_eq!(was("etc/systemd/system/rpcbind.service"), Some(Was::Link("/dev/null".into())));
            let Some(Was::File { contents, .. }) = was("etc/systemd/system/ssh.service") else { panic!("{left:?}") };
            assert!(contents.ends_with(b"own\n"));
            // A second time there is nothing of a node.
            assert_eq!(uninstall(directory.path(), options).expect("it can be looked at"), Removal::default());
        }
    }
}
