//! Opening a log: where it ends, and if need be the recovery of its last ledger.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::reader::{Wanted, newest_whole};
use aquifer_ledger::recovery::driver::{close_by_recovery, close_known};
use aquifer_ledger::writer::machine::LedgerEnd;
use aquifer_model::entry::EntryHead;
use aquifer_model::id::{EntryId, Index};
use aquifer_model::limits::BATCH_MESSAGES_MAX;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use crate::context::LogContext;
use crate::error::LogError;
use crate::ranges::RangeIndex;
use crate::read::{head_at, split};
use crate::record::TopicRecordCell;
use crate::source::read_stored;
use crate::state::{LogInner, LogTip, Phase, Segment, SegmentStatus, State};
use crate::types::{LogKind, LogOptions};

/// Attempts to recover the last ledger before the caller hears of trouble.
const ATTEMPTS: u32 = 4;

/// Clocks of one cluster that differ by more than this are an operator's concern.
const AHEAD_MAX: Duration = Duration::from_hours(1);

pub(crate) async fn open(
    ctx: Arc<LogContext>,
    cell: Arc<TopicRecordCell>,
    kind: LogKind,
    options: LogOptions,
) -> Result<Arc<LogInner>, LogError> {
    let record = cell.record();
    if !record.ranges.is_empty() {
        return Err(LogError::Invalid(
            "a partitioned topic stores nothing itself: open its partitions".to_owned(),
        ));
    }
    let (stored, trimmed) = match kind {
        LogKind::Messages => {
            let (record, segments) = cell.all_segments().await?;
            (segments, record.trimmed_index)
        }
        LogKind::Cursors => (record.cursor_segments, 0),
    };
    let mut segments: VecDeque<Segment> = stored.iter().map(Segment::from_record).collect();
    check(&segments)?;
    let mut taken_over = false;
    let earlier_ms = segments.iter().rev().nth(1).map_or(0, |s| s.last_time_ms);
    if let Some(last) = segments.back_mut()
        && last.status == SegmentStatus::Open
    {
        taken_over = true;
        finish_last(&ctx, &cell, last).await?;
    }
    let end = segments.back().map_or(Index(trimmed), |s| s.end_index);
    let last_ms = segments.back().map_or(0, |s| s.last_time_ms);
    let tip = LogTip {
        index: end,
        time_ms: last_ms.max(earlier_ms),
    };
    tell_of_times_ahead(&ctx, cell.topic(), tip.time_ms);
    let state = State {
        phase: Phase::Idle,
        first: segments.front().map_or(end, |s| s.first_index),
        segments,
        acked: tip,
        next: tip,
        pending: VecDeque::new(),
        sent: 0,
        telling: false,
        pending_bytes: 0,
        current: None,
        failure: None,
        reopen_at: None,
        reopen_backoff: ctx.ledgers.settings.retry_backoff_min,
        roll_at: None,
        widened: 0,
        closing: false,
        owned: false,
        sealed: Ok(()),
        waiting_for_seal: Vec::new(),
    };
    Ok(Arc::new_cyclic(|me| LogInner {
        me: me.clone(),
        kind,
        options,
        policies: OnceLock::new(),
        taken_over,
        runtime: Handle::current(),
        state: Mutex::new(state),
        end: watch::Sender::new(end),
        tail: ctx.cache.tail(),
        ranges: RangeIndex::new(ctx.cache.clone()),
        drained: Notify::new(),
        infos: Mutex::new(BTreeMap::new()),
        offload: Mutex::default(),
        cell,
        ctx,
    }))
}

/// Broker time never goes back (H13), so what follows a message of a clock that was ahead is dated
/// like it, and retention by time keeps all of it until then (F10).
fn tell_of_times_ahead(ctx: &LogContext, topic: &TopicName, newest_ms: u64) {
    if let Some(ahead) = dated_ahead(newest_ms, ctx.ledgers.clock.wall_ms()) {
        tracing::warn!(
            %topic, ahead_seconds = ahead.as_secs(),
            "messages are dated ahead of the clock: retention by time and expiry wait for it"
        );
        ctx.metrics.dated_ahead.add(1, &[]);
    }
}

fn dated_ahead(newest_ms: u64, now_ms: u64) -> Option<Duration> {
    let ahead = Duration::from_millis(newest_ms.saturating_sub(now_ms));
    (ahead > AHEAD_MAX).then_some(ahead)
}

/// Segments are consecutive in index, and only the last may be open.
fn check(segments: &VecDeque<Segment>) -> Result<(), LogError> {
    for (one, two) in segments.iter().zip(segments.iter().skip(1)) {
        if one.status != SegmentStatus::Sealed || one.end_index != two.first_index {
            return Err(LogError::Damaged(format!(
                "ledger {} of the topic record ends at {}, the next begins at {}",
                one.ledger, one.end_index, two.first_index
            )));
        }
    }
    Ok(())
}

/// Finds the figures of the last ledger; recovers it if no process has closed it.
async fn finish_last(
    ctx: &Arc<LogContext>,
    cell: &TopicRecordCell,
    segment: &mut Segment,
) -> Result<(), LogError> {
    let (info, end) = closed(ctx, cell, segment).await?;
    segment.status = SegmentStatus::Closed;
    let Some(last) = end.last_entry else {
        return Ok(());
    };
    segment.entries = last.0 + 1;
    segment.bytes = end.length;
    let Some(ending) = ending(ctx, &info, last).await? else {
        // Nothing of it can be read, and as far as is known it is as young as may be.
        let now_ms = ctx.ledgers.clock.wall_ms();
        segment.end_index = behind_damaged(segment.first_index, segment.entries);
        (segment.first_time_ms, segment.last_time_ms) = (now_ms, now_ms);
        return Ok(());
    };
    let first = match head_at(ctx, &info, EntryId::FIRST).await {
        Ok(first) => first,
        // Readers will be told; the topic can still be served behind it.
        Err(LogError::Damaged(reason)) => {
            tracing::error!(ledger = %segment.ledger, reason, "first entry of a ledger is damaged");
            EntryHead {
                base_index: segment.first_index,
                ..ending.head.clone()
            }
        }
        Err(error) => return Err(error),
    };
    if first.base_index != segment.first_index {
        return Err(LogError::Damaged(format!(
            "ledger {} begins at index {}, the topic record says {}",
            segment.ledger, first.base_index, segment.first_index
        )));
    }
    segment.end_index = behind_damaged(ending.head.end_index(), last.0 - ending.entry.0);
    segment.first_time_ms = first.broker_time_ms;
    segment.last_time_ms = ending.head.broker_time_ms;
    Ok(())
}

/// The last entry of a ledger that can be read.
struct Ending {
    entry: EntryId,
    head: EntryHead,
}

/// What can be read last of a ledger: its last entry, or the one before those at its end that are
/// damaged in every copy. The end comes from that entry's own head, never from counting (H10, H13).
async fn ending(
    ctx: &LogContext,
    info: &LedgerInfo,
    last: EntryId,
) -> Result<Option<Ending>, LogError> {
    let read = read_stored(ctx, info, Wanted::one(last)).await;
    let reason = match read.and_then(|stored| split(info, &stored[0])) {
        Ok((head, _)) => return Ok(Some(Ending { entry: last, head })),
        Err(LogError::Damaged(reason)) => reason,
        Err(error) => return Err(error),
    };
    tracing::error!(ledger = %info.id, reason, "the last entry of a ledger is damaged");
    let Some(before) = last.0.checked_sub(1).map(EntryId) else {
        return Ok(None);
    };
    let mut found = newest_whole(before, |entry| whole_head(ctx, info, entry)).await?;
    // Some of those that were passed over may be whole.
    while let Some((entry, _)) = &found {
        let next = entry.next();
        match whole_head(ctx, info, next).await? {
            Some(head) => found = Some((next, head)),
            None => break,
        }
    }
    Ok(found.map(|(entry, head)| Ending { entry, head }))
}

/// The head of an entry, if it is not damaged.
async fn whole_head(
    ctx: &LogContext,
    info: &LedgerInfo,
    entry: EntryId,
) -> Result<Option<EntryHead>, LogError> {
    match head_at(ctx, info, entry).await {
        Ok(head) => Ok(Some(head)),
        Err(LogError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An index that is behind every message of some entries that cannot be read. How many those have
/// held is not known, and none of their indices may be given to another message: a subscription
/// that has acknowledged it would never see that one.
pub(crate) fn behind_damaged(index: Index, entries: u64) -> Index {
    let messages = entries.saturating_mul(u64::from(BATCH_MESSAGES_MAX));
    Index(index.0.saturating_add(messages))
}

async fn closed(
    ctx: &Arc<LogContext>,
    cell: &TopicRecordCell,
    segment: &Segment,
) -> Result<(LedgerInfo, LedgerEnd), LogError> {
    let info = ledger_metadata::load_existing(&*ctx.ledgers.store, segment.ledger).await?;
    if let LedgerState::Closed(end) = info.state {
        return Ok((info, end));
    }
    let mut known = Some(info);
    let mut attempt = 1;
    let mut backoff = ctx.ledgers.settings.retry_backoff_min;
    loop {
        let closed = match known.take() {
            Some(info) => close_known(&ctx.ledgers, info, &cell.guards()).await,
            None => close_by_recovery(&ctx.ledgers, segment.ledger, &cell.guards()).await,
        };
        match closed.map_err(LogError::from) {
            Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                tracing::warn!(ledger = segment.ledger.0, %error, "recovery on opening failed, trying again");
            }
            done => return done,
        }
        clock::sleep(ctx.ledgers.rng.jitter(backoff)).await;
        backoff = (backoff * 2).min(ctx.ledgers.settings.retry_backoff_max);
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_far_ahead_are_told() {
        let (now, hour) = (1_700_000_000_000, 3_600_000);
        assert_eq!(dated_ahead(now, now), None);
        assert_eq!(dated_ahead(now - 1, now), None);
        assert_eq!(dated_ahead(now + hour, now), None);
        let ahead = dated_ahead(now + hour + 1, now);
        assert_eq!(ahead, Some(Duration::from_millis(hour + 1)));
    }
}
