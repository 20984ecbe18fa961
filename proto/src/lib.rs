//! The wire: messages and services generated from `proto/*.proto`, and their conversion to and
//! from the vocabulary of `aquifer-model`.
#![deny(missing_docs)]

/// Everything of package `aquifer.v1`, as generated. The .proto files hold the documentation.
pub mod v1 {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        clippy::cast_possible_truncation,
        reason = "generated code; documented in the .proto files"
    )]
    tonic::include_proto!("aquifer.v1");
}

pub mod codec;
pub mod convert;
pub mod shape;

/// Every .proto file as an encoded `FileDescriptorSet`, with options and comments.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The protocol version that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Metadata key of unary replies that carries an encoded [`v1::ErrorDetail`].
pub const ERROR_TRAILER: &str = "aquifer-error-bin";

/// Every method of every service of package `aquifer.v1`, `SERVICE/METHOD`, so that tests can see
/// that they have gone through all of them.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
