//! Statistics of a loaded topic.

use aquifer_model::stats::{LedgerStats, TopicStats};

use crate::topic::Topic;

impl Topic {
    pub(super) fn stats(&self) -> TopicStats {
        let log = self.log.stats();
        let (counted, end) = (self.counters.now(), self.visible_end());
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
            producers: self.publishing.stats(),
            subscriptions: self
                .subscriptions
                .iter()
                .map(|slot| slot.state.stats(end))
                .collect(),
            messages_in: counted.messages_in,
            bytes_in: counted.bytes_in,
            messages_out: counted.messages_out,
            bytes_out: counted.bytes_out,
        }
    }
}
