//! What produce and consume streams share: the first message, the way out, and how they end.

use std::pin::Pin;
use std::task::{Context, Poll};

use aquifer_protocol_api::consumer::Held;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_runtime::clock::timeout;
use futures::Stream;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::config::GrpcConfig;
use crate::status::receive_error;

/// Replies that wait for a peer to read them; each is bounded by the largest frame.
const REPLIES_MAX: usize = 2;

/// What a reply holds of the broker's budgets.
pub(crate) type Holding = Vec<Held>;

/// The way of replies to the peer.
pub(crate) type Out<T> = mpsc::Sender<(T, Holding)>;

/// The body of a streaming answer. A reply keeps what it holds until the next one is asked for:
/// HTTP/2 asks when the peer has taken so much that there is room for more.
pub(crate) struct Replies<T> {
    receiver: mpsc::Receiver<(T, Holding)>,
    /// Of the reply that was handed over last.
    holding: Holding,
}

impl<T> Stream for Replies<T> {
    type Item = Result<T, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<T, Status>>> {
        self.holding.clear();
        self.receiver.poll_recv(context).map(|reply| {
            let (reply, holding) = reply?;
            self.holding = holding;
            Some(Ok(reply))
        })
    }
}

/// Why a stream is over.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer closed it in good order.
    Done,
    /// The peer is gone: an error cannot be sent.
    Gone,
    /// This is to be its last message.
    Failed(ApiError),
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> End {
        End::Failed(error)
    }
}

/// A bounded way to the peer, and the body that drains it.
pub(crate) fn replies<T>() -> (Out<T>, Replies<T>) {
    let (sender, receiver) = mpsc::channel(REPLIES_MAX);
    let holding = Vec::new();
    (sender, Replies { receiver, holding })
}

/// Sends a reply, waiting while the peer does not read.
pub(crate) async fn reply<T>(out: &Out<T>, message: T) -> Result<(), End> {
    reply_holding(out, message, Vec::new()).await
}

/// The same for a reply that holds something.
pub(crate) async fn reply_holding<T>(
    out: &Out<T>,
    message: T,
    holding: Holding,
) -> Result<(), End> {
    out.send((message, holding)).await.map_err(|_| End::Gone)
}

/// Sends the last reply of a stream, unless the peer does not take it within the limit.
pub(crate) async fn last_reply<T>(out: &Out<T>, message: T, config: &GrpcConfig) {
    let _ = timeout(config.drain_timeout(), reply(out, message)).await;
}

/// The next request; `None` when the peer will send no more.
pub(crate) async fn next<T>(inbound: &mut Streaming<T>) -> Result<Option<T>, End> {
    inbound
        .message()
        .await
        .map_err(|status| receive_error(&status).map_or(End::Gone, End::Failed))
}

/// The first request, which must come soon: a stream that says nothing costs memory for nothing.
pub(crate) async fn first<T>(
    inbound: &mut Streaming<T>,
    config: &GrpcConfig,
    expected: &str,
) -> Result<T, End> {
    let limit = config.handshake_timeout();
    match timeout(limit, next(inbound)).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(missing(expected)),
        Ok(Err(end)) => Err(end),
        Err(_) => {
            let message = format!("no `{expected}` within {} ms", limit.as_millis());
            Err(ApiError::new(ErrorKind::Timeout, message).into())
        }
    }
}

/// The first message was another one, or none.
pub(crate) fn missing(expected: &str) -> End {
    let message = format!("the first message of this stream must be `{expected}`");
    ApiError::new(ErrorKind::InvalidArgument, message).into()
}

/// A message without content: a later version's, or none at all.
pub(crate) fn empty_request() -> ApiError {
    ApiError::new(
        ErrorKind::InvalidArgument,
        "the request is empty, or of a kind that this version does not know",
    )
}

/// The server is stopping.
pub(crate) fn stopping() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "the broker is shutting down")
        .advise("reconnect; what was acknowledged is stored")
}
