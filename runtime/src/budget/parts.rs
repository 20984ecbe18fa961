//! The parts of a budget by the names of those that share it.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

use crate::budget::ByteBudget;

/// Parts that are not in use are dropped when there are twice as many as after the last time, and
/// this.
const PRUNE_ABOVE: usize = 64;
/// Parts of another weight than 1 that are known at once; further ones have weight 1.
const WEIGHTS_MAX: usize = 4_096;

/// A budget of which each tenant has a part.
#[derive(Debug)]
pub struct BudgetParts<K> {
    whole: ByteBudget,
    parts: Mutex<Parts<K>>,
}

#[derive(Debug)]
struct Parts<K> {
    known: HashMap<K, ByteBudget>,
    /// Of parts whose weight is not 1, whether they are known or not.
    weights: HashMap<K, u32>,
    after_prune: usize,
}

impl<K: Eq + Hash> BudgetParts<K> {
    /// Divides a budget.
    #[must_use]
    pub fn new(whole: ByteBudget) -> BudgetParts<K> {
        BudgetParts {
            whole,
            parts: Mutex::new(Parts {
                known: HashMap::new(),
                weights: HashMap::new(),
                after_prune: 0,
            }),
        }
    }

    /// What is divided.
    #[must_use]
    pub fn whole(&self) -> &ByteBudget {
        &self.whole
    }

    /// The part of one of those that share the budget.
    #[must_use]
    pub fn of(&self, key: K) -> ByteBudget {
        let mut parts = self.parts.lock();
        if let Some(part) = parts.known.get(&key) {
            return part.clone();
        }
        if parts.known.len() > 2 * parts.after_prune + PRUNE_ABOVE {
            parts.known.retain(|_, part| part.is_in_use());
            parts.after_prune = parts.known.len();
        }
        let part = self.whole.part();
        if let Some(weight) = parts.weights.get(&key) {
            part.weigh(*weight);
        }
        parts.known.insert(key, part.clone());
        part
    }

    /// Gives the part of one of those that share the budget a weight: of bytes that come back while
    /// several parts wait, it gets that many times the share of one of weight 1, which a part has
    /// unless said.
    pub fn weigh(&self, key: K, weight: u32) {
        let mut parts = self.parts.lock();
        if let Some(part) = parts.known.get(&key) {
            part.weigh(weight);
        }
        if weight <= 1 {
            parts.weights.remove(&key);
        } else if parts.weights.len() < WEIGHTS_MAX || parts.weights.contains_key(&key) {
            parts.weights.insert(key, weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::budget::{BytePermit, SMALL};

    const UNITS: usize = 64 * 1024;
    const PIECE: usize = UNITS / 1_024;

    /// Takes everything that a part gives, in pieces, over a number of topics.
    fn flood(part: &ByteBudget, topics: usize) -> Vec<BytePermit> {
        let topics: Vec<ByteBudget> = (0..topics).map(|_| part.child(usize::MAX)).collect();
        fill(&topics)
    }

    /// Takes everything that children get, in pieces.
    fn fill(children: &[ByteBudget]) -> Vec<BytePermit> {
        let mut held = Vec::new();
        loop {
            let before = held.len();
            for child in children {
                held.extend(child.try_acquire(PIECE));
            }
            if held.len() == before {
                return held;
            }
        }
    }

    #[test]
    fn a_part_alone_gets_nearly_everything_but_the_reserve() {
        let root = ByteBudget::new(UNITS);
        let part = root.part();
        assert!(part.child(usize::MAX).room_bytes() >= UNITS / 2);
        let held = flood(&part, 100);
        assert!(root.used_bytes() >= UNITS / 2, "{}", root.used_bytes());
        drop(held);
        assert_eq!(root.used_bytes(), 0);
        assert_eq!(root.node.parts_in_use.load(Ordering::Relaxed), 0);
    }

    /// However many topics a tenant has, and however many tenants keep what they have: another one
    /// can go on for ever.
    #[test]
    fn parts_that_give_nothing_back_leave_bytes_to_another() {
        for (tenants, topics) in [(1, 1), (1, 10_000), (2, 100), (5, 1_000)] {
            let root = ByteBudget::new(UNITS);
            let stalled: Vec<ByteBudget> = (0..tenants).map(|_| root.part()).collect();
            let held: Vec<_> = stalled.iter().map(|part| flood(part, topics)).collect();
            let victim = root.part();
            let topics = [victim.child(usize::MAX), victim.child(usize::MAX)];
            let mut busy = VecDeque::new();
            for turn in 0..1_000 {
                let permit = topics[turn % 2].try_acquire(PIECE);
                assert!(permit.is_some(), "{tenants} tenants, turn {turn}");
                busy.push_back(permit);
                if busy.len() > 2 {
                    busy.pop_front();
                }
            }
            drop(held);
        }
    }

    /// Two tenants that want everything end with about the same, whichever was first and whatever
    /// the number of their topics, once the first has given back what it had.
    #[test]
    fn parts_that_want_everything_hold_about_the_same_in_the_end() {
        let root = ByteBudget::new(UNITS);
        let parts = [root.part(), root.part()];
        let topics: Vec<Vec<ByteBudget>> = [(0, 50), (1, 2)]
            .map(|(at, count)| (0..count).map(|_| parts[at].child(usize::MAX)).collect())
            .into();
        let mut held: VecDeque<BytePermit> = flood(&parts[0], 50).into();
        for _ in 0..20_000 {
            held.pop_front();
            // The one that was first asks first.
            for topics in &topics {
                for topic in topics {
                    held.extend(topic.try_acquire(PIECE));
                }
            }
        }
        let used = [parts[0].used_bytes(), parts[1].used_bytes()];
        assert!(used[1] * 2 >= used[0] && used[0] * 2 >= used[1], "{used:?}");
    }

    /// Topics that hold nothing have little beyond the share of their tenant: however many they
    /// are, they leave the share of another.
    #[test]
    fn topics_that_hold_nothing_take_no_more_than_their_share_in_the_end() {
        let root = ByteBudget::new(UNITS);
        let parts = [root.part(), root.part()];
        let mut topics: [VecDeque<ByteBudget>; 2] = [(0, 2_000), (1, 2)]
            .map(|(at, count)| (0..count).map(|_| parts[at].child(usize::MAX)).collect());
        let mut held: VecDeque<BytePermit> = flood(&parts[0], 2_000).into();
        for _ in 0..40_000 {
            held.pop_front();
            // The one that was first asks first.
            for topics in &mut topics {
                for _ in 0..2 {
                    held.extend(topics[0].try_acquire(PIECE));
                    topics.rotate_left(1);
                }
            }
        }
        let used = [parts[0].used_bytes(), parts[1].used_bytes()];
        assert!(used[1] * 2 >= used[0] && used[0] * 2 >= used[1], "{used:?}");
    }

    /// A tenant that has more than its share since another came, and keeps it: its subscriptions
    /// that hold nothing go on while bytes are free, and so does a third tenant (I13).
    #[test]
    fn a_part_with_more_than_its_share_goes_on_where_nothing_is_held() {
        for subscriptions in [3, 20, 100] {
            let root = ByteBudget::new(UNITS);
            let [stalled, other, third] = [root.part(), root.part(), root.part()];
            let fresh = || stalled.child(usize::MAX).child(usize::MAX);
            let stalling: Vec<ByteBudget> = (0..subscriptions).map(|_| fresh()).collect();
            let held = fill(&stalling);
            let byte = other.child(usize::MAX).try_acquire(1);
            assert!(byte.is_some() && stalled.used_bytes() > UNITS / 2);
            for bytes in [PIECE, UNITS / SMALL, UNITS / 32] {
                for turn in 0..100 {
                    let permit = fresh().try_acquire(bytes);
                    assert!(
                        permit.is_some(),
                        "{subscriptions}, {bytes} bytes, turn {turn}"
                    );
                }
            }
            // What stalls there too is bounded.
            let more: Vec<_> = (0..UNITS / PIECE)
                .map(|_| fresh().try_acquire(PIECE))
                .collect();
            assert!(stalled.used_bytes() < UNITS * 3 / 4);
            assert!(third.child(usize::MAX).try_acquire(UNITS / 16).is_some());
            drop((held, byte, more));
            assert_eq!(root.used_bytes(), 0);
        }
    }

    /// A topic that keeps what it has leaves a share to the others of its tenant.
    #[test]
    fn a_topic_that_gives_nothing_back_leaves_bytes_to_its_tenant() {
        let root = ByteBudget::new(UNITS);
        let part = root.part();
        let [stalled, other] = [part.child(usize::MAX), part.child(usize::MAX)];
        let held = [&stalled, &other].map(|topic| fill(std::slice::from_ref(topic)));
        assert!(other.used_bytes() >= UNITS / 16, "{}", other.used_bytes());
        drop(held);
    }

    #[test]
    fn a_part_is_the_same_as_long_as_it_is_used_and_the_others_are_dropped() {
        let parts = BudgetParts::new(ByteBudget::new(1 << 20));
        let held = parts.of(0).try_acquire(100).unwrap();
        let child = parts.of(1).child(100);
        for key in 2..10_000 {
            assert!(parts.of(key).try_acquire(10).is_some());
        }
        assert!(parts.parts.lock().known.len() < 1_000);
        assert_eq!(parts.of(0).used_bytes(), 100);
        let other = child.try_acquire(7).unwrap();
        assert_eq!(parts.of(1).used_bytes(), 7);
        assert_eq!(parts.whole().used_bytes(), 107);
        drop((held, other));
        assert_eq!(parts.whole().used_bytes(), 0);
    }
}
