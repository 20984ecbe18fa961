//! The configuration table `protocols.grpc`.

use std::time::Duration;

use aquifer_model::listener::{DEFAULT_LISTENER, Listener, ListenerName, Listeners};
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::net::tls::ServerTlsConfig;
use serde::{Deserialize, Serialize};

/// Where an address is not configured: loopback, so that nothing is reachable by accident.
const DEFAULT_LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 7650);

/// Settings of the native protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrpcConfig {
    /// Whether the protocol is served at all.
    pub enabled: bool,
    /// Where its default listener listens; port 0 takes a free one.
    pub listen: ListenAddress,
    /// What clients of the default listener, and other brokers, are told to use, where that is not
    /// the listening address.
    pub advertised_url: Option<String>,
    /// Its certificate, and those of clients that it accepts; without one it speaks plain text.
    pub tls: ServerTlsConfig,
    /// Connections at once; more are closed as they come.
    pub connections_max: usize,
    /// Streams at once on one connection.
    pub streams_per_connection_max: u32,
    /// Streams at once on all connections; more are answered with `Overloaded`.
    pub streams_max: usize,
    /// Bytes of requests that may be read at once, and as many again that wait for that; batches
    /// of open producers count in `broker.publish_bytes_in_flight_max` instead.
    pub inbound_bytes_max: usize,
    /// Unary calls at once; more are answered with `Overloaded`.
    pub calls_max: usize,
    /// Reads of the pull service at once, which may wait for messages; more are answered with
    /// `Overloaded`.
    pub reads_max: usize,
    /// Appends of the pull service at once, which may wait for rates and quotas; more are answered
    /// with `Overloaded`.
    pub appends_max: usize,
    /// HTTP/2 window of a stream: what a peer may send before it is read.
    pub stream_window_bytes: u32,
    /// HTTP/2 window of a connection, shared by its streams.
    pub connection_window_bytes: u32,
    /// Largest HTTP/2 frame that peers may send.
    pub http2_frame_bytes: u32,
    /// Largest header list of a request.
    pub header_list_bytes_max: u32,
    /// A new connection must send its first byte, and a new stream its first message, within this.
    pub handshake_timeout_ms: u64,
    /// A request message that was begun must be complete within this.
    pub message_timeout_ms: u64,
    /// A quiet peer is asked for a sign of life this often.
    pub keepalive_interval_ms: u64,
    /// A peer that has not answered for this long is gone.
    pub keepalive_timeout_ms: u64,
    /// Longest that a unary call may take.
    pub request_timeout_ms: u64,
    /// How long a stream that ends waits for the outcome of what it has sent.
    pub drain_timeout_ms: u64,
    /// Listeners besides the default one, for networks that reach the broker in a way of their own.
    pub listeners: Vec<ListenerConfig>,
}

/// A listener besides the default one. Its clients are redirected to the listener of the same name
/// of other brokers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerConfig {
    /// Its name, the same at all brokers that its network reaches.
    pub name: String,
    /// Where it listens; port 0 takes a free one.
    pub listen: ListenAddress,
    /// What its clients are told to use, where that is not the listening address.
    #[serde(default)]
    pub advertised_url: Option<String>,
    /// Its certificate, and those of clients that it accepts; without one it speaks plain text.
    #[serde(default)]
    pub tls: ServerTlsConfig,
}

impl Default for GrpcConfig {
    fn default() -> GrpcConfig {
        GrpcConfig {
            enabled: true,
            listen: ListenAddress::new(DEFAULT_LISTEN.into()),
            advertised_url: None,
            tls: ServerTlsConfig::default(),
            connections_max: 4096,
            streams_per_connection_max: 4096,
            streams_max: 65_536,
            inbound_bytes_max: 32 << 20,
            calls_max: 4096,
            reads_max: 16_384,
            appends_max: 4096,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 8 << 20,
            http2_frame_bytes: 64 << 10,
            header_list_bytes_max: 16 << 10,
            handshake_timeout_ms: 10_000,
            message_timeout_ms: 30_000,
            keepalive_interval_ms: 10_000,
            keepalive_timeout_ms: 10_000,
            request_timeout_ms: 30_000,
            drain_timeout_ms: 5_000,
            listeners: Vec::new(),
        }
    }
}

impl GrpcConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A message that names the key and what it may be.
    pub fn validate(&self) -> Result<(), String> {
        let tls = self.tls.validate();
        tls.map_err(|wrong| format!("protocols.grpc.tls: {wrong}"))?;
        for listener in &self.listeners {
            let tls = listener.tls.validate();
            tls.map_err(|wrong| format!("protocols.grpc.listeners: tls: {wrong}"))?;
        }
        let within = |name: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!(
                    "protocols.grpc.{name} is {value}: give {low} to {high}"
                ))
            }
        };
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        within("connections_max", count(self.connections_max), 1, 1_000_000)?;
        within("streams_max", count(self.streams_max), 1, 10_000_000)?;
        let streams = u64::from(self.streams_per_connection_max);
        within("streams_per_connection_max", streams, 1, 1_000_000)?;
        within("calls_max", count(self.calls_max), 1, 1_000_000)?;
        within("reads_max", count(self.reads_max), 1, 1_000_000)?;
        within("appends_max", count(self.appends_max), 1, 1_000_000)?;
        // A message and what decoding it takes must fit.
        let inbound = count(self.inbound_bytes_max);
        within("inbound_bytes_max", inbound, 8 << 20, 1 << 40)?;
        // RFC 9113 bounds windows by 2^31 - 1 and frames by 2^24 - 1.
        let window = u64::from(self.stream_window_bytes);
        within("stream_window_bytes", window, 65_535, (1 << 31) - 1)?;
        let shared = u64::from(self.connection_window_bytes);
        within("connection_window_bytes", shared, window, (1 << 31) - 1)?;
        let frame = u64::from(self.http2_frame_bytes);
        within("http2_frame_bytes", frame, 16_384, (1 << 24) - 1)?;
        let headers = u64::from(self.header_list_bytes_max);
        within("header_list_bytes_max", headers, 4_096, 1 << 20)?;
        for (name, ms) in [
            ("handshake_timeout_ms", self.handshake_timeout_ms),
            ("message_timeout_ms", self.message_timeout_ms),
            ("keepalive_interval_ms", self.keepalive_interval_ms),
            ("keepalive_timeout_ms", self.keepalive_timeout_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("drain_timeout_ms", self.drain_timeout_ms),
        ] {
            within(name, ms, 1, 3_600_000)?;
        }
        let mut names = Vec::new();
        for (name, listener) in self.all_listeners()? {
            let is_url = |url: &str| url.starts_with("http://") || url.starts_with("https://");
            match &listener.advertised_url {
                Some(url) if !is_url(url) => {
                    return Err(format!(
                        "protocols.grpc: advertised_url of listener {name} is {url:?}: give \
                         http://HOST:PORT or https://HOST:PORT"
                    ));
                }
                _ => names.push(Listener {
                    name,
                    url: String::new(),
                }),
            }
        }
        let names = Listeners::new(names);
        names.map_err(|error| format!("protocols.grpc.listeners: {error}"))?;
        Ok(())
    }

    /// All listeners with their names, the default one first.
    ///
    /// # Errors
    /// A message, when a name is not allowed.
    pub fn all_listeners(&self) -> Result<Vec<(ListenerName, ListenerConfig)>, String> {
        let default = ListenerConfig {
            name: DEFAULT_LISTENER.to_owned(),
            listen: self.listen,
            advertised_url: self.advertised_url.clone(),
            tls: self.tls.clone(),
        };
        let all = std::iter::once(default).chain(self.listeners.iter().cloned());
        let named = all.map(|listener| {
            let name = listener.name.parse();
            let name = name.map_err(|error| format!("protocols.grpc.listeners: {error}"))?;
            Ok((name, listener))
        });
        named.collect()
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    pub(crate) fn message_timeout(&self) -> Duration {
        Duration::from_millis(self.message_timeout_ms)
    }

    pub(crate) fn keepalive_interval(&self) -> Duration {
        Duration::from_millis(self.keepalive_interval_ms)
    }

    pub(crate) fn keepalive_timeout(&self) -> Duration {
        Duration::from_millis(self.keepalive_timeout_ms)
    }

    /// A live peer answers a ping within this, so that a longer silence means that it is away.
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.keepalive_interval() + self.keepalive_timeout() * 2
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_on_loopback() {
        let config = GrpcConfig::default();
        assert_eq!(config.validate(), Ok(()));
        assert!(config.listen.is_loopback());
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let check = |change: fn(&mut GrpcConfig), name: &str| {
            let mut config = GrpcConfig::default();
            change(&mut config);
            let message = config.validate().unwrap_err();
            assert!(message.contains(name), "{message}");
        };
        check(|c| c.connections_max = 0, "connections_max");
        check(|c| c.inbound_bytes_max = 1, "inbound_bytes_max");
        check(|c| c.stream_window_bytes = 1, "stream_window_bytes");
        check(|c| c.connection_window_bytes = 70_000, "connection_window");
        check(|c| c.http2_frame_bytes = u32::MAX, "http2_frame_bytes");
        check(|c| c.keepalive_timeout_ms = 0, "keepalive_timeout_ms");
        check(|c| c.advertised_url = Some("x:1".into()), "advertised_url");
    }

    #[test]
    fn listeners_have_names_of_their_own() {
        let listener = |name: &str| ListenerConfig {
            name: name.to_owned(),
            listen: ListenAddress::loopback_any_port(),
            advertised_url: Some("http://outside:1".to_owned()),
            tls: ServerTlsConfig::default(),
        };
        let check = |names: &[&str]| {
            let config = GrpcConfig {
                listeners: names.iter().map(|name| listener(name)).collect(),
                ..GrpcConfig::default()
            };
            config.validate()
        };
        assert_eq!(check(&["outside", "edge-2"]), Ok(()));
        for bad in [
            &["outside", "outside"][..],
            &["default"],
            &["Outside"],
            &[""],
        ] {
            let message = check(bad).unwrap_err();
            assert!(message.contains("listeners"), "{message}");
        }
    }
}
