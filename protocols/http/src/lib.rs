//! REST: administration as JSON under `/api/v1`, for whatever speaks HTTP.
//!
//! There is one implementation. A request becomes the message of the native protocol that the
//! descriptors name for its path, that message goes through the same service as one that came over
//! gRPC, in this process, and the answer becomes JSON. Admission, deadlines, and what is checked of
//! a caller lie in that service: nothing here decides who may do what.
//!
//! - [`transcode`] is free of I/O: requests to messages, messages to answers. Anything that a
//!   stranger sends gives a message or a [`problem::Problem`], never a panic.
//! - [`service`] is the HTTP service around it.
//! - [`openapi`] describes it all, from the same descriptors.
#![deny(missing_docs)]

mod decode;
mod json;
pub mod openapi;
mod page;
pub mod problem;
mod routes;
pub mod service;
mod template;
pub mod transcode;
