//! Requests to a node's gate, and the conversation that follows.
//!
//! A node may be hostile: every answer is bounded in size and number, every wait
//! in time, what it is asked for is checked (a document against its id), and its
//! words are escaped by [`printable`] before they reach a terminal.

use crate::{
    frames::{FramesError, Incoming, Item, Outgoing},
    identity::Identities,
    ssh::{ChannelError, ConnectError, Connection, Ending, EndingHandle, Target, Timeouts, connect},
};
use bulkhead_core::{AppName, ImageId, ServiceName, image::DOCUMENT_MAX_BYTES};
use bulkhead_wire::{
    Ask, Bring, COMMAND, DATA_MAX_BYTES, Done, Enforced, Event, Failure, LogLine, Look, NodeStatus, PROTOCOL, Paper,
    Release, Request, SignedText, Submit, View,
};
use std::{
    collections::VecDeque,
    fmt::Write as _,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Events of one bounded answer. A node's whole history fits.
const EVENTS_MAX: usize = 100_000;
/// Bytes of one bounded answer: far above a node's whole history, far below what hurts this machine.
const ANSWER_MAX_BYTES: usize = 64 << 20;
/// The longest audit log that is taken: no node sends a longer one.
const AUDIT_MAX_BYTES: usize = 256 << 20;
/// Bytes of events and data that wait while a stream is being sent.
const QUEUE_MAX_BYTES: usize = 8 << 20;
/// A node hangs up on who asks nothing for 30 seconds; what was made ready is used well before.
const READY_MAX: Duration = Duration::from_secs(15);
/// For an answer without an end of its own (`logs -f`, an open tunnel): keepalives notice a dead node.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No connection.
    #[error("cannot connect to node {node}")]
    Connect {
        /// Which node.
        node: String,
        /// Why.
        #[source]
        source: Box<ConnectError>,
    },
    /// No channel.
    #[error("node {node} did not take the request")]
    Channel {
        /// Which node.
        node: String,
        /// Why.
        #[source]
        source: Box<ChannelError>,
    },
    /// The node said no.
    #[error("node {node}: {}", printable(&failure.message))]
    Failed {
        /// Which node.
        node: String,
        /// What it said.
        failure: Box<Failure>,
    },
    /// The answer broke.
    #[error("the conversation with node {node} broke")]
    Frames {
        /// Which node.
        node: String,
        /// Why.
        #[source]
        source: FramesError,
    },
    /// The node hung up before its answer was complete.
    #[error("node {node} hung up before its answer was complete{}", describe(ending))]
    Ended {
        /// Which node.
        node: String,
        /// How its command ended.
        ending: Box<Ending>,
    },
    /// An answer that does not fit the request.
    #[error("node {node} gave an answer that does not fit the request: {what}")]
    Unexpected {
        /// Which node.
        node: String,
        /// What was wrong with it.
        what: String,
    },
    /// This side of a tunnel broke.
    #[error("the local side of the connection to a service on node {node} broke")]
    Local {
        /// Which node.
        node: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn describe(ending: &Ending) -> String {
    let mut text = String::new();
    if let Some(status) = ending.exit_status {
        text = format!(" (exit status {status})");
    }
    if let Some(signal) = &ending.signal {
        text = format!(" (signal {signal})");
    }
    let said = ending.stderr.trim();
    if said.is_empty() { text } else { format!("{text}; it said: {}", printable(said)) }
}

/// Text from a node or service on one line, safe to show on a terminal: control
/// characters and escape sequences become visible, and so does what would turn
/// the direction of writing around. Tabs stay.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\u{0}'..='\u{1f}' => {
                out.push('^');
                out.push(char::from(c as u8 + b'@'));
            }
            '\u{7f}' => out.push_str("^?"),
            // C1 controls, line and paragraph separators, marks and overrides of direction, invisible characters.
            '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}' => {
                write!(out, "\\u{{{:x}}}", u32::from(c)).expect("a String takes whatever is written to it");
            }
            c => out.push(c),
        }
    }
    out
}

/// [`printable`] for text of several lines: line breaks stay.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|line| printable(line.strip_suffix('\r').unwrap_or(line))).collect();
    lines.join("\n")
}

/// A node to ask. One SSH connection, many requests at once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeClient {
    node: String,
    connection: Connection,
    idle: Duration,
    /// For the next order.
    ready: Arc<Mutex<Option<Ready>>>,
}

/// A channel at whose other end the node waits for a request.
#[derive(Debug)]
struct Ready {
    since: Instant,
    opening: tokio::task::JoinHandle<Result<Conversation, NodeError>>,
}

impl NodeClient {
    /// Connects and logs in.
    ///
    /// # Errors
    /// [`NodeError::Connect`].
    pub async fn connect(target: &Target, identities: &Identities, timeouts: Timeouts) -> Result<Self, NodeError> {
        let node = target.node.to_string();
        match connect(target, identities, timeouts).await {
            Ok(connection) => Ok(Self { node, connection, idle: timeouts.idle, ready: Arc::default() }),
            Err(source) => Err(NodeError::Connect { node, source: Box::new(source) }),
        }
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Opens a channel and sends the request.
    ///
    /// # Errors
    /// No channel.
    pub async fn request(&self, ask: Ask) -> Result<Conversation, NodeError> {
        let mut conversation = self.begin(ask).await?;
        conversation.flush().await?;
        Ok(conversation)
    }

    /// Has the node start what takes the next order, so that it is there when the order is. Where it comes to
    /// nothing the order takes the ordinary way.
    pub fn make_ready(&self) {
        // Not of this client itself: what is ready would keep its own connection open.
        let (node, connection, idle) = (self.node.clone(), self.connection.clone(), self.idle);
        let opening = tokio::spawn(async move {
            let client = Self { node, connection, idle, ready: Arc::default() };
            client.request(Ask::Await).await
        });
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        *ready = Some(Ready { since: Instant::now(), opening });
    }

    /// The channel that was made ready, where the node still waits, and since when.
    async fn take_ready(&self) -> Option<(Instant, Conversation)> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Ready { since, opening } = ready.filter(|ready| ready.since.elapsed() < READY_MAX)?;
        let mut conversation = opening.await.ok()?.ok()?;
        // Whatever it has said, or that it has hung up, means that it does not wait.
        let silent = conversation.incoming.next_within(Duration::ZERO).await;
        matches!(silent, Err(FramesError::Idle(_))).then_some((since, conversation))
    }

    /// Opens a channel and gathers the request, to be sent with what follows it.
    ///
    /// # Errors
    /// No channel.
    pub async fn begin(&self, ask: Ask) -> Result<Conversation, NodeError> {
        if matches!(ask, Ask::Submit(_))
            && let Some((_, mut conversation)) = self.take_ready().await
        {
            let request = Request { protocol: PROTOCOL, ask };
            conversation.outgoing.message(&request).await.map_err(|source| conversation.broken(source))?;
            return Ok(conversation);
        }
        let opened = self.connection.open(COMMAND).await;
        let channel =
            opened.map_err(|source| NodeError::Channel { node: self.node.clone(), source: Box::new(source) })?;
        let ending = channel.ending();
        let mut conversation = Conversation::over(&self.node, channel.reader, channel.writer, self.idle);
        conversation.ending = Some(ending);
        let request = Request { protocol: PROTOCOL, ask };
        conversation.outgoing.message(&request).await.map_err(|source| conversation.broken(source))?;
        Ok(conversation)
    }

    /// Facts and what runs.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn status(&self) -> Result<NodeStatus, NodeError> {
        let mut conversation = self.request(Ask::Status).await?;
        let mut status = None;
        conversation
            .each(|event| match event {
                Event::Status(found) if status.is_none() => {
                    status = Some(found);
                    true
                }
                _ => false,
            })
            .await?;
        status.ok_or_else(|| conversation.unexpected("no status"))
    }

    /// What the node enforces, as it was signed. Nothing of it is checked here.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn policy(&self) -> Result<Enforced, NodeError> {
        let mut conversation = self.request(Ask::Policy).await?;
        let mut policy = None;
        conversation
            .each(|event| match event {
                Event::Policy(found) if policy.is_none() => {
                    policy = Some(*found);
                    true
                }
                _ => false,
            })
            .await?;
        policy.ok_or_else(|| conversation.unexpected("no policy"))
    }

    /// The node's audit log without the first `from` entries, and its signed word of where it ends. Nothing of it is
    /// checked here.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn audit(&self, from: u64) -> Result<(SignedText, Vec<u8>), NodeError> {
        let mut conversation = self.request(Ask::Audit { from }).await?;
        let Event::Audit(head) = conversation.event().await? else {
            return Err(conversation.unexpected("no end of an audit log"));
        };
        match conversation.event().await? {
            Event::Stream { bytes } if bytes.is_none_or(|bytes| bytes <= AUDIT_MAX_BYTES as u64) => {}
            _ => return Err(conversation.unexpected("no audit log, or too long a one")),
        }
        let mut lines = Vec::new();
        while let Some(piece) = conversation.next_data().await? {
            if lines.len() + piece.len() > AUDIT_MAX_BYTES {
                return Err(conversation.unexpected("an audit log of more than 256 MiB"));
            }
            lines.extend_from_slice(&piece);
        }
        conversation.each(|_| false).await?;
        Ok((*head, lines))
    }

    /// Brings a signed document that is no order.
    ///
    /// # Errors
    /// See [`NodeError`]; the node refuses it.
    pub async fn bring(&self, paper: Paper, document: &SignedText) -> Result<(), NodeError> {
        let bring = Bring { paper, signatures: document.signatures.clone() };
        self.ask_with(Ask::Bring(bring), document.text.as_bytes()).await.map(drop)
    }

    /// Brings a discharge.
    ///
    /// # Errors
    /// See [`NodeError`]; the node refuses it.
    pub async fn discharge(&self, document: &SignedText) -> Result<(), NodeError> {
        let ask = Ask::Discharge { signatures: document.signatures.clone() };
        self.ask_with(ask, document.text.as_bytes()).await.map(drop)
    }

    /// Submits an order that brings no image, for whoever wants nothing but the answer; [`crate::push`] does the rest.
    ///
    /// # Errors
    /// See [`NodeError`]; the node refuses it.
    pub async fn submit(&self, submit: Submit, order: &[u8]) -> Result<Done, NodeError> {
        self.ask_with(Ask::Submit(submit), order).await
    }

    /// A request with one short stream, answered by its end.
    async fn ask_with(&self, ask: Ask, stream: &[u8]) -> Result<Done, NodeError> {
        let mut conversation = self.begin(ask).await?;
        let sending = async {
            conversation.outgoing.data(stream).await?;
            conversation.outgoing.end().await?;
            conversation.outgoing.flush().await
        };
        // Where the node answers before it has all, its answer says why.
        drop(sending.await);
        conversation.each(|event| matches!(event, Event::Step(_))).await
    }

    /// Releases of an app (or of all), oldest first. Where the node was made ready for an order it is asked on that
    /// channel, once, and stays ready.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn releases(&self, app: Option<AppName>) -> Result<Vec<Release>, NodeError> {
        let ask = Ask::Releases { app };
        let (since, mut conversation) = match self.take_ready().await {
            Some((since, mut conversation)) => {
                let request = Request { protocol: PROTOCOL, ask };
                conversation.outgoing.message(&request).await.map_err(|source| conversation.broken(source))?;
                conversation.flush().await?;
                (Some(since), conversation)
            }
            None => (None, self.request(ask).await?),
        };
        let mut releases = Vec::new();
        conversation
            .each(|event| match event {
                Event::Release(release) => {
                    releases.push(release);
                    true
                }
                _ => false,
            })
            .await?;
        if let Some(since) = since {
            let opening = tokio::spawn(std::future::ready(Ok(conversation)));
            *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ready { since, opening });
        }
        Ok(releases)
    }

    /// An image's document, checked to be of that id.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn image_document(&self, image: ImageId) -> Result<Vec<u8>, NodeError> {
        let mut conversation = self.request(Ask::ImageDocument { image }).await?;
        match conversation.event().await? {
            Event::Stream { bytes } if bytes.is_none_or(|bytes| bytes <= DOCUMENT_MAX_BYTES as u64) => {}
            _ => return Err(conversation.unexpected("no document, or too long a one")),
        }
        let mut document = Vec::new();
        while let Some(piece) = conversation.next_data().await? {
            if document.len() + piece.len() > DOCUMENT_MAX_BYTES {
                return Err(conversation.unexpected("a document of more than 64 MiB"));
            }
            document.extend_from_slice(&piece);
        }
        if ImageId::of(&document) == image {
            return Ok(document);
        }
        match bulkhead_store::pack::decompress_document(&document, None, DOCUMENT_MAX_BYTES) {
            Ok(document) if ImageId::of(&document) == image => Ok(document),
            _ => Err(conversation.unexpected(&format!("a document that is not image {}", image.short()))),
        }
    }

    /// Objects of an image that the node holds, as a pack: bits as in [`Event::Missing`]. What
    /// comes is not checked here.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn objects(&self, image: ImageId, wanted: String) -> Result<Objects, NodeError> {
        let mut conversation = self.request(Ask::Objects { image, wanted }).await?;
        match conversation.event().await? {
            Event::Stream { .. } => Ok(Objects { conversation }),
            _ => Err(conversation.unexpected("no stream")),
        }
    }

    /// Log lines, as a stream.
    ///
    /// # Errors
    /// No channel.
    pub async fn logs(
        &self,
        app: AppName,
        service: Option<ServiceName>,
        lines: u32,
        follow: bool,
    ) -> Result<Logs, NodeError> {
        let mut conversation = self.request(Ask::Logs { app, service, lines, follow }).await?;
        if follow {
            conversation.idle = FOREVER;
        }
        Ok(Logs { conversation, left: (!follow).then_some(lines) })
    }

    /// Connects to a service.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn open(&self, app: AppName, service: ServiceName) -> Result<Tunnel, NodeError> {
        let mut conversation = self.request(Ask::Open { app, service }).await?;
        match conversation.event().await? {
            Event::Stream { .. } => Ok(Tunnel { conversation }),
            _ => Err(conversation.unexpected("no stream")),
        }
    }

    /// Looks into a service.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn look(&self, app: AppName, service: ServiceName, view: View) -> Result<Look, NodeError> {
        let mut conversation = self.request(Ask::Look { app, service, view }).await?;
        let mut look = None;
        conversation
            .each(|event| match event {
                Event::Look(found) if look.is_none() => {
                    look = Some(found);
                    true
                }
                _ => false,
            })
            .await?;
        look.ok_or_else(|| conversation.unexpected("nothing was looked at"))
    }

    /// Whether the node answers.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn ping(&self) -> Result<(), NodeError> {
        self.request(Ask::Ping).await?.each(|_| false).await.map(|_| ())
    }

    /// Says goodbye.
    pub async fn close(&self) {
        self.connection.close().await;
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Conversation {
    node: String,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    /// What came while a stream was being sent.
    queue: VecDeque<Item>,
    queued_bytes: usize,
    pub(crate) ending: Option<EndingHandle>,
    idle: Duration,
}

impl Conversation {
    /// A conversation over any pair of streams.
    #[must_use]
    pub fn over(
        node: &str,
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        idle: Duration,
    ) -> Self {
        Self {
            node: node.to_owned(),
            outgoing: Outgoing::new(writer, idle),
            incoming: Incoming::new(reader),
            queue: VecDeque::new(),
            queued_bytes: 0,
            ending: None,
            idle,
        }
    }

    /// How long the node may say nothing from here on.
    pub fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    pub(crate) fn broken(&self, source: FramesError) -> NodeError {
        NodeError::Frames { node: self.node.clone(), source }
    }

    pub(crate) fn unexpected(&self, what: &str) -> NodeError {
        NodeError::Unexpected { node: self.node.clone(), what: what.to_owned() }
    }

    pub(crate) fn ended(&self) -> NodeError {
        let ending = self.ending.as_ref().map(EndingHandle::get).unwrap_or_default();
        NodeError::Ended { node: self.node.clone(), ending: Box::new(ending) }
    }

    /// Sends what was gathered.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn flush(&mut self) -> Result<(), NodeError> {
        self.outgoing.flush().await.map_err(|source| NodeError::Frames { node: self.node.clone(), source })
    }

    /// Sends a whole stream and its end. Meanwhile events are taken in and kept; where the
    /// node answers for good before the end, the rest is not sent.
    ///
    /// # Errors
    /// A broken connection, or a node that talks without end.
    pub async fn send_stream(&mut self, from: impl AsyncRead + Unpin) -> Result<u64, NodeError> {
        let node = self.node.clone();
        let broken = |source| NodeError::Frames { node: node.clone(), source };
        let sent = AtomicU64::new(0);
        let mut note = |bytes| sent.store(bytes, Ordering::Relaxed);
        let outgoing = &mut self.outgoing;
        let sending = async {
            outgoing.stream(from, &mut note).await?;
            outgoing.flush().await
        };
        tokio::pin!(sending);
        let mut listening = true;
        let answered = loop {
            tokio::select! {
                result = &mut sending => break result.map(|()| None).map_err(broken),
                item = async {
                    let before = self.incoming.event_bytes;
                    let item = self.incoming.next().await;
                    item.map(|item| (item, self.incoming.event_bytes - before))
                }, if listening => {
                    let (item, bytes) = match item.map_err(broken) {
                        Ok((Some(item), bytes)) => (item, bytes),
                        // The end shows in whatever is asked for next.
                        Ok((None, _)) => break Ok(None),
                        Err(error) => break Err(error),
                    };
                    if matches!(&item, Item::Event(event) if matches!(**event, Event::Done(_) | Event::Failed(_))) {
                        break Ok(Some(item));
                    }
                    self.queued_bytes += weight(&item).max(bytes);
                    self.queue.push_back(item);
                    // Enough: the rest waits on the connection.
                    listening = self.queued_bytes < QUEUE_MAX_BYTES;
                }
            }
        };
        if let Some(item) = answered? {
            self.queue.push_back(item);
        }
        Ok(sent.load(Ordering::Relaxed))
    }

    /// Sends one piece of a stream.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn send_data(&mut self, bytes: &[u8]) -> Result<(), NodeError> {
        let sent = self.outgoing.data(bytes).await;
        sent.map_err(|source| NodeError::Frames { node: self.node.clone(), source })
    }

    /// Ends the stream under way, and sends what was gathered.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn end_stream(&mut self) -> Result<(), NodeError> {
        let ended = self.outgoing.end().await;
        ended.map_err(|source| NodeError::Frames { node: self.node.clone(), source })?;
        self.flush().await
    }

    async fn next(&mut self) -> Result<Option<Item>, NodeError> {
        if let Some(item) = self.queue.pop_front() {
            let left = self.queued_bytes.saturating_sub(weight(&item));
            self.queued_bytes = if self.queue.is_empty() { 0 } else { left };
            return Ok(Some(item));
        }
        self.incoming
            .next_within(self.idle)
            .await
            .map_err(|source| NodeError::Frames { node: self.node.clone(), source })
    }

    /// The next event; `None` where the node closed. [`Event::Failed`] comes as it is.
    ///
    /// # Errors
    /// A broken connection, or data where none was announced.
    pub async fn next_event(&mut self) -> Result<Option<Event>, NodeError> {
        match self.next().await? {
            None => Ok(None),
            Some(Item::Event(event)) => Ok(Some(*event)),
            Some(Item::Data(_) | Item::EndOfStream) => Err(self.unexpected("a stream that was not announced")),
        }
    }

    /// The next piece of the stream under way; `None` at its end.
    ///
    /// # Errors
    /// A broken connection, a failure, or something that is not a stream.
    pub async fn next_data(&mut self) -> Result<Option<Vec<u8>>, NodeError> {
        match self.next().await? {
            Some(Item::Data(bytes)) => Ok(Some(bytes)),
            Some(Item::EndOfStream) => Ok(None),
            None => Err(self.ended()),
            Some(Item::Event(event)) => match *event {
                Event::Failed(failure) => Err(self.failed(failure)),
                _ => Err(self.unexpected("an event within a stream")),
            },
        }
    }

    pub(crate) fn failed(&self, failure: Failure) -> NodeError {
        NodeError::Failed { node: self.node.clone(), failure: Box::new(failure) }
    }

    /// The next event, which must come, and must not be a failure.
    async fn event(&mut self) -> Result<Event, NodeError> {
        match self.next_event().await? {
            None => Err(self.ended()),
            Some(Event::Failed(failure)) => Err(self.failed(failure)),
            Some(event) => Ok(event),
        }
    }

    /// Takes whatever comes up to the end, each thing within this time.
    ///
    /// # Errors
    /// The node said no, or said nothing for so long.
    pub async fn finish(mut self, patience: Duration) -> Result<Done, NodeError> {
        self.idle = patience;
        self.each(|_| true).await
    }

    /// Takes every event up to [`Event::Done`]; `take` says whether it expected the event.
    async fn each(&mut self, mut take: impl FnMut(Event) -> bool) -> Result<Done, NodeError> {
        let before = self.incoming.event_bytes;
        for _ in 0..EVENTS_MAX {
            let event = match self.event().await? {
                Event::Done(done) => return Ok(done),
                event => event,
            };
            if self.incoming.event_bytes - before > ANSWER_MAX_BYTES {
                return Err(self.unexpected("a longer answer than any is"));
            }
            if !take(event) {
                return Err(self.unexpected("an event of another kind"));
            }
        }
        Err(self.unexpected("more events than any answer has"))
    }
}

fn weight(item: &Item) -> usize {
    // Events are small on the wire and a few times that in memory; data is what it is.
    match item {
        Item::Data(bytes) => bytes.len(),
        Item::Event(_) => 4096,
        Item::EndOfStream => 1,
    }
}

/// A pack as it comes.
#[derive(Debug)]
pub struct Objects {
    conversation: Conversation,
}

impl Objects {
    /// The next piece; `None` once the whole pack came.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, NodeError> {
        match self.conversation.next_data().await? {
            Some(piece) => Ok(Some(piece)),
            None => self.conversation.each(|_| false).await.map(|_| None),
        }
    }
}

/// Log lines as they come.
#[derive(Debug)]
pub struct Logs {
    conversation: Conversation,
    /// How many more lines may come; without bound while following.
    left: Option<u32>,
}

impl Logs {
    /// The next line; `None` at the end. Cancel-safe. Escape it with [`printable`] before showing it.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn next(&mut self) -> Result<Option<LogLine>, NodeError> {
        match self.conversation.event().await? {
            Event::Done(_) => Ok(None),
            Event::Log(line) => {
                if let Some(left) = &mut self.left {
                    *left = match left.checked_sub(1) {
                        Some(left) => left,
                        None => return Err(self.conversation.unexpected("more lines than were asked for")),
                    };
                }
                Ok(Some(line))
            }
            _ => Err(self.conversation.unexpected("an event of another kind")),
        }
    }
}

/// A connection to a service.
#[derive(Debug)]
pub struct Tunnel {
    conversation: Conversation,
}

impl Tunnel {
    /// Copies both ways until the service's side is done; gives the bytes to the service and from it.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn copy(self, local: impl AsyncRead + AsyncWrite + Unpin) -> Result<(u64, u64), NodeError> {
        let Conversation { node, mut outgoing, mut incoming, mut queue, .. } = self.conversation;
        let broken = |source| NodeError::Frames { node: node.clone(), source };
        let here = |source| NodeError::Local { node: node.clone(), source };
        let (mut from_local, mut to_local) = tokio::io::split(local);
        outgoing.set_idle(FOREVER);
        let (up_bytes, down_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let up = async {
            let mut piece = vec![0; DATA_MAX_BYTES];
            loop {
                let count = from_local.read(&mut piece).await.map_err(here)?;
                if count == 0 {
                    outgoing.end().await.map_err(broken)?;
                    return outgoing.flush().await.map_err(broken);
                }
                outgoing.data(&piece[..count]).await.map_err(broken)?;
                outgoing.flush().await.map_err(broken)?;
                up_bytes.fetch_add(count as u64, Ordering::Relaxed);
            }
        };
        let down = async {
            loop {
                let item = match queue.pop_front() {
                    Some(item) => Some(item),
                    None => incoming.next().await.map_err(broken)?,
                };
                match item {
                    None => return Ok(()),
                    Some(Item::Data(bytes)) => {
                        to_local.write_all(&bytes).await.map_err(here)?;
                        to_local.flush().await.map_err(here)?;
                        down_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                    Some(Item::EndOfStream) => to_local.shutdown().await.map_err(here)?,
                    Some(Item::Event(event)) => match *event {
                        Event::Done(_) => return Ok(()),
                        Event::Failed(failure) => {
                            return Err(NodeError::Failed { node: node.clone(), failure: Box::new(failure) });
                        }
                        _ => {
                            let what = "an event within a tunnel".to_owned();
                            return Err(NodeError::Unexpected { node: node.clone(), what });
                        }
                    },
                }
            }
        };
        tokio::pin!(up, down);
        // The far side's end is the end: what this side still has to say, nobody hears.
        tokio::select! {
            result = &mut down => result?,
            result = &mut up => {
                result?;
                down.await?;
            }
        }
        Ok((up_bytes.load(Ordering::Relaxed), down_bytes.load(Ordering::Relaxed)))
    }
}
