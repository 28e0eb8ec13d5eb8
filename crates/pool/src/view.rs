//! What the database says, for those who only look.
//!
//! It is read in one transaction, which sees one moment and keeps nobody from writing.

use crate::{
    database::{Asked, DatabaseError, Reader, lock_path, merged},
    runner::Request,
};
use bulkhead_core::FleetName;
use bulkhead_scale::{InstanceId, Limits, MachineId, Names, Pool, Rows, Scaler, ServerId, Time};
use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::Path,
};

/// What a database says at one moment.
#[derive(Debug)]
pub struct View {
    /// What is in the names of its machines.
    pub token: String,
    /// The pools by the number that rows have of them, as they were configured when a loop ran last.
    pub pools: Vec<Pool>,
    /// Machines, instances, spending, and whether a person froze it.
    pub rows: Rows,
    /// What each instance is one of, `APP/SERVICE`.
    pub workloads: BTreeMap<InstanceId, String>,
    /// The id that the next instance gets.
    pub next_instance: InstanceId,
    /// Machines at the provider that are on no record, as the loop saw them last.
    pub orphans: Vec<(ServerId, String)>,
    /// What was asked and is not carried out yet.
    pub pending: Vec<Asked<Request>>,
    /// Whether a loop runs.
    pub is_running: bool,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its number; later ones are higher.
    pub id: i64,
    /// When.
    pub at: Time,
    /// What was decided, and why.
    pub text: String,
}

impl View {
    /// Reads it; nothing where there is no such file.
    ///
    /// # Errors
    /// The file cannot be read, or is of another version.
    pub fn read(path: &Path) -> Result<Option<Self>, DatabaseError> {
        if !path.exists() {
            return Ok(None);
        }
        // Before the rows: a loop that ends in between has written what is read then.
        let is_running = is_running(path)?;
        let reader = match Reader::open(path) {
            Err(error) if error.is_unmade() => return Ok(None),
            reader => reader?,
        };
        let (workloads, next_instance) = reader.workloads()?;
        Ok(Some(Self {
            token: reader.token()?,
            pools: reader.pools()?,
            rows: reader.rows()?,
            workloads: workloads.into_iter().collect(),
            next_instance,
            orphans: reader.orphans()?,
            pending: reader.requests()?,
            is_running,
        }))
    }

    /// A copy of the scaler as a loop would take it up now. What it decides happens nowhere.
    #[must_use]
    pub fn scaler(&self, fleet: FleetName, limits: Limits, wanted: Vec<Pool>, now: Time) -> Scaler {
        let names = Names { fleet, token: self.token.clone() };
        Scaler::restore(names, limits, merged(self.pools.clone(), wanted), self.rows.clone(), now)
    }

    /// The name of a machine as a node, from its row.
    #[must_use]
    pub fn node(&self, machine: MachineId) -> Option<&str> {
        let row = self.rows.machines.iter().find(|row| row.id == machine)?;
        row.name.split('.').next()
    }
}

/// The last lines of the log that came after one, oldest first: at most so many. None where there is no such file.
///
/// # Errors
/// The file cannot be read.
pub fn decisions(path: &Path, after: i64, most: u32) -> Result<Vec<Told>, DatabaseError> {
    if !path.exists() {
        return Ok(vec![]);
    }
    let told = match Reader::open(path) {
        Err(error) if error.is_unmade() => return Ok(vec![]),
        reader => reader?.decisions(after, most)?,
    };
    Ok(told.into_iter().map(|(id, at, text)| Told { id, at, text }).collect())
}

/// Whether some process has the lock, which is tried and given back at once.
fn is_running(path: &Path) -> Result<bool, DatabaseError> {
    let path = lock_path(path);
    let Ok(lock) = File::open(&path) else { return Ok(false) };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(DatabaseError::Lock { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Database, Written, ask, make};
    use bulkhead_scale::{Billing, Event, Micros, Output, PoolIndex, Room};

    fn pool(name: &str) -> Pool {
        Pool::new(name.parse().unwrap(), 2, Micros(1), Billing::Free)
    }

    #[test]
    fn sees_what_was_written_and_whether_a_loop_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/pool.sqlite");
        assert!(View::read(&path).unwrap().is_none());
        assert_eq!(decisions(&path, 0, 10).unwrap(), []);
        // Whoever made it did not get far.
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        File::create(&path).unwrap();
        assert!(View::read(&path).unwrap().is_none());
        make(&path).unwrap();
        make(&path).unwrap();
        assert_eq!(ask(&path, &Request::Freeze).unwrap(), 1);
        let view = View::read(&path).unwrap().unwrap();
        assert!(!view.is_running && view.rows.machines.is_empty());
        assert_eq!(view.pending[0].request, Ok(Request::Freeze));

        let mut database = Database::open(&path).unwrap();
        let pools = database.pools(vec![pool("old")]).unwrap();
        let names = Names { fleet: "acme".parse().unwrap(), token: database.token().unwrap() };
        let mut scaler = Scaler::new(names, Limits::default(), pools, Time(1_000));
        let mut output = Output::default();
        let start =
            Event::Start { instance: InstanceId(0), pool: PoolIndex(0), needs: Room::slots(1), is_movable: false };
        scaler.step(start, Time(1_000), &mut output);
        let written = Written {
            notes: &[],
            outputs: &[output],
            workload: &|_| "notes/web",
            next_instance: InstanceId(1),
            now: Time(1_000),
            requests_done: Some(1),
        };
        database.write(&scaler, &written).unwrap();

        let view = View::read(&path).unwrap().unwrap();
        assert!(view.is_running && view.pending.is_empty());
        assert_eq!((view.rows.machines.len(), view.next_instance), (1, InstanceId(1)));
        assert_eq!(view.workloads[&InstanceId(0)], "notes/web");
        assert_eq!(view.node(MachineId(0)), Some(format!("old-{}-0", view.token).as_str()));
        let told = decisions(&path, 0, 10).unwrap();
        assert!(told[0].text.starts_with("buy machine 0: instance 0 fits nowhere"), "{told:?}");
        assert_eq!(decisions(&path, told[0].id, 10).unwrap(), told[1..]);
        // A pool that is configured no more is retired in the copy; a new one comes after it.
        let copy = view.scaler("acme".parse().unwrap(), Limits::default(), vec![pool("new")], Time(2_000));
        let is_retired = |index| copy.pool(PoolIndex(index)).unwrap().pool.is_retired;
        assert_eq!((is_retired(0), is_retired(1)), (true, false));
        drop(database);
        assert!(!View::read(&path).unwrap().unwrap().is_running);
    }
}
