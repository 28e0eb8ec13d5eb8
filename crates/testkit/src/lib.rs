//! What tests and benchmarks on real nodes share: local fleets, virtual machines, a WAN relay and fixtures.
//!
//! Used at development time only; no binary of the product depends on it.

pub mod fixture;
pub mod qemu;
pub mod relay;
pub mod world;

/// Twelve hexadecimal digits that differ where the bytes do: names for cached things.
#[must_use]
pub fn short_digest(bytes: &[u8]) -> String {
    bulkhead_core::digest::hex(&bulkhead_core::digest::sha256(bytes)[..6])
}
