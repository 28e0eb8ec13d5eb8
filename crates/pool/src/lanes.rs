//! What is done on nodes, in order: a few things at a time on one machine, and one thing at a time on one instance.
//!
//! What waits for its turn waits here and not on a thread, so a machine that hangs holds up a few threads and no more.

use bulkhead_scale::{InstanceId, MachineId};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
};

/// How many things are done on one machine at a time. sshd lets five who have not logged in yet come from one address,
/// and somebody may be looking at the machine meanwhile.
const AT_ONCE: usize = 4;

/// A unit of work for a worker.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// One machine's work.
#[derive(Default)]
struct Lane {
    /// Instances that something is being done about.
    busy: BTreeSet<InstanceId>,
    /// Oldest first.
    waiting: VecDeque<(InstanceId, Work)>,
}

impl Lane {
    /// The oldest that may begin.
    fn next(&mut self) -> Option<(InstanceId, Work)> {
        if self.busy.len() >= AT_ONCE {
            return None;
        }
        // What is asked of an instance later must not overtake what was asked before.
        let mut passed = self.busy.clone();
        let place = self.waiting.iter().position(|(instance, _)| passed.insert(*instance))?;
        let (instance, work) = self.waiting.remove(place)?;
        self.busy.insert(instance);
        Some((instance, work))
    }
}

/// All machines' work. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lanes {
    lanes: Arc<Mutex<BTreeMap<MachineId, Lane>>>,
    workers: Sender<Work>,
}

impl Lanes {
    /// Has these workers do it.
    pub(crate) fn new(workers: Sender<Work>) -> Self {
        Self { lanes: Arc::default(), workers }
    }

    /// Has something done about an instance on a machine, in its turn.
    pub(crate) fn add(&self, machine: MachineId, instance: InstanceId, work: Work) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry(machine).or_default();
        lane.waiting.push_back((instance, work));
        self.begin(machine, lane);
    }

    fn begin(&self, machine: MachineId, lane: &mut Lane) {
        while let Some((instance, work)) = lane.next() {
            let this = self.clone();
            let turn = move || {
                // Given up also where the work panics.
                let _turn = Turn { lanes: this, machine, instance };
                work();
            };
            self.workers.send(Box::new(turn)).expect("workers live as long as the loop");
        }
    }

    fn end(&self, machine: MachineId, instance: InstanceId) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lane) = lanes.get_mut(&machine) else { return };
        lane.busy.remove(&instance);
        self.begin(machine, lane);
        if lane.busy.is_empty() && lane.waiting.is_empty() {
            lanes.remove(&machine);
        }
    }
}

struct Turn {
    lanes: Lanes,
    machine: MachineId,
    instance: InstanceId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.lanes.end(self.machine, self.instance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn in_order_and_a_few_at_a_time() {
        let (workers, work) = mpsc::channel::<Work>();
        let lanes = Lanes::new(workers);
        let done = Arc::new(Mutex::new(Vec::new()));
        let add = |machine: u64, instance: u64, what: &'static str| {
            let done = Arc::clone(&done);
            let work = Box::new(move || done.lock().unwrap().push((instance, what)));
            lanes.add(MachineId(machine), InstanceId(instance), work);
        };
        add(1, 1, "start");
        add(1, 1, "stop");
        for instance in 2..=5 {
            add(1, instance, "start");
        }
        add(2, 9, "start");
        // Four of the first machine, none of them the second of one instance; and the other machine's.
        let begun: Vec<Work> = work.try_iter().collect();
        assert_eq!(begun.len(), 5);
        for work in begun {
            work();
        }
        assert_eq!(*done.lock().unwrap(), [(1, "start"), (2, "start"), (3, "start"), (4, "start"), (9, "start")]);
        let then: Vec<Work> = work.try_iter().collect();
        then.into_iter().for_each(|work| work());
        assert_eq!(done.lock().unwrap()[5..], [(1, "stop"), (5, "start")]);
        assert!(lanes.lanes.lock().unwrap().is_empty());
    }
}
