//! What the application asks of a consumer or reader. Plain data.

use aquifer_model::place::Place;
use aquifer_proto::v1;

use super::credit::Amount;
use crate::error::{ClientError, Result};

/// Default size of the queue of a consumer that serves its subscription alone, and of a reader, in
/// messages: the bytes bound it, unless messages are small.
pub const DEFAULT_QUEUE_MESSAGES: usize = 20_000;
/// Default size of the queue of one of many consumers, in messages: what one has taken, the others
/// do not get.
pub const DEFAULT_SHARED_QUEUE_MESSAGES: usize = 1_000;
/// Default size of the queue of a consumer or reader, in bytes as stored.
pub const DEFAULT_QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// What the application asked for.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What it is called in errors.
    pub(crate) what: &'static str,
    /// Empty for a reader.
    pub(crate) subscription: String,
    pub(crate) kind: v1::SubscriptionType,
    pub(crate) start: Place,
    pub(crate) name: String,
    pub(crate) priority: i32,
    pub(crate) queue: Amount,
}

impl Settings {
    /// Whether every setting is within its bounds.
    pub(crate) fn check(&self) -> Result<()> {
        if self.queue.messages == 0 || self.queue.bytes == 0 {
            let text = "the queue must have room for a message and a byte";
            return Err(ClientError::Invalid(text.to_owned()));
        }
        Ok(())
    }
}

/// The queue where the application did not say how large it is.
pub(crate) fn default_queue() -> Amount {
    Amount {
        messages: DEFAULT_QUEUE_MESSAGES as u64,
        bytes: DEFAULT_QUEUE_BYTES as u64,
    }
}
