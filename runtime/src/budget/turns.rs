//! Whose turn it is to get bytes that have come back: deficit round robin between groups, which are
//! the parts of a budget (and nodes without a part, each a group), and turns between the nodes of
//! a group.
//!
//! In its turn a group gains a quantum, or as many as its part weighs, and its requests are granted
//! as far as there is room and what it has gained pays for them. A group whose requests do not fit
//! gains nothing, and does not delay the others.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::budget::Node;

/// A group gains this part of the root's capacity in its turn.
const QUANTUM_PART: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Turns {
    groups: HashMap<u64, Group>,
    /// Groups in the order of their turns.
    order: VecDeque<u64>,
    /// The requests of each node.
    queues: HashMap<u64, Queue>,
}

/// What came of a request whose turn it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// It has what was missing, which is this much, and waits no longer.
    Granted(usize),
    /// There is room, and its group has not gained as much yet.
    Unpaid,
    /// There is no room for it.
    TooLarge,
}

#[derive(Debug, Default)]
struct Group {
    /// Gained and not used yet.
    deficit: usize,
    /// Nodes with requests, in the order of their turns.
    nodes: VecDeque<u64>,
}

/// The requests of one node that wait, oldest first.
#[derive(Debug)]
struct Queue {
    node: Arc<Node>,
    tickets: VecDeque<u64>,
}

impl Turns {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether requests of a node wait.
    pub(super) fn has(&self, node: u64) -> bool {
        self.queues.contains_key(&node)
    }

    /// Adds a request.
    pub(super) fn push(&mut self, node: &Arc<Node>, ticket: u64) {
        if let Some(queue) = self.queues.get_mut(&node.id) {
            queue.tickets.push_back(ticket);
            return;
        }
        let queue = Queue {
            node: Arc::clone(node),
            tickets: VecDeque::from([ticket]),
        };
        self.queues.insert(node.id, queue);
        let (id, order) = (node.group(), &mut self.order);
        let group = self.groups.entry(id).or_insert_with(|| {
            order.push_back(id);
            Group::default()
        });
        group.nodes.push_back(node.id);
    }

    /// Removes a request, if it waits.
    pub(super) fn forget(&mut self, node: &Node, ticket: u64) {
        let Some(queue) = self.queues.get_mut(&node.id) else {
            return;
        };
        queue.tickets.retain(|other| *other != ticket);
        if !queue.tickets.is_empty() {
            return;
        }
        self.queues.remove(&node.id);
        let id = node.group();
        if let Some(group) = self.groups.get_mut(&id) {
            group.nodes.retain(|other| *other != node.id);
            if group.nodes.is_empty() {
                self.groups.remove(&id);
                self.order.retain(|other| *other != id);
            }
        }
    }

    /// Lets requests have their turns until none fits. `visit` is given the oldest request of a
    /// node, and how many bytes its group may take.
    pub(super) fn serve(&mut self, mut visit: impl FnMut(&Arc<Node>, u64, usize) -> Visit) {
        let mut idle = 0;
        while idle < self.order.len() {
            let is_alone = self.order.len() == 1;
            let Some(id) = self.order.front().copied() else {
                return;
            };
            let Some(group) = self.groups.get_mut(&id) else {
                self.order.pop_front();
                continue;
            };
            match group.serve_first(&mut self.queues, is_alone, &mut visit) {
                Visit::Granted(_) => {
                    idle = 0;
                    if group.nodes.is_empty() {
                        self.groups.remove(&id);
                        self.order.pop_front();
                    }
                    continue;
                }
                Visit::Unpaid => {
                    idle = 0;
                    group.gain(&self.queues);
                }
                Visit::TooLarge => idle += 1,
            }
            self.order.rotate_left(1);
        }
    }
}

impl Group {
    /// Serves the first of its nodes whose oldest request fits.
    fn serve_first(
        &mut self,
        queues: &mut HashMap<u64, Queue>,
        is_alone: bool,
        visit: &mut impl FnMut(&Arc<Node>, u64, usize) -> Visit,
    ) -> Visit {
        let paid = match is_alone {
            true => usize::MAX,
            false => self.deficit,
        };
        for _ in 0..self.nodes.len() {
            let Some(id) = self.nodes.front().copied() else {
                break;
            };
            let queue = queues.get_mut(&id);
            let Some((queue, ticket)) = queue.and_then(|queue| {
                let ticket = queue.tickets.front().copied()?;
                Some((queue, ticket))
            }) else {
                self.nodes.pop_front();
                continue;
            };
            match visit(&queue.node, ticket, paid) {
                Visit::TooLarge => self.nodes.rotate_left(1),
                // It keeps its turn until the group can pay.
                Visit::Unpaid => return Visit::Unpaid,
                Visit::Granted(bytes) => {
                    queue.tickets.pop_front();
                    self.deficit = self.deficit.saturating_sub(bytes);
                    if queue.tickets.is_empty() {
                        queues.remove(&id);
                        self.nodes.pop_front();
                    } else {
                        self.nodes.rotate_left(1);
                    }
                    return Visit::Granted(bytes);
                }
            }
        }
        Visit::TooLarge
    }

    fn gain(&mut self, queues: &HashMap<u64, Queue>) {
        let first = self.nodes.front().and_then(|id| queues.get(id));
        let quantum = first.map_or(0, |queue| queue.node.root().capacity_bytes / QUANTUM_PART);
        let weight = first.map_or(1, |queue| queue.node.weight());
        let gain = quantum.max(1).saturating_mul(weight);
        self.deficit = self.deficit.saturating_add(gain);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::budget::ByteBudget;

    const QUANTUM: usize = 100;

    /// Most bytes that come back at once.
    const COMES_MAX: usize = 900;

    /// Tenants with topics, which always have requests waiting.
    struct Demand {
        turns: Turns,
        tenants: Vec<(Vec<ByteBudget>, usize)>,
        next_ticket: u64,
        /// The tenant and the topic that ask, by ticket.
        asked: BTreeMap<u64, (usize, usize)>,
    }

    impl Demand {
        fn new(sizes: &[(usize, usize)]) -> Demand {
            let root = ByteBudget::new(QUANTUM * QUANTUM_PART);
            let tenants = sizes.iter().map(|(size, topics)| {
                let part = root.part();
                let topics = (0..*topics).map(|_| part.child(usize::MAX));
                (topics.collect(), *size)
            });
            let mut demand = Demand {
                turns: Turns::default(),
                tenants: tenants.collect(),
                next_ticket: 0,
                asked: BTreeMap::new(),
            };
            for (tenant, (size, topics)) in sizes.iter().enumerate() {
                // More than what comes at once can serve.
                for topic in 0..topics * (COMES_MAX / size + 4) {
                    demand.ask(tenant, topic % topics);
                }
            }
            demand
        }

        fn ask(&mut self, tenant: usize, topic: usize) {
            self.next_ticket += 1;
            self.asked.insert(self.next_ticket, (tenant, topic));
            let node = &self.tenants[tenant].0[topic].node;
            self.turns.push(node, self.next_ticket);
        }

        /// Hands out `free` bytes; says which tenants got one request each. With `in_order`,
        /// nothing is granted once a request did not fit.
        fn serve(&mut self, free: &mut usize, in_order: bool) -> Vec<usize> {
            let (mut got, mut is_over) = (Vec::new(), false);
            let (tenants, asked) = (&self.tenants, &mut self.asked);
            self.turns.serve(|_, ticket, paid| {
                let (tenant, topic) = asked[&ticket];
                let size = tenants[tenant].1;
                if is_over || size > *free {
                    is_over = in_order;
                    return Visit::TooLarge;
                }
                if size > paid {
                    return Visit::Unpaid;
                }
                *free -= size;
                asked.remove(&ticket);
                got.push((tenant, topic));
                Visit::Granted(size)
            });
            for (tenant, topic) in &got {
                self.ask(*tenant, *topic);
            }
            got.into_iter().map(|(tenant, _)| tenant).collect()
        }
    }

    fn demands() -> impl Strategy<Value = Vec<(usize, usize)>> {
        prop::collection::vec((1..400_usize, 1..6_usize), 2..5)
    }

    proptest! {
        /// Tenants that always want more get equal bytes, within a quantum and their largest
        /// requests, whatever the size and number of these and of their topics.
        #[test]
        fn parts_get_equal_shares(
            sizes in demands(),
            came in prop::collection::vec(1..COMES_MAX, 50..300),
        ) {
            let mut demand = Demand::new(&sizes);
            let (mut free, mut got) = (0, vec![0; sizes.len()]);
            let largest = sizes.iter().map(|(size, _)| *size).max().unwrap_or(0);
            for bytes in came {
                free += bytes;
                for tenant in demand.serve(&mut free, true) {
                    got[tenant] += sizes[tenant].0;
                }
                let (least, most) = (got.iter().min(), got.iter().max());
                let apart = most.unwrap_or(&0) - least.unwrap_or(&0);
                prop_assert!(apart <= QUANTUM + 2 * largest, "{got:?}");
            }
        }

        /// The same by weights: what a tenant got for each of its shares is equal.
        #[test]
        fn parts_get_shares_by_their_weights(
            sizes in demands(),
            weights in prop::collection::vec(1..5_usize, 5),
            // One may get nearly all of it, and must not run out of requests.
            came in prop::collection::vec(1..COMES_MAX / 2, 50..300),
        ) {
            let mut demand = Demand::new(&sizes);
            for ((topics, _), weight) in demand.tenants.iter().zip(&weights) {
                let part = topics[0].node.parent.as_ref().expect("a topic is below a part");
                part.weight.store(*weight, Ordering::Relaxed);
            }
            let (mut free, mut got) = (0, vec![0; sizes.len()]);
            let largest = sizes.iter().map(|(size, _)| *size).max().unwrap_or(0);
            for bytes in came {
                free += bytes;
                for tenant in demand.serve(&mut free, true) {
                    got[tenant] += sizes[tenant].0;
                }
                let each = got.iter().zip(&weights).map(|(got, weight)| got / weight);
                let each: Vec<usize> = each.collect();
                let (least, most) = (each.iter().min(), each.iter().max());
                let apart = most.unwrap_or(&0) - least.unwrap_or(&0);
                prop_assert!(apart <= 2 * QUANTUM + 2 * largest, "{got:?} {weights:?}");
            }
        }

        /// Nothing waits that fits, and no request is left out of the turns.
        #[test]
        fn what_fits_does_not_wait(
            sizes in demands(),
            came in prop::collection::vec(0..COMES_MAX, 1..100),
        ) {
            let mut demand = Demand::new(&sizes);
            let waiting = demand.asked.len();
            for bytes in came {
                let mut free = bytes;
                // Once: what is left must not wait for the next bytes.
                demand.serve(&mut free, false);
                for queue in demand.turns.queues.values() {
                    let (tenant, _) = demand.asked[&queue.tickets[0]];
                    prop_assert!(sizes[tenant].0 > free, "{free} of {bytes} are left");
                }
                prop_assert_eq!(demand.asked.len(), waiting);
                let tickets = demand.turns.queues.values().map(|queue| queue.tickets.len());
                prop_assert_eq!(tickets.sum::<usize>(), waiting);
            }
        }
    }
}
