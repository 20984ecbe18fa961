//! What a log remembers of its offload, and how far that is, as its record says it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::offload::{Copies, Offload};
use aquifer_model::id::{AttemptId, BookieId, Index, LedgerId};
use aquifer_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::LogError;
use crate::offload::figures::BehindOfLog;
use crate::state::Segment;

/// What is remembered of a log.
#[derive(Default)]
pub(crate) struct OffloadState {
    pub(super) known: BTreeMap<LedgerId, Known>,
    /// The bookies that owe these ledgers something.
    pub(super) at: BTreeMap<LedgerId, Box<[BookieId]>>,
    /// What was asked for: segments that end at or below are due.
    pub(super) below: Index,
    /// No subscription needs what ends at or below: retention deletes it.
    pub(super) unneeded: Index,
    /// Ledgers whose attempts fail for reasons of their own: not before this, on the monotonic
    /// clock.
    pub(super) not_before: BTreeMap<LedgerId, Duration>,
    /// Where the last ledger ends whose copies could go; 0 without any.
    pub(super) over_end: Index,
    pub(super) running: bool,
    /// The last run has failed.
    pub(super) has_failed: bool,
    /// Why, for the one that asked.
    pub(super) failure: Option<LogError>,
    pub(super) behind: Option<BehindOfLog>,
    /// Messages whose ledgers are to be re-imported.
    pub(super) import: Option<Range<Index>>,
    /// Told when a re-import is cancelled.
    pub(super) import_cancelled: Arc<Notify>,
}

pub(crate) type SharedOffloadState = Mutex<OffloadState>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    Local,
    Claimed,
    Stored {
        attempt: AttemptId,
        object: Arc<str>,
        copies: Copies,
        stored_ms: u64,
    },
}

impl Known {
    pub(super) fn of(offload: Option<Offload>) -> Known {
        match offload {
            None => Known::Local,
            Some(Offload::Claimed { .. }) => Known::Claimed,
            Some(Offload::Stored {
                attempt,
                object,
                copies,
            }) => Known::Stored {
                attempt,
                object: object.name.into(),
                copies,
                stored_ms: object.stored_ms,
            },
        }
    }

    /// Whether it may change without this log.
    pub(super) fn may_change(&self) -> bool {
        match self {
            Known::Local => false,
            Known::Claimed => true,
            Known::Stored { copies, .. } => {
                matches!(copies, Copies::Going | Copies::Coming { .. })
            }
        }
    }

    /// Since when an object and copies at bookies are both there, if they are.
    pub(super) fn copies_since(&self) -> Option<u64> {
        match self {
            Known::Stored {
                copies: Copies::Kept,
                stored_ms,
                ..
            } => Some(*stored_ms),
            Known::Stored {
                copies: Copies::Imported { since_ms, .. },
                ..
            } => Some(*since_ms),
            Known::Local | Known::Claimed | Known::Stored { .. } => None,
        }
    }

    /// What becomes of the copies of a ledger that is in an object.
    pub(super) fn copies(&self) -> Option<Copies> {
        match self {
            Known::Local | Known::Claimed => None,
            Known::Stored { copies, .. } => Some(*copies),
        }
    }
}

impl OffloadState {
    /// Forgets all ledgers before one.
    pub(super) fn forget_before(&mut self, first: LedgerId) {
        self.known = self.known.split_off(&first);
        self.at = self.at.split_off(&first);
        self.not_before = self.not_before.split_off(&first);
    }

    /// Whether one of these bookies has copies of a ledger.
    pub(super) fn is_at(&self, ledger: LedgerId, bookies: &BTreeSet<BookieId>) -> bool {
        let at = self.at.get(&ledger);
        at.is_some_and(|at| at.iter().any(|bookie| bookies.contains(bookie)))
    }

    /// Whether a ledger waits after an attempt that failed for reasons of its own.
    pub(super) fn rests(&self, ledger: LedgerId, now: Duration) -> bool {
        self.not_before.get(&ledger).is_some_and(|at| *at > now)
    }

    /// How far the offload of sealed segments is. What a mark says of older ones stays so.
    pub(super) fn mark(&self, before: v1::OffloadMark, sealed: &[Segment]) -> v1::OffloadMark {
        let mut mark = v1::OffloadMark {
            copies_since_ms: 0,
            ..before
        };
        let (mut all_stored, mut all_dropped) = (true, true);
        let mut is_unknown = false;
        let beyond = |segment: &&Segment| segment.end_index.0 > before.dropped_end;
        for segment in sealed.iter().filter(beyond) {
            let end = segment.end_index.0;
            let known = self.known.get(&segment.ledger);
            let Some((known, Known::Stored { copies, .. })) = known.zip(known) else {
                is_unknown |= known.is_none();
                all_stored &= end <= before.stored_end;
                all_dropped = false;
                continue;
            };
            if all_stored {
                mark.stored_end = mark.stored_end.max(end);
            }
            if *copies != Copies::Gone {
                all_dropped = false;
                // Those that are going need nothing but their bookies; a re-import that was left in
                // the middle needs an owner soon.
                let is_coming = matches!(copies, Copies::Coming { .. });
                let since = known.copies_since().or(is_coming.then_some(0));
                if let Some(since_ms) = since {
                    mark.copies_since_ms = earlier(mark.copies_since_ms, since_ms.max(1));
                }
            } else if all_dropped {
                mark.dropped_end = end;
            }
        }
        if is_unknown {
            // What was not read may be what the mark was for.
            mark.copies_since_ms = earlier(mark.copies_since_ms, before.copies_since_ms);
        }
        mark
    }
}

/// The earlier of two times; 0 says that there is no time.
fn earlier(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, time) | (time, 0) => time,
        (one, other) => one.min(other),
    }
}
