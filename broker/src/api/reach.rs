//! How far a request about one topic goes.
//!
//! Clients of the native protocol are told which broker serves the topic, and ask that one. A
//! protocol whose clients cannot follow has this broker ask the owner, as it asks owners of
//! partitions. Whether the caller may is decided here; the owner knows this broker by its
//! certificate. Brokers ask each other over the native protocol, so that no request goes on from
//! the broker that it was sent to.

use std::future::Future;
use std::sync::Arc;

use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::peers::{Peers, peer_url};

/// Where a request about one topic is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Here, or the caller is told where.
    Here,
    /// Wherever the topic is served.
    Anywhere,
}

impl Reach {
    /// That of a caller.
    pub(super) fn of(ctx: &RequestContext) -> Reach {
        match ctx.follows_redirects {
            true => Reach::Here,
            false => Reach::Anywhere,
        }
    }
}

impl Broker {
    /// The outcome of a request here, or, where another broker serves the topic and the caller
    /// cannot go there, what that broker answers.
    pub(super) async fn at_owner<T, G>(
        &self,
        reach: Reach,
        here: impl Future<Output = Result<T, BrokerError>> + Send,
        there: impl FnOnce(Arc<dyn Peers>, String) -> G + Send,
    ) -> Result<T, BrokerError>
    where
        G: Future<Output = ApiResult<T>> + Send,
    {
        match here.await {
            Err(BrokerError::Elsewhere { at, .. }) if reach == Reach::Anywhere => {
                let peers = Arc::clone(self.shared.peers()?);
                let answer = there(peers, peer_url(&at).to_owned()).await;
                answer.map_err(|error| last_word(error).into())
            }
            outcome => outcome,
        }
    }
}

/// An error that reaches a user: there is no other broker to ask.
pub(super) fn last_word(error: ApiError) -> ApiError {
    match error.kind {
        ErrorKind::Redirect => ApiError::new(ErrorKind::Unavailable, error.message)
            .advise("try again: the topic is moving between brokers"),
        _ => error,
    }
}
