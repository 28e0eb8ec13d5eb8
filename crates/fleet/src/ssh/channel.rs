//! One channel: a command on the far side, its input and output as byte streams.

use bytes::{Buf as _, Bytes};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client::Msg};
use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is kept of a command's standard error: enough for a message.
const STDERR_MAX_BYTES: usize = 16 << 10;

/// How a command ended, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Its exit status.
    pub exit_status: Option<u32>,
    /// The signal that ended it.
    pub signal: Option<String>,
    /// What it said on standard error, from the start. Escape it before showing it.
    pub stderr: String,
}

/// A running command.
#[derive(Debug)]
pub struct Channel {
    /// Its output. Ends when the channel does, so [`ChannelReader::ending`] is then complete.
    pub reader: ChannelReader,
    /// Its input. Shutting it down ends the command's input; dropping it closes the channel.
    pub writer: ChannelWriter,
}

type Next = Pin<Box<dyn Future<Output = (ChannelReadHalf, Option<ChannelMsg>)> + Send>>;

/// The output of a command.
pub struct ChannelReader {
    next: Option<Next>,
    data: Bytes,
    ending: Arc<Mutex<Ending>>,
}

/// The input of a command.
pub struct ChannelWriter {
    half: Option<ChannelWriteHalf<Msg>>,
    stream: Pin<Box<dyn AsyncWrite + Send>>,
}

impl fmt::Debug for ChannelReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelReader").finish_non_exhaustive()
    }
}

impl fmt::Debug for ChannelWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelWriter").finish_non_exhaustive()
    }
}

impl Channel {
    pub(super) fn new(channel: russh::Channel<Msg>) -> Self {
        let (read, write) = channel.split();
        let stream = Box::pin(write.make_writer());
        Self {
            reader: ChannelReader { next: Some(wait(read)), data: Bytes::new(), ending: Arc::default() },
            writer: ChannelWriter { half: Some(write), stream },
        }
    }

    /// A handle to how the command ended, complete once the reader is at its end.
    #[must_use]
    pub fn ending(&self) -> EndingHandle {
        EndingHandle(Arc::clone(&self.reader.ending))
    }
}

/// Tells how a command ended, when its reader and writer are elsewhere.
#[derive(Debug, Clone)]
pub struct EndingHandle(Arc<Mutex<Ending>>);

impl EndingHandle {
    /// What is known by now.
    #[must_use]
    pub fn get(&self) -> Ending {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ChannelReader {
    /// How the command ended; complete once this reader is at its end.
    #[must_use]
    pub fn ending(&self) -> Ending {
        EndingHandle(Arc::clone(&self.ending)).get()
    }

    fn note(&mut self, message: ChannelMsg) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            ChannelMsg::Data { data } => self.data = data,
            ChannelMsg::ExtendedData { data, .. } => {
                let room = STDERR_MAX_BYTES.saturating_sub(ending.stderr.len()).min(data.len());
                ending.stderr.push_str(&String::from_utf8_lossy(&data[..room]));
            }
            ChannelMsg::ExitStatus { exit_status } => ending.exit_status = Some(exit_status),
            ChannelMsg::ExitSignal { signal_name, .. } => ending.signal = Some(format!("{signal_name:?}")),
            _ => {}
        }
    }
}

fn wait(mut half: ChannelReadHalf) -> Next {
    Box::pin(async move {
        let message = half.wait().await;
        (half, message)
    })
}

impl AsyncRead for ChannelReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.data.is_empty() {
            let Some(next) = self.next.as_mut() else { return Poll::Ready(Ok(())) };
            let (half, message) = ready!(next.as_mut().poll(cx));
            self.next = match message {
                // The end of output is not yet the end: the exit status comes after it.
                None | Some(ChannelMsg::Close) => None,
                Some(message) => {
                    self.note(message);
                    Some(wait(half))
                }
            };
        }
        let count = to.remaining().min(self.data.len());
        to.put_slice(&self.data[..count]);
        self.data.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

impl Drop for ChannelWriter {
    fn drop(&mut self) {
        // Closing is a message to the connection's task. Without a runtime that task is gone, and the channel with it.
        if let (Some(half), Ok(runtime)) = (self.half.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { half.close().await.ok() });
        }
    }
}
