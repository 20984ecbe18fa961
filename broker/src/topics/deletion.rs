//! Deletion of topics, on request to any broker.
//!
//! A partitioned topic is marked first. From then on it is gone for users: it is neither described
//! nor listed, and none of its partitions is created or loaded any more, wherever (creating one
//! compares the topic's record). Then its partitions are deleted, each by its owner, then the
//! record. A deletion belongs to no request: it continues when the request ends, and repeated
//! requests wait for it. When its broker ends, the next broker that finds the mark finishes it, the
//! sweep at the latest.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::TopicRecordCell;
use aquifer_log::error::LogError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Guard};
use aquifer_model::listener::Listeners;
use aquifer_model::ranges::TopicRanges;
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::admin::Deletion;
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use aquifer_runtime::clock;
use futures::StreamExt;
use tokio::sync::oneshot;

use crate::error::BrokerError;
use crate::peers::peer_url;
use crate::topic::event::Event;
use crate::topics::running::{Answer, Running};
use crate::topics::{Slot, Topics};

/// Partitions that are deleted, or asked for something, at once.
pub(crate) const PARTS_AT_ONCE: usize = 32;
/// How often a change of a partition is tried.
pub(crate) const ATTEMPTS_MAX: u32 = 8;
/// First and longest pause before it is tried again.
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(50);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(2);
/// Deletions begun by others that this broker finishes at a time.
const RESUMED_MAX: usize = 64;

/// The deletions that run.
pub(super) type Deletions = Running<(TopicName, How), ()>;

/// What kind of deletion runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum How {
    IfUnused,
    Force,
    /// Wherever the topic is served.
    Resume,
}

impl Topics {
    /// Deletes a topic, partitioned or not, that this broker owns.
    ///
    /// # Errors
    /// `NotFound`, `InUse`, `Elsewhere`; what metadata and other brokers say. What was begun by
    /// then goes on with the next call.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        topic: &TopicName,
        force: bool,
    ) -> Result<(), BrokerError> {
        let how = if force { How::Force } else { How::IfUnused };
        self.begin_deletion(topic, how).wait().await
    }

    /// Finishes a deletion that was begun.
    pub(crate) fn resume_deletion(self: &Arc<Self>, topic: &TopicName) {
        let resumed = self.deletions.count(|(_, how)| *how == How::Resume);
        if resumed < RESUMED_MAX {
            drop(self.begin_deletion(topic, How::Resume));
        }
    }

    fn begin_deletion(self: &Arc<Self>, topic: &TopicName, how: How) -> Answer<()> {
        let (topics, topic) = (Arc::clone(self), topic.clone());
        let key = (topic.clone(), how);
        let deletion = async move {
            let outcome = match how {
                How::IfUnused => topics.delete_now(&topic, false).await,
                How::Force => topics.delete_now(&topic, true).await,
                How::Resume => topics.delete_wherever(&topic).await,
            };
            outcome.inspect_err(|error| tracing::debug!(%topic, %error, "topic is not deleted"))
        };
        let tasks = &self.shared.tasks;
        self.deletions.begin(tasks, "topic-delete", key, deletion)
    }

    pub(super) async fn delete_wherever(
        self: &Arc<Self>,
        topic: &TopicName,
    ) -> Result<(), BrokerError> {
        match self.delete_now(topic, true).await {
            Err(BrokerError::Elsewhere { at, .. }) => {
                self.ask_peer(&at, topic, Deletion::Force).await
            }
            done => done,
        }
    }

    async fn ask_peer(
        &self,
        at: &Listeners,
        topic: &TopicName,
        how: Deletion,
    ) -> Result<(), BrokerError> {
        let peers = self.shared.peers()?;
        match peers.delete_topic(peer_url(at), topic, how).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            done => Ok(done?),
        }
    }

    async fn delete_now(
        self: &Arc<Self>,
        topic: &TopicName,
        force: bool,
    ) -> Result<(), BrokerError> {
        // Another owner is to be asked before anything happens.
        let owned = self.shared.own(topic).await?;
        let guards = vec![owned.guard.clone()];
        let ctx = Arc::clone(&self.shared.log);
        let Some(cell) = TopicRecordCell::load(ctx, topic, guards).await? else {
            return Err(BrokerError::no_topic(topic));
        };
        let ranges = cell.ranges();
        if ranges.is_empty() {
            self.delete_one(topic, force, None).await?;
            tracing::info!(%topic, "topic deleted");
            return Ok(());
        }
        if !cell.is_deleting() {
            if !force {
                self.check_parts(topic, &ranges).await?;
            }
            if let Err(error) = cell.mark_deleting().await {
                if error == LogError::Fenced {
                    self.shared.ownership.lost(&owned);
                }
                return Err(error.into());
            }
        }
        let each = self.each_part(topic, &ranges, |topics, part| async move {
            topics.delete_part(&part).await
        });
        each.await
            .map_err(|(part, error)| unfinished(&part, error))?;
        let _away = self.begin_delete(topic, true).await?;
        if let Err(error) = cell.delete().await {
            // Another request may have deleted it first; one that was created since stays.
            let ctx = Arc::clone(&self.shared.log);
            let now = TopicRecordCell::load(ctx, topic, Vec::new()).await?;
            if now.is_some_and(|now| now.incarnation() == cell.incarnation()) {
                return Err(error.into());
            }
        }
        tracing::info!(%topic, partitions = ranges.partitions(), "topic deleted");
        Ok(())
    }

    /// Does something with every partition, a bounded number at once; answers the first failure
    /// after all are done.
    async fn each_part<F, Fut>(
        self: &Arc<Self>,
        topic: &TopicName,
        ranges: &TopicRanges,
        work: F,
    ) -> Result<(), (TopicName, BrokerError)>
    where
        F: Fn(Arc<Topics>, TopicName) -> Fut,
        Fut: Future<Output = Result<(), BrokerError>>,
    {
        let done = futures::stream::iter(parts_of(topic, ranges)).map(|part| {
            let done = work(Arc::clone(self), part.clone());
            async move { done.await.map_err(|error| (part, error)) }
        });
        let mut done = done.buffer_unordered(PARTS_AT_ONCE);
        let mut failed = Ok(());
        while let Some(outcome) = done.next().await {
            failed = failed.and(outcome);
        }
        failed
    }

    /// Deletes a partition wherever it is served.
    pub(super) async fn delete_part(self: &Arc<Self>, part: &TopicName) -> Result<(), BrokerError> {
        let mut pause = RETRY_MIN;
        for attempt in 1.. {
            let outcome = match self.delete_partition(part).await {
                Err(BrokerError::Elsewhere { at, .. }) => {
                    self.ask_peer(&at, part, Deletion::Force).await
                }
                outcome => outcome,
            };
            match outcome {
                Err(error) if attempt < ATTEMPTS_MAX && error.is_retryable() => {
                    tracing::debug!(topic = %part, %error, "partition is not deleted, trying again");
                }
                outcome => return outcome,
            }
            clock::sleep(self.shared.rng.jitter(pause)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        Ok(())
    }

    /// Deletes a partition of a topic that is being deleted, or is gone, and none of a topic that
    /// was created again meanwhile.
    pub(crate) async fn delete_partition(
        self: &Arc<Self>,
        part: &TopicName,
    ) -> Result<(), BrokerError> {
        let unchanged = self.check_deletable(part).await?;
        self.delete_one(part, true, Some(unchanged)).await
    }

    /// Refuses the deletion of a partition of a topic that is there. Answers what holds as long as
    /// that is so.
    pub(crate) async fn check_deletable(&self, part: &TopicName) -> Result<Guard, BrokerError> {
        let (base, ctx) = (part.base(), Arc::clone(&self.shared.log));
        let found = TopicRecordCell::load(ctx, &base, Vec::new()).await?;
        let is_kept = |cell: &Arc<TopicRecordCell>| {
            let (ranges, number) = (cell.ranges(), part.partition());
            !cell.is_deleting() && number.is_some_and(|number| ranges.contains(number))
        };
        if found.as_ref().is_some_and(is_kept) {
            return Err(BrokerError::invalid(
                format!("{part} is a partition of {base}, which would lose its messages"),
                format!("delete {base} with all its partitions, or let retention trim them"),
            ));
        }
        let absent = Guard {
            key: keys::topic(&base),
            expect: Expect::Absent,
        };
        Ok(found.map_or(absent, |cell| cell.unchanged()))
    }

    /// Deletes a topic that stores something itself, while something holds.
    async fn delete_one(
        self: &Arc<Self>,
        topic: &TopicName,
        force: bool,
        holds: Option<Guard>,
    ) -> Result<(), BrokerError> {
        let ctx = || Arc::clone(&self.shared.log);
        // A partition that was never used needs no owner.
        if TopicRecordCell::load(ctx(), topic, Vec::new())
            .await?
            .is_none()
        {
            return Ok(());
        }
        let owned = self.shared.own(topic).await?;
        let _away = self.begin_delete(topic, force).await?;
        let guards = [owned.guard.clone()].into_iter().chain(holds).collect();
        let Some(cell) = TopicRecordCell::load(ctx(), topic, guards).await? else {
            return Ok(());
        };
        let deleted = cell.delete().await;
        if deleted == Err(LogError::Fenced) {
            self.shared.ownership.lost(&owned);
        }
        Ok(deleted?)
    }

    /// Whether no client is connected to any part of a topic.
    ///
    /// # Errors
    /// `InUse`, or what keeps this from being known.
    pub(crate) async fn check_unused(
        self: &Arc<Self>,
        topic: &TopicName,
    ) -> Result<(), BrokerError> {
        let ctx = Arc::clone(&self.shared.log);
        let cell = TopicRecordCell::load(ctx, topic, Vec::new()).await?;
        match cell.map(|cell| cell.ranges()) {
            Some(ranges) if ranges.is_empty() => self.check_one(topic).await,
            Some(ranges) => self.check_parts(topic, &ranges).await,
            None if topic.partition().is_some() => Ok(()),
            None => Err(BrokerError::no_topic(topic)),
        }
    }

    async fn check_parts(
        self: &Arc<Self>,
        topic: &TopicName,
        ranges: &TopicRanges,
    ) -> Result<(), BrokerError> {
        let each = self.each_part(topic, ranges, |topics, part| async move {
            match topics.check_one(&part).await {
                Err(BrokerError::Elsewhere { at, .. }) => {
                    topics.ask_peer(&at, &part, Deletion::Check).await
                }
                known => known,
            }
        });
        each.await.map_err(|(_, error)| error)
    }

    async fn check_one(self: &Arc<Self>, topic: &TopicName) -> Result<(), BrokerError> {
        let ctx = Arc::clone(&self.shared.log);
        let found = TopicRecordCell::load(ctx, topic, Vec::new()).await?;
        if found.is_none() {
            return Ok(());
        }
        self.shared.own(topic).await?;
        // One that is not loaded has no clients.
        let loaded = match self.map.lock().get(topic) {
            Some(Slot::Loaded(handle)) => handle.clone(),
            _ => return Ok(()),
        };
        let (reply, answer) = oneshot::channel();
        loaded.mailbox.send(Event::Stats(reply)).await?;
        let Ok(Ok(stats)) = answer.await else {
            return Ok(()); // it has ended
        };
        let has_consumers = stats.subscriptions.iter().any(|s| !s.consumers.is_empty());
        match has_consumers || !stats.producers.is_empty() {
            true => Err(BrokerError::InUse(topic.base().to_string())),
            false => Ok(()),
        }
    }
}

/// The partitions of a topic, in order of their numbers.
pub(crate) fn parts_of(
    topic: &TopicName,
    ranges: &TopicRanges,
) -> impl Iterator<Item = TopicName> + use<> {
    let (topic, ranges) = (topic.clone(), ranges.clone());
    (0..ranges.all().len()).filter_map(move |at| {
        // A name that is too long with its suffix is invalid: such a partition never was.
        topic.checked_partition_name(ranges.all()[at].number).ok()
    })
}

/// The last word about a deletion that could not be finished: never another broker to ask.
fn unfinished(part: &TopicName, error: BrokerError) -> BrokerError {
    let error = ApiError::from(error);
    let kind = match error.kind {
        ErrorKind::Redirect => ErrorKind::Unavailable,
        kind => kind,
    };
    let text = format!(
        "{} is being deleted, {part} is there still: {error}",
        part.base()
    );
    let advice = "delete it again: that goes on where this ended";
    ApiError::new(kind, text)
        .advise(advice)
        .outcome(Outcome::Unknown)
        .into()
}
