//! Isolation: a tenant at a fifth of the server's capacity beside one that abuses it, compared with
//! the same tenant alone in the same run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_client::{Client, Consumer, Place};
use aquifer_model::policy::Policies;
use futures::{StreamExt, TryStreamExt};

use crate::Suite;
use crate::load::{EndToEnd, Load, Until};
use crate::row::{Bound, Row};

const VICTIM: &str = "victim";
const ABUSER: &str = "abuser";
/// The victim publishes this part of what one producer alone can.
const VICTIM_PART: f64 = 0.2;
/// Each measurement of the victim lasts so long.
const SECONDS: u64 = 20;
/// The abuser begins before the victim is measured, and goes on behind it.
const MARGIN: Duration = Duration::from_secs(3);
/// Topics that the abuser floods.
const FLOODED_TOPICS: usize = 50;
/// Nearly as many as a topic may have, whose readers count too.
const SUBSCRIPTIONS: u64 = 9_900;
/// Consumers that take nothing.
const STALLED_CONSUMERS: usize = 20;
/// Subscriptions that are created at once.
const AT_ONCE: usize = 32;

impl Suite {
    /// The victim alone, and beside everything that the abuser does at once.
    pub(crate) async fn isolation(&mut self) -> Result<()> {
        let rate = self.alone().await? * VICTIM_PART;
        let client = self.client()?;
        for tenant in [VICTIM, ABUSER] {
            client.admin().create_tenant(tenant).await?;
            let namespace = format!("{tenant}/n");
            let admin = client.admin();
            admin
                .create_namespace(&namespace, Policies::default())
                .await?;
        }
        let topic = format!("{VICTIM}/n/orders");
        let victim = self
            .load(self.seconds(SECONDS), 10_000)
            .topic(&topic)
            .rate(rate);
        let warm_up = self.load(self.messages(100_000), 1_000).topic(&topic);
        warm_up.end_to_end().await?;
        let solo = complete(victim.end_to_end().await?)?;
        let abuse = self.prepare_abuse(&client).await?;
        let (beside, did) = abuse.beside(&victim).await?;
        let beside = complete(beside)?;
        self.push_isolation(&solo, &beside, did);
        let topics = client.admin().list_topics(&format!("{ABUSER}/n")).await?;
        let topics: Vec<String> = topics.into_iter().map(|topic| topic.topic).collect();
        self.remove(&client, &topics).await?;
        self.remove(&client, &[topic]).await
    }

    async fn prepare_abuse(&self, client: &Client) -> Result<Abuse> {
        let url = self.server.url();
        let backlog = format!("{ABUSER}/n/backlog");
        let filling = self.load(self.messages(1_000_000), 10_000).topic(&backlog);
        filling.produce().await?.complete()?;
        let crowded = format!("{ABUSER}/n/crowded");
        client.admin().create_topic(&crowded, 0).await?;
        let count = if self.quick {
            SUBSCRIPTIONS / 20
        } else {
            SUBSCRIPTIONS
        };
        let admin = client.admin();
        let creating = futures::stream::iter(0..count).map(|number| {
            let (admin, crowded) = (&admin, &crowded);
            async move {
                let name = format!("s-{number}");
                admin
                    .create_subscription(crowded, &name, Place::Latest)
                    .await
            }
        });
        let created = creating.buffer_unordered(AT_ONCE);
        let created: Vec<_> = created.try_collect().await?;
        let flooded = format!("{ABUSER}/n/flood");
        let mut stalled = Vec::new();
        for number in 0..STALLED_CONSUMERS {
            let topic = format!("{flooded}-{number}");
            client.admin().create_topic(&topic, 0).await?;
            stalled.push(client.consumer(&topic, "stalled").open().await?);
        }
        let Until::Elapsed(time) = self.seconds(SECONDS) else {
            anyhow::bail!("the victim is measured for a time");
        };
        let until = Until::Elapsed(time + 2 * MARGIN);
        Ok(Abuse {
            flood: Load::new(&url, until, 10_000)
                .topic(&flooded)
                .topics(FLOODED_TOPICS),
            crowd: Load::new(&url, until, 1_000).topic(&crowded).rate(100.0),
            backlog: filling,
            subscriptions: created.len(),
            stalled,
            url,
        })
    }

    fn push_isolation(&mut self, solo: &EndToEnd, beside: &EndToEnd, did: Did) {
        let (alone, shared) = (&solo.received, &beside.received);
        let times = shared.latency_us.p99 / alone.latency_us.p99;
        let row = Row::new(
            "isolation: end-to-end p99 of a tenant beside an abuser",
            times,
            "× alone",
            Bound::AtMost,
            2.0,
        );
        self.rows.push(row.note(format!(
            "p50 {:.2} ms, p99 {:.2} ms; alone {:.2} and {:.2} ms; beside it {:.0} msg/s flooded, \
             {} subscriptions, {} stalled consumers, {} messages of a backlog read, \
             {} connections",
            shared.latency_us.p50 / 1e3,
            shared.latency_us.p99 / 1e3,
            alone.latency_us.p50 / 1e3,
            alone.latency_us.p99 / 1e3,
            did.flooded_per_second,
            did.subscriptions,
            did.stalled,
            did.read,
            did.connections,
        )));
        let part = 100.0 * shared.messages_per_second / alone.messages_per_second;
        let row = Row::new(
            "isolation: throughput of a tenant beside an abuser",
            part,
            "% of alone",
            Bound::AtLeast,
            95.0,
        );
        self.rows.push(row.note(format!(
            "{:.0} msg/s; alone {:.0}",
            shared.messages_per_second, alone.messages_per_second
        )));
    }
}

/// What the abuser does, all at once.
struct Abuse {
    flood: Load,
    /// On the topic with all the subscriptions.
    crowd: Load,
    /// Each of its consumers reads what was published before.
    backlog: Load,
    subscriptions: usize,
    stalled: Vec<Consumer>,
    url: String,
}

/// What the abuser has done.
struct Did {
    flooded_per_second: f64,
    subscriptions: usize,
    stalled: usize,
    read: u64,
    connections: u64,
}

impl Abuse {
    /// Abuses the server while the victim is measured.
    async fn beside(self, victim: &Load) -> Result<(EndToEnd, Did)> {
        let is_over = Arc::new(AtomicBool::new(false));
        let connections = AtomicU64::new(0);
        let churning = async {
            while !is_over.load(Ordering::Relaxed) {
                // One that is refused is what the abuser deserves.
                let client = Client::builder().url(&self.url).build()?;
                let _ = client.connect().await;
                connections.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let reading = async {
            let mut read = 0;
            while !is_over.load(Ordering::Relaxed) {
                read += self.backlog.consume().await?.messages;
            }
            anyhow::Ok(read)
        };
        let measuring = async {
            aquifer_runtime::clock::sleep(MARGIN).await;
            let measured = victim.end_to_end().await;
            is_over.store(true, Ordering::Relaxed);
            measured
        };
        let (flood, crowd, churned, read, measured) = futures::join!(
            self.flood.produce(),
            self.crowd.produce(),
            churning,
            reading,
            measuring
        );
        // What fails for the abuser is no failure of the measurement, but it must have tried.
        let flooded_per_second = flood.context("the flood")?.messages_per_second;
        crowd.context("the crowd")?;
        churned?;
        let did = Did {
            flooded_per_second,
            subscriptions: self.subscriptions,
            stalled: self.stalled.len(),
            read: read.context("the reader of a backlog")?,
            connections: connections.into_inner(),
        };
        Ok((measured?, did))
    }
}

/// Refuses a result with failures.
pub(crate) fn complete(done: EndToEnd) -> Result<EndToEnd> {
    done.published.clone().complete()?;
    done.received.clone().complete()?;
    Ok(done)
}
