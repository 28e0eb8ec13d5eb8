//! Bought machines as nodes of the fleet: made nodes, asked, and given granted instances to run.
//!
//! Everything may be interrupted and is taken up by doing it again. What must
//! not be forgotten is on disk before what it is about begins ([`crate::records`]).
//! One moment takes long to get over: a loop that is killed after a machine was
//! laid out and before its host key came back finds neither server that it
//! knows, until the machine gives the stock one back by itself
//! ([`bulkhead_core::node::CONFIRM_WITHIN_S`]).

use crate::{
    durable::FileError,
    enrolment::{Enrolment, EnrolmentError, node_name},
    provided::chain,
    records::{Milestones, NodeRecord, Records, records},
    runner::{Nodes, Start},
    secrets::{self, Sealed},
};
use bulkhead_core::{
    AppName, EnvironmentName, FleetName, NodeName, PoolName, SignedText, Timestamp,
    digest::{hex, sha256},
    fleet::FleetNode,
    grant::Grant,
    node::{NodeConfig, NodeIdentity},
    order::{self, Action, Order, Run},
    policy::Policy,
};
use bulkhead_fleet::{
    Identities, NodeClient, NodeError, Target, Timeouts,
    bootstrap::{self, Architecture, BootstrapError, OneTimeKey},
    config::SshConfig,
    memory::Memory,
    push::{Early, Papers, Payload, Push, PushError, SignedOrder, push_over},
    resolve_as, resolve_machine,
    sign::{SignError, Signer},
};
use bulkhead_provider::Provider;
use bulkhead_scale::{InstanceId, Machine, MachineId, ServerId, Time};
use bulkhead_trust::sealing::SealingKey;
use bulkhead_wire::{ACCOUNT, Failure, FailureKind, NodeStatus, OBSERVE_ACCOUNT, Paper};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::runtime::Handle;

/// From an order's issue to its expiry: time for an upload over a slow line.
const LIFETIME_S: i64 = 3600;
/// How long an order waits for another one of its app: one that this loop sent before it was killed.
const WAIT: Duration = Duration::from_secs(60);
/// Between looks for a machine's address. Providers count requests.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between attempts to log in.
const TRY_EVERY: Duration = Duration::from_millis(250);
/// How long a node that ought to answer is tried: sshd turns connections away when many come at once.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// For one attempt to reach a machine that may still boot: until then nothing at all may answer there.
const REACH_WITHIN: Duration = Duration::from_secs(4);

/// What is granted to this loop for a workload.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The grant as it was signed.
    pub signed: SignedText,
    /// What it says.
    pub grant: Grant,
    /// Statements about its image.
    pub statements: Vec<SignedText>,
    /// The image.
    pub payload: Payload,
    /// The values of its secrets, as they are sealed to the pool.
    pub secrets: Sealed,
}

/// Gives the fleet's policy as it was signed, and its version; read anew each time, for it may change while a loop runs.
/// New nodes enforce it, and it lets this loop's keys connect. The error is a sentence.
pub type ReadPolicy = Box<dyn Fn() -> Result<(SignedText, u64), String> + Send + Sync>;

/// Gives revocations, and the newest heartbeat. Read anew each time; the error is a sentence.
pub type ReadNotices = Box<dyn Fn() -> Result<Vec<(Paper, SignedText)>, String> + Send + Sync>;

/// Where grants are found.
pub trait Grants: Send + Sync {
    /// What is granted for a workload in a pool at this moment.
    ///
    /// # Errors
    /// Nothing is, or it cannot be had; a sentence.
    fn granted(&self, pool: &PoolName, workload: &str) -> Result<Granted, String>;

    /// The same without the image, which it may take long to find; with the sealed values of its secrets.
    ///
    /// # Errors
    /// Nothing is, or it cannot be had; a sentence.
    fn known(&self, pool: &PoolName, workload: &str) -> Result<(Grant, Sealed), String>;

    /// On how many machines of a pool people let anything run: none where nothing is granted.
    ///
    /// # Errors
    /// It cannot be read; a sentence.
    fn machines(&self, pool: &PoolName) -> Result<u32, String>;
}

/// What nodes of a pool are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Their environment.
    pub environment: EnvironmentName,
    /// Who makes the machines, such as `digitalocean`.
    pub provider: String,
    /// Whether they are nodes already, adopted by hand, so that nothing is installed on them.
    pub is_adopted: bool,
}

/// What nodes are made and reached with.
pub struct NodeMeans {
    /// The fleet.
    pub fleet: FleetName,
    /// Its policy.
    pub policy: ReadPolicy,
    /// What nodes are to be brought besides.
    pub notices: ReadNotices,
    /// The keys that this loop connects with.
    pub identities: Identities,
    /// Bounds on waiting.
    pub timeouts: Timeouts,
    /// How hosts are reached.
    pub ssh: SshConfig,
    /// What is remembered of nodes.
    pub memory: Memory,
    /// The scale key, which signs orders.
    pub signer: Signer,
    /// The same key as one that opens what is sealed to pools, or why it is none: then nothing that has secrets starts.
    pub opener: Result<SealingKey, String>,
    /// The agent's static binary.
    pub agent: Arc<[u8]>,
    /// Where records are kept.
    pub directory: PathBuf,
    /// The pools.
    pub pools: BTreeMap<PoolName, PoolSettings>,
    /// Nodes that somebody adopted: those of `fleet.toml`.
    pub adopted: BTreeMap<NodeName, FleetNode>,
    /// Where machines are bought: it says where they are.
    pub provider: Arc<dyn Provider>,
    /// The keys by which new machines are known.
    pub enrolment: Arc<Enrolment>,
    /// What is granted.
    pub grants: Arc<dyn Grants>,
    /// What carries requests to nodes. Calls must not come from its own tasks.
    pub runtime: Handle,
    /// Takes a sentence about what happened.
    pub log: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for NodeMeans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeMeans").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// The fleet's nodes in pools.
#[derive(Debug)]
pub struct FleetNodes {
    means: NodeMeans,
    architecture: Architecture,
    records: Records,
    /// How many machines each pool may have, as it was read last.
    granted: Mutex<BTreeMap<PoolName, u32>>,
    /// The last that was said of each machine and of each instance there.
    said: Mutex<BTreeMap<(MachineId, Option<InstanceId>), String>>,
}

/// Why something did not come about.
#[derive(Debug, thiserror::Error)]
enum NodesError {
    #[error("{0}")]
    Said(String),
    /// It says nothing of the machine, and may be otherwise a moment later.
    #[error("{0}")]
    Later(String),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Push(#[from] PushError),
}

impl NodesError {
    /// Whether the same may come about another time.
    fn may_pass(&self) -> bool {
        match self {
            Self::Bootstrap(error) => !matches!(error, BootstrapError::NotRoot { .. }),
            // A disk that is full, a policy that is being pulled.
            Self::Node(_) | Self::Push(_) | Self::Later(_) | Self::File(_) => true,
            Self::Enrolment(EnrolmentError::File(_)) => true,
            Self::Said(_) | Self::Enrolment(EnrolmentError::Key { .. }) => false,
        }
    }

    /// What the node said, where it said no.
    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Push(PushError::Node(NodeError::Failed { failure, .. }))
            | Self::Node(NodeError::Failed { failure, .. }) => Some(failure),
            _ => None,
        }
    }

    /// Whether the node refused what it was asked, by a rule.
    fn is_refusal(&self) -> bool {
        self.failure().is_some_and(|failure| failure.kind == FailureKind::Refused)
    }

    /// Whether it was tried, and the machine could not or the service did not become healthy there. What a node does not
    /// understand, such as an image that is none, no other node does.
    fn is_of_machine(&self) -> bool {
        self.failure().is_some_and(|failure| matches!(failure.kind, FailureKind::Unhealthy | FailureKind::Node))
    }
}

fn later(what: impl Into<String>) -> NodesError {
    NodesError::Later(what.into())
}

fn said(what: impl Into<String>) -> NodesError {
    NodesError::Said(what.into())
}

/// The pool in a machine's name ([`bulkhead_scale::Names`]).
fn pool_of(name: &str) -> Result<PoolName, NodesError> {
    let pool = node_name(name).rsplitn(3, '-').nth(2).and_then(|pool| pool.parse().ok());
    pool.ok_or_else(|| said(format!("`{name}` is not called as a machine of a pool is")))
}

/// A machine that is to be a node.
struct Joining<'a> {
    machine: &'a Machine,
    settings: &'a PoolSettings,
    identity: NodeIdentity,
}

impl FleetNodes {
    /// Nodes that are made and reached so.
    ///
    /// # Errors
    /// The agent is no program for Linux.
    pub fn new(means: NodeMeans) -> Result<Self, String> {
        let architecture = Architecture::of_elf(&means.agent)
            .ok_or("the agent at hand is not a Linux program for x86_64 or aarch64")?;
        let records = Records::new(&means.directory);
        Ok(Self { means, architecture, records, granted: Mutex::default(), said: Mutex::default() })
    }

    /// Forgets all machines but those whose name as a node ([`bulkhead_scale::Names::node`]) is known: their keys, their
    /// records, and grants of use to none. To be called with all that are not gone before a loop begins: what went while
    /// it was not there, or in the moment when it was killed, is forgotten then.
    ///
    /// # Errors
    /// A file cannot be read or removed.
    pub fn forget(&self, is_known: impl Fn(&str) -> bool) -> Result<(), EnrolmentError> {
        self.means.enrolment.forget(&is_known)?;
        Ok(self.records.forget(&is_known)?)
    }

    /// Instances that have numbers, and so may run, on the nodes of these names, and that are not known.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn strays(&self, is_known: impl Fn(InstanceId) -> bool) -> Result<Vec<(String, InstanceId)>, FileError> {
        let records = records(&self.means.directory)?;
        let numbered = records
            .into_iter()
            .flat_map(|(name, record)| record.instances.into_keys().map(move |instance| (name.clone(), instance)));
        Ok(numbered.filter(|(_, instance)| !is_known(*instance)).collect())
    }

    /// Says something about a machine, or about an instance there. What is tried again and again is said once.
    fn log(&self, machine: &Machine, about: Option<InstanceId>, what: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.insert((machine.id, about), what.to_owned()).is_none_or(|before| before != what) {
            (self.means.log)(&format!("{}: {what}", node_name(&machine.name)));
        }
    }

    /// What was said of it is over.
    fn is_well(&self, machine: &Machine, about: Option<InstanceId>) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).remove(&(machine.id, about));
    }

    fn target(&self, record: &NodeRecord, account: &str) -> Result<Target, NodesError> {
        // Of one that somebody adopted `fleet.toml` may say something else by now.
        let adopted = if record.is_adopted { self.means.adopted.get(&record.name) } else { None };
        resolve_as(&record.name, adopted.unwrap_or(&record.node), &self.means.ssh, account)
            .map_err(|error| said(chain(&error)))
    }

    /// What a node says of itself, if it is what it is taken for.
    async fn status(&self, record: &NodeRecord, account: &str, timeouts: Timeouts) -> Result<NodeStatus, NodesError> {
        let client = NodeClient::connect(&self.target(record, account)?, &self.means.identities, timeouts).await?;
        let status = client.status().await;
        client.close().await;
        self.checked(record, status?)
    }

    fn checked(&self, record: &NodeRecord, status: NodeStatus) -> Result<NodeStatus, NodesError> {
        let is_it = (&status.fleet, &status.node, &status.environment)
            == (&self.means.fleet, &record.name, &record.node.environment);
        if is_it {
            return Ok(status);
        }
        Err(said(format!("it answers as node `{}` of fleet `{}`", status.node, status.fleet)))
    }

    /// A connection to a node that ought to answer, and what it says of itself.
    async fn reach(&self, record: &NodeRecord) -> Result<(NodeClient, NodeStatus), NodesError> {
        let target = self.target(record, ACCOUNT)?;
        let ends = Instant::now() + CONNECT_WITHIN;
        let client = loop {
            match NodeClient::connect(&target, &self.means.identities, self.means.timeouts).await {
                Ok(client) => break client,
                Err(error) if Instant::now() > ends => return Err(error.into()),
                Err(_) => tokio::time::sleep(TRY_EVERY).await,
            }
        };
        let status = self.checked(record, client.status().await?)?;
        Ok((client, status))
    }

    // ---- joining ----

    fn try_join(
        &self,
        machine: &Machine,
        reached: &mut dyn FnMut(),
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<bool, NodesError> {
        let pool = pool_of(&machine.name)?;
        let settings = self.means.pools.get(&pool).ok_or_else(|| said(format!("there is no pool `{pool}`")))?;
        let name: NodeName = node_name(&machine.name).parse().map_err(|_| said("its name is no node's"))?;
        let identity = NodeIdentity {
            fleet: self.means.fleet.clone(),
            node: name,
            environment: settings.environment.clone(),
            pool: Some(pool),
        };
        let joining = Joining { machine, settings, identity };
        let server = machine.server.ok_or_else(|| said("its number at the provider is not known"))?;
        let mut known: Option<NodeRecord> = None;
        let mut has_answered = false;
        let mut answered = || {
            if !std::mem::replace(&mut has_answered, true) {
                reached();
            }
        };
        while is_wanted() {
            let mut attempt = || {
                let record = match &mut known {
                    Some(record) => record,
                    none => none.insert(self.recorded(&joining, server, is_wanted)?),
                };
                let status = self.means.runtime.block_on(async {
                    self.attempt(&joining, record, &mut answered).await?;
                    self.status(record, ACCOUNT, self.means.timeouts).await
                })?;
                // It starts nothing before it knows what was revoked.
                self.inform(machine, record, &status)
            };
            match attempt() {
                Ok(()) => {
                    // Where it does not go, it opens nothing any more.
                    if let Err(error) = self.means.enrolment.remove(&machine.name) {
                        self.log(machine, None, &chain(&error));
                    }
                    return Ok(true);
                }
                Err(error) if !error.may_pass() => return Err(error),
                // Nobody need read that it still boots.
                Err(error) if known.as_ref().is_none_or(is_worth_a_line) => self.log(machine, None, &chain(&error)),
                Err(_) => {}
            }
            thread::sleep(TRY_EVERY);
        }
        Ok(false)
    }

    /// The record of a machine, made where there is none. One that was asked for twice may be another server by now.
    fn recorded(
        &self,
        joining: &Joining<'_>,
        server: ServerId,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<NodeRecord, NodesError> {
        let name = node_name(&joining.machine.name);
        if let Some(known) = self.records.get(name)?.filter(|record| record.server == server) {
            return Ok(known);
        }
        let address =
            self.locate(joining.machine, server, is_wanted).ok_or_else(|| later("it is not wanted any more"))?;
        let record = self.first_record(joining, server, address)?;
        self.records.put(name, &record)?;
        Ok(record)
    }

    /// Where a machine is, once its provider says so.
    fn locate(&self, machine: &Machine, server: ServerId, is_wanted: &dyn Fn() -> bool) -> Option<IpAddr> {
        while is_wanted() {
            match self.means.provider.get(server) {
                Ok(Some(seen)) if seen.name == machine.name => {
                    if let Some(address) = seen.address() {
                        return Some(address);
                    }
                }
                // A new machine may not be found for a while.
                Ok(_) => {}
                Err(error) => self.log(machine, None, &chain(&error)),
            }
            thread::sleep(LOOK_EVERY);
        }
        None
    }

    fn first_record(&self, joining: &Joining<'_>, server: ServerId, address: IpAddr) -> Result<NodeRecord, NodesError> {
        let milestones = Milestones { asked: joining.machine.asked, located: Some(now()), ..Milestones::default() };
        let (name, node) = if joining.settings.is_adopted {
            let mut adopted = self.means.adopted.iter();
            let it =
                adopted.find(|(_, node)| node.address.parse() == Ok(address) && node.pool == joining.identity.pool);
            let (name, node) =
                it.ok_or_else(|| said(format!("fleet.toml has no node of its pool at {address}; adopt it first")))?;
            (name.clone(), node.clone())
        } else {
            let node = FleetNode {
                environment: joining.identity.environment.clone(),
                address: address.to_string(),
                port: None,
                host_key: None,
                provider: Some(joining.settings.provider.clone()),
                pool: joining.identity.pool.clone(),
            };
            (joining.identity.node.clone(), node)
        };
        let is_adopted = joining.settings.is_adopted;
        let (notices, instances) = (BTreeSet::new(), BTreeMap::new());
        Ok(NodeRecord { name, server, node, is_adopted, milestones, notices, instances })
    }

    /// One attempt to have it answer as a node, from wherever the last one ended.
    async fn attempt(
        &self,
        joining: &Joining<'_>,
        record: &mut NodeRecord,
        answered: &mut dyn FnMut(),
    ) -> Result<(), NodesError> {
        let patience = Timeouts { connect: self.means.timeouts.connect.min(REACH_WITHIN), ..self.means.timeouts };
        if record.is_adopted || record.node.host_key.is_some() {
            // It was laid out: it answers as a node, or gives its stock server back.
            match self.status(record, ACCOUNT, patience).await {
                Ok(_) => {
                    answered();
                    self.greeted(joining, record)?;
                    return Ok(());
                }
                Err(error) if record.is_adopted || record.milestones.greeted.is_some() => return Err(error),
                Err(_) => {}
            }
        }
        let key = self.means.enrolment.key(&joining.machine.name)?.ok_or_else(|| said("its one-time key is lost"))?;
        let mut stock = self.log_in(record, &key, patience).await?;
        answered();
        let result = self.make_node(joining, record, &mut stock).await;
        stock.close().await;
        result
    }

    async fn log_in(
        &self,
        record: &NodeRecord,
        key: &OneTimeKey,
        patience: Timeouts,
    ) -> Result<bootstrap::Machine, NodesError> {
        let pinned = key.host_key();
        let address = &record.node.address;
        let target = resolve_machine(&record.name, Some("root"), address, None, Some(&pinned), &self.means.ssh)
            .map_err(|error| said(chain(&error)))?;
        Ok(bootstrap::Machine::reach(&target, &self.means.identities, patience).await?)
    }

    /// Lays a stock machine out as a node and hears it answer as one.
    async fn make_node(
        &self,
        joining: &Joining<'_>,
        record: &mut NodeRecord,
        stock: &mut bootstrap::Machine,
    ) -> Result<(), NodesError> {
        let name = node_name(&joining.machine.name);
        record.milestones.reached.get_or_insert_with(now);
        self.records.put(name, record)?;
        let found = stock.look().await?;
        let obstacles = found.obstacles(self.architecture, &joining.identity);
        if !obstacles.is_empty() {
            let obstacles: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
            return Err(said(format!("it cannot become a node: {}", obstacles.join("; "))));
        }
        let packages = found.missing_packages();
        if !packages.is_empty() {
            stock.install_packages(&packages).await?;
        }
        record.milestones.packaged.get_or_insert_with(now);
        let NodeIdentity { fleet, node, environment, pool } = joining.identity.clone();
        let SignedText { text: policy, signatures } = (self.means.policy)().map_err(later)?.0;
        let config = NodeConfig { fleet, node, environment, pool, policy, signatures, host_key: None };
        let installed = stock.install(&self.means.agent, &config).await?;
        record.node.host_key = Some(installed.host_key);
        record.milestones.laid_out = Some(now());
        // Before the node is known to answer: an interruption from here on must not lose its host key.
        self.records.put(name, record)?;
        let target = self.target(record, ACCOUNT)?;
        if let Err(error) = stock.greet(&target, &self.means.identities, self.means.timeouts).await {
            // The next attempt begins with the stock server. Where it cannot be asked for, it comes back by itself.
            stock.revert().await.ok();
            return Err(error.into());
        }
        self.greeted(joining, record)?;
        // Where this does not come about, a key lies about there that opens nothing any more.
        if let Err(error) = stock.clear(true).await {
            self.log(joining.machine, None, &chain(&error));
        }
        Ok(())
    }

    /// Brings a node the notices that it was not brought before, and the policy where it has the one before.
    fn inform(&self, machine: &Machine, record: &NodeRecord, status: &NodeStatus) -> Result<(), NodesError> {
        let notices = (self.means.notices)().map_err(later)?;
        let (policy, version) = (self.means.policy)().map_err(later)?;
        let digest = |text: &SignedText| hex(&sha256(text.text.as_bytes()));
        let digests: BTreeSet<String> = notices.iter().map(|(_, notice)| digest(notice)).collect();
        let is_behind = status.policy_version.checked_add(1) == Some(version);
        if status.policy_version < version && !is_behind {
            // Versions follow from each other, and those between are not here.
            let (has, environment) = (status.policy_version, &record.node.environment);
            return Err(later(format!(
                "it has policy {has} and would need each up to {version}, one after the other: it takes no order until then; drain it, or `bulkhead policy push -e {environment}` from where the others are"
            )));
        }
        if digests == record.notices && !is_behind {
            return Ok(());
        }
        let target = self.target(record, ACCOUNT)?;
        self.means.runtime.block_on(async {
            let client = NodeClient::connect(&target, &self.means.identities, self.means.timeouts).await?;
            let bring = async {
                if is_behind {
                    client.bring(Paper::Policy, &policy).await?;
                }
                for (paper, notice) in notices.iter().filter(|(_, notice)| !record.notices.contains(&digest(notice))) {
                    match client.bring(*paper, notice).await {
                        // One that counts no more, such as of a key that was revoked, must not keep the others out.
                        Err(NodeError::Failed { failure, .. }) => self.log(machine, None, &failure.message),
                        brought => brought?,
                    }
                }
                Ok::<_, NodeError>(())
            };
            let brought = bring.await;
            client.close().await;
            brought
        })?;
        self.records.change(node_name(&machine.name), |record| record.notices = digests)?;
        Ok(())
    }

    /// It answers as a node.
    fn greeted(&self, joining: &Joining<'_>, record: &mut NodeRecord) -> Result<(), FileError> {
        if record.milestones.greeted.is_some() {
            return Ok(());
        }
        record.milestones.greeted = Some(now());
        self.records.put(node_name(&joining.machine.name), record)
    }

    // ---- instances ----

    fn record(&self, machine: &Machine) -> Result<NodeRecord, NodesError> {
        self.records.get(node_name(&machine.name))?.ok_or_else(|| said("there is no record of it"))
    }

    /// Starts an instance. Its number is its own until it is stopped, whatever comes of this.
    fn try_start(&self, machine: &Machine, instance: InstanceId, workload: &str) -> Result<(), NodesError> {
        let Granted { signed, grant, statements, payload, secrets } = self.granted(machine, workload)?;
        let opened = secrets::open(&self.means.opener, &grant, &secrets).map_err(later)?;
        let name = node_name(&machine.name);
        // What runs of another grant may have other values of its secrets.
        let known = self.records.get(name)?.and_then(|record| Some(record.instances.get(&instance)?.grant));
        let has_its_secrets = grant.secrets.is_empty() || known == Some(Grant::id(signed.text.as_bytes()));
        let (record, app) = self.records.number(name, instance, &grant, &signed)?.map_err(later)?;
        self.records.change(name, |record| record.milestones.begun.get_or_insert_with(now).0)?;
        let order = self.order(&app, &grant, Action::Run(grant.run.clone()))?;
        self.means.runtime.block_on(async {
            let (client, status) = self.reach(&record).await?;
            if has_its_secrets && runs(&status, &app, &grant.run) {
                client.close().await;
            } else {
                let mut papers = Papers { statements, grant: Some(signed), ..Papers::default() };
                if !grant.secrets.is_empty() {
                    let key = self.sealing_key(&record, &status)?;
                    let sealed = opened.seal_to(&key, &record.name, &grant, &app).map_err(later)?;
                    papers.secrets.insert(record.name.clone(), sealed);
                }
                self.send(&record, client, order, Some(payload), papers).await?;
            }
            self.records.change(name, |record| record.milestones.first_instance.get_or_insert_with(now).0)?;
            Ok(())
        })
    }

    /// Whom secrets are sealed to: see [`sealed_to`].
    fn sealing_key(&self, record: &NodeRecord, status: &NodeStatus) -> Result<String, NodesError> {
        let shown = status.keys.as_ref().map(|keys| keys.sealing.clone());
        let shown = shown.ok_or_else(|| later("it has no sealing key"))?;
        let SignedText { text, .. } = (self.means.policy)().map_err(later)?.0;
        let policy = Policy::parse(text.as_bytes()).map_err(later)?;
        sealed_to(record, shown, &policy).map_err(later)
    }

    /// Stops an instance, under the grant that it was started with, or where the node takes that no more, under what is
    /// granted now.
    fn try_stop(&self, machine: &Machine, instance: InstanceId, workload: &str) -> Result<(), NodesError> {
        let name = node_name(&machine.name);
        let Some(record) = self.records.get(name)? else { return Ok(()) };
        let Some(known) = record.instances.get(&instance) else { return Ok(()) };
        let app: AppName =
            format!("{}-{}", known.app, known.number).parse().map_err(|_| said("it has no name there"))?;
        let kept = self.records.grant(known.grant)?;
        let kept = kept.and_then(|signed| Some((Grant::parse(signed.text.as_bytes()).ok()?, signed)));
        let leaves_something = kept.as_ref().is_none_or(|(grant, _)| grant.scratch || !grant.secrets.is_empty());
        let remove = |grant: Grant, signed: SignedText| -> Result<(), NodesError> {
            let order = self.order(&app, &grant, Action::Remove { volumes: grant.scratch })?;
            self.means.runtime.block_on(async {
                let (client, status) = self.reach(&record).await?;
                let mut there = status.apps.iter().filter(|known| known.app == app);
                // Of one that never ran well there may be data, which the next of its number must not find, and secrets.
                if leaves_something || there.any(|known| known.live.is_some() || known.busy.is_some()) {
                    let papers = Papers { grant: Some(signed), ..Papers::default() };
                    return self.send(&record, client, order, None, papers).await;
                }
                client.close().await;
                Ok(())
            })
        };
        let now = || self.granted(machine, workload).map(|granted| (granted.grant, granted.signed));
        match kept {
            None => now().and_then(|(grant, signed)| remove(grant, signed))?,
            Some((grant, signed)) => remove(grant, signed.clone()).or_else(|error| match now() {
                Ok((grant, other)) if error.is_refusal() && other != signed => remove(grant, other),
                _ => Err(error),
            })?,
        }
        Ok(self.free(name, instance)?)
    }

    fn granted(&self, machine: &Machine, workload: &str) -> Result<Granted, NodesError> {
        self.means.grants.granted(&pool_of(&machine.name)?, workload).map_err(later)
    }

    fn free(&self, name: &str, instance: InstanceId) -> Result<(), FileError> {
        self.records.change(name, |record| drop(record.instances.remove(&instance))).map(drop)
    }

    /// An order that rests on a grant, for no place in a history yet.
    fn order(&self, app: &AppName, grant: &Grant, action: Action) -> Result<Order, NodesError> {
        let issued = timestamp();
        let policy = (self.means.policy)().map_err(later)?.1;
        Ok(Order {
            format: 1,
            fleet: self.means.fleet.clone(),
            environment: grant.environment.clone(),
            app: app.clone(),
            targets: BTreeMap::new(),
            issued,
            not_after: issued.plus_s(LIFETIME_S),
            policy,
            action,
            break_glass: None,
            message: None,
        })
    }

    async fn send(
        &self,
        record: &NodeRecord,
        client: NodeClient,
        template: Order,
        payload: Option<Payload>,
        papers: Papers,
    ) -> Result<(), NodesError> {
        let request = Push {
            fleet: self.means.fleet.clone(),
            app: template.app.clone(),
            nodes: vec![self.target(record, ACCOUNT)?],
            payload,
            wait: WAIT,
            interruptions: None,
            papers,
            accept_restored: false,
        };
        let pins: BTreeMap<NodeName, _> =
            request.papers.secrets.iter().map(|(node, sealed)| (node.clone(), secrets::digests(sealed))).collect();
        let make = |mut targets: BTreeMap<NodeName, order::Target>| -> Pin<
            Box<dyn Future<Output = Result<SignedOrder, SignError>> + Send + '_>,
        > {
            for (node, target) in &mut targets {
                target.secrets = pins.get(node).cloned().unwrap_or_default();
            }
            let bytes = Order { targets, ..template.clone() }.to_bytes();
            Box::pin(async move {
                let signature = self.means.signer.sign(order::NAMESPACE, &bytes).await?;
                Ok(SignedOrder { bytes, signatures: vec![signature] })
            })
        };
        let NodeMeans { identities, timeouts, memory, .. } = &self.means;
        let early = Early::from([(record.name.clone(), tokio::spawn(std::future::ready(Ok(client))))]);
        let outcomes = push_over(&request, early, identities, *timeouts, memory, &make, &|_, _| ()).await;
        for outcome in outcomes {
            let done = outcome.result?;
            for warning in done.warnings {
                (self.means.log)(&format!("{}: {warning}", record.name));
            }
        }
        Ok(())
    }
}

/// The key that secrets for a node are sealed to, of the one that it shows. What a machine shows that this loop made a node
/// of counts, over a connection to its pinned host key; of one that somebody adopted what the policy lists and nothing
/// else, for whoever may write to the repository can put any machine into `fleet.toml`.
fn sealed_to(record: &NodeRecord, shown: String, policy: &Policy) -> Result<String, String> {
    if !record.is_adopted {
        return Ok(shown);
    }
    match policy.nodes.get(&record.name) {
        Some(listed) if listed.sealing == shown => Ok(shown),
        Some(_) => Err("it has another sealing key than the policy lists, and is given no secrets".into()),
        None => {
            let environment = &record.node.environment;
            let what = "the policy lists no keys of it, so it is given no secrets: if it is yours";
            Err(format!("{what}, `bulkhead policy nodes -e {environment}` lists them"))
        }
    }
}

/// Whether what goes wrong with it is worth a line: until it was reached it most likely boots.
fn is_worth_a_line(record: &NodeRecord) -> bool {
    record.milestones.reached.is_some() || record.is_adopted
}

/// Whether an app runs exactly this, with every service on.
fn runs(status: &NodeStatus, app: &AppName, run: &Run) -> bool {
    status.apps.iter().filter(|known| known.app == *app && known.busy.is_none()).any(|known| {
        let is_same = known.live.as_ref().is_some_and(|live| {
            live.image.is_some_and(|image| Run::new(image, live.services.clone()).id() == run.id())
        });
        is_same
            && known.services.len() == run.services.len()
            && known.services.iter().all(|service| service.state == "active")
    })
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn timestamp() -> Timestamp {
    Timestamp(i64::try_from(now().0 / 1000).unwrap_or(i64::MAX))
}

impl Nodes for FleetNodes {
    fn join(&self, machine: &Machine, reached: &mut dyn FnMut(), is_wanted: &dyn Fn() -> bool) -> bool {
        self.try_join(machine, reached, is_wanted).unwrap_or_else(|error| {
            self.log(machine, None, &chain(&error));
            false
        })
    }

    fn running(&self, machine: &Machine) -> Option<u32> {
        let record = self.record(machine).ok()?;
        let asked = self.status(&record, OBSERVE_ACCOUNT, self.means.timeouts);
        let status = self.means.runtime.block_on(asked).ok()?;
        match self.inform(machine, &record, &status) {
            Ok(()) => self.is_well(machine, None),
            Err(error) => self.log(machine, None, &chain(&error)),
        }
        u32::try_from(status.apps.iter().filter(|app| app.live.is_some()).count()).ok()
    }

    fn may_start(&self, pool: &PoolName, workload: &str) -> Result<(), String> {
        let (grant, secrets) = self.means.grants.known(pool, workload)?;
        secrets::open(&self.means.opener, &grant, &secrets).map(drop)
    }

    fn machines_granted(&self, pool: &PoolName) -> Option<u32> {
        // What cannot be read now is as it was.
        let read = self.means.grants.machines(pool).ok();
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        let known = granted.entry(pool.clone()).or_default();
        *known = read.unwrap_or(*known);
        Some(*known)
    }

    fn start(&self, machine: &Machine, instance: InstanceId, workload: &str) -> Start {
        let Err(error) = self.try_start(machine, instance, workload) else {
            self.is_well(machine, Some(instance));
            return Start::Running;
        };
        self.log(machine, Some(instance), &format!("{workload}: {}", chain(&error)));
        if error.is_of_machine() { Start::Failed } else { Start::NotTried }
    }

    fn gone(&self, machine: &Machine) {
        let name = node_name(&machine.name);
        let removed = self.means.enrolment.remove(&machine.name).and_then(|()| Ok(self.records.remove(name)?));
        if let Err(error) = removed {
            // It is tried again before the next loop begins.
            self.log(machine, None, &chain(&error));
        }
        self.said.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| *of != machine.id);
    }

    fn stop(&self, machine: &Machine, instance: InstanceId, workload: &str) -> bool {
        let stopped = self.try_stop(machine, instance, workload);
        match &stopped {
            Ok(()) => self.is_well(machine, Some(instance)),
            Err(error) => self.log(machine, Some(instance), &format!("{workload}: {}", chain(error))),
        }
        stopped.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_machine_is_given_secrets_by_a_listed_key_alone() {
        let policy = |nodes: serde_json::Value| -> Policy {
            serde_json::from_value(serde_json::json!({
                "format": 1, "fleet": "acme", "version": 1, "root": { "threshold": 1, "keys": [] }, "keys": {},
                "environments": {}, "nodes": nodes,
            }))
            .unwrap()
        };
        let listed = |name: &str| serde_json::json!({ name: { "audit": "", "sealing": "its own" } });
        let record = |is_adopted: bool| NodeRecord { is_adopted, ..crate::records::tests::record("iron-1") };
        let of = |is_adopted: bool, shown: &str, nodes: serde_json::Value| {
            sealed_to(&record(is_adopted), shown.to_owned(), &policy(nodes))
        };
        assert_eq!(of(true, "its own", listed("iron-1")), Ok("its own".to_owned()));
        assert!(of(true, "another", listed("iron-1")).unwrap_err().contains("another sealing key"));
        for nodes in [listed("iron-2"), serde_json::json!({})] {
            assert!(of(true, "its own", nodes).unwrap_err().contains("`bulkhead policy nodes -e staging`"));
        }
        // Nobody could list a machine that the loop bought a minute ago.
        assert_eq!(of(false, "any", listed("iron-2")), Ok("any".to_owned()));
    }
}
