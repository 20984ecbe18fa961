//! Health checks and metrics: `/healthz` (the process works), `/readyz` (it serves), `/metrics`
//! (Prometheus).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_bookie::{Bookie, BookieMode};
use aquifer_runtime::net::{self, ListenAddress};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::exit::CliError;

/// What the answers are made of.
#[derive(Clone)]
pub struct Health {
    telemetry: Telemetry,
    bookie: Option<Bookie>,
    serving: Arc<AtomicBool>,
}

impl Health {
    /// Healthy, and not ready until [`Health::set_serving`] says so.
    /// The state of the bookie counts, where the process has one.
    pub fn new(telemetry: Telemetry, bookie: Option<Bookie>) -> Health {
        Health {
            telemetry,
            bookie,
            serving: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Says whether clients should come here.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    fn healthy(&self) -> Result<String, String> {
        let status = self.bookie.as_ref().map(Bookie::status);
        let limbo = status.as_ref().is_some_and(|status| status.limbo.is_some());
        match status.map(|status| status.mode) {
            None | Some(BookieMode::Writable) if !limbo => Ok("ok\n".to_owned()),
            // What is there is served, and others have the rest.
            None | Some(BookieMode::Writable) => {
                Ok("ok, storage is in limbo: it lost synced data\n".to_owned())
            }
            // Reads are served, and publishing resumes by itself when space returns.
            Some(BookieMode::ReadOnly(reason)) => {
                Ok(format!("ok, storage is read-only: {reason}\n"))
            }
            Some(BookieMode::Failed(reason)) => Err(format!("storage failed: {reason}\n")),
        }
    }

    fn ready(&self) -> Result<String, String> {
        if !self.serving.load(Ordering::Acquire) {
            return Err("not serving: starting or shutting down\n".to_owned());
        }
        self.healthy()
    }
}

/// Serves until `tasks` shuts down.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    listen: ListenAddress,
    health: Health,
    tasks: &TaskGroup,
) -> Result<SocketAddr, CliError> {
    let bound = net::bind(listen).await;
    let (listener, bound) = bound.map_err(|error| CliError::failed(error.to_string()))?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    let shutdown = tasks.shutdown_token();
    tasks.spawn("http", async move {
        let stop = async move { shutdown.wait().await };
        let served = axum::serve(listener, router).with_graceful_shutdown(stop);
        if let Err(error) = served.await {
            tracing::error!(%error, "the HTTP server failed");
        }
    });
    Ok(bound)
}

async fn healthz(State(health): State<Health>) -> Response {
    answer(health.healthy())
}

async fn readyz(State(health): State<Health>) -> Response {
    answer(health.ready())
}

async fn metrics(State(health): State<Health>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, health.telemetry.render_metrics()).into_response()
}

fn answer(state: Result<String, String>) -> Response {
    match state {
        Ok(text) => (StatusCode::OK, text).into_response(),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}
