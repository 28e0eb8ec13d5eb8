//! The quota of the drop box. File systems of stock machines have theirs switched off, so it is watched: a path unit
//! starts `bulkhead-agent drop-quota` when something in the box changes, which looks once a second and ends when the
//! box is left alone. A box over its quota is emptied, whoever's the files are, and the sessions that write there end.
//!
//! Invariants:
//! - Nothing of it runs on a node whose box nobody writes to.
//! - A file is emptied and removed by its name in the box. No link is followed, and no directory entered.
//! - What was removed has nobody left who could go on writing to it: the sessions are ended again after it has no name.
//!
//! While this runs systemd does not look at the box, so what is written in the moment in which it ends is seen with
//! the next write only.

use crate::{account, keeper::dropbox, state::Paths, systemd};
use bulkhead_wire::DROP_ACCOUNT;
use rustix::fs::{Mode, OFlags};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::Duration,
};

/// A network brings no more than some hundred megabytes in it, and one look at a full box takes some milliseconds.
const PAUSE: Duration = Duration::from_secs(1);
/// Looks at which nothing had changed, after which it is left alone. More than one: to be started anew for each write
/// would cost more than to stay.
const QUIET_LOOKS: u32 = 2;
/// The part of its file system that the box may take: it stands beside the store, which may take half of it.
const PART: u64 = 8;
/// Where that part is less than this: an app with its runtime, and models or data besides, is smaller.
const QUOTA_MIN_BYTES: u64 = 2 << 30;
/// What the box may take of a disk that is nearly full: the change of an app, by which room may be made. It is
/// little enough to fill up nothing.
const FULL_DISK_QUOTA_BYTES: u64 = 64 << 20;
/// A courier leaves a pack for an order, and takes none back: this is far more than are under way at once, and few
/// enough to be looked at in each second.
const FILES_MAX: u64 = 10_000;
/// `st_blocks` counts in these, whatever the file system's are: stat(3type).
const BLOCK_BYTES: u64 = 512;

/// What is in the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Usage {
    files: u64,
    /// On the disk, not by length: a file may have a length beyond any disk's and take nothing.
    bytes: u64,
    /// The newest change of any of them: one that is written over takes no more than before.
    changed: (i64, i64),
}

/// How many bytes the box may take of a file system, given what it takes now.
fn quota_bytes(total: u64, free: u64, used: u64) -> u64 {
    // A part of the disk stays free: a full one keeps a node from accepting even an order that stops something.
    let leaves_some_free = used.saturating_add(free).saturating_sub(total / dropbox::FREE_PART_MIN);
    (total / PART).max(QUOTA_MIN_BYTES).min(leaves_some_free.max(FULL_DISK_QUOTA_BYTES))
}

/// What the box is over, where it is.
fn excess(usage: Usage, total: u64, free: u64) -> Option<String> {
    let quota = quota_bytes(total, free, usage.bytes);
    if usage.bytes > quota {
        return Some(format!("it holds {} MiB and may hold {} MiB", usage.bytes >> 20, quota >> 20));
    }
    (usage.files > FILES_MAX).then(|| format!("it holds more than {FILES_MAX} files"))
}

/// Watches the box until it is left alone. The text is for the journal.
///
/// # Errors
/// The box cannot be looked at.
pub fn run(paths: &Paths) -> Result<String, String> {
    let directory = dropbox::directory(paths);
    let failed = |error: io::Error| format!("the drop box cannot be looked at: {error}");
    let mut last = None;
    let mut quiet = 0;
    while quiet < QUIET_LOOKS {
        let usage = measure(&directory).map_err(failed)?;
        // Of the box itself: it may have a file system of its own.
        let disk = rustix::fs::statvfs(&directory).map_err(|error| failed(error.into()))?;
        if let Some(why) = excess(usage, disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize) {
            systemd::eprintln_bounded(&format!("the drop box is emptied and its sessions are ended: {why}"));
            if let Err(error) = empty(&directory, || account::end_sessions(&[DROP_ACCOUNT].into(), &[].into())) {
                systemd::eprintln_bounded(&format!("not all of the drop box can be removed: {error}"));
            }
        }
        quiet = if last == Some(usage) { quiet + 1 } else { 0 };
        last = Some(usage);
        if quiet < QUIET_LOOKS {
            thread::sleep(PAUSE);
        }
    }
    Ok(String::new())
}

fn measure(directory: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    for entry in fs::read_dir(directory)? {
        // Of the entry itself, whatever it is.
        let metadata = match entry?.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        usage.files += 1;
        usage.bytes = usage.bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
        usage.changed = usage.changed.max((metadata.ctime(), metadata.ctime_nsec()));
        if usage.files > FILES_MAX {
            break;
        }
    }
    Ok(usage)
}

/// Removes all files. Goes on past what cannot be removed, and gives the first such error at the end.
fn empty(directory: &Path, end_sessions: impl Fn()) -> io::Result<()> {
    // First, so that little is written meanwhile.
    end_sessions();
    let mut first = Ok(());
    for entry in fs::read_dir(directory)? {
        let removed = entry.and_then(|entry| {
            if entry.file_type()?.is_dir() {
                return Ok(());
            }
            // The keeper may hold it open, which reads it and would keep its blocks until it has. That it cannot be
            // emptied keeps nothing from being removed.
            truncate(&entry.path()).ok();
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        });
        first = first.and(removed);
    }
    // Whoever came between and opened one of them would go on writing to what nobody sees any more.
    end_sessions();
    first
}

fn truncate(path: &Path) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    // SFTP makes no second name for a file; one that has another is not the box's alone.
    if metadata.is_file() && metadata.nlink() == 1 { file.set_len(0) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, os::unix::fs::FileExt as _};

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    #[test]
    fn how_much_the_box_may_take() {
        for (total, free, used, expected) in [
            // An eighth of a large disk, and two gigabytes of a small one.
            (400 * GIB, 300 * GIB, 0, 50 * GIB),
            (400 * GIB, 300 * GIB, 60 * GIB, 50 * GIB),
            (10 * GIB, 6 * GIB, GIB, 2 * GIB),
            // Others have filled it: what leaves a twentieth free.
            (400 * GIB, 25 * GIB, 0, 5 * GIB),
            (400 * GIB, 20 * GIB, 5 * GIB, 5 * GIB),
            (400 * GIB, 18 * GIB, 5 * GIB, 3 * GIB),
            // Where less is, the change of an app.
            (400 * GIB, GIB, 0, 64 * MIB),
            (400 * GIB, 0, 10 * MIB, 64 * MIB),
            (0, 0, 0, 64 * MIB),
        ] {
            assert_eq!(quota_bytes(total, free, used), expected, "{total} {free} {used}");
        }
    }

    #[test]
    fn what_is_too_much() {
        let check = |files: u64, bytes: u64, total: u64, free: u64, words: Option<&str>| {
            let said = excess(Usage { files, bytes, changed: (0, 0) }, total, free);
            assert_eq!(said.is_some(), words.is_some(), "{files} {bytes}: {said:?}");
            assert!(said.unwrap_or_default().contains(words.unwrap_or_default()), "{files} {bytes}");
        };
        check(0, 0, 0, 0, None);
        check(1, 2 * GIB, 16 * GIB, 10 * GIB, None);
        check(1, 2 * GIB + 512, 16 * GIB, 10 * GIB, Some("may hold 2048 MiB"));
        check(1, 64 * MIB, 16 * GIB, 0, None);
        check(1, 65 * MIB, 16 * GIB, 0, Some("it holds 65 MiB and may hold 64 MiB"));
        check(10_000, 0, 16 * GIB, 10 * GIB, None);
        check(10_001, 0, 16 * GIB, 10 * GIB, Some("more than 10000 files"));
    }

    /// By what is on the disk, and by what is in the box: nothing that a link names.
    #[test]
    fn what_is_measured() {
        let box_ = tempfile::tempdir().unwrap();
        assert_eq!(measure(box_.path()).unwrap(), Usage::default());
        fs::write(box_.path().join("full"), vec![7; 1 << 20]).unwrap();
        let sparse = File::create(box_.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/proc/self/exe", box_.path().join("link")).unwrap();
        let usage = measure(box_.path()).unwrap();
        assert_eq!(usage.files, 3);
        assert!((MIB..4 * MIB).contains(&usage.bytes), "{usage:?}");
        sparse.write_all_at(&[7; 1 << 20], 1 << 39).unwrap();
        let more = measure(box_.path()).unwrap();
        assert!(more.bytes >= 2 * MIB && more != usage, "{more:?}");
    }

    /// Everything goes, what is held open is empty, and nothing outside is touched.
    #[test]
    fn a_box_that_is_emptied() {
        let place = tempfile::tempdir().unwrap();
        let [box_, outside] = ["box", "outside"].map(|name| place.path().join(name));
        fs::create_dir(&box_).unwrap();
        fs::write(&outside, "precious").unwrap();
        fs::write(box_.join("file"), "bytes").unwrap();
        let held = File::options().read(true).open(box_.join("file")).unwrap();
        std::os::unix::fs::symlink(&outside, box_.join("link")).unwrap();
        fs::hard_link(&outside, box_.join("second-name")).unwrap();
        let fifo = box_.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(box_.join("directory")).unwrap();
        let names = || fs::read_dir(&box_).unwrap().count();
        let seen = RefCell::new(Vec::new());
        empty(&box_, || seen.borrow_mut().push(names())).unwrap();
        // Before the first is removed, and after the last.
        assert_eq!(*seen.borrow(), [5, 1]);
        assert_eq!(held.metadata().unwrap().len(), 0);
        assert_eq!(fs::read_to_string(&outside).unwrap(), "precious");
        assert!(box_.join("directory").is_dir());
    }
}
