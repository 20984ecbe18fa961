//! Which ledgers the keys of topics list: a topic's record has its newest segments and those of its
//! cursor log, and pages below the record have the older ones (`docs/formats.md`).
//!
//! A topic that is being restored has a record elsewhere, which becomes the topic's in one
//! transaction. Everything that asks which ledgers topics use scans
//! [`RESTORES_PREFIX`](crate::keys::RESTORES_PREFIX) first, then
//! [`TENANTS_PREFIX`](crate::keys::TENANTS_PREFIX) at one revision, and asks this of each key. A
//! record and its pages change in one transaction, so at one revision each segment is in exactly
//! one of them. Invariant: a key that is not understood is an error and never an empty list.

use aquifer_model::id::LedgerId;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;

use crate::error::{MetadataError, MetadataResult};
use crate::keys::Key;
use crate::record;
use crate::store::Versioned;

/// The ledgers that one key lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedLedgers {
    /// The topic.
    pub topic: TopicName,
    /// Ledgers of its messages and of its cursor log.
    pub ledgers: Vec<LedgerId>,
}

/// What a key below `t/` or `restores/` lists: `None` for tenants and namespaces.
///
/// # Errors
/// When the value cannot be read, or no such key stands there.
pub fn listed(item: &Versioned) -> MetadataResult<Option<ListedLedgers>> {
    let (topic, segments) = match item.key.parse()? {
        Key::Tenant(_) | Key::Namespace(_) => return Ok(None),
        Key::Topic(topic) | Key::Restoring(topic) => {
            let record: v1::TopicRecord = record::decode(item)?;
            let mut segments = record.segments;
            segments.extend(record.cursor_segments);
            (topic, segments)
        }
        Key::SegmentPage(topic, ..) => {
            let page: v1::SegmentPageRecord = record::decode(item)?;
            (topic, page.segments)
        }
        _ => {
            return Err(MetadataError::Damaged {
                key: item.key.clone(),
                reason: "it is not a key of a tenant, a namespace or a topic".to_owned(),
            });
        }
    };
    let ledgers = segments.iter().map(|segment| LedgerId(segment.ledger_id));
    Ok(Some(ListedLedgers {
        topic,
        ledgers: ledgers.collect(),
    }))
}

#[cfg(test)]
mod tests {
    use aquifer_model::id::TopicIncarnation;
    use bytes::Bytes;

    use super::*;
    use crate::keys;
    use crate::store::Revision;

    fn item(key: &str, value: Bytes) -> Versioned {
        Versioned {
            key: key.to_owned(),
            value,
            revision: Revision(1),
        }
    }

    fn segments(ids: &[u64]) -> Vec<v1::SegmentRecord> {
        let segment = |id: &u64| v1::SegmentRecord {
            ledger_id: *id,
            ..v1::SegmentRecord::default()
        };
        ids.iter().map(segment).collect()
    }

    #[test]
    fn a_topic_lists_what_its_record_and_its_pages_have() {
        let topic: TopicName = "t/n/x".parse().unwrap();
        let record = record::encode(v1::TopicRecord {
            segments: segments(&[3, 5]),
            cursor_segments: segments(&[4]),
            ..v1::TopicRecord::default()
        });
        let page = record::encode(v1::SegmentPageRecord {
            segments: segments(&[1, 2]),
            ..v1::SegmentPageRecord::default()
        });
        let ids = |found: MetadataResult<Option<ListedLedgers>>| {
            let found = found.unwrap().unwrap();
            assert_eq!(found.topic, topic);
            found.ledgers.iter().map(|id| id.0).collect::<Vec<_>>()
        };
        let at = keys::topic(&topic);
        assert_eq!(ids(listed(&item(&at, record.clone()))), [3, 5, 4]);
        let at_page = keys::segment_page(&topic, TopicIncarnation([1; 16]), 7);
        assert_eq!(ids(listed(&item(&at_page, page.clone()))), [1, 2]);
        assert_eq!(listed(&item(&keys::tenant("t"), Bytes::new())), Ok(None));
        for bad in [
            item(&at, page),
            item(&at_page, record),
            item("t/a/b/x", Bytes::new()),
            item("l/0000000000000001", Bytes::new()),
        ] {
            let refused = listed(&bad);
            assert!(
                matches!(refused, Err(MetadataError::Damaged { .. })),
                "{refused:?}"
            );
        }
    }
}
