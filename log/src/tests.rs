//! The topic log against bookies and metadata in memory.

mod clocks;
mod crash;
mod ensembles;
mod faults;
mod full;
mod offloading;
mod paging;
mod reading;
mod records;
mod sharing;
mod threads;

use std::sync::Arc;

use aquifer_ledger::testing::TestWorld;
use aquifer_metadata::store::{Expect, Guard, MetadataStore};
use aquifer_metadata::{keys, record};
use aquifer_model::entry::EntryFlags;
use aquifer_model::extensions::Extensions;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{Index, LedgerId, OwnerEpoch};
use aquifer_model::place::Place;
use aquifer_model::policy::EffectivePolicies;
use aquifer_model::policy::{Retention, Rollover};
use aquifer_model::quorum::Quorum;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::context::LogContext;
use crate::error::LogError;
use crate::testing::TestLogs;
use crate::*;

type Outcomes = Vec<(u64, Result<Appended, LogError>)>;

/// Collects outcomes in the order of their arrival.
#[derive(Default)]
pub(super) struct Sink {
    outcomes: Mutex<Outcomes>,
    arrived: Notify,
}

impl AppendSink for Sink {
    fn appended(&self, tag: u64, outcome: Result<Appended, LogError>) {
        self.outcomes.lock().push((tag, outcome));
        self.arrived.notify_one();
    }
}

impl Sink {
    pub(super) fn so_far(&self) -> Outcomes {
        self.outcomes.lock().clone()
    }

    pub(super) async fn wait_for(&self, count: usize) -> Outcomes {
        loop {
            let outcomes = self.so_far();
            if outcomes.len() >= count {
                return outcomes;
            }
            self.arrived.notified().await;
        }
    }
}

/// A process with a topic.
pub(super) struct Owner {
    pub(super) ctx: Arc<LogContext>,
    pub(super) cell: Arc<TopicRecordCell>,
    pub(super) log: TopicLog,
    pub(super) collected: Arc<Sink>,
    pub(super) sink: Arc<dyn AppendSink>,
}

pub(super) fn topic() -> TopicName {
    "public/default/orders".parse().unwrap()
}

pub(super) fn options(entries: u64) -> LogOptions {
    LogOptions {
        quorum: Quorum::SINGLE,
        rollover: Rollover {
            entries,
            ..Rollover::default()
        },
        owner_epoch: OwnerEpoch(1),
    }
}

impl Owner {
    pub(super) async fn open(ctx: Arc<LogContext>, options: LogOptions) -> Owner {
        Owner::try_open(ctx, options, Vec::new()).await.unwrap()
    }

    pub(super) async fn try_open(
        ctx: Arc<LogContext>,
        options: LogOptions,
        guards: Vec<Guard>,
    ) -> Result<Owner, LogError> {
        let loaded = TopicRecordCell::load(ctx.clone(), &topic(), guards.clone()).await?;
        let cell = match loaded {
            Some(cell) => cell,
            None => TopicRecordCell::create(ctx.clone(), &topic(), guards).await?,
        };
        let kind = LogKind::Messages;
        let log = TopicLog::open(ctx.clone(), cell.clone(), kind, options).await?;
        let collected = Arc::new(Sink::default());
        Ok(Owner {
            ctx,
            cell,
            log,
            sink: collected.clone(),
            collected,
        })
    }

    pub(super) fn append(&self, tag: u64) -> Result<Index, LogError> {
        self.append_bytes(tag, body(tag))
    }

    pub(super) fn append_bytes(&self, tag: u64, body: Bytes) -> Result<Index, LogError> {
        let append = Append {
            format: FORMAT_NATIVE,
            message_count: count(tag),
            body,
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
            tag,
            trace: None,
        };
        self.log.append(append, &self.sink)
    }

    /// Appends and waits until all are acknowledged.
    pub(super) async fn append_all(&self, tags: std::ops::Range<u64>) {
        let before = self.collected.so_far().len();
        let expected = before + usize::try_from(tags.end - tags.start).unwrap();
        for tag in tags {
            self.append(tag).unwrap();
        }
        for (tag, outcome) in &self.collected.wait_for(expected).await[before..] {
            assert!(outcome.is_ok(), "{tag}: {outcome:?}");
        }
    }

    pub(super) async fn read_all(&self) -> Vec<LogEntry> {
        read_from(&self.log, self.log.first()).await
    }
}

/// Entries have one to three messages.
pub(super) fn count(tag: u64) -> u32 {
    u32::try_from(tag % 3).unwrap() + 1
}

pub(super) fn body(tag: u64) -> Bytes {
    format!("body of {tag}").into()
}

pub(super) const LIMITS: ReadLimits = ReadLimits {
    bytes_max: 16 * 1024,
    entries_max: 100,
};

/// Reads to the end, and checks that what comes is dense.
pub(super) async fn read_from(log: &TopicLog, from: Index) -> Vec<LogEntry> {
    let mut at = ReadPoint::from(from);
    let mut all: Vec<LogEntry> = Vec::new();
    loop {
        let found = log.read(&mut at, LIMITS).await.unwrap();
        if found.is_empty() {
            assert_eq!(at.index, log.end());
            return all;
        }
        for entry in found {
            let expected = all.last().map(|last| last.head.end_index());
            assert!(expected.is_none_or(|index| index == entry.head.base_index));
            all.push(entry);
        }
    }
}

pub(super) fn bodies(entries: &[LogEntry]) -> Vec<Bytes> {
    entries.iter().map(|entry| entry.body.clone()).collect()
}

pub(super) fn expected(tags: std::ops::Range<u64>) -> Vec<Bytes> {
    tags.map(body).collect()
}

pub(super) const KEEP_NOTHING: Retention = Retention {
    time_ms: Some(0),
    size_bytes: Some(0),
};

#[tokio::test(start_paused = true)]
async fn appends_are_acknowledged_in_order_with_dense_indexes_across_ledgers() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(3)).await;
    let mut end = Index(0);
    for tag in 0..20 {
        assert_eq!(owner.append(tag), Ok(end), "the index is known at once");
        end = end.plus(u64::from(count(tag)));
    }
    let outcomes = owner.collected.wait_for(20).await;
    let mut next = Index(0);
    for (expected_tag, (tag, outcome)) in (0..20).zip(outcomes) {
        let appended = outcome.unwrap();
        assert_eq!((tag, appended.base_index), (expected_tag, next));
        next = next.plus(u64::from(count(tag)));
    }
    assert_eq!(owner.log.end(), end);
    assert_eq!(bodies(&owner.read_all().await), expected(0..20));

    // The same from storage, by another process.
    owner.log.close().await.unwrap();
    assert_eq!(owner.append(99), Err(LogError::Closed));
    let heir = Owner::open(world.logs(), options(3)).await;
    assert_eq!(bodies(&heir.read_all().await), expected(0..20));
    let stats = heir.log.stats();
    assert_eq!((stats.first, stats.end, stats.entries), (Index(0), end, 20));
    assert!(stats.ledgers.len() > 1 && stats.ledgers.iter().all(|ledger| !ledger.open));
    assert_eq!(heir.append(20), Ok(end));
    let record = heir.cell.record();
    assert!(record.segments.iter().all(|s| s.sealed && s.entries > 0));
}

#[tokio::test(start_paused = true)]
async fn an_idle_topic_writes_nothing() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(3)).await;
    let commits = world.store.commits();
    assert_eq!(owner.log.roll().await, Ok(()));
    assert_eq!(owner.log.close().await, Ok(()));
    let heir = Owner::open(world.logs(), options(3)).await;
    assert_eq!(heir.log.trim(Index(0), KEEP_NOTHING).await, Ok(Index(0)));
    assert_eq!(world.store.commits(), commits);
    assert!(world.store.keys("l/").is_empty());
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_never_told_inside_append() {
    /// Appends while it holds a lock that the sink takes too, as an actor might.
    struct Locking(Mutex<u64>, Notify);
    impl AppendSink for Locking {
        fn appended(&self, _tag: u64, outcome: Result<Appended, LogError>) {
            let mut seen = self.0.try_lock().expect("called from inside append");
            *seen += u64::from(outcome.is_ok());
            self.1.notify_one();
        }
    }
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(5)).await;
    let locking = Arc::new(Locking(Mutex::new(0), Notify::new()));
    let sink: Arc<dyn AppendSink> = locking.clone();
    for tag in 0..20 {
        let held = locking.0.lock();
        let append = Append {
            format: FORMAT_NATIVE,
            message_count: 1,
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
            body: body(tag),
            tag,
            trace: None,
        };
        owner.log.append(append, &sink).unwrap();
        drop(held);
        if tag % 2 == 0 {
            tokio::task::yield_now().await;
        }
    }
    while *locking.0.lock() < 20 {
        locking.1.notified().await;
    }
}

#[tokio::test(start_paused = true)]
async fn trim_deletes_whole_sealed_segments_beyond_both_bounds() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), options(2)).await;
    for tags in [0..2, 2..4, 4..6, 6..7] {
        owner.append_all(tags).await;
    }
    let ledgers: Vec<LedgerId> = owner.log.stats().ledgers.iter().map(|l| l.ledger).collect();
    assert_eq!(ledgers.len(), 4);
    let ends: Vec<Index> = owner
        .log
        .stats()
        .ledgers
        .iter()
        .skip(1)
        .map(|l| l.first_index)
        .collect();

    let end = owner.log.end();
    let week = Retention::default();
    assert_eq!(owner.log.trim(end, week).await, Ok(Index(0)), "too young");
    let for_ever = Retention {
        time_ms: None,
        size_bytes: Some(0),
    };
    assert_eq!(owner.log.trim(end, for_ever).await, Ok(Index(0)));
    let bytes = owner.log.stats().bytes;
    let large = Retention {
        time_ms: Some(0),
        size_bytes: Some(bytes),
    };
    assert_eq!(owner.log.trim(end, large).await, Ok(Index(0)), "too small");
    let within_first = Index(ends[0].0 - 1);
    let trimmed = owner.log.trim(within_first, KEEP_NOTHING).await;
    assert_eq!(trimmed, Ok(Index(0)), "still needed");

    let trimmed = owner.log.trim(ends[1], KEEP_NOTHING).await;
    assert_eq!(trimmed, Ok(ends[1]), "two whole segments");
    assert_eq!(bodies(&owner.read_all().await), expected(4..7));
    assert_eq!(owner.cell.record().trimmed_index, ends[1].0);
    let mut old = ReadPoint::from(Index(0));
    let found = owner.log.read(&mut old, LIMITS).await.unwrap();
    assert_eq!(found[0].head.base_index, ends[1], "moves up to the first");

    // The current one goes too once it is old enough to be sealed.
    clock.advance(std::time::Duration::from_millis(Rollover::default().age_ms));
    assert_eq!(owner.log.trim(end, KEEP_NOTHING).await, Ok(end));
    assert_eq!(owner.log.stats().ledgers, []);
    owner
        .ctx
        .ledgers
        .tasks
        .drain(std::time::Duration::from_secs(5))
        .await;
    assert_eq!(world.bookies.ledgers(world.bookies.ids()[0]), []);
    assert!(world.store.keys("l/").is_empty() && world.store.keys("g/").is_empty());

    // The end outlives its ledgers.
    let heir = Owner::open(world.logs(), options(2)).await;
    assert_eq!((heir.log.first(), heir.log.end()), (end, end));
    assert_eq!(heir.append(7), Ok(end));
}

/// A trim and a rollover of one owner meet: neither takes the other for a rival (I4).
#[tokio::test(start_paused = true)]
async fn a_rollover_goes_on_when_a_trim_was_faster() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(2)).await;
    for tags in [0..2, 2..4] {
        owner.append_all(tags).await;
    }
    let first_end = owner.log.stats().ledgers[1].first_index;
    let busy = owner.cell.one_change.acquire().await.unwrap();
    let log = owner.log.clone();
    let trim = async move { log.trim(first_end, KEEP_NOTHING).await };
    let trim = owner.ctx.ledgers.tasks.spawn("trim", trim);
    let others_run = || async {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    };
    others_run().await;
    owner.append(4).unwrap();
    others_run().await;
    drop(busy);
    assert_eq!(trim.await.unwrap(), Ok(first_end));
    let (_, outcome) = owner.collected.wait_for(5).await.pop().unwrap();
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(bodies(&owner.read_all().await), expected(2..5));
}

#[tokio::test(start_paused = true)]
async fn the_cursor_log_keeps_its_end_when_everything_is_trimmed() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(2)).await;
    let open = async |ctx: Arc<LogContext>| {
        let cell = TopicRecordCell::load(ctx.clone(), &topic(), Vec::new())
            .await
            .unwrap()
            .unwrap();
        TopicLog::open(ctx, cell, LogKind::Cursors, options(2))
            .await
            .unwrap()
    };
    let log = open(owner.ctx.clone()).await;
    for round in 1..=3 {
        let append = Append {
            format: FORMAT_NATIVE,
            message_count: 1,
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
            body: body(round),
            tag: round,
            trace: None,
        };
        log.append(append, &owner.sink).unwrap();
        owner
            .collected
            .wait_for(usize::try_from(round).unwrap())
            .await;
        log.roll().await.unwrap();
        log.trim(log.end(), KEEP_NOTHING).await.unwrap();
        assert_eq!(log.stats().ledgers.len(), 1);
    }
    drop(log);
    assert_eq!(open(world.logs()).await.end(), Index(3));
    assert_eq!(owner.log.end(), Index(0), "the other log is another log");
}

#[tokio::test(start_paused = true)]
async fn deleting_a_topic_leaves_nothing() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(1)).await;
    owner.append_all(0..5).await;
    owner.log.close().await.unwrap();
    owner.cell.delete().await.unwrap();
    owner
        .ctx
        .ledgers
        .tasks
        .drain(std::time::Duration::from_secs(5))
        .await;
    assert!(world.store.keys("t/").is_empty());
    assert!(world.store.keys("l/").is_empty() && world.store.keys("g/").is_empty());
    assert_eq!(world.bookies.ledgers(world.bookies.ids()[0]), []);
    let again = Owner::open(world.logs(), options(1)).await;
    assert_ne!(again.cell.incarnation(), owner.cell.incarnation());
    assert_eq!(again.append(0), Ok(Index(0)));
}

/// Makes the guard of an owner with this epoch, as the broker would.
pub(super) async fn take_over(world: &TestWorld, epoch: u64) -> Guard {
    let range = keys::BundleRange {
        first: 0,
        last: u32::MAX,
    };
    let key = keys::bundle_owner(topic().namespace(), range);
    let value = record::encode(v1::BundleOwnerRecord {
        epoch,
        ..Default::default()
    });
    let partition = keys::partition_of_topic(&topic());
    let put = world.store.put(&partition, &key, value, Expect::Any);
    Guard {
        expect: Expect::Revision(put.await.unwrap()),
        key,
    }
}

/// H8: a rollover that is due while metadata is away stops no append.
#[tokio::test(start_paused = true)]
async fn appends_go_on_when_a_rollover_is_due_and_metadata_is_away() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), options(5)).await;
    owner.append_all(0..5).await;
    world.store.set_silent(true);
    for tag in 5..20 {
        // Time is not real here: it ends when all tasks wait.
        let patience = std::time::Duration::from_secs(60);
        let append = owner.append_all(tag..tag + 1);
        let appended = aquifer_runtime::clock::timeout(patience, append).await;
        assert!(appended.is_ok(), "append {tag} waits for metadata");
        clock.advance(std::time::Duration::from_secs(10));
    }
    assert_eq!(owner.log.stats().ledgers.len(), 1);
    world.store.set_silent(false);
    for tag in 20..24 {
        owner.append_all(tag..tag + 1).await;
        clock.advance(std::time::Duration::from_secs(10));
        tokio::task::yield_now().await;
    }
    assert!(owner.log.stats().ledgers.len() > 1, "it rolls again");
    assert_eq!(bodies(&owner.read_all().await), expected(0..24));
}

/// I5: positions rise along a topic, those included that were trimmed.
#[tokio::test]
async fn ledger_ids_rise_above_those_that_were_trimmed() {
    let world = TestWorld::new(1);
    // Its range of ids is the lowest.
    let low = world.logs();
    let ids = &low.ledgers.shared.ledger_ids;
    ids.next(&world.store, LedgerId(0)).await.unwrap();
    let high = Owner::open(world.logs(), options(5)).await;
    high.append_all(0..5).await;
    let before = high.log.stats().ledgers[0].ledger;
    high.log.roll().await.unwrap();
    high.log.trim(high.log.end(), KEEP_NOTHING).await.unwrap();
    high.log.close().await.unwrap();
    assert_eq!(high.cell.record().segments, []);
    let heir = Owner::open(low, options(5)).await;
    heir.append_all(5..6).await;
    let after = heir.log.stats().ledgers[0].ledger;
    assert!(after > before, "{after:?} after {before:?}");
}

/// A former owner that seals may trim at the same time: the new one begins again by what is there.
#[tokio::test]
async fn a_record_that_names_what_was_trimmed_is_read_anew() {
    let world = TestWorld::new(1);
    let old = Owner::open(world.logs(), options(2)).await;
    for tags in [0..2, 2..4, 4..6] {
        old.append_all(tags).await;
    }
    let ctx = world.logs();
    let cell = TopicRecordCell::load(ctx.clone(), &topic(), Vec::new()).await;
    let cell = cell.unwrap().unwrap();
    let second = old.log.stats().ledgers[1].first_index;
    assert_eq!(old.log.trim(second, KEEP_NOTHING).await, Ok(second));
    old.log.close().await.unwrap();
    old.ctx
        .ledgers
        .tasks
        .drain(std::time::Duration::from_secs(5))
        .await;

    let open = || TopicLog::open(ctx.clone(), cell.clone(), LogKind::Messages, options(2));
    let log = open().await.unwrap();
    let mut at = ReadPoint::from(Index(0));
    let read = log.read(&mut at, LIMITS).await;
    assert!(matches!(read, Err(LogError::Damaged(_))), "{read:?}");
    assert_eq!(cell.refresh().await, Ok(true));
    let log = open().await.unwrap();
    assert_eq!(bodies(&read_from(&log, log.first()).await), expected(2..6));
    assert_eq!(cell.refresh().await, Ok(false));
}
