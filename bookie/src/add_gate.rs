//! Whether a ledger may begin on this bookie: asked once, before the first normal add.
//!
//! A bookie that took the place of another, or came back as a fresh one, has no fence that would
//! stop a former writer; so a normal add is the beginning of a ledger here only after a process
//! that can see metadata has said so. This complements fencing and never replaces it: between the
//! answer and the add a recovery may begin, and then the fence decides (I4).
//!
//! Nothing waits in a thread: the ledger is busy until the answer comes, later requests for it
//! queue behind it, and those for others go on.

use aquifer_model::id::{CreationToken, LedgerId};
use aquifer_model::storage::{BookieError, BookieResult};

/// Asked when a normal add would begin a ledger here. It must not block, and answers when it knows.
pub type AddGate = Box<dyn Fn(LedgerId, CreationToken, GateAnswer) + Send + Sync>;

/// The place for the answer. Dropping it refuses, for this time.
pub struct GateAnswer {
    give: Option<Box<dyn FnOnce(BookieResult<()>) + Send>>,
}

impl GateAnswer {
    /// A place whose answer goes to `give`.
    pub(crate) fn new(give: impl FnOnce(BookieResult<()>) + Send + 'static) -> GateAnswer {
        GateAnswer {
            give: Some(Box::new(give)),
        }
    }

    /// Lets the ledger begin, or refuses the adds that wait for it; the next one asks again.
    pub fn give(mut self, answer: BookieResult<()>) {
        if let Some(give) = self.give.take() {
            give(answer);
        }
    }
}

impl Drop for GateAnswer {
    fn drop(&mut self) {
        if let Some(give) = self.give.take() {
            give(Err(BookieError::ShuttingDown));
        }
    }
}
