//! The way of an ordered request into the journal: the door (`door.rs`), the turn of its tenant
//! (`turns.rs`), a decision under the ledger's lock, the journal's queue; and what must be asked
//! before that (`ask.rs`).
//!
//! Invariant (H3): the decision about a request and its place in the journal's queue are one
//! critical section of its ledger. Requests that must look into the store first keep the ledger
//! busy, and later requests for it wait behind them.

mod ask;
mod door;
pub(crate) mod turns;

use std::sync::Arc;

use aquifer_model::id::{CreationToken, EntryId, LedgerId};
use aquifer_model::storage::{
    AddEntry, BookieError, OrderedOperation, OrderedReply, OrderedRequest, ReplyCallback,
};
use aquifer_runtime::budget::BytePermit;

use crate::core::Core;
use crate::journal::queue::{Class, Completion, Item};
use crate::journal::record::{Record, RecordKind, ValueHead};
use crate::ledger_state::{Decision, Facts, LedgerMeta, LedgerState, Stored};
use crate::ledgers::{Slot, Waiting};
use crate::trace;

/// What is left to do after a ledger's lock is released.
enum After {
    /// Nothing: the request is in the journal's queue.
    Queued,
    /// Answer it with an error.
    Refuse(Completion, BookieError),
    /// Find something out, then decide again; the ledger is busy until then.
    Ask(Question),
}

/// What must be known before the first waiting request of a ledger can be decided.
enum Question {
    /// What the store has in the place of this add.
    Stored(AddEntry),
    /// Whether the ledger with this token may begin here.
    MayBegin(CreationToken),
}

impl Slot {
    /// Keeps the ledger busy for a request that cannot be decided yet.
    fn wait_for(&mut self, question: Question, waiting: Waiting) -> After {
        self.busy = true;
        self.waiting.push_front(waiting);
        After::Ask(question)
    }
}

impl Core {
    /// Queues a request that was let in, behind what waits for its ledger.
    fn enter(self: &Arc<Self>, request: OrderedRequest, reply: ReplyCallback, permit: BytePermit) {
        self.take_turn(Waiting {
            request,
            reply,
            permit,
        });
    }

    /// Lets a request in, or has it wait for its turn.
    fn take_turn(self: &Arc<Self>, waiting: Waiting) {
        let (shared, tenant) = (&self.shared, waiting.request.tenant);
        let synced = shared.progress.synced.get();
        let queued = shared.queue.bytes();
        if !shared.turns.must_wait(tenant, synced, queued) {
            self.begin(waiting);
            return;
        }
        let data = match &waiting.request.operation {
            OrderedOperation::Add(add) => add.data.len(),
            OrderedOperation::Fence
            | OrderedOperation::RecoveryRead(_)
            | OrderedOperation::WriteLac(_)
            | OrderedOperation::Delete => 0,
        };
        shared.turns.push(door::REQUEST_BYTES + data, waiting);
        self.serve_turns();
    }

    /// Lets in what waits for its turn, as far as the journal has room for it.
    pub(crate) fn serve_turns(self: &Arc<Self>) {
        let (turns, journal) = (&self.shared.turns, &self.shared.queue);
        let mut is_mine = false;
        while let Some(waiting) = turns.next(is_mine, || journal.bytes()) {
            is_mine = true;
            self.begin(waiting);
        }
    }

    /// Begins with a request whose turn it is.
    fn begin(self: &Arc<Self>, waiting: Waiting) {
        let ledger = waiting.request.ledger;
        let mut guard = self.shared.ledgers.lock(ledger);
        let slot = guard.slot();
        if slot.busy {
            slot.waiting.push_back(waiting);
            return;
        }
        if slot.state.is_none() {
            slot.busy = true;
            slot.waiting.push_back(waiting);
            drop(guard);
            self.load(ledger);
            return;
        }
        let after = self.admit(slot, waiting, Stored::NotLooked);
        drop(guard);
        self.go_on(ledger, after);
    }

    /// Decides and queues. The caller holds the ledger's lock; the state is loaded.
    fn admit(self: &Arc<Self>, slot: &mut Slot, waiting: Waiting, stored: Stored) -> After {
        let Some(state) = slot.state.as_mut() else {
            let error = BookieError::Io("ledger state is not loaded".to_owned());
            return After::Refuse(Completion::Reply(waiting.reply, done(None)), error);
        };
        let facts = Facts {
            stored,
            limbo: self.limbo.is_on(),
            must_ask: !slot.may_begin && self.gate.get().is_some(),
        };
        let change = match state.decide(&waiting.request, facts) {
            Decision::Journal(kind, meta) => Some((kind, meta)),
            Decision::Known => None,
            Decision::Look(add) => return slot.wait_for(Question::Stored(add), waiting),
            Decision::Ask => {
                let question = Question::MayBegin(waiting.request.token);
                return slot.wait_for(question, waiting);
            }
            Decision::Refuse(error) => {
                return After::Refuse(Completion::Reply(waiting.reply, done(None)), error);
            }
        };
        match self.queue(state, waiting, change) {
            Ok(()) => After::Queued,
            Err((error, completion)) => After::Refuse(completion, error),
        }
    }

    /// Queues a request that is decided: its record, or only a wait where it is so already.
    fn queue(
        self: &Arc<Self>,
        state: &mut LedgerState,
        waiting: Waiting,
        change: Option<(RecordKind, Option<LedgerMeta>)>,
    ) -> Result<(), (BookieError, Completion)> {
        let Waiting {
            request,
            reply,
            permit,
        } = waiting;
        let (ledger, token, lac) = (request.ledger, request.token, state.lac());
        let (completion, add) = match request.operation {
            OrderedOperation::Add(add) => {
                let carried = add.last_add_confirmed.filter(|_| change.is_some());
                let reply = trace::commit(&add, reply);
                (Completion::Reply(reply, done(lac.max(carried))), Some(add))
            }
            OrderedOperation::Fence | OrderedOperation::Delete => {
                (Completion::Reply(reply, done(lac)), None)
            }
            OrderedOperation::WriteLac(told) => {
                (Completion::Reply(reply, done(lac.max(Some(told)))), None)
            }
            OrderedOperation::RecoveryRead(entry) => (self.then_read(ledger, entry, reply)?, None),
        };
        let is_normal = change.is_some() && add.as_ref().is_some_and(|add| !add.recovery);
        let value = |add: &AddEntry| (ValueHead::of(add), add.data.clone());
        let record = change.map(|(kind, _)| Record {
            ledger,
            token,
            kind,
            value: add.as_ref().map(value),
        });
        let meta = change.and_then(|(_, meta)| meta);
        let number = self.shared.queue.push(Item {
            number: 0,
            class: if is_normal {
                Class::Normal
            } else {
                Class::Control
            },
            record,
            meta,
            permit: Some(permit),
            completion,
        })?;
        match (add, meta) {
            (Some(add), _) if change.is_some() => state.added(token, add, number),
            (None, Some(meta)) => state.changed(meta),
            (Some(_), _) | (None, None) => {}
        }
        Ok(())
    }

    /// A recovery read goes on when its fence is synced; it waits behind that as well.
    fn then_read(
        self: &Arc<Self>,
        ledger: LedgerId,
        entry: EntryId,
        reply: ReplyCallback,
    ) -> Result<Completion, (BookieError, Completion)> {
        let Some(waits) = self.shared.control.try_acquire(door::REQUEST_BYTES) else {
            let completion = Completion::Reply(reply, done(None));
            return Err((BookieError::Overloaded, completion));
        };
        let core = Arc::clone(self);
        Ok(Completion::Run(Box::new(move |synced| match synced {
            Ok(()) => core.recovery_read(ledger, entry, waits, reply),
            Err(error) => reply(Err(error)),
        })))
    }

    /// Does what is left when the ledger's lock is released.
    fn go_on(self: &Arc<Self>, ledger: LedgerId, after: After) {
        match after {
            After::Queued => {}
            After::Refuse(completion, error) => {
                self.shared.metrics.refused(&error);
                completion.run(Err(error));
            }
            After::Ask(Question::Stored(add)) => self.look_up(ledger, add),
            After::Ask(Question::MayBegin(token)) => self.ask_add_gate(ledger, token),
        }
    }
}

fn done(last_add_confirmed: Option<EntryId>) -> OrderedReply {
    OrderedReply::Done { last_add_confirmed }
}
