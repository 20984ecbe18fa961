//! What the logs of a process share for objects: where these are, what was read of them lately,
//! and the bounds of work on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_cold::cache::ObjectCache;
use aquifer_cold::location::Locations;
use aquifer_cold::paced::Pace;
use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_model::id::{AttemptId, BrokerId, LedgerId};
use aquifer_model::policy::offload::OffloadPolicy;
use aquifer_runtime::bucket::Bucket;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::clock::{self, Clock, SharedClock};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::offload::figures::Figures;
use crate::offload::pressure::Pressure;

/// Records of ledgers that a process reads at once to learn where their bytes are.
const LOOKS_AT_ONCE: usize = 32;
/// Records of ledgers with re-imported copies that a process remembers.
const IMPORTED_MAX: usize = 1_024;
/// What the attempts of a process may hold in memory, for each of its workers.
const WORKER_BYTES: usize = 64 << 20;
/// Uploads that were quiet may send so much at once.
const UPLOAD_BURST: Duration = Duration::from_secs(1);
/// Bytes of a ledger for which an attempt gets a second more.
const ATTEMPT_BYTES_PER_SECOND: u64 = 1 << 20;

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
    /// What is due, under way and to be deleted.
    pub figures: Figures,
    /// Bookies that run out of space.
    pub pressure: Pressure,
    /// Attempts that run at once.
    pub(crate) workers: Semaphore,
    /// What they hold in memory.
    pub(crate) memory: ByteBudget,
    /// What scrubs may read.
    pub(crate) scrub_pace: Arc<Pace>,
    /// What they may read and send.
    uploads: Option<Mutex<Bucket>>,
    /// Looks at records of ledgers at once: topics that are loaded together would all look.
    pub(crate) looks: Semaphore,
    /// The attempts of this process that run: their records are not the reaper's.
    pub(crate) active: Mutex<BTreeSet<AttemptId>>,
    /// When attempts of others were first seen, and since when their process is gone, on the
    /// monotonic clock.
    pub(crate) seen: Mutex<BTreeMap<AttemptId, (Duration, Option<Duration>)>>,
    /// There may be something to reap.
    pub(crate) left: Notify,
    /// Ledgers with re-imported copies that were read lately.
    imported: Mutex<BTreeMap<LedgerId, Arc<LedgerInfo>>>,
}

/// Bounds of offload.
#[derive(Debug, Clone)]
pub struct OffloadSettings {
    /// What holds where no tenant, namespace or topic says anything.
    pub policy: OffloadPolicy,
    /// Attempts that run at once in this process.
    pub workers_max: usize,
    /// Raw bytes of a block.
    pub block_bytes: usize,
    /// Ledgers that are due are left to offloaders.
    pub leaves_to_offloaders: bool,
    /// Bytes of ledgers that this process offloads in a second; `None`: no bound.
    pub upload_rate: Option<u64>,
    /// Bytes of one read from bookies.
    pub read_bytes: usize,
    /// Bytes of a part of an object, where that is not what its length wants.
    pub part_bytes: Option<usize>,
    /// What any attempt may take, beside a second for each MiB, or what the rate of uploads wants.
    pub attempt_max: Duration,
    /// How long a read of an object may take.
    pub read_max: Duration,
    /// In what time each object is read again and checked; `None`: never.
    pub scrub_pass: Option<Duration>,
    /// Bytes that this process reads for that in a second; `None`: no bound.
    pub scrub_rate: Option<u64>,
}

impl Default for OffloadSettings {
    fn default() -> OffloadSettings {
        OffloadSettings {
            policy: OffloadPolicy::default(),
            workers_max: 2,
            block_bytes: 256 << 10,
            leaves_to_offloaders: false,
            upload_rate: Some(64 << 20),
            read_bytes: 2 << 20,
            part_bytes: None,
            attempt_max: Duration::from_secs(30 * 60),
            read_max: Duration::from_secs(30),
            scrub_pass: Some(Duration::from_secs(90 * 24 * 3600)),
            scrub_rate: Some(8 << 20),
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
        (worker, clock): (BrokerId, SharedClock),
    ) -> ColdTier {
        ColdTier {
            locations,
            cache,
            figures: Figures::default(),
            pressure: Pressure::default(),
            workers: Semaphore::new(settings.workers_max.max(1)),
            memory: ByteBudget::new(settings.workers_max.max(1).saturating_mul(WORKER_BYTES)),
            uploads: settings
                .upload_rate
                .map(|rate| Mutex::new(Bucket::new(rate, UPLOAD_BURST, Duration::ZERO))),
            scrub_pace: Arc::new(Pace::new(settings.scrub_rate, clock)),
            settings,
            worker,
            looks: Semaphore::new(LOOKS_AT_ONCE),
            active: Mutex::default(),
            seen: Mutex::default(),
            left: Notify::new(),
            imported: Mutex::default(),
        }
    }

    /// The record of a ledger with re-imported copies, if it was read lately.
    pub(crate) fn imported(&self, ledger: LedgerId) -> Option<Arc<LedgerInfo>> {
        self.imported.lock().get(&ledger).cloned()
    }

    /// Remembers the record of such a ledger, or forgets it.
    pub(crate) fn note_imported(&self, ledger: LedgerId, info: Option<&Arc<LedgerInfo>>) {
        let mut imported = self.imported.lock();
        match info {
            None => {
                imported.remove(&ledger);
            }
            Some(info) => {
                if imported.len() >= IMPORTED_MAX {
                    imported.pop_first();
                }
                imported.insert(ledger, Arc::clone(info));
            }
        }
    }

    /// What this process is called in the records of its attempts.
    #[must_use]
    pub fn worker(&self) -> BrokerId {
        self.worker
    }

    /// Waits until this many bytes of a ledger may be offloaded.
    pub(crate) async fn pace(&self, clock: &dyn Clock, bytes: usize) {
        let Some(uploads) = &self.uploads else {
            return;
        };
        loop {
            let wait = {
                let mut bucket = uploads.lock();
                let wait = bucket.wait(clock.monotonic());
                if wait.is_zero() {
                    bucket.take(bytes as u64);
                    return;
                }
                wait
            };
            clock::sleep(wait).await;
        }
    }

    /// What an attempt at a ledger of this length may take.
    pub(crate) fn attempt_max(&self, bytes: u64) -> Duration {
        // With a low rate, which the workers share, each gets a part of it.
        let workers = self.settings.workers_max.max(1) as u64;
        let of_rate = |rate: u64| rate / workers.saturating_mul(2);
        let rate = self.settings.upload_rate.map_or(u64::MAX, of_rate);
        let seconds = bytes / rate.clamp(1, ATTEMPT_BYTES_PER_SECOND);
        self.settings
            .attempt_max
            .saturating_add(Duration::from_secs(seconds))
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
