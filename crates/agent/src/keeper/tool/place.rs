//! A tool's place on the node: its unit, the socket at which its process is met,
//! and a user id that is its alone.
//!
//! ```text
//! units/bulkhead-tool-ID.service   the unit
//! run/tools/ID                     the socket
//! run/tools/ids/UID                names the tool that has this user id; locked as long as its keeper lives
//! run/tools/lock                   held while user ids are given out and places taken back
//! ```
//!
//! A user id is given out again only when nothing of the unit is left that had
//! it. So whoever gives one out first takes back what keepers left that died
//! ([`sweep`]), as does what follows a keeper's death.

use super::super::{OrFail, chain, failure, logs, release};
use crate::{
    durable::{self, FileError},
    state::{App, Paths},
    systemd, tool, units,
};
use bulkhead_core::order::Tool;
use bulkhead_wire::{Failure, FailureKind};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock},
};
use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::DirBuilderExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// A tool's name is a piece of its order's, in hexadecimal.
pub(super) const ID_LENGTH: usize = 16;
/// Lines of the unit's journal where it did not come to the tool.
const LOG_LINES: u32 = 5;

fn directory(paths: &Paths) -> PathBuf {
    paths.run.join("tools")
}

fn ids(paths: &Paths) -> PathBuf {
    directory(paths).join("ids")
}

/// A user id, given out.
#[derive(Debug)]
struct UserId {
    number: u32,
    record: PathBuf,
    _held: File,
}

/// The place, taken. Dropped, all of it is gone.
pub(super) struct Place {
    unit: String,
    file: PathBuf,
    socket: PathBuf,
    listener: UnixListener,
    id: UserId,
    paths: Paths,
}

impl Place {
    /// Takes one and starts the unit.
    pub(super) fn take(paths: &Paths, app: &App, tool: &Tool, id: &str) -> Result<Self, Box<Failure>> {
        let stop = |unit: &str| release::stop_units(paths, &[unit.to_owned()]);
        let user = give_out(paths, id, &stop)?;
        let socket = directory(paths).join(id);
        let listener = UnixListener::bind(&socket).map_err(FileError::io("listen at", &socket)).or_fail()?;
        let (slice, slice_text) = units::tool_slice();
        let (unit, text) = units::tool_unit(app.name(), tool, id);
        let file = paths.units.join(&unit);
        let place = Self { unit, file, socket, listener, id: user, paths: paths.clone() };
        for (path, text) in [(paths.units.join(slice), &slice_text), (place.file.clone(), &text)] {
            if durable::read(&path).or_fail()?.as_deref() != Some(text.as_bytes()) {
                release::write_unit(&path, text).or_fail()?;
            }
        }
        systemd::systemctl(&["start", "--no-block", &place.unit]).or_fail()?;
        Ok(place)
    }

    /// The tool's user id.
    pub(super) fn uid(&self) -> u32 {
        self.id.number
    }

    /// The tool's process, once it comes.
    pub(super) fn accept(&self) -> Result<UnixStream, Box<Failure>> {
        let mut set = [PollFd::new(&self.listener, PollFlags::IN)];
        let wait = Timespec { tv_sec: i64::try_from(super::START_MAX.as_secs()).unwrap_or(0), tv_nsec: 0 };
        let came = poll(&mut set, Some(&wait)).is_ok_and(|count| count > 0);
        if came && let Ok((stream, _)) = self.listener.accept() {
            return Ok(stream);
        }
        let said = logs::of_unit(&self.unit, LOG_LINES);
        let said = if said.is_empty() { "without a word".to_owned() } else { said };
        Err(failure(FailureKind::Node, "tool", format!("the tool's unit did not start: {said}")))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let stopped = release::stop_units(&self.paths, std::slice::from_ref(&self.unit));
        // Where something of it may still run, nobody else gets its user id: the next sweep sees to it.
        let record = stopped.is_ok().then_some(&self.id.record);
        for path in [&self.file, &self.socket].into_iter().chain(record) {
            if let Err(error) = durable::remove(path) {
                systemd::eprintln_bounded(&chain(&error));
            }
        }
        if let Err(failure) = stopped {
            systemd::eprintln_bounded(&failure.message);
        }
    }
}

/// Stops a unit; when it returns, nothing of it runs.
type Stop<'a> = &'a dyn Fn(&str) -> Result<(), Box<Failure>>;

/// Ends the tools of keepers that are gone and takes their places back.
///
/// # Errors
/// The first that could not be; the others were.
pub fn sweep(paths: &Paths) -> Result<(), Box<Failure>> {
    if !ids(paths).is_dir() {
        return Ok(());
    }
    let _alone = alone(paths).or_fail()?;
    sweep_alone(paths, &|unit| release::stop_units(paths, &[unit.to_owned()]))
}

fn alone(paths: &Paths) -> Result<File, FileError> {
    let path = directory(paths).join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(FileError::io("open", &path))?;
    lock(&file, &path, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Whether the lock was to be had.
fn lock(file: &File, path: &Path, operation: FlockOperation) -> Result<bool, FileError> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(FileError::io("lock", path)(error.into())),
    }
}

fn give_out(paths: &Paths, id: &str, stop: Stop<'_>) -> Result<UserId, Box<Failure>> {
    for path in [directory(paths), ids(paths)] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(FileError::io("create", &path)).or_fail()?;
    }
    let _alone = alone(paths).or_fail()?;
    // One that cannot be taken back keeps its user id, and no other tool from running.
    if let Err(failure) = sweep_alone(paths, stop) {
        systemd::eprintln_bounded(&failure.message);
    }
    let count = tool::UIDS.end - tool::UIDS.start;
    // Not always the same first, so that what a number meant a moment ago it does not mean now.
    let begin = std::process::id() % count;
    for number in (0..count).map(|step| tool::UIDS.start + (begin + step) % count) {
        let record = ids(paths).join(number.to_string());
        let mut held = match File::create_new(&record) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(FileError::io("create", &record)(error)).or_fail(),
        };
        lock(&held, &record, FlockOperation::LockExclusive).or_fail()?;
        held.write_all(id.as_bytes()).map_err(FileError::io("write", &record)).or_fail()?;
        return Ok(UserId { number, record, _held: held });
    }
    Err(failure(FailureKind::Node, "tool", format!("{count} tools run on this node already")))
}

fn sweep_alone(paths: &Paths, stop: Stop<'_>) -> Result<(), Box<Failure>> {
    let directory = ids(paths);
    let entries = fs::read_dir(&directory).map_err(FileError::io("list", &directory)).or_fail()?;
    let mut first = Ok(());
    for entry in entries.flatten() {
        let swept = take_back(paths, &entry.path(), stop);
        first = first.and(swept);
    }
    first
}

/// What is of a tool whose keeper is gone.
fn take_back(paths: &Paths, record: &Path, stop: Stop<'_>) -> Result<(), Box<Failure>> {
    let mut file = match File::open(record) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::io("open", record)(error)).or_fail(),
    };
    if !lock(&file, record, FlockOperation::NonBlockingLockExclusive).or_fail()? {
        return Ok(());
    }
    let mut id = String::new();
    let read = io::Read::take(&mut file, ID_LENGTH as u64 + 1).read_to_string(&mut id);
    read.map_err(FileError::io("read", record)).or_fail()?;
    // A keeper that died before it wrote it had not written a unit either.
    if id.len() == ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let unit = units::tool_unit_name(&id);
        stop(&unit)?;
        for path in [paths.units.join(unit), self::directory(paths).join(id)] {
            durable::remove(&path).or_fail()?;
        }
    }
    durable::remove(record).or_fail()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn id(number: u32) -> String {
        format!("{number:016x}")
    }

    /// However many tools run, each has a user id of its own; one that nobody holds any more is given out again
    /// only after the unit that had it was stopped.
    #[test]
    fn no_two_tools_have_one_user_id() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        let none = |unit: &str| -> Result<(), Box<Failure>> { panic!("{unit} was stopped") };
        let count = tool::UIDS.end - tool::UIDS.start;
        let mut held: Vec<UserId> = (0..count).map(|number| give_out(&paths, &id(number), &none).unwrap()).collect();
        let numbers: std::collections::BTreeSet<u32> = held.iter().map(|user| user.number).collect();
        assert!(numbers.len() == count as usize && numbers.iter().all(|number| tool::UIDS.contains(number)));
        assert!(give_out(&paths, &id(count), &none).unwrap_err().message.contains("tools run on this node"));
        // As of a keeper that died.
        let free = held.remove(7).number;
        let stays = |_: &str| Err(failure(FailureKind::Node, "stop", "it goes on running"));
        assert!(give_out(&paths, &id(count), &stays).is_err());
        let stopped = RefCell::new(vec![]);
        let stop = |unit: &str| -> Result<(), Box<Failure>> {
            stopped.borrow_mut().push(unit.to_owned());
            Ok(())
        };
        assert_eq!(give_out(&paths, &id(count), &stop).unwrap().number, free);
        assert_eq!(*stopped.borrow(), [units::tool_unit_name(&id(7))]);
    }

    #[test]
    fn what_a_dead_keeper_left_is_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        let stop = |_: &str| -> Result<(), Box<Failure>> { Ok(()) };
        fs::create_dir_all(&paths.units).unwrap();
        let users: Vec<UserId> = (0..2).map(|number| give_out(&paths, &id(number), &stop).unwrap()).collect();
        let files = |number: u32| {
            let name = units::tool_unit_name(&id(number));
            [paths.units.join(name), directory(&paths).join(id(number))]
        };
        for path in files(0).iter().chain(&files(1)) {
            fs::write(path, "").unwrap();
        }
        // One that died between making the file and writing it.
        fs::write(ids(&paths).join(tool::UIDS.end.to_string()), "").unwrap();
        let [alive, dead] = users.try_into().unwrap();
        drop(dead);
        sweep_alone(&paths, &stop).unwrap();
        assert!(files(0).iter().all(|path| path.exists()), "a living keeper's files are gone");
        assert!(!files(1).iter().any(|path| path.exists()), "a dead keeper's files are there");
        let left: Vec<PathBuf> = fs::read_dir(ids(&paths)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [alive.record]);
    }
}
