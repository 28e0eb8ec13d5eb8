//! What is asked of systemd, through `systemctl`, and what can be seen of its
//! units without asking: their control groups and processes.
//!
//! One `systemctl` costs some ten milliseconds, so whatever can goes into one.

use crate::durable;
use bulkhead_core::Timestamp;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// The slice that all services are in.
const SLICE: &str = "/sys/fs/cgroup/bulkhead.slice";
/// What is kept of a program's complaint.
const MESSAGE_MAX_BYTES: usize = 2000;

/// Why systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The program could not be run.
    #[error("cannot run `{program}`")]
    Run {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemd refused or failed.
    #[error("`{program}` failed: {message}")]
    Failed {
        /// Which, with its arguments.
        program: String,
        /// What it said.
        message: String,
    },
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("systemctl");
    // Bounded waits are the units' business; a prompt or a pager is nobody's here.
    command.args(["--no-ask-password", "--no-pager", "--quiet"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn shown(arguments: &[&str]) -> String {
    format!("systemctl {}", arguments.join(" ")).chars().take(400).collect()
}

fn bounded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MESSAGE_MAX_BYTES)]).trim().to_owned()
}

/// What it said, or what there is to say where it said nothing, as `--quiet` makes it about a job that failed.
fn complaint(stderr: &[u8], status: ExitStatus) -> String {
    let said = bounded(stderr);
    if said.is_empty() { format!("{status}, without a word; the units' journal may tell") } else { said }
}

/// Runs `systemctl` and gives what it wrote.
///
/// # Errors
/// It could not be run, or failed.
pub fn systemctl(arguments: &[&str]) -> Result<String, SystemdError> {
    let output =
        command(arguments).output().map_err(|source| SystemdError::Run { program: shown(arguments), source })?;
    if !output.status.success() {
        return Err(SystemdError::Failed {
            program: shown(arguments),
            message: complaint(&output.stderr, output.status),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A `systemctl` that is under way.
#[derive(Debug)]
pub struct Job {
    child: Child,
    program: String,
}

/// Begins a `systemctl` without waiting for its end.
///
/// # Errors
/// It could not be run.
pub fn begin(arguments: &[&str]) -> Result<Job, SystemdError> {
    let program = shown(arguments);
    match command(arguments).stdout(Stdio::null()).spawn() {
        Ok(child) => Ok(Job { child, program }),
        Err(source) => Err(SystemdError::Run { program, source }),
    }
}

impl Job {
    /// Waits for its end.
    ///
    /// # Errors
    /// It failed.
    pub fn wait(mut self) -> Result<(), SystemdError> {
        let waited = self.child.wait();
        waited.map_err(|source| SystemdError::Run { program: self.program.clone(), source })?;
        self.poll().map(drop)
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// It failed.
    pub fn poll(&mut self) -> Result<bool, SystemdError> {
        let failed = |message| SystemdError::Failed { program: self.program.clone(), message };
        match self.child.try_wait() {
            Ok(None) => Ok(false),
            Ok(Some(status)) if status.success() => Ok(true),
            Ok(Some(status)) => {
                let mut message = Vec::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    let bound = MESSAGE_MAX_BYTES as u64;
                    io::Read::read_to_end(&mut io::Read::take(&mut stderr, bound), &mut message)
                        .map_err(|source| SystemdError::Run { program: self.program.clone(), source })?;
                }
                Err(failed(complaint(&message, status)))
            }
            Err(source) => Err(SystemdError::Run { program: self.program.clone(), source }),
        }
    }
}

impl Drop for Job {
    /// A job left behind is not waited for: it may wait itself for what is
    /// about to be stopped. Only `systemctl` ends, systemd goes on.
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        if let Err(error) = self.child.wait() {
            eprintln_bounded(&format!("cannot wait for {}: {error}", self.program));
        }
    }
}

/// A line for the journal: standard error of the keeper and of boot.
pub fn eprintln_bounded(text: &str) {
    use io::Write as _;
    // Nothing is left to do where even standard error is gone.
    drop(writeln!(io::stderr(), "{}", text.chars().take(4000).collect::<String>()));
}

/// Properties of units, by unit and name.
///
/// # Errors
/// systemd could not be asked.
pub fn show(units: &[&str], properties: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>, SystemdError> {
    if units.is_empty() {
        return Ok(BTreeMap::new());
    }
    let properties = format!("--property=Id,{properties}");
    let mut arguments = vec!["show", "--timestamp=unix", properties.as_str()];
    arguments.extend(units);
    Ok(parse_show(&systemctl(&arguments)?))
}

fn parse_show(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    text.split("\n\n")
        .filter_map(|block| {
            let mut properties: BTreeMap<String, String> = block
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            Some((properties.remove("Id")?, properties))
        })
        .collect()
}

/// A time as `systemctl show --timestamp=unix` writes it.
#[must_use]
pub fn timestamp(text: &str) -> Option<Timestamp> {
    text.strip_prefix('@')?.parse().ok().filter(|seconds| *seconds > 0).map(Timestamp)
}

/// Where the version is kept for this boot.
const VERSION: &str = "/run/bulkhead/systemd.json";
/// What `systemctl` is found as on every system that this runs on.
const SYSTEMCTL: &str = "/usr/bin/systemctl";

/// systemd's version. It is asked once for each `systemctl` that is installed and kept for the boot: to ask costs
/// as much as to start a unit.
///
/// # Errors
/// It could not be asked, or its answer holds no number.
pub fn version() -> Result<u32, SystemdError> {
    version_kept_in(Path::new(VERSION), Path::new(SYSTEMCTL), || systemctl(&["--version"]))
}

fn version_kept_in(
    kept: &Path,
    program: &Path,
    ask: impl FnOnce() -> Result<String, SystemdError>,
) -> Result<u32, SystemdError> {
    use std::os::unix::fs::MetadataExt as _;
    // Another program at the same place differs in one of these.
    let found = fs::metadata(program).ok().map(|found| {
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        (found.dev(), found.ino(), found.size(), times)
    });
    let known = fs::read(kept).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some((of, version)) = known
        && Some(of) == found
    {
        return Ok(version);
    }
    let text = ask()?;
    let version = parse_version(&text).ok_or_else(|| SystemdError::Failed {
        program: "systemctl --version".into(),
        message: bounded(text.as_bytes()),
    })?;
    if let Some(found) = found {
        // Where it cannot be kept, it is asked again.
        drop(durable::write_json(kept, &(found, version)));
    }
    Ok(version)
}

fn parse_version(text: &str) -> Option<u32> {
    let word = text.split_whitespace().nth(1)?;
    word.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// A service unit's control group.
#[must_use]
pub fn cgroup(unit: &str) -> PathBuf {
    PathBuf::from(SLICE).join(unit)
}

/// The processes of a service unit, in no order. Empty where there are none.
#[must_use]
pub fn processes(unit: &str) -> Vec<u32> {
    let mut found = Vec::new();
    let mut directories = vec![cgroup(unit)];
    // A service has no rights over its control group, so there is one level; a bound all the same.
    for _ in 0..64 {
        let Some(directory) = directories.pop() else { break };
        if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        let children = fs::read_dir(&directory).into_iter().flatten().flatten();
        directories
            .extend(children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    }
    found
}

/// Ends the processes of a service that are process 1 of their namespace and do
/// nothing on SIGTERM. Anywhere else SIGTERM would end them; for process 1 the
/// kernel ignores a signal without a handler, and the service would be waited
/// for in vain until its time to stop is up.
pub fn end_deaf_processes(unit: &str) {
    for pid in processes(unit) {
        // One that has ended meanwhile is what was wanted.
        end_if_deaf(pid, unit).ok();
    }
}

/// Sends SIGTERM to the processes of a service.
pub fn terminate_processes(unit: &str) {
    for pid in processes(unit) {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(handle) = number.and_then(|number| pidfd_open(number, PidfdFlags::empty()).ok()) else { continue };
        // As below: the handle first, then whether it is the unit's.
        if fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|group| is_of(&group, unit)) {
            // One that has ended meanwhile is what was wanted.
            pidfd_send_signal(&handle, Signal::TERM).ok();
        }
    }
}

/// Kills through a handle that is taken before the process is looked at: if its
/// number has become another's since it was listed, that one is not the unit's.
fn end_if_deaf(pid: u32, unit: &str) -> io::Result<bool> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let handle = pidfd_open(number, PidfdFlags::empty())?;
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let is_due = is_of(&group, unit) && is_deaf(&status);
    if is_due {
        pidfd_send_signal(&handle, Signal::KILL)?;
    }
    Ok(is_due)
}

/// Whether `/proc/PID/cgroup` is of a process of this unit.
#[must_use]
pub fn is_of(group: &str, unit: &str) -> bool {
    group.lines().any(|line| line.rsplit('/').next() == Some(unit))
}

/// Whether `/proc/PID/status` is of a process 1 for which SIGTERM has its
/// default action: neither caught, nor ignored on purpose, nor blocked to be waited for.
fn is_deaf(status: &str) -> bool {
    const SIGTERM: u64 = 1 << 14;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
    let numbers: Vec<&str> = field("NSpid").map(|text| text.split_whitespace().collect()).unwrap_or_default();
    let is_first = numbers.len() > 1 && numbers.last() == Some(&"1");
    let has_default = ["SigCgt", "SigIgn", "SigBlk"].iter().all(|key| {
        field(key).and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & SIGTERM == 0)
    });
    is_first && has_default
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, expected) in [
            ("systemd 257 (257.13-1~deb13u1)\n+PAM +AUDIT", Some(257)),
            ("systemd 252 (252.39-1~deb12u2)", Some(252)),
            ("systemd 258~rc1 (x)", Some(258)),
            ("systemd", None),
            ("systemd x", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    #[test]
    fn the_version_is_asked_once_for_each_program() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, program) = (directory.path().join("kept"), directory.path().join("systemctl"));
        let check = |answer: Option<u32>, expected| {
            let ask = || Ok(format!("systemd {} (x)", answer.expect("nobody is asked")));
            assert_eq!(version_kept_in(&kept, &program, ask).unwrap(), expected);
        };
        fs::write(&program, "one").unwrap();
        check(Some(252), 252);
        check(None, 252);
        fs::write(&program, "another").unwrap();
        check(Some(257), 257);
        check(None, 257);
        fs::write(&kept, "nonsense").unwrap();
        check(Some(257), 257);
        fs::remove_file(&program).unwrap();
        check(Some(258), 258);
    }

    #[test]
    fn properties_of_several_units() {
        let shown = parse_show("Id=a.service\nActiveState=active\nMainPID=5\n\nId=b.service\nActiveState=failed\n");
        assert_eq!(shown["a.service"]["MainPID"], "5");
        assert_eq!(shown["b.service"]["ActiveState"], "failed");
    }

    #[test]
    fn a_silent_failure_is_told_all_the_same() {
        let error = systemctl(&["is-active", "bulkhead-there-is-no-such-unit.service"]).unwrap_err();
        match error {
            SystemdError::Failed { message, .. } => assert!(!message.is_empty()),
            // Where there is no systemd at all.
            SystemdError::Run { .. } => {}
        }
    }

    #[test]
    fn groups() {
        for (group, expected) in [
            ("0::/bulkhead.slice/bulkhead-a.b.r1.service\n", true),
            ("12:memory:/x\n0::/bulkhead.slice/bulkhead-a.b.r1.service\n", true),
            ("0::/bulkhead.slice/bulkhead-a.b.r11.service\n", false),
            ("0::/bulkhead.slice/bulkhead-a.b.r1.service (deleted)\n", false),
            ("", false),
        ] {
            assert_eq!(is_of(group, "bulkhead-a.b.r1.service"), expected, "{group}");
        }
    }

    /// Neither of another unit nor one that hears: it lives.
    #[test]
    fn who_has_got_a_number_meanwhile_is_left_alone() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        assert!(!end_if_deaf(child.id(), "bulkhead-a.b.r1.service").unwrap());
        assert!(child.try_wait().unwrap().is_none());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(end_if_deaf(u32::MAX, "bulkhead-a.b.r1.service").is_err());
    }

    #[test]
    fn times() {
        assert_eq!(timestamp("@1795432883"), Some(Timestamp(1_795_432_883)));
        assert_eq!(timestamp("@0"), None);
        assert_eq!(timestamp(""), None);
    }

    #[test]
    fn who_does_not_hear_a_sigterm() {
        let status = |pids: &str, blocked: &str, ignored: &str, caught: &str| {
            format!("Name:\tx\nNSpid:\t{pids}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n")
        };
        let (none, term) = ("0000000000000000", "0000000000004000");
        for (text, expected) in [
            (status("189\t1", none, none, none), true),
            (status("189\t1", none, "0000000000001000", "0000000188000000"), true),
            (status("189\t1", none, none, term), false),
            (status("189\t1", none, term, none), false),
            (status("189\t1", term, none, none), false),
            (status("189\t7", none, none, none), false),
            (status("1", none, none, none), false),
            (String::new(), false),
        ] {
            assert_eq!(is_deaf(&text), expected, "{text}");
        }
    }
}
