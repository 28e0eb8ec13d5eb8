//! An order on its way in. The sequence, and what a cut at each point leaves:
//!
//! 1. The order's bytes are read and its signatures checked over them. Only
//!    then is its JSON read, the app's lock taken, and everything else checked.
//! 2. The lock is given back and what the release needs is received: the image's document, whose sha256
//!    must be the id that the order names, and objects that it names. A cut
//!    here accepts nothing; objects that were whole stay and are not sent again.
//! 3. Objects and document are made durable.
//! 4. The order is checked again under the lock, its time included: it may have
//!    expired or another may have come first while the client was sending.
//! 5. The order is accepted: its release and its counter are durable. From here
//!    on no client's absence matters; a crash leaves the release recorded as
//!    under way and the release before running.
//! 6. It is carried out ([`super::carry`]); an order to look has its tool run ([`super::tool`]), which is
//!    the one thing that a client's absence ends, and is not begun again.
//!
//! So a counter is never used up by an order whose image did not arrive, and an
//! order whose counter is used up has all it needs on disk.

use super::{
    OrFail, carry, chain, dropbox, failure, images, now, open_store, settle, status::mounts_by_metadata, tool,
};
use crate::{
    audit::{self, Entry, What},
    peer::Peer,
    state::{self, App, Head, Holder, Lock, Paths, Record},
    systemd, units,
};
use bulkhead_core::{
    FileDigest, ImageId, OrderId,
    image::{DOCUMENT_MAX_BYTES, Image, Node},
    node::NodeIdentity,
    order::{Action, ORDER_MAX_BYTES, Order, Run, Tool},
    policy::{Policy, Role, key_blob},
};
use bulkhead_store::{Store, mount, pack, store::Push};
use bulkhead_trust::{Context, Refusal, Rule, Standing, Verified, authorize_order};
use bulkhead_wire::{
    Done, Event, Failure, FailureKind, ImageOffer, Outcome, Position, StepKind, Submit, distinct_objects, missing_bits,
};
use std::{
    collections::HashMap,
    io::Read as _,
    thread,
    time::{Duration, Instant},
};

/// Between two tries for a lock: short beside a deploy, long beside a system call.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// What no client is told "locked" before.
const LOCK_GLANCE: Duration = Duration::from_millis(200);
/// Longer than nearly any order takes; a client may wish to wait for less.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a client may take to send an image, if its order does not expire
/// before. What was whole by then stays, so the next order goes on from there.
const RECEIVE_MAX: Duration = Duration::from_secs(6 * 3600);
/// zstd's output is never longer than its input by more than this part of it.
const COMPRESSED_DOCUMENT_MAX_BYTES: usize = DOCUMENT_MAX_BYTES + DOCUMENT_MAX_BYTES / 128;
/// Directories that systemd mounts over, which a read-only image must have.
const MOUNT_POINTS: [&str; 7] = ["proc", "sys", "dev", "run", "tmp", "var", "var/tmp"];

/// Directories that a tool's own mounts are put on.
const TOOL_MOUNT_POINTS: [&str; 4] = ["proc", "dev", "tmp", "target"];

/// Takes an order and carries it out.
///
/// # Errors
/// What to tell the client.
pub fn submit(paths: &Paths, peer: &mut Peer, submit: &Submit, key: Option<&str>) -> Result<Done, Box<Failure>> {
    let bytes = peer.read_stream("order", ORDER_MAX_BYTES).or_fail()?;
    let identity = state::identity(paths).or_fail()?;
    let policy = state::policy(paths).or_fail()?;
    let id = OrderId::of(&bytes);
    let courier = key.map(|key| courier(&policy, key));
    let enter = |peer: &mut Peer| {
        let submitted = Submitted { submit, bytes: &bytes, id, courier: courier.clone() };
        enter(paths, peer, &submitted, &identity, &policy)
    };
    let mut entered = match enter(peer)? {
        Entrance::Again(done) => return Ok(done),
        Entrance::Now(entered) => entered,
    };
    peer.step(StepKind::Accepted, None).or_fail()?;
    let order = entered.verified.value().clone();
    check_possible(&entered.app, &order.action)?;

    let store = open_store(paths)?;
    // Holds garbage collection off until the order that names the image is durable.
    let push = store.push().or_fail()?;
    let hold = images::hold(paths)?;
    if let Some(need) = Need::of(&order.action) {
        // A slow client must not keep others from the app: it is free while this one
        // sends, and everything is checked again once all is here, the time included.
        drop(entered);
        let left = u64::try_from(order.not_after.0.saturating_sub(now().0)).unwrap_or(0);
        peer.allow(Duration::from_secs(left).min(RECEIVE_MAX));
        let mounting = receive(paths, peer, &store, &push, &hold, &need, submit.image.as_ref())?;
        if let Some(run) = need.run {
            check_units(paths, &order, run, order.targets[&identity.node].counter)?;
        }
        peer.step(StepKind::Received, None).or_fail()?;
        images::mount(&hold, need.image, mounting)?;
        peer.step(StepKind::Mounted, None).or_fail()?;
        entered = match enter(peer)? {
            Entrance::Again(done) => return Ok(done),
            Entrance::Now(entered) => entered,
        };
    } else {
        peer.step(StepKind::Received, None).or_fail()?;
    }
    let Entered { verified, app, is_repeat, _lock } = *entered;
    let number = order.targets[&identity.node].counter;

    let entry = |event| Entry {
        app: Some(order.app.clone()),
        counter: Some(number),
        signers: verified.signers().to_vec(),
        courier: courier.clone(),
        ..Entry::new(event, now(), id)
    };
    // First the log, then the counter: an order that counts is always in the log.
    let message = match &order.action {
        Action::Look(tool) => Some(format!("`{}` in {}", tool.shown(), tool.service)),
        _ => None,
    };
    audit::append(&paths.audit(), Entry { message, ..entry(What::Accepted) }).or_fail()?;
    let looks = matches!(order.action, Action::Look(_));
    if is_repeat {
        app.record_outcome(number, Outcome::Underway).or_fail()?;
    } else {
        // An order to look is used up before its tool runs: whatever happens then, it never runs twice.
        let outcome = if looks { Outcome::Done } else { Outcome::Underway };
        let record = Record { order: id, signers: verified.signers().to_vec(), accepted: now(), outcome };
        if let Err(error) = app.accept(number, &bytes, &submit.signatures, &record) {
            // Where only the last sync failed it may be in force all the same, and whoever comes next would carry it out.
            let is_head = app.head().is_ok_and(|head| head.order == Some(id));
            if !is_head {
                return Err(error).or_fail();
            }
        }
    }
    if let Action::Look(tool) = &order.action {
        // The app and the store are free while the tool runs. A client that leaves ends it.
        drop((push, _lock));
        return look(paths, peer, &app, id, tool, entry);
    }
    peer.commit();
    drop(push);
    peer.step(StepKind::Durable, None).or_fail()?;

    match carry::carry_out(paths, &app, number, &order, peer) {
        Ok(mut warnings) => {
            if let Err(error) = audit::append(&paths.audit(), entry(What::Done)) {
                warnings.push(format!("the audit log has no entry of its end: {}", chain(&error)));
            }
            warnings.iter().for_each(|warning| systemd::eprintln_bounded(&format!("`{}`: {warning}", order.app)));
            Ok(Done { release: live_number(&app), order: Some(id), already: false, warnings })
        }
        Err(mut failure) => {
            let entry = Entry {
                rule: Some(failure.rule.clone()),
                message: Some(failure.message.clone()),
                ..entry(What::Failed)
            };
            // That it failed is the news; that it cannot be recorded comes second.
            let outcome = Outcome::Failed { reason: failure.message.clone() };
            for error in [app.record_outcome(number, outcome), audit::append(&paths.audit(), entry)]
                .into_iter()
                .filter_map(Result::err)
            {
                failure.message.push_str(&format!("; nor could that be recorded: {}", chain(&error)));
            }
            Err(failure)
        }
    }
}

fn live_number(app: &App) -> Option<u64> {
    // The order is carried out whatever this says.
    app.live().ok().flatten().map(|live| live.release)
}

/// Runs the tool of an accepted order, and puts on record how it ended.
fn look(
    paths: &Paths,
    peer: &mut Peer,
    app: &App,
    id: OrderId,
    tool: &Tool,
    entry: impl Fn(What) -> Entry,
) -> Result<Done, Box<Failure>> {
    let what = format!("`{}` in {} with image {}", tool.shown(), tool.service, tool.image.short());
    let ran = tool::run(paths, peer, app, id, tool);
    let entry = match &ran {
        Ok(end) => Entry { message: Some(format!("{what}: {end}")), ..entry(What::Done) },
        Err(failure) => Entry {
            rule: Some(failure.rule.clone()),
            message: Some(format!("{what}: {}", failure.message)),
            ..entry(What::Failed)
        },
    };
    audit::append(&paths.audit(), entry).or_fail()?;
    let release = live_number(app);
    ran.map(|_| Done { release, order: Some(id), already: false, warnings: vec![] })
}

/// What came.
struct Submitted<'a> {
    submit: &'a Submit,
    bytes: &'a [u8],
    id: OrderId,
    courier: Option<String>,
}

/// An order that may be carried out, and the right to do so.
struct Entered {
    verified: Verified<Order>,
    app: App,
    is_repeat: bool,
    _lock: Lock,
}

enum Entrance {
    /// It was carried out already.
    Again(Done),
    /// It may be carried out.
    Now(Box<Entered>),
}

/// Checks an order and takes its app's lock; what refuses it is put on record.
fn enter(
    paths: &Paths,
    peer: &mut Peer,
    submitted: &Submitted<'_>,
    identity: &NodeIdentity,
    policy: &Policy,
) -> Result<Entrance, Box<Failure>> {
    let (verified, taken) = match authorize(paths, peer, submitted.submit, submitted.bytes, identity, policy)? {
        Ok(accepted) => accepted,
        Err((refusal, position)) => {
            let entry = Entry {
                courier: submitted.courier.clone(),
                rule: Some(refusal.rule.to_string()),
                message: Some(refusal.message.clone()),
                ..Entry::new(What::Refused, now(), submitted.id)
            };
            audit::append(&paths.audit(), entry).or_fail()?;
            return Err(refused(refusal, position));
        }
    };
    let Taken { app, is_repeat, _lock } = taken;
    if let Some(failure) = settle::settle(paths, &app)? {
        // What this order brings may be the cure.
        systemd::eprintln_bounded(&format!("app `{}`: {}", app.name(), failure.message));
    }
    let number = verified.value().targets[&identity.node].counter;
    if is_repeat && let Some(done) = repeated(&app, number, submitted.id)? {
        return Ok(Entrance::Again(done));
    }
    Ok(Entrance::Now(Box::new(Entered { verified, app, is_repeat, _lock })))
}

/// What the lock gives: the app as it stands, and that it stays so.
#[derive(Debug)]
struct Taken {
    app: App,
    is_repeat: bool,
    _lock: Lock,
}

type Authorized = Result<(Verified<Order>, Taken), (Refusal, Position)>;

/// Checks the order. The lock is taken between its signatures and its counter.
fn authorize(
    paths: &Paths,
    peer: &mut Peer,
    submit: &Submit,
    bytes: &[u8],
    identity: &NodeIdentity,
    policy: &Policy,
) -> Result<Authorized, Box<Failure>> {
    let context = Context {
        fleet: &identity.fleet,
        environment: &identity.environment,
        node: &identity.node,
        policy,
        now: now(),
        minimum_time: state::minimum_time(paths).or_fail()?,
    };
    let mut taken = None;
    let mut failed = None;
    let mut head = Head::default();
    let result = authorize_order(bytes, &submit.signatures, &context, |name| {
        let mut stand = || -> Result<Standing, Box<Failure>> {
            let app = App::new(paths, name.clone());
            let holder = Holder { holder: "a signed order".into(), since: context.now };
            let lock = lock(peer, &app, &holder, Duration::from_millis(u64::from(submit.wait_ms)))?;
            head = app.head().or_fail()?;
            let is_repeat = head.order == Some(OrderId::of(bytes));
            let standing = standing(&app, &head, is_repeat, identity)?;
            taken = Some(Taken { app, is_repeat, _lock: lock });
            Ok(standing)
        };
        stand().unwrap_or_else(|failure| {
            failed = Some(failure);
            Standing::default()
        })
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    Ok(match (result, taken) {
        (Ok(verified), Some(taken)) => {
            // Whoever waits from here on is told who signed.
            let holder = Holder { holder: verified.signers().join(", "), since: context.now };
            taken.app.name_holder(&holder);
            Ok((verified, taken))
        }
        (Ok(_), None) => return Err(failure(FailureKind::Node, "lock", "the order was verified without a lock")),
        (Err(refusal), _) => {
            let position = Position { counter: head.counter, previous: head.order, policy_version: policy.version };
            Err((refusal, position))
        }
    })
}

/// Where the app stands; for the very order that was accepted last, where it stood before that.
fn standing(app: &App, head: &Head, is_repeat: bool, identity: &NodeIdentity) -> Result<Standing, Box<Failure>> {
    if !is_repeat {
        return Ok(Standing { counter: head.counter, previous: head.order });
    }
    let stored = app.order(head.counter).or_fail()?;
    let previous = stored.and_then(|order| order.targets.get(&identity.node)?.previous);
    Ok(Standing { counter: head.counter.saturating_sub(1), previous })
}

fn lock(peer: &mut Peer, app: &App, holder: &Holder, wait: Duration) -> Result<Lock, Box<Failure>> {
    // Who asks whether somebody holds it has it for a moment.
    let deadline = Instant::now() + wait.clamp(LOCK_GLANCE, LOCK_WAIT_MAX);
    let mut told = None;
    loop {
        let other = match app.try_lock(holder).or_fail()? {
            Ok(lock) => return Ok(lock),
            Err(other) => other,
        };
        if Instant::now() >= deadline {
            let message = format!(
                "an order for `{}` signed by {} is being carried out since {}",
                app.name(),
                other.holder,
                other.since
            );
            let mut failure = failure(FailureKind::Locked, "locked", message);
            failure.hint = Some("wait for it, or look at `bulkhead ps`".into());
            return Err(failure);
        }
        if told.as_ref() != Some(&other) {
            peer.send(&Event::Waiting { holder: other.holder.clone(), since: other.since }).or_fail()?;
            told = Some(other);
        }
        if peer.hung_up() {
            return Err(failure(FailureKind::Request, "gone", "the client left while it waited"));
        }
        thread::sleep(LOCK_PAUSE);
    }
}

fn refused(refusal: Refusal, position: Position) -> Box<Failure> {
    let is_about_position = matches!(refusal.rule, Rule::Counter | Rule::Previous);
    Box::new(Failure {
        kind: FailureKind::Refused,
        rule: refusal.rule.to_string(),
        message: refusal.message,
        hint: refusal.hint,
        log: vec![],
        position: is_about_position.then_some(position),
    })
}

/// The key's holder as the policy names it, or the beginning of the key.
fn courier(policy: &Policy, key: &str) -> String {
    let blob = key_blob(key);
    let named = [Role::Courier, Role::Release]
        .into_iter()
        .flat_map(|role| policy.holders(role))
        .find(|(_, known)| key_blob(known) == blob);
    named.map_or_else(|| blob.chars().filter(char::is_ascii_graphic).take(100).collect(), |(name, _)| name.to_string())
}

/// What came of an order that comes a second time; `None` where it is to be carried out again.
fn repeated(app: &App, number: u64, id: OrderId) -> Result<Option<Done>, Box<Failure>> {
    match app.record(number).or_fail()?.map(|record| record.outcome) {
        Some(Outcome::Done) => {
            Ok(Some(Done { release: live_number(app), order: Some(id), already: true, warnings: vec![] }))
        }
        Some(Outcome::Failed { reason }) => {
            let mut failure = failure(FailureKind::Unhealthy, "already-failed", reason);
            failure.hint = Some("this very order failed before; sign a new one to try again".into());
            Err(failure)
        }
        Some(Outcome::Underway | Outcome::Interrupted) | None => Ok(None),
    }
}

/// Orders about the live release need one, and services that it has.
fn check_possible(app: &App, action: &Action) -> Result<(), Box<Failure>> {
    let services = match action {
        Action::Run(_) | Action::Remove { .. } => return Ok(()),
        Action::Stop { services } | Action::Start { services } | Action::Restart { services } => services.as_slice(),
        Action::Look(tool) => std::slice::from_ref(&tool.service),
    };
    let name = app.name();
    let Some((number, run)) = app.live_run().or_fail()? else {
        return Err(failure(FailureKind::Request, "no-release", format!("`{name}` has no release on this node")));
    };
    match services.iter().find(|service| run.services.iter().all(|spec| spec.name != **service)) {
        Some(service) => {
            let message = format!("release {number} of `{name}` has no service `{service}`");
            Err(failure(FailureKind::Request, "no-service", message))
        }
        None => Ok(()),
    }
}

/// Units are written before anything is accepted, if only to throw them away:
/// an order that has none must not use up a counter.
fn check_units(paths: &Paths, order: &Order, run: &Run, number: u64) -> Result<(), Box<Failure>> {
    let release = units::Release { app: &order.app, number, image: run.image, uid: 0, systemd: 0, paths };
    for service in &run.services {
        units::write(&release, service).map_err(|error| failure(FailureKind::Request, "unit", error.to_string()))?;
    }
    Ok(())
}

/// The image that an order needs, and what for.
struct Need<'a> {
    image: ImageId,
    /// A release; else a tool.
    run: Option<&'a Run>,
}

impl<'a> Need<'a> {
    fn of(action: &'a Action) -> Option<Self> {
        match action {
            Action::Run(run) => Some(Self { image: run.image, run: Some(run) }),
            Action::Look(tool) => Some(Self { image: tool.image, run: None }),
            _ => None,
        }
    }
}

/// Receives what the release or tool needs; when this returns it is all durable. Gives the mounting of the image where it
/// is under way already: its names and modes need nothing but the document, and no order is accepted before it is done.
fn receive(
    paths: &Paths,
    peer: &mut Peer,
    store: &Store,
    push: &Push<'_>,
    hold: &images::Hold,
    need: &Need<'_>,
    offer: Option<&ImageOffer>,
) -> Result<Option<systemd::Job>, Box<Failure>> {
    let Some(offer) = offer else {
        let image = store.image(need.image).or_fail()?.ok_or_else(|| no_image(need.image))?;
        check_image(&image, need)?;
        let mounting = images::begin_mount(hold, need.image);
        let missing = store.missing(&distinct_objects(&image)).or_fail()?.contains(&true);
        return if missing { Err(no_image(need.image)) } else { Ok(mounting) };
    };
    if offer.id != need.image {
        let message = format!("the client brings image {}, the order names {}", offer.id.short(), need.image.short());
        return Err(failure(FailureKind::Request, "image", message));
    }
    let document = document(peer, store, offer)?;
    let (mut incoming, image) =
        push.incoming(need.image, document).map_err(|error| failure(FailureKind::Request, "image", chain(&error)))?;
    check_image(&image, need)?;
    let image_id = need.image;
    thread::scope(|scope| {
        let preparing = scope.spawn(move || mount::prepare(store, image_id, &image));
        incoming.look().or_fail()?;
        // What is here already is neither asked of the disk again nor taken from anybody.
        let wanted: HashMap<FileDigest, u64> = incoming.absent().collect();
        // Where it was not prepared the unit does that itself, once all is here, and says what is wrong.
        let is_prepared = matches!(preparing.join(), Ok(Ok(())));
        // Whether the kernel is to check contents is told by an object that is here, and a tree needs all of them.
        let can_mount = is_prepared && incoming.has_any() && mounts_by_metadata(paths);
        let mounting = if can_mount { images::begin_mount(hold, need.image) } else { None };
        dropbox::sweep(paths, offer.dropped.as_deref());
        if let Some(name) = &offer.dropped {
            dropbox::ingest(paths, push, name, &wanted)?;
        }
        ingest(peer, push, &wanted)?;
        incoming.look().or_fail()?;
        if incoming.missing().contains(&true) {
            let count = incoming.absent().count() as u64;
            peer.send(&Event::Missing { count, bits: missing_bits(incoming.missing()) }).or_fail()?;
            ingest(peer, push, &wanted)?;
            incoming.look().or_fail()?;
        }
        if let Some((first, _)) = incoming.absent().next() {
            let count = incoming.absent().count();
            let message = format!("{count} objects of the image did not come, object {} among them", first.short());
            return Err(failure(FailureKind::Request, "missing", message));
        }
        incoming.put().or_fail()?;
        Ok(mounting)
    })
}

/// Takes in the pack stream that comes next; one without a byte is no pack, and means that nothing comes.
fn ingest(peer: &mut Peer, push: &Push<'_>, wanted: &HashMap<FileDigest, u64>) -> Result<(), Box<Failure>> {
    let mut stream = peer.stream();
    let mut first = [0];
    let lost =
        |error: std::io::Error| failure(FailureKind::Request, "protocol", format!("the pack did not come: {error}"));
    if stream.read(&mut first).map_err(lost)? == 0 {
        return Ok(());
    }
    push.ingest(&mut first.as_slice().chain(&mut stream), wanted).or_fail()?;
    // What a pack has after its end belongs to nothing.
    stream.skip().map_err(lost)
}

fn no_image(image: ImageId) -> Box<Failure> {
    let message = format!("image {} is not, or not wholly, on this node, and none was sent", image.short());
    failure(FailureKind::Request, "no-image", message)
}

/// The document that comes, not yet checked.
fn document(peer: &mut Peer, store: &Store, offer: &ImageOffer) -> Result<Vec<u8>, Box<Failure>> {
    let length = usize::try_from(offer.document_bytes).unwrap_or(usize::MAX);
    if length > DOCUMENT_MAX_BYTES {
        return Err(failure(FailureKind::Request, "image", "an image's document is at most 64 MiB"));
    }
    let packed = peer.read_stream("image document", COMPRESSED_DOCUMENT_MAX_BYTES).or_fail()?;
    let base = match offer.base {
        None => None,
        Some(id) => Some(store.document(id).or_fail()?.ok_or_else(|| {
            let message = format!("the image {} that the document is a change of is not on this node", id.short());
            failure(FailureKind::Request, "base", message)
        })?),
    };
    pack::decompress_document(&packed, base.as_deref(), length)
        .map_err(|error| failure(FailureKind::Request, "image", chain(&error)))
}

/// An image that could not be run: better said now than as a failed mount later. And one that must
/// not be: services run from images without tools, tools from images that are for nothing else.
fn check_image(image: &Image, need: &Need<'_>) -> Result<(), Box<Failure>> {
    let is_directory =
        |path: &str| matches!(image.get(path.as_bytes()).map(|entry| &entry.node), Some(Node::Directory { .. }));
    let refuse = |message: String| Err(failure(FailureKind::Request, "image", message));
    let Some(run) = need.run else {
        if !image.config().tools {
            return Err(failure(FailureKind::Refused, "tool-image", "the image is an app's and not one of tools"));
        }
        return match TOOL_MOUNT_POINTS.iter().find(|point| !is_directory(point)) {
            Some(point) => refuse(format!("the image has no directory `/{point}`, which every tool needs")),
            None => Ok(()),
        };
    };
    if image.config().tools {
        return Err(failure(FailureKind::Refused, "tool-image", "the image is one of tools: no service runs from it"));
    }
    if let Some(point) = MOUNT_POINTS.iter().find(|point| !is_directory(point)) {
        return refuse(format!("the image has no directory `/{point}`, which every service needs"));
    }
    for service in &run.services {
        if let Some(volume) = service.volumes.iter().find(|volume| !is_directory(&volume.path[1..])) {
            return refuse(format!(
                "the image has no directory `{}` to mount volume `{}` of service `{}` on",
                volume.path, volume.name, service.name
            ));
        }
    }
    Ok(())
}

/// Where an app stands, for a client that asks.
///
/// # Errors
/// It cannot be read.
pub fn position(app: &App, policy_version: u64) -> Result<Position, crate::durable::FileError> {
    let head = app.head()?;
    Ok(Position { counter: head.counter, previous: head.order, policy_version })
}
