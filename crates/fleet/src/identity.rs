//! The private keys a person has: in an ssh-agent and in files.
//!
//! A key is known by its public half, which a file shows even where its private
//! half is encrypted, so a passphrase is asked for only when that very key is
//! about to be used, and once. Security keys (`sk-…`) work through an agent.
//!
//! Order matters, because a node's sshd ends a connection after two keys:
//! files given by name first, then keys known to be wanted, then what
//! `~/.ssh/config` names, then the agent's other keys, then the default files.

use crate::agent::{self, Agent, AgentError};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_core::policy::key_blob;
use russh::keys::{PrivateKey, PublicKey, signature::Signer as _, ssh_encoding::Encode as _};
use std::{
    collections::HashMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// Asks a person for the passphrase of a key file; `None` gives that key up.
pub type AskPassphrase = Arc<dyn Fn(&Path) -> Option<String> + Send + Sync>;

/// An agent that has not listed its keys by then hangs.
const AGENT_LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// A person needs time to touch a security key or confirm a use, but not longer than sshd waits.
const AGENT_SIGN_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a wrong passphrase may be followed by another.
const PASSPHRASE_TRIES: usize = 3;
/// An OpenSSH key file is below 5 KiB.
const KEY_FILE_MAX_BYTES: u64 = 64 << 10;
const DEFAULT_FILES: [&str; 3] = ["id_ed25519", "id_ed25519_sk", "id_ecdsa"];

/// Why a key is of no use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key file that was given by name could not be read.
    #[error("cannot read the key file {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a private key in OpenSSH's format.
    #[error("{path} is not a private key in OpenSSH's format", path = path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: russh::keys::ssh_key::Error,
    },
    /// Nobody gave a passphrase, or only wrong ones.
    #[error("{path} is encrypted and its passphrase was not given (`ssh-add {path}` lets an ssh-agent hold it)", path = path.display())]
    Passphrase {
        /// Which.
        path: PathBuf,
    },
    /// A security key's file, without an agent that holds it.
    #[error("{path} belongs to a security key; add it to an ssh-agent (`ssh-add {path}`) to use it here", path = path.display())]
    SecurityKey {
        /// Which.
        path: PathBuf,
    },
    /// The key could not sign.
    #[error("{path} cannot sign", path = path.display())]
    Sign {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: russh::keys::ssh_key::Error,
    },
    /// The agent.
    #[error("the ssh-agent did not sign with {comment}")]
    Agent {
        /// The key.
        comment: String,
        /// Why.
        #[source]
        source: AgentError,
    },
    /// The agent did not answer in time.
    #[error("nobody confirmed or touched {comment} within {} s", AGENT_SIGN_TIMEOUT.as_secs())]
    AgentTimeout {
        /// The key.
        comment: String,
    },
}

/// Where to look for private keys, and which to try first. Cheap to clone; clones
/// share the keys that were unlocked.
#[derive(Clone)]
pub struct Identities {
    /// Key files given by name (`BULKHEAD_KEY`): tried before all others.
    pub files: Vec<PathBuf>,
    /// Default key files: tried last, passed over where missing.
    pub default_files: Vec<PathBuf>,
    /// Where an ssh-agent listens; `None` asks none.
    pub agent: Option<String>,
    /// Public keys (OpenSSH lines) known to be wanted.
    pub preferred: Vec<String>,
    /// For encrypted key files.
    pub passphrase: AskPassphrase,
    /// Nothing for a key that was given up: nobody is asked again for each node.
    unlocked: Arc<Mutex<HashMap<PathBuf, Option<Arc<PrivateKey>>>>>,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities")
            .field("files", &self.files)
            .field("default_files", &self.default_files)
            .field("agent", &self.agent)
            .field("preferred", &self.preferred)
            .finish_non_exhaustive()
    }
}

impl Identities {
    /// This machine's agent and the default key files below `home`; encrypted files are given up.
    #[must_use]
    pub fn new(home: &Path) -> Self {
        Self {
            files: Vec::new(),
            default_files: DEFAULT_FILES.iter().map(|name| home.join(".ssh").join(name)).collect(),
            agent: agent::default_address(),
            preferred: Vec::new(),
            passphrase: Arc::new(|_| None),
            unlocked: Arc::default(),
        }
    }

    /// Uses this key file before all others.
    #[must_use]
    pub fn with_file(mut self, path: PathBuf) -> Self {
        self.files.push(path);
        self
    }

    /// Tries these public keys (OpenSSH lines) before others.
    #[must_use]
    pub fn preferring<'a>(mut self, keys: impl IntoIterator<Item = &'a str>) -> Self {
        self.preferred.extend(keys.into_iter().map(str::to_owned));
        self
    }

    /// Asks this for passphrases.
    #[must_use]
    pub fn asking(mut self, ask: AskPassphrase) -> Self {
        self.passphrase = ask;
        // What another gave up, this one may know.
        self.unlocked = Arc::default();
        self
    }

    /// The keys to try, best first, and notes on what was passed over.
    pub(crate) async fn candidates(&self, hints: &Hints) -> Result<Candidates, IdentityError> {
        let mut found = Candidates::default();
        let mut files = Vec::new();
        for path in &self.files {
            files.push((0, read_public(path)?));
        }
        for (rank, paths) in [(2, &hints.files), (4, &self.default_files)] {
            // ssh(1) tries the default files only where the configuration names none.
            if rank == 4 && !hints.files.is_empty() {
                continue;
            }
            for path in paths {
                match read_public(path) {
                    Ok(key) => files.push((rank, key)),
                    Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => found.notes.push(error.to_string()),
                }
            }
        }
        let address = if hints.agent_off { None } else { hints.agent.as_ref().or(self.agent.as_ref()) };
        let mut held = Vec::new();
        if let Some(address) = address {
            match list(address).await {
                Ok(keys) => held = keys,
                Err(note) => found.notes.push(note),
            }
        }
        let mut ranked: Vec<(usize, Candidate)> = Vec::new();
        for key in held {
            let file = files.iter().find(|(_, file)| file.blob == key.blob);
            if hints.identities_only && file.is_none() {
                continue;
            }
            let rank = file.map_or(3, |(rank, _)| *rank);
            let source = Source::Agent { address: address.cloned().unwrap_or_default() };
            ranked.push((rank, Candidate { blob: key.blob, comment: key.comment, source }));
        }
        for (rank, file) in files {
            if ranked.iter().any(|(_, known)| known.blob == file.blob) {
                continue;
            }
            let Some(private) = file.private else { continue };
            if file.security_key {
                found.notes.push(IdentityError::SecurityKey { path: private }.to_string());
                continue;
            }
            let comment = private.display().to_string();
            let source = Source::File { path: private, encrypted: file.encrypted };
            ranked.push((rank, Candidate { blob: file.blob, comment, source }));
        }
        let wanted: Vec<Vec<u8>> = self.preferred.iter().filter_map(|line| decode_key(line)).collect();
        ranked.sort_by_key(|(rank, candidate)| {
            let position = wanted.iter().position(|blob| *blob == candidate.blob);
            let rank = if *rank > 1 && position.is_some() { 1 } else { *rank };
            // Among equals, one that needs no passphrase first.
            let encrypted = matches!(candidate.source, Source::File { encrypted: true, .. });
            (rank, position.unwrap_or(usize::MAX), encrypted)
        });
        found.keys = ranked.into_iter().map(|(_, candidate)| candidate).collect();
        Ok(found)
    }

    /// The private key of a file, asking for its passphrase where needed. One question at a time, each at most once.
    /// RFC 8032's private key of this public key, where one of the files has it and it is an Ed25519 key.
    pub(crate) async fn seed(&self, blob: &[u8]) -> Result<Option<Zeroizing<[u8; 32]>>, IdentityError> {
        for path in self.files.iter().chain(&self.default_files) {
            let Some(private) = read_public(path).ok().filter(|key| key.blob == blob).and_then(|key| key.private)
            else {
                continue;
            };
            let key = self.unlock(&private).await?;
            return Ok(key.key_data().ed25519().map(|pair| Zeroizing::new(pair.private.to_bytes())));
        }
        Ok(None)
    }

    pub(crate) async fn unlock(&self, path: &Path) -> Result<Arc<PrivateKey>, IdentityError> {
        let mut unlocked = self.unlocked.lock().await;
        let given_up = || IdentityError::Passphrase { path: path.to_owned() };
        if let Some(key) = unlocked.get(path) {
            return key.clone().ok_or_else(given_up);
        }
        let (ask, owned) = (Arc::clone(&self.passphrase), path.to_owned());
        let unlock = move || {
            let key = read_private(&owned)?;
            if !key.is_encrypted() {
                return Ok(key);
            }
            for _ in 0..PASSPHRASE_TRIES {
                let Some(passphrase) = ask(&owned) else { break };
                if let Ok(key) = key.decrypt(passphrase.as_bytes()) {
                    return Ok(key);
                }
            }
            Err(IdentityError::Passphrase { path: owned })
        };
        // Asking waits for a person, and deriving the key is slow by intent.
        let key = match tokio::task::spawn_blocking(unlock).await {
            Ok(Ok(key)) => Some(Arc::new(key)),
            Ok(Err(IdentityError::Passphrase { .. })) | Err(_) => None,
            Ok(Err(error)) => return Err(error),
        };
        unlocked.insert(path.to_owned(), key.clone());
        key.ok_or_else(given_up)
    }
}

/// What an SSH configuration says about keys for one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) identities_only: bool,
    pub(crate) agent: Option<String>,
    pub(crate) agent_off: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Candidates {
    pub(crate) keys: Vec<Candidate>,
    pub(crate) notes: Vec<String>,
}

/// A private key that is at hand.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) blob: Vec<u8>,
    pub(crate) comment: String,
    pub(crate) source: Source,
}

#[derive(Debug, Clone)]
pub(crate) enum Source {
    Agent { address: String },
    File { path: PathBuf, encrypted: bool },
}

impl Candidate {
    /// For messages: fingerprint, where it is, its name.
    pub(crate) fn describe(&self) -> String {
        let place = if matches!(self.source, Source::Agent { .. }) { "ssh-agent: " } else { "" };
        format!("{} ({place}{})", fingerprint(&self.blob), crate::client::printable(&self.comment))
    }

    /// Signs; gives the signature's binary form (string type, string bytes, …).
    pub(crate) async fn sign(&self, identities: &Identities, data: &[u8]) -> Result<Vec<u8>, IdentityError> {
        match &self.source {
            Source::Agent { address } => {
                let comment = || crate::client::printable(&self.comment);
                let work = async { Agent::connect(address).await?.sign(&self.blob, data).await };
                match tokio::time::timeout(AGENT_SIGN_TIMEOUT, work).await {
                    Ok(Ok(signature)) => Ok(signature),
                    Ok(Err(source)) => Err(IdentityError::Agent { comment: comment(), source }),
                    Err(_) => Err(IdentityError::AgentTimeout { comment: comment() }),
                }
            }
            Source::File { path, .. } => {
                let key = identities.unlock(path).await?;
                let failed = |source| IdentityError::Sign { path: path.clone(), source };
                let signature: russh::keys::ssh_key::Signature =
                    key.try_sign(data).map_err(|error| failed(error.into()))?;
                let mut blob = Vec::new();
                signature.encode(&mut blob).map_err(|error| failed(error.into()))?;
                Ok(blob)
            }
        }
    }
}

async fn list(address: &str) -> Result<Vec<agent::AgentKey>, String> {
    let work = async { Agent::connect(address).await?.keys().await };
    match tokio::time::timeout(AGENT_LIST_TIMEOUT, work).await {
        Ok(Ok(keys)) => Ok(keys),
        // An agent that is not there is no news: most machines have none.
        Ok(Err(AgentError::Connect { .. })) => Ok(Vec::new()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the ssh-agent at {address} does not answer")),
    }
}

/// What a key file shows without a passphrase.
struct FileKey {
    blob: Vec<u8>,
    encrypted: bool,
    security_key: bool,
    /// The private half's file, where there is one.
    private: Option<PathBuf>,
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let read = |source| IdentityError::Read { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(read)?;
    if !metadata.is_file() || metadata.len() > KEY_FILE_MAX_BYTES {
        return Err(read(io::Error::other("not a file of a key's size")));
    }
    fs::read(path).map_err(read)
}

fn read_private(path: &Path) -> Result<PrivateKey, IdentityError> {
    let text = read_bounded(path)?;
    PrivateKey::from_openssh(&text).map_err(|source| IdentityError::Format { path: path.to_owned(), source })
}

/// Reads a private key file's public half. As for ssh(1), the path may be that of a
/// public key alone, whose private half an agent holds.
fn read_public(path: &Path) -> Result<FileKey, IdentityError> {
    let format = |source| IdentityError::Format { path: path.to_owned(), source };
    let beside = || PathBuf::from(format!("{}.pub", path.display()));
    let text = match read_bounded(path) {
        Err(IdentityError::Read { source, path }) if source.kind() == io::ErrorKind::NotFound => {
            read_bounded(&beside()).map_err(|_| IdentityError::Read { path, source })?
        }
        other => other?,
    };
    let public_only = text.starts_with(b"ssh-") || text.starts_with(b"ecdsa-") || text.starts_with(b"sk-");
    if public_only {
        let line = String::from_utf8_lossy(&text).into_owned();
        let key = PublicKey::from_openssh(line.trim()).map_err(format)?;
        let blob = key.to_bytes().map_err(format)?;
        return Ok(FileKey { blob, encrypted: false, security_key: false, private: None });
    }
    let key = PrivateKey::from_openssh(&text).map_err(format)?;
    let blob = key.public_key().to_bytes().map_err(format)?;
    let security_key = key.algorithm().as_str().starts_with("sk-");
    Ok(FileKey { blob, encrypted: key.is_encrypted(), security_key, private: Some(path.to_owned()) })
}

/// The binary form of an OpenSSH public key line.
pub(crate) fn decode_key(line: &str) -> Option<Vec<u8>> {
    STANDARD.decode(key_blob(line.trim())).ok().filter(|blob| !blob.is_empty())
}

/// `SHA256:…`, as `ssh-keygen -l` prints it.
#[must_use]
pub fn fingerprint(blob: &[u8]) -> String {
    let text = STANDARD.encode(bulkhead_core::digest::sha256(blob));
    format!("SHA256:{}", text.trim_end_matches('='))
}
