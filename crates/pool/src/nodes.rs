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
    records::{Milestones, NodeRecord, Records},
    runner::Nodes,
};
use bulkhead_core::{
    AppName, EnvironmentName, FleetName, NodeName, PoolName, SignedText, Timestamp,
    fleet::FleetNode,
    grant::Grant,
    node::{NodeConfig, NodeIdentity},
    order::{self, Action, Order, Run},
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
use bulkhead_scale::{InstanceId, Machine, ServerId, Time};
use bulkhead_wire::{ACCOUNT, NodeStatus, OBSERVE_ACCOUNT};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{runtime::Handle, sync::Semaphore};

/// From an order's issue to its expiry: time for an upload over a slow line.
const LIFETIME_S: i64 = 3600;
/// How long an order waits for another one of its app: one that this loop sent before it was killed.
const WAIT: Duration = Duration::from_secs(60);
/// Between looks for a machine's address. Providers count requests.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between attempts to log in.
const TRY_EVERY: Duration = Duration::from_millis(250);
/// How many instances are started or stopped on one node at a time. sshd lets five who have not logged in yet come from
/// one address, and somebody may be looking at the node meanwhile.
const TURNS: usize = 4;
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
}

/// Gives the fleet's policy as it was signed, and its version; read anew each time, for it may change while a loop runs.
/// New nodes enforce it, and it lets this loop's keys connect. The error is a sentence.
pub type ReadPolicy = Box<dyn Fn() -> Result<(SignedText, u64), String> + Send + Sync>;

/// Where grants are found.
pub trait Grants: Send + Sync {
    /// What is granted for a workload in a pool at this moment.
    ///
    /// # Errors
    /// Nothing is, or it cannot be had; a sentence.
    fn granted(&self, pool: &PoolName, workload: &str) -> Result<Granted, String>;
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
    /// Instances that are being started or stopped, and what tells that one is no more.
    busy: (Mutex<BTreeSet<InstanceId>>, Condvar),
    /// By the machine's name as a node.
    turns: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

/// An instance is in one's hands until this is dropped: whether it has a number must not change under whoever starts
/// or stops it, and one that is stopped while it still starts is stopped after it did.
struct Busy<'a>(&'a FleetNodes, InstanceId);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let (instances, freed) = &self.0.busy;
        instances.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
        freed.notify_all();
    }
}

/// Why something did not come about.
#[derive(Debug, thiserror::Error)]
enum NodesError {
    #[error("{0}")]
    Said(String),
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
            Self::Node(_) | Self::Push(_) => true,
            Self::Said(_) | Self::File(_) | Self::Enrolment(_) => false,
        }
    }
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
        Ok(Self { means, architecture, records, busy: Default::default(), turns: Mutex::default() })
    }

    /// Takes an instance into one's hands, after whoever has it.
    fn take(&self, instance: InstanceId) -> Busy<'_> {
        let (instances, freed) = &self.busy;
        let mut instances = instances.lock().unwrap_or_else(PoisonError::into_inner);
        while !instances.insert(instance) {
            instances = freed.wait(instances).unwrap_or_else(PoisonError::into_inner);
        }
        Busy(self, instance)
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

    fn log(&self, machine: &Machine, what: &str) {
        (self.means.log)(&format!("{}: {what}", node_name(&machine.name)));
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

    /// Those who may do something on a machine at the same time.
    fn turns(&self, machine: &Machine) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Semaphore::new(TURNS));
        Arc::clone(turns.entry(node_name(&machine.name).to_owned()).or_insert_with(new))
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
        // One that was asked for twice may be another server by now.
        let known = self.records.get(node_name(&machine.name))?.filter(|record| record.server == server);
        let mut record = match known {
            Some(record) => record,
            None => {
                let Some(address) = self.locate(machine, server, is_wanted) else { return Ok(false) };
                let record = self.first_record(&joining, server, address)?;
                self.records.put(node_name(&machine.name), &record)?;
                record
            }
        };
        let mut has_answered = false;
        let mut answered = || {
            if !std::mem::replace(&mut has_answered, true) {
                reached();
            }
        };
        let mut last = String::new();
        while is_wanted() {
            let attempt = self.means.runtime.block_on(self.attempt(&joining, &mut record, &mut answered));
            let error = match attempt {
                Ok(()) => {
                    self.means.enrolment.remove(&machine.name)?;
                    return Ok(true);
                }
                Err(error) if !error.may_pass() => return Err(error),
                Err(error) => chain(&error),
            };
            // Nobody need read that it still boots, nor the same a hundred times.
            if is_worth_a_line(&record) && error != last {
                self.log(machine, &error);
                last = error;
            }
            thread::sleep(TRY_EVERY);
        }
        Ok(false)
    }

    /// Where a machine is, once its provider says so.
    fn locate(&self, machine: &Machine, server: ServerId, is_wanted: &dyn Fn() -> bool) -> Option<IpAddr> {
        let mut last = String::new();
        while is_wanted() {
            match self.means.provider.get(server) {
                Ok(Some(seen)) if seen.name == machine.name => {
                    if let Some(address) = seen.address() {
                        return Some(address);
                    }
                }
                // A new machine may not be found for a while.
                Ok(_) => {}
                Err(error) => {
                    let error = chain(&error);
                    if error != last {
                        self.log(machine, &error);
                        last = error;
                    }
                }
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
        Ok(NodeRecord { name, server, node, is_adopted, milestones, instances: BTreeMap::new() })
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
        let SignedText { text: policy, signatures } = (self.means.policy)().map_err(said)?.0;
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
            self.log(joining.machine, &chain(&error));
        }
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

    fn try_start(&self, machine: &Machine, instance: InstanceId, workload: &str) -> Result<(), NodesError> {
        let _busy = self.take(instance);
        let turns = self.turns(machine);
        let pool = pool_of(&machine.name)?;
        let granted = self.means.grants.granted(&pool, workload).map_err(said)?;
        let Granted { signed, grant, statements, payload } = granted;
        let name = node_name(&machine.name);
        let (record, app) = self.records.number(name, instance, &grant, &signed)?.map_err(said)?;
        self.means.runtime.block_on(async {
            let _turn = turns.acquire().await;
            let (client, status) = self.reach(&record).await?;
            let is_known = status.apps.iter().any(|known| known.app == app && known.live.is_some());
            if !runs(&status, &app, &grant.run) {
                let order = self.order(&app, &grant, Action::Run(grant.run.clone()))?;
                let papers = Papers { statements, grant: Some(signed), ..Papers::default() };
                let sent = self.send(&record, client, order, Some(payload), papers).await;
                if let Err(error) = &sent
                    && !is_known
                    && said_no(error)
                {
                    // Nothing of it runs, so nobody will ask to have it stopped.
                    self.free(name, instance)?;
                }
                sent?;
            } else {
                client.close().await;
            }
            self.records.change(name, |record| record.milestones.first_instance.get_or_insert_with(now).0)?;
            Ok(())
        })
    }

    fn try_stop(&self, machine: &Machine, instance: InstanceId, workload: &str) -> Result<(), NodesError> {
        let _busy = self.take(instance);
        let turns = self.turns(machine);
        let name = node_name(&machine.name);
        let Some(record) = self.records.get(name)? else { return Ok(()) };
        let Some(known) = record.instances.get(&instance) else { return Ok(()) };
        let app: AppName =
            format!("{}-{}", known.app, known.number).parse().map_err(|_| said("it has no name there"))?;
        let signed = self.records.grant(known.grant)?;
        let kept = signed.and_then(|signed| Some((Grant::parse(signed.text.as_bytes()).ok()?, signed)));
        let (grant, signed) = match kept {
            Some(kept) => kept,
            None => {
                let granted = self.means.grants.granted(&pool_of(&machine.name)?, workload).map_err(said)?;
                (granted.grant, granted.signed)
            }
        };
        self.means.runtime.block_on(async {
            let _turn = turns.acquire().await;
            let (client, status) = self.reach(&record).await?;
            if status.apps.iter().any(|known| known.app == app && (known.live.is_some() || known.busy.is_some())) {
                let order = self.order(&app, &grant, Action::Remove { volumes: grant.scratch })?;
                let papers = Papers { grant: Some(signed), ..Papers::default() };
                self.send(&record, client, order, None, papers).await?;
            } else {
                client.close().await;
            }
            Ok(self.free(name, instance)?)
        })
    }

    fn free(&self, name: &str, instance: InstanceId) -> Result<(), FileError> {
        self.records.change(name, |record| drop(record.instances.remove(&instance))).map(drop)
    }

    /// An order that rests on a grant, for no place in a history yet.
    fn order(&self, app: &AppName, grant: &Grant, action: Action) -> Result<Order, NodesError> {
        let issued = timestamp();
        let policy = (self.means.policy)().map_err(said)?.1;
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
        let make = |targets: BTreeMap<NodeName, order::Target>| -> Pin<
            Box<dyn Future<Output = Result<SignedOrder, SignError>> + Send + '_>,
        > {
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

/// Whether what goes wrong with it is worth a line: until it was reached it most likely boots.
fn is_worth_a_line(record: &NodeRecord) -> bool {
    record.milestones.reached.is_some() || record.is_adopted
}

/// Whether the node said no, so that what it was asked for does not run.
fn said_no(error: &NodesError) -> bool {
    matches!(error, NodesError::Push(PushError::Node(NodeError::Failed { .. })))
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
            self.log(machine, &chain(&error));
            false
        })
    }

    fn running(&self, machine: &Machine) -> Option<u32> {
        let record = self.record(machine).ok()?;
        let asked = self.status(&record, OBSERVE_ACCOUNT, self.means.timeouts);
        let status = self.means.runtime.block_on(asked).ok()?;
        u32::try_from(status.apps.iter().filter(|app| app.live.is_some()).count()).ok()
    }

    fn start(&self, machine: &Machine, instance: InstanceId, workload: &str) -> bool {
        let started = self.try_start(machine, instance, workload);
        started.map_err(|error| self.log(machine, &format!("{workload}: {}", chain(&error)))).is_ok()
    }

    fn gone(&self, machine: &Machine) {
        let name = node_name(&machine.name);
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let removed = self.means.enrolment.remove(&machine.name).and_then(|()| Ok(self.records.remove(name)?));
        if let Err(error) = removed {
            // It is tried again before the next loop begins.
            self.log(machine, &chain(&error));
        }
    }

    fn stop(&self, machine: &Machine, instance: InstanceId, workload: &str) -> bool {
        let stopped = self.try_stop(machine, instance, workload);
        stopped.map_err(|error| self.log(machine, &format!("{workload}: {}", chain(&error)))).is_ok()
    }
}
