//! The writer of the cursor log: makes changes of subscriptions durable, in groups, and lets their
//! effects show only then.
//!
//! Invariants (I9):
//! - Changes are appended in the order in which they took place; what comes while an append is in
//!   flight goes into the following group.
//! - A confirmation, a seek's end and a creation's answer follow the durable record, never precede
//!   it. When an append fails, the changes are kept and tried again; those who wait, wait.
//! - Nothing is trimmed from the cursor log but what a complete snapshot behind it covers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{Append, AppendSink, Appended, TopicLog};
use aquifer_model::entry::EntryFlags;
use aquifer_model::extensions::Extensions;
use aquifer_model::format::FORMAT_CURSOR;
use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::policy::Retention;
use aquifer_model::topic::SubscriptionName;
use aquifer_proto::v1::{CursorDelta, ProducerState, SubscriptionState};
use aquifer_protocol_api::consumer::{ConsumerEvent, IndexRange};
use aquifer_runtime::clock;
use bytes::Bytes;

use crate::cursor_log;
use crate::subscription::ConsumerId;
use crate::subscription::cursor::AckDelta;
use crate::topic::Topic;
use crate::topic::dedup::SinceSnapshot;
use crate::topic::event::{Event, Mailbox, Mover, Reply, SubscriptionId};

/// Changes that go into one group.
const GROUP_CHANGES_MAX: usize = 4096;
/// Changes that may wait, each counted with its ranges. While the log cannot be written the peer that
/// sends more must wait, and comes back later.
const WAITING_MAX: usize = 256 * 1024;
/// First and longest pause after a failed append.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What a durable change lets happen.
pub(super) enum Effect {
    /// A subscription exists: attach who waits for it.
    Created(SubscriptionId, SubscriptionName),
    /// An acknowledgement counts: trimming may go by it, and the consumer is told if it asked.
    Acknowledged {
        id: SubscriptionId,
        delta: AckDelta,
        confirm: Option<(ConsumerId, u64)>,
    },
    /// An acknowledgement that repeats earlier ones is durable with them.
    Confirm {
        id: SubscriptionId,
        consumer: ConsumerId,
        request_id: u64,
    },
    /// A subscription has moved.
    Moved {
        id: SubscriptionId,
        epoch: SeekEpoch,
        index: Index,
        mover: Mover,
    },
    /// A session was closed, and all that it asked for is answered.
    Closed(SubscriptionId, ConsumerId),
    /// Messages are given up.
    Skipped {
        id: SubscriptionId,
        delta: AckDelta,
        reply: Reply<Vec<IndexRange>>,
    },
    /// A change is recorded for a later owner. Nothing waits for it.
    Recorded,
    /// A subscription is gone.
    Deleted(SubscriptionId, Reply<()>),
}

/// A change that waits, or an effect that waits for the changes before it.
struct Change {
    delta: Option<CursorDelta>,
    effect: Effect,
}

impl Change {
    fn weight(&self) -> usize {
        let ranges = match &self.effect {
            Effect::Acknowledged { delta, .. } => delta.individual.len(),
            _ => 0,
        };
        1 + ranges
    }
}

/// A group on its way.
struct Group {
    changes: Vec<Change>,
    /// A snapshot, with what it covers.
    snapshot: Option<Snapshot>,
    /// Tag of its last record: its outcome decides, as outcomes come in order.
    last_tag: u64,
    bytes: u64,
    failed: Option<LogError>,
}

struct Snapshot {
    /// Index of its first record.
    at: Index,
    dedup_index: Index,
}

/// What the writer is doing.
enum Phase {
    Idle,
    /// A group is in flight.
    Writing(Group),
    /// The log begins a new ledger, so that the old ones can be trimmed behind the snapshot.
    Rolling,
    /// An append failed; a timer runs.
    Pausing,
}

/// The cursor log and what is on its way to it.
pub(super) struct Cursors {
    log: TopicLog,
    sink: Arc<dyn AppendSink>,
    waiting: VecDeque<Change>,
    /// How much that is, in changes and ranges.
    waiting_weight: usize,
    phase: Phase,
    pause: Duration,
    next_tag: u64,
    next_snapshot: u64,
    /// Bytes since the log was last rolled.
    bytes: u64,
    /// Bytes of the newest snapshot: a log that is full of one snapshot needs no rolling.
    snapshot_bytes: u64,
    snapshot_wanted: bool,
    /// The log up to here is in the newest durable snapshot of producers: trimming keeps the rest
    /// (H11).
    pub(super) dedup_index: Index,
    /// When the last snapshot was taken, on the monotonic clock.
    pub(super) snapshot_time: Duration,
}

/// What goes into a snapshot.
pub(super) struct SnapshotContents {
    pub(super) subscriptions: Vec<SubscriptionState>,
    pub(super) producers: Vec<ProducerState>,
    pub(super) dedup_index: Index,
}

impl Cursors {
    pub(super) fn new(
        log: TopicLog,
        mailbox: &Mailbox,
        dedup_index: Index,
        now: Duration,
    ) -> Cursors {
        let bytes = log.stats().bytes;
        Cursors {
            sink: mailbox.cursor_sink(),
            waiting: VecDeque::new(),
            waiting_weight: 0,
            phase: Phase::Idle,
            pause: RETRY_MIN,
            next_tag: 1,
            // Above every id that the log may hold: the log's end grows with each part.
            next_snapshot: log.end().0 + 1,
            bytes,
            snapshot_bytes: 0,
            snapshot_wanted: false,
            dedup_index,
            snapshot_time: now,
            log,
        }
    }

    pub(super) fn log(&self) -> &TopicLog {
        &self.log
    }

    /// Begins a new ledger with a snapshot, so that everything before it can go.
    pub(super) fn begin_anew(&mut self) {
        self.bytes = u64::MAX;
        self.snapshot_wanted = true;
    }

    /// Whether nothing is on its way, and no snapshot wanted that may be written.
    pub(super) fn is_quiet(&self, may_snapshot: bool) -> bool {
        let wanted = may_snapshot && self.snapshot_wanted;
        matches!(self.phase, Phase::Idle) && self.waiting.is_empty() && !wanted
    }

    /// Queues a change; `effect` follows when it is durable.
    pub(super) fn log_change(&mut self, delta: CursorDelta, effect: Effect) {
        self.push(Change {
            delta: Some(delta),
            effect,
        });
    }

    /// Whether more than enough waits already.
    pub(super) fn is_full(&self) -> bool {
        self.waiting_weight >= WAITING_MAX
    }

    fn push(&mut self, change: Change) {
        self.waiting_weight += change.weight();
        self.waiting.push_back(change);
    }

    /// Has `effect` follow everything that is on its way; gives it back when nothing is.
    pub(super) fn after_pending(&mut self, effect: Effect) -> Option<Effect> {
        match &mut self.phase {
            Phase::Writing(group)
                if self.waiting.is_empty() && group.changes.len() < GROUP_CHANGES_MAX =>
            {
                group.changes.push(Change {
                    delta: None,
                    effect,
                });
                None
            }
            Phase::Idle | Phase::Rolling | Phase::Pausing if self.waiting.is_empty() => {
                Some(effect)
            }
            _ => {
                self.push(Change {
                    delta: None,
                    effect,
                });
                None
            }
        }
    }

    pub(super) fn want_snapshot(&mut self) {
        self.snapshot_wanted = true;
    }

    /// Appends a group; what was appended before a refusal still has outcomes to come.
    fn append(&mut self, records: Vec<Bytes>) -> Result<Sent, LogError> {
        let mut sent = None;
        for body in records {
            let bytes = body.len() as u64;
            let tag = self.next_tag;
            let append = Append {
                format: FORMAT_CURSOR,
                message_count: 1,
                flags: EntryFlags::default(),
                extensions: Extensions::default(),
                body,
                tag,
            };
            match (self.log.append(append, &self.sink), &mut sent) {
                (Ok(at), None) => {
                    sent = Some(Sent {
                        at,
                        last_tag: tag,
                        bytes,
                        refused: None,
                    });
                }
                (Ok(_), Some(sent)) => {
                    sent.last_tag = tag;
                    sent.bytes += bytes;
                }
                (Err(error), None) => return Err(error),
                (Err(error), Some(sent)) => {
                    sent.refused = Some(error);
                    break;
                }
            }
            self.next_tag += 1;
        }
        sent.ok_or_else(|| LogError::Invalid("a group without records".to_owned()))
    }

    /// What waits is not made durable here any more: nobody is told that it was.
    fn give_up(&mut self) {
        self.waiting.clear();
        self.snapshot_wanted = false;
        self.phase = Phase::Idle;
    }

    fn take_group(&mut self) -> Vec<Change> {
        let count = self.waiting.len().min(GROUP_CHANGES_MAX);
        let group: Vec<Change> = self.waiting.drain(..count).collect();
        self.waiting_weight -= group.iter().map(Change::weight).sum::<usize>();
        group
    }

    /// Puts the changes of a failed group back in front. Repeating some that were stored changes
    /// nothing: replayed in order they add up to the same state.
    fn put_back(&mut self, changes: Vec<Change>) {
        for change in changes.into_iter().rev() {
            self.waiting_weight += change.weight();
            self.waiting.push_front(change);
        }
    }
}

/// What of a group was appended.
struct Sent {
    at: Index,
    last_tag: u64,
    bytes: u64,
    refused: Option<LogError>,
}

impl Topic {
    /// Starts what is due when nothing is on its way.
    pub(super) fn write_cursors(&mut self) {
        while matches!(self.cursors.phase, Phase::Idle) && !self.is_broken() {
            let config = &self.shared.config;
            let rolled_at = config
                .cursor_log_bytes_max
                .max(4 * self.cursors.snapshot_bytes);
            // Behind a snapshot nobody would see what is lost.
            let is_whole = self.losses.is_none();
            if is_whole && self.cursors.bytes > rolled_at && self.departure.is_none() {
                self.roll_cursors();
            } else if is_whole && self.cursors.snapshot_wanted {
                self.write_snapshot();
            } else if self.cursors.waiting.is_empty() {
                return;
            } else {
                self.write_group();
            }
        }
    }

    fn roll_cursors(&mut self) {
        self.cursors.phase = Phase::Rolling;
        let (log, mailbox) = (self.cursors.log.clone(), self.mailbox.clone());
        self.shared.tasks.spawn("cursor-roll", async move {
            let result = log.roll().await;
            // A topic that is gone does not care.
            let _ = mailbox.send(Event::CursorRolled(result)).await;
        });
    }

    pub(super) fn cursor_rolled(&mut self, result: Result<(), LogError>) {
        match result {
            Ok(()) => {
                self.cursors.phase = Phase::Idle;
                self.cursors.bytes = 0;
                self.cursors.snapshot_wanted = true;
            }
            Err(error @ (LogError::Fenced | LogError::Closed)) => self.broken(&error),
            // The ledger goes on, and is looked at again when as much was written.
            Err(error) => {
                tracing::warn!(topic = %self.name, %error, "cursor log was not rolled");
                self.cursors.phase = Phase::Idle;
                self.cursors.bytes = 0;
            }
        }
    }

    fn write_snapshot(&mut self) {
        self.cursors.snapshot_wanted = false;
        let contents = self.snapshot_contents();
        let dedup_index = contents.dedup_index;
        let records = cursor_log::encode_snapshot(
            self.cursors.next_snapshot,
            contents.subscriptions,
            contents.producers,
            dedup_index,
        );
        self.cursors.next_snapshot += 1;
        self.publishing.since_snapshot = SinceSnapshot::default();
        self.cursors.snapshot_time = self.now();
        self.send_group(Vec::new(), records, Some(dedup_index));
    }

    fn write_group(&mut self) {
        let mut changes = self.cursors.take_group();
        let deltas: Vec<CursorDelta> = changes.iter().filter_map(|c| c.delta.clone()).collect();
        if deltas.is_empty() {
            for change in changes.drain(..) {
                self.apply(change.effect);
            }
            return;
        }
        self.send_group(changes, cursor_log::encode_deltas(deltas), None);
    }

    fn send_group(&mut self, changes: Vec<Change>, records: Vec<Bytes>, dedup: Option<Index>) {
        let mut group = Group {
            changes,
            snapshot: None,
            last_tag: 0,
            bytes: 0,
            failed: None,
        };
        self.shared
            .metrics
            .cursor_records
            .add(records.len() as u64, &[]);
        match self.cursors.append(records) {
            Ok(sent) => {
                group.snapshot = dedup.map(|dedup_index| Snapshot {
                    at: sent.at,
                    dedup_index,
                });
                group.last_tag = sent.last_tag;
                group.bytes = sent.bytes;
                group.failed = sent.refused;
                self.cursors.phase = Phase::Writing(group);
            }
            Err(error) => {
                group.failed = Some(error);
                self.cursors.snapshot_wanted |= dedup.is_some();
                self.group_done(group);
            }
        }
    }

    pub(super) fn cursor_appended(&mut self, tag: u64, outcome: Result<Appended, LogError>) {
        let Phase::Writing(group) = &mut self.cursors.phase else {
            return;
        };
        if let Err(error) = outcome {
            group.failed.get_or_insert(error);
        }
        if tag != group.last_tag {
            return;
        }
        if let Phase::Writing(group) = std::mem::replace(&mut self.cursors.phase, Phase::Idle) {
            self.group_done(group);
        }
    }

    fn group_done(&mut self, group: Group) {
        if let Some(error) = group.failed {
            self.cursors.put_back(group.changes);
            self.cursors.snapshot_wanted |= group.snapshot.is_some();
            self.cursors_failed(&error);
            return;
        }
        self.cursors.pause = RETRY_MIN;
        self.cursors.bytes = self.cursors.bytes.saturating_add(group.bytes);
        let is_snapshot = group.snapshot.is_some();
        if let Some(snapshot) = group.snapshot {
            self.cursors.dedup_index = snapshot.dedup_index;
            self.cursors.snapshot_bytes = group.bytes;
            self.trim_cursors(snapshot.at);
        }
        for change in group.changes {
            self.apply(change.effect);
        }
        if is_snapshot {
            self.snapshot_done();
        }
        self.trim_if_due();
    }

    /// Keeps what waits, and tries again after a pause that grows.
    fn cursors_failed(&mut self, error: &LogError) {
        self.shared.metrics.cursor_failures.add(1, &[]);
        self.cursors.phase = Phase::Pausing;
        if *error == LogError::HandedOver {
            self.cursors.give_up();
        }
        if !self.survives(error) || *error == LogError::HandedOver {
            return;
        }
        tracing::warn!(topic = %self.name, %error, "cursor log could not be written, trying again");
        let pause = self.shared.rng.jitter(self.cursors.pause);
        self.cursors.pause = (self.cursors.pause * 2).min(RETRY_MAX);
        let mailbox = self.mailbox.clone();
        let token = self.shared.tasks.shutdown_token();
        self.shared.tasks.spawn("cursor-retry", async move {
            tokio::select! {
                () = clock::sleep(pause) => {}
                () = token.wait() => {}
            }
            // A topic that is gone does not care.
            let _ = mailbox.send(Event::CursorRetry).await;
        });
    }

    pub(super) fn cursor_retry(&mut self) {
        if matches!(self.cursors.phase, Phase::Pausing) {
            self.cursors.log.resume();
            self.cursors.phase = Phase::Idle;
        }
    }

    /// Drops the ledgers of the cursor log that lie before a complete snapshot.
    fn trim_cursors(&self, below: Index) {
        let (log, topic) = (self.cursors.log.clone(), self.name.clone());
        self.shared.tasks.spawn("cursor-trim", async move {
            let nothing = Retention {
                time_ms: Some(0),
                size_bytes: Some(0),
            };
            // It is tried again behind the next snapshot.
            if let Err(error) = log.trim(below, nothing).await {
                tracing::debug!(%topic, %error, "cursor log was not trimmed");
            }
        });
    }

    /// Lets the effect of a durable change show.
    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Created(id, name) => self.created(id, &name),
            Effect::Acknowledged { id, delta, confirm } => {
                if let Some(slot) = self.subscriptions.get_mut(id) {
                    slot.state.confirm(&delta);
                }
                if let Some((consumer, request_id)) = confirm {
                    self.tell(id, consumer, ConsumerEvent::Confirmed { request_id });
                }
            }
            Effect::Confirm {
                id,
                consumer,
                request_id,
            } => self.tell(id, consumer, ConsumerEvent::Confirmed { request_id }),
            Effect::Moved {
                id,
                epoch,
                index,
                mover,
            } => self.moved(id, epoch, index, mover),
            Effect::Closed(id, consumer) => self.consumer_gone(id, consumer),
            Effect::Skipped { id, delta, reply } => {
                if let Some(slot) = self.subscriptions.get_mut(id) {
                    slot.state.confirm(&delta);
                }
                let _ = reply.send(Ok(delta.individual));
            }
            Effect::Recorded => {}
            Effect::Deleted(id, reply) => self.subscription_deleted(id, reply),
        }
    }
}
