//! Trimming of the message log, and the snapshots that let it advance.
//!
//! Invariants (H11, I10): what is not acknowledged durably by every durable subscription stays; so
//! does what is not yet in a durable snapshot of the producers' states. A topic is loaded only with
//! its cursors recovered, so "no subscriptions" here means that there are none.
//!
//! What is due depends on policy, acknowledgements and time, on nothing else: a snapshot, the seal of a
//! ledger that nobody writes to, and the load of a topic that nobody uses (`sweep.rs`) follow from that.

use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_metadata::store::Revision;
use aquifer_model::id::Index;

use crate::error::BrokerError;
use crate::topic::Topic;
use crate::topic::cursors::SnapshotContents;
use crate::topic::event::{Event, Reply};

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
#[derive(Debug)]
pub(super) struct Trimming {
    /// A trim is on its way.
    running: bool,
    /// The end of the first segment that policy lets go: nothing is trimmed before the marks pass it.
    due_at: Option<Index>,
    /// A snapshot was asked for by what is due, and when that was last.
    asked: bool,
    asked_at: Option<Duration>,
    /// Who wants to know when nothing is left to be done.
    visitors: Vec<Reply<()>>,
    /// The topic was loaded at that time, and if for a visit, it goes when that is over.
    loaded_at: Duration,
    visited: bool,
}

/// As long as the record has this revision, nothing at or above `limit` may be trimmed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rest {
    /// Of the topic's record.
    pub(crate) revision: Revision,
    /// The end of what no subscription needs.
    pub(crate) limit: Index,
}

impl Trimming {
    pub(super) fn new(loaded_at: Duration) -> Trimming {
        Trimming {
            running: false,
            due_at: None,
            asked: false,
            asked_at: None,
            visitors: Vec::new(),
            loaded_at,
            visited: false,
        }
    }
}

impl Topic {
    /// The index below which nobody needs anything any more.
    pub(super) fn trim_limit(&self) -> Index {
        self.subscriptions
            .iter()
            .filter(|slot| slot.state.is_durable())
            .map(|slot| slot.state.durable_mark_delete())
            .fold(self.publishing.persisted_end, Index::min)
    }

    /// Trims aside what retention allows. What policy lets go and a snapshot of the producers does not
    /// cover yet waits for one, which is asked for at once: not for more messages.
    pub(super) fn trim(&mut self) {
        if self.trimming.running || self.ending.is_some() {
            return;
        }
        // A subscription may be missing that needs it.
        if self.losses.is_some() {
            return self.visit_over(&Ok(()));
        }
        let retention = self.policies.borrow().retention;
        let all = self.log.trim_due(Index(u64::MAX), retention);
        self.trimming.due_at = all.map(|due| due.first_end);
        let limit = self.trim_limit();
        let due = self.log.trim_due(limit, retention);
        let covered = limit.min(self.cursors.dedup_index);
        if due.is_some_and(|due| due.end > covered) {
            self.ask_for_snapshot();
        }
        let is_covered = due.is_some_and(|due| due.first_end <= covered);
        if is_covered || self.log.wants_seal(covered, retention) {
            self.trimming.running = true;
            let (log, mailbox) = (self.log.clone(), self.mailbox.clone());
            self.shared.tasks.spawn("topic-trim", async move {
                let result = log.trim(covered, retention).await;
                // A topic that is gone does not care.
                let _ = mailbox.send(Event::Trimmed(result)).await;
            });
        } else if due.is_none() {
            self.visit_over(&Ok(()));
        }
    }

    /// A topic whose ledgers are small would have a snapshot for each: some wait for the next look.
    fn ask_for_snapshot(&mut self) {
        let now = self.now();
        let (last, pause) = (self.trimming.asked_at, self.snapshot_pause());
        if last.is_none_or(|last| now.saturating_sub(last) >= pause) {
            self.trimming.asked_at = Some(now);
            self.trimming.asked = true;
            self.cursors.want_snapshot();
        }
    }

    /// A snapshot is durable.
    pub(super) fn snapshot_done(&mut self) {
        self.reset_done();
        if std::mem::take(&mut self.trimming.asked) {
            self.trim();
        }
    }

    /// Trims when the marks have passed what policy lets go.
    pub(super) fn trim_if_due(&mut self) {
        if let Some(end) = self.trimming.due_at
            && end <= self.trim_limit()
        {
            self.trimming.due_at = None;
            self.trim();
        }
    }

    pub(super) fn trimmed(&mut self, result: Result<Index, LogError>) {
        self.trimming.running = false;
        match result {
            Ok(first) => {
                let before = self.log_begins_at;
                self.log_begins_at = first;
                self.subscriptions.trimmed(first);
                if first > before {
                    self.trim(); // there may be more
                } else {
                    self.visit_over(&Ok(()));
                }
            }
            // Nothing of that is a reason to end a topic which serves, but that it has another owner.
            Err(error) => {
                tracing::warn!(topic = %self.name, %error, "topic was not trimmed, trying again later");
                self.visit_over(&Err(error.clone().into()));
                if matches!(error, LogError::Fenced) {
                    self.broken(&error);
                }
            }
        }
    }

    /// Somebody wants the topic to be trimmed as far as policy allows. If nobody has used it since it
    /// was loaded, it goes then.
    pub(super) fn trim_visit(&mut self, reply: Reply<()>) {
        if let Some(ending) = &self.ending {
            let _ = reply.send(Err(ending.error.clone()));
            return;
        }
        self.trimming.visited = true;
        self.trimming.visitors.push(reply);
        self.trim();
    }

    fn visit_over(&mut self, result: &Result<(), BrokerError>) {
        for visitor in std::mem::take(&mut self.trimming.visitors) {
            let _ = visitor.send(result.clone());
            self.next_housekeeping = self.now();
        }
    }

    /// How long the topic stays without clients.
    pub(super) fn idle_max(&self) -> Duration {
        let is_visit = self.trimming.visited && self.trimming.visitors.is_empty();
        match is_visit && self.last_used == self.trimming.loaded_at {
            true => Duration::ZERO,
            false => Duration::from_millis(self.shared.config.topic_idle_ms),
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
        if old || (many && age >= self.snapshot_pause()) {
            self.cursors.want_snapshot();
        }
    }

    fn snapshot_pause(&self) -> Duration {
        let count = |of: usize| u64::try_from(of).unwrap_or(u64::MAX);
        let dedup = &self.publishing.dedup;
        snapshot_pause(count(dedup.len()), count(dedup.batches()))
    }

    /// Before the topic ends: spares the next load a long replay, and keeps how often messages that
    /// no consumer acknowledges were delivered.
    pub(super) fn snapshot_before_end(&mut self) {
        let mut slots = self.subscriptions.iter();
        if self.publishing.since_snapshot.entries >= SNAPSHOT_ENTRIES_MIN
            || slots.any(|slot| slot.state.is_durable() && slot.state.has_redelivered())
        {
            self.cursors.want_snapshot();
        }
    }

    pub(super) fn snapshot_contents(&self) -> SnapshotContents {
        let durable = self
            .subscriptions
            .iter()
            .filter(|slot| slot.state.is_durable());
        SnapshotContents {
            subscriptions: durable.map(|slot| slot.state.record()).collect(),
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
