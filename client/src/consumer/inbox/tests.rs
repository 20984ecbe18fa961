use aquifer_model::batch::{BatchFields, MessageRecord, MessageRow, encode};
use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

fn delivery(base_index: u64, count: u64) -> v1::Delivery {
    let mut payload = BytesMut::new();
    let rows: Vec<MessageRow> = (0..count)
        .map(|_| MessageRow {
            size_bytes: u32::try_from(MessageRecord::default().encode(&mut payload)).unwrap(),
            ..MessageRow::default()
        })
        .collect();
    let fields = BatchFields {
        uncompressed_bytes: u32::try_from(payload.len()).unwrap(),
        ..BatchFields::default()
    };
    v1::Delivery {
        base_index,
        batch: encode(&fields, &rows, &payload).unwrap(),
        ..v1::Delivery::default()
    }
}

fn deliveries(owner_epoch: u64, seek_epoch: u64, entries: &[(u64, u64)]) -> v1::Deliveries {
    v1::Deliveries {
        owner_epoch,
        seek_epoch,
        deliveries: entries.iter().map(|(at, n)| delivery(*at, *n)).collect(),
    }
}

fn inbox(is_reader: bool) -> Inbox {
    let topic: TopicName = "t".parse().unwrap();
    let queue = Amount {
        messages: 100,
        bytes: 1 << 20,
    };
    let instance = ConsumerInstance([1; 16]);
    Inbox::new(Arc::new(topic), 0, is_reader, instance, queue)
}

fn subscribe(inbox: &mut Inbox, start_index: u64) -> u64 {
    let (session, _) = inbox.begin_session();
    let answer = v1::Subscribed {
        owner_epoch: 1,
        start_index,
        ..v1::Subscribed::default()
    };
    inbox.subscribed(session, &answer);
    session
}

fn indexes(inbox: &mut Inbox) -> Vec<u64> {
    let taken = std::iter::from_fn(|| inbox.take());
    taken.map(|message| message.unwrap().index.0).collect()
}

/// What the broker has charged is given back in the end, whatever became of it: dropped, skipped,
/// damaged or handed out.
#[test]
fn no_credit_leaks() {
    let mut inbox = inbox(false);
    let session = subscribe(&mut inbox, 0);
    let mut damaged = deliveries(2, 1, &[(50, 2)]);
    damaged.deliveries[0].batch = damaged.deliveries[0].batch.slice(..30);
    let mut all = vec![
        deliveries(2, 0, &[(0, 3), (3, 2)]),
        deliveries(1, 0, &[(90, 1)]),
        deliveries(2, 1, &[(10, 3)]),
        deliveries(2, 0, &[(20, 3)]),
        damaged,
    ];
    all[2].deliveries[0].skip = vec![v1::IndexRange { first: 0, last: 10 }];
    let bytes = all
        .iter()
        .flat_map(|deliveries| &deliveries.deliveries)
        .map(|delivery| delivery.batch.len() as u64)
        .sum::<u64>();
    for deliveries in all {
        inbox.deliver(session, deliveries);
    }
    let taken: Vec<_> = std::iter::from_fn(|| inbox.take()).collect();
    let good = taken.iter().flatten().map(|message| message.index.0);
    assert_eq!(
        good.collect::<Vec<_>>(),
        [11, 12],
        "the seek epoch has moved"
    );
    assert_eq!(taken.iter().filter(|taken| taken.is_err()).count(), 1);
    let mut expected = Credit::new(Amount {
        messages: 100,
        bytes: 1 << 20,
    });
    // 3 + 2 of the first, 1 of the old owner, 2 of 3, 3 of the old seek epoch, 1 for the damaged.
    expected.consume(12, bytes);
    assert_eq!(format!("{:?}", inbox.credit), format!("{expected:?}"));
}

proptest! {
    /// A reader hands out each index once, in order, through any number of reconnects that repeat
    /// what it has seen.
    #[test]
    fn a_reader_neither_skips_nor_repeats(
        sizes in proptest::collection::vec(1u64..5, 1..12),
        takes in proptest::collection::vec(0usize..8, 0..8),
    ) {
        let mut entries = Vec::new();
        let mut end = 0;
        for size in sizes {
            entries.push((end, size));
            end += size;
        }
        let mut inbox = inbox(true);
        let mut seen = Vec::new();
        for take in takes.into_iter().chain([usize::MAX]) {
            let start = match inbox.resume_at() {
                Some(Place::Index(index)) => index.0,
                _ => 0,
            };
            prop_assert_eq!(start, seen.len() as u64);
            let session = subscribe(&mut inbox, start);
            let whole = entries.iter().filter(|(at, size)| at + size > start);
            let whole: Vec<_> = whole.copied().collect();
            inbox.deliver(session, deliveries(1, 0, &whole));
            let taken = std::iter::from_fn(|| inbox.take()).take(take);
            seen.extend(taken.map(|message| message.unwrap().index.0));
        }
        prop_assert_eq!(seen, (0..end).collect::<Vec<_>>());
    }
}

#[test]
fn an_ended_sessions_leftovers_are_not_taken_in() {
    let mut inbox = inbox(false);
    let old = subscribe(&mut inbox, 0);
    inbox.deliver(old, deliveries(1, 0, &[(0, 2)]));
    assert_eq!(inbox.take().unwrap().unwrap().index, Index(0));
    let new = subscribe(&mut inbox, 0);
    inbox.deliver(old, deliveries(1, 0, &[(5, 1)]));
    assert_eq!(indexes(&mut inbox), [0; 0], "all of it is delivered again");
    inbox.deliver(new, deliveries(1, 0, &[(0, 2)]));
    assert_eq!(indexes(&mut inbox), [0, 1]);
}

#[test]
fn somebody_elses_seek_moves_this_consumer_too() {
    let mut inbox = inbox(false);
    let session = subscribe(&mut inbox, 0);
    inbox.deliver(session, deliveries(1, 0, &[(8, 2)]));
    let before = inbox.take().unwrap().unwrap();
    let done = v1::SeekDone {
        request_id: 0,
        seek_epoch: 3,
        index: 0,
        error: None,
    };
    inbox.seek_done(session, done);
    assert_eq!(indexes(&mut inbox), [0; 0]);
    inbox.deliver(session, deliveries(1, 3, &[(0, 1)]));
    assert_eq!(indexes(&mut inbox), [0]);
    let (outcome, _) = inbox.ack(&before, false, Instant::now());
    let mut cx = std::task::Context::from_waker(Waker::noop());
    let result = outcome.poll(&mut None, &mut cx);
    assert_eq!(result, std::task::Poll::Ready(&Err(ClientError::Stale)));
}

/// Takes one message and asks for it again.
fn nack_next(inbox: &mut Inbox, expected: u64) {
    let message = inbox.take().unwrap().unwrap();
    assert_eq!(message.index, Index(expected));
    inbox.nack(&message, Instant::now());
}

/// After a nack where the order counts, neither what waits nor what is on its way is handed out
/// before the message that comes again.
#[test]
fn a_nack_voids_what_comes_behind_it_until_it_comes_again() {
    let mut inbox = inbox(false).keeping_order();
    let session = subscribe(&mut inbox, 0);
    inbox.deliver(session, deliveries(1, 0, &[(0, 3), (3, 2)]));
    assert_eq!(inbox.take().unwrap().unwrap().index, Index(0));
    nack_next(&mut inbox, 1);
    assert_eq!(indexes(&mut inbox), [0; 0], "what was queued");
    inbox.deliver(session, deliveries(1, 0, &[(5, 2)]));
    assert_eq!(indexes(&mut inbox), [0; 0], "what was on its way");
    let mut again = deliveries(1, 0, &[(0, 3), (3, 2), (5, 2)]);
    again.deliveries[0].skip = vec![v1::IndexRange { first: 0, last: 0 }];
    inbox.deliver(session, again);
    assert_eq!(indexes(&mut inbox), [1, 2, 3, 4, 5, 6]);
    // All that came is given back: 7 messages, and again 4 and 2.
    let mut expected = Credit::new(Amount {
        messages: 100,
        bytes: 1 << 20,
    });
    expected.consume(13, 2 * deliveries_bytes(&[(0, 3), (3, 2), (5, 2)]));
    assert_eq!(format!("{:?}", inbox.credit), format!("{expected:?}"));
}

fn deliveries_bytes(entries: &[(u64, u64)]) -> u64 {
    let deliveries = deliveries(1, 0, entries).deliveries;
    deliveries.iter().map(|one| one.batch.len() as u64).sum()
}

#[test]
fn an_earlier_nack_wins_over_one_that_is_under_way() {
    let mut inbox = inbox(false).keeping_order();
    let session = subscribe(&mut inbox, 0);
    inbox.deliver(session, deliveries(1, 0, &[(0, 1), (1, 1), (2, 1)]));
    let first = inbox.take().unwrap().unwrap();
    nack_next(&mut inbox, 1);
    inbox.nack(&first, Instant::now());
    inbox.deliver(session, deliveries(1, 0, &[(1, 1), (2, 1)]));
    assert_eq!(
        indexes(&mut inbox),
        [0; 0],
        "all of it comes behind 0 once more"
    );
    inbox.deliver(session, deliveries(1, 0, &[(0, 1), (1, 1), (2, 1)]));
    assert_eq!(indexes(&mut inbox), [0, 1, 2]);
}

#[test]
fn a_nack_of_what_was_acknowledged_stops_nothing() {
    let mut inbox = inbox(false).keeping_order();
    let session = subscribe(&mut inbox, 0);
    inbox.deliver(session, deliveries(1, 0, &[(0, 2), (2, 2)]));
    let done = inbox.take().unwrap().unwrap();
    drop(inbox.ack(&done, false, Instant::now()));
    inbox.nack(&done, Instant::now());
    nack_next(&mut inbox, 1);
    // Acknowledged after all: the broker has nothing to deliver again but what follows.
    drop(inbox.acks.add(inbox.epochs(), 1, true, Instant::now()));
    inbox.order.as_mut().unwrap().acknowledged(1, true);
    inbox.deliver(session, deliveries(1, 0, &[(2, 2)]));
    assert_eq!(indexes(&mut inbox), [2, 3]);
}

#[test]
fn a_redelivery_that_does_not_come_begins_the_session_anew() {
    let mut inbox = inbox(false).keeping_order();
    let session = subscribe(&mut inbox, 0);
    inbox.deliver(session, deliveries(1, 0, &[(0, 1)]));
    nack_next(&mut inbox, 0);
    let limit = Duration::from_secs(30);
    inbox.expire_redelivery(limit, Instant::now());
    assert_eq!(inbox.session, session, "not yet");
    inbox.expire_redelivery(limit, Instant::now() + limit);
    assert_ne!(inbox.session, session);
}

/// Everything void here is asked for: a cumulative acknowledgement behind the nack must not leave
/// the rest lying at the broker.
#[test]
fn a_nack_asks_for_all_that_it_voids() {
    let mut inbox = inbox(false).keeping_order();
    let session = subscribe(&mut inbox, 0);
    inbox.deliver(session, deliveries(1, 0, &[(0, 3), (3, 2)]));
    nack_next(&mut inbox, 0);
    let next = inbox.next_request(session, Waker::noop());
    let Some(Some(v1::consume_request::Request::NegativeAcknowledge(nack))) = next else {
        panic!("the nack is due: {next:?}");
    };
    assert_eq!(nack.ranges, [v1::IndexRange { first: 0, last: 4 }]);
}
