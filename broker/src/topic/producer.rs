//! The client's end of a producer session: checks frames in the client's own task, waits for room,
//! hands over.
//!
//! A frame holds a place among the receipts and a share of the byte budget from before it is handed
//! over until it is answered, so memory is bounded (I13) and the topic's owner never waits for a
//! client. Whatever is checked already is handed over before this task waits: nothing that others
//! wait for is held back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::format::{describe, head_bytes};
use aquifer_model::id::ProducerInstance;
use aquifer_model::topic::{ProducerName, TopicName};
use aquifer_protocol_api::error::{ApiError, ApiResult};
use aquifer_protocol_api::producer::{ProducerPort, PublishFrame, Receipt};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use aquifer_runtime::telemetry::trace;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::context::Context;
use crate::error::BrokerError;
use crate::quota::Cost;
use crate::quota::publish_limits::PublishLimits;
use crate::topic::dedup::SequenceRange;
use crate::topic::event::{Body, Event, Frame, Mailbox, SessionId};

/// What a frame takes besides its body while it waits for storage: its places here and in the log,
/// and the head that is written in front of it but for what that repeats of the body.
const FRAME_BYTES: usize = 512;

/// The client's end.
pub(super) struct Port {
    pub(super) shared: Arc<Context>,
    pub(super) session: SessionId,
    pub(super) topic: TopicName,
    pub(super) name: ProducerName,
    pub(super) instance: ProducerInstance,
    pub(super) next_number: u64,
    pub(super) receipts: mpsc::Sender<ApiResult<Receipt>>,
    pub(super) mailbox: Mailbox,
    pub(super) closed: Arc<AtomicBool>,
    pub(super) budget: ByteBudget,
    /// What limits it.
    pub(super) limits: PublishLimits,
    /// A frame was refused by a limit, which ends the session: those behind it wait for nothing.
    pub(super) is_refused: bool,
}

type Permit = mpsc::OwnedPermit<ApiResult<Receipt>>;

#[async_trait]
impl ProducerPort for Port {
    async fn publish(
        &mut self,
        frames: Vec<PublishFrame>,
        mut held: Option<BytePermit>,
    ) -> ApiResult<()> {
        let mut checked = Vec::with_capacity(frames.len());
        for frame in frames {
            if self.closed.load(Ordering::Acquire) {
                return Err(ApiError::from(BrokerError::SessionClosed));
            }
            let permit = self.place(&mut checked).await?;
            let bytes = frame.body.len() + head_bytes(frame.format, &frame.body) + FRAME_BYTES;
            let permit_of_bytes = match held.as_mut().filter(|held| held.bytes() >= bytes) {
                Some(held) => held.split(bytes),
                None => {
                    // No producer waits for bytes while it holds some that wait for nothing.
                    held = None;
                    self.take_bytes(bytes, &mut checked).await?
                }
            };
            let mut frame = self.check(frame, permit, permit_of_bytes);
            if self.limits.is_limited() {
                self.pass(&mut frame, &mut checked).await?;
            }
            checked.push(frame);
        }
        self.hand_over(&mut checked).await
    }
}

impl Port {
    async fn place(&self, checked: &mut Vec<Frame>) -> ApiResult<Permit> {
        match self.receipts.clone().try_reserve_owned() {
            Ok(permit) => Ok(permit),
            Err(TrySendError::Full(receipts)) => {
                self.hand_over(checked).await?;
                receipts
                    .reserve_owned()
                    .await
                    .map_err(|_| ApiError::from(BrokerError::SessionClosed))
            }
            Err(TrySendError::Closed(_)) => Err(ApiError::from(BrokerError::SessionClosed)),
        }
    }

    /// Takes bytes of the publish budget; waits for them.
    async fn take_bytes(&self, bytes: usize, checked: &mut Vec<Frame>) -> ApiResult<BytePermit> {
        if let Some(permit) = self.budget.try_acquire(bytes) {
            return Ok(permit);
        }
        self.hand_over(checked).await?;
        Ok(self.budget.acquire(bytes).await)
    }

    /// Waits until the limits let a frame pass. One that has waited too long is answered in its
    /// place, as any frame that is wrong (H7).
    async fn pass(&mut self, frame: &mut Frame, checked: &mut Vec<Frame>) -> ApiResult<()> {
        let Ok(body) = &frame.body else {
            return Ok(());
        };
        if self.is_refused {
            return Ok(());
        }
        let cost = Cost {
            messages: body.said.message_count.into(),
            bytes: body.bytes.len() as u64,
        };
        let passed = match self.limits.try_pass(&self.shared, cost) {
            Ok(true) => return Ok(()),
            Ok(false) => {
                self.hand_over(checked).await?;
                self.limits.pass(&self.shared, cost).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = passed {
            self.is_refused = true;
            frame.body = Err(error);
        }
        Ok(())
    }

    async fn hand_over(&self, checked: &mut Vec<Frame>) -> ApiResult<()> {
        if checked.is_empty() {
            return Ok(());
        }
        let event = Event::Publish {
            session: self.session,
            frames: std::mem::take(checked),
        };
        Ok(self.mailbox.send(event).await?)
    }

    fn check(&mut self, frame: PublishFrame, permit: Permit, bytes: BytePermit) -> Frame {
        let expected = self.next_number;
        self.next_number += 1;
        let body = if frame.number == expected {
            check_body(frame.format, frame.body, &self.name, self.instance).and_then(|body| {
                self.limits.check(body.said.message_bytes_max)?;
                Ok(self.traced(body))
            })
        } else {
            Err(BrokerError::FrameNumber {
                expected,
                got: frame.number,
            })
        };
        Frame {
            number: frame.number,
            body,
            permit,
            bytes,
            received: self.shared.clock.monotonic(),
        }
    }
}

impl Port {
    /// Begins a span for a body whose trace is sampled, below that of its producer.
    fn traced(&self, mut body: Body) -> Body {
        if let Some(parent) = body.said.trace {
            let span = tracing::info_span!(
                target: trace::TARGET,
                "store",
                otel.kind = "server",
                topic = %self.topic,
                producer = %self.name,
                messages = body.said.message_count,
                bytes = body.bytes.len(),
            );
            trace::adopt(&span, parent);
            body.span = Some(Box::new(span));
        }
        body
    }
}

fn check_body(
    format: u16,
    bytes: Bytes,
    name: &ProducerName,
    instance: ProducerInstance,
) -> Result<Body, BrokerError> {
    let said = describe(format, &bytes)?;
    let wrong_name = |got: &[u8]| BrokerError::ProducerName {
        expected: name.to_string(),
        got: String::from_utf8_lossy(got).into_owned(),
    };
    let stamp = said.extensions.producer().ok_or_else(|| wrong_name(&[]))?;
    if stamp.name != name.as_str().as_bytes() {
        return Err(wrong_name(&stamp.name));
    }
    if said.extensions.producer_instance() != Some(instance) {
        return Err(BrokerError::ProducerInstance);
    }
    Ok(Body {
        format,
        bytes,
        range: SequenceRange::from(&stamp),
        said,
        span: None,
    })
}

impl Drop for Port {
    fn drop(&mut self) {
        self.mailbox.urgent(Event::ProducerGone(self.session));
    }
}
