//! The native protocol: gRPC. It serves the broker through the same narrow port as every other
//! protocol (`aquifer-protocol-api`) and sees nothing else of it.
//!
//! A handler parses, calls once and converts; it decides nothing about topics. What it owns is the
//! wire: versions, limits, deadlines, and that a peer which sends nonsense, too much, or nothing
//! at all gets a typed error and cannot grow this process's memory (I13): requests are read as
//! budgets allow (`inbound.rs`), replies keep the bytes of their deliveries until they are sent,
//! and everything beyond waits in HTTP/2 windows.
#![deny(missing_docs)]

mod admin;
pub mod authenticate;
mod backup;
pub mod config;
mod connection;
mod consume;
mod context;
mod convert;
#[cfg(test)]
mod fuzz;
mod inbound;
mod metrics;
mod operator;
mod produce;
mod pull;
mod request_id;
mod security;
mod service;
mod stats;
mod status;
mod stream;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aquifer_model::limits::{FRAME_BYTES_MAX, UNARY_REQUEST_BYTES_MAX};
use aquifer_model::listener::{Listener, Listeners};
use aquifer_proto::v1::admin_server::AdminServer;
use aquifer_proto::v1::backup_server::BackupServer;
use aquifer_proto::v1::broker_server::BrokerServer;
use aquifer_proto::v1::operator_server::OperatorServer;
use aquifer_proto::v1::pull_server::PullServer;
use aquifer_proto::v1::security_server::SecurityServer;
use aquifer_protocol_api::BrokerApi;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::handler::ProtocolHandler;
use aquifer_runtime::clock::{SharedClock, sleep};
use aquifer_runtime::net;
use aquifer_runtime::net::tls::{Reloads, ServerTls};
use aquifer_runtime::rng::{SharedRng, SystemRng};
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use opentelemetry::metrics::Meter;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tonic::transport::Server;
use tower::ServiceBuilder;
use tower::util::{BoxCloneSyncService, MapRequestLayer, MapResponseLayer};

use crate::config::GrpcConfig;
use crate::inbound::Gate;
pub use crate::metrics::HISTOGRAMS;
use crate::metrics::Metrics;
use crate::service::Service;

/// Streams that a peer opened and reset before they were served; more end the connection.
const RESET_STREAMS_MAX: usize = 64;
/// Streams that were reset here and are still remembered.
const LOCAL_RESET_STREAMS_MAX: usize = 256;
/// Quiet time before the operating system probes a connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// How long a shutdown waits for last words to be sent and connections to close, after every
/// request has ended.
const CLOSING_GRACE: Duration = Duration::from_millis(250);

/// The services of administration in this process: what is called here went through the same
/// admission as what came over a connection.
pub type Administration = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Serves the native protocol.
pub struct GrpcHandler {
    config: GrpcConfig,
    clock: SharedClock,
    metrics: Metrics,
    gate: Gate,
    rng: SharedRng,
    /// Of each listener, in their order.
    tls: Vec<Option<Arc<ServerTls>>>,
    advertised: OnceLock<Listeners>,
}

impl GrpcHandler {
    /// A handler that serves once [`ProtocolHandler::serve`] is called.
    ///
    /// # Errors
    /// When the configuration is not valid, or a certificate cannot be used.
    pub fn new(
        config: GrpcConfig,
        clock: SharedClock,
        meter: &Meter,
    ) -> Result<GrpcHandler, ApiError> {
        config
            .validate()
            .map_err(|message| ApiError::new(ErrorKind::InvalidArgument, message))?;
        let failed = |text: String| ApiError::new(ErrorKind::FailedPrecondition, text);
        let mut tls = Vec::new();
        for (name, listener) in config.all_listeners().map_err(failed)? {
            let port = format!("{} {name}", context::PROTOCOL);
            let loaded = ServerTls::http2(&port, &listener.tls, Arc::clone(&clock));
            tls.push(loaded.map_err(|error| failed(error.to_string()))?);
        }
        Ok(GrpcHandler {
            gate: Gate::new(&config),
            // Ids of requests decide nothing.
            rng: SystemRng::shared(),
            config,
            tls,
            clock,
            metrics: Metrics::new(meter),
            advertised: OnceLock::new(),
        })
    }

    /// The services of administration for other protocols of this process, without a connection.
    /// The caller, and where it calls from, are told in the extensions of a request. A shutdown of
    /// `tasks` waits for calls that have begun.
    pub fn administration(&self, broker: Arc<dyn BrokerApi>, tasks: &TaskGroup) -> Administration {
        let service = self.service(broker, tasks);
        let gate = self.gate.clone();
        let layers = ServiceBuilder::new()
            .layer(MapResponseLayer::new(status::complete::<Body>))
            .layer(authenticate::layer(&service.broker))
            .layer(MapRequestLayer::new(move |request| gate.admit(request)));
        let routes = administrative(&service).prepare();
        let shutdown = tasks.shutdown_token();
        tasks.spawn("administration", async move {
            shutdown.wait().await;
            service.idle().await;
        });
        BoxCloneSyncService::new(layers.service(routes))
    }

    fn service(&self, broker: Arc<dyn BrokerApi>, tasks: &TaskGroup) -> Service {
        Service::new(
            broker,
            self.config.clone(),
            self.clock.clone(),
            self.metrics.clone(),
            tasks.clone(),
        )
    }

    fn server(&self) -> Server {
        let config = &self.config;
        Server::builder()
            .initial_stream_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes)
            .max_frame_size(config.http2_frame_bytes)
            .max_concurrent_streams(config.streams_per_connection_max)
            .http2_max_header_list_size(config.header_list_bytes_max)
            .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
            .http2_max_local_error_reset_streams(Some(LOCAL_RESET_STREAMS_MAX))
            .http2_keepalive_interval(Some(config.keepalive_interval()))
            .http2_keepalive_timeout(Some(config.keepalive_timeout()))
            .tcp_keepalive(Some(TCP_KEEPALIVE))
    }
}

#[async_trait]
impl ProtocolHandler for GrpcHandler {
    fn name(&self) -> &'static str {
        context::PROTOCOL
    }

    fn advertised(&self) -> Listeners {
        self.advertised.get().cloned().unwrap_or_default()
    }

    fn reloads(&self) -> Vec<Arc<dyn Reloads>> {
        let tls = self.tls.iter().flatten().cloned();
        tls.map(|tls| tls as Arc<dyn Reloads>).collect()
    }

    async fn serve(
        &self,
        broker: Arc<dyn BrokerApi>,
        tasks: TaskGroup,
    ) -> Result<SocketAddr, ApiError> {
        let failed = |text: String| ApiError::new(ErrorKind::FailedPrecondition, text);
        let mut sockets = Vec::new();
        let mut advertised = Vec::new();
        let listeners = self.config.all_listeners().map_err(failed)?;
        for ((name, listener), tls) in listeners.into_iter().zip(&self.tls) {
            let bound = net::bind(listener.listen).await;
            let (socket, address) = bound.map_err(|error| failed(error.to_string()))?;
            let url = listener.advertised_url;
            let scheme = match tls {
                Some(_) => "https",
                None => "http",
            };
            let url = url.unwrap_or_else(|| format!("{scheme}://{address}"));
            sockets.push((name.clone(), (socket, tls.clone()), address));
            advertised.push(Listener { name, url });
        }
        let default = sockets.first().map(|(_, _, address)| *address);
        let default = default.ok_or_else(|| failed("grpc has no listener".to_owned()))?;
        let advertised = Listeners::new(advertised);
        self.advertised
            .set(advertised.map_err(|error| failed(error.to_string()))?)
            .map_err(|_| failed("grpc is served already".to_owned()))?;
        let service = self.service(broker, &tasks);
        let gate = self.gate.clone();
        let slots = connection::slots(&self.config);
        let way_in = gate.clone();
        self.metrics.watch_inbound(move || way_in.used_bytes());
        for (name, socket, address) in sockets {
            tracing::debug!(listener = %name, %address, "grpc listens");
            let (gate, slots) = (gate.clone(), Arc::clone(&slots));
            self.listen(service.at(name), socket, slots, gate, &tasks);
        }
        Ok(default)
    }
}

/// The services that administer: those that other protocols may offer in forms of their own.
fn administrative(service: &Service) -> Routes {
    let admin = AdminServer::new(service.clone());
    let operator = OperatorServer::new(service.clone());
    let security = SecurityServer::new(service.clone());
    Routes::new(admin.max_decoding_message_size(UNARY_REQUEST_BYTES_MAX))
        .add_service(operator.max_decoding_message_size(UNARY_REQUEST_BYTES_MAX))
        .add_service(security.max_decoding_message_size(UNARY_REQUEST_BYTES_MAX))
}

/// Where connections come in, and with which certificate.
type Socket = (TcpListener, Option<Arc<ServerTls>>);

impl GrpcHandler {
    /// Serves what comes in through one listener.
    fn listen(
        &self,
        service: Service,
        socket: Socket,
        slots: Arc<Semaphore>,
        gate: Gate,
        tasks: &TaskGroup,
    ) {
        let broker_server =
            BrokerServer::new(service.clone()).max_decoding_message_size(FRAME_BYTES_MAX);
        let backup_server = BackupServer::new(service.clone());
        let backup_server = backup_server.max_decoding_message_size(UNARY_REQUEST_BYTES_MAX);
        let pull_server =
            PullServer::new(service.clone()).max_decoding_message_size(FRAME_BYTES_MAX);
        let way_in = gate.clone();
        let router = self
            .server()
            .layer(request_id::layer(&self.rng))
            .layer(MapResponseLayer::new(status::complete::<Body>))
            .layer(authenticate::layer(&service.broker))
            .layer(MapResponseLayer::new(pull::keep_held))
            .layer(MapRequestLayer::new(move |request| way_in.admit(request)))
            .add_routes(administrative(&service))
            .add_service(backup_server)
            .add_service(broker_server)
            .add_service(pull_server);
        let (config, clock) = (&self.config, self.clock.clone());
        let metrics = self.metrics.clone();
        let incoming = connection::accept(socket, config, slots, gate, clock, metrics);
        let shutdown = tasks.shutdown_token();
        let stopping = tasks.shutdown_token();
        tasks.spawn("grpc-server", async move {
            let stop = async move { shutdown.wait().await };
            // A peer that is frozen never answers our goodbye. What was begun for it ends by the
            // same token; after that nothing is worth waiting for.
            let finished = async {
                stopping.wait().await;
                service.idle().await;
                sleep(CLOSING_GRACE).await;
            };
            tokio::select! {
                served = router.serve_with_incoming_shutdown(incoming, stop) => {
                    if let Err(error) = served {
                        tracing::error!(%error, "the gRPC server failed");
                    }
                }
                () = finished => tracing::debug!("connections left open by their peers"),
            }
        });
    }
}
