//! The vocabulary of Aquifer: identifiers, names, positions, quorums, policies, limits and the
//! layout of an entry. No I/O, no async, no clocks: every other crate speaks in these types.
//!
//! Terms are defined in `docs/glossary.md`, stored bytes in `docs/formats.md`.
#![deny(missing_docs)]

pub mod backup;
pub mod batch;
pub mod bundle;
pub mod bytes_at;
pub mod checksum;
pub mod content;
pub mod entry;
pub mod extensions;
pub mod format;
pub mod hash;
pub mod id;
pub mod inventory;
pub mod limits;
pub mod listener;
pub mod load;
pub mod outcome;
pub mod place;
pub mod policy;
pub mod position;
pub mod quorum;
pub mod ranges;
pub mod sizing;
pub mod stats;
pub mod storage;
pub mod subscription;
pub mod topic;
pub mod trace;
