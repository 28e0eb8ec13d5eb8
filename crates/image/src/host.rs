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
    /// On Windows the time at which the file was made, which changes with the file as an inode does.
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
    pub(crate) fn target_bytes(_: &Path, target: &Path) -> Option<Vec<u8>> {
        Some(target.as_os_str().as_bytes().to_vec())
    }

    /// Whether the system gives a name a meaning of its own, so that a file of that name cannot be read.
    pub(crate) fn is_reserved(_: &[u8]) -> bool {
        false
    }
}

#[cfg(windows)]
mod imp {
    use super::{Metadata, Path, Special, Stamp, windows};
    use std::{
        ffi::OsStr,
        os::windows::fs::MetadataExt as _,
        time::{SystemTime, UNIX_EPOCH},
    };

    /// A file that was modified before it was made had its time set by a program, as unpacking and copying do. Without
    /// a time of change that time says nothing of the contents: such a stamp lies in the future, so it is never settled.
    pub(crate) fn stamp(metadata: &Metadata) -> Stamp {
        let nanoseconds = |time: SystemTime| i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok();
        let modified_ns = match (metadata.modified(), metadata.created()) {
            (Ok(modified), Ok(created)) if modified < created => None,
            (Ok(modified), _) => nanoseconds(modified),
            (Err(_), _) => None,
        };
        Stamp {
            size_bytes: metadata.len(),
            modified_ns: modified_ns.unwrap_or(i64::MAX),
            changed_ns: 0,
            inode: metadata.creation_time(),
        }
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

    pub(crate) fn target_bytes(link: &Path, target: &Path) -> Option<Vec<u8>> {
        let target = target.to_str()?;
        let folder = std::path::absolute(link.parent()?).ok()?;
        Some(windows::relative_target(folder.to_str()?, target).into_bytes())
    }

    pub(crate) fn is_reserved(name: &[u8]) -> bool {
        windows::is_reserved(name)
    }
}

/// Windows' rules for names, as functions of text: tested on every host.
#[cfg(any(windows, test))]
mod windows {
    /// Names of devices, in every folder and with every extension (`Naming Files, Paths, and Namespaces`); and a blank or
    /// full stop at the end, which is dropped when the file is opened.
    pub(super) fn is_reserved(name: &[u8]) -> bool {
        let base = name.split(|byte| *byte == b'.').next().unwrap_or_default().trim_ascii_end().to_ascii_lowercase();
        let is_device = matches!(
            base.as_slice(),
            b"con"
                | b"prn"
                | b"aux"
                | b"nul"
                | b"conin$"
                | b"conout$"
                | [b'c', b'o', b'm', b'1'..=b'9']
                | [b'l', b'p', b't', b'1'..=b'9']
        );
        is_device || name.ends_with(b".") || name.ends_with(b" ")
    }

    /// A link's target as it would be on Linux. A junction, which npm and pnpm make for folders, holds a whole path
    /// where a link on Linux holds a relative one; one on another drive stays absolute, and so outside of the image.
    pub(super) fn relative_target(folder: &str, target: &str) -> String {
        let plain = |path: &str| path.strip_prefix(r"\\?\").unwrap_or(path).replace('\\', "/");
        let (folder, target) = (plain(folder), plain(target));
        if target.as_bytes().get(1) != Some(&b':') {
            return target;
        }
        let from: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
        let to: Vec<&str> = target.split('/').filter(|part| !part.is_empty()).collect();
        let common = from.iter().zip(&to).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        if common == 0 {
            return format!("/{target}");
        }
        let up = std::iter::repeat_n("..", from.len() - common);
        up.chain(to[common..].iter().copied()).collect::<Vec<_>>().join("/")
    }
}

pub(crate) use imp::{is_reserved, is_setuid, name_bytes, special, stamp, target_bytes};

#[cfg(test)]
mod tests {
    use super::windows::{is_reserved, relative_target};

    #[test]
    fn names_that_windows_keeps_to_itself() {
        for name in ["con", "NUL", "aux.js", "Com1.tar.gz", "lpt9", "prn .txt", "name.", "name "] {
            assert!(is_reserved(name.as_bytes()), "{name}");
        }
        for name in ["console", "com0", "com10", "auxiliary.js", ".con", "null", "a b"] {
            assert!(!is_reserved(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn junctions_become_relative() {
        let check = |folder: &str, target: &str, expected: &str| {
            assert_eq!(relative_target(folder, target), expected, "{folder} {target}");
        };
        check(r"C:\app\node_modules", r"C:\app\node_modules\.pnpm\a@1\node_modules\a", ".pnpm/a@1/node_modules/a");
        check(r"c:\App\node_modules\@s", r"\\?\C:\app\packages\b\", "../../packages/b");
        check(r"C:\app", r"D:\elsewhere", "/D:/elsewhere");
        check(r"C:\app", r"lib\a.js", "lib/a.js");
        check(r"C:\app", r"..\etc", "../etc");
    }
}
