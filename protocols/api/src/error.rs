//! The kinds of failure that a protocol can tell its clients apart. Mapped once per protocol, in
//! its `status.rs`, in an exhaustive match.

use aquifer_model::listener::Listeners;
pub use aquifer_model::outcome::Outcome;
use thiserror::Error;

/// Result of every call.
pub type ApiResult<T> = Result<T, ApiError>;

/// A kind exists only where the caller acts differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong.
    InvalidArgument,
    /// Topic, subscription, namespace or tenant does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// Not allowed.
    PermissionDenied,
    /// The caller is not known: its credential is missing, or not accepted.
    Unauthenticated,
    /// A bound of the tenant or broker is reached.
    QuotaExceeded,
    /// Message, batch or frame beyond its bound.
    TooLarge,
    /// Bytes were damaged on the way.
    Checksum,
    /// Too much in flight; retry.
    Overloaded,
    /// Read-only for lack of space; retry.
    StorageFull,
    /// Not now; retry.
    Unavailable,
    /// Another broker serves this; see [`ApiError::redirect`].
    Redirect,
    /// Taken over by another producer or owner.
    Fenced,
    /// A live producer of this name exists.
    ProducerBusy,
    /// The topic was deleted and created again.
    Incarnation,
    /// Stored data is damaged or in limbo.
    DataLoss,
    /// No answer in time.
    Timeout,
    /// The peer speaks no version that we speak.
    UnsupportedVersion,
    /// Not built.
    Unimplemented,
    /// A bug.
    Internal,
    /// It has another version than the request names.
    Conflict,
    /// The topic takes no more messages, for good.
    Terminated,
}

impl ErrorKind {
    /// Every kind, so that tests can go through all of them.
    pub const ALL: [ErrorKind; 23] = [
        ErrorKind::InvalidArgument,
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::FailedPrecondition,
        ErrorKind::PermissionDenied,
        ErrorKind::Unauthenticated,
        ErrorKind::QuotaExceeded,
        ErrorKind::TooLarge,
        ErrorKind::Checksum,
        ErrorKind::Overloaded,
        ErrorKind::StorageFull,
        ErrorKind::Unavailable,
        ErrorKind::Redirect,
        ErrorKind::Fenced,
        ErrorKind::ProducerBusy,
        ErrorKind::Incarnation,
        ErrorKind::DataLoss,
        ErrorKind::Timeout,
        ErrorKind::UnsupportedVersion,
        ErrorKind::Unimplemented,
        ErrorKind::Internal,
        ErrorKind::Conflict,
        ErrorKind::Terminated,
    ];

    /// Whether the same request may succeed later, unchanged.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            ErrorKind::Overloaded
                | ErrorKind::StorageFull
                | ErrorKind::Unavailable
                | ErrorKind::Redirect
                | ErrorKind::ProducerBusy
                | ErrorKind::Timeout
        )
    }
}

/// A failure as a protocol sees it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What may have become of the request.
    pub outcome: Outcome,
    /// What happened.
    pub message: String,
    /// What to do about it; may be empty.
    pub advice: String,
    /// With [`ErrorKind::Redirect`]: the addresses of the broker to go to. A handler tells the one
    /// of the listener that its client came in through.
    pub redirect: Option<Listeners>,
}

impl ApiError {
    /// A failure that changed nothing.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> ApiError {
        ApiError {
            kind,
            outcome: Outcome::NotApplied,
            message: message.into(),
            advice: String::new(),
            redirect: None,
        }
    }

    /// The same with advice.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> ApiError {
        self.advice = advice.into();
        self
    }

    /// The same with another outcome.
    #[must_use]
    pub fn outcome(mut self, outcome: Outcome) -> ApiError {
        self.outcome = outcome;
        self
    }
}
