//! The writer of metadata images: an image's names, modes, links, sizes and digests as an erofs file system.
//!
//! It is written from the document's sorted entries in two passes, one that places every inode and one that
//! writes, so it takes little more memory than one directory's entries and a time in the order of a copy.
//! What comes out is what composefs calls version 2, and tests hold it against composefs' own reader.
//!
//! # Layout
//!
//! ```text
//! 0      composefs header, so that its tools know what this is
//! 1024   superblock
//! 1152   inodes in the document's order, the root first, in slots of 32 bytes; each followed by
//!        a file's extended attributes and one empty chunk (its contents are not here),
//!        a link's target, or what of a directory's entries fills no block and is short
//! …      blocks of directory entries
//! …      targets of links that are too long to follow their inode, a block each
//! ```
//!
//! An inode's number is its offset in slots. What follows an inode inline is in one block with it: older
//! kernels take a link whose target begins the next block for damage.
//! An extended attribute of a file with contents tells overlayfs its object (`overlay.redirect`),
//! another the digest that the object must have (`overlay.metacopy`).

#![expect(clippy::cast_possible_truncation, reason = "what a field holds was bounded when its inode was placed")]

use crate::store::object_name;
use bulkhead_core::{
    FileDigest,
    image::{Image, Node},
};
use std::{
    io::{self, Write},
    ops::Range,
};

const BLOCK_BYTES: usize = 4096;
const BLOCK_BITS: u8 = 12;
const SLOT_BYTES: usize = 32;
const SUPERBLOCK_OFFSET: usize = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const EROFS_MAGIC: u32 = 0xe0f5_e1e2;
const COMPOSEFS_MAGIC: u32 = 0xd078_629a;
/// A directory's last entries follow its inode if they are no longer, as composefs has it: padding costs more.
const INLINE_ENTRIES_MAX_BYTES: usize = BLOCK_BYTES / 2;
const ENTRY_BYTES: usize = 12;
/// A longer target has a block of its own, so that the rest of one is enough for it and its inode.
const INLINE_TARGET_MAX_BYTES: usize = BLOCK_BYTES - SLOT_BYTES;
/// One chunk covers a file of any size that this takes: 2^(12+31) bytes.
const CHUNK_FORMAT: u32 = 31;
const FILE_MAX_BYTES: u64 = 1 << 43;
const NO_CONTENTS: u32 = u32::MAX;

/// How an inode's contents lie, as erofs numbers it.
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
const CHUNKS: u16 = 4;

/// `trusted.`, as erofs numbers prefixes of extended attributes.
const TRUSTED: u8 = 4;
const METACOPY: &[u8] = b"overlay.metacopy";
const METACOPY_BYTES: usize = 4 + 32;
const REDIRECT: &[u8] = b"overlay.redirect";
/// A slash, and an object's name: 64 digits with a slash after two of them.
const REDIRECT_BYTES: usize = 1 + 65;
const ATTRIBUTES_HEADER_BYTES: usize = 12;
const ATTRIBUTES_BYTES: usize = ATTRIBUTES_HEADER_BYTES
    + (4 + METACOPY.len() + METACOPY_BYTES).next_multiple_of(4)
    + (4 + REDIRECT.len() + REDIRECT_BYTES).next_multiple_of(4);

/// Types of directory entries, and of inodes.
const REGULAR: (u8, u16) = (1, 0o100_000);
const DIRECTORY: (u8, u16) = (2, 0o040_000);
const SYMLINK: (u8, u16) = (7, 0o120_000);

struct Child<'a> {
    name: &'a [u8],
    inode: usize,
    kind: u8,
}

/// A directory's entries, and how they are cut into blocks.
struct Folder<'a> {
    children: Vec<Child<'a>>,
    blocks: Vec<Range<usize>>,
    inline: Range<usize>,
    inline_bytes: usize,
    first_block: usize,
    links: u32,
}

impl<'a> Folder<'a> {
    fn new(inode: usize, parent: usize) -> Self {
        let child = |name, inode| Child { name, inode, kind: DIRECTORY.0 };
        let children = vec![child(b".".as_slice(), inode), child(b"..".as_slice(), parent)];
        Self { children, blocks: vec![], inline: 0..0, inline_bytes: 0, first_block: 0, links: 0 }
    }

    /// Sorts the entries, as the kernel searches them, and cuts them into blocks.
    fn settle(&mut self) {
        // Only `.` and `..` are out of place.
        self.children.sort_by(|a, b| a.name.cmp(b.name));
        let (mut start, mut bytes) = (0, 0);
        for (index, child) in self.children.iter().enumerate() {
            self.links += u32::from(child.kind == DIRECTORY.0);
            let needed = ENTRY_BYTES + child.name.len();
            if bytes + needed > BLOCK_BYTES {
                self.blocks.push(start..index);
                (start, bytes) = (index, 0);
            }
            bytes += needed;
        }
        if bytes > INLINE_ENTRIES_MAX_BYTES {
            self.blocks.push(start..self.children.len());
        } else {
            (self.inline, self.inline_bytes) = (start..self.children.len(), bytes);
        }
    }

    fn size_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES + self.inline_bytes
    }
}

/// What an inode is.
enum Kind<'a> {
    Directory {
        mode: u16,
        folder: usize,
    },
    Empty {
        mode: u16,
    },
    File {
        mode: u16,
        size_bytes: u64,
        digest: FileDigest,
    },
    Symlink {
        target: &'a [u8],
    },
    /// One whose target has a block, which is that of [`Layout::targets`].
    LongSymlink {
        number: usize,
    },
}

struct Layout<'a> {
    kinds: Vec<Kind<'a>>,
    folders: Vec<Folder<'a>>,
    /// Long targets of links, and the first block of them.
    targets: Vec<&'a [u8]>,
    first_target_block: usize,
    offsets: Vec<usize>,
    end: usize,
}

/// Writes the metadata image of a whole image.
///
/// # Errors
/// A file longer than this can describe; or `out` failed.
pub(super) fn write(image: &Image, out: &mut impl Write) -> io::Result<()> {
    let layout = Layout::of(image)?;
    let mut writer = Writer { out, offset: 0, scratch: Vec::with_capacity(BLOCK_BYTES) };
    writer.heads(&layout)?;
    for (inode, kind) in layout.kinds.iter().enumerate() {
        writer.pad_to(layout.offsets[inode])?;
        writer.inode(&layout, inode, kind)?;
    }
    for folder in &layout.folders {
        for block in &folder.blocks {
            writer.pad_to(writer.offset.next_multiple_of(BLOCK_BYTES))?;
            writer.entries(&layout, &folder.children[block.clone()])?;
        }
    }
    for target in &layout.targets {
        writer.pad_to(writer.offset.next_multiple_of(BLOCK_BYTES))?;
        writer.put(target);
        writer.flush()?;
    }
    writer.pad_to(layout.end)
}

/// Where an inode begins, not before `offset`, so that it and what follows it inline are in one block.
fn place(offset: usize, inode_bytes: usize, inline_bytes: usize) -> usize {
    let start = offset.next_multiple_of(SLOT_BYTES);
    let is_over = inline_bytes > 0 && start % BLOCK_BYTES + inode_bytes + inline_bytes > BLOCK_BYTES;
    if is_over { start.next_multiple_of(BLOCK_BYTES) } else { start }
}

impl<'a> Layout<'a> {
    fn of(image: &'a Image) -> io::Result<Self> {
        let count = image.entries().len() + 1;
        let mut kinds = Vec::with_capacity(count);
        kinds.push(Kind::Directory { mode: 0o755, folder: 0 });
        let mut folders = vec![Folder::new(0, 0)];
        let mut targets = Vec::new();
        // The directories that lead to the entry at hand: path, inode, folder. Entries are sorted, so a
        // directory's come right after it.
        let mut open: Vec<(&[u8], usize, usize)> = vec![(b"", 0, 0)];
        for entry in image.entries() {
            let path = entry.path.as_slice();
            let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => (&path[..slash], &path[slash + 1..]),
                None => (&[][..], path),
            };
            while open.len() > 1 && open.last().is_some_and(|(path, ..)| *path != parent) {
                open.pop();
            }
            let (_, above, folder) = open.last().copied().unwrap_or_default();
            let inode = kinds.len();
            let (kind, of) = match &entry.node {
                Node::Directory { mode } => {
                    open.push((path, inode, folders.len()));
                    folders.push(Folder::new(inode, above));
                    (Kind::Directory { mode: *mode, folder: folders.len() - 1 }, DIRECTORY)
                }
                // The kernel asks for no contents of an empty file.
                Node::File { mode, size_bytes: 0, .. } => (Kind::Empty { mode: *mode }, REGULAR),
                Node::File { mode, size_bytes, digest } => {
                    if *size_bytes > FILE_MAX_BYTES {
                        return Err(io::Error::other("a file is longer than 8 TiB"));
                    }
                    (Kind::File { mode: *mode, size_bytes: *size_bytes, digest: *digest }, REGULAR)
                }
                Node::Symlink { target } if target.len() > INLINE_TARGET_MAX_BYTES => {
                    targets.push(target.as_slice());
                    (Kind::LongSymlink { number: targets.len() - 1 }, SYMLINK)
                }
                Node::Symlink { target } => (Kind::Symlink { target }, SYMLINK),
            };
            kinds.push(kind);
            folders[folder].children.push(Child { name, inode, kind: of.0 });
        }
        folders.iter_mut().for_each(Folder::settle);
        let mut offsets = Vec::with_capacity(count);
        let mut offset = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES;
        for kind in &kinds {
            let head = head_bytes(kind, &folders);
            let inline = match kind {
                Kind::Directory { folder, .. } => folders[*folder].inline_bytes,
                Kind::Symlink { target } => target.len(),
                Kind::Empty { .. } | Kind::File { .. } | Kind::LongSymlink { .. } => 0,
            };
            let start = place(offset, head, inline);
            offsets.push(start);
            offset = start + head + inline;
            if matches!(kind, Kind::File { .. }) {
                offset += ATTRIBUTES_BYTES + size_of::<u32>();
            }
        }
        let mut block = offset.div_ceil(BLOCK_BYTES);
        for folder in &mut folders {
            folder.first_block = block;
            block += folder.blocks.len();
        }
        let end = (block + targets.len()) * BLOCK_BYTES;
        Ok(Self { kinds, folders, targets, first_target_block: block, offsets, end })
    }

    fn number(&self, inode: usize) -> u64 {
        (self.offsets[inode] / SLOT_BYTES) as u64
    }
}

/// The short form of an inode has 32 bits for a size and 16 for links.
fn is_long(size_bytes: u64, links: u32) -> bool {
    size_bytes > u64::from(u32::MAX) || links > u32::from(u16::MAX)
}

fn head_bytes(kind: &Kind<'_>, folders: &[Folder<'_>]) -> usize {
    let is_long = match kind {
        Kind::Directory { folder, .. } => is_long(folders[*folder].size_bytes() as u64, folders[*folder].links),
        Kind::File { size_bytes, .. } => is_long(*size_bytes, 1),
        Kind::Empty { .. } | Kind::Symlink { .. } | Kind::LongSymlink { .. } => false,
    };
    if is_long { 2 * SLOT_BYTES } else { SLOT_BYTES }
}

/// An inode's fields.
struct Inode {
    layout: u16,
    has_attributes: bool,
    mode: u16,
    links: u32,
    size_bytes: u64,
    /// Where its blocks are, or how its chunks are.
    place: u32,
}

struct Writer<'a, W> {
    out: &'a mut W,
    offset: usize,
    /// One structure before it is written.
    scratch: Vec<u8>,
}

impl<W: Write> Writer<'_, W> {
    fn put(&mut self, bytes: &[u8]) {
        self.scratch.extend_from_slice(bytes);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.scratch)?;
        self.offset += self.scratch.len();
        self.scratch.clear();
        Ok(())
    }

    fn pad_to(&mut self, offset: usize) -> io::Result<()> {
        self.scratch.resize(offset - self.offset, 0);
        self.flush()
    }

    fn heads(&mut self, layout: &Layout<'_>) -> io::Result<()> {
        for word in [COMPOSEFS_MAGIC, 1, 0, 2] {
            self.put(&word.to_le_bytes());
        }
        self.flush()?;
        self.pad_to(SUPERBLOCK_OFFSET)?;
        let blocks = u32::try_from(layout.end / BLOCK_BYTES).map_err(io::Error::other)?;
        let root = u16::try_from(layout.number(0)).map_err(io::Error::other)?;
        self.put(&EROFS_MAGIC.to_le_bytes());
        // No checksum; modification times are kept, and are all zero.
        self.put(&[0u32, 2].map(u32::to_le_bytes).concat());
        self.put(&[BLOCK_BITS, 0]);
        self.put(&root.to_le_bytes());
        self.put(&(layout.kinds.len() as u64).to_le_bytes());
        self.put(&[0; 12]);
        self.put(&blocks.to_le_bytes());
        self.flush()?;
        self.pad_to(SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES)
    }

    fn inode(&mut self, layout: &Layout<'_>, inode: usize, kind: &Kind<'_>) -> io::Result<()> {
        let plain = Inode { layout: PLAIN, has_attributes: false, mode: 0, links: 1, size_bytes: 0, place: 0 };
        match kind {
            Kind::Directory { mode, folder } => {
                let folder = &layout.folders[*folder];
                let first = u32::try_from(folder.first_block).map_err(io::Error::other)?;
                let head = Inode {
                    layout: if folder.inline_bytes > 0 { INLINE } else { PLAIN },
                    mode: DIRECTORY.1 | mode,
                    links: folder.links,
                    size_bytes: folder.size_bytes() as u64,
                    place: if folder.blocks.is_empty() { 0 } else { first },
                    ..plain
                };
                self.head(inode, &head);
                self.flush()?;
                self.entries(layout, &folder.children[folder.inline.clone()])?;
            }
            Kind::Empty { mode } => self.head(inode, &Inode { mode: REGULAR.1 | mode, ..plain }),
            Kind::File { mode, size_bytes, digest } => {
                let head = Inode {
                    layout: CHUNKS,
                    has_attributes: true,
                    mode: REGULAR.1 | mode,
                    size_bytes: *size_bytes,
                    place: CHUNK_FORMAT,
                    ..plain
                };
                self.head(inode, &head);
                self.attributes(digest);
                self.put(&NO_CONTENTS.to_le_bytes());
            }
            Kind::Symlink { target } => {
                let head = Inode { layout: INLINE, mode: SYMLINK.1 | 0o777, size_bytes: target.len() as u64, ..plain };
                self.head(inode, &head);
                self.put(target);
            }
            Kind::LongSymlink { number } => {
                let head = Inode {
                    mode: SYMLINK.1 | 0o777,
                    size_bytes: layout.targets[*number].len() as u64,
                    place: u32::try_from(layout.first_target_block + number).map_err(io::Error::other)?,
                    ..plain
                };
                self.head(inode, &head);
            }
        }
        self.flush()
    }

    fn head(&mut self, inode: usize, head: &Inode) {
        let is_long = is_long(head.size_bytes, head.links);
        // Counted in words beyond a header of three.
        let attributes = if head.has_attributes { 1 + (ATTRIBUTES_BYTES - ATTRIBUTES_HEADER_BYTES) / 4 } else { 0 };
        self.put(&((head.layout << 1) | u16::from(is_long)).to_le_bytes());
        self.put(&(attributes as u16).to_le_bytes());
        self.put(&head.mode.to_le_bytes());
        // For stat(2) of 32 bits only.
        let number = (inode as u32).wrapping_add(1).to_le_bytes();
        if is_long {
            self.put(&[0; 2]);
            self.put(&head.size_bytes.to_le_bytes());
            self.put(&head.place.to_le_bytes());
            self.put(&number);
            // Owner and group, modification time.
            self.put(&[0; 8 + 12]);
            self.put(&head.links.to_le_bytes());
            self.put(&[0; 16]);
        } else {
            self.put(&(head.links as u16).to_le_bytes());
            self.put(&(head.size_bytes as u32).to_le_bytes());
            self.put(&[0; 4]);
            self.put(&head.place.to_le_bytes());
            self.put(&number);
            self.put(&[0; 8]);
        }
    }

    fn attributes(&mut self, digest: &FileDigest) {
        self.put(&[0; ATTRIBUTES_HEADER_BYTES]);
        // Version, length, flags, and sha256 as fs-verity numbers it.
        self.attribute(METACOPY, &[&[0, METACOPY_BYTES as u8, 0, 1], &digest.0[..]]);
        self.attribute(REDIRECT, &[b"/", object_name(digest).as_bytes()]);
    }

    fn attribute(&mut self, name: &[u8], value: &[&[u8]]) {
        let value_bytes: usize = value.iter().map(|part| part.len()).sum();
        self.put(&[name.len() as u8, TRUSTED]);
        self.put(&(value_bytes as u16).to_le_bytes());
        self.put(name);
        value.iter().for_each(|part| self.put(part));
        let padding = (4 + name.len() + value_bytes).next_multiple_of(4) - (4 + name.len() + value_bytes);
        self.put(&[0; 3][..padding]);
    }

    /// One block's directory entries, then their names.
    fn entries(&mut self, layout: &Layout<'_>, children: &[Child<'_>]) -> io::Result<()> {
        let mut name_offset = children.len() * ENTRY_BYTES;
        for child in children {
            self.put(&layout.number(child.inode).to_le_bytes());
            self.put(&(name_offset as u16).to_le_bytes());
            self.put(&[child.kind, 0]);
            name_offset += child.name.len();
        }
        for child in children {
            self.put(child.name);
        }
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{
        image::{Entry, ImageConfig},
        verity,
    };
    use composefs::{
        erofs::reader::erofs_to_filesystem,
        fsverity::{FsVerityHashValue, Sha256HashValue},
        tree::{Inode as TheirInode, LeafContent, RegularFile},
    };
    use proptest::prelude::*;
    use std::{collections::BTreeMap, ffi::OsStr, os::unix::ffi::OsStrExt};

    fn written(image: &Image) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(image, &mut bytes).unwrap();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        bytes
    }

    type Read = BTreeMap<Vec<u8>, Node>;

    /// What kernels differ in and composefs does not look at: an inode and what follows it inline are in one block.
    fn check_places(image: &Image) {
        let layout = Layout::of(image).unwrap();
        let mut end = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES;
        for (kind, start) in layout.kinds.iter().zip(&layout.offsets) {
            assert!(*start >= end && start.is_multiple_of(SLOT_BYTES));
            let head = head_bytes(kind, &layout.folders);
            let inline = match kind {
                Kind::Directory { folder, .. } => layout.folders[*folder].inline_bytes,
                Kind::Symlink { target } => target.len(),
                _ => 0,
            };
            if inline > 0 {
                assert_eq!(start / BLOCK_BYTES, (start + head + inline - 1) / BLOCK_BYTES);
            }
            let attributes = if matches!(kind, Kind::File { .. }) { ATTRIBUTES_BYTES + 4 } else { 0 };
            end = start + head + inline + attributes;
        }
        let first_block = layout.folders[0].first_block * BLOCK_BYTES;
        assert!(end <= first_block);
        let blocks = layout.folders.iter().map(|folder| folder.blocks.len()).sum::<usize>();
        assert_eq!(layout.end, first_block + (blocks + layout.targets.len()) * BLOCK_BYTES);
        assert_eq!(written(image).len(), layout.end);
    }

    /// What composefs reads.
    fn read(bytes: &[u8]) -> Read {
        let found = erofs_to_filesystem::<Sha256HashValue>(bytes).unwrap();
        let mut read = Read::new();
        let mut folders = vec![(Vec::new(), &found.root)];
        while let Some((path, folder)) = folders.pop() {
            for (name, inode) in folder.entries() {
                let mut below: Vec<u8> = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name.as_bytes());
                let node = match inode {
                    TheirInode::Directory(folder) => {
                        folders.push((below.clone(), folder));
                        Node::Directory { mode: folder.stat.st_mode as u16 }
                    }
                    TheirInode::Leaf(leaf, _) => {
                        let leaf = found.leaf(*leaf);
                        let mode = leaf.stat.st_mode as u16;
                        match &leaf.content {
                            LeafContent::Regular(RegularFile::External(digest, size_bytes)) => {
                                let digest = digest.to_hex().parse().unwrap();
                                Node::File { mode, size_bytes: *size_bytes, digest }
                            }
                            LeafContent::Regular(RegularFile::Inline(bytes)) => {
                                assert!(bytes.is_empty());
                                Node::File { mode, size_bytes: 0, digest: verity::digest(b"") }
                            }
                            LeafContent::Symlink(target) => Node::Symlink { target: target.as_bytes().to_vec() },
                            other => panic!("{other:?}"),
                        }
                    }
                };
                read.insert(below, node);
            }
        }
        read
    }

    fn image(entries: impl IntoIterator<Item = (String, Node)>) -> Image {
        let entries = entries.into_iter().map(|(path, node)| Entry { path: path.into_bytes(), node }).collect();
        Image::new(ImageConfig { platform: "linux/amd64".into(), allowed: vec![], tools: false }, entries).unwrap()
    }

    fn check(image: &Image) {
        let expected: Read = image.entries().iter().map(|entry| (entry.path.clone(), entry.node.clone())).collect();
        assert!(read(&written(image)) == expected);
        check_places(image);
    }

    fn file(size_bytes: u64) -> Node {
        let digest = if size_bytes == 0 { verity::digest(b"") } else { verity::digest(&size_bytes.to_le_bytes()) };
        Node::File { mode: 0o644, size_bytes, digest }
    }

    #[test]
    fn composefs_reads_what_is_written() {
        check(&image([]));
        let folder = |path: &str| (path.to_owned(), Node::Directory { mode: 0o750 });
        // Sizes around the short inode's, names around `.` and `..`, directories of one block and of many.
        check(&image([0, 1, 4096, u64::from(u32::MAX), 1 << 32, FILE_MAX_BYTES].map(|n| (format!("f{n}"), file(n)))));
        check(&image(["!", "+a", "-", ".a", "..a", "...", "a", "~"].map(|name| (name.to_owned(), file(7)))));
        for count in [1, 40, 100, 200, 300, 5000u64] {
            let files = (0..count).map(|n| (format!("many/{n:020}"), file(n)));
            check(&image(files.chain([folder("many"), folder("many-more"), folder("many/z"), folder("many/z/z")])));
        }
        // Longer ones composefs does not read; the kernel does.
        for length in [1, 31, 32, 500, 1000, 1024] {
            let links = (0..9).map(|n| (format!("l{n}"), Node::Symlink { target: vec![b't'; length] }));
            check(&image(links));
        }
        for length in [1500, 4063, 4064, 4065, 4095] {
            let links = (0..200).map(|n| (format!("l{n}"), Node::Symlink { target: vec![b't'; length - n % 40] }));
            check_places(&image(links));
        }
        // The longest names, and directories whose links are more than the short inode counts.
        let long = |n: u32| format!("{n:0255}");
        check(&image((0..300).map(|n| (long(n), if n % 2 == 0 { file(n.into()) } else { folder("").1 }))));
        check(&image((0..66_000).map(|n| folder(&format!("{n}")))));
        check(&image((0..100_000).map(|n| (format!("{n}"), file(n)))));
        let error = write(&image([("f".into(), file(FILE_MAX_BYTES + 1))]), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("8 TiB"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn trees_of_any_shape(
            entries in proptest::collection::vec((0usize..20, 1usize..200, 0u8..4, 1usize..=1024), 0..300)
        ) {
            let mut folders: Vec<String> = vec![String::new()];
            let mut all = BTreeMap::new();
            for (number, (folder, name, kind, size)) in entries.into_iter().enumerate() {
                let folder = folders[folder % folders.len()].clone();
                let path = format!("{folder}{number}{}", "n".repeat(name));
                if path.len() > 4000 {
                    continue;
                }
                let node = match kind {
                    0 => {
                        folders.push(format!("{path}/"));
                        Node::Directory { mode: 0o700 }
                    }
                    1 => Node::Symlink { target: vec![b'x'; size] },
                    2 => file(0),
                    _ => file(size as u64),
                };
                all.insert(path, node);
            }
            check(&image(all));
        }
    }

    #[test]
    fn names_are_bytes() {
        let name = OsStr::from_bytes(b"\xff\x01 odd");
        let path = [b"d/".as_slice(), name.as_bytes()].concat();
        let entries =
            vec![Entry { path: b"d".to_vec(), node: Node::Directory { mode: 0o755 } }, Entry { path, node: file(3) }];
        check(
            &Image::new(ImageConfig { platform: "linux/amd64".into(), allowed: vec![], tools: false }, entries)
                .unwrap(),
        );
    }
}
