//! The writer of the cursor log: makes changes of subscriptions durable, in groups, and lets their
//! effects show only then.
//!
//! Invariants (I9):
//! - Changes are appended in the order in which they took place; what comes while an append is in
//!   flight goes into the following group.
//! - A confirmation, a seek's end and a creation's answer follow the durable record, never precede
//!   it. When an append fails, the changes are kept and tried again, and requests keep waiting.
//! - Nothing is trimmed from the cursor log but what a complete snapshot behind it covers.

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
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_runtime::clock;
use bytes::Bytes;
use prost::Message as _;

use crate::context::Context;
use crate::cursor_log;
use crate::subscription::ConsumerId;
use crate::subscription::cursor::AckDelta;
use crate::topic::context::TopicContext;
use crate::topic::event::{Event, Mailbox, Reply, Seeker, SubscriptionId};
use crate::topic::waiting::Waiting;

/// Changes that go into one group.
const GROUP_CHANGES_MAX: usize = 4096;
/// What a range of acknowledged messages takes.
const RANGE_BYTES: usize = 16;
/// First and longest pause after a failed append.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What a durable change lets happen; carried out by the attachments.
pub(super) enum Effect {
    /// A subscription exists: attach the consumers that wait for it.
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
    /// A subscription was moved by a seek.
    Sought {
        id: SubscriptionId,
        epoch: SeekEpoch,
        index: Index,
        seeker: Seeker,
    },
    /// A session was closed, and all that it asked for is answered.
    Closed(SubscriptionId, ConsumerId),
    /// Messages are given up.
    Skipped {
        id: SubscriptionId,
        delta: AckDelta,
        reply: Reply<Vec<IndexRange>>,
    },
    /// A position is committed: the subscription has changed by this, or stood there already.
    Committed(SubscriptionId, Option<AckDelta>, Reply<Index>),
    /// What was not acknowledged is given up, and how many messages that are: by this, or there
    /// was nothing.
    Cleared {
        id: SubscriptionId,
        delta: Option<AckDelta>,
        messages: u64,
        reply: Reply<u64>,
    },
    /// Messages are acknowledged by policy.
    Expired(SubscriptionId, AckDelta),
    /// Entries that are for no client are passed over.
    Passed(SubscriptionId, AckDelta),
    /// A change is recorded for a later owner. Nothing waits for it.
    Recorded,
    /// A subscription is gone.
    Deleted(SubscriptionId, Reply<()>),
}

/// A change that waits, or an effect that waits for the changes before it.
pub(super) struct Change {
    delta: Option<CursorDelta>,
    pub(super) effect: Effect,
}

impl Change {
    /// What it takes while it waits, with its names.
    fn bytes(&self) -> usize {
        let ranges = match &self.effect {
            Effect::Acknowledged { delta, .. } => delta.individual.len(),
            _ => 0,
        };
        let delta = self.delta.as_ref().map_or(0, CursorDelta::encoded_len);
        size_of::<Change>() + ranges * RANGE_BYTES + delta
    }
}

/// A group in flight.
struct Group {
    changes: Vec<Change>,
    /// A snapshot, with what it covers.
    snapshot: Option<Snapshot>,
    /// Tag of its last record: its outcome decides, as outcomes come in order.
    last_tag: u64,
    bytes: u64,
    failed: Option<LogError>,
    /// When it was begun, on the monotonic clock.
    began: Duration,
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

/// The cursor log and what is in flight to it.
pub(super) struct Cursors {
    log: TopicLog,
    sink: Arc<dyn AppendSink>,
    waiting: Waiting<Change>,
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
    dedup_index: Index,
    /// When the last snapshot was taken, on the monotonic clock.
    snapshot_time: Duration,
    /// Changes that subscriptions have in memory were given up.
    has_given_up: bool,
}

/// What is due when nothing is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// The log begins a new ledger.
    Roll,
    /// A snapshot is written.
    Snapshot,
    /// The changes that wait are written.
    Group,
}

/// What came of a group, or of the attempt to write it.
pub(super) enum Written {
    /// It is in flight.
    InFlight,
    /// These show now, in this order.
    Durable {
        changes: Vec<Change>,
        /// A snapshot is durable with them.
        has_snapshot: bool,
    },
    /// The log could not be written.
    Failed(LogError),
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
        shared: &Context,
    ) -> Cursors {
        let bytes = log.stats().bytes;
        Cursors {
            sink: mailbox.cursor_sink(),
            waiting: Waiting::new(Change::bytes, &shared.waiting_changes),
            phase: Phase::Idle,
            pause: RETRY_MIN,
            next_tag: 1,
            // Above every id that the log may hold: the log's end grows with each part.
            next_snapshot: log.end().0 + 1,
            bytes,
            snapshot_bytes: 0,
            snapshot_wanted: false,
            dedup_index,
            snapshot_time: shared.clock.monotonic(),
            has_given_up: false,
            log,
        }
    }

    /// The end of the messages that the newest durable snapshot of producers covers.
    pub(super) fn dedup_index(&self) -> Index {
        self.dedup_index
    }

    /// When the last snapshot was taken, on the monotonic clock.
    pub(super) fn snapshot_time(&self) -> Duration {
        self.snapshot_time
    }

    pub(super) fn log(&self) -> &TopicLog {
        &self.log
    }

    /// Begins a new ledger with a snapshot, so that everything before it can go.
    pub(super) fn begin_again(&mut self) {
        self.bytes = u64::MAX;
        self.snapshot_wanted = true;
    }

    /// Whether nothing is in flight or waits, and no snapshot is wanted that may be written.
    pub(super) fn is_quiet(&self, may_snapshot: bool) -> bool {
        let wanted = may_snapshot && self.snapshot_wanted;
        matches!(self.phase, Phase::Idle) && self.waiting.is_empty() && !wanted
    }

    /// Whether subscriptions are ahead of their records for good: what waited was given up.
    pub(super) fn has_given_up(&self) -> bool {
        self.has_given_up
    }

    /// Queues a change; `effect` follows when it is durable.
    pub(super) fn log_change(&mut self, delta: CursorDelta, effect: Effect) {
        self.push(Change {
            delta: Some(delta),
            effect,
        });
    }

    /// Whether as much waits as may.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.is_full()
    }

    fn push(&mut self, change: Change) {
        self.waiting.push(change);
    }

    /// Has `effect` follow everything that is in flight; gives it back when nothing is.
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
                trace: None,
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

    /// What waits is not made durable here any more: no client is told that it was.
    fn give_up(&mut self) {
        self.has_given_up |= !self.waiting.is_empty();
        self.waiting.clear();
        self.snapshot_wanted = false;
        self.phase = Phase::Idle;
    }

    /// What is due. `is_whole` says that no record of subscriptions is missing.
    pub(super) fn due(&self, cx: &TopicContext, is_whole: bool) -> Due {
        if !matches!(self.phase, Phase::Idle) || cx.life.is_broken() {
            return Due::Nothing;
        }
        let config = &cx.shared.config;
        let rolled_at = config.cursor_log_bytes_max.max(4 * self.snapshot_bytes);
        // Behind a snapshot nothing would show what is lost.
        if is_whole && self.bytes > rolled_at && !cx.life.is_departing() {
            Due::Roll
        } else if is_whole && self.snapshot_wanted {
            Due::Snapshot
        } else if self.waiting.is_empty() {
            Due::Nothing
        } else {
            Due::Group
        }
    }

    /// Begins a new ledger, so that the old ones can be trimmed behind the snapshot.
    pub(super) fn roll(&mut self, cx: &TopicContext) {
        self.phase = Phase::Rolling;
        let (log, mailbox) = (self.log.clone(), cx.mailbox.clone());
        cx.shared.tasks.spawn("cursor-roll", async move {
            let result = log.roll().await;
            // A topic that has ended needs no answer.
            let _ = mailbox.send(Event::CursorRolled(result)).await;
        });
    }

    /// A new ledger was begun, or could not be. Answers the failure after which the topic cannot
    /// continue.
    pub(super) fn rolled(
        &mut self,
        cx: &TopicContext,
        result: Result<(), LogError>,
    ) -> Option<LogError> {
        match result {
            Ok(()) => self.snapshot_wanted = true,
            Err(error @ (LogError::Fenced | LogError::Closed)) => return Some(error),
            // The ledger goes on, and is looked at again when as much was written.
            Err(error) => {
                tracing::warn!(topic = %cx.name, %error, "cursor log was not rolled");
            }
        }
        self.phase = Phase::Idle;
        self.bytes = 0;
        None
    }

    /// Writes a snapshot.
    pub(super) fn write_snapshot(
        &mut self,
        cx: &TopicContext,
        contents: SnapshotContents,
    ) -> Written {
        self.snapshot_wanted = false;
        let dedup_index = contents.dedup_index;
        let records = cursor_log::encode_snapshot(
            self.next_snapshot,
            contents.subscriptions,
            contents.producers,
            dedup_index,
        );
        self.next_snapshot += 1;
        self.snapshot_time = cx.now();
        self.send_group(cx, Vec::new(), records, Some(dedup_index))
    }

    /// Writes changes that wait.
    pub(super) fn write_group(&mut self, cx: &TopicContext) -> Written {
        let changes = self.waiting.take(GROUP_CHANGES_MAX);
        let deltas: Vec<CursorDelta> = changes.iter().filter_map(|c| c.delta.clone()).collect();
        if deltas.is_empty() {
            return Written::Durable {
                changes,
                has_snapshot: false,
            };
        }
        self.send_group(cx, changes, cursor_log::encode_deltas(deltas), None)
    }

    fn send_group(
        &mut self,
        cx: &TopicContext,
        changes: Vec<Change>,
        records: Vec<Bytes>,
        dedup: Option<Index>,
    ) -> Written {
        let mut group = Group {
            changes,
            snapshot: None,
            last_tag: 0,
            bytes: 0,
            failed: None,
            began: cx.now(),
        };
        let count = records.len() as u64;
        cx.shared.metrics.cursor_records.add(count, &[]);
        match self.append(records) {
            Ok(sent) => {
                group.snapshot = dedup.map(|dedup_index| Snapshot {
                    at: sent.at,
                    dedup_index,
                });
                group.last_tag = sent.last_tag;
                group.bytes = sent.bytes;
                group.failed = sent.refused;
                self.phase = Phase::Writing(group);
                Written::InFlight
            }
            Err(error) => {
                group.failed = Some(error);
                self.snapshot_wanted |= dedup.is_some();
                self.group_done(cx, group)
            }
        }
    }

    /// Takes the outcome of an append.
    pub(super) fn appended(
        &mut self,
        cx: &TopicContext,
        tag: u64,
        outcome: Result<Appended, LogError>,
    ) -> Written {
        let Phase::Writing(group) = &mut self.phase else {
            return Written::InFlight;
        };
        if let Err(error) = outcome {
            group.failed.get_or_insert(error);
        }
        if tag != group.last_tag {
            return Written::InFlight;
        }
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Writing(group) => self.group_done(cx, group),
            _ => Written::InFlight,
        }
    }

    fn group_done(&mut self, cx: &TopicContext, group: Group) -> Written {
        if let Some(error) = group.failed {
            // Repeating some that were stored changes nothing: replayed in order they add up to the
            // same state.
            self.waiting.put_back(group.changes);
            self.snapshot_wanted |= group.snapshot.is_some();
            cx.shared.metrics.cursor_failures.add(1, &[]);
            self.phase = Phase::Pausing;
            if error == LogError::HandedOver {
                self.give_up();
            }
            return Written::Failed(error);
        }
        let took = cx.now().saturating_sub(group.began).as_secs_f64();
        cx.shared.metrics.acknowledge_seconds.record(took, &[]);
        self.pause = RETRY_MIN;
        self.bytes = self.bytes.saturating_add(group.bytes);
        let has_snapshot = group.snapshot.is_some();
        if let Some(snapshot) = group.snapshot {
            self.dedup_index = snapshot.dedup_index;
            self.snapshot_bytes = group.bytes;
            self.trim(cx, snapshot.at);
        }
        Written::Durable {
            changes: group.changes,
            has_snapshot,
        }
    }

    /// Tries again after a pause that grows; what waits is kept.
    pub(super) fn retry_later(&mut self, cx: &TopicContext, error: &LogError) {
        tracing::warn!(topic = %cx.name, %error, "cursor log could not be written, trying again");
        let pause = cx.shared.rng.jitter(self.pause);
        self.pause = (self.pause * 2).min(RETRY_MAX);
        let mailbox = cx.mailbox.clone();
        let token = cx.shared.tasks.shutdown_token();
        cx.shared.tasks.spawn("cursor-retry", async move {
            tokio::select! {
                () = clock::sleep(pause) => {}
                () = token.wait() => {}
            }
            // A topic that has ended needs no answer.
            let _ = mailbox.send(Event::CursorRetry).await;
        });
    }

    /// The pause after a failure is over.
    pub(super) fn retry(&mut self) {
        if matches!(self.phase, Phase::Pausing) {
            self.log.resume();
            self.phase = Phase::Idle;
        }
    }

    /// Drops the ledgers of the cursor log that lie before a complete snapshot.
    fn trim(&self, cx: &TopicContext, below: Index) {
        let (log, topic) = (self.log.clone(), cx.name.clone());
        cx.shared.tasks.spawn("cursor-trim", async move {
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
}

/// What of a group was appended.
struct Sent {
    at: Index,
    last_tag: u64,
    bytes: u64,
    refused: Option<LogError>,
}
