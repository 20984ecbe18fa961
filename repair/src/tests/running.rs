//! The tasks that a process runs, on a store with sessions and watches: one audits, all repair.

use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::store::Expect;
use aquifer_metadata::{record, scan};
use aquifer_proto::v1::LockRecord;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::RealDisk;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;

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

/// Waits until there are this many keys below a prefix.
async fn eventually_keys(cluster: &Cluster, prefix: &str, count: usize) {
    let waited = clock::timeout(PATIENCE, async {
        while scan::all(cluster.store(), prefix, 100)
            .await
            .unwrap()
            .0
            .len()
            != count
        {
            clock::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never {count} keys below {prefix}");
}

#[tokio::test(start_paused = true)]
async fn workers_share_the_rate_of_the_cluster() {
    let mut cluster = Cluster::new(3).await;
    cluster.config.repair_bytes_per_second = 900;
    let mut workers = Vec::new();
    for (number, name) in ["one", "two", "three"].into_iter().enumerate() {
        let session = cluster.session().await;
        let (ctx, config) = (cluster.ctx.clone(), &cluster.config);
        let mut worker = RepairWorker::new(ctx, session.clone(), config, name.to_owned());
        worker.round().await.unwrap();
        // The others have nothing to do.
        assert_eq!(worker.share().pace().bytes_per_second(), 900);
        workers.push((worker, session, keys::repair_lock(LedgerId(number as u64))));
    }
    // The first learns that the others repair something, too, and of the end of one.
    for (name, (_, session, lock)) in ["one", "two", "three"].into_iter().zip(&workers) {
        let holder = name.to_owned();
        let value = record::encode(LockRecord { holder });
        session.put(lock, value, Expect::Absent).await.unwrap();
    }
    // One that repairs several ledgers at once is one worker all the same.
    for ledger in 10..15 {
        let holder = "two".to_owned();
        let value = record::encode(LockRecord { holder });
        let lock = keys::repair_lock(LedgerId(ledger));
        let put = workers[1].1.put(&lock, value, Expect::Absent);
        put.await.unwrap();
    }
    let share = workers[0].0.share();
    let keep = share.keep();
    tokio::pin!(keep);
    let step = Duration::from_secs(10);
    assert!(clock::timeout(step, &mut keep).await.is_err());
    assert_eq!(share.pace().bytes_per_second(), 300);
    workers[2].1.close().await.unwrap();
    assert!(clock::timeout(step, &mut keep).await.is_err());
    assert_eq!(share.pace().bytes_per_second(), 450);
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
    let ctx = repairing(world.process_with(store, bookies, TestWorld::settings()));
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
        let ttl = Duration::from_secs(6);
        let lease = Lease::start(
            ctx.ledgers.store.clone(),
            ttl,
            ctx.ledgers.rng.clone(),
            &group,
        );
        group.spawn(
            "replication",
            run(ctx, config, name.to_owned(), lease.clone(), shutdown),
        );
        (group, lease)
    });
    eventually_keys(&cluster, keys::REPAIR_WORKERS_PREFIX, 2).await;
    cluster.lose(bookie(1)).await;
    no_ledger_names(&cluster, ledger, bookie(1)).await;
    let key = keys::leader(keys::ELECTION_AUDITOR);
    let leader = cluster.store().get(&key).await.unwrap();
    let leader = leader.expect("there is an auditor").value;
    let first = usize::from(leader == "two");
    // What it holds goes with the lease of its process, as at the end of one.
    processes[first].1.close().await;
    eventually_keys(&cluster, keys::REPAIR_WORKERS_PREFIX, 1).await;
    assert_eq!(processes[first].0.drain(PATIENCE).await, 0);
    cluster.lose(bookie(2)).await;
    no_ledger_names(&cluster, ledger, bookie(2)).await;
    cluster.assert_whole(ledger, 10).await;
    processes[1 - first].1.close().await;
    assert_eq!(processes[1 - first].0.drain(PATIENCE).await, 0);
    tasks.drain(PATIENCE).await;
}

/// What an auditor says of the cluster ends with it: alerts on it resolve although its process
/// runs on.
#[tokio::test(start_paused = true)]
async fn a_former_auditor_says_nothing_of_the_cluster() {
    let mut cluster = Cluster::new(5).await;
    let telemetry = Telemetry::for_tests();
    let meter = telemetry.meter("repair");
    cluster.ctx = RepairContext::new(Arc::clone(&cluster.ctx.ledgers), &meter);
    let check = |name: &str, value: u64| {
        let line = format!("aquifer_repair_{name} {value}");
        let text = telemetry.render_metrics();
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    };
    check("is_auditor", 0);
    cluster.closed(quorum(5, 3, 2), 5).await;
    for n in 1..=3 {
        cluster.lose(bookie(n)).await;
    }
    let mut auditor = cluster.auditor();
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_secs(3_600));
    auditor.pass().await.unwrap();
    check("is_auditor", 1);
    check("bookies_away", 3);
    check("paused", 1);
    drop(auditor);
    for name in [
        "is_auditor",
        "bookies_away",
        "paused",
        "under_replicated_ledgers",
    ] {
        check(name, 0);
    }
}

/// A mark that no worker removes shows itself by its age.
#[tokio::test(start_paused = true)]
async fn the_age_of_the_oldest_mark_is_shown() {
    let mut cluster = Cluster::new(4).await;
    let telemetry = Telemetry::for_tests();
    let meter = telemetry.meter("repair");
    cluster.ctx = RepairContext::new(Arc::clone(&cluster.ctx.ledgers), &meter);
    let check = |age: u64| {
        let line = format!("aquifer_repair_oldest_mark_age_seconds {age}");
        let text = telemetry.render_metrics();
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    };
    check(0);
    cluster.closed(quorum(3, 3, 2), 5).await;
    cluster.lose(bookie(1)).await;
    let mut auditor = cluster.auditor();
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_secs(600));
    assert_eq!(auditor.pass().await.unwrap().marked, 1);
    check(0);
    cluster.pass_time(Duration::from_secs(90));
    auditor.pass().await.unwrap();
    check(90);
    // Another mark is younger.
    let other = cluster.closed(quorum(3, 3, 2), 5).await;
    let now_ms = cluster.ctx.ledgers.clock.wall_ms();
    let mark = Mark::new(other, HOME, "a test", now_ms);
    let mark = mark.incomplete([(bookie(2), EntryId::FIRST)]);
    cluster.mark(mark).await;
    auditor.pass().await.unwrap();
    check(90);
    let mut worker = cluster.worker().await;
    for _ in 0..10 {
        worker.round().await.unwrap();
    }
    assert!(cluster.marks().is_empty());
    auditor.pass().await.unwrap();
    check(0);
}
