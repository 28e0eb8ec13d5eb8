//! Runs a [`Scaler`](bulkhead_scale::Scaler): keeps its rows in SQLite and carries its commands out.

mod database;
mod runner;

pub use database::{Asked, Database, DatabaseError, Written, ask};
pub use runner::{Log, Nodes, Request, Runner, Servers};
