//! Faults of stores under readers, under owners that stop and go on later, and for a long time. The
//! table of all faults is in docs/operations/cold-storage.md.

use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_runtime::clock::Clock;

use super::*;

/// Reads everything; a reader that is told to come back does. Answers how often it was.
async fn read_patiently(owner: &Owner, what: &str) -> (Vec<LogEntry>, u32) {
    let mut at = ReadPoint::from(Index(0));
    let (mut read, mut refusals) = (Vec::new(), 0);
    while at.index < owner.log.end() {
        match owner.log.read_or_skip(&mut at, LIMITS).await {
            Ok(Found::Entries(found)) => read.extend(found),
            Err(LogError::Unavailable(_)) if refusals < 10 => refusals += 1,
            found => panic!("{what}: {found:?}"),
        }
    }
    (read, refusals)
}

/// Whatever goes wrong with one request, a reader gets the right bytes or is told to come back.
#[tokio::test(start_paused = true)]
async fn one_bad_answer_is_no_gap_for_a_reader() {
    let world = World::new();
    let owner = world.owner(20).await;
    offload_all(&owner).await;
    world.pass(LAG);
    drop_copies(&owner, owner.log.end(), 0).await;
    owner.log.close().await.unwrap();
    for fault in [
        Fault::Fails,
        Fault::Denied,
        Fault::Missing,
        Fault::Short,
        Fault::Garbled,
        Fault::Hangs,
    ] {
        let mut at_request = 0;
        loop {
            // Nothing is in memory.
            let heir = Owner::open(world.process(), options(10)).await;
            let hit = Arc::new(AtomicBool::new(false));
            let (told, mut seen) = (Arc::clone(&hit), 0);
            world.cold.judge(move |_, _| {
                seen += 1;
                let is_hit = seen == at_request + 1;
                told.fetch_or(is_hit, Ordering::Relaxed);
                is_hit.then_some(fault)
            });
            let what = format!("{fault:?} at request {at_request}");
            let (read, refusals) = read_patiently(&heir, &what).await;
            assert_eq!(bodies(&read), large_bodies(0..20), "{what}");
            assert!(refusals <= 2, "{what}: {refusals}");
            world.cold.heal();
            heir.log.close().await.unwrap();
            if !hit.load(Ordering::Relaxed) {
                assert!(at_request >= 4, "a reader has requests: {at_request}");
                break;
            }
            at_request += 1;
        }
    }
}

/// A store that answers nothing well for long is unavailable: no reader is told of a gap, and
/// nothing is called missing or damaged.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_no_gap_for_a_reader() {
    let world = World::new();
    let owner = world.owner(20).await;
    offload_all(&owner).await;
    world.pass(LAG);
    drop_copies(&owner, owner.log.end(), 0).await;
    owner.log.close().await.unwrap();
    for fault in [Fault::Fails, Fault::Denied, Fault::Missing, Fault::Hangs] {
        let heir = Owner::open(world.process(), options(10)).await;
        world.cold.judge(move |_, _| Some(fault));
        for _ in 0..3 {
            let mut at = ReadPoint::from(Index(0));
            let found = heir.log.read_or_skip(&mut at, LIMITS).await;
            assert!(
                matches!(found, Err(LogError::Unavailable(_))),
                "{fault:?}: {found:?}"
            );
        }
        world.cold.heal();
        let (read, _) = read_patiently(&heir, "healed").await;
        assert_eq!(bodies(&read), large_bodies(0..20), "{fault:?}");
        heir.log.close().await.unwrap();
    }
}

/// An owner stops at a request to the store, another takes over and does everything, and the first
/// goes on: at each request of an attempt, in parts and whole.
#[tokio::test(start_paused = true)]
async fn an_owner_that_goes_on_after_another_took_over_changes_nothing() {
    for make in [World::new, World::whole] {
        let mut at_request = 0;
        loop {
            let world = make();
            let old = world.owner(20).await;
            let held = Arc::new(AtomicBool::new(false));
            // Only requests of the old owner are held.
            let others = Arc::new(AtomicBool::new(false));
            let (told, of_others, mut seen) = (Arc::clone(&held), Arc::clone(&others), 0);
            world.cold.judge(move |_, _| {
                seen += 1;
                let is_hit = seen == at_request + 1 && !of_others.load(Ordering::Relaxed);
                told.fetch_or(is_hit, Ordering::Relaxed);
                is_hit.then_some(Fault::Held)
            });
            old.log.request_offload(old.log.end()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            others.store(true, Ordering::Relaxed);
            let what = format!("held at request {at_request}");

            let heir = Owner::open(world.process(), options(10)).await;
            world.reap(&heir).await;
            world.pass(Duration::from_secs(61));
            world.reap(&heir).await;
            assert!(world.world.store.keys("oc/").is_empty(), "{what}");
            offload_all(&heir).await;
            world.pass(LAG);
            drop_copies(&heir, heir.log.end(), 0).await;

            world.cold.heal();
            tokio::time::sleep(Duration::from_secs(5)).await;
            world.check_recorded(&what).await;
            let last = Owner::open(world.process(), options(10)).await;
            for reader in [&heir, &last] {
                let (read, _) = read_patiently(reader, &what).await;
                assert_eq!(bodies(&read), large_bodies(0..20), "{what}");
            }
            // What the old owner has finished late goes, once it can appear no more.
            world.pass(Duration::from_secs(3 * 3600));
            world.reap(&last).await;
            assert_eq!(world.cold.names().len(), 2, "{what}");
            assert!(world.cold.unfinished().is_empty(), "{what}");
            for prefix in ["oc/", "od/", "g/"] {
                let left = world.world.store.keys(prefix);
                assert!(left.is_empty(), "{what}: {left:?}");
            }
            if !held.load(Ordering::Relaxed) {
                assert!(at_request >= 6, "an attempt has requests: {at_request}");
                break;
            }
            at_request += 1;
        }
    }
}

/// A full bucket, or credentials that may read and not write: copies stay, everything is read and
/// written as before, and offload goes on when there is space again.
#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_stops_offload_alone() {
    for fault in [Fault::Fails, Fault::Denied] {
        let world = World::new();
        let owner = world.owner(10).await;
        let writes = [Op::Put, Op::Begin, Op::Part, Op::Complete];
        world
            .cold
            .judge(move |op, _| writes.contains(&op).then_some(fault));
        for _ in 0..3 {
            let left = offload(&owner, owner.log.end()).await;
            let failure = left.failure.expect("it fails");
            assert!(matches!(failure, LogError::Unavailable(_)), "{failure:?}");
            world.pass(Duration::from_secs(3600));
        }
        assert_eq!(world.copies(), 1);
        owner.append_all(100..103).await;
        let (read, refusals) = read_patiently(&owner, "full").await;
        assert_eq!((read.len(), refusals), (13, 0));
        world.cold.heal();
        owner.log.roll().await.unwrap();
        offload_all(&owner).await;
        world.pass(Duration::from_secs(3 * 3600));
        world.reap(&owner).await;
        assert_eq!(world.cold.names().len(), 2);
        world.check_recorded("healed").await;
        assert!(world.world.store.keys("od/").is_empty());
    }
}

/// A reader that starts at the first message of a topic of which nine tenths are in objects goes on
/// into the bookies and the tail, which grows meanwhile, without gap or repetition, whatever the
/// store does.
#[tokio::test(start_paused = true)]
async fn a_reader_goes_from_objects_into_bookies_and_the_tail_under_faults() {
    for seed in 0..12 {
        let world = World::new();
        let first = world.owner(100).await;
        let cold_end = first.log.stats().ledgers[9].first_index;
        while offload(&first, cold_end).await != Offloading::default() {}
        world.pass(LAG);
        drop_copies(&first, cold_end, 1).await;
        first.log.close().await.unwrap();
        assert_eq!((world.cold.names().len(), world.copies()), (9, 1));

        let owner = Owner::open(world.process(), options(10)).await;
        let rng = SeededRng::shared(seed);
        let mut since_lie = 0;
        world.cold.judge(move |_, _| {
            since_lie += 1;
            let drawn = rng.id16();
            let failures = [Fault::Fails, Fault::Denied, Fault::Hangs];
            let lies = [Fault::Missing, Fault::Short, Fault::Garbled];
            // An answer that is wrong twice is damage: that is another test.
            if drawn[0] < 40 && since_lie > 20 {
                since_lie = 0;
                return Some(lies[usize::from(drawn[1] % 3)]);
            }
            (drawn[0] < 100).then(|| failures[usize::from(drawn[1] % 3)])
        });
        let mut at = ReadPoint::from(Index(0));
        let (mut read, mut appended, mut refusals) = (Vec::new(), 100, 0);
        while read.len() < 150 {
            if appended < 150 {
                owner.append_bytes(appended, large(appended)).unwrap();
                appended += 1;
            }
            match owner.log.read_or_skip(&mut at, LIMITS).await {
                Ok(Found::Entries(found)) if found.is_empty() => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(Found::Entries(found)) => read.extend(found),
                Err(LogError::Unavailable(_)) if refusals < 1_000 => refusals += 1,
                found => panic!("seed {seed}: {found:?}"),
            }
        }
        assert_eq!(bodies(&read), large_bodies(0..150), "seed {seed}");
        assert!(world.cold.count(Op::Get) > 9, "it reads objects");
    }
}

/// The wall clock of a process is a day ahead or behind for a while: no attempt of a living process
/// is given up by it, and copies go only when the object is there.
#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_gives_no_living_attempt_up() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    for is_ahead in [true, false] {
        let world = World::new();
        let owner = world.owner(20).await;
        world
            .cold
            .judge(|op, _| (op == Op::Part).then_some(Fault::Held));
        owner.log.request_offload(owner.log.end()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let store = &world.world.store;
        let under_way = store.keys("oc/");
        assert_eq!(under_way.len(), 1);
        let clock = world.world.clock.as_ref().unwrap();
        let (now, day) = (clock.wall_ms(), clock::millis(DAY));
        clock.set_wall_ms(match is_ahead {
            true => now + day,
            false => now - day,
        });
        let other = Owner::open(world.process(), options(10)).await;
        for _ in 0..2 {
            let tier = other.ctx.cold.as_ref().unwrap();
            let reaped = reap(&other.ctx, tier, |_| true).await.unwrap();
            assert_eq!((reaped.given_up, reaped.deleted), (0, 0));
            world.pass(Duration::from_secs(61));
        }
        assert_eq!(store.keys("oc/"), under_way, "ahead: {is_ahead}");
        world.cold.heal();
        offload_all(&owner).await;
        // It is right again.
        clock.set_wall_ms(now + 122_000);
        owner.log.care_for_offload(owner.log.end(), Index(0));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(bodies(&owner.read_all().await), large_bodies(0..20));
        world.check_recorded("a wall clock").await;
        world.pass(DAY * 2);
        drop_copies(&owner, owner.log.end(), 0).await;
        world.reap(&owner).await;
        assert_eq!(world.cold.names().len(), 2, "ahead: {is_ahead}");
        let heir = Owner::open(world.process(), options(10)).await;
        assert_eq!(bodies(&heir.read_all().await), large_bodies(0..20));
    }
}
