//! The gate: login shell of the accounts that may connect, without any right of
//! its own. It accepts one command, reads one request, and passes frames between
//! the client and the keeper (or a service's socket). It checks the frames'
//! headers and bounds and believes nothing else.
//!
//! It ends when the node's side ends, or when nobody reads its answers any
//! more. A client that merely stops sending is let finish.

use crate::{
    account,
    peer::{Preface, write_opening},
    state::Paths,
};
use bulkhead_wire::{
    Ask, COMMAND, DATA_MAX_BYTES, Event, Failure, FailureKind, Kind, MESSAGE_MAX_BYTES, PROTOCOL, Request,
    frame::{self, HEADER_BYTES},
};
use nix::unistd::alarm;
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Resource, Rlimit, setrlimit},
};
use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    thread,
};

/// Above what services have, so that gates go first when memory is short.
const OOM_SCORE: &str = "500";
/// Of address space; it holds one message and the buffers of two directions.
const MEMORY_MAX_BYTES: u64 = 256 << 20;
/// From the start of a gate to the end of its request: the longest message, over a slow line.
const REQUEST_WITHIN_S: u32 = 30;
/// A service's socket is `live/APP/SERVICE/sock`.
const SOCKET: &str = "sock";
/// The file that sshd names in `SSH_USER_AUTH` is one line for each method used.
const AUTHENTICATION_MAX_BYTES: u64 = 64 << 10;
/// Frames are copied through a buffer of this size, whatever their length.
const BUFFER_BYTES: usize = DATA_MAX_BYTES;

/// Whether a login shell's arguments are the one command. The sentence for whoever tries another.
///
/// # Errors
/// What to say before leaving.
pub fn check_command(arguments: &[String]) -> Result<(), String> {
    let help = "this account only passes requests of the `bulkhead` command to the node";
    match arguments {
        [] => Err(format!("bulkhead: no shell here; {help}")),
        [flag, command] if flag == "-c" && command == COMMAND => Ok(()),
        [flag, command] if flag == "-c" => {
            let shown: String = command.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(80).collect();
            Err(format!("bulkhead: `{shown}` is not available here; {help}"))
        }
        _ => Err(format!("bulkhead: no such command here; {help}")),
    }
}

/// Serves one connection on standard input and output.
///
/// # Errors
/// A line for standard error.
pub fn run(paths: &Paths) -> Result<(), String> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(|error| format!("bulkhead: {error}"))?;
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(|error| format!("bulkhead: {error}"))?;
    let (mut input, mut output) = (fs::File::from(stdin), fs::File::from(stdout));
    // What it inherits is sshd's own: when memory is short, whoever has connected goes before what runs here.
    fs::write("/proc/self/oom_score_adj", OOM_SCORE).ok();
    setrlimit(Resource::As, Rlimit { current: Some(MEMORY_MAX_BYTES), maximum: Some(MEMORY_MAX_BYTES) }).ok();
    // Whoever is slower at saying what they want is ended by the signal.
    alarm::set(REQUEST_WITHIN_S);
    let request = read_request(&mut input);
    alarm::cancel();
    let request = match request {
        Ok(request) => request,
        Err(failure) => return answer(&mut output, *failure),
    };
    let connected = match &request.ask {
        Ask::Open { app, service } => {
            let path = paths.live_link(app, service).join(SOCKET);
            open_service(&path, &format!("{app}/{service}"), &mut output)
        }
        _ => open_keeper(paths, &request),
    };
    let socket = match connected {
        Ok(socket) => socket,
        Err(failure) => return answer(&mut output, *failure),
    };
    let result = match request.ask {
        Ask::Open { .. } => relay(input, output, &socket),
        _ => pass(input, output, &socket),
    };
    // Neither side's going away is an error of the gate's: the other side has seen all there was.
    drop(result);
    Ok(())
}

fn failure(kind: FailureKind, rule: &str, message: String) -> Box<Failure> {
    Box::new(Failure { kind, rule: rule.into(), message, hint: None, log: vec![], position: None })
}

/// systemd closes connections beyond the socket's limit without a word, before they say anything or after.
fn busy() -> Box<Failure> {
    let message = "the node's keeper hung up at once: it is busy with as many requests as it takes";
    let mut failure = failure(FailureKind::Node, "busy", message.into());
    failure.hint = Some("try again in a minute".into());
    failure
}

/// Says why not, as the last event. A client that is gone needs no answer.
fn answer(output: &mut impl Write, failure: Failure) -> Result<(), String> {
    let payload = serde_json::to_vec(&Event::Failed(failure)).map_err(|error| format!("bulkhead: {error}"))?;
    frame::write_frame(output, Kind::Message, &payload)
        .and_then(|()| output.flush().map_err(bulkhead_wire::FrameError::Io))
        .map_err(|error| format!("bulkhead: {error}"))
}

fn read_request(input: &mut impl Read) -> Result<Request, Box<Failure>> {
    let bad = |message: String| failure(FailureKind::Request, "malformed", message);
    let frame = frame::read_frame(input)
        .map_err(|error| bad(format!("the request cannot be read: {error}")))?
        .ok_or_else(|| bad("no request came".into()))?;
    if frame.kind != Kind::Message {
        return Err(bad("a stream came where a request was due".into()));
    }
    #[derive(serde::Deserialize)]
    struct Version {
        protocol: u32,
    }
    let version: Version =
        serde_json::from_slice(&frame.payload).map_err(|error| bad(format!("not a request: {error}")))?;
    if version.protocol != PROTOCOL {
        let message = format!(
            "the client speaks protocol {}, this node {PROTOCOL}; update the older of the two",
            version.protocol
        );
        return Err(failure(FailureKind::Request, "protocol", message));
    }
    serde_json::from_slice(&frame.payload).map_err(|error| bad(format!("not a request: {error}")))
}

fn open_keeper(paths: &Paths, request: &Request) -> Result<UnixStream, Box<Failure>> {
    let node =
        |error: String| failure(FailureKind::Node, "keeper", format!("the node's keeper cannot be reached: {error}"));
    let account = account::name_of(rustix::process::geteuid().as_raw()).map_err(|error| node(error.to_string()))?;
    let mut socket = UnixStream::connect(paths.keeper_socket(&account)).map_err(|error| node(error.to_string()))?;
    let encoded = serde_json::to_vec(request).map_err(|error| node(error.to_string()))?;
    let preface = Preface { key: connection_key(std::env::var_os("SSH_USER_AUTH").as_deref().map(Path::new)) };
    // Nobody else closes a connection on which nothing was said yet.
    write_opening(&mut socket, &preface, &encoded).map_err(|_| busy())?;
    Ok(socket)
}

/// The key that sshd let in: the file holds `publickey ssh-ed25519 AAAA…`.
fn connection_key(path: Option<&Path>) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path?).ok()?.take(AUTHENTICATION_MAX_BYTES).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("publickey ")).map(|key| key.trim().to_owned())
}

fn open_service(path: &Path, name: &str, output: &mut impl Write) -> Result<UnixStream, Box<Failure>> {
    let socket = UnixStream::connect(path).map_err(|error| {
        let message = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!("{name} does not run on this node"),
            _ => format!("{name} cannot be reached: {error}"),
        };
        failure(FailureKind::Request, "not-running", message)
    })?;
    let payload = serde_json::to_vec(&Event::Stream { bytes: None })
        .map_err(|error| failure(FailureKind::Node, "gate", error.to_string()))?;
    frame::write_frame(output, Kind::Message, &payload)
        .map_err(|error| failure(FailureKind::Node, "gate", error.to_string()))?;
    Ok(socket)
}

/// Copies frames, checking each header, until the input ends: how many there were.
fn copy_frames(input: &mut impl Read, output: &mut impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    for copied in 0.. {
        let mut header = [0; HEADER_BYTES];
        if !read_header(input, &mut header)? {
            return Ok(copied);
        }
        let (_, mut left) = frame::decode_header(header).map_err(io::Error::other)?;
        debug_assert!(left <= MESSAGE_MAX_BYTES);
        // Header and first bytes go out together.
        let mut start = HEADER_BYTES;
        buffer[..HEADER_BYTES].copy_from_slice(&header);
        loop {
            let end = buffer.len().min(start + left);
            input.read_exact(&mut buffer[start..end])?;
            output.write_all(&buffer[..end])?;
            left -= end - start;
            start = 0;
            if left == 0 {
                break;
            }
        }
    }
    Ok(u64::MAX)
}

/// Fills a header; `false` where the input ended before it.
fn read_header(input: &mut impl Read, header: &mut [u8; HEADER_BYTES]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match input.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Waits for bytes from the node's side; `false` where nobody reads what we write any more.
fn readable(input: &UnixStream, output: &impl AsFd) -> io::Result<bool> {
    loop {
        let mut set = [PollFd::new(input, PollFlags::IN), PollFd::new(output, PollFlags::empty())];
        match poll(&mut set, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if set[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Ok(false);
        }
        if !set[0].revents().is_empty() {
            return Ok(true);
        }
    }
}

/// Reads from the node's side, but ends as soon as nobody reads the answers.
struct Watched<'a, O: AsFd> {
    input: &'a UnixStream,
    output: O,
}

impl<O: AsFd> Read for Watched<'_, O> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !readable(self.input, &self.output)? {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match self.input.read(buffer) {
            // It hung up before it had read all that we said.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            read => read,
        }
    }
}

/// Client and keeper: frames both ways.
fn pass(mut input: fs::File, mut output: fs::File, socket: &UnixStream) -> io::Result<()> {
    let mut towards = socket.try_clone()?;
    // Not joined: it may sit in a read that only the client can end. It ends with the process.
    thread::spawn(move || {
        // A keeper that has stopped reading has its reason, which it is about to say.
        drop(copy_frames(&mut input, &mut towards));
        drop(towards.shutdown(Shutdown::Write));
    });
    let watched = output.try_clone()?;
    if copy_frames(&mut Watched { input: socket, output: watched }, &mut output)? == 0 {
        answer(&mut output, *busy()).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Client and service: data frames here, plain bytes there; an end frame closes its direction.
fn relay(mut input: fs::File, mut output: fs::File, socket: &UnixStream) -> io::Result<()> {
    let mut towards = socket.try_clone()?;
    thread::spawn(move || {
        drop(unwrap_frames(&mut input, &mut towards));
        drop(towards.shutdown(Shutdown::Write));
    });
    let watched = output.try_clone()?;
    wrap_frames(&mut Watched { input: socket, output: watched }, &mut output)
}

fn unwrap_frames(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    loop {
        match frame::read_frame(input).map_err(io::Error::other)? {
            Some(frame) if frame.kind == Kind::Data => output.write_all(&frame.payload)?,
            Some(frame) if frame.kind == Kind::End => return Ok(()),
            Some(_) => return Err(io::Error::other("a message within a stream")),
            None => return Ok(()),
        }
    }
}

fn wrap_frames(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    // Small enough to hand on at once what came, large enough for a bulk transfer.
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match input.read(&mut buffer[HEADER_BYTES..]) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let kind = if count == 0 { Kind::End } else { Kind::Data };
        buffer[..HEADER_BYTES].copy_from_slice(&frame::encode_header(kind, count).map_err(io::Error::other)?);
        output.write_all(&buffer[..HEADER_BYTES + count])?;
        if count == 0 {
            return output.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn one_command_only() {
        assert_eq!(check_command(&words(&["-c", "bulkhead-gate"])), Ok(()));
        for (arguments, shown) in [
            (&[][..], "no shell here"),
            (&["-c", "id"], "`id` is not available"),
            (&["-c", "bulkhead-gate; id"], "not available"),
            (&["-c", " bulkhead-gate"], "not available"),
            (&["-c", "/usr/lib/openssh/sftp-server"], "not available"),
            (&["-c", "a\u{1b}[31m\nb"], "`a[31mb` is not available"),
            (&["-c", "bulkhead-gate", "x"], "no such command"),
            (&["-l"], "no such command"),
        ] {
            let refusal = check_command(&words(arguments)).unwrap_err();
            assert!(refusal.contains(shown) && !refusal.contains('\n'), "{refusal}");
        }
    }

    fn request(bytes: &[u8]) -> Result<Request, Box<Failure>> {
        let mut frame = Vec::new();
        frame::write_frame(&mut frame, Kind::Message, bytes).unwrap();
        read_request(&mut frame.as_slice())
    }

    #[test]
    fn requests() {
        assert_eq!(request(br#"{"protocol":1,"ask":"status"}"#).unwrap().ask, Ask::Status);
        for (bytes, rule) in [
            (&br#"{"protocol":2,"ask":"new-thing"}"#[..], "protocol"),
            (br#"{"protocol":1,"ask":"new-thing"}"#, "malformed"),
            (br#"{"ask":"status"}"#, "malformed"),
            (b"\xff\xff", "malformed"),
        ] {
            assert_eq!(request(bytes).unwrap_err().rule, rule);
        }
        assert_eq!(read_request(&mut [].as_slice()).unwrap_err().rule, "malformed");
        assert_eq!(read_request(&mut [255, 255, 255, 255, 1].as_slice()).unwrap_err().rule, "malformed");
    }

    #[test]
    fn frames_pass_unchanged() {
        let mut bytes = Vec::new();
        frame::write_frame(&mut bytes, Kind::Message, &vec![b' '; MESSAGE_MAX_BYTES]).unwrap();
        frame::write_frame(&mut bytes, Kind::Data, &vec![7; DATA_MAX_BYTES]).unwrap();
        frame::write_frame(&mut bytes, Kind::End, b"").unwrap();
        let mut out = Vec::new();
        copy_frames(&mut bytes.as_slice(), &mut out).unwrap();
        assert!(out == bytes);
    }

    #[test]
    fn frames_out_of_bounds_do_not_pass() {
        for bytes in [&[255, 255, 255, 255, 2][..], &[1, 0, 0, 0, 9], &[5, 0, 0, 0, 2, 1], &[0, 0, 0, 0, 2], &[1, 0]] {
            let mut out = Vec::new();
            assert!(copy_frames(&mut &bytes[..], &mut out).is_err(), "{bytes:?}");
            assert!(out.is_empty(), "{bytes:?}");
        }
    }

    #[test]
    fn a_relay_closes_each_direction_by_itself() {
        let mut bytes = Vec::new();
        wrap_frames(&mut &b"hello"[..], &mut bytes).unwrap();
        let mut out = Vec::new();
        unwrap_frames(&mut bytes.as_slice(), &mut out).unwrap();
        assert_eq!(out, b"hello");
        assert_eq!(&bytes[bytes.len() - HEADER_BYTES..], [0, 0, 0, 0, 3]);
    }

    #[test]
    fn the_key_of_a_connection() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "publickey ssh-ed25519 AAAAkey\n").unwrap();
        assert_eq!(connection_key(Some(file.path())).as_deref(), Some("ssh-ed25519 AAAAkey"));
        assert_eq!(connection_key(None), None);
        assert_eq!(connection_key(Some(Path::new("/nonexistent"))), None);
    }
}
