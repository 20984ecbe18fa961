//! What must be known before a request can be decided: the ledger's state, what is stored in the
//! place of an add, whether a ledger may begin here. The ledger is busy meanwhile and nothing waits
//! in a thread.

use std::sync::Arc;

use aquifer_model::id::{CreationToken, LedgerId};
use aquifer_model::storage::{AddEntry, BookieError, BookieResult, OrderedOperation};

use crate::add_gate::GateAnswer;
use crate::admission::After;
use crate::core::Core;
use crate::ledger_state::Stored;
use crate::ledgers::{self, Waiting};
use crate::store::StoreError;
use crate::workers::Priority;

impl Core {
    /// Loads a ledger's state on the pool, then lets the waiting requests go on.
    pub(super) fn load(self: &Arc<Self>, ledger: LedgerId) {
        let core = Arc::clone(self);
        let job = move || match ledgers::load(&*core.shared.store, ledger) {
            Ok(state) => {
                core.shared.ledgers.lock(ledger).slot().state = Some(state);
                core.resume(ledger, Stored::NotLooked);
            }
            Err(error) => core.refuse_all(ledger, &error),
        };
        self.workers.run(Priority::Control, Box::new(job));
    }

    /// Looks on the pool for the add of the first waiting request.
    pub(super) fn look_up(self: &Arc<Self>, ledger: LedgerId, add: AddEntry) {
        let core = Arc::clone(self);
        let job = move || match core.shared.store.compare(ledger, &add) {
            Ok(stored) => core.resume(ledger, stored),
            Err(error) => core.refuse_all(ledger, &error),
        };
        self.workers.run(Priority::Control, Box::new(job));
    }

    /// Asks about a ledger that the caller has made busy.
    pub(super) fn ask_add_gate(self: &Arc<Self>, ledger: LedgerId, token: CreationToken) {
        let core = Arc::clone(self);
        let answer = GateAnswer::new(move |answer| core.add_gate_answered(ledger, answer));
        match self.gate.get() {
            Some(gate) => gate(ledger, token, answer),
            None => answer.give(Ok(())),
        }
    }

    fn add_gate_answered(self: &Arc<Self>, ledger: LedgerId, answer: BookieResult<()>) {
        let refused = {
            let mut guard = self.shared.ledgers.lock(ledger);
            let slot = guard.slot();
            slot.may_begin = answer.is_ok();
            match &answer {
                Ok(()) => Vec::new(),
                // Fences and recovery, which may be among those that wait, ask no other process.
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

    /// Lets waiting requests go on; `stored` is about the first.
    fn resume(self: &Arc<Self>, ledger: LedgerId, mut stored: Stored) {
        let mut left = Vec::new();
        {
            let mut guard = self.shared.ledgers.lock(ledger);
            let slot = guard.slot();
            slot.busy = false;
            while !slot.busy
                && let Some(waiting) = slot.waiting.pop_front()
            {
                match self.admit(slot, waiting, stored) {
                    After::Queued => {}
                    after => left.push(after),
                }
                stored = Stored::NotLooked;
            }
        }
        for after in left {
            self.go_on(ledger, after);
        }
    }

    /// The store failed: nothing can be decided about the ledger now.
    fn refuse_all(&self, ledger: LedgerId, error: &StoreError) {
        let waiting = {
            let mut guard = self.shared.ledgers.lock(ledger);
            let slot = guard.slot();
            slot.busy = false;
            let waiting = std::mem::take(&mut slot.waiting);
            if slot.state.is_none() {
                guard.forget();
            }
            waiting
        };
        for waiting in waiting {
            let error = BookieError::Io(error.to_string());
            self.shared.metrics.refused(&error);
            (waiting.reply)(Err(error));
        }
    }
}

fn is_normal_add(waiting: &Waiting) -> bool {
    matches!(&waiting.request.operation, OrderedOperation::Add(add) if !add.recovery)
}
