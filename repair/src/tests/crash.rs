//! The worker dies at every step that changes the world; another finishes.

use aquifer_ledger::testing::Blow;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_worker_may_die_at_any_step() {
    for blow in [Blow::Before, Blow::After] {
        for steps in 0.. {
            let cluster = Cluster::new(5).await;
            let mut ledger = cluster.open(quorum(3, 3, 2)).await;
            assert_eq!(ledger.append(3).await, None);
            cluster.world.bookies.set_mode(bookie(2), Mode::Broken);
            assert_eq!(ledger.append(3).await, None);
            cluster.world.bookies.set_mode(bookie(2), Mode::Up);
            cluster.lose(bookie(1)).await;
            let mark = Mark::new(ledger.id, HOME, "test", 0)
                .lost([bookie(1)])
                .doubted([bookie(2)]);
            cluster.mark(mark).await;
            let fuse = Fuse::new(steps, blow);
            let mut mortal = cluster.fused_worker(&fuse).await;
            let life = clock::timeout(Duration::from_secs(3_600), async {
                mortal.round().await.unwrap();
                cluster.pass_time(Duration::from_secs(400));
                mortal.round().await.unwrap();
            });
            let completed = life.await.is_ok();
            drop(mortal);
            if !completed {
                let mut heir = cluster.worker().await;
                heir.round().await.unwrap();
                cluster.pass_time(Duration::from_secs(400));
                heir.round().await.unwrap();
            }
            assert!(cluster.marks().is_empty(), "step {steps} {blow:?}");
            let LedgerState::Closed(end) = cluster.info(ledger.id).await.state else {
                panic!("step {steps}: it is not closed");
            };
            assert_eq!(end.last_entry, Some(EntryId(5)));
            cluster.assert_whole(ledger.id, 6).await;
            if completed {
                assert!(steps > 10, "the fuse was never in the way");
                break;
            }
        }
    }
}
