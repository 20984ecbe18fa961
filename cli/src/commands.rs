//! The tools: each is a program against the client SDK, one file each.

pub mod consume;
mod message;
pub mod perf;
pub mod produce;
pub mod read;
pub mod topic;
