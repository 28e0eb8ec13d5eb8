//! A stock machine is adopted and lives as a node: one virtual machine, from its first boot to its release.
//!
//! The tests run in order, on one machine, which the first of them that is wanted adopts; any of them can be asked for
//! alone. It is a lane of its own (`cargo xtask qemu`), because without KVM it takes minutes. The harness is
//! `libtest-mimic`, so that the machine is switched off after the last test, whatever came of it.

mod adopted;
mod adopting;
mod lives;

use anyhow::{Context as _, Result, ensure};
use bulkhead_fleet::bootstrap::OneTimeKey;
use bulkhead_testkit::{
    qemu::{self, ADDRESS, Machine, Stock},
    world::{PATIENCE, Ran, World},
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    fs,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

type Test = fn(&mut Lane) -> Result<()>;

/// The machine and the fleet that it is a node of.
struct Lane {
    world: World,
    machine: Machine,
    one_time: OneTimeKey,
    adopted: bool,
}

/// The node's name.
const NODE: &str = "vm-1";

impl Lane {
    /// A stock machine that has booted, known by a one-time host key.
    fn new(stock: &Stock) -> Result<Self> {
        let world = World::without_nodes()?;
        let one_time = OneTimeKey::make()?;
        let authorized = fs::read_to_string(world.key().with_extension("pub"))?;
        let user_data = one_time.user_data(&[authorized.trim().to_owned()]);
        let mut machine = Machine::new(stock, &world.folder().join("vm"), &user_data)?;
        let began = Instant::now();
        machine.start()?;
        machine.await_ssh()?;
        // Later boots are a node's, which has cloud-init switched off; this one's is to be over.
        machine.console("cloud-init status --wait || true")?;
        say(&format!("a stock machine, {:.0} s after it was switched on", began.elapsed().as_secs_f64()));
        Ok(Self { world, machine, one_time, adopted: false })
    }

    fn adopt(&self, words: &[&str]) -> Result<Ran> {
        let machine = format!("root@{ADDRESS}");
        let all = [&["node", "adopt", &machine, "-e", "staging", "--name", NODE], words].concat();
        self.world.run(&self.world.fleet(), &all)
    }

    /// The machine as a node.
    fn ensure_adopted(&mut self) -> Result<()> {
        if !self.adopted {
            let key = self.one_time.host_key().fingerprint().to_owned();
            let began = Instant::now();
            self.adopt(&["--yes", "--host-key", &key, "--one-time-host-key"])?.expect(0)?.says("adopted")?;
            say(&format!("adopted in {:.0} s", began.elapsed().as_secs_f64()));
            self.adopted = true;
        }
        Ok(())
    }

    /// GET through the live socket of a service, asked from the console: status and body.
    fn get(&mut self, app: &str, path: &str) -> Result<(u16, String)> {
        let script = format!(
            r#"python3 - <<'END'
import socket
s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect("/run/bulkhead/live/{app}/web/sock")
s.sendall(b"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
data = b""
while True:
    piece = s.recv(65536)
    if not piece: break
    data += piece
print(data.decode(errors="replace"))
END"#
        );
        let text = self.machine.console(&script)?;
        let text = text.replace('\r', "");
        let (head, body) = text.split_once("\n\n").with_context(|| format!("no answer in {text:?}"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("no status in {head:?}"))?, body.trim().to_owned()))
    }

    /// Waits until `/version` answers, and gives the answer.
    fn served(&mut self, app: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.get(app, "/version") {
                Ok((200, body)) => return Ok(body),
                other => ensure!(Instant::now() < end, "{app} is not served: {other:?}"),
            }
            thread::park_timeout(Duration::from_millis(300));
        }
    }

    /// Waits until something holds of the machine.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Machine) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + 2 * PATIENCE;
        while !holds(&mut self.machine)? {
            ensure!(Instant::now() < end, "in vain: {what}");
            thread::park_timeout(Duration::from_millis(100));
        }
        Ok(())
    }

    /// What `node ls` says of a facility.
    fn facility(&self, name: &str) -> Result<bool> {
        let ran = self.world.run(&self.world.fleet(), &["node", "ls", "-o", "json"])?.expect(0)?;
        let json = ran.json()?;
        json["nodes"][0]["facts"]["facilities"][name]["present"]
            .as_bool()
            .with_context(|| format!("nothing is said of {name}: {ran}"))
    }
}

#[expect(clippy::print_stderr, reason = "how long the parts of a slow lane take is of interest")]
fn say(text: &str) {
    eprintln!("    {text}");
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One machine, in order. Also on this thread, with which QEMU is to end.
    arguments.test_threads = Some(1);
    let wanted = std::env::var("BULKHEAD_QEMU").unwrap_or_default();
    if !matches!(wanted.as_str(), "1" | "keep") {
        return skip("`cargo xtask qemu` runs them");
    }
    // Before the namespace, in which there is no mirror.
    let begun = Stock::ensure().and_then(|stock| qemu::enter_namespace().map(|()| stock));
    let stock = match begun {
        Ok(stock) => stock,
        Err(error) => {
            say(&format!("no machine: {error:#}"));
            return ExitCode::FAILURE;
        }
    };
    let lane: Arc<Mutex<Option<Result<Lane>>>> = Arc::default();
    let trial = |name: String, test: Test| {
        let (lane, stock) = (Arc::clone(&lane), stock.clone());
        Trial::test(name, move || {
            let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            let began = Instant::now();
            let result = match lane.get_or_insert_with(|| Lane::new(&stock)) {
                Ok(lane) => test(lane),
                // It would not come about by trying again, for each of the tests.
                Err(error) => Err(anyhow::anyhow!("there is no machine: {error:#}")),
            };
            say(&format!("{:.0} s", began.elapsed().as_secs_f64()));
            if let Err(error) = &result {
                // At once: whoever watches a slow lane need not wait for its end.
                say(&format!("{error:#}"));
            }
            result.map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    let tests = [("adopting", adopting::TESTS), ("adopted", adopted::TESTS), ("lives", lives::TESTS)];
    let trials = tests.iter().flat_map(|(module, tests)| {
        tests.iter().map(|(name, test)| trial(format!("{module}::{name}"), *test)).collect::<Vec<_>>()
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(Ok(lane)), "keep") = (lane.as_ref(), wanted.as_str()) {
        keep(lane);
    }
    lane.take();
    conclusion.exit_code()
}

/// Leaves the machine on until its process is ended.
fn keep(lane: &Lane) {
    let Some(pid) = lane.machine.pid() else { return };
    say(&format!("the machine stays on; its namespace: nsenter --net --target {pid}"));
    say(&format!("its fleet: {}; key: {}", lane.world.fleet().display(), lane.world.key().display()));
    say(&format!("kill {pid} ends it"));
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        thread::park_timeout(Duration::from_millis(500));
    }
}

#[expect(clippy::print_stderr, reason = "the one line that says why nothing was tested")]
fn skip(why: &str) -> ExitCode {
    eprintln!("tests on a virtual machine skipped: {why}");
    ExitCode::SUCCESS
}
