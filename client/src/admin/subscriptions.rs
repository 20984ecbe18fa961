//! Subscriptions, as an operator changes them.

use std::sync::Arc;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_proto::v1;

use crate::admin::{Admin, Client};
use crate::error::{ClientError, ErrorKind, Result};
use crate::lookup::layout;
use crate::retry::Deadline;

/// From where a subscription goes on whose record was damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionReset {
    /// The subscription.
    pub name: String,
    /// The first message that is not acknowledged, as far as is known.
    pub mark_delete_index: Index,
    /// Messages that are delivered from there on; some of them may have been acknowledged.
    pub repeated_messages: u64,
    /// Nothing was known but its name: it goes on from the first message that is kept.
    pub name_only: bool,
}

impl Admin {
    /// Deletes a subscription, of every partition of a partitioned topic. Without `force` only when
    /// no consumer is connected to it. One that is left in some partitions is deleted by the next
    /// attempt.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when it is in use, `Invalid` for a name, and what every call may answer.
    pub async fn delete_subscription(
        &self,
        topic: &str,
        subscription: &str,
        force: bool,
    ) -> Result<()> {
        let topic = topic.parse::<TopicName>()?;
        let subscription = SubscriptionName::new(subscription)?;
        let all = self.parts_of(&topic).await?;
        let (count, mut unknown) = (all.len(), 0);
        for part in all {
            match self.delete_in(&part, &subscription, force).await {
                Err(error) if error.kind() == ErrorKind::NotFound && unknown + 1 < count => {
                    unknown += 1;
                }
                deleted => deleted?,
            }
        }
        Ok(())
    }

    async fn delete_in(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        force: bool,
    ) -> Result<()> {
        let request = v1::DeleteSubscriptionRequest {
            topic: topic.to_string(),
            subscription: subscription.to_string(),
            force,
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.delete_subscription(request).await }
        };
        let deleted = self.call("deleting the subscription", false, call).await;
        deleted.map(|_| ())
    }

    /// Creates a subscription that no consumer uses yet, so that it misses nothing, in every
    /// partition of a partitioned topic; what exists in part is completed. Creates the topic if the
    /// namespace allows that. The first consumer decides how it is shared. Answers where it begins,
    /// summed over the partitions that it was created in.
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid` for a name, a place that the topic does not have, and an index or
    /// position in a partitioned topic, and what every call may answer.
    pub async fn create_subscription(
        &self,
        topic: &str,
        subscription: &str,
        place: Place,
    ) -> Result<Index> {
        let topic = topic.parse::<TopicName>()?;
        let subscription = SubscriptionName::new(subscription)?;
        let deadline = Deadline::after(self.context.operation_timeout);
        let all = layout(&self.context, &topic, deadline).await?.parts();
        in_one_partition(&topic, all.len(), place)?;
        let (mut sum, mut existing) = (Index(0), 0);
        let count = all.len();
        for part in all {
            let request = v1::CreateSubscriptionRequest {
                topic: part.to_string(),
                subscription: subscription.to_string(),
                place: place.to_string(),
            };
            let call = move |mut client: Client| {
                let request = request.clone();
                async move { client.create_subscription(request).await }
            };
            match self.call("creating the subscription", false, call).await {
                Ok(created) => sum.0 = sum.0.saturating_add(created.index),
                Err(error) if error.kind() == ErrorKind::AlreadyExists && existing + 1 < count => {
                    existing += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(sum)
    }

    /// Moves a subscription; its consumers continue from there. Answers the new mark-delete index,
    /// summed over the partitions of a partitioned topic, whose subscriptions only move to
    /// `earliest`, `latest` or a time.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a name and for an index or position in a partitioned topic, and
    /// what every call may answer.
    pub async fn seek_subscription(
        &self,
        topic: &str,
        subscription: &str,
        place: Place,
    ) -> Result<Index> {
        let topic = topic.parse::<TopicName>()?;
        let subscription = SubscriptionName::new(subscription)?;
        let all = self.parts_of(&topic).await?;
        in_one_partition(&topic, all.len(), place)?;
        let mut sum = Index(0);
        for part in all {
            let request = v1::SeekSubscriptionRequest {
                topic: part.to_string(),
                subscription: subscription.to_string(),
                place: place.to_string(),
            };
            let call = move |mut client: Client| {
                let request = request.clone();
                async move { client.seek_subscription(request).await }
            };
            let moved = self.call("moving the subscription", true, call).await?;
            sum.0 += moved.index;
        }
        Ok(sum)
    }

    /// Gives up, in one topic or partition, messages that storage cannot give, so that a
    /// subscription does not wait for them: those of `range`, both ends included, or those that
    /// were found damaged when they were read last. Answers which.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a name or a range, and what every call may answer.
    pub async fn skip_messages(
        &self,
        topic: &str,
        subscription: &str,
        range: Option<(Index, Index)>,
    ) -> Result<Vec<(Index, Index)>> {
        let topic = topic.parse::<TopicName>()?;
        let request = v1::SkipMessagesRequest {
            topic: topic.to_string(),
            subscription: SubscriptionName::new(subscription)?.to_string(),
            first_index: range.map(|(first, _)| first.0),
            last_index: range.map(|(_, last)| last.0),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.skip_messages(request).await }
        };
        let answer = self.call("skipping messages", true, call).await?;
        let skipped = answer.skipped.into_iter();
        Ok(skipped
            .map(|range| (Index(range.first_index), Index(range.last_index)))
            .collect())
    }

    /// Lets the subscriptions of one topic or partition go on whose record is damaged, from what of
    /// it is whole. Nothing is answered when nothing is damaged.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a name, and what every call may answer.
    pub async fn reset_subscriptions(&self, topic: &str) -> Result<Vec<SubscriptionReset>> {
        let topic = topic.parse::<TopicName>()?.to_string();
        let call = move |mut client: Client| {
            let request = v1::ResetSubscriptionsRequest {
                topic: topic.clone(),
            };
            async move { client.reset_subscriptions(request).await }
        };
        let answer = self.call("resetting subscriptions", false, call).await?;
        let reset = answer.subscriptions.into_iter();
        Ok(reset
            .map(|reset| SubscriptionReset {
                name: reset.subscription,
                mark_delete_index: Index(reset.mark_delete_index),
                repeated_messages: reset.repeated_messages,
                name_only: reset.name_only,
            })
            .collect())
    }

    /// The topics that hold the messages of a topic: its partitions, or itself.
    ///
    /// # Errors
    /// `NotFound`, and what every call may answer.
    pub async fn parts_of(&self, topic: &TopicName) -> Result<Vec<TopicName>> {
        if topic.partition().is_some() {
            return Ok(vec![topic.clone()]);
        }
        let parts = self.layout(topic).await?.parts().into_iter();
        Ok(parts.map(Arc::unwrap_or_clone).collect())
    }
}

/// An index or position means nothing in several partitions.
fn in_one_partition(topic: &TopicName, partitions: usize, place: Place) -> Result<()> {
    if partitions > 1 && matches!(place, Place::Index(_) | Place::Position(_)) {
        return Err(ClientError::Invalid(format!(
            "{place} is a place in one partition: name {}, or give a time, earliest or latest",
            topic.partition_name(0)
        )));
    }
    Ok(())
}
