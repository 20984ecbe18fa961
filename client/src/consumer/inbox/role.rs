//! What the two kinds of receivers keep of a topic or partition: a subscriber what the broker is to
//! be told, a reader its place.

use crate::batch::Delivered;
use crate::consumer::inbox::reader::ReaderState;
use crate::consumer::inbox::subscriber::SubscriberState;
use crate::consumer::settings::Purpose;

/// What a consumer of a subscription and a reader keep besides.
#[derive(Debug)]
pub(super) enum Role {
    Subscriber(SubscriberState),
    Reader(ReaderState),
}

impl Role {
    pub(super) fn new(purpose: &Purpose) -> Role {
        match purpose {
            Purpose::Subscription(subscription) => {
                Role::Subscriber(SubscriberState::new(subscription.keeps_order()))
            }
            Purpose::Reader => Role::Reader(ReaderState::default()),
        }
    }

    /// An entry has arrived. False when it is void: it was sent before the broker knew of a nack
    /// and comes again, behind the message that was nacked.
    pub(super) fn take_in(&mut self, delivered: &mut Delivered) -> bool {
        match self {
            Role::Subscriber(subscriber) => subscriber.take_in(delivered),
            Role::Reader(reader) => {
                reader.take_in(delivered);
                true
            }
        }
    }

    /// Everything below an index was handed out, or is passed over.
    pub(super) fn passed(&mut self, next: u64) {
        if let Role::Reader(reader) = self {
            reader.passed(next);
        }
    }

    /// A seek has led to an index.
    pub(super) fn moved_to(&mut self, index: u64) {
        match self {
            Role::Subscriber(subscriber) => subscriber.moved_to(index),
            Role::Reader(reader) => reader.moved_to(index),
        }
    }
}
