//! Leases. A lease is alive, as far as this process may believe, for its time to live after the
//! last successful renewal was sent; etcd counts from when that arrived, so the process knows of
//! the loss before others see the keys vanish. After a change of etcd's leader the keys may stay
//! for longer, and a leader that was paused may confirm a renewal that its successor does not
//! know: a lease steers, it never decides (I4).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock::{self, SharedClock};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::{MetadataError, MetadataResult};
use crate::etcd::endpoints::Endpoints;
use crate::etcd::errors::Failure;

/// Shortest time to live: the task that renews must get its turn.
const TTL_MIN: Duration = Duration::from_secs(1);
/// How many times a lease is renewed in its life.
const RENEWALS: u32 = 3;
/// Wait before a renewal that failed is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// A lease of this process.
pub(super) struct Lease {
    id: i64,
    ttl: Duration,
    clock: SharedClock,
    /// When the last successful renewal was sent.
    renewed: Mutex<Duration>,
    pub(super) lost: CancellationToken,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lease {:016x}", self.id)
    }
}

impl Lease {
    /// Asks etcd for a lease.
    pub(super) async fn grant(
        endpoints: &Endpoints,
        clock: &SharedClock,
        ttl: Duration,
    ) -> MetadataResult<Arc<Lease>> {
        if ttl < TTL_MIN {
            return Err(MetadataError::Invalid(format!(
                "a session of {ttl:?}: at least {TTL_MIN:?} are needed"
            )));
        }
        // etcd counts whole seconds. It may give more than asked for, never less.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let grant = |client: etcd_client::Client| {
            // Before anything is sent: the lease cannot end sooner than this says.
            let sent = clock.monotonic();
            async move {
                let granted = client.lease_client().grant(seconds, None).await?;
                Ok((granted.id(), granted.ttl(), sent))
            }
        };
        let (id, granted, sent) = endpoints.call("opening a session", grant).await?;
        let granted = Duration::from_secs(u64::try_from(granted).unwrap_or(0));
        Ok(Arc::new(Lease {
            id,
            ttl: ttl.min(granted),
            clock: Arc::clone(clock),
            renewed: Mutex::new(sent),
            lost: CancellationToken::new(),
        }))
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }

    pub(super) fn remaining(&self) -> Duration {
        if self.lost.is_cancelled() {
            return Duration::ZERO;
        }
        let age = self.clock.monotonic().saturating_sub(*self.renewed.lock());
        self.ttl.saturating_sub(age)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.remaining().is_zero()
    }

    pub(super) fn lose(&self) {
        self.lost.cancel();
    }

    async fn renew(&self, endpoints: &Endpoints) -> Result<(), Failure> {
        let limit = (self.ttl / (RENEWALS + 1)).min(endpoints.attempt_timeout());
        let sent = self.clock.monotonic();
        let renew = |client: etcd_client::Client| async move {
            // A stream for each renewal: the member that is asked may be another one each time.
            client.lease_client().keep_alive(self.id).await.map(drop)
        };
        endpoints.attempt(limit, renew).await?;
        if self.count_renewal(sent) {
            Ok(())
        } else {
            Err(Failure::NoLease)
        }
    }

    /// Counts a renewal that succeeded, unless the lease has expired here meanwhile: what was
    /// told so must stay true.
    fn count_renewal(&self, sent: Duration) -> bool {
        let mut renewed = self.renewed.lock();
        let in_time = self.clock.monotonic().saturating_sub(*renewed) < self.ttl;
        if in_time {
            *renewed = sent;
        }
        in_time
    }

    /// Renews the lease until it is lost, or until `ended`.
    pub(super) async fn keep(
        self: Arc<Self>,
        endpoints: Arc<Endpoints>,
        ended: impl Future<Output = ()>,
    ) {
        tokio::pin!(ended);
        let mut wait = self.ttl / RENEWALS;
        loop {
            let remaining = self.remaining();
            if remaining.is_zero() {
                self.lose();
                return;
            }
            tokio::select! {
                () = clock::sleep(wait.min(remaining)) => {}
                () = self.lost.cancelled() => return,
                () = &mut ended => return,
            }
            let remaining = self.remaining();
            if remaining.is_zero() {
                continue;
            }
            let renewed = tokio::select! {
                renewed = clock::timeout(remaining, self.renew(&endpoints)) => renewed,
                () = self.lost.cancelled() => return,
                () = &mut ended => return,
            };
            wait = match renewed {
                Ok(Ok(())) => self.ttl / RENEWALS,
                Ok(Err(Failure::NoLease)) => {
                    tracing::warn!(lease = ?self, "a lease has expired");
                    self.lose();
                    return;
                }
                Ok(Err(failure)) => {
                    tracing::debug!(lease = ?self, ?failure, "a lease could not be renewed");
                    RETRY
                }
                Err(_) => Duration::ZERO,
            };
        }
    }

    /// Gives the lease back. Its keys are gone when this succeeds.
    pub(super) async fn revoke(&self, endpoints: &Endpoints) -> MetadataResult<()> {
        self.lose();
        let revoke = |client: etcd_client::Client| async move {
            client.lease_client().revoke(self.id).await.map(drop)
        };
        match endpoints.call("closing a session", revoke).await {
            Ok(()) | Err(Failure::NoLease) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Whether etcd has the lease no more.
    pub(super) async fn is_gone(&self, endpoints: &Endpoints) -> MetadataResult<bool> {
        let left = |client: etcd_client::Client| async move {
            client.lease_client().time_to_live(self.id, None).await
        };
        match endpoints.call("looking at a session", left).await {
            Ok(left) => Ok(left.ttl() <= 0),
            Err(Failure::NoLease) => Ok(true),
            Err(failure) => Err(failure.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::clock::ManualClock;

    use super::*;

    #[test]
    fn a_lease_counts_from_when_its_renewal_was_sent_and_never_comes_back() {
        let clock = ManualClock::new(0);
        let lease = Lease {
            id: 1,
            ttl: Duration::from_secs(6),
            clock: Arc::clone(&clock) as SharedClock,
            renewed: Mutex::new(Duration::ZERO),
            lost: CancellationToken::new(),
        };
        clock.advance(Duration::from_secs(4));
        let sent = Duration::from_secs(2);
        assert!(lease.count_renewal(sent), "its answer came in time");
        assert_eq!(lease.remaining(), Duration::from_secs(4));
        clock.advance(Duration::from_secs(4));
        assert!(lease.is_lost());
        assert!(
            !lease.count_renewal(Duration::from_secs(7)),
            "it came too late"
        );
        assert!(lease.is_lost());
    }
}
