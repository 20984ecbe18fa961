//! A session of a consumer or reader, as a protocol sees it.

use aquifer_model::id::{
    ConsumerInstance, EntryId, Index, LedgerId, OwnerEpoch, SeekEpoch, TopicIncarnation,
};
use aquifer_model::place::Place;
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::{ConsumerName, SubscriptionName, TopicName};
use aquifer_runtime::budget::BytePermit;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::{ApiError, ApiResult};
use crate::producer::StoredAt;
use crate::session::SessionEnd;

/// Request to consume or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// One topic or partition.
    pub topic: TopicName,
    /// `None`: a reader, which is not durable and leaves nothing behind.
    pub subscription: Option<SubscriptionName>,
    /// How consumers share; ignored for a reader.
    pub kind: SubscriptionType,
    /// For stats.
    pub consumer: Option<ConsumerName>,
    /// Where a new subscription or a reader begins.
    pub start: Place,
    /// The topic's life that the consumer knows, on reconnect.
    pub incarnation: Option<TopicIncarnation>,
    /// Lower is served first (Failover).
    pub priority: i32,
    /// The consumer object; a newer epoch of it replaces its older session at once. `None`: this
    /// session replaces none.
    pub instance: Option<ConsumerInstance>,
    /// Counts the sessions of the instance; an older one is fenced.
    pub epoch: u64,
}

/// An open consumer. Dropping `port` or `events` closes it; what it had is redelivered.
pub struct ConsumerSession {
    /// What the broker decided.
    pub opened: Subscribed,
    /// Where the consumer's requests go.
    pub port: Box<dyn ConsumerPort>,
    /// What the broker sends. Deliveries stay within the granted credit.
    pub events: mpsc::Receiver<ConsumerEvent>,
    /// Tells when the session must end because its caller may no longer consume.
    pub end: SessionEnd,
}

/// What the broker decided about a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribed {
    /// The topic's life.
    pub incarnation: TopicIncarnation,
    /// The owner's epoch.
    pub owner_epoch: OwnerEpoch,
    /// The subscription's seek epoch.
    pub seek_epoch: SeekEpoch,
    /// Where delivery begins.
    pub start: Index,
    /// Index after the newest message.
    pub end: Index,
}

/// Where a protocol puts the requests of a consumer. Calls wait while the topic is busy.
#[async_trait]
pub trait ConsumerPort: Send {
    /// Raises the totals granted since the session began; lower ones are ignored. A delivery uses
    /// one message of them per message that it does not skip, and the bytes of its batch; so does
    /// a redelivery, and one in flight that a seek made void. The last entry may exceed them.
    async fn credit(&mut self, messages_total: u64, bytes_total: u64) -> ApiResult<()>;
    /// Acknowledges; with a request id, [`ConsumerEvent::Confirmed`] follows when it is durable. A
    /// refused one is answered with [`ConsumerEvent::AcknowledgeRefused`], and the session goes on.
    async fn acknowledge(&mut self, acknowledge: Acknowledge) -> ApiResult<()>;
    /// Asks for redelivery.
    async fn negative_acknowledge(&mut self, negative: NegativeAcknowledge) -> ApiResult<()>;
    /// Moves the subscription; [`ConsumerEvent::SeekDone`] follows, or
    /// [`ConsumerEvent::SeekRefused`], after which the session goes on.
    async fn seek(&mut self, request_id: u64, place: Place) -> ApiResult<()>;
}

/// Consecutive indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRange {
    /// First.
    pub first: Index,
    /// Last, inclusive.
    pub last: Index,
}

/// An acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Acknowledge {
    /// Echoed when it is durable; 0 asks for no confirmation.
    pub request_id: u64,
    /// Owner epoch of the deliveries; another is dropped (H9).
    pub owner_epoch: OwnerEpoch,
    /// Seek epoch of the deliveries; another is dropped (H12).
    pub seek_epoch: SeekEpoch,
    /// Everything up to here, inclusive.
    pub cumulative: Option<Index>,
    /// Single messages.
    pub individual: Vec<IndexRange>,
}

/// A wish for redelivery.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NegativeAcknowledge {
    /// Owner epoch of the deliveries.
    pub owner_epoch: OwnerEpoch,
    /// Seek epoch of the deliveries.
    pub seek_epoch: SeekEpoch,
    /// The messages.
    pub ranges: Vec<IndexRange>,
}

/// What the broker sends to a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// Messages.
    Deliveries {
        /// The owner's epoch.
        owner_epoch: OwnerEpoch,
        /// The subscription's seek epoch.
        seek_epoch: SeekEpoch,
        /// Entries in order.
        deliveries: Vec<Delivery>,
    },
    /// Messages that storage cannot give, in their place of the order and held like a delivery:
    /// acknowledged, they are passed over for good; negatively acknowledged, or in a later session,
    /// reading them is tried again. Uses one message of credit and no bytes.
    Gap {
        /// The owner's epoch.
        owner_epoch: OwnerEpoch,
        /// The subscription's seek epoch.
        seek_epoch: SeekEpoch,
        /// What is missing.
        gap: Gap,
    },
    /// The acknowledgement with this id is durable.
    Confirmed {
        /// Its id.
        request_id: u64,
    },
    /// The acknowledgement with this id was refused and has changed nothing.
    AcknowledgeRefused {
        /// Its id, 0 included.
        request_id: u64,
        /// Why.
        error: ApiError,
    },
    /// The seek with this id was refused and has changed nothing.
    SeekRefused {
        /// Its id.
        request_id: u64,
        /// Why.
        error: ApiError,
    },
    /// The seek with this id is durable; deliveries of older seek epochs are void.
    SeekDone {
        /// Its id; 0 when another client moved the subscription.
        request_id: u64,
        /// The new epoch.
        seek_epoch: SeekEpoch,
        /// Where delivery continues.
        index: Index,
    },
    /// Failover: whether this consumer is the one that is served.
    Active(bool),
    /// The topic was terminated, and nothing more comes: all is acknowledged, or a reader has it.
    EndOfTopic {
        /// Index after the last message.
        end: Index,
    },
    /// The session is over.
    Failed(ApiError),
}

/// One entry, or what of it a consumer is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where it is stored.
    pub at: StoredAt,
    /// When the broker accepted it.
    pub broker_time_ms: u64,
    /// Messages that were delivered before, in order. The others come for the first time.
    pub redelivered: Vec<Redelivered>,
    /// Messages of the batch that are not for this consumer.
    pub skip: Vec<IndexRange>,
    /// Messages of the entry, by its head: tells the indexes of a batch that cannot be read.
    pub message_count: u32,
    /// Format of the body (`model::format`).
    pub format: u16,
    /// The body as the producer sent it.
    pub body: Bytes,
    /// What it holds of the broker's budget until it is handed to the client's connection.
    pub held: Held,
}

/// Messages that were delivered before, each as often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redelivered {
    /// The messages.
    pub range: IndexRange,
    /// How often.
    pub count: u32,
}

/// Messages that storage cannot give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Their indexes.
    pub range: IndexRange,
    /// The ledger that should have them.
    pub ledger: LedgerId,
    /// The first entry concerned.
    pub entry: EntryId,
    /// How many they are is not known: they are no more than the indexes.
    pub at_most: bool,
    /// What is wrong.
    pub reason: String,
}

/// Bytes of a budget that something holds: no part of what it is.
#[derive(Debug, Default)]
pub struct Held(Option<BytePermit>);

impl Held {
    /// Takes it out, to be kept elsewhere.
    #[must_use]
    pub fn take(&mut self) -> Held {
        Held(self.0.take())
    }
}

impl From<BytePermit> for Held {
    fn from(permit: BytePermit) -> Held {
        Held(Some(permit))
    }
}

impl Clone for Held {
    /// The copy holds nothing: it shares the bytes of the original.
    fn clone(&self) -> Held {
        Held(None)
    }
}

impl PartialEq for Held {
    fn eq(&self, _: &Held) -> bool {
        true
    }
}

impl Eq for Held {}
