//! etcd as a child: where it is, how it is started, whether it answers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_runtime::clock::timeout;
use aquifer_runtime::config::env;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::exit::CliError;

const PROGRAM: &str = "etcd";
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The program, from `PATH`.
///
/// # Errors
/// When it is not there.
pub fn find() -> Result<PathBuf, CliError> {
    find_in(&env("PATH").unwrap_or_default())
}

fn find_in(path: &str) -> Result<PathBuf, CliError> {
    let candidates = std::env::split_paths(path).map(|folder| folder.join(PROGRAM));
    let mut found = candidates.filter(|program| program.is_file());
    found.next().ok_or_else(|| {
        CliError::failed("etcd is not installed: no `etcd` in PATH").advise(
            "install it (Debian: apt-get install etcd-server; others: \
             https://github.com/etcd-io/etcd/releases), or use `aquifer standalone`, which needs \
             none",
        )
    })
}

/// A single member that keeps its data in `directory`.
pub fn arguments(directory: &Path, client: SocketAddr, peer: SocketAddr) -> Vec<String> {
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    let directory = directory.to_string_lossy();
    let members = format!("dev={peer}");
    let pairs: [(&str, &str); 11] = [
        ("--name", "dev"),
        ("--data-dir", &directory),
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster", &members),
        // By number, not by time: an hour of many ledgers would fill any quota.
        ("--auto-compaction-mode", "revision"),
        ("--auto-compaction-retention", "20000"),
        ("--quota-backend-bytes", "8589934592"),
        ("--log-level", "warn"),
    ];
    let words = pairs.into_iter().flat_map(|(flag, value)| [flag, value]);
    words.map(str::to_owned).collect()
}

/// Whether it has a leader and takes writes.
pub async fn is_healthy(client: SocketAddr) -> bool {
    let asked = timeout(ANSWER_MAX, health(client)).await;
    matches!(asked, Ok(Ok(answer)) if answer.contains(r#""health":"true""#))
}

async fn health(client: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(client).await?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {client}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Far more than the answer has.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_etcd_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("/nowhere:{}", folder.path().display());
        let error = find_in(&path).unwrap_err();
        assert!(error.advice().contains("apt-get install etcd-server"));
        std::fs::write(folder.path().join(PROGRAM), "").unwrap();
        assert_eq!(find_in(&path).unwrap(), folder.path().join(PROGRAM));
    }
}
