//! The layered configuration: defaults, then a TOML file, then environment variables named
//! `PREFIX_SECTION_KEY`. Only this module reads files and the environment for settings;
//! components receive their own typed section.
//!
//! Keys that the configuration type does not have are returned, not refused: refusing them at
//! start would turn a rollback into an outage, and `--check-config` can still fail on them. They
//! are found by comparing what was given with what the loaded configuration serializes to, so a
//! configuration type must serialize every key it accepts (no `skip_serializing`, no aliases).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Shape;
use toml::{Table, Value};

use crate::secret::REDACTED;

pub use crate::error::ConfigError;
pub use crate::secret::Secret;

/// A configuration and what was given but not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The configuration.
    pub config: T,
    /// Keys of the file (`section.key`) and environment variables that mean nothing.
    pub unknown_keys: Vec<String>,
}

/// Loads a configuration. `T` needs `#[serde(default)]` on itself and its sections, so that a
/// file may name only what it changes.
pub fn load<T>(file: Option<&Path>, env_prefix: &str) -> Result<Loaded<T>, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let text = file
        .map(|path| {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
            Ok((path, text))
        })
        .transpose()?;
    // Variables that are not Unicode cannot be settings.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let given = text.as_ref().map(|(path, text)| (*path, text.as_str()));
    load_from(given, env_prefix, environment)
}

/// One environment variable, for the few that are not part of a configuration.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads single environment variables"
)]
#[must_use]
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// [`load`] on given text and variables.
fn load_from<T>(
    file: Option<(&Path, &str)>,
    env_prefix: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded<T>, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let mut table = Table::new();
    if let Some((path, text)) = file {
        table = text
            .parse()
            .map_err(|error: toml::de::Error| ConfigError::Syntax {
                path: path.to_owned(),
                message: error.to_string(),
            })?;
        deserialize::<T>(&table).map_err(|message| ConfigError::Value {
            origin: path.display().to_string(),
            message,
        })?;
    }
    let shape = shape_of(&T::default())?;
    let mut unknown_keys = Vec::new();
    let variables = Variables::of(env_prefix, &shape, &table);
    // Sorted, so that the result does not depend on the order of the environment.
    let environment: BTreeMap<String, String> = environment.collect();
    for (name, raw) in environment {
        match variables.settings.get(&name) {
            Some((path, text_only)) => table = set::<T>(&table, &name, path, &raw, *text_only)?,
            None if is_service_link(&name, &raw) => {}
            None if variables.is_typo(&name) => unknown_keys.push(name),
            None => {}
        }
    }
    let config: T = deserialize(&table).map_err(|message| ConfigError::Value {
        origin: "configuration".to_owned(),
        message,
    })?;
    let loaded_shape = shape_of(&config)?;
    find_unknown(&table, &loaded_shape, "", &mut unknown_keys);
    unknown_keys.sort();
    Ok(Loaded {
        config,
        unknown_keys,
    })
}

fn deserialize<T>(table: &Table) -> Result<T, String>
where
    T: DeserializeOwned + Serialize + Default,
{
    let mut whole = table.clone();
    let shape = shape_of(&T::default()).map_err(|error| error.to_string())?;
    complete(&mut whole, &shape);
    whole
        .try_into()
        .map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())
}

/// Adds to the sections that are given what they do not name: a section's defaults are those that
/// it has in this configuration, which its type may not know (the port of a role, for instance).
fn complete(given: &mut Table, shape: &Shape) {
    for (key, value) in given.iter_mut() {
        let (Value::Table(section), Some(Shape::Object(defaults))) = (value, shape.get(key)) else {
            continue;
        };
        for (key, default) in defaults {
            // A null is absent in TOML, a secret is not shown, and what is no TOML cannot be put
            // there: these keep the default of their type.
            if !section.contains_key(key)
                && default.as_str() != Some(REDACTED)
                && let Ok(default) = Value::try_from(default)
            {
                section.insert(key.clone(), default);
            }
        }
        complete(section, &Shape::Object(defaults.clone()));
    }
}

/// The tree of keys of a configuration. JSON keeps the keys whose value is absent.
fn shape_of<T: Serialize>(config: &T) -> Result<Shape, ConfigError> {
    let shape =
        serde_json::to_value(config).map_err(|error| ConfigError::Type(error.to_string()))?;
    if shape.is_object() {
        Ok(shape)
    } else {
        Err(ConfigError::Type("it is not a table".to_owned()))
    }
}

/// The environment variables that a configuration understands.
struct Variables {
    /// Name → path of the key, and whether its value is text whatever it looks like.
    settings: BTreeMap<String, (Vec<String>, bool)>,
    /// `PREFIX_SECTION_` of each section: other variables that start so are typos.
    sections: Vec<String>,
}

impl Variables {
    fn of(prefix: &str, shape: &Shape, table: &Table) -> Variables {
        let mut variables = Variables {
            settings: BTreeMap::new(),
            sections: Vec::new(),
        };
        variables.add(prefix, &mut Vec::new(), shape);
        // A map section has keys that only the file knows.
        if let Ok(given) = serde_json::to_value(table) {
            variables.add_missing(prefix, &given, shape);
        }
        if let Shape::Object(sections) = shape {
            for (name, section) in sections {
                if section.is_object() {
                    let section = variable_name(prefix, std::slice::from_ref(name));
                    variables.sections.push(format!("{section}_"));
                }
            }
        }
        variables
    }

    fn add(&mut self, prefix: &str, path: &mut Vec<String>, shape: &Shape) {
        if let Shape::Object(keys) = shape {
            for (key, value) in keys {
                path.push(key.clone());
                self.add(prefix, path, value);
                path.pop();
            }
        } else {
            let text_only = shape.is_string();
            self.settings
                .entry(variable_name(prefix, path))
                .or_insert_with(|| (path.clone(), text_only));
        }
    }

    fn add_missing(&mut self, prefix: &str, given: &Shape, shape: &Shape) {
        let (Shape::Object(given), Shape::Object(shape)) = (given, shape) else {
            return;
        };
        for (section, value) in given {
            if shape.get(section).is_some_and(Shape::is_object) {
                self.add(prefix, &mut vec![section.clone()], value);
            }
        }
    }

    fn is_typo(&self, name: &str) -> bool {
        self.sections
            .iter()
            .any(|section| name.starts_with(section.as_str()))
    }
}

/// Whether Kubernetes has made a variable: for each Service it gives pods its host, its ports and
/// its addresses. That of a Service named `aquifer-broker` would be taken for a misspelt setting.
fn is_service_link(name: &str, value: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") {
        return true;
    }
    let is_address = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    if name.ends_with("_PORT") && is_address {
        return true;
    }
    // NAME_PORT_7650_TCP, and the same with _PROTO, _PORT and _ADDR.
    let Some((_, behind)) = name.rsplit_once("_PORT_") else {
        return false;
    };
    let mut parts = behind.split('_');
    let port = parts.next().unwrap_or_default();
    let protocol = parts.next().unwrap_or_default();
    port.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&protocol)
}

fn variable_name(prefix: &str, path: &[String]) -> String {
    let mut name = prefix.to_owned();
    for part in path {
        name.push('_');
        name.push_str(&part.to_uppercase().replace(['-', '.'], "_"));
    }
    name
}

/// Sets one key from an environment variable. What looks like a TOML value is taken as one when
/// the configuration accepts it, and as text otherwise.
fn set<T>(
    table: &Table,
    name: &str,
    path: &[String],
    raw: &str,
    text_only: bool,
) -> Result<Table, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let text = Value::String(raw.to_owned());
    let typed = format!("value = {raw}")
        .parse::<Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value"));
    let candidates = match typed {
        Some(typed) if !text_only => vec![typed, text],
        _ => vec![text],
    };
    let mut complaint = String::new();
    for candidate in candidates {
        let mut changed = table.clone();
        insert(&mut changed, path, candidate);
        match deserialize::<T>(&changed) {
            Ok(_) => return Ok(changed),
            // The first complaint is about the value as the user meant it.
            Err(message) if complaint.is_empty() => complaint = message,
            Err(_) => {}
        }
    }
    Err(ConfigError::Value {
        origin: name.to_owned(),
        message: complaint,
    })
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [section, rest @ ..] => {
            let section = table
                .entry(section.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                insert(section, rest, value);
            }
        }
    }
}

/// Collects the keys of the given table that the loaded configuration does not have.
fn find_unknown(given: &Table, shape: &Shape, prefix: &str, unknown: &mut Vec<String>) {
    for (key, value) in given {
        let path = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        let known = shape.get(key);
        match (value, known) {
            (_, None) => unknown.push(path),
            (Value::Table(section), Some(known)) if known.is_object() => {
                find_unknown(section, known, &path, unknown);
            }
            (Value::Array(items), Some(Shape::Array(known))) => {
                for (index, (item, known)) in items.iter().zip(known).enumerate() {
                    if let (Value::Table(item), true) = (item, known.is_object()) {
                        find_unknown(item, known, &format!("{path}[{index}]"), unknown);
                    }
                }
            }
            _ => {}
        }
    }
}
