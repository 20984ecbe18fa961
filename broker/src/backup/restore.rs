//! Brings topics of a backup back: records of ledgers that name the objects of the backup, the
//! subscriptions, and last the record by which the topic is seen.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::backup::{self, BackedUpTopic, CopiedEntries};
use aquifer_log::error::LogError;
use aquifer_log::{LogOptions, RestoringTopic, TopicRecordCell};
use aquifer_metadata::store::Guard;
use aquifer_model::backup::{BackupTotals, RestoreOutcome, RestoreTopic, Restored};
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use bytes::Bytes;
use prost::Message;

use crate::backup::refused;
use crate::broker::Broker;
use crate::bundle::ownership::Owned;
use crate::cursor_log::{self, CursorLogState};
use crate::error::BrokerError;
use crate::namespace::check_unreserved;

/// For how long nothing of a restored topic is deleted by policy, if the request does not say.
const TRIM_AFTER_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// How long a request copies entries. The caller asks again for the rest.
const COPY_MAX: Duration = Duration::from_secs(15);

impl Broker {
    /// Brings a topic back, unless one of its name is there: to its own name, or as a copy to
    /// another one. Repeated after a failure, it goes on.
    pub(crate) async fn restore_topic_records(
        &self,
        wanted: RestoreTopic,
    ) -> Result<Restored, BrokerError> {
        let (topic, shared) = (wanted.target(), &self.shared);
        check_unreserved(topic.namespace().tenant())?;
        // Compared to the end: a deletion of the namespace does not see a topic that is not back
        // yet, and must not find it in its place later.
        let namespace = shared.namespaces.taking_topics(topic.namespace()).await?;
        // Another owner is to be asked before anything happens.
        let owned = shared.own(topic).await?;
        let source = backup::read_topic(&shared.log, &wanted).await;
        let source = source.map_err(refused)?;
        let state = cursors_of(&source)?;
        let totals = BackupTotals {
            subscriptions: state.subscriptions.len() as u64,
            ..source.totals
        };
        let guards = vec![owned.guard.clone(), namespace];
        let from = source.record.restored.as_ref();
        let from = from.map_or_else(Bytes::new, |from| from.incarnation.clone());
        let restored = match self.restore_now(&wanted, source, &owned, guards).await {
            Ok(outcome) => outcome,
            Err(BrokerError::Log(LogError::AlreadyExists)) => self.existing(&wanted, &from).await?,
            // Another request may have finished it. Whether the topic moved shows by itself.
            Err(BrokerError::Log(LogError::Fenced)) => {
                shared.namespaces.taking_topics(topic.namespace()).await?;
                let why = format!(
                    "{topic} is restored by another request, or it or its namespace has changed"
                );
                return Err(LogError::Unavailable(why).into());
            }
            Err(error) => return Err(error),
        };
        if restored == RestoreOutcome::Exists && wanted.is_renamed() {
            return Err(in_the_way(&wanted).into());
        }
        tracing::info!(%topic, backup = %wanted.backup, outcome = restored.name(), "topic of a backup looked at");
        Ok(Restored {
            outcome: restored,
            totals,
        })
    }

    async fn restore_now(
        &self,
        wanted: &RestoreTopic,
        source: BackedUpTopic,
        owned: &Owned,
        guards: Vec<Guard>,
    ) -> Result<RestoreOutcome, BrokerError> {
        let (topic, ctx) = (wanted.target(), &self.shared.log);
        let mut record = source.record;
        if let Some(restored) = &mut record.restored {
            let pause = wanted.trim_after_ms.unwrap_or(TRIM_AFTER_MS);
            restored.trim_after_ms = self.shared.clock.wall_ms().saturating_add(pause);
        }
        let begin = || {
            let (ctx, guards) = (Arc::clone(ctx), guards.clone());
            RestoringTopic::begin(ctx, topic, guards, record.clone())
        };
        let restoring = begin().await?;
        if wanted.prepare {
            return Ok(RestoreOutcome::Prepared);
        }
        let options = self.options(topic, owned).await?;
        self.check_kept(wanted, source.has_own).await?;
        let mut cursors = source.cursors;
        // A partitioned topic stores nothing itself.
        if wanted.is_renamed() && !source.ledgers.is_empty() {
            let ledgers = &source.ledgers;
            if !restoring.copy(ctx, options, ledgers, COPY_MAX).await? {
                return Ok(RestoreOutcome::Copying);
            }
            let copied = restoring.copied_entries(ledgers).await?;
            let records = cursors.iter().map(|record| relocated(record, &copied));
            cursors = records.collect::<Result<_, _>>()?;
        } else if !wanted.is_renamed() {
            backup::reserve_up_to(ctx, wanted.last_ledger).await?;
            let put = restoring.put_ledgers(&source.ledgers).await;
            put.map_err(refused)?;
            // What it kept may have been deleted if it was forgotten in between.
            self.check_kept(wanted, source.has_own).await?;
        }
        restoring.write_cursors(ctx, options, &cursors).await?;
        match restoring.finish().await {
            // It was created a moment ago: what was brought back goes again.
            Err(LogError::AlreadyExists) => begin().await.map(|_| RestoreOutcome::Exists),
            finished => finished.map(|()| RestoreOutcome::Restored),
        }
        .map_err(BrokerError::from)
    }

    async fn options(&self, topic: &TopicName, owned: &Owned) -> Result<LogOptions, BrokerError> {
        let policies = self.shared.namespaces.policies().of_topic(topic).await?;
        let policies = *policies.borrow();
        Ok(LogOptions {
            quorum: policies.persistence,
            rollover: policies.rollover,
            owner_epoch: owned.epoch,
        })
    }

    /// Objects of this cluster that no topic names any more are there only for the backup.
    async fn check_kept(&self, wanted: &RestoreTopic, has_own: bool) -> Result<(), BrokerError> {
        if !has_own || backup::is_kept(&self.shared.log, wanted.backup).await? {
            return Ok(());
        }
        Err(BrokerError::invalid(
            format!(
                "this cluster does not keep the objects of backup {} any more",
                wanted.backup
            ),
            "restore a backup that was not expired",
        ))
    }

    /// Whether the topic that has the name was brought back from the same one of the same backup.
    async fn existing(
        &self,
        wanted: &RestoreTopic,
        incarnation: &Bytes,
    ) -> Result<RestoreOutcome, BrokerError> {
        let ctx = Arc::clone(&self.shared.log);
        let cell = TopicRecordCell::load(ctx, wanted.target(), Vec::new()).await?;
        let restored = cell.and_then(|cell| cell.record().restored);
        let is_same = restored.is_some_and(|from| {
            from.backup_id == wanted.backup.0.as_slice() && from.incarnation == *incarnation
        });
        Ok(match is_same {
            true => RestoreOutcome::Done,
            false => RestoreOutcome::Exists,
        })
    }
}

/// Another topic has the name that was asked for.
fn in_the_way(wanted: &RestoreTopic) -> ApiError {
    let (topic, backup, source) = (wanted.target(), wanted.backup, &wanted.topic);
    let what = format!(
        "{topic} exists, and is no copy of {source} of backup {backup}: nothing of it was changed"
    );
    ApiError::new(ErrorKind::AlreadyExists, what)
        .advise("restore under another name, or delete the topic that has this one first")
        .outcome(Outcome::NotApplied)
}

fn damaged(what: impl Display) -> BrokerError {
    BrokerError::Log(LogError::Damaged(format!("the backup: {what}")))
}

/// A record of a snapshot as a copy has it: what producers have stored is in the ledgers of the
/// copy, and what was not copied is no more remembered than what is older.
fn relocated(record: &Bytes, copied: &CopiedEntries) -> Result<Bytes, BrokerError> {
    let mut record = v1::CursorLogRecord::decode(record.clone()).map_err(damaged)?;
    if let Some(v1::cursor_log_record::Record::Snapshot(snapshot)) = &mut record.record {
        for producer in &mut snapshot.producers {
            producer.window.retain_mut(|stored| {
                let place = copied.place(LedgerId(stored.ledger_id), EntryId(stored.entry_id));
                if let Some((ledger, entry)) = place {
                    (stored.ledger_id, stored.entry_id) = (ledger.0, entry.0);
                }
                place.is_some()
            });
        }
    }
    Ok(record.encode_to_vec().into())
}

/// What the subscriptions of a backup add up to: checked before anything of it is written.
fn cursors_of(source: &BackedUpTopic) -> Result<CursorLogState, BrokerError> {
    let records = source.cursors.iter().enumerate();
    let records = records.map(|(at, record)| (Index(at as u64), record));
    let state = cursor_log::replay(records).map_err(damaged)?;
    let end = source.totals.end;
    for (name, subscription) in &state.subscriptions {
        if subscription.cursor.mark_delete() > end {
            return Err(damaged(format!("subscription {name} is behind the end")));
        }
    }
    match state.dedup_index > end {
        true => Err(damaged("its producers are behind its end")),
        false => Ok(state),
    }
}
