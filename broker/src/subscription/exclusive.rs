//! Exclusive: one consumer, all messages, in order. Readers share this policy.

use aquifer_protocol_api::error::{ApiError, ErrorKind};

use super::ConsumerId;

/// Who is attached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exclusive {
    consumer: Option<ConsumerId>,
}

impl Exclusive {
    /// Attaches the one consumer.
    pub(crate) fn attach(&mut self, consumer: ConsumerId) -> Result<(), ApiError> {
        if self.consumer.is_some() {
            return Err(ApiError::new(
                ErrorKind::FailedPrecondition,
                "the subscription is exclusive and has a consumer",
            )
            .advise("close the other consumer, or subscribe as failover or shared"));
        }
        self.consumer = Some(consumer);
        Ok(())
    }

    /// Detaches it.
    pub(crate) fn detach(&mut self, consumer: ConsumerId) {
        if self.consumer == Some(consumer) {
            self.consumer = None;
        }
    }

    /// Who is served.
    pub(crate) fn active(&self) -> Option<ConsumerId> {
        self.consumer
    }
}
