//! Policies: what tenants, namespaces and topics say about topics, and what is in force.
//!
//! Every policy is optional at every level and replaced whole; what no level says is as the broker
//! is configured. [`resolve`] is the only place that decides between levels. Of most policies the
//! nearest level wins; of a ceiling the lowest value of all levels does, so that none is raised
//! below the level that set it.

pub mod bounds;
pub mod offload;
pub mod rate;

use std::fmt;
use std::str::FromStr;

use self::bounds::{BacklogQuota, Counts, SubscriptionTypes, TimeToLive, Unacked};
use self::offload::OffloadPolicy;
use self::rate::{AggregateRate, Rate};
use crate::limits::MESSAGE_BYTES_MAX;
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
    ($($(#[$doc:meta])* $field:ident: $type:ty = $variant:ident, $name:literal,
       $kind:ident $(($lowest:path))?, [$($level:ident),*];)*) => {
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

            /// Whether the lowest value of all levels is in force.
            #[must_use]
            pub fn is_ceiling(self) -> bool {
                match self {
                    $(PolicyName::$variant => stringify!($kind) == "ceiling",)*
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

        /// What is in force under levels that are given from the farthest to the nearest, of each
        /// policy as its kind says. Also says where that comes from, in the order of
        /// [`PolicyName::ALL`].
        #[must_use]
        pub fn resolve(
            defaults: EffectivePolicies,
            levels: &[(Level, Policies)],
        ) -> (EffectivePolicies, Vec<(PolicyName, Origin)>) {
            let mut effective = defaults;
            let mut origins: Vec<(PolicyName, Origin)> = Vec::with_capacity(PolicyName::ALL.len());
            $(
                let said = levels.iter().rev().filter_map(|(level, said)| Some((*level, said.$field?)));
                let (value, origin) = $kind(defaults.$field, said, $($lowest)?);
                effective.$field = value;
                origins.push((PolicyName::$variant, origin));
            )*
            (effective, origins)
        }

        /// What is in force, if all of it is said; else the name of a policy that is missing.
        impl TryFrom<Policies> for EffectivePolicies {
            type Error = PolicyName;

            fn try_from(policies: Policies) -> Result<EffectivePolicies, PolicyName> {
                Ok(EffectivePolicies {
                    $($field: policies.$field.ok_or(PolicyName::$variant)?,)*
                })
            }
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

/// Where what is in force comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The nearest level that says something.
    pub level: Level,
    /// Of a ceiling: the level whose lower value is in force instead.
    pub capped_by: Option<Level>,
}

/// Of a policy of which the nearest level that says something decides: its value and where it comes
/// from. `said` begins with the nearest level.
fn nearest<T>(default: T, mut said: impl Iterator<Item = (Level, T)>) -> (T, Origin) {
    let (level, value) = said.next().unwrap_or((Level::Default, default));
    let capped_by = None;
    (value, Origin { level, capped_by })
}

/// The same of a policy of which the lowest value decides.
fn ceiling<T: Copy + PartialEq>(
    default: T,
    said: impl Iterator<Item = (Level, T)>,
    lowest: fn(T, T) -> T,
) -> (T, Origin) {
    let mut all = said.chain(std::iter::once((Level::Default, default)));
    let (level, mut value) = all.next().unwrap_or((Level::Default, default));
    let mut capped_by = None;
    for (farther, bound) in all {
        let lower = lowest(value, bound);
        if lower != value {
            (value, capped_by) = (lower, Some(farther));
        }
    }
    (value, Origin { level, capped_by })
}

policies! {
    /// Replication of new ledgers.
    persistence: Quorum = Persistence, "persistence", nearest, [Tenant, Namespace, Topic];
    /// What trimming keeps.
    retention: Retention = Retention, "retention", nearest, [Tenant, Namespace, Topic];
    /// When ledgers are closed.
    rollover: Rollover = Rollover, "rollover", nearest, [Tenant, Namespace, Topic];
    /// When closed ledgers go into objects.
    offload: OffloadPolicy = Offload, "offload", nearest, [Tenant, Namespace, Topic];
    /// Store each (producer name, sequence id) at most once (I8).
    deduplication: bool = Deduplication, "deduplication", nearest, [Tenant, Namespace, Topic];
    /// Create a topic when it is first produced to or consumed from.
    auto_create_topics: bool = AutoCreateTopics, "autoCreateTopics", nearest, [Tenant, Namespace];
    /// Create a subscription when it is first consumed from.
    auto_create_subscriptions: bool = AutoCreateSubscriptions, "autoCreateSubscriptions", nearest, [Tenant, Namespace, Topic];
    /// Ways of sharing that new consumers may ask for.
    subscription_types: SubscriptionTypes = SubscriptionTypes, "subscriptionTypes", nearest, [Tenant, Namespace, Topic];
    /// When messages are acknowledged for subscriptions that have not done so.
    ttl: TimeToLive = Ttl, "ttl", nearest, [Tenant, Namespace, Topic];
    /// What subscriptions may leave unacknowledged.
    backlog_quota: BacklogQuota = BacklogQuota, "backlogQuota", nearest, [Tenant, Namespace, Topic];
    /// What a topic takes in.
    publish_rate: Rate = PublishRate, "publishRate", nearest, [Tenant, Namespace, Topic];
    /// What a topic takes in from one producer.
    producer_rate: Rate = ProducerRate, "producerRate", nearest, [Tenant, Namespace, Topic];
    /// What a topic gives to all its consumers.
    dispatch_rate: Rate = DispatchRate, "dispatchRate", nearest, [Tenant, Namespace, Topic];
    /// What a topic gives to the consumers of one subscription.
    subscription_rate: Rate = SubscriptionRate, "subscriptionRate", nearest, [Tenant, Namespace, Topic];
    /// What all topics of a tenant or a namespace take in and give together.
    aggregate_rate: AggregateRate = AggregateRate, "aggregateRate", ceiling(AggregateRate::lowest), [Tenant, Namespace];
    /// Largest message, before compression.
    message_bytes_max: u64 = MessageBytesMax, "messageBytesMax", ceiling(u64::min), [Tenant, Namespace, Topic];
    /// What may be delivered and not acknowledged.
    unacked: Unacked = Unacked, "unacked", ceiling(Unacked::lowest), [Tenant, Namespace, Topic];
    /// How many topics, producers, subscriptions and consumers there may be.
    counts: Counts = Counts, "counts", ceiling(Counts::lowest), [Tenant, Namespace, Topic];
    /// How many shares a tenant has of brokers and bookies that have too much to do.
    weight: u32 = Weight, "weight", nearest, [Tenant];
}

impl Default for EffectivePolicies {
    fn default() -> EffectivePolicies {
        EffectivePolicies {
            persistence: Quorum::SINGLE,
            retention: Retention::default(),
            rollover: Rollover::default(),
            offload: OffloadPolicy::default(),
            deduplication: true,
            auto_create_topics: true,
            auto_create_subscriptions: true,
            subscription_types: SubscriptionTypes::ALL,
            ttl: TimeToLive::default(),
            backlog_quota: BacklogQuota::default(),
            publish_rate: Rate::UNLIMITED,
            producer_rate: Rate::UNLIMITED,
            dispatch_rate: Rate::UNLIMITED,
            subscription_rate: Rate::UNLIMITED,
            aggregate_rate: AggregateRate::default(),
            message_bytes_max: MESSAGE_BYTES_MAX as u64,
            unacked: Unacked::default(),
            counts: Counts::default(),
            weight: 1,
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
    /// Whether it sets or lifts a ceiling of its scope, or changes its share of what others use
    /// too: those who manage the level above decide about that.
    #[must_use]
    pub fn is_for_above(&self) -> bool {
        let is_named = |name: &&PolicyName| self.set.has(**name) || self.unset.contains(name);
        let mut named = PolicyName::ALL.iter().filter(is_named);
        named.any(|name| name.is_ceiling() || *name == PolicyName::Weight)
    }

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
    /// Where each comes from.
    pub origins: Vec<(PolicyName, Origin)>,
}

#[cfg(test)]
mod tests;
