//! Test doubles for this crate's seams, for its tests and those of crates above it.
