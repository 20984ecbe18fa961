//! The messages that a subscription will get next, for a person to look at: no delivery, which no
//! rate limits and no figure counts. Like every read it is counted by the budget of deliveries
//! (I13).

use aquifer_model::id::Index;
use aquifer_protocol_api::admin::Peeked;
use aquifer_protocol_api::consumer::IndexRange;

use crate::error::BrokerError;
use crate::topic::pull::Door;

/// Bytes after which no more entries are read.
const PEEK_BYTES_MAX: usize = 1 << 20;

impl Door {
    /// Reads the entries that hold these messages, in order, as much as one answer may have.
    pub(crate) async fn peek(
        mut self,
        unacknowledged: Vec<IndexRange>,
    ) -> Result<Peeked, BrokerError> {
        let budget = self.deliveries.child(usize::MAX);
        let mut found = Peeked::default();
        let (mut bytes, mut at) = (0usize, Index(0));
        for range in &unacknowledged {
            at = at.max(range.first).max(self.log.first());
            while at <= range.last && bytes < PEEK_BYTES_MAX {
                let entry = self.entry_at(at, PEEK_BYTES_MAX, &budget).await?;
                // An entry of which nothing came is not visible any more or yet.
                if entry.next <= at {
                    break;
                }
                at = entry.next;
                found.gaps.extend(entry.gap);
                for batch in entry.batches {
                    bytes = bytes.saturating_add(batch.body.len());
                    found.batches.push(batch);
                }
            }
        }
        found.unacknowledged = unacknowledged;
        Ok(found)
    }
}
