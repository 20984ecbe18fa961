//! Consumer sessions that their clients have closed. The notice comes through the urgent queue,
//! which never waits; it takes effect behind the requests that the client had put into the mailbox
//! before, so that acknowledgements right before an orderly close count, and before whatever comes
//! after it.

use std::collections::HashMap;

use crate::subscription::ConsumerId;
use crate::topic::event::SubscriptionId;

/// See the module. Has an entry for each session whose client has asked for something and not
/// closed it.
#[derive(Default)]
pub(super) struct Closing {
    /// Requests of a session that were handled.
    handled: HashMap<ConsumerId, u64>,
    /// Closed sessions, with the number of requests that go before.
    waiting: HashMap<ConsumerId, (SubscriptionId, u64)>,
}

impl Closing {
    /// A session is closed behind this many requests. True when they have all been handled.
    pub(super) fn behind(&mut self, id: SubscriptionId, consumer: ConsumerId, sent: u64) -> bool {
        if self.handled.get(&consumer).copied().unwrap_or(0) >= sent {
            self.handled.remove(&consumer);
            return true;
        }
        self.waiting.insert(consumer, (id, sent));
        false
    }

    /// A request was handled. Answers the subscription of its session when that is to be closed
    /// now.
    pub(super) fn handled(&mut self, consumer: ConsumerId) -> Option<SubscriptionId> {
        let handled = self.handled.entry(consumer).or_insert(0);
        *handled += 1;
        let (id, sent) = *self.waiting.get(&consumer)?;
        if *handled < sent {
            return None;
        }
        self.handled.remove(&consumer);
        self.waiting.remove(&consumer);
        Some(id)
    }
}
