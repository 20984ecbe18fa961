//! How closely limits are held.

use std::time::Duration;

use anyhow::Result;
use aquifer_client::Client;
use aquifer_harness::cluster::Cluster;
use aquifer_model::policy::rate::{AggregateRate, Rate};
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate};
use aquifer_runtime::clock::{Clock, SystemClock};

use crate::Suite;
use crate::load::{Load, Until};
use crate::row::{Bound, Row};

/// Messages a second that the topic takes.
const RATE: u64 = 10_000;
/// The producer sends as fast as it may for this long.
const SECONDS: u64 = 30;
/// Topics of the tenant whose rate is limited.
const TOPICS: usize = 20;
/// A changed limit shows within this.
const SHOWS: Duration = Duration::from_secs(2);
/// What passes of a changed limit is counted for this time.
const COUNTED: Duration = Duration::from_secs(10);

impl Suite {
    /// A topic with a publish rate, and a producer that would send many times as much. What passes
    /// beyond the rate is its burst, a second of it.
    pub(crate) async fn limited(&mut self) -> Result<()> {
        let (topic, client) = (self.topic(), self.client()?);
        client.admin().create_topic(&topic, 0).await?;
        let limit = Rate {
            messages: Some(RATE),
            ..Rate::UNLIMITED
        };
        let update = PolicyUpdate {
            set: Policies {
                publish_rate: Some(limit),
                ..Policies::default()
            },
            ..PolicyUpdate::default()
        };
        let scope = PolicyScope::Topic(topic.parse()?);
        client.admin().update_policies(&scope, update).await?;
        let load = self.load(self.seconds(SECONDS), 1_000).topic(&topic);
        let published = load.produce().await?.complete()?;
        self.remove(&client, &[topic]).await?;
        let wanted = RATE as f64;
        let off = (published.messages_per_second - wanted).abs() / wanted * 100.0;
        let row = Row::new(
            "publish at a limit of 10,000 msg/s, off by",
            off,
            "%",
            Bound::AtMost,
            5.0,
        );
        let note = format!(
            "{:.0} msg/s over {:.1} s",
            published.messages_per_second, published.seconds
        );
        self.rows.push(row.note(note));
        Ok(())
    }

    /// A tenant with topics on three brokers of a cluster, and a limit of all of them together,
    /// which is halved while it is used.
    pub(crate) async fn limited_tenant(&mut self) -> Result<()> {
        let data_dir = self.directory.join("limited-cluster");
        let mut cluster = Cluster::start(&data_dir, &["--brokers", "3"])?;
        let result = self.measure_limited_tenant(&cluster).await;
        cluster.stop()?;
        result
    }

    async fn measure_limited_tenant(&mut self, cluster: &Cluster) -> Result<()> {
        let client = cluster.client()?;
        client.admin().create_tenant("limited").await?;
        client
            .admin()
            .create_namespace("limited/n", Policies::default())
            .await?;
        // The burst of the limit is there once, and is used up before anything is counted.
        set_tenant_rate(&client, RATE).await?;
        let Until::Elapsed(time) = self.seconds(SECONDS) else {
            anyhow::bail!("a rate is measured for a time");
        };
        let until = Until::Elapsed(time + 4 * SHOWS + COUNTED);
        let load = Load::new(cluster.url(), until, 1_000)
            .topic("limited/n/t")
            .topics(TOPICS);
        let measuring = async {
            aquifer_runtime::clock::sleep(2 * SHOWS).await;
            let before = rate_over(&client, time).await?;
            set_tenant_rate(&client, RATE / 2).await?;
            aquifer_runtime::clock::sleep(SHOWS).await;
            anyhow::Ok((before, rate_over(&client, COUNTED).await?))
        };
        let (published, measured) = futures::join!(load.produce(), measuring);
        let (published, (held, halved)) = (published?.complete()?, measured?);
        let names = [
            "publish of a tenant on 3 brokers at a limit of 10,000 msg/s, off by",
            "the same from 2 s after the limit was halved, off by",
        ];
        for ((name, rate), wanted) in names.into_iter().zip([held, halved]).zip([RATE, RATE / 2]) {
            let off = (rate - wanted as f64).abs() / wanted as f64 * 100.0;
            let row = Row::new(name, off, "%", Bound::AtMost, 5.0);
            let note = format!("{rate:.0} msg/s; {} failed", published.errors);
            self.rows.push(row.note(note));
        }
        Ok(())
    }
}

async fn set_tenant_rate(client: &Client, messages: u64) -> Result<()> {
    let publish = Rate {
        messages: Some(messages),
        ..Rate::UNLIMITED
    };
    let update = PolicyUpdate {
        set: Policies {
            aggregate_rate: Some(AggregateRate {
                publish,
                ..AggregateRate::default()
            }),
            ..Policies::default()
        },
        ..PolicyUpdate::default()
    };
    let scope = PolicyScope::Tenant("limited".to_owned());
    client.admin().update_policies(&scope, update).await?;
    Ok(())
}

/// Messages a second that all topics together have taken in a time from now on.
async fn rate_over(client: &Client, time: Duration) -> Result<f64> {
    let clock = SystemClock;
    let (began, first) = (clock.monotonic(), published(client).await?);
    aquifer_runtime::clock::sleep(time).await;
    let (ended, last) = (clock.monotonic(), published(client).await?);
    Ok((last - first) as f64 / (ended - began).as_secs_f64())
}

async fn published(client: &Client) -> Result<u64> {
    let (mut sum, admin) = (0, client.admin());
    for number in 0..TOPICS {
        let stats = admin.topic_stats(&format!("limited/n/t-{number}")).await?;
        sum += stats.end_index.0;
    }
    Ok(sum)
}
