//! What the HTTP port answers about the process: from the first moment of its start to its end.
//!
//! The port opens before anything that may take long, so that an orchestrator can tell a process
//! that replays a journal, or waits for metadata, from one that hangs.

use std::sync::{Arc, OnceLock};

use aquifer_bookie::{Bookie, BookieMode};
use aquifer_metadata::lease::Lease;
use aquifer_protocol_api::BrokerApi;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::security::Shown;
use aquifer_protocol_registry::RestService;
use aquifer_runtime::net::bearer::bearer;
use aquifer_runtime::secret::{self, Secret};
use aquifer_runtime::telemetry::Telemetry;
use axum::http::HeaderMap;
use parking_lot::Mutex;

/// The name of this port, in the record of who asked.
const PROTOCOL: &str = "http";

/// What the answers are made of; clones share it. Parts of the process are entered as they start.
#[derive(Clone)]
pub struct Health {
    state: Arc<State>,
}

struct State {
    telemetry: Telemetry,
    phase: Mutex<Phase>,
    /// Its state counts, where the process has one.
    bookie: OnceLock<Bookie>,
    /// Under which the process serves, where others can take over from it.
    lease: OnceLock<Lease>,
    broker: OnceLock<Arc<dyn BrokerApi>>,
    rest: OnceLock<RestService>,
    /// Whether the process has a broker, now or when it has started.
    has_clients: bool,
    /// Decides which callers may read metrics; without it every caller may.
    guard: Option<MetricsGuard>,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// What it does before it serves.
    Starting(&'static str),
    Serving,
    Stopping,
}

/// Decides which callers may read metrics.
struct MetricsGuard {
    scrape_token: Option<Secret>,
}

impl Health {
    /// Of a process without clients, whose metrics are for those that have the token of scrapers,
    /// if there is one.
    pub fn scraped_with(telemetry: Telemetry, scrape_token: Option<Secret>) -> Health {
        let guard = scrape_token.map(|token| MetricsGuard {
            scrape_token: Some(token),
        });
        Health::starting_up(telemetry, false, guard)
    }

    /// Of a process with a broker. Where that authenticates its callers, metrics are for those that
    /// may describe the cluster or have the token of scrapers.
    pub fn with_clients(
        telemetry: Telemetry,
        authenticates: bool,
        scrape_token: Option<Secret>,
    ) -> Health {
        let guard = authenticates.then_some(MetricsGuard { scrape_token });
        Health::starting_up(telemetry, true, guard)
    }

    fn starting_up(telemetry: Telemetry, has_clients: bool, guard: Option<MetricsGuard>) -> Health {
        let state = State {
            telemetry,
            phase: Mutex::new(Phase::Starting("the process begins")),
            bookie: OnceLock::new(),
            lease: OnceLock::new(),
            broker: OnceLock::new(),
            rest: OnceLock::new(),
            has_clients,
            guard,
        };
        let health = Health {
            state: Arc::new(state),
        };
        // The telemetry is part of the state, and must not keep it.
        let shown = Arc::downgrade(&health.state);
        health.state.telemetry.watch_ready(move || {
            let state = shown.upgrade();
            state.is_some_and(|state| Health { state }.ready().is_ok())
        });
        health
    }

    /// Says what the start does now.
    pub fn starting(&self, what: &'static str) {
        *self.state.phase.lock() = Phase::Starting(what);
    }

    /// The start is over: clients may come.
    pub fn set_serving(&self) {
        *self.state.phase.lock() = Phase::Serving;
    }

    /// Clients should go elsewhere.
    pub fn set_stopping(&self) {
        *self.state.phase.lock() = Phase::Stopping;
    }

    /// The bookie of the process has opened.
    pub fn set_bookie(&self, bookie: Bookie) {
        // A start enters each part once.
        let _ = self.state.bookie.set(bookie);
    }

    /// Without this lease the process is not ready: another broker may have taken over, and new
    /// clients can open nothing here.
    pub fn set_lease(&self, lease: Lease) {
        let _ = self.state.lease.set(lease);
    }

    /// The broker of the process has started, and REST is served.
    pub fn set_broker(&self, broker: Arc<dyn BrokerApi>, rest: RestService) {
        let _ = self.state.broker.set(broker);
        let _ = self.state.rest.set(rest);
    }

    /// REST; an answer instead while the process starts, and `None` where it has no broker.
    pub fn rest(&self) -> Option<Result<RestService, String>> {
        let rest = self.state.rest.get().cloned();
        let pending = || format!("{}\n", self.not_serving());
        self.state.has_clients.then(|| rest.ok_or_else(pending))
    }

    /// All metrics.
    ///
    /// # Errors
    /// When they are not for a caller with these headers.
    pub fn metrics(&self, headers: &HeaderMap) -> Result<String, ApiError> {
        self.may_read_metrics(headers)?;
        Ok(self.state.telemetry.render_metrics())
    }

    fn may_read_metrics(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(guard) = &self.state.guard else {
            return Ok(());
        };
        let token = bearer(headers);
        if let (Ok(Some(shown)), Some(expected)) = (token, &guard.scrape_token)
            && secret::same(shown.as_bytes(), expected.expose().as_bytes())
        {
            return Ok(());
        }
        if !self.state.has_clients {
            let text = "the token of scrapers is missing or wrong";
            let advice = "show the token of the file auth.scrape_token_file";
            return Err(ApiError::new(ErrorKind::Unauthenticated, text).advise(advice));
        }
        let Some(broker) = self.state.broker.get() else {
            let advice = "ask again when the process serves, or show the token of scrapers";
            return Err(ApiError::new(ErrorKind::Unavailable, self.not_serving()).advise(advice));
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

    /// Whether the process works: an error is a reason to end it.
    ///
    /// # Errors
    /// The reason.
    pub fn healthy(&self) -> Result<String, String> {
        let storage = self.storage()?;
        match *self.state.phase.lock() {
            // However long that takes: a restart would only begin it again.
            Phase::Starting(what) => Ok(format!("starting: {what}\n")),
            Phase::Serving | Phase::Stopping => Ok(storage),
        }
    }

    fn storage(&self) -> Result<String, String> {
        let status = self.state.bookie.get().map(Bookie::status);
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

    fn not_serving(&self) -> String {
        match *self.state.phase.lock() {
            Phase::Starting(what) => format!("not serving: starting: {what}"),
            Phase::Serving | Phase::Stopping => "not serving: shutting down".to_owned(),
        }
    }

    /// Whether clients should come here.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<String, String> {
        if *self.state.phase.lock() != Phase::Serving {
            return Err(format!("{}\n", self.not_serving()));
        }
        let lease = self.state.lease.get();
        if lease.is_some_and(|lease| lease.held().is_none()) {
            return Err("not serving: it holds no lease in the metadata store\n".to_owned());
        }
        self.healthy()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::{HeaderValue, header};

    use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
    use aquifer_metadata::keys;
    use aquifer_model::id::BrokerId;
    use aquifer_runtime::clock::{self, SystemClock};
    use aquifer_runtime::disk::{Disk, SimDisk};
    use aquifer_runtime::rng::SystemRng;
    use aquifer_runtime::task::TaskGroup;

    use super::*;

    fn shows(health: &Health, credential: Option<&'static str>) -> Result<(), ErrorKind> {
        let mut headers = HeaderMap::new();
        if let Some(credential) = credential {
            let value = HeaderValue::from_static(credential);
            headers.insert(header::AUTHORIZATION, value);
        }
        let read = health.metrics(&headers);
        read.map(drop).map_err(|error| error.kind)
    }

    #[test]
    fn metrics_of_a_process_without_clients_are_for_its_scrapers() {
        let open = Health::scraped_with(Telemetry::for_tests(), None);
        assert_eq!(shows(&open, None), Ok(()));
        let token = Secret::new("0123456789abcdef");
        let guarded = Health::scraped_with(Telemetry::for_tests(), Some(token));
        assert_eq!(shows(&guarded, Some("Bearer 0123456789abcdef")), Ok(()));
        let refused = Err(ErrorKind::Unauthenticated);
        assert_eq!(shows(&guarded, None), refused);
        assert_eq!(shows(&guarded, Some("Bearer 0123456789abcdeg")), refused);
    }

    /// Before the broker can tell who asks, only the token of scrapers opens guarded metrics.
    #[test]
    fn metrics_are_guarded_before_the_broker_has_started() {
        let open = Health::with_clients(Telemetry::for_tests(), false, None);
        assert_eq!(shows(&open, None), Ok(()));
        let guarded = Health::with_clients(Telemetry::for_tests(), true, None);
        assert_eq!(shows(&guarded, None), Err(ErrorKind::Unavailable));
        let token = Some(Secret::new("0123456789abcdef"));
        let guarded = Health::with_clients(Telemetry::for_tests(), true, token);
        assert_eq!(shows(&guarded, Some("Bearer 0123456789abcdef")), Ok(()));
        let wrong = shows(&guarded, Some("Bearer 0123456789abcdeg"));
        assert_eq!(wrong, Err(ErrorKind::Unavailable));
    }

    #[test]
    fn a_process_that_starts_works_and_is_not_ready() {
        let health = Health::with_clients(Telemetry::for_tests(), false, None);
        health.starting("replaying the journal");
        let starting = "starting: replaying the journal\n";
        assert_eq!(health.healthy(), Ok(starting.to_owned()));
        assert_eq!(health.ready(), Err(format!("not serving: {starting}")));
        let rest = health.rest().map(|rest| rest.err());
        assert_eq!(rest, Some(Some(format!("not serving: {starting}"))));
        let shows = |line: &str| {
            let text = health.metrics(&HeaderMap::new()).unwrap();
            assert!(text.contains(line), "{line}: {text}");
        };
        shows("aquifer_process_ready 0\n");
        health.set_serving();
        shows("aquifer_process_ready 1\n");
        assert_eq!(health.healthy(), Ok("ok\n".to_owned()));
        assert_eq!(health.ready(), Ok("ok\n".to_owned()));
        health.set_stopping();
        assert_eq!(health.healthy(), Ok("ok\n".to_owned()));
        let stopping = "not serving: shutting down\n".to_owned();
        assert_eq!(health.ready(), Err(stopping));
        shows("aquifer_process_ready 0\n");
        let without = Health::scraped_with(Telemetry::for_tests(), None);
        assert!(without.rest().is_none());
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
        let health = Health::with_clients(Telemetry::for_tests(), false, None);
        health.set_lease(lease.clone());
        health.set_serving();
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
