//! `bulkhead.lock` (`tools.lock` for tools): which package files an image was made from.
//!
//! With it a build needs no index, and no network at all once the files are
//! cached; and the digests in it are what makes a build the same on another
//! machine and day. It fits a manifest as long as suite, platform and the list of
//! packages are the same. Deleting it takes what is current at the next build.

use super::DebianError;
use bulkhead_core::manifest::parse_toml;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
};

/// Of an app's image.
pub(crate) const FILE_NAME: &str = "bulkhead.lock";
/// Of the tool image; it lies beside `fleet.toml`, where an app may lie too.
pub(crate) const TOOLS_FILE_NAME: &str = "tools.lock";
const VERSION: u32 = 1;
/// Some 200 bytes a package and thousands of packages.
const MAX_BYTES: u64 = 8 << 20;
const HEADING: &str = "# Written by `bulkhead`: the exact packages of the image. Keep it in version control.\n\
                       # Delete it to take what is current.\n";

/// A whole lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    version: u32,
    pub(crate) suite: String,
    pub(crate) platform: String,
    /// What the manifest asked for, sorted.
    pub(crate) packages: Vec<String>,
    #[serde(default, rename = "package", skip_serializing_if = "Vec::is_empty")]
    pub(crate) pinned: Vec<Pinned>,
}

/// One package file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pinned {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
    /// Whether it comes from the security archive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) security: bool,
    /// Relative to the archive.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

impl Lock {
    pub(crate) fn new(suite: &str, platform: &str, packages: &[String], pinned: Vec<Pinned>) -> Self {
        let mut lock = Self {
            version: VERSION,
            suite: suite.to_owned(),
            platform: platform.to_owned(),
            packages: packages.to_vec(),
            pinned,
        };
        lock.packages.sort_unstable();
        lock.packages.dedup();
        lock.pinned.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        lock
    }

    /// Whether it answers what a manifest asks.
    pub(crate) fn fits(&self, suite: &str, platform: &str, packages: &[String]) -> bool {
        let wanted = Self::new(suite, platform, packages, vec![]);
        self.suite == wanted.suite && self.platform == wanted.platform && self.packages == wanted.packages
    }

    /// Reads a lock file, if it is there.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, DebianError> {
        let failed = |source| DebianError::LockFile { path: path.to_owned(), source };
        let text = match File::open(path) {
            Ok(file) => io::read_to_string(io::Read::take(file, MAX_BYTES)).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let malformed = |what: String| DebianError::LockMalformed { path: path.to_owned(), what };
        let lock: Self = parse_toml(&text).map_err(|error| malformed(error.message))?;
        if lock.version != VERSION {
            return Err(malformed(format!("version {} is not known to this bulkhead", lock.version)));
        }
        for pinned in &lock.pinned {
            pinned.check().map_err(|what| malformed(format!("package `{}`: {what}", pinned.name)))?;
        }
        Ok(Some(lock))
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), DebianError> {
        let folder = path.parent().unwrap_or(path);
        let failed = |source| DebianError::LockFile { path: path.to_owned(), source };
        let body = toml::to_string(self).map_err(|error| failed(io::Error::other(error)))?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(HEADING.as_bytes()).and_then(|()| file.write_all(body.as_bytes())).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        // A temporary file is private; this one belongs in version control like its neighbours.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(failed)?;
        }
        file.persist(path).map_err(|error| failed(error.error))?;
        #[cfg(unix)]
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(())
    }
}

impl Pinned {
    /// Its values end in URLs and file names.
    fn check(&self) -> Result<(), &'static str> {
        let is_digest = self.sha256.len() == 64 && self.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_path = self.path.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && self.path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'\\' | b'%'));
        let is_name = !self.name.is_empty()
            && self.name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.'))
            && !self.name.starts_with('.');
        match (is_digest, is_path, is_name) {
            (false, ..) => Err("`sha256` is not 64 hexadecimal digits"),
            (_, false, _) => Err("`path` is not a relative path in an archive"),
            (.., false) => Err("`name` is not the name of a package"),
            _ => Ok(()),
        }
    }

    /// The same rules for what an index says.
    pub(crate) fn checked(self) -> Result<Self, DebianError> {
        match self.check() {
            Ok(()) => Ok(self),
            Err(what) => Err(DebianError::IndexMalformed { what: format!("package `{}`: {what}", self.name) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn pinned() -> Pinned {
        Pinned {
            name: "lib".into(),
            version: "1:2-3".into(),
            architecture: "amd64".into(),
            security: false,
            path: "pool/main/l/lib/lib_2-3_amd64.deb".into(),
            size: 12,
            sha256: "ab".repeat(32),
        }
    }

    #[test]
    fn there_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        assert_eq!(Lock::read(&path).unwrap(), None);
        let lock = Lock::new("trixie", "linux/amd64", &["web".into(), "lib".into(), "web".into()], vec![pinned()]);
        lock.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap().unwrap(), lock);
        assert!(lock.fits("trixie", "linux/amd64", &["lib".into(), "web".into()]));
        assert!(!lock.fits("trixie", "linux/amd64", &["lib".into()]));
        assert!(!lock.fits("trixie", "linux/arm64", &["lib".into(), "web".into()]));
        assert!(!lock.fits("bookworm", "linux/amd64", &["lib".into(), "web".into()]));
    }

    #[test]
    fn what_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let check = |text: &str, expected: &str| {
            let path = folder.path().join(FILE_NAME);
            fs::write(&path, text).unwrap();
            let error = Lock::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let head = "version = 1\nsuite = \"trixie\"\nplatform = \"linux/amd64\"\npackages = []\n";
        check("suite = 1", "suite");
        check(&head.replace("= 1", "= 9"), "version 9");
        let package = toml::to_string(&pinned()).unwrap();
        check(&format!("{head}[[package]]\n{}", package.replace("pool/", "../")), "relative path");
        check(&format!("{head}[[package]]\n{}", package.replace("abab", "xyzz")), "64 hexadecimal");
        check(&format!("{head}[[package]]\n{}", package.replace("\"lib\"", "\"../lib\"")), "name of a package");
    }
}
