//! Keeps one partition subscribed: one stream at a time, opened anew after every failure.

use std::sync::Arc;

use aquifer_proto::v1;
use aquifer_proto::v1::consume_response::Response;
use tonic::Streaming;

use super::receiver::Receiver;
use super::requests::Requests;
use crate::connection::{Connection, Kind, StreamSlot, from_status};
use crate::error::{ClientError, ErrorKind, Outcome, Result};
use crate::lookup::Target;
use crate::retry::{Backoff, Deadline};

/// An open stream.
pub(crate) struct Live {
    connection: Connection,
    responses: Streaming<v1::ConsumeResponse>,
    session: u64,
    _slot: StreamSlot,
}

/// Opens the first session. What the application must decide fails at once: no broker, or a
/// subscription that somebody else uses.
pub(crate) async fn open(
    receiver: &Arc<Receiver>,
    partition: usize,
    deadline: Deadline,
) -> Result<(Live, Target)> {
    let mut backoff = Backoff::new(Arc::clone(&receiver.context.rng));
    let mut target = Target::default();
    let mut last = None;
    loop {
        let attempt = establish(receiver, partition, &mut target);
        let error = match deadline.limit("subscribing", attempt).await {
            Ok(live) => return Ok((live, target)),
            Err(error) => error.because_of(last.take()),
        };
        let hopeless = error.kind() == ErrorKind::Busy || receiver.context.pool.is_hopeless(&error);
        if hopeless || !error.is_retryable() || deadline.has_passed() {
            return Err(error);
        }
        error.remember(&mut last);
        if !target.follow(&error) {
            backoff.wait().await;
        }
    }
}

/// One attempt to subscribe.
async fn establish(
    receiver: &Arc<Receiver>,
    partition: usize,
    target: &mut Target,
) -> Result<Live> {
    const WHAT: &str = "subscribing";
    let connection = target.connect(&receiver.context).await?;
    let mut session = 0;
    receiver.update(partition, |inbox| {
        let (begun, waker) = inbox.begin_session();
        session = begun;
        waker
    });
    let subscribe = receiver.subscribe_request(partition, session);
    let requests = Requests::new(Arc::clone(receiver), partition, session, subscribe);
    let subscribed = async {
        let (mut client, slot) = connection.stream(Kind::Consume).await?;
        let response = client.consume(requests).await;
        let mut responses = response
            .map_err(|status| from_status(WHAT, &status))?
            .into_inner();
        match next(&mut responses, WHAT).await? {
            Some(Response::Subscribed(answer)) => Ok((slot, responses, answer)),
            Some(Response::Error(detail)) => Err(detail.into()),
            Some(_) => Err(ClientError::Protocol(
                "an answer before the subscription".to_owned(),
            )),
            None => Err(ended(WHAT)),
        }
    };
    let (slot, responses, answer) = match subscribed.await {
        Ok(subscribed) => subscribed,
        Err(error) => return Err(forget_broken(receiver, &connection, error).await),
    };
    if receiver.with(partition, |inbox| inbox.is_replaced(&answer)) {
        return Err(ClientError::Connection {
            what: WHAT,
            reason: "the broker does not know yet that another one serves the topic".to_owned(),
            outcome: Outcome::NotApplied,
        });
    }
    receiver.update(partition, |inbox| inbox.subscribed(session, &answer));
    target.settled();
    Ok(Live {
        connection,
        responses,
        session,
        _slot: slot,
    })
}

async fn next(
    responses: &mut Streaming<v1::ConsumeResponse>,
    what: &'static str,
) -> Result<Option<Response>> {
    let message = responses.message().await;
    match message.map_err(|status| from_status(what, &status))? {
        None => Ok(None),
        Some(v1::ConsumeResponse {
            response: Some(response),
        }) => Ok(Some(response)),
        Some(_) => Err(ClientError::Protocol(
            "an answer of an unknown kind".to_owned(),
        )),
    }
}

fn ended(what: &'static str) -> ClientError {
    ClientError::Connection {
        what,
        reason: "the broker ended the stream".to_owned(),
        outcome: Outcome::Unknown,
    }
}

/// The next stream needs another connection when this one broke.
async fn forget_broken(
    receiver: &Receiver,
    connection: &Connection,
    error: ClientError,
) -> ClientError {
    if matches!(error, ClientError::Connection { .. }) {
        receiver.context.pool.invalidate(connection).await;
    }
    error
}

/// Whether to subscribe again. `waited_in_vain` says that the broker had the operation timeout to
/// notice that our stream before is gone, since until then our own subscription may look busy.
fn is_worth_retrying(error: &ClientError, while_opening: bool, waited_in_vain: bool) -> bool {
    match error.kind() {
        ErrorKind::Busy => error.is_retryable() || !waited_in_vain,
        // Refused requests have answers of their own: something was damaged on its way.
        ErrorKind::Invalid => !while_opening,
        // On the way; what is damaged in storage stays so.
        ErrorKind::Damaged => !waited_in_vain && error.code() != Some(v1::ErrorCode::DataLoss),
        _ => error.is_retryable(),
    }
}

/// Serves a partition until the consumer is closed, failed or dropped.
pub(crate) async fn drive(
    receiver: Arc<Receiver>,
    partition: usize,
    live: Live,
    mut target: Target,
) {
    let timeout = receiver.context.operation_timeout;
    let mut backoff = Backoff::new(Arc::clone(&receiver.context.rng));
    let mut live = Some(live);
    let mut patience = Deadline::after(timeout);
    loop {
        let while_opening = live.is_none();
        let ended = match live.take() {
            Some(session) => {
                let began = tokio::time::Instant::now();
                let error = serve(&receiver, partition, session).await;
                backoff.session_lasted(began.elapsed());
                patience = Deadline::after(timeout);
                error
            }
            None => {
                let attempt = establish(&receiver, partition, &mut target);
                let attempt = Deadline::after(timeout).limit("subscribing", attempt);
                match with_expiry(&receiver, partition, attempt).await {
                    Ok(session) => {
                        live = Some(session);
                        continue;
                    }
                    Err(error) => Some(error),
                }
            }
        };
        let closing = receiver.with(partition, |inbox| inbox.is_closing());
        let Some(error) = ended.filter(|_| !closing) else {
            break;
        };
        tracing::debug!(partition, %error, "consume session ended");
        if !is_worth_retrying(&error, while_opening, patience.has_passed()) {
            receiver.fail(&error);
            break;
        }
        receiver.update(partition, |inbox| {
            // What has arrived is delivered again: to this consumer, or to another.
            inbox.interrupted(&error)
        });
        if !target.follow(&error) {
            with_expiry(&receiver, partition, backoff.wait()).await;
        }
    }
    receiver.ended(partition);
}

/// Runs a future while acknowledgements that wait too long expire.
async fn with_expiry<F: Future>(receiver: &Receiver, partition: usize, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            output = &mut future => return output,
            () = aquifer_runtime::clock::sleep(receiver.next_expiry(partition)) => {
                receiver.expire_acks(partition);
            }
        }
    }
}

/// Takes what the broker sends until the stream ends; `None` when it ended because we closed it.
async fn serve(receiver: &Receiver, partition: usize, mut live: Live) -> Option<ClientError> {
    const WHAT: &str = "receiving";
    let session = live.session;
    loop {
        let response = with_expiry(receiver, partition, next(&mut live.responses, WHAT)).await;
        let error = match response {
            Ok(Some(Response::Error(detail))) => detail.into(),
            Ok(Some(Response::Subscribed(_))) => {
                ClientError::Protocol("the stream was subscribed twice".to_owned())
            }
            Ok(Some(response)) => {
                receiver.update(partition, |inbox| match response {
                    Response::Deliveries(deliveries) => inbox.deliver(session, deliveries),
                    Response::Confirmed(confirmed) => inbox.confirmed(session, confirmed),
                    Response::SeekDone(done) => inbox.seek_done(session, done),
                    Response::Gap(gap) => inbox.gap(session, gap),
                    Response::Active(active) => {
                        inbox.set_active(session, active.active);
                        None
                    }
                    Response::Subscribed(_) | Response::Error(_) => None,
                });
                continue;
            }
            Ok(None) if receiver.with(partition, |inbox| inbox.is_closing()) => return None,
            Ok(None) => ended(WHAT),
            Err(error) => error,
        };
        return Some(forget_broken(receiver, &live.connection, error).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_retried() {
        use v1::ErrorCode as Code;
        let error = |code: Code, retryable| -> ClientError {
            v1::ErrorDetail {
                code: code.into(),
                retryable,
                ..v1::ErrorDetail::default()
            }
            .into()
        };
        let busy = error(Code::FailedPrecondition, false);
        assert!(is_worth_retrying(&busy, true, false), "our own old stream");
        assert!(!is_worth_retrying(&busy, true, true), "somebody else");
        let refused = error(Code::InvalidArgument, false);
        assert!(is_worth_retrying(&refused, false, false));
        assert!(!is_worth_retrying(&refused, true, false));
        assert!(is_worth_retrying(
            &error(Code::Unavailable, true),
            true,
            true
        ));
        for code in [
            Code::NotFound,
            Code::PermissionDenied,
            Code::Incarnation,
            Code::DataLoss,
        ] {
            assert!(!is_worth_retrying(&error(code, false), false, false));
        }
        assert!(!is_worth_retrying(
            &error(Code::DataLoss, true),
            false,
            false
        ));
    }
}
