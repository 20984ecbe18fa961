//! Sessions: leases whose handles live, and the keys that go with them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{MetadataError, MetadataResult};
use crate::etcd::commit::Request;
use crate::etcd::lease::Lease;
use crate::etcd::shared::Shared;
use crate::limits;
use crate::store::{Expect, Operation, Revision, Session, Until};

/// Ends the belief in a lease that is no longer renewed.
struct LoseOnDrop(Arc<Lease>);

impl Drop for LoseOnDrop {
    fn drop(&mut self) {
        self.0.lose();
    }
}

/// A handle of a session. Dropping it lets the session expire.
pub(super) struct EtcdSession {
    shared: Arc<Shared>,
    lease: Arc<Lease>,
    _held: DropGuard,
}

impl EtcdSession {
    /// Opens a session and starts to renew it. That goes on while the process shuts down, until
    /// the session is closed: others shall not see it vanish while it drains.
    pub(super) async fn open(shared: Arc<Shared>, ttl: Duration) -> MetadataResult<EtcdSession> {
        let lease = Lease::grant(&shared.endpoints, &shared.clock, ttl).await?;
        let dropped = CancellationToken::new();
        let (closed, abandoned) = (shared.closed.clone(), dropped.clone());
        let ended = async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = abandoned.cancelled() => {}
            }
        };
        let keep = Arc::clone(&lease).keep(Arc::clone(&shared.endpoints), ended);
        let guard = LoseOnDrop(Arc::clone(&lease));
        // The task ends with the session; its handle is not needed.
        drop(shared.tasks.spawn("metadata-session", async move {
            let _guard = guard;
            keep.await;
        }));
        Ok(EtcdSession {
            shared,
            lease,
            _held: dropped.drop_guard(),
        })
    }
}

#[async_trait]
impl Session for EtcdSession {
    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> MetadataResult<Revision> {
        let operation = Operation::Put {
            key: key.to_owned(),
            value,
            expect,
        };
        limits::check_one(&operation)?;
        if self.lease.is_lost() {
            return Err(MetadataError::SessionExpired);
        }
        let request = Request::of_session(&self.shared.space, &operation, &self.lease);
        self.shared.commit(request, Until::Deadline).await
    }

    fn remaining(&self) -> Duration {
        self.lease.remaining()
    }

    async fn lost(&self) {
        self.lease.lost.cancelled().await;
    }

    async fn close(&self) -> MetadataResult<()> {
        self.lease.revoke(&self.shared.endpoints).await
    }
}
