//! When ledgers of a topic are offloaded, and what of its copies must stay.

use aquifer_log::TopicLog;

use crate::topic::Topic;
use crate::topic::event::Reply;

impl Topic {
    /// Has ledgers offloaded. A load replays what the snapshot of the producers does not cover: the
    /// copies of that stay, until there is a newer one.
    pub(super) fn care_for_offload(&mut self) {
        if self.cx.life.is_ending() {
            return;
        }
        let covered = self.cursors.dedup_index();
        // A subscription that is missing may need anything.
        let unneeded = match self.attachments.is_whole() {
            true => self.trim_limit(),
            false => self.cx.log.first(),
        };
        self.cx.log.care_for_offload(covered, unneeded);
        if self.cx.log.awaits_snapshot(covered) {
            self.cursors.want_snapshot();
        }
    }

    /// Whether it stays loaded for its offload.
    pub(super) fn awaits_offload(&self) -> bool {
        self.cx.log.awaits_offload(self.cursors.dedup_index())
    }

    /// The topic was loaded since something of it is to be offloaded, or was left open. If no
    /// client uses it, it ends when that is done.
    pub(super) fn offload_visit(&mut self, reply: Reply<TopicLog>) {
        if let Some(error) = self.cx.life.ended() {
            let _ = reply.send(Err(error)); // a requester that went away needs no answer
            return;
        }
        self.trimming.note_visit();
        self.trim();
        self.care_for_offload();
        let _ = reply.send(Ok(self.cx.log.clone()));
    }
}
