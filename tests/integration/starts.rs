//! A server that is started and stopped again and again ends with exit code 0 each time: no thread
//! of it or of its database runs on while the process is torn down.

use anyhow::{Context, Result, ensure};
use aquifer_client::Message;
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use aquifer_runtime::config;

/// Messages that are sent in a round.
const MESSAGES: u32 = 20;

/// One after the other: stopped as soon as it is ready, when everything is stored, and with
/// messages in flight and their client connected. What was acknowledged is there in the end.
async fn start_and_stop(rounds: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::prepare(&folder.path().join("data"), ServerOptions::default())?;
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        server.restart().with_context(|| format!("start {round}"))?;
        let stopped = match round % 3 {
            0 => server.stop(),
            stopping => {
                let producer = server.client()?.producer("t").open().await?;
                let mut pending = Vec::new();
                for number in 0..MESSAGES {
                    let text = format!("{round}-{number}");
                    let sent = producer.enqueue(Message::new(text.clone())).await?;
                    pending.push((text, sent));
                }
                if stopping == 1 {
                    for (text, sent) in pending {
                        sent.await?;
                        acknowledged.push(text);
                    }
                    producer.close().await?;
                }
                server.stop()
            }
        };
        stopped.with_context(|| format!("stop {round}"))?;
    }
    server.restart()?;
    let read = aquifer(&server.url(), &["read", "t"])?;
    ensure!(read.status.success(), "{read:?}");
    let read = String::from_utf8(read.stdout)?;
    let lines: Vec<&str> = read.lines().collect();
    // Only what was in flight may be there besides.
    let mut left = lines.iter();
    for text in &acknowledged {
        ensure!(left.any(|line| line == text), "{text} is lost or misplaced");
    }
    server.stop()?;
    server.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_well_each_time() -> Result<()> {
    let rounds = match config::env("AQUIFER_STARTS") {
        Some(given) => given.parse().context("AQUIFER_STARTS")?,
        None => 12,
    };
    start_and_stop(rounds).await
}
