//! Appends that belong to no session: each is judged, appended and answered by itself.
//!
//! Invariants:
//! - Their outcomes come in the order of all appends of the topic. When one fails, so do all
//!   producer sessions, as if one of theirs had failed (H7): the log resumes when the outcome of
//!   every append is in.
//! - One that names a producer counts for that name (I8): it is stored once for its sequence ids,
//!   and not while a session of the name is open, whose sequence it would break. It makes its
//!   producer object the last one that used the name (H20).
//! - What the append of a request that went away has begun is finished.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{Append, AppendSink, Appended};
use aquifer_model::entry::EntryFlags;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::producer::StoredAt;
use aquifer_protocol_api::pull;
use aquifer_runtime::budget::BytePermit;

use crate::error::BrokerError;
use crate::topic::context::TopicContext;
use crate::topic::dedup::{Opener, SequenceRange, Verdict};
use crate::topic::event::{Event, Mailbox, Reply};
use crate::topic::publishing::session::{out_of_order, partial};
use crate::topic::publishing::{AppendFailed, Publishing};
use crate::topic::pull::{AloneAppend, NamedBy, Pull};

/// Appends without outcome, in order.
pub(super) struct Alone {
    sink: Arc<dyn AppendSink>,
    in_flight: VecDeque<InFlight>,
    next_tag: u64,
}

struct InFlight {
    tag: u64,
    producer: Option<NamedBy>,
    message_count: u32,
    bytes: u64,
    received: Duration,
    reply: Reply<pull::Appended>,
    _permit: BytePermit,
}

impl Alone {
    pub(super) fn new(mailbox: &Mailbox) -> Alone {
        Alone {
            sink: Arc::new(AloneSink(mailbox.clone())),
            in_flight: VecDeque::new(),
            next_tag: 1,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }
}

struct AloneSink(Mailbox);

impl AppendSink for AloneSink {
    fn appended(&self, tag: u64, outcome: Result<Appended, LogError>) {
        let outcome = Pull::AloneAppended { tag, outcome };
        self.0.urgent(Event::Pull(Box::new(outcome)));
    }
}

impl Publishing {
    pub(in crate::topic) fn append_alone(
        &mut self,
        cx: &TopicContext,
        append: AloneAppend,
        reply: Reply<pull::Appended>,
    ) {
        match self.judge_alone(cx, &append) {
            Ok(Verdict::New) => self.push_alone(cx, append, reply),
            Ok(Verdict::Duplicate(stored)) => {
                cx.shared.metrics.duplicates.add(1, &[]);
                let message_count = append.said.message_count;
                let _ = reply.send(Ok(Self::answer_alone(cx, stored, message_count, None)));
            }
            Ok(Verdict::InFlightDuplicate) => {
                let text = "the same batch is in flight already";
                let error = ApiError::new(ErrorKind::Unavailable, text);
                let error = error.advise("try again: it is answered when its outcome is known");
                let _ = reply.send(Err(error.into()));
            }
            Ok(Verdict::PartialOverlap) => Self::refuse_alone(&append, reply, partial),
            Ok(Verdict::OutOfOrder) => Self::refuse_alone(&append, reply, out_of_order),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn refuse_alone(
        append: &AloneAppend,
        reply: Reply<pull::Appended>,
        why: fn(SequenceRange) -> BrokerError,
    ) {
        if let Some(producer) = &append.producer {
            let _ = reply.send(Err(why(producer.range)));
        }
    }

    fn judge_alone(&self, cx: &TopicContext, append: &AloneAppend) -> Result<Verdict, BrokerError> {
        if let Some(error) = cx.refusal() {
            return Err(error);
        }
        cx.check_incarnation(append.incarnation)?;
        let verdict = self.verdict_alone(cx, append)?;
        match cx.publish_refusal() {
            // What was stored before is answered so.
            Some(error) if matches!(verdict, Verdict::New) => Err(error),
            _ => Ok(verdict),
        }
    }

    fn verdict_alone(
        &self,
        cx: &TopicContext,
        append: &AloneAppend,
    ) -> Result<Verdict, BrokerError> {
        let Some(producer) = &append.producer else {
            return Ok(Verdict::New);
        };
        if self.names.contains_key(&producer.name) {
            return Err(BrokerError::ProducerBusy(producer.name.to_string()));
        }
        match cx.policies.borrow().deduplication {
            true => Ok(self.dedup.check(&producer.name, producer.range)),
            false => Ok(Verdict::New),
        }
    }

    fn push_alone(&mut self, cx: &TopicContext, append: AloneAppend, reply: Reply<pull::Appended>) {
        if let Some(producer) = &append.producer {
            let opener = Opener {
                instance: producer.instance,
                epoch: 0,
            };
            if let Err(error) = self.dedup.connect(&producer.name, opener) {
                let _ = reply.send(Err(error.into()));
                return;
            }
        }
        let in_flight = InFlight {
            tag: self.alone.next_tag,
            producer: append.producer,
            message_count: append.said.message_count,
            bytes: append.body.len() as u64,
            received: append.received,
            reply,
            _permit: append.bytes,
        };
        let entry = Append {
            format: append.format,
            message_count: append.said.message_count,
            flags: EntryFlags::default(),
            extensions: append.said.extensions,
            body: append.body,
            tag: in_flight.tag,
            trace: append.said.trace,
        };
        if let Err(error) = cx.log.append(entry, &self.alone.sink) {
            if let Some(producer) = &in_flight.producer {
                self.dedup.disconnect(&producer.name);
            }
            let _ = in_flight.reply.send(Err(error.into()));
            return;
        }
        if let Some(producer) = &in_flight.producer {
            self.dedup.pushed(&producer.name, producer.range);
        }
        self.alone.next_tag += 1;
        self.alone.in_flight.push_back(in_flight);
        self.last_used = cx.now();
    }

    pub(in crate::topic) fn alone_appended(
        &mut self,
        cx: &TopicContext,
        tag: u64,
        outcome: Result<Appended, LogError>,
    ) -> Option<AppendFailed> {
        let append = self
            .alone
            .in_flight
            .pop_front()
            .expect("every outcome answers an append that was queued");
        assert_eq!(append.tag, tag, "outcomes come in the order of appends");
        let (answer, failed) = match outcome {
            Ok(appended) => {
                let at = StoredAt {
                    ledger: appended.ledger,
                    entry: appended.entry,
                    base_index: appended.base_index,
                };
                let time_ms = appended.broker_time_ms;
                if let Some(NamedBy { name, range, .. }) = &append.producer {
                    self.dedup.persisted(name, *range, at, time_ms);
                }
                let messages = u64::from(append.message_count);
                self.count_stored(cx, &appended, messages, append.bytes, append.received);
                let count = append.message_count;
                (
                    Ok(Self::answer_alone(cx, Some(at), count, Some(time_ms))),
                    None,
                )
            }
            Err(error) => {
                let told = cx.told(&error);
                (Err(told), Some(self.failed(cx, error)))
            }
        };
        if let Some(producer) = &append.producer {
            self.dedup.disconnect(&producer.name);
        }
        // A requester that went away needs no answer.
        let _ = append.reply.send(answer);
        failed
    }

    fn answer_alone(
        cx: &TopicContext,
        stored: Option<StoredAt>,
        message_count: u32,
        new_since_ms: Option<u64>,
    ) -> pull::Appended {
        pull::Appended {
            incarnation: cx.incarnation,
            stored,
            message_count,
            broker_time_ms: new_since_ms,
            duplicate: new_since_ms.is_none(),
        }
    }
}
