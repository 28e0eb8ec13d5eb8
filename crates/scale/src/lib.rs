//! Elasticity: which machines are bought and given back, and which instance runs where.
//!
//! [`Scaler`] is a state machine: [`Scaler::step`] takes an [`Event`] and a
//! moment, and says what is to be done. It reads no clock, file, network or
//! random number, so a simulator can drive it through a month of failures in
//! seconds, and what it decided can be decided again.
//!
//! | module | holds |
//! |---|---|
//! | `scaler` | the state machine, and how it is restored after a crash |
//! | `event` | what it is told, what it wants done, what it decided and why |
//! | `machine` | rows: machines and instances, as a database keeps them |
//! | `pool` | pools, room on machines, caps and limits |
//! | `shelf` | machines by what is free on them |
//! | `ledger`, `money`, `time` | spending, exactly |
//! | `arrivals` | how much is asked for while a machine boots |
//!
//! Invariants:
//! - A row is durable before what it says is tried: [`Output`] names the rows
//!   that changed, and its commands may begin only when those are written.
//! - Every server that may exist counts: a request that ended unclear counts
//!   against caps and budgets until lists prove that it made nothing.
//! - A machine is deleted only by the number that was on record, only after its
//!   name was read again, and, where it was a node, only after it said that
//!   nothing runs on it or was silent for long with nothing placed on it.
//! - Only a machine that is on record is deleted. Others are reported.

mod arrivals;
mod event;
mod ledger;
mod machine;
mod money;
mod pool;
mod scaler;
mod shelf;
mod time;

pub use event::{Command, CreateAnswer, Decision, DeleteAnswer, Event, Hold, Server, Why, Wish};
pub use ledger::Ledger;
pub use machine::{
    Attempt, Cause, Doing, Instance, InstanceId, Machine, MachineId, Names, Owner, PoolIndex, ServerId, State,
};
pub use money::{Billing, Micros, ParseMicrosError};
pub use pool::{CREATIONS_WINDOW_MS, Caps, Consolidation, Headroom, Limits, Pool, Room};
pub use scaler::{Output, PoolView, Rows, Scaler};
pub use time::{DAY_MS, HOUR_MS, MINUTE_MS, Month, SECOND_MS, Time};
