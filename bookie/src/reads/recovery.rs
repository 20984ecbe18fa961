//! Recovery reads: the read follows its fence, and its answer waits for room.
//!
//! A recovery has to know what damage proves. An entry that is here and cannot be read was stored,
//! and is part of the ledger; where a damaged block hides the end of the ledger, nothing tells.

use std::sync::Arc;

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_model::storage::{BookieError, OrderedReply, ReadRange, ReplyCallback};
use aquifer_runtime::budget::BytePermit;

use crate::answers::{Wanted, held};
use crate::core::Core;
use crate::workers::Priority;

impl Core {
    /// Bytes of answers to recovery reads that are not taken yet.
    #[cfg(test)]
    pub(crate) fn answer_bytes(&self) -> usize {
        self.answers.used_bytes()
    }

    /// The read half of a recovery read; the fence is synced.
    pub(crate) fn recovery_read(
        self: &Arc<Self>,
        ledger: LedgerId,
        entry: EntryId,
        waits: BytePermit,
        reply: ReplyCallback,
    ) {
        self.answers.push(Wanted {
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
        let result = match self.read_now(&range) {
            Ok(batch) => {
                let entry = batch.entries.into_iter().next();
                entry.ok_or(BookieError::NoSuchEntry)
            }
            Err(BookieError::Digest(what)) => Err(self.damaged(&range, what)),
            Err(error) => Err(error),
        };
        let core = Arc::downgrade(&self);
        let taken = move || {
            if let Some(core) = core.upgrade() {
                core.read_for_recovery();
            }
        };
        let reply = wanted.reply;
        match result {
            Ok(entry) => {
                let held = held(entry, permit, taken);
                // The entry was smaller than any may be: there is room for the next.
                self.read_for_recovery();
                // The receiver of the answer may close the bookie.
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

    /// What damage means of an entry that was to be read.
    fn damaged(&self, range: &ReadRange, what: String) -> BookieError {
        match self.shared.store.hides_end(range.ledger, range.first) {
            Ok(false) => BookieError::Digest(what),
            Ok(true) => BookieError::EndHidden(what),
            Err(error) => error.into(),
        }
    }
}
