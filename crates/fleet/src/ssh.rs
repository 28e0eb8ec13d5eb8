//! SSH connections to nodes, and channels on them.
//!
//! - The host proves itself before anything else: with the key that `fleet.toml`
//!   names, or one that `known_hosts` holds. There is no trust on first use.
//! - Nodes end a connection after two keys and may then ignore the address for a
//!   while, so keys are tried best first, two to a connection.
//! - Whatever needs a person (a passphrase) happens before connecting, because a
//!   node waits ten seconds for a login.
//! - Waiting is bounded: connecting by [`Timeouts::connect`], a silent connection
//!   by keepalives.

pub mod attempt;
mod channel;
mod stream;
mod target;

pub use channel::{Channel, ChannelReader, ChannelWriter, Ending, EndingHandle};
pub use target::{HostKey, HostKeyError, ResolveError, Target, resolve, resolve_as, resolve_machine};

use crate::{
    identity::{Candidate, Identities, IdentityError, Source, fingerprint},
    known_hosts::{KnownHostsError, known_keys},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use russh::{
    Disconnect, Preferred, SshId,
    client::{AuthResult, DisconnectReason, Handle, Handler},
    keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate, agent::AgentIdentity},
};
use std::{
    borrow::Cow,
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use stream::Traffic;
use target::HostTrust;

/// Keys tried on one connection: nodes' sshd has `MaxAuthTries 2`.
const KEYS_PER_CONNECTION: usize = 2;
/// Keys tried at all. A person with more names the right one.
const KEYS_MAX: usize = 6;
/// How long a touch or confirmation may take while a login waits for it.
const SIGN_TIMEOUT: Duration = Duration::from_secs(60);
/// A channel is confirmed in one round trip; a node that takes longer than this is out of order.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Unanswered keepalives before a connection counts as dead.
const KEEPALIVES_MAX: usize = 3;
/// What a node may send before it hears from us: 50 ms at several Gbit/s.
const WINDOW_BYTES: u32 = 32 << 20;
/// The largest packet that russh takes.
const PACKET_MAX_BYTES: u32 = 65535;

/// Bounds on waiting.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For each of: the way to the host with the key exchange; one login.
    pub connect: Duration,
    /// Between keepalives on a silent connection; three unanswered ones end it.
    pub keepalive: Duration,
    /// How long a node may say nothing while an answer is due.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), keepalive: Duration::from_secs(15), idle: Duration::from_secs(120) }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("the host name `{host}` does not resolve; check the node's address in fleet.toml and ~/.ssh/config")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing listens there.
    #[error("{address} refused the connection; is sshd running, and is the port right?")]
    Refused {
        /// Where.
        address: String,
    },
    /// No way there.
    #[error("cannot reach {address}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing came back in time.
    #[error("{address} did not answer within {} s ({phase})", after.as_secs_f32())]
    Timeout {
        /// Where.
        address: String,
        /// Doing what.
        phase: &'static str,
        /// After how long.
        after: Duration,
    },
    /// The proxy command could not be run.
    #[error("cannot run the ProxyCommand `{command}`")]
    ProxyCommand {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No known key of the host.
    #[error(
        "the host key of {address} is not known: it shows {shown}. Compare this fingerprint with the machine's own (`ssh-keygen -lf /etc/bulkhead/ssh_host_ed25519_key.pub` on its console); where they are equal, put `host_key = \"{line}\"` into fleet.toml for {node}, or this line into ~/.ssh/known_hosts: {name} {line}"
    )]
    HostKeyUnknown {
        /// Where.
        address: String,
        /// The node.
        node: String,
        /// The name in `known_hosts`.
        name: String,
        /// The key's fingerprint.
        shown: String,
        /// The key as an OpenSSH line.
        line: String,
    },
    /// The host shows another key than the known one.
    #[error(
        "THE HOST KEY OF {address} HAS CHANGED. Expected {expected}, as {place} says; shown {shown}. Either the machine was made anew, or someone stands between you and it. Nothing was sent. Find out which before you change {place}"
    )]
    HostKeyChanged {
        /// Where.
        address: String,
        /// The known key's fingerprint.
        expected: String,
        /// The shown key's fingerprint.
        shown: String,
        /// Where the known key stands.
        place: String,
    },
    /// The host shows another key than the given one.
    #[error(
        "{address} shows the host key {shown}, not {expected}, which was given. Either what was given is not the fingerprint of its Ed25519 key (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its console), or someone stands between you and it. Nothing was sent"
    )]
    HostKeyOther {
        /// Where.
        address: String,
        /// The given key's fingerprint.
        expected: String,
        /// The shown key's fingerprint.
        shown: String,
    },
    /// The host shows a key that is marked as revoked.
    #[error("the host key of {address}, {shown}, is revoked in {place}. Nothing was sent")]
    HostKeyRevoked {
        /// Where.
        address: String,
        /// Its fingerprint.
        shown: String,
        /// Where it says so.
        place: String,
    },
    /// Known keys could not be read.
    #[error("cannot tell whether the host key of {address} is right")]
    KnownHosts {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: KnownHostsError,
    },
    /// Known keys of the host are all of types that are not accepted here.
    #[error("only keys of unsupported types ({kinds}) are known for {address}; ed25519 and ecdsa are accepted")]
    HostKeyType {
        /// Where.
        address: String,
        /// Their types.
        kinds: String,
    },
    /// A key that was given by name is of no use.
    #[error("cannot use the key that was given for {address}")]
    Identity {
        /// Where to.
        address: String,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// No private key at hand.
    #[error("no private key at hand to log in to {address} as {user}{}", list(": ", notes))]
    NoKeys {
        /// Where to.
        address: String,
        /// The account.
        user: String,
        /// Keys that were passed over, and why.
        notes: Vec<String>,
    },
    /// None of the keys was accepted.
    #[error(
        "{address} accepts none of these keys for the account {user}: {}{}{}",
        tried.join(", "),
        list("; passed over: ", notes),
        said.as_ref().map(|text| format!("; it said: {text}")).unwrap_or_default()
    )]
    Authentication {
        /// Where.
        address: String,
        /// The account.
        user: String,
        /// Keys that were tried, in order.
        tried: Vec<String>,
        /// Keys that were passed over, and why.
        notes: Vec<String>,
        /// What the host said when it hung up.
        said: Option<String>,
    },
    /// The host does not speak SSH as it should.
    #[error("{address} hung up or does not speak SSH as expected{}", said.as_ref().map(|text| format!("; it said: {text}")).unwrap_or_default())]
    Protocol {
        /// Where.
        address: String,
        /// What it said.
        said: Option<String>,
        /// Why.
        #[source]
        source: Box<russh::Error>,
    },
    /// A jump host on the way.
    #[error("jump host {hop}")]
    Jump {
        /// Which.
        hop: String,
        /// Why.
        #[source]
        source: Box<ConnectError>,
    },
}

fn list(before: &str, items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!("{before}{}", items.join("; ")) }
}

/// Why a channel could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection ended.
    #[error("the connection to {address} ended{}", said.as_ref().map(|text| format!("; it said: {text}")).unwrap_or_default())]
    Ended {
        /// To where.
        address: String,
        /// What the host said when it hung up.
        said: Option<String>,
    },
    /// The host did not open the channel.
    #[error("{address} did not open a channel")]
    Refused {
        /// Which host.
        address: String,
        /// Why.
        #[source]
        source: russh::Error,
    },
    /// Nothing came back in time.
    #[error("{address} did not open a channel within {} s", OPEN_TIMEOUT.as_secs())]
    Timeout {
        /// Which host.
        address: String,
    },
}

/// An SSH connection. Cheap to clone; ends with the last clone.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle<Client>,
    /// The jump host's connection that carries this one.
    via: Option<Connection>,
    address: String,
    traffic: Arc<Traffic>,
    said: Said,
    connect: Duration,
    key: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

impl Connection {
    /// Starts a command on a channel of its own. Several at once are fine. The command's
    /// start is not waited for: what it refuses shows in its output and ending.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub async fn open(&self, command: &str) -> Result<Channel, ChannelError> {
        let channel = self.session(self.inner.handle.channel_open_session()).await?;
        match channel.exec(false, command).await {
            Ok(()) => Ok(Channel::new(channel)),
            Err(_) => Err(self.ended()),
        }
    }

    async fn session<T>(&self, opening: impl Future<Output = Result<T, russh::Error>>) -> Result<T, ChannelError> {
        let address = || self.inner.address.clone();
        match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(_)) if self.is_closed() => Err(self.ended()),
            Ok(Err(source)) => Err(ChannelError::Refused { address: address(), source }),
            Err(_) => Err(ChannelError::Timeout { address: address() }),
        }
    }

    fn ended(&self) -> ChannelError {
        ChannelError::Ended { address: self.inner.address.clone(), said: self.inner.said.get() }
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.handle.is_closed()
    }

    /// Bytes on the wire so far, SSH's own included: sent and received.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        self.inner.traffic.get()
    }

    /// How long the host's SSH server takes to answer: a round trip, over all jump hosts.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn ping(&self) -> Result<Duration, ChannelError> {
        let started = Instant::now();
        match self.inner.handle.send_ping().await {
            Ok(()) if !self.is_closed() => Ok(started.elapsed()),
            _ => Err(self.ended()),
        }
    }

    /// How long connecting and logging in took.
    #[must_use]
    pub fn connect_time(&self) -> Duration {
        self.inner.connect
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// The key that was accepted: fingerprint and name.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.inner.key
    }

    /// Says goodbye. Other clones' channels end too.
    pub async fn close(&self) {
        // Where the far side is gone already there is nobody to say it to.
        self.inner.handle.disconnect(Disconnect::ByApplication, "", "").await.ok();
        if let Some(via) = &self.inner.via {
            Box::pin(via.close()).await;
        }
    }
}

/// Connects and logs in.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(target: &Target, identities: &Identities, timeouts: Timeouts) -> Result<Connection, ConnectError> {
    let started = Instant::now();
    let mut via: Option<Connection> = None;
    for hop in &target.via {
        let jump = |source| ConnectError::Jump { hop: hop.address(), source: Box::new(source) };
        via = Some(login(hop, via, identities, timeouts, started).await.map_err(jump)?);
    }
    login(target, via, identities, timeouts, started).await
}

/// Connects to one host, through the one before where there is one, and logs in.
async fn login(
    target: &Target,
    via: Option<Connection>,
    identities: &Identities,
    timeouts: Timeouts,
    started: Instant,
) -> Result<Connection, ConnectError> {
    let address = target.address();
    let user = target.user.clone();
    let identity = |source| ConnectError::Identity { address: address.clone(), source };
    let mut candidates = identities.candidates(&target.hints).await.map_err(identity)?;
    if candidates.keys.is_empty() {
        return Err(ConnectError::NoKeys { address, user, notes: candidates.notes });
    }
    let surplus = candidates.keys.len().saturating_sub(KEYS_MAX);
    if surplus > 0 {
        candidates.keys.truncate(KEYS_MAX);
        candidates
            .notes
            .push(format!("{surplus} more keys (at most {KEYS_MAX} are tried; name one with IdentityFile)"));
    }
    let mut tried: Vec<String> = Vec::new();
    let mut session: Option<Session> = None;
    let mut said = None;
    for candidate in candidates.keys {
        // A passphrase is asked for before connecting: a node does not wait for it.
        if let Source::File { path, encrypted } = &candidate.source {
            if *encrypted {
                session = None;
            }
            if let Err(error) = identities.unlock(path).await {
                candidates.notes.push(error.to_string());
                continue;
            }
        }
        let mut current = match session.take() {
            Some(session) if session.tries < KEYS_PER_CONNECTION && !session.handle.is_closed() => session,
            _ => match handshake(target, via.as_ref(), timeouts).await {
                Ok(session) => session,
                // A node ignores an address for a while after failed logins: those are the news.
                Err(_) if !tried.is_empty() => break,
                Err(error) => return Err(error),
            },
        };
        current.tries += 1;
        tried.push(candidate.describe());
        match current.authenticate(&user, &candidate, identities, timeouts).await {
            Ok(true) => {
                let Session { handle, traffic, said, .. } = current;
                let key = candidate.describe();
                let connect = started.elapsed();
                let inner = Inner { handle, via, address, traffic, said, connect, key };
                return Ok(Connection { inner: Arc::new(inner) });
            }
            Ok(false) => {}
            Err(Login::Note(note)) => candidates.notes.push(note),
            Err(Login::Timeout) => {
                let phase = "waiting for the answer to a login";
                return Err(ConnectError::Timeout { address, phase, after: timeouts.connect });
            }
        }
        said = current.said.get().or(said);
        session = Some(current);
    }
    if tried.is_empty() {
        return Err(ConnectError::NoKeys { address, user, notes: candidates.notes });
    }
    Err(ConnectError::Authentication { address, user, tried, notes: candidates.notes, said })
}

/// A connection whose host proved itself, before the login.
struct Session {
    handle: Handle<Client>,
    traffic: Arc<Traffic>,
    said: Said,
    tries: usize,
}

enum Login {
    Note(String),
    Timeout,
}

async fn handshake(target: &Target, via: Option<&Connection>, timeouts: Timeouts) -> Result<Session, ConnectError> {
    let address = target.address();
    let known = Known::of(target)?;
    let said = Said::default();
    let handler = Client { known, address: address.clone(), node: target.node.to_string(), said: said.clone() };
    let config = Arc::new(config(&handler.known, timeouts));
    let traffic = Arc::new(Traffic::default());
    let work = async {
        let stream = stream::open(target, via, Arc::clone(&traffic)).await?;
        russh::client::connect_stream(config, stream, handler).await.map_err(|error| match error {
            ClientError::Connect(error) => *error,
            ClientError::Russh(source) => {
                ConnectError::Protocol { address: address.clone(), said: said.get(), source: Box::new(source) }
            }
        })
    };
    match tokio::time::timeout(timeouts.connect, work).await {
        Ok(handle) => Ok(Session { handle: handle?, traffic, said: said.clone(), tries: 0 }),
        Err(_) => Err(ConnectError::Timeout {
            phase: "connecting and exchanging keys",
            after: timeouts.connect,
            address: address.clone(),
        }),
    }
}

fn config(known: &Known, timeouts: Timeouts) -> russh::client::Config {
    russh::client::Config {
        client_id: SshId::Standard(Cow::Borrowed(concat!("SSH-2.0-bulkhead_", env!("CARGO_PKG_VERSION")))),
        window_size: WINDOW_BYTES,
        maximum_packet_size: PACKET_MAX_BYTES,
        keepalive_interval: Some(timeouts.keepalive),
        keepalive_max: KEEPALIVES_MAX,
        preferred: Preferred {
            key: Cow::Owned(known.algorithms()),
            cipher: Cow::Borrowed(ciphers()),
            ..Preferred::default()
        },
        nodelay: true,
        ..russh::client::Config::default()
    }
}

/// The fastest first: AES-GCM where the processor has instructions for it, else ChaCha20.
fn ciphers() -> &'static [russh::cipher::Name] {
    use russh::cipher::{AES_256_CTR, AES_256_GCM, CHACHA20_POLY1305};
    #[cfg(target_arch = "x86_64")]
    let accelerated = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let accelerated = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let accelerated = false;
    if accelerated {
        &[AES_256_GCM, CHACHA20_POLY1305, AES_256_CTR]
    } else {
        &[CHACHA20_POLY1305, AES_256_GCM, AES_256_CTR]
    }
}

impl Session {
    async fn authenticate(
        &mut self,
        user: &str,
        candidate: &Candidate,
        identities: &Identities,
        timeouts: Timeouts,
    ) -> Result<bool, Login> {
        let public = match PublicKey::from_bytes(&candidate.blob) {
            Ok(key) => key,
            Err(error) => return Err(Login::Note(format!("{}: {error}", candidate.describe()))),
        };
        let hash = public.algorithm().is_rsa().then_some(HashAlg::Sha512);
        let mut signer = Signing { candidate, identities };
        let patience = match candidate.source {
            Source::Agent { .. } => timeouts.connect + SIGN_TIMEOUT,
            Source::File { .. } => timeouts.connect,
        };
        let work = self.handle.authenticate_publickey_with(user, public, hash, &mut signer);
        match tokio::time::timeout(patience, work).await {
            Ok(Ok(result)) => Ok(matches!(result, AuthResult::Success)),
            // The connection ended during the login: `said` has the reason, where there was one.
            Ok(Err(SigningError::Send)) => Ok(false),
            Ok(Err(SigningError::Identity(error))) => Err(Login::Note(chain(&error))),
            Err(_) => Err(Login::Timeout),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Signs a login with whatever holds the key.
struct Signing<'a> {
    candidate: &'a Candidate,
    identities: &'a Identities,
}

enum SigningError {
    Send,
    Identity(IdentityError),
}

impl From<russh::SendError> for SigningError {
    fn from(_: russh::SendError) -> Self {
        Self::Send
    }
}

impl russh::Signer for Signing<'_> {
    type Error = SigningError;

    /// RFC 4252, section 7: the signature follows what it is over, as one string.
    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, SigningError> {
        let signature = self.candidate.sign(self.identities, &data).await.map_err(SigningError::Identity)?;
        let length = u32::try_from(signature.len()).map_err(|_| SigningError::Send)?;
        data.extend_from_slice(&length.to_be_bytes());
        data.extend_from_slice(&signature);
        Ok(data)
    }
}

/// What a host said when it hung up.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<Option<String>>>);

impl Said {
    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, text: &str) {
        let text: String = text.chars().take(500).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(crate::client::printable(&text));
    }
}

/// The keys by which a host may prove itself.
#[derive(Debug)]
struct Known {
    keys: Vec<KnownEntry>,
    /// The one key that a person gave; there are no others then.
    given: Option<HostKey>,
    name: String,
}

#[derive(Debug)]
struct KnownEntry {
    blob: Vec<u8>,
    algorithm: Option<Algorithm>,
    place: String,
    revoked: bool,
}

impl Known {
    fn of(target: &Target) -> Result<Self, ConnectError> {
        let address = target.address();
        let (keys, name) = match &target.trust {
            HostTrust::Given(key) => {
                return Ok(Self { keys: vec![], given: Some(key.clone()), name: target.host.clone() });
            }
            HostTrust::Pinned { blob } => {
                let algorithm = PublicKey::from_bytes(blob).ok().map(|key| key.algorithm());
                let place = format!("fleet.toml ({})", target.node);
                (vec![KnownEntry { blob: blob.clone(), algorithm, place, revoked: false }], target.host.clone())
            }
            HostTrust::Known { files, name, port } => {
                let keys = known_keys(files, name, *port);
                let keys = keys.map_err(|source| ConnectError::KnownHosts { address: address.clone(), source })?;
                let entry = |key: crate::known_hosts::KnownKey| KnownEntry {
                    algorithm: Algorithm::new(&key.kind).ok(),
                    blob: key.blob,
                    place: place(&key.path, key.line),
                    revoked: key.revoked,
                };
                let name = if *port == 22 { name.clone() } else { format!("[{name}]:{port}") };
                (keys.into_iter().map(entry).collect(), name)
            }
        };
        let known = Self { keys, given: None, name };
        let usable = |entry: &&KnownEntry| entry.algorithm.as_ref().is_some_and(|a| SUPPORTED.contains(a));
        let live: Vec<&KnownEntry> = known.keys.iter().filter(|entry| !entry.revoked).collect();
        if !live.is_empty() && !live.iter().any(usable) {
            let kinds =
                live.iter().map(|e| e.algorithm.as_ref().map_or("unknown", Algorithm::as_str)).collect::<Vec<_>>();
            return Err(ConnectError::HostKeyType { address, kinds: kinds.join(", ") });
        }
        Ok(known)
    }

    /// Only types of which a key is known: a host with several keys must show one that can be checked.
    fn algorithms(&self) -> Vec<Algorithm> {
        let known =
            |a: &&Algorithm| self.keys.iter().any(|entry| !entry.revoked && entry.algorithm.as_ref() == Some(a));
        let algorithms: Vec<Algorithm> = SUPPORTED.iter().filter(known).cloned().collect();
        if algorithms.is_empty() { SUPPORTED.to_vec() } else { algorithms }
    }

    fn check(&self, key: &PublicKey, address: &str, node: &str) -> Result<(), ConnectError> {
        let Ok(blob) = key.to_bytes() else {
            let source = Box::new(russh::Error::UnknownKey);
            return Err(ConnectError::Protocol { address: address.to_owned(), said: None, source });
        };
        let address = address.to_owned();
        let shown = fingerprint(&blob);
        if let Some(given) = &self.given {
            let expected = given.fingerprint().to_owned();
            return if expected == shown {
                Ok(())
            } else {
                Err(ConnectError::HostKeyOther { address, expected, shown })
            };
        }
        if let Some(entry) = self.keys.iter().find(|entry| entry.revoked && entry.blob == blob) {
            return Err(ConnectError::HostKeyRevoked { address, shown, place: entry.place.clone() });
        }
        if self.keys.iter().any(|entry| entry.blob == blob) {
            return Ok(());
        }
        match self.keys.iter().find(|entry| !entry.revoked) {
            Some(entry) => {
                let expected = fingerprint(&entry.blob);
                Err(ConnectError::HostKeyChanged { address, expected, shown, place: entry.place.clone() })
            }
            None => {
                let line = format!("{} {}", key.algorithm().as_str(), STANDARD.encode(&blob));
                let (node, name) = (node.to_owned(), self.name.clone());
                Err(ConnectError::HostKeyUnknown { address, node, name, shown, line })
            }
        }
    }
}

fn place(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

/// Host key types that are accepted, best first. No RSA: see RUSTSEC-2023-0071.
const SUPPORTED: [Algorithm; 4] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP521 },
];

struct Client {
    known: Known,
    address: String,
    node: String,
    said: Said,
}

#[derive(Debug)]
enum ClientError {
    Russh(russh::Error),
    Connect(Box<ConnectError>),
}

impl From<russh::Error> for ClientError {
    fn from(error: russh::Error) -> Self {
        Self::Russh(error)
    }
}

impl Handler for Client {
    type Error = ClientError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, ClientError> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                let checked = self.known.check(key, &self.address, &self.node);
                checked.map(|()| true).map_err(|error| ClientError::Connect(Box::new(error)))
            }
            // Never asked for, so a host that shows one does not follow the protocol.
            PublicKeyOrCertificate::Certificate(_) => Ok(false),
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<ClientError>) -> Result<(), ClientError> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                self.said.set(&info.message);
                Ok(())
            }
            DisconnectReason::Error(error) => {
                if let ClientError::Russh(error) = &error
                    && !matches!(error, russh::Error::Disconnect | russh::Error::HUP)
                {
                    self.said.set(&error.to_string());
                }
                Err(error)
            }
        }
    }
}
