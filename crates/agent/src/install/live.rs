//! Taking over on a running system, and who else listens there.

use super::{
    InstallError,
    layout::{self, JOURNALD, NFTABLES, SSHD_CONFIG, TMPFILES},
    tree::Tree,
};
use std::{collections::BTreeSet, net::Ipv6Addr};

const SYSTEMCTL: &str = "/usr/bin/systemctl";
const SSHD: &str = "bulkhead-sshd.service";

/// Puts what was written into force: directories, packet filter, keeper, and last the SSH server.
pub(super) fn take_over(tree: &mut Tree) -> Result<(), InstallError> {
    tree.run("/usr/bin/systemd-tmpfiles", &["--create", &format!("/{TMPFILES}")])?;
    if tree.wrote("etc/systemd/system") {
        tree.run(SYSTEMCTL, &["daemon-reload"])?;
    }
    if tree.wrote(JOURNALD) {
        tree.run(SYSTEMCTL, &["restart", "systemd-journald.service"])?;
        tree.run("/usr/bin/journalctl", &["--flush"])?;
    }
    if tree.wrote("etc/systemd/resolved.conf.d") {
        tree.run(SYSTEMCTL, &["try-restart", "systemd-resolved.service"])?;
    }
    let filter = if tree.wrote(NFTABLES) { "reload-or-restart" } else { "start" };
    tree.run(SYSTEMCTL, &[filter, "bulkhead-nftables.service"])?;
    tree.run(SYSTEMCTL, &["start", "bulkhead-keeper.socket"])?;

    let (runs, _) = tree.run_any(SYSTEMCTL, &["is-active", "--quiet", SSHD])?;
    let restart = !runs || tree.wrote(SSHD_CONFIG) || tree.wrote("etc/systemd/system/bulkhead-sshd");
    // A mask stops nothing. Sessions of the stock server go on: its unit kills the listener alone.
    for unit in layout::unwanted(tree).collect::<Vec<_>>() {
        let (_, state) = tree.run_any(SYSTEMCTL, &["is-active", unit])?;
        // One that is about to be restarted would take the port between two of ours.
        if !matches!(state.trim(), "inactive" | "failed" | "unknown") {
            tree.run(SYSTEMCTL, &["stop", unit])?;
            tree.changed(format!("stopped {unit}"));
        }
    }
    if restart {
        let (started, message) = tree.run_any(SYSTEMCTL, &["restart", SSHD])?;
        if !started {
            put_back(tree)?;
            return Err(InstallError::SshdFailed { message: message.trim().to_owned() });
        }
        tree.changed(format!("started {SSHD}"));
    }
    tree.run(SYSTEMCTL, &["start", "bulkhead-scrub.timer"])?;
    tree.run(SYSTEMCTL, &["start", "--no-block", "bulkhead-boot.service"])?;
    Ok(())
}

/// A machine without any SSH server could not be reached any more.
fn put_back(tree: &mut Tree) -> Result<(), InstallError> {
    for item in layout::masks(tree) {
        tree.remove(item.path())?;
    }
    tree.run(SYSTEMCTL, &["daemon-reload"])?;
    tree.run(SYSTEMCTL, &["start", "ssh.service"]).map(drop)
}

/// A note for each port other than SSH on which something listens beyond the machine itself.
pub(super) fn listeners(tree: &Tree) -> Result<Vec<String>, InstallError> {
    let mut notes = Vec::new();
    // Columns of /proc/net/tcp and udp: a listening TCP socket is in state 0A, an unconnected UDP one in 07.
    for (protocol, state) in [("tcp", "0A"), ("udp", "07")] {
        let mut ports = BTreeSet::new();
        for family in ["", "6"] {
            let table = tree.read(&format!("proc/net/{protocol}{family}"))?.unwrap_or_default();
            ports.extend(open_ports(&String::from_utf8_lossy(&table), state));
        }
        if protocol == "tcp" {
            ports.remove(&22);
        }
        notes.extend(ports.iter().map(|port| {
            format!(
                "something listens on {protocol} port {port}; the packet filter keeps others from it, better stop it"
            )
        }));
    }
    Ok(notes)
}

fn open_ports(table: &str, state: &str) -> BTreeSet<u16> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (address, port) = fields.next()?.split_once(':')?;
            let is_open = fields.nth(1)? == state;
            let port = u16::from_str_radix(port, 16).ok()?;
            (is_open && !is_loopback(address)).then_some(port)
        })
        .collect()
}

/// The kernel prints addresses as hexadecimal words in its own byte order; here that is little-endian.
fn is_loopback(address: &str) -> bool {
    match address.len() {
        8 => address.ends_with("7F"),
        32 => {
            let words: Vec<u32> = (0..4)
                .filter_map(|at| u32::from_str_radix(&address[at * 8..at * 8 + 8], 16).ok())
                .map(u32::swap_bytes)
                .collect();
            let &[a, b, c, d] = words.as_slice() else { return false };
            let bits = u128::from(a) << 96 | u128::from(b) << 64 | u128::from(c) << 32 | u128::from(d);
            let address = Ipv6Addr::from(bits);
            address.is_loopback() || address.to_ipv4_mapped().is_some_and(|mapped| mapped.is_loopback())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_open_to_others() {
        let header = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        for (row, open) in [
            ("   0: 00000000:0016 00000000:0000 0A 00000000:00000000", true),
            ("   0: 0100007F:0016 00000000:0000 0A 00000000:00000000", false),
            ("   0: 3500007F:0016 00000000:0000 0A 00000000:00000000", false),
            ("   0: 0200560A:0016 0100560A:D2F0 01 00000000:00000000", false),
            ("   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0", true),
            ("   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0", false),
            ("   0: 0000000000000000FFFF00000100007F:0016 00000000000000000000000000000000:0000 0A 0", false),
        ] {
            let expected = if open { BTreeSet::from([22]) } else { BTreeSet::new() };
            assert_eq!(open_ports(&format!("{header}{row}\n"), "0A"), expected, "{row}");
        }
    }
}
