//! Whether a machine may be bought, and its way to being ready.
//!
//! A request to create goes out once for each attempt. One that ends unclear
//! may have made a server, so it counts as one until lists prove that it did
//! not; while it counts, another attempt must fit under every cap besides it.

use super::{Scaler, pause_ms};
use crate::{
    event::{Command, CreateAnswer, Decision, Hold, Why},
    machine::{Attempt, Cause, Machine, MachineId, PoolIndex, ServerId, State},
    pool::{CREATIONS_WINDOW_MS, Caps, Room},
    time::{DAY_MS, MINUTE_MS},
};

/// So much of what is running is to be paid from a month's budget before another machine is bought: a day, or what is
/// left of the month.
const RUNWAY_MS: u64 = DAY_MS;
/// How long nothing is bought after the provider said that the account may have no more.
const QUOTA_PAUSE_MS: u64 = 10 * MINUTE_MS;
/// At most so many machines that failed are kept in a pool to be looked at; others are given back.
pub(super) const QUARANTINED_MAX: u32 = 1;

impl Scaler {
    /// Whether another server may be bought.
    fn may_buy(&mut self, pool: usize) -> Result<(), Hold> {
        let now = self.now;
        while self.creations.front().is_some_and(|first| now.since(*first) >= CREATIONS_WINDOW_MS) {
            self.creations.pop_front();
        }
        if self.is_frozen() {
            return Err(Hold::Frozen);
        }
        let state = &self.pools[pool];
        if state.spec.is_retired {
            return Err(Hold::Retired);
        }
        if state.not_before > now {
            return Err(Hold::Provider { until: state.not_before });
        }
        if let Some(first) = self.creations.front().filter(|_| self.creations.len() >= self.limits.creations as usize) {
            return Err(Hold::Creations { most: self.limits.creations, until: first.plus(CREATIONS_WINDOW_MS) });
        }
        let price = state.spec.price;
        let runway = now.month().next().start().since(now).min(RUNWAY_MS);
        let granted = state.granted.into_iter().chain(state.spec.caps.machines).min();
        let both = [
            (Caps { machines: granted, ..state.spec.caps }, state.possible, state.ledger, false),
            (self.limits.caps, self.possible, self.ledger, true),
        ];
        for (caps, possible, mut ledger, fleet) in both {
            if let Some(most) = caps.machines.filter(|most| possible >= *most) {
                return Err(Hold::Machines { most, fleet });
            }
            if let Some(most) = caps.per_hour.filter(|most| ledger.rate() + price > *most) {
                return Err(Hold::PerHour { most, fleet });
            }
            if let Some(most) = caps.per_month {
                ledger.begin(price, state.spec.billing.least(price));
                let until = now.plus(runway.saturating_sub(1));
                ledger.advance(until);
                if ledger.spent() > most {
                    return Err(Hold::PerMonth { most, fleet });
                }
            }
        }
        Ok(())
    }

    /// Intends a machine, and asks for it.
    pub(super) fn buy(&mut self, pool: usize, why: Why) -> Result<MachineId, Hold> {
        self.may_buy(pool)?;
        let now = self.now;
        let id = self.next_machine;
        self.next_machine = MachineId(id.0 + 1);
        let state = &self.pools[pool];
        let free_slots = state.ready.free_slots() + state.coming.free_slots();
        let row = Machine {
            id,
            name: self.names.of(&state.spec.name, id),
            pool: PoolIndex(u16::try_from(pool).expect("pools are counted in 16 bits")),
            state: State::Planned,
            since: now,
            cause: None,
            planned: now,
            asked: None,
            server: None,
            known: None,
            attempts: Vec::new(),
            used: Room::default(),
            empty_since: Some(now),
            instances: Vec::new(),
            not_before: now,
            failures: 0,
            silent_since: None,
            absent_since: None,
            deleted: None,
        };
        self.insert_row(row, true);
        self.out.machines.push(id);
        self.out.decisions.push(Decision::Buy { machine: id, why, free_slots });
        self.send(id);
        Ok(id)
    }

    /// Buys until as much is free as is to be, and until there are as many machines as there are to be.
    pub(super) fn keep_headroom(&mut self, pool: usize) {
        loop {
            let state = &self.pools[pool];
            let free = state.ready.free_slots() + state.coming.free_slots();
            let machines = state.ready.len() + state.coming.len();
            let why = if machines < state.spec.machines_min as usize {
                Why::Least
            } else if free < u64::from(state.headroom) {
                Why::Headroom { wanted: state.headroom }
            } else {
                return;
            };
            // What is to be given back is kept instead.
            if self.reprieve(pool, Room::default()).is_none() && self.buy(pool, why).is_err() {
                return;
            }
        }
    }

    /// An intent whose request was put off.
    pub(super) fn ask_for(&mut self, id: MachineId) {
        let now = self.now;
        let machine = &self.machines[&id];
        let pool = usize::from(machine.pool.0);
        if machine.instances.is_empty() && self.is_superfluous(pool, id) {
            return self.unplan(id);
        }
        let state = &self.pools[pool];
        let full = self.creations.len() >= self.limits.creations as usize;
        let until = if self.is_frozen() || full {
            now.plus(MINUTE_MS)
        } else if state.not_before > now {
            state.not_before
        } else {
            return self.send(id);
        };
        self.change(id, |machine| machine.not_before = until);
    }

    /// Whether as much would be free without a machine as is to be.
    pub(super) fn is_superfluous(&self, pool: usize, id: MachineId) -> bool {
        let state = &self.pools[pool];
        let free = state.ready.free_slots() + state.coming.free_slots();
        let own = state.spec.machine.less(self.machines[&id].used);
        let machines = state.ready.len() + state.coming.len();
        state.spec.is_retired
            || free.saturating_sub(u64::from(own.slots)) >= u64::from(state.headroom)
                && machines > state.spec.machines_min as usize
    }

    /// Gives an intent up that the provider knows nothing of.
    pub(super) fn unplan(&mut self, id: MachineId) {
        let machine = &self.machines[&id];
        let pool = usize::from(machine.pool.0);
        if machine.state == State::Planned && machine.attempts.is_empty() && self.is_superfluous(pool, id) {
            self.become_(id, State::Gone, Some(Cause::Idle));
        }
    }

    fn send(&mut self, id: MachineId) {
        let now = self.now;
        self.creations.push_back(now);
        self.change(id, |machine| {
            machine.state = State::Creating;
            machine.since = now;
            machine.asked = machine.asked.or(Some(now));
            machine.attempts.push(Attempt { sent: now, ended: None, is_missed: false });
        });
        self.out.commands.push(Command::Create { machine: id });
    }

    /// Sends a request again, though one before may yet turn out to have made a server, if both fit under the caps.
    pub(super) fn send_again(&mut self, id: MachineId) {
        let pool = usize::from(self.machines[&id].pool.0);
        if self.may_buy(pool).is_ok() {
            self.out.decisions.push(Decision::Again { machine: id });
            self.send(id);
        }
    }

    pub(super) fn created(&mut self, id: MachineId, answer: CreateAnswer) {
        let now = self.now;
        let Some(machine) = self.machines.get(&id) else { return };
        let Some(attempt) = machine.attempts.iter().position(|attempt| attempt.ended.is_none()) else { return };
        let pool = usize::from(machine.pool.0);
        if let CreateAnswer::Unclear = answer {
            self.change(id, |machine| machine.attempts[attempt].ended = Some(now));
            self.want_list(now.plus(super::PAUSE_MS));
            return;
        }
        if let CreateAnswer::Made(server) = answer {
            let known = self.by_server.get(&server).copied();
            match (known, machine.server) {
                // A list showed it before this answer came.
                (Some(other), _) => {
                    self.change(id, |machine| machine.attempts.remove(attempt));
                    debug_assert_eq!(self.machines[&other].name, self.machines[&id].name);
                }
                (None, None) if machine.state == State::Creating => {
                    self.change(id, |machine| {
                        machine.attempts.remove(attempt);
                        machine.server = Some(server);
                    });
                    self.boots(id, server);
                }
                // An earlier attempt made one, or it was given up meanwhile.
                _ => {
                    // Both in one step, so that no cap ever sees one server too few.
                    self.duplicate(id, server);
                    self.change(id, |machine| machine.attempts.remove(attempt));
                }
            }
            self.pools[pool].refusals = 0;
            return;
        }
        // It made none.
        let is_wanted = self.change(id, |machine| {
            machine.attempts.remove(attempt);
            machine.state == State::Creating && machine.server.is_none()
        });
        let state = &mut self.pools[pool];
        state.refusals += 1;
        let pause = match answer {
            CreateAnswer::RateLimited { retry_after_ms } => retry_after_ms.max(super::SECOND_MS),
            CreateAnswer::Quota | CreateAnswer::Forbidden => QUOTA_PAUSE_MS,
            _ => pause_ms(state.refusals),
        };
        state.not_before = state.not_before.max(now.plus(pause));
        let until = state.not_before;
        if is_wanted && self.machines[&id].attempts.is_empty() {
            self.change(id, |machine| {
                machine.state = State::Planned;
                machine.since = now;
                machine.failures += 1;
                machine.not_before = until;
            });
            self.unplan(id);
        }
    }

    /// The provider has it.
    pub(super) fn boots(&mut self, id: MachineId, server: ServerId) {
        let now = self.now;
        self.change(id, |machine| machine.known = Some(now));
        self.become_(id, State::Booting, None);
        self.out.commands.push(Command::Join { machine: id, server });
    }

    pub(super) fn reached(&mut self, id: MachineId, server: ServerId) {
        let Some(machine) = self.machines.get(&id) else { return };
        if machine.state == State::Booting && machine.server == Some(server) {
            self.become_(id, State::Joining, None);
        }
    }

    pub(super) fn joined(&mut self, id: MachineId, server: ServerId) {
        let now = self.now;
        let Some(machine) = self.machines.get(&id) else { return };
        if !matches!(machine.state, State::Booting | State::Joining) || machine.server != Some(server) {
            return;
        }
        let state = &mut self.pools[usize::from(machine.pool.0)];
        // The last few boots count most; one that was put off for minutes does not spoil the measure.
        let took = now.since(machine.asked.unwrap_or(machine.planned)).min(state.spec.boot_max_ms);
        state.boot_ms = ((state.boot_ms * 3 + took) / 4).max(super::SECOND_MS);
        state.stillborn = 0;
        self.become_(id, State::Ready, None);
        self.start_reserved(id);
    }

    pub(super) fn join_failed(&mut self, id: MachineId, server: ServerId) {
        let Some(machine) = self.machines.get(&id) else { return };
        if matches!(machine.state, State::Booting | State::Joining) && machine.server == Some(server) {
            self.never_ready(id);
        }
    }

    /// It did not become a node: one is kept to be looked at, others go, and what waited for it is placed anew.
    pub(super) fn never_ready(&mut self, id: MachineId) {
        if self.is_frozen() {
            return;
        }
        let now = self.now;
        let pool = usize::from(self.machines[&id].pool.0);
        let state = &mut self.pools[pool];
        state.stillborn += 1;
        // The first may be bad luck; after that each is waited for longer, or a broken image buys for ever.
        if state.stillborn > 1 {
            state.not_before = state.not_before.max(now.plus(pause_ms(state.stillborn)));
        }
        if state.quarantined < QUARANTINED_MAX {
            self.become_(id, State::Quarantined, Some(Cause::NeverReady));
        } else {
            self.become_(id, State::Deleting, Some(Cause::NeverReady));
        }
        for instance in self.machines[&id].instances.clone() {
            self.displace(instance);
        }
    }

    /// Puts a second server of one intent on record, to be deleted.
    pub(super) fn duplicate(&mut self, of: MachineId, server: ServerId) {
        let Some(original) = self.machines.get(&of) else { return };
        let (name, pool, asked) = (original.name.clone(), original.pool, original.asked);
        self.condemn(name, pool, server, asked, Cause::Duplicate);
    }
}
