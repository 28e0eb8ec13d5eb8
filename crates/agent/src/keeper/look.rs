//! Looking into a running service from outside: `/proc`, its control group,
//! systemd. Nothing enters the service, and no path that it could have made
//! (a link, a FIFO, a device) leads the keeper out of its tree or holds it up.
//!
//! A process counts as the service's only once systemd has given up its rights,
//! which it does last, and its root *is* the release's image: while systemd
//! prepares a service, its processes have some of its namespaces already and
//! still the node's own tree as their root, or mounted over it. Everything
//! shown of a process is read through one handle of its `/proc/PID`, so that
//! another process that gets its number meanwhile is never mistaken for it.

use super::{OrFail, failure};
use crate::{
    sockets,
    state::{App, Paths},
    systemd,
    units::Names,
};
use bulkhead_core::{AppName, ServiceName, order::ServiceSpec};
use bulkhead_wire::{Failure, FailureKind, Look, View};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
};

/// Rows of a table: some megabytes at most.
const ROWS_MAX: usize = 5000;
/// What is shown of a file.
const FILE_MAX_BYTES: u64 = 64 << 10;
/// Where systemd shows a service its secrets.
const CREDENTIALS: &str = "/run/credentials";
/// `USER_HZ`: what `/proc` counts time in, on every platform that images are for.
const TICKS_PER_SECOND: u64 = 100;
/// Processes of one service that are looked at: each takes two of the 1024 files that the keeper may have open.
const PROCESSES_MAX: usize = 400;
/// Where files are windows on the kernel and not the service's: `/proc`, `/sys`, control groups.
/// The keeper would see more there than the service does.
///
/// Source: linux/magic.h.
const KERNEL_FILE_SYSTEMS: [u64; 4] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x27_e0eb];
/// What is shown of a command line or a path.
const TEXT_MAX_CHARS: usize = 1000;

/// Looks.
///
/// # Errors
/// The service does not run, or what is asked for is not there.
pub fn look(paths: &Paths, app: &AppName, service: &ServiceName, view: &View) -> Result<Look, Box<Failure>> {
    let inside = inside(paths, app, service)?;
    let first = inside.first()?;
    let Inside { unit, spec, insiders, is_cut, .. } = &inside;
    let gone =
        |error: io::Error| failure(FailureKind::Request, "gone", format!("cannot look into {app}/{service}: {error}"));
    let mut look = match view {
        View::Processes => processes(insiders),
        View::Files { path } => {
            let refuse =
                |error: io::Error| failure(FailureKind::Request, "path", format!("{path} in {app}/{service}: {error}"));
            return files(&first.root, path).map_err(refuse);
        }
        View::Sockets => service_sockets(insiders, first).map_err(gone)?,
        View::OpenFiles => open_files(insiders),
        View::Limits => limits(unit, spec)?,
    };
    look.truncated |= *is_cut || look.rows.len() > ROWS_MAX;
    look.rows.truncate(ROWS_MAX);
    Ok(look)
}

/// A running service, and those of its processes that count.
pub(super) struct Inside {
    name: String,
    unit: String,
    spec: ServiceSpec,
    pub(super) insiders: Vec<Insider>,
    is_cut: bool,
}

impl Inside {
    /// The one that has been there for longest.
    pub(super) fn first(&self) -> Result<&Insider, Box<Failure>> {
        self.insiders.first().ok_or_else(|| not_running(&self.name))
    }
}

fn not_running(name: &str) -> Box<Failure> {
    failure(FailureKind::Request, "not-running", format!("{name} does not run on this node"))
}

/// The live release's service and its processes.
pub(super) fn inside(paths: &Paths, app: &AppName, service: &ServiceName) -> Result<Inside, Box<Failure>> {
    let name = format!("{app}/{service}");
    let not_running = || not_running(&name);
    let (number, run) = App::new(paths, app.clone()).live_run().or_fail()?.ok_or_else(not_running)?;
    let spec = run.services.iter().find(|spec| spec.name == *service).ok_or_else(not_running)?;
    let unit = Names::new(app, service, number).service;
    let mut pids = systemd::processes(&unit);
    pids.sort_unstable();
    let image = fs::metadata(paths.image(run.image)).map_err(|_| not_running())?;
    let is_cut = pids.len() > PROCESSES_MAX;
    let insiders: Vec<Insider> = pids
        .into_iter()
        .take(PROCESSES_MAX)
        .filter_map(|pid| Insider::hold(pid).ok())
        .filter(|insider| insider.is_inside(&unit, &image).unwrap_or(false))
        .collect();
    Ok(Inside { name, unit, spec: spec.clone(), insiders, is_cut })
}

/// A process, held so that its number cannot become another's.
pub(super) struct Insider {
    pub(super) pid: u32,
    /// Its `/proc/PID`; nothing can be read through it once the process is gone.
    handle: OwnedFd,
    /// Its root directory, opened after the rights were looked at.
    pub(super) root: OwnedFd,
    has_no_rights: bool,
}

impl Insider {
    fn hold(pid: u32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
        // In this order: a process that has given up its rights changes its root no more.
        let has_no_rights = has_no_rights(&read(&handle, "status")?);
        let root = openat(&handle, "root", flags, Mode::empty())?;
        Ok(Self { pid, handle, root, has_no_rights })
    }

    /// Whether it is the unit's, its root is the image, and its preparation is over.
    fn is_inside(&self, unit: &str, image: &fs::Metadata) -> io::Result<bool> {
        let found = rustix::fs::fstat(&self.root)?;
        let is_at_image = (found.st_dev, found.st_ino) == (image.dev(), image.ino());
        Ok(self.has_no_rights && is_at_image && systemd::is_of(&self.read("cgroup")?, unit))
    }

    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        read(&self.handle, name)
    }

    /// The held `/proc/PID` as a path.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }
}

/// A file of a held `/proc/PID`, with whatever a process wrote into it made text.
fn read(handle: &OwnedFd, name: &str) -> io::Result<String> {
    let file = openat(handle, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn status_fields(status: &str) -> BTreeMap<&str, &str> {
    status.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect()
}

/// Whether `/proc/PID/status` is of a process that can gain no rights and has a
/// system-call filter. systemd sees to both only after the mounts are made, the
/// root is changed and the node's own tree is gone from below it.
fn has_no_rights(status: &str) -> bool {
    let fields = status_fields(status);
    fields.get("NoNewPrivs") == Some(&"1") && fields.get("Seccomp") == Some(&"2")
}

fn table(columns: &[&str], rows: Vec<Vec<String>>) -> Look {
    let columns = columns.iter().map(|column| (*column).to_owned()).collect();
    Look { columns, rows, text: None, truncated: false }
}

fn bounded(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).collect()
}

/// The fields of `/proc/PID/stat` after the command's name, which may hold anything.
fn stat_fields(stat: &str) -> Option<Vec<&str>> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().collect())
}

fn processes(insiders: &[Insider]) -> Look {
    let row = |insider: &Insider| {
        let (status, stat) = (insider.read("status").ok()?, insider.read("stat").ok()?);
        let (status, stat) = (status_fields(&status), stat_fields(&stat)?);
        let field = |key: &str| status.get(key).copied().unwrap_or_default();
        // utime and stime are fields 14 and 15; the first two are gone with the name.
        let time: u64 = stat.get(11)?.parse::<u64>().ok()? + stat.get(12)?.parse::<u64>().ok()?;
        let command = insider.read("cmdline").unwrap_or_default().replace('\0', " ");
        Some(vec![
            insider.pid.to_string(),
            field("NSpid").split_whitespace().last().unwrap_or_default().to_owned(),
            field("Uid").split_whitespace().next().unwrap_or_default().to_owned(),
            (*stat.first()?).to_owned(),
            field("Threads").to_owned(),
            field("VmRSS").trim_end_matches(" kB").to_owned(),
            (time * 1000 / TICKS_PER_SECOND).to_string(),
            bounded(command.trim_end()),
        ])
    };
    let columns = ["pid", "pid inside", "user", "state", "threads", "rss_kib", "cpu_ms", "command"];
    table(&columns, insiders.iter().filter_map(row).collect())
}

/// Opens a path as the service sees it. The kernel keeps every step below the service's root.
fn open_inside(root: &OwnedFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let kind = u64::try_from(rustix::fs::fstatfs(&found)?.f_type).unwrap_or_default();
    if KERNEL_FILE_SYSTEMS.contains(&kind) {
        return Err(io::Error::other("the kernel's, not the service's; the other views show what is of interest"));
    }
    if credential_mounts(root)?.contains(&rustix::fs::fstat(&found)?.st_dev) {
        return Err(io::Error::other("the service's secrets, which are not shown"));
    }
    Ok(found)
}

/// The file systems on which systemd shows a service its secrets: mounts below `/run/credentials`, which no service
/// can put elsewhere.
fn credential_mounts(root: &OwnedFd) -> io::Result<Vec<u64>> {
    let open = |path: &str| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
    };
    let directory = match open(CREDENTIALS) {
        Ok(directory) => directory,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(vec![]),
        Err(error) => return Err(error.into()),
    };
    let own = rustix::fs::fstat(&directory)?.st_dev;
    let mut mounts = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory)?.take(ROWS_MAX) {
        let entry = entry?;
        let found = rustix::fs::statat(&directory, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        if found.st_dev != own && entry.file_name() != c".." {
            mounts.push(found.st_dev);
        }
    }
    Ok(mounts)
}

fn files(root: &OwnedFd, path: &str) -> io::Result<Look> {
    if !path.starts_with('/') {
        return Err(io::Error::other("not an absolute path"));
    }
    // Looked at before it is opened: opening a device can do something, a FIFO can wait.
    let found = File::from(open_inside(root, path, OFlags::PATH)?).metadata()?;
    if found.is_dir() {
        return listing(root, path);
    }
    if !found.is_file() {
        return Err(io::Error::other("neither a directory nor a regular file"));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open_inside(root, path, flags)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("changed while it was looked at"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    let truncated = bytes.len() as u64 > FILE_MAX_BYTES;
    bytes.truncate(usize::try_from(FILE_MAX_BYTES).unwrap_or(usize::MAX));
    Ok(Look { columns: vec![], rows: vec![], text: Some(String::from_utf8_lossy(&bytes).into_owned()), truncated })
}

fn listing(root: &OwnedFd, path: &str) -> io::Result<Look> {
    let directory = open_inside(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut rows = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(found) = rustix::fs::openat(&directory, name, flags, Mode::empty()) else { continue };
        let target = rustix::fs::readlinkat(&found, c"", Vec::new()).ok();
        let metadata = File::from(found).metadata()?;
        let kind = match metadata.mode() & 0o170_000 {
            0o040_000 => "directory",
            0o100_000 => "file",
            0o120_000 => "link",
            0o140_000 => "socket",
            0o010_000 => "fifo",
            _ => "device",
        };
        rows.push(vec![
            bounded(&name.to_string_lossy()),
            kind.to_owned(),
            format!("{:04o}", metadata.mode() & 0o7777),
            metadata.uid().to_string(),
            metadata.size().to_string(),
            bounded(&target.map(|target| target.to_string_lossy().into_owned()).unwrap_or_default()),
        ]);
        if rows.len() > ROWS_MAX {
            break;
        }
    }
    rows.sort();
    let mut look = table(&["name", "type", "mode", "user", "bytes", "target"], rows);
    look.truncated = look.rows.len() > ROWS_MAX;
    look.rows.truncate(ROWS_MAX);
    Ok(look)
}

/// What the processes have open: number and what it leads to.
fn descriptors(insider: &Insider) -> Vec<(String, String)> {
    let entries = fs::read_dir(insider.path().join("fd")).into_iter().flatten().flatten();
    let mut found: Vec<(String, String)> = entries
        .take(ROWS_MAX + 1)
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort_by_key(|(number, _)| number.parse::<u32>().unwrap_or(u32::MAX));
    found
}

fn open_files(insiders: &[Insider]) -> Look {
    let mut rows = Vec::new();
    for insider in insiders {
        let found = descriptors(insider).into_iter();
        rows.extend(found.map(|(number, target)| vec![insider.pid.to_string(), number, bounded(&target)]));
        if rows.len() > ROWS_MAX {
            break;
        }
    }
    table(&["pid", "number", "what"], rows)
}

fn service_sockets(insiders: &[Insider], first: &Insider) -> io::Result<Look> {
    let mut holders: BTreeMap<u64, u32> = BTreeMap::new();
    for insider in insiders {
        for (_, target) in descriptors(insider) {
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                holders.entry(inode).or_insert(insider.pid);
            }
        }
    }
    let holder = |inode: u64| holders.get(&inode).map(u32::to_string).unwrap_or_default();
    let mut rows = Vec::new();
    for protocol in ["tcp", "udp"] {
        for socket in sockets::inet_of(&first.path(), protocol)? {
            let at = |(address, port): (std::net::IpAddr, u16)| {
                if port == 0 { String::new() } else { std::net::SocketAddr::new(address, port).to_string() }
            };
            rows.push(vec![
                protocol.to_owned(),
                sockets::tcp_state(socket.state).to_owned(),
                at(socket.local),
                at(socket.remote),
                holder(socket.inode),
            ]);
        }
    }
    for socket in sockets::unix_of(&first.path())? {
        let state = if socket.listening { "LISTEN" } else { "ESTAB" };
        rows.push(vec![
            format!("unix-{}", socket.kind),
            state.to_owned(),
            bounded(&socket.path),
            String::new(),
            holder(socket.inode),
        ]);
    }
    Ok(table(&["protocol", "state", "local", "remote", "pid"], rows))
}

fn limits(unit: &str, spec: &ServiceSpec) -> Result<Look, Box<Failure>> {
    let properties = "MemoryCurrent,MemoryPeak,MemoryMax,TasksCurrent,TasksMax,CPUUsageNSec,CPUQuotaPerSecUSec,\
                      LimitNOFILE,NRestarts,TimeoutStopUSec";
    let shown = systemd::show(&[unit], properties).or_fail()?;
    let empty = BTreeMap::new();
    let properties = shown.get(unit).unwrap_or(&empty);
    let get = |key: &str| {
        let value = properties.get(key).map_or("", String::as_str);
        if matches!(value, "[not set]" | "18446744073709551615") { String::new() } else { value.to_owned() }
    };
    let row = |what: &str, used: &str, limit: &str, unit: &str| {
        vec![what.to_owned(), if used.is_empty() { String::new() } else { get(used) }, get(limit), unit.to_owned()]
    };
    let rows = vec![
        row("memory", "MemoryCurrent", "MemoryMax", "bytes"),
        row("memory at most so far", "MemoryPeak", "MemoryMax", "bytes"),
        row("processes and threads", "TasksCurrent", "TasksMax", "tasks"),
        row("cpu time", "CPUUsageNSec", "", "ns"),
        row("cpu per second", "", "CPUQuotaPerSecUSec", "time"),
        row("open files of a process", "", "LimitNOFILE", "files"),
        row("restarts", "NRestarts", "", "times"),
        vec!["time to stop".into(), String::new(), spec.stop_ms.to_string(), "ms".into()],
    ];
    Ok(table(&["what", "used", "limit", "unit"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This very process stands for a service: its root is ours.
    fn root() -> OwnedFd {
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn me() -> Insider {
        Insider::hold(std::process::id()).unwrap()
    }

    #[test]
    fn only_a_prepared_process_in_the_image_counts() {
        let group = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own_unit = group.lines().next().and_then(|line| line.rsplit('/').next()).unwrap().to_owned();
        let own_root = fs::metadata("/").unwrap();
        let elsewhere = fs::metadata("/proc").unwrap();
        for (has_no_rights, unit, image, expected) in [
            (true, own_unit.as_str(), &own_root, true),
            (false, &own_unit, &own_root, false),
            (true, "bulkhead-a.b.r1.service", &own_root, false),
            (true, &own_unit, &elsewhere, false),
        ] {
            let insider = Insider { has_no_rights, ..me() };
            assert_eq!(insider.is_inside(unit, image).unwrap(), expected, "{has_no_rights} {unit}");
        }
        assert!(Insider::hold(u32::MAX).is_err());
    }

    #[test]
    fn preparation_is_over_when_no_rights_are_left() {
        for (text, expected) in [
            ("NoNewPrivs:\t1\nSeccomp:\t2\n", true),
            ("NoNewPrivs:\t0\nSeccomp:\t2\n", false),
            ("NoNewPrivs:\t1\nSeccomp:\t0\n", false),
            ("", false),
        ] {
            assert_eq!(has_no_rights(text), expected, "{text}");
        }
    }

    #[test]
    fn nothing_is_read_of_a_process_that_is_gone() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let insider = Insider::hold(child.id()).unwrap();
        assert!(!descriptors(&insider).is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(insider.read("status").is_err() && descriptors(&insider).is_empty());
        assert!(processes(&[insider]).rows.is_empty());
    }

    #[test]
    fn files_and_directories() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("f"), "hello").unwrap();
        fs::write(path("long"), vec![b'a'; 100_000]).unwrap();
        std::os::unix::fs::symlink("f", path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let look = |name: &str| files(&root(), path(name).to_str().unwrap());

        assert_eq!(look("f").unwrap().text.as_deref(), Some("hello"));
        assert_eq!(look("link").unwrap().text.as_deref(), Some("hello"));
        let long = look("long").unwrap();
        assert!(long.truncated && long.text.unwrap().len() as u64 == FILE_MAX_BYTES);
        assert!(look("fifo").unwrap_err().to_string().contains("neither"));
        assert!(files(&root(), "relative").is_err());
        assert!(files(&root(), "/dev/null").is_err());
        // There the keeper sees more than a service would.
        for path in ["/proc", "/proc/1/environ", "/proc/self/status", "/sys", "/sys/kernel"] {
            assert!(files(&root(), path).unwrap_err().to_string().contains("the kernel's"), "{path}");
        }
        // Links of /proc that lead anywhere at all are not followed.
        assert!(files(&root(), "/proc/self/root/etc").is_err());
        let rows = look("").unwrap().rows;
        let seen: Vec<_> = rows.iter().map(|row| (row[0].as_str(), row[1].as_str(), row[5].as_str())).collect();
        assert_eq!(seen, [("f", "file", ""), ("fifo", "fifo", ""), ("link", "link", "f"), ("long", "file", "")]);
    }

    #[test]
    fn this_process() {
        let look = processes(&[me()]);
        assert_eq!(look.rows[0][0], std::process::id().to_string());
        assert_eq!(look.rows[0].len(), look.columns.len());
        let file = tempfile::NamedTempFile::new().unwrap();
        let seen = open_files(&[me()]);
        assert!(seen.rows.iter().any(|row| row[2] == file.path().to_str().unwrap()));
    }

    #[test]
    fn sockets_and_who_holds_them() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let look = service_sockets(&[me()], &me()).unwrap();
        let row = look.rows.iter().find(|row| row[2] == address).unwrap();
        assert_eq!(row[..], ["tcp", "LISTEN", &address, "", &std::process::id().to_string()].map(str::to_owned));
    }
}
