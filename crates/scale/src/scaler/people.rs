//! What people decide: brakes, single machines, orphans.

use super::Scaler;
use crate::{
    event::{Decision, Wish},
    machine::{Cause, MachineId, PoolIndex, ServerId, State},
    time::HOUR_MS,
};

impl Scaler {
    pub(super) fn freeze(&mut self) {
        if !self.is_frozen {
            self.is_frozen = true;
            self.out.decisions.push(Decision::Frozen(true));
        }
    }

    /// A person has looked: lists that lack many machines are believed for an hour.
    pub(super) fn thaw(&mut self) {
        self.believed_until = self.now.plus(HOUR_MS);
        if self.is_frozen() {
            self.is_frozen = false;
            self.is_suspecting = false;
            self.out.decisions.push(Decision::Frozen(false));
        }
    }

    pub(super) fn wished(&mut self, id: MachineId, wish: Wish) {
        let Some(machine) = self.machines.get(&id) else { return };
        let person = Some(Cause::Person);
        match (wish, machine.state) {
            (Wish::Cordon, State::Ready | State::Draining) => self.become_(id, State::Cordoned, person),
            (Wish::Use, State::Cordoned | State::Draining) => self.become_(id, State::Ready, None),
            (Wish::Use, State::Quarantined) if machine.is_node() => {
                self.become_(id, State::Ready, None);
                self.start_reserved(id);
            }
            (Wish::Drain, State::Ready | State::Cordoned) => {
                self.become_(id, State::Draining, person);
                self.drain_on(id);
            }
            (Wish::Discard, State::Quarantined) => {
                for instance in machine.instances.clone() {
                    self.displace(instance);
                }
                self.become_(id, State::Deleting, person);
                self.delete_on(id);
            }
            _ => {}
        }
    }

    /// Only what the last list had, and only by the name that it had there.
    pub(super) fn delete_orphan(&mut self, server: ServerId) {
        if let Some(name) = self.lists.orphans.remove(&server) {
            self.condemn(name, PoolIndex(0), server, None, Cause::Orphan);
        }
    }
}
