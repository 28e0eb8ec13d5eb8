//! The accounts of the node, as `/etc/passwd` has them: root's, and written by
//! `install` only.

use crate::systemd;
use rustix::process::{Pid, Signal, kill_process};
use std::{collections::BTreeSet, fs, io, os::unix::fs::MetadataExt as _, thread, time::Duration};

const ACCOUNTS: &str = "/etc/passwd";

/// The account of a user id.
///
/// # Errors
/// The accounts cannot be read.
pub fn name_of(uid: u32) -> io::Result<String> {
    fs::read_to_string(ACCOUNTS).map(|passwd| find(&passwd, uid))
}

fn find(passwd: &str, uid: u32) -> String {
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2).and_then(|text| text.parse().ok()) == Some(uid));
    found.map_or_else(|| format!("uid {uid}"), |fields| fields[0].to_owned())
}

/// A session that sshd has let in, by what its key file said a moment ago, becomes its account's within this.
const LET_IN: Duration = Duration::from_secs(1);
/// Looks at all processes, at most: each finds what began during the one before.
const LOOKS_MAX: usize = 20;

/// Ends the processes of accounts, and with them their connections, but for some; those too that began while it looked.
pub fn end_sessions(accounts: &BTreeSet<&str>, but: &BTreeSet<i32>) {
    let uids = uids(&fs::read_to_string(ACCOUNTS).unwrap_or_default(), accounts);
    for _ in 0..LOOKS_MAX {
        if !end_once(&uids, but) {
            break;
        }
    }
}

/// The same after key files have changed: those too that were let in by the old ones and are not the account's yet.
pub fn end_sessions_for_good(accounts: &BTreeSet<&str>, but: &BTreeSet<i32>) {
    end_sessions(accounts, but);
    thread::sleep(LET_IN);
    end_sessions(accounts, but);
}

/// Whether there was any.
fn end_once(uids: &BTreeSet<u32>, but: &BTreeSet<i32>) -> bool {
    let mut found = false;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let is_theirs = entry.metadata().is_ok_and(|metadata| uids.contains(&metadata.uid()));
        if is_theirs
            && !but.contains(&pid)
            && let Some(pid) = Pid::from_raw(pid)
        {
            found = true;
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => {
                    let pid = pid.as_raw_nonzero();
                    systemd::eprintln_bounded(&format!("ending the session of process {pid}: {error}"));
                }
            }
        }
    }
    found
}

fn uids(passwd: &str, accounts: &BTreeSet<&str>) -> BTreeSet<u32> {
    let uid = |line: &str| {
        let mut fields = line.split(':');
        accounts.contains(fields.next()?).then(|| fields.nth(1)?.parse().ok())?
    };
    passwd.lines().filter_map(uid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbulkhead:x:999:999::\nbulkhead-observe:x:997:997::\nodd\n";
        for (uid, name) in [(0, "root"), (999, "bulkhead"), (997, "bulkhead-observe"), (50_000, "uid 50000")] {
            assert_eq!(find(passwd, uid), name);
        }
    }
    #[test]
    fn whose_sessions() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nbulkhead:x:999:999::\nbulkhead-drop:x:998:998::\nodd\nbulkhead-x:x:0\n";
        let check = |accounts: &[&str], expected: &[u32]| {
            let found = uids(passwd, &accounts.iter().copied().collect());
            assert_eq!(found, expected.iter().copied().collect(), "{accounts:?}");
        };
        check(&["bulkhead-drop"], &[998]);
        check(&["bulkhead", "bulkhead-drop"], &[998, 999]);
        check(&["odd", "nobody"], &[]);
        check(&[], &[]);
    }
}
