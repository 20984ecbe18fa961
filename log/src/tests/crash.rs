//! The process dies at every step that changes the world: what was acknowledged stays (I2, I3).

use aquifer_ledger::deletion::sweep_intents;
use aquifer_ledger::testing::{Blow, Fuse};
use std::time::Duration;

use super::*;

/// Everything that a log does, until the process dies or all is done.
async fn life(world: &TestWorld, fuse: &Arc<Fuse>, acknowledged: &Arc<Sink>) {
    let ctx = world.fused_logs(fuse);
    let Ok(mut owner) = Owner::try_open(ctx, options(2), Vec::new()).await else {
        return;
    };
    owner.sink = acknowledged.clone();
    owner.collected = acknowledged.clone();
    let start = u64::try_from(acknowledged.so_far().len()).unwrap();
    for tag in start..start + 5 {
        if owner.append(tag).is_err() {
            return;
        }
        if tag % 2 == 0 {
            acknowledged
                .wait_for(usize::try_from(tag).unwrap() + 1)
                .await;
        }
    }
    acknowledged
        .wait_for(usize::try_from(start).unwrap() + 5)
        .await;
    let _ = owner.log.roll().await;
    let _ = owner.log.trim(Index(4), KEEP_NOTHING).await;
    let _ = owner.log.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_step_loses_nothing_acknowledged() {
    for blow in [Blow::Before, Blow::After] {
        let mut completed = false;
        let mut steps = 0;
        while !completed {
            let world = TestWorld::new(1);
            let sink = Arc::new(Sink::default());
            let fuse = Fuse::new(steps, blow);
            // A dead process waits for ever.
            let _ =
                tokio::time::timeout(Duration::from_secs(3600), life(&world, &fuse, &sink)).await;
            completed = !fuse.is_blown();
            check_heir(&world, &sink, &format!("{blow:?} step {steps}")).await;
            steps += 1;
            assert!(steps < 500, "the fuse never outlasts the life");
        }
        assert!(steps > 10, "a life has steps: {steps}");
    }
}

/// The next owner finds every acknowledged entry in its place, and can go on.
async fn check_heir(world: &TestWorld, sink: &Arc<Sink>, what: &str) {
    let acknowledged = sink.so_far();
    let heir = Owner::open(world.logs(), options(2)).await;
    let entries = heir.read_all().await;
    let (first, end) = (heir.log.first(), heir.log.end());
    for (tag, outcome) in &acknowledged {
        let Ok(appended) = outcome else {
            panic!("{what}: a dead process fails nothing, {tag} got {outcome:?}");
        };
        if appended.base_index < first {
            assert!(first <= Index(4), "{what}: trimmed too much");
            continue;
        }
        let found = entries
            .iter()
            .find(|entry| entry.head.base_index == appended.base_index)
            .unwrap_or_else(|| panic!("{what}: {tag} at {appended:?} is lost, end {end}"));
        assert_eq!(found.body, body(*tag), "{what}");
        assert_eq!(
            (found.ledger, found.entry),
            (appended.ledger, appended.entry)
        );
    }
    // Nothing is stored twice, or out of order.
    let tags: Vec<Bytes> = bodies(&entries);
    let from = tags.first().map_or(0, |first| {
        (0..100)
            .find(|tag| body(*tag) == *first)
            .expect("a body of ours")
    });
    let stored = u64::try_from(tags.len()).unwrap();
    assert_eq!(tags, expected(from..from + stored), "{what}");

    heir.append_all(from + stored..from + stored + 3).await;
    heir.log.close().await.unwrap();
    sweep_intents(&heir.ctx.ledgers).await.unwrap();
    heir.ctx.ledgers.tasks.drain(Duration::from_secs(5)).await;
    assert!(
        world.store.keys("g/").is_empty(),
        "{what}: intents are left"
    );
    let (_, listed) = heir.cell.all_segments().await.unwrap();
    let listed: Vec<u64> = listed.iter().map(|s| s.ledger_id).collect();
    for ledger in world.bookies.ledgers(world.bookies.ids()[0]) {
        assert!(
            listed.contains(&ledger.0),
            "{what}: {ledger} is left on the bookie"
        );
    }
    assert_eq!(world.store.keys("l/").len(), listed.len(), "{what}");
}
