//! What the threads of a bookie and its callers share: made once at a start, changed only inside
//! its parts. A thread has beside it what is its own.
//!
//! To hold this does not keep the bookie running: its threads end when `Core` does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aquifer_model::id::{BookieId, LedgerId, TenantKey};
use aquifer_runtime::budget::{BudgetParts, ByteBudget};
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::disk::SharedDisk;

use crate::admission::turns::Turns;
use crate::apply::queue::ApplyQueue;
use crate::config::BookieConfig;
use crate::damage::Damage;
use crate::deletions::Deletions;
use crate::deps::BookieDeps;
use crate::journal::commit::BlockPool;
use crate::journal::mark::Mark;
use crate::journal::progress::Progress;
use crate::journal::queue::JournalQueue;
use crate::journal::segments::Segments;
use crate::ledgers::LedgerTable;
use crate::metrics::BookieMetrics;
use crate::mode::Mode;
use crate::report::DamageReport;
use crate::store::EntryStore;
use crate::wakeup::Wakeup;
use crate::watchers::Watchers;

/// What is shared.
pub struct Shared {
    /// The settings.
    pub config: BookieConfig,
    /// Whose storage this is.
    pub id: BookieId,
    /// The disk of the journal and of the cookies.
    pub disk: SharedDisk,
    /// Time.
    pub clock: SharedClock,

    /// Where commits go after the journal.
    pub store: Arc<dyn EntryStore>,
    /// Space for commits.
    pub segments: Segments,
    /// The synced mark of the journal.
    pub mark: Mark,
    /// Buffers of commits; commits in flight hold it, too.
    pub pool: Arc<BlockPool>,

    /// Requests that wait for their turn.
    pub turns: Turns,
    /// Requests that wait for the journal.
    pub queue: JournalQueue,
    /// Commits that wait for the store.
    pub apply_queue: ApplyQueue,
    /// Ledgers in memory.
    pub ledgers: LedgerTable,
    /// Readers that wait for news of ledgers.
    pub watchers: Watchers,
    /// Deleted ledgers whose space is to come back.
    pub deletions: Deletions,

    /// How far the journal and what follows it are.
    pub progress: Progress,
    /// Bytes applied since the last look at what is durable.
    pub unflushed_bytes: AtomicUsize,
    /// Bytes of normal adds between their arrival and the store, by tenant.
    pub adds: BudgetParts<TenantKey>,
    /// The same of fences, recovery and deletions.
    pub control: ByteBudget,

    /// What is taken and what is refused.
    pub mode: Mode,
    /// Damaged files of the store.
    pub damage: Damage,
    /// What is counted.
    pub metrics: BookieMetrics,

    /// Wakes the thread of checkpoints.
    pub checkpointer: Wakeup,
    /// Wakes the thread of housekeeping.
    pub housekeeper: Wakeup,
    /// Rung to end an applier that the store refuses.
    pub stop: Wakeup,
    /// How both of them end.
    pub ends: Ends,
}

/// What a start has found.
pub struct Found {
    /// Whose storage it is.
    pub id: BookieId,
    /// The store.
    pub store: Arc<dyn EntryStore>,
    /// Damaged files of it.
    pub damage: Option<DamageReport>,
    /// The journal's segments.
    pub segments: Segments,
    /// Its mark.
    pub mark: Mark,
    /// The last commit, which the store has.
    pub last_commit: u64,
    /// The last commit that the store had durably before this start.
    pub flushed_commit: u64,
    /// Ledgers that replay has deleted.
    pub deleted: Vec<LedgerId>,
}

/// How checkpoints and housekeeping end.
#[derive(Debug, Default)]
pub struct Ends {
    begun: AtomicBool,
    flush: AtomicBool,
}

impl Ends {
    /// Whether they are to end.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether there is to be a last checkpoint.
    pub fn with_flush(&self) -> bool {
        self.flush.load(Ordering::Acquire)
    }
}

impl Shared {
    /// What a start has found. The bookie goes on where replay has come to.
    #[must_use]
    pub fn new(config: BookieConfig, deps: &BookieDeps, found: Found) -> Shared {
        let shared = Shared {
            id: found.id,
            disk: deps.disk.clone(),
            clock: deps.clock.clone(),
            store: found.store,
            segments: found.segments,
            mark: found.mark,
            pool: Arc::default(),
            turns: Turns::new(config.commit_bytes_max),
            queue: JournalQueue::default(),
            apply_queue: ApplyQueue::default(),
            ledgers: LedgerTable::new(config.ledgers_cached_max),
            watchers: Watchers::default(),
            deletions: Deletions::default(),
            progress: Progress::default(),
            unflushed_bytes: AtomicUsize::default(),
            adds: BudgetParts::new(ByteBudget::new(config.bytes_in_flight_max)),
            control: ByteBudget::new(config.control_bytes_in_flight_max),
            mode: Mode::default(),
            damage: Damage::new(found.damage),
            metrics: BookieMetrics::new(&deps.meter),
            checkpointer: Wakeup::default(),
            housekeeper: Wakeup::default(),
            stop: Wakeup::default(),
            ends: Ends::default(),
            config,
        };
        shared.progress.synced.advance(found.last_commit);
        shared.progress.applied.advance(found.last_commit);
        shared.progress.flushed.advance(found.flushed_commit);
        if let Some(damage) = shared.damage.report() {
            shared.mode.storage_damaged(&damage.to_string());
        }
        for ledger in found.deleted {
            shared.deletions.add(ledger, found.last_commit);
        }
        shared
    }

    /// Bytes between their arrival and the store.
    #[must_use]
    pub fn bytes_in_flight(&self) -> u64 {
        let bytes = self.adds.whole().used_bytes() + self.control.used_bytes();
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Ends checkpoints and housekeeping, with a last checkpoint or without.
    pub fn end_background(&self, flush: bool) {
        self.ends.flush.fetch_or(flush, Ordering::AcqRel);
        self.ends.begun.store(true, Ordering::Release);
        self.segments.hurry();
        self.checkpointer.wake();
        self.housekeeper.wake();
    }
}
