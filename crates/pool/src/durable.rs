//! The one way in which files of a loop are written: whole or not at all, and there after a power cut.

use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct FileError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { operation, path, source }
}

/// Temporary file, fsync, rename, fsync of the directory. Nobody else may read it: some hold keys.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(failed("make the directory of", path))?;
    let put = || -> io::Result<()> {
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        sync(directory)
    };
    put().map_err(failed("write", path))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    write(path, &serde_json::to_vec_pretty(value).expect("plain data always serialises"))
}

pub(crate) fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let parse = |text: String| serde_json::from_str(&text).map_err(|error| failed("understand", path)(error.into()));
    read(path)?.map(parse).transpose()
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path)(error)),
        Ok(()) => path.parent().map_or(Ok(()), sync).map_err(failed("remove", path)),
    }
}

/// What the files of a directory are called that end so, without that end.
pub(crate) fn names(directory: &Path, end: &str) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(failed("list", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("list", directory))?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(end)).map(str::to_owned));
    }
    Ok(names)
}

/// Has what is called what in a directory survive a power cut. Windows does so by itself, and opens no directory.
fn sync(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { fs::File::open(directory)?.sync_all() } else { Ok(()) }
}
