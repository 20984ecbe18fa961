//! The memory bound of a producer: messages and bytes that wait for their acknowledgement (I13).
//!
//! Waiting is first come, first served, always in the order messages, bytes, bytes of the client,
//! and what is held while waiting is always returned by acknowledgements: no cycle.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// What a message, or a batch of them, takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) messages: u32,
    pub(crate) bytes: usize,
}

impl Cost {
    pub(crate) fn add(&mut self, other: Cost) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

/// Budget for messages in flight.
#[derive(Debug)]
pub(crate) struct Budget {
    messages: Semaphore,
    bytes: Semaphore,
    client: Arc<Semaphore>,
    /// A message that is larger than a bound runs alone instead of never.
    message_bytes_max: usize,
}

/// Memory that a message takes besides its own bytes: row, record head, bookkeeping.
const OVERHEAD_BYTES: usize = 64;

impl Budget {
    pub(crate) fn new(
        messages: usize,
        bytes: usize,
        client: Arc<Semaphore>,
        client_bytes: usize,
    ) -> Budget {
        let bytes = bytes.clamp(1, Semaphore::MAX_PERMITS);
        let largest = bytes.min(client_bytes);
        Budget {
            messages: Semaphore::new(messages.clamp(1, Semaphore::MAX_PERMITS)),
            bytes: Semaphore::new(bytes),
            client,
            message_bytes_max: largest.min(u32::MAX as usize),
        }
    }

    /// What a message of this many bytes takes.
    pub(crate) fn cost(&self, message_bytes: usize) -> Cost {
        Cost {
            messages: 1,
            bytes: (message_bytes + OVERHEAD_BYTES).min(self.message_bytes_max),
        }
    }

    /// Takes budget if there is some and no other message waits for it.
    pub(crate) fn try_take(&self, cost: Cost) -> bool {
        let bytes = permits(cost.bytes);
        let Ok(messages) = self.messages.try_acquire_many(cost.messages) else {
            return false;
        };
        let Ok(own) = self.bytes.try_acquire_many(bytes) else {
            return false;
        };
        let Ok(client) = self.client.try_acquire_many(bytes) else {
            return false;
        };
        [messages, own, client].into_iter().for_each(|p| p.forget());
        true
    }

    /// Waits for budget and takes it. Dropping the future gives back what it had.
    pub(crate) async fn take(&self, cost: Cost) {
        const OPEN: &str = "the semaphores of a producer are never closed";
        let bytes = permits(cost.bytes);
        let messages = self.messages.acquire_many(cost.messages).await.expect(OPEN);
        let own = self.bytes.acquire_many(bytes).await.expect(OPEN);
        let client = self.client.acquire_many(bytes).await.expect(OPEN);
        [messages, own, client].into_iter().for_each(|p| p.forget());
    }

    /// Gives budget back.
    pub(crate) fn release(&self, cost: Cost) {
        self.messages.add_permits(cost.messages as usize);
        self.bytes.add_permits(cost.bytes);
        self.client.add_permits(cost.bytes);
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn both_bounds_and_the_clients_hold() {
        let client = Arc::new(Semaphore::new(1000));
        let budget = |messages, bytes| Budget::new(messages, bytes, Arc::clone(&client), 1000);
        let cost = |bytes| Cost { messages: 1, bytes };
        let (a, b) = (budget(2, 900), budget(9, 900));
        assert!(a.try_take(cost(300)) && a.try_take(cost(300)));
        assert!(!a.try_take(cost(1)), "two messages are in flight");
        assert!(!b.try_take(cost(401)), "the client has 400 bytes left");
        assert!(b.try_take(cost(400)));
        a.release(Cost {
            messages: 2,
            bytes: 600,
        });
        assert!(!a.try_take(cost(901)), "the producer may have 900 bytes");
        assert!(a.take(cost(600)).now_or_never().is_some());
        assert_eq!(client.available_permits(), 0);
    }

    #[test]
    fn a_message_beyond_the_bound_runs_alone() {
        let budget = Budget::new(10, 100, Arc::new(Semaphore::new(1000)), 1000);
        let cost = budget.cost(5000);
        assert!(budget.try_take(cost));
        assert!(!budget.try_take(budget.cost(0)));
        budget.release(cost);
        assert!(budget.try_take(budget.cost(0)));
    }

    #[test]
    fn a_wait_that_is_dropped_gives_back_what_it_had() {
        let budget = Budget::new(1, 100, Arc::new(Semaphore::new(1000)), 1000);
        let held = Cost {
            messages: 0,
            bytes: 100,
        };
        assert!(budget.try_take(held));
        assert!(budget.take(budget.cost(50)).now_or_never().is_none());
        budget.release(held);
        assert!(
            budget.try_take(budget.cost(50)),
            "its message was given back"
        );
    }
}
