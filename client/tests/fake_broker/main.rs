//! The SDK against a broker whose every answer the test decides.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test a broken assumption is a failure; the lint knows tests only by attribute"
)]

mod consume;
mod credentials;
mod fake;
mod held;
mod partitions;
mod produce;
mod read;
