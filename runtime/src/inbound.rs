//! What peers send is read as memory allows (I13).
//!
//! The body of a request is a row of messages, each behind five bytes that announce its length.
//! [`InboundBody`] reads these, takes the bytes of the message from a budget, and only then lets
//! the message through. It gives them back when the next message is asked for, which is when the
//! former one was dealt with; a caller that keeps a message longer takes over its
//! bytes, or names the budget that its messages are to come from ([`Inbound`]).
//!
//! A message that was begun must be complete in time: what it holds would be held for nothing.
//! What has come of a message that waits for room is bounded too, and beyond that bound refused.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget::{Acquire, ByteBudget, BytePermit};
use crate::clock::sleep;

/// Compression flag and length in front of each message.
const HEADER_BYTES: usize = 5;

/// Any error of a body.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// What all requests of a server share.
#[derive(Debug, Clone)]
pub struct InboundBudgets {
    /// Messages that are being read.
    pub room: ByteBudget,
    /// Beginnings of messages that wait for room.
    pub waiting: ByteBudget,
    /// Unary calls at once.
    pub calls: Arc<Semaphore>,
}

/// What one request may send.
#[derive(Debug, Clone, Copy)]
pub struct InboundLimits {
    /// Largest message.
    pub message_bytes_max: usize,
    /// A message that was begun is complete within this; the time it waits here does not count.
    pub message_timeout: Duration,
    /// One message is all that comes, and it comes at once.
    pub unary: bool,
    /// Bytes that decoding may take besides a message of this size.
    pub decoded_bytes: fn(usize) -> usize,
}

/// Why no more is read of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InboundError {
    /// The message is too large.
    #[error("a message of {bytes} bytes: at most {max} are allowed here")]
    TooLarge {
        /// What was announced.
        bytes: usize,
        /// The most that it may be.
        max: usize,
    },
    /// The message did not come in time.
    #[error("a message was not complete within {} ms", .0.as_millis())]
    Late(Duration),
    /// Too much waits already.
    #[error("too many requests wait to be read")]
    Overloaded,
}

/// The handler's end: where the bytes of messages come from, and those of the message at hand.
#[derive(Debug, Clone)]
pub struct Inbound {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    budget: ByteBudget,
    held: Option<BytePermit>,
    message_bytes: usize,
    call: Option<OwnedSemaphorePermit>,
}

impl Inbound {
    /// Takes messages from another budget, from the next one on.
    pub fn read_into(&self, budget: ByteBudget) {
        self.shared.lock().budget = budget;
    }

    /// Takes over the bytes of the message at hand; and says how large it was.
    #[must_use]
    pub fn take(&self) -> (Option<BytePermit>, usize) {
        let mut shared = self.shared.lock();
        (shared.held.take(), shared.message_bytes)
    }

    fn release(&self) {
        let held = self.shared.lock().held.take();
        drop(held);
    }
}

/// A body that is read as memory allows.
pub struct InboundBody<B> {
    inner: B,
    limits: InboundLimits,
    budgets: InboundBudgets,
    refuse: fn(InboundError) -> BodyError,
    inbound: Inbound,
    /// What has come and is not handed on.
    chunk: Bytes,
    /// Bytes of the message that are still to be handed on, its header included.
    left: usize,
    /// The header goes before the rest: the codec, which reserves what the header announces beside
    /// what it already has, then has nothing yet that it would copy and reserve twice.
    at_header: bool,
    /// The message that waits for room, what it will take, and what has come of it.
    entry: Option<Entry>,
    timer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    failed: bool,
}

/// What a body answers: a frame, an error, or its end.
type Next = Option<Result<Frame<Bytes>, BodyError>>;

struct Entry {
    acquire: Acquire,
    total: usize,
    _waiting: BytePermit,
}

impl<B> InboundBody<B> {
    /// Wraps a body. The handler's end belongs into the request's extensions.
    #[must_use]
    pub fn new(
        inner: B,
        limits: InboundLimits,
        budgets: InboundBudgets,
        refuse: fn(InboundError) -> BodyError,
    ) -> (InboundBody<B>, Inbound) {
        let inbound = Inbound {
            shared: Arc::new(Mutex::new(Shared {
                budget: budgets.room.clone(),
                held: None,
                message_bytes: 0,
                call: None,
            })),
        };
        let body = InboundBody {
            inner,
            limits,
            budgets,
            refuse,
            inbound: inbound.clone(),
            chunk: Bytes::new(),
            left: 0,
            at_header: false,
            entry: None,
            timer: None,
            failed: false,
        };
        (body, inbound)
    }

    /// Hands on a part of the message that has room.
    fn next_part(&mut self) -> Option<Bytes> {
        if self.left == 0 || self.chunk.is_empty() {
            return None;
        }
        let most = if std::mem::take(&mut self.at_header) {
            HEADER_BYTES
        } else {
            self.left
        };
        let part = self.chunk.split_to(most.min(self.chunk.len()));
        self.left -= part.len();
        if self.left == 0 && !self.limits.unary {
            self.timer = None;
        }
        Some(part)
    }

    /// Begins the message whose header has come, if one has: takes its room, or waits for it.
    fn begin(&mut self) -> Result<(), InboundError> {
        if self.left > 0 || self.entry.is_some() || self.chunk.len() < HEADER_BYTES {
            return Ok(());
        }
        let length = (&self.chunk[1..HEADER_BYTES]).get_u32();
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let max = self.limits.message_bytes_max;
        if bytes > max {
            return Err(InboundError::TooLarge { bytes, max });
        }
        if !self.limits.unary {
            // The next message is asked for: the former one was dealt with.
            self.inbound.release();
        }
        let total = bytes + HEADER_BYTES;
        let cost = total + (self.limits.decoded_bytes)(bytes);
        let budget = {
            let mut shared = self.inbound.shared.lock();
            shared.message_bytes = bytes;
            shared.budget.clone()
        };
        self.timer = self.timer.take().filter(|_| self.limits.unary);
        match budget.try_acquire(cost) {
            Some(permit) => self.admitted(total, permit),
            None => {
                let waiting = self.budgets.waiting.try_acquire(self.chunk.len());
                self.entry = Some(Entry {
                    acquire: budget.acquire(cost),
                    total,
                    _waiting: waiting.ok_or(InboundError::Overloaded)?,
                });
            }
        }
        Ok(())
    }

    fn admitted(&mut self, total: usize, permit: BytePermit) {
        self.left = total;
        self.at_header = true;
        self.entry = None;
        self.inbound.shared.lock().held = Some(permit);
    }

    fn came(&mut self, data: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = data;
        } else {
            // Less than a header: messages are seldom cut there.
            let mut joined = BytesMut::with_capacity(self.chunk.len() + data.len());
            joined.extend_from_slice(&self.chunk);
            joined.extend_from_slice(&data);
            self.chunk = joined.freeze();
        }
    }

    /// Whether something of a message has come, and the rest is due.
    fn is_due(&self) -> bool {
        self.limits.unary || self.left > 0 || !self.chunk.is_empty()
    }

    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<InboundError> {
        let limit = self.limits.message_timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer
            .as_mut()
            .poll(context)
            .map(|()| InboundError::Late(limit))
    }

    /// A call is counted from its first byte to its answer.
    fn count_call(&mut self) -> Result<(), InboundError> {
        let mut shared = self.inbound.shared.lock();
        if self.limits.unary && shared.call.is_none() {
            let call = Arc::clone(&self.budgets.calls).try_acquire_owned();
            shared.call = Some(call.map_err(|_| InboundError::Overloaded)?);
        }
        Ok(())
    }
}

impl<B> InboundBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    /// The next frame of the inner body, as the handler is to see it; `None` to go on.
    fn poll_inner(&mut self, context: &mut Context<'_>) -> Poll<Option<Next>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    self.came(data);
                    Poll::Ready(None)
                }
                Err(trailers) => Poll::Ready(Some(Some(Ok(trailers)))),
            },
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Some(Err(error.into())))),
            Poll::Ready(None) if self.chunk.is_empty() => Poll::Ready(Some(None)),
            // A message that was cut: the codec says so.
            Poll::Ready(None) => {
                let rest = std::mem::take(&mut self.chunk);
                Poll::Ready(Some(Some(Ok(Frame::data(rest)))))
            }
            Poll::Pending if self.is_due() => match self.poll_late(context) {
                Poll::Ready(late) => Poll::Ready(Some(Some(Err((self.refuse)(late))))),
                Poll::Pending => Poll::Pending,
            },
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_admission(&mut self, context: &mut Context<'_>) -> Poll<Result<(), InboundError>> {
        let Some(entry) = &mut self.entry else {
            return Poll::Ready(Ok(()));
        };
        let total = entry.total;
        if let Poll::Ready(permit) = Pin::new(&mut entry.acquire).poll(context) {
            self.admitted(total, permit);
            return Poll::Ready(Ok(()));
        }
        // The caller of a call waits for it; a stream is held back for as long as it takes.
        if self.limits.unary && self.poll_late(context).is_ready() {
            return Poll::Ready(Err(InboundError::Overloaded));
        }
        Poll::Pending
    }
}

impl<B> Body for InboundBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Next> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        loop {
            if let Some(part) = this.next_part() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            let begun = this.count_call().and_then(|()| this.begin());
            let admitted = match begun {
                Ok(()) => std::task::ready!(this.poll_admission(context)),
                Err(error) => Err(error),
            };
            if let Err(error) = admitted {
                this.failed = true;
                this.entry = None;
                this.chunk = Bytes::new();
                return Poll::Ready(Some(Err((this.refuse)(error))));
            }
            if this.left > 0 && !this.chunk.is_empty() {
                continue;
            }
            if this.left == 0 && this.chunk.is_empty() && !this.limits.unary {
                this.inbound.release();
            }
            if let Some(frame) = std::task::ready!(this.poll_inner(context)) {
                this.failed = matches!(frame, Some(Err(_)));
                return Poll::Ready(frame);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.chunk.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests;
