//! Shared: each entry to the next consumer that has room, round-robin.
//!
//! Every attached consumer that has room is in the ring, each at most once; one without room drops
//! out when its turn comes and is put back by whatever gives it room. So a turn costs no walk over
//! consumers that cannot take anything.

use std::collections::{BTreeSet, VecDeque};

use super::ConsumerId;

/// Whose turn it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    ring: VecDeque<ConsumerId>,
    queued: BTreeSet<ConsumerId>,
}

impl Shared {
    /// Gives a consumer a turn if it has none: to be called whenever it may have got room.
    pub(crate) fn wake(&mut self, consumer: ConsumerId) {
        if self.queued.insert(consumer) {
            self.ring.push_back(consumer);
        }
    }

    /// Forgets a consumer. Its place in the ring goes when its turn comes, since it has no room then,
    /// or when there are more such places than others: thousands may leave at once.
    pub(crate) fn detach(&mut self, consumer: ConsumerId) {
        if self.queued.remove(&consumer) && self.ring.len() > 2 * self.queued.len() {
            self.ring.retain(|member| self.queued.contains(member));
        }
    }

    /// The next consumer with room; it goes to the end of the ring.
    pub(crate) fn next(&mut self, has_room: impl Fn(ConsumerId) -> bool) -> Option<ConsumerId> {
        while let Some(consumer) = self.ring.pop_front() {
            if has_room(consumer) {
                self.ring.push_back(consumer);
                return Some(consumer);
            }
            self.queued.remove(&consumer);
        }
        None
    }

    /// Everybody who may have room.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = ConsumerId> + '_ {
        let ring = self.ring.iter().copied();
        ring.filter(|consumer| self.queued.contains(consumer))
    }
}
