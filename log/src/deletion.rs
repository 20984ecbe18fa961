//! Deletion of what a topic no longer needs: an intent in metadata, then the bookies.
//!
//! The intent is written in the transaction that takes the ledger off its topic, so that a ledger
//! either belongs to a topic or has an intent to delete it, whatever crashes when. The ledger crate
//! carries it out.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_ledger::deletion::{self, Intent, Progress};
use aquifer_ledger::ledger_metadata::{self, LedgerInfo};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Operation};
use aquifer_model::id::LedgerId;
use aquifer_model::limits::{METADATA_OPERATIONS_MAX, METADATA_REQUEST_BYTES_MAX};
use aquifer_model::policy::PolicyScope;

use crate::context::LogContext;
use crate::error::LogError;
use crate::pages::has_pages;
use crate::record::TopicRecordCell;

/// Intents in one change of a topic record, which takes some operations itself; each takes two.
const INTENTS_PER_CHANGE: usize = (METADATA_OPERATIONS_MAX - 8) / 2;
/// What a change takes besides the topic's record and the intents; the rest of a page is most of
/// it.
const CHANGE_BYTES: usize = 32 << 10;
/// What an operation takes besides its value: its key, and the conditions.
const OPERATION_BYTES: usize = 600;
/// Attempts when repair changes the records of the ledgers at the same time.
const CONFLICTS_MAX: u32 = 32;

/// The change that writes the intent to delete a ledger which changes in the same transaction.
pub(crate) fn intent(info: &LedgerInfo) -> Operation {
    Intent::of(info).put(Expect::Any)
}

/// The changes that write the intent to delete a ledger whose record is still as it was read: else
/// the intent might not name all bookies that have it. The intent comes first, since it shows
/// whether a change of unknown outcome was made.
pub(crate) fn intent_for(info: &LedgerInfo) -> [Operation; 2] {
    [intent(info), info.put(Expect::Revision(info.revision))]
}

/// The changes that write the intents to delete the first of some ledgers, as many as fit into one
/// change of the topic's record beside it, and how many ledgers these are. One without a record is
/// nowhere to be deleted.
pub(crate) async fn intents_that_fit(
    cell: &TopicRecordCell,
    ledgers: impl Iterator<Item = LedgerId>,
) -> Result<(Vec<Operation>, usize), LogError> {
    let (record_bytes, _) = cell.size();
    let mut room = METADATA_REQUEST_BYTES_MAX.saturating_sub(record_bytes + CHANGE_BYTES);
    let (mut all, mut taken) = (Vec::new(), 0);
    for ledger in ledgers.take(INTENTS_PER_CHANGE) {
        let info = ledger_metadata::load(&*cell.ctx().ledgers.store, ledger).await?;
        let intents = info.iter().flat_map(intent_for);
        let intents: Vec<Operation> = intents.collect();
        let bytes: usize = intents.iter().map(bytes_of).sum();
        // Whether a single one fits the store says.
        if bytes > room && taken > 0 {
            break;
        }
        room = room.saturating_sub(bytes);
        all.extend(intents);
        taken += 1;
    }
    Ok((all, taken))
}

/// About what an operation takes of a request.
fn bytes_of(operation: &Operation) -> usize {
    let value = match operation {
        Operation::Put { value, .. } => value.len(),
        Operation::Delete { .. } => 0,
    };
    value + OPERATION_BYTES
}

/// Makes a change that compares the records of ledgers, again when repair has changed one
/// meanwhile. This is not `store.update`, which reads one key again: here the records of up to 60
/// ledgers are read again, and which of them fit into the change is decided again.
pub(crate) async fn again_after_repairs<T, F>(change: impl Fn() -> F) -> Result<T, LogError>
where
    F: Future<Output = Result<T, LogError>>,
{
    let mut attempts = 1;
    loop {
        match change().await {
            Err(error) if attempts < CONFLICTS_MAX && is_about_ledger(&error) => attempts += 1,
            outcome => return outcome,
        }
    }
}

/// Whether a change failed because the record of a ledger had been changed.
fn is_about_ledger(error: &LogError) -> bool {
    match error {
        LogError::Metadata(MetadataError::Conflict { key, .. }) => {
            key.starts_with(keys::LEDGERS_PREFIX)
        }
        _ => false,
    }
}

/// Deletes ledgers whose intents are written, whatever becomes of the caller. Bookies that do not
/// answer do it when they find the intent.
pub(crate) fn delete_in_background(ctx: &Arc<LogContext>, ledgers: Vec<LedgerId>) {
    let context = Arc::clone(ctx);
    drop(ctx.ledgers.tasks.spawn("delete-ledgers", async move {
        for ledger in ledgers {
            match deletion::carry_out(&context.ledgers, ledger).await {
                // Its object, if it has one, is to go too.
                Ok(Progress::Done) => {
                    if let Some(tier) = &context.cold {
                        tier.left.notify_one();
                    }
                }
                Ok(Progress::Waiting(bookies)) => {
                    tracing::info!(
                        ledger = ledger.0,
                        bookies,
                        "bookies are away: they delete the ledger when they return"
                    );
                }
                Err(error) => {
                    tracing::warn!(ledger = ledger.0, %error, "ledger is not deleted yet");
                }
            }
        }
    }));
}

/// Deletes a topic: its record, its pages and all its ledgers.
pub(crate) async fn delete_topic(cell: &TopicRecordCell) -> Result<(), LogError> {
    while !again_after_repairs(|| delete_some(cell)).await? {}
    Ok(())
}

/// The policies of a topic go with it: another of its name would have them.
fn with_policies(cell: &TopicRecordCell, mut operations: Vec<Operation>) -> Vec<Operation> {
    // Those of a topic that is not restored to the end belong to what has its name.
    if cell.is_restoring() {
        return operations;
    }
    operations.push(Operation::Delete {
        key: keys::policies(&PolicyScope::Topic(cell.topic().clone())),
        expect: Expect::Any,
    });
    operations
}

/// Deletes as many ledgers of a topic as fit into one change, those of its pages first and the
/// record with the last; says whether these were all. What takes more than one change is marked
/// first: a topic that lacks messages is never used again. After a crash between two changes the
/// record says what is left.
async fn delete_some(cell: &TopicRecordCell) -> Result<bool, LogError> {
    let ctx = cell.ctx();
    if let Some(page) = cell.first_page().await? {
        mark(cell).await?;
        let (intents, taken) = intents_that_fit(cell, page.ledgers()).await?;
        cell.shorten_page(&page, taken, intents).await?;
        delete_in_background(ctx, page.ledgers().take(taken).collect());
        return Ok(false);
    }
    let record = cell.record();
    let ids: BTreeSet<u64> = record
        .segments
        .iter()
        .chain(&record.cursor_segments)
        .map(|segment| segment.ledger_id)
        .collect();
    let ledgers = ids.iter().copied().map(LedgerId);
    let (intents, taken) = intents_that_fit(cell, ledgers).await?;
    let batch: Vec<u64> = ids.iter().copied().take(taken).collect();
    let last = batch.len() == ids.len();
    if last {
        cell.delete_with(with_policies(cell, intents)).await?;
    } else {
        mark(cell).await?;
        cell.update(intents, |record| {
            // Some of the batch may be in a page now, whose ledgers would lose their records.
            if has_pages(record) {
                return Err(LogError::Fenced);
            }
            record.segments.retain(|s| !batch.contains(&s.ledger_id));
            let cursors = &mut record.cursor_segments;
            cursors.retain(|s| !batch.contains(&s.ledger_id));
            Ok(())
        })
        .await?;
    }
    delete_in_background(ctx, batch.into_iter().map(LedgerId).collect());
    Ok(last)
}

async fn mark(cell: &TopicRecordCell) -> Result<(), LogError> {
    match cell.is_deleting() {
        true => Ok(()),
        false => cell.mark_deleting().await,
    }
}
