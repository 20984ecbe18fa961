//! What a consumer may have at once.

use aquifer_model::limits::{UNACKED_PER_CONSUMER_MAX, UNACKED_PER_SUBSCRIPTION_MAX};

use super::*;

/// Credit is totals; it neither leaks nor is minted, and redeliveries use it, too.
#[test]
fn credit_is_absolute_and_exceeded_by_less_than_an_entry() {
    let (mut s, log) = (subscription(SubscriptionType::Exclusive), log(10, 3));
    attach(&mut s, A, 0);
    s.credit(A, 4, 10_000);
    s.credit(A, 4, 10_000);
    assert_eq!(drain(&mut s, &log).len(), 2, "6 messages for 4 granted");
    s.credit(A, 6, 10_000);
    s.credit(A, 2, 1);
    assert_eq!(drain(&mut s, &log).len(), 0, "what was exceeded is owed");
    s.negative_acknowledge(A, &nacks(&[(0, 5)]), EPOCH);
    assert_eq!(drain(&mut s, &log).len(), 0);
    s.credit(A, 7, 10_000);
    assert_eq!(drain(&mut s, &log), [(A, vec![0, 1, 2], 1)]);
    let mut s = subscription(SubscriptionType::Exclusive);
    attach(&mut s, A, 0);
    s.credit(A, 1000, 301);
    assert_eq!(drain(&mut s, &log).len(), 4, "400 bytes for 301 granted");
    s.credit(A, 1000, 400);
    assert_eq!(drain(&mut s, &log).len(), 0);
    s.credit(A, 1000, 401);
    assert_eq!(drain(&mut s, &log).len(), 1);
}

/// The caps hold, with entries that are larger than what is left.
#[test]
fn dispatch_stops_at_the_caps_on_unacknowledged_messages() {
    let batch = 3000;
    let log = log(100, 3000);
    for (kind, consumers) in [
        (SubscriptionType::Exclusive, 1),
        (SubscriptionType::Shared, 1),
        (SubscriptionType::Shared, 5),
    ] {
        let mut s = subscription(kind);
        for consumer in (0..consumers).map(ConsumerId) {
            attach(&mut s, consumer, 0);
            s.credit(consumer, u64::MAX, u64::MAX);
        }
        let got = drain(&mut s, &log);
        let held = |id: ConsumerId| {
            let own = got.iter().filter(|(consumer, _, _)| *consumer == id);
            own.map(|(_, messages, _)| messages.len() as u64)
                .sum::<u64>()
        };
        let total: u64 = s.stats(Index(0)).unacknowledged_messages;
        let cap = UNACKED_PER_SUBSCRIPTION_MAX.min(consumers * UNACKED_PER_CONSUMER_MAX);
        assert!((cap..cap + batch).contains(&total), "{kind:?}: {total}");
        for consumer in (0..consumers).map(ConsumerId) {
            assert!(held(consumer) < UNACKED_PER_CONSUMER_MAX + batch);
        }
        // Acknowledging makes room again.
        let first = &got[0];
        let done = acks(None, &[(first.1[0], first.1[0] + 2 * batch - 1)]);
        assert!(is_log(&s.acknowledge(first.0, &done, EPOCH)));
        assert!(!drain(&mut s, &log).is_empty());
        // So does a seek.
        s.seek(Index(0));
        assert!(!drain(&mut s, &log).is_empty());
        s.seek(Index(2 * batch));
        drain(&mut s, &log);
        // What the consumers held is all that is ever redelivered.
        for consumer in (0..consumers).map(ConsumerId) {
            s.detach(consumer);
        }
        assert_eq!(s.stats(Index(0)).unacknowledged_messages, 0);
        attach(&mut s, C, 0);
        s.credit(C, u64::MAX, u64::MAX);
        let again = drain(&mut s, &log);
        assert_eq!(
            again.first().map(|(_, messages, _)| messages[0]),
            Some(2 * batch)
        );
        assert!(s.stats(Index(0)).unacknowledged_messages < UNACKED_PER_CONSUMER_MAX + batch);
    }
}
