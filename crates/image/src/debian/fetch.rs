//! Getting files from a mirror: bounded, retried, checked, cached.

use super::DebianError;
use bulkhead_core::digest::hex;
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// A mirror that does not answer within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest silence within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A GET changes nothing, so it may be tried again after a broken connection.
const ATTEMPTS: usize = 3;
/// Some 60 KiB today, and 1.5 MB in one with all architectures' translations.
const RELEASE_MAX_BYTES: u64 = 8 << 20;

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Fetcher {
    agent: ureq::Agent,
}

/// What ended an attempt.
enum Failure {
    /// Worth another attempt.
    Broken(Box<dyn std::error::Error + Send + Sync>),
    Final(DebianError),
}

impl Fetcher {
    pub(crate) fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into() }
    }

    fn attempt<T>(url: &str, mut get: impl FnMut() -> Result<T, Failure>) -> Result<T, DebianError> {
        let mut attempt = 1;
        loop {
            match get() {
                Ok(done) => return Ok(done),
                Err(Failure::Broken(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(Failure::Broken(source)) => return Err(DebianError::Unreachable { url: url.to_owned(), source }),
                Err(Failure::Final(error)) => return Err(error),
            }
        }
    }

    fn open(&self, url: &str) -> Result<impl Read + use<>, Failure> {
        match self.agent.get(url).call() {
            Ok(response) => Ok(response.into_body().into_reader()),
            Err(ureq::Error::StatusCode(status)) if status < 500 => {
                Err(Failure::Final(DebianError::Status { url: url.to_owned(), status }))
            }
            Err(error) => Err(Failure::Broken(Box::new(error))),
        }
    }

    /// A small text, of which nothing is known beforehand.
    pub(crate) fn text(&self, url: &str) -> Result<String, DebianError> {
        Self::attempt(url, || {
            let mut text = String::new();
            let mut reader = self.open(url)?.take(RELEASE_MAX_BYTES + 1);
            reader.read_to_string(&mut text).map_err(|error| Failure::Broken(Box::new(error)))?;
            if text.len() as u64 > RELEASE_MAX_BYTES {
                return Err(Failure::Final(DebianError::TooLarge {
                    url: url.to_owned(),
                    limit_bytes: RELEASE_MAX_BYTES,
                }));
            }
            Ok(text)
        })
    }

    /// A file in the cache that has exactly the expected contents, downloaded if it is not there yet.
    pub(crate) fn file(
        &self,
        url: &str,
        expected: &Expected,
        path: &Path,
        received: &dyn Fn(u64),
    ) -> Result<PathBuf, DebianError> {
        if is_whole(path, expected) {
            received(expected.size_bytes);
            return Ok(path.to_owned());
        }
        let failed = |source| DebianError::Cache { path: path.to_owned(), source };
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(failed)?;
        Self::attempt(url, || {
            let cache = |source| Failure::Final(failed(source));
            let mut file = tempfile::NamedTempFile::new_in(directory).map_err(cache)?;
            let mut reader = self.open(url)?.take(expected.size_bytes + 1);
            let (mut hasher, mut size_bytes, mut reported) = (Sha256::new(), 0u64, 0u64);
            let mut buffer = vec![0; 64 << 10];
            let outcome = loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(bytes) => {
                        hasher.update(&buffer[..bytes]);
                        size_bytes += bytes as u64;
                        file.write_all(&buffer[..bytes]).map_err(cache)?;
                        if size_bytes - reported >= 256 << 10 {
                            received(size_bytes - reported);
                            reported = size_bytes;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break Err(Failure::Broken(Box::new(error))),
                }
            };
            outcome?;
            if size_bytes < expected.size_bytes {
                let cut = io::Error::new(io::ErrorKind::UnexpectedEof, format!("ends after {size_bytes} bytes"));
                return Err(Failure::Broken(Box::new(cut)));
            }
            let sha256 = hex(&hasher.finalize());
            if size_bytes != expected.size_bytes || sha256 != expected.sha256 {
                return Err(Failure::Final(DebianError::WrongContents {
                    url: url.to_owned(),
                    expected: expected.sha256.clone(),
                    found: sha256,
                }));
            }
            received(size_bytes - reported);
            // What is kept under a digest must be whole after a crash: readers trust the name and the size.
            file.as_file().sync_data().map_err(cache)?;
            file.persist(path).map_err(|error| cache(error.error))?;
            Ok(path.to_owned())
        })
    }
}

fn is_whole(path: &Path, expected: &Expected) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    if !file.metadata().is_ok_and(|metadata| metadata.len() == expected.size_bytes) {
        return false;
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hex(&hasher.finalize()) == expected.sha256,
            Ok(bytes) => hasher.update(&buffer[..bytes]),
            Err(_) => return false,
        }
    }
}
