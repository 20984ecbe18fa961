//! What has arrived on one topic or partition and was not handed out. Plain state, no I/O.
//!
//! Invariant: what the broker has charged for an entry is given back once, whatever becomes of it:
//! handed out, passed over, damaged or void.

use std::collections::VecDeque;
use std::sync::Arc;

use aquifer_model::id::SeekEpoch;
use aquifer_model::topic::TopicName;

use crate::batch::{Delivered, Messages};
use crate::consumer::credit::{Amount, Credit};
use crate::consumer::inbox::role::Role;
use crate::error::Result;
use crate::message::{Origin, ReceivedMessage};

/// See the module.
#[derive(Debug)]
pub(super) struct Arrivals {
    entries: VecDeque<Entry>,
    current: Option<Current>,
    pub(super) credit: Credit,
}

/// One entry that has arrived.
#[derive(Debug)]
struct Entry {
    delivered: Delivered,
    origin: Origin,
    /// What it cost of the credit.
    cost: Amount,
    /// Index of its first message that is wanted.
    first: u64,
    /// Index after its last message.
    end: u64,
    /// From this index on it is delivered again.
    void_from: u64,
}

/// The entry whose messages are being handed out.
#[derive(Debug)]
struct Current {
    messages: Messages,
    origin: Origin,
    bytes: u64,
    end: u64,
    void_from: u64,
}

impl Arrivals {
    pub(super) fn new(queue: Amount) -> Arrivals {
        Arrivals {
            entries: VecDeque::new(),
            current: None,
            credit: Credit::new(queue),
        }
    }

    /// A session begins, with nothing and an account of its own.
    pub(super) fn reset(&mut self) {
        self.entries.clear();
        self.current = None;
        self.credit.reset();
    }

    /// Takes an entry in.
    pub(super) fn push(&mut self, delivered: Delivered, origin: Origin, cost: Amount) {
        self.entries.push_back(Entry {
            first: delivered.first_wanted(),
            end: delivered.end(),
            delivered,
            origin,
            cost,
            void_from: u64::MAX,
        });
    }

    /// Gives back what an entry costs that is not handed out.
    pub(super) fn refuse(&mut self, cost: Amount) {
        self.credit.consume(cost.messages, cost.bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.current.is_none() && self.entries.is_empty()
    }

    /// The broker delivers everything from an index on again: it is void here.
    pub(super) fn void_from(&mut self, index: u64) {
        for entry in &mut self.entries {
            entry.void_from = entry.void_from.min(index);
        }
        if let Some(current) = &mut self.current {
            current.void_from = current.void_from.min(index);
        }
    }

    /// Drops what was delivered before a seek.
    pub(super) fn void_before(&mut self, seek_epoch: SeekEpoch, role: &mut Role) {
        let stale = |origin: &Origin| origin.seek_epoch < seek_epoch;
        if self.current.as_ref().is_some_and(|c| stale(&c.origin)) {
            let left = self.current.as_ref().map_or(0, |c| c.messages.left());
            self.finish_current(left, role);
        }
        let credit = &mut self.credit;
        self.entries.retain(|entry| {
            let is_stale = stale(&entry.origin);
            if is_stale {
                credit.consume(entry.cost.messages, entry.cost.bytes);
            }
            !is_stale
        });
    }

    /// The next message for the application.
    pub(super) fn take(
        &mut self,
        topic: &Arc<TopicName>,
        role: &mut Role,
    ) -> Option<Result<ReceivedMessage>> {
        loop {
            if let Some(current) = &mut self.current {
                let taken = current.messages.next();
                let left = current.messages.left();
                match taken {
                    Some((index, _)) if index >= current.void_from => {
                        self.finish_current(left + 1, role);
                    }
                    Some((index, taken)) => {
                        self.credit.consume(1, 0);
                        role.passed(index + 1);
                        if left == 0 {
                            self.finish_current(0, role);
                        }
                        return Some(taken);
                    }
                    None => self.finish_current(left, role),
                }
            }
            let entry = self.entries.pop_front()?;
            if entry.first >= entry.void_from {
                self.refuse(entry.cost);
                continue;
            }
            let wanted = entry.delivered.wanted();
            if wanted == 0 {
                // A reader has seen all of it, or all of it was acknowledged.
                self.refuse(entry.cost);
                role.passed(entry.end);
                continue;
            }
            match entry.delivered.open(topic, entry.origin) {
                Ok(messages) => {
                    // Messages that only we leave out are not handed out one by one.
                    let skipped = entry.cost.messages.saturating_sub(wanted);
                    self.credit.consume(skipped, 0);
                    self.current = Some(Current {
                        messages,
                        origin: entry.origin,
                        bytes: entry.cost.bytes,
                        end: entry.end,
                        void_from: entry.void_from,
                    });
                }
                Err(error) => {
                    self.refuse(entry.cost);
                    role.passed(entry.end);
                    return Some(Err(error));
                }
            }
        }
    }

    /// The current entry is done with; `left` of its messages are not handed out.
    fn finish_current(&mut self, left: u64, role: &mut Role) {
        if let Some(current) = self.current.take() {
            self.credit.consume(left, current.bytes);
            role.passed(current.end);
        }
    }
}
