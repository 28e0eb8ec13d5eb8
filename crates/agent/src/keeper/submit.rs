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
    OrFail, carry, chain, discharge, dropbox, failure, images, now, open_store, secrets, settle,
    status::{self, mounts_by_metadata},
    tool,
};
use crate::{
    audit::{self, Entry, What},
    durable::FileError,
    keys,
    papers::{self, BringError, Brought, Papers},
    peer::Peer,
    state::{self, Accepting, App, Head, Holder, Lock, Paths, Record},
    systemd, units,
};
use bulkhead_core::{
    FileDigest, ImageId, OrderId, SignedText, grant,
    image::{DOCUMENT_MAX_BYTES, Image, Node},
    node::NodeIdentity,
    order::{Action, ORDER_MAX_BYTES, Order, Run, Tool},
    policy::{Policy, Role, key_blob},
    standing::StandingOrder,
    statement::STATEMENTS_MAX,
};
use bulkhead_store::{Store, mount, pack, store::Push};
use bulkhead_trust::{
    Authorized, Context, Grounds, Live, Place, Presented, Refusal, Rule,
    audit::{End, Receipt},
    authorize_order, read_signed,
};
use bulkhead_wire::{
    Done, Event, Failure, FailureKind, ImageOffer, Outcome, Paper, Position, StepKind, Submit, distinct_objects,
    missing_bits,
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
    let id = OrderId::of(&bytes);
    let courier = key.map(|key| papers::policy(paths).map(|policy| courier(&policy, key))).transpose().or_fail()?;
    let enter = |peer: &mut Peer| {
        let submitted = Submitted { submit, bytes: &bytes, id, courier: courier.clone() };
        enter(paths, peer, &submitted, &identity)
    };
    let mut entered = match enter(peer)? {
        Entrance::Again(done) => return Ok(done),
        Entrance::Now(entered) => entered,
    };
    let order = entered.authorized.order.value().clone();
    check_possible(paths, &entered.app, &order.action)?;
    // An order that comes again has them on disk.
    let secrets = if entered.is_repeat {
        vec![]
    } else {
        let target = &order.targets[&identity.node];
        match secrets::wrap(paths, &identity, &order.app, target, &submit.secrets) {
            Ok(secrets) => secrets,
            Err(failure) => {
                let entry = Entry {
                    app: Some(order.app.clone()),
                    counter: Some(target.counter),
                    signers: entered.authorized.order.signers().to_vec(),
                    courier: courier.clone(),
                    rule: Some(failure.rule.clone()),
                    message: Some(failure.message.clone()),
                    ..Entry::new(What::Refused, now(), id)
                };
                audit::append(&paths.audit(), entry).or_fail()?;
                return Err(failure);
            }
        }
    };
    peer.step(StepKind::Accepted, None).or_fail()?;

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
    let Entered { authorized, app, is_repeat, _lock } = *entered;
    let number = order.targets[&identity.node].counter;
    let signers = authorized.order.signers().to_vec();
    let grounds = shown(&authorized, order.break_glass.as_deref());

    let entry = |event| Entry {
        app: Some(order.app.clone()),
        counter: Some(number),
        signers: signers.clone(),
        courier: courier.clone(),
        ..Entry::new(event, now(), id)
    };
    // First the log, then the counter: an order that counts is always in the log.
    let message = match &order.action {
        Action::Look(tool) => Some(format!("`{}` in {}", tool.shown(), tool.service)),
        _ => Some(grounds.clone()),
    };
    audit::append(&paths.audit(), Entry { message, ..entry(What::Accepted) }).or_fail()?;
    let looks = matches!(order.action, Action::Look(_));
    if is_repeat {
        app.record_outcome(number, Outcome::Underway).or_fail()?;
    } else {
        // An order to look is used up before its tool runs: whatever happens then, it never runs twice.
        let outcome = if looks { Outcome::Done } else { Outcome::Underway };
        keep_statements(paths, &submit.statements, id);
        let record = Record {
            order: id,
            signers: signers.clone(),
            accepted: now(),
            outcome,
            grounds: Some(grounds),
            is_fallback: authorized.grounds == Grounds::Fallback,
            is_granted: matches!(authorized.grounds, Grounds::Grant { .. }),
        };
        let accepting = Accepting {
            order: &bytes,
            signatures: &submit.signatures,
            standing: submit.standing.as_ref().filter(|_| authorized.standing.is_some()),
            grant: submit.grant.as_ref(),
            record: &record,
            secrets: &secrets,
        };
        if let Err(error) = app.accept(number, &accepting) {
            // Where only the last sync failed it may be in force all the same, and whoever comes next would carry it out.
            let is_head = app.head().is_ok_and(|head| head.order == Some(id));
            if !is_head {
                // The log said accepted: that it came to nothing belongs there too, if the disk takes it.
                let message = Some(format!("it could not be recorded: {}", chain(&error)));
                audit::append(&paths.audit(), Entry { message, ..entry(What::Failed) }).ok();
                return Err(error).or_fail();
            }
        }
    }
    if let Action::Look(tool) = &order.action {
        // The app and the store are free while the tool runs. A client that leaves ends it.
        drop((push, _lock));
        let mut done = look(paths, peer, &app, id, tool, entry)?;
        attach_receipt(&mut done, paths, &identity, id, number);
        return Ok(done);
    }
    peer.commit();
    drop(push);
    peer.step(StepKind::Durable, None).or_fail()?;

    match carry::carry_out(paths, &app, number, &order, peer) {
        Ok(mut warnings) => {
            if let Err(error) = audit::append(&paths.audit(), entry(What::Done)) {
                warnings.push(format!("the audit log has no entry of its end: {}", chain(&error)));
            }
            // Those of releases that run no more serve nobody. Where something was left undone, one may run yet.
            if matches!(order.action, Action::Run(_))
                && warnings.is_empty()
                && let Err(error) = app.forget_secrets(number)
            {
                warnings.push(format!("secrets of earlier releases are still there: {}", chain(&error)));
            }
            let mut done = Done { release: live_number(&app), order: Some(id), warnings, ..Done::default() };
            attach_receipt(&mut done, paths, &identity, id, number);
            done.warnings.iter().for_each(|warning| systemd::eprintln_bounded(&format!("`{}`: {warning}", order.app)));
            Ok(done)
        }
        Err(mut failure) => {
            let entry = Entry {
                rule: Some(failure.rule.clone()),
                message: Some(failure.message.clone()),
                ..entry(What::Failed)
            };
            // That it failed is the news; that it cannot be recorded comes second.
            let outcome = Outcome::Failed { reason: failure.message.clone() };
            for error in [app.record_outcome(number, outcome), audit::append(&paths.audit(), entry).map(drop)]
                .into_iter()
                .filter_map(Result::err)
            {
                failure.message.push_str(&format!("; nor could that be recorded: {}", chain(&error)));
            }
            Err(failure)
        }
    }
}

/// Adds the receipt; that there is none fails nothing that is done.
fn attach_receipt(done: &mut Done, paths: &Paths, identity: &NodeIdentity, order: OrderId, counter: u64) {
    match receipt(paths, identity, order, counter) {
        Ok(receipt) => done.receipt = receipt,
        Err(error) => done.warnings.push(format!("there is no receipt: {}", chain(&error))),
    }
}

/// The node's word that an order was carried out; none from a node that has no key.
fn receipt(
    paths: &Paths,
    identity: &NodeIdentity,
    order: OrderId,
    counter: u64,
) -> Result<Option<SignedText>, FileError> {
    if keys::public(paths)?.is_none() {
        return Ok(None);
    }
    let End { entries, head } = audit::last(&paths.audit())?;
    let (fleet, node) = (identity.fleet.clone(), identity.node.clone());
    let outcome = "done".into();
    let receipt = Receipt { format: 1, fleet, node, order, counter, outcome, entries, head, at: now() };
    Ok(Some(audit::signed(&keys::audit(paths)?, &receipt)))
}

/// Why an order was accepted, in words.
fn shown(authorized: &Authorized, reason: Option<&str>) -> String {
    let mut text = match &authorized.grounds {
        Grounds::People => "release keys".to_owned(),
        Grounds::Fallback => "a fallback of what was live".to_owned(),
        Grounds::BreakGlass => format!("GLASS BROKEN: {}", reason.unwrap_or_default()),
        Grounds::Demand(demand) => demand.to_string(),
        Grounds::Grant { id, by } => format!("scale grant {} of {}", id.short(), by.join(", ")),
    };
    if !authorized.green.is_empty() {
        let green: Vec<&str> = authorized.green.iter().map(String::as_str).collect();
        text.push_str(&format!("; stated green by {}", green.join(", ")));
    }
    if let Some(standing) = authorized.standing {
        text.push_str(&format!("; standing order {}", standing.short()));
    }
    text
}

/// Keeps what came with an order about its image, for whoever goes on with the image from here. What does not count
/// is left, and the order stands without.
fn keep_statements(paths: &Paths, statements: &[SignedText], order: OrderId) {
    let record = |brought: &Brought| {
        let message = format!("statement, with this order: {}", brought.what);
        let entry = Entry {
            signers: brought.signers.clone(),
            message: Some(message),
            ..Entry::new(What::Brought, now(), order)
        };
        audit::append(&paths.audit(), entry).map(drop)
    };
    for statement in statements.iter().take(STATEMENTS_MAX) {
        if let Err(BringError::File(error)) = papers::bring(paths, Paper::Statement, statement.clone(), now(), &record)
        {
            systemd::eprintln_bounded(&format!("a statement is not kept: {}", chain(&error)));
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
    ran.map(|_| Done { release, order: Some(id), ..Done::default() })
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
    authorized: Authorized,
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
) -> Result<Entrance, Box<Failure>> {
    let (authorized, taken) = match authorize(paths, peer, submitted, identity)? {
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
    // Once more: it may have been given back while the order's bytes came, or its lock was waited for.
    discharge::refuse_while_under_way(paths)?;
    if let Some(failure) = settle::settle(paths, &app)? {
        // What this order brings may be the cure.
        systemd::eprintln_bounded(&format!("app `{}`: {}", app.name(), failure.message));
    }
    let number = authorized.order.value().targets[&identity.node].counter;
    if is_repeat && let Some(mut done) = repeated(&app, number, submitted.id)? {
        attach_receipt(&mut done, paths, identity, submitted.id, number);
        return Ok(Entrance::Again(done));
    }
    Ok(Entrance::Now(Box::new(Entered { authorized, app, is_repeat, _lock })))
}

/// What the lock gives: the app as it stands, and that it stays so.
#[derive(Debug)]
struct Taken {
    app: App,
    is_repeat: bool,
    _lock: Lock,
}

type Judged = Result<(Authorized, Taken), (Refusal, Position)>;

/// Checks the order. The lock is taken between its signatures and its counter.
fn authorize(
    paths: &Paths,
    peer: &mut Peer,
    submitted: &Submitted<'_>,
    identity: &NodeIdentity,
) -> Result<Judged, Box<Failure>> {
    let Submitted { submit, bytes, id, .. } = *submitted;
    let presented = Presented {
        bytes,
        signatures: &submit.signatures,
        statements: &submit.statements,
        standing: submit.standing.as_ref(),
        grant: submit.grant.as_ref(),
    };
    if presented.grant.is_some() && identity.pool.is_none() {
        let message = "the order comes with a scale grant, which is for nodes of a pool; this node is of none";
        return Ok(Err((Refusal::new(Rule::Grant, message), Position::default())));
    }
    // First the lock, for which it may have to wait long; then all that decides, as it is by then.
    let policy = papers::policy(paths).or_fail()?;
    let app = match read_signed(&presented, &policy, &identity.environment) {
        Ok(order) => App::new(paths, order.app),
        Err(refusal) => return Ok(Err((refusal, Position::default()))),
    };
    let holder = Holder { holder: "a signed order".into(), since: now() };
    let lock = lock(peer, &app, &holder, Duration::from_millis(u64::from(submit.wait_ms)))?;
    let Papers { policy, revoked, heartbeat } = papers::load(paths).or_fail()?;
    let boot = state::boot(paths).or_fail()?;
    let offers = status::offers(paths)?;
    let context = Context {
        fleet: &identity.fleet,
        environment: &identity.environment,
        node: &identity.node,
        pool: identity.pool.as_ref(),
        policy: &policy,
        now: now(),
        minimum_time: state::minimum_time(paths).or_fail()?,
        boot,
        revoked: &revoked,
        heartbeat: heartbeat.as_ref(),
        offers: &offers,
    };
    let head = app.head().or_fail()?;
    let mut head = head;
    let is_repeat = head.order == Some(id);
    let mut failed = None;
    let result = authorize_order(&presented, &context, |order| {
        let stand = || -> Result<Place, Box<Failure>> {
            let mut place = place(paths, &app, &head, is_repeat, identity, submit.standing.as_ref())?;
            if let Action::Run(run) = &order.action {
                // An instance's image was built, and stated green, as that of the app that it is one of.
                let instance_of = submit.grant.as_ref().and_then(|_| grant::app_of(&order.app));
                let app = instance_of.as_ref().unwrap_or(&order.app);
                place.statements = papers::statements(paths, &policy, app, run.image).or_fail()?;
            }
            Ok(place)
        };
        stand().unwrap_or_else(|failure| {
            failed = Some(failure);
            Place::default()
        })
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    Ok(match result {
        Ok(authorized) => {
            // Whoever waits from here on is told who signed.
            let holder = Holder { holder: authorized.order.signers().join(", "), since: context.now };
            app.name_holder(&holder);
            Ok((authorized, Taken { app, is_repeat, _lock: lock }))
        }
        Err(refusal) => {
            if let Some(ahead) = refusal.ahead {
                app.note_seen(ahead).or_fail()?;
                head.seen = head.seen.max(ahead);
            }
            let node = Position { policy_version: policy.version, boot: Some(boot), ..Position::default() };
            Err((refusal, stands(&head, &node)))
        }
    })
}

/// Where the app stands; for the very order that was accepted last, where it stood before that.
fn place(
    paths: &Paths,
    app: &App,
    head: &Head,
    is_repeat: bool,
    identity: &NodeIdentity,
    standing: Option<&SignedText>,
) -> Result<Place, Box<Failure>> {
    let live = app.live_run().or_fail()?;
    let number = live.as_ref().map(|(number, _)| *number);
    let fallback = live.map(|(_, run)| run.fallback).unwrap_or_default();
    let order = number.map(|number| app.order(number)).transpose().or_fail()?.flatten();
    let record = number.map(|number| app.record(number)).transpose().or_fail()?.flatten();
    let runs = match (&order, record) {
        (Some(Order { action: Action::Run(run), break_glass, .. }), Some(record)) => {
            let broke_glass = break_glass.is_some();
            Some(Live { order: record.order, run: run.id(), image: run.image, broke_glass })
        }
        _ => None,
    };
    let secrets = order.and_then(|mut order| order.targets.remove(&identity.node)).map(|target| target.secrets);
    let mut place = Place {
        counter: head.counter,
        previous: head.order,
        seen: head.seen,
        fallback,
        live: runs,
        uses: head.uses.clone(),
        statements: vec![],
        secrets: secrets.unwrap_or_default(),
        is_of_people: is_of_people(paths, app)?,
    };
    if is_repeat {
        let target = app.order(head.counter).or_fail()?.and_then(|order| order.targets.get(&identity.node).cloned());
        place.counter = head.counter.saturating_sub(1);
        place.previous = target.and_then(|target| target.previous);
        // It has counted itself.
        if let Some(used) = standing.and_then(|signed| place.uses.get_mut(&StandingOrder::id(signed.text.as_bytes()))) {
            *used = used.saturating_sub(1);
        }
        // What it went back from may be live no more: that it was allowed to stands in its record.
        if app.record(head.counter).or_fail()?.is_some_and(|record| record.is_fallback) {
            place.fallback.extend(app.run(head.counter).or_fail()?.map(|run| run.id()));
        }
    }
    Ok(place)
}

/// Whether people had the app run last, or left data of it. To look, stop or start it is not to make it theirs.
fn is_of_people(paths: &Paths, app: &App) -> Result<bool, Box<Failure>> {
    let has_data = || paths.volumes(app.name()).exists();
    for number in app.numbers().or_fail()?.into_iter().rev() {
        let is_granted = || app.record(number).or_fail().map(|record| record.is_some_and(|record| record.is_granted));
        match app.order(number).or_fail()?.map(|order| order.action) {
            Some(Action::Run(_)) => return Ok(!is_granted()?),
            Some(Action::Remove { .. }) => return Ok(!is_granted()? && has_data()),
            _ => {}
        }
    }
    Ok(has_data())
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
    let is_about_position = matches!(refusal.rule, Rule::Counter | Rule::Previous | Rule::Boot | Rule::Restored);
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
pub(super) fn courier(policy: &Policy, key: &str) -> String {
    let blob = key_blob(key);
    let named = [Role::Courier, Role::Release]
        .into_iter()
        .flat_map(|role| policy.holders(role))
        .find(|(_, known)| key_blob(&known.key) == blob);
    named.map_or_else(|| blob.chars().filter(char::is_ascii_graphic).take(100).collect(), |(name, _)| name.to_string())
}

/// What came of an order that comes a second time; `None` where it is to be carried out again.
fn repeated(app: &App, number: u64, id: OrderId) -> Result<Option<Done>, Box<Failure>> {
    match app.record(number).or_fail()?.map(|record| record.outcome) {
        Some(Outcome::Done) => {
            Ok(Some(Done { release: live_number(app), order: Some(id), already: true, ..Done::default() }))
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
fn check_possible(paths: &Paths, app: &App, action: &Action) -> Result<(), Box<Failure>> {
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
        None if matches!(action, Action::Start { .. } | Action::Restart { .. }) => {
            let chosen = settle::selected(&run, services);
            let needed = chosen.iter().flat_map(|spec| &spec.secrets);
            let missing = needed.into_iter().find(|name| !paths.credential(app.name(), number, name).exists());
            match missing {
                Some(secret) => {
                    let message = format!("secret `{secret}` of release {number} of `{name}` is not on this node");
                    let mut failure = failure(FailureKind::Refused, secrets::RULE, message);
                    failure.hint = Some("deploy, or `bulkhead secret rotate`, brings it again".into());
                    Err(failure)
                }
                None => Ok(()),
            }
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

/// Where an app stands, for a client that asks; `node` says what is true of all apps.
///
/// # Errors
/// It cannot be read.
pub fn position(app: &App, node: &Position) -> Result<Position, crate::durable::FileError> {
    Ok(stands(&app.head()?, node))
}

fn stands(head: &Head, node: &Position) -> Position {
    Position { counter: head.counter, previous: head.order, seen: head.seen.max(head.counter), ..node.clone() }
}
