//! What auditors conclude, and what they do not.

use aquifer_ledger::recovery::driver::close_by_recovery;
use aquifer_model::id::TopicIncarnation;
use aquifer_model::topic::TopicName;
use std::collections::BTreeSet;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_mass_loss_pauses_repair_until_bookies_return() {
    let cluster = Cluster::new(5).await;
    let ledger = cluster.closed(quorum(5, 3, 2), 5).await;
    for n in 1..=3 {
        cluster.lose(bookie(n)).await;
    }
    let mut auditor = cluster.auditor();
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_secs(3_600));
    let report = auditor.pass().await.unwrap();
    assert_eq!(report.paused.as_deref(), Some("3 of 5 bookies are away"));
    assert_eq!((report.marked, report.away), (0, 3));
    assert!(cluster.marks().is_empty());
    cluster.register(bookie(1)).await;
    cluster.register(bookie(2)).await;
    let report = auditor.pass().await.unwrap();
    assert_eq!((report.paused, report.marked), (None, 1));
    assert_eq!(report.emptied, BTreeSet::from([bookie(3)]));
    let mark = cluster.store().get(&keys::under_replicated(ledger)).await;
    let mark = Mark::decode(&mark.unwrap().unwrap()).unwrap();
    assert_eq!(mark.lost, BTreeSet::from([bookie(3)]));
}

#[tokio::test(start_paused = true)]
async fn a_return_within_the_grace_period_marks_nothing() {
    let cluster = Cluster::new(4).await;
    cluster.closed(quorum(3, 3, 2), 5).await;
    let mut auditor = cluster.auditor();
    cluster.lose(bookie(1)).await;
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_secs(599));
    assert_eq!(auditor.pass().await.unwrap().marked, 0);
    cluster.register(bookie(1)).await;
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_secs(599));
    assert_eq!(auditor.pass().await.unwrap().marked, 0);
    assert!(cluster.marks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn marks_are_written_in_bounded_numbers_and_all_come_in_the_end() {
    let mut cluster = Cluster::new(4).await;
    cluster.config.marks_max = 3;
    let mut ledgers = Vec::new();
    for _ in 0..8 {
        ledgers.push(cluster.closed(quorum(3, 3, 2), 2).await);
    }
    cluster.lose(bookie(1)).await;
    let mut auditor = cluster.auditor();
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_secs(600));
    assert_eq!(auditor.pass().await.unwrap().marked, 3);
    assert_eq!(auditor.pass().await.unwrap().marked, 0);
    assert_eq!(cluster.marks().len(), 3);
    cluster.repair_all().await;
    for ledger in ledgers {
        cluster.assert_whole(ledger, 2).await;
    }
}

/// H16: recoveries mark more ledgers than may wait, and all of these wait for a bookie that is
/// away. That it is lost is said of each of them, or they would wait for ever.
#[tokio::test(start_paused = true)]
async fn marks_of_recoveries_keep_no_lost_bookie_from_being_replaced() {
    let mut cluster = Cluster::new(4).await;
    cluster.config.marks_max = 2;
    let mut ledgers = Vec::new();
    for _ in 0..5 {
        let members = (1..=3).map(bookie).collect();
        let mut ledger = cluster.open_on(quorum(3, 3, 2), members).await;
        assert_eq!(ledger.append(3).await, None);
        ledgers.push(ledger.id);
    }
    cluster.lose(bookie(1)).await;
    for ledger in &ledgers {
        let closed = close_by_recovery(&cluster.ctx.ledgers, *ledger, &[]).await;
        closed.unwrap();
    }
    assert_eq!(cluster.marks().len(), 5);
    let round = cluster.worker().await.round().await.unwrap();
    assert_eq!((round.marked, round.waiting), (5, 5));
    assert_eq!(cluster.repair_all().await.remaining, 0);
    assert!(cluster.marks().is_empty());
    for ledger in ledgers {
        cluster.assert_whole(ledger, 3).await;
    }
}

/// Between two scans lies an hour: a bookie's ledgers of that hour are not forgotten.
#[tokio::test(start_paused = true)]
async fn ledgers_that_are_younger_than_the_last_scan_are_marked_as_well() {
    let mut cluster = Cluster::new(5).await;
    cluster.config.scan_ms = 3_600_000;
    let mut auditor = cluster.auditor();
    assert_eq!(auditor.pass().await.unwrap().ledgers, 0);
    let ledger = cluster.closed(quorum(3, 3, 2), 5).await;
    cluster.lose(bookie(1)).await;
    assert_eq!(auditor.pass().await.unwrap().away, 1);
    let another = cluster.closed(quorum(3, 3, 2), 5).await;
    cluster.pass_time(Duration::from_secs(600));
    let report = auditor.pass().await.unwrap();
    assert_eq!((report.ledgers, report.marked), (2, 1));
    cluster.worker().await.round().await.unwrap();
    cluster.assert_whole(ledger, 5).await;
    // The same when an operator asks for it.
    auditor.pass().await.unwrap();
    decommission::set_draining(cluster.store(), bookie(3), true)
        .await
        .unwrap();
    let third = cluster.closed(quorum(3, 3, 2), 5).await;
    assert!(auditor.pass().await.unwrap().marked > 0);
    for _ in 0..3 {
        cluster.worker().await.round().await.unwrap();
        auditor.pass().await.unwrap();
    }
    for ledger in [ledger, another, third] {
        assert!(!cluster.info(ledger).await.bookies().contains(&bookie(3)));
        cluster.assert_whole(ledger, 5).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_draining_bookie_is_emptied_and_then_retired() {
    let cluster = Cluster::new(5).await;
    let closed = cluster.closed(quorum(3, 3, 2), 10).await;
    let empty = cluster.closed(quorum(3, 3, 2), 0).await;
    let store = cluster.store();
    let mut retirement = decommission::Retirement::new(cluster.ctx.clone(), bookie(1));
    assert_eq!(
        retirement.step().await.unwrap(),
        decommission::Retired::Referenced(2)
    );
    decommission::set_draining(store, bookie(1), true)
        .await
        .unwrap();
    // It is there, it works, and all the same everything moves, at once.
    let mut auditor = cluster.auditor();
    assert_eq!(auditor.pass().await.unwrap().marked, 2);
    cluster.worker().await.round().await.unwrap();
    cluster.assert_whole(closed, 10).await;
    for ledger in [closed, empty] {
        assert!(!cluster.info(ledger).await.bookies().contains(&bookie(1)));
    }
    assert_eq!(
        decommission::references(store, bookie(1)).await.unwrap(),
        (0, true)
    );
    // A writer may choose it for as long as it is announced as writable, and a moment longer.
    let mut step = async || retirement.step().await.unwrap();
    assert_eq!(step().await, decommission::Retired::Announced);
    cluster.pass_time(Duration::from_secs(60));
    assert_eq!(step().await, decommission::Retired::Announced);
    let hears = v1::BookieRecord {
        read_only: true,
        ..v1::BookieRecord::default()
    };
    let hears = Operation::Put {
        key: keys::bookie(bookie(1)),
        value: record::encode(hears),
        expect: Expect::Any,
    };
    cluster.change(hears).await;
    assert_eq!(step().await, decommission::Retired::Announced);
    // A writer that had not heard creates a ledger there.
    let late = cluster.open_on(quorum(1, 1, 1), vec![bookie(1)]).await;
    cluster.pass_time(Duration::from_secs(60));
    assert_eq!(step().await, decommission::Retired::Referenced(1));
    cluster.close(&late).await;
    cluster.repair_all().await;
    assert_eq!(step().await, decommission::Retired::Yes);
    let members = Members::load(store).await.unwrap();
    assert!(members.get(bookie(1)).unwrap().is_decommissioned());
}

pub(super) fn topic_key(name: &str) -> (String, TopicName) {
    let topic: TopicName = format!("public/default/{name}").parse().unwrap();
    (keys::topic(&topic), topic)
}

pub(super) async fn put(cluster: &Cluster, key: String, value: Bytes) {
    let put = Operation::Put {
        key,
        value,
        expect: Expect::Any,
    };
    let transaction = Transaction {
        partition: HOME.to_owned(),
        guards: Vec::new(),
        operations: vec![put],
    };
    cluster.store().commit(transaction).await.unwrap();
}

pub(super) fn topic_of(ledgers: &[LedgerId], cursors: &[LedgerId]) -> Bytes {
    let segments = |ids: &[LedgerId]| {
        let segment = |id: &LedgerId| v1::SegmentRecord {
            ledger_id: id.0,
            ..v1::SegmentRecord::default()
        };
        ids.iter().map(segment).collect()
    };
    record::encode(v1::TopicRecord {
        incarnation: vec![1; 16].into(),
        segments: segments(ledgers),
        cursor_segments: segments(cursors),
        ..v1::TopicRecord::default()
    })
}

#[tokio::test(start_paused = true)]
async fn an_orphan_is_deleted_in_the_second_pass_and_nothing_else_is() {
    let cluster = Cluster::new(3).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(cluster.closed(quorum(3, 3, 2), 3).await);
    }
    put(&cluster, topic_key("a").0, topic_of(&ids[..1], &ids[1..2])).await;
    let mut audit = OrphanAudit::new(cluster.ctx.clone(), &cluster.config);
    let young = audit.pass().await.unwrap();
    assert_eq!((young.judged, young.suspects), (0, 0));
    cluster.pass_time(Duration::from_secs(2));
    let first = audit.pass().await.unwrap();
    assert_eq!((first.judged, first.suspects), (3, 1));
    assert!(first.deleted.is_empty());
    let second = audit.pass().await.unwrap();
    assert_eq!(second.deleted, [ids[2]]);
    assert_eq!(cluster.world.bookies.ledgers(bookie(1)), ids[..2]);
    assert_eq!(cluster.world.store.keys("l/").len(), 2);
    assert!(cluster.world.store.keys("g/").is_empty());
}

/// A ledger that only a page of its topic lists has a topic.
#[tokio::test(start_paused = true)]
async fn a_ledger_in_a_page_of_segments_is_no_orphan() {
    let cluster = Cluster::new(3).await;
    let (old, new) = (
        cluster.closed(quorum(3, 3, 2), 3).await,
        cluster.closed(quorum(3, 3, 2), 3).await,
    );
    let (key, topic) = topic_key("a");
    put(&cluster, key, topic_of(&[new], &[])).await;
    let segment = v1::SegmentRecord {
        ledger_id: old.0,
        sealed: true,
        ..v1::SegmentRecord::default()
    };
    let page = record::encode(v1::SegmentPageRecord {
        incarnation: vec![1; 16].into(),
        segments: vec![segment],
    });
    let page_key = keys::segment_page(&topic, TopicIncarnation([1; 16]), 4);
    put(&cluster, page_key.clone(), page).await;
    cluster.pass_time(Duration::from_secs(2));
    let mut audit = OrphanAudit::new(cluster.ctx.clone(), &cluster.config);
    for _ in 0..3 {
        let report = audit.pass().await.unwrap();
        assert_eq!((report.judged, report.suspects), (2, 0));
    }
    let found = inspect::topic_of(cluster.store(), old).await;
    assert_eq!(found, Ok(Some(topic.to_string())));
    // A page that cannot be read ends a pass: what it lists is not known.
    put(&cluster, page_key, Bytes::from_static(b"\x08\x01garbage")).await;
    assert!(audit.pass().await.is_err());
    assert!(audit.pass().await.is_err());
    cluster.assert_whole(old, 3).await;
}

/// A ledger of a topic that is being restored has a topic, at each moment.
#[tokio::test(start_paused = true)]
async fn a_ledger_of_a_topic_that_is_being_restored_is_no_orphan() {
    let cluster = Cluster::new(3).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    let (_, topic) = topic_key("a");
    put(&cluster, keys::restoring(&topic), topic_of(&[ledger], &[])).await;
    cluster.pass_time(Duration::from_secs(2));
    let mut audit = OrphanAudit::new(cluster.ctx.clone(), &cluster.config);
    for _ in 0..3 {
        let report = audit.pass().await.unwrap();
        assert_eq!((report.judged, report.suspects), (1, 0));
    }
    let found = inspect::topic_of(cluster.store(), ledger).await;
    assert_eq!(found, Ok(Some(topic.to_string())));
    cluster.assert_whole(ledger, 3).await;
}

/// GC fails closed: whatever cannot be read, or is unusual, ends a pass without a consequence.
#[tokio::test(start_paused = true)]
async fn damage_anywhere_keeps_orphans_alive() {
    let mut cluster = Cluster::new(3).await;
    let orphan = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.pass_time(Duration::from_secs(2));
    let garbage = Bytes::from_static(b"\x08\x01garbage");
    let places = [
        topic_key("damaged").0,
        keys::ledger(LedgerId(200)),
        keys::deletion(LedgerId(300)),
    ];
    for place in places {
        let mut audit = OrphanAudit::new(cluster.ctx.clone(), &cluster.config);
        audit.pass().await.unwrap();
        put(&cluster, place.clone(), garbage.clone()).await;
        assert!(audit.pass().await.is_err(), "{place}");
        assert!(audit.pass().await.is_err(), "{place}");
        let delete = Operation::Delete {
            key: place,
            expect: Expect::Any,
        };
        let transaction = Transaction {
            partition: HOME.to_owned(),
            guards: Vec::new(),
            operations: vec![delete],
        };
        cluster.store().commit(transaction).await.unwrap();
        // And suspicion begins again.
        assert!(audit.pass().await.unwrap().deleted.is_empty());
    }
    cluster.world.store.set_unavailable(true);
    let mut audit = OrphanAudit::new(cluster.ctx.clone(), &cluster.config);
    assert!(audit.pass().await.is_err());
    cluster.world.store.set_unavailable(false);
    cluster.config.orphans_max = 0;
    let mut audit = OrphanAudit::new(cluster.ctx.clone(), &cluster.config);
    assert!(audit.pass().await.is_err());
    assert!(audit.pass().await.is_err());
    assert_eq!(cluster.world.bookies.ledgers(bookie(1)), [orphan]);
    cluster.assert_whole(orphan, 3).await;
}

/// What was not noticed is found in the course of a cycle.
#[tokio::test(start_paused = true)]
async fn every_ledger_is_checked_once_in_a_cycle() {
    let mut cluster = Cluster::new(4).await;
    cluster.config.check_cycle_ms = 1_000_000;
    cluster.config.lost_after_ms = u64::MAX;
    let mut ledgers = Vec::new();
    for _ in 0..5 {
        ledgers.push(cluster.closed(quorum(3, 3, 2), 4).await);
    }
    let open = cluster.open(quorum(3, 3, 2)).await;
    let bookies = &cluster.world.bookies;
    bookies.drop_entry(bookie(2), ledgers[4], EntryId(1));
    bookies.drop_entry(bookie(1), ledgers[0], EntryId(3));
    let (mut auditor, mut worker) = (cluster.auditor(), cluster.worker().await);
    let mut checked = 0;
    for _ in 0..=100 {
        checked += auditor.pass().await.unwrap().checked;
        worker.round().await.unwrap();
        cluster.pass_time(Duration::from_millis(10_000));
    }
    assert_eq!(checked, 5, "closed ledgers, once each");
    for ledger in ledgers {
        cluster.assert_whole(ledger, 4).await;
    }
    assert_eq!(cluster.info(open.id).await.state, LedgerState::Open);
    assert!(cluster.marks().is_empty());
}

async fn mark_of(cluster: &Cluster, ledger: LedgerId) -> Mark {
    let mark = marks::load(cluster.store(), ledger).await;
    mark.unwrap().expect("it is marked")
}

/// A mark that cannot be read stops neither the auditor nor a recovery (H16): it may have named
/// any bookie of its ledger.
#[tokio::test(start_paused = true)]
async fn an_unreadable_mark_is_replaced_and_in_nobodys_way() {
    let cluster = Cluster::new(4).await;
    let mut ledgers = Vec::new();
    for _ in 0..20 {
        ledgers.push(cluster.closed(quorum(3, 3, 2), 1).await);
    }
    let garbage = Bytes::from_static(b"\x08\x01garbage");
    put(
        &cluster,
        keys::under_replicated(ledgers[4]),
        garbage.clone(),
    )
    .await;
    cluster.lose(bookie(1)).await;
    let mut auditor = cluster.auditor();
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_millis(cluster.config.lost_after_ms));
    let report = auditor.pass().await.unwrap();
    assert_eq!((report.marked, report.failed), (20, 0));
    let all: BTreeSet<BookieId> = (1..=3).map(bookie).collect();
    for (n, ledger) in ledgers.iter().enumerate() {
        let mark = mark_of(&cluster, *ledger).await;
        assert_eq!(mark.lost, BTreeSet::from([bookie(1)]), "{ledger}");
        assert_eq!(mark.doubted == all, n == 4, "{ledger}");
    }
    cluster.register(bookie(1)).await;

    let mut open = cluster.open(quorum(3, 3, 2)).await;
    assert_eq!(open.append(3).await, None);
    put(&cluster, keys::under_replicated(open.id), garbage).await;
    cluster.lose(bookie(2)).await;
    close_by_recovery(&cluster.ctx.ledgers, open.id, &[])
        .await
        .unwrap();
    let info = cluster.info(open.id).await;
    assert!(matches!(info.state, LedgerState::Closed(_)));
    assert!(mark_of(&cluster, open.id).await.doubted.is_superset(&all));
}

/// What is wrong with one ledger's record keeps no other from being checked.
#[tokio::test(start_paused = true)]
async fn one_ledger_that_cannot_be_marked_is_counted_and_the_others_are_marked() {
    let mut cluster = Cluster::new(3).await;
    cluster.config.scan_ms = u64::MAX;
    cluster.config.check_cycle_ms = 1_000;
    let mut ledgers = Vec::new();
    for _ in 0..3 {
        ledgers.push(cluster.closed(quorum(3, 3, 2), 1).await);
    }
    let mut auditor = cluster.auditor();
    assert_eq!(auditor.pass().await.unwrap().ledgers, 3);
    let garbage = Bytes::from_static(b"\x08\x01garbage");
    put(&cluster, keys::ledger(ledgers[0]), garbage).await;
    cluster.pass_time(Duration::from_secs(1));
    let report = auditor.pass().await.unwrap();
    assert_eq!((report.checked, report.failed), (2, 1));
    assert_eq!(cluster.marks().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn ledgers_without_a_place_to_go_are_counted() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 3).await;
    cluster.closed(quorum(2, 2, 2), 3).await;
    let outlook = |stuck, writable| outlook::Outlook {
        ledgers: 2,
        stuck,
        ensemble: if stuck == 0 { 0 } else { 3 },
        writable,
    };
    let leave = async || {
        outlook::of_bookie(cluster.store(), bookie(1))
            .await
            .unwrap()
    };
    assert_eq!(leave().await, outlook(0, 3));
    cluster.lose(bookie(4)).await;
    assert_eq!(leave().await, outlook(1, 2));
    // This one is not known.
    let stranger = outlook::of_bookie(cluster.store(), bookie(9))
        .await
        .unwrap();
    assert_eq!((stranger.ledgers, stranger.stuck), (0, 0));

    let marked = async || {
        let members = Members::load(cluster.store()).await.unwrap();
        let outlook = outlook::of_marks(cluster.store(), &members).await.unwrap();
        (outlook.ledgers, outlook.stuck, outlook.ensemble)
    };
    assert_eq!(marked().await, (0, 0, 0));
    let mark = Mark::new(ledger, HOME, "test", 0).lost([bookie(1)]);
    cluster.mark(mark).await;
    assert_eq!(marked().await, (0, 0, 0), "it is there");
    cluster.lose(bookie(1)).await;
    assert_eq!(marked().await, (1, 1, 3));
    cluster.register(bookie(4)).await;
    assert_eq!(marked().await, (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn verify_says_what_is_missing_where() {
    let cluster = Cluster::new(4).await;
    let ledger = cluster.closed(quorum(3, 3, 2), 10).await;
    let bookies = &cluster.world.bookies;
    bookies.drop_entry(bookie(2), ledger, EntryId(4));
    bookies.corrupt(bookie(2), ledger, EntryId(5));
    cluster.lose(bookie(3)).await;
    let verify = async |ledger| inspect::verify(&cluster.ctx, ledger, u64::MAX).await;
    let found = verify(ledger).await.unwrap().unwrap();
    assert!(found.is_closed);
    let replicas = found.replicas;
    let mut written = cluster.open(quorum(3, 3, 2)).await;
    assert_eq!(written.append(2).await, None);
    let found = verify(written.id).await.unwrap().unwrap();
    assert!(!found.is_closed && found.replicas.is_empty(), "{found:?}");
    assert_eq!(replicas.len(), 3);
    assert!(replicas[0].is_intact());
    assert_eq!(replicas[1].gaps, Ok(vec![(EntryId(4), EntryId(5))]));
    assert_eq!((replicas[1].missing(), replicas[1].entries), (2, 10));
    assert!(replicas[2].gaps.is_err() && !replicas[2].is_intact());
    // It is trimmed between its listing and its turn: there is nothing to look at any more.
    inspect::delete(&cluster.ctx, ledger).await.unwrap();
    let going = verify(ledger).await.unwrap().unwrap();
    assert_eq!(going.replicas, [], "3 is away");
    cluster.register(bookie(3)).await;
    deletion::sweep_intents(&cluster.ctx.ledgers).await.unwrap();
    assert_eq!(verify(ledger).await, Ok(None));
}

/// Its record stays until the bookie that is away has deleted it, which may be never.
#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_being_deleted_is_not_marked() {
    let cluster = Cluster::new(4).await;
    let deleted = cluster.closed(quorum(4, 4, 2), 2).await;
    let kept = cluster.closed(quorum(3, 3, 2), 2).await;
    cluster.lose(bookie(1)).await;
    inspect::delete(&cluster.ctx, deleted).await.unwrap();
    let mut auditor = cluster.auditor();
    auditor.pass().await.unwrap();
    cluster.pass_time(Duration::from_secs(600));
    for _ in 0..3 {
        auditor.pass().await.unwrap();
        cluster.repair_all().await;
    }
    let report = auditor.pass().await.unwrap();
    assert_eq!((report.ledgers, report.remaining, report.marked), (2, 0, 0));
    assert_eq!(report.emptied, [].into(), "it holds nothing that is kept");
    assert_eq!(report.away, 0);
    assert!(cluster.marks().is_empty());
    cluster.assert_whole(kept, 2).await;
}
