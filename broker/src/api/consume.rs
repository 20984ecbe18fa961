//! Opening of consumers and readers.

use aquifer_model::id::TopicIncarnation;
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::consumer::{ConsumerSession, Subscribe};
use aquifer_protocol_api::context::RequestContext;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::security::audit::cause::Create;
use crate::topic::event::Event;

impl Broker {
    pub(super) async fn subscribe_session(
        &self,
        ctx: &RequestContext,
        request: Subscribe,
    ) -> Result<ConsumerSession, BrokerError> {
        let topic = request.topic.clone();
        self.check_life(&topic, request.incarnation).await?;
        let create = match request.incarnation {
            None => self.created_by(ctx, "subscribe"),
            Some(_) => Create::Never,
        };
        self.topics
            .ask(&topic, &create, |reply| Event::Subscribe {
                request: Box::new(request.clone()),
                reply,
            })
            .await
    }

    /// A client that knew the topic before must not create it again by coming back: what it knows
    /// of sequence ids and positions would be wrong. The topic itself compares the lives.
    pub(super) async fn check_life(
        &self,
        topic: &TopicName,
        known: Option<TopicIncarnation>,
    ) -> Result<(), BrokerError> {
        if known.is_none() {
            return Ok(());
        }
        match self.topics.get(topic, &Create::Never).await {
            Ok(_) => Ok(()),
            Err(BrokerError::NotFound { .. }) => Err(BrokerError::Deleted(topic.to_string())),
            Err(error) => Err(error),
        }
    }
}
