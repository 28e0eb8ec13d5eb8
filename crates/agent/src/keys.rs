//! The node's own keys: one signs its audit log, one opens secrets that were
//! sealed to it. Both are 32 random bytes that the installation draws; they are
//! root's alone and never leave the node.
//!
//! ```text
//! keys/audit     seed of an ed25519 key, 64 hexadecimal digits
//! keys/sealing   seed of an X25519 key, likewise
//! ```

use crate::{
    durable::{self, FileError},
    state::Paths,
};
use bulkhead_core::{digest, policy::NodeKeys};
use bulkhead_trust::{PrivateKey, sealing::SealingKey};
use std::path::PathBuf;

/// What signs the audit log.
pub type NodeKey = PrivateKey;

fn seed(paths: &Paths, name: &str) -> Result<Option<[u8; 32]>, FileError> {
    let path = path(paths, name);
    let Some(text) = durable::read(&path)? else { return Ok(None) };
    let parsed = std::str::from_utf8(&text).ok().and_then(|text| digest::parse(text.trim_end()).ok());
    parsed.map(Some).ok_or_else(|| FileError::Damaged { path, what: "it is not a key".into() })
}

fn path(paths: &Paths, name: &str) -> PathBuf {
    paths.state.join("keys").join(name)
}

fn missing(paths: &Paths, name: &str) -> FileError {
    let what = "there is none: install the node again, which makes one".into();
    FileError::Damaged { path: path(paths, name), what }
}

/// The key that signs the audit log.
///
/// # Errors
/// There is none, or it is damaged.
pub fn audit(paths: &Paths) -> Result<NodeKey, FileError> {
    seed(paths, "audit")?.map(PrivateKey::from_seed).ok_or_else(|| missing(paths, "audit"))
}

/// The key that opens secrets.
///
/// # Errors
/// There is none, or it is damaged.
pub fn sealing(paths: &Paths) -> Result<SealingKey, FileError> {
    seed(paths, "sealing")?.map(|seed| SealingKey::from_seed(&seed)).ok_or_else(|| missing(paths, "sealing"))
}

/// The public halves; none on a node that was installed before there were any.
///
/// # Errors
/// One is damaged.
pub fn public(paths: &Paths) -> Result<Option<NodeKeys>, FileError> {
    let (Some(audit), Some(sealing)) = (seed(paths, "audit")?, seed(paths, "sealing")?) else { return Ok(None) };
    Ok(Some(of_seeds(audit, &sealing)))
}

/// The public halves of two seeds.
#[must_use]
pub fn of_seeds(audit: [u8; 32], sealing: &[u8; 32]) -> NodeKeys {
    let audit = PrivateKey::from_seed(audit).public_key().to_openssh();
    NodeKeys { audit, sealing: SealingKey::from_seed(sealing).public() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    #[test]
    fn keys_of_a_node() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(Path::new(directory.path()));
        fs::create_dir_all(paths.state.join("keys")).unwrap();
        assert_eq!(public(&paths).unwrap(), None);
        assert!(audit(&paths).unwrap_err().to_string().contains("install the node again"));
        let digits = |byte: &str| format!("{}\n", byte.repeat(32));
        fs::write(path(&paths, "audit"), digits("01")).unwrap();
        fs::write(path(&paths, "sealing"), digits("02")).unwrap();
        assert_eq!(public(&paths).unwrap(), Some(of_seeds([1; 32], &[2; 32])));
        assert_eq!(audit(&paths).unwrap().public_key(), PrivateKey::from_seed([1; 32]).public_key());
        assert_eq!(sealing(&paths).unwrap().public(), SealingKey::from_seed(&[2; 32]).public());
        fs::write(path(&paths, "sealing"), "0202").unwrap();
        assert!(public(&paths).is_err());
    }
}
