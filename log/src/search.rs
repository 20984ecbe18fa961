//! From an index to the entry that holds it.
//!
//! Invariant (H19): a place that names a ledger which is not part of the log any more is no place.
//! A reader that holds one searches by index again; a trim is never told as damage or as something
//! to wait for.

use std::ops::Range;
use std::sync::Arc;

use aquifer_ledger::reader::Wanted;
use aquifer_model::entry::EntryHead;
use aquifer_model::id::{EntryId, Index, LedgerId};

use crate::error::LogError;
use crate::open::behind_damaged;
use crate::read::{ReadPoint, split};
use crate::source::{Before, narrowed, read_stored};
use crate::state::{LogInner, Segment};
use crate::types::{Damage, Found, Place, ReadLimits};

/// Reads of what is called damaged and can be read after all: another reader's fetch may have
/// failed.
const READS_MAX: usize = 3;

impl LogInner {
    /// Where a reader came to by reading, if that is still part of the log.
    pub(super) fn known_place(&self, at: &ReadPoint) -> Option<Place> {
        let next = at.next.filter(|next| next.index == at.index)?;
        self.resolve_place(next).map(|(place, _)| place)
    }

    /// The place and its segment; a place behind the last entry of a ledger is the beginning of
    /// the next. Nothing when its ledger was trimmed, or nothing follows.
    pub(super) fn resolve_place(&self, place: Place) -> Option<(Place, Segment)> {
        let state = self.state.lock();
        let at = state
            .segments
            .iter()
            .position(|segment| segment.ledger == place.ledger)?;
        let segment = &state.segments[at];
        if place.entry.0 < segment.entries {
            return Some((place, segment.clone()));
        }
        let next = state
            .segments
            .range(at + 1..)
            .find(|segment| segment.entries > 0)?;
        let place = Place {
            ledger: next.ledger,
            entry: EntryId::FIRST,
            ..place
        };
        Some((place, next.clone()))
    }

    /// The same where there must be something: else it was trimmed a moment ago.
    pub(super) fn resolved(&self, place: Place) -> Result<(Place, Segment), LogError> {
        let trimmed = || LogError::Unavailable(format!("index {} was trimmed", place.index));
        self.resolve_place(place).ok_or_else(trimmed)
    }

    /// Whether a ledger is part of the log.
    fn holds(&self, ledger: LedgerId) -> bool {
        let state = self.state.lock();
        state.segments.iter().any(|s| s.ledger == ledger)
    }

    /// Reads, and where that finds damage moves the point behind it and tells how far it goes.
    pub(crate) async fn read_or_skip(
        self: &Arc<Self>,
        at: &mut ReadPoint,
        limits: ReadLimits,
    ) -> Result<Found, LogError> {
        let mut reads = 0;
        loop {
            let error = match self.read(at, limits).await {
                Ok(entries) => return Ok(Found::Entries(entries)),
                Err(error) => error,
            };
            if let Some((damage, reason)) = self.pass_damage(at, error, &mut reads).await? {
                return Ok(Found::Damaged(damage, reason));
            }
        }
    }

    /// Moves the point behind what a read found damaged. Nothing if reading again may succeed,
    /// which is said a few times at most.
    pub(super) async fn pass_damage(
        &self,
        at: &mut ReadPoint,
        error: LogError,
        reads: &mut usize,
    ) -> Result<Option<(Damage, String)>, LogError> {
        let LogError::Damaged(reason) = error else {
            return Err(error);
        };
        let damage = self.skip_damaged(at).await?;
        if damage.end > damage.from {
            return Ok(Some((damage, reason)));
        }
        *reads += 1;
        if *reads < READS_MAX {
            return Ok(None);
        }
        Err(LogError::Unavailable(reason))
    }

    /// Moves behind what is damaged, to the next entry that can be read; nowhere if the one that is
    /// wanted can be read after all.
    async fn skip_damaged(&self, at: &mut ReadPoint) -> Result<Damage, LogError> {
        at.release();
        at.index = at.index.max(self.first());
        let place = match self.known_place(at) {
            Some(place) => place,
            None => self.search(at.index).await?,
        };
        let (place, segment) = self.resolved(place)?;
        let mut from = place.entry.0;
        let damage = |end| Damage {
            from: place.index,
            end,
            ledger: place.ledger,
            entry: place.entry,
            at_most: false,
        };
        at.next = None;
        if self.is_whole(place, at.index).await? {
            at.next = Some(Place {
                index: at.index,
                ..place
            });
            return Ok(damage(place.index));
        }
        while let Some((entry, head)) = self
            .readable_head(segment.ledger, from..segment.entries)
            .await?
        {
            if head.base_index > at.index {
                at.index = head.base_index;
                let entry = EntryId(entry);
                at.next = Some(Place {
                    index: at.index,
                    ledger: segment.ledger,
                    entry,
                });
                return Ok(damage(at.index));
            }
            from = entry + 1;
        }
        at.index = segment.end_index.min(self.end()).max(at.index);
        Ok(Damage {
            at_most: self.is_bound(&segment, place.index).await?,
            ..damage(at.index)
        })
    }

    /// Whether the end of a ledger, of which nothing can be read from an index on, is no more than
    /// a bound: the owner that found it damaged has left as many indexes as its entries can have
    /// (`open.rs`).
    async fn is_bound(&self, segment: &Segment, index: Index) -> Result<bool, LogError> {
        let before = Before::Index(index);
        let last = self.search_segment(segment, before).await?;
        let (end, entries) = match self.head_at(segment.ledger, last).await {
            Ok(head) => (head.end_index(), segment.entries.saturating_sub(last.0 + 1)),
            Err(LogError::Damaged(_)) => (segment.first_index, segment.entries),
            Err(error) => return Err(error),
        };
        // That owner may have seen fewer of the entries that are whole.
        Ok(entries > 0 && behind_damaged(end, entries) <= segment.end_index)
    }

    /// Whether the entry at a place holds an index and can be read, all of it.
    async fn is_whole(&self, place: Place, index: Index) -> Result<bool, LogError> {
        let mut info = match self.info(place.ledger).await {
            Ok(info) => info,
            Err(LogError::Damaged(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        loop {
            let read = read_stored(&self.ctx, &info, Wanted::one(place.entry)).await;
            match read.and_then(|stored| split(&info, &stored[0])) {
                Ok((head, _)) => return Ok(head.base_index <= index && index < head.end_index()),
                Err(error) => match self.newer(&info, error).await {
                    Ok(newer) => info = newer,
                    Err(LogError::Damaged(_)) => return Ok(false),
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Finds the entry that holds an index, reading heads only.
    pub(super) async fn search(&self, index: Index) -> Result<Place, LogError> {
        let segment = {
            let state = self.state.lock();
            let at = state.segments.partition_point(|s| s.end_index <= index);
            state.segments.get(at).cloned()
        };
        let segment =
            segment.ok_or_else(|| LogError::Damaged(format!("no ledger holds index {index}")))?;
        let entry = self.search_segment(&segment, Before::Index(index)).await?;
        Ok(Place {
            index,
            ledger: segment.ledger,
            entry,
        })
    }

    /// The last entry of a segment for whose head `before` holds, which it does for a beginning
    /// of the segment; the first if for none. The index of an object leaves one block to look into.
    pub(crate) async fn search_segment(
        &self,
        segment: &Segment,
        before: Before,
    ) -> Result<EntryId, LogError> {
        let info = self.info(segment.ledger).await;
        let among = match &info {
            Ok(info) => narrowed(&self.ctx, info, segment.entries, before).await,
            Err(_) => 0..segment.entries,
        };
        let (mut low, mut high) = (among.start, among.end.min(segment.entries));
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.readable_head(segment.ledger, middle..high).await? {
                Some((entry, head)) if before.holds(&head) => low = entry,
                _ => high = middle,
            }
        }
        Ok(EntryId(low))
    }

    /// The first head that can be read of some entries: damage hides only what it hit.
    async fn readable_head(
        &self,
        ledger: LedgerId,
        entries: Range<u64>,
    ) -> Result<Option<(u64, EntryHead)>, LogError> {
        for entry in entries {
            match self.head_at(ledger, EntryId(entry)).await {
                Ok(head) => return Ok(Some((entry, head))),
                // No entry of a ledger that was trimmed can be read, and none is damaged.
                Err(LogError::Damaged(_)) if self.holds(ledger) => {}
                Err(LogError::Damaged(reason)) => return Err(LogError::Unavailable(reason)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
