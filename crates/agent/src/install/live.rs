//! Taking over on a running system, and who else listens there.

use super::{
    InstallError,
    before::Before,
    layout::{self, JOURNALD, KEEPER_SOCKETS, NFTABLES, SSHD_CONFIG, TMPFILES},
    tree::Tree,
};
use std::{collections::BTreeSet, net::Ipv6Addr};

pub(super) const SYSTEMCTL: &str = "/usr/bin/systemctl";
const SSHD: &str = "bulkhead-sshd.service";
/// What waits for something to happen, and is started with the node's SSH server.
const WAITING: [&str; 2] = ["bulkhead-scrub.timer", "bulkhead-drop.path"];

/// Puts what was written into force, but for the SSH server: directories, packet filter, keeper.
pub(super) fn prepare(tree: &mut Tree) -> Result<(), InstallError> {
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
    tree.run(SYSTEMCTL, &[&["start"], KEEPER_SOCKETS.as_slice()].concat()).map(drop)
}

/// Puts the node's SSH server in the place of the stock one. The masks are on disk by then, and systemd must not have
/// read them: of a masked unit it would kill every process, sessions and this program too, where the stock unit's own
/// settings have it end the listener alone.
pub(super) fn take_over(tree: &mut Tree) -> Result<(), InstallError> {
    let (runs, _) = tree.run_any(SYSTEMCTL, &["is-active", "--quiet", SSHD])?;
    let restart = !runs || tree.wrote(SSHD_CONFIG) || tree.wrote("etc/systemd/system/bulkhead-sshd");
    // A mask stops nothing.
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
    tree.run(SYSTEMCTL, &["daemon-reload"])?;
    tree.run(SYSTEMCTL, &[&["start"], WAITING.as_slice()].concat())?;
    tree.run(SYSTEMCTL, &["start", "--no-block", "bulkhead-boot.service"])?;
    Ok(())
}

/// Whether one of the stock SSH servers serves now.
pub(super) fn stock_ssh_runs(tree: &Tree) -> Result<bool, InstallError> {
    for unit in layout::unwanted(tree).filter(|unit| unit.starts_with("ssh")).collect::<Vec<_>>() {
        if tree.run_any(SYSTEMCTL, &["is-active", "--quiet", unit])?.0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A machine without any SSH server could not be reached any more.
fn put_back(tree: &mut Tree) -> Result<(), InstallError> {
    let before = Before::read(tree)?.unwrap_or_default();
    before.unmask(tree)?;
    tree.run(SYSTEMCTL, &["daemon-reload"])?;
    for unit in before.ssh_units(tree) {
        tree.run(SYSTEMCTL, &["start", &unit])?;
    }
    Ok(())
}

/// Puts the stock SSH server, and what else was stopped, back in the place of the node's own, and takes the packet
/// filter away. Where the stock server does not start the node's own does again, so that there is always one.
pub(super) fn give_back(tree: &mut Tree, before: &Before) -> Result<(), InstallError> {
    before.unmask(tree)?;
    tree.run(SYSTEMCTL, &["daemon-reload"])?;
    // It may have lost its host keys: a one-time key is dropped, and some providers make none.
    if !tree.names("etc/ssh")?.iter().any(|name| name.starts_with("ssh_host_") && name.ends_with("_key")) {
        tree.run("/usr/bin/ssh-keygen", &["-A"])?;
        tree.changed("made new host keys for the stock SSH server".to_owned());
    }
    let units = before.ssh_units(tree);
    let mut down = Vec::new();
    for unit in &units {
        if !tree.run_any(SYSTEMCTL, &["is-active", "--quiet", unit])?.0 {
            down.push(unit.as_str());
        }
    }
    if !down.is_empty() {
        // Sessions go on: only the listener is ended. Both want port 22.
        tree.run_any(SYSTEMCTL, &["stop", SSHD])?;
        for unit in &down {
            // Two names may be one unit's.
            if tree.run_any(SYSTEMCTL, &["is-active", "--quiet", unit])?.0 {
                continue;
            }
            let (started, message) = tree.run_any(SYSTEMCTL, &["start", unit])?;
            if !started {
                tree.run_any(SYSTEMCTL, &[&["stop"], down.as_slice()].concat())?;
                tree.run(SYSTEMCTL, &["start", SSHD])?;
                // It stays a node, so the next boot must start one server as well.
                for mask in layout::masks(tree) {
                    tree.apply(&mask)?;
                }
                tree.run(SYSTEMCTL, &["daemon-reload"])?;
                tree.run_any(SYSTEMCTL, &[&["start"], WAITING.as_slice()].concat())?;
                return Err(InstallError::StockSshFailed { message: message.trim().to_owned() });
            }
            tree.changed(format!("started {unit}"));
        }
    }
    for path in tree.names("etc/systemd/system")? {
        // Out of the boot first: a power cut from here on must not leave two servers for one port.
        if path.ends_with(".wants") {
            for unit in [SSHD, "bulkhead-nftables.service"] {
                tree.take_away(&format!("etc/systemd/system/{path}/{unit}"))?;
            }
        }
    }
    for unit in [SSHD, "bulkhead-nftables.service"] {
        if tree.run_any(SYSTEMCTL, &["is-active", "--quiet", unit])?.0 {
            tree.run(SYSTEMCTL, &["stop", unit])?;
            tree.changed(format!("stopped {unit}"));
        }
    }
    // That nothing can be listed is an error, and not that there is nothing.
    let tables = tree.run("/usr/sbin/nft", &["list", "tables"])?;
    if tables.lines().any(|line| line.trim() == "table inet bulkhead") {
        tree.run("/usr/sbin/nft", &["delete", "table", "inet", "bulkhead"])?;
        tree.changed("took the packet filter away".to_owned());
    }
    for unit in before.running().map(str::to_owned).collect::<Vec<_>>() {
        if !units.contains(&unit) && tree.run_any(SYSTEMCTL, &["start", &unit])?.0 {
            tree.changed(format!("started {unit}"));
        }
    }
    Ok(())
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
