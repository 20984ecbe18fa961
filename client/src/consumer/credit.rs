//! How much a broker may send: absolute totals, so that a lost or repeated grant neither leaks nor
//! mints credit. What is in the queue never exceeds its bounds by more than one entry.

/// An amount of messages and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// The account of one stream.
#[derive(Debug)]
pub(crate) struct Credit {
    queue: Amount,
    granted: Amount,
    /// What came and has left the queue again.
    consumed: Amount,
}

impl Credit {
    pub(crate) fn new(queue: Amount) -> Credit {
        Credit {
            queue: Amount {
                messages: queue.messages.max(1),
                bytes: queue.bytes.max(1),
            },
            granted: Amount::default(),
            consumed: Amount::default(),
        }
    }

    /// A new stream begins with an empty queue.
    pub(crate) fn reset(&mut self) {
        *self = Credit::new(self.queue);
    }

    /// Messages or bytes have left the queue.
    pub(crate) fn consume(&mut self, messages: u64, bytes: u64) {
        self.consumed.messages = self.consumed.messages.saturating_add(messages);
        self.consumed.bytes = self.consumed.bytes.saturating_add(bytes);
    }

    /// Whether half of the queue can be granted again.
    pub(crate) fn is_due(&self) -> bool {
        let due = |queue: u64, consumed: u64, granted: u64| {
            let missing = consumed.saturating_add(queue).saturating_sub(granted);
            missing >= queue.div_ceil(2)
        };
        due(
            self.queue.messages,
            self.consumed.messages,
            self.granted.messages,
        ) || due(self.queue.bytes, self.consumed.bytes, self.granted.bytes)
    }

    /// The totals to grant now, if it is worth a message.
    pub(crate) fn grant(&mut self) -> Option<Amount> {
        if !self.is_due() {
            return None;
        }
        self.granted = Amount {
            messages: self.consumed.messages.saturating_add(self.queue.messages),
            bytes: self.consumed.bytes.saturating_add(self.queue.bytes),
        };
        Some(self.granted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amount(messages: u64, bytes: u64) -> Amount {
        Amount { messages, bytes }
    }

    #[test]
    fn the_first_grant_is_the_queue_and_the_next_comes_at_half() {
        let mut credit = Credit::new(amount(10, 100));
        assert_eq!(credit.grant(), Some(amount(10, 100)));
        assert_eq!(credit.grant(), None);
        credit.consume(4, 40);
        assert_eq!(credit.grant(), None);
        credit.consume(1, 1);
        assert_eq!(credit.grant(), Some(amount(15, 141)));
        credit.reset();
        assert_eq!(credit.grant(), Some(amount(10, 100)));
    }

    proptest! {
        /// A broker that sends one message of `size` bytes while both totals allow it never
        /// stalls, and never has more than the queue and one entry outstanding.
        #[test]
        fn no_stall_and_no_overflow(
            queue in (1u64..20, 1u64..200),
            sizes in proptest::collection::vec(1u64..150, 1..200),
            lag in 0usize..10,
        ) {
            let mut credit = Credit::new(amount(queue.0, queue.1));
            let (mut total, mut sent) = (Amount::default(), Amount::default());
            let mut waiting = std::collections::VecDeque::new();
            let mut sizes = sizes.into_iter().peekable();
            while sizes.peek().is_some() {
                total = credit.grant().unwrap_or(total);
                let mut moved = false;
                while sent.messages < total.messages && sent.bytes < total.bytes {
                    let Some(size) = sizes.next() else { break };
                    sent = amount(sent.messages + 1, sent.bytes + size);
                    waiting.push_back(size);
                    moved = true;
                }
                let bytes: u64 = waiting.iter().sum();
                prop_assert!(waiting.len() as u64 <= queue.0);
                prop_assert!(bytes < queue.1 + 150);
                while waiting.len() > lag || (!moved && !waiting.is_empty()) {
                    let size = waiting.pop_front().unwrap_or(0);
                    credit.consume(1, size);
                    moved = true;
                }
                prop_assert!(moved || credit.is_due(), "stalled");
            }
        }
    }
}
