//! The broker as wire protocols see it: every request gets its span, is decided on once and its
//! failure is counted here, then it goes to the file of its kind.

mod admin;
pub(crate) mod audit;
mod backup;
mod bundles;
mod clear;
mod consume;
mod data_plane;
mod operator;
mod produce;
mod pull;
mod removal;
mod security;
mod seeks;
mod subscriptions;
mod topic_life;
mod topics;

use std::future::Future;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate, PolicyView};
use aquifer_model::stats::{OffloadProgress, TopicStats};
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::admin::{
    Admin, Clear, Deletion, Page, PageRequest, Peeked, Removal, Removed, SubscriptionReset,
    TopicDescription, TopicEnd, TopicLayout,
};
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_protocol_api::context::{RequestContext, RequestId};
use aquifer_protocol_api::error::{ApiError, ApiResult};
use aquifer_protocol_api::session::SessionEnd;
use aquifer_runtime::clock;
use async_trait::async_trait;
use tracing::{Instrument, Span, info_span};

use crate::api::admin::{above, resource_of};
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::security::audit::cause::{Cause, Create};
use crate::topics::removal::Doomed;

impl Broker {
    /// Runs a request in its span if its caller may make it, and counts it when it fails. Every
    /// call of the ports comes here with what it needs a permission for.
    async fn serve<T>(
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
    fn request_id(&self, ctx: &RequestContext) -> RequestId {
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
    fn sees(&self, ctx: &RequestContext, resource: &Resource) -> bool {
        let guard = self.shared.guard.as_ref();
        guard.is_none_or(|guard| guard.sees(ctx, resource))
    }

    /// Whether a caller may create a topic by using it.
    fn may_use(&self, ctx: &RequestContext, topic: &TopicName) -> bool {
        let guard = self.shared.guard.as_ref();
        let resource = Resource::Topic(topic.clone());
        guard.is_none_or(|guard| guard.may(ctx, Action::Use, &resource))
    }

    /// Creates the topic that a request uses where that is allowed, which is recorded.
    fn created_by(&self, ctx: &RequestContext, request: &'static str) -> Create {
        let guard = self.shared.guard.as_ref();
        Create::For(guard.map(|guard| Cause::new(guard, ctx, request, self.request_id(ctx))))
    }

    /// Refuses what a caller may not do besides what its request needs.
    fn require(&self, ctx: &RequestContext, access: &Access) -> ApiResult<()> {
        let Some(guard) = &self.shared.guard else {
            return Ok(());
        };
        let allowed = guard.require(ctx, access, &self.request_id(ctx));
        allowed.map(drop)
    }

    /// When a session that was opened must end.
    fn session_end(&self, ctx: &RequestContext, needs: Vec<Access>) -> ApiResult<SessionEnd> {
        match &self.shared.guard {
            None => Ok(SessionEnd::never()),
            Some(guard) => guard.enter_session(ctx, needs),
        }
    }
}

macro_rules! serve {
    ($broker:expr, $ctx:expr, $request:literal, $action:expr, $resource:expr, $work:expr) => {
        serve!($broker, $ctx, $request, $action, $resource, about: None, $work)
    };
    (
        $broker:expr, $ctx:expr, $request:literal, $action:expr, $resource:expr,
        about: $about:expr, $work:expr
    ) => {{
        let access = Access {
            request: $request,
            action: $action,
            resource: $resource,
            about: $about,
        };
        let span = info_span!(
            $request,
            protocol = $ctx.protocol,
            peer = ?$ctx.peer,
            resource = %access.subject()
        );
        $broker.serve($ctx, access, span, $work).await
    }};
}

pub(crate) use serve;

#[async_trait]
impl Admin for Broker {
    async fn create_tenant(&self, ctx: &RequestContext, tenant: String) -> ApiResult<()> {
        serve!(
            self,
            ctx,
            "create_tenant",
            Action::Manage,
            Resource::Cluster,
            about: Some(Resource::Tenant(tenant.clone())),
            self.make_tenant(&tenant)
        )
    }

    async fn delete_tenant(
        &self,
        ctx: &RequestContext,
        tenant: String,
        how: Removal,
    ) -> ApiResult<Removed> {
        self.delete_all(ctx, Resource::Cluster, Doomed::Tenant(tenant), how)
            .await
    }

    async fn delete_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        how: Removal,
    ) -> ApiResult<Removed> {
        let resource = Resource::Tenant(namespace.tenant().to_owned());
        self.delete_all(ctx, resource, Doomed::Namespace(namespace), how)
            .await
    }

    async fn list_tenants(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> ApiResult<Page<String>> {
        serve!(
            self,
            ctx,
            "list_tenants",
            Action::List,
            Resource::Cluster,
            async {
                let list = self.shared.pages.list(ctx, "list_tenants", &[]);
                list.seal(self.tenants(ctx, list.open(page)?).await?)
            }
        )
    }

    async fn create_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        policies: Policies,
    ) -> ApiResult<PolicyView> {
        serve!(
            self,
            ctx,
            "create_namespace",
            Action::Manage,
            Resource::Tenant(namespace.tenant().to_owned()),
            about: Some(Resource::Namespace(namespace.clone())),
            self.make_namespace(&namespace, policies)
        )
    }

    async fn get_policies(
        &self,
        ctx: &RequestContext,
        scope: PolicyScope,
    ) -> ApiResult<PolicyView> {
        serve!(
            self,
            ctx,
            "get_policies",
            Action::Describe,
            resource_of(&scope),
            self.shared.namespaces.policies().view(&scope)
        )
    }

    async fn update_policies(
        &self,
        ctx: &RequestContext,
        scope: PolicyScope,
        update: PolicyUpdate,
    ) -> ApiResult<PolicyView> {
        serve!(
            self,
            ctx,
            "update_policies",
            Action::Manage,
            // Nothing lifts a ceiling of its own.
            match update.changes_ceilings() {
                true => above(&scope),
                false => resource_of(&scope),
            },
            self.shared.namespaces.policies().update(&scope, &update)
        )
    }

    async fn list_namespaces(
        &self,
        ctx: &RequestContext,
        tenant: String,
        page: PageRequest,
    ) -> ApiResult<Page<NamespaceName>> {
        serve!(
            self,
            ctx,
            "list_namespaces",
            Action::List,
            Resource::Tenant(tenant.clone()),
            async {
                let list = self.shared.pages.list(ctx, "list_namespaces", &[&tenant]);
                list.seal(self.namespaces(ctx, &tenant, list.open(page)?).await?)
            }
        )
    }

    async fn create_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        partitions: u32,
    ) -> ApiResult<()> {
        serve!(
            self,
            ctx,
            "create_topic",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.make_topic(&topic, partitions)
        )
    }

    async fn describe_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        create: bool,
    ) -> ApiResult<TopicLayout> {
        // Producers and consumers look a topic up before they open it, and create it where the
        // namespace allows that. Who may only describe it finds it, and creates nothing.
        let (action, create) = match create && self.may_use(ctx, &topic) {
            true => (Action::Use, self.created_by(ctx, "describe_topic")),
            false => (Action::Describe, Create::Never),
        };
        serve!(
            self,
            ctx,
            "describe_topic",
            action,
            Resource::Topic(topic.clone()),
            self.describe(topic, &create)
        )
    }

    async fn delete_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        how: Deletion,
    ) -> ApiResult<()> {
        serve!(
            self,
            ctx,
            "delete_topic",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.remove_topic(&topic, how)
        )
    }

    async fn list_topics(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        page: PageRequest,
    ) -> ApiResult<Page<TopicDescription>> {
        serve!(
            self,
            ctx,
            "list_topics",
            Action::List,
            Resource::Namespace(namespace.clone()),
            async {
                let of = namespace.to_string();
                let list = self.shared.pages.list(ctx, "list_topics", &[&of]);
                list.seal(self.topics_of(ctx, &namespace, list.open(page)?).await?)
            }
        )
    }

    async fn offload_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        before: Place,
    ) -> ApiResult<OffloadProgress> {
        serve!(
            self,
            ctx,
            "offload_topic",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.offload(&topic, before)
        )
    }

    async fn grow_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        partitions: u32,
    ) -> ApiResult<()> {
        serve!(
            self,
            ctx,
            "grow_topic",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.grow(&topic, partitions)
        )
    }

    async fn unload_topic(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<u32> {
        serve!(
            self,
            ctx,
            "unload_topic",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.unload(&topic)
        )
    }

    async fn terminate_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<Vec<TopicEnd>> {
        serve!(
            self,
            ctx,
            "terminate_topic",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.terminate(&topic)
        )
    }

    async fn topic_stats(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicStats> {
        serve!(
            self,
            ctx,
            "topic_stats",
            Action::Describe,
            Resource::Topic(topic.clone()),
            self.stats_of(&topic)
        )
    }

    async fn delete_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        force: bool,
    ) -> ApiResult<()> {
        serve!(
            self,
            ctx,
            "delete_subscription",
            Action::Consume,
            Resource::Subscription(topic.clone(), subscription.clone()),
            self.remove_subscription(&topic, &subscription, force)
        )
    }

    async fn create_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
    ) -> ApiResult<Index> {
        serve!(
            self,
            ctx,
            "create_subscription",
            Action::Consume,
            Resource::Subscription(topic.clone(), subscription.clone()),
            self.new_subscription(ctx, &topic, &subscription, place)
        )
    }

    async fn seek_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
    ) -> ApiResult<Index> {
        serve!(
            self,
            ctx,
            "seek_subscription",
            Action::Consume,
            Resource::Subscription(topic.clone(), subscription.clone()),
            self.move_subscription(&topic, &subscription, place)
        )
    }

    async fn skip_messages(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>> {
        serve!(
            self,
            ctx,
            "skip_messages",
            Action::Consume,
            Resource::Subscription(topic.clone(), subscription.clone()),
            self.give_up(&topic, &subscription, range)
        )
    }

    async fn clear_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        clear: Clear,
    ) -> ApiResult<u64> {
        let resource = Resource::Subscription(topic.clone(), subscription.clone());
        let work = self.clear(&topic, &subscription, clear);
        // The audit log tells one from the other.
        match clear.dry_run {
            true => serve!(
                self,
                ctx,
                "clear_subscription_dry_run",
                Action::Consume,
                resource,
                work
            ),
            false => serve!(
                self,
                ctx,
                "clear_subscription",
                Action::Consume,
                resource,
                work
            ),
        }
    }

    async fn peek_messages(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        limit: usize,
    ) -> ApiResult<Peeked> {
        serve!(
            self,
            ctx,
            "peek_messages",
            Action::Consume,
            Resource::Subscription(topic.clone(), subscription.clone()),
            self.peek(&topic, &subscription, limit)
        )
    }

    async fn reset_subscriptions(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>> {
        serve!(
            self,
            ctx,
            "reset_subscriptions",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.reset(&topic)
        )
    }
}
