//! Opening of producers.

use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::producer::{OpenProducer, ProducerSession};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::security::audit::cause::Create;
use crate::topic::event::Event;

impl Broker {
    pub(super) async fn open_producer_session(
        &self,
        ctx: &RequestContext,
        request: OpenProducer,
    ) -> Result<ProducerSession, BrokerError> {
        let topic = request.topic.clone();
        self.check_life(&topic, request.incarnation).await?;
        let create = match request.incarnation {
            None => self.created_by(ctx, "open_producer"),
            Some(_) => Create::Never,
        };
        self.topics
            .ask(&topic, &create, |reply| Event::OpenProducer {
                request: Box::new(request.clone()),
                reply,
            })
            .await
    }
}
