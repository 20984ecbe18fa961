//! The servers: each file wires the parts of one role together and contains nothing else.

pub mod standalone;
