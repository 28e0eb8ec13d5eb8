//! Machines that are there already: a list by hand, leased one at a time.
//!
//! Leases are kept in one JSON file, `{"next": …, "leases": [{"id", "name",
//! "machine", "created_ms"}]}`, which is replaced whole. A lease has a number
//! of its own, never given twice: to a scaler the same machine leased again is
//! another one. One process has the file; within it calls take turns.

use crate::{Answer, Capabilities, Provider, ProviderError, Seen, Status, UserData, Wanted, delete_by_number};
use bulkhead_core::FleetName;
use bulkhead_scale::{Billing, CreateAnswer, DeleteAnswer, ServerId, Time};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// A machine that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedMachine {
    /// What its owner calls it.
    pub name: String,
    /// Where it answers.
    pub address: IpAddr,
}

/// A provider of machines that are there.
#[derive(Debug)]
pub struct Fixed {
    machines: Vec<FixedMachine>,
    suffix: String,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// The number of the next lease.
    next: u64,
    leases: Vec<Lease>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Lease {
    id: ServerId,
    name: Arc<str>,
    /// [`FixedMachine::name`].
    machine: String,
    created_ms: Time,
}

impl Fixed {
    /// Leases these machines; what is leased is read from `path`, which need not exist yet.
    ///
    /// # Errors
    /// Where a machine is listed twice, or the file cannot be read.
    pub fn open(machines: Vec<FixedMachine>, fleet: &FleetName, path: &Path) -> Result<Self, ProviderError> {
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        if let Some(twice) =
            machines.iter().find(|machine| !names.insert(&machine.name) || !addresses.insert(machine.address))
        {
            return Err(ProviderError::Twice(twice.name.clone()));
        }
        let state = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| ProviderError::ParseLeases { path: path.to_owned(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State { next: 1, leases: Vec::new() },
            Err(source) => return Err(ProviderError::ReadLeases { path: path.to_owned(), source }),
        };
        let suffix = format!(".{fleet}.bulkhead");
        Ok(Self { machines, suffix, path: path.to_owned(), state: Mutex::new(state) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Durable first, then true.
    fn change(&self, state: &mut State, changed: State) -> Result<(), ProviderError> {
        replace(&self.path, &changed)
            .map_err(|source| ProviderError::WriteLeases { path: self.path.clone(), source })?;
        *state = changed;
        Ok(())
    }

    fn lease(&self, name: &Arc<str>) -> Result<ServerId, ProviderError> {
        let mut state = self.state();
        if let Some(lease) = state.leases.iter().find(|lease| lease.name == *name) {
            return Ok(lease.id);
        }
        let is_free = |machine: &&FixedMachine| !state.leases.iter().any(|lease| lease.machine == machine.name);
        let free = self.machines.iter().find(is_free).ok_or(ProviderError::AllLeased(self.machines.len()))?;
        let id = ServerId(state.next);
        let mut changed = state.clone();
        changed.next += 1;
        changed.leases.push(Lease { id, name: name.clone(), machine: free.name.clone(), created_ms: now() });
        self.change(&mut state, changed)?;
        Ok(id)
    }

    fn give_back(&self, id: ServerId) -> Result<(), ProviderError> {
        let mut state = self.state();
        let mut changed = state.clone();
        changed.leases.retain(|lease| lease.id != id);
        self.change(&mut state, changed)
    }

    fn seen(&self, lease: &Lease) -> Seen {
        let address = self.machines.iter().find(|machine| machine.name == lease.machine).map(|machine| machine.address);
        Seen {
            id: lease.id,
            name: lease.name.clone(),
            created: lease.created_ms,
            // One that was taken from the list while it was leased is not to be reached any more.
            status: if address.is_some() { Status::Active } else { Status::Other },
            v4: address.and_then(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }),
            v6: address.and_then(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None }),
        }
    }
}

impl Provider for Fixed {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            is_name_unique: true,
            billing: Billing::Free,
            batch: 1,
            per_minute: None,
            per_hour: None,
            user_data_max_bytes: UserData::MAX_BYTES,
        }
    }

    /// Leases a free machine under this name; nothing else of what is wanted counts.
    fn create(&self, wanted: &Wanted) -> Answer<CreateAnswer> {
        match self.lease(&wanted.name) {
            Ok(id) => Answer::plain(CreateAnswer::Made(id)),
            Err(error) => Answer::because(error.of_create(), error),
        }
    }

    fn list(&self) -> Result<Vec<Seen>, ProviderError> {
        let state = self.state();
        Ok(state
            .leases
            .iter()
            .filter(|lease| lease.name.ends_with(&self.suffix))
            .map(|lease| self.seen(lease))
            .collect())
    }

    fn get(&self, id: ServerId) -> Result<Option<Seen>, ProviderError> {
        Ok(self.state().leases.iter().find(|lease| lease.id == id).map(|lease| self.seen(lease)))
    }

    fn delete(&self, id: ServerId, name: &str) -> Answer<DeleteAnswer> {
        delete_by_number(self, id, name, || self.give_back(id))
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Replaces the file: after a crash it is the old one or the new one, whole.
fn replace(path: &Path, state: &State) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(state)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // Elsewhere no folder can be opened as a file.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines() -> Vec<FixedMachine> {
        [("one", "192.0.2.1"), ("two", "2001:db8::2")]
            .map(|(name, address)| FixedMachine { name: name.into(), address: address.parse().unwrap() })
            .to_vec()
    }

    fn wanted(name: &str) -> Wanted {
        crate::tests::wanted(name)
    }

    #[test]
    fn leases() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases.json");
        let fleet: FleetName = "acme".parse().unwrap();
        let fixed = Fixed::open(machines(), &fleet, &path).unwrap();
        let made = |fixed: &Fixed, name: &str| fixed.create(&wanted(name)).answer;
        assert_eq!(fixed.list().unwrap(), []);
        assert_eq!(made(&fixed, "p-t-1.acme.bulkhead"), CreateAnswer::Made(ServerId(1)));
        assert_eq!(made(&fixed, "p-t-2.acme.bulkhead"), CreateAnswer::Made(ServerId(2)));
        assert_eq!(made(&fixed, "p-t-1.acme.bulkhead"), CreateAnswer::Made(ServerId(1)), "a name is a key");
        assert_eq!(made(&fixed, "p-t-3.acme.bulkhead"), CreateAnswer::Quota);
        assert_eq!(fixed.delete(ServerId(1), "another").answer, DeleteAnswer::Renamed);
        assert_eq!(fixed.delete(ServerId(9), "p-t-1.acme.bulkhead").answer, DeleteAnswer::Absent);

        // What is leased outlives the process.
        drop(fixed);
        let fixed = Fixed::open(machines(), &fleet, &path).unwrap();
        let addresses: Vec<_> = fixed.list().unwrap().iter().filter_map(Seen::address).collect();
        assert_eq!(addresses, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::2".parse().unwrap()]);
        assert_eq!(fixed.delete(ServerId(1), "p-t-1.acme.bulkhead").answer, DeleteAnswer::Accepted);
        assert_eq!(fixed.delete(ServerId(1), "p-t-1.acme.bulkhead").answer, DeleteAnswer::Absent);
        assert_eq!(fixed.get(ServerId(1)).unwrap(), None);
        assert_eq!(made(&fixed, "p-t-3.acme.bulkhead"), CreateAnswer::Made(ServerId(3)), "a number is given once");
        assert_eq!(fixed.get(ServerId(3)).unwrap().unwrap().v4, Some("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_opened_or_written() {
        let folder = tempfile::tempdir().unwrap();
        let fleet: FleetName = "acme".parse().unwrap();
        let path = folder.path().join("leases.json");
        let twice = [machines(), machines()].concat();
        assert!(matches!(Fixed::open(twice, &fleet, &path), Err(ProviderError::Twice(name)) if name == "one"));
        fs::write(&path, "{").unwrap();
        assert!(matches!(Fixed::open(machines(), &fleet, &path), Err(ProviderError::ParseLeases { .. })));
        // What was not written down was not leased.
        let fixed = Fixed::open(machines(), &fleet, &folder.path().join("absent/leases.json")).unwrap();
        assert_eq!(fixed.create(&wanted("p-t-1.acme.bulkhead")).answer, CreateAnswer::Refused);
        assert_eq!(fixed.list().unwrap(), []);
    }
}
