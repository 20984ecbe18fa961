//! Reads: places, caches, damage.

use std::time::Duration;

use aquifer_ledger::ledger_metadata;
use aquifer_model::extensions::ExtensionsBuilder;
use aquifer_model::id::EntryId;
use aquifer_model::limits::BATCH_MESSAGES_MAX;
use aquifer_model::position::Position;

use super::*;
use crate::cache::EntryCache;

#[tokio::test(start_paused = true)]
async fn places_are_found_by_reading_heads_only() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), options(40)).await;
    for tag in 0..100 {
        owner.append_all(tag..tag + 1).await;
        clock.advance(Duration::from_millis(10));
    }
    owner.log.close().await.unwrap();
    let heir = Owner::open(world.logs(), options(40)).await;
    let (log, start) = (&heir.log, 1_700_000_000_000);
    let all = heir.read_all().await;
    let reads = world.bookies.reads();
    let end = log.end();
    assert_eq!(log.locate(Place::Earliest).await, Ok(Index(0)));
    assert_eq!(log.locate(Place::Latest).await, Ok(end));
    assert_eq!(log.locate(Place::Index(Index(7))).await, Ok(Index(7)));
    assert_eq!(log.locate(Place::Index(Index(1 << 40))).await, Ok(end));
    for entry in &all {
        let place = Place::Position(Position {
            ledger: entry.ledger,
            entry: entry.entry,
            batch_index: entry.head.message_count - 1,
        });
        let last = Index(entry.head.end_index().0 - 1);
        assert_eq!(log.locate(place).await, Ok(last));
        let time = entry.head.broker_time_ms;
        let at = log.locate(Place::TimeMs(time)).await;
        assert_eq!(at, Ok(entry.head.base_index));
        let before = log.locate(Place::TimeMs(time - 5)).await;
        assert_eq!(before, Ok(entry.head.base_index));
    }
    assert_eq!(log.locate(Place::TimeMs(0)).await, Ok(Index(0)));
    assert_eq!(log.locate(Place::TimeMs(start + 3_600_000)).await, Ok(end));
    assert_eq!(world.bookies.reads().entries, reads.entries, "heads only");

    let ledger = all[0].ledger;
    for (ledger, entry, batch_index) in [
        (LedgerId(999_999), EntryId(0), 0),
        (ledger, EntryId(40), 0),
        (ledger, EntryId(0), 1),
    ] {
        let place = Place::Position(Position {
            ledger,
            entry,
            batch_index,
        });
        let error = log.locate(place).await.unwrap_err();
        assert!(matches!(error, LogError::Invalid(_)), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_may_begin_inside_any_entry() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(7)).await;
    owner.append_all(0..30).await;
    owner.log.close().await.unwrap();
    let heir = Owner::open(world.logs(), options(7)).await;
    for index in 0..heir.log.end().0 {
        let found = read_from(&heir.log, Index(index)).await;
        let head = &found[0].head;
        assert!(head.base_index.0 <= index && index < head.end_index().0);
    }
}

/// A log with a tail cache that is much smaller than its backlog.
pub(super) async fn with_backlog(world: &TestWorld, entries: u64) -> Owner {
    let mut ctx = world.logs();
    Arc::get_mut(&mut ctx).unwrap().cache = EntryCache::new(100_000, 512 * 1024);
    let owner = Owner::open(ctx, options(1_000_000)).await;
    for tag in 0..entries {
        owner.append_bytes(tag, vec![1; 4096].into()).unwrap();
    }
    owner
        .collected
        .wait_for(usize::try_from(entries).unwrap())
        .await;
    owner
}

#[tokio::test(start_paused = true)]
async fn catching_up_reads_large_ranges_ahead_and_leaves_the_tail_alone() {
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 1000).await;
    let tail = owner.ctx.cache.tail_bytes();
    assert!(tail > 50_000 && tail <= 100_000, "{tail}");
    let mut tail_reader = ReadPoint::from(Index(owner.log.end().0 - 3));
    assert!(owner.log.read_cached(&mut tail_reader, LIMITS).is_some());

    let read = read_from(&owner.log, Index(0)).await;
    assert_eq!(read.len(), 1000);
    assert_eq!(owner.ctx.cache.tail_bytes(), tail, "the tail is untouched");
    let reads = world.bookies.reads();
    // 4 KiB entries in 64 KiB ranges; the first read of a jump is a small one.
    assert!(reads.requests < 1000 / 12, "{reads:?}");
    assert!(reads.entries < 1000, "the tail came from memory: {reads:?}");
    let mut tail_reader = ReadPoint::from(Index(owner.log.end().0 - 3));
    assert!(owner.log.read_cached(&mut tail_reader, LIMITS).is_some());
    assert_eq!(owner.ctx.cache.read_ahead().used_bytes(), 0, "given back");
}

#[tokio::test(start_paused = true)]
async fn readers_get_along_without_room_for_read_ahead() {
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 300).await;
    let capacity = owner.ctx.cache.read_ahead().capacity_bytes();
    let taken = owner.ctx.cache.read_ahead().try_acquire(capacity).unwrap();
    assert_eq!(read_from(&owner.log, Index(0)).await.len(), 300);
    drop(taken);
    // Stalled readers hold what they fetched, and never more than the budget.
    let mut stalled = Vec::new();
    for reader in 0..40 {
        let mut at = ReadPoint::from(Index(reader * 10));
        for _ in 0..3 {
            owner.log.read(&mut at, LIMITS).await.unwrap();
        }
        stalled.push(at);
    }
    assert!(owner.ctx.cache.read_ahead().used_bytes() <= capacity);
    drop(stalled);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(owner.ctx.cache.read_ahead().used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn tail_readers_never_touch_a_bookie() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(4)).await;
    let mut readers: Vec<ReadPoint> = (0..10).map(|_| Index(0).into()).collect();
    let mut end = owner.log.watch_end();
    for tag in 0..50 {
        owner.append(tag).unwrap();
        end.changed().await.unwrap();
        for at in &mut readers {
            let found = owner.log.read_cached(at, LIMITS).expect("in the tail");
            assert_eq!(bodies(&found), [body(tag)]);
            assert_eq!(owner.log.read_cached(at, LIMITS), Some(Vec::new()));
        }
    }
    assert_eq!(world.bookies.reads().requests, 0);
}

#[tokio::test(start_paused = true)]
async fn seeking_back_and_forth_reads_what_is_there() {
    let world = TestWorld::new(1);
    let owner = with_backlog(&world, 300).await;
    let end = owner.log.end().0;
    let mut at = ReadPoint::from(Index(0));
    for step in 0..200 {
        if step % 3 == 0 {
            at.index = Index(step * 7919 % end);
        }
        let wanted = at.index;
        let found = owner.log.read(&mut at, LIMITS).await.unwrap();
        match found.first() {
            Some(first) => {
                assert!(first.head.base_index <= wanted && wanted < first.head.end_index());
            }
            None => assert_eq!(wanted, Index(end)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn damage_is_an_error_alone_and_repaired_by_another_replica_i5() {
    for (bookies, quorum) in [(1, Quorum::SINGLE), (3, Quorum::new(3, 3, 2).unwrap())] {
        let world = TestWorld::new(bookies);
        let options = LogOptions {
            quorum,
            ..options(100)
        };
        let owner = Owner::open(world.logs(), options).await;
        owner.append_all(0..5).await;
        owner.log.close().await.unwrap();
        let ledger = owner.log.stats().ledgers[0].ledger;
        for bookie in world
            .bookies
            .ids()
            .into_iter()
            .take(quorum.ack().max(1) - 1 + usize::from(bookies == 1))
        {
            world.bookies.corrupt(bookie, ledger, EntryId(2));
        }
        let heir = Owner::open(world.logs(), options).await;
        if bookies == 3 {
            assert_eq!(bodies(&heir.read_all().await), expected(0..5));
            continue;
        }
        let mut at = ReadPoint::from(Index(0));
        let good = heir.log.read(&mut at, LIMITS).await.unwrap();
        assert_eq!(bodies(&good), expected(0..2), "what is good is served");
        let error = heir.log.read(&mut at, LIMITS).await.unwrap_err();
        assert!(matches!(error, LogError::Damaged(_)), "{error:?}");
        at.index = Index(6);
        let beyond = heir.log.read(&mut at, LIMITS).await.unwrap();
        assert_eq!(bodies(&beyond), expected(3..5), "and what is behind it");
    }
}

/// I2, I5: an owner has died, and what it has stored last is damaged in every copy. Everything else
/// is read, the gap is told, the log goes on, and no index of what is lost is given again.
#[tokio::test(start_paused = true)]
async fn damage_at_the_end_of_an_open_ledger_costs_nothing_but_itself() {
    // Which of ten entries are damaged, and how many at the end are.
    for (damaged, at_end) in [
        (vec![9], 1),
        (vec![6, 7, 8, 9], 4),
        (vec![1, 4, 5, 8, 9], 2),
        // The sixth is whole, and is not found at the opening.
        (vec![5, 7, 8, 9], 5),
        ((0..10).collect(), 10),
    ] {
        let world = TestWorld::new(1);
        let bookie = world.bookies.ids()[0];
        let owner = Owner::open(world.logs(), options(100)).await;
        owner.append_all(0..10).await;
        let (ledger, end) = (owner.log.stats().ledgers[0].ledger, owner.log.end());
        for entry in &damaged {
            world.bookies.corrupt(bookie, ledger, EntryId(*entry));
        }
        // Twice: the first heir leaves the ledger closed.
        let heirs = [
            Owner::open(world.logs(), options(100)).await,
            Owner::open(world.logs(), options(100)).await,
        ];
        assert_eq!(heirs[0].log.end(), heirs[1].log.end(), "{damaged:?}");
        let heir = &heirs[1];
        assert!(heir.log.end() >= end, "{damaged:?}");
        let lost = u64::from(BATCH_MESSAGES_MAX) * at_end;
        assert!(heir.log.end() <= end.plus(lost), "{damaged:?}");
        heir.append_all(10..12).await;

        let (mut at, mut read, mut gaps) = (ReadPoint::from(Index(0)), Vec::new(), 0);
        while at.index < heir.log.end() {
            match heir.log.read_or_skip(&mut at, LIMITS).await.unwrap() {
                Found::Entries(entries) => read.extend(bodies(&entries)),
                Found::Damaged(damage, _) => {
                    assert!(damage.end > damage.from && damage.ledger == ledger);
                    // How many messages the entries had is known where one follows that is whole.
                    let is_end = damage.end.0 - damage.from.0 >= u64::from(BATCH_MESSAGES_MAX);
                    assert_eq!(damage.at_most, is_end, "{damage:?}");
                    gaps += 1;
                }
            }
        }
        let whole = (0..12).filter(|tag| !damaged.contains(tag));
        assert_eq!(read, whole.map(body).collect::<Vec<_>>(), "{damaged:?}");
        let alone = |entry: &&u64| !damaged.contains(&(**entry + 1));
        assert_eq!(gaps, damaged.iter().filter(alone).count(), "{damaged:?}");
    }
}

/// Repair may replace all bookies of a ledger while a log that has read from it stays loaded.
#[tokio::test(start_paused = true)]
async fn a_record_that_changed_since_it_was_read_is_read_again() {
    let world = TestWorld::new(6);
    let options = LogOptions {
        quorum: Quorum::new(3, 3, 2).unwrap(),
        ..options(5)
    };
    let owner = Owner::open(world.logs(), options).await;
    owner.append_all(0..10).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let guards: &[Guard] = &[];
    let mut info = ledger_metadata::load_existing(&world.store, ledger)
        .await
        .unwrap();
    let right = info.fragments.clone();
    let others: Vec<_> = world.bookies.ids();
    let others = others
        .into_iter()
        .filter(|b| !right[&EntryId::FIRST].contains(b));
    info.fragments = [(EntryId::FIRST, others.collect())].into();
    ledger_metadata::replace(&world.store, &mut info, guards)
        .await
        .unwrap();
    let heir = Owner::open(world.logs(), options).await;
    let mut at = ReadPoint::from(Index(0));
    assert!(heir.log.read(&mut at, LIMITS).await.is_err());
    info.fragments = right;
    ledger_metadata::replace(&world.store, &mut info, guards)
        .await
        .unwrap();
    assert_eq!(bodies(&heir.read_all().await), expected(0..10));
}

/// A caller that needs no bodies reads no bodies: long heads, rollovers, a start within an entry
/// and damage included.
#[tokio::test(start_paused = true)]
async fn heads_are_read_on_without_their_bodies() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(10)).await;
    for tag in 0..40 {
        // Longer than what is read of an entry at first.
        let long = if tag % 7 == 3 { 1_000 } else { 10 };
        let mut extensions = ExtensionsBuilder::default();
        extensions.schema(&vec![7; long]).unwrap();
        let append = Append {
            format: FORMAT_NATIVE,
            message_count: count(tag),
            flags: EntryFlags::CONTROL,
            extensions: extensions.build(),
            body: body(tag),
            tag,
            trace: None,
        };
        owner.log.append(append, &owner.sink).unwrap();
    }
    owner.collected.wait_for(40).await;
    owner.log.close().await.unwrap();
    let heir = Owner::open(world.logs(), options(10)).await;
    let all = heir.read_all().await;
    let lost = &all[20];
    for bookie in world.bookies.ids() {
        world.bookies.corrupt(bookie, lost.ledger, lost.entry);
    }
    let reads = world.bookies.reads();
    let from = Index(all[0].head.end_index().0 - 1);
    let (mut at, mut heads, mut gaps) = (ReadPoint::from(from), Vec::new(), Vec::new());
    loop {
        match heir.log.read_heads_or_skip(&mut at, 4).await.unwrap() {
            Found::Entries(found) if found.is_empty() => break,
            Found::Entries(found) => {
                assert!(found.len() <= 4);
                heads.extend(found);
            }
            Found::Damaged(damage, _) => gaps.push((damage.from, damage.end)),
        }
    }
    let expected = all.iter().filter(|entry| *entry != lost);
    let expected: Vec<_> = expected
        .map(|e| (e.ledger, e.entry, e.head.clone()))
        .collect();
    let found: Vec<_> = heads
        .iter()
        .map(|h| (h.ledger, h.entry, h.head.clone()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(gaps, [(lost.head.base_index, lost.head.end_index())]);
    let grown = heads
        .windows(2)
        .filter(|two| two[0].ledger == two[1].ledger);
    assert!(grown.clone().count() > 30);
    for two in grown {
        assert!(two[0].ledger_bytes < two[1].ledger_bytes);
    }
    // Linear, however many heads are long: the first few are read twice.
    let read = world.bookies.reads().prefixes - reads.prefixes;
    assert!(read < 3 * 40, "{read}");
    // One look at what is damaged, to be sure of it.
    assert!(
        world.bookies.reads().entries <= reads.entries + 1,
        "heads only"
    );
}

/// H19: the place that a reader came to by reading names a ledger that is trimmed then.
#[tokio::test(start_paused = true)]
async fn a_reader_at_the_end_of_a_trimmed_ledger_goes_on_h19() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(5)).await;
    owner.append_all(0..5).await;
    owner.ctx.cache.shrink_tail(0);
    let mut at = ReadPoint::from(Index(0));
    while at.index < owner.log.end() {
        assert!(!owner.log.read(&mut at, LIMITS).await.unwrap().is_empty());
    }
    owner.append_all(5..10).await;
    let nothing = Retention {
        time_ms: Some(0),
        size_bytes: Some(0),
    };
    assert_eq!(owner.log.trim(at.index, nothing).await, Ok(at.index));
    owner.ctx.cache.shrink_tail(0);
    let found = owner.log.read(&mut at, LIMITS).await.unwrap();
    assert_eq!(bodies(&found), expected(5..10));
}

/// H19: a trim under a search or a read moves the reader up; no damage is reported.
#[tokio::test(start_paused = true)]
async fn a_trim_under_a_read_is_no_damage_h19() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(5)).await;
    owner.append_all(0..10).await;
    owner.ctx.cache.shrink_tail(0);
    let bookie = world.bookies.ids()[0];
    let (log, middle) = (&owner.log, owner.log.stats().ledgers[1].first_index);
    let nothing = Retention {
        time_ms: Some(0),
        size_bytes: Some(0),
    };
    world.bookies.stall_reads(bookie, true);
    let mut at = ReadPoint::from(Index(3));
    let reading = log.read(&mut at, LIMITS);
    let by_time = log.locate(Place::TimeMs(1_700_000_000_000 - 5));
    let trimming = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(log.trim(middle, nothing).await, Ok(middle));
        world.bookies.stall_reads(bookie, false);
    };
    let (found, located, ()) = tokio::join!(reading, by_time, trimming);
    assert_eq!(bodies(&found.unwrap()), expected(5..10));
    assert!(located.unwrap() <= middle);
}
