//! Wire ↔ model, in one place.

pub mod bookie;
pub mod load;
pub mod subscription;

use aquifer_model::policy::{Bound, NamespacePolicies, PolicyChanges, Retention, Rollover};
use aquifer_model::quorum::{Quorum, QuorumError};

use crate::v1;

impl From<NamespacePolicies> for v1::Policies {
    fn from(policies: NamespacePolicies) -> v1::Policies {
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        v1::Policies {
            ensemble: size(policies.quorum.ensemble()),
            write_quorum: size(policies.quorum.write()),
            ack_quorum: size(policies.quorum.ack()),
            retention_ms: policies.retention.time_ms,
            retention_bytes: policies.retention.size_bytes,
            deduplication: policies.deduplication,
            auto_create_topics: policies.auto_create_topics,
            rollover_bytes: policies.rollover.size_bytes,
            rollover_ms: policies.rollover.age_ms,
            rollover_entries: policies.rollover.entries,
        }
    }
}

impl From<PolicyChanges> for v1::PolicyChanges {
    fn from(changes: PolicyChanges) -> v1::PolicyChanges {
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let bound = |bound: Bound| v1::Bound {
            limit: bound.limit(),
        };
        v1::PolicyChanges {
            ensemble: changes.quorum.map(|quorum| size(quorum.ensemble())),
            write_quorum: changes.quorum.map(|quorum| size(quorum.write())),
            ack_quorum: changes.quorum.map(|quorum| size(quorum.ack())),
            retention_ms: changes.retention_ms.map(bound),
            retention_bytes: changes.retention_bytes.map(bound),
            deduplication: changes.deduplication,
            auto_create_topics: changes.auto_create_topics,
            rollover_bytes: changes.rollover_bytes,
            rollover_ms: changes.rollover_ms,
            rollover_entries: changes.rollover_entries,
        }
    }
}

impl TryFrom<v1::PolicyChanges> for PolicyChanges {
    type Error = String;

    fn try_from(changes: v1::PolicyChanges) -> Result<PolicyChanges, String> {
        let (ensemble, write, ack) = (changes.ensemble, changes.write_quorum, changes.ack_quorum);
        let quorum = match (ensemble, write, ack) {
            (None, None, None) => None,
            (Some(ensemble), Some(write), Some(ack)) => {
                Some(Quorum::new(ensemble, write, ack).map_err(|error| error.to_string())?)
            }
            _ => return Err("ensemble, write quorum and ack quorum change together".to_owned()),
        };
        let rollover = [
            changes.rollover_bytes,
            changes.rollover_ms,
            changes.rollover_entries,
        ];
        if rollover.contains(&Some(0)) {
            return Err("a bound of a ledger is at least 1".to_owned());
        }
        let bound = |bound: v1::Bound| Bound::from(bound.limit);
        Ok(PolicyChanges {
            quorum,
            retention_ms: changes.retention_ms.map(bound),
            retention_bytes: changes.retention_bytes.map(bound),
            rollover_bytes: changes.rollover_bytes,
            rollover_ms: changes.rollover_ms,
            rollover_entries: changes.rollover_entries,
            deduplication: changes.deduplication,
            auto_create_topics: changes.auto_create_topics,
        })
    }
}

impl TryFrom<v1::Policies> for NamespacePolicies {
    type Error = QuorumError;

    fn try_from(policies: v1::Policies) -> Result<NamespacePolicies, QuorumError> {
        let standard = Rollover::default();
        let or = |given: u64, standard: u64| if given == 0 { standard } else { given };
        Ok(NamespacePolicies {
            quorum: Quorum::new(
                policies.ensemble,
                policies.write_quorum,
                policies.ack_quorum,
            )?,
            retention: Retention {
                time_ms: policies.retention_ms,
                size_bytes: policies.retention_bytes,
            },
            rollover: Rollover {
                size_bytes: or(policies.rollover_bytes, standard.size_bytes),
                age_ms: or(policies.rollover_ms, standard.age_ms),
                entries: or(policies.rollover_entries, standard.entries),
            },
            deduplication: policies.deduplication,
            auto_create_topics: policies.auto_create_topics,
        })
    }
}
