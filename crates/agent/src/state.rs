//! A node's durable state: who it is, and for each app where it stands (its
//! policy and what else it was brought: [`crate::papers`]). Everything is a small file written through [`crate::durable`].
//!
//! ```text
//! apps/APP/lock                     flock; its text says who holds it, since when
//! apps/APP/uid                      the app's user id; its proxies have the next one
//! apps/APP/head.json                Head: the last accepted order and its counter
//! apps/APP/releases/N/order.json    the order's exact bytes
//! apps/APP/releases/N/signatures.json
//! apps/APP/releases/N/standing.json the standing order it used, where it did
//! apps/APP/releases/N/grant.json    the scale grant it rests on, where it does
//! apps/APP/releases/N/secrets/NAME.sealed   a secret as it came, sealed to the node
//! apps/APP/releases/N/secrets/NAME.cred     the same, as its unit loads it: under the key of the node's systemd
//! apps/APP/releases/N/record.json   Record: who signed, when accepted, how it ended
//! apps/APP/live.json                Live: the release that is live, and which of its services must not run
//! apps/APP/volumes.json             the volumes that were made for it here
//! ```
//!
//! # What a crash leaves
//!
//! An order is accepted at one moment: when `head.json` is replaced. Its
//! `releases/N` is on disk before that, renamed into place as a whole, so every
//! counter up to the head's has its order. A directory beyond the head is of an
//! order that was never accepted: readers ignore it, the next order replaces it.
//! `live.json` is replaced once the new release is healthy. So after a crash
//! - head N, live N: N was switched to; what was left is to record it as done;
//! - head N, live before N, record `underway`: N was interrupted, the release
//!   before is what runs, and the same order may be sent again.
//!
//! `live.json` is all that says what must run: [`crate::keeper::settle`] makes
//! what runs fit it, whoever died where.
//!
//! # Damage
//!
//! A file that cannot be read is a matter of its own app: whoever looks at all
//! apps names it and goes on with the others.

use crate::durable::{self, FileError};
use bulkhead_core::{
    AppName, BootId, ImageId, OrderId, SecretName, ServiceName, SignedText, Timestamp, VolumeName,
    node::NodeIdentity,
    order::{Action, Order, Run},
    standing::StandingOrder,
};
use bulkhead_wire::{ACCOUNT, Outcome, Release};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// User ids for apps: above what `useradd` gives people, below what Debian and
/// systemd use for themselves (60000 and up). Two for each app.
const UIDS: std::ops::RangeInclusive<u32> = 50_000..=59_998;

/// How often a lock is tried whose file others take away at that very moment.
const LOCK_TRIES: usize = 100;

/// Where things are. Another root is for tests.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `/etc/bulkhead`.
    pub etc: PathBuf,
    /// `/var/lib/bulkhead`.
    pub state: PathBuf,
    /// `/run/bulkhead`.
    pub run: PathBuf,
    /// `/run/systemd/system`.
    pub units: PathBuf,
}

impl Paths {
    /// There while the node is being given back: `keep` or `delete`, what becomes of its volumes.
    #[must_use]
    pub fn discharging(&self) -> PathBuf {
        self.state.join("discharging")
    }

    /// Below a root directory; `/` on a node.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            etc: root.join("etc/bulkhead"),
            state: root.join("var/lib/bulkhead"),
            run: root.join("run/bulkhead"),
            units: root.join("run/systemd/system"),
        }
    }

    /// The socket at which the keeper hears an account: no other account can connect to it.
    #[must_use]
    pub fn keeper_socket(&self, account: &str) -> PathBuf {
        self.run.join(format!("{}.sock", account.replacen(ACCOUNT, "keeper", 1)))
    }

    /// The audit log.
    #[must_use]
    pub fn audit(&self) -> PathBuf {
        self.state.join("audit.jsonl")
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.state.join("store")
    }

    /// What is known of how images are mounted here, since this boot.
    #[must_use]
    pub fn mounts(&self) -> PathBuf {
        self.run.join("mounts.json")
    }

    /// Where an image is mounted.
    #[must_use]
    pub fn image(&self, image: ImageId) -> PathBuf {
        self.run.join("images").join(image.to_string())
    }

    /// The symbolic link to a service's live socket directory.
    #[must_use]
    pub fn live_link(&self, app: &AppName, service: &ServiceName) -> PathBuf {
        self.run.join("live").join(app.as_str()).join(service.as_str())
    }

    /// The directory of a release's socket.
    #[must_use]
    pub fn socket_directory(&self, app: &AppName, release: u64, service: &ServiceName) -> PathBuf {
        self.run.join("sock").join(app.as_str()).join(release.to_string()).join(service.as_str())
    }

    /// What a release's unit loads a secret from.
    #[must_use]
    pub fn credential(&self, app: &AppName, release: u64, secret: &SecretName) -> PathBuf {
        let release = self.state.join("apps").join(app.as_str()).join("releases").join(release.to_string());
        release.join("secrets").join(format!("{secret}.cred"))
    }

    /// The directory of an app's volumes.
    #[must_use]
    pub fn volumes(&self, app: &AppName) -> PathBuf {
        self.state.join("volumes").join(app.as_str())
    }
}

/// The last accepted order of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its counter; 0 where there was none.
    pub counter: u64,
    /// The order.
    pub order: Option<OrderId>,
    /// When it was accepted, by the node's clock. The latest of all apps is the earliest that the clock may ever say.
    pub accepted: Option<Timestamp>,
    /// How many orders must have been accepted here, as orders that came prove; more than `counter` where the machine
    /// was put back to a snapshot.
    #[serde(default)]
    pub seen: u64,
    /// How often each standing order was used.
    #[serde(default)]
    pub uses: BTreeMap<OrderId, u32>,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The order.
    pub order: OrderId,
    /// Who signed it, as the policy named them.
    pub signers: Vec<String>,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// On which grounds it was accepted, in words.
    #[serde(default)]
    pub grounds: Option<String>,
    /// Whether that was because it goes back to a fallback of what was live then.
    #[serde(default)]
    pub is_fallback: bool,
    /// Whether that was because a scale grant covers it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_granted: bool,
}

/// An order that is about to be accepted.
#[derive(Debug)]
pub struct Accepting<'a> {
    /// Its exact bytes.
    pub order: &'a [u8],
    /// Its signatures.
    pub signatures: &'a [String],
    /// The standing order that it uses.
    pub standing: Option<&'a SignedText>,
    /// The scale grant that it rests on.
    pub grant: Option<&'a SignedText>,
    /// What is recorded of it.
    pub record: &'a Record,
    /// The secrets of its services.
    pub secrets: &'a [Secret],
}

/// A secret of a release, in the two forms in which it is kept.
#[derive(Debug)]
pub struct Secret {
    /// Its name.
    pub name: SecretName,
    /// As it came: sealed to the node.
    pub sealed: Vec<u8>,
    /// As systemd loads it.
    pub credential: Vec<u8>,
}

/// What of an app must run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// The number of the live release.
    pub release: u64,
    /// Its services that must not run; all others must.
    pub stopped: BTreeSet<ServiceName>,
}

impl Live {
    /// A release with all its services.
    #[must_use]
    pub fn all_of(release: u64) -> Self {
        Self { release, stopped: BTreeSet::new() }
    }
}

/// Who is carrying an order out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who signed the order.
    pub holder: String,
    /// Since when.
    pub since: Timestamp,
}

/// An app's state on disk.
#[derive(Debug, Clone)]
pub struct App {
    name: AppName,
    directory: PathBuf,
}

/// The right to change an app; given up when dropped, or when the process ends.
///
/// Nothing is left of an app that accepted no order: whoever gives the lock up takes the directory away, where there
/// is nothing in it but the lock. So a lock counts only if its file is the one that the path names.
#[derive(Debug)]
pub struct Lock {
    file: File,
    directory: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let path = self.directory.join("lock");
        // One entry that cannot be read is something.
        if entries.map(|entry| entry.map(|entry| entry.path())).all(|entry| entry.is_ok_and(|entry| entry == path))
            && is_at(&self.file, &path)
        {
            // What another made of it meanwhile is there, and then the directory is not empty.
            drop(fs::remove_file(&path).and_then(|()| fs::remove_dir(&self.directory)));
        }
    }
}

/// Whether a path still names an open file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

/// Makes a directory and those above it, for root alone.
fn make_private(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::io("create", path))
}

/// Who this node is.
///
/// # Errors
/// It is not installed, or the file is damaged.
pub fn identity(paths: &Paths) -> Result<NodeIdentity, FileError> {
    let path = paths.etc.join("node.json");
    durable::read_json(&path)?
        .ok_or_else(|| FileError::Damaged { path, what: "there is none: this machine is not a node".into() })
}

/// The node's present boot: drawn at random when it is first asked for. `/run` does not outlive a boot, so a machine
/// that was put back to a snapshot has another one, and orders for the one before mean nothing to it.
///
/// # Errors
/// It cannot be read or written.
pub fn boot(paths: &Paths) -> Result<BootId, FileError> {
    let path = paths.run.join("boot");
    if !path.exists() {
        let mut drawn = [0; 32];
        // Cannot be short: the kernel gives up to 256 bytes whole.
        rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| FileError::io("draw a number for", &path)(error.into()))?;
        let mut file =
            tempfile::NamedTempFile::new_in(&paths.run).map_err(FileError::io("create a file in", &paths.run))?;
        file.write_all(BootId(drawn).to_string().as_bytes()).map_err(FileError::io("write", &path))?;
        // Two may come at once: the first one's holds for both.
        match file.persist_noclobber(&path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(FileError::Io { operation: "create", path, source: error.error }),
        }
    }
    let text = durable::read(&path)?.unwrap_or_default();
    let parsed = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| FileError::Damaged { path, what: "not the id of a boot".into() })
}

/// Every app that this node has ever accepted an order for.
///
/// # Errors
/// The directory cannot be read.
pub fn apps(paths: &Paths) -> Result<Vec<App>, FileError> {
    let directory = paths.state.join("apps");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(source) => return Err(FileError::Io { operation: "list", path: directory, source }),
    };
    // A lock alone is of an order that is being looked at: its app may not even exist.
    let is_app = |entry: &fs::DirEntry| entry.path().join("head.json").exists();
    let entries = entries.filter_map(Result::ok).filter(is_app);
    let mut names: Vec<AppName> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    names.sort();
    Ok(names.into_iter().map(|name| App::new(paths, name)).collect())
}

/// The latest moment that this node has known: its clock may not be before it.
///
/// # Errors
/// The list of apps cannot be read.
pub fn minimum_time(paths: &Paths) -> Result<Timestamp, FileError> {
    // One that cannot be read says nothing; the others still do.
    let accepted = apps(paths)?.into_iter().filter_map(|app| app.head().ok()?.accepted);
    Ok(accepted.max().unwrap_or(Timestamp(0)))
}

impl App {
    /// An app, whether it has state here or not.
    #[must_use]
    pub fn new(paths: &Paths, name: AppName) -> Self {
        let directory = paths.state.join("apps").join(name.as_str());
        Self { name, directory }
    }

    /// Which.
    #[must_use]
    pub fn name(&self) -> &AppName {
        &self.name
    }

    fn release_directory(&self, number: u64) -> PathBuf {
        self.directory.join("releases").join(number.to_string())
    }

    /// Where it stands.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn head(&self) -> Result<Head, FileError> {
        Ok(durable::read_json(&self.directory.join("head.json"))?.unwrap_or_default())
    }

    /// Tries to take the right to change it: who has it, where somebody else does.
    ///
    /// # Errors
    /// The lock's file cannot be used.
    pub fn try_lock(&self, holder: &Holder) -> Result<Result<Lock, Holder>, FileError> {
        for _ in 0..LOCK_TRIES {
            if let Some(tried) = self.try_lock_once(holder)? {
                return Ok(tried);
            }
        }
        Ok(Err(somebody()))
    }

    /// `None` where another took the directory away meanwhile.
    fn try_lock_once(&self, holder: &Holder) -> Result<Option<Result<Lock, Holder>>, FileError> {
        match make_private(&self.directory) {
            // Made and taken away by others while it was looked at.
            Err(FileError::Io { source, .. })
                if matches!(source.kind(), std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotFound) =>
            {
                return Ok(None);
            }
            made => made?,
        }
        let path = self.directory.join("lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError::Io { operation: "open", path, source }),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if !is_at(&file, &path) => Ok(None),
            Ok(()) => {
                // Not durable on purpose: it says something of this very moment only.
                let text = serde_json::to_vec(holder).unwrap_or_default();
                // And where the disk is full, the lock is what counts, not the name.
                drop(file.set_len(0).and_then(|()| file.write_all(&text)));
                Ok(Some(Ok(Lock { file, directory: self.directory.clone() })))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(Err(read_holder(&mut file).unwrap_or_else(somebody)))),
            Err(error) => Err(FileError::io("lock", &path)(error.into())),
        }
    }

    /// Says who holds the lock that the caller holds, if the disk has room for it.
    pub fn name_holder(&self, holder: &Holder) {
        let text = serde_json::to_vec(holder).unwrap_or_default();
        drop(fs::write(self.directory.join("lock"), text));
    }

    /// Who is changing it right now.
    ///
    /// # Errors
    /// The lock's file cannot be used.
    pub fn busy(&self) -> Result<Option<Holder>, FileError> {
        let path = self.directory.join("lock");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError::Io { operation: "open", path, source }),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(read_holder(&mut file)),
            Err(error) => Err(FileError::io("lock", &path)(error.into())),
        }
    }

    /// Accepts an order: its release and then its counter are durable when this returns.
    ///
    /// # Errors
    /// It is not accepted.
    pub fn accept(&self, number: u64, accepting: &Accepting<'_>) -> Result<(), FileError> {
        let Accepting { order, signatures, standing, grant, record, secrets } = *accepting;
        let mut uses = self.head()?.uses;
        let releases = self.directory.join("releases");
        make_private(&releases)?;
        let target = self.release_directory(number);
        let fresh = releases.join(format!(".{number}"));
        // Leftovers of an order that was never accepted.
        durable::remove_tree(&target)?;
        durable::remove_tree(&fresh)?;
        make_private(&fresh)?;
        let put = |name: &str, bytes: &[u8]| {
            let path = fresh.join(name);
            let mut file = File::create(&path).map_err(FileError::io("create", &path))?;
            file.write_all(bytes).and_then(|()| file.sync_all()).map_err(FileError::io("write", &path))
        };
        put("order.json", order)?;
        put("signatures.json", &serde_json::to_vec(signatures).unwrap_or_default())?;
        put("record.json", &serde_json::to_vec(record).unwrap_or_default())?;
        if let Some(standing) = standing {
            put("standing.json", &serde_json::to_vec(standing).unwrap_or_default())?;
            let used = uses.entry(StandingOrder::id(standing.text.as_bytes())).or_default();
            *used = used.saturating_add(1);
        }
        if let Some(grant) = grant {
            put("grant.json", &serde_json::to_vec(grant).unwrap_or_default())?;
        }
        if !secrets.is_empty() {
            make_private(&fresh.join("secrets"))?;
            for Secret { name, sealed, credential } in secrets {
                put(&format!("secrets/{name}.sealed"), sealed)?;
                put(&format!("secrets/{name}.cred"), credential)?;
            }
            durable::sync_directory(&fresh.join("secrets"))?;
        }
        durable::sync_directory(&fresh)?;
        fs::rename(&fresh, &target).map_err(FileError::io("rename", &fresh))?;
        durable::sync_directory(&releases)?;
        if let Some(apps) = self.directory.parent() {
            // The app's own name: its folder may be as new as its first order.
            durable::sync_directory(apps)?;
        }
        // Whatever was forgotten, the signer knew.
        let head = Head { counter: number, order: Some(record.order), accepted: Some(record.accepted), seen: 0, uses };
        durable::write_json(&self.directory.join("head.json"), &head)
    }

    /// Notes how many orders must have been accepted here, as one that came proves.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note_seen(&self, seen: u64) -> Result<(), FileError> {
        let head = self.head()?;
        if seen <= head.seen {
            return Ok(());
        }
        durable::write_json(&self.directory.join("head.json"), &Head { seen, ..head })
    }

    /// An accepted order, by its number.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn order(&self, number: u64) -> Result<Option<Order>, FileError> {
        let path = self.release_directory(number).join("order.json");
        let Some(bytes) = durable::read(&path)? else { return Ok(None) };
        Order::parse(&bytes).map(Some).map_err(|error| FileError::Damaged { path, what: error.to_string() })
    }

    /// What became of it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn record(&self, number: u64) -> Result<Option<Record>, FileError> {
        durable::read_json(&self.release_directory(number).join("record.json"))
    }

    /// Records how an order ended.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn record_outcome(&self, number: u64, outcome: Outcome) -> Result<(), FileError> {
        let path = self.release_directory(number).join("record.json");
        let Some(record) = durable::read_json::<Record>(&path)? else { return Ok(()) };
        durable::write_json(&path, &Record { outcome, ..record })
    }

    /// What must run.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn live(&self) -> Result<Option<Live>, FileError> {
        durable::read_json(&self.directory.join("live.json"))
    }

    /// The live release's number and what it runs.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn live_run(&self) -> Result<Option<(u64, Run)>, FileError> {
        let Some(Live { release, .. }) = self.live()? else { return Ok(None) };
        match self.run(release)? {
            Some(run) => Ok(Some((release, run))),
            None => Err(FileError::Damaged {
                path: self.release_directory(release).join("order.json"),
                what: "the live release has no order that runs anything".into(),
            }),
        }
    }

    /// What a release runs; `None` of an order that runs nothing, or is not there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn run(&self, number: u64) -> Result<Option<Run>, FileError> {
        Ok(match self.order(number)? {
            Some(Order { action: Action::Run(run), .. }) => Some(run),
            _ => None,
        })
    }

    /// Says what must run; `None` for nothing.
    ///
    /// # Errors
    /// What was said before holds, or what is said now: whoever must know reads it again.
    pub fn set_live(&self, live: Option<&Live>) -> Result<(), FileError> {
        let path = self.directory.join("live.json");
        match live {
            Some(live) => durable::write_json(&path, live),
            None => durable::remove(&path),
        }
    }

    /// The volumes that were made for it on this node.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn volumes(&self) -> Result<BTreeSet<VolumeName>, FileError> {
        Ok(durable::read_json(&self.directory.join("volumes.json"))?.unwrap_or_default())
    }

    /// Says which volumes were made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_volumes(&self, volumes: &BTreeSet<VolumeName>) -> Result<(), FileError> {
        let path = self.directory.join("volumes.json");
        if volumes.is_empty() { durable::remove(&path) } else { durable::write_json(&path, volumes) }
    }

    /// Forgets all releases but the last order (whose counter must outlive them).
    ///
    /// # Errors
    /// What could not be removed.
    pub fn forget(&self, last: u64) -> Result<(), FileError> {
        self.set_live(None)?;
        for number in self.numbers()?.into_iter().filter(|number| *number != last) {
            durable::remove_tree(&self.release_directory(number))?;
        }
        durable::sync_directory(&self.directory.join("releases"))
    }

    /// Removes the secrets of every release but this one: nothing of the others runs, and whoever goes back to one
    /// brings secrets anew.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn forget_secrets(&self, but: u64) -> Result<(), FileError> {
        for number in self.numbers()?.into_iter().filter(|number| *number != but) {
            let directory = self.release_directory(number).join("secrets");
            if directory.exists() {
                durable::remove_tree(&directory)?;
                durable::sync_directory(&self.release_directory(number))?;
            }
        }
        Ok(())
    }

    /// The numbers of its accepted orders, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn numbers(&self) -> Result<Vec<u64>, FileError> {
        let last = self.head()?.counter;
        let directory = self.directory.join("releases");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(source) => return Err(FileError::Io { operation: "list", path: directory, source }),
        };
        let mut numbers: Vec<u64> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|number| *number <= last)
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Its releases as the wire has them, oldest first. `images` are those in the store.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn releases(&self, images: &BTreeSet<ImageId>) -> Result<Vec<Release>, FileError> {
        let mut releases = Vec::new();
        for number in self.numbers()? {
            releases.extend(self.release(number, images)?);
        }
        Ok(releases)
    }

    /// One release as the wire has it.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn release(&self, number: u64, images: &BTreeSet<ImageId>) -> Result<Option<Release>, FileError> {
        let (Some(order), Some(record)) = (self.order(number)?, self.record(number)?) else { return Ok(None) };
        let signed = self.signed(number)?;
        let verb = order.action.verb().to_owned();
        let looked = match &order.action {
            Action::Look(tool) => Some(format!("{} in {}", tool.shown(), tool.service)),
            _ => None,
        };
        let run = match order.action {
            Action::Run(run) => Some(run),
            _ => None,
        };
        let image = run.as_ref().map(|run| run.image);
        let (services, source, origin) =
            run.map_or_else(Default::default, |run| (run.services, run.source, run.origin));
        let standing = durable::read_json(&self.release_directory(number).join("standing.json"))?;
        Ok(Some(Release {
            app: self.name.clone(),
            number,
            order: record.order,
            verb,
            image,
            image_present: image.is_some_and(|image| images.contains(&image)),
            signers: record.signers,
            accepted: record.accepted,
            outcome: record.outcome,
            live: self.live()?.is_some_and(|live| live.release == number),
            source,
            origin: origin.or(looked),
            message: order.message,
            services,
            signed,
            // The node keeps them by image, and whoever sends the release adds them.
            statements: vec![],
            standing,
            grounds: record.grounds,
            break_glass: order.break_glass,
        }))
    }

    /// An accepted order as it came.
    fn signed(&self, number: u64) -> Result<Option<SignedText>, FileError> {
        let directory = self.release_directory(number);
        let text = durable::read(&directory.join("order.json"))?.and_then(|bytes| String::from_utf8(bytes).ok());
        let signatures = durable::read_json(&directory.join("signatures.json"))?;
        Ok(text.zip(signatures).map(|(text, signatures)| SignedText { text, signatures }))
    }

    /// The images of the releases that went well, newest first, the live one before all.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn good_images(&self) -> Result<Vec<ImageId>, FileError> {
        let live = self.live()?.map(|live| live.release);
        let mut images: Vec<ImageId> = Vec::new();
        for number in live.into_iter().chain(self.numbers()?.into_iter().rev()) {
            let is_good = self.record(number)?.is_some_and(|record| record.outcome == Outcome::Done);
            if !is_good && Some(number) != live {
                continue;
            }
            if let Some(run) = self.run(number)?
                && !images.contains(&run.image)
            {
                images.push(run.image);
            }
        }
        Ok(images)
    }

    /// The app's user id, where it has one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn uid(&self) -> Result<Option<u32>, FileError> {
        durable::read_json(&self.directory.join("uid"))
    }

    /// The app's user id, the same for all its releases for ever; given to it at first use.
    /// `accounts` are the user ids of ours that this system has accounts for.
    ///
    /// # Errors
    /// All are given away, or it cannot be written.
    pub fn allocate_uid(&self, paths: &Paths, accounts: &BTreeSet<u32>) -> Result<u32, FileError> {
        if let Some(uid) = self.uid()? {
            return Ok(uid);
        }
        make_private(&self.directory)?;
        // Two apps may come at once: one allocation at a time.
        let apps_directory = paths.state.join("apps");
        let guard = File::open(&apps_directory).map_err(FileError::io("open", &apps_directory))?;
        flock(&guard, FlockOperation::LockExclusive)
            .map_err(|error| FileError::io("lock", &apps_directory)(error.into()))?;
        let mut taken = accounts.clone();
        for app in apps(paths)? {
            // One that cannot be read is an account all the same, and so not given away again.
            taken.extend(app.uid().ok().flatten());
        }
        let uid = UIDS.step_by(2).find(|uid| !taken.contains(uid)).ok_or_else(|| FileError::Damaged {
            path: apps_directory.clone(),
            what: "it has as many apps as there are user ids".into(),
        })?;
        durable::write_json(&self.directory.join("uid"), &uid)?;
        Ok(uid)
    }
}

fn somebody() -> Holder {
    Holder { holder: "somebody".into(), since: Timestamp(0) }
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(4096).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn app(root: &Path) -> App {
        let app = App::new(&Paths::new(root), "notes".parse().unwrap());
        fs::create_dir_all(app.directory.parent().unwrap()).unwrap();
        app
    }

    #[test]
    fn nothing_is_left_of_an_app_that_accepted_nothing() {
        let root = tempfile::tempdir().unwrap();
        let app = app(root.path());
        let lock = app.try_lock(&somebody()).unwrap().unwrap();
        assert_eq!(app.try_lock(&somebody()).unwrap().unwrap_err(), somebody());
        drop(lock);
        assert!(!app.directory.exists());
        for name in ["head.json", "uid", "releases"] {
            let lock = app.try_lock(&somebody()).unwrap().unwrap();
            fs::write(app.directory.join(name), "{}").unwrap();
            drop(lock);
            assert!(app.directory.join("lock").exists(), "{name}");
            fs::remove_file(app.directory.join(name)).unwrap();
        }
    }

    /// Its file comes and goes under those who wait for it.
    #[test]
    fn a_lock_that_is_taken_away_is_held_by_one_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let app = app(root.path());
        let (inside, held) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let Ok(lock) = app.try_lock(&somebody()).unwrap() else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        held.fetch_add(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(held.load(Ordering::SeqCst) > 0);
        assert!(!app.directory.exists());
    }
}
