//! What waits for the journal, in admission order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use aquifer_model::storage::{BookieError, BookieResult, OrderedReply, ReplyCallback};
use aquifer_runtime::budget::BytePermit;
use parking_lot::{Condvar, Mutex};

use crate::journal::record::Record;
use crate::ledger_state::LedgerMeta;

/// What may use the journal's reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Adds of writers.
    Normal,
    /// Fences, recovery, LAC, deletions.
    Control,
}

/// What happens when everything up to the item is synced, or never will be.
pub enum Completion {
    /// Answer this.
    Reply(ReplyCallback, OrderedReply),
    /// Run this; it must not block.
    Run(Box<dyn FnOnce(BookieResult<()>) + Send>),
}

/// A place in the queue: a record, or only a wait for everything before it.
pub struct Item {
    /// Its number, given by the queue.
    pub number: u64,
    /// What may use the reserve.
    pub class: Class,
    /// What is written.
    pub record: Option<Record>,
    /// The ledger's record, when it changes.
    pub meta: Option<LedgerMeta>,
    /// Its share of the bytes in flight.
    pub permit: Option<BytePermit>,
    /// What follows.
    pub completion: Completion,
}

impl Completion {
    /// Ends the item.
    pub fn run(self, result: BookieResult<()>) {
        match self {
            Completion::Reply(reply, answer) => reply(result.map(|()| answer)),
            Completion::Run(run) => run(result),
        }
    }
}

/// The queue in front of the journal thread. Its length is bounded by the budgets whose permits
/// the items carry.
#[derive(Default)]
pub struct JournalQueue {
    state: Mutex<State>,
    wake: Condvar,
    /// Bytes of the records in it; changed under the lock.
    bytes: AtomicUsize,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    last_number: u64,
    closed: Option<BookieError>,
}

impl JournalQueue {
    /// Adds an item and returns its number.
    ///
    /// # Errors
    /// When the queue is closed; the item's completion is given back.
    pub fn push(&self, mut item: Item) -> Result<u64, (BookieError, Completion)> {
        let mut state = self.state.lock();
        if let Some(error) = &state.closed {
            return Err((error.clone(), item.completion));
        }
        state.last_number += 1;
        item.number = state.last_number;
        self.bytes.fetch_add(bytes_of(&item), Ordering::Release);
        state.items.push_back(item);
        // The thread sleeps only on an empty queue.
        if state.items.len() == 1 {
            self.wake.notify_one();
        }
        Ok(state.last_number)
    }

    /// Bytes of the records that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// The number of the last item that was queued.
    #[must_use]
    pub fn last_number(&self) -> u64 {
        self.state.lock().last_number
    }

    /// Waits for items and takes those of the next commit: records of up to `bytes_max` bytes,
    /// at least one. `None` when the queue is closed and empty.
    pub fn take(&self, bytes_max: usize) -> Option<Vec<Item>> {
        let mut state = self.state.lock();
        while state.items.is_empty() {
            if state.closed.is_some() {
                return None;
            }
            self.wake.wait(&mut state);
        }
        let mut bytes = 0;
        let mut count = 0;
        for item in &state.items {
            let with = bytes + bytes_of(item);
            if count > 0 && with > bytes_max {
                break;
            }
            bytes = with;
            count += 1;
        }
        self.bytes.fetch_sub(bytes, Ordering::Release);
        Some(state.items.drain(..count).collect())
    }

    /// Takes nothing more; what waits is still served.
    pub fn close(&self, error: BookieError) {
        let mut state = self.state.lock();
        state.closed.get_or_insert(error);
        self.wake.notify_all();
    }

    /// Closes the queue and gives back what waits.
    pub fn abandon(&self, error: BookieError) -> Vec<Item> {
        let mut state = self.state.lock();
        state.closed = Some(error);
        self.bytes.store(0, Ordering::Release);
        self.wake.notify_all();
        state.items.drain(..).collect()
    }
}

fn bytes_of(item: &Item) -> usize {
    item.record.as_ref().map_or(0, Record::encoded_len)
}
