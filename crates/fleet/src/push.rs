//! One order to many nodes at once.
//!
//! To each node goes one SSH connection with one channel, and on it, without
//! waiting for anything: the request, the signed order, the image's document over
//! one that the node has, and a pack of the objects it is expected to miss. Only
//! where the memory was wrong does the node answer "missing", and gets one pack
//! more; where it stood elsewhere in its history, a new order is made for it.
//!
//! Where this machine did not build the image and has not kept its contents, what
//! is needed is fetched from a node that holds it and sent on.
//!
//! Where the connection breaks on the way, the node is asked over another one how it ended ([`again`]).
//!
//! A node that fails takes no other with it. The future may be dropped at any
//! moment: nodes then carry on with, or forget, what they have, and the next push
//! goes on from there.

mod again;
mod fetch;
mod orders;
mod packs;

pub use fetch::FetchError;
pub use packs::SpoolError;

use crate::{
    client::{Conversation, NodeClient, NodeError, printable},
    frames::{FramesError, Incoming, Item},
    identity::Identities,
    memory::{Memory, Remembered},
    sign::SignError,
    ssh::{EndingHandle, Target, Timeouts},
};
use again::Again;
use bulkhead_core::{
    AppName, BootId, FleetName, ImageId, NodeName, OrderId, SecretName, SignedText, Timestamp,
    image::Image,
    order::{self, Action, Order},
};
use bulkhead_store::{
    cache::Cache,
    pack::{Contents, Item as Object, Options},
};
use bulkhead_wire::{
    Ask, Done, Event, Failure, ImageOffer, Position, Step, StepKind, Submit, TOOL_STDERR, TOOL_STDOUT, ToolEnd,
};
use fetch::Source;
use orders::Line;
use packs::{Expected, Packs, Spool};
use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, mpsc};

/// How often a node may ask for another order: each time somebody else's came first.
const ORDERS_MAX: usize = 4;
/// How often an order is sent: besides, once without a base and once more with what had to be fetched.
const SUBMISSIONS_MAX: usize = ORDERS_MAX + 2;
/// Events of one order: a step per service and kind, with room.
const EVENTS_MAX: usize = 10_000;
/// How much longer than the order itself says a node may be silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the release before may drain and stop, which its own order says and this machine need not know: an hour
/// each. That a node is dead is noticed by SSH's keepalives, long before.
const PREDECESSOR_MAX: Duration = Duration::from_secs(2 * 3600);
/// How often an upload is reported.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Rules by which a node says that the order does not follow its history.
const RULES_OF_POSITION: [&str; 4] = ["counter", "previous", "boot", "restored"];
/// The rule by which a node says that it has not got the image over which the document was packed.
const RULE_OF_BASE: &str = "base";
/// A node that answers faster than this is in a local network, or on this machine: see [`Options::fast`].
const NEAR: Duration = Duration::from_millis(5);
/// A round trip of which nothing was heard for so long is not measured: that node is not near.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);

/// A signed order.
#[derive(Debug, Clone)]
pub struct SignedOrder {
    /// Its exact bytes.
    pub bytes: Vec<u8>,
    /// Armoured SSHSIG signatures.
    pub signatures: Vec<String>,
}

/// Makes and signs the order for these nodes at these places in their histories.
pub type MakeOrder<'a> = dyn Fn(BTreeMap<NodeName, order::Target>) -> Pin<Box<dyn Future<Output = Result<SignedOrder, SignError>> + Send + 'a>>
    + Send
    + Sync
    + 'a;

/// The image that an order runs, and where its files come from.
#[derive(Clone)]
pub struct Payload {
    /// The image.
    pub image: Arc<Image>,
    /// Its document.
    pub document: Arc<Vec<u8>>,
    /// Where files come from; `bulkhead_store::pack::Nothing` where every node should have them.
    pub contents: Arc<dyn Contents + Send + Sync>,
    /// What this machine kept of what it sent: bases of deltas, and a second source of files. New files are added.
    pub cache: Option<Arc<Cache>>,
    /// For an image that was not built here: nodes that hold it, from which is fetched into the cache
    /// what is neither in `contents` nor in the cache. `None` for one that was.
    pub holders: Option<Vec<Target>>,
    /// How packs are compressed; with less effort for a node that is near.
    pub options: Options,
    /// The name of a pack in the nodes' drop boxes. Nodes take it in first; only what they miss then is sent.
    pub dropped: Option<String>,
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload").field("document_bytes", &self.document.len()).finish_non_exhaustive()
    }
}

/// What to push.
#[derive(Debug, Clone)]
pub struct Push {
    /// The fleet, for the memory.
    pub fleet: FleetName,
    /// The app.
    pub app: AppName,
    /// Where to; each node once.
    pub nodes: Vec<Target>,
    /// For an order that runs an image.
    pub payload: Option<Payload>,
    /// How long a node may wait for another order of the app.
    pub wait: Duration,
    /// For an order that has a tool run: each notification interrupts the tool.
    pub interruptions: Option<Arc<Notify>>,
    /// What comes with the order: statements about its image, a standing order, sealed secrets.
    pub papers: Papers,
    /// Whether to go on from where a node stands that was put back to a snapshot: orders that it has forgotten count
    /// as used up.
    pub accept_restored: bool,
}

/// Signed documents that come with an order.
#[derive(Debug, Clone, Default)]
pub struct Papers {
    /// Statements about its image.
    pub statements: Vec<SignedText>,
    /// The standing order that covers it.
    pub standing: Option<SignedText>,
    /// The scale grant that it rests on.
    pub grant: Option<SignedText>,
    /// The sealed values that it pins, for each node in base64.
    pub secrets: BTreeMap<NodeName, BTreeMap<SecretName, String>>,
}

/// What happens, as it happens.
#[derive(Debug, Clone)]
pub enum Progress {
    /// Connecting.
    Connecting,
    /// Connected.
    Connected,
    /// Files of the image are being fetched from a node that holds it.
    Fetching {
        /// That node.
        from: NodeName,
        /// How many files.
        objects: usize,
        /// Bytes that came, compressed.
        received: u64,
    },
    /// Bytes of document and packs that were sent, of how many (once that is known).
    Uploading {
        /// Sent.
        sent: u64,
        /// Of.
        total: Option<u64>,
    },
    /// Another order is being carried out.
    Waiting {
        /// Who signed it.
        holder: String,
        /// Since.
        since: Timestamp,
    },
    /// The node reached a step.
    Step(Step),
    /// The connection broke; the node is being asked over another one how the order ended.
    Lost,
    /// The node stood elsewhere than remembered; a new order is being signed.
    Repositioned(Position),
    /// What a tool wrote. Whoever shows it on a terminal makes it printable first.
    Output {
        /// Whether to its standard error.
        is_error: bool,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A tool ended.
    Ended(ToolEnd),
    /// Done.
    Done(Done),
    /// Failed.
    Failed(String),
}

/// How long everything took; `None` where it did not happen.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Timings {
    /// TCP, key exchange and login.
    pub connect_ms: u64,
    /// From connected until the node had everything, as this side saw it.
    pub transfer_ms: Option<u64>,
    /// By the node's clock, since it read the request; of several services the last.
    pub durable_ms: Option<u64>,
    /// Likewise.
    pub mounted_ms: Option<u64>,
    /// Likewise.
    pub started_ms: Option<u64>,
    /// Likewise.
    pub healthy_ms: Option<u64>,
    /// Likewise.
    pub switched_ms: Option<u64>,
    /// From the push's start until this node was healthy, as this side saw it.
    pub until_healthy_ms: Option<u64>,
    /// From the push's start to this node's end.
    pub total_ms: u64,
    /// On the wire, SSH's own bytes included.
    pub sent_bytes: u64,
    /// On the wire, SSH's own bytes included.
    pub received_bytes: u64,
    /// How many packs went.
    pub packs: u32,
    /// How many orders were needed.
    pub orders: u32,
}

/// What came of it on one node.
#[derive(Debug)]
pub struct NodeOutcome {
    /// Which.
    pub node: NodeName,
    /// How it ended.
    pub result: Result<Done, PushError>,
    /// How long it took.
    pub timings: Timings,
}

/// Why a node did not carry the order out.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The node, or the way to it.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The connection broke while the order was on its way, and no other could be had to ask how it ended.
    #[error(
        "the connection to node {node} broke {}, and it cannot be reached to ask how it ended",
        if *accepted { "after it had accepted the order" } else { "before it was heard to have accepted the order" }
    )]
    Lost {
        /// Which node.
        node: NodeName,
        /// Whether it was heard to have accepted it: then it carries it out.
        accepted: bool,
        /// What broke last.
        #[source]
        source: Box<NodeError>,
    },
    /// The node has forgotten orders.
    #[error(
        "node {node} was put back to a snapshot, or made anew: it knows of {counter} orders for the app, and {known} were accepted"
    )]
    Restored {
        /// Which node.
        node: NodeName,
        /// How many orders it knows of.
        counter: u64,
        /// How many it had accepted.
        known: u64,
    },
    /// No order for it.
    #[error("cannot sign the order for node {node}")]
    Sign {
        /// Which node.
        node: NodeName,
        /// Why.
        #[source]
        source: Arc<SignError>,
    },
    /// Nothing to send.
    #[error("cannot make what node {node} needs")]
    Pack {
        /// Which node.
        node: NodeName,
        /// Why.
        #[source]
        source: Arc<SpoolError>,
    },
}

/// Connections that were begun before the order was ready, by node.
pub type Early = BTreeMap<NodeName, Connecting>;
type Connecting = tokio::task::JoinHandle<Result<NodeClient, NodeError>>;

/// Carries one order out on many nodes at once. Gives one outcome per node, in the order given.
pub async fn push(
    push: &Push,
    identities: &Identities,
    timeouts: Timeouts,
    memory: &Memory,
    make: &MakeOrder<'_>,
    progress: &(dyn Fn(&NodeName, Progress) + Send + Sync),
) -> Vec<NodeOutcome> {
    push_over(push, Early::new(), identities, timeouts, memory, make, progress).await
}

/// As [`push`], over connections that were begun already; to other nodes, and
/// where one has ended since, a new one is made.
pub async fn push_over(
    push: &Push,
    mut early: Early,
    identities: &Identities,
    timeouts: Timeouts,
    memory: &Memory,
    make: &MakeOrder<'_>,
    progress: &(dyn Fn(&NodeName, Progress) + Send + Sync),
) -> Vec<NodeOutcome> {
    let started = Instant::now();
    let packs = push.payload.as_ref().map(|payload| Packs::new(payload, Source::new(payload, identities, timeouts)));
    let names: Vec<NodeName> = push.nodes.iter().map(|target| target.node.clone()).collect();
    let (lines, desk) = orders::lines(&names);
    let each = push.nodes.iter().zip(lines).map(|(target, line)| {
        let node = Pushing {
            push,
            target,
            memory,
            packs: packs.as_ref(),
            timeouts,
            progress,
            started,
            timings: Timings::default(),
            remembered: memory.recall(&push.fleet, &target.node, &push.app),
            is_asking: false,
            is_dropped_used: false,
        };
        node.run(early.remove(&target.node), identities, line)
    });
    let (outcomes, ()) = tokio::join!(futures_util::future::join_all(each), desk.serve(make));
    outcomes
}

fn has_ended(client: &NodeClient) -> bool {
    client.connection().is_closed()
}

/// One node's share.
struct Pushing<'a> {
    push: &'a Push,
    target: &'a Target,
    memory: &'a Memory,
    packs: Option<&'a Packs<'a>>,
    timeouts: Timeouts,
    progress: &'a (dyn Fn(&NodeName, Progress) + Send + Sync),
    started: Instant,
    timings: Timings,
    remembered: Remembered,
    /// An order is sent a second time to hear how it ended: without its image, and with all the time it may take.
    is_asking: bool,
    /// The pack in the drop box is gone: the node took it in, or may have.
    is_dropped_used: bool,
}

/// How one submission ended.
#[derive(Debug)]
enum End {
    Done(Done),
    /// The node stood elsewhere.
    Elsewhere(NodeError, Position),
    /// The node has not got the image over which the document came.
    NoBase,
    /// The node misses these, some of which must be fetched before they can be sent.
    Lacking(Vec<Object>),
}

impl Pushing<'_> {
    async fn run(mut self, early: Option<Connecting>, identities: &Identities, line: Line) -> NodeOutcome {
        // Tool images are the node's, and are remembered apart from what an app's releases were made of.
        // The boot is the node's, whichever app was there last.
        self.remembered.position.boot = self.memory.recall_boot(&self.push.fleet, &self.target.node);
        let is_tool = self.push.interruptions.is_some();
        let mut images = Vec::new();
        if is_tool {
            let tools = self.memory.recall_tools(&self.push.fleet, &self.target.node);
            images = std::mem::replace(&mut self.remembered.images, tools);
        }
        let result = self.carry_out(early, identities, &line).await;
        drop(line);
        self.timings.total_ms = since(self.started);
        // Memory is an optimisation: where it cannot be written, the next push asks.
        if is_tool {
            let tools = std::mem::replace(&mut self.remembered.images, images);
            self.memory.remember_tools(&self.push.fleet, &self.target.node, &tools).ok();
        }
        if let Some(boot) = self.remembered.position.boot {
            self.memory.remember_boot(&self.push.fleet, &self.target.node, boot).ok();
        }
        self.memory.remember(&self.push.fleet, &self.target.node, &self.push.app, &self.remembered).ok();
        match &result {
            Ok(done) => self.tell(Progress::Done(done.clone())),
            Err(error) => self.tell(Progress::Failed(error.to_string())),
        }
        NodeOutcome { node: self.target.node.clone(), result, timings: self.timings }
    }

    fn tell(&self, progress: Progress) {
        (self.progress)(&self.target.node, progress);
    }

    async fn carry_out(
        &mut self,
        early: Option<Connecting>,
        identities: &Identities,
        line: &Line,
    ) -> Result<Done, PushError> {
        self.tell(Progress::Connecting);
        // While one connects, the order is made and the first packs are begun.
        let mut expected = self.expect(&self.remembered);
        let prepared = async {
            // The packed document is kept for when it is sent.
            let (spool, ()) = tokio::try_join!(self.pack(&expected.items), self.pack_document(&expected))?;
            Ok((line.order(next(&self.remembered.position)).await, spool))
        };
        let connecting = async {
            let connected = match early {
                Some(early) => early.await.ok().filter(|begun| !begun.as_ref().is_ok_and(has_ended)),
                None => None,
            };
            let connected = match connected {
                Some(connected) => connected,
                None => NodeClient::connect(self.target, identities, self.timeouts).await,
            };
            if connected.is_ok() {
                self.tell(Progress::Connected);
            }
            connected
        };
        let (client, prepared) = tokio::join!(connecting, prepared);
        let mut client = client?;
        self.timings.connect_ms = millis(client.connection().connect_time());
        let (mut order, mut spool) = prepared.map_err(|source| self.pack_error(source))?;
        let times = Times { connected: Instant::now(), measured: measure(&client) };
        let mut refusal = None;
        let mut signed = None;
        for _ in 0..SUBMISSIONS_MAX {
            let (signed_at, signed) = match (&signed, order.take()) {
                (_, Some(Ok(fresh))) => {
                    self.timings.orders += 1;
                    signed.insert((Instant::now(), fresh)).clone()
                }
                (_, Some(Err(source))) => return Err(PushError::Sign { node: self.target.node.clone(), source }),
                (Some(same), None) => same.clone(),
                (None, None) => break,
            };
            let before = self.remembered.position.clone();
            let end = self.submit(&client, &signed, &expected, spool.take(), line, &times).await;
            let (sent, received) = client.connection().traffic();
            (self.timings.sent_bytes, self.timings.received_bytes) = (sent, received);
            self.remembered.round_trip_us = times.measured.get().copied().or(self.remembered.round_trip_us);
            let end = match end {
                Err(PushError::Node(error)) if self.may_ask_again(&error) => {
                    client = match self.ask_again(identities, &signed, line, error).await? {
                        Again::Done(done) => return Ok(done),
                        Again::NotAccepted(client) => client,
                    };
                    // Some of it may have come: the node says what is still missing.
                    End::Lacking(Vec::new())
                }
                end => {
                    // Refused after its signatures were found good: it used up no counter, and whoever remembers
                    // that it did would take the node for one that was put back.
                    let is_next = self.remembered.position.previous == Some(OrderId::of(&signed.bytes));
                    if end.is_err() && is_next && self.timings.durable_ms.is_none() {
                        self.remembered.position = before.clone();
                    }
                    end?
                }
            };
            match end {
                End::Done(done) => {
                    client.close().await;
                    return Ok(done);
                }
                End::Elsewhere(error, position) => {
                    refusal = Some(error);
                    let before = std::mem::replace(&mut self.remembered.position, position.clone());
                    // That it has booted since is no news to anybody.
                    if (before.counter, before.previous) != (position.counter, position.previous) {
                        self.tell(Progress::Repositioned(position));
                    }
                    if self.timings.orders as usize == ORDERS_MAX {
                        break;
                    }
                    spool = self.pack(&expected.items).await.map_err(|source| self.pack_error(source))?;
                    order = line.order(next(&self.remembered.position)).await;
                    continue;
                }
                End::NoBase => {
                    self.remembered.images.clear();
                    expected = Expected { base: None, items: Vec::new() };
                }
                End::Lacking(items) => expected.items = items,
            }
            // Nothing was accepted: the same order is as good as it was, and nobody has to sign again.
            self.remembered.position = before;
            spool = self.pack(&expected.items).await.map_err(|source| self.pack_error(source))?;
            if signed_at.elapsed() > lifetime(&signed.bytes) / 2 {
                order = line.order(next(&self.remembered.position)).await;
            }
        }
        client.close().await;
        Err(refusal.unwrap_or_else(|| unexpected(self.target, "it wants ever new orders")).into())
    }

    fn expect(&self, remembered: &Remembered) -> Expected {
        match &self.push.payload {
            Some(payload) => {
                let expected = packs::expect(payload, self.memory, remembered);
                // What came through the drop box is not to be sent as well.
                if payload.dropped.is_some() { Expected { items: Vec::new(), ..expected } } else { expected }
            }
            None => Expected::default(),
        }
    }

    async fn pack(&self, items: &[Object]) -> Result<Option<Arc<Spool>>, Arc<SpoolError>> {
        let (Some(packs), Some(payload)) = (self.packs, &self.push.payload) else { return Ok(None) };
        let is_near = self.remembered.round_trip_us.is_some_and(|us| Duration::from_micros(us) < NEAR);
        let options = if is_near { payload.options.fast() } else { payload.options };
        packs.pack(items, options, &|progress| self.tell(progress)).await.map(Some)
    }

    async fn pack_document(&self, expected: &Expected) -> Result<(), Arc<SpoolError>> {
        match self.packs {
            Some(packs) => packs.document(expected.base.as_ref()).await.map(drop),
            None => Ok(()),
        }
    }

    fn pack_error(&self, source: Arc<SpoolError>) -> PushError {
        PushError::Pack { node: self.target.node.clone(), source }
    }

    /// One order: sends everything, answers what is asked, takes in how it goes.
    async fn submit(
        &mut self,
        client: &NodeClient,
        order: &SignedOrder,
        expected: &Expected,
        spool: Option<Arc<Spool>>,
        line: &Line,
        times: &Times,
    ) -> Result<End, PushError> {
        let document = match self.packs.filter(|_| !self.is_asking) {
            Some(packs) => {
                let packed = packs.document(expected.base.as_ref()).await;
                Some(packed.map_err(|source| self.pack_error(source))?)
            }
            None => None,
        };
        let payload = self.push.payload.as_ref().filter(|_| !self.is_asking);
        let offer = payload.map(|payload| ImageOffer {
            id: ImageId::of(&payload.document),
            base: expected.base.as_ref().map(|(id, _)| *id),
            document_bytes: payload.document.len() as u64,
            dropped: payload.dropped.clone().filter(|_| !self.is_dropped_used),
        });
        let image = offer.as_ref().map(|offer| offer.id);
        let wait = if self.is_asking { patience(&order.bytes, self.push.wait) } else { self.push.wait };
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let Papers { statements, standing, grant, secrets } = &self.push.papers;
        let (statements, standing, grant) = (statements.clone(), standing.clone(), grant.clone());
        let secrets = secrets.get(&self.target.node).cloned().unwrap_or_default();
        let signatures = order.signatures.clone();
        let ask = Ask::Submit(Submit { signatures, image: offer, wait_ms, statements, standing, grant, secrets });
        self.timings.packs += u32::from(!expected.items.is_empty());
        let Conversation { mut outgoing, incoming, ending, .. } = client.begin(ask).await?;
        let upload = Upload { bytes: AtomicU64::new(0), told: Mutex::new(Instant::now()) };
        let (more, mut spools) = mpsc::channel::<Arc<Spool>>(1);
        let (progress, target) = (self.progress, self.target);
        let sending = async {
            outgoing.data(&order.bytes).await?;
            outgoing.end().await?;
            if let Some(document) = &document {
                outgoing.stream(document.as_slice(), &mut |_| ()).await?;
                upload.add(document.len() as u64);
            }
            let mut next = spool;
            loop {
                if let Some(spool) = &next {
                    let before = upload.bytes();
                    let mut note = |sent| {
                        upload.set(before + sent);
                        if upload.is_time() {
                            let total = spool.total().map(|bytes| bytes + before);
                            progress(&target.node, Progress::Uploading { sent: upload.bytes(), total });
                        }
                    };
                    if let Err(error) = outgoing.stream(spool.reader(), &mut note).await {
                        return Err((error, spool.failure()));
                    }
                }
                outgoing.flush().await?;
                if document.is_some() {
                    let sent = upload.bytes();
                    progress(&target.node, Progress::Uploading { sent, total: Some(sent) });
                }
                next = tokio::select! {
                    spool = spools.recv() => match spool {
                        Some(spool) => Some(spool),
                        None => return Ok::<(), SendingError>(()),
                    },
                    () = interrupted(self.push.interruptions.as_deref()) => {
                        outgoing.end().await?;
                        None
                    }
                };
            }
        };
        let idle = patience(&order.bytes, wait) + self.timeouts.idle;
        let receiving = self.receive(Receiving {
            incoming,
            ending,
            more,
            order,
            image,
            line,
            times,
            idle,
            expected,
            upload: &upload,
        });
        tokio::pin!(sending, receiving);
        let failure = tokio::select! {
            end = &mut receiving => return end,
            Err(failure) = &mut sending => failure,
        };
        match failure {
            (_, Some(source)) => Err(PushError::Pack { node: target.node.clone(), source }),
            // Where the node answers, its answer says more than that it did not listen to the end.
            (source, None) => match tokio::time::timeout(PATIENCE, receiving).await {
                Ok(end) => end,
                Err(_) => Err(NodeError::Frames { node: target.node.to_string(), source }.into()),
            },
        }
    }

    /// Takes in how an order goes, up to its end.
    async fn receive(&mut self, receiving: Receiving<'_>) -> Result<End, PushError> {
        let Receiving { mut incoming, ending, more, order, image, line, times, idle, expected, upload } = receiving;
        let Times { connected, measured } = times;
        let node = self.target.node.to_string();
        let mut was_asked_for_more = false;
        let mut streams = false;
        let mut events = 0;
        while events < EVENTS_MAX {
            let uploaded = upload.bytes();
            let event = match incoming.next_within(idle).await {
                Ok(Some(Item::Event(event))) => *event,
                Ok(Some(Item::Data(mut bytes)))
                    if streams && matches!(bytes.first(), Some(&(TOOL_STDOUT | TOOL_STDERR))) =>
                {
                    let is_error = bytes.remove(0) == TOOL_STDERR;
                    self.tell(Progress::Output { is_error, bytes });
                    continue;
                }
                Ok(Some(Item::EndOfStream)) if streams => {
                    streams = false;
                    continue;
                }
                Ok(Some(_)) => return Err(unexpected(self.target, "a stream that was not asked for").into()),
                Ok(None) => {
                    let ending = ending.as_ref().map(EndingHandle::get).unwrap_or_default();
                    return Err(NodeError::Ended { node, ending: Box::new(ending) }.into());
                }
                // It listens: that is an answer too.
                Err(FramesError::Idle(_)) if upload.bytes() > uploaded => continue,
                Err(source) => return Err(NodeError::Frames { node, source }.into()),
            };
            events += 1;
            match event {
                Event::Stream { .. } if self.push.interruptions.is_some() && !streams => streams = true,
                Event::Ended(end) if self.push.interruptions.is_some() => self.tell(Progress::Ended(end)),
                Event::Step(step) => self.step(step, order, image, line, *connected),
                Event::Waiting { holder, since } => {
                    line.settled();
                    self.tell(Progress::Waiting { holder: printable(&holder), since });
                }
                Event::Missing { count, bits } => {
                    let (Some(payload), Some(packs)) = (&self.push.payload, self.packs) else {
                        return Err(unexpected(self.target, "objects missing of an order without an image").into());
                    };
                    self.is_dropped_used = true;
                    if std::mem::replace(&mut was_asked_for_more, true) {
                        return Err(unexpected(self.target, "objects missing after they were sent").into());
                    }
                    let items = packs::missing(&payload.image, &bits, count);
                    let items = items.map_err(|what| unexpected(self.target, &what))?;
                    if packs.lacks(&items).await.map_err(|source| self.pack_error(source))? {
                        // The node would not wait for that long.
                        return Ok(End::Lacking(items));
                    }
                    self.remembered.round_trip_us = measured.get().copied().or(self.remembered.round_trip_us);
                    let spool = self.pack(&items).await.map_err(|source| self.pack_error(source))?;
                    let Some(spool) = spool else { continue };
                    self.timings.packs += 1;
                    // Where nobody sends any more, that failure ends the push.
                    more.send(spool).await.ok();
                }
                Event::Done(done) => {
                    self.accepted(order);
                    self.holds(image);
                    return Ok(End::Done(done));
                }
                Event::Failed(failure) => return self.refused(failure, expected),
                _ => return Err(unexpected(self.target, "an event of another kind").into()),
            }
        }
        Err(unexpected(self.target, "more events than an order has").into())
    }

    fn refused(&mut self, failure: Failure, expected: &Expected) -> Result<End, PushError> {
        let (position, rule) = (failure.position.clone(), failure.rule.clone());
        let error = NodeError::Failed { node: self.target.node.to_string(), failure: Box::new(failure) };
        if let Some(mut position) = position {
            let known = self.remembered.position.counter.max(position.seen);
            if known > position.counter {
                if !self.push.accept_restored {
                    // What is remembered stays: whoever comes next is told as well.
                    return Err(PushError::Restored {
                        node: self.target.node.clone(),
                        counter: position.counter,
                        known,
                    });
                }
                position.seen = known;
            }
            if RULES_OF_POSITION.contains(&rule.as_str()) && position != self.remembered.position {
                return Ok(End::Elsewhere(error, position));
            }
            self.remembered.position = position;
        }
        if rule == RULE_OF_BASE && expected.base.is_some() {
            return Ok(End::NoBase);
        }
        Err(error.into())
    }

    fn step(&mut self, step: Step, order: &SignedOrder, image: Option<ImageId>, line: &Line, connected: Instant) {
        let at = Some(step.at_ms);
        match step.step {
            // Its signatures are good; whether it counts is decided when the node has all of it.
            StepKind::Accepted => line.settled(),
            StepKind::Received => self.timings.transfer_ms = Some(since(connected)),
            StepKind::Durable => {
                self.timings.durable_ms = at;
                self.accepted(order);
                self.holds(image);
            }
            StepKind::Mounted => self.timings.mounted_ms = at,
            StepKind::Started => {
                // A tool starts once its order is used up.
                self.accepted(order);
                self.timings.started_ms = self.timings.started_ms.max(at);
            }
            StepKind::Healthy => {
                self.timings.healthy_ms = self.timings.healthy_ms.max(at);
                self.timings.until_healthy_ms = Some(since(self.started));
            }
            StepKind::Switched => self.timings.switched_ms = self.timings.switched_ms.max(at),
            StepKind::Drained | StepKind::Stopped => {}
        }
        self.tell(Progress::Step(step));
    }

    /// The node's history goes on from this order.
    fn accepted(&mut self, order: &SignedOrder) {
        let Ok(Order { mut targets, action, .. }) = Order::parse(&order.bytes) else { return };
        if matches!(action, Action::Remove { .. }) {
            // It drops them with the app.
            self.remembered.images.clear();
        }
        if let Some(target) = targets.remove(&self.target.node) {
            self.remembered.position.counter = target.counter;
            self.remembered.position.previous = Some(OrderId::of(&order.bytes));
            self.remembered.position.seen = 0;
        }
    }

    /// The node holds this image.
    fn holds(&mut self, image: Option<ImageId>) {
        if let (Some(image), Some(payload)) = (image, &self.push.payload) {
            self.remembered.add_image(image);
            // An optimisation, as all memory.
            self.memory.keep_document(image, &payload.document).ok();
        }
    }
}

/// When the node was connected to, and how long it took to answer (in microseconds, once that is known).
struct Times {
    connected: Instant,
    measured: Arc<OnceLock<u64>>,
}

/// Measures how far away the node is, while other things go on over the connection.
fn measure(client: &NodeClient) -> Arc<OnceLock<u64>> {
    let measured = Arc::new(OnceLock::new());
    let (connection, to) = (client.connection().clone(), Arc::clone(&measured));
    tokio::spawn(async move {
        if let Ok(Ok(took)) = tokio::time::timeout(ROUND_TRIP_MAX, connection.ping()).await {
            // It is set here alone.
            to.set(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)).ok();
        }
    });
    measured
}

struct Receiving<'a> {
    incoming: Incoming,
    ending: Option<EndingHandle>,
    more: mpsc::Sender<Arc<Spool>>,
    order: &'a SignedOrder,
    image: Option<ImageId>,
    line: &'a Line,
    times: &'a Times,
    idle: Duration,
    expected: &'a Expected,
    upload: &'a Upload,
}

/// A broken connection, or a pack that could not be made.
type SendingError = (FramesError, Option<Arc<SpoolError>>);

impl From<FramesError> for SendingError {
    fn from(error: FramesError) -> Self {
        (error, None)
    }
}

/// How much went to a node, and when that was last told.
#[derive(Debug)]
struct Upload {
    bytes: AtomicU64,
    told: Mutex<Instant>,
}

impl Upload {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn set(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_time(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = told.elapsed() >= REPORT_EVERY;
        if is_time {
            *told = Instant::now();
        }
        is_time
    }
}

fn unexpected(target: &Target, what: &str) -> NodeError {
    NodeError::Unexpected { node: target.node.to_string(), what: what.to_owned() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn since(start: Instant) -> u64 {
    millis(start.elapsed())
}

/// The place after this one. A boot that is not known is none: the node says which it is.
#[must_use]
pub fn next(position: &Position) -> order::Target {
    let used = position.counter.max(position.seen);
    order::Target {
        counter: used.saturating_add(1),
        previous: position.previous,
        boot: position.boot.unwrap_or(BootId([0; 32])),
        floor: (used > position.counter).then_some(used),
        secrets: BTreeMap::new(),
    }
}

/// The next interruption; never where none can come.
async fn interrupted(interruptions: Option<&Notify>) {
    match interruptions {
        Some(interruptions) => interruptions.notified().await,
        None => std::future::pending().await,
    }
}

/// From its issue to its expiry.
fn lifetime(order: &[u8]) -> Duration {
    let seconds = Order::parse(order).map_or(0, |order| order.not_after.0.saturating_sub(order.issued.0));
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// How long carrying out may take without a word: every service's health, draining and stopping one after another.
fn patience(order: &[u8], wait: Duration) -> Duration {
    let services = match Order::parse(order).map(|order| order.action) {
        Ok(Action::Run(run)) => run.services,
        Ok(Action::Look(tool)) => return PATIENCE + wait + Duration::from_millis(u64::from(tool.within_ms)),
        _ => Vec::new(),
    };
    let longest = |service: &order::ServiceSpec| {
        let parts = [service.health.within_ms, service.drain_ms, service.stop_ms];
        Duration::from_millis(parts.into_iter().map(u64::from).sum())
    };
    PATIENCE + wait + PREDECESSOR_MAX + services.iter().map(longest).sum::<Duration>()
}
