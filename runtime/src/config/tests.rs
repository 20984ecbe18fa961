//! The layers, the redaction, and what is said about mistakes.

use std::path::PathBuf;

use serde::Deserialize;

use super::*;
use crate::net::ListenAddress;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    name: String,
    broker: Broker,
    limits: BTreeMap<String, u64>,
    listeners: Vec<Listener>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Broker {
    max_bytes: u64,
    grpc_addr: ListenAddress,
    zone: Option<String>,
    token: Secret,
    verbose: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Listener {
    port: u16,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "default".to_owned(),
            broker: Broker::default(),
            limits: BTreeMap::from([("producers".to_owned(), 10)]),
            listeners: Vec::new(),
        }
    }
}

impl Default for Broker {
    fn default() -> Broker {
        Broker {
            max_bytes: 100,
            grpc_addr: "127.0.0.1:7650".parse().unwrap(),
            zone: None,
            token: Secret::new("from the defaults"),
            verbose: false,
        }
    }
}

fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<Loaded<Config>, ConfigError> {
    let path = PathBuf::from("aquifer.toml");
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load_from(Some((&path, text)), "AQUIFER", environment)
}

#[test]
fn nothing_given_means_defaults() {
    let loaded = load_text("", &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.config.broker.token.expose(), "from the defaults");
    assert!(loaded.unknown_keys.is_empty());
}

#[test]
fn the_file_overrides_defaults_and_the_environment_overrides_the_file() {
    let text = "name = 'file'\n[broker]\nmax_bytes = 200\nverbose = true\n";
    let environment = [
        ("AQUIFER_BROKER_MAX_BYTES", "300"),
        ("AQUIFER_BROKER_GRPC_ADDR", "0.0.0.0:1"),
        ("AQUIFER_BROKER_ZONE", "42"),
        ("AQUIFER_BROKER_TOKEN", "true"),
        ("AQUIFER_LIMITS_PRODUCERS", "20"),
        ("AQUIFER_LISTENERS", "[{ port = 1 }]"),
    ];
    let loaded = load_text(text, &environment).unwrap();
    assert!(loaded.unknown_keys.is_empty(), "{:?}", loaded.unknown_keys);
    let config = loaded.config;
    assert_eq!(config.name, "file");
    assert_eq!(config.broker.max_bytes, 300);
    assert!(config.broker.verbose);
    assert_eq!(config.broker.grpc_addr.to_string(), "0.0.0.0:1");
    assert_eq!(
        config.broker.zone.as_deref(),
        Some("42"),
        "text, though it looks like a number"
    );
    assert_eq!(config.broker.token.expose(), "true");
    assert_eq!(config.limits["producers"], 20);
    assert_eq!(config.listeners, [Listener { port: 1 }]);
}

#[test]
fn unknown_keys_are_returned_with_their_path() {
    let text = "nme = 'typo'\n[broker]\nzone = 'a'\nmax_byte = 1\n[[listeners]]\nport = 1\nhost = 'x'\n[nothing]\na = 1\n";
    let environment = [
        ("AQUIFER_BROKER_MAX_BITES", "1"),
        ("AQUIFER_URL", "http://127.0.0.1:7650"),
        ("PATH", "/bin"),
    ];
    let loaded = load_text(text, &environment).unwrap();
    assert_eq!(
        loaded.unknown_keys,
        [
            "AQUIFER_BROKER_MAX_BITES",
            "broker.max_byte",
            "listeners[0].host",
            "nme",
            "nothing"
        ]
    );
    assert_eq!(loaded.config.broker.zone.as_deref(), Some("a"));
}

#[test]
fn mistakes_name_where_they_were_made() {
    let text = |text: &str| load_text(text, &[]).unwrap_err().to_string();
    assert!(text("[broker").contains("aquifer.toml"));
    assert!(text("[broker]\nmax_bytes = 'many'").contains("aquifer.toml"));
    let error = load_text("", &[("AQUIFER_BROKER_MAX_BYTES", "many")]).unwrap_err();
    assert!(
        error.to_string().contains("AQUIFER_BROKER_MAX_BYTES"),
        "{error}"
    );
    let error = load_text("[broker]\ngrpc_addr = 'nowhere'", &[]).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:7650"), "{error}");
    let missing = load::<Config>(Some(Path::new("/nonexistent/aquifer.toml")), "AQUIFER_TEST");
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
}

#[test]
fn secrets_are_redacted_wherever_a_configuration_is_shown() {
    let config = load_text("[broker]\ntoken = 'hunter2'", &[])
        .unwrap()
        .config;
    assert_eq!(config.broker.token.expose(), "hunter2");
    let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(!shown.contains("hunter2"));
    assert_eq!(shown.matches(REDACTED).count(), 2);
}

/// The same type in two roles, with other defaults in each.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Ports {
    first: Port,
    second: Port,
}

#[derive(Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Port {
    number: u16,
    tls: bool,
    token: Secret,
}

impl Default for Ports {
    fn default() -> Ports {
        let port = |number| Port {
            number,
            ..Port::default()
        };
        Ports {
            first: port(1),
            second: port(2),
        }
    }
}

#[test]
fn a_section_that_is_named_keeps_the_defaults_of_its_place() {
    let load = |text: &str, environment: &[(&str, &str)]| {
        let environment = environment.iter();
        let environment = environment.map(|(name, value)| (name.to_string(), value.to_string()));
        load_from::<Ports>(Some((Path::new("a.toml"), text)), "A", environment)
            .unwrap()
            .config
    };
    let wanted = Ports {
        second: Port {
            number: 2,
            tls: true,
            token: Secret::default(),
        },
        ..Ports::default()
    };
    assert_eq!(load("[second]\ntls = true", &[]), wanted);
    assert_eq!(load("", &[("A_SECOND_TLS", "true")]), wanted);
    assert_eq!(load("[first]\n[second]\n", &[]), Ports::default());
}

#[test]
fn what_kubernetes_says_of_services_is_no_misspelt_setting() {
    let environment = [
        ("AQUIFER_BROKER_SERVICE_HOST", "10.96.0.7"),
        ("AQUIFER_BROKER_SERVICE_PORT", "7650"),
        ("AQUIFER_BROKER_SERVICE_PORT_GRPC", "7650"),
        ("AQUIFER_BROKER_PORT", "tcp://10.96.0.7:7650"),
        ("AQUIFER_BROKER_PORT_7650_TCP", "tcp://10.96.0.7:7650"),
        ("AQUIFER_BROKER_PORT_7650_TCP_PROTO", "tcp"),
        ("AQUIFER_BROKER_PORT_7650_TCP_PORT", "7650"),
        ("AQUIFER_BROKER_PORT_7650_TCP_ADDR", "10.96.0.7"),
    ];
    let loaded = load_text("", &environment).unwrap();
    assert!(loaded.unknown_keys.is_empty(), "{:?}", loaded.unknown_keys);
    assert_eq!(loaded.config, Config::default());
    let typos = [
        ("AQUIFER_BROKER_PORT", "7650"),
        ("AQUIFER_BROKER_PORT_MAX_BYTES", "1"),
    ];
    let loaded = load_text("", &typos).unwrap();
    assert_eq!(loaded.unknown_keys.len(), 2, "{:?}", loaded.unknown_keys);
}
