//! A provider that misbehaves as real ones do.
//!
//! It is exact about what exists and what that costs, and wrong in what it
//! says: requests that are carried out and time out, or the other way round,
//! lists that lag, deletions that are accepted and not done, or undone hours
//! later. It reads no clock; moments are arguments, chance is one seed.

use bulkhead_scale::{Billing, HOUR_MS, MINUTE_MS, Micros, SECOND_MS, Server, ServerId, Time};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// How often it misbehaves, in thousandths, and how badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Creations that are carried out and answered by nothing.
    pub commit_then_time_out: u16,
    /// Creations that are carried out up to a minute after they were answered by nothing.
    pub late_commit: u16,
    /// Creations that are not carried out and answered by nothing.
    pub time_out: u16,
    /// Creations that are refused and would be accepted a moment later.
    pub transient_refusal: u16,
    /// Requests that are told to come back later, besides those over the limit.
    pub too_many: u16,
    /// Lists that cannot be had whole.
    pub broken_list: u16,
    /// Lists that lack one machine, which slipped from one page to another while they were read. The same one is not
    /// lacking twice in a row.
    pub slipped: u16,
    /// The longest that lists lag behind.
    pub list_lag_ms: u64,
    /// For so long a new machine may not be found by its number.
    pub read_lag_ms: u64,
    /// Machines that take ten times as long to boot.
    pub slow_boot: u16,
    /// Machines that never boot.
    pub never_boots: u16,
    /// Deletions that are refused because something else is under way.
    pub pending_event: u16,
    /// Deletions that are accepted and not done.
    pub failed_delete: u16,
    /// Deletions that are undone hours later.
    pub resurrection: u16,
    /// Deletions that are answered by nothing, done or not.
    pub unclear_delete: u16,
    /// Machines that the provider loses within a day.
    pub vanishes: u16,
}

impl Faults {
    /// None.
    pub const NONE: Self = Self {
        commit_then_time_out: 0,
        late_commit: 0,
        time_out: 0,
        transient_refusal: 0,
        too_many: 0,
        broken_list: 0,
        slipped: 0,
        list_lag_ms: 0,
        read_lag_ms: 0,
        slow_boot: 0,
        never_boots: 0,
        pending_event: 0,
        failed_delete: 0,
        resurrection: 0,
        unclear_delete: 0,
        vanishes: 0,
    };
    /// What is seen in the field, more often.
    pub const USUAL: Self = Self {
        commit_then_time_out: 20,
        late_commit: 5,
        time_out: 20,
        transient_refusal: 20,
        too_many: 10,
        broken_list: 20,
        slipped: 10,
        list_lag_ms: 20 * SECOND_MS,
        read_lag_ms: 5 * SECOND_MS,
        slow_boot: 20,
        never_boots: 10,
        pending_event: 30,
        failed_delete: 10,
        resurrection: 5,
        unclear_delete: 20,
        vanishes: 5,
    };
    /// A provider on its worst day, every day.
    pub const HEAVY: Self = Self {
        commit_then_time_out: 150,
        late_commit: 50,
        time_out: 150,
        transient_refusal: 100,
        too_many: 50,
        broken_list: 150,
        slipped: 100,
        list_lag_ms: 50 * SECOND_MS,
        read_lag_ms: 20 * SECOND_MS,
        slow_boot: 50,
        never_boots: 50,
        pending_event: 150,
        failed_delete: 80,
        resurrection: 40,
        unclear_delete: 150,
        vanishes: 50,
    };
}

/// Requests a minute and an hour, as DigitalOcean has it.
const PER_MINUTE: usize = 250;
const PER_HOUR: usize = 5_000;
/// How long nothing comes before a client gives up.
pub const TIME_OUT_MS: u64 = 30 * SECOND_MS;
/// The latest that a creation is carried out after its request.
const LATE_MS: u64 = 50 * SECOND_MS;

/// A machine as it is.
#[derive(Debug, Clone)]
pub struct Real {
    /// Its number.
    pub id: ServerId,
    /// Its name.
    pub name: Arc<str>,
    /// Since when it exists.
    pub created: Time,
    /// Since when it does not.
    pub deleted: Option<Time>,
    /// When it is there again, undone by the provider.
    pub back: Option<Time>,
    /// Whether that has happened.
    pub is_undead: bool,
    /// From when on it answers; never, where there is none.
    pub usable: Option<Time>,
    /// How far lists lag behind it.
    lag_ms: u64,
}

impl Real {
    /// Whether it exists, and costs.
    #[must_use]
    pub fn exists(&self, now: Time) -> bool {
        self.created <= now && self.deleted.is_none_or(|deleted| now < deleted)
    }

    fn is_listed(&self, now: Time) -> bool {
        self.created.plus(self.lag_ms) <= now && self.deleted.is_none_or(|deleted| now < deleted.plus(self.lag_ms))
    }
}

/// What came of a request to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// It is being made.
    Made(ServerId),
    /// Nothing comes, whether it is carried out or not.
    Nothing,
    /// No, for now.
    Refused,
    /// The account may have no more.
    Quota,
    /// Too many requests.
    TooMany {
        /// Come back after that.
        retry_after_ms: u64,
    },
}

/// What came of a request to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delete {
    /// Accepted.
    Accepted,
    /// There is none by that number.
    Absent,
    /// Something else is under way.
    Pending,
    /// Nothing comes.
    Nothing,
    /// Too many requests.
    TooMany {
        /// Come back after that.
        retry_after_ms: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Appears,
    Returns,
    Vanishes,
}

/// The provider.
#[derive(Debug)]
pub struct Cloud {
    /// How it misbehaves.
    pub faults: Faults,
    /// How many machines the account may have.
    pub quota: usize,
    /// How long a machine takes to boot, the shortest and the longest.
    pub boot_ms: (u64, u64),
    /// What a machine costs an hour.
    pub price: Micros,
    /// How that is billed.
    pub billing: Billing,
    rng: fastrand::Rng,
    servers: BTreeMap<ServerId, Real>,
    changes: BTreeSet<(Time, Change, ServerId)>,
    requests: VecDeque<Time>,
    next: u64,
    alive: usize,
    undead: usize,
    slipped: Option<ServerId>,
    spent: Micros,
    /// How many were ever made.
    pub made: u64,
    /// How many requests to create there were.
    pub asked: u64,
}

impl Cloud {
    /// A provider without machines.
    #[must_use]
    pub fn new(faults: Faults, price: Micros, billing: Billing, seed: u64) -> Self {
        Self {
            faults,
            quota: usize::MAX,
            boot_ms: (30 * SECOND_MS, 60 * SECOND_MS),
            price,
            billing,
            rng: fastrand::Rng::with_seed(seed),
            servers: BTreeMap::new(),
            changes: BTreeSet::new(),
            requests: VecDeque::new(),
            next: 100_000,
            alive: 0,
            undead: 0,
            slipped: None,
            spent: Micros(0),
            made: 0,
            asked: 0,
        }
    }

    fn happens(&mut self, thousandths: u16) -> bool {
        thousandths > 0 && self.rng.u16(0..1000) < thousandths
    }

    /// Lets pass what happens by itself.
    pub fn settle(&mut self, now: Time) {
        while let Some(&(time, change, id)) = self.changes.first() {
            if time > now {
                break;
            }
            self.changes.pop_first();
            if change == Change::Vanishes {
                if self.servers.get(&id).is_some_and(|server| server.deleted.is_none()) {
                    self.end(id, time, None);
                }
                continue;
            }
            self.alive += 1;
            if change == Change::Returns
                && let Some(server) = self.servers.get_mut(&id)
            {
                server.deleted = None;
                server.back = None;
                server.is_undead = true;
                server.created = time;
                self.undead += 1;
            }
        }
    }

    /// A request more: over the limit, it is told when to come back, in milliseconds. [`Self::create`],
    /// [`Self::list`] and [`Self::delete`] ask this themselves. A client reads whole lists page by page, and paces
    /// itself; a list counts as one there.
    pub fn limited(&mut self, now: Time) -> Option<u64> {
        while self.requests.front().is_some_and(|first| now.since(*first) >= HOUR_MS) {
            self.requests.pop_front();
        }
        let over = |count: usize, window: u64| {
            let nth = self.requests.len().checked_sub(count).map(|index| self.requests[index]);
            nth.filter(|nth| now.since(*nth) < window).map(|nth| nth.plus(window).since(now))
        };
        let wait = over(PER_MINUTE, MINUTE_MS).or_else(|| over(PER_HOUR, HOUR_MS));
        if wait.is_some() {
            return wait;
        }
        if self.happens(self.faults.too_many) {
            return Some(self.rng.u64(SECOND_MS..30 * SECOND_MS));
        }
        self.requests.push_back(now);
        None
    }

    /// How many more requests there may be in this hour.
    #[must_use]
    pub fn requests_left(&self) -> usize {
        PER_HOUR.saturating_sub(self.requests.len())
    }

    /// A request to create one.
    pub fn create(&mut self, name: &Arc<str>, now: Time) -> Create {
        self.settle(now);
        self.asked += 1;
        if let Some(retry_after_ms) = self.limited(now) {
            return Create::TooMany { retry_after_ms };
        }
        match self.make(std::slice::from_ref(name), now) {
            Ok(made) => made.first().map_or(Create::Nothing, |id| Create::Made(*id)),
            Err(answer) => answer,
        }
    }

    /// What comes of a request to create some, all or none, that is not over the limit.
    ///
    /// # Errors
    /// With the answer, where it is not simply yes; never [`Create::Made`] or [`Create::TooMany`].
    pub fn make(&mut self, names: &[Arc<str>], now: Time) -> Result<Vec<ServerId>, Create> {
        self.settle(now);
        if self.alive.saturating_add(names.len()) > self.quota {
            return Err(Create::Quota);
        }
        if self.happens(self.faults.transient_refusal) {
            return Err(Create::Refused);
        }
        if self.happens(self.faults.time_out) {
            return Err(Create::Nothing);
        }
        let is_late = self.happens(self.faults.late_commit);
        let created = if is_late { now.plus(self.rng.u64(1..LATE_MS)) } else { now };
        let made = names.iter().map(|name| self.begin(name, created, is_late)).collect();
        if is_late || self.happens(self.faults.commit_then_time_out) { Err(Create::Nothing) } else { Ok(made) }
    }

    fn begin(&mut self, name: &Arc<str>, created: Time, is_late: bool) -> ServerId {
        let id = ServerId(self.next);
        self.next += self.rng.u64(1..100);
        let boots = !self.happens(self.faults.never_boots);
        let slowness = if self.happens(self.faults.slow_boot) { 10 } else { 1 };
        let boot_ms = self.rng.u64(self.boot_ms.0..=self.boot_ms.1) * slowness;
        let lag_ms = if self.faults.list_lag_ms == 0 { 0 } else { self.rng.u64(0..self.faults.list_lag_ms) };
        let usable = boots.then(|| created.plus(boot_ms));
        let real =
            Real { id, name: name.clone(), created, deleted: None, back: None, is_undead: false, usable, lag_ms };
        self.servers.insert(id, real);
        self.made += 1;
        if self.happens(self.faults.vanishes) {
            let after = self.rng.u64(LATE_MS..24 * HOUR_MS);
            self.changes.insert((created.plus(after), Change::Vanishes, id));
        }
        if is_late {
            self.changes.insert((created, Change::Appears, id));
        } else {
            self.alive += 1;
        }
        id
    }

    /// All machines as a list has them; nothing where it cannot be had whole.
    pub fn list(&mut self, now: Time) -> Option<Vec<Server>> {
        self.settle(now);
        if self.limited(now).is_some() || self.happens(self.faults.broken_list) {
            return None;
        }
        let listed = self.listed(now);
        let mut list: Vec<Server> =
            listed.map(|real| Server { id: real.id, name: real.name.clone(), created: real.created }).collect();
        if !list.is_empty() && self.happens(self.faults.slipped) {
            let slipped = self.rng.usize(0..list.len());
            if self.slipped != Some(list[slipped].id) {
                self.slipped = Some(list.remove(slipped).id);
                return Some(list);
            }
        }
        self.slipped = None;
        Some(list)
    }

    /// What lists show now, by number, where nothing breaks or slips.
    pub fn listed(&mut self, now: Time) -> impl Iterator<Item = &Real> {
        self.settle(now);
        // Those deleted longer ago than any list lags are of no more interest.
        let lag = self.faults.list_lag_ms + MINUTE_MS;
        self.servers
            .retain(|_, real| real.back.is_some() || real.deleted.is_none_or(|deleted| now.since(deleted) < lag));
        self.servers.values().filter(move |real| real.is_listed(now))
    }

    /// One machine by its number, as a reader sees it: a new one may not be found yet.
    pub fn get(&mut self, id: ServerId, now: Time) -> Option<&Real> {
        self.settle(now);
        let lag = self.faults.read_lag_ms;
        self.servers.get(&id).filter(|real| real.exists(now) && (lag == 0 || real.created.plus(lag) <= now))
    }

    /// A request to delete one.
    pub fn delete(&mut self, id: ServerId, now: Time) -> Delete {
        self.settle(now);
        if let Some(retry_after_ms) = self.limited(now) {
            return Delete::TooMany { retry_after_ms };
        }
        self.unmake(id, now)
    }

    /// What comes of a request to delete one that is not over the limit.
    pub fn unmake(&mut self, id: ServerId, now: Time) -> Delete {
        if self.get(id, now).is_none() {
            return Delete::Absent;
        }
        if self.happens(self.faults.pending_event) {
            return Delete::Pending;
        }
        let is_unclear = self.happens(self.faults.unclear_delete);
        let is_failing = self.happens(self.faults.failed_delete);
        let returns = self.happens(self.faults.resurrection);
        if !(is_failing || is_unclear && self.rng.bool()) {
            let back = returns.then(|| now.plus(self.rng.u64(HOUR_MS..6 * HOUR_MS)));
            self.end(id, now, back);
        }
        if is_unclear { Delete::Nothing } else { Delete::Accepted }
    }

    fn end(&mut self, id: ServerId, now: Time, back: Option<Time>) {
        let (price, billing) = (self.price, self.billing);
        let Some(server) = self.servers.get_mut(&id) else { return };
        self.spent += billing.cost(price, now.since(server.created));
        server.deleted = Some(now);
        server.back = back;
        self.alive -= 1;
        self.undead -= usize::from(server.is_undead);
        server.is_undead = false;
        if let Some(back) = back {
            self.changes.insert((back, Change::Returns, id));
        }
    }

    /// How many exist.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.alive
    }

    /// How many of them exist because a deletion was undone.
    #[must_use]
    pub fn undead(&self) -> usize {
        self.undead
    }

    /// How many do not exist now and will again, because their deletion is going to be undone.
    #[must_use]
    pub fn returning(&self) -> usize {
        self.changes.iter().filter(|(_, change, _)| *change == Change::Returns).count()
    }

    /// Those that exist.
    pub fn existing(&self, now: Time) -> impl Iterator<Item = &Real> {
        self.servers.values().filter(move |real| real.exists(now))
    }

    /// The numbers of all that were made and are remembered, those that do not exist yet or any more among them.
    pub fn known(&self) -> impl Iterator<Item = ServerId> {
        self.servers.keys().copied()
    }

    /// One that exists, as it is.
    #[must_use]
    pub fn real(&self, id: ServerId, now: Time) -> Option<&Real> {
        self.servers.get(&id).filter(|real| real.exists(now))
    }

    /// What all of it has cost until now.
    #[must_use]
    pub fn bill(&self, now: Time) -> Micros {
        self.existing(now).fold(self.spent, |sum, real| sum + self.billing.cost(self.price, now.since(real.created)))
    }

    /// From now on it behaves; what was undone already stays so.
    pub fn behave(&mut self) {
        self.faults = Faults::NONE;
    }
}
