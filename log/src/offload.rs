//! Offload: closed ledgers of a log go into objects, and are read from there.
//!
//! Owns: which ledgers are due, of logs that are open and by the record of one that is not, the
//! attempt at one ledger, what is done about attempts that failed. What an attempt may change is in
//! the records of ledgers and objects (`aquifer_ledger::offload`, `aquifer_ledger::objects`); every
//! step is a compare-and-swap there.
//! Invariants:
//! - Only sealed segments are offloaded, so that loading a topic never needs an object.
//! - An object counts only after every byte of it was read back and checked (H23, I10).
//! - Copies at bookies go only after a lag, while the object is there as it was written, and only
//!   of what no load of the topic replays (`droppable`).
//! - A re-import brings copies back beside the object, which stays the copy that counts.
//! - What an attempt leaves behind is written down before it begins, and the reaper finds it there.

pub mod adopt;
pub mod audit;
pub mod figures;
pub mod offloader;
pub mod planned;
pub mod pressure;
pub mod reaper;
pub mod scrub;
pub mod tier;

mod care;
mod due;
mod import;
mod importing;
mod known;
mod left;
pub(crate) mod upload;

pub use care::Offloading;
pub(crate) use known::SharedOffloadState;
