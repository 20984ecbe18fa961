//! The newest checkpoints of the audit log that its topic has. They are in metadata, because
//! a process that holds the storage of the topic need not hold metadata: a topic that has lost its
//! end, or a chain, shows.
//!
//! Invariants: a checkpoint is remembered only when the topic has it, and a newer one of its chain
//! is never replaced by an older one. At most [`ENDS_MAX`] chains are remembered.

use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_proto::v1::{AuditEndRecord, AuditEndsRecord};
use aquifer_protocol_api::security::AuditEnd;
use serde::Deserialize;

use crate::error::BrokerError;
use crate::security::audit::CHECKPOINT;

/// Chains that are remembered: those whose checkpoints are newest.
const ENDS_MAX: usize = 256;

/// The last checkpoint among lines.
pub(crate) fn last_of<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) -> Option<AuditEnd> {
    #[derive(Deserialize)]
    struct Line {
        chain: String,
        seq: u64,
        time_ms: u64,
        request: String,
        hash: String,
    }
    lines.rev().find_map(|line| {
        let line: Line = serde_json::from_str(line).ok()?;
        (line.request == CHECKPOINT).then_some(AuditEnd {
            chain: line.chain,
            seq: line.seq,
            hash: line.hash,
            time_ms: line.time_ms,
        })
    })
}

/// Remembers a checkpoint.
///
/// # Errors
/// When the metadata store does not take it.
pub(crate) async fn remember(store: &dyn MetadataStore, end: &AuditEnd) -> Result<(), BrokerError> {
    let decide = |stored: Option<Versioned>| -> Result<Change<()>, BrokerError> {
        let stored = stored.as_ref().map(record::decode::<AuditEndsRecord>);
        let stored = stored.transpose()?.unwrap_or_default();
        Ok(match with(stored.ends, end) {
            None => Change::none(()),
            Some(ends) => {
                let value = record::encode(AuditEndsRecord { ends });
                Change::put(keys::CLUSTER_PARTITION, value, ())
            }
        })
    };
    let changed = store.update(keys::AUDIT_ENDS, &[], |stored| {
        std::future::ready(decide(stored))
    });
    changed.await.map_err(UpdateError::flatten)?;
    Ok(())
}

/// Checkpoints with one more; `None` when they have it, or a newer one of its chain.
fn with(mut ends: Vec<AuditEndRecord>, end: &AuditEnd) -> Option<Vec<AuditEndRecord>> {
    let known = ends.iter().find(|known| known.chain == end.chain);
    if known.is_some_and(|known| known.seq >= end.seq) {
        return None;
    }
    ends.retain(|known| known.chain != end.chain);
    ends.push(AuditEndRecord {
        chain: end.chain.clone(),
        seq: end.seq,
        hash: end.hash.clone(),
        time_ms: end.time_ms,
    });
    ends.sort_by_key(|end| end.time_ms);
    let more = ends.len().saturating_sub(ENDS_MAX);
    ends.drain(..more);
    ends.sort_by(|a, b| a.chain.cmp(&b.chain));
    Some(ends)
}

/// All that are remembered.
///
/// # Errors
/// When they cannot be read.
pub(crate) async fn all(store: &dyn MetadataStore) -> Result<Vec<AuditEnd>, BrokerError> {
    let stored = store.get(keys::AUDIT_ENDS).await?;
    let stored = stored.as_ref().map(record::decode::<AuditEndsRecord>);
    let ends = stored.transpose()?.unwrap_or_default().ends.into_iter();
    let ends = ends.map(|end| AuditEnd {
        chain: end.chain,
        seq: end.seq,
        hash: end.hash,
        time_ms: end.time_ms,
    });
    Ok(ends.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(chain: u64, seq: u64) -> AuditEnd {
        AuditEnd {
            chain: format!("chain-{chain:04}"),
            seq,
            hash: format!("{seq:064}"),
            time_ms: chain * 1_000 + seq,
        }
    }

    #[test]
    fn the_newest_checkpoint_of_each_chain_stays_and_chains_are_bounded() {
        let ends = with(Vec::new(), &end(1, 7)).unwrap();
        assert_eq!(with(ends.clone(), &end(1, 7)), None);
        assert_eq!(with(ends.clone(), &end(1, 6)), None);
        let ends = with(ends, &end(1, 8)).unwrap();
        assert_eq!((ends.len(), ends[0].seq), (1, 8));
        let many = (2..=ENDS_MAX as u64 + 1).fold(ends, |ends, chain| {
            with(ends, &end(chain, 1)).expect("it is a new chain")
        });
        assert_eq!(many.len(), ENDS_MAX);
        assert_eq!(many[0].chain, "chain-0002", "the oldest goes");
    }

    #[test]
    fn only_checkpoints_are_remembered() {
        let line = |request: &str, seq: u64| {
            format!(
                "{{\"chain\":\"a\",\"seq\":{seq},\"time_ms\":5,\"request\":\"{request}\",\
                 \"hash\":\"00\"}}"
            )
        };
        let lines = [
            line(CHECKPOINT, 1),
            line(CHECKPOINT, 2),
            line("create_topic", 3),
        ];
        let last = last_of(lines.iter().map(String::as_str)).unwrap();
        assert_eq!((last.chain.as_str(), last.seq), ("a", 2));
        assert_eq!(last_of(["no line", lines[2].as_str()].into_iter()), None);
    }
}
