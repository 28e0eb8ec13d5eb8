//! A node's store: objects and image documents on disk.
//!
//! # Layout
//!
//! ```text
//! objects/ab/cdef…      one file for each distinct contents, named by its fs-verity digest; mode 0644
//! documents/IMAGE       image documents (bulkhead_core::image)
//! metadata/             what `mount` derives from documents: a cache
//! trees/                hard-link trees, where the kernel has no composefs: a cache
//! quarantine/           objects that a scrub found damaged, until the next collection
//! tmp/                  files on their way to their place
//! unsynced/             a marker for each push whose objects are visible but not yet durable
//! lock                  held shared by every push, exclusively by garbage collection
//! recovery              held while a marker is made or looked at
//! ```
//!
//! `objects` is a composefs repository's object directory. `root` is for root alone (0700); who runs
//! in a mounted image needs no right here, because the kernel reads with the mounter's.
//!
//! # Invariants
//!
//! - An object is visible under its digest only once its bytes have that digest: it is written
//!   without a name, checked, then linked into place.
//! - A document is visible only once it and its objects are durable. So after a power cut an object
//!   that a document names is whole.
//! - Objects that no document names yet may be visible before they are durable, so that a large push
//!   needs one `syncfs` and not an fsync for each file. Such a push leaves a durable marker in
//!   `unsynced` first; whoever opens the store after a power cut and finds the marker of another boot
//!   verifies all objects that no document names. After a mere crash of the process the bytes are
//!   still the kernel's to write, and are synced.
//! - A durable file goes temporary file, fsync, rename, fsync of the directory.
//! - Garbage collection runs only while no push does.

mod incoming;
mod ingest;
mod sweep;

pub use incoming::{DocumentError, Incoming};
pub use ingest::{Ingested, Push};
pub use sweep::{Collected, Collection, Scrubbed};

use crate::pack::{Contents, PackError};
use bulkhead_core::{
    FileDigest, ImageId,
    image::{DOCUMENT_MAX_BYTES, Image},
    verity::VerityHasher,
};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, FileExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// A node's store. Cheap to open; any number of processes may have it open.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    objects: OwnedFd,
    /// Names this boot: a marker with another name was left by a machine that went down.
    boot: String,
    verity: ingest::VeritySupport,
    steps: Steps,
}

/// Why the store could not.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the quota is full.
    #[error("the disk of {path} is full: {needed_bytes} bytes are needed and {free_bytes} are free")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// Bytes still to write, where known.
        needed_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// The pack is not what was asked for, or its connection broke.
    #[error("the pack was not taken in")]
    Pack(#[source] PackError),
    /// A document's bytes are not the image that they are named as.
    #[error("the document of image {id} is damaged")]
    DocumentDamaged {
        /// Which image.
        id: ImageId,
    },
    /// A document was put before its objects.
    #[error("image {id} cannot be kept: {count} of its objects are missing")]
    ObjectsMissing {
        /// Which image.
        id: ImageId,
        /// How many objects.
        count: u64,
    },
    /// An image that this store has not got.
    #[error("image {id} is not in the store")]
    NoImage {
        /// Which image.
        id: ImageId,
    },
    /// Garbage cannot be collected while a push is under way.
    #[error("a push into the store is under way")]
    Busy,
    /// The operating system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Counts the steps that a crash can come between, so that tests can put one between any two.
#[derive(Debug, Default)]
struct Steps {
    #[cfg(test)]
    left: std::sync::atomic::AtomicI64,
}

impl Steps {
    /// A step is about to be done.
    #[cfg(test)]
    fn next(&self, name: &'static str) -> Result<(), StoreError> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let source = io::Error::other("injected by a test");
            return Err(StoreError::Io { operation: name, path: PathBuf::new(), source });
        }
        Ok(())
    }

    #[cfg(not(test))]
    fn next(&self, _: &'static str) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Who runs in an image reads objects through its mount, by the modes that the image's metadata gives.
pub(crate) const OBJECT_PERMISSIONS: u32 = 0o644;
/// From this many objects on it pays to look for them with several threads.
const LOOK_TOGETHER_MIN: usize = 2000;
/// Nodes are small.
const LOOKING_THREADS: usize = 2;
const DIRECTORIES: [&str; 7] = ["objects", "documents", "metadata", "trees", "quarantine", "tmp", "unsynced"];

/// Where an object is, below `objects`.
#[must_use]
pub(crate) fn object_name(digest: &FileDigest) -> String {
    let mut name = digest.to_string();
    name.insert(2, '/');
    name
}

fn boot_id() -> String {
    // Where /proc is not to be had, every marker counts as left by another boot, which is safe.
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

impl Store {
    /// Opens a store, makes it where there is none, and puts right what a crash left.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_at_boot(root, boot_id())
    }

    fn open_at_boot(root: &Path, boot: String) -> Result<Self, StoreError> {
        let error = |operation, path: &Path, source| StoreError::Io { operation, path: path.into(), source };
        for name in std::iter::once("").chain(DIRECTORIES) {
            let path = root.join(name);
            match fs::DirBuilder::new().mode(0o700).recursive(name.is_empty()).create(&path) {
                Ok(()) => {}
                Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(error("create", &path, source)),
            }
        }
        let path = root.join("objects");
        let objects = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| error("open", &path, errno.into()))?;
        let store = Self { root: root.into(), objects, boot, verity: Default::default(), steps: Steps::default() };
        store.recover()?;
        Ok(store)
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn error(&self, operation: &'static str, path: &Path, source: io::Error) -> StoreError {
        self.error_of(operation, path, source, 0)
    }

    /// The error of an operation that had this much to write.
    fn error_of(&self, operation: &'static str, path: &Path, source: io::Error, needed_bytes: u64) -> StoreError {
        let errno = rustix::io::Errno::from_io_error(&source);
        if matches!(errno, Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)) {
            return StoreError::DiskFull { path: path.into(), needed_bytes, free_bytes: self.free_bytes() };
        }
        StoreError::Io { operation, path: path.into(), source }
    }

    /// Bytes that may still be written here.
    fn free_bytes(&self) -> u64 {
        rustix::fs::fstatvfs(&self.objects).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn object_path(&self, digest: &FileDigest) -> PathBuf {
        self.root.join("objects").join(object_name(digest))
    }

    /// Opens a lock file and waits for the lock.
    fn lock(&self, name: &str, operation: FlockOperation) -> Result<File, StoreError> {
        let path = self.directory(name);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| self.error("open", &path, source))?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Busy),
                Err(errno) => return Err(self.error("lock", &path, errno.into())),
            }
        }
    }

    /// Names this boot; empty where that cannot be found out.
    #[cfg(feature = "mount")]
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Keeps garbage collection off while something is derived from what is here.
    #[cfg(feature = "mount")]
    pub(crate) fn hold(&self) -> Result<File, StoreError> {
        self.lock("lock", FlockOperation::LockShared)
    }

    /// The object's length, if it is there.
    fn stat(&self, digest: &FileDigest) -> Result<Option<u64>, StoreError> {
        match rustix::fs::statat(&self.objects, object_name(digest), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(u64::try_from(stat.st_size).ok()),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("look at", &self.object_path(digest), errno.into())),
        }
    }

    /// For each object and its length: whether it is missing here.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn missing(&self, objects: &[(FileDigest, u64)]) -> Result<Vec<bool>, StoreError> {
        let look = |objects: &[(FileDigest, u64)]| -> Result<Vec<bool>, StoreError> {
            objects.iter().map(|(digest, size_bytes)| Ok(self.stat(digest)? != Some(*size_bytes))).collect()
        };
        if objects.len() < LOOK_TOGETHER_MIN {
            return look(objects);
        }
        std::thread::scope(|scope| {
            let shares = objects.chunks(objects.len().div_ceil(LOOKING_THREADS));
            let threads: Vec<_> = shares.map(|share| scope.spawn(move || look(share))).collect();
            let mut missing = Vec::with_capacity(objects.len());
            for thread in threads {
                match thread.join() {
                    Ok(found) => missing.extend(found?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(missing)
        })
    }

    fn document_path(&self, id: ImageId) -> PathBuf {
        self.root.join("documents").join(id.to_string())
    }

    /// An image's document; `None` where it is not here.
    ///
    /// # Errors
    /// [`StoreError::DocumentDamaged`], [`StoreError::Io`].
    pub fn document(&self, id: ImageId) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.document_path(id);
        let mut document = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(DOCUMENT_MAX_BYTES as u64 + 1).read_to_end(&mut document));
        match read {
            Ok(_) if ImageId::of(&document) == id => Ok(Some(document)),
            Ok(_) => Err(StoreError::DocumentDamaged { id }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.error("read", &path, source)),
        }
    }

    /// An image; `None` where it is not here.
    ///
    /// # Errors
    /// [`StoreError::DocumentDamaged`], [`StoreError::Io`].
    pub fn image(&self, id: ImageId) -> Result<Option<Image>, StoreError> {
        match self.document(id)? {
            Some(document) => Image::decode(&document).map(Some).map_err(|_| StoreError::DocumentDamaged { id }),
            None => Ok(None),
        }
    }

    /// Every image that is here.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn images(&self) -> Result<BTreeSet<ImageId>, StoreError> {
        let names = self.names("documents")?;
        // Anything else there was not put by this store.
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn names(&self, directory: &str) -> Result<Vec<String>, StoreError> {
        let path = self.directory(directory);
        let mut names = Vec::new();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(names),
            Err(source) => return Err(self.error("list", &path, source)),
        };
        for entry in entries {
            let entry = entry.map_err(|source| self.error("list", &path, source))?;
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Every object's digest, in order, a directory at a time.
    fn each_object(&self, mut each: impl FnMut(FileDigest) -> Result<bool, StoreError>) -> Result<(), StoreError> {
        for high in self.names("objects")? {
            for low in self.names(&format!("objects/{high}"))? {
                if let Ok(digest) = format!("{high}{low}").parse()
                    && !each(digest)?
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The first object there is.
    #[cfg(feature = "mount")]
    pub(crate) fn any_object(&self) -> Result<Option<FileDigest>, StoreError> {
        let mut any = None;
        self.each_object(|digest| {
            any = Some(digest);
            Ok(false)
        })?;
        Ok(any)
    }

    /// Bytes that objects and documents take on disk.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn usage_bytes(&self) -> Result<u64, StoreError> {
        // st_blocks counts 512 bytes, whatever the file system's own block is.
        const BLOCK_BYTES: u64 = 512;
        let mut blocks = 0;
        self.each_object(|digest| {
            if let Ok(stat) = rustix::fs::statat(&self.objects, object_name(&digest), AtFlags::SYMLINK_NOFOLLOW) {
                blocks += u64::try_from(stat.st_blocks).unwrap_or(0);
            }
            Ok(true)
        })?;
        let mut bytes = blocks * BLOCK_BYTES;
        for directory in ["documents", "metadata"] {
            for name in self.names(directory)? {
                let path = self.directory(directory).join(name);
                bytes += fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
            }
        }
        Ok(bytes)
    }

    /// Whether an object's bytes have its digest; `None` where it is not here.
    fn verify(&self, digest: &FileDigest) -> Result<Option<(bool, u64)>, StoreError> {
        let path = self.object_path(digest);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.error("open", &path, source)),
        };
        let mut hasher = VerityHasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hasher.update(&buffer[..count]),
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                // A bad sector, or fs-verity's refusal.
                Err(source) if rustix::io::Errno::from_io_error(&source) == Some(rustix::io::Errno::IO) => {
                    return Ok(Some((false, hasher.size_bytes())));
                }
                Err(source) => return Err(self.error("read", &path, source)),
            }
        }
        let size_bytes = hasher.size_bytes();
        Ok(Some((hasher.finish() == *digest, size_bytes)))
    }

    /// Moves a damaged object aside, so that it counts as missing.
    fn quarantine(&self, digest: &FileDigest) -> Result<(), StoreError> {
        let path = self.object_path(digest);
        let aside = self.directory("quarantine").join(digest.to_string());
        match fs::rename(&path, aside) {
            Ok(()) => {}
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(self.error("move aside", &path, source)),
        }
        self.sync_directory(&self.directory("objects").join(&digest.to_string()[..2]))
    }

    fn sync_directory(&self, path: &Path) -> Result<(), StoreError> {
        File::open(path).and_then(|file| file.sync_all()).map_err(|source| self.error("sync", path, source))
    }

    /// The one way that a file other than an object gets to its place.
    pub(crate) fn write_durably(&self, directory: &str, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.temporary_path();
        let target = self.directory(directory).join(name);
        let result = self.write_temporary(&temporary, bytes).and_then(|()| {
            self.steps.next("rename into place")?;
            fs::rename(&temporary, &target).map_err(|source| self.error("rename into place", &target, source))
        });
        if result.is_err() {
            // The error at hand says more than one about its remains, which the next collection removes.
            fs::remove_file(&temporary).ok();
        }
        result?;
        self.steps.next("sync a directory")?;
        self.sync_directory(&self.directory(directory))
    }

    fn write_temporary(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.steps.next("write a temporary file")?;
        let error = |source| self.error_of("write", path, source, bytes.len() as u64);
        let mut file = File::create_new(path).map_err(error)?;
        file.write_all(bytes).map_err(error)?;
        self.steps.next("sync a temporary file")?;
        file.sync_all().map_err(error)
    }

    /// A new name below `tmp`. Process ids come again after a boot; `tmp` is emptied by collections only, so the
    /// boot is part of it.
    pub(crate) fn temporary_path(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.directory("tmp").join(format!("{}-{}-{number}", self.boot, std::process::id()))
    }
}

impl Contents for Store {
    fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
        match File::open(self.object_path(digest)) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_at(&self, digest: &FileDigest, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.object_path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests;
