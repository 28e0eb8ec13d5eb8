//! Buying machines and giving them back, at providers that answer late, twice or not at all.
//!
//! [`Provider`] is what a scaler's commands are carried out with. Its calls
//! block; whoever calls them has a thread for each.
//!
//! | module | holds |
//! |---|---|
//! | `digitalocean` | DigitalOcean, API v2 |
//! | `hetzner` | Hetzner Cloud, API v1 |
//! | `fixed` | machines that are there already, and are leased |
//! | `http` | one request, sent at most once |
//! | `limiter` | requests in a minute and an hour |
//! | `read` | amounts of money and moments, exactly |
//!
//! Invariants:
//! - A request that makes something is sent once. Nothing here, and nothing
//!   below it, repeats one, follows a redirection with one, or sends it over a
//!   connection that was used before.
//! - An answer is definite only where it must be: what began to be sent and
//!   was not answered whole, and whatever a broken provider says (5xx), is
//!   [`CreateAnswer::Unclear`]. A connection that was never made is a refusal.
//! - A list is whole or an error: all its pages agree on how many there are,
//!   and that many different ones were read.
//! - A machine is deleted by its number, after its name was read by that
//!   number. Nothing is ever deleted by tag or label.
//! - A token is in no error, and in nothing that `Debug` shows.

mod digitalocean;
mod fixed;
mod hetzner;
mod http;
mod limiter;
mod read;

pub use digitalocean::{Account, DigitalOcean, Size};
pub use fixed::{Fixed, FixedMachine};
pub use hetzner::Hetzner;
pub use http::{Settings, Token};

use bulkhead_scale::{Billing, CreateAnswer, DeleteAnswer, Server, ServerId, Time};
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
};

/// Where machines come from.
pub trait Provider: fmt::Debug + Send + Sync {
    /// What it is like.
    fn capabilities(&self) -> Capabilities;

    /// Asks for one machine, once.
    fn create(&self, wanted: &Wanted) -> Answer<CreateAnswer>;

    /// Asks for machines that differ in nothing but their names, in as few requests as the provider allows. There is
    /// one answer for each of `names`, in their order; `like.name` does not count.
    fn create_many(&self, names: &[Arc<str>], like: &Wanted) -> Vec<Answer<CreateAnswer>> {
        names.iter().map(|name| self.create(&Wanted { name: name.clone(), ..like.clone() })).collect()
    }

    /// All machines whose names end as this fleet's do, in any order.
    ///
    /// # Errors
    /// Where the list cannot be had whole.
    fn list(&self) -> Result<Vec<Seen>, ProviderError>;

    /// One machine; `None` where the provider has none by that number. A new one may not be found for a while.
    ///
    /// # Errors
    /// Where the provider says neither.
    fn get(&self, id: ServerId) -> Result<Option<Seen>, ProviderError>;

    /// Deletes a machine by its number, if it still has that name.
    fn delete(&self, id: ServerId, name: &str) -> Answer<DeleteAnswer>;
}

/// What a provider is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether a name is given once only, so that asking again for the same name cannot buy twice.
    pub is_name_unique: bool,
    /// How time is billed.
    pub billing: Billing,
    /// How many machines one request may ask for.
    pub batch: usize,
    /// Requests in any minute, where that is limited.
    pub per_minute: Option<u32>,
    /// Requests in any hour, where that is limited.
    pub per_hour: Option<u32>,
    /// The most user data that a machine may be given.
    pub user_data_max_bytes: usize,
}

/// An answer, and what it was drawn from.
#[derive(Debug)]
pub struct Answer<A> {
    /// What it comes to.
    pub answer: A,
    /// For a person to read, where it is not simply yes.
    pub why: Option<ProviderError>,
}

impl<A> Answer<A> {
    fn plain(answer: A) -> Self {
        Self { answer, why: None }
    }

    fn because(answer: A, why: ProviderError) -> Self {
        Self { answer, why: Some(why) }
    }
}

/// A machine that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, which no other machine ever has ([`bulkhead_scale::Names`]).
    pub name: Arc<str>,
    /// What it is told at its first boot.
    pub user_data: UserData,
    /// Fingerprints, ids or (Hetzner) names of SSH keys that the provider knows.
    pub ssh_keys: Vec<String>,
    /// Region or location.
    pub region: String,
    /// Size or server type.
    pub size: String,
    /// What it boots.
    pub image: Image,
    /// A private network: a VPC's UUID at DigitalOcean, a network's number at Hetzner.
    pub network: Option<String>,
    /// Tags; labels without value at Hetzner.
    pub tags: Vec<String>,
}

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// One of the provider's, by name.
    Slug(String),
    /// A snapshot or an uploaded image, by number.
    Id(u64),
}

/// What a machine is told at its first boot, such as cloud-init's `#cloud-config`. It can be read there for as long as
/// the machine lives. `Debug` shows its length only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct UserData(Arc<str>);

impl UserData {
    /// The most that any provider takes.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// Takes it.
    ///
    /// # Errors
    /// Where it is longer than [`Self::MAX_BYTES`].
    pub fn new(text: &str) -> Result<Self, ProviderError> {
        match text.len() {
            size_bytes if size_bytes > Self::MAX_BYTES => {
                Err(ProviderError::UserData { size_bytes, max_bytes: Self::MAX_BYTES })
            }
            _ => Ok(Self(text.into())),
        }
    }

    /// It.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(&self, max_bytes: usize) -> Result<(), ProviderError> {
        let size_bytes = self.0.len();
        if size_bytes > max_bytes { Err(ProviderError::UserData { size_bytes, max_bytes }) } else { Ok(()) }
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} bytes)", self.0.len())
    }
}

/// A machine as the provider shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub id: ServerId,
    /// Its name.
    pub name: Arc<str>,
    /// When it was made, by the provider's clock.
    pub created: Time,
    /// What it is said to do. One that is on need not answer yet.
    pub status: Status,
    /// Its public address, from when it has one.
    pub v4: Option<Ipv4Addr>,
    /// Its public address, where it was given one.
    pub v6: Option<Ipv6Addr>,
}

impl Seen {
    /// As a scaler is told of it.
    #[must_use]
    pub fn to_server(&self) -> Server {
        Server { id: self.id, name: self.name.clone(), created: self.created }
    }

    /// Where to reach it: by IPv4 where it has that.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.v4.map(IpAddr::V4).or(self.v6.map(IpAddr::V6))
    }
}

/// What a machine is said to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is being made.
    New,
    /// It is on.
    Active,
    /// It is off, and costs as much.
    Off,
    /// Anything else.
    Other,
}

/// What a provider said in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// Its word for the kind of error, such as `unprocessable_entity`.
    pub id: String,
    /// Its sentence.
    pub message: String,
    /// What its support asks for.
    pub request_id: Option<String>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who says this is not trusted with the terminal.
        let plain = |text: &str| text.chars().filter(|char| !char.is_control()).take(300).collect::<String>();
        write!(f, "{}: {}", plain(&self.id), plain(&self.message))?;
        self.request_id.iter().try_for_each(|id| write!(f, " (request {})", plain(id)))
    }
}

/// Why a provider was of no use.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Its address cannot be used.
    #[error("`{0}` is not a provider's address: it begins with https://, or with http:// and this machine's own")]
    Address(String),
    /// A token has characters that no token has. It is not shown.
    #[error("the provider's token is empty, or has characters that no token has")]
    Token,
    /// Too much user data.
    #[error("user data of {size_bytes} bytes is more than the {max_bytes} that a machine may be given")]
    UserData {
        /// How much it is.
        size_bytes: usize,
        /// How much it may be.
        max_bytes: usize,
    },
    /// A machine is wanted in a way that this provider has no words for.
    #[error("{what} `{value}` is not what this provider takes")]
    Wanted {
        /// What of it.
        what: &'static str,
        /// As it is wanted.
        value: String,
    },
    /// No connection was made, or nothing was sent over it.
    #[error("cannot reach the provider for {request}; nothing was sent")]
    Unreached {
        /// Method and path.
        request: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The request was sent, or part of it, and no whole answer came.
    #[error("{request} was not answered whole")]
    Unanswered {
        /// Method and path.
        request: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// Too many requests, as the provider says or this side counts.
    #[error("too many requests; the next in {} s", retry_after_ms.div_ceil(1000))]
    RateLimited {
        /// Not before.
        retry_after_ms: u64,
    },
    /// The provider said no, or that it is broken.
    #[error("{request} was answered {status}, {said}")]
    Said {
        /// Method and path.
        request: String,
        /// HTTP's status.
        status: u16,
        /// In its words.
        said: Said,
    },
    /// An answer that cannot be read.
    #[error("the answer to {request} cannot be read")]
    Malformed {
        /// Method and path.
        request: String,
        /// Why.
        source: serde_json::Error,
    },
    /// An answer that says something else than what was asked.
    #[error("the answer to {request} is not about what was asked")]
    Astray {
        /// Method and path.
        request: String,
    },
    /// A price that cannot be read.
    #[error("`{value}`, the price of {size}, is not an amount")]
    Price {
        /// Of which size.
        size: String,
        /// As it was said.
        value: String,
    },
    /// A list that was different each time that it was read.
    #[error("the list of {what} changed while it was read, {tries} times")]
    Unsteady {
        /// Of what.
        what: &'static str,
        /// How often it was read.
        tries: u32,
    },
    /// A list so long that it is not believed.
    #[error("a list of {total} {what} is not believed; {max} is the most")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are said to be.
        total: u64,
        /// How many are read.
        max: u64,
    },
    /// No machine of a fixed pool is free.
    #[error("all {0} machines are leased")]
    AllLeased(usize),
    /// The file of leases cannot be read.
    #[error("cannot read the leases in {}", path.display())]
    ReadLeases {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of leases is not one.
    #[error("{} is not a file of leases", path.display())]
    ParseLeases {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The file of leases cannot be written.
    #[error("cannot write the leases to {}", path.display())]
    WriteLeases {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A machine that is made here could not be.
    #[error("cannot {operation} on this machine")]
    Here {
        /// What was tried.
        operation: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A machine is listed twice in a fixed pool.
    #[error("machine {0} is listed twice")]
    Twice(String),
}

impl ProviderError {
    /// HTTP's status and the provider's words, where it answered.
    fn said(&self) -> Option<(u16, &Said)> {
        match self {
            Self::Said { status, said, .. } => Some((*status, said)),
            _ => None,
        }
    }

    /// What this means for the request to create a machine that ended so.
    fn of_create(&self) -> CreateAnswer {
        match self {
            Self::RateLimited { retry_after_ms } => CreateAnswer::RateLimited { retry_after_ms: *retry_after_ms },
            Self::AllLeased(_) => CreateAnswer::Quota,
            Self::Unreached { .. } | Self::UserData { .. } | Self::Wanted { .. } => CreateAnswer::Refused,
            // What was not written down was not leased.
            Self::WriteLeases { .. } => CreateAnswer::Refused,
            Self::Said { status: 401 | 403, .. } => CreateAnswer::Forbidden,
            // 408: it did not get all of the request, or so it believes.
            Self::Said { status: 400..=407 | 409..=499, .. } => CreateAnswer::Refused,
            _ => CreateAnswer::Unclear,
        }
    }

    /// What this means for the request to delete a machine that ended so.
    fn of_delete(&self) -> DeleteAnswer {
        match self {
            Self::RateLimited { retry_after_ms } => DeleteAnswer::RateLimited { retry_after_ms: *retry_after_ms },
            Self::Said { status: 401 | 403, .. } => DeleteAnswer::Forbidden,
            Self::Said { status: 404 | 410, .. } => DeleteAnswer::Absent,
            Self::Unreached { .. } | Self::Said { status: 400..=407 | 409..=499, .. } => DeleteAnswer::Busy,
            _ => DeleteAnswer::Unclear,
        }
    }

    /// What this means for a machine that was to be deleted and could not be read: nothing was deleted.
    fn of_read_before_delete(&self) -> DeleteAnswer {
        match self.of_delete() {
            DeleteAnswer::Unclear | DeleteAnswer::Absent => DeleteAnswer::Busy,
            answer => answer,
        }
    }
}

/// Deletes what `get` still shows by that name: the same for every provider.
fn delete_by_number(
    provider: &impl Provider,
    id: ServerId,
    name: &str,
    delete: impl FnOnce() -> Result<(), ProviderError>,
) -> Answer<DeleteAnswer> {
    match provider.get(id) {
        Ok(None) => Answer::plain(DeleteAnswer::Absent),
        Ok(Some(seen)) if &*seen.name != name => Answer::plain(DeleteAnswer::Renamed),
        Ok(Some(_)) => match delete() {
            Ok(()) => Answer::plain(DeleteAnswer::Accepted),
            Err(error) => Answer::because(error.of_delete(), error),
        },
        Err(error) => Answer::because(error.of_read_before_delete(), error),
    }
}

#[cfg(test)]
mod tests;
