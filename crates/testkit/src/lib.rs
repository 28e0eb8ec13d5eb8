//! What tests and benchmarks on real nodes share: a WAN relay and fixtures.
//!
//! Used at development time only; no binary of the product depends on it.

pub mod fixture;
pub mod relay;
pub mod world;
