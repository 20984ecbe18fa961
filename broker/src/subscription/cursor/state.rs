//! What a cursor has acknowledged, in index space, and its stored form.
//!
//! Everything below the mark-delete index is acknowledged; above it a 64-bit roaring bitmap holds
//! what else is, whole: no island is ever dropped, so that I9 holds for any pattern. The mark moves
//! back by a seek only. Memory follows the number of islands, not the distance between them, as
//! long runs are compressed from time to time.
//!
//! It does not know what was delivered: callers bound acknowledgements before they come here.

use std::ops::Range;

use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::subscription::SubscriptionType;
use aquifer_proto::v1;
use aquifer_protocol_api::consumer::IndexRange;
use roaring::RoaringTreemap;
use thiserror::Error;

/// Indexes beyond this exist in damaged records only; sums below it cannot overflow.
pub const INDEX_MAX: u64 = 1 << 62;
/// Widest single range that an acknowledgement, and so a record, may have. Far above what can be
/// unacknowledged at once, and small enough that a damaged record costs little.
pub(crate) const RANGE_WIDTH_MAX: u64 = 1 << 32;
/// Bitmap containers cover this many indexes; ranges are inserted container by container.
const CONTAINER_WIDTH: u64 = 1 << 16;
/// Acknowledgements between two compressions of the bitmap: bounds what is not compressed.
const COMPRESS_AFTER: u64 = 1 << 20;

/// A stored cursor that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CursorError {
    /// An index out of any range.
    #[error("cursor names index {0}, beyond any that exists")]
    Index(u64),
    /// A range that is empty, reversed or too wide.
    #[error("cursor acknowledges {first} to {last}, which is no range of messages")]
    Range {
        /// Its first index.
        first: u64,
        /// Its last index.
        last: u64,
    },
    /// The bitmap is not one.
    #[error("cursor bitmap is damaged: {0}")]
    Bitmap(String),
    /// An unknown way of sharing.
    #[error("subscription has unknown type {0}")]
    Kind(i32),
}

/// What of a topic a subscription has acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct CursorState {
    mark_delete: u64,
    /// Acknowledged at or above the mark; never contains the mark itself.
    above: RoaringTreemap,
    above_count: u64,
    seek_epoch: SeekEpoch,
    /// Indexes inserted since the bitmap was last compressed.
    uncompressed: u64,
}

/// Moves of a subscription that a damaged record may have lost.
const LOST_MOVES_MAX: u64 = 1 << 32;

impl CursorState {
    /// A cursor that has acknowledged everything below `start`.
    #[must_use]
    pub fn new(start: Index) -> CursorState {
        CursorState {
            mark_delete: start.0,
            above: RoaringTreemap::new(),
            above_count: 0,
            seek_epoch: SeekEpoch::default(),
            uncompressed: 0,
        }
    }

    /// The same with a seek epoch above any that a consumer may know: moves may be lost with the
    /// rest, and consumers take no deliveries of an epoch older than theirs.
    #[must_use]
    pub fn after_loss(mut self) -> CursorState {
        self.raise_after_loss();
        self
    }

    pub(super) fn raise_after_loss(&mut self) {
        self.seek_epoch = SeekEpoch(self.seek_epoch.0.saturating_add(LOST_MOVES_MAX));
    }

    /// The first index that is not acknowledged.
    #[must_use]
    pub fn mark_delete(&self) -> Index {
        Index(self.mark_delete)
    }

    /// How often the subscription was moved.
    #[must_use]
    pub fn seek_epoch(&self) -> SeekEpoch {
        self.seek_epoch
    }

    /// Whether a message is acknowledged.
    #[must_use]
    pub fn is_acknowledged(&self, index: Index) -> bool {
        index.0 < self.mark_delete || self.above.contains(index.0)
    }

    /// Messages below `end` that are not acknowledged.
    #[must_use]
    pub fn backlog(&self, end: Index) -> u64 {
        end.0
            .saturating_sub(self.mark_delete)
            .saturating_sub(self.above_count)
    }

    /// The first index at or after `from` that is not acknowledged.
    #[must_use]
    pub fn next_unacknowledged(&self, from: Index) -> Index {
        let mut at = from.0.max(self.mark_delete);
        for run in self.runs_from(at) {
            if run.start > at {
                break;
            }
            at = run.end;
        }
        Index(at)
    }

    /// The parts of `window` that are not acknowledged, in order.
    #[must_use]
    pub fn unacknowledged(&self, window: Range<u64>) -> Vec<Range<u64>> {
        let mut at = window.start.max(self.mark_delete);
        let mut parts = Vec::new();
        if at >= window.end {
            return parts;
        }
        for run in self.runs_from(at) {
            if run.start >= window.end {
                break;
            }
            if run.start > at {
                parts.push(at..run.start);
            }
            at = run.end;
        }
        if at < window.end {
            parts.push(at..window.end);
        }
        parts
    }

    /// How many islands of acknowledged messages lie above the mark.
    #[must_use]
    pub fn acknowledged_ranges(&self) -> u64 {
        let (mut count, mut end) = (0, None);
        for run in self.runs_from(0) {
            if end != Some(run.start) {
                count += 1;
            }
            end = Some(run.end);
        }
        count
    }

    /// Acknowledges everything up to and including `last`; returns how many messages are new.
    /// The caller has checked that they were delivered.
    pub fn acknowledge_cumulative(&mut self, last: Index) -> u64 {
        let end = last.0.saturating_add(1).min(INDEX_MAX);
        if end <= self.mark_delete {
            return 0;
        }
        let removed = self.above.remove_range(..end);
        self.above_count -= removed;
        let new = end - self.mark_delete - removed;
        self.mark_delete = end;
        self.absorb();
        new
    }

    /// Acknowledges a range; returns how many messages are new. The caller has checked that they
    /// were delivered.
    pub fn acknowledge_range(&mut self, range: IndexRange) -> u64 {
        if range.first.0 <= self.mark_delete {
            return self.acknowledge_cumulative(range.last);
        }
        let end = range.last.0.saturating_add(1).min(INDEX_MAX);
        let mut new = 0;
        let mut at = range.first.0;
        while at < end {
            // Container by container, compressed on the way: a wide range of which most is
            // acknowledged already must not inflate runs into bitmaps.
            let next = (at / CONTAINER_WIDTH + 1)
                .saturating_mul(CONTAINER_WIDTH)
                .min(end);
            if !self.above.contains_range(at..next) {
                let inserted = self.above.insert_range(at..next);
                self.above_count += inserted;
                self.uncompressed += inserted;
                new += inserted;
                if self.uncompressed >= COMPRESS_AFTER {
                    self.compress();
                }
            }
            at = next;
        }
        new
    }

    /// Moves the cursor; acknowledgements of deliveries before it are void from now on (H12).
    pub fn seek(&mut self, index: Index) -> SeekEpoch {
        let epoch = SeekEpoch(self.seek_epoch.0 + 1);
        self.place(index, epoch);
        epoch
    }

    /// Repeats a logged acknowledgement; one from before a seek changes nothing (H12).
    ///
    /// # Errors
    /// When the record cannot be.
    pub fn apply_acknowledged(&mut self, delta: &v1::AckDelta) -> Result<(), CursorError> {
        for range in &delta.individual {
            let (first, last) = (range.first, range.last);
            if last >= INDEX_MAX {
                return Err(CursorError::Index(last));
            }
            if first > last || (first > self.mark_delete && last - first >= RANGE_WIDTH_MAX) {
                return Err(CursorError::Range { first, last });
            }
        }
        if let Some(last) = delta.cumulative.filter(|last| *last >= INDEX_MAX) {
            return Err(CursorError::Index(last));
        }
        if delta.seek_epoch != self.seek_epoch.0 {
            return Ok(());
        }
        if let Some(last) = delta.cumulative {
            self.acknowledge_cumulative(Index(last));
        }
        for range in &delta.individual {
            self.acknowledge_range(IndexRange {
                first: Index(range.first),
                last: Index(range.last),
            });
        }
        Ok(())
    }

    /// Repeats a logged seek; an older one changes nothing.
    ///
    /// # Errors
    /// When the record cannot be.
    pub fn apply_seek(&mut self, delta: &v1::SeekDelta) -> Result<(), CursorError> {
        if delta.index >= INDEX_MAX {
            return Err(CursorError::Index(delta.index));
        }
        if delta.seek_epoch > self.seek_epoch.0 {
            self.place(Index(delta.index), SeekEpoch(delta.seek_epoch));
        }
        Ok(())
    }

    /// The stored form, without properties and redelivery counts.
    #[must_use]
    pub fn encode(
        &self,
        name: &str,
        kind: SubscriptionType,
        created_ms: u64,
    ) -> v1::SubscriptionState {
        let mut acknowledged = Vec::new();
        if self.above_count > 0 {
            let mut compressed = self.above.clone();
            compressed.optimize();
            acknowledged = encode_bitmap(&compressed);
        }
        v1::SubscriptionState {
            name: name.to_owned(),
            r#type: v1::SubscriptionType::from(kind).into(),
            mark_delete: self.mark_delete,
            acknowledged: acknowledged.into(),
            seek_epoch: self.seek_epoch.0,
            created_ms,
            properties: Vec::new(),
            redelivered: Vec::new(),
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is damaged. Nothing is allocated beyond a small multiple of its size.
    pub fn decode(state: &v1::SubscriptionState) -> Result<CursorState, CursorError> {
        if state.mark_delete >= INDEX_MAX {
            return Err(CursorError::Index(state.mark_delete));
        }
        let mut cursor = CursorState::new(Index(state.mark_delete));
        cursor.seek_epoch = SeekEpoch(state.seek_epoch);
        cursor.merge(decode_bitmap(&state.acknowledged)?);
        Ok(cursor)
    }

    /// Adds what another part of the same stored state has acknowledged.
    pub(crate) fn merge(&mut self, above: RoaringTreemap) {
        self.above |= above;
        self.above.remove_range(..self.mark_delete);
        self.above_count = self.above.len();
        self.absorb();
        self.compress();
    }

    fn place(&mut self, index: Index, epoch: SeekEpoch) {
        self.mark_delete = index.0;
        self.above.clear();
        self.above_count = 0;
        self.uncompressed = 0;
        self.seek_epoch = epoch;
    }

    /// Moves the mark over what is acknowledged right above it.
    fn absorb(&mut self) {
        let end = self.next_unacknowledged(Index(self.mark_delete)).0;
        if end > self.mark_delete {
            self.above_count -= self.above.remove_range(..end);
            self.mark_delete = end;
        }
    }

    fn compress(&mut self) {
        self.above.optimize();
        self.uncompressed = 0;
    }

    /// Acknowledged runs from `from` on, in order; neighbours may touch where a run crosses a
    /// multiple of 2^32.
    fn runs_from(&self, from: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let (high_from, low_from) = (from >> 32, low_half(from));
        self.above
            .bitmaps()
            .skip_while(move |(high, _)| u64::from(*high) < high_from)
            .flat_map(move |(high, bitmap)| {
                let base = u64::from(high) << 32;
                let mut runs = bitmap.iter();
                if u64::from(high) == high_from {
                    runs.advance_to(low_from);
                }
                std::iter::from_fn(move || {
                    let run = runs.next_range()?;
                    Some(base + u64::from(*run.start())..base + u64::from(*run.end()) + 1)
                })
            })
    }
}

fn low_half(index: u64) -> u32 {
    u32::try_from(index & u64::from(u32::MAX)).expect("masked to 32 bits")
}

/// The bitmap in the portable format.
pub(crate) fn encode_bitmap(bitmap: &RoaringTreemap) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(bitmap.serialized_size());
    bitmap
        .serialize_into(&mut bytes)
        .expect("writing to a vector does not fail");
    bytes
}

/// Reads a bitmap in the portable format; no bytes at all are an empty one.
pub(crate) fn decode_bitmap(bytes: &[u8]) -> Result<RoaringTreemap, CursorError> {
    let mut rest = bytes;
    if rest.is_empty() {
        return Ok(RoaringTreemap::new());
    }
    let bitmap = RoaringTreemap::deserialize_from(&mut rest)
        .map_err(|error| CursorError::Bitmap(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CursorError::Bitmap("bytes behind its end".to_owned()));
    }
    if bitmap.bitmaps().any(|(_, part)| part.is_empty()) {
        return Err(CursorError::Bitmap("an empty part".to_owned()));
    }
    match bitmap.max() {
        Some(max) if max >= INDEX_MAX => Err(CursorError::Index(max)),
        _ => Ok(bitmap),
    }
}

/// The type of a stored number.
///
/// # Errors
/// When this version knows no such type.
pub fn decode_kind(kind: i32) -> Result<SubscriptionType, CursorError> {
    let known = v1::SubscriptionType::try_from(kind).ok();
    let known = known.and_then(|known| SubscriptionType::try_from(known).ok());
    known.ok_or(CursorError::Kind(kind))
}

#[cfg(test)]
mod tests;
