//! The SDK against a broker whose every answer the test decides.

mod consume;
mod fake;
mod produce;
mod read;
