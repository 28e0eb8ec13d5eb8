//! Calls to the kernel that a sandbox must refuse, each with arguments with which it could succeed elsewhere.
#![expect(unsafe_code, reason = "what is asked for here no safe interface offers")]
#![expect(clippy::print_stdout, reason = "a test program talks through its standard streams")]

use libc::{c_long, syscall};
use std::{io, ptr};

/// Long enough for whatever structure a call reads; of zeros, which most take for "the default".
type Zeros = [u64; 32];

pub(crate) fn try_all() {
    let mut zeros: Zeros = [0; 32];
    let zeros = zeros.as_mut_ptr();
    let none = ptr::null::<u8>();
    let (tmpfs, root) = (c"tmpfs".as_ptr(), c"/tmp".as_ptr());
    let parent = std::os::unix::process::parent_id();
    // SAFETY: each call gets valid memory or none, and this process does nothing after them that they could disturb.
    let calls: [(&str, &dyn Fn() -> c_long); 24] = unsafe {
        [
            ("mount", &|| syscall(libc::SYS_mount, tmpfs, root, tmpfs, 0, none)),
            ("umount2", &|| syscall(libc::SYS_umount2, c"/nowhere".as_ptr(), 0)),
            ("open_tree", &|| syscall(libc::SYS_open_tree, libc::AT_FDCWD, root, 1)),
            ("fsopen", &|| syscall(libc::SYS_fsopen, tmpfs, 0)),
            ("chroot", &|| syscall(libc::SYS_chroot, root)),
            ("pivot_root", &|| syscall(libc::SYS_pivot_root, root, root)),
            ("unshare user", &|| syscall(libc::SYS_unshare, libc::CLONE_NEWUSER)),
            ("unshare mounts", &|| syscall(libc::SYS_unshare, libc::CLONE_NEWNS)),
            ("setns", &|| syscall(libc::SYS_setns, 0, 0)),
            ("ptrace its parent", &|| syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, parent, 0, 0)),
            ("read its parent's memory", &|| syscall(libc::SYS_process_vm_readv, parent, zeros, 0, zeros, 0, 0)),
            ("kcmp", &|| syscall(libc::SYS_kcmp, parent, parent, 0, 0, 0)),
            ("pidfd_getfd", &|| syscall(libc::SYS_pidfd_getfd, 0, 0, 0)),
            ("bpf", &|| syscall(libc::SYS_bpf, 0, zeros, 64)),
            ("io_uring_setup", &|| syscall(libc::SYS_io_uring_setup, 8, zeros)),
            ("keyctl", &|| syscall(libc::SYS_keyctl, 0, -3, 1)),
            ("add_key", &|| syscall(libc::SYS_add_key, c"user".as_ptr(), c"x".as_ptr(), c"y".as_ptr(), 1, -3)),
            ("userfaultfd", &|| syscall(libc::SYS_userfaultfd, 1)),
            ("perf_event_open", &|| syscall(libc::SYS_perf_event_open, zeros, 0, -1, -1, 0)),
            ("open_by_handle_at", &|| syscall(libc::SYS_open_by_handle_at, libc::AT_FDCWD, zeros, 0)),
            ("init_module", &|| syscall(libc::SYS_init_module, zeros, 8, c"".as_ptr())),
            ("settimeofday", &|| syscall(libc::SYS_settimeofday, none, none)),
            ("reboot", &|| syscall(libc::SYS_reboot, 0, 0, 0, none)),
            ("sched_setscheduler", &|| syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const ONE)),
        ]
    };
    for (name, call) in calls {
        report(name, call());
    }
    // SAFETY: no memory is given.
    unsafe {
        for (name, family) in [
            ("netlink", libc::AF_NETLINK),
            ("packet", libc::AF_PACKET),
            ("vsock", libc::AF_VSOCK),
            ("alg", libc::AF_ALG),
        ] {
            report(&format!("a socket of {name}"), syscall(libc::SYS_socket, family, libc::SOCK_DGRAM, 0));
        }
        report("a raw socket", syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_RAW, 1));
        let (all, private) =
            (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        report("memory to write and execute", syscall(libc::SYS_mmap, 0, 4096, all, private, -1, 0));
    }
}

static ONE: libc::c_int = 1;

fn report(name: &str, result: c_long) {
    match result {
        -1 => println!("{name} {}", io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        _ => println!("{name} done"),
    }
}
