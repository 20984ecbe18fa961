//! Exclusive: one consumer, all messages, in order. Readers share this mode.

use aquifer_model::batch::MessageRow;
use aquifer_protocol_api::error::{ApiError, ErrorKind};

use crate::subscription::consumer::{ConsumerId, Notice};
use crate::subscription::mode::{Attached, Choice, Mode};

/// The one consumer.
#[derive(Debug, Default)]
pub(super) struct Exclusive {
    consumer: Option<ConsumerId>,
}

impl Mode for Exclusive {
    fn attach(&mut self, consumer: ConsumerId, _priority: i32) -> Result<Vec<Notice>, ApiError> {
        if self.consumer.is_some() {
            return Err(ApiError::new(
                ErrorKind::FailedPrecondition,
                "the subscription is exclusive and has a consumer",
            )
            .advise("close the other consumer, or subscribe as failover or shared"));
        }
        self.consumer = Some(consumer);
        Ok(Vec::new())
    }

    fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice> {
        if self.consumer == Some(consumer) {
            self.consumer = None;
        }
        Vec::new()
    }

    fn room(&self, attached: &Attached<'_>) -> Option<(u64, u64)> {
        attached.room(self.consumer?)
    }

    fn choose(&mut self, _: Option<&MessageRow>, attached: &Attached<'_>, _now_ms: u64) -> Choice {
        let with_room = self.consumer.filter(|id| attached.room(*id).is_some());
        with_room.map_or(Choice::Stop, Choice::Give)
    }
}
