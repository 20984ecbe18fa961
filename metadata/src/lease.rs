//! The one lease of a process, and the keys that say that it lives.
//!
//! Invariants:
//! - What was set is announced for as long as the process wants it: when the session is lost, a
//!   new one is opened and everything is written again.
//! - After [`Lease::close`] has returned, nothing is announced and nothing will be.
//!
//! A lease says that a process was alive a while ago and no more. Nothing may be decided by it
//! that must not happen twice: fencing and epochs decide (I4). What the process itself may go by is
//! [`Lease::held`].

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;
use opentelemetry::metrics::Meter;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{MetadataError, MetadataResult};
use crate::store::{Expect, MetadataStore, Session};

/// First and longest wait before the store is asked again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// For how long the session is certainly alive still.
const REMAINING_SECONDS: &str = "aquifer_metadata_lease_remaining_seconds";

/// The lease of a process. Clones share it; it ends with [`Lease::close`], or, without removing
/// its keys before they expire, with its group.
#[derive(Debug, Clone)]
pub struct Lease {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ttl: Duration,
    wanted: watch::Sender<Wanted>,
    /// The current session.
    session: watch::Sender<Current>,
    /// The version that is written under the current session; `None` without one.
    announced: watch::Sender<Option<u64>>,
    closing: CancellationToken,
    closed: CancellationToken,
}

/// A session and its number; numbers rise.
#[derive(Clone, Default)]
struct Current(Option<(u64, Arc<dyn Session>)>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Current").field(&self.0.is_some()).finish()
    }
}

#[derive(Debug, Default)]
struct Wanted {
    version: u64,
    keys: BTreeMap<String, Bytes>,
}

impl Lease {
    /// Starts to hold a lease, which expires when it was not renewed for `ttl`.
    #[must_use]
    pub fn start(
        store: Arc<dyn MetadataStore>,
        ttl: Duration,
        rng: SharedRng,
        tasks: &TaskGroup,
    ) -> Lease {
        let shared = Arc::new(Shared {
            ttl,
            wanted: watch::Sender::default(),
            session: watch::Sender::default(),
            announced: watch::Sender::new(None),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
        });
        let held = Arc::clone(&shared);
        let shutdown = tasks.shutdown_token();
        // The task ends with the lease or the group; its handle is not needed.
        drop(tasks.spawn("metadata-lease", async move {
            // However this ends: nothing that waits for the end of the lease may wait for ever.
            let _closed = held.closed.clone().drop_guard();
            tokio::select! {
                () = held.hold(store.as_ref(), &rng) => {}
                () = shutdown.wait() => {}
            }
        }));
        Lease { shared }
    }

    /// Announces a value at a key from now on, instead of the former one.
    pub fn set(&self, key: &str, value: Bytes) {
        self.shared.wanted.send_if_modified(|wanted| {
            if wanted.keys.get(key) == Some(&value) {
                return false;
            }
            wanted.version += 1;
            wanted.keys.insert(key.to_owned(), value);
            true
        });
    }

    /// Waits until everything that was set by now is in the store, under a session that lived
    /// then. Returns at once when the lease is closed.
    pub async fn announced(&self) {
        let version = self.shared.wanted.borrow().version;
        let mut announced = self.shared.announced.subscribe();
        tokio::select! {
            // The sender lives as long as this lease, so the wait ends only by the condition.
            _ = announced.wait_for(|done| done.is_some_and(|done| done >= version)) => {}
            () = self.shared.closed.cancelled() => {}
        }
    }

    /// The current session, for locks and elections, which are lost with it; waits for one.
    /// `None` once the lease is closed. It is the lease's: nothing else closes it.
    pub async fn session(&self) -> Option<Arc<dyn Session>> {
        let mut session = self.shared.session.subscribe();
        tokio::select! {
            biased;
            () = self.shared.closing.cancelled() => None,
            () = self.shared.closed.cancelled() => None,
            // The sender lives as long as this lease, so the wait ends only by the condition.
            now = session.wait_for(|now| now.0.is_some()) => {
                now.ok().and_then(|now| now.0.clone()).map(|(_, session)| session)
            }
        }
    }

    /// How long it lasts without being renewed.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.shared.ttl
    }

    /// The number of the current session, if that is certainly alive still and the process is
    /// announced under it. As long as this says the same, no process has taken this one for gone in
    /// between.
    #[must_use]
    pub fn held(&self) -> Option<u64> {
        let announced = self.shared.announced.borrow().unwrap_or_default();
        if announced == 0 {
            return None; // nothing was set, or it is not written yet
        }
        let now = self.shared.session.borrow();
        let (number, session) = now.0.as_ref()?;
        (!session.remaining().is_zero()).then_some(*number)
    }

    /// Shows for how long the current session is certainly alive still, as of its last renewal; 0
    /// while there is no session.
    pub fn show(&self, meter: &Meter) {
        // The instrument outlives the lease, and must not keep its session.
        let shared = Arc::downgrade(&self.shared);
        meter
            .f64_observable_gauge(REMAINING_SECONDS)
            .with_callback(move |observer| {
                let remaining = shared.upgrade().map(|shared| shared.remaining());
                observer.observe(remaining.unwrap_or_default().as_secs_f64(), &[]);
            })
            .build();
    }

    /// Ends the lease and removes its keys. When the store is away they expire later instead.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.closed.cancelled().await;
    }
}

impl Shared {
    /// For how long the current session is certainly alive still.
    fn remaining(&self) -> Duration {
        let now = self.session.borrow();
        let session = now.0.as_ref();
        session.map_or(Duration::ZERO, |(_, session)| session.remaining())
    }

    /// Holds one session after the other until the lease is closed.
    async fn hold(&self, store: &dyn MetadataStore, rng: &SharedRng) {
        let mut retry = RETRY_FIRST;
        let mut number = 0;
        loop {
            let opened = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                opened = store.open_session(self.ttl) => opened,
            };
            let lost = match opened {
                Ok(session) => {
                    let session: Arc<dyn Session> = session.into();
                    number += 1;
                    let current = Current(Some((number, Arc::clone(&session))));
                    self.session.send_replace(current);
                    let lost = tokio::select! {
                        biased;
                        () = self.closing.cancelled() => None,
                        lost = self.announce(session.as_ref(), rng) => Some(lost),
                    };
                    self.announced.send_replace(None);
                    self.session.send_replace(Current::default());
                    let Some(lost) = lost else {
                        close(session.as_ref()).await;
                        return;
                    };
                    retry = RETRY_FIRST;
                    lost
                }
                Err(error) => error,
            };
            tracing::warn!(%lost, "this process is not announced: opening another session");
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                () = clock::sleep(rng.jitter(retry)) => retry = (retry * 2).min(RETRY_MAX),
            }
        }
    }

    /// Keeps the store as it is wanted for as long as the session lives; returns how it ended.
    async fn announce(&self, session: &dyn Session, rng: &SharedRng) -> MetadataError {
        let mut wanted = self.wanted.subscribe();
        let mut written = BTreeMap::new();
        let mut retry = RETRY_FIRST;
        loop {
            let next = match self.write(session, &mut wanted, &mut written).await {
                Ok(()) => {
                    retry = RETRY_FIRST;
                    None
                }
                Err(MetadataError::SessionExpired) => return MetadataError::SessionExpired,
                Err(error) => {
                    tracing::warn!(%error, "a key of this process is not announced yet");
                    retry = (retry * 2).min(RETRY_MAX);
                    Some(clock::sleep(rng.jitter(retry)))
                }
            };
            let again = async {
                match next {
                    Some(pause) => pause.await,
                    // An error means that the sender is gone, and then this task is, too.
                    None => drop(wanted.changed().await),
                }
            };
            tokio::select! {
                () = session.lost() => return MetadataError::SessionExpired,
                () = again => {}
            }
        }
    }

    /// Writes what is wanted and not written yet.
    async fn write(
        &self,
        session: &dyn Session,
        wanted: &mut watch::Receiver<Wanted>,
        written: &mut BTreeMap<String, Bytes>,
    ) -> MetadataResult<()> {
        let (version, keys) = {
            let wanted = wanted.borrow_and_update();
            (wanted.version, wanted.keys.clone())
        };
        for (key, value) in keys {
            if written.get(&key) != Some(&value) {
                session.put(&key, value.clone(), Expect::Any).await?;
                written.insert(key, value);
            }
        }
        self.announced.send_replace(Some(version));
        Ok(())
    }
}

async fn close(session: &dyn Session) {
    match session.close().await {
        Ok(()) | Err(MetadataError::SessionExpired) => {}
        Err(error) => {
            tracing::warn!(%error, "the lease could not be ended: its keys expire by themselves");
        }
    }
}
