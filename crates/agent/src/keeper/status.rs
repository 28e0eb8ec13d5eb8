//! What a node says of itself: facts, facilities, apps and what runs.

use super::{OrFail, disk, now, open_store, submit::position};
use crate::{
    durable::{self, FileError},
    health, keys, papers, scrub,
    state::{self, App, Paths},
    systemd,
    units::{Names, SYSTEMD_PRIVATE_PIDS},
};
use bulkhead_core::{
    Timestamp,
    order::ServiceSpec,
    policy::{Isolation, Policy},
};
use bulkhead_store::{
    Store,
    mount::{self, Tier},
};
use bulkhead_wire::{AppStatus, Facility, Failure, NodeStatus, Position, ServiceStatus};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Files looked at to add up a volume: beyond it the sum is what was seen.
const VOLUME_FILES_MAX: usize = 200_000;

/// Everything at once.
///
/// # Errors
/// What of the node's own state cannot be read.
pub fn status(paths: &Paths) -> Result<NodeStatus, Box<Failure>> {
    let identity = state::identity(paths).or_fail()?;
    let policy = papers::policy(paths).or_fail()?;
    let boot = state::boot(paths).or_fail()?;
    let store = open_store(paths)?;
    let systemd = systemd::version().or_fail()?;
    let (disk_total_bytes, disk_free_bytes) = disk(paths).or_fail()?;
    let images = store.images().or_fail()?;
    let apps = state::apps(paths).or_fail()?;
    let mut units = Vec::new();
    for app in &apps {
        // Of one that cannot be read it is said below.
        if let Ok(Some((number, run))) = app.live_run() {
            units.extend(run.services.iter().map(|spec| Names::new(app.name(), &spec.name, number).service));
        }
    }
    let units: Vec<&str> = units.iter().map(String::as_str).collect();
    let shown = systemd::show(&units, PROPERTIES).or_fail()?;
    let node = Position { policy_version: policy.version, boot: Some(boot), ..Position::default() };
    let one = |app: &App| {
        app_status(paths, &policy, app, &node, &images, &shown)
            .unwrap_or_else(|error| damaged(app, &node, super::chain(&error)))
    };
    let apps = apps.iter().map(one).collect();
    Ok(NodeStatus {
        fleet: identity.fleet,
        node: identity.node,
        environment: identity.environment,
        agent: env!("CARGO_PKG_VERSION").into(),
        os: os(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        systemd,
        now: now(),
        booted: booted(),
        policy_version: policy.version,
        boot: Some(boot),
        keys: keys::public(paths).or_fail()?,
        facilities: facilities(paths, systemd),
        disk_free_bytes,
        disk_total_bytes,
        store_bytes: store.usage_bytes().or_fail()?,
        apps,
    })
}

const PROPERTIES: &str =
    "ActiveState,Result,ExecMainCode,ExecMainStatus,ActiveEnterTimestamp,NRestarts,MemoryCurrent,CPUUsageNSec,MainPID";

type Shown = BTreeMap<String, BTreeMap<String, String>>;

fn app_status(
    paths: &Paths,
    policy: &Policy,
    app: &App,
    node: &Position,
    images: &BTreeSet<bulkhead_core::ImageId>,
    shown: &Shown,
) -> Result<AppStatus, FileError> {
    let mut live = app.live()?.map(|live| app.release(live.release, images)).transpose()?.flatten();
    if let Some(release) = &mut live
        && let Some(image) = release.image
    {
        release.statements = papers::statements(paths, policy, app.name(), image)?;
    }
    let services = live.as_ref().map_or_else(Vec::new, |release| {
        let one = |spec: &ServiceSpec| {
            let unit = Names::new(app.name(), &spec.name, release.number).service;
            service_status(spec, release.number, shown.get(&unit))
        };
        release.services.iter().map(one).collect()
    });
    let mut volumes = BTreeMap::new();
    for entry in fs::read_dir(paths.volumes(app.name())).into_iter().flatten().flatten() {
        if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            volumes.insert(name, tree_bytes(&entry.path()));
        }
    }
    let mut held: Vec<_> = Vec::new();
    for number in app.numbers()?.into_iter().rev() {
        let image = app.run(number)?.map(|run| run.image);
        held.extend(image.filter(|image| images.contains(image) && !held.contains(image)));
    }
    Ok(AppStatus {
        app: app.name().clone(),
        position: position(app, node)?,
        live,
        images: held,
        services,
        volumes,
        busy: app.busy()?.map(|holder| (holder.holder, holder.since)),
        damaged: None,
    })
}

/// An app of which nothing can be said. The others are none the worse for it.
fn damaged(app: &App, node: &Position, why: String) -> AppStatus {
    AppStatus {
        app: app.name().clone(),
        position: node.clone(),
        live: None,
        images: vec![],
        services: vec![],
        volumes: BTreeMap::new(),
        busy: None,
        damaged: Some(why),
    }
}

fn service_status(spec: &ServiceSpec, release: u64, shown: Option<&BTreeMap<String, String>>) -> ServiceStatus {
    let get = |key: &str| shown.and_then(|properties| properties.get(key)).map_or("", String::as_str);
    // systemd writes `[not set]`, or the largest number, for what it does not account.
    let number = |key: &str| get(key).parse::<u64>().ok().filter(|number| *number != u64::MAX);
    let has_failed = !matches!(get("Result"), "success" | "");
    ServiceStatus {
        service: spec.name.clone(),
        state: Some(get("ActiveState")).filter(|state| !state.is_empty()).unwrap_or("inactive").into(),
        release,
        port: spec.port,
        since: systemd::timestamp(get("ActiveEnterTimestamp")),
        restarts: get("NRestarts").parse().unwrap_or(0),
        memory_bytes: number("MemoryCurrent"),
        cpu_ms: number("CPUUsageNSec").map(|nanoseconds| nanoseconds / 1_000_000),
        pid: get("MainPID").parse().ok().filter(|pid| *pid > 0),
        result: shown.filter(|_| has_failed).map(health::how_it_ended),
    }
}

/// Bytes that a tree's files take on disk. Symbolic links are not followed.
fn tree_bytes(root: &Path) -> u64 {
    let mut left = vec![root.to_owned()];
    let (mut bytes, mut seen) = (0, 0);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            seen += 1;
            if seen > VOLUME_FILES_MAX {
                return bytes;
            }
            if let Ok(metadata) = entry.metadata() {
                bytes += std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
                if metadata.is_dir() {
                    left.push(entry.path());
                }
            }
        }
    }
    bytes
}

fn os() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    os_name(&text)
}

fn os_name(text: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.map_or_else(|| "unknown".into(), |value| value.trim_matches('"').chars().take(100).collect())
}

fn booted() -> Timestamp {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    Timestamp(text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0))
}

/// What of all that a policy may demand this node offers.
///
/// # Errors
/// systemd does not say its version.
pub fn offers(paths: &Paths) -> Result<BTreeSet<Isolation>, Box<Failure>> {
    let facilities = facilities(paths, systemd::version().or_fail()?);
    let has = |isolation: &Isolation| facilities.get(isolation.as_str()).is_some_and(|facility| facility.present);
    Ok(Isolation::ALL.into_iter().filter(has).collect())
}

fn facilities(paths: &Paths, systemd: u32) -> BTreeMap<String, Facility> {
    let mut facilities = BTreeMap::new();
    let mut add = |name: &str, present: bool, detail: String| {
        facilities.insert(name.to_owned(), Facility { present, detail });
    };
    match durable::read_json(&paths.mounts()) {
        Ok(Some(Mounts { tier, has_verity })) => {
            add("sealed-images", tier != TREE, tier);
            let detail = if has_verity {
                "the kernel checks every page of an image as it is read"
            } else {
                "contents are checked as they arrive and by scrubs"
            };
            add("fs-verity", has_verity, detail.into());
        }
        Ok(None) => add("sealed-images", false, "not known before the first boot".into()),
        Err(error) => add("sealed-images", false, super::chain(&error)),
    }
    match scrub::last(paths) {
        Ok(Some(report)) => add("intact-images", report.damaged == 0, scrub::describe(&report)),
        Ok(None) => add("intact-images", true, "none yet: once a week, the first within two days".into()),
        Err(error) => add("intact-images", false, super::chain(&error)),
    }
    let has_pids = systemd >= SYSTEMD_PRIVATE_PIDS;
    let detail = if has_pids {
        "each service has its own".into()
    } else {
        format!("needs systemd {SYSTEMD_PRIVATE_PIDS}; other processes are hidden instead")
    };
    add("private-pids", has_pids, detail);
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    for (name, what) in [("memory", "memory"), ("pids", "tasks"), ("cpu", "cpu")] {
        let present = controllers.split_whitespace().any(|controller| controller == name);
        let detail = if present { "enforced".into() } else { format!("the kernel offers no `{name}` controller here") };
        add(&format!("limit-{what}"), present, detail);
    }
    facilities
}

/// How images are mounted here. The keeper may not try, so whoever may leaves
/// it in `/run/bulkhead/mounts.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    /// In words.
    pub tier: String,
    /// Whether the kernel checks contents as they are read.
    pub has_verity: bool,
}

const TREE: &str = "a tree of hard links, bound read-only, stands in for composefs";

/// Whether a mount here is made of an image's metadata alone, so that its objects may come later.
#[must_use]
pub fn mounts_by_metadata(paths: &Paths) -> bool {
    // In doubt not, which costs time only.
    matches!(durable::read_json::<Mounts>(&paths.mounts()), Ok(Some(Mounts { tier, .. })) if tier != TREE)
}

/// Finds out how images are mounted here, once for each boot.
///
/// # Errors
/// The store cannot be used, or the answer not be written.
pub fn find_mounts(paths: &Paths) -> Result<(), String> {
    let path = paths.mounts();
    if path.exists() {
        return Ok(());
    }
    let store = Store::open(&paths.store()).map_err(|error| super::chain(&error))?;
    let found = mount::detect(&store).map_err(|error| super::chain(&error))?;
    let tier = if found.tier == Tier::Tree { TREE.to_owned() } else { found.tier.to_string() };
    durable::write_json(&path, &Mounts { tier, has_verity: found.has_verity }).map_err(|error| super::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_systems() {
        assert_eq!(
            os_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n"),
            "Debian GNU/Linux 13 (trixie)"
        );
        assert_eq!(os_name(""), "unknown");
    }

    #[test]
    fn bytes_of_a_tree() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("a")).unwrap();
        fs::write(directory.path().join("a/f"), vec![1; 10_000]).unwrap();
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        let bytes = tree_bytes(directory.path());
        assert!((8192..100_000).contains(&bytes), "{bytes}");
    }
}
