//! Contents that this machine has not got, fetched from a node that holds the image.
//!
//! They go into the cache, checked object by object, and are sent on from there.
//! Nothing is fetched twice: whoever comes second finds what the first brought. It
//! comes in parts, so that a line that breaks costs at most one of them. And it is
//! fetched before a node is kept waiting: the node would give up on a client that
//! says nothing for a minute and a half.

use super::{Payload, Progress, REPORT_EVERY};
use crate::{
    client::{NodeClient, NodeError, printable},
    identity::Identities,
    ssh::{Target, Timeouts},
};
use bulkhead_core::{FileDigest, ImageId};
use bulkhead_store::{
    cache::{Cache, CacheError},
    pack::{Contents, Item},
};
use bulkhead_wire::{distinct_objects, missing_bits};
use std::{
    collections::HashMap,
    io::{self, Read},
    sync::Arc,
    time::Instant,
};
use tokio::sync::{Mutex, mpsc};

/// Contents of one part; a larger object is a part by itself.
const PART_BYTES: u64 = 64 << 20;
/// Pieces of a pack, of 256 KiB at most, that wait to be checked.
const PIECES_MAX: usize = 16;

/// Why contents could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No node gave them.
    #[error(
        "{objects} {} ({bytes} bytes) of image {} {} not on this machine, and {}",
        if *objects == 1 { "file" } else { "files" },
        image.short(),
        if *objects == 1 { "is" } else { "are" },
        if tried.is_empty() { "no node is known to hold it".to_owned() } else { tried.join("; ") }
    )]
    Nowhere {
        /// The image.
        image: ImageId,
        /// How many objects.
        objects: usize,
        /// Their bytes.
        bytes: u64,
        /// Which nodes were asked, and what came of it.
        tried: Vec<String>,
    },
    /// There is no cache to fetch into.
    #[error("there is no cache to fetch files into")]
    NoCache,
    /// The cache could not take them.
    #[error("cannot keep what was fetched")]
    Cache(#[source] CacheError),
    /// The thread that checks what comes broke.
    #[error("fetching broke off")]
    Broken,
}

/// Where a push's contents are, and how to get at the rest.
pub(super) struct Source<'a> {
    payload: &'a Payload,
    identities: &'a Identities,
    timeouts: Timeouts,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The cache since something was fetched.
    cache: Option<Arc<Cache>>,
    /// The holder that gave something last: its place among the holders, and the connection to it.
    client: Option<(usize, NodeClient)>,
}

/// Why a holder gave nothing.
enum Trouble {
    /// Another may.
    There(String),
    /// None can.
    Here(FetchError),
}

impl<'a> Source<'a> {
    pub(super) fn new(payload: &'a Payload, identities: &'a Identities, timeouts: Timeouts) -> Self {
        Self { payload, identities, timeouts, state: Mutex::default() }
    }

    /// The cache with all that was fetched.
    pub(super) async fn cache(&self) -> Option<Arc<Cache>> {
        let state = self.state.lock().await;
        state.cache.clone().or_else(|| self.payload.cache.clone())
    }

    /// Whether one of these objects is nowhere on this machine. Never, for an image that was
    /// built here: its files are where they were.
    pub(super) async fn lacks(&self, items: &[Item]) -> Result<bool, FetchError> {
        Ok(self.payload.holders.is_some() && !self.lacking(self.cache().await, items).await?.is_empty())
    }

    async fn lacking(&self, cache: Option<Arc<Cache>>, items: &[Item]) -> Result<Vec<Item>, FetchError> {
        let contents = Arc::clone(&self.payload.contents);
        let items = items.to_vec();
        let look = move || {
            let has = |place: &dyn Contents, item: &Item| {
                let Ok(Some(mut reader)) = place.open(&item.digest) else { return false };
                // To its end: that is where damage shows.
                io::copy(&mut reader, &mut io::sink()).is_ok_and(|bytes| bytes == item.size_bytes)
            };
            let is_here = |item: &Item| cache.as_deref().is_some_and(|cache| has(cache, item)) || has(&*contents, item);
            items.into_iter().filter(|item| !is_here(item)).collect()
        };
        tokio::task::spawn_blocking(look).await.map_err(|_| FetchError::Broken)
    }

    /// Gets those of these objects that are not on this machine.
    pub(super) async fn bring(&self, items: &[Item], tell: &(dyn Fn(Progress) + Sync)) -> Result<(), FetchError> {
        let Some(holders) = &self.payload.holders else { return Ok(()) };
        let mut state = self.state.lock().await;
        let cache = state.cache.clone().or_else(|| self.payload.cache.clone());
        let mut lacking = self.lacking(cache.clone(), items).await?;
        if lacking.is_empty() {
            return Ok(());
        }
        let cache = cache.ok_or(FetchError::NoCache)?;
        let mut tried: Vec<String> = Vec::new();
        let first = state.client.as_ref().map_or(0, |(index, _)| *index);
        for index in (0..holders.len()).map(|step| (first + step) % holders.len()) {
            let given = self.fetch(&mut state, index, &holders[index], &cache, &lacking, tell).await;
            // Parts that came before something broke are here.
            let fresh = Arc::new(cache.reopened().map_err(FetchError::Cache)?);
            state.cache = Some(Arc::clone(&fresh));
            lacking = self.lacking(Some(fresh), items).await?;
            if lacking.is_empty() {
                return Ok(());
            }
            match given {
                Err(Trouble::Here(error)) => return Err(error),
                Err(Trouble::There(what)) => tried.push(what),
                Ok(()) => tried.push(format!("what node {} sent cannot be read back", holders[index].node)),
            }
            state.client = None;
        }
        let bytes = lacking.iter().map(|item| item.size_bytes).sum();
        Err(FetchError::Nowhere { image: ImageId::of(&self.payload.document), objects: lacking.len(), bytes, tried })
    }

    async fn fetch(
        &self,
        state: &mut State,
        index: usize,
        holder: &Target,
        cache: &Arc<Cache>,
        lacking: &[Item],
        tell: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), Trouble> {
        let node = &holder.node;
        let objects = lacking.len();
        let mut received = 0;
        tell(Progress::Fetching { from: node.clone(), objects, received });
        let client = match &state.client {
            Some((known, client)) if *known == index && !client.connection().is_closed() => client.clone(),
            _ => NodeClient::connect(holder, self.identities, self.timeouts).await.map_err(there)?,
        };
        state.client = Some((index, client.clone()));
        let mut told = Instant::now();
        for part in parts(lacking) {
            let wanted: HashMap<FileDigest, u64> = part.iter().map(|item| (item.digest, item.size_bytes)).collect();
            let flags: Vec<bool> =
                distinct_objects(&self.payload.image).iter().map(|(digest, _)| wanted.contains_key(digest)).collect();
            let image = ImageId::of(&self.payload.document);
            let mut objects_come = client.objects(image, missing_bits(&flags)).await.map_err(there)?;
            let (pieces, coming) = mpsc::channel(PIECES_MAX);
            let (place, wanted) = (Arc::clone(cache), wanted);
            let taking = tokio::task::spawn_blocking(move || place.take_in(&mut Pieces::new(coming), &wanted));
            let receiving = async {
                while let Some(piece) = objects_come.next().await? {
                    received += piece.len() as u64;
                    if told.elapsed() >= REPORT_EVERY {
                        told = Instant::now();
                        tell(Progress::Fetching { from: node.clone(), objects, received });
                    }
                    // Where nobody takes it, what was taken so far was wrong, which is said below.
                    if pieces.send(Ok(piece)).await.is_err() {
                        break;
                    }
                }
                Ok::<(), NodeError>(())
            };
            let received_all = receiving.await;
            if received_all.is_err() {
                pieces.send(Err(())).await.ok();
            }
            drop(pieces);
            let taken = taking.await.map_err(|_| Trouble::Here(FetchError::Broken))?;
            received_all.map_err(there)?;
            match taken {
                Ok(_) => {}
                Err(error @ (CacheError::Pack(_) | CacheError::Incomplete { .. })) => {
                    return Err(Trouble::There(format!("what node {node} sent is wrong: {}", chain(&error))));
                }
                Err(error) => return Err(Trouble::Here(FetchError::Cache(error))),
            }
        }
        Ok(())
    }
}

fn there(error: NodeError) -> Trouble {
    Trouble::There(printable(&chain(&error)))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Splits into parts of about [`PART_BYTES`].
fn parts(items: &[Item]) -> Vec<&[Item]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (index, item) in items.iter().enumerate() {
        if index > start && bytes.saturating_add(item.size_bytes) > PART_BYTES {
            parts.push(&items[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes = bytes.saturating_add(item.size_bytes);
    }
    if start < items.len() {
        parts.push(&items[start..]);
    }
    parts
}

/// Reads pieces as they come; an error among them is one of the reader.
struct Pieces {
    coming: mpsc::Receiver<Result<Vec<u8>, ()>>,
    current: io::Cursor<Vec<u8>>,
}

impl Pieces {
    fn new(coming: mpsc::Receiver<Result<Vec<u8>, ()>>) -> Self {
        Self { coming, current: io::Cursor::default() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.coming.blocking_recv() {
                Some(Ok(piece)) => self.current = io::Cursor::new(piece),
                Some(Err(())) => return Err(io::ErrorKind::ConnectionAborted.into()),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::verity;

    #[test]
    fn parts_cover_all_and_are_bounded() {
        let item = |n: usize, size_bytes| Item { digest: verity::digest(&n.to_le_bytes()), size_bytes, base: None };
        let (mib, large) = (1 << 20, PART_BYTES * 3);
        for (sizes, expected) in [
            (vec![], vec![]),
            (vec![mib; 64], vec![64]),
            (vec![mib; 65], vec![64, 1]),
            (vec![large, mib, mib], vec![1, 2]),
            (vec![mib, large, u64::MAX, u64::MAX, mib], vec![1, 1, 1, 1, 1]),
        ] {
            let items: Vec<Item> = sizes.iter().enumerate().map(|(n, size)| item(n, *size)).collect();
            let parts = parts(&items);
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), expected, "{sizes:?}");
            assert_eq!(parts.concat(), items);
        }
    }

    #[test]
    fn pieces_end_or_break() {
        for (last, whole) in [(None, true), (Some(Err(())), false)] {
            let (sender, coming) = mpsc::channel(4);
            for piece in
                [Some(Ok(b"ab".to_vec())), Some(Ok(vec![])), Some(Ok(b"c".to_vec())), last].into_iter().flatten()
            {
                sender.try_send(piece).unwrap();
            }
            drop(sender);
            let mut read = Vec::new();
            assert_eq!(Pieces::new(coming).read_to_end(&mut read).is_ok(), whole);
            assert_eq!(read, b"abc");
        }
    }
}
