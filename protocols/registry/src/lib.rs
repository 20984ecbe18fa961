//! The list of wire protocols. A new one is a folder beside this and one line in each place here;
//! nothing else in the workspace names it.
#![deny(missing_docs)]

use std::sync::Arc;

use aquifer_model::listener::DEFAULT_LISTENER;
use aquifer_protocol_api::error::ApiError;
use aquifer_protocol_api::handler::ProtocolHandler;
use aquifer_protocol_grpc::GrpcHandler;
pub use aquifer_protocol_grpc::config::{GrpcConfig, ListenerConfig};
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::net::ListenAddress;
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

/// The handlers of all enabled protocols.
///
/// # Errors
/// When a configuration table is not valid.
pub fn handlers(
    config: &ProtocolsConfig,
    clock: &SharedClock,
    telemetry: &Telemetry,
) -> Result<Vec<Arc<dyn ProtocolHandler>>, ApiError> {
    let mut handlers: Vec<Arc<dyn ProtocolHandler>> = Vec::new();
    if config.grpc.enabled {
        let meter = telemetry.meter("aquifer_grpc");
        let handler = GrpcHandler::new(config.grpc.clone(), clock.clone(), &meter)?;
        handlers.push(Arc::new(handler));
    }
    Ok(handlers)
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::clock::SystemClock;

    use super::*;

    #[test]
    fn every_enabled_protocol_has_a_listener_and_a_handler() {
        let telemetry = Telemetry::for_tests();
        let names = |config: &ProtocolsConfig| {
            let built = handlers(config, &SystemClock::shared(), &telemetry).unwrap();
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
