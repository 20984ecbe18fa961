//! A bookie without threads and RocksDB: the real decisions of admission (`LedgerState`) and of
//! replay (`Continuity`) over a model of the journal, the store behind it and their disk.
//!
//! Written, synced, applied and flushed are apart, because every one of them is where a bookie can
//! die: a killed process leaves what was written, a power loss only what was synced or flushed.

mod reads;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aquifer_bookie::testing::{
    Continuity, Decision, End, Facts, FoundMark, LedgerMeta, LedgerState, RecordKind, Stored,
    Verdict,
};
use aquifer_model::id::{CreationToken, EntryId, LedgerId};
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest, ReadRange,
    StoredEntry,
};
use bytes::Bytes;

use crate::defect::Defect;

/// How a bookie ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// The process is killed: what it has written stays.
    Kill,
    /// Power loss: what is not synced is gone.
    Power,
    /// Power loss on a disk that lied: the last synced commit is gone, and what was in its place
    /// before is there.
    LostWrite,
    /// The disk is gone.
    Wipe,
}

/// An answer, and whose it is.
pub type Answered<T> = (T, BookieResult<OrderedReply>);

/// The bookie. `T` says whose a request is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SimBookie<T> {
    defect: Option<Defect>,
    memory: BTreeMap<LedgerId, LedgerState>,
    queue: VecDeque<Item<T>>,
    /// Items of the commit that is written and not synced.
    writing: Vec<Item<T>>,
    last_item: u64,
    store: Store,
    disk: Disk,
    limbo: bool,
    gone: bool,
    /// What is stored and cannot be read any more.
    rotten: BTreeSet<(LedgerId, EntryId)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Item<T> {
    number: u64,
    record: Option<Record>,
    ticket: Option<T>,
    answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Answer {
    Done(Option<EntryId>),
    ReadBack(LedgerId, EntryId),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Record {
    ledger: LedgerId,
    token: CreationToken,
    kind: RecordKind,
    entry: Option<StoredEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Commit {
    generation: u64,
    sequence: u64,
    records: Vec<Record>,
}

/// RocksDB: what a crash leaves is `Disk::flushed`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Store {
    applied: u64,
    metas: BTreeMap<LedgerId, LedgerMeta>,
    entries: BTreeMap<(LedgerId, EntryId), StoredEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Disk {
    /// Commits that are not trimmed.
    journal: Vec<Commit>,
    /// How many of them are synced.
    synced: usize,
    /// Commits of a former life, written to another file, that are not synced: only the defect
    /// leaves any ([`Defect::ReplayServedUnsynced`]).
    doubtful: Vec<Commit>,
    /// What recycled segments still hold behind the end of the journal.
    leftovers: VecDeque<Commit>,
    /// What the last commit was written over.
    overwritten: Option<Commit>,
    generation: u64,
    /// The last-synced mark.
    mark: u64,
    flushed: Store,
}

impl Store {
    fn apply(&mut self, sequence: u64, records: &[Record]) {
        for record in records {
            let meta = self.metas.entry(record.ledger);
            let meta = meta.or_insert_with(|| LedgerMeta::new(record.token));
            meta.apply(record.kind);
            if let Some(entry) = &record.entry {
                let key = (record.ledger, entry.entry);
                self.entries.insert(key, entry.clone());
            }
            if record.kind == RecordKind::Delete {
                self.entries
                    .retain(|(ledger, _), _| *ledger != record.ledger);
            }
        }
        self.applied = sequence;
    }

    fn load(&self, ledger: LedgerId) -> LedgerState {
        let all = (ledger, EntryId(0))..=(ledger, EntryId(u64::MAX));
        let highest = self.entries.range(all.clone()).next_back();
        let lac = self
            .entries
            .range(all)
            .filter_map(|(_, e)| e.last_add_confirmed);
        LedgerState::stored(
            self.metas.get(&ledger).copied(),
            End::Known(highest.map(|((_, entry), _)| *entry)),
            lac.max(),
        )
    }
}

fn stored(add: &AddEntry) -> StoredEntry {
    StoredEntry {
        entry: add.entry,
        last_add_confirmed: add.last_add_confirmed,
        ledger_length: add.ledger_length,
        digest: add.digest,
        data: match (add.data.head.is_empty(), add.data.body.is_empty()) {
            (true, _) => add.data.body.clone(),
            (_, true) => add.data.head.clone(),
            _ => Bytes::from([&add.data.head[..], &add.data.body[..]].concat()),
        },
    }
}

impl<T: Clone> SimBookie<T> {
    /// A new bookie.
    #[must_use]
    pub fn new(defect: Option<Defect>) -> SimBookie<T> {
        SimBookie {
            defect,
            memory: BTreeMap::new(),
            queue: VecDeque::new(),
            writing: Vec::new(),
            last_item: 0,
            store: Store::default(),
            disk: Disk::default(),
            limbo: false,
            gone: false,
            rotten: BTreeSet::new(),
        }
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// Whether it will never answer again.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether it knows that it lost something.
    #[must_use]
    pub fn is_in_limbo(&self) -> bool {
        self.limbo
    }

    /// Whether anything waits for the journal.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty() || !self.writing.is_empty()
    }

    /// Whether a commit is written and not synced.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        !self.writing.is_empty()
    }

    /// Whether anything is not flushed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.store.applied > self.disk.flushed.applied
    }

    /// Whether power loss would leave the entry.
    #[must_use]
    pub fn is_durable(&self, ledger: LedgerId, entry: EntryId) -> bool {
        let journaled = self.disk.journal[..self.disk.synced].iter();
        !self.gone
            && (self.disk.flushed.entries.contains_key(&(ledger, entry))
                || journaled
                    .flat_map(|commit| &commit.records)
                    .any(|record| record.ledger == ledger && record.kind.entry() == Some(entry)))
    }

    /// Whether normal adds to a ledger are refused for good.
    #[must_use]
    pub fn is_fenced(&self, ledger: LedgerId) -> bool {
        let stored = self.store.metas.get(&ledger);
        stored.is_some_and(|meta| meta.fenced)
    }

    /// Tickets whose requests were taken and not answered.
    pub fn tickets(&self) -> impl Iterator<Item = &T> {
        let items = self.writing.iter().chain(&self.queue);
        items.filter_map(|item| item.ticket.as_ref())
    }

    /// The answers to these are not received any more.
    pub fn forget(&mut self, who: impl Fn(&T) -> bool) {
        for item in self.writing.iter_mut().chain(&mut self.queue) {
            if item.ticket.as_ref().is_some_and(&who) {
                item.ticket = None;
            }
        }
    }

    /// Takes a request: refuses it at once, or queues it.
    pub fn submit(&mut self, request: OrderedRequest, ticket: T, out: &mut Vec<Answered<T>>) {
        if let OrderedOperation::RecoveryRead(entry) = request.operation
            && self.has(Defect::NegativeWhileQueued)
        {
            let answer = self.read_back(request.ledger, entry);
            out.push((ticket.clone(), answer));
        }
        let change = match self.decide(&request) {
            Decision::Journal(kind, meta) => Some((kind, meta)),
            Decision::Known => None,
            Decision::Refuse(error) => return out.push((ticket, Err(error))),
            // It was looked, and nothing must be asked.
            Decision::Look(_) | Decision::Ask => return,
        };
        let Some(state) = self.memory.get_mut(&request.ledger) else {
            return;
        };
        let (ledger, token, lac) = (request.ledger, request.token, state.lac());
        let (answer, add) = match request.operation {
            OrderedOperation::Add(add) => {
                let carried = add.last_add_confirmed.filter(|_| change.is_some());
                (Answer::Done(lac.max(carried)), Some(add))
            }
            OrderedOperation::Fence | OrderedOperation::Delete => (Answer::Done(lac), None),
            OrderedOperation::WriteLac(told) => (Answer::Done(lac.max(Some(told))), None),
            OrderedOperation::RecoveryRead(entry) => (Answer::ReadBack(ledger, entry), None),
        };
        let record = change.map(|(kind, _)| Record {
            ledger,
            token,
            kind,
            entry: add.as_ref().map(stored),
        });
        match (add, change) {
            (Some(add), Some(_)) => state.added(token, add, self.last_item + 1),
            (None, Some((_, Some(meta)))) => state.changed(meta),
            _ => {}
        }
        let is_fence = change.is_some_and(|(kind, _)| kind == RecordKind::Fence);
        let forgets = self.has(Defect::FenceNotDurable) && is_fence;
        self.queue(record.filter(|_| !forgets), ticket, answer);
    }

    /// Decides as a bookie does, and looks into the store where that is needed.
    fn decide(&mut self, request: &OrderedRequest) -> Decision {
        let ledger = request.ledger;
        let is_read = matches!(request.operation, OrderedOperation::RecoveryRead(_));
        let fences = !is_read || !self.has(Defect::RecoveryReadDoesNotFence);
        let loaded = || self.store.load(ledger);
        let state = self.memory.entry(ledger).or_insert_with(loaded);
        if !fences {
            return Decision::Known;
        }
        let mut facts = Facts {
            stored: Stored::NotLooked,
            limbo: self.limbo,
            must_ask: false,
        };
        let decision = state.decide(request, facts);
        let Decision::Look(add) = decision else {
            return decision;
        };
        facts.stored = match self.store.entries.get(&(ledger, add.entry)) {
            None => Stored::Absent,
            Some(_) if self.rotten.contains(&(ledger, add.entry)) => Stored::Damaged,
            Some(entry) if *entry == stored(&add) => Stored::Same,
            Some(_) => Stored::Other,
        };
        state.decide(request, facts)
    }

    fn queue(&mut self, record: Option<Record>, ticket: T, answer: Answer) {
        self.last_item += 1;
        self.queue.push_back(Item {
            number: self.last_item,
            record,
            ticket: Some(ticket),
            answer,
        });
    }

    /// Writes everything that waits as one commit.
    pub fn write(&mut self) {
        if self.is_writing() || self.queue.is_empty() {
            return;
        }
        self.writing = std::mem::take(&mut self.queue).into();
        let records: Vec<Record> = self
            .writing
            .iter()
            .filter_map(|i| i.record.clone())
            .collect();
        if records.is_empty() {
            return;
        }
        let disk = &mut self.disk;
        disk.overwritten = disk.leftovers.pop_front();
        let last = disk.journal.last().map_or(0, |commit| commit.sequence);
        disk.journal.push(Commit {
            generation: disk.generation,
            sequence: last.max(self.store.applied) + 1,
            records,
        });
    }

    /// Syncs what is written, applies it, and answers.
    pub fn sync(&mut self, out: &mut Vec<Answered<T>>) {
        let disk = &mut self.disk;
        for commit in &disk.journal[disk.synced..] {
            if commit.sequence > self.store.applied {
                self.store.apply(commit.sequence, &commit.records);
                for record in &commit.records {
                    let written = record.entry.as_ref().map(|entry| entry.entry);
                    self.rotten
                        .retain(|rotten| Some(*rotten) != written.map(|e| (record.ledger, e)));
                }
            }
        }
        disk.synced = disk.journal.len();
        disk.mark = disk.mark.max(self.store.applied);
        let items = std::mem::take(&mut self.writing);
        for item in &items {
            if let Some(record) = &item.record
                && let Some(state) = self.memory.get_mut(&record.ledger)
            {
                state.applied(record.kind.entry(), item.number);
            }
        }
        for item in items {
            let Some(ticket) = item.ticket else {
                continue;
            };
            let answer = match item.answer {
                Answer::Done(last_add_confirmed) => Ok(OrderedReply::Done { last_add_confirmed }),
                // It was answered early.
                Answer::ReadBack(..) if self.has(Defect::NegativeWhileQueued) => continue,
                Answer::ReadBack(ledger, entry) => self.read_back(ledger, entry),
            };
            out.push((ticket, answer));
        }
    }

    /// The read half of a recovery read.
    fn read_back(&self, ledger: LedgerId, entry: EntryId) -> BookieResult<OrderedReply> {
        let range = ReadRange {
            ledger,
            token: None,
            first: entry,
            last: entry,
            bytes_max: usize::MAX,
            entries_max: 1,
            prefix_bytes: None,
        };
        let found = self.read(range)?.entries.pop();
        found
            .map(OrderedReply::Entry)
            .ok_or(BookieError::NoSuchEntry)
    }

    /// Flushes what is applied and trims the journal to it. The trimmed segments are used again.
    pub fn flush(&mut self) {
        let forgets_fences = self.has(Defect::TrimBeforeAllFlushed);
        let disk = &mut self.disk;
        if forgets_fences {
            disk.flushed.entries = self.store.entries.clone();
            disk.flushed.applied = self.store.applied;
        } else {
            disk.flushed = self.store.clone();
        }
        disk.doubtful.clear();
        // A segment that is being written is not trimmed.
        if disk.synced == disk.journal.len() {
            disk.leftovers.extend(disk.journal.drain(..));
            disk.synced = 0;
            disk.generation += 1;
        }
    }

    /// Flushes, and forgets how it came to what it holds: for checks in which every request is
    /// durable when it is served, and no crash can bring back what recycled segments hold. Numbers
    /// of items and commits are only compared with each other, so they may begin again.
    pub fn canonicalize(&mut self) {
        self.flush();
        let disk = &mut self.disk;
        disk.leftovers.clear();
        disk.overwritten = None;
        (disk.generation, disk.mark) = (0, 0);
        (disk.flushed.applied, self.store.applied, self.last_item) = (0, 0, 0);
        // What memory knows no better than the store is loaded again when it is needed.
        let store = &self.store;
        self.memory
            .retain(|ledger, state| store.load(*ledger) != *state);
    }

    /// Ends the process, and starts the next one on what is left.
    pub fn crash(&mut self, crash: Crash) {
        let disk = &mut self.disk;
        match crash {
            Crash::Kill => {}
            Crash::Power => {
                disk.journal.truncate(disk.synced);
                disk.doubtful.clear();
            }
            Crash::LostWrite => {
                disk.journal.truncate(disk.synced);
                if disk.journal.pop().is_some() {
                    disk.synced -= 1;
                    if let Some(before) = disk.overwritten.take() {
                        disk.leftovers.push_front(before);
                    }
                }
            }
            Crash::Wipe => {
                *disk = Disk::default();
                self.rotten.clear();
                self.gone = !self.has(Defect::ForgottenBookieAnswers);
            }
        }
        self.memory.clear();
        self.queue.clear();
        self.writing.clear();
        self.replay();
    }

    fn replay(&mut self) {
        let (takes_stale, unsynced) = (
            self.has(Defect::StaleRecycledRecords),
            self.has(Defect::ReplayServedUnsynced),
        );
        let disk = &mut self.disk;
        let mut store = disk.flushed.clone();
        let mut continuity = Continuity::new(store.applied);
        for commit in disk.doubtful.iter().chain(&disk.journal) {
            if continuity.found(commit.sequence) == Verdict::Apply {
                store.apply(commit.sequence, &commit.records);
            }
        }
        // Their checksums are right; what they belong to is over.
        for commit in disk.leftovers.iter().filter(|_| takes_stale) {
            let sequence = store.applied + 1;
            if continuity.found(sequence) == Verdict::Apply {
                store.apply(sequence, &commit.records);
            }
        }
        let (last, loss) = continuity.finish(FoundMark::Synced(disk.mark));
        store.applied = last;
        if unsynced {
            let doubtful = disk.journal.drain(disk.synced..);
            disk.doubtful.extend(doubtful);
        } else {
            disk.synced = disk.journal.len();
            disk.mark = last;
        }
        if loss.is_some() {
            // The loss is made durable with everything that was found.
            self.limbo = true;
            disk.flushed = store.clone();
            disk.journal.clear();
            disk.synced = 0;
        }
        self.store = store;
    }
}
