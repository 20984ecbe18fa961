//! A broker of a cluster: it serves the topics of the bundles that it owns, and stores nothing
//! itself. Only wiring is here.

mod config;
mod peers;

use std::sync::Arc;
use std::time::Duration;

use aquifer_broker::Peers;
use aquifer_runtime::telemetry::{Telemetry, TelemetryConfig};
use async_trait::async_trait;

use crate::args::BrokerArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::broker::config::BrokerRoleConfig;
use crate::roles::broker::peers::GrpcPeers;
use crate::roles::greeting::Greeting;
use crate::roles::health::Health;
use crate::roles::http;
use crate::roles::membership::{self, Membership};
use crate::roles::open_files;
use crate::roles::process::{self, Role};
use crate::roles::server::{Parts, Server};
use crate::roles::serving;
use crate::roles::storage::Seams;

/// Runs a broker until it is told to end. `began` is when the process did.
pub async fn run(args: BrokerArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let loaded = BrokerRoleConfig::load(&args)?;
    process::run(loaded, args.cluster.check_config, began, out).await
}

#[async_trait]
impl Role for BrokerRoleConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn prepare(&mut self) {
        open_files::prepare(&mut self.protocols, 0);
    }

    async fn start(
        &self,
        parts: &mut Parts,
        telemetry: &Telemetry,
        _out: &Output,
    ) -> Result<Server, CliError> {
        let (seams, groups) = (Seams::real(), &parts.groups);
        let (authenticates, scraped) = (self.auth.broker.enabled, self.auth.scrape_token()?);
        let health = Health::with_clients(telemetry.clone(), authenticates, scraped);
        let port = http::open(&self.http, health, &seams, &groups.http).await?;
        let (health, certificates) = (port.health, port.certificates);
        health.starting(membership::WAITING);
        let membership = Membership::open(&self.cluster, &seams, telemetry, &groups.metadata);
        let membership = membership.await?;
        let membership = &*parts.membership.insert(membership);
        let name = &self.cluster.name;
        health.starting(membership::JOINING);
        let ways = (&*groups.transport, &*groups.metadata);
        let storage =
            serving::cluster_storage(&self.cluster, &certificates, membership, &seams, ways)
                .await?;
        let (memory, cold) = ((&self.cache, &self.ledger), (name.as_str(), &self.cold));
        let log = serving::log_context(storage, memory, cold, &seams, telemetry, &groups.ledger)?;
        let peers: Arc<dyn Peers> = Arc::new(GrpcPeers::new(
            self.cluster.internal_tls.client(),
            &groups.transport,
        ));
        let brokers = certificates.brokers(name, &self.cluster.internal_tls)?;
        let lease = membership.lease.clone();
        let (others, tasks) = ((lease, peers, brokers), &groups.broker);
        let broker =
            serving::start_broker(&self.broker, log, &seams, telemetry, tasks, Some(others))
                .await?;
        let broker = &*parts.broker.insert(broker);
        health.set_lease(membership.lease.clone());
        let tasks = &groups.protocols;
        let (protocols, rest) =
            serving::protocols(&self.protocols, broker, &seams, telemetry, tasks)?;
        let rest = serving::guarded(rest, broker, self.http.listen);
        health.set_broker(broker.clone(), rest);
        let listeners = serving::serve_protocols(&protocols, broker, &certificates, tasks).await?;
        certificates.watch(telemetry, &groups.http);
        self.auth
            .warn_of_plain_text(&self.protocols.open_in_plain_text());
        broker.announce(&listeners);
        let url = listeners.default_url().unwrap_or_default();
        membership.lease.announced().await;
        let greeting = Greeting::new("broker", format!("of cluster {name} serves {url}"))
            .field("cluster", name)
            .field("id", broker.id().to_string())
            .field("url", url)
            .listeners(&listeners);
        Ok(Server {
            health,
            http_url: port.url,
            greeting,
        })
    }
}
