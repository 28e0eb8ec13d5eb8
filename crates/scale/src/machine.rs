//! A bought machine and an instance, as they are kept: one row each, all that decisions need.

use crate::{pool::Room, time::Time};
use bulkhead_core::{FleetName, PoolName};
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// A machine that was once intended. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub u64);

/// An instance of a service. Never given twice; lower ones were asked for earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub u64);

/// A pool, by its place in the scaler's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PoolIndex(pub u16);

/// The provider's number of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerId(pub u64);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is to be bought. It counts against caps from here on.
    Planned,
    /// The provider was asked, or may have been, and has not answered, or not clearly.
    Creating,
    /// The provider has it; it does not answer yet.
    Booting,
    /// It answers and is being made a node.
    Joining,
    /// A node like any other.
    Ready,
    /// Nothing new is placed on it.
    Cordoned,
    /// It is being emptied, and goes when it is.
    Draining,
    /// The provider is asked to delete it, until its lists have it no more.
    Deleting,
    /// The provider's lists have it no more.
    Gone,
    /// Something went wrong on it; it is kept to be looked at.
    Quarantined,
}

impl State {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Creating => "creating",
            Self::Booting => "booting",
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Deleting => "deleting",
            Self::Gone => "gone",
            Self::Quarantined => "quarantined",
        }
    }

    /// Whether it is on its way to being ready.
    #[must_use]
    pub fn is_coming(self) -> bool {
        matches!(self, Self::Planned | Self::Creating | Self::Booting | Self::Joining)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a machine is cordoned, draining, deleting or in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing ran on it for long enough.
    Idle,
    /// Its instances fit on others.
    Consolidation,
    /// A person said so.
    Person,
    /// It was bought twice: one intent, two servers.
    Duplicate,
    /// It turned up again after it was gone.
    Resurrected,
    /// It did not become a node in time, or not at all.
    NeverReady,
    /// It does not answer.
    Lost,
    /// Several instances failed on it and none started.
    Failing,
    /// Something runs on it that was not placed there.
    Unknown,
    /// The provider has another machine by its number.
    Renamed,
    /// A person said that this machine, which nobody had on record, is to go.
    Orphan,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Consolidation => "its instances fit on others",
            Self::Person => "a person said so",
            Self::Duplicate => "bought twice",
            Self::Resurrected => "turned up again",
            Self::NeverReady => "did not become a node",
            Self::Lost => "does not answer",
            Self::Failing => "instances fail on it",
            Self::Unknown => "runs what was not placed there",
            Self::Renamed => "the provider has another machine by its number",
            Self::Orphan => "nobody had it on record",
        })
    }
}

/// One request to the provider to create a machine, whose outcome is not known for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it was about to be sent.
    pub sent: Time,
    /// When it ended without a clear answer; absent while it is under way.
    pub ended: Option<Time>,
    /// Whether a complete list, late enough to be believed, showed no server of it. The second such list is believed.
    pub is_missed: bool,
}

/// A machine, from the intent to buy it until it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Which.
    pub id: MachineId,
    /// Its name at the provider, made from pool and id.
    pub name: Arc<str>,
    /// Of which pool.
    pub pool: PoolIndex,
    /// Where it is in its life.
    pub state: State,
    /// Since when.
    pub since: Time,
    /// Why, for states that want a reason.
    pub cause: Option<Cause>,
    /// When it was first intended.
    pub planned: Time,
    /// When the provider was first asked for it: bills begin no earlier.
    pub asked: Option<Time>,
    /// The provider's number.
    pub server: Option<ServerId>,
    /// When that was learnt: lists asked for soon after may lack it.
    pub known: Option<Time>,
    /// Requests for it that may have made another.
    pub attempts: Vec<Attempt>,
    /// What its instances use.
    pub used: Room,
    /// Since when it has none.
    pub empty_since: Option<Time>,
    /// What runs or will run on it.
    pub instances: Vec<InstanceId>,
    /// Nothing is tried for it before.
    pub not_before: Time,
    /// How often in a row something failed for it.
    pub failures: u32,
    /// Since when it does not answer.
    pub silent_since: Option<Time>,
    /// Since when complete lists lack it.
    pub absent_since: Option<Time>,
    /// When the provider took the request to delete it.
    pub deleted: Option<Time>,
}

impl Machine {
    /// Whether it became a node.
    #[must_use]
    pub fn is_node(&self) -> bool {
        match self.state {
            State::Ready | State::Cordoned | State::Draining => true,
            State::Quarantined => !matches!(self.cause, Some(Cause::NeverReady | Cause::Renamed)),
            _ => false,
        }
    }

    /// How many servers of the provider there may be for it.
    #[must_use]
    pub fn possible(&self) -> u32 {
        if self.state == State::Gone {
            return 0;
        }
        let doubtful = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        (u32::from(self.server.is_some()) + doubtful).max(1)
    }
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// There is no room for it, and none is coming.
    Waiting,
    /// Its machine is still coming.
    Reserved,
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It runs, and is being started on another machine.
    Moving,
    /// It runs on another machine, and is being stopped on its old one.
    Leaving,
    /// It is being stopped.
    Stopping,
}

impl Doing {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Reserved => "reserved",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Moving => "moving",
            Self::Leaving => "leaving",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Which.
    pub id: InstanceId,
    /// In which pool.
    pub pool: PoolIndex,
    /// What it needs of a machine.
    pub needs: Room,
    /// Whether it may be moved while it runs: started elsewhere, then stopped here.
    pub is_movable: bool,
    /// What it is doing.
    pub doing: Doing,
    /// Since when.
    pub since: Time,
    /// When it was asked for.
    pub asked: Time,
    /// The machine it is on, or will be on.
    pub machine: Option<MachineId>,
    /// The machine it is moving to.
    pub to: Option<MachineId>,
    /// How often in a row it failed to start.
    pub failures: u32,
    /// Nothing is tried for it before.
    pub not_before: Time,
}

/// The names of machines at the provider: `POOL-TOKEN-ID.FLEET.bulkhead`.
///
/// The token is made once for each database: a scaler that has lost its
/// database takes none of the old machines for its own, and reports them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Whose machines.
    pub fleet: FleetName,
    /// Of which database; letters and digits.
    pub token: String,
}

impl Names {
    /// A machine's name at the provider.
    #[must_use]
    pub fn of(&self, pool: &PoolName, id: MachineId) -> Arc<str> {
        format!("{}{}", self.node(pool, id), self.suffix()).into()
    }

    /// Its name as a node.
    #[must_use]
    pub fn node(&self, pool: &PoolName, id: MachineId) -> String {
        format!("{pool}-{}-{}", self.token, id.0)
    }

    /// What the names of all machines of the fleet end with.
    #[must_use]
    pub fn suffix(&self) -> String {
        format!(".{}.bulkhead", self.fleet)
    }

    /// Whose a name is.
    #[must_use]
    pub fn parse(&self, name: &str) -> Owner {
        let fleet = name.strip_suffix(".bulkhead").and_then(|name| name.strip_suffix(self.fleet.as_str()));
        let Some(node) = fleet.and_then(|name| name.strip_suffix('.')) else { return Owner::Stranger };
        let Some((rest, id)) = node.rsplit_once('-') else { return Owner::Fleet };
        let is_plain = id == "0" || !id.starts_with('0') && id.bytes().all(|byte| byte.is_ascii_digit());
        match (rest.rsplit_once('-'), id.parse()) {
            (Some((_, token)), Ok(id)) if token == self.token && is_plain => Owner::Machine(MachineId(id)),
            _ => Owner::Fleet,
        }
    }
}

/// Whose a machine at the provider is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This scaler's.
    Machine(MachineId),
    /// The fleet's, and not on record here.
    Fleet,
    /// Somebody else's.
    Stranger,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let names = Names { fleet: "acme".parse().unwrap(), token: "k3f9".into() };
        let name = names.of(&"kernels".parse().unwrap(), MachineId(17));
        assert_eq!(&*name, "kernels-k3f9-17.acme.bulkhead");
        for (text, owner) in [
            ("kernels-k3f9-17.acme.bulkhead", Owner::Machine(MachineId(17))),
            ("a-b-k3f9-0.acme.bulkhead", Owner::Machine(MachineId(0))),
            ("kernels-k3f9-017.acme.bulkhead", Owner::Fleet),
            ("kernels-k3f9-+1.acme.bulkhead", Owner::Fleet),
            ("kernels-zzzz-17.acme.bulkhead", Owner::Fleet),
            ("k3f9-17.acme.bulkhead", Owner::Fleet),
            ("kernels-k3f9-17.other.bulkhead", Owner::Stranger),
            ("kernels-k3f9-17.xacme.bulkhead", Owner::Stranger),
            ("kernels-k3f9-17", Owner::Stranger),
            ("", Owner::Stranger),
        ] {
            assert_eq!(names.parse(text), owner, "{text}");
        }
    }
}
