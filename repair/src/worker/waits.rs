//! What a worker remembers of ledgers from one round to the next: since when it waits for a writer,
//! and until when it leaves alone what failed. The locks are held within these calls only, so that
//! repairs which run at once share it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aquifer_model::id::{BookieId, EntryId, LedgerId};
use parking_lot::Mutex;

use aquifer_ledger::ledger_metadata::LedgerInfo;

/// First and longest pause before a ledger that could not be repaired is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// A ledger's last fragment, and since when its writer is given time to replace a bookie of it.
type Waiting = (EntryId, Vec<BookieId>, Duration);

/// Open ledgers that wait for their writer.
pub(super) struct Writers {
    grace: Duration,
    since: Mutex<BTreeMap<LedgerId, Waiting>>,
}

impl Writers {
    pub(super) fn new(grace: Duration) -> Writers {
        Writers {
            grace,
            since: Mutex::default(),
        }
    }

    /// Whether the writer of an open ledger could have replaced the bookies that are lost.
    pub(super) fn had_time(&self, info: &LedgerInfo, now: Duration) -> bool {
        let (first, bookies) = info.last_fragment();
        let mut known = self.since.lock();
        match known.get(&info.id) {
            Some((then, members, since)) if *then == first && *members == bookies => {
                now.saturating_sub(*since) >= self.grace
            }
            _ => {
                known.insert(info.id, (first, bookies, now));
                self.grace.is_zero()
            }
        }
    }

    pub(super) fn forget(&self, ledger: LedgerId) {
        self.since.lock().remove(&ledger);
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, ledgers: &BTreeSet<LedgerId>) {
        let mut known = self.since.lock();
        known.retain(|ledger, _| ledgers.contains(ledger));
    }
}

/// Ledgers that failed: how long they wait, and until when.
#[derive(Default)]
pub(super) struct PutOff {
    until: Mutex<BTreeMap<LedgerId, (Duration, Duration)>>,
}

impl PutOff {
    /// Whether a ledger is not to be tried yet.
    pub(super) fn holds(&self, ledger: LedgerId, now: Duration) -> bool {
        let known = self.until.lock();
        known.get(&ledger).is_some_and(|(_, until)| now < *until)
    }

    /// Puts off a ledger that was tried at a time, for longer each time in a row.
    pub(super) fn failed(&self, ledger: LedgerId, tried: Duration) {
        let mut known = self.until.lock();
        let pause = match known.get(&ledger) {
            None => RETRY_FIRST,
            Some((pause, _)) => (*pause * 2).min(RETRY_MAX),
        };
        known.insert(ledger, (pause, tried + pause));
    }

    pub(super) fn forget(&self, ledger: LedgerId) {
        self.until.lock().remove(&ledger);
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, ledgers: &BTreeSet<LedgerId>) {
        let mut known = self.until.lock();
        known.retain(|ledger, _| ledgers.contains(ledger));
    }
}
