//! The broker: topics, subscriptions, dispatch, policies, administration. It implements `BrokerApi`
//! and owns no durable state: everything that survives it is in the topic logs and in the metadata
//! store.
//!
//! It never speaks a wire protocol and never talks to a bookie except through the ledger crate.
#![deny(missing_docs)]

pub mod config;
pub mod cursor_log;
pub mod error;
pub mod subscription;
pub mod topic;

mod api;
mod backup;
mod balance;
mod broker;
mod bundle;
mod cluster_key;
mod context;
mod members;
mod metrics;
mod namespace;
mod offload;
mod pages;
mod peers;
mod policies;
mod quota;
mod registration;
mod security;
mod sweep;
mod topics;
mod traffic;

pub use balance::config::BalanceConfig;
pub use broker::Broker;
pub use config::BrokerConfig;
pub use context::BrokerDeps;
pub use error::BrokerError;
pub use metrics::HISTOGRAMS;
pub use peers::{Lines, NoReport, Peers};
pub use security::config::AuthConfig;
pub use security::jwt::JwtIssuer;
pub use security::{FirstToken, create_first_token, token_id};
