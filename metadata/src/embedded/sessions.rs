//! Sessions. A task renews those whose handle lives and ends those that were not renewed in
//! time: when the process was paused for longer than their time to live, or when their handle
//! was dropped. A session is lost first and its keys are removed then, so that no process sees the
//! keys vanish while the owner still believes in them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aquifer_runtime::clock::{self, SharedClock};
use aquifer_runtime::task::ShutdownToken;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::embedded::shared::{Shared, Work};
use crate::error::{MetadataError, MetadataResult};
use crate::limits;
use crate::store::{Expect, Operation, Revision, Session};

/// Sessions that a process may have open. It needs one.
const SESSIONS_MAX: usize = 1_024;
/// Shortest time to live: anything shorter would expire by the scheduler's whims.
const TTL_MIN: Duration = Duration::from_millis(10);
/// How often the task looks when no session is open.
const IDLE_TICK: Duration = Duration::from_secs(60);

/// The open sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: Mutex<Open>,
    /// Wakes the task for a session with a shorter time to live.
    opened: Notify,
}

#[derive(Debug, Default)]
struct Open {
    last_id: u64,
    sessions: Vec<Arc<SessionState>>,
}

/// One session.
pub(super) struct SessionState {
    id: u64,
    ttl: Duration,
    clock: SharedClock,
    renewed: Mutex<Duration>,
    lost: CancellationToken,
    abandoned: AtomicBool,
}

impl fmt::Debug for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.id)
    }
}

impl SessionState {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    fn remaining(&self) -> Duration {
        if self.is_lost() {
            return Duration::ZERO;
        }
        let age = self.clock.monotonic().saturating_sub(*self.renewed.lock());
        self.ttl.saturating_sub(age)
    }

    /// Renews the session, or tells that it is over.
    fn renew(&self) -> bool {
        if self.remaining().is_zero() {
            return false;
        }
        if !self.abandoned.load(Ordering::SeqCst) {
            *self.renewed.lock() = self.clock.monotonic();
        }
        true
    }
}

impl Sessions {
    pub(super) fn open(
        &self,
        ttl: Duration,
        clock: &SharedClock,
    ) -> MetadataResult<Arc<SessionState>> {
        if ttl < TTL_MIN {
            return Err(MetadataError::Invalid(format!(
                "a session of {ttl:?}: at least {TTL_MIN:?} are needed"
            )));
        }
        let mut open = self.open.lock();
        if open.sessions.len() >= SESSIONS_MAX {
            return Err(MetadataError::Invalid(format!(
                "{SESSIONS_MAX} sessions are open already"
            )));
        }
        // Ids begin again with the process: opening the store has removed what older ones left.
        open.last_id += 1;
        let state = Arc::new(SessionState {
            id: open.last_id,
            ttl,
            clock: Arc::clone(clock),
            renewed: Mutex::new(clock.monotonic()),
            lost: CancellationToken::new(),
            abandoned: AtomicBool::new(false),
        });
        open.sessions.push(Arc::clone(&state));
        drop(open);
        self.opened.notify_one();
        Ok(state)
    }

    pub(super) fn lose_all(&self) {
        for session in self.open.lock().sessions.drain(..) {
            session.lost.cancel();
        }
    }

    /// How long until the next renewals are due.
    fn tick(&self) -> Duration {
        let open = self.open.lock();
        open.sessions
            .iter()
            .map(|session| session.ttl / 4)
            .min()
            .unwrap_or(IDLE_TICK)
    }

    /// Renews what lives, and returns the sessions that are over and were not ended yet.
    fn renew_all(&self) -> Vec<Arc<SessionState>> {
        let sessions = self.open.lock().sessions.clone();
        let mut over = sessions;
        over.retain(|session| !session.renew());
        for session in &over {
            session.lost.cancel();
        }
        over
    }

    fn forget(&self, session: &SessionState) {
        self.open
            .lock()
            .sessions
            .retain(|open| open.id != session.id);
    }

    fn is_empty(&self) -> bool {
        self.open.lock().sessions.is_empty()
    }
}

/// Renews and ends the sessions of a store until it is closed, or until the process shuts down
/// and the last session is gone.
pub(super) async fn keep(shared: Arc<Shared>, shutdown: ShutdownToken) {
    loop {
        let tick = shared.sessions.tick();
        tokio::select! {
            () = shared.closed.cancelled() => return,
            () = clock::sleep(tick) => {}
            () = shared.sessions.opened.notified() => {}
            () = shutdown.wait(), if shared.sessions.is_empty() => return,
        }
        for session in shared.sessions.renew_all() {
            match shared.end_session(&session).await {
                Ok(_) => {}
                // The keys are still there: it is tried again at the next tick.
                Err(error) => tracing::warn!(%error, "keys of a lost session remain for now"),
            }
        }
    }
}

impl Shared {
    /// Removes the keys of a lost session.
    async fn end_session(&self, session: &Arc<SessionState>) -> MetadataResult<Revision> {
        let ended = self.ask(Work::EndSession(Arc::clone(session))).await?;
        self.sessions.forget(session);
        Ok(ended)
    }
}

/// A handle of a session.
#[derive(Debug)]
pub(super) struct EmbeddedSession {
    shared: Arc<Shared>,
    state: Arc<SessionState>,
}

impl EmbeddedSession {
    pub(super) fn new(shared: Arc<Shared>, state: Arc<SessionState>) -> EmbeddedSession {
        EmbeddedSession { shared, state }
    }
}

impl Drop for EmbeddedSession {
    fn drop(&mut self) {
        self.state.abandoned.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Session for EmbeddedSession {
    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> MetadataResult<Revision> {
        let operation = Operation::Put {
            key: key.to_owned(),
            value,
            expect,
        };
        limits::check_one(&operation)?;
        if self.state.remaining().is_zero() {
            return Err(MetadataError::SessionExpired);
        }
        let work = Work::SessionPut(Arc::clone(&self.state), operation);
        self.shared.ask(work).await
    }

    fn remaining(&self) -> Duration {
        self.state.remaining()
    }

    async fn lost(&self) {
        self.state.lost.cancelled().await;
    }

    async fn close(&self) -> MetadataResult<()> {
        self.state.lost.cancel();
        self.shared.end_session(&self.state).await.map(|_| ())
    }
}
