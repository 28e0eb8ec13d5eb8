//! The dead man's switch of an adoption: whoever adopts a machine over its
//! stock SSH server may find the new one shut, by a key, a route or a firewall
//! that they did not know of, and would have locked themselves out.
//!
//! ```text
//! armed      /var/lib/bulkhead/adoption-pending is there, bulkhead-adoption.timer runs
//! confirmed  the file is gone: a request came through the new server to the keeper
//! reverted   the timer ran out: the machine is what it was before
//! ```
//!
//! The file is on disk before the stock server stops, and the timer is started
//! again at a boot while it is there. Who removes the file, by one `unlink` or one
//! `rename`, has decided: the keeper by a request, or the timer.

use super::{
    InstallError, UninstallOptions,
    before::Before,
    layout::{Item, TRIAL},
    live::{self, SYSTEMCTL},
    tree::Tree,
    uninstall,
};
use crate::{
    durable::{self, FileError},
    state::Paths,
};
use std::{fs, io, path::Path};

const TIMER: &str = "bulkhead-adoption.timer";

/// Arms the switch; systemd knows the timer by then.
pub(super) fn arm(tree: &mut Tree) -> Result<(), InstallError> {
    tree.apply(&Item::File { path: TRIAL.to_owned(), mode: 0o600, contents: Vec::new() })?;
    // A second attempt has the whole time again.
    tree.run(SYSTEMCTL, &["restart", TIMER])?;
    tree.changed(format!("started {TIMER}: without a request within it the stock SSH server comes back"));
    Ok(())
}

/// Called by the keeper when a request reached it, which proves that the new SSH server lets couriers in.
///
/// # Errors
/// The file cannot be removed.
pub fn confirm(paths: &Paths) -> Result<(), FileError> {
    durable::remove(&paths.state.join("adoption-pending"))
}

/// `bulkhead-agent revert`, started by the timer: gives the stock SSH server back, and where the node has no app yet,
/// takes everything else away too.
///
/// # Errors
/// A sentence for the journal.
pub fn revert(root: &Path) -> Result<String, String> {
    let paths = Paths::new(root);
    let pending = paths.state.join("adoption-pending");
    match fs::rename(&pending, paths.state.join("adoption-reverted")) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok("the adoption was confirmed".to_owned()),
        Err(error) => return Err(format!("cannot rename {}: {error}", pending.display())),
    }
    let has_apps = fs::read_dir(paths.state.join("apps")).is_ok_and(|mut entries| entries.next().is_some());
    let changes = if has_apps {
        let mut tree = Tree::open(root).map_err(|error| super::chain(&error))?;
        let result = Before::read(&tree).and_then(|before| live::give_back(&mut tree, &before.unwrap_or_default()));
        result.map_err(|error| super::chain(&error))?;
        tree.into_changes()
    } else {
        uninstall(root, UninstallOptions::default()).map_err(|error| super::chain(&error))?.changes
    };
    Ok(changes.join("\n"))
}
