//! The local fleet: nodes on this machine that are real systems, each a booted
//! systemd with its own journald, OpenSSH and agent, in `systemd-nspawn`.
//!
//! ```text
//! STATE/lock                 held while anything is changed
//! STATE/fleet.json           fleet, tag, network
//! STATE/nodes/NODE/node.json name, environment, host part of its address
//! STATE/nodes/NODE/run.json  the machine's process, while it runs
//! STATE/nodes/NODE/console   what the machine printed since it was started
//! STATE/nodes/NODE/root/     its tree; all of a node's data
//! STATE/machines/            stock machines, which are no nodes yet: local/stock.rs
//! CACHE/roots/SUITE-HASH/    a pristine system, by the recipe that made it
//!
//! local/pristine.rs  makes and copies pristine systems
//! local/network.rs   the bridge, and which /24 is free
//! local/stock.rs     machines as a provider sells them
//! local/machine.rs   starting, finding and ending one machine
//! local/tools.rs     programs of this machine that are needed
//! ```
//!
//! Invariants:
//! - What runs is found again by process id, start time and boot id together:
//!   a process id that was given to something else is never signalled.
//! - The tag, made from the state directory's path, is in the name of every
//!   machine, bridge and control group, so that fleets do not meet.
//! - A machine that ends takes its network interfaces, mounts and processes
//!   with it; the bridge goes with the last one.
//! - A node's data stays until [`Local::destroy`].

mod machine;
mod network;
mod pristine;
mod stock;
mod tools;

use bulkhead_core::{
    EnvironmentName, FleetName, NodeName,
    digest::{hex, sha256},
    node::NodeConfig,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use machine::Machine;
use network::Subnet;
pub use pristine::Suite;
use pristine::remove_tree;
pub use stock::StockMachine;
pub use tools::{Tool, find_agent, missing_tools};

/// The most nodes: a /24 less its two reserved addresses and the bridge's own.
const NODES_MAX: usize = 253;
/// How long a node may take until its sshd answers. A boot takes some two seconds; a loaded machine many more.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// How long a node may take to power off before it is ended by force.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// There while a node is given back, in its tree.
const DISCHARGING: &str = "var/lib/bulkhead/discharging";
/// The agent's binary, in its tree.
const AGENT: &str = "usr/lib/bulkhead/bulkhead-agent";
/// A node's public host key, in its tree.
const HOST_KEY: &str = "etc/bulkhead/ssh_host_ed25519_key.pub";
/// Where pristine systems are kept unless [`Local::cache`] says otherwise.
const CACHE: &str = "/var/cache/bulkhead";

/// A node that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name.
    pub name: NodeName,
    /// Its environment.
    pub environment: EnvironmentName,
}

/// A policy as it was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPolicy {
    /// Its exact text.
    pub policy: String,
    /// Armoured SSHSIG signatures over the text's bytes.
    pub signatures: Vec<String>,
}

/// A node of the local fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalNode {
    /// Its name.
    pub name: NodeName,
    /// Its environment.
    pub environment: EnvironmentName,
    /// Its address; sshd answers on port 22.
    pub address: Ipv4Addr,
    /// Its public host key, `ssh-ed25519 AAAA…`; absent once it was released: then it is a stock machine.
    pub host_key: Option<String>,
    /// The machine's name for systemd-nspawn.
    pub machine: String,
    /// Its process 1 as this machine sees it; absent while it does not run.
    pub leader: Option<u32>,
    /// Its tree on this machine.
    pub root: PathBuf,
}

/// A step of [`Local::up`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A pristine system is being made; takes half a minute and Debian's mirrors.
    Pristine {
        /// Of this suite.
        suite: Suite,
    },
    /// The node's tree is being copied.
    Copying(NodeName),
    /// The node was laid out.
    Installed {
        /// Which.
        node: NodeName,
        /// How many things were changed.
        changes: usize,
    },
    /// The node's sshd answers.
    Ready {
        /// Which.
        node: NodeName,
        /// Since its machine was started.
        after: Duration,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pristine { suite } => write!(f, "making a Debian {suite} system with mmdebstrap; kept for next time"),
            Self::Copying(node) => write!(f, "{node}: copying the system"),
            Self::Installed { node, changes } => write!(f, "{node}: installed ({changes} changes)"),
            Self::Ready { node, after } => write!(f, "{node}: answers after {:.1} s", after.as_secs_f64()),
        }
    }
}

/// Why the local fleet could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Only root may boot machines.
    #[error("a local fleet needs root: it boots machines and makes a network bridge")]
    NotRoot,
    /// Programs are missing.
    #[error("missing here: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    MissingTools(Vec<Tool>),
    /// The agent's static binary was not found.
    #[error("no static bulkhead-agent binary for the nodes; looked at {}", .looked_at.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoAgent {
        /// Where.
        looked_at: Vec<PathBuf>,
    },
    /// The state directory is another fleet's.
    #[error("{path} holds the local fleet `{found}`, not `{wanted}`")]
    OtherFleet {
        /// The state directory.
        path: PathBuf,
        /// Whose it is.
        found: FleetName,
        /// Whose it was taken for.
        wanted: FleetName,
    },
    /// No such node.
    #[error("the local fleet has no node `{name}`, which machines of pools are not; it has {known}")]
    UnknownNode {
        /// The name asked for.
        name: NodeName,
        /// Those there are.
        known: String,
    },
    /// Two specifications with one name.
    #[error("the node `{name}` is asked for twice")]
    TwiceNamed {
        /// Which.
        name: NodeName,
    },
    /// It exists in another environment.
    #[error("the local node `{name}` is in environment `{found}`, not `{wanted}`")]
    OtherEnvironment {
        /// Which node.
        name: NodeName,
        /// Where it is.
        found: EnvironmentName,
        /// Where it was wanted.
        wanted: EnvironmentName,
    },
    /// The node does not run.
    #[error("the local node `{name}` does not run")]
    NotRunning {
        /// Which.
        name: NodeName,
    },
    /// The state directory's file system cannot carry nodes.
    #[error("{path} is on an overlay file system, on which nodes cannot mount images; put the state on ext4 or xfs")]
    Overlay {
        /// The state directory.
        path: PathBuf,
    },
    /// Every /24 of 10.86.0.0/16 is taken, or there are too many nodes.
    #[error("no address is left: {what}")]
    NoAddress {
        /// What is used up.
        what: &'static str,
    },
    /// A stock machine's name has no host name in front.
    #[error(
        "`{name}` is no name for a machine: it begins with a host name of at most 40 small letters, digits and hyphens"
    )]
    MachineName {
        /// The name.
        name: String,
    },
    /// What a stock machine is told at its first boot cannot be understood.
    #[error("a stock machine made here understands only the user data that brings a one-time host key")]
    UserData,
    /// A file operation failed.
    #[error("cannot {operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A state file cannot be understood.
    #[error("cannot understand {path}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A program could not be run.
    #[error("cannot run `{program}`")]
    Run {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{program}` failed: {message}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        message: String,
    },
    /// A process could not be signalled.
    #[error("cannot signal process {pid} of the machine `{machine}`")]
    Signal {
        /// Which process.
        pid: u32,
        /// Of which machine.
        machine: String,
        /// Why.
        source: io::Error,
    },
    /// A machine did not come up.
    #[error("the local node `{name}` {what}; it printed: {console}")]
    NotReady {
        /// Which.
        name: NodeName,
        /// What happened.
        what: &'static str,
        /// The end of its console.
        console: String,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LocalError {
    let path = path.to_owned();
    move |source| LocalError::File { operation, path, source }
}

/// `fleet.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FleetState {
    fleet: FleetName,
    tag: String,
    subnet: Subnet,
}

/// `node.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct NodeState {
    name: NodeName,
    environment: EnvironmentName,
    suite: Suite,
    /// The last byte of its address.
    host: u8,
}

/// A local fleet.
#[derive(Debug)]
pub struct Local {
    directory: PathBuf,
    cache: PathBuf,
    suite: Suite,
    state: FleetState,
}

impl Local {
    /// The local fleet whose state is in this directory; made where there is none.
    ///
    /// # Errors
    /// Where the directory cannot be used, or is another fleet's.
    pub fn open(directory: impl Into<PathBuf>, fleet: FleetName) -> Result<Self, LocalError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LocalError::NotRoot);
        }
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(failed("make the directory", &directory))?;
        let directory = fs::canonicalize(&directory).map_err(failed("find", &directory))?;
        let _lock = lock(&directory)?;
        let path = directory.join("fleet.json");
        let state = match read_state::<FleetState>(&path)? {
            Some(state) if state.fleet != fleet => {
                return Err(LocalError::OtherFleet { path: directory, found: state.fleet, wanted: fleet });
            }
            Some(state) => state,
            None => {
                let tag = hex(&sha256(directory.as_os_str().as_encoded_bytes()))[..6].to_owned();
                let state = FleetState { fleet, tag, subnet: Subnet::default() };
                write_state(&path, &state)?;
                state
            }
        };
        Ok(Self { directory, cache: CACHE.into(), suite: Suite::default(), state })
    }

    /// Keeps pristine systems in another directory.
    #[must_use]
    pub fn cache(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cache = directory.into();
        self
    }

    /// Makes new nodes of another suite.
    #[must_use]
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// Makes these nodes run, all at once, with this policy and this agent. Nodes
    /// that run are brought up to date; nodes that are not named are left as they are,
    /// and so are those that were released. Where one fails, those that this call started are ended again.
    ///
    /// # Errors
    /// The first failure.
    pub fn up(
        &mut self,
        specs: &[NodeSpec],
        policy: &SignedPolicy,
        agent: &Path,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<LocalNode>, LocalError> {
        self.check_host()?;
        let _lock = lock(&self.directory)?;
        let states = self.assign(specs)?;
        let pristine = if states.iter().all(|state| self.root(&state.name).is_dir()) {
            None
        } else {
            Some(pristine::ensure(&self.cache, self.suite, progress)?)
        };
        self.ensure_network()?;

        let this = &*self;
        let results: Vec<Result<(LocalNode, bool), LocalError>> = thread::scope(|scope| {
            let threads: Vec<_> = states
                .iter()
                .map(|state| {
                    let pristine = pristine.as_deref();
                    scope.spawn(move || this.raise(state, policy, agent, pristine, progress))
                })
                .collect();
            threads.into_iter().map(join).collect()
        });
        let started: Vec<&NodeState> = states
            .iter()
            .zip(&results)
            .filter(|(_, result)| matches!(result, Ok((_, true))))
            .map(|(state, _)| state)
            .collect();
        let result = results.into_iter().map(|result| result.map(|(node, _)| node)).collect();
        if Result::is_err(&result) {
            // The first failure is what the caller must hear; cleaning up does what it can.
            for state in started {
                drop(self.machine(state).kill());
            }
            drop(self.drop_network_when_idle());
        }
        result
    }

    /// All nodes, by name.
    ///
    /// # Errors
    /// Where the state cannot be read.
    pub fn ls(&self) -> Result<Vec<LocalNode>, LocalError> {
        self.states()?.iter().map(|state| self.describe(state)).collect()
    }

    /// Powers nodes off and waits; all of them where none is named. Their data stays.
    ///
    /// # Errors
    /// The first failure; the other nodes were powered off all the same.
    pub fn down(&self, names: &[NodeName]) -> Result<(), LocalError> {
        let _lock = lock(&self.directory)?;
        self.stop(names)
    }

    /// Powers nodes off and removes them with their data; the others stay as they are.
    ///
    /// # Errors
    /// There is no such node, or what could not be ended or removed.
    pub fn remove(&self, names: &[NodeName]) -> Result<(), LocalError> {
        if names.is_empty() {
            return Ok(());
        }
        let _lock = lock(&self.directory)?;
        self.stop(names)?;
        for name in names {
            let directory = self.nodes().join(name.as_str());
            match fs::remove_dir_all(&directory) {
                // Named twice.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(failed("remove", &directory))?,
            }
        }
        Ok(())
    }

    /// Powers all nodes off and removes all that the state directory holds, stock machines as well, and the directory.
    ///
    /// # Errors
    /// What could not be ended or removed.
    pub fn destroy(self) -> Result<(), LocalError> {
        let lock = self.without_stock()?;
        self.stop(&[])?;
        fs::remove_dir_all(&self.directory).map_err(failed("remove", &self.directory))?;
        drop(lock);
        Ok(())
    }

    /// Cuts a node's power: every process of its machine is killed at once. The
    /// kernel's page cache survives that, so it tests what was done, not what
    /// was made durable.
    ///
    /// # Errors
    /// Where it does not run or cannot be killed.
    pub fn kill(&self, name: &NodeName) -> Result<(), LocalError> {
        let _lock = lock(&self.directory)?;
        let state = self.state_of(name)?;
        let machine = self.machine(&state);
        if machine.find()?.is_none() {
            return Err(LocalError::NotRunning { name: name.clone() });
        }
        machine.kill()?;
        self.drop_network_when_idle()
    }

    /// Starts a node that is down, as it was left, and waits until its sshd answers.
    ///
    /// # Errors
    /// Where it does not come up; it is ended then.
    pub fn start(&mut self, name: &NodeName) -> Result<LocalNode, LocalError> {
        let _lock = lock(&self.directory)?;
        let state = self.state_of(name)?;
        self.ensure_network()?;
        let result = self.boot(&state, &self.machine(&state)).and_then(|_| self.describe(&state));
        if result.is_err() {
            drop(self.drop_network_when_idle());
        }
        result
    }

    /// A command that runs inside a node as root, with nothing of this
    /// process's environment. For tests and for looking after one's own machine;
    /// it does not go through the gate.
    ///
    /// # Errors
    /// Where the node does not run.
    pub fn command(&self, name: &NodeName, program: &str) -> Result<Command, LocalError> {
        let state = self.state_of(name)?;
        let leader = self.machine(&state).leader()?.ok_or_else(|| LocalError::NotRunning { name: name.clone() })?;
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &leader.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"])
            .args(["--", program])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8");
        Ok(command)
    }

    /// Runs a program inside a node as root and waits. See [`Local::command`].
    ///
    /// # Errors
    /// Where the node does not run or the program cannot be started.
    pub fn exec(&self, name: &NodeName, program: &str, arguments: &[&str]) -> Result<Output, LocalError> {
        self.command(name, program)?
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| LocalError::Run { program: program.to_owned(), source })
    }

    /// Whether machines can be booted here.
    fn check_host(&self) -> Result<(), LocalError> {
        let missing = missing_tools();
        if !missing.is_empty() {
            return Err(LocalError::MissingTools(missing));
        }
        if machine::is_overlay(&self.directory)? {
            return Err(LocalError::Overlay { path: self.directory.clone() });
        }
        Ok(())
    }

    // ---- state ----

    fn nodes(&self) -> PathBuf {
        self.directory.join("nodes")
    }

    fn root(&self, name: &NodeName) -> PathBuf {
        self.nodes().join(name.as_str()).join("root")
    }

    fn states(&self) -> Result<Vec<NodeState>, LocalError> {
        let nodes = self.nodes();
        let entries = match fs::read_dir(&nodes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &nodes)(error)),
        };
        let mut states = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("list", &nodes))?.path();
            // A node without a tree was never finished.
            if path.join("root").is_dir() {
                states.extend(read_state::<NodeState>(&path.join("node.json"))?);
            }
        }
        states.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(states)
    }

    fn state_of(&self, name: &NodeName) -> Result<NodeState, LocalError> {
        let states = self.states()?;
        let known = states.iter().map(|state| state.name.as_str()).collect::<Vec<_>>().join(", ");
        states
            .into_iter()
            .find(|state| state.name == *name)
            .ok_or_else(|| LocalError::UnknownNode { name: name.clone(), known })
    }

    /// The states of the wanted nodes, with free addresses for new ones.
    fn assign(&self, specs: &[NodeSpec]) -> Result<Vec<NodeState>, LocalError> {
        let known = self.states()?;
        let mut taken = self.stock_hosts()?;
        taken.extend(known.iter().map(|state| state.host));
        let mut named = BTreeSet::new();
        let mut states = Vec::new();
        for spec in specs {
            if !named.insert(&spec.name) {
                return Err(LocalError::TwiceNamed { name: spec.name.clone() });
            }
            if let Some(state) = known.iter().find(|state| state.name == spec.name) {
                if state.environment != spec.environment {
                    return Err(LocalError::OtherEnvironment {
                        name: spec.name.clone(),
                        found: state.environment.clone(),
                        wanted: spec.environment.clone(),
                    });
                }
                states.push(state.clone());
                continue;
            }
            let host = (2..=254)
                .find(|host| !taken.contains(host))
                .filter(|_| taken.len() < NODES_MAX)
                .ok_or(LocalError::NoAddress { what: "the network has 253 nodes" })?;
            taken.insert(host);
            states.push(NodeState {
                name: spec.name.clone(),
                environment: spec.environment.clone(),
                suite: self.suite,
                host,
            });
        }
        Ok(states)
    }

    fn machine(&self, state: &NodeState) -> Machine {
        Machine {
            name: format!("bulkhead-{}-{}", self.state.tag, state.name),
            hostname: state.name.to_string(),
            directory: self.nodes().join(state.name.as_str()),
            bridge: self.bridge(),
        }
    }

    fn bridge(&self) -> String {
        format!("bulk{}", self.state.tag)
    }

    fn describe(&self, state: &NodeState) -> Result<LocalNode, LocalError> {
        let root = self.root(&state.name);
        let machine = self.machine(state);
        let host_key = if self.was_released(state) {
            None
        } else {
            let path = root.join(HOST_KEY);
            let line = fs::read_to_string(&path).map_err(failed("read", &path))?;
            Some(line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        };
        Ok(LocalNode {
            name: state.name.clone(),
            environment: state.environment.clone(),
            address: self.state.subnet.host(state.host),
            host_key,
            leader: machine.leader()?,
            machine: machine.name,
            root,
        })
    }

    /// Whether it was a node once and is a stock machine now, or on its way there: it was started, which no machine is
    /// before it is laid out, and is being given back or has no agent any more. The agent goes before the mark that it
    /// is being given back does.
    fn was_released(&self, state: &NodeState) -> bool {
        let root = self.root(&state.name);
        let is_leaving = root.join(DISCHARGING).exists() || !root.join(AGENT).exists();
        is_leaving && self.machine(state).was_started()
    }

    // ---- network ----

    fn ensure_network(&mut self) -> Result<(), LocalError> {
        self.state.subnet = self.network()?;
        Ok(())
    }

    /// Makes the bridge, with another network than last time where that one is taken by now. Which it had last time
    /// another process may have decided.
    fn network(&self) -> Result<Subnet, LocalError> {
        let path = self.directory.join("fleet.json");
        let known = read_state::<FleetState>(&path)?.unwrap_or_else(|| self.state.clone());
        let subnet = network::ensure(&self.bridge(), known.subnet)?;
        if subnet != known.subnet {
            write_state(&path, &FleetState { subnet, ..known })?;
        }
        Ok(subnet)
    }

    fn drop_network_when_idle(&self) -> Result<(), LocalError> {
        for state in self.states()? {
            if self.machine(&state).find()?.is_some() {
                return Ok(());
            }
        }
        if self.is_stock_running()? {
            return Ok(());
        }
        network::remove(&self.bridge())
    }

    // ---- nodes ----

    /// Makes, lays out and boots one node; whether it was started for that. Undoes its own part where it fails.
    fn raise(
        &self,
        state: &NodeState,
        policy: &SignedPolicy,
        agent: &Path,
        pristine: Option<&Path>,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<(LocalNode, bool), LocalError> {
        if self.was_released(state) {
            return Ok((self.describe(state)?, false));
        }
        let machine = self.machine(state);
        let root = self.root(&state.name);
        let new = !root.is_dir();
        let result = (|| {
            if let (true, Some(pristine)) = (new, pristine) {
                progress(Progress::Copying(state.name.clone()));
                fs::create_dir_all(&machine.directory).map_err(failed("make the directory", &machine.directory))?;
                write_state(&machine.directory.join("node.json"), state)?;
                pristine::copy(pristine, &root, state.name.as_str(), None)?;
            }
            let config = NodeConfig {
                fleet: self.state.fleet.clone(),
                node: state.name.clone(),
                environment: state.environment.clone(),
                pool: None,
                policy: policy.policy.clone(),
                signatures: policy.signatures.clone(),
                host_key: None,
            };
            let running = machine.find()?.is_some();
            let changes =
                if running { self.install_live(state, &config, agent)? } else { self.install(state, &config, agent)? };
            progress(Progress::Installed { node: state.name.clone(), changes });
            if !running {
                let after = self.boot(state, &machine)?;
                progress(Progress::Ready { node: state.name.clone(), after });
            }
            Ok((self.describe(state)?, !running))
        })();
        if result.is_err() && new {
            // A node that never came up holds no data; the next try starts from nothing.
            drop(fs::remove_dir_all(&machine.directory));
        }
        result
    }

    /// Starts a machine and waits for its sshd. Returns how long that took; ends the machine where it fails.
    fn boot(&self, state: &NodeState, machine: &Machine) -> Result<Duration, LocalError> {
        if machine.find()?.is_some() {
            return Ok(Duration::ZERO);
        }
        let begin = Instant::now();
        let address = self.state.subnet.host(state.host);
        pristine::configure_network(&self.root(&state.name), address, self.state.subnet.gateway())?;
        let process = machine.start()?;
        while !network::answers_as_ssh(address) {
            let what = if !process.is_alive() {
                "ended while it booted"
            } else if begin.elapsed() > READY_WITHIN {
                "has no sshd that answers, 90 s after it was started"
            } else {
                continue;
            };
            let console = machine.console_tail();
            machine.kill()?;
            return Err(LocalError::NotReady { name: state.name.clone(), what, console });
        }
        Ok(begin.elapsed())
    }

    /// Lays out a tree that does not run, with the agent's own `install`.
    fn install(&self, state: &NodeState, config: &NodeConfig, agent: &Path) -> Result<usize, LocalError> {
        let mut command = Command::new(agent);
        command.arg("install").arg("--root").arg(self.root(&state.name));
        run_install(command, config)
    }

    /// Lays out a running node anew, from inside it, as an update would.
    fn install_live(&self, state: &NodeState, config: &NodeConfig, agent: &Path) -> Result<usize, LocalError> {
        const NEXT: &str = "usr/lib/bulkhead/bulkhead-agent.next";
        let next = self.root(&state.name).join(NEXT);
        fs::copy(agent, &next).map_err(failed("copy the agent to", &next))?;
        let mut command = self.command(&state.name, &format!("/{NEXT}"))?;
        command.arg("install");
        let result = run_install(command, config);
        fs::remove_file(&next).map_err(failed("remove", &next))?;
        result
    }

    fn stop(&self, names: &[NodeName]) -> Result<(), LocalError> {
        for name in names {
            self.state_of(name)?;
        }
        let states = self.states()?;
        let results: Vec<Result<(), LocalError>> = thread::scope(|scope| {
            let threads: Vec<_> = states
                .iter()
                .filter(|state| names.is_empty() || names.contains(&state.name))
                .map(|state| scope.spawn(|| self.machine(state).stop(STOP_WITHIN)))
                .collect();
            threads.into_iter().map(join).collect()
        });
        self.drop_network_when_idle()?;
        results.into_iter().collect()
    }
}

/// A thread's result; its panic goes on in this one.
fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What of the agent's report is of interest here.
#[derive(Deserialize)]
struct InstallReport {
    changes: Vec<String>,
}

fn run_install(mut command: Command, config: &NodeConfig) -> Result<usize, LocalError> {
    let program = "bulkhead-agent install";
    let cannot_run = |source| LocalError::Run { program: program.to_owned(), source };
    let input = serde_json::to_vec(config).expect("names and text always serialise");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(cannot_run)?;
    // Where it does not read its input, what it says on standard error is the reason.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&input));
    let output = child.wait_with_output().map_err(cannot_run)?;
    if !output.status.success() {
        return Err(tools::failure(program, &output));
    }
    written.map_err(cannot_run)?;
    serde_json::from_slice::<InstallReport>(&output.stdout)
        .map(|report| report.changes.len())
        .map_err(|error| LocalError::Program { program: program.to_owned(), message: error.to_string() })
}

/// An exclusive lock on a directory, held until dropped.
fn lock(directory: &Path) -> Result<File, LocalError> {
    fs::create_dir_all(directory).map_err(failed("make the directory", directory))?;
    let path = directory.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
    file.lock().map_err(failed("lock", &path))?;
    Ok(file)
}

fn read_state<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LocalError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| LocalError::Unreadable { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Temporary file, fsync, rename, fsync of the directory.
fn write_state<T: Serialize>(path: &Path, state: &T) -> Result<(), LocalError> {
    let bytes = serde_json::to_vec_pretty(state).expect("state is plain data");
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(failed("write", path))
}
