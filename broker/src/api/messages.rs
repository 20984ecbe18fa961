//! Messages of a subscription in one topic or partition: skipped, or peeked at. Indexes mean
//! nothing in several partitions, so a partitioned topic is refused with the names of its
//! partitions.

use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::admin::{PEEK_MESSAGES_MAX, Peeked};
use aquifer_protocol_api::consumer::IndexRange;

use crate::api::reach::Reach;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::security::audit::cause::Create;
use crate::topic::event::Event;
use crate::topic::pull::Pull;

impl Broker {
    /// Skips messages for a subscription. Answers which.
    pub(super) async fn skip(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        range: Option<IndexRange>,
        reach: Reach,
    ) -> Result<Vec<IndexRange>, BrokerError> {
        let here = self.topics.ask(topic, &Create::Never, |reply| Event::Skip {
            name: subscription.clone(),
            range,
            reply,
        });
        self.at_owner(reach, here, |peers, url| async move {
            peers.skip_messages(&url, topic, subscription, range).await
        })
        .await
    }

    /// The next messages that are not acknowledged.
    pub(super) async fn peek(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        limit: usize,
        reach: Reach,
    ) -> Result<Peeked, BrokerError> {
        let limit = limit.min(PEEK_MESSAGES_MAX);
        let here = async {
            let asked = self.topics.ask(topic, &Create::Never, |reply| {
                Pull::Peek(subscription.clone(), limit, reply).event()
            });
            let (door, unacknowledged) = asked.await?;
            door.peek(unacknowledged).await
        };
        self.at_owner(reach, here, |peers, url| async move {
            peers.peek_messages(&url, topic, subscription, limit).await
        })
        .await
    }
}
