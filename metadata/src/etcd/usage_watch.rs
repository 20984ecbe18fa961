//! How full etcd is. With its quota used up it takes no change at all, not even one that removes
//! keys, so a process has to know before.

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock;
use etcd_client::{Client, StatusResponse};
use parking_lot::Mutex;

use crate::etcd::shared::Shared;
use crate::store::Usage;

/// How often etcd is asked.
const LOOK: Duration = Duration::from_secs(5);

/// What was found last.
#[derive(Debug, Default)]
pub(super) struct UsageWatch {
    usage: Mutex<Option<Usage>>,
}

impl UsageWatch {
    pub(super) fn usage(&self) -> Option<Usage> {
        *self.usage.lock()
    }

    /// etcd has just refused a change for lack of space.
    pub(super) fn refused(&self) {
        if let Some(usage) = &mut *self.usage.lock() {
            usage.refuses = true;
        }
    }
}

impl Shared {
    /// Asks etcd how full it is. Without an answer, as from a proxy or without permission, what was
    /// known stays.
    pub(super) async fn look_at_usage(&self) {
        let ask = |mut client: Client| async move { client.status().await };
        let limit = self.endpoints.attempt_timeout();
        match self.endpoints.attempt(limit, ask).await {
            Ok(status) => *self.usage.usage.lock() = Some(usage(&status, self.quota_bytes)),
            Err(failure) => tracing::debug!(?failure, "etcd does not say how full it is"),
        }
    }
}

/// Goes on looking until the store is closed.
pub(super) async fn watch(shared: Arc<Shared>) {
    let shutdown = shared.tasks.shutdown_token();
    loop {
        tokio::select! {
            () = shared.closed.cancelled() => return,
            () = shutdown.wait() => return,
            () = clock::sleep(LOOK) => {}
        }
        shared.look_at_usage().await;
    }
}

pub(super) fn usage(status: &StatusResponse, configured: u64) -> Usage {
    let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
    // Pages that are free inside of the file are used before it grows.
    let used = match bytes(status.raft_used_db_size()) {
        0 => bytes(status.db_size()),
        used => used,
    };
    // Older versions do not say what their quota is.
    let quota = match bytes(status.db_size_quota()) {
        0 => configured,
        quota => quota,
    };
    Usage {
        used_bytes: used,
        quota_bytes: quota,
        refuses: status
            .errors()
            .iter()
            .any(|alarm| alarm.contains("NOSPACE")),
    }
}
