//! Deduplication: which sequence ids of which producer names are stored, or on their way (I8).
//!
//! Per name two marks (reference.md B6): the highest id *pushed* to the log and the highest
//! *persisted* by it. Between the two the outcome is unknown, and the answer to a repetition is
//! "not yet". After a failed append the pushed marks go back to the persisted ones, or the retry
//! would be swallowed (H7). Marks of a batch are its lowest and highest id, and a batch keeps its
//! composition for ever, so anything that overlaps in part is refused by name.
//!
//! Bounded by forgetting the names that were longest idle; a connected one, or one with an append
//! on its way, is never forgotten. A pure table: the topic's owner decides what to answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::limits::{DEDUP_PRODUCERS_MAX, DEDUP_WINDOW_MAX};
use aquifer_model::topic::{NameError, ProducerName};
use aquifer_proto::v1;
use aquifer_protocol_api::broker::StoredAt;
use aquifer_protocol_api::error::{ApiError, ErrorKind};

/// The sequence ids of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceRange {
    /// Of its first message.
    pub lowest: u64,
    /// Of its last message.
    pub highest: u64,
}

/// What a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Never seen: append it.
    New,
    /// Stored, durably. `None`: as part of another batch, or before the remembered window, where
    /// the order of sequence ids is all that there is to judge by.
    Duplicate(Option<StoredAt>),
    /// Some of it may be stored and some is not: the producer cut its batches anew. Not retryable.
    PartialOverlap,
    /// On its way, outcome unknown: retry later.
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
    /// Key in the order of the idle; meaningful while idle.
    idle_since: u64,
    /// Latest batches, oldest first.
    window: VecDeque<Stored>,
}

impl Producer {
    fn is_idle(&self) -> bool {
        self.connected == 0 && self.in_flight == 0
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
    /// Idle names, the longest idle first.
    idle: BTreeSet<(u64, ProducerName)>,
    /// Counts the times a name became idle.
    ticks: u64,
    producers_max: usize,
}

impl Default for DedupTable {
    fn default() -> DedupTable {
        DedupTable::with_capacity_max(DEDUP_PRODUCERS_MAX)
    }
}

impl DedupTable {
    /// An empty table that remembers at most so many names.
    #[must_use]
    pub fn with_capacity_max(producers_max: usize) -> DedupTable {
        DedupTable {
            producers: BTreeMap::new(),
            idle: BTreeSet::new(),
            ticks: 0,
            producers_max,
        }
    }

    /// The table of a snapshot. The log behind the snapshot is to be repeated through
    /// [`DedupTable::persisted`].
    ///
    /// # Errors
    /// When a name is none.
    pub fn restore(states: &[v1::ProducerState]) -> Result<DedupTable, NameError> {
        DedupTable::restore_with_capacity_max(states, DEDUP_PRODUCERS_MAX)
    }

    fn restore_with_capacity_max(
        states: &[v1::ProducerState],
        producers_max: usize,
    ) -> Result<DedupTable, NameError> {
        let mut table = DedupTable::with_capacity_max(producers_max);
        let mut states: Vec<&v1::ProducerState> = states.iter().collect();
        states.sort_by_key(|state| state.last_active_ms);
        for state in states {
            let name = ProducerName::new(&state.name)?;
            let newest = state.window.len().saturating_sub(DEDUP_WINDOW_MAX);
            let producer = Producer {
                persisted: Some(state.highest_sequence_id),
                pushed: Some(state.highest_sequence_id),
                last_active_ms: state.last_active_ms,
                window: state.window[newest..].iter().map(decode_stored).collect(),
                ..Producer::default()
            };
            table.make_room();
            table.producers.insert(name.clone(), producer);
            table.settle(&name);
        }
        Ok(table)
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
            })
        };
        self.producers.iter().filter_map(persisted).collect()
    }

    /// Notes that a producer opened: its name is not forgotten until [`DedupTable::disconnect`].
    ///
    /// # Errors
    /// When every name that is remembered is in use.
    pub fn connect(&mut self, name: &ProducerName) -> Result<(), ApiError> {
        if !self.producers.contains_key(name)
            && self.producers.len() >= self.producers_max
            && self.idle.is_empty()
        {
            return Err(ApiError::new(
                ErrorKind::QuotaExceeded,
                format!("the topic has {} producers already", self.producers_max),
            ));
        }
        self.entry(name).connected += 1;
        Ok(())
    }

    /// Notes that a producer closed.
    pub fn disconnect(&mut self, name: &ProducerName) {
        if let Some(producer) = self.producers.get_mut(name) {
            producer.connected = producer.connected.saturating_sub(1);
            self.settle(name);
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

    /// Notes that a batch is durable, in log order: one that was pushed, or, while a topic is
    /// loaded, one that the log holds.
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
            if producer.window.len() == DEDUP_WINDOW_MAX {
                producer.window.pop_front();
            }
            producer.window.push_back(Stored { range, at });
        }
        self.settle(name);
    }

    /// Takes back what was pushed and not persisted. Called after an append failed, when the
    /// outcome of everything before it is in, and before the log resumes (H7).
    pub fn reset_pushed(&mut self) {
        let mut settled = Vec::new();
        for (name, producer) in &mut self.producers {
            producer.pushed = producer.persisted;
            if std::mem::take(&mut producer.in_flight) > 0 {
                settled.push(name.clone());
            }
        }
        for name in settled {
            self.settle(&name);
        }
    }

    /// The highest persisted sequence id of a name, from which its next producer continues.
    #[must_use]
    pub fn last_sequence_id(&self, name: &ProducerName) -> Option<u64> {
        self.producers.get(name)?.persisted
    }

    /// Whether a batch of that name is on its way: opening the name waits until none is.
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

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// The state of a name, made if there is none, and not idle until it is settled.
    fn entry(&mut self, name: &ProducerName) -> &mut Producer {
        match self.producers.get(name) {
            Some(producer) => {
                self.idle.remove(&(producer.idle_since, name.clone()));
            }
            None => self.make_room(),
        }
        self.producers.entry(name.clone()).or_default()
    }

    /// Puts a name last among the idle if nothing uses it.
    fn settle(&mut self, name: &ProducerName) {
        if let Some(producer) = self.producers.get_mut(name) {
            self.idle.remove(&(producer.idle_since, name.clone()));
            if producer.is_idle() {
                self.ticks += 1;
                producer.idle_since = self.ticks;
                self.idle.insert((self.ticks, name.clone()));
            }
        }
    }

    /// Forgets the longest idle name when the table is full.
    fn make_room(&mut self) {
        if self.producers.len() >= self.producers_max
            && let Some((_, forgotten)) = self.idle.pop_first()
        {
            self.producers.remove(&forgotten);
        }
    }
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
