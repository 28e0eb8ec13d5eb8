//! The bridge of a local fleet, and which /24 is free for it.
//!
//! Nodes hang on the bridge by a pair of interfaces that `systemd-nspawn` makes
//! and that ends with the machine. There is no DHCP, DNS or way out.

use super::{LocalError, tools::run};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

/// `10.86.N.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Subnet(u8);

impl Subnet {
    pub(super) fn host(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 86, self.0, host)
    }

    /// The bridge's own address.
    pub(super) fn gateway(self) -> Ipv4Addr {
        self.host(1)
    }

    fn prefix(self) -> Prefix {
        Prefix { address: self.host(0), length: 24 }
    }
}

/// An IPv4 prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prefix {
    address: Ipv4Addr,
    length: u8,
}

impl Prefix {
    /// Reads `10.0.0.0/8` or a bare address.
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let length = length.parse().ok().filter(|length| *length <= 32)?;
        Some(Self { address: address.parse().ok()?, length })
    }

    fn overlaps(self, other: Self) -> bool {
        let length = self.length.min(other.length);
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        self.address.to_bits() & mask == other.address.to_bits() & mask
    }
}

/// The prefixes in the output of `ip -o -4 address` and `ip -4 route`. The
/// default route and wide routes that contain all of 10/8 take nothing: a more specific one is fine beside them.
fn taken(output: &str) -> Vec<Prefix> {
    output.split_whitespace().filter_map(Prefix::parse).filter(|prefix| prefix.length >= 16).collect()
}

/// Makes sure that the bridge is there and up; returns its network, which is
/// `preferred` wherever that is free.
pub(super) fn ensure(bridge: &str, preferred: Subnet) -> Result<Subnet, LocalError> {
    if Path::new("/sys/class/net").join(bridge).exists() {
        let gateway = format!("{}/24", preferred.gateway());
        run("ip", &["address", "replace", &gateway, "dev", bridge])?;
        run("ip", &["link", "set", bridge, "up"])?;
        return Ok(preferred);
    }
    let _lock = lock()?;
    let used = taken(&(run("ip", &["-o", "-4", "address"])? + &run("ip", &["-4", "route"])?));
    let subnet = std::iter::once(preferred)
        .chain((0..=255).map(Subnet))
        .find(|subnet| !used.iter().any(|prefix| prefix.overlaps(subnet.prefix())))
        .ok_or(LocalError::NoAddress { what: "every /24 of 10.86.0.0/16 is in use here" })?;
    run("ip", &["link", "add", bridge, "type", "bridge"])?;
    let set_up = run("ip", &["address", "add", &format!("{}/24", subnet.gateway()), "dev", bridge])
        .and_then(|_| run("ip", &["link", "set", bridge, "up"]));
    if let Err(error) = set_up {
        drop(remove(bridge));
        return Err(error);
    }
    Ok(subnet)
}

/// One fleet at a time chooses a network and takes it: two that start together would choose the same, and each meet the
/// nodes of the other.
fn lock() -> Result<File, LocalError> {
    const LOCK: &str = "/run/bulkhead-local.lock";
    let failed = |operation| move |source| LocalError::File { operation, path: LOCK.into(), source };
    let file = File::options().append(true).create(true).open(LOCK).map_err(failed("open"))?;
    file.lock().map_err(failed("lock"))?;
    Ok(file)
}

/// Removes the bridge, if it is there.
pub(super) fn remove(bridge: &str) -> Result<(), LocalError> {
    if Path::new("/sys/class/net").join(bridge).exists() {
        run("ip", &["link", "delete", bridge])?;
    }
    Ok(())
}

/// Whether an SSH server answers at this address; waits a moment where none does.
pub(super) fn answers_as_ssh(address: Ipv4Addr) -> bool {
    /// An sshd that accepts also greets; this allows for a loaded machine.
    const GREETING_WITHIN: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(20);
    let target = SocketAddr::from((address, 22));
    let greeting = || {
        // Within this a packet to a machine that is there is answered, or its address is not yet.
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_millis(250)).ok()?;
        stream.set_read_timeout(Some(GREETING_WITHIN)).ok()?;
        let mut start = [0; 4];
        stream.read_exact(&mut start).ok()?;
        Some(start)
    };
    let answered = greeting() == Some(*b"SSH-");
    if !answered {
        thread::sleep(PAUSE);
    }
    answered
}

#[cfg(test)]
#[expect(clippy::print_stderr, reason = "a test says why it skips")]
mod tests {
    use super::*;

    #[test]
    fn fleets_that_start_together_have_networks_of_their_own() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making a bridge needs root");
            return;
        }
        let bridges: Vec<String> = (0..4).map(|number| format!("bulkt{}-{number}", std::process::id())).collect();
        let mut subnets: Vec<u8> = thread::scope(|scope| {
            let started: Vec<_> =
                bridges.iter().map(|bridge| scope.spawn(|| ensure(bridge, Subnet(200)).unwrap().0)).collect();
            started.into_iter().map(|one| one.join().unwrap()).collect()
        });
        bridges.iter().for_each(|bridge| remove(bridge).unwrap());
        subnets.sort_unstable();
        subnets.dedup();
        assert_eq!(subnets.len(), bridges.len(), "{subnets:?}");
    }

    #[test]
    fn free_networks() {
        for (output, is_free) in [
            ("1: lo    inet 127.0.0.1/8 scope host lo", true),
            ("default via 10.0.0.1 dev eth0 \n10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.5", true),
            ("10.0.0.0/8 via 10.1.0.1 dev vpn", true),
            ("2: br inet 10.86.0.1/24 brd 10.86.0.255 scope global br", false),
            ("10.86.0.0/16 dev vpn", false),
            ("10.86.0.77 dev wg0 scope link", false),
            ("10.86.1.0/24 dev other", true),
        ] {
            let free = !taken(output).iter().any(|prefix| prefix.overlaps(Subnet(0).prefix()));
            assert_eq!(free, is_free, "{output}");
        }
    }
}
