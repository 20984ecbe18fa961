//! Subscriptions whose record is damaged: the messages of their topic are served, they wait, and an
//! operator lets them go on from what is whole.
//!
//! Invariant (I9): an acknowledgement that may be lost is never passed over in silence. What is accepted
//! as lost is told with its extent, and counts when a snapshot of what was left is durable.

use aquifer_model::id::Index;
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::admin::SubscriptionReset;

use crate::subscription::SubscriptionSpec;
use crate::subscription::cursor::Properties;
use crate::subscription::cursor::state::CursorState;
use crate::topic::Topic;
use crate::topic::event::Reply;

impl Topic {
    /// Lets all of them go on, and answers from where each does.
    pub(super) fn reset_cursors(&mut self, reply: Reply<Vec<SubscriptionReset>>) {
        if let Some(ending) = &self.ending {
            let _ = reply.send(Err(ending.error.clone()));
            return;
        }
        let Some(losses) = self.losses.take() else {
            let _ = reply.send(Ok(Vec::new()));
            return;
        };
        let (first, end) = (self.log.first(), self.visible_end());
        let mut account = Vec::new();
        for slot in self.subscriptions.iter_mut().filter(|s| s.is_uncertain) {
            slot.is_uncertain = false;
            slot.state.after_loss();
            account.push(SubscriptionReset {
                name: slot.state.name().to_owned(),
                mark_delete: slot.state.mark_delete(),
                repeated_messages: slot.state.backlog(end),
                name_only: false,
            });
        }
        for name in losses.nameless {
            // Made anew meanwhile, and known from then on.
            if self.subscriptions.by_name(&name).is_some() {
                continue;
            }
            account.push(SubscriptionReset {
                name: name.to_string(),
                mark_delete: first,
                repeated_messages: end.0 - first.0,
                name_only: true,
            });
            let spec = SubscriptionSpec {
                name: name.to_string(),
                // Whoever attaches first decides.
                kind: SubscriptionType::Exclusive,
                durable: true,
                cursor: CursorState::new(first).after_loss(),
                delivered: Index(0),
                properties: Properties::new(),
                redelivered: Vec::new(),
                created_ms: self.shared.clock.wall_ms(),
            };
            self.subscriptions.recovered(name, spec, false);
        }
        tracing::warn!(topic = %self.name, reason = losses.reason, ?account, "subscriptions go on from what is whole");
        self.cursors.begin_anew();
        self.resets.push((reply, account));
    }

    /// A snapshot of what was left is durable.
    pub(super) fn reset_done(&mut self) {
        for (reply, account) in std::mem::take(&mut self.resets) {
            let _ = reply.send(Ok(account));
        }
    }
}
