//! The table of ledgers in memory: one lock per shard, bounded, idle ledgers forgotten.
//!
//! Lock order: a shard's lock, then the journal queue's. Nothing else is taken under either.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{OrderedRequest, ReplyCallback};
use aquifer_runtime::budget::BytePermit;
use parking_lot::{Mutex, MutexGuard};

use crate::journal::commit::CommittedRecord;
use crate::ledger_state::{End, LedgerState};
use crate::store::{EntryStore, StoreError};

const SHARDS: usize = 16;
/// Slots that are looked at to find one to forget.
const EVICTION_SAMPLE: usize = 32;

/// A request that was let in and waits for its turn at its ledger.
pub struct Waiting {
    /// The request.
    pub request: OrderedRequest,
    /// Its reply.
    pub reply: ReplyCallback,
    /// Its share of the bytes in flight.
    pub permit: BytePermit,
}

/// A ledger in the table.
#[derive(Default)]
pub struct Slot {
    /// Its state; `None` until it is loaded.
    pub state: Option<LedgerState>,
    /// A worker loads the state or looks up the entry of the first waiting request, or the gate
    /// is asked about it.
    pub busy: bool,
    /// The gate has let the ledger begin here.
    pub may_begin: bool,
    /// Requests behind the one that keeps the ledger busy, in order. Their permits bound them.
    pub waiting: VecDeque<Waiting>,
    used: u64,
}

/// All ledgers in memory.
pub struct LedgerTable {
    shards: Vec<Mutex<HashMap<LedgerId, Slot>>>,
    shard_ledgers_max: usize,
    clock: AtomicU64,
}

/// A locked slot.
pub struct SlotGuard<'a> {
    shard: MutexGuard<'a, HashMap<LedgerId, Slot>>,
    ledger: LedgerId,
}

impl LedgerTable {
    /// A table for about this many ledgers.
    #[must_use]
    pub fn new(ledgers_max: usize) -> LedgerTable {
        LedgerTable {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_ledgers_max: (ledgers_max / SHARDS).max(1),
            clock: AtomicU64::new(0),
        }
    }

    fn shard(&self, ledger: LedgerId) -> MutexGuard<'_, HashMap<LedgerId, Slot>> {
        // Multiplying spreads ids that come in strides.
        let mixed = ledger.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let shard = usize::try_from(mixed).unwrap_or(0) % SHARDS;
        self.shards[shard].lock()
    }

    /// Locks a ledger's slot, which is created if need be.
    pub fn lock(&self, ledger: LedgerId) -> SlotGuard<'_> {
        let mut shard = self.shard(ledger);
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        if !shard.contains_key(&ledger) && shard.len() >= self.shard_ledgers_max {
            let victim = shard
                .iter()
                .filter(|(_, slot)| slot.is_idle())
                .take(EVICTION_SAMPLE)
                .min_by_key(|(_, slot)| slot.used)
                .map(|(ledger, _)| *ledger);
            if let Some(victim) = victim {
                shard.remove(&victim);
            }
        }
        shard.entry(ledger).or_default().used = now;
        SlotGuard { shard, ledger }
    }

    /// Looks at a ledger's state if it is in memory.
    pub fn peek<T>(&self, ledger: LedgerId, look: impl FnOnce(&LedgerState) -> T) -> Option<T> {
        let shard = self.shard(ledger);
        shard.get(&ledger)?.state.as_ref().map(look)
    }

    /// Records reached the store.
    pub fn applied(&self, records: &[CommittedRecord]) {
        for run in records.chunk_by(|one, other| one.ledger == other.ledger) {
            let mut shard = self.shard(run[0].ledger);
            let slot = shard.get_mut(&run[0].ledger);
            let Some(state) = slot.and_then(|slot| slot.state.as_mut()) else {
                continue;
            };
            for record in run {
                state.applied(record.kind.entry(), record.number);
            }
        }
    }

    /// A record was not journaled after all.
    pub fn aborted(&self, ledger: LedgerId, entry: Option<EntryId>, item: u64) {
        let mut shard = self.shard(ledger);
        if let Some(state) = shard.get_mut(&ledger).and_then(|slot| slot.state.as_mut()) {
            state.aborted(entry, item);
        }
    }
}

/// Loads everything that decisions about a ledger need. Damage makes it know less, and nothing
/// else: a ledger can be fenced, repaired and deleted whatever of it cannot be read.
pub fn load(store: &dyn EntryStore, ledger: LedgerId) -> Result<LedgerState, StoreError> {
    let meta = match store.ledger(ledger) {
        Ok(meta) => meta,
        Err(error @ StoreError::Damaged(_)) => {
            tracing::error!(%ledger, %error, "the record of a ledger cannot be read");
            return Ok(LedgerState::without_record());
        }
        Err(error) => return Err(error),
    };
    if meta.is_none_or(|meta| meta.deleted) {
        return Ok(LedgerState::stored(meta, End::Known(None), None));
    }
    let (end, lac) = match store.last_entry(ledger) {
        Ok(last) => (
            End::Known(last.map(|last| last.entry)),
            last.and_then(|last| last.last_add_confirmed),
        ),
        Err(error @ StoreError::Damaged(_)) => {
            tracing::error!(%ledger, %error, "the end of a ledger cannot be read");
            (End::Unknown, None)
        }
        Err(error) => return Err(error),
    };
    Ok(LedgerState::stored(meta, end, lac))
}

impl Slot {
    fn is_idle(&self) -> bool {
        !self.busy
            && self.waiting.is_empty()
            && self.state.as_ref().is_none_or(LedgerState::is_idle)
    }
}

impl SlotGuard<'_> {
    /// The slot.
    pub fn slot(&mut self) -> &mut Slot {
        self.shard.entry(self.ledger).or_default()
    }

    /// Forgets the ledger.
    pub fn forget(mut self) {
        self.shard.remove(&self.ledger);
    }
}
