//! Publishing and consuming at once: latency from when a message was due until the consumer has
//! it, and throughput of both ends together.

use std::time::Duration;

use aquifer_client::{Client, Place};
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use serde::Serialize;

use crate::exit::CliError;
use crate::perf::publish::{PublishLoad, Published};
use crate::perf::receive::{ReceiveLoad, Received};
use crate::perf::{Counted, Report};

/// How long the consumers may take for what is left when publishing has ended.
const DRAIN_MAX: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What came of it.
#[derive(Debug, Clone)]
pub struct EndToEnd {
    /// The publishing end.
    pub published: Published,
    /// All consumers; what did not arrive is among the errors.
    pub all: Received,
    /// Messages that the consumers together still had to receive when publishing ended.
    pub behind_at_end: u64,
}

/// What `aquifer perf e2e` reports: the contract's object of what was received, and with it what
/// the publishing end saw.
#[derive(Debug, Clone, Serialize)]
pub struct EndToEndReport {
    /// What was received; latencies count from when a message was due.
    #[serde(flatten)]
    pub received: Report,
    /// The publishing end alone.
    pub published: Report,
    /// See [`EndToEnd::behind_at_end`].
    pub behind_at_end: u64,
}

impl EndToEnd {
    /// The report, for messages of `bytes_each` bytes.
    pub fn report(&self, bytes_each: usize) -> EndToEndReport {
        EndToEndReport {
            received: Report::new(&self.all.counted, bytes_each, &self.all.latencies),
            published: Report::new(
                &self.published.counted,
                bytes_each,
                &self.published.latencies,
            ),
            behind_at_end: self.behind_at_end,
        }
    }
}

/// Publishes a load to one topic while `consumers` subscriptions of one consumer each receive all
/// of it.
///
/// # Errors
/// When a producer or consumer cannot be opened, or a consumer fails.
pub async fn run(
    client: &Client,
    load: &PublishLoad,
    topic: &str,
    consumers: usize,
    on_received: impl Fn(u64) + Send + Sync + Clone + 'static,
) -> Result<EndToEnd, CliError> {
    let receive = ReceiveLoad {
        topic: topic.to_owned(),
        payload: Some(load.payload.clone()),
    };
    let receiving = receive
        .start(client, consumers, false, Place::Latest, on_received)
        .await?;
    let published = load.run(client, |_| ()).await?;
    let copies = u64::try_from(consumers).unwrap_or(u64::MAX);
    let expected = published.counted.messages.saturating_mul(copies);
    let behind_at_end = expected.saturating_sub(receiving.total());
    // Copies are exact: what failed to be published may still arrive, and is then not waited for.
    receiving.end_after(expected);
    let deadline = SystemClock.monotonic() + DRAIN_MAX;
    while !receiving.is_finished() {
        if SystemClock.monotonic() > deadline {
            receiving.stop();
        }
        sleep(POLL_INTERVAL).await;
    }
    let mut all = Received::all(&receiving.finish().await?);
    all.counted.errors = expected.saturating_sub(all.counted.messages) + published.counted.errors;
    all.counted = Counted {
        elapsed: all.counted.elapsed.max(published.counted.elapsed),
        ..all.counted
    };
    Ok(EndToEnd {
        published,
        all,
        behind_at_end,
    })
}
