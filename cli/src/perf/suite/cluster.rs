//! Rows of a cluster on this machine: etcd, three bookies and a broker as processes of their own,
//! as `aquifer dev` starts them, with three copies of every message, two of them synced before it
//! is acknowledged. All share the machine with the idle server of the other rows.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use aquifer_client::Client;
use aquifer_runtime::clock::timeout;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::exit::CliError;
use crate::perf::publish::Published;
use crate::perf::{Until, e2e};

use super::server::usage_of;
use super::{Bound, MESSAGE_BYTES, Row, Suite, complete, per_second};

const READY_MAX: Duration = Duration::from_secs(90);
const STOP_MAX: Duration = Duration::from_secs(60);
const BOOKIES: u32 = 3;

/// A running cluster; it is killed when dropped.
struct Cluster {
    dev: Child,
    greeting: Greeting,
}

/// What `aquifer dev` prints when the cluster serves.
#[derive(Debug, Deserialize)]
struct Greeting {
    url: String,
    processes: Vec<Process>,
}

#[derive(Debug, Deserialize)]
struct Process {
    role: String,
    pid: Option<u32>,
}

impl Cluster {
    /// Starts it and waits until it serves.
    async fn start(data_dir: &Path) -> Result<Cluster, CliError> {
        let failed = |error: &dyn std::fmt::Display| {
            CliError::failed(format!("cannot start a cluster: {error}"))
        };
        let program = std::env::current_exe().map_err(|e| failed(&e))?;
        let mut dev = Command::new(program)
            .args(["--output", "json", "dev", "--brokers", "1"])
            .args(["--grpc-addr", "127.0.0.1:0"])
            .args(["--bookies", &BOOKIES.to_string(), "--data-dir"])
            .arg(data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&e))?;
        let mut line = String::new();
        if let Some(stdout) = dev.stdout.take() {
            let mut printed = BufReader::new(stdout);
            let read = timeout(READY_MAX, printed.read_line(&mut line)).await;
            read.map_err(|_| failed(&"it is not ready in time"))?
                .map_err(|e| failed(&e))?;
        }
        match serde_json::from_str(&line) {
            Ok(greeting) => Ok(Cluster { dev, greeting }),
            // It has ended, and said why.
            Err(_) => {
                let mut said = String::new();
                if let Some(mut stderr) = dev.stderr.take() {
                    let read = timeout(STOP_MAX, stderr.read_to_string(&mut said)).await;
                    read.map_err(|_| failed(&"it does not say why"))?
                        .map_err(|e| failed(&e))?;
                }
                Err(failed(&said.trim()))
            }
        }
    }

    fn client(&self) -> Result<Client, CliError> {
        let builder = Client::builder()
            .url(&self.greeting.url)
            .memory_limit_bytes(256 * 1024 * 1024);
        Ok(builder.build()?)
    }

    /// Bytes that the largest process of a role has resident.
    fn resident_bytes(&self, role: &str) -> Result<f64, CliError> {
        let mut most = 0.0_f64;
        for process in self.greeting.processes.iter().filter(|p| p.role == role) {
            let pid = process.pid.unwrap_or_default();
            most = most.max(usage_of(pid)?.resident_bytes);
        }
        Ok(most)
    }

    async fn stop(mut self) -> Result<(), CliError> {
        let pid = self.dev.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)
                .map_err(|error| CliError::failed(format!("cannot stop the cluster: {error}")))?;
        }
        match timeout(STOP_MAX, self.dev.wait()).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(CliError::timed_out("the cluster does not end")),
        }
    }
}

impl Suite {
    /// Throughput, latency and memory of a cluster.
    pub(super) async fn cluster(&mut self) -> Result<(), CliError> {
        let alone = self.alone().await?;
        let cluster = Cluster::start(&self.directory.join("cluster")).await?;
        let result = self.measure_cluster(&cluster, alone).await;
        cluster.stop().await?;
        result
    }

    async fn measure_cluster(&mut self, cluster: &Cluster, alone: f64) -> Result<(), CliError> {
        let client = cluster.client()?;
        self.cluster_latency(&client).await?;
        let topic = self.topic();
        let warm_up = self.load(&topic, Until::Count(self.count(200_000)), 1_000);
        complete(warm_up.run(&client, |_| ()).await?)?;
        let load = self.load(&topic, self.messages(2_000_000), 10_000);
        let published = complete(load.run(&client, |_| ()).await?)?;
        self.remove(&client, &[topic]).await?;
        drop(client);
        self.rows.push(cluster_rate(&published, alone));

        self.quiet_down().await;
        for (role, target) in [("broker", 24.0), ("bookie", 32.0)] {
            let resident = cluster.resident_bytes(role)?;
            self.rows.push(Row::new(
                &format!("cluster: resident memory of a {role}, idle after load"),
                resident / 1e6,
                "MB",
                Bound::AtMost,
                target,
            ));
        }
        Ok(())
    }

    /// End to end at 1,000 messages a second, through two processes and the faster two of three
    /// syncs.
    async fn cluster_latency(&mut self, client: &Client) -> Result<(), CliError> {
        let topic = self.topic();
        let mut load = self.load(&topic, Until::Elapsed(self.seconds(10)), 1_000);
        load.rate = Some(1_000.0);
        load.stamped = true;
        let done = e2e::run(client, &load, &topic, 1, |_| ()).await?;
        self.remove(client, &[topic]).await?;
        let latency = done.all.latencies.summary();
        let row = Row::new(
            "cluster: end-to-end latency at 1,000 msg/s, p99",
            latency.p99 / 1e3,
            "ms",
            Bound::AtMost,
            3.0,
        );
        let note = format!(
            "p50 {:.2} ms, p99.9 {:.2} ms; {} missing; the target is standalone's",
            latency.p50 / 1e3,
            latency.p999 / 1e3,
            done.all.counted.errors
        );
        self.rows.push(row.note(note));
        Ok(())
    }
}

fn cluster_rate(published: &Published, alone: f64) -> Row {
    let rate = per_second(published);
    let row = Row::new(
        "cluster: bytes written through all bookies",
        100.0 * rate * f64::from(BOOKIES) / alone,
        "% of standalone",
        Bound::AtLeast,
        70.0,
    );
    let latency = published.latencies.summary();
    row.note(format!(
        "{rate:.0} msg/s, {:.0} MB/s in three copies; p50 {:.1} ms, p99 {:.1} ms",
        rate * MESSAGE_BYTES as f64 * f64::from(BOOKIES) / 1e6,
        latency.p50 / 1e3,
        latency.p99 / 1e3
    ))
}
