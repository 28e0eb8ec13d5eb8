//! A TCP relay that behaves like a long, thin line: a fixed delay and a fixed
//! bandwidth each way, with counts of what went through.
//!
//! What it models: the TCP handshake (one round trip before the first byte), the
//! delay of every byte, and serialisation: all connections of a relay share one
//! line, and a byte leaves only when those before it have left. What it leaves
//! out: loss, slow start, and the bytes of TCP, IP and link headers. Bytes are
//! payload.
//!
//! # Round trips
//!
//! Elapsed time over the round-trip time is a poor count, since computing
//! takes time too. Instead each chunk carries its place in the longest chain of
//! chunks of which each was sent after the one before had arrived. The handshake is the
//! first round trip; a client's chunk is one further than the furthest chunk
//! that reached the client before it was sent; a server's chunk is as far as
//! the furthest that had reached the server. The count of a connection is the
//! furthest chunk that reached the client.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// What is read at once: some eleven Ethernet frames.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks under way in one direction of one connection before the sender is
/// slowed down: 1 MiB, more than any line here holds in one delay.
const UNDER_WAY_MAX: usize = 64;
/// The chain's length when the handshake's SYN-ACK reaches the client.
const HANDSHAKE: u64 = 1;

/// How long and how wide a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// From one end to the other, one way.
    pub delay: Duration,
    /// Each way.
    pub bytes_per_second: u64,
}

impl Line {
    /// The line of the benchmarks: 50 ms round trip, 50 Mbit/s each way.
    pub const WAN: Self = Self { delay: Duration::from_millis(25), bytes_per_second: 50_000_000 / 8 };
}

/// What went through a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Payload bytes from clients.
    pub up_bytes: u64,
    /// Payload bytes to clients.
    pub down_bytes: u64,
    /// The longest chain of any one connection, see the module's description.
    pub round_trips: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    round_trips: AtomicU64,
}

/// A running relay. Dropping it closes its port and all its connections.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    line: Line,
    /// When each direction of the line is free for the next byte.
    up_free: Mutex<Instant>,
    down_free: Mutex<Instant>,
    counters: Counters,
    stopping: AtomicBool,
    /// Both ends of every connection, to close them when the relay is dropped.
    open: Mutex<Vec<TcpStream>>,
}

struct Chunk {
    bytes: Vec<u8>,
    arrives: Instant,
    depth: u64,
}

/// One direction of one connection.
struct Direction {
    shared: Arc<Shared>,
    up: bool,
    /// Nothing leaves before this: the handshake takes its time.
    opens: Instant,
    /// The furthest chunk that has arrived at this direction's sender; read when it sends.
    arrived_at_sender: Arc<AtomicU64>,
    /// The furthest chunk that has arrived at its receiver; written when one arrives.
    arrived_at_receiver: Arc<AtomicU64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked here is valid after any panic: an instant, a list of sockets.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// Listens on a free loopback port and relays what comes to `target`.
    ///
    /// # Errors
    /// No port could be had.
    pub fn start(target: SocketAddr, line: Line) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let now = Instant::now();
        let shared = Arc::new(Shared {
            target,
            line,
            up_free: Mutex::new(now),
            down_free: Mutex::new(now),
            counters: Counters::default(),
            stopping: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
        });
        let for_thread = Arc::clone(&shared);
        thread::Builder::new().name("relay".into()).spawn(move || accept(&listener, &for_thread))?;
        Ok(Self { address, shared })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What went through since the start or the last [`Relay::reset`].
    #[must_use]
    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        Counts {
            connections: counters.connections.load(Ordering::SeqCst),
            up_bytes: counters.up_bytes.load(Ordering::SeqCst),
            down_bytes: counters.down_bytes.load(Ordering::SeqCst),
            round_trips: counters.round_trips.load(Ordering::SeqCst),
        }
    }

    /// Sets all counts to zero; chains of connections that are open go on.
    pub fn reset(&self) {
        let counters = &self.shared.counters;
        for counter in [&counters.connections, &counters.up_bytes, &counters.down_bytes, &counters.round_trips] {
            counter.store(0, Ordering::SeqCst);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for stream in lock(&self.shared.open).drain(..) {
            // A connection that has ended already is what is wanted.
            drop(stream.shutdown(Shutdown::Both));
        }
        // Wakes the accepting thread, which then sees that it must stop.
        drop(TcpStream::connect(self.address));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let accepted = Instant::now();
        shared.counters.connections.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(shared);
        let spawned = thread::Builder::new().name("relay-connection".into()).spawn(move || {
            // Where the target refuses, the client sees its connection end, as behind any relay.
            if let Err(error) = connect(client, &shared, accepted) {
                drop(error);
            }
        });
        drop(spawned);
    }
}

fn connect(client: TcpStream, shared: &Arc<Shared>, accepted: Instant) -> io::Result<()> {
    let delay = shared.line.delay;
    // SYN, SYN-ACK, ACK: only now does the target know of the connection.
    sleep_until(accepted + 3 * delay);
    let server = TcpStream::connect(shared.target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    {
        let mut open = lock(&shared.open);
        open.push(client.try_clone()?);
        open.push(server.try_clone()?);
    }
    // Relay dropped meanwhile: its list was emptied before these were in it.
    if shared.stopping.load(Ordering::SeqCst) {
        client.shutdown(Shutdown::Both)?;
        return server.shutdown(Shutdown::Both);
    }
    let at_client = Arc::new(AtomicU64::new(HANDSHAKE));
    let at_server = Arc::new(AtomicU64::new(HANDSHAKE + 1));
    let up = Direction {
        shared: Arc::clone(shared),
        up: true,
        opens: accepted + 2 * delay,
        arrived_at_sender: Arc::clone(&at_client),
        arrived_at_receiver: Arc::clone(&at_server),
    };
    let down = Direction {
        shared: Arc::clone(shared),
        up: false,
        opens: accepted,
        arrived_at_sender: at_server,
        arrived_at_receiver: at_client,
    };
    let (client_reads, server_reads) = (client.try_clone()?, server.try_clone()?);
    thread::scope(|scope| {
        scope.spawn(|| up.carry(client_reads, server));
        down.carry(server_reads, client);
    });
    Ok(())
}

impl Direction {
    fn carry(&self, from: TcpStream, to: TcpStream) {
        let (sender, receiver) = sync_channel(UNDER_WAY_MAX);
        thread::scope(|scope| {
            scope.spawn(move || self.deliver(&receiver, &to));
            // Either end may hang up at any moment; what arrived until then was delivered.
            drop(self.take(from, sender));
        });
    }

    fn take(&self, mut from: TcpStream, sender: SyncSender<Chunk>) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let depth = self.arrived_at_sender.load(Ordering::SeqCst) + u64::from(self.up);
            let counters = &self.shared.counters;
            let bytes = if self.up { &counters.up_bytes } else { &counters.down_bytes };
            bytes.fetch_add(count as u64, Ordering::SeqCst);
            let chunk = Chunk { bytes: buffer[..count].to_vec(), arrives: self.arrival(count), depth };
            if sender.send(chunk).is_err() {
                return Ok(());
            }
        }
    }

    /// When a chunk that is sent now will have arrived.
    fn arrival(&self, count: usize) -> Instant {
        let line = self.shared.line;
        let mut free = lock(if self.up { &self.shared.up_free } else { &self.shared.down_free });
        let starts = (*free).max(Instant::now()).max(self.opens);
        *free = starts + Duration::from_secs_f64(count as f64 / line.bytes_per_second as f64);
        *free + line.delay
    }

    fn deliver(&self, receiver: &Receiver<Chunk>, mut to: &TcpStream) {
        let counters = &self.shared.counters;
        while let Ok(chunk) = receiver.recv() {
            sleep_until(chunk.arrives);
            // Before the bytes: what the receiver sends in answer must see it.
            self.arrived_at_receiver.fetch_max(chunk.depth, Ordering::SeqCst);
            if !self.up {
                counters.round_trips.fetch_max(chunk.depth, Ordering::SeqCst);
            }
            if to.write_all(&chunk.bytes).is_err() {
                // Ends the reading side too: nobody is left to receive.
                drop(to.shutdown(Shutdown::Both));
                return;
            }
        }
        drop(to.shutdown(Shutdown::Write));
    }
}

fn sleep_until(instant: Instant) {
    thread::sleep(instant.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends back what it gets, in pieces as they come, until the client ends.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut reader = stream.try_clone().unwrap();
                    io::copy(&mut reader, &mut stream).unwrap();
                });
            }
        });
        address
    }

    fn ping(stream: &mut TcpStream, text: &[u8]) {
        stream.write_all(text).unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, text);
    }

    #[test]
    fn delay_handshake_and_round_trips() {
        let line = Line { delay: Duration::from_millis(10), bytes_per_second: 1 << 30 };
        let relay = Relay::start(echo(), line).unwrap();
        let start = Instant::now();
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        for _ in 0..3 {
            ping(&mut stream, b"ping");
        }
        // One round trip for the handshake and one for each ping.
        assert!(start.elapsed() >= 4 * 2 * line.delay, "{:?}", start.elapsed());
        assert_eq!(relay.counts(), Counts { connections: 1, up_bytes: 12, down_bytes: 12, round_trips: 4 });
        relay.reset();
        assert_eq!(relay.counts(), Counts::default());
    }

    #[test]
    fn bandwidth_is_shared_by_all_connections() {
        let line = Line { delay: Duration::ZERO, bytes_per_second: 2_000_000 };
        let relay = Relay::start(echo(), line).unwrap();
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut stream = TcpStream::connect(relay.address()).unwrap();
                    for _ in 0..10 {
                        ping(&mut stream, &[7; 10_000]);
                    }
                });
            }
        });
        // 200 kB each way; up and down overlap at best wholly.
        assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
        assert_eq!(relay.counts().up_bytes, 200_000);
        assert_eq!(relay.counts().down_bytes, 200_000);
    }

    #[test]
    fn one_end_may_finish_before_the_other() {
        let relay = Relay::start(echo(), Line { delay: Duration::ZERO, bytes_per_second: 1 << 30 }).unwrap();
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        stream.write_all(b"all of it").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).unwrap();
        assert_eq!(back, "all of it");
    }

    #[test]
    fn a_dropped_relay_hangs_up() {
        let relay = Relay::start(echo(), Line { delay: Duration::ZERO, bytes_per_second: 1 << 30 }).unwrap();
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        ping(&mut stream, b"x");
        drop(relay);
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
}
