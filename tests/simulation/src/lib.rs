//! The ledger protocol under a model checker ([`model`]) and in a deterministic simulation
//! ([`cluster`]), and the offload of a ledger under the model checker ([`offload`]).
//!
//! Both run the state machines of `ledger` and `bookie` as they are. The model visits every
//! schedule of small settings; the simulation runs the drivers and the topic log too, in virtual
//! time, over many seeds. Both can put a known [`defect`] back, and must then find it.
#![deny(missing_docs)]

pub mod bookie;
pub mod cluster;
pub mod defect;
pub mod model;
pub mod offload;
