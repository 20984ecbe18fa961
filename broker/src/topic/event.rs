//! What a topic's owner task reacts to, and the two ways in: a bounded mailbox for what may wait,
//! and a queue for what must not (outcomes of appends, ended sessions). The queue is bounded by
//! what causes its events: frames in flight, sessions.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{AppendSink, Appended, Fence, Found, ReadPoint, TopicLog};
use aquifer_model::format::Description;
use aquifer_model::id::Index;
use aquifer_model::listener::Listeners;
use aquifer_model::place::Place;
use aquifer_model::stats::TopicStats;
use aquifer_model::subscription::Properties;
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::admin::SubscriptionReset;
use aquifer_protocol_api::consumer::{
    Acknowledge, ConsumerSession, IndexRange, NegativeAcknowledge, Subscribe,
};
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::producer::{OpenProducer, ProducerSession, Receipt};
use aquifer_runtime::budget::BytePermit;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::Span;

use crate::bundle::ownership::Owned;
use crate::error::BrokerError;
use crate::quota::backlog::Search;
use crate::subscription::ConsumerId;
use crate::topic::dedup::SequenceRange;
use crate::topic::pull::Pull;

/// Events that may wait in a topic's mailbox.
const MAILBOX_EVENTS: usize = 256;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, BrokerError>>;

/// A producer's session on one topic object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionId(pub(crate) u64);

/// A subscription or reader on one topic object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SubscriptionId(pub(crate) u64);

/// Everything that a topic reacts to. The mailbox of every loaded topic keeps a block of 32 of them
/// even while it is empty, so that what is large is in a box.
pub(crate) enum Event {
    /// A producer asks for a session.
    OpenProducer {
        request: Box<OpenProducer>,
        reply: Reply<ProducerSession>,
    },
    /// Frames of a session, in order.
    Publish {
        session: SessionId,
        frames: Vec<Frame>,
    },
    /// The client of a producer session is gone.
    ProducerGone(SessionId),
    /// Outcome of an append to the message log.
    Appended {
        tag: u64,
        outcome: Result<Appended, LogError>,
    },
    /// A consumer or reader asks for a session.
    Subscribe {
        request: Box<Subscribe>,
        reply: Reply<ConsumerSession>,
    },
    /// A request of a consumer.
    Consumer(SubscriptionId, ConsumerId, ConsumerRequest),
    /// The client of a consumer session is gone, after this many requests.
    ConsumerGone(SubscriptionId, ConsumerId, u64),
    /// A consumer has taken much of what was queued for it.
    Drained(SubscriptionId, ConsumerId),
    /// A subscription that waited for bytes of the budget has some.
    DeliveryBytes(SubscriptionId, BytePermit),
    /// A subscription that waited for its rates may look again.
    Tokens(SubscriptionId),
    /// A read of a backlog is done.
    Read(Box<ReadDone>),
    /// A read of a backlog that failed may be tried again.
    ReadRetry(SubscriptionId),
    /// A place was found, or could not be.
    Located(Box<LocatePurpose>, Result<Index, LogError>),
    /// Outcome of an append to the cursor log.
    CursorAppended {
        tag: u64,
        outcome: Result<Appended, LogError>,
    },
    /// The cursor log may be tried again.
    CursorRetry,
    /// The cursor log has begun a new ledger, or could not.
    CursorRolled(Result<(), LogError>),
    /// The message log was trimmed, or could not be.
    Trimmed(Result<Index, LogError>),
    /// The topic is to be trimmed as far as policy allows; the answer says that it was.
    Trim(Reply<()>),
    /// What of the topic is due is to be offloaded; the log says when that is done.
    Offload(Reply<TopicLog>),
    /// Statistics are asked for.
    Stats(Reply<TopicStats>),
    /// A subscription is to be deleted.
    DeleteSubscription {
        name: SubscriptionName,
        force: bool,
        reply: Reply<()>,
    },
    /// A subscription is to be created by an administrator.
    CreateSubscription {
        name: SubscriptionName,
        /// Where it begins, and what is recorded of it.
        new: Box<(Place, Properties)>,
        reply: Reply<Index>,
    },
    /// A subscription is to be moved by an administrator.
    SeekSubscription {
        name: SubscriptionName,
        place: Place,
        reply: Reply<Index>,
    },
    /// Subscriptions whose record is damaged continue from what is whole.
    ResetCursors(Reply<Vec<SubscriptionReset>>),
    /// Messages are given up for a subscription: those of a range, or what is damaged.
    Skip {
        name: SubscriptionName,
        range: Option<IndexRange>,
        reply: Reply<Vec<IndexRange>>,
    },
    /// It was asked whether the topic is this broker's still.
    DeliveryRight(Asked),
    /// A request that stands alone.
    Pull(Box<Pull>),
    /// The topic is to be deleted: end, unless clients are connected and it is not forced.
    Delete { force: bool, reply: Reply<()> },
    /// The bundle was split: this is the topic's part of it.
    Rebound(Box<Owned>),
    /// Another broker owns the bundle now, and the topic waits for its turn to be sealed.
    HandedOver(Arc<Departure>),
    /// Another broker owns the bundle now, and the topic ends.
    Moved(Arc<Departure>),
    /// The topic is to end in some way, or to take no more messages.
    Life(Life),
}

/// How a topic is to end by itself.
pub(crate) enum Life {
    /// It is to take no more messages; the answer says where it ends.
    Terminate(Reply<Index>),
    /// That is recorded, or could not be.
    Terminated(Result<(), LogError>),
    /// It is to end in order; it is loaded again when it is used.
    Unload,
    /// The broker goes away.
    Shutdown,
}

impl Life {
    /// The event of a request to terminate the topic.
    pub(crate) fn terminate(reply: Reply<Index>) -> Event {
        Event::Life(Life::Terminate(reply))
    }
}

/// The work of a small event, in ranges of an acknowledgement.
const EVENT_WORK: usize = 16;
/// Work of events that is done before ready subscriptions get their turn, as 64 small ones have.
pub(crate) const WORK_PER_TURN: usize = 64 * EVENT_WORK;

impl Event {
    /// How much work it is, so that what peers choose to send decides how many are handled in a
    /// turn, not how long a turn is.
    pub(crate) fn work(&self) -> usize {
        let more = match self {
            Event::Publish { frames, .. } => frames.len(),
            Event::Consumer(_, _, request) => match request {
                ConsumerRequest::Acknowledge(ack) => ack.individual.len(),
                ConsumerRequest::NegativeAcknowledge(negative) => negative.ranges.len(),
                ConsumerRequest::Credit { .. } | ConsumerRequest::Seek { .. } => 0,
            },
            _ => 0,
        };
        EVENT_WORK + more
    }
}

/// What a consumer asks for.
pub(crate) enum ConsumerRequest {
    /// Totals granted since the session began.
    Credit { messages: u64, bytes: u64 },
    /// An acknowledgement.
    Acknowledge(Box<Acknowledge>),
    /// A wish for redelivery.
    NegativeAcknowledge(NegativeAcknowledge),
    /// A wish to move.
    Seek { request_id: u64, place: Place },
}

/// A body that was verified, and what it says of itself.
pub(crate) struct Body {
    pub(crate) format: u16,
    pub(crate) bytes: Bytes,
    pub(crate) range: SequenceRange,
    pub(crate) said: Description,
    /// Of what is done for it, where its trace is sampled.
    pub(crate) span: Option<Box<Span>>,
}

/// One batch, checked, with its place in the receipts and its share of the budget.
pub(crate) struct Frame {
    pub(crate) number: u64,
    pub(crate) body: Result<Body, BrokerError>,
    pub(crate) permit: mpsc::OwnedPermit<ApiResult<Receipt>>,
    pub(crate) bytes: BytePermit,
    /// When it came, on the monotonic clock.
    pub(crate) received: Duration,
}

/// Result of a read that was done aside.
pub(crate) struct ReadDone {
    pub(crate) subscription: SubscriptionId,
    pub(crate) point: ReadPoint,
    pub(crate) result: Result<Found, LogError>,
    /// Goes with the entries when they are handed out.
    pub(crate) room: BytePermit,
}

/// What a place is looked up for.
pub(crate) enum LocatePurpose {
    /// A reader begins there.
    Reader(Box<Subscribe>, Reply<ConsumerSession>),
    /// A subscription begins there; the requests wait under its name.
    Create(SubscriptionName),
    /// A consumer moves its subscription.
    Seek {
        subscription: SubscriptionId,
        consumer: ConsumerId,
        request_id: u64,
    },
    /// Policy looks for old messages.
    Backlog(Search),
    /// An administrator moves a subscription.
    AdminSeek {
        subscription: SubscriptionId,
        reply: Reply<Index>,
    },
}

/// The requester of a move.
pub(crate) enum Seeker {
    /// A consumer, with its request.
    Consumer(ConsumerId, u64),
    /// An administrator.
    Admin(Reply<Index>),
}

/// Where the topics of a bundle go that another broker owns.
#[derive(Debug)]
pub(crate) struct Departure {
    /// Under this their ledgers may be sealed, when the bundle was handed over.
    pub(crate) sealing: Option<Owned>,
    /// Where the other broker is; empty when that is not known.
    pub(crate) at: Listeners,
}

impl Departure {
    /// What clients of a topic are told.
    pub(crate) fn error(&self, topic: &TopicName) -> BrokerError {
        let (what, at) = (topic.to_string(), self.at.clone());
        match at.is_empty() {
            true => BrokerError::Unloading(format!("{what} is moving to another broker")),
            false => BrokerError::Elsewhere { what, at },
        }
    }
}

/// What an owner was told when it asked whether it may still deliver.
pub(crate) enum Asked {
    /// It is this broker's, certain under this session.
    Confirmed(u64),
    /// What bookies say, and when they were asked.
    Probed(Fence, Duration),
}

/// The ways into a topic. Clones share them.
#[derive(Clone)]
pub(crate) struct Mailbox {
    sender: mpsc::Sender<Event>,
    urgent: Arc<Urgent>,
}

/// Events that must not wait.
pub(crate) struct Urgent {
    queue: Mutex<Vec<Event>>,
    wake: Notify,
}

/// The owner's end.
pub(crate) struct Inbox {
    pub(crate) receiver: mpsc::Receiver<Event>,
    pub(crate) urgent: Arc<Urgent>,
}

/// A new pair.
pub(crate) fn mailbox() -> (Mailbox, Inbox) {
    let (sender, receiver) = mpsc::channel(MAILBOX_EVENTS);
    let urgent = Arc::new(Urgent {
        queue: Mutex::new(Vec::new()),
        wake: Notify::new(),
    });
    let mailbox = Mailbox {
        sender,
        urgent: Arc::clone(&urgent),
    };
    (mailbox, Inbox { receiver, urgent })
}

impl Mailbox {
    /// Waits for room; gives the event back when the topic is gone.
    pub(crate) async fn send(&self, event: Event) -> Result<(), BrokerError> {
        self.sender
            .send(event)
            .await
            .map_err(|_| BrokerError::Unloading("the topic is being unloaded".to_owned()))
    }

    /// Never waits.
    pub(crate) fn urgent(&self, event: Event) {
        self.urgent.push(event);
    }

    /// Waits until the owner has stopped listening.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Whether the owner has stopped listening.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Where outcomes of appends to the message log go.
    pub(crate) fn message_sink(&self) -> Arc<dyn AppendSink> {
        Arc::new(MessageSink(Arc::clone(&self.urgent)))
    }

    /// Where outcomes of appends to the cursor log go.
    pub(crate) fn cursor_sink(&self) -> Arc<dyn AppendSink> {
        Arc::new(CursorSink(Arc::clone(&self.urgent)))
    }
}

impl Urgent {
    fn push(&self, event: Event) {
        self.queue.lock().push(event);
        self.wake.notify_one();
    }

    /// Takes everything that waits.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.queue.lock())
    }

    /// Waits until something came since the last wait.
    pub(crate) async fn wait(&self) {
        self.wake.notified().await;
    }
}

struct MessageSink(Arc<Urgent>);

impl AppendSink for MessageSink {
    fn appended(&self, tag: u64, outcome: Result<Appended, LogError>) {
        self.0.push(Event::Appended { tag, outcome });
    }
}

struct CursorSink(Arc<Urgent>);

impl AppendSink for CursorSink {
    fn appended(&self, tag: u64, outcome: Result<Appended, LogError>) {
        self.0.push(Event::CursorAppended { tag, outcome });
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::limits::ACK_RANGES_MAX;

    use super::*;

    fn of_consumer(request: ConsumerRequest) -> Event {
        Event::Consumer(SubscriptionId(1), ConsumerId(2), request)
    }

    /// A turn is as long whatever peers put into an event: one that is as large as may be is a
    /// turn, and so are 64 that have nothing in them.
    #[test]
    fn an_event_is_as_much_work_as_there_is_in_it() {
        let (messages, bytes) = (1, 1);
        let credit = of_consumer(ConsumerRequest::Credit { messages, bytes });
        assert_eq!(credit.work() * 64, WORK_PER_TURN);
        let one = IndexRange {
            first: Index(0),
            last: Index(0),
        };
        let ranges = vec![one; ACK_RANGES_MAX];
        let acknowledge = Acknowledge {
            individual: ranges.clone(),
            ..Acknowledge::default()
        };
        let negative = NegativeAcknowledge {
            ranges,
            ..NegativeAcknowledge::default()
        };
        for large in [
            of_consumer(ConsumerRequest::Acknowledge(Box::new(acknowledge))),
            of_consumer(ConsumerRequest::NegativeAcknowledge(negative)),
        ] {
            assert!(large.work() >= WORK_PER_TURN, "{}", large.work());
        }
    }

    /// 32 of them are a block of the mailbox, which every loaded topic has.
    #[test]
    fn an_event_takes_little_room() {
        assert!(size_of::<Event>() <= 72, "{}", size_of::<Event>());
    }
}
