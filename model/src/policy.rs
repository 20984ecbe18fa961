//! Policies: what tenants, namespaces and topics say about topics, and what is in force.
//!
//! Every policy is optional at every level and replaced whole; what no level says is as the broker
//! is configured. [`resolve`] is the only place that decides between levels: the nearest one wins.

use std::fmt;
use std::str::FromStr;

use crate::quorum::Quorum;
use crate::topic::{NamespaceName, TopicName};

/// Seven days: long enough that a first-time user's `read` after `consume` is not empty.
pub const DEFAULT_RETENTION_MS: u64 = 7 * 24 * 3600 * 1000;

/// How long what every subscription has acknowledged is still kept. A segment goes only when it
/// is beyond both bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Keep at least this long, in ms; `None` keeps for ever.
    pub time_ms: Option<u64>,
    /// Keep at least this many of the newest bytes; `None` keeps everything.
    pub size_bytes: Option<u64>,
}

impl Retention {
    /// Whether a segment may go whose last message is of `last_time_ms`, when that many newer bytes
    /// are kept.
    #[must_use]
    pub fn lets_go(&self, last_time_ms: u64, kept_bytes: u64, now_ms: u64) -> bool {
        let (Some(time_ms), Some(size_bytes)) = (self.time_ms, self.size_bytes) else {
            return false;
        };
        last_time_ms.saturating_add(time_ms) <= now_ms && kept_bytes >= size_bytes
    }
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            time_ms: Some(DEFAULT_RETENTION_MS),
            size_bytes: Some(0),
        }
    }
}

/// When a topic log closes its ledger and begins the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollover {
    /// At this many bytes.
    pub size_bytes: u64,
    /// At this age in ms, if it holds anything.
    pub age_ms: u64,
    /// At this many entries.
    pub entries: u64,
}

impl Default for Rollover {
    fn default() -> Rollover {
        Rollover {
            size_bytes: 1024 * 1024 * 1024,
            age_ms: 4 * 3600 * 1000,
            entries: 1_000_000,
        }
    }
}

/// Declares the policies once: the sparse set, the set in force, their names and how they resolve.
macro_rules! policies {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $variant:ident, $name:literal, [$($level:ident),*];)*) => {
        /// What one level says. Absent: inherited.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Policies {
            $($(#[$doc])* pub $field: Option<$type>,)*
        }

        /// What is in force.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct EffectivePolicies {
            $($(#[$doc])* pub $field: $type,)*
        }

        /// The name of a policy.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum PolicyName {
            $($(#[$doc])* $variant,)*
        }

        impl PolicyName {
            /// Every policy.
            pub const ALL: &'static [PolicyName] = &[$(PolicyName::$variant,)*];

            /// Its name for people and scripts.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(PolicyName::$variant => $name,)*
                }
            }

            /// Where it may be set: where the broker gives effect to it.
            #[must_use]
            pub const fn levels(self) -> &'static [Level] {
                match self {
                    $(PolicyName::$variant => &[$(Level::$level),*],)*
                }
            }
        }

        impl Policies {
            /// Says nothing of a policy any more.
            pub fn unset(&mut self, name: PolicyName) {
                match name {
                    $(PolicyName::$variant => self.$field = None,)*
                }
            }

            /// Whether this level says something of a policy.
            #[must_use]
            pub fn has(&self, name: PolicyName) -> bool {
                match name {
                    $(PolicyName::$variant => self.$field.is_some(),)*
                }
            }

            /// These, and of `other` what these do not say.
            #[must_use]
            pub fn or(self, other: Policies) -> Policies {
                Policies {
                    $($field: self.$field.or(other.$field),)*
                }
            }
        }

        /// What is in force under levels that are given from the farthest to the nearest: of each
        /// policy what the nearest level says that says anything, else the default. Also says which
        /// level that is, in the order of [`PolicyName::ALL`].
        #[must_use]
        pub fn resolve(
            defaults: EffectivePolicies,
            levels: &[(Level, Policies)],
        ) -> (EffectivePolicies, Vec<(PolicyName, Level)>) {
            let mut effective = defaults;
            let mut origins: Vec<(PolicyName, Level)> = Vec::new();
            $(
                let said = levels.iter().rev().find_map(|(level, said)| Some((*level, said.$field?)));
                if let Some((_, value)) = said {
                    effective.$field = value;
                }
                let level = said.map_or(Level::Default, |(level, _)| level);
                origins.push((PolicyName::$variant, level));
            )*
            (effective, origins)
        }

        impl From<EffectivePolicies> for Policies {
            fn from(effective: EffectivePolicies) -> Policies {
                Policies {
                    $($field: Some(effective.$field),)*
                }
            }
        }
    };
}

policies! {
    /// Replication of new ledgers.
    persistence: Quorum = Persistence, "persistence", [Tenant, Namespace, Topic];
    /// What trimming keeps.
    retention: Retention = Retention, "retention", [Tenant, Namespace, Topic];
    /// When ledgers are closed.
    rollover: Rollover = Rollover, "rollover", [Tenant, Namespace, Topic];
    /// Store each (producer name, sequence id) at most once (I8).
    deduplication: bool = Deduplication, "deduplication", [Tenant, Namespace, Topic];
    /// Create a topic when it is first produced to or consumed from.
    auto_create_topics: bool = AutoCreateTopics, "autoCreateTopics", [Tenant, Namespace];
}

impl Default for EffectivePolicies {
    fn default() -> EffectivePolicies {
        EffectivePolicies {
            persistence: Quorum::SINGLE,
            retention: Retention::default(),
            rollover: Rollover::default(),
            deduplication: true,
            auto_create_topics: true,
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PolicyName {
    type Err = String;

    fn from_str(text: &str) -> Result<PolicyName, String> {
        let found = PolicyName::ALL.iter().find(|name| name.as_str() == text);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = PolicyName::ALL.iter().map(|name| name.as_str()).collect();
            format!(
                "{text:?} is no policy: the policies are {}",
                names.join(", ")
            )
        })
    }
}

/// Where a policy is said, from the farthest to the nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Nowhere: it is as the broker is configured.
    Default,
    /// At the tenant.
    Tenant,
    /// At the namespace.
    Namespace,
    /// At the topic; partitions have what their topic has.
    Topic,
}

impl Level {
    /// Its name for people and scripts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Default => "default",
            Level::Tenant => "tenant",
            Level::Namespace => "namespace",
            Level::Topic => "topic",
        }
    }
}

/// Whose policies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyScope {
    /// A tenant's.
    Tenant(String),
    /// A namespace's.
    Namespace(NamespaceName),
    /// A topic's; never those of a partition.
    Topic(TopicName),
}

impl PolicyScope {
    /// The level that it is of.
    #[must_use]
    pub const fn level(&self) -> Level {
        match self {
            PolicyScope::Tenant(_) => Level::Tenant,
            PolicyScope::Namespace(_) => Level::Namespace,
            PolicyScope::Topic(_) => Level::Topic,
        }
    }

    /// Whether its policies count for another scope: it is that one, or above it.
    #[must_use]
    pub fn covers(&self, other: &PolicyScope) -> bool {
        match (self, other) {
            (PolicyScope::Tenant(tenant), PolicyScope::Namespace(name)) => tenant == name.tenant(),
            (PolicyScope::Tenant(tenant), PolicyScope::Topic(name)) => {
                tenant == name.namespace().tenant()
            }
            (PolicyScope::Namespace(namespace), PolicyScope::Topic(name)) => {
                namespace == name.namespace()
            }
            (above, other) => above == other,
        }
    }

    /// The scopes whose policies count for this one, from the farthest to itself.
    #[must_use]
    pub fn path(&self) -> Vec<PolicyScope> {
        let above = match self {
            PolicyScope::Tenant(_) => None,
            PolicyScope::Namespace(name) => Some(PolicyScope::Tenant(name.tenant().to_owned())),
            PolicyScope::Topic(name) => Some(PolicyScope::Namespace(name.namespace().clone())),
        };
        let mut path = above.map(|scope| scope.path()).unwrap_or_default();
        path.push(self.clone());
        path
    }
}

impl fmt::Display for PolicyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyScope::Tenant(name) => write!(f, "tenant {name}"),
            PolicyScope::Namespace(name) => write!(f, "namespace {name}"),
            PolicyScope::Topic(name) => write!(f, "topic {name}"),
        }
    }
}

/// A change of what one level says. What it does not name stays, also when that is changed at the
/// same time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyUpdate {
    /// What it says from now on.
    pub set: Policies,
    /// What it says nothing of any more.
    pub unset: Vec<PolicyName>,
    /// Only if its policies are of this version; 0: if it says nothing.
    pub version: Option<u64>,
}

impl PolicyUpdate {
    /// The policies with the change made.
    #[must_use]
    pub fn apply(&self, to: Policies) -> Policies {
        let mut policies = self.set.or(to);
        for name in &self.unset {
            policies.unset(*name);
        }
        policies
    }

    /// Whether nothing is to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set == Policies::default() && self.unset.is_empty()
    }
}

/// The policies of a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyView {
    /// What it says itself.
    pub own: Policies,
    /// The version of that, which changes with every change; 0 when it says nothing.
    pub version: u64,
    /// What is in force for it.
    pub effective: EffectivePolicies,
    /// Which level each comes from.
    pub origins: Vec<(PolicyName, Level)>,
}

#[cfg(test)]
mod tests;
