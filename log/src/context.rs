//! What every topic log of a process shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aquifer_ledger::context::LedgerContext;

use crate::cache::EntryCache;
use crate::metrics::LogMetrics;
use crate::offload::tier::ColdTier;
use crate::types::Paging;

/// The surroundings of all logs of a process, filled in by its wiring.
pub struct LogContext {
    /// What their ledgers share.
    pub ledgers: Arc<LedgerContext>,
    /// Recent entries and read-ahead, one budget for the process.
    pub cache: EntryCache,
    /// Objects; `None` where none are read or written.
    pub cold: Option<Arc<ColdTier>>,
    /// Instruments.
    pub metrics: LogMetrics,
    /// Bounds.
    pub settings: LogSettings,
    /// State that logs of the process share: `LogShared::default()`.
    pub shared: LogShared,
}

/// Bounds of logs.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Bytes appended to one log and not yet acknowledged, at most.
    pub pending_bytes_per_log_max: usize,
    /// The same for all logs of the process together.
    pub pending_bytes_max: usize,
    /// Size of one read-ahead fetch.
    pub read_ahead_range_bytes: usize,
    /// How often a ledger that lacks bookies looks whether they are back.
    pub widen_pause: Duration,
    /// How the segments of a topic are divided into its record and pages.
    pub paging: Paging,
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings {
            pending_bytes_per_log_max: 32 * 1024 * 1024,
            pending_bytes_max: 64 * 1024 * 1024,
            read_ahead_range_bytes: 2 * 1024 * 1024,
            widen_pause: Duration::from_secs(1),
            paging: Paging::default(),
        }
    }
}

/// State that logs of a process share.
#[derive(Debug, Default)]
pub struct LogShared {
    pending_bytes: AtomicUsize,
    metadata_is_away: AtomicBool,
    /// A task asks whether it is back.
    is_looked_for: AtomicBool,
}

impl LogShared {
    /// Counts bytes as pending, or refuses when that would exceed `max`.
    pub(crate) fn reserve_pending(&self, bytes: usize, max: usize) -> bool {
        let before = self.pending_bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = before == 0 || before.saturating_add(bytes) <= max;
        if !fits {
            self.pending_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
        fits
    }

    /// Gives bytes back.
    pub(crate) fn release_pending(&self, bytes: usize) {
        self.pending_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Whether metadata did not answer when it was last asked for a rollover.
    pub(crate) fn metadata_is_away(&self) -> bool {
        self.metadata_is_away.load(Ordering::Acquire)
    }

    /// Notes whether metadata answered.
    pub(crate) fn found_metadata(&self, found: bool) {
        self.metadata_is_away.store(!found, Ordering::Release);
    }

    /// Whether the caller is to ask for metadata, since no other task does.
    pub(crate) fn begin_to_look(&self) -> bool {
        !self.is_looked_for.swap(true, Ordering::AcqRel)
    }

    /// The caller has an answer.
    pub(crate) fn end_to_look(&self) {
        self.is_looked_for.store(false, Ordering::Release);
    }

    /// Bytes appended and not yet acknowledged, in all logs.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes.load(Ordering::Acquire)
    }
}
