//! The state machine.
//!
//! Rows of machines and instances are the state; whatever else is kept here
//! follows from them. Every change of a machine's row goes through
//! [`Scaler::change`], which brings what follows up to date: the shelves, the
//! timers, the counts and the money. Restoring is therefore putting rows back.
//!
//! | module | decides |
//! |---|---|
//! | `placing` | where an instance runs; when a machine is bought for it |
//! | `buying` | whether a machine may be bought, and what comes of asking for it |
//! | `retiring` | when machines are emptied and deleted |
//! | `listing` | what the provider's lists prove |
//! | `people` | freezing, cordons, drains, orphans |

mod buying;
mod listing;
mod people;
mod placing;
mod retiring;
#[cfg(test)]
mod tests;

use crate::{
    arrivals::Arrivals,
    event::{Command, Decision, Event, Hold},
    ledger::Ledger,
    machine::{Cause, Doing, Instance, InstanceId, Machine, MachineId, Names, PoolIndex, ServerId, State},
    money::Micros,
    pool::{Headroom, Limits, Pool, Room},
    shelf::Shelf,
    time::{DAY_MS, MINUTE_MS, SECOND_MS, Time},
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// How long machines that are gone stay on record: one that turns up again within that is deleted again, later ones
/// are reported as orphans.
const GONE_KEPT_MS: u64 = 7 * DAY_MS;
/// What is not answered within so long is begun again: the answer was lost.
const ANSWER_MS: u64 = 3 * MINUTE_MS;
/// The first pause after a failure; it doubles up to [`PAUSE_MAX_MS`].
const PAUSE_MS: u64 = 10 * SECOND_MS;
/// The longest pause after a failure.
const PAUSE_MAX_MS: u64 = 10 * MINUTE_MS;

/// The pause after so many failures in a row.
fn pause_ms(failures: u32) -> u64 {
    PAUSE_MS.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(PAUSE_MAX_MS)
}

/// What a step wants done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Rows of machines that changed, and are to be written before any command begins. May repeat.
    pub machines: Vec<MachineId>,
    /// Rows of instances that changed, or are no more. May repeat.
    pub instances: Vec<InstanceId>,
    /// What is to be done.
    pub commands: Vec<Command>,
    /// What was decided.
    pub decisions: Vec<Decision>,
}

impl Output {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.machines.clear();
        self.instances.clear();
        self.commands.clear();
        self.decisions.clear();
    }
}

/// What a database kept.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Every machine that is not gone, and those that are gone since a week at most.
    pub machines: Vec<Machine>,
    /// Every instance that is wanted.
    pub instances: Vec<Instance>,
    /// What was spent, by pool.
    pub ledgers: Vec<(PoolIndex, Ledger)>,
    /// The lowest id that no machine was ever given.
    pub next_machine: MachineId,
    /// Whether a person froze buying.
    pub is_frozen: bool,
}

/// A pool as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolView<'a> {
    /// What it is.
    pub pool: &'a Pool,
    /// Machines that are nodes and can be placed on.
    pub ready: usize,
    /// Machines on their way.
    pub coming: usize,
    /// Machines being emptied or deleted for want of use.
    pub leaving: u32,
    /// Servers that may exist at the provider.
    pub possible: u32,
    /// Free slots on ready machines.
    pub free_slots: u64,
    /// Free slots on machines that are coming.
    pub coming_slots: u64,
    /// Slots that are to be kept free.
    pub headroom: u32,
    /// Instances that have no place.
    pub waiting: usize,
    /// Why nothing is bought for them.
    pub hold: Option<Hold>,
    /// How long machines take at present until they are ready.
    pub boot_ms: u64,
    /// This month's spending.
    pub ledger: Ledger,
}

/// A pool with what follows from its rows.
#[derive(Debug)]
struct PoolState {
    spec: Pool,
    ready: Shelf,
    coming: Shelf,
    waiting: BTreeSet<InstanceId>,
    /// Empty machines, by when they may go.
    idle: BTreeSet<(Time, MachineId)>,
    draining: BTreeSet<MachineId>,
    /// Machines that are emptied or deleted for want of use.
    leaving: u32,
    quarantined: u32,
    possible: u32,
    ledger: Ledger,
    arrivals: Arrivals,
    boot_ms: u64,
    headroom: u32,
    /// Nothing is bought before.
    not_before: Time,
    /// Refusals in a row by the provider.
    refusals: u32,
    /// Machines in a row that did not become nodes.
    stillborn: u32,
    /// Machines in a row on which nothing could be started.
    failing: u32,
    /// How many machines it may have besides what its caps say.
    granted: Option<u32>,
    hold: Option<Hold>,
    consolidated: Time,
}

/// Complete lists.
#[derive(Debug, Default)]
struct Lists {
    /// When the next is wanted.
    wanted: Option<Time>,
    /// When the one under way was asked for.
    under_way: Option<Time>,
    /// When the last one was asked for.
    last: Time,
    /// How many servers it had.
    servers: usize,
    failures: u32,
    orphans: BTreeMap<ServerId, std::sync::Arc<str>>,
}

/// What follows from a machine's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Follows {
    shelf: Option<Shelved>,
    idle: Option<Time>,
    wake: Option<Time>,
    possible: u32,
    is_draining: bool,
    is_leaving: bool,
    is_quarantined: bool,
    is_silent: bool,
    server: Option<ServerId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shelved {
    Ready(Room),
    Coming(Room),
}

impl Follows {
    fn of(machine: &Machine, pool: &Pool, limits: &Limits) -> Self {
        let free = || pool.machine.less(machine.used);
        let shelf = match machine.state {
            _ if pool.is_retired => None,
            State::Ready => Some(Shelved::Ready(free())),
            state if state.is_coming() => Some(Shelved::Coming(free())),
            _ => None,
        };
        let is_ready = matches!(machine.state, State::Ready);
        let is_for_want_of_use = matches!(machine.cause, Some(Cause::Idle | Cause::Consolidation));
        Self {
            shelf,
            idle: machine.empty_since.filter(|_| is_ready).map(|since| retiring::may_go(machine, pool, since)),
            wake: wake(machine, pool, limits),
            possible: machine.possible(),
            is_draining: machine.state == State::Draining,
            is_leaving: is_for_want_of_use && matches!(machine.state, State::Draining | State::Deleting),
            is_quarantined: machine.state == State::Quarantined,
            is_silent: machine.silent_since.is_some() && machine.state != State::Gone,
            server: machine.server,
        }
    }
}

/// When a machine is to be looked at, whatever else happens. `not_before` puts it off in every state.
fn wake(machine: &Machine, pool: &Pool, limits: &Limits) -> Option<Time> {
    let due = match machine.state {
        State::Planned | State::Deleting => Some(machine.not_before),
        State::Creating => machine.attempts.iter().all(|attempt| attempt.ended.is_some()).then_some(machine.not_before),
        State::Booting | State::Joining => Some(machine.asked.unwrap_or(machine.since).plus(pool.boot_max_ms)),
        State::Ready | State::Cordoned => machine.silent_since.map(|since| since.plus(limits.lost_ms)),
        State::Draining if machine.instances.is_empty() => Some(machine.not_before),
        State::Draining => Some(machine.since.plus(pool.drain_max_ms)),
        State::Quarantined => Some(machine.since.plus(pool.quarantine_ms)),
        State::Gone => Some(machine.since.plus(GONE_KEPT_MS)),
    };
    due.map(|due| due.max(machine.not_before))
}

/// Decides about machines and instances. See the [crate](crate).
#[derive(Debug)]
pub struct Scaler {
    names: Names,
    limits: Limits,
    pools: Vec<PoolState>,
    machines: BTreeMap<MachineId, Machine>,
    instances: HashMap<InstanceId, Instance>,
    by_server: HashMap<ServerId, MachineId>,
    next_machine: MachineId,
    timers: BTreeSet<(Time, MachineId)>,
    retries: BTreeSet<(Time, InstanceId)>,
    /// When machines were asked for in the last ten minutes.
    creations: VecDeque<Time>,
    ledger: Ledger,
    possible: u32,
    silent: usize,
    lists: Lists,
    is_frozen: bool,
    /// Whether it was machines falling silent that froze it.
    is_suspecting: bool,
    /// Until then, a list that lacks many machines is believed: a person has looked.
    believed_until: Time,
    now: Time,
    out: Output,
}

impl Scaler {
    /// A scaler without machines.
    #[must_use]
    pub fn new(names: Names, limits: Limits, pools: Vec<Pool>, now: Time) -> Self {
        let pools = pools.into_iter().map(|spec| PoolState {
            ready: Shelf::default(),
            coming: Shelf::default(),
            waiting: BTreeSet::new(),
            idle: BTreeSet::new(),
            draining: BTreeSet::new(),
            leaving: 0,
            quarantined: 0,
            possible: 0,
            ledger: Ledger::new(now),
            arrivals: Arrivals::new(now),
            boot_ms: spec.boot_ms,
            headroom: if let Headroom::Slots(slots) = spec.headroom { slots } else { 0 },
            not_before: Time(0),
            refusals: 0,
            stillborn: 0,
            failing: 0,
            granted: None,
            hold: None,
            consolidated: now,
            spec,
        });
        Self {
            names,
            limits,
            pools: pools.collect(),
            machines: BTreeMap::new(),
            instances: HashMap::new(),
            by_server: HashMap::new(),
            next_machine: MachineId(0),
            timers: BTreeSet::new(),
            retries: BTreeSet::new(),
            creations: VecDeque::new(),
            ledger: Ledger::new(now),
            possible: 0,
            silent: 0,
            lists: Lists::default(),
            is_frozen: false,
            is_suspecting: false,
            believed_until: Time(0),
            now,
            out: Output::default(),
        }
    }

    /// A scaler as a database kept it, after a crash at any moment: whatever was under way is taken up again, and a
    /// request to create that may have been sent is taken for unclear. A first [`Event::Tick`] says what is to be done.
    #[must_use]
    pub fn restore(names: Names, limits: Limits, pools: Vec<Pool>, rows: Rows, now: Time) -> Self {
        let mut scaler = Self::new(names, limits, pools, now);
        for (pool, ledger) in rows.ledgers {
            if let Some(state) = scaler.pools.get_mut(usize::from(pool.0)) {
                let before = state.ledger.spent();
                state.ledger.resume(&ledger);
                let resumed = state.ledger.spent() - before;
                scaler.ledger.begin(Micros(0), resumed);
            }
        }
        for mut machine in rows.machines {
            for attempt in &mut machine.attempts {
                attempt.ended = attempt.ended.or(Some(now));
            }
            // What was asked of it may have been lost: it is asked again, at once.
            if matches!(machine.state, State::Creating | State::Deleting | State::Draining) {
                machine.not_before = machine.not_before.min(now);
            }
            machine.silent_since = None;
            let (state, id, server) = (machine.state, machine.id, machine.server);
            if state == State::Creating {
                scaler.want_list(now);
            }
            scaler.next_machine = scaler.next_machine.max(MachineId(id.0 + 1));
            if let (State::Booting | State::Joining, Some(server)) = (state, server) {
                scaler.out.commands.push(Command::Join { machine: id, server });
            }
            if let Some(asked) = machine.asked.filter(|asked| now.since(*asked) < crate::CREATIONS_WINDOW_MS) {
                scaler.creations.push_back(asked);
            }
            let is_deleted = machine.deleted.is_some() && state == State::Deleting;
            scaler.insert_row(machine, false);
            if is_deleted {
                scaler.want_list(now);
            }
        }
        scaler.creations.make_contiguous().sort_unstable();
        scaler.next_machine = scaler.next_machine.max(rows.next_machine);
        for instance in rows.instances {
            let id = instance.id;
            let (machine, to) = (instance.machine, instance.to);
            match (instance.doing, machine, to) {
                (Doing::Waiting, ..) => {
                    scaler.pools[usize::from(instance.pool.0)].waiting.insert(id);
                }
                (Doing::Starting, Some(machine), _) => {
                    scaler.out.commands.push(Command::Start { instance: id, machine })
                }
                (Doing::Moving, _, Some(machine)) => scaler.out.commands.push(Command::Start { instance: id, machine }),
                (Doing::Leaving, Some(machine), _) => scaler.out.commands.push(Command::Stop { instance: id, machine }),
                (Doing::Stopping, ..) => {
                    let places = machine.into_iter().chain(to);
                    scaler.out.commands.extend(places.map(|machine| Command::Stop { instance: id, machine }));
                }
                _ => {}
            }
            scaler.instances.insert(id, instance);
        }
        scaler.is_frozen = rows.is_frozen;
        scaler.want_list(now);
        scaler
    }

    /// Takes an event, and puts what is to be done into `out`, which is emptied before.
    ///
    /// A moment before an earlier one is taken for that one.
    pub fn step(&mut self, event: Event, now: Time, out: &mut Output) {
        self.now = self.now.max(now);
        let now = self.now;
        self.ledger.advance(now);
        match event {
            Event::Start { instance, pool, needs, is_movable } => self.start(instance, pool, needs, is_movable),
            Event::Stop { instance } => self.stop(instance),
            Event::Created { machine, answer } => self.created(machine, answer),
            Event::Listed { asked, servers } => self.listed(asked, &servers),
            Event::ListFailed => self.list_failed(),
            Event::Reached { machine, server } => self.reached(machine, server),
            Event::Joined { machine, server } => self.joined(machine, server),
            Event::JoinFailed { machine, server } => self.join_failed(machine, server),
            Event::Confirmed { machine, running } => self.confirmed(machine, running),
            Event::Deleted { machine, answer } => self.deleted(machine, answer),
            Event::Started { instance, machine, is_running } => self.started(instance, machine, is_running),
            Event::NotTried { instance, machine } => self.not_tried(instance, machine),
            Event::Stopped { instance, machine, is_stopped } => self.stopped(instance, machine, is_stopped),
            Event::Heard { machine, answers } => self.heard(machine, answers),
            Event::Freeze => self.freeze(),
            Event::Thaw => self.thaw(),
            Event::Person { machine, wish } => self.wished(machine, wish),
            Event::DeleteOrphan { server } => self.delete_orphan(server),
            Event::Tick => {}
        }
        self.wake_all();
        for pool in 0..self.pools.len() {
            self.settle(pool);
        }
        out.clear();
        std::mem::swap(out, &mut self.out);
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self) -> Time {
        let later = |time: Time| (time > self.now).then_some(time);
        let mut next = self.now.plus(MINUTE_MS);
        let mut consider = |time: Option<Time>| next = next.min(time.unwrap_or(next));
        consider(self.timers.first().map(|(time, _)| (*time).max(self.now)));
        consider(self.retries.first().map(|(time, _)| (*time).max(self.now)));
        consider(self.list_due());
        for pool in &self.pools {
            // Machines that might have gone already are kept for a reason that only an event changes.
            let after = (self.now.plus(1), MachineId(0));
            consider(pool.idle.range(after..).next().map(|(time, _)| *time));
            consider(later(pool.not_before));
            if matches!(pool.spec.headroom, Headroom::Arrivals { .. }) {
                consider(later(pool.arrivals.closes(pool.boot_ms)));
            }
        }
        if let Some(first) = self.creations.front() {
            consider(later(first.plus(crate::CREATIONS_WINDOW_MS)));
        }
        next
    }

    /// Changes a machine's row and all that follows from it.
    fn change<R>(&mut self, id: MachineId, change: impl FnOnce(&mut Machine) -> R) -> R {
        let machine = self.machines.get_mut(&id).expect("machines are changed by ids that are on record");
        let spec = &self.pools[usize::from(machine.pool.0)].spec;
        let before = Follows::of(machine, spec, &self.limits);
        let result = change(machine);
        let after = Follows::of(machine, spec, &self.limits);
        let pool = machine.pool;
        self.out.machines.push(id);
        if before != after {
            self.follow(id, pool, Some(before), Some(after), true);
        }
        result
    }

    /// Sets a machine's state, and says so.
    fn become_(&mut self, id: MachineId, state: State, cause: Option<Cause>) {
        let now = self.now;
        self.change(id, |machine| {
            machine.state = state;
            machine.since = now;
            machine.cause = cause;
            machine.not_before = now;
            machine.failures = 0;
        });
        self.out.decisions.push(Decision::Became { machine: id, state, cause });
    }

    /// Puts a row in. Where `is_new`, what the provider asks at least for a machine is spent at once.
    fn insert_row(&mut self, machine: Machine, is_new: bool) {
        let after = Follows::of(&machine, &self.pools[usize::from(machine.pool.0)].spec, &self.limits);
        let (id, pool) = (machine.id, machine.pool);
        self.machines.insert(id, machine);
        self.follow(id, pool, None, Some(after), is_new);
    }

    /// Takes a row out that is no more.
    fn remove_row(&mut self, id: MachineId) {
        if let Some(machine) = self.machines.remove(&id) {
            let before = Follows::of(&machine, &self.pools[usize::from(machine.pool.0)].spec, &self.limits);
            self.follow(id, machine.pool, Some(before), None, false);
            self.out.machines.push(id);
        }
    }

    fn follow(
        &mut self,
        id: MachineId,
        pool: PoolIndex,
        before: Option<Follows>,
        after: Option<Follows>,
        pays_least: bool,
    ) {
        let state = &mut self.pools[usize::from(pool.0)];
        if let Some(before) = before {
            match before.shelf {
                Some(Shelved::Ready(free)) => state.ready.remove(free, id),
                Some(Shelved::Coming(free)) => state.coming.remove(free, id),
                None => {}
            }
            if let Some(time) = before.idle {
                state.idle.remove(&(time, id));
            }
            if let Some(time) = before.wake {
                self.timers.remove(&(time, id));
            }
            if before.is_draining {
                state.draining.remove(&id);
            }
            if let Some(server) = before.server.filter(|server| self.by_server.get(server) == Some(&id)) {
                self.by_server.remove(&server);
            }
            state.leaving -= u32::from(before.is_leaving);
            state.quarantined -= u32::from(before.is_quarantined);
            self.silent -= usize::from(before.is_silent);
        }
        if let Some(after) = after {
            match after.shelf {
                Some(Shelved::Ready(free)) => state.ready.insert(free, id),
                Some(Shelved::Coming(free)) => state.coming.insert(free, id),
                None => {}
            }
            if let Some(time) = after.idle {
                state.idle.insert((time, id));
            }
            if let Some(time) = after.wake {
                self.timers.insert((time, id));
            }
            if after.is_draining {
                state.draining.insert(id);
            }
            if let Some(server) = after.server {
                self.by_server.insert(server, id);
            }
            state.leaving += u32::from(after.is_leaving);
            state.quarantined += u32::from(after.is_quarantined);
            self.silent += usize::from(after.is_silent);
        }
        let possible = |follows: Option<Follows>| follows.map_or(0, |follows| follows.possible);
        let (before, after) = (possible(before), possible(after));
        if before == after {
            return;
        }
        let price = state.spec.price;
        state.possible = state.possible - before + after;
        self.possible = self.possible - before + after;
        state.ledger.advance(self.now);
        self.ledger.advance(self.now);
        let least = if pays_least { state.spec.billing.least(price) } else { Micros(0) };
        for _ in before..after {
            state.ledger.begin(price, least);
            self.ledger.begin(price, least);
        }
        for _ in after..before {
            state.ledger.end(price);
            self.ledger.end(price);
        }
    }

    /// Looks at machines, instances and lists whose time has come.
    fn wake_all(&mut self) {
        let now = self.now;
        while let Some(&(time, id)) = self.timers.first() {
            if time > now {
                break;
            }
            self.wake(id);
            if self.timers.contains(&(time, id)) {
                // It decided nothing that moves its timer on, so it is asked again later.
                self.change(id, |machine| machine.not_before = now.plus(MINUTE_MS));
            }
        }
        while let Some(&(time, instance)) = self.retries.first() {
            if time > now {
                break;
            }
            self.retries.pop_first();
            self.retry(instance);
        }
        if self.list_due().is_some_and(|due| due <= now) {
            self.lists.under_way = Some(now);
            self.lists.last = now;
            self.lists.wanted = None;
            self.out.commands.push(Command::List);
        }
    }

    fn wake(&mut self, id: MachineId) {
        let Some(machine) = self.machines.get(&id) else { return };
        match machine.state {
            State::Planned => self.ask_for(id),
            State::Creating => self.want_list(self.now),
            State::Booting | State::Joining => self.never_ready(id),
            State::Ready | State::Cordoned => self.lost(id),
            State::Draining => self.drain_on(id),
            State::Deleting => self.delete_on(id),
            State::Quarantined => self.quarantine_over(id),
            State::Gone => self.remove_row(id),
        }
    }

    /// What every step ends with for every pool: whoever waits is served, and what is to be free or to go is seen to.
    fn settle(&mut self, index: usize) {
        let pool = &mut self.pools[index];
        if let Headroom::Arrivals { percentile } = pool.spec.headroom
            && pool.arrivals.roll(self.now, pool.boot_ms)
        {
            pool.headroom = pool.arrivals.percentile(percentile);
        }
        pool.ledger.advance(self.now);
        if !self.pools[index].waiting.is_empty() {
            self.serve(index);
        }
        self.keep_headroom(index);
        self.retire(index);
    }

    /// The lowest id that no machine was ever given.
    #[must_use]
    pub fn next_machine(&self) -> MachineId {
        self.next_machine
    }

    /// A machine's row.
    #[must_use]
    pub fn machine(&self, id: MachineId) -> Option<&Machine> {
        self.machines.get(&id)
    }

    /// Every machine on record, oldest first.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    /// Lets a pool have at most so many machines, whatever its own caps say, from now on; `None` where nothing but those
    /// counts, as in the beginning. Gives whether that is news. It is on no row: whoever runs a scaler says it again.
    pub fn bound(&mut self, index: PoolIndex, machines: Option<u32>) -> bool {
        let state = self.pools.get_mut(usize::from(index.0));
        state.is_some_and(|state| std::mem::replace(&mut state.granted, machines) != machines)
    }

    /// An instance's row.
    #[must_use]
    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.get(&id)
    }

    /// Every instance, in no order.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// A pool as it stands.
    #[must_use]
    pub fn pool(&self, index: PoolIndex) -> Option<PoolView<'_>> {
        let state = self.pools.get(usize::from(index.0))?;
        Some(PoolView {
            pool: &state.spec,
            ready: state.ready.len(),
            coming: state.coming.len(),
            leaving: state.leaving,
            possible: state.possible,
            free_slots: state.ready.free_slots(),
            coming_slots: state.coming.free_slots(),
            headroom: state.headroom,
            waiting: state.waiting.len(),
            hold: state.hold,
            boot_ms: state.boot_ms,
            ledger: state.ledger,
        })
    }

    /// The spending of all pools together.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.ledger
    }

    /// How many servers of the provider there may be, of all pools.
    #[must_use]
    pub fn possible(&self) -> u32 {
        self.possible
    }

    /// Whether nothing is bought, emptied or deleted.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.is_frozen || self.is_suspecting
    }

    /// Whether it is until somebody thaws it, and not only until nodes answer again.
    #[must_use]
    pub fn is_frozen_by_person(&self) -> bool {
        self.is_frozen
    }

    /// Machines of the fleet at the provider that are on no record, as the last list had them.
    pub fn orphans(&self) -> impl Iterator<Item = (ServerId, &str)> {
        self.lists.orphans.iter().map(|(id, name)| (*id, &**name))
    }

    /// Whether a machine of the pool has what an instance needs, when nothing else runs on it.
    #[must_use]
    pub fn fits(&self, pool: PoolIndex, needs: Room) -> bool {
        self.pools.get(usize::from(pool.0)).is_some_and(|pool| !pool.spec.is_retired && pool.spec.machine.fits(needs))
    }

    /// How machines are named.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }
}
