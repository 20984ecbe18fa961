//! What the partitions of one consumer or reader share: the inboxes, their round-robin order, and
//! the calls that wait for a message.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::{ConsumerInstance, Index};
use aquifer_model::place::Place;
use aquifer_model::topic::TopicName;
use aquifer_proto::{PROTOCOL_VERSION, v1};
use aquifer_runtime::clock::Instant;
use tokio::sync::Notify;

use crate::completion::Completion;
use crate::consumer::acks::{AckOutcome, Acknowledged, resolved};
use crate::consumer::credit::Amount;
use crate::consumer::inbox::{Inbox, foreign};
use crate::consumer::settings::{Purpose, Settings};
use crate::context::Context;
use crate::error::{ClientError, Outcome, Result};
use crate::message::{Origin, ReceivedMessage};
use crate::retry::{Backoff, Deadline};
use crate::topic::locate;
use crate::wake::{Guarded, Wakers};

/// A partition's share of the queue is at least this.
const SHARE_MIN: Amount = Amount {
    messages: 16,
    bytes: 64 * 1024,
};

/// See the module.
pub(crate) struct Receiver {
    pub(crate) context: Arc<Context>,
    pub(crate) settings: Settings,
    /// No other lock is taken under this one but those of [`Completion`], under which none is.
    state: Guarded<State>,
    /// Something arrived, or there is nothing more to wait for.
    changed: Notify,
    /// Session tasks that have ended, one per partition.
    ended: Vec<Completion<()>>,
}

struct State {
    inboxes: Vec<Inbox>,
    /// Partitions that have something, each once, in round-robin order.
    ready: VecDeque<usize>,
    is_ready: Vec<bool>,
    failed: Option<ClientError>,
    /// An error that was met behind messages, for the next call.
    kept: Option<ClientError>,
}

impl State {
    /// Remembers a partition that has something.
    fn note_ready(&mut self, partition: usize) {
        if self.inboxes[partition].has_more() && !self.is_ready[partition] {
            self.is_ready[partition] = true;
            self.ready.push_back(partition);
        }
    }

    /// The next message of the partitions that have something, in round-robin order.
    fn take(&mut self, wakers: &mut Wakers) -> Option<Result<ReceivedMessage>> {
        if let Some(error) = &self.failed {
            return Some(Err(error.clone()));
        }
        if let Some(error) = self.kept.take() {
            return Some(Err(error));
        }
        loop {
            let Some(partition) = self.ready.pop_front() else {
                let is_over = self.inboxes.iter().all(Inbox::is_at_end);
                return is_over.then_some(Err(ClientError::EndOfTopic));
            };
            self.is_ready[partition] = false;
            let inbox = &mut self.inboxes[partition];
            let taken = inbox.take();
            inbox.wake_for_credit(wakers);
            self.note_ready(partition);
            if taken.is_some() {
                return taken;
            }
        }
    }
}

impl Receiver {
    /// One inbox per partition, of which each gets an equal share of the queue.
    pub(crate) fn new(
        context: Arc<Context>,
        settings: Settings,
        topics: Vec<Arc<TopicName>>,
    ) -> Receiver {
        let share = |whole: u64, least: u64| match topics.len() as u64 {
            0 | 1 => whole,
            partitions => (whole / partitions).max(least),
        };
        let queue = Amount {
            messages: share(settings.queue.messages, SHARE_MIN.messages),
            bytes: share(settings.queue.bytes, SHARE_MIN.bytes),
        };
        let count = topics.len();
        let inboxes = topics.into_iter().enumerate().map(|(at, topic)| {
            let instance = ConsumerInstance(context.rng.id16());
            Inbox::new(topic, at, &settings.purpose, instance, queue)
        });
        let inboxes = inboxes.collect();
        Receiver {
            state: Guarded::new(State {
                inboxes,
                ready: VecDeque::new(),
                is_ready: vec![false; count],
                failed: None,
                kept: None,
            }),
            changed: Notify::new(),
            ended: (0..count).map(|_| Completion::default()).collect(),
            context,
            settings,
        }
    }

    /// Looks at one inbox.
    pub(crate) fn read<T>(&self, partition: usize, look: impl FnOnce(&Inbox) -> T) -> T {
        self.state.read(|state| look(&state.inboxes[partition]))
    }

    /// Runs a change on one inbox.
    pub(crate) fn change<T>(
        &self,
        partition: usize,
        change: impl FnOnce(&mut Inbox, &mut Wakers) -> T,
    ) -> T {
        self.state
            .change(|state, wakers| change(&mut state.inboxes[partition], wakers))
    }

    /// The same for one that may have brought messages: a call that waits for one looks again.
    pub(crate) fn update<T>(
        &self,
        partition: usize,
        change: impl FnOnce(&mut Inbox, &mut Wakers) -> T,
    ) -> T {
        let result = self.state.change(|state, wakers| {
            let result = change(&mut state.inboxes[partition], wakers);
            state.note_ready(partition);
            result
        });
        self.changed.notify_waiters();
        result
    }

    /// The request that subscribes a partition's next session.
    pub(crate) fn subscribe_request(&self, partition: usize, session: u64) -> v1::Subscribe {
        let subscribe = self.read(partition, |inbox| v1::Subscribe {
            version: PROTOCOL_VERSION,
            topic: inbox.topic().to_string(),
            r#type: v1::SubscriptionType::Exclusive.into(),
            start: inbox.resume_at().unwrap_or(self.settings.start).to_string(),
            topic_incarnation: inbox.incarnation(),
            instance: inbox.instance().0.to_vec().into(),
            epoch: session,
            ..v1::Subscribe::default()
        });
        match &self.settings.purpose {
            // The protocol knows a reader by its having no subscription.
            Purpose::Reader => subscribe,
            Purpose::Subscription(subscription) => v1::Subscribe {
                subscription: subscription.name.clone(),
                r#type: v1::SubscriptionType::from(subscription.kind).into(),
                consumer_name: subscription.consumer_name.clone(),
                priority: subscription.priority,
                ..subscribe
            },
        }
    }

    /// A message that is there now, of the partitions in round-robin order.
    pub(crate) fn try_take(&self) -> Option<Result<ReceivedMessage>> {
        self.state.change(State::take)
    }

    /// A message that is there now; an error is kept for the next call.
    pub(crate) fn try_take_message(&self) -> Option<ReceivedMessage> {
        match self.try_take()? {
            Ok(message) => Some(message),
            // It is met again.
            Err(ClientError::EndOfTopic) => None,
            Err(error) => {
                self.state.change(|state, _| state.kept = Some(error));
                self.changed.notify_waiters();
                None
            }
        }
    }

    /// Waits for a message. Dropping the future loses nothing.
    pub(crate) async fn take(&self) -> Result<ReceivedMessage> {
        if let Some(taken) = self.try_take() {
            return taken;
        }
        loop {
            let mut changed = pin!(self.changed.notified());
            // Registered before looking, so that nothing arrives unnoticed in between.
            changed.as_mut().enable();
            if let Some(taken) = self.try_take() {
                return taken;
            }
            changed.await;
        }
    }

    /// Acknowledges something of a delivery.
    pub(crate) fn ack(&self, origin: Origin, what: Acknowledged<'_>) -> Arc<AckOutcome> {
        self.state.change(|state, wakers| {
            if let Some(error) = &state.failed {
                let error = error.clone().with_outcome(Outcome::NotApplied);
                return resolved(Err(error));
            }
            match state.inboxes.get_mut(origin.partition) {
                Some(inbox) => inbox.ack(origin, what, Instant::now(), wakers),
                None => resolved(Err(foreign())),
            }
        })
    }

    /// Asks for redelivery of a range.
    pub(crate) fn nack(&self, origin: Origin, range: (u64, u64)) {
        self.state.change(|state, wakers| {
            if let Some(inbox) = state.inboxes.get_mut(origin.partition) {
                inbox.nack(origin, range, Instant::now(), wakers);
            }
        });
    }

    /// Moves every partition. Answers the lowest of the indexes.
    pub(crate) async fn seek(&self, place: Place) -> Result<Index> {
        let deadline = Deadline::after(self.context.operation_timeout);
        let seeks = (0..self.partitions()).map(|at| self.seek_one(at, place, deadline));
        let indexes = futures::future::try_join_all(seeks).await?;
        Ok(indexes.into_iter().min().unwrap_or_default())
    }

    async fn seek_one(&self, partition: usize, place: Place, deadline: Deadline) -> Result<Index> {
        const WHAT: &str = "seeking";
        let mut ours = None;
        let seek = async {
            let place = self.resolve(partition, place, deadline).await?;
            let mut backoff = Backoff::new(Arc::clone(&self.context.rng));
            loop {
                if let Some(error) = self.failed() {
                    return Err(error.with_outcome(Outcome::NotApplied));
                }
                match self.change(partition, |inbox, wakers| inbox.seek(place, wakers)) {
                    Ok(outcome) => {
                        let outcome = Arc::clone(ours.insert(outcome));
                        match outcome.wait().await {
                            Err(refusal) if refusal.is_retryable() => backoff.wait().await,
                            done => return done.clone(),
                        }
                    }
                    Err(earlier) => {
                        earlier.wait().await;
                    }
                }
            }
        };
        let result = deadline.limit(WHAT, seek).await;
        let last = || self.read(partition, |inbox| inbox.last_error().cloned());
        let result = result.map_err(|error| error.because_of(last()));
        if let (Err(_), Some(outcome)) = (&result, &ours) {
            self.change(partition, |inbox, wakers| {
                inbox.abandon_seek(outcome, wakers)
            });
        }
        result
    }

    /// The index that the end, or a time, stands for now. A seek is sent again after a reconnect,
    /// when it may have been applied, and must lead to the same place: the end has moved, and what
    /// was published in between would be passed over.
    async fn resolve(&self, partition: usize, place: Place, deadline: Deadline) -> Result<Place> {
        match place {
            Place::Earliest | Place::Index(_) | Place::Position(_) => return Ok(place),
            // A time that has not come yet is the end.
            Place::Latest | Place::TimeMs(_) => {}
        }
        let topic = self.read(partition, |inbox| Arc::clone(inbox.topic()));
        match locate(&self.context, &topic, place, deadline).await {
            Ok(found) => Ok(Place::Index(Index(found.index))),
            Err(error) if error.is_retryable() => Err(error.with_outcome(Outcome::NotApplied)),
            // A caller that may consume need not be allowed to look places up. The session finds
            // the place, and says what is wrong.
            Err(_) => Ok(place),
        }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.ended.len()
    }

    pub(crate) fn failed(&self) -> Option<ClientError> {
        self.state.read(|state| state.failed.clone())
    }

    /// Whether every partition is subscribed and served.
    pub(crate) fn is_active(&self) -> bool {
        self.state
            .read(|state| state.failed.is_none() && state.inboxes.iter().all(Inbox::is_active))
    }

    /// Everything is over: each call that waits gets this error, and the session of every partition
    /// ends.
    pub(crate) fn fail(&self, error: &ClientError) {
        self.state.change(|state, wakers| {
            if state.failed.is_none() {
                state.failed = Some(error.clone());
            }
            for inbox in &mut state.inboxes {
                inbox.fail(error, wakers);
                inbox.close(wakers);
            }
        });
        self.changed.notify_waiters();
    }

    /// A partition's task has ended.
    pub(crate) fn ended(&self, partition: usize) {
        if let Some(ended) = self.ended.get(partition) {
            ended.set(());
        }
    }

    /// Waits for acknowledgements that are under way, and ends.
    pub(crate) async fn close(&self) -> Result<()> {
        let deadline = Deadline::after(self.context.operation_timeout);
        let what = self.settings.purpose.what();
        for partition in 0..self.partitions() {
            let newest = self.read(partition, Inbox::newest_ack);
            if let Some(newest) = newest {
                // The caller that made it learns its outcome; closing goes on either way.
                let _ = newest.wait().await;
            }
            self.change(partition, Inbox::close);
        }
        let ended = async {
            for ended in &self.ended {
                ended.wait().await;
            }
            Ok(())
        };
        let result = deadline.limit("closing", ended).await;
        self.fail(&ClientError::closed(what));
        result
    }

    /// Fails acknowledgements that wait longer than the operation timeout, and makes requests that
    /// were refused for the moment again.
    pub(crate) fn expire_acks(&self, partition: usize) {
        let limit = self.context.operation_timeout;
        let error = Deadline::after(limit).error("acknowledging", Outcome::Unknown);
        self.update(partition, |inbox, wakers| {
            let now = Instant::now();
            let error = error.because_of(inbox.last_error().cloned());
            inbox.expire_acks(limit, now, &error, wakers);
            inbox.expire_redelivery(limit, now, wakers);
            inbox.make_again(now, wakers);
        });
    }

    /// How long until acknowledgements may expire.
    pub(crate) fn next_expiry(&self, partition: usize) -> Duration {
        let limit = self.context.operation_timeout;
        let oldest = self.read(partition, Inbox::oldest_ack);
        let waited = oldest.map_or(Duration::ZERO, |made_at| made_at.elapsed());
        limit.saturating_sub(waited).max(Duration::from_millis(1))
    }
}
