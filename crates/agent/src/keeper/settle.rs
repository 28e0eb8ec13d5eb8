//! Making what there is of an app fit what its state on disk says.
//!
//! `live.json` says what must run: the services of one release, less those that
//! are stopped. Whatever else there is of the app, units, sockets, links, is of
//! a release that failed or was replaced, or of a keeper that died between two
//! steps. [`settle`] ends it and starts what is missing. Every order begins with
//! it; a failed release ends with it ([`fit`]); so do a boot and a keeper's
//! death. There is one way back, not one for each place where something can go wrong.
//!
//! Everything here is done with the app's lock held.

use super::{
    OrFail, chain, now,
    release::{self, Found, Release},
};
use crate::{
    audit::{self, Entry, What},
    durable::{self, FileError},
    state::{self, App, Holder, Live, Paths},
    systemd,
};
use bulkhead_core::{
    ServiceName,
    order::{Action, Order, Run, ServiceSpec},
};
use bulkhead_wire::{Failure, Outcome};
use std::{collections::BTreeSet, thread, time::Duration};

/// Sees to what was left by whoever carried the last order out and did not come
/// to its end. Costs next to nothing where nothing was left.
///
/// An order about the live release that was accepted is completed, if late:
/// nobody would ask for it again. A release that was not switched to is given up
/// and recorded as interrupted, once nothing is left of it; the same order may
/// be sent again.
///
/// Gives why something that must run could not be started, which is no reason to
/// keep an order from bringing something better.
///
/// # Errors
/// The app's state cannot be read or written, or something of it cannot be ended.
/// What was left is then still there to be settled.
pub fn settle(paths: &Paths, app: &App) -> Result<Option<Box<Failure>>, Box<Failure>> {
    settle_doubting(paths, app, false)
}

/// As [`settle`]; `is_doubtful` as [`fit`] has it, where it was tried already, and in vain.
fn settle_doubting(paths: &Paths, app: &App, is_doubtful: bool) -> Result<Option<Box<Failure>>, Box<Failure>> {
    let unfinished = unfinished(app).or_fail()?;
    if let Some((_, order)) = &unfinished {
        apply(app, &order.action).or_fail()?;
    }
    let Fitted { not_started, .. } = fit(paths, app, is_doubtful || unfinished.is_some())?;
    let Some((number, order)) = unfinished else { return Ok(not_started) };
    let outcome = match &order.action {
        // Whether it was stopped before, nobody knows: sent again it is carried out.
        Action::Restart { .. } => Outcome::Interrupted,
        Action::Run(_) if app.live().or_fail()?.is_none_or(|live| live.release != number) => Outcome::Interrupted,
        Action::Remove { volumes } => {
            forget(paths, app, number, *volumes).or_fail()?;
            Outcome::Done
        }
        _ => Outcome::Done,
    };
    app.record_outcome(number, outcome.clone()).or_fail()?;
    let Some(record) = app.record(number).or_fail()? else { return Ok(not_started) };
    let was_interrupted = outcome == Outcome::Interrupted;
    let entry = Entry {
        app: Some(order.app),
        counter: Some(number),
        signers: record.signers,
        rule: was_interrupted.then(|| "interrupted".into()),
        message: was_interrupted.then(|| "the node or its keeper ended in the middle of it".into()),
        ..Entry::new(if was_interrupted { What::Failed } else { What::Done }, now(), record.order)
    };
    audit::append(&paths.audit(), entry).or_fail()?;
    Ok(not_started)
}

/// The last order, where nobody recorded how it ended.
fn unfinished(app: &App) -> Result<Option<(u64, Order)>, FileError> {
    let number = app.head()?.counter;
    match app.record(number)? {
        Some(record) if record.outcome == Outcome::Underway => Ok(app.order(number)?.map(|order| (number, order))),
        _ => Ok(None),
    }
}

/// Does what an order about the live release says of the state on disk; the
/// rest follows from [`fit`]. May be done twice. An order that runs a release
/// says nothing before that release is healthy.
///
/// # Errors
/// It cannot be read or written.
pub fn apply(app: &App, action: &Action) -> Result<(), FileError> {
    match action {
        Action::Run(_) | Action::Look(_) => Ok(()),
        Action::Remove { .. } => app.set_live(None),
        Action::Stop { .. } | Action::Start { .. } | Action::Restart { .. } => {
            let (Some(live), Some((_, run))) = (app.live()?, app.live_run()?) else { return Ok(()) };
            app.set_live(Some(&after(action, &run, live)))
        }
    }
}

/// The services that an order about the live release is about.
#[must_use]
pub fn selected<'a>(run: &'a Run, services: &[ServiceName]) -> Vec<&'a ServiceSpec> {
    run.services.iter().filter(|spec| services.is_empty() || services.contains(&spec.name)).collect()
}

/// What must run after an order about the live release.
fn after(action: &Action, run: &Run, mut live: Live) -> Live {
    match action {
        Action::Stop { services } => live.stopped.extend(selected(run, services).iter().map(|spec| spec.name.clone())),
        // What was stopped stays so: to start it again takes another order.
        Action::Restart { .. } => {}
        Action::Start { services } => {
            selected(run, services).iter().for_each(|spec| {
                live.stopped.remove(&spec.name);
            });
        }
        Action::Run(_) | Action::Remove { .. } | Action::Look(_) => {}
    }
    live
}

/// Forgets an app's releases, whose units are gone, and its volumes if that was said. May be done twice.
///
/// # Errors
/// Something cannot be removed.
pub fn forget(paths: &Paths, app: &App, number: u64, volumes: bool) -> Result<(), FileError> {
    app.forget(number)?;
    if volumes {
        durable::remove_tree(&paths.volumes(app.name()))?;
        app.set_volumes(&BTreeSet::new())?;
    }
    Ok(())
}

/// What is there and must not be, and what must be there and is not.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    strays: Vec<Found>,
    missing: Vec<ServiceName>,
}

fn difference(found: Vec<Found>, wanted: Option<(&Live, &Run)>) -> Difference {
    let Some((live, run)) = wanted else { return Difference { strays: found, missing: vec![] } };
    let must_run = |service: &ServiceName| {
        !live.stopped.contains(service) && run.services.iter().any(|spec| spec.name == *service)
    };
    let (kept, strays): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|unit| unit.number == live.release && must_run(&unit.service));
    let is_there = |service: &ServiceName| kept.iter().any(|unit| unit.service == *service);
    let names = run.services.iter().map(|spec| &spec.name);
    let missing = names.filter(|name| must_run(name) && !is_there(name)).cloned().collect();
    Difference { strays, missing }
}

/// What was started.
#[derive(Debug, Default)]
pub struct Fitted {
    /// The services of which nothing ran before.
    pub started: Vec<ServiceName>,
    /// Why one that must run could not be started: its image or volume is not to be had.
    pub not_started: Option<Box<Failure>>,
}

/// Ends what must not run and starts what must, without waiting until it is
/// well. `is_doubtful` says that unit files may not tell what runs, because
/// somebody died or failed on the way: then links are made again, and services
/// that seem to be there are told to start as well.
///
/// # Errors
/// Something cannot be ended, and then nothing is started: it may be on the same volume.
pub fn fit(paths: &Paths, app: &App, is_doubtful: bool) -> Result<Fitted, Box<Failure>> {
    let live = app.live().or_fail()?;
    let run = app.live_run().or_fail()?.map(|(_, run)| run);
    let wanted = live.as_ref().zip(run.as_ref());
    let Difference { strays, missing } = difference(release::found(paths, app.name()).or_fail()?, wanted);
    let mut fitted = Fitted::default();
    if strays.is_empty() && missing.is_empty() && !is_doubtful {
        return Ok(fitted);
    }
    let current = wanted.map(|(live, run)| (live, Release { paths, app, number: live.release, run }));
    match &current {
        Some((_, current)) => current.link().or_fail()?,
        None => durable::remove_tree(&paths.run.join("live").join(app.name().as_str())).or_fail()?,
    }
    if let Some((live, _)) = &current {
        drain_older(paths, app, &strays, live.release).or_fail()?;
    }
    release::discard(paths, app.name(), &strays)?;
    if let Some((live, current)) = current {
        let must_run = |spec: &&ServiceSpec| !live.stopped.contains(&spec.name);
        let due = |spec: &&ServiceSpec| must_run(spec) && (is_doubtful || missing.contains(&spec.name));
        // One by one: that one cannot be started must not touch another.
        for service in current.run.services.iter().filter(due) {
            let was_there = !systemd::processes(&current.names(&service.name).service).is_empty();
            match current.prepare(&[service]).and_then(|()| current.start_again(service)) {
                Ok(()) if was_there => {}
                Ok(()) => fitted.started.push(service.name.clone()),
                Err(failure) => {
                    // Its files would say that it is there, and nobody would try again.
                    if systemd::processes(&current.names(&service.name).service).is_empty()
                        && let Err(second) = release::discard(paths, app.name(), &current.found_of(service))
                    {
                        systemd::eprintln_bounded(&format!("app `{}`: {}", app.name(), second.message));
                    }
                    fitted.not_started = fitted.not_started.or(Some(failure));
                }
            }
        }
    }
    Ok(fitted)
}

/// Lets the connections end that releases before the live one still serve. A
/// later one, which failed, has none.
fn drain_older(paths: &Paths, app: &App, strays: &[Found], live: u64) -> Result<(), FileError> {
    let older: BTreeSet<u64> = strays.iter().map(|stray| stray.number).filter(|number| *number < live).collect();
    for number in older {
        // Of one that is forgotten nobody knows how long it may take.
        if let Some(run) = app.run(number)? {
            let is_there =
                |spec: &&ServiceSpec| strays.iter().any(|stray| stray.number == number && stray.service == spec.name);
            Release { paths, app, number, run: &run }.drain(run.services.iter().filter(is_there));
        }
    }
    Ok(())
}

/// How often an app is tried that cannot be settled: systemd or the disk may just have been too busy.
const TRIES: u32 = 4;
/// Before the second try; twice as long before each later one.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Settles every app: after a boot, which is how services come back with nobody
/// connected, and after a keeper's death. An app whose lock another has is tried
/// again: it may be one whose order is about to be refused. `false`
/// where one could not be; the journal says which and why, and it keeps no other from being settled.
///
/// # Errors
/// Not even the list of apps can be read.
pub fn settle_all(paths: &Paths) -> Result<bool, FileError> {
    if paths.discharging().exists() {
        // What runs is being stopped, and the state goes.
        return Ok(true);
    }
    let mut left = state::apps(paths)?;
    for attempt in 0..TRIES {
        if attempt > 0 {
            thread::sleep(TRY_AGAIN_AFTER * 2u32.pow(attempt - 1));
        }
        // None keeps another waiting for its second try.
        left.retain(|app| match settle_one(paths, app, attempt > 0) {
            Ok(is_settled) => !is_settled,
            Err(why) => {
                systemd::eprintln_bounded(&format!("app `{}`: {why}", app.name()));
                true
            }
        });
        if left.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether it was settled: not where another has its lock.
fn settle_one(paths: &Paths, app: &App, is_doubtful: bool) -> Result<bool, String> {
    let holder = Holder { holder: "the node itself, settling what was left".into(), since: now() };
    match app.try_lock(&holder) {
        Ok(Ok(_lock)) => match settle_doubting(paths, app, is_doubtful) {
            Ok(None) => Ok(true),
            Ok(Some(failure)) | Err(failure) => Err(failure.message),
        },
        Ok(Err(_)) => Ok(false),
        Err(error) => Err(chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::ImageId;

    fn spec(name: &str) -> ServiceSpec {
        ServiceSpec::new(name.parse().unwrap(), vec!["x".into()])
    }

    fn run(services: &[&str]) -> Run {
        let services = services.iter().map(|name| spec(name)).collect();
        Run::new(ImageId([0; 32]), services)
    }

    fn live(release: u64, stopped: &[&str]) -> Live {
        Live { release, stopped: stopped.iter().map(|name| name.parse().unwrap()).collect() }
    }

    fn unit(number: u64, service: &str) -> Found {
        let service: ServiceName = service.parse().unwrap();
        Found { number, unit: format!("{service}.r{number}"), service }
    }

    #[test]
    fn what_differs() {
        let check = |there: &[(u64, &str)], wanted: Option<(Live, Run)>, strays: &[(u64, &str)], missing: &[&str]| {
            let found = there.iter().map(|(number, service)| unit(*number, service)).collect();
            let expected = Difference {
                strays: strays.iter().map(|(number, service)| unit(*number, service)).collect(),
                missing: missing.iter().map(|name| name.parse().unwrap()).collect(),
            };
            assert_eq!(difference(found, wanted.as_ref().map(|(live, run)| (live, run))), expected, "{there:?}");
        };
        // Nothing there, nothing wanted; all there as wanted.
        check(&[], None, &[], &[]);
        check(&[(2, "a"), (2, "b")], Some((live(2, &[]), run(&["a", "b"]))), &[], &[]);
        // A boot.
        check(&[], Some((live(2, &["b"]), run(&["a", "b"]))), &[], &["a"]);
        // Died before the switch, and after it.
        check(&[(2, "a"), (3, "a")], Some((live(2, &[]), run(&["a"]))), &[(3, "a")], &[]);
        check(&[(2, "a"), (3, "a")], Some((live(3, &[]), run(&["a"]))), &[(2, "a")], &[]);
        // Died while a service with a volume was taken over.
        check(&[(3, "a")], Some((live(2, &[]), run(&["a"]))), &[(3, "a")], &["a"]);
        // A stopped one that still runs, one that the release has no more, an app that was removed.
        check(&[(2, "a"), (2, "b")], Some((live(2, &["b"]), run(&["a", "b"]))), &[(2, "b")], &[]);
        check(&[(2, "a"), (2, "b")], Some((live(2, &[]), run(&["a"]))), &[(2, "b")], &[]);
        check(&[(2, "a")], None, &[(2, "a")], &[]);
    }

    #[test]
    fn orders_about_the_live_release() {
        let run = run(&["a", "b"]);
        let check = |action: Action, before: &[&str], expected: &[&str]| {
            assert_eq!(after(&action, &run, live(1, before)), live(1, expected), "{action:?}");
        };
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        check(Action::Stop { services: names(&["a"]) }, &[], &["a"]);
        check(Action::Stop { services: names(&["a"]) }, &["a", "b"], &["a", "b"]);
        check(Action::Stop { services: vec![] }, &[], &["a", "b"]);
        check(Action::Start { services: names(&["b"]) }, &["a", "b"], &["a"]);
        check(Action::Restart { services: vec![] }, &["a", "b"], &["a", "b"]);
    }
}
