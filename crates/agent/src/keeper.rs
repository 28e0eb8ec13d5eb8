//! The keeper: root, one process for one request, started by systemd with the
//! connection as standard input. It verifies, changes what runs, and looks; it
//! has no network and opens nothing that a client names by itself.
//!
//! ```text
//! keeper/submit.rs  an order on its way: verify, receive, accept
//! keeper/carry.rs   an accepted order: mount, start, check, switch, drain, stop
//! keeper/objects.rs an image's contents, for a client that sends them on
//! keeper/status.rs  facts and what runs
//! keeper/logs.rs    the journal
//! keeper/look.rs    a service's processes, files, sockets, limits, from outside
//! ```

pub mod carry;
pub mod logs;
pub mod look;
pub mod objects;
pub mod status;
pub mod submit;

use crate::{
    durable::FileError,
    peer::{Peer, PeerError, Preface},
    state::{self, Paths},
    systemd::{self, SystemdError},
};
use bulkhead_core::{ImageId, Timestamp};
use bulkhead_store::{Store, StoreError};
use bulkhead_wire::{Ask, Done, Event, Failure, FailureKind, Request};
use std::{
    collections::BTreeSet,
    io,
    os::{fd::AsFd as _, unix::net::UnixStream},
    time::{SystemTime, UNIX_EPOCH},
};

/// Images of how many releases that went well are spared longest, besides the live one.
const RELEASES_PREFERRED: usize = 5;

/// The node's clock.
#[must_use]
pub fn now() -> Timestamp {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Timestamp(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// An error and its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A failure to tell the client.
#[must_use]
pub fn failure(kind: FailureKind, rule: &str, message: impl Into<String>) -> Box<Failure> {
    let message = message.into();
    Box::new(Failure { kind, rule: rule.into(), message, hint: None, log: vec![], position: None })
}

fn node_failure(rule: &str, error: &dyn std::error::Error) -> Box<Failure> {
    failure(FailureKind::Node, rule, chain(error))
}

/// `?` on what the node itself could not do.
pub(crate) trait OrFail<T> {
    /// The value, or a failure of the node's.
    fn or_fail(self) -> Result<T, Box<Failure>>;
}

impl<T> OrFail<T> for Result<T, FileError> {
    fn or_fail(self) -> Result<T, Box<Failure>> {
        self.map_err(|error| {
            let is_full = error.is_disk_full();
            let mut failure = node_failure(if is_full { "disk-full" } else { "file" }, &error);
            failure.hint = is_full.then(|| "make room on the node, or remove apps it no longer needs".into());
            failure
        })
    }
}

impl<T> OrFail<T> for Result<T, SystemdError> {
    fn or_fail(self) -> Result<T, Box<Failure>> {
        self.map_err(|error| node_failure("systemd", &error))
    }
}

impl<T> OrFail<T> for Result<T, PeerError> {
    fn or_fail(self) -> Result<T, Box<Failure>> {
        self.map_err(|error| failure(FailureKind::Request, "protocol", chain(&error)))
    }
}

impl<T> OrFail<T> for Result<T, StoreError> {
    fn or_fail(self) -> Result<T, Box<Failure>> {
        self.map_err(|error| match &error {
            StoreError::DiskFull { .. } => Box::new(Failure {
                hint: Some("make room on the node, or remove apps it no longer needs".into()),
                ..*node_failure("disk-full", &error)
            }),
            StoreError::Pack(_) => failure(FailureKind::Request, "pack", chain(&error)),
            _ => node_failure("store", &error),
        })
    }
}

/// Serves the request on standard input.
///
/// # Errors
/// Standard input is no connection.
pub fn run(paths: &Paths) -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut peer = Peer::new(socket)?;
    let result = serve(paths, &mut peer);
    let event = match result {
        Ok(done) => Event::Done(done),
        Err(failure) => Event::Failed(*failure),
    };
    let is_change = matches!(&event, Event::Done(Done { order: Some(_), .. }));
    // A client that is gone has nothing to be told.
    drop(peer.send(&event));
    drop(peer);
    if is_change && let Err(error) = collect_garbage(paths) {
        systemd::eprintln_bounded(&format!("garbage collection: {}", chain(&error)));
    }
    Ok(())
}

fn serve(paths: &Paths, peer: &mut Peer) -> Result<Done, Box<Failure>> {
    let malformed =
        |error: serde_json::Error| failure(FailureKind::Request, "malformed", format!("not a request: {error}"));
    let preface: Preface = serde_json::from_slice(&peer.message().or_fail()?).map_err(malformed)?;
    let request: Request = serde_json::from_slice(&peer.message().or_fail()?).map_err(malformed)?;
    peer.begin();
    match request.ask {
        Ask::Ping => {}
        Ask::Status => {
            let status = status::status(paths)?;
            peer.send(&Event::Status(status)).or_fail()?;
        }
        Ask::Releases { app } => {
            let images = open_store(paths)?.images().or_fail()?;
            let apps = match app {
                Some(name) => vec![state::App::new(paths, name)],
                None => state::apps(paths).or_fail()?,
            };
            for app in apps {
                for release in app.releases(&images).or_fail()? {
                    peer.send(&Event::Release(release)).or_fail()?;
                }
            }
        }
        Ask::ImageDocument { image } => {
            let document = open_store(paths)?.document(image).or_fail()?.ok_or_else(|| {
                failure(FailureKind::Request, "no-image", format!("image {} is not on this node", image.short()))
            })?;
            peer.send(&Event::Stream { bytes: Some(document.len() as u64) }).or_fail()?;
            peer.send_stream(&document).or_fail()?;
        }
        Ask::Objects { image, wanted } => objects::send(&open_store(paths)?, peer, image, &wanted)?,
        Ask::Logs { app, service, lines, follow } => {
            logs::send(peer, &logs::Query { app: &app, service: service.as_ref(), release: None, lines, follow })?;
        }
        Ask::Look { app, service, view } => {
            let look = look::look(paths, &app, &service, &view)?;
            peer.send(&Event::Look(look)).or_fail()?;
        }
        Ask::Submit(submit) => return submit::submit(paths, peer, &submit, preface.key.as_deref()),
        Ask::Open { .. } => {
            return Err(failure(FailureKind::Request, "malformed", "connections to services do not pass the keeper"));
        }
    }
    Ok(Done::default())
}

pub(crate) fn open_store(paths: &Paths) -> Result<Store, Box<Failure>> {
    Store::open(&paths.store()).or_fail()
}

/// Bytes in all and free where the store is.
pub(crate) fn disk(paths: &Paths) -> Result<(u64, u64), FileError> {
    let path = paths.state.clone();
    let found = rustix::fs::statvfs(&path).map_err(|error| FileError::io("measure", &path)(error.into()))?;
    Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}

#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error("cannot find out what is needed")]
    State(#[source] FileError),
    #[error("cannot remove what is not")]
    Store(#[source] StoreError),
}

/// Keeps the store within half of its file system. What is live stays whatever that says.
fn collect_garbage(paths: &Paths) -> Result<(), CollectError> {
    let mut keep: BTreeSet<ImageId> = BTreeSet::new();
    let mut preferred: Vec<ImageId> = Vec::new();
    for app in state::apps(paths).map_err(CollectError::State)? {
        keep.extend(app.live_run().map_err(CollectError::State)?.map(|(_, run)| run.image));
        // The last order may be under way in another keeper.
        let head = app.head().map_err(CollectError::State)?.counter;
        if let Some(order) = app.order(head).map_err(CollectError::State)?
            && let bulkhead_core::order::Action::Run(run) = order.action
        {
            keep.insert(run.image);
        }
        preferred.extend(app.good_images().map_err(CollectError::State)?.into_iter().take(RELEASES_PREFERRED + 1));
    }
    let (total, _) = disk(paths).map_err(CollectError::State)?;
    let store = Store::open(&paths.store()).map_err(CollectError::Store)?;
    match store.collect_garbage(&keep, Some(total / 2), &preferred) {
        // Another push is under way; it will collect when it is done.
        Ok(_) | Err(StoreError::Busy) => Ok(()),
        Err(error) => Err(CollectError::Store(error)),
    }
}
