//! What people ask, as events for a scaler: which instances are new, and which of them go.

use crate::runner::Request;
use bulkhead_core::PoolName;
use bulkhead_scale::{Doing, Event, Instance, InstanceId, Output, PoolIndex, Room, Scaler, Time};
use std::{cmp::Reverse, collections::BTreeMap};

/// The most instances that one request starts: more is a mistake.
pub const COUNT_MAX: u32 = 100_000;

/// A scaler, and what its instances are of. A copy of one shows what requests would come to.
#[derive(Debug)]
pub struct Desk {
    /// The scaler.
    pub scaler: Scaler,
    /// What each instance is of, `APP/SERVICE`.
    pub workloads: BTreeMap<InstanceId, String>,
    /// The number that the next instance gets.
    pub next_instance: InstanceId,
}

/// Says why instances of a workload may not be started in a pool.
pub type MayStart<'a> = dyn Fn(&PoolName, &str) -> Result<(), String> + 'a;

impl Desk {
    /// Tells the scaler of something. Where nothing came of it there is no output.
    pub fn step(&mut self, event: Event, now: Time, outputs: &mut Vec<Output>) {
        let mut output = Output::default();
        self.scaler.step(event, now, &mut output);
        if output != Output::default() {
            outputs.push(output);
        }
    }

    /// Carries a request out. Gives what is to be said of it, where that is no decision.
    pub fn carry(
        &mut self,
        request: Request,
        now: Time,
        may_start: &MayStart<'_>,
        outputs: &mut Vec<Output>,
    ) -> Option<String> {
        match request {
            Request::Freeze => self.step(Event::Freeze, now, outputs),
            Request::Thaw => self.step(Event::Thaw, now, outputs),
            Request::Machine { machine, wish } => self.step(Event::Person { machine, wish }, now, outputs),
            Request::DeleteOrphan { server } => self.step(Event::DeleteOrphan { server }, now, outputs),
            Request::Start { workload, pool, needs, is_movable, count } => {
                let start = Start { workload: &workload, pool: &pool, needs, is_movable, count };
                return self.start(&start, now, may_start, outputs).err();
            }
            Request::Stop { workload, pool, count } => match pool.map(|pool| self.pool(&pool)).transpose() {
                Ok(pool) => self.stop(&workload, pool, count as usize, now, outputs),
                Err(why) => return Some(format!("{workload}: {why}")),
            },
            Request::Scale { workload, pool, needs, is_movable, count } => {
                let place = self.pool(&pool).ok();
                let there = place.map_or(0, |place| self.wanted(&workload, Some(place)).len());
                match u32::try_from(there).ok().and_then(|there| count.checked_sub(there)) {
                    Some(count) => {
                        let start = Start { workload: &workload, pool: &pool, needs, is_movable, count };
                        return self.start(&start, now, may_start, outputs).err();
                    }
                    None => self.stop(&workload, place, there - count as usize, now, outputs),
                }
            }
        }
        None
    }

    fn pool(&self, name: &PoolName) -> Result<PoolIndex, String> {
        let mut known = (0..).map(PoolIndex).map_while(|index| Some((index, self.scaler.pool(index)?.pool)));
        let found = known.find(|(_, pool)| pool.name == *name).map(|(index, _)| index);
        found.ok_or_else(|| format!("there is no pool `{name}`"))
    }

    /// The instances of a workload, in a pool or in all, that nobody stops yet.
    #[must_use]
    pub fn wanted(&self, workload: &str, pool: Option<PoolIndex>) -> Vec<InstanceId> {
        let of_it = self.workloads.iter().filter(|(_, of)| *of == workload).map(|(id, _)| *id);
        let is_wanted = |row: &Instance| row.doing != Doing::Stopping && pool.is_none_or(|pool| row.pool == pool);
        of_it.filter(|id| self.scaler.instance(*id).is_some_and(is_wanted)).collect()
    }

    fn start(
        &mut self,
        start: &Start<'_>,
        now: Time,
        may_start: &MayStart<'_>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), String> {
        let Start { workload, pool, needs, is_movable, count } = *start;
        let refuse = |why: String| format!("{workload}: {count} not started in {pool}: {why}");
        let place = self.pool(pool).map_err(refuse)?;
        if !self.scaler.fits(place, needs) {
            return Err(refuse(format!("no machine has {needs}")));
        }
        if count > COUNT_MAX {
            return Err(refuse(format!("{COUNT_MAX} at a time are the most")));
        }
        if count > 0 {
            may_start(pool, workload).map_err(refuse)?;
        }
        for _ in 0..count {
            let instance = self.next_instance;
            self.next_instance = InstanceId(instance.0 + 1);
            self.workloads.insert(instance, workload.to_owned());
            self.step(Event::Start { instance, pool: place, needs, is_movable }, now, outputs);
        }
        Ok(())
    }

    /// Stops those that cost the least to stop: which wait first, then those on the emptiest machines.
    fn stop(&mut self, workload: &str, pool: Option<PoolIndex>, count: usize, now: Time, outputs: &mut Vec<Output>) {
        let mut instances = self.wanted(workload, pool);
        instances.sort_by_key(|id| {
            let row = self.scaler.instance(*id);
            let machine = row.and_then(|row| row.machine).and_then(|machine| self.scaler.machine(machine));
            let rank = row.map_or(0, |row| match row.doing {
                Doing::Waiting => 0,
                Doing::Reserved => 1,
                Doing::Starting => 2,
                _ => 3,
            });
            (rank, machine.map_or(0, |machine| machine.used.slots), Reverse(*id))
        });
        for instance in instances.into_iter().take(count) {
            self.step(Event::Stop { instance }, now, outputs);
        }
    }
}

/// So many instances more.
#[derive(Clone, Copy)]
struct Start<'a> {
    workload: &'a str,
    pool: &'a PoolName,
    needs: Room,
    is_movable: bool,
    count: u32,
}
