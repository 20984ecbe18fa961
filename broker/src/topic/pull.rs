//! Requests that stand alone. The owner task gives out the [`Door`] through which they read beside
//! it, and does itself what changes the topic: appends, and commits of subscriptions.

mod read;

use std::sync::Arc;

use aquifer_log::error::LogError;
use aquifer_log::{Appended, TopicLog};
use aquifer_model::id::{Index, TopicIncarnation};
use aquifer_model::place::Place;
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::pull::{self, TopicBounds};
use aquifer_runtime::budget::ByteBudget;
use tokio::sync::watch;

use crate::broker::Shared;
use crate::cursor_log;
use crate::error::BrokerError;
use crate::load::TopicCounters;
use crate::subscription::cursor::{AckDelta, Commit};
use crate::topic::Topic;
use crate::topic::cursors::Effect;
use crate::topic::event::{Event, Mailbox, Reply, SubscriptionId};
use crate::topic::seek::{Mover, not_found};

pub(crate) use crate::topic::publish::alone::{AloneAppend, NamedBy};

/// What the owner is asked.
pub(crate) enum Pull {
    /// The way to what is stored, for a client that knows this life of the topic.
    Door(Option<TopicIncarnation>, Reply<Door>),
    /// A body is to be stored.
    Append(Box<AloneAppend>, Reply<pull::Appended>),
    /// The outcome of that.
    AloneAppended {
        tag: u64,
        outcome: Result<Appended, LogError>,
    },
    /// A subscription is to move to an index.
    Commit(pull::Commit, Reply<Index>),
    /// Where a subscription stands.
    Committed(SubscriptionName, Reply<Option<Index>>),
}

impl Pull {
    /// The event of a request.
    pub(crate) fn event(self) -> Event {
        Event::Pull(Box::new(self))
    }
}

/// The way to what a topic has stored, past its owner: what is acknowledged never changes, so that
/// its holder may read while the topic is served elsewhere already.
pub(crate) struct Door {
    pub(crate) incarnation: TopicIncarnation,
    /// Closes when the topic ends here.
    pub(crate) mailbox: Mailbox,
    /// What appends take their bytes from.
    pub(crate) publish: ByteBudget,
    /// What reads take their bytes from.
    deliveries: ByteBudget,
    log: TopicLog,
    visible_end: watch::Receiver<Index>,
    counters: Arc<TopicCounters>,
    shared: Arc<Shared>,
}

impl Door {
    /// The extent of the topic now.
    pub(crate) fn bounds(&self) -> TopicBounds {
        let visible_end = *self.visible_end.borrow();
        TopicBounds {
            incarnation: self.incarnation,
            first: self.log.first(),
            visible_end,
            end: self.log.end().max(visible_end),
        }
    }
}

impl Topic {
    pub(super) fn pull(&mut self, request: Pull) {
        match request {
            Pull::Door(known, reply) => {
                let _ = reply.send(self.door(known));
            }
            Pull::Append(append, reply) => self.append_alone(*append, reply),
            Pull::AloneAppended { tag, outcome } => self.alone_appended(tag, outcome),
            Pull::Commit(commit, reply) => self.commit(commit, reply),
            Pull::Committed(name, reply) => {
                let id = self.subscriptions.by_name(&name);
                let slot = id.and_then(|id| self.subscriptions.get(id));
                let index = slot.map(|slot| slot.state.durable_mark_delete());
                let _ = reply.send(Ok(index));
            }
        }
    }

    fn door(&mut self, known: Option<TopicIncarnation>) -> Result<Door, BrokerError> {
        if let Some(error) = self.refusal() {
            return Err(error);
        }
        self.check_incarnation(known)?;
        self.last_used = self.now();
        Ok(Door {
            incarnation: self.incarnation,
            mailbox: self.mailbox.clone(),
            publish: self.rooms.publish.clone(),
            deliveries: self.rooms.deliveries.clone(),
            log: self.log.clone(),
            // As `Topic::visible_end` has it.
            visible_end: self.log.watch_end(),
            counters: Arc::clone(&self.counters),
            shared: Arc::clone(&self.shared),
        })
    }

    fn commit(&mut self, commit: pull::Commit, reply: Reply<Index>) {
        let name = &commit.subscription;
        match self.check_commit(&commit) {
            Err(error) => {
                let _ = reply.send(Err(error));
            }
            Ok(Some(id)) => self.commit_to(id, commit.index, reply),
            Ok(None) => self.new_subscription(name.clone(), Place::Index(commit.index), reply),
        }
    }

    /// The subscription that is to move; `None` when it is to be created.
    fn check_commit(&self, commit: &pull::Commit) -> Result<Option<SubscriptionId>, BrokerError> {
        if let Some(error) = self.refusal() {
            return Err(error);
        }
        self.check_incarnation(commit.incarnation)?;
        check_index(commit.index, self.visible_end())?;
        let name = &commit.subscription;
        let Some(id) = self.subscriptions.by_name(name) else {
            return match commit.create {
                true => Ok(None),
                false => Err(not_found(name)),
            };
        };
        match self.subscriptions.get(id) {
            Some(slot) if slot.is_uncertain => Err(BrokerError::Uncertain(name.to_string())),
            Some(slot) if slot.deleting => Err(BrokerError::Unloading(format!(
                "subscription {name} is being deleted"
            ))),
            // What moves it again must not fill memory while the cursor log cannot be written.
            Some(_) if self.cursors.is_full() => Err(BrokerError::Log(LogError::Overloaded)),
            _ => Ok(Some(id)),
        }
    }

    fn commit_to(&mut self, id: SubscriptionId, index: Index, reply: Reply<Index>) {
        let index = index.max(self.log.first());
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        match slot.state.commit(index) {
            Commit::Back(epoch) => {
                self.record_move(id, epoch, index, Mover::Admin(reply));
            }
            Commit::Forward(delta) => {
                let logged = cursor_log::acknowledged(slot.state.name(), &delta);
                let effect = Effect::Committed(id, Some(delta), reply);
                self.cursors.log_change(logged, effect);
                self.subscriptions.wake(id);
            }
            // What stands already may not be durable yet.
            Commit::Unchanged => {
                let effect = Effect::Committed(id, None, reply);
                if let Some(effect) = self.cursors.after_pending(effect) {
                    self.apply(effect);
                }
            }
        }
    }

    /// A commit is durable.
    pub(super) fn committed(
        &mut self,
        id: SubscriptionId,
        delta: Option<AckDelta>,
        reply: Reply<Index>,
    ) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            let gone = "the subscription was deleted meanwhile".to_owned();
            let _ = reply.send(Err(BrokerError::Unloading(gone)));
            return;
        };
        if let Some(delta) = delta {
            slot.state.confirm(&delta);
        }
        let _ = reply.send(Ok(slot.state.mark_delete()));
    }
}

/// Nothing can be asked of what lies behind the visible end.
fn check_index(index: Index, end: Index) -> Result<(), BrokerError> {
    if index <= end {
        return Ok(());
    }
    Err(BrokerError::invalid(
        format!("index {index} is behind the end, {end}"),
        "give an index within the bounds of the topic",
    ))
}
