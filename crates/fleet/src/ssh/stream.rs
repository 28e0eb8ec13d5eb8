//! The byte stream under an SSH connection: TCP, a jump host's channel, or a proxy command.

use super::{ConnectError, Connection, Target};
use std::{
    io,
    pin::Pin,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout},
};

/// How long one of several addresses of a name is tried before the next.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes on the wire.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    pub(super) fn get(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Duplex for S {}

/// A stream that counts.
pub(super) struct Counted {
    stream: Pin<Box<dyn Duplex>>,
    traffic: Arc<Traffic>,
}

pub(super) async fn open(
    target: &Target,
    via: Option<&Connection>,
    traffic: Arc<Traffic>,
) -> Result<Counted, ConnectError> {
    let stream: Pin<Box<dyn Duplex>> = match (via, &target.proxy_command) {
        (Some(via), _) => {
            let opening =
                via.inner.handle.channel_open_direct_tcpip(target.host.clone(), u32::from(target.port), "127.0.0.1", 0);
            let failed = |source| ConnectError::Unreachable { address: target.address(), source };
            let channel = opening.await.map_err(|error| failed(io::Error::other(error)))?;
            Box::pin(channel.into_stream())
        }
        (None, Some(command)) => Box::pin(Proxy::run(command)?),
        (None, None) => Box::pin(tcp(target).await?),
    };
    Ok(Counted { stream, traffic })
}

async fn tcp(target: &Target) -> Result<TcpStream, ConnectError> {
    let resolve = |source| ConnectError::Resolve { host: target.host.clone(), source };
    let addresses: Vec<_> =
        tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(resolve)?.collect();
    // A name may have addresses that lead nowhere (IPv6 without a route): the others get their turn in time.
    let patience = if addresses.len() > 1 { ADDRESS_TIMEOUT } else { Duration::MAX };
    let mut last = None;
    for address in addresses {
        let connecting = tokio::time::timeout(patience, TcpStream::connect(address));
        match connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                // Frames are written whole, so there is nothing to wait for. Without it, it is merely slower.
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        None => resolve(io::Error::other("it has no address")),
        Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            ConnectError::Refused { address: target.address() }
        }
        Some(source) => ConnectError::Unreachable { address: target.address(), source },
    })
}

/// A proxy command; it ends with the connection.
struct Proxy {
    /// Killed when dropped.
    _child: Child,
    output: ChildStdout,
    input: ChildStdin,
}

impl Proxy {
    fn run(command: &str) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::ProxyCommand { command: command.to_owned(), source };
        let mut shell = if cfg!(windows) {
            let mut shell = tokio::process::Command::new("cmd.exe");
            shell.args(["/C", command]);
            shell
        } else {
            let mut shell = tokio::process::Command::new("/bin/sh");
            shell.args(["-c", &format!("exec {command}")]);
            shell
        };
        let shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = shell.spawn().map_err(failed)?;
        match (child.stdout.take(), child.stdin.take()) {
            (Some(output), Some(input)) => Ok(Self { _child: child, output, input }),
            _ => Err(failed(io::Error::other("it has no input or output"))),
        }
    }
}

impl AsyncRead for Proxy {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, to)
    }
}

impl AsyncWrite for Proxy {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(cx, from)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(cx)
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        ready!(self.stream.as_mut().poll_read(cx, to))?;
        self.traffic.received.fetch_add((to.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(self.stream.as_mut().poll_write(cx, from))?;
        self.traffic.sent.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}
