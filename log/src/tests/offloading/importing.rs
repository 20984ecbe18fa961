//! Ledgers that come back to bookies from their objects.

use aquifer_ledger::offload::Copies;
use aquifer_ledger::testing::{Blow, Fuse};

use super::*;
use crate::tests::offloading::scrubbing::{flip, scrub_all};

/// Asks until everything is back, or a run failed.
async fn import(owner: &Owner) -> Offloading {
    loop {
        let all = Index(0)..owner.log.end();
        let left = owner.log.request_import(all).await.unwrap();
        if left.ledgers == 0 || left.failure.is_some() {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn import_all(owner: &Owner) {
    // What a failed run has left is told first.
    for _ in 0..3 {
        if import(owner).await == Offloading::default() {
            return;
        }
    }
    panic!("the re-import does not succeed");
}

impl World {
    /// An owner whose ledgers are in objects only, ten entries in each.
    async fn offloaded(&self, count: u64) -> Owner {
        let owner = self.owner(count).await;
        offload_all(&owner).await;
        self.pass(LAG);
        drop_copies(&owner, owner.log.end(), 0).await;
        assert_eq!(self.copies(), 0);
        owner
    }

    /// Each ledger is one of the log, or is named by one of these, or is to be deleted.
    async fn check_named(&self, owner: &Owner, what: &str) {
        let store = &self.world.store;
        let ids = |prefix: &str| -> BTreeSet<LedgerId> {
            let keys = store.keys(prefix).into_iter();
            keys.map(|key| LedgerId(key.trim_start_matches(prefix).parse().unwrap()))
                .collect()
        };
        let mut named = ids("g/");
        for stat in owner.log.stats().ledgers {
            named.insert(stat.ledger);
            let info = ledger_metadata::load_existing(store, stat.ledger)
                .await
                .unwrap();
            let copies = info.offload.as_ref().and_then(Offload::copies);
            named.extend(copies.and_then(Copies::other_ledger));
        }
        for ledger in ids("l/") {
            assert!(named.contains(&ledger), "{what}: {ledger} is named nowhere");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_re_imported_is_read_from_bookies_until_its_lag_is_over() {
    let world = World::new();
    let owner = world.offloaded(40).await;
    let before = owner.read_all().await;
    let second = owner.log.stats().ledgers[1].first_index;
    let third = owner.log.stats().ledgers[2].first_index;
    // Only those with messages of the range.
    while owner
        .log
        .request_import(second..third)
        .await
        .unwrap()
        .ledgers
        > 0
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((count_local(&owner), world.copies()), (1, 1));
    import_all(&owner).await;
    assert_eq!((count_local(&owner), world.copies()), (4, 4));
    world.check_named(&owner, "imported").await;

    // No object is asked, by this process and by the next.
    let heir = Owner::open(world.process(), options(10)).await;
    world.cold.judge(|_, _| Some(Fault::Fails));
    for reader in [&owner, &heir] {
        assert_eq!(reader.read_all().await, before);
    }
    world.cold.heal();
    // Without the copies the object serves.
    for bookie in world.world.bookies.ids() {
        world.world.bookies.wipe(bookie);
    }
    let last = Owner::open(world.process(), options(10)).await;
    assert_eq!(last.read_all().await, before);

    world.pass(LAG);
    drop_copies(&last, last.log.end(), 0).await;
    assert_eq!(world.copies(), 0);
    assert_eq!(world.world.store.keys("l/").len(), 4);
    assert_eq!(world.cold.names().len(), 4, "objects stay");
    assert_eq!(last.read_all().await, before);
}

/// A process that re-imports until it dies.
async fn life(world: &World, fuse: &Arc<Fuse>) {
    let ledgers = world.world.fused_process(fuse);
    let ctx = over_cold(ledgers, &world.cold, world.settings.clone());
    let Ok(owner) = Owner::try_open(ctx, options(10), Vec::new()).await else {
        return;
    };
    let all = Index(0)..owner.log.end();
    while owner
        .log
        .request_import(all.clone())
        .await
        .is_ok_and(|left| left.ledgers > 0 && left.failure.is_none())
    {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_at_any_step_of_a_re_import_leaves_everything_readable_and_named() {
    for blow in [Blow::Before, Blow::After] {
        let mut steps = 0;
        loop {
            let world = World::new();
            world.offloaded(20).await.log.close().await.unwrap();
            let fuse = Fuse::new(steps, blow);
            let lived = tokio::time::timeout(Duration::from_secs(600), life(&world, &fuse));
            let _ = lived.await;
            let what = format!("{blow:?} step {steps}");
            let heir = Owner::open(world.process(), options(10)).await;
            world.check_named(&heir, &what).await;
            assert_eq!(
                bodies(&heir.read_all().await),
                large_bodies(0..20),
                "{what}"
            );
            import_all(&heir).await;
            sweep_intents(&heir.ctx.ledgers).await.unwrap();
            world.check_named(&heir, &what).await;
            assert!(world.world.store.keys("g/").is_empty(), "{what}");
            assert_eq!((count_local(&heir), world.copies()), (2, 2), "{what}");
            let last = Owner::open(world.process(), options(10)).await;
            world.cold.judge(|_, _| Some(Fault::Fails));
            assert_eq!(
                bodies(&last.read_all().await),
                large_bodies(0..20),
                "{what}"
            );
            if !fuse.is_blown() {
                assert!(steps > 8, "a re-import has steps: {steps}");
                break;
            }
            steps += 1;
            assert!(steps < 300, "the fuse never outlasts the life");
        }
    }
}

/// Without a command: the next owner finds by the topic's record that something is to be done.
#[tokio::test(start_paused = true)]
async fn an_owner_gives_up_what_another_has_left_in_the_middle() {
    let world = World::new();
    let owner = world.offloaded(20).await;
    // Reads of the object never end.
    world
        .cold
        .judge(|op, _| (op == Op::Get).then_some(Fault::Hangs));
    let all = Index(0)..owner.log.end();
    let left = owner.log.request_import(all).await.unwrap();
    assert_eq!(left.ledgers, 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.world.store.keys("l/").len(), 3);
    world.check_named(&owner, "in the middle").await;
    world.cold.heal();
    let heir = Owner::open(world.process(), options(10)).await;
    heir.log.care_for_offload(heir.log.end(), Index(0));
    while world.world.store.keys("l/").len() > 2 {
        sweep_intents(&heir.ctx.ledgers).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bodies(&heir.read_all().await), large_bodies(0..20));
    import_all(&heir).await;
    assert_eq!(world.copies(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_re_import_is_cancelled_in_the_middle_of_a_ledger() {
    let world = World::new();
    let owner = world.offloaded(20).await;
    let hangs = Arc::new(Mutex::new(true));
    let hung = Arc::clone(&hangs);
    world
        .cold
        .judge(move |op, _| (op == Op::Get && *hung.lock()).then_some(Fault::Hangs));
    let all = Index(0)..owner.log.end();
    owner.log.request_import(all).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.world.store.keys("l/").len(), 3);
    owner.log.cancel_import();
    while world.world.store.keys("g/").is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    *hangs.lock() = false;
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.world.store.keys("l/").len(), 2);
    assert_eq!((count_local(&owner), world.copies()), (0, 0));
    assert_eq!(bodies(&owner.read_all().await), large_bodies(0..20));
    import_all(&owner).await;
    assert_eq!(count_local(&owner), 2);
}

#[tokio::test(start_paused = true)]
async fn re_imported_copies_go_with_their_ledgers() {
    let world = World::new();
    let owner = world.offloaded(20).await;
    import_all(&owner).await;
    owner.log.trim(owner.log.end(), KEEP_NOTHING).await.unwrap();
    // The end of one intent is the beginning of the other.
    for _ in 0..3 {
        sweep_intents(&owner.ctx.ledgers).await.unwrap();
    }
    world.reap(&owner).await;
    assert_eq!((world.cold.names().len(), world.copies()), (0, 0));
    for prefix in ["l/", "od/", "g/"] {
        assert!(world.world.store.keys(prefix).is_empty(), "{prefix}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_object_is_not_re_imported() {
    let world = World::new();
    let owner = world.offloaded(10).await;
    let name = world.cold.names().remove(0);
    world.cold.change(&name, |bytes| bytes[5_000] ^= 1);
    let left = import(&owner).await;
    assert!(
        matches!(left.failure, Some(LogError::Damaged(_))),
        "{left:?}"
    );
    assert_eq!(count_local(&owner), 0);
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    assert_eq!(world.world.store.keys("l/").len(), 1);
}

/// They may be all that is left of the ledger: they stay until the object is whole again (I10).
#[tokio::test(start_paused = true)]
async fn re_imported_copies_stay_while_their_object_is_damaged() {
    let world = World::new();
    let owner = world.offloaded(10).await;
    import_all(&owner).await;
    let name = world.cold.names().remove(0);
    flip(&world.cold, &name);
    assert_eq!(scrub_all(&owner.ctx).await.unwrap().damaged, 1);
    world.pass(LAG);
    owner.log.care_for_offload(owner.log.end(), Index(0));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((count_local(&owner), world.copies()), (1, 1));
    assert_eq!(bodies(&owner.read_all().await), large_bodies(0..10));
    // Brought back by a person.
    flip(&world.cold, &name);
    assert_eq!(scrub_all(&owner.ctx).await.unwrap().damaged, 0);
    // The ledger rests after it was refused.
    world.pass(Duration::from_secs(600));
    drop_copies(&owner, owner.log.end(), 0).await;
    assert_eq!(world.copies(), 0);
    assert_eq!(bodies(&owner.read_all().await), large_bodies(0..10));
}
