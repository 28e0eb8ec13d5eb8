//! Which host key a host must show: `known_hosts` files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
//!
//! Read: plain and hashed names, patterns, `[host]:port`, `@revoked`. Lines with
//! `@cert-authority` are skipped, because host certificates are never asked for.
//! Nothing is ever written: there is no trust on first use.

use crate::config::wildcard;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A known key and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The key type's name.
    pub kind: String,
    /// The key, in binary form.
    pub blob: Vec<u8>,
    /// Whether the line says that the key must never be accepted.
    pub revoked: bool,
}

/// A `known_hosts` file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}", path = path.display())]
pub struct KnownHostsError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Every key that the files hold for a host at a port. A missing file is an empty one.
///
/// # Errors
/// A file that is there and cannot be read.
pub fn known_keys(files: &[PathBuf], host: &str, port: u16) -> Result<Vec<KnownKey>, KnownHostsError> {
    let host = host.to_lowercase();
    let name = if port == 22 { host.clone() } else { format!("[{host}]:{port}") };
    let mut keys = Vec::new();
    let mut without_port = Vec::new();
    for path in files {
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(KnownHostsError { path: path.clone(), source }),
        };
        keys.extend(matching(path, &text, &name));
        if port != 22 {
            without_port.extend(matching(path, &text, &host));
        }
    }
    // As OpenSSH does: a key known for the host without a port serves where none is known for the port.
    if !keys.iter().any(|key| !key.revoked) {
        keys.extend(without_port);
    }
    Ok(keys)
}

fn matching(path: &Path, text: &str, name: &str) -> Vec<KnownKey> {
    let line = |(index, line): (usize, &str)| {
        let mut words = line.split_whitespace().peekable();
        let marker = words.next_if(|word| word.starts_with('@'));
        let (names, kind, key) = (words.next()?, words.next()?, words.next()?);
        if names.starts_with('#') || !matches!(marker, None | Some("@revoked")) || !names_match(names, name) {
            return None;
        }
        let blob = STANDARD.decode(key).ok()?;
        let revoked = marker.is_some();
        Some(KnownKey { path: path.to_owned(), line: index + 1, kind: kind.to_owned(), blob, revoked })
    };
    text.lines().enumerate().filter_map(line).collect()
}

fn names_match(names: &str, name: &str) -> bool {
    if let Some(hashed) = names.strip_prefix("|1|") {
        return hash_matches(hashed, name).unwrap_or(false);
    }
    let mut found = false;
    for pattern in names.split(',') {
        match pattern.strip_prefix('!') {
            Some(negated) if wildcard(negated, name) => return false,
            Some(_) => {}
            None => found |= wildcard(pattern, name),
        }
    }
    found
}

/// `salt|hash`, both base64: HMAC-SHA1 of the name keyed with the salt.
fn hash_matches(hashed: &str, name: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let mut mac = Hmac::<Sha1>::new_from_slice(&STANDARD.decode(salt).ok()?).ok()?;
    mac.update(name.as_bytes());
    Some(mac.verify_slice(&STANDARD.decode(hash).ok()?).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIO92SB71v5YBUOl3Jy/6mjI8LJJau2i2qR6UXkv6GxqN";

    #[test]
    fn names() {
        let salt = STANDARD.encode(b"0123456789abcdefghij");
        let hashed = |name: &str| {
            let mut mac = Hmac::<Sha1>::new_from_slice(b"0123456789abcdefghij").unwrap();
            mac.update(name.as_bytes());
            format!("|1|{salt}|{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("known_hosts");
        for (names, host, port, expected) in [
            ("example.org".to_owned(), "Example.ORG", 22, true),
            ("example.org,10.0.0.1".to_owned(), "10.0.0.1", 22, true),
            ("*.example.org,!b.example.org".to_owned(), "a.example.org", 22, true),
            ("*.example.org,!b.example.org".to_owned(), "b.example.org", 22, false),
            ("[example.org]:2222".to_owned(), "example.org", 2222, true),
            ("[example.org]:2222".to_owned(), "example.org", 22, false),
            ("example.org".to_owned(), "example.org", 2222, true),
            (hashed("example.org"), "example.org", 22, true),
            (hashed("[example.org]:2222"), "example.org", 2222, true),
            (hashed("example.com"), "example.org", 22, false),
            ("|1|broken".to_owned(), "example.org", 22, false),
            ("#example.org".to_owned(), "example.org", 22, false),
            ("@cert-authority example.org".to_owned(), "example.org", 22, false),
        ] {
            fs::write(&file, format!("\n{names} ssh-ed25519 {A} a comment\n")).unwrap();
            let keys = known_keys(&[directory.path().join("missing"), file.clone()], host, port).unwrap();
            assert_eq!(keys.len(), usize::from(expected), "{names} {host} {port}");
            assert!(keys.iter().all(|key| key.line == 2 && !key.revoked && key.kind == "ssh-ed25519"));
        }
    }

    #[test]
    fn a_revoked_key_is_found_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("known_hosts");
        fs::write(&file, format!("h ssh-ed25519 {A}\n@revoked * ssh-ed25519 {A}\n")).unwrap();
        let keys = known_keys(&[file], "h", 22).unwrap();
        assert_eq!(keys.iter().map(|key| key.revoked).collect::<Vec<_>>(), [false, true]);
    }
}
