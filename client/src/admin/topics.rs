//! The ends of topics, as an operator brings them about.

use aquifer_model::id::Index;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;

use crate::admin::{Admin, Client};
use crate::error::Result;

/// Where a topic ends that takes no more messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicEnd {
    /// The topic, or the partition.
    pub topic: String,
    /// Index of its last message; `None`: it never had any.
    pub last_index: Option<Index>,
}

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
        let ends = terminated.ends.into_iter().map(|end| TopicEnd {
            topic: end.topic,
            last_index: end.last_index.map(Index),
        });
        Ok(ends.collect())
    }
}
