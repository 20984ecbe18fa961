//! Consumer sessions that their clients have closed. The notice comes through the urgent queue, which
//! never waits; it takes effect behind the requests that the client had put into the mailbox before,
//! so that acknowledgements right before an orderly close count.

use std::collections::VecDeque;

use crate::subscription::ConsumerId;
use crate::topic::event::SubscriptionId;

/// See the module.
#[derive(Default)]
pub(super) struct Closing {
    /// Events of the mailbox that were handled since the topic was loaded.
    handled: u64,
    /// Sessions in the order of their notices, with the event that each waits for.
    waiting: VecDeque<(u64, SubscriptionId, ConsumerId)>,
}

impl Closing {
    /// A session is closed while `queued` events wait in the mailbox.
    pub(super) fn behind(&mut self, queued: usize, id: SubscriptionId, consumer: ConsumerId) {
        let queued = u64::try_from(queued).unwrap_or(u64::MAX);
        let due = self.handled.saturating_add(queued);
        self.waiting.push_back((due, id, consumer));
    }

    /// An event of the mailbox was handled.
    pub(super) fn handled(&mut self) {
        self.handled += 1;
    }

    /// A session whose requests have all been handled.
    pub(super) fn due(&mut self) -> Option<(SubscriptionId, ConsumerId)> {
        let (due, _, _) = self.waiting.front()?;
        if *due > self.handled {
            return None;
        }
        let (_, id, consumer) = self.waiting.pop_front()?;
        Some((id, consumer))
    }
}
