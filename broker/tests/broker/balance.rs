//! Brokers of a cluster that share metadata and bookies in memory, and are asked for their load.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use aquifer_broker::{BalanceConfig, Broker, BrokerConfig, BrokerDeps, LoadReports, NoReport};
use aquifer_ledger::testing::TestWorld;
use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::lease::Lease;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::bundle::BundleRange;
use aquifer_model::load::LoadReport;
use aquifer_protocol_api::broker::{BrokerApi, OpenProducer, ProducerSession, PublishFrame};
use aquifer_protocol_api::error::ErrorKind;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{Disk, SimDisk};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use async_trait::async_trait;
use parking_lot::Mutex;

use crate::support::{Consumer, batch, ctx, default_namespace, eventually, open, soon, subscribe};

const TTL: Duration = Duration::from_secs(6);
const BUNDLES: u32 = 16;
const TOPICS: usize = 60;

/// The way from one broker to the others; one that is removed does not answer.
#[derive(Default)]
struct Reports {
    brokers: Mutex<HashMap<String, Weak<Broker>>>,
}

#[async_trait]
impl LoadReports for Reports {
    async fn report(&self, url: &str) -> Result<LoadReport, NoReport> {
        let found = self.brokers.lock().get(url).and_then(Weak::upgrade);
        let broker = found.ok_or_else(|| NoReport(format!("nobody is at {url}")))?;
        let report = broker.load_report(&ctx()).await;
        report.map_err(|error| NoReport(error.to_string()))
    }
}

struct Cluster {
    world: TestWorld,
    store: Arc<dyn MetadataStore>,
    reports: Arc<Reports>,
    tasks: TaskGroup,
    config: BrokerConfig,
}

struct Member {
    broker: Arc<Broker>,
    lease: Lease,
    url: String,
}

fn config(bundles: u32) -> BrokerConfig {
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
    async fn new(config: BrokerConfig) -> Cluster {
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
            reports: Arc::default(),
            tasks,
            config,
        }
    }

    async fn join(&self, name: &str) -> Member {
        let transport = Arc::new(self.world.bookies.clone());
        let settings = TestWorld::settings();
        let log = self
            .world
            .process_with(Arc::clone(&self.store), transport, settings);
        let rng = SystemRng::shared();
        let lease = Lease::start(Arc::clone(&self.store), TTL, Arc::clone(&rng), &self.tasks);
        let deps = BrokerDeps {
            clock: Arc::clone(&log.clock),
            log,
            rng,
            meter: Telemetry::for_tests().meter("broker"),
            tasks: TaskGroup::new("broker"),
            lease: Some(lease.clone()),
            reports: Some(self.reports.clone()),
        };
        let broker = Broker::new(self.config.clone(), deps).await.unwrap();
        let url = format!("http://{name}");
        let reached = Arc::downgrade(&broker);
        self.reports.brokers.lock().insert(url.clone(), reached);
        broker.announce(&url);
        soon("the announcement", lease.announced()).await;
        Member { broker, lease, url }
    }

    /// A producer of a topic, found as a client finds it, and where.
    async fn producer(&self, first: &Member, topic: &str) -> (String, ProducerSession) {
        let found = async {
            let (mut url, mut epoch) = (first.url.clone(), 0);
            loop {
                epoch += 1;
                let request = OpenProducer {
                    epoch,
                    ..open(topic, "p")
                };
                let broker = self.reports.brokers.lock().get(&url).cloned();
                let broker = broker.and_then(|broker| broker.upgrade()).unwrap();
                match broker.open_producer(&ctx(), request).await {
                    Ok(session) => return (url, session),
                    Err(error) => url = error.redirect_url.unwrap_or(url),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("a producer", found).await
    }

    /// A message in each topic. The sessions end, the topics stay loaded.
    async fn publish(&self, at: &Member, topics: &[String]) {
        for topic in topics {
            let (_, mut session) = self.producer(at, topic).await;
            let last = session.opened.last_sequence_id;
            let frame = PublishFrame {
                number: 1,
                batch: batch("p", last.map_or(0, |last| last + 1), &["a message"]),
            };
            session.port.publish(vec![frame]).await.unwrap();
            soon("a receipt", session.receipts.recv())
                .await
                .unwrap()
                .unwrap();
        }
    }
}

fn topics() -> Vec<String> {
    (0..TOPICS)
        .map(|number| format!("topic-{number}"))
        .collect()
}

/// How many bundles each of them owns, as metadata says.
async fn owned(asked: &Member, members: &[&Member]) -> Vec<usize> {
    let bundles = asked.broker.list_bundles(&ctx(), default_namespace()).await;
    let bundles = bundles.unwrap();
    let count = |member: &&Member| {
        let owners = bundles.iter().filter_map(|bundle| bundle.broker);
        owners.filter(|owner| *owner == member.broker.id()).count()
    };
    members.iter().map(count).collect()
}

/// Waits until a broker has about its share of the bundles.
async fn gets_its_share(newcomer: &Member, members: &[&Member]) {
    let share = BUNDLES as usize / members.len();
    eventually("a share", || async {
        let owned = owned(newcomer, members).await;
        let has = *owned.last().unwrap();
        assert_eq!(owned.iter().sum::<usize>(), BUNDLES as usize, "{owned:?}");
        (has + 1 >= share).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_joins_gets_its_share_from_whoever_leads() {
    let cluster = Cluster::new(config(BUNDLES)).await;
    let first = cluster.join("a").await;
    let topics = topics();
    cluster.publish(&first, &topics).await;
    assert_eq!(owned(&first, &[&first]).await, [BUNDLES as usize]);
    let second = cluster.join("b").await;
    gets_its_share(&second, &[&first, &second]).await;
    // Who led is gone, and so is what it owned; another leads.
    soon("the end", first.broker.hand_over()).await;
    soon("the end", first.lease.close()).await;
    soon("the end", first.broker.shutdown()).await;
    assert_eq!(owned(&second, &[&second]).await, [BUNDLES as usize]);
    cluster.publish(&second, &topics).await;
    // What was handed over a moment ago stays for now.
    let third = cluster.join("c").await;
    assert_eq!(owned(&third, &[&third]).await, [0]);
    for topic in &topics {
        let (url, session) = cluster.producer(&third, topic).await;
        assert_eq!(session.opened.last_sequence_id, Some(1), "{topic}");
        assert_eq!(url, second.url);
    }
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_left_alone() {
    let cluster = Cluster::new(config(BUNDLES)).await;
    let first = cluster.join("a").await;
    cluster.publish(&first, &topics()).await;
    let second = cluster.join("b").await;
    cluster.reports.brokers.lock().remove(&second.url);
    let third = cluster.join("c").await;
    // By then the leader has seen both brokers, with and without a report, more than once.
    gets_its_share(&third, &[&first, &third]).await;
    assert_eq!(owned(&first, &[&second]).await, [0]);
}

#[tokio::test]
async fn a_split_without_a_hash_halves_the_load_whoever_is_asked() {
    let cluster = Cluster::new(config(1)).await;
    let (first, second) = (cluster.join("a").await, cluster.join("b").await);
    let topics: Vec<String> = topics().into_iter().take(2).collect();
    cluster.publish(&first, &topics).await;
    let members = [&first, &second];
    let measured = || async {
        let mut loaded = BTreeMap::new();
        for member in members {
            let report = member.broker.load_report(&ctx()).await.unwrap();
            for bundle in report.bundles {
                loaded.insert(bundle.range, bundle.load.topics);
            }
        }
        loaded
    };
    let whole = eventually("both topics to be measured", || async {
        let loaded = measured().await;
        let whole = loaded.iter().find(|(_, topics)| **topics == 2);
        whole.map(|(range, _)| *range)
    })
    .await;
    // Whose the bundle is decides a hash; the other one has to ask.
    let is_first = owned(&first, &[&first]).await == [1];
    let other = if is_first { &second } else { &first };
    let context = ctx();
    let split = other
        .broker
        .split_bundle(&context, default_namespace(), whole, None);
    soon("a split", split).await.unwrap();
    eventually("the parts to be measured", || async {
        let loaded: Vec<u64> = measured().await.into_values().collect();
        (loaded == [1, 1]).then_some(())
    })
    .await;
    let again = first
        .broker
        .split_bundle(&context, default_namespace(), whole, None);
    assert_eq!(again.await.unwrap_err().kind, ErrorKind::NotFound);
}

/// Sessions go on over a split, and what they were given before it counts when it is acknowledged.
#[tokio::test]
async fn acknowledgements_count_over_a_split_i9() {
    let cluster = Cluster::new(config(1)).await;
    let member = cluster.join("a").await;
    let topics = topics()[..1].to_vec();
    cluster.publish(&member, &topics).await;
    let context = ctx();
    let session = member
        .broker
        .subscribe(&context, subscribe(&topics[0], "s"));
    let mut consumer = Consumer::new(soon("a consumer", session).await.unwrap());
    let before = consumer.take(1).await[0].0;
    let whole = BundleRange {
        first: 0,
        last: u32::MAX,
    };
    let half = Some(1 << 31);
    let split = member
        .broker
        .split_bundle(&context, default_namespace(), whole, half);
    soon("a split", split).await.unwrap();
    // The owner knows of it once it publishes under the new record.
    cluster.publish(&member, &topics).await;
    let after = consumer.take(1).await[0].0;
    soon("a receipt", consumer.acknowledge(&[before], None)).await;
    soon("a receipt", consumer.acknowledge(&[after], None)).await;
}
