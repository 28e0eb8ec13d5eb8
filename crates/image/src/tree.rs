//! The paths of an image while it is made: what the app brings, what packages
//! offer, what every image has.
//!
//! Paths are relative to the image's root, bytes with `/` between. `/bin`, `/sbin`,
//! `/lib` and `/lib64` are links into `/usr` in every image, so a path below one of
//! them is entered below `/usr`: there is one spelling of each file.

use crate::{content::Facts, sources::Source};
use bulkhead_core::FileDigest;
use std::collections::{BTreeMap, BTreeSet};

/// Linux's limit of links in one path.
const LINKS_MAX: usize = 40;
/// The directories that are links into `/usr`.
pub(crate) const MERGED: [&[u8]; 4] = [b"bin", b"sbin", b"lib", b"lib64"];

/// Who brings a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    App,
    /// The number of a package.
    Package(usize),
    Base,
}

#[derive(Debug, Clone)]
pub(crate) struct FileNode {
    pub(crate) executable: bool,
    pub(crate) size_bytes: u64,
    pub(crate) digest: FileDigest,
    pub(crate) facts: Facts,
    /// `None`: in the cache of package files.
    pub(crate) source: Option<Source>,
    pub(crate) is_setuid: bool,
    pub(crate) is_world_writable: bool,
    pub(crate) has_capabilities: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Directory,
    File(Box<FileNode>),
    Symlink { target: Vec<u8> },
    Device,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) origin: Origin,
    pub(crate) kind: Kind,
}

impl Node {
    fn is_of_package(&self) -> bool {
        matches!(self.origin, Origin::Package(_))
    }

    /// A directory belongs to a package only as long as nobody else has something in it.
    fn own(&mut self, origin: Origin) {
        if self.is_of_package() && !matches!(origin, Origin::Package(_)) {
            self.origin = origin;
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
}

/// A path as the tree spells it: no leading slash, merged directories below `usr`.
pub(crate) fn spell(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
    if first.len() < path.len() && MERGED.contains(&first) {
        return [b"usr/", path].concat();
    }
    path.to_vec()
}

pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash])
}

pub(crate) fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// A path for people.
pub(crate) fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

impl Tree {
    /// Adds a path; it replaces what was there, but a directory stays what it is below another's.
    pub(crate) fn insert(&mut self, path: &[u8], node: Node) {
        let path = spell(path);
        let is_directory = matches!(node.kind, Kind::Directory);
        if path.is_empty() {
            return;
        }
        match self.nodes.get_mut(&path) {
            // The links that every image has are not replaced by a package's directories.
            Some(known)
                if is_directory && MERGED.contains(&path.as_slice()) && matches!(known.kind, Kind::Symlink { .. }) => {}
            Some(known) if is_directory && matches!(known.kind, Kind::Directory) => known.own(node.origin),
            _ => {
                self.nodes.insert(path, node);
            }
        }
    }

    /// Adds the directories above a path that are not there, and takes those of packages over.
    pub(crate) fn insert_parents(&mut self, path: &[u8], origin: Origin) {
        let mut at = parent(path);
        while let Some(directory) = at {
            match self.nodes.get_mut(directory) {
                Some(known) if known.is_of_package() && !matches!(origin, Origin::Package(_)) => known.own(origin),
                Some(_) => break,
                None => {
                    self.nodes.insert(directory.to_vec(), Node { origin, kind: Kind::Directory });
                }
            }
            at = parent(directory);
        }
    }

    /// Leaves what is not of packages, the given paths of packages, and the directories above those.
    pub(crate) fn prune(&mut self, kept: &BTreeSet<Vec<u8>>, mut dropped: impl FnMut(&[u8], usize, &FileNode)) {
        let mut above: BTreeSet<&[u8]> = BTreeSet::new();
        for path in kept {
            let mut at = parent(path);
            while let Some(directory) = at
                && above.insert(directory)
            {
                at = parent(directory);
            }
        }
        self.nodes.retain(|path, node| {
            let Origin::Package(number) = node.origin else { return true };
            let stays = kept.contains(path) || above.contains(path.as_slice());
            if let (false, Kind::File(file)) = (stays, &node.kind) {
                dropped(path, number, file);
            }
            stays
        });
    }

    pub(crate) fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Node)> {
        self.nodes.iter()
    }

    pub(crate) fn into_nodes(self) -> BTreeMap<Vec<u8>, Node> {
        self.nodes
    }

    /// A path and everything below it.
    pub(crate) fn below<'a>(&'a self, path: &[u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a Node)> + use<'a> {
        let start = path.to_vec();
        let prefix = [path, b"/"].concat();
        // Between a directory and what it holds may come siblings such as `a.b` beside `a/b`.
        let itself = self.nodes.get_key_value(&start);
        itself
            .into_iter()
            .chain(self.nodes.range(prefix.clone()..).take_while(move |(path, _)| path.starts_with(&prefix)))
    }

    /// Where a path leads when all links are followed inside the tree, as a process
    /// whose root is the image follows them. The links on the way are added to `via`.
    pub(crate) fn resolve(&self, path: &[u8], via: &mut Vec<Vec<u8>>) -> Option<Vec<u8>> {
        let mut todo: Vec<Vec<u8>> = Vec::new();
        let push = |todo: &mut Vec<Vec<u8>>, path: &[u8]| {
            let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
            todo.extend(parts.map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter().rev());
        };
        push(&mut todo, path);
        let mut done: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                done.truncate(parent(&done).map_or(0, <[u8]>::len));
                continue;
            }
            let mut next = done.clone();
            if !next.is_empty() {
                next.push(b'/');
            }
            next.extend_from_slice(&part);
            match &self.nodes.get(&next)?.kind {
                Kind::Symlink { target } => {
                    links += 1;
                    if links > LINKS_MAX {
                        return None;
                    }
                    via.push(next);
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    push(&mut todo, target);
                }
                Kind::Directory => done = next,
                Kind::File(_) | Kind::Device if todo.is_empty() => done = next,
                Kind::File(_) | Kind::Device => return None,
            }
        }
        Some(done)
    }

    /// [`Tree::resolve`] where the way does not matter.
    pub(crate) fn lookup(&self, path: &[u8]) -> Option<(Vec<u8>, &Node)> {
        let path = self.resolve(path, &mut Vec::new())?;
        let node = self.nodes.get(&path)?;
        Some((path, node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::default();
        for path in paths {
            let (path, kind) = match path.split_once("->") {
                Some((path, target)) => (path, Kind::Symlink { target: target.into() }),
                None => (*path, Kind::Directory),
            };
            tree.insert_parents(&spell(path.as_bytes()), Origin::Base);
            tree.insert(path.as_bytes(), Node { origin: Origin::Base, kind });
        }
        tree
    }

    #[test]
    fn links_are_followed_inside_the_tree() {
        let tree =
            tree(&["lib->usr/lib", "/lib/x", "a/b->/lib", "a/up->../../../usr", "loop->loop", "a/none->nowhere"]);
        let check = |path: &str, expected: Option<&str>| {
            let found = tree.resolve(path.as_bytes(), &mut Vec::new());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path}");
        };
        check("lib/x", Some("usr/lib/x"));
        check("a/b/x", Some("usr/lib/x"));
        check("a/up/lib", Some("usr/lib"));
        check("/a/./b/../lib/x", Some("usr/lib/x"));
        check("loop", None);
        check("a/none", None);
        let mut via = Vec::new();
        tree.resolve(b"a/b/x", &mut via).unwrap();
        assert_eq!(via, [b"a/b".to_vec(), b"lib".to_vec()]);
    }

    #[test]
    fn below_skips_siblings() {
        let tree = tree(&["a/b", "a.b", "ab/c"]);
        let below: Vec<_> = tree.below(b"a").map(|(path, _)| path.as_slice()).collect();
        assert_eq!(below, [b"a".as_slice(), b"a/b"]);
    }
}
