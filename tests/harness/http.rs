//! Health checks and metrics, over plain HTTP.

use std::time::Duration;

use anyhow::Result;
use aquifer_runtime::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take.
const PROBE: Duration = Duration::from_secs(2);

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
