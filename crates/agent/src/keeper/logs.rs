//! Log lines of services, from the journal. Every message of a service's units
//! carries the fields `BULKHEAD_APP`, `BULKHEAD_SERVICE` and `BULKHEAD_RELEASE`.
//! Where systemd is older than 257 a service can reach the journal's socket and
//! set them itself, so a line also must be of the unit that they name, which
//! only journald can say, or be process 1's about that unit.

use super::failure;
use crate::{peer::Peer, units::Names};
use bulkhead_core::{AppName, ServiceName};
use bulkhead_wire::{Event, Failure, FailureKind, LogLine};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Command, Stdio},
};

/// A line longer than this is cut; a screen holds less.
const TEXT_MAX_BYTES: usize = 8 << 10;
/// As JSON, with escapes and other fields, journald's lines stay far below this.
const ENTRY_MAX_BYTES: u64 = 1 << 20;
/// Lines at once; whoever wants more has the node's own tools.
const LINES_MAX: u32 = 100_000;
/// How often a following keeper looks whether anybody still listens, besides at each line.
const LISTENER_LOOK_MS: i64 = 1000;

/// Which lines.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Of which app.
    pub app: &'a AppName,
    /// Of one service only.
    pub service: Option<&'a ServiceName>,
    /// Of one release only.
    pub release: Option<u64>,
    /// At most so many past lines.
    pub lines: u32,
    /// Whether to go on.
    pub follow: bool,
}

/// `journalctl`, ended with its reader.
struct Journal {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Journal {
    fn open(query: &Query<'_>) -> std::io::Result<Self> {
        let mut command = Command::new("journalctl");
        command.args(["--output=json", "--all", "--quiet", "--no-pager"]);
        command.arg(
            "--output-fields=MESSAGE,PRIORITY,BULKHEAD_APP,BULKHEAD_SERVICE,BULKHEAD_RELEASE,_SYSTEMD_UNIT,_PID,UNIT",
        );
        command.arg(format!("--lines={}", query.lines.min(LINES_MAX)));
        if query.follow {
            command.arg("--follow");
        }
        command.arg(format!("BULKHEAD_APP={}", query.app));
        command.args(query.service.map(|service| format!("BULKHEAD_SERVICE={service}")));
        command.args(query.release.map(|release| format!("BULKHEAD_RELEASE={release}")));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("journalctl has no output"))?;
        Ok(Self { child, lines: BufReader::new(stdout) })
    }

    /// The next line that is one; `None` at the end.
    fn next(&mut self) -> std::io::Result<Option<LogLine>> {
        loop {
            let mut entry = Vec::new();
            self.lines.by_ref().take(ENTRY_MAX_BYTES).read_until(b'\n', &mut entry)?;
            if entry.is_empty() {
                return Ok(None);
            }
            if let Some(line) = parse(&entry) {
                return Ok(Some(line));
            }
        }
    }

    /// Whether a line, or the end, can be read without waiting longer than this.
    fn ready(&self, wait_ms: i64) -> bool {
        if !self.lines.buffer().is_empty() {
            return true;
        }
        let mut set = [PollFd::new(self.lines.get_ref(), PollFlags::IN)];
        let wait = rustix::time::Timespec { tv_sec: wait_ms / 1000, tv_nsec: wait_ms % 1000 * 1_000_000 };
        poll(&mut set, Some(&wait)).is_ok_and(|count| count > 0)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed, which is as well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn parse(entry: &[u8]) -> Option<LogLine> {
    let entry: Value = serde_json::from_slice(entry).ok()?;
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let mut message = match entry.get("MESSAGE")? {
        Value::String(message) => message.clone(),
        // What is not UTF-8 comes as numbers.
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => return None,
    };
    if message.len() > TEXT_MAX_BYTES {
        let end = (0..=TEXT_MAX_BYTES).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    let app: AppName = text("BULKHEAD_APP")?.parse().ok()?;
    let service: ServiceName = text("BULKHEAD_SERVICE")?.parse().ok()?;
    let release: u64 = text("BULKHEAD_RELEASE")?.parse().ok()?;
    let unit = Names::new(&app, &service, release).service;
    let says = if text("_PID") == Some("1") { text("UNIT") } else { text("_SYSTEMD_UNIT") };
    if says != Some(unit.as_str()) {
        return None;
    }
    Some(LogLine {
        at_us: text("__REALTIME_TIMESTAMP")?.parse().ok()?,
        service,
        release,
        priority: text("PRIORITY").and_then(|priority| priority.parse().ok()).unwrap_or(6),
        text: message,
    })
}

/// Sends the lines, and goes on until the client hangs up where that is asked for.
///
/// # Errors
/// The journal cannot be read, or the client is gone.
pub fn send(peer: &mut Peer, query: &Query<'_>) -> Result<(), Box<Failure>> {
    let failed =
        |error: std::io::Error| failure(FailureKind::Node, "journal", format!("cannot read the journal: {error}"));
    let mut journal = Journal::open(query).map_err(failed)?;
    loop {
        while query.follow && !journal.ready(LISTENER_LOOK_MS) {
            if peer.hung_up() {
                return Ok(());
            }
        }
        let Some(line) = journal.next().map_err(failed)? else { return Ok(()) };
        if peer.send(&Event::Log(line)).is_err() {
            return Ok(());
        }
    }
}

/// The last lines, or none where the journal cannot be read: they go with something worse.
#[must_use]
pub fn last(query: &Query<'_>) -> Vec<LogLine> {
    // What the service just wrote may still be on its way.
    drop(Command::new("journalctl").arg("--sync").stdin(Stdio::null()).stderr(Stdio::null()).status());
    let mut lines = Vec::new();
    if let Ok(mut journal) = Journal::open(query) {
        while let Ok(Some(line)) = journal.next() {
            lines.push(line);
        }
    }
    lines
}

/// What a unit of ours said last, as one text; empty where the journal cannot be read.
#[must_use]
pub fn of_unit(unit: &str, lines: u32) -> String {
    drop(Command::new("journalctl").arg("--sync").stdin(Stdio::null()).stderr(Stdio::null()).status());
    let lines = lines.to_string();
    // By field, not `--unit`: that adds what systemd says about the unit.
    let arguments = ["--quiet", "--no-pager", "--output=cat", "--lines", &lines, &format!("_SYSTEMD_UNIT={unit}")];
    let output = Command::new("journalctl").args(arguments).stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(message: &str) -> String {
        format!(
            r#"{{"__REALTIME_TIMESTAMP":"1795432883930455","BULKHEAD_APP":"n","_SYSTEMD_UNIT":"bulkhead-n.web.r3.service","BULKHEAD_SERVICE":"web","BULKHEAD_RELEASE":"3","PRIORITY":"4","MESSAGE":{message}}}"#
        )
    }

    #[test]
    fn entries() {
        let line = parse(entry(r#""hello""#).as_bytes()).unwrap();
        assert_eq!((line.text.as_str(), line.release, line.priority), ("hello", 3, 4));
        assert_eq!(parse(entry("[104,105,255]").as_bytes()).unwrap().text, "hi\u{fffd}");
        let forged = entry(r#""hello""#).replace("bulkhead-n.web.r3.service", "bulkhead-other.web.r3.service");
        assert_eq!(parse(forged.as_bytes()), None);
        let of_init = |unit: &str| {
            let fields = format!(r#""_PID":"1","UNIT":"{unit}","PRIORITY""#);
            parse(forged.replace(r#""PRIORITY""#, &fields).as_bytes())
        };
        assert!(of_init("bulkhead-n.web.r3.service").is_some());
        assert_eq!(of_init("bulkhead-other.web.r3.service"), None);
        assert_eq!(parse(entry("null").as_bytes()), None);
        assert_eq!(parse(b"{}"), None);
        assert_eq!(parse(b"half a li"), None);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let line = parse(entry(&format!("\"a{}\"", "é".repeat(8000))).as_bytes()).unwrap();
        assert!(line.text.len() <= TEXT_MAX_BYTES + '…'.len_utf8() && line.text.ends_with("é…"));
    }
}
