//! The narrow ports between wire protocols and the broker: a handler implements
//! [`handler::ProtocolHandler`] and sees the broker only through narrow traits, in plain model
//! types: [`data_plane::DataPlane`] moves messages, [`admin::Admin`] and [`operator::Operator`]
//! manage what belongs to tenants and to the cluster, [`backup::Backups`] backs it up,
//! [`security::Security`] keeps tokens and grants. Each of their calls needs one
//! [`access::Access`]. The caller is found out by [`security::Authenticator`]. No wire type,
//! no storage type and no broker type appears here.
#![deny(missing_docs)]

pub mod access;
pub mod admin;
pub mod backup;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod consumer;
pub mod context;
pub mod data_plane;
pub mod error;
pub mod handler;
pub mod operator;
pub mod producer;
pub mod pull;
pub mod scope;
pub mod security;
pub mod session;

use crate::admin::Admin;
use crate::backup::Backups;
use crate::data_plane::DataPlane;
use crate::operator::Operator;
use crate::security::{Authenticator, Security};

/// A broker: all ports.
pub trait BrokerApi: DataPlane + Admin + Operator + Backups + Security + Authenticator {}

impl<T: DataPlane + Admin + Operator + Backups + Security + Authenticator> BrokerApi for T {}
