//! Answers with entries, counted until their receiver has taken them.
//!
//! An entry that is read for a recovery may be as large as entries are, and a client that does not
//! read its replies leaves them here. So the bytes of an answer carry their share of a budget, and
//! what finds none free waits, by its number only, for an answer before it to go.

use std::collections::VecDeque;

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_model::storage::{BookieResult, OrderedReply, ReplyCallback, StoredEntry};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use bytes::Bytes;
use parking_lot::Mutex;

/// A read for a recovery whose fence is synced.
pub(crate) struct Wanted {
    pub(crate) ledger: LedgerId,
    pub(crate) entry: EntryId,
    pub(crate) reply: ReplyCallback,
    /// What it takes itself while it waits.
    pub(crate) _waits: BytePermit,
}

/// The answers to recovery reads.
pub(crate) struct Answers {
    budget: ByteBudget,
    waiting: Mutex<VecDeque<Wanted>>,
}

/// The bytes of an answer with what they take.
struct Held {
    bytes: Bytes,
    permit: Option<BytePermit>,
    taken: Option<Box<dyn FnOnce() + Send>>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.permit.take());
        if let Some(taken) = self.taken.take() {
            taken();
        }
    }
}

impl Answers {
    /// Answers of this many bytes together; one is always let through.
    pub(crate) fn new(bytes_max: usize) -> Answers {
        Answers {
            budget: ByteBudget::new(bytes_max),
            waiting: Mutex::default(),
        }
    }

    /// Bytes of answers that are not taken yet.
    #[cfg(test)]
    pub(crate) fn used_bytes(&self) -> usize {
        self.budget.used_bytes()
    }

    /// A read waits for its turn.
    pub(crate) fn push(&self, wanted: Wanted) {
        self.waiting.lock().push_back(wanted);
    }

    /// The read whose turn it is, when there is room for its answer.
    pub(crate) fn next(&self) -> Option<(Wanted, BytePermit)> {
        let mut waiting = self.waiting.lock();
        waiting.front()?;
        // How large an entry is, is not known before it is read.
        let permit = self.budget.try_acquire(ENTRY_BYTES_MAX)?;
        waiting.pop_front().map(|wanted| (wanted, permit))
    }
}

/// An entry whose bytes hold their share of the budget. `taken` is called when they are gone.
pub(crate) fn held(
    entry: StoredEntry,
    mut permit: BytePermit,
    taken: impl FnOnce() + Send + 'static,
) -> StoredEntry {
    permit.shrink_to(entry.data.len());
    let data = Bytes::from_owner(Held {
        bytes: entry.data,
        permit: Some(permit),
        taken: Some(Box::new(taken)),
    });
    StoredEntry { data, ..entry }
}

/// An answer whose bytes are not counted any more: for a caller that keeps them.
pub fn uncounted(result: BookieResult<OrderedReply>) -> BookieResult<OrderedReply> {
    result.map(|reply| match reply {
        OrderedReply::Entry(entry) => OrderedReply::Entry(StoredEntry {
            data: Bytes::copy_from_slice(&entry.data),
            ..entry
        }),
        done => done,
    })
}
