//! Publishing: the producers of a topic, what is appended in which order, and what each frame is
//! answered.
//!
//! Invariants (H7, I7, I8):
//! - Frames of a session are answered in order (`publishing/session.rs`).
//! - A failed append fails every producer session of the topic before the log resumes, and takes
//!   back what deduplication noted as pushed: a retry must not be swallowed.
//! - A name is opened only when nothing of it is in flight, so the highest persisted sequence id
//!   that is answered is final (`publishing/open.rs`).
//!
//! Only headers are looked at here, never single messages.

mod alone;
mod open;
mod session;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{Append, AppendSink, Appended};
use aquifer_model::entry::EntryFlags;
use aquifer_model::id::Index;
use aquifer_model::stats::ProducerStats;
use aquifer_model::topic::ProducerName;
use aquifer_proto::v1::ProducerState;
use aquifer_protocol_api::error::{ApiError, Outcome};
use aquifer_protocol_api::producer::{OpenProducer, ProducerSession, StoredAt};
use aquifer_runtime::budget::BytePermit;
use aquifer_runtime::telemetry::trace;
use tracing::Span;

use crate::error::BrokerError;
use crate::topic::context::TopicContext;
use crate::topic::dedup::{DedupTable, SequenceRange, SinceSnapshot, Verdict};
use crate::topic::event::{Body, Frame, Mailbox, Reply, SessionId};
use crate::topic::publishing::alone::Alone;
use crate::topic::publishing::session::{Answer, Session, out_of_order, partial};

/// The producers of a topic.
pub(super) struct Publishing {
    dedup: DedupTable,
    appends: Appends,
    /// Appends that belong to no session.
    alone: Alone,
    sessions: BTreeMap<SessionId, Session>,
    names: HashMap<ProducerName, SessionId>,
    /// Requests that wait until nothing of their name is in flight.
    opening: Vec<(OpenProducer, Reply<ProducerSession>)>,
    next_session: u64,
    /// Index after the last append whose outcome was handled here; the log's own end may be ahead.
    persisted_end: Index,
    since_snapshot: SinceSnapshot,
    /// When a session last began or ended, on the monotonic clock.
    last_used: Duration,
}

/// The way to the log.
struct Appends {
    sink: Arc<dyn AppendSink>,
    /// Appends of sessions without outcome, in order.
    in_flight: VecDeque<InFlight>,
    /// An append has failed; the others in flight fail too, then the log resumes.
    failed: bool,
    /// Outcomes came since subscriptions were last woken.
    advanced: bool,
    next_tag: u64,
}

struct InFlight {
    tag: u64,
    session: SessionId,
    name: ProducerName,
    range: SequenceRange,
    message_count: u32,
    bytes: u64,
    received: Duration,
    _permit: BytePermit,
    /// Ends with the outcome.
    _span: Option<Box<Span>>,
}

/// The frame that is appended, besides its body.
#[derive(Clone, Copy)]
struct Taken<'a> {
    session: SessionId,
    name: &'a ProducerName,
    received: Duration,
}

/// An append that failed.
pub(super) struct AppendFailed {
    pub(super) error: LogError,
    /// Whether it is the first one since the log was resumed: all sessions are to be failed.
    pub(super) is_first: bool,
}

impl Publishing {
    /// Without sessions. `recovered` is what the log holds that no snapshot of the table has.
    pub(super) fn new(
        mailbox: &Mailbox,
        dedup: DedupTable,
        end: Index,
        recovered: SinceSnapshot,
        now: Duration,
    ) -> Publishing {
        Publishing {
            dedup,
            appends: Appends {
                sink: mailbox.message_sink(),
                in_flight: VecDeque::new(),
                failed: false,
                advanced: false,
                next_tag: 1,
            },
            alone: Alone::new(mailbox),
            sessions: BTreeMap::new(),
            names: HashMap::new(),
            opening: Vec::new(),
            next_session: 1,
            persisted_end: end,
            since_snapshot: recovered,
            last_used: now,
        }
    }

    /// Where the appends end whose outcome is known.
    pub(super) fn persisted_end(&self) -> Index {
        self.persisted_end
    }

    /// What was stored since the last snapshot of the table.
    pub(super) fn since_snapshot(&self) -> SinceSnapshot {
        self.since_snapshot
    }

    /// The table, for a snapshot.
    pub(super) fn snapshot(&mut self) -> Vec<ProducerState> {
        self.since_snapshot = SinceSnapshot::default();
        self.dedup.snapshot()
    }

    /// The producers as they are, for a backup.
    pub(super) fn producers(&self) -> Vec<ProducerState> {
        self.dedup.snapshot()
    }

    /// How many names and batches a snapshot has.
    pub(super) fn remembered(&self) -> (usize, usize) {
        (self.dedup.len(), self.dedup.batches())
    }

    /// Forgets drawn names whose producers ended long ago.
    pub(super) fn forget_drawn(&mut self, now: Duration) {
        self.dedup.forget_drawn(now);
    }

    /// When a session last began or ended, on the monotonic clock.
    pub(super) fn last_used(&self) -> Duration {
        self.last_used
    }

    /// Whether nothing is in flight and no request waits for an answer.
    pub(super) fn is_quiet(&self) -> bool {
        self.has_every_outcome() && self.opening.is_empty()
    }

    /// Whether the outcome of every append is in.
    fn has_every_outcome(&self) -> bool {
        self.appends.in_flight.is_empty() && self.alone.is_empty()
    }

    /// Whether producers are connected or about to be.
    pub(super) fn is_used(&self) -> bool {
        !self.sessions.is_empty() || !self.opening.is_empty()
    }

    pub(super) fn stats(&self) -> Vec<ProducerStats> {
        let stats = |session: &Session| ProducerStats {
            name: session.name.clone(),
            last_sequence_id: self.dedup.last_sequence_id(&session.name),
        };
        self.sessions.values().map(stats).collect()
    }

    /// Takes frames of a session.
    pub(super) fn publish(&mut self, cx: &TopicContext, id: SessionId, frames: Vec<Frame>) {
        self.with(cx, id, |session, dedup, appends| {
            session.queue(frames);
            advance(cx, id, session, dedup, appends)
        });
    }

    /// The one place where a session is looked up, which may have ended. Closes it with the error
    /// that `work` answers.
    fn with(
        &mut self,
        cx: &TopicContext,
        id: SessionId,
        work: impl FnOnce(&mut Session, &mut DedupTable, &mut Appends) -> Option<ApiError>,
    ) {
        if let Some(session) = self.sessions.get_mut(&id)
            && let Some(error) = work(session, &mut self.dedup, &mut self.appends)
        {
            self.close(cx, id, Some(error));
        }
    }

    /// Takes the outcome of an append. Everything appended after a failed append fails as well.
    pub(super) fn appended(
        &mut self,
        cx: &TopicContext,
        tag: u64,
        outcome: Result<Appended, LogError>,
    ) -> Option<AppendFailed> {
        let append = self
            .appends
            .in_flight
            .pop_front()
            .expect("every outcome answers an append that was queued");
        assert_eq!(append.tag, tag, "outcomes come in the order of appends");
        match outcome {
            Ok(appended) => {
                self.stored(cx, append, appended);
                None
            }
            Err(error) => Some(self.failed(cx, error)),
        }
    }

    fn failed(&mut self, cx: &TopicContext, error: LogError) -> AppendFailed {
        let is_first = !std::mem::replace(&mut self.appends.failed, true);
        if is_first {
            tracing::warn!(topic = %cx.name, %error, "append failed, producers are told to retry");
            cx.shared.metrics.append_failures.add(1, &[]);
        }
        AppendFailed { error, is_first }
    }

    fn stored(&mut self, cx: &TopicContext, append: InFlight, appended: Appended) {
        let at = StoredAt {
            ledger: appended.ledger,
            entry: appended.entry,
            base_index: appended.base_index,
        };
        let messages = u64::from(append.message_count);
        self.dedup
            .persisted(&append.name, append.range, at, appended.broker_time_ms);
        self.count_stored(cx, &appended, messages, append.bytes, append.received);
        let id = append.session;
        self.with(cx, id, |session, dedup, appends| {
            session.stored(append.tag, at);
            advance(cx, id, session, dedup, appends)
        });
    }

    /// Notes that an entry is stored, of a session or not.
    fn count_stored(
        &mut self,
        cx: &TopicContext,
        appended: &Appended,
        messages: u64,
        bytes: u64,
        received: Duration,
    ) {
        self.persisted_end = appended.base_index.plus(messages);
        self.since_snapshot.entries += 1;
        self.since_snapshot.bytes += bytes;
        self.appends.advanced = true;
        cx.counters.published(messages, bytes);
        let metrics = &cx.shared.metrics;
        metrics.messages_in.add(messages, &[]);
        metrics.bytes_in.add(bytes, &[]);
        let waited = cx.now().saturating_sub(received);
        metrics.publish_seconds.record(waited.as_secs_f64(), &[]);
    }

    /// After the outcomes of a turn: resumes a failed log and opens names that were waited for.
    /// Answers whether messages were stored since the last time.
    pub(super) fn finish_turn(&mut self, cx: &TopicContext) -> bool {
        if self.appends.failed && self.has_every_outcome() && !cx.life.is_broken() {
            self.dedup.reset_pushed();
            self.appends.failed = false;
            cx.log.resume();
        }
        self.open_waiting(cx);
        std::mem::take(&mut self.appends.advanced)
    }

    fn close(&mut self, cx: &TopicContext, id: SessionId, error: Option<ApiError>) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        if self.names.get(&session.name) == Some(&id) {
            self.names.remove(&session.name);
        }
        self.dedup.disconnect(&session.name);
        if let Some(error) = &error {
            tracing::debug!(topic = %cx.name, producer = %session.name, %error, "producer session failed");
        }
        session.close(error);
        cx.shared.metrics.producers.add(-1, &[]);
        cx.counters.session_closed();
        self.last_used = cx.now();
    }

    /// The client of a session is gone.
    pub(super) fn gone(&mut self, cx: &TopicContext, id: SessionId) {
        self.close(cx, id, None);
    }

    /// Closes sessions whose clients dropped their ends without closing them.
    pub(super) fn drop_dead(&mut self, cx: &TopicContext) {
        for id in self.ids() {
            if self.sessions.get(&id).is_some_and(Session::is_dead) {
                self.gone(cx, id);
            }
        }
    }

    /// Ends a session now; its pending frames get no receipts.
    fn fail(&mut self, cx: &TopicContext, id: SessionId, error: &BrokerError) {
        self.with(cx, id, |session, _, _| {
            let last = ApiError::from(error.clone());
            // What is in flight may be stored all the same. A failed log says so itself.
            let is_unknown = !matches!(error, BrokerError::Log(_)) && session.has_in_flight();
            Some(match is_unknown {
                true => last.outcome(Outcome::Unknown),
                false => last,
            })
        });
    }

    /// Ends all sessions now.
    pub(super) fn fail_all(&mut self, cx: &TopicContext, error: &BrokerError) {
        for id in self.ids() {
            self.fail(cx, id, error);
        }
    }

    /// Ends all sessions after their pending frames.
    pub(super) fn end_all(&mut self, cx: &TopicContext, error: &BrokerError) {
        for id in self.ids() {
            self.with(cx, id, |session, dedup, _| {
                session.end_after_pending(error.clone());
                session.answer(dedup)
            });
        }
    }

    fn ids(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    /// Refuses requests that wait for something that will not come any more.
    pub(super) fn refuse_waiting(&mut self, error: &BrokerError) {
        for (_, reply) in std::mem::take(&mut self.opening) {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// Takes frames of a session and sends receipts as far as that goes. Answers the error that ends
/// the session now.
fn advance(
    cx: &TopicContext,
    id: SessionId,
    session: &mut Session,
    dedup: &mut DedupTable,
    appends: &mut Appends,
) -> Option<ApiError> {
    loop {
        if let Some(error) = session.answer(dedup) {
            return Some(error);
        }
        let frame = session.next_frame()?;
        let taken = Taken {
            session: id,
            name: &session.name,
            received: frame.received,
        };
        let answer = frame
            .body
            .and_then(|body| appends.take(cx, dedup, taken, body, frame.bytes));
        match answer {
            Ok(answer) => session.pend(frame.number, frame.permit, answer),
            Err(error) => session.end_after_pending(error),
        }
    }
}

impl Appends {
    /// Appends what a frame holds, unless it repeats what was appended before.
    fn take(
        &mut self,
        cx: &TopicContext,
        dedup: &mut DedupTable,
        taken: Taken<'_>,
        body: Body,
        permit: BytePermit,
    ) -> Result<Answer, BrokerError> {
        let range = body.range;
        let is_checked = cx.policies.borrow().deduplication;
        let verdict = match is_checked {
            true => dedup.check(taken.name, range),
            false => Verdict::New,
        };
        match verdict {
            Verdict::New => {
                let tag = self.append(cx, taken, body, permit)?;
                dedup.pushed(taken.name, range);
                Ok(Answer::Append(tag))
            }
            Verdict::Duplicate(stored) => {
                cx.shared.metrics.duplicates.add(1, &[]);
                Ok(Answer::Duplicate(stored))
            }
            Verdict::InFlightDuplicate => Ok(Answer::Repeats(range)),
            Verdict::PartialOverlap => Err(partial(range)),
            Verdict::OutOfOrder => Err(out_of_order(range)),
        }
    }

    fn append(
        &mut self,
        cx: &TopicContext,
        taken: Taken<'_>,
        body: Body,
        permit: BytePermit,
    ) -> Result<u64, BrokerError> {
        let tag = self.next_tag;
        let (range, message_count) = (body.range, body.said.message_count);
        let bytes = body.bytes.len() as u64;
        let append = Append {
            format: body.format,
            message_count,
            flags: EntryFlags::default(),
            extensions: body.said.extensions,
            body: body.bytes,
            tag,
            trace: body.span.as_deref().and_then(trace::context_of),
        };
        cx.log.append(append, &self.sink)?;
        self.next_tag += 1;
        self.in_flight.push_back(InFlight {
            tag,
            session: taken.session,
            name: taken.name.clone(),
            range,
            message_count,
            bytes,
            received: taken.received,
            _permit: permit,
            _span: body.span,
        });
        Ok(tag)
    }
}
