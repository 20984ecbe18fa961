//! What every ledger of a process shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_metadata::store::MetadataStore;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;

use crate::metrics::LedgerMetrics;
use crate::placement::Bookies;
use crate::transport::BookieTransport;

/// The surroundings of all ledgers of a process, filled in by its wiring.
pub struct LedgerContext {
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
    /// Owner of the tasks that finish what callers began.
    pub tasks: TaskGroup,
    /// Instruments.
    pub metrics: LedgerMetrics,
    /// Bounds and timeouts.
    pub settings: LedgerSettings,
    /// State that ledgers of the process share: `LedgerShared::default()`.
    pub shared: LedgerShared,
}

/// Bounds and timeouts of ledgers.
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    /// A bookie that does not answer an add, fence or read in this time has failed.
    pub request_timeout: Duration,
    /// An add that a bookie refused as `Overloaded` is sent again after about so long.
    pub overload_backoff: Duration,
    /// Rounds of such resends without any progress before the bookie counts as failed.
    pub overload_retries_max: u32,
    /// How long the replacement of a failed bookie is put off while the others make ack quorums;
    /// zero replaces it at once.
    pub ensemble_change_delay: Duration,
    /// Bytes of one ledger that are acknowledged and that a slower bookie still lacks. Beyond,
    /// acknowledgements wait for it, and it has failed when they do so for a quarter of
    /// `request_timeout`, or when it has been silent for half of it.
    pub kept_bytes_per_ledger_max: u64,
    /// The same for all ledgers of the process together; beyond, nothing is kept for slower
    /// bookies, and they have failed.
    pub kept_bytes_max: u64,
    /// How long a ledger that is to be closed waits for slower bookies to have everything too. A
    /// bookie that is later is marked for repair (H16).
    pub close_wait: Duration,
    /// How long a bookie that failed is passed over for new places.
    pub quarantine: Duration,
    /// Zones that every write set must span; zero and one ask for nothing.
    pub zones_min: usize,
    /// With too few bookies for a whole ensemble, new ledgers get a smaller one, down to the ack
    /// quorum, instead of an error.
    pub shrink_ensembles: bool,
    /// Recovery reads in flight at once.
    pub recovery_window_entries: u32,
    /// First pause between attempts to recover a ledger or to open one; doubles up to the last.
    pub retry_backoff_min: Duration,
    /// Longest pause between such attempts.
    pub retry_backoff_max: Duration,
}

impl Default for LedgerSettings {
    fn default() -> LedgerSettings {
        LedgerSettings {
            request_timeout: Duration::from_secs(10),
            overload_backoff: Duration::from_millis(5),
            overload_retries_max: 1_000,
            ensemble_change_delay: Duration::ZERO,
            kept_bytes_per_ledger_max: 8 * 1024 * 1024,
            kept_bytes_max: 64 * 1024 * 1024,
            close_wait: Duration::from_millis(50),
            quarantine: Duration::from_secs(300),
            zones_min: 0,
            shrink_ensembles: true,
            recovery_window_entries: 64,
            retry_backoff_min: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(5),
        }
    }
}

/// State that ledgers of a process share.
#[derive(Debug, Default)]
pub struct LedgerShared {
    kept_bytes: AtomicU64,
    /// Where ids of new ledgers come from.
    pub ledger_ids: crate::ledger_metadata::LedgerIds,
    pub(crate) read_latencies: crate::reader::ReadLatencies,
}

impl LedgerShared {
    /// Notes that a ledger keeps other bytes than before for slower bookies; returns the sum of
    /// all.
    pub(crate) fn kept_changed(&self, before: u64, now: u64) -> u64 {
        // Wrapping: the sum of all ledgers is never negative.
        let change = now.wrapping_sub(before);
        let all = self.kept_bytes.fetch_add(change, Ordering::AcqRel);
        all.wrapping_add(change)
    }
}
