//! Entries that no bookie has any more, and bookies that are gone for good: whatever else there is
//! gets its copies, and nothing waits for them for ever.

use aquifer_ledger::deletion;

use super::*;
use crate::decommission::{self, Lost, Retired, Retirement};

/// The members that a ledger has for an entry.
async fn members_at(cluster: &Cluster, ledger: LedgerId, entry: u64) -> Vec<BookieId> {
    let info = cluster.info(ledger).await;
    info.duties().at(EntryId(entry)).unwrap().0.to_vec()
}

/// The entries that a bookie has intact.
fn held(cluster: &Cluster, n: u8, ledger: LedgerId) -> Vec<u64> {
    let bookies = &cluster.world.bookies;
    let intact = |entry: &u64| bookies.intact(bookie(n), ledger, EntryId(*entry)).is_some();
    (0..100).filter(intact).collect()
}

fn all_but(entries: u64, but: u64) -> Vec<u64> {
    (0..entries).filter(|entry| *entry != but).collect()
}

/// Every entry but one is intact at all of its places.
async fn assert_whole_but(cluster: &Cluster, ledger: LedgerId, entries: u64, but: u64) {
    let info = cluster.info(ledger).await;
    for entry in all_but(entries, but) {
        let (members, _) = info.duties().at(EntryId(entry)).unwrap();
        for position in info.quorum.write_set(entry) {
            let copy = cluster
                .world
                .bookies
                .intact(members[position], ledger, EntryId(entry));
            assert_eq!(copy, Some(payload(ledger, entry)), "entry {entry}");
        }
    }
}

/// I2, H16: with one entry rotten on all that are left, and the third bookie lost, everything else
/// gets its third copy again, and only the place of that entry is kept for the bookie that is lost.
#[tokio::test(start_paused = true)]
async fn an_entry_that_nobody_has_keeps_nothing_else_on_a_lost_bookie() {
    for shape in [(3, 3, 2), (4, 3, 2), (4, 2, 2)] {
        let cluster = Cluster::new(6).await;
        let bookies = &cluster.world.bookies;
        let ledger = cluster.closed(quorum(shape.0, shape.1, shape.2), 12).await;
        let members = members_at(&cluster, ledger, 5).await;
        let info = cluster.info(ledger).await;
        let places: Vec<BookieId> = info.quorum.write_set(5).map(|p| members[p]).collect();
        let lost = *places.last().unwrap();
        // Rot at some, and one that never had it or what follows.
        bookies.drop_entry(places[0], ledger, EntryId(5));
        for rotten in &places[1..places.len() - 1] {
            bookies.corrupt(*rotten, ledger, EntryId(5));
        }
        cluster.lose(lost).await;
        let mark = Mark::new(ledger, HOME, "test", 0).lost([lost]);
        cluster.mark(mark).await;
        let mut worker = cluster.worker().await;
        let round = worker.round().await.unwrap();
        assert_eq!((round.repaired, round.failed), (0, 1), "{shape:?}");
        assert_whole_but(&cluster, ledger, 12, 5).await;
        for entry in all_but(12, 5) {
            let info = cluster.info(ledger).await;
            let (members, _) = info.duties().at(EntryId(entry)).unwrap();
            let mut stored = info.quorum.write_set(entry).map(|p| members[p]);
            assert!(!stored.any(|member| member == lost), "{shape:?} {entry}");
        }
        assert_eq!(members_at(&cluster, ledger, 5).await, members, "{shape:?}");
        assert_eq!(cluster.marks().len(), 1, "an operator has to know");

        // It comes back with the entry: the others get it from there.
        cluster.register(lost).await;
        let mark = Mark::new(ledger, HOME, "test", 0).doubted(places);
        cluster.mark(mark).await;
        cluster.pass_time(Duration::from_secs(300));
        assert_eq!(worker.round().await.unwrap().repaired, 1, "{shape:?}");
        cluster.assert_whole(ledger, 12).await;
    }
}

/// A bookie that does not answer may have what the others lack: it is waited for until it is lost.
#[tokio::test(start_paused = true)]
async fn a_bookie_that_is_only_silent_is_waited_for() {
    let cluster = Cluster::new(5).await;
    let bookies = &cluster.world.bookies;
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    let before = cluster.info(ledger).await.fragments;
    bookies.drop_entry(bookie(1), ledger, EntryId(5));
    bookies.set_mode(bookie(2), Mode::Unreachable);
    cluster.lose(bookie(3)).await;
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(3)]);
    cluster.mark(mark).await;
    let mut worker = cluster.worker().await;
    assert_eq!(worker.round().await.unwrap().failed, 1);
    assert_eq!(cluster.info(ledger).await.fragments, before);
    bookies.set_mode(bookie(2), Mode::Up);
    cluster.pass_time(Duration::from_secs(300));
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    let mark = Mark::new(ledger, HOME, "test", 0).doubted([bookie(1)]);
    cluster.mark(mark).await;
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 10).await;
}

/// A bookie in limbo gets what others have, although the third is lost and one entry is nowhere.
#[tokio::test(start_paused = true)]
async fn a_bookie_in_limbo_gets_what_there_is_although_another_is_lost() {
    let cluster = Cluster::new(3).await;
    let bookies = &cluster.world.bookies;
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    bookies.corrupt(bookie(2), ledger, EntryId(5));
    for entry in 5..10 {
        bookies.drop_entry(bookie(1), ledger, EntryId(entry));
    }
    cluster.lose(bookie(3)).await;
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(3)]);
    cluster.mark(mark).await;
    let mut restore = Restore::new(cluster.ctx.clone(), bookie(1), &cluster.config);
    let report = restore.pass(&[]).await.unwrap();
    assert_eq!(held(&cluster, 1, ledger), all_but(10, 5));
    assert!(!report.is_complete());
}

/// What no bookie has does not keep a bookie in the cluster for ever; the operator that
/// decommissions it learns what it is, and decides while the bookie might come back with it.
#[tokio::test(start_paused = true)]
async fn a_decommission_ends_and_says_what_is_lost() {
    let cluster = Cluster::new(4).await;
    let bookies = &cluster.world.bookies;
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    let whole = cluster.closed(quorum(3, 3, 2), 10).await;
    bookies.corrupt(bookie(1), ledger, EntryId(5));
    bookies.drop_entry(bookie(2), ledger, EntryId(5));
    cluster.lose(bookie(3)).await;
    let store = cluster.store();
    decommission::set_draining(store, bookie(3), true)
        .await
        .unwrap();
    let (mut auditor, mut worker) = (cluster.auditor(), cluster.worker().await);
    let mut retirement = Retirement::new(cluster.ctx.clone(), bookie(3));
    assert_eq!(retirement.step().await.unwrap(), Retired::Referenced(2));
    auditor.pass().await.unwrap();
    worker.round().await.unwrap();
    cluster.assert_whole(whole, 10).await;
    assert_whole_but(&cluster, ledger, 10, 5).await;
    cluster.pass_time(Duration::from_secs(60));
    let lost = Lost {
        ledger,
        first: EntryId(5),
        last: EntryId(5),
    };
    let last_hope = Retired::LastHope(vec![lost]);
    assert_eq!(retirement.step().await.unwrap(), last_hope);
    assert!(!is_retired(&cluster, 3).await);

    let retirement = Retirement::new(cluster.ctx.clone(), bookie(3));
    let mut retirement = retirement.accept_loss(true);
    let mut ended = false;
    for _ in 0..10 {
        ended = retirement.step().await.unwrap() == Retired::Yes;
        if ended {
            break;
        }
        worker.round().await.unwrap();
        cluster.pass_time(Duration::from_secs(300));
    }
    assert!(ended);
    assert_eq!(retirement.lost().copied().collect::<Vec<_>>(), [lost]);
    assert!(is_retired(&cluster, 3).await);
    assert!(!cluster.info(ledger).await.bookies().contains(&bookie(3)));
    assert_eq!(cluster.marks().len(), 1, "the ledger is not whole");
}

/// A bookie that is there and has not got the entry either is no hope.
#[tokio::test(start_paused = true)]
async fn a_bookie_that_answers_is_retired_without_what_it_lacks() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    for n in 1..=3 {
        cluster.world.bookies.corrupt(bookie(n), ledger, EntryId(0));
    }
    let store = cluster.store();
    decommission::set_draining(store, bookie(3), true)
        .await
        .unwrap();
    let hears = v1::BookieRecord {
        read_only: true,
        ..v1::BookieRecord::default()
    };
    cluster
        .change(Operation::Put {
            key: keys::bookie(bookie(3)),
            value: record::encode(hears),
            expect: Expect::Any,
        })
        .await;
    let (mut auditor, mut worker) = (cluster.auditor(), cluster.worker().await);
    let mut retirement = Retirement::new(cluster.ctx.clone(), bookie(3));
    let mut ended = false;
    for _ in 0..10 {
        ended = retirement.step().await.unwrap() == Retired::Yes;
        if ended {
            break;
        }
        auditor.pass().await.unwrap();
        worker.round().await.unwrap();
        cluster.pass_time(Duration::from_secs(300));
    }
    assert!(ended);
    assert_eq!(retirement.lost().count(), 1);
    assert_whole_but(&cluster, ledger, 10, 0).await;
}

async fn is_retired(cluster: &Cluster, n: u8) -> bool {
    let members = Members::load(cluster.store()).await.unwrap();
    members.get(bookie(n)).unwrap().is_decommissioned()
}

/// A ledger is deleted when its bookies have said so, and one that is gone for good never does:
/// the deletion waits for its decommission, which must not wait for the deletion.
#[tokio::test(start_paused = true)]
async fn a_bookie_is_retired_although_deletions_wait_for_it() {
    let cluster = Cluster::new(4).await;
    let store = cluster.store();
    let early = cluster.closed(quorum(3, 3, 2), 5).await;
    let late = cluster.closed(quorum(3, 3, 2), 5).await;
    let kept = cluster.closed(quorum(3, 3, 2), 5).await;
    cluster.lose(bookie(3)).await;
    assert_eq!(inspect::delete(&cluster.ctx, early).await, Ok(Some(1)));
    let outlook = outlook::of_bookie(store, bookie(3)).await.unwrap();
    assert_eq!(outlook.ledgers, 2);
    decommission::set_draining(store, bookie(3), true)
        .await
        .unwrap();
    assert_eq!(inspect::delete(&cluster.ctx, late).await, Ok(Some(1)));
    let (mut auditor, mut worker) = (cluster.auditor(), cluster.worker().await);
    let mut retirement = Retirement::new(cluster.ctx.clone(), bookie(3));
    assert_eq!(retirement.step().await.unwrap(), Retired::Referenced(1));
    auditor.pass().await.unwrap();
    worker.round().await.unwrap();
    cluster.pass_time(Duration::from_secs(60));
    assert_eq!(retirement.step().await.unwrap(), Retired::Yes);
    assert!(cluster.world.store.keys("g/").is_empty());
    assert_eq!(cluster.world.store.keys("l/").len(), 1);
    cluster.assert_whole(kept, 5).await;
    assert!(cluster.marks().is_empty());
}

/// The same when the process that decommissions dies after the tombstone: the auditor ends what
/// waits.
#[tokio::test(start_paused = true)]
async fn the_auditor_ends_deletions_that_wait_for_the_dead() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 5).await;
    cluster.lose(bookie(3)).await;
    assert_eq!(inspect::delete(&cluster.ctx, ledger).await, Ok(Some(1)));
    let mut auditor = cluster.auditor();
    auditor.pass().await.unwrap();
    assert_eq!(cluster.world.store.keys("g/").len(), 1);
    cluster
        .change(Operation::Put {
            key: keys::cookie(bookie(3)),
            value: record::encode(v1::CookieRecord {
                decommissioned_ms: 1,
                ..v1::CookieRecord::default()
            }),
            expect: Expect::Any,
        })
        .await;
    auditor.pass().await.unwrap();
    assert!(cluster.world.store.keys("g/").is_empty());
    assert!(cluster.world.store.keys("l/").is_empty());
}

/// The deletion of a superfluous copy on a bookie that is gone keeps no worker from repairing the
/// ledger.
#[tokio::test(start_paused = true)]
async fn a_dead_bookie_that_is_to_delete_its_copy_stops_no_repair() {
    let cluster = Cluster::new(5).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 5).await;
    let info = cluster.info(ledger).await;
    cluster.lose(bookie(5)).await;
    let intent = deletion::Intent::of_copy(ledger, info.token, bookie(5), Some(&info));
    assert!(
        deletion::begin_copy(cluster.store(), &intent, Some(&info))
            .await
            .unwrap()
    );
    cluster.lose(bookie(1)).await;
    let report = cluster.repair_all().await;
    assert_eq!(report.remaining, 0);
    assert!(!cluster.info(ledger).await.bookies().contains(&bookie(1)));
    cluster.assert_whole(ledger, 5).await;
}

/// H14: the end of a deletion takes away the record of the ledger that it was about, and not that
/// of another which got the same id after metadata was set back.
#[tokio::test(start_paused = true)]
async fn an_intent_of_a_former_ledger_leaves_the_new_one_alone() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 5).await;
    let other = CreationToken([7; 16]);
    let intent = deletion::Intent::of_copy(ledger, other, bookie(4), None);
    cluster.change(intent.put(Expect::Absent)).await;
    // Until it ends it does not hide the ledger from repair either.
    cluster.lose(bookie(1)).await;
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(1)]);
    cluster.mark(mark.clone()).await;
    cluster.register(bookie(1)).await;
    cluster.world.bookies.wipe(bookie(1));
    assert_eq!(cluster.worker().await.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 5).await;
    cluster.mark(mark).await;
    assert_eq!(deletion::sweep_intents(&cluster.ctx.ledgers).await, Ok(1));
    assert!(cluster.world.store.keys("g/").is_empty());
    assert_eq!(cluster.info(ledger).await.bookies().len(), 3);
    assert_eq!(cluster.marks().len(), 1);
}

/// Storage 13: a writer, or a recovery, gives no place to a bookie that an intent tells to delete
/// what it has of the ledger.
#[tokio::test(start_paused = true)]
async fn a_bookie_that_is_to_delete_its_copy_is_no_replacement() {
    for by_recovery in [false, true] {
        // The bookie is chosen at random.
        for _ in 0..8 {
            let cluster = Cluster::new(5).await;
            let mut ledger = cluster.open(quorum(3, 3, 2)).await;
            assert_eq!(ledger.append(3).await, None);
            let info = cluster.info(ledger.id).await;
            let intent = deletion::Intent::of_copy(ledger.id, info.token, bookie(4), Some(&info));
            let begun = deletion::begin_copy(cluster.store(), &intent, Some(&info)).await;
            assert!(begun.unwrap());
            cluster.world.bookies.set_mode(bookie(2), Mode::Broken);
            if by_recovery {
                let closed = aquifer_ledger::recovery::driver::close_by_recovery(
                    &cluster.ctx.ledgers,
                    ledger.id,
                    &[],
                );
                closed.await.unwrap();
            } else {
                assert_eq!(ledger.append(3).await, None);
                eventually("another has its place", || {
                    !ledger.writer.info().last_fragment().1.contains(&bookie(2))
                })
                .await;
            }
            let bookies = cluster.info(ledger.id).await.bookies();
            assert!(!bookies.contains(&bookie(4)), "by recovery: {by_recovery}");
        }
    }
}
