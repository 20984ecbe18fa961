//! Runs a [`Writer`] against bookies: sends, timeouts, resends, ensemble changes.
//!
//! Two queues make order independent of threads: what is to be sent, and what the owner is to be
//! told. Each is drained by one thread at a time, without any lock held, so that adds reach a
//! bookie's stream in the order of the machine's actions, and the owner is told of entries in
//! order.
//!
//! A transport may answer from within `submit`. So the thread that sends tells the owner nothing
//! until it has sent everything: [`Inner::send`] returns whether there is something to tell, and
//! [`LedgerWriter::flush`], whose caller must not be called back, leaves that to a task.

mod batch;
mod change;
mod patience;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::thread::{self, ThreadId};
use std::time::Duration;

use aquifer_model::entry::EntryData;
use aquifer_model::id::{BookieId, CreationToken, EntryId, LedgerId, TenantKey};
use aquifer_model::quorum::Quorum;
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest,
};
use aquifer_model::trace::TraceContext;
use aquifer_runtime::clock;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::context::LedgerContext;
use crate::error::LedgerError;
use crate::guards::Guards;
use crate::ledger_metadata::LedgerInfo;
use crate::writer::machine::{
    AddReply, LedgerEnd, PlannedAdd, StopReason, Writer, WriterAction, WriterEvent, WriterOptions,
};

/// The owner of a writer. Calls come one at a time, in order, from any thread, with no lock held.
pub trait WriterOwner: Send + Sync {
    /// The entry is acknowledged; all before it were.
    fn added(&self, ledger: LedgerId, entry: EntryId);
    /// No more entries will be acknowledged; the last call.
    fn stopped(&self, ledger: LedgerId, error: LedgerError);
}

/// The writer of an open ledger. Clones share it.
#[derive(Clone)]
pub struct LedgerWriter {
    inner: Arc<Inner>,
}

struct Inner {
    ctx: Arc<LedgerContext>,
    runtime: Handle,
    ledger: LedgerId,
    token: CreationToken,
    tenant: TenantKey,
    /// Whether its entries may use the room that full bookies keep back.
    reserve: bool,
    guards: Guards,
    owner: Weak<dyn WriterOwner>,
    state: Mutex<State>,
    /// Told when no acknowledged entry is kept for slower bookies any more.
    drained: Notify,
}

struct State {
    machine: Writer,
    /// The record as of the last change by this writer.
    info: LedgerInfo,
    /// Data of adds that some bookie lacks, from the machine's first kept entry on.
    adds: VecDeque<Add>,
    first: EntryId,
    outbox: VecDeque<Outgoing>,
    /// The thread that drains the outbox.
    sender: Option<ThreadId>,
    news: VecDeque<News>,
    /// A thread drains the news.
    telling: bool,
    /// The sender has news that it could not tell from within a submission.
    untold: bool,
    /// A task watches for timeouts; it counts its rounds.
    watched: bool,
    round: u64,
    /// The round in which acknowledgements began to wait for a bookie, if they do.
    held_since: Option<u64>,
    /// The end of the ledger is waited for: acknowledgements wait for no bookie that is behind.
    hurried: bool,
    /// The last LAC that bookies were told.
    told: Option<EntryId>,
    /// What this ledger has counted into the process's kept bytes.
    kept_bytes: u64,
    last_errors: Vec<Option<BookieError>>,
}

struct Add {
    planned: PlannedAdd,
    data: EntryData,
    trace: Option<TraceContext>,
    /// Computed when it is first sent, outside the lock.
    digest: Option<u32>,
    /// Round of the watcher in which it was added, or last got another bookie.
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
    ChangeLater {
        again: bool,
    },
    Change {
        first_entry: EntryId,
        failed: Vec<usize>,
    },
    Watch,
    Shed,
    /// These have not answered in time.
    Late(Vec<(usize, BookieId)>),
}

impl LedgerWriter {
    /// The writer of a ledger that was just created. Must be called on a runtime.
    #[must_use]
    pub fn new(
        ctx: Arc<LedgerContext>,
        info: LedgerInfo,
        guards: Guards,
        owner: Weak<dyn WriterOwner>,
        uses_reserve: bool,
    ) -> LedgerWriter {
        let (_, members) = info.last_fragment();
        let settings = &ctx.settings;
        let options = WriterOptions {
            overload_retries_max: settings.overload_retries_max,
            kept_bytes_max: settings.kept_bytes_per_ledger_max,
            delay_changes: !settings.ensemble_change_delay.is_zero(),
        };
        let state = State {
            last_errors: vec![None; members.len()],
            machine: Writer::new(info.quorum, members, options),
            adds: VecDeque::new(),
            first: EntryId::FIRST,
            outbox: VecDeque::new(),
            sender: None,
            news: VecDeque::new(),
            telling: false,
            untold: false,
            watched: false,
            round: 0,
            held_since: None,
            hurried: false,
            told: None,
            kept_bytes: 0,
            info: info.clone(),
        };
        LedgerWriter {
            inner: Arc::new(Inner {
                runtime: Handle::current(),
                ledger: info.id,
                token: info.token,
                tenant: TenantKey::of_home(&info.home),
                reserve: uses_reserve,
                guards,
                owner,
                state: Mutex::new(state),
                drained: Notify::new(),
                ctx,
            }),
        }
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> LedgerId {
        self.inner.ledger
    }

    /// The creation token of the ledger.
    #[must_use]
    pub fn token(&self) -> CreationToken {
        self.inner.token
    }

    /// The record as this writer left it.
    #[must_use]
    pub fn info(&self) -> LedgerInfo {
        self.inner.state.lock().info.clone()
    }

    /// How many bookies have its entries.
    #[must_use]
    pub fn quorum(&self) -> Quorum {
        self.inner.state.lock().info.quorum
    }

    /// The members of the last fragment, without those that failed and may have been replaced.
    #[must_use]
    pub fn members(&self) -> Vec<Option<BookieId>> {
        let state = self.inner.state.lock();
        let (_, members) = state.info.last_fragment();
        let kept = |(position, bookie)| (!state.machine.has_failed(position)).then_some(bookie);
        members.into_iter().enumerate().map(kept).collect()
    }

    /// Whether a bookie of the ensemble has failed and none has taken its place.
    #[must_use]
    pub fn lacks_bookies(&self) -> bool {
        self.inner.state.lock().machine.lacks_bookies()
    }

    /// Queues an entry; [`LedgerWriter::flush`] sends it. `None` once the writer is finished.
    /// `trace` goes to the bookies with it.
    pub fn enqueue(&self, data: EntryData, trace: Option<TraceContext>) -> Option<EntryId> {
        let mut guard = self.inner.state.lock();
        let state = &mut *guard;
        let mut actions = Vec::new();
        let planned = state.machine.add(data.len() as u64, &mut actions)?;
        state.told = planned.last_add_confirmed;
        state.adds.push_back(Add {
            planned,
            data,
            trace,
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

    /// Sends what is queued. The owner is never told of outcomes on this thread before it returns.
    pub fn flush(&self) {
        // Seldom: a transport refused something at once.
        if self.inner.send() {
            let inner = Arc::clone(&self.inner);
            self.inner
                .spawn("ledger-writer-news", async move { inner.tell() });
        }
    }

    /// Waits until every bookie that is to get an acknowledged entry has it, at most for `limit`: a
    /// bookie that is late then is left to repair.
    pub async fn drain(&self, limit: Duration) {
        let drained = async {
            loop {
                let changed = self.inner.drained.notified();
                if self.inner.state.lock().machine.kept() == 0 {
                    return;
                }
                changed.await;
            }
        };
        // Whether it was in time, `unconfirmed` tells.
        let _ = clock::timeout(limit, drained).await;
    }

    /// Bookies of the ledger that may lack acknowledged entries, and from which on (H16).
    #[must_use]
    pub fn unconfirmed(&self, info: &LedgerInfo) -> BTreeMap<BookieId, EntryId> {
        let named = info.bookies();
        let known = {
            let state = self.inner.state.lock();
            (!state.machine.is_finished()).then(|| state.machine.unconfirmed())
        };
        // A writer that has stopped, while its owner closes the ledger, has forgotten which bookies
        // had answered.
        let Some(unconfirmed) = known else {
            return named
                .into_iter()
                .map(|bookie| (bookie, EntryId::FIRST))
                .collect();
        };
        let (_, last) = info.last_fragment();
        let mut bookies = unconfirmed.bookies;
        bookies.extend(unconfirmed.positions.iter().map(|&p| last[p]));
        bookies.retain(|bookie| named.contains(bookie));
        let from = |bookie: BookieId| match unconfirmed.recent.contains(&bookie) {
            true => (bookie, unconfirmed.first),
            false => (bookie, EntryId::FIRST),
        };
        bookies.into_iter().map(from).collect()
    }

    /// The end of the ledger is waited for, so that acknowledgements wait for no bookie that is
    /// behind from now on: what it lacks is left to repair.
    pub fn hurry(&self) {
        let is_held = {
            let mut state = self.inner.state.lock();
            state.hurried = true;
            state.held_since.is_some()
        };
        if is_held {
            self.inner.on(WriterEvent::Shed);
        }
    }

    /// Stops without telling the owner, and says up to where entries are acknowledged.
    pub fn finish(&self) -> LedgerEnd {
        let mut state = self.inner.state.lock();
        state.adds.clear();
        state.outbox.clear();
        let end = state.machine.finish();
        self.inner.count_kept(&mut state);
        end
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
                WriterAction::Acknowledge { entry } => self.news.push_back(News::Added(entry)),
                WriterAction::ScheduleRetry => chores.push(Chore::Retry),
                WriterAction::ScheduleChange { again } => {
                    chores.push(Chore::ChangeLater { again });
                }
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
        while self.first < self.machine.first_kept() {
            self.adds.pop_front();
            self.first = self.first.next();
        }
        chores
    }
}

impl Inner {
    /// Gives the machine an event and carries out what follows.
    fn on(self: &Arc<Self>, event: WriterEvent) {
        let (chores, is_drained) = {
            let mut state = self.state.lock();
            let mut actions = Vec::new();
            if matches!(event, WriterEvent::EnsembleChanged { .. }) {
                state.wait_anew();
            }
            state.machine.on(event, &mut actions);
            let mut chores = state.apply(actions);
            if self.count_kept(&mut state) > self.ctx.settings.kept_bytes_max
                && state.kept_bytes > 0
            {
                chores.push(Chore::Shed);
            }
            let late = state.held_back_for_long();
            if !late.is_empty() {
                chores.push(Chore::Late(late));
            } else if state.hurried && state.held_since.is_some() {
                chores.push(Chore::Shed);
            }
            (chores, state.machine.kept() == 0)
        };
        if is_drained {
            self.drained.notify_one();
        }
        for chore in chores {
            self.start(chore);
        }
        // What came while it sent is told here too.
        self.send();
        self.tell();
    }

    /// Keeps the process's count of kept bytes right; returns it, or 0 where nothing changed.
    fn count_kept(&self, state: &mut State) -> u64 {
        let now = state.machine.kept_bytes();
        let before = std::mem::replace(&mut state.kept_bytes, now);
        if before == now {
            return 0;
        }
        self.ctx.shared.kept_changed(before, now)
    }

    /// Drains the outbox, unless another thread does. Returns whether the owner is still to be told
    /// of something that the transport answered from within a submission.
    fn send(self: &Arc<Self>) -> bool {
        let mut digests: Vec<(EntryId, u32)> = Vec::new();
        let mut untold = false;
        loop {
            let batch = {
                let mut guard = self.state.lock();
                let state = &mut *guard;
                for (entry, digest) in digests.drain(..) {
                    if let Some(add) = state.add_of(entry) {
                        add.digest = Some(digest);
                    }
                }
                // A thread that is already sending re-checks the outbox before it stops.
                if state.outbox.is_empty() || state.sender.is_some() {
                    return untold;
                }
                state.sender = Some(thread::current().id());
                state.take_batch()
            };
            let mut last: Option<AddEntry> = None;
            for (outgoing, planned, data, digest, trace) in batch {
                let add = match last.take().filter(|add| add.entry == planned.entry) {
                    Some(add) => add,
                    None => AddEntry {
                        trace,
                        ..self.add_entry(planned, data, digest)
                    },
                };
                digests.push((add.entry, add.digest));
                self.submit(outgoing, add.clone());
                last = Some(add);
            }
            let mut state = self.state.lock();
            state.sender = None;
            untold |= std::mem::take(&mut state.untold);
        }
    }

    fn submit(self: &Arc<Self>, outgoing: Outgoing, add: AddEntry) {
        let inner = Arc::clone(self);
        let request = OrderedRequest {
            ledger: self.ledger,
            token: self.token,
            tenant: self.tenant,
            operation: OrderedOperation::Add(add),
        };
        let reply = Box::new(move |result| inner.replied(outgoing, result));
        self.ctx.transport.submit(outgoing.bookie, request, reply);
    }

    fn replied(self: &Arc<Self>, to: Outgoing, result: BookieResult<OrderedReply>) {
        let reply = AddReply::of(&result);
        if reply == AddReply::Overloaded {
            self.ctx.metrics.overload_resends.add(1, &[]);
        }
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

    /// Drains the news, unless another thread does, or this one is sending.
    fn tell(&self) {
        loop {
            let news = {
                let mut state = self.state.lock();
                if state.telling || state.news.is_empty() {
                    return;
                }
                if state
                    .sender
                    .is_some_and(|sender| sender == thread::current().id())
                {
                    state.untold = true;
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
            Chore::ChangeLater { again } => self.spawn("ensemble-change-later", async move {
                let settings = &inner.ctx.settings;
                let pause = match again {
                    true => inner.ctx.rng.jitter(settings.retry_backoff_max),
                    false => settings.ensemble_change_delay,
                };
                let shutdown = inner.ctx.tasks.shutdown_token();
                tokio::select! {
                    biased;
                    () = clock::sleep(pause) => inner.on(WriterEvent::ChangeDue),
                    () = shutdown.wait() => {}
                }
            }),
            Chore::Shed => self.on(WriterEvent::Shed),
            Chore::Late(late) => self.give_up(late),
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
}
