//! The end of a session that its broker wants: its caller's credential has expired, or what allowed
//! the session was taken away.

use tokio::sync::oneshot;

use crate::error::{ApiError, ErrorKind};

/// Tells once that a session must end, and why. A handler waits for it beside everything else that
/// the session does, takes nothing more from the client then, lets what was accepted be answered,
/// and makes the error the session's last word.
#[derive(Debug, Default)]
pub struct SessionEnd(Option<oneshot::Receiver<ApiError>>);

impl SessionEnd {
    /// It never comes: nothing is authenticated.
    #[must_use]
    pub fn never() -> SessionEnd {
        SessionEnd(None)
    }

    /// It comes with this.
    #[must_use]
    pub fn when(told: oneshot::Receiver<ApiError>) -> SessionEnd {
        SessionEnd(Some(told))
    }

    /// Waits for it. A broker that goes away without a word has judged nothing any more, so the
    /// session ends then too.
    pub async fn wait(self) -> ApiError {
        let Some(told) = self.0 else {
            return std::future::pending().await;
        };
        told.await.unwrap_or_else(|_| {
            ApiError::new(ErrorKind::Unavailable, "the broker is shutting down")
                .advise("open a new session")
        })
    }
}
