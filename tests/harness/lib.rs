//! The harness of the integration tests: real server processes on real files and sockets, fault
//! tools, event data, and checkers of what must hold afterwards.
//!
//! Tests wait on conditions, never on time alone; every wait has a deadline that fails the test.

pub mod abuse;
pub mod checker;
pub mod cluster;
pub mod collector;
pub mod command;
pub mod data;
pub mod deliveries;
pub mod etcd;
pub mod fault;
pub mod figures;
pub mod http;
pub mod jwt;
pub mod log;
pub mod mount;
pub mod processes;
pub mod proxy;
pub mod restored;
pub mod server;
pub mod wait;
pub mod wire;
