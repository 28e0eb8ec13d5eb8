//! Walks a folder and learns the digest of every file in it.
//!
//! # The index
//! A file whose [`Stamp`] (size, times, inode) equals the one in the index is not
//! read: its digest is taken from there. The index is a cache; whatever is wrong
//! with it, it is as good as absent.
//!
//! A stamp can lie: a file written twice within one tick of the file system's
//! clock has one time and two contents. So a record enters the index only when
//! its times lie further in the past, at the moment before the file was read,
//! than a tick can be long ([`tick_ns`]). A file that was just written is read
//! once more by the next scan, and that is all it costs.
//!
//! ```text
//! magic    "bulkhead-index-1\n"
//! count    u32
//! record*  u16 length, then path bytes · u64 size · i64 modified · i64 changed · u64 inode
//!          · u8 facts · 32 bytes digest            (integers little-endian)
//! sha256   of all before it
//! ```

use crate::{
    content::{Facts, HEAD_BYTES},
    host::{self, Stamp},
    report::{Finding, Phase, Progress, Rule},
};
use bulkhead_core::{
    FileDigest,
    digest::{hex, sha256},
    verity::VerityHasher,
};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

const MAGIC: &[u8] = b"bulkhead-index-1\n";
/// The largest index that is read: 64 MiB are some 400,000 files.
const INDEX_MAX_BYTES: u64 = 64 << 20;
/// More threads than this only wait for the disk and for each other.
const THREADS_MAX: usize = 8;
/// A file that changes each time it is read is given up after so many attempts.
const READ_ATTEMPTS: usize = 3;
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Names that are never copied, at the top of the folder.
const NEVER_AT_TOP: &[&str] =
    &["bulkhead.toml", "bulkhead.lock", "tools.lock", "fleet.toml", ".bulkheadignore", ".bulkhead"];

/// Why a folder cannot be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Listing a folder failed.
    #[error("cannot list the folder {}", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Asking for a file's state failed.
    #[error("cannot look at {}", path.display())]
    Stat {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading a file or link failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file kept changing.
    #[error("{} changes while it is read: stop what writes to it, or exclude it", path.display())]
    Unsteady {
        /// The file.
        path: PathBuf,
    },
    /// A line of an ignore file or of `image.exclude` is not a pattern.
    #[error("{origin}: `{pattern}` is not a pattern: {what}")]
    Pattern {
        /// The file or key that holds it.
        origin: String,
        /// The pattern.
        pattern: String,
        /// What is wrong.
        what: String,
    },
}

/// What to leave out, in .gitignore's pattern language.
#[derive(Debug)]
pub(crate) struct Excludes {
    patterns: Gitignore,
}

impl Excludes {
    /// Patterns of the manifest and of a `.bulkheadignore` file, if there is one. The last match wins.
    pub(crate) fn new(patterns: &[String], ignore_file: &Path) -> Result<Self, ScanError> {
        let mut builder = GitignoreBuilder::new("");
        let mut add = |origin: &str, line: &str| {
            builder.add_line(None, line).map(|_| ()).map_err(|error| ScanError::Pattern {
                origin: origin.to_owned(),
                pattern: line.to_owned(),
                what: error.to_string(),
            })
        };
        match fs::read_to_string(ignore_file) {
            Ok(text) => {
                for (number, line) in text.lines().enumerate() {
                    add(&format!("{}:{}", ignore_file.display(), number + 1), line)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ScanError::Read { path: ignore_file.to_owned(), source }),
        }
        for pattern in patterns {
            add("[image] exclude", pattern)?;
        }
        let patterns = builder.build().map_err(|error| ScanError::Pattern {
            origin: "[image] exclude".into(),
            pattern: patterns.join(", "),
            what: error.to_string(),
        })?;
        Ok(Self { patterns })
    }

    /// The reason to leave out a path below the folder, if there is one.
    fn reason(&self, root: &Path, disk: &Path, name: &[u8], is_top: bool, is_directory: bool) -> Option<String> {
        if name == b".git" {
            return Some("always left out: .git".into());
        }
        let is_ours = NEVER_AT_TOP.iter().any(|known| name == known.as_bytes())
            || [&b"policy.json"[..], b"policy.next.json"].iter().any(|known| name.starts_with(known));
        if is_top && is_ours {
            return Some("always left out: bulkhead's own files".into());
        }
        if self.patterns.is_empty() {
            return None;
        }
        match self.patterns.matched(disk.strip_prefix(root).unwrap_or(disk), is_directory) {
            ignore::Match::Ignore(glob) => Some(format!("excluded by `{}`", glob.original())),
            _ => None,
        }
    }
}

/// What was found at a path.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    Directory,
    File { size_bytes: u64, digest: FileDigest, facts: Facts, disk: PathBuf },
    Symlink { target: Vec<u8> },
}

/// Everything under a folder.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Paths relative to the folder (its own is empty), in no particular order.
    pub(crate) entries: Vec<(Vec<u8>, Found)>,
    /// What cannot be in an image whatever the manifest says.
    pub(crate) findings: Vec<Finding>,
    /// Reason, path as the user knows it, size (0 for folders).
    pub(crate) omitted: Vec<(String, String, u64)>,
    /// How many files were read.
    pub(crate) files_read: u64,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    stamp: Stamp,
    facts: Facts,
    digest: FileDigest,
}

/// A file met by the walk; its contents are known already or still to be read.
struct Pending {
    path: Vec<u8>,
    disk: PathBuf,
    stamp: Stamp,
    /// From the index, or from the file once it was read.
    known: Option<Record>,
    /// Whether what is known may enter the index.
    settled: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A worker that panicked is rethrown by the scope that joins it; the data is dropped then.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(THREADS_MAX)
}

fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Scans a folder or a single file (whose path is then empty). Relative paths of
/// findings are prefixed with `prefix`, the place in the image.
pub(crate) fn scan(
    root: &Path,
    prefix: &str,
    excludes: &Excludes,
    index_directory: &Path,
    progress: &dyn Progress,
) -> Result<Scan, ScanError> {
    let index_path = index_path(root, index_directory);
    let text = read_index(&index_path);
    let index = parse_index(&text).unwrap_or_default();
    let walk = Walk::new(root, prefix, excludes, &index);
    let metadata = fs::metadata(root).map_err(|source| ScanError::Stat { path: root.to_owned(), source })?;
    let mut met = if metadata.is_dir() { walk.run()? } else { walk.single(&metadata)? };
    let mut files = std::mem::take(&mut met.files);
    let fresh = hash_all(&mut files, progress)?;
    let mut scan = Scan { entries: met.entries, findings: met.findings, omitted: met.omitted, files_read: fresh };
    if fresh > 0 || files.len() != index.len() {
        // A cache that cannot be written costs time at the next build and nothing else.
        drop(write_index(&index_path, &files));
    }
    scan.entries.reserve(files.len());
    for pending in files {
        let Some(record) = pending.known else { continue };
        let found = Found::File {
            size_bytes: record.stamp.size_bytes,
            digest: record.digest,
            facts: record.facts,
            disk: pending.disk,
        };
        scan.entries.push((pending.path, found));
    }
    Ok(scan)
}

#[derive(Default)]
struct Met {
    entries: Vec<(Vec<u8>, Found)>,
    files: Vec<Pending>,
    findings: Vec<Finding>,
    omitted: Vec<(String, String, u64)>,
}

/// Folders handed over, and how many workers hold some of their own.
#[derive(Default)]
struct Queue {
    directories: Vec<(PathBuf, Vec<u8>)>,
    busy: usize,
    failed: Option<ScanError>,
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    excludes: &'a Excludes,
    index: &'a HashMap<&'a [u8], Record>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Workers without work.
    waiting: AtomicUsize,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Path, prefix: &'a str, excludes: &'a Excludes, index: &'a HashMap<&'a [u8], Record>) -> Self {
        Self {
            root,
            prefix,
            excludes,
            index,
            queue: Mutex::default(),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    fn single(&self, metadata: &fs::Metadata) -> Result<Met, ScanError> {
        let mut met = Met::default();
        self.met(metadata, self.root.to_owned(), Vec::new(), &mut met)?;
        Ok(met)
    }

    fn run(&self) -> Result<Met, ScanError> {
        lock(&self.queue).directories.push((self.root.to_owned(), Vec::new()));
        let all = Mutex::new(Met { entries: vec![(Vec::new(), Found::Directory)], ..Met::default() });
        std::thread::scope(|scope| {
            for _ in 0..threads() {
                scope.spawn(|| {
                    let mut mine = Met::default();
                    self.work(&mut mine);
                    let mut all = lock(&all);
                    all.entries.append(&mut mine.entries);
                    all.files.append(&mut mine.files);
                    all.findings.append(&mut mine.findings);
                    all.omitted.append(&mut mine.omitted);
                });
            }
        });
        match lock(&self.queue).failed.take() {
            Some(error) => Err(error),
            None => Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Lists folders, deepest first. What a worker finds it keeps to itself as long as
    /// nobody waits for work: handing every folder over costs more than listing it.
    fn work(&self, met: &mut Met) {
        let mut mine: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        while let Some((directory, relative)) = mine.pop().or_else(|| self.take()) {
            if let Err(error) = self.list(directory, &relative, met, &mut mine) {
                lock(&self.queue).failed.get_or_insert(error);
                mine.clear();
            }
            if self.waiting.load(Ordering::Relaxed) > 0 && mine.len() > 1 {
                let half = mine.len() / 2;
                lock(&self.queue).directories.extend(mine.drain(..half));
                self.changed.notify_all();
            }
            if mine.is_empty() {
                let mut queue = lock(&self.queue);
                queue.busy -= 1;
                if queue.busy == 0 {
                    self.changed.notify_all();
                }
            }
        }
    }

    /// Waits for a folder of another worker; `None` once there can be no more.
    fn take(&self) -> Option<(PathBuf, Vec<u8>)> {
        let mut queue = lock(&self.queue);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let next = loop {
            if queue.failed.is_some() {
                break None;
            }
            if let Some(next) = queue.directories.pop() {
                queue.busy += 1;
                break Some(next);
            }
            if queue.busy == 0 {
                break None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        next
    }

    fn list(
        &self,
        directory: PathBuf,
        relative: &[u8],
        met: &mut Met,
        deeper: &mut Vec<(PathBuf, Vec<u8>)>,
    ) -> Result<(), ScanError> {
        let failed = |source| ScanError::List { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let disk = entry.path();
            let Some(name) = host::name_bytes(&entry.file_name()) else {
                met.findings.push(Finding {
                    rule: Rule::BadName,
                    path: disk.to_string_lossy().into_owned(),
                    sentence: "its name is not Unicode, so it has no name on Linux: rename or exclude it".into(),
                });
                continue;
            };
            let mut path = Vec::with_capacity(relative.len() + 1 + name.len());
            if !relative.is_empty() {
                path.extend_from_slice(relative);
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            // The listing itself tells folders on most file systems, which spares a call for each.
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let reason = self.excludes.reason(self.root, &disk, &name, relative.is_empty(), is_directory);
            if reason.is_none() && host::is_reserved(&name) {
                met.findings.push(Finding {
                    rule: Rule::BadName,
                    path: format!("{}/{}", self.prefix, display(&path)),
                    sentence:
                        "has a name that Windows keeps to itself, so it cannot be read here: rename or exclude it"
                            .into(),
                });
                continue;
            }
            if is_directory && reason.is_none() {
                deeper.push((disk, path.clone()));
                met.entries.push((path, Found::Directory));
                continue;
            }
            // Without following links; on Linux a call relative to the open folder.
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed since it was listed: as if it had been removed before.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(ScanError::Stat { path: disk, source }),
            };
            if let Some(reason) = reason {
                let slash = if is_directory { "/" } else { "" };
                let shown = format!("{}{slash}", display(&path));
                met.omitted.push((reason, shown, if metadata.is_file() { metadata.len() } else { 0 }));
                continue;
            }
            self.met(&metadata, disk, path, met)?;
        }
        Ok(())
    }

    fn met(&self, metadata: &fs::Metadata, disk: PathBuf, path: Vec<u8>, met: &mut Met) -> Result<(), ScanError> {
        let shown = || format!("{}/{}", self.prefix, display(&path));
        if metadata.is_symlink() {
            let target = fs::read_link(&disk).map_err(|source| ScanError::Read { path: disk.clone(), source })?;
            match host::target_bytes(&disk, &target) {
                Some(target) => met.entries.push((path, Found::Symlink { target })),
                None => met.findings.push(Finding {
                    rule: Rule::BadName,
                    path: shown(),
                    sentence: "its link target is not Unicode: exclude it".into(),
                }),
            }
        } else if metadata.is_file() {
            if host::is_setuid(metadata) {
                met.findings.push(Finding {
                    rule: Rule::Setuid,
                    path: shown(),
                    sentence: "is setuid or setgid; an image has no such bits: remove them with `chmod a-s`, or \
                               allow the path and it is copied without them"
                        .into(),
                });
            }
            let stamp = host::stamp(metadata);
            let known = self.index.get(path.as_slice()).filter(|record| record.stamp == stamp).copied();
            met.files.push(Pending { path, disk, stamp, known, settled: true });
        } else {
            met.findings.push(Finding {
                rule: Rule::SpecialFile,
                path: shown(),
                sentence: format!("is {}, which an image cannot hold: exclude it", host::special(metadata).noun()),
            });
        }
        Ok(())
    }
}

/// How long a tick of the file system's clock may be. One that stores no parts of a
/// second (or two, as FAT does) is told by its round times; the others take the
/// kernel's clock, which ticks every 1 to 10 ms.
fn tick_ns(stamp: Stamp) -> i64 {
    if stamp.modified_ns % 1_000_000_000 == 0 && stamp.changed_ns % 1_000_000_000 == 0 {
        2_500_000_000
    } else {
        50_000_000
    }
}

fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or_default()
}

/// Whether the stamp is old enough at `now_ns` that a later write must change it.
/// Where there is a time of change, only that one counts: the other can be set at will.
fn is_settled(stamp: Stamp, now_ns: i64) -> bool {
    let last_ns = if stamp.changed_ns != 0 { stamp.changed_ns } else { stamp.modified_ns };
    now_ns.saturating_sub(last_ns) > tick_ns(stamp)
}

/// Reads the files that nothing is known of; gives how many those were.
fn hash_all(files: &mut [Pending], progress: &dyn Progress) -> Result<u64, ScanError> {
    let unknown: Vec<usize> = {
        let mut unknown: Vec<usize> = (0..files.len()).filter(|at| files[*at].known.is_none()).collect();
        // Big ones first, so that no thread is left alone with one at the end.
        unknown.sort_by_key(|at| std::cmp::Reverse(files[*at].stamp.size_bytes));
        unknown
    };
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let total = unknown.len() as u64;
    let results: Mutex<Vec<(usize, Record, bool)>> = Mutex::new(Vec::with_capacity(unknown.len()));
    let failed: Mutex<Option<ScanError>> = Mutex::new(None);
    let found: &[Pending] = files;
    std::thread::scope(|scope| {
        for _ in 0..threads().min(unknown.len()) {
            scope.spawn(|| {
                let mut buffer = vec![0; READ_BUFFER_BYTES];
                let mut mine = Vec::new();
                while let Some(at) = unknown.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if lock(&failed).is_some() {
                        break;
                    }
                    let file = &found[*at];
                    let name = file.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                    match read_file(&file.disk, name, &mut buffer) {
                        Ok((record, settled)) => mine.push((*at, record, settled)),
                        Err(error) => {
                            lock(&failed).get_or_insert(error);
                            break;
                        }
                    }
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if done.is_multiple_of(64) || done == total {
                        progress.advance(Phase::Scan, done, total, &display(&file.path));
                    }
                }
                lock(&results).append(&mut mine);
            });
        }
    });
    if let Some(error) = lock(&failed).take() {
        return Err(error);
    }
    for (at, record, settled) in lock(&results).drain(..) {
        (files[at].known, files[at].settled) = (Some(record), settled);
    }
    Ok(total)
}

fn read_file(path: &Path, name: &[u8], buffer: &mut [u8]) -> Result<(Record, bool), ScanError> {
    let failed = |source| ScanError::Read { path: path.to_owned(), source };
    for _ in 0..READ_ATTEMPTS {
        let mut file = File::open(path).map_err(failed)?;
        let before = host::stamp(&file.metadata().map_err(failed)?);
        let begun_ns = now_ns();
        let (digest, size_bytes, facts) = digest_of(&mut file, name, buffer).map_err(failed)?;
        let after = host::stamp(&file.metadata().map_err(failed)?);
        if before == after && size_bytes == after.size_bytes {
            return Ok((Record { stamp: after, facts, digest }, is_settled(after, begun_ns)));
        }
    }
    Err(ScanError::Unsteady { path: path.to_owned() })
}

/// Digest, length and facts of a stream, in one pass with one buffer (of at least [`HEAD_BYTES`]).
pub(crate) fn digest_of(
    reader: &mut dyn io::Read,
    name: &[u8],
    buffer: &mut [u8],
) -> io::Result<(FileDigest, u64, Facts)> {
    let mut hasher = VerityHasher::new();
    let mut facts = None;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let facts = facts.get_or_insert_with(|| Facts::of(name, &buffer[..filled.min(HEAD_BYTES)]));
        hasher.update(&buffer[..filled]);
        if filled < buffer.len() {
            let size_bytes = hasher.size_bytes();
            return Ok((hasher.finish(), size_bytes, *facts));
        }
    }
}

fn index_path(root: &Path, index_directory: &Path) -> PathBuf {
    let absolute = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let id = sha256(absolute.as_os_str().as_encoded_bytes());
    index_directory.join(format!("{}.idx", hex(&id[..16])))
}

fn read_index(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(INDEX_MAX_BYTES).read_to_end(&mut text)) {
        Ok(_) => text,
        Err(_) => Vec::new(),
    }
}

fn parse_index(text: &[u8]) -> Option<HashMap<&[u8], Record>> {
    let (body, checksum) = text.split_last_chunk::<32>()?;
    if sha256(body) != *checksum {
        return None;
    }
    let mut rest = body.strip_prefix(MAGIC)?;
    let mut take = |bytes: usize| {
        let (taken, left) = rest.split_at_checked(bytes)?;
        rest = left;
        Some(taken)
    };
    fn number<const N: usize>(taken: Option<&[u8]>) -> Option<[u8; N]> {
        taken?.try_into().ok()
    }
    let count = u32::from_le_bytes(number(take(4))?) as usize;
    // A record has at least 67 bytes, which bounds what a lying count can reserve.
    let mut index = HashMap::with_capacity(count.min(text.len() / 67));
    for _ in 0..count {
        let path = usize::from(u16::from_le_bytes(number(take(2))?));
        let path = take(path)?;
        let stamp = Stamp {
            size_bytes: u64::from_le_bytes(number(take(8))?),
            modified_ns: i64::from_le_bytes(number(take(8))?),
            changed_ns: i64::from_le_bytes(number(take(8))?),
            inode: u64::from_le_bytes(number(take(8))?),
        };
        let facts = Facts::from_byte(take(1)?[0])?;
        index.insert(path, Record { stamp, facts, digest: FileDigest(number(take(32))?) });
    }
    Some(index)
}

fn write_index(path: &Path, files: &[Pending]) -> io::Result<()> {
    let settled = || {
        let settled = files.iter().filter(|file| file.settled && u16::try_from(file.path.len()).is_ok());
        settled.filter_map(|file| Some((file, file.known?)))
    };
    let mut text = Vec::with_capacity(files.len() * 130 + 64);
    text.extend_from_slice(MAGIC);
    text.extend_from_slice(&u32::try_from(settled().count()).unwrap_or(0).to_le_bytes());
    for (file, record) in settled() {
        text.extend_from_slice(&u16::try_from(file.path.len()).unwrap_or(0).to_le_bytes());
        text.extend_from_slice(&file.path);
        text.extend_from_slice(&record.stamp.size_bytes.to_le_bytes());
        text.extend_from_slice(&record.stamp.modified_ns.to_le_bytes());
        text.extend_from_slice(&record.stamp.changed_ns.to_le_bytes());
        text.extend_from_slice(&record.stamp.inode.to_le_bytes());
        text.push(record.facts.to_byte());
        text.extend_from_slice(&record.digest.0);
    }
    let checksum = sha256(&text);
    text.extend_from_slice(&checksum);
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    // No fsync: the checksum tells a torn index from a whole one, and losing it costs one slow scan.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&text)?;
    file.persist(path)?;
    Ok(())
}
