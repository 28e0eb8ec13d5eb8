//! What a pool is: machines of one kind, how many at most, for how much money.

use crate::{
    money::{Billing, Micros},
    time::{HOUR_MS, MINUTE_MS, SECOND_MS},
};
use bulkhead_core::PoolName;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    ops::{AddAssign, SubAssign},
};

/// What a machine offers, what of it is used, or what an instance needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Room {
    /// Places, as experiments found them: an instance takes one.
    pub slots: u32,
    /// Memory, in MiB.
    #[serde(default)]
    pub memory_mib: u32,
    /// Processor time, in thousandths of a processor.
    #[serde(default)]
    pub cpu_milli: u32,
}

impl Room {
    /// So many places, and nothing else that counts.
    #[must_use]
    pub const fn slots(slots: u32) -> Self {
        Self { slots, memory_mib: 0, cpu_milli: 0 }
    }

    /// Whether all of `needs` is there.
    #[must_use]
    pub fn fits(self, needs: Self) -> bool {
        self.slots >= needs.slots && self.memory_mib >= needs.memory_mib && self.cpu_milli >= needs.cpu_milli
    }

    /// What is left of it.
    #[must_use]
    pub fn less(self, used: Self) -> Self {
        Self {
            slots: self.slots.saturating_sub(used.slots),
            memory_mib: self.memory_mib.saturating_sub(used.memory_mib),
            cpu_milli: self.cpu_milli.saturating_sub(used.cpu_milli),
        }
    }
}

impl AddAssign for Room {
    fn add_assign(&mut self, other: Self) {
        self.slots += other.slots;
        self.memory_mib += other.memory_mib;
        self.cpu_milli += other.cpu_milli;
    }
}

impl SubAssign for Room {
    fn sub_assign(&mut self, other: Self) {
        *self = self.less(other);
    }
}

/// How much room is kept free for what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Headroom {
    /// So many slots.
    Slots(u32),
    /// As many slots as were asked for while a machine booted, in so many of a hundred such times.
    Arrivals {
        /// 95 is usual.
        percentile: u8,
    },
}

/// Limits on what is bought. What is not said is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Caps {
    /// Machines, those on their way and those that may have been bought by mistake among them.
    pub machines: Option<u32>,
    /// Money an hour, for all that these machines cost together.
    pub per_hour: Option<Micros>,
    /// Money in a month of the calendar (UTC). A budget ends buying, never what runs.
    pub per_month: Option<Micros>,
}

/// Moving instances together, so that machines fall empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consolidation {
    /// Only machines are emptied that use at most so many of a hundred slots.
    pub below_percent: u8,
    /// And at most one in so long.
    pub every_ms: u64,
}

/// Machines of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// What one machine offers.
    pub machine: Room,
    /// What one machine costs an hour.
    pub price: Micros,
    /// How that is billed.
    pub billing: Billing,
    /// What this pool may buy.
    pub caps: Caps,
    /// How many machines there are at least.
    pub machines_min: u32,
    /// What is kept free.
    pub headroom: Headroom,
    /// After so long without an instance a machine goes.
    pub idle_ms: u64,
    /// Whether and how instances are moved together.
    pub consolidation: Option<Consolidation>,
    /// How long a machine is expected to take until it is ready; measured from the first one on.
    pub boot_ms: u64,
    /// How long it may take before it is given up.
    pub boot_max_ms: u64,
    /// How long emptying a machine may take before that is given up.
    pub drain_max_ms: u64,
    /// How long a machine that went wrong is kept to be looked at.
    pub quarantine_ms: u64,
    /// Whether it is in the configuration no more: nothing is placed on its machines, and empty ones go.
    pub is_retired: bool,
}

impl Pool {
    /// A pool of machines with so many slots, and all else as it comes.
    #[must_use]
    pub fn new(name: PoolName, slots: u32, price: Micros, billing: Billing) -> Self {
        Self {
            name,
            machine: Room::slots(slots),
            price,
            billing,
            caps: Caps::default(),
            machines_min: 0,
            headroom: Headroom::Slots(0),
            idle_ms: 10 * MINUTE_MS,
            consolidation: None,
            boot_ms: MINUTE_MS,
            boot_max_ms: 10 * MINUTE_MS,
            drain_max_ms: 10 * MINUTE_MS,
            quarantine_ms: HOUR_MS,
            is_retired: false,
        }
    }
}

/// What holds for all pools together, and how far the provider is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// What all pools together may buy.
    pub caps: Caps,
    /// Machines that are asked for in any ten minutes.
    pub creations: u32,
    /// How long after it happened a creation or deletion may be missing from the provider's lists.
    pub lag_ms: u64,
    /// At least so long between two complete lists; a list of many pages takes longer.
    pub list_gap_ms: u64,
    /// A list is asked for after so long even when nothing is in doubt: machines may vanish, or turn up.
    pub list_every_ms: u64,
    /// A machine that does not answer for so long is taken for lost.
    pub lost_ms: u64,
}

/// The window of [`Limits::creations`].
pub const CREATIONS_WINDOW_MS: u64 = 10 * MINUTE_MS;

impl Default for Limits {
    fn default() -> Self {
        Self {
            caps: Caps::default(),
            creations: 20,
            lag_ms: 2 * MINUTE_MS,
            list_gap_ms: 5 * SECOND_MS,
            list_every_ms: 5 * MINUTE_MS,
            lost_ms: 10 * MINUTE_MS,
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slots", self.slots)?;
        if self.memory_mib > 0 {
            write!(f, ", {} MiB", self.memory_mib)?;
        }
        if self.cpu_milli > 0 {
            write!(f, ", {}.{:03} CPUs", self.cpu_milli / 1000, self.cpu_milli % 1000)?;
        }
        Ok(())
    }
}
