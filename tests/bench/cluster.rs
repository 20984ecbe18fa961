//! Rows of a cluster on this machine: etcd, three bookies and a broker as processes of their own,
//! as `aquifer dev` starts them, with three copies of every message, two of them synced before it
//! is acknowledged. All share the machine with the idle server of the other rows.

use anyhow::Result;
use aquifer_harness::cluster::Cluster;
use aquifer_harness::processes::usage;

use crate::load::{Load, Report};
use crate::row::{Bound, Row};
use crate::{MESSAGE_BYTES, Suite};

const BOOKIES: u32 = 3;

impl Suite {
    /// Throughput, latency and memory of a cluster.
    pub(crate) async fn cluster(&mut self) -> Result<()> {
        let alone = self.alone().await?;
        let data_dir = self.directory.join("cluster");
        let mut cluster = Cluster::start(&data_dir, &["--bookies", &BOOKIES.to_string()])?;
        let result = self.measure_cluster(&cluster, alone).await;
        cluster.stop()?;
        result
    }

    async fn measure_cluster(&mut self, cluster: &Cluster, alone: f64) -> Result<()> {
        self.cluster_latency(cluster).await?;
        let topic = self.topic();
        let load = |until, window| Load::new(cluster.url(), until, window).topic(&topic);
        let warm_up = load(self.messages(200_000), 1_000);
        warm_up.produce().await?.complete()?;
        let published = load(self.messages(2_000_000), 10_000).produce().await?;
        let published = published.complete()?;
        self.remove(&cluster.client()?, &[topic]).await?;
        self.rows.push(cluster_rate(&published, alone));

        self.quiet_down().await;
        for (role, target) in [("broker", 24.0), ("bookie", 32.0)] {
            self.rows.push(Row::new(
                &format!("cluster: resident memory of a {role}, idle after load"),
                resident_bytes(cluster, role)? / 1e6,
                "MB",
                Bound::AtMost,
                target,
            ));
        }
        Ok(())
    }

    /// End to end at 1,000 messages a second, through two processes and the faster two of three
    /// syncs.
    async fn cluster_latency(&mut self, cluster: &Cluster) -> Result<()> {
        let load = Load::new(cluster.url(), self.seconds(10), 1_000).rate(1_000.0);
        let done = load.end_to_end().await?;
        self.removed().await;
        let latency = done.received.latency_us;
        self.rows.push(Row::new(
            "cluster: end-to-end latency at 1,000 msg/s, p50",
            latency.p50 / 1e3,
            "ms",
            Bound::AtMost,
            0.6,
        ));
        let row = Row::new(
            "cluster: end-to-end latency at 1,000 msg/s, p99",
            latency.p99 / 1e3,
            "ms",
            Bound::AtMost,
            3.0,
        );
        let note = format!(
            "p99.9 {:.2} ms; {} missing",
            latency.p999 / 1e3,
            done.received.errors
        );
        self.rows.push(row.note(note));
        Ok(())
    }
}

/// Bytes that the largest process of a role has resident.
fn resident_bytes(cluster: &Cluster, role: &str) -> Result<f64> {
    let mut most = 0.0_f64;
    for process in cluster.processes().iter().filter(|p| p.role == role) {
        most = most.max(usage(process.pid)?.resident_bytes);
    }
    Ok(most)
}

fn cluster_rate(published: &Report, alone: f64) -> Row {
    let rate = published.messages_per_second;
    let row = Row::new(
        "cluster: bytes written through all bookies",
        100.0 * rate * f64::from(BOOKIES) / alone,
        "% of standalone",
        Bound::AtLeast,
        70.0,
    );
    let latency = published.latency_us;
    row.note(format!(
        "{rate:.0} msg/s, {:.0} MB/s in three copies; p50 {:.1} ms, p99 {:.1} ms",
        rate * f64::from(MESSAGE_BYTES) * f64::from(BOOKIES) / 1e6,
        latency.p50 / 1e3,
        latency.p99 / 1e3
    ))
}
