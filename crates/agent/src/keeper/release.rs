//! A release on this node: its units, sockets, links and volumes, and what can
//! be done with them. Which release must run is decided elsewhere
//! ([`super::carry`], [`super::settle`]).
//!
//! A unit's file is written before the unit is started and removed once nothing
//! of it runs. So the files in `/run/systemd/system` tell what there is of an
//! app, whoever died on the way ([`found`]).

use super::{OrFail, failure, logs};
use crate::{
    durable::{self, FileError},
    health::{self, Seen, Unhealthy, Watch},
    peer::Peer,
    sockets,
    state::{App, Paths},
    systemd,
    units::{self, Names},
};
use bulkhead_core::{
    AppName, ServiceName,
    order::{Run, ServiceSpec},
};
use bulkhead_wire::{Failure, FailureKind, StepKind};
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
/// Between two looks at the connections of a draining release.
const DRAIN_PAUSE: Duration = Duration::from_millis(20);
/// So often in a row must none be seen: a client that read the link before it was renamed has connected by then.
const DRAIN_LOOKS: u32 = 12;
/// What the names of proxies end with, see [`units::Names`].
const PROXY_SUFFIX: &str = "-proxy.service";
/// Between two looks at a service that ends.
const END_PAUSE: Duration = Duration::from_millis(10);
/// What the processes of a stopped unit may take until nothing is to be seen of them.
const VANISH_MAX: Duration = Duration::from_secs(10);
/// A user id's accounts are named after it.
const ACCOUNT_PREFIX: &str = "bulkhead-";

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

impl<'a> Release<'a> {
    /// A service's units.
    #[must_use]
    pub fn names(&self, service: &ServiceName) -> Names {
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

    /// The units of a service, as [`found`] gives those of which there are files.
    #[must_use]
    pub fn found_of(&self, service: &ServiceSpec) -> Vec<Found> {
        let found = |unit| Found { number: self.number, service: service.name.clone(), unit };
        self.unit_names(&[service]).into_iter().map(found).collect()
    }

    /// Writes the units of these services, and makes what they refer to.
    ///
    /// # Errors
    /// A file, systemd's version, or a volume that is not where it was made.
    pub fn prepare(&self, services: &[&ServiceSpec]) -> Result<(), Box<Failure>> {
        let systemd = systemd::version().or_fail()?;
        let accounts = accounts().or_fail()?;
        let uid = self.app.allocate_uid(self.paths, &accounts).or_fail()?;
        make_accounts(self.paths, self.app, uid, &accounts)?;
        self.make_volumes(services, uid)?;
        let release = units::Release {
            app: self.app.name(),
            number: self.number,
            image: self.run.image,
            uid,
            systemd,
            paths: self.paths,
        };
        for service in services {
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

    /// Makes the volumes that are new. One that was made and is not there is
    /// not made again: its data is elsewhere, on a disk that is not mounted.
    fn make_volumes(&self, services: &[&ServiceSpec], uid: u32) -> Result<(), Box<Failure>> {
        let name = self.app.name();
        let directory = self.paths.volumes(name);
        let known = self.app.volumes().or_fail()?;
        let mut made = known.clone();
        for volume in services.iter().flat_map(|service| &service.volumes) {
            let path = directory.join(volume.name.as_str());
            if known.contains(&volume.name) && !path.is_dir() {
                let message = format!(
                    "volume `{}` of `{name}` is not at {}, where this node made it: what it holds is missing",
                    volume.name,
                    path.display()
                );
                let mut failure = failure(FailureKind::Node, "volume-absent", message);
                failure.hint = Some(
                    "mount the disk that it is on and try again; `bulkhead rm --volumes` gives up the app's data"
                        .into(),
                );
                return Err(failure);
            }
            make_volume(&directory, volume.name.as_str(), uid).or_fail()?;
            made.insert(volume.name.clone());
        }
        if made == known { Ok(()) } else { self.app.set_volumes(&made).or_fail() }
    }

    /// Starts these services and waits until all are well.
    ///
    /// # Errors
    /// One is not, with its last log lines.
    pub fn start(&self, services: &[&'a ServiceSpec], peer: &mut Peer) -> Result<(), Box<Failure>> {
        if services.is_empty() {
            return Ok(());
        }
        services.iter().try_for_each(|service| self.refuse_leftovers(service))?;
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

    fn links(&self) -> PathBuf {
        self.paths.run.join("live").join(self.app.name().as_str())
    }

    /// Makes ready what [`Release::link`] puts in place, so that little is left to go wrong then.
    ///
    /// # Errors
    /// A link could not be made.
    pub fn stage_links<'b>(&self, services: impl IntoIterator<Item = &'b ServiceSpec>) -> Result<(), FileError> {
        let directory = self.links();
        fs::create_dir_all(&directory).map_err(FileError::io("create", &directory))?;
        // The gate goes through it; who may come this far is decided by the directory above.
        rustix::fs::chmod(&directory, Mode::from_raw_mode(0o755))
            .map_err(|error| FileError::io("set the mode of", &directory)(error.into()))?;
        for service in services.into_iter().filter(|service| service.port.is_some()) {
            let fresh = directory.join(format!(".{}", service.name));
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::io("remove", &fresh)(error));
                }
                _ => {}
            }
            let target = self.paths.socket_directory(self.app.name(), self.number, &service.name);
            symlink(target, &fresh).map_err(FileError::io("link", &fresh))?;
        }
        Ok(())
    }

    /// Makes new connections to these services reach this release, by the links that were made ready.
    ///
    /// # Errors
    /// A link could not be replaced.
    pub fn switch_links<'b>(&self, services: impl IntoIterator<Item = &'b ServiceSpec>) -> Result<(), FileError> {
        for service in services.into_iter().filter(|service| service.port.is_some()) {
            let link = self.paths.live_link(self.app.name(), &service.name);
            let fresh = self.links().join(format!(".{}", service.name));
            fs::rename(&fresh, &link).map_err(FileError::io("replace", &link))?;
        }
        Ok(())
    }

    /// Makes new connections reach this release, and no service that it has not.
    ///
    /// # Errors
    /// A link could not be made.
    pub fn link(&self) -> Result<(), FileError> {
        self.stage_links(&self.run.services)?;
        self.switch_links(&self.run.services)?;
        self.unlink_others()
    }

    /// Takes away the links of services that this release has not.
    ///
    /// # Errors
    /// A link could not be removed.
    pub fn unlink_others(&self) -> Result<(), FileError> {
        let kept: BTreeSet<&str> =
            self.run.services.iter().filter(|s| s.port.is_some()).map(|service| service.name.as_str()).collect();
        let directory = self.links();
        for entry in fs::read_dir(&directory).map_err(FileError::io("list", &directory))?.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !kept.contains(name)) {
                fs::remove_file(entry.path()).map_err(FileError::io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Starts a service, whatever state somebody left it in, without waiting until it is well. A program that
    /// cannot be executed is no error: systemd goes on trying, and so it may when its image is a better one.
    ///
    /// # Errors
    /// Something of it cannot be ended, or what it needs is not there: its image, the disk of a volume.
    pub fn start_again(&self, service: &ServiceSpec) -> Result<(), Box<Failure>> {
        self.refuse_leftovers(service)?;
        let Names { service: unit, socket, .. } = self.names(&service.name);
        let image = units::image_unit(self.run.image);
        // A proxy is started by the first connection.
        let names = [Some(image.as_str()), Some(unit.as_str()), service.port.map(|_| socket.as_str())];
        let start =
            || systemd::systemctl(&["start"].into_iter().chain(names.into_iter().flatten()).collect::<Vec<_>>());
        if start().is_ok() {
            return Ok(());
        }
        // A stop that was under way makes systemd refuse: a socket is not started while its proxy is still there.
        stop_units(self.paths, &self.unit_names(&[service]))?;
        let Err(error) = start() else { return Ok(()) };
        let shown = systemd::show(&[&unit], "ActiveState").or_fail()?;
        let state = shown.get(&unit).and_then(|properties| properties.get("ActiveState")).map_or("", String::as_str);
        // Of a unit whose requirement failed nothing was tried, and nothing will be.
        if matches!(state, "activating" | "active" | "reloading") { Ok(()) } else { Err(error).or_fail() }
    }

    /// Where processes of a service with a volume outlived its unit's end, systemd would start another beside them.
    fn refuse_leftovers(&self, service: &ServiceSpec) -> Result<(), Box<Failure>> {
        let Names { service: unit, .. } = self.names(&service.name);
        if service.volumes.is_empty() || systemd::processes(&unit).is_empty() {
            return Ok(());
        }
        let shown = systemd::show(&[&unit], "ActiveState").or_fail()?;
        let state = shown.get(&unit).and_then(|properties| properties.get("ActiveState")).map_or("", String::as_str);
        if matches!(state, "failed" | "inactive") && !systemd::processes(&unit).is_empty() {
            return Err(goes_on(&unit));
        }
        Ok(())
    }

    /// Waits until these services have no connection left, or each one's time is up.
    pub fn drain<'b>(&self, services: impl IntoIterator<Item = &'b ServiceSpec>) {
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
}

/// A unit of an app's service, as its file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Of which release.
    pub number: u64,
    /// Of which service.
    pub service: ServiceName,
    /// The unit.
    pub unit: String,
}

/// Every unit that there is of an app.
///
/// # Errors
/// The directory of units cannot be read.
pub fn found(paths: &Paths, app: &AppName) -> Result<Vec<Found>, FileError> {
    let mut all = Vec::new();
    let entries = match fs::read_dir(&paths.units) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
        Err(error) => return Err(FileError::io("list", &paths.units)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(FileError::io("list", &paths.units))?;
        if let Some(unit) = entry.file_name().to_str()
            && let Some((of, service, number)) = Names::parse(unit)
            && of == *app
        {
            all.push(Found { number, service, unit: unit.to_owned() });
        }
    }
    all.sort_by(|one, other| one.unit.cmp(&other.unit));
    Ok(all)
}

/// Stops units for good and removes what there is of them. When this returns, nothing of them runs.
///
/// # Errors
/// Something goes on running, and its files stay; or a file cannot be removed.
pub fn discard(paths: &Paths, app: &AppName, units: &[Found]) -> Result<(), Box<Failure>> {
    if units.is_empty() {
        return Ok(());
    }
    stop_units(paths, &units.iter().map(|found| found.unit.clone()).collect::<Vec<_>>())?;
    for found in units {
        let directory = paths.socket_directory(app, found.number, &found.service);
        durable::remove_tree(&directory).or_fail()?;
        // The release's own directory goes with its last service.
        if let Some(parent) = directory.parent() {
            drop(fs::remove_dir(parent));
        }
        let path = paths.units.join(&found.unit);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::io("remove", &path)(error)).or_fail();
            }
            _ => {}
        }
    }
    Ok(())
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

/// Writes a unit, which is for systemd and everyone to read: with the keeper's umask systemd complains.
///
/// # Errors
/// The file cannot be written.
pub fn write_unit(path: &Path, text: &str) -> Result<(), FileError> {
    fs::write(path, text).map_err(FileError::io("write", path))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o644))
        .map_err(|error| FileError::io("set the mode of", path)(error.into()))
}

/// Stops units; those that are not there are stopped. Sockets first: a connection that waits in one would
/// start its proxy again as soon as that has stopped. Services are told to end before systemd is told to stop
/// them: where it took a process for one that is not its child, as 257 does now and then with a process-id
/// namespace, it follows SIGTERM with SIGKILL at once, whatever time the service may take.
///
/// # Errors
/// A process of a service goes on running, or systemd failed.
pub fn stop_units(paths: &Paths, names: &[String]) -> Result<(), Box<Failure>> {
    let (sockets, others): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| name.ends_with(".socket"));
    stop_at_once(&sockets)?;
    // A proxy is none of the app's own processes, and one whose socket goes on listening may be there again.
    let (proxies, services): (Vec<&String>, Vec<&String>) =
        others.into_iter().partition(|name| name.ends_with(PROXY_SUFFIX));
    stop_at_once(&proxies)?;
    // Each for itself: systemd would start one again that has ended while another takes its time.
    let stopped: Vec<Result<(), Box<Failure>>> = thread::scope(|scope| {
        let threads: Vec<_> = services
            .iter()
            .map(|name| {
                scope.spawn(|| {
                    end_gently(paths, name);
                    stop_at_once(&[*name])?;
                    let until = Instant::now() + VANISH_MAX;
                    // A process that was killed is not gone at once.
                    while !systemd::processes(name).is_empty() {
                        if Instant::now() >= until {
                            return Err(goes_on(name));
                        }
                        thread::sleep(END_PAUSE);
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    stopped.into_iter().collect()
}

/// Asks a service's processes to end, and waits as long as its unit says that it may take.
fn end_gently(paths: &Paths, unit: &str) {
    systemd::end_deaf_processes(unit);
    let Some(patience) = stop_time(paths, unit) else { return };
    systemd::terminate_processes(unit);
    let until = Instant::now() + patience;
    while !systemd::processes(unit).is_empty() && Instant::now() < until {
        thread::sleep(END_PAUSE);
    }
}

/// How long a service may take to stop, by its unit; `None` of what is no service of an app.
fn stop_time(paths: &Paths, unit: &str) -> Option<Duration> {
    Names::parse(unit)?;
    let text = fs::read_to_string(paths.units.join(unit)).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec="))?;
    Some(Duration::from_millis(value.strip_suffix("ms")?.parse().ok()?))
}

fn stop_at_once(names: &[&String]) -> Result<(), Box<Failure>> {
    if names.is_empty() {
        return Ok(());
    }
    let mut arguments = vec!["stop"];
    arguments.extend(names.iter().map(|name| name.as_str()));
    match systemd::systemctl(&arguments) {
        Ok(_) => Ok(()),
        // Of a unit that failed and is gone already systemd says so; the others were stopped.
        Err(systemd::SystemdError::Failed { message, .. })
            if message.lines().all(|line| line.contains("not loaded")) =>
        {
            Ok(())
        }
        Err(error) => Err(error).or_fail(),
    }
}

fn goes_on(unit: &str) -> Box<Failure> {
    let message = format!("{unit} was stopped, and processes of it go on running");
    let mut failure = failure(FailureKind::Node, "stop", message);
    failure.hint = Some("the kernel may be waiting for a disk on their behalf; the node's journal may tell".into());
    failure
}

/// The user ids of ours that this system has accounts for.
fn accounts() -> Result<BTreeSet<u32>, FileError> {
    let passwd = Path::new("/etc/passwd");
    let text = fs::read_to_string(passwd).map_err(FileError::io("read", passwd))?;
    Ok(parse_accounts(&text))
}

fn parse_accounts(passwd: &str) -> BTreeSet<u32> {
    passwd.lines().filter_map(|line| line.split(':').next()?.strip_prefix(ACCOUNT_PREFIX)?.parse().ok()).collect()
}

/// Makes the accounts of an app, where they are missing. The keeper may not
/// write to `/etc`, so a unit does.
fn make_accounts(paths: &Paths, app: &App, uid: u32, known: &BTreeSet<u32>) -> Result<(), Box<Failure>> {
    if known.contains(&uid) && known.contains(&(uid + 1)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_told_by_their_files() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        let app: AppName = "notes".parse().unwrap();
        assert_eq!(found(&paths, &app).unwrap(), []);
        fs::create_dir_all(&paths.units).unwrap();
        for name in [
            "bulkhead-notes.web.r7.service",
            "bulkhead-notes.web.r12.socket",
            "bulkhead-notes.web.r12-proxy.service",
            "bulkhead-notes-2.web.r1.service",
            "bulkhead-image@aa.service",
            "bulkhead-accounts-50000.service",
            "bulkhead-notes.web.r.service",
            "bulkhead-notes.web.r1.service.d",
            "ssh.service",
        ] {
            fs::write(paths.units.join(name), "").unwrap();
        }
        let seen: Vec<(u64, String)> =
            found(&paths, &app).unwrap().into_iter().map(|found| (found.number, found.unit)).collect();
        assert_eq!(
            seen,
            [
                (12, "bulkhead-notes.web.r12-proxy.service".to_owned()),
                (12, "bulkhead-notes.web.r12.socket".to_owned()),
                (7, "bulkhead-notes.web.r7.service".to_owned()),
            ]
        );
    }

    #[test]
    fn accounts_of_ours() {
        let text = "root:x:0:0::/root:/bin/sh\nbulkhead:x:999::\nbulkhead-drop:x:998::\nbulkhead-50000:x:50000::\n";
        assert_eq!(parse_accounts(text), [50_000].into());
    }
}
