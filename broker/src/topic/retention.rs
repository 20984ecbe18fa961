//! Trimming of the message log, and the snapshots that let it advance.
//!
//! Invariants (H11, I10): what is not acknowledged durably by every durable subscription stays; so
//! does what is not yet in a durable snapshot of the producers' states. A topic is loaded only with
//! its cursors recovered, so "no subscriptions" here means that there are none.

use std::time::Duration;

use aquifer_ledger::error::LogError;
use aquifer_model::id::Index;

use crate::topic::Topic;
use crate::topic::cursors::SnapshotContents;
use crate::topic::event::Event;

/// Entries since the last snapshot above which one is taken by time, or before unloading; fewer are
/// replayed in no time.
const SNAPSHOT_ENTRIES_MIN: u64 = 1_000;

/// Least time between two snapshots, however much is published.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(1);

/// What snapshots may cost a topic: so many bytes a second, however often one is due.
const SNAPSHOT_BYTES_PER_SECOND: u64 = 1 << 20;

/// Bytes of a producer, and of one of its batches, in a snapshot; about.
const PRODUCER_BYTES: u64 = 96;
const BATCH_BYTES: u64 = 32;

/// What is known of trimming.
#[derive(Debug, Default)]
pub(super) struct Trimming {
    /// A trim is on its way.
    running: bool,
    /// The end of the oldest sealed ledger: nothing can be trimmed before the marks pass it.
    due_at: Option<Index>,
}

impl Topic {
    /// The index below which nobody needs anything any more.
    fn trim_limit(&self) -> Index {
        self.subscriptions
            .iter()
            .filter(|slot| slot.state.is_durable())
            .map(|slot| slot.state.durable_mark_delete())
            .fold(self.publishing.persisted_end, Index::min)
    }

    /// Trims aside what retention allows; asks for a snapshot of the producers when only its age
    /// is in the way.
    pub(super) fn trim(&mut self) {
        if self.trimming.running || self.ending.is_some() {
            return;
        }
        let stats = self.log.stats();
        self.trimming.due_at = stats.ledgers.get(1).map(|ledger| ledger.first_index);
        let limit = self.trim_limit();
        let covered = limit.min(self.cursors.dedup_index);
        let below = match self.trimming.due_at {
            Some(end) if end > covered && end <= limit => {
                self.cursors.want_snapshot();
                return;
            }
            Some(_) => covered,
            // One ledger: the log may still seal it for its age.
            None => covered,
        };
        if stats.ledgers.is_empty() {
            return;
        }
        let retention = self.policies.borrow().retention;
        self.trimming.running = true;
        let (log, mailbox) = (self.log.clone(), self.mailbox.clone());
        self.shared.tasks.spawn("topic-trim", async move {
            let result = log.trim(below, retention).await;
            // A topic that is gone does not care.
            let _ = mailbox.send(Event::Trimmed(result)).await;
        });
    }

    /// Trims when the marks have passed the oldest sealed ledger.
    pub(super) fn trim_if_due(&mut self) {
        if let Some(end) = self.trimming.due_at
            && end <= self.trim_limit()
        {
            // Retention may forbid it; then the next look is at the next housekeeping.
            self.trimming.due_at = None;
            self.trim();
        }
    }

    pub(super) fn trimmed(&mut self, result: Result<Index, LogError>) {
        self.trimming.running = false;
        match result {
            Ok(first) => self.subscriptions.trimmed(first),
            Err(error) => {
                tracing::warn!(topic = %self.name, %error, "topic was not trimmed, trying again later");
                self.survives(&error);
            }
        }
    }

    /// Takes a snapshot when replaying what came since would take long.
    pub(super) fn maybe_snapshot(&mut self) {
        let config = &self.shared.config;
        let since = self.publishing.since_snapshot;
        let age = self.now().saturating_sub(self.cursors.snapshot_time);
        let old = age >= Duration::from_millis(config.dedup_snapshot_ms)
            && since.entries >= SNAPSHOT_ENTRIES_MIN;
        // Many producers make a large snapshot, which is to be small beside what it covers.
        let producers = u64::try_from(self.publishing.dedup.len()).unwrap_or(u64::MAX);
        let many = since.entries >= config.dedup_snapshot_entries.max(producers)
            || since.bytes >= config.dedup_snapshot_bytes;
        let batches = u64::try_from(self.publishing.dedup.batches()).unwrap_or(u64::MAX);
        if old || (many && age >= snapshot_pause(producers, batches)) {
            self.cursors.want_snapshot();
        }
    }

    /// Before the topic ends: spares the next load a long replay.
    pub(super) fn snapshot_before_end(&mut self) {
        if self.publishing.since_snapshot.entries >= SNAPSHOT_ENTRIES_MIN {
            self.cursors.want_snapshot();
        }
    }

    pub(super) fn snapshot_contents(&self) -> SnapshotContents {
        let durable = self
            .subscriptions
            .iter()
            .filter(|slot| slot.state.is_durable());
        SnapshotContents {
            subscriptions: durable.map(|slot| slot.state.state()).collect(),
            producers: self.publishing.dedup.snapshot(),
            dedup_index: self.publishing.persisted_end,
        }
    }
}

/// Least time between two snapshots of so many producers with so many batches.
fn snapshot_pause(producers: u64, batches: u64) -> Duration {
    let producers = producers.saturating_mul(PRODUCER_BYTES);
    let bytes = producers.saturating_add(batches.saturating_mul(BATCH_BYTES));
    SNAPSHOT_PAUSE.max(Duration::from_secs(bytes / SNAPSHOT_BYTES_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use aquifer_model::limits::{DEDUP_PRODUCERS_MAX, DEDUP_WINDOW_MAX};

    use super::*;

    /// A snapshot of everything that may be remembered costs no more a second than a small one.
    #[test]
    fn large_snapshots_are_rare() {
        assert_eq!(snapshot_pause(1, 64), SNAPSHOT_PAUSE);
        let producers = DEDUP_PRODUCERS_MAX as u64;
        let batches = producers * DEDUP_WINDOW_MAX as u64;
        let bytes = producers * PRODUCER_BYTES + batches * BATCH_BYTES;
        let pause = snapshot_pause(producers, batches);
        assert!(
            bytes / pause.as_secs() <= SNAPSHOT_BYTES_PER_SECOND + SNAPSHOT_BYTES_PER_SECOND / 8
        );
        assert!(
            pause < Duration::from_secs(60),
            "{pause:?}: replay stays short"
        );
    }
}
