//! Health checks and metrics, as anybody asks for them.

use std::time::Duration;

use anyhow::Result;
use aquifer_runtime::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long somebody may take to answer.
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
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let is_it = rest.starts_with([' ', '{']);
        is_it.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    Ok(values.sum())
}
