//! The session of a consumer or reader on one partition: what is not acknowledged is delivered
//! again after every failure.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::v1;
use aquifer_proto::v1::broker_client::BrokerClient;
use aquifer_proto::v1::consume_response::Response;
use aquifer_runtime::clock::Instant;
use tonic::Streaming;

use crate::connection::{Authorized, Kind};
use crate::consumer::inbox::Inbox;
use crate::consumer::receiver::Receiver;
use crate::consumer::requests::Requests;
use crate::context::Context;
use crate::error::{ClientError, ErrorKind, Outcome, Result};
use crate::retry::{Backoff, Deadline};
use crate::session::{Session, unknown_message};
use crate::wake::Wakers;

/// See the module.
pub(crate) struct ConsumeSession {
    receiver: Arc<Receiver>,
    partition: usize,
    backoff: Backoff,
    /// Until then our own stream before may keep the subscription busy.
    patience: Deadline,
}

impl ConsumeSession {
    pub(crate) fn new(receiver: Arc<Receiver>, partition: usize) -> ConsumeSession {
        ConsumeSession {
            backoff: Backoff::new(Arc::clone(&receiver.context.rng)),
            patience: Deadline::after(receiver.context.operation_timeout),
            receiver,
            partition,
        }
    }

    fn update<T>(&self, change: impl FnOnce(&mut Inbox, &mut Wakers) -> T) -> T {
        self.receiver.update(self.partition, change)
    }
}

impl Session for ConsumeSession {
    const KIND: Kind = Kind::Consume;
    const OPENING: &'static str = "subscribing";
    const SERVING: &'static str = "receiving";
    type Requests = Requests;
    type Message = v1::ConsumeResponse;
    type Opened = v1::Subscribed;

    fn context(&self) -> &Arc<Context> {
        &self.receiver.context
    }

    fn begin(&self) -> (u64, Requests) {
        let number = self.update(Inbox::begin_session);
        let subscribe = self.receiver.subscribe_request(self.partition, number);
        let receiver = Arc::clone(&self.receiver);
        let requests = Requests::new(receiver, self.partition, number, subscribe);
        (number, requests)
    }

    async fn call(
        mut client: BrokerClient<Authorized>,
        requests: Requests,
    ) -> std::result::Result<tonic::Response<Streaming<v1::ConsumeResponse>>, tonic::Status> {
        client.consume(requests).await
    }

    fn opening(message: v1::ConsumeResponse) -> Result<v1::Subscribed> {
        match message.response {
            Some(Response::Subscribed(subscribed)) => Ok(subscribed),
            Some(Response::Error(detail)) => Err(detail.into()),
            Some(_) => Err(ClientError::Protocol(
                "an answer before the subscription".to_owned(),
            )),
            None => Err(unknown_message()),
        }
    }

    fn opened(&self, number: u64, subscribed: v1::Subscribed) -> Result<()> {
        let is_replaced = |inbox: &Inbox| inbox.is_replaced(&subscribed);
        if self.receiver.read(self.partition, is_replaced) {
            return Err(ClientError::Connection {
                what: Self::OPENING,
                reason: "the broker does not know yet that another one serves the topic".to_owned(),
                outcome: Outcome::NotApplied,
            });
        }
        self.update(|inbox, wakers| inbox.subscribed(number, &subscribed, wakers));
        Ok(())
    }

    fn handle(&mut self, number: u64, message: v1::ConsumeResponse) -> Result<()> {
        match message.response {
            Some(Response::Deliveries(deliveries)) => {
                self.update(|inbox, wakers| inbox.deliver(number, deliveries, wakers));
            }
            Some(Response::Confirmed(confirmed)) => {
                let now = Instant::now();
                self.update(|inbox, wakers| inbox.confirmed(number, confirmed, now, wakers));
            }
            Some(Response::SeekDone(done)) => {
                let now = Instant::now();
                self.update(|inbox, wakers| inbox.seek_done(number, done, now, wakers));
            }
            Some(Response::Gap(gap)) => {
                self.update(|inbox, wakers| inbox.gap(number, gap, wakers));
            }
            Some(Response::Active(active)) => {
                self.update(|inbox, _| inbox.set_active(number, active.active));
            }
            Some(Response::EndOfTopic(_)) => {
                self.update(|inbox, _| inbox.end_of_topic(number));
            }
            Some(Response::Error(detail)) => return Err(detail.into()),
            Some(Response::Subscribed(_)) => {
                let text = "the stream was subscribed twice";
                return Err(ClientError::Protocol(text.to_owned()));
            }
            None => return Err(unknown_message()),
        }
        Ok(())
    }

    fn served(&mut self, lasted: Duration) {
        self.backoff.session_lasted(lasted);
        self.patience = Deadline::after(self.receiver.context.operation_timeout);
    }

    fn failed(&mut self, error: &ClientError, while_opening: bool) -> ControlFlow<()> {
        if self.is_closed() {
            return ControlFlow::Break(());
        }
        let partition = self.partition;
        tracing::debug!(partition, %error, "consume session ended");
        if !is_worth_retrying(error, while_opening, self.patience.has_passed()) {
            self.receiver.fail(error);
            return ControlFlow::Break(());
        }
        // What has arrived is delivered again: to this consumer, or to another.
        self.update(|inbox, wakers| inbox.interrupted(error, wakers));
        ControlFlow::Continue(())
    }

    fn pause(&mut self, redirected: bool) -> Option<Duration> {
        (!redirected).then(|| self.backoff.delay())
    }

    fn is_closed(&self) -> bool {
        self.receiver.read(self.partition, Inbox::is_closing)
    }

    fn next_expiry(&self) -> Option<Instant> {
        let expiry = Instant::now().checked_add(self.receiver.next_expiry(self.partition));
        let again_at = self.receiver.read(self.partition, Inbox::again_at);
        expiry.into_iter().chain(again_at).min()
    }

    fn expire(&self) -> bool {
        self.receiver.expire_acks(self.partition);
        false
    }

    fn ended(&self) {
        self.receiver.ended(self.partition);
    }
}

/// Whether to subscribe again. `waited_in_vain` says that the broker had the operation timeout to
/// notice that our stream before is gone, since until then our own subscription may look busy.
fn is_worth_retrying(error: &ClientError, while_opening: bool, waited_in_vain: bool) -> bool {
    match error.kind() {
        ErrorKind::Busy => error.is_retryable() || !waited_in_vain,
        // Refused requests have answers of their own: something was damaged in flight.
        ErrorKind::Invalid => !while_opening,
        // On the way; what is damaged in storage stays so.
        ErrorKind::Damaged => !waited_in_vain && error.code() != Some(v1::ErrorCode::DataLoss),
        _ => error.is_retryable(),
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
        assert!(!is_worth_retrying(&busy, true, true), "another consumer");
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
