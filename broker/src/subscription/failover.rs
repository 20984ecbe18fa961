//! Failover: one consumer is served, the others stand by.
//!
//! The order is by priority, lower first, then by attachment, so that a new consumer does not
//! displace an equal one. A displaced consumer gives up what it holds: the subscription redelivers
//! that first, in order, to the next (I7).

use aquifer_model::batch::MessageRow;
use aquifer_protocol_api::error::ApiError;

use crate::subscription::consumer::{ConsumerId, Notice};
use crate::subscription::mode::{Attached, Choice, Mode};

/// Attached consumers, the served one first.
#[derive(Debug, Default)]
pub(super) struct Failover {
    /// Ascending by priority, then by time of attachment.
    members: Vec<(i32, ConsumerId)>,
}

impl Failover {
    fn active(&self) -> Option<ConsumerId> {
        self.members.first().map(|(_, consumer)| *consumer)
    }
}

impl Mode for Failover {
    fn attach(&mut self, consumer: ConsumerId, priority: i32) -> Result<Vec<Notice>, ApiError> {
        let before = self.active();
        let at = self
            .members
            .partition_point(|(other, _)| *other <= priority);
        self.members.insert(at, (priority, consumer));
        if self.active() != Some(consumer) {
            return Ok(vec![is_active(consumer, false)]);
        }
        let displaced = before.map(|before| is_active(before, false));
        let served = is_active(consumer, true);
        Ok(displaced.into_iter().chain([served]).collect())
    }

    fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice> {
        let before = self.active();
        self.members.retain(|(_, member)| *member != consumer);
        let next = self.active().filter(|next| Some(*next) != before);
        next.map(|next| is_active(next, true)).into_iter().collect()
    }

    fn room(&self, attached: &Attached<'_>) -> Option<(u64, u64)> {
        attached.room(self.active()?)
    }

    fn choose(&mut self, _: Option<&MessageRow>, attached: &Attached<'_>, _now_ms: u64) -> Choice {
        let with_room = self.active().filter(|id| attached.room(*id).is_some());
        with_room.map_or(Choice::Stop, Choice::Give)
    }
}

fn is_active(consumer: ConsumerId, active: bool) -> Notice {
    Notice::Active { consumer, active }
}
