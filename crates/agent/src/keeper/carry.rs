//! An accepted order is carried out, to its end or to its failure: no client's
//! absence stops it.
//!
//! # A release
//!
//! Its services start beside those of the release before, are checked, and
//! become what new connections reach by one rename for each service; the old
//! ones drain and stop. Until `live.json` is replaced, failure means: the new
//! units go, the old ones were never touched. From then on nothing fails the
//! order any more: what could not be done is told as a warning, and done by the
//! next [`settle`](super::settle).
//!
//! # Services with volumes
//!
//! Two processes that both believe to be the only one on their data destroy it.
//! So a service with a volume never runs beside its predecessor: after all
//! others are healthy, new connections begin to wait in the new ones' sockets,
//! the old ones drain and stop, and the new ones start and take what waits. If
//! those fail, the old ones start again, and what waited is lost. Order of
//! events: everything that can fail without an interruption is tried before one
//! begins. A process that does not end keeps the other from starting, either way.
//!
//! # Other orders
//!
//! Stop, start and restart change what must run, durably, before they change
//! what runs, so a boot honours them. A restart cuts the connections that are
//! open while the service stops; later ones wait until it listens again.

use super::{
    OrFail, chain, failure,
    release::{self, Found, Release},
    settle::{self, Fitted, selected},
};
use crate::{
    peer::Peer,
    state::{App, Live, Paths},
    systemd,
};
use bulkhead_core::{
    ServiceName,
    order::{Action, Order, Run, ServiceSpec},
};
use bulkhead_wire::{Failure, FailureKind, Outcome, StepKind};

/// Carries an accepted order out and records that it is done. Gives what could
/// not be done after the moment from which the order holds.
///
/// # Errors
/// What to tell the client; recording it is the caller's.
pub fn carry_out(
    paths: &Paths,
    app: &App,
    number: u64,
    order: &Order,
    peer: &mut Peer,
) -> Result<Vec<String>, Box<Failure>> {
    match &order.action {
        Action::Run(run) => replace(&Release { paths, app, number, run }, peer),
        // Changes nothing of what runs, and is recorded already: `super::submit` has the tool run.
        Action::Look(_) => Ok(vec![]),
        action => {
            about_live(paths, app, number, action, peer)?;
            app.record_outcome(number, Outcome::Done).or_fail()?;
            Ok(vec![])
        }
    }
}

fn has_volumes(service: &&ServiceSpec) -> bool {
    !service.volumes.is_empty()
}

/// A new release takes the place of the one before: see the module's description.
fn replace(new: &Release<'_>, peer: &mut Peer) -> Result<Vec<String>, Box<Failure>> {
    let before = new.app.live_run().or_fail()?.filter(|(number, _)| *number != new.number);
    let before = before.as_ref().map(|(number, run)| Release { number: *number, run, ..*new });
    let mut warnings = Vec::new();
    if let Err(failure) = start_all(new, before.as_ref(), peer) {
        return Err(fall_back(new, failure, peer));
    }
    // The switch. Durable first: after a crash the links are made from it.
    if let Err(error) = new.app.set_live(Some(&Live::all_of(new.number))) {
        let is_live = new.app.live().is_ok_and(|live| live.is_some_and(|live| live.release == new.number));
        if !is_live {
            return Err(fall_back(new, Err::<(), _>(error).or_fail().expect_err("it is an error"), peer));
        }
        warnings.push(format!("a power cut may bring back the release before: {}", chain(&error)));
    }
    let services = || new.run.services.iter();
    if let Err(error) = new.switch_links(services()).and_then(|()| new.unlink_others()) {
        // It is not recorded as done, and the old one stays for those who still reach it: both are for the next settling.
        warnings.push(format!("not all new connections reach the new release yet: {}", chain(&error)));
        return Ok(warnings);
    }
    if let Err(error) = new.app.record_outcome(new.number, Outcome::Done) {
        warnings.push(format!("that it is done could not be recorded: {}", chain(&error)));
    }
    peer.step(StepKind::Switched, None).or_fail()?;
    if let Some(before) = before {
        before.drain(&before.run.services);
        peer.step(StepKind::Drained, None).or_fail()?;
        let all_of_it = |unit: &Found| unit.number == before.number;
        if let Err(failure) = discard(&before, all_of_it) {
            warnings.push(format!("release {} was not ended: {}", before.number, failure.message));
        }
        peer.step(StepKind::Stopped, None).or_fail()?;
    }
    Ok(warnings)
}

/// Ends those of an app's units.
fn discard(release: &Release<'_>, which: impl Fn(&Found) -> bool) -> Result<(), Box<Failure>> {
    let name = release.app.name();
    let units: Vec<Found> = release::found(release.paths, name).or_fail()?.into_iter().filter(which).collect();
    release::discard(release.paths, name, &units)
}

/// Starts the new release, up to the point where nothing but the switch is left.
fn start_all(new: &Release<'_>, before: Option<&Release<'_>>, peer: &mut Peer) -> Result<(), Box<Failure>> {
    let all: Vec<&ServiceSpec> = new.run.services.iter().collect();
    let (alone, beside): (Vec<_>, Vec<_>) = new.run.services.iter().partition(has_volumes);
    new.prepare(&all)?;
    new.start(&beside, peer)?;
    if !alone.is_empty() {
        if let Some(before) = before {
            take_over(new, &alone, before)?;
        }
        new.start(&alone, peer)?;
    }
    new.stage_links(all).or_fail()
}

/// Makes new connections wait in the sockets of services that are not started
/// yet, lets the old ones finish, and ends the old services.
fn take_over(new: &Release<'_>, alone: &[&ServiceSpec], before: &Release<'_>) -> Result<(), Box<Failure>> {
    let stopped = before.app.live().or_fail()?.map(|live| live.stopped).unwrap_or_default();
    let old: Vec<&ServiceSpec> =
        before.run.services.iter().filter(has_volumes).filter(|spec| !stopped.contains(&spec.name)).collect();
    let reachable = alone.iter().filter(|service| service.port.is_some());
    let sockets: Vec<String> = reachable.map(|service| new.names(&service.name).socket).collect();
    if !sockets.is_empty() {
        let arguments: Vec<&str> = std::iter::once("start").chain(sockets.iter().map(String::as_str)).collect();
        systemd::systemctl(&arguments).or_fail()?;
        // Only those that had a link: a new service becomes reachable once it is healthy.
        let had = |service: &&&ServiceSpec| old.iter().any(|old| old.name == service.name && old.port.is_some());
        let had: Vec<&ServiceSpec> = alone.iter().filter(had).copied().collect();
        new.stage_links(had.iter().copied()).or_fail()?;
        new.switch_links(had.iter().copied()).or_fail()?;
    }
    before.drain(old.iter().copied());
    let is_old = |unit: &Found| unit.number == before.number && old.iter().any(|spec| spec.name == unit.service);
    discard(before, is_old)
}

/// Undoes a release that failed before the switch, and adds to the failure what
/// became of the one before, where that was touched.
fn fall_back(new: &Release<'_>, mut failure: Box<Failure>, peer: &mut Peer) -> Box<Failure> {
    // In doubt, because a service may have been stopped of which the files are still there.
    let Fitted { started, not_started } = match settle::fit(new.paths, new.app, true) {
        Ok(fitted) => fitted,
        Err(second) => {
            // What runs is what ran before, or less; the next settling ends the rest.
            failure.message.push_str(&format!("; and not all of it could be undone: {}", second.message));
            return failure;
        }
    };
    let run_again = || {
        if let Some(failure) = not_started {
            return Err(failure);
        }
        let Some((number, run)) = new.app.live_run().or_fail()? else { return Ok(None) };
        let services: Vec<&ServiceSpec> = run.services.iter().filter(|spec| started.contains(&spec.name)).collect();
        if services.is_empty() {
            return Ok(None);
        }
        Release { number, run: &run, ..*new }.start(&services, peer).map(|()| Some(number))
    };
    match run_again() {
        Ok(None) => {}
        Ok(Some(number)) => failure.message.push_str(&format!("; release {number} runs again")),
        Err(second) => {
            failure.message.push_str(&format!("; and the release before does not run again: {}", second.message));
        }
    }
    failure
}

/// Stop, start, restart and remove.
fn about_live(paths: &Paths, app: &App, number: u64, action: &Action, peer: &mut Peer) -> Result<(), Box<Failure>> {
    settle::apply(app, action).or_fail()?;
    let live = |services: &[ServiceName]| -> Result<(u64, Run, Vec<ServiceName>), Box<Failure>> {
        let missing = || failure(FailureKind::Request, "no-release", format!("`{}` has no release here", app.name()));
        let (number, run) = app.live_run().or_fail()?.ok_or_else(missing)?;
        let names = selected(&run, services).into_iter().map(|spec| spec.name.clone()).collect();
        Ok((number, run, names))
    };
    match action {
        Action::Run(_) | Action::Look(_) => {}
        Action::Remove { volumes } => {
            settle::fit(paths, app, false)?;
            settle::forget(paths, app, number, *volumes).or_fail()?;
            peer.step(StepKind::Stopped, None).or_fail()?;
        }
        Action::Stop { .. } => {
            settle::fit(paths, app, false)?;
            peer.step(StepKind::Stopped, None).or_fail()?;
        }
        Action::Start { services } | Action::Restart { services } => {
            let (live, run, mut chosen) = live(services)?;
            let release = Release { paths, app, number: live, run: &run };
            if matches!(action, Action::Restart { .. }) {
                // What was stopped stays so: to start it again takes more than to restart.
                let stopped = app.live().or_fail()?.map(|live| live.stopped).unwrap_or_default();
                chosen.retain(|service| !stopped.contains(service));
            }
            if matches!(action, Action::Restart { .. }) {
                // Stopped first, so that what is seen well afterwards is the new process. The socket
                // goes on listening, and connections wait in it for the proxy, which waits for the service.
                let names = chosen.iter().map(|service| release.names(service));
                release::stop_units(paths, &names.flat_map(|names| [names.proxy, names.service]).collect::<Vec<_>>())?;
            }
            if let Some(failure) = settle::fit(paths, app, false)?.not_started {
                return Err(failure);
            }
            let specs: Vec<&ServiceSpec> = run.services.iter().filter(|spec| chosen.contains(&spec.name)).collect();
            release.start(&specs, peer)?;
        }
    }
    Ok(())
}
