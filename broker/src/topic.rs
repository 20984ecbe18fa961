//! A loaded topic: one owner task, one mailbox, one closed set of events. Only that task touches
//! the topic's state, so there are no locks and no half-done changes: what a request began, the
//! owner finishes, whether the requester still waits or not.
//!
//! The state is in components: producers (`publishing`), consumers and subscriptions
//! (`attachments`), the writer of the cursor log (`cursors`), trimming, and the right to deliver.
//! Each owns what it changes. It gets as arguments what it needs besides, and answers what the
//! others are to do; this file receives events, calls components, and carries their answers from
//! one to the next.
//!
//! Invariants: the owner never waits for a client, for storage or for metadata while it handles an
//! event; what takes time runs beside it and comes back as an event. A topic that was fenced or
//! whose log is broken is not repaired: it ends, and the next request loads it again.

pub(crate) mod at_rest;
pub mod dedup;
pub(crate) mod event;
pub(crate) mod handle;
pub(crate) mod load;
pub(crate) mod pull;
pub(crate) mod record;
pub(crate) mod trimming;
pub(crate) mod waiting;

mod attachments;
mod backlog;
mod capture;
mod context;
mod cursors;
mod delivery_right;
mod ending;
mod lifecycle;
mod offloading;
mod producer;
mod publishing;
mod recovery;
mod stats;
mod termination;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::TopicRecordCell;
use aquifer_log::error::LogError;
use aquifer_model::id::{Index, TopicIncarnation};
use aquifer_model::topic::SubscriptionName;
use aquifer_runtime::clock::Alarm;

use crate::bundle::ownership::Owned;
use crate::error::BrokerError;
use crate::quota::rates::Followed;
use crate::topic::attachments::Attachments;
use crate::topic::backlog::Backlog;
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Due, SnapshotContents, Written};
use crate::topic::delivery_right::DeliveryRight;
use crate::topic::event::{
    Asked, Event, Inbox, Life, LocatePurpose, ReadDone, Reply, WORK_PER_TURN,
};
use crate::topic::publishing::{AppendFailed, Publishing};
use crate::topic::pull::{Door, Pull};
use crate::topic::trimming::{Kept, Rest, TrimEffects, Trimming};

/// Subscriptions served before new events get their turn.
const SUBSCRIPTIONS_PER_TURN: usize = 64;
/// How often an ending topic looks whether it is done.
const END_TICK: Duration = Duration::from_millis(50);

/// A topic, owned by its task.
pub(crate) struct Topic {
    cx: TopicContext,
    cell: Arc<TopicRecordCell>,
    publishing: Publishing,
    attachments: Attachments,
    cursors: Cursors,
    trimming: Trimming,
    backlog: Backlog,
    delivery_right: DeliveryRight,
    /// Policies that decide on limits.
    followed: Followed,
    /// Requests that wait until the topic takes no more messages.
    terminating: Vec<Reply<Index>>,
    /// When a client was last seen, on the monotonic clock.
    last_used: Duration,
    next_housekeeping: Duration,
}

impl Topic {
    /// Runs the topic until it has ended and closed its logs. Answers what it is left with, when it
    /// was unloaded in order.
    pub(crate) async fn run(mut self, mut inbox: Inbox) -> Option<Rest> {
        self.cx.shared.metrics.topics.add(1, &[]);
        let token = self.cx.shared.tasks.shutdown_token();
        // These outlive a turn: new ones would take the lock of the timers of all tasks. A shutdown
        // that came ends the topic, and is not waited for again.
        let mut shutdown = pin!(token.wait());
        let mut changed = pin!(self.followed.clone().changed());
        let mut alarm = Alarm::unset();
        loop {
            self.turn(&mut inbox);
            if self.is_over() {
                break;
            }
            if self.attachments.has_ready() {
                tokio::task::yield_now().await;
                continue;
            }
            let now = self.cx.now();
            let soon = now + END_TICK;
            let is_ending = self.cx.life.is_ending();
            let at = match is_ending {
                true => soon,
                false => self
                    .next_housekeeping
                    .min(self.backlog.next())
                    .max(soon)
                    .min(self.next_due(now)),
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
                () = &mut shutdown, if !is_ending => self.handle(Event::Life(Life::Shutdown)),
                () = &mut changed => changed.set(self.followed.clone().changed()),
                () = alarm.wait() => {}
            }
        }
        let rest = self.finish(inbox).await;
        self.cx.shared.metrics.topics.add(-1, &[]);
        rest
    }

    /// Handles what waits, then lets ready subscriptions deliver.
    fn turn(&mut self, inbox: &mut Inbox) {
        if self.followed.take_changed() {
            self.policies_changed();
        }
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
        if self.publishing.finish_turn(&self.cx) {
            self.attachments.wake_at_end();
            self.maybe_snapshot();
        }
        self.finish_termination();
        if self.attachments.next_due_ms().is_some() {
            self.attachments.wake_due(self.cx.wall_ms());
        }
        self.attachments.serve_ready(
            &self.cx,
            &mut self.cursors,
            &mut self.delivery_right,
            SUBSCRIPTIONS_PER_TURN,
        );
        self.write_cursors();
        let now = self.cx.now();
        if now >= self.backlog.next() {
            self.look_at_backlog();
        }
        if now >= self.next_housekeeping {
            self.housekeeping();
        }
    }

    /// Lets changed policies take effect on what does not look at them by itself.
    fn policies_changed(&mut self) {
        self.cx.rates.apply(&self.cx.shared);
        self.attachments.policies_changed(&self.cx);
        self.backlog.look_soon();
        self.care_for_offload();
    }

    /// When messages that are held back are due, on the monotonic clock.
    fn next_due(&self, now: Duration) -> Duration {
        let due_ms = self.attachments.next_due_ms();
        due_ms.map_or(Duration::MAX, |due_ms| {
            let left = due_ms.saturating_sub(self.cx.wall_ms());
            now.saturating_add(Duration::from_millis(left))
        })
    }

    /// Gives an event to the component that it is for, and the component's answer to others.
    fn handle(&mut self, event: Event) {
        let (cx, cursors) = (&self.cx, &mut self.cursors);
        let (publishing, attachments) = (&mut self.publishing, &mut self.attachments);
        match event {
            Event::OpenProducer { request, reply } => publishing.open(cx, *request, reply),
            Event::Publish { session, frames } => publishing.publish(cx, session, frames),
            Event::ProducerGone(session) => publishing.gone(cx, session),
            Event::Appended { tag, outcome } => {
                if let Some(failed) = publishing.appended(cx, tag, outcome) {
                    self.append_failed(&failed);
                }
            }
            Event::Subscribe { request, reply } => {
                attachments.subscribe(cx, cursors, request, reply);
            }
            Event::Consumer(id, consumer, request) => {
                attachments.request(cx, cursors, id, consumer, request);
            }
            Event::ConsumerGone(id, consumer, sent) => {
                attachments.gone(cx, cursors, id, consumer, sent);
            }
            Event::Drained(id, consumer) => attachments.drained(cx, id, consumer),
            Event::DeliveryBytes(id, bytes) => attachments.bytes_came(cx, id, bytes),
            Event::Tokens(id) => attachments.tokens_came(cx, id),
            Event::Read(done) => self.read_done(*done),
            Event::ReadRetry(id) => attachments.read_retry(cx, id),
            Event::Located(purpose, result) => match *purpose {
                LocatePurpose::Backlog(search) => self.searched(search, result),
                purpose => attachments.located(cx, cursors, purpose, result),
            },
            Event::CursorAppended { tag, outcome } => {
                let written = cursors.appended(cx, tag, outcome);
                self.cursors_written(written);
            }
            Event::CursorRetry => cursors.retry(),
            Event::CursorRolled(result) => {
                if let Some(error) = cursors.rolled(cx, result) {
                    self.broken(&error);
                }
            }
            Event::Trimmed(result) => self.trimmed(result),
            Event::Trim(reply) => self.trim_visit(reply),
            Event::Offload(reply) => self.offload_visit(reply),
            Event::Stats(reply) => {
                // A requester that went away needs no answer; so everywhere below.
                let _ = reply.send(Ok(stats::stats(cx, publishing, attachments)));
            }
            Event::DeleteSubscription { name, force, reply } => {
                self.delete_subscription(&name, force, reply);
            }
            Event::CreateSubscription { name, new, reply } => {
                attachments.create(cx, cursors, name, *new, reply);
            }
            Event::SeekSubscription { name, place, reply } => {
                attachments.seek(cx, cursors, &name, place, reply);
            }
            Event::ResetCursors(reply) => {
                if attachments.reset(cx, reply) {
                    cursors.begin_again();
                }
            }
            Event::Skip { name, range, reply } => {
                attachments.skip(cx, cursors, &name, range, reply);
            }
            Event::Pull(request) => self.pull(*request),
            Event::DeliveryRight(asked) => self.delivery_right_asked(&asked),
            Event::Delete { force, reply } => self.delete(force, reply),
            Event::Rebound(owned) => self.rebind(*owned),
            Event::HandedOver(departure) => self.hand_over(departure),
            Event::Moved(departure) => self.moved_away(departure),
            Event::Life(event) => self.life(event),
        }
    }

    /// Everything appended after a failed append fails as well; the producers are told now.
    fn append_failed(&mut self, failed: &AppendFailed) {
        let error = &failed.error;
        if failed.is_first {
            let told = self.cx.told(error);
            self.publishing.fail_all(&self.cx, &told);
        }
        self.survives(error);
    }

    /// Carries out a request that stands alone.
    fn pull(&mut self, request: Pull) {
        let (cx, cursors) = (&self.cx, &mut self.cursors);
        match request {
            Pull::Door(known, reply) => {
                let _ = reply.send(self.door(known));
            }
            Pull::Log(reply) => {
                let _ = reply.send(match cx.refusal() {
                    Some(error) => Err(error),
                    None => Ok(cx.log.clone()),
                });
            }
            Pull::Append(append, reply) => self.publishing.append_alone(cx, *append, reply),
            Pull::AloneAppended { tag, outcome } => {
                if let Some(failed) = self.publishing.alone_appended(cx, tag, outcome) {
                    self.append_failed(&failed);
                }
            }
            Pull::Commit(commit, reply) => self.attachments.commit(cx, cursors, commit, reply),
            Pull::Clear(clear, reply) => self.attachments.clear(cx, cursors, &clear, reply),
            Pull::Peek(name, limit, reply) => {
                let found = self.attachments.next_unacknowledged(cx, &name, limit);
                let _ = reply.send(found.map(|ranges| (cx.door(), ranges)));
            }
            Pull::Committed(name, reply) => {
                let _ = reply.send(self.attachments.committed_index(cx, &name));
            }
            Pull::Capture(reply) => {
                let _ = reply.send(self.capture());
            }
        }
    }

    /// The way to what is stored, for a client that knows this life of the topic.
    fn door(&mut self, known: Option<TopicIncarnation>) -> Result<Door, BrokerError> {
        if let Some(error) = self.cx.refusal() {
            return Err(error);
        }
        self.cx.check_incarnation(known)?;
        self.last_used = self.cx.now();
        Ok(self.cx.door())
    }

    fn read_done(&mut self, done: ReadDone) {
        let (cursors, right) = (&mut self.cursors, &mut self.delivery_right);
        if let Some(error) = self.attachments.read_done(&self.cx, cursors, right, done) {
            self.broken(&error);
        }
    }

    /// Starts what is due for the cursor log when nothing of it is in flight.
    fn write_cursors(&mut self) {
        loop {
            let written = match self.cursors.due(&self.cx, self.attachments.is_whole()) {
                Due::Nothing => return,
                Due::Roll => return self.cursors.roll(&self.cx),
                Due::Snapshot => {
                    let contents = SnapshotContents {
                        subscriptions: self.attachments.snapshot(),
                        producers: self.publishing.snapshot(),
                        dedup_index: self.publishing.persisted_end(),
                    };
                    self.cursors.write_snapshot(&self.cx, contents)
                }
                Due::Group => self.cursors.write_group(&self.cx),
            };
            self.cursors_written(written);
        }
    }

    /// Lets the effects of durable changes show, or looks what a failure means.
    fn cursors_written(&mut self, written: Written) {
        match written {
            Written::InFlight => {}
            Written::Durable {
                changes,
                has_snapshot,
            } => {
                for change in changes {
                    let cursors = &mut self.cursors;
                    if self.attachments.apply(&self.cx, cursors, change.effect) {
                        self.trim();
                        self.expired();
                    }
                }
                if has_snapshot {
                    self.attachments.reset_done();
                    if self.trimming.snapshot_done() {
                        self.trim();
                    }
                    self.care_for_offload();
                }
                let mark = || {
                    self.attachments
                        .durable_mark(self.publishing.persisted_end())
                };
                if self.trimming.is_due(mark) {
                    self.trim();
                }
            }
            Written::Failed(error) => {
                if self.survives(&error) && error != LogError::HandedOver {
                    self.cursors.retry_later(&self.cx, &error);
                }
            }
        }
    }

    /// Takes a snapshot when replaying what came since the last one would take long.
    fn maybe_snapshot(&mut self) {
        let (config, since) = (&self.cx.shared.config, self.publishing.since_snapshot());
        let age = self.cx.now().saturating_sub(self.cursors.snapshot_time());
        if trimming::is_snapshot_due(config, since, age, self.publishing.remembered()) {
            self.cursors.want_snapshot();
        }
    }

    /// Trims as far as policy, subscriptions and snapshots allow.
    fn trim(&mut self) {
        if self.trimming.is_running() || self.cx.life.is_ending() {
            return;
        }
        let effects = match self.attachments.is_whole() {
            true => {
                let kept = Kept {
                    mark: self.trim_limit(),
                    snapshot: self.cursors.dedup_index(),
                    pause: trimming::snapshot_pause(self.publishing.remembered()),
                };
                self.trimming
                    .trim(&self.cx, self.policies_now().retention, kept)
            }
            // A subscription may be missing that needs it.
            false => TrimEffects {
                snapshot: false,
                visit_over: self.trimming.visit_over(&Ok(())),
            },
        };
        if effects.snapshot {
            self.cursors.want_snapshot();
        }
        if effects.visit_over {
            self.next_housekeeping = self.cx.now();
        }
    }

    /// The index below which nothing is needed any more.
    fn trim_limit(&self) -> Index {
        self.attachments
            .durable_mark(self.publishing.persisted_end())
    }

    fn trimmed(&mut self, result: Result<Index, LogError>) {
        let is_over = match result {
            Ok(first) => {
                let has_more = self.trimming.trimmed(first);
                self.attachments.trimmed(first);
                if has_more {
                    return self.trim();
                }
                // A ledger may have been closed.
                self.care_for_offload();
                self.trimming.visit_over(&Ok(()))
            }
            // Only another owner is a reason to end a topic that serves.
            Err(error) => {
                let is_over = self.trimming.failed(&self.cx, &error);
                if matches!(error, LogError::Fenced) {
                    self.broken(&error);
                }
                is_over
            }
        };
        if is_over {
            self.next_housekeeping = self.cx.now();
        }
    }

    fn delivery_right_asked(&mut self, asked: &Asked) {
        match self.delivery_right.asked(asked) {
            Some(waiting) => self.attachments.wake(waiting),
            None => self.broken(&LogError::Fenced),
        }
    }

    /// The bundle's record was written again, and this broker may continue as before.
    fn rebind(&mut self, owned: Owned) {
        self.cell.set_guards(vec![owned.guard.clone()]);
        self.delivery_right.rebound(owned);
    }

    fn delete_subscription(&mut self, name: &SubscriptionName, force: bool, reply: Reply<()>) {
        self.drop_dead_sessions();
        self.attachments
            .delete(&self.cx, &mut self.cursors, name, force, reply);
    }

    /// What is looked at from time to time.
    fn housekeeping(&mut self) {
        let now = self.cx.now();
        let config = &self.cx.shared.config;
        self.next_housekeeping = now + Duration::from_millis(config.housekeeping_ms);
        self.drop_dead_sessions();
        if self.is_used() {
            self.last_used = now;
        }
        self.publishing.forget_drawn(now);
        self.note_backlog();
        self.maybe_snapshot();
        self.trim();
        if self.cx.rates.is_shared() {
            self.cx.rates.apply(&self.cx.shared);
        }
        self.care_for_offload();
        let sessions = self
            .publishing
            .last_used()
            .max(self.attachments.last_used());
        let last_used = self.last_used.max(sessions);
        let idle_max = self.trimming.idle_max(&self.cx.shared.config, last_used);
        if now.saturating_sub(last_used) >= idle_max
            && self.is_quiet()
            && !self.attachments.is_waiting()
            && !self.awaits_offload()
        {
            let reason = "the topic was idle and is being unloaded".to_owned();
            self.end(&BrokerError::Unloading(reason), true);
        }
    }

    /// Closes sessions whose clients dropped their ends without closing them.
    fn drop_dead_sessions(&mut self) {
        self.publishing.drop_dead(&self.cx);
        self.attachments.drop_dead(&self.cx);
    }
}
