//! Images in the file system: mounted for those who are about to use them,
//! unmounted when nobody does.
//!
//! Whoever mounts one to use it holds [`hold`] until what uses it is recorded;
//! [`sweep`] unmounts only while nobody does.

use super::{OrFail, failure, logs, release};
use crate::{
    durable::FileError,
    state::{self, Paths},
    systemd, units,
};
use bulkhead_core::ImageId;
use bulkhead_wire::{Failure, FailureKind};
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
};

/// Lines of an image unit's journal that say why it failed.
const MOUNT_LOG_LINES: u32 = 5;

/// No image is unmounted while this lives.
#[derive(Debug)]
pub struct Hold {
    _file: File,
}

fn lock(paths: &Paths, operation: FlockOperation) -> Result<Option<Hold>, FileError> {
    let path = paths.run.join("images.lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(FileError::io("open", &path))?;
    match flock(&file, operation) {
        Ok(()) => Ok(Some(Hold { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(FileError::io("lock", &path)(error.into())),
    }
}

/// Keeps images from being unmounted.
///
/// # Errors
/// The lock's file cannot be used.
pub fn hold(paths: &Paths) -> Result<Hold, Box<Failure>> {
    let held = lock(paths, FlockOperation::LockShared).or_fail()?;
    Ok(held.expect("this waits until it has the lock"))
}

/// Begins to mount an image through its unit, which [`mount`] then waits for. `None` where it cannot be begun.
#[must_use]
pub fn begin_mount(_hold: &Hold, image: ImageId) -> Option<systemd::Job> {
    systemd::begin(&["start", &units::image_unit(image)]).ok()
}

/// Mounts an image through its unit. Done before an order is accepted: what can
/// go wrong here is the node's fault, not the release's.
///
/// # Errors
/// What the unit's journal says, such as a full disk.
pub fn mount(_hold: &Hold, image: ImageId, begun: Option<systemd::Job>) -> Result<(), Box<Failure>> {
    let unit = units::image_unit(image);
    // One that was begun before all was here may have failed for that.
    if begun.is_some_and(|job| job.wait().is_ok()) || systemd::systemctl(&["start", &unit]).is_ok() {
        return Ok(());
    }
    let said = logs::of_unit(&unit, MOUNT_LOG_LINES);
    let is_full = said.contains("is full") || said.contains("No space left");
    let mut failure = failure(
        FailureKind::Node,
        if is_full { "disk-full" } else { "mount" },
        format!(
            "image {} cannot be mounted: {}",
            image.short(),
            if said.is_empty() { "its unit failed" } else { &said }
        ),
    );
    failure.hint = is_full.then(|| "make room on the node's disk, or remove apps it no longer needs".into());
    Err(failure)
}

/// Unmounts what no release uses that is live or of which anything is there.
/// Where somebody is about to use an image, it is left to the next time.
///
/// # Errors
/// What is used cannot be found out, or an image not be unmounted. A mounted image more costs nothing.
pub fn sweep(paths: &Paths) -> Result<(), Box<Failure>> {
    let mounted = mounted(paths).or_fail()?;
    if mounted.is_empty() {
        return Ok(());
    }
    let Some(_alone) = lock(paths, FlockOperation::NonBlockingLockExclusive).or_fail()? else { return Ok(()) };
    let used = used(paths).or_fail()?;
    let units: Vec<String> = mounted.difference(&used).map(|image| units::image_unit(*image)).collect();
    release::stop_units(paths, &units)
}

/// What is mounted, and so may be being read.
///
/// # Errors
/// The directory of mounts cannot be read.
pub fn mounted(paths: &Paths) -> Result<BTreeSet<ImageId>, FileError> {
    let directory = paths.run.join("images");
    match fs::read_dir(&directory) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(FileError::io("list", &directory)(error)),
    }
}

fn used(paths: &Paths) -> Result<BTreeSet<ImageId>, FileError> {
    let mut used = BTreeSet::new();
    for app in state::apps(paths)? {
        used.extend(app.live_run()?.map(|(_, run)| run.image));
        let there: BTreeSet<u64> = release::found(paths, app.name())?.into_iter().map(|unit| unit.number).collect();
        for number in there {
            used.extend(app.run(number)?.map(|run| run.image));
        }
    }
    Ok(used)
}
