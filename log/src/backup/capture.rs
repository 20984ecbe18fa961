//! What a backup has of the ledgers of a log.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use aquifer_ledger::ledger_metadata::{self, LedgerInfo};
use aquifer_ledger::offload::Offload;
use aquifer_model::backup::BackupTotals;
use aquifer_model::id::{Index, LedgerId};
use aquifer_proto::v1;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::backup::tier;
use crate::error::LogError;
use crate::offload::upload::of_store;
use crate::state::{LogInner, Segment};
use crate::topic_log::TopicLog;

/// Records of ledgers that are read at once.
const READS_AT_ONCE: usize = 16;
/// Attempts when the log is trimmed at the same time.
const ATTEMPTS_MAX: usize = 8;

/// The ledgers of a log up to an end, as a backup writes them down.
#[derive(Debug, Clone)]
pub struct CapturedLedgers {
    /// Where their objects are.
    pub places: Vec<v1::BackupLocation>,
    /// The ledgers, oldest first.
    pub ledgers: Vec<v1::BackupLedger>,
    /// What they come to.
    pub totals: BackupTotals,
}

impl TopicLog {
    /// Seals the log for a backup, and answers where that ends: at or behind `least`, which
    /// subscriptions may have reached.
    ///
    /// # Errors
    /// When the current ledger cannot be sealed now.
    pub async fn seal_for_backup(&self, least: Index) -> Result<Index, LogError> {
        self.roll().await?;
        let end = self.inner.sealed_end();
        if end < least {
            let what = "the current ledger cannot be sealed now, for a backup".to_owned();
            return Err(LogError::Unavailable(what));
        }
        Ok(end)
    }

    /// What a backup says of the ledgers that end at or before an index where the log was sealed.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when one of them is not in an object yet; [`LogError::Invalid`]
    /// when the log was not sealed at that index; when metadata cannot be read.
    pub async fn capture(&self, end: Index) -> Result<CapturedLedgers, LogError> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(captured) = self.inner.capture(end).await? {
                return Ok(captured);
            }
        }
        let trimmed = "the topic is being trimmed all the time".to_owned();
        Err(LogError::Unavailable(trimmed))
    }
}

impl LogInner {
    /// The end of what is sealed.
    fn sealed_end(&self) -> Index {
        let state = self.state.lock();
        let begun = state.segments.front().map(|segment| segment.first_index);
        let begun = begun.unwrap_or(state.acked.index);
        drop(state);
        let last = self.sealed().last().map(|segment| segment.end_index);
        last.unwrap_or(begun)
    }

    /// `None` when a ledger is gone that was one of the log's a moment ago.
    async fn capture(&self, end: Index) -> Result<Option<CapturedLedgers>, LogError> {
        let mut segments = self.sealed();
        segments.retain(|segment| segment.end_index <= end);
        let reached = segments.last().map(|segment| segment.end_index);
        let first = segments.first().map(|segment| segment.first_index);
        // Everything before it may have been trimmed since.
        let trimmed = self.first() >= end;
        if reached != Some(end) && !trimmed {
            return Err(LogError::Invalid(format!(
                "no ledger ends at {end}: begin to capture the topic again"
            )));
        }
        let store = &*self.ctx.ledgers.store;
        let ids: Vec<LedgerId> = segments.iter().map(|segment| segment.ledger).collect();
        let infos: Vec<Option<LedgerInfo>> = futures::stream::iter(ids)
            .map(|ledger| ledger_metadata::load(store, ledger))
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        let mut captured = CapturedLedgers {
            places: Vec::new(),
            ledgers: Vec::new(),
            totals: BackupTotals {
                first: first.unwrap_or(end),
                end,
                captured_ms: self.ctx.ledgers.clock.wall_ms(),
                ..BackupTotals::default()
            },
        };
        let mut places = BTreeMap::new();
        for (segment, info) in segments.iter().zip(infos) {
            let Some(info) = info else { return Ok(None) };
            let number = add(&mut captured, segment, &info)?;
            if let Entry::Vacant(vacant) = places.entry(number) {
                let place = tier(&self.ctx)?.locations.describe(number).await;
                let place = place.map_err(of_store)?;
                vacant.insert(v1::BackupLocation {
                    number,
                    location_id: Bytes::copy_from_slice(&place.id.0),
                    url: place.url,
                    cluster: place.owner,
                });
            }
        }
        captured.places = places.into_values().collect();
        Ok(Some(captured))
    }
}

/// Adds a ledger; answers where its object is.
fn add(
    captured: &mut CapturedLedgers,
    segment: &Segment,
    info: &LedgerInfo,
) -> Result<u32, LogError> {
    let Some(Offload::Stored { object, .. }) = &info.offload else {
        return Err(LogError::Unavailable(format!(
            "ledger {} is not in an object yet",
            info.id
        )));
    };
    let totals = &mut captured.totals;
    if totals.ledgers == 0 {
        totals.first_time_ms = segment.first_time_ms;
    }
    totals.last_time_ms = segment.last_time_ms;
    totals.entries += segment.entries;
    totals.bytes += segment.bytes;
    totals.ledgers += 1;
    totals.object_bytes += object.size_bytes;
    totals.last_ledger = totals.last_ledger.max(info.id.0);
    let mut record = info.to_record();
    // Where it is restored, no bookie has it.
    record.fragments.clear();
    if let Some(offload) = &mut record.offload {
        offload.copies = v1::BookieCopies::Gone.into();
        (offload.copy_ledger_id, offload.imported_ms) = (0, 0);
    }
    captured.ledgers.push(v1::BackupLedger {
        segment: Some(segment.sealed_record()),
        ledger: Some(record),
    });
    Ok(object.location)
}
