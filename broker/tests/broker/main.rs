//! The broker through its public API, over bookies and metadata in memory that fail on demand.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod admin;
mod anywhere;
mod at_rest;
mod backup;
mod balance;
mod bounds;
mod budgets;
mod clearing;
mod cluster;
mod consume;
mod cursors;
mod damage;
mod faults;
mod hand_over;
mod lifecycle;
mod limits;
mod offload;
mod partitions;
mod policies;
mod producers;
mod publish;
mod pull;
mod removal;
mod retention;
mod security;
mod support;
mod termination;
