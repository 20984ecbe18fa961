//! Keeps a produce session open: one stream at a time, opened anew after every failure, with
//! everything unacknowledged sent again in order (H7).

use std::sync::Arc;

use aquifer_proto::v1;
use aquifer_proto::v1::produce_response::Response;
use tokio::time::Instant;
use tonic::Streaming;

use super::frames::{Frames, wake};
use super::partition::Partition;
use crate::connection::{Connection, Kind, StreamSlot, from_status};
use crate::error::{ClientError, ErrorKind, Outcome, Result};
use crate::lookup::Target;
use crate::retry::{Backoff, Deadline};

/// Damaged frames in a row before giving up: more than bad luck on the way.
const DAMAGED_MAX: u32 = 3;

/// An open stream.
pub(crate) struct Live {
    connection: Connection,
    responses: Streaming<v1::ProduceResponse>,
    session: u64,
    _slot: StreamSlot,
}

/// Opens the first session. What the application must decide fails at once: no broker, a rival
/// of the same name, a name that is not allowed.
pub(crate) async fn open(partition: &Arc<Partition>, deadline: Deadline) -> Result<(Live, Target)> {
    let context = Arc::clone(&partition.context);
    let mut backoff = Backoff::new(Arc::clone(&context.rng));
    let mut target = Target::default();
    let mut last = None;
    loop {
        let attempt = establish(partition, &mut target);
        let error = match deadline.limit("opening the producer", attempt).await {
            Ok(live) => return Ok((live, target)),
            Err(error) => error.because_of(last.take()),
        };
        let hopeless = error.kind() == ErrorKind::Busy || context.pool.is_hopeless(&error);
        if hopeless || !error.is_retryable() || deadline.has_passed() {
            return Err(error);
        }
        error.remember(&mut last);
        if !target.follow(&error) {
            backoff.wait().await;
        }
    }
}

/// One attempt to open a session.
async fn establish(partition: &Arc<Partition>, target: &mut Target) -> Result<Live> {
    let connection = target.connect(&partition.context).await?;
    let (session, waker) = partition.queue().begin_session();
    wake(waker);
    let frames = Frames::new(Arc::clone(partition), session, partition.open_request());
    let result = handshake(&connection, frames).await;
    let (slot, responses, opened) = match result {
        Ok(answer) => answer,
        Err(error) => return Err(forget_broken(partition, &connection, error).await),
    };
    partition.identify(&opened)?;
    // Where the broker does not deduplicate, what it has stored is settled although nobody
    // acknowledged it. Where it does, sending it again answers its positions.
    let stored = opened.last_sequence_id.filter(|_| !opened.deduplication);
    let (settled, waker) = partition.queue().opened(session, stored);
    partition.announce(settled);
    wake(waker);
    target.settled();
    Ok(Live {
        connection,
        responses,
        session,
        _slot: slot,
    })
}

async fn handshake(
    connection: &Connection,
    frames: Frames,
) -> Result<(
    StreamSlot,
    Streaming<v1::ProduceResponse>,
    v1::ProducerOpened,
)> {
    const WHAT: &str = "opening the producer";
    let (mut client, slot) = connection.stream(Kind::Produce).await?;
    let response = client.produce(frames).await;
    let mut responses = response
        .map_err(|status| from_status(WHAT, &status))?
        .into_inner();
    match next(&mut responses, WHAT).await? {
        Some(Response::Opened(opened)) => Ok((slot, responses, opened)),
        Some(Response::Error(detail)) => Err(detail.into()),
        Some(Response::Receipts(_)) => Err(ClientError::Protocol(
            "a receipt before the producer was open".to_owned(),
        )),
        None => Err(ended(WHAT)),
    }
}

async fn next(
    responses: &mut Streaming<v1::ProduceResponse>,
    what: &'static str,
) -> Result<Option<Response>> {
    let message = responses.message().await;
    let message = message.map_err(|status| from_status(what, &status))?;
    match message {
        None => Ok(None),
        Some(v1::ProduceResponse {
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
    partition: &Partition,
    connection: &Connection,
    error: ClientError,
) -> ClientError {
    if matches!(error, ClientError::Connection { .. }) {
        partition.context.pool.invalidate(connection).await;
    }
    error
}

/// What a failure means for the producer.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Open again and send everything again.
    Retry,
    /// What waits fails, in order; then open again.
    FailPending,
    /// The producer is over.
    Dead,
}

fn verdict(error: &ClientError, damaged: &mut u32, while_opening: bool) -> Verdict {
    if error.is_retryable() {
        return Verdict::Retry;
    }
    match error.kind() {
        // What is damaged in storage stays so; what was damaged on the way does not.
        ErrorKind::Damaged
            if *damaged < DAMAGED_MAX && error.code() != Some(v1::ErrorCode::DataLoss) =>
        {
            *damaged += 1;
            Verdict::Retry
        }
        // Something about these messages: later ones may be fine.
        ErrorKind::Damaged | ErrorKind::Invalid if !while_opening => Verdict::FailPending,
        ErrorKind::Refused
            if !while_opening && error.code() == Some(v1::ErrorCode::QuotaExceeded) =>
        {
            Verdict::FailPending
        }
        _ => Verdict::Dead,
    }
}

/// Why a session, or an attempt to open one, is over.
enum End {
    /// The application closed the producer and everything is acknowledged.
    Closed,
    /// Batches have timed out and were failed.
    Expired,
    /// It failed.
    Failed(ClientError),
}

/// Serves the producer until it is closed, dead or dropped.
pub(crate) async fn drive(partition: Arc<Partition>, live: Live, mut target: Target) {
    let mut backoff = Backoff::new(Arc::clone(&partition.context.rng));
    let mut damaged = 0;
    let mut live = Some(live);
    loop {
        let while_opening = live.is_none();
        let end = match live.take() {
            Some(session) => serve(&partition, session, &mut backoff, &mut damaged).await,
            None => match reopen(&partition, &mut target, &mut backoff).await {
                Ok(session) => {
                    live = Some(session);
                    continue;
                }
                Err(end) => end,
            },
        };
        match end {
            End::Closed => break,
            End::Expired => continue,
            End::Failed(error) => {
                let verdict = verdict(&error, &mut damaged, while_opening);
                tracing::debug!(topic = %partition.topic, %error, ?verdict, "produce session ended");
                match verdict {
                    Verdict::Retry => partition.queue().interrupted(&error),
                    Verdict::FailPending => partition.fail(&error, false),
                    Verdict::Dead => {
                        partition.fail(&error, true);
                        break;
                    }
                }
                if target.follow(&error) {
                    backoff.reset();
                }
            }
        }
        if partition.queue().is_closed() {
            break;
        }
    }
    partition.ended.set(());
}

/// Waits a moment and makes one attempt, unless batches expire meanwhile.
async fn reopen(
    partition: &Arc<Partition>,
    target: &mut Target,
    backoff: &mut Backoff,
) -> std::result::Result<Live, End> {
    let deadline = Deadline::after(partition.context.operation_timeout);
    let attempt = async {
        backoff.wait().await;
        let attempt = establish(partition, target);
        deadline.limit("opening the producer", attempt).await
    };
    tokio::select! {
        () = expiry(partition) => Err(End::Expired),
        result = attempt => result.map_err(End::Failed),
    }
}

/// Takes receipts until the stream ends.
async fn serve(
    partition: &Partition,
    mut live: Live,
    backoff: &mut Backoff,
    damaged: &mut u32,
) -> End {
    loop {
        let response = tokio::select! {
            () = expiry(partition) => return End::Expired,
            response = next(&mut live.responses, "sending") => response,
        };
        let error = match response {
            Ok(Some(Response::Receipts(receipts))) => {
                let mut settled = Vec::with_capacity(receipts.receipts.len());
                let session = live.session;
                let result = partition
                    .queue()
                    .receipts(session, &receipts.receipts, &mut settled);
                partition.announce(settled);
                match result {
                    Ok(waker) => {
                        wake(waker);
                        backoff.reset();
                        *damaged = 0;
                        continue;
                    }
                    Err(error) => error,
                }
            }
            Ok(Some(Response::Error(detail))) => detail.into(),
            Ok(Some(Response::Opened(_))) => {
                ClientError::Protocol("the producer was opened twice".to_owned())
            }
            Ok(None) if partition.queue().is_closed() => return End::Closed,
            Ok(None) => ended("sending"),
            Err(error) => error,
        };
        return End::Failed(forget_broken(partition, &live.connection, error).await);
    }
}

/// Ends when batches have timed out and were failed.
async fn expiry(partition: &Partition) {
    loop {
        match partition.next_expiry() {
            None => std::future::pending().await,
            Some(at) => tokio::time::sleep_until(at).await,
        }
        if partition.expire() {
            return;
        }
        debug_assert!(partition.next_expiry().is_none_or(|at| at > Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: v1::ErrorCode, retryable: bool) -> ClientError {
        v1::ErrorDetail {
            code: code.into(),
            retryable,
            ..v1::ErrorDetail::default()
        }
        .into()
    }

    #[test]
    fn each_failure_ends_as_much_as_it_must() {
        use v1::ErrorCode as Code;
        for (code, retryable, sending, opening) in [
            (Code::Overloaded, true, Verdict::Retry, Verdict::Retry),
            (Code::StorageFull, true, Verdict::Retry, Verdict::Retry),
            (Code::TooLarge, false, Verdict::FailPending, Verdict::Dead),
            (Code::DataLoss, true, Verdict::FailPending, Verdict::Dead),
            (
                Code::QuotaExceeded,
                false,
                Verdict::FailPending,
                Verdict::Dead,
            ),
            (Code::Fenced, false, Verdict::Dead, Verdict::Dead),
            (Code::Incarnation, false, Verdict::Dead, Verdict::Dead),
            (Code::NotFound, false, Verdict::Dead, Verdict::Dead),
        ] {
            let error = error(code, retryable);
            assert_eq!(verdict(&error, &mut 0, false), sending, "{code:?}");
            assert_eq!(verdict(&error, &mut 0, true), opening, "{code:?}");
        }
    }

    #[test]
    fn damage_on_the_way_is_retried_a_few_times() {
        let error = error(v1::ErrorCode::Checksum, false);
        let mut damaged = 0;
        for _ in 0..DAMAGED_MAX {
            assert_eq!(verdict(&error, &mut damaged, false), Verdict::Retry);
        }
        assert_eq!(verdict(&error, &mut damaged, false), Verdict::FailPending);
    }
}
