//! Requests to the fake that stand alone. A batch is as old as its index.

use std::time::Duration;

use aquifer_model::id::{EntryId, Index};
use aquifer_model::place::Place;
use aquifer_model::position::Position;
use aquifer_runtime::clock::timeout;

use crate::conformance::fake::{FakeBroker, LEDGER, LIFE, at};
use crate::consumer::Held;
use crate::error::{ApiError, ApiResult, ErrorKind};
use crate::pull::{
    Append, Appended, Commit, Locate, Located, LocatedMessage, Read, ReadBatches, ReadLimits,
    StoredBatch, TopicBounds,
};

/// The time of the first batch.
const BEGAN_MS: u64 = 1_000;

impl FakeBroker {
    pub(super) fn append_now(&self, request: Append) -> ApiResult<Appended> {
        self.called(&request.topic)?;
        if request.body == FakeBroker::POISON {
            return Err(ApiError::new(ErrorKind::Overloaded, "poison"));
        }
        let stored = self.store(request.topic.name(), request.body);
        Ok(Appended {
            incarnation: LIFE,
            stored: Some(stored),
            message_count: 1,
            broker_time_ms: Some(time_of(stored.base_index)),
            duplicate: false,
        })
    }

    pub(super) async fn read_waiting(&self, request: Read) -> ApiResult<ReadBatches> {
        self.called(&request.topic)?;
        let topic = request.topic.name();
        self.check_index(topic, request.from)?;
        let mut appended = self.appended.subscribe();
        let enough = appended.wait_for(|_| {
            let batches = self.batches(topic, request.from, request.limits);
            let bytes: usize = batches.iter().map(|batch| batch.body.len()).sum();
            bytes >= request.limits.bytes_min
        });
        // What is there when the wait is over is the answer.
        let _ = timeout(request.wait.max(Duration::from_millis(1)), enough).await;
        let batches = self.batches(topic, request.from, request.limits);
        Ok(ReadBatches {
            bounds: self.bounds_of(topic),
            next: batches.last().map_or(request.from, StoredBatch::end_index),
            batches,
            gap: None,
        })
    }

    fn batches(&self, topic: &str, from: Index, limits: ReadLimits) -> Vec<StoredBatch> {
        let from = usize::try_from(from.0).unwrap_or(usize::MAX);
        self.with(topic, |topic| {
            let mut left = limits.bytes_max;
            let mut found = Vec::new();
            let wanted = topic.batches.iter().enumerate().skip(from);
            for (number, body) in wanted.take(limits.batches_max) {
                if !found.is_empty() && body.len() > left {
                    break;
                }
                left = left.saturating_sub(body.len());
                let at = at(number);
                found.push(StoredBatch {
                    at,
                    message_count: 1,
                    broker_time_ms: time_of(at.base_index),
                    format: 1,
                    body: body.clone(),
                    held: Held::default(),
                });
            }
            found
        })
    }

    pub(super) fn locate_now(&self, request: &Locate) -> ApiResult<Located> {
        self.called(&request.topic)?;
        let end = self.bounds_of(request.topic.name()).end;
        let index = match request.place {
            Place::Earliest => Index(0),
            Place::Latest => end,
            Place::Index(index) => index.min(end),
            Place::TimeMs(ms) => Index(ms.saturating_sub(BEGAN_MS)).min(end),
            Place::Position(position) => {
                let index = Index(position.entry.0);
                let is_there = position.ledger == LEDGER && index < end;
                if !is_there || position.batch_index > 0 {
                    let error = ApiError::new(ErrorKind::InvalidArgument, "no such position");
                    return Err(error);
                }
                index
            }
        };
        let message = LocatedMessage {
            position: Position {
                ledger: LEDGER,
                entry: EntryId(index.0),
                batch_index: 0,
            },
            broker_time_ms: time_of(index),
        };
        let message = (index < end).then_some(message);
        Ok(Located { index, message })
    }

    pub(super) fn bounds_of(&self, topic: &str) -> TopicBounds {
        let end = at(self.stored(topic)).base_index;
        TopicBounds {
            incarnation: LIFE,
            first: Index(0),
            visible_end: end,
            end,
        }
    }

    pub(super) fn commit_now(&self, request: &Commit) -> ApiResult<Index> {
        self.called(&request.topic)?;
        let topic = request.topic.name();
        self.check_index(topic, request.index)?;
        let name = request.subscription.as_str();
        self.with(topic, |topic| {
            if !request.create && !topic.committed.contains_key(name) {
                let error = ApiError::new(ErrorKind::NotFound, "no such subscription");
                return Err(error);
            }
            topic.committed.insert(name.to_owned(), request.index);
            Ok(request.index)
        })
    }

    fn check_index(&self, topic: &str, index: Index) -> ApiResult<()> {
        if index <= self.bounds_of(topic).visible_end {
            return Ok(());
        }
        Err(ApiError::new(ErrorKind::InvalidArgument, "behind the end"))
    }
}

fn time_of(index: Index) -> u64 {
    BEGAN_MS + index.0
}
