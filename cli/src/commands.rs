//! The tools: each is a program against the client SDK, a file for each or for two that belong
//! together.

pub mod audit;
pub mod backup;
pub mod bookie;
pub mod cluster;
pub mod completion;
pub mod consume;
pub mod context;
pub mod doctor;
pub mod ledger;
mod message;
pub mod object;
pub mod perf;
pub mod plan;
pub mod policy;
pub mod produce;
pub mod read;
pub mod role;
pub mod security;
pub mod subscription;
pub mod support_bundle;
pub mod tenancy;
pub mod tls;
pub mod token;
pub mod topic;
