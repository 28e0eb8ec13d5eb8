//! What a scaler knows, in one SQLite file.
//!
//! ```text
//! meta       token, epoch, next machine, next instance, frozen, orphans
//! pools      pools by the number that rows have of them, never given to another, as they were configured last
//! machines   one row each, as JSON; those that are gone for a week
//! instances  one row each, as JSON, with the workload that it is one of
//! ledgers    what each pool has spent this month
//! decisions  the log that people read, oldest first
//! requests   what people ask, put there by other processes and taken by the one that runs
//! ```
//!
//! Invariants:
//! - One process writes: it holds a lock on `FILE.lock` while it lives, and every transaction is fenced by the
//!   number under which it opened the file, should a lock be worth less than it seems (network file systems).
//! - A step's rows are in one transaction, which is on disk before any of the step's commands begins.
//! - Only `requests` is written by others.

use bulkhead_scale::{
    Instance, InstanceId, Ledger, Machine, MachineId, Output, Pool, PoolIndex, Rows, Scaler, ServerId, Time,
};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

/// How many decisions are kept.
const DECISIONS_MAX: i64 = 100_000;
/// How long another process's transaction is waited for: only `requests` is written by others, in an instant.
const BUSY: Duration = Duration::from_secs(10);
/// How often the lock is tried, and the pause between two tries.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Version of the tables.
const FORMAT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE pools (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL) STRICT;
    CREATE TABLE machines (id INTEGER PRIMARY KEY, row TEXT NOT NULL) STRICT;
    CREATE TABLE instances (id INTEGER PRIMARY KEY, workload TEXT NOT NULL, row TEXT NOT NULL) STRICT;
    CREATE TABLE ledgers (pool INTEGER PRIMARY KEY, row TEXT NOT NULL) STRICT;
    CREATE TABLE decisions (id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, text TEXT NOT NULL) STRICT;
    CREATE TABLE requests (id INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL) STRICT;
";

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It cannot be opened, read or written.
    #[error("{doing} {path}")]
    Sqlite {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// The lock file cannot be made.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("another process scales with {path}; there is one at a time")]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// Another process has taken over.
    #[error("another process has taken {path} over; this one must end")]
    Fenced {
        /// The file.
        path: PathBuf,
    },
    /// A row is not what it was.
    #[error("{path}: {what} cannot be read: {message}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// It was made by another version.
    #[error("{path} has format {found}; this program knows {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
}

impl DatabaseError {
    /// Whether the file has no tables yet: it is being made, or whoever made it did not get so far.
    pub(crate) fn is_unmade(&self) -> bool {
        matches!(self, Self::Format { found: 0, .. })
    }
}

/// The file, open to be read.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    connection: Connection,
}

/// The database, open for the one process that writes it.
#[derive(Debug)]
pub struct Database {
    reader: Reader,
    epoch: i64,
    /// Held as long as this lives.
    _lock: File,
}

/// The file that whoever writes has a lock on.
pub(crate) fn lock_path(path: &Path) -> PathBuf {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    lock_path.into()
}

/// The pools that rows count, by what is configured now: those that are not are retired.
pub(crate) fn merged(known: Vec<Pool>, wanted: Vec<Pool>) -> Vec<Pool> {
    let mut pools: Vec<Pool> = known.into_iter().map(|pool| Pool { is_retired: true, ..pool }).collect();
    for pool in wanted {
        match pools.iter_mut().find(|known| known.name == pool.name) {
            Some(known) => *known = pool,
            None => pools.push(pool),
        }
    }
    pools
}

fn connect(path: &Path) -> Result<Connection, DatabaseError> {
    let wrong = |source| DatabaseError::Sqlite { doing: "cannot open", path: path.into(), source };
    let connection = Connection::open(path).map_err(wrong)?;
    connection.busy_timeout(BUSY).map_err(wrong)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(wrong)?;
    // What is committed survives a power cut, not only a crash.
    connection.pragma_update(None, "synchronous", "FULL").map_err(wrong)?;
    Ok(connection)
}

impl Database {
    /// Opens the file, making it where there is none, and keeps every other process from writing.
    ///
    /// # Errors
    /// Another process has it, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        let lock_path = lock_path(path);
        let locking = |source| DatabaseError::Lock { path: lock_path.clone(), source };
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(locking)?;
        // Whoever looks whether a loop runs has the lock for an instant.
        let mut tries = 1;
        while let Err(error) = lock.try_lock() {
            match error {
                TryLockError::WouldBlock if tries < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
                TryLockError::WouldBlock => return Err(DatabaseError::Taken { path: path.into() }),
                TryLockError::Error(source) => return Err(locking(source)),
            }
            tries += 1;
        }
        let mut connection = connect(path)?;
        let epoch = begin(&mut connection, path)?;
        Ok(Self { reader: Reader { path: path.into(), connection }, epoch, _lock: lock })
    }

    /// A word of letters and digits that was drawn when the file was made: it is in the names of all its machines.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn token(&self) -> Result<String, DatabaseError> {
        self.reader.token()
    }

    /// The pools in the order that rows count them: those of the configuration, and those that are in it no more.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn pools(&mut self, wanted: Vec<Pool>) -> Result<Vec<Pool>, DatabaseError> {
        let pools = merged(self.reader.pools()?, wanted);
        let wrong = self.reader.wrong("cannot write the pools of");
        let transaction = self.reader.connection.transaction().map_err(&wrong)?;
        for (number, pool) in pools.iter().enumerate() {
            let insert = "INSERT OR REPLACE INTO pools (number, name, spec) VALUES (?1, ?2, ?3)";
            transaction
                .execute(insert, params![number, pool.name.as_str(), erased::Row::json(pool)])
                .map_err(&wrong)?;
        }
        transaction.commit().map_err(&wrong)?;
        Ok(pools)
    }

    /// Everything, for [`Scaler::restore`].
    ///
    /// # Errors
    /// A row cannot be read.
    pub fn rows(&self) -> Result<Rows, DatabaseError> {
        self.reader.rows()
    }

    /// The workload of every instance, and the id that the next one gets.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn workloads(&self) -> Result<(Vec<(InstanceId, String)>, InstanceId), DatabaseError> {
        self.reader.workloads()
    }

    /// Writes what steps changed, in one transaction, and takes the requests out that they were about.
    ///
    /// # Errors
    /// Nothing was written; where another process took over, this one must end.
    pub fn write(&mut self, scaler: &Scaler, written: &Written<'_>) -> Result<(), DatabaseError> {
        let path = self.reader.path.clone();
        let wrong = |source| DatabaseError::Sqlite { doing: "cannot write", path: path.clone(), source };
        let epoch = self.epoch;
        let transaction =
            self.reader.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&wrong)?;
        let found: i64 = transaction
            .query_row("SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'epoch'", [], |row| row.get(0))
            .map_err(&wrong)?;
        if found != epoch {
            return Err(DatabaseError::Fenced { path });
        }
        let json = |row: &dyn erased::Row| row.json();
        let put = |table: &str, id: u64, workload: Option<&str>, text: Option<String>| {
            let id = i64::try_from(id).unwrap_or(i64::MAX);
            match (text, workload) {
                (None, _) => transaction.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?.execute([id]),
                (Some(text), None) => transaction
                    .prepare_cached(&format!("INSERT OR REPLACE INTO {table} (id, row) VALUES (?1, ?2)"))?
                    .execute(params![id, text]),
                (Some(text), Some(workload)) => transaction
                    .prepare_cached(&format!("INSERT OR REPLACE INTO {table} (id, row, workload) VALUES (?1, ?2, ?3)"))?
                    .execute(params![id, text, workload]),
            }
            .map(drop)
        };
        for output in written.outputs {
            for id in &output.machines {
                let text = scaler.machine(*id).map(|row| json(row));
                put("machines", id.0, None, text).map_err(&wrong)?;
            }
            for id in &output.instances {
                let text = scaler.instance(*id).map(|row| json(row));
                put("instances", id.0, Some((written.workload)(*id)), text).map_err(&wrong)?;
            }
        }
        let set = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)";
        let mut meta = transaction.prepare_cached(set).map_err(&wrong)?;
        meta.execute(params!["next-machine", scaler.next_machine().0.to_string()]).map_err(&wrong)?;
        meta.execute(params!["next-instance", written.next_instance.0.to_string()]).map_err(&wrong)?;
        let orphans: Vec<(ServerId, &str)> = scaler.orphans().collect();
        meta.execute(params!["orphans", json(&orphans)]).map_err(&wrong)?;
        drop(meta);
        if scaler.is_frozen_by_person() {
            transaction.execute(set, params!["frozen", "1"]).map_err(&wrong)?;
        } else {
            transaction.execute("DELETE FROM meta WHERE key = 'frozen'", []).map_err(&wrong)?;
        }
        for pool in 0.. {
            let Some(view) = scaler.pool(PoolIndex(pool)) else { break };
            let set = "INSERT OR REPLACE INTO ledgers (pool, row) VALUES (?1, ?2)";
            transaction.execute(set, params![pool, json(&view.ledger)]).map_err(&wrong)?;
        }
        let at = i64::try_from(written.now.0).unwrap_or(i64::MAX);
        let decisions = written.outputs.iter().flat_map(|output| &output.decisions).map(ToString::to_string);
        for text in written.notes.iter().cloned().chain(decisions) {
            let insert = "INSERT INTO decisions (at, text) VALUES (?1, ?2)";
            transaction
                .prepare_cached(insert)
                .and_then(|mut insert| insert.execute(params![at, text]))
                .map_err(&wrong)?;
        }
        let old = "DELETE FROM decisions WHERE id <= (SELECT COALESCE(MAX(id), 0) FROM decisions) - ?1";
        transaction.execute(old, [DECISIONS_MAX]).map_err(&wrong)?;
        if let Some(done) = written.requests_done {
            transaction.execute("DELETE FROM requests WHERE id <= ?1", [done]).map_err(&wrong)?;
        }
        transaction.commit().map_err(&wrong)
    }

    /// What people asked since, oldest first, with numbers to take them out by.
    ///
    /// # Errors
    /// The file cannot be read. A request that cannot be understood is an error of its own, beside its number.
    pub fn requests<T: DeserializeOwned>(&self) -> Result<Vec<Asked<T>>, DatabaseError> {
        self.reader.requests()
    }
}

impl Reader {
    /// Opens a file that is there, in one transaction that sees nothing of what is written meanwhile.
    pub(crate) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let wrong = |source| DatabaseError::Sqlite { doing: "cannot open", path: path.into(), source };
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(path, flags).map_err(wrong)?;
        connection.busy_timeout(BUSY).map_err(wrong)?;
        connection.execute_batch("BEGIN").map_err(wrong)?;
        let format: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(wrong)?;
        if format != FORMAT {
            return Err(DatabaseError::Format { path: path.into(), found: format });
        }
        Ok(Self { path: path.into(), connection })
    }

    fn wrong(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> DatabaseError + use<> {
        let path = self.path.clone();
        move |source| DatabaseError::Sqlite { doing, path: path.clone(), source }
    }

    pub(crate) fn token(&self) -> Result<String, DatabaseError> {
        let query = "SELECT value FROM meta WHERE key = 'token'";
        self.connection.query_row(query, [], |row| row.get(0)).map_err(self.wrong("cannot read"))
    }

    pub(crate) fn pools(&self) -> Result<Vec<Pool>, DatabaseError> {
        let known: Vec<(i64, Pool)> = self.read_all("SELECT number, spec FROM pools ORDER BY number", "pool")?;
        Ok(known.into_iter().map(|(_, pool)| pool).collect())
    }

    /// Machines at the provider that are on no record, as of the last write.
    pub(crate) fn orphans(&self) -> Result<Vec<(ServerId, String)>, DatabaseError> {
        let Some(text) = self.meta("orphans")? else { return Ok(vec![]) };
        serde_json::from_str(&text).map_err(|error| self.row("the list of orphans".into(), error))
    }

    /// The last decisions after one, oldest first: number, moment, text.
    pub(crate) fn decisions(&self, after: i64, most: u32) -> Result<Vec<(i64, Time, String)>, DatabaseError> {
        let wrong = self.wrong("cannot read the decisions in");
        let query = "SELECT id, at, text FROM decisions WHERE id > ?1 ORDER BY id DESC LIMIT ?2";
        let mut query = self.connection.prepare(query).map_err(&wrong)?;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, Time(row.get::<_, i64>(1)?.unsigned_abs()), row.get(2)?));
        let rows = query.query_map(params![after, most], row).map_err(&wrong)?;
        let mut decisions = rows.collect::<Result<Vec<_>, _>>().map_err(&wrong)?;
        decisions.reverse();
        Ok(decisions)
    }

    fn row(&self, what: String, error: impl std::fmt::Display) -> DatabaseError {
        DatabaseError::Row { path: self.path.clone(), what, message: error.to_string() }
    }

    fn read_all<T: DeserializeOwned>(&self, query: &str, what: &str) -> Result<Vec<(i64, T)>, DatabaseError> {
        let wrong = self.wrong("cannot read");
        let mut statement = self.connection.prepare(query).map_err(&wrong)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).map_err(&wrong)?;
        rows.map(|row| {
            let (id, text) = row.map_err(&wrong)?;
            let parsed = serde_json::from_str(&text).map_err(|error| self.row(format!("{what} {id}"), error))?;
            Ok((id, parsed))
        })
        .collect()
    }

    fn meta(&self, key: &str) -> Result<Option<String>, DatabaseError> {
        let query = "SELECT value FROM meta WHERE key = ?1";
        self.connection.query_row(query, [key], |row| row.get(0)).optional().map_err(self.wrong("cannot read"))
    }

    pub(crate) fn rows(&self) -> Result<Rows, DatabaseError> {
        let machines: Vec<(i64, Machine)> = self.read_all("SELECT id, row FROM machines ORDER BY id", "machine")?;
        let instances: Vec<(i64, Instance)> = self.read_all("SELECT id, row FROM instances ORDER BY id", "instance")?;
        let ledgers: Vec<(i64, Ledger)> =
            self.read_all("SELECT pool, row FROM ledgers ORDER BY pool", "the ledger of pool")?;
        let next = self.meta("next-machine")?.map_or(Ok(0), |text| text.parse());
        let next = next.map_err(|error| self.row("the next machine".into(), error))?;
        Ok(Rows {
            machines: machines.into_iter().map(|(_, row)| row).collect(),
            instances: instances.into_iter().map(|(_, row)| row).collect(),
            ledgers: ledgers
                .into_iter()
                .filter_map(|(pool, ledger)| Some((PoolIndex(u16::try_from(pool).ok()?), ledger)))
                .collect(),
            next_machine: MachineId(next),
            is_frozen: self.meta("frozen")?.is_some(),
        })
    }

    pub(crate) fn workloads(&self) -> Result<(Vec<(InstanceId, String)>, InstanceId), DatabaseError> {
        let wrong = self.wrong("cannot read");
        let mut query = self.connection.prepare("SELECT id, workload FROM instances ORDER BY id").map_err(&wrong)?;
        let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?))).map_err(&wrong)?;
        let mut workloads = Vec::new();
        for row in rows {
            let (id, workload) = row.map_err(&wrong)?;
            workloads.push((InstanceId(id.unsigned_abs()), workload));
        }
        let next = self.meta("next-instance")?.map_or(Ok(0), |text| text.parse());
        let next = next.map_err(|error| self.row("the next instance".into(), error))?;
        Ok((workloads, InstanceId(next)))
    }

    /// See [`Database::requests`].
    pub(crate) fn requests<T: DeserializeOwned>(&self) -> Result<Vec<Asked<T>>, DatabaseError> {
        let wrong = self.wrong("cannot read the requests in");
        let mut query = self
            .connection
            .prepare_cached("SELECT id, request FROM requests ORDER BY id LIMIT 1000")
            .map_err(&wrong)?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).map_err(&wrong)?;
        rows.map(|row| {
            let (id, text) = row.map_err(&wrong)?;
            Ok(Asked { id, request: serde_json::from_str(&text).map_err(|error| error.to_string()) })
        })
        .collect()
    }
}

/// What somebody asked.
#[derive(Debug)]
pub struct Asked<T> {
    /// Its number.
    pub id: i64,
    /// What it is, or why it cannot be understood.
    pub request: Result<T, String>,
}

/// What a transaction writes beside rows.
pub struct Written<'a> {
    /// Of the steps since the last one, in order.
    pub outputs: &'a [Output],
    /// Lines for the log that are no decisions.
    pub notes: &'a [String],
    /// The workload of an instance.
    pub workload: &'a dyn Fn(InstanceId) -> &'a str,
    /// The id that the next instance gets.
    pub next_instance: InstanceId,
    /// When.
    pub now: Time,
    /// The last request that was carried out.
    pub requests_done: Option<i64>,
}

impl std::fmt::Debug for Written<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Written").field("outputs", &self.outputs).field("now", &self.now).finish_non_exhaustive()
    }
}

mod erased {
    /// A row as the database keeps it.
    pub(super) trait Row {
        fn json(&self) -> String;
    }
    impl<T: serde::Serialize> Row for T {
        fn json(&self) -> String {
            serde_json::to_string(self).expect("rows are plain data, which JSON has")
        }
    }
}

/// Makes the tables where there are none, and takes the file over. Returns the number that fences the others.
fn begin(connection: &mut Connection, path: &Path) -> Result<i64, DatabaseError> {
    let wrong = |source| DatabaseError::Sqlite { doing: "cannot begin with", path: path.into(), source };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(wrong)?;
    let format: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(wrong)?;
    if format == 0 {
        transaction.execute_batch(TABLES).map_err(wrong)?;
        transaction.pragma_update(None, "user_version", FORMAT).map_err(wrong)?;
        transaction.execute("INSERT INTO meta VALUES ('token', ?1)", [draw()]).map_err(wrong)?;
    } else if format != FORMAT {
        return Err(DatabaseError::Format { path: path.into(), found: format });
    }
    let next =
        "INSERT INTO meta VALUES ('epoch', '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1";
    transaction.execute(next, []).map_err(wrong)?;
    let epoch = transaction
        .query_row("SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'epoch'", [], |row| row.get(0))
        .map_err(wrong)?;
    transaction.commit().map_err(wrong)?;
    Ok(epoch)
}

/// Six letters and digits: of so many that two databases of a fleet are not alike.
fn draw() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    // A letter first, so that it cannot be taken for a machine's number.
    let letter = |(place, byte): (usize, &u8)| LETTERS[usize::from(byte % if place == 0 { 24 } else { 32 })] as char;
    bytes.iter().enumerate().map(letter).collect()
}

/// Makes the file where there is none, so that something can be asked before any loop ever ran.
///
/// # Errors
/// It cannot be made.
pub fn make(path: &Path) -> Result<(), DatabaseError> {
    match Reader::open(path) {
        Ok(_) => return Ok(()),
        Err(error) if path.exists() && !error.is_unmade() => return Err(error),
        Err(_) => {}
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|source| DatabaseError::Lock { path: lock_path(path), source })?;
    }
    match Database::open(path) {
        // Whoever has it has made it.
        Ok(_) | Err(DatabaseError::Taken { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Asks something of the process that runs, or will run: it is durable, and done once. Returns its number.
///
/// # Errors
/// There is no such database, or it cannot be written.
pub fn ask(path: &Path, request: &impl Serialize) -> Result<i64, DatabaseError> {
    let wrong = |source| DatabaseError::Sqlite { doing: "cannot ask in", path: path.into(), source };
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = Connection::open_with_flags(path, flags).map_err(wrong)?;
    connection.busy_timeout(BUSY).map_err(wrong)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(wrong)?;
    let text = erased::Row::json(request);
    connection.execute("INSERT INTO requests (request) VALUES (?1)", [text]).map_err(wrong)?;
    Ok(connection.last_insert_rowid())
}
