//! Shared: each entry to the next consumer that has room, round-robin.
//!
//! Every attached consumer that has room is in the ring, each at most once; one without room drops
//! out when its turn comes and is put back by whatever gives it room. So a turn costs no walk over
//! consumers that cannot take anything.

use std::collections::{BTreeSet, VecDeque};

use aquifer_model::batch::MessageRow;
use aquifer_protocol_api::error::ApiError;

use crate::subscription::consumer::{ConsumerId, Notice};
use crate::subscription::mode::{Attached, Choice, Mode};

/// Consumers whose credit is summed up for one read.
const READ_CONSUMERS_MAX: usize = 32;

/// The consumer whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Shared {
    ring: VecDeque<ConsumerId>,
    queued: BTreeSet<ConsumerId>,
}

impl Mode for Shared {
    fn keeps_order(&self) -> bool {
        false
    }

    /// Its turns begin when it has room.
    fn attach(&mut self, _consumer: ConsumerId, _priority: i32) -> Result<Vec<Notice>, ApiError> {
        Ok(Vec::new())
    }

    /// Its place in the ring goes when its turn comes, since it has no room then, or when there are
    /// more such places than others: thousands may leave at once.
    fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice> {
        if self.queued.remove(&consumer) && self.ring.len() > 2 * self.queued.len() {
            self.ring.retain(|member| self.queued.contains(member));
        }
        Vec::new()
    }

    /// Gives a consumer a turn if it has none.
    fn wake(&mut self, consumer: ConsumerId) {
        if self.queued.insert(consumer) {
            self.ring.push_back(consumer);
        }
    }

    fn room(&self, attached: &Attached<'_>) -> Option<(u64, u64)> {
        let waiting = self.ring.iter().filter(|id| self.queued.contains(id));
        waiting
            .filter_map(|id| attached.room(*id))
            .take(READ_CONSUMERS_MAX)
            .reduce(|a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1)))
    }

    /// The next consumer with room; it goes to the end of the ring.
    fn choose(&mut self, _: Option<&MessageRow>, attached: &Attached<'_>, _now_ms: u64) -> Choice {
        while let Some(consumer) = self.ring.pop_front() {
            if attached.room(consumer).is_some() {
                self.ring.push_back(consumer);
                return Choice::Give(consumer);
            }
            self.queued.remove(&consumer);
        }
        Choice::Stop
    }
}
