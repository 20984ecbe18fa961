//! The replication client and the topic log on top of it.
//!
//! The protocol lives in state machines without I/O, threads or clocks: [`writer::machine`],
//! [`recovery::machine`].
//! Drivers feed them events and carry out their actions against a [`transport::BookieTransport`]
//! and a metadata store. This crate knows neither bookies' insides nor brokers.
#![deny(missing_docs)]

pub mod bookie_client;
pub mod bookie_directory;
pub mod context;
pub mod deletion;
pub mod error;
mod guards;
mod ledger_metadata;
pub mod managed;
pub mod metrics;
pub mod placement;
mod reader;
pub mod recovery;
pub mod replication;
pub mod tail;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod writer;
