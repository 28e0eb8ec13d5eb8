//! The accounts of the node, as `/etc/passwd` has them: root's, and written by
//! `install` only.

use crate::systemd;
use rustix::process::{Pid, Signal, kill_process};
use std::{collections::BTreeSet, fs, io, os::unix::fs::MetadataExt as _};

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

/// Ends the processes of accounts, and with them their connections, but for some. Whatever ran when this was called has
/// been sent its signal when it comes back.
pub fn end_sessions(accounts: &BTreeSet<&str>, but: &BTreeSet<i32>) {
    let uids = uids(&fs::read_to_string(ACCOUNTS).unwrap_or_default(), accounts);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let is_theirs = entry.metadata().is_ok_and(|metadata| uids.contains(&metadata.uid()));
        if is_theirs
            && !but.contains(&pid)
            && let Some(pid) = Pid::from_raw(pid)
            && let Err(error) = kill_process(pid, Signal::KILL)
        {
            systemd::eprintln_bounded(&format!("ending the session of process {}: {error}", pid.as_raw_nonzero()));
        }
    }
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
