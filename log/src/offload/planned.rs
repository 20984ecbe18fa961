//! What is due of a topic that is not loaded, by its record alone: the record says how far the
//! offload is, and when each of its newest ledgers ended.
//!
//! It reads the record, which the caller has, and the record of the last ledger if a crash left
//! that open. It errs towards saying that something is due: the topic is loaded then, and looks
//! itself.

use aquifer_ledger::ledger_metadata;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::{Index, LedgerId};
use aquifer_model::policy::Retention;
use aquifer_model::policy::offload::OffloadPolicy;
use aquifer_proto::v1;

use crate::error::LogError;
use crate::offload::figures::Behind;
use crate::pages::has_pages;

/// What decides on a topic.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// When ledgers are due.
    pub policy: OffloadPolicy,
    /// What trimming keeps.
    pub retention: Retention,
    /// Subscriptions need nothing that ends at or below it, as far as that is known; retention
    /// decides on what it is not known of.
    pub unneeded: Index,
    /// Bookies run out of space: whatever they have may have to go.
    pub pressed: bool,
    /// The time.
    pub now_ms: u64,
}

/// What is to be done about a topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Planned {
    /// Ledgers to be offloaded.
    pub behind: Behind,
    /// The lag of some copies is over.
    pub drops: bool,
    /// A ledger that was left open is to be closed.
    pub closes: bool,
    /// Bookies that run out of space may have some of it.
    pub pressed: bool,
}

impl Planned {
    /// Whether the topic is to be loaded.
    #[must_use]
    pub fn is_due(&self) -> bool {
        *self != Planned::default()
    }
}

/// What is to be done about a topic, by its record.
///
/// # Errors
/// When the record of its last ledger cannot be read.
pub async fn planned(
    store: &dyn MetadataStore,
    record: &v1::TopicRecord,
    terms: &Terms,
) -> Result<Planned, LogError> {
    let mark = record.offloaded.unwrap_or_default();
    let since_ms = mark.copies_since_ms;
    let mut planned = Planned {
        behind: by_record(record, mark.stored_end, terms),
        drops: since_ms > 0 && terms.policy.lag_is_over(since_ms, terms.now_ms),
        closes: false,
        pressed: terms.pressed && terms.policy.enabled && has_copies(record, mark.dropped_end),
    };
    let open = record.segments.last().filter(|segment| !segment.sealed);
    if let (Some(open), true) = (open, terms.policy.is_active()) {
        let info = ledger_metadata::load(store, LedgerId(open.ledger_id)).await?;
        let is_old = |created_ms| terms.policy.is_due(created_ms, 0, terms.now_ms);
        planned.closes = info.is_some_and(|info| is_old(info.created_ms));
    }
    Ok(planned)
}

/// Whether bookies may have closed ledgers that end above an index.
fn has_copies(record: &v1::TopicRecord, dropped_end: u64) -> bool {
    let mut sealed = record.segments.iter().filter(|s| s.sealed && s.entries > 0);
    sealed.any(|segment| segment.end_index > dropped_end)
}

/// The ledgers behind an index that are due.
fn by_record(record: &v1::TopicRecord, stored_end: u64, terms: &Terms) -> Behind {
    let (policy, now_ms) = (&terms.policy, terms.now_ms);
    let (mut behind, mut newer) = (Behind::default(), 0_u64);
    if !policy.is_active() {
        return behind;
    }
    let mut look = |end: u64, bytes: u64, time_ms: u64, newer: u64| {
        let goes_soon =
            end <= terms.unneeded.0 && policy.goes_soon(&terms.retention, time_ms, newer, now_ms);
        if end > stored_end && !goes_soon && policy.is_due(time_ms, newer, now_ms) {
            let since = policy.age_ms.map(|age_ms| time_ms.saturating_add(age_ms));
            let is_late = policy.is_late(time_ms, newer, now_ms);
            behind.add(bytes, since.filter(|ms| *ms <= now_ms), is_late);
        }
    };
    for segment in record.segments.iter().rev() {
        if segment.sealed && segment.entries > 0 {
            look(
                segment.end_index,
                segment.bytes,
                segment.last_time_ms,
                newer,
            );
        }
        newer = newer.saturating_add(segment.bytes);
    }
    // Those of pages end before the first of the record begins.
    if let (Some(first), true) = (record.segments.first(), has_pages(record))
        && first.sealed
    {
        look(
            first.first_index,
            record.paged_bytes,
            first.first_time_ms,
            newer,
        );
    }
    behind
}
