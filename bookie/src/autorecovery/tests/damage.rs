//! Damaged files of the ledger store (H17): the bookie takes nothing new, and the ledgers that it
//! may have damaged get all their copies again.

use aquifer_runtime::rng::SystemRng;

use super::*;
use crate::BookieMode;
use crate::tests::files::meet;
use crate::tests::rot::{flip_entry, quiet, stop};

/// Ledgers in the file that is damaged. They are stored in the same block.
const TOUCHED: [u64; 2] = [1, 3];
/// A ledger in a file of its own.
const SPARED: u64 = 300;

/// Three bookies. A bit has flipped in a file of the first; no bookie looks for that by itself.
async fn with_a_damaged_file() -> World {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let bookies = blocking(move || {
        let opened = |n: u64| opened(quiet(&path.join(n.to_string())), n);
        let filled = |n: u64| {
            let bookie = opened(n);
            fill(&bookie, TOUCHED);
            fill(&bookie, [SPARED]);
            bookie
        };
        stop(filled(1));
        flip_entry(&quiet(&path.join("1")), ".sst", TOUCHED[0], 2);
        vec![opened(1), filled(2), filled(3)]
    });
    let world = World::of(bookies.await, directory).await;
    for ledger in [TOUCHED[1], SPARED] {
        world.record(ledger, v1::LedgerState::Closed, &[]).await;
    }
    for bookie in &world.bookies {
        let registered = record::encode(v1::BookieRecord::default());
        world.put(keys::bookie(bookie.id()), registered).await;
    }
    world
}

/// Starts a bookie of a cluster.
fn start_one(world: &World, n: usize, lease: &Lease, enabled: bool) {
    let config = AutorecoveryConfig {
        enabled,
        replication: ReplicationConfig {
            poll_ms: 10,
            // Nothing but the damage leads to marks, and no topic names these ledgers.
            check_cycle_ms: 0,
            orphan_audit_ms: 0,
            ..ReplicationConfig::default()
        },
        ..AutorecoveryConfig::default()
    };
    let bookie = &world.bookies[n];
    start(bookie, &world.ctx, &config, Some(lease), &world.tasks);
}

/// Has a compaction of the first bookie meet the damage.
async fn met(world: &World) {
    let bookie = world.bookies[0].clone();
    blocking(move || meet(&bookie)).await;
    let status = world.bookies[0].status();
    assert!(matches!(status.mode, BookieMode::ReadOnly(_)), "{status:?}");
}

async fn gets_its_copies_again(known_at_start: bool) {
    let world = with_a_damaged_file().await;
    let lease = Lease::start(
        Arc::new(world.store.clone()),
        Duration::from_secs(6),
        SystemRng::shared(),
        &world.tasks,
    );
    if known_at_start {
        met(&world).await;
        start_one(&world, 0, &lease, false);
    } else {
        start_one(&world, 0, &lease, false);
        met(&world).await;
    }
    let bookie = world.bookies[0].clone();
    let marks = || world.store.keys(keys::UNDER_REPLICATED_PREFIX);
    let expected = TOUCHED.map(|ledger| keys::under_replicated(LedgerId(ledger)));
    eventually("they are marked", || marks() == expected).await;
    for key in &expected {
        let stored = world.store.get(key).await.unwrap().unwrap();
        let mark = Mark::decode(&stored).unwrap();
        assert_eq!(mark.doubted, [bookie.id()].into());
    }
    let unreadable = bookie.unreadable(LedgerId(TOUCHED[0])).await.unwrap();
    let (first, last) = unreadable[0];
    assert!(first == EntryId(0) && last >= EntryId(4), "{unreadable:?}");

    // The worker of another bookie.
    start_one(&world, 1, &lease, true);
    eventually("they are whole", || marks().is_empty()).await;
    let whole = bookie.clone();
    blocking(move || {
        flush_all(&whole);
        for ledger in TOUCHED.into_iter().chain([SPARED]) {
            (0..5).for_each(|entry| expect(&whole, ledger, entry, LEN));
        }
    })
    .await;
    // Its files are as damaged as before.
    let status = bookie.status();
    assert!(matches!(status.mode, BookieMode::ReadOnly(_)), "{status:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ledgers_of_a_damaged_file_get_their_copies_again() {
    gets_its_copies_again(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ledgers_of_a_file_that_was_damaged_before_the_start_do_so_too() {
    gets_its_copies_again(true).await;
}
