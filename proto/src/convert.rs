//! Wire ↔ model, in one place.

pub mod bookie;
pub mod load;

use aquifer_model::policy::{NamespacePolicies, Retention, Rollover};
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
