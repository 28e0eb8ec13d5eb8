//! `bulkhead-agent`: what runs on a node. Gate and keeper; nothing of it stays
//! resident. See ARCHITECTURE.md, "On a node".
//!
//! | module | is |
//! |---|---|
//! | [`gate`] | the login shell: passes frames, believes nothing |
//! | [`keeper`] | one request, with root's rights |
//! | [`boot`] | from the last accepted orders to running services |
//! | [`install`] | from a stock system to a node |
//! | [`state`] | what a node keeps: orders, releases, what is live |
//! | [`papers`] | what a node was brought that is no order: policy, revocations, heartbeats, statements |
//! | [`quota`] | the drop box's: watched while somebody writes there |
//! | [`audit`] | the hash chain of all that was accepted or refused |
//! | [`keys`] | the node's own keys: one signs that chain, one opens secrets |
//! | [`units`] | from a specification to the text of units. Pure |
//! | [`tool`] | a tool's own process: enters the service's namespaces, becomes the tool |
//! | [`health`], [`http`], [`sockets`] | whether a service is well, seen from outside |
//! | [`systemd`], [`durable`], [`peer`], [`account`] | the ways to systemd, the disk, the client, and who that is |

pub mod account;
pub mod audit;
pub mod boot;
pub mod durable;
pub mod gate;
pub mod health;
pub mod http;
pub mod install;
pub mod keeper;
pub mod keys;
pub mod papers;
pub mod peer;
pub mod quota;
pub mod scrub;
pub mod sockets;
pub mod state;
pub mod systemd;
pub mod tool;
pub mod units;
