//! A store whose requests are counted and timed: how the metadata of a cluster does, as a process
//! sees it.

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::telemetry::zero;
use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use crate::error::{MetadataError, MetadataResult};
use crate::store::{
    MetadataStore, PageToken, Revision, ScanPage, Session, Transaction, Until, Usage, Versioned,
    Watch,
};

const REQUEST_SECONDS: &str = "aquifer_metadata_request_seconds";
const BOUNDARIES: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];
/// What is asked of a store.
const OPERATIONS: [&str; 5] = ["get", "scan", "commit", "watch", "session"];

/// The histograms of this crate.
pub const HISTOGRAMS: &[zero::Shape] = &[(REQUEST_SECONDS, BOUNDARIES)];

/// See the module.
pub struct MeasuredStore {
    store: Arc<dyn MetadataStore>,
    clock: SharedClock,
    seconds: Histogram<f64>,
    failures: Counter<u64>,
}

impl MeasuredStore {
    /// Measures what goes through it to a store.
    #[must_use]
    pub fn new(store: Arc<dyn MetadataStore>, clock: SharedClock, meter: &Meter) -> MeasuredStore {
        let seconds = meter.f64_histogram(REQUEST_SECONDS);
        let failures = "aquifer_metadata_request_failures_total";
        MeasuredStore {
            store,
            clock,
            seconds: seconds.with_boundaries(BOUNDARIES.to_vec()).build(),
            failures: zero::counter_by(meter, failures, "operation", OPERATIONS),
        }
    }

    fn done<T>(
        &self,
        operation: &'static str,
        began: Duration,
        result: MetadataResult<T>,
    ) -> MetadataResult<T> {
        let by = [KeyValue::new("operation", operation)];
        let took = self.clock.monotonic().saturating_sub(began);
        self.seconds.record(took.as_secs_f64(), &by);
        // Anything else is an answer of a store that works.
        let failed = matches!(
            result,
            Err(MetadataError::Unavailable(_) | MetadataError::UnknownOutcome(_))
        );
        if failed {
            self.failures.add(1, &by);
        }
        result
    }
}

#[async_trait]
impl MetadataStore for MeasuredStore {
    async fn get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        let began = self.clock.monotonic();
        self.done("get", began, self.store.get(key).await)
    }

    async fn scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        let began = self.clock.monotonic();
        let found = self.store.scan(prefix, page, limit).await;
        self.done("scan", began, found)
    }

    async fn commit_until(
        &self,
        transaction: Transaction,
        until: Until,
    ) -> MetadataResult<Revision> {
        let began = self.clock.monotonic();
        let committed = self.store.commit_until(transaction, until).await;
        self.done("commit", began, committed)
    }

    fn usage(&self) -> Option<Usage> {
        self.store.usage()
    }

    async fn watch(&self, prefix: &str, after: Revision) -> MetadataResult<Box<dyn Watch>> {
        let began = self.clock.monotonic();
        self.done("watch", began, self.store.watch(prefix, after).await)
    }

    async fn open_session(&self, ttl: Duration) -> MetadataResult<Box<dyn Session>> {
        let began = self.clock.monotonic();
        self.done("session", began, self.store.open_session(ttl).await)
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::telemetry::Telemetry;

    use super::*;

    /// A store of which nothing can be had.
    struct Away;

    #[async_trait]
    impl MetadataStore for Away {
        async fn get(&self, _: &str) -> MetadataResult<Option<Versioned>> {
            Err(MetadataError::Unavailable("away".to_owned()))
        }

        async fn scan(&self, _: &str, _: Option<PageToken>, _: usize) -> MetadataResult<ScanPage> {
            Err(MetadataError::Denied("away".to_owned()))
        }

        async fn commit_until(&self, _: Transaction, _: Until) -> MetadataResult<Revision> {
            Err(MetadataError::UnknownOutcome("away".to_owned()))
        }

        async fn watch(&self, _: &str, _: Revision) -> MetadataResult<Box<dyn Watch>> {
            Err(MetadataError::Unavailable("away".to_owned()))
        }

        async fn open_session(&self, _: Duration) -> MetadataResult<Box<dyn Session>> {
            Err(MetadataError::Unavailable("away".to_owned()))
        }
    }

    #[tokio::test]
    async fn every_request_is_timed_and_those_without_an_answer_are_failures() {
        let telemetry = Telemetry::for_tests();
        let clock = Arc::new(aquifer_runtime::clock::SystemClock);
        let store = MeasuredStore::new(Arc::new(Away), clock, &telemetry.meter("metadata"));
        let failures = |operation| {
            format!("aquifer_metadata_request_failures_total{{operation=\"{operation}\"}}")
        };
        let text = telemetry.render_metrics();
        for operation in OPERATIONS {
            assert!(
                text.contains(&format!("{} 0\n", failures(operation))),
                "{text}"
            );
        }
        assert!(store.get("k").await.is_err());
        assert!(store.scan("p", None, 1).await.is_err());
        let text = telemetry.render_metrics();
        assert!(text.contains(&format!("{} 1\n", failures("get"))), "{text}");
        assert!(
            text.contains(&format!("{} 0\n", failures("scan"))),
            "{text}"
        );
        let timed = |operation| format!("{REQUEST_SECONDS}_count{{operation=\"{operation}\"}} 1\n");
        assert!(
            text.contains(&timed("get")) && text.contains(&timed("scan")),
            "{text}"
        );
    }
}
