//! The session of a producer on one partition: everything unacknowledged is sent again in order
//! after every failure (H7).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::v1;
use aquifer_proto::v1::broker_client::BrokerClient;
use aquifer_proto::v1::produce_response::Response;
use aquifer_runtime::clock::Instant;
use tonic::Streaming;

use crate::connection::{Authorized, Kind};
use crate::context::Context;
use crate::error::{ClientError, ErrorKind, Result};
use crate::producer::frames::Frames;
use crate::producer::partition::Partition;
use crate::producer::queue::Queue;
use crate::retry::Backoff;
use crate::session::{Session, unknown_message};

/// Damaged frames in a row before giving up: more than bad luck on the way.
const DAMAGED_MAX: u32 = 3;

/// See the module.
pub(crate) struct ProduceSession {
    partition: Arc<Partition>,
    backoff: Backoff,
    /// Damaged frames since the last receipt.
    damaged: u32,
}

impl ProduceSession {
    pub(crate) fn new(partition: Arc<Partition>) -> ProduceSession {
        ProduceSession {
            backoff: Backoff::new(Arc::clone(&partition.context.rng)),
            damaged: 0,
            partition,
        }
    }

    fn receipts(&mut self, number: u64, receipts: &[v1::Receipt]) -> Result<()> {
        self.partition
            .change(|queue, effects| queue.receipts(number, receipts, effects))?;
        self.backoff.reset();
        self.damaged = 0;
        Ok(())
    }
}

impl Session for ProduceSession {
    const KIND: Kind = Kind::Produce;
    const OPENING: &'static str = "opening the producer";
    const SERVING: &'static str = "sending";
    type Requests = Frames;
    type Message = v1::ProduceResponse;
    type Opened = v1::ProducerOpened;

    fn context(&self) -> &Arc<Context> {
        &self.partition.context
    }

    fn begin(&self) -> (u64, Frames) {
        let number = self
            .partition
            .change(|queue, effects| queue.begin_session(effects.wakers));
        let open = self.partition.open_request();
        (
            number,
            Frames::new(Arc::clone(&self.partition), number, open),
        )
    }

    async fn call(
        mut client: BrokerClient<Authorized>,
        frames: Frames,
    ) -> std::result::Result<tonic::Response<Streaming<v1::ProduceResponse>>, tonic::Status> {
        client.produce(frames).await
    }

    fn opening(message: v1::ProduceResponse) -> Result<v1::ProducerOpened> {
        match message.response {
            Some(Response::Opened(opened)) => Ok(opened),
            Some(Response::Error(detail)) => Err(detail.into()),
            Some(Response::Receipts(_)) => Err(ClientError::Protocol(
                "a receipt before the producer was open".to_owned(),
            )),
            None => Err(unknown_message()),
        }
    }

    fn opened(&self, number: u64, opened: v1::ProducerOpened) -> Result<()> {
        self.partition.identify(&opened)?;
        // Where the broker does not deduplicate, what it has stored is complete although it
        // was not acknowledged. Where it does, sending it again answers its positions.
        let stored = opened.last_sequence_id.filter(|_| !opened.deduplication);
        self.partition
            .change(|queue, effects| queue.opened(number, stored, effects));
        Ok(())
    }

    fn handle(&mut self, number: u64, message: v1::ProduceResponse) -> Result<()> {
        match message.response {
            Some(Response::Receipts(receipts)) => self.receipts(number, &receipts.receipts),
            Some(Response::Error(detail)) => Err(detail.into()),
            Some(Response::Opened(_)) => Err(ClientError::Protocol(
                "the producer was opened twice".to_owned(),
            )),
            None => Err(unknown_message()),
        }
    }

    /// Only receipts tell that a session was good, however long it lasted.
    fn served(&mut self, _lasted: Duration) {}

    fn failed(&mut self, error: &ClientError, while_opening: bool) -> ControlFlow<()> {
        let verdict = verdict(error, &mut self.damaged, while_opening);
        let topic = &self.partition.topic;
        tracing::debug!(%topic, %error, ?verdict, "produce session ended");
        match verdict {
            Verdict::Retry => self.partition.change(|queue, _| queue.interrupted(error)),
            Verdict::FailPending => self.partition.fail(error, false),
            Verdict::Dead => {
                self.partition.fail(error, true);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn pause(&mut self, redirected: bool) -> Option<Duration> {
        if redirected {
            self.backoff.reset();
        }
        Some(self.backoff.delay())
    }

    fn is_closed(&self) -> bool {
        self.partition.read(Queue::is_closed)
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.partition.next_expiry()
    }

    fn expire(&self) -> bool {
        self.partition.expire()
    }

    fn ended(&self) {
        self.partition.ended.set(());
    }
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
