//! What a writer sends in one go: adds with their data, as their bookies get them.

use aquifer_model::entry::EntryData;
use aquifer_model::storage::AddEntry;
use aquifer_model::trace::TraceContext;

use crate::writer::driver::{Inner, Outgoing, State};
use crate::writer::machine::PlannedAdd;

pub(super) type Ready = (
    Outgoing,
    PlannedAdd,
    EntryData,
    Option<u32>,
    Option<TraceContext>,
);

impl State {
    /// Everything to send, with its data. What was let go of meanwhile needs no send; what a
    /// bookie still lacks of it is repair's concern.
    pub(super) fn take_batch(&mut self) -> Vec<Ready> {
        let outbox = std::mem::take(&mut self.outbox);
        outbox
            .into_iter()
            .filter_map(|outgoing| {
                let add = self.add_of(outgoing.entry)?;
                let data = add.data.clone();
                Some((outgoing, add.planned, data, add.digest, add.trace))
            })
            .collect()
    }
}

impl Inner {
    /// An add as it is sent. Computes the digest of an add that has no digest yet.
    pub(super) fn add_entry(
        &self,
        planned: PlannedAdd,
        data: EntryData,
        digest: Option<u32>,
    ) -> AddEntry {
        let lac = planned.last_add_confirmed;
        let reserve = self.reserve;
        match digest {
            None => AddEntry {
                reserve,
                ..AddEntry::new(self.ledger, planned.entry, lac, planned.ledger_length, data)
            },
            Some(digest) => AddEntry {
                entry: planned.entry,
                last_add_confirmed: lac,
                ledger_length: planned.ledger_length,
                digest,
                recovery: false,
                reserve,
                data,
                trace: None,
            },
        }
    }
}
