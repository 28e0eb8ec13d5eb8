//! After a boot: from the last accepted orders to running services, with nobody
//! connected. An app whose state is damaged is named in the journal and keeps no
//! other from starting.

use crate::{
    keeper::{
        carry::{Release, settle_at_boot},
        chain,
        status::find_mounts,
    },
    state::{self, App, Paths},
    systemd,
};

/// Brings every app back. `false` where one could not be.
///
/// # Errors
/// Not even the list of apps, or systemd's version, can be read.
pub fn run(paths: &Paths) -> Result<bool, String> {
    let version = systemd::version().map_err(|error| chain(&error))?;
    let mut all_well = true;
    if let Err(error) = find_mounts(paths) {
        systemd::eprintln_bounded(&format!("how images are mounted here: {error}"));
        all_well = false;
    }
    for app in state::apps(paths).map_err(|error| chain(&error))? {
        if let Err(error) = bring_back(paths, &app, version) {
            systemd::eprintln_bounded(&format!("app `{}`: {error}", app.name()));
            all_well = false;
        }
    }
    Ok(all_well)
}

fn bring_back(paths: &Paths, app: &App, version: u32) -> Result<(), String> {
    // First what runs: that a record cannot be written must not keep services down.
    let settled = settle_at_boot(paths, app).map_err(|error| chain(&error));
    if let Some((number, run)) = app.live_run().map_err(|error| chain(&error))? {
        let release = Release { paths, app, number, run: &run };
        release.prepare(version).map_err(|failure| failure.message)?;
        release.link().map_err(|error| chain(&error))?;
        let desired = app.desired().map_err(|error| chain(&error))?;
        release.start_desired(&desired).map_err(|failure| failure.message)?;
    }
    settled
}
