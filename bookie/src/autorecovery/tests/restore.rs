//! The end of limbo: what was lost is copied from the other bookies, and what was fenced is fenced.

use std::fs;

use aquifer_metadata::store::{Operation, Transaction};
use aquifer_runtime::rng::SystemRng;

use super::*;

/// A ledger of which the bookie keeps its copy through the loss.
const KEPT: u64 = 4;

/// Three bookies, of which the first has lost its journal, and with it all but ledger [`KEPT`].
async fn with_a_loss() -> World {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let bookies = blocking(move || {
        let whole = path.join("1");
        let first = opened(config(&whole), 1);
        fill(&first, [KEPT]);
        crate::tests::shutdown(&first);
        drop(first);
        let first = opened(config(&whole), 1);
        fill(&first, [1, 2, 3, 5]);
        let fence = crate::tests::request(2, OrderedOperation::Fence);
        done(ask(&first, fence));
        // As after a power loss: what was in memory only is not in the copy, nor is the journal.
        let left = path.join("left");
        crate::tests::copy_directory(&whole, &left);
        drop(first);
        for file in fs::read_dir(left.join("journal")).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|end| end == "aqj") {
                fs::remove_file(file).unwrap();
            }
        }
        let others = [2, 3].map(|n| {
            let bookie = opened(config(&path.join(n.to_string())), n);
            fill(&bookie, 1..=5);
            bookie
        });
        let [second, third] = others;
        vec![opened(config(&left), 1), second, third]
    });
    let world = World::of(bookies.await, directory).await;
    assert!(world.bookies[0].status().limbo.is_some());
    let cookie = record::encode(CookieRecord {
        bookie_id: world.ids()[0].clone(),
        limbo_since_ms: 1,
        ..CookieRecord::default()
    });
    world.put(keys::cookie(world.bookies[0].id()), cookie).await;
    world
}

fn config_without_grace() -> AutorecoveryConfig {
    AutorecoveryConfig {
        enabled: false,
        replication: ReplicationConfig {
            open_ledger_grace_ms: 0,
            ..ReplicationConfig::default()
        },
        ..AutorecoveryConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookie_gets_back_what_it_lost_and_forgets_no_fence() {
    let world = with_a_loss().await;
    let bookie = world.bookies[0].clone();
    world.record(2, v1::LedgerState::Closed, &[]).await;
    // Its writer is gone, and the bookie has a place for new entries.
    world.record(3, v1::LedgerState::Open, &[]).await;
    // 4 was deleted. The writer of 5 has replaced the bookie.
    let mut elsewhere = world.ids();
    elsewhere[0] = Bytes::from_static(&[9; 16]);
    world.record(5, v1::LedgerState::Open, &elsewhere).await;
    let lease = Lease::start(
        Arc::new(world.store.clone()),
        Duration::from_secs(6),
        SystemRng::shared(),
        &world.tasks,
    );
    let settings = config_without_grace();
    start(&bookie, &world.ctx, &settings, Some(&lease), &world.tasks);
    let ended = bookie.clone();
    eventually("the end of limbo", || ended.status().limbo.is_none()).await;
    assert!(bookie.is_writable());

    let asked = bookie.clone();
    blocking(move || {
        for ledger in [1, 2, 3, 5] {
            for entry in 0..5 {
                expect(&asked, ledger, entry, LEN);
            }
        }
        assert_eq!(read_one(&asked, 77, 0), Err(BookieError::NoSuchLedger));
        // No writer that does not know better goes on with what is closed or deleted (I4).
        for ledger in [1, 2, 3, KEPT] {
            let late = ask(&asked, add_request(ledger, 5, LEN));
            assert_eq!(late, Err(BookieError::Fenced), "{ledger}");
        }
        // An open ledger was never fenced, and its writer may come back here.
        done(ask(&asked, add_request(5, 5, LEN)));
    })
    .await;
    let told = clock::timeout(PATIENCE, async {
        let key = keys::cookie(bookie.id());
        loop {
            let stored = world.store.get(&key).await.unwrap().unwrap();
            let cookie: CookieRecord = record::decode(&stored).unwrap();
            if cookie.limbo_since_ms == 0 {
                return;
            }
            clock::sleep(Duration::from_millis(5)).await;
        }
    });
    told.await.expect("metadata is told");

    // What was restored, and that limbo is over, outlives the next crash.
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limbo_lasts_while_anything_is_missing_or_undecided() {
    let world = with_a_loss().await;
    let bookie = world.bookies[0].clone();
    // No bookie has an entry of this one; and this one has a writer that may be alive.
    world.record(6, v1::LedgerState::Closed, &[]).await;
    world.record(3, v1::LedgerState::Open, &[]).await;
    let config = ReplicationConfig::default();
    let mut restore = Restore::new(world.ctx.clone(), bookie.id(), &config);
    let mut report = RestoreReport::default();
    let mut once = async || {
        let ended = restore_once(&bookie, &world.ctx, &mut restore, &mut report).await;
        (ended, report.clone())
    };
    let (ended, report) = once().await;
    assert_eq!(ended, Ok(false));
    assert_eq!((report.waiting, report.failures), (1, 1), "{report:?}");
    assert!(report.failed[0].starts_with("ledger 6: "), "{report:?}");
    assert!(world.bookies[0].status().limbo.is_some());

    // A record that cannot be read may name it.
    world
        .put(keys::ledger(LedgerId(6)), Bytes::from_static(b"?"))
        .await;
    let (ended, _) = once().await;
    assert!(
        ended
            .unwrap_err()
            .to_string()
            .contains("may name this bookie")
    );
    assert!(world.bookies[0].status().limbo.is_some());

    // The writer has replaced it, and 6 was given up.
    let mut elsewhere = world.ids();
    elsewhere[0] = Bytes::from_static(&[9; 16]);
    world.record(3, v1::LedgerState::Open, &elsewhere).await;
    let delete = Operation::Delete {
        key: keys::ledger(LedgerId(6)),
        expect: Expect::Any,
    };
    let gone = Transaction {
        operations: vec![delete],
        ..Transaction::default()
    };
    world.store.commit(gone).await.unwrap();
    let (ended, report) = once().await;
    assert_eq!(ended, Ok(true), "{report:?}");
    assert_eq!(world.bookies[0].status().limbo, None);
    world.end().await;
}
