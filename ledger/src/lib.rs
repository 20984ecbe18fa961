//! The ledger protocol, after BookKeeper's, and nothing above it: writing, recovering and reading
//! single ledgers, their records, their deletion, and the marks of those that lack replicas.
//!
//! The protocol lives in state machines without I/O, threads or clocks: [`writer::machine`],
//! [`recovery::machine`]. Drivers feed them events and carry out their actions against a
//! [`transport::BookieTransport`] and a metadata store. This crate knows neither topics nor
//! bookies' insides.
#![deny(missing_docs)]

pub mod bookie_client;
pub mod bookie_directory;
pub mod context;
pub mod deletion;
pub mod duties;
pub mod error;
pub mod guards;
pub mod holds;
pub mod index;
pub mod ledger_metadata;
pub mod marks;
pub mod members;
pub mod metrics;
pub mod objects;
pub mod offload;
pub mod placement;
pub mod reader;
pub mod recovery;
mod slots;
pub mod tail;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod view;
pub mod writer;
