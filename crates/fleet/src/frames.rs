//! Frames over byte streams (`bulkhead_wire` has the layout), bounded in size and time.
//!
//! Both halves work on any stream, so that a conversation can be tried without a
//! network. [`Incoming::next`] may be dropped at any moment and called again
//! without losing a byte.

use bulkhead_wire::{
    DATA_MAX_BYTES, Event, FrameError, Kind,
    frame::{HEADER_BYTES, decode_header, encode_header},
};
use serde::Serialize;
use std::{fmt, io, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Small frames are gathered up to this, so that a request and its short streams share SSH packets.
const GATHER_BYTES: usize = 64 << 10;
/// Memory for a payload grows with what arrives, in steps of this, not with what a header claims.
const GROW_BYTES: usize = 64 << 10;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FramesError {
    /// Malformed, or the stream broke within one.
    #[error("malformed or broken frame")]
    Frame(#[source] FrameError),
    /// The stream could not be written.
    #[error("the stream broke")]
    Write(#[source] io::Error),
    /// What was to be sent could not be read.
    #[error("cannot read what was to be sent")]
    Source(#[source] io::Error),
    /// A message that is no event.
    #[error("a message that is no known event")]
    Event(#[source] serde_json::Error),
    /// Nothing moved for too long.
    #[error("nothing moved for {} s", .0.as_secs_f32())]
    Idle(Duration),
}

/// What a node sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A message.
    Event(Box<Event>),
    /// A piece of a stream.
    Data(Vec<u8>),
    /// The end of a stream.
    EndOfStream,
}

/// Frames from a node.
pub struct Incoming {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    payload: Vec<u8>,
    /// Bytes of all messages so far, for whoever bounds an answer.
    pub(crate) event_bytes: usize,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl Incoming {
    /// Reads frames from this stream.
    #[must_use]
    pub fn new(stream: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            header: [0; HEADER_BYTES],
            header_filled: 0,
            payload: Vec::new(),
            event_bytes: 0,
        }
    }

    /// The next frame; `None` where the stream ended between frames. Cancel-safe; waits without bound.
    ///
    /// # Errors
    /// A malformed frame or a broken stream.
    pub async fn next(&mut self) -> Result<Option<Item>, FramesError> {
        let broken = |error| FramesError::Frame(FrameError::Io(error));
        while self.header_filled < HEADER_BYTES {
            let count = self.stream.read(&mut self.header[self.header_filled..]).await.map_err(broken)?;
            match count {
                0 if self.header_filled == 0 => return Ok(None),
                0 => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                count => self.header_filled += count,
            }
        }
        let (kind, length) = decode_header(self.header).map_err(FramesError::Frame)?;
        while self.payload.len() < length {
            let missing = length - self.payload.len();
            self.payload.reserve(missing.min(GROW_BYTES));
            let mut bounded = (&mut self.stream).take(missing as u64);
            if bounded.read_buf(&mut self.payload).await.map_err(broken)? == 0 {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        self.header_filled = 0;
        let payload = std::mem::take(&mut self.payload);
        if kind == Kind::Message {
            self.event_bytes = self.event_bytes.saturating_add(payload.len());
        }
        Ok(Some(match kind {
            Kind::Message => Item::Event(serde_json::from_slice(&payload).map_err(FramesError::Event)?),
            Kind::Data => Item::Data(payload),
            Kind::End => Item::EndOfStream,
        }))
    }

    /// [`Incoming::next`] within a time.
    ///
    /// # Errors
    /// Likewise, or nothing came.
    pub async fn next_within(&mut self, idle: Duration) -> Result<Option<Item>, FramesError> {
        tokio::time::timeout(idle, self.next()).await.unwrap_or(Err(FramesError::Idle(idle)))
    }
}

/// Frames to a node. Gathered; [`Outgoing::flush`] sends what is left.
pub struct Outgoing {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
    gathered: Vec<u8>,
    idle: Duration,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

impl Outgoing {
    /// Writes frames to this stream, which must take some bytes within `idle` each time.
    #[must_use]
    pub fn new(stream: impl AsyncWrite + Send + Unpin + 'static, idle: Duration) -> Self {
        Self { stream: Box::new(stream), gathered: Vec::new(), idle }
    }

    /// How long the stream may take nothing from here on.
    pub fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    fn put(&mut self, kind: Kind, payload: &[u8]) -> Result<(), FramesError> {
        let header = encode_header(kind, payload.len()).map_err(FramesError::Frame)?;
        self.gathered.extend_from_slice(&header);
        self.gathered.extend_from_slice(payload);
        Ok(())
    }

    /// Sends a message.
    ///
    /// # Errors
    /// A message over its bound, or a broken stream.
    pub async fn message(&mut self, message: &impl Serialize) -> Result<(), FramesError> {
        let text = serde_json::to_vec(message).map_err(FramesError::Event)?;
        self.put(Kind::Message, &text)?;
        self.spill().await
    }

    /// Sends a piece of a stream.
    ///
    /// # Errors
    /// A broken stream.
    pub async fn data(&mut self, bytes: &[u8]) -> Result<(), FramesError> {
        for piece in bytes.chunks(DATA_MAX_BYTES) {
            self.put(Kind::Data, piece)?;
            self.spill().await?;
        }
        Ok(())
    }

    /// Ends a stream.
    ///
    /// # Errors
    /// A broken stream.
    pub async fn end(&mut self) -> Result<(), FramesError> {
        self.put(Kind::End, &[])?;
        self.spill().await
    }

    /// Sends a whole stream with its end, and tells after each piece how many bytes went by now.
    ///
    /// # Errors
    /// A source that cannot be read, or a broken stream.
    pub async fn stream(
        &mut self,
        mut from: impl AsyncRead + Unpin,
        sent: &mut (dyn FnMut(u64) + Send),
    ) -> Result<u64, FramesError> {
        let mut piece = vec![0; DATA_MAX_BYTES];
        let mut total = 0;
        loop {
            let count = from.read(&mut piece).await.map_err(FramesError::Source)?;
            if count == 0 {
                break;
            }
            self.data(&piece[..count]).await?;
            total += count as u64;
            sent(total);
        }
        self.end().await?;
        Ok(total)
    }

    async fn spill(&mut self) -> Result<(), FramesError> {
        if self.gathered.len() < GATHER_BYTES { Ok(()) } else { self.flush().await }
    }

    /// Sends what was gathered.
    ///
    /// # Errors
    /// A broken stream, or one that takes nothing.
    pub async fn flush(&mut self) -> Result<(), FramesError> {
        let mut done = 0;
        while done < self.gathered.len() {
            let writing = self.stream.write(&self.gathered[done..]);
            match tokio::time::timeout(self.idle, writing).await {
                Ok(Ok(0)) => return Err(FramesError::Write(io::ErrorKind::WriteZero.into())),
                Ok(Ok(count)) => done += count,
                Ok(Err(error)) => return Err(FramesError::Write(error)),
                Err(_) => return Err(FramesError::Idle(self.idle)),
            }
        }
        self.gathered.clear();
        self.stream.flush().await.map_err(FramesError::Write)
    }
}
