//! What a build says about itself: while it runs and when it is done.

use serde::Serialize;

/// A part of a build, for progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Walking and hashing the folder; counted in files.
    Scan,
    /// Downloading the package indices; counted in bytes.
    Index,
    /// Downloading packages; counted in bytes.
    Download,
    /// Unpacking packages into the cache; counted in packages.
    Unpack,
    /// Working out what runs.
    Closure,
    /// Looking for what must not be in an image.
    Lint,
    /// Making the image document.
    Write,
}

/// Hears how a build goes. Calls come from several threads.
pub trait Progress: Sync {
    /// `done` of `total` (0 where unknown) units of a phase are done; `what` is at hand.
    fn advance(&self, phase: Phase, done: u64, total: u64, what: &str);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn advance(&self, _: Phase, _: u64, _: u64, _: &str) {}
}

/// A rule of the lint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A shell, busybox or coreutils.
    Shell,
    /// An SSH client, server or agent.
    Ssh,
    /// A compiler or build tool.
    Compiler,
    /// A package manager, of the system or of a language.
    PackageManager,
    /// A debugger or tracer.
    Debugger,
    /// A network tool.
    NetworkTool,
    /// A setuid or setgid file.
    Setuid,
    /// A file with capabilities.
    Capabilities,
    /// A device, socket or FIFO.
    SpecialFile,
    /// A link that leads out of what the image holds.
    EscapingLink,
    /// A package file that everybody may write.
    WorldWritable,
    /// A binary of another platform.
    ForeignBinary,
    /// A needed library or symbol version that the image does not have.
    UnresolvedLibrary,
    /// A private key.
    PrivateKey,
    /// A file of environment variables, which tend to be secrets.
    EnvFile,
    /// An npm access token.
    NpmToken,
    /// A version control folder.
    VersionControl,
    /// A machine id.
    MachineId,
    /// A name or path that an image cannot hold.
    BadName,
    /// No `node_modules` where `package.json` has dependencies and node runs.
    MissingModules,
    /// Warning: tests.
    Tests,
    /// Warning: source maps.
    SourceMap,
    /// Warning: a development dependency.
    DevDependency,
    /// Warning: a large file or image.
    Size,
    /// Warning: a link to nothing.
    DanglingLink,
    /// Warning: a package index is past its date of validity.
    StaleIndex,
    /// Warning: a program needs something at run time that nothing keeps.
    RuntimeData,
}

impl Rule {
    /// Whether it keeps tools out of images, so that it is no matter in an image of tools. What is
    /// setuid or has capabilities is there without them anyway.
    pub(crate) fn is_about_tools(self) -> bool {
        matches!(
            self,
            Self::Shell
                | Self::Ssh
                | Self::Compiler
                | Self::PackageManager
                | Self::Debugger
                | Self::NetworkTool
                | Self::Setuid
                | Self::Capabilities
        )
    }
}

/// One thing the lint found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// The path in the image, with a leading slash; what is not UTF-8 is replaced.
    pub path: String,
    /// What is wrong and what to do, as a sentence.
    pub sentence: String,
}

/// A path and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Large {
    /// The path, as the user knows it.
    pub path: String,
    /// Its size; of a folder, what is known of it.
    pub bytes: u64,
}

/// What was left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Omission {
    /// The reason, as a phrase.
    pub reason: String,
    /// How many files (or whole folders, where they were not entered).
    pub count: u64,
    /// Their size, as far as it is known without entering excluded folders.
    pub bytes: u64,
    /// The biggest of them.
    pub biggest: Vec<Large>,
}

/// A Debian package of which something is in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageUse {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Files of it in the image.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}

/// How long the parts took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Walking and hashing the folder.
    pub scan_ms: f64,
    /// Resolving, downloading and unpacking packages.
    pub packages_ms: f64,
    /// Working out what runs.
    pub closure_ms: f64,
    /// The lint.
    pub lint_ms: f64,
    /// SBOM, document and id.
    pub write_ms: f64,
    /// All of it.
    pub total_ms: f64,
}

/// What a build did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Files in the image.
    pub files: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// Files whose contents had to be read because the index did not know them.
    pub files_read: u64,
    /// Debian packages with something in the image, sorted.
    pub packages: Vec<PackageUse>,
    /// npm packages found, as `name@version`, sorted.
    pub npm_packages: Vec<String>,
    /// What the lint warned of.
    pub warnings: Vec<Finding>,
    /// What the lint would have refused, had the manifest not allowed it.
    pub allowed: Vec<Finding>,
    /// What was left out, and why; the biggest first.
    pub omitted: Vec<Omission>,
    /// Whether `bulkhead.lock` was written anew.
    pub lock_changed: bool,
    /// How long the parts took.
    pub timings: Timings,
}

/// The most findings of one rule that a message shows; the error holds them all.
const SHOWN_PER_RULE: usize = 8;

/// All findings as one message, by rule.
pub(crate) fn refusal(findings: &[Finding]) -> String {
    use std::collections::BTreeMap;
    let mut groups: BTreeMap<Rule, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        groups.entry(finding.rule).or_default().push(finding);
    }
    let mut text = format!(
        "the image is refused: {} {} must not be in it",
        findings.len(),
        if findings.len() == 1 { "path" } else { "paths" }
    );
    for group in groups.values() {
        for finding in group.iter().take(SHOWN_PER_RULE) {
            text.push_str(&format!("\n  {} {}", finding.path, finding.sentence));
        }
        if let Some(rest) = group.len().checked_sub(SHOWN_PER_RULE).filter(|rest| *rest > 0) {
            text.push_str(&format!("\n  … and {rest} more of this kind"));
        }
    }
    text.push_str("\nwhat belongs in it after all, [image] allow names by path or pattern");
    text
}
