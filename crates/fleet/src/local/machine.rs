//! One machine: starting it, finding it again, ending it.
//!
//! A machine is a `systemd-nspawn` process of ours, the supervisor, and its one
//! child, process 1 of the machine, the leader. When the leader ends the kernel
//! ends everything in its process namespace, and the supervisor takes down
//! what it made.
//!
//! Where systemd runs this machine it gives each supervisor a scope. Where it
//! does not, each is put into a control group made for it: systemd inside
//! would else share its unit groups with that of the next machine.

use super::{LocalError, failed, read_state, tools::run, write_state};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long the kernel may take to end killed processes.
const KILL_WITHIN: Duration = Duration::from_secs(10);
/// How much of the console an error quotes.
const CONSOLE_LINES: usize = 15;
/// `f_type` of overlayfs, from the kernel's `magic.h`.
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// Whether a directory is on an overlay file system.
pub(super) fn is_overlay(path: &Path) -> Result<bool, LocalError> {
    let facts = rustix::fs::statfs(path).map_err(|errno| failed("examine", path)(errno.into()))?;
    Ok(facts.f_type == OVERLAYFS_MAGIC)
}

/// A process that cannot be taken for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: u32,
    /// When it was started, in clock ticks since the boot.
    started: u64,
    /// Which boot of this machine.
    boot: String,
}

impl Process {
    fn of(pid: u32) -> Option<Self> {
        let (_, started) = stat(pid)?;
        Some(Self { pid, started, boot: boot_id() })
    }

    /// Whether it runs. One that has ended and is a child of this process is put to rest.
    pub(super) fn is_alive(&self) -> bool {
        let Some((state, started)) = stat(self.pid) else { return false };
        if started != self.started || boot_id() != self.boot {
            return false;
        }
        if state == 'Z' {
            let _no_child_of_ours = self.pid().map(|pid| waitpid(Some(pid), WaitOptions::NOHANG));
        }
        !matches!(state, 'Z' | 'X')
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.pid).ok()?)
    }

    /// A handle that stays with this very process.
    fn handle(&self) -> Option<OwnedFd> {
        let handle = pidfd_open(self.pid()?, PidfdFlags::empty()).ok()?;
        // Checked after opening: from here on the handle is its, or is of no use.
        self.is_alive().then_some(handle)
    }

    fn signal(&self, signal: Signal, machine: &str) -> Result<(), LocalError> {
        let Some(handle) = self.handle() else { return Ok(()) };
        match pidfd_send_signal(handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(LocalError::Signal { pid: self.pid, machine: machine.to_owned(), source: errno.into() }),
        }
    }

    /// Waits for its end; whether it came in time.
    fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while let Some(handle) = self.handle() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            // A handle becomes readable when its process ends. An interruption only means another round.
            let _readable = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout));
            if self.is_alive() && left.is_zero() {
                return false;
            }
        }
        true
    }

    /// Its children.
    fn children(&self) -> Vec<u32> {
        let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

/// State and start time from `/proc/PID/stat`, proc(5) fields 3 and 22.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may itself hold spaces and parentheses.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A machine, running or not.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) hostname: String,
    /// Where its state is; its tree is `root` in there.
    pub(super) directory: PathBuf,
    pub(super) bridge: String,
}

impl Machine {
    fn record(&self) -> PathBuf {
        self.directory.join("run.json")
    }

    fn console(&self) -> PathBuf {
        self.directory.join("console")
    }

    /// Whether it ever was.
    pub(super) fn was_started(&self) -> bool {
        self.console().exists()
    }

    /// The end of what it printed, in one line.
    pub(super) fn console_tail(&self) -> String {
        let bytes = fs::read(self.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("; ")
    }

    /// Its supervisor, if it runs.
    pub(super) fn find(&self) -> Result<Option<Process>, LocalError> {
        Ok(read_state::<Process>(&self.record())?.filter(Process::is_alive))
    }

    /// Process 1 of the machine, by its id out here.
    pub(super) fn leader(&self) -> Result<Option<u32>, LocalError> {
        Ok(self.find()?.and_then(|supervisor| leader_of(&supervisor)).map(|leader| leader.pid))
    }

    /// Starts it. Returns as soon as its supervisor runs.
    pub(super) fn start(&self) -> Result<Process, LocalError> {
        // What a supervisor that was itself killed could not take down.
        self.clear()?;
        let console = self.console();
        let output = File::create(&console).map_err(failed("make", &console))?;
        let errors = output.try_clone().map_err(failed("make", &console))?;
        let systemd_is_here = Path::new("/run/systemd/system").is_dir();
        let groups = if systemd_is_here { Vec::new() } else { self.groups() };
        for group in &groups {
            fs::create_dir_all(group).map_err(failed("make the control group", group))?;
        }
        // The shell enters the groups, waits until it is on record (or ends with
        // whoever would have put it there), and then becomes setsid, which becomes
        // the supervisor: this process id is its. The session of its own keeps the
        // terminal's signals from it.
        let mut command = Command::new("/bin/sh");
        command
            .args([
                "-c",
                "while [ \"$1\" != -- ]; do echo $$ > \"$1/cgroup.procs\" || exit 1; shift; done; shift; \
                 read -r _ || exit 1; exec \"$@\" </dev/null",
            ])
            .arg("sh")
            .args(&groups)
            .args(["--", "setsid", "systemd-nspawn"])
            .args(["--quiet", "--boot", "--settings=no", "--register=no", "--console=read-only"])
            .args(["--link-journal=no", "--resolv-conf=off", "--timezone=off"])
            .arg(format!("--machine={}", self.name))
            .arg(format!("--hostname={}", self.hostname))
            .arg(format!("--network-bridge={}", self.bridge))
            .arg("--directory")
            .arg(self.directory.join("root"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors);
        if !systemd_is_here {
            // There is nobody to ask for a scope, and what hierarchy the machine gets must be said.
            command.arg("--keep-unit").env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        }
        let mut child =
            command.spawn().map_err(|source| LocalError::Run { program: "systemd-nspawn".to_owned(), source })?;
        let process = Process::of(child.id()).ok_or_else(|| LocalError::Run {
            program: "systemd-nspawn".to_owned(),
            source: io::Error::other("it ended at once"),
        })?;
        if let Err(error) = write_state(&self.record(), &process) {
            // Nobody would find it again.
            drop(child.kill());
            drop(child.wait());
            return Err(error);
        }
        // One that has ended already is found so.
        drop(child.stdin.take().map(|mut stdin| stdin.write_all(b"\n")));
        Ok(process)
    }

    /// Powers it off and waits; ends it by force where that takes too long.
    pub(super) fn stop(&self, limit: Duration) -> Result<(), LocalError> {
        if let Some(supervisor) = self.find()? {
            // The supervisor asks process 1 to power off; one that has no process 1 yet ends itself.
            supervisor.signal(Signal::TERM, &self.name)?;
            if !supervisor.ends_within(limit) {
                return self.kill();
            }
        }
        self.clear()
    }

    /// Ends all of its processes at once.
    pub(super) fn kill(&self) -> Result<(), LocalError> {
        if let Some(supervisor) = self.find()? {
            match leader_of(&supervisor) {
                Some(leader) => leader.signal(Signal::KILL, &self.name)?,
                None => supervisor.signal(Signal::KILL, &self.name)?,
            }
            // It takes down what it made, then ends. If it does not, it is made to.
            if !supervisor.ends_within(KILL_WITHIN) {
                supervisor.signal(Signal::KILL, &self.name)?;
                supervisor.ends_within(KILL_WITHIN);
            }
        }
        self.clear()
    }

    /// Removes what a machine that has ended may leave behind.
    fn clear(&self) -> Result<(), LocalError> {
        for kind in ["propagate", "unix-export"] {
            let left = Path::new("/run/systemd/nspawn").join(kind).join(&self.name);
            if left.exists() {
                if is_mount_point(&left) {
                    run("umount", &[Path::new("--lazy"), &left])?;
                }
                fs::remove_dir_all(&left).map_err(failed("remove", &left))?;
            }
        }
        for group in self.groups() {
            remove_group(&group, KILL_WITHIN).map_err(failed("remove the control group", &group))?;
        }
        let record = self.record();
        match fs::remove_file(&record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &record)(error)),
            _ => Ok(()),
        }
    }

    /// The control groups for it, in each hierarchy that systemd uses, below this process's own.
    fn groups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        hierarchies(&mounts, &own).into_iter().map(|group| group.join(&self.name)).collect()
    }
}

/// This process's groups in the unified hierarchy and in version 1's
/// `name=systemd`, from `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn hierarchies(mounts: &str, own: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let kind = right.split(' ').next().unwrap_or_default();
        let is_named = right.split([' ', ',']).any(|word| word == "name=systemd");
        let key = match kind {
            "cgroup2" => "0::",
            "cgroup" if is_named => "name=systemd:",
            _ => continue,
        };
        let path = own.lines().find_map(|line| {
            let at = line.find(key)?;
            (key == "name=systemd:" || at == 0).then(|| &line[at + key.len()..])
        });
        if let Some(path) = path {
            found.push(Path::new(point).join(path.trim_start_matches('/')));
        }
    }
    found
}

/// Removes a control group and those in it. Processes that are on their way out, such as the shell of a maker that was
/// killed, are waited for: whoever removes a machine is the last to look.
fn remove_group(group: &Path, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match remove_group_now(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn remove_group_now(group: &Path) -> io::Result<()> {
    let result = (|| {
        for entry in fs::read_dir(group)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove_group_now(&entry.path())?;
            }
        }
        fs::remove_dir(group)
    })();
    // Somebody else removed it, or nobody made it.
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn is_mount_point(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

/// Among the supervisor's children the one that is process 1 of its own namespace.
fn leader_of(supervisor: &Process) -> Option<Process> {
    supervisor.children().into_iter().find_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let ids: Vec<&str> = line.split_whitespace().collect();
        (ids.len() > 1 && ids.last() == Some(&"1")).then(|| Process::of(pid)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_go_when_their_last_process_has_ended() {
        let machine = Machine {
            name: format!("bulkhead-test-{}", std::process::id()),
            hostname: String::new(),
            directory: PathBuf::new(),
            bridge: String::new(),
        };
        let groups = machine.groups();
        let is_ours = |group: &PathBuf| group.parent().is_some_and(|own| own.join("cgroup.procs").exists());
        if !rustix::process::geteuid().is_root() || groups.is_empty() || !groups.iter().all(is_ours) {
            // Root alone may, where control groups of systemd's are mounted.
            return;
        }
        for group in &groups {
            fs::create_dir_all(group.join("inner")).expect("root may make it");
            let mut last = Command::new("sleep").arg("0.3").spawn().expect("it runs");
            fs::write(group.join("inner/cgroup.procs"), last.id().to_string()).expect("it may be moved");
            let error = remove_group(group, Duration::ZERO).expect_err("a process is in there");
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
            remove_group(group, Duration::from_secs(10)).expect("the process ends");
            assert!(!group.exists());
            last.wait().expect("it is ours");
            remove_group(group, Duration::ZERO).expect("it is gone already");
        }
    }

    #[test]
    fn processes_are_told_apart() {
        let this = Process::of(std::process::id()).expect("this process runs");
        assert!(this.is_alive());
        assert!(!Process { started: this.started + 1, ..this.clone() }.is_alive());
        assert!(!Process { boot: "another".to_owned(), ..this.clone() }.is_alive());
        assert!(Process { started: this.started + 1, ..this }.ends_within(Duration::ZERO));
    }

    #[test]
    fn control_groups() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      31 25 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
                      32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let unified = "32 25 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
        for (mounts, own, expected) in [
            (
                hybrid,
                "9:name=systemd:/a\n8:pids:/p\n0::/\n",
                vec!["/sys/fs/cgroup/systemd/a", "/sys/fs/cgroup/unified"],
            ),
            (unified, "0::/init.scope\n", vec!["/sys/fs/cgroup/init.scope"]),
            ("", "0::/\n", vec![]),
        ] {
            let expected: Vec<PathBuf> = expected.into_iter().map(PathBuf::from).collect();
            assert_eq!(hierarchies(mounts, own), expected);
        }
    }
}
