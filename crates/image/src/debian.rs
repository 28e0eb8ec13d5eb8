//! Debian packages by name, with their dependencies, as lists of files.
//!
//! The chain of trust: the embedded archive keys sign a suite's `InRelease`
//! ([`signature`]), which holds the sha256 of `Packages.xz`, which holds the sha256
//! of each `.deb` ([`index`], [`fetch`]). The last are pinned in `bulkhead.lock`
//! ([`lock`]), so a later build starts there. Packages are unpacked by content into
//! the cache ([`deb`]); none of their scripts is run.
//!
//! A dependency makes a package's files *candidates* for the image and nothing
//! more: what is kept, the closure decides.

pub(crate) mod deb;
mod fetch;
mod index;
pub(crate) mod lock;
pub(crate) mod signature;
mod version;

use crate::{
    report::{Finding, Phase, Progress, Rule},
    scan::threads,
};
use bulkhead_core::manifest::Platform;
use deb::Listing;
use fetch::{Expected, Fetcher};
use index::{Universe, field};
use lock::{Lock, Pinned};
use signature::{Keyring, SignatureError};
use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Where packages come from unless a request says otherwise.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// Unstable's, the largest, is 10 MiB.
const PACKAGES_MAX_BYTES: u64 = 64 << 20;
const PACKAGES_UNPACKED_MAX_BYTES: u64 = 512 << 20;
/// The largest packages of Debian are some 2 GB.
const DEB_MAX_BYTES: u64 = 4 << 30;
/// A mirror serves a few requests at once better than one; more is impolite.
const DOWNLOADS: usize = 4;

/// A suite that packages can be taken from. Only names that never change their
/// meaning: `stable` is another system every two years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    /// `VERSION_ID` of its os-release, once it is released.
    pub(crate) version: Option<&'static str>,
    has_updates: bool,
}

const SUITES: [Suite; 4] = [
    Suite { name: "bookworm", version: Some("12"), has_updates: true },
    Suite { name: "trixie", version: Some("13"), has_updates: true },
    Suite { name: "forky", version: None, has_updates: true },
    Suite { name: "sid", version: None, has_updates: false },
];

/// Why there are no packages.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// The manifest names a suite that is not known.
    #[error("`{name}` is not a known Debian suite: choose bookworm, trixie, forky or sid")]
    Suite {
        /// The name.
        name: String,
    },
    /// The mirror did not answer.
    #[error("{url} cannot be reached")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The mirror refused.
    #[error("{url} answers with status {status}{}", if *status == 404 { ": the mirror has it no more; delete bulkhead.lock to take current packages" } else { "" })]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// More than can be.
    #[error("{url} is larger than {limit_bytes} bytes, which no honest one is")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// The file is not the one that the index or the lock file names.
    #[error("{url} has the sha256 {found}, but {expected} is expected: the mirror is broken or somebody is in between")]
    WrongContents {
        /// What was asked for.
        url: String,
        /// By the index or lock file.
        expected: String,
        /// Of what came.
        found: String,
    },
    /// The suite's index is not signed by Debian.
    #[error("the index of suite {suite} at {url} is not signed by a Debian archive key")]
    BadSignature {
        /// The suite.
        suite: String,
        /// Where it came from.
        url: String,
        /// What is wrong with it.
        source: SignatureError,
    },
    /// An embedded key is broken.
    #[error("the embedded archive keys cannot be used")]
    Keys(#[source] SignatureError),
    /// A well-signed index of something else.
    #[error("{url} is the index of `{found}` and not of `{suite}`")]
    WrongSuite {
        /// The suite.
        suite: String,
        /// Where it came from.
        url: String,
        /// What it says it is.
        found: String,
    },
    /// The index does not have what is needed.
    #[error("the index of suite {suite} does not list {path}")]
    NotInIndex {
        /// The suite.
        suite: String,
        /// The file looked for.
        path: String,
    },
    /// An index has something that cannot be.
    #[error("an index is malformed: {what}")]
    IndexMalformed {
        /// What.
        what: String,
    },
    /// There is no such package.
    #[error("there is no package `{name}` in Debian {suite}{}", similar_names(similar))]
    NoSuchPackage {
        /// The name.
        name: String,
        /// The suite.
        suite: String,
        /// Names like it.
        similar: Vec<String>,
    },
    /// A dependency cannot be met.
    #[error("package `{package}` {version} of Debian {suite} needs {relation}, which the suite does not have")]
    Unsatisfiable {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// What it needs.
        relation: String,
        /// The suite.
        suite: String,
    },
    /// More packages than an image can want.
    #[error("the packages need more than {limit} packages")]
    TooManyPackages {
        /// The limit.
        limit: usize,
    },
    /// A package file cannot be read.
    #[error("the package {} cannot be unpacked: {what}", path.display())]
    PackageMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The lock file cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    LockFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock file is not one.
    #[error("{}: {what}", path.display())]
    LockMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It would have to change, and must not.
    #[error("bulkhead.lock {why}, and may not be changed now: build once without `--locked` and commit it")]
    Locked {
        /// Why it would have to.
        why: &'static str,
    },
    /// The cache cannot be written.
    #[error("cannot write to the cache at {}", path.display())]
    Cache {
        /// What was to be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn similar_names(similar: &[String]) -> String {
    let quoted: Vec<String> = similar.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => String::new(),
        [only] => format!(": did you mean {only}?"),
        [most @ .., last] => format!(": did you mean {} or {last}?", most.join(", ")),
    }
}

impl Suite {
    pub(crate) fn named(name: &str) -> Result<Self, DebianError> {
        let known = SUITES.into_iter().find(|suite| suite.name == name);
        known.ok_or_else(|| DebianError::Suite { name: name.to_owned() })
    }

    /// Whether from the security archive, and the path of each distribution to look into.
    fn distributions(&self) -> Vec<(bool, String)> {
        let mut all = vec![(false, self.name.to_owned())];
        if self.has_updates {
            all.push((false, format!("{}-updates", self.name)));
            all.push((true, format!("{}-security", self.name)));
        }
        all
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The lock file.
    pub(crate) lock: &'a Path,
    pub(crate) cache_dir: &'a Path,
    pub(crate) suite: Suite,
    pub(crate) platform: Platform,
    pub(crate) names: &'a [String],
    pub(crate) mirror: Option<&'a str>,
    pub(crate) locked: bool,
    pub(crate) keyring: &'a Keyring,
    pub(crate) now_seconds: u64,
    pub(crate) progress: &'a dyn Progress,
}

/// A package that came.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
    pub(crate) listing: Listing,
}

/// The packages, sorted by name.
#[derive(Debug, Default)]
pub(crate) struct Packages {
    pub(crate) unpacked: Vec<Unpacked>,
    pub(crate) lock_changed: bool,
    pub(crate) warnings: Vec<Finding>,
}

impl Wanted<'_> {
    /// Takes the packages from the cache and the mirror.
    pub(crate) fn get(&self) -> Result<Packages, DebianError> {
        if self.names.is_empty() {
            return Ok(Packages::default());
        }
        let platform = self.platform.as_str();
        let known = Lock::read(self.lock)?;
        let is_there = known.is_some();
        let mut packages = Packages::default();
        let lock = match known.filter(|lock| lock.fits(self.suite.name, platform, self.names)) {
            Some(lock) => lock,
            None if self.locked => {
                let why = if is_there { "does not fit the manifest" } else { "does not exist" };
                return Err(DebianError::Locked { why });
            }
            None => {
                packages.lock_changed = true;
                Lock::new(self.suite.name, platform, self.names, self.resolve(&mut packages.warnings)?)
            }
        };
        packages.unpacked = self.unpack_all(&lock.pinned)?;
        if packages.lock_changed {
            lock.write(self.lock)?;
        }
        Ok(packages)
    }

    fn archive(&self, security: bool) -> String {
        let mirror = self.mirror.unwrap_or(DEFAULT_MIRROR).trim_end_matches('/');
        format!("{mirror}{}", if security { "-security" } else { "" })
    }

    /// Reads the suite's indices and works out which packages are needed.
    fn resolve(&self, warnings: &mut Vec<Finding>) -> Result<Vec<Pinned>, DebianError> {
        let fetcher = Fetcher::new();
        let distributions = self.suite.distributions();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = distributions
                .iter()
                .map(|(security, name)| scope.spawn(|| self.index(&fetcher, *security, name)))
                .collect();
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let mut indices = Vec::new();
        for outcome in outcomes {
            let (index, warning) = outcome?;
            indices.push(index);
            warnings.extend(warning);
        }
        let texts: Vec<&str> = indices.iter().map(String::as_str).collect();
        let universe = Universe::new(&texts);
        let security = distributions.iter().position(|(security, _)| *security).map(|at| indices[at].as_bytes());
        let mut pinned = Vec::new();
        for package in universe.resolve(self.names, self.suite.name)? {
            let malformed =
                |what: &str| DebianError::IndexMalformed { what: format!("package `{}`: {what}", package.name) };
            let get = |name: &str| package.field(name).ok_or_else(|| malformed(&format!("it has no field {name}")));
            let size: u64 = get("Size")?.parse().map_err(|_| malformed("its size is not a number"))?;
            if size > DEB_MAX_BYTES {
                return Err(malformed("it is larger than 4 GiB"));
            }
            let entry = Pinned {
                name: package.name.to_owned(),
                version: package.version.to_owned(),
                architecture: get("Architecture")?.to_owned(),
                // A name borrowed from that index's text lies within it.
                security: security.is_some_and(|text| text.as_ptr_range().contains(&package.name.as_ptr())),
                path: get("Filename")?.to_owned(),
                size,
                sha256: get("SHA256")?.to_ascii_lowercase(),
            };
            pinned.push(entry.checked()?);
        }
        Ok(pinned)
    }

    /// The verified `Packages` of one distribution.
    fn index(&self, fetcher: &Fetcher, security: bool, name: &str) -> Result<(String, Option<Finding>), DebianError> {
        let base = format!("{}/dists/{name}", self.archive(security));
        let url = format!("{base}/InRelease");
        self.progress.advance(Phase::Index, 0, 0, &url);
        let message = fetcher.text(&url)?;
        let release = self.keyring.verify(&message, self.now_seconds).map_err(|source| DebianError::BadSignature {
            suite: name.to_owned(),
            url: url.clone(),
            source,
        })?;
        let codename = field(&release, "Codename").unwrap_or_default();
        if codename != name {
            return Err(DebianError::WrongSuite { suite: name.to_owned(), url, found: codename.to_owned() });
        }
        let path = format!("main/binary-{}/Packages.xz", self.platform.debian());
        let Some(expected) = index::expected_of(&release, &path) else {
            return Err(DebianError::NotInIndex { suite: name.to_owned(), path });
        };
        if expected.size_bytes > PACKAGES_MAX_BYTES {
            return Err(DebianError::TooLarge { url: format!("{base}/{path}"), limit_bytes: PACKAGES_MAX_BYTES });
        }
        // By its digest where the archive has that: the plain name may be replaced between two requests.
        let url = match field(&release, "Acquire-By-Hash") {
            Some("yes") => format!("{base}/main/binary-{}/by-hash/SHA256/{}", self.platform.debian(), expected.sha256),
            _ => format!("{base}/{path}"),
        };
        let cached = self.cache_dir.join("indices").join(format!("{}.xz", expected.sha256));
        let done = AtomicU64::new(0);
        let file = fetcher.file(&url, &expected, &cached, &|bytes| {
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            self.progress.advance(Phase::Index, done, expected.size_bytes, name);
        })?;
        let malformed = |what: String| DebianError::IndexMalformed { what: format!("{url}: {what}") };
        let mut text = String::new();
        let reader = File::open(&file).map_err(|error| malformed(error.to_string()))?;
        liblzma::read::XzDecoder::new_multi_decoder(io::BufReader::new(reader))
            .take(PACKAGES_UNPACKED_MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| malformed(error.to_string()))?;
        Ok((text, self.stale(name, &release)))
    }

    /// An index past its date still has the right signature; a mirror that withholds
    /// updates would show the same. So it is said, and the lock file shows what was taken.
    fn stale(&self, name: &str, release: &str) -> Option<Finding> {
        let until = field(release, "Valid-Until").and_then(parse_date)?;
        let days = self.now_seconds.checked_sub(until)? / 86_400;
        Some(Finding {
            rule: Rule::StaleIndex,
            path: "bulkhead.lock".into(),
            sentence: format!(
                "was made from the index of {name} whose validity ended {days} days ago: the mirror lags"
            ),
        })
    }

    fn unpack_all(&self, pinned: &[Pinned]) -> Result<Vec<Unpacked>, DebianError> {
        let fetcher = Fetcher::new();
        let next = AtomicUsize::new(0);
        let (received, unpacked) = (AtomicU64::new(0), AtomicU64::new(0));
        let results: Mutex<Vec<(usize, Result<Listing, DebianError>)>> = Mutex::new(Vec::new());
        let missing: Vec<bool> =
            pinned.iter().map(|package| deb::cached(self.cache_dir, &package.sha256).is_none()).collect();
        let total: u64 =
            pinned.iter().zip(&missing).filter(|(_, missing)| **missing).map(|(package, _)| package.size).sum();
        let one = |package: &Pinned| {
            if let Some(listing) = deb::cached(self.cache_dir, &package.sha256) {
                return Ok(listing);
            }
            let url = format!("{}/{}", self.archive(package.security), package.path);
            let expected = Expected { sha256: package.sha256.clone(), size_bytes: package.size };
            let path = self.cache_dir.join("debs").join(format!("{}.deb", package.sha256));
            fetcher.file(&url, &expected, &path, &|bytes| {
                let done = received.fetch_add(bytes, Ordering::Relaxed) + bytes;
                self.progress.advance(Phase::Download, done, total, &package.name);
            })?;
            let listing = deb::unpack(&path, &package.sha256, self.cache_dir)?;
            let done = unpacked.fetch_add(1, Ordering::Relaxed) + 1;
            self.progress.advance(Phase::Unpack, done, missing.len() as u64, &package.name);
            Ok(listing)
        };
        std::thread::scope(|scope| {
            for _ in 0..if total > 0 { DOWNLOADS } else { threads() }.min(pinned.len()) {
                scope.spawn(|| {
                    while let Some((at, package)) = {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        pinned.get(at).map(|package| (at, package))
                    } {
                        let outcome = one(package);
                        let failed = outcome.is_err();
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((at, outcome));
                        if failed {
                            next.store(pinned.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_unstable_by_key(|(at, _)| *at);
        let mut all = Vec::with_capacity(results.len());
        for (at, outcome) in results {
            let Pinned { name, version, architecture, sha256, .. } = pinned[at].clone();
            let listing = outcome?;
            // The lock file is what a person reads: it must not call a package what it is not.
            for (key, said) in [("Package", &name), ("Version", &version), ("Architecture", &architecture)] {
                let found = field(&listing.control, key).unwrap_or_default();
                if found != said {
                    let path = self.cache_dir.join("debs").join(format!("{sha256}.deb"));
                    let what = format!("{key} is `{found}` in it, and `{said}` where it is asked for");
                    return Err(DebianError::PackageMalformed { path, what });
                }
            }
            all.push(Unpacked { name, version, architecture, listing });
        }
        Ok(all)
    }
}

/// The dates of `Release` files: `Sat, 28 Nov 2026 00:53:03 UTC`, as seconds since the epoch.
fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_ascii_whitespace().skip(1);
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since the epoch in the proleptic Gregorian calendar, with years that begin in March.
    let (year, month) = if month <= 2 { (year.checked_sub(1)?, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(days.checked_sub(719_469)? * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(parse_date("Sat, 21 Nov 2026 09:15:44 UTC"), Some(1_795_252_544));
        assert_eq!(parse_date("Thu, 29 Feb 2024 12:00:00 UTC"), Some(1_709_208_000));
        assert_eq!(parse_date("soon"), None);
    }

    #[test]
    fn suites() {
        assert!(Suite::named("stable").unwrap_err().to_string().contains("choose bookworm"));
        assert_eq!(Suite::named("sid").unwrap().distributions(), [(false, "sid".to_owned())]);
        assert_eq!(Suite::named("trixie").unwrap().distributions().len(), 3);
    }
}
