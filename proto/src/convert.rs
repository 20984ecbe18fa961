//! Wire ↔ model, in one place.

pub mod backup;
pub mod bookie;
pub mod load;
pub mod policy;
pub mod ranges;
pub mod stats;
pub mod subscription;
