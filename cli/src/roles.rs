//! The servers: each role wires its parts together and contains nothing else. What several roles
//! do alike stands beside them: the life of a server process ([`process`]), its settings
//! ([`settings`]), its bookie ([`storage`]), its broker ([`serving`]) and its way into a cluster
//! ([`membership`]).

pub mod autorecovery;
pub mod bookie;
pub mod broker;
pub mod dev;
pub mod membership;
pub mod settings;
pub mod standalone;
pub mod storage;

mod http;
mod loss;
mod open_files;
mod process;
mod quiet;
mod serving;
