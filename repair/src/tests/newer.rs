//! Records that a newer build has written: a process that would write over one refuses, and says
//! what to do, because it may carry the pointer to an only copy.

use aquifer_ledger::deletion::{self, Intent};
use aquifer_ledger::ledger_metadata::LedgerIds;
use aquifer_ledger::offload::{OffloadStep, advance};
use aquifer_ledger::recovery::driver::close_by_recovery;
use aquifer_metadata::error::MetadataError;
use aquifer_model::id::AttemptId;

use super::*;
use crate::decommission;
use crate::tests::audits::put;

/// The same record as a newer build writes it.
fn newer(value: &Bytes) -> Bytes {
    let mut bytes = value.to_vec();
    assert_eq!(bytes[0], 8, "the version comes first");
    bytes[1] = 9;
    bytes.into()
}

async fn renew(cluster: &Cluster, key: &str) -> Bytes {
    let stored = cluster.store().get(key).await.unwrap().unwrap();
    let value = newer(&stored.value);
    put(cluster, key.to_owned(), value.clone()).await;
    value
}

fn is_newer<T: std::fmt::Debug>(result: Result<T, LedgerError>) {
    assert!(
        matches!(
            result,
            Err(LedgerError::Metadata(MetadataError::NewerFormat { .. }))
        ),
        "{result:?}"
    );
}

async fn stored(cluster: &Cluster, key: &str) -> Bytes {
    cluster.store().get(key).await.unwrap().unwrap().value
}

#[tokio::test(start_paused = true)]
async fn a_newer_ledger_is_changed_by_nobody() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    let before = cluster.info(ledger).await;
    let key = keys::ledger(ledger);
    let value = renew(&cluster, &key).await;
    is_newer(close_by_recovery(&cluster.ctx.ledgers, ledger, &[]).await);
    is_newer(inspect::delete(&cluster.ctx, ledger).await);
    let claim = OffloadStep::Claim;
    let attempt = AttemptId([1; 16]);
    is_newer(advance(cluster.store(), ledger, attempt, &claim, &[], &[]).await);
    // A mark is written all the same, but its repair changes nothing.
    cluster.lose(bookie(1)).await;
    cluster
        .mark(Mark::new(ledger, HOME, "test", 0).lost([bookie(1)]))
        .await;
    let round = cluster.worker().await.round().await.unwrap();
    assert_eq!((round.repaired, round.failed), (0, 1));
    // Nor does the end of a deletion that was begun before.
    let put = Intent::of(&before).put(Expect::Absent);
    cluster.change_at(HOME, put).await;
    cluster.register(bookie(1)).await;
    is_newer(deletion::carry_out(&cluster.ctx.ledgers, ledger).await);
    assert_eq!(stored(&cluster, &key).await, value);
}

#[tokio::test(start_paused = true)]
async fn newer_marks_intents_cookies_and_ids_are_changed_by_nobody() {
    let cluster = Cluster::new(3).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    let mark = Mark::new(ledger, HOME, "test", 0);
    cluster.mark(mark.clone().lost([bookie(1)])).await;
    let key = keys::under_replicated(ledger);
    let value = renew(&cluster, &key).await;
    is_newer(marks::write(cluster.store(), &mark.doubted([bookie(2)])).await);
    assert_eq!(stored(&cluster, &key).await, value);

    cluster.lose(bookie(3)).await;
    inspect::delete(&cluster.ctx, ledger).await.unwrap();
    let key = keys::deletion(ledger);
    let value = renew(&cluster, &key).await;
    is_newer(deletion::carry_out(&cluster.ctx.ledgers, ledger).await);
    is_newer(inspect::delete(&cluster.ctx, ledger).await);
    assert_eq!(stored(&cluster, &key).await, value);

    let drain = || decommission::set_draining(cluster.store(), bookie(2), true);
    drain().await.unwrap();
    let key = keys::cookie(bookie(2));
    let stored_cookie = cluster.store().get(&key).await.unwrap().unwrap();
    let value = newer(&stored_cookie.value);
    let put = Operation::Put {
        key: key.clone(),
        value: value.clone(),
        expect: Expect::Any,
    };
    cluster.change(put).await;
    is_newer(decommission::set_draining(cluster.store(), bookie(2), false).await);
    assert_eq!(stored(&cluster, &key).await, value);

    let key = keys::id_range(keys::IDS_LEDGER);
    let ids = cluster.store().get(&key).await.unwrap().unwrap();
    let put = Operation::Put {
        key,
        value: newer(&ids.value),
        expect: Expect::Any,
    };
    cluster.change(put).await;
    let fresh = LedgerIds::default();
    is_newer(fresh.next(cluster.store(), LedgerId(0)).await);
}

/// Which bookies a deletion names decides where entries go: no guess is made.
#[tokio::test(start_paused = true)]
async fn a_newer_intent_ends_a_recovery_before_it_places_anything() {
    let cluster = Cluster::new(4).await;
    let mut open = cluster.open(quorum(3, 3, 2)).await;
    assert_eq!(open.append(3).await, None);
    let info = cluster.info(open.id).await;
    let key = keys::deletion(open.id);
    let intent = Intent::of_copy(open.id, info.token, bookie(4), Some(&info));
    let value = newer(&intent.value());
    put(&cluster, key.clone(), value.clone()).await;
    is_newer(close_by_recovery(&cluster.ctx.ledgers, open.id, &[]).await);
    let now = cluster.info(open.id).await;
    assert_eq!(now.state, LedgerState::InRecovery);
    assert_eq!(now.fragments, info.fragments);
    assert_eq!(stored(&cluster, &key).await, value);
}

/// The mark of a newer build on one ledger does not keep others from being marked and repaired.
#[tokio::test(start_paused = true)]
async fn a_newer_mark_stops_no_work_on_other_ledgers() {
    let cluster = Cluster::new(5).await;
    let mut ledgers = Vec::new();
    for _ in 0..3 {
        ledgers.push(cluster.closed(quorum(3, 3, 2), 3).await);
    }
    let newer = ledgers.remove(0);
    let mark = Mark::new(newer, HOME, "test", 0).lost([bookie(2)]);
    cluster.mark(mark).await;
    let key = keys::under_replicated(newer);
    let value = renew(&cluster, &key).await;
    cluster.lose(bookie(1)).await;
    let tombstone = v1::CookieRecord {
        draining: true,
        decommissioned_ms: 1,
        ..v1::CookieRecord::default()
    };
    cluster
        .change(Operation::Put {
            key: keys::cookie(bookie(1)),
            value: record::encode(tombstone),
            expect: Expect::Any,
        })
        .await;
    let mut retirement = decommission::Retirement::new(cluster.ctx.clone(), bookie(1));
    retirement.step().await.unwrap();
    cluster.pass_time(Duration::from_secs(60));
    let late = decommission::Retired::Referenced(3);
    assert_eq!(retirement.step().await.unwrap(), late);
    for ledger in &ledgers {
        let mark = marks::load(cluster.store(), *ledger).await.unwrap();
        assert!(mark.unwrap().names(bookie(1)));
    }
    let round = cluster.worker().await.round().await.unwrap();
    assert_eq!((round.repaired, round.failed), (2, 1));
    assert_eq!(stored(&cluster, &key).await, value);
}
