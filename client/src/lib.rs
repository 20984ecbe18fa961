//! The Rust SDK of Aquifer: producers, consumers, readers and administration.
//!
//! ```no_run
//! use aquifer_client::{Client, Message};
//!
//! # async fn example() -> Result<(), aquifer_client::ClientError> {
//! let client = Client::builder().url("http://127.0.0.1:7650").build()?;
//!
//! let producer = client.producer("greetings").open().await?;
//! let receipt = producer.send(Message::new("hello")).await?; // durable when this returns
//! println!("stored at {:?}", receipt.index);
//!
//! let consumer = client.consumer("greetings", "welcome-desk").open().await?;
//! let message = consumer.receive().await?;
//! println!("{:?}", message.payload);
//! consumer.ack(&message).await?; // durable when this returns: never delivered again
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is cheap to clone and shares one HTTP/2 connection per broker. What is retryable is
//! retried with jitter behind the scenes, without breaking order (I7) or storing a message twice
//! (I8); what reaches the application is a [`ClientError`] that says whether trying again may help
//! and what may have become of the request.
//!
//! Memory is bounded: by [`ClientBuilder::memory_limit_bytes`] for everything that producers hold,
//! and by the queue sizes of each consumer and reader.
#![deny(missing_docs)]

pub mod admin;
pub mod backup;
mod batch;
mod client;
mod completion;
mod compression;
mod connection;
pub mod consumer;
mod context;
mod credentials;
pub mod error;
mod lookup;
pub mod message;
pub mod producer;
pub mod reader;
mod retry;
pub mod security;
mod session;
pub mod stored;
pub mod topic;
mod wake;

pub use admin::Admin;
pub use aquifer_proto::v1::ErrorCode;
pub use client::{Client, ClientBuilder};
pub use consumer::{Consumer, ConsumerBuilder, PendingAck};
pub use credentials::{ClientCredentials, Token, TokenSource};
pub use error::{ClientError, ErrorKind, Outcome};
pub use message::{Damaged, Message, ReceivedMessage, SendReceipt};
pub use producer::{Batching, PendingSend, Producer, ProducerBuilder, StoredBefore};
pub use reader::{Reader, ReaderBuilder};
pub use security::Security;
pub use topic::{ReadOptions, Topic};

pub use aquifer_model::batch::Compression;
pub use aquifer_model::id::Index;
pub use aquifer_model::place::Place;
pub use aquifer_model::position::Position;
pub use aquifer_model::subscription::SubscriptionType;
pub use aquifer_runtime::net::tls::ClientTlsConfig;
