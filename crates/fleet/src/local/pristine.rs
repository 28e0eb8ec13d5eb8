//! Pristine systems: made once by `mmdebstrap`, kept by a digest of the recipe,
//! copied for each node.

use super::{
    LocalError, Progress, failed, lock,
    tools::{run, run_holding},
};
use bulkhead_core::digest::{hex, sha256};
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs, io,
    io::Read as _,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// A Debian suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    #[default]
    Trixie,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        })
    }
}

/// What a node's system consists of, besides what every Debian system has.
const PACKAGES: &str = "ca-certificates,dbus,iproute2,nftables,openssh-server,passwd,procps,systemd,systemd-sysv";
/// What is left out of packages: nobody reads it there.
const LEFT_OUT: [&str; 4] = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*"];
/// Units of no use in a machine that is made and dropped at will.
const MASKED: [&str; 8] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "systemd-firstboot.service",
];

fn recipe(suite: Suite) -> Vec<String> {
    let mut recipe = vec!["--variant=minbase".to_owned(), "--mode=root".to_owned(), format!("--include={PACKAGES}")];
    recipe.extend(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    // Each node gets its own; none may be shared by being copied.
    recipe.push("--customize-hook=rm -f \"$1\"/etc/ssh/ssh_host_*_key* \"$1\"/etc/machine-id".to_owned());
    recipe.push(format!(
        "--customize-hook=cd \"$1\"/etc/systemd/system && for unit in {}; do ln -sf /dev/null $unit; done",
        MASKED.join(" ")
    ));
    recipe.push(suite.to_string());
    recipe
}

/// The pristine system of a suite, made where it is not in the cache.
pub(super) fn ensure(cache: &Path, suite: Suite, progress: &(dyn Fn(Progress) + Sync)) -> Result<PathBuf, LocalError> {
    let recipe = recipe(suite);
    let digest = hex(&sha256(recipe.join("\n").as_bytes()));
    let roots = cache.join("roots");
    let path = roots.join(format!("{suite}-{}", &digest[..12]));
    // Whoever comes second waits and finds it made.
    let _lock = lock(&roots)?;
    if path.is_dir() {
        return Ok(path);
    }
    progress(Progress::Pristine { suite });
    let unfinished = path.with_extension("unfinished");
    remove_tree(&unfinished)?;
    let mut arguments = recipe;
    arguments.push(unfinished.display().to_string());
    if let Err(error) = run("mmdebstrap", &arguments) {
        drop(remove_tree(&unfinished));
        return Err(error);
    }
    fs::rename(&unfinished, &path).map_err(failed("rename", &unfinished))?;
    Ok(path)
}

/// Copies a pristine system and gives the copy a name and an identity. The copy appears whole or not at all. A lock
/// that is given is held for as long as anything is being copied, also where this process is killed meanwhile.
pub(super) fn copy(pristine: &Path, root: &Path, hostname: &str, held: Option<&fs::File>) -> Result<(), LocalError> {
    let unfinished = root.with_extension("unfinished");
    remove_tree(&unfinished)?;
    run_holding("cp", &[Path::new("--archive"), Path::new("--reflink=auto"), pristine, &unfinished], held)?;
    // With an identity of its own the boot is not a first boot, on which systemd would preset units.
    let mut id = [0; 16];
    let random = Path::new("/dev/urandom");
    fs::File::open(random).and_then(|mut file| file.read_exact(&mut id)).map_err(failed("read", random))?;
    write(&unfinished.join("etc/machine-id"), &format!("{}\n", hex(&id)))?;
    write(&unfinished.join("etc/hostname"), &format!("{hostname}\n"))?;
    write(&unfinished.join("etc/hosts"), &format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost\n"))?;
    fs::rename(&unfinished, root).map_err(failed("rename", &unfinished))
}

/// Writes the unit that gives the machine its address.
pub(super) fn configure_network(root: &Path, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), LocalError> {
    const UNIT: &str = "bulkhead-local-network.service";
    let system = root.join("etc/systemd/system");
    let wants = system.join("sysinit.target.wants");
    fs::create_dir_all(&wants).map_err(failed("make the directory", &wants))?;
    write(
        &system.join(UNIT),
        &format!(
            "[Unit]\nDescription=Address of this node of a local fleet\nDefaultDependencies=no\n\
             After=bulkhead-nftables.service network-pre.target\nBefore=network.target\nWants=network.target\n\n\
             [Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=/usr/bin/ip address replace {address}/24 dev host0\n\
             ExecStart=/usr/bin/ip link set host0 up\n\
             ExecStart=/usr/bin/ip route replace default via {gateway}\n"
        ),
    )?;
    let link = wants.join(UNIT);
    match symlink(format!("/etc/systemd/system/{UNIT}"), &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("link", &link)(error)),
        _ => Ok(()),
    }
}

fn write(path: &Path, contents: &str) -> Result<(), LocalError> {
    fs::write(path, contents).map_err(failed("write", path))
}

pub(super) fn remove_tree(path: &Path) -> Result<(), LocalError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}
