//! The one way in which a file of this crate becomes durable: temporary file in
//! the same directory, fsync, rename, fsync of the directory. After a crash
//! there is the old file or the new one, whole.

use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// No document of a node's own state is anywhere near this: a bound against a damaged disk.
const READ_MAX_BYTES: u64 = 8 << 20;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system said no.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl FileError {
    /// For `map_err`: an I/O error with what was tried.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Writes a file durably, replacing what was there.
///
/// # Errors
/// Which step failed; the old file is then whole.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_with_mode(path, bytes, 0o600)
}

/// Likewise with this mode, which the file has from its first moment under this name.
///
/// # Errors
/// Which step failed; the old file is then whole.
pub fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file =
        tempfile::NamedTempFile::new_in(directory).map_err(FileError::io("create a temporary file in", directory))?;
    file.write_all(bytes).map_err(FileError::io("write", path))?;
    file.as_file().set_permissions(Permissions::from_mode(mode)).map_err(FileError::io("set the mode of", path))?;
    file.as_file().sync_all().map_err(FileError::io("sync", path))?;
    file.persist(path).map_err(|error| FileError::Io {
        operation: "replace",
        path: path.into(),
        source: error.error,
    })?;
    sync_directory(directory)
}

/// Writes a file where there is none, durably. `false` where there is one, which stays as it is.
///
/// # Errors
/// Which step failed.
pub fn create(path: &Path, bytes: &[u8]) -> Result<bool, FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file =
        tempfile::NamedTempFile::new_in(directory).map_err(FileError::io("create a temporary file in", directory))?;
    file.write_all(bytes).map_err(FileError::io("write", path))?;
    file.as_file().sync_all().map_err(FileError::io("sync", path))?;
    match file.persist_noclobber(path) {
        Ok(_) => sync_directory(directory).map(|()| true),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(FileError::Io { operation: "create", path: path.into(), source: error.error }),
    }
}

/// Writes a value as JSON, durably.
///
/// # Errors
/// See [`write`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|error| FileError::Damaged { path: path.into(), what: format!("not to be encoded: {error}") })?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// The system said no.
pub fn sync_directory(directory: &Path) -> Result<(), FileError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(FileError::io("sync", directory))
}

/// Reads a bounded file; `None` where there is none.
///
/// # Errors
/// It is there and cannot be read, or is absurdly long.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Io { operation: "open", path: path.into(), source }),
    };
    let mut bytes = Vec::new();
    file.take(READ_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    if bytes.len() as u64 > READ_MAX_BYTES {
        return Err(FileError::Damaged { path: path.into(), what: "longer than 8 MiB".into() });
    }
    Ok(Some(bytes))
}

/// Reads a JSON document; `None` where there is none.
///
/// # Errors
/// See [`read`]; or it is not of the wanted shape.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| FileError::Damaged { path: path.into(), what: error.to_string() })
}

/// Removes a file, durably. Nothing happens where there is none.
///
/// # Errors
/// The system said no.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path.parent().unwrap_or(Path::new("."))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(FileError::Io { operation: "remove", path: path.into(), source }),
    }
}

/// Removes a directory and what it holds. Nothing happens where there is none.
///
/// # Errors
/// The system said no.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(FileError::Io { operation: "remove", path: path.into(), source }),
    }
}
