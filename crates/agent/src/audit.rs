//! The audit log: every order that was accepted or refused by a rule, and how
//! it ended, as a hash chain.
//!
//! Each line of `audit.jsonl` is one [`Entry`] as JSON; see [`bulkhead_trust::audit`]
//! for what it holds and how it is checked. The node signs where its log ends:
//! for whoever asks, and in the receipt of each order. An entry is
//! on disk before what it tells of goes on. A last line without its line feed
//! is what a power cut left of an entry that nobody was told of: it is cut off
//! before the next is written.

use crate::{durable::FileError, keys::NodeKey};
use bulkhead_core::{EntryId, SignedText};
use bulkhead_trust::audit::{End, Statement};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

pub use bulkhead_trust::audit::{Entry, What};

/// What is read from the end of the log to find its last line: longer than any line can be.
const TAIL_MAX_BYTES: u64 = 256 << 10;
/// The longest text of an entry: a refusal's message with room to spare.
const TEXT_MAX_BYTES: usize = 4096;
/// The longest log that is sent whole; a client takes no longer one. Half a million entries.
const LOG_MAX_BYTES: u64 = 256 << 20;

fn bounded(text: &mut Option<String>) {
    if let Some(text) = text.as_mut().filter(|text| text.len() > TEXT_MAX_BYTES) {
        let end = (0..=TEXT_MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
}

/// The log's end: its last whole line, and where the whole lines end in the file.
fn end(file: &mut File, path: &Path) -> Result<(End, u64), FileError> {
    let damaged = |what: &str| FileError::Damaged { path: path.into(), what: what.into() };
    let length = file.seek(SeekFrom::End(0)).map_err(FileError::io("read", path))?;
    let start = length.saturating_sub(TAIL_MAX_BYTES);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(start)).map_err(FileError::io("read", path))?;
    file.take(TAIL_MAX_BYTES).read_to_end(&mut tail).map_err(FileError::io("read", path))?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
        if start > 0 {
            return Err(damaged("its last line is longer than any entry"));
        }
        return Ok((End::EMPTY, 0));
    };
    let line_start = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
    let line = &tail[line_start..end];
    let last: Entry = serde_json::from_slice(line).map_err(|error| damaged(&format!("its last line: {error}")))?;
    Ok((End { entries: last.number, head: EntryId::of(line) }, start + end as u64 + 1))
}

/// Where the log ends, of which there may be none yet.
///
/// # Errors
/// It cannot be read.
pub fn last(path: &Path) -> Result<End, FileError> {
    match locked(path, FlockOperation::LockShared) {
        Ok(mut file) => end(&mut file, path).map(|(end, _)| end),
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(End::EMPTY),
        Err(error) => Err(error),
    }
}

/// The log's whole lines, and where they end.
///
/// # Errors
/// It cannot be read, or is longer than what is sent.
pub fn read(path: &Path) -> Result<(Vec<u8>, End), FileError> {
    let mut file = match locked(path, FlockOperation::LockShared) {
        Ok(file) => file,
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok((vec![], End::EMPTY));
        }
        Err(error) => return Err(error),
    };
    let (end, length) = end(&mut file, path)?;
    if length > LOG_MAX_BYTES {
        return Err(FileError::Damaged { path: path.into(), what: "it is longer than 256 MiB".into() });
    }
    let mut lines = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(FileError::io("read", path))?;
    file.take(length).read_to_end(&mut lines).map_err(FileError::io("read", path))?;
    Ok((lines, end))
}

/// A head or receipt as the node signs it.
#[must_use]
pub fn signed<T: Statement>(key: &NodeKey, statement: &T) -> SignedText {
    let text = statement.to_text();
    SignedText { signatures: vec![key.sign(T::NAMESPACE, text.as_bytes())], text }
}

/// Opens the log; keepers of several apps append at once.
fn locked(path: &Path, lock: FlockOperation) -> Result<File, FileError> {
    let appends = matches!(lock, FlockOperation::LockExclusive);
    let file = OpenOptions::new()
        .read(true)
        .write(appends)
        .create(appends)
        .truncate(false)
        .open(path)
        .map_err(FileError::io("open", path))?;
    flock(&file, lock).map_err(|error| FileError::io("lock", path)(error.into()))?;
    Ok(file)
}

/// Appends an entry, durably, and gives where the log ends then. The entry's place in the chain is filled in here.
///
/// # Errors
/// The log cannot be written: then what the entry tells of must not go on.
pub fn append(path: &Path, mut entry: Entry) -> Result<End, FileError> {
    let mut file = locked(path, FlockOperation::LockExclusive)?;
    let (before, end) = end(&mut file, path)?;
    if entry.event == What::Refused && is_repeated(&mut file, end, &entry) {
        return Ok(before);
    }
    entry.number = before.entries + 1;
    entry.previous = before.head;
    bounded(&mut entry.message);
    let mut line = serde_json::to_vec(&entry)
        .map_err(|error| FileError::Damaged { path: path.into(), what: format!("an entry: {error}") })?;
    let after = End { entries: entry.number, head: EntryId::of(&line) };
    line.push(b'\n');
    file.set_len(end).map_err(FileError::io("cut off an unfinished line of", path))?;
    file.seek(SeekFrom::Start(end)).map_err(FileError::io("write", path))?;
    file.write_all(&line).map_err(FileError::io("write", path))?;
    file.sync_data().map_err(FileError::io("sync", path))?;
    Ok(after)
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

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{OrderId, Timestamp};
    use bulkhead_trust::audit::{AuditError, Chain};
    use std::fs;

    fn check(path: &Path) -> Result<Chain, AuditError> {
        Chain::check(&fs::read_to_string(path).unwrap())
    }

    fn entry(number: u8) -> Entry {
        Entry {
            message: Some("x".repeat(usize::from(number))),
            ..Entry::new(What::Accepted, Timestamp(7), OrderId([number; 32]))
        }
    }

    fn log(count: u8) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        for number in 0..count {
            append(&path, entry(number)).unwrap();
        }
        (directory, path)
    }

    #[test]
    fn a_chain() {
        let (_directory, path) = log(5);
        let chain = check(&path).unwrap();
        assert_eq!(chain.entries.iter().map(|entry| entry.order.0[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(last(&path).unwrap(), chain.end());
        let (lines, end) = read(&path).unwrap();
        assert_eq!((lines, end), (fs::read(&path).unwrap(), chain.end()));
        assert_eq!(append(&path, entry(6)).unwrap(), check(&path).unwrap().end());
        assert_eq!(last(&path.with_extension("none")).unwrap(), End::EMPTY);
        assert_eq!(read(&path.with_extension("none")).unwrap(), (vec![], End::EMPTY));
    }

    #[test]
    fn what_a_power_cut_left_is_cut_off() {
        let (_directory, path) = log(2);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"previous\":\"half");
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path).unwrap().1.entries, 2);
        append(&path, entry(9)).unwrap();
        assert_eq!(check(&path).unwrap().entries.len(), 3);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let (_directory, path) = log(0);
        append(&path, Entry { message: Some("é".repeat(5000)), ..entry(1) }).unwrap();
        assert_eq!(check(&path).unwrap().entries[0].message.as_deref().map(str::len), Some(TEXT_MAX_BYTES));
    }
}
