//! Whether a ledger may begin on this bookie: asked once, before the first normal add.
//!
//! A bookie that took the place of another, or came back as a fresh one, has no fence that would
//! stop a former writer; so a normal add is the beginning of a ledger here only after somebody who
//! can see metadata has said so. This complements fencing and never replaces
//! it: between the answer and the add a recovery may begin, and then the fence decides (I4).
//!
//! Nothing waits in a thread: the ledger is busy until the answer comes, later requests for it
//! queue behind it, and those for others go on.

use std::sync::Arc;

use aquifer_model::id::{CreationToken, LedgerId};
use aquifer_model::storage::{BookieError, BookieResult, OrderedOperation};

use crate::core::Core;
use crate::ledger_state::Stored;
use crate::ledgers::Waiting;

/// Asked when a normal add would begin a ledger here. It must not block, and answers when it knows.
pub type LedgerGate = Box<dyn Fn(LedgerId, CreationToken, GateAnswer) + Send + Sync>;

/// The place for the answer. Dropping it refuses, for this time.
pub struct GateAnswer {
    asked: Option<(Arc<Core>, LedgerId)>,
}

impl GateAnswer {
    /// Lets the ledger begin, or refuses the adds that wait for it; the next one asks again.
    pub fn give(mut self, answer: BookieResult<()>) {
        if let Some((core, ledger)) = self.asked.take() {
            core.gate_answered(ledger, answer);
        }
    }
}

impl Drop for GateAnswer {
    fn drop(&mut self) {
        if let Some((core, ledger)) = self.asked.take() {
            core.gate_answered(ledger, Err(BookieError::ShuttingDown));
        }
    }
}

impl Core {
    /// Asks about a ledger that the caller has made busy.
    pub(crate) fn ask_gate(self: &Arc<Self>, ledger: LedgerId, token: CreationToken) {
        let answer = GateAnswer {
            asked: Some((Arc::clone(self), ledger)),
        };
        match self.gate.get() {
            Some(gate) => gate(ledger, token, answer),
            None => answer.give(Ok(())),
        }
    }

    fn gate_answered(self: &Arc<Self>, ledger: LedgerId, answer: BookieResult<()>) {
        let refused = {
            let mut guard = self.shared.ledgers.lock(ledger);
            let slot = guard.slot();
            slot.may_begin = answer.is_ok();
            match &answer {
                Ok(()) => Vec::new(),
                // Fences and recovery, which may be among those that wait, ask nobody.
                Err(_) => {
                    let waiting = std::mem::take(&mut slot.waiting).into_iter();
                    let (refused, others): (Vec<_>, Vec<_>) = waiting.partition(is_normal_add);
                    slot.waiting.extend(others);
                    refused
                }
            }
        };
        if let Err(error) = answer {
            for Waiting { reply, .. } in refused {
                self.shared.metrics.refused(&error);
                reply(Err(error.clone()));
            }
        }
        self.resume(ledger, Stored::NotLooked);
    }
}

fn is_normal_add(waiting: &Waiting) -> bool {
    matches!(&waiting.request.operation, OrderedOperation::Add(add) if !add.recovery)
}
