//! One batch of a producer, from its first message to its receipt. Plain state.

use std::sync::Arc;

use aquifer_model::batch::BatchBuilder;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::trace::TraceContext;
use aquifer_runtime::clock::Instant;
use bytes::Bytes;

use crate::completion::Completion;
use crate::error::Result;
use crate::producer::budget::Cost;

/// The shared outcome of a batch.
pub(crate) type BatchOutcome = Completion<Result<Stored>>;

/// A batch is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Where; `None` for a duplicate that the broker no longer remembers.
    pub(crate) at: Option<(LedgerId, EntryId, Index)>,
    pub(crate) duplicate: bool,
}

/// A batch whose outcome is to be announced, outside the lock.
#[derive(Debug)]
pub(crate) struct Completed {
    pub(crate) outcome: Arc<BatchOutcome>,
    pub(crate) result: Result<Stored>,
    pub(crate) cost: Cost,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) lowest: u64,
    pub(super) highest: u64,
    pub(super) outcome: Arc<BatchOutcome>,
    pub(super) cost: Cost,
    pub(super) opened_at: Instant,
    /// Of its first message that has one.
    pub(super) trace: Option<TraceContext>,
    pub(super) state: State,
}

/// How far a batch is. It goes from each state to the next and never back.
#[derive(Debug)]
pub(super) enum State {
    /// Its messages are gathered.
    Gathering {
        builder: BatchBuilder,
        readiness: Readiness,
    },
    /// It is brought into its final bytes, outside the lock.
    Sealing,
    /// It has its final bytes.
    Sealed { bytes: Bytes, sent: Sent },
}

/// Whether a batch that gathers is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// It takes messages, and waits for more.
    Open,
    /// It is sent now, although it takes messages until then.
    Due,
    /// It is sent now and takes no more.
    Full,
}

/// Whether a broker may have stored a sealed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It was not sent, or certainly refused.
    No,
    /// It was sent, and no session has ended without telling of it.
    Yes,
    /// It was sent in an earlier session that told nothing about it.
    InDoubt,
}

impl Batch {
    /// Where it gathers: its builder, and whether it is to be sent.
    pub(super) fn gathering(&mut self) -> Option<(&mut BatchBuilder, &mut Readiness)> {
        match &mut self.state {
            State::Gathering { builder, readiness } => Some((builder, readiness)),
            State::Sealing | State::Sealed { .. } => None,
        }
    }

    /// Whether a broker may have stored it.
    pub(super) fn sent(&self) -> Sent {
        match &self.state {
            State::Sealed { sent, .. } => *sent,
            State::Gathering { .. } | State::Sealing => Sent::No,
        }
    }

    pub(super) fn complete(self, result: Result<Stored>) -> Completed {
        Completed {
            outcome: self.outcome,
            result,
            cost: self.cost,
        }
    }
}
