//! ssh-agent: list keys, sign (draft-miller-ssh-agent). Unix sockets, the named
//! pipe of Windows' OpenSSH, and Pageant.
//!
//! Keys and signatures are kept as the bytes the agent gave: a key type that is
//! unknown here is passed over, and a security key's signature keeps its flags
//! and counter. An answer is bounded in size; waiting is bounded by the caller,
//! because a touch or a confirmation takes as long as a person takes.

use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// OpenSSH's own bound (`MAX_AGENT_REPLY_LEN`).
const REPLY_MAX_BYTES: usize = 256 << 10;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// Ask for rsa-sha2-512; ignored for other keys.
const FLAG_RSA_SHA2_512: u32 = 4;

/// Why an agent was of no use.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It could not be reached.
    #[error("cannot reach the ssh-agent at {address}")]
    Connect {
        /// Where it should be.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversation with it broke.
    #[error("the conversation with the ssh-agent broke")]
    Io(#[source] io::Error),
    /// It answered something that is no answer.
    #[error("the ssh-agent gave a malformed answer")]
    Malformed,
    /// It does not hold the key, or a person declined, or no one touched the security key.
    #[error("the ssh-agent refused to sign")]
    Refused,
}

/// A key that an agent holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKey {
    /// The public key, in binary form.
    pub blob: Vec<u8>,
    /// What its owner calls it.
    pub comment: String,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection to an agent.
pub struct Agent {
    stream: Box<dyn Stream>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

/// Where this machine's agent is by default: `SSH_AUTH_SOCK`, or Windows' named pipe.
#[must_use]
pub fn default_address() -> Option<String> {
    let from_environment = std::env::var("SSH_AUTH_SOCK").ok().filter(|path| !path.is_empty());
    if cfg!(windows) {
        Some(from_environment.unwrap_or_else(|| r"\\.\pipe\openssh-ssh-agent".to_owned()))
    } else {
        from_environment
    }
}

impl Agent {
    /// Connects to the agent at an address: a socket's path, or a pipe's name.
    ///
    /// # Errors
    /// Where nothing answers there.
    pub async fn connect(address: &str) -> Result<Self, AgentError> {
        match connect_stream(address).await {
            Ok(stream) => Ok(Self { stream }),
            Err(source) => Err(AgentError::Connect { address: address.to_owned(), source }),
        }
    }

    /// The keys it holds, in its order. Certificates are passed over.
    ///
    /// # Errors
    /// A broken conversation.
    pub async fn keys(&mut self) -> Result<Vec<AgentKey>, AgentError> {
        let answer = self.ask(&[REQUEST_IDENTITIES]).await?;
        let (IDENTITIES_ANSWER, mut rest) = split_kind(&answer)? else { return Err(AgentError::Malformed) };
        let count = take_u32(&mut rest)?;
        let mut keys = Vec::new();
        for _ in 0..count {
            let blob = take_string(&mut rest)?.to_vec();
            let comment = String::from_utf8_lossy(take_string(&mut rest)?).into_owned();
            let mut inner = blob.as_slice();
            if !take_string(&mut inner)?.ends_with(b"-cert-v01@openssh.com") {
                keys.push(AgentKey { blob, comment });
            }
        }
        Ok(keys)
    }

    /// Signs with the key of this binary form. Gives the signature's binary form:
    /// string type, string bytes, and for a security key flags and counter.
    ///
    /// # Errors
    /// A refusal or a broken conversation.
    pub async fn sign(&mut self, blob: &[u8], data: &[u8]) -> Result<Vec<u8>, AgentError> {
        let mut request = vec![SIGN_REQUEST];
        put_string(&mut request, blob)?;
        put_string(&mut request, data)?;
        request.extend_from_slice(&FLAG_RSA_SHA2_512.to_be_bytes());
        let answer = self.ask(&request).await?;
        let (SIGN_RESPONSE, mut rest) = split_kind(&answer)? else { return Err(AgentError::Refused) };
        Ok(take_string(&mut rest)?.to_vec())
    }

    async fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>, AgentError> {
        let mut message = Vec::with_capacity(request.len() + 4);
        put_string(&mut message, request)?;
        self.stream.write_all(&message).await.map_err(AgentError::Io)?;
        self.stream.flush().await.map_err(AgentError::Io)?;
        let length = self.stream.read_u32().await.map_err(AgentError::Io)? as usize;
        if length > REPLY_MAX_BYTES {
            return Err(AgentError::Malformed);
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await.map_err(AgentError::Io)?;
        Ok(answer)
    }
}

#[cfg(unix)]
async fn connect_stream(address: &str) -> io::Result<Box<dyn Stream>> {
    Ok(Box::new(tokio::net::UnixStream::connect(address).await?))
}

#[cfg(windows)]
async fn connect_stream(address: &str) -> io::Result<Box<dyn Stream>> {
    match tokio::net::windows::named_pipe::ClientOptions::new().open(address) {
        Ok(pipe) => Ok(Box::new(pipe)),
        // Where OpenSSH's agent does not run, Pageant may.
        Err(error) => match russh::keys::agent::client::AgentClient::connect_pageant().await {
            Ok(client) => Ok(Box::new(Pageant(client.into_inner()))),
            Err(_) => Err(error),
        },
    }
}

#[cfg(windows)]
struct Pageant(Box<dyn russh::keys::agent::client::AgentStream + Send + Unpin>);

#[cfg(windows)]
mod pageant {
    use super::Pageant;
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    impl AsyncRead for Pageant {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.0).poll_read(cx, to)
        }
    }

    impl AsyncWrite for Pageant {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut *self.0).poll_write(cx, from)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.0).poll_shutdown(cx)
        }
    }
}

fn split_kind(answer: &[u8]) -> Result<(u8, &[u8]), AgentError> {
    answer.split_first().map(|(kind, rest)| (*kind, rest)).ok_or(AgentError::Malformed)
}

fn take_u32(from: &mut &[u8]) -> Result<u32, AgentError> {
    let (head, rest) = from.split_first_chunk::<4>().ok_or(AgentError::Malformed)?;
    *from = rest;
    Ok(u32::from_be_bytes(*head))
}

fn take_string<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], AgentError> {
    let length = take_u32(from)? as usize;
    let (head, rest) = from.split_at_checked(length).ok_or(AgentError::Malformed)?;
    *from = rest;
    Ok(head)
}

fn put_string(to: &mut Vec<u8>, bytes: &[u8]) -> Result<(), AgentError> {
    let length = u32::try_from(bytes.len()).map_err(|_| AgentError::Malformed)?;
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that gives one answer to whatever it is asked.
    async fn answering(answer: Vec<u8>) -> Agent {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(&answer).await.unwrap();
        // The far end stays open: the answer alone must end the wait.
        tokio::spawn(async move { tokio::io::copy(&mut far, &mut tokio::io::sink()).await });
        Agent { stream: Box::new(near) }
    }

    fn string(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, bytes).unwrap();
        out
    }

    #[tokio::test]
    async fn certificates_are_passed_over() {
        let (key, certificate) = (string(b"ssh-new-type"), string(b"ssh-ed25519-cert-v01@openssh.com"));
        let list = [string(&certificate), string(b"c"), string(&key), string(b"name")].concat();
        let answer = string(&[vec![IDENTITIES_ANSWER, 0, 0, 0, 2], list].concat());
        let keys = answering(answer).await.keys().await.unwrap();
        assert_eq!(keys, [AgentKey { blob: key, comment: "name".into() }]);
    }

    #[tokio::test]
    async fn hostile_answers_are_errors() {
        for answer in [
            u32::MAX.to_be_bytes().to_vec(),
            string(&[]),
            string(&[IDENTITIES_ANSWER]),
            string(&[IDENTITIES_ANSWER, 255, 255, 255, 255]),
            string(&[IDENTITIES_ANSWER, 0, 0, 0, 1, 0, 0, 0, 9, 1]),
            string(&[5]),
        ] {
            assert!(matches!(answering(answer.clone()).await.keys().await, Err(AgentError::Malformed)), "{answer:?}");
        }
        assert!(matches!(answering(string(&[5])).await.sign(b"k", b"d").await, Err(AgentError::Refused)));
    }
}
