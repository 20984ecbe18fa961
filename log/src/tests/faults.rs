//! Appends when bookies, metadata or rivals interfere.

use aquifer_ledger::testing::{MemoryStore, Mode};
use aquifer_ledger::transport::BookieTransport;
use aquifer_model::id::{CreationToken, EntryId, TenantKey};
use aquifer_model::storage::{BookieError, OrderedOperation, OrderedRequest};

use super::*;

#[tokio::test(start_paused = true)]
async fn replies_out_of_order_are_acknowledged_in_order_i1() {
    let world = TestWorld::new(1);
    let bookie = world.bookies.ids()[0];
    let owner = Owner::open(world.logs(), options(100)).await;
    owner.append_all(0..1).await;
    world.bookies.hold_replies(bookie);
    for tag in 1..6 {
        owner.append(tag).unwrap();
    }
    assert_eq!(owner.collected.so_far().len(), 1);
    world.bookies.release_replies(bookie, true);
    let tags: Vec<u64> = owner
        .collected
        .wait_for(6)
        .await
        .iter()
        .map(|(tag, _)| *tag)
        .collect();
    assert_eq!(tags, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_fence_decides_pending_appends_by_the_ledgers_end_h10() {
    let world = TestWorld::new(1);
    let bookie = world.bookies.ids()[0];
    let owner = Owner::open(world.logs(), options(100)).await;
    owner.append_all(0..2).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    world.bookies.hold(bookie);
    for tag in 2..7 {
        owner.append(tag).unwrap();
    }
    // Two are stored, but their answers are late; then another process fences the ledger.
    world.bookies.hold_replies(bookie);
    assert!(world.bookies.release_one(bookie) && world.bookies.release_one(bookie));
    world.bookies.fence(ledger);
    world.bookies.release(bookie);
    world.bookies.release_replies(bookie, true);

    let outcomes = owner.collected.wait_for(7).await;
    for (tag, outcome) in outcomes {
        match tag {
            0..4 => assert!(outcome.is_ok(), "{tag} was stored: {outcome:?}"),
            _ => assert!(outcome.unwrap_err().is_retryable(), "{tag} was not"),
        }
    }
    let refused = owner.append(7).unwrap_err();
    assert!(refused.is_retryable(), "{refused:?}");
    owner.log.resume();
    let end = owner.log.end();
    assert_eq!(end, Index(u64::from((0..4).map(count).sum::<u32>())));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    world
        .clock
        .clone()
        .unwrap()
        .advance(std::time::Duration::from_secs(1));
    assert_eq!(
        owner.append(4),
        Ok(end),
        "the next index follows the stored end"
    );
    owner.collected.wait_for(8).await;
    assert_eq!(bodies(&owner.read_all().await), expected(0..5));
}

#[tokio::test(start_paused = true)]
async fn a_full_store_fails_appends_retryably_and_recovers() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), options(100)).await;
    owner.append_all(0..2).await;
    world.bookies.set_all(Mode::ReadOnly);
    for round in 0..5 {
        clock.advance(std::time::Duration::from_secs(60));
        owner.append(2).unwrap();
        let outcomes = owner.collected.wait_for(3 + round).await;
        let error = outcomes[2 + round].1.clone().unwrap_err();
        assert!(matches!(error, LogError::StorageFull(_)), "{error:?}");
        owner.log.resume();
        let refused = owner.append(2).unwrap_err();
        assert_eq!(refused, error, "for a while it does not even try");
    }
    assert_eq!(
        bodies(&owner.read_all().await),
        expected(0..2),
        "reads go on"
    );
    world.bookies.set_all(Mode::Up);
    clock.advance(std::time::Duration::from_secs(60));
    owner.append_all(2..4).await;
    assert_eq!(bodies(&owner.read_all().await), expected(0..4));
    let segments = owner.cell.record().segments.len();
    assert!(
        segments <= 3,
        "failed ledgers leave no segments: {segments}"
    );
}

#[tokio::test(start_paused = true)]
async fn overload_delays_appends_and_keeps_their_order() {
    let world = TestWorld::new(1);
    let bookie = world.bookies.ids()[0];
    let owner = Owner::open(world.logs(), options(100)).await;
    owner.append_all(0..1).await;
    let busy = || std::iter::repeat_n(BookieError::Overloaded, 3);
    world.bookies.fail_next(bookie, busy());
    owner.append_all(1..5).await;
    world.bookies.set_mode(bookie, Mode::Overloaded);
    for tag in 5..8 {
        owner.append(tag).unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    world.bookies.set_mode(bookie, Mode::Up);
    owner.collected.wait_for(8).await;
    assert_eq!(bodies(&owner.read_all().await), expected(0..8));
    assert_eq!(owner.log.stats().ledgers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn pending_bytes_are_bounded_per_log_and_per_process() {
    let world = TestWorld::new(1);
    let bookie = world.bookies.ids()[0];
    let mut ctx = world.logs();
    let settings = &mut Arc::get_mut(&mut ctx).unwrap().settings;
    settings.pending_bytes_per_log_max = 4000;
    let owner = Owner::open(ctx, options(100)).await;
    owner.append_all(0..1).await;
    world.bookies.hold(bookie);
    let large = || Bytes::from(vec![7; 1500]);
    assert!(owner.append_bytes(1, large()).is_ok() && owner.append_bytes(2, large()).is_ok());
    assert_eq!(owner.append_bytes(3, large()), Err(LogError::Overloaded));
    assert!(owner.ctx.shared.pending_bytes() > 3000);
    world.bookies.release(bookie);
    owner.collected.wait_for(3).await;
    assert_eq!(owner.ctx.shared.pending_bytes(), 0);
    assert!(owner.append_bytes(3, large()).is_ok(), "nothing was lost");
    owner.collected.wait_for(4).await;
}

#[tokio::test(start_paused = true)]
async fn rollover_waits_while_metadata_is_away_h8() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), options(2)).await;
    owner.append_all(0..1).await;
    world.store.set_unavailable(true);
    for tags in [1..2, 2..3, 3..4, 4..5] {
        owner.append_all(tags).await;
    }
    assert_eq!(owner.log.stats().ledgers.len(), 1, "the limit is soft");
    world.store.set_unavailable(false);
    // The first of these asks whether metadata is back, beside the log.
    for tag in 5..7 {
        clock.advance(std::time::Duration::from_secs(1));
        owner.append_all(tag..tag + 1).await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(owner.log.stats().ledgers.len(), 2);
    assert_eq!(bodies(&owner.read_all().await), expected(0..7));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_of_metadata_changes_nothing() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(2)).await;
    for tag in 0..8 {
        world.store.lose_answers(1);
        owner.append_all(tag..tag + 1).await;
    }
    world.store.lose_answers(1);
    owner.log.close().await.unwrap();
    let heir = Owner::open(world.logs(), options(2)).await;
    assert_eq!(bodies(&heir.read_all().await), expected(0..8));
    assert_eq!(heir.log.stats().ledgers.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_second_owner_fences_the_first_i4() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let guard = take_over(&world, 1).await;
    let first = Owner::try_open(world.logs(), options(100), vec![guard.clone()])
        .await
        .unwrap();
    first.append_all(0..3).await;
    let guard = take_over(&world, 2).await;
    let second = Owner::try_open(world.logs(), options(100), vec![guard])
        .await
        .unwrap();
    assert_eq!(bodies(&second.read_all().await), expected(0..3));

    // The first does not know yet.
    first.append(77).unwrap();
    second.append_all(3..5).await;
    let (_, outcome) = first.collected.wait_for(4).await.remove(3);
    assert_eq!(outcome, Err(LogError::Fenced));
    first.log.resume();
    clock.advance(std::time::Duration::from_secs(60));
    assert_eq!(first.append(78), Err(LogError::Fenced), "for good");
    assert_eq!(first.log.close().await, Err(LogError::Fenced));
    second.append_all(5..6).await;
    second.log.close().await.unwrap();
    let third = Owner::open(world.logs(), options(100)).await;
    assert_eq!(bodies(&third.read_all().await), expected(0..6));
}

#[tokio::test(start_paused = true)]
async fn without_epochs_the_record_decides_between_two_owners_i4() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let first = Owner::open(world.logs(), options(100)).await;
    first.append_all(0..2).await;
    let second = Owner::open(world.logs(), options(100)).await;
    second.append_all(2..3).await;
    first.append(77).unwrap();
    let (_, outcome) = first.collected.wait_for(3).await.remove(2);
    assert!(outcome.is_err());
    first.log.resume();
    clock.advance(std::time::Duration::from_secs(60));
    let again = first.append(77);
    if again.is_ok() {
        let (_, outcome) = first.collected.wait_for(4).await.remove(3);
        assert_eq!(outcome, Err(LogError::Fenced));
    }
    second.append_all(3..4).await;
    assert_eq!(bodies(&second.read_all().await), expected(0..4));
}

#[tokio::test(start_paused = true)]
async fn limbo_is_named_and_changes_nothing_h6() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(100)).await;
    owner.append_all(0..3).await;
    world.bookies.set_all(Mode::Limbo);
    let opened = Owner::try_open(world.logs(), options(100), Vec::new()).await;
    assert!(matches!(opened.err(), Some(LogError::Limbo(_))));
    // The loss is accepted: the bookie answers for what it has.
    world.bookies.set_all(Mode::Up);
    let heir = Owner::open(world.logs(), options(100)).await;
    assert_eq!(bodies(&heir.read_all().await), expected(0..3));
}

/// A bookie that does not answer may have what others lost or have damaged: nothing is final while
/// it is away, in whatever order they are asked (H6, I5).
#[tokio::test(start_paused = true)]
async fn what_a_bookie_may_have_that_is_away_is_no_loss() {
    let options = LogOptions {
        quorum: Quorum::new(3, 3, 2).unwrap(),
        ..options(100)
    };
    for away in 0..3 {
        let world = TestWorld::new(3);
        let bookies = world.bookies.ids();
        let owner = Owner::open(world.logs(), options).await;
        owner.append_all(0..3).await;
        let ledger = owner.log.stats().ledgers[0].ledger;
        // Of an open ledger: recovery.
        let limbo = bookies[(away + 1) % 3];
        world.bookies.set_mode(bookies[away], Mode::Unreachable);
        world.bookies.set_mode(limbo, Mode::Limbo);
        let opened = Owner::try_open(world.logs(), options, Vec::new()).await;
        let error = opened.err().expect("two of three cannot tell");
        assert!(error.is_retryable(), "{away}: {error:?}");
        world.bookies.set_mode(bookies[away], Mode::Up);
        let heir = Owner::open(world.logs(), options).await;
        world.bookies.set_mode(limbo, Mode::Up);

        // Of a closed ledger: reads.
        world.bookies.set_mode(bookies[away], Mode::Unreachable);
        for other in [(away + 1) % 3, (away + 2) % 3] {
            world.bookies.corrupt(bookies[other], ledger, EntryId(1));
        }
        let at = || ReadPoint::from(Index(u64::from(count(0))));
        let error = heir.log.read_or_skip(&mut at(), LIMITS).await.unwrap_err();
        assert!(error.is_retryable(), "{away}: {error:?}");
        world.bookies.set_mode(bookies[away], Mode::Up);
        let found = heir.log.read(&mut at(), LIMITS).await.unwrap();
        assert_eq!(bodies(&found), expected(1..3));
    }
}

#[tokio::test(start_paused = true)]
async fn pending_appends_wait_until_recovery_knows_their_fate() {
    let world = TestWorld::new(1);
    let bookie = world.bookies.ids()[0];
    let owner = Owner::open(world.logs(), options(100)).await;
    owner.append_all(0..2).await;
    world.bookies.hold(bookie);
    owner.append(2).unwrap();
    owner.append(3).unwrap();
    world.bookies.hold_replies(bookie);
    assert!(world.bookies.release_one(bookie));
    world.bookies.set_mode(bookie, Mode::Unreachable);
    world.bookies.release(bookie);
    world.bookies.release_replies(bookie, true);
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    // The answer for 2 was late but came; 3 is not known to be stored yet.
    let known = owner.collected.so_far().len();
    assert!(known <= 3, "nothing is told about what is unknown");
    world.bookies.set_mode(bookie, Mode::Up);
    let outcomes = owner.collected.wait_for(4).await;
    assert!(outcomes[2].1.is_ok() && outcomes[3].1.is_err());
    assert_eq!(bodies(&owner.read_all().await), expected(0..3));
}

#[tokio::test(start_paused = true)]
async fn a_silent_bookie_is_replaced_and_nothing_is_lost() {
    let world = TestWorld::new(4);
    let quorum = Quorum::new(3, 3, 2).unwrap();
    let options = LogOptions {
        quorum,
        ..options(100)
    };
    let owner = Owner::open(world.logs(), options).await;
    owner.append_all(0..3).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let has = |id: &aquifer_model::id::BookieId| !world.bookies.entries(*id, ledger).is_empty();
    let members: Vec<_> = world.bookies.ids().into_iter().filter(has).collect();
    assert_eq!(members.len(), 3);
    world.bookies.set_mode(members[0], Mode::Broken);
    owner.append_all(3..6).await;
    world.bookies.set_mode(members[1], Mode::Silent);
    // One of three is silent: two still acknowledge. Both lost members: the rest cannot.
    owner.append_all(6..8).await;
    world.bookies.set_mode(members[0], Mode::Up);
    world.bookies.set_mode(members[1], Mode::Up);
    assert_eq!(owner.log.stats().ledgers.len(), 1, "the ledger went on");
    let heir = Owner::open(world.logs(), options).await;
    assert_eq!(bodies(&heir.read_all().await), expected(0..8));
}

#[tokio::test(start_paused = true)]
async fn a_reused_ledger_id_is_noticed_h14() {
    let world = TestWorld::new(1);
    let owner = Owner::open(world.logs(), options(100)).await;
    owner.append_all(0..2).await;
    owner.log.close().await.unwrap();
    // Metadata loses its counter, as after a restore from an old backup.
    let id_key = keys::id_range(keys::IDS_LEDGER);
    let first = record::encode(v1::IdRangeRecord { next: 1 });
    let partition = keys::CLUSTER_PARTITION;
    world
        .store
        .put(partition, &id_key, first, Expect::Any)
        .await
        .unwrap();
    let heir = Owner::open(world.logs(), options(100)).await;
    heir.append_all(2..4).await;
    assert_eq!(bodies(&heir.read_all().await), expected(0..4));
}

#[tokio::test(start_paused = true)]
async fn an_id_that_a_bookie_knows_for_another_ledger_is_given_up_h14() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    // The first ids were in use once; metadata has forgotten that, the bookie has not.
    for id in 1..3 {
        let request = OrderedRequest {
            ledger: LedgerId(id),
            token: CreationToken([9; 16]),
            tenant: TenantKey::UNKNOWN,
            operation: OrderedOperation::Fence,
        };
        let bookie = world.bookies.ids()[0];
        world.bookies.submit(bookie, request, Box::new(drop));
    }
    let owner = Owner::open(world.logs(), options(100)).await;
    let mut failures = 0;
    loop {
        clock.advance(std::time::Duration::from_secs(60));
        owner.append(0).unwrap();
        let outcomes = owner.collected.wait_for(failures + 1).await;
        if outcomes[failures].1.is_ok() {
            break;
        }
        failures += 1;
        owner.log.resume();
    }
    assert_eq!(failures, 2, "once for each id");
    assert_eq!(bodies(&owner.read_all().await), expected(0..1));
    owner
        .ctx
        .ledgers
        .tasks
        .drain(std::time::Duration::from_secs(60))
        .await;
    let left = world.bookies.ledgers(world.bookies.ids()[0]);
    assert_eq!(left.len(), 3, "the old ledgers are not ours to delete");
}

/// The rollover is applied, its answer is lost, and before the owner learns of it another process
/// takes over and metadata is away. The new owner has no reason to fence a ledger that is closed.
#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_behind_a_close_of_unknown_outcome_i4() {
    close_of_unknown_outcome(|store| store.lose_answers(1)).await;
}

/// The same when the store can never tell whether it was applied.
#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_behind_a_close_whose_outcome_stays_unknown_i4() {
    close_of_unknown_outcome(|store| store.forget_outcomes(1)).await;
}

async fn close_of_unknown_outcome(lose: impl Fn(&MemoryStore)) {
    let world = TestWorld::new(1);
    let guards = vec![take_over(&world, 1).await];
    let old = Owner::try_open(world.logs(), options(2), guards).await;
    let old = old.unwrap();
    old.append_all(0..2).await;
    lose(&world.store);
    let commits = world.store.commits();
    old.append(2).unwrap();
    while world.store.commits() == commits {
        tokio::task::yield_now().await;
    }
    let guards = vec![take_over(&world, 2).await];
    let new = Owner::try_open(world.logs(), options(2), guards).await;
    let new = new.unwrap();
    new.append_all(3..4).await;
    // The second attempt conflicts, and what is in metadata instead can still be seen.
    world.store.set_unavailable_after(2);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    world.store.set_unavailable(false);
    let outcomes = old.collected.wait_for(3).await;
    let (tag, outcome) = &outcomes[2];
    assert_eq!((*tag, outcome), (2, &Err(LogError::Fenced)));
    let stored = [expected(0..2), expected(3..4)].concat();
    assert_eq!(bodies(&new.read_all().await), stored);
}
