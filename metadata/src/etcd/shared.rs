//! What the store, its sessions and its watches share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::task::TaskGroup;
use etcd_client::{Client, GetOptions};
use tokio_util::sync::CancellationToken;

use crate::error::{MetadataError, MetadataResult};
use crate::etcd::endpoints::Endpoints;
use crate::etcd::errors::Failure;
use crate::etcd::slots::Slots;
use crate::etcd::space::{Space, number, revision};
use crate::etcd::usage_watch::UsageWatch;
use crate::store::{PageToken, Revision, ScanPage, Versioned};

/// What the store, its sessions and its watches share.
pub(super) struct Shared {
    pub(super) space: Space,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) slots: Slots,
    pub(super) clock: SharedClock,
    pub(super) usage: UsageWatch,
    /// Streams of watches that have ended before their watch.
    pub(super) watch_restarts: Arc<AtomicU64>,
    /// etcd's quota, where it does not say so itself.
    pub(super) quota_bytes: u64,
    pub(super) tasks: TaskGroup,
    pub(super) closed: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("space", &self.space)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn ensure_open(&self) -> MetadataResult<()> {
        if self.closed.is_cancelled() {
            return Err(MetadataError::Unavailable("the store is closed".to_owned()));
        }
        Ok(())
    }

    /// Reads a page: from a key as etcd has it, at a revision or now.
    pub(super) async fn page(
        &self,
        mut from: Vec<u8>,
        to: &[u8],
        mut at: Option<Revision>,
        mut limit: i64,
    ) -> MetadataResult<ScanPage> {
        loop {
            let options = GetOptions::new()
                .with_range(to)
                .with_revision(at.map_or(0, number))
                .with_limit(limit);
            let get = |client: Client| {
                let (from, options) = (from.clone(), options.clone());
                async move { client.kv_client().get(from, Some(options)).await }
            };
            let mut answer = match self.endpoints.call("a scan", get).await {
                Err(Failure::AnswerTooLarge) if limit > 1 => {
                    limit /= 2;
                    continue;
                }
                other => other?,
            };
            let Some(header) = answer.take_header() else {
                return Err(no_header());
            };
            // The first page decides on the revision of all.
            let snapshot = *at.get_or_insert(revision(header.revision()));
            let more = answer.more();
            let found = answer.take_kvs();
            let last = found.last().map(|found| found.key().to_vec());
            let items: Vec<Versioned> = found
                .into_iter()
                .filter_map(|found| self.space.item(found.0))
                .collect();
            let next = items.last().filter(|_| more).map(|item| PageToken {
                after: item.key.clone(),
                revision: snapshot,
            });
            if let Some(last) = last
                && more
                && items.is_empty()
            {
                // Foreign keys only: look behind them.
                from = Space::after(last);
                continue;
            }
            return Ok(ScanPage {
                items,
                next,
                revision: snapshot,
            });
        }
    }
}

fn no_header() -> MetadataError {
    MetadataError::Unavailable("etcd answered without a header".to_owned())
}
