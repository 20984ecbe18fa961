//! Listeners: the addresses under which one broker is reached, by name. A network that reaches
//! brokers in its own way (inside the cluster, from outside) has one name at all of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// The listener that brokers use among themselves. Every broker has it.
pub const DEFAULT_LISTENER: &str = "default";
/// Longest name of a listener, in bytes.
pub const LISTENER_NAME_BYTES_MAX: usize = 32;
/// Listeners that a broker may have.
pub const LISTENERS_MAX: usize = 16;

/// The name of a listener: lower-case letters, digits and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerName(Arc<str>);

impl ListenerName {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the one that brokers use among themselves.
    #[must_use]
    pub fn is_default(&self) -> bool {
        &*self.0 == DEFAULT_LISTENER
    }
}

impl Default for ListenerName {
    fn default() -> ListenerName {
        ListenerName(DEFAULT_LISTENER.into())
    }
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no listener, or listeners that are none together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ListenerError {
    /// Not a name.
    #[error(
        "{0:?} is no name of a listener: give 1 to {LISTENER_NAME_BYTES_MAX} lower-case letters, \
         digits and hyphens"
    )]
    Name(String),
    /// A name came twice.
    #[error("listener {0} is there twice")]
    Twice(ListenerName),
    /// Too many.
    #[error("{0} listeners: at most {LISTENERS_MAX} are allowed")]
    TooMany(usize),
}

impl FromStr for ListenerName {
    type Err = ListenerError;

    fn from_str(text: &str) -> Result<ListenerName, ListenerError> {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_name = (1..=LISTENER_NAME_BYTES_MAX).contains(&text.len());
        match is_name && text.bytes().all(is_allowed) {
            true => Ok(ListenerName(text.into())),
            false => Err(ListenerError::Name(text.to_owned())),
        }
    }
}

/// One address of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its name.
    pub name: ListenerName,
    /// Where it is reached.
    pub url: String,
}

/// The addresses of a broker, each name once. Copies share them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listeners(Arc<[Listener]>);

impl Listeners {
    /// These.
    ///
    /// # Errors
    /// When a name comes twice, or they are too many.
    pub fn new(all: Vec<Listener>) -> Result<Listeners, ListenerError> {
        if all.len() > LISTENERS_MAX {
            return Err(ListenerError::TooMany(all.len()));
        }
        for (at, listener) in all.iter().enumerate() {
            if all[..at].iter().any(|other| other.name == listener.name) {
                return Err(ListenerError::Twice(listener.name.clone()));
            }
        }
        Ok(Listeners(all.into()))
    }

    /// Only the one that brokers use among themselves.
    #[must_use]
    pub fn only_default(url: &str) -> Listeners {
        let listener = Listener {
            name: ListenerName::default(),
            url: url.to_owned(),
        };
        Listeners([listener].into())
    }

    /// All of them, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.0.iter()
    }

    /// Where the broker is reached through the listener of a name, if it has one.
    #[must_use]
    pub fn url(&self, name: &ListenerName) -> Option<&str> {
        let found = self.0.iter().find(|listener| listener.name == *name)?;
        Some(&found.url)
    }

    /// Where other brokers reach it.
    #[must_use]
    pub fn default_url(&self) -> Option<&str> {
        self.url(&ListenerName::default())
    }

    /// Whether there are none: the broker does not serve yet, or is gone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// For people: the address of the default listener, or of the first.
impl fmt::Display for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.first().map(|listener| &*listener.url);
        f.write_str(self.default_url().or(first).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_name_and_never_instead_of_another() {
        let listener = |name: &str, url: &str| Listener {
            name: name.parse().unwrap(),
            url: url.to_owned(),
        };
        let both = vec![
            listener("outside", "http://o"),
            listener("default", "http://d"),
        ];
        let both = Listeners::new(both).unwrap();
        let url = |name: &str| both.url(&name.parse().unwrap()).map(str::to_owned);
        assert_eq!(url("outside").as_deref(), Some("http://o"));
        assert_eq!(url("elsewhere"), None);
        assert_eq!(both.default_url(), Some("http://d"));
        assert_eq!(both.to_string(), "http://d");
        let twice = vec![listener("a", "x"), listener("a", "y")];
        assert!(matches!(
            Listeners::new(twice),
            Err(ListenerError::Twice(_))
        ));
        let many = (0..=LISTENERS_MAX).map(|n| listener(&format!("l{n}"), "x"));
        assert!(Listeners::new(many.collect()).is_err());
        assert_eq!(
            Listeners::only_default("http://d").default_url(),
            Some("http://d")
        );
    }

    #[test]
    fn names_are_short_and_plain() {
        for good in [
            "default",
            "a",
            "outside-2",
            &"x".repeat(LISTENER_NAME_BYTES_MAX),
        ] {
            assert_eq!(good.parse::<ListenerName>().unwrap().as_str(), good);
        }
        let long = "x".repeat(LISTENER_NAME_BYTES_MAX + 1);
        for bad in ["", "A", "a b", "a=b", "a.b", "\u{e4}", &long] {
            assert!(bad.parse::<ListenerName>().is_err(), "{bad}");
        }
    }
}
