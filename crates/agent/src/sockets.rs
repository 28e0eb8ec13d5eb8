//! The kernel's lists of sockets, as `/proc/PID/net/{tcp,tcp6,udp,udp6,unix}`
//! show them for one network namespace. Parsing is pure; lines that are not
//! understood are left out.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

/// An Internet socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inet {
    /// Its own address.
    pub local: (IpAddr, u16),
    /// The peer's; zeros where there is none.
    pub remote: (IpAddr, u16),
    /// The kernel's number of its state: 10 is `LISTEN`.
    pub state: u8,
    /// Its inode, to find the process that holds it.
    pub inode: u64,
}

/// A Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unix {
    /// Whether it accepts connections.
    pub listening: bool,
    /// `stream`, `dgram` or `seqpacket`.
    pub kind: &'static str,
    /// Its inode; 0 for a connection that nobody accepted yet.
    pub inode: u64,
    /// Its path, or an abstract name after `@`; empty where it has none.
    pub path: String,
}

/// The kernel's number of the state `ESTABLISHED`.
pub const ESTABLISHED: u8 = 1;
/// The kernel's number of the state `LISTEN`.
pub const LISTEN: u8 = 10;

/// The name of a TCP state, as `ss` gives it.
#[must_use]
pub fn tcp_state(state: u8) -> &'static str {
    const NAMES: [&str; 12] = [
        "ESTAB",
        "SYN-SENT",
        "SYN-RECV",
        "FIN-WAIT-1",
        "FIN-WAIT-2",
        "TIME-WAIT",
        "UNCONN",
        "CLOSE-WAIT",
        "LAST-ACK",
        "LISTEN",
        "CLOSING",
        "NEW-SYN-RECV",
    ];
    NAMES.get(usize::from(state).wrapping_sub(1)).copied().unwrap_or("?")
}

/// Words of 32 bits, each in this machine's byte order, then a colon and the port.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (digits, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = digits.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match digits.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for index in 0..4 {
                bytes[index * 4..index * 4 + 4].copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((ip, port))
}

/// The lines of `tcp`, `tcp6`, `udp` or `udp6`.
#[must_use]
pub fn parse_inet(text: &str) -> Vec<Inet> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some(Inet {
                local: address(words.get(1)?)?,
                remote: address(words.get(2)?)?,
                state: u8::from_str_radix(words.get(3)?, 16).ok()?,
                inode: words.get(9)?.parse().ok()?,
            })
        })
        .collect()
}

/// The lines of `unix`.
#[must_use]
pub fn parse_unix(text: &str) -> Vec<Unix> {
    const ACCEPTS: u32 = 0x10000;
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.splitn(8, ' ').map(str::trim);
            let (_, _, _) = (words.next()?, words.next()?, words.next()?);
            let flags = u32::from_str_radix(words.next()?, 16).ok()?;
            let kind = match words.next()? {
                "0001" => "stream",
                "0002" => "dgram",
                "0005" => "seqpacket",
                _ => "?",
            };
            let _state = words.next()?;
            // The inode is padded with spaces on the left.
            let rest = words.collect::<Vec<_>>().join(" ");
            let rest = rest.trim_start();
            let (inode, path) = rest.split_once(' ').unwrap_or((rest, ""));
            Some(Unix { listening: flags & ACCEPTS != 0, kind, inode: inode.parse().ok()?, path: path.to_owned() })
        })
        .collect()
}

fn lines(process: &Path, name: &str) -> io::Result<String> {
    fs::read_to_string(process.join("net").join(name))
}

fn directory(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// The Internet sockets of a protocol (`tcp` or `udp`, both address families) as a process's namespace has them.
///
/// # Errors
/// The process is gone.
pub fn inet(pid: u32, protocol: &str) -> io::Result<Vec<Inet>> {
    inet_of(&directory(pid), protocol)
}

/// As [`inet`], of a process whose `/proc/PID` is at this path.
///
/// # Errors
/// The process is gone.
pub fn inet_of(process: &Path, protocol: &str) -> io::Result<Vec<Inet>> {
    let mut sockets = parse_inet(&lines(process, protocol)?);
    // A kernel without IPv6 has no such file.
    sockets.extend(lines(process, &format!("{protocol}6")).map(|text| parse_inet(&text)).unwrap_or_default());
    Ok(sockets)
}

/// The Unix sockets as a process's network namespace has them.
///
/// # Errors
/// The process is gone.
pub fn unix(pid: u32) -> io::Result<Vec<Unix>> {
    unix_of(&directory(pid))
}

/// As [`unix`], of a process whose `/proc/PID` is at this path.
///
/// # Errors
/// The process is gone.
pub fn unix_of(process: &Path) -> io::Result<Vec<Unix>> {
    Ok(parse_unix(&lines(process, "unix")?))
}

/// Whether `sockstat` and `sockstat6` know of TCP sockets that listen or are connected.
fn has_tcp(text: &str) -> bool {
    let count = |line: &str| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("TCP:" | "TCP6:")).then(|| words.nth(1)?.parse::<u64>().ok()).flatten()
    };
    text.lines().filter_map(count).any(|count| count > 0)
}

/// Where a process's network namespace listens for TCP.
///
/// # Errors
/// The process is gone.
pub fn listening(pid: u32) -> io::Result<Vec<(IpAddr, u16)>> {
    // The kernel goes through the connections of all namespaces to show those of one, which takes milliseconds on a
    // large machine; how many there are it knows at once. A kernel without IPv6 has no second file.
    let counts = lines(&directory(pid), "sockstat")? + &lines(&directory(pid), "sockstat6").unwrap_or_default();
    if !has_tcp(&counts) {
        return Ok(vec![]);
    }
    let mut places: Vec<(IpAddr, u16)> =
        inet(pid, "tcp")?.into_iter().filter(|socket| socket.state == LISTEN).map(|socket| socket.local).collect();
    places.sort_unstable();
    places.dedup();
    Ok(places)
}

/// How many connections a listening Unix socket of the node has, those in its
/// backlog included: the kernel gives each the listener's path.
///
/// # Errors
/// The list cannot be read.
pub fn connections(socket: &Path) -> io::Result<usize> {
    let path = socket.to_string_lossy();
    // Process 1 is in the node's own network namespace; the keeper is not.
    Ok(unix(1)?.iter().filter(|found| !found.listening && found.path == path).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 50001        0 2713750 1 00000000e63bc96b 100 0 0 10 0
   1: 0100007F:0BB8 0100007F:A040 06 00000000:00000000 03:0000176A 00000000     0        0 0 3 000000008638eb0d
   nonsense
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 77 1 0
";
    const UNIX: &str = "Num       RefCount Protocol Flags    Type St Inode Path
00000000a78d0f0c: 00000002 00000000 00010000 0001 01 2713732 /run/bulkhead/sock/n/1/web/sock
00000000a78d0f0d: 00000003 00000000 00000000 0001 03     7 /run/bulkhead/sock/n/1/web/sock
00000000a78d0f0e: 00000003 00000000 00000000 0001 02     0 /run/bulkhead/sock/n/1/web/sock
00000000a78d0f0f: 00000003 00000000 00000000 0002 01 27138
00000000a78d0f10: 00000003 00000000 00000000 0001 01 27139 @a b
";

    #[test]
    fn internet_sockets() {
        let sockets = parse_inet(TCP);
        assert_eq!(sockets.len(), 2);
        assert_eq!((sockets[0].local.1, sockets[0].state, sockets[0].inode), (3000, LISTEN, 2_713_750));
        assert_eq!(sockets[1].remote, (IpAddr::V4(Ipv4Addr::LOCALHOST), 0xa040));
        assert_eq!(tcp_state(sockets[1].state), "TIME-WAIT");
        assert_eq!(parse_inet(TCP6)[0].local, (IpAddr::V6(Ipv6Addr::LOCALHOST), 8080));
    }

    #[test]
    fn whether_there_are_any() {
        let none = "sockets: used 5\nTCP: inuse 0 orphan 0 tw 3 alloc 9 mem 66\nUDP: inuse 4 mem 0\n";
        assert!(!has_tcp(none) && !has_tcp("") && !has_tcp(&format!("{none}TCP6: inuse 0\nUDP6: inuse 2\n")));
        assert!(has_tcp(&none.replace("TCP: inuse 0", "TCP: inuse 2")));
        assert!(has_tcp(&format!("{none}TCP6: inuse 1\n")));
        // This process's own.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening(std::process::id()).unwrap().iter().any(|place| place.1 == port));
    }

    #[test]
    fn unix_sockets() {
        let sockets = parse_unix(UNIX);
        let seen: Vec<_> = sockets.iter().map(|s| (s.listening, s.kind, s.inode, s.path.as_str())).collect();
        let path = "/run/bulkhead/sock/n/1/web/sock";
        assert_eq!(
            seen,
            [
                (true, "stream", 2_713_732, path),
                (false, "stream", 7, path),
                (false, "stream", 0, path),
                (false, "dgram", 27138, ""),
                (false, "stream", 27139, "@a b"),
            ]
        );
    }

    #[test]
    fn states_out_of_range() {
        assert_eq!([tcp_state(0), tcp_state(1), tcp_state(12), tcp_state(13)], ["?", "ESTAB", "NEW-SYN-RECV", "?"]);
    }
}
