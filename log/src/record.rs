//! The topic's metadata record: what this process knows of it, and changes by compare-and-swap.
//!
//! Every change compares the record's revision, the caller's guards and, where a ledger changes
//! with it, that ledger's revision, in one transaction (I6). A guard that does not hold means that
//! another owner has taken over; a record that another process changed under the same guards is
//! read again and the change is decided again.

pub(crate) mod given_up;
pub(crate) mod restoring;

use std::sync::Arc;

use aquifer_ledger::guards::Guards;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{
    Expect, FreeSpace, Guard, Operation, Revision, Transaction, Until, Versioned,
};
use aquifer_metadata::{keys, record};
use aquifer_model::hash::KeyHash;
use aquifer_model::id::TopicIncarnation;
use aquifer_model::ranges::TopicRanges;
use aquifer_model::topic::TopicName;
use aquifer_proto::convert::ranges::{key_hash, ranges, wire_key_hash, wire_ranges};
use aquifer_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::context::LogContext;
use crate::deletion;
use crate::error::LogError;

/// Attempts when the record keeps changing under the same guards.
const CONFLICTS_MAX: usize = 32;
/// Why a topic with another key hash is not served: its keys would go to other partitions.
const UNKNOWN_KEY_HASH: &str = "its keys are hashed in a way that this version does not know";

/// A topic's metadata record with its revision, changed only by compare-and-swap under guards
/// (I6). Both logs of a topic share it.
pub struct TopicRecordCell {
    ctx: Arc<LogContext>,
    topic: TopicName,
    key: String,
    partition: String,
    guards: Guards,
    incarnation: TopicIncarnation,
    current: Mutex<Current>,
    /// Goes into the record with the next change.
    at_rest: Mutex<Option<v1::AtRest>>,
    /// One change at a time, so that this process never conflicts with itself.
    pub(super) one_change: Semaphore,
}

/// What became of a change of the record.
#[derive(Debug)]
pub(crate) enum RecordChange {
    /// It was made.
    Applied(Revision),
    /// It was not made, and never will be.
    Refused(LogError),
    /// It may have been made: the store can never tell.
    Unknown(LogError),
}

/// The record as this process knows it.
struct Current {
    record: v1::TopicRecord,
    /// Of `record`: no update changes them.
    ranges: TopicRanges,
    key_hash: KeyHash,
    revision: Revision,
}

impl TopicRecordCell {
    /// Loads the record of an existing topic. Every later change compares `guards` too.
    ///
    /// # Errors
    /// When metadata cannot be read or is damaged.
    pub async fn load(
        ctx: Arc<LogContext>,
        topic: &TopicName,
        guards: Vec<Guard>,
    ) -> Result<Option<Arc<TopicRecordCell>>, LogError> {
        let Some(stored) = ctx.ledgers.store.get(&keys::topic(topic)).await? else {
            return Ok(None);
        };
        let (current, incarnation) = decode(&stored)?;
        let cell = TopicRecordCell::new(ctx, topic, guards, incarnation, current);
        Ok(Some(Arc::new(cell)))
    }

    /// Creates a topic with a new incarnation.
    ///
    /// # Errors
    /// [`LogError::AlreadyExists`]; [`LogError::Fenced`] when a guard does not hold.
    pub async fn create(
        ctx: Arc<LogContext>,
        topic: &TopicName,
        guards: Vec<Guard>,
    ) -> Result<Arc<TopicRecordCell>, LogError> {
        let none = TopicRanges::default();
        TopicRecordCell::create_while(ctx, topic, none, guards, None).await
    }

    /// Creates the record of a topic with these ranges: a partitioned topic, which stores nothing
    /// itself, unless the list of ranges is empty.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn create_partitioned(
        ctx: Arc<LogContext>,
        topic: &TopicName,
        ranges: TopicRanges,
        guards: Vec<Guard>,
    ) -> Result<Arc<TopicRecordCell>, LogError> {
        TopicRecordCell::create_while(ctx, topic, ranges, guards, None).await
    }

    /// The same while something holds, which no later change compares.
    ///
    /// # Errors
    /// As [`create`](Self::create); a `Conflict` when it does not hold.
    pub async fn create_while_holds(
        ctx: Arc<LogContext>,
        topic: &TopicName,
        ranges: TopicRanges,
        guards: Vec<Guard>,
        holds: Guard,
    ) -> Result<Arc<TopicRecordCell>, LogError> {
        TopicRecordCell::create_while(ctx, topic, ranges, guards, Some(holds)).await
    }

    /// Creates a partition, if its topic is still as it was when it allowed that.
    ///
    /// # Errors
    /// As for any topic; a `Conflict` when the topic has changed.
    pub async fn create_partition(
        ctx: Arc<LogContext>,
        topic: &TopicName,
        guards: Vec<Guard>,
        of: &TopicRecordCell,
    ) -> Result<Arc<TopicRecordCell>, LogError> {
        let none = TopicRanges::default();
        TopicRecordCell::create_while(ctx, topic, none, guards, Some(of.unchanged())).await
    }

    async fn create_while(
        ctx: Arc<LogContext>,
        topic: &TopicName,
        ranges: TopicRanges,
        guards: Vec<Guard>,
        holds: Option<Guard>,
    ) -> Result<Arc<TopicRecordCell>, LogError> {
        if let Some(FreeSpace::Low(why) | FreeSpace::Full(why)) =
            ctx.ledgers.store.usage().map(|u| u.free_space())
        {
            return Err(MetadataError::Full(why).into());
        }
        let incarnation = TopicIncarnation(ctx.ledgers.rng.id16());
        let hash = KeyHash::default();
        let record = v1::TopicRecord {
            incarnation: incarnation.0.to_vec().into(),
            ranges: wire_ranges(&ranges),
            range_generation: ranges.generation(),
            key_hash: wire_key_hash(hash).into(),
            ..v1::TopicRecord::default()
        };
        let current = Current {
            record,
            ranges,
            key_hash: hash,
            revision: Revision(0),
        };
        let mut cell = TopicRecordCell::new(ctx, topic, guards, incarnation, current);
        let put = cell.put(&cell.record(), Expect::Absent);
        let mut transaction = cell.transaction(vec![put]);
        transaction.guards.extend(holds);
        let store = &cell.ctx.ledgers.store;
        match store.commit_until(transaction, Until::Known).await {
            Ok(revision) => {
                cell.current.get_mut().revision = revision;
                Ok(Arc::new(cell))
            }
            Err(MetadataError::Conflict { key, .. }) if key == cell.key => {
                Err(LogError::AlreadyExists)
            }
            Err(error) => Err(cell.explain(error)),
        }
    }

    fn new(
        ctx: Arc<LogContext>,
        topic: &TopicName,
        guards: Vec<Guard>,
        incarnation: TopicIncarnation,
        current: Current,
    ) -> TopicRecordCell {
        TopicRecordCell {
            ctx,
            topic: topic.clone(),
            key: keys::topic(topic),
            partition: keys::partition_of_topic(topic),
            guards: Guards::new(guards),
            incarnation,
            current: Mutex::new(current),
            at_rest: Mutex::default(),
            one_change: Semaphore::new(1),
        }
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The record as this process knows it.
    #[must_use]
    pub fn record(&self) -> v1::TopicRecord {
        self.current.lock().record.clone()
    }

    /// The same with its revision.
    pub(crate) fn record_at(&self) -> (v1::TopicRecord, Revision) {
        let current = self.current.lock();
        (current.record.clone(), current.revision)
    }

    /// The ranges of a partitioned topic; none for one that stores something itself.
    #[must_use]
    pub fn ranges(&self) -> TopicRanges {
        self.current.lock().ranges.clone()
    }

    /// How its keys are hashed.
    #[must_use]
    pub fn key_hash(&self) -> KeyHash {
        self.current.lock().key_hash
    }

    /// How far its segments are offloaded.
    pub(crate) fn offload_mark(&self) -> v1::OffloadMark {
        self.current.lock().record.offloaded.unwrap_or_default()
    }

    /// Has every later change write this too: nothing is written for it alone.
    pub fn note_at_rest(&self, at_rest: v1::AtRest) {
        *self.at_rest.lock() = Some(at_rest);
    }

    /// Writes what was noted so, if there is something, where no change was left to take it along.
    ///
    /// # Errors
    /// When metadata cannot be changed.
    pub async fn write_at_rest(&self) -> Result<(), LogError> {
        let is_noted = self.at_rest.lock().is_some();
        match is_noted {
            true => self.update(Vec::new(), |_| Ok(())).await.map(drop),
            false => Ok(()),
        }
    }

    /// Whether the topic is being deleted.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.current.lock().record.deleting
    }

    /// How many bytes the record has, and how many ledgers it lists.
    pub(crate) fn size(&self) -> (usize, usize) {
        let record = self.record();
        let ledgers = record.segments.len() + record.cursor_segments.len();
        (record::encode(record).len(), ledgers)
    }

    /// The revision of that.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.current.lock().revision
    }

    /// Which life of the topic's name this is.
    #[must_use]
    pub fn incarnation(&self) -> TopicIncarnation {
        self.incarnation
    }

    /// Holds as long as the record is as this process knows it.
    #[must_use]
    pub fn unchanged(&self) -> Guard {
        Guard {
            key: self.key.clone(),
            expect: Expect::Revision(self.revision()),
        }
    }

    /// Notes that the topic is being deleted: from now on it is not used any more, and a
    /// partitioned one has no partitions but those that are there, which are deleted next.
    ///
    /// # Errors
    /// When metadata cannot be changed.
    pub async fn mark_deleting(&self) -> Result<(), LogError> {
        let mark = |record: &mut v1::TopicRecord| {
            record.deleting = true;
            Ok(())
        };
        self.update(Vec::new(), mark).await.map(drop)
    }

    /// Whether the topic takes no more messages.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.current.lock().record.terminated
    }

    /// Notes that the topic takes no more messages, for good. The caller sees to it that it takes
    /// none.
    ///
    /// # Errors
    /// When metadata cannot be changed.
    pub async fn mark_terminated(&self) -> Result<(), LogError> {
        let mark = |record: &mut v1::TopicRecord| {
            record.terminated = true;
            Ok(())
        };
        self.update(Vec::new(), mark).await.map(drop)
    }

    /// Deletes the topic with its ledgers. Close its logs before. Once this has returned, what a
    /// crash leaves behind is finished by [`aquifer_ledger::deletion::sweep_intents`].
    ///
    /// # Errors
    /// When metadata cannot be changed.
    pub async fn delete(&self) -> Result<(), LogError> {
        deletion::delete_topic(self).await
    }

    pub(crate) fn ctx(&self) -> &Arc<LogContext> {
        &self.ctx
    }

    pub(crate) fn guards(&self) -> Vec<Guard> {
        self.guards.now()
    }

    /// The same, as they will be whenever they are asked for.
    pub(crate) fn shared_guards(&self) -> Guards {
        self.guards.clone()
    }

    /// Every later change compares these instead: the owner's right to change the topic is the
    /// same, but what shows it in metadata was written again.
    pub fn set_guards(&self, guards: Vec<Guard>) {
        self.guards.set(guards);
    }

    /// Another owner is to take the topic over. Later changes compare these, and are those that it
    /// waits for: what is open is sealed, what is old is trimmed. No ledger is opened any more, so
    /// that an owner that finds all of them closed knows that nothing is acknowledged here any more
    /// (H21).
    pub fn hand_over(&self, guards: Vec<Guard>) {
        self.guards.hand_over(guards);
    }

    /// Whether that has happened.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.guards.right().sealing_only
    }

    /// Whether no ledger of the topic is open, as metadata says now: no owner has to be fenced.
    ///
    /// # Errors
    /// When metadata cannot be read.
    pub async fn is_sealed(&self) -> Result<bool, LogError> {
        self.reload().await?;
        let record = &self.current.lock().record;
        let mut last = [record.segments.last(), record.cursor_segments.last()].into_iter();
        Ok(last.all(|segment| segment.is_none_or(|segment| segment.sealed)))
    }

    pub(crate) fn partition(&self) -> &str {
        &self.partition
    }

    fn put(&self, record: &v1::TopicRecord, expect: Expect) -> Operation {
        Operation::Put {
            key: self.key.clone(),
            value: record::encode(record.clone()),
            expect,
        }
    }

    fn transaction(&self, operations: Vec<Operation>) -> Transaction {
        self.guarded(self.guards(), operations)
    }

    fn guarded(&self, guards: Vec<Guard>, operations: Vec<Operation>) -> Transaction {
        Transaction {
            partition: self.partition.clone(),
            guards,
            operations,
        }
    }

    /// What a failed change means to the owner.
    fn explain(&self, error: MetadataError) -> LogError {
        match &error {
            MetadataError::Conflict { key, .. } if self.guards().iter().any(|g| g.key == *key) => {
                LogError::Fenced
            }
            _ => LogError::Metadata(error),
        }
    }

    /// [`change`](Self::change) for a change that opens no ledger, and for a caller to which an
    /// unknown outcome is a failure like any other.
    ///
    /// # Errors
    /// [`LogError::Fenced`] when a guard does not hold or the topic is gone; a `Conflict` that
    /// names one of the keys in `operations`; what `change` says.
    pub(crate) async fn update<F>(
        &self,
        operations: Vec<Operation>,
        change: F,
    ) -> Result<Revision, LogError>
    where
        F: Fn(&mut v1::TopicRecord) -> Result<(), LogError>,
    {
        let change = |record: &mut v1::TopicRecord| change(record).map(|()| None);
        match self.change(operations, false, change).await {
            RecordChange::Applied(revision) => Ok(revision),
            RecordChange::Refused(error) | RecordChange::Unknown(error) => Err(error),
        }
    }

    /// Changes the record together with `operations` and what `change` adds to them. `change` is
    /// called again on a record that another process has changed, and refuses if it no longer fits.
    /// A change that `opens` a ledger is refused with [`LogError::HandedOver`] when the topic is
    /// handed over.
    ///
    /// This is not `store.update`: the record is in memory, so that a rollover does not read it
    /// first, and the outcome must be known however long the store is away ([`Until::Known`]).
    pub(crate) async fn change<F>(
        &self,
        operations: Vec<Operation>,
        opens: bool,
        change: F,
    ) -> RecordChange
    where
        F: Fn(&mut v1::TopicRecord) -> Result<Option<Operation>, LogError>,
    {
        let _alone = self.one_change.acquire().await;
        let mut attempt = 1;
        loop {
            let (mut record, revision) = self.record_at();
            let right = self.guards.right();
            if opens && right.sealing_only {
                return RecordChange::Refused(LogError::HandedOver);
            }
            let added = match change(&mut record) {
                Ok(added) => added,
                Err(error) => return RecordChange::Refused(error),
            };
            if let Some(at_rest) = self.at_rest.lock().clone() {
                record.at_rest = Some(at_rest);
            }
            let mut all = vec![self.put(&record, Expect::Revision(revision))];
            all.extend(operations.iter().cloned().chain(added));
            let transaction = self.guarded(right.guards, all);
            let store = &self.ctx.ledgers.store;
            let error = match store.commit_until(transaction, Until::Known).await {
                Ok(revision) => {
                    let mut current = self.current.lock();
                    current.record = record;
                    current.revision = revision;
                    return RecordChange::Applied(revision);
                }
                Err(error @ MetadataError::UnknownOutcome(_)) => {
                    return RecordChange::Unknown(error.into());
                }
                Err(error @ MetadataError::Conflict { .. }) => error,
                Err(error) => return RecordChange::Refused(error.into()),
            };
            // The store names the first key only; look at the record in any case.
            match self.reload().await {
                Ok(true) if attempt < CONFLICTS_MAX => attempt += 1,
                Ok(true) => return RecordChange::Refused(error.into()),
                Ok(false) => return RecordChange::Refused(self.explain(error)),
                Err(error) => return RecordChange::Refused(error),
            }
        }
    }

    /// Deletes the record together with `operations`.
    pub(crate) async fn delete_with(&self, operations: Vec<Operation>) -> Result<(), LogError> {
        let _alone = self.one_change.acquire().await;
        let mut all = vec![Operation::Delete {
            key: self.key.clone(),
            expect: Expect::Revision(self.revision()),
        }];
        all.extend(operations);
        let store = &self.ctx.ledgers.store;
        let result = store
            .commit_until(self.transaction(all), Until::Known)
            .await;
        result.map(drop).map_err(|error| self.explain(error))
    }

    /// Reads the record again; says whether another process had changed it.
    ///
    /// # Errors
    /// [`LogError::Fenced`] when the topic is gone; when metadata cannot be read.
    pub async fn refresh(&self) -> Result<bool, LogError> {
        let _alone = self.one_change.acquire().await;
        self.reload().await
    }

    /// Reads the record again; returns whether it had changed.
    async fn reload(&self) -> Result<bool, LogError> {
        let stored = self.ctx.ledgers.store.get(&self.key).await?;
        let stored = stored.ok_or(LogError::Fenced)?;
        let (new, incarnation) = decode(&stored)?;
        if incarnation != self.incarnation {
            return Err(LogError::Fenced);
        }
        let mut current = self.current.lock();
        let changed = current.revision != new.revision;
        *current = new;
        Ok(changed)
    }

    /// Whether the guards still hold and the topic still lives: a log that is fenced asks this
    /// (H10).
    pub(crate) async fn check_owner(&self) -> Result<(), LogError> {
        for guard in self.guards() {
            let found = self.ctx.ledgers.store.get(&guard.key).await?;
            let holds = match guard.expect {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::Revision(revision) => found.is_some_and(|f| f.revision == revision),
            };
            if !holds {
                return Err(LogError::Fenced);
            }
        }
        self.reload().await.map(drop)
    }
}

/// Keeps the highest id of ledgers that the record does not list any more.
pub(crate) fn note_removed(
    record: &mut v1::TopicRecord,
    removed: impl IntoIterator<Item = v1::SegmentRecord>,
) {
    for segment in removed {
        record.last_ledger_id = record.last_ledger_id.max(segment.ledger_id);
    }
}

fn decode(stored: &Versioned) -> Result<(Current, TopicIncarnation), LogError> {
    let damaged = |reason: String| MetadataError::Damaged {
        key: stored.key.clone(),
        reason,
    };
    let record: v1::TopicRecord = record::decode(stored)?;
    let incarnation = TopicIncarnation::try_from(record.incarnation.as_ref())
        .map_err(|_| damaged("its incarnation is malformed".to_owned()))?;
    let ranges = ranges(record.range_generation, &record.ranges)
        .map_err(|error| damaged(error.to_string()))?;
    let key_hash =
        key_hash(record.key_hash()).ok_or_else(|| damaged(UNKNOWN_KEY_HASH.to_owned()))?;
    let current = Current {
        record,
        ranges,
        key_hash,
        revision: stored.revision,
    };
    Ok((current, incarnation))
}
