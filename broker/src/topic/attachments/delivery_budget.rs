//! What deliveries may hold in memory (I13). A read takes bytes before it begins; each delivery
//! keeps its part of that until its client's transport has taken it. The budget is a tree (topic,
//! subscription): clients that do not read keep what they have and leave a share to the others,
//! however many they are.

use aquifer_log::LogEntry;
use aquifer_protocol_api::consumer::Delivery;
use aquifer_runtime::budget::{ByteBudget, BytePermit};

use crate::subscription::NextRead;
use crate::topic::context::TopicContext;
use crate::topic::event::{Event, SubscriptionId};

/// What a delivery costs besides its batch.
const DELIVERY_BYTES: usize = 256;

/// What an entry costs from the read to the client.
pub(super) fn cost(entry: &LogEntry) -> usize {
    entry.body.len() + DELIVERY_BYTES
}

/// What a delivery keeps until the transport has taken it.
pub(super) fn held_by(delivery: &Delivery) -> usize {
    delivery.body.len() + DELIVERY_BYTES
}

/// The entries at the front that fit.
pub(super) fn fitting(entries: &[LogEntry], free_bytes: usize) -> usize {
    let mut left = free_bytes;
    let fits = |entry: &&LogEntry| match left.checked_sub(cost(entry)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    entries.iter().take_while(fits).count()
}

/// The part of the budget that one subscription has, and what it waits for.
#[derive(Default)]
pub(super) struct DeliveryBudget {
    /// What its deliveries take their bytes from, once there are some.
    budget: Option<ByteBudget>,
    /// Bytes that it has waited for.
    came: Option<BytePermit>,
    is_awaited: bool,
    /// What the last entry cost that was larger than expected.
    entry_bytes: usize,
}

impl DeliveryBudget {
    /// The budget of the subscription.
    pub(super) fn budget(&mut self, cx: &TopicContext) -> ByteBudget {
        let whole = &cx.budgets.deliveries;
        let own = self.budget.get_or_insert_with(|| whole.child(usize::MAX));
        own.clone()
    }

    /// Whether the subscription waits for bytes.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// Bytes that were waited for have come.
    pub(super) fn came(&mut self, bytes: BytePermit) {
        self.is_awaited = false;
        self.came = Some(bytes);
    }

    /// The bytes that were waited for, if they have come.
    pub(super) fn take_waited(&mut self) -> Option<BytePermit> {
        self.came.take()
    }

    /// Entries are as small as expected again.
    pub(super) fn fitted(&mut self) {
        self.entry_bytes = 0;
    }

    /// Bytes for a read, or for a part of it; `None` when it has to wait.
    pub(super) fn acquire(
        &mut self,
        cx: &TopicContext,
        id: SubscriptionId,
        read: &NextRead,
    ) -> Option<BytePermit> {
        let budget = self.budget(cx);
        // An entry is read as a whole: less than one as large as the last does not help.
        let least = self.entry_bytes.max(DELIVERY_BYTES);
        let overhead = read.entries_max.saturating_mul(DELIVERY_BYTES);
        let most = read.bytes_max.saturating_add(overhead).max(least);
        let wanted = most.min(budget.room_bytes()).max(least);
        let permit = budget.try_acquire(wanted);
        if permit.is_none() {
            self.wait(cx, id, &budget, least);
        }
        permit
    }

    /// Takes more bytes for a read for its first entry, which is larger than expected; false when
    /// that has to wait.
    pub(super) fn enlarge(
        &mut self,
        cx: &TopicContext,
        id: SubscriptionId,
        permit: &mut BytePermit,
        first: &LogEntry,
    ) -> bool {
        let (wanted, budget) = (cost(first), self.budget(cx));
        self.entry_bytes = wanted;
        // Given back first: a child that holds nothing may take whatever is free.
        permit.shrink_to(0);
        match budget.try_acquire(wanted) {
            Some(enough) => {
                *permit = enough;
                true
            }
            None => {
                self.wait(cx, id, &budget, wanted);
                false
            }
        }
    }

    fn wait(&mut self, cx: &TopicContext, id: SubscriptionId, budget: &ByteBudget, bytes: usize) {
        if std::mem::replace(&mut self.is_awaited, true) {
            return;
        }
        let permit = budget.acquire(bytes);
        let mailbox = cx.mailbox.clone();
        let token = cx.shared.tasks.shutdown_token();
        cx.shared.tasks.spawn("delivery-bytes", async move {
            let bytes = tokio::select! {
                permit = permit => permit,
                () = mailbox.closed() => return,
                () = token.wait() => return,
            };
            // A topic that has ended needs no bytes.
            let _ = mailbox.send(Event::DeliveryBytes(id, bytes)).await;
        });
    }
}
