//! Where the sources stand, for the history. Nobody verifies it; it helps people.

use bulkhead_core::order::Source;
use std::{path::Path, process::Command};

/// Files of Bulkhead's own that are never part of an image and say nothing of what is: writing them, as `ci mark` or
/// `secret set` do, makes no other sources.
const OWN: [&str; 7] = [
    ":(exclude).bulkhead",
    ":(exclude)fleet.toml",
    ":(exclude)policy.json",
    ":(exclude)policy.json.sig",
    ":(exclude)policy.next.json",
    ":(exclude)policy.next.json.sig",
    ":(exclude)witness",
];

/// The commit of a folder and whether files differ from it; nothing outside a
/// repository or without git. Blocking.
pub(crate) fn source(directory: &Path) -> Option<Source> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(directory)
            // Looking must not write: `status` would otherwise refresh the index.
            .arg("--no-optional-locks")
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    std::thread::scope(|scope| {
        let status = scope.spawn(|| git(&[&["status", "--porcelain", "--", "."], OWN.as_slice()].concat()));
        let commit = git(&["rev-parse", "HEAD"]);
        let status = status.join().ok().flatten();
        Some(Source { commit: commit?, dirty: status.is_none_or(|text| !text.is_empty()) })
    })
}
