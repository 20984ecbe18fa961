use aquifer_model::entry::{EntryFlags, EntryHead};
use aquifer_model::extensions::Extensions;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::limits::ACK_RANGES_MAX;
use aquifer_protocol_api::error::ErrorKind;
use bytes::Bytes;

use super::*;

mod credit;
mod gaps;
mod holding;
mod model;
mod owners;

const EPOCH: OwnerEpoch = OwnerEpoch(4);
const A: ConsumerId = ConsumerId(1);
const B: ConsumerId = ConsumerId(2);
const C: ConsumerId = ConsumerId(3);
const BODY_BYTES: usize = 100;
const NOW: u64 = 1_700_000_000_000;

/// An entry with messages `first` to `first + count - 1`.
fn entry(first: u64, count: u32) -> LogEntry {
    LogEntry {
        ledger: LedgerId(7),
        entry: EntryId(first),
        head: EntryHead {
            format: FORMAT_NATIVE,
            message_count: count,
            base_index: Index(first),
            broker_time_ms: 1000 + first,
            owner_epoch: EPOCH,
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
        },
        body: Bytes::from_static(&[0; BODY_BYTES]),
    }
}

/// A log of entries with `count` messages each.
fn log(entries: u64, count: u32) -> Vec<LogEntry> {
    let first = |number| number * u64::from(count);
    (0..entries)
        .map(|number| entry(first(number), count))
        .collect()
}

fn subscription(kind: SubscriptionType) -> Subscription {
    Subscription::new(SubscriptionSpec {
        name: "s".to_owned(),
        kind,
        durable: true,
        cursor: CursorState::new(Index(0)),
        delivered: Index(0),
        properties: Properties::new(),
        redelivered: Vec::new(),
        created_ms: 0,
    })
}

fn attach(subscription: &mut Subscription, consumer: ConsumerId, priority: i32) -> Vec<Notice> {
    let kind = subscription.kind();
    let notices = subscription.attach(Attach {
        consumer,
        kind,
        name: None,
        priority,
    });
    notices.expect("it may attach")
}

fn range(first: u64, last: u64) -> IndexRange {
    IndexRange {
        first: Index(first),
        last: Index(last),
    }
}

fn acks(cumulative: Option<u64>, individual: &[(u64, u64)]) -> Acknowledge {
    Acknowledge {
        request_id: 1,
        owner_epoch: EPOCH,
        seek_epoch: SeekEpoch(0),
        cumulative: cumulative.map(Index),
        individual: individual.iter().map(|&(a, b)| range(a, b)).collect(),
    }
}

fn nacks(ranges: &[(u64, u64)]) -> NegativeAcknowledge {
    NegativeAcknowledge {
        owner_epoch: EPOCH,
        seek_epoch: SeekEpoch(0),
        ranges: ranges.iter().map(|&(a, b)| range(a, b)).collect(),
    }
}

/// The messages of a delivery.
fn messages(log: &[LogEntry], delivery: &Delivery) -> Vec<u64> {
    let base = delivery.at.base_index;
    let entry = log.iter().find(|entry| entry.head.base_index == base);
    let end = entry.expect("it is in the log").head.end_index().0;
    let skipped = |index: u64| {
        let skips = |range: &IndexRange| range.first.0 <= index && index <= range.last.0;
        delivery.skip.iter().any(skips)
    };
    (base.0..end).filter(|index| !skipped(*index)).collect()
}

/// How often a message of a delivery was delivered before.
fn redeliveries(delivery: &Delivery, index: u64) -> u32 {
    let has = |part: &&Redelivered| part.range.first.0 <= index && index <= part.range.last.0;
    delivery
        .redelivered
        .iter()
        .find(has)
        .map_or(0, |part| part.count)
}

/// Reads as the owner would.
fn read<'a>(log: &'a [LogEntry], read: &NextRead) -> &'a [LogEntry] {
    let from = log.partition_point(|entry| entry.head.end_index() <= read.from);
    let rest = &log[from..];
    let fitting = read.bytes_max.div_ceil(BODY_BYTES).min(read.entries_max);
    &rest[..fitting.min(rest.len())]
}

/// Reads and delivers until nothing more can be; returns (consumer, messages, most redeliveries).
fn drain(subscription: &mut Subscription, log: &[LogEntry]) -> Vec<(ConsumerId, Vec<u64>, u32)> {
    let mut all = Vec::new();
    while let Some(next) = subscription.next_read(NOW) {
        let entries = read(log, &next);
        if entries.is_empty() {
            break;
        }
        for (consumer, delivery) in subscription.deliver(&next, entries, NOW) {
            let got = messages(log, &delivery);
            let most = got
                .iter()
                .map(|index| redeliveries(&delivery, *index))
                .max();
            all.push((consumer, got, most.unwrap_or(0)));
        }
    }
    all
}

fn is_log(outcome: &AckOutcome) -> bool {
    matches!(outcome, AckOutcome::Log(_))
}

#[test]
fn shared_goes_round_robin_by_entry_over_consumers_with_credit() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(6, 2));
    for consumer in [A, B, C] {
        attach(&mut s, consumer, 0);
    }
    assert_eq!(s.next_read(NOW), None, "no consumer has credit");
    s.credit(A, 100, 10_000);
    s.credit(B, 2, 10_000);
    s.credit(C, 100, 1);
    let got = drain(&mut s, &log);
    let expected = [(A, 0), (B, 2), (C, 4), (A, 6), (A, 8), (A, 10)];
    assert_eq!(
        got,
        expected.map(|(id, first)| (id, vec![first, first + 1], 0))
    );
}

#[test]
fn single_messages_of_a_batch_come_back_alone() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(1, 6));
    attach(&mut s, A, 0);
    s.credit(A, 100, 10_000);
    assert_eq!(drain(&mut s, &log), [(A, (0..6).collect(), 0)]);
    assert!(is_log(&s.acknowledge(
        A,
        &acks(None, &[(0, 0), (3, 3)]),
        EPOCH
    )));
    s.negative_acknowledge(A, &nacks(&[(1, 3), (5, 9)]), EPOCH);
    assert_eq!(drain(&mut s, &log), [(A, vec![1, 2, 5], 1)]);
    assert_eq!(s.detach(A), []);
    attach(&mut s, B, 0);
    s.credit(B, 100, 10_000);
    let next = s.next_read(NOW).expect("there is credit");
    let (consumer, delivery) = s.deliver(&next, &log, NOW).remove(0);
    assert_eq!((consumer, messages(&log, &delivery)), (B, vec![1, 2, 4, 5]));
    // Each message has its own count, not that of its neighbours.
    let counts = [1, 2, 4, 5].map(|index| redeliveries(&delivery, index));
    assert_eq!(counts, [2, 2, 1, 2]);
    assert!(is_log(&s.acknowledge(B, &acks(None, &[(1, 5)]), EPOCH)));
    assert_eq!(s.mark_delete(), Index(6));
    assert_eq!(s.stats(Index(6)).unacknowledged_messages, 0);
}

/// I7: order restarts at the earliest message that came back.
#[test]
fn exclusive_redelivers_everything_from_the_first_negative_acknowledgement() {
    let (mut s, log) = (subscription(SubscriptionType::Exclusive), log(4, 2));
    attach(&mut s, A, 0);
    s.credit(A, 6, 10_000);
    let first = drain(&mut s, &log);
    assert_eq!(first.len(), 3);
    assert!(is_log(&s.acknowledge(A, &acks(None, &[(4, 4)]), EPOCH)));
    s.negative_acknowledge(A, &nacks(&[(3, 3)]), EPOCH);
    s.credit(A, 100, 10_000);
    let again: Vec<_> = drain(&mut s, &log);
    assert_eq!(
        again,
        [(A, vec![3], 1), (A, vec![5], 1), (A, vec![6, 7], 0)]
    );
}

/// I7: a read that was under way while something earlier came back is not delivered.
#[test]
fn a_read_under_way_does_not_overtake_what_came_back() {
    for kind in [SubscriptionType::Exclusive, SubscriptionType::Failover] {
        let (mut s, log) = (subscription(kind), log(4, 1));
        attach(&mut s, A, 0);
        s.credit(A, 2, 10_000);
        drain(&mut s, &log);
        s.credit(A, 100, 10_000);
        let next = s.next_read(NOW).expect("there is credit");
        assert_eq!(next.from, Index(2));
        s.negative_acknowledge(A, &nacks(&[(0, 0)]), EPOCH);
        assert_eq!(s.deliver(&next, &log[2..], NOW), []);
        let got: Vec<u64> = drain(&mut s, &log)
            .into_iter()
            .flat_map(|(_, m, _)| m)
            .collect();
        assert_eq!(got, [0, 1, 2, 3]);
    }
}

#[test]
fn failover_switches_by_priority_then_attachment_and_redelivers_first() {
    let (mut s, log) = (subscription(SubscriptionType::Failover), log(5, 1));
    let notice = |consumer, active| Notice::Active { consumer, active };
    assert_eq!(attach(&mut s, A, 5), [notice(A, true)]);
    assert_eq!(attach(&mut s, B, 5), [notice(B, false)]);
    s.credit(A, 3, 10_000);
    s.credit(B, 100, 10_000);
    assert_eq!(drain(&mut s, &log).len(), 3);
    assert!(is_log(&s.acknowledge(A, &acks(None, &[(1, 1)]), EPOCH)));
    assert_eq!(attach(&mut s, C, 1), [notice(A, false), notice(C, true)]);
    s.credit(C, 2, 10_000);
    assert_eq!(drain(&mut s, &log), [(C, vec![0], 1), (C, vec![2], 1)]);
    // The displaced consumer's acknowledgement of what it had still counts.
    assert!(is_log(&s.acknowledge(A, &acks(Some(0), &[]), EPOCH)));
    assert_eq!(s.detach(B), []);
    assert_eq!(s.detach(C), [notice(A, true)]);
    s.credit(A, 100, 10_000);
    assert_eq!(
        drain(&mut s, &log),
        [(A, vec![2], 2), (A, vec![3], 0), (A, vec![4], 0)]
    );
}

#[test]
fn attaching_is_refused_where_it_cannot_be() {
    let mut s = subscription(SubscriptionType::Exclusive);
    let mut try_attach = |consumer, kind| {
        let name = None;
        let attached = s.attach(Attach {
            consumer,
            kind,
            name,
            priority: 0,
        });
        attached.map_err(|error| error.kind)
    };
    use SubscriptionType::{Exclusive, KeyShared, Shared};
    assert_eq!(try_attach(A, KeyShared), Err(ErrorKind::Unimplemented));
    assert_eq!(try_attach(A, Exclusive), Ok(vec![]));
    assert_eq!(try_attach(B, Exclusive), Err(ErrorKind::FailedPrecondition));
    assert_eq!(try_attach(B, Shared), Err(ErrorKind::FailedPrecondition));
    s.detach(A);
    let name = None;
    let attached = s.attach(Attach {
        consumer: B,
        kind: Shared,
        name,
        priority: 0,
    });
    assert_eq!(
        attached,
        Ok(vec![]),
        "without consumers the type may change"
    );
    assert_eq!(s.record().r#type, v1::SubscriptionType::Shared as i32);
}

/// H9, H12: acknowledgements of another owner's or an older seek's deliveries are dropped.
#[test]
fn acknowledgements_from_before_are_dropped() {
    let (mut s, log) = (subscription(SubscriptionType::Exclusive), log(4, 1));
    attach(&mut s, A, 0);
    s.credit(A, 100, 10_000);
    drain(&mut s, &log);
    let foreign = s.acknowledge(A, &acks(Some(3), &[]), OwnerEpoch(5));
    assert_eq!(foreign, AckOutcome::Stale);
    let stranger = s.acknowledge(B, &acks(Some(3), &[]), EPOCH);
    assert_eq!(stranger, AckOutcome::Stale);
    let epoch = s.seek(Index(0));
    assert_eq!(epoch, SeekEpoch(1));
    assert_eq!(
        s.acknowledge(A, &acks(Some(3), &[]), EPOCH),
        AckOutcome::Stale
    );
    s.negative_acknowledge(A, &nacks(&[(0, 3)]), EPOCH);
    assert_eq!(s.mark_delete(), Index(0));
    let again = drain(&mut s, &log);
    assert_eq!(again.len(), 4);
    assert!(again.iter().all(|(_, _, redeliveries)| *redeliveries == 0));
}

/// H12: a read that was under way when the subscription was moved is void.
#[test]
fn a_read_from_before_a_seek_is_void() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(4, 1));
    attach(&mut s, A, 0);
    s.credit(A, 100, 10_000);
    let old = s.next_read(NOW).expect("there is credit");
    s.seek(Index(2));
    assert_eq!(s.deliver(&old, &log, NOW), []);
    let got: Vec<u64> = drain(&mut s, &log)
        .into_iter()
        .flat_map(|(_, m, _)| m)
        .collect();
    assert_eq!(got, [2, 3]);
}

#[test]
fn what_was_never_delivered_cannot_be_acknowledged() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(4, 2));
    attach(&mut s, A, 0);
    s.credit(A, 4, 10_000);
    drain(&mut s, &log);
    let many = vec![(0, 0); ACK_RANGES_MAX + 1];
    for (bad, kind) in [
        (acks(None, &[(0, 1 << 63)]), ErrorKind::InvalidArgument),
        (acks(None, &[(0, 0), (3, 4)]), ErrorKind::InvalidArgument),
        (acks(None, &[(2, 1)]), ErrorKind::InvalidArgument),
        (
            acks(None, &[(u64::MAX, u64::MAX)]),
            ErrorKind::InvalidArgument,
        ),
        (acks(Some(1), &[]), ErrorKind::InvalidArgument),
        (acks(None, &many), ErrorKind::TooLarge),
    ] {
        let outcome = s.acknowledge(A, &bad, EPOCH);
        assert!(
            matches!(&outcome, AckOutcome::Invalid(e) if e.kind == kind),
            "{outcome:?}"
        );
    }
    assert_eq!(
        s.mark_delete(),
        Index(0),
        "nothing of a refused one is applied"
    );
    assert!(is_log(&s.acknowledge(A, &acks(None, &[(0, 3)]), EPOCH)));
    assert_eq!(
        s.acknowledge(A, &acks(None, &[(0, 3)]), EPOCH),
        AckOutcome::Unchanged
    );
}

/// What replay refuses must never be logged: the topic would not load again.
#[test]
fn a_range_that_replay_would_refuse_is_refused_when_it_comes() {
    let mut s = Subscription::new(SubscriptionSpec {
        name: "s".to_owned(),
        kind: SubscriptionType::Shared,
        durable: true,
        cursor: CursorState::new(Index(0)),
        delivered: Index(1 << 40),
        properties: Properties::new(),
        redelivered: Vec::new(),
        created_ms: 0,
    });
    attach(&mut s, A, 0);
    let outcome = s.acknowledge(A, &acks(None, &[(5, 5 + (1 << 32))]), EPOCH);
    assert!(
        matches!(&outcome, AckOutcome::Invalid(e) if e.kind == ErrorKind::TooLarge),
        "{outcome:?}"
    );
    let logged = v1::AckDelta {
        individual: vec![v1::IndexRange {
            first: 5,
            last: 5 + (1 << 32),
        }],
        ..v1::AckDelta::default()
    };
    assert!(
        CursorState::new(Index(0))
            .apply_acknowledged(&logged)
            .is_err()
    );
}

/// I9, H11: trimming may go by what is durable only.
#[test]
fn the_durable_mark_follows_confirmations() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(6, 1));
    attach(&mut s, A, 0);
    s.credit(A, 100, 10_000);
    drain(&mut s, &log);
    let mut ack = |first, last| match s.acknowledge(A, &acks(None, &[(first, last)]), EPOCH) {
        AckOutcome::Log(delta) => delta,
        other => unreachable!("{other:?}"),
    };
    let (late, early) = (ack(2, 3), ack(0, 1));
    assert_eq!(
        (s.mark_delete(), s.durable_mark_delete()),
        (Index(4), Index(0))
    );
    s.confirm(&late);
    assert_eq!(s.durable_mark_delete(), Index(0));
    s.confirm(&early);
    assert_eq!(s.durable_mark_delete(), Index(4));

    let first = s.seek(Index(1));
    assert_eq!(
        s.durable_mark_delete(),
        Index(1),
        "what the seek wants is kept at once"
    );
    let second = s.seek(Index(5));
    s.confirm_seek(first, Index(1));
    assert_eq!(
        s.durable_mark_delete(),
        Index(1),
        "until the later seek is durable"
    );
    s.confirm(&early);
    assert_eq!(
        s.durable_mark_delete(),
        Index(1),
        "a delta from before the seek is void"
    );
    s.confirm_seek(second, Index(5));
    assert_eq!(s.durable_mark_delete(), Index(5));
}

#[test]
fn a_reader_marks_what_it_was_given() {
    let log = log(4, 3);
    let mut s = Subscription::new(SubscriptionSpec {
        name: "reader".to_owned(),
        kind: SubscriptionType::Shared,
        durable: false,
        cursor: CursorState::new(Index(4)),
        delivered: Index(0),
        properties: Properties::new(),
        redelivered: Vec::new(),
        created_ms: 0,
    });
    assert_eq!(s.kind(), SubscriptionType::Exclusive);
    attach(&mut s, A, 0);
    s.credit(A, 3, 10_000);
    assert_eq!(
        drain(&mut s, &log),
        [(A, vec![4, 5], 0), (A, vec![6, 7, 8], 0)]
    );
    assert_eq!(
        (s.mark_delete(), s.durable_mark_delete()),
        (Index(9), Index(9))
    );
    assert_eq!(
        s.acknowledge(A, &acks(Some(5), &[]), EPOCH),
        AckOutcome::Unchanged
    );
    s.negative_acknowledge(A, &nacks(&[(4, 8)]), EPOCH);
    s.seek(Index(1));
    s.credit(A, 8, 10_000);
    assert_eq!(drain(&mut s, &log)[0], (A, vec![1, 2], 0));
    assert_eq!(s.backlog(Index(12)), 6);
}

/// I9: a hole in what was read is not taken for acknowledged.
#[test]
fn entries_behind_a_hole_are_not_delivered() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(3, 1));
    attach(&mut s, A, 0);
    s.credit(A, 100, 10_000);
    let next = s.next_read(NOW).expect("there is credit");
    let holed = [log[0].clone(), log[2].clone()];
    assert_eq!(s.deliver(&next, &holed, NOW).len(), 1);
    assert_eq!(s.next_read(NOW).map(|next| next.from), Some(Index(1)));
}

#[test]
fn what_was_trimmed_is_neither_waited_for_nor_counted() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(6, 1));
    attach(&mut s, A, 0);
    s.credit(A, 2, 10_000);
    drain(&mut s, &log);
    s.negative_acknowledge(A, &nacks(&[(1, 1)]), EPOCH);
    s.credit(A, 100, 10_000);
    let next = s.next_read(NOW).expect("there is credit");
    assert_eq!(next.from, Index(1));
    // The log answers from 4 on.
    let got = s.deliver(&next, &log[4..5], NOW);
    assert_eq!(got.len(), 1);
    assert_eq!(s.mark_delete(), Index(4));
    assert_eq!(s.backlog(Index(6)), 2);
    assert_eq!(drain(&mut s, &log), [(A, vec![5], 0)]);
    s.trimmed(Index(6));
    assert_eq!(s.stats(Index(6)).unacknowledged_messages, 0);
}
