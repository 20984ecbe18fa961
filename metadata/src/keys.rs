//! Every key of the store, in one place: how it is built, read back, and which partition it
//! belongs to.
//!
//! Keys are relative to the root of a cluster ([`root`]); a store that serves several clusters
//! puts the root in front, so that no other module handles it. Invariants:
//! - A name inside a key never contains `/`: what the allow-list of names lets through is kept
//!   and everything else is percent-encoded. So a key cannot leave its prefix.
//! - A prefix ends in `/`, so that the one of `a` never matches the keys of `ab`.
//! - Reading back accepts only what building produces, byte for byte.

mod partitions;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

pub use aquifer_model::bundle::BundleRange;
use aquifer_model::id::{
    AttemptId, BackupId, BookieId, BrokerId, LEDGER_ID_MAX, LedgerId, TopicIncarnation,
};
use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::{NamespaceName, TopicName};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

pub use self::partitions::{
    CLUSTER_PARTITION, check_partition, partition_of, partition_of_namespace,
    partition_of_policies, partition_of_topic,
};
use crate::error::{MetadataError, MetadataResult};

/// Punctuation of valid names; the rest is escaped, above all `/` and `%`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b':')
    .remove(b'=')
    .remove(b'~')
    .remove(b'@')
    .remove(b'+');

/// Longest key, in bytes: the longest names, all of them escaped, fit.
pub const KEY_BYTES_MAX: usize = 4096;

/// The counter from which ledger ids are drawn.
pub const IDS_LEDGER: &str = "ledger";

/// A key, by what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// `t/T`: a tenant.
    Tenant(String),
    /// `t/T/N/p`: a namespace with its bundles.
    Namespace(NamespaceName),
    /// `t/T/N/t/NAME`: a topic.
    Topic(TopicName),
    /// `t/T/N/t/NAME/s/INCARNATION/PAGE`: a page of a topic's older segments.
    SegmentPage(TopicName, TopicIncarnation, u32),
    /// `p/T`, `p/T/N`, `p/T/N/NAME`: the policies of a tenant, a namespace, a topic.
    Policies(PolicyScope),
    /// `rates/T`, `rates/T/N`: how brokers divide the rate of a tenant, a namespace.
    RateShares(PolicyScope),
    /// `l/ID`: a ledger.
    Ledger(LedgerId),
    /// `own/T/N/RANGE`: the owner of a bundle.
    BundleOwner(NamespaceName, BundleRange),
    /// `brokers/ID`: a living broker (leased).
    Broker(BrokerId),
    /// `bookies/ID`: a living bookie (leased).
    Bookie(BookieId),
    /// `cookies/ID`: the permanent identity of a bookie.
    Cookie(BookieId),
    /// `s/T/N/NAME/VERSION`: a version of a topic's schema.
    Schema(TopicName, u64),
    /// `u/ID`: an under-replicated ledger.
    UnderReplicated(LedgerId),
    /// `g/ID`: a ledger that is being deleted.
    Deletion(LedgerId),
    /// `ul/ID`: the process that repairs a ledger (leased).
    RepairLock(LedgerId),
    /// `workers/NAME`: a process that repairs ledgers (leased).
    RepairWorker(String),
    /// `ids/NAME`: a counter.
    IdRange(String),
    /// `clusters/NAME`: a peer for geo-replication.
    Cluster(String),
    /// `leaders/NAME`: the leader of an election (leased).
    Leader(String),
    /// `auth/tokens/ID`: a token by which callers authenticate.
    Token(String),
    /// `auth/grants/T/ID`: what a principal may do in a tenant, or in the cluster.
    Grant(Option<String>, String),
    /// `auth/roles/T/NAME`: a role of a tenant, or of the cluster.
    Role(Option<String>, String),
    /// `auth/revoked/ID`: JSON Web Tokens that are refused.
    Revocation(String),
    /// `auth/keys/NAME`: a secret of the cluster.
    ClusterKey(String),
    /// `auth/forgotten/T`, with `~` for the cluster: when a tenant of this name was deleted, and
    /// which revoked tokens are gone.
    Forgotten(Option<String>),
    /// `auth/ends`: the newest checkpoints of the audit log.
    AuditEnds,
    /// `locations/N`: a place of objects.
    Location(u32),
    /// `oc/ATTEMPT`: an object that is being written.
    Upload(AttemptId),
    /// `od/ATTEMPT`: an object that is to be deleted.
    DyingObject(AttemptId),
    /// `offloads/ID`: a ledger that is left to offloaders.
    OffloadTask(LedgerId),
    /// `offloaders/ID`: a living offloader (leased).
    Offloader(BrokerId),
    /// `backups/ID`: a backup, for which objects are kept.
    Backup(BackupId),
    /// `restores/T/N/NAME`: the record of a topic that is being restored.
    Restoring(TopicName),
}

/// Which transactions a key may take part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partition<'a> {
    /// Only those of this partition: `tenant/namespace`, or empty for the whole cluster.
    Named(Cow<'a, str>),
    /// Those of the topic that the ledger belongs to, which only the caller knows.
    OfOwner,
}

/// Where the keys of a cluster begin in a store that several clusters share.
#[must_use]
pub fn root(cluster: &str) -> String {
    format!("/aquifer/v1/{}/", escape(cluster))
}

/// Key of a tenant.
#[must_use]
pub fn tenant(tenant: &str) -> String {
    format!("t/{}", escape(tenant))
}

/// What begins the key of every tenant, namespace and topic.
pub const TENANTS_PREFIX: &str = "t/";

/// What begins the keys of a tenant's namespaces and topics.
#[must_use]
pub fn tenant_prefix(tenant: &str) -> String {
    format!("t/{}/", escape(tenant))
}

/// Key of a namespace.
#[must_use]
pub fn namespace(namespace: &NamespaceName) -> String {
    format!("{}p", namespace_prefix("t", namespace))
}

/// Key of the policies of a tenant, a namespace or a topic.
#[must_use]
pub fn policies(scope: &PolicyScope) -> String {
    match scope {
        PolicyScope::Tenant(name) => format!("{POLICIES_PREFIX}{}", escape(name)),
        PolicyScope::Namespace(name) => {
            format!("{POLICIES_PREFIX}{}", partition_of_namespace(name))
        }
        PolicyScope::Topic(name) => {
            let prefix = namespace_prefix("p", name.namespace());
            format!("{prefix}{}", escape(name.name()))
        }
    }
}

/// What begins the key of all policies.
pub const POLICIES_PREFIX: &str = "p/";

/// Key of how brokers divide the rate of a tenant or a namespace; a topic's is not divided.
#[must_use]
pub fn rate_shares(scope: &PolicyScope) -> String {
    let policies = policies(scope);
    let scope = policies.strip_prefix(POLICIES_PREFIX);
    format!("{RATE_SHARES_PREFIX}{}", scope.unwrap_or_default())
}

/// What begins the keys of how brokers divide rates.
pub const RATE_SHARES_PREFIX: &str = "rates/";

/// Key of a topic.
#[must_use]
pub fn topic(topic: &TopicName) -> String {
    format!(
        "{}{}",
        topics_prefix(topic.namespace()),
        escape(topic.name())
    )
}

/// What begins the keys of a namespace's topics.
#[must_use]
pub fn topics_prefix(namespace: &NamespaceName) -> String {
    format!("{}t/", namespace_prefix("t", namespace))
}

/// Key of a page of a topic's older segments. The number is padded, so that scans are in order.
#[must_use]
pub fn segment_page(topic: &TopicName, incarnation: TopicIncarnation, page: u32) -> String {
    format!("{}{page:010}", segment_pages_of(topic, incarnation))
}

/// What begins the keys of the pages of one incarnation of a topic.
#[must_use]
pub fn segment_pages_of(topic: &TopicName, incarnation: TopicIncarnation) -> String {
    format!("{}{incarnation}/", segment_pages_prefix(topic))
}

/// What begins the keys of the pages of all topics of a name: one may exist while another is being
/// restored.
#[must_use]
pub fn segment_pages_prefix(name: &TopicName) -> String {
    format!("{}/s/", topic(name))
}

/// Key of a ledger. The number is padded, so that scans are in order of ids.
#[must_use]
pub fn ledger(ledger: LedgerId) -> String {
    format!("{LEDGERS_PREFIX}{:016}", ledger.0)
}

/// What begins the keys of ledgers.
pub const LEDGERS_PREFIX: &str = "l/";

/// Key of the owner of a bundle.
#[must_use]
pub fn bundle_owner(namespace: &NamespaceName, range: BundleRange) -> String {
    format!("{}{range}", bundle_owners_prefix(namespace))
}

/// What begins the keys of the owners of all bundles.
pub const OWNERS_PREFIX: &str = "own/";

/// What begins the keys of the owners of a namespace's bundles.
#[must_use]
pub fn bundle_owners_prefix(namespace: &NamespaceName) -> String {
    namespace_prefix("own", namespace)
}

/// Key of a living broker.
#[must_use]
pub fn broker(broker: BrokerId) -> String {
    format!("{BROKERS_PREFIX}{broker}")
}

/// What begins the keys of living brokers.
pub const BROKERS_PREFIX: &str = "brokers/";

/// Key of a living bookie.
#[must_use]
pub fn bookie(bookie: BookieId) -> String {
    format!("{BOOKIES_PREFIX}{bookie}")
}

/// What begins the keys of living bookies.
pub const BOOKIES_PREFIX: &str = "bookies/";

/// Key of a bookie's permanent identity.
#[must_use]
pub fn cookie(bookie: BookieId) -> String {
    format!("{COOKIES_PREFIX}{bookie}")
}

/// What begins the keys of bookies' identities.
pub const COOKIES_PREFIX: &str = "cookies/";

/// Key of a version of a topic's schema, padded, so that scans are in order of versions.
#[must_use]
pub fn schema(topic: &TopicName, version: u64) -> String {
    format!("{}{version:020}", schemas_prefix(topic))
}

/// What begins the keys of a topic's schemas.
#[must_use]
pub fn schemas_prefix(topic: &TopicName) -> String {
    format!(
        "{}{}/",
        namespace_prefix("s", topic.namespace()),
        escape(topic.name())
    )
}

/// Key of the note that a ledger lacks replicas.
#[must_use]
pub fn under_replicated(ledger: LedgerId) -> String {
    format!("{UNDER_REPLICATED_PREFIX}{:016}", ledger.0)
}

/// What begins the keys of under-replicated ledgers.
pub const UNDER_REPLICATED_PREFIX: &str = "u/";

/// Key of the lock of the process that repairs a ledger.
#[must_use]
pub fn repair_lock(ledger: LedgerId) -> String {
    format!("{REPAIR_LOCKS_PREFIX}{:016}", ledger.0)
}

/// What begins the keys of repair locks.
pub const REPAIR_LOCKS_PREFIX: &str = "ul/";

/// Key of a process that repairs ledgers.
#[must_use]
pub fn repair_worker(name: &str) -> String {
    format!("{REPAIR_WORKERS_PREFIX}{}", escape(name))
}

/// What begins the keys of processes that repair ledgers.
pub const REPAIR_WORKERS_PREFIX: &str = "workers/";

/// Key of the intent to delete a ledger.
#[must_use]
pub fn deletion(ledger: LedgerId) -> String {
    format!("{DELETIONS_PREFIX}{:016}", ledger.0)
}

/// What begins the keys of deletion intents.
pub const DELETIONS_PREFIX: &str = "g/";

/// Key of a place of objects. The number is padded, so that scans are in order.
#[must_use]
pub fn location(number: u32) -> String {
    format!("{LOCATIONS_PREFIX}{number:010}")
}

/// What begins the keys of places of objects.
pub const LOCATIONS_PREFIX: &str = "locations/";

/// Key of an object that is being written.
#[must_use]
pub fn upload(attempt: AttemptId) -> String {
    format!("{UPLOADS_PREFIX}{attempt}")
}

/// What begins the keys of objects that are being written.
pub const UPLOADS_PREFIX: &str = "oc/";

/// Key of an object that is to be deleted.
#[must_use]
pub fn dying_object(attempt: AttemptId) -> String {
    format!("{DYING_OBJECTS_PREFIX}{attempt}")
}

/// What begins the keys of objects that are to be deleted.
pub const DYING_OBJECTS_PREFIX: &str = "od/";

/// Key of a ledger that is left to offloaders. The number is padded, so that scans are in order.
#[must_use]
pub fn offload_task(ledger: LedgerId) -> String {
    format!("{OFFLOAD_TASKS_PREFIX}{:016}", ledger.0)
}

/// What begins the keys of ledgers that are left to offloaders.
pub const OFFLOAD_TASKS_PREFIX: &str = "offloads/";

/// Key of a living offloader.
#[must_use]
pub fn offloader(offloader: BrokerId) -> String {
    format!("{OFFLOADERS_PREFIX}{offloader}")
}

/// What begins the keys of living offloaders.
pub const OFFLOADERS_PREFIX: &str = "offloaders/";

/// Key of a backup.
#[must_use]
pub fn backup(backup: BackupId) -> String {
    format!("{BACKUPS_PREFIX}{backup}")
}

/// What begins the keys of backups.
pub const BACKUPS_PREFIX: &str = "backups/";

/// Key of the record of a topic that is being restored.
#[must_use]
pub fn restoring(topic: &TopicName) -> String {
    let namespace = partition_of_topic(topic);
    format!("{RESTORES_PREFIX}{namespace}/{}", escape(topic.name()))
}

/// What begins the keys of topics that are being restored.
pub const RESTORES_PREFIX: &str = "restores/";

/// Key of a counter of ids.
#[must_use]
pub fn id_range(name: &str) -> String {
    format!("ids/{}", escape(name))
}

/// Key of a peer cluster.
#[must_use]
pub fn cluster(name: &str) -> String {
    format!("{CLUSTERS_PREFIX}{}", escape(name))
}

/// What begins the keys of peer clusters.
pub const CLUSTERS_PREFIX: &str = "clusters/";

/// What begins the keys of tokens and grants, followed by every broker that authenticates.
pub const AUTH_PREFIX: &str = "auth/";

/// Key of a token.
#[must_use]
pub fn token(id: &str) -> String {
    format!("{TOKENS_PREFIX}{}", escape(id))
}

/// What begins the keys of tokens.
pub const TOKENS_PREFIX: &str = "auth/tokens/";

/// Key of a grant in a tenant, or without one in the cluster.
#[must_use]
pub fn grant(tenant: Option<&str>, id: &str) -> String {
    format!("{}{}", grants_prefix(tenant), escape(id))
}

/// What begins the keys of all grants.
pub const GRANTS_PREFIX: &str = "auth/grants/";

/// What begins the keys of the grants in a tenant, or without one in the cluster.
#[must_use]
pub fn grants_prefix(tenant: Option<&str>) -> String {
    match tenant {
        Some(tenant) => format!("{GRANTS_PREFIX}{}/", escape(tenant)),
        None => format!("{GRANTS_PREFIX}{OF_CLUSTER}/"),
    }
}

/// Key of a role of a tenant, or without one of the cluster.
#[must_use]
pub fn role(tenant: Option<&str>, name: &str) -> String {
    format!("{}{}", roles_prefix(tenant), escape(name))
}

/// What begins the keys of the roles of a tenant, or without one of the cluster.
#[must_use]
pub fn roles_prefix(tenant: Option<&str>) -> String {
    match tenant {
        Some(tenant) => format!("auth/roles/{}/", escape(tenant)),
        None => format!("auth/roles/{OF_CLUSTER}/"),
    }
}

/// Key of a revocation of JSON Web Tokens.
#[must_use]
pub fn revocation(id: &str) -> String {
    format!("auth/revoked/{}", escape(id))
}

/// Key of a secret of the cluster.
#[must_use]
pub fn cluster_key(name: &str) -> String {
    format!("auth/keys/{}", escape(name))
}

/// Key of the note of what is gone of a tenant, or without one of the cluster.
#[must_use]
pub fn forgotten(tenant: Option<&str>) -> String {
    match tenant {
        Some(tenant) => format!("auth/forgotten/{}", escape(tenant)),
        None => format!("auth/forgotten/{OF_CLUSTER}"),
    }
}

/// Key of the newest checkpoints of the audit log.
pub const AUDIT_ENDS: &str = "auth/ends";

/// Stands for the cluster where a tenant stands otherwise. No tenant has the name.
const OF_CLUSTER: &str = "~";

/// Key of the leader of an election.
#[must_use]
pub fn leader(election: &str) -> String {
    format!("leaders/{}", escape(election))
}

/// The election of the auditor, which finds ledgers that lack replicas.
pub const ELECTION_AUDITOR: &str = "auditor";

/// The election of the broker that balances load between brokers.
pub const ELECTION_BALANCER: &str = "balancer";

/// What begins the keys that a store keeps for itself; it sorts after all others, and nothing else
/// sees it.
pub const INTERNAL_PREFIX: &str = "~";

/// Key of the slot in which a process notes its commits in etcd; the lease tells processes apart.
#[must_use]
pub fn commit_slot(lease: u64, slot: u32) -> String {
    format!("~/commits/{lease:016x}/{slot}")
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Key::Tenant(name) => tenant(name),
            Key::Namespace(name) => namespace(name),
            Key::Topic(name) => topic(name),
            Key::SegmentPage(name, incarnation, page) => segment_page(name, *incarnation, *page),
            Key::Policies(scope) => policies(scope),
            Key::RateShares(scope) => rate_shares(scope),
            Key::Ledger(id) => ledger(*id),
            Key::BundleOwner(namespace, range) => bundle_owner(namespace, *range),
            Key::Broker(id) => broker(*id),
            Key::Bookie(id) => bookie(*id),
            Key::Cookie(id) => cookie(*id),
            Key::Schema(topic, version) => schema(topic, *version),
            Key::UnderReplicated(id) => under_replicated(*id),
            Key::Deletion(id) => deletion(*id),
            Key::RepairLock(id) => repair_lock(*id),
            Key::RepairWorker(name) => repair_worker(name),
            Key::IdRange(name) => id_range(name),
            Key::Cluster(name) => cluster(name),
            Key::Leader(election) => leader(election),
            Key::Token(id) => token(id),
            Key::Grant(tenant, id) => grant(tenant.as_deref(), id),
            Key::Role(tenant, name) => role(tenant.as_deref(), name),
            Key::Revocation(id) => revocation(id),
            Key::ClusterKey(name) => cluster_key(name),
            Key::Forgotten(tenant) => forgotten(tenant.as_deref()),
            Key::AuditEnds => AUDIT_ENDS.to_owned(),
            Key::Location(number) => location(*number),
            Key::Upload(attempt) => upload(*attempt),
            Key::DyingObject(attempt) => dying_object(*attempt),
            Key::OffloadTask(id) => offload_task(*id),
            Key::Offloader(id) => offloader(*id),
            Key::Backup(id) => backup(*id),
            Key::Restoring(name) => restoring(name),
        })
    }
}

impl FromStr for Key {
    type Err = MetadataError;

    fn from_str(text: &str) -> MetadataResult<Key> {
        let damaged = || MetadataError::Damaged {
            key: text.chars().take(KEY_BYTES_MAX).collect(),
            reason: "it is not a key of this store".to_owned(),
        };
        if text.len() > KEY_BYTES_MAX {
            return Err(damaged());
        }
        let key = parse(text).ok_or_else(damaged)?;
        // Two spellings of one key would be two records of one thing.
        if key.to_string() == text {
            Ok(key)
        } else {
            Err(damaged())
        }
    }
}

fn parse(text: &str) -> Option<Key> {
    let parts: Vec<&str> = text.split('/').collect();
    Some(match parts.as_slice() {
        ["t", tenant] => Key::Tenant(name(tenant)?),
        ["t", tenant, namespace, "p"] => Key::Namespace(namespace_name(tenant, namespace)?),
        ["t", tenant, namespace, "t", topic] => Key::Topic(topic_name(tenant, namespace, topic)?),
        ["t", tenant, namespace, "t", topic, "s", incarnation, page] => Key::SegmentPage(
            topic_name(tenant, namespace, topic)?,
            incarnation.parse().ok()?,
            page.parse().ok()?,
        ),
        ["p", tenant] => Key::Policies(PolicyScope::Tenant(name(tenant)?)),
        ["p", tenant, namespace] => {
            Key::Policies(PolicyScope::Namespace(namespace_name(tenant, namespace)?))
        }
        ["p", tenant, namespace, topic] => {
            Key::Policies(PolicyScope::Topic(topic_name(tenant, namespace, topic)?))
        }
        ["l", id] => Key::Ledger(ledger_id(id)?),
        ["own", tenant, namespace, range] => {
            Key::BundleOwner(namespace_name(tenant, namespace)?, range.parse().ok()?)
        }
        ["brokers", id] => Key::Broker(id.parse().ok()?),
        ["bookies", id] => Key::Bookie(id.parse().ok()?),
        ["cookies", id] => Key::Cookie(id.parse().ok()?),
        ["s", tenant, namespace, topic, version] => {
            Key::Schema(topic_name(tenant, namespace, topic)?, version.parse().ok()?)
        }
        ["rates", tenant] => Key::RateShares(PolicyScope::Tenant(name(tenant)?)),
        ["rates", tenant, namespace] => {
            Key::RateShares(PolicyScope::Namespace(namespace_name(tenant, namespace)?))
        }
        ["u", id] => Key::UnderReplicated(ledger_id(id)?),
        ["locations", number] => Key::Location(number.parse().ok()?),
        ["oc", attempt] => Key::Upload(attempt.parse().ok()?),
        ["od", attempt] => Key::DyingObject(attempt.parse().ok()?),
        ["offloads", id] => Key::OffloadTask(ledger_id(id)?),
        ["offloaders", id] => Key::Offloader(id.parse().ok()?),
        ["backups", id] => Key::Backup(id.parse().ok()?),
        ["restores", tenant, namespace, topic] => {
            Key::Restoring(topic_name(tenant, namespace, topic)?)
        }
        ["g", id] => Key::Deletion(ledger_id(id)?),
        ["ul", id] => Key::RepairLock(ledger_id(id)?),
        ["workers", worker] => Key::RepairWorker(name(worker)?),
        ["ids", counter] => Key::IdRange(name(counter)?),
        ["clusters", cluster] => Key::Cluster(name(cluster)?),
        ["leaders", election] => Key::Leader(name(election)?),
        ["auth", "tokens", id] => Key::Token(name(id)?),
        ["auth", "grants", OF_CLUSTER, id] => Key::Grant(None, name(id)?),
        ["auth", "grants", tenant, id] => Key::Grant(Some(name(tenant)?), name(id)?),
        ["auth", "roles", OF_CLUSTER, role] => Key::Role(None, name(role)?),
        ["auth", "roles", tenant, role] => Key::Role(Some(name(tenant)?), name(role)?),
        ["auth", "revoked", id] => Key::Revocation(name(id)?),
        ["auth", "keys", key] => Key::ClusterKey(name(key)?),
        ["auth", "forgotten", OF_CLUSTER] => Key::Forgotten(None),
        ["auth", "forgotten", tenant] => Key::Forgotten(Some(name(tenant)?)),
        ["auth", "ends"] => Key::AuditEnds,
        _ => return None,
    })
}

fn name(escaped: &str) -> Option<String> {
    let decoded = percent_decode_str(escaped).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| decoded.into_owned())
}

fn namespace_name(tenant: &str, namespace: &str) -> Option<NamespaceName> {
    NamespaceName::new(&name(tenant)?, &name(namespace)?).ok()
}

fn topic_name(tenant: &str, namespace: &str, topic: &str) -> Option<TopicName> {
    TopicName::new(namespace_name(tenant, namespace)?, &name(topic)?).ok()
}

fn ledger_id(digits: &str) -> Option<LedgerId> {
    let id: u64 = digits.parse().ok()?;
    (id <= LEDGER_ID_MAX).then_some(LedgerId(id))
}

fn namespace_prefix(family: &str, namespace: &NamespaceName) -> String {
    format!("{family}/{}/", partition_of_namespace(namespace))
}

fn escape(name: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(name, ESCAPED)
}
