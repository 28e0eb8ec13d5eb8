//! What client and node say to each other over one SSH channel.
//!
//! # Frames
//!
//! ```text
//! u32 payload length, little-endian | u8 kind | payload
//! kind 1  message: JSON, at most MESSAGE_MAX_BYTES
//! kind 2  data: raw bytes of the stream under way, at most DATA_MAX_BYTES, at least 1
//! kind 3  end of the stream under way; no payload
//! ```
//!
//! # Conversation
//!
//! The client opens a channel with the command [`COMMAND`] and at once sends
//! one [`Request`] message, without waiting for anything. The request's
//! streams follow, in the order its documentation gives: each is some data
//! frames and an end frame. The node answers with [`Event`] messages, of which
//! the last is [`Event::Done`] or [`Event::Failed`], and closes.
//!
//! Messages may gain fields (`serde(default)`) but never change the meaning of
//! one; a new [`PROTOCOL`] number is for what older agents must refuse.

pub mod frame;
pub mod message;

pub use bulkhead_core::SignedText;
pub use frame::{DATA_MAX_BYTES, Frame, FrameError, Kind, MESSAGE_MAX_BYTES, read_frame, write_frame};
pub use message::*;
/// The encoding of messages.
pub use serde_json;

/// Version of this protocol; part of every request.
pub const PROTOCOL: u32 = 1;
/// The command that a client runs over SSH on a node. The account's login shell
/// is the gate, which accepts nothing else.
pub const COMMAND: &str = "bulkhead-gate";
/// First byte of a data frame with what a tool wrote to its standard output.
pub const TOOL_STDOUT: u8 = 1;
/// Likewise, to its standard error.
pub const TOOL_STDERR: u8 = 2;
/// The account of couriers: it brings what is signed, and sees what an order must follow.
pub const ACCOUNT: &str = "bulkhead";
/// The account that sees what runs, logs and the audit log.
pub const OBSERVE_ACCOUNT: &str = "bulkhead-observe";
/// The account that sees files of services too, and talks to services.
pub const OPERATE_ACCOUNT: &str = "bulkhead-operate";
/// The account of the write-only SFTP drop box.
pub const DROP_ACCOUNT: &str = "bulkhead-drop";
