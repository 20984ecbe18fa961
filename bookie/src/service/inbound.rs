//! What clients send is read under a budget, before anything of it is decoded (I13).

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::limits::{FRAME_BYTES_MAX, UNARY_REQUEST_BYTES_MAX};
use aquifer_proto::shape::request_element_bytes;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::inbound::{
    BodyError, InboundBody, InboundBudgets, InboundError, InboundLimits,
};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Request;

/// Bytes of requests that may be read at once, and as many again that wait for that.
const BYTES_MAX: usize = 64 << 20;
/// Unary calls that may be read at once.
const CALLS_MAX: usize = 4096;
/// A message that was begun must be complete within this.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The method whose requests are a stream.
const STREAM: &str = "/aquifer.v1.Bookie/Ordered";

/// The way in for all requests.
#[derive(Clone)]
pub(super) struct InboundBodies {
    budgets: InboundBudgets,
}

impl InboundBodies {
    pub(super) fn new() -> InboundBodies {
        InboundBodies {
            budgets: InboundBudgets {
                room: ByteBudget::new(BYTES_MAX),
                waiting: ByteBudget::new(BYTES_MAX),
                calls: Arc::new(Semaphore::new(CALLS_MAX)),
            },
        }
    }

    /// Puts a request's body behind this.
    pub(super) fn admit(&self, request: Request<Body>) -> Request<Body> {
        let unary = request.uri().path() != STREAM;
        let limits = InboundLimits {
            message_bytes_max: match unary {
                true => UNARY_REQUEST_BYTES_MAX,
                false => FRAME_BYTES_MAX,
            },
            message_timeout: MESSAGE_TIMEOUT,
            unary,
            decoded_bytes: request_element_bytes,
        };
        // One budget for all: a bookie has few clients, which are the brokers of its cluster.
        let budgets = self.budgets.clone();
        request.map(|body| Body::new(InboundBody::new(body, limits, budgets, refuse).0))
    }
}

fn refuse(error: InboundError) -> BodyError {
    let text = error.to_string();
    Box::new(match error {
        InboundError::TooLarge { .. } => Status::out_of_range(text),
        InboundError::Late(_) => Status::deadline_exceeded(text),
        InboundError::Overloaded => Status::resource_exhausted(text),
    })
}
