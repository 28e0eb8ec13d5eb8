//! Writing a pack: one thread reads, several compress, the caller's writes in order.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths and counts of a record are bounded by the constants of the module above, far below their integers"
)]

use super::{
    BLOCK_MAX_BYTES, Contents, MAGIC, PREFIX_MAX_BYTES, PackError, RECORD_FILES_MAX, document::compress_with_prefix,
};
use bulkhead_core::{
    FileDigest,
    verity::{self, VerityHasher},
};
use std::{
    collections::{BTreeMap, HashSet},
    io::{self, Read, Write},
    sync::{Arc, Mutex, mpsc},
    thread,
};

/// One object to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// The digest of its contents.
    pub digest: FileDigest,
    /// Its length.
    pub size_bytes: u64,
    /// An object that the receiver has and that is probably alike, such as what was at the same path before.
    pub base: Option<FileDigest>,
}

/// How to encode.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// zstd level of what goes whole.
    pub level: i32,
    /// zstd level of deltas.
    pub delta_level: i32,
    /// How many threads compress, at least 1.
    pub threads: usize,
}

impl Options {
    /// For a local network, or this machine: more effort takes longer than sending what it would save.
    #[must_use]
    pub fn fast(self) -> Self {
        Self { level: self.level.min(1), delta_level: self.delta_level.min(3), ..self }
    }
}

impl Default for Options {
    /// For a line of some 50 Mbit/s.
    fn default() -> Self {
        Self { level: 3, delta_level: 9, threads: thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// What was encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub content_bytes: u64,
    /// The pack's bytes.
    pub pack_bytes: u64,
    /// How many of the objects went as deltas, in whole or in part.
    pub deltas: u64,
}

/// What a record holds, before compression.
enum Subject {
    Group(Vec<(FileDigest, u32)>),
    Segment { digest: FileDigest, size_bytes: u64, offset: u64 },
}

struct BaseRange {
    digest: FileDigest,
    offset: u64,
    length: u32,
}

struct Block {
    subject: Subject,
    raw: Vec<u8>,
    bases: Vec<BaseRange>,
    prefix: Vec<u8>,
}

struct Record {
    bytes: Vec<u8>,
    /// The same without bases, where that differs and is wanted.
    whole: Option<Vec<u8>>,
    objects: u64,
    content_bytes: u64,
    /// Objects that go as deltas here; a segment's file is one of them at each of its segments.
    deltas: u64,
    /// The file that this is a segment of.
    large: Option<FileDigest>,
}

/// Writes a pack of `items` to `out`. Where `keep` is given it gets the same objects as
/// a pack without deltas, which is what [`crate::cache`] wants.
///
/// What is read is checked against its digest before it is sent. An item whose base is not
/// in `bases`, is damaged there, or saves nothing goes whole. An item named twice goes once.
///
/// # Errors
/// [`PackError::Absent`], [`PackError::Changed`] or [`PackError::Contents`] name the object
/// that could not be had; [`PackError::Write`] where `out` or `keep` fails.
pub fn encode<'a>(
    items: &[Item],
    contents: &dyn Contents,
    bases: &dyn Contents,
    out: &'a mut dyn Write,
    keep: Option<&'a mut dyn Write>,
    options: &Options,
) -> Result<Summary, PackError> {
    let mut output = Output { out, keep, summary: Summary::default(), last_delta: None };
    output.write(MAGIC, None)?;
    let threads = options.threads.max(1);
    let keep_whole = output.keep.is_some();
    thread::scope(|scope| {
        // A permit is a block in memory: the reader takes one for each, the writer gives it back.
        let (permit_give, permit_take) = mpsc::sync_channel::<()>(2 * threads + 2);
        let (block_give, block_take) = mpsc::sync_channel::<(u64, Result<Block, PackError>)>(threads);
        let (record_give, record_take) = mpsc::channel::<(u64, Result<Record, PackError>)>();
        // Shared by the workers alone: when the last one leaves, the reader's next send fails.
        let block_take = Arc::new(Mutex::new(block_take));
        for _ in 0..2 * threads + 2 {
            // The channel holds exactly this many, so it is never full and its other end is still here.
            permit_give.try_send(()).map_err(|_| PackError::Compress { reason: "no permit" })?;
        }
        let reader = Reader { contents, bases, permits: permit_take, blocks: block_give, next: 0 };
        scope.spawn(move || reader.run(items));
        for _ in 0..threads {
            let record_give = record_give.clone();
            let block_take = Arc::clone(&block_take);
            scope.spawn(move || {
                let mut worker = Worker { options, keep_whole };
                while let Some((number, block)) = next(&block_take) {
                    let record = block.and_then(|block| worker.compress(block));
                    if record_give.send((number, record)).is_err() {
                        return;
                    }
                }
            });
        }
        drop((record_give, block_take));
        let mut waiting = BTreeMap::new();
        let mut number = 0;
        for (arrived, record) in record_take {
            waiting.insert(arrived, record);
            while let Some(record) = waiting.remove(&number) {
                // Leaving for an error drops the channels' ends here, which ends the reader and the workers.
                output.record(&record?)?;
                number += 1;
                // Fails where the reader is done, and then nobody needs it.
                permit_give.try_send(()).ok();
            }
        }
        Ok(())
    })?;
    let mut end = vec![b'e'];
    end.extend_from_slice(&output.summary.objects.to_le_bytes());
    output.write(&end, None)?;
    output.out.flush().map_err(PackError::Write)?;
    if let Some(keep) = &mut output.keep {
        keep.flush().map_err(PackError::Write)?;
    }
    Ok(output.summary)
}

fn next<T>(receiver: &Mutex<mpsc::Receiver<T>>) -> Option<T> {
    // A worker that panicked poisons the lock; the others then stop and the scope passes the panic on.
    receiver.lock().ok()?.recv().ok()
}

struct Output<'a> {
    out: &'a mut dyn Write,
    keep: Option<&'a mut dyn Write>,
    summary: Summary,
    /// The large file that was counted as a delta last: its segments come one after another.
    last_delta: Option<FileDigest>,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8], whole: Option<&[u8]>) -> Result<(), PackError> {
        self.out.write_all(bytes).map_err(PackError::Write)?;
        self.summary.pack_bytes += bytes.len() as u64;
        match &mut self.keep {
            Some(keep) => keep.write_all(whole.unwrap_or(bytes)).map_err(PackError::Write),
            None => Ok(()),
        }
    }

    fn record(&mut self, record: &Record) -> Result<(), PackError> {
        self.write(&record.bytes, record.whole.as_deref())?;
        self.summary.objects += record.objects;
        if record.deltas > 0 && (record.large.is_none() || record.large != self.last_delta) {
            self.summary.deltas += record.deltas;
            self.last_delta = record.large;
        }
        self.summary.content_bytes += record.content_bytes;
        Ok(())
    }
}

/// The reading thread. A send that fails means that the writer gave up: there is nobody left to tell.
struct Reader<'a> {
    contents: &'a dyn Contents,
    bases: &'a dyn Contents,
    permits: mpsc::Receiver<()>,
    blocks: mpsc::SyncSender<(u64, Result<Block, PackError>)>,
    next: u64,
}

/// The writer gave up, or an error was passed on to it.
struct Stop;

/// Small files on their way to becoming one record.
#[derive(Default)]
struct Group {
    files: Vec<(FileDigest, u32)>,
    raw: Vec<u8>,
    bases: Vec<BaseRange>,
    prefix: Vec<u8>,
}

impl Reader<'_> {
    fn run(mut self, items: &[Item]) {
        // Stop carries nothing: whatever there was to say was sent.
        if let Err(Stop) = self.all(items) {}
    }

    fn all(&mut self, items: &[Item]) -> Result<(), Stop> {
        let mut seen = HashSet::with_capacity(items.len());
        let mut plain = Group::default();
        let mut delta = Group::default();
        for item in items.iter().filter(|item| seen.insert(item.digest)) {
            if item.size_bytes > BLOCK_MAX_BYTES as u64 {
                self.large(item)?;
                continue;
            }
            let raw = match self.small(item) {
                Ok(raw) => raw,
                Err(error) => return self.fail(error),
            };
            let base = match item.base {
                Some(base) if base != item.digest && !raw.is_empty() => self.small_base(base),
                _ => None,
            };
            let group = if base.is_some() { &mut delta } else { &mut plain };
            let prefix_bytes = base.as_ref().map_or(0, |(_, bytes)| bytes.len());
            if group.files.len() == RECORD_FILES_MAX
                || group.raw.len() + raw.len() > BLOCK_MAX_BYTES
                || group.prefix.len() + prefix_bytes > PREFIX_MAX_BYTES
            {
                self.group(std::mem::take(group))?;
            }
            group.files.push((item.digest, raw.len() as u32));
            group.raw.extend_from_slice(&raw);
            if let Some((digest, bytes)) = base
                && group.bases.iter().all(|range| range.digest != digest)
            {
                group.bases.push(BaseRange { digest, offset: 0, length: bytes.len() as u32 });
                group.prefix.extend_from_slice(&bytes);
            }
        }
        self.group(plain)?;
        self.group(delta)
    }

    fn send(&mut self, block: Result<Block, PackError>) -> Result<(), Stop> {
        self.permits.recv().map_err(|_| Stop)?;
        self.blocks.send((self.next, block)).map_err(|_| Stop)?;
        self.next += 1;
        Ok(())
    }

    fn fail(&mut self, error: PackError) -> Result<(), Stop> {
        self.send(Err(error))?;
        Err(Stop)
    }

    fn group(&mut self, group: Group) -> Result<(), Stop> {
        if group.files.is_empty() {
            return Ok(());
        }
        let Group { files, raw, bases, prefix } = group;
        self.send(Ok(Block { subject: Subject::Group(files), raw, bases, prefix }))
    }

    fn open(&self, digest: FileDigest) -> Result<Box<dyn Read + Send>, PackError> {
        match self.contents.open(&digest) {
            Ok(Some(reader)) => Ok(reader),
            Ok(None) => Err(PackError::Absent { digest }),
            Err(source) => Err(PackError::Contents { digest, source }),
        }
    }

    /// A small file's bytes; a worker checks their digest.
    fn small(&self, item: &Item) -> Result<Vec<u8>, PackError> {
        let digest = item.digest;
        // The callers checked that it is at most BLOCK_MAX_BYTES.
        let mut raw = Vec::with_capacity(item.size_bytes as usize + 1);
        let mut reader = self.open(digest)?.take(item.size_bytes + 1);
        reader.read_to_end(&mut raw).map_err(|source| PackError::Contents { digest, source })?;
        if raw.len() as u64 != item.size_bytes {
            return Err(PackError::Changed { digest });
        }
        Ok(raw)
    }

    /// A small file's base, if it is there, whole, right and not large.
    fn small_base(&self, digest: FileDigest) -> Option<(FileDigest, Vec<u8>)> {
        let mut bytes = Vec::new();
        let reader = self.bases.open(&digest).ok()??;
        reader.take(PREFIX_MAX_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
        let usable = !bytes.is_empty() && bytes.len() <= PREFIX_MAX_BYTES && verity::digest(&bytes) == digest;
        usable.then_some((digest, bytes))
    }

    /// A large file's base and its length, if it is there, whole and right.
    fn large_base(&self, digest: FileDigest) -> Option<(FileDigest, u64)> {
        let mut reader = self.bases.open(&digest).ok()??;
        let mut hasher = VerityHasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        let size_bytes = hasher.size_bytes();
        (size_bytes > 0 && hasher.finish() == digest).then_some((digest, size_bytes))
    }

    fn large(&mut self, item: &Item) -> Result<(), Stop> {
        let digest = item.digest;
        let mut reader = match self.open(digest) {
            Ok(reader) => reader,
            Err(error) => return self.fail(error),
        };
        let base = item.base.filter(|base| *base != digest).and_then(|base| self.large_base(base));
        let mut hasher = VerityHasher::new();
        let mut offset = 0;
        while offset < item.size_bytes {
            let length = (item.size_bytes - offset).min(BLOCK_MAX_BYTES as u64);
            let mut raw = Vec::with_capacity(BLOCK_MAX_BYTES);
            if let Err(source) = reader.by_ref().take(length).read_to_end(&mut raw) {
                return self.fail(PackError::Contents { digest, source });
            }
            hasher.update(&raw);
            let is_last = offset + length == item.size_bytes;
            let whole = !is_last || (matches!(reader.read(&mut [0]), Ok(0)) && hasher.clone().finish() == digest);
            if raw.len() as u64 != length || !whole {
                return self.fail(PackError::Changed { digest });
            }
            let (bases, prefix) = base.and_then(|base| self.window(base, item.size_bytes, offset)).unwrap_or_default();
            let subject = Subject::Segment { digest, size_bytes: item.size_bytes, offset };
            self.send(Ok(Block { subject, raw, bases, prefix }))?;
            offset += length;
        }
        Ok(())
    }

    /// The part of a large base around the same relative place as a segment.
    fn window(&self, base: (FileDigest, u64), size_bytes: u64, offset: u64) -> Option<(Vec<BaseRange>, Vec<u8>)> {
        let (digest, base_bytes) = base;
        let length = base_bytes.min(PREFIX_MAX_BYTES as u64);
        let scaled = u128::from(offset) * u128::from(base_bytes) / u128::from(size_bytes);
        // At most base_bytes, so it fits.
        let start = (scaled as u64).saturating_sub(BLOCK_MAX_BYTES as u64).min(base_bytes - length);
        let prefix = self.bases.read_at(&digest, start, length as usize).ok()??;
        Some((vec![BaseRange { digest, offset: start, length: length as u32 }], prefix))
    }
}

struct Worker<'a> {
    options: &'a Options,
    keep_whole: bool,
}

/// A delta this many times smaller than the file is taken without trying how small the file gets by itself.
const DELTA_SURELY_SMALLER: usize = 16;

impl Worker<'_> {
    fn compress(&mut self, block: Block) -> Result<Record, PackError> {
        let (objects, files, large) = match &block.subject {
            Subject::Group(files) => {
                let mut offset = 0;
                for (digest, size_bytes) in files {
                    let end = offset + *size_bytes as usize;
                    if verity::digest(&block.raw[offset..end]) != *digest {
                        return Err(PackError::Changed { digest: *digest });
                    }
                    offset = end;
                }
                (files.len() as u64, files.len() as u64, None)
            }
            Subject::Segment { digest, offset, .. } => (u64::from(*offset == 0), 1, Some(*digest)),
        };
        let content_bytes = block.raw.len() as u64;
        let failed = |reason| PackError::Compress { reason };
        let delta = match block.bases.is_empty() {
            true => None,
            false => Some(compress_with_prefix(&block.raw, &block.prefix, self.options.delta_level).map_err(failed)?),
        };
        let sure = delta.as_ref().is_some_and(|delta| delta.len() < block.raw.len() / DELTA_SURELY_SMALLER);
        // With the same effort as the delta, so that the smaller one is so for its base's sake.
        let level = if delta.is_some() { self.options.delta_level } else { self.options.level };
        let whole = match sure && !self.keep_whole {
            true => None,
            false => Some(compress_with_prefix(&block.raw, &[], level).map_err(failed)?),
        };
        let bases_bytes = block.bases.len() * super::decode::BASE_BYTES;
        Ok(match (delta, whole) {
            (Some(delta), whole)
                if whole.as_ref().map_or(block.raw.len(), |whole| whole.len().min(block.raw.len()))
                    > delta.len() + bases_bytes =>
            {
                let whole = self.keep_whole.then(|| frame(&block, &[], whole.as_deref()));
                let bytes = frame(&block, &block.bases, Some(&delta));
                Record { bytes, whole, objects, content_bytes, deltas: files, large }
            }
            (_, whole) => {
                let bytes = frame(&block, &[], whole.as_deref());
                Record { bytes, whole: None, objects, content_bytes, deltas: 0, large }
            }
        })
    }
}

/// A whole record. Bytes that do not shrink are stored.
fn frame(block: &Block, bases: &[BaseRange], packed: Option<&[u8]>) -> Vec<u8> {
    // A reader saves the unpacking where little would be gained.
    let worth = block.raw.len() - block.raw.len() / 64;
    let (codec, body) = match packed {
        Some(packed) if packed.len() < worth => (b'z', packed),
        _ => (b's', block.raw.as_slice()),
    };
    let bases = if codec == b's' { &[] } else { bases };
    let mut out = Vec::with_capacity(body.len() + 64 + bases.len() * super::decode::BASE_BYTES);
    match &block.subject {
        Subject::Group(files) => {
            out.push(b'g');
            out.extend_from_slice(&(files.len() as u16).to_le_bytes());
            out.extend_from_slice(&(bases.len() as u16).to_le_bytes());
            for (digest, size_bytes) in files {
                out.extend_from_slice(&digest.0);
                out.extend_from_slice(&size_bytes.to_le_bytes());
            }
        }
        Subject::Segment { digest, size_bytes, offset } => {
            out.push(b's');
            out.extend_from_slice(&digest.0);
            out.extend_from_slice(&size_bytes.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&(bases.len() as u16).to_le_bytes());
        }
    }
    for BaseRange { digest, offset, length } in bases {
        out.extend_from_slice(&digest.0);
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
    }
    out.push(codec);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
    out
}
