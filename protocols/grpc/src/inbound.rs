//! Puts what peers send under budgets, before anything of it is decoded (I13): every request body
//! is read through `aquifer_runtime::inbound`. Each connection has a share of its own, so that one
//! peer which sends beginnings and no ends leaves room to the others.

use std::sync::Arc;

use aquifer_model::limits::{FRAME_BYTES_MAX, UNARY_REQUEST_BYTES_MAX};
use aquifer_proto::shape::request_element_bytes;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::inbound::{
    BodyError, InboundBody, InboundBudgets, InboundError, InboundLimits,
};
use aquifer_runtime::net::stream::SharedCertificate;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::transport::server::TcpConnectInfo;

use crate::config::GrpcConfig;
use crate::status;

/// Methods whose requests are streams.
const STREAMS: [&str; 2] = ["/aquifer.v1.Broker/Produce", "/aquifer.v1.Broker/Consume"];
/// The unary method whose request is as large as a message of a stream.
const APPEND: &str = "/aquifer.v1.Pull/Append";
/// The unary method that may wait for as long as its client likes.
const READ: &str = "/aquifer.v1.Pull/Read";

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) tcp: TcpConnectInfo,
    pub(crate) room: ByteBudget,
    pub(crate) certificate: SharedCertificate,
}

/// The way in for all requests of a server.
#[derive(Clone)]
pub(crate) struct Gate {
    budgets: InboundBudgets,
    stream: InboundLimits,
    unary: InboundLimits,
    append: InboundLimits,
    /// Places of reads, which wait for messages, and of appends, which wait for rates: other calls
    /// keep theirs.
    reads: Arc<Semaphore>,
    appends: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new(config: &GrpcConfig) -> Gate {
        let stream = InboundLimits {
            message_bytes_max: FRAME_BYTES_MAX,
            message_timeout: config.message_timeout(),
            unary: false,
            decoded_bytes: request_element_bytes,
        };
        let places = |max: usize| Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Gate {
            reads: places(config.reads_max),
            appends: places(config.appends_max),
            budgets: InboundBudgets {
                room: ByteBudget::new(config.inbound_bytes_max),
                waiting: ByteBudget::new(config.inbound_bytes_max),
                calls: places(config.calls_max),
            },
            stream,
            unary: InboundLimits {
                message_bytes_max: UNARY_REQUEST_BYTES_MAX,
                unary: true,
                ..stream
            },
            append: InboundLimits {
                unary: true,
                ..stream
            },
        }
    }

    /// The share of a new connection.
    pub(crate) fn connection(&self) -> ByteBudget {
        self.budgets.room.child(usize::MAX)
    }

    /// What messages hold while they are read, and what waits for that.
    pub(crate) fn used_bytes(&self) -> usize {
        self.budgets.room.used_bytes() + self.budgets.waiting.used_bytes()
    }

    /// Puts a request's body behind the gate.
    pub(crate) fn admit(&self, mut request: Request<Body>) -> Request<Body> {
        let mut budgets = self.budgets.clone();
        if let Some(peer) = request.extensions_mut().remove::<Peer>() {
            budgets.room = peer.room;
            request.extensions_mut().insert(peer.tcp);
        }
        let limits = match request.uri().path() {
            APPEND => {
                budgets.calls = Arc::clone(&self.appends);
                self.append
            }
            READ => {
                budgets.calls = Arc::clone(&self.reads);
                self.unary
            }
            path if STREAMS.contains(&path) => self.stream,
            _ => self.unary,
        };
        let mut handle = None;
        let mut request = request.map(|body| {
            let (body, inbound) = InboundBody::new(body, limits, budgets, refuse);
            handle = Some(inbound);
            Body::new(body)
        });
        if let Some(inbound) = handle {
            request.extensions_mut().insert(inbound);
        }
        request
    }
}

fn refuse(error: InboundError) -> BodyError {
    let text = error.to_string();
    let error = match error {
        InboundError::TooLarge { .. } => {
            ApiError::new(ErrorKind::TooLarge, text).advise("send smaller messages or batches")
        }
        InboundError::Late(_) => ApiError::new(ErrorKind::Timeout, text)
            .advise("send a message at once when it is begun"),
        InboundError::Overloaded => {
            ApiError::new(ErrorKind::Overloaded, text).advise("retry later, or send less at once")
        }
    };
    Box::new(status::status(&error))
}
