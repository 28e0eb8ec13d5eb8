//! What no tool may ask of the kernel: namespaces and mounts.
//!
//! A filter of system calls in the agent's own process, which the tool inherits
//! and nobody can take off. It comes on top of the unit's, which must leave these
//! to the agent until it has entered and mounted what it has to.

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Refused whatever their arguments.
const REFUSED: &[i64] = &[
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
];
/// `clone` with one of these makes a namespace.
const NAMESPACES: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Why the filter is not in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    /// It cannot be made for this processor.
    #[error("it cannot be made: {0}")]
    Make(BackendError),
    /// The kernel did not take it.
    #[error("the kernel refused it: {0}")]
    Apply(seccompiler::Error),
}

/// From here on this process and what it starts can make no namespace and no mount.
pub(super) fn apply() -> Result<(), FilterError> {
    for program in programs().map_err(FilterError::Make)? {
        seccompiler::apply_filter(&program).map_err(FilterError::Apply)?;
    }
    Ok(())
}

fn programs() -> Result<[BpfProgram; 2], BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = |rules, errno: i32| {
        // Errors are small positive numbers.
        let answer = SeccompAction::Errno(errno.unsigned_abs());
        SeccompFilter::new(rules, SeccompAction::Allow, answer, architecture)?.try_into()
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, vec![])).collect();
    let makes_one = |flag: &i32| {
        let flag = u64::from(flag.unsigned_abs());
        // The kernel looks at the lower half of this argument only.
        let is_set = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![is_set])
    };
    rules.insert(libc::SYS_clone, NAMESPACES.iter().map(makes_one).collect::<Result<_, _>>()?);
    // What `clone3` is asked for lies in memory, where no filter can look. Libraries that are told that there is none use `clone`.
    let hidden = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    Ok([refuse(rules, libc::EPERM)?, refuse(hidden, libc::ENOSYS)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::{
        fs::CWD,
        io::Errno,
        mount::{OpenTreeFlags, open_tree},
    };
    use std::process::Command;

    fn succeeds(words: &[&str]) -> bool {
        Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success())
    }

    /// In a thread of its own, for nobody can take the filter off again.
    #[test]
    fn neither_namespaces_nor_mounts() {
        // Which everybody may, anywhere.
        let harmless = || open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLOEXEC).map(drop);
        let filtered = move || {
            apply().unwrap();
            assert_eq!(harmless(), Err(Errno::PERM));
            for refused in [["unshare", "--user", "true"], ["unshare", "--mount", "true"], ["chroot", "/", "true"]] {
                assert!(!succeeds(&refused), "{refused:?}");
            }
            // Processes and threads can be started as before.
            assert!(succeeds(&["true"]));
            std::thread::spawn(|| 7).join().unwrap()
        };
        assert_eq!(harmless(), Ok(()));
        assert_eq!(std::thread::spawn(filtered).join().unwrap(), 7);
        assert_eq!(harmless(), Ok(()));
    }
}
