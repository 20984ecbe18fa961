//! The broker as wire protocols see it: every request gets its span, is decided on once and its
//! failure is counted here, then it goes to the file of its kind.

mod admin;
pub(crate) mod audit;
mod backup;
mod bundles;
mod clear;
mod data_plane;
mod inventory;
mod messages;
mod operator;
mod pull;
mod reach;
mod removal;
mod security;
mod seeks;
mod serving;
mod sessions;
mod subscriptions;
mod topic_life;
mod topics;

use aquifer_model::content::{Removed, TopicContent};
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate, PolicyView};
use aquifer_model::stats::{OffloadProgress, TopicEnd, TopicStats};
use aquifer_model::subscription::Properties;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::admin::{
    Admin, Clear, Deletion, Page, PageRequest, Peeked, Reimport, Removal, SubscriptionReset,
    TopicDescription, TopicLayout,
};
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ApiResult;
use async_trait::async_trait;
use tracing::info_span;

use crate::api::admin::{above, resource_of};
use crate::api::reach::Reach;
use crate::broker::Broker;
use crate::security::audit::cause::Create;
use crate::topics::removal::RemovalScope;

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
            self.create_tenant_record(&tenant)
        )
    }

    async fn delete_tenant(
        &self,
        ctx: &RequestContext,
        tenant: String,
        how: Removal,
    ) -> ApiResult<Removed> {
        self.delete_all(ctx, Resource::Cluster, RemovalScope::Tenant(tenant), how)
            .await
    }

    async fn delete_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        how: Removal,
    ) -> ApiResult<Removed> {
        let resource = Resource::Tenant(namespace.tenant().to_owned());
        self.delete_all(ctx, resource, RemovalScope::Namespace(namespace), how)
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
                list.seal(self.list_tenants_page(ctx, list.open(page)?).await?)
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
            self.create_namespace_record(&namespace, policies)
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
            // Nothing lifts a ceiling of its own, or gives itself a larger share.
            match update.is_for_above() {
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
                list.seal(
                    self.list_namespaces_page(ctx, &tenant, list.open(page)?)
                        .await?,
                )
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
            self.create_topic_at(&topic, partitions, Reach::of(ctx))
        )
    }

    async fn describe_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        create: bool,
    ) -> ApiResult<TopicLayout> {
        // Producers and consumers look a topic up before they open it, and create it where the
        // namespace allows that. A caller that may only describe it finds it, and
        // creates nothing.
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
            self.delete_topic_at(&topic, how, Reach::of(ctx))
        )
    }

    async fn delete_topic_dry_run(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<TopicContent> {
        serve!(
            self,
            ctx,
            "delete_topic_dry_run",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.delete_dry_run(&topic, Reach::of(ctx))
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
                list.seal(
                    self.list_topics_page(ctx, &namespace, list.open(page)?)
                        .await?,
                )
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
            self.offload(&topic, before, Reach::of(ctx))
        )
    }

    async fn reimport_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        what: Reimport,
    ) -> ApiResult<OffloadProgress> {
        serve!(
            self,
            ctx,
            "reimport_topic",
            Action::Manage,
            Resource::Topic(topic.clone()),
            self.reimport(&topic, what, Reach::of(ctx))
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
            self.unload(&topic, Reach::of(ctx))
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
            self.terminate(&topic, Reach::of(ctx))
        )
    }

    async fn topic_stats(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicStats> {
        serve!(
            self,
            ctx,
            "topic_stats",
            Action::Describe,
            Resource::Topic(topic.clone()),
            self.stats_of(&topic, Reach::of(ctx))
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
            self.delete_subscription_at(&topic, &subscription, force, Reach::of(ctx))
        )
    }

    async fn create_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
        properties: Properties,
    ) -> ApiResult<Index> {
        serve!(
            self,
            ctx,
            "create_subscription",
            Action::Consume,
            Resource::Subscription(topic.clone(), subscription.clone()),
            self.create_subscription_at(ctx, &topic, &subscription, (place, &properties))
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
            self.seek(&topic, &subscription, place, Reach::of(ctx))
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
            self.skip(&topic, &subscription, range, Reach::of(ctx))
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
        let work = self.clear(&topic, &subscription, clear, Reach::of(ctx));
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
            self.peek(&topic, &subscription, limit, Reach::of(ctx))
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
            self.reset(&topic, Reach::of(ctx))
        )
    }
}
