//! What storage cannot give: any number of gaps, of any width.

use aquifer_model::limits::UNACKED_PER_SUBSCRIPTION_MAX;

use super::*;

/// The next thing to read is damaged.
fn gap(subscription: &mut Subscription, first: u64, end: u64) -> Option<(ConsumerId, IndexRange)> {
    let read = subscription.next_read(NOW)?;
    assert_eq!(read.from, Index(first));
    subscription.deliver_gap(&read, Index(first)..Index(end), NOW)
}

/// Delivers gaps and messages by turns until there are too many gaps; where it stops.
fn pass_over_gaps(subscription: &mut Subscription) -> u64 {
    let mut first = 0;
    while gap(subscription, first, first + 1).is_some() {
        let read = subscription.next_read(NOW).unwrap();
        let delivered = subscription.deliver(&read, &[entry(first + 1, 1)], NOW);
        assert!(!delivered.is_empty());
        first += 2;
    }
    first
}

#[test]
fn any_number_of_gaps_can_be_told_again_and_given_up() {
    let mut subscription = subscription(SubscriptionType::Shared);
    attach(&mut subscription, A, 0);
    subscription.credit(A, u64::MAX, u64::MAX);
    let first = pass_over_gaps(&mut subscription);
    assert!(subscription.is_full_of_damage());
    assert_eq!(subscription.damaged_messages(), first / 2);
    // Those that are known come again to the next consumer.
    subscription.detach(A);
    attach(&mut subscription, B, 0);
    subscription.credit(B, u64::MAX, u64::MAX);
    assert_eq!(gap(&mut subscription, 0, 1), Some((B, range(0, 0))));
    // And what is given up makes room for more.
    let skipped = subscription.skip(None, Index(u64::MAX));
    assert_eq!(skipped.individual.len(), ACK_RANGES_MAX);
    assert!(!subscription.is_full_of_damage());
}

/// Delivery passes over so much damage and stops in front of more; an acknowledgement of some lets
/// it go on, one of what is good does not (I9, I13).
#[test]
fn an_acknowledged_gap_makes_room_for_another() {
    let mut subscription = subscription(SubscriptionType::Shared);
    attach(&mut subscription, A, 0);
    subscription.credit(A, u64::MAX, u64::MAX);
    let first = pass_over_gaps(&mut subscription);
    assert_eq!(first, 20_000, "ten thousand are passed over");
    let acknowledge = |subscription: &mut Subscription, index: u64| {
        let outcome = subscription.acknowledge(A, &acks(None, &[(index, index)]), EPOCH);
        assert!(is_log(&outcome), "{outcome:?}");
    };
    acknowledge(&mut subscription, 1);
    assert_eq!(gap(&mut subscription, first, first + 1), None);
    acknowledge(&mut subscription, 4);
    let told = Some((A, range(first, first)));
    assert_eq!(gap(&mut subscription, first, first + 1), told);
    assert_eq!(gap(&mut subscription, first + 1, first + 3), None);
}

#[test]
fn a_gap_of_more_messages_than_a_cap_allows_stops_nobody() {
    let mut subscription = subscription(SubscriptionType::Shared);
    attach(&mut subscription, A, 0);
    subscription.credit(A, u64::MAX, u64::MAX);
    let end = 10 * UNACKED_PER_SUBSCRIPTION_MAX;
    assert_eq!(gap(&mut subscription, 0, end), Some((A, range(0, end - 1))));
    let read = subscription.next_read(NOW).expect("the next may come");
    assert_eq!(read.from, Index(end));
}
