//! Publishing: builder, producer and the promise of a receipt.
//!
//! Each partition has a [`queue`], which is plain state; the transport pulls frames out of it
//! ([`frames`]) and one task puts receipts back and reconnects ([`session`]).

mod budget;
mod frames;
mod handle;
mod partition;
mod queue;
mod router;
mod session;
mod settings;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use aquifer_model::batch::{Compression, ROW_BYTES};
use aquifer_model::position::Position;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock::Instant;
use aquifer_runtime::telemetry::trace;
use futures::StreamExt;
use tracing::Span;

use crate::context::Context;
use crate::error::{ClientError, Result};
use crate::lookup;
use crate::message::{Message, SendReceipt};
use crate::retry::Deadline;
use handle::Handle;
use partition::Partition;
use queue::{BatchOutcome, Queue};
use router::Router;
use settings::Settings;

pub use partition::StoredBefore;
pub use settings::{
    Batching, DEFAULT_BYTES_IN_FLIGHT_MAX, DEFAULT_MESSAGES_IN_FLIGHT_MAX, DEFAULT_SEND_TIMEOUT,
};

/// Prepares a [`Producer`].
#[derive(Clone)]
pub struct ProducerBuilder {
    context: Arc<Context>,
    topic: String,
    settings: Settings,
}

/// Partitions that are opened at once.
const OPENING_MAX: usize = 16;

impl ProducerBuilder {
    pub(crate) fn new(context: Arc<Context>, topic: &str) -> ProducerBuilder {
        ProducerBuilder {
            context,
            topic: topic.to_owned(),
            settings: Settings::default(),
        }
    }

    /// The name under which the broker deduplicates: give the same one after a restart to
    /// continue its sequence ids. Default: the broker draws one. One live producer per name.
    #[must_use]
    pub fn name(mut self, name: &str) -> ProducerBuilder {
        self.settings.name = Some(name.to_owned());
        self
    }

    /// When batches are sent. Default adaptive.
    #[must_use]
    pub fn batching(mut self, batching: Batching) -> ProducerBuilder {
        self.settings.batching = batching;
        self
    }

    /// How payload blocks are compressed, where that makes them smaller. Default not at all.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> ProducerBuilder {
        self.settings.compression = compression;
        self
    }

    /// Messages that may wait for their acknowledgement, per partition. Default 50,000.
    #[must_use]
    pub fn messages_in_flight_max(mut self, messages: usize) -> ProducerBuilder {
        self.settings.messages_in_flight_max = messages;
        self
    }

    /// Bytes that may wait for their acknowledgement, per partition. Default 32 MiB.
    #[must_use]
    pub fn bytes_in_flight_max(mut self, bytes: usize) -> ProducerBuilder {
        self.settings.bytes_in_flight_max = bytes;
        self
    }

    /// How long a message may wait for its acknowledgement, reconnects included; `None`: as long as
    /// it takes. At least 1 ms. When one times out, all that were sent after it fail with it, so
    /// that the order holds. Default 30 s.
    #[must_use]
    pub fn send_timeout(mut self, timeout: Option<Duration>) -> ProducerBuilder {
        self.settings.send_timeout = timeout;
        self
    }

    /// Fence a live producer of the same name instead of failing with
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy). Default no.
    #[must_use]
    pub fn take_over(mut self, take_over: bool) -> ProducerBuilder {
        self.settings.take_over = take_over;
        self
    }

    /// The lowest sequence id to draw. Default: one above the highest stored one of the name.
    #[must_use]
    pub fn initial_sequence_id(mut self, id: u64) -> ProducerBuilder {
        self.settings.initial_sequence_id = Some(id);
        self
    }

    /// A message whose given [`sequence_id`](Message::sequence_id) is not above what
    /// earlier producers of the name have stored is answered as a duplicate at once, and not sent:
    /// for going through a source again after a crash. Default no: it is sent, and the broker
    /// answers where it is.
    #[must_use]
    pub fn skip_stored(mut self, skip: bool) -> ProducerBuilder {
        self.settings.skip_stored = skip;
        self
    }

    /// Begins a trace for one of this many messages; one that has a trace keeps it. It needs a
    /// subscriber of `tracing` in this process that exports spans. Default 0: for no message.
    #[must_use]
    pub fn trace_one_in(mut self, messages: u64) -> ProducerBuilder {
        self.settings.trace_one_in = messages;
        self
    }

    /// Opens the producer, on every partition of a partitioned topic; creates the topic if the
    /// namespace allows that.
    ///
    /// # Errors
    /// `Connect` when no broker answers, `Busy` when the name is in use (see
    /// [`take_over`](Self::take_over)), `NotFound`, `Refused`, `Invalid` for a name or setting,
    /// `Timeout` when the client's operation timeout passes.
    pub async fn open(self) -> Result<Producer> {
        self.settings.check()?;
        let topic: TopicName = self.topic.parse()?;
        let deadline = Deadline::after(self.context.operation_timeout);
        let layout = lookup::layout(&self.context, &topic, deadline).await?;
        let names = layout.open_parts();
        let is_partitioned = layout.partitions() > 0;
        let open = |name: Arc<TopicName>, settings: Settings| {
            let partition = Partition::new(Arc::clone(&self.context), name, settings);
            Handle::open(partition, deadline)
        };
        let mut names = names.into_iter();
        let mut partitions = Vec::with_capacity(names.len());
        let mut settings = self.settings.clone();
        if let Some(first) = names.next() {
            let first = open(first, settings.clone()).await?;
            // One name for all partitions, also when the broker drew it.
            settings.name = Some(first.partition.name().to_owned());
            partitions.push(first);
        }
        let opening = names.map(|name| open(name, settings.clone()));
        let mut opening = futures::stream::iter(opening).buffered(OPENING_MAX);
        while let Some(partition) = opening.next().await {
            partitions.push(partition?);
        }
        drop(opening);
        let first_turn = self.context.rng.below(partitions.len() as u64);
        let first_turn = usize::try_from(first_turn).unwrap_or(0);
        Ok(Producer {
            inner: Arc::new(Inner {
                name: settings.name.unwrap_or_default(),
                partitions,
                is_partitioned,
                trace_one_in: settings.trace_one_in,
                untraced: AtomicU64::new(0),
                router: Router::new(&settings.batching, layout.ranges().clone(), first_turn),
            }),
        })
    }
}

/// Publishes to one topic. Clones share it; when the last one is dropped, what is not
/// acknowledged is abandoned: [`close`](Self::close) or [`flush`](Self::flush) first.
///
/// Messages are stored in the order of the calls that accepted them, per partition (I7), and once
/// each, through reconnects and broker failures (I8).
#[derive(Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    partitions: Vec<Handle>,
    is_partitioned: bool,
    router: Router,
    /// See [`ProducerBuilder::trace_one_in`].
    trace_one_in: u64,
    /// Messages that were looked at for a trace.
    untraced: AtomicU64,
}

impl Producer {
    /// Sends a message and waits until it is stored, durably.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue) and of [`PendingSend`].
    pub async fn send(&self, message: Message) -> Result<SendReceipt> {
        self.enqueue(message).await?.await
    }

    /// Accepts a message for sending; waits only while messages or bytes in flight are at their
    /// bound. Await what it answers to know that the message is stored; dropping that does not
    /// take the message back.
    ///
    /// # Errors
    /// [`ClientError::TooLarge`] and other `Invalid` for a message that no broker accepts, `Closed`
    /// after [`close`](Self::close), and what has ended the producer, for instance `Fenced`. The
    /// message was not sent then.
    pub async fn enqueue(&self, message: Message) -> Result<PendingSend> {
        let (message, span) = match self.inner.trace_one_in {
            0 => (message, None),
            every => self.sample(message, every),
        };
        message.check()?;
        let partitions = &self.inner.partitions;
        let key = message.has_key.then_some(&message.record.key[..]);
        let router = &self.inner.router;
        let (id, bytes) = (message.sequence_id, message.size_bytes() + ROW_BYTES);
        let number = router.route(key, id, bytes, Instant::now);
        let handle = partitions
            .get(number)
            .ok_or_else(|| ClientError::closed("producer"))?;
        let accepted = handle.partition.enqueue(&message).await?;
        Ok(PendingSend {
            outcome: accepted.outcome,
            slot: accepted.slot,
            sequence_id: accepted.sequence_id,
            partition: match self.inner.is_partitioned {
                true => handle.partition.topic.partition(),
                false => None,
            },
            waiter: None,
            span,
        })
    }

    /// Begins a trace for one of `every` messages, except those that have one.
    fn sample(&self, message: Message, every: u64) -> (Message, Option<Box<Span>>) {
        let number = self.inner.untraced.fetch_add(1, Ordering::Relaxed);
        if !number.is_multiple_of(every) || message.trace().is_some() {
            return (message, None);
        }
        let topic = self.inner.partitions.first();
        let topic = topic.map(|handle| handle.partition.topic.base());
        let span = tracing::info_span!(
            target: trace::TARGET,
            "publish",
            otel.kind = "producer",
            topic = topic.map(tracing::field::display),
            producer = %self.inner.name,
        );
        let message = message.traced_by(&span);
        (message, Some(Box::new(span)))
    }

    /// Sends what has gathered and waits until everything accepted so far is stored.
    ///
    /// # Errors
    /// That of the newest message, if it failed; each [`PendingSend`] has its own.
    pub async fn flush(&self) -> Result<()> {
        let partitions = self.inner.partitions.iter();
        let flushes = partitions.map(|handle| handle.partition.flush());
        futures::future::join_all(flushes)
            .await
            .into_iter()
            .collect()
    }

    /// Flushes, and ends the producer: it accepts nothing more.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush), and `Timeout` when the broker does not let go in time.
    /// Without a send timeout, messages that are not stored within the client's operation timeout
    /// fail. The producer is closed either way.
    pub async fn close(&self) -> Result<()> {
        let partitions = self.inner.partitions.iter();
        let closes = partitions.map(|handle| handle.partition.close());
        futures::future::join_all(closes)
            .await
            .into_iter()
            .collect()
    }

    /// Its name: the one asked for, or the one that the broker drew.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What the name had stored when the producer was opened, in the partitions that have some of
    /// it.
    #[must_use]
    pub fn stored_before(&self) -> Vec<StoredBefore> {
        let partitions = self.inner.partitions.iter();
        let stored = partitions.filter_map(|handle| handle.partition.stored_before());
        stored.collect()
    }

    /// The sequence id of the newest message: the last one accepted, or else the highest that the
    /// broker had stored for this name when the producer was opened. Of a partitioned topic, the
    /// highest of all partitions.
    #[must_use]
    pub fn last_sequence_id(&self) -> Option<u64> {
        let partitions = self.inner.partitions.iter();
        let last = partitions.map(|handle| handle.partition.read(Queue::last_sequence_id));
        last.max().flatten()
    }
}

/// A message in flight. Await it to know that the message is stored, durably.
///
/// # Errors
/// `Timeout` with outcome unknown when the send timeout passed; `Fenced` when another producer has
/// taken over the name or the topic was deleted; `Refused`, `NotFound`, `Damaged`, `Invalid` as
/// the broker said; `Closed` when the producer was dropped.
#[derive(Debug)]
#[must_use = "the message is sent either way, but only this says whether it was stored"]
pub struct PendingSend {
    outcome: Arc<BatchOutcome>,
    slot: u32,
    sequence_id: u64,
    partition: Option<u32>,
    waiter: Option<usize>,
    /// Of the message, where a trace was begun for it.
    span: Option<Box<Span>>,
}

impl PendingSend {
    /// The sequence id that the message was given.
    #[must_use]
    pub fn sequence_id(&self) -> u64 {
        self.sequence_id
    }
}

impl Future for PendingSend {
    type Output = Result<SendReceipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let stored = match this.outcome.poll(&mut this.waiter, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.clone())),
            Poll::Ready(Ok(stored)) => stored,
        };
        this.span = None;
        Poll::Ready(Ok(SendReceipt {
            position: stored.at.map(|(ledger, entry, _)| Position {
                ledger,
                entry,
                batch_index: this.slot,
            }),
            index: stored
                .at
                .map(|(_, _, base)| base.plus(u64::from(this.slot))),
            sequence_id: this.sequence_id,
            duplicate: stored.duplicate,
            partition: this.partition,
        }))
    }
}
