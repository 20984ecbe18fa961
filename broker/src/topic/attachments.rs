//! The consumers and readers of a topic and their subscriptions: attaches clients, hands their
//! requests to the state machine of each subscription, and carries out what that says.
//!
//! Invariants: a durable subscription exists for clients only when the cursor log has it; what a
//! client is told about a change follows the durable record of the change; what the tail cache
//! holds is served at once and shared by all.

mod attach;
mod clearing;
mod closing;
mod commits;
mod delivery_budget;
mod expiry;
mod instances;
mod outbox;
mod places;
mod port;
mod reads;
mod reset;
mod serve;
mod slot;
mod subscriptions;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::stats::SubscriptionStats;
use aquifer_model::subscription::Properties;
use aquifer_model::topic::SubscriptionName;
use aquifer_proto::v1::SubscriptionState;
use aquifer_protocol_api::admin::SubscriptionReset;
use aquifer_protocol_api::consumer::{ConsumerEvent, ConsumerSession, Subscribe};
use aquifer_runtime::budget::BytePermit;

use crate::cursor_log::Losses;
use crate::error::BrokerError;
use crate::subscription::{ConsumerId, SubscriptionSpec};
use crate::topic::attachments::closing::Closing;
use crate::topic::attachments::instances::Instances;
use crate::topic::attachments::slot::Slot;
use crate::topic::attachments::subscriptions::Subscriptions;
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Effect};
use crate::topic::delivery_right::DeliveryRight;
use crate::topic::event::{
    ConsumerRequest, LocatePurpose, ReadDone, Reply, Seeker, SubscriptionId,
};

/// See the module.
pub(super) struct Attachments {
    subscriptions: Subscriptions,
    /// Names that are being created, with the requests that wait for them.
    creating: HashMap<SubscriptionName, Vec<Waiting>>,
    instances: Instances,
    closing: Closing,
    next_consumer: u64,
    /// What of the subscriptions and producers may be missing. Until it is accepted nothing is
    /// trimmed, no snapshot hides it, and the subscriptions concerned wait.
    losses: Option<Losses>,
    /// Requests that accepted losses, with their answers: given when a snapshot of what was left is
    /// durable.
    resets: Vec<(Reply<Vec<SubscriptionReset>>, Vec<SubscriptionReset>)>,
    /// When a session last began or ended, on the monotonic clock.
    last_used: Duration,
}

/// A request that waits for a subscription which is being created.
enum Waiting {
    /// A consumer that is to be attached.
    Consumer(Box<Subscribe>, Reply<ConsumerSession>),
    /// An administrator, with what is recorded of it.
    Admin(Properties, Reply<Index>),
}

impl Waiting {
    fn refuse(self, error: &BrokerError) {
        // A requester that went away needs no answer.
        match self {
            Waiting::Consumer(_, reply) => drop(reply.send(Err(error.clone()))),
            Waiting::Admin(_, reply) => drop(reply.send(Err(error.clone()))),
        }
    }
}

impl Attachments {
    /// Without subscriptions. `losses` is what may be missing of them.
    pub(super) fn new(losses: Option<Losses>, now: Duration) -> Attachments {
        Attachments {
            subscriptions: Subscriptions::default(),
            creating: HashMap::new(),
            instances: Instances::default(),
            closing: Closing::default(),
            next_consumer: 0,
            losses,
            resets: Vec::new(),
            last_used: now,
        }
    }

    /// Takes in a subscription that was recovered. One whose record is damaged waits.
    pub(super) fn recovered(&mut self, name: SubscriptionName, spec: SubscriptionSpec) {
        let is_damaged = |losses: &Losses| !losses.certain.contains(&name);
        let is_uncertain = self.losses.as_ref().is_some_and(is_damaged);
        let slot = self.subscriptions.insert(Some(name), spec);
        slot.is_uncertain = is_uncertain;
    }

    /// Does something with a subscription, unless it is gone.
    fn with<T>(
        &mut self,
        cx: &TopicContext,
        id: SubscriptionId,
        work: impl FnOnce(&mut Slot) -> T,
    ) -> Option<T> {
        let (answer, ended) = self.subscriptions.with(id, work)?;
        for consumer in ended {
            self.instances.ended(consumer);
            self.last_used = cx.now();
        }
        Some(answer)
    }

    /// Whether all subscriptions are known for sure.
    pub(super) fn is_whole(&self) -> bool {
        self.losses.is_none()
    }

    /// When a session last began or ended, on the monotonic clock.
    pub(super) fn last_used(&self) -> Duration {
        self.last_used
    }

    pub(super) fn has_consumers(&self) -> bool {
        let mut slots = self.subscriptions.iter();
        !self.creating.is_empty() || slots.any(|slot| !slot.consumers.is_empty())
    }

    /// Whether work beside the task will come back.
    pub(super) fn is_waiting(&self) -> bool {
        let mut slots = self.subscriptions.iter();
        !self.creating.is_empty() || slots.any(|slot| slot.reads.is_aside())
    }

    /// The index below which no subscription needs anything any more, at most `end`.
    pub(super) fn durable_mark(&self, end: Index) -> Index {
        self.durable()
            .map(|slot| slot.state.durable_mark_delete())
            .fold(end, Index::min)
    }

    /// The first message that some durable subscription has not acknowledged, at most `end`.
    pub(super) fn slowest(&self, end: Index) -> Index {
        self.durable()
            .map(|slot| slot.state.mark_delete())
            .fold(end, Index::min)
    }

    /// Messages that durable subscriptions have not acknowledged, of all and of the one that has
    /// most.
    pub(super) fn backlog(&self, end: Index) -> (u64, u64) {
        self.durable().fold((0u64, 0u64), |(all, max), slot| {
            let backlog = slot.state.backlog(end);
            (all.saturating_add(backlog), max.max(backlog))
        })
    }

    /// The durable subscriptions that are furthest behind: the first message that each has not
    /// acknowledged, and how many it has not.
    pub(super) fn furthest(&self, end: Index, max: usize) -> Vec<(&str, Index, u64)> {
        let behind = self.durable().map(|slot| {
            let (mark, messages) = (slot.state.mark_delete(), slot.state.backlog(end));
            (slot.state.name(), mark, messages)
        });
        let mut behind: Vec<_> = behind.filter(|(.., messages)| *messages > 0).collect();
        behind.sort_unstable_by_key(|(.., messages)| Reverse(*messages));
        behind.truncate(max);
        behind
    }

    /// The durable subscriptions, for a snapshot.
    pub(super) fn snapshot(&self) -> Vec<SubscriptionState> {
        self.durable().map(|slot| slot.state.record()).collect()
    }

    /// Whether messages were delivered more than once that no consumer has acknowledged.
    pub(super) fn has_redelivered(&self) -> bool {
        self.durable().any(|slot| slot.state.has_redelivered())
    }

    pub(super) fn stats(&self, end: Index) -> Vec<SubscriptionStats> {
        let slots = self.subscriptions.iter();
        let stats = |slot: &Slot| SubscriptionStats {
            held_back_by: slot.pacing.waits_for().map(|limit| limit.to_string()),
            ..slot.state.stats(end)
        };
        slots.map(stats).collect()
    }

    fn durable(&self) -> impl Iterator<Item = &Slot> {
        let slots = self.subscriptions.iter();
        slots.filter(|slot| slot.state.is_durable())
    }

    pub(super) fn has_ready(&self) -> bool {
        self.subscriptions.has_ready()
    }

    /// When the first message that is held back is due, ms since the Unix epoch.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.subscriptions.next_due_ms()
    }

    /// Has subscriptions served whose messages are due.
    pub(super) fn wake_due(&mut self, now_ms: u64) {
        self.subscriptions.wake_due(now_ms);
    }

    /// The log has new messages.
    pub(super) fn wake_at_end(&mut self) {
        self.subscriptions.wake_at_end();
    }

    /// Has these served soon.
    pub(super) fn wake(&mut self, ids: BTreeSet<SubscriptionId>) {
        for id in ids {
            self.subscriptions.wake(id);
        }
    }

    /// The log begins at `first` now.
    pub(super) fn trimmed(&mut self, first: Index) {
        self.subscriptions.trimmed(first);
    }

    /// Serves subscriptions that may have something to do.
    pub(super) fn serve_ready(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        right: &mut DeliveryRight,
        max: usize,
    ) {
        for _ in 0..max {
            let Some(id) = self.subscriptions.next_ready() else {
                return;
            };
            self.with(cx, id, |slot| slot.serve(cx, cursors, right));
        }
    }

    /// A request of a consumer.
    pub(super) fn request(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        id: SubscriptionId,
        consumer: ConsumerId,
        request: ConsumerRequest,
    ) {
        let wanted = self.with(cx, id, |slot| slot.request(cx, cursors, consumer, request));
        if let Some(seek) = wanted.flatten() {
            let purpose = LocatePurpose::Seek {
                subscription: id,
                consumer,
                request_id: seek.request_id,
            };
            self.locate(cx, cursors, seek.place, purpose);
        }
        if let Some(id) = self.closing.handled(consumer) {
            self.with(cx, id, |slot| slot.closed(cx, cursors, consumer));
        }
    }

    /// The client of a session is gone, after this many requests.
    pub(super) fn gone(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        id: SubscriptionId,
        consumer: ConsumerId,
        sent: u64,
    ) {
        if self.closing.behind(id, consumer, sent) {
            self.with(cx, id, |slot| slot.closed(cx, cursors, consumer));
        }
    }

    /// A consumer has taken much of what was queued for it.
    pub(super) fn drained(&mut self, cx: &TopicContext, id: SubscriptionId, consumer: ConsumerId) {
        self.with(cx, id, |slot| slot.drained(cx, consumer));
    }

    /// A subscription that waited for bytes of the budget has some.
    pub(super) fn bytes_came(&mut self, cx: &TopicContext, id: SubscriptionId, bytes: BytePermit) {
        self.with(cx, id, |slot| {
            slot.delivery_budget.came(bytes);
            slot.wake();
        });
    }

    /// A subscription that waited for its rates may look again.
    pub(super) fn tokens_came(&mut self, cx: &TopicContext, id: SubscriptionId) {
        self.with(cx, id, Slot::tokens_came);
    }

    /// Policies have changed: a bound may have been raised for which something waits.
    pub(super) fn policies_changed(&mut self, cx: &TopicContext) {
        let unacked = cx.policies.borrow().unacked;
        for id in self.subscriptions.ids() {
            self.with(cx, id, |slot| {
                slot.state.set_unacked(unacked);
                slot.wake();
            });
        }
    }

    /// A read of a backlog is done. Answers the failure after which the topic cannot continue.
    pub(super) fn read_done(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        right: &mut DeliveryRight,
        done: ReadDone,
    ) -> Option<LogError> {
        let id = done.subscription;
        self.with(cx, id, |slot| slot.read_done(cx, cursors, right, done))
            .flatten()
    }

    /// A read of a backlog that failed may be tried again.
    pub(super) fn read_retry(&mut self, cx: &TopicContext, id: SubscriptionId) {
        self.with(cx, id, Slot::read_retry);
    }

    /// Ends all sessions with an error.
    pub(super) fn fail_all(&mut self, cx: &TopicContext, error: &BrokerError) {
        for id in self.subscriptions.ids() {
            self.with(cx, id, |slot| slot.fail_all(cx, error));
        }
    }

    /// Ends the sessions whose clients dropped their ends without closing them.
    pub(super) fn drop_dead(&mut self, cx: &TopicContext) {
        for id in self.subscriptions.ids() {
            self.with(cx, id, |slot| slot.drop_dead(cx));
        }
    }

    /// Refuses requests that wait for something that will not come any more.
    pub(super) fn refuse_waiting(&mut self, error: &BrokerError) {
        for (_, waiting) in std::mem::take(&mut self.creating) {
            refuse(waiting, error);
        }
    }

    /// Lets the effect of a durable change show. Answers whether more may be trimmed by it.
    pub(super) fn apply(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        effect: Effect,
    ) -> bool {
        match effect {
            Effect::Created(id, name) => self.created(cx, cursors, id, &name),
            Effect::Acknowledged { id, delta, confirm } => {
                self.with(cx, id, |slot| slot.acknowledged(cx, &delta, confirm));
            }
            Effect::Confirm {
                id,
                consumer,
                request_id,
            } => {
                let confirmed = ConsumerEvent::Confirmed { request_id };
                self.with(cx, id, |slot| slot.tell(cx, consumer, confirmed));
            }
            Effect::Sought {
                id,
                epoch,
                index,
                seeker,
            } => self.sought(cx, id, epoch, index, seeker),
            Effect::Closed(id, consumer) => {
                self.with(cx, id, |slot| slot.gone(cx, consumer));
            }
            Effect::Skipped { id, delta, reply } => {
                self.with(cx, id, |slot| slot.state.confirm(&delta));
                let _ = reply.send(Ok(delta.individual));
            }
            Effect::Committed(id, delta, reply) => self.committed(cx, id, delta, reply),
            Effect::Cleared {
                id,
                delta,
                messages,
                reply,
            } => {
                if let Some(delta) = delta {
                    self.with(cx, id, |slot| slot.state.confirm(&delta));
                }
                let _ = reply.send(Ok(messages));
                return true;
            }
            Effect::Expired(id, delta) | Effect::Passed(id, delta) => {
                self.with(cx, id, |slot| slot.state.confirm(&delta));
                return true;
            }
            Effect::Recorded => {}
            Effect::Deleted(id, reply) => {
                self.subscriptions.remove(id);
                let _ = reply.send(Ok(()));
                return true;
            }
        }
        false
    }

    /// A seek is durable.
    fn sought(
        &mut self,
        cx: &TopicContext,
        id: SubscriptionId,
        epoch: SeekEpoch,
        index: Index,
        seeker: Seeker,
    ) {
        let requested = match seeker {
            Seeker::Consumer(consumer, request_id) => Some((consumer, request_id)),
            Seeker::Admin(reply) => {
                let _ = reply.send(Ok(index));
                None
            }
        };
        self.with(cx, id, |slot| slot.sought(cx, epoch, index, requested));
    }
}

fn refuse(waiting: Vec<Waiting>, error: &BrokerError) {
    waiting
        .into_iter()
        .for_each(|request| request.refuse(error));
}
