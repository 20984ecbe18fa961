//! Trimming of the message log, and when a snapshot of the producers lets it advance.
//!
//! Invariants (H11, I10): what is not acknowledged durably by every durable subscription stays; so
//! does what is not yet in a durable snapshot of the producers' states. A topic is loaded only with
//! its cursors recovered, so a topic without subscriptions has none.
//!
//! What is due depends on policy, acknowledgements and time, on nothing else: a snapshot, the seal
//! of a ledger to which no producer writes, and the load of a topic that no client uses
//! (`sweep.rs`) follow from that.

use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_metadata::store::Revision;
use aquifer_model::id::Index;
use aquifer_model::policy::Retention;

use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::topic::context::TopicContext;
use crate::topic::dedup::SinceSnapshot;
use crate::topic::event::{Event, Reply};

/// Entries since the last snapshot above which one is taken by time, or before unloading; fewer are
/// replayed in no time.
const SNAPSHOT_ENTRIES_MIN: u64 = 1_000;

/// Least time between two snapshots, however much is published.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(1);

/// What snapshots may cost a topic: this many bytes a second, however often one is due.
const SNAPSHOT_BYTES_PER_SECOND: u64 = 1 << 20;

/// Bytes of a producer, and of one of its batches, in a snapshot; about.
const PRODUCER_BYTES: u64 = 96;
const BATCH_BYTES: u64 = 32;

/// See the module.
pub(super) struct Trimming {
    /// A trim runs beside the task.
    running: bool,
    /// The end of the first segment that policy lets go: nothing is trimmed before the marks pass
    /// it.
    due_at: Option<Index>,
    /// A snapshot was asked for by what is due, and when that was last.
    asked: bool,
    asked_at: Option<Duration>,
    /// Requests that want to know when nothing is left to be done.
    visitors: Vec<Reply<()>>,
    /// When the topic was loaded. If it was for a visit, it ends when that is over.
    loaded_at: Duration,
    visited: bool,
    /// Where the log began when that was last looked at.
    log_begins_at: Index,
}

/// What a topic is left with when it is unloaded: as long as its record has this revision, nothing
/// at or above `limit` may be trimmed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rest {
    /// Of the topic's record.
    pub(crate) revision: Revision,
    /// The end of what no subscription needs.
    pub(crate) limit: Index,
}

/// What keeps messages from being trimmed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// Below this no subscription needs anything.
    pub(super) mark: Index,
    /// The end of what the newest durable snapshot of the producers covers.
    pub(super) snapshot: Index,
    /// Least time between two snapshots.
    pub(super) pause: Duration,
}

/// What the log says about trimming.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// The end of the first segment that policy lets go, whatever keeps it.
    first_due: Option<Index>,
    /// Of what policy lets go and no subscription needs: the end of the first segment, and of all.
    free: Option<(Index, Index)>,
    /// The open ledger is to be sealed.
    wants_seal: bool,
}

/// What is to be done about trimming.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Step {
    /// Trims what is kept by nothing.
    trim: bool,
    /// A snapshot of the producers is to be taken.
    snapshot: bool,
    /// Nothing is left to be done.
    done: bool,
}

/// What the topic is to do for trimming.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TrimEffects {
    /// A snapshot of the producers is wanted.
    pub(super) snapshot: bool,
    /// A visit is over: whether the topic may end is to be looked at.
    pub(super) visit_over: bool,
}

impl Trimming {
    pub(super) fn new(loaded_at: Duration, log_begins_at: Index) -> Trimming {
        Trimming {
            running: false,
            due_at: None,
            asked: false,
            asked_at: None,
            visitors: Vec::new(),
            loaded_at,
            visited: false,
            log_begins_at,
        }
    }

    /// Whether a trim runs beside the task.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// Trims beside the task what retention allows. What policy lets go and a snapshot of the
    /// producers does not cover yet waits for one, which is asked for at once: not for more
    /// messages.
    pub(super) fn trim(
        &mut self,
        cx: &TopicContext,
        retention: Retention,
        kept: Kept,
    ) -> TrimEffects {
        let all = cx.log.trim_due(Index(u64::MAX), retention);
        let free = cx.log.trim_due(kept.mark, retention);
        let covered = kept.mark.min(kept.snapshot);
        let step = self.decide(
            cx.now(),
            kept,
            Seen {
                first_due: all.map(|due| due.first_end),
                free: free.map(|due| (due.first_end, due.end)),
                wants_seal: cx.log.wants_seal(covered, retention),
            },
        );
        if step.trim {
            let (log, mailbox) = (cx.log.clone(), cx.mailbox.clone());
            cx.shared.tasks.spawn("topic-trim", async move {
                let result = log.trim(covered, retention).await;
                // A topic that has ended needs no answer.
                let _ = mailbox.send(Event::Trimmed(result)).await;
            });
        }
        TrimEffects {
            snapshot: step.snapshot,
            visit_over: step.done && self.visit_over(&Ok(())),
        }
    }

    fn decide(&mut self, now: Duration, kept: Kept, seen: Seen) -> Step {
        self.due_at = seen.first_due;
        let covered = kept.mark.min(kept.snapshot);
        let mut step = Step::default();
        // A topic whose ledgers are small would have a snapshot for each: some wait for the next
        // look.
        let may_ask = |last| now.saturating_sub(last) >= kept.pause;
        if seen.free.is_some_and(|(_, end)| end > covered) && self.asked_at.is_none_or(may_ask) {
            self.asked_at = Some(now);
            self.asked = true;
            step.snapshot = true;
        }
        let is_covered = seen.free.is_some_and(|(first, _)| first <= covered);
        if is_covered || seen.wants_seal {
            self.running = true;
            step.trim = true;
        } else {
            step.done = seen.free.is_none();
        }
        step
    }

    /// A snapshot is durable. Answers whether trimming waited for it.
    pub(super) fn snapshot_done(&mut self) -> bool {
        std::mem::take(&mut self.asked)
    }

    /// Whether the marks have passed what policy lets go; asked once for each.
    pub(super) fn is_due(&mut self, mark: impl FnOnce() -> Index) -> bool {
        self.due_at.take_if(|end| *end <= mark()).is_some()
    }

    /// A trim has ended. Answers whether the log begins elsewhere, so that there may be more to
    /// trim.
    pub(super) fn trimmed(&mut self, first: Index) -> bool {
        self.running = false;
        let before = std::mem::replace(&mut self.log_begins_at, first);
        first > before
    }

    /// A trim has failed, and is tried again later.
    pub(super) fn failed(&mut self, cx: &TopicContext, error: &LogError) -> bool {
        self.running = false;
        tracing::warn!(topic = %cx.name, %error, "topic was not trimmed, trying again later");
        self.visit_over(&Err(error.clone().into()))
    }

    /// The topic may have been loaded for a visit: if no client has used it since, it ends soon.
    pub(super) fn note_visit(&mut self) {
        self.visited = true;
    }

    /// A request wants the topic to be trimmed as far as policy allows. If no client has used the
    /// topic since it was loaded, it ends then.
    pub(super) fn visit(&mut self, reply: Reply<()>) {
        self.note_visit();
        self.visitors.push(reply);
    }

    /// Nothing is left to be done for the moment. Answers whether a request waited for that.
    pub(super) fn visit_over(&mut self, result: &Result<(), BrokerError>) -> bool {
        let visitors = std::mem::take(&mut self.visitors);
        let is_over = !visitors.is_empty();
        for visitor in visitors {
            let _ = visitor.send(result.clone());
        }
        is_over
    }

    /// How long the topic stays without clients. `last_used` is when it last had one, or was
    /// loaded.
    pub(super) fn idle_max(&self, config: &BrokerConfig, last_used: Duration) -> Duration {
        let is_visit = self.visited && self.visitors.is_empty();
        match is_visit && last_used == self.loaded_at {
            true => Duration::ZERO,
            false => Duration::from_millis(config.topic_idle_ms),
        }
    }
}

/// Whether a snapshot is due, since replaying what came since the last one would take long. `age`
/// is that of the last one; `producers` and `batches` make the size of the next.
pub(super) fn is_snapshot_due(
    config: &BrokerConfig,
    since: SinceSnapshot,
    age: Duration,
    (producers, batches): (usize, usize),
) -> bool {
    let old = age >= Duration::from_millis(config.dedup_snapshot_ms)
        && since.entries >= SNAPSHOT_ENTRIES_MIN;
    // Many producers make a large snapshot, which is to be small beside what it covers.
    let many = since.entries >= config.dedup_snapshot_entries.max(count(producers))
        || since.bytes >= config.dedup_snapshot_bytes;
    old || (many && age >= snapshot_pause((producers, batches)))
}

/// Whether a snapshot before the end spares the next load a long replay.
pub(super) fn is_replay_long(since: SinceSnapshot) -> bool {
    since.entries >= SNAPSHOT_ENTRIES_MIN
}

/// Least time between two snapshots of this many producers with this many batches.
pub(super) fn snapshot_pause((producers, batches): (usize, usize)) -> Duration {
    let producers = count(producers).saturating_mul(PRODUCER_BYTES);
    let bytes = producers.saturating_add(count(batches).saturating_mul(BATCH_BYTES));
    SNAPSHOT_PAUSE.max(Duration::from_secs(bytes / SNAPSHOT_BYTES_PER_SECOND))
}

fn count(of: usize) -> u64 {
    u64::try_from(of).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use aquifer_model::limits::{DEDUP_PRODUCERS_MAX, DEDUP_WINDOW_MAX};
    use tokio::sync::oneshot;

    use super::*;

    /// A snapshot of everything that may be remembered costs no more a second than a small one.
    #[test]
    fn large_snapshots_are_rare() {
        assert_eq!(snapshot_pause((1, 64)), SNAPSHOT_PAUSE);
        let producers = DEDUP_PRODUCERS_MAX as u64;
        let batches = producers * DEDUP_WINDOW_MAX as u64;
        let bytes = producers * PRODUCER_BYTES + batches * BATCH_BYTES;
        let all = DEDUP_PRODUCERS_MAX * DEDUP_WINDOW_MAX;
        let pause = snapshot_pause((DEDUP_PRODUCERS_MAX, all));
        assert!(
            bytes / pause.as_secs() <= SNAPSHOT_BYTES_PER_SECOND + SNAPSHOT_BYTES_PER_SECOND / 8
        );
        assert!(
            pause < Duration::from_secs(60),
            "{pause:?}: replay stays short"
        );
    }

    /// Large batches are few entries, and a load after a crash has their bodies read.
    #[test]
    fn a_snapshot_is_due_by_bytes_as_well() {
        let config = BrokerConfig::default();
        let since = |bytes| SinceSnapshot { entries: 40, bytes };
        let due = |bytes, age| is_snapshot_due(&config, since(bytes), age, (1, 40));
        assert!(due(32 << 20, SNAPSHOT_PAUSE));
        assert!(!due((32 << 20) - 1, SNAPSHOT_PAUSE));
        assert!(!due(32 << 20, SNAPSHOT_PAUSE / 2), "not all the time");
    }

    fn trimming() -> Trimming {
        Trimming::new(Duration::ZERO, Index(0))
    }

    fn kept(mark: u64, snapshot: u64) -> Kept {
        Kept {
            mark: Index(mark),
            snapshot: Index(snapshot),
            pause: Duration::from_secs(10),
        }
    }

    /// Policy lets go of segments that end at these, of which marks let go of those up to `mark`.
    fn seen(ends: &[u64], mark: u64) -> Seen {
        let free: Vec<u64> = ends.iter().copied().filter(|end| *end <= mark).collect();
        Seen {
            first_due: ends.first().map(|end| Index(*end)),
            free: free
                .first()
                .zip(free.last())
                .map(|(first, last)| (Index(*first), Index(*last))),
            wants_seal: false,
        }
    }

    const AT: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn what_marks_and_a_snapshot_have_passed_is_trimmed() {
        let mut all = trimming();
        let step = all.decide(AT(0), kept(20, 20), seen(&[10, 20], 20));
        let trim = Step {
            trim: true,
            ..Step::default()
        };
        assert_eq!(step, trim);
        assert!(all.is_running());
        assert!(all.trimmed(Index(20)), "there may be more");
        assert!(!all.is_running() && !all.trimmed(Index(20)));
    }

    #[test]
    fn a_snapshot_that_does_not_cover_is_asked_for_after_a_pause() {
        let mut all = trimming();
        let wait = Step {
            snapshot: true,
            ..Step::default()
        };
        assert_eq!(all.decide(AT(0), kept(20, 5), seen(&[10], 20)), wait);
        assert!(all.snapshot_done() && !all.snapshot_done());
        // Another segment, too soon for another snapshot.
        let step = all.decide(AT(9), kept(30, 20), seen(&[30], 30));
        assert_eq!(step, Step::default());
        let step = all.decide(AT(10), kept(30, 20), seen(&[30], 30));
        assert_eq!(step, wait);
        // The first segment is covered and goes, the second waits.
        let step = all.decide(AT(30), kept(40, 30), seen(&[30, 40], 40));
        assert!(step.trim && step.snapshot && !step.done);
    }

    #[test]
    fn marks_that_pass_what_is_due_trim_once() {
        let mut all = trimming();
        let step = all.decide(AT(0), kept(5, 50), seen(&[10], 5));
        assert!(
            step.done,
            "a subscription keeps it: nothing is left to be done"
        );
        assert!(!all.is_due(|| Index(9)));
        assert!(all.is_due(|| Index(10)));
        assert!(!all.is_due(|| Index(20)), "asked already");
    }

    #[test]
    fn an_idle_ledger_is_sealed() {
        let mut all = trimming();
        let idle = Seen {
            wants_seal: true,
            ..seen(&[], 0)
        };
        let step = all.decide(AT(0), kept(5, 5), idle);
        assert!(step.trim && !step.done);
    }

    #[test]
    fn a_topic_loaded_for_a_visit_ends_after_it() {
        let config = BrokerConfig::default();
        let idle = Duration::from_millis(config.topic_idle_ms);
        let (reply, mut answer) = oneshot::channel();
        let mut all = trimming();
        assert_eq!(all.idle_max(&config, AT(0)), idle);
        all.visit(reply);
        assert_eq!(all.idle_max(&config, AT(0)), idle, "the visit is not over");
        assert!(all.visit_over(&Ok(())) && !all.visit_over(&Ok(())));
        assert_eq!(answer.try_recv().ok(), Some(Ok(())));
        assert_eq!(all.idle_max(&config, AT(0)), Duration::ZERO);
        assert_eq!(all.idle_max(&config, AT(1)), idle, "a client used it since");
    }
}
