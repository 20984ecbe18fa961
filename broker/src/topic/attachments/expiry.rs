//! Messages that are acknowledged by policy, whatever consumers do with them.

use aquifer_model::id::Index;

use crate::cursor_log;
use crate::subscription::cursor::Commit;
use crate::topic::attachments::Attachments;
use crate::topic::context::TopicContext;
use crate::topic::cursors::{Cursors, Effect};

impl Attachments {
    /// Acknowledges what lies before `index` for every durable subscription. Answers how many
    /// messages that were, of all of them.
    pub(in crate::topic) fn expire(
        &mut self,
        cx: &TopicContext,
        cursors: &mut Cursors,
        index: Index,
    ) -> u64 {
        let end = cx.visible_end();
        let index = index.max(cx.log.first()).min(end);
        let mut messages = 0u64;
        for id in self.subscriptions.ids() {
            // It is looked at again: what is logged must not fill memory.
            if cursors.is_full() {
                break;
            }
            self.with(cx, id, |slot| {
                let may_expire = slot.state.is_durable()
                    && slot.held == 0
                    && !slot.deleting
                    && !slot.is_uncertain
                    && slot.state.mark_delete() < index;
                if !may_expire {
                    return;
                }
                let before = slot.state.backlog(end);
                if let Commit::Forward(delta) = slot.state.commit(index) {
                    let after = slot.state.backlog(end);
                    messages = messages.saturating_add(before.saturating_sub(after));
                    let logged = cursor_log::acknowledged(slot.state.name(), &delta);
                    cursors.log_change(logged, Effect::Expired(id, delta));
                    slot.wake();
                }
            });
        }
        messages
    }
}
