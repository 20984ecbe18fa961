//! A producer on one topic or partition: its queue, its budget, and its identity to the broker.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_model::id::{Index, ProducerInstance, TopicIncarnation};
use aquifer_model::topic::TopicName;
use aquifer_proto::{PROTOCOL_VERSION, v1};
use aquifer_runtime::clock::{self, Instant};
use bytes::Bytes;

use crate::completion::Completion;
use crate::context::Context;
use crate::error::{ClientError, Outcome, Result};
use crate::message::Message;
use crate::producer::budget::{Budget, Cost};
use crate::producer::queue::{Accepted, Effects, Queue, Unsealed};
use crate::producer::settings::Settings;
use crate::retry::Deadline;
use crate::wake::Guarded;

/// What earlier producers of a name have stored in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBefore {
    /// The topic or partition.
    pub topic: TopicName,
    /// The highest sequence id.
    pub sequence_id: u64,
    /// The message with that id is here or shortly behind, in the same batch; `None` when the
    /// broker does not know.
    pub index: Option<Index>,
}

/// What the first opening decided, for all sessions.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    name_bytes: Bytes,
    incarnation: TopicIncarnation,
    /// What earlier producers of the name have stored.
    stored: Option<StoredBefore>,
}

/// A producer on one topic or partition.
pub(crate) struct Partition {
    pub(crate) context: Arc<Context>,
    pub(crate) topic: Arc<TopicName>,
    settings: Settings,
    /// No other lock is taken under this one.
    queue: Guarded<Queue>,
    budget: Budget,
    instance: ProducerInstance,
    /// Counts the openings of this instance.
    epoch: AtomicU64,
    identity: OnceLock<Identity>,
    /// Set when the session task has ended.
    pub(crate) ended: Completion<()>,
}

impl Partition {
    pub(crate) fn new(
        context: Arc<Context>,
        topic: Arc<TopicName>,
        settings: Settings,
    ) -> Partition {
        Partition {
            queue: Guarded::new(Queue::new(settings.batching, settings.send_timeout)),
            budget: Budget::new(
                settings.messages_in_flight_max,
                settings.bytes_in_flight_max,
                Arc::clone(&context.memory),
                context.memory_limit_bytes,
            ),
            instance: ProducerInstance(context.rng.id16()),
            epoch: AtomicU64::new(0),
            identity: OnceLock::new(),
            ended: Completion::default(),
            context,
            topic,
            settings,
        }
    }

    /// Looks at the queue.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Queue) -> T) -> T {
        self.queue.read(look)
    }

    /// Changes the queue. What that has completed gives back its budget and is told to its waiters
    /// when the lock is released.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Queue, &mut Effects<'_>) -> T) -> T {
        let mut completed = Vec::new();
        let result = self.queue.change(|queue, wakers| {
            let completed = &mut completed;
            change(queue, &mut Effects { wakers, completed })
        });
        for completed in completed {
            self.budget.release(completed.cost);
            completed.outcome.set(completed.result);
        }
        result
    }

    /// The name that the broker confirmed.
    pub(crate) fn name(&self) -> &str {
        self.identity.get().map_or("", |identity| &identity.name)
    }

    /// What earlier producers of the name have stored.
    pub(crate) fn stored_before(&self) -> Option<StoredBefore> {
        self.identity.get()?.stored.clone()
    }

    /// The request that opens the next session.
    pub(crate) fn open_request(&self) -> v1::OpenProducer {
        let identity = self.identity.get();
        let asked = self.settings.name.clone().unwrap_or_default();
        v1::OpenProducer {
            version: PROTOCOL_VERSION,
            topic: self.topic.to_string(),
            producer_name: identity.map_or(asked, |identity| identity.name.clone()),
            instance: Bytes::copy_from_slice(&self.instance.0),
            epoch: self.epoch.fetch_add(1, Ordering::Relaxed),
            // Only the application takes over; a reconnect must not fence a producer that did
            // meanwhile.
            take_over: self.settings.take_over && identity.is_none(),
            topic_incarnation: identity
                .map(|identity| Bytes::copy_from_slice(&identity.incarnation.0)),
        }
    }

    /// Takes in what the broker decided at the first opening.
    pub(crate) fn identify(&self, opened: &v1::ProducerOpened) -> Result<()> {
        let incarnation = TopicIncarnation::try_from(opened.topic_incarnation.as_ref())
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        if self.identity.get().is_some() {
            return Ok(());
        }
        let (stored, initial) = (opened.last_sequence_id, self.settings.initial_sequence_id);
        self.change(|queue, _| queue.begin(stored, initial))?;
        // A second opening cannot race with the first: one task at a time opens sessions.
        let _ = self.identity.set(Identity {
            name: opened.producer_name.clone(),
            name_bytes: Bytes::copy_from_slice(opened.producer_name.as_bytes()),
            incarnation,
            stored: opened.last_sequence_id.map(|sequence_id| StoredBefore {
                topic: (*self.topic).clone(),
                sequence_id,
                index: opened.last_index.map(Index),
            }),
        });
        Ok(())
    }

    /// Accepts a message; waits only for budget.
    pub(crate) async fn enqueue(&self, message: &Message) -> Result<Accepted> {
        if let Some(id) = message.sequence_id.filter(|_| self.settings.skip_stored)
            && let Some(skipped) = self.change(|queue, _| queue.skip(id))?
        {
            return Ok(skipped);
        }
        let cost = self.budget.cost(message.size_bytes());
        if !self.budget.try_take(cost) {
            // What fills the budget may be a batch that waits for company.
            self.change(|queue, effects| queue.flush(effects.wakers));
            self.budget.take(cost).await;
        }
        self.append(message, cost)
    }

    fn append(&self, message: &Message, cost: Cost) -> Result<Accepted> {
        let accepted =
            self.change(|queue, effects| queue.append(message, cost, Instant::now, effects.wakers));
        if accepted.is_err() {
            self.budget.release(cost);
        }
        accepted
    }

    /// Brings a batch into its final bytes, without holding the lock.
    pub(crate) fn seal(&self, session: u64, mut batch: Unsealed) {
        let now_ms = self.context.clock.wall_ms();
        let bytes = match self.identity.get() {
            Some(identity) => batch.encode(
                &identity.name_bytes,
                self.instance,
                now_ms,
                self.settings.compression,
            ),
            None => Err(ClientError::closed("producer")),
        };
        self.change(|queue, effects| queue.sealed(session, &batch, bytes, effects));
    }

    /// Fails everything unfinished and ends the session.
    pub(crate) fn fail(&self, error: &ClientError, dead: bool) {
        self.change(|queue, effects| queue.fail(error, dead, effects));
    }

    /// Fails everything unfinished when the oldest batch has waited too long.
    pub(crate) fn expire(&self) -> bool {
        let due = self.read(Queue::expires_at);
        let (Some(limit), Some(due)) = (self.settings.send_timeout, due) else {
            return false;
        };
        if due > Instant::now() {
            return false;
        }
        let last = self.read(|queue| queue.last_error().cloned());
        let error = Deadline::after(limit).error("sending", Outcome::Unknown);
        let error = error.because_of(last);
        self.fail(&error, false);
        true
    }

    /// When to look for expired batches again.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let limit = self.settings.send_timeout?;
        // What is accepted from now on expires after the limit at the earliest.
        let next = self.read(Queue::expires_at);
        next.or_else(|| Instant::now().checked_add(limit))
    }

    /// Sends what has gathered and waits until everything accepted so far is completed.
    pub(crate) async fn flush(&self) -> Result<()> {
        let newest = self.change(|queue, effects| queue.flush(effects.wakers));
        match newest {
            Some(outcome) => outcome.wait().await.clone().map(|_| ()),
            None => Ok(()),
        }
    }

    /// Flushes within the operation timeout, and fails what is not stored by then.
    async fn flush_in_time(&self) -> Result<()> {
        let deadline = Deadline::after(self.context.operation_timeout);
        if let Ok(flushed) = clock::timeout_at(deadline.at(), self.flush()).await {
            return flushed;
        }
        let last = self.read(|queue| queue.last_error().cloned());
        let error = deadline.error("closing the producer", Outcome::Unknown);
        let error = error.because_of(last);
        self.fail(&error, true);
        Err(error)
    }

    /// Accepts nothing more, sends what is there, and ends the session. Where messages have no send
    /// timeout, those that are not stored within the operation timeout fail.
    pub(crate) async fn close(&self) -> Result<()> {
        let flushed = match self.settings.send_timeout {
            Some(_) => self.flush().await,
            None => self.flush_in_time().await,
        };
        self.change(|queue, effects| queue.close(effects.wakers));
        let deadline = Deadline::after(self.context.operation_timeout);
        let ended = async {
            self.ended.wait().await;
            Ok(())
        };
        let closed = deadline.limit("closing the producer", ended).await;
        let last = || self.read(|queue| queue.last_error().cloned());
        let closed = closed.map_err(|error| error.because_of(last()));
        flushed.and(closed)
    }
}
