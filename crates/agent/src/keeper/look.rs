//! Looking into a running service from outside: `/proc`, its control group,
//! systemd. Nothing enters the service, and no path that it could have made
//! (a link, a FIFO, a device) leads the keeper out of its tree or holds it up.
//!
//! A process counts as the service's only once its root *is* the release's
//! image: while systemd prepares a service, its processes have some of its
//! namespaces already and still the node's own tree as their root.

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
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

/// Rows of a table: some megabytes at most.
const ROWS_MAX: usize = 5000;
/// What is shown of a file.
const FILE_MAX_BYTES: u64 = 64 << 10;
/// `USER_HZ`: what `/proc` counts time in, on every platform that images are for.
const TICKS_PER_SECOND: u64 = 100;
/// What is shown of a command line or a path.
const TEXT_MAX_CHARS: usize = 1000;

/// Looks.
///
/// # Errors
/// The service does not run, or what is asked for is not there.
pub fn look(paths: &Paths, app: &AppName, service: &ServiceName, view: &View) -> Result<Look, Box<Failure>> {
    let not_running =
        || failure(FailureKind::Request, "not-running", format!("{app}/{service} does not run on this node"));
    let (number, run) = App::new(paths, app.clone()).live_run().or_fail()?.ok_or_else(not_running)?;
    let spec = run.services.iter().find(|spec| spec.name == *service).ok_or_else(not_running)?;
    let unit = Names::new(app, service, number).service;
    let mut pids = systemd::processes(&unit);
    pids.sort_unstable();
    let image = fs::metadata(paths.image(run.image)).map_err(|_| not_running())?;
    pids.retain(|pid| service_root(*pid, &unit, &image).is_ok());
    let first = *pids.first().ok_or_else(not_running)?;
    let gone =
        |error: io::Error| failure(FailureKind::Request, "gone", format!("cannot look into {app}/{service}: {error}"));
    let mut look = match view {
        View::Processes => processes(&pids),
        View::Files { path } => {
            let refuse =
                |error: io::Error| failure(FailureKind::Request, "path", format!("{path} in {app}/{service}: {error}"));
            let root = service_root(first, &unit, &image).map_err(gone)?;
            return files(&root, path).map_err(refuse);
        }
        View::Sockets => service_sockets(&pids, first).map_err(gone)?,
        View::OpenFiles => open_files(&pids),
        View::Limits => limits(&unit, spec)?,
    };
    look.truncated |= look.rows.len() > ROWS_MAX;
    look.rows.truncate(ROWS_MAX);
    Ok(look)
}

fn table(columns: &[&str], rows: Vec<Vec<String>>) -> Look {
    let columns = columns.iter().map(|column| (*column).to_owned()).collect();
    Look { columns, rows, text: None, truncated: false }
}

fn bounded(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).collect()
}

/// The fields of `/proc/PID/stat` after the command's name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn status_fields(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.into(), value.trim().into())).collect()
}

fn processes(pids: &[u32]) -> Look {
    let row = |pid: &u32| {
        let status = status_fields(*pid);
        let stat = stat(*pid)?;
        let field = |key: &str| status.get(key).cloned().unwrap_or_default();
        // utime and stime are fields 14 and 15; the first two are gone with the name.
        let time: u64 = stat.get(11)?.parse::<u64>().ok()? + stat.get(12)?.parse::<u64>().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        Some(vec![
            pid.to_string(),
            field("NSpid").split_whitespace().last().unwrap_or_default().to_owned(),
            field("Uid").split_whitespace().next().unwrap_or_default().to_owned(),
            stat.first()?.clone(),
            field("Threads"),
            field("VmRSS").trim_end_matches(" kB").to_owned(),
            (time * 1000 / TICKS_PER_SECOND).to_string(),
            bounded(command.trim_end()),
        ])
    };
    let columns = ["pid", "pid inside", "user", "state", "threads", "rss_kib", "cpu_ms", "command"];
    table(&columns, pids.iter().take(ROWS_MAX + 1).filter_map(row).collect())
}

/// A process's root directory, if it is the image and the process is the unit's.
/// All is read through one handle of `/proc/PID`, so another process that gets
/// the same number meanwhile is not mistaken for it.
fn service_root(pid: u32, unit: &str, image: &fs::Metadata) -> io::Result<OwnedFd> {
    let handle =
        rustix::fs::open(format!("/proc/{pid}"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let root = openat(&handle, "root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::fstat(&root)?;
    if (found.st_dev, found.st_ino) != (image.dev(), image.ino()) {
        return Err(io::Error::other("its root is not its image: it is being prepared"));
    }
    let mut cgroup = String::new();
    let file = openat(&handle, "cgroup", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).take(FILE_MAX_BYTES).read_to_string(&mut cgroup)?;
    if !cgroup.lines().any(|line| line.rsplit('/').next() == Some(unit)) {
        return Err(io::Error::other("another process has its number"));
    }
    Ok(root)
}

/// Opens a path as the service sees it. The kernel keeps every step below the service's root.
fn open_inside(root: &OwnedFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
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
fn descriptors(pid: u32) -> Vec<(String, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
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

fn open_files(pids: &[u32]) -> Look {
    let mut rows = Vec::new();
    for pid in pids {
        rows.extend(
            descriptors(*pid).into_iter().map(|(number, target)| vec![pid.to_string(), number, bounded(&target)]),
        );
        if rows.len() > ROWS_MAX {
            break;
        }
    }
    table(&["pid", "number", "what"], rows)
}

fn service_sockets(pids: &[u32], first: u32) -> io::Result<Look> {
    let mut holders: BTreeMap<u64, u32> = BTreeMap::new();
    for pid in pids.iter().take(ROWS_MAX) {
        for (_, target) in descriptors(*pid) {
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                holders.entry(inode).or_insert(*pid);
            }
        }
    }
    let holder = |inode: u64| holders.get(&inode).map(u32::to_string).unwrap_or_default();
    let mut rows = Vec::new();
    for protocol in ["tcp", "udp"] {
        for socket in sockets::inet(first, protocol)? {
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
    for socket in sockets::unix(first)? {
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

    #[test]
    fn only_a_process_in_the_image_counts() {
        let group = fs::read_to_string("/proc/self/cgroup").unwrap();
        let unit = group.lines().next().and_then(|line| line.rsplit('/').next()).unwrap().to_owned();
        let own = fs::metadata("/").unwrap();
        assert!(service_root(me(), &unit, &own).is_ok());
        assert!(service_root(me(), "bulkhead-a.b.r1.service", &own).is_err());
        assert!(service_root(me(), &unit, &fs::metadata("/proc").unwrap()).is_err());
        assert!(service_root(u32::MAX, &unit, &own).is_err());
    }

    fn me() -> u32 {
        std::process::id()
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
        // Links of /proc that lead anywhere at all are not followed.
        assert!(files(&root(), "/proc/self/root/etc").is_err());
        let rows = look("").unwrap().rows;
        let seen: Vec<_> = rows.iter().map(|row| (row[0].as_str(), row[1].as_str(), row[5].as_str())).collect();
        assert_eq!(seen, [("f", "file", ""), ("fifo", "fifo", ""), ("link", "link", "f"), ("long", "file", "")]);
    }

    #[test]
    fn this_process() {
        let look = processes(&[me()]);
        assert_eq!(look.rows[0][0], me().to_string());
        assert_eq!(look.rows[0].len(), look.columns.len());
        let file = tempfile::NamedTempFile::new().unwrap();
        let seen = open_files(&[me()]);
        assert!(seen.rows.iter().any(|row| row[2] == file.path().to_str().unwrap()));
    }

    #[test]
    fn sockets_and_who_holds_them() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let look = service_sockets(&[me()], me()).unwrap();
        let row = look.rows.iter().find(|row| row[2] == address).unwrap();
        assert_eq!(row[..], ["tcp", "LISTEN", &address, "", &me().to_string()].map(str::to_owned));
    }
}
