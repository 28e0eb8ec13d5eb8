//! What must not be in an image, and what had better not be.
//!
//! An image holds what runs and nothing that helps an intruder on: no shell, no
//! tools, no secrets. What a file *is* counts before what it is called
//! ([`crate::content`]); tools are told by their names.

use crate::{
    content::Kind as Content,
    pattern::Pattern,
    report::{Finding, Rule},
    tree::{FileNode, Kind, Node, Origin, Tree, file_name, parent, shown},
};
use bulkhead_core::{
    image::{COMPONENT_MAX_BYTES, PATH_MAX_BYTES},
    manifest::Platform,
};
use std::collections::BTreeMap;

/// A single file from here on is worth a word.
const LARGE_FILE_BYTES: u64 = 200 << 20;
/// A whole image from here on is worth a word.
const LARGE_IMAGE_BYTES: u64 = 2 << 30;

/// Programs by what they are. Each name is that of an executable file.
const TOOLS: &[(Rule, &str, &[&str])] = &[
    (
        Rule::Shell,
        "is a shell or a tool of one, which a service does not need and an intruder does",
        &[
            "sh",
            "bash",
            "dash",
            "zsh",
            "ksh",
            "mksh",
            "ash",
            "csh",
            "tcsh",
            "fish",
            "rbash",
            "busybox",
            "toybox",
            "coreutils",
            "env",
            "ls",
            "cat",
            "cp",
            "mv",
            "rm",
            "chmod",
            "chown",
            "dd",
            "mkdir",
            "touch",
            "find",
            "xargs",
            "sed",
            "awk",
            "gawk",
            "mawk",
            "grep",
            "egrep",
            "fgrep",
            "tar",
            "su",
            "sudo",
            "mount",
            "umount",
            "chroot",
            "nsenter",
            "unshare",
            "setpriv",
            "id",
            "ps",
            "kill",
            "vi",
            "vim",
            "nano",
            "login",
            "base64",
        ],
    ),
    (
        Rule::Ssh,
        "belongs to SSH, which images do without",
        &["ssh", "sshd", "scp", "sftp", "sftp-server", "ssh-agent", "ssh-add", "ssh-keygen", "ssh-keyscan", "dropbear"],
    ),
    (
        Rule::Compiler,
        "is a compiler or build tool: build before, ship the result",
        &[
            "cc", "gcc", "g++", "c++", "cpp", "clang", "clang++", "tcc", "ld", "ld.bfd", "ld.gold", "ld.lld", "as",
            "ar", "make", "gmake", "cmake", "ninja", "meson", "cargo", "rustc", "javac", "mvn", "gradle", "nasm",
            "yasm", "gfortran",
        ],
    ),
    (
        Rule::PackageManager,
        "is a package manager: an image does not change",
        &[
            "apt",
            "apt-get",
            "aptitude",
            "dpkg",
            "dpkg-deb",
            "rpm",
            "dnf",
            "yum",
            "apk",
            "pacman",
            "snap",
            "flatpak",
            "npm",
            "npx",
            "yarn",
            "yarnpkg",
            "pnpm",
            "pnpx",
            "corepack",
            "bower",
            "pip",
            "pip3",
            "pipx",
            "easy_install",
            "gem",
            "bundle",
            "composer",
            "conda",
        ],
    ),
    (
        Rule::Debugger,
        "is a debugger or tracer: use `bulkhead look` from outside",
        &["gdb", "gdbserver", "lldb", "strace", "ltrace", "perf", "bpftrace", "valgrind", "rr"],
    ),
    (
        Rule::NetworkTool,
        "is a network tool: use `bulkhead look` from outside",
        &[
            "curl",
            "wget",
            "nc",
            "ncat",
            "netcat",
            "nc.openbsd",
            "nc.traditional",
            "socat",
            "telnet",
            "ftp",
            "nmap",
            "tcpdump",
            "tshark",
            "ping",
            "traceroute",
            "dig",
            "nslookup",
            "host",
            "ip",
            "ss",
            "ifconfig",
            "iptables",
            "nft",
            "rsync",
        ],
    ),
];

/// JavaScript packages that are package managers.
const NPM_MANAGERS: &[&[u8]] = &[b"npm", b"corepack", b"yarn", b"pnpm"];
/// Names of `.env` files that hold examples.
const ENV_EXAMPLES: &[&str] = &["example", "sample", "template", "dist", "defaults", "schema"];
const VERSION_CONTROL: &[&[u8]] = &[b".git", b".hg", b".svn", b".bzr", b"CVS"];

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) refused: Vec<Finding>,
    pub(crate) allowed: Vec<Finding>,
    pub(crate) warnings: Vec<Finding>,
}

/// Looks at every path of an image. `app` is where the app's folder lands.
pub(crate) fn lint(tree: &Tree, platform: Platform, app: &[u8]) -> (Vec<Finding>, Vec<Finding>) {
    let mut lint =
        Lint { tree, platform, app, refused: vec![], warnings: vec![], tests: BTreeMap::new(), maps: (0, 0) };
    let mut total_bytes = 0;
    let mut sizes: Vec<(&[u8], u64)> = vec![];
    for (path, node) in tree.iter() {
        lint.look(path, node);
        if let Kind::File(file) = &node.kind {
            total_bytes += file.size_bytes;
            if file.size_bytes >= LARGE_FILE_BYTES {
                sizes.push((path, file.size_bytes));
            }
        }
    }
    for (path, bytes) in sizes {
        lint.warn(Rule::Size, path, format!("is {} MiB large", bytes >> 20));
    }
    if total_bytes >= LARGE_IMAGE_BYTES {
        lint.warn(Rule::Size, b"", format!("the image is {} MiB large", total_bytes >> 20));
    }
    for (path, count) in std::mem::take(&mut lint.tests) {
        lint.warn(Rule::Tests, &path, format!("holds tests ({count} files): exclude it"));
    }
    if lint.maps.0 > 0 {
        let (count, bytes) = lint.maps;
        lint.warn(
            Rule::SourceMap,
            app,
            format!("holds {count} source maps ({} KiB), which show the sources: exclude `*.map`", bytes >> 10),
        );
    }
    (lint.refused, lint.warnings)
}

/// Sorts findings by what the manifest allows.
pub(crate) fn judge(mut findings: Vec<Finding>, mut warnings: Vec<Finding>, allow: &[Pattern]) -> Verdict {
    findings.sort_unstable();
    findings.dedup();
    warnings.sort_unstable();
    warnings.dedup();
    let (allowed, refused) =
        findings.into_iter().partition(|finding| allow.iter().any(|pattern| pattern.covers(finding.path.as_bytes())));
    Verdict { refused, allowed, warnings }
}

struct Lint<'a> {
    tree: &'a Tree,
    platform: Platform,
    app: &'a [u8],
    refused: Vec<Finding>,
    warnings: Vec<Finding>,
    /// Outermost test folder → files in it.
    tests: BTreeMap<Vec<u8>, u64>,
    /// Source maps: count and bytes.
    maps: (u64, u64),
}

impl Lint<'_> {
    fn refuse(&mut self, rule: Rule, path: &[u8], sentence: impl Into<String>) {
        self.refused.push(Finding { rule, path: shown(path), sentence: sentence.into() });
    }

    fn warn(&mut self, rule: Rule, path: &[u8], sentence: impl Into<String>) {
        self.warnings.push(Finding { rule, path: shown(path), sentence: sentence.into() });
    }

    fn look(&mut self, path: &[u8], node: &Node) {
        let name = file_name(path);
        if path.len() > PATH_MAX_BYTES || name.len() > COMPONENT_MAX_BYTES {
            self.refuse(
                Rule::BadName,
                path,
                "has a longer name or path than Linux allows (255 and 4095 bytes): exclude it",
            );
        }
        if VERSION_CONTROL.contains(&name) && name != b"CVS" {
            self.refuse(Rule::VersionControl, path, "belongs to version control: exclude it");
        }
        match &node.kind {
            Kind::Device => self.refuse(Rule::SpecialFile, path, "is a device or FIFO, which an image cannot hold"),
            Kind::Directory => self.directory(path, name),
            Kind::Symlink { target } => self.symlink(path, name, node, target),
            Kind::File(file) => self.file(path, name, node, file),
        }
    }

    fn directory(&mut self, path: &[u8], name: &[u8]) {
        let above = parent(path).map(file_name);
        if above == Some(b"node_modules") && NPM_MANAGERS.contains(&name) {
            self.refuse(Rule::PackageManager, path, "is a package manager: an image does not change");
        }
    }

    fn symlink(&mut self, path: &[u8], name: &[u8], node: &Node, target: &[u8]) {
        if is_program_directory(path) {
            self.tool(path, name);
        }
        let climbs = climbs_out(path, target);
        if !climbs && self.tree.resolve(path, &mut Vec::new()).is_some() {
            return;
        }
        let shown_target = String::from_utf8_lossy(target).into_owned();
        if climbs || (node.origin == Origin::App && self.leaves_the_app(path, target)) {
            self.refuse(
                Rule::EscapingLink,
                path,
                format!(
                    "is a link to {shown_target}, which is outside of what is copied: exclude it, or bring its target in \
                     with [image] copy"
                ),
            );
        } else if node.origin == Origin::App {
            self.warn(Rule::DanglingLink, path, format!("is a link to {shown_target}, which is not in the image"));
        }
    }

    fn leaves_the_app(&self, path: &[u8], target: &[u8]) -> bool {
        if target.starts_with(b"/") {
            return true;
        }
        let mut at: Vec<&[u8]> = parent(path).unwrap_or_default().split(|byte| *byte == b'/').collect();
        for part in target.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    at.pop();
                }
                part => at.push(part),
            }
        }
        let found = at.join(&b'/');
        !(found.starts_with(self.app) && (self.app.is_empty() || found.get(self.app.len()).is_none_or(|b| *b == b'/')))
    }

    fn tool(&mut self, path: &[u8], name: &[u8]) {
        let Ok(name) = std::str::from_utf8(name) else { return };
        for (rule, sentence, names) in TOOLS {
            // `gcc-14`, `pip3.13`: the same tool with its version.
            let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').trim_end_matches('-');
            if names.contains(&name) || (plain.len() > 2 && plain != name && names.contains(&plain)) {
                self.refuse(*rule, path, *sentence);
                return;
            }
        }
    }

    fn file(&mut self, path: &[u8], name: &[u8], node: &Node, file: &FileNode) {
        let facts = file.facts;
        if facts.looks_executable() || (file.executable && is_program_directory(path)) {
            self.tool(path, name);
        }
        if file.is_setuid {
            self.refuse(Rule::Setuid, path, "is setuid or setgid; allowed, it is there without that bit");
        }
        if file.has_capabilities {
            self.refuse(Rule::Capabilities, path, "has file capabilities; allowed, it is there without them");
        }
        if file.is_world_writable && node.origin != Origin::App {
            self.refuse(Rule::WorldWritable, path, "may be written by everybody; allowed, it is there read-only");
        }
        self.platform(path, facts.kind);
        self.secrets(path, name, file);
        if node.origin == Origin::App {
            self.ballast(path, name, file);
        }
    }

    fn platform(&mut self, path: &[u8], kind: Content) {
        let what = match (kind, self.platform) {
            (Content::Pe, _) => "is a Windows program",
            (Content::MachO, _) => "is a macOS program",
            (Content::ElfArm64, Platform::Amd64) => "is a program for ARM",
            (Content::ElfAmd64, Platform::Arm64) => "is a program for x86",
            (Content::ElfForeign, _) => "is a program for another processor",
            _ => return,
        };
        let cpu = match self.platform {
            Platform::Amd64 => "x64",
            Platform::Arm64 => "arm64",
        };
        let install = if path.split(|byte| *byte == b'/').any(|part| part == b"node_modules") {
            format!("install for that platform with `npm ci --omit=dev --os=linux --cpu={cpu}`")
        } else {
            "build it for that platform".to_owned()
        };
        let sentence = format!("{what}, and the image is for {}: exclude it, or {install}", self.platform.as_str());
        self.refuse(Rule::ForeignBinary, path, sentence);
    }

    fn secrets(&mut self, path: &[u8], name: &[u8], file: &FileNode) {
        if file.facts.private_key {
            self.refuse(
                Rule::PrivateKey,
                path,
                "holds a private key: give it to the service as a credential and exclude it",
            );
        }
        if file.facts.npm_token {
            self.refuse(Rule::NpmToken, path, "holds an access token: exclude it");
        }
        let is_example = ENV_EXAMPLES.iter().any(|example| name.ends_with(example.as_bytes()));
        if name == b".env" || (name.starts_with(b".env.") && !is_example) {
            self.refuse(Rule::EnvFile, path, "is a file of settings that tend to be secret: exclude it, use `env`");
        }
        let is_machine_id = path == b"etc/machine-id" || path == b"var/lib/dbus/machine-id";
        if is_machine_id && file.size_bytes > 0 {
            self.refuse(Rule::MachineId, path, "names one machine: leave it empty");
        }
    }

    fn ballast(&mut self, path: &[u8], name: &[u8], file: &FileNode) {
        if name.ends_with(b".map")
            && (name.ends_with(b".js.map") || name.ends_with(b".css.map") || name.ends_with(b"s.map"))
        {
            self.maps.0 += 1;
            self.maps.1 += file.size_bytes;
        }
        // Only the app's own: what its dependencies ship is theirs to trim.
        let Some(inside) = path.strip_prefix(self.app) else { return };
        let parts = || inside.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        if parts().any(|part| part == b"node_modules") {
            return;
        }
        let parts: Vec<&[u8]> = parts().collect();
        let is_tests = |part: &&[u8]| matches!(*part, b"test" | b"tests" | b"__tests__" | b"spec");
        if let Some(at) = parts[..parts.len().saturating_sub(1)].iter().position(is_tests) {
            let folder = [self.app, b"/", &parts[..=at].join(&b'/')].concat();
            let folder = folder.strip_prefix(b"/").unwrap_or(&folder).to_vec();
            *self.tests.entry(folder).or_default() += 1;
        }
    }
}

/// Whether programs are looked for there, by name.
fn is_program_directory(path: &[u8]) -> bool {
    let directory = parent(path).unwrap_or_default();
    matches!(directory, b"usr/bin" | b"usr/sbin" | b"usr/local/bin" | b"usr/local/sbin")
        || directory.ends_with(b"/.bin")
}

/// Whether a relative target has more `..` than there are directories above the link.
fn climbs_out(path: &[u8], target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    let mut depth = path.iter().filter(|byte| **byte == b'/').count();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}
