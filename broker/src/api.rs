//! The broker as wire protocols see it: every request gets its span and its failure is counted
//! here, then it goes to the file of its kind.

mod admin;
mod bundles;
mod consume;
mod produce;
mod topics;

use std::future::Future;

use aquifer_model::bundle::BundleRange;
use aquifer_model::id::{BrokerId, Index};
use aquifer_model::limits::{BATCH_BYTES_MAX, MESSAGE_BYTES_MAX};
use aquifer_model::load::LoadReport;
use aquifer_model::place::Place;
use aquifer_model::policy::{NamespacePolicies, PolicyChanges};
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use aquifer_protocol_api::broker::{
    ApiResult, BrokerApi, BrokerIdentity, BrokerInfo, BundleInfo, ConsumerSession, Deletion,
    IndexRange, OpenProducer, Page, PageRequest, ProducerSession, Subscribe, SubscriptionReset,
    TopicDescription, TopicStats,
};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ApiError;
use aquifer_runtime::clock;
use async_trait::async_trait;
use tracing::{Instrument, Span, info_span};

use crate::balance;
use crate::broker::Broker;
use crate::error::BrokerError;

impl Broker {
    /// Runs a request in its span, and counts it when it fails.
    async fn serve<T>(
        &self,
        ctx: &RequestContext,
        request: &'static str,
        span: Span,
        work: impl Future<Output = Result<T, BrokerError>> + Send,
    ) -> ApiResult<T> {
        let work = async {
            self.shared.check_open()?;
            let Some(deadline) = ctx.deadline else {
                return work.await;
            };
            let left = deadline.saturating_sub(self.shared.clock.monotonic());
            match clock::timeout(left, work).await {
                Ok(outcome) => outcome,
                Err(_) => Err(BrokerError::Deadline(request)),
            }
        };
        let outcome = work.instrument(span.clone()).await;
        outcome.map_err(|error| {
            let error = ApiError::from(error);
            let _entered = span.enter();
            tracing::debug!(request, kind = ?error.kind, %error, "request failed");
            self.shared.metrics.failed(request, error.kind);
            error
        })
    }
}

macro_rules! span {
    ($name:literal, $ctx:expr $(, $field:ident = $value:expr)*) => {
        info_span!($name, protocol = $ctx.protocol, peer = ?$ctx.peer $(, $field = %$value)*)
    };
}

#[async_trait]
impl BrokerApi for Broker {
    fn identity(&self) -> BrokerIdentity {
        BrokerIdentity {
            broker: self.shared.id,
            cluster: self.shared.config.cluster.clone(),
            message_bytes_max: MESSAGE_BYTES_MAX as u64,
            batch_bytes_max: BATCH_BYTES_MAX as u64,
        }
    }

    async fn open_producer(
        &self,
        ctx: &RequestContext,
        request: OpenProducer,
    ) -> ApiResult<ProducerSession> {
        let span = span!("open_producer", ctx, topic = request.topic);
        self.serve(ctx, "open_producer", span, self.produce(request))
            .await
    }

    async fn subscribe(
        &self,
        ctx: &RequestContext,
        request: Subscribe,
    ) -> ApiResult<ConsumerSession> {
        let span = span!("subscribe", ctx, topic = request.topic);
        self.serve(ctx, "subscribe", span, self.consume(request))
            .await
    }

    async fn create_tenant(&self, ctx: &RequestContext, tenant: String) -> ApiResult<()> {
        let span = span!("create_tenant", ctx, tenant = tenant);
        self.serve(ctx, "create_tenant", span, self.make_tenant(&tenant))
            .await
    }

    async fn list_tenants(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> ApiResult<Page<String>> {
        let span = span!("list_tenants", ctx);
        self.serve(ctx, "list_tenants", span, self.tenants(page))
            .await
    }

    async fn create_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        policies: PolicyChanges,
    ) -> ApiResult<NamespacePolicies> {
        let span = span!("create_namespace", ctx, namespace = namespace);
        let work = self.make_namespace(&namespace, policies);
        self.serve(ctx, "create_namespace", span, work).await
    }

    async fn get_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
    ) -> ApiResult<NamespacePolicies> {
        let span = span!("get_namespace", ctx, namespace = namespace);
        let work = self.shared.namespaces.get(&namespace);
        self.serve(ctx, "get_namespace", span, work).await
    }

    async fn update_namespace(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        changes: PolicyChanges,
    ) -> ApiResult<NamespacePolicies> {
        let span = span!("update_namespace", ctx, namespace = namespace);
        let work = self.change_namespace(&namespace, changes);
        self.serve(ctx, "update_namespace", span, work).await
    }

    async fn list_namespaces(
        &self,
        ctx: &RequestContext,
        tenant: String,
        page: PageRequest,
    ) -> ApiResult<Page<NamespaceName>> {
        let span = span!("list_namespaces", ctx, tenant = tenant);
        self.serve(ctx, "list_namespaces", span, self.namespaces(&tenant, page))
            .await
    }

    async fn create_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        partitions: u32,
    ) -> ApiResult<()> {
        let span = span!("create_topic", ctx, topic = topic);
        self.serve(
            ctx,
            "create_topic",
            span,
            self.make_topic(&topic, partitions),
        )
        .await
    }

    async fn describe_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        create: bool,
    ) -> ApiResult<TopicDescription> {
        let span = span!("describe_topic", ctx, topic = topic);
        self.serve(ctx, "describe_topic", span, self.describe(topic, create))
            .await
    }

    async fn delete_topic(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        how: Deletion,
    ) -> ApiResult<()> {
        let span = span!("delete_topic", ctx, topic = topic);
        self.serve(ctx, "delete_topic", span, self.remove_topic(&topic, how))
            .await
    }

    async fn list_topics(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        page: PageRequest,
    ) -> ApiResult<Page<TopicDescription>> {
        let span = span!("list_topics", ctx, namespace = namespace);
        self.serve(ctx, "list_topics", span, self.topics_of(&namespace, page))
            .await
    }

    async fn topic_stats(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicStats> {
        let span = span!("topic_stats", ctx, topic = topic);
        self.serve(ctx, "topic_stats", span, self.stats_of(&topic))
            .await
    }

    async fn delete_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        force: bool,
    ) -> ApiResult<()> {
        let span = span!(
            "delete_subscription",
            ctx,
            topic = topic,
            subscription = subscription
        );
        let work = self.remove_subscription(&topic, &subscription, force);
        self.serve(ctx, "delete_subscription", span, work).await
    }

    async fn create_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
    ) -> ApiResult<Index> {
        let span = span!(
            "create_subscription",
            ctx,
            topic = topic,
            subscription = subscription
        );
        let work = self.new_subscription(&topic, &subscription, place);
        self.serve(ctx, "create_subscription", span, work).await
    }

    async fn seek_subscription(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        place: Place,
    ) -> ApiResult<Index> {
        let span = span!(
            "seek_subscription",
            ctx,
            topic = topic,
            subscription = subscription
        );
        let work = self.move_subscription(&topic, &subscription, place);
        self.serve(ctx, "seek_subscription", span, work).await
    }

    async fn skip_messages(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
        range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>> {
        let span = span!(
            "skip_messages",
            ctx,
            topic = topic,
            subscription = subscription
        );
        let work = self.give_up(&topic, &subscription, range);
        self.serve(ctx, "skip_messages", span, work).await
    }

    async fn reset_subscriptions(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>> {
        let span = span!("reset_subscriptions", ctx, topic = topic);
        let work = self.reset(&topic);
        self.serve(ctx, "reset_subscriptions", span, work).await
    }
    async fn list_brokers(&self, ctx: &RequestContext) -> ApiResult<Vec<BrokerInfo>> {
        let span = span!("list_brokers", ctx);
        let work = async { Ok(self.brokers()) };
        self.serve(ctx, "list_brokers", span, work).await
    }

    async fn list_bundles(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
    ) -> ApiResult<Vec<BundleInfo>> {
        let span = span!("list_bundles", ctx, namespace = namespace);
        self.serve(ctx, "list_bundles", span, self.bundles(&namespace))
            .await
    }

    async fn transfer_bundle(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        bundle: BundleRange,
        broker: Option<BrokerId>,
    ) -> ApiResult<BrokerInfo> {
        let span = span!(
            "transfer_bundle",
            ctx,
            namespace = namespace,
            bundle = bundle
        );
        let work = self.transfer(namespace, bundle, broker);
        self.serve(ctx, "transfer_bundle", span, work).await
    }

    async fn split_bundle(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        bundle: BundleRange,
        at: Option<u32>,
    ) -> ApiResult<[BundleRange; 2]> {
        let span = span!("split_bundle", ctx, namespace = namespace, bundle = bundle);
        let work = self.split(namespace, bundle, at);
        self.serve(ctx, "split_bundle", span, work).await
    }

    async fn load_report(&self, ctx: &RequestContext) -> ApiResult<LoadReport> {
        let span = span!("load_report", ctx);
        self.serve(ctx, "load_report", span, balance::report(&self.shared))
            .await
    }
}
