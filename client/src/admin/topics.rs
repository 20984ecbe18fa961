//! The ends of topics: their deletion, and that they take no more messages.

use aquifer_model::content::TopicContent;
use aquifer_model::stats::TopicEnd;
use aquifer_model::topic::TopicName;
use aquifer_proto::convert::stats::end;
use aquifer_proto::v1;

use crate::admin::{Admin, Client};
use crate::error::{ClientError, Result};

impl Admin {
    /// Gives a partitioned topic more partitions. Brokers do not do that yet.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for its name and for a number that is not higher, `Internal` with the
    /// code `UNIMPLEMENTED`, and what every call may answer.
    pub async fn grow_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        let request = v1::GrowTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            partitions,
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.grow_topic(request).await }
        };
        let grown = self.call("growing the topic", false, call).await;
        grown.map(|_| ())
    }

    /// Closes a topic, or each of its partitions, where it is served. What is in flight is
    /// finished; clients come back by themselves and have it loaded again. Answers how many were
    /// loaded.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for its name, and what every call may answer.
    pub async fn unload_topic(&self, topic: &str) -> Result<u32> {
        let request = v1::UnloadTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.unload_topic(request).await }
        };
        let unloaded = self.call("unloading the topic", true, call).await?;
        Ok(unloaded.unloaded)
    }

    /// Lets a topic, or each of its partitions, take no more messages, for good. What it has can be
    /// read; consumers and readers are told the end. Answers where each ends, also when it was
    /// terminated before.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for its name, and what every call may answer.
    pub async fn terminate_topic(&self, topic: &str) -> Result<Vec<TopicEnd>> {
        let request = v1::TerminateTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.terminate_topic(request).await }
        };
        let terminated = self.call("terminating the topic", true, call).await?;
        let ends = terminated.ends.into_iter().map(end);
        let ends: std::result::Result<Vec<TopicEnd>, _> = ends.collect();
        ends.map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// Deletes a topic, all its partitions, subscriptions and messages. Without `force` only when
    /// no producer or consumer is connected. What a failure leaves of it is gone for users, and is
    /// deleted by the next attempt. A partition is not deleted alone.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when it is in use, `Invalid` for its name, and what every call may
    /// answer.
    pub async fn delete_topic(&self, topic: &str, force: bool) -> Result<()> {
        let request = v1::DeleteTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            force,
            ..v1::DeleteTopicRequest::default()
        };
        self.delete(request, false).await.map(|_| ())
    }

    /// Whether no producer or consumer of a topic is connected.
    ///
    /// # Errors
    /// `Busy` when one is, and what [`delete_topic`](Self::delete_topic) may answer.
    pub async fn check_unused(&self, topic: &str) -> Result<()> {
        let request = v1::DeleteTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            check: true,
            ..v1::DeleteTopicRequest::default()
        };
        self.delete(request, true).await.map(|_| ())
    }

    /// What the deletion of a topic would delete, and whether it would need force. Deletes nothing.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for its name, and what every call may answer.
    pub async fn delete_topic_dry_run(&self, topic: &str) -> Result<TopicContent> {
        let request = v1::DeleteTopicRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            dry_run: true,
            ..v1::DeleteTopicRequest::default()
        };
        let answer = self.delete(request, true).await?;
        let content = answer.content;
        let content =
            content.ok_or_else(|| ClientError::Protocol("an answer without content".to_owned()))?;
        Ok(TopicContent {
            partitions: content.partitions,
            messages: content.messages,
            stored_bytes: content.stored_bytes,
            subscriptions: content.subscriptions,
            in_use: content.in_use,
        })
    }

    async fn delete(
        &self,
        request: v1::DeleteTopicRequest,
        idempotent: bool,
    ) -> Result<v1::DeleteTopicResponse> {
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.delete_topic(request).await }
        };
        self.call("deleting the topic", idempotent, call).await
    }
}
