//! Restores that were given up: what they have written is deleted after some days.
//!
//! The record below `restores/` says which ledgers and pages were written for it, and when a
//! request asked for it last. Any number of processes may look at once. Invariants:
//! - What a finished restore has written is not touched: its record has left `restores/` in the
//!   transaction that let the topic be seen.
//! - One of a build that notes no time is given one, and is judged by that.
//! - A restore that goes on is not touched: its request notes the time, and the record is marked
//!   over the revision at which it was found to be old. After that mark a request writes no more
//!   ledgers for it, and does not let it be seen; it deletes what is left and begins again.

use std::sync::Arc;

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::scan::Pages;
use aquifer_metadata::store::Versioned;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;

use crate::context::LogContext;
use crate::error::LogError;
use crate::record::decode;
use crate::record::restoring::cell_at;

/// A restore for which no request has asked in this time was given up.
const GIVEN_UP_AFTER_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// Deletes what restores have written that were given up; answers how many they were.
///
/// # Errors
/// When metadata cannot be read. One that cannot be deleted keeps no other.
pub async fn delete_given_up(ctx: &Arc<LogContext>) -> Result<usize, LogError> {
    let mut pages = Pages::new(&*ctx.ledgers.store, keys::RESTORES_PREFIX);
    let mut deleted = 0;
    while let Some(page) = pages.next().await? {
        for stored in &page {
            match delete_if_given_up(ctx, stored).await {
                Ok(is_deleted) => deleted += usize::from(is_deleted),
                Err(error) => {
                    tracing::warn!(key = stored.key, %error, "a restore that may have been given up is deleted later");
                }
            }
        }
    }
    Ok(deleted)
}

fn is_given_up(record: &v1::TopicRecord, now_ms: u64) -> bool {
    let asked_ms = record.restored.as_ref().map(|from| from.asked_ms);
    let is_old = |ms: u64| ms > 0 && ms.saturating_add(GIVEN_UP_AFTER_MS) < now_ms;
    asked_ms.is_some_and(is_old)
}

/// Whether an earlier build has begun it, and notes no times.
fn has_no_time(record: &v1::TopicRecord) -> bool {
    record
        .restored
        .as_ref()
        .is_some_and(|from| from.asked_ms == 0)
}

pub(crate) async fn delete_if_given_up(
    ctx: &Arc<LogContext>,
    stored: &Versioned,
) -> Result<bool, LogError> {
    let (current, incarnation) = decode(stored)?;
    let now_ms = ctx.ledgers.clock.wall_ms();
    let is_unknown = has_no_time(&current.record);
    if !is_unknown && !is_given_up(&current.record, now_ms) {
        return Ok(false);
    }
    let topic: TopicName = match stored.key.parse()? {
        Key::Restoring(topic) => topic,
        _ => return Ok(false),
    };
    // Without the right of an owner: what is below that key is no topic yet.
    let cell = cell_at(Arc::clone(ctx), &topic, Vec::new(), incarnation, current);
    if is_unknown {
        // Its time begins now.
        let stamp = |record: &mut v1::TopicRecord| {
            if let Some(from) = &mut record.restored {
                from.asked_ms = from.asked_ms.max(now_ms);
            }
            Ok(())
        };
        cell.update(Vec::new(), stamp).await?;
        return Ok(false);
    }
    let mark = |record: &mut v1::TopicRecord| {
        if !is_given_up(record, now_ms) {
            return Err(LogError::Unavailable("the restore goes on".to_owned()));
        }
        record.deleting = true;
        Ok(())
    };
    cell.update(Vec::new(), mark).await?;
    cell.delete().await?;
    tracing::warn!(%topic, "a restore that was given up is deleted");
    Ok(true)
}
