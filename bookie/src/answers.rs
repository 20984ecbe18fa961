//! Answers with entries, counted until whoever gets them has taken them.
//!
//! An entry that is read for a recovery may be as large as entries are, and a client that does not
//! read its replies leaves them here. So the bytes of an answer carry their share of a budget, and
//! what finds none free waits, by its number only, for an answer before it to go.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedReply, ReadRange, ReplyCallback, StoredEntry,
};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::core::Core;
use crate::workers::Priority;

/// A read for a recovery whose fence is synced.
struct Wanted {
    ledger: LedgerId,
    entry: EntryId,
    reply: ReplyCallback,
    /// What it takes itself while it waits.
    _waits: BytePermit,
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
    core: Weak<Core>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.permit.take());
        if let Some(core) = self.core.upgrade() {
            core.read_for_recovery();
        }
    }
}

impl Answers {
    /// Answers of so many bytes together; one is always let through.
    pub(crate) fn new(bytes_max: usize) -> Answers {
        Answers {
            budget: ByteBudget::new(bytes_max),
            waiting: Mutex::default(),
        }
    }

    fn next(&self) -> Option<(Wanted, BytePermit)> {
        let mut waiting = self.waiting.lock();
        waiting.front()?;
        // Nobody knows how large an entry is before it is read.
        let permit = self.budget.try_acquire(ENTRY_BYTES_MAX)?;
        waiting.pop_front().map(|wanted| (wanted, permit))
    }
}

impl Core {
    /// Bytes of answers to recovery reads that are not taken yet.
    #[cfg(test)]
    pub(crate) fn answer_bytes(&self) -> usize {
        self.answers.budget.used_bytes()
    }

    /// The read half of a recovery read; the fence is synced.
    pub(crate) fn recovery_read(
        self: &Arc<Self>,
        ledger: LedgerId,
        entry: EntryId,
        waits: BytePermit,
        reply: ReplyCallback,
    ) {
        self.answers.waiting.lock().push_back(Wanted {
            ledger,
            entry,
            reply,
            _waits: waits,
        });
        self.read_for_recovery();
    }

    /// Starts the reads for which there is room.
    fn read_for_recovery(self: &Arc<Self>) {
        while let Some((wanted, permit)) = self.answers.next() {
            let core = Arc::clone(self);
            let job = move || core.read_one_for_recovery(wanted, permit);
            self.workers.run(Priority::Control, Box::new(job));
        }
    }

    fn read_one_for_recovery(self: Arc<Self>, wanted: Wanted, permit: BytePermit) {
        let range = ReadRange {
            ledger: wanted.ledger,
            token: None,
            first: wanted.entry,
            last: wanted.entry,
            bytes_max: ENTRY_BYTES_MAX,
            entries_max: 1,
            prefix_bytes: None,
        };
        let result = self.read_now(&range).and_then(|batch| {
            let entry = batch.entries.into_iter().next();
            entry.ok_or(BookieError::NoSuchEntry)
        });
        let core = Arc::downgrade(&self);
        let reply = wanted.reply;
        match result {
            Ok(entry) => {
                let held = held(entry, permit, core);
                // The entry was smaller than any may be: there is room for the next.
                self.read_for_recovery();
                // Whoever has the answer may close the bookie.
                drop(self);
                reply(Ok(OrderedReply::Entry(held)));
            }
            Err(error) => {
                drop(permit);
                self.read_for_recovery();
                drop(self);
                reply(Err(error));
            }
        }
    }
}

fn held(entry: StoredEntry, mut permit: BytePermit, core: Weak<Core>) -> StoredEntry {
    permit.shrink_to(entry.data.len());
    let data = Bytes::from_owner(Held {
        bytes: entry.data,
        permit: Some(permit),
        core,
    });
    StoredEntry { data, ..entry }
}

/// An answer whose bytes are not counted any more: for who keeps them.
pub fn uncounted(result: BookieResult<OrderedReply>) -> BookieResult<OrderedReply> {
    result.map(|reply| match reply {
        OrderedReply::Entry(entry) => OrderedReply::Entry(StoredEntry {
            data: Bytes::copy_from_slice(&entry.data),
            ..entry
        }),
        done => done,
    })
}
