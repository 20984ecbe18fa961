//! The way to the other brokers of a cluster. No wire protocol is spoken here: it is given.

use aquifer_model::id::Index;
use aquifer_model::listener::Listeners;
use aquifer_model::load::LoadReport;
use aquifer_model::place::Place;
use aquifer_model::stats::{OffloadProgress, TopicEnd, TopicStats};
use aquifer_model::subscription::Properties;
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::admin::{Clear, Deletion, Peeked, Reimport, SubscriptionReset};
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::security::{AuditPage, ReadAudit};
use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;

/// Where this broker reaches another one: brokers talk to each other through their default
/// listeners, which all of them have.
pub(crate) fn peer_url(at: &Listeners) -> &str {
    at.default_url().unwrap_or_default()
}

/// Asks the broker at a URL, which is that of its default listener, as a client would.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Its load.
    ///
    /// # Errors
    /// When it does not answer, or not in a way that is understood.
    async fn report(&self, url: &str) -> Result<LoadReport, NoReport>;

    /// Creates a topic of a bundle that it owns; `partitions` 0 makes one that is not partitioned.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn create_topic(&self, url: &str, topic: &TopicName, partitions: u32) -> ApiResult<()>;

    /// Statistics of a topic or partition that it serves.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn topic_stats(&self, url: &str, topic: &TopicName) -> ApiResult<TopicStats>;

    /// Deletes a topic or partition that it serves.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn delete_topic(&self, url: &str, topic: &TopicName, how: Deletion) -> ApiResult<()>;

    /// Closes a topic or partition that it serves. Answers whether it was loaded, 1 or 0.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn unload_topic(&self, url: &str, topic: &TopicName) -> ApiResult<u32>;

    /// Lets a topic or partition that it serves take no more messages. Answers where it ends.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn terminate_topic(&self, url: &str, topic: &TopicName) -> ApiResult<Vec<TopicEnd>>;

    /// Has ledgers of a topic or partition offloaded that it serves. Answers what is left to do.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn offload_topic(
        &self,
        url: &str,
        topic: &TopicName,
        before: Place,
    ) -> ApiResult<OffloadProgress>;

    /// Has ledgers of a topic or partition brought back to bookies that it serves, or ends that.
    /// Answers what is left to do.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn reimport_topic(
        &self,
        url: &str,
        topic: &TopicName,
        what: Reimport,
    ) -> ApiResult<OffloadProgress>;

    /// Lets subscriptions of a topic or partition that it serves go on whose record is damaged.
    /// Answers from where each goes on.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn reset_subscriptions(
        &self,
        url: &str,
        topic: &TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>>;

    /// Creates a subscription of a topic or partition that it serves.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn create_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        place: Place,
        properties: &Properties,
    ) -> ApiResult<Index>;

    /// Deletes a subscription of a topic or partition that it serves.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn delete_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        force: bool,
    ) -> ApiResult<()>;

    /// Moves a subscription of a topic or partition that it serves.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn seek_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        place: Place,
    ) -> ApiResult<Index>;

    /// Gives up what a subscription of a topic or partition that it serves has not acknowledged.
    /// Answers how many messages that are.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn clear_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        clear: Clear,
    ) -> ApiResult<u64>;

    /// Gives up messages of a subscription of a topic or partition that it serves. Answers which.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn skip_messages(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>>;

    /// Shows the next messages of a subscription of a topic or partition that it serves.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn peek_messages(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        limit: usize,
    ) -> ApiResult<Peeked>;

    /// Appends lines to the topic of the audit log, which it serves.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn append(&self, url: &str, topic: &TopicName, lines: &Lines) -> ApiResult<()>;

    /// Reads lines of the audit log, whose topic it serves.
    ///
    /// # Errors
    /// What it answers; `Unavailable` when it does not.
    async fn read_audit(&self, url: &str, read: ReadAudit) -> ApiResult<AuditPage>;
}

/// Lines of the audit log, for one batch of its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines {
    /// Under which name they are stored once.
    pub producer: String,
    /// Sequence id of the first line; those of the others follow.
    pub sequence_id: u64,
    /// At least one.
    pub lines: Vec<Bytes>,
}

/// Why there is no report of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no load report: {0}")]
pub struct NoReport(pub String);
