//! Runs a [`Scaler`](bulkhead_scale::Scaler): keeps its rows in SQLite and carries its commands out.

mod database;
mod desk;
mod durable;
mod enrolment;
mod lanes;
#[cfg(target_os = "linux")]
mod local;
mod nodes;
mod provided;
mod records;
mod runner;
mod secrets;
mod view;

pub use database::{Asked, Database, DatabaseError, Written, ask, make};
pub use desk::{COUNT_MAX, Desk, MayStart};
pub use durable::FileError;
pub use enrolment::{Enrolment, EnrolmentError, node_name};
#[cfg(target_os = "linux")]
pub use local::LocalProvider;
pub use nodes::{FleetNodes, Granted, Grants, NodeMeans, PoolSettings, ReadNotices, ReadPolicy};
pub use provided::Provided;
pub use records::{Milestones, NodeRecord, Numbered, nodes, records};
pub use runner::{Clock, Log, Means, Nodes, Request, Runner, Servers, Start, system_clock};
pub use secrets::Sealed;
pub use view::{Told, View, decisions};
