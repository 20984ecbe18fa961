//! What repair reads to find out what a bookie has.

use aquifer_ledger::recovery::driver::close_by_recovery;
use aquifer_ledger::testing::Blow;

use super::*;

/// H16 after a failover: each copy is looked at, by its keys, and no entry is read for it.
#[tokio::test(start_paused = true)]
async fn a_recovered_ledger_is_checked_without_reading_it() {
    let cluster = Cluster::new(3).await;
    let bookies = &cluster.world.bookies;
    let mut ledger = cluster.open(quorum(3, 3, 2)).await;
    assert_eq!(ledger.append(50).await, None);
    close_by_recovery(&cluster.ctx.ledgers, ledger.id, &[])
        .await
        .unwrap();
    assert_eq!(cluster.marks().len(), 1);
    let before = bookies.reads();
    let mut worker = cluster.worker().await;
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    let after = bookies.reads();
    assert_eq!(after.prefixes, before.prefixes);
    assert_eq!(after.entries, before.entries);
    assert!(after.looks > before.looks);

    // It finds what is missing all the same, and reads only that.
    bookies.drop_entry(bookie(2), ledger.id, EntryId(17));
    let mark = Mark::new(ledger.id, HOME, "test", 0).incomplete([(bookie(2), EntryId(0))]);
    cluster.mark(mark).await;
    let before = bookies.reads();
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger.id, 50).await;
    assert_eq!(bookies.reads().entries, before.entries + 1);
}

/// Storage 7: a writer that closes knows from where on a bookie may lack something.
#[tokio::test(start_paused = true)]
async fn a_thin_copy_is_looked_at_from_its_first_doubtful_entry_on() {
    let cluster = Cluster::new(3).await;
    let bookies = &cluster.world.bookies;
    let ledger = cluster.closed(quorum(3, 3, 2), 1_000).await;
    bookies.drop_entry(bookie(2), ledger, EntryId(998));
    let mark = Mark::new(ledger, HOME, "test", 0).incomplete([(bookie(2), EntryId(990))]);
    cluster.mark(mark.clone()).await;
    let before = bookies.reads().looks;
    assert_eq!(cluster.worker().await.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 1_000).await;
    let few = bookies.reads().looks - before;
    let mark = Mark::new(ledger, HOME, "test", 0).incomplete([(bookie(2), EntryId(0))]);
    cluster.mark(mark).await;
    let before = bookies.reads().looks;
    assert_eq!(cluster.worker().await.round().await.unwrap().repaired, 1);
    let all = bookies.reads().looks - before;
    assert!(
        few * 5 < all,
        "{few} looks for the end, {all} for everything"
    );
}

/// Damage is found by reading, whatever else a mark says.
#[tokio::test(start_paused = true)]
async fn a_doubted_copy_is_read() {
    let cluster = Cluster::new(3).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 20).await;
    cluster.world.bookies.corrupt(bookie(2), ledger, EntryId(3));
    let incomplete = [(bookie(1), EntryId(0)), (bookie(2), EntryId(10))];
    let mark = Mark::new(ledger, HOME, "test", 0).incomplete(incomplete);
    cluster.mark(mark).await;
    let mark = Mark::new(ledger, HOME, "test", 0).doubted([bookie(2)]);
    cluster.mark(mark).await;
    assert_eq!(cluster.marks().len(), 1, "both are in one");
    assert_eq!(cluster.worker().await.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 20).await;
}

/// The first answer of a check may be all of it, and counts for the rate as well.
#[tokio::test(start_paused = true)]
async fn the_first_look_keeps_to_the_rate() {
    for doubted in [false, true] {
        let mut cluster = Cluster::new(3).await;
        let ledger = cluster.closed(quorum(3, 3, 2), 15).await;
        cluster.config.repair_bytes_per_second = 10;
        let mark = Mark::new(ledger, HOME, "test", 0);
        let mark = match doubted {
            true => mark.doubted([bookie(2)]),
            false => mark.incomplete([(bookie(2), EntryId(0))]),
        };
        cluster.mark(mark).await;
        let mut worker = cluster.worker().await;
        // More than six hundred bytes.
        let hasty = clock::timeout(Duration::from_secs(30), worker.round()).await;
        assert!(hasty.is_err(), "doubted: {doubted}");
    }
}

/// Copies that are lost come before copies that are only to be looked at, however many these are.
#[tokio::test(start_paused = true)]
async fn what_is_lost_comes_first_beyond_one_page_of_marks() {
    let cluster = Cluster::new(4).await;
    let empty = cluster.closed(quorum(3, 3, 2), 0).await;
    let info = cluster.info(empty).await;
    // A page and a half of ledgers that are only to be looked at, before the one that lost a copy.
    let last = LedgerId(empty.0 + 5_000);
    for id in (1..=1_500).map(|n| LedgerId(empty.0 + n)).chain([last]) {
        let other = LedgerInfo { id, ..info.clone() };
        cluster.change_at(HOME, other.put(Expect::Absent)).await;
        let all = info
            .bookies()
            .into_iter()
            .map(|bookie| (bookie, EntryId(0)));
        if id != last {
            cluster
                .mark(Mark::new(id, HOME, "test", 0).incomplete(all))
                .await;
        }
    }
    cluster.lose(bookie(1)).await;
    cluster
        .mark(Mark::new(last, HOME, "test", 0).lost([bookie(1)]))
        .await;
    // So few changes that a worker which goes by the order of ids does not come to it.
    let fuse = Fuse::new(60, Blow::After);
    let mut mortal = cluster.fused_worker(&fuse).await;
    let died = clock::timeout(Duration::from_secs(600), mortal.round()).await;
    assert!(died.is_err(), "there is far more to do");
    assert!(!cluster.info(last).await.bookies().contains(&bookie(1)));
}
