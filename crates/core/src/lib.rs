//! Bulkhead's nouns as plain data.
//!
//! Everything here is a pure function of its arguments: no file, socket,
//! clock, environment variable or random number is read (`clippy.toml` beside
//! this crate enforces it). Time comes in as [`Timestamp`]; bytes come in as
//! slices and leave as values or an error that says what was wrong and where.
//!
//! | module | holds |
//! |---|---|
//! | [`digest`] | typed 32-byte ids |
//! | [`verity`] | the fs-verity digest, computed in pure Rust |
//! | [`name`] | validated names of apps, services, nodes, … |
//! | [`image`] | the canonical description of an image, and its id |
//! | [`manifest`] | `bulkhead.toml` |
//! | [`grant`] | what a program may do by itself on the machines that it buys |
//! | [`node`] | who a node is, and what its installation is given |
//! | [`order`] | signed statements of what must run |
//! | [`signed`] | a document with its signatures |
//! | [`standing`] | orders given in advance, within bounds |
//! | [`statement`] | that an image is green, or red |
//! | [`notice`] | what a fleet tells its nodes between orders: revocations, heartbeats |
//! | [`fleet`] | `fleet.toml`: nodes and how to reach them |
//! | [`policy`] | who must sign what |
//! | [`time`] | seconds since the epoch, and their RFC 3339 text |

pub mod digest;
pub mod fleet;
pub mod grant;
pub mod image;
pub mod manifest;
pub mod name;
pub mod node;
pub mod notice;
pub mod order;
pub mod policy;
pub mod signed;
pub mod standing;
pub mod statement;
pub mod time;
pub mod verity;

pub use digest::{BootId, EntryId, FileDigest, ImageId, OrderId, PolicyId, RunId, SecretDigest, StatementId};
pub use name::{
    AppName, EnvironmentName, FleetName, NodeName, PersonName, PoolName, SecretName, ServiceName, VolumeName,
};
pub use signed::SignedText;
pub use time::Timestamp;
