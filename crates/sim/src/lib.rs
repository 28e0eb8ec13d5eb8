//! A simulator for [`bulkhead_scale`]: months of demand, a provider that
//! misbehaves and a scaler that crashes, in seconds, from one seed.
//!
//! | module | holds |
//! |---|---|
//! | `cloud` | the provider; also behind the fake of DigitalOcean's API |
//! | `demand` | how many instances are wanted |
//! | `world` | the queue of events, and what must hold at each |
//! | `report` | figures and plots |

pub mod cloud;
mod demand;
mod report;
mod world;

pub use demand::{Demand, TraceError};
pub use report::{Report, Sample, Waits};
pub use world::{Setup, Violation, run};
