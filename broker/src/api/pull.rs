//! Requests that stand alone.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::format::{describe, head_bytes};
use aquifer_model::id::{Index, TopicIncarnation};
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use aquifer_protocol_api::pull::{
    Append, Appended, Commit, Locate, Located, Read, ReadBatches, ReadLimits, TopicBounds,
};
use tokio::sync::oneshot;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::quota::Cost;
use crate::quota::producers::Publisher;
use crate::quota::publish_limits::PublishLimits;
use crate::quota::rates::Flow;
use crate::security::audit::cause::Create;
use crate::topic::pull::{AloneAppend, Door, NamedBy, Pull};

/// What an append takes besides its body while it waits for storage, as a frame of a session does.
const APPEND_BYTES: usize = 512;
/// Times that an append follows a topic that goes away under it.
const ATTEMPTS_MAX: u32 = 5;
/// Most that one read answers: what fits into a message of any protocol.
const READ_BYTES_MAX: usize = 4 << 20;
const READ_BATCHES_MAX: usize = 4096;
/// Longest that a read waits.
const READ_WAIT_MAX: Duration = Duration::from_secs(60);

impl Broker {
    pub(super) async fn append_alone(
        &self,
        ctx: &RequestContext,
        request: Append,
    ) -> Result<Appended, BrokerError> {
        let create = match request.incarnation {
            None => self.created_by(ctx, "append"),
            Some(_) => Create::Never,
        };
        self.append_or_create(ctx, request, &create).await
    }

    pub(super) async fn append_or_create(
        &self,
        ctx: &RequestContext,
        mut request: Append,
        create: &Create,
    ) -> Result<Appended, BrokerError> {
        self.check_life(&request.topic, request.incarnation).await?;
        let received = self.shared.clock.monotonic();
        for _ in 0..ATTEMPTS_MAX {
            let door = self
                .door(&request.topic, request.incarnation, create)
                .await?;
            let held = request.body.len() + head_bytes(request.format, &request.body);
            let bytes = tokio::select! {
                bytes = door.publish.acquire(held + APPEND_BYTES) => bytes,
                // It is looked for again.
                () = door.mailbox.closed() => continue,
            };
            // From here on the broker's budget counts it.
            drop(request.held.take());
            let said = describe(request.format, &request.body)?;
            let producer = NamedBy::of(&said)?;
            let publisher = match &producer {
                Some(named) => Publisher::Named(named.name.clone()),
                None => Publisher::Caller(ctx.principal.name().to_owned()),
            };
            let cost = Cost {
                messages: said.message_count.into(),
                bytes: request.body.len() as u64,
            };
            self.pass(&door, publisher, said.message_bytes_max, cost)
                .await?;
            let append = AloneAppend {
                incarnation: request.incarnation,
                format: request.format,
                body: request.body.clone(),
                producer,
                said,
                bytes,
                received,
            };
            let (reply, answer) = oneshot::channel();
            let event = Pull::Append(Box::new(append), reply).event();
            if door.mailbox.send(event).await.is_err() {
                continue;
            }
            return match answer.await {
                Ok(answer) => answer,
                Err(_) => Err(unknown_outcome().into()),
            };
        }
        Err(BrokerError::Unloading(
            "the topic is being unloaded again and again".to_owned(),
        ))
    }

    /// Waits until the limits of a topic let a body pass that belongs to no session.
    async fn pass(
        &self,
        door: &Door,
        publisher: Publisher,
        message_bytes_max: u32,
        cost: Cost,
    ) -> Result<(), BrokerError> {
        door.rates.check_size(message_bytes_max.into())?;
        if !door.rates.is_limited(Flow::Publish) {
            return Ok(());
        }
        let mut limits = PublishLimits::new(Arc::clone(&door.rates), publisher);
        match limits.try_pass(&self.shared, cost)? {
            true => Ok(()),
            false => limits.pass(&self.shared, cost).await,
        }
    }

    pub(super) async fn read_batches(
        &self,
        ctx: &RequestContext,
        request: Read,
    ) -> Result<ReadBatches, BrokerError> {
        let create = Create::if_partition(&request.topic);
        let door = self
            .door(&request.topic, request.incarnation, &create)
            .await?;
        let limits = ReadLimits {
            bytes_max: request.limits.bytes_max.min(READ_BYTES_MAX),
            batches_max: request.limits.batches_max.clamp(1, READ_BATCHES_MAX),
            // More than may be answered is never found.
            bytes_min: request.limits.bytes_min.min(request.limits.bytes_max),
        };
        let until = self.shared.clock.monotonic() + self.read_wait(ctx, request.wait);
        door.read(request.from, limits, until).await
    }

    /// How long a read waits that would wait so long: the answer needs some of the time that the
    /// caller has.
    pub(super) fn read_wait(&self, ctx: &RequestContext, wait: Duration) -> Duration {
        let now = self.shared.clock.monotonic();
        let left = ctx.deadline.map(|at| at.saturating_sub(now) / 8 * 7);
        let wait = wait.min(READ_WAIT_MAX);
        left.map_or(wait, |left| wait.min(left))
    }

    pub(super) async fn locate_place(&self, request: Locate) -> Result<Located, BrokerError> {
        let create = Create::if_partition(&request.topic);
        let door = self
            .door(&request.topic, request.incarnation, &create)
            .await?;
        door.locate(request.place).await
    }

    pub(super) async fn bounds_of(&self, topic: &TopicName) -> Result<TopicBounds, BrokerError> {
        let create = Create::if_partition(topic);
        Ok(self.door(topic, None, &create).await?.bounds())
    }

    pub(super) async fn commit_index(
        &self,
        ctx: &RequestContext,
        request: Commit,
    ) -> Result<Index, BrokerError> {
        self.check_life(&request.topic, request.incarnation).await?;
        let create = match request.create && request.incarnation.is_none() {
            true => self.created_by(ctx, "commit"),
            false => Create::Never,
        };
        let topic = request.topic.clone();
        self.topics
            .ask(&topic, &create, |reply| {
                Pull::Commit(request.clone(), reply).event()
            })
            .await
    }

    pub(super) async fn committed_index(
        &self,
        topic: &TopicName,
        subscription: SubscriptionName,
    ) -> Result<Option<Index>, BrokerError> {
        let create = Create::if_partition(topic);
        self.topics
            .ask(topic, &create, |reply| {
                Pull::Committed(subscription.clone(), reply).event()
            })
            .await
    }

    /// The way to what a topic has stored. One that does not exist is created if that is allowed; a
    /// partition is there when its topic has it, whether it was used or not.
    async fn door(
        &self,
        topic: &TopicName,
        known: Option<TopicIncarnation>,
        create: &Create,
    ) -> Result<Door, BrokerError> {
        self.topics
            .ask(topic, create, |reply| Pull::Door(known, reply).event())
            .await
    }
}

/// The topic has ended with the append in flight.
fn unknown_outcome() -> ApiError {
    let text = "the topic was unloaded before the outcome was known";
    ApiError::new(ErrorKind::Unavailable, text)
        .advise("look whether it is stored, then try again; batches that name a producer are stored once")
        .outcome(Outcome::Unknown)
}
