//! Requests to object stores, as the server counts them, and what they cost at list prices.

use std::collections::BTreeMap;

use anyhow::Result;
use aquifer_harness::http;

use crate::server::Measured;

/// The list price of a thousand requests that write or list, S3 Standard in us-east-1, in dollars.
pub const WRITES_PRICE: f64 = 0.005;
/// That of a thousand requests that read.
pub const READS_PRICE: f64 = 0.0004;

/// Requests by kind, and bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Requests {
    kinds: BTreeMap<String, f64>,
    pub bytes_read: f64,
    pub bytes_written: f64,
}

impl Requests {
    /// What a server has sent since it was started.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn of(server: &Measured) -> Result<Requests> {
        let metrics = http::get(&server.http(), "/metrics").await?;
        Ok(Requests::parse(&metrics))
    }

    /// Those of a text of metrics.
    pub fn parse(metrics: &str) -> Requests {
        let mut found = Requests::default();
        for line in metrics.lines() {
            let value = line.rsplit(' ').next().and_then(|text| text.parse().ok());
            let value: f64 = value.unwrap_or(0.0);
            if line.starts_with("aquifer_cold_requests_total{") {
                let kind = label(line, "kind").to_owned();
                *found.kinds.entry(kind).or_default() += value;
            } else if line.starts_with("aquifer_cold_bytes_total{") {
                match label(line, "direction") {
                    "read" => found.bytes_read += value,
                    _ => found.bytes_written += value,
                }
            }
        }
        found
    }

    /// What came after others.
    pub fn since(&self, before: &Requests) -> Requests {
        let kinds = self.kinds.iter().map(|(kind, count)| {
            let earlier = before.kinds.get(kind).copied().unwrap_or(0.0);
            (kind.clone(), count - earlier)
        });
        Requests {
            kinds: kinds.filter(|(_, count)| *count > 0.0).collect(),
            bytes_read: self.bytes_read - before.bytes_read,
            bytes_written: self.bytes_written - before.bytes_written,
        }
    }

    /// All of them.
    pub fn count(&self) -> f64 {
        self.kinds.values().sum()
    }

    /// Those that cost what writing costs, and those that cost what reading costs. The others are
    /// free.
    pub fn writes_and_reads(&self) -> (f64, f64) {
        let sum = |kinds: &[&str]| {
            let counts = kinds.iter().filter_map(|kind| self.kinds.get(*kind));
            counts.sum::<f64>()
        };
        let writes = sum(&["put", "begin", "part", "complete", "list"]);
        (writes, sum(&["get", "head"]))
    }

    /// Dollars at list prices.
    pub fn dollars(&self) -> f64 {
        let (writes, reads) = self.writes_and_reads();
        (writes * WRITES_PRICE + reads * READS_PRICE) / 1_000.0
    }

    /// By kind, divided by something, for people.
    pub fn shown(&self, by: f64) -> String {
        let kinds = self.kinds.iter();
        let kinds: Vec<String> = kinds
            .map(|(kind, count)| format!("{kind} {:.1}", count / by))
            .collect();
        kinds.join(", ")
    }
}

/// The value of a label of a line of metrics.
fn label<'a>(line: &'a str, name: &str) -> &'a str {
    let begin = format!("{name}=\"");
    let found = line.split_once(begin.as_str());
    let value = found.and_then(|(_, rest)| rest.split_once('"'));
    value.map_or("", |(value, _)| value)
}

#[test]
fn requests_are_read_from_metrics_and_have_a_price() {
    let text = "# HELP x\n\
        aquifer_cold_requests_total{kind=\"get\",status=\"ok\"} 30\n\
        aquifer_cold_requests_total{kind=\"get\",status=\"not_found\"} 10\n\
        aquifer_cold_requests_total{kind=\"part\",status=\"ok\"} 2000\n\
        aquifer_cold_requests_total{kind=\"delete\",status=\"ok\"} 5\n\
        aquifer_cold_bytes_total{direction=\"read\"} 7\n\
        aquifer_cold_bytes_total{direction=\"written\"} 9\n";
    let found = Requests::parse(text);
    assert_eq!(found.count(), 2_045.0);
    assert_eq!(found.writes_and_reads(), (2_000.0, 40.0));
    assert_eq!((found.bytes_read, found.bytes_written), (7.0, 9.0));
    assert!((found.dollars() - 0.010_016).abs() < 1e-9);
    let later = Requests::parse(&text.replace(" 30\n", " 31\n"));
    assert_eq!(later.since(&found).count(), 1.0);
    assert_eq!(later.since(&found).shown(0.5), "get 2.0");
}
