//! A bookie in the cluster: its machine, and whether it runs.

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedRequest, ReadBatch, ReadRange, StoredEntry,
};
use bytes::Bytes;

use crate::bookie::SimBookie;
use crate::cluster::net::Ticket;
use crate::defect::Defect;

/// The id of a bookie.
pub(super) fn id_of(number: u8) -> BookieId {
    BookieId([number + 1; 16])
}

/// A bookie and what befalls it. Times are microseconds of virtual time.
pub(super) struct Node {
    pub(super) bookie: SimBookie<Ticket>,
    pub(super) up: bool,
    /// Counts starts: what an earlier life planned does not happen.
    pub(super) life: u64,
    pub(super) paused_until: u64,
    pub(super) overloaded_until: u64,
    pub(super) read_only_until: u64,
    /// What its disk and network take in addition.
    pub(super) slow_until: u64,
    pub(super) commit_planned: bool,
    pub(super) flush_planned: bool,
    defect: Option<Defect>,
}

impl Node {
    pub(super) fn new(defect: Option<Defect>) -> Node {
        Node {
            bookie: SimBookie::new(defect),
            up: true,
            life: 0,
            paused_until: 0,
            overloaded_until: 0,
            read_only_until: 0,
            slow_until: 0,
            commit_planned: false,
            flush_planned: false,
            defect,
        }
    }

    /// Answers a read.
    pub(super) fn read(&self, range: ReadRange) -> BookieResult<ReadBatch> {
        match self.bookie.read(range) {
            // Repair asks so whether a bookie has what it should: it wants hardly any bytes. The
            // answer is as if it took a negative for the absence of the entries.
            Err(BookieError::NoSuchEntry)
                if self.defect == Some(Defect::NegativeTakenForAbsence)
                    && range.prefix_bytes == Some(1) =>
            {
                Ok(nothing_to_miss(&range))
            }
            result => result,
        }
    }

    /// What the door of a bookie refuses before any ledger is looked at.
    pub(super) fn refuses(&self, request: &OrderedRequest, now: u64) -> Option<BookieError> {
        match &request.operation {
            OrderedOperation::Add(add) if !add.is_intact(request.ledger) => {
                Some(BookieError::Digest("as it arrived".to_owned()))
            }
            OrderedOperation::Add(add) if add.recovery => None,
            OrderedOperation::Add(_) if now < self.read_only_until => {
                Some(BookieError::ReadOnly("simulated".to_owned()))
            }
            OrderedOperation::Add(_) if now < self.overloaded_until => {
                Some(BookieError::Overloaded)
            }
            _ => None,
        }
    }

    /// The process ends; nothing that it planned happens.
    pub(super) fn stop(&mut self) {
        self.up = false;
        self.life += 1;
        self.paused_until = 0;
        self.commit_planned = false;
        self.flush_planned = false;
    }
}

fn nothing_to_miss(range: &ReadRange) -> ReadBatch {
    let entries = (range.first.0..=range.last.0).take(range.entries_max);
    let entry = |id| StoredEntry {
        entry: EntryId(id),
        last_add_confirmed: None,
        ledger_length: 0,
        digest: 0,
        data: Bytes::new(),
    };
    ReadBatch {
        entries: entries.map(entry).collect(),
        last_add_confirmed: None,
    }
}
