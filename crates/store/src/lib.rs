//! Content-addressed objects, packs, images; composefs mounts on Linux.
//!
//! | module | holds | where |
//! |---|---|---|
//! | [`pack`] | the format in which objects travel; deltas of image documents | everywhere |
//! | [`cache`] | what an operator's machine keeps of what it sent, as bases of later deltas | everywhere |
//! | `store` | a node's objects and image documents on disk | Linux |
//! | `mount` | image trees mounted from the store | Linux, feature `mount` |

pub mod cache;
pub mod pack;

#[cfg(target_os = "linux")]
pub mod store;

#[cfg(all(target_os = "linux", feature = "mount"))]
pub mod mount;

#[cfg(target_os = "linux")]
pub use store::{Store, StoreError};
