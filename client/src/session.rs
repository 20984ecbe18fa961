//! Keeps a stream to the broker of a topic open, for a producer or for a consumer: one stream at a
//! time, opened again after every failure, at the broker that a redirect names.
//!
//! [`Session`] is what a producer and a consumer do differently; [`Driver`] is the rest. Invariant:
//! at most one attempt or stream of a session exists, and each has a number of its own, by which
//! the state behind it refuses what an earlier one left over.

use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::v1::broker_client::BrokerClient;
use aquifer_runtime::clock::{self, Instant, Sleep};
use tokio_stream::Stream;
use tonic::Streaming;

use crate::connection::{Authorized, Connection, Kind, StreamSlot, from_status};
use crate::context::Context;
use crate::error::{ClientError, ErrorKind, Outcome, Result};
use crate::lookup::Target;
use crate::retry::{Backoff, Deadline};

/// One end of a stream. Its answers decide how the [`Driver`] goes on.
pub(crate) trait Session: Send + Sync + 'static {
    /// Which connections carry the stream.
    const KIND: Kind;
    /// What opening the stream is called in errors.
    const OPENING: &'static str;
    /// What using the stream is called in errors.
    const SERVING: &'static str;
    /// What is sent, the opening first.
    type Requests: Stream + Send + 'static;
    /// What the broker sends.
    type Message: Send + 'static;
    /// The broker's answer to the opening.
    type Opened: Send;

    /// What the client shares.
    fn context(&self) -> &Arc<Context>;

    /// Begins the next stream: its number, and what is sent on it. The one before ends.
    fn begin(&self) -> (u64, Self::Requests);

    /// Makes the call.
    fn call(
        client: BrokerClient<Authorized>,
        requests: Self::Requests,
    ) -> impl Future<
        Output = std::result::Result<tonic::Response<Streaming<Self::Message>>, tonic::Status>,
    > + Send;

    /// Takes the first message apart.
    fn opening(message: Self::Message) -> Result<Self::Opened>;

    /// Takes in the answer to the opening of a stream.
    fn opened(&self, number: u64, opened: Self::Opened) -> Result<()>;

    /// Takes in any later message of a stream. An error ends the stream.
    fn handle(&mut self, number: u64, message: Self::Message) -> Result<()>;

    /// A stream has ended that was open for this long.
    fn served(&mut self, lasted: Duration);

    /// A stream, or with `while_opening` an attempt to open one, has failed. `Break` ends the
    /// session.
    fn failed(&mut self, error: &ClientError, while_opening: bool) -> ControlFlow<()>;

    /// The wait before the next attempt. With `redirected` the broker to ask is known.
    fn pause(&mut self, redirected: bool) -> Option<Duration>;

    /// Whether the application has closed the session and nothing is left to do.
    fn is_closed(&self) -> bool;

    /// When something has waited too long; `None` for never.
    fn next_expiry(&self) -> Option<Instant>;

    /// Fails what has waited too long. True when that ends the stream.
    fn expire(&self) -> bool;

    /// The session is over.
    fn ended(&self);
}

/// A session with its open stream.
pub(crate) struct Driver<S: Session> {
    session: S,
    live: Live<S::Message>,
    target: Target,
}

/// An open stream.
struct Live<M> {
    connection: Connection,
    responses: Streaming<M>,
    number: u64,
    _slot: StreamSlot,
}

/// Why a stream, or an attempt to open one, is over.
enum End {
    /// The application closed the session and nothing is left to do.
    Closed,
    /// Something had waited too long and was failed.
    Expired,
    /// It failed.
    Failed(ClientError),
}

impl<S: Session> Driver<S> {
    /// Opens the first stream. What the application must decide fails at once: no broker, or a
    /// name or subscription that another one uses or that is not allowed.
    pub(crate) async fn open(session: S, deadline: Deadline) -> Result<Driver<S>> {
        let context = Arc::clone(session.context());
        let mut backoff = Backoff::new(Arc::clone(&context.rng));
        let mut target = Target::default();
        let mut last = None;
        loop {
            let attempt = Box::pin(establish(&session, &mut target));
            let error = match deadline.limit(S::OPENING, attempt).await {
                Ok(live) => {
                    return Ok(Driver {
                        session,
                        live,
                        target,
                    });
                }
                Err(error) => error.because_of(last.take()),
            };
            let error = target.renew(&context, error, false).await;
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

    /// Serves the session until it is closed, has failed for good or is dropped.
    pub(crate) async fn drive(self) {
        let Driver {
            mut session,
            live,
            mut target,
        } = self;
        let mut live = Some(live);
        loop {
            let while_opening = live.is_none();
            let end = match live.take() {
                Some(stream) => {
                    let began = Instant::now();
                    let end = serve(&mut session, stream).await;
                    session.served(began.elapsed());
                    end
                }
                None => match reopen(&session, &mut target).await {
                    Ok(stream) => {
                        live = Some(stream);
                        continue;
                    }
                    Err(end) => end,
                },
            };
            let redirected = match end {
                End::Closed => break,
                End::Expired => false,
                End::Failed(error) => {
                    let error = renew(&session, &mut target, error, !while_opening).await;
                    if session.failed(&error, while_opening).is_break() {
                        break;
                    }
                    target.follow(&error)
                }
            };
            if session.is_closed() {
                break;
            }
            if let Some(delay) = session.pause(redirected) {
                // What expires meanwhile neither shortens the pause nor begins it again.
                let mut pause = pin!(clock::sleep(delay));
                while or_expired(&session, pause.as_mut()).await.is_none() {}
                if session.is_closed() {
                    break;
                }
            }
        }
        session.ended();
    }
}

/// One attempt to open a stream. Callers box it: it is large and short, and what waits for it would
/// keep as many bytes for as long as the stream is open.
async fn establish<S: Session>(session: &S, target: &mut Target) -> Result<Live<S::Message>> {
    let connection = target.connect(session.context()).await?;
    let (number, requests) = session.begin();
    let answer = async {
        let (client, slot) = connection.stream(S::KIND).await?;
        let response = S::call(client, requests).await;
        let mut responses = response
            .map_err(|status| from_status(S::OPENING, &status))?
            .into_inner();
        let first = next(&mut responses, S::OPENING).await?;
        let opened = S::opening(first.ok_or_else(|| ended(S::OPENING))?)?;
        Ok((slot, responses, opened))
    };
    let (slot, responses, opened) = match answer.await {
        Ok(answer) => answer,
        Err(error) => return Err(forget_broken(session, &connection, error).await),
    };
    session.opened(number, opened)?;
    target.served();
    Ok(Live {
        connection,
        responses,
        number,
        _slot: slot,
    })
}

/// What a failure means once another credential was fetched, if the last one was refused.
async fn renew<S: Session>(
    session: &S,
    target: &mut Target,
    error: ClientError,
    was_open: bool,
) -> ClientError {
    let mut renewed = pin!(target.renew(session.context(), error, was_open));
    loop {
        // What expires meanwhile fails; the stream has ended already.
        if let Some(error) = or_expired(session, renewed.as_mut()).await {
            return error;
        }
    }
}

/// One attempt to open the next stream, which is given up when something expires that needs it.
async fn reopen<S: Session>(
    session: &S,
    target: &mut Target,
) -> std::result::Result<Live<S::Message>, End> {
    let deadline = Deadline::after(session.context().operation_timeout);
    let attempt = Box::pin(establish(session, target));
    let attempt = deadline.limit(S::OPENING, attempt);
    match or_expired(session, attempt).await {
        Some(result) => result.map_err(End::Failed),
        None => Err(End::Expired),
    }
}

/// Takes what the broker sends until the stream ends.
async fn serve<S: Session>(session: &mut S, mut live: Live<S::Message>) -> End {
    let mut expiry = Expiry::default();
    loop {
        let message = next(&mut live.responses, S::SERVING);
        let message = expiry.or_expired(session, message).await;
        let result = match message {
            None => return End::Expired,
            Some(Ok(Some(message))) => session.handle(live.number, message),
            Some(Ok(None)) if session.is_closed() => return End::Closed,
            Some(Ok(None)) => Err(ended(S::SERVING)),
            Some(Err(error)) => Err(error),
        };
        if let Err(error) = result {
            return End::Failed(forget_broken(session, &live.connection, error).await);
        }
    }
}

async fn next<M>(responses: &mut Streaming<M>, what: &'static str) -> Result<Option<M>> {
    let message = responses.message().await;
    message.map_err(|status| from_status(what, &status))
}

/// Runs a future while what waits too long expires; `None` when that ended the stream.
async fn or_expired<S: Session, F: Future>(session: &S, future: F) -> Option<F::Output> {
    let future = pin!(future);
    Expiry::default().or_expired(session, future).await
}

/// The wait for what takes too long. It outlasts the waits beside it, nearly all of which are over
/// long before: a timer for each message would take the lock of the timers of all tasks. It may end
/// early, and is set again then.
#[derive(Default)]
struct Expiry {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Expiry {
    /// See the function of this name.
    async fn or_expired<S, F>(&mut self, session: &S, future: F) -> Option<F::Output>
    where
        S: Session,
        F: Future,
    {
        let mut future = pin!(future);
        loop {
            self.set(session.next_expiry());
            tokio::select! {
                output = &mut future => return Some(output),
                () = self.wait() => {
                    if session.expire() {
                        return None;
                    }
                }
            }
        }
    }

    /// Ends at `at`, or before; never without one.
    fn set(&mut self, at: Option<Instant>) {
        match (at, &mut self.sleep) {
            (None, sleep) => *sleep = None,
            (Some(at), Some(sleep)) if sleep.deadline() <= at && !sleep.is_elapsed() => {}
            (Some(at), Some(sleep)) => sleep.as_mut().reset(at),
            (Some(at), sleep) => *sleep = Some(Box::pin(clock::sleep_until(at))),
        }
    }

    async fn wait(&mut self) {
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().await,
            None => std::future::pending().await,
        }
    }
}

/// The next stream needs another connection when this one broke.
async fn forget_broken<S: Session>(
    session: &S,
    connection: &Connection,
    error: ClientError,
) -> ClientError {
    if matches!(error, ClientError::Connection { .. }) {
        session.context().pool.invalidate(connection).await;
    }
    error
}

fn ended(what: &'static str) -> ClientError {
    ClientError::Connection {
        what,
        reason: "the broker ended the stream".to_owned(),
        outcome: Outcome::Unknown,
    }
}

/// The broker sent a message that the protocol does not have.
pub(crate) fn unknown_message() -> ClientError {
    ClientError::Protocol("an answer of an unknown kind".to_owned())
}
