//! Whether a service that was just started becomes well, seen from outside it:
//! its control group, the sockets of its network namespace, and an HTTP
//! request through its own inbound socket.
//!
//! A service that ends is unhealthy at once; nobody waits for it.

use crate::{
    http, sockets,
    systemd::{self, Job},
    units::Names,
};
use bulkhead_core::{
    ServiceName,
    order::{HealthCheck, ServiceSpec},
};
use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// The first wait between two looks: an app that starts in no time is seen in no time.
const LOOK_FIRST: Duration = Duration::from_millis(5);
/// The longest: below the second that systemd waits before a restart, so that no end is missed.
const LOOK_LONGEST: Duration = Duration::from_millis(100);
/// Most apps start within this, and until then nobody looks less often than every so often: a look takes a fraction
/// of a millisecond, and what is seen late is time that nobody is served in.
const LOOK_OFTEN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(5));
/// How long a service without a port must stay up.
const STAYS_UP: Duration = Duration::from_secs(1);
/// From when on a service of which no process was ever seen is asked about: it may have ended between two looks.
/// Then again whenever twice the time has passed, as asking keeps systemd from starting it.
const UNSEEN: Duration = Duration::from_millis(150);
/// The longest of these waits: an app that ends at once is started again every second.
const UNSEEN_LONGEST: Duration = Duration::from_secs(1);
/// How long a proxy looks often for its service: an app starts, or starts again, within it.
const AWAITED_OFTEN: Duration = Duration::from_secs(10);
/// What it then waits at most between two looks.
const AWAIT_LONGEST: Duration = Duration::from_secs(1);
/// Between two HTTP requests of which the first did not do.
const HTTP_PAUSE: Duration = Duration::from_millis(50);

/// A service to watch.
#[derive(Debug)]
pub struct Watch<'a> {
    /// What it should be.
    pub spec: &'a ServiceSpec,
    /// Its units.
    pub names: Names,
    /// Its inbound socket.
    pub socket: PathBuf,
}

/// What is told while waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Its process runs.
    Started,
    /// It is well.
    Healthy,
}

/// Why a service is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    /// Which service.
    pub service: ServiceName,
    /// A stable word: `exited`, `start`, `port`, `http`, `timeout`.
    pub rule: &'static str,
    /// What was seen, in a sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

#[derive(Debug, Clone)]
struct State {
    started: Option<Instant>,
    healthy: bool,
    asking: bool,
    /// When systemd is asked whether it has ended, unless a process was seen.
    ask_after: Duration,
    last_answer: Option<String>,
}

/// Waits until all are well. `job` is the `systemctl start` under way.
///
/// # Errors
/// The first service that is not.
pub fn wait(
    watches: &[Watch<'_>],
    mut job: Option<Job>,
    mut tell: impl FnMut(&ServiceName, Seen),
) -> Result<(), Unhealthy> {
    let begun = Instant::now();
    let host = namespace(1);
    let (sender, answers) = mpsc::channel::<(usize, Result<(), String>)>();
    let unseen = State { started: None, healthy: false, asking: false, ask_after: UNSEEN, last_answer: None };
    let mut states: Vec<State> = watches.iter().map(|_| unseen.clone()).collect();
    let mut pause = LOOK_FIRST;
    loop {
        match job.as_mut().map(Job::poll) {
            Some(Ok(true)) => job = None,
            Some(Err(error)) => return Err(not_started(watches, &states, &error.to_string())),
            Some(Ok(false)) | None => {}
        }
        for (index, (watch, state)) in watches.iter().zip(&mut states).enumerate() {
            if state.healthy {
                continue;
            }
            let within = Duration::from_millis(u64::from(watch.spec.health.within_ms));
            let inside = inside(&watch.names.service, host.as_deref());
            match inside {
                Inside::Nothing if state.started.is_some() || job.is_none() => return Err(ended(watch)),
                // The job waits for the proxies too, and they for the service: it does not tell.
                Inside::Nothing if begun.elapsed() > state.ask_after => {
                    if has_ended(&watch.names.service) {
                        return Err(ended(watch));
                    }
                    state.ask_after = (begun.elapsed() * 2).min(begun.elapsed() + UNSEEN_LONGEST);
                }
                Inside::Process(_) if state.started.is_none() => {
                    state.started = Some(Instant::now());
                    tell(&watch.spec.name, Seen::Started);
                }
                _ => {}
            }
            let listens = || match inside {
                Inside::Process(pid) => sockets::listening(pid).unwrap_or_default(),
                _ => vec![],
            };
            state.healthy = match &watch.spec.health.check {
                HealthCheck::StaysUp => state.started.is_some_and(|started| started.elapsed() >= STAYS_UP),
                HealthCheck::Tcp => {
                    watch.spec.port.is_some_and(|port| listens().iter().any(|place| reaches(*place, port)))
                }
                HealthCheck::Http { path } => {
                    // The question waits in the socket until there is a proxy, and that waits for the service.
                    if state.started.is_some() && !state.asking {
                        state.asking = true;
                        ask(index, watch.socket.clone(), path.clone(), begun + within, sender.clone());
                    }
                    false
                }
            };
            if state.healthy {
                tell(&watch.spec.name, Seen::Healthy);
            } else if begun.elapsed() > within {
                return Err(too_late(watch, state, &listens()));
            }
        }
        if states.iter().all(|state| state.healthy) {
            return Ok(());
        }
        match answers.recv_timeout(pause) {
            Ok((index, Ok(()))) => {
                states[index].healthy = true;
                tell(&watches[index].spec.name, Seen::Healthy);
                if states.iter().all(|state| state.healthy) {
                    return Ok(());
                }
            }
            Ok((index, Err(answer))) => states[index].last_answer = Some(answer),
            Err(_) => pause = next_look(pause, begun.elapsed()),
        }
    }
}

/// The wait after this one, when a start has been watched for so long.
fn next_look(pause: Duration, watched: Duration) -> Duration {
    let (often, longest) = LOOK_OFTEN;
    (pause * 5 / 4).min(if watched < often { longest } else { LOOK_LONGEST })
}

/// Asks until the answer does, in a thread of its own: an app may take long for
/// its first answer, and must be seen ending meanwhile. The thread ends by itself at the deadline.
fn ask(
    index: usize,
    socket: PathBuf,
    path: String,
    deadline: Instant,
    sender: mpsc::Sender<(usize, Result<(), String>)>,
) {
    thread::spawn(move || {
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let answer = match http::get(&socket, &path, left) {
                // systemd is about to make it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    thread::sleep(LOOK_FIRST);
                    continue;
                }
                Ok(status) if (200..400).contains(&status) => Ok(()),
                Ok(status) => Err(format!("GET {path} answered {status}")),
                Err(error) => Err(format!("GET {path}: {error}")),
            };
            let is_last = answer.is_ok();
            // Nobody listens any more once the waiting has ended.
            if sender.send((index, answer)).is_err() || is_last {
                return;
            }
            thread::sleep(HTTP_PAUSE);
        }
    });
}

enum Inside {
    /// No process at all.
    Nothing,
    /// Processes that systemd is still preparing.
    Preparing,
    /// A process in the service's own network namespace.
    Process(u32),
}

fn inside(unit: &str, host: Option<&str>) -> Inside {
    let pids = systemd::processes(unit);
    let own = pids.iter().find(|pid| namespace(**pid).is_some_and(|found| Some(found.as_str()) != host));
    match own {
        Some(pid) => Inside::Process(*pid),
        None if pids.is_empty() => Inside::Nothing,
        None => Inside::Preparing,
    }
}

fn namespace(pid: u32) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/ns/net")).ok()?.to_string_lossy().into_owned())
}

/// Whether a listener answers on 127.0.0.1, where the proxy connects. One on `::` does too.
fn reaches((address, port): (IpAddr, u16), wanted: u16) -> bool {
    let answers = match address {
        IpAddr::V4(address) => address.is_unspecified() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unspecified(),
    };
    answers && port == wanted
}

/// Waits, in the network namespace that this process is in, until something
/// listens where a proxy would connect. What ends the waiting otherwise is systemd.
///
/// # Errors
/// The kernel's list of sockets cannot be read.
pub fn await_listener(port: u16) -> io::Result<()> {
    let begun = Instant::now();
    let mut pause = LOOK_FIRST;
    while !sockets::listening(std::process::id())?.iter().any(|place| reaches(*place, port)) {
        thread::sleep(pause);
        pause = next_pause(pause, begun.elapsed());
    }
    Ok(())
}

/// The wait after this one, when a listener has been waited for so long: short
/// at first, then longer, because a service may be down for days.
fn next_pause(pause: Duration, waited: Duration) -> Duration {
    let longest = match waited {
        waited if waited < LOOK_OFTEN.0 => LOOK_OFTEN.1,
        waited if waited < AWAITED_OFTEN => LOOK_LONGEST / 5,
        _ => AWAIT_LONGEST,
    };
    (pause * 5 / 4).min(longest)
}

fn places(listens: &[(IpAddr, u16)]) -> String {
    let places: Vec<String> =
        listens.iter().take(5).map(|(address, port)| std::net::SocketAddr::new(*address, *port).to_string()).collect();
    places.join(", ")
}

fn too_late(watch: &Watch<'_>, state: &State, listens: &[(IpAddr, u16)]) -> Unhealthy {
    let ServiceSpec { name, health, .. } = watch.spec;
    let within = format!("within {} ms", health.within_ms);
    let unhealthy = |rule, message, hint: Option<&str>| Unhealthy {
        service: name.clone(),
        rule,
        message,
        hint: hint.map(str::to_owned),
    };
    let Some(port) = watch.spec.port.filter(|_| !matches!(health.check, HealthCheck::StaysUp)) else {
        let message = format!("service `{name}` was not running for one second {within}");
        return unhealthy("timeout", message, Some("raise `health.within`"));
    };
    if listens.iter().any(|place| reaches(*place, port)) {
        let answer = state.last_answer.clone().unwrap_or_else(|| "it did not answer yet".into());
        let message = format!("service `{name}` listens on port {port}, but was not healthy {within}: {answer}");
        return unhealthy("http", message, Some("see its log; or change `health.http` or `health.within`"));
    }
    if listens.is_empty() {
        let message = format!("service `{name}` runs, but listens on no port {within}; the manifest says {port}");
        return unhealthy("port", message, Some("see its log; or raise `health.within`"));
    }
    let message = format!("service `{name}` listens on {}; the manifest says port {port}", places(listens));
    unhealthy("port", message, Some("make both the same; the app must listen on 127.0.0.1 or on all addresses"))
}

const PROPERTIES: &str = "ActiveState,Result,ExecMainCode,ExecMainStatus,LoadState";

/// Whether a unit's main process has come and gone.
fn has_ended(unit: &str) -> bool {
    let shown = systemd::show(&[unit], PROPERTIES).unwrap_or_default();
    let of = |key| shown.get(unit).and_then(|properties| properties.get(key)).map_or("", String::as_str);
    of("ActiveState") == "failed"
        || !["", "0"].contains(&of("ExecMainCode"))
        || !["", "success"].contains(&of("Result"))
}

fn ended(watch: &Watch<'_>) -> Unhealthy {
    let unit = watch.names.service.as_str();
    let shown = systemd::show(&[unit], PROPERTIES).unwrap_or_default();
    let how = shown.get(unit).map_or_else(|| "it ended".into(), how_it_ended);
    Unhealthy {
        service: watch.spec.name.clone(),
        rule: "exited",
        message: format!("service `{}` did not stay up: {how}", watch.spec.name),
        hint: Some("see its log".into()),
    }
}

/// Which service a failed `systemctl start` was about.
fn not_started(watches: &[Watch<'_>], states: &[State], said: &str) -> Unhealthy {
    let units: Vec<&str> = watches.iter().map(|watch| watch.names.service.as_str()).collect();
    let shown = systemd::show(&units, PROPERTIES).unwrap_or_default();
    let is_bad = |watch: &&Watch<'_>| {
        let bad = |properties: &BTreeMap<String, String>| {
            properties.get("Result").is_some_and(|result| result != "success")
                || properties.get("ActiveState").is_some_and(|state| state != "active" && state != "activating")
        };
        shown.get(&watch.names.service).is_some_and(bad)
    };
    let found = watches.iter().find(is_bad);
    let first = watches.iter().zip(states).find(|(_, state)| !state.healthy).map(|(watch, _)| watch);
    let Some(watch) = found.or(first).or(watches.first()) else {
        return Unhealthy {
            service: "none".parse().expect("a plain word is a name"),
            rule: "start",
            message: format!("systemd: {said}"),
            hint: None,
        };
    };
    let how = shown.get(&watch.names.service).and_then(why_not_started);
    let how = how.unwrap_or_else(|| format!("systemd: {said}"));
    Unhealthy {
        service: watch.spec.name.clone(),
        rule: "start",
        message: format!("service `{}` did not start: {how}", watch.spec.name),
        hint: None,
    }
}

/// Why a start failed, as far as systemd's properties of the service tell.
fn why_not_started(properties: &BTreeMap<String, String>) -> Option<String> {
    let get = |key: &str| properties.get(key).map_or("", String::as_str);
    if !matches!(get("ExecMainCode"), "" | "0") {
        return Some(how_it_ended(properties));
    }
    let why = match get("Result") {
        "" | "success" => return None,
        "protocol" => "systemd lost sight of its process before it was up",
        "resources" => "the node had no resources for it, or something that it needs is absent",
        "timeout" => "it took too long",
        "oom-kill" => "it ran out of memory and was killed",
        "start-limit-hit" => "it was started too often",
        other => return Some(format!("systemd gives the result `{other}` and no more")),
    };
    Some(why.to_owned())
}

/// How a service's main process ended, from systemd's properties.
#[must_use]
pub fn how_it_ended(properties: &BTreeMap<String, String>) -> String {
    let get = |key: &str| properties.get(key).map_or("", String::as_str);
    if get("Result") == "oom-kill" {
        return "it ran out of memory and was killed".into();
    }
    match (get("ExecMainCode"), get("ExecMainStatus")) {
        ("1", "200") => "its working directory does not exist in the image (status 200)".into(),
        ("1", "203") => {
            "its program cannot be executed: absent from the image, or for another platform (status 203)".into()
        }
        ("1", "226") => "its sandbox could not be made (status 226)".into(),
        ("1", status) => format!("it exited with status {status}"),
        ("2", signal) => format!("it was killed by signal {signal}"),
        ("3", signal) => format!("it crashed with signal {signal}"),
        _ => "it is not running".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_proxy_can_reach() {
        for (address, port, expected) in [
            ("127.0.0.1", 3000, true),
            ("0.0.0.0", 3000, true),
            ("::", 3000, true),
            ("::1", 3000, false),
            ("10.0.0.1", 3000, false),
            ("127.0.0.1", 3001, false),
        ] {
            assert_eq!(reaches((address.parse().unwrap(), port), 3000), expected, "{address} {port}");
        }
    }

    #[test]
    fn endings() {
        let check = |result: &str, code: &str, status: &str, words: &str| {
            let properties = [("Result", result), ("ExecMainCode", code), ("ExecMainStatus", status)]
                .map(|(k, v)| (k.into(), v.into()));
            let text = how_it_ended(&properties.into());
            assert!(text.contains(words), "{text}");
        };
        check("exit-code", "1", "3", "status 3");
        check("exit-code", "1", "203", "cannot be executed");
        check("signal", "2", "9", "signal 9");
        check("oom-kill", "2", "9", "memory");
        check("success", "0", "0", "not running");
    }

    #[test]
    fn starts_that_failed() {
        let why = |result: &str, code: &str| {
            let properties = [("Result", result), ("ExecMainCode", code), ("ExecMainStatus", "3")]
                .map(|(k, v)| (k.into(), v.into()));
            why_not_started(&properties.into())
        };
        assert!(why("protocol", "0").unwrap().contains("lost sight"));
        assert!(why("resources", "0").unwrap().contains("no resources"));
        assert!(why("exec-condition", "0").unwrap().contains("`exec-condition`"));
        assert!(why("exit-code", "1").unwrap().contains("status 3"));
        assert_eq!(why("success", "0"), None);
    }

    #[test]
    fn a_listener_is_waited_for_ever_more_slowly() {
        let mut pause = LOOK_FIRST;
        for _ in 0..100 {
            pause = next_pause(pause, Duration::from_secs(1));
        }
        assert_eq!(pause, Duration::from_millis(5));
        for _ in 0..100 {
            pause = next_pause(pause, Duration::from_secs(5));
        }
        assert_eq!(pause, Duration::from_millis(20));
        for _ in 0..100 {
            pause = next_pause(pause, Duration::from_secs(60));
        }
        assert_eq!(pause, Duration::from_secs(1));
    }

    fn spec(check: HealthCheck) -> ServiceSpec {
        ServiceSpec {
            port: Some(3000),
            health: bulkhead_core::order::Health { check, within_ms: 700 },
            ..ServiceSpec::new("web".parse().unwrap(), vec!["node".into()])
        }
    }

    #[test]
    fn the_reason_names_what_was_seen() {
        let spec = spec(HealthCheck::Http { path: "/".into() });
        let watch =
            Watch { spec: &spec, names: Names::new(&"a".parse().unwrap(), &spec.name, 1), socket: PathBuf::new() };
        let state = State {
            started: None,
            healthy: false,
            asking: true,
            ask_after: UNSEEN,
            last_answer: Some("GET / answered 500".into()),
        };
        let check = |listens: &[(&str, u16)], rule: &str, words: &str| {
            let listens: Vec<_> = listens.iter().map(|(address, port)| (address.parse().unwrap(), *port)).collect();
            let unhealthy = too_late(&watch, &state, &listens);
            assert_eq!(unhealthy.rule, rule);
            assert!(unhealthy.message.contains(words), "{}", unhealthy.message);
        };
        check(&[], "port", "listens on no port within 700 ms; the manifest says 3000");
        check(&[("127.0.0.1", 3001)], "port", "listens on 127.0.0.1:3001; the manifest says port 3000");
        check(&[("::1", 3000)], "port", "listens on [::1]:3000; the manifest says port 3000");
        check(&[("0.0.0.0", 3000)], "http", "GET / answered 500");
    }
}
