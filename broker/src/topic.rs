//! A loaded topic: one owner task, one mailbox, one closed set of events. Nobody else touches its
//! state, so there are no locks and no half-done changes: what a request began, the owner finishes,
//! whether the requester is still there or not.
//!
//! Invariants: the owner never waits for a client, for storage or for metadata while it handles an
//! event; what takes time runs aside and comes back as an event. A topic that was fenced or whose
//! log is broken is not repaired: it ends, and the next request loads it anew.

pub mod dedup;
pub(crate) mod event;
pub(crate) mod handle;
pub(crate) mod load;
pub(crate) mod record;
pub(crate) mod retention;

mod closing;
mod consume;
mod consumer;
mod cursors;
mod delivery_right;
mod outbox;
mod producer;
mod publish;
mod recovery;
mod reset;
mod seek;
mod stats;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{TopicLog, TopicRecordCell};
use aquifer_model::id::{Index, OwnerEpoch, TopicIncarnation};
use aquifer_model::policy::EffectivePolicies;
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::admin::SubscriptionReset;
use aquifer_runtime::clock::{self, Alarm};
use tokio::sync::watch;

use crate::bundle::ownership::Owned;
use crate::context::Context;
use crate::cursor_log::Losses;
use crate::error::{BrokerError, topic_survives};
use crate::topic::closing::Closing;
use crate::topic::consume::Subscriptions;
use crate::topic::consume::room::Rooms;
use crate::topic::cursors::Cursors;
use crate::topic::delivery_right::DeliveryRight;
use crate::topic::event::{Departure, EVENT_WORK, Event, Inbox, Mailbox, Reply};
use crate::topic::publish::Publishing;
use crate::topic::retention::{Rest, Trimming};
use crate::traffic::TopicCounters;

/// Work of events that is done before ready subscriptions get their turn, as 64 small ones have.
const WORK_PER_TURN: usize = 64 * EVENT_WORK;
/// Subscriptions served before new events get their turn.
const SUBSCRIPTIONS_PER_TURN: usize = 64;
/// How long an ending topic waits for what is in flight.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// How often an ending topic looks whether it is done.
const END_TICK: Duration = Duration::from_millis(50);

/// A topic, owned by its task.
pub(crate) struct Topic {
    shared: Arc<Context>,
    name: TopicName,
    incarnation: TopicIncarnation,
    owned: Owned,
    /// The epoch that deliveries carry: that of when the topic was loaded. A split raises the epoch of
    /// the bundle, not that of sessions which go on; whoever owns the topic next has a higher one.
    epoch: OwnerEpoch,
    cell: Arc<TopicRecordCell>,
    policies: watch::Receiver<EffectivePolicies>,
    mailbox: Mailbox,
    log: TopicLog,
    publishing: Publishing,
    subscriptions: Subscriptions,
    closing: Closing,
    cursors: Cursors,
    trimming: Trimming,
    delivery_right: DeliveryRight,
    /// Where it goes, once another broker owns the bundle.
    departure: Option<Arc<Departure>>,
    counters: Arc<TopicCounters>,
    rooms: Rooms,
    ending: Option<Ending>,
    /// When a client was last seen, on the monotonic clock.
    last_used: Duration,
    next_housekeeping: Duration,
    /// Where the log began when that was last looked at.
    log_begins_at: Index,
    /// What of the subscriptions and producers may be missing. Until it is accepted nothing is trimmed, no
    /// snapshot hides it, and the subscriptions concerned wait.
    losses: Option<Losses>,
    /// Who waits for that to be durable, and what they are told.
    resets: Vec<(Reply<Vec<SubscriptionReset>>, Vec<SubscriptionReset>)>,
}

/// Why and until when a topic is ending.
struct Ending {
    /// What clients are told.
    error: BrokerError,
    /// Finish what is in flight and seal the ledgers; a broken topic does neither.
    graceful: bool,
    /// Whether ownership itself was lost.
    fenced: bool,
    deadline: Duration,
}

impl Topic {
    fn epoch(&self) -> OwnerEpoch {
        self.epoch
    }

    fn now(&self) -> Duration {
        self.shared.clock.monotonic()
    }

    /// Where the messages end that consumers may see: dispatch, places and statistics stop here.
    /// Never beyond the end of the log, and never moves back.
    fn visible_end(&self) -> Index {
        self.log.end()
    }

    /// Runs the topic until it has ended and closed its logs. Answers what it is left with, when it
    /// was unloaded in order.
    pub(crate) async fn run(mut self, mut inbox: Inbox) -> Option<Rest> {
        self.shared.metrics.topics.add(1, &[]);
        let token = self.shared.tasks.shutdown_token();
        // These outlive a turn: new ones would take the lock of the timers of all tasks. A shutdown that
        // came ends the topic, and is not waited for again.
        let mut shutdown = pin!(token.wait());
        let mut alarm = Alarm::unset();
        loop {
            self.turn(&mut inbox);
            if self.is_over() {
                break;
            }
            if self.subscriptions.has_ready() {
                tokio::task::yield_now().await;
                continue;
            }
            let now = self.now();
            let soon = now + END_TICK;
            let at = match self.ending {
                Some(_) => soon,
                None => self.next_housekeeping.max(soon).min(self.next_due(now)),
            };
            alarm.set(at, now);
            tokio::select! {
                biased;
                () = inbox.urgent.wait() => {}
                event = inbox.receiver.recv() => {
                    if let Some(event) = event {
                        self.handle(event);
                    }
                }
                () = &mut shutdown, if self.ending.is_none() => self.handle(Event::Shutdown),
                () = alarm.wait() => {}
            }
        }
        let rest = self.finish(inbox).await;
        self.shared.metrics.topics.add(-1, &[]);
        rest
    }

    /// Handles what waits, then lets ready subscriptions deliver.
    fn turn(&mut self, inbox: &mut Inbox) {
        for event in inbox.urgent.take() {
            self.handle(event);
        }
        let mut work = 0;
        while work < WORK_PER_TURN {
            match inbox.receiver.try_recv() {
                Ok(event) => {
                    work += event.work();
                    self.handle(event);
                }
                Err(_) => break,
            }
        }
        self.settle_appends();
        if self.subscriptions.next_due_ms().is_some() {
            self.subscriptions.wake_due(self.shared.clock.wall_ms());
        }
        self.serve_ready(SUBSCRIPTIONS_PER_TURN);
        self.write_cursors();
        if self.now() >= self.next_housekeeping {
            self.housekeeping();
        }
    }

    /// When messages that are held back are due, on the monotonic clock.
    fn next_due(&self, now: Duration) -> Duration {
        let due_ms = self.subscriptions.next_due_ms();
        due_ms.map_or(Duration::MAX, |due_ms| {
            let left = due_ms.saturating_sub(self.shared.clock.wall_ms());
            now.saturating_add(Duration::from_millis(left))
        })
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::OpenProducer { request, reply } => self.open_producer(*request, reply),
            Event::Publish { session, frames } => self.publish(session, frames),
            Event::ProducerGone(session) => self.producer_gone(session),
            Event::Appended { tag, outcome } => self.appended(tag, outcome),
            Event::Subscribe { request, reply } => self.subscribe(request, reply),
            Event::Consumer {
                subscription,
                consumer,
                request,
            } => {
                self.consumer_request(subscription, consumer, request);
                if let Some(subscription) = self.closing.handled(consumer) {
                    self.consumer_closed(subscription, consumer);
                }
            }
            Event::ConsumerGone(subscription, consumer, sent) => {
                if self.closing.behind(subscription, consumer, sent) {
                    self.consumer_closed(subscription, consumer);
                }
            }
            Event::Drained(subscription, consumer) => self.drained(subscription, consumer),
            Event::Room(subscription, room) => self.room_came(subscription, room),
            Event::Read(done) => self.read_done(*done),
            Event::ReadRetry(subscription) => self.read_retry(subscription),
            Event::Located { purpose, result } => self.located(*purpose, result),
            Event::CursorAppended { tag, outcome } => self.cursor_appended(tag, outcome),
            Event::CursorRetry => self.cursor_retry(),
            Event::CursorRolled(result) => self.cursor_rolled(result),
            Event::Trimmed(result) => self.trimmed(result),
            Event::Trim(reply) => self.trim_visit(reply),
            Event::Stats(reply) => {
                // A requester that went away needs no answer; so everywhere below.
                let _ = reply.send(Ok(self.stats()));
            }
            Event::DeleteSubscription { name, force, reply } => {
                self.delete_subscription(&name, force, reply);
            }
            Event::CreateSubscription { name, place, reply } => {
                self.new_subscription(name, place, reply);
            }
            Event::SeekSubscription { name, place, reply } => {
                self.seek_subscription(&name, place, reply);
            }
            Event::ResetCursors(reply) => self.reset_cursors(reply),
            Event::Skip { name, range, reply } => self.skip(&name, range, reply),
            Event::DeliveryRight(asked) => self.delivery_right_asked(asked),
            Event::Delete { force, reply } => self.delete(force, reply),
            Event::Rebound(owned) => self.rebind(*owned),
            Event::HandedOver(departure) => self.hand_over(departure),
            Event::Moved(departure) => self.moved_away(departure),
            Event::Shutdown => self.end(
                BrokerError::Unloading("this broker is shutting down".to_owned()),
                true,
            ),
        }
    }

    /// The bundle's record was written anew, and this broker may go on as before.
    fn rebind(&mut self, owned: Owned) {
        self.cell.set_guards(vec![owned.guard.clone()]);
        self.owned = owned;
    }

    /// Why no session begins here, if none does.
    fn refusal(&self) -> Option<BrokerError> {
        let leaving = || self.departure.as_ref().map(|d| d.error(&self.name));
        let ending = self.ending.as_ref().map(|ending| ending.error.clone());
        ending.or_else(leaving)
    }

    fn delete(&mut self, force: bool, reply: event::Reply<()>) {
        if let Some(error) = self.departure.as_ref().map(|d| d.error(&self.name)) {
            let _ = reply.send(Err(error));
            return;
        }
        self.drop_dead_sessions();
        if !force && (self.publishing.is_used() || self.subscriptions.has_consumers()) {
            let _ = reply.send(Err(BrokerError::InUse(self.name.to_string())));
            return;
        }
        let error = BrokerError::Deleted(self.name.to_string());
        self.fail_producers(&error);
        self.fail_consumers(&error);
        self.end(error, true);
        let _ = reply.send(Ok(()));
    }

    /// Begins to end. A graceful end finishes what is in flight and seals the ledgers.
    fn end(&mut self, error: BrokerError, graceful: bool) {
        if let Some(ending) = &mut self.ending {
            ending.graceful &= graceful;
            return;
        }
        tracing::debug!(topic = %self.name, reason = %error, graceful, "topic is ending");
        self.refuse_waiting(&error);
        if graceful {
            self.doom_producers(&error);
            self.snapshot_before_end();
        } else {
            self.fail_producers(&error);
        }
        self.ending = Some(Ending {
            error,
            graceful,
            fenced: false,
            deadline: self.now() + END_DEADLINE,
        });
    }

    /// Ends a topic whose log cannot go on; the next request loads it anew.
    fn broken(&mut self, error: &LogError) {
        tracing::warn!(topic = %self.name, %error, "topic is unloaded and will be loaded again");
        let leaving = self.departure.as_ref().map(|d| d.error(&self.name));
        self.end(leaving.unwrap_or(BrokerError::Log(error.clone())), false);
        if let Some(ending) = &mut self.ending
            && matches!(error, LogError::Fenced)
        {
            ending.fenced = true;
        }
    }

    /// Whether a failure of storage leaves the topic in place; ends it otherwise.
    fn survives(&mut self, error: &LogError) -> bool {
        let survives = topic_survives(error);
        if !survives {
            self.broken(error);
        } else if *error == LogError::HandedOver {
            self.leave();
        }
        survives
    }

    fn is_broken(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| !ending.graceful)
    }

    fn is_over(&self) -> bool {
        let Some(ending) = &self.ending else {
            return false;
        };
        let quiet = self.publishing.is_quiet() && self.cursors.is_quiet(self.losses.is_none());
        !ending.graceful || quiet || self.now() >= ending.deadline
    }

    /// Refuses what is still in the mailbox, tells the clients, closes the logs.
    async fn finish(&mut self, mut inbox: Inbox) -> Option<Rest> {
        inbox.receiver.close();
        while inbox.receiver.try_recv().is_ok() {}
        let ending = self.ending.take()?;
        self.fail_producers(&ending.error);
        self.fail_consumers(&ending.error);
        if ending.fenced {
            self.shared.ownership.lost(&self.owned);
            return None;
        }
        let mut sealed = 0;
        for log in [&self.log, self.cursors.log()] {
            match clock::timeout(END_DEADLINE, log.close()).await {
                Ok(Ok(())) => sealed += 1,
                // Whoever opens the topic next recovers the ledger.
                Ok(Err(error)) => {
                    tracing::debug!(topic = %self.name, %error, "ledger was not sealed");
                }
                Err(_) => tracing::debug!(topic = %self.name, "ledger was not sealed in time"),
            }
        }
        tracing::debug!(topic = %self.name, "topic unloaded");
        (sealed == 2 && ending.graceful).then(|| Rest {
            revision: self.cell.revision(),
            limit: match self.losses {
                Some(_) => Index(0),
                None => self.trim_limit(),
            },
        })
    }

    /// What is looked at from time to time.
    fn housekeeping(&mut self) {
        let now = self.now();
        self.next_housekeeping = now + Duration::from_millis(self.shared.config.housekeeping_ms);
        self.drop_dead_sessions();
        if self.publishing.is_used() || self.subscriptions.has_consumers() {
            self.last_used = now;
        }
        self.publishing.dedup.forget_drawn(now);
        self.note_backlog();
        self.maybe_snapshot();
        self.trim();
        let idle = now.saturating_sub(self.last_used);
        if idle >= self.idle_max()
            && self.publishing.is_quiet()
            && self.cursors.is_quiet(self.losses.is_none())
            && !self.subscriptions.is_waiting()
        {
            self.end(
                BrokerError::Unloading("the topic was idle and is being unloaded".to_owned()),
                true,
            );
        }
    }

    /// For the metrics, which nobody has to load a topic for.
    fn note_backlog(&self) {
        let end = self.visible_end();
        let durable = self.subscriptions.iter();
        let durable = durable.filter(|slot| slot.state.is_durable());
        let (all, max) = durable.fold((0u64, 0u64), |(all, max), slot| {
            let backlog = slot.state.backlog(end);
            (all.saturating_add(backlog), max.max(backlog))
        });
        self.counters.set_backlog(all, max);
    }

    /// Closes sessions whose clients took their ends away without saying so.
    fn drop_dead_sessions(&mut self) {
        for session in self.publishing.dead_sessions() {
            self.producer_gone(session);
        }
        for (subscription, consumer) in self.subscriptions.dead_consumers() {
            self.consumer_gone(subscription, consumer);
        }
    }
}
