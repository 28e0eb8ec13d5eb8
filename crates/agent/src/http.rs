//! A GET over a Unix socket, as much of HTTP/1.1 as a health check needs: the
//! status, within a time, reading no more than a status line's length.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// `HTTP/1.1 200 ` and a reason; more is not waited for.
const STATUS_LINE_MAX_BYTES: usize = 256;

/// The status that a GET of `path` gets.
///
/// # Errors
/// No connection, no answer in time, or none of HTTP's.
pub fn get(socket: &Path, path: &str, within: Duration) -> io::Result<u16> {
    let deadline = Instant::now() + within;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(Some(left)) }
    };
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(left()?)?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bulkhead-health\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut head = [0; STATUS_LINE_MAX_BYTES];
    let mut filled = 0;
    while filled < head.len() && !head[..filled].contains(&b'\n') {
        stream.set_read_timeout(left()?)?;
        match stream.read(&mut head[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
    }
    status(&head[..filled])
}

fn status(head: &[u8]) -> io::Result<u16> {
    if head.is_empty() {
        return Err(io::Error::other("the connection was closed without an answer"));
    }
    let digits = head
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(1..5))
        .and_then(|rest| rest.strip_prefix(b" "))
        .filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    number.ok_or_else(|| io::Error::other("the answer is not HTTP/1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::net::UnixListener, thread};

    fn answer(bytes: &'static [u8]) -> io::Result<u16> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"GET /up HTTP/1.1");
            stream.write_all(bytes).unwrap();
        });
        let result = get(&path, "/up", Duration::from_secs(10));
        server.join().unwrap();
        result
    }

    #[test]
    fn answers() {
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\n\r\n").unwrap(), 200);
        assert_eq!(answer(b"HTTP/1.0 503\r\n").unwrap(), 503);
        for bad in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 2", b"HTTP/1.1 abc x\n"] {
            assert!(answer(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_silent_server_ends_the_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let _listener = UnixListener::bind(&path).unwrap();
        assert_eq!(get(&path, "/", Duration::from_millis(20)).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(get(&directory.path().join("none"), "/", Duration::from_secs(1)).is_err());
    }
}
