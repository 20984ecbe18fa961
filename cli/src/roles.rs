//! The servers: each role wires its parts together and contains nothing else. What several roles
//! do alike stands beside them: the life of a server process ([`process`]), its parts and the order
//! of their stop ([`server`]), what it prints when it serves ([`greeting`]), its settings
//! ([`settings`]), its bookie ([`storage`]), its broker ([`serving`]) and its way into a cluster
//! ([`membership`]).

pub mod auth;
pub mod autorecovery;
pub mod bookie;
pub mod broker;
pub mod cold;
pub mod dev;
pub mod membership;
pub mod offloader;
pub mod process;
pub mod serving;
pub mod settings;
pub mod standalone;
pub mod storage;
pub mod tls;

mod greeting;
mod health;
mod http;
mod loss;
mod open_files;
mod quiet;
mod server;
