//! Outbound effects: everything that an operator's machine does to nodes.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | `~/.ssh/config`, as far as it says how to reach a host |
//! | [`known_hosts`] | which host key a host must show |
//! | [`agent`] | ssh-agent: list keys, sign |
//! | [`identity`] | the private keys a person has: agent and files |
//! | [`ssh`] | a node as an SSH target, connections, channels |
//! | [`frames`] | frames over byte streams, bounded in size and time |
//! | [`client`] | requests to a node's gate and the conversation that follows |
//! | [`bootstrap`] | from a stock machine to a node, over its provider's login |
//! | [`sign`] | SSHSIG signatures with keys that people have |
//! | [`memory`] | what this machine remembers of nodes; wrong memory costs time only |
//! | `local` | the local fleet: real systems on this machine (Linux) |
//! | [`push`] | one order to many nodes at once |
//!
//! Nothing here reads the clock for documents: whoever makes an order says when.
//! Waiting is bounded everywhere, and so is what a node can make this side hold.

pub mod agent;
pub mod bootstrap;
pub mod client;
pub mod config;
pub mod frames;
pub mod identity;
pub mod known_hosts;
#[cfg(target_os = "linux")]
pub mod local;
pub mod memory;
pub mod push;
pub mod sign;
pub mod ssh;

pub use client::{Conversation, NodeClient, NodeError, printable};
pub use identity::Identities;
pub use ssh::{ConnectError, Connection, HostKey, Target, Timeouts, connect, resolve, resolve_as, resolve_machine};
