//! Segments that the topic's record has no room for stand in pages: none is lost or listed twice,
//! whatever crashes, and a rollover writes a bounded number of bytes.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_ledger::deletion::sweep_intents;
use aquifer_ledger::testing::{Blow, Fuse, MemoryStore};
use aquifer_metadata::error::{MetadataError, MetadataResult};
use aquifer_metadata::intercept::Intercept;
use aquifer_metadata::scan;
use aquifer_metadata::store::{Operation, Revision, Transaction, Until};
use async_trait::async_trait;

use super::*;
use crate::context::LogSettings;
use crate::pages::{Paging, assemble};
use crate::testing::{over, settings};

fn paging(kept: usize, page: usize) -> LogSettings {
    LogSettings {
        paging: Paging { kept, page },
        ..settings()
    }
}

fn pages_of(world: &TestWorld) -> Vec<String> {
    world.store.keys(&keys::segment_pages_prefix(&topic()))
}

async fn stored_record(world: &TestWorld) -> Option<v1::TopicRecord> {
    let stored = world.store.get(&keys::topic(&topic())).await.unwrap()?;
    Some(record::decode(&stored).unwrap())
}

/// The segments of the topic as metadata has them. Checks that every ledger is in one place: listed
/// once, or being deleted.
async fn check_metadata(world: &TestWorld, what: &str) -> Vec<v1::SegmentRecord> {
    let prefix = keys::segment_pages_prefix(&topic());
    let (pages, _) = scan::all(&world.store, &prefix, 100_000).await.unwrap();
    let all = match stored_record(world).await {
        Some(record) => {
            let all = assemble(&topic(), &record, &pages);
            all.unwrap_or_else(|error| panic!("{what}: {error}"))
        }
        None => {
            assert!(pages.is_empty(), "{what}: pages without a topic: {pages:?}");
            Vec::new()
        }
    };
    let number = |key: &String| key.rsplit('/').next().unwrap().parse::<u64>().unwrap();
    let listed: BTreeSet<u64> = all.iter().map(|segment| segment.ledger_id).collect();
    assert_eq!(listed.len(), all.len(), "{what}: a ledger is listed twice");
    let going: BTreeSet<u64> = world.store.keys("g/").iter().map(number).collect();
    let there: BTreeSet<u64> = world.store.keys("l/").iter().map(number).collect();
    assert!(listed.is_disjoint(&going), "{what}: {listed:?} {going:?}");
    for id in &there {
        let has_place = listed.contains(id) || going.contains(id);
        assert!(has_place, "{what}: ledger {id} is nowhere");
    }
    assert!(listed.is_subset(&there), "{what}: {listed:?} {there:?}");
    all
}

#[tokio::test(start_paused = true)]
async fn old_segments_move_into_pages_and_are_read_and_trimmed_there() {
    let world = TestWorld::new(1);
    let owner = Owner::open(over(world.process(), paging(2, 3)), options(1)).await;
    let mut most = 0;
    for tag in 0..20 {
        owner.append_all(tag..tag + 1).await;
        most = most.max(owner.cell.record().segments.len());
    }
    assert_eq!(most, 5);
    assert_eq!(check_metadata(&world, "appended").await.len(), 20);
    assert!(pages_of(&world).len() >= 5, "{:?}", pages_of(&world));
    assert_eq!(bodies(&owner.read_all().await), expected(0..20));
    owner.log.close().await.unwrap();

    let heir = Owner::open(over(world.process(), paging(2, 3)), options(1)).await;
    assert_eq!(bodies(&heir.read_all().await), expected(0..20));
    let ledgers = heir.log.stats().ledgers;
    assert_eq!(ledgers.len(), 20);
    // One after the other, over the edges of all pages.
    for (trimmed, ledger) in ledgers.iter().enumerate().skip(1) {
        let first = heir.log.trim(ledger.first_index, KEEP_NOTHING).await;
        assert_eq!(first, Ok(ledger.first_index));
        let left = check_metadata(&world, "trimmed").await;
        assert_eq!(left.len(), 20 - trimmed);
        let record = stored_record(&world).await.unwrap();
        assert_eq!(record.trimmed_index, ledger.first_index.0);
        assert_eq!(record.last_ledger_id, ledgers[trimmed - 1].ledger.0);
    }
    assert_eq!(pages_of(&world), Vec::<String>::new());
    heir.append_all(20..30).await;
    let last = heir.log.stats().ledgers[7].first_index;
    // Several pages and the record at once.
    heir.append_all(30..60).await;
    heir.log.trim(last, KEEP_NOTHING).await.unwrap();
    check_metadata(&world, "trimmed at once").await;
    assert_eq!(heir.log.first(), last);
    heir.log.roll().await.unwrap();
    let end = heir.log.end();
    heir.log.trim(end, KEEP_NOTHING).await.unwrap();
    assert_eq!(check_metadata(&world, "empty").await, []);
    drop(heir);
    let last = Owner::open(world.logs(), options(1)).await;
    assert_eq!((last.log.first(), last.log.end()), (end, end));
}

/// A store that notes how large the changes of topics are.
#[derive(Default)]
struct Measured {
    inner: MemoryStore,
    largest: AtomicU64,
    total: AtomicU64,
}

#[async_trait]
impl Intercept for Measured {
    fn inner(&self) -> &dyn MetadataStore {
        &self.inner
    }

    async fn on_commit(&self, transaction: Transaction, until: Until) -> MetadataResult<Revision> {
        let of_topics = |operation: &Operation| match operation {
            Operation::Put { key, value, .. } if key.starts_with("t/") => value.len() as u64,
            _ => 0,
        };
        let bytes = transaction.operations.iter().map(of_topics).sum();
        self.largest.fetch_max(bytes, Ordering::Relaxed);
        self.total.fetch_add(bytes, Ordering::Relaxed);
        self.inner.commit_until(transaction, until).await
    }
}

/// Counts outcomes.
#[derive(Default)]
struct Counted(AtomicU64, Notify);

impl AppendSink for Counted {
    fn appended(&self, _tag: u64, outcome: Result<Appended, LogError>) {
        outcome.unwrap();
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.notify_one();
    }
}

/// Once a rollover wrote the whole list: 12,000 ledgers of one topic filled etcd.
#[tokio::test(start_paused = true)]
async fn a_rollover_with_5000_segments_writes_as_little_as_the_first() {
    const SEGMENTS: u64 = 5_000;
    let world = TestWorld::new(1);
    let store = Arc::new(Measured {
        inner: world.store.clone(),
        ..Measured::default()
    });
    let transport = Arc::new(world.bookies.clone());
    let process = world.process_with(store.clone(), transport, TestWorld::settings());
    let mut owner = Owner::open(over(process, LogSettings::default()), options(1)).await;
    let counted = Arc::new(Counted::default());
    owner.sink = counted.clone();
    for tag in 0..SEGMENTS {
        owner.append(tag).unwrap();
        while counted.0.load(Ordering::Relaxed) < tag.saturating_sub(100) {
            counted.1.notified().await;
        }
    }
    while counted.0.load(Ordering::Relaxed) < SEGMENTS {
        counted.1.notified().await;
    }
    assert_eq!(owner.log.stats().ledgers.len() as u64, SEGMENTS);
    let (largest, total) = (
        store.largest.load(Ordering::Relaxed),
        store.total.load(Ordering::Relaxed),
    );
    // 80 segments in the record and 48 in a page, of some 40 bytes each here.
    assert!(largest < 8_000, "{largest} bytes at once");
    assert!(total < SEGMENTS * 4_000, "{total} bytes in all");
    assert_eq!(check_metadata(&world, "long").await.len() as u64, SEGMENTS);
}

/// Nothing of a topic stays, whatever step its deletion ends at for the first time.
#[tokio::test(start_paused = true)]
async fn a_deletion_leaves_no_key_whatever_step_it_crashes_at() {
    for blow in [Blow::Before, Blow::After] {
        let mut completed = false;
        let mut steps = 0;
        while !completed {
            let what = format!("{blow:?} step {steps}");
            let world = TestWorld::new(1);
            let owner = Owner::open(over(world.process(), paging(2, 3)), options(1)).await;
            owner.append_all(0..12).await;
            owner.log.close().await.unwrap();
            assert!(pages_of(&world).len() >= 3);
            drop(owner);
            let fuse = Fuse::new(steps, blow);
            let dying = over(world.fused_process(&fuse), paging(2, 3));
            let cell = TopicRecordCell::load(dying.clone(), &topic(), Vec::new()).await;
            let cell = cell.unwrap().unwrap();
            let deletion = async {
                cell.delete().await.unwrap();
                dying.ledgers.tasks.drain(Duration::from_secs(60)).await;
            };
            // A dead process waits for ever.
            let ended = tokio::time::timeout(Duration::from_secs(600), deletion).await;
            completed = ended.is_ok() && !fuse.is_blown();

            check_metadata(&world, &what).await;
            let ctx = world.logs();
            let found = TopicRecordCell::load(ctx.clone(), &topic(), Vec::new()).await;
            if let Some(cell) = found.unwrap() {
                // What is left is a log that can be read.
                let left = Owner::open(ctx.clone(), options(1)).await;
                let read = left.read_all().await;
                assert_eq!(
                    bodies(&read),
                    expected(12 - read.len() as u64..12),
                    "{what}"
                );
                let is_whole = read.len() == 12;
                assert!(is_whole || cell.is_deleting(), "{what}: {}", read.len());
                left.log.close().await.unwrap();
                cell.refresh().await.unwrap();
                cell.delete().await.unwrap();
            }
            sweep_intents(&ctx.ledgers).await.unwrap();
            ctx.ledgers.tasks.drain(Duration::from_secs(60)).await;
            sweep_intents(&ctx.ledgers).await.unwrap();
            for prefix in ["t/", "l/", "g/"] {
                assert_eq!(world.store.keys(prefix), Vec::<String>::new(), "{what}");
            }
            assert_eq!(world.bookies.ledgers(world.bookies.ids()[0]), [], "{what}");
            steps += 1;
            assert!(steps < 500, "the fuse never outlasts the deletion");
        }
        assert!(steps > 5, "a deletion has steps: {steps}");
    }
}

/// What the sweep learns from metadata is what the loaded topic would trim.
#[tokio::test(start_paused = true)]
async fn a_sweep_judges_by_the_first_page() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(over(world.process(), paging(2, 3)), options(1)).await;
    for tag in 0..12 {
        clock.advance(Duration::from_secs(10));
        owner.append_all(tag..tag + 1).await;
    }
    owner.log.close().await.unwrap();
    let heir = Owner::open(over(world.process(), paging(2, 3)), options(1)).await;
    let end = heir.log.end();
    let bytes = heir.log.stats().bytes;
    let first_bytes = heir.log.stats().ledgers[0].bytes;
    let ages = [0, 5_000, 60_000, 109_000, 111_000, 10_000_000].map(Some);
    let sizes = [0, bytes / 2, bytes - first_bytes, bytes - first_bytes + 1].map(Some);
    let mut dues = 0;
    for time_ms in ages.into_iter().chain([None]) {
        for size_bytes in sizes.into_iter().chain([None]) {
            let retention = Retention {
                time_ms,
                size_bytes,
            };
            let record = stored_record(&world).await.unwrap();
            let now_ms = heir.ctx.ledgers.clock.wall_ms();
            let swept =
                first_due_on_record(&world.store, &topic(), &record, retention, now_ms).await;
            let loaded = heir.log.trim_due(end, retention);
            assert_eq!(swept, Ok(loaded.map(|due| due.first_end)), "{retention:?}");
            dues += usize::from(loaded.is_some());
        }
    }
    assert!(dues > 3, "{dues}");
    // Nothing is due of a log without segments.
    heir.log.trim(end, KEEP_NOTHING).await.unwrap();
    let record = stored_record(&world).await.unwrap();
    let due = first_due_on_record(&world.store, &topic(), &record, KEEP_NOTHING, u64::MAX).await;
    assert_eq!((due, record.end_page - record.first_page), (Ok(None), 0));
}

/// The outcome of a rollover that moves segments is told late, or never: all segments stay in one
/// place each, and nothing that is acknowledged is lost.
#[tokio::test(start_paused = true)]
async fn a_move_of_unknown_outcome_loses_nothing() {
    let mut unknown = 0;
    for never in [false, true] {
        for before in 3..9 {
            let what = format!("never {never}, {before} before");
            let world = TestWorld::new(1);
            // From the fourth ledger on every rollover moves one.
            let owner = Owner::open(over(world.process(), paging(2, 1)), options(1)).await;
            owner.append_all(0..before).await;
            match never {
                true => world.store.forget_outcomes(1),
                false => world.store.lose_answers(1),
            }
            let pages = pages_of(&world).len();
            owner.append(before).unwrap();
            let at = usize::try_from(before).unwrap();
            let outcomes = owner.collected.wait_for(at + 1).await;
            let acknowledged = before + u64::from(outcomes[at].1.is_ok());
            assert!(
                never || acknowledged > before,
                "{what}: it is known at last"
            );
            let moved = pages_of(&world).len() > pages;
            unknown += u32::from(never && moved);
            check_metadata(&world, &what).await;
            if never {
                owner.log.resume();
                let clock = world.clock.clone().unwrap();
                clock.advance(Duration::from_secs(60));
                // A former owner that does not know what it did itself stops; it writes nothing
                // wrong.
                let _ = owner.append(99);
                let _ = owner.log.close().await;
            } else {
                owner.append_all(before + 1..before + 4).await;
            }
            check_metadata(&world, &what).await;
            let heir = Owner::open(over(world.process(), paging(2, 1)), options(1)).await;
            let read = bodies(&heir.read_all().await);
            let wanted = expected(0..acknowledged);
            assert_eq!(read[..wanted.len()], wanted, "{what}");
            heir.append_all(100..105).await;
            check_metadata(&world, &what).await;
        }
    }
    assert!(unknown > 2, "{unknown} moves were made without an answer");
}

async fn rewrite(world: &TestWorld, key: &str, value: Option<Bytes>) {
    let key = key.to_owned();
    let expect = Expect::Any;
    let operation = match value {
        Some(value) => Operation::Put { key, value, expect },
        None => Operation::Delete { key, expect },
    };
    let transaction = Transaction {
        partition: keys::partition_of_topic(&topic()),
        guards: Vec::new(),
        operations: vec![operation],
    };
    world.store.commit(transaction).await.unwrap();
}

/// What is wrong is named with what to do, and nothing is changed on a guess.
#[tokio::test(start_paused = true)]
async fn pages_that_do_not_fit_are_refused() {
    let world = TestWorld::new(1);
    let owner = Owner::open(over(world.process(), paging(2, 3)), options(1)).await;
    owner.append_all(0..14).await;
    owner.log.close().await.unwrap();
    let pages = pages_of(&world);
    assert_eq!(pages.len(), 3);
    let mut values = BTreeMap::new();
    for key in &pages {
        values.insert(
            key.clone(),
            world.store.get(key).await.unwrap().unwrap().value,
        );
    }
    let changed = |at: usize, change: fn(&mut v1::SegmentPageRecord)| {
        let mut page: v1::SegmentPageRecord =
            record::decode_bytes(&pages[at], &values[&pages[at]]).unwrap();
        change(&mut page);
        (pages[at].clone(), Some(record::encode(page)))
    };
    let beyond = keys::segment_page(&topic(), owner.cell.incarnation(), 3);
    let cases = [
        (pages[0].clone(), None),
        (pages[1].clone(), None),
        (pages[2].clone(), None),
        (beyond.clone(), Some(values[&pages[2]].clone())),
        (pages[1].clone(), Some(values[&pages[0]].clone())),
        (pages[1].clone(), Some(Bytes::from_static(b"\xff\xff"))),
        (
            pages[1].clone(),
            Some(record::encode(v1::TopicRecord::default())),
        ),
        changed(0, |page| page.segments.clear()),
        changed(0, |page| page.segments = page.segments.split_off(1)),
        changed(0, |page| page.segments.truncate(2)),
        changed(0, |page| page.segments.rotate_left(1)),
        changed(1, |page| page.segments.truncate(1)),
        changed(1, |page| page.segments.swap(0, 1)),
        changed(1, |page| page.segments[1].sealed = false),
        changed(1, |page| page.segments[1].end_index += 1),
        changed(1, |page| page.segments[0].bytes += 1),
        changed(2, |page| page.incarnation = vec![9; 16].into()),
    ];
    for (number, (key, value)) in cases.into_iter().enumerate() {
        rewrite(&world, &key, value).await;
        let commits = world.store.commits();
        let opened = Owner::try_open(world.logs(), options(1), Vec::new()).await;
        let error = opened.map(drop).unwrap_err();
        assert!(
            matches!(error, LogError::Metadata(MetadataError::Damaged { .. })),
            "{number}: {error:?}"
        );
        assert!(!error.is_retryable());
        assert_eq!(world.store.commits(), commits, "{number}");
        rewrite(&world, &key, values.get(&key).cloned()).await;
    }
    rewrite(&world, &pages[0], None).await;
    let error = owner.cell.delete().await.unwrap_err().to_string();
    assert!(
        error.contains(&pages[0]) && error.contains("backup"),
        "{error}"
    );
    rewrite(&world, &pages[0], values.get(&pages[0]).cloned()).await;

    // A page that the record does not know of is not written over.
    let heir = Owner::open(over(world.process(), paging(2, 3)), options(1)).await;
    rewrite(&world, &beyond, Some(values[&pages[2]].clone())).await;
    heir.append(14).unwrap();
    let (_, outcome) = heir.collected.wait_for(1).await.remove(0);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("does not know of this page"), "{error}");
    let stored = world.store.get(&beyond).await.unwrap().unwrap();
    assert_eq!(stored.value, values[&pages[2]]);
}
