//! What policy makes due, of logs that are open and by the record of one that is not.

use aquifer_ledger::deletion::{Intent, begin_copy};
use aquifer_ledger::testing::Mode;
use tokio::sync::watch;

use super::*;
use crate::offload::planned::{Planned, Terms, planned};

const HOUR: u64 = 3_600_000;

fn policy(age_ms: Option<u64>, bytes: Option<u64>) -> OffloadPolicy {
    OffloadPolicy {
        age_ms,
        bytes,
        lag_ms: clock::millis(LAG),
        ..OffloadPolicy::default()
    }
}

/// What a planner finds that sees the record alone.
async fn found(owner: &Owner, policies: &EffectivePolicies, unneeded: Index) -> Planned {
    let store = &*owner.ctx.ledgers.store;
    let stored = store.get(&keys::topic(&topic())).await.unwrap().unwrap();
    let terms = Terms {
        policy: policies.offload,
        retention: policies.retention,
        unneeded,
        pressed: owner.ctx.cold.as_ref().unwrap().pressure.is_on(),
        now_ms: owner.ctx.ledgers.clock.wall_ms(),
    };
    let record: v1::TopicRecord = record::decode(&stored).unwrap();
    planned(store, &record, &terms).await.unwrap()
}

fn mark(owner: &Owner) -> v1::OffloadMark {
    owner.cell.record().offloaded.unwrap_or_default()
}

fn follow(owner: &Owner, offload: OffloadPolicy) -> watch::Sender<EffectivePolicies> {
    let policies = EffectivePolicies {
        offload,
        rollover: options(10).rollover,
        ..EffectivePolicies::default()
    };
    let (sender, receiver) = watch::channel(policies);
    owner.log.follow(receiver);
    sender
}

/// Lets the log do what is due.
async fn work(owner: &Owner, unneeded: Index) {
    loop {
        owner.log.care_for_offload(owner.log.end(), unneeded);
        tokio::time::sleep(Duration::from_millis(10)).await;
        if !owner.log.awaits_offload(owner.log.end()) {
            return;
        }
    }
}

fn offloaded(owner: &Owner) -> usize {
    let is_stored = |state: &&SegmentState| matches!(state, SegmentState::Offloaded { .. });
    states(owner).iter().filter(is_stored).count()
}

#[tokio::test(start_paused = true)]
async fn what_is_old_is_due_and_the_record_says_how_far_that_is() {
    let world = World::new();
    let owner = world.owner(40).await;
    let policies = follow(&owner, policy(Some(HOUR), None));
    let policies = *policies.borrow();
    work(&owner, Index(0)).await;
    assert_eq!(
        (offloaded(&owner), mark(&owner)),
        (0, v1::OffloadMark::default())
    );
    assert!(!found(&owner, &policies, Index(0)).await.is_due());

    world.pass(Duration::from_millis(4 * HOUR));
    let due = found(&owner, &policies, Index(0)).await;
    assert_eq!(
        (due.behind.ledgers, due.behind.late, due.drops),
        (4, 4, false)
    );
    assert_eq!(due.behind.bytes, owner.log.stats().bytes);
    work(&owner, Index(0)).await;
    assert_eq!((offloaded(&owner), count_local(&owner)), (4, 4));
    let end = owner.log.end().0;
    let stored = mark(&owner);
    assert_eq!((stored.stored_end, stored.dropped_end), (end, 0));
    assert!(
        !found(&owner, &policies, Index(0)).await.is_due(),
        "the lag is not over"
    );

    world.pass(LAG);
    assert_eq!(
        found(&owner, &policies, Index(0)).await,
        Planned {
            drops: true,
            ..Planned::default()
        }
    );
    work(&owner, Index(0)).await;
    assert_eq!(count_local(&owner), 0);
    let dropped = mark(&owner);
    assert_eq!((dropped.dropped_end, dropped.copies_since_ms), (end, 0));
    // Another process believes the record, and finds nothing to do.
    let heir = Owner::open(world.process(), options(10)).await;
    assert!(!found(&heir, &policies, Index(0)).await.is_due());
    assert_eq!(mark(&heir), dropped);
    assert_eq!(bodies(&heir.read_all().await), large_bodies(0..40));
}

#[tokio::test(start_paused = true)]
async fn what_has_enough_newer_bytes_is_due() {
    let world = World::new();
    let owner = world.owner(40).await;
    let one = owner.log.stats().ledgers[3].bytes;
    let policies = follow(&owner, policy(None, Some(one)));
    let policies = *policies.borrow();
    let due = found(&owner, &policies, Index(0)).await;
    assert_eq!((due.behind.ledgers, due.behind.since_ms), (2, 0));
    work(&owner, Index(0)).await;
    assert_eq!(offloaded(&owner), 2);
    assert!(matches!(states(&owner)[1], SegmentState::Offloaded { .. }));
    assert!(!found(&owner, &policies, Index(0)).await.is_due());
}

#[tokio::test(start_paused = true)]
async fn a_changed_policy_counts_at_once_and_off_means_off() {
    let world = World::new();
    let owner = world.owner(20).await;
    let off = OffloadPolicy {
        enabled: false,
        ..policy(Some(0), Some(0))
    };
    let policies = follow(&owner, off);
    work(&owner, Index(0)).await;
    assert_eq!(offloaded(&owner), 0);
    policies.send_modify(|policies| policies.offload.enabled = true);
    work(&owner, Index(0)).await;
    assert_eq!(offloaded(&owner), 2);
    // A lag that was shortened counts for what is stored already.
    assert_eq!(count_local(&owner), 2);
    policies.send_modify(|policies| policies.offload.lag_ms = 0);
    work(&owner, Index(0)).await;
    assert_eq!(count_local(&owner), 0);
}

#[tokio::test(start_paused = true)]
async fn what_retention_deletes_soon_is_not_uploaded_unless_a_subscription_needs_it() {
    let world = World::new();
    let owner = world.owner(30).await;
    let policies = follow(&owner, policy(Some(0), None));
    policies.send_modify(|policies| {
        policies.retention = Retention {
            time_ms: Some(2 * HOUR),
            size_bytes: Some(0),
        };
    });
    let policies = *policies.borrow();
    world.pass(Duration::from_millis(HOUR));
    work(&owner, owner.log.end()).await;
    assert_eq!(offloaded(&owner), 0);
    assert!(!found(&owner, &policies, Index(u64::MAX)).await.is_due());
    assert!(world.cold.names().is_empty());
    // A subscription is still behind the first ledger.
    let first = owner.log.stats().ledgers[1].first_index;
    assert_eq!(found(&owner, &policies, first).await.behind.ledgers, 2);
    work(&owner, first).await;
    assert_eq!(offloaded(&owner), 2);
}

/// Where the bytes of ledgers are is nothing to retention: each counts once.
#[tokio::test(start_paused = true)]
async fn retention_counts_a_ledger_once() {
    let world = World::new();
    let owner = world.owner(40).await;
    let kept = owner.log.stats().ledgers[2..].iter().map(|l| l.bytes).sum();
    let retention = Retention {
        time_ms: Some(0),
        size_bytes: Some(kept),
    };
    let due = || owner.log.trim_due(Index(u64::MAX), retention).unwrap().end;
    let before = due();
    assert_eq!(before, owner.log.stats().ledgers[2].first_index);
    offload_all(&owner).await;
    assert_eq!(due(), before, "both at bookies and in objects");
    world.pass(LAG);
    drop_copies(&owner, owner.log.end(), 0).await;
    assert_eq!(due(), before, "in objects only");
}

#[tokio::test(start_paused = true)]
async fn uploads_keep_to_their_rate() {
    let world = World::new();
    let settings = OffloadSettings {
        upload_rate: Some(200_000),
        ..offload_settings()
    };
    let ctx = over_cold(world.world.process(), &world.cold, settings);
    let owner = Owner::open(ctx, options(10)).await;
    for tag in 0..40 {
        owner.append_bytes(tag, large(tag)).unwrap();
    }
    for (_, outcome) in owner.collected.wait_for(40).await {
        outcome.unwrap();
    }
    owner.log.roll().await.unwrap();
    let end = owner.log.end();
    let asked = owner.log.request_offload(end).await.unwrap();
    assert!(asked.bytes > 700_000, "{asked:?}");
    // What a second brings is there at once, and no more while the clock stands.
    tokio::time::sleep(Duration::from_secs(100)).await;
    let at_once = world.cold.names().len();
    assert!((1..3).contains(&at_once), "{at_once}");
    for seconds in 0.. {
        assert!(seconds < 10, "the rate is there to be used");
        world.pass(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_secs(5)).await;
        if owner.log.request_offload(end).await.unwrap().ledgers == 0 {
            assert!(seconds >= 1, "{seconds}");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ledgers_of_a_full_bookie_are_due_at_once_and_their_copies_go() {
    let world = World::new();
    let owner = world.owner(120).await;
    let policies = follow(&owner, policy(None, None));
    let policies = *policies.borrow();
    let ledgers_at = |bookie| world.world.bookies.ledgers(bookie).len();
    let bookies = world.world.bookies.ids().into_iter();
    let full = bookies.max_by_key(|bookie| ledgers_at(*bookie)).unwrap();
    let (there, elsewhere) = (ledgers_at(full), 12 - ledgers_at(full));
    assert!(there > 0 && elsewhere > 0, "{there} and {elsewhere}");
    work(&owner, Index(0)).await;
    assert!(!found(&owner, &policies, Index(0)).await.is_due());
    let info = aquifer_ledger::placement::BookieInfo {
        id: full,
        zone: String::new(),
        read_only: false,
        free_bytes: 1,
        capacity_bytes: 100,
    };
    owner.ctx.cold.as_ref().unwrap().pressure.look(&[info]);
    assert!(found(&owner, &policies, Index(0)).await.pressed);
    work(&owner, Index(0)).await;
    assert_eq!((ledgers_at(full), offloaded(&owner)), (0, there));
    assert_eq!(count_local(&owner), elsewhere);
    assert_eq!(bodies(&owner.read_all().await), large_bodies(0..120));
}

#[tokio::test(start_paused = true)]
async fn copies_that_wait_for_another_intent_keep_no_one_waiting() {
    let world = World::new();
    let owner = world.owner(20).await;
    let policies = follow(&owner, policy(Some(0), None));
    work(&owner, Index(0)).await;
    assert_eq!(offloaded(&owner), 2);
    // Repair has one copy of the first deleted, at a bookie that is away.
    let ledger = owner.log.stats().ledgers[0].ledger;
    let store = &*owner.ctx.ledgers.store;
    let info = ledger_metadata::load_existing(store, ledger).await.unwrap();
    let bookie = *info.bookies().first().unwrap();
    world.world.bookies.set_mode(bookie, Mode::Unreachable);
    let intent = Intent::of_copy(ledger, info.token, bookie, Some(&info));
    assert!(begin_copy(store, &intent, Some(&info)).await.unwrap());
    world.pass(LAG);
    // It ends, although the first ledger has copies; the others have none.
    let limit = Duration::from_secs(3600);
    let worked = tokio::time::timeout(limit, work(&owner, Index(0))).await;
    assert!(worked.is_ok(), "the visit of the topic does not end");
    assert!(!owner.log.awaits_snapshot(Index(0)));
    assert!(
        found(&owner, &policies.borrow().clone(), Index(0))
            .await
            .drops
    );
    // It is looked at again later.
    world.world.bookies.set_mode(bookie, Mode::Up);
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    work(&owner, Index(0)).await;
    assert_ne!(count_local(&owner), 0, "not yet");
    world.pass(Duration::from_secs(61));
    work(&owner, Index(0)).await;
    sweep_intents(&owner.ctx.ledgers).await.unwrap();
    assert_eq!((count_local(&owner), world.copies()), (0, 0));
    assert_eq!(bodies(&owner.read_all().await), large_bodies(0..20));
}
