//! Subscriptions, as an operator changes them.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::subscription::Properties;
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_proto::convert::subscription::wire_properties;
use aquifer_proto::v1;
use aquifer_runtime::clock;

use crate::admin::{Admin, Client};
use crate::error::{ErrorKind, Result};
use crate::message::ReceivedMessage;
use crate::topic::peeked;

/// From where a subscription goes on whose record was damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionReset {
    /// The topic, or the partition.
    pub topic: String,
    /// The subscription.
    pub name: String,
    /// The first message that is not acknowledged, as far as is known.
    pub mark_delete_index: Index,
    /// Messages that are delivered from there on; some of them may have been acknowledged.
    pub repeated_messages: u64,
    /// Nothing was known but its name: it goes on from the first message that is kept.
    pub name_only: bool,
}

/// What of a subscription is given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClearOptions {
    /// Only messages that the broker took longer ago than this; `None`: all.
    pub older_than: Option<Duration>,
    /// Nothing is given up: it is only asked how many messages that would be.
    pub dry_run: bool,
}

impl Admin {
    /// Deletes a subscription, of every partition of a partitioned topic. Without `force` only when
    /// no consumer is connected to it in any. A failure says in which partitions it is deleted; the
    /// next attempt deletes it in the others.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when it is in use, `Invalid` for a name, and what every call may answer.
    pub async fn delete_subscription(
        &self,
        topic: &str,
        subscription: &str,
        force: bool,
    ) -> Result<()> {
        let request = v1::DeleteSubscriptionRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            subscription: SubscriptionName::new(subscription)?.to_string(),
            force,
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.delete_subscription(request).await }
        };
        let deleted = self.call("deleting the subscription", false, call).await;
        deleted.map(|_| ())
    }

    /// Creates a subscription before its first consumer, so that it misses nothing, in every
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
        self.create_subscription_with(topic, subscription, place, &Properties::new())
            .await
    }

    /// The same with properties: what the creator wants to have recorded of the subscription, for
    /// those that use it.
    ///
    /// # Errors
    /// As [`Admin::create_subscription`]; `Invalid` for properties that are too large or have no
    /// name.
    pub async fn create_subscription_with(
        &self,
        topic: &str,
        subscription: &str,
        place: Place,
        properties: &Properties,
    ) -> Result<Index> {
        let request = v1::CreateSubscriptionRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            subscription: SubscriptionName::new(subscription)?.to_string(),
            place: place.to_string(),
            properties: wire_properties(properties),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.create_subscription(request).await }
        };
        let created = self.call("creating the subscription", false, call).await?;
        Ok(Index(created.index))
    }

    /// Moves a subscription; its consumers continue from there. Answers the new mark-delete index,
    /// summed over the partitions of a partitioned topic, whose subscriptions only move to
    /// `earliest`,
    /// `latest` or a time.
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
        let request = v1::SeekSubscriptionRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            subscription: SubscriptionName::new(subscription)?.to_string(),
            place: place.to_string(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.seek_subscription(request).await }
        };
        let idempotent = is_fixed(place, self.context.clock.wall_ms());
        let moved = self
            .call("moving the subscription", idempotent, call)
            .await?;
        Ok(Index(moved.index))
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

    /// Gives up what a subscription has not acknowledged, as if it had been acknowledged, in every
    /// partition of a partitioned topic: all of it, or what is old. Answers how many messages that
    /// are.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a name, and what every call may answer.
    pub async fn clear_subscription(
        &self,
        topic: &str,
        subscription: &str,
        options: ClearOptions,
    ) -> Result<u64> {
        let request = v1::ClearSubscriptionRequest {
            topic: topic.parse::<TopicName>()?.to_string(),
            subscription: SubscriptionName::new(subscription)?.to_string(),
            older_than_ms: options.older_than.map(clock::millis),
            dry_run: options.dry_run,
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.clear_subscription(request).await }
        };
        let what = "clearing the subscription";
        let cleared = self.call(what, options.dry_run, call).await?;
        Ok(cleared.messages)
    }

    /// The next messages that a subscription has not acknowledged, whether a consumer has them or
    /// not, `limit` at most and fewer where they are large; partition after partition of a
    /// partitioned topic. Changes nothing. What cannot be read is an error among them.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a name, and what every call may answer.
    pub async fn peek_messages(
        &self,
        topic: &str,
        subscription: &str,
        limit: usize,
    ) -> Result<Vec<Result<ReceivedMessage>>> {
        let topic = topic.parse::<TopicName>()?;
        let subscription = SubscriptionName::new(subscription)?;
        let parts = match topic.partition() {
            Some(_) => vec![Arc::new(topic)],
            None => self.layout(&topic).await?.parts(),
        };
        let mut all = Vec::new();
        let (mut found, mut absent) = (false, None);
        for part in parts {
            let left = limit.saturating_sub(all.len());
            if left == 0 {
                break;
            }
            match self.peek_entries(&part, &subscription, left).await {
                Ok(answer) => {
                    found = true;
                    all.extend(peeked(&part, answer));
                    all.truncate(limit);
                }
                // A partition that was not used yet has nothing.
                Err(error) if error.kind() == ErrorKind::NotFound => absent = Some(error),
                Err(error) => return Err(error),
            }
        }
        match absent {
            Some(error) if !found => Err(error),
            _ => Ok(all),
        }
    }

    /// The same of one topic or partition as its broker answers it, whole entries and not messages:
    /// for a broker that asks for a client of its own.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a partitioned topic, and what every call may answer.
    pub async fn peek_entries(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        limit: usize,
    ) -> Result<v1::PeekMessagesResponse> {
        let request = v1::PeekMessagesRequest {
            topic: topic.to_string(),
            subscription: subscription.to_string(),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.peek_messages(request).await }
        };
        self.call("peeking", true, call).await
    }

    /// Lets the subscriptions of a topic, or of all its partitions, go on whose record is damaged,
    /// from what of it is whole. Nothing is answered when nothing is damaged.
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
                topic: reset.topic,
                name: reset.subscription,
                mark_delete_index: Index(reset.mark_delete_index),
                repeated_messages: reset.repeated_messages,
                name_only: reset.name_only,
            })
            .collect())
    }
}

/// Whether a place is the same when it is looked up again: a second move to the end, or to a time
/// that has not come yet, would pass over what was published in between.
fn is_fixed(place: Place, now_ms: u64) -> bool {
    match place {
        Place::Latest => false,
        Place::TimeMs(ms) => ms <= now_ms,
        Place::Earliest | Place::Index(_) | Place::Position(_) => true,
    }
}

#[test]
fn a_move_to_what_still_moves_is_not_repeated() {
    for (place, fixed) in [
        ("earliest", true),
        ("42", true),
        ("7:3:0", true),
        ("@1000", true),
        ("@1001", false),
        ("latest", false),
    ] {
        assert_eq!(is_fixed(place.parse().unwrap(), 1_000), fixed, "{place}");
    }
}
