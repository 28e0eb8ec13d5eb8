//! The accounts of the node, as `/etc/passwd` has them: root's, and written by
//! `install` only.

use std::{fs, io};

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
}
