//! Programs of this machine that a local fleet needs.

use super::LocalError;
use crate::bootstrap::NoAgent;
use serde::Serialize;
use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Where programs are looked for, besides `PATH`: a user's path often lacks the `sbin` directories.
const DIRECTORIES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What is needed, and the Debian package that brings it. Those with a slash are files.
const NEEDED: [(&str, &str); 8] = [
    ("systemd-nspawn", "systemd-container"),
    ("mmdebstrap", "mmdebstrap"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("chroot", "coreutils"),
    ("cp", "coreutils"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
];

/// Something that is missing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tool {
    /// The program or file.
    pub name: &'static str,
    /// The Debian package that brings it.
    pub package: &'static str,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (package `{}`)", self.name, self.package)
    }
}

/// What a local fleet needs and this machine has not got.
#[must_use]
pub fn missing_tools() -> Vec<Tool> {
    NEEDED
        .into_iter()
        .filter(|(name, _)| {
            let found = if name.starts_with('/') {
                Path::new(name).exists()
            } else {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path)
                    .chain(DIRECTORIES.map(PathBuf::from))
                    .any(|directory| directory.join(name).is_file())
            };
            !found
        })
        .map(|(name, package)| Tool { name, package })
        .collect()
}

/// The agent's static binary; see [`crate::bootstrap::find_agent`].
///
/// # Errors
/// Where it was looked for in vain.
pub fn find_agent() -> Result<PathBuf, LocalError> {
    crate::bootstrap::find_agent().map_err(|NoAgent { looked_at }| LocalError::NoAgent { looked_at })
}

/// Runs a program to its end and returns its standard output.
pub(super) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String, LocalError> {
    run_holding(program, arguments, None)
}

/// Likewise. While it runs it holds this file open, and with it the file's lock, though this process may be gone.
pub(super) fn run_holding<S: AsRef<OsStr>>(
    program: &str,
    arguments: &[S],
    held: Option<&File>,
) -> Result<String, LocalError> {
    let cannot_run = |source| LocalError::Run { program: program.to_owned(), source };
    let input = held.map(File::try_clone).transpose().map_err(cannot_run)?.map_or_else(Stdio::null, Stdio::from);
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:{}", DIRECTORIES.join(":")))
        .env("LC_ALL", "C.UTF-8")
        .stdin(input)
        .output()
        .map_err(cannot_run)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        Err(failure(&format!("{program} {}", words.join(" ")), &output))
    }
}

/// The error of a program that ended badly: the end of what it said.
pub(super) fn failure(program: &str, output: &Output) -> LocalError {
    /// Enough for the reason, which stands at the end.
    const LINES: usize = 12;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let message = match lines.as_slice() {
        [] => output.status.to_string(),
        lines => lines[lines.len().saturating_sub(LINES)..].join("; "),
    };
    LocalError::Program { program: program.to_owned(), message }
}
