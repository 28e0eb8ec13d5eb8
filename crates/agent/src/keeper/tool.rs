//! Runs a tool against a service, as an accepted order says: [`crate::tool`] is
//! what the tool's own process does; here it is started, heard and ended.
//!
//! The tool runs in a unit of its own, named by its order, with bounds on time,
//! memory and processes. The keeper never enters anything: it verifies which
//! processes are the service's as [`super::look`] does, and hands handles of them
//! over, so that no number can come to mean another process meanwhile.
//!
//! The tool is gone when its client is gone: the client's absence ends the
//! keeper's work, the keeper's absence (whatever the reason) ends the tool's
//! process, and that ends the unit with all that is left in it. What it had of the
//! node ([`place`]) is then taken back.
//!
//! # Output
//!
//! After [`Event::Stream`], data frames: one byte that says which output
//! ([`bulkhead_wire::TOOL_STDOUT`], [`bulkhead_wire::TOOL_STDERR`]), then what was
//! written there. A client that takes nothing stops the tool's writing. An end
//! frame from the client interrupts the tool, as Ctrl-C would. At the end an end
//! frame and [`Event::Ended`].

mod place;

use super::{
    OrFail, failure,
    look::{self, Insider},
};
use crate::{
    peer::{Heard, Peer},
    state::{App, Paths},
    tool::{self, End, Job},
};
use bulkhead_core::{OrderId, order::Tool};
use bulkhead_wire::{DATA_MAX_BYTES, Event, Failure, FailureKind, StepKind, TOOL_STDERR, TOOL_STDOUT, ToolEnd};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

pub use place::sweep;
use place::{ID_LENGTH, Place};

/// How long systemd and the agent take to come to the tool.
const START_MAX: Duration = Duration::from_secs(20);
/// Between being interrupted and being killed, where its time is up: `strace -c` has something to say then.
const GRACE: Duration = Duration::from_secs(2);
/// What is still in the pipes when a tool has ended is read for so long: something may hold them open.
const REST_MAX: Duration = Duration::from_secs(1);
/// How often to look whether the client is there where nothing else happens. It also wakes the loop by itself.
const TICK: Duration = Duration::from_secs(1);
/// A piece of output, with the byte before it.
const PIECE_BYTES: usize = if DATA_MAX_BYTES < 64 << 10 { DATA_MAX_BYTES } else { 64 << 10 };

/// Runs it to its end.
///
/// # Errors
/// It could not be started, or the client left.
pub fn run(paths: &Paths, peer: &mut Peer, app: &App, order: OrderId, tool: &Tool) -> Result<ToolEnd, Box<Failure>> {
    let inside = look::inside(paths, app.name(), &tool.service)?;
    let first = inside.first()?;
    let gone = |error: io::Error| {
        failure(FailureKind::Request, "gone", format!("{}/{} ended: {error}", app.name(), tool.service))
    };
    let process = held(first).map_err(gone)?;
    let root = first.root.try_clone().map_err(gone)?;
    let numbers: Vec<(u32, u32)> = inside.insiders.iter().filter_map(numbers).collect();
    let command =
        tool.command.iter().scan(false, |is_number, word| Some(renumber(word, is_number, &numbers, first.pid)));
    let command: Vec<String> = command.collect();

    let place = Place::take(paths, app, tool, &order.to_string()[..ID_LENGTH])?;
    let job = Job { image: tool.image, command, rights: tool.rights, uid: place.uid() };
    let (out, out_of_tool) = pipe()?;
    let (err, err_of_tool) = pipe()?;
    let mut control = place.accept()?;
    let broken = |error: io::Error| {
        failure(FailureKind::Node, "tool", format!("the tool's process cannot be talked to: {error}"))
    };
    tool::send(&mut control, &job, [&process, &root, &out_of_tool, &err_of_tool]).map_err(broken)?;
    // From here on the pipes end when the tool does.
    drop((process, root, out_of_tool, err_of_tool));
    peer.allow(Duration::from_millis(u64::from(tool.within_ms)) + START_MAX + GRACE);
    peer.step(StepKind::Started, Some(&tool.service)).or_fail()?;
    peer.send(&Event::Stream { bytes: None }).or_fail()?;
    let until = Instant::now() + Duration::from_millis(u64::from(tool.within_ms));
    let (end, out_of_time) = pass(peer, &mut control, [(TOOL_STDOUT, out), (TOOL_STDERR, err)], until)?;
    drop(place);
    if let Some(why) = end.failed {
        return Err(failure(FailureKind::Request, "tool", format!("the tool did not start: {why}")));
    }
    peer.end_stream().or_fail()?;
    let end = ToolEnd { code: end.code, signal: end.signal, out_of_time };
    peer.send(&Event::Ended(end.clone())).or_fail()?;
    Ok(end)
}

/// A handle of an insider's process. The number was still its when the handle was taken, because it lives yet.
fn held(insider: &Insider) -> io::Result<OwnedFd> {
    let number = i32::try_from(insider.pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(number, PidfdFlags::empty())?;
    insider.read("stat")?;
    Ok(process)
}

/// A process's number inside and outside.
fn numbers(insider: &Insider) -> Option<(u32, u32)> {
    let status = insider.read("status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some((line.split_whitespace().last()?.parse().ok()?, insider.pid))
}

/// A tool counts processes as the node does. People know the service's first process as 1, as it is inside:
/// after `-p`, `--pid` and `--attach` a number that is one inside is made the node's, and `{pid}` is the first
/// process anywhere.
fn renumber(word: &str, is_number: &mut bool, numbers: &[(u32, u32)], first: u32) -> String {
    let outside = |text: &str| {
        let number: u32 = text.parse().ok()?;
        let found = numbers.iter().find(|(inside, _)| *inside == number).map(|(_, outside)| *outside);
        found.or((number == 1).then_some(first)).map(|outside| outside.to_string())
    };
    let was_number = std::mem::replace(is_number, matches!(word, "-p" | "--pid" | "--attach"));
    if was_number && let Some(outside) = outside(word) {
        return outside;
    }
    for prefix in ["--pid=", "--attach=", "-p"] {
        if let Some(outside) = word.strip_prefix(prefix).and_then(outside) {
            return format!("{prefix}{outside}");
        }
    }
    word.replace("{pid}", &first.to_string())
}

fn pipe() -> Result<(File, OwnedFd), Box<Failure>> {
    let made = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (read, write) = made.map_err(|error| failure(FailureKind::Node, "tool", format!("no pipe: {error}")))?;
    Ok((File::from(read), write))
}

/// Passes output to the client until the tool ends: how, and whether its time was up.
fn pass(
    peer: &mut Peer,
    control: &mut UnixStream,
    outputs: [(u8, File); 2],
    until: Instant,
) -> Result<(End, bool), Box<Failure>> {
    let broken = |error: io::Error| failure(FailureKind::Node, "tool", format!("the tool cannot be heard: {error}"));
    let mut outputs: Vec<(u8, File)> = outputs.into();
    let mut end: Option<End> = None;
    // When it is interrupted, then when it is given up.
    let (mut deadline, mut out_of_time, mut hears) = (until, false, true);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let now = Instant::now();
        if now >= deadline {
            if end.is_some() {
                break;
            }
            if out_of_time {
                return Ok((End { signal: Some(9), ..End::default() }, true));
            }
            (out_of_time, deadline) = (true, now + GRACE);
            // One that has ended this very moment needs no interruption.
            drop(control.write_all(&[tool::INTERRUPT]));
        }
        if end.is_some() && outputs.is_empty() {
            break;
        }
        let (ready, controls, asks) = {
            let mut set: Vec<PollFd<'_>> = outputs.iter().map(|(_, file)| PollFd::new(file, PollFlags::IN)).collect();
            set.push(PollFd::new(peer, if hears { PollFlags::IN } else { PollFlags::empty() }));
            if end.is_none() {
                set.push(PollFd::new(&*control, PollFlags::IN));
            }
            let wait = TICK.min(deadline - now.min(deadline));
            let wait = Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(1),
                tv_nsec: i64::from(wait.subsec_nanos()),
            };
            match poll(&mut set, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(broken(error.into())),
            }
            let count = outputs.len();
            let ready: Vec<bool> = set[..count].iter().map(|one| !one.revents().is_empty()).collect();
            let is_ready = |index: usize| set.get(index).is_some_and(|one| !one.revents().is_empty());
            (ready, is_ready(count + 1), is_ready(count))
        };
        if asks || peer.has_more() {
            match peer.hear() {
                Heard::Interrupt => drop(control.write_all(&[tool::INTERRUPT])),
                Heard::Nothing => hears = false,
                Heard::Gone => return Err(left()),
            }
        }
        if peer.hung_up() {
            return Err(left());
        }
        for index in (0..outputs.len()).rev().filter(|index| ready[*index]) {
            piece[0] = outputs[index].0;
            let count = outputs[index].1.read(&mut piece[1..]).map_err(broken)?;
            if count == 0 {
                outputs.remove(index);
            } else {
                peer.send_data(&piece[..=count]).map_err(|_| left())?;
            }
        }
        if controls && end.is_none() {
            let mut text = String::new();
            io::Read::take(&mut *control, tool::JOB_MAX_BYTES as u64).read_to_string(&mut text).map_err(broken)?;
            // Where its process was killed from outside, by its bounds on memory or time, nothing comes.
            end = Some(serde_json::from_str(&text).unwrap_or(End { signal: Some(9), ..End::default() }));
            deadline = Instant::now() + REST_MAX;
        }
    }
    Ok((end.unwrap_or_default(), out_of_time))
}

fn left() -> Box<Failure> {
    failure(FailureKind::Request, "gone", "the client left, and the tool was ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_inside_become_the_nodes() {
        let check = |words: &[&str], numbers: &[(u32, u32)], expected: &str| {
            let mut is_number = false;
            let words: Vec<String> = words.iter().map(|word| renumber(word, &mut is_number, numbers, 400)).collect();
            assert_eq!(words.join(" "), expected);
        };
        let own = &[(1, 400), (7, 407)];
        check(&["strace", "-c", "-p", "1"], own, "strace -c -p 400");
        check(&["strace", "-p7", "--attach=1"], own, "strace -p407 --attach=400");
        check(&["gdb", "--pid", "7", "-p", "407", "-ex", "1"], own, "gdb --pid 407 -p 407 -ex 1");
        check(&["ls", "-l", "/proc/{pid}/fd"], own, "ls -l /proc/400/fd");
        check(&["tcpdump", "-p", "-c", "1"], own, "tcpdump -p -c 1");
        // Where the service has no numbers of its own.
        check(&["lsof", "-p", "1"], &[(400, 400)], "lsof -p 400");
        check(&["lsof", "-p", "5"], &[(400, 400)], "lsof -p 5");
    }
}
