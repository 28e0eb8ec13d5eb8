//! The fs-verity digest of a file, as the kernel computes it.
//!
//! Source: Linux `Documentation/filesystems/fsverity.rst`. With sha256, 4096-byte
//! blocks and no salt: hash every data block (the last one zero-padded); pack
//! 128 hashes to a block and hash those; repeat until one hash is left, the
//! root. An empty file's root is 32 zero bytes. The digest is the sha256 of
//! this 256-byte descriptor:
//!
//! ```text
//! version 1 | algorithm 1 (sha256) | log2 block 12 | salt length 0 | 4 zero bytes
//! | data size, u64 little-endian | root hash, padded to 64 | salt, 32 zeros | 144 zeros
//! ```
//!
//! Being a hash tree it takes any file in one pass with one block per level in
//! memory, and a kernel with fs-verity re-checks every page against it at read.

use crate::digest::FileDigest;
use sha2::{Digest as _, Sha256};

const BLOCK_BYTES: usize = 4096;
const HASH_BYTES: usize = 32;

/// Computes a [`FileDigest`] from a file's bytes, fed in order.
#[derive(Debug, Clone)]
pub struct VerityHasher {
    /// Bytes of the data block that is not full yet.
    block: Vec<u8>,
    /// For each level of the tree above the data, its hashes that do not fill a block yet.
    levels: Vec<Vec<u8>>,
    size_bytes: u64,
}

impl Default for VerityHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl VerityHasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { block: Vec::with_capacity(BLOCK_BYTES), levels: Vec::new(), size_bytes: 0 }
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.size_bytes += bytes.len() as u64;
        if !self.block.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(head);
            bytes = rest;
            if self.block.len() < BLOCK_BYTES {
                return;
            }
            let hash = Sha256::digest(&self.block);
            self.block.clear();
            self.push(0, &hash);
        }
        let mut blocks = bytes.chunks_exact(BLOCK_BYTES);
        for block in blocks.by_ref() {
            self.push(0, &Sha256::digest(block));
        }
        self.block.extend_from_slice(blocks.remainder());
    }

    /// Adds a hash to a level. A level is hashed upwards only when another hash
    /// arrives after it is full: a level that ends exactly full may be the last.
    fn push(&mut self, level: usize, hash: &[u8]) {
        if self.levels.len() == level {
            self.levels.push(Vec::with_capacity(BLOCK_BYTES));
        }
        if self.levels[level].len() == BLOCK_BYTES {
            let upper = Sha256::digest(&self.levels[level]);
            self.levels[level].clear();
            self.push(level + 1, &upper);
        }
        self.levels[level].extend_from_slice(hash);
    }

    /// How many bytes were taken so far.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(mut self) -> FileDigest {
        if !self.block.is_empty() {
            self.block.resize(BLOCK_BYTES, 0);
            let hash = Sha256::digest(&self.block);
            self.push(0, &hash);
        }
        let mut root = [0; HASH_BYTES];
        let mut level = 0;
        while level < self.levels.len() {
            let is_top = level + 1 == self.levels.len();
            if is_top && self.levels[level].len() == HASH_BYTES {
                root.copy_from_slice(&self.levels[level]);
                break;
            }
            self.levels[level].resize(BLOCK_BYTES, 0);
            let hash = Sha256::digest(&self.levels[level]);
            self.push(level + 1, &hash);
            level += 1;
        }
        let mut descriptor = [0; 256];
        descriptor[..3].copy_from_slice(&[1, 1, 12]);
        descriptor[8..16].copy_from_slice(&self.size_bytes.to_le_bytes());
        descriptor[16..48].copy_from_slice(&root);
        FileDigest(Sha256::digest(descriptor).into())
    }
}

/// The digest of a whole file held in memory.
#[must_use]
pub fn digest(bytes: &[u8]) -> FileDigest {
    let mut hasher = VerityHasher::new();
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests printed by `fsverity digest` (fsverity-utils 1.5).
    #[test]
    fn agrees_with_fsverity_utils() {
        for (bytes, expected) in VECTORS {
            assert_eq!(digest(&vec![b'a'; *bytes]).to_string(), *expected, "{bytes} bytes");
        }
    }

    const VECTORS: &[(usize, &str)] = &[
        (0, "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
        (1, "bce75948b9e7510293f8f2720412af9697c1479281323f3f220623fb8e94b557"),
        (4095, "cff490d058f9ad59d0ced3c2dcc9d7b0e6683a88c3d4fc88ce8d222ddaebb912"),
        (4096, "a2a808ddaced77f0b6b3068f47b14b5a1fb3fc43674993ab11b8e7e6f2d089e2"),
        (4097, "18b155c0b6e054f3f7d22488ed15340e74dc161ce2d123e13eb685c3ce565f70"),
        (524288, "35ce0df2a57eb54aeba7969570bac9dfadfac295ec181a03f13ac7a7da54909e"),
        (524289, "cc4f297494cf9e0b6f159db6d30a62d3fcc219fc9c0cbc2d8792bd264da4d9cb"),
        (528384, "86ca2993bfc7a6fdb0dbea51f8a3c9217566a136b9aa7356d0313a438a6cf31a"),
        (67108864, "e3f26eb8c0065f882ae73c915108975ca3d1b91b6bc38f4d12f2bf99665d3e50"),
        (67108865, "4941c3476d3858778456d8719299de3d84d4541237c259b3ed4bcc96ed0fd828"),
    ];

    #[test]
    fn pieces_make_no_difference() {
        let bytes: Vec<u8> = (0..600_000u32).map(|n| (n % 251) as u8).collect();
        for step in [1000, 4096, 5000, 599_999] {
            let mut hasher = VerityHasher::new();
            bytes.chunks(step).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), digest(&bytes), "{step}");
        }
    }
}
