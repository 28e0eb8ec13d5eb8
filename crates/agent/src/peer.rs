//! The keeper's end of one conversation: frames in, events out, with a bound
//! on how long a silent or deaf peer is waited for.
//!
//! Until an order is accepted, a peer that is gone ends the work. From then on
//! ([`Peer::commit`]) nobody's absence does: events that cannot be delivered
//! are dropped.

use bulkhead_core::ServiceName;
use bulkhead_wire::{DATA_MAX_BYTES, Event, FrameError, Kind, Step, StepKind, frame, write_frame};
use std::{
    io::{self, BufReader, Read, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

/// How long a peer may send nothing in the middle of a stream, or take nothing.
/// sshd notices a dead connection after 45 seconds; this is the bound behind it.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// How long a client may take for its request and order: they are small, and it
/// has shown nothing yet that entitles it to more.
const OPENING_MAX: Duration = Duration::from_secs(30);

/// The peer is gone, or does not speak the protocol.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// A frame could not be read or written.
    #[error("cannot exchange frames with the client")]
    Frame(#[source] FrameError),
    /// Another frame was due.
    #[error("the client sent {found} where {wanted} was due")]
    Unexpected {
        /// What came.
        found: &'static str,
        /// What should have come.
        wanted: &'static str,
    },
    /// A stream is longer than it may be.
    #[error("the client's {stream} is longer than {max_bytes} bytes")]
    TooLong {
        /// Which stream.
        stream: &'static str,
        /// The bound.
        max_bytes: usize,
    },
}

/// What a peer said while something is being done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// What is being done shall be interrupted.
    Interrupt,
    /// It says no more, and listens.
    Nothing,
    /// It is gone, or does not speak the protocol.
    Gone,
}

/// The peer.
#[derive(Debug)]
pub struct Peer {
    input: BufReader<Timed>,
    output: UnixStream,
    since: Instant,
    committed: bool,
    gone: bool,
}

/// A socket that is read until a moment and no longer, however busy it is.
#[derive(Debug)]
struct Timed {
    socket: UnixStream,
    until: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client took too long"));
        }
        self.socket.set_read_timeout(Some(left.min(SILENCE_MAX)))?;
        self.socket.read(buffer)
    }
}

impl Peer {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// The system said no.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_write_timeout(Some(SILENCE_MAX))?;
        let output = socket.try_clone()?;
        // Header and most messages in one read; data frames larger than this bypass the buffer.
        let input = BufReader::with_capacity(64 << 10, Timed { socket, until: Instant::now() + OPENING_MAX });
        Ok(Self { input, output, since: Instant::now(), committed: false, gone: false })
    }

    /// Gives the peer this much time, from now, for all that it still has to send.
    pub fn allow(&mut self, time: Duration) {
        self.input.get_mut().until = Instant::now() + time;
    }

    /// From now on the peer's absence stops nothing.
    pub fn commit(&mut self) {
        self.committed = true;
    }

    /// Starts the clock that steps are measured by.
    pub fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Since [`Peer::begin`].
    #[must_use]
    pub fn at_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn write(&mut self, kind: Kind, payload: &[u8]) -> Result<(), PeerError> {
        if self.gone {
            return Ok(());
        }
        let mut bytes = frame::encode_header(kind, payload.len()).map_err(PeerError::Frame)?.to_vec();
        bytes.extend_from_slice(payload);
        match self.output.write_all(&bytes) {
            Ok(()) => Ok(()),
            Err(_) if self.committed => {
                self.gone = true;
                Ok(())
            }
            Err(error) => Err(PeerError::Frame(FrameError::Io(error))),
        }
    }

    /// Sends an event.
    ///
    /// # Errors
    /// The peer is gone, and nothing is committed yet.
    pub fn send(&mut self, event: &Event) -> Result<(), PeerError> {
        let payload =
            serde_json::to_vec(event).map_err(|error| PeerError::Frame(FrameError::Io(io::Error::other(error))))?;
        self.write(Kind::Message, &payload)
    }

    /// Tells of a step.
    ///
    /// # Errors
    /// As [`Peer::send`].
    pub fn step(&mut self, step: StepKind, service: Option<&ServiceName>) -> Result<(), PeerError> {
        let at_ms = self.at_ms();
        self.send(&Event::Step(Step { step, service: service.cloned(), at_ms }))
    }

    /// Sends a stream of bytes and its end.
    ///
    /// # Errors
    /// As [`Peer::send`].
    pub fn send_stream(&mut self, bytes: &[u8]) -> Result<(), PeerError> {
        for piece in bytes.chunks(DATA_MAX_BYTES) {
            self.write(Kind::Data, piece)?;
        }
        self.write(Kind::End, &[])
    }

    /// A stream to write piece by piece; [`Outflow::end`] ends it.
    pub fn outflow(&mut self) -> Outflow<'_> {
        Outflow { peer: self }
    }

    /// The next frame, which must be a message.
    ///
    /// # Errors
    /// The peer is gone or sent something else.
    pub fn message(&mut self) -> Result<Vec<u8>, PeerError> {
        match bulkhead_wire::read_frame(&mut self.input).map_err(PeerError::Frame)? {
            Some(frame) if frame.kind == Kind::Message => Ok(frame.payload),
            Some(_) => Err(PeerError::Unexpected { found: "a stream", wanted: "a message" }),
            None => Err(PeerError::Unexpected { found: "nothing", wanted: "a message" }),
        }
    }

    /// The stream that comes next, to be read to its end.
    pub fn stream(&mut self) -> Stream<'_> {
        Stream { input: &mut self.input, left: 0, ended: false }
    }

    /// The whole stream that comes next.
    ///
    /// # Errors
    /// The peer is gone, or the stream is too long.
    pub fn read_stream(&mut self, stream: &'static str, max_bytes: usize) -> Result<Vec<u8>, PeerError> {
        let mut bytes = Vec::new();
        self.stream()
            .take(max_bytes as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| PeerError::Frame(FrameError::Io(error)))?;
        if bytes.len() > max_bytes {
            return Err(PeerError::TooLong { stream, max_bytes });
        }
        Ok(bytes)
    }

    /// Sends a piece of a stream, of at most [`DATA_MAX_BYTES`].
    ///
    /// # Errors
    /// As [`Peer::send`].
    pub fn send_data(&mut self, piece: &[u8]) -> Result<(), PeerError> {
        self.write(Kind::Data, piece)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// As [`Peer::send`].
    pub fn end_stream(&mut self) -> Result<(), PeerError> {
        self.write(Kind::End, &[])
    }

    /// Whether bytes are here already that [`Peer::hear`] would take; a poll does not show them.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.input.buffer().is_empty()
    }

    /// Takes the next frame: an end frame asks for an interruption, and nothing else is due.
    pub fn hear(&mut self) -> Heard {
        match bulkhead_wire::read_frame(&mut self.input) {
            Ok(Some(frame)) if frame.kind == Kind::End => Heard::Interrupt,
            Ok(None) => Heard::Nothing,
            Ok(Some(_)) | Err(_) => Heard::Gone,
        }
    }

    /// Whether the peer has closed both its directions.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        let mut set = [rustix::event::PollFd::new(&self.output, rustix::event::PollFlags::empty())];
        let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR;
        rustix::event::poll(&mut set, Some(&zero)).is_ok_and(|count| count > 0 && set[0].revents().intersects(ended))
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

/// A stream to the client under way.
#[derive(Debug)]
pub struct Outflow<'a> {
    peer: &'a mut Peer,
}

impl Outflow<'_> {
    /// Ends it.
    ///
    /// # Errors
    /// As [`Peer::send`].
    pub fn end(self) -> Result<(), PeerError> {
        self.peer.write(Kind::End, &[])
    }
}

impl io::Write for Outflow<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(DATA_MAX_BYTES)];
        if !piece.is_empty() {
            self.peer.write(Kind::Data, piece).map_err(io::Error::other)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream under way: its data frames' bytes, then the end.
#[derive(Debug)]
pub struct Stream<'a> {
    input: &'a mut BufReader<Timed>,
    left: usize,
    ended: bool,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.ended {
            return Ok(0);
        }
        if self.left == 0 {
            let mut header = [0; frame::HEADER_BYTES];
            self.input.read_exact(&mut header)?;
            match frame::decode_header(header) {
                Ok((Kind::Data, bytes)) => self.left = bytes,
                Ok((Kind::End, _)) => {
                    self.ended = true;
                    return Ok(0);
                }
                Ok((Kind::Message, _)) => return Err(io::Error::other("a message within a stream")),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        let bound = buffer.len().min(self.left);
        let count = self.input.read(&mut buffer[..bound])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        Ok(count)
    }
}

impl Stream<'_> {
    /// Reads what is left of it and throws it away.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn skip(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }
}

/// What the gate says before the request: with which key the connection was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Preface {
    /// The public key, `ssh-ed25519 AAAA…`; as sshd says, through the gate. Only for the record: it gives no right.
    #[serde(default)]
    pub key: Option<String>,
}

/// Writes the gate's preface and the request, as the keeper reads them.
///
/// # Errors
/// The keeper is gone.
pub fn write_opening(output: &mut impl io::Write, preface: &Preface, request: &[u8]) -> Result<(), FrameError> {
    let preface = serde_json::to_vec(preface).map_err(|error| FrameError::Io(io::Error::other(error)))?;
    write_frame(output, Kind::Message, &preface)?;
    write_frame(output, Kind::Message, request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Peer, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Peer::new(ours).unwrap(), theirs)
    }

    #[test]
    fn streams_in_turn() {
        let (mut peer, mut client) = pair();
        for piece in [&b"ab"[..], b"c"] {
            write_frame(&mut client, Kind::Data, piece).unwrap();
        }
        write_frame(&mut client, Kind::End, b"").unwrap();
        write_frame(&mut client, Kind::Data, b"xyz").unwrap();
        write_frame(&mut client, Kind::End, b"").unwrap();
        write_frame(&mut client, Kind::Message, b"{}").unwrap();
        assert_eq!(peer.read_stream("order", 3).unwrap(), b"abc");
        peer.stream().skip().unwrap();
        assert_eq!(peer.message().unwrap(), b"{}");
    }

    #[test]
    fn bounds_and_order() {
        let (mut peer, mut client) = pair();
        write_frame(&mut client, Kind::Data, b"abcd").unwrap();
        write_frame(&mut client, Kind::End, b"").unwrap();
        assert!(matches!(peer.read_stream("order", 3), Err(PeerError::TooLong { max_bytes: 3, .. })));

        let (mut peer, mut client) = pair();
        write_frame(&mut client, Kind::Message, b"{}").unwrap();
        assert!(matches!(peer.read_stream("order", 3), Err(PeerError::Frame(_))));

        let (mut peer, client) = pair();
        drop(client);
        assert!(matches!(peer.message(), Err(PeerError::Unexpected { found: "nothing", .. })));
    }

    #[test]
    fn a_trickle_does_not_buy_time() {
        let (mut peer, mut client) = pair();
        peer.allow(Duration::ZERO);
        write_frame(&mut client, Kind::Data, b"abc").unwrap();
        let error = peer.read_stream("order", 9).unwrap_err();
        assert!(format!("{error:?}").contains("took too long"), "{error:?}");
        peer.allow(Duration::from_secs(9));
        write_frame(&mut client, Kind::End, b"").unwrap();
        assert_eq!(peer.read_stream("order", 9).unwrap(), b"abc");
    }

    #[test]
    fn a_peer_that_is_gone_stops_only_what_is_not_committed() {
        let (mut peer, client) = pair();
        assert!(!peer.hung_up());
        drop(client);
        assert!(peer.hung_up());
        assert!(peer.step(StepKind::Accepted, None).is_err());
        peer.commit();
        assert!(peer.step(StepKind::Switched, None).is_ok());
        assert!(peer.step(StepKind::Stopped, None).is_ok());
    }

    #[test]
    fn an_interruption_is_an_end_frame() {
        let (mut peer, mut client) = pair();
        write_frame(&mut client, Kind::End, b"").unwrap();
        assert_eq!(peer.hear(), Heard::Interrupt);
        write_frame(&mut client, Kind::End, b"").unwrap();
        write_frame(&mut client, Kind::Data, b"x").unwrap();
        assert_eq!((peer.hear(), peer.has_more()), (Heard::Interrupt, true));
        assert_eq!(peer.hear(), Heard::Gone);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!((peer.hear(), peer.hung_up()), (Heard::Nothing, false));
    }

    #[test]
    fn a_peer_that_only_stops_sending_has_not_hung_up() {
        let (peer, client) = pair();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!peer.hung_up());
    }
}
