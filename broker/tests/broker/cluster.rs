//! Brokers of a cluster in memory, which share metadata and bookies.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use aquifer_broker::{BalanceConfig, Broker, BrokerConfig, BrokerDeps, Lines, NoReport, Peers};
use aquifer_ledger::testing::TestWorld;
use aquifer_log::testing::TestLogs;
use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::error::MetadataResult;
use aquifer_metadata::intercept::Intercept;
use aquifer_metadata::lease::Lease;
use aquifer_metadata::store::{
    MetadataStore, Operation, PageToken, Revision, ScanPage, Transaction, Until,
};
use aquifer_model::bundle::BundleRange;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::hash::key_hash;
use aquifer_model::id::Index;
use aquifer_model::listener::Listeners;
use aquifer_model::load::LoadReport;
use aquifer_model::place::Place;
use aquifer_model::stats::{OffloadProgress, TopicEnd, TopicStats};
use aquifer_model::subscription::Properties;
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::admin::{Admin, Clear, Deletion, Peeked, Reimport, SubscriptionReset};
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind, Outcome};
use aquifer_protocol_api::operator::Operator;
use aquifer_protocol_api::producer::{OpenProducer, ProducerSession, PublishFrame};
use aquifer_protocol_api::security::{AuditPage, ReadAudit, Security};
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{Disk, SimDisk};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Barrier, watch};

use crate::support::{batch, ctx, default_namespace, eventually, name, open, soon};

const TTL: Duration = Duration::from_secs(6);

/// The way from one broker to the others; one that is removed does not answer.
#[derive(Default)]
pub struct Reports {
    pub brokers: Mutex<HashMap<String, Weak<Broker>>>,
    /// The answer of the next change of a subscription gets lost. It is waited for once when the
    /// change is made, and once before the failure is told.
    pub lost: Mutex<Option<Arc<Barrier>>>,
}

impl Reports {
    fn at(&self, url: &str) -> ApiResult<Arc<Broker>> {
        let found = self.brokers.lock().get(url).and_then(Weak::upgrade);
        found.ok_or_else(|| ApiError::new(ErrorKind::Unavailable, format!("no broker is at {url}")))
    }

    async fn answer<T>(&self, answer: ApiResult<T>) -> ApiResult<T> {
        let lost = self.lost.lock().take();
        let Some(lost) = lost else {
            return answer;
        };
        answer?;
        lost.wait().await;
        lost.wait().await;
        let error = ApiError::new(ErrorKind::Unavailable, "the answer was lost");
        Err(error.outcome(Outcome::Unknown))
    }
}

#[async_trait]
impl Peers for Reports {
    async fn report(&self, url: &str) -> Result<LoadReport, NoReport> {
        let found = self.brokers.lock().get(url).and_then(Weak::upgrade);
        let broker = found.ok_or_else(|| NoReport(format!("no broker is at {url}")))?;
        let report = broker.load_report(&ctx()).await;
        report.map_err(|error| NoReport(error.to_string()))
    }

    async fn topic_stats(&self, url: &str, topic: &TopicName) -> ApiResult<TopicStats> {
        self.at(url)?.topic_stats(&ctx(), topic.clone()).await
    }

    async fn delete_topic(&self, url: &str, topic: &TopicName, how: Deletion) -> ApiResult<()> {
        self.at(url)?.delete_topic(&ctx(), topic.clone(), how).await
    }

    async fn create_topic(&self, url: &str, topic: &TopicName, partitions: u32) -> ApiResult<()> {
        let (broker, context) = (self.at(url)?, ctx());
        let created = broker.create_topic(&context, topic.clone(), partitions);
        created.await
    }

    async fn offload_topic(
        &self,
        url: &str,
        topic: &TopicName,
        before: Place,
    ) -> ApiResult<OffloadProgress> {
        let (broker, context) = (self.at(url)?, ctx());
        let left = broker.offload_topic(&context, topic.clone(), before);
        left.await
    }

    async fn reimport_topic(
        &self,
        url: &str,
        topic: &TopicName,
        what: Reimport,
    ) -> ApiResult<OffloadProgress> {
        let (broker, context) = (self.at(url)?, ctx());
        let left = broker.reimport_topic(&context, topic.clone(), what);
        left.await
    }

    async fn reset_subscriptions(
        &self,
        url: &str,
        topic: &TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>> {
        let (broker, context) = (self.at(url)?, ctx());
        let reset = broker.reset_subscriptions(&context, topic.clone());
        reset.await
    }

    async fn skip_messages(
        &self,
        url: &str,
        topic: &TopicName,
        name: &SubscriptionName,
        range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>> {
        let (broker, context) = (self.at(url)?, ctx());
        let skipped = broker.skip_messages(&context, topic.clone(), name.clone(), range);
        skipped.await
    }

    async fn peek_messages(
        &self,
        url: &str,
        topic: &TopicName,
        name: &SubscriptionName,
        limit: usize,
    ) -> ApiResult<Peeked> {
        let (broker, context) = (self.at(url)?, ctx());
        let peeked = broker.peek_messages(&context, topic.clone(), name.clone(), limit);
        peeked.await
    }

    async fn unload_topic(&self, url: &str, topic: &TopicName) -> ApiResult<u32> {
        self.at(url)?.unload_topic(&ctx(), topic.clone()).await
    }

    async fn terminate_topic(&self, url: &str, topic: &TopicName) -> ApiResult<Vec<TopicEnd>> {
        self.at(url)?.terminate_topic(&ctx(), topic.clone()).await
    }

    async fn create_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        name: &SubscriptionName,
        place: Place,
        properties: &Properties,
    ) -> ApiResult<Index> {
        let (broker, context) = (self.at(url)?, ctx());
        let (topic, name, properties) = (topic.clone(), name.clone(), properties.clone());
        let created = broker.create_subscription(&context, topic, name, place, properties);
        self.answer(created.await).await
    }

    async fn delete_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        name: &SubscriptionName,
        force: bool,
    ) -> ApiResult<()> {
        let (broker, context) = (self.at(url)?, ctx());
        let deleted = broker.delete_subscription(&context, topic.clone(), name.clone(), force);
        self.answer(deleted.await).await
    }

    async fn seek_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        name: &SubscriptionName,
        place: Place,
    ) -> ApiResult<Index> {
        let (broker, context) = (self.at(url)?, ctx());
        let moved = broker.seek_subscription(&context, topic.clone(), name.clone(), place);
        self.answer(moved.await).await
    }

    async fn append(&self, url: &str, _topic: &TopicName, _lines: &Lines) -> ApiResult<()> {
        // These brokers have no guard, and so no audit log.
        self.at(url).map(drop)
    }

    async fn read_audit(&self, url: &str, read: ReadAudit) -> ApiResult<AuditPage> {
        self.at(url)?.read_audit(&ctx(), read).await
    }

    async fn clear_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        name: &SubscriptionName,
        clear: Clear,
    ) -> ApiResult<u64> {
        let (broker, context) = (self.at(url)?, ctx());
        let cleared = broker.clear_subscription(&context, topic.clone(), name.clone(), clear);
        self.answer(cleared.await).await
    }
}

pub struct Cluster {
    pub world: TestWorld,
    pub store: Arc<dyn MetadataStore>,
    pub peers: Arc<Reports>,
    tasks: TaskGroup,
    config: BrokerConfig,
}

pub struct Member {
    pub broker: Arc<Broker>,
    pub lease: Lease,
    pub url: String,
}

pub fn config(bundles: u32) -> BrokerConfig {
    BrokerConfig {
        namespace_bundles: bundles,
        balance: BalanceConfig {
            period_ms: 100,
            window_ms: 1_000,
            moved_percent_per_minute_max: 100,
            ..BalanceConfig::default()
        },
        ..crate::support::config()
    }
}

impl Cluster {
    pub async fn new(config: BrokerConfig) -> Cluster {
        let disk = SimDisk::new();
        disk.create_dir_all("/data".as_ref()).unwrap();
        let tasks = TaskGroup::new("cluster");
        let store = EmbeddedStore::open(
            "/data/metadata.redb".into(),
            EmbeddedOptions::default(),
            disk.shared(),
            SystemClock::shared(),
            &tasks,
        );
        let mut world = TestWorld::new(1);
        world.clock = None;
        Cluster {
            world,
            store: Arc::new(store.await.unwrap()),
            peers: Arc::default(),
            tasks,
            config,
        }
    }

    pub async fn join(&self, name: &str) -> Member {
        self.join_over(name, Arc::clone(&self.store)).await
    }

    /// A broker that reaches metadata through this store.
    pub async fn join_over(&self, name: &str, store: Arc<dyn MetadataStore>) -> Member {
        let transport = Arc::new(self.world.bookies.clone());
        let settings = TestWorld::settings();
        let log = self.world.logs_with(store, transport, settings);
        let rng = SystemRng::shared();
        let lease = Lease::start(Arc::clone(&self.store), TTL, Arc::clone(&rng), &self.tasks);
        let deps = BrokerDeps {
            clock: Arc::clone(&log.ledgers.clock),
            log,
            rng,
            meter: Telemetry::for_tests().meter("broker"),
            tasks: TaskGroup::new("broker"),
            lease: Some(lease.clone()),
            peers: Some(self.peers.clone()),
            brokers: None,
        };
        let broker = Broker::new(self.config.clone(), deps).await.unwrap();
        let url = format!("http://{name}");
        let reached = Arc::downgrade(&broker);
        self.peers.brokers.lock().insert(url.clone(), reached);
        broker.announce(&Listeners::only_default(&url));
        soon("the announcement", lease.announced()).await;
        Member { broker, lease, url }
    }

    /// A producer of a topic, found as a client finds it, and where.
    pub async fn producer(&self, first: &Member, topic: &str) -> (String, ProducerSession) {
        let found = async {
            let (mut url, mut epoch) = (first.url.clone(), 0);
            loop {
                epoch += 1;
                let request = OpenProducer {
                    epoch,
                    ..open(topic, "p")
                };
                let broker = self.peers.brokers.lock().get(&url).cloned();
                let broker = broker.and_then(|broker| broker.upgrade()).unwrap();
                match broker.open_producer(&ctx(), request).await {
                    Ok(session) => return (url, session),
                    Err(error) => url = error.redirect.map_or(url, |at| at.to_string()),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("a producer", found).await
    }

    /// A message in each topic. The sessions end, the topics stay loaded.
    pub async fn publish(&self, at: &Member, topics: &[String]) {
        for topic in topics {
            let (_, mut session) = self.producer(at, topic).await;
            let last = session.opened.last_sequence_id;
            let frame = PublishFrame {
                number: 1,
                format: FORMAT_NATIVE,
                body: batch("p", last.map_or(0, |last| last + 1), &["a message"]),
            };
            session.port.publish(vec![frame], None).await.unwrap();
            soon("a receipt", session.receipts.recv())
                .await
                .unwrap()
                .unwrap();
        }
    }

    /// The bundle that a topic is in.
    pub async fn bundle_of(&self, asked: &Member, topic: &str) -> BundleRange {
        let hash = key_hash(name(topic).name().as_bytes());
        let bundles = asked.broker.list_bundles(&ctx(), default_namespace()).await;
        let mut ranges = bundles.unwrap().into_iter().map(|bundle| bundle.range);
        let found = ranges.find(|range| (range.first..=range.last).contains(&hash));
        found.unwrap()
    }

    /// Gives a bundle to a broker.
    pub async fn transfer(&self, bundle: BundleRange, from: &Member, to: &Member) {
        let (context, target) = (ctx(), Some(to.broker.id()));
        let moved = from
            .broker
            .transfer_bundle(&context, default_namespace(), bundle, target);
        soon("a transfer", moved).await.unwrap();
    }
}

/// Metadata that keeps changes waiting whose keys contain what a test says.
pub struct HeldStore {
    inner: Arc<dyn MetadataStore>,
    held: watch::Sender<Option<&'static str>>,
    waiting: AtomicUsize,
    /// Of which prefixes keys were listed.
    scanned: Mutex<Vec<String>>,
}

impl HeldStore {
    pub fn over(inner: &Arc<dyn MetadataStore>) -> Arc<HeldStore> {
        Arc::new(HeldStore {
            inner: Arc::clone(inner),
            held: watch::Sender::new(None),
            waiting: AtomicUsize::new(0),
            scanned: Mutex::default(),
        })
    }

    /// Holds changes of keys that contain this, or lets all go.
    pub fn hold(&self, part: Option<&'static str>) {
        self.held.send_replace(part);
    }

    /// How often the keys below a prefix were listed.
    pub fn scans(&self, prefix: &str) -> usize {
        let scanned = self.scanned.lock();
        scanned.iter().filter(|one| *one == prefix).count()
    }

    /// Waits until this many changes wait.
    pub async fn holds(&self, count: usize) {
        eventually("changes to be held", || async {
            (self.waiting.load(Ordering::SeqCst) >= count).then_some(())
        })
        .await;
    }
}

#[async_trait]
impl Intercept for HeldStore {
    fn inner(&self) -> &dyn MetadataStore {
        &*self.inner
    }

    async fn on_scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        self.scanned.lock().push(prefix.to_owned());
        // As long as a store of other machines takes, so that others come meanwhile.
        tokio::task::yield_now().await;
        self.inner.scan(prefix, page, limit).await
    }

    async fn on_commit(&self, transaction: Transaction, until: Until) -> MetadataResult<Revision> {
        let is_of = |part: &str| {
            transaction.operations.iter().any(|operation| {
                let (Operation::Put { key, .. } | Operation::Delete { key, .. }) = operation;
                key.contains(part)
            })
        };
        let is_free = |held: &Option<&'static str>| !held.is_some_and(is_of);
        let mut held = self.held.subscribe();
        if !is_free(&held.borrow_and_update()) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            held.wait_for(is_free).await.unwrap();
        }
        self.inner.commit_until(transaction, until).await
    }
}
