//! The record of a topic that is being restored, at a key of its own: nothing sees the topic before
//! all of it is there.
//!
//! ```text
//! begin:   restores/T/N/NAME      the record, without ledgers
//! ledgers: + l/ID …               some at a time, and the record names them from then on; the
//!          − oc/A − od/A …         older ones move into pages of the topic's new incarnation
//! cursors: through the ordinary log, over this record
//! finish:  − restores/T/N/NAME + t/T/N/t/NAME
//! ```
//!
//! Each line is one transaction, or several. The record names exactly the ledgers that were written
//! for it, so that what a crash leaves is found from it, and nothing else is deleted with it. What
//! was given up is deleted by `given_up.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_ledger::context::LedgerContext;
use aquifer_ledger::deletion::{self, Intent};
use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::objects;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{Expect, Guard, Operation, Revision, Until};
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, TopicIncarnation};
use aquifer_model::topic::TopicName;
use aquifer_proto::convert::ranges::{key_hash, ranges};
use aquifer_proto::v1;

use crate::context::LogContext;
use crate::error::LogError;
use crate::pages::move_oldest;
use crate::record::{Current, RecordChange, TopicRecordCell, UNKNOWN_KEY_HASH, decode};

/// Ledgers in one transaction, which writes a page too: each takes a put, a condition, and two
/// deletes or conditions for its object.
const LEDGERS_PER_CHANGE: usize = 24;

/// A ledger that is brought back.
#[derive(Debug, Clone)]
pub struct RestoredLedger {
    /// What the topic's record says of it.
    pub segment: v1::SegmentRecord,
    /// Its record: closed, in an object, without copies.
    pub info: LedgerInfo,
    /// Whether the object is this cluster's own, and waits for its deletion.
    pub is_own: bool,
}

/// A topic that is not back yet.
pub struct RestoringTopic {
    cell: Arc<TopicRecordCell>,
}

impl TopicRecordCell {
    /// Whether this is the record of a topic that is not restored to the end.
    pub(crate) fn is_restoring(&self) -> bool {
        self.key != keys::topic(&self.topic)
    }

    /// Until when nothing of the topic is deleted by policy, in milliseconds since 1970: it was
    /// restored lately.
    #[must_use]
    pub fn kept_until_ms(&self) -> u64 {
        let current = self.current.lock();
        let restored = current.record.restored.as_ref();
        restored.map_or(0, |from| from.trim_after_ms)
    }
}

impl RestoringTopic {
    /// Begins to restore a topic with a new incarnation, or goes on where the same backup was
    /// interrupted. What another backup has left half done is deleted first.
    ///
    /// # Errors
    /// [`LogError::AlreadyExists`] when there is a topic of the name: what was left of a restore is
    /// deleted then. [`LogError::Fenced`]; when metadata cannot be changed.
    pub async fn begin(
        ctx: Arc<LogContext>,
        topic: &TopicName,
        guards: Vec<Guard>,
        wanted: v1::TopicRecord,
    ) -> Result<RestoringTopic, LogError> {
        let store = Arc::clone(&ctx.ledgers.store);
        let exists = store.get(&keys::topic(topic)).await?.is_some();
        let key = keys::restoring(topic);
        if let Some(stored) = store.get(&key).await? {
            let (current, incarnation) = decode(&stored)?;
            let is_same = is_same(&current.record, &wanted);
            let cell = cell_at(ctx.clone(), topic, guards.clone(), incarnation, current);
            if is_same && !exists && !cell.is_deleting() {
                note_asked(&cell).await?;
                return Ok(RestoringTopic { cell });
            }
            cell.delete().await?;
        }
        if exists {
            return Err(LogError::AlreadyExists);
        }
        let mut wanted = wanted;
        if let Some(restored) = &mut wanted.restored {
            restored.asked_ms = ctx.ledgers.clock.wall_ms();
        }
        let incarnation = TopicIncarnation(ctx.ledgers.rng.id16());
        let ranges = ranges(wanted.range_generation, &wanted.ranges);
        let ranges = ranges.map_err(|error| LogError::Invalid(error.to_string()))?;
        let unknown = || LogError::Invalid(UNKNOWN_KEY_HASH.to_owned());
        let key_hash = key_hash(wanted.key_hash()).ok_or_else(unknown)?;
        let current = Current {
            record: v1::TopicRecord {
                incarnation: incarnation.0.to_vec().into(),
                ..wanted
            },
            ranges,
            key_hash,
            revision: Revision(0),
        };
        let cell = cell_at(ctx, topic, guards, incarnation, current);
        let put = cell.put(&cell.record(), Expect::Absent);
        let put = store.commit_until(cell.transaction(vec![put]), Until::Known);
        let revision = put.await.map_err(|error| cell.explain(error))?;
        cell.current.lock().revision = revision;
        Ok(RestoringTopic { cell })
    }

    /// The record, for the log of its cursors.
    #[must_use]
    pub fn cell(&self) -> &Arc<TopicRecordCell> {
        &self.cell
    }

    /// Writes the ledgers of the topic, oldest first, from the first that is not there yet on.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when a ledger of an id is still being deleted, or an object that
    /// no ledger has named; [`LogError::Invalid`] when another ledger has one of the ids; when
    /// metadata cannot be changed.
    pub async fn put_ledgers(&self, ledgers: &[RestoredLedger]) -> Result<(), LogError> {
        let (_, done) = self.cell.all_segments().await?;
        let wanted = ledgers.iter().map(|ledger| &ledger.segment);
        if !done.iter().eq(wanted.take(done.len())) {
            let other = "the topic was begun to be restored from other ledgers".to_owned();
            return Err(LogError::Damaged(other));
        }
        let paging = self.cell.ctx.settings.paging;
        // A change moves one page at most.
        let at_once = LEDGERS_PER_CHANGE.min(paging.page.max(1));
        let mut last = done.last().map(|segment| segment.ledger_id);
        for some in ledgers[done.len()..].chunks(at_once) {
            let mut operations = Vec::new();
            for ledger in some {
                operations.extend(self.operations_of(ledger).await?);
            }
            let append = |record: &mut v1::TopicRecord| {
                if record.deleting || record.segments.last().map(|s| s.ledger_id) != last {
                    return Err(gone_on());
                }
                let segments = some.iter().map(|ledger| ledger.segment);
                record.segments.extend(segments);
                move_oldest(&self.cell.topic, record, paging)
            };
            match self.cell.change(operations, false, append).await {
                RecordChange::Applied(_) => {}
                RecordChange::Refused(LogError::Metadata(MetadataError::Conflict {
                    key, ..
                })) if key.starts_with(keys::LEDGERS_PREFIX) => return Err(in_use(&key)),
                RecordChange::Refused(LogError::Metadata(MetadataError::Conflict {
                    key, ..
                })) if key.starts_with(keys::DELETIONS_PREFIX) => {
                    let what = format!("{key}: a copy is being deleted: restore again in a minute");
                    return Err(LogError::Unavailable(what));
                }
                RecordChange::Refused(LogError::Metadata(MetadataError::Conflict {
                    key, ..
                })) if is_of_object(&key) => return Err(object_goes(&key)),
                RecordChange::Refused(error) | RecordChange::Unknown(error) => return Err(error),
            }
            last = some.last().map(|ledger| ledger.segment.ledger_id);
        }
        Ok(())
    }

    async fn operations_of(&self, ledger: &RestoredLedger) -> Result<Vec<Operation>, LogError> {
        let (info, store) = (&ledger.info, &*self.cell.ctx.ledgers.store);
        if let Some(intent) = deletion::load(store, info.id).await? {
            let ctx = &self.cell.ctx.ledgers;
            return Err(being_deleted(ctx, &intent).await?);
        }
        // A bookie that finds a stray copy without a record may write the intent this moment.
        let no_intent = Operation::Delete {
            key: keys::deletion(info.id),
            expect: Expect::Absent,
        };
        let mut operations = vec![info.put(Expect::Absent), no_intent];
        if let Some(offload) = info.offload.as_ref().filter(|_| ledger.is_own) {
            let attempt = offload.attempt();
            let Some(taken) = objects::taken_back(store, attempt).await? else {
                return Err(object_goes(&keys::dying_object(attempt)));
            };
            operations.extend(taken);
        }
        Ok(operations)
    }

    /// Lets the topic be seen. Close the log of its cursors before.
    ///
    /// # Errors
    /// [`LogError::AlreadyExists`] when another topic has got the name meanwhile;
    /// [`LogError::Fenced`]; when metadata cannot be changed.
    pub async fn finish(self) -> Result<(), LogError> {
        let cell = &self.cell;
        let _alone = cell.one_change.acquire().await;
        let key = keys::topic(&cell.topic);
        let (record, revision) = cell.record_at();
        if record.deleting {
            return Err(gone_on());
        }
        let operations = vec![
            Operation::Delete {
                key: cell.key.clone(),
                expect: Expect::Revision(revision),
            },
            Operation::Put {
                key: key.clone(),
                value: record::encode(record),
                expect: Expect::Absent,
            },
        ];
        let store = &cell.ctx.ledgers.store;
        let made = store
            .commit_until(cell.transaction(operations), Until::Known)
            .await;
        match made {
            Ok(_) => Ok(()),
            Err(MetadataError::Conflict { key: about, .. }) if about == key => {
                Err(LogError::AlreadyExists)
            }
            Err(error) => Err(cell.explain(error)),
        }
    }
}

pub(super) fn cell_at(
    ctx: Arc<LogContext>,
    topic: &TopicName,
    guards: Vec<Guard>,
    incarnation: TopicIncarnation,
    current: Current,
) -> Arc<TopicRecordCell> {
    let key = keys::restoring(topic);
    let cell = TopicRecordCell::new(ctx, topic, guards, incarnation, current);
    Arc::new(TopicRecordCell { key, ..cell })
}

/// Notes that a restore was not given up.
async fn note_asked(cell: &TopicRecordCell) -> Result<(), LogError> {
    let now_ms = cell.ctx.ledgers.clock.wall_ms();
    let noted = cell.update(Vec::new(), |record| {
        if record.deleting {
            return Err(gone_on());
        }
        if let Some(restored) = &mut record.restored {
            restored.asked_ms = restored.asked_ms.max(now_ms);
        }
        Ok(())
    });
    noted.await.map(drop)
}

/// The record is not as this request has left it.
fn gone_on() -> LogError {
    let what = "another request restores the topic, or it was given up: restore again";
    LogError::Unavailable(what.to_owned())
}

/// Whether a record was begun for what is wanted now.
fn is_same(found: &v1::TopicRecord, wanted: &v1::TopicRecord) -> bool {
    // Which topic of which backup: under this name it may be a copy of any.
    let of = |record: &v1::TopicRecord| {
        let from = record.restored.as_ref();
        from.map(|from| (from.backup_id.clone(), from.incarnation.clone()))
    };
    of(found) == of(wanted) && found.ranges == wanted.ranges
}

/// What a restore waits for that finds a ledger of the topic still being deleted.
async fn being_deleted(ctx: &LedgerContext, intent: &Intent) -> Result<LogError, LogError> {
    let announced: BTreeSet<BookieId> = ctx.bookies.snapshot().iter().map(|b| b.id).collect();
    let awaited = intent.awaited(&*ctx.store).await?;
    let away = |bookie: &&BookieId| !announced.contains(*bookie);
    let away: Vec<String> = awaited
        .iter()
        .filter(away)
        .map(BookieId::to_string)
        .collect();
    let ledger = intent.ledger;
    let what = match (awaited.is_empty(), away.as_slice()) {
        (_, [_, ..]) => format!(
            "ledger {ledger} is still being deleted, and that waits for bookies that are away: {}; \
             start them and restore again, or, if one is gone for good, give it up first with \
             `aquifer bookie decommission ID`",
            away.join(", ")
        ),
        (false, []) => format!(
            "ledger {ledger} is still being deleted, by bookies that are there: {}; restore again \
             in a minute",
            awaited
                .iter()
                .map(BookieId::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ),
        (true, []) => format!(
            "ledger {ledger} is still being deleted, and no bookie has to do more for it: restore \
             again in a minute"
        ),
    };
    Ok(LogError::Unavailable(what))
}

fn is_of_object(key: &str) -> bool {
    key.starts_with(keys::UPLOADS_PREFIX) || key.starts_with(keys::DYING_OBJECTS_PREFIX)
}

/// What a restore waits for that finds one of its objects on the way out.
fn object_goes(key: &str) -> LogError {
    LogError::Unavailable(format!(
        "{key}: an object of the topic is being given up or deleted: restore again in a minute"
    ))
}

/// Another ledger has the id of one that is restored.
fn in_use(key: &str) -> LogError {
    LogError::Invalid(format!(
        "{key} is another ledger of this cluster, and has the id of one of the backup: restore \
         into a cluster that has no topics of its own yet"
    ))
}
