//! HTTP/1.1 over TCP, and connections that end without an answer.

use crate::{
    Faults, Options,
    world::{Asked, Exchange, Kind, Reply, Silence, World},
};
use bulkhead_scale::{Micros, ServerId, Time};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{net::TcpListener, sync::oneshot};

/// The most that a request may bring: ten names and 64 KiB of user data are far less.
const BODY_MAX_BYTES: usize = 1024 * 1024;
/// How long a connection is kept without an answer, in real time: longer than any client waits.
const HANG: Duration = Duration::from_secs(120);

/// Why a fake cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen}")]
pub struct StartError {
    /// Where.
    listen: SocketAddr,
    source: io::Error,
}

/// A running fake; it ends when this is dropped.
#[derive(Debug)]
pub struct Fake {
    url: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    clock: Clock,
}

/// The real clock, times a factor, and moved on.
#[derive(Debug)]
struct Clock {
    began: Instant,
    began_ms: u64,
    speed: u32,
    ahead_ms: Mutex<u64>,
}

impl Clock {
    fn now(&self) -> Time {
        let passed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let ahead_ms = *self.ahead_ms.lock().unwrap_or_else(PoisonError::into_inner);
        Time(self.began_ms).plus(passed_ms.saturating_mul(u64::from(self.speed))).plus(ahead_ms)
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fake {
    /// Starts one, on a thread of its own.
    ///
    /// # Errors
    /// Where it cannot listen.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let wrong = |source| StartError { listen: options.listen, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(wrong)?;
        let listener = runtime.block_on(TcpListener::bind(options.listen)).map_err(wrong)?;
        let url = format!("http://{}", listener.local_addr().map_err(wrong)?);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = Clock {
            began: Instant::now(),
            began_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            speed: options.speed.max(1),
            ahead_ms: Mutex::new(0),
        };
        let world = Mutex::new(World::new(&options, url.clone()));
        let shared = Arc::new(Shared { world, clock });
        let (stop, stopped) = oneshot::channel();
        let served = shared.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, served) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { url, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it is, without `/` at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }

    /// Moves its clock on.
    pub fn advance(&self, span_ms: u64) {
        let mut ahead_ms = self.shared.clock.ahead_ms.lock().unwrap_or_else(PoisonError::into_inner);
        *ahead_ms = ahead_ms.saturating_add(span_ms);
    }

    /// From now on it misbehaves like this.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.world().cloud.faults = faults;
    }

    /// The next request of this kind goes wrong like this; several are taken in their order.
    pub fn once(&self, kind: Kind, faults: Faults) {
        self.shared.world().once.push_back((kind, faults));
    }

    /// What comes instead of an answer from now on, where none does.
    pub fn set_silence(&self, silence: Silence) {
        self.shared.world().silence = Some(silence);
    }

    /// A droplet has this public address.
    pub fn set_address(&self, id: ServerId, address: Ipv4Addr) {
        if let Some(order) = self.shared.world().orders.get_mut(&id) {
            order.address = Some(address);
        }
    }

    /// Those that exist: what costs money.
    #[must_use]
    pub fn existing(&self) -> Vec<(ServerId, Arc<str>)> {
        let now = self.shared.clock.now();
        let mut world = self.shared.world();
        world.cloud.settle(now);
        world.cloud.existing(now).map(|real| (real.id, real.name.clone())).collect()
    }

    /// How many requests to create one there were.
    #[must_use]
    pub fn creates(&self) -> u64 {
        self.shared.world().cloud.asked
    }

    /// How many exist because a deletion was undone, and how many will yet.
    #[must_use]
    pub fn undone(&self) -> (usize, usize) {
        let now = self.shared.clock.now();
        let mut world = self.shared.world();
        world.cloud.settle(now);
        (world.cloud.undead(), world.cloud.returning())
    }

    /// What all of them have cost.
    #[must_use]
    pub fn bill(&self) -> Micros {
        self.shared.world().cloud.bill(self.shared.clock.now())
    }

    /// How often somebody tried to delete droplets by tag.
    #[must_use]
    pub fn deletes_by_tag(&self) -> u64 {
        self.shared.world().deletes_by_tag
    }

    /// The last requests and what they were answered, oldest first.
    #[must_use]
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.shared.world().exchanges.iter().cloned().collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // Where nobody listens any more, it has ended already.
        self.stop.take().map(|stop| stop.send(())).unwrap_or(Ok(())).unwrap_or_default();
        self.thread.take().map(JoinHandle::join).unwrap_or(Ok(())).unwrap_or_default();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // One connection that went away before it was taken is no reason to end.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(shared.clone(), request));
            // An error is how a connection ends without an answer.
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.unwrap_or_default();
        });
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, io::Error> {
    let (head, body) = request.into_parts();
    let gone = || io::Error::from(io::ErrorKind::ConnectionAborted);
    let body = Limited::new(body, BODY_MAX_BYTES).collect().await.map_err(|_| gone())?.to_bytes();
    let token = head.headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let asked = Asked::new(head.method.as_str(), head.uri.path(), head.uri.query(), &body, token);
    let reply = shared.world().answer(&asked, shared.clock.now());
    let (status, headers, body) = match reply {
        Reply::Silence(Silence::Closes) => return Err(gone()),
        Reply::Silence(Silence::Hangs) => {
            tokio::time::sleep(HANG).await;
            return Err(gone());
        }
        Reply::Silence(Silence::Breaks) => {
            let body = serde_json::json!({ "id": "server_error", "message": "Unexpected server-side error" });
            (500, Vec::new(), body.to_string())
        }
        Reply::Json { status, headers, body } => (status, headers, body.map_or(String::new(), |body| body.to_string())),
    };
    let mut response = Response::builder().status(status).header("content-type", "application/json; charset=utf-8");
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::from(body))).map_err(io::Error::other)
}
