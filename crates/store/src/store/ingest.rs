//! Taking objects in.

use super::{OBJECT_PERMISSIONS, Store, StoreError, object_name};
use crate::pack::{Sink, decode};
use bulkhead_core::FileDigest;
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read, Write},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Up to this many new objects get an fdatasync each, more get one `syncfs`. An fdatasync is a few
/// milliseconds and independent of what else the disk has to write; `syncfs` writes everything.
const FDATASYNC_OBJECTS_MAX: usize = 64;
/// An object of this size is made durable and visible as soon as it is whole, so that a connection that breaks
/// afterwards does not cost it.
const SETTLE_AT_ONCE_BYTES: u64 = 8 << 20;
const OBJECT_MODE: Mode = Mode::from_raw_mode(OBJECT_PERMISSIONS);

/// A push under way. While it lives no garbage is collected: keep it until something that garbage collection
/// will be told to keep, such as a recorded order, names the image.
#[derive(Debug)]
pub struct Push<'a> {
    pub(super) store: &'a Store,
    state: Mutex<State>,
    _shared: File,
}

/// What has to become durable yet.
#[derive(Debug, Default)]
struct State {
    marker: Option<Marker>,
    /// Directories below `objects` that got a link, by their first byte.
    linked: BTreeSet<u8>,
    /// Whether a directory was made.
    made: bool,
}

/// Says on disk that objects are visible that are not durable. Locked as long as its process lives.
#[derive(Debug)]
struct Marker {
    path: PathBuf,
    _locked: File,
}

/// What an ingest took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ingested {
    /// How many new objects.
    pub objects: u64,
    /// Their bytes.
    pub content_bytes: u64,
    /// Wanted objects that came as deltas over a base that is absent or damaged here. They must be sent again, whole.
    pub unresolved: Vec<FileDigest>,
}

impl Store {
    /// Begins a push.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn push(&self) -> Result<Push<'_>, StoreError> {
        let shared = self.lock("lock", FlockOperation::LockShared)?;
        Ok(Push { store: self, state: Mutex::default(), _shared: shared })
    }

    /// Puts right what pushes left that ended without [`Push::sync`].
    pub(super) fn recover(&self) -> Result<(), StoreError> {
        if self.names("unsynced")?.is_empty() {
            return Ok(());
        }
        let _recovering = self.lock("recovery", FlockOperation::LockExclusive)?;
        for name in self.names("unsynced")? {
            let path = self.directory("unsynced").join(name);
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(self.error("open", &path, source)),
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                // Its push lives.
                Err(Errno::WOULDBLOCK) => continue,
                Err(errno) => return Err(self.error("lock", &path, errno.into())),
            }
            let mut boot = String::new();
            file.read_to_string(&mut boot).map_err(|source| self.error("read", &path, source))?;
            if boot.is_empty() || boot != self.boot {
                self.verify_unnamed()?;
            }
            self.sync_all()?;
            self.steps.next("remove a marker")?;
            fs::remove_file(&path).map_err(|source| self.error("remove", &path, source))?;
        }
        Ok(())
    }

    /// Makes everything durable that was written to the store's file system.
    pub(super) fn sync_all(&self) -> Result<(), StoreError> {
        self.steps.next("sync the file system")?;
        rustix::fs::syncfs(&self.objects).map_err(|errno| self.error("sync", &self.root, errno.into()))
    }
}

impl Push<'_> {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is right between any two of its changes, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the wanted objects of a pack, and nothing else. Reads to the pack's end mark and no further.
    ///
    /// What was whole before an error stays, and need not be sent again.
    ///
    /// # Errors
    /// [`StoreError::Pack`] for what is wrong with the pack or its connection; [`StoreError::DiskFull`], also
    /// before anything was read; [`StoreError::Io`].
    pub fn ingest(&self, pack: &mut dyn Read, wanted: &HashMap<FileDigest, u64>) -> Result<Ingested, StoreError> {
        let store = self.store;
        let needed_bytes = wanted.values().fold(0u64, |sum, size_bytes| sum.saturating_add(*size_bytes));
        let free_bytes = store.free_bytes();
        if needed_bytes > free_bytes {
            return Err(StoreError::DiskFull { path: store.root.clone(), needed_bytes, free_bytes });
        }
        let mut taker = Taker {
            push: self,
            wanted,
            taken: HashSet::new(),
            needed_bytes,
            current: None,
            whole: Vec::new(),
            failure: None,
        };
        let result = decode(pack, store, &mut taker);
        let Taker { whole, failure, .. } = taker;
        // Even after an error: these objects are right, and a next attempt need not bring them.
        let settled = self.settle(whole);
        if let Some(failure) = failure {
            return Err(failure);
        }
        let decoded = result.map_err(StoreError::Pack)?;
        settled?;
        for base in &decoded.suspects {
            if let Some((false, _)) = store.verify(base)? {
                store.quarantine(base)?;
            }
        }
        Ok(Ingested { objects: decoded.objects, content_bytes: decoded.content_bytes, unresolved: decoded.unresolved })
    }

    /// Makes objects durable, then visible.
    fn settle(&self, whole: Vec<Whole>) -> Result<(), StoreError> {
        for object in &whole {
            self.store.steps.next("sync an object")?;
            let path = self.store.object_path(&object.digest);
            object.file.sync_data().map_err(|source| self.store.error("sync", &path, source))?;
        }
        whole.into_iter().try_for_each(|object| self.link(object))
    }

    /// Makes an object visible.
    fn link(&self, object: Whole) -> Result<(), StoreError> {
        let store = self.store;
        let Whole { digest, size_bytes, file, name } = object;
        let path = store.object_path(&digest);
        let file = store.verity.enable(file).map_err(|source| store.error("enable fs-verity for", &path, source))?;
        store.steps.next("link an object")?;
        let target = object_name(&digest);
        // Twice at most for each reason: a directory is made once, a damaged object moved aside once.
        for _ in 0..4 {
            let linked = match &name {
                None => rustix::fs::linkat(
                    rustix::fs::CWD,
                    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)),
                    &store.objects,
                    &target,
                    AtFlags::SYMLINK_FOLLOW,
                ),
                Some(name) => rustix::fs::linkat(rustix::fs::CWD, name, &store.objects, &target, AtFlags::empty()),
            };
            match linked {
                Ok(()) => break,
                Err(Errno::EXIST) if store.stat(&digest)? == Some(size_bytes) => break,
                Err(Errno::EXIST) => store.quarantine(&digest)?,
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&store.objects, &target[..2], Mode::from_raw_mode(0o700)) {
                        Ok(()) | Err(Errno::EXIST) => self.state().made = true,
                        Err(errno) => return Err(store.error("create the directory of", &path, errno.into())),
                    }
                }
                Err(errno) => return Err(store.error("link", &path, errno.into())),
            }
        }
        if let Some(name) = name {
            fs::remove_file(&name).map_err(|source| store.error("remove", &name, source))?;
        }
        self.state().linked.insert(digest.0[0]);
        Ok(())
    }

    /// From here on objects of this push may be visible before they are durable.
    fn mark(&self) -> Result<(), StoreError> {
        if self.state().marker.is_some() {
            return Ok(());
        }
        let store = self.store;
        // So that nobody takes the marker for a dead push's between its creation and its lock.
        let _recovering = store.lock("recovery", FlockOperation::LockExclusive)?;
        let temporary = store.temporary_path();
        let name = temporary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        store.write_durably("unsynced", &name, store.boot.as_bytes())?;
        let path = store.directory("unsynced").join(name);
        let locked = File::open(&path).map_err(|source| store.error("open", &path, source))?;
        rustix::fs::flock(&locked, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| store.error("lock", &path, errno.into()))?;
        self.state().marker = Some(Marker { path, _locked: locked });
        Ok(())
    }

    /// Makes every object that was taken so far durable.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the objects are then not to be relied on.
    pub fn sync(&self) -> Result<(), StoreError> {
        let store = self.store;
        let mut state = self.state();
        // An image may need objects that another push has made visible and not yet durable.
        if state.marker.is_some() || !store.names("unsynced")?.is_empty() {
            store.sync_all()?;
        } else {
            for high in &state.linked {
                store.steps.next("sync an object's directory")?;
                store.sync_directory(&store.root.join(format!("objects/{high:02x}")))?;
            }
            if state.made {
                store.sync_directory(&store.root.join("objects"))?;
            }
        }
        state.linked.clear();
        state.made = false;
        if let Some(marker) = state.marker.take() {
            store.steps.next("remove a marker")?;
            fs::remove_file(&marker.path).map_err(|source| store.error("remove", &marker.path, source))?;
        }
        Ok(())
    }
}

/// An object that is whole and right, and has no place yet.
#[derive(Debug)]
struct Whole {
    digest: FileDigest,
    size_bytes: u64,
    file: File,
    /// Its name below `tmp`, on file systems that know no files without a name.
    name: Option<PathBuf>,
}

/// Writes objects as they come out of a pack.
struct Taker<'a> {
    push: &'a Push<'a>,
    wanted: &'a HashMap<FileDigest, u64>,
    taken: HashSet<FileDigest>,
    needed_bytes: u64,
    current: Option<Whole>,
    /// Objects that wait for their fdatasync; empty once there were too many for that.
    whole: Vec<Whole>,
    /// What went wrong, in this crate's terms; the decoder passes on an `io::Error` only.
    failure: Option<StoreError>,
}

impl Taker<'_> {
    fn note<T>(&mut self, result: Result<T, StoreError>) -> io::Result<T> {
        result.map_err(|failure| {
            self.failure = Some(failure);
            io::Error::other("the store could not")
        })
    }

    fn create(&self, digest: FileDigest, size_bytes: u64) -> Result<Whole, StoreError> {
        let store = self.push.store;
        store.steps.next("create an object")?;
        let error =
            |errno: Errno| store.error_of("create", &store.object_path(&digest), errno.into(), self.needed_bytes);
        match rustix::fs::openat(&store.objects, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, OBJECT_MODE) {
            Ok(file) => return self.with_mode(Whole { digest, size_bytes, file: file.into(), name: None }),
            // Not every file system knows files without a name.
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
            Err(errno) => return Err(error(errno)),
        }
        let name = store.temporary_path();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&name, flags, OBJECT_MODE).map_err(error)?;
        self.with_mode(Whole { digest, size_bytes, file: file.into(), name: Some(name) })
    }

    /// A process's umask may have taken rights away.
    fn with_mode(&self, object: Whole) -> Result<Whole, StoreError> {
        let store = self.push.store;
        let error = |errno: Errno| store.error("set the mode of", &store.object_path(&object.digest), errno.into());
        let stat = rustix::fs::fstat(&object.file).map_err(error)?;
        if Mode::from_raw_mode(stat.st_mode) != OBJECT_MODE {
            rustix::fs::fchmod(&object.file, OBJECT_MODE).map_err(error)?;
        }
        Ok(object)
    }

    fn whole(&mut self, object: Whole) -> Result<(), StoreError> {
        let is_bulk = self.push.state().marker.is_some();
        if is_bulk {
            return self.push.link(object);
        }
        if object.size_bytes >= SETTLE_AT_ONCE_BYTES {
            return self.push.settle(vec![object]);
        }
        self.whole.push(object);
        if self.whole.len() > FDATASYNC_OBJECTS_MAX {
            self.push.mark()?;
            return std::mem::take(&mut self.whole).into_iter().try_for_each(|object| self.push.link(object));
        }
        Ok(())
    }
}

impl Sink for Taker<'_> {
    fn wants(&mut self, digest: &FileDigest, size_bytes: u64) -> bool {
        self.wanted.get(digest) == Some(&size_bytes) && !self.taken.contains(digest)
    }

    fn begin(&mut self, digest: &FileDigest, size_bytes: u64) -> io::Result<()> {
        let object = self.create(*digest, size_bytes);
        self.current = Some(self.note(object)?);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(object) = &mut self.current else { return Ok(()) };
        let (result, digest) = (object.file.write_all(bytes), object.digest);
        let store = self.push.store;
        let result =
            result.map_err(|source| store.error_of("write", &store.object_path(&digest), source, self.needed_bytes));
        self.note(result)?;
        self.needed_bytes = self.needed_bytes.saturating_sub(bytes.len() as u64);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(object) = self.current.take() else { return Ok(()) };
        let digest = object.digest;
        let result = self.whole(object);
        self.note(result)?;
        self.taken.insert(digest);
        Ok(())
    }

    fn abandon(&mut self) {
        if let Some(name) = self.current.take().and_then(|object| object.name) {
            // What is left of it the next collection removes.
            fs::remove_file(name).ok();
        }
    }
}

/// Whether the file system has fs-verity, as far as was tried.
#[derive(Debug, Default)]
pub(super) struct VeritySupport {
    #[cfg(feature = "mount")]
    is_absent: std::sync::atomic::AtomicBool,
}

impl VeritySupport {
    #[cfg(not(feature = "mount"))]
    fn enable(&self, file: File) -> io::Result<File> {
        Ok(file)
    }

    /// Enables fs-verity, for which nobody may have the file open for writing; gives it back open for reading.
    #[cfg(feature = "mount")]
    fn enable(&self, file: File) -> io::Result<File> {
        use composefs::fsverity::{EnableVerityError, Sha256HashValue, enable_verity_with_retry};
        use std::{os::fd::AsRawFd, sync::atomic::Ordering};
        if self.is_absent.load(Ordering::Relaxed) {
            return Ok(file);
        }
        let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        drop(file);
        match enable_verity_with_retry::<Sha256HashValue>(&read_only) {
            Ok(()) | Err(EnableVerityError::AlreadyEnabled) => {}
            Err(EnableVerityError::FilesystemNotSupported) => self.is_absent.store(true, Ordering::Relaxed),
            Err(EnableVerityError::Io(error)) => return Err(error),
            Err(other) => return Err(io::Error::other(other)),
        }
        Ok(read_only)
    }
}
