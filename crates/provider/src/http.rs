//! One HTTP request, sent at most once, and what is known of it when it fails.
//!
//! Each request has a connection of its own: a kept one may have been closed by
//! the other side a moment ago, and then nobody knows what became of what was
//! sent over it. `Watch` sits on top of the connection (inside TLS) and notes
//! when the first byte of a request is handed over: what fails before that was
//! not sent. The handshake of TLS is made at that moment: one that fails counts
//! as sent, which errs on the safe side.

use crate::{ProviderError, Said, limiter::Limiter};
use bulkhead_scale::MINUTE_MS;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    cell::Cell,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use ureq::{
    http::{HeaderMap, Method, Request, Uri},
    unversioned::{
        resolver::DefaultResolver,
        transport::{Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport},
    },
};
use zeroize::Zeroizing;

/// The most that is read of an answer. A page of 200 droplets is about 1 MiB.
const BODY_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// After "too many requests" without a time.
const RETRY_AFTER_MS: u64 = MINUTE_MS;

/// What a provider is asked with. `Debug` does not show it, and it is wiped when it is dropped.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes a token; white space around it is left out.
    ///
    /// # Errors
    /// Where it is empty, or has what cannot be in a header.
    pub fn new(text: &str) -> Result<Self, ProviderError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ProviderError::Token);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// How a provider is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where its API is, without `/` at the end: `https://api.digitalocean.com`. Anything but HTTPS is for this
    /// machine's own addresses.
    pub base_url: String,
    /// The token.
    pub token: Token,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long all of a request may take, its connection and answer among that.
    pub timeout: Duration,
}

impl Settings {
    /// The usual times: 10 s and 30 s.
    #[must_use]
    pub fn new(base_url: &str, token: Token) -> Self {
        let (connect_timeout, timeout) = (Duration::from_secs(10), Duration::from_secs(30));
        Self { base_url: base_url.to_owned(), token, connect_timeout, timeout }
    }
}

/// How a provider writes errors.
pub(crate) type ReadError = fn(&[u8]) -> Option<Said>;

/// A client of one provider.
#[derive(Debug)]
pub(crate) struct Http {
    agent: ureq::Agent,
    base_url: String,
    token: Token,
    read_error: ReadError,
    limiter: Mutex<Limiter>,
    began: Instant,
}

impl Http {
    pub(crate) fn new(settings: Settings, limiter: Limiter, read_error: ReadError) -> Result<Self, ProviderError> {
        let uri: Option<Uri> = settings.base_url.parse().ok();
        let uri = uri.filter(|uri| uri.query().is_none() && !settings.base_url.ends_with('/'));
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        let is_own = matches!(host, "127.0.0.1" | "[::1]" | "localhost");
        match uri.as_ref().and_then(Uri::scheme_str) {
            Some("https") => {}
            Some("http") if is_own => {}
            _ => return Err(ProviderError::Address(settings.base_url)),
        }
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_global(Some(settings.timeout));
        if is_own {
            config = config.proxy(None);
        }
        let agent = ureq::Agent::with_parts(
            config.build(),
            DefaultConnector::new().chain(WatchConnector),
            DefaultResolver::default(),
        );
        let Settings { base_url, token, .. } = settings;
        Ok(Self { agent, base_url, token, read_error, limiter: Mutex::new(limiter), began: Instant::now() })
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ProviderError> {
        self.read(&Method::GET, path, None)
    }

    /// Sends a request and reads its answer as JSON.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<T, ProviderError> {
        let body = self.send(method, path, body)?;
        serde_json::from_slice(&body)
            .map_err(|source| ProviderError::Malformed { request: named(method, path), source })
    }

    /// Sends a request, once, and returns the body of its answer, which was 2xx.
    pub(crate) fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Vec<u8>, ProviderError> {
        let request = || named(method, path);
        self.admit()?;
        let built = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base_url))
            .header("authorization", format!("Bearer {}", *self.token.0))
            .header("content-type", "application/json");
        SENT.set(false);
        let answer = match body {
            Some(body) => {
                built.body(body.to_string()).map_err(ureq::Error::from).and_then(|built| self.agent.run(built))
            }
            None => built.body(()).map_err(ureq::Error::from).and_then(|built| self.agent.run(built)),
        };
        let mut answer = answer.map_err(|error| {
            let source = Box::new(error);
            match SENT.get() {
                true => ProviderError::Unanswered { request: request(), source },
                false => ProviderError::Unreached { request: request(), source },
            }
        })?;
        let status = answer.status().as_u16();
        let wait_ms = wait(status, answer.headers(), SystemTime::now());
        if let Some(wait_ms) = wait_ms {
            self.limiter().close(self.now_ms(), wait_ms);
        }
        let body = answer.body_mut().with_config().limit(BODY_MAX_BYTES).read_to_vec();
        match (status, body) {
            (429, _) => Err(ProviderError::RateLimited { retry_after_ms: wait_ms.unwrap_or(RETRY_AFTER_MS) }),
            (_, Err(error)) => Err(ProviderError::Unanswered { request: request(), source: Box::new(error) }),
            (200..=299, Ok(body)) => Ok(body),
            (_, Ok(body)) => {
                let said = (self.read_error)(&body).unwrap_or_default();
                Err(ProviderError::Said { request: request(), status, said })
            }
        }
    }

    fn admit(&self) -> Result<(), ProviderError> {
        let now_ms = self.now_ms();
        self.limiter().admit(now_ms).map_err(|retry_after_ms| ProviderError::RateLimited { retry_after_ms })
    }

    fn limiter(&self) -> std::sync::MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A request as errors name it: without its query's values, which say nothing of what went wrong.
pub(crate) fn named(method: &Method, path: &str) -> String {
    format!("{method} {}", path.split('?').next().unwrap_or(path))
}

/// How long the provider takes no further request, by the headers of an answer.
fn wait(status: u16, headers: &HeaderMap, now: SystemTime) -> Option<u64> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let is_empty = number("ratelimit-remaining") == Some(0);
    if status != 429 && !is_empty {
        return None;
    }
    let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // The reset is a moment, in seconds since 1970.
    let reset_s = number("ratelimit-reset").map(|reset_s| reset_s.saturating_sub(now_s));
    let seconds = if status == 429 { number("retry-after").or(reset_s) } else { reset_s };
    Some(seconds.map_or(RETRY_AFTER_MS, |seconds| seconds.max(1).saturating_mul(1000)))
}

thread_local! {
    /// Whether the request under way on this thread has begun to be sent: ureq carries requests out on their callers'
    /// threads.
    static SENT: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug)]
struct WatchConnector;

impl<In: Transport> Connector<In> for WatchConnector {
    type Out = Watch<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Watch<In>>, ureq::Error> {
        Ok(chained.map(Watch))
    }
}

#[derive(Debug)]
struct Watch<T>(T);

impl<T: Transport> Transport for Watch<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        SENT.set(true);
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

/// One page of a list: how long it is said to be, and what is on the page.
pub(crate) struct Page<T> {
    pub(crate) total: u64,
    pub(crate) items: Vec<T>,
}

/// How often a list is read that changes under its reader.
const LIST_TRIES: u32 = 3;
/// The most that is believed of a list: more machines than any fleet has.
const LIST_MAX: u64 = 20_000;

/// Reads a list whole, sorted: `page` reads its nth page, from 1 on; `key` tells items apart.
pub(crate) fn read_all<T, K: Ord>(
    what: &'static str,
    page_size: u64,
    key: impl Fn(&T) -> K,
    page: impl Fn(u64) -> Result<Page<T>, ProviderError>,
) -> Result<Vec<T>, ProviderError> {
    'tries: for _ in 0..LIST_TRIES {
        let Page { total, mut items } = page(1)?;
        if total > LIST_MAX {
            return Err(ProviderError::TooMany { what, total, max: LIST_MAX });
        }
        for nth in 2..=total.div_ceil(page_size) {
            let next = page(nth)?;
            if next.total != total {
                continue 'tries;
            }
            items.extend(next.items);
        }
        items.sort_by_key(&key);
        items.dedup_by_key(|item| key(item));
        if items.len() as u64 == total {
            return Ok(items);
        }
    }
    Err(ProviderError::Unsteady { what, tries: LIST_TRIES })
}

/// Text as the value of a query.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// `{"id": …, "message": …, "request_id": …}`, as DigitalOcean has it.
#[derive(Deserialize)]
pub(crate) struct PlainError {
    #[serde(default)]
    id: String,
    #[serde(default)]
    message: String,
    request_id: Option<String>,
}

impl PlainError {
    pub(crate) fn read(body: &[u8]) -> Option<Said> {
        let Self { id, message, request_id } = serde_json::from_slice(body).ok()?;
        Some(Said { id, message, request_id })
    }
}
