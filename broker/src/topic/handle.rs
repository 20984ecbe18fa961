//! What the rest of the broker holds of a loaded topic, and what it may tell it.

use std::sync::{Arc, OnceLock};

use aquifer_model::id::TopicIncarnation;
use tokio::sync::watch;

use crate::bundle::ownership::Owned;
use crate::topic::event::{Departure, Event, Life, Mailbox};
use crate::traffic::TopicCounters;

/// A loaded topic.
#[derive(Clone)]
pub(crate) struct TopicHandle {
    /// Tells objects of the same name apart.
    pub(crate) id: u64,
    /// Which life of its name it is.
    pub(crate) incarnation: TopicIncarnation,
    /// Where its requests go.
    pub(crate) mailbox: Mailbox,
    /// Its load.
    pub(crate) counters: Arc<TopicCounters>,
    /// Set when another broker owns the bundle: no session begins here any more.
    pub(crate) departure: Arc<OnceLock<Arc<Departure>>>,
    /// Closes when the object has ended and closed its logs.
    pub(crate) ended: watch::Receiver<()>,
}

impl TopicHandle {
    /// Whether another broker owns the bundle.
    pub(crate) fn is_leaving(&self) -> bool {
        self.departure.get().is_some()
    }

    /// Has it leave: in its turn when its ledgers are to be sealed, at once otherwise.
    pub(crate) fn leave(&self, departure: &Arc<Departure>, in_turn: bool) {
        // The first departure decides; the topic is told of each.
        let _ = self.departure.set(Arc::clone(departure));
        match in_turn {
            true => {
                let handed_over = Event::HandedOver(Arc::clone(departure));
                self.mailbox.urgent(handed_over);
            }
            false => self.moved(departure),
        }
    }

    /// It is the topic's turn to end, since another broker owns the bundle.
    pub(crate) fn moved(&self, departure: &Arc<Departure>) {
        self.mailbox.urgent(Event::Moved(Arc::clone(departure)));
    }

    /// The bundle was split, and the topic is in this part of it.
    pub(crate) fn rebound(&self, owned: Owned) {
        self.mailbox.urgent(Event::Rebound(Box::new(owned)));
    }

    /// The broker shuts down.
    pub(crate) fn shutdown(&self) {
        self.mailbox.urgent(Event::Life(Life::Shutdown));
    }

    /// It is to end in order, as one that is not used, whether it is or not.
    pub(crate) fn unload(&self) {
        self.mailbox.urgent(Event::Life(Life::Unload));
    }

    /// Waits until the object is gone.
    pub(crate) async fn wait_ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}
