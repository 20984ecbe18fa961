//! The HTTP port: `/healthz` (the process works), `/readyz` (it serves), `/metrics` (Prometheus),
//! and, where there is a broker, REST below `/api/v1/`. It opens first and closes last.

use std::sync::Arc;

use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_runtime::net;
use aquifer_runtime::task::TaskGroup;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_service::Service;

use crate::exit::CliError;
use crate::roles::health::Health;
use crate::roles::settings::HttpConfig;
use crate::roles::storage::Seams;
use crate::roles::tls::Certificates;

/// What an orchestrator asks, whatever others do with this port.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// The port of a process.
pub struct Port {
    /// What it answers.
    pub health: Health,
    /// Where it is.
    pub url: String,
    /// Certificates of the process; that of this port is the first.
    pub certificates: Certificates,
}

/// Opens the port, which serves until `tasks` shuts down.
///
/// # Errors
/// When the address cannot be bound, or a certificate cannot be used.
pub async fn open(
    config: &HttpConfig,
    health: Health,
    seams: &Seams,
    tasks: &TaskGroup,
) -> Result<Port, CliError> {
    let certificates = Certificates::new(Arc::clone(&seams.clock));
    let tls = certificates.http_port(&config.tls)?;
    let scheme = match tls {
        Some(_) => "https",
        None => "http",
    };
    let bound = net::bind(config.listen).await;
    let (listener, bound) = bound.map_err(|error| CliError::failed(error.to_string()))?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(rest)
        .with_state(health.clone());
    net::http::serve(listener, tls, &PROBES, router, tasks);
    Ok(Port {
        health,
        url: format!("{scheme}://{bound}"),
        certificates,
    })
}

async fn healthz(State(health): State<Health>) -> Response {
    answer(health.healthy())
}

async fn readyz(State(health): State<Health>) -> Response {
    answer(health.ready())
}

async fn metrics(State(health): State<Health>, headers: HeaderMap) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    match health.metrics(&headers) {
        Ok(text) => (kind, text).into_response(),
        Err(error) => refused(&error),
    }
}

/// Everything else.
async fn rest(State(health): State<Health>, request: Request) -> Response {
    match health.rest() {
        Some(Ok(mut rest)) => match rest.call(request).await {
            Ok(answer) => answer.into_response(),
            Err(never) => match never {},
        },
        Some(Err(pending)) => answer(Err(pending)),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn refused(error: &ApiError) -> Response {
    let text = format!("{error}\n{}\n", error.advice);
    match error.kind {
        ErrorKind::Unauthenticated => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, challenge, text).into_response()
        }
        ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, text).into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}

fn answer(state: Result<String, String>) -> Response {
    match state {
        Ok(text) => (StatusCode::OK, text).into_response(),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}
