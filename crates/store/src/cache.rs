//! What an operator's machine keeps of what it sent, as bases of later deltas.
//!
//! The cache is a directory of packs ([`crate::pack`]) without deltas: [`crate::pack::encode`] writes
//! each record a second time as it sends it, so keeping costs a write and no compression. A pack that comes from
//! a node is taken in as it is, once every object in it was checked ([`Cache::take_in`]). An object is unpacked
//! with the record that holds it, when it is asked for.
//!
//! # Layout
//!
//! ```text
//! AGE-UNIQUE.pack    a pack; AGE is the milliseconds since 1970 when it was begun, 16 hexadecimal digits
//! AGE-UNIQUE.index   magic "bulkhead-index-1", u64 length of the pack, then for each object, sorted by digest:
//!                    32 bytes digest, u64 size, u64 offset of its (first) record. All little-endian.
//! *.part             either of them while it is being written
//! ```
//!
//! # Invariants
//!
//! - A file is written by one writer, under a name of its own, renamed when it is whole and never changed after.
//! - An index that is absent, of another length, or says otherwise than its pack is made again from the pack's
//!   record headers. Nothing is lost with it.
//! - What is read is checked against its digest: a damaged file makes objects absent, never wrong.
//! - Losing the whole cache costs bytes on the wire, nothing else. So nothing here is synced to disk.

#![expect(clippy::cast_possible_truncation, reason = "offsets within a record, which is at most 4 MiB")]

use crate::pack::{
    self, BLOCK_MAX_BYTES, Contents, Header, Nothing, PackError, RecordKind, Sink, read_header, read_magic, unpack,
};
use bulkhead_core::{FileDigest, verity, verity::VerityHasher};
use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const INDEX_MAGIC: &[u8; 16] = b"bulkhead-index-1";
const INDEX_HEADER_BYTES: usize = 24;
const INDEX_ENTRY_BYTES: usize = 48;
/// A part of this age has no writer any more: no push takes that long.
const PART_MAX_AGE: Duration = Duration::from_secs(3 * 24 * 3600);
/// Packs are few and large at first, small and many later; beyond this the oldest go, so that opening stays quick.
const PACKS_MAX: usize = 512;

/// The records that a window of a large base touches, at most 16 MiB.
const UNPACKED_MAX: usize = 4;

/// The cache, as it was when it was opened.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    /// Newest first.
    packs: Vec<Pack>,
    /// Newest last.
    unpacked: Mutex<VecDeque<Unpacked>>,
}

#[derive(Debug)]
struct Pack {
    path: PathBuf,
    length: u64,
    /// Sorted entries, as in the file.
    index: Vec<u8>,
}

/// A record that was unpacked lately: files of one directory are often in one record and asked for together, and the
/// windows of a large base overlap.
#[derive(Debug, Clone)]
struct Unpacked {
    pack: PathBuf,
    offset: u64,
    record: Arc<Record>,
}

#[derive(Debug)]
struct Record {
    header: Header,
    raw: Vec<u8>,
    /// Where the next record begins.
    end: u64,
}

/// A new file of the cache: give it to [`crate::pack::encode`] as `keep`, then [`Writer::commit`] it. Dropped
/// without that, it vanishes.
#[derive(Debug)]
pub struct Writer {
    file: Option<BufWriter<File>>,
    part: PathBuf,
}

/// Why the cache could not.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
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
    /// A pack that was to be taken in is not what was asked for.
    #[error("cannot take in what was sent")]
    Pack(#[source] PackError),
    /// A pack that was to be taken in has not everything.
    #[error("{missing} of the objects asked for did not come")]
    Incomplete {
        /// How many did not.
        missing: usize,
    },
}

/// What a pack of so many objects of so many bytes takes at most: bodies never grow, headers are bounded.
const PACK_BYTES_PER_OBJECT: u64 = 128;
/// Likewise, for each record of a large object.
const PACK_BYTES_PER_RECORD: u64 = 128;

fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> CacheError {
    move |source| CacheError::Io { operation, path: path.into(), source }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Cache {
    /// Opens a cache; makes its directory where it is absent.
    ///
    /// # Errors
    /// The directory cannot be made or listed. A file that cannot be used is as good as absent.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let mut packs = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
            let path = entry.map_err(failed("list", directory))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("pack") => packs.extend(Pack::open(path)),
                Some("part") if is_older(&path, PART_MAX_AGE) => {
                    // Another process may be removing it too.
                    fs::remove_file(path).ok();
                }
                _ => {}
            }
        }
        packs.sort_by(|a, b| b.path.cmp(&a.path));
        Ok(Self { directory: directory.into(), packs, unpacked: Mutex::default() })
    }

    /// The cache as it is now: with what was committed since this one was opened.
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn reopened(&self) -> Result<Self, CacheError> {
        Self::open(&self.directory)
    }

    /// Whether an object is here, as far as the index knows.
    #[must_use]
    pub fn has(&self, digest: &FileDigest) -> bool {
        self.packs.iter().any(|pack| pack.find(digest).is_some())
    }

    /// Bytes on disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.packs.iter().map(|pack| pack.length + pack.index.len() as u64).sum()
    }

    /// Begins a new file.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn writer(&self) -> Result<Writer, CacheError> {
        let age = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis());
        for attempt in 0u32..1000 {
            let part = self.directory.join(format!("{age:016x}-{:x}-{attempt}.pack.part", std::process::id()));
            match File::create_new(&part) {
                Ok(file) => {
                    let file = BufWriter::with_capacity(64 << 10, file);
                    return Ok(Writer { file: Some(file), part });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(failed("create", &part)(source)),
            }
        }
        Err(failed("create a file in", &self.directory)(io::ErrorKind::AlreadyExists.into()))
    }

    /// Removes the oldest files until at most this much is left.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn shrink(&mut self, budget_bytes: u64) -> Result<(), CacheError> {
        while self.size_bytes() > budget_bytes || self.packs.len() > PACKS_MAX {
            let Some(oldest) = self.packs.pop() else { break };
            // The index first: one without its pack would stay for ever.
            for path in [oldest.path.with_extension("index"), oldest.path] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed("remove", &path)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes in a pack from a place that is not trusted, for whoever opens the cache from now on: exactly the wanted
    /// objects, each of which has its digest, none as a delta. Otherwise nothing is kept. Gives the pack's length.
    ///
    /// # Errors
    /// [`CacheError::Pack`] for what is wrong with it, [`CacheError::Incomplete`] where something did not come.
    pub fn take_in(&self, input: &mut dyn Read, wanted: &HashMap<FileDigest, u64>) -> Result<u64, CacheError> {
        let mut writer = self.writer()?;
        let content_bytes: u64 = wanted.values().sum();
        let records = content_bytes / BLOCK_MAX_BYTES as u64 + 1;
        let bound = content_bytes
            .saturating_add(PACK_BYTES_PER_OBJECT * wanted.len() as u64)
            .saturating_add(PACK_BYTES_PER_RECORD * records);
        let mut checked = Checked { wanted: wanted.clone(), current: None };
        let mut kept = Kept { input: input.take(bound), writer: &mut writer, bytes: 0 };
        let decoded = pack::decode(&mut kept, &Nothing, &mut checked).map_err(CacheError::Pack)?;
        let bytes = kept.bytes;
        let missing = checked.wanted.len() + decoded.unresolved.len();
        if missing > 0 {
            return Err(CacheError::Incomplete { missing });
        }
        writer.commit()?;
        Ok(bytes)
    }

    fn record(&self, pack: &Pack, offset: u64) -> io::Result<Arc<Record>> {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = unpacked.iter().find(|found| found.pack == pack.path && found.offset == offset) {
            return Ok(Arc::clone(&found.record));
        }
        let record = Arc::new(pack.record(offset)?);
        if unpacked.len() == UNPACKED_MAX {
            unpacked.pop_front();
        }
        unpacked.push_back(Unpacked { pack: pack.path.clone(), offset, record: Arc::clone(&record) });
        Ok(record)
    }

    /// A small object's bytes, checked; `None` where it is absent, damaged or large.
    fn small(&self, pack: &Pack, digest: &FileDigest, offset: u64) -> Option<Vec<u8>> {
        let record = self.record(pack, offset).ok()?;
        let RecordKind::Group(files) = &record.header.kind else { return None };
        let mut start = 0;
        for (found, size_bytes) in files {
            let end = start + *size_bytes as usize;
            if found == digest {
                let bytes = record.raw.get(start..end)?;
                return (verity::digest(bytes) == *digest).then(|| bytes.to_vec());
            }
            start = end;
        }
        None
    }
}

impl Contents for Cache {
    /// A large object is checked as it is read: the last read fails where it is damaged.
    fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
        for pack in &self.packs {
            let Some((size_bytes, offset)) = pack.find(digest) else { continue };
            if size_bytes <= BLOCK_MAX_BYTES as u64 {
                if let Some(bytes) = self.small(pack, digest, offset) {
                    return Ok(Some(Box::new(io::Cursor::new(bytes))));
                }
            } else {
                return Ok(Some(Box::new(Large {
                    pack: Pack { path: pack.path.clone(), length: pack.length, index: Vec::new() },
                    digest: *digest,
                    size_bytes,
                    next: offset,
                    done_bytes: 0,
                    raw: Vec::new(),
                    given: 0,
                    hasher: Some(VerityHasher::new()),
                })));
            }
        }
        Ok(None)
    }

    /// A part of a large object cannot be checked by itself: whoever needs it right reads the whole once.
    fn read_at(&self, digest: &FileDigest, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        for pack in &self.packs {
            let Some((size_bytes, mut record_offset)) = pack.find(digest) else { continue };
            let end = offset.checked_add(length as u64).filter(|end| *end <= size_bytes);
            let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
            if size_bytes <= BLOCK_MAX_BYTES as u64 {
                if let Some(bytes) = self.small(pack, digest, record_offset) {
                    // Within the object, which is small.
                    return Ok(bytes.get(offset as usize..end as usize).map(<[u8]>::to_vec));
                }
                continue;
            }
            let mut bytes = Vec::with_capacity(length);
            let mut file = BufReader::with_capacity(512, File::open(&pack.path)?);
            let mut at = 0;
            while at < end {
                file.seek(SeekFrom::Start(record_offset))?;
                let header = pack.header(&mut file)?;
                let body = file.stream_position()?;
                segment_of(&header, digest, size_bytes, at)?;
                let next = at + header.raw_bytes as u64;
                if next > offset {
                    let record = self.record(pack, record_offset)?;
                    let start = offset.saturating_sub(at) as usize;
                    let stop = (end.min(next) - at) as usize;
                    bytes.extend_from_slice(record.raw.get(start..stop).ok_or_else(|| damaged("a short segment"))?);
                }
                record_offset = body + header.packed_bytes as u64;
                at = next;
            }
            return Ok(Some(bytes));
        }
        Ok(None)
    }
}

/// What is read is written to the cache as well.
struct Kept<'a, R> {
    input: R,
    writer: &'a mut Writer,
    bytes: u64,
}

impl<R: Read> Read for Kept<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.writer.write_all(&buffer[..count])?;
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Ticks off wanted objects. Their bytes are in the pack, which is kept.
struct Checked {
    wanted: HashMap<FileDigest, u64>,
    current: Option<FileDigest>,
}

impl Sink for Checked {
    /// All that comes is looked at: what was not asked for is not kept unseen.
    fn wants(&mut self, _: &FileDigest, _: u64) -> bool {
        true
    }

    fn begin(&mut self, digest: &FileDigest, size_bytes: u64) -> io::Result<()> {
        if self.wanted.get(digest) != Some(&size_bytes) {
            return Err(damaged("nobody asked for it"));
        }
        self.current = Some(*digest);
        Ok(())
    }

    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Some(digest) = self.current.take() {
            self.wanted.remove(&digest);
        }
        Ok(())
    }

    fn abandon(&mut self) {
        self.current = None;
    }
}

fn segment_of(header: &Header, digest: &FileDigest, size_bytes: u64, offset: u64) -> io::Result<()> {
    match &header.kind {
        RecordKind::Segment { digest: found, size_bytes: size, offset: at }
            if found == digest && *size == size_bytes && *at == offset =>
        {
            Ok(())
        }
        _ => Err(damaged("not the segment that the index names")),
    }
}

/// Reads a large object, segment by segment.
struct Large {
    pack: Pack,
    digest: FileDigest,
    size_bytes: u64,
    /// Offset of the next segment's record.
    next: u64,
    done_bytes: u64,
    raw: Vec<u8>,
    given: usize,
    hasher: Option<VerityHasher>,
}

impl Read for Large {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.raw.len() {
            if self.done_bytes == self.size_bytes {
                return Ok(0);
            }
            let record = self.pack.record(self.next)?;
            segment_of(&record.header, &self.digest, self.size_bytes, self.done_bytes)?;
            self.next = record.end;
            self.raw = record.raw;
            self.given = 0;
            self.done_bytes += self.raw.len() as u64;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&self.raw);
            }
            if self.done_bytes == self.size_bytes
                && self.hasher.take().is_some_and(|hasher| hasher.finish() != self.digest)
            {
                return Err(damaged("the cached object is damaged"));
            }
        }
        let count = buffer.len().min(self.raw.len() - self.given);
        buffer[..count].copy_from_slice(&self.raw[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

fn is_older(path: &Path, than: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > than))
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[index]))
}

impl Pack {
    /// `None` where it is not to be used.
    fn open(path: PathBuf) -> Option<Self> {
        let length = fs::metadata(&path).ok()?.len();
        let stored = fs::read(path.with_extension("index")).ok().and_then(|bytes| {
            let is_whole = bytes.len() >= INDEX_HEADER_BYTES
                && (bytes.len() - INDEX_HEADER_BYTES).is_multiple_of(INDEX_ENTRY_BYTES)
                && bytes[..16] == *INDEX_MAGIC
                && number(&bytes[16..]) == length;
            is_whole.then(|| bytes[INDEX_HEADER_BYTES..].to_vec())
        });
        let mut pack = Self { path, length, index: stored.unwrap_or_default() };
        if pack.index.is_empty() {
            pack.index = pack.scan().ok()?;
            // Without it the next open scans again.
            pack.write_index().ok();
        }
        Some(pack)
    }

    fn header(&self, input: &mut dyn Read) -> io::Result<Header> {
        match read_header(input) {
            Ok(Ok(header)) if !header.has_bases() => Ok(header),
            _ => Err(damaged("not a record of a pack without deltas")),
        }
    }

    /// Makes the index from the records' headers.
    fn scan(&self) -> io::Result<Vec<u8>> {
        let mut file = BufReader::with_capacity(64 << 10, File::open(&self.path)?);
        read_magic(&mut file).map_err(|_| damaged("not a pack"))?;
        let mut entries = Vec::new();
        loop {
            let offset = file.stream_position()?;
            let header = match read_header(&mut file) {
                Ok(Ok(header)) if !header.has_bases() => header,
                Ok(Err(_)) => break,
                _ => return Err(damaged("not a whole pack without deltas")),
            };
            match &header.kind {
                RecordKind::Group(files) => {
                    entries.extend(files.iter().map(|(digest, size)| (*digest, u64::from(*size), offset)));
                }
                RecordKind::Segment { digest, size_bytes, offset: 0 } => entries.push((*digest, *size_bytes, offset)),
                RecordKind::Segment { .. } => {}
            }
            // At most 4 MiB, so it fits.
            file.seek_relative(header.packed_bytes as i64)?;
        }
        entries.sort_unstable();
        let mut index = Vec::with_capacity(entries.len() * INDEX_ENTRY_BYTES);
        for (digest, size_bytes, offset) in entries {
            index.extend_from_slice(&digest.0);
            index.extend_from_slice(&size_bytes.to_le_bytes());
            index.extend_from_slice(&offset.to_le_bytes());
        }
        Ok(index)
    }

    fn write_index(&self) -> io::Result<()> {
        let part = self.path.with_extension(format!("index-{:x}.part", std::process::id()));
        let bytes = [INDEX_MAGIC.as_slice(), &self.length.to_le_bytes(), &self.index].concat();
        fs::write(&part, bytes).and_then(|()| fs::rename(&part, self.path.with_extension("index")))
    }

    /// An object's size and the offset of its first record.
    fn find(&self, digest: &FileDigest) -> Option<(u64, u64)> {
        let entry = |index: usize| &self.index[index * INDEX_ENTRY_BYTES..(index + 1) * INDEX_ENTRY_BYTES];
        let (mut low, mut high) = (0, self.index.len() / INDEX_ENTRY_BYTES);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = entry(middle);
            match found[..32].cmp(digest.0.as_slice()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some((number(&found[32..]), number(&found[40..]))),
            }
        }
        None
    }

    fn record(&self, offset: u64) -> io::Result<Record> {
        let mut file = BufReader::new(File::open(&self.path)?);
        file.seek(SeekFrom::Start(offset))?;
        let header = self.header(&mut file)?;
        let mut packed = Vec::with_capacity(header.packed_bytes);
        if file.by_ref().take(header.packed_bytes as u64).read_to_end(&mut packed)? != header.packed_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = file.stream_position()?;
        let mut raw = Vec::new();
        unpack(&header, &packed, &[], &mut raw).ok_or_else(|| damaged("a record that does not unpack"))?;
        Ok(Record { header, raw, end })
    }
}

impl Writer {
    /// Makes what was written part of the cache, for whoever opens it from now on.
    ///
    /// # Errors
    /// The file cannot be written or renamed, or is not a whole pack.
    pub fn commit(mut self) -> Result<(), CacheError> {
        let error = failed("write", &self.part);
        if let Some(file) = self.file.take() {
            file.into_inner().map_err(|failure| error(failure.into_error()))?;
        }
        let length = fs::metadata(&self.part).map_err(&error)?.len();
        let path = self.part.with_extension("");
        let mut pack = Pack { path: self.part.clone(), length, index: Vec::new() };
        pack.index = pack.scan().map_err(&error)?;
        if pack.index.is_empty() {
            // Nothing was sent; the part goes with `self`.
            return Ok(());
        }
        pack.path.clone_from(&path);
        // The index first: then whoever finds the pack finds it too.
        pack.write_index().map_err(failed("write the index of", &path))?;
        fs::rename(&self.part, &path).map_err(failed("rename into place", &path))
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.flush(),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Windows removes no file that is open.
        drop(self.file.take());
        fs::remove_file(&self.part).ok();
    }
}

#[cfg(test)]
mod tests;
