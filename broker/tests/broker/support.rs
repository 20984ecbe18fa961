//! A broker in a world in memory, and clients that speak its API.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aquifer_broker::{Broker, BrokerConfig, BrokerDeps};
use aquifer_ledger::testing::TestWorld;
use aquifer_log::context::LogContext;
use aquifer_log::testing::TestLogs;
use aquifer_log::{LogKind, LogOptions, TopicLog, TopicRecordCell};
use aquifer_model::batch::{self, BatchFields, MessageRecord, MessageRow};
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{Index, OwnerEpoch, ProducerInstance, TopicIncarnation};
use aquifer_model::place::Place;
use aquifer_model::policy::{EffectivePolicies, Policies, PolicyScope, PolicyUpdate, Rollover};
use aquifer_model::quorum::Quorum;
use aquifer_model::stats::TopicStats;
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::{
    Acknowledge, ConsumerEvent, ConsumerPort, ConsumerSession, Delivery, IndexRange, Subscribe,
    Subscribed,
};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind};
use aquifer_protocol_api::producer::{
    OpenProducer, ProducerOpened, ProducerPort, ProducerSession, PublishFrame, Receipt,
};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// Nothing in these tests takes this long: what is awaited for longer does not come.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Asks again until there is an answer.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    soon(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Asks again until it holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    soon(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub struct Harness {
    pub world: TestWorld,
    pub broker: Arc<Broker>,
    pub tasks: TaskGroup,
    config: BrokerConfig,
    telemetry: Telemetry,
}

pub fn config() -> BrokerConfig {
    BrokerConfig {
        housekeeping_ms: 20,
        ..BrokerConfig::default()
    }
}

impl Harness {
    pub async fn start() -> Harness {
        Harness::start_with(config()).await
    }

    pub async fn start_with(config: BrokerConfig) -> Harness {
        let mut world = TestWorld::new(1);
        world.clock = None;
        Harness::in_world(world, config).await
    }

    pub async fn in_world(world: TestWorld, config: BrokerConfig) -> Harness {
        let log = world.logs();
        Harness::over(world, config, log).await
    }

    /// The same with other logs.
    pub async fn over(world: TestWorld, config: BrokerConfig, log: Arc<LogContext>) -> Harness {
        let (tasks, telemetry) = (TaskGroup::new("broker"), Telemetry::for_tests());
        let deps = BrokerDeps {
            clock: Arc::clone(&log.ledgers.clock),
            log,
            rng: SystemRng::shared(),
            meter: telemetry.meter("broker"),
            tasks: tasks.clone(),
            lease: None,
            peers: None,
            brokers: None,
        };
        let broker = Broker::new(config.clone(), deps).await.unwrap();
        Harness {
            world,
            broker,
            tasks,
            config,
            telemetry,
        }
    }

    /// All metrics of the broker.
    pub fn metrics(&self) -> String {
        self.telemetry.render_metrics()
    }

    /// A metric of the broker that has no labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value).unwrap()
    }

    /// Another broker over the same storage, this one stopped in order.
    pub async fn restart(self) -> Harness {
        soon("shutdown", self.broker.shutdown()).await;
        Harness::in_world(self.world, self.config).await
    }

    /// Another broker over the same storage, while this one still believes to be alive.
    pub async fn rival(&self) -> Harness {
        Harness::in_world(self.world.clone(), self.config.clone()).await
    }

    pub async fn try_producer(&self, open: OpenProducer) -> ApiResult<Producer> {
        let context = ctx();
        let instance = open.instance;
        let session = self.broker.open_producer(&context, open);
        let session = soon("a producer", session).await?;
        Ok(Producer::new(session, instance))
    }

    pub async fn producer(&self, topic: &str, name: &str) -> Producer {
        self.try_producer(open(topic, name)).await.unwrap()
    }

    /// Opens again and publishes until storage takes it, as the SDK does: resent sequence ids are
    /// the ones after the highest persisted.
    pub async fn publish_at_last(
        &self,
        topic: &str,
        producer: &str,
        payloads: &[&str],
    ) -> Producer {
        let mut epoch = 100;
        eventually("storage to take messages again", || {
            epoch += 1;
            let again = OpenProducer {
                epoch,
                ..open(topic, producer)
            };
            async move {
                let mut producer = self.try_producer(again).await.ok()?;
                producer.send(payloads).await;
                producer.receipt().await.ok().map(|_| producer)
            }
        })
        .await
    }

    pub async fn try_subscribe(&self, request: Subscribe) -> ApiResult<Consumer> {
        let context = ctx();
        let session = self.broker.subscribe(&context, request);
        soon("a consumer", session).await.map(Consumer::new)
    }

    pub async fn consumer(&self, topic: &str, subscription: &str) -> Consumer {
        self.try_subscribe(subscribe(topic, subscription))
            .await
            .unwrap()
    }

    pub async fn reader(&self, topic: &str, start: Place) -> Consumer {
        let request = Subscribe {
            subscription: None,
            start,
            ..subscribe(topic, "unused")
        };
        self.try_subscribe(request).await.unwrap()
    }

    pub async fn stats(&self, topic: &str) -> TopicStats {
        let context = ctx();
        let stats = self.broker.topic_stats(&context, name(topic));
        soon("stats", stats).await.unwrap()
    }

    pub async fn set_policies(&self, policies: EffectivePolicies) {
        let update = PolicyUpdate {
            set: Policies {
                // Tenants only have it.
                weight: None,
                ..policies.into()
            },
            ..PolicyUpdate::default()
        };
        let scope = PolicyScope::Namespace(default_namespace());
        let changed = self.broker.update_policies(&ctx(), scope, update).await;
        changed.unwrap();
    }
}

/// The log of a topic's messages, as another owner opens it.
pub async fn open_log(world: &TestWorld, topic: &str) -> TopicLog {
    let context = world.logs();
    let cell = TopicRecordCell::load(context.clone(), &name(topic), Vec::new()).await;
    let options = LogOptions {
        quorum: Quorum::SINGLE,
        rollover: Rollover::default(),
        owner_epoch: OwnerEpoch(1),
    };
    let log = TopicLog::open(context, cell.unwrap().unwrap(), LogKind::Messages, options);
    log.await.unwrap()
}

pub fn ctx() -> RequestContext {
    RequestContext::anonymous("test")
}

pub fn name(topic: &str) -> TopicName {
    topic.parse().unwrap()
}

pub fn default_namespace() -> NamespaceName {
    "public/default".parse().unwrap()
}

pub fn instance(number: u8) -> ProducerInstance {
    ProducerInstance([number; 16])
}

pub fn open(topic: &str, producer: &str) -> OpenProducer {
    OpenProducer {
        topic: name(topic),
        name: Some(producer.parse().unwrap()),
        instance: instance(1),
        epoch: 0,
        take_over: false,
        incarnation: None,
    }
}

pub fn subscribe(topic: &str, subscription: &str) -> Subscribe {
    Subscribe {
        topic: name(topic),
        subscription: Some(subscription.parse().unwrap()),
        kind: SubscriptionType::Exclusive,
        consumer: None,
        start: Place::Earliest,
        incarnation: None,
        priority: 0,
        instance: None,
        epoch: 0,
    }
}

/// A batch of the first instance with these payloads, the first of which has the sequence id
/// `lowest`.
pub fn batch(producer: &str, lowest: u64, payloads: &[&str]) -> Bytes {
    batch_of(instance(1), producer, lowest, payloads)
}

fn batch_of(instance: ProducerInstance, producer: &str, lowest: u64, payloads: &[&str]) -> Bytes {
    let mut block = BytesMut::new();
    let mut rows = Vec::new();
    for (delta, payload) in payloads.iter().enumerate() {
        let record = MessageRecord {
            value: Bytes::copy_from_slice(payload.as_bytes()),
            ..MessageRecord::default()
        };
        rows.push(MessageRow {
            size_bytes: u32::try_from(record.encode(&mut block)).unwrap(),
            sequence_delta: u32::try_from(delta).unwrap(),
            ..MessageRow::default()
        });
    }
    let fields = BatchFields {
        producer_name: Bytes::copy_from_slice(producer.as_bytes()),
        producer_instance: Some(instance),
        lowest_sequence_id: lowest,
        highest_sequence_id: lowest + payloads.len() as u64 - 1,
        uncompressed_bytes: u32::try_from(block.len()).unwrap(),
        ..BatchFields::default()
    };
    batch::encode(&fields, &rows, &block).unwrap()
}

/// The payloads of a batch, without the skipped ones.
fn payloads(delivery: &Delivery) -> Vec<(u64, String)> {
    let batch = batch::Batch::parse(delivery.body.clone()).unwrap();
    let mut block = batch.payload();
    let mut messages = Vec::new();
    for (row, index) in batch.rows().zip(delivery.at.base_index.0..) {
        let record = MessageRecord::decode(block.split_to(row.size_bytes as usize)).unwrap();
        let skip = |range: &IndexRange| (range.first.0..=range.last.0).contains(&index);
        if !delivery.skip.iter().any(skip) {
            messages.push((index, String::from_utf8(record.value.to_vec()).unwrap()));
        }
    }
    messages
}

pub struct Producer {
    pub opened: ProducerOpened,
    pub port: Box<dyn ProducerPort>,
    pub receipts: mpsc::Receiver<ApiResult<Receipt>>,
    instance: ProducerInstance,
    next_frame: u64,
    pub next_sequence: u64,
}

impl Producer {
    fn new(session: ProducerSession, instance: ProducerInstance) -> Producer {
        Producer {
            instance,
            next_sequence: session.opened.last_sequence_id.map_or(0, |id| id + 1),
            opened: session.opened,
            port: session.port,
            receipts: session.receipts,
            next_frame: 1,
        }
    }

    /// Sends a batch with the next sequence ids.
    pub async fn send(&mut self, payloads: &[&str]) {
        let name = self.opened.name.as_str();
        let batch = batch_of(self.instance, name, self.next_sequence, payloads);
        self.next_sequence += payloads.len() as u64;
        self.send_batch(batch).await.unwrap();
    }

    pub async fn send_batch(&mut self, batch: Bytes) -> ApiResult<()> {
        let frame = PublishFrame {
            number: self.next_frame,
            format: FORMAT_NATIVE,
            body: batch,
        };
        self.next_frame += 1;
        soon("room", self.port.publish(vec![frame], None)).await
    }

    pub async fn receipt(&mut self) -> ApiResult<Receipt> {
        soon("a receipt", self.receipts.recv()).await.unwrap()
    }

    /// Sends a batch and waits until it is durable.
    pub async fn publish(&mut self, payloads: &[&str]) -> Receipt {
        self.send(payloads).await;
        self.receipt().await.unwrap()
    }

    /// The error that ends the session.
    pub async fn error(&mut self) -> ApiError {
        loop {
            if let Err(error) = self.receipt().await {
                return error;
            }
        }
    }
}

pub struct Consumer {
    pub opened: Subscribed,
    pub port: Box<dyn ConsumerPort>,
    pub events: mpsc::Receiver<ConsumerEvent>,
    pub seek_epoch: aquifer_model::id::SeekEpoch,
    granted: u64,
    /// Messages that came with an entry but were not asked for yet.
    waiting: std::collections::VecDeque<(u64, String)>,
    request: u64,
}

impl Consumer {
    pub fn new(session: ConsumerSession) -> Consumer {
        Consumer {
            seek_epoch: session.opened.seek_epoch,
            opened: session.opened,
            port: session.port,
            events: session.events,
            granted: 0,
            waiting: std::collections::VecDeque::new(),
            request: 0,
        }
    }

    pub async fn grant(&mut self, messages: u64) {
        self.granted += messages;
        let bytes = self.granted.saturating_mul(1 << 20);
        self.port.credit(self.granted, bytes).await.unwrap();
    }

    pub async fn event(&mut self) -> ConsumerEvent {
        soon("an event", self.events.recv()).await.unwrap()
    }

    /// The next `count` messages, granting what is needed.
    pub async fn take(&mut self, count: usize) -> Vec<(u64, String)> {
        while self.waiting.len() < count {
            if self.events.is_empty() {
                self.grant(count as u64).await;
            }
            match self.event().await {
                ConsumerEvent::Deliveries { deliveries, .. } => {
                    self.waiting.extend(deliveries.iter().flat_map(payloads));
                }
                ConsumerEvent::Active(_) => {}
                other => panic!("expected messages, got {other:?}"),
            }
        }
        self.waiting.drain(..count).collect()
    }

    pub async fn take_payloads(&mut self, count: usize) -> Vec<String> {
        let taken = self.take(count).await;
        taken.into_iter().map(|(_, payload)| payload).collect()
    }

    pub fn ack(&mut self, individual: &[u64], cumulative: Option<u64>) -> Acknowledge {
        self.request += 1;
        Acknowledge {
            request_id: self.request,
            owner_epoch: self.opened.owner_epoch,
            seek_epoch: self.seek_epoch,
            cumulative: cumulative.map(Index),
            individual: individual
                .iter()
                .map(|index| IndexRange {
                    first: Index(*index),
                    last: Index(*index),
                })
                .collect(),
        }
    }

    /// Acknowledges and waits until it is durable.
    pub async fn acknowledge(&mut self, individual: &[u64], cumulative: Option<u64>) {
        let ack = self.ack(individual, cumulative);
        let id = ack.request_id;
        self.port.acknowledge(ack).await.unwrap();
        self.confirmed(id).await;
    }

    pub async fn confirmed(&mut self, id: u64) {
        loop {
            match self.event().await {
                ConsumerEvent::Confirmed { request_id } if request_id == id => return,
                ConsumerEvent::Deliveries { deliveries, .. } => {
                    self.waiting.extend(deliveries.iter().flat_map(payloads));
                }
                ConsumerEvent::Failed(error) => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    pub async fn seek(&mut self, place: Place) -> Index {
        self.request += 1;
        let id = self.request;
        self.port.seek(id, place).await.unwrap();
        loop {
            if let ConsumerEvent::SeekDone {
                request_id,
                seek_epoch,
                index,
            } = self.event().await
                && request_id == id
            {
                self.seek_epoch = seek_epoch;
                self.waiting.clear();
                return index;
            }
        }
    }

    /// The error that ends the session.
    pub async fn error(&mut self) -> ApiError {
        loop {
            if let ConsumerEvent::Failed(error) = self.event().await {
                return error;
            }
        }
    }
}

pub fn kind<T>(result: &ApiResult<T>) -> Option<ErrorKind> {
    result.as_ref().err().map(|error| error.kind)
}

pub fn known(topic: TopicIncarnation, open: OpenProducer) -> OpenProducer {
    OpenProducer {
        incarnation: Some(topic),
        ..open
    }
}
