//! Builds sealed images: from a folder and Debian packages, on any host.
//!
//! [`build`] takes a parsed manifest and gives an [`Image`](bulkhead_core::image::Image),
//! its document, and where each of its files lies on disk. Nothing of what is
//! packed is ever run, and nothing needs root, Linux or a container engine.
//!
//! | module | duty |
//! |---|---|
//! | `scan` | walks the folder; an index spares reading what did not change |
//! | `content` | what a file is by its bytes: ELF, script, private key, … |
//! | `tree` | paths of an image while it is made; links resolved inside it |
//! | `debian` | suites, signatures, dependencies, `bulkhead.lock` and `tools.lock`, `.deb` files |
//! | `closure` | which package files a running service can need |
//! | `runtime` | what known programs load at run time without saying so in ELF |
//! | `base` | the few files that every image has |
//! | `sbom` | package metadata, SPDX and CycloneDX |
//! | `pattern` | paths as a manifest names them: a file, a folder, a pattern |
//! | `lint` | what must not be in an image |
//! | `build` | the order of all that |
//!
//! # Invariants
//! - Same inputs, same image id, on any host: modes are 0755 or 0644 and follow from
//!   contents (of packages, from what they say), there are no owners or times, and nothing depends on the order in which a host lists a folder.
//! - A package's byte is used only after its sha256 was checked against an index
//!   whose signature was checked against the embedded Debian archive keys, or
//!   against `bulkhead.lock`, which holds such a digest.
//! - Everything under the cache directory may be deleted at any moment between builds.
//!
//! # The cache directory
//! ```text
//! index/ID.idx            what a folder looked like (see `scan`)
//! indices/…               InRelease and Packages.xz of the suites
//! debs/SHA256.deb         packages as downloaded
//! packages/SHA256.json    what a package holds, path by path
//! npm/ID.json             names and versions of a folder's npm packages
//! files/AB/DIGEST         contents of package files
//! ```

mod base;
mod build;
mod closure;
mod content;
mod debian;
mod host;
mod lint;
mod pattern;
mod report;
mod runtime;
mod sbom;
mod scan;
mod sources;
mod tree;

pub use build::{BuildError, BuildRequest, Built, ErrorKind, Purpose, build};
pub use closure::ClosureError;
pub use debian::{DebianError, signature::SignatureError};
pub use report::{Finding, Large, Omission, PackageUse, Phase, Progress, Report, Rule, Silent, Timings};
pub use scan::ScanError;
pub use sources::Sources;
