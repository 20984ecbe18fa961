//! The list of wire protocols. A new one is a folder beside this and one line in each place here;
//! nothing else in the workspace names it.
#![deny(missing_docs)]

use std::sync::Arc;

use aquifer_model::listener::DEFAULT_LISTENER;
use aquifer_protocol_api::BrokerApi;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::handler::ProtocolHandler;
pub use aquifer_protocol_grpc::config::{GrpcConfig, ListenerConfig};
use aquifer_protocol_grpc::{Administration, GrpcHandler, authenticate};
use aquifer_protocol_http::service::{Admission, Rest};
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::net::tls::ServerTlsConfig;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use serde::{Deserialize, Serialize};

/// The configuration tables `protocols.NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProtocolsConfig {
    /// The native protocol.
    pub grpc: GrpcConfig,
}

impl ProtocolsConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A message that names the key and what it may be.
    pub fn validate(&self) -> Result<(), String> {
        self.grpc.validate()
    }

    /// Where each enabled protocol will listen, by its name; once for each of its listeners.
    #[must_use]
    pub fn listeners(&self) -> Vec<(&'static str, ListenAddress)> {
        let further = self.grpc.listeners.iter().map(|listener| listener.listen);
        let grpc = std::iter::once(self.grpc.listen).chain(further);
        let enabled = grpc.filter(|_| self.grpc.enabled);
        enabled.map(|listen| ("grpc", listen)).collect()
    }

    /// The names of enabled listeners that other machines can reach and that have no certificate.
    #[must_use]
    pub fn open_in_plain_text(&self) -> Vec<&str> {
        let further = self.grpc.listeners.iter();
        let further = further.map(|one| (one.name.as_str(), one.listen, one.tls.is_on()));
        let default = (DEFAULT_LISTENER, self.grpc.listen, self.grpc.tls.is_on());
        let all = std::iter::once(default).chain(further);
        let open =
            all.filter(|(_, listen, tls)| self.grpc.enabled && !tls && !listen.is_loopback());
        open.map(|(name, ..)| name).collect()
    }
}

/// REST, as a service for the HTTP port of the process.
pub type RestService = Rest<Administration>;

/// The protocols of a process.
pub struct Protocols {
    grpc: Arc<GrpcHandler>,
    serves_grpc: bool,
}

impl Protocols {
    /// Makes them ready.
    ///
    /// # Errors
    /// When a configuration table is not valid, or a certificate cannot be used.
    pub fn new(
        config: &ProtocolsConfig,
        clock: &SharedClock,
        telemetry: &Telemetry,
    ) -> Result<Protocols, ApiError> {
        let meter = telemetry.meter("aquifer_grpc");
        telemetry.show_histograms(aquifer_protocol_grpc::HISTOGRAMS);
        let mut grpc = config.grpc.clone();
        if !grpc.enabled {
            // Without listeners it needs no certificates; REST goes through its services.
            grpc.tls = ServerTlsConfig::default();
            grpc.listeners.clear();
        }
        Ok(Protocols {
            serves_grpc: grpc.enabled,
            grpc: Arc::new(GrpcHandler::new(grpc, clock.clone(), &meter)?),
        })
    }

    /// The handlers of those that are enabled and have listeners of their own.
    #[must_use]
    pub fn handlers(&self) -> Vec<Arc<dyn ProtocolHandler>> {
        let mut handlers: Vec<Arc<dyn ProtocolHandler>> = Vec::new();
        if self.serves_grpc {
            handlers.push(self.grpc.clone());
        }
        handlers
    }

    /// REST in front of a broker. A shutdown of `tasks` waits for what it has begun.
    ///
    /// # Errors
    /// When the descriptors cannot be served: a mistake of this build.
    pub fn rest(
        &self,
        broker: Arc<dyn BrokerApi>,
        rng: SharedRng,
        tasks: &TaskGroup,
    ) -> Result<RestService, ApiError> {
        let administration = self.grpc.administration(Arc::clone(&broker), tasks);
        let admission: Admission = Arc::new(move |headers, extensions, rpc| {
            authenticate::caller(&*broker, headers, extensions, rpc)
        });
        let failed = |error| ApiError::new(ErrorKind::Internal, format!("REST: {error}"));
        Rest::new(administration, rng, admission).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::clock::SystemClock;

    use super::*;

    #[test]
    fn every_enabled_protocol_has_a_listener_and_a_handler() {
        let telemetry = Telemetry::for_tests();
        let names = |config: &ProtocolsConfig| {
            let built = Protocols::new(config, &SystemClock::shared(), &telemetry);
            let built = built.unwrap().handlers();
            let built: Vec<&str> = built.iter().map(|handler| handler.name()).collect();
            let listeners = config.listeners();
            let listeners: Vec<&str> = listeners.iter().map(|(name, _)| *name).collect();
            assert_eq!(built, listeners);
            built
        };
        let mut config = ProtocolsConfig::default();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(names(&config), ["grpc"]);
        config.grpc.enabled = false;
        assert!(names(&config).is_empty());
    }
}
