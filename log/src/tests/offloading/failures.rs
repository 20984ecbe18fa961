//! Stores and processes that fail while ledgers are offloaded, and others that do the same.

use aquifer_ledger::testing::{Blow, Fuse};

use super::*;

/// Whatever request fails, or loses its answer, nothing is lost, and the next attempt succeeds.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_at_any_request_loses_nothing() {
    for fault in [
        Fault::Fails,
        Fault::AnswerLost,
        Fault::Denied,
        Fault::Missing,
        Fault::Short,
        Fault::Garbled,
        Fault::Forgotten,
    ] {
        let mut at_request = 0;
        loop {
            let world = World::new();
            let owner = world.owner(10).await;
            let mut seen = 0;
            let failed = Arc::new(Mutex::new(None));
            let told = Arc::clone(&failed);
            world.cold.judge(move |op, _| {
                seen += 1;
                let is_hit = seen == at_request + 1;
                is_hit.then(|| {
                    *told.lock() = Some(op);
                    fault
                })
            });
            let first = offload(&owner, owner.log.end()).await;
            let hit = *failed.lock();
            let what = format!("{fault:?} at request {at_request}, {hit:?}: {first:?}");
            world.cold.heal();
            world.check_recorded(&what).await;
            assert_eq!(
                bodies(&owner.read_all().await),
                large_bodies(0..10),
                "{what}"
            );
            offload_all(&owner).await;
            world.pass(LAG);
            drop_copies(&owner, owner.log.end(), 0).await;
            let heir = Owner::open(world.process(), options(10)).await;
            assert_eq!(
                bodies(&heir.read_all().await),
                large_bodies(0..10),
                "{what}"
            );
            // What failed attempts left goes, once it can appear no more.
            world.pass(Duration::from_secs(3 * 3600));
            world.reap(&heir).await;
            assert_eq!(world.cold.names().len(), 1, "{what}");
            // Of an upload whose name was lost the store's own rule takes care.
            let is_lost = (fault, hit) == (Fault::AnswerLost, Some(Op::Begin));
            assert_eq!(
                world.cold.unfinished().len(),
                usize::from(is_lost),
                "{what}"
            );
            for prefix in ["oc/", "od/", "g/"] {
                assert!(
                    world.world.store.keys(prefix).is_empty(),
                    "{what}: {prefix}"
                );
            }
            if hit.is_none() {
                assert!(at_request > 8, "an attempt has requests: {at_request}");
                break;
            }
            at_request += 1;
        }
    }
}

/// A process that offloads and drops copies until it dies.
async fn life(world: &World, fuse: &Arc<Fuse>) {
    let ledgers = world.world.fused_process(fuse);
    let ctx = over_cold(ledgers, &world.cold, world.settings.clone());
    let Ok(owner) = Owner::try_open(ctx, options(10), Vec::new()).await else {
        return;
    };
    let end = owner.log.end();
    while owner
        .log
        .request_offload(end)
        .await
        .is_ok_and(|left| left.ledgers > 0)
    {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.pass(LAG);
    while count_local(&owner) > 0 {
        owner.log.care_for_offload(end, Index(0));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_at_any_step_leaves_everything_readable_and_recorded() {
    for blow in [Blow::Before, Blow::After] {
        let mut steps = 0;
        loop {
            let world = World::new();
            let owner = world.owner(20).await;
            owner.log.close().await.unwrap();
            let fuse = Fuse::new(steps, blow);
            // The dead reach no store.
            let of_dead = Arc::clone(&fuse);
            world
                .cold
                .judge(move |_, _| of_dead.is_blown().then_some(Fault::Hangs));
            let lived = tokio::time::timeout(Duration::from_secs(600), life(&world, &fuse));
            let _ = lived.await;
            let what = format!("{blow:?} step {steps}");
            world.cold.heal();
            world.check_recorded(&what).await;
            let heir = Owner::open(world.process(), options(10)).await;
            assert_eq!(
                bodies(&heir.read_all().await),
                large_bodies(0..20),
                "{what}"
            );
            // The claims of the dead end after a minute, by the reaper's own clock.
            world.reap(&heir).await;
            world.pass(Duration::from_secs(61));
            world.reap(&heir).await;
            assert!(world.world.store.keys("oc/").is_empty(), "{what}");
            sweep_intents(&heir.ctx.ledgers).await.unwrap();
            offload_all(&heir).await;
            world.pass(LAG);
            drop_copies(&heir, heir.log.end(), 0).await;
            assert_eq!(world.copies(), 0, "{what}");
            let last = Owner::open(world.process(), options(10)).await;
            assert_eq!(
                bodies(&last.read_all().await),
                large_bodies(0..20),
                "{what}"
            );
            world.pass(Duration::from_secs(3 * 3600));
            world.reap(&last).await;
            assert_eq!(world.cold.names().len(), 2, "{what}");
            if !fuse.is_blown() {
                assert!(steps > 8, "a life has steps: {steps}");
                break;
            }
            steps += 1;
            assert!(steps < 200, "the fuse never outlasts the life");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_offloaders_one_wins() {
    let world = World::new();
    let owner = world.owner(20).await;
    owner.log.close().await.unwrap();
    let one = Owner::open(world.process(), options(10)).await;
    let two = Owner::open(world.process(), options(10)).await;
    tokio::join!(offload(&one, one.log.end()), offload(&two, two.log.end()));
    for owner in [&one, &two] {
        offload_all(owner).await;
        assert_eq!(bodies(&owner.read_all().await), large_bodies(0..20));
    }
    world.pass(Duration::from_secs(3 * 3600));
    world.reap(&one).await;
    assert_eq!(world.cold.names().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_trimmed_while_it_is_offloaded_takes_its_object_along() {
    let world = World::new();
    let owner = world.owner(20).await;
    // The upload waits for a store that does not answer.
    let hangs = Arc::new(Mutex::new(true));
    let hung = Arc::clone(&hangs);
    world
        .cold
        .judge(move |op, _| (op == Op::Part && *hung.lock()).then_some(Fault::Hangs));
    let _ = owner.log.request_offload(owner.log.end()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.world.store.keys("oc/").len(), 1);
    owner.log.trim(owner.log.end(), KEEP_NOTHING).await.unwrap();
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    world.check_recorded("trimmed").await;
    *hangs.lock() = false;
    // The attempt is given up at its limit, and has nothing to change any more.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    world.pass(Duration::from_secs(3 * 3600));
    world.reap(&owner).await;
    assert!(world.cold.names().is_empty() && world.cold.unfinished().is_empty());
    for prefix in ["l/", "oc/", "od/"] {
        assert!(world.world.store.keys(prefix).is_empty(), "{prefix}");
    }
}
