//! The two Debian systems that the lane works in, made once by `mmdebstrap`, and running programs in them.
//!
//! ```text
//! /var/cache/bulkhead/roots/NAME           the system
//! /var/cache/bulkhead/roots/NAME.recipe    what it was made by; one made by another recipe is made again
//! /var/cache/bulkhead/roots/NAME.lock      held while it is made
//! ```
//!
//! Programs run in a mount namespace of their own, so that nothing stays mounted whatever becomes of them, and
//! with this machine's network.

use crate::run;
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Beside the pristine systems of local nodes.
const ROOTS: &str = "/var/cache/bulkhead/roots";
/// Nobody reads these there.
const LEFT_OUT: [&str; 3] = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*"];
/// Where Wine keeps what is drive C: there, below its system.
const PREFIX: &str = "/root/windows";

/// A system and what it is for.
#[derive(Debug)]
pub(super) struct System {
    name: &'static str,
    suite: &'static str,
    packages: &'static str,
    more: &'static [&'static str],
    what_for: &'static str,
}

/// Rust's standard library is compiled for Windows from its sources: toolchains of Debian bring no others' libraries.
/// In `forky`, because that needs a compiler at least as new as the workspace asks for.
pub(super) const BUILDER: System = System {
    name: "windows-build",
    suite: "forky",
    packages: "ca-certificates,gcc,libc6-dev,cargo,rustc,rust-src,gcc-mingw-w64-x86-64-win32",
    // A suite in the making is frozen on some mirrors; its packages are signed all the same.
    more: &["--aptopt=Acquire::Check-Valid-Until \"false\""],
    what_for: "Rust with its library's sources, and mingw-w64: 1.7 GB",
};

/// In `trixie`: the Wine of Debian 12 lacks a library that the program needs.
pub(super) const WINE: System = System {
    name: "windows-wine",
    suite: "trixie",
    packages: "wine,wine64",
    more: &["--customize-hook=chroot \"$1\" env HOME=/root WINEPREFIX=/root/windows WINEDEBUG=-all \
              sh -c 'wine wineboot --init >/dev/null 2>&1; wineserver --wait; test -d /root/windows/drive_c'"],
    what_for: "Wine, which runs programs made for Windows: 1.8 GB",
};

/// Mounts the machine's own file systems and what else is asked for (pairs, up to `--`), then runs a program inside.
const INSIDE: &str = r#"set -e; root=$1; shift
for place in proc sys dev; do mount --rbind "/$place" "$root/$place"; done
while [ "$1" != -- ]; do mkdir -p "$root$2"; mount --bind "$1" "$root$2"; shift 2; done; shift
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@""#;

impl System {
    fn recipe(&self) -> Vec<String> {
        let mut recipe = vec!["--variant=minbase".to_owned(), "--mode=root".to_owned()];
        recipe.push(format!("--include={}", self.packages));
        recipe.extend(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
        recipe.extend(self.more.iter().map(|word| (*word).to_owned()));
        recipe.push(self.suite.to_owned());
        recipe
    }

    pub(super) fn root(&self) -> PathBuf {
        Path::new(ROOTS).join(self.name)
    }

    /// Makes it, unless it is there.
    pub(super) fn ensure(&self) -> Result<()> {
        let (root, place) = (self.root(), |kind: &str| Path::new(ROOTS).join(format!("{}.{kind}", self.name)));
        fs::create_dir_all(ROOTS).with_context(|| format!("cannot make {ROOTS}"))?;
        let lock = fs::File::create(place("lock")).with_context(|| format!("cannot write in {ROOTS}"))?;
        // Whoever comes second waits and finds it made.
        lock.lock().with_context(|| format!("cannot lock {}", place("lock").display()))?;
        let recipe = self.recipe().join("\n");
        if root.is_dir() && fs::read_to_string(place("recipe")).is_ok_and(|known| known == recipe) {
            return Ok(());
        }
        println!("{} is made once, about a minute and the download: {}", root.display(), self.what_for);
        let started = Instant::now();
        let unfinished = place("unfinished");
        for old in [&unfinished, &root] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        run::output(Command::new("mmdebstrap").args(self.recipe()).arg(&unfinished))?;
        fs::rename(&unfinished, &root).with_context(|| format!("cannot rename {}", unfinished.display()))?;
        fs::write(place("recipe"), recipe).with_context(|| format!("cannot write in {ROOTS}"))?;
        println!("made in {:.0} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// A command inside, with folders of this machine bound to paths there. Its words begin with any `NAME=VALUE`.
    pub(super) fn inside(&self, binds: &[(&Path, &str)]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh"]).arg(self.root());
        for (from, to) in binds {
            command.arg(from).arg(to);
        }
        command.arg("--");
        command
    }
}

/// Runs a Windows program in a folder, which is drive `Z:` there.
pub(super) fn wine(work: &Path, folder: &str, words: &[&str]) -> Command {
    let mut command = WINE.inside(&[(work, "/work")]);
    command.arg(format!("WINEPREFIX={PREFIX}")).args(["WINEDEBUG=-all", "XDG_RUNTIME_DIR=/run"]);
    command.args(["sh", "-c", r#"cd "$0" && exec wine "$@""#]).arg(format!("/work/{folder}")).args(words);
    command
}

/// The home folder of the person that Wine has, as this machine sees it.
pub(super) fn windows_home() -> PathBuf {
    WINE.root().join(PREFIX.trim_start_matches('/')).join("drive_c/users/root")
}

/// This machine's way to names, which a system made by packages does not have.
pub(super) fn lend_names() -> Result<()> {
    for name in ["resolv.conf", "hosts"] {
        let (from, to) = (Path::new("/etc").join(name), WINE.root().join("etc").join(name));
        let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}
