//! What deliveries may hold in memory (I13). A read takes room before it begins; each delivery
//! keeps its part of that until its client's transport has taken it. The budget is a tree (topic,
//! subscription): clients that do not read keep what they have and leave a share to the others,
//! however many they are.

use std::sync::Arc;

use aquifer_log::LogEntry;
use aquifer_protocol_api::consumer::Delivery;
use aquifer_runtime::budget::{ByteBudget, BytePermit};

use crate::subscription::NextRead;
use crate::topic::Topic;
use crate::topic::event::{Event, SubscriptionId};

/// What a delivery costs besides its batch.
const DELIVERY_BYTES: usize = 256;

/// What an entry costs on its way to a client.
pub(super) fn cost(entry: &LogEntry) -> usize {
    entry.body.len() + DELIVERY_BYTES
}

/// What a delivery keeps until it is on its way.
pub(super) fn held_by(delivery: &Delivery) -> usize {
    delivery.body.len() + DELIVERY_BYTES
}

/// The entries at the front that there is room for.
pub(super) fn fitting(entries: &[LogEntry], room_bytes: usize) -> usize {
    let mut left = room_bytes;
    let fits = |entry: &&LogEntry| match left.checked_sub(cost(entry)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    entries.iter().take_while(fits).count()
}

impl Topic {
    pub(super) fn budget_of(&mut self, id: SubscriptionId) -> Option<ByteBudget> {
        let whole = &self.rooms.deliveries;
        let slot = self.subscriptions.get_mut(id)?;
        let budget = slot.budget.get_or_insert_with(|| whole.child(usize::MAX));
        Some(budget.clone())
    }

    /// Room for a read, or for what there is room for of it; `None` when it has to wait.
    pub(super) fn room_for(&mut self, id: SubscriptionId, read: &NextRead) -> Option<BytePermit> {
        let budget = self.budget_of(id)?;
        let slot = self.subscriptions.get_mut(id)?;
        // An entry is read as a whole: less than one as large as the last does not help.
        let least = slot.entry_bytes.max(DELIVERY_BYTES);
        let overhead = read.entries_max.saturating_mul(DELIVERY_BYTES);
        let most = read.bytes_max.saturating_add(overhead).max(least);
        let wanted = most.min(budget.room_bytes()).max(least);
        if let Some(room) = budget.try_acquire(wanted) {
            return Some(room);
        }
        self.wait_for_room(id, &budget, least);
        None
    }

    fn wait_for_room(&mut self, id: SubscriptionId, budget: &ByteBudget, bytes: usize) {
        let Some(slot) = self.subscriptions.get_mut(id) else {
            return;
        };
        if let Some(point) = &mut slot.point {
            // Others have a use for it meanwhile.
            point.release();
        }
        if std::mem::replace(&mut slot.awaits_room, true) {
            return;
        }
        let room = budget.acquire(bytes);
        let mailbox = self.mailbox.clone();
        let token = self.shared.tasks.shutdown_token();
        self.shared.tasks.spawn("delivery-room", async move {
            let room = tokio::select! {
                room = room => room,
                () = mailbox.closed() => return,
                () = token.wait() => return,
            };
            // A topic that is gone does not care.
            let _ = mailbox.send(Event::Room(id, room)).await;
        });
    }

    /// Room has come.
    pub(in crate::topic) fn room_came(&mut self, id: SubscriptionId, room: BytePermit) {
        if let Some(slot) = self.subscriptions.get_mut(id) {
            slot.awaits_room = false;
            slot.room = Some(room);
            self.subscriptions.wake(id);
        }
    }

    /// Sees to it that there is room for the first of these entries, which is larger than expected.
    pub(super) fn room_for_first(
        &mut self,
        id: SubscriptionId,
        room: &mut BytePermit,
        first: &LogEntry,
    ) -> bool {
        let wanted = cost(first);
        let Some(budget) = self.budget_of(id) else {
            return false;
        };
        if let Some(slot) = self.subscriptions.get_mut(id) {
            slot.entry_bytes = wanted;
        }
        // Given back first: a child that holds nothing may take whatever is free.
        room.shrink_to(0);
        match budget.try_acquire(wanted) {
            Some(enough) => {
                *room = enough;
                true
            }
            None => {
                self.wait_for_room(id, &budget, wanted);
                false
            }
        }
    }
}

/// The parts of the broker's budgets that a topic has.
pub(in crate::topic) struct Rooms {
    /// Frames that wait for storage.
    pub(in crate::topic) publish: ByteBudget,
    /// Deliveries, from the read to the client's transport.
    pub(in crate::topic) deliveries: ByteBudget,
}

impl Rooms {
    pub(in crate::topic) fn new(shared: &Arc<crate::context::Context>) -> Rooms {
        // Below what a log takes: a topic is slowed here before its log has to refuse.
        let of_log = shared.log.settings.pending_bytes_per_log_max;
        Rooms {
            publish: shared.publish_budget.child(of_log),
            deliveries: shared.read_budget.child(usize::MAX),
        }
    }
}
