//! Statistics of a loaded topic.

use aquifer_model::stats::{LedgerStats, TopicStats};

use crate::topic::attachments::Attachments;
use crate::topic::context::TopicContext;
use crate::topic::publishing::Publishing;

/// What a topic says about itself and its clients.
pub(super) fn stats(
    cx: &TopicContext,
    publishing: &Publishing,
    attachments: &Attachments,
) -> TopicStats {
    let log = cx.log.stats();
    let (counted, end) = (cx.counters.now(), cx.visible_end());
    let ledgers = log.ledgers.iter().map(|ledger| LedgerStats {
        ledger: ledger.ledger,
        first_index: ledger.first_index,
        entries: ledger.entries,
        bytes: ledger.bytes,
        state: if ledger.open { "open" } else { "closed" },
    });
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
        messages_in: counted.messages_in,
        bytes_in: counted.bytes_in,
        messages_out: counted.messages_out,
        bytes_out: counted.bytes_out,
    }
}
