//! What a writer is told and what it asks for.

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::storage::{BookieError, BookieResult, OrderedReply};

/// What happens to a writer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WriterEvent {
    /// A bookie answered an add.
    Reply {
        /// Its position in the ensemble when the add was sent.
        position: usize,
        /// The bookie that was there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
        /// The answer.
        reply: AddReply,
    },
    /// The pause that [`WriterAction::ScheduleRetry`] asked for is over.
    RetryDue,
    /// The pause that [`WriterAction::ScheduleChange`] asked for is over.
    ChangeDue,
    /// Metadata has the new last fragment.
    EnsembleChanged {
        /// Its members, by position.
        members: Vec<BookieId>,
    },
    /// No replacement, or metadata refused for another reason than a recovery.
    EnsembleChangeFailed,
    /// Memory is short: nothing acknowledged is kept for slower bookies any more.
    Shed,
    /// Metadata shows that a recovery has begun, or that the ledger is closed.
    Superseded,
}

/// How a bookie answered an add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddReply {
    /// It has the entry durably.
    Stored,
    /// It refuses normal adds because of a fence, or the ledger is deleted.
    Fenced,
    /// It has too much to do; the entry is not stored.
    Overloaded,
    /// It takes no new entries and will not soon: replacing it cannot wait.
    Refused,
    /// Anything else: whether it has the entry is unknown, and it cannot be relied on.
    Failed,
}

impl AddReply {
    /// What a bookie's answer to an add means to the writer.
    #[must_use]
    pub fn of(result: &BookieResult<OrderedReply>) -> AddReply {
        match result {
            Ok(OrderedReply::Done { .. }) => AddReply::Stored,
            Ok(OrderedReply::Entry(_)) => AddReply::Failed,
            Err(BookieError::Fenced | BookieError::Deleted) => AddReply::Fenced,
            Err(BookieError::ReadOnly(_)) => AddReply::Refused,
            Err(BookieError::Overloaded) => AddReply::Overloaded,
            Err(_) => AddReply::Failed,
        }
    }
}

/// What the driver does next, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WriterAction {
    /// Send the add of `entry` to `bookie`.
    Send {
        /// Position in the ensemble.
        position: usize,
        /// The bookie that is there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// The entry is durable and is the new last-add-confirmed.
    Acknowledge {
        /// The entry.
        entry: EntryId,
    },
    /// Send [`WriterEvent::RetryDue`] after a pause.
    ScheduleRetry,
    /// Send [`WriterEvent::ChangeDue`] after a pause.
    ScheduleChange {
        /// There was no replacement at the last attempt; otherwise a change is only put off.
        again: bool,
    },
    /// Find other bookies for these positions and change metadata: the fragment that begins at
    /// `first_entry` replaces the last if that begins there too, else it is appended.
    ChangeEnsemble {
        /// Where the new fragment begins.
        first_entry: EntryId,
        /// Positions to replace.
        failed: Vec<usize>,
    },
    /// The writer is finished: no more entries will be acknowledged.
    Stop {
        /// Why.
        reason: StopReason,
    },
}

/// Why a writer is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// A recovery has taken over (I4).
    Fenced,
    /// The bookie at this position failed, could not be replaced, and without it an ack quorum
    /// cannot be reached.
    Failed {
        /// The position.
        position: usize,
    },
}

/// What an add carries besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlannedAdd {
    /// Its number.
    pub entry: EntryId,
    /// The LAC to send along.
    pub last_add_confirmed: Option<EntryId>,
    /// Bytes of the ledger with it.
    pub ledger_length: u64,
}

/// Where a ledger ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LedgerEnd {
    /// The last entry, if there is any.
    pub last_entry: Option<EntryId>,
    /// Bytes up to and including it.
    pub length: u64,
}

/// How a writer treats bookies that are slow or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriterOptions {
    /// Rounds of resends to an overloaded bookie without any progress before it has failed.
    pub overload_retries_max: u32,
    /// Bytes of acknowledged entries that some bookie still lacks; beyond, acknowledgements wait
    /// for it.
    pub kept_bytes_max: u64,
    /// A failed bookie is replaced only after a pause, while the others make ack quorums.
    pub delay_changes: bool,
}
