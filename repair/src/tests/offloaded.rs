//! Ledgers whose copies at bookies are going or gone: no process misses them, asks for them or
//! brings them back, and no search for what is superfluous takes their records for it.

use std::collections::BTreeSet;

use aquifer_ledger::deletion;
use aquifer_ledger::index::LedgerIndex;
use aquifer_ledger::ledger_metadata;
use aquifer_ledger::offload::imports::ImportStep;
use aquifer_ledger::offload::{self, OffloadError, OffloadStep, StoredObject};
use aquifer_ledger::reader::{Wanted, read_range};
use aquifer_model::id::AttemptId;

use super::*;
use crate::decommission;
use crate::tests::audits::{put, topic_key, topic_of};

const ATTEMPT: AttemptId = AttemptId([7; 16]);

async fn step(cluster: &Cluster, ledger: LedgerId, step: OffloadStep) {
    let made = offload::advance(cluster.store(), ledger, ATTEMPT, &step, &[], &[]);
    made.await.unwrap();
}

/// Brings a ledger to where its copies are being deleted.
async fn drop_copies(cluster: &Cluster, ledger: LedgerId) {
    let object = StoredObject {
        location: 1,
        name: format!("data/public/default/07/{ledger}.aqo"),
        section: 0,
        size_bytes: 4_096,
        checksum: 1,
        stored_ms: 1,
        index_offset: 900,
        claimed: aquifer_metadata::store::Revision(1),
        is_damaged: false,
    };
    step(cluster, ledger, OffloadStep::Claim).await;
    step(cluster, ledger, OffloadStep::Store(object)).await;
    step(cluster, ledger, OffloadStep::DropCopies).await;
}

/// A cluster with a ledger that is kept, one whose copies are going, and one whose are gone.
async fn three(bookies: u8) -> (Cluster, LedgerId, [LedgerId; 2]) {
    let cluster = Cluster::new(bookies).await;
    let kept = cluster.closed(quorum(3, 3, 2), 5).await;
    let going = cluster.closed(quorum(3, 3, 2), 5).await;
    let gone = cluster.closed(quorum(3, 3, 2), 5).await;
    put(
        &cluster,
        topic_key("t").0,
        topic_of(&[kept, going, gone], &[]),
    )
    .await;
    drop_copies(&cluster, going).await;
    drop_copies(&cluster, gone).await;
    step(&cluster, gone, OffloadStep::CopiesGone).await;
    (cluster, kept, [going, gone])
}

#[tokio::test(start_paused = true)]
async fn nothing_of_them_is_under_replicated() {
    let (mut cluster, kept, offloaded) = three(4).await;
    let index = LedgerIndex::scan(cluster.store()).await.unwrap();
    assert!(index.is_complete());
    assert_eq!(index.ledgers(), 3);
    for ledger in offloaded {
        assert!(index.contains(ledger));
        assert!((1..=4).all(|n| !index.names(ledger, bookie(n))));
        let verified = inspect::verify(&cluster.ctx, ledger, u64::MAX).await;
        let verified = verified.unwrap().unwrap();
        assert!(verified.is_closed && verified.replicas.is_empty());
        let view = inspect::view(cluster.store(), ledger).await.unwrap();
        assert_eq!(view.unwrap().state, "offloaded");
    }
    cluster.lose(bookie(1)).await;
    let mut auditor = cluster.auditor();
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_millis(cluster.config.lost_after_ms));
    let report = auditor.pass().await.unwrap();
    assert_eq!(
        (report.remaining, report.failed),
        (1, 0),
        "only what is kept"
    );
    assert_eq!(cluster.marks(), [keys::under_replicated(kept)]);
    cluster.repair_all().await;
    assert!(cluster.marks().is_empty());
    cluster.assert_whole(kept, 5).await;
    for ledger in offloaded {
        assert_eq!(cluster.world.bookies.entries(bookie(4), ledger), []);
    }
    // Nor is their turn to be checked anything but passed over.
    cluster.config.check_cycle_ms = 1_000;
    let mut auditor = cluster.auditor();
    for _ in 0..4 {
        auditor.pass().await.unwrap();
        cluster.pass_time(Duration::from_secs(1));
    }
    assert_eq!(cluster.marks(), [keys::under_replicated(kept)]);
}

/// A mark that was written before the copies went ends without a copy.
#[tokio::test(start_paused = true)]
async fn a_mark_of_before_is_cleared() {
    let (cluster, _, offloaded) = three(4).await;
    for ledger in offloaded {
        cluster.lose(bookie(2)).await;
        let mark = Mark::new(ledger, HOME, "test", 0);
        cluster
            .mark(mark.lost([bookie(2)]).doubted([bookie(1)]))
            .await;
    }
    let round = cluster.worker().await.round().await.unwrap();
    assert_eq!((round.repaired, round.failed), (2, 0));
    assert!(cluster.marks().is_empty());
    for ledger in offloaded {
        let asked = repair_entry(&cluster.ctx, bookie(1), ledger, EntryId(1)).await;
        assert_eq!(asked, Ok(EntryRepair::Irrelevant));
        let doubted = doubt_ledger(&cluster.ctx, bookie(1), ledger, "test").await;
        assert_eq!(doubted, Ok(false));
    }
    assert!(cluster.marks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_bookie_is_asked_for_their_entries() {
    let (cluster, kept, offloaded) = three(3).await;
    let before = cluster.world.bookies.reads();
    for ledger in offloaded {
        let info = cluster.info(ledger).await;
        let read = read_range(&cluster.ctx.ledgers, &info, Wanted::one(EntryId(2))).await;
        let expected = OffloadError::Offloaded {
            ledger: ledger.0,
            attempt: ATTEMPT,
        };
        assert_eq!(read.err(), Some(LedgerError::Offload(expected)));
    }
    assert_eq!(cluster.world.bookies.reads(), before);
    let info = cluster.info(kept).await;
    let read = read_range(&cluster.ctx.ledgers, &info, Wanted::one(EntryId(2))).await;
    assert!(read.is_ok());
}

#[tokio::test(start_paused = true)]
async fn no_bookie_is_kept_for_them() {
    let (cluster, _, _) = three(3).await;
    let counted = decommission::references(cluster.store(), bookie(2)).await;
    assert_eq!(counted, Ok((1, true)));
}

#[tokio::test(start_paused = true)]
async fn audits_take_their_copies_and_leave_their_records() {
    let (cluster, kept, offloaded) = three(3).await;
    cluster.pass_time(Duration::from_secs(2));
    // What a bookie stores of them is superfluous (the drop was not carried out there).
    let mut audit = LocalAudit::new(cluster.ctx.clone(), bookie(1), &cluster.config);
    deletions::pass(&cluster, &mut audit, 1).await.unwrap();
    let report = deletions::pass(&cluster, &mut audit, 1).await.unwrap();
    let named: BTreeSet<LedgerId> = report.intents.into_iter().collect();
    assert_eq!(named, offloaded.into());
    deletion::sweep_intents(&cluster.ctx.ledgers).await.unwrap();
    assert_eq!(cluster.world.bookies.ledgers(bookie(1)), [kept]);
    for ledger in offloaded {
        let info = cluster.info(ledger).await;
        assert!(info.offload.is_some(), "its record is rewritten as it was");
    }
    // A ledger that is deleted goes, although no bookie is named.
    let [_, gone] = offloaded;
    assert_eq!(inspect::delete(&cluster.ctx, gone).await, Ok(Some(0)));
    assert_eq!(cluster.world.store.keys(keys::LEDGERS_PREFIX).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn orphans_take_their_objects_along() {
    let (cluster, kept, [going, gone]) = three(3).await;
    put(&cluster, topic_key("t").0, topic_of(&[], &[])).await;
    cluster.pass_time(Duration::from_secs(2));
    let mut audit = OrphanAudit::new(cluster.ctx.clone(), &cluster.config);
    audit.pass().await.unwrap();
    let second = audit.pass().await.unwrap();
    assert_eq!(second.deleted, [kept, going, gone]);
    assert!(cluster.world.store.keys(keys::LEDGERS_PREFIX).is_empty());
    // The attempts of this test share an id, and so the objects a key.
    assert_eq!(
        cluster.world.store.keys(keys::DYING_OBJECTS_PREFIX).len(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn re_imported_copies_are_no_orphan_and_go_with_their_ledger() {
    let (cluster, _, [_, gone]) = three(3).await;
    let copies = cluster.closed(quorum(3, 3, 2), 5).await;
    let begin = ImportStep::Begin { into: copies };
    let info = cluster.info(gone).await;
    let mut named = info.imported(ATTEMPT, begin).unwrap().unwrap();
    let replaced = ledger_metadata::replace(cluster.store(), &mut named, &[]);
    replaced.await.unwrap();
    cluster.pass_time(Duration::from_secs(2));
    let mut audit = OrphanAudit::new(cluster.ctx.clone(), &cluster.config);
    for _ in 0..2 {
        assert_eq!(audit.pass().await.unwrap().suspects, 0);
    }
    assert_eq!(inspect::delete(&cluster.ctx, gone).await, Ok(Some(0)));
    deletion::sweep_intents(&cluster.ctx.ledgers).await.unwrap();
    let left = ledger_metadata::load(cluster.store(), copies).await;
    assert!(left.unwrap().is_none());
}
