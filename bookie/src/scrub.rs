//! The scrubber: reads everything that is stored, slowly and for ever, and checks its digests, so
//! that damage is found while other replicas are whole.
//!
//! It changes nothing itself. What is damaged is counted and told to a [`RepairHook`]; repair
//! writes through the journal as everything does. It reads the store only: what is still to be
//! applied there is checked when it has arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aquifer_model::id::{EntryId, LedgerId};
use parking_lot::{Mutex, RwLock};

use crate::report::ScrubReport;
use crate::shared::Shared;
use crate::store::{CheckPlace, Checked};
use crate::wakeup::Wakeup;

/// Bytes that are checked at once.
const STEP_BYTES: usize = 256 * 1024;
/// Ledgers whose names are read at once.
const PAGE_LEDGERS: usize = 256;
/// What looking at a ledger costs at least, so that many empty ones do not make it a busy loop.
const LEDGER_BYTES: usize = 4 * 1024;
/// When the store does not answer.
const RETRY: Duration = Duration::from_secs(10);
/// So often in a row at one ledger, after which it is left to the next pass.
const RETRIES_MAX: u32 = 6;
/// How long it waits at first.
const START_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The position is noted after this many bytes.
const NOTE_BYTES: usize = 16 << 20;

/// Repairs what is damaged.
pub trait RepairHook: Send + Sync {
    /// An entry of this bookie is damaged, or may be: where whole blocks are unreadable, entries
    /// are named that do not exist. Must not block; what it drops is found again.
    fn damaged(&self, ledger: LedgerId, entry: EntryId);

    /// From an entry on, what this bookie has of a ledger cannot be read, and neither can how much
    /// that is; a reader of the ledger's record knows. Must not block; what it drops is found
    /// again.
    fn end_hidden(&self, ledger: LedgerId, first: EntryId);
}

/// The scrubber, and the place where damage is told.
pub struct Scrubber {
    shared: Arc<Shared>,
    bytes_per_second: u64,
    pause: Duration,
    wakeup: Wakeup,
    stopping: AtomicBool,
    report: Mutex<ScrubReport>,
    hook: RwLock<Option<Arc<dyn RepairHook>>>,
}

impl Scrubber {
    /// A scrubber that does not run yet.
    #[must_use]
    pub fn new(shared: &Arc<Shared>) -> Scrubber {
        Scrubber {
            bytes_per_second: shared.config.scrub_bytes_per_second,
            pause: Duration::from_millis(shared.config.scrub_pause_ms),
            shared: Arc::clone(shared),
            wakeup: Wakeup::default(),
            stopping: AtomicBool::new(false),
            report: Mutex::default(),
            hook: RwLock::new(None),
        }
    }

    /// Whether it is to run at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.bytes_per_second > 0
    }

    /// What it has seen.
    #[must_use]
    pub fn report(&self) -> ScrubReport {
        *self.report.lock()
    }

    /// Sets what repairs.
    pub fn set_hook(&self, hook: Arc<dyn RepairHook>) {
        *self.hook.write() = Some(hook);
    }

    /// A damaged entry was found.
    pub fn tell(&self, ledger: LedgerId, entry: EntryId) {
        let hook = self.hook.read().clone();
        if let Some(hook) = hook {
            hook.damaged(ledger, entry);
        }
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wakeup.wake();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Sleeps, unless the bookie stops: a ring that an earlier sleep has taken must not be missed.
    fn sleep(&self, pause: Duration) {
        if !self.is_stopping() {
            self.wakeup.wait(pause);
        }
    }

    /// The thread.
    pub fn run(&self) {
        // A bookie that starts has more urgent things to do; and a process whose start fails
        // should not end in the middle of a read.
        self.sleep(self.pause.min(START_PAUSE_MAX));
        let mut at = self.shared.store.scrubbed().unwrap_or_else(|error| {
            tracing::warn!(%error, "the scrubber starts again from the first ledger");
            None
        });
        while !self.is_stopping() {
            if !self.pass(at.take()) {
                return;
            }
            self.report.lock().passes += 1;
            self.shared.metrics.scrub_passes.add(1, &[]);
            self.note((LedgerId(0), EntryId::FIRST));
            self.sleep(self.pause);
        }
    }

    /// Checks everything from a place on. `false` when the bookie stops.
    fn pass(&self, from: Option<(LedgerId, EntryId)>) -> bool {
        // The ledger at which the last run was is looked at again, from the entry on.
        let mut after = from.and_then(|(ledger, _)| ledger.0.checked_sub(1).map(LedgerId));
        let mut first = from.map_or(EntryId::FIRST, |(_, entry)| entry);
        let mut unnoted = 0;
        // A page may have tombstones only: then this is where a stop is seen.
        while !self.is_stopping() {
            let page = match self.shared.store.ledgers_after(after, PAGE_LEDGERS) {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "the scrubber cannot list ledgers, trying again");
                    self.sleep(RETRY);
                    continue;
                }
            };
            // Listing costs reads too, however few of the records are ledgers to check.
            self.rest(LEDGER_BYTES);
            for (ledger, _) in page.ledgers {
                // Only the first ledger may begin in its middle.
                let begin = match from {
                    Some((at, _)) if at == ledger => std::mem::replace(&mut first, EntryId::FIRST),
                    _ => EntryId::FIRST,
                };
                if !self.ledger(ledger, begin, &mut unnoted) {
                    return false;
                }
            }
            match page.looked {
                Some(looked) => after = Some(looked),
                None => return true,
            }
        }
        false
    }

    /// Checks a ledger from an entry on. `false` when the bookie stops.
    fn ledger(&self, ledger: LedgerId, first: EntryId, unnoted: &mut usize) -> bool {
        self.report.lock().ledger = Some(ledger);
        let mut next = CheckPlace::at(first);
        let mut damaged = Run {
            ledger,
            ends: None,
            hidden: false,
        };
        let mut retries = 0;
        loop {
            if self.is_stopping() {
                self.note((ledger, next.entry));
                return false;
            }
            let checked = match self.shared.store.check(ledger, next, STEP_BYTES) {
                Ok(checked) => checked,
                Err(error) if retries < RETRIES_MAX => {
                    retries += 1;
                    tracing::warn!(%ledger, %error, "the scrubber cannot read, trying again");
                    self.sleep(RETRY);
                    continue;
                }
                Err(error) => {
                    tracing::error!(%ledger, %error, "the scrubber leaves a ledger for now");
                    return true;
                }
            };
            retries = 0;
            self.count(&mut damaged, &checked);
            let cost = checked.bytes + LEDGER_BYTES;
            *unnoted += cost;
            self.rest(cost);
            let Some(after) = checked.next else {
                return true;
            };
            next = after;
            if *unnoted >= NOTE_BYTES {
                *unnoted = 0;
                self.note((ledger, next.entry));
            }
        }
    }

    fn count(&self, damaged: &mut Run, checked: &Checked) {
        {
            let mut report = self.report.lock();
            report.entries += checked.entries;
            report.bytes += checked.bytes as u64;
            report.damaged += checked.damaged.len() as u64;
        }
        self.shared
            .metrics
            .scrubbed_entries
            .add(checked.entries, &[]);
        self.shared
            .metrics
            .scrubbed_bytes
            .add(checked.bytes as u64, &[]);
        if checked.damaged.is_empty() {
            damaged.log();
        }
        if let Some(first) = checked.hidden.filter(|_| !damaged.hidden) {
            damaged.hidden = true;
            self.end_hidden(damaged.ledger, first);
        }
        for entry in &checked.damaged {
            damaged.add(*entry);
            self.shared.metrics.scrub_damaged.add(1, &[]);
            self.tell(damaged.ledger, *entry);
        }
    }

    /// Tells of the end of a ledger that cannot be read, once for all its numbers: thousands of
    /// them would keep repair from what is known to be damaged.
    pub fn end_hidden(&self, ledger: LedgerId, first: EntryId) {
        tracing::error!(%ledger, %first, "the end of a ledger cannot be read from here on");
        self.report.lock().damaged += 1;
        self.shared.metrics.scrub_damaged.add(1, &[]);
        let hook = self.hook.read().clone();
        if let Some(hook) = hook {
            hook.end_hidden(ledger, first);
        }
    }

    fn rest(&self, bytes: usize) {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.sleep(pause);
    }

    fn note(&self, at: (LedgerId, EntryId)) {
        if let Err(error) = self.shared.store.set_scrubbed(at) {
            tracing::debug!(%error, "the scrubber's position is not noted");
        }
    }
}

/// Damaged entries in a row, which are one line in the log.
struct Run {
    ledger: LedgerId,
    ends: Option<(EntryId, EntryId)>,
    /// Whether it was told that the end of the ledger cannot be read.
    hidden: bool,
}

impl Run {
    fn add(&mut self, entry: EntryId) {
        match &mut self.ends {
            Some((_, last)) if last.next() == entry => *last = entry,
            _ => {
                self.log();
                self.ends = Some((entry, entry));
            }
        }
    }

    fn log(&mut self) {
        if let Some((first, last)) = self.ends.take() {
            tracing::error!(ledger = %self.ledger, %first, %last, "stored entries are damaged");
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.log();
    }
}
