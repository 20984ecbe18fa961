//! Places: looked up in the log beside the task, then a reader or subscription begins there, or
//! moves there. Messages are given up and subscriptions deleted here as well, which like moving
//! ends in a record of the cursor log.
//!
//! A move takes effect in memory at once, so that what was in flight is void, and is told to the
//! clients when it is durable; until then nothing is delivered (H12).

use aquifer_log::error::LogError;
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::consumer::{ConsumerEvent, IndexRange};

use crate::cursor_log;
use crate::error::BrokerError;
use crate::topic::attachments::Attachments;
use crate::topic::attachments::slot::being_deleted;
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Effect};
use crate::topic::event::{Event, LocatePurpose, Reply, Seeker, SubscriptionId};

impl Attachments {
    /// Looks a place up, beside the task where the log has to be read.
    pub(super) fn locate(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        place: Place,
        purpose: LocatePurpose,
    ) {
        let known = match place {
            Place::Earliest => Some(cx.log.first()),
            Place::Latest => Some(cx.visible_end()),
            Place::Index(index) => Some(index.clamp(cx.log.first(), cx.visible_end())),
            Place::Position(_) | Place::TimeMs(_) => None,
        };
        if let Some(index) = known {
            self.located(cx, cursors, purpose, Ok(index));
            return;
        }
        let (log, mailbox) = (cx.log.clone(), cx.mailbox.clone());
        cx.shared.tasks.spawn("topic-locate", async move {
            let result = log.locate(place).await;
            // A topic that has ended has refused its requesters.
            let located = Event::Located(Box::new(purpose), result);
            let _ = mailbox.send(located).await;
        });
    }

    /// A place was found, or could not be.
    pub(in crate::topic) fn located(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        purpose: LocatePurpose,
        result: Result<Index, LogError>,
    ) {
        // What the log has and consumers may not see yet is no place to begin.
        let end = cx.visible_end();
        let result = result.map(|index| index.min(end));
        let result = result.map_err(BrokerError::no_place);
        match (purpose, result) {
            (LocatePurpose::Reader(request, reply), Ok(start)) => {
                self.open_reader(cx, cursors, start, &request, reply);
            }
            (LocatePurpose::Reader(_, reply), Err(error)) => drop(reply.send(Err(error))),
            (LocatePurpose::Create(name), result) => self.create_at(cx, cursors, name, result),
            (
                LocatePurpose::Seek {
                    subscription,
                    consumer,
                    request_id,
                },
                Ok(index),
            ) => {
                let seeker = Seeker::Consumer(consumer, request_id);
                self.seek_to(cx, cursors, subscription, index, seeker);
            }
            // The subscription stays where it is, and so do its consumers.
            (
                LocatePurpose::Seek {
                    subscription,
                    consumer,
                    request_id,
                },
                Err(error),
            ) => {
                let error = error.into();
                let refused = ConsumerEvent::SeekRefused { request_id, error };
                self.with(cx, subscription, |slot| slot.tell(cx, consumer, refused));
            }
            (
                LocatePurpose::AdminSeek {
                    subscription,
                    reply,
                },
                Ok(index),
            ) => self.seek_to(cx, cursors, subscription, index, Seeker::Admin(reply)),
            (LocatePurpose::AdminSeek { reply, .. }, Err(error)) => drop(reply.send(Err(error))),
            // The topic carries that out.
            (LocatePurpose::Backlog(_), _) => {}
        }
    }

    fn seek_to(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        id: SubscriptionId,
        index: Index,
        seeker: Seeker,
    ) {
        let mut waiting = Some(seeker);
        let durable_already = self.with(cx, id, |slot| {
            let seeker = waiting.take_if(|_| !slot.deleting)?;
            let epoch = slot.state.seek(index);
            slot.record_seek(cursors, epoch, index, seeker)
        });
        if let Some(effect) = durable_already.flatten() {
            self.apply(cx, cursors, effect);
        }
        if let Some(Seeker::Admin(reply)) = waiting {
            let _ = reply.send(Err(being_deleted()));
        }
    }

    /// Moves a subscription for an administrator.
    pub(in crate::topic) fn seek(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        name: &SubscriptionName,
        place: Place,
        reply: Reply<Index>,
    ) {
        match self.find(cx, name) {
            Ok(subscription) => {
                let purpose = LocatePurpose::AdminSeek {
                    subscription,
                    reply,
                };
                self.locate(cx, cursors, place, purpose);
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Gives messages up: those of a range, or what is known to be damaged.
    pub(in crate::topic) fn skip(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        name: &SubscriptionName,
        range: Option<IndexRange>,
        reply: Reply<Vec<IndexRange>>,
    ) {
        let id = match self.find(cx, name) {
            Ok(id) => id,
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.with(cx, id, |slot| {
            let delta = slot.state.skip(range, cx.visible_end());
            if delta.individual.is_empty() {
                return drop(reply.send(Ok(Vec::new())));
            }
            tracing::warn!(topic = %cx.name, subscription = %name, ranges = ?delta.individual, "messages are skipped on command");
            let logged = cursor_log::acknowledged(slot.state.name(), &delta);
            cursors.log_change(logged, Effect::Skipped { id, delta, reply });
            slot.wake();
        });
    }

    /// Deletes a subscription, unless consumers are connected and it is not forced.
    pub(in crate::topic) fn delete(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        name: &SubscriptionName,
        force: bool,
        reply: Reply<()>,
    ) {
        let id = match self.find(cx, name) {
            Ok(id) => id,
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.with(cx, id, |slot| {
            if slot.deleting {
                return drop(reply.send(Err(BrokerError::no_subscription(name))));
            }
            if !force && !slot.consumers.is_empty() {
                let used = BrokerError::InUse(format!("subscription {name}"));
                return drop(reply.send(Err(used)));
            }
            slot.deleting = true;
            slot.held += 1;
            slot.fail_all(cx, &BrokerError::no_subscription(name));
            let delta = cursor_log::deleted(name.as_str());
            cursors.log_change(delta, Effect::Deleted(id, reply));
        });
    }

    fn find(
        &self,
        cx: &TopicContext,
        name: &SubscriptionName,
    ) -> Result<SubscriptionId, BrokerError> {
        if let Some(error) = cx.life.ended() {
            return Err(error);
        }
        let found = self.subscriptions.by_name(name);
        found.ok_or_else(|| BrokerError::no_subscription(name))
    }
}
