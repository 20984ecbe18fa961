//! The parts of a broker process, started from the bottom up and stopped from the top down.

use std::net::SocketAddr;
use std::sync::Arc;

use aquifer_broker::{Broker, Peers};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use async_trait::async_trait;

use crate::exit::CliError;
use crate::roles::broker::config::BrokerRoleConfig;
use crate::roles::broker::peers::GrpcPeers;
use crate::roles::http::{self, Health};
use crate::roles::membership::Membership;
use crate::roles::process::{self, ANSWERS_DRAIN, DRAIN};
use crate::roles::serving;
use crate::roles::storage::Seams;

/// Task groups, in the order in which they stop.
struct Groups {
    protocols: TaskGroup,
    broker: TaskGroup,
    ledger: TaskGroup,
    transport: TaskGroup,
    metadata: TaskGroup,
    http: TaskGroup,
}

impl Groups {
    fn all(&self) -> [&TaskGroup; 6] {
        [
            &self.protocols,
            &self.broker,
            &self.ledger,
            &self.transport,
            &self.metadata,
            &self.http,
        ]
    }
}

/// A broker that runs.
pub struct Parts {
    /// Where clients connect.
    pub url: String,
    /// The broker.
    pub broker: Arc<Broker>,
    /// Where health checks and metrics are.
    pub http_address: SocketAddr,
    membership: Membership,
    health: Health,
    groups: Groups,
}

impl Parts {
    /// Starts every part.
    ///
    /// # Errors
    /// When one does not start; what had started before ends with the process.
    pub async fn start(
        config: &BrokerRoleConfig,
        telemetry: &Telemetry,
    ) -> Result<Parts, CliError> {
        let seams = Seams::real();
        let groups = Groups {
            protocols: TaskGroup::new("protocols"),
            broker: TaskGroup::new("broker"),
            ledger: TaskGroup::new("ledger"),
            transport: TaskGroup::new("transport"),
            metadata: TaskGroup::new("metadata"),
            http: TaskGroup::new("http"),
        };
        let cluster = config.cluster_settings();
        let membership = Membership::open(&cluster, &seams, &groups.metadata).await?;
        let name = &config.cluster;
        let (transport, metadata) = (&groups.transport, &groups.metadata);
        let storage =
            serving::cluster_storage(name, &membership, &seams, transport, metadata).await;
        let (cache, ledger) = (&config.cache, &config.ledger);
        let log = serving::log_context(storage, cache, ledger, &seams, telemetry, &groups.ledger);
        let peers: Arc<dyn Peers> = Arc::new(GrpcPeers::new(&groups.transport));
        let (others, tasks) = ((membership.lease.clone(), peers), &groups.broker);
        let broker =
            serving::start_broker(&config.broker, log, &seams, telemetry, tasks, Some(others))
                .await?;
        let health = Health::new(telemetry.clone(), None).under(membership.lease.clone());
        let http_address = http::serve(config.http.listen, health.clone(), &groups.http).await?;
        let tasks = &groups.protocols;
        let url =
            serving::serve_protocols(&config.protocols, &broker, &seams, telemetry, tasks).await?;
        broker.announce(&url);
        membership.lease.announced().await;
        Ok(Parts {
            url,
            broker,
            http_address,
            membership,
            health,
            groups,
        })
    }
}

#[async_trait]
impl process::Parts for Parts {
    fn set_serving(&self, serving: bool) {
        self.health.set_serving(serving);
    }

    async fn failed(&self) -> String {
        process::first_failure(&self.groups.all(), None).await
    }

    async fn shutdown(&self) {
        let groups = &self.groups;
        // While it still serves, so that clients learn where to go.
        self.broker.hand_over().await;
        self.membership.withdraw().await;
        groups.protocols.drain(DRAIN).await;
        self.broker.shutdown().await;
        groups.broker.drain(DRAIN).await;
        groups.ledger.drain(DRAIN).await;
        groups.transport.drain(ANSWERS_DRAIN).await;
        self.membership.close().await;
        groups.metadata.drain(DRAIN).await;
        groups.http.drain(ANSWERS_DRAIN).await;
    }
}
