use aquifer_model::batch::{BatchFields, Compression, MessageRecord, MessageRow, encode};
use aquifer_model::subscription::SubscriptionType;
use aquifer_proto::v1::consume_request::Request;
use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::consumer::credit::Credit;
use crate::consumer::inbox::subscriber::SubscriberState;
use crate::consumer::settings::Subscription;
use crate::message::Damaged;

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
        message_count: u32::try_from(count).unwrap(),
        body: encode(&fields, &rows, &payload).unwrap(),
        format: 1,
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

fn reader() -> Inbox {
    inbox(&Purpose::Reader)
}

fn consumer(kind: SubscriptionType) -> Inbox {
    inbox(&Purpose::Subscription(Subscription {
        name: "s".to_owned(),
        kind,
        consumer_name: String::new(),
        priority: 0,
    }))
}

fn inbox(purpose: &Purpose) -> Inbox {
    let topic: TopicName = "t".parse().unwrap();
    let queue = Amount {
        messages: 100,
        bytes: 1 << 20,
    };
    let instance = ConsumerInstance([1; 16]);
    Inbox::new(Arc::new(topic), 0, purpose, instance, queue)
}

fn subscribe(inbox: &mut Inbox, start_index: u64) -> u64 {
    let session = inbox.begin_session(&mut Wakers::default());
    let answer = v1::Subscribed {
        owner_epoch: 1,
        start_index,
        ..v1::Subscribed::default()
    };
    inbox.subscribed(session, &answer, &mut Wakers::default());
    session
}

fn deliver(inbox: &mut Inbox, session: u64, deliveries: v1::Deliveries) {
    inbox.deliver(session, deliveries, &mut Wakers::default());
}

fn ack(inbox: &mut Inbox, message: &ReceivedMessage) -> Arc<AckOutcome> {
    let what = Acknowledged::One(message.index.0);
    inbox.ack(message.origin, what, Instant::now(), &mut Wakers::default())
}

fn nack(inbox: &mut Inbox, message: &ReceivedMessage) {
    let range = (message.index.0, message.index.0);
    inbox.nack(
        message.origin,
        range,
        Instant::now(),
        &mut Wakers::default(),
    );
}

fn indexes(inbox: &mut Inbox) -> Vec<u64> {
    let taken = std::iter::from_fn(|| inbox.take());
    taken.map(|message| message.unwrap().index.0).collect()
}

/// What the broker has charged is given back in the end, whatever became of it: dropped, skipped,
/// damaged or handed out.
#[test]
fn no_credit_leaks() {
    let mut inbox = consumer(SubscriptionType::Shared);
    let session = subscribe(&mut inbox, 0);
    let mut damaged = deliveries(2, 1, &[(50, 2)]);
    damaged.deliveries[0].body = damaged.deliveries[0].body.slice(..30);
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
        .map(|delivery| delivery.body.len() as u64)
        .sum::<u64>();
    for deliveries in all {
        deliver(&mut inbox, session, deliveries);
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
    // 3 + 2 of the first, 1 of the old owner, 2 of 3, 3 of the old seek epoch, 2 damaged.
    expected.consume(13, bytes);
    assert_eq!(
        format!("{:?}", inbox.arrivals.credit),
        format!("{expected:?}")
    );
}

fn damaged(taken: Option<Result<ReceivedMessage>>) -> Damaged {
    match taken {
        Some(Err(ClientError::Damaged(damaged))) => *damaged,
        other => panic!("not damaged: {other:?}"),
    }
}

fn subscriber(inbox: &mut Inbox) -> &mut SubscriberState {
    match &mut inbox.role {
        Role::Subscriber(subscriber) => subscriber,
        Role::Reader(_) => panic!("a reader"),
    }
}

fn acknowledged(inbox: &mut Inbox, damaged: &Damaged) -> Vec<(u64, u64)> {
    let what = Acknowledged::Ranges(&damaged.ranges);
    drop(inbox.ack(damaged.origin, what, Instant::now(), &mut Wakers::default()));
    let request = subscriber(inbox).acks.next().unwrap();
    let ranges = request.individual.iter();
    ranges.map(|range| (range.first, range.last)).collect()
}

/// A block that does not unpack, and bytes whose checksum is wrong: both name what is missing, can
/// be acknowledged, and do not stop what follows.
#[test]
fn what_cannot_be_read_can_be_passed_over() {
    let mut inbox = consumer(SubscriptionType::Shared);
    let session = subscribe(&mut inbox, 0);
    let fields = BatchFields {
        compression: Compression::Lz4,
        uncompressed_bytes: 1_000,
        ..BatchFields::default()
    };
    let rows = [MessageRow {
        size_bytes: 250,
        ..MessageRow::default()
    }; 4];
    let mut all = deliveries(1, 0, &[(0, 1), (1, 4), (5, 3), (8, 1)]);
    all.deliveries[1].body = encode(&fields, &rows, &[0xee; 100]).unwrap();
    all.deliveries[1].skip = vec![v1::IndexRange { first: 2, last: 2 }];
    all.deliveries[2].body = all.deliveries[2].body.slice(..30);
    deliver(&mut inbox, session, all);
    let first = inbox.take().unwrap().unwrap();
    assert_eq!(first.index, Index(0));
    let unpacked = damaged(inbox.take());
    assert_eq!(
        (unpacked.first_index, unpacked.last_index),
        (Index(1), Index(4))
    );
    assert_eq!(unpacked.messages(), 3, "one is not for us");
    let short = damaged(inbox.take());
    assert_eq!((short.first_index, short.last_index), (Index(5), Index(7)));
    assert_eq!(indexes(&mut inbox), [8]);
    assert_eq!(acknowledged(&mut inbox, &unpacked), [(1, 1), (3, 4)]);
    inbox.confirmed(
        session,
        confirmed(1),
        Instant::now(),
        &mut Wakers::default(),
    );
    assert_eq!(acknowledged(&mut inbox, &short), [(5, 7)]);
}

fn confirmed(request_id: u64) -> v1::Confirmed {
    v1::Confirmed {
        request_id,
        error: None,
    }
}

fn refusal(code: v1::ErrorCode) -> Option<v1::ErrorDetail> {
    Some(v1::ErrorDetail {
        code: code.into(),
        ..v1::ErrorDetail::default()
    })
}

/// The next request that is no credit.
fn next_request(inbox: &mut Inbox, session: u64) -> Option<Request> {
    loop {
        match inbox.next_request(session, Waker::noop()).expect("open") {
            Some(Request::Credit(_)) => {}
            other => return other,
        }
    }
}

/// A broker that has too much waiting refuses requests and not the session: what was delivered
/// stays, and acknowledgements and seeks are made again after a pause.
#[test]
fn what_is_refused_for_the_moment_is_asked_for_again() {
    let mut inbox = consumer(SubscriptionType::Shared);
    let session = subscribe(&mut inbox, 0);
    deliver(&mut inbox, session, deliveries(1, 0, &[(0, 1), (1, 1)]));
    let first = inbox.take().unwrap().unwrap();
    let outcome = ack(&mut inbox, &first);
    let mut wakers = Wakers::default();
    let seek = inbox.seek(Place::Index(Index(1)), &mut wakers).unwrap();
    let Some(Request::Acknowledge(asked)) = next_request(&mut inbox, session) else {
        panic!("no acknowledgement");
    };
    let Some(Request::Seek(sought)) = next_request(&mut inbox, session) else {
        panic!("no seek");
    };
    let now = Instant::now();
    let refused = v1::Confirmed {
        request_id: asked.request_id,
        error: refusal(v1::ErrorCode::Overloaded),
    };
    inbox.confirmed(session, refused, now, &mut wakers);
    let refused = v1::SeekDone {
        request_id: sought.request_id,
        error: refusal(v1::ErrorCode::Overloaded),
        ..v1::SeekDone::default()
    };
    inbox.seek_done(session, refused, now, &mut wakers);
    inbox.make_again(now, &mut wakers);
    assert_eq!(next_request(&mut inbox, session), None, "not at once");
    assert_eq!(indexes(&mut inbox), [1], "nothing is void");
    inbox.make_again(inbox.again_at().unwrap(), &mut wakers);
    assert_eq!(inbox.again_at(), None);
    let Some(Request::Acknowledge(again)) = next_request(&mut inbox, session) else {
        panic!("it is not made again");
    };
    assert_eq!(again.individual, asked.individual);
    assert_eq!(
        next_request(&mut inbox, session),
        Some(Request::Seek(sought.clone()))
    );
    let mut cx = std::task::Context::from_waker(Waker::noop());
    assert!(outcome.poll(&mut None, &mut cx).is_pending());
    inbox.confirmed(session, confirmed(again.request_id), now, &mut wakers);
    assert!(outcome.poll(&mut None, &mut cx).is_ready());
    // Another refusal is the outcome.
    let refused = v1::SeekDone {
        request_id: sought.request_id,
        error: refusal(v1::ErrorCode::InvalidArgument),
        ..v1::SeekDone::default()
    };
    inbox.seek_done(session, refused, now, &mut wakers);
    assert!(seek.poll(&mut None, &mut cx).is_ready());
}

/// One record that is malformed does not take the rest of its batch with it.
#[test]
fn a_malformed_message_is_the_only_one_that_is_missing() {
    let mut inbox = consumer(SubscriptionType::Shared);
    let session = subscribe(&mut inbox, 0);
    let mut payload = BytesMut::new();
    let mut rows = Vec::new();
    for number in 0..3_u64 {
        let size = match number {
            1 => {
                payload.extend_from_slice(&[0xff; 9]);
                9
            }
            _ => MessageRecord::default().encode(&mut payload),
        };
        rows.push(MessageRow {
            size_bytes: u32::try_from(size).unwrap(),
            ..MessageRow::default()
        });
    }
    let fields = BatchFields {
        uncompressed_bytes: u32::try_from(payload.len()).unwrap(),
        ..BatchFields::default()
    };
    let mut all = deliveries(1, 0, &[(10, 3), (13, 1)]);
    all.deliveries[0].body = encode(&fields, &rows, &payload).unwrap();
    deliver(&mut inbox, session, all);
    assert_eq!(inbox.take().unwrap().unwrap().index, Index(10));
    let bad = damaged(inbox.take());
    assert_eq!((bad.first_index, bad.messages()), (Index(11), 1));
    assert_eq!(indexes(&mut inbox), [12, 13]);
}

/// What storage cannot give comes in its place of the order, costs one message of credit, and is
/// not told twice to a reader.
#[test]
fn gaps_come_in_their_place() {
    for is_reader in [false, true] {
        let mut inbox = match is_reader {
            true => reader(),
            false => consumer(SubscriptionType::Shared),
        };
        let session = subscribe(&mut inbox, 0);
        let gap = || v1::Gap {
            owner_epoch: 1,
            first_index: 2,
            last_index: 1_000_001,
            reason: "gone".to_owned(),
            at_most: is_reader,
            ..v1::Gap::default()
        };
        deliver(&mut inbox, session, deliveries(1, 0, &[(0, 2)]));
        inbox.gap(session, gap(), &mut Wakers::default());
        deliver(&mut inbox, session, deliveries(1, 0, &[(1_000_002, 1)]));
        assert_eq!(inbox.take().unwrap().unwrap().index, Index(0));
        assert_eq!(inbox.take().unwrap().unwrap().index, Index(1));
        let missing = damaged(inbox.take());
        assert_eq!(
            (missing.messages(), missing.at_most),
            (1_000_000, is_reader)
        );
        let said = missing.to_string();
        assert_eq!(
            said.starts_with("up to 1000000 messages from 2 on"),
            is_reader,
            "{said}"
        );
        assert_eq!(inbox.take().unwrap().unwrap().index, Index(1_000_002));
        let used = format!("{:?}", inbox.arrivals.credit);
        assert!(used.contains("consumed: Amount { messages: 4,"), "{used}");
        if is_reader {
            inbox.gap(session, gap(), &mut Wakers::default());
            assert_eq!(indexes(&mut inbox), [0; 0]);
        } else {
            assert_eq!(acknowledged(&mut inbox, &missing), [(2, 1_000_001)]);
        }
    }
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
        let mut inbox = reader();
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
            deliver(&mut inbox, session, deliveries(1, 0, &whole));
            let taken = std::iter::from_fn(|| inbox.take()).take(take);
            seen.extend(taken.map(|message| message.unwrap().index.0));
        }
        prop_assert_eq!(seen, (0..end).collect::<Vec<_>>());
    }
}

#[test]
fn an_ended_sessions_leftovers_are_not_taken_in() {
    let mut inbox = consumer(SubscriptionType::Shared);
    let old = subscribe(&mut inbox, 0);
    deliver(&mut inbox, old, deliveries(1, 0, &[(0, 2)]));
    assert_eq!(inbox.take().unwrap().unwrap().index, Index(0));
    let new = subscribe(&mut inbox, 0);
    deliver(&mut inbox, old, deliveries(1, 0, &[(5, 1)]));
    assert_eq!(indexes(&mut inbox), [0; 0], "all of it is delivered again");
    deliver(&mut inbox, new, deliveries(1, 0, &[(0, 2)]));
    assert_eq!(indexes(&mut inbox), [0, 1]);
}

#[test]
fn somebody_elses_seek_moves_this_consumer_too() {
    let mut inbox = consumer(SubscriptionType::Shared);
    let session = subscribe(&mut inbox, 0);
    deliver(&mut inbox, session, deliveries(1, 0, &[(8, 2)]));
    let before = inbox.take().unwrap().unwrap();
    let done = v1::SeekDone {
        request_id: 0,
        seek_epoch: 3,
        index: 0,
        error: None,
    };
    inbox.seek_done(session, done, Instant::now(), &mut Wakers::default());
    assert_eq!(indexes(&mut inbox), [0; 0]);
    deliver(&mut inbox, session, deliveries(1, 3, &[(0, 1)]));
    assert_eq!(indexes(&mut inbox), [0]);
    let outcome = ack(&mut inbox, &before);
    let mut cx = std::task::Context::from_waker(Waker::noop());
    let result = outcome.poll(&mut None, &mut cx);
    assert_eq!(result, std::task::Poll::Ready(&Err(ClientError::Stale)));
}

/// Takes one message and asks for it again.
fn nack_next(inbox: &mut Inbox, expected: u64) {
    let message = inbox.take().unwrap().unwrap();
    assert_eq!(message.index, Index(expected));
    nack(inbox, &message);
}

/// After a nack where the order counts, neither what waits nor what is in flight is handed out
/// before the message that comes again.
#[test]
fn a_nack_voids_what_comes_behind_it_until_it_comes_again() {
    let mut inbox = consumer(SubscriptionType::Exclusive);
    let session = subscribe(&mut inbox, 0);
    deliver(&mut inbox, session, deliveries(1, 0, &[(0, 3), (3, 2)]));
    assert_eq!(inbox.take().unwrap().unwrap().index, Index(0));
    nack_next(&mut inbox, 1);
    assert_eq!(indexes(&mut inbox), [0; 0], "what was queued");
    deliver(&mut inbox, session, deliveries(1, 0, &[(5, 2)]));
    assert_eq!(indexes(&mut inbox), [0; 0], "what was in flight");
    let mut again = deliveries(1, 0, &[(0, 3), (3, 2), (5, 2)]);
    again.deliveries[0].skip = vec![v1::IndexRange { first: 0, last: 0 }];
    deliver(&mut inbox, session, again);
    assert_eq!(indexes(&mut inbox), [1, 2, 3, 4, 5, 6]);
    // All that came is given back: 7 messages, and again 4 and 2.
    let mut expected = Credit::new(Amount {
        messages: 100,
        bytes: 1 << 20,
    });
    expected.consume(13, 2 * deliveries_bytes(&[(0, 3), (3, 2), (5, 2)]));
    assert_eq!(
        format!("{:?}", inbox.arrivals.credit),
        format!("{expected:?}")
    );
}

fn deliveries_bytes(entries: &[(u64, u64)]) -> u64 {
    let deliveries = deliveries(1, 0, entries).deliveries;
    deliveries.iter().map(|one| one.body.len() as u64).sum()
}

#[test]
fn an_earlier_nack_wins_over_one_that_is_under_way() {
    let mut inbox = consumer(SubscriptionType::Exclusive);
    let session = subscribe(&mut inbox, 0);
    deliver(
        &mut inbox,
        session,
        deliveries(1, 0, &[(0, 1), (1, 1), (2, 1)]),
    );
    let first = inbox.take().unwrap().unwrap();
    nack_next(&mut inbox, 1);
    nack(&mut inbox, &first);
    deliver(&mut inbox, session, deliveries(1, 0, &[(1, 1), (2, 1)]));
    assert_eq!(
        indexes(&mut inbox),
        [0; 0],
        "all of it comes behind 0 once more"
    );
    deliver(
        &mut inbox,
        session,
        deliveries(1, 0, &[(0, 1), (1, 1), (2, 1)]),
    );
    assert_eq!(indexes(&mut inbox), [0, 1, 2]);
}

#[test]
fn a_nack_of_what_was_acknowledged_stops_nothing() {
    let mut inbox = consumer(SubscriptionType::Exclusive);
    let session = subscribe(&mut inbox, 0);
    deliver(&mut inbox, session, deliveries(1, 0, &[(0, 2), (2, 2)]));
    let done = inbox.take().unwrap().unwrap();
    drop(ack(&mut inbox, &done));
    nack(&mut inbox, &done);
    nack_next(&mut inbox, 1);
    // Acknowledged after all: the broker has nothing to deliver again but what follows.
    let what = Acknowledged::UpTo(1);
    let epochs = inbox.epochs();
    drop(subscriber(&mut inbox).ack(epochs, what, Instant::now()));
    deliver(&mut inbox, session, deliveries(1, 0, &[(2, 2)]));
    assert_eq!(indexes(&mut inbox), [2, 3]);
}

#[test]
fn a_redelivery_that_does_not_come_begins_the_session_anew() {
    let mut inbox = consumer(SubscriptionType::Exclusive);
    let session = subscribe(&mut inbox, 0);
    deliver(&mut inbox, session, deliveries(1, 0, &[(0, 1)]));
    nack_next(&mut inbox, 0);
    let limit = Duration::from_secs(30);
    inbox.expire_redelivery(limit, Instant::now(), &mut Wakers::default());
    assert_eq!(inbox.session, session, "not yet");
    inbox.expire_redelivery(limit, Instant::now() + limit, &mut Wakers::default());
    assert_ne!(inbox.session, session);
}

/// Everything void here is asked for: a cumulative acknowledgement behind the nack must not leave
/// the rest lying at the broker.
#[test]
fn a_nack_asks_for_all_that_it_voids() {
    let mut inbox = consumer(SubscriptionType::Exclusive);
    let session = subscribe(&mut inbox, 0);
    deliver(&mut inbox, session, deliveries(1, 0, &[(0, 3), (3, 2)]));
    nack_next(&mut inbox, 0);
    let next = inbox.next_request(session, Waker::noop());
    let Some(Some(v1::consume_request::Request::NegativeAcknowledge(nack))) = next else {
        panic!("the nack is due: {next:?}");
    };
    assert_eq!(nack.ranges, [v1::IndexRange { first: 0, last: 4 }]);
}
