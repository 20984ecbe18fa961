//! The journal thread: everything that waits becomes one write and one sync, then is answered.
//!
//! Invariants:
//! - Commit N+1 is written only after N is synced (H4).
//! - Nothing is answered before its commit is synced (I1); after a failed write or sync nothing
//!   is answered with success ever again, because it is not known what is on the disk.
//! - A wait succeeds only if nothing that it may have waited for was refused (I1, I4): it stands
//!   for a record of another request that was in flight when it was admitted.
//! - The ledger record that a refused item carried goes with the next of that ledger which was
//!   admitted behind it: entries without a ledger record would be denied (I5).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::LedgerId;
use aquifer_model::storage::BookieError;
use aquifer_runtime::budget::BytePermit;
use aquifer_runtime::rng::SharedRng;

use crate::journal::commit::{
    Block, COMMIT_HEAD_BYTES, CommitBuilder, CommitPlace, Committed, CommittedRecord, SegmentUse,
    padded,
};
use crate::journal::queue::{Class, Item};
use crate::journal::record::{RECORD_HEAD_BYTES, Record};
use crate::journal::segment::{FIRST_COMMIT_OFFSET, SegmentFile, SegmentHead};
use crate::ledger_state::LedgerMeta;
use crate::shared::Shared;

/// How long a commit waits for a segment before adds are refused. Preparing one takes less on
/// any disk that deserves the name.
const SEGMENT_PATIENCE: Duration = Duration::from_secs(2);

/// The journal thread.
pub struct JournalThread {
    shared: Arc<Shared>,
    /// Randomness, for salts.
    rng: SharedRng,
    /// Where to write.
    tail: Tail,
    /// Whether the last wait for a segment was in vain.
    starved: bool,
    /// Waits up to this item may be for a record that was refused.
    doubtful_until: u64,
    /// Ledger records of refused items, and the last item that counts on them. No more than there
    /// were items in the queue.
    left_metas: BTreeMap<LedgerId, (LedgerMeta, u64)>,
}

/// Where the journal goes on.
#[derive(Debug)]
pub struct Tail {
    /// The segment that is written; `None` before the first roll.
    pub current: Option<(Arc<SegmentFile>, SegmentUse)>,
    /// Where its next commit goes.
    pub offset: u64,
    /// The last commit.
    pub last_sequence: u64,
    /// The last generation that was used.
    pub last_generation: u64,
}

impl Tail {
    fn room(&self) -> u64 {
        self.current
            .as_ref()
            .map_or(0, |(file, _)| file.bytes.saturating_sub(self.offset))
    }
}

impl JournalThread {
    /// A thread that does not run yet.
    #[must_use]
    pub fn new(shared: &Arc<Shared>, rng: SharedRng, tail: Tail) -> JournalThread {
        JournalThread {
            shared: Arc::clone(shared),
            rng,
            tail,
            starved: false,
            doubtful_until: 0,
            left_metas: BTreeMap::new(),
        }
    }

    /// Runs until the queue is closed and empty, or the disk fails.
    pub fn run(mut self) {
        while let Some(items) = self.shared.queue.take(self.shared.config.commit_bytes_max) {
            let result = self.serve(items);
            if let Err((error, items)) = result {
                self.give_up(&error, items);
                return;
            }
            self.shared.turns.journal_took();
        }
        // What waits for its turn is refused.
        self.shared.turns.journal_took();
    }

    fn serve(&mut self, items: Vec<Item>) -> Result<(), (io::Error, Vec<Item>)> {
        let mut items = self.without_doubtful(items);
        self.forget_metas(&items);
        if items.iter().all(|item| item.record.is_none()) {
            // Only waits: what they wait for is synced, because this thread did it.
            self.finish(items);
            return Ok(());
        }
        match self.make_room(&items) {
            Ok(true) => {
                self.hand_on_metas(&mut items);
                self.write(items)
            }
            Ok(false) => {
                let (normal, control): (Vec<Item>, Vec<Item>) = items
                    .into_iter()
                    .partition(|item| item.class == Class::Normal && item.record.is_some());
                if normal.is_empty() {
                    self.refuse(control);
                    return Ok(());
                }
                self.refuse(normal);
                self.serve(control)
            }
            Err(error) => Err((error, items)),
        }
    }

    /// Refuses waits that were admitted while a record that was refused was in flight.
    fn without_doubtful(&self, items: Vec<Item>) -> Vec<Item> {
        let (doubtful, others): (Vec<Item>, Vec<Item>) = items
            .into_iter()
            .partition(|item| item.record.is_none() && item.number <= self.doubtful_until);
        for item in doubtful {
            item.completion.run(Err(self.no_room()));
        }
        others
    }

    /// Forgets the ledger records that no later request counts on.
    fn forget_metas(&mut self, items: &[Item]) {
        if let Some(first) = items.first() {
            self.left_metas
                .retain(|_, (_, until)| first.number <= *until);
        }
    }

    /// Gives the ledger records of refused items to the next records of these ledgers.
    fn hand_on_metas(&mut self, items: &mut [Item]) {
        for item in items {
            let Some(record) = &item.record else {
                continue;
            };
            let left = self.left_metas.remove(&record.ledger);
            let left = left.filter(|(_, until)| item.number <= *until);
            item.meta = item.meta.or(left.map(|(meta, _)| meta));
        }
    }

    /// Makes sure that the current segment has room, rolling if need be. `false`: it has none.
    fn make_room(&mut self, items: &[Item]) -> io::Result<bool> {
        let needed = padded(COMMIT_HEAD_BYTES + records_bytes(items));
        let needed = u64::try_from(needed).map_err(io::Error::other)?;
        let is_normal = |item: &Item| item.class == Class::Normal && item.record.is_some();
        let keep = if items.iter().any(is_normal) {
            u64::try_from(self.shared.config.journal_reserve_bytes).unwrap_or(u64::MAX)
        } else {
            0
        };
        if self.tail.room() >= needed + keep {
            return Ok(true);
        }
        let patience = if self.starved {
            Duration::ZERO
        } else {
            SEGMENT_PATIENCE
        };
        self.shared.housekeeper.wake();
        self.shared.checkpointer.wake();
        let Some(file) = self.shared.segments.roll(self.tail.last_sequence, patience) else {
            self.starved = true;
            return Ok(self.tail.room() >= needed && keep == 0);
        };
        self.starved = false;
        self.shared.mark.sync()?;
        self.tail.last_generation += 1;
        let segment = SegmentUse {
            generation: self.tail.last_generation,
            salt: self.rng.next_u64(),
        };
        file.activate(&SegmentHead {
            segment,
            first_sequence: self.tail.last_sequence + 1,
            bookie: self.shared.id,
        })?;
        let room = file.bytes.saturating_sub(FIRST_COMMIT_OFFSET);
        self.tail.current = Some((file, segment));
        self.tail.offset = FIRST_COMMIT_OFFSET;
        self.shared.housekeeper.wake();
        Ok(room >= needed + keep)
    }

    fn write(&mut self, items: Vec<Item>) -> Result<(), (io::Error, Vec<Item>)> {
        let Some((file, segment)) = self.tail.current.clone() else {
            return Err((io::Error::other("the journal has no segment"), items));
        };
        let started = self.shared.clock.monotonic();
        let sequence = self.tail.last_sequence + 1;
        let bytes = COMMIT_HEAD_BYTES + records_bytes(&items);
        let mut builder = CommitBuilder::new(self.shared.pool.take(padded(bytes)));
        let places: Vec<Option<Range<usize>>> = items
            .iter()
            .map(|item| item.record.as_ref().map(|record| builder.push(record)))
            .collect();
        let block = Block::new(builder.finish(segment, sequence), &self.shared.pool);
        let place = CommitPlace {
            segment: file.number,
            generation: segment.generation,
            offset: self.tail.offset,
        };
        let written = file
            .file
            .write_all_at(place.offset, block.bytes())
            .and_then(|()| file.file.sync_data());
        if let Err(error) = written {
            return Err((error, items));
        }
        self.tail.offset += u64::try_from(block.bytes().len()).unwrap_or(0);
        self.tail.last_sequence = sequence;
        self.shared.segments.committed(sequence, self.tail.offset);
        self.shared.progress.synced.advance(sequence);
        self.shared.metrics.committed(
            places.iter().flatten().count(),
            block.bytes().len(),
            self.shared.clock.monotonic().saturating_sub(started),
        );
        // Before any caller hears of it: after a kill -9 the mark knows of all that was
        // acknowledged (H4). Until its own sync, a power loss may take it back to the last one.
        if let Err(error) = self.shared.mark.write(sequence) {
            return Err((error, items));
        }
        let commit = Committed {
            sequence,
            place,
            block,
            records: Vec::with_capacity(items.len()),
        };
        self.hand_over(items, &places, commit);
        Ok(())
    }

    /// Answers what is synced and gives the records to the applier.
    fn hand_over(&self, items: Vec<Item>, places: &[Option<Range<usize>>], mut commit: Committed) {
        if let Some(last) = items.last() {
            self.shared.progress.synced_item.advance(last.number);
        }
        let mut completions = Vec::with_capacity(items.len());
        for (item, place) in items.into_iter().zip(places) {
            completions.push(item.completion);
            if let (Some(record), Some(place)) = (item.record, place) {
                commit.records.push(committed(
                    &record,
                    place,
                    item.number,
                    item.meta,
                    item.permit,
                ));
            }
        }
        for completion in completions {
            completion.run(Ok(()));
        }
        self.shared.apply_queue.push(commit);
    }

    fn finish(&self, items: Vec<Item>) {
        if let Some(last) = items.last() {
            self.shared.progress.synced_item.advance(last.number);
        }
        for item in items {
            item.completion.run(Ok(()));
        }
    }

    /// Refuses items for which there is no room; later ones may fit.
    fn refuse(&mut self, items: Vec<Item>) {
        for item in &items {
            if let Some(record) = &item.record {
                self.shared
                    .ledgers
                    .aborted(record.ledger, record.kind.entry(), item.number);
            }
        }
        // A request that is admitted from now on does not find these records in flight any more.
        self.doubtful_until = self.shared.queue.last_number();
        for item in items {
            if let (Some(record), Some(meta)) = (&item.record, item.meta) {
                let left = (meta, self.doubtful_until);
                self.left_metas.insert(record.ledger, left);
            }
            item.completion.run(Err(self.no_room()));
        }
    }

    fn no_room(&self) -> BookieError {
        // An add that came so far on a full disk may use the reserve: it may come again.
        match self.shared.mode.check_class(true) {
            Err(error) => error,
            Ok(()) => BookieError::Overloaded,
        }
    }

    fn give_up(&self, error: &io::Error, items: Vec<Item>) {
        let why = format!("the journal could not be written: {error}");
        self.shared.mode.fail(&why);
        let waiting = self.shared.queue.abandon(BookieError::Io(why.clone()));
        for item in items.into_iter().chain(waiting) {
            item.completion.run(Err(BookieError::Io(why.clone())));
        }
        self.shared.turns.journal_took();
    }
}

fn records_bytes(items: &[Item]) -> usize {
    items
        .iter()
        .filter_map(|item| item.record.as_ref())
        .map(Record::encoded_len)
        .sum()
}

fn committed(
    record: &Record,
    place: &Range<usize>,
    number: u64,
    meta: Option<LedgerMeta>,
    permit: Option<BytePermit>,
) -> CommittedRecord {
    let ledger: LedgerId = record.ledger;
    CommittedRecord {
        ledger,
        kind: record.kind,
        number,
        value: place.start + RECORD_HEAD_BYTES..place.end,
        meta,
        _permit: permit,
    }
}
