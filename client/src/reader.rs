//! Reading without a subscription: the place is kept here, and nothing is left on the broker.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_proto::v1;
use futures::{StreamExt, TryStreamExt};

use crate::admin::topic_stats;
use crate::consumer::credit::Amount;
use crate::consumer::handle::Handle;
use crate::consumer::receiver::Receiver;
use crate::consumer::settings::{Purpose, Settings};
use crate::consumer::{DEFAULT_QUEUE_BYTES, DEFAULT_QUEUE_MESSAGES};
use crate::context::Context;
use crate::error::{ClientError, Result};
use crate::message::ReceivedMessage;
use crate::retry::Deadline;

/// How often [`Reader::next_available`] looks whether what it waits for was trimmed away.
const TRIM_CHECK: Duration = Duration::from_secs(1);

/// Partitions that are asked for their end at once.
const CALLS_AT_ONCE: usize = 32;

/// Prepares a [`Reader`].
#[derive(Clone)]
pub struct ReaderBuilder {
    context: Arc<Context>,
    topic: String,
    settings: Settings,
}

impl ReaderBuilder {
    pub(crate) fn new(context: Arc<Context>, topic: &str) -> ReaderBuilder {
        ReaderBuilder {
            context,
            topic: topic.to_owned(),
            settings: Settings {
                purpose: Purpose::Reader,
                start: Place::Earliest,
                queue: Amount {
                    messages: DEFAULT_QUEUE_MESSAGES as u64,
                    bytes: DEFAULT_QUEUE_BYTES as u64,
                },
            },
        }
    }

    /// Where to begin. Default: the oldest message.
    #[must_use]
    pub fn start(mut self, start: Place) -> ReaderBuilder {
        self.settings.start = start;
        self
    }

    /// Messages that may wait in memory; partitions share them. Default 20,000.
    #[must_use]
    pub fn queue_messages(mut self, messages: usize) -> ReaderBuilder {
        self.settings.queue.messages = messages as u64;
        self
    }

    /// Bytes, as stored, that may wait in memory, beyond which at most one batch is taken.
    /// Default 8 MiB.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> ReaderBuilder {
        self.settings.queue.bytes = bytes as u64;
        self
    }

    /// Opens the reader, on every partition of a partitioned topic; creates the topic if the
    /// namespace allows that.
    ///
    /// # Errors
    /// `Connect` when no broker answers, `NotFound`, `Refused`, `Invalid` for a name, place or
    /// setting, `Timeout` when the client's operation timeout passes.
    pub async fn open(self) -> Result<Reader> {
        let handle = Handle::open(self.context, &self.topic, self.settings).await?;
        Ok(Reader { handle })
    }
}

/// Reads a topic from a place on. It reconnects by itself, and neither skips nor repeats a
/// message; what retention deletes before it was read is gone.
pub struct Reader {
    handle: Handle,
}

impl Reader {
    /// Waits for the next message. Dropping the future loses nothing.
    ///
    /// # Errors
    /// `Damaged` for messages that cannot be read, after which the next ones follow; `EndOfTopic`
    /// when the topic was terminated and everything was read; every other error has ended the
    /// reader: `Fenced` when the topic was deleted, `Refused`, `NotFound`,
    /// `Closed`.
    pub async fn next(&self) -> Result<ReceivedMessage> {
        self.handle.receiver.take().await
    }

    /// The next message, or `None` at the end: when nothing newer was stored at the moment of the
    /// call.
    ///
    /// # Errors
    /// Those of [`next`](Self::next), and those of asking the broker for the end.
    pub async fn next_available(&self) -> Result<Option<ReceivedMessage>> {
        let receiver = &self.handle.receiver;
        if let Some(message) = receiver.try_take() {
            return or_end(message);
        }
        if !self.is_behind() {
            self.refresh().await?;
        }
        while self.is_behind() {
            match aquifer_runtime::clock::timeout(TRIM_CHECK, receiver.take()).await {
                Ok(message) => return or_end(message),
                Err(_) => self.refresh().await?,
            }
        }
        // Something may have arrived while the broker was asked.
        receiver.try_take().map_or(Ok(None), or_end)
    }

    /// Whether a message below the known end was not handed out.
    fn is_behind(&self) -> bool {
        let receiver = &self.handle.receiver;
        (0..receiver.partitions()).any(|at| receiver.read(at, |inbox| inbox.is_behind()))
    }

    /// Asks the broker how far the topic reaches now.
    async fn refresh(&self) -> Result<()> {
        let receiver = &self.handle.receiver;
        let partitions = (0..receiver.partitions()).map(|at| async move {
            let stats = stats(receiver, at).await?;
            receiver.change(at, |inbox, _| {
                inbox.set_bounds(stats.first_index, stats.end_index)
            });
            Ok::<(), ClientError>(())
        });
        let mut answers = futures::stream::iter(partitions).buffer_unordered(CALLS_AT_ONCE);
        while answers.try_next().await?.is_some() {}
        Ok(())
    }

    /// The index after the newest message now; of a partitioned topic, the sum over its
    /// partitions.
    ///
    /// # Errors
    /// `Connect`, `Timeout`, `NotFound` and `Unavailable`.
    pub async fn end_index(&self) -> Result<Index> {
        let receiver = &self.handle.receiver;
        let partitions = (0..receiver.partitions()).map(|at| stats(receiver, at));
        let answers = futures::stream::iter(partitions).buffer_unordered(CALLS_AT_ONCE);
        let sum = answers.try_fold(0_u64, |sum, stats| {
            std::future::ready(Ok(sum.saturating_add(stats.end_index)))
        });
        sum.await.map(Index)
    }

    /// Moves the reader, on all partitions of the topic, and drops what waits in memory. Answers
    /// the index where reading continues; the lowest of a partitioned topic. The end, and a time,
    /// are those of the call: what is published after that is read, also when the move has to be
    /// asked for again. For that the caller must be allowed to describe the topic; else they are
    /// those of when the broker moves it, the last time that it is asked.
    ///
    /// # Errors
    /// `Invalid` for a place that the topic does not have, `Timeout`, and what has ended the
    /// reader.
    pub async fn seek(&self, place: Place) -> Result<Index> {
        self.handle.receiver.seek(place).await
    }

    /// Ends the reader.
    ///
    /// # Errors
    /// `Timeout` when the broker does not let go in time; the reader is closed either way.
    pub async fn close(&self) -> Result<()> {
        self.handle.receiver.close().await
    }
}

/// A message, or the end, also of a topic that has no more to come.
fn or_end(taken: Result<ReceivedMessage>) -> Result<Option<ReceivedMessage>> {
    match taken {
        Err(ClientError::EndOfTopic) => Ok(None),
        taken => taken.map(Some),
    }
}

async fn stats(receiver: &Receiver, partition: usize) -> Result<v1::TopicStatsResponse> {
    let topic = receiver.read(partition, |inbox| Arc::clone(inbox.topic()));
    let deadline = Deadline::after(receiver.context.operation_timeout);
    topic_stats(&receiver.context, &topic, true, deadline).await
}
