//! What each node is expected to miss, and packs of it, each encoded once.
//!
//! A pack is written by one thread to an unnamed temporary file and read by any
//! number of senders while it grows, so encoding and sending overlap, memory is
//! bounded, and a slow node holds up nobody.

use bulkhead_core::{
    FileDigest, ImageId,
    image::{Image, Node, compare_paths},
};
use bulkhead_store::{
    cache::CacheError,
    pack::{self, Chain, Contents, Item, Nothing, Options, PackError},
};
use bulkhead_wire::distinct_objects;
use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Write},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::watch,
};

use super::{FetchError, Payload, Progress, fetch::Source};
use crate::memory::{KnownImage, Memory, Remembered};

/// An image of at most this size goes whole to a node of which nothing is remembered, which spares a round trip;
/// of a larger one the node is first asked what it misses.
const BLIND_MAX_BYTES: u64 = 1 << 20;
/// Up to this much that the newest image has not is sent without a look at the older ones, where a few of it may be.
const OLDER_IMAGES_MIN_BYTES: u64 = 16 << 10;
/// A node's images whose files may serve as bases: the newest are the most alike.
const BASE_IMAGES_MAX: usize = 4;

/// What one node is expected to have.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// Its newest known image whose document is known here too.
    pub(super) base: Option<(ImageId, Arc<Vec<u8>>)>,
    /// What to send without being asked.
    pub(super) items: Vec<Item>,
}

/// Compares the payload with what is remembered of a node.
pub(super) fn expect(payload: &Payload, memory: &Memory, remembered: &Remembered) -> Expected {
    let mut known = remembered.images.iter().take(BASE_IMAGES_MAX).filter_map(|id| memory.image(*id));
    let mut images: Vec<Arc<KnownImage>> = known.next().into_iter().collect();
    if images.is_empty() && payload.image.size_bytes() > BLIND_MAX_BYTES {
        return Expected::default();
    }
    let base = images.first().map(|newest| (newest.id, Arc::clone(&newest.document)));
    let mut items = match images.first() {
        Some(newest) => without_held(differing(&payload.image, &newest.image), &newest.image),
        None => payload.image.files().collect(),
    };
    // Each older image costs as much to read as it takes to send this.
    if items.iter().map(|(_, size_bytes, _)| size_bytes).sum::<u64>() > OLDER_IMAGES_MIN_BYTES {
        for older in known {
            items = without_held(items, &older.image);
            images.push(older);
        }
    }
    let mut seen = HashSet::new();
    let items = items
        .into_iter()
        .filter(|(_, _, digest)| seen.insert(*digest))
        .map(|(path, size_bytes, digest)| {
            // What was at the same path before, if this machine still has it.
            let before = images.iter().find_map(|known| match known.image.get(path)?.node {
                Node::File { digest, .. } => Some(digest),
                _ => None,
            });
            let base = before.filter(|digest| payload.cache.as_ref().is_some_and(|cache| cache.has(digest)));
            Item { digest, size_bytes, base }
        })
        .collect();
    Expected { base, items }
}

/// A file's path, size and digest.
type Listed<'a> = (&'a [u8], u64, FileDigest);

/// The files of an image that another has not at the same path: both are sorted, so this is one walk.
fn differing<'a>(image: &'a Image, other: &Image) -> Vec<Listed<'a>> {
    let mut others = other.files().peekable();
    let mut is_there = |path: &[u8], digest: FileDigest| {
        while others.peek().is_some_and(|(there, ..)| compare_paths(there, path) == Ordering::Less) {
            others.next();
        }
        others.peek().is_some_and(|(there, _, found)| *there == path && *found == digest)
    };
    image.files().filter(|(path, _, digest)| !is_there(path, *digest)).collect()
}

/// Those that another image has not at any path.
fn without_held<'a>(files: Vec<Listed<'a>>, other: &Image) -> Vec<Listed<'a>> {
    if files.is_empty() {
        return files;
    }
    // These are few as a rule, and the other's are many: a set of all of them would cost more than all the rest.
    let looked_for: HashSet<FileDigest> = files.iter().map(|(_, _, digest)| *digest).collect();
    let held: HashSet<FileDigest> =
        other.files().map(|(_, _, digest)| digest).filter(|digest| looked_for.contains(digest)).collect();
    files.into_iter().filter(|(_, _, digest)| !held.contains(digest)).collect()
}

/// The objects that a node says are missing. They go whole: what it was thought to have, it has not.
pub(super) fn missing(image: &Image, bits: &str, count: u64) -> Result<Vec<Item>, String> {
    let objects = distinct_objects(image);
    let flags = bulkhead_wire::parse_missing_bits(bits, objects.len())?;
    let items: Vec<Item> = objects
        .into_iter()
        .zip(flags)
        .filter(|(_, missing)| *missing)
        .map(|((digest, size_bytes), _)| Item { digest, size_bytes, base: None })
        .collect();
    if items.is_empty() || items.len() as u64 != count {
        return Err(format!("{count} missing objects announced, {} named", items.len()));
    }
    Ok(items)
}

/// Why there is no pack.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// No temporary file.
    #[error("cannot make a temporary file for the pack")]
    Temporary(#[source] io::Error),
    /// The encoder failed.
    #[error("cannot pack the image's objects")]
    Pack(#[source] PackError),
    /// The objects could not be kept for later deltas.
    #[error("cannot keep the objects in the cache")]
    Cache(#[source] CacheError),
    /// What is not on this machine could not be fetched.
    #[error("cannot fetch what is not on this machine")]
    Fetch(#[source] FetchError),
    /// The encoding thread broke.
    #[error("packing broke off")]
    Broken,
}

#[derive(Debug, Clone, Default)]
struct Growth {
    bytes: u64,
    /// Set when it grows no more.
    end: Option<Result<(), Arc<SpoolError>>>,
}

/// A pack that grows.
#[derive(Debug)]
pub(super) struct Spool {
    file: Arc<File>,
    growth: watch::Receiver<Growth>,
}

/// All packs and documents of one push, each made once.
pub(super) struct Packs<'a> {
    payload: &'a Payload,
    source: Source<'a>,
    spools: Mutex<HashMap<[u8; 32], Arc<Spool>>>,
    documents: tokio::sync::Mutex<HashMap<Option<ImageId>, Arc<Vec<u8>>>>,
}

impl<'a> Packs<'a> {
    pub(super) fn new(payload: &'a Payload, source: Source<'a>) -> Self {
        Self { payload, source, spools: Mutex::default(), documents: tokio::sync::Mutex::default() }
    }

    /// Whether something of this must be fetched before it can be packed.
    pub(super) async fn lacks(&self, items: &[Item]) -> Result<bool, Arc<SpoolError>> {
        self.source.lacks(items).await.map_err(|error| Arc::new(SpoolError::Fetch(error)))
    }

    /// The image's document over a base's, compressed.
    pub(super) async fn document(
        &self,
        base: Option<&(ImageId, Arc<Vec<u8>>)>,
    ) -> Result<Arc<Vec<u8>>, Arc<SpoolError>> {
        let key = base.map(|(id, _)| *id);
        let mut documents = self.documents.lock().await;
        if let Some(packed) = documents.get(&key) {
            return Ok(Arc::clone(packed));
        }
        let (document, base) = (Arc::clone(&self.payload.document), base.map(|(_, base)| Arc::clone(base)));
        let work = move || pack::compress_document(&document, base.as_deref().map(Vec::as_slice));
        let packed = tokio::task::spawn_blocking(work).await.map_err(|_| Arc::new(SpoolError::Broken))?;
        let packed = Arc::new(packed.map_err(|error| Arc::new(SpoolError::Pack(error)))?);
        documents.insert(key, Arc::clone(&packed));
        Ok(packed)
    }

    /// A pack of these objects; begun now unless it was before. What is not on this machine is fetched first.
    pub(super) async fn pack(
        &self,
        items: &[Item],
        options: Options,
        tell: &(dyn Fn(Progress) + Sync),
    ) -> Result<Arc<Spool>, Arc<SpoolError>> {
        self.source.bring(items, tell).await.map_err(|error| Arc::new(SpoolError::Fetch(error)))?;
        let cache = self.source.cache().await;
        let key = key(items);
        let mut spools = self.spools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spool) = spools.get(&key) {
            return Ok(Arc::clone(spool));
        }
        let file = tempfile::tempfile().map_err(|error| Arc::new(SpoolError::Temporary(error)))?;
        let file = Arc::new(file);
        let (sender, growth) = watch::channel(Growth::default());
        let spool = Arc::new(Spool { file: Arc::clone(&file), growth });
        spools.insert(key, Arc::clone(&spool));
        let (items, payload) = (items.to_vec(), Payload { cache, options, ..self.payload.clone() });
        tokio::task::spawn_blocking(move || {
            let mut writer = SpoolWriter { file, growth: &sender };
            let end = encode(&items, &payload, &mut writer).map_err(Arc::new);
            sender.send_modify(|growth| growth.end = Some(end));
        });
        Ok(spool)
    }
}

fn key(items: &[Item]) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(items.len() * 65);
    for item in items {
        bytes.extend_from_slice(&item.digest.0);
        bytes.push(u8::from(item.base.is_some()));
        bytes.extend_from_slice(&item.base.map_or([0; 32], |base| base.0));
    }
    bulkhead_core::digest::sha256(&bytes)
}

fn encode(items: &[Item], payload: &Payload, out: &mut dyn Write) -> Result<(), SpoolError> {
    let contents: &dyn Contents = &*payload.contents;
    let Some(cache) = payload.cache.as_deref() else {
        pack::encode(items, contents, &Nothing, out, None, &payload.options).map_err(SpoolError::Pack)?;
        return Ok(());
    };
    let chain = Chain(vec![contents, cache]);
    if items.iter().all(|item| cache.has(&item.digest)) {
        pack::encode(items, &chain, cache, out, None, &payload.options).map_err(SpoolError::Pack)?;
        return Ok(());
    }
    let mut keep = cache.writer().map_err(SpoolError::Cache)?;
    pack::encode(items, &chain, cache, out, Some(&mut keep), &payload.options).map_err(SpoolError::Pack)?;
    keep.commit().map_err(SpoolError::Cache)
}

struct SpoolWriter<'a> {
    file: Arc<File>,
    growth: &'a watch::Sender<Growth>,
}

impl Write for SpoolWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = self.growth.borrow().bytes;
        let count = write_at(&self.file, bytes, at)?;
        self.growth.send_modify(|growth| growth.bytes += count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, bytes, at)
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, at)
}

#[cfg(windows)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_write(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, at)
}

impl Spool {
    /// How long the pack is, once that is known.
    pub(super) fn total(&self) -> Option<u64> {
        let growth = self.growth.borrow();
        growth.end.as_ref().map(|_| growth.bytes)
    }

    /// Why it is not whole, where it is not.
    pub(super) fn failure(&self) -> Option<Arc<SpoolError>> {
        match &self.growth.borrow().end {
            Some(Err(error)) => Some(Arc::clone(error)),
            _ => None,
        }
    }

    /// Reads it from its beginning, waiting for more where it still grows.
    pub(super) fn reader(self: &Arc<Self>) -> SpoolReader {
        SpoolReader { spool: Arc::clone(self), at: 0, wait: None }
    }
}

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Reads a pack that may still grow.
pub(super) struct SpoolReader {
    spool: Arc<Spool>,
    at: u64,
    wait: Option<Wait>,
}

impl AsyncRead for SpoolReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(wait) = self.wait.as_mut() {
                if wait.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.wait = None;
            }
            let Growth { bytes, end } = self.spool.growth.borrow().clone();
            if self.at < bytes {
                let room = usize::try_from(bytes - self.at).unwrap_or(usize::MAX).min(to.remaining());
                // Written a moment ago by this process: it comes from memory.
                let count = read_at(&self.spool.file, to.initialize_unfilled_to(room), self.at)?;
                to.advance(count);
                self.at += count as u64;
                return Poll::Ready(Ok(()));
            }
            match end {
                Some(Ok(())) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error.to_string()))),
                None => {}
            }
            let (mut growth, at) = (self.spool.growth.clone(), self.at);
            self.wait = Some(Box::pin(async move {
                // The encoder's end shows as an end without a result.
                growth.wait_for(|growth| growth.bytes > at || growth.end.is_some()).await.ok();
            }));
            if self.spool.growth.has_changed().is_err() && self.spool.growth.borrow().end.is_none() {
                return Poll::Ready(Err(io::Error::other(SpoolError::Broken.to_string())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{
        image::{Entry, ImageConfig},
        verity,
    };
    use tokio::io::AsyncReadExt as _;

    /// An image of these files: path, contents by number, and length.
    fn image(files: &[(&str, u8, u64)]) -> Image {
        let node = |n: u8, size_bytes| Node::File { mode: 0o644, size_bytes, digest: verity::digest(&[n]) };
        let entry =
            |(path, n, size_bytes): &(&str, u8, u64)| Entry { path: (*path).into(), node: node(*n, *size_bytes) };
        Image::new(
            ImageConfig { platform: "test".into(), allowed: vec![], tools: false },
            files.iter().map(entry).collect(),
        )
        .unwrap()
    }

    #[test]
    fn what_a_node_is_expected_to_miss() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::at(directory.path());
        let check = |images: &[Image], wanted: &Image, expected: &[u8]| {
            let mut remembered = Remembered::default();
            for image in images {
                memory.keep_document(image.id(), &image.encode()).unwrap();
                remembered.add_image(image.id());
            }
            let payload = Payload {
                dropped: None,
                document: Arc::new(wanted.encode()),
                image: Arc::new(wanted.clone()),
                contents: Arc::new(Nothing),
                cache: None,
                holders: None,
                options: Options::default(),
            };
            let found = expect(&payload, &memory, &remembered);
            let digests: Vec<FileDigest> = found.items.iter().map(|item| item.digest).collect();
            assert_eq!(digests, expected.iter().map(|n| verity::digest(&[*n])).collect::<Vec<_>>());
            assert_eq!(found.base.map(|(id, _)| id), images.last().map(Image::id));
        };
        let big = OLDER_IMAGES_MIN_BYTES + 1;
        let wanted = image(&[("a", 1, 10), ("b", 2, big), ("c", 3, 10), ("d", 1, 10), ("e", 3, 10)]);
        check(&[], &wanted, &[1, 2, 3]);
        check(&[image(&[])], &wanted, &[1, 2, 3]);
        check(std::slice::from_ref(&wanted), &wanted, &[]);
        // Moved, with others before and after.
        check(&[image(&[("0", 9, 1), ("b2", 2, big), ("z", 3, 10)])], &wanted, &[1]);
        // What differs at its path may be there at another.
        check(&[image(&[("a", 3, 10), ("b", 2, big), ("c", 1, 10)])], &wanted, &[]);
        // An older image is looked at where much is at stake, and only there.
        check(&[image(&[("x", 2, big), ("y", 1, 10)]), image(&[("c", 3, 10)])], &wanted, &[]);
        check(&[image(&[("y", 1, 10)]), image(&[("b", 2, big), ("c", 3, 10)])], &wanted, &[1]);
    }

    fn spool() -> (SpoolWriterParts, Arc<Spool>) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (sender, growth) = watch::channel(Growth::default());
        ((Arc::clone(&file), sender), Arc::new(Spool { file, growth }))
    }

    type SpoolWriterParts = (Arc<File>, watch::Sender<Growth>);

    #[tokio::test]
    async fn readers_follow_a_growing_pack() {
        let ((file, sender), spool) = spool();
        let read = |spool: Arc<Spool>| async move {
            let mut bytes = Vec::new();
            spool.reader().read_to_end(&mut bytes).await.map(|_| bytes)
        };
        let early = tokio::spawn(read(Arc::clone(&spool)));
        let written: Vec<u8> = (0..1_000_000u32).flat_map(|n| [n.to_le_bytes()[0]]).collect();
        for piece in written.chunks(70_001) {
            SpoolWriter { file: Arc::clone(&file), growth: &sender }.write_all(piece).unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(spool.total(), None);
        sender.send_modify(|growth| growth.end = Some(Ok(())));
        assert_eq!(spool.total(), Some(1_000_000));
        assert_eq!(early.await.unwrap().unwrap(), written);
        assert_eq!(read(spool).await.unwrap(), written);
    }

    #[tokio::test]
    async fn a_failed_or_broken_encoder_is_no_end() {
        for fail in [true, false] {
            let ((_, sender), spool) = spool();
            let mut reader = spool.reader();
            let reading = tokio::spawn(async move { reader.read_to_end(&mut Vec::new()).await });
            tokio::task::yield_now().await;
            if fail {
                sender.send_modify(|growth| growth.end = Some(Err(Arc::new(SpoolError::Broken))));
            }
            drop(sender);
            assert!(reading.await.unwrap().is_err());
            assert_eq!(spool.failure().is_some(), fail);
        }
    }
}
