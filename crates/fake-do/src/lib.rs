//! DigitalOcean's API, version 2, on one's own machine: it remembers what it was told, and misbehaves as the real one
//! does.
//!
//! | module | holds |
//! |---|---|
//! | `world` | what there is, and the answer to each request: no network, no clock |
//! | `show` | droplets, sizes, regions and images as JSON |
//! | `server` | HTTP, and connections that end without an answer |
//!
//! Which machines exist, what lists show and what fails is decided by
//! [`bulkhead_sim::cloud::Cloud`], which the simulator uses too; chance is one
//! seed. The clock is the real one times a factor, and can be moved on.
//!
//! It is strict where the real one's document leaves it open: a page of more
//! than 200, and `name` together with `tag_name`, are refused. A token is
//! anything at all; [`READ_ONLY`] may not change anything. Deleting droplets by
//! tag is never done: it is answered 500, and counted.
//!
//! DigitalOcean's own client pydo (0.44) lists, creates, follows actions and
//! deletes against it; it sends its token over HTTP only with an
//! `authentication_policy` of the caller's. It repeats a POST that was answered
//! 500, 503 or 504: with `--faults heavy` it buys some droplets twice.

mod server;
mod show;
mod world;

pub use bulkhead_sim::cloud::Faults;
pub use server::{Fake, StartError};
pub use world::{Exchange, Kind, READ_ONLY, Silence};

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

/// What a fake is like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How it misbehaves.
    pub faults: Faults,
    /// What comes instead of an answer, where none does; one of all, by chance, where this says nothing.
    pub silence: Option<Silence>,
    /// How long tags are missing from a new droplet, in milliseconds of its own clock.
    pub late_tags_ms: u64,
    /// How many droplets the account may have.
    pub quota: u32,
    /// So many seconds pass here in each real one.
    pub speed: u32,
    /// What chance comes from.
    pub seed: u64,
}

impl Default for Options {
    /// One that behaves, on a free port.
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            faults: Faults::NONE,
            silence: None,
            late_tags_ms: 0,
            quota: 10,
            speed: 1,
            seed: 1,
        }
    }
}

/// A name, shared.
type Name = Arc<str>;
