//! Requests to object stores, counted: what a bill is made of.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};

use crate::error::{ColdError, ColdResult};
use crate::store::{ColdStore, Listed, PartSent, Upload};

/// What is asked of a store.
const KINDS: [&str; 9] = [
    "head", "get", "put", "begin", "part", "complete", "abort", "delete", "list",
];

/// Instruments of requests, shared by all stores of a process.
#[derive(Debug, Clone)]
pub struct ColdMetrics {
    requests: Counter<u64>,
    bytes: Counter<u64>,
}

impl ColdMetrics {
    /// Makes the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> ColdMetrics {
        let metrics = ColdMetrics {
            requests: meter.u64_counter("aquifer_cold_requests_total").build(),
            bytes: meter.u64_counter("aquifer_cold_bytes_total").build(),
        };
        for kind in KINDS {
            for status in ["ok", "unavailable"] {
                let by = [KeyValue::new("kind", kind), KeyValue::new("status", status)];
                metrics.requests.add(0, &by);
            }
        }
        for direction in ["read", "written"] {
            metrics
                .bytes
                .add(0, &[KeyValue::new("direction", direction)]);
        }
        metrics
    }

    fn done<T>(&self, kind: &'static str, result: ColdResult<T>) -> ColdResult<T> {
        let status = match &result {
            Ok(_) => "ok",
            Err(ColdError::NotFound(_)) => "not_found",
            Err(ColdError::AlreadyExists(_)) => "exists",
            Err(ColdError::Denied(_)) => "denied",
            Err(ColdError::Unavailable(_)) => "unavailable",
            Err(ColdError::Damaged { .. }) => "damaged",
            Err(ColdError::WrongPlace { .. } | ColdError::Config(_) | ColdError::Metadata(_)) => {
                "other"
            }
        };
        let by = [KeyValue::new("kind", kind), KeyValue::new("status", status)];
        self.requests.add(1, &by);
        result
    }

    fn moved(&self, direction: &'static str, bytes: usize) {
        let by = [KeyValue::new("direction", direction)];
        self.bytes.add(bytes as u64, &by);
    }
}

/// A store whose requests are counted.
pub struct Counted {
    inner: Arc<dyn ColdStore>,
    metrics: ColdMetrics,
}

impl Counted {
    /// Counts the requests to a store.
    #[must_use]
    pub fn new(inner: Arc<dyn ColdStore>, metrics: ColdMetrics) -> Counted {
        Counted { inner, metrics }
    }
}

#[async_trait]
impl ColdStore for Counted {
    async fn size(&self, name: &str) -> ColdResult<u64> {
        self.metrics.done("head", self.inner.size(name).await)
    }

    async fn get(&self, name: &str, range: Range<u64>) -> ColdResult<Bytes> {
        let got = self
            .metrics
            .done("get", self.inner.get(name, range).await)?;
        self.metrics.moved("read", got.len());
        Ok(got)
    }

    async fn put_new(&self, name: &str, bytes: Bytes) -> ColdResult<()> {
        self.metrics.moved("written", bytes.len());
        let put = self.inner.put_new(name, bytes).await;
        self.metrics.done("put", put)
    }

    async fn begin(&self, name: &str) -> ColdResult<Box<dyn Upload>> {
        let inner = self.metrics.done("begin", self.inner.begin(name).await)?;
        let metrics = self.metrics.clone();
        Ok(Box::new(CountedUpload { inner, metrics }))
    }

    async fn abort(&self, name: &str, upload_id: &str) -> ColdResult<()> {
        let aborted = self.inner.abort(name, upload_id).await;
        self.metrics.done("abort", aborted)
    }

    async fn delete(&self, name: &str) -> ColdResult<()> {
        self.metrics.done("delete", self.inner.delete(name).await)
    }

    async fn list(
        &self,
        below: &str,
        after: Option<&str>,
        count: usize,
    ) -> ColdResult<Vec<Listed>> {
        let listed = self.inner.list(below, after, count).await;
        self.metrics.done("list", listed)
    }
}

struct CountedUpload {
    inner: Box<dyn Upload>,
    metrics: ColdMetrics,
}

#[async_trait]
impl Upload for CountedUpload {
    fn id(&self) -> &str {
        self.inner.id()
    }

    fn part(&mut self, bytes: Bytes) -> PartSent {
        self.metrics.moved("written", bytes.len());
        let (sent, metrics) = (self.inner.part(bytes), self.metrics.clone());
        Box::pin(async move { metrics.done("part", sent.await) })
    }

    async fn complete(self: Box<Self>) -> ColdResult<()> {
        let done = self.inner.complete().await;
        self.metrics.done("complete", done)
    }

    async fn abort(self: Box<Self>) -> ColdResult<()> {
        let done = self.inner.abort().await;
        self.metrics.done("abort", done)
    }
}
