//! The write-ahead log: the only thing that an acknowledgement waits for. Entries, fences, LAC
//! and deletions of all ledgers share this one ordered log.
//!
//! docs/formats.md defines the bytes, and what torn, corrupt and limbo mean.

pub mod commit;
pub mod group_commit;
pub mod mark;
pub mod progress;
pub mod queue;
pub mod record;
pub mod replay;
pub mod segment;
pub mod segments;
