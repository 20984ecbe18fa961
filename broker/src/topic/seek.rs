//! Places: looked up in the log aside, then a reader or subscription begins there, or moves there.
//! Also deletes subscriptions, which like moving ends in a record of the cursor log.
//!
//! A move takes effect in memory at once, so that what was in flight is void, and is told to the
//! clients when it is durable; until then nothing is delivered (H12).

use aquifer_log::error::LogError;
use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::place::Place;
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::consumer::{ConsumerEvent, IndexRange};

use crate::cursor_log;
use crate::error::BrokerError;
use crate::subscription::ConsumerId;
use crate::topic::Topic;
use crate::topic::cursors::Effect;
use crate::topic::event::{Event, LocatePurpose, Mover, Reply, SubscriptionId};

impl Topic {
    /// Looks a place up aside.
    pub(super) fn locate(&mut self, place: Place, purpose: LocatePurpose) {
        let known = match place {
            Place::Earliest => Some(self.log.first()),
            Place::Latest => Some(self.visible_end()),
            Place::Index(index) => Some(index.clamp(self.log.first(), self.visible_end())),
            Place::Position(_) | Place::TimeMs(_) => None,
        };
        if let Some(index) = known {
            self.located(purpose, Ok(index));
            return;
        }
        let (log, mailbox) = (self.log.clone(), self.mailbox.clone());
        self.shared.tasks.spawn("topic-locate", async move {
            let result = log.locate(place).await;
            // A topic that is gone has refused its requesters.
            let purpose = Box::new(purpose);
            let _ = mailbox.send(Event::Located { purpose, result }).await;
        });
    }

    pub(super) fn located(&mut self, purpose: LocatePurpose, result: Result<Index, LogError>) {
        // What the log has and consumers may not see yet is no place to begin.
        let end = self.visible_end();
        let result = result.map(|index| index.min(end));
        let result = result.map_err(|error| match error {
            LogError::Invalid(message) => BrokerError::invalid(
                message,
                "give an index, a time, earliest, latest, or a position of this topic",
            ),
            other => BrokerError::Log(other),
        });
        match purpose {
            LocatePurpose::Reader(request, reply) => match result {
                Ok(start) => self.open_reader(start, &request, reply),
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            LocatePurpose::Create(name) => self.create_subscription(name, result),
            LocatePurpose::Seek {
                subscription,
                consumer,
                request_id,
            } => match result {
                Ok(index) => {
                    self.move_to(subscription, index, Mover::Consumer(consumer, request_id));
                }
                // The subscription stays where it is, and so do its consumers.
                Err(error) => {
                    let error = error.into();
                    let refused = ConsumerEvent::SeekRefused { request_id, error };
                    self.tell(subscription, consumer, refused);
                }
            },
            LocatePurpose::AdminSeek {
                subscription,
                reply,
            } => match result {
                Ok(index) => self.move_to(subscription, index, Mover::Admin(reply)),
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
        }
    }

    fn move_to(&mut self, id: SubscriptionId, index: Index, mover: Mover) {
        let Some(slot) = self.subscriptions.get_mut(id).filter(|slot| !slot.deleting) else {
            if let Mover::Admin(reply) = mover {
                let _ = reply.send(Err(BrokerError::Unloading(
                    "the subscription is being deleted".to_owned(),
                )));
            }
            return;
        };
        let epoch = slot.state.seek(index);
        slot.held += 1;
        let effect = Effect::Moved {
            id,
            epoch,
            index,
            mover,
        };
        if slot.state.is_durable() {
            let delta = cursor_log::moved(slot.state.name(), epoch, index);
            self.cursors.log_change(delta, effect);
        } else {
            self.apply(effect);
        }
    }

    /// A move is durable.
    pub(super) fn moved(
        &mut self,
        id: SubscriptionId,
        epoch: SeekEpoch,
        index: Index,
        mover: Mover,
    ) {
        let mut requested = None;
        match mover {
            Mover::Consumer(consumer, request_id) => requested = Some((consumer, request_id)),
            Mover::Admin(reply) => {
                let _ = reply.send(Ok(index));
            }
        }
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        slot.held -= 1;
        slot.state.confirm_seek(epoch, index);
        let consumers: Vec<ConsumerId> = slot.consumers.keys().copied().collect();
        for consumer in consumers {
            let request_id = match requested {
                Some((mover, request_id)) if mover == consumer => request_id,
                Some(_) | None => 0,
            };
            self.tell(
                id,
                consumer,
                ConsumerEvent::SeekDone {
                    request_id,
                    seek_epoch: epoch,
                    index,
                },
            );
        }
        self.subscriptions.wake(id);
    }

    pub(super) fn seek_subscription(
        &mut self,
        name: &SubscriptionName,
        place: Place,
        reply: Reply<Index>,
    ) {
        match self.find_subscription(name) {
            Ok(subscription) => self.locate(
                place,
                LocatePurpose::AdminSeek {
                    subscription,
                    reply,
                },
            ),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Gives messages up: those of a range, or what is known to be damaged.
    pub(super) fn skip(
        &mut self,
        name: &SubscriptionName,
        range: Option<IndexRange>,
        reply: Reply<Vec<IndexRange>>,
    ) {
        let id = match self.find_subscription(name) {
            Ok(id) => id,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let end = self.visible_end();
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        let delta = slot.state.skip(range, end);
        if delta.individual.is_empty() {
            let _ = reply.send(Ok(Vec::new()));
            return;
        }
        tracing::warn!(topic = %self.name, subscription = %name, ranges = ?delta.individual, "messages are skipped on command");
        let logged = cursor_log::acknowledged(slot.state.name(), &delta);
        let effect = Effect::Skipped { id, delta, reply };
        self.cursors.log_change(logged, effect);
        self.subscriptions.wake(id);
    }

    pub(super) fn delete_subscription(
        &mut self,
        name: &SubscriptionName,
        force: bool,
        reply: Reply<()>,
    ) {
        self.drop_dead_sessions();
        let id = match self.find_subscription(name) {
            Ok(id) => id,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        if slot.deleting {
            let _ = reply.send(Err(not_found(name)));
            return;
        }
        if !force && !slot.consumers.is_empty() {
            let _ = reply.send(Err(BrokerError::InUse(format!("subscription {name}"))));
            return;
        }
        slot.deleting = true;
        slot.held += 1;
        self.fail_consumers_of(id, &not_found(name));
        let delta = cursor_log::deleted(name.as_str());
        self.cursors.log_change(delta, Effect::Deleted(id, reply));
    }

    /// A deletion is durable.
    pub(super) fn subscription_deleted(&mut self, id: SubscriptionId, reply: Reply<()>) {
        self.subscriptions.remove(id);
        let _ = reply.send(Ok(()));
        self.trim();
    }

    fn find_subscription(&self, name: &SubscriptionName) -> Result<SubscriptionId, BrokerError> {
        match &self.ending {
            Some(ending) => Err(ending.error.clone()),
            None => self
                .subscriptions
                .by_name(name)
                .ok_or_else(|| not_found(name)),
        }
    }
}

fn not_found(name: &SubscriptionName) -> BrokerError {
    BrokerError::NotFound {
        what: "subscription",
        name: name.to_string(),
        advice: "correct its name; the topic's statistics list the subscriptions".to_owned(),
    }
}
