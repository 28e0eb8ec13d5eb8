//! `bulkhead.toml`: what an app is, written by people.
//!
//! Every field has a doc comment: they are the text of the JSON schema and of
//! `docs/manifest.md`. Values are checked as they are parsed, so an error
//! always names the line and column it stands on.

use crate::name::{AppName, EnvironmentName, NodeName, SecretName, ServiceName, VolumeName, nearest};
use crate::order::{Health, HealthCheck, ServiceSpec, VolumeMount};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// An app: its image, its services and what differs between environments.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The app's name, unique in the fleet.
    pub app: AppName,
    /// What goes into the sealed image.
    #[serde(default)]
    pub image: ImageSection,
    /// The long-running services, by name. At least one.
    pub services: BTreeMap<ServiceName, ServiceSection>,
    /// What differs from the above in one environment, by its name.
    #[serde(default)]
    pub environments: BTreeMap<EnvironmentName, EnvironmentSection>,
}

/// What goes into the image: files of this folder, Debian packages, and what of them is kept.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImageSection {
    /// The folder to copy, relative to this file.
    pub source: String,
    /// Where that folder lands in the image.
    pub to: AbsolutePath,
    /// Paths not to copy, in .gitignore's pattern language. `.git`, `bulkhead.toml`,
    /// `bulkhead.lock`, `fleet.toml`, `policy.json`, `policy.json.sig` and what
    /// `.bulkheadignore` names are always left out.
    pub exclude: Vec<String>,
    /// Single files or folders to copy besides: path in the image = path relative to this file.
    pub copy: BTreeMap<String, String>,
    /// The Debian suite that packages come from.
    pub suite: String,
    /// Debian packages to take, with their dependencies, cut down to what runs.
    pub packages: Vec<String>,
    /// Paths of packages to keep besides the closure of what runs: a file, a folder
    /// (with all below it) or a pattern, such as `/usr/share/zoneinfo` or `/usr/lib/python3.13/**`.
    pub keep: Vec<String>,
    /// Libraries that programs load by name at run time, such as `libnss_dns.so.2`.
    pub load: Vec<String>,
    /// Paths or patterns that the lint would refuse, allowed by name. Shown in every plan.
    pub allow: Vec<String>,
    /// The platform of the nodes.
    pub platform: Platform,
}

impl Default for ImageSection {
    fn default() -> Self {
        Self {
            source: ".".into(),
            to: AbsolutePath("/app".into()),
            exclude: vec![],
            copy: BTreeMap::new(),
            suite: "trixie".into(),
            packages: vec![],
            keep: vec![],
            load: vec![],
            allow: vec![],
            platform: Platform::Amd64,
        }
    }
}

/// The platform of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Platform {
    /// 64-bit x86.
    #[serde(rename = "linux/amd64")]
    Amd64,
    /// 64-bit ARM.
    #[serde(rename = "linux/arm64")]
    Arm64,
}

impl Platform {
    /// As written in a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "linux/amd64",
            Self::Arm64 => "linux/arm64",
        }
    }

    /// Debian's name of the architecture.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// One long-running service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceSection {
    /// The program and its arguments; no shell is involved. A program without a
    /// slash is looked for in the image's `/usr/bin`, `/usr/local/bin` and `/bin`.
    pub command: Vec<String>,
    /// The working directory; by default `image.to`.
    #[serde(default)]
    pub workdir: Option<AbsolutePath>,
    /// The TCP port it listens on, on 127.0.0.1 or all addresses of its private network.
    #[serde(default)]
    pub port: Option<Port>,
    /// Environment variables. Not for secrets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Secrets that it reads, each as a file of that name in the directory that `CREDENTIALS_DIRECTORY` names.
    /// `bulkhead secret set` gives them their values.
    #[serde(default)]
    pub secrets: BTreeSet<SecretName>,
    /// How to tell that it is well.
    #[serde(default)]
    pub health: HealthSection,
    /// Named data that outlives releases: volume = directory in the image's tree.
    /// A service with a volume never runs twice at once: in a deploy the old one stops
    /// before the new one starts, and its clients wait for that long.
    #[serde(default)]
    pub volumes: BTreeMap<VolumeName, AbsolutePath>,
    /// The most memory it may use, such as `256M` or `2G`.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// The most processes and threads it may have.
    #[serde(default)]
    pub tasks: Option<u32>,
    /// The most CPU time, in hundredths of one core: 150 is one and a half cores.
    #[serde(default)]
    pub cpu_percent: Option<u32>,
    /// Whether it may make memory executable. Needed by just-in-time compilers;
    /// by default true for `node`, `java`, `dotnet`, `deno`, `bun`, false for all else.
    #[serde(default)]
    pub jit: Option<bool>,
    /// How long running requests may take to finish after new ones go to the next release.
    #[serde(default)]
    pub drain: Option<Seconds>,
    /// How long it may take to stop after SIGTERM, before SIGKILL.
    #[serde(default)]
    pub stop: Option<Seconds>,
}

/// How to tell that a service is well. At most one of `http` and `tcp`; with
/// neither, a service with a port must listen on it and one without must stay up.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HealthSection {
    /// A path that must answer a GET with a status from 200 to 399, such as `/health`.
    #[serde(default)]
    pub http: Option<String>,
    /// Whether accepting connections on the port is enough.
    #[serde(default)]
    pub tcp: Option<bool>,
    /// How long the service may take to become healthy (default `30s`).
    #[serde(default)]
    pub within: Option<Seconds>,
}

/// What differs in one environment.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EnvironmentSection {
    /// Environment variables for every service, over those of the service.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The nodes that run this app; by default all of the environment.
    #[serde(default)]
    pub nodes: Option<Vec<NodeName>>,
    /// What differs for one service.
    #[serde(default)]
    pub services: BTreeMap<ServiceName, ServiceOverride>,
}

/// What differs for one service in one environment.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceOverride {
    /// Environment variables, over all others.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// As in the service.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// As in the service.
    #[serde(default)]
    pub tasks: Option<u32>,
    /// As in the service.
    #[serde(default)]
    pub cpu_percent: Option<u32>,
}

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Port(#[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))] pub u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(Self(port)),
            _ => Err(serde::de::Error::custom(format!("port {number} is out of range: 1 to 65535"))),
        }
    }
}

/// A clean absolute path: no `.`, `..`, empty component or control character.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AbsolutePath(pub String);

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if is_clean_absolute(&text) {
            Ok(Self(text))
        } else {
            Err(serde::de::Error::custom(format!(
                "`{text}` is not a clean absolute path: start with `/`, no `.`, `..`, `//`, no trailing `/`"
            )))
        }
    }
}

/// Whether a text is an absolute path in one plain spelling, fit for a unit file.
#[must_use]
pub fn is_clean_absolute(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else { return false };
    text.len() < 4096
        && !text.chars().any(|c| c.is_control() || matches!(c, ':' | '\\' | '"' | '\'' | '%'))
        && rest.split('/').all(|component| !matches!(component, "" | "." | ".."))
}

/// A size such as `64K`, `256M` or `2G` (powers of 1024), or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad = || serde::de::Error::custom(format!("`{text}` is not a size: write `64K`, `256M` or `2G`"));
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K') => (&text[..text.len() - 1], 10),
            Some(b'M') => (&text[..text.len() - 1], 20),
            Some(b'G') => (&text[..text.len() - 1], 30),
            _ => (text.as_str(), 0),
        };
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes >= 1 << 20).map(Self).ok_or_else(bad)
    }
}

/// A duration such as `500ms`, `10s` or `2m`, kept in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub u32);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad = || {
            serde::de::Error::custom(format!("`{text}` is not a duration up to 1 hour: write `500ms`, `10s` or `2m`"))
        };
        let (digits, unit_ms) = if let Some(digits) = text.strip_suffix("ms") {
            (digits, 1)
        } else if let Some(digits) = text.strip_suffix('s') {
            (digits, 1000)
        } else if let Some(digits) = text.strip_suffix('m') {
            (digits, 60_000)
        } else {
            return Err(bad());
        };
        let number: u32 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(unit_ms).filter(|ms| *ms <= 3_600_000).map(Self).ok_or_else(bad)
    }
}

#[cfg(feature = "schema")]
mod schema {
    use super::{ByteSize, Seconds};
    macro_rules! text_schema {
        ($type:ident, $pattern:literal, $what:literal) => {
            impl schemars::JsonSchema for $type {
                fn schema_name() -> std::borrow::Cow<'static, str> {
                    stringify!($type).into()
                }
                fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                    schemars::json_schema!({"type": "string", "pattern": $pattern, "description": $what})
                }
            }
        };
    }
    text_schema!(ByteSize, "^[0-9]+[KMG]?$", "A size such as `256M` or `2G`, at least `1M`.");
    text_schema!(Seconds, "^[0-9]+(ms|s|m)$", "A duration such as `500ms`, `10s` or `2m`, at most one hour.");
}

/// Why a text is not a manifest: one message with line, column and the line itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ManifestError {
    /// The line it is about, from 1, where there is one.
    pub line: Option<usize>,
    /// What is wrong, with the text around it.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ManifestError {
    fn plain(message: String) -> Self {
        Self { line: None, message, hint: None }
    }
}

impl From<toml::de::Error> for ManifestError {
    fn from(error: toml::de::Error) -> Self {
        unknown_key_hint(error, None)
    }
}

/// serde writes ``unknown field `x`, expected one of `a`, `b` ``; the nearest of those is the hint. A number where text is
/// wanted lacks quotes.
fn unknown_key_hint(error: toml::de::Error, text: Option<&str>) -> ManifestError {
    let message = error.message().to_owned();
    let mut words = message.split('`').skip(1).step_by(2);
    let is_number = ["integer", "floating point"].iter().any(|kind| message.contains(&format!("invalid type: {kind}")));
    let hint = match (message.starts_with("unknown "), words.next()) {
        (true, Some(unknown)) => nearest(unknown, words).map(|known| format!("did you mean `{known}`?")),
        (false, Some(number)) if is_number && message.ends_with("expected a string") => {
            Some(format!("write it in quotes: `\"{number}\"`"))
        }
        _ => None,
    };
    let line = match (text, error.span()) {
        (Some(text), Some(span)) => Some(text[..span.start.min(text.len())].matches('\n').count() + 1),
        _ => None,
    };
    ManifestError { line, message: error.to_string().trim_end().to_owned(), hint }
}

/// Parses any of the product's TOML files with errors of this module's shape.
///
/// # Errors
/// Where and why the text is not a `T`.
pub fn parse_toml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, ManifestError> {
    toml::from_str(text).map_err(|error| unknown_key_hint(error, Some(text)))
}

/// What a program needs to be allowed to make memory executable by default.
const JIT_RUNTIMES: &[&str] = &["node", "nodejs", "java", "dotnet", "deno", "bun"];

/// The most services of one app, and the most arguments and variables of one
/// service: what an order can hold with room to spare.
const SERVICES_MAX: usize = 64;

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// The first thing that is wrong, with line and column.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self = parse_toml(text)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.services.is_empty() || self.services.len() > SERVICES_MAX {
            return Err(ManifestError::plain(format!("[services]: an app has 1 to {SERVICES_MAX} services")));
        }
        for (name, service) in &self.services {
            let refuse = |what: &str| Err(ManifestError::plain(format!("[services.{name}]: {what}")));
            if service.command.is_empty() || service.command[0].is_empty() {
                return refuse("`command` names no program");
            }
            if service.health.http.is_some() && service.health.tcp.is_some() {
                return refuse("`health` has both `http` and `tcp`: choose one");
            }
            if (service.health.http.is_some() || service.health.tcp == Some(true)) && service.port.is_none() {
                return refuse("a health check over `http` or `tcp` needs `port`");
            }
            if service.health.http.as_deref().is_some_and(|path| !path.starts_with('/')) {
                return refuse("`health.http` is a path and starts with `/`");
            }
        }
        for (environment, section) in &self.environments {
            for name in section.services.keys() {
                if !self.services.contains_key(name) {
                    let mut error = ManifestError::plain(format!(
                        "[environments.{environment}.services.{name}]: the app has no service `{name}`"
                    ));
                    error.hint = nearest(name.as_str(), self.services.keys().map(ServiceName::as_str))
                        .map(|known| format!("did you mean `{known}`?"));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The services as they are to run in an environment, as an order states them.
    #[must_use]
    pub fn services_in(&self, environment: &EnvironmentName) -> Vec<ServiceSpec> {
        let nothing = EnvironmentSection::default();
        let section = self.environments.get(environment).unwrap_or(&nothing);
        self.services.iter().map(|(name, service)| self.service_spec(name, service, section)).collect()
    }

    fn service_spec(&self, name: &ServiceName, service: &ServiceSection, section: &EnvironmentSection) -> ServiceSpec {
        let nothing = ServiceOverride::default();
        let over = section.services.get(name).unwrap_or(&nothing);
        let mut env = service.env.clone();
        env.extend(section.env.clone());
        env.extend(over.env.clone());
        let program = service.command[0].rsplit('/').next().unwrap_or_default();
        let check = match (&service.health.http, service.health.tcp, service.port) {
            (Some(path), _, _) => HealthCheck::Http { path: path.clone() },
            (None, _, Some(_)) => HealthCheck::Tcp,
            (None, _, None) => HealthCheck::StaysUp,
        };
        ServiceSpec {
            name: name.clone(),
            command: service.command.clone(),
            workdir: service.workdir.clone().unwrap_or_else(|| self.image.to.clone()).0,
            env,
            port: service.port.map(|port| port.0),
            health: Health { check, within_ms: service.health.within.map_or(30_000, |s| s.0) },
            volumes: service
                .volumes
                .iter()
                .map(|(name, path)| VolumeMount { name: name.clone(), path: path.0.clone() })
                .collect(),
            memory_max_bytes: over.memory.or(service.memory).map(|size| size.0),
            tasks_max: over.tasks.or(service.tasks),
            cpu_percent: over.cpu_percent.or(service.cpu_percent),
            jit: service.jit.unwrap_or_else(|| JIT_RUNTIMES.contains(&program)),
            drain_ms: service.drain.map_or(10_000, |s| s.0),
            stop_ms: service.stop.map_or(10_000, |s| s.0),
            secrets: service.secrets.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        app = "notes"
        [image]
        packages = ["nodejs"]
        [services.web]
        command = ["node", "server.js"]
        port = 3000
        memory = "256M"
        env = { A = "service", B = "service", C = "service" }
        health = { http = "/health", within = "5s" }
        volumes = { data = "/var/lib/notes" }
        [environments.production]
        env = { B = "environment", C = "environment" }
        [environments.production.services.web]
        env = { C = "both" }
        memory = "1G"
    "#;

    #[test]
    fn settings_of_an_environment() {
        let manifest = Manifest::parse(GOOD).unwrap();
        let staging = &manifest.services_in(&"staging".parse().unwrap())[0];
        let production = &manifest.services_in(&"production".parse().unwrap())[0];
        assert_eq!(staging.memory_max_bytes, Some(256 << 20));
        assert_eq!(production.memory_max_bytes, Some(1 << 30));
        assert_eq!(staging.env.values().collect::<Vec<_>>(), ["service"; 3]);
        assert_eq!(production.env.values().collect::<Vec<_>>(), ["service", "environment", "both"]);
        assert!(staging.jit);
        assert_eq!(staging.workdir, "/app");
        assert_eq!(staging.health.within_ms, 5000);
    }

    #[test]
    fn what_is_refused() {
        let check = |text: &str, line: Option<usize>, message: &str, hint: Option<&str>| {
            let error = Manifest::parse(text).unwrap_err();
            assert!(error.message.contains(message), "{error}");
            assert_eq!((error.line, error.hint.as_deref()), (line, hint), "{error}");
        };
        let service = "app = \"a\"\n[services.web]\n";
        check(&format!("{service}comand = []"), Some(3), "unknown field `comand`", Some("did you mean `command`?"));
        check(&format!("{service}command = \"node\""), Some(3), "expected a sequence", None);
        check(&format!("{service}command = [\"a\"]\nport = 70000"), Some(4), "port 70000 is out of range", None);
        check(&format!("{service}command = [\"a\"]\nmemory = \"lots\""), Some(4), "not a size", None);
        check(&format!("{service}command = [\"a\"]\nworkdir = \"app\""), Some(4), "clean absolute path", None);
        check(&format!("{service}command = [\"a\"]\n[services.web]\n"), Some(4), "duplicate key", None);
        check(&format!("{service}command = [\"a\"]\nhealth.http = \"/\""), None, "needs `port`", None);
        check("app = \"My App\"\n[services]\n", Some(1), "not a name of an app", None);
        check(&format!("{service}command=[]"), None, "names no program", None);
        let unknown = format!("{service}command=[\"a\"]\n[environments.x.services.wep]\n");
        check(&unknown, None, "no service `wep`", Some("did you mean `web`?"));
    }
}
