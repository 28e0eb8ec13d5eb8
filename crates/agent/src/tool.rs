//! A tool's own process, before it becomes one: `bulkhead-agent tool ID`, as the
//! unit that the keeper wrote starts it.
//!
//! A tool looks into one service from outside. What it gets, and by what:
//!
//! | it has | by |
//! |---|---|
//! | the tool image as its root, read-only | a mount namespace of its own, `pivot_root` |
//! | the service's tree at `/target`, read-only, without its `/proc`, `/sys`, `/dev` | a copy of the service's mounts, made in its mount namespace |
//! | power over the service's processes, to trace them and read their memory and files | the service's *user namespace*, in which it holds three capabilities |
//! | the service's network, IPC and host name | those namespaces of the service |
//! | a `/proc` that shows the service's processes and its own, and no others | `hidepid=ptraceable` |
//!
//! And what it does not get. It is never in the service's process-id namespace:
//! the service can neither see nor signal it, its numbers do not move the
//! service's, and no child of it is ever left to the service's first process.
//! It is in the node's process-id namespace instead, but a capability in one
//! user namespace is none in another: it can trace no process of another service
//! or of the node, and its user id is nobody else's, so it can signal none.
//! All mounts are made before it enters the user namespace; in there nobody may
//! change them.
//!
//! With [`Rights::Capture`] it gets the network alone and the right to capture
//! there: neither the user namespace nor `/target`.
//!
//! No tool can make or enter a namespace, or mount: [`filter`] takes the system
//! calls for it away before the tool starts. One that captures would otherwise be
//! able to, for its user id is one of the node's own user namespace.
//!
//! # The conversation with the keeper
//!
//! The keeper listens at a socket that root alone reaches. It sends one byte
//! with file descriptors (the service's process, its root, the tool's two
//! outputs), then a length and a [`Job`]. From then on a byte `i` from it means
//! that the tool is to be interrupted, and its end that the tool is to be
//! killed. Back comes one [`End`], and that is all.

mod filter;

use crate::state::Paths;
use bulkhead_core::{ImageId, order::Rights};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Gid, Mode, OFlags, Uid},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
        UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_bind, mount_change, mount_remount,
        move_mount, open_tree, unmount,
    },
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pivot_root},
    thread::{
        CapabilitySet, CapabilitySets, LinkNameSpaceType, ThreadNameSpaceType, capabilities,
        configure_capability_in_ambient_set, move_into_link_name_space, move_into_thread_name_spaces,
        remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::symlink,
            net::UnixStream,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// What comes with the descriptors: a job is some kilobytes.
pub const JOB_MAX_BYTES: usize = 256 << 10;
/// How many descriptors come.
pub const DESCRIPTORS: usize = 4;
/// The byte by which the keeper has a tool interrupted.
pub const INTERRUPT: u8 = b'i';
/// User ids that Debian and systemd leave alone (systemd's UIDS-GIDS). No two tools have one at a time.
pub const UIDS: std::ops::Range<u32> = 60_578..61_184;
/// What a tool may write for itself.
const TMP_BYTES: &str = "64M";
/// Where tools are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Knows many tools by their names.
const BUSYBOX: &str = "/usr/bin/busybox";
/// The devices of `/dev`.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// What of `/proc` besides processes is shown: what `ps`, `top` and `free` count with. `sys` is read-only, as all is.
const SHOWN_OF_PROC: [&str; 9] =
    ["cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "sys", "uptime", "version", "vmstat"];
/// What is taken away from the service's tree: windows on the kernel, of which a tool has its own.
const NOT_OF_THE_TARGET: [&str; 3] = ["proc", "sys", "dev"];

/// What the keeper wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The tool image, mounted.
    pub image: ImageId,
    /// The command, its numbers of processes already the node's.
    pub command: Vec<String>,
    /// What it may do.
    pub rights: Rights,
    /// The user id that is its alone, of [`UIDS`].
    pub uid: u32,
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why it could not be started.
    pub failed: Option<String>,
}

/// Runs the tool that the keeper wants.
///
/// # Errors
/// The keeper is not there.
pub fn run(paths: &Paths, id: &str) -> Result<(), String> {
    let said = |error: io::Error| format!("the keeper is gone: {error}");
    let path = paths.run.join("tools").join(id);
    let mut keeper = UnixStream::connect(path).map_err(said)?;
    let (job, descriptors) = receive(&mut keeper).map_err(said)?;
    let end = match begin(paths, &job, descriptors) {
        Ok(child) => watch(&mut keeper, child).map_err(said)?,
        Err(failed) => End { failed: Some(failed), ..End::default() },
    };
    let text = serde_json::to_vec(&end).map_err(|error| error.to_string())?;
    keeper.write_all(&text).map_err(said)
}

fn receive(keeper: &mut UnixStream) -> io::Result<(Job, [OwnedFd; DESCRIPTORS])> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&*keeper, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let descriptors = descriptors.try_into().map_err(|_| io::Error::other("not the descriptors that were due"))?;
    let mut length = [0; 4];
    keeper.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > JOB_MAX_BYTES {
        return Err(io::Error::other("a longer job than any is"));
    }
    let mut text = vec![0; length];
    keeper.read_exact(&mut text)?;
    Ok((serde_json::from_slice(&text)?, descriptors))
}

/// The job and the descriptors, as [`run`] expects them.
///
/// # Errors
/// The tool's process is gone.
pub fn send(tool: &mut UnixStream, job: &Job, descriptors: [&OwnedFd; DESCRIPTORS]) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let descriptors = descriptors.map(|descriptor| descriptor.as_fd());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no space for the descriptors"));
    }
    sendmsg(&*tool, &[io::IoSlice::new(b"d")], &mut control, SendFlags::NOSIGNAL)?;
    let text = serde_json::to_vec(job)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    tool.write_all(&length.to_le_bytes())?;
    tool.write_all(&text)
}

/// Enters and starts. From the first line to the last in this order, and nothing of it can be undone.
fn begin(paths: &Paths, job: &Job, descriptors: [OwnedFd; DESCRIPTORS]) -> Result<Child, String> {
    let [process, root, stdout, stderr] = descriptors;
    let step = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let errno = |what: &'static str| move |error: Errno| format!("{what}: {}", io::Error::from(error));
    private_mounts().map_err(step("its own mounts"))?;
    let target = match job.rights {
        Rights::Trace => Some(copy_mounts(&process, &root).map_err(step("the service's tree"))?),
        Rights::Capture => None,
    };
    drop(root);
    change_root(&paths.image(job.image), target).map_err(step("the tool image"))?;
    if !UIDS.contains(&job.uid) {
        return Err(format!("{} is no tool's user id", job.uid));
    }
    become_nobody(job.uid).map_err(errno("a user id of its own"))?;
    let (spaces, rights) = match job.rights {
        Rights::Trace => (
            ThreadNameSpaceType::USER
                | ThreadNameSpaceType::NETWORK
                | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
                | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::KILL,
        ),
        Rights::Capture => (ThreadNameSpaceType::NETWORK, CapabilitySet::NET_RAW),
    };
    move_into_thread_name_spaces(process.as_fd(), spaces).map_err(errno("the service's namespaces"))?;
    drop(process);
    keep_only(rights).map_err(errno("its rights"))?;
    filter::apply().map_err(|error| format!("its filter of system calls: {error}"))?;
    spawn(&job.command, stdout, stderr).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("the tool image has no `{}`", job.command[0]),
        _ => format!("{}: {error}", job.command[0]),
    })
}

/// Makes sure that what is mounted from here on is seen by nobody else.
fn private_mounts() -> io::Result<()> {
    let space = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    if space("self")? == space("1")? {
        return Err(io::Error::other("the unit has no mount namespace of its own"));
    }
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// A copy of all mounts below the service's root, not yet anywhere. The kernel
/// copies mounts only of the namespace that one is in; this process is in the
/// service's for that one call, runs nothing there, and cannot be seen from there.
fn copy_mounts(process: &OwnedFd, root: &OwnedFd) -> io::Result<OwnedFd> {
    let own = rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(root, "", flags);
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Ok(tree?)
}

fn change_root(image: &Path, target: Option<OwnedFd>) -> io::Result<()> {
    // A mount of its own, so that it can become the root; what is mounted below it is seen here only.
    mount_bind(image, image)?;
    let sealed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(image, sealed, "")?;
    new_mount("tmpfs", &[("mode", "1777"), ("size", TMP_BYTES)], MountAttrFlags::MOUNT_ATTR_NODEV, &image.join("tmp"))?;
    devices(&image.join("dev"))?;
    // Whoever may not trace a process does not see it.
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY;
    new_mount("proc", &[("hidepid", "ptraceable")], attributes, &image.join("proc"))?;
    mask(&image.join("proc"))?;
    if let Some(tree) = target {
        put_target(&tree, &image.join("target"))?;
    }
    rustix::process::chdir(image)?;
    // The node's own tree comes to lie over the new root, and is taken away from there.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn new_mount(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags, at: &Path) -> io::Result<()> {
    let file_system = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&file_system, *key, *value)?;
    }
    fsconfig_create(&file_system)?;
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mounted = fsmount(&file_system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok(move_mount(&mounted, "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Covers what `/proc` tells of the node besides processes, but for the little that tools do not go without.
fn mask(proc: &Path) -> io::Result<()> {
    let sealed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let (name, kind, path) = (entry.file_name(), entry.file_type()?, entry.path());
        let name = name.to_string_lossy();
        if kind.is_symlink() || name.bytes().all(|byte| byte.is_ascii_digit()) || SHOWN_OF_PROC.contains(&&*name) {
            continue;
        }
        if kind.is_dir() {
            new_mount("tmpfs", &[("mode", "555"), ("size", "4k")], MountAttrFlags::MOUNT_ATTR_RDONLY, &path)?;
        } else {
            mount_bind("/dev/null", &path)?;
            mount_remount(&path, sealed, "")?;
        }
    }
    Ok(())
}

fn devices(at: &Path) -> io::Result<()> {
    new_mount("tmpfs", &[("mode", "755"), ("size", "64k")], MountAttrFlags::empty(), at)?;
    for name in DEVICES {
        fs::write(at.join(name), b"")?;
        mount_bind(Path::new("/dev").join(name), at.join(name))?;
    }
    for (name, leads_to) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(format!("/proc/self/{leads_to}"), at.join(name))?;
    }
    let sealed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    Ok(mount_remount(at, sealed, "")?)
}

/// Puts the service's tree in its place: read-only in every part, or not at all.
fn put_target(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    move_mount(tree, "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    mount_change(at, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    for name in NOT_OF_THE_TARGET {
        match unmount(at.join(name), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Nothing is mounted there, or it is no place at all.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let sealed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounts = mounts_below(&fs::read_to_string("/proc/self/mountinfo")?, at);
    for path in &mounts {
        mount_remount(path, sealed, "")?;
    }
    for path in &mounts {
        let flags = rustix::fs::statvfs(path)?.f_flag;
        if !flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(io::Error::other(format!("{} would be writable", path.display())));
        }
    }
    Ok(())
}

/// Where something is mounted at or below a path. Source: proc_pid_mountinfo(5), field 5.
fn mounts_below(mountinfo: &str, at: &Path) -> Vec<PathBuf> {
    let place = |line: &str| line.split(' ').nth(4).map(unescape);
    mountinfo.lines().filter_map(place).filter(|path| path.starts_with(at)).collect()
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Gives up root and every group; the capabilities stay for the next step.
fn become_nobody(id: u32) -> rustix::io::Result<()> {
    let held = capabilities(None)?;
    set_keep_capabilities(true)?;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_capabilities(None, CapabilitySets { effective: held.permitted, ..held })
}

/// Gives up every capability but these, which outlive the start of the tool.
fn keep_only(wanted: CapabilitySet) -> rustix::io::Result<()> {
    for capability in CapabilitySet::from_bits_retain(u64::MAX).iter_single().filter(|one| !wanted.contains(*one)) {
        match remove_capability_from_bounding_set(capability) {
            // Beyond the last that this kernel knows.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    set_capabilities(None, CapabilitySets { effective: wanted, permitted: wanted, inheritable: wanted })?;
    for capability in wanted.iter_single() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    set_no_new_privs(true)
}

/// Sets of one.
trait Single: Sized {
    /// Each by itself.
    fn iter_single(self) -> impl Iterator<Item = Self>;
}

impl Single for CapabilitySet {
    fn iter_single(self) -> impl Iterator<Item = Self> {
        (0..u64::BITS).map(|bit| Self::from_bits_retain(1 << bit)).filter(move |one| self.contains(*one))
    }
}

fn spawn(words: &[String], stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Child> {
    let start = |program: &str, stdout: OwnedFd, stderr: OwnedFd| {
        let mut command = Command::new(program);
        command.arg0(&words[0]).args(&words[1..]).env_clear().current_dir("/").process_group(0);
        command.envs([("PATH", PATH), ("HOME", "/tmp"), ("TERM", "dumb"), ("LANG", "C.UTF-8")]);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn()
    };
    match start(&words[0], stdout.try_clone()?, stderr.try_clone()?) {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && !words[0].contains('/') && Path::new(BUSYBOX).exists() =>
        {
            start(BUSYBOX, stdout, stderr)
        }
        other => other,
    }
}

/// Waits for the tool's end. The keeper may interrupt it, and ends it by being gone.
fn watch(keeper: &mut UnixStream, mut child: Child) -> io::Result<End> {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let handle = pidfd_open(group, PidfdFlags::empty())?;
    // One that has ended meanwhile needs no signal.
    let signal = |signal| {
        kill_process_group(group, signal).ok();
    };
    loop {
        let mut set = [PollFd::new(&handle, PollFlags::IN), PollFd::new(&*keeper, PollFlags::IN)];
        match poll(&mut set, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let (ended, heard) = (!set[0].revents().is_empty(), !set[1].revents().is_empty());
        if ended {
            let status = child.wait()?;
            // What it left behind; the unit's end takes the rest.
            signal(Signal::KILL);
            return Ok(End { code: status.code(), signal: status.signal(), failed: None });
        }
        if heard {
            let mut byte = [0];
            match keeper.read(&mut byte) {
                Ok(1) if byte[0] == INTERRUPT => signal(Signal::INT),
                Ok(1) => {}
                Ok(_) | Err(_) => {
                    signal(Signal::KILL);
                    child.wait()?;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_and_its_descriptors() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let job = Job { image: ImageId([7; 32]), command: vec!["ps".into()], rights: Rights::Trace, uid: UIDS.start };
        let (read, write) = rustix::pipe::pipe().unwrap();
        send(&mut ours, &job, [&write, &write, &read, &write]).unwrap();
        let (received, descriptors) = receive(&mut theirs).unwrap();
        assert_eq!(received, job);
        drop(write);
        fs::File::from(descriptors.into_iter().next().unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn places_of_mounts() {
        let text = "36 35 98:0 / /t rw - ext4 /dev/x rw\n37 36 98:0 / /t/a\\040b\\134 ro - tmpfs x rw\n\
                    38 35 98:0 / /tt rw - ext4 /dev/x rw\n";
        assert_eq!(mounts_below(text, Path::new("/t")), [PathBuf::from("/t"), PathBuf::from("/t/a b\\")]);
    }

    #[test]
    fn a_tool_ends_by_itself_or_with_its_keeper() {
        let spawn = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let (_, write) = rustix::pipe::pipe().unwrap();
            super::spawn(&words, write.try_clone().unwrap(), write).unwrap()
        };
        let (keeper, mut ours) = UnixStream::pair().unwrap();
        let end = watch(&mut ours, spawn(&["sh", "-c", "exit 3"])).unwrap();
        assert_eq!(end, End { code: Some(3), ..End::default() });
        (&keeper).write_all(&[INTERRUPT]).unwrap();
        assert_eq!(watch(&mut ours, spawn(&["sleep", "60"])).unwrap().signal, Some(2));
        drop(keeper);
        assert!(watch(&mut ours, spawn(&["sleep", "60"])).is_err());
    }
}
