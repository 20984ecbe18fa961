//! Isolation from a tenant whose storage stalls: a tenant at a fifth of a cluster's capacity, whose
//! messages are acknowledged by two of three bookies, beside one that floods topics which need all
//! three, of which one is paused. It is compared with the same tenant alone beside the same paused
//! bookie.

use std::time::Duration;

use anyhow::{Result, bail};
use aquifer_client::Client;
use aquifer_harness::cluster::Cluster;
use aquifer_model::policy::Policies;
use aquifer_model::quorum::Quorum;
use rustix::process::Signal;

use crate::Suite;
use crate::isolation::complete;
use crate::load::{EndToEnd, Load, Report, Until};
use crate::row::{Bound, Row};

const BOOKIES: u8 = 3;
/// The bookie that is paused.
const STALLED: &str = "bookie-3";
const VICTIM: &str = "victim";
const ABUSER: &str = "abuser";
/// The victim publishes this part of what one producer alone can.
const VICTIM_PART: f64 = 0.2;
/// Each measurement of the victim lasts this long.
const SECONDS: u64 = 20;
/// The flood begins before the victim is measured, and goes on behind it.
const MARGIN: Duration = Duration::from_secs(3);
/// Topics that the abuser floods.
const FLOODED_TOPICS: usize = 50;

impl Suite {
    /// The victim alone, and beside the flood of what cannot be stored.
    pub(crate) async fn stalled_storage(&mut self) -> Result<()> {
        let data_dir = self.directory.join("stalled-storage");
        let mut cluster = Cluster::start(&data_dir, &["--bookies", &BOOKIES.to_string()])?;
        let result = self.beside_stalled_storage(&cluster).await;
        // A process that is paused does not end when it is asked to.
        cluster.signal(STALLED, Signal::CONT)?;
        cluster.stop()?;
        result
    }

    async fn beside_stalled_storage(&mut self, cluster: &Cluster) -> Result<()> {
        let load = |until, window| Load::new(cluster.url(), until, window);
        let alone = load(self.messages(500_000), 10_000).produce().await?;
        let rate = alone.complete()?.messages_per_second * VICTIM_PART;
        let client = cluster.client()?;
        create_tenant(&client, VICTIM, Policies::default()).await?;
        let quorum = u32::from(BOOKIES);
        let all_copies = Policies {
            persistence: Some(Quorum::new(quorum, quorum, quorum)?),
            ..Policies::default()
        };
        create_tenant(&client, ABUSER, all_copies).await?;
        let topic = format!("{VICTIM}/n/orders");
        let flooded = format!("{ABUSER}/n/flood");
        let flood = |until| load(until, 10_000).topic(&flooded).topics(FLOODED_TOPICS);
        // Ledgers of both are open on all bookies before one of these stalls.
        let warm_up = load(self.messages(100_000), 1_000).topic(&topic);
        complete(warm_up.end_to_end().await?)?;
        flood(self.messages(100_000)).produce().await?.complete()?;

        let Until::Elapsed(time) = self.seconds(SECONDS) else {
            bail!("the victim is measured for a time");
        };
        let victim = load(Until::Elapsed(time), 10_000).topic(&topic).rate(rate);
        cluster.signal(STALLED, Signal::STOP)?;
        let solo = complete(victim.end_to_end().await?)?;
        let flood = flood(Until::Elapsed(time + 2 * MARGIN));
        let measuring = async {
            aquifer_runtime::clock::sleep(MARGIN).await;
            let measured = victim.end_to_end().await;
            // What the flood has waiting is stored now.
            cluster.signal(STALLED, Signal::CONT)?;
            measured
        };
        let (flooded, beside) = futures::join!(flood.produce(), measuring);
        let beside = complete(beside?)?;
        self.push_stalled_storage(&solo, &beside, &flooded?);
        Ok(())
    }

    fn push_stalled_storage(&mut self, solo: &EndToEnd, beside: &EndToEnd, flood: &Report) {
        let (alone, shared) = (&solo.received, &beside.received);
        let row = Row::new(
            "isolation: end-to-end p99 of a tenant beside one whose storage stalls",
            shared.latency_us.p99 / alone.latency_us.p99,
            "× alone",
            Bound::AtMost,
            2.0,
        );
        self.rows.push(row.note(format!(
            "p50 {:.2} ms, p99 {:.2} ms; alone {:.2} and {:.2} ms, beside the same paused bookie; \
             {} messages of the other were stored in the end, {} failed",
            shared.latency_us.p50 / 1e3,
            shared.latency_us.p99 / 1e3,
            alone.latency_us.p50 / 1e3,
            alone.latency_us.p99 / 1e3,
            flood.messages,
            flood.errors,
        )));
        let row = Row::new(
            "isolation: throughput of a tenant beside one whose storage stalls",
            100.0 * shared.messages_per_second / alone.messages_per_second,
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

/// A tenant with a namespace.
async fn create_tenant(client: &Client, tenant: &str, policies: Policies) -> Result<()> {
    client.admin().create_tenant(tenant).await?;
    let namespace = format!("{tenant}/n");
    client
        .admin()
        .create_namespace(&namespace, policies)
        .await?;
    Ok(())
}
