//! `~/.ssh/config`, as far as it says how to reach a host (ssh_config(5)).
//!
//! Understood: `Host` and `Match` blocks (`all`, `host`, `originalhost`, `user`),
//! `Include`, `HostName`, `Port`, `User`, `IdentityFile`, `IdentitiesOnly`,
//! `IdentityAgent`, `ProxyJump`, `ProxyCommand`, `UserKnownHostsFile`,
//! `GlobalKnownHostsFile`, `HostKeyAlias`, `ConnectTimeout`. Every other keyword
//! is skipped. As in OpenSSH the first value found counts; `IdentityFile` adds up.
//!
//! `StrictHostKeyChecking` is skipped on purpose: host keys are always checked
//! strictly here.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A configuration that includes deeper than this includes itself.
const INCLUDE_DEPTH_MAX: usize = 16;
/// No person writes a longer file; a device or pipe would never end.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// Why a configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line that makes no sense.
    #[error("{path}:{line}: {what}", path = path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// A read configuration: the person's first, then the system's.
#[derive(Debug, Clone, Default)]
pub struct SshConfig {
    home: PathBuf,
    /// One value per directive, in the order read.
    directives: Vec<Directive>,
}

#[derive(Debug, Clone)]
struct Directive {
    /// All of these must match for the directive to count (blocks around an `Include` and the block it is in).
    blocks: Vec<Block>,
    setting: Setting,
}

#[derive(Debug, Clone)]
enum Setting {
    HostName(String),
    Port(u16),
    User(String),
    IdentityFile(String),
    IdentitiesOnly(bool),
    IdentityAgent(String),
    ProxyJump(String),
    ProxyCommand(String),
    UserKnownHosts(Vec<String>),
    GlobalKnownHosts(Vec<String>),
    HostKeyAlias(String),
    ConnectTimeout(u64),
}

#[derive(Debug, Clone)]
enum Block {
    Host(Vec<String>),
    Match(Vec<Criterion>),
}

#[derive(Debug, Clone)]
enum Criterion {
    All,
    Host(String),
    OriginalHost(String),
    User(String),
    /// A criterion that this reader does not evaluate: the block does not count.
    Never,
}

/// What a configuration says about one host. Texts are as written, tokens not yet replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// `HostName`.
    pub host_name: Option<String>,
    /// `Port`.
    pub port: Option<u16>,
    /// `User`, from any block.
    pub user: Option<String>,
    /// `User`, from a block that names this host by more than `*`.
    pub explicit_user: Option<String>,
    /// `IdentityFile`, all of them.
    pub identity_files: Vec<String>,
    /// `IdentitiesOnly`.
    pub identities_only: bool,
    /// `IdentityAgent`.
    pub identity_agent: Option<String>,
    /// `ProxyJump`; `none` is told apart from absent.
    pub proxy_jump: Option<String>,
    /// `ProxyCommand`.
    pub proxy_command: Option<String>,
    /// `UserKnownHostsFile`.
    pub user_known_hosts: Option<Vec<String>>,
    /// `GlobalKnownHostsFile`.
    pub global_known_hosts: Option<Vec<String>>,
    /// `HostKeyAlias`.
    pub host_key_alias: Option<String>,
    /// `ConnectTimeout`, in seconds.
    pub connect_timeout_s: Option<u64>,
}

impl SshConfig {
    /// Reads `HOME/.ssh/config` and the system's configuration. A missing file is an empty one.
    ///
    /// # Errors
    /// A file that cannot be read, or a line that makes no sense.
    pub fn load(home: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::empty(home);
        let user_directory = home.join(".ssh");
        config.read_file(&user_directory.join("config"), &user_directory, &[], 0)?;
        let system = system_directory();
        config.read_file(&system.join("ssh_config"), &system, &[], 0)?;
        Ok(config)
    }

    /// A configuration that says nothing.
    #[must_use]
    pub fn empty(home: &Path) -> Self {
        Self { home: home.to_owned(), directives: Vec::new() }
    }

    /// Reads a configuration from text alone; `path` is for messages and relative includes.
    ///
    /// # Errors
    /// A line that makes no sense, or an included file that cannot be read.
    pub fn parse(text: &str, path: &Path, home: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::empty(home);
        config.read_text(text, path, path.parent().unwrap_or(home), &[], 0)?;
        Ok(config)
    }

    /// The person's home directory, for `~`.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    fn read_file(&mut self, path: &Path, base: &Path, around: &[Block], depth: usize) -> Result<(), ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(read(error)),
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Ok(metadata) if metadata.len() > FILE_MAX_BYTES => {
                return Err(read(io::Error::other("longer than 4 MiB")));
            }
            Ok(_) => fs::read(path).map_err(read)?,
        };
        self.read_text(&String::from_utf8_lossy(&text), path, base, around, depth)
    }

    fn read_text(
        &mut self,
        text: &str,
        path: &Path,
        base: &Path,
        around: &[Block],
        depth: usize,
    ) -> Result<(), ConfigError> {
        let mut blocks = around.to_vec();
        for (index, line) in text.lines().enumerate() {
            let bad = |what: String| ConfigError::Line { path: path.to_owned(), line: index + 1, what };
            let Some((keyword, rest)) = split_keyword(line) else { continue };
            // ProxyCommand takes the rest of the line as it stands, for the shell.
            if keyword == "proxycommand" {
                let setting = Setting::ProxyCommand(rest.to_owned());
                self.directives.push(Directive { blocks: blocks.clone(), setting });
                continue;
            }
            if !KEYWORDS.contains(&keyword.as_str()) {
                continue;
            }
            let words = split_words(rest).ok_or_else(|| bad("a quotation mark is not closed".into()))?;
            let one = || words.first().cloned().ok_or_else(|| bad(format!("`{keyword}` needs a value")));
            let setting = match keyword.as_str() {
                "host" | "match" => {
                    one()?;
                    blocks.truncate(around.len());
                    blocks.push(if keyword == "host" { Block::Host(words) } else { Block::Match(criteria(&words)) });
                    continue;
                }
                "include" => {
                    if depth >= INCLUDE_DEPTH_MAX {
                        return Err(bad(format!("includes nest deeper than {INCLUDE_DEPTH_MAX}; is there a circle?")));
                    }
                    for pattern in &words {
                        let pattern = self.expand_home(pattern);
                        for file in glob(&base.join(pattern)) {
                            self.read_file(&file, base, &blocks, depth + 1)?;
                        }
                    }
                    continue;
                }
                "hostname" => Setting::HostName(one()?),
                "port" => {
                    let text = one()?;
                    let port = text.parse().ok().filter(|port| *port != 0);
                    Setting::Port(port.ok_or_else(|| bad(format!("`{text}` is not a port")))?)
                }
                "user" => Setting::User(one()?),
                "identityfile" => Setting::IdentityFile(one()?),
                "identitiesonly" => Setting::IdentitiesOnly(["yes", "true"].contains(&one()?.as_str())),
                "identityagent" => Setting::IdentityAgent(one()?),
                "proxyjump" => Setting::ProxyJump(one()?),
                "userknownhostsfile" => Setting::UserKnownHosts(words),
                "globalknownhostsfile" => Setting::GlobalKnownHosts(words),
                "hostkeyalias" => Setting::HostKeyAlias(one()?),
                "connecttimeout" => match one()?.parse() {
                    Ok(seconds) => Setting::ConnectTimeout(seconds),
                    Err(_) => continue,
                },
                _ => continue,
            };
            self.directives.push(Directive { blocks: blocks.clone(), setting });
        }
        Ok(())
    }

    /// What is said about a host, by the name a person gave. `user` is for `Match user`.
    #[must_use]
    pub fn lookup(&self, host: &str, user: &str) -> HostSettings {
        let mut found = HostSettings::default();
        let mut identities_only = None;
        for directive in &self.directives {
            // `Match host` sees the name as `HostName` made it so far.
            let current = found.host_name.as_deref().map_or(host.to_owned(), |name| name.replace("%h", host));
            if !directive.blocks.iter().all(|block| block.matches(host, &current, user)) {
                continue;
            }
            match &directive.setting {
                Setting::HostName(name) => first(&mut found.host_name, name),
                Setting::Port(port) => first(&mut found.port, port),
                Setting::User(name) => {
                    first(&mut found.user, name);
                    if directive.blocks.iter().any(|block| block.names(host)) {
                        first(&mut found.explicit_user, name);
                    }
                }
                Setting::IdentityFile(file) if file.eq_ignore_ascii_case("none") => {}
                Setting::IdentityFile(file) => found.identity_files.push(file.clone()),
                Setting::IdentitiesOnly(only) => first(&mut identities_only, only),
                Setting::IdentityAgent(agent) => first(&mut found.identity_agent, agent),
                // Of the two, whichever comes first rules the other out.
                Setting::ProxyJump(jump) if found.proxy_command.is_none() => first(&mut found.proxy_jump, jump),
                Setting::ProxyCommand(command) if found.proxy_jump.is_none() => {
                    first(&mut found.proxy_command, command);
                }
                Setting::ProxyJump(_) | Setting::ProxyCommand(_) => {}
                Setting::UserKnownHosts(files) => first(&mut found.user_known_hosts, files),
                Setting::GlobalKnownHosts(files) => first(&mut found.global_known_hosts, files),
                Setting::HostKeyAlias(alias) => first(&mut found.host_key_alias, alias),
                Setting::ConnectTimeout(seconds) => first(&mut found.connect_timeout_s, seconds),
            }
        }
        found.identities_only = identities_only.unwrap_or(false);
        found
    }

    /// `~` and `~/…` at the start of a path.
    #[must_use]
    pub fn expand_home(&self, text: &str) -> PathBuf {
        if text == "~" {
            return self.home.clone();
        }
        match text.strip_prefix("~/").or_else(|| text.strip_prefix("~\\")) {
            Some(rest) => self.home.join(rest),
            None => PathBuf::from(text),
        }
    }
}

fn first<T: Clone>(slot: &mut Option<T>, value: &T) {
    if slot.is_none() {
        *slot = Some(value.clone());
    }
}

const KEYWORDS: [&str; 14] = [
    "host",
    "match",
    "include",
    "hostname",
    "port",
    "user",
    "identityfile",
    "identitiesonly",
    "identityagent",
    "proxyjump",
    "userknownhostsfile",
    "globalknownhostsfile",
    "hostkeyalias",
    "connecttimeout",
];

impl Block {
    fn matches(&self, original: &str, current: &str, user: &str) -> bool {
        match self {
            Self::Host(patterns) => patterns_match(patterns.iter().map(String::as_str), original),
            Self::Match(criteria) => criteria.iter().all(|criterion| match criterion {
                Criterion::All => true,
                Criterion::Host(list) => patterns_match(list.split(','), current),
                Criterion::OriginalHost(list) => patterns_match(list.split(','), original),
                Criterion::User(list) => patterns_match(list.split(','), user),
                Criterion::Never => false,
            }),
        }
    }

    /// Whether a pattern that says something about the host's name matched.
    fn names(&self, host: &str) -> bool {
        let says = |pattern: &str| pattern.chars().any(|c| c != '*' && c != '?') && wildcard(pattern, host);
        match self {
            Self::Host(patterns) => patterns.iter().any(|pattern| says(pattern)),
            Self::Match(criteria) => criteria.iter().any(|criterion| match criterion {
                Criterion::Host(list) | Criterion::OriginalHost(list) => list.split(',').any(says),
                _ => false,
            }),
        }
    }
}

/// ssh_config(5), PATTERNS: one positive pattern matches and no negated one does.
fn patterns_match<'a>(patterns: impl Iterator<Item = &'a str>, text: &str) -> bool {
    let mut positive = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(negated) if wildcard(negated, text) => return false,
            Some(_) => {}
            None => positive |= wildcard(pattern, text),
        }
    }
    positive
}

/// `*` for any run of characters, `?` for one; letters of either case.
#[must_use]
pub fn wildcard(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.to_lowercase().chars().collect();
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            // The last star takes one character more.
            _ => match retry {
                Some((star, taken)) => {
                    retry = Some((star, taken + 1));
                    p = star + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

fn criteria(words: &[String]) -> Vec<Criterion> {
    let mut words = words.iter();
    let mut out = Vec::new();
    while let Some(word) = words.next() {
        out.push(match word.to_lowercase().as_str() {
            "all" => Criterion::All,
            "host" => words.next().map_or(Criterion::Never, |list| Criterion::Host(list.clone())),
            "originalhost" => words.next().map_or(Criterion::Never, |list| Criterion::OriginalHost(list.clone())),
            "user" => words.next().map_or(Criterion::Never, |list| Criterion::User(list.clone())),
            _ => return vec![Criterion::Never],
        });
    }
    out
}

/// `Keyword value`, `Keyword = value`; `None` for comments and empty lines.
fn split_keyword(line: &str) -> Option<(String, &str)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let rest = line[end..].trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    Some((line[..end].to_lowercase(), rest))
}

/// Words, where quotation marks keep blanks together; `#` at a word's start begins a comment.
fn split_words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if characters.peek().is_some_and(|next| *next == '"' || *next == '\\') => {
                word.get_or_insert_default().extend(characters.next());
            }
            '#' if !quoted && word.is_none() => break,
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

/// Files that a path with wildcards in its last part names, sorted. Without wildcards: the path itself.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let Some(name) = pattern.file_name().map(|name| name.to_string_lossy().into_owned()) else { return Vec::new() };
    if !name.contains(['*', '?']) {
        return vec![pattern.to_owned()];
    }
    let Some(directory) = pattern.parent() else { return Vec::new() };
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let entry_name = entry.file_name().to_string_lossy().into_owned();
            (!entry_name.starts_with('.') || name.starts_with('.')) && wildcard(&name, &entry_name)
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

fn system_directory() -> PathBuf {
    if cfg!(windows) {
        std::env::var_os("ProgramData").map_or_else(|| "C:\\ProgramData".into(), PathBuf::from).join("ssh")
    } else {
        "/etc/ssh".into()
    }
}

/// Where the system keeps known host keys.
#[must_use]
pub fn system_known_hosts() -> PathBuf {
    system_directory().join("ssh_known_hosts")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(text: &str, host: &str) -> HostSettings {
        SshConfig::parse(text, Path::new("/h/.ssh/config"), Path::new("/h")).unwrap().lookup(host, "me")
    }

    #[test]
    fn the_first_value_counts_and_files_add_up() {
        let text = "
            # comment
            Host web-? !web-9
              HostName=%h.example.org
              Port 2222
              User deploy
              IdentityFile \"~/my keys/a\"
            Host *
              Port = 99
              User nobody
              IdentityFile ~/.ssh/b # trailing comment
              IdentitiesOnly yes
              ForwardAgent yes
              ProxyJump bastion";
        let web = lookup(text, "web-1");
        assert_eq!(web.host_name.as_deref(), Some("%h.example.org"));
        assert_eq!(
            (web.port, web.user.as_deref(), web.explicit_user.as_deref()),
            (Some(2222), Some("deploy"), Some("deploy"))
        );
        assert_eq!(web.identity_files, ["~/my keys/a", "~/.ssh/b"]);
        assert!(web.identities_only);
        assert_eq!(web.proxy_jump.as_deref(), Some("bastion"));
        let other = lookup(text, "web-9");
        assert_eq!((other.port, other.user.as_deref(), other.explicit_user), (Some(99), Some("nobody"), None));
    }

    #[test]
    fn blocks() {
        for (block, host, applies) in [
            ("Host a b", "b", true),
            ("Host a b", "c", false),
            ("Host *.example.org", "x.EXAMPLE.org", true),
            ("Host * !x", "x", false),
            ("Match all", "x", true),
            ("Match host a,x*", "xy", true),
            ("Match host a,x*,!xy", "xy", false),
            ("Match originalhost x user me", "x", true),
            ("Match originalhost x user you", "x", false),
            ("Match exec \"true\"", "x", false),
            ("Match host x exec \"true\"", "x", false),
            ("Match final all", "x", false),
        ] {
            let port = lookup(&format!("{block}\n Port 7"), host).port;
            assert_eq!(port.is_some(), applies, "{block} / {host}");
        }
    }

    #[test]
    fn jump_and_command_rule_each_other_out() {
        let found = lookup("ProxyJump a\nProxyCommand nc %h %p", "x");
        assert_eq!((found.proxy_jump.as_deref(), found.proxy_command), (Some("a"), None));
        let found = lookup("ProxyCommand  nc \"%h\" %p\nProxyJump a", "x");
        assert_eq!((found.proxy_jump, found.proxy_command.as_deref()), (None, Some("nc \"%h\" %p")));
    }

    #[test]
    fn includes_keep_the_block_around_them() {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        fs::create_dir_all(ssh.join("conf.d")).unwrap();
        fs::write(ssh.join("conf.d/1.conf"), "Port 1\nHost *\nUser one\n").unwrap();
        fs::write(ssh.join("conf.d/2.conf"), "Port 2\n").unwrap();
        fs::write(ssh.join("config"), "Host a\n Include conf.d/*.conf ~/.ssh/missing\nHost *\n HostName later\n")
            .unwrap();
        let config = SshConfig::load(home.path()).unwrap();
        let a = config.lookup("a", "me");
        assert_eq!((a.port, a.user.as_deref(), a.host_name.as_deref()), (Some(1), Some("one"), Some("later")));
        let b = config.lookup("b", "me");
        assert_eq!((b.port, b.user, b.host_name.as_deref()), (None, None, Some("later")));
    }

    #[test]
    fn what_is_refused_names_file_and_line() {
        let refuse =
            |text: &str| SshConfig::parse(text, Path::new("/h/.ssh/config"), Path::new("/h")).unwrap_err().to_string();
        assert_eq!(refuse("\nPort ninety"), "/h/.ssh/config:2: `ninety` is not a port");
        assert_eq!(refuse("HostName \"x"), "/h/.ssh/config:1: a quotation mark is not closed");
        assert_eq!(refuse("Host"), "/h/.ssh/config:1: `host` needs a value");
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        fs::write(home.path().join(".ssh/config"), "Include config").unwrap();
        assert!(SshConfig::load(home.path()).unwrap_err().to_string().contains("circle"));
    }

    #[test]
    fn wildcards() {
        for (pattern, text, matches) in
            [("*", "", true), ("a*b*c", "aXbYbZc", true), ("a*b*c", "ab", false), ("?", "", false), ("**", "x", true)]
        {
            assert_eq!(wildcard(pattern, text), matches, "{pattern} {text}");
        }
    }
}
