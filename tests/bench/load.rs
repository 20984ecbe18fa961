//! Loads: `aquifer perf` as a process, and what it reports.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_harness::server::binary;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::MESSAGE_BYTES;

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After that many messages.
    Count(u64),
    /// After that time.
    Elapsed(Duration),
}

/// A load on one server.
#[derive(Debug, Clone)]
pub struct Load {
    url: String,
    until: Until,
    window: usize,
    rate: Option<f64>,
    topic: Option<String>,
    topics: Option<usize>,
    consumers: usize,
    message_bytes: u32,
    /// Where spans go, and one of how many messages is traced.
    traced: Option<(String, u64)>,
    /// How it shows who it is.
    credentials: Vec<String>,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// The object that every load reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub messages: u64,
    pub bytes: u64,
    pub seconds: f64,
    pub messages_per_second: f64,
    pub bytes_per_second: f64,
    pub errors: u64,
    pub latency_us: Latency,
    pub durability: String,
}

/// What `aquifer perf e2e` reports.
#[derive(Debug, Clone, Deserialize)]
pub struct EndToEnd {
    /// What was received.
    #[serde(flatten)]
    pub received: Report,
    /// The publishing end alone.
    pub published: Report,
    /// Messages that all consumers together still had to receive when publishing ended.
    pub behind_at_end: u64,
}

/// What `aquifer perf disk` reports about one size of writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Calibration {
    pub block_bytes: u64,
    #[serde(flatten)]
    pub report: Report,
}

impl Report {
    /// Refuses a result with failures: it would look better than it is.
    ///
    /// # Errors
    /// When messages failed or did not arrive.
    pub fn complete(self) -> Result<Report> {
        ensure!(self.errors == 0, "{} messages failed", self.errors);
        Ok(self)
    }
}

impl Load {
    /// One producer, and one consumer where the load has any, on a topic that `aquifer perf`
    /// creates and deletes.
    pub fn new(url: impl Into<String>, until: Until, window: usize) -> Load {
        Load {
            url: url.into(),
            until,
            window,
            rate: None,
            topic: None,
            topics: None,
            consumers: 1,
            message_bytes: MESSAGE_BYTES,
            traced: None,
            credentials: Vec::new(),
        }
    }

    /// With these arguments for TLS and authentication.
    pub fn credentials(mut self, arguments: &[String]) -> Load {
        self.credentials = arguments.to_vec();
        self
    }

    /// On a topic that stays.
    pub fn topic(mut self, topic: &str) -> Load {
        self.topic = Some(topic.to_owned());
        self
    }

    /// Spread over that many topics.
    pub fn topics(mut self, topics: usize) -> Load {
        self.topics = Some(topics);
        self
    }

    /// At that many messages a second.
    pub fn rate(mut self, rate: f64) -> Load {
        self.rate = Some(rate);
        self
    }

    /// With payloads of that many bytes.
    pub fn size(mut self, bytes: u32) -> Load {
        self.message_bytes = bytes;
        self
    }

    /// With one of this many messages traced, whose spans go to a collector.
    pub fn traced(mut self, endpoint: &str, one_in: u64) -> Load {
        self.traced = Some((endpoint.to_owned(), one_in));
        self
    }

    /// Received by that many consumers.
    pub fn consumers(mut self, consumers: usize) -> Load {
        self.consumers = consumers;
        self
    }

    /// Publishes.
    ///
    /// # Errors
    /// When the load cannot run. Failed messages are in the report.
    pub async fn produce(&self) -> Result<Report> {
        one(self.run("produce").await?)
    }

    /// Consumes what a topic has.
    ///
    /// # Errors
    /// When the load cannot run. Messages that did not arrive are in the report.
    pub async fn consume(&self) -> Result<Report> {
        one(self.run("consume").await?)
    }

    /// Publishes and consumes at once.
    ///
    /// # Errors
    /// When the load cannot run. Failed and missing messages are in the report.
    pub async fn end_to_end(&self) -> Result<EndToEnd> {
        one(self.run("e2e").await?)
    }

    async fn run<T: DeserializeOwned>(&self, command: &str) -> Result<Vec<T>> {
        perf(&self.words(command)).await
    }

    fn words(&self, command: &str) -> Vec<String> {
        let mut words = vec![command.to_owned(), format!("--url={}", self.url)];
        words.push(format!("--size={}", self.message_bytes));
        words.push(format!("--window={}", self.window));
        words.push(match self.until {
            Until::Count(count) => format!("--count={count}"),
            Until::Elapsed(time) => format!("--seconds={}", time.as_secs_f64()),
        });
        words.extend(self.rate.map(|rate| format!("--rate={rate}")));
        words.extend(self.topic.as_ref().map(|topic| format!("--topic={topic}")));
        words.extend(self.topics.map(|topics| format!("--topics={topics}")));
        if let Some((endpoint, one_in)) = &self.traced {
            words.push(format!("--otlp-endpoint={endpoint}"));
            words.push(format!("--trace-one-in={one_in}"));
        }
        words.extend(self.credentials.iter().cloned());
        if self.consumers > 1 {
            words.push(format!("--consumers={}", self.consumers));
        }
        words
    }
}

/// Writes and syncs at several sizes on the disk of a directory.
///
/// # Errors
/// When the disk refuses.
pub async fn calibrate(directory: &Path, each: Duration) -> Result<Vec<Calibration>> {
    perf(&[
        "disk".to_owned(),
        format!("--dir={}", directory.display()),
        format!("--seconds={}", each.as_secs_f64()),
    ])
    .await
}

/// Runs `aquifer perf` to its end. It exits with 1 when messages failed, and reports all the same.
async fn perf<T: DeserializeOwned>(words: &[String]) -> Result<Vec<T>> {
    let output = Command::new(binary())
        .args(["--output", "json", "perf"])
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if printed.trim().is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("aquifer perf {}: {}", words.join(" "), said.trim());
    }
    let parsed = printed.lines().map(serde_json::from_str);
    let parsed: Result<Vec<T>, _> = parsed.collect();
    parsed.with_context(|| format!("aquifer perf {} printed {printed}", words.join(" ")))
}

fn one<T>(reports: Vec<T>) -> Result<T> {
    let mut reports = reports.into_iter();
    match (reports.next(), reports.next()) {
        (Some(report), None) => Ok(report),
        _ => bail!("a load reports one object"),
    }
}

#[test]
fn a_load_is_the_arguments_of_a_command() {
    let load = Load::new("http://a:1", Until::Count(5), 7);
    assert_eq!(
        load.words("produce"),
        [
            "produce",
            "--url=http://a:1",
            "--size=1024",
            "--window=7",
            "--count=5"
        ]
    );
    let load = Load::new(
        "http://a:1",
        Until::Elapsed(Duration::from_millis(1_500)),
        7,
    )
    .rate(1_000.0)
    .topic("t")
    .consumers(10);
    assert_eq!(
        load.words("e2e")[4..],
        [
            "--seconds=1.5",
            "--rate=1000",
            "--topic=t",
            "--consumers=10"
        ]
    );
}

#[test]
fn reports_are_read_as_they_are_printed() {
    let report = r#"{"messages":2,"bytes":2048,"seconds":0.5,"messages_per_second":4.0,
        "bytes_per_second":4096.0,"errors":0,"latency_us":{"p50":1.0,"p99":2.0,"p999":3.0,
        "max":4.0},"durability":"synced"}"#;
    let whole = format!(
        r#"{{"published":{report},"behind_at_end":1,{}"#,
        report.trim_start_matches('{')
    );
    let read: EndToEnd = serde_json::from_str(&whole).expect("it parses");
    assert_eq!(read.received.messages, 2);
    assert_eq!((read.published.bytes, read.behind_at_end), (2_048, 1));
    assert!(read.received.complete().is_ok());
}
