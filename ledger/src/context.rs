//! What every ledger and topic log of a process shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aquifer_metadata::store::MetadataStore;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;

use crate::managed::cache::EntryCache;
use crate::metrics::LedgerMetrics;
use crate::placement::Bookies;
use crate::transport::BookieTransport;

/// The surroundings of all logs of a process, filled in by its wiring.
pub struct LogContext {
    /// Coordination.
    pub store: Arc<dyn MetadataStore>,
    /// The way to bookies.
    pub transport: Arc<dyn BookieTransport>,
    /// Known bookies, for placement.
    pub bookies: Bookies,
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub rng: SharedRng,
    /// Recent entries and read-ahead, one budget for the process.
    pub cache: EntryCache,
    /// Owner of the tasks that finish what callers began.
    pub tasks: TaskGroup,
    /// Instruments.
    pub metrics: LedgerMetrics,
    /// Bounds and timeouts.
    pub settings: LogSettings,
    /// State that logs of the process share: `LogShared::default()`.
    pub shared: LogShared,
}

/// Bounds and timeouts of logs.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// A bookie that does not answer an add, fence or read for so long has failed.
    pub request_timeout: Duration,
    /// Bytes appended to one log and not yet acknowledged, at most.
    pub pending_bytes_per_log_max: usize,
    /// The same for all logs of the process together.
    pub pending_bytes_max: usize,
    /// Size of one read-ahead fetch.
    pub read_ahead_range_bytes: usize,
    /// An add that a bookie refused as `Overloaded` is sent again after about so long.
    pub overload_backoff: Duration,
    /// Rounds of such resends without any progress before the bookie counts as failed.
    pub overload_retries_max: u32,
    /// Recovery reads on their way at once.
    pub recovery_window_entries: u32,
    /// First pause between attempts to recover a ledger or to open one; doubles up to the last.
    pub retry_backoff_min: Duration,
    /// Longest pause between such attempts.
    pub retry_backoff_max: Duration,
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings {
            request_timeout: Duration::from_secs(10),
            pending_bytes_per_log_max: 32 * 1024 * 1024,
            pending_bytes_max: 64 * 1024 * 1024,
            read_ahead_range_bytes: 2 * 1024 * 1024,
            overload_backoff: Duration::from_millis(5),
            overload_retries_max: 1_000,
            recovery_window_entries: 64,
            retry_backoff_min: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(5),
        }
    }
}

/// Counters that logs of a process share.
#[derive(Debug, Default)]
pub struct LogShared {
    pending_bytes: AtomicUsize,
    pub(crate) ledger_ids: crate::ledger_metadata::LedgerIds,
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

    /// Bytes appended and not yet acknowledged, in all logs.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes.load(Ordering::Acquire)
    }
}
