//! A queue that serves its flows in fair shares: deficit round robin.
//!
//! Each flow, for example a tenant, has a queue in order of arrival. Flows take turns. In its turn
//! a flow gains a quantum, and items leave for as long as what it has gained pays for them. So
//! flows that always have something waiting get equal shares of the cost, within a quantum and one
//! item, however large their items and however many they have waiting; and a flow alone gets
//! everything. A flow that has nothing waiting gains nothing. A flow of weight N gains N quanta in
//! its turn, and so gets N times the share of one of weight 1, which a flow has unless said.
//!
//! It has no lock, no clock, and does not wait. It allocates when a queue grows, not for each item:
//! queues of flows that have emptied are used again.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Empty queues that are kept for the next flows.
const SPARE_MAX: usize = 64;
/// An empty queue that has grown above this is not kept.
const SPARE_ITEMS_MAX: usize = 1_024;

/// Flows of another weight than 1 that are known at once; further ones have weight 1.
const WEIGHTS_MAX: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    /// What a flow gains in a turn.
    quantum: usize,
    /// Of flows whose weight is not 1.
    weights: HashMap<K, u32>,
    flows: HashMap<K, Flow<T>>,
    /// Flows with items, in the order of their turns.
    turns: VecDeque<K>,
    spare: Vec<VecDeque<(usize, T)>>,
    items: usize,
}

#[derive(Debug)]
struct Flow<T> {
    items: VecDeque<(usize, T)>,
    /// Gained and not used yet.
    deficit: usize,
}

impl<K: Copy + Eq + Hash, T> FairQueue<K, T> {
    /// An empty queue, whose flows gain `quantum` in a turn, and at least 1.
    #[must_use]
    pub fn new(quantum: usize) -> FairQueue<K, T> {
        FairQueue {
            quantum: quantum.max(1),
            weights: HashMap::new(),
            flows: HashMap::new(),
            turns: VecDeque::new(),
            spare: Vec::new(),
            items: 0,
        }
    }

    /// Adds an item of a cost behind those of its flow.
    pub fn push(&mut self, flow: K, cost: usize, item: T) {
        let (turns, spare) = (&mut self.turns, &mut self.spare);
        let queue = self.flows.entry(flow).or_insert_with(|| {
            turns.push_back(flow);
            Flow {
                items: spare.pop().unwrap_or_default(),
                deficit: 0,
            }
        });
        queue.items.push_back((cost, item));
        self.items += 1;
    }

    /// Gives a flow a weight, from its next turn on. What it has gained stays.
    pub fn weigh(&mut self, flow: K, weight: u32) {
        if weight <= 1 {
            self.weights.remove(&flow);
        } else if self.weights.len() < WEIGHTS_MAX || self.weights.contains_key(&flow) {
            self.weights.insert(flow, weight);
        }
    }

    /// Takes the next item.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_within(usize::MAX)
    }

    /// Takes the next item, unless it costs more than `cost_max`: then it stays the next one.
    pub fn pop_within(&mut self, cost_max: usize) -> Option<T> {
        let flow = self.next_flow()?;
        let queue = self.flows.get_mut(&flow)?;
        let cost = queue.items.front()?.0;
        if cost > cost_max {
            return None;
        }
        let (_, item) = queue.items.pop_front()?;
        queue.deficit = queue.deficit.saturating_sub(cost);
        self.items -= 1;
        if queue.items.is_empty() {
            self.remove_first();
        }
        Some(item)
    }

    /// The flow whose turn it is and whose first item is paid for.
    fn next_flow(&mut self) -> Option<K> {
        loop {
            let flow = *self.turns.front()?;
            // A flow alone is asked for nothing.
            if self.turns.len() == 1 {
                if let Some(queue) = self.flows.get_mut(&flow) {
                    queue.deficit = 0;
                }
                return Some(flow);
            }
            let queue = self.flows.get_mut(&flow)?;
            let cost = queue.items.front()?.0;
            if cost <= queue.deficit {
                return Some(flow);
            }
            let weight = self.weights.get(&flow).copied().unwrap_or(1);
            let gain = self.quantum.saturating_mul(weight as usize);
            queue.deficit = queue.deficit.saturating_add(gain);
            self.turns.rotate_left(1);
        }
    }

    /// Removes the flow whose turn it is, which has nothing left.
    fn remove_first(&mut self) {
        let emptied = self.turns.pop_front();
        let emptied = emptied.and_then(|flow| self.flows.remove(&flow));
        if let Some(flow) = emptied
            && flow.items.capacity() <= SPARE_ITEMS_MAX
            && self.spare.len() < SPARE_MAX
        {
            self.spare.push(flow.items);
        }
    }

    /// Items that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Flows that have something waiting.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.turns.len()
    }
}

#[cfg(test)]
mod tests;
