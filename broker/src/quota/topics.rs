//! How many topics a namespace may have.
//!
//! Topics are counted in metadata when one is to be created, at most once in [`COUNT_TIME`] and by
//! one request at a time, for which the others of the namespace wait; what this broker creates
//! meanwhile is added. What other brokers create in that time is seen late, so that a namespace may
//! exceed its bound by that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::Versioned;
use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1::TopicRecord;
use aquifer_protocol_api::admin::PageRequest;
use aquifer_runtime::clock::SharedClock;
use parking_lot::Mutex;

use crate::error::BrokerError;
use crate::namespace::Namespaces;
use crate::namespace::listing::{Listed, Lister, parse};

/// How long a count is used.
const COUNT_TIME: Duration = Duration::from_secs(1);
/// Counts that are remembered.
const COUNTS_MAX: usize = 1_024;

/// Topics of namespaces, as they were counted last.
#[derive(Default)]
pub(crate) struct TopicCounts {
    known: Mutex<HashMap<NamespaceName, Arc<Counting>>>,
}

/// The count of one namespace. The task that holds the lock counts; the others wait for the result.
#[derive(Default)]
struct Counting(tokio::sync::Mutex<Option<Counted>>);

#[derive(Debug, Clone, Copy)]
struct Counted {
    /// When it was complete, on the monotonic clock.
    at: Duration,
    topics: u64,
}

impl TopicCounts {
    /// Refuses the creation of a topic, or of one with partitions, of which the namespace may not
    /// have as many more. Counts them if it may.
    pub(crate) async fn check(
        &self,
        namespaces: &Namespaces,
        clock: &SharedClock,
        topic: &TopicName,
        partitions: u32,
    ) -> Result<(), BrokerError> {
        let namespace = topic.namespace();
        let policies = namespaces.policies().of_namespace(namespace).await?;
        let Some(max) = policies.counts.topics else {
            return Ok(());
        };
        let adding = u64::from(partitions.max(1));
        let counting = self.of(namespace);
        let mut known = counting.0.lock().await;
        let now = clock.monotonic();
        let fresh = known.filter(|counted| now < counted.at + COUNT_TIME);
        let used = match fresh {
            Some(counted) => counted.topics,
            None => count(namespaces, namespace).await?,
        };
        let at = fresh.map_or_else(|| clock.monotonic(), |counted| counted.at);
        let is_over = used.saturating_add(adding) > max;
        let topics = match is_over {
            true => used,
            false => used.saturating_add(adding),
        };
        *known = Some(Counted { at, topics });
        if is_over {
            return Err(BrokerError::Quota {
                limit: "counts.topics",
                what: "topics and partitions",
                scope: format!("namespace {namespace}"),
                used,
                max,
            });
        }
        Ok(())
    }

    fn of(&self, namespace: &NamespaceName) -> Arc<Counting> {
        let mut known = self.known.lock();
        if known.len() >= COUNTS_MAX && !known.contains_key(namespace) {
            // Those that are being counted stay, one for each of the requests at hand at most.
            known.retain(|_, counting| Arc::strong_count(counting) > 1);
        }
        Arc::clone(known.entry(namespace.clone()).or_default())
    }
}

/// Counts the topics of a namespace in metadata. No `scan::each`, which would read every page of
/// segments of every topic while a request waits: a [`Lister`] jumps over these. What is created
/// or deleted meanwhile is counted or not, as the module allows.
async fn count(namespaces: &Namespaces, namespace: &NamespaceName) -> Result<u64, BrokerError> {
    let lister = Lister {
        store: namespaces.store().as_ref(),
        prefix: keys::topics_prefix(namespace),
    };
    let (mut topics, mut after) = (0u64, None);
    loop {
        let request = PageRequest {
            after: None,
            limit: METADATA_PAGE_KEYS_MAX,
        };
        let page = lister.page(&request, after, look).await?;
        let counts = page.items.iter();
        topics = counts.fold(topics, |sum, more| sum.saturating_add(*more));
        let Some(last) = page.next else {
            return Ok(topics);
        };
        let last = TopicName::new(namespace.clone(), &last);
        let last = last.map_err(|error| BrokerError::Internal(error.to_string()))?;
        after = Some(keys::topic(&last));
    }
}

/// How many topics a key stands for: a partitioned topic counts its partitions.
fn look(versioned: &Versioned) -> Result<Listed<u64>, BrokerError> {
    let topic = match parse(versioned)? {
        Key::Topic(topic) if topic.partition().is_none() => topic,
        Key::SegmentPage(topic, ..) => {
            return Ok(Listed::SkipUnder(keys::segment_pages_prefix(&topic)));
        }
        _ => return Ok(Listed::Skip),
    };
    let record: TopicRecord = record::decode(versioned)?;
    let count = u64::try_from(record.ranges.len().max(1)).unwrap_or(u64::MAX);
    Ok(Listed::Item(count, topic.name().to_owned()))
}
