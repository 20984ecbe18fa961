//! Reads: the tail from memory, the rest in large ranges fetched ahead of the reader.
//!
//! A [`ReadPoint`] holds what was fetched for it. While one range is delivered the next ones are
//! on their way, as long as the read-ahead budget of the process has room; without room a read
//! fetches only what was asked for.

use std::collections::VecDeque;
use std::sync::Arc;

use aquifer_model::entry::{EntryData, EntryError, EntryHead, HEAD_BYTES, HEAD_BYTES_MAX};
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::storage::StoredEntry;
use aquifer_runtime::budget::BytePermit;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::context::LogContext;
use crate::error::LogError;
use crate::ledger_metadata::LedgerInfo;
use crate::managed::state::{LogInner, Segment};
use crate::managed::types::{LogEntry, ReadLimits};
use crate::reader::{Wanted, read_range};

/// Most entries of one fetch: small ones cost more than their bytes.
const FETCH_ENTRIES_MAX: usize = 16 * 1024;
/// Fetches of one reader on their way at once: while one waits for the disk, another computes.
const FETCHES_MAX: usize = 2;

/// Where a reader is. It remembers the entry, so that reading on needs no search, and holds what
/// was read ahead: keep one per reader and hand it to every read.
#[derive(Debug)]
pub struct ReadPoint {
    /// The next index that is wanted. Setting it is a seek.
    pub index: Index,
    /// The entry that begins at `index`, if the reader came there by reading.
    pub(super) next: Option<Place>,
    ahead: VecDeque<Chunk>,
    /// On their way, in the order of the log.
    fetches: VecDeque<Fetch>,
    /// The last read was answered from `ahead`.
    is_ahead: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: Index,
    pub(super) ledger: LedgerId,
    pub(super) entry: EntryId,
}

/// Entries of one fetch, and the share of the budget that they hold.
#[derive(Debug)]
struct Chunk {
    entries: VecDeque<LogEntry>,
    _permit: Option<BytePermit>,
}

#[derive(Debug)]
struct Fetch {
    /// Where it begins. The index is exact for the first of several; behind others it becomes so
    /// when they are there.
    first: Place,
    /// It ends before this entry, or earlier where entries are larger than expected.
    end: EntryId,
    result: oneshot::Receiver<Result<Chunk, LogError>>,
}

impl From<Index> for ReadPoint {
    fn from(index: Index) -> ReadPoint {
        ReadPoint {
            index,
            next: None,
            ahead: VecDeque::new(),
            fetches: VecDeque::new(),
            is_ahead: false,
        }
    }
}

impl ReadPoint {
    /// Forgets what was read ahead, and with it the memory: for a reader that pauses.
    pub fn release(&mut self) {
        self.ahead.clear();
        self.fetches.clear();
    }

    /// Takes over what a fetch brought. Fetches behind it go on only where they follow.
    fn accept(&mut self, chunk: Chunk) {
        let after = chunk.entries.back().map(|last| Place {
            index: last.head.end_index(),
            ledger: last.ledger,
            entry: last.entry.next(),
        });
        self.ahead.push_back(chunk);
        match (self.fetches.front_mut(), after) {
            (Some(next), Some(after))
                if (next.first.ledger, next.first.entry) == (after.ledger, after.entry) =>
            {
                next.first.index = after.index;
            }
            _ => self.fetches.clear(),
        }
    }

    /// Takes over the fetches that are done.
    fn accept_ready(&mut self) {
        while let Some(fetch) = self.fetches.front_mut() {
            match fetch.result.try_recv() {
                Ok(Ok(chunk)) => {
                    self.fetches.pop_front();
                    self.accept(chunk);
                }
                Err(oneshot::error::TryRecvError::Empty) => return,
                // Tried again when it is needed, where its error is the reader's.
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => self.fetches.clear(),
            }
        }
    }

    /// Gives back the last entries of a read that were of no use yet; `index` is what is wanted
    /// of the first. The next read answers them again, without a search and without fetching.
    pub fn unread(&mut self, index: Index, entries: &[LogEntry]) {
        let Some(first) = entries.first().filter(|f| f.head.base_index <= index) else {
            return;
        };
        self.index = index;
        if index == first.head.base_index {
            self.next = Some(Place {
                index,
                ledger: first.ledger,
                entry: first.entry,
            });
        }
        // What the tail has needs no keeping: it is found there, or by its place.
        if self.is_ahead {
            match self.ahead.front_mut() {
                Some(chunk) => {
                    for entry in entries.iter().rev() {
                        chunk.entries.push_front(entry.clone());
                    }
                }
                None => self.ahead.push_back(Chunk {
                    entries: entries.iter().cloned().collect(),
                    _permit: None,
                }),
            }
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

    /// Delivers from what was read ahead; drops it if the reader has moved elsewhere.
    fn take_ahead(&mut self, limits: ReadLimits) -> Vec<LogEntry> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(chunk) = self.ahead.front_mut() {
            let Some(entry) = chunk.entries.front() else {
                self.ahead.pop_front();
                continue;
            };
            if taken.is_empty() {
                if entry.head.end_index() <= self.index {
                    chunk.entries.pop_front();
                    continue;
                }
                if entry.head.base_index > self.index {
                    self.release();
                    break;
                }
            } else if taken.len() >= limits.entries_max || bytes + entry.bytes() > limits.bytes_max
            {
                break;
            }
            bytes += entry.bytes();
            taken.extend(chunk.entries.pop_front());
        }
        // A chunk that is empty now goes with the next read: what was taken may come back.
        self.is_ahead = !taken.is_empty();
        taken
    }

    /// Bytes read ahead, and the entry after them.
    fn ahead_end(&self) -> (usize, Option<Place>) {
        let entries = || self.ahead.iter().flat_map(|chunk| &chunk.entries);
        let last = self.ahead.iter().rev().find_map(|c| c.entries.back());
        let after = last.map(|last| Place {
            index: last.head.end_index(),
            ledger: last.ledger,
            entry: last.entry.next(),
        });
        (entries().map(LogEntry::bytes).sum(), after.or(self.next))
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

fn damaged(info: &LedgerInfo, entry: EntryId, what: &str) -> LogError {
    LogError::Damaged(format!("entry {entry} of ledger {}: {what}", info.id))
}

/// Reads only the head of an entry.
pub(crate) async fn head_at(
    ctx: &LogContext,
    info: &LedgerInfo,
    entry: EntryId,
) -> Result<EntryHead, LogError> {
    let mut wanted = Wanted {
        prefix_bytes: Some(HEAD_BYTES),
        ..Wanted::one(entry)
    };
    loop {
        let stored = read_range(ctx, info, wanted).await?;
        match EntryHead::decode(&stored[0].data) {
            Ok((head, _)) => return Ok(head),
            // A later version's head is longer.
            Err(EntryError::Length { .. }) if wanted.prefix_bytes == Some(HEAD_BYTES) => {
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
            at.release();
            let read = self.read_at(at, limits).await;
            // What a trim took away under the read is no damage: the log begins behind it now.
            if read.is_err() && at.index < self.first() {
                continue;
            }
            return read;
        }
    }

    /// Waits for the fetch that has what is wanted, if one is on its way.
    async fn await_fetch(&self, at: &mut ReadPoint, limits: ReadLimits) -> Option<Vec<LogEntry>> {
        let fetch = at.fetches.front_mut()?;
        if fetch.first.index != at.index {
            return None;
        }
        // Awaited in place: a caller that gives up here finds it again.
        let result = (&mut fetch.result).await;
        at.fetches.pop_front();
        // A failed fetch ahead is tried again, where its error is the reader's.
        match result {
            Ok(Ok(chunk)) => at.accept(chunk),
            Ok(Err(_)) | Err(_) => return None,
        }
        self.read_cached(at, limits)
    }

    async fn read_at(
        &self,
        at: &mut ReadPoint,
        limits: ReadLimits,
    ) -> Result<Vec<LogEntry>, LogError> {
        let known = self.known_place(at);
        let first = match known {
            Some(place) => place,
            None => self.search(at.index).await?,
        };
        let range = self.ctx.settings.read_ahead_range_bytes;
        // A jump may be for this one place only; who reads on gets large ranges.
        let permit = known.and_then(|_| self.ctx.cache.read_ahead().try_acquire(range));
        let bytes = if permit.is_some() {
            range.max(limits.bytes_max)
        } else {
            limits.bytes_max
        };
        let chunk = self.fetch(first, bytes, FETCH_ENTRIES_MAX, permit).await?;
        at.ahead.push_back(chunk);
        let found = at.take_ahead(limits);
        if found.is_empty() {
            return Err(LogError::Damaged(format!(
                "no entry holds index {}",
                at.index
            )));
        }
        at.advance(&found);
        self.fetch_ahead(at);
        Ok(found)
    }

    /// Starts to fetch the next ranges, if the reader has come to less than it may have ahead, the
    /// tail does not have them, and there is room.
    fn fetch_ahead(&self, at: &mut ReadPoint) {
        let range = self.ctx.settings.read_ahead_range_bytes;
        at.accept_ready();
        let (bytes, after) = at.ahead_end();
        while at.fetches.len() < FETCHES_MAX
            && bytes + at.fetches.len() * range < FETCHES_MAX * range
        {
            let next = match at.fetches.back() {
                None => after.and_then(|first| self.plan_fetch(first)),
                Some(last) => self.plan_fetch_behind(last),
            };
            let Some((first, entries)) = next else { return };
            // Some room for entries that are larger than usual: a fetch that ends early voids the
            // one behind it.
            let bytes_max = range + range / 8;
            let Some(permit) = self.ctx.cache.read_ahead().try_acquire(bytes_max) else {
                return;
            };
            let Some(me) = self.me.upgrade() else { return };
            let (tell, result) = oneshot::channel();
            self.spawn("read-ahead", async move {
                // Whoever has dropped the reader needs no answer.
                let _ = tell.send(me.fetch(first, bytes_max, entries, Some(permit)).await);
            });
            let end = EntryId(first.entry.0 + entries as u64);
            at.fetches.push_back(Fetch { first, end, result });
        }
    }

    /// How many entries the next fetch takes; nothing if the tail has them, or nobody yet.
    fn plan_fetch(&self, first: Place) -> Option<(Place, usize)> {
        let in_tail = self.tail.first_index().is_some_and(|t| first.index >= t);
        if in_tail || first.index >= self.end() {
            return None;
        }
        let (first, segment) = self.settle_place(first)?;
        Some((first, self.entries_of_range(first.entry, &segment)))
    }

    /// The same for a fetch behind one that is on its way, in the same ledger.
    fn plan_fetch_behind(&self, last: &Fetch) -> Option<(Place, usize)> {
        let first = Place {
            entry: last.end,
            ..last.first
        };
        let (settled, segment) = self.settle_place(first)?;
        // The index is a lower bound, so the tail may have it: then the fetch was of no use.
        (settled == first).then(|| (first, self.entries_of_range(first.entry, &segment)))
    }

    /// Entries that a range most likely holds.
    fn entries_of_range(&self, first: EntryId, segment: &Segment) -> usize {
        let range = self.ctx.settings.read_ahead_range_bytes as u64;
        let usual = (segment.bytes / segment.entries.max(1)).max(1);
        let left = segment.entries.saturating_sub(first.0);
        let entries = (range / usual).clamp(1, left.max(1));
        usize::try_from(entries)
            .unwrap_or(FETCH_ENTRIES_MAX)
            .min(FETCH_ENTRIES_MAX)
    }

    /// Reads entries from `first` on, of one ledger.
    async fn fetch(
        &self,
        first: Place,
        bytes_max: usize,
        entries_max: usize,
        permit: Option<BytePermit>,
    ) -> Result<Chunk, LogError> {
        let (first, segment) = self.settled(first)?;
        let last = segment.last_entry().unwrap_or(first.entry);
        let wanted = Wanted {
            first: first.entry,
            last,
            bytes_max,
            entries_max,
            prefix_bytes: None,
        };
        let mut info = self.info(segment.ledger).await?;
        let stored = loop {
            match read_range(&self.ctx, &info, wanted).await {
                Ok(stored) => break stored,
                Err(error) => info = self.newer(&info, error.into()).await?,
            }
        };
        let mut entries = VecDeque::with_capacity(stored.len());
        let mut expected = None;
        for stored in &stored {
            let (head, body) = split(&info, stored)?;
            if expected.is_some_and(|index| index != head.base_index) {
                return Err(damaged(&info, stored.entry, "its index does not follow"));
            }
            expected = Some(head.end_index());
            entries.push_back(LogEntry {
                ledger: info.id,
                entry: stored.entry,
                head,
                body,
            });
        }
        Ok(Chunk {
            entries,
            _permit: permit,
        })
    }
}
