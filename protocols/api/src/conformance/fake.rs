//! A broker in memory: enough behaviour to see whether a handler passes everything on, nothing
//! durable, every batch counts as one message.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_model::bundle::BundleRange;
use aquifer_model::id::{
    BrokerId, EntryId, Index, LedgerId, OwnerEpoch, SeekEpoch, TopicIncarnation,
};
use aquifer_model::limits::{BATCH_BYTES_MAX, MESSAGE_BYTES_MAX};
use aquifer_model::load::LoadReport;
use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate, PolicyView};
use aquifer_model::ranges::TopicRanges;
use aquifer_model::stats::TopicStats;
use aquifer_model::topic::{NamespaceName, ProducerName, SubscriptionName, TopicName};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::admin::{
    Admin, Deletion, Page, PageRequest, SubscriptionReset, TopicDescription, TopicLayout,
};
use crate::consumer::{
    Acknowledge, ConsumerEvent, ConsumerPort, ConsumerSession, Delivery, IndexRange,
    NegativeAcknowledge, Subscribe, Subscribed,
};
use crate::context::RequestContext;
use crate::data_plane::{BrokerIdentity, DataPlane};
use crate::error::{ApiError, ApiResult, ErrorKind, Outcome};
use crate::operator::{BrokerInfo, BundleInfo, Operator};
use crate::producer::{
    OpenProducer, ProducerOpened, ProducerPort, ProducerSession, PublishFrame, Receipt, StoredAt,
};

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
        }
    }
}

impl FakeBroker {
    /// A batch that is refused as `Overloaded`.
    pub const POISON: Bytes = Bytes::from_static(b"poison");

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
    async fn publish(&mut self, frames: Vec<PublishFrame>) -> ApiResult<()> {
        for frame in frames {
            let outcome = if self.failed || frame.body == FakeBroker::POISON {
                self.failed = true;
                Err(ApiError::new(ErrorKind::Overloaded, "poison"))
            } else {
                let stored = self.broker.with(&self.topic, |topic| {
                    topic.batches.push(frame.body);
                    at(topic.batches.len() - 1)
                });
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
        let end = self.stored(&topic);
        Ok(ConsumerSession {
            opened: Subscribed {
                incarnation: LIFE,
                owner_epoch: OwnerEpoch(1),
                seek_epoch: SeekEpoch(0),
                start: Index(0),
                end: at(end).base_index,
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
        })
    }
}

#[async_trait]
impl Admin for FakeBroker {
    async fn create_tenant(&self, _ctx: &RequestContext, _tenant: String) -> ApiResult<()> {
        self.not_faked()
    }

    async fn list_tenants(
        &self,
        _ctx: &RequestContext,
        _page: PageRequest,
    ) -> ApiResult<Page<String>> {
        self.not_faked()
    }

    async fn create_namespace(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _policies: Policies,
    ) -> ApiResult<PolicyView> {
        self.not_faked()
    }

    async fn get_policies(
        &self,
        _ctx: &RequestContext,
        _scope: PolicyScope,
    ) -> ApiResult<PolicyView> {
        self.not_faked()
    }

    async fn update_policies(
        &self,
        _ctx: &RequestContext,
        _scope: PolicyScope,
        _update: PolicyUpdate,
    ) -> ApiResult<PolicyView> {
        self.not_faked()
    }

    async fn list_namespaces(
        &self,
        _ctx: &RequestContext,
        _tenant: String,
        _page: PageRequest,
    ) -> ApiResult<Page<NamespaceName>> {
        self.not_faked()
    }

    async fn create_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _partitions: u32,
    ) -> ApiResult<()> {
        self.called(&topic)
    }

    async fn describe_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _create: bool,
    ) -> ApiResult<TopicLayout> {
        self.called(&topic)?;
        Ok(TopicLayout {
            topic,
            ranges: TopicRanges::default(),
            incarnation: LIFE,
        })
    }

    async fn delete_topic(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _how: Deletion,
    ) -> ApiResult<()> {
        self.called(&topic)
    }

    async fn list_topics(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _page: PageRequest,
    ) -> ApiResult<Page<TopicDescription>> {
        self.not_faked()
    }

    async fn topic_stats(&self, _ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicStats> {
        self.called(&topic)?;
        Ok(TopicStats::default())
    }

    async fn delete_subscription(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _subscription: SubscriptionName,
        _force: bool,
    ) -> ApiResult<()> {
        self.called(&topic)
    }

    async fn create_subscription(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _subscription: SubscriptionName,
        _place: Place,
    ) -> ApiResult<Index> {
        self.called(&topic)?;
        Ok(Index(0))
    }

    async fn seek_subscription(
        &self,
        _ctx: &RequestContext,
        topic: TopicName,
        _subscription: SubscriptionName,
        _place: Place,
    ) -> ApiResult<Index> {
        self.called(&topic)?;
        Ok(Index(0))
    }

    async fn skip_messages(
        &self,
        _ctx: &RequestContext,
        _topic: TopicName,
        _subscription: SubscriptionName,
        _range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>> {
        self.not_faked()
    }

    async fn reset_subscriptions(
        &self,
        _ctx: &RequestContext,
        _topic: TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>> {
        self.not_faked()
    }
}

#[async_trait]
impl Operator for FakeBroker {
    async fn list_brokers(&self, _ctx: &RequestContext) -> ApiResult<Vec<BrokerInfo>> {
        self.not_faked()
    }

    async fn list_bundles(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
    ) -> ApiResult<Vec<BundleInfo>> {
        self.not_faked()
    }

    async fn transfer_bundle(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _bundle: BundleRange,
        _broker: Option<BrokerId>,
    ) -> ApiResult<BrokerInfo> {
        self.not_faked()
    }

    async fn split_bundle(
        &self,
        _ctx: &RequestContext,
        _namespace: NamespaceName,
        _bundle: BundleRange,
        _at: Option<u32>,
    ) -> ApiResult<[BundleRange; 2]> {
        self.not_faked()
    }

    async fn load_report(&self, _ctx: &RequestContext) -> ApiResult<LoadReport> {
        self.not_faked()
    }
}
