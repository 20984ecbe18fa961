//! The HTTP port: `/healthz` (the process works), `/readyz` (it serves), `/metrics` (Prometheus),
//! and, where there is a broker, REST below `/api/v1/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_bookie::{Bookie, BookieMode};
use aquifer_metadata::lease::Lease;
use aquifer_protocol_api::BrokerApi;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::security::Shown;
use aquifer_protocol_registry::RestService;
use aquifer_runtime::net::bearer::bearer;
use aquifer_runtime::net::tls::ServerTls;
use aquifer_runtime::net::{self, ListenAddress};
use aquifer_runtime::secret::{self, Secret};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::exit::CliError;

/// The name of this port, in the record of who asked.
const PROTOCOL: &str = "http";
/// What an orchestrator asks, whatever others do with this port.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// What the answers are made of.
#[derive(Clone)]
pub struct Health {
    telemetry: Telemetry,
    bookie: Option<Bookie>,
    /// Under which the process serves, where others can take over from it.
    lease: Option<Lease>,
    serving: Arc<AtomicBool>,
    /// Who may read metrics.
    guard: Option<MetricsGuard>,
}

/// Decides who may read metrics.
#[derive(Clone)]
struct MetricsGuard {
    /// Without one, the token of scrapers alone opens them.
    broker: Option<Arc<dyn BrokerApi>>,
    scrape_token: Option<Secret>,
}

impl Health {
    /// Healthy, and not ready until [`Health::set_serving`] says so.
    /// The state of the bookie counts, where the process has one.
    pub fn new(telemetry: Telemetry, bookie: Option<Bookie>) -> Health {
        Health {
            telemetry,
            bookie,
            lease: None,
            serving: Arc::new(AtomicBool::new(false)),
            guard: None,
        }
    }

    /// The same, where metrics are for those that may describe the cluster or have the token of
    /// scrapers, if the broker authenticates its callers.
    pub fn guarded_by(self, broker: Arc<dyn BrokerApi>, scrape_token: Option<Secret>) -> Health {
        let is_open = !broker.authenticates();
        let guard = MetricsGuard {
            broker: Some(broker),
            scrape_token,
        };
        Health {
            guard: Some(guard).filter(|_| !is_open),
            ..self
        }
    }

    /// The same of a process without clients, where metrics are for those that have the token of
    /// scrapers, if there is one.
    pub fn scraped_with(self, scrape_token: Option<Secret>) -> Health {
        let guard = scrape_token.map(|token| MetricsGuard {
            broker: None,
            scrape_token: Some(token),
        });
        Health { guard, ..self }
    }

    fn may_read_metrics(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(guard) = &self.guard else {
            return Ok(());
        };
        let token = bearer(headers);
        if let (Ok(Some(shown)), Some(expected)) = (token, &guard.scrape_token)
            && secret::same(shown.as_bytes(), expected.expose().as_bytes())
        {
            return Ok(());
        }
        let Some(broker) = &guard.broker else {
            let text = "the token of scrapers is missing or wrong";
            let advice = "show the token of the file auth.scrape_token_file";
            return Err(ApiError::new(ErrorKind::Unauthenticated, text).advise(advice));
        };
        let principal = broker.authenticate(&Shown {
            bearer: token,
            certificate: None,
            peer: None,
            protocol: PROTOCOL,
            request: "/metrics",
            request_id: None,
        })?;
        let ctx = RequestContext::of(principal, PROTOCOL);
        broker.may_read_metrics(&ctx)
    }

    /// The same, and not ready without this lease: another broker may have taken over, and new
    /// clients can open nothing here.
    pub fn under(self, lease: Lease) -> Health {
        Health {
            lease: Some(lease),
            ..self
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
        if self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.held().is_none())
        {
            return Err("not serving: it holds no lease in the metadata store\n".to_owned());
        }
        self.healthy()
    }
}

/// Serves until `tasks` shuts down, in plain text without `tls`, and answers where. Whatever is not
/// served here is left to `rest`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    listen: ListenAddress,
    tls: Option<Arc<ServerTls>>,
    health: Health,
    rest: Option<RestService>,
    tasks: &TaskGroup,
) -> Result<String, CliError> {
    let scheme = match tls {
        Some(_) => "https",
        None => "http",
    };
    let bound = net::bind(listen).await;
    let (listener, bound) = bound.map_err(|error| CliError::failed(error.to_string()))?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    let router = match rest {
        Some(rest) => router.fallback_service(rest),
        None => router,
    };
    net::http::serve(listener, tls, &PROBES, router, tasks);
    Ok(format!("{scheme}://{bound}"))
}

async fn healthz(State(health): State<Health>) -> Response {
    answer(health.healthy())
}

async fn readyz(State(health): State<Health>) -> Response {
    answer(health.ready())
}

async fn metrics(State(health): State<Health>, headers: HeaderMap) -> Response {
    if let Err(error) = health.may_read_metrics(&headers) {
        return refused(&error);
    }
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, health.telemetry.render_metrics()).into_response()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::HeaderValue;

    use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
    use aquifer_metadata::keys;
    use aquifer_model::id::BrokerId;
    use aquifer_runtime::clock::{self, SystemClock};
    use aquifer_runtime::disk::{Disk, SimDisk};
    use aquifer_runtime::rng::SystemRng;

    use super::*;

    #[test]
    fn metrics_of_a_process_without_clients_are_for_its_scrapers() {
        let shows = |health: &Health, credential: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(credential) = credential {
                let value = HeaderValue::from_static(credential);
                headers.insert(header::AUTHORIZATION, value);
            }
            health
                .may_read_metrics(&headers)
                .map_err(|error| error.kind)
        };
        let open = Health::new(Telemetry::for_tests(), None).scraped_with(None);
        assert_eq!(shows(&open, None), Ok(()));
        let token = Secret::new("0123456789abcdef");
        let guarded = Health::new(Telemetry::for_tests(), None).scraped_with(Some(token));
        assert_eq!(shows(&guarded, Some("Bearer 0123456789abcdef")), Ok(()));
        let refused = Err(ErrorKind::Unauthenticated);
        assert_eq!(shows(&guarded, None), refused);
        assert_eq!(shows(&guarded, Some("Bearer 0123456789abcdeg")), refused);
    }

    /// A broker without a lease accepts no new clients.
    #[tokio::test]
    async fn a_broker_is_ready_while_it_holds_its_lease() {
        let disk = SimDisk::new();
        disk.create_dir_all("/data".as_ref()).unwrap();
        let tasks = TaskGroup::new("test");
        let path = "/data/metadata.redb".into();
        let clock = SystemClock::shared();
        let options = EmbeddedOptions::default();
        let store = EmbeddedStore::open(path, options, disk.shared(), clock, &tasks);
        let store = Arc::new(store.await.unwrap());
        let ttl = Duration::from_secs(30);
        let lease = Lease::start(store, ttl, SystemRng::shared(), &tasks);
        let health = Health::new(Telemetry::for_tests(), None).under(lease.clone());
        health.set_serving(true);
        assert!(health.ready().is_err(), "nothing is announced");
        assert!(health.healthy().is_ok());
        lease.set(&keys::broker(BrokerId([1; 16])), "x".into());
        let announced = clock::timeout(Duration::from_secs(30), lease.announced());
        announced.await.unwrap();
        assert_eq!(health.ready(), Ok("ok\n".to_owned()));
        lease.close().await;
        assert!(health.ready().is_err(), "the lease is gone");
    }
}
