//! Coordination: a versioned key-value store with transactions, watches and sessions, its keys and
//! its records. Two implementations, one contract: [`embedded`] for
//! standalone, [`etcd`] for clusters.
#![deny(missing_docs)]

pub mod cache;
#[cfg(any(test, feature = "contract-tests"))]
pub mod contract;
pub mod election;
pub mod embedded;
pub mod error;
pub mod etcd;
#[cfg(any(test, feature = "testing"))]
pub mod intercept;
pub mod keys;
pub mod lease;
mod limits;
pub mod measured;
pub mod record;
pub mod scan;
#[cfg(test)]
mod scripted;
pub mod segments;
pub mod snapshot;
pub mod store;
pub mod update;
