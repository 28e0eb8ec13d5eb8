//! The audit log: every order that was accepted or refused by a rule, and how
//! it ended, as a hash chain.
//!
//! Each line of `audit.jsonl` is one [`Entry`] as JSON. `previous` is the
//! sha256 of the line before, its line feed not included, so a line cannot be
//! changed, dropped or put in without every later one showing it. An entry is
//! on disk before what it tells of goes on. A last line without its line feed
//! is what a power cut left of an entry that nobody was told of: it is cut off
//! before the next is written.

use crate::durable::FileError;
use bulkhead_core::{AppName, OrderId, Timestamp, digest};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

/// What is read from the end of the log to find its last line: longer than any line can be.
const TAIL_MAX_BYTES: u64 = 256 << 10;
/// The longest text of an entry: a refusal's message with room to spare.
const TEXT_MAX_BYTES: usize = 4096;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// An order was accepted: its counter is used up.
    Accepted,
    /// A rule refused an order.
    Refused,
    /// An accepted order was carried out.
    Done,
    /// An accepted order could not be carried out.
    Failed,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// sha256 of the line before; zeros for the first.
    pub previous: String,
    /// When, by the node's clock.
    pub at: Timestamp,
    /// What happened.
    pub event: What,
    /// The order: sha256 of the bytes that came, whoever sent them.
    pub order: OrderId,
    /// The app, where the order was signed well enough to be read.
    pub app: Option<AppName>,
    /// The order's counter here.
    pub counter: Option<u64>,
    /// Who signed it.
    pub signers: Vec<String>,
    /// The fingerprint of the key that the connection was made with, as the gate says.
    pub courier: Option<String>,
    /// The rule that refused, or the step that failed.
    pub rule: Option<String>,
    /// Why.
    pub message: Option<String>,
}

impl Entry {
    /// An entry about an order, the rest empty.
    #[must_use]
    pub fn new(event: What, at: Timestamp, order: OrderId) -> Self {
        Self {
            previous: String::new(),
            at,
            event,
            order,
            app: None,
            counter: None,
            signers: vec![],
            courier: None,
            rule: None,
            message: None,
        }
    }
}

fn bounded(text: &mut Option<String>) {
    if let Some(text) = text.as_mut().filter(|text| text.len() > TEXT_MAX_BYTES) {
        let end = (0..=TEXT_MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
}

/// The sha256 of the last whole line, and where the log's whole lines end.
fn head(file: &mut File, path: &Path) -> Result<([u8; 32], u64), FileError> {
    let length = file.seek(SeekFrom::End(0)).map_err(FileError::io("read", path))?;
    let start = length.saturating_sub(TAIL_MAX_BYTES);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(start)).map_err(FileError::io("read", path))?;
    file.take(TAIL_MAX_BYTES).read_to_end(&mut tail).map_err(FileError::io("read", path))?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
        if start > 0 {
            return Err(FileError::Damaged {
                path: path.into(),
                what: "its last line is longer than any entry".into(),
            });
        }
        return Ok(([0; 32], 0));
    };
    let line_start = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
    Ok((digest::sha256(&tail[line_start..end]), start + end as u64 + 1))
}

/// Appends an entry, durably. `entry.previous` is filled in here.
///
/// # Errors
/// The log cannot be written: then what the entry tells of must not go on.
pub fn append(path: &Path, mut entry: Entry) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(FileError::io("open", path))?;
    // Keepers of several apps append at once.
    flock(&file, FlockOperation::LockExclusive).map_err(|error| FileError::io("lock", path)(error.into()))?;
    let (previous, end) = head(&mut file, path)?;
    if entry.event == What::Refused && is_repeated(&mut file, end, &entry) {
        return Ok(());
    }
    entry.previous = digest::hex(&previous);
    bounded(&mut entry.message);
    let mut line = serde_json::to_vec(&entry)
        .map_err(|error| FileError::Damaged { path: path.into(), what: format!("an entry: {error}") })?;
    line.push(b'\n');
    file.set_len(end).map_err(FileError::io("cut off an unfinished line of", path))?;
    file.seek(SeekFrom::Start(end)).map_err(FileError::io("write", path))?;
    file.write_all(&line).map_err(FileError::io("write", path))?;
    file.sync_data().map_err(FileError::io("sync", path))
}

/// Whether the last entry is the same refusal to the same courier within the
/// second: who asks a thousand times must not fill the disk with refusals.
fn is_repeated(file: &mut File, end: u64, entry: &Entry) -> bool {
    let start = end.saturating_sub(TAIL_MAX_BYTES);
    let mut tail = Vec::new();
    if file.seek(SeekFrom::Start(start)).is_err() || file.take(end - start).read_to_end(&mut tail).is_err() {
        return false;
    }
    let last = tail.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    last.and_then(|line| serde_json::from_slice::<Entry>(line).ok()).is_some_and(|last| {
        last.event == What::Refused && last.courier == entry.courier && last.rule == entry.rule && last.at == entry.at
    })
}

/// Reads and checks a whole log: its entries, or the number of the first line that does not fit the one before.
///
/// # Errors
/// A sentence naming the line.
pub fn check(text: &str) -> Result<Vec<Entry>, String> {
    let mut previous = [0; 32];
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let entry: Entry =
            serde_json::from_str(line).map_err(|error| format!("line {}: not an entry: {error}", index + 1))?;
        if entry.previous != digest::hex(&previous) {
            return Err(format!("line {}: does not follow the line before", index + 1));
        }
        previous = digest::sha256(line.as_bytes());
        entries.push(entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn entry(number: u8) -> Entry {
        Entry {
            message: Some("x".repeat(usize::from(number))),
            ..Entry::new(What::Accepted, Timestamp(7), OrderId([number; 32]))
        }
    }

    fn log(count: u8) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        (0..count).for_each(|number| append(&path, entry(number)).unwrap());
        (directory, path)
    }

    #[test]
    fn a_chain() {
        let (_directory, path) = log(5);
        let entries = check(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.order.0[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn every_alteration_shows() {
        let (_directory, path) = log(4);
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let altered = lines[1].replacen("\"at\":7", "\"at\":8", 1);
        for (case, lines, number) in [
            ("changed", vec![lines[0], &altered, lines[2], lines[3]], 3),
            ("dropped", vec![lines[0], lines[2], lines[3]], 2),
            ("first dropped", vec![lines[1], lines[2], lines[3]], 1),
            ("repeated", vec![lines[0], lines[0], lines[1]], 2),
            ("swapped", vec![lines[0], lines[2], lines[1], lines[3]], 2),
        ] {
            let error = check(&lines.join("\n")).unwrap_err();
            assert!(error.starts_with(&format!("line {number}:")), "{case}: {error}");
        }
    }

    #[test]
    fn what_a_power_cut_left_is_cut_off() {
        let (_directory, path) = log(2);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"previous\":\"half");
        fs::write(&path, bytes).unwrap();
        append(&path, entry(9)).unwrap();
        let entries = check(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(entries.len(), 3);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let (_directory, path) = log(0);
        append(&path, Entry { message: Some("é".repeat(5000)), ..entry(1) }).unwrap();
        let entries = check(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(entries[0].message.as_deref().map(str::len), Some(TEXT_MAX_BYTES));
    }
}
