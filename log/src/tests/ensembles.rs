//! Ledgers over several bookies: slow ones, failed ones, too few, and readers beside the owner.

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::error::LedgerError;
use aquifer_ledger::marks;
use aquifer_ledger::tail::{TailRead, TailReader};
use aquifer_ledger::testing::Mode;
use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_runtime::clock;

use super::*;

fn three(entries: u64) -> LogOptions {
    LogOptions {
        quorum: Quorum::new(3, 3, 2).unwrap(),
        ..options(entries)
    }
}

/// Waits until a condition holds, in virtual time.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        clock::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not happen");
}

#[tokio::test(start_paused = true)]
async fn without_a_spare_bookie_it_goes_on_with_a_quorum_h8() {
    let world = TestWorld::new(3);
    let owner = Owner::open(world.logs(), three(1_000)).await;
    owner.append_all(0..3).await;
    let lost = world.bookies.ids()[1];
    world.bookies.set_mode(lost, Mode::Unreachable);
    owner.append_all(3..20).await;
    assert_eq!(
        owner.log.stats().ledgers.len(),
        1,
        "the same ledger goes on"
    );
    // The next ledger has to do with two, and still keeps every entry twice.
    owner.log.roll().await.unwrap();
    owner.append_all(20..25).await;
    let ledger = owner.log.stats().ledgers[1].ledger;
    let holds = |bookie: &_| world.bookies.entries(*bookie, ledger).len() == 5;
    eventually("two copies", || {
        world.bookies.ids().iter().filter(|b| holds(b)).count() == 2
    })
    .await;
    assert_eq!(bodies(&owner.read_all().await), expected(0..25));
}

#[tokio::test(start_paused = true)]
async fn a_ledger_with_a_smaller_ensemble_ends_when_bookies_are_back() {
    let world = TestWorld::new(3);
    let clock = world.clock.clone().unwrap();
    let process = world.logs();
    let all = process.ledgers.bookies.snapshot();
    process.ledgers.bookies.replace(all[..2].to_vec());
    let owner = Owner::open(process, three(1_000)).await;
    owner.append_all(0..3).await;
    clock.advance(Duration::from_secs(5));
    owner.append_all(3..6).await;
    assert_eq!(owner.log.stats().ledgers.len(), 1, "there is no third");
    owner.ctx.ledgers.bookies.replace(all.to_vec());
    clock.advance(Duration::from_secs(5));
    owner.append_all(6..9).await;
    let ledgers = owner.log.stats().ledgers;
    assert_eq!(ledgers.len(), 2, "another ledger has three copies");
    let holds = |bookie: &_| world.bookies.entries(*bookie, ledgers[1].ledger).len() == 3;
    eventually("three copies", || world.bookies.ids().iter().all(holds)).await;
    clock.advance(Duration::from_secs(5));
    owner.append_all(9..12).await;
    assert_eq!(owner.log.stats().ledgers.len(), 2, "and goes on");
    assert_eq!(bodies(&owner.read_all().await), expected(0..12));
}

#[tokio::test(start_paused = true)]
async fn a_bookie_that_comes_back_late_takes_no_more_and_is_replaced() {
    let world = TestWorld::new(4);
    let owner = Owner::open(world.logs(), three(1_000)).await;
    owner.append_all(0..3).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let member = |id: &_| !world.bookies.entries(*id, ledger).is_empty();
    let members: Vec<_> = world.bookies.ids().into_iter().filter(member).collect();
    // It takes requests and never answers: no append waits for it, but it is noticed.
    world.bookies.set_mode(members[2], Mode::Silent);
    owner.append_all(3..10).await;
    let spare = world
        .bookies
        .ids()
        .into_iter()
        .find(|id| !members.contains(id))
        .unwrap();
    eventually("a replacement", || {
        world.bookies.entries(spare, ledger).len() >= 7
    })
    .await;
    owner.append_all(10..12).await;
    assert!(owner.ctx.ledgers.bookies.is_quarantined(members[2]));
    assert_eq!(bodies(&owner.read_all().await), expected(0..12));
}

/// A process that keeps little for slower bookies, and its ledger with three of four bookies.
async fn keeps_little(world: &TestWorld) -> (Owner, Vec<BookieId>) {
    let mut settings = TestWorld::settings();
    settings.kept_bytes_per_ledger_max = 1_000;
    settings.request_timeout = Duration::from_secs(10);
    let (store, transport) = (world.store.clone(), world.bookies.clone());
    let process = world.logs_with(Arc::new(store), Arc::new(transport), settings);
    let owner = Owner::open(process, three(1_000)).await;
    owner.append_all(0..1).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let member = |id: &BookieId| !world.bookies.entries(*id, ledger).is_empty();
    let members = world.bookies.ids().into_iter().filter(member).collect();
    (owner, members)
}

#[tokio::test(start_paused = true)]
async fn a_bookie_that_is_behind_slows_the_ledger_down_and_stays() {
    let world = TestWorld::new(4);
    let (owner, members) = keeps_little(&world).await;
    let mut all = 1;
    for round in 0..20 {
        all += 10;
        world.bookies.hold(members[2]);
        for tag in 0..10 {
            let append = owner.append_bytes(1 + round * 10 + tag, Bytes::from(vec![7; 400]));
            append.unwrap();
        }
        clock::sleep(Duration::from_millis(400)).await;
        let done = owner.collected.so_far().len();
        assert!(done < all, "more is kept than may be: {done}");
        world.bookies.release(members[2]);
        owner.collected.wait_for(all).await;
    }
    assert_eq!(owner.log.stats().ledgers.len(), 1);
    let ledger = owner.log.stats().ledgers[0].ledger;
    assert_eq!(
        world.bookies.entries(members[2], ledger).len(),
        201,
        "it has all"
    );
    assert!(!owner.ctx.ledgers.bookies.is_quarantined(members[2]));
}

#[tokio::test(start_paused = true)]
async fn a_silent_bookie_is_waited_for_a_quarter_of_the_timeout() {
    let world = TestWorld::new(4);
    let (owner, members) = keeps_little(&world).await;
    world.bookies.set_mode(members[2], Mode::Silent);
    let started = tokio::time::Instant::now();
    for tag in 1..21 {
        owner.append_bytes(tag, Bytes::from(vec![7; 400])).unwrap();
    }
    owner.collected.wait_for(21).await;
    let waited = started.elapsed();
    assert!(
        waited <= Duration::from_millis(2_600),
        "{waited:?} of virtual time"
    );
    assert!(owner.ctx.ledgers.bookies.is_quarantined(members[2]));
    assert_eq!(owner.read_all().await.len(), 21);
}

/// A bookie that takes the place of a lost one gets what is kept, some of it old, and time to store
/// it.
#[tokio::test(start_paused = true)]
async fn a_replacement_is_waited_for_from_when_it_came() {
    let world = TestWorld::new(4);
    let (owner, members) = keeps_little(&world).await;
    let spare = world.bookies.ids();
    let spare = *spare.iter().find(|id| !members.contains(id)).unwrap();
    world.store.set_unavailable(true);
    world.bookies.set_mode(members[2], Mode::Unreachable);
    world.bookies.hold(spare);
    for tag in 1..6 {
        owner.append_bytes(tag, Bytes::from(vec![7; 400])).unwrap();
    }
    owner.collected.wait_for(6).await;
    // What is kept for the replacement grows old, since metadata is away.
    clock::sleep(Duration::from_secs(60)).await;
    world.store.set_unavailable(false);
    eventually("a replacement", || world.bookies.held(spare) > 0).await;
    for tag in 6..26 {
        owner.append_bytes(tag, Bytes::from(vec![7; 400])).unwrap();
    }
    clock::sleep(Duration::from_millis(400)).await;
    assert!(
        owner.collected.so_far().len() < 26,
        "too much would be kept"
    );
    world.bookies.release(spare);
    owner.collected.wait_for(26).await;
    assert!(!owner.ctx.ledgers.bookies.is_quarantined(spare));
    let ledger = owner.log.stats().ledgers[0].ledger;
    assert!(world.bookies.entries(spare, ledger).len() >= 20);
}

/// H16: what the bookie lacks is for repair.
#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_sealed_waits_for_no_bookie_that_is_behind() {
    let world = TestWorld::new(3);
    let (owner, members) = keeps_little(&world).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    world.bookies.hold(members[2]);
    for tag in 1..21 {
        owner.append_bytes(tag, Bytes::from(vec![7; 400])).unwrap();
    }
    clock::sleep(Duration::from_millis(50)).await;
    assert!(owner.collected.so_far().len() < 21);
    let started = tokio::time::Instant::now();
    owner.log.roll().await.unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?} of virtual time");
    assert_eq!(owner.collected.so_far().len(), 21);
    assert_eq!(doubted(&world, ledger).await, [members[2]]);
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_bookie_gets_what_was_acknowledged_without_it() {
    let world = TestWorld::new(3);
    let owner = Owner::open(world.logs(), three(1_000)).await;
    let slow = world.bookies.ids()[2];
    owner.append_all(0..1).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    world.bookies.set_mode(slow, Mode::Overloaded);
    owner.append_all(1..10).await;
    assert!(world.bookies.entries(slow, ledger).len() < 10);
    world.bookies.set_mode(slow, Mode::Up);
    eventually("ten entries", || {
        world.bookies.entries(slow, ledger).len() == 10
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn recovery_replaces_a_bookie_that_cannot_be_written() {
    let world = TestWorld::new(4);
    let quorum = Quorum::new(3, 3, 3).unwrap();
    let options = LogOptions {
        quorum,
        ..options(1_000)
    };
    let owner = Owner::open(world.logs(), options).await;
    owner.append_all(0..2).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let member = |id: &_| !world.bookies.entries(*id, ledger).is_empty();
    let members: Vec<_> = world.bookies.ids().into_iter().filter(member).collect();
    // The last entry does not reach one of them, which is gone when it is recovered.
    world.bookies.set_mode(members[2], Mode::Silent);
    owner.append(2).unwrap();
    world.bookies.set_mode(members[2], Mode::Unreachable);
    let heir = Owner::open(world.logs(), options).await;
    assert_eq!(bodies(&heir.read_all().await), expected(0..3));
    let spare = world
        .bookies
        .ids()
        .into_iter()
        .find(|id| !members.contains(id))
        .unwrap();
    assert_eq!(world.bookies.entries(spare, ledger), [EntryId(2)]);
    heir.append_all(3..5).await;
}

#[tokio::test(start_paused = true)]
async fn a_read_asks_another_replica_when_one_takes_too_long() {
    let world = TestWorld::new(3);
    let owner = Owner::open(world.logs(), three(1_000)).await;
    owner.append_all(0..10).await;
    owner.log.close().await.unwrap();
    for stuck in world.bookies.ids() {
        let reader = Owner::open(world.logs(), three(1_000)).await;
        world.bookies.stall_reads(stuck, true);
        let read = reader.read_all();
        let read = clock::timeout(Duration::from_secs(1), read).await;
        assert_eq!(
            bodies(&read.expect("long before a timeout")),
            expected(0..10)
        );
        world.bookies.stall_reads(stuck, false);
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_else_follows_a_ledger_to_its_end() {
    let world = TestWorld::new(3);
    let owner = Owner::open(world.logs(), three(1_000)).await;
    owner.append_all(0..1).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let mut tail = TailReader::open(world.process(), ledger, EntryId(0))
        .await
        .unwrap();
    let (bytes, wait) = (1 << 20, Duration::from_secs(60));
    let mut read = async |upto: u64| {
        let mut seen = Vec::new();
        while seen.last() != Some(&upto) {
            match tail.next(bytes, 100, wait).await.unwrap() {
                TailRead::Entries(entries) => seen.extend(entries.iter().map(|e| e.entry.0)),
                other => panic!("{other:?} before {upto}"),
            }
        }
        seen
    };
    // The last entry shows when the writer is idle: its LAC then travels alone.
    assert_eq!(read(0).await, [0]);
    owner.append_all(1..5).await;
    assert_eq!(read(4).await, [1, 2, 3, 4]);
    let quiet = tail.next(bytes, 100, Duration::from_secs(1)).await;
    assert_eq!(quiet, Ok(TailRead::Nothing));
    let heir = Owner::open(world.logs(), three(1_000)).await;
    assert_eq!(tail.next(bytes, 100, wait).await, Ok(TailRead::End));
    heir.append_all(5..6).await;
    let missing = TailReader::open(world.process(), LedgerId(77), EntryId(0)).await;
    assert!(matches!(missing.err(), Some(LedgerError::BadRecord(77, _))));
}

/// The bookies that the mark of a ledger names.
async fn doubted(world: &TestWorld, ledger: LedgerId) -> Vec<BookieId> {
    let mark = marks::load(&world.store, ledger).await.unwrap();
    mark.map_or(Vec::new(), |mark| mark.incomplete.into_keys().collect())
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_closed_with_a_bookie_behind_is_marked_h16() {
    let world = TestWorld::new(3);
    let owner = Owner::open(world.logs(), three(1_000)).await;
    owner.append_all(0..3).await;
    let ids = world.bookies.ids();
    let first = owner.log.stats().ledgers[0].ledger;
    owner.log.roll().await.unwrap();
    assert_eq!(doubted(&world, first).await, [], "all have everything");
    owner.append_all(3..5).await;
    let second = owner.log.stats().ledgers[1].ledger;
    world.bookies.hold(ids[1]);
    owner.append_all(5..8).await;
    owner.log.roll().await.unwrap();
    assert_eq!(doubted(&world, second).await, [ids[1]]);
}

#[tokio::test(start_paused = true)]
async fn a_recovered_ledger_is_marked_where_copies_may_be_missing_h16() {
    let world = TestWorld::new(3);
    let quorums = [three(1_000), options(1_000)];
    for (owners, options) in (1..).zip(quorums) {
        let lost = Owner::open(world.logs(), options).await;
        lost.append_all(0..3).await;
        let ledger = lost.log.stats().ledgers.last().unwrap().ledger;
        let heir = Owner::open(world.logs(), options).await;
        assert_eq!(bodies(&heir.read_all().await).len(), 3 * owners);
        let marked = doubted(&world, ledger).await.len();
        let incomplete = options.quorum.ack() < options.quorum.write();
        assert_eq!(marked, if incomplete { 3 } else { 0 });
        // The next one begins with a ledger of its own.
        drop((lost, heir));
    }
}

#[tokio::test(start_paused = true)]
async fn a_ledger_whose_bookie_nobody_could_replace_ends_when_it_is_back() {
    let world = TestWorld::new(3);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), three(1_000)).await;
    owner.append_all(0..3).await;
    let lost = world.bookies.ids()[1];
    world.bookies.set_mode(lost, Mode::Unreachable);
    let all = owner.ctx.ledgers.bookies.snapshot();
    let others = all.iter().filter(|b| b.id != lost).cloned().collect();
    owner.ctx.ledgers.bookies.replace(others);
    owner.append_all(3..5).await;
    for tag in 5..10 {
        clock.advance(Duration::from_secs(5));
        owner.append_all(tag..tag + 1).await;
    }
    assert_eq!(owner.log.stats().ledgers.len(), 1, "there is no third");

    world.bookies.set_mode(lost, Mode::Up);
    owner.ctx.ledgers.bookies.replace(all.to_vec());
    for tag in 10..12 {
        clock.advance(Duration::from_secs(5));
        owner.append_all(tag..tag + 1).await;
    }
    let ledgers = owner.log.stats().ledgers;
    assert_eq!(ledgers.len(), 2);
    let holds = |bookie: &_| !world.bookies.entries(*bookie, ledgers[1].ledger).is_empty();
    eventually("three copies", || world.bookies.ids().iter().all(holds)).await;
    assert_eq!(bodies(&owner.read_all().await), expected(0..12));
}

#[tokio::test(start_paused = true)]
async fn a_bookie_that_is_announced_and_out_of_reach_costs_few_ledgers() {
    let world = TestWorld::new(3);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), three(1_000)).await;
    world
        .bookies
        .set_mode(world.bookies.ids()[1], Mode::Unreachable);
    for tag in 0..240 {
        clock.advance(Duration::from_millis(500));
        owner.append_all(tag..tag + 1).await;
        // A bookie that failed is noticed.
        clock::sleep(Duration::from_millis(1)).await;
    }
    let ledgers = owner.log.stats().ledgers.len();
    assert!((2..10).contains(&ledgers), "{ledgers} in two minutes");
    assert_eq!(bodies(&owner.read_all().await), expected(0..240));
}

#[tokio::test(start_paused = true)]
async fn guards_that_are_written_anew_hinder_no_ensemble_change() {
    let world = TestWorld::new(4);
    let guard = take_over(&world, 1).await;
    let owner = Owner::try_open(world.logs(), three(1_000), vec![guard]).await;
    let owner = owner.unwrap();
    owner.append_all(0..3).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let holds = |id: &_| !world.bookies.entries(*id, ledger).is_empty();
    // As when its bundle was split: the same owner, another revision.
    let renewed = take_over(&world, 2).await;
    owner.cell.set_guards(vec![renewed]);
    let member = world.bookies.ids().into_iter().find(holds).unwrap();
    world.bookies.set_mode(member, Mode::Unreachable);
    owner.append_all(3..10).await;
    eventually("a replacement", || world.bookies.ids().iter().all(holds)).await;
    owner.append_all(10..12).await;
    assert_eq!(owner.log.stats().ledgers.len(), 1, "one ledger");
}

/// Policies reach a log that is open, at its next append.
#[tokio::test(start_paused = true)]
async fn a_log_follows_the_policies_of_its_namespace() {
    let world = TestWorld::new(3);
    let owner = Owner::open(world.logs(), options(1_000)).await;
    let mut policies = EffectivePolicies::default();
    let (changed, follows) = tokio::sync::watch::channel(policies);
    owner.log.follow(follows);
    owner.append_all(0..3).await;
    // Another bound of ledgers.
    policies.rollover.entries = 4;
    changed.send_replace(policies);
    owner.append_all(3..6).await;
    assert_eq!(owner.log.stats().ledgers.len(), 2);
    // More copies: of what is written from now on.
    policies.rollover.entries = 1_000;
    policies.persistence = Quorum::new(3, 3, 2).unwrap();
    changed.send_replace(policies);
    owner.append_all(6..9).await;
    let ledgers = owner.log.stats().ledgers;
    assert_eq!(ledgers.len(), 3);
    let newest = ledgers[2].ledger;
    let holds = |id: &_| !world.bookies.entries(*id, newest).is_empty();
    eventually("three copies", || world.bookies.ids().iter().all(holds)).await;
    assert_eq!(bodies(&owner.read_all().await), expected(0..9));
}

/// A replacement that was made but not confirmed is not made a second time, although metadata and
/// spare bookies are away meanwhile.
#[tokio::test(start_paused = true)]
async fn a_replacement_in_doubt_is_recognised_however_late() {
    let world = TestWorld::new(4);
    let owner = Owner::open(world.logs(), three(1_000)).await;
    owner.append_all(0..3).await;
    let ledger = owner.log.stats().ledgers[0].ledger;
    let holds = |id: &_| !world.bookies.entries(*id, ledger).is_empty();
    let (members, spares): (Vec<_>, Vec<_>) = world.bookies.ids().into_iter().partition(holds);
    // The intent is read and the record written; then metadata is away.
    world.store.set_unavailable_after(2);
    world.store.forget_outcomes(1);
    let commits = world.store.commits();
    world.bookies.set_mode(members[0], Mode::Unreachable);
    owner.append_all(3..10).await;
    eventually("the change", || world.store.commits() > commits).await;
    let all = owner.ctx.ledgers.bookies.snapshot();
    let kept = all.iter().filter(|b| members.contains(&b.id)).cloned();
    owner.ctx.ledgers.bookies.replace(kept.collect());
    clock::sleep(Duration::from_secs(2)).await;
    owner.ctx.ledgers.bookies.replace(all.to_vec());
    world.store.set_unavailable(false);
    eventually("entries on the spare", || holds(&spares[0])).await;
    owner.append_all(10..12).await;
    assert_eq!(world.store.commits(), commits + 1, "one change");
    assert_eq!(owner.log.stats().ledgers.len(), 1, "one ledger");
}
