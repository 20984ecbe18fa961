//! Ledgers that go into objects and are read from there.

mod adopting;
mod backups;
mod copies;
mod failures;
mod faults;
mod importing;
mod listing;
mod offloaders;
mod planning;
mod restores;
mod scrubbing;

use std::collections::BTreeSet;
use std::time::Duration;

use aquifer_cold::testing::{Fault, MemoryColdStore, Op};
use aquifer_ledger::deletion::sweep_intents;
use aquifer_ledger::ledger_metadata;
use aquifer_ledger::objects;
use aquifer_ledger::offload::Offload;
use aquifer_metadata::store::{Operation, Transaction};
use aquifer_model::id::AttemptId;
use aquifer_model::policy::offload::OffloadPolicy;
use aquifer_runtime::clock;
use aquifer_runtime::rng::SeededRng;

use super::*;
use crate::offload::Offloading;
use crate::offload::reaper::{Reaped, reap};
use crate::offload::tier::OffloadSettings;
use crate::testing::over_cold;

const LAG: Duration = Duration::from_secs(60);

fn offload_settings() -> OffloadSettings {
    OffloadSettings {
        policy: OffloadPolicy {
            lag_ms: clock::millis(LAG),
            ..OffloadPolicy::default()
        },
        // Several parts of several blocks, with ledgers of a few hundred KiB.
        block_bytes: 64 << 10,
        part_bytes: Some(100_000),
        read_bytes: 50_000,
        // The clock of the world stands still while a rate is waited for.
        scrub_rate: None,
        ..OffloadSettings::default()
    }
}

/// A body of some size that no two entries share, and that does not compress: a ledger has parts.
fn large(tag: u64) -> Bytes {
    let rng = SeededRng::shared(tag);
    (0..1_250).flat_map(|_| rng.id16()).collect()
}

struct World {
    world: TestWorld,
    cold: MemoryColdStore,
    settings: OffloadSettings,
}

impl World {
    fn new() -> World {
        World {
            world: TestWorld::new(3),
            cold: MemoryColdStore::default(),
            settings: offload_settings(),
        }
    }

    /// One in which each object is sent with one request.
    fn whole() -> World {
        let mut world = World::new();
        world.settings.part_bytes = None;
        world
    }

    fn process(&self) -> Arc<LogContext> {
        over_cold(self.world.process(), &self.cold, self.settings.clone())
    }

    /// An owner with `count` entries, ten in a ledger, all ledgers sealed.
    async fn owner(&self, count: u64) -> Owner {
        let owner = Owner::open(self.process(), options(10)).await;
        for tag in 0..count {
            owner.append_bytes(tag, large(tag)).unwrap();
        }
        for (_, outcome) in owner
            .collected
            .wait_for(usize::try_from(count).unwrap())
            .await
        {
            outcome.unwrap();
        }
        owner.log.roll().await.unwrap();
        owner
    }

    fn pass(&self, time: Duration) {
        self.world.clock.as_ref().unwrap().advance(time);
    }

    async fn reap(&self, owner: &Owner) -> Reaped {
        let tier = owner.ctx.cold.as_ref().unwrap();
        reap(&owner.ctx, tier, |_| false).await.unwrap()
    }

    fn copies(&self) -> usize {
        let bookies = self.world.bookies.ids().into_iter();
        bookies
            .map(|bookie| self.world.bookies.ledgers(bookie).len())
            .sum()
    }

    /// Every object that exists is written down somewhere.
    async fn check_recorded(&self, what: &str) {
        let store = &self.world.store;
        let mut recorded = BTreeSet::new();
        recorded.extend(
            objects::planned(store)
                .await
                .unwrap()
                .into_iter()
                .map(|o| o.name),
        );
        let mut pages = objects::Dying::new(store);
        while let Some(page) = pages.next().await.unwrap() {
            recorded.extend(page.into_iter().map(|o| o.name));
        }
        for key in store.keys("l/") {
            let id = LedgerId(key.trim_start_matches("l/").parse().unwrap());
            let info = ledger_metadata::load_existing(store, id).await.unwrap();
            if let Some(Offload::Stored { object, .. }) = info.offload {
                recorded.insert(object.name);
            }
        }
        for name in self.cold.names().into_iter().chain(self.cold.unfinished()) {
            assert!(
                recorded.contains(&name),
                "{what}: {name} is written down nowhere"
            );
        }
    }
}

/// Asks until everything is offloaded, or an attempt failed.
async fn offload(owner: &Owner, below: Index) -> Offloading {
    loop {
        let left = owner.log.request_offload(below).await.unwrap();
        if left.ledgers == 0 || left.failure.is_some() {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn offload_all(owner: &Owner) {
    // What a failed attempt has left is told first.
    for _ in 0..3 {
        if offload(owner, owner.log.end()).await == Offloading::default() {
            return;
        }
    }
    panic!("offload does not succeed");
}

fn states(owner: &Owner) -> Vec<SegmentState> {
    owner
        .log
        .stats()
        .ledgers
        .into_iter()
        .map(|l| l.state)
        .collect()
}

fn count_local(owner: &Owner) -> usize {
    let is_local =
        |state: &SegmentState| !matches!(state, SegmentState::Offloaded { local: false, .. });
    states(owner).iter().filter(|state| is_local(state)).count()
}

/// Lets copies go until `left` ledgers have some.
async fn drop_copies(owner: &Owner, droppable: Index, left: usize) {
    // What an earlier owner has noted as done is looked at for statistics alone.
    owner.log.learn_offload().await.unwrap();
    while count_local(owner) > left {
        owner.log.care_for_offload(droppable, Index(0));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn large_bodies(tags: std::ops::Range<u64>) -> Vec<Bytes> {
    tags.map(large).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_offloaded_is_read_as_before() {
    let world = World::new();
    let owner = world.owner(50).await;
    let before = owner.read_all().await;
    assert_eq!(
        offload(&owner, owner.log.end()).await,
        Offloading::default()
    );
    assert_eq!(world.cold.names().len(), 5);
    assert!(world.cold.unfinished().is_empty());
    assert_eq!(
        (count_local(&owner), world.copies()),
        (5, 5),
        "the lag is not over"
    );
    world.pass(LAG);
    let third = owner.log.stats().ledgers[3].first_index;
    drop_copies(&owner, third, 2).await;
    owner.log.care_for_offload(third, Index(0));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(world.copies(), 2, "what a load replays stays");
    drop_copies(&owner, owner.log.end(), 0).await;
    assert_eq!(world.copies(), 0);
    let states = states(&owner);
    assert!(
        states
            .iter()
            .all(|s| matches!(s, SegmentState::Offloaded { local: false, .. }))
    );

    // From the start, and at each index, by this process and by the next.
    let heir = Owner::open(world.process(), options(10)).await;
    for reader in [&owner, &heir] {
        assert_eq!(reader.read_all().await, before);
        for index in (0..reader.log.end().0).rev() {
            let mut at = ReadPoint::from(Index(index));
            let one = ReadLimits {
                bytes_max: 1,
                entries_max: 1,
            };
            let found = reader.log.read(&mut at, one).await.unwrap();
            assert!(found[0].head.base_index.0 <= index && index < found[0].head.end_index().0);
        }
        for entry in &before {
            let time = reader
                .log
                .locate(Place::TimeMs(entry.head.broker_time_ms))
                .await;
            assert!(time.unwrap() <= entry.head.base_index);
            let position = aquifer_model::position::Position {
                ledger: entry.ledger,
                entry: entry.entry,
                batch_index: 0,
            };
            let found = reader.log.locate(Place::Position(position)).await;
            assert_eq!(found, Ok(entry.head.base_index));
        }
        let mut at = ReadPoint::from(Index(0));
        let heads = reader.log.read_heads_or_skip(&mut at, 100).await.unwrap();
        assert!(matches!(heads, Found::Entries(heads) if heads[0].head == before[0].head));
    }
    world.check_recorded("at the end").await;
    assert!(
        objects::planned(&world.world.store)
            .await
            .unwrap()
            .is_empty()
    );
}

/// Requests to the store since that was asked last.
fn count_all(world: &World) -> usize {
    world.cold.count(Op::Get) + world.cold.count(Op::Size)
}

#[tokio::test(start_paused = true)]
async fn loading_a_log_asks_no_object_store() {
    let world = World::new();
    let owner = world.owner(30).await;
    offload_all(&owner).await;
    world.pass(LAG);
    drop_copies(&owner, owner.log.end(), 0).await;
    owner.log.close().await.unwrap();
    let _ = count_all(&world);
    world.cold.judge(|_, _| Some(Fault::Fails));
    let heir = Owner::open(world.process(), options(10)).await;
    assert_eq!(heir.log.end(), owner.log.end());
    heir.append_all(100..103).await;
    heir.log.roll().await.unwrap();
    assert_eq!(count_all(&world), 0);
    // What the store does not give is unavailable, and never empty.
    let mut at = ReadPoint::from(Index(0));
    let read = heir.log.read(&mut at, LIMITS).await;
    assert!(matches!(read, Err(LogError::Unavailable(_))), "{read:?}");
    world.cold.heal();
    assert_eq!(bodies(&heir.read_all().await)[..30], large_bodies(0..30));
}

#[tokio::test(start_paused = true)]
async fn a_reader_goes_on_while_the_copies_under_it_go() {
    let world = World::new();
    world.owner(40).await.log.close().await.unwrap();
    // Without a tail in memory.
    let heir = Owner::open(world.process(), options(10)).await;
    let mut at = ReadPoint::from(Index(0));
    let few = ReadLimits {
        bytes_max: 1,
        entries_max: 1,
    };
    let mut read = heir.log.read(&mut at, few).await.unwrap();
    offload_all(&heir).await;
    world.pass(LAG);
    at.release();
    read.extend(heir.log.read(&mut at, few).await.unwrap());
    drop_copies(&heir, heir.log.end(), 0).await;
    assert_eq!(world.copies(), 0);
    while at.index < heir.log.end() {
        at.release();
        read.extend(heir.log.read(&mut at, few).await.unwrap());
    }
    assert_eq!(bodies(&read), large_bodies(0..40));
}

#[tokio::test(start_paused = true)]
async fn a_process_with_old_records_reads_on() {
    let world = World::new();
    let owner = world.owner(40).await;
    owner.log.close().await.unwrap();
    // Remembers the records as they were.
    let other = Owner::open(world.process(), options(10)).await;
    let before = other.read_all().await;
    let third = Owner::open(world.process(), options(10)).await;
    offload_all(&third).await;
    world.pass(LAG);
    drop_copies(&third, third.log.end(), 0).await;
    assert_eq!(other.read_all().await, before);
}

#[tokio::test(start_paused = true)]
async fn objects_go_with_their_ledgers() {
    let world = World::new();
    let owner = world.owner(40).await;
    offload_all(&owner).await;
    world.pass(LAG);
    let half = owner.log.stats().ledgers[2].first_index;
    drop_copies(&owner, half, 2).await;
    // Two whose copies are gone, and one whose are there.
    let three = owner.log.stats().ledgers[3].first_index;
    owner.log.trim(three, KEEP_NOTHING).await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    // A record that cannot be read keeps no other object.
    let unreadable = keys::dying_object(AttemptId([0; 16]));
    let partition = keys::partition_of_topic(owner.cell.topic());
    let (store, garbage) = (&world.world.store, Bytes::from_static(b"no record"));
    let put = store.put(&partition, &unreadable, garbage, Expect::Any);
    put.await.unwrap();
    let reaped = world.reap(&owner).await;
    assert_eq!(
        (reaped.deleted, world.cold.names().len(), world.copies()),
        (3, 1, 1)
    );
    assert_eq!(bodies(&owner.read_all().await), large_bodies(30..40));
    let forget = Operation::Delete {
        key: unreadable,
        expect: Expect::Any,
    };
    let forget = Transaction {
        partition: partition.clone(),
        guards: Vec::new(),
        operations: vec![forget],
    };
    store.commit(forget).await.unwrap();
    owner.log.close().await.unwrap();
    owner.cell.delete().await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    world.reap(&owner).await;
    assert_eq!((world.cold.names().len(), world.copies()), (0, 0));
    for prefix in ["l/", "oc/", "od/", "g/"] {
        assert!(world.world.store.keys(prefix).is_empty(), "{prefix}");
    }
}

#[tokio::test(start_paused = true)]
async fn objects_wait_for_the_right_store_before_they_are_called_deleted() {
    let world = World::new();
    let owner = world.owner(10).await;
    offload_all(&owner).await;
    owner.log.trim(owner.log.end(), KEEP_NOTHING).await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    let marker = "test/location";
    world.cold.change(marker, |bytes| bytes[30] ^= 1);
    assert_eq!(world.reap(&owner).await.left, 1);
    assert_eq!(world.world.store.keys("od/").len(), 1);
    world.cold.change(marker, |bytes| bytes[30] ^= 1);
    assert_eq!(world.reap(&owner).await.deleted, 1);
}

#[tokio::test(start_paused = true)]
async fn copies_stay_while_the_object_is_not_as_it_was_written() {
    let world = World::new();
    let owner = world.owner(10).await;
    offload_all(&owner).await;
    world.pass(LAG);
    let name = world.cold.names().remove(0);
    let attempts: [&dyn Fn(); 2] = [
        &|| world.cold.change(&name, |bytes| bytes.truncate(1000)),
        &|| world.cold.lose(&name),
    ];
    for damage in attempts {
        damage();
        // A ledger that was found damaged is left alone for a while.
        world.pass(Duration::from_secs(601));
        owner.log.care_for_offload(owner.log.end(), Index(0));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.copies(), 1);
    }
    // And they serve.
    assert_eq!(bodies(&owner.read_all().await), large_bodies(0..10));
}

#[tokio::test(start_paused = true)]
async fn each_of_two_places_covers_for_the_other() {
    let world = World::new();
    let owner = world.owner(10).await;
    offload_all(&owner).await;
    owner.log.close().await.unwrap();
    for bookie in world.world.bookies.ids() {
        world.world.bookies.wipe(bookie);
    }
    let heir = Owner::open(world.process(), options(10)).await;
    assert_eq!(bodies(&heir.read_all().await), large_bodies(0..10));
    // Both are lost: that is damage, and not silence.
    let name = world.cold.names().remove(0);
    world.cold.lose(&name);
    let last = Owner::open(world.process(), options(10)).await;
    let mut at = ReadPoint::from(Index(0));
    let read = last.log.read(&mut at, LIMITS).await;
    assert!(matches!(read, Err(LogError::Damaged(_))), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_or_damaged_object_is_damage_where_it_is_the_only_copy() {
    let world = World::new();
    let owner = world.owner(20).await;
    offload_all(&owner).await;
    world.pass(LAG);
    drop_copies(&owner, owner.log.end(), 0).await;
    let name = world.cold.names().remove(0);
    world.cold.lose(&name);
    let heir = Owner::open(world.process(), options(10)).await;
    let mut at = ReadPoint::from(Index(0));
    let found = heir.log.read_or_skip(&mut at, LIMITS).await.unwrap();
    let Found::Damaged(damage, reason) = found else {
        panic!("a lost object is found: {found:?}");
    };
    assert!(reason.contains("missing"), "{reason}");
    assert_eq!(damage.end, heir.log.stats().ledgers[1].first_index);
    // A store that is not the right one is no reason to call anything lost.
    world.cold.lose("test/location");
    let other = Owner::open(world.process(), options(10)).await;
    let mut at = ReadPoint::from(Index(0));
    let read = other.log.read(&mut at, LIMITS).await;
    assert!(matches!(read, Err(LogError::Unavailable(_))), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_place_nothing_is_offloaded_and_it_is_said() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(3)).await;
    owner.append_all(0..10).await;
    let asked = owner.log.request_offload(owner.log.end()).await;
    assert!(matches!(asked, Err(LogError::Invalid(_))), "{asked:?}");
    owner.log.care_for_offload(owner.log.end(), Index(0));
}
