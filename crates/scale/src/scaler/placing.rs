//! Where instances run.
//!
//! The fullest ready machine that fits comes first; then one that was to be
//! given back; then the fullest that is on its way, where a place is reserved;
//! then a new one is bought. So the first instance that does not fit buys one
//! machine, and those after it join that one until it is full.

use super::{Scaler, buying::QUARANTINED_MAX, pause_ms};
use crate::{
    event::{Command, Decision, Hold, Why},
    machine::{Cause, Doing, Instance, InstanceId, MachineId, PoolIndex, State},
    pool::Room,
    time::Time,
};

/// How many that wait are tried in one step: a large one at the head does not keep small ones from what is free.
const TRIED_MAX: usize = 16;
/// After so long a start that could not be tried is tried again.
const NOT_TRIED_MS: u64 = 30_000;
/// So many different instances failing on a machine where none ever started make it suspect.
const FAILING: usize = 3;

impl Scaler {
    pub(super) fn start(&mut self, id: InstanceId, pool: PoolIndex, needs: Room, is_movable: bool) {
        if !self.fits(pool, needs) || self.instances.contains_key(&id) {
            return;
        }
        let now = self.now;
        let state = &mut self.pools[usize::from(pool.0)];
        state.arrivals.roll(now, state.boot_ms);
        state.arrivals.add(needs.slots);
        state.waiting.insert(id);
        let row = Instance {
            id,
            pool,
            needs,
            is_movable,
            doing: Doing::Waiting,
            since: now,
            asked: now,
            machine: None,
            to: None,
            failures: 0,
            not_before: now,
        };
        self.instances.insert(id, row);
        self.out.instances.push(id);
        // Those that came before are served before.
        self.serve(usize::from(pool.0));
    }

    /// Serves whoever waits, the first first.
    pub(super) fn serve(&mut self, index: usize) {
        let mut after = InstanceId(0);
        let mut tried = 0;
        // What this much room was not found for, more is not found for either.
        let mut denied: Option<Room> = None;
        while tried < TRIED_MAX {
            let Some(&id) = self.pools[index].waiting.range(after..).next() else { break };
            after = InstanceId(id.0 + 1);
            let needs = self.instances[&id].needs;
            if denied.is_some_and(|denied| needs.fits(denied)) {
                tried += 1;
            } else if self.place(id) {
                tried = 0;
            } else {
                denied = Some(needs);
                tried += 1;
            }
        }
    }

    /// Finds a place for an instance that waits. False where there is none.
    fn place(&mut self, id: InstanceId) -> bool {
        let Some(Instance { pool, needs, .. }) = self.instances.get(&id) else { return false };
        let (pool, needs) = (usize::from(pool.0), *needs);
        let state = &self.pools[pool];
        if state.spec.is_retired {
            self.hold(pool, Hold::Retired);
            return false;
        }
        let ready = state.ready.best(needs);
        if let Some(machine) = ready.or_else(|| self.reprieve(pool, needs)) {
            self.put(id, machine, Doing::Starting);
        } else if let Some(machine) = self.pools[pool].coming.best(needs) {
            self.put(id, machine, Doing::Reserved);
        } else {
            match self.buy(pool, Why::Instance(id)) {
                Ok(machine) => self.put(id, machine, Doing::Reserved),
                Err(hold) => {
                    self.hold(pool, hold);
                    return false;
                }
            }
        }
        true
    }

    /// Notes why nothing is bought for those that wait, and says so when it is another reason than before.
    fn hold(&mut self, pool: usize, hold: Hold) {
        let state = &mut self.pools[pool];
        let is_news = state.hold.is_none_or(|before| std::mem::discriminant(&before) != std::mem::discriminant(&hold));
        state.hold = Some(hold);
        if is_news {
            let (pool, waiting) = (state.spec.name.clone(), state.waiting.len());
            self.out.decisions.push(Decision::Hold { pool, hold, waiting });
        }
    }

    /// Gives an instance its machine.
    fn put(&mut self, id: InstanceId, machine: MachineId, doing: Doing) {
        let now = self.now;
        let instance = self.instances.get_mut(&id).expect("only instances on record are placed");
        instance.machine = Some(machine);
        instance.doing = doing;
        instance.since = now;
        instance.not_before = now;
        let (pool, needs) = (usize::from(instance.pool.0), instance.needs);
        self.pools[pool].waiting.remove(&id);
        if self.pools[pool].waiting.is_empty() {
            self.pools[pool].hold = None;
        }
        self.out.instances.push(id);
        self.occupy(machine, id, needs);
        if doing == Doing::Starting {
            self.out.commands.push(Command::Start { instance: id, machine });
        }
    }

    fn occupy(&mut self, machine: MachineId, id: InstanceId, needs: Room) {
        self.change(machine, |row| {
            row.used += needs;
            row.instances.push(id);
            row.empty_since = None;
        });
    }

    /// Takes an instance off a machine's row.
    fn vacate(&mut self, machine: MachineId, id: InstanceId, needs: Room) {
        if !self.machines.contains_key(&machine) {
            return;
        }
        let now = self.now;
        let is_empty = self.change(machine, |row| {
            if let Some(place) = row.instances.iter().position(|other| *other == id) {
                row.instances.swap_remove(place);
                row.used -= needs;
            }
            let is_empty = row.instances.is_empty();
            if is_empty {
                row.used = Room::default();
                row.empty_since = row.empty_since.or(Some(now));
            }
            is_empty
        });
        let row = &self.machines[&machine];
        match row.state {
            State::Draining if is_empty => self.drain_on(machine),
            // A place on a machine that runs is better than one on a machine that is still to come.
            State::Ready => self.pull_forward(machine),
            State::Planned if is_empty => self.unplan(machine),
            _ => {}
        }
    }

    /// Moves a reservation from the emptiest machine that is coming to one that is ready.
    fn pull_forward(&mut self, ready: MachineId) {
        let pool = usize::from(self.machines[&ready].pool.0);
        if !self.pools[pool].waiting.is_empty() || self.pools[pool].spec.is_retired {
            return;
        }
        let free = self.pools[pool].spec.machine.less(self.machines[&ready].used);
        let found = self.pools[pool].coming.emptiest_first().find_map(|(_, machine)| {
            let instances = &self.machines[&machine].instances;
            instances.iter().copied().min().filter(|id| free.fits(self.instances[id].needs)).map(|id| (machine, id))
        });
        if let Some((coming, id)) = found {
            let needs = self.instances[&id].needs;
            self.put(id, ready, Doing::Starting);
            self.vacate(coming, id, needs);
        }
    }

    pub(super) fn stop(&mut self, id: InstanceId) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        match instance.doing {
            Doing::Waiting | Doing::Reserved => {
                let (pool, needs, machine) = (usize::from(instance.pool.0), instance.needs, instance.machine);
                self.pools[pool].waiting.remove(&id);
                self.instances.remove(&id);
                self.out.instances.push(id);
                if let Some(machine) = machine {
                    self.vacate(machine, id, needs);
                }
                if self.pools[pool].waiting.is_empty() {
                    self.pools[pool].hold = None;
                }
            }
            Doing::Stopping => {}
            Doing::Starting | Doing::Running | Doing::Moving | Doing::Leaving => {
                self.retries.remove(&(instance.not_before, id));
                instance.doing = Doing::Stopping;
                instance.since = now;
                instance.failures = 0;
                let places = instance.machine.into_iter().chain(instance.to);
                self.out.commands.extend(places.map(|machine| Command::Stop { instance: id, machine }));
                self.out.instances.push(id);
            }
        }
    }

    pub(super) fn started(&mut self, id: InstanceId, machine: MachineId, is_running: bool) {
        let now = self.now;
        let is_known = |row: &Instance| row.machine == Some(machine) || row.to == Some(machine);
        if is_running && !self.instances.get(&id).is_some_and(is_known) && self.machines.contains_key(&machine) {
            // It was given up here, and runs all the same: nobody else will stop it.
            self.out.commands.push(Command::Stop { instance: id, machine });
        }
        if !self.is_starting(id, machine) {
            return;
        }
        let Some(instance) = self.instances.get_mut(&id) else { return };
        self.out.instances.push(id);
        if is_running {
            self.pools[usize::from(instance.pool.0)].failing = 0;
            instance.failures = 0;
            instance.since = now;
            if instance.doing == Doing::Starting {
                instance.doing = Doing::Running;
            } else {
                instance.doing = Doing::Leaving;
                let old = instance.machine;
                self.out.commands.extend(old.map(|machine| Command::Stop { instance: id, machine }));
            }
            return;
        }
        if instance.doing == Doing::Moving {
            return self.stay(id, machine);
        }
        instance.failures += 1;
        instance.not_before = now.plus(pause_ms(instance.failures));
        let retry = (instance.not_before, id);
        self.retries.insert(retry);
        self.suspect_machine(machine);
    }

    /// A start that says nothing of the machine: it is tried again after a while.
    pub(super) fn not_tried(&mut self, id: InstanceId, machine: MachineId) {
        if !self.is_starting(id, machine) {
            return;
        }
        self.out.instances.push(id);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.doing == Doing::Moving {
            return self.stay(id, machine);
        }
        instance.not_before = self.now.plus(NOT_TRIED_MS);
        let retry = (instance.not_before, id);
        self.retries.insert(retry);
    }

    fn is_starting(&self, id: InstanceId, machine: MachineId) -> bool {
        self.instances.get(&id).is_some_and(|instance| match instance.doing {
            Doing::Starting => instance.machine == Some(machine),
            Doing::Moving => instance.to == Some(machine),
            _ => false,
        })
    }

    /// One that was to move goes on where it is.
    fn stay(&mut self, id: InstanceId, machine: MachineId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.doing = Doing::Running;
        instance.to = None;
        let needs = instance.needs;
        // It may run there for all that is known.
        self.out.commands.push(Command::Stop { instance: id, machine });
        self.vacate(machine, id, needs);
    }

    /// Puts a machine in quarantine on which several instances fail and none runs: one in each pool, and others go. Where
    /// it is the service that is at fault, the next machine does not help either, so each is waited for longer.
    fn suspect_machine(&mut self, id: MachineId) {
        let row = &self.machines[&id];
        let instances = || row.instances.iter().map(|id| &self.instances[id]);
        let failing = instances().filter(|instance| instance.failures > 0).count();
        let well = instances().filter(|instance| !matches!(instance.doing, Doing::Starting | Doing::Stopping)).count();
        if row.state != State::Ready || failing < FAILING || well > 0 {
            return;
        }
        let now = self.now;
        let state = &mut self.pools[usize::from(self.machines[&id].pool.0)];
        state.failing += 1;
        if state.failing > 1 {
            state.not_before = state.not_before.max(now.plus(pause_ms(state.failing)));
        }
        let is_kept = state.quarantined < QUARANTINED_MAX;
        self.become_(id, if is_kept { State::Quarantined } else { State::Draining }, Some(Cause::Failing));
        let starting: Vec<InstanceId> = self.machines[&id].instances.clone();
        for instance in starting {
            if self.instances[&instance].doing == Doing::Starting {
                self.out.commands.push(Command::Stop { instance, machine: id });
                self.displace(instance);
            }
        }
    }

    /// Takes an instance, which does not run, off its machine and back to those that wait.
    pub(super) fn displace(&mut self, id: InstanceId) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        self.retries.remove(&(instance.not_before, id));
        let (needs, pool) = (instance.needs, usize::from(instance.pool.0));
        let places = [instance.machine.take(), instance.to.take()];
        let is_wanted = instance.doing != Doing::Stopping;
        if is_wanted {
            instance.doing = Doing::Waiting;
            instance.since = now;
            // They say nothing of the next machine.
            instance.failures = 0;
            instance.not_before = Time(0);
            self.pools[pool].waiting.insert(id);
        } else {
            self.instances.remove(&id);
        }
        self.out.instances.push(id);
        for machine in places.into_iter().flatten() {
            self.vacate(machine, id, needs);
        }
    }

    /// Starts, moves or stops an instance again that failed at it.
    pub(super) fn retry(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else { return };
        match (instance.doing, instance.machine, instance.to) {
            (Doing::Starting, Some(machine), _) => self.out.commands.push(Command::Start { instance: id, machine }),
            (Doing::Stopping, machine, to) => {
                let places = machine.into_iter().chain(to);
                self.out.commands.extend(places.map(|machine| Command::Stop { instance: id, machine }));
            }
            (Doing::Leaving, Some(machine), _) => self.out.commands.push(Command::Stop { instance: id, machine }),
            _ => {}
        }
    }

    pub(super) fn stopped(&mut self, id: InstanceId, machine: MachineId, is_stopped: bool) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let is_here = instance.machine == Some(machine) || instance.to == Some(machine);
        if !is_here || !matches!(instance.doing, Doing::Stopping | Doing::Leaving) {
            return;
        }
        self.out.instances.push(id);
        if !is_stopped {
            instance.failures += 1;
            instance.not_before = now.plus(pause_ms(instance.failures));
            let retry = (instance.not_before, id);
            self.retries.insert(retry);
            return;
        }
        let needs = instance.needs;
        if instance.doing == Doing::Leaving {
            if instance.machine != Some(machine) {
                return;
            }
            instance.machine = instance.to.take();
            instance.doing = Doing::Running;
            instance.since = now;
            instance.failures = 0;
        } else {
            if instance.machine == Some(machine) {
                instance.machine = instance.to.take();
            } else {
                instance.to = None;
            }
            if instance.machine.is_none() {
                self.retries.remove(&(instance.not_before, id));
                self.instances.remove(&id);
            }
        }
        self.vacate(machine, id, needs);
    }

    /// Starts what was reserved on a machine that is ready now.
    pub(super) fn start_reserved(&mut self, machine: MachineId) {
        let now = self.now;
        for id in self.machines[&machine].instances.clone() {
            let Some(instance) = self.instances.get_mut(&id) else { continue };
            if instance.doing == Doing::Reserved {
                instance.doing = Doing::Starting;
                instance.since = now;
                self.out.instances.push(id);
                self.out.commands.push(Command::Start { instance: id, machine });
            }
        }
    }

    /// Begins to move an instance that runs to another ready machine. False where none has room.
    pub(super) fn move_away(&mut self, id: InstanceId) -> bool {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(&id) else { return false };
        if instance.doing != Doing::Running || !instance.is_movable {
            return false;
        }
        let needs = instance.needs;
        let Some(to) = self.pools[usize::from(instance.pool.0)].ready.best(needs) else { return false };
        instance.doing = Doing::Moving;
        instance.since = now;
        instance.to = Some(to);
        self.out.instances.push(id);
        self.out.commands.push(Command::Start { instance: id, machine: to });
        self.occupy(to, id, needs);
        true
    }
}
