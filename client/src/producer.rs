//! Publishing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use aquifer_model::batch::Compression;

use crate::client::Context;
use crate::error::{ClientError, Result};
use crate::message::{Message, SendReceipt};

/// When a batch is complete. The default is adaptive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// A batch is sent when it has this many bytes before compression.
    pub bytes_max: usize,
    /// A batch is sent when it has this many messages.
    pub messages_max: u32,
    /// A batch is sent when its first message has waited this long.
    pub delay_max: Duration,
    /// Send at once when nothing is in flight, and whenever an acknowledgement returns: low
    /// latency when quiet, full batches when busy. Without it only the three bounds count.
    pub adaptive: bool,
}

impl Default for Batching {
    /// Adaptive, up to 128 KiB, 65,536 messages and 1 ms.
    fn default() -> Batching {
        Batching {
            bytes_max: 128 * 1024,
            messages_max: aquifer_model::limits::BATCH_MESSAGES_MAX,
            delay_max: Duration::from_millis(1),
            adaptive: true,
        }
    }
}

impl Batching {
    /// Every message alone in its batch.
    #[must_use]
    pub fn disabled() -> Batching {
        Batching {
            messages_max: 1,
            ..Batching::default()
        }
    }

    /// Only the bounds count: a batch waits until one of them is reached, even when nothing is in
    /// flight.
    #[must_use]
    pub fn explicit(bytes_max: usize, messages_max: u32, delay_max: Duration) -> Batching {
        Batching {
            bytes_max,
            messages_max,
            delay_max,
            adaptive: false,
        }
    }
}

/// Prepares a [`Producer`].
#[derive(Clone)]
pub struct ProducerBuilder {
    context: Arc<Context>,
    topic: String,
}

impl ProducerBuilder {
    pub(crate) fn new(context: Arc<Context>, topic: &str) -> ProducerBuilder {
        ProducerBuilder {
            context,
            topic: topic.to_owned(),
        }
    }
    /// x
    #[must_use]
    pub fn name(self, name: &str) -> ProducerBuilder {
        let _ = name;
        self
    }
    /// x
    #[must_use]
    pub fn batching(self, batching: Batching) -> ProducerBuilder {
        let _ = batching;
        self
    }
    /// x
    #[must_use]
    pub fn compression(self, compression: Compression) -> ProducerBuilder {
        let _ = compression;
        self
    }
    /// x
    #[must_use]
    pub fn messages_in_flight_max(self, messages: usize) -> ProducerBuilder {
        let _ = messages;
        self
    }
    /// x
    #[must_use]
    pub fn bytes_in_flight_max(self, bytes: usize) -> ProducerBuilder {
        let _ = bytes;
        self
    }
    /// x
    #[must_use]
    pub fn send_timeout(self, timeout: Option<Duration>) -> ProducerBuilder {
        let _ = timeout;
        self
    }
    /// x
    #[must_use]
    pub fn take_over(self, take_over: bool) -> ProducerBuilder {
        let _ = take_over;
        self
    }
    /// x
    #[must_use]
    pub fn initial_sequence_id(self, id: u64) -> ProducerBuilder {
        let _ = id;
        self
    }
    /// x
    pub async fn open(self) -> Result<Producer> {
        let _ = (&self.context, &self.topic);
        Err(ClientError::Closed("producer"))
    }
}

/// x
#[derive(Clone)]
pub struct Producer {
    name: String,
}

impl Producer {
    /// x
    pub async fn send(&self, message: Message) -> Result<SendReceipt> {
        self.enqueue(message).await?.await
    }
    /// x
    pub async fn enqueue(&self, message: Message) -> Result<PendingSend> {
        let _ = message;
        Err(ClientError::Closed("producer"))
    }
    /// x
    pub async fn flush(&self) -> Result<()> {
        Ok(())
    }
    /// x
    pub async fn close(&self) -> Result<()> {
        Ok(())
    }
    /// x
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// x
    #[must_use]
    pub fn last_sequence_id(&self) -> Option<u64> {
        None
    }
}

/// x
#[must_use = "the message is sent either way, but only this says whether it was stored"]
pub struct PendingSend {}

impl Future for PendingSend {
    type Output = Result<SendReceipt>;
    fn poll(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err(ClientError::Closed("producer")))
    }
}
