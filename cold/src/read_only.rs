//! A store whose objects belong to another cluster: they are read, and nothing else.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{ColdError, ColdResult};
use crate::store::{ColdStore, Listed, Upload};

/// See the module.
pub(crate) struct ReadOnly(pub(crate) Arc<dyn ColdStore>);

fn refused<T>(what: &str, name: &str) -> ColdResult<T> {
    Err(ColdError::Denied(format!(
        "{name} is in a place that is only read, and is not {what}"
    )))
}

#[async_trait]
impl ColdStore for ReadOnly {
    async fn size(&self, name: &str) -> ColdResult<u64> {
        self.0.size(name).await
    }

    async fn get(&self, name: &str, range: Range<u64>) -> ColdResult<Bytes> {
        self.0.get(name, range).await
    }

    async fn put_new(&self, name: &str, _bytes: Bytes) -> ColdResult<()> {
        refused("written", name)
    }

    async fn begin(&self, name: &str) -> ColdResult<Box<dyn Upload>> {
        refused("written", name)
    }

    async fn abort(&self, name: &str, _upload_id: &str) -> ColdResult<()> {
        refused("given up", name)
    }

    async fn delete(&self, name: &str) -> ColdResult<()> {
        refused("deleted", name)
    }

    async fn list(
        &self,
        below: &str,
        after: Option<&str>,
        count: usize,
    ) -> ColdResult<Vec<Listed>> {
        self.0.list(below, after, count).await
    }
}
