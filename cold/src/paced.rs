//! A store that is read at a bounded rate: for work that nothing waits for.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::bucket::Bucket;
use aquifer_runtime::clock::{self, SharedClock};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::ColdResult;
use crate::store::{ColdStore, Listed, Upload};

/// What was quiet may read so much at once.
const BURST: Duration = Duration::from_secs(1);

/// The rate, which several stores may share.
pub struct Pace {
    bucket: Option<Mutex<Bucket>>,
    clock: SharedClock,
}

impl Pace {
    /// Bytes in a second; `None`: no bound.
    #[must_use]
    pub fn new(rate: Option<u64>, clock: SharedClock) -> Pace {
        let bucket = |rate| Mutex::new(Bucket::new(rate, BURST, Duration::ZERO));
        Pace {
            bucket: rate.map(bucket),
            clock,
        }
    }

    async fn take(&self, bytes: u64) {
        let Some(bucket) = &self.bucket else { return };
        loop {
            let wait = {
                let mut bucket = bucket.lock();
                let wait = bucket.wait(self.clock.monotonic());
                if wait.is_zero() {
                    bucket.take(bytes);
                    return;
                }
                wait
            };
            clock::sleep(wait).await;
        }
    }
}

/// See the module.
pub struct Paced {
    inner: Arc<dyn ColdStore>,
    pace: Arc<Pace>,
}

impl Paced {
    /// Reads from a store at a rate.
    #[must_use]
    pub fn new(inner: Arc<dyn ColdStore>, pace: Arc<Pace>) -> Paced {
        Paced { inner, pace }
    }
}

#[async_trait]
impl ColdStore for Paced {
    async fn size(&self, name: &str) -> ColdResult<u64> {
        self.inner.size(name).await
    }

    async fn get(&self, name: &str, range: Range<u64>) -> ColdResult<Bytes> {
        self.pace.take(range.end.saturating_sub(range.start)).await;
        self.inner.get(name, range).await
    }

    async fn put_new(&self, name: &str, bytes: Bytes) -> ColdResult<()> {
        self.inner.put_new(name, bytes).await
    }

    async fn begin(&self, name: &str) -> ColdResult<Box<dyn Upload>> {
        self.inner.begin(name).await
    }

    async fn abort(&self, name: &str, upload_id: &str) -> ColdResult<()> {
        self.inner.abort(name, upload_id).await
    }

    async fn delete(&self, name: &str) -> ColdResult<()> {
        self.inner.delete(name).await
    }

    async fn list(
        &self,
        below: &str,
        after: Option<&str>,
        count: usize,
    ) -> ColdResult<Vec<Listed>> {
        self.inner.list(below, after, count).await
    }
}
