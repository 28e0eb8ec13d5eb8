//! Runs a [`Scaler`](bulkhead_scale::Scaler): keeps its rows in SQLite and carries its commands out.

mod database;
mod provided;
mod runner;
mod view;

pub use database::{Asked, Database, DatabaseError, Written, ask, make};
pub use provided::Provided;
pub use runner::{Clock, Log, Means, Nodes, Request, Runner, Servers, system_clock};
pub use view::{Told, View, decisions};
