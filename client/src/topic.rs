//! A topic, or one partition of it, without a stream: single appends and reads, lookups, and
//! positions that are committed by name. For applications that keep their own pace, and for what
//! bridges other protocols.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::batch::{BatchBuilder, BatchFields};
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::place::Place;
use aquifer_model::position::Position;
use aquifer_model::topic::{ProducerName, SubscriptionName, TopicName};
use aquifer_proto::v1;
use aquifer_proto::v1::pull_client::PullClient;
use aquifer_runtime::clock;
use bytes::{Bytes, BytesMut};

use crate::batch::{Delivered, Messages};
use crate::connection::Authorized;
use crate::context::Context;
use crate::error::{ClientError, Result};
use crate::lookup::unary;
use crate::message::{Message, Origin, ReceivedMessage};
use crate::retry::Deadline;

/// A topic or partition. Clones are the same.
#[derive(Clone)]
pub struct Topic {
    context: Arc<Context>,
    name: Arc<TopicName>,
}

/// Messages are stored, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Index of the first and of the last of them; `None` only for a duplicate of what was stored
    /// so long ago that the broker no longer remembers where.
    pub indexes: Option<(Index, Index)>,
    /// Where the first of them is stored; `None` like `indexes`.
    pub position: Option<Position>,
    /// When the broker accepted them, in ms since the Unix epoch; `None` for a duplicate.
    pub broker_time_ms: Option<u64>,
    /// They were stored before.
    pub duplicate: bool,
}

/// The extent of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Index of the first message that is kept.
    pub first: Index,
    /// Index after the last message that can be read.
    pub visible_end: Index,
    /// Index after the last message that is stored.
    pub end: Index,
}

/// A place that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Its index.
    pub index: Index,
    /// Where the message is stored; `None` at the end, and where storage cannot give it.
    pub position: Option<Position>,
    /// When the broker accepted it, in ms since the Unix epoch; `None` like `position`.
    pub broker_time_ms: Option<u64>,
}

/// How much a read answers, and how long it waits for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Most bytes of batches as they are stored; the first batch may exceed it. Default 1 MiB.
    pub bytes_max: usize,
    /// Most batches. Default 1024.
    pub batches_max: u32,
    /// Bytes that are worth an answer before the wait is over. Default 1.
    pub bytes_min: usize,
    /// How long to wait for them; the broker may answer earlier. Default: not at all.
    pub wait: Duration,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions {
            bytes_max: 1 << 20,
            batches_max: 1024,
            bytes_min: 1,
            wait: Duration::ZERO,
        }
    }
}

/// The messages of a read, in order; batches are unpacked one at a time. An error is about the
/// messages that it names, and the others follow.
#[derive(Debug)]
pub struct Fetched {
    /// The extent of the topic when it was read.
    pub bounds: Bounds,
    /// Where to read on.
    pub next: Index,
    topic: Arc<TopicName>,
    batches: VecDeque<Delivered>,
    open: Option<Messages>,
}

impl Iterator for Fetched {
    type Item = Result<ReceivedMessage>;

    fn next(&mut self) -> Option<Result<ReceivedMessage>> {
        loop {
            if let Some(open) = &mut self.open {
                if let Some((_, message)) = open.next() {
                    return Some(message);
                }
                self.open = None;
            }
            match self
                .batches
                .pop_front()?
                .open(&self.topic, Origin::default())
            {
                Ok(open) => self.open = Some(open),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

type Client = PullClient<Authorized>;

impl Topic {
    pub(crate) fn new(context: Arc<Context>, topic: &str) -> Result<Topic> {
        let name = Arc::new(topic.parse::<TopicName>()?);
        Ok(Topic { context, name })
    }

    /// Its full name.
    #[must_use]
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// Stores messages together, as one batch; durable when this returns. Creates the topic if the
    /// namespace allows that. A failure with an unknown outcome may have stored them: use
    /// [`append_as`](Self::append_as) where they must not be stored twice.
    ///
    /// # Errors
    /// `Invalid` for no message and for one beyond a bound, `NotFound`, `Timeout`, and what every
    /// call may answer.
    pub async fn append(&self, messages: &[Message]) -> Result<Appended> {
        let body = self.encode(Bytes::new(), 0, messages)?;
        self.store(body, false).await
    }

    /// The same under the name of a producer: with deduplication on, messages with these sequence
    /// ids, the first of which is given, are stored once for that name however often they are sent,
    /// if they are sent in the same batches. The ids of a name ascend. No producer of the name may
    /// be open meanwhile.
    ///
    /// # Errors
    /// `Busy` while a producer of the name is open, and those of [`append`](Self::append).
    pub async fn append_as(
        &self,
        producer: &str,
        sequence_id: u64,
        messages: &[Message],
    ) -> Result<Appended> {
        let producer = ProducerName::new(producer)?;
        let producer = Bytes::copy_from_slice(producer.as_str().as_bytes());
        let body = self.encode(producer, sequence_id, messages)?;
        self.store(body, true).await
    }

    fn encode(&self, producer: Bytes, lowest: u64, messages: &[Message]) -> Result<Bytes> {
        let nothing = || ClientError::Invalid("an append has no messages".to_owned());
        let more = messages.len().checked_sub(1).ok_or_else(nothing)?;
        let size = messages.iter().map(Message::size_bytes).sum();
        let mut builder = BatchBuilder::new(BytesMut::new(), messages.len(), size);
        for (delta, message) in (0..).zip(messages) {
            message.check()?;
            builder.push(&message.record, message.row(delta))?;
        }
        let fields = BatchFields {
            producer_name: producer,
            lowest_sequence_id: lowest,
            highest_sequence_id: lowest.saturating_add(more as u64),
            publish_time_ms: self.context.clock.wall_ms(),
            uncompressed_bytes: u32::try_from(builder.payload().len()).unwrap_or(u32::MAX),
            ..BatchFields::default()
        };
        Ok(builder.finish(&fields)?)
    }

    async fn store(&self, body: Bytes, repeatable: bool) -> Result<Appended> {
        let request = v1::AppendRequest {
            topic: self.name.to_string(),
            topic_incarnation: None,
            format: FORMAT_NATIVE.into(),
            body,
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.append(request).await }
        };
        let stored = self
            .call("appending", repeatable, Duration::ZERO, call)
            .await?;
        let is_known = !stored.position_unknown && stored.message_count > 0;
        let last = |first: u64| first.saturating_add(u64::from(stored.message_count) - 1);
        Ok(Appended {
            indexes: is_known.then(|| (Index(stored.base_index), Index(last(stored.base_index)))),
            position: is_known.then_some(Position {
                ledger: LedgerId(stored.ledger_id),
                entry: EntryId(stored.entry_id),
                batch_index: 0,
            }),
            broker_time_ms: stored.broker_time_ms,
            duplicate: stored.duplicate,
        })
    }

    /// Reads from an index on, and waits if asked. What was trimmed is passed over.
    ///
    /// # Errors
    /// `Invalid` for an index behind the end, `NotFound`, and what every call may answer.
    pub async fn read(&self, from: Index, options: ReadOptions) -> Result<Fetched> {
        let request = v1::ReadTopicRequest {
            topic: self.name.to_string(),
            topic_incarnation: None,
            from_index: from.0,
            bytes_max: options.bytes_max as u64,
            batches_max: options.batches_max,
            bytes_min: options.bytes_min as u64,
            wait_ms: clock::millis(options.wait),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.read(request).await }
        };
        let found = self.call("reading", true, options.wait, call).await?;
        let mut batches: VecDeque<Delivered> = found.batches.into_iter().map(delivered).collect();
        if let Some(first) = batches.front_mut() {
            first.skip_below(from.0);
        }
        batches.extend(found.gap.map(missing));
        Ok(Fetched {
            bounds: bounds(found.bounds)?,
            next: Index(found.next_index),
            topic: Arc::clone(&self.name),
            batches,
            open: None,
        })
    }

    /// The index and position of a place: an index, a position, a time, the beginning or the end.
    ///
    /// # Errors
    /// `Invalid` for a position that the topic does not have, `NotFound`, and what every call may
    /// answer.
    pub async fn locate(&self, place: Place) -> Result<Located> {
        let deadline = Deadline::after(self.context.operation_timeout);
        let found = locate(&self.context, &self.name, place, deadline).await?;
        Ok(Located {
            index: Index(found.index),
            position: found.message.map(|message| Position {
                ledger: LedgerId(message.ledger_id),
                entry: EntryId(message.entry_id),
                batch_index: message.batch_index,
            }),
            broker_time_ms: found.message.map(|message| message.broker_time_ms),
        })
    }

    /// The extent of the topic.
    ///
    /// # Errors
    /// `NotFound`, and what every call may answer.
    pub async fn bounds(&self) -> Result<Bounds> {
        let request = v1::BoundsRequest {
            topic: self.name.to_string(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.bounds(request).await }
        };
        let found = self
            .call("reading bounds", true, Duration::ZERO, call)
            .await?;
        bounds(found.bounds)
    }

    /// Moves a subscription to an index, durably: forwards, all below it is acknowledged;
    /// backwards, all from it on is delivered again. Creates it if asked. Answers where it stands
    /// then: the first message that is not acknowledged.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a name and for an index behind the end, and what every call may
    /// answer.
    pub async fn commit(&self, subscription: &str, index: Index, create: bool) -> Result<Index> {
        let request = v1::CommitRequest {
            topic: self.name.to_string(),
            topic_incarnation: None,
            subscription: SubscriptionName::new(subscription)?.to_string(),
            index: index.0,
            create,
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.commit(request).await }
        };
        let stands = self.call("committing", true, Duration::ZERO, call).await?;
        Ok(Index(stands.index))
    }

    /// Where a subscription stands, durably: the first message that is not acknowledged. `None`
    /// when no subscription has this name.
    ///
    /// # Errors
    /// `NotFound` for the topic, `Invalid` for a name, and what every call may answer.
    pub async fn committed(&self, subscription: &str) -> Result<Option<Index>> {
        let request = v1::CommittedRequest {
            topic: self.name.to_string(),
            subscription: SubscriptionName::new(subscription)?.to_string(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.committed(request).await }
        };
        let stands = self
            .call("reading a position", true, Duration::ZERO, call)
            .await?;
        Ok(stands.index.map(Index))
    }

    async fn call<T, F, Fut>(
        &self,
        what: &'static str,
        idempotent: bool,
        wait: Duration,
        call: F,
    ) -> Result<T>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let limit = self.context.operation_timeout.saturating_add(wait);
        let deadline = Deadline::after(limit);
        unary(&self.context, what, idempotent, deadline, |connection| {
            call(connection.pull())
        })
        .await
    }
}

/// Where a place is now.
pub(crate) async fn locate(
    context: &Context,
    topic: &TopicName,
    place: Place,
    deadline: Deadline,
) -> Result<v1::LocateResponse> {
    let request = v1::LocateRequest {
        topic: topic.to_string(),
        topic_incarnation: None,
        place: place.to_string(),
    };
    unary(context, "locating", true, deadline, |connection| {
        let request = request.clone();
        async move { connection.pull().locate(request).await }
    })
    .await
}

fn delivered(batch: v1::StoredBatch) -> Delivered {
    Delivered::parse(delivery(batch))
}

fn delivery(batch: v1::StoredBatch) -> v1::Delivery {
    v1::Delivery {
        ledger_id: batch.ledger_id,
        entry_id: batch.entry_id,
        base_index: batch.base_index,
        broker_time_ms: batch.broker_time_ms,
        message_count: batch.message_count,
        format: batch.format,
        body: batch.body,
        ..v1::Delivery::default()
    }
}

fn missing(gap: v1::MissingRange) -> Delivered {
    let range = gap.range.unwrap_or_default();
    Delivered::missing(v1::Gap {
        first_index: range.first,
        last_index: range.last,
        ledger_id: gap.ledger_id,
        entry_id: gap.entry_id,
        reason: gap.reason,
        at_most: gap.at_most,
        ..v1::Gap::default()
    })
}

fn bounds(bounds: Option<v1::TopicBounds>) -> Result<Bounds> {
    let bounds =
        bounds.ok_or_else(|| ClientError::Protocol("an answer without bounds".to_owned()))?;
    Ok(Bounds {
        first: Index(bounds.first_index),
        visible_end: Index(bounds.visible_end_index),
        end: Index(bounds.end_index),
    })
}

/// What a subscription has not acknowledged, out of the entries that hold it.
pub(crate) fn peeked(
    topic: &Arc<TopicName>,
    answer: v1::PeekMessagesResponse,
) -> Vec<Result<ReceivedMessage>> {
    // Everything between those ranges is left out.
    let mut skip = Vec::new();
    let mut at = 0;
    for range in &answer.unacknowledged {
        if let Some(last) = range.first.checked_sub(1).filter(|last| *last >= at) {
            skip.push(v1::IndexRange { first: at, last });
        }
        at = at.max(range.last.saturating_add(1));
    }
    let behind = v1::IndexRange {
        first: at,
        last: u64::MAX,
    };
    skip.push(behind);
    let batches = answer.batches.into_iter().map(|batch| {
        let end = batch
            .base_index
            .saturating_add(u64::from(batch.message_count));
        let overlaps =
            |range: &&v1::IndexRange| range.last >= batch.base_index && range.first < end;
        let skip = skip.iter().filter(overlaps).copied().collect();
        let mut delivered = delivery(batch);
        delivered.skip = skip;
        Delivered::parse(delivered)
    });
    let mut all: Vec<Delivered> = batches
        .chain(answer.gaps.into_iter().map(missing))
        .collect();
    all.sort_by_key(Delivered::first_wanted);
    let mut messages = Vec::new();
    for delivered in all {
        match delivered.open(topic, Origin::default()) {
            Ok(mut opened) => {
                messages.extend(std::iter::from_fn(|| opened.next().map(|(_, one)| one)));
            }
            Err(error) => messages.push(Err(error)),
        }
    }
    messages
}
