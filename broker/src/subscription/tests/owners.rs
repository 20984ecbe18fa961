//! What a later owner finds of a subscription.

use super::*;
use crate::cursor_log;

/// Counts go with the record of the subscription, each message with its own; a seek ends them.
#[test]
fn redelivery_counts_survive_the_owner_with_a_snapshot() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(3, 2));
    attach(&mut s, A, 0);
    s.credit(A, 4, 10_000);
    drain(&mut s, &log);
    s.negative_acknowledge(A, &nacks(&[(1, 1)]), EPOCH);
    s.credit(A, 5, 10_000);
    drain(&mut s, &log);
    assert!(is_log(&s.acknowledge(A, &acks(None, &[(0, 0)]), EPOCH)));
    assert!(s.has_redelivered());
    let records = cursor_log::encode_snapshot(1, vec![s.record()], vec![], Index(0));
    let recover = |records: &[Bytes]| {
        let numbered = records
            .iter()
            .zip(0..)
            .map(|(r, at)| (Index(at), r.clone()));
        let state = cursor_log::replay(numbered).expect("the log is sound");
        state
            .subscriptions
            .into_values()
            .next()
            .expect("it is there")
    };
    let counted = |first, last, count| Redelivered {
        range: range(first, last),
        count,
    };
    let recovered = recover(&records);
    assert_eq!(recovered.redelivered, [counted(1, 1, 2), counted(2, 3, 1)]);
    let mut again = Subscription::new(SubscriptionSpec {
        name: "s".to_owned(),
        kind: recovered.kind,
        durable: true,
        cursor: recovered.cursor,
        delivered: Index(6),
        properties: recovered.properties,
        redelivered: recovered.redelivered,
        created_ms: 0,
    });
    attach(&mut again, B, 0);
    again.credit(B, 100, 10_000);
    let got = drain(&mut again, &log);
    assert_eq!(
        got,
        [(B, vec![1], 2), (B, vec![2, 3], 1), (B, vec![4, 5], 0)]
    );
    let mut log = records;
    let seek = cursor_log::moved("s", SeekEpoch(1), Index(0));
    log.extend(cursor_log::encode_deltas(vec![seek]));
    assert_eq!(recover(&log).redelivered, []);
}

/// More ranges than a record has room for: what comes again and again is kept, wherever it stands.
#[test]
fn a_record_keeps_the_highest_counts() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(700, 1));
    attach(&mut s, A, 0);
    s.credit(A, 10_000, 1_000_000);
    drain(&mut s, &log);
    let odd: Vec<(u64, u64)> = (0..350).map(|n| (2 * n + 1, 2 * n + 1)).collect();
    assert!(is_log(&s.acknowledge(A, &acks(None, &odd), EPOCH)));
    s.negative_acknowledge(A, &nacks(&[(698, 698)]), EPOCH);
    drain(&mut s, &log);
    let kept = s.record().redelivered;
    assert_eq!(kept.len(), REDELIVERED_RANGES_MAX);
    let last = kept.last().expect("it has some");
    assert_eq!((last.first, last.last, last.count), (698, 698, 2));
    assert!(kept.windows(2).all(|pair| pair[0].last < pair[1].first));
}

/// I9: single acknowledgements survive the owner, and only what is open is delivered again.
#[test]
fn a_recovered_subscription_skips_what_is_acknowledged() {
    let (mut s, log) = (subscription(SubscriptionType::Shared), log(100, 2));
    attach(&mut s, A, 0);
    s.credit(A, 200, 100_000);
    drain(&mut s, &log);
    s.acknowledge(A, &acks(None, &[(0, 2), (5, 180), (199, 199)]), EPOCH);
    let state = s.record();
    let mut recovered = Subscription::new(SubscriptionSpec {
        name: state.name.clone(),
        kind: SubscriptionType::Shared,
        durable: true,
        cursor: CursorState::decode(&state).expect("what was encoded decodes"),
        delivered: Index(0),
        properties: Properties::new(),
        redelivered: Vec::new(),
        created_ms: state.created_ms,
    });
    assert_eq!(recovered.start(), Index(3));
    attach(&mut recovered, B, 0);
    recovered.credit(B, 20, 100_000);
    let got: Vec<u64> = drain(&mut recovered, &log)
        .into_iter()
        .flat_map(|(_, m, _)| m)
        .collect();
    let expected: Vec<u64> = [3, 4].into_iter().chain(181..199).collect();
    assert_eq!(got, expected);
}
