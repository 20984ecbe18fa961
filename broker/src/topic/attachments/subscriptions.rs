//! The subscriptions and readers of a topic, by id and by name, and the order in which they are
//! served.
//!
//! Invariant: a subscription is looked up for an event in one place, [`Subscriptions::with`], which
//! takes in what the event leaves behind: whether the subscription wants to be served, waits for
//! new messages or for a time, and whether it is over.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use aquifer_model::id::Index;
use aquifer_model::topic::SubscriptionName;

use crate::subscription::{ConsumerId, Subscription, SubscriptionSpec};
use crate::topic::attachments::slot::Slot;
use crate::topic::event::SubscriptionId;

/// See the module.
#[derive(Default)]
pub(super) struct Subscriptions {
    slots: BTreeMap<SubscriptionId, Slot>,
    names: HashMap<SubscriptionName, SubscriptionId>,
    /// To be served in this or a later turn, in order.
    ready: VecDeque<SubscriptionId>,
    /// At the end of the log, waiting for new messages.
    at_end: BTreeSet<SubscriptionId>,
    /// When something that is held back is due, ms since the Unix epoch, and of which subscription:
    /// one entry for each that has such messages.
    due: BTreeSet<(u64, SubscriptionId)>,
    next_id: u64,
}

impl Subscriptions {
    /// Takes in a subscription; one without a name is a reader.
    pub(super) fn insert(
        &mut self,
        name: Option<SubscriptionName>,
        spec: SubscriptionSpec,
    ) -> &mut Slot {
        self.next_id += 1;
        let id = SubscriptionId(self.next_id);
        if let Some(name) = name {
            self.names.insert(name, id);
        }
        let slot = || Slot::new(id, Subscription::new(spec));
        self.slots.entry(id).or_insert_with(slot)
    }

    /// The name of the next reader.
    pub(super) fn next_reader(&self) -> String {
        format!("reader-{}", self.next_id + 1)
    }

    pub(super) fn by_name(&self, name: &SubscriptionName) -> Option<SubscriptionId> {
        self.names.get(name).copied()
    }

    pub(super) fn get(&self, id: SubscriptionId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn ids(&self) -> Vec<SubscriptionId> {
        self.slots.keys().copied().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// All of them, for changes after which none wants to be served.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.values_mut()
    }

    /// Does something with a subscription, unless it is gone. Answers which sessions ended by that.
    pub(super) fn with<T>(
        &mut self,
        id: SubscriptionId,
        work: impl FnOnce(&mut Slot) -> T,
    ) -> Option<(T, Vec<ConsumerId>)> {
        let slot = self.slots.get_mut(&id)?;
        let answer = work(slot);
        let wants = slot.take_wants();
        if wants.turn && !std::mem::replace(&mut slot.queued, true) {
            self.ready.push_back(id);
        }
        if wants.new_messages {
            self.at_end.insert(id);
        }
        if wants.time {
            let due_ms = slot.state.next_due_ms();
            let before = std::mem::replace(&mut slot.due_ms, due_ms);
            if let Some(before) = before.filter(|before| Some(*before) != due_ms) {
                self.due.remove(&(before, id));
            }
            if let Some(due_ms) = due_ms {
                self.due.insert((due_ms, id));
            }
        }
        let ended = slot.take_ended();
        // A reader ends with its client.
        if !ended.is_empty() && !slot.state.is_durable() {
            self.remove(id);
        }
        Some((answer, ended))
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) {
        let Some(slot) = self.slots.remove(&id) else {
            return;
        };
        self.names.retain(|_, known| *known != id);
        self.at_end.remove(&id);
        if let Some(due_ms) = slot.due_ms {
            self.due.remove(&(due_ms, id));
        }
    }

    /// Has a subscription served soon.
    pub(super) fn wake(&mut self, id: SubscriptionId) {
        self.with(id, Slot::wake);
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next one to be served.
    pub(super) fn next_ready(&mut self) -> Option<SubscriptionId> {
        let id = self.ready.pop_front()?;
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.queued = false;
        }
        Some(id)
    }

    /// When the first of them is due, ms since the Unix epoch.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// Has those served that are due.
    pub(super) fn wake_due(&mut self, now_ms: u64) {
        while let Some(&(due_ms, id)) = self.due.first()
            && due_ms <= now_ms
        {
            self.due.pop_first();
            self.with(id, |slot| {
                slot.due_ms = None;
                slot.wake();
            });
        }
    }

    /// The log has new messages.
    pub(super) fn wake_at_end(&mut self) {
        for id in std::mem::take(&mut self.at_end) {
            self.wake(id);
        }
    }

    /// The log begins at `first` now.
    pub(super) fn trimmed(&mut self, first: Index) {
        for slot in self.slots.values_mut() {
            slot.state.trimmed(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::subscription::{Properties, SubscriptionType};

    use super::*;
    use crate::subscription::cursor::state::CursorState;

    fn spec(name: &str, durable: bool) -> SubscriptionSpec {
        SubscriptionSpec {
            name: name.to_owned(),
            kind: SubscriptionType::Exclusive,
            durable,
            cursor: CursorState::new(Index(0)),
            delivered: Index(0),
            properties: Properties::new(),
            redelivered: Vec::new(),
            created_ms: 0,
        }
    }

    fn add(all: &mut Subscriptions, name: &str) -> SubscriptionId {
        let known = SubscriptionName::new(name).unwrap();
        all.insert(Some(known), spec(name, true)).id
    }

    fn ready(all: &mut Subscriptions) -> Vec<SubscriptionId> {
        std::iter::from_fn(|| all.next_ready()).collect()
    }

    #[test]
    fn each_is_ready_once_in_the_order_in_which_it_was_woken() {
        let mut all = Subscriptions::default();
        let (a, b) = (add(&mut all, "a"), add(&mut all, "b"));
        for id in [b, a, b] {
            all.wake(id);
        }
        assert!(all.has_ready());
        assert_eq!(ready(&mut all), [b, a]);
        all.wake(b);
        assert_eq!(ready(&mut all), [b], "it may be woken again");
    }

    #[test]
    fn those_at_the_end_are_woken_by_new_messages_once() {
        let mut all = Subscriptions::default();
        let (a, b) = (add(&mut all, "a"), add(&mut all, "b"));
        all.with(b, Slot::wait_for_messages);
        all.with(a, Slot::wait_for_messages);
        all.wake_at_end();
        assert_eq!(ready(&mut all), [a, b]);
        all.wake_at_end();
        assert_eq!(ready(&mut all), []);
    }

    #[test]
    fn what_is_removed_is_gone_from_every_order() {
        let mut all = Subscriptions::default();
        let (a, b) = (add(&mut all, "a"), add(&mut all, "b"));
        all.with(a, Slot::wait_for_messages);
        all.wake(b);
        all.remove(a);
        all.remove(b);
        all.wake_at_end();
        let name = SubscriptionName::new("a").unwrap();
        assert_eq!((all.len(), all.by_name(&name)), (0, None));
        assert!(
            ready(&mut all)
                .iter()
                .all(|id| all.with(*id, |_| ()).is_none())
        );
    }
}
