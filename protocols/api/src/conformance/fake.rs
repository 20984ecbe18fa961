//! A broker in memory: enough behaviour to see whether a handler passes everything on, nothing
//! durable, every batch counts as one message.

mod admin;
mod pull;
mod security;

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_model::id::{
    BrokerId, EntryId, Index, LedgerId, OwnerEpoch, SeekEpoch, TopicIncarnation,
};
use aquifer_model::limits::{BATCH_BYTES_MAX, MESSAGE_BYTES_MAX};
use aquifer_model::place::Place;
use aquifer_model::topic::{ProducerName, SubscriptionName, TopicName};
use aquifer_runtime::budget::BytePermit;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::consumer::{
    Acknowledge, ConsumerEvent, ConsumerPort, ConsumerSession, Delivery, NegativeAcknowledge,
    Subscribe, Subscribed,
};
use crate::context::RequestContext;
use crate::data_plane::{BrokerIdentity, DataPlane};
use crate::error::{ApiError, ApiResult, ErrorKind, Outcome};
use crate::producer::{
    OpenProducer, ProducerOpened, ProducerPort, ProducerSession, PublishFrame, Receipt, StoredAt,
};
use crate::pull::{Append, Appended, Commit, Locate, Located, Read, ReadBatches, TopicBounds};
use crate::session::SessionEnd;

/// Receipts and events that a session can hold; more than any check needs.
const QUEUE: usize = 1024;
const LEDGER: LedgerId = LedgerId(1);
const LIFE: TopicIncarnation = TopicIncarnation([7; 16]);

/// A broker in memory. Topics whose local name is `fail-N` fail with the N-th error kind; a topic
/// named `held` answers its batches only after [`release`](Self::release).
#[derive(Clone)]
pub struct FakeBroker {
    state: Arc<Mutex<State>>,
    sessions: Arc<watch::Sender<usize>>,
    released: Arc<watch::Sender<bool>>,
    /// Counts the batches of all topics.
    appended: Arc<watch::Sender<u64>>,
    /// What callers must show.
    token: Option<Arc<str>>,
    /// The ends of its sessions, to be told.
    ends: Arc<Mutex<Vec<oneshot::Sender<ApiError>>>>,
}

#[derive(Default)]
struct State {
    calls: usize,
    topics: BTreeMap<String, Topic>,
}

#[derive(Default)]
struct Topic {
    batches: Vec<Bytes>,
    credit: u64,
    acknowledged: BTreeMap<String, Vec<Index>>,
    committed: BTreeMap<String, Index>,
}

/// Counts as an open session while it lives.
struct Session(Arc<watch::Sender<usize>>);

impl Session {
    fn open(sessions: &Arc<watch::Sender<usize>>) -> Session {
        sessions.send_modify(|open| *open += 1);
        Session(Arc::clone(sessions))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl Default for FakeBroker {
    fn default() -> FakeBroker {
        FakeBroker {
            state: Arc::default(),
            sessions: Arc::new(watch::Sender::new(0)),
            released: Arc::new(watch::Sender::new(false)),
            appended: Arc::new(watch::Sender::new(0)),
            token: None,
            ends: Arc::default(),
        }
    }
}

impl FakeBroker {
    /// A batch that is refused as `Overloaded`.
    pub const POISON: Bytes = Bytes::from_static(b"poison");

    /// One that serves only callers which show this token.
    #[must_use]
    pub fn asking_for(token: &str) -> FakeBroker {
        FakeBroker {
            token: Some(token.into()),
            ..FakeBroker::default()
        }
    }

    /// Ends all open sessions with an error, as when what allowed them was taken away.
    pub fn end_sessions(&self, error: &ApiError) {
        for end in self.ends.lock().drain(..) {
            let _ = end.send(error.clone());
        }
    }

    fn session_end(&self) -> SessionEnd {
        let (sender, told) = oneshot::channel();
        self.ends.lock().push(sender);
        SessionEnd::when(told)
    }

    /// The topic on which everything fails with this kind.
    #[must_use]
    pub fn failing_topic(kind: ErrorKind) -> String {
        let at = ErrorKind::ALL.iter().position(|listed| *listed == kind);
        format!("fail-{}", at.unwrap_or(0))
    }

    /// The outcome that goes with a kind here, so that all of them occur.
    #[must_use]
    pub fn outcome_of(kind: ErrorKind) -> Outcome {
        match kind {
            ErrorKind::Timeout | ErrorKind::Unavailable => Outcome::Unknown,
            ErrorKind::AlreadyExists => Outcome::Applied,
            _ => Outcome::NotApplied,
        }
    }

    /// How many calls have come.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.state.lock().calls
    }

    /// How many batches a topic holds.
    #[must_use]
    pub fn stored(&self, topic: &str) -> usize {
        self.with(topic, |topic| topic.batches.len())
    }

    /// The messages that the latest reader or consumer of a topic gave credit for.
    #[must_use]
    pub fn credit_granted(&self, topic: &str) -> u64 {
        self.with(topic, |topic| topic.credit)
    }

    /// What a subscription has acknowledged, in the order in which it did.
    #[must_use]
    pub fn acknowledged(&self, topic: &str, subscription: &str) -> Vec<Index> {
        self.with(topic, |topic| {
            topic
                .acknowledged
                .get(subscription)
                .cloned()
                .unwrap_or_default()
        })
    }

    /// Lets the batches of the topic `held` be answered.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Waits until the topic holds this many batches.
    pub async fn wait_until_stored(&self, topic: &str, count: usize) {
        while self.stored(topic) < count {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until every producer, consumer and reader is closed.
    pub async fn wait_until_no_sessions(&self) {
        let closed = self
            .sessions
            .subscribe()
            .wait_for(|open| *open == 0)
            .await
            .is_ok();
        assert!(closed, "the sender lives in this broker");
    }

    fn with<T>(&self, topic: &str, read: impl FnOnce(&mut Topic) -> T) -> T {
        read(
            self.state
                .lock()
                .topics
                .entry(topic.to_owned())
                .or_default(),
        )
    }

    /// Counts the call, and fails it where its topic says so.
    fn called(&self, topic: &TopicName) -> ApiResult<()> {
        self.state.lock().calls += 1;
        let number = topic.name().strip_prefix("fail-").map(str::parse::<usize>);
        let Some(Ok(number)) = number else {
            return Ok(());
        };
        let kind = ErrorKind::ALL
            .get(number)
            .copied()
            .unwrap_or(ErrorKind::Internal);
        let error = ApiError::new(kind, "as the topic's name asks").advise("use another topic");
        Err(error.outcome(FakeBroker::outcome_of(kind)))
    }

    fn store(&self, topic: &str, batch: Bytes) -> StoredAt {
        let stored = self.with(topic, |topic| {
            topic.batches.push(batch);
            at(topic.batches.len() - 1)
        });
        self.appended.send_modify(|count| *count += 1);
        stored
    }

    fn not_faked<T>(&self) -> ApiResult<T> {
        self.state.lock().calls += 1;
        Err(ApiError::new(
            ErrorKind::Unimplemented,
            "not part of the fake",
        ))
    }
}

fn at(number: usize) -> StoredAt {
    let number = u64::try_from(number).unwrap_or(u64::MAX);
    StoredAt {
        ledger: LEDGER,
        entry: EntryId(number),
        base_index: Index(number),
    }
}

struct FakeProducer {
    broker: FakeBroker,
    topic: String,
    receipts: mpsc::Sender<ApiResult<Receipt>>,
    failed: bool,
    _session: Session,
}

#[async_trait]
impl ProducerPort for FakeProducer {
    async fn publish(
        &mut self,
        frames: Vec<PublishFrame>,
        _held: Option<BytePermit>,
    ) -> ApiResult<()> {
        for frame in frames {
            let outcome = if self.failed || frame.body == FakeBroker::POISON {
                self.failed = true;
                Err(ApiError::new(ErrorKind::Overloaded, "poison"))
            } else {
                let stored = self.broker.store(&self.topic, frame.body);
                Ok(Receipt {
                    frame_number: frame.number,
                    stored: Some(stored),
                    duplicate: false,
                })
            };
            if self.topic == "held" {
                let mut released = self.broker.released.subscribe();
                let _ = released.wait_for(|released| *released).await;
            }
            let gone = |_| ApiError::new(ErrorKind::Unavailable, "receipts are not read");
            self.receipts.send(outcome).await.map_err(gone)?;
        }
        Ok(())
    }
}

struct FakeConsumer {
    broker: FakeBroker,
    topic: String,
    subscription: Option<String>,
    delivered: usize,
    events: mpsc::Sender<ConsumerEvent>,
    _session: Session,
}

impl FakeConsumer {
    fn send(&self, event: ConsumerEvent) -> ApiResult<()> {
        let full = |_| ApiError::new(ErrorKind::Overloaded, "events are not read");
        self.events.try_send(event).map_err(full)
    }
}

#[async_trait]
impl ConsumerPort for FakeConsumer {
    async fn credit(&mut self, messages_total: u64, _bytes_total: u64) -> ApiResult<()> {
        let end = usize::try_from(messages_total).unwrap_or(usize::MAX);
        let deliveries: Vec<Delivery> = self.broker.with(&self.topic, |topic| {
            topic.credit = messages_total;
            let end = end.min(topic.batches.len());
            let wanted = topic.batches.get(self.delivered..end).unwrap_or_default();
            let numbered = (self.delivered..).zip(wanted);
            let delivery = |(number, batch): (usize, &Bytes)| Delivery {
                at: at(number),
                broker_time_ms: 0,
                redelivered: Vec::new(),
                skip: Vec::new(),
                message_count: 1,
                format: 1,
                body: batch.clone(),
                held: crate::consumer::Held::default(),
            };
            numbered.map(delivery).collect()
        });
        self.delivered += deliveries.len();
        self.send(ConsumerEvent::Deliveries {
            owner_epoch: OwnerEpoch(1),
            seek_epoch: SeekEpoch(0),
            deliveries,
        })
    }

    async fn acknowledge(&mut self, acknowledge: Acknowledge) -> ApiResult<()> {
        let name = self.subscription.clone().unwrap_or_default();
        self.broker.with(&self.topic, |topic| {
            let acknowledged = topic.acknowledged.entry(name).or_default();
            for range in acknowledge.individual {
                acknowledged.extend((range.first.0..=range.last.0).map(Index));
            }
        });
        let request_id = acknowledge.request_id;
        self.send(ConsumerEvent::Confirmed { request_id })
    }

    async fn negative_acknowledge(&mut self, _negative: NegativeAcknowledge) -> ApiResult<()> {
        Ok(())
    }

    async fn seek(&mut self, request_id: u64, _place: Place) -> ApiResult<()> {
        self.delivered = 0;
        self.send(ConsumerEvent::SeekDone {
            request_id,
            seek_epoch: SeekEpoch(1),
            index: Index(0),
        })
    }
}

#[async_trait]
impl DataPlane for FakeBroker {
    fn identity(&self) -> BrokerIdentity {
        BrokerIdentity {
            broker: BrokerId([1; 16]),
            cluster: "fake".to_owned(),
            message_bytes_max: u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX),
            batch_bytes_max: u64::try_from(BATCH_BYTES_MAX).unwrap_or(u64::MAX),
        }
    }

    async fn open_producer(
        &self,
        _ctx: &RequestContext,
        request: OpenProducer,
    ) -> ApiResult<ProducerSession> {
        self.called(&request.topic)?;
        let (sender, receipts) = mpsc::channel(QUEUE);
        let drawn = || ProducerName::new("drawn").expect("letters make a name");
        Ok(ProducerSession {
            opened: ProducerOpened {
                name: request.name.unwrap_or_else(drawn),
                last_sequence_id: None,
                last_index: None,
                incarnation: LIFE,
                owner_epoch: OwnerEpoch(1),
                batch_bytes_max: self.identity().batch_bytes_max,
                deduplication: true,
            },
            port: Box::new(FakeProducer {
                broker: self.clone(),
                topic: request.topic.name().to_owned(),
                receipts: sender,
                failed: false,
                _session: Session::open(&self.sessions),
            }),
            receipts,
            room: None,
            end: self.session_end(),
        })
    }

    async fn subscribe(
        &self,
        _ctx: &RequestContext,
        request: Subscribe,
    ) -> ApiResult<ConsumerSession> {
        self.called(&request.topic)?;
        let (sender, events) = mpsc::channel(QUEUE);
        let topic = request.topic.name().to_owned();
        let stored = self.stored(&topic);
        Ok(ConsumerSession {
            opened: Subscribed {
                incarnation: LIFE,
                owner_epoch: OwnerEpoch(1),
                seek_epoch: SeekEpoch(0),
                start: Index(0),
                end: at(stored).base_index,
            },
            port: Box::new(FakeConsumer {
                broker: self.clone(),
                topic,
                subscription: request.subscription.map(|name| name.as_str().to_owned()),
                delivered: 0,
                events: sender,
                _session: Session::open(&self.sessions),
            }),
            events,
            end: self.session_end(),
        })
    }

    async fn append(&self, _ctx: &RequestContext, request: Append) -> ApiResult<Appended> {
        self.append_now(request)
    }

    async fn read(&self, _ctx: &RequestContext, request: Read) -> ApiResult<ReadBatches> {
        self.read_waiting(request).await
    }

    async fn locate(&self, _ctx: &RequestContext, request: Locate) -> ApiResult<Located> {
        self.locate_now(&request)
    }

    async fn bounds(&self, _ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicBounds> {
        self.called(&topic)?;
        Ok(self.bounds_of(topic.name()))
    }

    async fn commit(&self, _ctx: &RequestContext, request: Commit) -> ApiResult<Index> {
        self.commit_now(&request)
    }

    async fn committed(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
    ) -> ApiResult<Option<Index>> {
        self.called(&topic)?;
        let name = subscription.as_str();
        Ok(self.with(topic.name(), |topic| topic.committed.get(name).copied()))
    }
}
