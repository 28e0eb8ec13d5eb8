//! Where the contents of an image's files lie.

use bulkhead_core::FileDigest;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Cursor, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where one file's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file on disk. It may have changed since; whoever reads it checks the digest.
    Disk(PathBuf),
    /// A file that the build made.
    Memory(Arc<[u8]>),
}

impl Source {
    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Disk(path) => Box::new(File::open(path)?),
            Self::Memory(bytes) => Box::new(Cursor::new(Arc::clone(bytes))),
        })
    }
}

/// The files of an image by digest: where to read them and what they are called.
#[derive(Debug, Default)]
pub struct Sources {
    files: HashMap<FileDigest, (Source, Vec<u8>)>,
}

impl Sources {
    /// None yet, with room for so many.
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self { files: HashMap::with_capacity(count) }
    }

    /// Adds a file; of several with one digest the first stays.
    pub(crate) fn add(&mut self, digest: FileDigest, source: Source, path: &[u8]) {
        self.files.entry(digest).or_insert_with(|| (source, path.to_vec()));
    }

    /// The path in the image of a file with this digest (the first of several), for messages.
    #[must_use]
    pub fn image_path(&self, digest: &FileDigest) -> Option<String> {
        self.files.get(digest).map(|(_, path)| format!("/{}", String::from_utf8_lossy(path)))
    }

    /// The file on disk that holds these contents, unless the build made them.
    #[must_use]
    pub fn disk_path(&self, digest: &FileDigest) -> Option<&Path> {
        match &self.files.get(digest)?.0 {
            Source::Disk(path) => Some(path),
            Source::Memory(_) => None,
        }
    }

    /// How many different contents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

impl bulkhead_store::pack::Contents for Sources {
    fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
        self.files.get(digest).map(|(source, _)| source.open()).transpose()
    }

    fn read_at(&self, digest: &FileDigest, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; length];
        match self.files.get(digest).map(|(source, _)| source) {
            None => return Ok(None),
            Some(Source::Disk(path)) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(&mut bytes)?;
            }
            Some(Source::Memory(contents)) => {
                let mut cursor = Cursor::new(contents);
                cursor.set_position(offset);
                cursor.read_exact(&mut bytes)?;
            }
        }
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_store::pack::Contents as _;

    #[test]
    fn the_first_of_equal_files_names_them() {
        let mut sources = Sources::default();
        let digest = bulkhead_core::verity::digest(b"same");
        sources.add(digest, Source::Memory(b"same".as_slice().into()), b"a");
        sources.add(digest, Source::Memory(b"same".as_slice().into()), b"b");
        assert_eq!((sources.len(), sources.image_path(&digest)), (1, Some("/a".to_owned())));
        let mut text = String::new();
        sources.open(&digest).unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "same");
        assert_eq!(sources.read_at(&digest, 1, 2).unwrap().unwrap(), b"am");
        assert!(sources.open(&FileDigest([0; 32])).unwrap().is_none());
    }
}
