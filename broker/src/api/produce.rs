//! Opening of producers.

use aquifer_protocol_api::producer::{OpenProducer, ProducerSession};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::topic::event::Event;

impl Broker {
    pub(super) async fn produce(
        &self,
        request: OpenProducer,
    ) -> Result<ProducerSession, BrokerError> {
        let topic = request.topic.clone();
        self.check_life(&topic, request.incarnation).await?;
        self.topics
            .ask(&topic, request.incarnation.is_none(), |reply| {
                Event::OpenProducer {
                    request: Box::new(request.clone()),
                    reply,
                }
            })
            .await
    }
}
