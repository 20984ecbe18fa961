//! Ranges of a log that were fetched from bookies, shared by the readers that are near each other.
//!
//! Owns: which ranges of one log are in memory or being fetched, and where its readers behind the
//! tail are. Invariants:
//! - A range lives as long as a reader holds it, its fetch runs, or the cache keeps it for a reader
//!   that is close behind. The index of ranges itself holds no range.
//! - A fetch always ends: with entries, or with an error when its task is dropped.
//! - The entries of a range are acknowledged, of one ledger, and consecutive; they never change.
//!
//! Lock order: an index, then what the cache keeps, then the budget. It fetches nothing itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_runtime::budget::BytePermit;
use parking_lot::Mutex;
use tokio::sync::SetOnce;

use crate::cache::EntryCache;
use crate::error::LogError;
use crate::types::{LogEntry, Place};

/// Size of the index at which dead references are first removed.
const SWEEP_MIN: usize = 32;
/// Ranges that a lookup examines: one that is missed is only fetched twice.
const LOOKUP_RANGES_MAX: usize = 16;

/// Consecutive entries of one ledger, there or on their way.
#[derive(Debug)]
pub(crate) struct Range {
    index: Weak<RangeIndex>,
    begin: Begin,
    is_counted: bool,
    result: SetOnce<Result<Loaded, LogError>>,
}

/// Where a range begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begin {
    /// At the entry that holds this index, which the fetch has to find.
    Index(Index),
    /// At this place, whose index may be a lower bound; planned to end before an entry. It ends
    /// earlier where entries are larger than usual, at damage and at the end of a fragment.
    Place(Place, EntryId),
}

/// What a fetch may take.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) entries: usize,
    pub(super) bytes_max: usize,
    /// Its share of the read-ahead budget. A range without one is for a reader that waits for it.
    pub(super) permit: Option<BytePermit>,
}

/// The entries of a range, at least one, and the share of the budget that they hold.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) entries: Vec<LogEntry>,
    pub(super) first_index: Index,
    pub(super) end_index: Index,
    bytes: usize,
    permit: Option<BytePermit>,
}

impl Loaded {
    fn new(entries: Vec<LogEntry>, permit: Option<BytePermit>) -> Result<Loaded, LogError> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Err(LogError::Damaged("a range without entries".to_owned()));
        };
        let (first_index, end_index) = (first.head.base_index, last.head.end_index());
        let bytes = entries.iter().map(LogEntry::bytes).sum();
        let held = bytes + entries.len() * size_of::<LogEntry>();
        let permit = permit.map(|mut permit| {
            permit.shrink_to(held);
            permit
        });
        Ok(Loaded {
            entries,
            first_index,
            end_index,
            bytes,
            permit,
        })
    }

    /// Position of the first entry that ends behind an index.
    pub(super) fn position(&self, index: Index) -> usize {
        self.entries
            .partition_point(|entry| entry.head.end_index() <= index)
    }

    /// About how many bytes lie behind an index.
    pub(super) fn bytes_behind(&self, index: Index) -> usize {
        let left = self.entries.len() - self.position(index);
        self.bytes / self.entries.len() * left
    }

    fn contains(&self, index: Index) -> bool {
        self.first_index <= index && index < self.end_index
    }

    /// Whether a reader will want this soon: it is in it, or so few bytes in front of it.
    fn is_near(&self, reader: Index, bytes_max: usize) -> bool {
        let messages = self.end_index.0 - self.first_index.0;
        let distance = u128::from(self.first_index.0.saturating_sub(reader.0));
        let bytes = distance * self.bytes as u128 / u128::from(messages.max(1));
        reader < self.end_index && bytes <= bytes_max as u128
    }
}

impl Range {
    /// Waits until the entries are there. It needs no task of the caller's: a reader that gives up
    /// leaves the fetch running for others.
    pub(super) async fn wait(&self) -> Result<&Loaded, LogError> {
        self.result.wait().await.as_ref().map_err(LogError::clone)
    }

    /// The entries, if they are there.
    pub(super) fn loaded(&self) -> Option<&Loaded> {
        self.result.get()?.as_ref().ok()
    }

    /// Whether the fetch has ended without entries.
    pub(super) fn has_failed(&self) -> bool {
        self.result.get().is_some_and(Result::is_err)
    }

    pub(super) fn is_on_its_way(&self) -> bool {
        self.result.get().is_none()
    }

    /// Where it began, as it was planned.
    pub(super) fn begin(&self) -> Begin {
        self.begin
    }

    /// Whether its bytes come from the read-ahead budget.
    pub(super) fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// Bytes of the read-ahead budget that it holds, once it is there.
    pub(crate) fn counted_bytes(&self) -> usize {
        let permit = self.loaded().and_then(|loaded| loaded.permit.as_ref());
        permit.map_or(0, BytePermit::bytes)
    }

    /// Its first entry and the one after the last, as far as known.
    fn span(&self) -> Option<(LedgerId, EntryId, EntryId)> {
        match (self.result.get(), self.begin) {
            (Some(Ok(loaded)), _) => {
                let (first, last) = (loaded.entries.first()?, loaded.entries.last()?);
                Some((first.ledger, first.entry, last.entry.next()))
            }
            (None, Begin::Place(first, end)) => Some((first.ledger, first.entry, end)),
            (Some(Err(_)), _) | (None, Begin::Index(_)) => None,
        }
    }

    /// Whether it has an entry, or is planned to.
    pub(super) fn covers(&self, place: Place) -> bool {
        self.span().is_some_and(|(ledger, first, end)| {
            ledger == place.ledger && first <= place.entry && place.entry < end
        })
    }

    /// The place behind it, as far as known.
    pub(super) fn after(&self) -> Option<Place> {
        let (ledger, _, entry) = self.span()?;
        let index = match (self.loaded(), self.begin) {
            (Some(loaded), _) => loaded.end_index,
            (None, Begin::Place(first, _)) => first.index,
            (None, Begin::Index(index)) => index,
        };
        Some(Place {
            index,
            ledger,
            entry,
        })
    }
}

/// A fetch that runs. Dropped before it has ended, it tells the readers that wait.
pub(super) struct Fetching {
    range: Arc<Range>,
}

impl Fetching {
    pub(super) fn new(range: Arc<Range>) -> Fetching {
        Fetching { range }
    }

    pub(super) fn end(self, read: Result<Vec<LogEntry>, LogError>, permit: Option<BytePermit>) {
        let range = Arc::clone(&self.range);
        let loaded = read.and_then(|entries| Loaded::new(entries, permit));
        // Only its fetch sets the result of a range.
        let _ = range.result.set(loaded);
        drop(self);
        if let Some(index) = range.index.upgrade() {
            index.loaded(range);
        }
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        let given_up = LogError::Unavailable("the fetch was given up".to_owned());
        // It has a result already if the fetch has ended.
        let _ = self.range.result.set(Err(given_up));
    }
}

/// The ranges of one log that are in memory or being fetched, and the readers that use them.
#[derive(Debug)]
pub(crate) struct RangeIndex {
    cache: EntryCache,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By first entry. Ledger ids rise along a log, so this is its order.
    ranges: BTreeMap<(LedgerId, EntryId), Weak<Range>>,
    /// Those that look for their place first.
    searching: BTreeMap<Index, Weak<Range>>,
    /// What each reader wants next.
    readers: BTreeMap<u64, Index>,
    next_reader: u64,
    sweep_at: usize,
}

impl State {
    fn covering(&self, place: Place) -> Option<Arc<Range>> {
        let key = (place.ledger, place.entry);
        let before = self.ranges.range(..=key).rev();
        before
            .take_while(|((ledger, _), _)| *ledger == place.ledger)
            .filter_map(|(_, range)| range.upgrade())
            .take(LOOKUP_RANGES_MAX)
            .find(|range| range.covers(place))
    }

    fn containing(&self, index: Index) -> Option<Arc<Range>> {
        let searching = self.searching.get(&index).and_then(Weak::upgrade);
        if let Some(range) = searching.filter(|range| !range.has_failed()) {
            return Some(range);
        }
        let mut ranges = self.ranges.values().filter_map(Weak::upgrade);
        ranges.find(|range| range.loaded().is_some_and(|l| l.contains(index)))
    }

    /// The first entry behind a place, in its ledger, with which a range begins.
    fn next_begin(&self, place: Place) -> Option<EntryId> {
        let behind = (place.ledger, place.entry.next())..;
        let mut behind = self.ranges.range(behind);
        let next = behind.find(|(_, range)| range.upgrade().is_some_and(|r| !r.has_failed()));
        next.filter(|((ledger, _), _)| *ledger == place.ledger)
            .map(|((_, entry), _)| *entry)
    }

    /// Removes what no reader has any more, now and then.
    fn sweep(&mut self) {
        let len = self.ranges.len() + self.searching.len();
        if len >= self.sweep_at.max(SWEEP_MIN) {
            self.ranges.retain(|_, range| range.strong_count() > 0);
            self.searching.retain(|_, range| range.strong_count() > 0);
            self.sweep_at = 2 * (self.ranges.len() + self.searching.len());
        }
    }
}

impl RangeIndex {
    pub(crate) fn new(cache: EntryCache) -> Arc<RangeIndex> {
        Arc::new(RangeIndex {
            cache,
            state: Mutex::default(),
        })
    }

    /// The range that has an entry, or is to bring it.
    pub(super) fn join(&self, place: Place) -> Option<Arc<Range>> {
        self.state.lock().covering(place)
    }

    /// The same, or one that begins here and ends where the next begins: the plan comes back if
    /// the caller is to fetch it.
    pub(super) fn join_or_begin(
        self: &Arc<Self>,
        first: Place,
        mut plan: Plan,
    ) -> (Arc<Range>, Option<Plan>) {
        let mut state = self.state.lock();
        if let Some(range) = state.covering(first) {
            return (range, None);
        }
        if let Some(next) = state.next_begin(first) {
            let entries = usize::try_from(next.0 - first.entry.0).unwrap_or(usize::MAX);
            plan.entries = plan.entries.min(entries);
        }
        let end = EntryId(first.entry.0 + plan.entries as u64);
        let range = self.range(Begin::Place(first, end), &plan);
        state.sweep();
        let key = (first.ledger, first.entry);
        state.ranges.insert(key, Arc::downgrade(&range));
        (range, Some(plan))
    }

    /// The same for an index whose place is not known.
    pub(super) fn join_or_search(
        self: &Arc<Self>,
        index: Index,
        plan: Plan,
    ) -> (Arc<Range>, Option<Plan>) {
        let mut state = self.state.lock();
        if let Some(range) = state.containing(index) {
            return (range, None);
        }
        let range = self.range(Begin::Index(index), &plan);
        state.sweep();
        state.searching.insert(index, Arc::downgrade(&range));
        (range, Some(plan))
    }

    fn range(self: &Arc<Self>, begin: Begin, plan: &Plan) -> Arc<Range> {
        Arc::new(Range {
            index: Arc::downgrade(self),
            begin,
            is_counted: plan.permit.is_some(),
            result: SetOnce::new(),
        })
    }

    /// Notes the place of a range that had to be searched for. What no reader holds any more stays
    /// for one that is close behind.
    fn loaded(&self, range: Arc<Range>) {
        let mut state = self.state.lock();
        if let (Begin::Index(index), Some((ledger, first, _))) = (range.begin, range.span()) {
            state.searching.remove(&index);
            let there = state.ranges.entry((ledger, first)).or_default();
            if there.strong_count() == 0 {
                *there = Arc::downgrade(&range);
            }
        }
        if Arc::strong_count(&range) == 1 {
            self.left(&state, vec![range]);
        }
    }

    /// Keeps ranges that a reader has passed and another wants soon; lets go of what is wanted by
    /// none any more.
    fn left(&self, state: &State, passed: Vec<Arc<Range>>) {
        let near = self.cache.kept_bytes_max();
        let is_wanted = |range: &Range| {
            let mut readers = state.readers.values();
            range.is_counted
                && range
                    .loaded()
                    .is_some_and(|l| readers.any(|reader| l.is_near(*reader, near)))
        };
        let own = |range: &Range| std::ptr::eq(range.index.as_ptr(), self);
        self.cache
            .keep_only(|range| !own(range) || is_wanted(range));
        for range in passed {
            if is_wanted(&range) {
                self.cache.keep(range);
            }
        }
    }
}

/// A reader behind the tail, as the others see it: what lies a little in front of it stays.
#[derive(Debug)]
pub(super) struct ReaderSeat {
    index: Arc<RangeIndex>,
    id: u64,
}

impl ReaderSeat {
    pub(super) fn new(index: &Arc<RangeIndex>, at: Index) -> ReaderSeat {
        let mut state = index.state.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(id, at);
        ReaderSeat {
            index: Arc::clone(index),
            id,
        }
    }

    /// Notes where the reader is now, and what it has passed.
    pub(super) fn advance(&self, at: Index, passed: Vec<Arc<Range>>) {
        let mut state = self.index.state.lock();
        state.readers.insert(self.id, at);
        if !passed.is_empty() {
            self.index.left(&state, passed);
        }
    }

    /// The reader leaves the others with what it held.
    pub(super) fn leave(self, held: impl IntoIterator<Item = Arc<Range>>) {
        let index = Arc::clone(&self.index);
        drop(self);
        index.left(&index.state.lock(), held.into_iter().collect());
    }
}

impl Drop for ReaderSeat {
    fn drop(&mut self) {
        let mut state = self.index.state.lock();
        state.readers.remove(&self.id);
        self.index.left(&state, Vec::new());
    }
}
