//! Commits of positions by requests that stand alone: a subscription moves to an index, and is
//! created there if it does not exist. The answer follows the record in the cursor log (I9).

use aquifer_log::error::LogError;
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::subscription::Properties;
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::pull::Commit as Request;

use crate::cursor_log;
use crate::error::BrokerError;
use crate::subscription::cursor::{AckDelta, Commit};
use crate::topic::attachments::Attachments;
use crate::topic::attachments::slot::{Slot, being_deleted};
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Effect};
use crate::topic::event::{Reply, Seeker, SubscriptionId};
use crate::topic::pull::check_index;

impl Attachments {
    /// Moves a subscription to an index.
    pub(in crate::topic) fn commit(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        commit: Request,
        reply: Reply<Index>,
    ) {
        let index = commit.index;
        match self.check_commit(cx, cursors, &commit) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(Some(id)) => self.commit_to(cx, cursors, id, index, reply),
            Ok(None) => {
                let name = commit.subscription;
                let new = (Place::Index(index), Properties::new());
                self.create(cx, cursors, name, new, reply);
            }
        }
    }

    /// Where a subscription stands durably; `None` when no subscription has the name. One that a
    /// damaged cursor log may have lost is not said to be absent.
    pub(in crate::topic) fn committed_index(
        &self,
        cx: &TopicContext,
        name: &SubscriptionName,
    ) -> Result<Option<Index>, BrokerError> {
        if let Some(error) = cx.refusal() {
            return Err(error);
        }
        let id = self.subscriptions.by_name(name);
        match id.and_then(|id| self.subscriptions.get(id)) {
            Some(slot) if slot.is_uncertain => Err(BrokerError::Uncertain(name.to_string())),
            Some(slot) => Ok(Some(slot.state.durable_mark_delete())),
            None if !self.is_whole() => Err(BrokerError::Uncertain(name.to_string())),
            None => Ok(None),
        }
    }

    /// The subscription that is to move; `None` when it is to be created.
    fn check_commit(
        &self,
        cx: &TopicContext,
        cursors: &Cursors,
        commit: &Request,
    ) -> Result<Option<SubscriptionId>, BrokerError> {
        if let Some(error) = cx.refusal() {
            return Err(error);
        }
        cx.check_incarnation(commit.incarnation)?;
        check_index(commit.index, cx.visible_end())?;
        let name = &commit.subscription;
        let Some(id) = self.subscriptions.by_name(name) else {
            return match commit.create {
                true if cx.policies.borrow().auto_create_subscriptions => Ok(None),
                _ if !self.is_whole() => Err(BrokerError::Uncertain(name.to_string())),
                _ => Err(BrokerError::no_subscription(name)),
            };
        };
        match self.subscriptions.get(id) {
            Some(slot) if slot.is_uncertain => Err(BrokerError::Uncertain(name.to_string())),
            Some(slot) if slot.deleting => Err(being_deleted()),
            // What moves it again must not fill memory while the cursor log cannot be written.
            Some(_) if cursors.is_full() => Err(BrokerError::Log(LogError::Overloaded)),
            Some(_) | None => Ok(Some(id)),
        }
    }

    fn commit_to(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        id: SubscriptionId,
        index: Index,
        reply: Reply<Index>,
    ) {
        let index = index.max(cx.log.first());
        let durable_already = self.with(cx, id, |slot: &mut Slot| match slot.state.commit(index) {
            Commit::Back(epoch) => slot.record_seek(cursors, epoch, index, Seeker::Admin(reply)),
            Commit::Forward(delta) => {
                let logged = cursor_log::acknowledged(slot.state.name(), &delta);
                cursors.log_change(logged, Effect::Committed(id, Some(delta), reply));
                slot.wake();
                None
            }
            // The record of where it stands already may still be in flight.
            Commit::Unchanged => cursors.after_pending(Effect::Committed(id, None, reply)),
        });
        if let Some(effect) = durable_already.flatten() {
            self.apply(cx, cursors, effect);
        }
    }

    /// A commit is durable.
    pub(super) fn committed(
        &mut self,
        cx: &TopicContext,
        id: SubscriptionId,
        delta: Option<AckDelta>,
        reply: Reply<Index>,
    ) {
        let committed = self.with(cx, id, |slot| {
            if let Some(delta) = delta {
                slot.state.confirm(&delta);
            }
            // Acknowledgements that are in flight may have moved the mark further.
            slot.state.durable_mark_delete()
        });
        let gone = || BrokerError::Unloading("the subscription was deleted meanwhile".to_owned());
        let _ = reply.send(committed.ok_or_else(gone));
    }
}
