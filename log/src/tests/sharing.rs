//! Readers behind the tail that are near each other share what one of them fetches.

mod interleaving;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aquifer_ledger::context::LedgerSettings;
use aquifer_ledger::testing::{Mode, TestBookies};
use aquifer_ledger::transport::BookieTransport;
use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::storage::{
    BookieResult, OrderedRequest, Presence, PresenceRange, ReadBatch, ReadRange, ReplyCallback,
    TailState, TailWait,
};
use aquifer_runtime::clock;
use async_trait::async_trait;
use futures::future::join_all;
use futures::poll;
use tokio::sync::Semaphore;

use super::*;
use crate::cache::EntryCache;
use crate::tests::reading::with_backlog;

const ENTRY_BYTES: usize = 4096;
const READ_AHEAD_BYTES: usize = 512 * 1024;

/// Bookies whose reads wait at a gate, and whose bytes are counted as long as a reader has them.
struct Gated {
    bookies: TestBookies,
    gate: Arc<Semaphore>,
    live: Arc<AtomicUsize>,
}

struct Counted {
    data: Bytes,
    live: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.fetch_sub(self.data.len(), Ordering::Relaxed);
    }
}

#[async_trait]
impl BookieTransport for Gated {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        self.bookies.submit(bookie, request, reply);
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        let _passes = self.gate.acquire().await.unwrap();
        let mut batch = self.bookies.read(bookie, range).await?;
        for entry in &mut batch.entries {
            let (data, live) = (entry.data.clone(), Arc::clone(&self.live));
            live.fetch_add(data.len(), Ordering::Relaxed);
            entry.data = Bytes::from_owner(Counted { data, live });
        }
        Ok(batch)
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        self.bookies.has(bookie, range).await
    }

    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState> {
        self.bookies.wait(bookie, wait).await
    }
}

/// A log with a backlog behind a gate, which is open.
struct Fixture {
    world: TestWorld,
    owner: Owner,
    gate: Arc<Semaphore>,
    live: Arc<AtomicUsize>,
    /// Tasks that run for as long as the log does.
    lasting: usize,
}

const OPEN: u32 = 1000;

impl Fixture {
    async fn new(entries: u64) -> Fixture {
        let world = TestWorld::new(1);
        let (gate, live) = (Arc::new(Semaphore::new(OPEN as usize)), Arc::default());
        let transport = Gated {
            bookies: world.bookies.clone(),
            gate: Arc::clone(&gate),
            live: Arc::clone(&live),
        };
        let store = Arc::new(world.store.clone());
        let settings = LedgerSettings {
            // Time stands still while anything runs: what waits at the gate must not fail.
            request_timeout: Duration::from_secs(3600),
            ..TestWorld::settings()
        };
        let mut ctx = world.logs_with(store, Arc::new(transport), settings);
        Arc::get_mut(&mut ctx).unwrap().cache = EntryCache::new(100_000, READ_AHEAD_BYTES);
        let owner = Owner::open(ctx, options(1_000_000)).await;
        for tag in 0..entries {
            let body = vec![1; ENTRY_BYTES].into();
            owner.append_bytes(tag, body).unwrap();
        }
        let entries = usize::try_from(entries).unwrap();
        owner.collected.wait_for(entries).await;
        let lasting = lasting_tasks(&owner).await;
        Fixture {
            world,
            owner,
            gate,
            live,
            lasting,
        }
    }

    async fn quiet(&self) {
        quiet(&self.owner, self.lasting).await;
    }
}

/// Tasks that run while no reader reads.
async fn lasting_tasks(owner: &Owner) -> usize {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    owner.ctx.ledgers.tasks.running()
}

/// Waits until no fetch runs any more.
async fn quiet(owner: &Owner, lasting: usize) {
    while owner.ctx.ledgers.tasks.running() > lasting {
        tokio::task::yield_now().await;
    }
}

/// Reads some entries, one read at a time; returns how many there were.
async fn read_some(log: &TopicLog, at: &mut ReadPoint, entries: usize) -> usize {
    let mut read = 0;
    while read < entries {
        let found = log.read(at, LIMITS).await.unwrap();
        if found.is_empty() {
            break;
        }
        read += found.len();
    }
    read
}

fn nearly(entries: u64) -> u64 {
    entries + entries / 10
}

#[tokio::test(start_paused = true)]
async fn readers_that_start_together_read_each_entry_once() {
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 400).await;
    let readers = (0..10).map(|_| read_from(&owner.log, Index(0)));
    for read in join_all(readers).await {
        assert_eq!(read.len(), 400);
    }
    let reads = world.bookies.reads();
    assert!(reads.entries <= nearly(400), "{reads:?}");
    // One of them looked for the place, and one fetched each range.
    assert!(reads.prefixes < 40 && reads.requests < 90, "{reads:?}");
    assert_eq!(owner.ctx.cache.read_ahead().used_bytes(), 0, "given back");
}

#[tokio::test(start_paused = true)]
async fn readers_in_turns_read_each_entry_once_and_come_back_to_the_tail() {
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 400).await;
    let mut readers: Vec<ReadPoint> = (0..10).map(|_| Index(0).into()).collect();
    while readers.iter().any(|at| at.index < owner.log.end()) {
        for at in &mut readers {
            read_some(&owner.log, at, 1).await;
        }
    }
    let reads = world.bookies.reads();
    assert!(reads.entries <= nearly(400), "{reads:?}");
    owner.append_bytes(400, vec![2; 100].into()).unwrap();
    owner.collected.wait_for(401).await;
    for at in &mut readers {
        let found = owner.log.read_cached(at, LIMITS).expect("in the tail");
        assert_eq!(found.len(), 1);
    }
    assert_eq!(world.bookies.reads(), reads, "the tail is in memory");
}

#[tokio::test(start_paused = true)]
async fn a_reader_ahead_leaves_its_ranges_for_those_close_behind() {
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 600).await;
    let (log, read_ahead) = (&owner.log, owner.ctx.cache.read_ahead());
    let (mut ahead, mut behind) = (ReadPoint::from(Index(0)), ReadPoint::from(Index(0)));
    read_some(log, &mut behind, 1).await;
    // Far more than a reader has ahead itself.
    read_some(log, &mut ahead, 55).await;
    while behind.index < log.end() {
        read_some(log, &mut ahead, 10).await;
        read_some(log, &mut behind, 10).await;
        assert!(read_ahead.used_bytes() <= READ_AHEAD_BYTES);
    }
    let reads = world.bookies.reads();
    assert!(reads.entries <= nearly(600), "{reads:?}");
    assert_eq!(
        read_ahead.used_bytes(),
        0,
        "nothing is kept without a reader"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_left_for_others_goes_with_them_and_gives_way_to_fetches() {
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 600).await;
    let lasting = lasting_tasks(&owner).await;
    let (log, read_ahead) = (&owner.log, owner.ctx.cache.read_ahead());
    let (mut ahead, mut behind) = (ReadPoint::from(Index(0)), ReadPoint::from(Index(0)));
    read_some(log, &mut behind, 1).await;
    read_some(log, &mut ahead, 66).await;
    quiet(&owner, lasting).await;
    let own = 4 * 72 * 1024;
    assert!(read_ahead.used_bytes() > own, "it keeps some");
    // A budget that others have taken meanwhile lets the kept ranges go first.
    let free = READ_AHEAD_BYTES - read_ahead.used_bytes();
    let taken = owner.ctx.cache.take_read_ahead(free + 32 * 1024);
    assert!(taken.is_some(), "a kept range has made room");
    drop(taken);
    drop(behind);
    assert!(read_ahead.used_bytes() <= own, "no reader is behind");
    drop(ahead);
    assert_eq!(read_ahead.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn readers_at_far_places_do_not_disturb_each_other() {
    let starts = [0, 800, 1400];
    let mut alone = 0;
    for start in starts {
        let world = TestWorld::new(1);
        let owner = with_backlog(&world, 900).await;
        let mut at = ReadPoint::from(Index(start));
        assert_eq!(read_some(&owner.log, &mut at, 150).await, 150);
        drop(at);
        alone += world.bookies.reads().requests;
    }
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 900).await;
    let read = async |start| {
        let mut at = ReadPoint::from(Index(start));
        read_some(&owner.log, &mut at, 150).await
    };
    assert_eq!(join_all(starts.map(read)).await, [150; 3]);
    let together = world.bookies.reads().requests;
    assert!(together <= nearly(alone), "{together}, alone {alone}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_leaves_its_fetch_to_those_that_joined() {
    let fixture = Fixture::new(100).await;
    let log = &fixture.owner.log;
    let closed = fixture.gate.acquire_many(OPEN).await.unwrap();
    let (mut first, mut second) = (ReadPoint::from(Index(0)), ReadPoint::from(Index(0)));
    let mut second_reads = Box::pin(log.read(&mut second, LIMITS));
    {
        let mut first_reads = Box::pin(log.read(&mut first, LIMITS));
        assert!(poll!(&mut first_reads).is_pending());
        assert!(poll!(&mut second_reads).is_pending());
    }
    drop(first);
    drop(closed);
    let found = second_reads.await.unwrap();
    assert_eq!(found[0].head.base_index, Index(0));
    fixture.quiet().await;
    let reads = fixture.world.bookies.reads();
    // The first read of a jump brings what it asked for, 3 entries, and two ranges follow of 15.
    assert!(reads.entries <= 3 + 2 * 15, "fetched once: {reads:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_is_told_to_all_that_wait_and_tried_again() {
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 200).await;
    let mut readers: Vec<ReadPoint> = (0..5).map(|_| Index(0).into()).collect();
    let log = &owner.log;
    world.bookies.set_all(Mode::Unreachable);
    for _ in 0..2 {
        let before = world.bookies.reads().failed;
        let reads = readers.iter_mut().map(|at| log.read(at, LIMITS));
        for read in join_all(reads).await {
            let error = read.unwrap_err();
            assert!(matches!(error, LogError::Unavailable(_)), "{error:?}");
        }
        let failed = world.bookies.reads().failed - before;
        assert!((1..=2).contains(&failed), "asked once for all: {failed}");
    }
    world.bookies.set_all(Mode::Up);
    for at in &mut readers {
        assert!(read_some(log, at, 20).await >= 20);
    }
    // What was fetched ahead meanwhile failed, and is fetched again when it is needed.
    world.bookies.set_all(Mode::Unreachable);
    let reads = readers.iter_mut().map(async |at| {
        loop {
            if let Err(error) = log.read(at, LIMITS).await {
                return error;
            }
        }
    });
    for error in join_all(reads).await {
        assert!(matches!(error, LogError::Unavailable(_)), "{error:?}");
    }
    world.bookies.set_all(Mode::Up);
    while readers.iter().any(|at| at.index < log.end()) {
        for at in &mut readers {
            read_some(log, at, 20).await;
        }
    }
    // The first of each jump is too small to be kept for others.
    let reads = world.bookies.reads();
    assert!(reads.entries <= nearly(200) + 5 * 3, "{reads:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_whose_task_is_ended_is_told_to_those_that_wait() {
    let fixture = Fixture::new(100).await;
    let closed = fixture.gate.acquire_many(OPEN).await.unwrap();
    let mut readers: Vec<ReadPoint> = (0..3).map(|_| Index(0).into()).collect();
    let log = &fixture.owner.log;
    let reads = readers.iter_mut().map(|at| log.read(at, LIMITS));
    let reading = async {
        let patience = Duration::from_secs(60);
        let reads = clock::timeout(patience, join_all(reads)).await;
        for read in reads.expect("they wait for ever") {
            let error = read.unwrap_err();
            assert!(matches!(error, LogError::Unavailable(_)), "{error:?}");
        }
    };
    let ending = fixture.owner.ctx.ledgers.tasks.drain(Duration::ZERO);
    let ((), ended) = tokio::join!(reading, ending);
    assert!(ended > 0);
    drop(closed);
}

#[tokio::test(start_paused = true)]
async fn readers_that_stall_together_hold_what_one_would() {
    let fixture = Fixture::new(300).await;
    let log = &fixture.owner.log;
    let mut readers: Vec<ReadPoint> = (0..20).map(|_| Index(0).into()).collect();
    for at in &mut readers {
        read_some(log, at, 30).await;
    }
    fixture.quiet().await;
    let live = fixture.live.load(Ordering::Relaxed);
    assert!(live > 0 && live <= 4 * 72 * 1024, "{live}");
    drop(readers);
    assert_eq!(fixture.live.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn readers_that_stall_at_far_places_stay_within_the_budget() {
    let fixture = Fixture::new(1500).await;
    let log = &fixture.owner.log;
    let read_ahead = fixture.owner.ctx.cache.read_ahead();
    let mut readers = Vec::new();
    for reader in 0..30 {
        let mut at = ReadPoint::from(Index(reader * 90));
        for _ in 0..3 {
            log.read(&mut at, LIMITS).await.unwrap();
        }
        readers.push(at);
        assert!(read_ahead.used_bytes() <= READ_AHEAD_BYTES);
    }
    fixture.quiet().await;
    // Besides the budget each holds at most the last that it asked for itself.
    let asked = readers.len() * (LIMITS.bytes_max + ENTRY_BYTES);
    let live = fixture.live.load(Ordering::Relaxed);
    assert!(live <= READ_AHEAD_BYTES + asked, "{live}");
    drop(readers);
    assert_eq!(fixture.live.load(Ordering::Relaxed), 0);
    assert_eq!(read_ahead.used_bytes(), 0);
}

/// A fetch that begins with damage is joined by a reader that wants the entry behind it.
#[tokio::test(start_paused = true)]
async fn damage_where_one_reader_begins_is_none_to_those_that_joined_it() {
    let fixture = Fixture::new(100).await;
    let log = &fixture.owner.log;
    let one = ReadLimits {
        entries_max: 1,
        ..LIMITS
    };
    let (mut first, mut second) = (ReadPoint::from(Index(0)), ReadPoint::from(Index(0)));
    for _ in 0..40 {
        log.read(&mut first, one).await.unwrap();
        log.read(&mut second, one).await.unwrap();
    }
    log.read(&mut second, one).await.unwrap();
    let (damaged, next) = (first.index, second.index);
    first.release();
    second.release();
    fixture.quiet().await;
    fixture.owner.ctx.cache.shrink_tail(1000);
    let ledger = log.stats().ledgers[0].ledger;
    let bookie = fixture.world.bookies.ids()[0];
    fixture.world.bookies.corrupt(bookie, ledger, EntryId(40));
    let closed = fixture.gate.acquire_many(OPEN).await.unwrap();
    let mut first_reads = Box::pin(log.read_or_skip(&mut first, LIMITS));
    let mut second_reads = Box::pin(log.read_or_skip(&mut second, LIMITS));
    assert!(poll!(&mut first_reads).is_pending());
    assert!(poll!(&mut second_reads).is_pending());
    drop(closed);
    match first_reads.await.unwrap() {
        Found::Damaged(damage, _) => {
            assert_eq!((damage.from, damage.end), (damaged, next));
            assert_eq!((damage.ledger, damage.entry), (ledger, EntryId(40)));
        }
        Found::Entries(entries) => panic!("damaged ones: {entries:?}"),
    }
    match second_reads.await.unwrap() {
        Found::Entries(entries) => assert_eq!(entries[0].head.base_index, next),
        Found::Damaged(damage, reason) => panic!("{damage:?} is whole: {reason}"),
    }
    // It goes on behind what it has passed over.
    let found = log.read(&mut first, LIMITS).await.unwrap();
    assert_eq!(found[0].head.base_index, next);
}
