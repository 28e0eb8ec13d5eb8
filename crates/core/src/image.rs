//! An image: the constant part of an app, as a sealed, read-only file tree.
//!
//! An image is wholly described by its *document*, and named by the document's
//! sha256 ([`ImageId`]). The document is canonical: one image has exactly one
//! encoding, so same inputs give the same id on any host. It holds no times,
//! no owners (everything belongs to uid 0, gid 0) and no file contents, only
//! their [`FileDigest`]s.
//!
//! # Layout
//!
//! All integers little-endian.
//!
//! ```text
//! magic    "bulkhead-image-1\n"
//! config   u32 length, then ImageConfig as JSON (keys in declaration order, no spaces)
//! count    u32 number of entries
//! entry*   u8  type: 'd' directory, 'f' file, 'l' symbolic link
//!          u16 permission bits (directories and files; a link has 0)
//!          u16 length, then path bytes: relative, no leading slash, no "." or ".."
//!          file: u64 size, 32 bytes digest
//!          link: u16 length, then target bytes
//! ```
//!
//! Entries are sorted by path as compared component by component, strictly
//! ascending, so a directory comes before what it holds. Every parent of an entry is itself an entry
//! of type directory; the root directory is implied (mode 0755). Anything else
//! is refused by [`Image::decode`], which is what a node runs on bytes that an
//! operator's machine sent.

use crate::digest::{FileDigest, ImageId};
use serde::{Deserialize, Serialize};
use std::{cmp::Ordering, collections::HashSet};

const MAGIC: &[u8] = b"bulkhead-image-1\n";
/// The largest document: some 800,000 entries. A node holds it in memory once.
pub const DOCUMENT_MAX_BYTES: usize = 64 << 20;
/// The most files, links and directories of an image: a decoded entry takes some hundred bytes, of whoever sent it.
pub const ENTRIES_MAX: usize = 1_000_000;
/// Linux's `PATH_MAX`, less its NUL.
pub const PATH_MAX_BYTES: usize = 4095;
/// Linux's `NAME_MAX`.
pub const COMPONENT_MAX_BYTES: usize = 255;
const CONFIG_MAX_BYTES: usize = 256 << 10;

/// What is true of the image as a whole and decides how it may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// The platform its binaries are for, such as `linux/amd64`.
    pub platform: String,
    /// Paths that the lint would have refused, had the manifest not allowed them by name.
    pub allowed: Vec<String>,
    /// Whether it holds tools to look into services with. A node runs no service from
    /// such an image, and no tool from any other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tools: bool,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory {
        /// Permission bits, `0..=0o777`.
        mode: u16,
    },
    /// A regular file.
    File {
        /// Permission bits, `0..=0o777`.
        mode: u16,
        /// Its length.
        size_bytes: u64,
        /// Its contents.
        digest: FileDigest,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as written in the link.
        target: Vec<u8>,
    },
}

/// One path of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root, `/` between components. Bytes, as Linux has them.
    pub path: Vec<u8>,
    /// What is there.
    pub node: Node,
}

/// A whole image: configuration and sorted entries.
///
/// Made by [`Image::new`] or [`Image::decode`], both of which check it, so a
/// value of this type keeps every rule of the module's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    config: ImageConfig,
    entries: Vec<Entry>,
}

/// Why something is not an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The document ends early, is too long or has the wrong magic.
    #[error("image document is malformed at byte {offset}: {what}")]
    Malformed {
        /// Where in the document.
        offset: usize,
        /// What was expected there.
        what: &'static str,
    },
    /// An entry breaks a rule.
    #[error("image entry `{path}`: {what}")]
    Entry {
        /// The path, with what is not UTF-8 replaced.
        path: String,
        /// The rule it breaks.
        what: &'static str,
    },
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The document's order: component by component, so `a/b` comes before `a.b`.
#[must_use]
pub fn compare_paths(left: &[u8], right: &[u8]) -> Ordering {
    // Neighbours in a sorted list begin alike, so what is alike is skipped by words.
    let words = left.as_chunks::<8>().0.iter().zip(right.as_chunks::<8>().0);
    let alike = 8 * words.take_while(|(left, right)| left == right).count();
    // '/' sorts below every byte that a component may hold (NUL is refused).
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    left[alike..].iter().map(key).cmp(right[alike..].iter().map(key))
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash])
}

fn check_path(path: &[u8]) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("an empty path");
    }
    if path.len() > PATH_MAX_BYTES {
        return Err("longer than 4095 bytes");
    }
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" => return Err("an empty component"),
            b"." | b".." => return Err("`.` and `..` are not allowed"),
            long if long.len() > COMPONENT_MAX_BYTES => return Err("a component longer than 255 bytes"),
            zero if zero.contains(&0) => return Err("a NUL byte"),
            _ => {}
        }
    }
    Ok(())
}

fn check_node(node: &Node) -> Result<(), &'static str> {
    match node {
        Node::Directory { mode } | Node::File { mode, .. } if *mode > 0o777 => {
            Err("setuid, setgid and sticky bits are not allowed")
        }
        Node::Symlink { target } if target.is_empty() => Err("a symbolic link to nothing"),
        Node::Symlink { target } if target.len() > PATH_MAX_BYTES => Err("a link target longer than 4095 bytes"),
        Node::Symlink { target } if target.contains(&0) => Err("a NUL byte in the link target"),
        _ => Ok(()),
    }
}

impl Image {
    /// Sorts and checks the entries.
    ///
    /// # Errors
    /// The first entry that breaks a rule, and which.
    pub fn new(config: ImageConfig, mut entries: Vec<Entry>) -> Result<Self, ImageError> {
        entries.sort_by(|a, b| compare_paths(&a.path, &b.path));
        let image = Self { config, entries };
        image.check()?;
        Ok(image)
    }

    fn check(&self) -> Result<(), ImageError> {
        // The open directories that lead to the entry at hand, as path lengths of the last one seen.
        let mut directories: Vec<&[u8]> = Vec::new();
        let mut previous: Option<&[u8]> = None;
        for entry in &self.entries {
            let refuse = |what| ImageError::Entry { path: lossy(&entry.path), what };
            let parent = parent(&entry.path);
            while directories.last().is_some_and(|open| Some(*open) != parent) {
                directories.pop();
            }
            let is_below = directories.last().copied() == parent;
            // What is above was checked when the directory was.
            let unchecked =
                parent.filter(|_| is_below).map_or(&entry.path[..], |parent| &entry.path[parent.len() + 1..]);
            if entry.path.len() > PATH_MAX_BYTES {
                return Err(refuse("longer than 4095 bytes"));
            }
            check_path(unchecked).map_err(refuse)?;
            check_node(&entry.node).map_err(refuse)?;
            if previous.is_some_and(|previous| compare_paths(previous, &entry.path) != Ordering::Less) {
                return Err(refuse("twice, or out of order"));
            }
            previous = Some(&entry.path);
            if !is_below {
                return Err(refuse("its parent directory is missing"));
            }
            if matches!(entry.node, Node::Directory { .. }) {
                directories.push(&entry.path);
            }
        }
        Ok(())
    }

    /// What is true of the image as a whole.
    #[must_use]
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The entries, sorted.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry at a path.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        let index = self.entries.binary_search_by(|entry| compare_paths(&entry.path, path)).ok()?;
        Some(&self.entries[index])
    }

    /// Every file's (path, size, digest), in order. A digest can come more than once.
    pub fn files(&self) -> impl Iterator<Item = (&[u8], u64, FileDigest)> {
        self.entries.iter().filter_map(|entry| match entry.node {
            Node::File { size_bytes, digest, .. } => Some((entry.path.as_slice(), size_bytes, digest)),
            _ => None,
        })
    }

    /// Every object once, with its length, in the order in which files first name them: the order that bits
    /// on the wire count in.
    #[must_use]
    pub fn distinct_objects(&self) -> Vec<(FileDigest, u64)> {
        let mut seen = HashSet::with_capacity(self.entries.len());
        self.files().filter(|(_, _, digest)| seen.insert(*digest)).map(|(_, size, digest)| (digest, size)).collect()
    }

    /// The sum of all file sizes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.files().map(|(_, size_bytes, _)| size_bytes).sum()
    }

    /// The canonical document.
    ///
    /// # Panics
    /// Never: the lengths were checked when the image was made.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let length16 = |bytes: &[u8]| u16::try_from(bytes.len()).expect("path lengths are checked").to_le_bytes();
        let length32 = |count: usize| u32::try_from(count).expect("documents are below 4 GiB").to_le_bytes();
        let config = serde_json::to_vec(&self.config).expect("plain data always serialises");
        let mut out = Vec::with_capacity(MAGIC.len() + config.len() + 8 + self.entries.len() * 110);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&length32(config.len()));
        out.extend_from_slice(&config);
        out.extend_from_slice(&length32(self.entries.len()));
        for entry in &self.entries {
            let (kind, mode) = match &entry.node {
                Node::Directory { mode } => (b'd', *mode),
                Node::File { mode, .. } => (b'f', *mode),
                Node::Symlink { .. } => (b'l', 0),
            };
            out.push(kind);
            out.extend_from_slice(&mode.to_le_bytes());
            out.extend_from_slice(&length16(&entry.path));
            out.extend_from_slice(&entry.path);
            match &entry.node {
                Node::Directory { .. } => {}
                Node::File { size_bytes, digest, .. } => {
                    out.extend_from_slice(&size_bytes.to_le_bytes());
                    out.extend_from_slice(&digest.0);
                }
                Node::Symlink { target } => {
                    out.extend_from_slice(&length16(target));
                    out.extend_from_slice(target);
                }
            }
        }
        out
    }

    /// The image's id: sha256 of its document.
    #[must_use]
    pub fn id(&self) -> ImageId {
        ImageId::of(&self.encode())
    }

    /// Reads a document, refusing whatever [`Image::encode`] would not have written.
    ///
    /// # Errors
    /// Where the document is malformed, or which entry breaks which rule.
    pub fn decode(document: &[u8]) -> Result<Self, ImageError> {
        let mut reader = Reader { document, offset: 0 };
        if document.len() > DOCUMENT_MAX_BYTES {
            return Err(reader.malformed("at most 64 MiB"));
        }
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(ImageError::Malformed { offset: 0, what: "the magic \"bulkhead-image-1\"" });
        }
        let config_bytes = reader.u32()? as usize;
        if config_bytes > CONFIG_MAX_BYTES {
            return Err(reader.malformed("a configuration of at most 256 KiB"));
        }
        let config_text = reader.take(config_bytes)?;
        let config: ImageConfig =
            serde_json::from_slice(config_text).map_err(|_| reader.malformed("a valid configuration"))?;
        if serde_json::to_vec(&config).ok().as_deref() != Some(config_text) {
            return Err(reader.malformed("a canonical configuration"));
        }
        let count = reader.u32()? as usize;
        if count > ENTRIES_MAX {
            return Err(reader.malformed("at most a million entries"));
        }
        // The smallest entry takes six bytes, which bounds what a lying count can reserve.
        let mut entries = Vec::with_capacity(count.min(document.len() / 6));
        for _ in 0..count {
            let kind = reader.take(1)?[0];
            let mode = reader.u16()?;
            let path_bytes = usize::from(reader.u16()?);
            let path = reader.take(path_bytes)?.to_vec();
            let node = match kind {
                b'd' => Node::Directory { mode },
                b'f' => Node::File { mode, size_bytes: reader.u64()?, digest: FileDigest(reader.array()?) },
                b'l' if mode == 0 => {
                    let target_bytes = usize::from(reader.u16()?);
                    Node::Symlink { target: reader.take(target_bytes)?.to_vec() }
                }
                _ => return Err(reader.malformed("an entry of type d, f or l")),
            };
            entries.push(Entry { path, node });
        }
        if reader.offset != document.len() {
            return Err(reader.malformed("the end of the document"));
        }
        let image = Self { config, entries };
        image.check()?;
        Ok(image)
    }
}

struct Reader<'a> {
    document: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn malformed(&self, what: &'static str) -> ImageError {
        ImageError::Malformed { offset: self.offset, what }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], ImageError> {
        let rest = &self.document[self.offset..];
        let taken = rest.get(..bytes).ok_or_else(|| self.malformed("more bytes"))?;
        self.offset += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        Ok(self.take(N)?.try_into().expect("take gives exactly N bytes"))
    }

    fn u16(&mut self) -> Result<u16, ImageError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ImageError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ImageError> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> ImageConfig {
        ImageConfig { platform: "linux/amd64".into(), allowed: vec![], tools: false }
    }
    fn directory(path: &str) -> Entry {
        Entry { path: path.into(), node: Node::Directory { mode: 0o755 } }
    }
    fn file(path: &str) -> Entry {
        let digest = crate::verity::digest(path.as_bytes());
        Entry { path: path.into(), node: Node::File { mode: 0o644, size_bytes: path.len() as u64, digest } }
    }
    fn link(path: &str, target: &str) -> Entry {
        Entry { path: path.into(), node: Node::Symlink { target: target.into() } }
    }

    #[test]
    fn order_of_entries_does_not_matter() {
        let a = Image::new(config(), vec![directory("a"), file("a/b"), file("a.b"), link("c", "a/b")]).unwrap();
        let b = Image::new(config(), vec![link("c", "a/b"), file("a.b"), file("a/b"), directory("a")]).unwrap();
        assert_eq!(a.id(), b.id());
        assert_eq!(Image::decode(&a.encode()), Ok(a.clone()));
        assert!(a.get(b"a.b").is_some() && a.get(b"a/b").is_some() && a.get(b"a/c").is_none());
    }

    proptest! {
        #[test]
        fn paths_are_compared_by_components(left in "[a./-]{0,20}", right in "[a./-]{0,20}", both in "[a./-]{0,20}") {
            let (left, right) = (format!("{both}{left}"), format!("{both}{right}"));
            let expected = left.split('/').cmp(right.split('/'));
            prop_assert_eq!(compare_paths(left.as_bytes(), right.as_bytes()), expected);
        }
    }

    #[test]
    fn what_is_refused() {
        let check = |entries: Vec<Entry>, what: &str| {
            let error = Image::new(config(), entries).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        check(vec![file("a/b")], "parent");
        check(vec![file("a"), file("a/b")], "parent");
        check(vec![directory("a"), directory("ab"), file("ab/c"), file("a/b/c")], "parent");
        check(vec![file("a"), file("a")], "twice");
        check(vec![file("../a")], "..");
        check(vec![file("/a")], "empty component");
        check(vec![file("a\0b")], "NUL");
        check(vec![file(&"a".repeat(256))], "255");
        check(vec![link("a", "")], "nothing");
        let setuid = Entry { path: "su".into(), node: Node::Directory { mode: 0o4755 } };
        check(vec![setuid], "setuid");
    }

    #[test]
    fn the_mark_of_tools_is_written_in_one_way() {
        let plain = Image::new(config(), vec![]).unwrap();
        let marked = Image::new(ImageConfig { tools: true, ..config() }, vec![]).unwrap();
        assert!(!String::from_utf8_lossy(&plain.encode()).contains("tools"));
        assert_eq!(Image::decode(&marked.encode()), Ok(marked.clone()));
        assert_ne!(plain.id(), marked.id());
        // `"tools":false` is said by saying nothing.
        let text = String::from_utf8_lossy(&marked.encode()).replace("true", "false").into_bytes();
        let mut document = text;
        document[17] += 1;
        assert!(Image::decode(&document).is_err());
    }

    #[test]
    fn every_truncation_is_refused() {
        let document = Image::new(config(), vec![directory("a"), file("a/b"), link("l", "a")]).unwrap().encode();
        for end in 0..document.len() {
            assert!(Image::decode(&document[..end]).is_err(), "{end}");
        }
        assert!(Image::decode(&[document.as_slice(), b"x"].concat()).is_err());
    }

    /// A document that says how many entries it has, and has none of them.
    fn claiming(entries: usize) -> Vec<u8> {
        let mut document = Image::new(config(), vec![]).unwrap().encode();
        let count = document.len() - 4;
        document[count..].copy_from_slice(&u32::try_from(entries).unwrap().to_le_bytes());
        document
    }

    #[test]
    fn too_many_entries_are_refused_by_their_number_alone() {
        let refused = |entries| Image::decode(&claiming(entries)).unwrap_err().to_string();
        for entries in [ENTRIES_MAX + 1, u32::MAX as usize] {
            assert!(refused(entries).contains("at most a million entries"), "{}", refused(entries));
        }
        // As many as there may be are looked for.
        assert!(refused(ENTRIES_MAX).contains("more bytes"), "{}", refused(ENTRIES_MAX));
        assert!(Image::decode(&claiming(0)).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_and_what_decodes_is_canonical(flip in 0usize..200, to: u8) {
            let mut document = Image::new(config(), vec![directory("a"), file("a/b"), link("l", "a")]).unwrap().encode();
            let index = flip % document.len();
            document[index] = to;
            if let Ok(image) = Image::decode(&document) {
                prop_assert_eq!(image.encode(), document);
            }
        }
    }
}
