//! What a subscription has not acknowledged: shown, or given up on command. The answer follows the
//! record in the cursor log (I9).

use aquifer_log::error::LogError;
use aquifer_model::id::Index;
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::consumer::IndexRange;

use crate::cursor_log;
use crate::error::BrokerError;
use crate::subscription::cursor::Commit;
use crate::topic::attachments::Attachments;
use crate::topic::attachments::slot::{Slot, being_deleted};
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Effect};
use crate::topic::event::{Reply, SubscriptionId};
use crate::topic::pull::ClearTo;

impl Attachments {
    /// Gives up what a subscription has not acknowledged. Answers how many messages that were.
    pub(in crate::topic) fn clear(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        clear: &ClearTo,
        reply: Reply<u64>,
    ) {
        let checked = cx.check_incarnation(clear.incarnation);
        let found = checked.and_then(|()| self.known(cx, &clear.subscription));
        let id = match found {
            // What is cleared again must not fill memory while the cursor log cannot be written.
            Ok(_) if cursors.is_full() => {
                return drop(reply.send(Err(BrokerError::Log(LogError::Overloaded))));
            }
            Ok(id) => id,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let end = cx.visible_end();
        let index = clear.index.map_or(end, |index| index.min(end));
        let done_already = self.with(cx, id, |slot: &mut Slot| {
            let messages = slot.state.backlog(index);
            if clear.dry_run {
                let _ = reply.send(Ok(messages));
                return None;
            }
            let commit = match slot.state.mark_delete() < index {
                true => slot.state.commit(index),
                false => Commit::Unchanged,
            };
            let delta = match commit {
                Commit::Forward(delta) => delta,
                // The record of what is acknowledged already may still be in flight.
                Commit::Unchanged | Commit::Back(_) => {
                    return cursors.after_pending(Effect::Cleared {
                        id,
                        delta: None,
                        messages,
                        reply,
                    });
                }
            };
            let (topic, subscription) = (&cx.name, &clear.subscription);
            tracing::info!(%topic, %subscription, messages, "a backlog is given up on command");
            let logged = cursor_log::acknowledged(slot.state.name(), &delta);
            let delta = Some(delta);
            let effect = Effect::Cleared {
                id,
                delta,
                messages,
                reply,
            };
            cursors.log_change(logged, effect);
            slot.wake();
            None
        });
        if let Some(effect) = done_already.flatten() {
            self.apply(cx, cursors, effect);
        }
    }

    /// The next messages that a subscription has not acknowledged, `limit` at most.
    pub(in crate::topic) fn next_unacknowledged(
        &self,
        cx: &TopicContext,
        name: &SubscriptionName,
        limit: usize,
    ) -> Result<Vec<IndexRange>, BrokerError> {
        let id = self.known(cx, name)?;
        let Some(slot) = self.subscriptions.get(id) else {
            return Err(BrokerError::no_subscription(name));
        };
        let mut left = limit as u64;
        let mut ranges = Vec::new();
        let (mut at, end) = (
            slot.state.mark_delete().max(cx.log.first()),
            cx.visible_end(),
        );
        // Each round takes one message at least.
        while left > 0 {
            at = slot.state.next_unacknowledged(at);
            if at >= end {
                break;
            }
            let window = at.0..end.0.min(at.0.saturating_add(left));
            at = Index(window.end);
            for part in slot.state.unacknowledged(window) {
                left = left.saturating_sub(part.end - part.start);
                ranges.push(IndexRange {
                    first: Index(part.start),
                    last: Index(part.end - 1),
                });
            }
        }
        Ok(ranges)
    }

    /// A subscription of which is known what it has acknowledged.
    fn known(
        &self,
        cx: &TopicContext,
        name: &SubscriptionName,
    ) -> Result<SubscriptionId, BrokerError> {
        if let Some(error) = cx.refusal() {
            return Err(error);
        }
        let uncertain = || Err(BrokerError::Uncertain(name.to_string()));
        let Some(id) = self.subscriptions.by_name(name) else {
            return match self.is_whole() {
                true => Err(BrokerError::no_subscription(name)),
                false => uncertain(),
            };
        };
        match self.subscriptions.get(id) {
            Some(slot) if slot.is_uncertain => uncertain(),
            Some(slot) if slot.deleting => Err(being_deleted()),
            Some(_) | None => Ok(id),
        }
    }
}
