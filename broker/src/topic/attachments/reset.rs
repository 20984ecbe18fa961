//! Subscriptions whose record is damaged: the messages of their topic are served, they wait, and an
//! operator lets them continue from what is whole.
//!
//! Invariant (I9): an acknowledgement that may be lost is never passed over in silence. What is
//! accepted as lost is told with its extent, and counts when a snapshot of what was left is
//! durable.

use aquifer_model::id::Index;
use aquifer_model::subscription::{Properties, SubscriptionType};
use aquifer_protocol_api::admin::SubscriptionReset;

use crate::subscription::SubscriptionSpec;
use crate::subscription::cursor::state::CursorState;
use crate::topic::attachments::Attachments;
use crate::topic::context::TopicContext;
use crate::topic::event::Reply;

impl Attachments {
    /// Lets all of them continue, and answers from where each does, when a snapshot is durable.
    /// Answers here whether the cursor log is to begin again with that snapshot.
    pub(in crate::topic) fn reset(
        &mut self,
        cx: &TopicContext,
        reply: Reply<Vec<SubscriptionReset>>,
    ) -> bool {
        if let Some(error) = cx.life.ended() {
            let _ = reply.send(Err(error));
            return false;
        }
        let Some(losses) = self.losses.take() else {
            let _ = reply.send(Ok(Vec::new()));
            return false;
        };
        let (first, end) = (cx.log.first(), cx.visible_end());
        let mut account = Vec::new();
        for slot in self.subscriptions.iter_mut().filter(|s| s.is_uncertain) {
            slot.is_uncertain = false;
            slot.state.after_loss();
            account.push(SubscriptionReset {
                topic: cx.name.clone(),
                name: slot.state.name().to_owned(),
                mark_delete: slot.state.mark_delete(),
                repeated_messages: slot.state.backlog(end),
                name_only: false,
            });
        }
        for name in losses.nameless {
            // Created again meanwhile, and known from then on.
            if self.subscriptions.by_name(&name).is_some() {
                continue;
            }
            account.push(SubscriptionReset {
                topic: cx.name.clone(),
                name: name.to_string(),
                mark_delete: first,
                repeated_messages: end.0 - first.0,
                name_only: true,
            });
            let spec = SubscriptionSpec {
                name: name.to_string(),
                // The first consumer decides.
                kind: SubscriptionType::Exclusive,
                durable: true,
                cursor: CursorState::new(first).after_loss(),
                delivered: Index(0),
                properties: Properties::new(),
                redelivered: Vec::new(),
                created_ms: cx.wall_ms(),
            };
            self.recovered(name, spec);
        }
        tracing::warn!(topic = %cx.name, reason = losses.reason, ?account, "subscriptions continue from what is whole");
        self.resets.push((reply, account));
        true
    }

    /// A snapshot of what was left is durable.
    pub(in crate::topic) fn reset_done(&mut self) {
        for (reply, account) in std::mem::take(&mut self.resets) {
            let _ = reply.send(Ok(account));
        }
    }
}
