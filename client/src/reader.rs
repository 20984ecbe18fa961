//! Reading without a subscription.

use std::sync::Arc;

use aquifer_model::id::Index;
use aquifer_model::place::Place;

use crate::client::Context;
use crate::error::{ClientError, Result};
use crate::message::ReceivedMessage;

/// x
#[derive(Clone)]
pub struct ReaderBuilder {
    context: Arc<Context>,
    topic: String,
}

impl ReaderBuilder {
    pub(crate) fn new(context: Arc<Context>, topic: &str) -> ReaderBuilder {
        ReaderBuilder {
            context,
            topic: topic.to_owned(),
        }
    }
    /// x
    #[must_use]
    pub fn start(self, start: Place) -> ReaderBuilder {
        let _ = start;
        self
    }
    /// x
    #[must_use]
    pub fn queue_messages(self, messages: usize) -> ReaderBuilder {
        let _ = messages;
        self
    }
    /// x
    #[must_use]
    pub fn queue_bytes(self, bytes: usize) -> ReaderBuilder {
        let _ = bytes;
        self
    }
    /// x
    pub async fn open(self) -> Result<Reader> {
        let _ = (&self.context, &self.topic);
        Err(ClientError::closed("reader"))
    }
}

/// x
pub struct Reader {}

impl Reader {
    /// x
    pub async fn next(&self) -> Result<ReceivedMessage> {
        Err(ClientError::closed("reader"))
    }
    /// x
    pub async fn next_available(&self) -> Result<Option<ReceivedMessage>> {
        Ok(None)
    }
    /// x
    pub async fn end_index(&self) -> Result<Index> {
        Ok(Index(0))
    }
    /// x
    pub async fn seek(&self, place: Place) -> Result<Index> {
        let _ = place;
        Err(ClientError::closed("reader"))
    }
    /// x
    pub async fn close(&self) -> Result<()> {
        Ok(())
    }
}
