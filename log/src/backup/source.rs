//! A topic as a backup has it, made ready to be restored here.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_cold::backup::{self, TopicParts};
use aquifer_cold::location::PlaceOfObjects;
use aquifer_cold::replaced::Replaced;
use aquifer_ledger::ledger_metadata::{LedgerInfo, LedgerState};
use aquifer_ledger::offload::Offload;
use aquifer_metadata::keys;
use aquifer_metadata::store::Revision;
use aquifer_model::backup::{BackupTotals, RestoreTopic};
use aquifer_model::id::LedgerId;
use aquifer_proto::v1;
use bytes::Bytes;

use crate::backup::tier;
use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::upload::of_store;
use crate::record::restoring::RestoredLedger;

/// See the module.
#[derive(Debug)]
pub struct BackedUpTopic {
    /// The record of the topic, without its ledgers.
    pub record: v1::TopicRecord,
    /// Its ledgers, oldest first.
    pub ledgers: Vec<RestoredLedger>,
    /// Records of a snapshot of its subscriptions and producers.
    pub cursors: Vec<Bytes>,
    /// What the backup says that it comes to.
    pub totals: BackupTotals,
    /// Whether some objects are this cluster's own: they stay only as the backup keeps them.
    pub has_own: bool,
}

/// Reads a topic of a backup, and learns where its objects are from here.
///
/// # Errors
/// [`LogError::Damaged`] when the backup is not what was written, or does not add up; those of the
/// store and of metadata.
pub async fn read_topic(
    ctx: &Arc<LogContext>,
    wanted: &RestoreTopic,
) -> Result<BackedUpTopic, LogError> {
    let locations = &tier(ctx)?.locations;
    let (url, owner) = (&wanted.url, &wanted.cluster);
    let (marker, store) = locations.visit(url, owner).await.map_err(of_store)?;
    let topic = wanted.topic.to_string();
    let read = backup::read_topic(&*store, owner, wanted.backup, &topic, &wanted.files).await;
    let mut parts = read.map_err(of_store)?;
    let replaced = Replaced::list(&*store, owner).await.map_err(of_store)?;
    for ledger in parts.ledgers.iter_mut().filter_map(|l| l.ledger.as_mut()) {
        let applied = replaced.apply(&*store, ledger).await;
        applied.map_err(of_store)?;
    }
    let mut numbers = BTreeMap::new();
    for (number, place) in &parts.places {
        // The place of the backup itself is where it was found now.
        let is_here = place.id == marker;
        let url = match is_here {
            true => url.trim_end_matches('/').to_owned(),
            false => place.url.clone(),
        };
        let place = PlaceOfObjects {
            url,
            ..place.clone()
        };
        let found = locations.number_of(&place).await;
        let found = found.map_err(of_store)?;
        numbers.insert(*number, found);
    }
    let ledgers = ledgers_of(wanted, &parts, &numbers)?;
    let totals = BackupTotals::from(parts.head.totals.unwrap_or_default());
    Ok(BackedUpTopic {
        record: record_of(wanted, &parts, &totals),
        has_own: ledgers.iter().any(|ledger| ledger.is_own),
        ledgers,
        cursors: parts.cursors,
        totals,
    })
}

fn record_of(wanted: &RestoreTopic, parts: &TopicParts, totals: &BackupTotals) -> v1::TopicRecord {
    let head = &parts.head;
    v1::TopicRecord {
        ranges: head.ranges.clone(),
        range_generation: head.range_generation,
        key_hash: head.key_hash,
        terminated: head.terminated,
        trimmed_index: totals.first.0,
        // Positions rise along a topic. A copy gets ledgers of its own.
        last_ledger_id: match wanted.is_renamed() {
            true => 0,
            false => totals.last_ledger,
        },
        restored: Some(v1::RestoredFrom {
            backup_id: Bytes::copy_from_slice(&wanted.backup.0),
            incarnation: head.incarnation.clone(),
            trim_after_ms: 0,
            asked_ms: 0,
        }),
        ..v1::TopicRecord::default()
    }
}

/// The ledgers, checked: what is written down is what the log would have written itself.
fn ledgers_of(
    wanted: &RestoreTopic,
    parts: &TopicParts,
    numbers: &BTreeMap<u32, (u32, bool)>,
) -> Result<Vec<RestoredLedger>, LogError> {
    let home = keys::partition_of_topic(&wanted.topic);
    let mut all: Vec<RestoredLedger> = Vec::with_capacity(parts.ledgers.len());
    for ledger in &parts.ledgers {
        let segment = ledger.segment.unwrap_or_default();
        let id = LedgerId(segment.ledger_id);
        let wrong = |what: &str| LogError::Damaged(format!("ledger {id} of the backup: {what}"));
        let record = ledger.ledger.clone();
        let record = record.ok_or_else(|| wrong("it has no record"))?;
        let mut info = LedgerInfo::of_record(id, record, Revision(0))?;
        let Some(Offload::Stored { object, .. }) = &mut info.offload else {
            return Err(wrong("it has no object"));
        };
        let number = numbers.get(&object.location);
        let (number, is_foreign) = *number.ok_or_else(|| wrong("its place is not told"))?;
        object.location = number;
        if is_foreign {
            // Revisions of another metadata store mean nothing here.
            object.claimed = Revision(0);
        }
        let former = all.last().map(|ledger| &ledger.segment);
        let follows = former.is_none_or(|former| {
            former.end_index == segment.first_index && former.ledger_id < segment.ledger_id
        });
        let end = match info.state {
            LedgerState::Closed(end) => end,
            LedgerState::Open | LedgerState::InRecovery => return Err(wrong("it is not closed")),
        };
        let entries = end.last_entry.map_or(0, |last| last.0 + 1);
        match () {
            () if !segment.sealed || segment.entries != entries => {
                return Err(wrong("its record and its segment differ"));
            }
            () if !follows => return Err(wrong("it does not follow the one before")),
            () if info.home != home => return Err(wrong("it is of another namespace")),
            () if id > wanted.last_ledger => {
                return Err(wrong("it is above the highest ledger of the backup"));
            }
            () if !info.fragments.is_empty() => return Err(wrong("it names bookies")),
            () => {}
        }
        all.push(RestoredLedger {
            segment,
            info,
            is_own: !is_foreign,
        });
    }
    Ok(all)
}
