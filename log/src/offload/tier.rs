//! What the logs of a process share for objects: where these are, what was read of them lately,
//! and the bounds of work on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aquifer_cold::cache::ObjectCache;
use aquifer_cold::format::Compression;
use aquifer_cold::location::Locations;
use aquifer_model::id::{AttemptId, BrokerId};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

/// Records of ledgers that a process reads at once to learn where their bytes are.
const LOOKS_AT_ONCE: usize = 32;

/// See the module.
pub struct ColdTier {
    /// Where objects are.
    pub locations: Locations,
    /// What was read of them lately.
    pub cache: ObjectCache,
    /// Bounds.
    pub settings: OffloadSettings,
    /// What this process is called in the records of its attempts.
    pub(crate) worker: BrokerId,
    /// Attempts that run at once.
    pub(crate) workers: Semaphore,
    /// Looks at records of ledgers at once: topics that are loaded together would all look.
    pub(crate) looks: Semaphore,
    /// The attempts of this process that run: their records are not the reaper's.
    pub(crate) active: Mutex<BTreeSet<AttemptId>>,
    /// When attempts of others were first seen, and since when their process is gone, on the
    /// monotonic clock.
    pub(crate) seen: Mutex<BTreeMap<AttemptId, (Duration, Option<Duration>)>>,
    /// There may be something to reap.
    pub(crate) left: Notify,
}

/// Bounds of offload.
#[derive(Debug, Clone)]
pub struct OffloadSettings {
    /// A sealed ledger is due when its last entry is older; without one only on command.
    pub after: Option<Duration>,
    /// How long copies at bookies stay after the object was verified.
    pub lag: Duration,
    /// Attempts that run at once in this process.
    pub workers_max: usize,
    /// Raw bytes of a block.
    pub block_bytes: usize,
    /// Whether blocks are compressed.
    pub compression: Compression,
    /// Bytes of one read from bookies.
    pub read_bytes: usize,
    /// Bytes of a part of an object, where that is not what its length wants.
    pub part_bytes: Option<usize>,
    /// What any attempt may take, beside a second for each MiB.
    pub attempt_max: Duration,
    /// How long a read of an object may take.
    pub read_max: Duration,
}

impl Default for OffloadSettings {
    fn default() -> OffloadSettings {
        OffloadSettings {
            after: None,
            lag: Duration::from_secs(3600),
            workers_max: 2,
            block_bytes: 256 << 10,
            compression: Compression::Auto,
            read_bytes: 2 << 20,
            part_bytes: None,
            attempt_max: Duration::from_secs(30 * 60),
            read_max: Duration::from_secs(30),
        }
    }
}

impl ColdTier {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(
        locations: Locations,
        cache: ObjectCache,
        settings: OffloadSettings,
        worker: BrokerId,
    ) -> ColdTier {
        ColdTier {
            locations,
            cache,
            workers: Semaphore::new(settings.workers_max.max(1)),
            settings,
            worker,
            looks: Semaphore::new(LOOKS_AT_ONCE),
            active: Mutex::default(),
            seen: Mutex::default(),
            left: Notify::new(),
        }
    }

    /// What this process is called in the records of its attempts.
    #[must_use]
    pub fn worker(&self) -> BrokerId {
        self.worker
    }

    /// Waits until there may be something to reap.
    pub async fn has_left(&self) {
        self.left.notified().await;
    }
}

/// An attempt that runs, as the reaper of its own process sees it.
pub(crate) struct Active<'a> {
    tier: &'a ColdTier,
    attempt: AttemptId,
}

impl<'a> Active<'a> {
    pub(crate) fn new(tier: &'a ColdTier, attempt: AttemptId) -> Active<'a> {
        tier.active.lock().insert(attempt);
        Active { tier, attempt }
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.tier.active.lock().remove(&self.attempt);
    }
}
