//! The SFTP drop box: packs that come by any SFTP client, before the order that names them.
//!
//! A file there belongs to whoever brought it and may change at any moment: it is
//! opened once, read once while its objects are hashed, and never trusted before.
//! What is taken from it is what a verified order's image names, under its digest.
//!
//! [`crate::quota`] bounds what is there at any time. So that nobody has to clean up
//! within that, every order that brings an image first removes what has lain there
//! for a day, and, where the disk is nearly full, everything but the pack that it
//! names itself.

use super::{OrFail as _, chain, disk, failure};
use crate::{state::Paths, systemd};
use bulkhead_core::FileDigest;
use bulkhead_store::{StoreError, store::Push};
use bulkhead_wire::{Failure, FailureKind};
use rustix::fs::{Mode, OFlags};
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// After so long nobody is coming for a file any more. By its inode's change, which its owner cannot set.
const AGE_MAX: Duration = Duration::from_secs(86_400);
/// The disk is nearly full where less than one part in so many is free: what root keeps for itself on
/// ext4 is as much again.
pub(crate) const FREE_PART_MIN: u64 = 20;
/// Files that one order looks at; the next one goes on.
const FILES_MAX: usize = 10_000;

/// Where files come.
pub(crate) fn directory(paths: &Paths) -> PathBuf {
    paths.state.join("drop/in")
}

/// Removes what nobody is coming for. A box that cannot be cleaned is no reason to refuse an order.
pub(super) fn sweep(paths: &Paths, named: Option<&str>) {
    let is_nearly_full = disk(paths).is_ok_and(|(total, free)| free < total / FREE_PART_MIN);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let swept = fs::read_dir(directory(paths)).and_then(|entries| sweep_entries(entries, named, now, is_nearly_full));
    if let Err(error) = swept {
        systemd::eprintln_bounded(&format!("the drop box cannot be cleaned: {error}"));
    }
}

/// Goes on past what it cannot look at or remove, and gives the first such error at the end.
fn sweep_entries(
    entries: impl Iterator<Item = io::Result<fs::DirEntry>>,
    named: Option<&str>,
    now: Duration,
    is_nearly_full: bool,
) -> io::Result<()> {
    let mut first = Ok(());
    for entry in entries.take(FILES_MAX) {
        let swept = entry.and_then(|entry| sweep_entry(&entry, named, now, is_nearly_full));
        first = first.and(swept);
    }
    first
}

fn sweep_entry(entry: &fs::DirEntry, named: Option<&str>, now: Duration, is_nearly_full: bool) -> io::Result<()> {
    if named.is_some_and(|named| entry.file_name() == named) {
        return Ok(());
    }
    let removed = || -> io::Result<()> {
        // Of the entry itself, whatever it is: no link is followed.
        let metadata = entry.metadata()?;
        let changed = Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or(0));
        if !metadata.is_dir() && (is_nearly_full || now.saturating_sub(changed) > AGE_MAX) {
            fs::remove_file(entry.path())?;
        }
        Ok(())
    };
    match removed() {
        // Whoever brought it took it away meanwhile, or another keeper did.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes in a pack.
pub(super) fn ingest(
    paths: &Paths,
    push: &Push<'_>,
    name: &str,
    wanted: &HashMap<FileDigest, u64>,
) -> Result<(), Box<Failure>> {
    let refuse = |rule: &str, what: String| {
        failure(FailureKind::Request, rule, format!("pack `{name}` in the drop box: {what}"))
    };
    let is_plain = (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !is_plain {
        return Err(failure(
            FailureKind::Request,
            "drop-box",
            "a pack's name in the drop box is letters, digits and . _ -",
        ));
    }
    let directory = directory(paths);
    let opened = open_regular(&directory, name);
    if wanted.is_empty() && opened.is_err() {
        // Nothing is missed: an order that was sent before has taken it in.
        return Ok(());
    }
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => refuse("drop-box", "it is not there".into()),
        _ => refuse("drop-box", error.to_string()),
    })?;
    let ingested = if wanted.is_empty() { Ok(()) } else { push.ingest(&mut file, wanted).map(drop) };
    // It has been read: what it held of this image is in the store, and a bad one is of no use.
    let removed = fs::remove_file(directory.join(name));
    match ingested {
        Err(error @ StoreError::Pack(_)) => return Err(refuse("pack", chain(&error))),
        other => other.or_fail()?,
    }
    match removed {
        // Another order that names it has read it too, or the box was over its quota.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| refuse("drop-box", format!("cannot be removed: {error}"))),
    }
}

fn open_regular(directory: &Path, name: &str) -> io::Result<File> {
    // Without waiting: a FIFO that nobody writes to must not hold the keeper up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(directory.join(name), flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_swept() {
        let box_ = tempfile::tempdir().unwrap();
        let sweep_directory = |path: &Path, named: Option<&str>, now: Duration, is_nearly_full: bool| {
            sweep_entries(fs::read_dir(path).unwrap(), named, now, is_nearly_full)
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let fill = || {
            for name in ["named", "other"] {
                fs::write(box_.path().join(name), name).unwrap();
            }
            std::os::unix::fs::symlink("/etc", box_.path().join("link")).ok();
        };
        let names = || {
            let mut names: Vec<String> = fs::read_dir(box_.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        fill();
        sweep_directory(box_.path(), Some("named"), now + AGE_MAX / 2, false).unwrap();
        assert_eq!(names(), ["link", "named", "other"]);
        // Whoever brought it may say that it is from next year: that is not what counts.
        let file = File::options().write(true).open(box_.path().join("other")).unwrap();
        file.set_modified(UNIX_EPOCH + now + AGE_MAX * 365).unwrap();
        sweep_directory(box_.path(), Some("named"), now + AGE_MAX * 2, false).unwrap();
        assert_eq!(names(), ["named"]);
        fill();
        sweep_directory(box_.path(), Some("named"), now, true).unwrap();
        assert_eq!(names(), ["named"]);
        sweep_directory(box_.path(), None, now, true).unwrap();
        assert!(names().is_empty());
        assert!(Path::new("/etc").is_dir());
    }

    /// What comes after one that cannot be looked at is swept all the same.
    #[test]
    fn one_that_cannot_be_looked_at_ends_no_sweep() {
        let box_ = tempfile::tempdir().unwrap();
        let names = ["a", "b", "gone", "z"];
        names.iter().for_each(|name| fs::write(box_.path().join(name), name).unwrap());
        let mut entries: Vec<io::Result<fs::DirEntry>> = fs::read_dir(box_.path()).unwrap().collect();
        entries.insert(0, Err(io::Error::other("a bad sector")));
        entries.insert(3, Err(io::Error::other("another")));
        // Listed, and taken away by its owner before it is looked at.
        fs::remove_file(box_.path().join("gone")).unwrap();
        let error = sweep_entries(entries.into_iter(), None, Duration::ZERO, true).unwrap_err();
        assert_eq!(error.to_string(), "a bad sector");
        assert_eq!(fs::read_dir(box_.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_opened() {
        let box_ = tempfile::tempdir().unwrap();
        fs::write(box_.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", box_.path().join("link")).unwrap();
        let fifo = box_.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(open_regular(box_.path(), "file").is_ok());
        for bad in ["link", "fifo", "absent", "."] {
            assert!(open_regular(box_.path(), bad).is_err(), "{bad}");
        }
    }
}
