//! Who asks, and what they may ask.
//!
//! The kernel says which account is at the other end of the connection; neither
//! the gate, which runs as that account, nor the socket that it came by, of which
//! each account has its own, is believed in this. sshd lets a key in as an
//! account only where the policy gives the key the role.
//!
//! | account | may |
//! |---|---|
//! | `bulkhead` (courier) | bring orders and other signed documents, and see what they must follow, the audit log too |
//! | `bulkhead-observe` | see what runs, releases, logs, the audit log, processes and sockets of services |
//! | `bulkhead-operate` | that, and see files of services; its group alone reaches the sockets of services |

use super::failure;
use crate::account;
use bulkhead_wire::{ACCOUNT, Ask, Failure, FailureKind, OBSERVE_ACCOUNT, OPERATE_ACCOUNT, View};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::{io, os::unix::net::UnixStream};

/// Whoever connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// The account, as the kernel and `/etc/passwd` say.
    account: String,
    /// The process that connected: a gate.
    pub(super) pid: i32,
}

impl Caller {
    /// Of a connected socket.
    ///
    /// # Errors
    /// The system does not say.
    pub(super) fn of(socket: &UnixStream) -> io::Result<Self> {
        // Not rustix's: its process id cannot be 0, which the kernel says of a peer outside this process-id namespace.
        let peer = getsockopt(socket, PeerCredentials)?;
        Ok(Self { account: account::name_of(peer.uid())?, pid: peer.pid() })
    }

    /// Whether it may ask this.
    ///
    /// # Errors
    /// What to tell it.
    pub(super) fn check(&self, ask: &Ask) -> Result<(), Box<Failure>> {
        let role = match self.account.as_str() {
            ACCOUNT => "courier",
            OBSERVE_ACCOUNT => "observe",
            OPERATE_ACCOUNT => "operate",
            // Whoever is root needs no keeper.
            "root" => return Ok(()),
            other => {
                let message = format!("the account `{other}` may ask the keeper nothing");
                return Err(failure(FailureKind::Refused, "role", message));
            }
        };
        let (needed, what) = needed(ask);
        if needed.is_empty() || needed.contains(&role) {
            return Ok(());
        }
        let message = format!("a connection with the role {role} may not {what}; {} may", needed.join(" or "));
        let mut failure = failure(FailureKind::Refused, "role", message);
        failure.hint = Some("the policy gives roles to keys: `bulkhead policy show`".into());
        Err(failure)
    }
}

/// The roles that may ask this, one is enough (none: all may), and what it is in words.
fn needed(ask: &Ask) -> (&'static [&'static str], &'static str) {
    const LOOKERS: &[&str] = &["observe", "operate"];
    match ask {
        Ask::Ping | Ask::Status | Ask::Releases { .. } | Ask::Policy | Ask::Audit { .. } => (&[], ""),
        Ask::Await | Ask::Submit(_) => (&["courier"], "bring orders"),
        Ask::Bring(_) | Ask::Discharge { .. } => (&["courier"], "bring signed documents"),
        Ask::ImageDocument { .. } | Ask::Objects { .. } => (&["courier"], "fetch images"),
        Ask::Logs { .. } => (LOOKERS, "read logs"),
        Ask::Look { view: View::Files { .. } | View::OpenFiles, .. } => (&["operate"], "see files of services"),
        Ask::Look { .. } => (LOOKERS, "look into services"),
        Ask::Open { .. } => (&["operate"], "talk to services"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_wire::{Bring, Paper, Submit};

    #[test]
    fn roles() {
        let app = || "notes".parse().unwrap();
        let service = || "web".parse().unwrap();
        let look = |view| Ask::Look { app: app(), service: service(), view };
        let submit = Submit::default();
        let bring = Bring { paper: Paper::Policy, signatures: vec![] };
        let logs = Ask::Logs { app: app(), service: None, lines: 1, follow: false };
        for (ask, allowed) in [
            (Ask::Ping, [true, true, true, false]),
            (Ask::Status, [true, true, true, false]),
            (Ask::Releases { app: None }, [true, true, true, false]),
            (Ask::Policy, [true, true, true, false]),
            (Ask::Audit { from: 0 }, [true, true, true, false]),
            (Ask::Await, [true, false, false, false]),
            (Ask::Submit(submit), [true, false, false, false]),
            (Ask::Bring(bring), [true, false, false, false]),
            (Ask::Discharge { signatures: vec![] }, [true, false, false, false]),
            (Ask::ImageDocument { image: bulkhead_core::ImageId([1; 32]) }, [true, false, false, false]),
            (
                Ask::Objects { image: bulkhead_core::ImageId([1; 32]), wanted: String::new() },
                [true, false, false, false],
            ),
            (logs, [false, true, true, false]),
            (look(View::Processes), [false, true, true, false]),
            (look(View::Sockets), [false, true, true, false]),
            (look(View::Limits), [false, true, true, false]),
            (look(View::OpenFiles), [false, false, true, false]),
            (look(View::Files { path: "/".into() }), [false, false, true, false]),
            (Ask::Open { app: app(), service: service() }, [false, false, true, false]),
        ] {
            for (name, may) in [ACCOUNT, OBSERVE_ACCOUNT, OPERATE_ACCOUNT, "bulkhead-50000"].into_iter().zip(allowed) {
                let caller = Caller { account: name.into(), pid: 1 };
                assert_eq!(caller.check(&ask).is_ok(), may, "{name} {ask:?}");
            }
        }
    }
}
