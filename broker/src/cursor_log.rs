//! The records of a topic's cursor log: what is written there, and the state that they add up to.
//!
//! One log holds the changes of all subscriptions of a topic, in order, and from time to time a
//! snapshot of everything, in parts. A snapshot counts once its last part is there, as of the place
//! of its first; until then the one before does, so a crash between two parts costs nothing. What
//! is below the newest complete snapshot may be trimmed.
//!
//! Damage is an error that names the record, never a guess: a lost acknowledgement would break I9
//! quietly. No I/O here; the topic's owner reads and appends.

mod accumulated;

use std::collections::{BTreeMap, BTreeSet};

use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::limits::SNAPSHOT_PART_BYTES_MAX;
use aquifer_model::subscription::{Properties, SubscriptionType};
use aquifer_model::topic::{NameError, SubscriptionName};
use aquifer_proto::v1;
use aquifer_protocol_api::consumer::Redelivered;
use bytes::Bytes;
use prost::Message;
use roaring::RoaringTreemap;
use thiserror::Error;

use self::accumulated::Accumulated;
use crate::subscription::cursor::AckDelta;
use crate::subscription::cursor::state::{CursorError, CursorState, decode_bitmap, encode_bitmap};

/// Bytes of a record around its items.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// Bytes around one item: its tag and length.
const ITEM_OVERHEAD_BYTES: usize = 8;

/// A cursor log that does not add up.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CursorLogError {
    /// Bytes that are not a record.
    #[error("record {index} of the cursor log is damaged: {reason}")]
    Damaged {
        /// Index of the record.
        index: Index,
        /// What is wrong.
        reason: String,
    },
    /// A subscription's state or change that cannot be.
    #[error("record {index} of the cursor log has a bad cursor of subscription {subscription:?}")]
    Cursor {
        /// Index of the record.
        index: Index,
        /// The subscription.
        subscription: String,
        /// What is wrong.
        source: CursorError,
    },
    /// A name that is not valid.
    #[error("record {index} of the cursor log has a bad name")]
    Name {
        /// Index of the record.
        index: Index,
        /// What is wrong.
        source: NameError,
    },
    /// A change of a subscription that was never created.
    #[error(
        "record {index} of the cursor log changes subscription {subscription:?}, whose creation \
         is missing"
    )]
    Orphan {
        /// Index of the record.
        index: Index,
        /// The subscription.
        subscription: String,
    },
    /// The log was trimmed, and no complete snapshot is left.
    #[error("the cursor log begins at record {first} and has no complete snapshot")]
    NoSnapshot {
        /// Index of the first record.
        first: Index,
    },
}

/// A subscription as the log has it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveredSubscription {
    /// How consumers share.
    pub kind: SubscriptionType,
    /// What is recorded of it by name.
    pub properties: Properties,
    /// Where it stands.
    pub cursor: CursorState,
    /// How often messages were delivered, as of the newest snapshot.
    pub redelivered: Vec<Redelivered>,
    /// When it was created, ms since the Unix epoch.
    pub created_ms: u64,
}

/// What a cursor log adds up to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CursorLogState {
    /// The durable subscriptions.
    pub subscriptions: BTreeMap<SubscriptionName, RecoveredSubscription>,
    /// Producers as of `dedup_index`; for `DedupTable::restore`.
    pub producers: Vec<v1::ProducerState>,
    /// The topic log from here on is to be repeated into the deduplication table.
    pub dedup_index: Index,
    /// Where the newest complete snapshot begins: what is below may be trimmed.
    pub snapshot_at: Option<Index>,
}

/// What of a cursor log is not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Losses {
    /// The first damage.
    pub reason: String,
    /// Subscriptions of which only changes were found.
    pub nameless: BTreeSet<SubscriptionName>,
    /// Subscriptions that were created behind everything that is lost.
    pub certain: BTreeSet<SubscriptionName>,
}

/// A subscription comes to be.
#[must_use]
pub fn created(state: v1::SubscriptionState) -> v1::CursorDelta {
    v1::CursorDelta {
        subscription: state.name.clone(),
        change: Some(v1::cursor_delta::Change::Created(state)),
    }
}

/// A subscription ceases to be.
#[must_use]
pub fn deleted(subscription: &str) -> v1::CursorDelta {
    v1::CursorDelta {
        subscription: subscription.to_owned(),
        change: Some(v1::cursor_delta::Change::Deleted(true)),
    }
}

/// The type or properties of a subscription have changed.
#[must_use]
pub fn updated(subscription: &str, update: v1::SubscriptionUpdate) -> v1::CursorDelta {
    v1::CursorDelta {
        subscription: subscription.to_owned(),
        change: Some(v1::cursor_delta::Change::Updated(update)),
    }
}

/// Messages are acknowledged.
#[must_use]
pub fn acknowledged(subscription: &str, delta: &AckDelta) -> v1::CursorDelta {
    v1::CursorDelta {
        subscription: subscription.to_owned(),
        change: Some(v1::cursor_delta::Change::Acknowledged(delta.to_wire())),
    }
}

/// A subscription is moved.
#[must_use]
pub fn moved(subscription: &str, seek_epoch: SeekEpoch, index: Index) -> v1::CursorDelta {
    let seek = v1::SeekDelta {
        seek_epoch: seek_epoch.0,
        index: index.0,
    };
    v1::CursorDelta {
        subscription: subscription.to_owned(),
        change: Some(v1::cursor_delta::Change::Seek(seek)),
    }
}

/// Packs changes into records, in order, as few as the bound on a record allows. A single change
/// above the bound gets a record of its own.
#[must_use]
pub fn encode_deltas(deltas: Vec<v1::CursorDelta>) -> Vec<Bytes> {
    let mut records = Vec::new();
    let mut pack = Vec::new();
    let mut bytes = RECORD_OVERHEAD_BYTES;
    for delta in deltas {
        let size = delta.encoded_len() + ITEM_OVERHEAD_BYTES;
        if bytes + size > SNAPSHOT_PART_BYTES_MAX && !pack.is_empty() {
            records.push(encode_pack(std::mem::take(&mut pack)));
            bytes = RECORD_OVERHEAD_BYTES;
        }
        bytes += size;
        pack.push(delta);
    }
    if !pack.is_empty() {
        records.push(encode_pack(pack));
    }
    records
}

fn encode_pack(deltas: Vec<v1::CursorDelta>) -> Bytes {
    let record = v1::cursor_log_record::Record::Deltas(v1::CursorDeltas { deltas });
    encode_record(record)
}

fn encode_record(record: v1::cursor_log_record::Record) -> Bytes {
    let record = v1::CursorLogRecord {
        record: Some(record),
    };
    record.encode_to_vec().into()
}

/// Encodes a snapshot in parts, each within the bound on a record. They are to be appended in
/// order; changes may come between them, but the states must include exactly what was appended
/// before the first part, or more of what is appended after it.
#[must_use]
pub fn encode_snapshot(
    snapshot_id: u64,
    subscriptions: Vec<v1::SubscriptionState>,
    producers: Vec<v1::ProducerState>,
    dedup_index: Index,
) -> Vec<Bytes> {
    let snapshot = v1::CursorSnapshot {
        snapshot_id,
        subscriptions,
        producers,
        dedup_index: dedup_index.0,
        ..v1::CursorSnapshot::default()
    };
    encode_parts(snapshot, SNAPSHOT_PART_BYTES_MAX)
}

fn encode_parts(snapshot: v1::CursorSnapshot, part_bytes_max: usize) -> Vec<Bytes> {
    let empty = v1::CursorSnapshot {
        snapshot_id: snapshot.snapshot_id,
        dedup_index: snapshot.dedup_index,
        ..v1::CursorSnapshot::default()
    };
    let mut parts = vec![empty.clone()];
    let mut bytes = RECORD_OVERHEAD_BYTES;
    let mut place = |size: usize, add: &mut dyn FnMut(&mut v1::CursorSnapshot)| {
        let size = size + ITEM_OVERHEAD_BYTES;
        if bytes + size > part_bytes_max && bytes > RECORD_OVERHEAD_BYTES {
            parts.push(empty.clone());
            bytes = RECORD_OVERHEAD_BYTES;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            add(part);
        }
    };
    let room = part_bytes_max.saturating_sub(RECORD_OVERHEAD_BYTES + ITEM_OVERHEAD_BYTES);
    for state in snapshot.subscriptions {
        for piece in split_state(state, room) {
            place(piece.encoded_len(), &mut |part| {
                part.subscriptions.push(piece.clone());
            });
        }
    }
    for producer in snapshot.producers {
        place(producer.encoded_len(), &mut |part| {
            part.producers.push(producer.clone());
        });
    }
    let last = parts.len() - 1;
    let numbered = parts.into_iter().enumerate().map(|(number, mut part)| {
        part.part = u32::try_from(number).unwrap_or(u32::MAX);
        part.last_part = number == last;
        encode_record(v1::cursor_log_record::Record::Snapshot(part))
    });
    numbered.collect()
}

/// Cuts the bitmap of a large state in two, by index, until every piece fits; the pieces repeat
/// everything else and add up to the whole.
fn split_state(state: v1::SubscriptionState, bytes_max: usize) -> Vec<v1::SubscriptionState> {
    if state.encoded_len() <= bytes_max {
        return vec![state];
    }
    let bitmap = decode_bitmap(&state.acknowledged).unwrap_or_default();
    let (Some(min), Some(max)) = (bitmap.min(), bitmap.max()) else {
        return vec![state];
    };
    if min == max {
        return vec![state];
    }
    let middle = min + (max - min) / 2;
    let piece = |drop_low: bool| {
        let mut half: RoaringTreemap = bitmap.clone();
        if drop_low {
            half.remove_range(..=middle);
        } else {
            half.remove_range(middle + 1..);
        }
        half.optimize();
        let half = v1::SubscriptionState {
            acknowledged: encode_bitmap(&half).into(),
            ..state.clone()
        };
        split_state(half, bytes_max)
    };
    let mut pieces = piece(false);
    pieces.extend(piece(true));
    pieces
}

/// Repeats a whole log.
///
/// # Errors
/// As [`Replay::record`] and [`Replay::finish`].
pub fn replay<B: AsRef<[u8]>>(
    records: impl IntoIterator<Item = (Index, B)>,
) -> Result<CursorLogState, CursorLogError> {
    let mut replay = Replay::default();
    for (index, bytes) in records {
        replay.record(index, bytes.as_ref())?;
    }
    replay.finish()
}

/// Repeats a log record by record.
#[derive(Debug, Default)]
pub struct Replay {
    first: Option<Index>,
    snapshot_at: Option<Index>,
    state: Accumulated,
    building: Option<Building>,
    /// Why something before here is missing that no snapshot behind it makes good.
    lost: Option<String>,
}

/// Changes that are kept for a snapshot that misses a part. There are few between its parts; more
/// come when it has no last part, and then none is awaited.
const SINCE_MAX: usize = 10_000;

/// A snapshot whose last part was not seen yet.
#[derive(Debug)]
struct Building {
    snapshot_id: u64,
    parts: u32,
    at: Index,
    state: Accumulated,
    /// Changes since its first part: they are not in it.
    since: Vec<(Index, v1::CursorDelta)>,
    /// A part of it is missing: it counts for what is nowhere else only.
    broken: bool,
}

impl Replay {
    /// Takes the next record.
    ///
    /// # Errors
    /// When it is damaged or cannot be.
    pub fn record(&mut self, index: Index, bytes: &[u8]) -> Result<(), CursorLogError> {
        self.first.get_or_insert(index);
        let damaged = |reason: String| CursorLogError::Damaged { index, reason };
        let record =
            v1::CursorLogRecord::decode(bytes).map_err(|error| damaged(error.to_string()))?;
        match record.record {
            Some(v1::cursor_log_record::Record::Snapshot(part)) => self.part(index, part),
            Some(v1::cursor_log_record::Record::Deltas(deltas)) => {
                for delta in deltas.deltas {
                    self.state.change(index, &delta)?;
                    if let Some(building) = &mut self.building {
                        building.since.push((index, delta));
                    }
                }
                let too_many =
                    |building: &Building| building.broken && building.since.len() > SINCE_MAX;
                if self.building.as_ref().is_some_and(too_many) {
                    self.salvage();
                }
                Ok(())
            }
            None => Err(damaged("neither snapshot nor changes".to_owned())),
        }
    }

    /// Some records cannot be read. What is whole of the rest counts, the other parts of a snapshot
    /// too; a complete snapshot behind them makes everything good.
    pub fn lost(&mut self, reason: String) {
        if let Some(building) = &mut self.building {
            building.broken = true;
        }
        self.state.created.clear();
        // What was deleted before may have been created again in what is lost.
        self.state.deleted.clear();
        self.lost.get_or_insert(reason);
    }

    /// The state after the last record, as far as the log is whole, and what is not.
    #[must_use]
    pub fn finish_with_losses(mut self) -> (CursorLogState, Option<Losses>) {
        self.salvage();
        let missing = self.missing().map(|error| error.to_string());
        let losses = self.lost.or(missing).map(|reason| Losses {
            reason,
            nameless: self.state.orphans,
            certain: self.state.created,
        });
        let state = CursorLogState {
            subscriptions: self.state.subscriptions,
            producers: self.state.producers,
            dedup_index: self.state.dedup_index,
            snapshot_at: self.snapshot_at,
        };
        (state, losses)
    }

    /// The state after the last record.
    ///
    /// # Errors
    /// When the log has lost its beginning, or the creation of a subscription that it changes.
    pub fn finish(mut self) -> Result<CursorLogState, CursorLogError> {
        match self.missing() {
            Some(error) => Err(error),
            None => Ok(self.finish_with_losses().0),
        }
    }

    /// What must have stood before the records that were read.
    fn missing(&mut self) -> Option<CursorLogError> {
        if let (None, Some(first)) = (self.snapshot_at, self.first)
            && first > Index(0)
        {
            return Some(CursorLogError::NoSnapshot { first });
        }
        let (index, subscription) = self.state.orphan.take()?;
        Some(CursorLogError::Orphan {
            index,
            subscription,
        })
    }

    fn part(&mut self, index: Index, part: v1::CursorSnapshot) -> Result<(), CursorLogError> {
        let is_same = |building: &Building| building.snapshot_id == part.snapshot_id;
        if part.part == 0 || self.lost.is_some() && !self.building.as_ref().is_some_and(is_same) {
            self.salvage();
            self.building = Some(Building {
                snapshot_id: part.snapshot_id,
                parts: part.part,
                at: index,
                state: Accumulated::default(),
                since: Vec::new(),
                broken: part.part > 0,
            });
        }
        let Some(mut building) = self.building.take() else {
            // The rest of a snapshot whose beginning was trimmed.
            return Ok(());
        };
        if building.broken && building.parts < part.part {
            building.parts = part.part;
        }
        let last = part.last_part;
        let is_next = building.snapshot_id == part.snapshot_id && building.parts == part.part;
        let added = match is_next {
            true => building.state.add_part(index, part),
            false => Err(CursorLogError::Damaged {
                index,
                reason: format!(
                    "part {} of snapshot {} where part {} of snapshot {} belongs",
                    part.part, part.snapshot_id, building.parts, building.snapshot_id
                ),
            }),
        };
        if let Err(error) = added {
            self.building = Some(building);
            return Err(error);
        }
        building.parts += 1;
        if !last || building.broken {
            self.building = Some(building);
            if last {
                self.salvage();
            }
            return Ok(());
        }
        self.snapshot_at = Some(building.at);
        self.lost = None;
        self.state = building.state;
        for (index, delta) in building.since {
            self.state.change(index, &delta)?;
        }
        Ok(())
    }

    /// Takes what is nowhere else from a snapshot that is not whole, once something is lost: where
    /// a subscription stood then, if the records before do not say, or say it of an earlier life of
    /// it or of before a seek; and its changes since. Producers are not taken: the message log has
    /// them, and a snapshot without some would hide that.
    fn salvage(&mut self) {
        let Some(building) = self.building.take().filter(|_| self.lost.is_some()) else {
            return;
        };
        let age = |known: &RecoveredSubscription| (known.created_ms, known.cursor.seek_epoch());
        let is_news = |name: &SubscriptionName, found: &RecoveredSubscription| {
            let known = self.state.subscriptions.get(name);
            let is_deleted = self.state.deleted.contains(name.as_str());
            known.map_or(!is_deleted, |known| age(found) > age(known))
        };
        let found = building.state.subscriptions.into_iter();
        let found: BTreeMap<_, _> = found.filter(|(name, at)| is_news(name, at)).collect();
        for name in found.keys() {
            self.state.orphans.remove(name);
        }
        let names: BTreeSet<String> = found.keys().map(ToString::to_string).collect();
        self.state.subscriptions.extend(found);
        for (index, delta) in &building.since {
            // A change that cannot be was told when it was read.
            if names.contains(&delta.subscription) {
                let _ = self.state.change(*index, delta);
            }
        }
    }
}

#[cfg(test)]
mod tests;
