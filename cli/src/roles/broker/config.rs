//! The configuration of `aquifer broker`.

use aquifer_broker::BrokerConfig;
use aquifer_model::listener::ListenerName;
use aquifer_protocol_registry::{GrpcConfig, ListenerConfig, ProtocolsConfig};
use aquifer_runtime::clock;
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::net::tls::{ClientCertificates, ServerTlsConfig};
use aquifer_runtime::telemetry::TelemetryConfig;
use serde::{Deserialize, Serialize};

use crate::args::BrokerArgs;
use crate::exit::CliError;
use crate::roles::auth::AuthSection;
use crate::roles::cold::ColdConfig;
use crate::roles::membership;
use crate::roles::settings::{
    self, CacheConfig, ClusterSection, HttpConfig, LedgerConfig, QuorumSettings, check_loopback,
};

const HTTP_PORT: u16 = 7680;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BrokerRoleConfig {
    /// The cluster that it belongs to; its name goes over `broker.cluster`.
    #[serde(flatten)]
    pub cluster: ClusterSection,
    /// Replication in namespaces that say nothing else.
    pub quorum: QuorumSettings,
    /// How ledgers are written.
    pub ledger: LedgerConfig,
    /// Memory for entries.
    pub cache: CacheConfig,
    /// Objects of ledgers.
    pub cold: ColdConfig,
    /// Health checks and metrics.
    pub http: HttpConfig,
    /// Topics.
    pub broker: BrokerConfig,
    /// Wire protocols.
    pub protocols: ProtocolsConfig,
    /// What each caller may do.
    pub auth: AuthSection,
    /// Logs, traces and metrics.
    pub telemetry: TelemetryConfig,
}

impl Default for BrokerRoleConfig {
    fn default() -> BrokerRoleConfig {
        BrokerRoleConfig {
            cluster: ClusterSection::default(),
            quorum: QuorumSettings::default(),
            ledger: LedgerConfig::default(),
            cache: CacheConfig::default(),
            cold: ColdConfig::default(),
            http: HttpConfig::on_port(HTTP_PORT),
            broker: BrokerConfig::default(),
            protocols: ProtocolsConfig::default(),
            auth: AuthSection::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl BrokerRoleConfig {
    /// Loads and checks it. Keys that mean nothing are returned.
    ///
    /// # Errors
    /// When a file cannot be read, or a value is not allowed: exit code 2.
    pub fn load(args: &BrokerArgs) -> Result<(BrokerRoleConfig, Vec<String>), CliError> {
        let file = args.cluster.config.as_deref();
        let (mut config, unknown) = settings::load::<BrokerRoleConfig>(file)?;
        config.apply(args)?;
        config.check()?;
        Ok((config, unknown))
    }

    fn apply(&mut self, args: &BrokerArgs) -> Result<(), CliError> {
        self.cluster.apply(&args.cluster);
        let grpc = &mut self.protocols.grpc;
        if let Some(address) = args.grpc_addr {
            grpc.listen = address;
        }
        for (name, listen) in &args.listeners {
            set_listener(grpc, name, *listen);
        }
        for given in &args.advertise {
            advertise(grpc, given)?;
        }
        if let Some(address) = args.http_addr {
            self.http.listen = address;
        }
        if let Some(quorum) = args.quorum {
            let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            self.quorum = QuorumSettings {
                ensemble: size(quorum.ensemble()),
                write: size(quorum.write()),
                ack: size(quorum.ack()),
            };
        }
        if let Some(zones) = args.zones_min {
            self.ledger.zones_min = zones;
        }
        self.cold.apply(args.cold_store.as_deref());
        if let Some(delay) = args.ensemble_change_delay {
            self.ledger.ensemble_change_delay_ms = clock::millis(delay);
        }
        self.auth.broker.enabled |= args.auth;
        self.broker.auth.clone_from(&self.auth.broker);
        self.broker.cluster.clone_from(&self.cluster.name);
        self.broker.default_quorum = self.quorum.quorum()?;
        Ok(())
    }

    fn check(&self) -> Result<(), CliError> {
        self.protocols.validate().map_err(CliError::usage)?;
        self.broker
            .validate()
            .map_err(|error| CliError::usage(error.to_string()))?;
        self.ledger.check(self.broker.default_quorum)?;
        let mut listeners = self.protocols.listeners();
        listeners.push(("http", self.http.listen));
        let is_open = self.cluster.allow_remote || self.auth.broker.enabled;
        check_loopback(is_open, &listeners)?;
        if self.auth.broker.enabled {
            check_brokers_know_each_other(&self.cluster, &self.protocols.grpc.tls)?;
        }
        // Clients are told the addresses; they must be some that they can use.
        let all = self.protocols.grpc.all_listeners();
        for (_, listener) in all.map_err(CliError::usage)? {
            let told = listener.advertised_url.as_deref().unwrap_or_default();
            settings::advertised(told, listener.listen.socket_addr(), listener.tls.is_on())?;
        }
        self.http.check()?;
        self.cold.check()?;
        membership::check(&self.cluster)
    }
}

/// Brokers ask each other through their default listeners. With tokens for clients they know each
/// other by certificates of the cluster, and by nothing that a client could show.
fn check_brokers_know_each_other(
    cluster: &ClusterSection,
    listener: &ServerTlsConfig,
) -> Result<(), CliError> {
    let asks = listener.client_ca_file.is_some()
        && listener.client_certificates != ClientCertificates::None;
    if cluster.internal_tls.is_on() && listener.is_on() && asks {
        return Ok(());
    }
    let text = "authentication in a cluster needs certificates by which brokers know each other";
    Err(CliError::usage(text).advise(
        "set internal_tls, and in protocols.grpc.tls a certificate, client_ca_file with the \
         authority of internal_tls in it, and client_certificates = \"optional\"; `aquifer tls init \
         --cluster NAME` makes the files",
    ))
}

/// Has a listener listen there.
fn set_listener(grpc: &mut GrpcConfig, name: &ListenerName, listen: ListenAddress) {
    if name.is_default() {
        grpc.listen = listen;
        return;
    }
    let mut known = grpc.listeners.iter_mut();
    match known.find(|known| known.name == name.as_str()) {
        Some(known) => known.listen = listen,
        None => grpc.listeners.push(ListenerConfig {
            name: name.to_string(),
            listen,
            advertised_url: None,
            tls: ServerTlsConfig::default(),
        }),
    }
}

/// Tells clients an address: `URL` those of the default listener, `NAME=URL` those of another.
fn advertise(grpc: &mut GrpcConfig, given: &str) -> Result<(), CliError> {
    let named = given.split_once('=');
    let named = named.and_then(|(name, url)| Some((name.parse::<ListenerName>().ok()?, url)));
    let (name, url) = named.unwrap_or((ListenerName::default(), given));
    let mut known = grpc.listeners.iter_mut();
    let (listen, secret, told) = match known.find(|known| known.name == name.as_str()) {
        Some(known) => (known.listen, known.tls.is_on(), &mut known.advertised_url),
        None if name.is_default() => (grpc.listen, grpc.tls.is_on(), &mut grpc.advertised_url),
        None => {
            let text = format!("--advertise names a listener {name} that does not exist");
            let advice = format!("say where it listens: --listener {name}=ADDRESS:PORT");
            return Err(CliError::usage(text).advise(advice));
        }
    };
    *told = Some(settings::advertised(url, listen.socket_addr(), secret)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use aquifer_model::quorum::Quorum;

    use super::*;
    use crate::args::ClusterArgs;

    #[test]
    fn the_quorum_is_three_unless_said_and_a_section_keeps_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"[broker]\ntopic_idle_ms = 7\n[quorum]\nack = 3\n")
            .unwrap();
        let with_file = |config: bool, quorum: Option<Quorum>| {
            let args = BrokerArgs {
                quorum,
                cluster: ClusterArgs {
                    cluster: Some("c".to_owned()),
                    config: config.then(|| file.path().to_owned()),
                    ..ClusterArgs::default()
                },
                ..BrokerArgs::default()
            };
            BrokerRoleConfig::load(&args).unwrap().0.broker
        };
        let quorum = |e, w, a| Quorum::new(e, w, a).unwrap();
        assert_eq!(with_file(false, None).default_quorum, quorum(3, 3, 2));
        let from_file = with_file(true, None);
        assert_eq!(from_file.default_quorum, quorum(3, 3, 3));
        assert_eq!((from_file.topic_idle_ms, &*from_file.cluster), (7, "c"));
        let flag = with_file(true, Some(quorum(5, 4, 2)));
        assert_eq!(flag.default_quorum, quorum(5, 4, 2));
    }

    #[test]
    fn how_ledgers_are_written_is_layered_and_checked() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"[ledger]\nquarantine_ms = 5\nzones_min = 2\nshrink_ensembles = false\n")
            .unwrap();
        let load = |zones: Option<usize>| {
            let args = BrokerArgs {
                zones_min: zones,
                ensemble_change_delay: Some(Duration::from_secs(2)),
                cluster: ClusterArgs {
                    config: Some(file.path().to_owned()),
                    ..ClusterArgs::default()
                },
                ..BrokerArgs::default()
            };
            BrokerRoleConfig::load(&args).map(|(config, _)| config.ledger.ledger_settings())
        };
        let settings = load(None).unwrap();
        assert_eq!((settings.zones_min, settings.shrink_ensembles), (2, false));
        assert_eq!(settings.quarantine, Duration::from_millis(5));
        assert_eq!(settings.ensemble_change_delay, Duration::from_secs(2));
        assert_eq!(load(Some(3)).unwrap().zones_min, 3);
        let error = load(Some(4)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("zones_min"), "{error}");
    }

    #[test]
    fn an_address_that_nobody_can_connect_to_is_not_told() {
        let args = |advertise: Option<&str>| BrokerArgs {
            grpc_addr: Some("0.0.0.0:0".parse().unwrap()),
            advertise: advertise.into_iter().map(str::to_owned).collect(),
            cluster: ClusterArgs {
                allow_remote: true,
                ..ClusterArgs::default()
            },
            ..BrokerArgs::default()
        };
        let error = BrokerRoleConfig::load(&args(None)).map(|_| ()).unwrap_err();
        assert!(error.advice().contains("--advertise"), "{error}");
        let (config, _) = BrokerRoleConfig::load(&args(Some("b1.example:7650"))).unwrap();
        let told = config.protocols.grpc.advertised_url;
        assert_eq!(told.as_deref(), Some("http://b1.example:7650"));
    }

    #[test]
    fn each_listener_has_an_address_and_tells_one() {
        let listener = |name: &str, address: &str| {
            let address: ListenAddress = address.parse().unwrap();
            (name.parse::<ListenerName>().unwrap(), address)
        };
        let load = |listeners, advertise: &[&str]| {
            BrokerRoleConfig::load(&BrokerArgs {
                listeners,
                advertise: advertise.iter().map(|&given| given.to_owned()).collect(),
                cluster: ClusterArgs {
                    allow_remote: true,
                    ..ClusterArgs::default()
                },
                ..BrokerArgs::default()
            })
        };
        let outside = || vec![listener("outside", "0.0.0.0:7660")];
        let told = ["http://b?x=1", "outside=b.example:1"];
        let (config, _) = load(outside(), &told).unwrap();
        let grpc = config.protocols.grpc;
        assert_eq!(grpc.advertised_url.as_deref(), Some("http://b?x=1"));
        let found = &grpc.listeners[0];
        assert_eq!(found.advertised_url.as_deref(), Some("http://b.example:1"));
        let error = load(outside(), &[]).map(|_| ()).unwrap_err();
        assert!(error.advice().contains("--advertise"), "{error}");
        let error = load(Vec::new(), &["inside=b:1"]).map(|_| ()).unwrap_err();
        assert!(error.advice().contains("--listener inside="), "{error}");
        let moved = vec![listener("default", "127.0.0.1:7")];
        let (config, _) = load(moved, &["default=b:1"]).unwrap();
        let grpc = config.protocols.grpc;
        assert_eq!(grpc.listen.to_string(), "127.0.0.1:7");
        assert_eq!(grpc.advertised_url.as_deref(), Some("http://b:1"));
    }
}
