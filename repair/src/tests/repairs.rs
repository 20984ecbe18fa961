//! Losses of every kind, and what becomes of the ledgers.

use aquifer_model::storage::BookieError;

use super::*;
use crate::worker::ledger::Outcome;

#[tokio::test(start_paused = true)]
async fn a_lost_bookie_is_replaced_in_all_its_ledgers_striped_or_not() {
    for shape in [(3, 3, 2), (5, 3, 2), (4, 2, 2), (3, 3, 1)] {
        let cluster = Cluster::new(6).await;
        let quorum = quorum(shape.0, shape.1, shape.2);
        let mut ledgers = Vec::new();
        for entries in [0, 1, 2, 7, 40] {
            ledgers.push((cluster.closed(quorum, entries).await, entries));
        }
        cluster.lose(bookie(1)).await;
        let report = cluster.repair_all().await;
        assert_eq!(report.remaining, 0, "{shape:?}");
        for (ledger, entries) in ledgers {
            cluster.assert_whole(ledger, entries).await;
            let info = cluster.info(ledger).await;
            assert!(!info.bookies().contains(&bookie(1)), "{shape:?}");
            // The same position: every other bookie stays where it was.
            let (_, members) = info.last_fragment();
            for n in 2..=shape.0 {
                let position = usize::try_from(n - 1).unwrap();
                assert_eq!(members[position], bookie(u8::try_from(n).unwrap()));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn several_fragments_lose_several_bookies() {
    let cluster = Cluster::new(8).await;
    let mut ledger = cluster.open(quorum(3, 3, 2)).await;
    for n in 1..=3 {
        assert_eq!(ledger.append(5).await, None);
        cluster.world.bookies.set_mode(bookie(n), Mode::Broken);
    }
    assert_eq!(ledger.append(5).await, None);
    cluster.close(&ledger).await;
    assert!(cluster.info(ledger.id).await.fragments.len() > 1);
    cluster.lose(bookie(1)).await;
    cluster.lose(bookie(2)).await;
    cluster.world.bookies.set_mode(bookie(3), Mode::Up);
    cluster.repair_all().await;
    let bookies = cluster.info(ledger.id).await.bookies();
    assert!(!bookies.contains(&bookie(1)) && !bookies.contains(&bookie(2)));
    // A writer may have acknowledged an entry without the bookie that came in meanwhile.
    let incomplete = Mark::new(ledger.id, HOME, "test", 0).doubted(bookies);
    cluster.mark(incomplete).await;
    cluster.worker().await.round().await.unwrap();
    cluster.assert_whole(ledger.id, 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_wiped_a_thin_and_a_damaged_copy_are_completed_in_place() {
    for shape in [(3, 3, 2), (5, 3, 2)] {
        let cluster = Cluster::new(5).await;
        let bookies = &cluster.world.bookies;
        let first = cluster.closed(quorum(shape.0, shape.1, shape.2), 30).await;
        let second = cluster.closed(quorum(shape.0, shape.1, shape.2), 30).await;
        bookies.wipe(bookie(1));
        let holds = bookies.entries(bookie(2), first);
        bookies.drop_entry(bookie(2), first, holds[3]);
        bookies.drop_entry(bookie(2), first, *holds.last().unwrap());
        let holds = bookies.entries(bookie(3), second);
        bookies.corrupt(bookie(3), second, holds[0]);
        let before = cluster.info(first).await.fragments;
        for ledger in [first, second] {
            let mark = Mark::new(ledger, HOME, "test", 0).doubted((1..=3).map(bookie));
            cluster.mark(mark).await;
        }
        let round = cluster.worker().await.round().await.unwrap();
        assert_eq!((round.marked, round.repaired), (2, 2));
        cluster.assert_whole(first, 30).await;
        cluster.assert_whole(second, 30).await;
        assert_eq!(cluster.info(first).await.fragments, before, "in place");
        assert!(cluster.marks().is_empty());
    }
}

/// H16: the last copy's place is not given away because an incomplete replica says "no such entry".
#[tokio::test(start_paused = true)]
async fn a_negative_below_the_end_is_missing_and_never_absent() {
    let cluster = Cluster::new(4).await;
    let bookies = &cluster.world.bookies;
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    // 1 has the last copy of entry 9, and is away.
    bookies.drop_entry(bookie(2), ledger, EntryId(9));
    bookies.drop_entry(bookie(3), ledger, EntryId(9));
    cluster.lose(bookie(1)).await;
    let members = cluster.info(ledger).await.last_fragment().1;
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(1)]);
    cluster.mark(mark).await;
    let mut worker = cluster.worker().await;
    let round = worker.round().await.unwrap();
    assert_eq!((round.repaired, round.failed), (0, 1));
    let kept = (EntryId(9), members);
    assert_eq!(cluster.info(ledger).await.last_fragment(), kept);
    assert_eq!(cluster.marks().len(), 1);
    // It is back: nothing needs to move, and the others get what they lack.
    cluster.register(bookie(1)).await;
    let mark = Mark::new(ledger, HOME, "test", 0).doubted([bookie(2), bookie(3)]);
    cluster.mark(mark).await;
    cluster.pass_time(Duration::from_secs(300));
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 10).await;
    assert_eq!(cluster.info(ledger).await.last_fragment(), kept);
}

/// I2: what no bookie has does not keep incomplete what others have.
#[tokio::test(start_paused = true)]
async fn an_entry_that_nobody_has_stops_no_repair_of_those_behind_it() {
    let cluster = Cluster::new(3).await;
    let bookies = &cluster.world.bookies;
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    for n in 1..=2 {
        bookies.corrupt(bookie(n), ledger, EntryId(5));
    }
    for entry in 5..10 {
        bookies.drop_entry(bookie(3), ledger, EntryId(entry));
    }
    let held = |n: u8| -> Vec<u64> {
        let intact = |entry: &u64| bookies.intact(bookie(n), ledger, EntryId(*entry)).is_some();
        (0..10).filter(intact).collect()
    };
    assert_eq!(held(3), [0, 1, 2, 3, 4]);
    let mark = Mark::new(ledger, HOME, "test", 0).doubted([bookie(3)]);
    cluster.mark(mark.clone()).await;
    let mut worker = cluster.worker().await;
    let round = worker.round().await.unwrap();
    assert_eq!((round.repaired, round.failed), (0, 1));
    assert_eq!(held(3), [0, 1, 2, 3, 4, 6, 7, 8, 9]);
    assert_eq!(cluster.marks().len(), 1);
    let members = Members::load(cluster.store()).await.unwrap();
    let Outcome::Failed(why) = worker.repair(&mark, &members).await else {
        panic!("entry 5 is nowhere");
    };
    assert!(why.contains("entry 5:"), "{why}");

    // The same for a bookie in limbo, which stays in it.
    for entry in 6..10 {
        bookies.drop_entry(bookie(3), ledger, EntryId(entry));
    }
    let mut restore = Restore::new(cluster.ctx.clone(), bookie(3), &cluster.config);
    let report = restore.pass(&[]).await.unwrap();
    assert!(!report.is_complete());
    assert!(report.failed[0].contains("entry 5:"), "{report:?}");
    assert_eq!(held(3), [0, 1, 2, 3, 4, 6, 7, 8, 9]);
}

#[tokio::test(start_paused = true)]
async fn a_bookie_that_refuses_the_repair_is_replaced() {
    let cluster = Cluster::new(5).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    cluster.world.bookies.wipe(bookie(2));
    let refusal = BookieError::ReadOnly("no space at all".to_owned());
    cluster.world.bookies.fail_next(bookie(2), [refusal]);
    let mark = Mark::new(ledger, HOME, "test", 0).doubted([bookie(2)]);
    cluster.mark(mark).await;
    cluster.worker().await.round().await.unwrap();
    cluster.assert_whole(ledger, 10).await;
    assert!(!cluster.info(ledger).await.bookies().contains(&bookie(2)));
    assert!(cluster.marks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_open_ledger_is_left_to_its_writer_and_then_recovered() {
    let cluster = Cluster::new(4).await;
    let mut ledger = cluster.open(quorum(3, 3, 2)).await;
    assert_eq!(ledger.append(5).await, None);
    cluster.lose(bookie(1)).await;
    let mark = Mark::new(ledger.id, HOME, "test", 0).lost([bookie(1)]);
    cluster.mark(mark).await;
    let mut worker = cluster.worker().await;
    assert_eq!(worker.round().await.unwrap().waiting, 1);
    assert_eq!(cluster.info(ledger.id).await.state, LedgerState::Open);
    cluster.pass_time(Duration::from_secs(29));
    assert_eq!(worker.round().await.unwrap().waiting, 1);
    cluster.pass_time(Duration::from_secs(1));
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    let LedgerState::Closed(end) = cluster.info(ledger.id).await.state else {
        panic!("it is recovered");
    };
    assert_eq!(end.last_entry, Some(EntryId(4)));
    cluster.assert_whole(ledger.id, 5).await;
    // Its writer notices, and nothing more is acknowledged (I4).
    assert_eq!(ledger.append(1).await, Some(LedgerError::Fenced));
    assert_eq!(ledger.acknowledged(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_replaces_its_bookie_in_time_goes_on() {
    let cluster = Cluster::new(5).await;
    let mut ledger = cluster.open(quorum(3, 3, 2)).await;
    assert_eq!(ledger.append(5).await, None);
    cluster.lose(bookie(1)).await;
    let mark = Mark::new(ledger.id, HOME, "test", 0).lost([bookie(1)]);
    cluster.mark(mark).await;
    let mut worker = cluster.worker().await;
    assert_eq!(worker.round().await.unwrap().waiting, 1);
    assert_eq!(ledger.append(5).await, None);
    eventually("the ensemble has changed", || {
        !ledger.writer.info().last_fragment().1.contains(&bookie(1))
    })
    .await;
    cluster.pass_time(Duration::from_secs(60));
    // Only the first fragment is repaired, under a living writer, which then changes the record
    // again, and closes it.
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    assert_eq!(cluster.info(ledger.id).await.state, LedgerState::Open);
    assert!(!cluster.info(ledger.id).await.bookies().contains(&bookie(1)));
    cluster.world.bookies.set_mode(bookie(2), Mode::Broken);
    assert_eq!(ledger.append(5).await, None);
    cluster.world.bookies.set_mode(bookie(2), Mode::Up);
    cluster.close(&ledger).await;
    let all = cluster.info(ledger.id).await.bookies();
    let mark = Mark::new(ledger.id, HOME, "test", 0).doubted(all);
    cluster.mark(mark).await;
    cluster.pass_time(Duration::from_secs(600));
    worker.round().await.unwrap();
    cluster.assert_whole(ledger.id, 15).await;
}

#[tokio::test(start_paused = true)]
async fn a_locked_ledger_is_left_to_whoever_has_the_lock() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.lose(bookie(1)).await;
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(1)]);
    cluster.mark(mark).await;
    let other = cluster.session().await;
    let value = record::encode(v1::LockRecord::default());
    let lock = keys::repair_lock(ledger);
    other.put(&lock, value, Expect::Absent).await.unwrap();
    let mut worker = cluster.worker().await;
    assert_eq!(worker.round().await.unwrap().waiting, 1);
    other.close().await.unwrap();
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    assert!(
        cluster
            .world
            .store
            .keys(keys::REPAIR_LOCKS_PREFIX)
            .is_empty()
    );
}

/// A lock that could not be removed, or whose answer was lost, holds its own worker up no longer
/// than until its next round.
#[tokio::test(start_paused = true)]
async fn a_worker_takes_over_a_lock_that_it_has_left_behind() {
    let cluster = Cluster::new(4).await;
    let store = &cluster.world.store;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    let mark = Mark::new(ledger, HOME, "test", 0).doubted([bookie(2)]);
    let locks = || store.keys(keys::REPAIR_LOCKS_PREFIX).len();
    let mut worker = cluster.worker().await;
    cluster.mark(mark.clone()).await;
    store.fail_deletion(keys::REPAIR_LOCKS_PREFIX);
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    assert_eq!(locks(), 1, "it is not removed");
    cluster.mark(mark.clone()).await;
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    assert_eq!(locks(), 0);

    cluster.mark(mark).await;
    store.lose_answers(1);
    assert!(worker.round().await.is_err());
    assert_eq!(locks(), 1, "it was put all the same");
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    assert_eq!(locks(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_spare_bookie_the_mark_stays_until_there_is_one() {
    let cluster = Cluster::new(3).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 5).await;
    cluster.lose(bookie(3)).await;
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(3)]);
    cluster.mark(mark).await;
    let mut worker = cluster.worker().await;
    assert_eq!(worker.round().await.unwrap().failed, 1);
    // Put off: it is not tried again at once.
    assert_eq!(worker.round().await.unwrap().failed, 1);
    cluster.register(bookie(3)).await;
    cluster.world.bookies.wipe(bookie(3));
    cluster.pass_time(Duration::from_secs(5));
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 5).await;
}

#[tokio::test(start_paused = true)]
async fn repair_keeps_to_its_rate() {
    let mut cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 100).await;
    cluster.config.repair_bytes_per_second = 100;
    cluster.lose(bookie(1)).await;
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(1)]);
    cluster.mark(mark).await;
    let mut worker = cluster.worker().await;
    // A hundred entries of more than forty bytes cannot be there in half a minute of virtual time.
    let hasty = clock::timeout(Duration::from_secs(30), worker.round()).await;
    assert!(hasty.is_err());
    // Its lock goes with its session.
    drop(worker);
    let mut worker = cluster.worker().await;
    let round = clock::timeout(Duration::from_secs(200), worker.round()).await;
    assert_eq!(round.unwrap().unwrap().repaired, 1);
    cluster.assert_whole(ledger, 100).await;
}

#[tokio::test(start_paused = true)]
async fn a_single_entry_is_repaired_in_place_or_its_ledger_is_marked() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 5).await;
    let bookies = &cluster.world.bookies;
    let repair = async |n: u8, ledger: LedgerId, entry: u64| {
        let repaired = repair_entry(&cluster.ctx, bookie(n), ledger, EntryId(entry)).await;
        repaired.unwrap()
    };
    bookies.corrupt(bookie(2), ledger, EntryId(3));
    assert_eq!(repair(2, ledger, 3).await, EntryRepair::Repaired);
    cluster.assert_whole(ledger, 5).await;
    assert_eq!(repair(2, ledger, 5).await, EntryRepair::Irrelevant);
    assert_eq!(repair(4, ledger, 3).await, EntryRepair::Irrelevant);
    assert_eq!(repair(2, LedgerId(999), 0).await, EntryRepair::Irrelevant);
    // A bookie that cannot keep it: the ledger is marked, and a worker moves the copy.
    bookies.corrupt(bookie(1), ledger, EntryId(0));
    let refusal = || BookieError::Io("bad sector".to_owned());
    bookies.fail_next(bookie(1), [refusal(), refusal()]);
    assert!(matches!(repair(1, ledger, 0).await, EntryRepair::Marked(_)));
    cluster.worker().await.round().await.unwrap();
    cluster.assert_whole(ledger, 5).await;
    assert!(!cluster.info(ledger).await.bookies().contains(&bookie(1)));
}
