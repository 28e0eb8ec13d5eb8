//! Trees of files for benchmarks and tests, the same on every machine.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Files per directory of a made tree, as in a folder of dependencies.
const FILES_PER_DIRECTORY: usize = 40;

/// How large a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct TreeSize {
    /// Regular files.
    pub files: u64,
    /// The sum of their lengths.
    pub bytes: u64,
}

/// Counts what a tree holds; symbolic links are not followed and not counted.
///
/// # Errors
/// A directory that cannot be read.
pub fn measure(root: &Path) -> io::Result<TreeSize> {
    let mut size = TreeSize::default();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                size.files += 1;
                size.bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(size)
}

/// A small generator of numbers (SplitMix64): seeded, so that a fixture is the same everywhere.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers that follow from this seed alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Makes a tree of `files` small files of JavaScript-like text, some 1 to 4 kB each, below a directory
/// that must not exist yet. Returns the files' paths.
///
/// # Errors
/// What cannot be written.
pub fn make_tree(root: &Path, files: usize, seed: u64) -> io::Result<Vec<PathBuf>> {
    const WORDS: &[&str] =
        &["const", "return", "exports", "function", "module", "value", "index", "=>", "require", "null", "length"];
    fs::create_dir(root)?;
    let mut numbers = Numbers::new(seed);
    let mut paths = Vec::with_capacity(files);
    let mut directory = root.to_path_buf();
    for file in 0..files {
        if file % FILES_PER_DIRECTORY == 0 {
            let number = file / FILES_PER_DIRECTORY;
            directory = root.join(format!("p{}", number / 100)).join(format!("d{number}"));
            fs::create_dir_all(&directory)?;
        }
        let mut text = String::new();
        let length = 1000 + numbers.next_number() % 3000;
        while (text.len() as u64) < length {
            let number = numbers.next_number();
            text.push_str(WORDS[usize::try_from(number % WORDS.len() as u64).expect("below the number of words")]);
            text.push(if number & 0x700 == 0 { '\n' } else { ' ' });
            if number & 0x3000 == 0 {
                text.push_str(&number.to_string());
            }
        }
        let path = directory.join(format!("f{file}.js"));
        fs::write(&path, text)?;
        paths.push(path);
    }
    Ok(paths)
}

/// Where the deploy benchmark's lock files lie: `bench-app`, and `bench-app-patched` with one dependency's
/// next patch release.
#[must_use]
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_alike() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        let paths = make_tree(&a, 100, 7).unwrap();
        make_tree(&b, 100, 7).unwrap();
        assert_eq!(paths.len(), 100);
        let size = measure(&a).unwrap();
        assert_eq!((size.files, size), (100, measure(&b).unwrap()));
        for path in paths {
            let twin = b.join(path.strip_prefix(&a).unwrap());
            assert_eq!(fs::read(&path).unwrap(), fs::read(twin).unwrap(), "{}", path.display());
        }
    }

    #[test]
    fn links_are_not_counted() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "12345").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("file", directory.path().join("link")).unwrap();
        assert_eq!(measure(directory.path()).unwrap(), TreeSize { files: 1, bytes: 5 });
    }
}
