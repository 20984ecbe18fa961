//! The narrow port between wire protocols and the broker: a handler implements
//! [`handler::ProtocolHandler`] and sees the broker only through [`broker::BrokerApi`], in plain
//! model types. No wire type, no storage type and no broker type appears here.
#![deny(missing_docs)]

pub mod broker;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod context;
pub mod error;
pub mod handler;
