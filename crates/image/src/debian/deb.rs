//! Unpacks a `.deb` into the cache, once.
//!
//! A `.deb` is an `ar` archive of `debian-binary`, `control.tar.*` and
//! `data.tar.*` (deb(5)). No path of it is ever used on this machine: contents go
//! to `files/AB/DIGEST`, and the paths go into a listing, kept as
//! `packages/SHA256.json`. Its scripts are not run.

use super::DebianError;
use crate::content::{Facts, HEAD_BYTES};
use bulkhead_core::{FileDigest, verity::VerityHasher};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read, Write as _},
    path::{Path, PathBuf},
};

/// Changes whenever listings or what is put in them change.
const LISTING_VERSION: u32 = 2;
/// The largest packages of Debian unpack to some 3 GB.
const UNPACKED_MAX_BYTES: u64 = 16 << 30;
/// The most paths of one package; the largest of Debian have some 100,000.
const ENTRIES_MAX: usize = 1_000_000;
const CONTROL_MAX_BYTES: u64 = 1 << 20;
/// Files up to this size are written from memory; larger ones go through a temporary file.
const IN_MEMORY_BYTES: u64 = 4 << 20;

/// What a package holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listing {
    listing: u32,
    /// The paragraph that describes the package.
    pub(crate) control: String,
    pub(crate) items: Vec<Item>,
}

/// One path of a package, relative to the root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) path: String,
    #[serde(flatten)]
    pub(crate) kind: ItemKind,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum ItemKind {
    Directory,
    File {
        mode: u32,
        size: u64,
        digest: FileDigest,
        #[serde(flatten)]
        facts: Facts,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        capabilities: bool,
    },
    Symlink {
        target: String,
    },
    Device,
}

/// Where the contents of package files are kept.
#[derive(Debug, Clone)]
pub(crate) struct FileCache {
    directory: PathBuf,
}

impl FileCache {
    pub(crate) fn new(cache_dir: &Path) -> Self {
        Self { directory: cache_dir.join("files") }
    }

    pub(crate) fn path(&self, digest: &FileDigest) -> PathBuf {
        let text = digest.to_string();
        self.directory.join(&text[..2]).join(&text[2..])
    }

    /// Whether a file of this digest and size is there. What it holds is checked by whoever reads it.
    pub(crate) fn has(&self, digest: &FileDigest, size_bytes: u64) -> bool {
        fs::metadata(self.path(digest)).is_ok_and(|metadata| metadata.len() == size_bytes)
    }

    fn store(&self, reader: &mut dyn Read, name: &[u8], size_bytes: u64) -> io::Result<(FileDigest, Facts)> {
        if size_bytes <= IN_MEMORY_BYTES {
            let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or_default());
            reader.read_to_end(&mut bytes)?;
            if bytes.len() as u64 != size_bytes {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file ends early"));
            }
            let digest = bulkhead_core::verity::digest(&bytes);
            let facts = Facts::of(name, &bytes[..bytes.len().min(HEAD_BYTES)]);
            if !self.has(&digest, size_bytes) {
                let mut file = self.temporary(&digest)?;
                file.write_all(&bytes)?;
                file.persist(self.path(&digest))?;
            }
            return Ok((digest, facts));
        }
        fs::create_dir_all(&self.directory)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        let mut hasher = VerityHasher::new();
        let mut buffer = vec![0; 256 << 10];
        let mut facts = None;
        loop {
            let bytes = reader.read(&mut buffer)?;
            if bytes == 0 {
                break;
            }
            facts.get_or_insert_with(|| Facts::of(name, &buffer[..bytes.min(HEAD_BYTES)]));
            hasher.update(&buffer[..bytes]);
            file.write_all(&buffer[..bytes])?;
        }
        if hasher.size_bytes() != size_bytes {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file ends early"));
        }
        let digest = hasher.finish();
        let path = self.path(&digest);
        fs::create_dir_all(path.parent().unwrap_or(&self.directory))?;
        file.persist(path)?;
        Ok((digest, facts.unwrap_or_default()))
    }

    fn temporary(&self, digest: &FileDigest) -> io::Result<tempfile::NamedTempFile> {
        let path = self.path(digest);
        let directory = path.parent().unwrap_or(&self.directory);
        match tempfile::NamedTempFile::new_in(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(directory)?;
                tempfile::NamedTempFile::new_in(directory)
            }
            other => other,
        }
    }

    /// Digests a file of the cache anew; tests and messages use it.
    #[cfg(test)]
    pub(crate) fn verify(&self, digest: &FileDigest) -> bool {
        File::open(self.path(digest))
            .and_then(|mut file| crate::scan::digest_of(&mut file, b"", &mut vec![0; 256 << 10]))
            .is_ok_and(|(found, ..)| found == *digest)
    }
}

fn listing_path(cache_dir: &Path, sha256: &str) -> PathBuf {
    cache_dir.join("packages").join(format!("{sha256}.json"))
}

/// The listing of a package that was unpacked before. Its files may be gone: a build looks for those it keeps.
pub(crate) fn cached(cache_dir: &Path, sha256: &str) -> Option<Listing> {
    let listing: Listing = serde_json::from_slice(&fs::read(listing_path(cache_dir, sha256)).ok()?).ok()?;
    (listing.listing == LISTING_VERSION).then_some(listing)
}

/// Unpacks a package whose sha256 was checked.
pub(crate) fn unpack(deb: &Path, sha256: &str, cache_dir: &Path) -> Result<Listing, DebianError> {
    let malformed = |what: String| DebianError::PackageMalformed { path: deb.to_owned(), what };
    let read = |error: io::Error| malformed(error.to_string());
    let mut reader = BufReader::with_capacity(256 << 10, File::open(deb).map_err(read)?);
    let mut magic = [0; 8];
    reader.read_exact(&mut magic).map_err(read)?;
    if &magic != b"!<arch>\n" {
        return Err(malformed("it is not an ar archive".into()));
    }
    let (mut control, mut items) = (None, None);
    loop {
        let mut header = [0; 60];
        match reader.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(read(error)),
        }
        let text = |range: std::ops::Range<usize>| std::str::from_utf8(&header[range]).unwrap_or_default().trim();
        let name = text(0..16).trim_end_matches('/').to_owned();
        let size: u64 = text(48..58).parse().map_err(|_| malformed("a member has no size".into()))?;
        let mut member = reader.by_ref().take(size);
        if let Some(suffix) = name.strip_prefix("control.tar") {
            control = Some(read_control(decoder(suffix, &mut member).map_err(read)?).map_err(read)?);
        } else if let Some(suffix) = name.strip_prefix("data.tar") {
            let data = decoder(suffix, &mut member).map_err(read)?;
            items = Some(read_data(data, &FileCache::new(cache_dir)).map_err(read)?);
        }
        io::copy(&mut member, &mut io::sink()).map_err(read)?;
        if size % 2 == 1 {
            reader.read_exact(&mut [0]).map_err(read)?;
        }
    }
    let control = control.flatten().ok_or_else(|| malformed("it has no control file".into()))?;
    let items = items.ok_or_else(|| malformed("it has no data".into()))?;
    let listing = Listing { listing: LISTING_VERSION, control, items };
    let path = listing_path(cache_dir, sha256);
    let write = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(cache_dir);
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        serde_json::to_writer(&mut file, &listing)?;
        file.persist(&path)?;
        Ok(())
    };
    write().map_err(|source| DebianError::Cache { path: path.clone(), source })?;
    Ok(listing)
}

fn decoder<'a>(suffix: &str, member: &'a mut dyn Read) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match suffix {
        "" => Box::new(member),
        ".xz" => Box::new(liblzma::read::XzDecoder::new_multi_decoder(member)),
        ".gz" => Box::new(flate2::read::MultiGzDecoder::new(member)),
        ".zst" => Box::new(zstd::Decoder::new(member)?),
        other => return Err(io::Error::other(format!("its compression `{other}` is not known"))),
    })
}

fn read_control(data: Box<dyn Read + '_>) -> io::Result<Option<String>> {
    for entry in tar::Archive::new(data.take(UNPACKED_MAX_BYTES)).entries()? {
        let entry = entry?;
        if matches!(entry.path_bytes().as_ref(), b"./control" | b"control") {
            let mut text = String::new();
            entry.take(CONTROL_MAX_BYTES).read_to_string(&mut text)?;
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// A path of a package as an image has it, or `None` for the root.
fn clean(path: &[u8]) -> io::Result<Option<String>> {
    let text = std::str::from_utf8(path).map_err(|_| io::Error::other("a path is not UTF-8"))?;
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(io::Error::other(format!("the path `{text}` leads out of the package")));
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

fn read_data(data: Box<dyn Read + '_>, files: &FileCache) -> io::Result<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    let mut by_path: HashMap<String, usize> = HashMap::new();
    for entry in tar::Archive::new(data.take(UNPACKED_MAX_BYTES)).entries()? {
        let mut entry = entry?;
        if items.len() >= ENTRIES_MAX {
            return Err(io::Error::other("it has more than a million paths"));
        }
        let Some(path) = clean(&entry.path_bytes())? else { continue };
        let capabilities = match entry.pax_extensions()? {
            Some(extensions) => extensions
                .filter_map(Result::ok)
                .any(|extension| extension.key_bytes().ends_with(b"xattr.security.capability")),
            None => false,
        };
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => ItemKind::Directory,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let mode = entry.header().mode()? & 0o7777;
                let size = entry.size();
                let name = path.rsplit('/').next().unwrap_or_default().as_bytes().to_vec();
                let (digest, facts) = files.store(&mut entry, &name, size)?;
                ItemKind::File { mode, size, digest, facts, capabilities }
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = std::str::from_utf8(&target).map_err(|_| io::Error::other("a link is not UTF-8"))?;
                ItemKind::Symlink { target: target.to_owned() }
            }
            tar::EntryType::Link => {
                let target = clean(&entry.link_name_bytes().unwrap_or_default())?.unwrap_or_default();
                let first = by_path.get(&target).and_then(|at| items.get(*at));
                first.map(|item| item.kind.clone()).ok_or_else(|| {
                    io::Error::other(format!("`{path}` is a hard link to `{target}`, which does not come before it"))
                })?
            }
            _ => ItemKind::Device,
        };
        by_path.insert(path.clone(), items.len());
        items.push(Item { path, kind });
    }
    Ok(items)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A package for tests: paths with contents; a target after `->` makes a link, a trailing `/` a folder.
    pub(crate) fn make(control: &str, files: &[(&str, u32, &[u8])], compress: &str) -> Vec<u8> {
        let tarball = |files: &[(&str, u32, &[u8])]| {
            let mut tar = tar::Builder::new(Vec::new());
            for (path, mode, contents) in files {
                let mut header = tar::Header::new_gnu();
                header.set_mode(*mode);
                if let Some((path, target)) = path.split_once("->") {
                    header.set_size(0);
                    let hard = target.strip_prefix('=');
                    header.set_entry_type(if hard.is_some() { tar::EntryType::Link } else { tar::EntryType::Symlink });
                    tar.append_link(&mut header, path, hard.unwrap_or(target)).unwrap();
                } else {
                    header.set_size(contents.len() as u64);
                    if path.ends_with('/') {
                        header.set_entry_type(tar::EntryType::Directory);
                    }
                    tar.append_data(&mut header, path, *contents).unwrap();
                }
            }
            let plain = tar.into_inner().unwrap();
            match compress {
                "xz" => {
                    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                    encoder.write_all(&plain).unwrap();
                    encoder.finish().unwrap()
                }
                "zst" => zstd::encode_all(plain.as_slice(), 1).unwrap(),
                "gz" => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    encoder.write_all(&plain).unwrap();
                    encoder.finish().unwrap()
                }
                other => panic!("{other}"),
            }
        };
        let mut ar = b"!<arch>\n".to_vec();
        let control = tarball(&[("./control", 0o644, control.as_bytes())]);
        let data = tarball(files);
        let members = [
            ("debian-binary".to_owned(), b"2.0\n".to_vec()),
            (format!("control.tar.{compress}"), control),
            (format!("data.tar.{compress}"), data),
        ];
        for (name, contents) in members {
            ar.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", contents.len()).bytes());
            ar.extend(&contents);
            if contents.len() % 2 == 1 {
                ar.push(b'\n');
            }
        }
        ar
    }

    #[test]
    fn every_compression_gives_the_same_listing() {
        let mut seen = Vec::new();
        let big = vec![7u8; usize::try_from(IN_MEMORY_BYTES).unwrap() + 1];
        let long = format!("./usr/{}/{}", "d".repeat(120), "n".repeat(200));
        for compress in ["xz", "gz", "zst"] {
            let cache = tempfile::tempdir().unwrap();
            let files: &[(&str, u32, &[u8])] = &[
                ("./usr/", 0o755, b""),
                ("./usr/bin/a", 0o4755, b"#!/bin/sh\n"),
                ("./usr/bin/b->=./usr/bin/a", 0o755, b""),
                ("./usr/bin/c->a", 0o777, b""),
                ("./usr/big", 0o644, &big),
                (&long, 0o644, b"x"),
            ];
            let path = cache.path().join("x.deb");
            fs::write(&path, make("Package: x\n", files, compress)).unwrap();
            assert!(cached(cache.path(), "00").is_none());
            let listing = unpack(&path, "00", cache.path()).unwrap();
            assert!(cached(cache.path(), "00").is_some());
            for item in &listing.items {
                if let ItemKind::File { digest, size, .. } = &item.kind {
                    let files = FileCache::new(cache.path());
                    assert!(files.has(digest, *size) && files.verify(digest), "{}", item.path);
                }
            }
            seen.push(serde_json::to_string(&listing).unwrap());
        }
        assert!(seen[0] == seen[1] && seen[1] == seen[2]);
        assert!(seen[0].contains("\"path\":\"usr/bin/b\",\"type\":\"file\",\"mode\":2541"), "{}", seen[0]);
    }

    #[test]
    fn what_is_refused() {
        let check = |bytes: Vec<u8>, expected: &str| {
            let cache = tempfile::tempdir().unwrap();
            let path = cache.path().join("x.deb");
            fs::write(&path, bytes).unwrap();
            let error = unpack(&path, "00", cache.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(b"#!/bin/sh\nexit 0\n".to_vec(), "not an ar archive");
        check(b"!<arch>\n".to_vec(), "no control file");
        check(make("", &[("./a->=./b", 0o644, b"")], "gz"), "hard link");
        let whole = make("", &[("./a", 0o644, &[1; 5000])], "zst");
        check(whole[..whole.len() - 40].to_vec(), "");
        assert!(clean(b"./a/../b").is_err() && clean(b"./").unwrap().is_none());
    }
}
