//! One worker repairs several ledgers at once: what they share is bounded, and none stops another.

use aquifer_ledger::testing::Blow;

use super::*;

/// Less than a request takes to time out.
const SOON: Duration = Duration::from_secs(1);

impl Cluster {
    /// A closed ledger with this many entries, on these bookies.
    async fn closed_on(&self, members: [u8; 2], entries: u64) -> LedgerId {
        let members = members.map(bookie).to_vec();
        let mut ledger = self.open_on(quorum(2, 2, 2), members).await;
        assert_eq!(ledger.append(entries).await, None);
        self.close(&ledger).await;
        ledger.id
    }

    /// A closed ledger on the first two bookies with one entry of this many bytes.
    async fn closed_large(&self, bytes: usize) -> LedgerId {
        let members = vec![bookie(1), bookie(2)];
        let mut ledger = self.open_on(quorum(2, 2, 2), members).await;
        let data = EntryData {
            head: Bytes::new(),
            body: Bytes::from(vec![b'x'; bytes]),
        };
        assert!(ledger.writer.enqueue(data, None).is_some());
        ledger.appended += 1;
        assert_eq!(ledger.append(0).await, None);
        self.close(&ledger).await;
        ledger.id
    }

    /// Loses the first bookie, of which these have copies, and leaves one that may take them.
    async fn lose_first(&self, ledgers: &[LedgerId], spare: u8) {
        self.lose(bookie(1)).await;
        let all = self.ctx.ledgers.bookies.snapshot();
        let spare = all.iter().filter(|info| info.id == bookie(spare));
        self.ctx.ledgers.bookies.replace(spare.cloned().collect());
        for ledger in ledgers {
            let mark = Mark::new(*ledger, HOME, "test", 0).lost([bookie(1)]);
            self.mark(mark).await;
        }
    }

    fn locks(&self) -> Vec<String> {
        self.world.store.keys(keys::REPAIR_LOCKS_PREFIX)
    }
}

fn key_names(ledgers: &[LedgerId], key: impl Fn(LedgerId) -> String) -> Vec<String> {
    ledgers.iter().copied().map(key).collect()
}

#[test]
fn a_setting_that_repairs_nothing_or_locks_everything_is_refused() {
    let check = |ledgers_at_once| {
        let config = ReplicationConfig {
            ledgers_at_once,
            ..ReplicationConfig::default()
        };
        config.check()
    };
    assert_eq!((check(1), check(256)), (Ok(()), Ok(())));
    for wrong in [0, 257] {
        let why = check(wrong).unwrap_err();
        assert!(why.contains("replication.ledgers_at_once"), "{why}");
    }
}

/// I2: a bookie that answers nothing holds up the ledgers that need it, and no others: so few bytes
/// as a small ledger has are there for the others, too.
#[tokio::test(start_paused = true)]
async fn a_ledger_that_waits_for_a_bookie_stops_no_other() {
    let cluster = Cluster::new(4).await;
    let (mut blocked, mut others) = (Vec::new(), Vec::new());
    for number in 0..14 {
        match number % 2 {
            0 => blocked.push(cluster.closed_on([1, 2], 3).await),
            _ => others.push(cluster.closed_on([1, 3], 3).await),
        }
    }
    cluster
        .lose_first(&[&blocked[..], &others[..]].concat(), 4)
        .await;
    cluster.world.bookies.stall_reads(bookie(2), true);
    let mut worker = cluster.worker().await;
    {
        let mut round = std::pin::pin!(worker.round());
        assert!(clock::timeout(SOON, &mut round).await.is_err());
        for ledger in &others {
            cluster.assert_whole(*ledger, 3).await;
            let members = cluster.info(*ledger).await.bookies();
            assert!(!members.contains(&bookie(1)));
        }
        assert_eq!(cluster.marks(), key_names(&blocked, keys::under_replicated));
        assert_eq!(cluster.locks(), key_names(&blocked, keys::repair_lock));
        let round = round.await.unwrap();
        assert_eq!((round.repaired, round.failed), (7, 7));
    }
    // Only what failed is put off.
    cluster.world.bookies.stall_reads(bookie(2), false);
    let fresh = cluster.closed_on([2, 3], 3).await;
    let incomplete = Mark::new(fresh, HOME, "test", 0).incomplete([(bookie(3), EntryId(0))]);
    cluster.mark(incomplete).await;
    let round = worker.round().await.unwrap();
    assert_eq!((round.repaired, round.failed), (1, 7));
    cluster.pass_time(Duration::from_secs(5));
    assert_eq!(worker.round().await.unwrap().repaired, 7);
    for ledger in blocked {
        cluster.assert_whole(ledger, 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_ledgers_are_repaired_at_once_as_the_setting_says_and_a_round_may_be_dropped() {
    let mut cluster = Cluster::new(4).await;
    cluster.config.ledgers_at_once = 2;
    let mut ledgers = Vec::new();
    for _ in 0..5 {
        ledgers.push(cluster.closed_on([1, 2], 3).await);
    }
    cluster.lose_first(&ledgers, 4).await;
    cluster.world.bookies.stall_reads(bookie(2), true);
    let mut worker = cluster.worker().await;
    assert!(clock::timeout(SOON, worker.round()).await.is_err());
    assert_eq!(cluster.locks().len(), 2);
    // The locks that it left are its own.
    cluster.world.bookies.stall_reads(bookie(2), false);
    let round = worker.round().await.unwrap();
    assert_eq!((round.marked, round.repaired), (5, 5));
    assert!(cluster.locks().is_empty() && cluster.marks().is_empty());
    for ledger in ledgers {
        cluster.assert_whole(ledger, 3).await;
    }
}

/// What one ledger runs into ends the round, but not the repairs that are in progress.
#[tokio::test(start_paused = true)]
async fn a_round_that_cannot_lock_a_ledger_finishes_what_it_has_begun() {
    let cluster = Cluster::new(4).await;
    let mut ledgers = Vec::new();
    for _ in 0..3 {
        ledgers.push(cluster.closed_on([1, 2], 3).await);
    }
    cluster.lose_first(&ledgers, 4).await;
    let mut worker = cluster.worker().await;
    assert_eq!(worker.share().take().await, Ok(()));
    cluster.world.store.lose_answers(1);
    assert!(worker.round().await.is_err());
    assert_eq!(cluster.marks().len(), 1);
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    for ledger in ledgers {
        cluster.assert_whole(ledger, 3).await;
    }
}

/// I13: what is in flight has one bound, however many ledgers are repaired at once.
#[tokio::test(start_paused = true)]
async fn the_bytes_on_their_way_are_bounded_over_all_ledgers() {
    const ENTRY: usize = 5 << 20;
    const BOUND: usize = 32 << 20;
    let cluster = Cluster::new(3).await;
    let bookies = &cluster.world.bookies;
    let mut ledgers = Vec::new();
    for _ in 0..9 {
        ledgers.push(cluster.closed_large(ENTRY).await);
    }
    cluster.lose_first(&ledgers, 3).await;
    bookies.hold(bookie(3));
    let mut worker = cluster.worker().await;
    let mut round = std::pin::pin!(worker.round());
    let moment = Duration::from_millis(10);
    for stored in 0..ledgers.len() {
        assert!(clock::timeout(moment, &mut round).await.is_err());
        let left = ledgers.len() - stored;
        // All that there is room for, and no more.
        assert_eq!(bookies.held(bookie(3)), left.min(BOUND / ENTRY));
        assert!(bookies.release_one(bookie(3)));
    }
    assert_eq!(round.await.unwrap().repaired, ledgers.len());
    for ledger in ledgers {
        assert!(bookies.intact(bookie(3), ledger, EntryId(0)).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn ledgers_that_are_repaired_at_once_keep_to_the_common_rate() {
    let mut cluster = Cluster::new(3).await;
    cluster.config.repair_bytes_per_second = 100;
    let mut ledgers = Vec::new();
    for _ in 0..5 {
        ledgers.push(cluster.closed_on([1, 2], 20).await);
    }
    cluster.lose_first(&ledgers, 3).await;
    let mut worker = cluster.worker().await;
    // Five times twenty entries of more than forty bytes: forty seconds of virtual time at least.
    let mut round = std::pin::pin!(worker.round());
    let hasty = clock::timeout(Duration::from_secs(30), &mut round).await;
    assert!(hasty.is_err());
    assert_eq!(round.await.unwrap().repaired, 5);
}

/// I2: what is lost has the rate for itself; no copy is looked at while one is to be replaced.
#[tokio::test(start_paused = true)]
async fn nothing_is_looked_at_before_everything_lost_was_tried() {
    let cluster = Cluster::new(4).await;
    let (mut lost, mut doubtful) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        doubtful.push(cluster.closed_on([3, 4], 3).await);
        lost.push(cluster.closed_on([1, 2], 3).await);
    }
    cluster.lose_first(&lost, 4).await;
    for ledger in &doubtful {
        let mark = Mark::new(*ledger, HOME, "test", 0);
        cluster
            .mark(mark.incomplete([(bookie(3), EntryId(0))]))
            .await;
    }
    cluster.world.bookies.stall_reads(bookie(2), true);
    let mut worker = cluster.worker().await;
    let mut round = std::pin::pin!(worker.round());
    assert!(clock::timeout(SOON, &mut round).await.is_err());
    assert_eq!(cluster.locks(), key_names(&lost, keys::repair_lock));
    assert_eq!(cluster.marks().len(), 6);
    let round = round.await.unwrap();
    assert_eq!((round.repaired, round.failed), (3, 3));
}

/// What was lost meanwhile is found by the next round, which must not be long in coming.
#[tokio::test(start_paused = true)]
async fn a_round_that_takes_long_begins_no_other_look() {
    let cluster = Cluster::new(4).await;
    for _ in 0..20 {
        let ledger = cluster.closed_on([2, 3], 1).await;
        let mark = Mark::new(ledger, HOME, "test", 0);
        cluster
            .mark(mark.incomplete([(bookie(2), EntryId(0))]))
            .await;
    }
    cluster.world.bookies.stall_reads(bookie(2), true);
    let mut worker = cluster.worker().await;
    let mut round = std::pin::pin!(worker.round());
    assert!(clock::timeout(SOON, &mut round).await.is_err());
    cluster.pass_time(Duration::from_secs(60));
    let round = round.await.unwrap();
    assert_eq!((round.marked, round.failed), (16, 16));
}

/// The last swap and the end of the mark are one change of metadata; the lock is another.
#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_whole_by_a_swap_loses_its_mark_with_it() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed_on([1, 2], 3).await;
    cluster.lose_first(&[ledger], 4).await;
    let before = cluster.world.store.commits();
    assert_eq!(cluster.worker().await.round().await.unwrap().repaired, 1);
    assert_eq!(cluster.world.store.commits() - before, 2);
    assert!(cluster.marks().is_empty());
    cluster.assert_whole(ledger, 3).await;
}

/// H16: what is doubted while a copy is in flight is not forgotten with it.
#[tokio::test(start_paused = true)]
async fn a_mark_that_says_more_meanwhile_outlives_the_swap() {
    let cluster = Cluster::new(3).await;
    let bookies = &cluster.world.bookies;
    let ledger = cluster.closed_on([1, 2], 3).await;
    cluster.lose_first(&[ledger], 3).await;
    bookies.hold(bookie(3));
    let mut worker = cluster.worker().await;
    {
        let mut round = std::pin::pin!(worker.round());
        assert!(clock::timeout(SOON, &mut round).await.is_err());
        let mark = Mark::new(ledger, HOME, "test", 0).doubted([bookie(2)]);
        cluster.mark(mark).await;
        bookies.release(bookie(3));
        assert_eq!(round.await.unwrap().waiting, 1);
    }
    assert_eq!(cluster.marks().len(), 1);
    bookies.corrupt(bookie(2), ledger, EntryId(1));
    assert_eq!(worker.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 3).await;
}

/// H16: a bookie that takes a copy, and of which the mark doubts what it has, is looked at.
#[tokio::test(start_paused = true)]
async fn a_doubted_bookie_that_takes_a_copy_is_looked_at_before_the_mark_goes() {
    let cluster = Cluster::new(3).await;
    let ledger = cluster.closed_on([1, 2], 3).await;
    cluster.lose_first(&[ledger], 3).await;
    // A copy that is not in the record: its worker dies before the swap.
    let fuse = Fuse::new(3, Blow::Before);
    let mut mortal = cluster.fused_worker(&fuse).await;
    let died = clock::timeout(Duration::from_secs(600), mortal.round()).await;
    assert!(died.is_err() && fuse.is_blown());
    drop(mortal);
    assert_eq!(cluster.world.bookies.entries(bookie(3), ledger).len(), 3);
    cluster.world.bookies.corrupt(bookie(3), ledger, EntryId(1));
    let mark = Mark::new(ledger, HOME, "test", 0).doubted([bookie(3)]);
    cluster.mark(mark).await;
    assert_eq!(cluster.worker().await.round().await.unwrap().repaired, 1);
    cluster.assert_whole(ledger, 3).await;
}
