//! Objects that hold ledgers: their format, the stores that have them, and where these are.
//!
//! [`mod@format`] is plain code over bytes. [`store::ColdStore`] is the seam to object stores; the
//! one over a library is in [`library`], whose types no other module sees. [`object`] reads objects
//! by their index, [`location`] knows which stores a cluster uses, and [`backup`] has the files of
//! backups. This crate knows neither bookies nor topic logs.
#![deny(missing_docs)]

pub mod backup;
pub mod cache;
pub mod config;
pub mod counted;
pub mod disk;
pub mod error;
pub mod format;
mod hedge;
pub mod library;
pub mod listing;
pub mod location;
pub mod object;
pub mod paced;
mod read_only;
pub mod replaced;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod upload;
