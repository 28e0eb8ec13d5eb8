//! Revocations and heartbeats, kept beside `fleet.toml` from the moment they are signed, before any node is asked:
//! machines that are bought later and nodes that were away can be brought them then.
//!
//! ```text
//! .bulkhead/notices/revocation-ID.json   signed; ID is the sha256 of its bytes
//! .bulkhead/notices/heartbeat.json       the one that was signed last
//! ```
//!
//! Whether one counts is for each node to say, by its policy. A revocation is never removed here: to forbid is not
//! undone.

use crate::{
    error::{Error, Kind, Result},
    grants::{read_signed, write_signed},
    workspace::shown,
};
use bulkhead_core::{
    SignedText,
    digest::{hex, sha256},
    notice::Revoked,
    policy::Policy,
};
use bulkhead_trust::notice::verify_revocation;
use bulkhead_wire::Paper;
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The folder of notices, beside `fleet.toml`.
pub const NOTICES: &str = ".bulkhead/notices";
/// What the file name of a revocation begins with.
const REVOCATION: &str = "revocation-";
/// The file name of the heartbeat.
const HEARTBEAT: &str = "heartbeat.json";

/// Keeps a notice: a revocation for good, a heartbeat in the place of the one before. Other papers are no notices.
///
/// # Errors
/// It cannot be written.
pub fn keep_notice(fleet_directory: &Path, paper: Paper, document: &SignedText) -> Result<()> {
    let name = match paper {
        Paper::Revocation => format!("{REVOCATION}{}.json", hex(&sha256(document.text.as_bytes()))),
        Paper::Heartbeat => HEARTBEAT.to_owned(),
        Paper::Policy | Paper::Statement => return Ok(()),
    };
    write_signed(&fleet_directory.join(NOTICES).join(name), document)
}

/// What nodes are to be brought besides the policy: the revocations, and after them the heartbeat.
///
/// # Errors
/// The folder or a file cannot be read: it may be the revocation that matters.
pub fn notices(fleet_directory: &Path) -> Result<Vec<(Paper, SignedText)>> {
    let mut all = Vec::new();
    for path in revocations(fleet_directory)? {
        all.push((Paper::Revocation, read_signed(&path)?));
    }
    let heartbeat = fleet_directory.join(NOTICES).join(HEARTBEAT);
    if heartbeat.exists() {
        all.push((Paper::Heartbeat, read_signed(&heartbeat)?));
    }
    Ok(all)
}

/// What must not be started any more: what the policy revokes, and those of the kept revocations that count by it.
///
/// # Errors
/// A revocation cannot be read.
pub fn revoked(fleet_directory: &Path, policy: &Policy) -> Result<Revoked> {
    let mut all = policy.revoked.clone();
    for path in revocations(fleet_directory)? {
        let SignedText { text, signatures } = read_signed(&path)?;
        // One that the policy does not let count is refused by nodes too.
        if let Ok(revocation) = verify_revocation(text.as_bytes(), &signatures, policy) {
            all.extend(&revocation.into_value().revoked);
        }
    }
    Ok(all)
}

/// Keeps the revocations that count by the policy also elsewhere, laid out as beside `fleet.toml`: who may write there
/// can take them away.
///
/// # Errors
/// One cannot be read or written.
pub fn keep_revocations(fleet_directory: &Path, elsewhere: &Path, policy: &Policy) -> Result<()> {
    for path in revocations(fleet_directory)? {
        let document = read_signed(&path)?;
        let counts = verify_revocation(document.text.as_bytes(), &document.signatures, policy).is_ok();
        let kept = elsewhere.join(NOTICES).join(path.file_name().unwrap_or_default());
        if counts && !kept.exists() {
            keep_notice(elsewhere, Paper::Revocation, &document)?;
        }
    }
    Ok(())
}

/// The files of revocations, in the order of their names; none where there is no folder.
fn revocations(fleet_directory: &Path) -> Result<Vec<PathBuf>> {
    let folder = fleet_directory.join(NOTICES);
    let failed = |error: &std::io::Error| {
        Error::during(Kind::Configuration, format!("cannot read the folder {}", shown(&folder)), error)
    };
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(|error| failed(&error))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed(&error))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(REVOCATION) && name.ends_with(".json")) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(text: &str) -> SignedText {
        SignedText { text: text.into(), signatures: vec![] }
    }

    #[test]
    fn revocations_stay_and_the_last_heartbeat() {
        let folder = tempfile::tempdir().unwrap();
        let of = || notices(folder.path()).unwrap();
        assert!(of().is_empty());
        let keep = |paper, text: &str| keep_notice(folder.path(), paper, &signed(text)).unwrap();
        keep(Paper::Heartbeat, "first");
        keep(Paper::Revocation, "one");
        keep(Paper::Revocation, "two");
        keep(Paper::Revocation, "one");
        keep(Paper::Heartbeat, "second");
        let all = of();
        let papers: Vec<Paper> = all.iter().map(|(paper, _)| *paper).collect();
        assert_eq!(papers, [Paper::Revocation, Paper::Revocation, Paper::Heartbeat]);
        assert_eq!(all[2].1, signed("second"));
        // What cannot be read may be what matters.
        std::fs::write(folder.path().join(NOTICES).join("revocation-x.json"), "{").unwrap();
        assert!(notices(folder.path()).is_err());
    }
}
