//! Statistics of a loaded topic.

use aquifer_log::{LedgerStat, SegmentState};
use aquifer_model::stats::{LedgerPlace, LedgerStats, TopicEnd, TopicStats};

use crate::topic::attachments::Attachments;
use crate::topic::context::TopicContext;
use crate::topic::publishing::Publishing;

fn of_ledger(ledger: &LedgerStat) -> LedgerStats {
    let (state, local, object) = match &ledger.state {
        SegmentState::Local if ledger.open => (LedgerPlace::Open, true, None),
        SegmentState::Local => (LedgerPlace::Closed, true, None),
        SegmentState::Offloading => (LedgerPlace::Offloading, true, None),
        SegmentState::Offloaded { object, local } => {
            (LedgerPlace::Offloaded, *local, Some(object.to_string()))
        }
    };
    LedgerStats {
        ledger: ledger.ledger,
        first_index: ledger.first_index,
        entries: ledger.entries,
        bytes: ledger.bytes,
        state,
        local,
        object,
    }
}

/// What a topic says about itself and its clients.
pub(super) fn stats(
    cx: &TopicContext,
    publishing: &Publishing,
    attachments: &Attachments,
) -> TopicStats {
    let log = cx.log.stats();
    let (counted, end) = (cx.counters.now(), cx.visible_end());
    let ledgers = log.ledgers.iter().map(of_ledger);
    let topic_end = || TopicEnd {
        topic: cx.name.clone(),
        end,
    };
    TopicStats {
        partitions: 0,
        first_index: log.first,
        end_index: end,
        stored_bytes: log.bytes,
        entries: log.entries,
        ledgers: ledgers.collect(),
        producers: publishing.stats(),
        subscriptions: attachments.stats(end),
        held_back_by: cx.rates.producers_wait_for().map(|limit| limit.to_string()),
        shortened: false,
        ends: cx.is_complete().then(topic_end).into_iter().collect(),
        messages_in: counted.messages_in,
        bytes_in: counted.bytes_in,
        messages_out: counted.messages_out,
        bytes_out: counted.bytes_out,
    }
}
