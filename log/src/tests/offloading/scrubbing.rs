//! Scrubs: what they find, and that a bad object is replaced while bookies have copies.

use aquifer_cold::store::ColdStore;
use aquifer_ledger::testing::{Blow, Fuse};

use super::*;
use crate::offload::scrub::{Scrubbed, scrub};

/// What is done to an object.
type Harm = fn(&MemoryColdStore, &str);

const PASS: Duration = Duration::from_secs(3600);

/// One whole pass of a process.
pub(super) async fn scrub_all(ctx: &LogContext) -> Result<Scrubbed, LogError> {
    let tier = ctx.cold.as_ref().unwrap();
    let between = 5_000_000..5_000_000 + clock::millis(PASS);
    scrub(ctx, tier, (PASS, between), |_| true).await
}

impl World {
    /// A topic of two ledgers in objects, the first of which is as `harm` leaves it.
    async fn harmed(&self, harm: Harm) -> Owner {
        let owner = self.owner(20).await;
        offload_all(&owner).await;
        harm(&self.cold, &self.cold.names()[0]);
        owner
    }

    /// Copies go, everything is read from objects, and nothing is left behind.
    async fn check_after(&self, owner: &Owner, what: &str) {
        self.check_recorded(what).await;
        self.pass(LAG);
        drop_copies(owner, owner.log.end(), 0).await;
        let heir = Owner::open(self.process(), options(10)).await;
        assert_eq!(
            bodies(&heir.read_all().await),
            large_bodies(0..20),
            "{what}"
        );
        self.pass(Duration::from_secs(3 * 3600));
        self.reap(&heir).await;
        assert_eq!(self.cold.names().len(), 2, "{what}");
        for prefix in ["oc/", "od/"] {
            let left = self.world.store.keys(prefix);
            assert!(left.is_empty(), "{what}: {left:?}");
        }
        let seen = scrub_all(&heir.ctx).await.unwrap();
        assert_eq!(
            (seen.objects, seen.damaged + seen.missing),
            (2, 0),
            "{what}"
        );
        // Also by one that knew the objects from before.
        let read = owner.read_all().await;
        assert_eq!(bodies(&read), large_bodies(0..20), "{what}");
    }
}

pub(super) fn flip(cold: &MemoryColdStore, name: &str) {
    cold.change(name, |bytes| bytes[5_000] ^= 1);
}

fn lose(cold: &MemoryColdStore, name: &str) {
    cold.lose(name);
}

fn cut(cold: &MemoryColdStore, name: &str) {
    cold.change(name, |bytes| bytes.truncate(300));
}

#[tokio::test(start_paused = true)]
async fn a_bad_object_is_written_again_from_the_copies() {
    let harms: [(Harm, (u64, u64)); 3] = [(flip, (1, 0)), (cut, (1, 0)), (lose, (0, 1))];
    for (harm, found) in harms {
        let world = World::new();
        let owner = world.harmed(harm).await;
        let before = owner.log.stats();
        let seen = scrub_all(&owner.ctx).await.unwrap();
        assert_eq!((seen.objects, seen.replaced), (2, 1));
        assert_eq!((seen.damaged, seen.missing), found);
        assert_eq!(world.copies(), before.ledgers.len());
        world.check_after(&owner, "replaced").await;
        assert!(world.cold.unfinished().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_object_without_copies_is_told_and_stays() {
    let world = World::new();
    let owner = world.owner(20).await;
    offload_all(&owner).await;
    world.pass(LAG);
    drop_copies(&owner, owner.log.end(), 0).await;
    flip(&world.cold, &world.cold.names()[0]);
    let names = world.cold.names();
    let seen = scrub_all(&owner.ctx).await.unwrap();
    assert_eq!((seen.damaged, seen.replaced), (1, 0));
    assert_eq!(world.cold.names(), names);
    // Brought back by a person.
    flip(&world.cold, &names[0]);
    assert_eq!(scrub_all(&owner.ctx).await.unwrap().damaged, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_or_lies_once_makes_nothing_bad() {
    let world = World::new();
    let owner = world.owner(20).await;
    offload_all(&owner).await;
    let names = world.cold.names();
    for fault in [
        Fault::Fails,
        Fault::Denied,
        Fault::Missing,
        Fault::Short,
        Fault::Garbled,
    ] {
        let mut at_request = 0;
        loop {
            let mut seen = 0;
            let hit = Arc::new(Mutex::new(false));
            let told = Arc::clone(&hit);
            world.cold.judge(move |_, _| {
                seen += 1;
                *told.lock() |= seen == at_request + 1;
                (seen == at_request + 1).then_some(fault)
            });
            let seen = scrub_all(&owner.ctx).await.unwrap();
            world.cold.heal();
            let what = format!("{fault:?} at {at_request}: {seen:?}");
            assert_eq!(seen.damaged + seen.missing, 0, "{what}");
            // The other is read all the same, unless the place itself does not answer.
            assert_eq!(seen.objects + seen.unknown, 2, "{what}");
            if !*hit.lock() {
                break;
            }
            at_request += 1;
        }
        world.cold.judge(move |_, _| Some(fault));
        let away = scrub_all(&owner.ctx).await.unwrap();
        let nothing = Scrubbed {
            unknown: 2,
            ..Scrubbed::default()
        };
        assert_eq!(away, nothing, "{fault:?}");
        world.cold.heal();
    }
    assert_eq!(world.cold.names(), names);
    world.check_after(&owner, "at the end").await;
}

/// An object that may not be read keeps no other from being read.
#[tokio::test(start_paused = true)]
async fn a_scrub_goes_on_behind_what_cannot_be_read() {
    let world = World::new();
    let owner = world.owner(30).await;
    offload_all(&owner).await;
    for name in world.cold.names() {
        let archived = name.clone();
        world
            .cold
            .judge(move |_, asked| (asked == archived).then_some(Fault::Denied));
        let seen = scrub_all(&owner.ctx).await.unwrap();
        world.cold.heal();
        assert_eq!((seen.objects, seen.unknown), (2, 1), "{name}");
    }
}

/// The damage is written down also where the object cannot be written again now: copies stay until
/// it is, at the next step, or until the object is whole again (I10, H23).
#[tokio::test(start_paused = true)]
async fn copies_stay_of_an_object_that_is_known_to_be_damaged() {
    for is_brought_back in [false, true] {
        let world = World::new();
        let owner = world.harmed(flip).await;
        let name = world.cold.names().remove(0);
        world
            .cold
            .judge(|op, _| (op == Op::Complete).then_some(Fault::Fails));
        let seen = scrub_all(&owner.ctx).await.unwrap();
        world.cold.heal();
        assert_eq!((seen.damaged, seen.replaced), (1, 0));
        world.pass(LAG);
        drop_copies(&owner, owner.log.end(), 1).await;
        owner.log.care_for_offload(owner.log.end(), Index(0));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(count_local(&owner), 1);
        if is_brought_back {
            flip(&world.cold, &name);
            let seen = scrub_all(&owner.ctx).await.unwrap();
            assert_eq!((seen.objects, seen.damaged), (2, 0));
        } else {
            // No moment of any object: what is known to be bad is not left to the next pass.
            let tier = owner.ctx.cold.as_ref().unwrap();
            let seen = scrub(&owner.ctx, tier, (PASS, 0..0), |_| true).await;
            assert_eq!(seen.unwrap().replaced, 1);
        }
        // The ledger rests after it was refused.
        world.pass(Duration::from_secs(600));
        world.check_after(&owner, "marked").await;
    }
}

/// The other object is given its own lag before copies go.
#[tokio::test(start_paused = true)]
async fn the_lag_begins_again_with_the_object_that_replaces_another() {
    let world = World::new();
    let owner = world.harmed(flip).await;
    world.pass(LAG);
    owner.log.learn_offload().await.unwrap();
    assert_eq!(scrub_all(&owner.ctx).await.unwrap().replaced, 1);
    drop_copies(&owner, owner.log.end(), 1).await;
    owner.log.care_for_offload(owner.log.end(), Index(0));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(count_local(&owner), 1);
    world.check_after(&owner, "after its own lag").await;
}

#[tokio::test(start_paused = true)]
async fn each_object_has_one_moment_in_a_pass() {
    let world = World::new();
    let owner = world.owner(60).await;
    offload_all(&owner).await;
    let tier = owner.ctx.cold.as_ref().unwrap();
    let mut objects = 0;
    let end = 7_000_000 + clock::millis(PASS);
    let mut from = 7_000_000;
    while from < end {
        let to = (from + 250_000).min(end);
        let seen = scrub(&owner.ctx, tier, (PASS, from..to), |_| true).await;
        objects += seen.unwrap().objects;
        from = to;
    }
    assert_eq!(objects, 6);
    let none = scrub(&owner.ctx, tier, (PASS, 7_000_000..end), |_| false).await;
    assert_eq!(none, Ok(Scrubbed::default()));
}

/// A process that dies at any step of a replacement leaves the ledger readable, and nothing behind
/// that the reaper does not find.
#[tokio::test(start_paused = true)]
async fn a_replacement_may_end_at_any_step() {
    for blow in [Blow::Before, Blow::After] {
        let mut steps = 0;
        loop {
            let world = World::new();
            let owner = world.harmed(flip).await;
            let fuse = Fuse::new(steps, blow);
            let ledgers = world.world.fused_process(&fuse);
            let dying = over_cold(ledgers, &world.cold, world.settings.clone());
            let of_dead = Arc::clone(&fuse);
            world
                .cold
                .judge(move |_, _| of_dead.is_blown().then_some(Fault::Hangs));
            let lived = tokio::time::timeout(Duration::from_secs(600), scrub_all(&dying));
            let _ = lived.await;
            world.cold.heal();
            let what = format!("{blow:?} step {steps}");
            world.check_recorded(&what).await;
            // Copies serve meanwhile.
            let read = bodies(&owner.read_all().await);
            assert_eq!(read, large_bodies(0..20), "{what}");
            world.reap(&owner).await;
            world.pass(Duration::from_secs(61));
            world.reap(&owner).await;
            assert!(world.world.store.keys("oc/").is_empty(), "{what}");
            scrub_all(&owner.ctx).await.unwrap();
            world.check_after(&owner, &what).await;
            if !fuse.is_blown() {
                assert!(steps >= 2, "a replacement has steps: {steps}");
                break;
            }
            steps += 1;
        }
    }
}

/// Whatever becomes of the ledger while its object is replaced, the other object is not lost sight
/// of, and does not take the place of what is there by then.
#[tokio::test(start_paused = true)]
async fn a_replacement_gives_way_to_what_happens_meanwhile() {
    for trims in [true, false] {
        let world = World::new();
        let owner = world.harmed(flip).await;
        world
            .cold
            .judge(|op, _| (op == Op::Complete).then_some(Fault::Held));
        let meanwhile = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(world.world.store.keys("oc/").len(), 1);
            if trims {
                owner.log.trim(owner.log.end(), KEEP_NOTHING).await.unwrap();
                sweep_intents(&owner.ctx.ledgers).await.unwrap();
            } else {
                // The lag of the damaged object is over: its copies stay.
                world.pass(LAG);
                drop_copies(&owner, owner.log.end(), 1).await;
                owner.log.care_for_offload(owner.log.end(), Index(0));
                tokio::time::sleep(Duration::from_secs(5)).await;
                assert_eq!(count_local(&owner), 1);
            }
            world.cold.heal();
        };
        let (seen, ()) = tokio::join!(scrub_all(&owner.ctx), meanwhile);
        let seen = seen.unwrap();
        assert_eq!(seen.replaced, u64::from(!trims));
        world.check_recorded("given way").await;
        world.pass(Duration::from_secs(3 * 3600));
        world.reap(&owner).await;
        let left = if trims { 0 } else { 2 };
        assert_eq!(world.cold.names().len(), left);
        assert!(world.world.store.keys("od/").is_empty());
        if !trims {
            world.check_after(&owner, "given way").await;
        }
    }
}

/// A process dies with a replacement that is complete and noted, and that the ledger does not name
/// yet. A restore that finds it by its note takes it over, and the reaper leaves it alone (I10).
/// One that was given up before is not taken: it may be gone the next moment.
#[tokio::test(start_paused = true)]
async fn a_restore_takes_over_an_object_that_no_ledger_names_yet() {
    for is_given_up in [false, true] {
        let (mut steps, mut tried) = (0, 0);
        loop {
            let world = World::new();
            let owner = world.owner(20).await;
            let before = owner.read_all().await;
            let backup = backups::back_up(&owner).await;
            flip(&world.cold, &world.cold.names()[0]);
            let fuse = Fuse::new(steps, Blow::Before);
            let ledgers = world.world.fused_process(&fuse);
            let dying = over_cold(ledgers, &world.cold, world.settings.clone());
            let of_dead = Arc::clone(&fuse);
            world
                .cold
                .judge(move |_, _| of_dead.is_blown().then_some(Fault::Hangs));
            let lived = tokio::time::timeout(Duration::from_secs(600), scrub_all(&dying));
            let _ = lived.await;
            world.cold.heal();
            if !fuse.is_blown() {
                break;
            }
            steps += 1;
            let notes = world.cold.list("test/replaced", None, 10).await.unwrap();
            if notes.is_empty() {
                continue;
            }
            tried += 1;
            owner.log.close().await.unwrap();
            owner.cell.delete().await.unwrap();
            sweep_intents(&owner.ctx.ledgers).await.unwrap();
            assert_eq!(world.world.store.keys("oc/").len(), 1);
            let give_up = async || {
                world.reap(&owner).await;
                world.pass(Duration::from_secs(61));
                world.reap(&owner).await;
                assert!(world.world.store.keys("oc/").is_empty());
            };
            let ctx = world.process();
            if is_given_up {
                world
                    .cold
                    .judge(|op, _| (op == Op::Delete).then_some(Fault::Fails));
                give_up().await;
                world.cold.heal();
                let refused = backups::restore(&ctx, &backup).await;
                assert!(
                    matches!(refused, Err(LogError::Unavailable(_))),
                    "{refused:?}"
                );
                world.reap(&owner).await;
                backups::restore(&ctx, &backup).await.unwrap();
            } else {
                backups::restore(&ctx, &backup).await.unwrap();
                give_up().await;
                let heir = Owner::open(world.process(), options(10)).await;
                assert_eq!(heir.read_all().await, before);
            }
        }
        assert!(tried > 0, "there is a step behind the note");
    }
}

/// A backup names the object that was bad later: it has what took its place (I10, H23).
#[tokio::test(start_paused = true)]
async fn a_backup_made_before_has_what_took_the_place_of_a_bad_object() {
    for harm in [flip, lose] {
        let world = World::new();
        let owner = world.owner(40).await;
        let before = owner.read_all().await;
        let backup = backups::back_up(&owner).await;
        harm(&world.cold, &world.cold.names()[0]);
        assert_eq!(scrub_all(&owner.ctx).await.unwrap().replaced, 1);
        backups::delete(&world, &owner).await;
        world.reap(&owner).await;
        let ctx = world.process();
        backups::restore(&ctx, &backup).await.unwrap();
        let heir = Owner::open(world.process(), options(10)).await;
        assert_eq!(heir.read_all().await, before);

        // Without the backup all of it goes with the topic, notes included.
        let ended = backups::forget(&backup);
        crate::backup::forget(&ctx, &ended).await.unwrap();
        world.reap(&heir).await;
        assert_eq!(heir.read_all().await, before);
        backups::delete(&world, &heir).await;
        assert!(world.cold.names().is_empty(), "{:?}", world.cold.names());
        let notes = world.cold.list("test/replaced", None, 10).await;
        assert_eq!(notes, Ok(Vec::new()));
    }
}
