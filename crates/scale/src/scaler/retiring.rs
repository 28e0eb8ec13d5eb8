//! When machines are emptied and given back.
//!
//! Empty ones go, one or a tenth of a pool at a time, and only as long as what
//! is to be free stays free. Before a node is deleted it is asked what runs on
//! it. Until the deletion is on record, any demand takes the machine back.

use super::{ANSWER_MS, Scaler, pause_ms};
use crate::{
    event::{Command, Decision, DeleteAnswer},
    machine::{Cause, Doing, InstanceId, Machine, MachineId, PoolIndex, ServerId, State},
    money::Billing,
    pool::{Pool, Room},
    time::{HOUR_MS, MINUTE_MS, SECOND_MS, Time},
};
use std::sync::Arc;

/// So long before the end of an hour that is paid for a machine goes, where hours are billed.
const MARGIN_MS: u64 = 3 * MINUTE_MS;
/// A node that does not say what runs on it is asked again after so long.
const ASK_AGAIN_MS: u64 = 30 * SECOND_MS;
/// At least so many silent nodes, and at least half of all, make one's own network suspect.
const SUSPECT: usize = 3;

/// When a ready machine may go that has been empty since then.
pub(super) fn may_go(machine: &Machine, pool: &Pool, empty_since: Time) -> Time {
    let after = empty_since.max(machine.since).plus(pool.idle_ms).max(machine.not_before);
    match pool.billing {
        Billing::PerHour => {
            let begun = machine.asked.unwrap_or(machine.planned);
            let hours = after.since(begun).saturating_add(MARGIN_MS).div_ceil(HOUR_MS).max(1);
            begun.plus((hours * HOUR_MS).saturating_sub(MARGIN_MS))
        }
        Billing::PerSecond { .. } | Billing::Free => after,
    }
}

impl Scaler {
    /// Begins to give back what is not needed.
    pub(super) fn retire(&mut self, pool: usize) {
        let now = self.now;
        if self.is_frozen() {
            return;
        }
        while let Some(&(time, id)) = self.pools[pool].idle.first() {
            let state = &self.pools[pool];
            if time > now || !self.is_superfluous(pool, id) {
                break;
            }
            let most = (state.ready.len() + state.coming.len()) / 10;
            if state.leaving as usize >= most.max(1) {
                break;
            }
            if state.spec.billing == Billing::PerHour && now.since(time) > MARGIN_MS {
                // Its hour has passed, and the next is paid for: it may as well stay to its end.
                self.change(id, |machine| machine.not_before = now);
                continue;
            }
            self.become_(id, State::Draining, Some(Cause::Idle));
            self.drain_on(id);
        }
        self.consolidate(pool);
    }

    /// Begins to empty the emptiest machine, if what runs there may be moved and fits elsewhere.
    fn consolidate(&mut self, pool: usize) {
        let state = &self.pools[pool];
        let Some(rule) = state.spec.consolidation else { return };
        let is_quiet = state.draining.is_empty() && state.coming.len() == 0 && state.waiting.is_empty();
        if !is_quiet || self.now.since(state.consolidated) < rule.every_ms {
            return;
        }
        let now = self.now;
        self.pools[pool].consolidated = now;
        let state = &self.pools[pool];
        let free = state.ready.free_slots();
        let slots = state.spec.machine.slots;
        let found = state.ready.emptiest_first().find(|(room, id)| {
            let machine = &self.machines[id];
            let own = u64::from(room.slots);
            let used = u64::from(machine.used.slots);
            let may_move = |id: &InstanceId| {
                let instance = &self.instances[id];
                instance.doing == Doing::Running && instance.is_movable
            };
            used > 0
                && used * 100 <= u64::from(slots) * u64::from(rule.below_percent)
                && free - own >= used + u64::from(state.headroom)
                && state.ready.len() > state.spec.machines_min as usize
                && machine.instances.iter().all(may_move)
        });
        if let Some((_, id)) = found {
            self.become_(id, State::Draining, Some(Cause::Consolidation));
            self.drain_on(id);
        }
    }

    /// Takes a machine back that was to go and has this room, if there is one.
    pub(super) fn reprieve(&mut self, pool: usize, needs: Room) -> Option<MachineId> {
        let state = &self.pools[pool];
        if state.spec.is_retired {
            return None;
        }
        let id = state.draining.iter().copied().find(|id| {
            let machine = &self.machines[id];
            !matches!(machine.cause, Some(Cause::Person | Cause::Failing))
                && state.spec.machine.less(machine.used).fits(needs)
        })?;
        self.become_(id, State::Ready, None);
        self.out.decisions.push(Decision::Reprieve { machine: id });
        Some(id)
    }

    /// Goes on emptying a machine, or gives that up.
    pub(super) fn drain_on(&mut self, id: MachineId) {
        let now = self.now;
        let machine = &self.machines[&id];
        let pool = &self.pools[usize::from(machine.pool.0)].spec;
        if machine.instances.is_empty() {
            if !self.is_frozen() {
                self.change(id, |machine| machine.not_before = now.plus(ANSWER_MS));
                self.out.commands.push(Command::Confirm { machine: id });
            }
            return;
        }
        if now >= machine.since.plus(pool.drain_max_ms) {
            return self.keep(id);
        }
        let mut moved = true;
        for instance in machine.instances.clone() {
            moved &= self.move_away(instance);
        }
        if !moved && self.machines[&id].cause == Some(Cause::Consolidation) {
            // What was free a moment ago is not any more.
            let is_under_way = |id: &InstanceId| matches!(self.instances[id].doing, Doing::Moving | Doing::Leaving);
            if !self.machines[&id].instances.iter().any(is_under_way) {
                self.keep(id);
            }
        }
    }

    /// Ends a drain without giving the machine back.
    fn keep(&mut self, id: MachineId) {
        if self.machines[&id].cause == Some(Cause::Person) {
            self.become_(id, State::Cordoned, Some(Cause::Person));
        } else {
            self.become_(id, State::Ready, None);
        }
    }

    pub(super) fn confirmed(&mut self, id: MachineId, running: Option<u32>) {
        let now = self.now;
        if running.is_some() {
            self.heard(id, true);
        }
        let Some(machine) = self.machines.get(&id) else { return };
        if machine.absent_since.is_some() {
            match running {
                Some(_) => self.change(id, |machine| machine.absent_since = None),
                None => self.heard(id, false),
            }
        }
        let machine = &self.machines[&id];
        if machine.state != State::Draining || !machine.instances.is_empty() {
            return;
        }
        let cause = machine.cause;
        match running {
            Some(0) if self.is_frozen() => self.change(id, |machine| machine.not_before = now.plus(MINUTE_MS)),
            Some(0) => {
                self.become_(id, State::Deleting, cause);
                self.delete_on(id);
            }
            Some(_) => self.become_(id, State::Cordoned, Some(Cause::Unknown)),
            None if now >= machine.since.plus(self.pools[usize::from(machine.pool.0)].spec.drain_max_ms) => {
                self.become_(id, State::Quarantined, Some(Cause::Lost));
            }
            None => self.change(id, |machine| machine.not_before = now.plus(ASK_AGAIN_MS)),
        }
    }

    /// Asks for a machine's deletion, or for a list that shows it.
    pub(super) fn delete_on(&mut self, id: MachineId) {
        let now = self.now;
        let machine = &self.machines[&id];
        let Some(server) = machine.server else { return };
        if machine.deleted.is_some() {
            self.want_list(now);
            let lag = self.limits.lag_ms;
            self.change(id, |machine| machine.not_before = now.plus(lag.max(MINUTE_MS)));
        } else if !self.is_frozen() {
            self.change(id, |machine| machine.not_before = now.plus(ANSWER_MS));
            self.out.commands.push(Command::Delete { machine: id, server });
        }
    }

    pub(super) fn deleted(&mut self, id: MachineId, answer: DeleteAnswer) {
        let now = self.now;
        let Some(machine) = self.machines.get(&id) else { return };
        if machine.state != State::Deleting || machine.deleted.is_some() {
            return;
        }
        let lag = self.limits.lag_ms;
        match answer {
            DeleteAnswer::Accepted | DeleteAnswer::Absent => {
                self.change(id, |machine| {
                    machine.deleted = Some(now);
                    machine.failures = 0;
                    machine.not_before = now.plus(lag.max(MINUTE_MS));
                });
                self.want_list(now.plus(lag + 1));
            }
            DeleteAnswer::Renamed => self.become_(id, State::Quarantined, Some(Cause::Renamed)),
            DeleteAnswer::RateLimited { retry_after_ms } => {
                self.change(id, |machine| machine.not_before = now.plus(retry_after_ms.max(SECOND_MS)));
            }
            DeleteAnswer::Busy | DeleteAnswer::Forbidden | DeleteAnswer::Unclear => self.change(id, |machine| {
                machine.failures += 1;
                machine.not_before = now.plus(pause_ms(machine.failures));
            }),
        }
    }

    /// Puts a server on record that is to be deleted.
    pub(super) fn condemn(
        &mut self,
        name: Arc<str>,
        pool: PoolIndex,
        server: ServerId,
        asked: Option<Time>,
        cause: Cause,
    ) -> MachineId {
        let now = self.now;
        let id = self.next_machine;
        self.next_machine = MachineId(id.0 + 1);
        let row = Machine {
            id,
            name,
            pool,
            state: State::Deleting,
            since: now,
            cause: Some(cause),
            planned: now,
            asked,
            server: Some(server),
            known: Some(now),
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
        self.insert_row(row, false);
        self.out.machines.push(id);
        self.out.decisions.push(Decision::Became { machine: id, state: State::Deleting, cause: Some(cause) });
        id
    }

    /// Silent for long. Nothing new is placed there; what runs there may run on, so it is not started elsewhere.
    pub(super) fn lost(&mut self, id: MachineId) {
        if !self.is_frozen() {
            self.become_(id, State::Quarantined, Some(Cause::Lost));
        }
    }

    pub(super) fn heard(&mut self, id: MachineId, answers: bool) {
        let now = self.now;
        let Some(machine) = self.machines.get(&id) else { return };
        let was_silent = machine.silent_since.is_some();
        match (answers, was_silent) {
            (false, false) if machine.state != State::Gone => {
                self.change(id, |machine| machine.silent_since = Some(now));
            }
            (true, true) => {
                self.change(id, |machine| machine.silent_since = None);
                let machine = &self.machines[&id];
                if machine.state == State::Quarantined && machine.cause == Some(Cause::Lost) {
                    self.become_(id, State::Ready, None);
                    self.start_reserved(id);
                }
            }
            _ => {}
        }
        let nodes = self.pools.iter().map(|pool| pool.ready.len() + pool.quarantined as usize).sum::<usize>();
        let is_suspicious = self.silent >= SUSPECT && self.silent * 2 >= nodes;
        let is_over = self.silent * 4 < nodes || self.silent == 0;
        if !self.is_suspecting && is_suspicious {
            self.is_suspecting = true;
            self.out.decisions.push(Decision::Suspect { missing: self.silent, of: nodes });
            self.out.decisions.push(Decision::Frozen(true));
        } else if self.is_suspecting && is_over {
            self.is_suspecting = false;
            self.out.decisions.push(Decision::Frozen(self.is_frozen));
        }
    }

    /// It was there to be looked at for long enough.
    pub(super) fn quarantine_over(&mut self, id: MachineId) {
        let machine = &self.machines[&id];
        let is_for_people = matches!(machine.cause, Some(Cause::Renamed | Cause::Unknown));
        if !is_for_people && machine.instances.is_empty() && machine.server.is_some() && !self.is_frozen() {
            let cause = machine.cause;
            self.become_(id, State::Deleting, cause);
            self.delete_on(id);
        }
    }
}
