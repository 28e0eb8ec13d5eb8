//! Reading again all that images consist of, in the background, so that a disk
//! that forgets is found out before a restart or a rollback does it. A timer
//! starts it once a week.
//!
//! A damaged object is moved aside by the store and counts as missing: the next
//! deploy or rollback that needs it brings it again. What was found is kept in
//! `scrub.json` for [`crate::keeper::status`], and named in the journal.

use crate::{
    durable::{self, FileError},
    keeper::{chain, now},
    state::{self, Paths},
    systemd,
};
use bulkhead_core::{FileDigest, ImageId, Timestamp};
use bulkhead_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

/// Bytes a second, on average: services read the same disk, and a week is long.
const PACE_BYTES_PER_S: u64 = 20 << 20;
/// The least worth sleeping for.
const NAP_MIN: Duration = Duration::from_millis(50);

/// What a scrub found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When it ended.
    pub at: Timestamp,
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub content_bytes: u64,
    /// Objects and image documents that were damaged.
    pub damaged: u64,
    /// The apps whose live release is damaged.
    pub apps: BTreeSet<String>,
}

/// The last scrub, where there was one.
///
/// # Errors
/// Its report cannot be read.
pub fn last(paths: &Paths) -> Result<Option<Report>, FileError> {
    durable::read_json(&paths.state.join("scrub.json"))
}

/// Scrubs. The text is for the journal.
///
/// # Errors
/// The store cannot be read; or damage was found, in a sentence that says what to do.
pub fn run(paths: &Paths) -> Result<String, String> {
    let store = Store::open(&paths.store()).map_err(|error| chain(&error))?;
    let begun = Instant::now();
    let mut read_bytes = 0;
    let scrubbed = store.scrub(&mut |size_bytes| {
        read_bytes += size_bytes;
        let due = Duration::from_millis(read_bytes.saturating_mul(1000) / PACE_BYTES_PER_S);
        let early = due.saturating_sub(begun.elapsed());
        if early >= NAP_MIN {
            thread::sleep(early);
        }
        true
    });
    let scrubbed = scrubbed.map_err(|error| chain(&error))?;
    let documents = damaged_documents(&store).map_err(|error| chain(&error))?;
    let apps = damaged_apps(paths, &store, &scrubbed.damaged.iter().copied().collect(), &documents);
    let report = Report {
        at: now(),
        objects: scrubbed.objects,
        content_bytes: scrubbed.content_bytes,
        damaged: (scrubbed.damaged.len() + documents.len()) as u64,
        apps,
    };
    durable::write_json(&paths.state.join("scrub.json"), &report).map_err(|error| chain(&error))?;
    let text = describe(&report);
    if report.damaged == 0 { Ok(text) } else { Err(text) }
}

/// A report in a sentence.
#[must_use]
pub fn describe(report: &Report) -> String {
    let Report { at, objects, damaged, apps, .. } = report;
    match damaged {
        0 => format!("{objects} objects read until {at}, all as they should be"),
        _ if apps.is_empty() => {
            format!(
                "{damaged} of {objects} objects were damaged at {at}, none of what is live; the disk may be failing"
            )
        }
        _ => {
            let apps: Vec<&str> = apps.iter().map(String::as_str).collect();
            format!(
                "{damaged} of {objects} objects were damaged at {at}: deploy {} again; the disk may be failing",
                apps.join(", ")
            )
        }
    }
}

fn damaged_documents(store: &Store) -> Result<BTreeSet<ImageId>, StoreError> {
    let mut damaged = BTreeSet::new();
    for id in store.images()? {
        match store.document(id) {
            Err(StoreError::DocumentDamaged { .. }) => drop(damaged.insert(id)),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(damaged)
}

fn damaged_apps(
    paths: &Paths,
    store: &Store,
    objects: &BTreeSet<FileDigest>,
    documents: &BTreeSet<ImageId>,
) -> BTreeSet<String> {
    let is_damaged = |image: ImageId| {
        documents.contains(&image)
            || store.image(image).is_ok_and(|image| {
                image.is_some_and(|image| image.files().any(|(_, _, digest)| objects.contains(&digest)))
            })
    };
    let apps = state::apps(paths).unwrap_or_else(|error| {
        systemd::eprintln_bounded(&chain(&error));
        vec![]
    });
    apps.into_iter()
        .filter(|app| app.live_run().is_ok_and(|live| live.is_some_and(|(_, run)| is_damaged(run.image))))
        .map(|app| app.name().to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_sentence() {
        let check = |damaged: u64, apps: &[&str], words: &str| {
            let apps = apps.iter().map(|app| (*app).to_owned()).collect();
            let report = Report { at: Timestamp(0), objects: 10, content_bytes: 1, damaged, apps };
            let text = describe(&report);
            assert!(text.contains(words), "{text}");
        };
        check(0, &[], "all as they should be");
        check(2, &[], "none of what is live");
        check(2, &["notes", "web"], "deploy notes, web again");
    }

    #[test]
    fn the_report_stays() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        std::fs::create_dir_all(paths.store()).unwrap();
        assert_eq!(last(&paths).unwrap(), None);
        assert!(run(&paths).unwrap().starts_with("0 objects"));
        std::fs::create_dir_all(paths.store().join("objects/ab")).unwrap();
        std::fs::write(paths.store().join("objects/ab").join("c".repeat(62)), "rot").unwrap();
        assert!(run(&paths).unwrap_err().contains("1 of 1 objects"));
        assert_eq!(last(&paths).unwrap().map(|report| report.damaged), Some(1));
    }
}
