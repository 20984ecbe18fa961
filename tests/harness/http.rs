//! The HTTP port, as a raw client sees it: health checks, metrics, REST.

use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_runtime::clock;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take.
const PROBE: Duration = Duration::from_secs(10);
/// How long a request may take that changes something.
const CHANGE: Duration = Duration::from_secs(30);

/// An answer of REST.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, a line each.
    pub head: String,
    /// Its body; null when it is empty.
    pub body: Value,
}

impl Answer {
    /// A header; empty when it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let named = |line: &&str| {
            let found = line.split_once(':').map(|(found, _)| found);
            found.is_some_and(|found| found.eq_ignore_ascii_case(name))
        };
        let line = self.head.lines().find(named).unwrap_or_default();
        line.split_once(':').map_or("", |(_, value)| value.trim())
    }
}

/// Sends a request with a body of JSON, unless it is empty, and these further lines of its head.
///
/// # Errors
/// When there is no answer in time, or it is not JSON.
pub async fn rest(address: &str, request: &str, headers: &[&str], body: &str) -> Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut head = format!("{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        if !body.is_empty() {
            let length = body.len();
            head += &format!("content-type: application/json\r\ncontent-length: {length}\r\n");
        }
        for header in headers {
            head += &format!("{header}\r\n");
        }
        stream
            .write_all(format!("{head}\r\n{body}").as_bytes())
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let text = clock::timeout(CHANGE, exchange).await??;
    let (head, body) = text.split_once("\r\n\r\n").context("a head")?;
    let status = head.split(' ').nth(1).context("a status")?;
    let body = match body {
        "" => Value::Null,
        body => serde_json::from_str(body).with_context(|| body.to_owned())?,
    };
    Ok(Answer {
        status: status.parse()?,
        head: head.to_owned(),
        body,
    })
}

/// What `address` answers, head and body.
///
/// # Errors
/// When it does not answer soon.
pub async fn get(address: &str, path: &str) -> Result<String> {
    let get = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    clock::timeout(PROBE, get).await?
}

/// The sum of a metric over its labels; 0 when it was never counted.
///
/// # Errors
/// As [`get`].
pub async fn metric(address: &str, name: &str) -> Result<f64> {
    let metrics = get(address, "/metrics").await?;
    Ok(sum_of(&metrics, name))
}

fn sum_of(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let is_it = rest.starts_with([' ', '{']);
        is_it.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    values.sum()
}

#[test]
fn metrics_are_summed_over_their_labels() {
    let text =
        "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3.5\na_total_more 9\nb 4\n";
    assert_eq!(sum_of(text, "a_total"), 5.5);
    assert_eq!(sum_of(text, "b"), 4.0);
    assert_eq!(sum_of(text, "absent"), 0.0);
}
