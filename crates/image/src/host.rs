//! The few things that differ between the hosts an image can be built on.

use std::{fs::Metadata, path::Path};

/// What a file system says about a file's state. Two equal stamps, the later one
/// not racy (see `scan`), mean equal contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) size_bytes: u64,
    pub(crate) modified_ns: i64,
    /// Time of the last change of the inode; unlike the above no program can set it. 0 where there is none.
    pub(crate) changed_ns: i64,
    /// 0 where there is none.
    pub(crate) inode: u64,
}

/// What is at a path that an image cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(unix), expect(dead_code, reason = "only Unix tells them apart"))]
pub(crate) enum Special {
    Socket,
    Fifo,
    Device,
    Other,
}

impl Special {
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Socket => "a socket",
            Self::Fifo => "a FIFO",
            Self::Device => "a device",
            Self::Other => "neither a file, a folder nor a link",
        }
    }
}

#[cfg(unix)]
mod imp {
    use super::{Metadata, Path, Special, Stamp};
    use std::{
        ffi::OsStr,
        os::unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _},
        },
    };

    pub(crate) fn stamp(metadata: &Metadata) -> Stamp {
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Stamp {
            size_bytes: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    /// Whether its owner may run it; `None` where the host cannot say.
    pub(crate) fn is_executable(metadata: &Metadata) -> Option<bool> {
        Some(metadata.mode() & 0o100 != 0)
    }

    pub(crate) fn is_setuid(metadata: &Metadata) -> bool {
        metadata.mode() & 0o6000 != 0
    }

    pub(crate) fn special(metadata: &Metadata) -> Special {
        let kind = metadata.file_type();
        if kind.is_socket() {
            Special::Socket
        } else if kind.is_fifo() {
            Special::Fifo
        } else if kind.is_block_device() || kind.is_char_device() {
            Special::Device
        } else {
            Special::Other
        }
    }

    /// A name as the bytes it has on Linux.
    pub(crate) fn name_bytes(name: &OsStr) -> Option<Vec<u8>> {
        Some(name.as_bytes().to_vec())
    }

    /// A link's target as the bytes it has on Linux.
    pub(crate) fn target_bytes(target: &Path) -> Option<Vec<u8>> {
        Some(target.as_os_str().as_bytes().to_vec())
    }
}

#[cfg(not(unix))]
mod imp {
    use super::{Metadata, Path, Special, Stamp};
    use std::{ffi::OsStr, time::UNIX_EPOCH};

    pub(crate) fn stamp(metadata: &Metadata) -> Stamp {
        let modified_ns = metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .and_then(|since| i64::try_from(since.as_nanos()).ok())
            .unwrap_or(i64::MAX);
        Stamp { size_bytes: metadata.len(), modified_ns, changed_ns: 0, inode: 0 }
    }

    pub(crate) fn is_executable(_: &Metadata) -> Option<bool> {
        None
    }

    pub(crate) fn is_setuid(_: &Metadata) -> bool {
        false
    }

    pub(crate) fn special(_: &Metadata) -> Special {
        Special::Other
    }

    pub(crate) fn name_bytes(name: &OsStr) -> Option<Vec<u8>> {
        name.to_str().map(|name| name.as_bytes().to_vec())
    }

    pub(crate) fn target_bytes(target: &Path) -> Option<Vec<u8>> {
        target.to_str().map(|target| target.replace('\\', "/").into_bytes())
    }
}

pub(crate) use imp::{is_executable, is_setuid, name_bytes, special, stamp, target_bytes};
