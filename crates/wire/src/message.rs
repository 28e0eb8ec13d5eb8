//! Requests, events and what they carry.

use bulkhead_core::{
    AppName, BootId, EnvironmentName, FileDigest, FleetName, ImageId, NodeName, OrderId, SecretName, ServiceName,
    SignedText, Timestamp, VolumeName, order::Source, policy::NodeKeys,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a client asks. One per channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`crate::PROTOCOL`] of the client.
    pub protocol: u32,
    /// What is wanted.
    #[serde(flatten)]
    pub ask: Ask,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "there is one for each conversation")]
pub enum Ask {
    /// The node's facts and what runs. Answered by [`Event::Status`].
    Status,
    /// Every release of an app (or of all). Answered by one [`Event::Release`] each, oldest first.
    Releases {
        /// Which app; all where absent.
        app: Option<AppName>,
    },
    /// An image's document, for a client that has not got it. Answered by an
    /// [`Event::Stream`] and the stream.
    ImageDocument {
        /// Which image.
        image: ImageId,
    },
    /// Objects of an image that the node holds, for a client that shall send them on and
    /// has not got them. Answered by an [`Event::Stream`] and a pack (see
    /// `bulkhead_store::pack`) of them without deltas.
    Objects {
        /// Which image.
        image: ImageId,
        /// Which of its objects: bits as in [`Event::Missing`].
        wanted: String,
    },
    /// Take an order and carry it out. Streams that follow: the order's exact
    /// bytes; and, where `image` is given, the image document (a zstd frame,
    /// made with the base's document as prefix where `base` is given), and a pack
    /// (see `bulkhead_store::pack`) of the objects that the client expects to
    /// be missing (possibly empty). The node answers [`Event::Missing`] only
    /// where more is needed, and the client then sends one more pack stream.
    Submit(Submit),
    /// Log lines as [`Event::Log`].
    Logs {
        /// Whose.
        app: AppName,
        /// Of one service only.
        service: Option<ServiceName>,
        /// How many past lines, at most.
        lines: u32,
        /// Whether to go on with new lines until the client hangs up.
        follow: bool,
    },
    /// Connect to a service. After [`Event::Stream`] data frames go both ways; an
    /// end frame closes its direction.
    Open {
        /// Which app.
        app: AppName,
        /// Which service.
        service: ServiceName,
    },
    /// Look into a running service from outside. Answered by [`Event::Look`].
    Look {
        /// Which app.
        app: AppName,
        /// Which service.
        service: ServiceName,
        /// What to look at.
        view: View,
    },
    /// What the node enforces, as it was signed. Answered by [`Event::Policy`].
    Policy,
    /// The node's audit log. Answered by [`Event::Audit`], an [`Event::Stream`] and the lines from this entry on.
    Audit {
        /// How many entries are left out.
        from: u64,
    },
    /// Take a signed document that is no order: the stream that follows is its exact bytes.
    Bring(Bring),
    /// Be a node no longer: the stream that follows is the exact bytes of a discharge. It happens after the answer.
    Discharge {
        /// Armoured SSHSIG signatures over them.
        signatures: Vec<String>,
    },
    /// The request itself comes as the next message. So the node's processes start while the client still works
    /// out what to ask; who does not ask soon is hung up on. One [`Ask::Releases`] may come before it: it is
    /// answered up to its [`Event::Done`], and the node goes on waiting.
    Await,
    /// What the last answer in an agent's flip is; reserved for updates. Answered with [`Event::Done`].
    Ping,
}

/// An order on its way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Submit {
    /// Armoured SSHSIG signatures over the order's bytes.
    pub signatures: Vec<String>,
    /// For an order that runs an image: how the image comes.
    pub image: Option<ImageOffer>,
    /// How long to wait for another order of the app that is being carried out.
    pub wait_ms: u32,
    /// Statements about the order's image, beside those that the node was brought before.
    #[serde(default)]
    pub statements: Vec<SignedText>,
    /// The standing order that covers it.
    #[serde(default)]
    pub standing: Option<SignedText>,
    /// The scale grant that it rests on.
    #[serde(default)]
    pub grant: Option<SignedText>,
    /// The sealed values that the order pins for this node, in base64.
    #[serde(default)]
    pub secrets: BTreeMap<SecretName, String>,
}

/// All sealed values of an app on a node together, before base64: they come in one message, and systemd loads no more
/// for a service.
pub const SECRETS_MAX_BYTES: usize = 512 << 10;

/// A signed document on its way that is no order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bring {
    /// What it is.
    pub paper: Paper,
    /// Armoured SSHSIG signatures over its bytes.
    pub signatures: Vec<String>,
}

/// Documents that nodes keep beside orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paper {
    /// The policy after the one that the node enforces.
    Policy,
    /// What must not be started any more.
    Revocation,
    /// That nothing is kept from the node.
    Heartbeat,
    /// That an image is green, or red.
    Statement,
}

impl Paper {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Revocation => "revocation",
            Self::Heartbeat => "heartbeat",
            Self::Statement => "statement",
        }
    }
}

/// How an image comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOffer {
    /// Which image; the order says the same.
    pub id: ImageId,
    /// The image whose document is the prefix of the document stream.
    pub base: Option<ImageId>,
    /// Length of the document once unpacked.
    pub document_bytes: u64,
    /// The name of a pack file in the drop box, brought there by any SFTP client, to take in before the pack stream.
    #[serde(default)]
    pub dropped: Option<String>,
}

/// What to look at in a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "view", rename_all = "kebab-case")]
pub enum View {
    /// Its processes.
    Processes,
    /// A directory's listing or a file's first bytes, as the service sees it.
    Files {
        /// Absolute path as the service sees it.
        path: String,
    },
    /// Its sockets: listening, connected, Unix.
    Sockets,
    /// Open files of its processes.
    OpenFiles,
    /// Its limits and what it uses of them.
    Limits,
}

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Facts and what runs.
    Status(NodeStatus),
    /// One release.
    Release(Release),
    /// Another order of this app is being carried out; the client waits.
    Waiting {
        /// Who signed it.
        holder: String,
        /// Since when.
        since: Timestamp,
    },
    /// These objects are missing: one bit for each distinct digest in the
    /// image's document, in order of first appearance, least significant first, as hexadecimal.
    Missing {
        /// How many.
        count: u64,
        /// The bits.
        bits: String,
    },
    /// A step of carrying an order out was reached.
    Step(Step),
    /// A stream of this many bytes follows (or an open-ended one).
    Stream {
        /// Its length, where known.
        bytes: Option<u64>,
    },
    /// A line of a service's log.
    Log(LogLine),
    /// What was looked at.
    Look(Look),
    /// What the node enforces.
    Policy(Box<Enforced>),
    /// Where the audit log ends, as the node signs it: a `bulkhead_trust::audit::Head`.
    Audit(Box<SignedText>),
    /// A tool ended. Before it comes an [`Event::Stream`] of its output: data frames, each with
    /// [`crate::TOOL_STDOUT`] or [`crate::TOOL_STDERR`] as its first byte. An end frame from the
    /// client meanwhile interrupts the tool.
    Ended(ToolEnd),
    /// Done; nothing follows.
    Done(Done),
    /// Not done; nothing follows.
    Failed(Failure),
}

/// Steps of carrying an order out, with the time since the request came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub step: StepKind,
    /// Which service, where it is about one.
    pub service: Option<ServiceName>,
    /// Milliseconds since the node read the request.
    pub at_ms: u64,
}

/// Which step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Signatures, policy and counter are good.
    Accepted,
    /// All objects arrived and their digests are right.
    Received,
    /// Objects, document and order survive a power cut.
    Durable,
    /// The image is mounted.
    Mounted,
    /// The service's process was started.
    Started,
    /// The service is healthy.
    Healthy,
    /// New connections go to this release.
    Switched,
    /// The release before has no connection left, or its time is up.
    Drained,
    /// The release before is stopped.
    Stopped,
}

/// How a tool ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ToolEnd {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its time was up.
    pub out_of_time: bool,
}

impl std::fmt::Display for ToolEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (_, Some(signal)) => write!(f, "ended by signal {signal}")?,
            _ => f.write_str("ended")?,
        }
        if self.out_of_time { f.write_str(", its time was up") } else { Ok(()) }
    }
}

/// How an order ended well.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {
    /// The release that is live now, where the order made one.
    pub release: Option<u64>,
    /// The order, where there was one.
    pub order: Option<OrderId>,
    /// Whether the node had already carried this very order out.
    #[serde(default)]
    pub already: bool,
    /// What could not be done once the order held, in sentences: the node tries again with the next order or boot.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// For an order that was carried out, the node's signed word of it: a `bulkhead_trust::audit::Receipt`.
    #[serde(default)]
    pub receipt: Option<SignedText>,
}

/// Why it did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure; decides the client's exit code.
    pub kind: FailureKind,
    /// Which rule or step, as a stable word: `counter`, `signature`, `disk-full`, …
    pub rule: String,
    /// What happened, in a sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The last log lines of a service that did not become healthy.
    #[serde(default)]
    pub log: Vec<LogLine>,
    /// Where the app stands, for an order whose counter or previous order was not the next.
    #[serde(default)]
    pub position: Option<Position>,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request makes no sense to this node.
    Request,
    /// A rule of the policy or the order's own conditions forbid it.
    Refused,
    /// Another order of the app is being carried out.
    Locked,
    /// The new release did not become healthy; the old one serves on.
    Unhealthy,
    /// The node could not: disk full, facility missing, systemd said no.
    Node,
}

/// What a node enforces, as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// The policy.
    pub policy: SignedText,
    /// The revocations that it was brought.
    pub revocations: Vec<SignedText>,
    /// The newest heartbeat that it was brought.
    pub heartbeat: Option<SignedText>,
}

/// Where an app stands on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Counter of the last accepted order; 0 where there was none.
    pub counter: u64,
    /// That order.
    pub previous: Option<OrderId>,
    /// The policy version the node enforces.
    pub policy_version: u64,
    /// The node's present boot, which an order must name.
    #[serde(default)]
    pub boot: Option<BootId>,
    /// How many orders the node must have accepted, as orders prove that it met. More than `counter`: it was put back
    /// to a snapshot, and takes only an order with a floor of so many.
    #[serde(default)]
    pub seen: u64,
}

/// A node's facts and what runs on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its fleet.
    pub fleet: FleetName,
    /// Its name.
    pub node: NodeName,
    /// Its environment.
    pub environment: EnvironmentName,
    /// The agent's version.
    pub agent: String,
    /// Such as `Debian GNU/Linux 13 (trixie)`.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// systemd's version.
    pub systemd: u32,
    /// Its clock.
    pub now: Timestamp,
    /// When it booted.
    pub booted: Timestamp,
    /// Version of the policy it enforces.
    pub policy_version: u64,
    /// Its present boot.
    #[serde(default)]
    pub boot: Option<BootId>,
    /// Its own keys, as it says itself: what a policy says of them counts.
    #[serde(default)]
    pub keys: Option<NodeKeys>,
    /// What isolation and integrity it offers, by name: whether it has it, and what stands in where not.
    pub facilities: BTreeMap<String, Facility>,
    /// Bytes free and in all where images are kept.
    pub disk_free_bytes: u64,
    /// See `disk_free_bytes`.
    pub disk_total_bytes: u64,
    /// Bytes that images take.
    pub store_bytes: u64,
    /// The apps.
    pub apps: Vec<AppStatus>,
}

/// One facility of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facility {
    /// Whether the node has it.
    pub present: bool,
    /// Its form, or what stands in.
    pub detail: String,
}

/// An app on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Which.
    pub app: AppName,
    /// Where it stands.
    pub position: Position,
    /// The live release.
    pub live: Option<Release>,
    /// The images that the node holds for its releases, newest first.
    pub images: Vec<ImageId>,
    /// The services of the live release.
    pub services: Vec<ServiceStatus>,
    /// Its volumes and how many bytes each takes.
    #[serde(default)]
    pub volumes: BTreeMap<VolumeName, u64>,
    /// Who is carrying an order out at this moment, since when.
    #[serde(default)]
    pub busy: Option<(String, Timestamp)>,
    /// Why nothing more can be said of it: a file of its state cannot be read.
    #[serde(default)]
    pub damaged: Option<String>,
}

/// A service on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Which.
    pub service: ServiceName,
    /// systemd's active state, such as `active`, `failed`, `inactive`.
    pub state: String,
    /// Of which release.
    pub release: u64,
    /// The port inside its private network.
    pub port: Option<u16>,
    /// When it started.
    pub since: Option<Timestamp>,
    /// How often systemd restarted it.
    pub restarts: u32,
    /// Memory in use, where the node accounts for it.
    pub memory_bytes: Option<u64>,
    /// CPU time used.
    pub cpu_ms: Option<u64>,
    /// Its first process on the node.
    pub pid: Option<u32>,
    /// `systemd-analyze`-like word for how it ended, where it failed: `exit-code 1`, `signal 9`, …
    pub result: Option<String>,
}

/// A release: an order that a node accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its app.
    pub app: AppName,
    /// Its number on this node: the order's counter.
    pub number: u64,
    /// The order.
    pub order: OrderId,
    /// The verb: `run`, `stop`, ….
    pub verb: String,
    /// The image, of an order that runs one.
    pub image: Option<ImageId>,
    /// Whether the node still holds the image.
    pub image_present: bool,
    /// Who signed it: holders' names as the policy then had them.
    pub signers: Vec<String>,
    /// When the node accepted it.
    pub accepted: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it is what runs now.
    pub live: bool,
    /// From the order.
    pub source: Option<Source>,
    /// From the order.
    pub origin: Option<String>,
    /// From the order.
    pub message: Option<String>,
    /// The services and the order's whole sandbox for each.
    #[serde(default)]
    pub services: Vec<bulkhead_core::order::ServiceSpec>,
    /// The order as it was signed: all else here is what the node makes of it, and no ground for signing anything.
    #[serde(default)]
    pub signed: Option<SignedText>,
    /// What is stated about its image, as it was signed.
    #[serde(default)]
    pub statements: Vec<SignedText>,
    /// The standing order that it used, as it was signed.
    #[serde(default)]
    pub standing: Option<SignedText>,
    /// On which grounds the node accepted it.
    #[serde(default)]
    pub grounds: Option<String>,
    /// Why glass was broken for it, where it was.
    #[serde(default)]
    pub break_glass: Option<String>,
}

/// How a release ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It is being carried out.
    Underway,
    /// It became healthy and was switched to (or the verb was done).
    Done,
    /// It did not; what ran before went on.
    Failed {
        /// Why.
        reason: String,
    },
    /// The node went down while it was being carried out.
    Interrupted,
}

/// A line of a log. `text` is as the service wrote it: whoever shows it on a terminal escapes it first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Microseconds since 1970.
    pub at_us: i64,
    /// Which service.
    pub service: ServiceName,
    /// Of which release.
    pub release: u64,
    /// syslog priority, 0 to 7.
    pub priority: u8,
    /// The line.
    pub text: String,
}

/// What was looked at: a table, or a file's bytes as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Column titles; empty where `text` is the answer.
    pub columns: Vec<String>,
    /// Rows, as many cells as columns.
    pub rows: Vec<Vec<String>>,
    /// A file's beginning.
    #[serde(default)]
    pub text: Option<String>,
    /// Whether there was more than the bound allows.
    #[serde(default)]
    pub truncated: bool,
}

/// Sets the bits of a [`Event::Missing`].
#[must_use]
pub fn missing_bits(flags: &[bool]) -> String {
    let bytes: Vec<u8> = flags
        .chunks(8)
        .map(|chunk| chunk.iter().enumerate().fold(0, |byte, (index, set)| byte | u8::from(*set) << index))
        .collect();
    bulkhead_core::digest::hex(&bytes)
}

/// Reads the bits of a [`Event::Missing`] for this many distinct digests.
///
/// # Errors
/// Where the text is not that many bits.
pub fn parse_missing_bits(text: &str, count: usize) -> Result<Vec<bool>, String> {
    let bad = || format!("a map of {} characters does not fit {count} objects", text.len());
    if text.len() != count.div_ceil(8) * 2 || !text.is_ascii() {
        return Err(bad());
    }
    let mut flags = Vec::with_capacity(count);
    for index in 0..count {
        let byte = u8::from_str_radix(&text[index / 8 * 2..index / 8 * 2 + 2], 16).map_err(|_| bad())?;
        flags.push(byte >> (index % 8) & 1 == 1);
    }
    Ok(flags)
}

/// The distinct digests of an image with their sizes, in order of first appearance: what [`Event::Missing`] counts.
#[must_use]
pub fn distinct_objects(image: &bulkhead_core::image::Image) -> Vec<(FileDigest, u64)> {
    image.distinct_objects()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_back() {
        for count in [0usize, 1, 7, 8, 9, 100] {
            let flags: Vec<bool> = (0..count).map(|n| n % 3 == 0).collect();
            assert_eq!(parse_missing_bits(&missing_bits(&flags), count), Ok(flags));
        }
        assert!(parse_missing_bits("zz", 8).is_err());
        assert!(parse_missing_bits("0", 8).is_err());
    }

    #[test]
    fn requests_on_the_wire() {
        let request = Request { protocol: 1, ask: Ask::Status };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"protocol":1,"ask":"status"}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        let waiting = serde_json::to_string(&Request { protocol: 1, ask: Ask::Await }).unwrap();
        assert_eq!(waiting, r#"{"protocol":1,"ask":"await"}"#);
        let logs = r#"{"protocol":1,"ask":"logs","app":"a","service":null,"lines":5,"follow":false}"#;
        assert!(matches!(serde_json::from_str::<Request>(logs).unwrap().ask, Ask::Logs { lines: 5, .. }));
    }
}
