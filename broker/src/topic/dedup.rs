//! Deduplication: which sequence ids of which producer names are stored, or in flight (I8).
//!
//! Per name two marks: the highest id *pushed* to the log and the highest
//! *persisted* by it. Between the two the outcome is unknown, and the answer to a repetition is
//! "not yet". After a failed append the pushed marks go back to the persisted ones, or the retry
//! would be swallowed (H7). Marks of a batch are its lowest and highest id, and a batch keeps its
//! composition for ever, so anything that overlaps in part is refused by name.
//!
//! A name also knows the producer object that had it last (H20). One that comes back after another
//! has used the name is refused: its unsent batches carry ids that the other has used meanwhile,
//! and would look like duplicates. After a crash the objects are those of the stored batches: a
//! producer that opened the name and stored nothing has left nothing to be mistaken for.
//!
//! Bounded by forgetting the names that were longest idle; a connected one, one with an append in
//! flight, or one that its record pins, is never forgotten. Names that the broker drew serve one
//! object each: they have a bound of their own, so that they push out no others, and are forgotten
//! a grace after it is gone. A pure table: the topic's owner decides what to answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aquifer_model::extensions::ProducerStamp;
use aquifer_model::id::{EntryId, Index, LedgerId, ProducerInstance};
use aquifer_model::limits::{DEDUP_DRAWN_IDLE_MAX, DEDUP_PRODUCERS_MAX, DEDUP_WINDOW_MAX};
use aquifer_model::topic::{NameError, ProducerName};
use aquifer_proto::v1;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::producer::StoredAt;
use bytes::Bytes;

/// How long a drawn name is remembered after its producer is gone, at least; twice as long at most.
/// A producer that comes back later than that has given up its messages long ago.
pub const DRAWN_GRACE: Duration = Duration::from_secs(600);

/// A producer object, as it opened a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opener {
    /// The object.
    pub instance: ProducerInstance,
    /// Counts its sessions.
    pub epoch: u64,
}

/// The sequence ids of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceRange {
    /// Of its first message.
    pub lowest: u64,
    /// Of its last message.
    pub highest: u64,
}

impl From<&ProducerStamp> for SequenceRange {
    fn from(stamp: &ProducerStamp) -> SequenceRange {
        SequenceRange {
            lowest: stamp.lowest_sequence_id,
            highest: stamp.highest_sequence_id,
        }
    }
}

/// What a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Never seen: append it.
    New,
    /// Stored, durably. `None`: as part of another batch, or before the remembered window, where
    /// the order of sequence ids is all that there is to judge by.
    Duplicate(Option<StoredAt>),
    /// Some of it may be stored and some is not: the producer cut its batches again. Not retryable.
    PartialOverlap,
    /// In flight, outcome unknown: retry later.
    InFlightDuplicate,
    /// Below what is stored, and certainly never stored itself: acknowledging it would lose it. Not
    /// retryable; sequence ids have to ascend.
    OutOfOrder,
}

/// A batch of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stored {
    range: SequenceRange,
    at: StoredAt,
}

#[derive(Debug, Clone, Default)]
struct Producer {
    persisted: Option<u64>,
    /// Never below `persisted`.
    pushed: Option<u64>,
    /// Batches pushed and not persisted.
    in_flight: u32,
    /// Sessions that are open.
    connected: u32,
    last_active_ms: u64,
    /// The producer that opened the name last, or stored under it; `None` when a snapshot does not
    /// say.
    last: Option<Opener>,
    /// Never idle, so that it is not forgotten.
    pinned: bool,
    /// Key in the order of the idle; meaningful while idle.
    idle_since: u64,
    /// Latest batches, oldest first.
    window: VecDeque<Stored>,
}

impl Producer {
    fn is_idle(&self) -> bool {
        self.connected == 0 && self.in_flight == 0 && !self.pinned
    }

    fn duplicate(&self, range: SequenceRange) -> Verdict {
        if let Some(stored) = self.window.iter().find(|stored| stored.range == range) {
            return Verdict::Duplicate(Some(stored.at));
        }
        // Batches are stored in ascending order, so what lies behind the window's oldest and meets
        // none of its batches was skipped when they were stored.
        let behind_oldest = |oldest: &Stored| range.lowest > oldest.range.highest;
        let meets = |stored: &Stored| {
            stored.range.lowest <= range.highest && range.lowest <= stored.range.highest
        };
        if self.window.front().is_some_and(behind_oldest) && !self.window.iter().any(meets) {
            return Verdict::OutOfOrder;
        }
        Verdict::Duplicate(None)
    }
}

/// The sequence ids of a topic's producers.
#[derive(Debug, Clone)]
pub struct DedupTable {
    producers: BTreeMap<ProducerName, Producer>,
    /// Idle names that clients chose, the longest idle first.
    idle: BTreeSet<(u64, ProducerName)>,
    /// Idle names that the broker drew, the longest idle first.
    drawn_idle: BTreeSet<(u64, ProducerName)>,
    /// How many names are drawn.
    drawn: usize,
    /// Batches in all windows together.
    batches: usize,
    /// Counts the times a name became idle.
    ticks: u64,
    /// When drawn names were last forgotten, on the monotonic clock, and the ticks by then.
    drawn_mark: (Duration, u64),
    producers_max: usize,
    drawn_idle_max: usize,
}

impl Default for DedupTable {
    fn default() -> DedupTable {
        DedupTable::with_capacity_max(DEDUP_PRODUCERS_MAX, DEDUP_DRAWN_IDLE_MAX)
    }
}

impl DedupTable {
    /// An empty table that remembers at most `producers_max` names, and `drawn_idle_max` drawn ones
    /// that are idle.
    #[must_use]
    pub fn with_capacity_max(producers_max: usize, drawn_idle_max: usize) -> DedupTable {
        DedupTable {
            producers: BTreeMap::new(),
            idle: BTreeSet::new(),
            drawn_idle: BTreeSet::new(),
            drawn: 0,
            batches: 0,
            ticks: 0,
            drawn_mark: (Duration::ZERO, 0),
            producers_max,
            drawn_idle_max,
        }
    }

    /// The table of a snapshot. The log behind the snapshot is to be repeated through
    /// [`DedupTable::replayed`].
    ///
    /// # Errors
    /// When a name is invalid.
    pub fn restore(states: &[v1::ProducerState]) -> Result<DedupTable, NameError> {
        DedupTable::default().restored(states)
    }

    fn restored(mut self, states: &[v1::ProducerState]) -> Result<DedupTable, NameError> {
        let mut states: Vec<&v1::ProducerState> = states.iter().collect();
        states.sort_by_key(|state| state.last_active_ms);
        for state in states {
            let name = ProducerName::new(&state.name)?;
            let newest = state.window.len().saturating_sub(DEDUP_WINDOW_MAX);
            let producer = Producer {
                persisted: Some(state.highest_sequence_id),
                pushed: Some(state.highest_sequence_id),
                last_active_ms: state.last_active_ms,
                last: decode_opener(state),
                pinned: state.pinned,
                window: state.window[newest..].iter().map(decode_stored).collect(),
                ..Producer::default()
            };
            self.batches += producer.window.len();
            *self.entry(&name) = producer;
            self.note_idle(&name);
        }
        Ok(self)
    }

    /// What to store: the persisted marks and windows.
    #[must_use]
    pub fn snapshot(&self) -> Vec<v1::ProducerState> {
        let persisted = |(name, producer): (&ProducerName, &Producer)| {
            Some(v1::ProducerState {
                name: name.to_string(),
                highest_sequence_id: producer.persisted?,
                last_active_ms: producer.last_active_ms,
                window: producer.window.iter().map(encode_stored).collect(),
                instance: producer
                    .last
                    .map_or_else(Bytes::new, |last| Bytes::copy_from_slice(&last.instance.0)),
                epoch: producer.last.map_or(0, |last| last.epoch),
                pinned: producer.pinned,
            })
        };
        self.producers.iter().filter_map(persisted).collect()
    }

    /// Whether an opener may have a name: not when another has had it since this one, `returning`,
    /// had it last, nor when it is an earlier session of the last one.
    #[must_use]
    pub fn admits(&self, name: &ProducerName, opener: Opener, returning: bool) -> bool {
        let last = self.producers.get(name).and_then(|producer| producer.last);
        match last {
            Some(last) if last.instance == opener.instance => last.epoch <= opener.epoch,
            Some(_) => !returning,
            None => true,
        }
    }

    /// Notes that a producer opened: its name is not forgotten until [`DedupTable::disconnect`].
    ///
    /// # Errors
    /// When every name that is remembered is in use.
    pub fn connect(&mut self, name: &ProducerName, opener: Opener) -> Result<(), ApiError> {
        if !self.producers.contains_key(name)
            && !name.is_drawn()
            && self.producers.len() - self.drawn >= self.producers_max
            && self.idle.is_empty()
        {
            return Err(ApiError::new(
                ErrorKind::QuotaExceeded,
                format!("the topic has {} producers already", self.producers_max),
            ));
        }
        let producer = self.entry(name);
        producer.connected += 1;
        producer.last = Some(opener);
        Ok(())
    }

    /// Notes that a producer closed.
    pub fn disconnect(&mut self, name: &ProducerName) {
        if let Some(producer) = self.producers.get_mut(name) {
            producer.connected = producer.connected.saturating_sub(1);
            self.note_idle(name);
        }
    }

    /// Judges a batch; changes nothing.
    #[must_use]
    pub fn check(&self, name: &ProducerName, range: SequenceRange) -> Verdict {
        if range.lowest > range.highest {
            return Verdict::OutOfOrder;
        }
        let Some(producer) = self.producers.get(name) else {
            return Verdict::New;
        };
        if let Some(persisted) = producer.persisted {
            if range.highest <= persisted {
                return producer.duplicate(range);
            }
            if range.lowest <= persisted {
                return Verdict::PartialOverlap;
            }
        }
        match producer.pushed {
            Some(pushed) if range.lowest <= pushed => Verdict::InFlightDuplicate,
            Some(_) | None => Verdict::New,
        }
    }

    /// Notes that a new batch was handed to the log.
    pub fn pushed(&mut self, name: &ProducerName, range: SequenceRange) {
        let producer = self.entry(name);
        producer.pushed = producer.pushed.max(Some(range.highest));
        producer.in_flight += 1;
    }

    /// Notes a batch that the log holds, in log order, while a topic is loaded.
    pub fn replayed(
        &mut self,
        name: &ProducerName,
        instance: Option<ProducerInstance>,
        range: SequenceRange,
        at: StoredAt,
        now_ms: u64,
    ) {
        let producer = self.entry(name);
        if producer.last.map(|last| last.instance) != instance {
            producer.last = instance.map(|instance| Opener { instance, epoch: 0 });
        }
        self.persisted(name, range, at, now_ms);
    }

    /// Notes that a batch that was pushed is durable, in log order.
    pub fn persisted(
        &mut self,
        name: &ProducerName,
        range: SequenceRange,
        at: StoredAt,
        now_ms: u64,
    ) {
        let producer = self.entry(name);
        producer.in_flight = producer.in_flight.saturating_sub(1);
        producer.last_active_ms = producer.last_active_ms.max(now_ms);
        if producer.persisted < Some(range.highest) {
            producer.persisted = Some(range.highest);
            producer.pushed = producer.pushed.max(producer.persisted);
            let is_full = producer.window.len() == DEDUP_WINDOW_MAX;
            if is_full {
                producer.window.pop_front();
            }
            producer.window.push_back(Stored { range, at });
            self.batches += usize::from(!is_full);
        }
        self.note_idle(name);
    }

    /// Takes back what was pushed and not persisted. Called after an append failed, when the
    /// outcome of everything before it is in, and before the log resumes (H7).
    pub fn reset_pushed(&mut self) {
        let mut idle = Vec::new();
        for (name, producer) in &mut self.producers {
            producer.pushed = producer.persisted;
            if std::mem::take(&mut producer.in_flight) > 0 {
                idle.push(name.clone());
            }
        }
        for name in idle {
            self.note_idle(&name);
        }
    }

    /// The highest persisted sequence id of a name, from which its next producer continues.
    #[must_use]
    pub fn last_sequence_id(&self, name: &ProducerName) -> Option<u64> {
        self.producers.get(name)?.persisted
    }

    /// Index of the first message of the batch that ends with it.
    #[must_use]
    pub fn last_index(&self, name: &ProducerName) -> Option<Index> {
        Some(self.producers.get(name)?.window.back()?.at.base_index)
    }

    /// Whether a batch of that name is in flight: opening the name waits until none is.
    #[must_use]
    pub fn has_in_flight(&self, name: &ProducerName) -> bool {
        self.producers
            .get(name)
            .is_some_and(|producer| producer.in_flight > 0)
    }

    /// How many names are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// How many batches are remembered, of all names together.
    #[must_use]
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// Whether no name is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// Forgets drawn names whose producers went away a grace ago. To be called from time to time.
    pub fn forget_drawn(&mut self, now: Duration) {
        let (marked_at, ticks) = self.drawn_mark;
        if now.saturating_sub(marked_at) < DRAWN_GRACE {
            return;
        }
        self.drawn_mark = (now, self.ticks);
        while self
            .drawn_idle
            .first()
            .is_some_and(|(since, _)| *since <= ticks)
        {
            self.forget_first_drawn();
        }
    }

    /// The state of a name, created if it is missing, and not among the idle until that is noted.
    fn entry(&mut self, name: &ProducerName) -> &mut Producer {
        match self.producers.get(name) {
            Some(producer) if producer.is_idle() => {
                let key = (producer.idle_since, name.clone());
                self.idle_of(name).remove(&key);
            }
            Some(_) => {}
            None => {
                self.make_room(name);
                self.drawn += usize::from(name.is_drawn());
            }
        }
        self.producers.entry(name.clone()).or_default()
    }

    fn idle_of(&mut self, name: &ProducerName) -> &mut BTreeSet<(u64, ProducerName)> {
        match name.is_drawn() {
            true => &mut self.drawn_idle,
            false => &mut self.idle,
        }
    }

    /// Puts a name last among the idle if nothing uses it.
    fn note_idle(&mut self, name: &ProducerName) {
        let Some(producer) = self.producers.get_mut(name).filter(|one| one.is_idle()) else {
            return;
        };
        let before = (producer.idle_since, name.clone());
        self.ticks += 1;
        producer.idle_since = self.ticks;
        let now = (self.ticks, name.clone());
        let idle = self.idle_of(name);
        idle.remove(&before);
        idle.insert(now);
        while self.drawn_idle.len() > self.drawn_idle_max {
            self.forget_first_drawn();
        }
    }

    fn forget_first_drawn(&mut self) {
        if let Some((_, forgotten)) = self.drawn_idle.pop_first() {
            self.drawn -= 1;
            self.forget(&forgotten);
        }
    }

    fn forget(&mut self, name: &ProducerName) {
        if let Some(producer) = self.producers.remove(name) {
            self.batches -= producer.window.len();
        }
    }

    /// Forgets the longest idle name when a chosen one comes and they are too many.
    fn make_room(&mut self, name: &ProducerName) {
        if !name.is_drawn()
            && self.producers.len() - self.drawn >= self.producers_max
            && let Some((_, forgotten)) = self.idle.pop_first()
        {
            self.forget(&forgotten);
        }
    }
}

/// What was stored since deduplication was last put into a snapshot.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SinceSnapshot {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

fn decode_opener(state: &v1::ProducerState) -> Option<Opener> {
    let instance = ProducerInstance::try_from(state.instance.as_ref()).ok()?;
    Some(Opener {
        instance,
        epoch: state.epoch,
    })
}

fn encode_stored(stored: &Stored) -> v1::StoredRange {
    v1::StoredRange {
        lowest_sequence_id: stored.range.lowest,
        highest_sequence_id: stored.range.highest,
        ledger_id: stored.at.ledger.0,
        entry_id: stored.at.entry.0,
        base_index: stored.at.base_index.0,
    }
}

fn decode_stored(stored: &v1::StoredRange) -> Stored {
    Stored {
        range: SequenceRange {
            lowest: stored.lowest_sequence_id,
            highest: stored.highest_sequence_id,
        },
        at: StoredAt {
            ledger: LedgerId(stored.ledger_id),
            entry: EntryId(stored.entry_id),
            base_index: Index(stored.base_index),
        },
    }
}

#[cfg(test)]
mod tests;
