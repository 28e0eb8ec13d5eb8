//! Frames: length, kind, payload. See the crate's description for the layout.

use std::io::{self, Read, Write};

/// The largest JSON message. An order of 256 KiB fits many times over.
pub const MESSAGE_MAX_BYTES: usize = 4 << 20;
/// The largest piece of a stream; small enough that a peer never holds much.
pub const DATA_MAX_BYTES: usize = 256 << 10;
/// Bytes before a payload.
pub const HEADER_BYTES: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A JSON message.
    Message,
    /// A piece of the stream under way.
    Data,
    /// The end of the stream under way.
    End,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// The payload; empty for [`Kind::End`].
    pub payload: Vec<u8>,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed or ended within a frame.
    #[error("the connection broke within a frame")]
    Io(#[source] io::Error),
    /// A kind that this version does not know.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A length over the bound of its kind, or not allowed for it.
    #[error("a {kind:?} frame of {bytes} bytes")]
    Length {
        /// The frame's kind.
        kind: Kind,
        /// The length it claims.
        bytes: usize,
    },
}

/// Checks a header: the kind and payload length it announces.
///
/// # Errors
/// An unknown kind or a length out of bounds.
pub fn decode_header(header: [u8; HEADER_BYTES]) -> Result<(Kind, usize), FrameError> {
    let bytes = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let (kind, range) = match header[4] {
        1 => (Kind::Message, 2..=MESSAGE_MAX_BYTES),
        2 => (Kind::Data, 1..=DATA_MAX_BYTES),
        3 => (Kind::End, 0..=0),
        other => return Err(FrameError::UnknownKind(other)),
    };
    if !range.contains(&bytes) {
        return Err(FrameError::Length { kind, bytes });
    }
    Ok((kind, bytes))
}

/// The header of a frame.
///
/// # Errors
/// A payload over the bound of its kind.
pub fn encode_header(kind: Kind, payload_bytes: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    let tag = match kind {
        Kind::Message => 1,
        Kind::Data => 2,
        Kind::End => 3,
    };
    let length = u32::try_from(payload_bytes).map_err(|_| FrameError::Length { kind, bytes: payload_bytes })?;
    let [a, b, c, d] = length.to_le_bytes();
    let header = [a, b, c, d, tag];
    decode_header(header).map(|_| header)
}

/// Reads one frame; `None` where the peer closed between frames.
///
/// # Errors
/// A broken connection or a frame out of bounds.
pub fn read_frame(input: &mut impl Read) -> Result<Option<Frame>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match input.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Io(error)),
        }
    }
    let (kind, bytes) = decode_header(header)?;
    let mut payload = vec![0; bytes];
    input.read_exact(&mut payload).map_err(FrameError::Io)?;
    Ok(Some(Frame { kind, payload }))
}

/// Writes one frame. The caller flushes.
///
/// # Errors
/// A broken connection or a payload out of bounds.
pub fn write_frame(output: &mut impl Write, kind: Kind, payload: &[u8]) -> Result<(), FrameError> {
    let header = encode_header(kind, payload.len())?;
    output.write_all(&header).map_err(FrameError::Io)?;
    output.write_all(payload).map_err(FrameError::Io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn there_and_back() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Kind::Message, b"{}").unwrap();
        write_frame(&mut bytes, Kind::Data, b"abc").unwrap();
        write_frame(&mut bytes, Kind::End, b"").unwrap();
        let mut input = bytes.as_slice();
        let kinds: Vec<_> =
            std::iter::from_fn(|| read_frame(&mut input).unwrap()).map(|f| (f.kind, f.payload)).collect();
        assert_eq!(kinds, [(Kind::Message, b"{}".to_vec()), (Kind::Data, b"abc".to_vec()), (Kind::End, vec![])]);
    }

    #[test]
    fn bounds() {
        assert!(write_frame(&mut Vec::new(), Kind::Data, &[]).is_err());
        assert!(write_frame(&mut Vec::new(), Kind::Data, &vec![0; DATA_MAX_BYTES + 1]).is_err());
        assert!(matches!(read_frame(&mut [255, 255, 255, 255, 2].as_slice()), Err(FrameError::Length { .. })));
        assert!(matches!(read_frame(&mut [0, 0, 0, 0, 9].as_slice()), Err(FrameError::UnknownKind(9))));
        assert!(matches!(read_frame(&mut [1, 0, 0, 0, 2].as_slice()), Err(FrameError::Io(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_frame_an_end_or_an_error(bytes: Vec<u8>) {
            let mut input = bytes.as_slice();
            while let Ok(Some(_)) = read_frame(&mut input) {}
        }
    }
}
