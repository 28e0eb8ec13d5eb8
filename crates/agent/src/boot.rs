//! After a boot: from the last accepted orders to running services, with nobody
//! connected. An app whose state is damaged is named in the journal and keeps no
//! other from starting. What the boot before left of caches goes.

use crate::{
    install,
    keeper::{bring, chain, secrets::make_host_key, settle::settle_all, status::find_mounts},
    papers,
    state::Paths,
    systemd,
};
use bulkhead_store::Store;
use std::fs;

/// Brings every app back. `false` where one could not be.
///
/// # Errors
/// Not even the list of apps can be read.
pub fn run(paths: &Paths) -> Result<bool, String> {
    if let Ok(volumes) = fs::read_to_string(paths.discharging()) {
        // A power cut or an error broke it off.
        match install::discharge(paths, volumes.trim() == "delete") {
            Err(error) if !paths.discharging().exists() => {
                // It stays a node, and starts what it has to run like any other.
                systemd::eprintln_bounded(&format!("the node is not given back: {error}"));
            }
            done => return done.map(|_| true),
        }
    }
    let mut all_well = true;
    if let Err(error) = find_mounts(paths) {
        systemd::eprintln_bounded(&format!("how images are mounted here: {error}"));
        all_well = false;
    }
    // A crash may have come between a new policy and what follows from it; no session outlives a boot, but this may come
    // after the first of the new one's.
    if let Err(error) = papers::settle(paths, |_| bring::end_sessions(None)) {
        systemd::eprintln_bounded(&format!("what follows from the policy: {}", chain(&error)));
        all_well = false;
    }
    if let Err(error) = make_host_key() {
        systemd::eprintln_bounded(&format!("secrets cannot be kept here: {error}"));
        all_well = false;
    }
    // First, because what has to be mounted needs the room.
    if let Err(error) = Store::open(&paths.store()).and_then(|store| store.remove_old_metadata()) {
        systemd::eprintln_bounded(&format!("metadata of the boot before: {}", chain(&error)));
    }
    // The box may have been over its quota when the machine went down; a write is what starts this otherwise.
    systemd::systemctl(&["start", "--no-block", "bulkhead-drop.service"]).ok();
    Ok(settle_all(paths).map_err(|error| chain(&error))? && all_well)
}
