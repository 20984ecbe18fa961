//! Bookies in memory, with faults. What they answered as stored is durable.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use aquifer_model::id::{BookieId, CreationToken, EntryId, LedgerId, TenantKey};
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest, Presence,
    PresenceRange, ReadBatch, ReadRange, ReplyCallback, StoredEntry, TailState, TailWait,
};
use aquifer_runtime::clock;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::placement::{BookieInfo, Bookies};
use crate::transport::BookieTransport;

/// What a bookie reads for one question what it has.
const HAS_BYTES_MAX: u64 = 1_000;

/// How a bookie behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// As it should.
    #[default]
    Up,
    /// Refuses normal adds as `Overloaded`.
    Overloaded,
    /// Refuses normal adds as `ReadOnly`.
    ReadOnly,
    /// Every request fails with an I/O error.
    Broken,
    /// Every request is `Unreachable`.
    Unreachable,
    /// Takes requests and never answers.
    Silent,
    /// May have lost data: negatives become `Limbo`, normal adds are refused with it.
    Limbo,
}

/// What was read from bookies outside the ordered streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadCounts {
    /// Requests.
    pub requests: u64,
    /// Entries returned whole.
    pub entries: u64,
    /// Entries of which only the beginning was returned.
    pub prefixes: u64,
    /// Requests for what is there, without bytes.
    pub looks: u64,
    /// Requests that a bookie refused, or that did not reach it.
    pub failed: u64,
}

/// Bookies `[1; 16]`, `[2; 16]` and so on. Clones share them.
#[derive(Clone)]
pub struct TestBookies {
    bookies: Arc<BTreeMap<BookieId, Mutex<TestBookie>>>,
    reads: Arc<Mutex<ReadCounts>>,
    /// Wakes the reads that wait for news of a ledger.
    changed: Arc<Notify>,
    /// What was said of tenants.
    weights: Arc<Mutex<BTreeMap<TenantKey, u32>>>,
}

#[derive(Default)]
struct TestBookie {
    mode: Mode,
    ledgers: BTreeMap<LedgerId, StoredLedger>,
    /// Requests wait here while they are held back.
    held: Option<VecDeque<(OrderedRequest, ReplyCallback)>>,
    /// Answers wait here while they are held back.
    held_replies: Option<VecDeque<HeldReply>>,
    fail_next: VecDeque<BookieError>,
    reads_stall: bool,
}

type HeldReply = (ReplyCallback, BookieResult<OrderedReply>);

#[derive(Default)]
struct StoredLedger {
    token: Option<CreationToken>,
    fenced: bool,
    deleted: bool,
    last_add_confirmed: Option<EntryId>,
    entries: BTreeMap<EntryId, StoredEntry>,
}

impl StoredLedger {
    fn compare(&self, token: Option<CreationToken>) -> BookieResult<()> {
        match (self.token, token) {
            (Some(own), Some(asked)) if own != asked => Err(BookieError::Token),
            _ => Ok(()),
        }
    }
}

impl TestBookies {
    /// This many bookies.
    #[must_use]
    pub fn new(count: u8) -> TestBookies {
        let bookies = (1..=count).map(|n| (BookieId([n; 16]), Mutex::default()));
        TestBookies {
            bookies: Arc::new(bookies.collect()),
            reads: Arc::default(),
            changed: Arc::default(),
            weights: Arc::default(),
        }
    }

    /// What was said last of a tenant's weight.
    #[must_use]
    pub fn weight_of(&self, tenant: TenantKey) -> Option<u32> {
        self.weights.lock().get(&tenant).copied()
    }

    /// Their ids.
    #[must_use]
    pub fn ids(&self) -> Vec<BookieId> {
        self.bookies.keys().copied().collect()
    }

    /// All of them, for placement.
    #[must_use]
    pub fn known(&self) -> Bookies {
        let info = |id: &BookieId| BookieInfo {
            id: *id,
            zone: String::new(),
            read_only: false,
            free_bytes: 0,
            capacity_bytes: 0,
        };
        Bookies::fixed(self.bookies.keys().map(info).collect())
    }

    fn with<T>(&self, bookie: BookieId, change: impl FnOnce(&mut TestBookie) -> T) -> T {
        let found = self.bookies.get(&bookie);
        change(&mut found.expect("tests name bookies that exist").lock())
    }

    /// Sets how a bookie behaves from now on.
    pub fn set_mode(&self, bookie: BookieId, mode: Mode) {
        self.with(bookie, |b| b.mode = mode);
    }

    /// Sets how all behave from now on.
    pub fn set_all(&self, mode: Mode) {
        for bookie in self.ids() {
            self.set_mode(bookie, mode);
        }
    }

    /// Fails the next ordered requests of a bookie with these errors.
    pub fn fail_next(&self, bookie: BookieId, errors: impl IntoIterator<Item = BookieError>) {
        self.with(bookie, |b| b.fail_next.extend(errors));
    }

    /// Holds requests back, unprocessed, until they are released.
    pub fn hold(&self, bookie: BookieId) {
        self.with(bookie, |b| {
            b.held.get_or_insert_default();
        });
    }

    /// How many requests are held back.
    #[must_use]
    pub fn held(&self, bookie: BookieId) -> usize {
        self.with(bookie, |b| b.held.as_ref().map_or(0, VecDeque::len))
    }

    /// Processes the oldest request that is held back; false when nothing is held back.
    pub fn release_one(&self, bookie: BookieId) -> bool {
        let next = self.with(bookie, |b| b.held.as_mut().and_then(VecDeque::pop_front));
        let Some((request, reply)) = next else {
            return false;
        };
        self.serve(bookie, request, reply);
        true
    }

    /// Processes what is held back, and holds back no more.
    pub fn release(&self, bookie: BookieId) {
        while self.release_one(bookie) {}
        let rest = self.with(bookie, |b| b.held.take());
        for (request, reply) in rest.into_iter().flatten() {
            self.serve(bookie, request, reply);
        }
    }

    /// Drops requests that are held back, with `Unreachable` as their answer: the connection broke
    /// before they arrived.
    pub fn disconnect(&self, bookie: BookieId) {
        let dropped = self.with(bookie, |b| b.held.replace(VecDeque::new()));
        for (_, reply) in dropped.into_iter().flatten() {
            reply(Err(BookieError::Unreachable("connection lost".to_owned())));
        }
    }

    /// Processes requests but holds their answers back.
    pub fn hold_replies(&self, bookie: BookieId) {
        self.with(bookie, |b| {
            b.held_replies.get_or_insert_default();
        });
    }

    /// Gives the answers that are held back, newest first if `reversed`, and holds back no more.
    pub fn release_replies(&self, bookie: BookieId, reversed: bool) {
        let held = self.with(bookie, |b| b.held_replies.take());
        let mut held: Vec<HeldReply> = held.into_iter().flatten().collect();
        if reversed {
            held.reverse();
        }
        for (reply, result) in held {
            reply(result);
        }
    }

    /// Lets reads outside of the ordered stream wait for ever.
    pub fn stall_reads(&self, bookie: BookieId, stall: bool) {
        self.with(bookie, |b| b.reads_stall = stall);
    }

    /// Fences a ledger everywhere, as a recovery does.
    pub fn fence(&self, ledger: LedgerId) {
        for bookie in self.bookies.values() {
            bookie.lock().ledgers.entry(ledger).or_default().fenced = true;
        }
    }

    /// Flips a bit of a stored entry.
    pub fn corrupt(&self, bookie: BookieId, ledger: LedgerId, entry: EntryId) {
        self.with(bookie, |b| {
            let stored = b.ledgers.get_mut(&ledger);
            let stored = stored.and_then(|l| l.entries.get_mut(&entry));
            let stored = stored.expect("tests corrupt entries that exist");
            let mut bytes = BytesMut::from(&stored.data[..]);
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            stored.data = bytes.freeze();
        });
    }

    /// Forgets everything, as a bookie does whose disk was replaced.
    pub fn wipe(&self, bookie: BookieId) {
        self.with(bookie, |b| b.ledgers.clear());
    }

    /// Forgets one entry.
    pub fn drop_entry(&self, bookie: BookieId, ledger: LedgerId, entry: EntryId) {
        self.with(bookie, |b| {
            if let Some(ledger) = b.ledgers.get_mut(&ledger) {
                ledger.entries.remove(&entry);
            }
        });
    }

    /// What a bookie holds of an entry, if that is intact.
    #[must_use]
    pub fn intact(&self, bookie: BookieId, ledger: LedgerId, entry: EntryId) -> Option<Bytes> {
        self.with(bookie, |b| {
            let stored = b.ledgers.get(&ledger)?.entries.get(&entry)?;
            stored.is_intact(ledger).then(|| stored.data.clone())
        })
    }

    /// The entries of a ledger on a bookie.
    #[must_use]
    pub fn entries(&self, bookie: BookieId, ledger: LedgerId) -> Vec<EntryId> {
        self.with(bookie, |b| {
            let ledger = b.ledgers.get(&ledger);
            ledger.map_or_else(Vec::new, |l| l.entries.keys().copied().collect())
        })
    }

    /// The ledgers on a bookie that are not deleted.
    #[must_use]
    pub fn ledgers(&self, bookie: BookieId) -> Vec<LedgerId> {
        self.with(bookie, |b| {
            let kept = b.ledgers.iter().filter(|(_, ledger)| !ledger.deleted);
            kept.map(|(id, _)| *id).collect()
        })
    }

    /// What was read so far.
    #[must_use]
    pub fn reads(&self) -> ReadCounts {
        *self.reads.lock()
    }

    fn serve(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        let answer = self.with(bookie, |b| {
            let mode = b.mode;
            if mode == Mode::Silent {
                return None;
            }
            let result = match b.fail_next.pop_front() {
                Some(error) => Err(error),
                None => b.process(mode, request),
            };
            if let Some(held) = &mut b.held_replies {
                held.push_back((reply, result));
                return None;
            }
            Some((reply, result))
        });
        self.changed.notify_waiters();
        if let Some((reply, result)) = answer {
            reply(result);
        }
    }
}

impl TestBookie {
    fn process(&mut self, mode: Mode, request: OrderedRequest) -> BookieResult<OrderedReply> {
        match mode {
            Mode::Broken => return Err(BookieError::Io("broken".to_owned())),
            Mode::Unreachable => return Err(BookieError::Unreachable("cut off".to_owned())),
            Mode::Up | Mode::Overloaded | Mode::ReadOnly | Mode::Silent | Mode::Limbo => {}
        }
        let ledger = self.ledgers.entry(request.ledger).or_default();
        if ledger.deleted {
            return Err(BookieError::Deleted);
        }
        if *ledger.token.get_or_insert(request.token) != request.token {
            return Err(BookieError::Token);
        }
        match request.operation {
            OrderedOperation::Add(add) => {
                if !add.recovery {
                    match mode {
                        _ if ledger.fenced => return Err(BookieError::Fenced),
                        Mode::Overloaded => return Err(BookieError::Overloaded),
                        Mode::ReadOnly => return Err(BookieError::ReadOnly("full".to_owned())),
                        Mode::Limbo => return Err(BookieError::Limbo),
                        _ => {}
                    }
                }
                ledger.add(request.ledger, &add)?;
            }
            OrderedOperation::Fence => {
                ledger.fenced = true;
                if mode == Mode::Limbo {
                    return Err(BookieError::Limbo);
                }
            }
            OrderedOperation::RecoveryRead(entry) => {
                ledger.fenced = true;
                return match ledger.entries.get(&entry) {
                    Some(stored) if !stored.is_intact(request.ledger) => {
                        Err(BookieError::Digest("on the disk".to_owned()))
                    }
                    Some(stored) => Ok(OrderedReply::Entry(stored.clone())),
                    None if mode == Mode::Limbo => Err(BookieError::Limbo),
                    None => Err(BookieError::NoSuchEntry),
                };
            }
            OrderedOperation::WriteLac(lac) => {
                ledger.last_add_confirmed = ledger.last_add_confirmed.max(Some(lac));
            }
            OrderedOperation::Delete => {
                *ledger = StoredLedger {
                    deleted: true,
                    ..StoredLedger::default()
                };
            }
        }
        Ok(OrderedReply::Done {
            last_add_confirmed: ledger.last_add_confirmed,
        })
    }

    fn tail(&self, wait: TailWait) -> BookieResult<TailState> {
        match self.mode {
            Mode::Broken => return Err(BookieError::Io("broken".to_owned())),
            Mode::Unreachable | Mode::Silent => {
                return Err(BookieError::Unreachable("cut off".to_owned()));
            }
            Mode::Up | Mode::Overloaded | Mode::ReadOnly | Mode::Limbo => {}
        }
        let ledger = self
            .ledgers
            .get(&wait.ledger)
            .ok_or(BookieError::NoSuchLedger)?;
        ledger.compare(wait.token)?;
        Ok(TailState {
            last_add_confirmed: ledger.last_add_confirmed,
            fenced: ledger.fenced,
        })
    }

    fn has(&mut self, range: PresenceRange) -> BookieResult<Presence> {
        match self.mode {
            Mode::Broken => return Err(BookieError::Io("broken".to_owned())),
            Mode::Unreachable | Mode::Silent => {
                return Err(BookieError::Unreachable("cut off".to_owned()));
            }
            Mode::Up | Mode::Overloaded | Mode::ReadOnly | Mode::Limbo => {}
        }
        let mut presence = Presence::nothing_until(range.last);
        let Some(ledger) = self.ledgers.get(&range.ledger) else {
            return Ok(presence);
        };
        ledger.compare(range.token)?;
        for (entry, stored) in ledger.entries.range(range.first..=range.last) {
            if presence.bytes >= HAS_BYTES_MAX {
                presence.until = EntryId(entry.0 - 1);
                break;
            }
            presence.bytes += stored.data.len() as u64;
            presence.add(*entry);
        }
        Ok(presence)
    }

    fn read(&mut self, range: ReadRange) -> BookieResult<ReadBatch> {
        match self.mode {
            Mode::Broken => return Err(BookieError::Io("broken".to_owned())),
            Mode::Unreachable | Mode::Silent => {
                return Err(BookieError::Unreachable("cut off".to_owned()));
            }
            Mode::Up | Mode::Overloaded | Mode::ReadOnly | Mode::Limbo => {}
        }
        let absent = match self.mode {
            Mode::Limbo => BookieError::Limbo,
            _ => BookieError::NoSuchEntry,
        };
        let ledger = self.ledgers.get(&range.ledger).ok_or(absent.clone())?;
        ledger.compare(range.token)?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for (id, (entry, stored)) in
            (range.first.0..=range.last.0).zip(ledger.entries.range(range.first..=range.last))
        {
            let over = !entries.is_empty() && bytes + stored.data.len() > range.bytes_max;
            if entry.0 != id || entries.len() >= range.entries_max || over {
                break;
            }
            bytes += stored.data.len();
            let mut stored = stored.clone();
            if let Some(prefix) = range.prefix_bytes {
                // The bookie checks what only it can. A whole entry is left to its reader, as
                // if it had been damaged in flight.
                if !stored.is_intact(range.ledger) {
                    if entries.is_empty() {
                        return Err(BookieError::Digest("on the disk".to_owned()));
                    }
                    break;
                }
                stored.data = stored.data.slice(..prefix.min(stored.data.len()));
            }
            entries.push(stored);
        }
        if entries.is_empty() {
            return Err(absent);
        }
        Ok(ReadBatch {
            entries,
            last_add_confirmed: ledger.last_add_confirmed,
        })
    }
}

impl StoredLedger {
    fn add(&mut self, ledger: LedgerId, add: &AddEntry) -> BookieResult<()> {
        if !add.is_intact(ledger) {
            return Err(BookieError::Digest("at the door".to_owned()));
        }
        let stored = StoredEntry {
            entry: add.entry,
            last_add_confirmed: add.last_add_confirmed,
            ledger_length: add.ledger_length,
            digest: add.digest,
            data: Bytes::from([&add.data.head[..], &add.data.body[..]].concat()),
        };
        if let Some(before) = self.entries.get(&add.entry)
            && *before != stored
            && (before.is_intact(ledger) || !add.recovery)
        {
            return Err(BookieError::Conflict);
        }
        self.last_add_confirmed = self.last_add_confirmed.max(add.last_add_confirmed);
        self.entries.insert(add.entry, stored);
        Ok(())
    }
}

#[async_trait]
impl BookieTransport for TestBookies {
    fn weigh(&self, tenant: TenantKey, weight: u32) {
        self.weights.lock().insert(tenant, weight);
    }

    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        if !self.bookies.contains_key(&bookie) {
            return reply(Err(BookieError::Unreachable("no such bookie".to_owned())));
        }
        let now = self.with(bookie, |b| match &mut b.held {
            Some(held) => {
                held.push_back((request, reply));
                None
            }
            None => Some((request, reply)),
        });
        if let Some((request, reply)) = now {
            self.serve(bookie, request, reply);
        }
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        if !self.bookies.contains_key(&bookie) {
            return Err(BookieError::Unreachable("no such bookie".to_owned()));
        }
        if self.with(bookie, |b| b.reads_stall) {
            return std::future::pending().await;
        }
        let read = self.with(bookie, |b| b.read(range));
        let mut reads = self.reads.lock();
        let batch = read.inspect_err(|_| reads.failed += 1)?;
        reads.requests += 1;
        let count = batch.entries.len() as u64;
        match range.prefix_bytes {
            Some(_) => reads.prefixes += count,
            None => reads.entries += count,
        }
        Ok(batch)
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        if !self.bookies.contains_key(&bookie) {
            return Err(BookieError::Unreachable("no such bookie".to_owned()));
        }
        if self.with(bookie, |b| b.reads_stall) {
            return std::future::pending().await;
        }
        let presence = self.with(bookie, |b| b.has(range))?;
        self.reads.lock().looks += 1;
        Ok(presence)
    }

    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState> {
        if !self.bookies.contains_key(&bookie) {
            return Err(BookieError::Unreachable("no such bookie".to_owned()));
        }
        let news = async {
            loop {
                let changed = self.changed.notified();
                let tail = self.with(bookie, |b| b.tail(wait))?;
                if tail.fenced || tail.last_add_confirmed > wait.above {
                    return Ok(tail);
                }
                changed.await;
            }
        };
        match clock::timeout(wait.limit, news).await {
            Ok(news) => news,
            Err(_) => self.with(bookie, |b| b.tail(wait)),
        }
    }
}
