//! A bookie in the cluster: its machine, and whether it runs.

use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedRequest, Presence, PresenceRange,
    ReadBatch, ReadRange,
};

use crate::bookie::SimBookie;
use crate::cluster::net::Ticket;
use crate::defect::Defect;

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
        self.bookie.read(range)
    }

    /// Says which entries are there.
    pub(super) fn has(&self, range: PresenceRange) -> BookieResult<Presence> {
        let mut presence = self.bookie.present(range)?;
        // Repair asks so whether a bookie has what it should. The answer is as if it took a
        // negative for the absence of the entries.
        if self.defect == Some(Defect::NegativeTakenForAbsence) {
            presence.runs = vec![(range.first, presence.until)];
        }
        Ok(presence)
    }

    /// What the admission of a bookie refuses before any ledger is looked at.
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
