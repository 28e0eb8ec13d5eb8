//! Where things lie.
//!
//! | place | holds | removed by |
//! |---|---|---|
//! | the target directory | binaries, the demo's folder | `cargo clean`, `cargo xtask demo --down` |
//! | the cache, `$XDG_CACHE_HOME/bulkhead` or `~/.cache/bulkhead` | the Debian root of local nodes, packages, the benchmark's app | by hand; all of it can be made again |

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
    let from_xdg = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = match from_xdg {
        Some(path) => path,
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(base.join("bulkhead"))
}
