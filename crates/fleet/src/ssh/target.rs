//! A node as an SSH target: what `fleet.toml` says, completed by `~/.ssh/config`.

use crate::{
    config::{SshConfig, system_known_hosts},
    identity::{Hints, decode_key, fingerprint},
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bulkhead_core::{NodeName, fleet::FleetNode};
use bulkhead_wire::ACCOUNT;
use std::{path::PathBuf, str::FromStr};

/// A chain of jump hosts longer than this jumps in a circle.
const JUMPS_MAX: usize = 8;
const SSH_PORT: u16 = 22;

/// Why a node cannot be turned into a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The address is no address.
    #[error("node {node}: `{address}` is not a host name or address")]
    Address {
        /// Which node.
        node: NodeName,
        /// What `fleet.toml` says.
        address: String,
    },
    /// The `host_key` in `fleet.toml` is not a public key.
    #[error("node {node}: `host_key` in fleet.toml is not a public key (expected `ssh-ed25519 AAAA…`)")]
    HostKey {
        /// Which node.
        node: NodeName,
    },
    /// `ProxyJump` makes no sense.
    #[error("node {node}: `ProxyJump {jump}` in ~/.ssh/config: {what}")]
    Jump {
        /// Which node.
        node: NodeName,
        /// What the configuration says.
        jump: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A host to connect to, with everything that decides how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The node's name; jump hosts on the way to it carry it too.
    pub node: NodeName,
    /// Host name or address that is connected to.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The account.
    pub user: String,
    /// Jump hosts on the way, the nearest first.
    pub via: Vec<Target>,
    /// A command whose standard input and output lead to the host, run by the shell.
    pub proxy_command: Option<String>,
    pub(crate) trust: HostTrust,
    pub(crate) hints: Hints,
}

/// How the host proves that it is the one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostTrust {
    /// It shows exactly this key (`fleet.toml`).
    Pinned { blob: Vec<u8> },
    /// It shows the key that a person named.
    Given(HostKey),
    /// It shows a key that these files hold under this name.
    Known { files: Vec<PathBuf>, name: String, port: u16 },
}

/// A host's key as a person names it: by its fingerprint, which says as much as the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    fingerprint: String,
}

/// What was given names no host key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyError {
    /// It is neither.
    #[error("expected a fingerprint (`SHA256:…`) or a public key (`ssh-ed25519 AAAA…`)")]
    Neither,
    /// MD5 can be forged.
    #[error("this is an MD5 fingerprint, which can be forged; `ssh-keygen -l -E sha256` prints one that cannot")]
    Md5,
}

impl HostKey {
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl FromStr for HostKey {
    type Err = HostKeyError;

    /// Reads a public key's line, a bare fingerprint, or the line that `ssh-keygen -l` prints.
    fn from_str(text: &str) -> Result<Self, HostKeyError> {
        let mut words = text.split_whitespace();
        if let Some(hash) = words.clone().find_map(|word| word.strip_prefix("SHA256:")) {
            let hash = hash.trim_end_matches('=');
            return match STANDARD_NO_PAD.decode(hash) {
                Ok(bytes) if bytes.len() == 32 => Ok(Self { fingerprint: format!("SHA256:{hash}") }),
                _ => Err(HostKeyError::Neither),
            };
        }
        let is_md5 = |word: &str| word.starts_with("MD5:") || word.split(':').count() == 16;
        if words.clone().any(is_md5) {
            return Err(HostKeyError::Md5);
        }
        let named = words.next().is_some_and(|kind| kind.starts_with("ssh-") || kind.starts_with("ecdsa-"));
        let blob = if named { words.next().and_then(decode_key) } else { None };
        blob.map(|blob| Self { fingerprint: fingerprint(&blob) }).ok_or(HostKeyError::Neither)
    }
}

impl Target {
    /// `host:port`, for messages.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Resolves a node for its couriers' account. A block of `~/.ssh/config` that names the host by more than `*` may
/// say another one.
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve(name: &NodeName, node: &FleetNode, config: &SshConfig) -> Result<Target, ResolveError> {
    resolve_as(name, node, config, ACCOUNT)
}

/// Likewise for another of a node's accounts.
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve_as(
    name: &NodeName,
    node: &FleetNode,
    config: &SshConfig,
    account: &str,
) -> Result<Target, ResolveError> {
    let address = node.address.trim();
    let bad = || ResolveError::Address { node: name.clone(), address: node.address.clone() };
    // A leading hyphen or blank would mean something to a proxy command's shell.
    if address.is_empty() || address.starts_with('-') || !address.chars().all(is_host_character) {
        return Err(bad());
    }
    let settings = config.lookup(address, account);
    let named = settings.explicit_user.clone().filter(|user| account == ACCOUNT || !user.starts_with(ACCOUNT));
    let user = named.unwrap_or_else(|| account.to_owned());
    // `fleet.toml` is the team's word and goes before one person's configuration.
    let mut target = endpoint(name, config, address, Some(user), node.port, 0)?;
    if let Some(line) = &node.host_key {
        let blob = decode_key(line).ok_or_else(|| ResolveError::HostKey { node: name.clone() })?;
        target.trust = HostTrust::Pinned { blob };
    }
    Ok(target)
}

/// Resolves a machine that is not a node yet, with the account that its provider gave. Its key is the one that is
/// given, else one that `known_hosts` knows.
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve_machine(
    name: &NodeName,
    user: Option<&str>,
    host: &str,
    port: Option<u16>,
    host_key: Option<&HostKey>,
    config: &SshConfig,
) -> Result<Target, ResolveError> {
    if host.is_empty() || host.starts_with('-') || !host.chars().all(is_host_character) {
        return Err(ResolveError::Address { node: name.clone(), address: host.to_owned() });
    }
    let mut target = endpoint(name, config, host, user.map(str::to_owned), port, 0)?;
    if let Some(key) = host_key {
        target.trust = HostTrust::Given(key.clone());
    }
    Ok(target)
}

fn is_host_character(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%')
}

fn local_user() -> String {
    ["USER", "LOGNAME", "USERNAME"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default()
}

/// Resolves a host by the name a person gave. `user` and `port` go before what the configuration says.
fn endpoint(
    node: &NodeName,
    config: &SshConfig,
    original: &str,
    user: Option<String>,
    port: Option<u16>,
    depth: usize,
) -> Result<Target, ResolveError> {
    let local = local_user();
    let settings = config.lookup(original, user.as_deref().unwrap_or(&local));
    let host = match &settings.host_name {
        Some(name) => name.replace("%h", original).replace("%%", "%"),
        None => original.to_owned(),
    };
    let port = port.or(settings.port).unwrap_or(SSH_PORT);
    let user = user.or(settings.user.clone()).unwrap_or(local);
    let tokens = Tokens { config, host: &host, original, port, user: &user };
    let path = |text: &String| config.expand_home(&tokens.expand(text));
    let known = |files: &Option<Vec<String>>, default: Vec<PathBuf>| match files {
        Some(files) => files.iter().filter(|file| !file.eq_ignore_ascii_case("none")).map(path).collect(),
        None => default,
    };
    let ssh = config.home().join(".ssh");
    let mut files = known(&settings.user_known_hosts, vec![ssh.join("known_hosts"), ssh.join("known_hosts2")]);
    files.extend(known(&settings.global_known_hosts, vec![system_known_hosts()]));
    // An alias stands for the host on whatever port.
    let (name, known_port) = match &settings.host_key_alias {
        Some(alias) => (alias.clone(), SSH_PORT),
        None => (host.clone(), port),
    };
    let agent = settings.identity_agent.as_ref().filter(|agent| !agent.eq_ignore_ascii_case("SSH_AUTH_SOCK"));
    let agent_off = agent.is_some_and(|agent| agent.eq_ignore_ascii_case("none"));
    let agent = agent.filter(|_| !agent_off).map(|agent| match agent.strip_prefix('$') {
        Some(variable) if !variable.starts_with('{') => std::env::var(variable).unwrap_or_default(),
        _ => path(agent).display().to_string(),
    });
    let hints = Hints {
        files: settings.identity_files.iter().map(path).collect(),
        identities_only: settings.identities_only,
        agent,
        agent_off,
    };
    let via = match &settings.proxy_jump {
        Some(jump) if !jump.eq_ignore_ascii_case("none") => jumps(node, config, jump, depth)?,
        _ => Vec::new(),
    };
    let command = settings.proxy_command.as_ref().filter(|command| !command.eq_ignore_ascii_case("none"));
    let proxy_command = command.map(|command| tokens.expand(command));
    let trust = HostTrust::Known { files, name, port: known_port };
    Ok(Target { node: node.clone(), port, via, proxy_command, trust, hints, user, host })
}

/// `[user@]host[:port]`, several with commas, or as `ssh://` addresses.
fn jumps(node: &NodeName, config: &SshConfig, list: &str, depth: usize) -> Result<Vec<Target>, ResolveError> {
    let bad = |what| ResolveError::Jump { node: node.clone(), jump: list.to_owned(), what };
    if depth >= JUMPS_MAX {
        return Err(bad("more than 8 jumps; is there a circle?"));
    }
    let mut hops: Vec<Target> = Vec::new();
    for text in list.split(',') {
        let text = text.trim();
        let text = text.strip_prefix("ssh://").unwrap_or(text).trim_end_matches('/');
        let (user, place) = match text.rsplit_once('@') {
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, text),
        };
        let (host, port) = split_port(place).ok_or_else(|| bad("expected `[user@]host[:port]`"))?;
        let mut hop = endpoint(node, config, host, user, port, depth + 1)?;
        // The first hop keeps its own way; the others are reached through the one before.
        let way = std::mem::take(&mut hop.via);
        if hops.is_empty() {
            hops = way;
        } else {
            hop.proxy_command = None;
        }
        hops.push(hop);
    }
    if hops.len() > JUMPS_MAX {
        return Err(bad("more than 8 jumps; is there a circle?"));
    }
    Ok(hops)
}

fn split_port(place: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None if place.matches(':').count() == 1 => place.split_once(':').map(|(host, port)| (host, Some(port)))?,
        None => (place, None),
    };
    if host.is_empty() || host.starts_with('-') || !host.chars().all(is_host_character) {
        return None;
    }
    match port {
        Some(text) => Some((host, Some(text.parse().ok().filter(|port| *port != 0)?))),
        None => Some((host, None)),
    }
}

struct Tokens<'a> {
    config: &'a SshConfig,
    host: &'a str,
    original: &'a str,
    port: u16,
    user: &'a str,
}

impl Tokens<'_> {
    /// ssh_config(5), TOKENS and ENVIRONMENT VARIABLES; what is unknown stays as it is.
    fn expand(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['%', '$']) {
            out.push_str(&rest[..at]);
            let tail = &rest[at..];
            if let Some((name, after)) = tail.strip_prefix("${").and_then(|tail| tail.split_once('}')) {
                out.push_str(&std::env::var(name).unwrap_or_default());
                rest = after;
                continue;
            }
            let mut characters = tail.chars();
            let mark = characters.next();
            let token = if mark == Some('%') { characters.next() } else { None };
            match token {
                Some('h' | 'k') => out.push_str(self.host),
                Some('n') => out.push_str(self.original),
                Some('p') => out.push_str(&self.port.to_string()),
                Some('r') => out.push_str(self.user),
                Some('u') => out.push_str(&local_user()),
                Some('d') => out.push_str(&self.config.home().display().to_string()),
                Some('%') => out.push('%'),
                other => {
                    out.extend(mark);
                    out.extend(other);
                }
            }
            rest = characters.as_str();
        }
        out + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO92SB71v5YBUOl3Jy/6mjI8LJJau2i2qR6UXkv6GxqN";

    fn node(address: &str) -> FleetNode {
        FleetNode {
            environment: "staging".parse().unwrap(),
            address: address.into(),
            port: None,
            host_key: None,
            provider: None,
            pool: None,
        }
    }

    fn target(text: &str, node: &FleetNode) -> Result<Target, ResolveError> {
        let config = SshConfig::parse(text, Path::new("/h/.ssh/config"), Path::new("/h")).unwrap();
        resolve(&"web-1".parse().unwrap(), node, &config)
    }

    #[test]
    fn the_account_is_ours_unless_the_host_is_named() {
        for (text, user) in [
            ("", "bulkhead"),
            ("Host *\nUser root", "bulkhead"),
            ("User root", "bulkhead"),
            ("Host web.example.org\nUser root", "root"),
            ("Host *.example.org\nUser root", "root"),
            ("Host other\nUser root", "bulkhead"),
        ] {
            assert_eq!(target(text, &node("web.example.org")).unwrap().user, user, "{text}");
        }
    }

    #[test]
    fn fleet_toml_goes_before_the_configuration() {
        let text = "Host web\nHostName 10.0.0.7\nPort 2222\nIdentityFile ~/k-%h-%p-%r-%n\nUserKnownHostsFile none";
        let plain = target(text, &node("web")).unwrap();
        assert_eq!(plain.address(), "10.0.0.7:2222");
        assert_eq!(plain.hints.files, [PathBuf::from("/h/k-10.0.0.7-2222-bulkhead-web")]);
        assert_eq!(
            plain.trust,
            HostTrust::Known { files: vec![system_known_hosts()], name: "10.0.0.7".into(), port: 2222 }
        );
        let pinned = FleetNode { port: Some(2022), host_key: Some(KEY.into()), ..node("web") };
        let pinned = target(text, &pinned).unwrap();
        assert_eq!(pinned.port, 2022);
        assert_eq!(pinned.trust, HostTrust::Pinned { blob: decode_key(KEY).unwrap() });
    }

    #[test]
    fn jumps_are_followed() {
        let text = "Host web\nProxyJump a,ops@b:2200\nHost a\nProxyJump gate\nUser ann\nHost gate\nHostName gate.example.org\nUser gus";
        let via: Vec<_> = target(text, &node("web")).unwrap().via;
        let via: Vec<_> = via.iter().map(|hop| (hop.user.as_str(), hop.address())).collect();
        assert_eq!(via, [("gus", "gate.example.org:22".into()), ("ann", "a:22".into()), ("ops", "b:2200".into())]);
        assert!(target("Host *\nProxyJump none", &node("web")).unwrap().via.is_empty());
        for jump in ["loop", "a:b:", "user@", "-oProxyCommand=x", "h:0", "h:99999"] {
            let text = format!("ProxyJump {jump}");
            assert!(matches!(target(&text, &node("web")), Err(ResolveError::Jump { .. })), "{jump}");
        }
    }

    #[test]
    fn host_keys_as_people_name_them() {
        let fingerprint = fingerprint(&decode_key(KEY.split(' ').nth(1).unwrap()).unwrap());
        for text in [
            KEY.to_owned(),
            format!("{KEY} root@machine"),
            fingerprint.clone(),
            format!("{fingerprint}="),
            format!("256 {fingerprint} root@machine (ED25519)"),
        ] {
            assert_eq!(text.parse::<HostKey>().unwrap().fingerprint(), fingerprint, "{text}");
        }
        for (text, error) in [
            ("", HostKeyError::Neither),
            ("yes", HostKeyError::Neither),
            ("SHA256:short", HostKeyError::Neither),
            ("ssh-ed25519", HostKeyError::Neither),
            ("ssh-ed25519 !", HostKeyError::Neither),
            ("MD5:16:27:ac:a5:76:28:2d:36:63:1b:56:4d:eb:df:a6:48", HostKeyError::Md5),
            ("2048 16:27:ac:a5:76:28:2d:36:63:1b:56:4d:eb:df:a6:48 root (RSA)", HostKeyError::Md5),
        ] {
            assert_eq!(text.parse::<HostKey>(), Err(error), "{text}");
        }
    }

    #[test]
    fn machines_that_are_no_nodes_yet() {
        let config =
            SshConfig::parse("Host box\nHostName 10.0.0.7\nPort 2222\nUser deb", Path::new("/c"), Path::new("/h"))
                .unwrap();
        let name = "web-1".parse().unwrap();
        let found = |user, host, port| resolve_machine(&name, user, host, port, None, &config).unwrap();
        let shown = |target: Target| (target.user.clone(), target.address());
        assert_eq!(shown(found(Some("root"), "203.0.113.7", None)), ("root".into(), "203.0.113.7:22".into()));
        assert_eq!(shown(found(None, "box", None)), ("deb".into(), "10.0.0.7:2222".into()));
        assert_eq!(shown(found(Some("root"), "box", Some(22))), ("root".into(), "10.0.0.7:22".into()));
        for host in ["", "-oProxyCommand=x", "a b"] {
            assert!(resolve_machine(&name, None, host, None, None, &config).is_err(), "{host}");
        }
    }

    #[test]
    fn proxy_commands_get_their_tokens() {
        let found = target("Host web\nProxyCommand nc %h %p # %% %r ${BULKHEAD_UNSET}.", &node("web")).unwrap();
        assert_eq!(found.proxy_command.as_deref(), Some("nc web 22 # % bulkhead ."));
    }

    #[test]
    fn what_is_no_target() {
        for address in ["", "-oProxyCommand=x", "a b", "a;b", "a`b", "a/b"] {
            assert!(matches!(target("", &node(address)), Err(ResolveError::Address { .. })), "{address}");
        }
        assert_eq!(target("", &node("2001:db8::1")).unwrap().address(), "[2001:db8::1]:22");
        let bad = FleetNode { host_key: Some("ssh-ed25519 !".into()), ..node("web") };
        assert!(matches!(target("", &bad), Err(ResolveError::HostKey { .. })));
    }
}
