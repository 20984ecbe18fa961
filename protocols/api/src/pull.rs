//! Requests that stand alone, for protocols whose clients pull: each names its topic, or one
//! partition of it, and leaves no session behind.

use aquifer_model::id::{Index, TopicIncarnation};
use aquifer_model::place::Place;
use aquifer_model::position::Position;
use aquifer_model::topic::{SubscriptionName, TopicName};
use bytes::Bytes;
use std::time::Duration;

use crate::consumer::{Gap, Held};
use crate::producer::StoredAt;

/// Request to store a body without a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// One topic or partition, never a partitioned topic as a whole.
    pub topic: TopicName,
    /// The topic's life that the client knows, if it knows one.
    pub incarnation: Option<TopicIncarnation>,
    /// Format of the body (`model::format`).
    pub format: u16,
    /// The body as the client sent it. One that names a producer is stored once for its sequence
    /// ids (I8); one that names none is stored each time it comes.
    pub body: Bytes,
    /// What it holds of the handler's budgets, until the broker's own counts it.
    pub held: Held,
}

/// A body is stored, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The topic's life.
    pub incarnation: TopicIncarnation,
    /// Where it is; `None` for a duplicate from before the remembered window.
    pub stored: Option<StoredAt>,
    /// Messages in it: they have the indexes from the base index on.
    pub message_count: u32,
    /// When the broker accepted it; `None` for a duplicate.
    pub broker_time_ms: Option<u64>,
    /// It was stored before, and `stored` is where the original is.
    pub duplicate: bool,
}

/// Request to read from an index on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// One topic or partition.
    pub topic: TopicName,
    /// The topic's life that the client knows, if it knows one.
    pub incarnation: Option<TopicIncarnation>,
    /// The first message that is wanted. What was trimmed is passed over; an index behind the
    /// visible end is refused.
    pub from: Index,
    /// How much is answered.
    pub limits: ReadLimits,
    /// How long to wait until there is as much as [`ReadLimits::bytes_min`]. The broker may wait
    /// for less time, and answers before the request's deadline.
    pub wait: Duration,
}

/// How much a read answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Most bytes of bodies; the first one may exceed it.
    pub bytes_max: usize,
    /// Most bodies.
    pub batches_max: usize,
    /// Bytes of bodies that are worth an answer before the wait is over.
    pub bytes_min: usize,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBatches {
    /// The extent of the topic.
    pub bounds: TopicBounds,
    /// Whole entries, in order, from the one that holds the wanted index on.
    pub batches: Vec<StoredBatch>,
    /// What storage cannot give, where nothing before it was answered.
    pub gap: Option<Gap>,
    /// Where to read on.
    pub next: Index,
}

/// One entry, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    /// Where it is stored.
    pub at: StoredAt,
    /// Messages in it.
    pub message_count: u32,
    /// When the broker accepted it.
    pub broker_time_ms: u64,
    /// Format of the body (`model::format`).
    pub format: u16,
    /// The body as it came.
    pub body: Bytes,
    /// What it holds of the broker's budget until it is handed to the client's connection.
    pub held: Held,
}

impl StoredBatch {
    /// Index after its last message.
    #[must_use]
    pub fn end_index(&self) -> Index {
        self.at.base_index.plus(u64::from(self.message_count))
    }
}

/// The extent of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicBounds {
    /// The topic's life.
    pub incarnation: TopicIncarnation,
    /// Index of the first message that is kept.
    pub first: Index,
    /// Index after the last message that may be read.
    pub visible_end: Index,
    /// Index after the last message that is stored.
    pub end: Index,
}

/// Request to find a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locate {
    /// One topic or partition.
    pub topic: TopicName,
    /// The topic's life that the client knows, if it knows one.
    pub incarnation: Option<TopicIncarnation>,
    /// An index, a position, a time, the beginning or the end.
    pub place: Place,
}

/// A place that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Its index, within the bounds of the topic.
    pub index: Index,
    /// The message there; `None` at the end, and where storage cannot give it.
    pub message: Option<LocatedMessage>,
}

/// The message at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocatedMessage {
    /// Where it is stored.
    pub position: Position,
    /// When the broker accepted it.
    pub broker_time_ms: u64,
}

/// Request to move a subscription to an index, forwards or backwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// One topic or partition.
    pub topic: TopicName,
    /// The topic's life that the client knows, if it knows one.
    pub incarnation: Option<TopicIncarnation>,
    /// The subscription, by whose name the index is found again.
    pub subscription: SubscriptionName,
    /// The first message that is not done. Forwards, all below it is acknowledged; backwards, all
    /// from it on is delivered again. One that was trimmed becomes the first that is kept; one
    /// behind the visible end is refused.
    pub index: Index,
    /// Create the subscription if it does not exist.
    pub create: bool,
}
