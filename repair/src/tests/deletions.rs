//! Deletion in a cluster whose bookies come and go, and the audit of what a bookie stores.

use aquifer_ledger::deletion::{self, Intent, begin_copy, sweep_intents, sweep_intents_of};

use super::*;

/// A pass over everything that a bookie stores.
pub(super) async fn pass(
    cluster: &Cluster,
    audit: &mut LocalAudit,
    n: u8,
) -> Result<LocalReport, LedgerError> {
    let mut stored = Vec::new();
    for ledger in cluster.world.bookies.ledgers(bookie(n)) {
        let info = ledger_metadata::load(cluster.store(), ledger).await;
        let token = info.ok().flatten().map(|info| info.token);
        let token = token.unwrap_or(CreationToken([9; 16]));
        stored.push(LocalLedger { ledger, token });
    }
    let mut pass = audit.begin().await?;
    for page in stored.chunks(2) {
        pass.look_at(page);
    }
    audit.finish(pass).await
}

#[tokio::test(start_paused = true)]
async fn a_bookie_that_was_away_deletes_when_it_returns() {
    let cluster = Cluster::new(3).await;
    let kept = cluster.closed(quorum(3, 3, 2), 3).await;
    let gone = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.lose(bookie(2)).await;
    assert_eq!(inspect::delete(&cluster.ctx, gone).await, Ok(Some(1)));
    assert_eq!(cluster.world.bookies.ledgers(bookie(1)), [kept]);
    // As long as a copy may be somewhere, record and intent say so.
    assert_eq!(sweep_intents(&cluster.ctx.ledgers).await, Ok(0));
    assert_eq!(cluster.world.store.keys("g/").len(), 1);
    assert_eq!(cluster.world.store.keys("l/").len(), 2);
    cluster.register(bookie(2)).await;
    assert_eq!(
        sweep_intents_of(&cluster.ctx.ledgers, bookie(1)).await,
        Ok(0)
    );
    assert_eq!(
        sweep_intents_of(&cluster.ctx.ledgers, bookie(2)).await,
        Ok(1)
    );
    assert_eq!(cluster.world.bookies.ledgers(bookie(2)), [kept]);
    assert!(cluster.world.store.keys("g/").is_empty());
    assert_eq!(cluster.world.store.keys("l/").len(), 1);
    cluster.assert_whole(kept, 3).await;
}

/// A second deletion neither forgets which bookies have deleted, nor those that hold a single copy.
#[tokio::test(start_paused = true)]
async fn a_deletion_goes_on_from_the_stored_intent() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.lose(bookie(2)).await;
    assert_eq!(inspect::delete(&cluster.ctx, ledger).await, Ok(Some(1)));
    // It has acknowledged.
    cluster.lose(bookie(3)).await;
    assert_eq!(inspect::delete(&cluster.ctx, ledger).await, Ok(Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_takes_over_an_intent_for_a_single_copy() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    let info = cluster.info(ledger).await;
    let (store, away) = (cluster.store(), bookie(4));
    cluster.lose(away).await;
    let copy = Intent::of_copy(ledger, info.token, away, Some(&info));
    assert_eq!(begin_copy(store, &copy, Some(&info)).await, Ok(true));
    assert_eq!(inspect::delete(&cluster.ctx, ledger).await, Ok(Some(1)));
    let intent = deletion::load(store, ledger).await.unwrap().unwrap();
    assert!(intent.names(away) && intent.deletes(&info));
}

#[tokio::test(start_paused = true)]
async fn a_decommissioned_bookie_is_not_waited_for() {
    let cluster = Cluster::new(3).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.lose(bookie(2)).await;
    assert_eq!(inspect::delete(&cluster.ctx, ledger).await, Ok(Some(1)));
    cluster
        .change(Operation::Put {
            key: keys::cookie(bookie(2)),
            value: record::encode(v1::CookieRecord {
                decommissioned_ms: 1,
                ..v1::CookieRecord::default()
            }),
            expect: Expect::Any,
        })
        .await;
    assert_eq!(sweep_intents(&cluster.ctx.ledgers).await, Ok(1));
    assert!(cluster.world.store.keys("g/").is_empty());
    assert!(cluster.world.store.keys("l/").is_empty());
}

/// A store that answers nothing still deletes once, whatever is asked again.
#[tokio::test(start_paused = true)]
async fn lost_answers_of_the_store_change_nothing() {
    let cluster = Cluster::new(3).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.world.store.lose_answers(3);
    assert_eq!(inspect::delete(&cluster.ctx, ledger).await, Ok(Some(0)));
    assert!(cluster.world.store.keys("g/").is_empty());
    assert!(cluster.world.store.keys("l/").is_empty());
}

#[tokio::test(start_paused = true)]
async fn copies_that_nothing_refers_to_go_after_two_passes() {
    let cluster = Cluster::new(4).await;
    let moved = cluster.closed(quorum(3, 3, 2), 3).await;
    let lost_record = cluster.closed(quorum(3, 3, 2), 3).await;
    let kept = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.lose(bookie(1)).await;
    cluster
        .mark(Mark::new(moved, HOME, "test", 0).lost([bookie(1)]))
        .await;
    cluster.worker().await.round().await.unwrap();
    cluster.register(bookie(1)).await;
    cluster
        .change(Operation::Delete {
            key: keys::ledger(lost_record),
            expect: Expect::Any,
        })
        .await;
    let mut audit = LocalAudit::new(cluster.ctx.clone(), bookie(1), &cluster.config);
    let first = pass(&cluster, &mut audit, 1).await.unwrap();
    assert_eq!((first.stored, first.suspects), (3, 2));
    assert!(first.intents.is_empty());
    let second = pass(&cluster, &mut audit, 1).await.unwrap();
    assert_eq!(second.intents, [moved, lost_record]);
    sweep_intents_of(&cluster.ctx.ledgers, bookie(1))
        .await
        .unwrap();
    // The record that is gone cannot say which token the ledger had: another is not deleted.
    assert_eq!(
        cluster.world.bookies.ledgers(bookie(1)),
        [lost_record, kept]
    );
    assert!(cluster.world.store.keys("g/").is_empty());
    cluster.assert_whole(moved, 3).await;
    cluster.assert_whole(kept, 3).await;
}

/// The copy of a large ledger takes longer than two passes; until it is complete no record names
/// its bookie. Deleting it again and again kept such ledgers from ever being repaired.
#[tokio::test(start_paused = true)]
async fn what_a_repair_is_copying_is_not_superfluous() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.lose(bookie(1)).await;
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(1)]);
    cluster.mark(mark).await;
    assert_eq!(cluster.worker().await.round().await.unwrap().repaired, 1);
    cluster.register(bookie(1)).await;
    // To the audit it is as if the repair were copying to the first bookie.
    let repair = cluster.session().await;
    let (lock, value) = (
        keys::repair_lock(ledger),
        record::encode(v1::LockRecord::default()),
    );
    repair.put(&lock, value, Expect::Absent).await.unwrap();
    let mut audit = LocalAudit::new(cluster.ctx.clone(), bookie(1), &cluster.config);
    for _ in 0..3 {
        let during = pass(&cluster, &mut audit, 1).await.unwrap();
        assert_eq!((during.suspects, during.intents.len()), (1, 0));
    }
    repair.close().await.unwrap();
    assert_eq!(pass(&cluster, &mut audit, 1).await.unwrap().intents, []);
    assert_eq!(
        pass(&cluster, &mut audit, 1).await.unwrap().intents,
        [ledger]
    );
}

/// A bookie that was away while more was moved off it than may look wrong gets its space back.
#[tokio::test(start_paused = true)]
async fn any_number_of_moved_ledgers_goes_but_not_of_those_without_a_record() {
    let mut cluster = Cluster::new(4).await;
    cluster.config.orphans_max = 1;
    let mut moved = Vec::new();
    for _ in 0..3 {
        moved.push(cluster.closed(quorum(3, 3, 2), 3).await);
    }
    cluster.lose(bookie(1)).await;
    for ledger in &moved {
        let mark = Mark::new(*ledger, HOME, "test", 0);
        cluster.mark(mark.lost([bookie(1)])).await;
    }
    assert_eq!(cluster.worker().await.round().await.unwrap().repaired, 3);
    cluster.register(bookie(1)).await;
    let mut audit = LocalAudit::new(cluster.ctx.clone(), bookie(1), &cluster.config);
    for left in (0..3).rev() {
        let first = pass(&cluster, &mut audit, 1).await.unwrap();
        assert_eq!((first.suspects, first.intents.len()), (left + 1, 0));
        let second = pass(&cluster, &mut audit, 1).await.unwrap();
        assert_eq!(second.intents.len(), 1);
        sweep_intents_of(&cluster.ctx.ledgers, bookie(1))
            .await
            .unwrap();
        let stored = cluster.world.bookies.ledgers(bookie(1)).len();
        assert_eq!(stored as u64, left);
    }
    for ledger in moved {
        cluster.assert_whole(ledger, 3).await;
    }

    for _ in 0..3 {
        let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
        let (key, expect) = (keys::ledger(ledger), Expect::Any);
        cluster.change(Operation::Delete { key, expect }).await;
    }
    for _ in 0..3 {
        let error = pass(&cluster, &mut audit, 1).await.unwrap_err();
        assert!(error.to_string().contains("no record"), "{error}");
    }
    assert_eq!(cluster.world.bookies.ledgers(bookie(1)).len(), 3);
}

/// H14: metadata that was restored from a backup does not know the newest ledgers.
#[tokio::test(start_paused = true)]
async fn metadata_older_than_the_data_deletes_nothing() {
    let mut cluster = Cluster::new(3).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    for key in [keys::ledger(ledger), keys::id_range(keys::IDS_LEDGER)] {
        let expect = Expect::Any;
        cluster.change(Operation::Delete { key, expect }).await;
    }
    let mut audit = LocalAudit::new(cluster.ctx.clone(), bookie(1), &cluster.config);
    for _ in 0..3 {
        let error = pass(&cluster, &mut audit, 1).await.unwrap_err();
        assert!(error.to_string().contains("older than the data"), "{error}");
    }
    // Nor does one that knows suspiciously little, or cannot be read completely.
    cluster.closed(quorum(3, 3, 2), 1).await;
    cluster.config.orphans_max = 0;
    let mut audit = LocalAudit::new(cluster.ctx.clone(), bookie(1), &cluster.config);
    assert!(pass(&cluster, &mut audit, 1).await.is_err());
    cluster
        .change(Operation::Put {
            key: keys::ledger(LedgerId(5_000)),
            value: Bytes::from_static(b"garbage"),
            expect: Expect::Any,
        })
        .await;
    assert!(pass(&cluster, &mut audit, 1).await.is_err());
    assert!(cluster.world.store.keys("g/").is_empty());
    assert_eq!(cluster.world.bookies.ledgers(bookie(1)).len(), 2);
}

/// A repair that has copied to a bookie does not count on that copy once it may have been deleted
/// as superfluous.
#[tokio::test(start_paused = true)]
async fn a_copy_that_is_being_deleted_is_never_swapped_in() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 5).await;
    let info = cluster.info(ledger).await;
    let intent = deletion::Intent::of_copy(ledger, info.token, bookie(4), Some(&info));
    assert!(
        deletion::begin_copy(cluster.store(), &intent, Some(&info))
            .await
            .unwrap()
    );
    cluster.lose(bookie(1)).await;
    cluster
        .mark(Mark::new(ledger, HOME, "test", 0).lost([bookie(1)]))
        .await;
    let mut worker = cluster.worker().await;
    assert_eq!(
        worker.round().await.unwrap().failed,
        1,
        "4 is the only spare"
    );
    assert_eq!(cluster.info(ledger).await.fragments, info.fragments);
    // The judgement of the record is of before: a second intent does not come through.
    let intent = deletion::Intent::of_copy(ledger, info.token, bookie(1), Some(&info));
    sweep_intents(&cluster.ctx.ledgers).await.unwrap();
    assert!(
        !deletion::begin_copy(cluster.store(), &intent, Some(&info))
            .await
            .unwrap()
    );
    // The tombstone refuses the ledger for good; another bookie takes it.
    cluster.pass_time(Duration::from_secs(300));
    assert_eq!(worker.round().await.unwrap().failed, 1);
    cluster.register(bookie(1)).await;
    cluster.pass_time(Duration::from_secs(300));
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 5).await;
}
