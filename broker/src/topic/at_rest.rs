//! What the record of a topic says about its subscriptions while the topic is not loaded.
//!
//! A topic that is unloaded notes how far behind its subscriptions are, in the transactions that
//! seal its ledgers. Only where nothing is left to seal, and the record has no note that holds, one
//! write is made for it. Whatever changes that afterwards appends to one of the two logs, so that
//! the note holds exactly as long as both end where they ended then. After a crash nothing is known
//! until the topic was loaded and unloaded again.

use aquifer_log::TopicRecordCell;
use aquifer_log::error::LogError;
use aquifer_proto::v1::{AtRest, SegmentRecord, SubscriptionAtRest, TopicRecord};

use crate::topic::Topic;
use crate::traffic::Behind;
use crate::traffic::furthest::Lag;

/// Subscriptions that a note names: a record is short.
const SUBSCRIPTIONS_MAX: usize = 4;

/// How far behind the subscriptions of a topic are that is not loaded; `None`: its record does not
/// say.
pub(crate) fn behind(record: &TopicRecord) -> Option<Behind> {
    let cursor_end = end_of(&record.cursor_segments, 0)?;
    if record.cursor_segments.is_empty() {
        // There never was a durable subscription.
        return Some(Behind::default());
    }
    let end = end_of(&record.segments, record.trimmed_index)?;
    let noted = record.at_rest.as_ref()?;
    let holds = noted.end_index == end && noted.cursor_end_index == cursor_end;
    holds.then(|| Behind {
        messages: noted.messages,
        messages_max: noted.messages_max,
        oldest_ms: (noted.messages > 0 && noted.oldest_ms > 0).then_some(noted.oldest_ms),
    })
}

/// Some subscriptions that are furthest behind, of a record whose note holds.
pub(crate) fn lags(record: &TopicRecord) -> impl Iterator<Item = Lag> {
    let noted = record.at_rest.iter().flat_map(|noted| &noted.furthest);
    noted.map(|one| Lag {
        subscription: one.name.clone(),
        messages: one.messages,
        oldest_ms: (one.oldest_ms > 0).then_some(one.oldest_ms),
    })
}

/// Writes the note of a topic that has ended in order, if no seal took it along and its record does
/// not say the same already: its ledgers had been sealed before, or a version without notes did.
pub(super) async fn keep(cell: &TopicRecordCell) -> Result<(), LogError> {
    match behind(&cell.record()) {
        Some(_) => Ok(()),
        None => cell.write_at_rest().await,
    }
}

/// Where a log ends; `None` while its last ledger is not sealed.
fn end_of(segments: &[SegmentRecord], without: u64) -> Option<u64> {
    match segments.last() {
        Some(last) => last.sealed.then_some(last.end_index),
        None => Some(without),
    }
}

impl Topic {
    /// Has the seals of a topic that ends in order note how far behind its subscriptions are, if
    /// everything that is shown of them is durable.
    pub(super) fn note_at_rest(&self) {
        if !self.attachments.is_whole() || !self.is_quiet() || self.cursors.has_given_up() {
            return;
        }
        let behind = self.behind();
        let furthest = self.lags(SUBSCRIPTIONS_MAX).into_iter();
        let furthest = furthest.map(|lag| SubscriptionAtRest {
            name: lag.subscription,
            messages: lag.messages,
            oldest_ms: lag.oldest_ms.unwrap_or_default(),
        });
        self.cell.note_at_rest(AtRest {
            end_index: self.cx.log.end().0,
            cursor_end_index: self.cursors.log().end().0,
            messages: behind.messages,
            messages_max: behind.messages_max,
            oldest_ms: behind.oldest_ms.unwrap_or_default(),
            furthest: furthest.collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(end_index: u64, sealed: bool) -> SegmentRecord {
        SegmentRecord {
            end_index,
            sealed,
            ..SegmentRecord::default()
        }
    }

    fn record(messages: Vec<SegmentRecord>, cursors: Vec<SegmentRecord>) -> TopicRecord {
        TopicRecord {
            segments: messages,
            cursor_segments: cursors,
            at_rest: Some(AtRest {
                end_index: 10,
                cursor_end_index: 4,
                messages: 3,
                messages_max: 2,
                oldest_ms: 77,
                furthest: Vec::new(),
            }),
            ..TopicRecord::default()
        }
    }

    #[test]
    fn a_note_holds_until_a_log_goes_on() {
        let sealed = |end| vec![segment(end, true)];
        let noted = Behind {
            messages: 3,
            messages_max: 2,
            oldest_ms: Some(77),
        };
        assert_eq!(behind(&record(sealed(10), sealed(4))), Some(noted));
        let mut trimmed = record(Vec::new(), sealed(4));
        trimmed.trimmed_index = 10;
        assert_eq!(behind(&trimmed), Some(noted));
        // It was loaded since, and something was stored or acknowledged.
        assert_eq!(behind(&record(sealed(11), sealed(4))), None);
        assert_eq!(behind(&record(sealed(10), sealed(5))), None);
        // Nor is anything known while a ledger is open, or was left open by a crash.
        assert_eq!(behind(&record(vec![segment(0, false)], sealed(4))), None);
        assert_eq!(behind(&record(sealed(10), vec![segment(0, false)])), None);
    }

    #[test]
    fn without_a_note_only_a_topic_without_subscriptions_is_known() {
        let sealed = |end| vec![segment(end, true)];
        let without = |record: TopicRecord| TopicRecord {
            at_rest: None,
            ..record
        };
        assert_eq!(behind(&without(record(sealed(10), sealed(4)))), None);
        let never = without(record(vec![segment(0, false)], Vec::new()));
        assert_eq!(behind(&never), Some(Behind::default()));
    }
}
