//! The tasks that a process runs, on a store with sessions and watches: one audits, all repair.

use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::RealDisk;
use aquifer_runtime::task::TaskGroup;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

async fn no_ledger_names(cluster: &Cluster, ledger: LedgerId, bookie: BookieId) {
    let waited = clock::timeout(PATIENCE, async {
        while cluster.info(ledger).await.bookies().contains(&bookie) {
            clock::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never repaired");
}

#[tokio::test]
async fn another_process_takes_over_when_the_auditor_ends() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = TaskGroup::new("metadata");
    let store = EmbeddedStore::open(
        directory.path().join("metadata.redb"),
        EmbeddedOptions::default(),
        RealDisk::shared(),
        SystemClock::shared(),
        &tasks,
    );
    let store: Arc<dyn MetadataStore> = Arc::new(store.await.unwrap());
    let world = TestWorld::new(7);
    let bookies = Arc::new(world.bookies.clone());
    let ctx = world.process_with(store, bookies, TestWorld::settings());
    let cluster = Cluster {
        world,
        ctx,
        config: ReplicationConfig {
            lost_after_ms: 0,
            audit_ms: 20,
            poll_ms: 20,
            scan_ms: 0,
            ..ReplicationConfig::default()
        },
    };
    for n in 1..=7 {
        cluster.register(bookie(n)).await;
    }
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    let processes = ["one", "two"].map(|name| {
        let group = TaskGroup::new(name);
        let (ctx, config) = (cluster.ctx.clone(), cluster.config.clone());
        let shutdown = group.shutdown_token();
        group.spawn("replication", run(ctx, config, name.to_owned(), shutdown));
        group
    });
    cluster.lose(bookie(1)).await;
    no_ledger_names(&cluster, ledger, bookie(1)).await;
    let key = keys::leader(keys::ELECTION_AUDITOR);
    let leader = cluster.store().get(&key).await.unwrap();
    let leader = leader.expect("somebody audits").value;
    let first = usize::from(leader == "two");
    assert_eq!(processes[first].drain(PATIENCE).await, 0);
    cluster.lose(bookie(2)).await;
    no_ledger_names(&cluster, ledger, bookie(2)).await;
    cluster.assert_whole(ledger, 10).await;
    assert_eq!(processes[1 - first].drain(PATIENCE).await, 0);
    tasks.drain(PATIENCE).await;
}
