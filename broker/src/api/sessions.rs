//! Opening of producers, and of consumers and readers.

use aquifer_model::id::TopicIncarnation;
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::consumer::{ConsumerSession, Subscribe};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::producer::{OpenProducer, ProducerSession};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::security::audit::cause::Create;
use crate::topic::event::{Event, Reply};

impl Broker {
    pub(super) async fn open_producer_session(
        &self,
        ctx: &RequestContext,
        request: OpenProducer,
    ) -> Result<ProducerSession, BrokerError> {
        let of = (&request.topic, request.incarnation);
        let event = |reply| Event::OpenProducer {
            request: Box::new(request.clone()),
            reply,
        };
        self.open_session(ctx, "open_producer", of, event).await
    }

    pub(super) async fn subscribe_session(
        &self,
        ctx: &RequestContext,
        request: Subscribe,
    ) -> Result<ConsumerSession, BrokerError> {
        let of = (&request.topic, request.incarnation);
        let event = |reply| Event::Subscribe {
            request: Box::new(request.clone()),
            reply,
        };
        self.open_session(ctx, "subscribe", of, event).await
    }

    /// Asks a topic for a session, and creates the topic if the client did not know it before.
    async fn open_session<T>(
        &self,
        ctx: &RequestContext,
        request: &'static str,
        (topic, known): (&TopicName, Option<TopicIncarnation>),
        event: impl Fn(Reply<T>) -> Event,
    ) -> Result<T, BrokerError> {
        self.check_life(topic, known).await?;
        let create = match known {
            None => self.created_by(ctx, request),
            Some(_) => Create::Never,
        };
        self.topics.ask(topic, &create, event).await
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
