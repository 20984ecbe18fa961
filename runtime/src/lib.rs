//! The seams to the machine: everything that is ambient elsewhere (time, randomness, disk,
//! sockets, tasks, environment, telemetry) has its one home here, so that the rest of the code
//! can run on a simulated machine and replay from a seed.
//!
//! This crate knows nothing of ledgers or topics, and must not learn of them.
#![deny(missing_docs)]

pub mod bucket;
pub mod budget;
pub mod clock;
pub mod config;
pub mod disk;
pub mod error;
pub mod fair;
pub mod inbound;
pub mod net;
pub mod open_files;
pub mod rng;
pub mod secret;
pub mod signing;
pub mod task;
pub mod telemetry;
