//! An accepted order is carried out, to its end or to its failure: no client's
//! absence stops it.
//!
//! # A release
//!
//! Its services start beside those of the release before, are checked, and
//! become what new connections reach by one rename for each service; the old
//! ones drain and stop. Until `live` is replaced, failure means: the new units
//! go, the old ones were never touched.
//!
//! # Services with volumes
//!
//! Two processes that both believe to be the only one on their data destroy it.
//! So a service with a volume never runs beside its predecessor: after all
//! others are healthy, new connections begin to wait in the new ones' sockets,
//! the old ones drain and stop, and the new ones start and take what waits. If
//! those fail, the old ones start again, and what waited is lost. Order of events: everything that can fail without an
//! interruption is tried before one begins.
//!
//! # Other orders
//!
//! Stop, start and restart change what is desired, durably, before they change
//! what runs, so a boot honours them. A restart cuts the connections that are
//! open while the service stops; later ones wait until it listens again.

use super::{OrFail, failure, logs};
use crate::{
    durable::{self, FileError},
    health::{self, Seen, Unhealthy, Watch},
    peer::Peer,
    sockets,
    state::{self, App, Desired, Paths},
    systemd,
    units::{self, Names},
};
use bulkhead_core::{
    ImageId, OrderId, ServiceName,
    order::{Action, Order, Run, ServiceSpec},
};
use bulkhead_wire::{Failure, FailureKind, Outcome, StepKind};
use rustix::fs::{Gid, Mode, Uid};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Log lines that come with a failure.
const FAILURE_LOG_LINES: u32 = 20;
/// What the names of proxies end with, see [`units::Names`].
const PROXY_SUFFIX: &str = "-proxy.service";
/// Lines of an image unit's journal that say why it failed.
const MOUNT_LOG_LINES: u32 = 5;
/// Between two looks at the connections of a draining release.
const DRAIN_PAUSE: Duration = Duration::from_millis(20);
/// So often in a row must none be seen: a client that read the link before it was renamed has connected by then.
const DRAIN_LOOKS: u32 = 12;

/// Carries an accepted order out and records that it is done.
///
/// # Errors
/// What to tell the client; recording it is the caller's.
pub fn carry_out(paths: &Paths, app: &App, number: u64, order: &Order, peer: &mut Peer) -> Result<(), Box<Failure>> {
    match &order.action {
        Action::Run(run) => Release { paths, app, number, run }.run(peer),
        Action::Stop { services } => stop(paths, app, number, services, peer),
        Action::Start { services } => start(paths, app, number, services, false, peer),
        Action::Restart { services } => start(paths, app, number, services, true, peer),
        Action::Remove { volumes } => remove(paths, app, number, *volumes, peer),
    }
}

/// Mounts an image through its unit. Done before an order is accepted: what can
/// go wrong here is the node's fault, not the release's.
///
/// # Errors
/// What the unit's journal says, such as a full disk.
pub fn mount(image: ImageId) -> Result<(), Box<Failure>> {
    let unit = units::image_unit(image);
    if systemd::systemctl(&["start", &unit]).is_ok() {
        return Ok(());
    }
    let said = logs::of_unit(&unit, MOUNT_LOG_LINES);
    let is_full = said.contains("is full") || said.contains("No space left");
    let mut failure = failure(
        FailureKind::Node,
        if is_full { "disk-full" } else { "mount" },
        format!(
            "image {} cannot be mounted: {}",
            image.short(),
            if said.is_empty() { "its unit failed" } else { &said }
        ),
    );
    failure.hint = is_full.then(|| "make room on the node's disk, or remove apps it no longer needs".into());
    Err(failure)
}

/// A release and where it is.
#[derive(Debug, Clone, Copy)]
pub struct Release<'a> {
    /// Where things are.
    pub paths: &'a Paths,
    /// The app.
    pub app: &'a App,
    /// The release's number.
    pub number: u64,
    /// What it runs.
    pub run: &'a Run,
}

fn has_volumes(service: &&ServiceSpec) -> bool {
    !service.volumes.is_empty()
}

impl<'a> Release<'a> {
    fn names(&self, service: &ServiceName) -> Names {
        Names::new(self.app.name(), service, self.number)
    }

    /// All units of these services.
    fn unit_names(&self, services: &[&ServiceSpec]) -> Vec<String> {
        let mut names = Vec::new();
        for service in services {
            let Names { service: unit, socket, proxy } = self.names(&service.name);
            names.push(unit);
            if service.port.is_some() {
                names.extend([socket, proxy]);
            }
        }
        names
    }

    /// Writes the units of all services, and makes what they refer to.
    ///
    /// # Errors
    /// A file, or systemd's version.
    pub fn prepare(&self, systemd: u32) -> Result<(), Box<Failure>> {
        let uid = self.app.allocate_uid(self.paths).or_fail()?;
        make_accounts(self.paths, self.app, uid)?;
        let release = units::Release {
            app: self.app.name(),
            number: self.number,
            image: self.run.image,
            uid,
            systemd,
            paths: self.paths,
        };
        for service in &self.run.services {
            for volume in &service.volumes {
                make_volume(&self.paths.volumes(self.app.name()), volume.name.as_str(), uid).or_fail()?;
            }
            let files = units::write(&release, service)
                .map_err(|error| failure(FailureKind::Request, "unit", error.to_string()))?;
            for (name, text) in files {
                let path = self.paths.units.join(name);
                // Of /run, so not durable; and not touched where it is as it should be.
                if durable::read(&path).or_fail()?.as_deref() != Some(text.as_bytes()) {
                    write_unit(&path, &text).or_fail()?;
                }
            }
        }
        Ok(())
    }

    /// Starts these services and waits until all are well.
    fn start(&self, services: &[&'a ServiceSpec], peer: &mut Peer) -> Result<(), Box<Failure>> {
        if services.is_empty() {
            return Ok(());
        }
        let image_unit = units::image_unit(self.run.image);
        // One transaction, so that sockets come before their proxies: systemd refuses the other order.
        let names = self.unit_names(services);
        let arguments: Vec<&str> = ["start", &image_unit].into_iter().chain(names.iter().map(String::as_str)).collect();
        let job = systemd::begin(&arguments).or_fail()?;
        let watches: Vec<Watch<'_>> = services
            .iter()
            .map(|spec| Watch {
                spec,
                names: self.names(&spec.name),
                socket: self.paths.socket_directory(self.app.name(), self.number, &spec.name).join("sock"),
            })
            .collect();
        let waited = health::wait(&watches, Some(job), |service, seen| {
            // The peer is committed: telling it cannot fail.
            let step = if seen == Seen::Started { StepKind::Started } else { StepKind::Healthy };
            drop(peer.step(step, Some(service)));
        });
        waited.map_err(|unhealthy| self.unhealthy(unhealthy))
    }

    fn unhealthy(&self, unhealthy: Unhealthy) -> Box<Failure> {
        let Unhealthy { service, rule, message, hint } = unhealthy;
        let query = logs::Query {
            app: self.app.name(),
            service: Some(&service),
            release: Some(self.number),
            lines: FAILURE_LOG_LINES,
            follow: false,
        };
        let log = logs::last(&query);
        Box::new(Failure { kind: FailureKind::Unhealthy, rule: rule.into(), message, hint, log, position: None })
    }

    /// Stops these services and removes their units and sockets. What is not there is no error.
    fn discard(&self, services: &[&ServiceSpec]) {
        let names = self.unit_names(services);
        stop_units(&names);
        for name in names {
            let path = self.paths.units.join(name);
            if let Err(error) = durable::remove(&path) {
                systemd::eprintln_bounded(&super::chain(&error));
            }
        }
        for service in services {
            let directory = self.paths.socket_directory(self.app.name(), self.number, &service.name);
            if let Err(error) = durable::remove_tree(&directory) {
                systemd::eprintln_bounded(&super::chain(&error));
            }
            // The release's own directory goes with its last service.
            if let Some(parent) = directory.parent() {
                drop(fs::remove_dir(parent));
            }
        }
    }

    /// Makes new connections reach this release, and no service that it has not.
    ///
    /// # Errors
    /// A link could not be made.
    pub fn link(&self) -> Result<(), FileError> {
        let name = self.app.name();
        let directory = self.paths.run.join("live").join(name.as_str());
        fs::create_dir_all(&directory).map_err(FileError::io("create", &directory))?;
        // The gate goes through it; who may come this far is decided by the directory above.
        rustix::fs::chmod(&directory, Mode::from_raw_mode(0o755))
            .map_err(|error| FileError::io("set the mode of", &directory)(error.into()))?;
        self.link_services(self.run.services.iter())?;
        let kept: BTreeSet<&str> =
            self.run.services.iter().filter(|s| s.port.is_some()).map(|service| service.name.as_str()).collect();
        for entry in fs::read_dir(&directory).map_err(FileError::io("list", &directory))?.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !kept.contains(name)) {
                fs::remove_file(entry.path()).map_err(FileError::io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    fn link_services<'b>(&self, services: impl IntoIterator<Item = &'b ServiceSpec>) -> Result<(), FileError> {
        let name = self.app.name();
        let directory = self.paths.run.join("live").join(name.as_str());
        for service in services.into_iter().filter(|service| service.port.is_some()) {
            let link = self.paths.live_link(name, &service.name);
            let fresh = directory.join(format!(".{}", service.name));
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::io("remove", &fresh)(error));
                }
                _ => {}
            }
            let target = self.paths.socket_directory(name, self.number, &service.name);
            symlink(target, &fresh).map_err(FileError::io("link", &fresh))?;
            fs::rename(&fresh, &link).map_err(FileError::io("replace", &link))?;
        }
        Ok(())
    }

    /// Starts what is desired of it, without waiting. For boots and after failures.
    ///
    /// # Errors
    /// systemd refused.
    pub fn start_desired(&self, desired: &Desired) -> Result<(), Box<Failure>> {
        let services: Vec<&ServiceSpec> =
            self.run.services.iter().filter(|service| !desired.stopped.contains(&service.name)).collect();
        self.start_without_waiting(&services)
    }

    fn start_without_waiting(&self, services: &[&ServiceSpec]) -> Result<(), Box<Failure>> {
        // Proxies are started by the first connection.
        let names: Vec<String> =
            self.unit_names(services).into_iter().filter(|name| !name.ends_with(PROXY_SUFFIX)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut arguments = vec!["start", "--no-block"];
        arguments.extend(names.iter().map(String::as_str));
        systemd::systemctl(&arguments).map(drop).or_fail()
    }

    /// Waits until these services have no connection left, or each one's time is up.
    fn drain<'b>(&self, services: impl IntoIterator<Item = &'b ServiceSpec>) {
        let begun = Instant::now();
        let reachable: Vec<_> = services
            .into_iter()
            .filter(|service| service.port.is_some())
            .map(|service| {
                let socket = self.paths.socket_directory(self.app.name(), self.number, &service.name).join("sock");
                (service, socket, self.names(&service.name).service)
            })
            .filter(|(_, _, unit)| !systemd::processes(unit).is_empty())
            .collect();
        let is_busy = |(service, socket, unit): &(&ServiceSpec, PathBuf, String)| {
            begun.elapsed() < Duration::from_millis(u64::from(service.drain_ms)) && !is_idle(socket, unit, service.port)
        };
        let mut quiet = 0;
        while quiet < DRAIN_LOOKS && !reachable.is_empty() {
            quiet = if reachable.iter().any(is_busy) { 0 } else { quiet + 1 };
            thread::sleep(DRAIN_PAUSE);
        }
    }

    /// A new release: see the module's description.
    fn run(&self, peer: &mut Peer) -> Result<(), Box<Failure>> {
        let before = self.app.live_run().or_fail()?.filter(|(number, _)| *number != self.number);
        let before = before.as_ref().map(|(number, run)| Release { number: *number, run, ..*self });
        let desired = self.app.desired().or_fail()?;
        let all: Vec<&ServiceSpec> = self.run.services.iter().collect();
        let (alone, beside): (Vec<_>, Vec<_>) = self.run.services.iter().partition(has_volumes);
        let result = self.start_all(&beside, &alone, before.as_ref(), &desired, peer);
        if let Err(failure) = result {
            self.discard(&all);
            self.release_image(self.run.image);
            return Err(failure);
        }
        // The switch. Durable first: after a crash the links are made from it.
        self.app.set_live(self.number).or_fail()?;
        self.app.set_desired(&Desired::default()).or_fail()?;
        self.link().or_fail()?;
        peer.step(StepKind::Switched, None).or_fail()?;
        self.app.record_outcome(self.number, Outcome::Done).or_fail()?;
        if let Some(before) = before {
            before.drain(&before.run.services);
            peer.step(StepKind::Drained, None).or_fail()?;
            before.discard(&before.run.services.iter().collect::<Vec<_>>());
            self.release_image(before.run.image);
            peer.step(StepKind::Stopped, None).or_fail()?;
        }
        Ok(())
    }

    fn start_all(
        &self,
        beside: &[&'a ServiceSpec],
        alone: &[&'a ServiceSpec],
        before: Option<&Release<'_>>,
        desired: &Desired,
        peer: &mut Peer,
    ) -> Result<(), Box<Failure>> {
        self.prepare(systemd::version().or_fail()?)?;
        self.start(beside, peer)?;
        if alone.is_empty() {
            return Ok(());
        }
        let stopped: Vec<&ServiceSpec> = before.map_or_else(Vec::new, |before| {
            before.run.services.iter().filter(has_volumes).filter(|s| !desired.stopped.contains(&s.name)).collect()
        });
        let taken_over = before.map_or(Ok(()), |before| self.take_over(alone, before, &stopped));
        taken_over.and_then(|()| self.start(alone, peer)).inspect_err(|_| {
            let Some(before) = before else { return };
            // The new ones first: never two on one volume.
            stop_units(&self.unit_names(alone));
            let started = before.start_without_waiting(&stopped);
            let linked = before.link_services(stopped.iter().copied()).or_fail();
            for error in [started, linked].into_iter().filter_map(Result::err) {
                systemd::eprintln_bounded(&format!("cannot start the release before again: {}", error.message));
            }
        })
    }

    /// Makes new connections wait in the sockets of services that are not
    /// started yet, lets the old ones finish, and stops the old services.
    fn take_over(
        &self,
        alone: &[&ServiceSpec],
        before: &Release<'_>,
        old: &[&ServiceSpec],
    ) -> Result<(), Box<Failure>> {
        let reachable = alone.iter().filter(|service| service.port.is_some());
        let sockets: Vec<String> = reachable.map(|service| self.names(&service.name).socket).collect();
        if !sockets.is_empty() {
            let arguments: Vec<&str> = std::iter::once("start").chain(sockets.iter().map(String::as_str)).collect();
            systemd::systemctl(&arguments).or_fail()?;
            // Only those that had a link: a new service becomes reachable once it is healthy.
            let had = |service: &&&ServiceSpec| old.iter().any(|old| old.name == service.name && old.port.is_some());
            self.link_services(alone.iter().filter(had).copied()).or_fail()?;
        }
        before.drain(old.iter().copied());
        stop_units(&before.unit_names(old));
        Ok(())
    }

    /// Unmounts an image that no app's live release runs.
    fn release_image(&self, image: ImageId) {
        let is_live = |app: &App| app.live_run().map_or(true, |live| live.is_some_and(|(_, run)| run.image == image));
        match state::apps(self.paths) {
            Ok(apps) if !apps.iter().any(is_live) => stop_units(&[units::image_unit(image)]),
            // In doubt it stays mounted, which costs nothing.
            _ => {}
        }
    }
}

/// Whether nobody is connected to a service: no connection waits in its socket
/// or was accepted from it, and none goes on in its network namespace. Both are
/// looked at: a connection has its client's namespace on the socket's side, so
/// those from other namespaces show on the service's side only.
///
/// Where neither can be read, the drain time is all there is to go by.
fn is_idle(socket: &Path, unit: &str, port: Option<u16>) -> bool {
    let inside = match systemd::processes(unit).first() {
        None => return true,
        Some(pid) => sockets::inet(*pid, "tcp"),
    };
    let is_open = |found: &sockets::Inet| found.state == sockets::ESTABLISHED && Some(found.local.1) == port;
    inside.is_ok_and(|found| !found.iter().any(is_open)) && sockets::connections(socket).is_ok_and(|count| count == 0)
}

/// A unit is for systemd and everyone to read; without this it complains about the keeper's umask.
fn write_unit(path: &Path, text: &str) -> Result<(), FileError> {
    fs::write(path, text).map_err(FileError::io("write", path))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o644))
        .map_err(|error| FileError::io("set the mode of", path)(error.into()))
}

/// Stops units; those that are not there are stopped.
fn stop_units(names: &[String]) {
    if names.is_empty() {
        return;
    }
    let mut arguments = vec!["stop"];
    arguments.extend(names.iter().map(String::as_str));
    let stopped = systemd::begin(&arguments).and_then(|job| {
        // If systemd has not come to it yet it takes this for a crash, and stops the service all the same.
        names.iter().for_each(|name| systemd::end_deaf_processes(name));
        job.wait()
    });
    match stopped {
        Ok(()) => {}
        // Of a unit that failed and is gone already systemd says so; the others were stopped.
        Err(systemd::SystemdError::Failed { message, .. })
            if message.lines().all(|line| line.contains("not loaded")) => {}
        Err(error) => systemd::eprintln_bounded(&super::chain(&error)),
    }
}

/// Makes the accounts of an app, where they are missing. The keeper may not
/// write to `/etc`, so a unit does.
fn make_accounts(paths: &Paths, app: &App, uid: u32) -> Result<(), Box<Failure>> {
    let passwd = Path::new("/etc/passwd");
    let known = fs::read_to_string(passwd).map_err(FileError::io("read", passwd)).or_fail()?;
    let is_known = |uid: u32| known.lines().any(|line| line.split(':').next() == Some(&units::account(uid)));
    if is_known(uid) && is_known(uid + 1) {
        return Ok(());
    }
    let (name, text) = units::accounts_unit(app.name(), uid);
    let path = paths.units.join(&name);
    write_unit(&path, &text).or_fail()?;
    let result = systemd::systemctl(&["start", &name]).map(drop).or_fail();
    durable::remove(&path).or_fail()?;
    result
}

fn make_volume(directory: &Path, name: &str, uid: u32) -> Result<(), FileError> {
    let make = |path: &Path, mode: u32| match fs::create_dir(path) {
        Ok(()) => rustix::fs::chmod(path, Mode::from_raw_mode(mode))
            .map_err(|e| FileError::io("set the mode of", path)(e.into())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(FileError::io("create", path)(error)),
    };
    make(directory, 0o711)?;
    let path = directory.join(name);
    make(&path, 0o700)?;
    // Also where it is there: what a crash left between the two has the wrong owner.
    rustix::fs::chown(&path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))
        .map_err(|error| FileError::io("set the owner of", &path)(error.into()))?;
    durable::sync_directory(directory)
}

fn selected<'a>(run: &'a Run, services: &[ServiceName]) -> Vec<&'a ServiceSpec> {
    run.services.iter().filter(|spec| services.is_empty() || services.contains(&spec.name)).collect()
}

/// What is desired once an order about the live release is carried out.
fn desired_after(action: &Action, run: &Run, mut desired: Desired) -> Desired {
    match action {
        Action::Stop { services } => {
            desired.stopped.extend(selected(run, services).iter().map(|spec| spec.name.clone()))
        }
        Action::Start { services } | Action::Restart { services } => {
            selected(run, services).iter().for_each(|spec| {
                desired.stopped.remove(&spec.name);
            });
        }
        Action::Run(_) | Action::Remove { .. } => desired = Desired::default(),
    }
    desired
}

fn live(app: &App) -> Result<(u64, Run), Box<Failure>> {
    let missing = || failure(FailureKind::Request, "no-release", format!("`{}` has no release here", app.name()));
    app.live_run().or_fail()?.ok_or_else(missing)
}

fn stop(paths: &Paths, app: &App, number: u64, services: &[ServiceName], peer: &mut Peer) -> Result<(), Box<Failure>> {
    let (live, run) = live(app)?;
    let action = Action::Stop { services: services.to_vec() };
    app.set_desired(&desired_after(&action, &run, app.desired().or_fail()?)).or_fail()?;
    let release = Release { paths, app, number: live, run: &run };
    stop_units(&release.unit_names(&selected(&run, services)));
    peer.step(StepKind::Stopped, None).or_fail()?;
    app.record_outcome(number, Outcome::Done).or_fail()
}

fn start(
    paths: &Paths,
    app: &App,
    number: u64,
    services: &[ServiceName],
    again: bool,
    peer: &mut Peer,
) -> Result<(), Box<Failure>> {
    let (live, run) = live(app)?;
    let action = Action::Start { services: services.to_vec() };
    app.set_desired(&desired_after(&action, &run, app.desired().or_fail()?)).or_fail()?;
    let release = Release { paths, app, number: live, run: &run };
    let chosen = selected(&run, services);
    if again {
        // Stopped first, so that what is seen well afterwards is the new process. The socket
        // goes on listening, and connections wait in it for the proxy, which waits for the service.
        let names = chosen.iter().map(|spec| release.names(&spec.name));
        stop_units(&names.flat_map(|names| [names.proxy, names.service]).collect::<Vec<_>>());
    }
    release.prepare(systemd::version().or_fail()?)?;
    release.link().or_fail()?;
    release.start(&chosen, peer)?;
    app.record_outcome(number, Outcome::Done).or_fail()
}

fn remove(paths: &Paths, app: &App, number: u64, volumes: bool, peer: &mut Peer) -> Result<(), Box<Failure>> {
    if let Some((live, run)) = app.live_run().or_fail()? {
        let release = Release { paths, app, number: live, run: &run };
        let links = paths.run.join("live").join(app.name().as_str());
        durable::remove_tree(&links).or_fail()?;
        release.discard(&run.services.iter().collect::<Vec<_>>());
        app.forget(number).or_fail()?;
        release.release_image(run.image);
    }
    forget(paths, app, number, volumes).or_fail()?;
    peer.step(StepKind::Stopped, None).or_fail()
}

fn forget(paths: &Paths, app: &App, number: u64, volumes: bool) -> Result<(), FileError> {
    app.forget(number)?;
    if volumes {
        durable::remove_tree(&paths.volumes(app.name()))?;
    }
    app.record_outcome(number, Outcome::Done)
}

/// Sees to what a keeper left that ended in the middle of an order, on a node
/// that did not go down. `again` is the order at hand: if it is the one that was
/// interrupted, its services may stay as they are. Called with the app's lock held.
///
/// # Errors
/// The app's state cannot be read or written.
pub fn recover(paths: &Paths, app: &App, again: Option<OrderId>) -> Result<(), FileError> {
    let Some((number, order)) = settle(app)? else { return Ok(()) };
    let is_again = again.is_some() && app.head()?.order == again;
    match &order.action {
        _ if is_again => return Ok(()),
        Action::Run(run) => {
            let all: Vec<&ServiceSpec> = run.services.iter().collect();
            Release { paths, app, number, run }.discard(&all);
        }
        // What was accepted is done, if late: nobody would ask for it again.
        action => complete(paths, app, number, action)?,
    }
    if let Some((live, run)) = app.live_run()? {
        let release = Release { paths, app, number: live, run: &run };
        let desired = app.desired()?;
        let stopped: Vec<&ServiceSpec> = run.services.iter().filter(|s| desired.stopped.contains(&s.name)).collect();
        stop_units(&release.unit_names(&stopped));
        // Its services with volumes may have been stopped for the new ones, and their links with them.
        release.link()?;
        if let Err(error) = release.start_desired(&desired) {
            systemd::eprintln_bounded(&format!("cannot start the live release again: {}", error.message));
        }
    }
    Ok(())
}

/// Does what an accepted order about the live release says of the state on
/// disk, and records it as done.
fn complete(paths: &Paths, app: &App, number: u64, action: &Action) -> Result<(), FileError> {
    if let Action::Remove { volumes } = action {
        return forget(paths, app, number, *volumes);
    }
    if let Some((_, run)) = app.live_run()? {
        app.set_desired(&desired_after(action, &run, app.desired()?))?;
    }
    app.record_outcome(number, Outcome::Done)
}

/// Records how the last order ended, where a crash kept that from being
/// recorded. Gives the order where it was interrupted.
fn settle(app: &App) -> Result<Option<(u64, Order)>, FileError> {
    let number = app.head()?.counter;
    let Some(record) = app.record(number)? else { return Ok(None) };
    if record.outcome != Outcome::Underway {
        return Ok(None);
    }
    let is_live = app.live()? == Some(number);
    app.record_outcome(number, if is_live { Outcome::Done } else { Outcome::Interrupted })?;
    if is_live {
        return Ok(None);
    }
    Ok(app.order(number)?.map(|order| (number, order)))
}

/// After a boot: settles the last order. One that was about the live release is
/// completed, because the boot itself does what was left of it.
///
/// # Errors
/// The app's state cannot be read or written.
pub fn settle_at_boot(paths: &Paths, app: &App) -> Result<(), FileError> {
    match settle(app)? {
        None => Ok(()),
        Some((_, Order { action: Action::Run(_), .. })) => Ok(()),
        Some((number, order)) => complete(paths, app, number, &order.action),
    }
}
