//! Reading a pack. Nothing that it says is believed: lengths are bounded before memory is reserved, and bytes
//! are handed on only once they have the digest they came under.

use super::{BLOCK_MAX_BYTES, Contents, MAGIC, PREFIX_MAX_BYTES, PackError, RECORD_FILES_MAX};
use bulkhead_core::{
    FileDigest,
    verity::{self, VerityHasher},
};
use std::io::{self, Read};
use zstd::zstd_safe::DCtx;

/// Bytes of a base range in a record.
pub(super) const BASE_BYTES: usize = 44;
const FILE_BYTES: usize = 36;

/// Takes objects out of a pack.
///
/// For each object: [`Sink::wants`]; where it says so [`Sink::begin`], [`Sink::write`] as often as
/// needed, and then either [`Sink::finish`] (the bytes have the digest) or [`Sink::abandon`] (they
/// have not, or something failed).
pub trait Sink {
    /// Whether to bring this object.
    fn wants(&mut self, digest: &FileDigest, size_bytes: u64) -> bool;
    /// An object begins.
    ///
    /// # Errors
    /// Whatever keeps it from being taken; ends the decoding.
    fn begin(&mut self, digest: &FileDigest, size_bytes: u64) -> io::Result<()>;
    /// Its next bytes. They are not known to be right yet.
    ///
    /// # Errors
    /// As for `begin`.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// It is whole and right.
    ///
    /// # Errors
    /// As for `begin`.
    fn finish(&mut self) -> io::Result<()>;
    /// It is not: forget its bytes.
    fn abandon(&mut self);
}

/// What came out of a pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    /// How many objects were taken.
    pub objects: u64,
    /// Their bytes.
    pub content_bytes: u64,
    /// Wanted objects that came as deltas and could not be made, because a base is absent or damaged here.
    /// They must be sent again, whole.
    pub unresolved: Vec<FileDigest>,
    /// The bases of those that were there, one of which is damaged unless the sender is at fault.
    pub suspects: Vec<FileDigest>,
}

/// What a record is about.
#[derive(Debug)]
pub(crate) enum RecordKind {
    Group(Vec<(FileDigest, u32)>),
    Segment { digest: FileDigest, size_bytes: u64, offset: u64 },
}

/// A record up to its packed bytes, every length within bounds.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) kind: RecordKind,
    bases: Vec<(FileDigest, u64, usize)>,
    is_stored: bool,
    pub(crate) raw_bytes: usize,
    pub(crate) packed_bytes: usize,
}

impl Header {
    pub(crate) fn has_bases(&self) -> bool {
        !self.bases.is_empty()
    }
}

/// Reads with the error that a reader of packs wants.
struct Input<'a> {
    input: &'a mut dyn Read,
}

/// Why a header could not be read, before it is known how far the pack got.
pub(crate) enum HeaderError {
    Ended,
    Read(io::Error),
    Malformed(&'static str),
}

impl HeaderError {
    fn into_pack(self, objects: u64) -> PackError {
        match self {
            Self::Ended => PackError::Truncated { objects },
            Self::Read(source) => PackError::Read(source),
            Self::Malformed(what) => PackError::Malformed { what },
        }
    }
}

impl Input<'_> {
    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), HeaderError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => HeaderError::Ended,
            _ => HeaderError::Read(error),
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Bytes into a buffer that is used again; `length` was checked.
    fn bytes(&mut self, length: usize, into: &mut Vec<u8>) -> Result<(), HeaderError> {
        into.clear();
        let count = self.input.take(length as u64).read_to_end(into).map_err(HeaderError::Read)?;
        if count == length { Ok(()) } else { Err(HeaderError::Ended) }
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

pub(crate) fn read_magic(input: &mut dyn Read) -> Result<(), HeaderError> {
    let magic: [u8; MAGIC.len()] = (Input { input }).array()?;
    if magic != *MAGIC {
        return Err(HeaderError::Malformed("it does not begin with \"bulkhead-pack-1\""));
    }
    Ok(())
}

/// Reads a record's header, or the end mark's count.
pub(crate) fn read_header(input: &mut dyn Read) -> Result<Result<Header, u64>, HeaderError> {
    let malformed = |what| Err(HeaderError::Malformed(what));
    let mut input = Input { input };
    let mut table = Vec::new();
    let [kind] = input.array()?;
    let (kind, base_count, raw_bytes) = match kind {
        b'g' => {
            let fixed: [u8; 4] = input.array()?;
            let files = usize::from(u16::from_le_bytes(array_at(&fixed, 0)));
            if files == 0 || files > RECORD_FILES_MAX {
                return malformed("a group of no or too many files");
            }
            input.bytes(files * FILE_BYTES, &mut table)?;
            let files: Vec<_> = table
                .chunks_exact(FILE_BYTES)
                .map(|file| (FileDigest(array_at(file, 0)), u32::from_le_bytes(array_at(file, 32))))
                .collect();
            let raw_bytes: u64 = files.iter().map(|(_, size_bytes)| u64::from(*size_bytes)).sum();
            if raw_bytes > BLOCK_MAX_BYTES as u64 {
                return malformed("a group of more than 4 MiB");
            }
            (RecordKind::Group(files), u16::from_le_bytes(array_at(&fixed, 2)), raw_bytes)
        }
        b's' => {
            let fixed: [u8; 50] = input.array()?;
            let digest = FileDigest(array_at(&fixed, 0));
            let size_bytes = u64::from_le_bytes(array_at(&fixed, 32));
            let offset = u64::from_le_bytes(array_at(&fixed, 40));
            if size_bytes <= BLOCK_MAX_BYTES as u64 || offset >= size_bytes || offset % BLOCK_MAX_BYTES as u64 != 0 {
                return malformed("a segment that does not fit its file");
            }
            let raw_bytes = (size_bytes - offset).min(BLOCK_MAX_BYTES as u64);
            let kind = RecordKind::Segment { digest, size_bytes, offset };
            (kind, u16::from_le_bytes(array_at(&fixed, 48)), raw_bytes)
        }
        b'e' => return Ok(Err(u64::from_le_bytes(input.array()?))),
        _ => return malformed("a record of unknown kind"),
    };
    let Ok(raw_bytes) = usize::try_from(raw_bytes) else { return malformed("a record of more than memory") };
    let base_count = usize::from(base_count);
    if base_count > RECORD_FILES_MAX {
        return malformed("a record of too many bases");
    }
    input.bytes(base_count * BASE_BYTES, &mut table)?;
    let bases: Vec<_> = table
        .chunks_exact(BASE_BYTES)
        .map(|base| {
            let length = u32::from_le_bytes(array_at(base, 40)) as usize;
            (FileDigest(array_at(base, 0)), u64::from_le_bytes(array_at(base, 32)), length)
        })
        .collect();
    if bases.iter().map(|(_, _, length)| *length as u64).sum::<u64>() > PREFIX_MAX_BYTES as u64 {
        return malformed("base ranges of more than 12 MiB");
    }
    let [codec] = input.array()?;
    let packed_bytes = u32::from_le_bytes(input.array()?) as usize;
    let is_stored = match codec {
        b's' => true,
        b'z' => false,
        _ => return malformed("an unknown codec"),
    };
    if packed_bytes > raw_bytes || (is_stored && (packed_bytes != raw_bytes || !bases.is_empty())) {
        return malformed("a body longer than what it unpacks to");
    }
    Ok(Ok(Header { kind, bases, is_stored, raw_bytes, packed_bytes }))
}

/// Unpacks a record's body; `None` where it is not what the header says.
pub(crate) fn unpack(header: &Header, packed: &[u8], prefix: &[u8], into: &mut Vec<u8>) -> Option<()> {
    into.clear();
    if header.is_stored {
        into.extend_from_slice(packed);
    } else {
        into.reserve(header.raw_bytes);
        // zstd writes up to the capacity, which may be more than asked for; the length is checked below.
        let mut context = DCtx::try_create()?;
        if !prefix.is_empty() {
            context.ref_prefix(prefix).ok()?;
        }
        context.decompress(into, packed).ok()?;
    }
    (into.len() == header.raw_bytes).then_some(())
}

/// A large file under way.
struct Large {
    digest: FileDigest,
    size_bytes: u64,
    /// Where the next segment begins.
    offset: u64,
    hasher: VerityHasher,
    state: LargeState,
    suspects: Vec<FileDigest>,
}

#[derive(PartialEq)]
enum LargeState {
    Unwanted,
    Underway,
    Unresolved,
}

/// Reads a pack up to its end mark and no further, and hands the wanted objects to `sink`.
///
/// # Errors
/// [`PackError::Read`], [`PackError::Truncated`], [`PackError::Malformed`] or [`PackError::Corrupt`] for what is
/// wrong with the pack, [`PackError::Sink`] for what the sink could not do. Objects finished before stay finished.
pub fn decode(input: &mut dyn Read, bases: &dyn Contents, sink: &mut dyn Sink) -> Result<Decoded, PackError> {
    let mut decoder = Decoder {
        bases,
        sink,
        out: Decoded::default(),
        seen: 0,
        large: None,
        packed: Vec::new(),
        prefix: Vec::new(),
        raw: Vec::new(),
    };
    let result = decoder.run(input);
    if result.is_err() && decoder.large.take().is_some_and(|large| large.state == LargeState::Underway) {
        decoder.sink.abandon();
    }
    result.map(|()| decoder.out)
}

struct Decoder<'a> {
    bases: &'a dyn Contents,
    sink: &'a mut dyn Sink,
    out: Decoded,
    /// Whole objects read, taken or not.
    seen: u64,
    large: Option<Large>,
    packed: Vec<u8>,
    prefix: Vec<u8>,
    raw: Vec<u8>,
}

impl Decoder<'_> {
    fn run(&mut self, input: &mut dyn Read) -> Result<(), PackError> {
        read_magic(input).map_err(|error| error.into_pack(0))?;
        loop {
            let header = match read_header(input).map_err(|error| error.into_pack(self.seen))? {
                Ok(header) => header,
                Err(count) if count == self.seen && self.large.is_none() => return Ok(()),
                Err(_) => return Err(PackError::Malformed { what: "its end does not agree with what it held" }),
            };
            let wanted = self.begin(&header)?;
            if wanted {
                let mut input = Input { input: &mut *input };
                input.bytes(header.packed_bytes, &mut self.packed).map_err(|error| error.into_pack(self.seen))?;
            } else {
                let count = io::copy(&mut (&mut *input).take(header.packed_bytes as u64), &mut io::sink())
                    .map_err(PackError::Read)?;
                if count != header.packed_bytes as u64 {
                    return Err(PackError::Truncated { objects: self.seen });
                }
            }
            let unpacked = wanted && self.unpack(&header);
            match &header.kind {
                RecordKind::Group(files) => self.group(&header, files, wanted, unpacked)?,
                RecordKind::Segment { .. } => self.segment(&header, unpacked)?,
            }
        }
    }

    /// Whether anything of the record is wanted. Checks that a segment is the next of its file.
    fn begin(&mut self, header: &Header) -> Result<bool, PackError> {
        match &header.kind {
            RecordKind::Group(_) if self.large.is_some() => {
                Err(PackError::Malformed { what: "a group within a large file" })
            }
            RecordKind::Group(files) => {
                Ok(files.iter().any(|(digest, size_bytes)| self.sink.wants(digest, u64::from(*size_bytes))))
            }
            RecordKind::Segment { digest, size_bytes, offset } => {
                if *offset == 0 && self.large.is_none() {
                    let state = match self.sink.wants(digest, *size_bytes) {
                        true => LargeState::Underway,
                        false => LargeState::Unwanted,
                    };
                    if state == LargeState::Underway {
                        self.sink.begin(digest, *size_bytes).map_err(|source| sink_error(*digest, source))?;
                    }
                    self.large = Some(Large {
                        digest: *digest,
                        size_bytes: *size_bytes,
                        offset: 0,
                        hasher: VerityHasher::new(),
                        state,
                        suspects: Vec::new(),
                    });
                }
                match &self.large {
                    Some(large)
                        if large.digest == *digest && large.size_bytes == *size_bytes && large.offset == *offset =>
                    {
                        Ok(large.state == LargeState::Underway)
                    }
                    _ => Err(PackError::Malformed { what: "a segment out of order" }),
                }
            }
        }
    }

    /// Fetches the prefix and unpacks into `self.raw`.
    fn unpack(&mut self, header: &Header) -> bool {
        self.prefix.clear();
        for (digest, offset, length) in &header.bases {
            match self.bases.read_at(digest, *offset, *length) {
                Ok(Some(bytes)) if bytes.len() == *length => self.prefix.extend_from_slice(&bytes),
                // Absent, shorter than the sender thinks, or unreadable: the same remedy for all.
                _ => return false,
            }
        }
        unpack(header, &self.packed, &self.prefix, &mut self.raw).is_some()
    }

    fn group(
        &mut self,
        header: &Header,
        files: &[(FileDigest, u32)],
        wanted: bool,
        unpacked: bool,
    ) -> Result<(), PackError> {
        let mut offset = 0;
        for (digest, size_bytes) in files {
            let range = offset..offset + *size_bytes as usize;
            offset = range.end;
            if !wanted || !self.sink.wants(digest, u64::from(*size_bytes)) {
                continue;
            }
            if unpacked && verity::digest(&self.raw[range.clone()]) == *digest {
                let sink = &mut self.sink;
                let taken = sink.begin(digest, u64::from(*size_bytes)).and_then(|()| {
                    sink.write(&self.raw[range]).and_then(|()| sink.finish()).inspect_err(|_| sink.abandon())
                });
                taken.map_err(|source| sink_error(*digest, source))?;
                self.out.objects += 1;
                self.out.content_bytes += u64::from(*size_bytes);
            } else if header.has_bases() {
                self.unresolved(*digest, header.bases.iter().map(|(digest, _, _)| *digest));
            } else {
                return Err(PackError::Corrupt { digest: *digest });
            }
        }
        self.seen += files.len() as u64;
        Ok(())
    }

    fn segment(&mut self, header: &Header, unpacked: bool) -> Result<(), PackError> {
        let Some(mut large) = self.large.take() else { return Ok(()) };
        let digest = large.digest;
        if large.state == LargeState::Underway {
            large.suspects.extend(header.bases.iter().map(|(digest, _, _)| *digest));
            if unpacked {
                large.hasher.update(&self.raw);
                if let Err(source) = self.sink.write(&self.raw) {
                    self.sink.abandon();
                    return Err(sink_error(digest, source));
                }
            } else {
                self.sink.abandon();
                if !header.has_bases() {
                    return Err(PackError::Corrupt { digest });
                }
                large.state = LargeState::Unresolved;
            }
        }
        large.offset += header.raw_bytes as u64;
        if large.offset < large.size_bytes {
            self.large = Some(large);
            return Ok(());
        }
        self.seen += 1;
        if large.state == LargeState::Underway {
            if large.hasher.finish() == digest {
                self.sink.finish().map_err(|source| {
                    self.sink.abandon();
                    sink_error(digest, source)
                })?;
                self.out.objects += 1;
                self.out.content_bytes += large.size_bytes;
                return Ok(());
            }
            self.sink.abandon();
            if large.suspects.is_empty() {
                return Err(PackError::Corrupt { digest });
            }
            large.state = LargeState::Unresolved;
        }
        if large.state == LargeState::Unresolved {
            self.unresolved(digest, large.suspects.into_iter());
        }
        Ok(())
    }

    fn unresolved(&mut self, digest: FileDigest, bases: impl Iterator<Item = FileDigest>) {
        self.out.unresolved.push(digest);
        for base in bases {
            if !self.out.suspects.contains(&base) {
                self.out.suspects.push(base);
            }
        }
    }
}

fn sink_error(digest: FileDigest, source: io::Error) -> PackError {
    PackError::Sink { digest, source }
}
