//! The one error of the SDK. Rich inside, few kinds outside: a kind exists only where the
//! application acts differently.

use std::time::Duration;

use aquifer_model::batch::BatchError;
pub use aquifer_model::outcome::Outcome;
use aquifer_model::topic::NameError;
use aquifer_proto::v1;
use thiserror::Error;

use crate::message::Damaged;

/// Result of every call of the SDK.
pub type Result<T> = std::result::Result<T, ClientError>;

/// What the application can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No broker could be reached. Check the addresses, or try again later.
    Connect,
    /// No answer within the deadline. See [`ClientError::outcome`] before trying again.
    Timeout,
    /// The request itself is wrong: a name, an argument, a message that is too large. Fix it.
    Invalid,
    /// Topic, subscription, namespace or tenant does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// Another client uses it, or it is not in the right state: try again later, or take it over.
    Busy,
    /// Not allowed: permission, authentication or quota.
    Refused,
    /// Taken over by another producer, or the topic was deleted or takes no more messages. Open it
    /// again if that was not meant.
    Fenced,
    /// The broker cannot serve it now. Try again.
    Unavailable,
    /// Bytes were damaged, on the way or in storage.
    Damaged,
    /// The producer, consumer, reader or client was closed by the application.
    Closed,
    /// The topic was terminated, and nothing more comes.
    EndOfTopic,
    /// A version or feature that the peer does not have, or a bug.
    Internal,
}

/// A failure. The text says what happened and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClientError {
    /// No broker could be reached.
    #[error("cannot connect to any broker: {tried}; check the addresses and that a broker runs")]
    Connect {
        /// Every address that was tried, with its reason.
        tried: String,
    },
    /// An address that is no URL of a broker.
    #[error("{given:?} is not a broker address: give http://HOST:PORT ({reason})")]
    Url {
        /// What was given.
        given: String,
        /// Why it was refused.
        reason: String,
    },
    /// A name of a topic, subscription, producer or consumer is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Another argument is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A message beyond its bound. Nothing was sent.
    #[error("{what} has {bytes} bytes, at most {max} are allowed: split it")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// No answer in time.
    #[error(
        "{what} got no answer within {after:?}; outcome: {outcome:?}{}",
        because(last)
    )]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The limit that passed.
        after: Duration,
        /// What may have become of it.
        outcome: Outcome,
        /// Why the last attempt within the limit failed, if one did.
        last: Option<Box<ClientError>>,
    },
    /// The broker answered with an error.
    #[error("{0}")]
    Broker(Box<BrokerError>),
    /// The broker wants a token, or does not accept this one, and the source of tokens has no
    /// other.
    #[error("{0}")]
    Unauthenticated(Box<BrokerError>),
    /// The broker knows the caller, who may not do this.
    #[error("{0}")]
    PermissionDenied(Box<BrokerError>),
    /// There is no token to show: its source does not give one. Nothing was sent.
    #[error("no token: {reason}")]
    Credential {
        /// What is wrong with the source.
        reason: String,
        /// Whether it may give one later.
        retryable: bool,
    },
    /// The connection failed while a request was under way.
    #[error("connection to the broker failed during {what}: {reason}; try again")]
    Connection {
        /// What was under way.
        what: &'static str,
        /// What the transport said.
        reason: String,
        /// What may have become of it.
        outcome: Outcome,
    },
    /// Messages that cannot be read. Others follow; a consumer decides with
    /// [`Consumer::ack_damaged`](crate::Consumer::ack_damaged) to go on without these for good.
    #[error("{0}")]
    Damaged(Box<Damaged>),
    /// The broker sent what the protocol does not allow.
    #[error(
        "the broker violated the protocol: {0}; client and broker may have incompatible versions"
    )]
    Protocol(String),
    /// The subscription was moved by a seek after the message had been delivered, so the
    /// acknowledgement no longer counts.
    #[error("a seek moved the subscription after this delivery: the acknowledgement was dropped")]
    Stale,
    /// The topic was terminated: everything that it will ever have is acknowledged, or was read.
    #[error("the end of the topic: it is terminated, and nothing more comes")]
    EndOfTopic,
    /// Closed by the application.
    #[error("the {what} is closed: open a new one")]
    Closed {
        /// What is closed.
        what: &'static str,
        /// What may have become of the request that it ended.
        outcome: Outcome,
    },
}

fn because(last: &Option<Box<ClientError>>) -> String {
    match last {
        Some(error) => format!("; last error: {error}"),
        None => String::new(),
    }
}

/// What a broker said went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}{}{advice}", if advice.is_empty() { "" } else { ": " })]
pub struct BrokerError {
    /// The stable code of the protocol.
    pub code: v1::ErrorCode,
    /// Whether the same request may succeed later, unchanged.
    pub retryable: bool,
    /// What may have become of the request.
    pub outcome: Outcome,
    /// What happened.
    pub message: String,
    /// What to do about it; may be empty.
    pub advice: String,
    /// The broker that serves the topic, with code `REDIRECT`.
    pub redirect_url: Option<String>,
}

impl From<v1::ErrorDetail> for BrokerError {
    fn from(detail: v1::ErrorDetail) -> BrokerError {
        let outcome = match detail.outcome() {
            v1::Outcome::NotApplied => Outcome::NotApplied,
            v1::Outcome::Applied => Outcome::Applied,
            v1::Outcome::Unknown => Outcome::Unknown,
        };
        BrokerError {
            code: detail.code(),
            retryable: detail.retryable,
            outcome,
            redirect_url: Some(detail.redirect_url).filter(|url| !url.is_empty()),
            message: detail.message,
            advice: detail.advice,
        }
    }
}

impl From<v1::ErrorDetail> for ClientError {
    fn from(detail: v1::ErrorDetail) -> ClientError {
        let mut error = Box::new(BrokerError::from(detail));
        match error.code {
            v1::ErrorCode::Unauthenticated => {
                if error.advice.is_empty() {
                    error.advice = "give the client a token that is valid".to_owned();
                }
                ClientError::Unauthenticated(error)
            }
            v1::ErrorCode::PermissionDenied => ClientError::PermissionDenied(error),
            _ => ClientError::Broker(error),
        }
    }
}

impl From<BatchError> for ClientError {
    fn from(error: BatchError) -> ClientError {
        match error {
            BatchError::TooLarge { what, got, max } => ClientError::TooLarge {
                what,
                bytes: got,
                max,
            },
            other => ClientError::Invalid(other.to_string()),
        }
    }
}

impl ClientError {
    /// Refused because `what` is closed.
    pub(crate) fn closed(what: &'static str) -> ClientError {
        ClientError::Closed {
            what,
            outcome: Outcome::NotApplied,
        }
    }

    /// A timeout with the failure of an attempt before it; every other error as it is.
    pub(crate) fn because_of(mut self, cause: Option<ClientError>) -> ClientError {
        if let ClientError::Timeout { last, .. } = &mut self
            && last.is_none()
        {
            *last = cause.map(Box::new);
        }
        self
    }

    /// Remembers the failure of an attempt for [`because_of`](Self::because_of), if it says more
    /// than that time passed.
    pub(crate) fn remember(&self, last: &mut Option<ClientError>) {
        match self {
            ClientError::Timeout { last: None, .. } if last.is_some() => {}
            // Where it led says more.
            ClientError::Broker(error) if error.redirect_url.is_some() && last.is_some() => {}
            ClientError::Timeout {
                last: Some(cause), ..
            } => *last = Some((**cause).clone()),
            other => *last = Some(other.clone()),
        }
    }

    /// What to tell when there is no time for another attempt: where brokers point at each other,
    /// why the one that a redirect led to did not do it.
    pub(crate) fn or_cause(self, cause: Option<ClientError>) -> ClientError {
        match (&self, cause) {
            (ClientError::Broker(error), Some(cause)) if error.redirect_url.is_some() => cause,
            _ => self,
        }
    }

    /// The same failure with what is known of one request that it ended.
    pub(crate) fn with_outcome(mut self, known: Outcome) -> ClientError {
        match &mut self {
            ClientError::Timeout { outcome, .. }
            | ClientError::Connection { outcome, .. }
            | ClientError::Closed { outcome, .. } => *outcome = known,
            ClientError::Broker(error)
            | ClientError::Unauthenticated(error)
            | ClientError::PermissionDenied(error) => error.outcome = known,
            _ => {}
        }
        self
    }

    /// What the application can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            ClientError::Connect { .. } => ErrorKind::Connect,
            ClientError::Timeout { .. } => ErrorKind::Timeout,
            ClientError::Url { .. }
            | ClientError::Name(_)
            | ClientError::Invalid(_)
            | ClientError::TooLarge { .. } => ErrorKind::Invalid,
            ClientError::Broker(error) => error.kind(),
            ClientError::Unauthenticated(_) | ClientError::PermissionDenied(_) => {
                ErrorKind::Refused
            }
            ClientError::Credential { retryable, .. } => match retryable {
                true => ErrorKind::Unavailable,
                false => ErrorKind::Invalid,
            },
            ClientError::Connection { .. } => ErrorKind::Unavailable,
            ClientError::Damaged(_) => ErrorKind::Damaged,
            ClientError::Protocol(_) => ErrorKind::Internal,
            ClientError::Stale => ErrorKind::Busy,
            ClientError::EndOfTopic => ErrorKind::EndOfTopic,
            ClientError::Closed { .. } => ErrorKind::Closed,
        }
    }

    /// Whether the same request may succeed later, unchanged. The SDK has already retried until
    /// its deadline where that was safe.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            // What is damaged in storage stays so.
            ClientError::Broker(error) => error.retryable && error.code != v1::ErrorCode::DataLoss,
            ClientError::Credential { retryable, .. } => *retryable,
            ClientError::Connect { .. }
            | ClientError::Timeout { .. }
            | ClientError::Connection { .. } => true,
            _ => false,
        }
    }

    /// What may have become of the request. With [`Outcome::Unknown`] a repeated message is
    /// stored once only if it carries the same sequence id.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            ClientError::Timeout { outcome, .. }
            | ClientError::Connection { outcome, .. }
            | ClientError::Closed { outcome, .. } => *outcome,
            ClientError::Broker(error)
            | ClientError::Unauthenticated(error)
            | ClientError::PermissionDenied(error) => error.outcome,
            ClientError::Protocol(_) => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// The protocol's code, where a broker answered with one; of a timeout, that of the last
    /// attempt.
    #[must_use]
    pub fn code(&self) -> Option<v1::ErrorCode> {
        match self {
            ClientError::Broker(error)
            | ClientError::Unauthenticated(error)
            | ClientError::PermissionDenied(error) => Some(error.code),
            ClientError::Timeout { last, .. } => last.as_ref()?.code(),
            _ => None,
        }
    }
}

impl BrokerError {
    fn kind(&self) -> ErrorKind {
        use v1::ErrorCode as Code;
        match self.code {
            Code::InvalidArgument | Code::TooLarge => ErrorKind::Invalid,
            Code::NotFound => ErrorKind::NotFound,
            Code::AlreadyExists => ErrorKind::AlreadyExists,
            Code::FailedPrecondition | Code::ProducerBusy | Code::Conflict => ErrorKind::Busy,
            Code::PermissionDenied | Code::Unauthenticated | Code::QuotaExceeded => {
                ErrorKind::Refused
            }
            Code::Checksum | Code::DataLoss => ErrorKind::Damaged,
            Code::Overloaded | Code::StorageFull | Code::Unavailable | Code::Redirect => {
                ErrorKind::Unavailable
            }
            Code::Fenced | Code::Incarnation | Code::Terminated => ErrorKind::Fenced,
            Code::Timeout => ErrorKind::Timeout,
            Code::Unspecified | Code::UnsupportedVersion | Code::Unimplemented | Code::Internal => {
                ErrorKind::Internal
            }
        }
    }
}
