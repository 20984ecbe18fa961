//! What unloaded topics were left with because a subscription needs it, so that a backlog costs no
//! load at each round of the sweep. It is a memory only: what it has forgotten costs a visit.

use std::collections::HashMap;

use aquifer_metadata::store::Revision;
use aquifer_model::id::Index;
use aquifer_model::topic::TopicName;
use parking_lot::Mutex;

use crate::topic::trimming::Rest;

/// Topics whose rest is remembered: some 4 MiB.
const RESTS_MAX: usize = 65_536;

/// What unloaded topics were left with.
#[derive(Default)]
pub(crate) struct Rests {
    known: Mutex<HashMap<u64, Rest>>,
}

impl Rests {
    /// A topic is unloaded, its logs closed in order.
    pub(crate) fn note(&self, topic: &TopicName, rest: Rest) {
        let mut known = self.known.lock();
        let key = number(topic);
        // Any other makes room: what is forgotten costs a visit.
        if known.len() >= RESTS_MAX
            && !known.contains_key(&key)
            && let Some(other) = known.keys().next().copied()
        {
            known.remove(&other);
        }
        known.insert(key, rest);
    }

    /// The end of what no subscription needs, if that is known.
    pub(crate) fn limit(&self, topic: &TopicName, revision: Revision) -> Option<Index> {
        let known = self.known.lock();
        let rest = known.get(&number(topic));
        let rest = rest.filter(|rest| rest.revision == revision);
        rest.map(|rest| rest.limit)
    }

    /// Whether it is known that a subscription needs what ends at `end`.
    pub(crate) fn keeps(&self, topic: &TopicName, revision: Revision, end: Index) -> bool {
        let known = self.known.lock();
        let rest = known.get(&number(topic));
        rest.is_some_and(|rest| rest.revision == revision && end > rest.limit)
    }
}

/// Stands for a topic's name.
fn number(topic: &TopicName) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    topic.hash(&mut hasher);
    hasher.finish()
}
