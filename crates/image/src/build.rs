//! The order of things: scan, packages, closure, lint, document.

use crate::{
    report::{Finding, Phase, Progress, Report},
    scan::{self, Excludes, Found, ScanError},
    sources::{Source, Sources},
};
use bulkhead_core::{
    ImageId,
    image::{Entry, Image, ImageConfig, ImageError, Node},
    manifest::Manifest,
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// What to build.
#[derive(Clone, Copy)]
pub struct BuildRequest<'a> {
    /// The folder that holds `bulkhead.toml`.
    pub folder: &'a Path,
    /// That file, parsed.
    pub manifest: &'a Manifest,
    /// Where caches go; made if it is not there.
    pub cache_dir: &'a Path,
    /// A Debian mirror instead of `http://deb.debian.org/debian`. Security updates
    /// are taken from the same address with `-security` appended.
    pub mirror: Option<&'a str>,
    /// Refuse to write or change `bulkhead.lock`.
    pub locked: bool,
    /// Hears how it goes.
    pub progress: &'a dyn Progress,
}

impl std::fmt::Debug for BuildRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildRequest")
            .field("folder", &self.folder)
            .field("cache_dir", &self.cache_dir)
            .field("mirror", &self.mirror)
            .field("locked", &self.locked)
            .finish_non_exhaustive()
    }
}

/// A built image.
#[derive(Debug)]
pub struct Built {
    /// The image.
    pub image: Image,
    /// Its id.
    pub id: ImageId,
    /// Its document.
    pub document: Vec<u8>,
    /// Where its files' contents are.
    pub sources: Sources,
    /// What there is to say about it.
    pub report: Report,
}

/// What sort of error it is: decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The manifest, lock file or folder must change.
    Configuration,
    /// The lint refused.
    Refused,
    /// A mirror cannot be reached, or sent what cannot be believed.
    Remote,
    /// This machine's disk or file system.
    Host,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The folder to copy could not be scanned.
    #[error("scanning failed")]
    Scan(#[source] ScanError),
    /// A cache directory could not be made or a file of it not be written.
    #[error("cannot write to the cache at {}", path.display())]
    Cache {
        /// What was to be written.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The lint found what must not be in an image.
    #[error("{}", crate::report::refusal(findings))]
    Refused {
        /// All of it.
        findings: Vec<Finding>,
    },
    /// What was collected is not a valid image.
    #[error("the image cannot be made")]
    Image(#[source] ImageError),
}

impl BuildError {
    /// What sort of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Scan(ScanError::Pattern { .. }) | Self::Image(_) => ErrorKind::Configuration,
            Self::Scan(_) | Self::Cache { .. } => ErrorKind::Host,
            Self::Refused { .. } => ErrorKind::Refused,
        }
    }
}

/// Builds an image.
///
/// # Errors
/// See [`BuildError`]; nothing but caches was changed then.
pub fn build(request: &BuildRequest<'_>) -> Result<Built, BuildError> {
    let section = &request.manifest.image;
    let excludes =
        Excludes::new(&section.exclude, &request.folder.join(".bulkheadignore")).map_err(BuildError::Scan)?;
    let root = request.folder.join(&section.source);
    let scan = scan::scan(&root, &section.to.0, &excludes, &request.cache_dir.join("index"), request.progress)
        .map_err(BuildError::Scan)?;
    if !scan.findings.is_empty() {
        return Err(BuildError::Refused { findings: scan.findings });
    }
    let to = section.to.0.trim_start_matches('/').as_bytes();
    let mut sources = Sources::default();
    let mut entries = Vec::new();
    for (index, byte) in to.iter().enumerate() {
        if *byte == b'/' {
            entries.push(Entry { path: to[..index].to_vec(), node: Node::Directory { mode: 0o755 } });
        }
    }
    entries.push(Entry { path: to.to_vec(), node: Node::Directory { mode: 0o755 } });
    let mut report = Report { files_read: scan.files_read, ..Report::default() };
    for (path, found) in scan.entries {
        let path = [to, b"/", &path].concat();
        let node = match found {
            Found::Directory => Node::Directory { mode: 0o755 },
            Found::Symlink { target } => Node::Symlink { target },
            Found::File { executable, size_bytes, digest, disk, .. } => {
                sources.add(digest, Source::Disk(disk), &path);
                report.files += 1;
                report.bytes += size_bytes;
                Node::File { mode: if executable { 0o755 } else { 0o644 }, size_bytes, digest }
            }
        };
        entries.push(Entry { path, node });
    }
    request.progress.advance(Phase::Write, 0, 1, "image document");
    let config = ImageConfig { platform: section.platform.as_str().into(), allowed: vec![] };
    let image = Image::new(config, entries).map_err(BuildError::Image)?;
    let document = image.encode();
    let id = ImageId::of(&document);
    Ok(Built { image, id, document, sources, report })
}
