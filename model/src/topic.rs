//! Names of tenants, namespaces, topics, subscriptions and clients, valid by construction.
//!
//! The allow-list is strict on purpose: names become metadata keys, metric labels, log fields and
//! object-store paths, so nothing that any of them could misread ever gets in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::limits::{CLIENT_NAME_BYTES_MAX, NAME_BYTES_MAX, PARTITIONS_MAX, TOPIC_NAME_BYTES_MAX};

/// Tenant of a topic given by its local name alone.
pub const DEFAULT_TENANT: &str = "public";
/// Namespace of a topic given by its local name alone.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Tenant of topics that only brokers write to, and that only they create.
pub const RESERVED_TENANT: &str = "aquifer";

/// Why a name is refused, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// The name, or one of its parts, is empty.
    #[error("{what} is empty: give at least one character")]
    Empty {
        /// Which part.
        what: &'static str,
    },
    /// The name is too long.
    #[error("{what} has {bytes} bytes: at most {max} are allowed")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// A character outside the allow-list.
    #[error("{what} has the character {} at byte {at}: letters, digits and {allowed} are allowed", .character.escape_default())]
    Character {
        /// Which part.
        what: &'static str,
        /// The offending character, printed escaped.
        character: char,
        /// Its offset in bytes.
        at: usize,
        /// The allowed punctuation.
        allowed: &'static str,
    },
    /// `.` or `..`, which paths would misread.
    #[error("{what} is `{name}`: names of dots only are not allowed")]
    Dots {
        /// Which part.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Not `topic`, `tenant/namespace/topic` or `persistent://tenant/namespace/topic`.
    #[error(
        "a topic is `topic`, `tenant/namespace/topic` or `persistent://tenant/namespace/topic`, \
         got {parts} parts"
    )]
    Parts {
        /// How many parts there were.
        parts: usize,
    },
    /// A partition number that is too large or not canonical.
    #[error("the partition suffix must be a number below {PARTITIONS_MAX} without leading zeros")]
    Partition,
}

fn check(
    what: &'static str,
    name: &str,
    max: usize,
    allowed: &'static str,
) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > max {
        return Err(NameError::TooLong {
            what,
            bytes: name.len(),
            max,
        });
    }
    for (at, character) in name.char_indices() {
        if !character.is_ascii_alphanumeric() && !allowed.contains(character) {
            return Err(NameError::Character {
                what,
                character,
                at,
                allowed,
            });
        }
    }
    if name.bytes().all(|b| b == b'.') {
        return Err(NameError::Dots {
            what,
            name: name.to_owned(),
        });
    }
    Ok(())
}

const PUNCTUATION: &str = "-_.";
const TOPIC_PUNCTUATION: &str = "-_.:=~@+";
const CLIENT_PUNCTUATION: &str = "-_.:=~@+/#";

/// A tenant's and a namespace's name, `tenant/namespace`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceName {
    tenant: Arc<str>,
    namespace: Arc<str>,
}

impl NamespaceName {
    /// Checks both parts.
    ///
    /// # Errors
    /// When a part is empty, too long or has a character that is not allowed.
    pub fn new(tenant: &str, namespace: &str) -> Result<NamespaceName, NameError> {
        check("tenant", tenant, NAME_BYTES_MAX, PUNCTUATION)?;
        check("namespace", namespace, NAME_BYTES_MAX, PUNCTUATION)?;
        Ok(NamespaceName {
            tenant: tenant.into(),
            namespace: namespace.into(),
        })
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The namespace within the tenant.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.namespace)
    }
}

impl FromStr for NamespaceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<NamespaceName, NameError> {
        match text.split_once('/') {
            Some((tenant, namespace)) => NamespaceName::new(tenant, namespace),
            None => Err(NameError::Parts { parts: 1 }),
        }
    }
}

/// A topic's full name. `name` may end in `-partition-N`: then it is one partition of a
/// partitioned topic, which the broker serves like any topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName {
    namespace: NamespaceName,
    name: Arc<str>,
}

impl TopicName {
    /// Checks the local name.
    ///
    /// # Errors
    /// When it is empty, too long, or has a character that is not allowed.
    pub fn new(namespace: NamespaceName, name: &str) -> Result<TopicName, NameError> {
        check("topic", name, TOPIC_NAME_BYTES_MAX, TOPIC_PUNCTUATION)?;
        let topic = TopicName {
            namespace,
            name: name.into(),
        };
        match topic.split_partition() {
            Err(error) => Err(error),
            Ok(_) => Ok(topic),
        }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &NamespaceName {
        &self.namespace
    }

    /// The local name, with the partition suffix if there is one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The partition number, when this names one partition.
    #[must_use]
    pub fn partition(&self) -> Option<u32> {
        self.split_partition()
            .ok()
            .flatten()
            .map(|(_, partition)| partition)
    }

    /// The partitioned topic that this partition belongs to, or itself.
    #[must_use]
    pub fn base(&self) -> TopicName {
        match self.split_partition() {
            Ok(Some((base, _))) => TopicName {
                namespace: self.namespace.clone(),
                name: base.into(),
            },
            _ => self.clone(),
        }
    }

    /// The name of partition `number` of this topic.
    #[must_use]
    pub fn partition_name(&self, number: u32) -> TopicName {
        TopicName {
            namespace: self.namespace.clone(),
            name: format!("{}-partition-{number}", self.name).into(),
        }
    }

    /// The same, if that is a name: the suffix counts as well.
    ///
    /// # Errors
    /// When the name is too long with the suffix.
    pub fn checked_partition_name(&self, number: u32) -> Result<TopicName, NameError> {
        let name = self.partition_name(number).name;
        TopicName::new(self.namespace.clone(), &name)
    }

    fn split_partition(&self) -> Result<Option<(&str, u32)>, NameError> {
        let Some((base, digits)) = self.name.rsplit_once("-partition-") else {
            return Ok(None);
        };
        if base.is_empty() || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(None);
        }
        let number: u32 = digits.parse().map_err(|_| NameError::Partition)?;
        if number >= PARTITIONS_MAX || (digits.len() > 1 && digits.starts_with('0')) {
            return Err(NameError::Partition);
        }
        Ok(Some((base, number)))
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "persistent://{}/{}", self.namespace, self.name)
    }
}

impl FromStr for TopicName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<TopicName, NameError> {
        let (path, full) = match text.strip_prefix("persistent://") {
            Some(path) => (path, true),
            None => (text, false),
        };
        let parts: Vec<&str> = path.splitn(5, '/').collect();
        match parts.as_slice() {
            [name] if !full => {
                TopicName::new(NamespaceName::new(DEFAULT_TENANT, DEFAULT_NAMESPACE)?, name)
            }
            [tenant, namespace, name] => {
                TopicName::new(NamespaceName::new(tenant, namespace)?, name)
            }
            _ => Err(NameError::Parts { parts: parts.len() }),
        }
    }
}

macro_rules! client_name {
    ($($(#[$doc:meta])* $name:ident = $what:literal),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the name.
            ///
            /// # Errors
            /// When it is empty, too long, or has a character that is not allowed.
            pub fn new(name: &str) -> Result<$name, NameError> {
                check($what, name, CLIENT_NAME_BYTES_MAX, CLIENT_PUNCTUATION)?;
                Ok($name(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<$name, NameError> {
                $name::new(text)
            }
        }
    )*};
}

client_name! {
    /// The name of a subscription of a topic.
    SubscriptionName = "subscription",
    /// The name under which a producer's sequence ids are remembered.
    ProducerName = "producer name",
    /// The name of a consumer, for people who read stats.
    ConsumerName = "consumer name",
}

/// What names that a broker draws begin with; 32 hexadecimal digits follow.
const DRAWN_PREFIX: &str = "p-";

impl ProducerName {
    /// A name for a producer that did not ask for one. Sixteen random bytes: unique for ever, so
    /// that no producer inherits another's sequence ids.
    #[must_use]
    pub fn drawn(random: [u8; 16]) -> ProducerName {
        let name = random.iter().fold(DRAWN_PREFIX.to_owned(), |name, byte| {
            format!("{name}{byte:02x}")
        });
        ProducerName(name.into())
    }

    /// Whether the name has the form of a drawn one. It serves one producer object: deduplication
    /// forgets it soon after that is gone.
    #[must_use]
    pub fn is_drawn(&self) -> bool {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let random = self.0.strip_prefix(DRAWN_PREFIX);
        random.is_some_and(|random| random.len() == 32 && random.bytes().all(digit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_forms_name_the_same_topic() {
        let full: TopicName = "persistent://public/default/orders".parse().unwrap();
        assert_eq!("orders".parse(), Ok(full.clone()));
        assert_eq!("public/default/orders".parse(), Ok(full.clone()));
        assert_eq!(full.to_string().parse(), Ok(full));
    }

    #[test]
    fn names_that_could_escape_are_refused() {
        let long = "x".repeat(64 * 1024);
        for bad in [
            "",
            "../",
            "..",
            ".",
            "a/b",
            "a/b/c/d",
            "a//c",
            "/a/b",
            "nul\0",
            "tab\t",
            "line\n",
            "é",
            "%2e%2e",
            "a b",
            "persistent://orders",
            "persistent://a/b/",
            "x-partition-01",
            "x-partition-4096",
            "x-partition-99999999999",
            "a/../c",
            long.as_str(),
        ] {
            assert!(bad.parse::<TopicName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn partitions_know_their_topic() {
        let base: TopicName = "orders".parse().unwrap();
        let third = base.partition_name(3);
        assert_eq!(third.partition(), Some(3));
        assert_eq!(third.base(), base);
        assert_eq!(base.partition(), None);
        assert_eq!(
            "x-partition-".parse::<TopicName>().unwrap().partition(),
            None
        );
    }
}
