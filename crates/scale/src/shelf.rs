//! Machines by what is free on them: the fullest that still fits is found in logarithmic time.
//!
//! Best fit on the fullest machine keeps the others emptying, so that whole
//! machines fall free. Slots decide first; where memory or processors are
//! short too, a search goes on from one count of slots to the next, so it
//! takes no more steps than a machine has slots.

use crate::{machine::MachineId, pool::Room};
use std::collections::BTreeSet;

/// Machines of one pool that may be placed on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf {
    by_free: BTreeSet<(Room, MachineId)>,
    free_slots: u64,
}

impl Shelf {
    pub(crate) fn insert(&mut self, free: Room, machine: MachineId) {
        self.by_free.insert((free, machine));
        self.free_slots += u64::from(free.slots);
    }

    pub(crate) fn remove(&mut self, free: Room, machine: MachineId) {
        if self.by_free.remove(&(free, machine)) {
            self.free_slots -= u64::from(free.slots);
        }
    }

    /// The fullest that `needs` fits on; the oldest of several alike.
    pub(crate) fn best(&self, needs: Room) -> Option<MachineId> {
        let mut from = needs;
        loop {
            let &(free, machine) = self.by_free.range((from, MachineId(0))..).next()?;
            if free.fits(needs) {
                return Some(machine);
            }
            // Among as many free slots, memory is in order: on to where there is enough, or to the next count.
            from = if free.memory_mib < needs.memory_mib {
                Room { slots: free.slots, ..needs }
            } else if free.cpu_milli < needs.cpu_milli {
                Room { slots: free.slots, memory_mib: free.memory_mib, cpu_milli: needs.cpu_milli }
            } else {
                Room { slots: free.slots + 1, memory_mib: needs.memory_mib, cpu_milli: needs.cpu_milli }
            };
            if from <= free {
                from = Room { slots: free.slots, memory_mib: free.memory_mib + 1, cpu_milli: needs.cpu_milli };
            }
        }
    }

    /// From the emptiest to the fullest.
    pub(crate) fn emptiest_first(&self) -> impl Iterator<Item = (Room, MachineId)> + '_ {
        self.by_free.iter().rev().copied()
    }

    pub(crate) fn free_slots(&self) -> u64 {
        self.free_slots
    }

    pub(crate) fn len(&self) -> usize {
        self.by_free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn room() -> impl Strategy<Value = Room> {
        (0u32..6, 0u32..6, 0u32..6).prop_map(|(slots, memory_mib, cpu_milli)| Room { slots, memory_mib, cpu_milli })
    }

    proptest! {
        /// The search finds what looking at every machine finds.
        #[test]
        fn finds_the_fullest(rooms in prop::collection::vec(room(), 0..40), needs in room()) {
            let mut shelf = Shelf::default();
            for (id, room) in rooms.iter().enumerate() {
                shelf.insert(*room, MachineId(id as u64));
            }
            let found = shelf.best(needs);
            let fitting = rooms.iter().enumerate().filter(|(_, room)| room.fits(needs));
            let best = fitting.min_by_key(|(id, room)| (**room, *id)).map(|(id, _)| MachineId(id as u64));
            prop_assert_eq!(found, best);
            prop_assert_eq!(shelf.free_slots(), rooms.iter().map(|room| u64::from(room.slots)).sum::<u64>());
        }
    }
}
