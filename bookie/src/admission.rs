//! The way of an ordered request into the journal.
//!
//! Invariant (H3): the decision about a request and its place in the journal's queue are one
//! critical section of its ledger. Requests that must look into the store first keep the ledger
//! busy, and later requests for it wait behind them.

use std::sync::Arc;

use aquifer_model::id::{CreationToken, EntryId, LEDGER_ID_MAX, LedgerId};
use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest,
    ReplyCallback,
};
use aquifer_runtime::budget::BytePermit;

use crate::core::Core;
use crate::journal::queue::{Class, Completion, Item};
use crate::journal::record::{Record, RecordKind, ValueHead};
use crate::ledger_state::{Admission, LedgerMeta, LedgerState, Stored};
use crate::ledgers::{self, Slot, Waiting};
use crate::store::StoreError;
use crate::workers::Priority;

/// What a request costs beyond its data, in bytes of the budget.
pub(crate) const REQUEST_BYTES: usize = 256;

/// What is left to do after a ledger's lock is released.
enum After {
    /// Nothing: the request is in the journal's queue.
    Queued,
    /// Answer it with an error.
    Refuse(Completion, BookieError),
    /// Look into the store for the entry of this add, then go on.
    Lookup(AddEntry, Box<Waiting>),
    /// Ask the gate whether the ledger may begin with this add, then go on.
    Ask(Box<Waiting>),
}

/// What must be known before the first waiting request of a ledger can be decided.
enum Question {
    /// What the store has in the place of this add.
    Stored(AddEntry),
    /// Whether the ledger with this token may begin here.
    MayBegin(CreationToken),
}

impl Slot {
    /// Keeps the ledger busy for a request that cannot be decided yet; gives everything else back.
    fn wait_for(&mut self, after: After) -> Result<Question, After> {
        let (question, waiting) = match after {
            After::Lookup(add, waiting) => (Question::Stored(add), waiting),
            After::Ask(waiting) => (Question::MayBegin(waiting.request.token), waiting),
            other => return Err(other),
        };
        self.busy = true;
        self.waiting.push_front(*waiting);
        Ok(question)
    }
}

impl Core {
    pub(crate) fn submit(self: &Arc<Self>, request: OrderedRequest, reply: ReplyCallback) {
        self.submit_into(None, request, reply);
    }

    /// Submits a request; `room` is what a normal add takes of the budget, if that was taken
    /// already.
    pub(crate) fn submit_into(
        self: &Arc<Self>,
        room: Option<BytePermit>,
        request: OrderedRequest,
        reply: ReplyCallback,
    ) {
        let permit = match self.let_in(&request, room) {
            Ok(permit) => permit,
            Err(error) => {
                self.shared.metrics.refused(&error);
                reply(Err(error));
                return;
            }
        };
        let ledger = request.ledger;
        let waiting = Waiting {
            request,
            reply,
            permit,
        };
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
        let after = slot.wait_for(after);
        drop(guard);
        match after {
            Ok(question) => self.find_out(ledger, question),
            Err(after) => self.end(after),
        }
    }

    /// Finds out what keeps a ledger busy.
    fn find_out(self: &Arc<Self>, ledger: LedgerId, question: Question) {
        match question {
            Question::Stored(add) => self.look_up(ledger, add),
            Question::MayBegin(token) => self.ask_gate(ledger, token),
        }
    }

    /// Checks that need no ledger, and takes the budget.
    fn let_in(
        &self,
        request: &OrderedRequest,
        room: Option<BytePermit>,
    ) -> BookieResult<BytePermit> {
        self.shared.mode.check()?;
        if request.ledger.0 > LEDGER_ID_MAX {
            return Err(BookieError::Invalid("ledger id above 2^53 - 1".to_owned()));
        }
        let OrderedOperation::Add(add) = &request.operation else {
            return self
                .shared
                .control
                .try_acquire(REQUEST_BYTES)
                .ok_or(BookieError::Overloaded);
        };
        if add.data.len() > ENTRY_BYTES_MAX {
            return Err(BookieError::Invalid(format!(
                "an entry has at most {ENTRY_BYTES_MAX} bytes, this one {}",
                add.data.len()
            )));
        }
        // The largest id stays free, so that there is always a next one.
        if add.entry.0 == u64::MAX {
            return Err(BookieError::Invalid("entry id too large".to_owned()));
        }
        let budget = if add.recovery {
            &self.shared.control
        } else {
            self.shared.mode.check_class(add.reserve)?;
            &self.shared.adds
        };
        let permit = room
            .or_else(|| budget.try_acquire(add.data.len() + REQUEST_BYTES))
            .ok_or(BookieError::Overloaded)?;
        if !add.is_intact(request.ledger) {
            return Err(BookieError::Digest(format!(
                "entry {}:{} as it arrived",
                request.ledger, add.entry
            )));
        }
        Ok(permit)
    }

    /// Decides and queues. The caller holds the ledger's lock; the state is loaded.
    fn admit(self: &Arc<Self>, slot: &mut Slot, waiting: Waiting, stored: Stored) -> After {
        let Some(state) = slot.state.as_mut() else {
            let error = BookieError::Io("ledger state is not loaded".to_owned());
            return After::Refuse(Completion::Reply(waiting.reply, done(None)), error);
        };
        let (ledger, token) = (waiting.request.ledger, waiting.request.token);
        let begins = !slot.may_begin && !state.has_entries() && self.gate.get().is_some();
        let admission = match &waiting.request.operation {
            OrderedOperation::Add(add) => {
                match state.check_add(token, add, stored, self.limbo.is_on()) {
                    Admission::Lookup => {
                        return After::Lookup(add.clone(), Box::new(waiting));
                    }
                    Admission::Journal(_) if begins && !add.recovery => {
                        return After::Ask(Box::new(waiting));
                    }
                    decided => decided,
                }
            }
            // Decided below.
            _ => Admission::Known,
        };
        let Waiting {
            request,
            reply,
            permit,
        } = waiting;
        match request.operation {
            OrderedOperation::Add(add) => {
                self.add(state, (ledger, token, add), admission, permit, reply)
            }
            OrderedOperation::Fence => {
                let answer = Completion::Reply(reply, done(state.lac()));
                self.change(state, ledger, token, RecordKind::Fence, permit, answer)
            }
            OrderedOperation::RecoveryRead(entry) => {
                let core = Arc::clone(self);
                // It waits behind its fence as well.
                let Some(waits) = self.shared.control.try_acquire(REQUEST_BYTES) else {
                    let answer = Completion::Reply(reply, done(None));
                    return After::Refuse(answer, BookieError::Overloaded);
                };
                let answer = Completion::Run(Box::new(move |synced| match synced {
                    Ok(()) => core.recovery_read(ledger, entry, waits, reply),
                    Err(error) => reply(Err(error)),
                }));
                self.change(state, ledger, token, RecordKind::Fence, permit, answer)
            }
            OrderedOperation::WriteLac(lac) => {
                let answer = Completion::Reply(reply, done(state.lac().max(Some(lac))));
                self.change(state, ledger, token, RecordKind::Lac(lac), permit, answer)
            }
            OrderedOperation::Delete => {
                let answer = Completion::Reply(reply, done(state.lac()));
                self.change(state, ledger, token, RecordKind::Delete, permit, answer)
            }
        }
    }

    /// Queues an add that is decided.
    fn add(
        &self,
        state: &mut LedgerState,
        (ledger, token, add): (LedgerId, CreationToken, AddEntry),
        admission: Admission,
        permit: BytePermit,
        reply: ReplyCallback,
    ) -> After {
        match admission {
            Admission::Refuse(error) => After::Refuse(Completion::Reply(reply, done(None)), error),
            // Looked up by the caller; to the client it would be a moment in which to wait.
            Admission::Lookup => After::Refuse(
                Completion::Reply(reply, done(None)),
                BookieError::Overloaded,
            ),
            Admission::Known => {
                let answer = Completion::Reply(reply, done(state.lac()));
                self.push(item(Class::Control, None, None, permit, answer))
                    .map_or_else(refuse, |_| After::Queued)
            }
            Admission::Journal(meta) => {
                let lac = state.lac().max(add.last_add_confirmed);
                let answer = Completion::Reply(reply, done(lac));
                let record = add_record(ledger, token, &add);
                let class = if add.recovery {
                    Class::Control
                } else {
                    Class::Normal
                };
                match self.push(item(class, Some(record), meta, permit, answer)) {
                    Ok(number) => {
                        state.added(token, add, number);
                        After::Queued
                    }
                    Err(refused) => refuse(refused),
                }
            }
        }
    }

    /// Queues a change of the ledger's record, or only a wait when it is so already.
    fn change(
        &self,
        state: &mut LedgerState,
        ledger: LedgerId,
        token: CreationToken,
        kind: RecordKind,
        permit: BytePermit,
        answer: Completion,
    ) -> After {
        let meta = match state.check_change(token, kind) {
            Ok(meta) => meta,
            Err(error) => return After::Refuse(answer, error),
        };
        let record = meta.map(|_| Record {
            ledger,
            token,
            kind,
            value: None,
        });
        match self.push(item(Class::Control, record, meta, permit, answer)) {
            Ok(_) => {
                if let Some(meta) = meta {
                    state.changed(meta);
                }
                After::Queued
            }
            Err(refused) => refuse(refused),
        }
    }

    fn push(&self, item: Item) -> Result<u64, (BookieError, Completion)> {
        self.shared.queue.push(item)
    }

    fn end(&self, after: After) {
        if let After::Refuse(completion, error) = after {
            self.shared.metrics.refused(&error);
            completion.run(Err(error));
        }
    }

    /// Loads a ledger's state on the pool, then lets the waiting requests go on.
    fn load(self: &Arc<Self>, ledger: LedgerId) {
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
    fn look_up(self: &Arc<Self>, ledger: LedgerId, add: AddEntry) {
        let core = Arc::clone(self);
        let job = move || match core.shared.store.compare(ledger, &add) {
            Ok(stored) => core.resume(ledger, stored),
            Err(error) => core.refuse_all(ledger, &error),
        };
        self.workers.run(Priority::Control, Box::new(job));
    }

    /// Lets waiting requests go on; `stored` is about the first.
    pub(crate) fn resume(self: &Arc<Self>, ledger: LedgerId, mut stored: Stored) {
        let mut refusals = Vec::new();
        let mut question = None;
        {
            let mut guard = self.shared.ledgers.lock(ledger);
            let slot = guard.slot();
            slot.busy = false;
            while let Some(waiting) = slot.waiting.pop_front() {
                let after = self.admit(slot, waiting, stored);
                match slot.wait_for(after) {
                    Ok(asked) => {
                        question = Some(asked);
                        break;
                    }
                    Err(After::Queued) => {}
                    Err(after) => refusals.push(after),
                }
                stored = Stored::NotLooked;
            }
        }
        for after in refusals {
            self.end(after);
        }
        if let Some(question) = question {
            self.find_out(ledger, question);
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

fn done(last_add_confirmed: Option<EntryId>) -> OrderedReply {
    OrderedReply::Done { last_add_confirmed }
}

fn refuse((error, completion): (BookieError, Completion)) -> After {
    After::Refuse(completion, error)
}

fn item(
    class: Class,
    record: Option<Record>,
    meta: Option<LedgerMeta>,
    permit: BytePermit,
    completion: Completion,
) -> Item {
    Item {
        number: 0,
        class,
        record,
        meta,
        permit: Some(permit),
        completion,
    }
}

fn add_record(ledger: LedgerId, token: CreationToken, add: &AddEntry) -> Record {
    let kind = if add.recovery {
        RecordKind::RecoveryAdd(add.entry)
    } else {
        RecordKind::Add(add.entry)
    };
    Record {
        ledger,
        token,
        kind,
        value: Some((ValueHead::of(add), add.data.clone())),
    }
}
