//! Reads of entries, for clients and for recovery.
//!
//! Invariants: only synced entries are returned; what is acknowledged is returned at once,
//! whether or not the store has it yet; in limbo no negative is given (I5).

mod recovery;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::{CreationToken, EntryId, LedgerId};
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, Presence, PresenceRange, ReadBatch, ReadRange, TailState,
    TailWait,
};
use aquifer_runtime::budget::BytePermit;
use aquifer_runtime::clock;
use tokio::sync::oneshot;

use crate::core::Core;
use crate::ledger_state::{LedgerMeta, LedgerState, TOKEN_LOST};
use crate::ledgers;
use crate::store::value::EntryError;
use crate::store::{CheckPlace, EntryStore, StoreError};
use crate::workers::Priority;

/// The least that a read takes from its budget: what one scan holds besides the answer.
const READ_BYTES_MIN: usize = 64 * 1024;
/// What a look for entries takes from the same budget.
const HAS_BYTES: usize = 64 * 1024;
/// What one job reads of a ledger whose entries are all looked at.
const CHECK_BYTES: usize = 1024 * 1024;
/// Longest wait for news of a ledger.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Most entries of one answer.
const READ_ENTRIES_MAX: usize = 64 * 1024;

/// What memory says about a ledger.
struct InMemory {
    meta: Option<LedgerMeta>,
    /// Its record is damaged: what is there is served, and nothing is said to be absent.
    record_lost: bool,
    lac: Option<EntryId>,
    pending: BTreeMap<EntryId, AddEntry>,
}

/// Why a read failed.
enum ReadError {
    /// The entry that it began with is damaged.
    Damaged(BookieError),
    /// Something else.
    Other(BookieError),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> ReadError {
        ReadError::Other(error.into())
    }
}

impl From<BookieError> for ReadError {
    fn from(error: BookieError) -> ReadError {
        ReadError::Other(error)
    }
}

impl From<StoreError> for BookieError {
    fn from(error: StoreError) -> BookieError {
        match error {
            StoreError::Damaged(_) => BookieError::Digest(error.to_string()),
            StoreError::Failed(_) | StoreError::Full(_) | StoreError::Closed(_) => {
                BookieError::Io(error.to_string())
            }
        }
    }
}

impl Core {
    pub(crate) async fn read(self: &Arc<Self>, mut range: ReadRange) -> BookieResult<ReadBatch> {
        self.shared.mode.check()?;
        range.entries_max = range.entries_max.clamp(1, READ_ENTRIES_MAX);
        let cap = self.reads.capacity_bytes();
        range.bytes_max = range.bytes_max.min(cap);
        let permit = self
            .reads
            .acquire(range.bytes_max.max(READ_BYTES_MIN))
            .await;
        self.on_worker(permit, move |core| core.read_now(&range))
            .await
    }

    /// Says which entries are here, without reading them all.
    pub(crate) async fn has(self: &Arc<Self>, range: PresenceRange) -> BookieResult<Presence> {
        self.shared.mode.check()?;
        if range.first > range.last || range.last.0 == u64::MAX {
            return Err(BookieError::Invalid("the range of entries".to_owned()));
        }
        let permit = self.reads.acquire(HAS_BYTES).await;
        self.on_worker(permit, move |core| core.has_now(&range))
            .await
    }

    /// Runs a read on a worker, unless its caller has gone away by then.
    async fn on_worker<T: Send + 'static>(
        self: &Arc<Self>,
        permit: BytePermit,
        work: impl FnOnce(&Core) -> BookieResult<T> + Send + 'static,
    ) -> BookieResult<T> {
        let (answer, answered) = oneshot::channel();
        let core = Arc::clone(self);
        let job = move || {
            // A caller that has gone away keeps no other from the disk.
            let result = (!answer.is_closed()).then(|| work(&core));
            drop(permit);
            // The receiver of the answer may close the bookie.
            drop(core);
            if let Some(result) = result {
                // A caller that went away needs no answer.
                let _ = answer.send(result);
            }
        };
        self.workers.run(Priority::Read, Box::new(job));
        answered.await.unwrap_or(Err(BookieError::ShuttingDown))
    }

    fn has_now(&self, range: &PresenceRange) -> BookieResult<Presence> {
        // Memory first: an entry leaves it only after the store has it.
        let memory = self.shared.ledgers.peek(range.ledger, |state| {
            let synced = self.shared.progress.synced_item.get();
            let pending = state.pending().range(range.first..=range.last);
            let synced = pending.filter(|(_, pending)| pending.item <= synced);
            let entries: BTreeSet<EntryId> = synced.map(|(entry, _)| *entry).collect();
            (state.meta().copied(), entries)
        });
        let (meta, pending) = match memory {
            Some(memory) => memory,
            None => {
                let known = from_store(&*self.shared.store, range.ledger)?;
                // What is there is there, whatever its record said.
                let lost = known.record_lost.then(LedgerMeta::lost);
                (known.meta.or(lost), BTreeSet::new())
            }
        };
        let Some(meta) = meta else {
            // Which proves nothing, as in limbo.
            return Ok(Presence::nothing_until(range.last));
        };
        meta.check(range.token)?;
        Ok(self.shared.store.has(range, &pending)?)
    }

    /// Waits for a higher LAC than `wait.above`, or a fence.
    pub(crate) async fn wait(self: &Arc<Self>, wait: TailWait) -> BookieResult<TailState> {
        self.shared.mode.check()?;
        let watcher = self.shared.watchers.watch(wait.ledger);
        let watcher = watcher.ok_or(BookieError::Overloaded)?;
        let news = async {
            loop {
                let woken = watcher.news.notified();
                let tail = self.tail(wait).await?;
                if tail.fenced || tail.last_add_confirmed > wait.above {
                    return Ok(tail);
                }
                woken.await;
            }
        };
        match clock::timeout(wait.limit.min(WAIT_MAX), news).await {
            Ok(news) => news,
            Err(_) => self.tail(wait).await,
        }
    }

    /// What is known of a ledger's end: from memory, else from the store.
    async fn tail(self: &Arc<Self>, wait: TailWait) -> BookieResult<TailState> {
        let ledger = wait.ledger;
        let known = self
            .shared
            .ledgers
            .peek(ledger, |state| known_of(state, BTreeMap::new()));
        let known = match known {
            Some(known) => known,
            None => {
                let (answer, answered) = oneshot::channel();
                let core = Arc::clone(self);
                let job = move || {
                    let loaded = ledgers::load(&*core.shared.store, ledger);
                    drop(core);
                    // A caller that went away needs no answer.
                    let _ = answer.send(loaded);
                };
                self.workers.run(Priority::Read, Box::new(job));
                let loaded = answered.await.map_err(|_| BookieError::ShuttingDown)?;
                known_of(&loaded.map_err(BookieError::from)?, BTreeMap::new())
            }
        };
        if known.record_lost {
            return Err(BookieError::Limbo);
        }
        let meta = known.meta;
        let meta = meta.ok_or_else(|| self.negative(BookieError::NoSuchLedger))?;
        meta.check(wait.token)?;
        // "Not fenced" is a negative, too: the fence may be what was lost.
        if !meta.fenced && self.limbo.is_on() {
            return Err(BookieError::Limbo);
        }
        Ok(TailState {
            last_add_confirmed: known.lac,
            fenced: meta.fenced,
        })
    }

    pub(crate) async fn list_ledgers(
        self: &Arc<Self>,
        after: Option<LedgerId>,
        max: usize,
    ) -> BookieResult<Vec<(LedgerId, CreationToken)>> {
        self.shared.mode.check()?;
        let (mut found, mut after) = (Vec::new(), after);
        // A job of bounded length at a time: reads and the loading of ledgers share its threads.
        loop {
            let (answer, answered) = oneshot::channel();
            let core = Arc::clone(self);
            let left = max - found.len();
            let job = move || {
                let page = core.shared.store.ledgers_after(after, left);
                drop(core);
                // A caller that went away needs no answer.
                let _ = answer.send(page.map_err(BookieError::from));
            };
            self.workers.run(Priority::Read, Box::new(job));
            let page = answered.await.unwrap_or(Err(BookieError::ShuttingDown))?;
            found.extend(page.ledgers);
            if page.looked.is_none() || found.len() >= max {
                break;
            }
            after = page.looked;
        }
        // One whose token is lost cannot be compared with anything.
        let known = found
            .into_iter()
            .filter(|(_, meta)| meta.token != TOKEN_LOST);
        let named = known.map(|(ledger, meta)| (ledger, meta.token));
        Ok(named.collect())
    }

    /// The entries of a ledger that cannot be read, as ranges.
    pub(crate) async fn unreadable(
        self: &Arc<Self>,
        ledger: LedgerId,
    ) -> BookieResult<Vec<(EntryId, EntryId)>> {
        let mut ranges: Vec<(EntryId, EntryId)> = Vec::new();
        let mut next = Some(CheckPlace::at(EntryId::FIRST));
        while let Some(place) = next {
            self.shared.mode.check()?;
            let (answer, answered) = oneshot::channel();
            let core = Arc::clone(self);
            let job = move || {
                let checked = core.shared.store.check(ledger, place, CHECK_BYTES);
                drop(core);
                // A caller that went away needs no answer.
                let _ = answer.send(checked.map_err(BookieError::from));
            };
            self.workers.run(Priority::Read, Box::new(job));
            let checked = answered.await.unwrap_or(Err(BookieError::ShuttingDown))?;
            for entry in checked.damaged.into_iter().chain(checked.hidden) {
                match ranges.last_mut() {
                    Some((_, last)) if last.next() == entry => *last = entry,
                    _ => ranges.push((entry, entry)),
                }
            }
            next = checked.next;
        }
        Ok(ranges)
    }

    /// Reads on the calling thread.
    pub(crate) fn read_now(&self, range: &ReadRange) -> BookieResult<ReadBatch> {
        let began = self.shared.clock.monotonic();
        let error = match self.read_range(range) {
            Ok(batch) => {
                let bytes = batch.entries.iter().map(|entry| entry.data.len()).sum();
                let took = self.shared.clock.monotonic().saturating_sub(began);
                self.shared.metrics.read(batch.entries.len(), bytes, took);
                return Ok(batch);
            }
            Err(ReadError::Damaged(error)) => {
                self.shared.metrics.damaged();
                // An answer fails only for its first entry.
                self.scrubber.tell(range.ledger, range.first);
                error
            }
            Err(ReadError::Other(error)) => error,
        };
        self.shared.metrics.refused(&error);
        Err(error)
    }

    fn read_range(&self, range: &ReadRange) -> Result<ReadBatch, ReadError> {
        // Memory first: an entry leaves it only after the store has it.
        let memory = match self.in_memory(range) {
            Some(memory) => memory,
            None => from_store(&*self.shared.store, range.ledger)?,
        };
        match memory.meta {
            Some(meta) => meta.check(range.token)?,
            // What was lost may have been the record.
            None if memory.record_lost || self.limbo.is_on() => {}
            None => return Err(self.negative(BookieError::NoSuchLedger).into()),
        }
        let entries = self.shared.store.read(range, &memory.pending);
        let entries = entries.map_err(|error| self.unread(range, error))?;
        if entries.is_empty() {
            return Err(ReadError::Other(if memory.record_lost {
                BookieError::Limbo
            } else {
                self.negative(BookieError::NoSuchEntry)
            }));
        }
        let carried = entries.iter().filter_map(|entry| entry.last_add_confirmed);
        Ok(ReadBatch {
            last_add_confirmed: memory.lac.max(carried.max()),
            entries,
        })
    }

    fn unread(&self, range: &ReadRange, error: EntryError) -> ReadError {
        let (ledger, entry) = (range.ledger, range.first);
        match self.shared.damage.is_news(ledger, entry) {
            true => tracing::error!(%ledger, %entry, ?error, "entry cannot be read"),
            false => tracing::debug!(%ledger, %entry, ?error, "entry cannot be read"),
        }
        match error {
            EntryError::Store(error @ StoreError::Damaged(_)) => ReadError::Damaged(error.into()),
            EntryError::Store(error) => error.into(),
            EntryError::Digest(what) => ReadError::Damaged(BookieError::Digest(what)),
        }
    }

    fn in_memory(&self, range: &ReadRange) -> Option<InMemory> {
        self.shared.ledgers.peek(range.ledger, |state| {
            let synced = self.shared.progress.synced_item.get();
            let last = range.last.max(range.first);
            let pending = state
                .pending()
                .range(range.first..=last)
                .filter(|(_, pending)| pending.item <= synced)
                .take(range.entries_max)
                .map(|(entry, pending)| (*entry, pending.add.clone()))
                .collect();
            known_of(state, pending)
        })
    }

    fn negative(&self, error: BookieError) -> BookieError {
        if self.limbo.is_on() {
            BookieError::Limbo
        } else {
            error
        }
    }
}

fn known_of(state: &LedgerState, pending: BTreeMap<EntryId, AddEntry>) -> InMemory {
    InMemory {
        meta: state.meta().copied(),
        record_lost: state.is_record_lost(),
        lac: state.lac(),
        pending,
    }
}

/// What a read must know of a ledger that is not in memory: its record, and nothing of its entries.
/// The answer carries the LAC of the entries that it has.
fn from_store(store: &dyn EntryStore, ledger: LedgerId) -> Result<InMemory, StoreError> {
    let (meta, record_lost) = match store.ledger(ledger) {
        Ok(meta) => (meta, false),
        Err(StoreError::Damaged(_)) => (None, true),
        Err(error) => return Err(error),
    };
    Ok(InMemory {
        lac: meta.and_then(|meta| meta.lac),
        meta,
        record_lost,
        pending: BTreeMap::new(),
    })
}
