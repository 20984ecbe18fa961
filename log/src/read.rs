//! Reads: the tail from memory, the rest in large ranges fetched ahead of the readers.
//!
//! A [`ReadPoint`] holds the ranges around its place, shared with the readers near it. While one is
//! delivered the next ones are on their way, as long as the read-ahead budget of the process has
//! room; without room a read fetches only what was asked for.
//!
//! A fetch is a task of its own: the reader that began it may go away, those that joined it are
//! answered. An error reaches every reader that waits; a fetch ahead that failed is tried again by
//! the reader that needs it.

use std::collections::VecDeque;
use std::sync::Arc;

use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::reader::Wanted;
use aquifer_model::entry::{EntryData, EntryError, EntryHead, HEAD_BYTES_MAX};
use aquifer_model::id::{EntryId, Index};
use aquifer_model::storage::StoredEntry;
use bytes::Bytes;

use crate::context::LogContext;
use crate::error::LogError;
use crate::ranges::{Begin, Fetching, Plan, Range, RangeIndex, ReaderSeat};
use crate::source::read_stored;
use crate::state::{LogInner, Segment};
use crate::types::{LogEntry, Place, ReadLimits};
use crate::window::{FETCH_ENTRIES_MAX, Window};

/// Where a reader is. It remembers the entry, so that reading on needs no search, and holds what
/// was read ahead: keep one per reader and hand it to every read.
#[derive(Debug)]
pub struct ReadPoint {
    /// The next index that is wanted. Setting it is a seek.
    pub index: Index,
    /// The entry that begins at `index`, if the reader came there by reading.
    pub(super) next: Option<Place>,
    /// In the order of the log, from the one that the last read took from on.
    ranges: VecDeque<Arc<Range>>,
    /// Set while the reader uses ranges.
    seat: Option<ReaderSeat>,
    /// A head was longer than what is usually read of an entry for it: longer ones may follow.
    pub(super) has_long_heads: bool,
    /// How often it has waited for a range of an object since it last paused.
    waits: u8,
}

impl From<Index> for ReadPoint {
    fn from(index: Index) -> ReadPoint {
        ReadPoint {
            index,
            next: None,
            ranges: VecDeque::new(),
            seat: None,
            has_long_heads: false,
            waits: 0,
        }
    }
}

impl ReadPoint {
    /// Forgets what was read ahead, and with it the memory: for a reader that pauses.
    pub fn release(&mut self) {
        let held = std::mem::take(&mut self.ranges);
        self.waits = 0;
        if let Some(seat) = self.seat.take() {
            seat.leave(held);
        }
    }

    /// Gives back the last entries of a read that were of no use yet; `index` is what is wanted
    /// of the first. The next read answers them again, without a search and without fetching.
    pub fn unread(&mut self, index: Index, entries: &[LogEntry]) {
        let Some(first) = entries.first().filter(|f| f.head.base_index <= index) else {
            return;
        };
        // The ranges that they came from stay until the next read. What the tail has is found
        // there, or by its place.
        self.index = index;
        if index == first.head.base_index {
            self.next = Some(Place {
                index,
                ledger: first.ledger,
                entry: first.entry,
            });
        }
    }

    fn advance(&mut self, entries: &[LogEntry]) {
        if let Some(last) = entries.last() {
            self.index = last.head.end_index();
            self.next = Some(Place {
                index: self.index,
                ledger: last.ledger,
                entry: last.entry.next(),
            });
        }
    }

    /// Lets the other readers of the log see where this one is.
    fn take_seat(&mut self, ranges: &Arc<RangeIndex>) {
        let at = self.index;
        self.seat.get_or_insert_with(|| ReaderSeat::new(ranges, at));
    }

    /// Delivers from the ranges that are there; drops them if the reader has moved elsewhere.
    fn take_ahead(&mut self, limits: ReadLimits) -> Vec<LogEntry> {
        self.drop_passed();
        let mut taken: Vec<LogEntry> = Vec::new();
        let (mut wanted, mut bytes) = (self.index, 0);
        for loaded in self.ranges.iter().map_while(|range| range.loaded()) {
            for entry in &loaded.entries[loaded.position(wanted)..] {
                let is_full =
                    taken.len() >= limits.entries_max || bytes + entry.bytes() > limits.bytes_max;
                if entry.head.base_index > wanted || is_full && !taken.is_empty() {
                    return taken;
                }
                bytes += entry.bytes();
                wanted = entry.head.end_index();
                taken.push(entry.clone());
            }
        }
        taken
    }

    fn drop_passed(&mut self) {
        let mut passed = Vec::new();
        while let Some(loaded) = self.ranges.front().and_then(|range| range.loaded()) {
            if loaded.first_index > self.index {
                passed.extend(self.ranges.drain(..));
            } else if loaded.end_index <= self.index {
                passed.extend(self.ranges.pop_front());
            } else {
                break;
            }
        }
        if let Some(seat) = &self.seat {
            seat.advance(self.index, passed);
        }
    }

    /// The fetch that brings what is wanted, if the reader has joined it.
    fn on_its_way(&self, known: Option<Place>) -> Option<Arc<Range>> {
        let front = self.ranges.front().filter(|range| range.is_on_its_way())?;
        let is_wanted = match front.begin() {
            Begin::Index(index) => index == self.index,
            Begin::Place(..) => known.is_some_and(|place| front.covers(place)),
        };
        is_wanted.then(|| Arc::clone(front))
    }
}

/// Parses a stored entry.
pub(crate) fn split(
    info: &LedgerInfo,
    stored: &StoredEntry,
) -> Result<(EntryHead, Bytes), LogError> {
    let data = EntryData {
        head: Bytes::new(),
        body: stored.data.clone(),
    };
    let damaged = |error: EntryError| damaged(info, stored.entry, &error.to_string());
    data.split().map_err(damaged)
}

pub(super) fn damaged(info: &LedgerInfo, entry: EntryId, what: &str) -> LogError {
    LogError::Damaged(format!("entry {entry} of ledger {}: {what}", info.id))
}

/// Bytes that are read of an entry for its head at first: few heads are longer.
pub(super) const HEAD_BYTES_USUAL: usize = 256;

/// Reads only the head of an entry.
pub(crate) async fn head_at(
    ctx: &LogContext,
    info: &LedgerInfo,
    entry: EntryId,
) -> Result<EntryHead, LogError> {
    let mut wanted = Wanted {
        prefix_bytes: Some(HEAD_BYTES_USUAL),
        ..Wanted::one(entry)
    };
    loop {
        let stored = read_stored(ctx, info, wanted).await?;
        match EntryHead::decode(&stored[0].data) {
            Ok((head, _)) => return Ok(head),
            Err(EntryError::Length { .. }) if wanted.prefix_bytes == Some(HEAD_BYTES_USUAL) => {
                wanted.prefix_bytes = Some(HEAD_BYTES_MAX);
            }
            Err(error) => return Err(damaged(info, entry, &error.to_string())),
        }
    }
}

impl LogInner {
    pub(crate) fn first(&self) -> Index {
        self.state.lock().first
    }

    pub(crate) fn end(&self) -> Index {
        *self.end.borrow()
    }

    pub(crate) fn read_cached(
        &self,
        at: &mut ReadPoint,
        limits: ReadLimits,
    ) -> Option<Vec<LogEntry>> {
        if at.index >= self.end() {
            at.release();
            return Some(Vec::new());
        }
        let ahead = at.take_ahead(limits);
        if !ahead.is_empty() {
            at.advance(&ahead);
            self.fetch_ahead(at);
            return Some(ahead);
        }
        let tail = self.tail.read(at.index, limits)?;
        self.ctx.metrics.tail_hits.add(1, &[]);
        at.release();
        at.advance(&tail);
        Some(tail)
    }

    pub(crate) async fn read(
        self: &Arc<Self>,
        at: &mut ReadPoint,
        limits: ReadLimits,
    ) -> Result<Vec<LogEntry>, LogError> {
        loop {
            at.index = at.index.max(self.first());
            if let Some(found) = self.read_cached(at, limits) {
                return Ok(found);
            }
            self.ctx.metrics.tail_misses.add(1, &[]);
            if let Some(found) = self.await_fetch(at, limits).await {
                return Ok(found);
            }
            let read = self.read_behind_tail(at, limits).await;
            // What a trim took away under the read is no damage: the log begins behind it now.
            if read.is_err() && at.index < self.first() {
                continue;
            }
            return read;
        }
    }

    /// Waits for the fetch ahead that has what is wanted, if there is one.
    async fn await_fetch(&self, at: &mut ReadPoint, limits: ReadLimits) -> Option<Vec<LogEntry>> {
        let known = self.known_place(at);
        let range = at.on_its_way(known)?;
        if let Some(place) = known {
            at.waits = self.waited_for(place.ledger, at.waits);
        }
        // It stays with the reader: a caller that gives up here finds it again. A failed fetch
        // ahead is tried again, where its error is the reader's.
        range.wait().await.ok()?;
        self.read_cached(at, limits)
    }

    async fn read_behind_tail(
        &self,
        at: &mut ReadPoint,
        limits: ReadLimits,
    ) -> Result<Vec<LogEntry>, LogError> {
        // What is held behind a gap is joined again once the gap is filled.
        let _held = at.ranges.clone();
        loop {
            at.take_seat(&self.ranges);
            let (range, known, is_own) = self.join_or_fetch(at, limits);
            at.ranges = VecDeque::from([Arc::clone(&range)]);
            match range.wait().await {
                Ok(_) => {}
                // What is damaged may be what another reader began with; no reader joins it any
                // more.
                Err(LogError::Damaged(_)) if !is_own => continue,
                Err(error) => return Err(error),
            }
            let found = at.take_ahead(limits);
            if let Some(first) = found.first() {
                at.advance(&found);
                // A jump into an object may be for this one place only: requests cost money.
                if known.is_some() || !self.is_in_object(first.ledger) {
                    self.fetch_ahead(at);
                }
                return Ok(found);
            }
            // A range that was joined may end earlier than it was planned; then this reader goes on
            // from where it is. One that has the entry and not the index cannot help any more.
            if known.is_none_or(|place| range.covers(place)) {
                return Err(LogError::Damaged(format!(
                    "no entry holds index {}",
                    at.index
                )));
            }
        }
    }

    /// The range that has or brings what is wanted, where that is, if it is known, and whether the
    /// fetch was begun for this reader.
    fn join_or_fetch(
        &self,
        at: &ReadPoint,
        limits: ReadLimits,
    ) -> (Arc<Range>, Option<Place>, bool) {
        let next = at.next.filter(|next| next.index == at.index);
        let known = next.and_then(|next| self.resolve_place(next));
        let place = known.as_ref().map(|(place, _)| *place);
        if let Some(range) = place.and_then(|place| self.ranges.join(place)) {
            return (range, place, false);
        }
        let (range, plan) = match known {
            Some((first, segment)) => {
                let usual = self.usual_window();
                let permit = self.ctx.cache.take_read_ahead(usual.bytes_max());
                let plan = match permit {
                    Some(permit) => {
                        self.plan_ahead(first.entry, &segment, (permit, usual.range_bytes))
                    }
                    None => self.plan(first.entry, &segment, limits.bytes_max),
                };
                self.ranges.join_or_begin(first, plan)
            }
            // A jump may be for this one place only; a reader that reads on gets large ranges.
            None => {
                let plan = Plan {
                    entries: FETCH_ENTRIES_MAX,
                    bytes_max: limits.bytes_max,
                    permit: None,
                };
                self.ranges.join_or_search(at.index, plan)
            }
        };
        let is_own = plan.is_some();
        if let Some(plan) = plan {
            self.start_fetch(Arc::clone(&range), plan);
        }
        (range, place, is_own)
    }

    /// Joins or starts the fetches of the next ranges, if the reader has come to less than it may
    /// have ahead, the tail does not have them, and there is room.
    fn fetch_ahead(&self, at: &mut ReadPoint) {
        at.take_seat(&self.ranges);
        let held = std::mem::take(&mut at.ranges);
        let (mut bytes, mut fetches, mut after) = (0, 0, at.next);
        let mut held_ahead = held.iter().peekable();
        // What this read took may come back.
        while let Some(range) = held_ahead.next_if(|range| {
            let loaded = range.loaded();
            loaded.is_some_and(|loaded| loaded.end_index <= at.index)
        }) {
            at.ranges.push_back(Arc::clone(range));
        }
        while let Some(place) = after {
            let next = match held_ahead.next() {
                // It is tried again when it is needed.
                Some(failed) if failed.has_failed() => {
                    at.ranges.push_back(Arc::clone(failed));
                    return;
                }
                Some(range) if self.continues(range, place) => Some(Arc::clone(range)),
                _ => {
                    let window = self.window(place.ledger, at.waits);
                    let is_full = window.is_full(bytes, fetches);
                    match is_full {
                        true => None,
                        false => self.join_or_fetch_ahead(place, window),
                    }
                }
            };
            let Some(range) = next else { return };
            match range.loaded() {
                Some(loaded) => bytes += loaded.bytes_behind(at.index),
                None => fetches += 1,
            }
            after = range.after();
            at.ranges.push_back(range);
        }
    }

    /// Whether a range has what is at a place, or at the beginning of the next ledger if the place
    /// is the end of one.
    fn continues(&self, range: &Range, place: Place) -> bool {
        let resolved = || self.resolve_place(place);
        range.covers(place) || resolved().is_some_and(|(place, _)| range.covers(place))
    }

    /// The next range; none if the tail has it, or it does not exist, or there is no room.
    fn join_or_fetch_ahead(&self, place: Place, window: Window) -> Option<Arc<Range>> {
        let (first, segment) = self.resolve_place(place)?;
        let in_tail = |tail| (first.ledger, first.entry) >= tail;
        if self.tail.first_entry().is_some_and(in_tail) {
            return None;
        }
        if let Some(range) = self.ranges.join(first) {
            // Readers wait for the others, and hold no more than one each.
            return range.is_counted().then_some(range);
        }
        let room = self.take_ahead(window)?;
        let plan = self.plan_ahead(first.entry, &segment, room);
        let (range, plan) = self.ranges.join_or_begin(first, plan);
        if let Some(plan) = plan {
            self.start_fetch(Arc::clone(&range), plan);
        }
        Some(range)
    }

    /// A fetch of as many entries as `bytes_max` most likely holds.
    pub(crate) fn plan(&self, first: EntryId, segment: &Segment, bytes_max: usize) -> Plan {
        let usual = (segment.bytes / segment.entries.max(1)).max(1);
        let left = segment.entries.saturating_sub(first.0);
        let entries = (bytes_max as u64 / usual).clamp(1, left.max(1));
        Plan {
            entries: usize::try_from(entries)
                .unwrap_or(FETCH_ENTRIES_MAX)
                .min(FETCH_ENTRIES_MAX),
            bytes_max,
            permit: None,
        }
    }

    /// Fetches a range in a task of its own.
    fn start_fetch(&self, range: Arc<Range>, plan: Plan) {
        let begin = range.begin();
        let fetching = Fetching::new(range);
        let Some(me) = self.me.upgrade() else { return };
        self.spawn("read-range", async move {
            let read = me.fetch(begin, plan.entries, plan.bytes_max).await;
            fetching.end(read, plan.permit);
        });
    }

    /// Reads entries of one ledger.
    async fn fetch(
        &self,
        begin: Begin,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, LogError> {
        let first = match begin {
            Begin::Index(index) => self.search(index).await?,
            Begin::Place(first, _) => first,
        };
        let (first, segment) = self.resolved(first)?;
        let last = segment.last_entry().unwrap_or(first.entry);
        // No more than was planned: what is behind is another fetch's.
        let planned = EntryId(
            first
                .entry
                .0
                .saturating_add((entries_max as u64).saturating_sub(1)),
        );
        let wanted = Wanted {
            first: first.entry,
            last: last.min(planned),
            bytes_max,
            entries_max,
            prefix_bytes: None,
        };
        let (info, stored) = self.read_entries(segment.ledger, wanted).await?;
        let mut entries = Vec::with_capacity(stored.len());
        let mut expected = None;
        for stored in &stored {
            // What is wrong with a later entry is told to the reader that wants that one.
            let (head, body) = match split(&info, stored) {
                Ok(entry) => entry,
                Err(error) if entries.is_empty() => return Err(error),
                Err(_) => break,
            };
            if expected.is_some_and(|index| index != head.base_index) {
                break;
            }
            expected = Some(head.end_index());
            entries.push(LogEntry {
                ledger: info.id,
                entry: stored.entry,
                head,
                body,
            });
        }
        Ok(entries)
    }
}
