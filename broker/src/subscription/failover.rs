//! Failover: one consumer is served, the others stand by.
//!
//! The order is by priority, lower first, then by attachment, so that a consumer that comes does
//! not displace an equal one. Whoever is displaced gives up what it holds: the subscription
//! redelivers that first, in order, to the next (I7).

use super::ConsumerId;

/// Attached consumers, the served one first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failover {
    /// Ascending by priority, then by time of attachment.
    members: Vec<(i32, ConsumerId)>,
}

/// A change of who is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) from: Option<ConsumerId>,
    pub(crate) to: Option<ConsumerId>,
}

impl Failover {
    /// Adds a consumer behind its equals; says whether it is served from now on, instead of whom.
    pub(crate) fn attach(&mut self, consumer: ConsumerId, priority: i32) -> Option<Switch> {
        let before = self.active();
        let at = self
            .members
            .partition_point(|(other, _)| *other <= priority);
        self.members.insert(at, (priority, consumer));
        self.switch(before)
    }

    /// Removes a consumer; says who is served instead, if it was served.
    pub(crate) fn detach(&mut self, consumer: ConsumerId) -> Option<Switch> {
        let before = self.active();
        self.members.retain(|(_, member)| *member != consumer);
        self.switch(before)
    }

    /// Who is served.
    pub(crate) fn active(&self) -> Option<ConsumerId> {
        self.members.first().map(|(_, consumer)| *consumer)
    }

    fn switch(&self, before: Option<ConsumerId>) -> Option<Switch> {
        let after = self.active();
        (before != after).then_some(Switch {
            from: before,
            to: after,
        })
    }
}
