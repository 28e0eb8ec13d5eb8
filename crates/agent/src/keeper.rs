//! The keeper: root, one process for one request, started by systemd with the
//! connection as standard input. It verifies, changes what runs, and looks; it
//! has no network and opens nothing that a client names by itself.
//!
//! ```text
//! keeper/caller.rs  who asks, as the kernel says, and what that account may ask
//! keeper/bring.rs   a signed document that is no order: policy, revocation, heartbeat, statement
//! keeper/submit.rs  an order on its way: verify, receive, accept
//! keeper/secrets.rs a secret from what came to what systemd loads
//! keeper/carry.rs   an accepted order: start, check, switch, drain, stop
//! keeper/settle.rs  whatever was left half done: what runs is made to fit what is recorded
//! keeper/release.rs a release's units, sockets, links and volumes
//! keeper/images.rs  mounting images, and unmounting those that nobody uses
//! keeper/objects.rs an image's contents, for a client that sends them on
//! keeper/status.rs  facts and what runs
//! keeper/logs.rs    the journal
//! keeper/look.rs    a service's processes, files, sockets, limits, from outside
//! keeper/tool.rs    an accepted order to look: a tool's output, its end
//! keeper/tool/place.rs  what it has of the node: unit, socket, user id
//! ```

pub mod bring;
mod caller;
pub mod carry;
mod discharge;
pub(crate) mod dropbox;
pub mod images;
pub mod logs;
pub mod look;
pub mod objects;
pub mod release;
pub mod secrets;
pub mod settle;
pub mod status;
pub mod submit;
pub mod tool;

use crate::{
    audit,
    durable::FileError,
    keys, papers,
    peer::{Peer, PeerError, Preface},
    state::{self, Paths},
    systemd::{self, SystemdError},
};
use bulkhead_core::{AppName, ImageId, Timestamp, order::Action};
use bulkhead_store::{Store, StoreError};
use bulkhead_trust::audit::{End, Head};
use bulkhead_wire::{Ask, Done, Event, Failure, FailureKind, Request};
use caller::Caller;
use std::{
    collections::BTreeSet,
    io,
    os::{fd::AsFd as _, unix::net::UnixStream},
    time::{SystemTime, UNIX_EPOCH},
};

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
    let caller = Caller::of(&socket)?;
    let mut peer = Peer::new(socket)?;
    let result = serve(paths, &mut peer, &caller);
    let event = match result {
        Ok(done) => Event::Done(done),
        Err(failure) => Event::Failed(*failure),
    };
    // After a refusal there is nothing to clear up, and a stranger could ask for it without end.
    let may_have_changed = match &event {
        Event::Done(done) => done.order.is_some(),
        Event::Failed(failure) => matches!(failure.kind, FailureKind::Unhealthy | FailureKind::Node),
        _ => false,
    };
    // A client that is gone has nothing to be told.
    drop(peer.send(&event));
    drop(peer);
    if matches!(&event, Event::Done(done) if !done.warnings.is_empty()) {
        // What could not be done a moment ago may be possible now.
        if let Err(error) = settle::settle_all(paths) {
            systemd::eprintln_bounded(&chain(&error));
        }
    }
    if may_have_changed {
        clear_up(paths);
    }
    Ok(())
}

/// What can wait until the client has its answer.
fn clear_up(paths: &Paths) {
    if let Err(failure) = images::sweep(paths) {
        systemd::eprintln_bounded(&format!("unmounting images: {}", failure.message));
    }
    if let Err(error) = collect_garbage(paths) {
        systemd::eprintln_bounded(&format!("garbage collection: {}", chain(&error)));
    }
}

/// What follows a keeper that did not come to its end. `false` where an app could not be settled.
///
/// # Errors
/// Not even the list of apps can be read.
pub fn settle_after_death(paths: &Paths) -> Result<bool, String> {
    // It may have died between a new policy and what follows from it.
    if let Err(error) = papers::settle(paths, |_| bring::end_sessions(None)) {
        systemd::eprintln_bounded(&format!("what follows from the policy: {}", chain(&error)));
    }
    // First, for it waits for nothing: a tool that is left goes on looking.
    let tools = tool::sweep(paths);
    if let Err(failure) = &tools {
        systemd::eprintln_bounded(&format!("tools that were left: {}", failure.message));
    }
    let all_well = settle::settle_all(paths).map_err(|error| chain(&error));
    clear_up(paths);
    Ok(all_well? && tools.is_ok())
}

fn serve(paths: &Paths, peer: &mut Peer, caller: &Caller) -> Result<Done, Box<Failure>> {
    let malformed =
        |error: serde_json::Error| failure(FailureKind::Request, "malformed", format!("not a request: {error}"));
    let preface: Preface = serde_json::from_slice(&peer.message().or_fail()?).map_err(malformed)?;
    let mut request: Request = serde_json::from_slice(&peer.message().or_fail()?).map_err(malformed)?;
    if request.ask == Ask::Await {
        let protocol = request.protocol;
        // Within the time that every opening has: to come early gives no right to stay longer.
        let mut next = |peer: &mut Peer| {
            request = serde_json::from_slice(&peer.message().or_fail()?).map_err(malformed)?;
            // The gate has looked at the first only.
            if request.protocol != protocol {
                return Err(failure(FailureKind::Request, "protocol", "two protocols in one request"));
            }
            Ok(request.ask.clone())
        };
        if let Ask::Releases { app } = next(peer)? {
            caller.check(&Ask::Releases { app: None })?;
            releases(paths, peer, app)?;
            peer.send(&Event::Done(Done::default())).or_fail()?;
            next(peer)?;
        }
    }
    caller.check(&request.ask)?;
    peer.begin();
    // Who came this far came through the node's own SSH server: nothing need be given back any more.
    crate::install::confirm(paths).or_fail()?;
    match request.ask {
        Ask::Await => return Err(failure(FailureKind::Request, "malformed", "a request that only waits for another")),
        Ask::Ping => {}
        Ask::Status => {
            let status = status::status(paths)?;
            peer.send(&Event::Status(status)).or_fail()?;
        }
        Ask::Releases { app } => releases(paths, peer, app)?,
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
        Ask::Policy => {
            let enforced = papers::enforced(paths).or_fail()?;
            peer.send(&Event::Policy(Box::new(enforced))).or_fail()?;
        }
        Ask::Audit { from } => send_audit(paths, peer, from)?,
        Ask::Bring(bring) => bring::bring(paths, peer, bring, preface.key.as_deref(), caller)?,
        Ask::Discharge { signatures } => {
            discharge::discharge(paths, peer, &signatures, preface.key.as_deref())?;
        }
        Ask::Submit(submit) => {
            discharge::refuse_while_under_way(paths)?;
            return submit::submit(paths, peer, &submit, preface.key.as_deref());
        }
        Ask::Open { .. } => {
            return Err(failure(FailureKind::Request, "malformed", "connections to services do not pass the keeper"));
        }
    }
    Ok(Done::default())
}

/// The audit log from an entry on, and the node's word of where it ends.
fn send_audit(paths: &Paths, peer: &mut Peer, from: u64) -> Result<(), Box<Failure>> {
    let key = keys::audit(paths).or_fail()?;
    let identity = state::identity(paths).or_fail()?;
    let (lines, End { entries, head }) = audit::read(&paths.audit()).or_fail()?;
    let (fleet, node) = (identity.fleet, identity.node);
    let head = Head { format: 1, fleet, node, entries, head, at: now() };
    peer.send(&Event::Audit(Box::new(audit::signed(&key, &head)))).or_fail()?;
    let left_out: usize = usize::try_from(from)
        .map(|from| lines.split_inclusive(|byte| *byte == b'\n').take(from).map(<[u8]>::len).sum())
        .unwrap_or(lines.len());
    let lines = &lines[left_out..];
    peer.send(&Event::Stream { bytes: Some(lines.len() as u64) }).or_fail()?;
    peer.send_stream(lines).or_fail()
}

fn releases(paths: &Paths, peer: &mut Peer, app: Option<AppName>) -> Result<(), Box<Failure>> {
    let images = open_store(paths)?.images().or_fail()?;
    let policy = papers::policy(paths).or_fail()?;
    let apps = match app {
        Some(name) => vec![state::App::new(paths, name)],
        None => state::apps(paths).or_fail()?,
    };
    for app in apps {
        for mut release in app.releases(&images).or_fail()? {
            if let Some(image) = release.image {
                release.statements = papers::statements(paths, &policy, app.name(), image).or_fail()?;
            }
            peer.send(&Event::Release(release)).or_fail()?;
        }
    }
    Ok(())
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

/// Keeps the store within half of its file system, and a part of that free: see [`budget`]. What is live
/// stays whatever that says.
fn collect_garbage(paths: &Paths) -> Result<(), CollectError> {
    let (total, free) = disk(paths).map_err(CollectError::State)?;
    // Where no more than half is used in all, the store is within its half.
    if free >= total / 2 {
        return Ok(());
    }
    let store = Store::open(&paths.store()).map_err(CollectError::Store)?;
    let used = store.usage_bytes().map_err(CollectError::Store)?;
    let Some(budget_bytes) = budget(total, free, used) else { return Ok(()) };
    let collection = match store.collection() {
        Ok(collection) => collection,
        // Another push is under way; it will collect when it is done.
        Err(StoreError::Busy) => return Ok(()),
        Err(error) => return Err(CollectError::Store(error)),
    };
    let (keep, preference) = worth_keeping(paths).map_err(CollectError::State)?;
    collection.collect(&keep, Some(budget_bytes), &preference).map(drop).map_err(CollectError::Store)
}

/// How many bytes the store may take, where it takes more: half of the file system, less what is wanting of a
/// tenth of it free, because whatever else fills the disk would otherwise stop the next deploy.
fn budget(total: u64, free: u64, used: u64) -> Option<u64> {
    let wanting = (total / 10).saturating_sub(free);
    let budget = (total / 2).min(used.saturating_sub(wanting));
    (budget < used).then_some(budget)
}

/// The images that must stay, and those that are next worth a place: each app's newest good release before any
/// app's second. That an app cannot be read keeps everything: nobody knows what it needs.
fn worth_keeping(paths: &Paths) -> Result<(BTreeSet<ImageId>, Vec<ImageId>), FileError> {
    // Of a release that drains, or a tool that runs, nothing may go while it is read.
    let mut keep = images::mounted(paths)?;
    let mut preferred: Vec<(usize, ImageId)> = Vec::new();
    for app in state::apps(paths)? {
        keep.extend(app.live_run()?.map(|(_, run)| run.image));
        // The last order may be under way in another keeper, or be sent again.
        keep.extend(match app.order(app.head()?.counter)?.map(|order| order.action) {
            Some(Action::Run(run)) => Some(run.image),
            Some(Action::Look(tool)) => Some(tool.image),
            _ => None,
        });
        preferred.extend(app.good_images()?.into_iter().enumerate());
    }
    preferred.sort_by_key(|(rank, _)| *rank);
    Ok((keep, preferred.into_iter().map(|(_, image)| image).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::image::{Image, ImageConfig};

    /// One that a release still drains from, or a tool runs from, is read though no state names it any more.
    #[test]
    fn what_is_mounted_is_collected_by_nobody() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        let config = |platform: &str| ImageConfig { platform: platform.into(), allowed: vec![], tools: false };
        std::fs::create_dir_all(paths.store()).unwrap();
        let store = Store::open(&paths.store()).unwrap();
        let [mounted, idle] = ["mounted", "idle"].map(|name| {
            let image = Image::new(config(name), vec![]).unwrap();
            store.push().unwrap().put_document(image.id(), &image.encode()).unwrap();
            image.id()
        });
        std::fs::create_dir_all(paths.image(mounted)).unwrap();
        let (keep, preference) = worth_keeping(&paths).unwrap();
        // Not even where nothing at all may be kept.
        let collected = store.collection().unwrap().collect(&keep, Some(0), &preference).unwrap();
        assert_eq!(collected.images, [idle]);
        assert_eq!(store.images().unwrap(), [mounted].into());
    }

    #[test]
    fn what_the_store_may_take() {
        for (total, free, used, expected) in [
            // Plenty of room, and just enough.
            (1000, 700, 300, None),
            (1000, 100, 500, None),
            // Over its half.
            (1000, 300, 600, Some(500)),
            // Others fill the disk: the store makes room for a tenth.
            (1000, 40, 300, Some(240)),
            (1000, 0, 60, Some(0)),
            (0, 0, 0, None),
        ] {
            assert_eq!(budget(total, free, used), expected, "{total} {free} {used}");
        }
    }
}
