//! What a scaler is told, and what it wants done.

use crate::{
    machine::{Cause, InstanceId, MachineId, PoolIndex, ServerId, State},
    money::Micros,
    pool::Room,
    time::Time,
};
use bulkhead_core::PoolName;
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An instance is wanted.
    Start {
        /// A new id, higher than all before.
        instance: InstanceId,
        /// Where.
        pool: PoolIndex,
        /// What it needs; [`Scaler::fits`](crate::Scaler::fits) says whether a machine has that.
        needs: Room,
        /// Whether it may be moved while it runs.
        is_movable: bool,
    },
    /// An instance is wanted no more.
    Stop {
        /// Which.
        instance: InstanceId,
    },
    /// What came of [`Command::Create`].
    Created {
        /// For which machine.
        machine: MachineId,
        /// The answer.
        answer: CreateAnswer,
    },
    /// What came of [`Command::List`]: all machines of the fleet at the provider, every page of them.
    Listed {
        /// Before its first page was asked for.
        asked: Time,
        /// In any order.
        servers: Vec<Server>,
    },
    /// A list could not be had whole.
    ListFailed,
    /// A machine answers to SSH, and is being made a node.
    Reached {
        /// Which.
        machine: MachineId,
        /// Which of the provider's.
        server: ServerId,
    },
    /// A machine is a node.
    Joined {
        /// Which.
        machine: MachineId,
        /// Which of the provider's.
        server: ServerId,
    },
    /// A machine cannot become a node.
    JoinFailed {
        /// Which.
        machine: MachineId,
        /// Which of the provider's.
        server: ServerId,
    },
    /// What came of [`Command::Confirm`].
    Confirmed {
        /// On which machine.
        machine: MachineId,
        /// How many services run there; absent where it does not say.
        running: Option<u32>,
    },
    /// What came of [`Command::Delete`].
    Deleted {
        /// Which machine.
        machine: MachineId,
        /// The answer.
        answer: DeleteAnswer,
    },
    /// What came of [`Command::Start`].
    Started {
        /// Which instance.
        instance: InstanceId,
        /// On which machine.
        machine: MachineId,
        /// Whether it runs.
        is_running: bool,
    },
    /// [`Command::Start`] was not tried, for a reason that is not the machine's.
    NotTried {
        /// Which instance.
        instance: InstanceId,
        /// On which machine.
        machine: MachineId,
    },
    /// What came of [`Command::Stop`].
    Stopped {
        /// Which instance.
        instance: InstanceId,
        /// On which machine.
        machine: MachineId,
        /// Whether it is stopped.
        is_stopped: bool,
    },
    /// A node stopped answering, or answers again.
    Heard {
        /// Which.
        machine: MachineId,
        /// Whether it answers.
        answers: bool,
    },
    /// Nothing is to be bought, emptied or deleted until further notice.
    Freeze,
    /// That is over.
    Thaw,
    /// A person about one machine.
    Person {
        /// Which.
        machine: MachineId,
        /// What is to be done.
        wish: Wish,
    },
    /// A person says that a machine of the fleet that is on no record is to go.
    DeleteOrphan {
        /// The provider's number, as it was reported.
        server: ServerId,
    },
    /// Time has passed.
    Tick,
}

/// What a person wants of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Place nothing new on it.
    Cordon,
    /// Use it as before; ends a drain too.
    Use,
    /// Empty it and give it back.
    Drain,
    /// Give it back, which is empty, from quarantine.
    Discard,
}

/// What a provider said to the request to create a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateAnswer {
    /// It makes it.
    Made(ServerId),
    /// Too many requests; none was carried out.
    RateLimited {
        /// Not before.
        retry_after_ms: u64,
    },
    /// The account may have no more.
    Quota,
    /// No, and it may be yes in a while.
    Refused,
    /// The credentials are not good for it.
    Forbidden,
    /// None came, or one that leaves open whether it was carried out.
    Unclear,
}

/// What a provider said to the request to delete a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteAnswer {
    /// It deletes it.
    Accepted,
    /// It has none by that number.
    Absent,
    /// By that number it has one with another name, which was let be.
    Renamed,
    /// Not now.
    Busy,
    /// Too many requests; none was carried out.
    RateLimited {
        /// Not before.
        retry_after_ms: u64,
    },
    /// The credentials are not good for it.
    Forbidden,
    /// None came, or one that leaves open whether it was carried out.
    Unclear,
}

/// A machine as a provider lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its number.
    pub id: ServerId,
    /// Its name.
    pub name: Arc<str>,
    /// When it was made, by the provider's clock.
    pub created: Time,
}

/// What is to be done. All rows that changed are to be durable before the first of them is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Ask the provider for a machine with the row's name, once: a request that ends unclear is not sent again.
    Create {
        /// For which.
        machine: MachineId,
    },
    /// Read the provider's list of the fleet's machines, whole.
    List,
    /// Make a node of a machine, as soon as it answers. What was begun before a crash is begun again.
    Join {
        /// Which.
        machine: MachineId,
        /// Which of the provider's.
        server: ServerId,
    },
    /// Ask a node what runs on it: before it is deleted, or because a list lacks it.
    Confirm {
        /// Which.
        machine: MachineId,
    },
    /// Read the machine by its number; if it still has the row's name, delete it by that number.
    Delete {
        /// Which.
        machine: MachineId,
        /// Which of the provider's.
        server: ServerId,
    },
    /// Start an instance there. It may run already.
    Start {
        /// Which.
        instance: InstanceId,
        /// Where.
        machine: MachineId,
    },
    /// Stop an instance there. It may have stopped already.
    Stop {
        /// Which.
        instance: InstanceId,
        /// Where.
        machine: MachineId,
    },
}

/// Why nothing is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Buying is frozen.
    Frozen,
    /// The pool is in the configuration no more.
    Retired,
    /// A limit of machines; of all pools where `fleet`.
    Machines {
        /// The limit.
        most: u32,
        /// Whose.
        fleet: bool,
    },
    /// A limit of money an hour.
    PerHour {
        /// The limit.
        most: Micros,
        /// Whose.
        fleet: bool,
    },
    /// A limit of money a month.
    PerMonth {
        /// The limit.
        most: Micros,
        /// Whose.
        fleet: bool,
    },
    /// So many were asked for in ten minutes.
    Creations {
        /// The limit.
        most: u32,
        /// When the next may be.
        until: Time,
    },
    /// The provider said no, or machines did not become nodes, or nothing could be started on them.
    Provider {
        /// When it is tried again.
        until: Time,
    },
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = |fleet: &bool| if *fleet { "all pools together" } else { "the pool" };
        match self {
            Self::Frozen => f.write_str("buying is frozen: `bulkhead pool thaw`"),
            Self::Retired => f.write_str("the pool is in the configuration no more"),
            Self::Machines { most, fleet } => write!(f, "{} may have {most} machines", whose(fleet)),
            Self::PerHour { most, fleet } => write!(f, "{} may cost {most} an hour", whose(fleet)),
            Self::PerMonth { most, fleet } => write!(f, "{} may cost {most} a month", whose(fleet)),
            Self::Creations { most, until } => {
                write!(f, "{most} machines were asked for in ten minutes; the next at {until}")
            }
            Self::Provider { until } => {
                write!(f, "the provider refused, or machines or services on them failed; tried again at {until}")
            }
        }
    }
}

/// What was decided, and why: the log that a person reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A machine is bought.
    Buy {
        /// Which.
        machine: MachineId,
        /// For what.
        why: Why,
        /// What the pool has free then.
        free_slots: u64,
    },
    /// Nothing is bought, though something waits.
    Hold {
        /// In which pool.
        pool: PoolName,
        /// Why.
        hold: Hold,
        /// How many instances wait.
        waiting: usize,
    },
    /// A request to create is repeated, as lists do not show that the last one made a machine.
    Again {
        /// For which machine.
        machine: MachineId,
    },
    /// A machine that a list shows is taken for the one that was asked for.
    Adopt {
        /// Which.
        machine: MachineId,
        /// Which of the provider's.
        server: ServerId,
    },
    /// A machine's state changed.
    Became {
        /// Which.
        machine: MachineId,
        /// What it is now.
        state: State,
        /// Why.
        cause: Option<Cause>,
    },
    /// A machine that was to go is kept, because it is wanted after all.
    Reprieve {
        /// Which.
        machine: MachineId,
    },
    /// The provider has a machine of the fleet that is on no record.
    Orphan {
        /// Which.
        server: ServerId,
        /// Its name.
        name: Arc<str>,
    },
    /// So many machines vanished or fell silent at once that one's own sight is suspected.
    Suspect {
        /// How many.
        missing: usize,
        /// Of how many.
        of: usize,
    },
    /// Frozen or thawed, by a person or because what froze it is over.
    Frozen(bool),
}

/// What a machine is bought for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// An instance that fits nowhere.
    Instance(InstanceId),
    /// Less is free than is to be kept free.
    Headroom {
        /// Slots that are to be free.
        wanted: u32,
    },
    /// The pool has fewer than its least.
    Least,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(id) => write!(f, "instance {} fits nowhere", id.0),
            Self::Headroom { wanted } => write!(f, "{wanted} slots are to be kept free"),
            Self::Least => f.write_str("the pool has fewer machines than its least"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buy { machine, why, free_slots } => {
                write!(f, "buy machine {}: {why}; {free_slots} slots were free", machine.0)
            }
            Self::Hold { pool, hold, waiting } => write!(f, "buy nothing for {pool}, where {waiting} wait: {hold}"),
            Self::Again { machine } => write!(f, "ask for machine {} again: no list shows it", machine.0),
            Self::Adopt { machine, server } => {
                write!(f, "machine {} is the provider's {server}, as a list shows", machine.0)
            }
            Self::Became { machine, state, cause } => {
                write!(f, "machine {} is {state}", machine.0)?;
                cause.iter().try_for_each(|cause| write!(f, ": {cause}"))
            }
            Self::Reprieve { machine } => write!(f, "keep machine {}: it is wanted after all", machine.0),
            Self::Orphan { server, name } => {
                write!(f, "the provider has {name} ({server}), which is on no record and costs money")
            }
            Self::Suspect { missing, of } => {
                write!(f, "{missing} of {of} machines are missing at once: this side's own network is suspected")
            }
            Self::Frozen(true) => f.write_str("frozen: nothing is bought, emptied or deleted"),
            Self::Frozen(false) => f.write_str("thawed"),
        }
    }
}
