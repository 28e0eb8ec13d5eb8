//! Stock machines: what a provider sells, made here. Each is a pristine system that was booted, with nothing of Bulkhead
//! on it; its SSH server has the host key and lets in the keys that its user data names.
//!
//! ```text
//! STATE/machines/next.json         the number of the next one; none is given twice
//! STATE/machines/ID/machine.json   its name, when it was asked for, how far it is
//! STATE/machines/ID/lock           held by whoever makes or removes it, and by the `cp` that copies its tree
//! STATE/machines/ID/…              as of a node
//! ```
//!
//! Calls may come from several threads and processes, and any of them may be
//! killed. A machine that is neither made nor in anyone's hands is a leftover:
//! the next call that looks ends and removes it. The fleet's lock is held to
//! look, to choose a number and an address, and to start a process, never while
//! a tree is copied or removed, leftovers apart.

use super::{
    Local, LocalError, NODES_MAX, failed, lock, machine::Machine, pristine, read_state, remove_tree, write_state,
};
use crate::bootstrap::FirstBoot;
use bulkhead_core::NodeName;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// A stock machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockMachine {
    /// Its number.
    pub id: u64,
    /// Its name, which no other one has at the same time.
    pub name: String,
    /// When it was asked for, in milliseconds since 1970.
    pub created_ms: u64,
    /// Its address, from when it boots.
    pub address: Option<Ipv4Addr>,
    /// Whether it is on. Its SSH server takes a moment longer.
    pub is_running: bool,
}

/// `machine.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct StockState {
    id: u64,
    name: String,
    created_ms: u64,
    /// The last byte of its address.
    host: u8,
    phase: Phase,
}

/// How far a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    /// Its tree is being copied.
    Making,
    /// It was started, at this address.
    Made(Ipv4Addr),
    /// It is being removed.
    Leaving,
}

impl Local {
    /// Makes a stock machine, or finds the one of this name. Returns when it has begun to boot. Its host name is what
    /// its name has before the first dot; `user_data` is what [`crate::bootstrap::OneTimeKey::user_data`] wrote.
    ///
    /// # Errors
    /// It could not be made; nothing of it is left, or will be once somebody looks.
    pub fn create_stock(&self, name: &str, user_data: &str) -> Result<u64, LocalError> {
        let first_boot = FirstBoot::read(user_data).ok_or(LocalError::UserData)?;
        let hostname: NodeName = hostname(name)?;
        self.check_host()?;
        let pristine = pristine::ensure(&self.cache, self.suite, &|_| ())?;
        let (mut state, held) = loop {
            let fleet = lock(&self.directory)?;
            let known = self.survey()?;
            match known.iter().find(|state| state.name == name && state.phase != Phase::Leaving) {
                None => break self.begin(name, &known)?,
                Some(StockState { id, phase: Phase::Made(_), .. }) => return Ok(*id),
                // Whoever makes it will know more.
                Some(StockState { id, .. }) => {
                    drop(fleet);
                    drop(self.hold(*id)?);
                }
            }
        };
        let made = self.make(&mut state, &hostname, &first_boot, &pristine, &held);
        if made.is_err() {
            // The first failure is what the caller must hear; a leftover goes when the next one looks.
            drop(self.discard(state.id));
        }
        made.map(|()| state.id)
    }

    /// All stock machines, by number.
    ///
    /// # Errors
    /// Where the state cannot be read, or a leftover cannot be removed.
    pub fn stock(&self) -> Result<Vec<StockMachine>, LocalError> {
        let _fleet = lock(&self.directory)?;
        let known = self.survey()?;
        known
            .into_iter()
            .filter(|state| state.phase != Phase::Leaving)
            .map(|state| self.describe_stock(state))
            .collect()
    }

    /// One stock machine.
    ///
    /// # Errors
    /// Where its state cannot be read.
    pub fn stock_machine(&self, id: u64) -> Result<Option<StockMachine>, LocalError> {
        let state = self.stock_state(id)?.filter(|state| state.phase != Phase::Leaving);
        state.map(|state| self.describe_stock(state)).transpose()
    }

    /// Ends a stock machine and removes all that it had. One that is not there is no error.
    ///
    /// # Errors
    /// What could not be ended or removed; it is a leftover then.
    pub fn delete_stock(&self, id: u64) -> Result<(), LocalError> {
        let Some(_held) = self.hold(id)? else { return Ok(()) };
        if let Some(state) = self.stock_state(id)? {
            let leaving = StockState { phase: Phase::Leaving, ..state };
            write_state(&self.stock_directory(id).join("machine.json"), &leaving)?;
        }
        self.discard(id)?;
        let _fleet = lock(&self.directory)?;
        self.drop_network_when_idle()
    }

    /// Removes every stock machine; gives the fleet's lock, taken while there was none.
    pub(super) fn without_stock(&self) -> Result<File, LocalError> {
        loop {
            for id in self.stock_ids()? {
                self.delete_stock(id)?;
            }
            let fleet = lock(&self.directory)?;
            // One that was left half removed has nothing to be held by.
            if let (_, Some(error)) = self.sweep()? {
                return Err(error);
            }
            if self.stock_ids()?.is_empty() {
                return Ok(fleet);
            }
        }
    }

    /// Whether a process of any stock machine is there.
    pub(super) fn is_stock_running(&self) -> Result<bool, LocalError> {
        for id in self.stock_ids()? {
            if self.stock_process(id, String::new()).find()?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The last bytes of the addresses that stock machines have.
    pub(super) fn stock_hosts(&self) -> Result<BTreeSet<u8>, LocalError> {
        let states = self.stock_ids()?.into_iter().map(|id| self.stock_state(id));
        Ok(states.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().map(|state| state.host).collect())
    }

    /// Every machine that is made or in somebody's hands. Leftovers are removed; where one cannot be, it stays one, and
    /// keeps nobody from the others. Under the fleet's lock: whoever begins one has it.
    fn survey(&self) -> Result<Vec<StockState>, LocalError> {
        let (known, left) = self.sweep()?;
        drop(left);
        Ok(known)
    }

    /// The same, with why a leftover could not be removed.
    fn sweep(&self) -> Result<(Vec<StockState>, Option<LocalError>), LocalError> {
        let mut known = Vec::new();
        let (mut was_swept, mut left) = (false, None);
        for id in self.stock_ids()? {
            let state = self.stock_state(id)?;
            if state.as_ref().is_some_and(|state| matches!(state.phase, Phase::Made(_))) || self.is_held(id)? {
                known.extend(state);
                continue;
            }
            match self.discard(id) {
                Ok(()) => was_swept = true,
                Err(error) => left = Some(error),
            }
        }
        if was_swept {
            self.drop_network_when_idle()?;
        }
        Ok((known, left))
    }

    /// Gives a machine a number and an address, and puts it on record as one that the caller makes.
    fn begin(&self, name: &str, known: &[StockState]) -> Result<(StockState, File), LocalError> {
        let counter = self.all_stock().join("next.json");
        fs::create_dir_all(self.all_stock()).map_err(failed("make the directory", &self.all_stock()))?;
        let id = read_state::<u64>(&counter)?.unwrap_or(1);
        let taken: BTreeSet<u8> =
            self.states()?.iter().map(|state| state.host).chain(known.iter().map(|state| state.host)).collect();
        // Another address than the last one's: what this machine remembers of a neighbour that is gone costs seconds.
        let host = (0..NODES_MAX as u64)
            .filter_map(|step| u8::try_from(2 + (id + step) % NODES_MAX as u64).ok())
            .find(|host| !taken.contains(host))
            .ok_or(LocalError::NoAddress { what: "the network has 253 machines" })?;
        write_state(&counter, &(id + 1))?;
        let directory = self.stock_directory(id);
        fs::create_dir(&directory).map_err(failed("make the directory", &directory))?;
        let held = lock(&directory)?;
        let state = StockState { id, name: name.to_owned(), created_ms: now_ms(), host, phase: Phase::Making };
        write_state(&directory.join("machine.json"), &state)?;
        Ok((state, held))
    }

    fn make(
        &self,
        state: &mut StockState,
        hostname: &NodeName,
        first_boot: &FirstBoot,
        pristine: &Path,
        held: &File,
    ) -> Result<(), LocalError> {
        let machine = self.stock_process(state.id, hostname.to_string());
        let root = machine.directory.join("root");
        pristine::copy(pristine, &root, hostname.as_str(), Some(held))?;
        lay_out(&root, first_boot)?;
        let _fleet = lock(&self.directory)?;
        let subnet = self.network()?;
        let address = subnet.host(state.host);
        pristine::configure_network(&root, address, subnet.gateway())?;
        machine.start()?;
        state.phase = Phase::Made(address);
        write_state(&machine.directory.join("machine.json"), state)
    }

    /// Ends what runs of it and removes its directory. By whoever holds it, or under the fleet's lock.
    fn discard(&self, id: u64) -> Result<(), LocalError> {
        self.stock_process(id, String::new()).kill()?;
        remove_tree(&self.stock_directory(id))
    }

    /// Takes a machine into one's hands; waits for those of others. `None` where it is not there any more.
    fn hold(&self, id: u64) -> Result<Option<File>, LocalError> {
        let path = self.stock_directory(id).join("lock");
        let Some(file) = open_lock(&path)? else { return Ok(None) };
        file.lock().map_err(failed("lock", &path))?;
        // Its number is not given again, so what lies at this path now is what was locked.
        Ok(path.exists().then_some(file))
    }

    fn is_held(&self, id: u64) -> Result<bool, LocalError> {
        let path = self.stock_directory(id).join("lock");
        let Some(file) = open_lock(&path)? else { return Ok(false) };
        match file.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    fn describe_stock(&self, state: StockState) -> Result<StockMachine, LocalError> {
        let StockState { id, name, created_ms, phase, .. } = state;
        let address = if let Phase::Made(address) = phase { Some(address) } else { None };
        let is_running = address.is_some() && self.stock_process(id, String::new()).find()?.is_some();
        Ok(StockMachine { id, name, created_ms, address, is_running })
    }

    fn all_stock(&self) -> PathBuf {
        self.directory.join("machines")
    }

    fn stock_directory(&self, id: u64) -> PathBuf {
        self.all_stock().join(id.to_string())
    }

    fn stock_state(&self, id: u64) -> Result<Option<StockState>, LocalError> {
        read_state(&self.stock_directory(id).join("machine.json"))
    }

    /// Its process. A node's name begins with a letter, so none is called the same.
    fn stock_process(&self, id: u64, hostname: String) -> Machine {
        Machine {
            name: format!("bulkhead-{}-{id}", self.state.tag),
            hostname,
            directory: self.stock_directory(id),
            bridge: self.bridge(),
        }
    }

    /// All that have a directory.
    fn stock_ids(&self) -> Result<BTreeSet<u64>, LocalError> {
        let path = self.all_stock();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(failed("list", &path)(error)),
        };
        let mut ids = BTreeSet::new();
        for entry in entries {
            let name = entry.map_err(failed("list", &path))?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(ids)
    }
}

fn hostname(name: &str) -> Result<NodeName, LocalError> {
    let label = name.split('.').next().unwrap_or_default();
    label.parse().map_err(|_| LocalError::MachineName { name: name.to_owned() })
}

fn open_lock(path: &Path) -> Result<Option<File>, LocalError> {
    match File::options().write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("open", path)(error)),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Does cloud-init's part.
fn lay_out(root: &Path, first_boot: &FirstBoot) -> Result<(), LocalError> {
    let write = |path: &str, contents: &str, mode: u32| {
        let path = root.join(path);
        fs::write(&path, contents).map_err(failed("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", &path))
    };
    write("etc/ssh/ssh_host_ed25519_key", &first_boot.host_key, 0o600)?;
    write("etc/ssh/ssh_host_ed25519_key.pub", &format!("{}\n", first_boot.public_host_key), 0o644)?;
    let folder = root.join("root/.ssh");
    fs::create_dir_all(&folder).map_err(failed("make the directory", &folder))?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(failed("set the mode of", &folder))?;
    let keys: String = first_boot.authorized_keys.iter().map(|key| format!("{key}\n")).collect();
    write("root/.ssh/authorized_keys", &keys, 0o600)
}
