//! What applications send and receive.

use std::fmt;
use std::sync::Arc;

use aquifer_model::batch::{FLAG_HAS_EVENT_TIME, FLAG_HAS_KEY, MessageRecord, MessageRow};
use aquifer_model::hash::key_hash;
use aquifer_model::id::{Index, OwnerEpoch, SeekEpoch};
use aquifer_model::limits::{KEY_BYTES_MAX, MESSAGE_BYTES_MAX, PROPERTIES_MAX};
use aquifer_model::position::Position;
use aquifer_model::topic::TopicName;
use aquifer_model::trace::{PROPERTY, TraceContext};
use aquifer_runtime::telemetry::trace;
use bytes::Bytes;
use tracing::Span;

use crate::error::{ClientError, Result};

/// A message to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub(crate) record: MessageRecord,
    pub(crate) has_key: bool,
    pub(crate) event_time_ms: Option<u64>,
    pub(crate) sequence_id: Option<u64>,
}

impl Message {
    /// A message with this payload, which is copied once, into the batch.
    #[must_use]
    pub fn new(payload: impl Into<Bytes>) -> Message {
        Message {
            record: MessageRecord {
                value: payload.into(),
                ..MessageRecord::default()
            },
            ..Message::default()
        }
    }

    /// Messages with the same key go to the same partition, in order; at most 64 KiB.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Message {
        self.record.key = key.into();
        self.has_key = true;
        self
    }

    /// Adds a property; at most 256 of them.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Message {
        let pair = (Bytes::from(name.into()), Bytes::from(value.into()));
        self.record.properties.push(pair);
        self
    }

    /// Makes it part of the trace of a span, by the property `traceparent`, if that trace is
    /// sampled and its spans are exported: broker and bookies add spans of theirs below, and its
    /// consumer can ([`ReceivedMessage::span`]). A batch belongs to the trace of its first such
    /// message.
    #[must_use]
    pub fn traced_by(mut self, span: &Span) -> Message {
        let property = trace_property(&self.record.properties);
        match (trace::context_of(span), property) {
            (Some(context), None) => self.property(PROPERTY, context.to_string()),
            (Some(context), Some(at)) => {
                self.record.properties[at].1 = context.to_string().into();
                self
            }
            (None, _) => self,
        }
    }

    /// The trace that it belongs to, if that is sampled.
    pub(crate) fn trace(&self) -> Option<TraceContext> {
        let at = trace_property(&self.record.properties)?;
        TraceContext::parse(&self.record.properties[at].1)
    }

    /// When the event happened, in ms since the Unix epoch.
    #[must_use]
    pub fn event_time_ms(mut self, ms: u64) -> Message {
        self.event_time_ms = Some(ms);
        self
    }

    /// The application's own sequence id, greater than that of the producer's message before;
    /// gaps are allowed. With deduplication on, a message whose id the topic has already stored
    /// for this producer name is acknowledged as a duplicate and not stored again. For that a
    /// message without a key goes to a partition by its id: 256 ids, then the next partition.
    #[must_use]
    pub fn sequence_id(mut self, id: u64) -> Message {
        self.sequence_id = Some(id);
        self
    }

    /// Bytes of key, properties and payload together: what the bounds count.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let properties: usize = self
            .record
            .properties
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        self.record.key.len() + properties + self.record.value.len()
    }

    /// Its row in the table of a batch that begins `sequence_delta` ids before it. A greater
    /// distance than a row can tell has cut the batch.
    pub(crate) fn row(&self, sequence_delta: u64) -> MessageRow {
        let mut row = MessageRow {
            sequence_delta: u32::try_from(sequence_delta).unwrap_or(u32::MAX),
            ..MessageRow::default()
        };
        if self.has_key {
            row.flags |= FLAG_HAS_KEY;
            row.key_hash = key_hash(&self.record.key);
        }
        if let Some(ms) = self.event_time_ms {
            row.flags |= FLAG_HAS_EVENT_TIME;
            row.event_time_ms = ms;
        }
        row
    }

    /// Refuses what no broker would accept.
    pub(crate) fn check(&self) -> Result<()> {
        let too_large = |what, bytes, max| Err(ClientError::TooLarge { what, bytes, max });
        let size = self.size_bytes();
        if size > MESSAGE_BYTES_MAX {
            return too_large("message", size, MESSAGE_BYTES_MAX);
        }
        if self.record.key.len() > KEY_BYTES_MAX {
            return too_large("key", self.record.key.len(), KEY_BYTES_MAX);
        }
        if self.record.properties.len() > PROPERTIES_MAX {
            return Err(ClientError::Invalid(format!(
                "a message has {} properties, at most {PROPERTIES_MAX} are allowed",
                self.record.properties.len()
            )));
        }
        Ok(())
    }
}

/// Which property has the trace of a message; nothing is compared where there is no property.
fn trace_property(properties: &[(Bytes, Bytes)]) -> Option<usize> {
    let mut names = properties.iter().map(|(name, _)| name);
    names.position(|name| name == PROPERTY.as_bytes())
}

/// Proof that a message is stored, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendReceipt {
    /// Where it is stored; `None` only for a duplicate of a message that was stored so long ago
    /// that the broker no longer remembers where.
    pub position: Option<Position>,
    /// Its index in the partition; `None` like `position`.
    pub index: Option<Index>,
    /// The sequence id it was sent with.
    pub sequence_id: u64,
    /// It was stored before, and `position` is where.
    pub duplicate: bool,
    /// The partition it went to; `None` for a topic that is not partitioned.
    pub partition: Option<u32>,
}

/// A message that a consumer or reader received. Cloning is cheap: parts share the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// Where it is stored.
    pub position: Position,
    /// Its index in the partition.
    pub index: Index,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its payload.
    pub payload: Bytes,
    /// Its properties in the order they were set; bytes that are not UTF-8 are replaced.
    pub properties: Vec<(String, String)>,
    /// Name of the producer that sent it.
    pub producer_name: Arc<str>,
    /// Its sequence id among the messages of that producer.
    pub sequence_id: u64,
    /// When the producer sent it, by the producer's clock, in ms since the Unix epoch.
    pub publish_time_ms: u64,
    /// When the event happened, where the application said so, in ms since the Unix epoch.
    pub event_time_ms: Option<u64>,
    /// When the broker accepted it, in ms since the Unix epoch; never goes back in a partition.
    pub broker_time_ms: u64,
    /// How often it was delivered before.
    pub redelivery_count: u32,
    /// The topic, or partition, that it came from.
    pub topic: Arc<TopicName>,
    pub(crate) origin: Origin,
    /// Bytes of the unpacked batch that the parts share and keep alive.
    pub(crate) block_bytes: usize,
}

impl ReceivedMessage {
    /// The trace that it belongs to, if that is sampled.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        let mut all = self.properties.iter();
        let (_, value) = all.find(|(name, _)| name == PROPERTY)?;
        TraceContext::parse(value.as_bytes())
    }

    /// A span of its processing, below that of its producer; disabled where its trace is not
    /// sampled. It lasts until it is dropped.
    #[must_use]
    pub fn span(&self) -> Span {
        let Some(parent) = self.trace() else {
            return Span::none();
        };
        let span = tracing::info_span!(
            target: trace::TARGET,
            "process",
            otel.kind = "consumer",
            topic = %self.topic,
            index = self.index.0,
            redeliveries = self.redelivery_count,
        );
        trace::adopt(&span, parent);
        span
    }
}

/// Messages that were delivered and cannot be read: their bytes are damaged, or storage does not
/// have them any more. They stay unacknowledged until [`Consumer::ack_damaged`] passes them over.
///
/// [`Consumer::ack_damaged`]: crate::Consumer::ack_damaged
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damaged {
    /// The topic, or partition, that holds them.
    pub topic: Arc<TopicName>,
    /// Ledger of the entry.
    pub ledger: u64,
    /// The entry, or the first of several.
    pub entry: u64,
    /// Index of the first of them.
    pub first_index: Index,
    /// Index of the last of them.
    pub last_index: Index,
    /// How many they are is not known, since the damage has the end of a ledger: they are no more
    /// than [`messages`](Self::messages), and some of the indexes may never have been given.
    pub at_most: bool,
    /// What is wrong.
    pub reason: String,
    /// Those of them that were delivered to this consumer, inclusive.
    pub(crate) ranges: Vec<(Index, Index)>,
    pub(crate) origin: Origin,
}

impl Damaged {
    /// How many messages they are, or [at most](Self::at_most) are.
    #[must_use]
    pub fn messages(&self) -> u64 {
        let counts = self.ranges.iter().map(|(first, last)| last.0 - first.0);
        counts.fold(0, |sum, more| sum.saturating_add(more).saturating_add(1))
    }
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (topic, first, last) = (&self.topic, self.first_index, self.last_index);
        match (self.at_most, first == last) {
            (true, _) => write!(f, "up to {} messages from {first} on", self.messages())?,
            (false, true) => write!(f, "message {first}")?,
            (false, false) => write!(f, "messages {first} to {last}")?,
        }
        let (ledger, entry, reason) = (self.ledger, self.entry, &self.reason);
        write!(
            f,
            " of {topic} (entry {ledger}:{entry}) cannot be read: {reason}"
        )
    }
}

/// Which delivery a message came with: an acknowledgement must name it (H9, H12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Origin {
    pub(crate) partition: usize,
    pub(crate) owner_epoch: OwnerEpoch,
    pub(crate) seek_epoch: SeekEpoch,
}
