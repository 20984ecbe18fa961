//! Loads of topics, a bounded number at once, so that a broker that takes over many topics serves
//! some soon instead of all late. Those for which most clients wait come first, then those that
//! came first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use aquifer_model::topic::TopicName;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The loads that run, and those that wait.
pub(super) struct LoadQueue {
    max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: HashMap<TopicName, Waiting>,
    /// By clients and age. An entry whose number of clients is not the current one is a leftover.
    order: BinaryHeap<(usize, Reverse<u64>, TopicName)>,
    next: u64,
}

struct Waiting {
    clients: usize,
    number: u64,
    turn: oneshot::Sender<()>,
}

/// A load's turn, until it is dropped.
pub(super) struct Turn {
    queue: Arc<LoadQueue>,
}

impl LoadQueue {
    /// Lets `max` loads run at once.
    pub(super) fn new(max: usize) -> Arc<LoadQueue> {
        Arc::new(LoadQueue {
            max: max.max(1),
            state: Mutex::default(),
        })
    }

    /// Waits for the turn of a topic's load, of which there is one at a time.
    pub(super) async fn turn(self: &Arc<Self>, topic: &TopicName) -> Turn {
        let waits = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            if state.running < self.max {
                state.running += 1;
                None
            } else {
                let (turn, waits) = oneshot::channel();
                let number = state.next;
                state.next += 1;
                let waiting = Waiting {
                    clients: 1,
                    number,
                    turn,
                };
                state.waiting.insert(topic.clone(), waiting);
                state.order.push((1, Reverse(number), topic.clone()));
                Some(waits)
            }
        };
        if let Some(waits) = waits {
            // The queue gives every turn; it lives as long as this.
            let _ = waits.await;
        }
        Turn {
            queue: Arc::clone(self),
        }
    }

    /// Another client waits for a topic.
    pub(super) fn wanted(&self, topic: &TopicName) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(waiting) = state.waiting.get_mut(topic) {
            waiting.clients += 1;
            let entry = (waiting.clients, Reverse(waiting.number), topic.clone());
            state.order.push(entry);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut guard = self.queue.state.lock();
        let state = &mut *guard;
        while let Some((clients, Reverse(number), topic)) = state.order.pop() {
            let is_it = |w: &Waiting| w.clients == clients && w.number == number;
            if !state.waiting.get(&topic).is_some_and(is_it) {
                continue;
            }
            let Some(next) = state.waiting.remove(&topic) else {
                continue;
            };
            // One that was given up needs no turn.
            if next.turn.send(()).is_ok() {
                return;
            }
        }
        state.running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        format!("public/default/{name}").parse().unwrap()
    }

    /// In which order waiting loads get their turns.
    async fn order(queue: &Arc<LoadQueue>, first: Turn, names: &[&str]) -> Vec<String> {
        let (sender, mut ran) = tokio::sync::mpsc::channel(16);
        let mut loads = Vec::new();
        for name in names {
            let (queue, sender, name) = (Arc::clone(queue), sender.clone(), (*name).to_owned());
            loads.push(Box::pin(async move {
                let _turn = queue.turn(&topic(&name)).await;
                sender.send(name).await.unwrap();
            }));
        }
        let mut loads = futures::future::join_all(loads);
        // All wait now.
        assert!(futures::poll!(&mut loads).is_pending());
        queue.wanted(&topic("c"));
        queue.wanted(&topic("c"));
        queue.wanted(&topic("d"));
        queue.wanted(&topic("absent"));
        drop(first);
        loads.await;
        drop(sender);
        let mut all = Vec::new();
        while let Some(name) = ran.recv().await {
            all.push(name);
        }
        all
    }

    #[tokio::test]
    async fn what_most_clients_wait_for_comes_first_then_what_came_first() {
        let queue = LoadQueue::new(1);
        let first = queue.turn(&topic("first")).await;
        let order = order(&queue, first, &["a", "b", "c", "d"]).await;
        assert_eq!(order, ["c", "d", "a", "b"]);
        let state = queue.state.lock();
        assert_eq!((state.running, state.waiting.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_load_that_is_given_up_takes_no_turn() {
        let queue = LoadQueue::new(1);
        let first = queue.turn(&topic("first")).await;
        {
            let name = topic("a");
            let given_up = std::pin::pin!(queue.turn(&name));
            assert!(futures::poll!(given_up).is_pending());
        }
        drop(first);
        let _second = queue.turn(&topic("b")).await;
        assert_eq!(queue.state.lock().running, 1);
    }
}
