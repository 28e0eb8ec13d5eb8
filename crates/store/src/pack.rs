//! The format in which objects travel, from an operator's machine to a node.
//!
//! A pack is a stream: written in one pass ([`encode`]) and read in one pass
//! ([`decode`]). It says nothing about where objects belong; that is in an
//! image's document. A reader takes from it only what it wants, and takes
//! nothing whose bytes do not have the digest they are sent under.
//!
//! # Layout
//!
//! All integers little-endian.
//!
//! ```text
//! pack     magic "bulkhead-pack-1\n", record*, end
//! record   group | segment
//! group    'g', u16 files (1..=4096), u16 bases, file*, base*, body     whole small files, one after another
//! file     32 bytes digest, u32 size
//! segment  's', 32 bytes digest, u64 size, u64 offset, u16 bases, base*, body   4 MiB of a large file
//! base     32 bytes digest, u64 offset, u32 length                      a range of an object that the reader has
//! body     u8 codec: 's' stored, 'z' zstd; u32 packed bytes; those bytes
//! end      'e', u64 objects in the pack
//! ```
//!
//! A body unpacks to at most [`BLOCK_MAX_BYTES`]. It is one zstd frame whose
//! prefix (in zstd's sense: `ZSTD_CCtx_refPrefix`) is the concatenation of the
//! record's base ranges, at most [`PREFIX_MAX_BYTES`] together; without bases it
//! is a plain frame. A body is never longer than what it unpacks to. A file over
//! [`BLOCK_MAX_BYTES`] is a run of segments: offsets 0, 4 MiB, 8 MiB, …, with no
//! other record between them.
//!
//! # Bounds
//!
//! A reader holds one record: packed bytes, prefix and unpacked bytes, together
//! at most 20 MiB, and every length is checked before memory is reserved for it.
//! A file over [`PREFIX_MAX_BYTES`] is a base by windows: a segment's prefix is
//! the 12 MiB of the base around the same relative place, so a node with little
//! memory can apply a delta to a file of any size.

mod decode;
mod document;
mod encode;

pub use decode::{Decoded, Sink, decode};
pub use document::{compress_document, decompress_document};
pub use encode::{Item, Options, Summary, encode};

pub(crate) use decode::{Header, RecordKind, read_header, read_magic, unpack};

use bulkhead_core::FileDigest;
use std::{
    collections::HashMap,
    io::{self, Read},
};

pub(crate) const MAGIC: &[u8; 16] = b"bulkhead-pack-1\n";
/// What a record unpacks to, at most: large enough to compress well, small enough for a node of 512 MB.
pub const BLOCK_MAX_BYTES: usize = 4 << 20;
/// The base ranges of a record: its own 4 MiB and as much on either side.
pub const PREFIX_MAX_BYTES: usize = 12 << 20;
/// Files (and bases) of a record, which bounds its header to some 330 kB.
pub const RECORD_FILES_MAX: usize = 4096;

/// Where bytes of objects come from.
pub trait Contents: Sync {
    /// Opens an object; `None` where this place has not got it.
    ///
    /// # Errors
    /// It is there and cannot be read.
    fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>>;

    /// A part of an object: exactly `length` bytes from `offset`. A place that can seek should
    /// override this, because the base of a large file is read in windows.
    ///
    /// # Errors
    /// It is there and cannot be read, or ends early.
    fn read_at(&self, digest: &FileDigest, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(mut reader) = self.open(digest)? else { return Ok(None) };
        if io::copy(&mut reader.by_ref().take(offset), &mut io::sink())? != offset {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = Vec::new();
        if reader.take(length as u64).read_to_end(&mut bytes)? != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(bytes))
    }
}

/// Has nothing.
#[derive(Debug, Clone, Copy)]
pub struct Nothing;

impl Contents for Nothing {
    fn open(&self, _: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
        Ok(None)
    }
}

/// Several places, asked in order.
pub struct Chain<'a>(pub Vec<&'a dyn Contents>);

impl std::fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chain of {} places", self.0.len())
    }
}

impl Contents for Chain<'_> {
    fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
        for place in &self.0 {
            if let Some(reader) = place.open(digest)? {
                return Ok(Some(reader));
            }
        }
        Ok(None)
    }

    fn read_at(&self, digest: &FileDigest, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        for place in &self.0 {
            if let Some(bytes) = place.read_at(digest, offset, length)? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

/// Objects in memory.
impl Contents for HashMap<FileDigest, Vec<u8>> {
    fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
        Ok(self.get(digest).map(|bytes| Box::new(io::Cursor::new(bytes.clone())) as Box<dyn Read + Send>))
    }
}

/// Why a pack could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// No place has an object that should be sent.
    #[error("the contents of object {digest} are nowhere to be found")]
    Absent {
        /// Which object.
        digest: FileDigest,
    },
    /// What was read is not what the digest names: the file was changed after it was scanned.
    #[error("object {digest} changed between being scanned and being sent")]
    Changed {
        /// Which object.
        digest: FileDigest,
    },
    /// Contents could not be read.
    #[error("cannot read the contents of object {digest}")]
    Contents {
        /// Which object.
        digest: FileDigest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// zstd failed, which it does for want of memory only.
    #[error("cannot compress: {reason}")]
    Compress {
        /// zstd's word.
        reason: &'static str,
    },
    /// The pack could not be written to where it goes.
    #[error("cannot write the pack")]
    Write(#[source] io::Error),
    /// The pack could not be read from where it comes.
    #[error("cannot read the pack")]
    Read(#[source] io::Error),
    /// The pack ended before its end mark.
    #[error("the pack ends early, after {objects} whole objects")]
    Truncated {
        /// How many objects were whole.
        objects: u64,
    },
    /// The pack breaks a rule of the format.
    #[error("the pack is malformed: {what}")]
    Malformed {
        /// The rule.
        what: &'static str,
    },
    /// An object's bytes do not have its digest.
    #[error("the bytes sent for object {digest} are not that object's")]
    Corrupt {
        /// Which object.
        digest: FileDigest,
    },
    /// Whoever takes the objects could not.
    #[error("cannot take object {digest}")]
    Sink {
        /// Which object.
        digest: FileDigest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document is not a zstd frame over its base, or is too long.
    #[error("the compressed document is malformed or longer than {max_bytes} bytes")]
    Document {
        /// The bound.
        max_bytes: usize,
    },
}

#[cfg(test)]
mod tests;
