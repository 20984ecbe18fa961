//! The broker as wire protocols see it: every request gets its span here, then goes to the file of
//! its kind.

use aquifer_model::id::Index;
use aquifer_model::limits::{BATCH_BYTES_MAX, MESSAGE_BYTES_MAX};
use aquifer_model::place::Place;
use aquifer_model::policy::NamespacePolicies;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use aquifer_protocol_api::broker::{
    ApiResult, BrokerApi, BrokerIdentity, ConsumerSession, OpenProducer, Page, PageRequest,
    ProducerSession, Subscribe, TopicDescription, TopicStats,
};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use async_trait::async_trait;

use crate::broker::Broker;

fn unbuilt<T>() -> ApiResult<T> {
    Err(ApiError::new(ErrorKind::Unimplemented, "not built yet"))
}

#[async_trait]
impl BrokerApi for Broker {
    fn identity(&self) -> BrokerIdentity {
        BrokerIdentity {
            broker: self.id,
            cluster: self.config.cluster.clone(),
            message_bytes_max: MESSAGE_BYTES_MAX as u64,
            batch_bytes_max: BATCH_BYTES_MAX as u64,
        }
    }

    async fn open_producer(
        &self,
        _: &RequestContext,
        _: OpenProducer,
    ) -> ApiResult<ProducerSession> {
        unbuilt()
    }

    async fn subscribe(&self, _: &RequestContext, _: Subscribe) -> ApiResult<ConsumerSession> {
        unbuilt()
    }

    async fn create_tenant(&self, _: &RequestContext, _: String) -> ApiResult<()> {
        unbuilt()
    }

    async fn list_tenants(&self, _: &RequestContext, _: PageRequest) -> ApiResult<Page<String>> {
        unbuilt()
    }

    async fn create_namespace(
        &self,
        _: &RequestContext,
        _: NamespaceName,
        _: NamespacePolicies,
    ) -> ApiResult<()> {
        unbuilt()
    }

    async fn get_namespace(
        &self,
        _: &RequestContext,
        _: NamespaceName,
    ) -> ApiResult<NamespacePolicies> {
        unbuilt()
    }

    async fn update_namespace(
        &self,
        _: &RequestContext,
        _: NamespaceName,
        _: NamespacePolicies,
    ) -> ApiResult<()> {
        unbuilt()
    }

    async fn list_namespaces(
        &self,
        _: &RequestContext,
        _: String,
        _: PageRequest,
    ) -> ApiResult<Page<NamespaceName>> {
        unbuilt()
    }

    async fn create_topic(&self, _: &RequestContext, _: TopicName, _: u32) -> ApiResult<()> {
        unbuilt()
    }

    async fn describe_topic(
        &self,
        _: &RequestContext,
        _: TopicName,
        _: bool,
    ) -> ApiResult<TopicDescription> {
        unbuilt()
    }

    async fn delete_topic(&self, _: &RequestContext, _: TopicName, _: bool) -> ApiResult<()> {
        unbuilt()
    }

    async fn list_topics(
        &self,
        _: &RequestContext,
        _: NamespaceName,
        _: PageRequest,
    ) -> ApiResult<Page<TopicDescription>> {
        unbuilt()
    }

    async fn topic_stats(&self, _: &RequestContext, _: TopicName) -> ApiResult<TopicStats> {
        unbuilt()
    }

    async fn delete_subscription(
        &self,
        _: &RequestContext,
        _: TopicName,
        _: SubscriptionName,
        _: bool,
    ) -> ApiResult<()> {
        unbuilt()
    }

    async fn seek_subscription(
        &self,
        _: &RequestContext,
        _: TopicName,
        _: SubscriptionName,
        _: Place,
    ) -> ApiResult<Index> {
        unbuilt()
    }
}
