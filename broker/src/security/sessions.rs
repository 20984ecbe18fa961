//! Open sessions and what each needs: ended when that is taken away, or when the credential that
//! opened them expires. Nothing is asked per message.
//!
//! Invariant: a session is entered before it is judged for the last time at its opening, so that
//! every later change finds it.

use std::sync::Arc;
use std::time::Duration;

use aquifer_protocol_api::access::Access;
use aquifer_protocol_api::context::{Identity, Principal, RequestContext};
use aquifer_protocol_api::error::ApiError;
use aquifer_protocol_api::session::SessionEnd;
use aquifer_runtime::clock;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::security::Guard;
use crate::security::audit::Record;
use crate::security::records::State;

/// Sessions that are judged without a pause.
const AT_ONCE: usize = 1_000;
/// How often it is looked which credentials have expired.
const TICK: Duration = Duration::from_secs(1);
/// Changes that come together are judged together.
const GATHER: Duration = Duration::from_millis(100);
/// For how long a session outlives its credential, in milliseconds: clocks differ.
pub(super) const LEEWAY_MS: u64 = 30_000;

/// The open sessions.
#[derive(Default)]
pub(super) struct Sessions(Mutex<Vec<Open>>);

struct Open {
    ctx: RequestContext,
    identity: Arc<Identity>,
    /// What it needs, all of it.
    needs: Vec<Access>,
    /// When its credential expires, as was known last.
    until_ms: Option<u64>,
    end: oneshot::Sender<ApiError>,
}

impl Guard {
    /// Enters a session that was opened. Its needs were decided already; they are once more, in
    /// case that changed meanwhile.
    ///
    /// # Errors
    /// When it may not be open any more.
    pub(crate) fn enter_session(
        &self,
        ctx: &RequestContext,
        needs: Vec<Access>,
    ) -> Result<SessionEnd, ApiError> {
        let Principal::Named(identity) = &ctx.principal else {
            return Err(crate::security::unauthenticated());
        };
        let (end, told) = oneshot::channel();
        self.sessions.0.lock().push(Open {
            ctx: ctx.clone(),
            identity: Arc::clone(identity),
            needs: needs.clone(),
            until_ms: identity.expires_ms,
            end,
        });
        self.judge(identity, &needs)?;
        Ok(SessionEnd::when(told))
    }

    /// Until when the credential of a session is good, if its needs are met.
    fn judge(&self, identity: &Arc<Identity>, needs: &[Access]) -> Result<Option<u64>, ApiError> {
        let until = self.check_credential(identity)?;
        for need in needs {
            let allowed = self.allowed_by(identity, need.action, &need.resource);
            allowed.ok_or_else(crate::security::forbidden)?;
        }
        Ok(until)
    }

    /// Ends sessions as they lose what they need, until the task is dropped.
    pub(super) async fn end_sessions(&self) {
        let mut changes = self.records.changes();
        let mut judged_ms = self.clock.wall_ms();
        loop {
            let changed = clock::timeout(TICK, changes.changed()).await;
            // The sender lives as long as self, so that this is a change or the time.
            let has_changed = changed.is_ok();
            if has_changed {
                clock::sleep(GATHER).await;
                changes.mark_unchanged();
            }
            let now_ms = self.clock.wall_ms();
            let some_end = |state: &State| state.some_end(judged_ms, now_ms);
            if has_changed || self.records.read(some_end) {
                self.judge_all().await;
            }
            judged_ms = now_ms;
            self.expire();
            self.audit.flush();
        }
    }

    async fn judge_all(&self) {
        let mut all = std::mem::take(&mut *self.sessions.0.lock());
        while !all.is_empty() {
            let rest = all.split_off(all.len().min(AT_ONCE));
            let mut kept = Vec::with_capacity(all.len());
            for mut open in all {
                match self.judge(&open.identity, &open.needs) {
                    Ok(until) => {
                        open.until_ms = until;
                        kept.push(open);
                    }
                    Err(error) => self.end(open, error, "what allowed it was taken away"),
                }
            }
            self.sessions.0.lock().append(&mut kept);
            all = rest;
            tokio::task::yield_now().await;
        }
    }

    /// Ends sessions whose credential has expired, and forgets those that are closed.
    fn expire(&self) {
        let now = self.clock.wall_ms();
        let is_over = |open: &mut Open| {
            let until = open.until_ms;
            until.is_some_and(|until| until.saturating_add(LEEWAY_MS) <= now)
        };
        let mut over = Vec::new();
        {
            let mut all = self.sessions.0.lock();
            all.retain(|open| !open.end.is_closed());
            over.extend(all.extract_if(.., is_over));
        }
        for open in over {
            self.end(
                open,
                crate::security::unauthenticated(),
                "its credential has expired",
            );
        }
    }

    fn end(&self, open: Open, error: ApiError, why: &str) {
        let Some(need) = open.needs.first().filter(|_| !open.end.is_closed()) else {
            return;
        };
        let record = Record::of(&open.ctx, need).detail(why);
        self.audit.write(record.refused(error.kind));
        let _ = open.end.send(error);
    }
}
