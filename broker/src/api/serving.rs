//! What every request passes: its caller is admitted, it runs in its span and within its deadline,
//! and its failure is counted.

use std::future::Future;

use aquifer_model::topic::TopicName;
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::context::{RequestContext, RequestId};
use aquifer_protocol_api::error::{ApiError, ApiResult};
use aquifer_protocol_api::session::SessionEnd;
use aquifer_runtime::clock;
use tracing::{Instrument, Span};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::security::audit::cause::{Cause, Create};

impl Broker {
    /// Runs a request in its span if its caller may make it, and counts it when it fails. Every
    /// call of the ports comes here with what it needs a permission for.
    pub(super) async fn serve<T>(
        &self,
        ctx: &RequestContext,
        access: Access,
        span: Span,
        work: impl Future<Output = Result<T, BrokerError>> + Send,
    ) -> ApiResult<T> {
        let admitted = match &self.shared.guard {
            None => None,
            Some(guard) => {
                let admitted = guard.admit(ctx, &access, &self.request_id(ctx));
                admitted.map_err(|error| self.failed(&access, &span, error))?
            }
        };
        let work = async {
            self.shared.check_open()?;
            let Some(deadline) = ctx.deadline else {
                return work.await;
            };
            let left = deadline.saturating_sub(self.shared.clock.monotonic());
            match clock::timeout(left, work).await {
                Ok(outcome) => outcome,
                Err(_) => Err(BrokerError::Deadline(access.request)),
            }
        };
        let outcome = work.instrument(span.clone()).await;
        let outcome = outcome.map_err(|error| self.failed(&access, &span, error.into()));
        if let Some(admitted) = admitted {
            admitted.ended(&outcome);
        }
        outcome
    }

    /// What a request is called; one whose caller gave it no id is called something else each time.
    pub(super) fn request_id(&self, ctx: &RequestContext) -> RequestId {
        let drawn = || RequestId::drawn(self.shared.rng.id16());
        ctx.request_id.clone().unwrap_or_else(drawn)
    }

    /// Counts a failure.
    fn failed(&self, access: &Access, span: &Span, error: ApiError) -> ApiError {
        let _entered = span.enter();
        let (request, action) = (access.request, access.action.name());
        tracing::debug!(request, action, kind = ?error.kind, %error, "request failed");
        self.shared.metrics.failed(request, error.kind);
        error
    }

    /// Whether a caller may describe something.
    pub(super) fn sees(&self, ctx: &RequestContext, resource: &Resource) -> bool {
        let guard = self.shared.guard.as_ref();
        guard.is_none_or(|guard| guard.sees(ctx, resource))
    }

    /// Whether a caller may create a topic by using it.
    pub(super) fn may_use(&self, ctx: &RequestContext, topic: &TopicName) -> bool {
        let guard = self.shared.guard.as_ref();
        let resource = Resource::Topic(topic.clone());
        guard.is_none_or(|guard| guard.may(ctx, Action::Use, &resource))
    }

    /// Creates the topic that a request uses where that is allowed, which is recorded.
    pub(super) fn created_by(&self, ctx: &RequestContext, request: &'static str) -> Create {
        let guard = self.shared.guard.as_ref();
        Create::For(guard.map(|guard| Cause::new(guard, ctx, request, self.request_id(ctx))))
    }

    /// Refuses what a caller may not do besides what its request needs.
    pub(super) fn require(&self, ctx: &RequestContext, access: &Access) -> ApiResult<()> {
        let Some(guard) = &self.shared.guard else {
            return Ok(());
        };
        let allowed = guard.require(ctx, access, &self.request_id(ctx));
        allowed.map(drop)
    }

    /// When a session that was opened must end.
    pub(super) fn session_end(
        &self,
        ctx: &RequestContext,
        needs: Vec<Access>,
    ) -> ApiResult<SessionEnd> {
        match &self.shared.guard {
            None => Ok(SessionEnd::never()),
            Some(guard) => guard.enter_session(ctx, needs),
        }
    }
}
