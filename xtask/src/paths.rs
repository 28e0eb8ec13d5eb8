//! Where things lie.
//!
//! | place | holds | removed by |
//! |---|---|---|
//! | the target directory | binaries | `cargo clean` |
//! | workshops, `~/.cache/bulkhead-demo` and `~/.cache/bulkhead-bench` | fleet files, a key, apps | `cargo xtask demo --down`, the end of a benchmark |
//! | the cache, `~/.cache/bulkhead` | Debian packages, scans, npm packages of the benchmark | by hand; all of it can be made again |
//!
//! `$XDG_CACHE_HOME`, where it is set, stands for `~/.cache`. Workshops are not in the target directory
//! because nodes may run when somebody runs `cargo clean`, and their fleet's files are what takes them down.

use anyhow::{Context as _, Result};
use std::{
    env,
    path::{Path, PathBuf},
};

/// The repository.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// cargo's target directory, as cargo itself would choose it.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// What can be made again but takes time to.
pub fn cache() -> Result<PathBuf> {
    Ok(caches()?.join("bulkhead"))
}

/// The folder of a fleet that is made for a while.
pub fn workshop(name: &str) -> Result<PathBuf> {
    Ok(caches()?.join(format!("bulkhead-{name}")))
}

fn caches() -> Result<PathBuf> {
    let from_xdg = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    match from_xdg {
        Some(path) => Ok(path),
        None => {
            Ok(PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"))
        }
    }
}
