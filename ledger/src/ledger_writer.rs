//! Runs a [`Writer`] against bookies: sends, timeouts, resends, ensemble changes.
//!
//! Two queues make order independent of threads: what is to be sent, and what the owner is to be
//! told. Each is drained by one thread at a time, without any lock held, so that adds reach a
//! bookie's stream in the order of the machine's actions, and the owner hears of entries in order.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::Guard;
use aquifer_model::entry::EntryData;
use aquifer_model::id::{BookieId, CreationToken, EntryId, LedgerId};
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest,
};
use aquifer_runtime::clock;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::context::LogContext;
use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo, LedgerState};
use crate::writer::{
    AddReply, LedgerEnd, PlannedAdd, StopReason, Writer, WriterAction, WriterEvent,
};

thread_local! {
    /// Set while this thread hands entries to bookies for a caller of `append`, which must not
    /// hear of outcomes before it returns.
    static SENDING: Cell<bool> = const { Cell::new(false) };
}

/// Who owns a writer. Calls come one at a time, in order, from any thread, with no lock held.
pub(crate) trait WriterOwner: Send + Sync {
    /// The entry is acknowledged; all before it were.
    fn added(&self, ledger: LedgerId, entry: EntryId);
    /// No more entries will be acknowledged; the last call.
    fn stopped(&self, ledger: LedgerId, error: LedgerError);
}

/// The writer of an open ledger. Clones share it.
#[derive(Clone)]
pub(crate) struct LedgerWriter {
    inner: Arc<Inner>,
}

struct Inner {
    ctx: Arc<LogContext>,
    runtime: Handle,
    ledger: LedgerId,
    token: CreationToken,
    guards: Vec<Guard>,
    owner: Weak<dyn WriterOwner>,
    state: Mutex<State>,
}

struct State {
    machine: Writer,
    /// The record as of the last change by this writer.
    info: LedgerInfo,
    /// Data of unacknowledged adds, from the machine's first pending entry on.
    adds: VecDeque<Add>,
    first: EntryId,
    outbox: VecDeque<Outgoing>,
    sending: bool,
    news: VecDeque<News>,
    telling: bool,
    /// A task watches for timeouts; it counts its rounds.
    watched: bool,
    round: u64,
    last_errors: Vec<Option<BookieError>>,
}

struct Add {
    planned: PlannedAdd,
    data: EntryData,
    /// Computed when it is first sent, outside the lock.
    digest: Option<u32>,
    /// Round of the watcher in which it was added.
    round: u64,
}

#[derive(Clone, Copy)]
struct Outgoing {
    position: usize,
    bookie: BookieId,
    entry: EntryId,
}

enum News {
    Added(EntryId),
    Stopped(LedgerError),
}

enum Chore {
    Retry,
    Change {
        first_entry: EntryId,
        failed: Vec<usize>,
    },
    Watch,
}

impl LedgerWriter {
    /// The writer of a ledger that was just created. Must be called on a runtime.
    pub(crate) fn new(
        ctx: Arc<LogContext>,
        info: LedgerInfo,
        guards: Vec<Guard>,
        owner: Weak<dyn WriterOwner>,
    ) -> LedgerWriter {
        let (_, members) = info.last_fragment();
        let retries = ctx.settings.overload_retries_max;
        let state = State {
            last_errors: vec![None; members.len()],
            machine: Writer::new(info.quorum, members, retries),
            adds: VecDeque::new(),
            first: EntryId::FIRST,
            outbox: VecDeque::new(),
            sending: false,
            news: VecDeque::new(),
            telling: false,
            watched: false,
            round: 0,
            info: info.clone(),
        };
        LedgerWriter {
            inner: Arc::new(Inner {
                runtime: Handle::current(),
                ledger: info.id,
                token: info.token,
                guards,
                owner,
                state: Mutex::new(state),
                ctx,
            }),
        }
    }

    /// The ledger.
    pub(crate) fn ledger(&self) -> LedgerId {
        self.inner.ledger
    }

    /// The record as this writer left it.
    pub(crate) fn info(&self) -> LedgerInfo {
        self.inner.state.lock().info.clone()
    }

    /// Queues an entry; [`LedgerWriter::flush`] sends it. `None` once the writer is finished.
    pub(crate) fn enqueue(&self, data: EntryData) -> Option<EntryId> {
        let mut guard = self.inner.state.lock();
        let state = &mut *guard;
        let mut actions = Vec::new();
        let planned = state.machine.add(data.len() as u64, &mut actions)?;
        state.adds.push_back(Add {
            planned,
            data,
            digest: None,
            round: state.round,
        });
        let watch = !std::mem::replace(&mut state.watched, true);
        let chores = state.apply(actions);
        drop(guard);
        // An add asks for sends only, so there is nothing to do for it but to watch.
        debug_assert!(chores.is_empty(), "an add only sends");
        if watch {
            self.inner.start(Chore::Watch);
        }
        Some(planned.entry)
    }

    /// Sends what is queued. Outcomes are never told on this thread before it returns.
    pub(crate) fn flush(&self) {
        let nested = SENDING.replace(true);
        self.inner.send();
        SENDING.set(nested);
    }

    /// Stops without telling the owner, and says up to where entries are acknowledged.
    pub(crate) fn finish(&self) -> LedgerEnd {
        let mut state = self.inner.state.lock();
        state.adds.clear();
        state.outbox.clear();
        state.machine.finish()
    }
}

impl State {
    fn add_of(&mut self, entry: EntryId) -> Option<&mut Add> {
        let offset = entry.0.checked_sub(self.first.0)?;
        self.adds.get_mut(usize::try_from(offset).ok()?)
    }

    /// Queues what the machine asks for; returns what needs a task.
    fn apply(&mut self, actions: Vec<WriterAction>) -> Vec<Chore> {
        let mut chores = Vec::new();
        for action in actions {
            match action {
                WriterAction::Send {
                    position,
                    bookie,
                    entry,
                } => self.outbox.push_back(Outgoing {
                    position,
                    bookie,
                    entry,
                }),
                WriterAction::Acknowledge { entry } => {
                    self.adds.pop_front();
                    self.first = entry.next();
                    self.news.push_back(News::Added(entry));
                }
                WriterAction::ScheduleRetry => chores.push(Chore::Retry),
                WriterAction::ChangeEnsemble {
                    first_entry,
                    failed,
                } => chores.push(Chore::Change {
                    first_entry,
                    failed,
                }),
                WriterAction::Stop { reason } => {
                    self.adds.clear();
                    self.outbox.clear();
                    let error = match reason {
                        StopReason::Fenced => LedgerError::Fenced,
                        StopReason::Failed { position } => LedgerError::NoReplacement(
                            self.last_errors[position]
                                .clone()
                                .unwrap_or(BookieError::Timeout),
                        ),
                    };
                    self.news.push_back(News::Stopped(error));
                }
            }
        }
        chores
    }
}

impl Inner {
    /// Gives the machine an event and carries out what follows.
    fn on(self: &Arc<Self>, event: WriterEvent) {
        let chores = {
            let mut state = self.state.lock();
            let mut actions = Vec::new();
            state.machine.on(event, &mut actions);
            state.apply(actions)
        };
        for chore in chores {
            self.start(chore);
        }
        self.send();
        self.tell();
    }

    fn send(self: &Arc<Self>) {
        let mut digests: Vec<(EntryId, u32)> = Vec::new();
        loop {
            let batch = {
                let mut guard = self.state.lock();
                let state = &mut *guard;
                for (entry, digest) in digests.drain(..) {
                    if let Some(add) = state.add_of(entry) {
                        add.digest = Some(digest);
                    }
                }
                if state.outbox.is_empty() {
                    return;
                }
                // Somebody else sends; he looks again before he stops.
                if std::mem::replace(&mut state.sending, true) {
                    return;
                }
                state.take_batch()
            };
            let mut last: Option<AddEntry> = None;
            for (outgoing, planned, data, digest) in batch {
                let add = match last.take().filter(|add| add.entry == planned.entry) {
                    Some(add) => add,
                    None => self.add_entry(planned, data, digest),
                };
                digests.push((add.entry, add.digest));
                self.submit(outgoing, add.clone());
                last = Some(add);
            }
            self.state.lock().sending = false;
        }
    }

    fn add_entry(&self, planned: PlannedAdd, data: EntryData, digest: Option<u32>) -> AddEntry {
        let lac = planned.last_add_confirmed;
        match digest {
            None => AddEntry::new(self.ledger, planned.entry, lac, planned.ledger_length, data),
            Some(digest) => AddEntry {
                entry: planned.entry,
                last_add_confirmed: lac,
                ledger_length: planned.ledger_length,
                digest,
                recovery: false,
                data,
            },
        }
    }

    fn submit(self: &Arc<Self>, outgoing: Outgoing, add: AddEntry) {
        let inner = Arc::clone(self);
        let request = OrderedRequest {
            ledger: self.ledger,
            token: self.token,
            operation: OrderedOperation::Add(add),
        };
        let reply = Box::new(move |result| inner.replied(outgoing, result));
        self.ctx.transport.submit(outgoing.bookie, request, reply);
    }

    fn replied(self: &Arc<Self>, to: Outgoing, result: BookieResult<OrderedReply>) {
        let reply = match &result {
            Ok(OrderedReply::Done { .. }) => AddReply::Stored,
            Ok(OrderedReply::Entry(_)) => AddReply::Failed,
            Err(BookieError::Fenced | BookieError::Deleted) => AddReply::Fenced,
            Err(BookieError::Overloaded) => {
                self.ctx.metrics.overload_resends.add(1, &[]);
                AddReply::Overloaded
            }
            Err(_) => AddReply::Failed,
        };
        if let Err(error) = result {
            self.state.lock().last_errors[to.position] = Some(error);
        }
        self.on(WriterEvent::Reply {
            position: to.position,
            bookie: to.bookie,
            entry: to.entry,
            reply,
        });
    }

    fn tell(self: &Arc<Self>) {
        if SENDING.get() {
            let inner = Arc::clone(self);
            self.spawn("ledger-writer-news", async move { inner.tell() });
            return;
        }
        loop {
            let news = {
                let mut state = self.state.lock();
                if state.telling || state.news.is_empty() {
                    return;
                }
                state.telling = true;
                std::mem::take(&mut state.news)
            };
            let owner = self.owner.upgrade();
            for item in news {
                match (&owner, item) {
                    (None, _) => {}
                    (Some(owner), News::Added(entry)) => owner.added(self.ledger, entry),
                    (Some(owner), News::Stopped(error)) => owner.stopped(self.ledger, error),
                }
            }
            self.state.lock().telling = false;
        }
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        // Replies come on threads of the transport, which are no runtime's.
        let _entered = self.runtime.enter();
        drop(self.ctx.tasks.spawn(name, task));
    }

    fn start(self: &Arc<Self>, chore: Chore) {
        let inner = Arc::clone(self);
        match chore {
            Chore::Retry => self.spawn("ledger-writer-retry", async move {
                let pause = inner.ctx.settings.overload_backoff;
                clock::sleep(inner.ctx.rng.jitter(pause)).await;
                inner.on(WriterEvent::RetryDue);
            }),
            Chore::Change {
                first_entry,
                failed,
            } => self.spawn("ensemble-change", async move {
                let event = inner.change_ensemble(first_entry, &failed).await;
                inner.on(event);
            }),
            Chore::Watch => self.spawn("ledger-writer-watch", async move { inner.watch().await }),
        }
    }

    /// Declares bookies failed that leave the oldest add unanswered for one to one and a half
    /// times the timeout. Ends when nothing is pending.
    async fn watch(self: Arc<Self>) {
        let pause = self.ctx.settings.request_timeout / 2;
        let shutdown = self.ctx.tasks.shutdown_token();
        loop {
            // A stopping process does not wait for a watch over nothing.
            let idle = async {
                shutdown.wait().await;
                if !self.state.lock().adds.is_empty() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = clock::sleep(pause) => {}
                () = idle => {}
            }
            let late = {
                let mut guard = self.state.lock();
                let state = &mut *guard;
                state.round += 1;
                let Some(oldest) = state.adds.front() else {
                    state.watched = false;
                    return;
                };
                if state.round - oldest.round > 2 {
                    state.machine.laggards()
                } else {
                    Vec::new()
                }
            };
            for (position, bookie) in late {
                let entry = self.state.lock().first;
                let to = Outgoing {
                    position,
                    bookie,
                    entry,
                };
                self.replied(to, Err(BookieError::Timeout));
            }
        }
    }

    async fn change_ensemble(&self, first_entry: EntryId, failed: &[usize]) -> WriterEvent {
        loop {
            let mut info = self.state.lock().info.clone();
            let (last_first, mut members) = info.last_fragment();
            let beside: Vec<BookieId> = members.clone();
            let chosen = self
                .ctx
                .bookies
                .choose(failed.len(), &[], &beside, &*self.ctx.rng);
            let Ok(chosen) = chosen else {
                return WriterEvent::EnsembleChangeFailed;
            };
            for (position, bookie) in failed.iter().zip(chosen) {
                members[*position] = bookie;
            }
            info.fragments
                .insert(first_entry.max(last_first), members.clone());
            let store = &*self.ctx.store;
            match ledger_metadata::replace(store, &mut info, &self.guards).await {
                Ok(()) => {
                    self.state.lock().info = info;
                    return WriterEvent::EnsembleChanged { members };
                }
                Err(LedgerError::Metadata(MetadataError::Conflict { .. })) => {
                    match ledger_metadata::load_existing(store, self.ledger).await {
                        Ok(current) if current.state == LedgerState::Open => {
                            self.state.lock().info = current;
                        }
                        Ok(_) | Err(LedgerError::BadRecord(..)) => return WriterEvent::Superseded,
                        Err(_) => {}
                    }
                }
                // Without metadata no change can be made; entries that need none go on (H8).
                Err(LedgerError::Metadata(MetadataError::Unavailable(_))) => {}
                Err(LedgerError::Fenced) => return WriterEvent::Superseded,
                Err(_) => return WriterEvent::EnsembleChangeFailed,
            }
            if self.ctx.tasks.shutdown_token().is_shutdown() {
                return WriterEvent::EnsembleChangeFailed;
            }
            let pause = self.ctx.settings.retry_backoff_min;
            clock::sleep(self.ctx.rng.jitter(pause)).await;
        }
    }
}

type Ready = (Outgoing, PlannedAdd, EntryData, Option<u32>);

impl State {
    /// Everything to send, with its data. What was acknowledged meanwhile needs no send; what a
    /// bookie still lacks of it is repair's concern.
    fn take_batch(&mut self) -> Vec<Ready> {
        let outbox = std::mem::take(&mut self.outbox);
        outbox
            .into_iter()
            .filter_map(|outgoing| {
                let add = self.add_of(outgoing.entry)?;
                Some((outgoing, add.planned, add.data.clone(), add.digest))
            })
            .collect()
    }
}
