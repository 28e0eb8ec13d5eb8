//! What a node must let nobody do, tried over SSH itself: for whoever wants to check their own nodes.
//!
//! Nothing here changes a node that keeps its promises, and of one that does not only as much as shows it: a
//! command that prints who runs it, a connection that is closed at once.

use super::{ConnectError, Connection, KEYS_MAX, Target, Timeouts, handshake, target::HostTrust};
use crate::{
    client::printable,
    identity::{Identities, Source},
    ssh::HostKey,
};
use bulkhead_wire::frame::{HEADER_BYTES, decode_header};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, client::AuthResult, client::Msg};
use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, task::JoinSet};

/// A refusal takes a round trip or two; what says nothing for so long is told as unclear.
const PATIENCE: Duration = Duration::from_secs(15);
/// What is kept of an answer.
const ANSWER_MAX_BYTES: usize = 64 << 10;
/// A port behind a packet filter never answers.
const PORT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Few enough for a home router's table of connections.
const PORTS_AT_ONCE: usize = 200;

/// Who refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// This machine, before it sent anything.
    Client,
    /// Nothing listens, or the packet filter drops what comes.
    Filter,
    /// The node's SSH server.
    Sshd,
    /// The gate, the login shell of the node's accounts.
    Gate,
    /// The keeper, which decides by the policy.
    Keeper,
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "this machine",
            Self::Filter => "packet filter",
            Self::Sshd => "sshd",
            Self::Gate => "gate",
            Self::Keeper => "keeper",
        })
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was refused, as it must be.
    Refused {
        /// By whom.
        by: Guard,
        /// In what words. Safe to show.
        said: String,
    },
    /// It got through: what was seen.
    Granted(String),
    /// Neither is certain, and why.
    Unclear(String),
}

impl Outcome {
    fn refused(by: Guard, said: impl Into<String>) -> Self {
        Self::Refused { by, said: printable(said.into().trim()) }
    }
}

/// What is tried on a connection that was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// A shell.
    Shell,
    /// A terminal.
    Terminal,
    /// A command.
    Command(&'static str),
    /// A subsystem.
    Subsystem(&'static str),
    /// To set an environment variable.
    Variable,
    /// To lend the node this machine's ssh-agent.
    Agent,
    /// To lend the node this machine's display.
    Display,
    /// To connect onwards from the node.
    Onward(&'static str, u16),
    /// To connect to a Unix socket of the node.
    Socket(&'static str),
    /// To listen on a port of the node.
    Listen,
    /// To listen on a Unix socket of the node.
    ListenSocket(&'static str),
    /// A request of the SFTP protocol.
    File(FileRequest),
    /// These bytes, where the gate awaits a request.
    Bytes(&'static [u8]),
}

/// What an SFTP client may want, with its number in the protocol (draft-ietf-secsh-filexfer-02).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FileRequest {
    /// To read from an open file.
    Read = 5,
    /// To list a folder.
    List = 11,
    /// To remove a file.
    Remove = 13,
    /// To make a folder.
    MakeFolder = 14,
    /// To rename a file.
    Rename = 18,
    /// To read where a link leads.
    ReadLink = 19,
    /// To make a link.
    Link = 20,
}

impl FileRequest {
    /// The whole packet, about a file that is not there.
    fn packet(self) -> Vec<u8> {
        const NAME: &[u8] = b"bulkhead-attack";
        let mut body = vec![self as u8, 0, 0, 0, 1];
        let mut string = |text: &[u8]| {
            body.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            body.extend(text);
        };
        match self {
            // A handle that nobody gave out, from its beginning, one byte.
            Self::Read => {
                string(b"0000");
                body.extend([0; 11]);
                body.push(1);
            }
            Self::List => string(b"/in"),
            Self::Remove | Self::ReadLink => string(NAME),
            Self::Rename | Self::Link => {
                string(NAME);
                string(b"bulkhead-attack-2");
            }
            Self::MakeFolder => {
                string(NAME);
                body.extend([0; 4]);
            }
        }
        let mut packet = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        packet.extend(body);
        packet
    }
}

impl Connection {
    /// Tries it, on a channel of its own.
    pub async fn attempt(&self, attempt: Attempt) -> Outcome {
        match tokio::time::timeout(PATIENCE, self.attempt_without_end(attempt)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Unclear(printable(&format!("the connection broke: {error}"))),
            Err(_) => Outcome::Unclear(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    async fn attempt_without_end(&self, attempt: Attempt) -> Result<Outcome, russh::Error> {
        let handle = &self.inner.handle;
        let opened = |what: String, channel: Result<Channel<Msg>, russh::Error>| match channel {
            Ok(_) => Ok(Outcome::Granted(format!("{what} was opened"))),
            Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited)) => {
                Ok(Outcome::refused(Guard::Sshd, "administratively prohibited"))
            }
            // It was let try, and nothing was there.
            Err(russh::Error::ChannelOpenFailure(why)) => Ok(Outcome::Granted(format!("{what} was tried: {why:?}"))),
            Err(error) => Err(error),
        };
        let listening = |what: String, answer: Result<(), russh::Error>| match answer {
            Ok(()) => Ok(Outcome::Granted(format!("it listens on {what}"))),
            Err(russh::Error::RequestDenied) => Ok(Outcome::refused(Guard::Sshd, "request denied")),
            Err(error) => Err(error),
        };
        match attempt {
            Attempt::Onward(host, port) => {
                let channel = handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await;
                opened(format!("{host}:{port}"), channel)
            }
            // Of sockets sshd says no more than that it failed, forbidden or not: those that are there and let this
            // account in tell the difference.
            Attempt::Socket(path) => match handle.channel_open_direct_streamlocal(path).await {
                Err(russh::Error::ChannelOpenFailure(why)) => Ok(Outcome::refused(Guard::Sshd, format!("{why:?}"))),
                other => opened(path.to_owned(), other),
            },
            Attempt::Listen => listening("a port".into(), handle.tcpip_forward("0.0.0.0", 0).await.map(drop)),
            Attempt::ListenSocket(path) => listening(path.to_owned(), handle.streamlocal_forward(path).await),
            _ => {
                let mut channel = handle.channel_open_session().await?;
                let outcome = in_session(&mut channel, attempt).await;
                // Whatever runs there ends with its channel.
                channel.close().await.ok();
                outcome
            }
        }
    }
}

async fn in_session(channel: &mut Channel<Msg>, attempt: Attempt) -> Result<Outcome, russh::Error> {
    match attempt {
        Attempt::Terminal => {
            channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await?;
            yes_or_no(channel, "a terminal").await
        }
        Attempt::Variable => {
            channel.set_env(true, "LD_PRELOAD", "/nothing").await?;
            yes_or_no(channel, "a variable in the environment").await
        }
        Attempt::Agent => {
            channel.agent_forward(true).await?;
            yes_or_no(channel, "the use of an agent").await
        }
        Attempt::Display => {
            channel.request_x11(true, true, "MIT-MAGIC-COOKIE-1", "00", 0).await?;
            yes_or_no(channel, "the use of a display").await
        }
        Attempt::Shell => {
            channel.request_shell(true).await?;
            // Whatever runs, if it is a shell, it answers this.
            channel.data_bytes(b"id\n".to_vec()).await.ok();
            channel.eof().await.ok();
            ran(channel, attempt, "a shell").await
        }
        Attempt::Command(command) => {
            channel.exec(true, command).await?;
            channel.eof().await.ok();
            ran(channel, attempt, command).await
        }
        Attempt::Subsystem(name) => {
            channel.request_subsystem(true, name).await?;
            // What an SFTP client says first.
            channel.data_bytes(HELLO.to_vec()).await.ok();
            channel.eof().await.ok();
            ran(channel, attempt, name).await
        }
        Attempt::File(request) => {
            channel.request_subsystem(true, "sftp").await?;
            channel.data_bytes(HELLO.to_vec()).await?;
            channel.data_bytes(request.packet()).await?;
            // The server ends with its input, whether it has answered or not.
            let mut output = Vec::new();
            loop {
                let outcome = sftp_answer(&output);
                if !matches!(outcome, Outcome::Unclear(_)) || output.len() > ANSWER_MAX_BYTES {
                    return Ok(outcome);
                }
                match channel.wait().await {
                    Some(ChannelMsg::Data { data }) => output.extend(&data),
                    Some(_) => {}
                    None => return Ok(outcome),
                }
            }
        }
        Attempt::Bytes(bytes) => {
            channel.exec(true, bulkhead_wire::COMMAND).await?;
            channel.data_bytes(bytes.to_vec()).await.ok();
            channel.eof().await.ok();
            Ok(gate_answer(&listen(channel).await))
        }
        // These are requests of the connection and not of a session.
        Attempt::Onward(..) | Attempt::Socket(_) | Attempt::Listen | Attempt::ListenSocket(_) => {
            Ok(Outcome::Unclear("not tried".into()))
        }
    }
}

const HELLO: [u8; 9] = [0, 0, 0, 5, 1, 0, 0, 0, 3];

async fn yes_or_no(channel: &mut Channel<Msg>, what: &str) -> Result<Outcome, russh::Error> {
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Success => return Ok(Outcome::Granted(format!("{what} was granted"))),
            ChannelMsg::Failure => return Ok(Outcome::refused(Guard::Sshd, "request denied")),
            _ => {}
        }
    }
    Ok(Outcome::Unclear("the connection ended without an answer".into()))
}

/// What a program said until it ended.
#[derive(Default)]
struct Said {
    output: Vec<u8>,
    errors: Vec<u8>,
    denied: bool,
    status: Option<u32>,
}

async fn listen(channel: &mut Channel<Msg>) -> Said {
    let mut said = Said::default();
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Failure => {
                said.denied = true;
                break;
            }
            ChannelMsg::Data { data } => said.output.extend(&data),
            ChannelMsg::ExtendedData { data, .. } => said.errors.extend(&data),
            ChannelMsg::ExitStatus { exit_status } => said.status = Some(exit_status),
            _ => {}
        }
        if said.output.len() + said.errors.len() > ANSWER_MAX_BYTES {
            break;
        }
    }
    said
}

/// A program that must not have run: the gate in its place says so, on standard error, and fails.
async fn ran(channel: &mut Channel<Msg>, attempt: Attempt, what: &str) -> Result<Outcome, russh::Error> {
    let said = listen(channel).await;
    if said.denied {
        return Ok(Outcome::refused(Guard::Sshd, "request denied"));
    }
    let errors = String::from_utf8_lossy(&said.errors).into_owned();
    // A subsystem's standard error goes nowhere.
    let by_gate = errors.starts_with("bulkhead: ") || matches!(attempt, Attempt::Subsystem(_)) && errors.is_empty();
    if said.output.is_empty() && by_gate && said.status.is_some_and(|status| status != 0) {
        return Ok(Outcome::refused(Guard::Gate, if errors.is_empty() { "it is not available" } else { &errors }));
    }
    // Where SFTP is forced, whatever else is asked for gets this line in its place.
    if said.output.starts_with(b"This service allows sftp connections only.") {
        return Ok(Outcome::refused(Guard::Sshd, "SFTP only"));
    }
    if said.output.is_empty() && said.errors.is_empty() && said.status.is_none() {
        return Ok(Outcome::Unclear("the connection ended without an answer".into()));
    }
    let shown = String::from_utf8_lossy(&said.output[..said.output.len().min(200)]).into_owned();
    Ok(Outcome::Granted(printable(&format!("{what} ran: {shown}{errors}"))))
}

fn sftp_answer(output: &[u8]) -> Outcome {
    const STATUS: u8 = 101;
    const PERMISSION_DENIED: u32 = 3;
    let mut rest = output;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let Some((packet, next)) = after.split_at_checked(u32::from_be_bytes(*length) as usize) else { break };
        rest = next;
        let code = packet.get(5..9).and_then(|code| code.first_chunk::<4>()).map(|code| u32::from_be_bytes(*code));
        match (packet.first(), code) {
            (Some(2), _) => {}
            (Some(&STATUS), Some(PERMISSION_DENIED)) => return Outcome::refused(Guard::Sshd, "permission denied"),
            (Some(kind), code) => {
                return Outcome::Granted(format!("the server went to work on it (answer {kind}, status {code:?})"));
            }
            (None, _) => break,
        }
    }
    Outcome::Unclear("the SFTP server did not answer".into())
}

/// The gate's last word on bytes that are no request: an event that says what was wrong.
fn gate_answer(said: &Said) -> Outcome {
    if let Some((header, payload)) = said.output.split_first_chunk::<HEADER_BYTES>()
        && let Ok((_, length)) = decode_header(*header)
        && let Some(payload) = payload.get(..length)
        && let Ok(bulkhead_wire::Event::Failed(failure)) = serde_json::from_slice(payload)
    {
        return Outcome::refused(Guard::Gate, failure.message);
    }
    if said.output.is_empty() && said.status.is_some() {
        return Outcome::refused(Guard::Gate, "it hung up");
    }
    if said.output.is_empty() {
        return Outcome::Unclear("the connection ended without an answer".into());
    }
    Outcome::Granted(printable(&format!(
        "it was answered: {}",
        String::from_utf8_lossy(&said.output[..said.output.len().min(200)])
    )))
}

/// Connects and has the host prove itself, without logging in: nobody is asked for a touch.
///
/// # Errors
/// See [`ConnectError`]; [`ConnectError::HostKeyChanged`] where another host, or another server, is there by now.
pub async fn greet(target: &Target, identities: &Identities, timeouts: Timeouts) -> Result<(), ConnectError> {
    let via = way_to(target, identities, timeouts).await?;
    handshake(target, via.as_ref(), timeouts).await.map(drop)
}

/// The connection to the last jump host, where there are any.
async fn way_to(
    target: &Target,
    identities: &Identities,
    timeouts: Timeouts,
) -> Result<Option<Connection>, ConnectError> {
    let mut via = None;
    for hop in &target.via {
        via = Some(super::login(hop, via, identities, timeouts, Instant::now()).await?);
    }
    Ok(via)
}

/// What a host says before anybody is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knock {
    /// By what one may log in.
    pub methods: BTreeSet<String>,
    /// The key that was tried, and whether it was let in; nothing where that never became clear.
    pub tried: Option<(String, Option<bool>)>,
}

/// Asks how one may log in, and tries the best key that is at hand and needs nobody's touch or passphrase.
///
/// # Errors
/// See [`ConnectError`].
pub async fn knock(target: &Target, identities: &Identities, timeouts: Timeouts) -> Result<Knock, ConnectError> {
    let address = target.address();
    let broken = |source: russh::Error| ConnectError::Protocol {
        address: address.clone(),
        said: None,
        source: Box::new(source),
    };
    let via = way_to(target, identities, timeouts).await?;
    let mut session = handshake(target, via.as_ref(), timeouts).await?;
    let methods = match session.handle.authenticate_none(target.user.clone()).await.map_err(broken)? {
        AuthResult::Success => ["none".to_owned()].into(),
        AuthResult::Failure { remaining_methods, .. } => {
            remaining_methods.iter().map(|method| <&str>::from(method).to_owned()).collect()
        }
    };
    let candidates = identities.candidates(&target.hints).await;
    let candidates = candidates.map_err(|source| ConnectError::Identity { address: target.address(), source })?;
    let needs_nobody = |source: &Source| !matches!(source, Source::File { encrypted: true, .. });
    let candidate = candidates.keys.into_iter().take(KEYS_MAX).find(|candidate| needs_nobody(&candidate.source));
    let mut tried = None;
    if let Some(candidate) = candidate {
        let let_in = session.authenticate(&target.user, &candidate, identities, timeouts).await.ok();
        tried = Some((candidate.describe(), let_in));
    }
    Ok(Knock { methods, tried })
}

impl Target {
    /// The same host, which must show this key.
    #[must_use]
    pub fn showing(mut self, key: HostKey) -> Self {
        self.trust = HostTrust::Given(key);
        self
    }

    /// The same host, logged in to as somebody else.
    #[must_use]
    pub fn as_user(mut self, user: &str) -> Self {
        self.user = user.to_owned();
        self
    }

    /// Tries TCP ports of the host, at every address that its name has; nothing where it is reached over another host.
    ///
    /// # Errors
    /// Its name does not resolve.
    pub async fn try_ports(&self, ports: &[u16]) -> Result<Option<Ports>, ConnectError> {
        if !self.via.is_empty() || self.proxy_command.is_some() {
            return Ok(None);
        }
        let failed = |source| ConnectError::Resolve { host: self.host.clone(), source };
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(failed)?;
        let addresses: BTreeSet<IpAddr> = found.map(|found| found.ip()).collect();
        let mut trying = JoinSet::new();
        let mut all = Ports::default();
        for (address, port) in addresses.iter().flat_map(|address| ports.iter().map(|port| (*address, *port))) {
            if trying.len() >= PORTS_AT_ONCE {
                all.add(trying.join_next().await);
            }
            trying.spawn(async move { (port, is_open(address, port).await) });
        }
        while !trying.is_empty() {
            all.add(trying.join_next().await);
        }
        Ok(Some(all))
    }
}

/// What came of trying ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    /// Those that take connections.
    pub open: BTreeSet<u16>,
    /// How many were not tried in truth: this machine could not.
    pub failed: usize,
}

impl Ports {
    fn add(&mut self, tried: Option<Result<(u16, Option<bool>), tokio::task::JoinError>>) {
        match tried {
            Some(Ok((port, Some(true)))) => drop(self.open.insert(port)),
            Some(Ok((_, Some(false)))) | None => {}
            Some(Ok((_, None)) | Err(_)) => self.failed += 1,
        }
    }
}

/// Nothing where this machine itself could not try.
async fn is_open(address: IpAddr, port: u16) -> Option<bool> {
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, PermissionDenied, TimedOut};
    match tokio::time::timeout(PORT_TIMEOUT, TcpStream::connect(SocketAddr::new(address, port))).await {
        Ok(Ok(_)) => Some(true),
        Err(_) => Some(false),
        Ok(Err(error)) => match error.kind() {
            ConnectionRefused | ConnectionReset | TimedOut | HostUnreachable => Some(false),
            // An ICMP answer "administratively prohibited" is one of a packet filter's.
            PermissionDenied => Some(false),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An SFTP server's version, then this answer.
    fn answers(kind: u8, code: u32) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 5, 2, 0, 0, 0, 3];
        let mut packet = vec![kind, 0, 0, 0, 1];
        packet.extend(code.to_be_bytes());
        bytes.extend(u32::try_from(packet.len()).unwrap().to_be_bytes());
        bytes.extend(packet);
        bytes
    }

    #[test]
    fn only_permission_denied_is_a_refusal() {
        assert!(matches!(sftp_answer(&answers(101, 3)), Outcome::Refused { by: Guard::Sshd, .. }));
        // Done; no such file; failed; a handle: each means that it was let do it.
        for (kind, code) in [(101, 0), (101, 2), (101, 4), (102, 3)] {
            assert!(matches!(sftp_answer(&answers(kind, code)), Outcome::Granted(_)), "{kind} {code}");
        }
        for cut in 0..9 {
            assert!(matches!(sftp_answer(&answers(101, 3)[..cut]), Outcome::Unclear(_)), "{cut}");
        }
    }

    #[test]
    fn packets_say_how_long_they_are() {
        use FileRequest::*;
        for request in [Read, List, Remove, MakeFolder, Rename, ReadLink, Link] {
            let packet = request.packet();
            assert_eq!(u32::from_be_bytes(*packet.first_chunk().unwrap()) as usize, packet.len() - 4, "{request:?}");
            assert_eq!(packet[4], request as u8);
        }
    }

    #[test]
    fn what_the_gate_answers() {
        let said = |output: &[u8]| Said { output: output.to_vec(), ..Said::default() };
        assert!(matches!(gate_answer(&said(b"")), Outcome::Unclear(_)));
        assert!(matches!(gate_answer(&Said { status: Some(0), ..said(b"") }), Outcome::Refused { .. }));
        assert!(matches!(gate_answer(&said(b"uid=0(root)")), Outcome::Granted(_)));
    }
}
