//! Orders: signed statements of what must run, and the whole of it.
//!
//! An order is a JSON document, signed as SSHSIG over its exact bytes in the
//! namespace [`NAMESPACE`]. It says everything that decides what runs: fleet,
//! environment, the nodes it is for, app, image, every service's complete
//! sandbox. Whoever carries it chooses nothing, and the node writes the units
//! itself.
//!
//! One order can be for several nodes of one environment, so that a person
//! with a security key touches it once. For each node it carries that node's
//! next counter for the app, the id of the order before and the id of the boot
//! that it is meant for, so each node can refuse a replay, a fork, an order meant
//! for another node, and one from before it was put back to a snapshot.

use crate::{
    digest::{BootId, ImageId, OrderId, RunId, SecretDigest},
    manifest::is_clean_absolute,
    name::{AppName, EnvironmentName, FleetName, NodeName, SecretName, ServiceName, VolumeName},
    notice::is_line,
    signed::document_bytes,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// SSHSIG namespace of orders.
pub const NAMESPACE: &str = "order@bulkhead";
/// The largest order that anyone reads.
pub const ORDER_MAX_BYTES: usize = 256 << 10;

/// A statement of what must run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Version of this format: 1.
    pub format: u32,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// The environment it is for.
    pub environment: EnvironmentName,
    /// The app it is about.
    pub app: AppName,
    /// The nodes it is for.
    pub targets: BTreeMap<NodeName, Target>,
    /// When it was made, by the signer's clock.
    pub issued: Timestamp,
    /// From when on no node accepts it any more.
    pub not_after: Timestamp,
    /// The newest policy's version, as the signer knows: a node that has an older one was kept from it.
    pub policy: u64,
    /// What to do.
    pub action: Action,
    /// Why the image must run although it is not green. Only where the policy allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_glass: Option<String>,
    /// Why, in the signer's words; shown in the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Where an order stands in one node's history of the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// One more than the counter of the last order the node accepted for this app.
    pub counter: u64,
    /// That last order; none for the first.
    pub previous: Option<OrderId>,
    /// The node's boot that it is for.
    pub boot: BootId,
    /// Counters up to this one count as used up, where the node knows of fewer: it was put back to a snapshot, and
    /// the signer knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<u64>,
    /// The values of the secrets that the services have, as they are sealed to this node. It takes no others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, SecretDigest>,
}

impl Target {
    /// A place in a history, without secrets.
    #[must_use]
    pub fn new(counter: u64, previous: Option<OrderId>, boot: BootId) -> Self {
        Self { counter, previous, boot, floor: None, secrets: BTreeMap::new() }
    }
}

/// What an order does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Run these services from this image, and nothing else of the app. Makes a release.
    Run(Run),
    /// Stop services; the release stays and boots do not start them again.
    Stop {
        /// Which; empty for all.
        services: Vec<ServiceName>,
    },
    /// Start stopped services of the live release.
    Start {
        /// Which; empty for all.
        services: Vec<ServiceName>,
    },
    /// Restart services of the live release.
    Restart {
        /// Which; empty for all.
        services: Vec<ServiceName>,
    },
    /// Stop the app and forget its releases. Volumes stay unless said otherwise.
    Remove {
        /// Whether its volumes are deleted too.
        volumes: bool,
    },
    /// Run a tool against a service of the live release, once, from outside it.
    Look(Tool),
}

impl Action {
    /// The word for it in tables and logs.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Stop { .. } => "stop",
            Self::Start { .. } => "start",
            Self::Restart { .. } => "restart",
            Self::Remove { .. } => "remove",
            Self::Look(_) => "look",
        }
    }
}

/// What a release is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The constant part.
    pub image: ImageId,
    /// Every service, with its whole sandbox.
    pub services: Vec<ServiceSpec>,
    /// Where the sources stood when the image was built, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// What this release was made from when it was not built: `rollback to 3`, `promoted from staging`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What any one release key may put in its place.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fallback: BTreeSet<RunId>,
}

impl Run {
    /// These services from this image, of which nothing else is said.
    #[must_use]
    pub fn new(image: ImageId, services: Vec<ServiceSpec>) -> Self {
        Self { image, services, source: None, origin: None, fallback: BTreeSet::new() }
    }

    /// The id of what runs: of image and services, in this very order, and not of where they came from.
    ///
    /// # Panics
    /// Never: plain data always serialises.
    #[must_use]
    pub fn id(&self) -> RunId {
        RunId::of(&serde_json::to_vec(&(&self.image, &self.services)).expect("plain data always serialises"))
    }

    /// The secrets of all its services.
    #[must_use]
    pub fn secrets(&self) -> BTreeSet<&SecretName> {
        self.services.iter().flat_map(|service| &service.secrets).collect()
    }
}

/// A tool and what it is let at. It runs from a tool image of its own, never from
/// the service's, and with power over that one service alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// The service that is looked at.
    pub service: ServiceName,
    /// The tool image; one that is marked so.
    pub image: ImageId,
    /// The tool (a path in its image, or a name looked for in its bin directories) and its arguments.
    pub command: Vec<String>,
    /// What it may do.
    pub rights: Rights,
    /// How long it may run.
    pub within_ms: u32,
}

/// What a tool may do to the service that it is let at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rights {
    /// Trace its processes, read their memory and its files, and be in its network.
    Trace,
    /// Capture the packets of its network; neither its processes nor its files.
    Capture,
}

impl Tool {
    /// The command on one line, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=@%+".contains(c);
        let word = |word: &String| {
            if !word.is_empty() && word.chars().all(is_plain) { word.clone() } else { format!("'{word}'") }
        };
        self.command.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    fn check(&self) -> Result<(), String> {
        let Some(program) = self.command.first() else { return Err("a tool has a name".into()) };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
        if program.is_empty()
            || !program.chars().all(is_plain)
            || (program.contains('/') && !is_clean_absolute(program))
        {
            return Err(format!("tool `{program}` is neither a plain name nor a clean absolute path"));
        }
        if self.command.len() > WORDS_MAX || self.command.iter().map(String::len).sum::<usize>() > TOOL_MAX_BYTES {
            return Err(format!("a tool's command has at most {WORDS_MAX} words and {TOOL_MAX_BYTES} bytes"));
        }
        // It is shown in histories and logs, on one line.
        if let Some(word) = self.command.iter().find(|word| word.chars().any(char::is_control)) {
            return Err(format!("argument {word:?} has a control character"));
        }
        if self.within_ms == 0 || self.within_ms > TOOL_MAX_MS {
            return Err("a tool runs for at most one hour".into());
        }
        Ok(())
    }
}

/// Where sources stood. Stated by the signer; nobody verifies it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The version-control commit.
    pub commit: String,
    /// Whether files differed from it.
    pub dirty: bool,
}

/// One service and its whole sandbox. Whatever is not said here, it does not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The service's name, unique in the app.
    pub name: ServiceName,
    /// The program (a path in the image, or a name looked for in its bin directories) and its arguments.
    pub command: Vec<String>,
    /// Absolute working directory.
    pub workdir: String,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The TCP port it listens on inside its private network.
    pub port: Option<u16>,
    /// How the node tells that it is well.
    pub health: Health,
    /// Its writable, lasting directories.
    pub volumes: Vec<VolumeMount>,
    /// The most memory.
    pub memory_max_bytes: Option<u64>,
    /// The most processes and threads.
    pub tasks_max: Option<u32>,
    /// The most CPU, in hundredths of a core.
    pub cpu_percent: Option<u32>,
    /// Whether it may make memory executable.
    pub jit: bool,
    /// How long old connections may go on after the switch.
    pub drain_ms: u32,
    /// From SIGTERM to SIGKILL.
    pub stop_ms: u32,
    /// The secrets that it reads, each as a file of that name in `$CREDENTIALS_DIRECTORY`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<SecretName>,
}

/// A volume and where the service sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume, unique in the app on a node.
    pub name: VolumeName,
    /// Absolute path in the image's tree.
    pub path: String,
}

/// When a service counts as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is checked.
    pub check: HealthCheck,
    /// From start to healthy at most.
    pub within_ms: u32,
}

/// What is checked, from outside the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum HealthCheck {
    /// A GET of this path answers with a status from 200 to 399.
    Http {
        /// Starts with `/`.
        path: String,
    },
    /// The port is listened on.
    Tcp,
    /// Still running one second after its start.
    StaysUp,
}

/// Why bytes are not an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Not JSON of this shape.
    #[error("not an order: {0}")]
    Json(String),
    /// A value that no node would accept.
    #[error("order: {0}")]
    Value(String),
}

const SERVICES_MAX: usize = 64;
const WORDS_MAX: usize = 1024;
const TARGETS_MAX: usize = 10_000;
/// The most secrets of an app.
pub const SECRETS_MAX: usize = 32;
/// More than anybody wants to choose among in a hurry.
pub const FALLBACK_MAX: usize = 32;
/// All words of a tool's command: a script on a command line fits.
const TOOL_MAX_BYTES: usize = 16 << 10;
/// Who wants to look for longer looks again.
const TOOL_MAX_MS: u32 = 3_600_000;

impl Order {
    /// Reads an order from its exact bytes. Verify signatures before calling this.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, OrderError> {
        let order: Self = serde_json::from_slice(bytes).map_err(|error| OrderError::Json(error.to_string()))?;
        order.check().map_err(OrderError::Value)?;
        Ok(order)
    }

    /// The bytes to sign: indented JSON, so that a person can read what is signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        document_bytes(self)
    }

    /// Every secret that a service has must be pinned for each node, and nothing else.
    fn check_secrets(&self) -> Result<(), String> {
        let wanted = match &self.action {
            Action::Run(run) => run.secrets(),
            _ => BTreeSet::new(),
        };
        if wanted.len() > SECRETS_MAX {
            return Err(format!("an app has at most {SECRETS_MAX} secrets"));
        }
        for (node, target) in &self.targets {
            if let Some(name) = wanted.iter().find(|name| !target.secrets.contains_key(**name)) {
                return Err(format!("secret `{name}` is not pinned for node `{node}`"));
            }
            if let Some(name) = target.secrets.keys().find(|name| !wanted.contains(name)) {
                return Err(format!("secret `{name}` is pinned for node `{node}`, and no service has it"));
            }
        }
        Ok(())
    }

    /// Checks what the types cannot. Run on both sides: before signing and by the node.
    ///
    /// # Errors
    /// A sentence about the first bad value.
    pub fn check(&self) -> Result<(), String> {
        if self.format != 1 {
            return Err(format!("format {} is not known here; update the agent", self.format));
        }
        if self.targets.is_empty() || self.targets.len() > TARGETS_MAX {
            return Err(format!("an order is for 1 to {TARGETS_MAX} nodes"));
        }
        if self.targets.values().any(|target| target.counter == 0) {
            return Err("counters start at 1".into());
        }
        if self.message.as_ref().is_some_and(|text| !is_line(text)) {
            return Err("the message is one line of at most 1000 bytes".into());
        }
        if let Some(reason) = &self.break_glass {
            if reason.is_empty() || !is_line(reason) {
                return Err("the reason to break glass is one line of 1 to 1000 bytes".into());
            }
            if !matches!(self.action, Action::Run(_)) {
                return Err("only an order that runs an image can break glass".into());
            }
        }
        if let Action::Look(tool) = &self.action {
            tool.check()?;
        }
        self.check_secrets()?;
        if let Action::Run(run) = &self.action {
            check_services(&run.services)?;
            if run.fallback.len() > FALLBACK_MAX {
                return Err(format!("more than {FALLBACK_MAX} fallbacks"));
            }
        }
        Ok(())
    }
}

/// Checks the services of a release.
pub(crate) fn check_services(services: &[ServiceSpec]) -> Result<(), String> {
    if services.is_empty() || services.len() > SERVICES_MAX {
        return Err(format!("a release has 1 to {SERVICES_MAX} services"));
    }
    for (index, service) in services.iter().enumerate() {
        if services[..index].iter().any(|other| other.name == service.name) {
            return Err(format!("service `{}` twice", service.name));
        }
        service.check().map_err(|what| format!("service `{}`: {what}", service.name))?;
    }
    Ok(())
}

impl ServiceSpec {
    /// A service with the manifest's defaults, that listens on nothing and is given nothing.
    #[must_use]
    pub fn new(name: ServiceName, command: Vec<String>) -> Self {
        Self {
            name,
            command,
            workdir: "/".into(),
            env: BTreeMap::new(),
            port: None,
            health: Health { check: HealthCheck::StaysUp, within_ms: 30_000 },
            volumes: vec![],
            memory_max_bytes: None,
            tasks_max: None,
            cpu_percent: None,
            jit: false,
            drain_ms: 10_000,
            stop_ms: 10_000,
            secrets: BTreeSet::new(),
        }
    }

    /// Unit files are lines of text, so nothing that reaches them may hold a
    /// control character; all else is quoted by the writer of units.
    fn check(&self) -> Result<(), String> {
        let plain = |text: &str| !text.chars().any(char::is_control);
        if self.command.is_empty() || self.command.len() > WORDS_MAX || self.command[0].is_empty() {
            return Err(format!("a command has 1 to {WORDS_MAX} words"));
        }
        if self.command[0].contains('/') && !is_clean_absolute(&self.command[0]) {
            return Err(format!("program `{}` is neither a plain name nor a clean absolute path", self.command[0]));
        }
        if !self.command[0].chars().all(|c| c.is_ascii_alphanumeric() || "/._+-".contains(c)) {
            return Err(format!("program `{}`: letters, digits and / . _ + - only", self.command[0]));
        }
        // systemd takes some of the others, in front, for rights: `+` is all of root's.
        if !self.command[0].starts_with(|c: char| c == '/' || c.is_ascii_alphanumeric()) {
            return Err(format!("program `{}` begins with neither `/` nor a letter or digit", self.command[0]));
        }
        if let Some(word) = self.command.iter().find(|word| !plain(word)) {
            return Err(format!("argument {word:?} has a control character"));
        }
        if self.env.len() > WORDS_MAX {
            return Err(format!("more than {WORDS_MAX} environment variables"));
        }
        for (key, value) in &self.env {
            let good = key.bytes().enumerate().all(|(index, byte)| {
                byte == b'_' || byte.is_ascii_alphabetic() || (index > 0 && byte.is_ascii_digit())
            });
            if key.is_empty() || !good || !plain(value) {
                return Err(format!(
                    "environment variable {key:?}: a plain name and a value without control characters"
                ));
            }
        }
        if !is_clean_absolute(&self.workdir) && self.workdir != "/" {
            return Err(format!("workdir `{}` is not a clean absolute path", self.workdir));
        }
        if self.port == Some(0) {
            return Err("port 0".into());
        }
        for volume in &self.volumes {
            if !is_clean_absolute(&volume.path) {
                return Err(format!("volume `{}`: `{}` is not a clean absolute path", volume.name, volume.path));
            }
            let top = volume.path.split('/').nth(1).unwrap_or_default();
            if ["proc", "sys", "dev", "run"].contains(&top) {
                return Err(format!("volume `{}`: `{}` belongs to the system", volume.name, volume.path));
            }
        }
        match &self.health.check {
            HealthCheck::Http { path } => {
                if self.port.is_none()
                    || !path.starts_with('/')
                    || path.len() > 1000
                    || !path.bytes().all(|b| b.is_ascii_graphic())
                {
                    return Err(format!("health path {path:?}: needs a port and plain ASCII from `/` on"));
                }
            }
            HealthCheck::Tcp if self.port.is_none() => return Err("a TCP health check needs a port".into()),
            HealthCheck::Tcp | HealthCheck::StaysUp => {}
        }
        if self.health.within_ms > 3_600_000 || self.drain_ms > 3_600_000 || self.stop_ms > 3_600_000 {
            return Err("a duration over one hour".into());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn service() -> ServiceSpec {
        ServiceSpec {
            name: "web".parse().unwrap(),
            command: vec!["node".into(), "server.js".into()],
            workdir: "/app".into(),
            env: BTreeMap::new(),
            port: Some(3000),
            health: Health { check: HealthCheck::Http { path: "/health".into() }, within_ms: 1000 },
            volumes: vec![],
            memory_max_bytes: None,
            tasks_max: None,
            cpu_percent: None,
            jit: true,
            drain_ms: 0,
            stop_ms: 0,
            secrets: BTreeSet::new(),
        }
    }

    fn order(service: ServiceSpec) -> Order {
        Order {
            format: 1,
            fleet: "acme".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            app: "notes".parse().unwrap(),
            targets: [("n1".parse().unwrap(), Target::new(1, None, BootId([9; 32])))].into(),
            issued: Timestamp(0),
            not_after: Timestamp(600),
            policy: 1,
            action: Action::Run(Run {
                image: ImageId([7; 32]),
                services: vec![service],
                source: None,
                origin: None,
                fallback: BTreeSet::new(),
            }),
            break_glass: None,
            message: None,
        }
    }

    #[test]
    fn secrets_are_pinned_for_each_node() {
        let name = |text: &str| text.parse::<SecretName>().unwrap();
        let mut order = order(service());
        let Action::Run(run) = &mut order.action else { panic!() };
        run.services[0].secrets.insert(name("DATABASE_URL"));
        let other = order.targets.values().next().unwrap().clone();
        order.targets.insert("other".parse().unwrap(), other);
        assert!(order.check().unwrap_err().contains("secret `DATABASE_URL` is not pinned for node"));
        let pin = |order: &mut Order, secret: &str| {
            for target in order.targets.values_mut() {
                target.secrets.insert(name(secret), SecretDigest([1; 32]));
            }
        };
        pin(&mut order, "DATABASE_URL");
        assert_eq!(order.check(), Ok(()));
        let bytes = order.to_bytes();
        assert_eq!(Order::parse(&bytes), Ok(order.clone()));
        pin(&mut order, "OTHER");
        assert!(order.check().unwrap_err().contains("no service has it"));
        let mut stop = order.clone();
        stop.action = Action::Stop { services: vec![] };
        assert!(stop.check().unwrap_err().contains("no service has it"));
        let Action::Run(run) = &mut order.action else { panic!() };
        run.services[0].secrets.extend((0..SECRETS_MAX).map(|number| name(&format!("S{number}"))));
        assert!(order.check().unwrap_err().contains("at most 32 secrets"));
    }

    #[test]
    fn bytes_and_back() {
        let order = order(service());
        assert_eq!(Order::parse(&order.to_bytes()), Ok(order));
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = String::from_utf8(order(service()).to_bytes()).unwrap();
        let altered = text.replacen("\"jit\"", "\"privileged\": true, \"jit\"", 1);
        assert!(Order::parse(altered.as_bytes()).unwrap_err().to_string().contains("unknown field `privileged`"));
    }

    #[test]
    fn tools() {
        let check = |change: fn(&mut Tool), expected: Option<&str>| {
            let mut tool = Tool {
                service: "web".parse().unwrap(),
                image: ImageId([7; 32]),
                command: ["strace", "-c", "-e", "read from"].map(str::to_owned).to_vec(),
                rights: Rights::Trace,
                within_ms: 1000,
            };
            change(&mut tool);
            let order = Order { action: Action::Look(tool), ..order(service()) };
            match (Order::parse(&order.to_bytes()), expected) {
                (Ok(parsed), None) => assert_eq!(parsed, order),
                (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{error}"),
                (other, expected) => panic!("{other:?} instead of {expected:?}"),
            }
        };
        check(|_| {}, None);
        check(|tool| assert_eq!(tool.shown(), "strace -c -e 'read from'"), None);
        check(|tool| tool.command[0] = "/usr/bin/gdb".into(), None);
        check(|tool| tool.command.clear(), Some("has a name"));
        check(|tool| tool.command[0] = "../sh".into(), Some("clean absolute"));
        check(|tool| tool.command[0] = "a b".into(), Some("plain name"));
        check(|tool| tool.command[1] = "a\nb".into(), Some("control character"));
        check(|tool| tool.command[1] = "x".repeat(TOOL_MAX_BYTES), Some("at most"));
        check(|tool| tool.within_ms = 0, Some("one hour"));
        check(|tool| tool.within_ms = TOOL_MAX_MS + 1, Some("one hour"));
    }

    #[test]
    fn what_is_refused() {
        let check = |change: fn(&mut ServiceSpec), what: &str| {
            let mut service = service();
            change(&mut service);
            let error = Order::parse(&order(service).to_bytes()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        check(|s| s.command.clear(), "1 to 1024 words");
        check(|s| s.command[0] = "./run".into(), "clean absolute");
        check(|s| s.command[0] = "+node".repeat(2).replace('+', "@"), "letters, digits");
        for prefix in ["+", "-", "!", "!!", "@", "|", ":", ".", "_"] {
            let mut service = service();
            service.command[0] = format!("{prefix}node");
            let error = Order::parse(&order(service).to_bytes()).unwrap_err().to_string();
            assert!(error.contains("program"), "{error}");
        }
        check(|s| s.command[0] = "+node".into(), "begins with neither");
        check(|s| s.command[1] = "a\nUser=root".into(), "control character");
        check(|s| drop(s.env.insert("A B".into(), String::new())), "environment variable");
        check(|s| drop(s.env.insert("A".into(), "x\ny".into())), "environment variable");
        check(|s| s.workdir = "/a/../b".into(), "workdir");
        check(|s| s.port = None, "needs a port");
        check(|s| s.health.within_ms = u32::MAX, "one hour");
        check(|s| s.volumes.push(VolumeMount { name: "v".parse().unwrap(), path: "/proc/x".into() }), "system");
        check(|s| s.volumes.push(VolumeMount { name: "v".parse().unwrap(), path: "/x:/etc".into() }), "clean absolute");
    }

    #[test]
    fn what_runs_has_an_id() {
        let run = |change: fn(&mut Run)| {
            let Action::Run(mut run) = order(service()).action else { panic!("it runs") };
            change(&mut run);
            run.id()
        };
        let id = run(|_| {});
        // Where it came from is not what it is.
        assert_eq!(run(|run| run.origin = Some("rollback to 3".into())), id);
        assert_eq!(run(|run| run.fallback = [RunId([1; 32])].into()), id);
        assert_ne!(run(|run| run.image = ImageId([8; 32])), id);
        assert_ne!(run(|run| drop(run.services[0].env.insert("A".into(), "b".into()))), id);
        assert_ne!(run(|run| run.services[0].command.push("--fast".into())), id);
    }

    #[test]
    fn breaking_glass() {
        let check = |reason: &str, stops: bool, words: Option<&str>| {
            let mut order = Order { break_glass: Some(reason.into()), ..order(service()) };
            if stops {
                order.action = Action::Stop { services: vec![] };
            }
            match (order.check(), words) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => assert!(error.contains(words), "{error}"),
                (got, words) => panic!("{got:?} instead of {words:?}"),
            }
        };
        check("the site is down and CI too", false, None);
        check("", false, Some("1 to 1000 bytes"));
        check("a\nb", false, Some("1 to 1000 bytes"));
        check("why", true, Some("only an order that runs"));
    }

    #[test]
    fn few_fallbacks() {
        let mut order = order(service());
        let Action::Run(run) = &mut order.action else { panic!("it runs") };
        run.fallback = (0..32).map(|n| RunId([n; 32])).collect();
        assert_eq!(order.check(), Ok(()));
        let Action::Run(run) = &mut order.action else { panic!("it runs") };
        run.fallback.insert(RunId([99; 32]));
        assert!(order.check().unwrap_err().contains("32 fallbacks"));
    }
}
