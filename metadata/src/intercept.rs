//! For tests: a store over another one that changes some of its calls and passes on the rest.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::MetadataResult;
use crate::store::{
    MetadataStore, PageToken, Revision, ScanPage, Session, Transaction, Until, Usage, Versioned,
    Watch,
};

/// A store over another one. Each call is passed on unless an implementation replaces it; what
/// implements this is a [`MetadataStore`].
#[async_trait]
pub trait Intercept: Send + Sync + 'static {
    /// The store that calls are passed on to.
    fn inner(&self) -> &dyn MetadataStore;

    /// What [`MetadataStore::get`] does.
    async fn on_get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        self.inner().get(key).await
    }

    /// What [`MetadataStore::scan`] does.
    async fn on_scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        self.inner().scan(prefix, page, limit).await
    }

    /// What [`MetadataStore::commit_until`] does.
    async fn on_commit(&self, transaction: Transaction, until: Until) -> MetadataResult<Revision> {
        self.inner().commit_until(transaction, until).await
    }

    /// What [`MetadataStore::watch`] does.
    async fn on_watch(&self, prefix: &str, after: Revision) -> MetadataResult<Box<dyn Watch>> {
        self.inner().watch(prefix, after).await
    }
}

#[async_trait]
impl<I: Intercept> MetadataStore for I {
    async fn get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        self.on_get(key).await
    }

    async fn scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        self.on_scan(prefix, page, limit).await
    }

    async fn commit_until(
        &self,
        transaction: Transaction,
        until: Until,
    ) -> MetadataResult<Revision> {
        self.on_commit(transaction, until).await
    }

    fn usage(&self) -> Option<Usage> {
        self.inner().usage()
    }

    async fn watch(&self, prefix: &str, after: Revision) -> MetadataResult<Box<dyn Watch>> {
        self.on_watch(prefix, after).await
    }

    async fn open_session(&self, ttl: Duration) -> MetadataResult<Box<dyn Session>> {
        self.inner().open_session(ttl).await
    }
}
