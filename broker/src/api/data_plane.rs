//! The port of messages, as the broker serves it.

use aquifer_model::id::Index;
use aquifer_model::limits::{BATCH_BYTES_MAX, MESSAGE_BYTES_MAX};
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::consumer::{ConsumerSession, Subscribe};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::data_plane::{BrokerIdentity, DataPlane};
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::producer::{OpenProducer, ProducerSession};
use aquifer_protocol_api::pull::{
    Append, Appended, Commit, Locate, Located, Read, ReadBatches, TopicBounds,
};
use async_trait::async_trait;
use tracing::info_span;

use crate::api::seeks::RecordedSeeks;
use crate::api::serve;
use crate::broker::Broker;
use crate::security::audit::cause::Cause;

#[async_trait]
impl DataPlane for Broker {
    fn identity(&self) -> BrokerIdentity {
        BrokerIdentity {
            broker: self.shared.id,
            cluster: self.shared.config.cluster.clone(),
            message_bytes_max: MESSAGE_BYTES_MAX as u64,
            batch_bytes_max: BATCH_BYTES_MAX as u64,
        }
    }

    async fn open_producer(
        &self,
        ctx: &RequestContext,
        request: OpenProducer,
    ) -> ApiResult<ProducerSession> {
        let need = |action| Access {
            request: "open_producer",
            action,
            resource: Resource::Topic(request.topic.clone()),
            about: None,
        };
        let needs = vec![need(Action::Produce)];
        let topic = Resource::Topic(request.topic.clone());
        let take_over = request.take_over;
        let opening = self.open_producer_session(ctx, request);
        let session = match take_over {
            // It ends the session of another producer, which is a change.
            true => {
                self.require(ctx, &needs[0])?;
                let manage = Action::Manage;
                serve!(self, ctx, "take_over_producer", manage, topic, opening)?
            }
            false => {
                let produce = Action::Produce;
                serve!(self, ctx, "open_producer", produce, topic, opening)?
            }
        };
        Ok(ProducerSession {
            end: self.session_end(ctx, needs)?,
            ..session
        })
    }

    async fn subscribe(
        &self,
        ctx: &RequestContext,
        request: Subscribe,
    ) -> ApiResult<ConsumerSession> {
        let needs = vec![Access {
            request: "subscribe",
            action: Action::Consume,
            resource: consumed(&request),
            about: None,
        }];
        let session = serve!(
            self,
            ctx,
            "subscribe",
            Action::Consume,
            consumed(&request),
            self.subscribe_session(ctx, request.clone())
        )?;
        let session = ConsumerSession {
            end: self.session_end(ctx, needs)?,
            ..session
        };
        Ok(self.recorded(ctx, &request, session))
    }

    async fn append(&self, ctx: &RequestContext, request: Append) -> ApiResult<Appended> {
        serve!(
            self,
            ctx,
            "append",
            Action::Produce,
            Resource::Topic(request.topic.clone()),
            self.append_alone(ctx, request)
        )
    }

    async fn read(&self, ctx: &RequestContext, request: Read) -> ApiResult<ReadBatches> {
        let need = Access {
            request: "read",
            action: Action::Consume,
            resource: Resource::Topic(request.topic.clone()),
            about: None,
        };
        let found = serve!(
            self,
            ctx,
            "read",
            Action::Consume,
            Resource::Topic(request.topic.clone()),
            self.read_batches(ctx, request)
        )?;
        // It may have waited for long.
        self.require(ctx, &need)?;
        Ok(found)
    }

    async fn locate(&self, ctx: &RequestContext, request: Locate) -> ApiResult<Located> {
        serve!(
            self,
            ctx,
            "locate",
            Action::Describe,
            Resource::Topic(request.topic.clone()),
            self.locate_place(request)
        )
    }

    async fn bounds(&self, ctx: &RequestContext, topic: TopicName) -> ApiResult<TopicBounds> {
        serve!(
            self,
            ctx,
            "bounds",
            Action::Describe,
            Resource::Topic(topic.clone()),
            self.bounds_of(&topic)
        )
    }

    async fn commit(&self, ctx: &RequestContext, request: Commit) -> ApiResult<Index> {
        serve!(
            self,
            ctx,
            "commit",
            Action::Consume,
            Resource::Subscription(request.topic.clone(), request.subscription.clone()),
            self.commit_index(ctx, request)
        )
    }

    async fn committed(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        subscription: SubscriptionName,
    ) -> ApiResult<Option<Index>> {
        serve!(
            self,
            ctx,
            "committed",
            Action::Describe,
            Resource::Subscription(topic.clone(), subscription.clone()),
            self.committed_index(&topic, subscription)
        )
    }
}

impl Broker {
    /// The session with a record of its seeks, where callers are recorded and there is something
    /// durable to move.
    fn recorded(
        &self,
        ctx: &RequestContext,
        request: &Subscribe,
        session: ConsumerSession,
    ) -> ConsumerSession {
        let (Some(guard), Some(_)) = (&self.shared.guard, &request.subscription) else {
            return session;
        };
        let port = RecordedSeeks {
            inner: session.port,
            cause: Cause::new(guard, ctx, "subscribe", self.request_id(ctx)),
            access: Access {
                request: "seek",
                action: Action::Consume,
                resource: consumed(request),
                about: None,
            },
        };
        ConsumerSession {
            port: Box::new(port),
            ..session
        }
    }
}

/// A reader needs no more than its topic.
fn consumed(request: &Subscribe) -> Resource {
    let topic = request.topic.clone();
    match &request.subscription {
        Some(name) => Resource::Subscription(topic, name.clone()),
        None => Resource::Topic(topic),
    }
}
