//! Deletion of ledgers: an intent in metadata, then the bookies, then intent and record.
//!
//! The intent is written in the transaction that takes the ledger off its topic, so that a ledger
//! either belongs to a topic or is on its way out, whatever crashes when.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_metadata::store::{Expect, Operation, Transaction};
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, CreationToken, LedgerId};
use aquifer_model::limits::{METADATA_OPERATIONS_MAX, METADATA_PAGE_KEYS_MAX};
use aquifer_model::storage::{BookieError, OrderedOperation, OrderedRequest};
use aquifer_proto::v1;
use aquifer_runtime::clock;
use tokio::sync::oneshot;

use crate::context::LogContext;
use crate::error::LogError;
use crate::ledger_metadata::{self, LedgerInfo, commit_known};
use crate::managed::record::TopicRecordCell;

/// Intents in one change of a topic record, which takes some operations itself.
const INTENTS_PER_CHANGE: usize = METADATA_OPERATIONS_MAX - 8;

/// The intent to delete a ledger.
pub(crate) fn intent(info: &LedgerInfo) -> Operation {
    let bookies = info.bookies();
    Operation::Put {
        key: keys::deletion(info.id),
        value: record::encode(v1::DeletionIntent {
            ledger_id: info.id.0,
            bookies: bookies.iter().map(|id| id.0.to_vec().into()).collect(),
        }),
        expect: Expect::Any,
    }
}

/// Deletes ledgers whose intents are written, whatever becomes of the caller. What fails is left
/// to the next sweep.
pub(crate) fn delete_in_background(ctx: &Arc<LogContext>, ledgers: Vec<LedgerId>) {
    let context = Arc::clone(ctx);
    drop(ctx.tasks.spawn("delete-ledgers", async move {
        for ledger in ledgers {
            if let Err(error) = delete_ledger(&context, ledger).await {
                tracing::warn!(ledger = ledger.0, %error, "ledger is not deleted yet");
            }
        }
    }));
}

/// Deletes one ledger on all its bookies, then its intent and its record.
async fn delete_ledger(ctx: &Arc<LogContext>, ledger: LedgerId) -> Result<bool, LogError> {
    let Some(info) = ledger_metadata::load(&*ctx.store, ledger).await? else {
        // Somebody else was faster; what he left of the intent goes with the next line of his.
        return Ok(false);
    };
    let mut answers = Vec::new();
    for bookie in info.bookies() {
        answers.push(ask_to_delete(ctx, bookie, ledger, info.token));
    }
    for answer in answers {
        let answer = clock::timeout(ctx.settings.request_timeout, answer).await;
        match answer {
            // With another token it is another ledger, which is not ours to delete (H14).
            Ok(Ok(
                Ok(()) | Err(BookieError::NoSuchLedger | BookieError::Deleted | BookieError::Token),
            )) => {}
            Ok(Ok(Err(error))) => return Err(LogError::Unavailable(error.to_string())),
            Ok(Err(_)) | Err(_) => {
                return Err(LogError::Unavailable(BookieError::Timeout.to_string()));
            }
        }
    }
    let gone = |key: String| Operation::Delete {
        key,
        expect: Expect::Any,
    };
    let transaction = Transaction {
        partition: info.home,
        guards: Vec::new(),
        operations: vec![gone(keys::deletion(ledger)), gone(keys::ledger(ledger))],
    };
    commit_known(&*ctx.store, transaction).await?;
    ctx.metrics.ledgers_deleted.add(1, &[]);
    Ok(true)
}

fn ask_to_delete(
    ctx: &LogContext,
    bookie: BookieId,
    ledger: LedgerId,
    token: CreationToken,
) -> oneshot::Receiver<Result<(), BookieError>> {
    let (tell, answer) = oneshot::channel();
    let request = OrderedRequest {
        ledger,
        token,
        operation: OrderedOperation::Delete,
    };
    ctx.transport.submit(
        bookie,
        request,
        Box::new(move |result| drop(tell.send(result.map(drop)))),
    );
    answer
}

/// Finishes deletions that a crash interrupted: bookies, then intents and ledger records. Returns
/// how many ledgers are gone for good; what a bookie did not confirm stays for the next sweep.
///
/// # Errors
/// When intents cannot be listed.
pub async fn sweep_intents(ctx: &Arc<LogContext>) -> Result<usize, LogError> {
    let (mut page, mut deleted) = (None, 0);
    loop {
        let prefix = keys::DELETIONS_PREFIX;
        let found = ctx.store.scan(prefix, page, METADATA_PAGE_KEYS_MAX).await?;
        for item in &found.items {
            let intent: v1::DeletionIntent = record::decode(item)?;
            match delete_ledger(ctx, LedgerId(intent.ledger_id)).await {
                Ok(done) => deleted += usize::from(done),
                Err(error) => {
                    tracing::warn!(ledger = intent.ledger_id, %error, "ledger is not deleted yet");
                }
            }
        }
        page = found.next;
        if page.is_none() {
            return Ok(deleted);
        }
    }
}

/// Deletes a topic: its record and all its ledgers.
pub(crate) async fn delete_topic(cell: &TopicRecordCell) -> Result<(), LogError> {
    let ctx = cell.ctx();
    loop {
        let record = cell.record();
        let ids: BTreeSet<u64> = record
            .segments
            .iter()
            .chain(&record.cursor_segments)
            .map(|segment| segment.ledger_id)
            .collect();
        let batch: Vec<u64> = ids.iter().copied().take(INTENTS_PER_CHANGE).collect();
        let mut intents = Vec::with_capacity(batch.len());
        for id in &batch {
            // A ledger without a record is nowhere to be deleted.
            if let Some(info) = ledger_metadata::load(&*ctx.store, LedgerId(*id)).await? {
                intents.push(intent(&info));
            }
        }
        let last = batch.len() == ids.len();
        if last {
            cell.remove(intents).await?;
        } else {
            cell.update(intents, |record| {
                record.segments.retain(|s| !batch.contains(&s.ledger_id));
                let cursors = &mut record.cursor_segments;
                cursors.retain(|s| !batch.contains(&s.ledger_id));
                Ok(())
            })
            .await?;
        }
        delete_in_background(ctx, batch.into_iter().map(LedgerId).collect());
        if last {
            return Ok(());
        }
    }
}
