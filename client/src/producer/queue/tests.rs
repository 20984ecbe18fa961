use aquifer_model::batch::{Batch, Compression};
use aquifer_model::id::ProducerInstance;
use futures::FutureExt;
use proptest::prelude::*;

use super::*;

const INSTANCE: ProducerInstance = ProducerInstance([1; 16]);

fn cost() -> Cost {
    Cost {
        messages: 1,
        bytes: 100,
    }
}

/// Runs a change and answers what it has completed.
fn done_by<T>(change: impl FnOnce(&mut Effects<'_>) -> T) -> (Vec<Completed>, T) {
    let (mut wakers, mut completed) = (Wakers::default(), Vec::new());
    let result = change(&mut Effects {
        wakers: &mut wakers,
        completed: &mut completed,
    });
    (completed, result)
}

fn begin_session(queue: &mut Queue) -> u64 {
    queue.begin_session(&mut Wakers::default())
}

/// Accepts a message that says its number.
fn append(queue: &mut Queue, number: u64, now: Instant) -> (Arc<BatchOutcome>, u32, u64) {
    let message = Message::new(number.to_string());
    let wakers = &mut Wakers::default();
    let accepted = queue.append(&message, cost(), || now, wakers).unwrap();
    (accepted.outcome, accepted.slot, accepted.sequence_id)
}

/// Everything that the stream of a session would send now.
fn pull(queue: &mut Queue, session: u64, now: Instant) -> Vec<(u64, Bytes)> {
    let mut frames = Vec::new();
    loop {
        match queue.next(session, now, Waker::noop()) {
            Next::Frame(number, bytes) => frames.push((number, bytes)),
            Next::Seal(mut batch) => {
                let bytes = batch.encode(&Bytes::from_static(b"p"), INSTANCE, 7, Compression::None);
                let (done, ()) = done_by(|effects| queue.sealed(session, &batch, bytes, effects));
                assert!(done.is_empty());
            }
            Next::WaitUntil(_) | Next::Wait | Next::End => return frames,
        }
    }
}

fn begin(queue: &mut Queue) -> u64 {
    let session = begin_session(queue);
    done_by(|effects| queue.opened(session, None, effects));
    session
}

fn receipt(frame_number: u64, base_index: u64, duplicate: bool) -> v1::Receipt {
    v1::Receipt {
        frame_number,
        base_index,
        duplicate,
        ..v1::Receipt::default()
    }
}

fn batching(bytes_max: usize, adaptive: bool) -> Batching {
    Batching {
        bytes_max,
        adaptive,
        delay_max: Duration::from_secs(1),
        ..Batching::default()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append,
    Pull,
    /// The broker stores and acknowledges up to this many frames.
    Acknowledge(usize),
    /// The broker stores up to this many frames and the connection is lost.
    Lose(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Append),
        2 => Just(Step::Pull),
        2 => (0usize..4).prop_map(Step::Acknowledge),
        1 => (0usize..4).prop_map(Step::Lose),
    ];
    proptest::collection::vec(step, 1..120)
}

/// A broker that deduplicates: it stores a batch once, and answers where.
#[derive(Default)]
struct Model {
    stored: Vec<(u64, u64, u64)>,
    next_index: u64,
    /// Sent in this session and not answered.
    wire: VecDeque<(u64, Bytes)>,
    answered: u64,
}

impl Model {
    fn store(&mut self) -> Option<v1::Receipt> {
        let (number, bytes) = self.wire.pop_front()?;
        self.answered += 1;
        assert_eq!(number, self.answered, "frames are numbered without gaps");
        let batch = Batch::parse(bytes).unwrap();
        let (low, high) = (
            batch.fields().lowest_sequence_id,
            batch.fields().highest_sequence_id,
        );
        let known = self.stored.iter().find(|(l, h, _)| (*l, *h) == (low, high));
        if let Some((_, _, index)) = known {
            return Some(receipt(number, *index, true));
        }
        let last = self.stored.last();
        assert!(
            last.is_none_or(|(_, h, _)| low == h + 1),
            "order, and no batch that overlaps a stored one: {low}..{high} after {last:?}"
        );
        self.stored.push((low, high, self.next_index));
        self.next_index += u64::from(batch.message_count());
        Some(receipt(number, self.stored.last()?.2, false))
    }
}

proptest! {
    /// I7, I8, H7: whatever is lost and whenever, every message is stored once, in order, and its
    /// receipt says where.
    #[test]
    fn every_message_is_stored_once_and_in_order(
        steps in steps(),
        bytes_max in 60usize..400,
        adaptive in any::<bool>(),
    ) {
        let start = Instant::now();
        let mut queue = Queue::new(batching(bytes_max, adaptive), None);
        let mut model = Model::default();
        let mut session = begin(&mut queue);
        let mut sent = Vec::new();
        let now = |step: usize| start + Duration::from_millis(300 * step as u64);
        let end = [Step::Pull, Step::Acknowledge(usize::MAX)];
        let steps: Vec<Step> = steps.into_iter().chain(end.iter().cloned().cycle().take(8)).collect();
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append => sent.push(append(&mut queue, sent.len() as u64, now(at))),
                Step::Pull => model.wire.extend(pull(&mut queue, session, now(at + 9))),
                Step::Acknowledge(count) => {
                    for _ in 0..count {
                        let Some(receipt) = model.store() else { break };
                        let (completed, result) =
                            done_by(|effects| queue.receipts(session, &[receipt], effects));
                        result.unwrap();
                        for completed in completed {
                            completed.outcome.set(completed.result);
                        }
                    }
                }
                Step::Lose(count) => {
                    for _ in 0..count {
                        model.store();
                    }
                    model.wire.clear();
                    model.answered = 0;
                    session = begin(&mut queue);
                }
            }
        }
        prop_assert_eq!(model.next_index, sent.len() as u64);
        for (number, (outcome, slot, sequence_id)) in sent.into_iter().enumerate() {
            let stored = outcome.wait().now_or_never().expect("completed").clone().unwrap();
            let (_, _, base) = stored.at.unwrap();
            prop_assert_eq!(base.0 + u64::from(slot), number as u64);
            prop_assert_eq!(sequence_id, number as u64);
        }
    }
}

#[test]
fn a_quiet_producer_sends_at_once_and_a_busy_one_gathers() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(10_000, true), None);
    let session = begin(&mut queue);
    append(&mut queue, 0, now);
    assert_eq!(pull(&mut queue, session, now).len(), 1);
    append(&mut queue, 1, now);
    append(&mut queue, 2, now);
    assert!(
        pull(&mut queue, session, now).is_empty(),
        "one is in flight"
    );
    let later = now + Duration::from_secs(1);
    let frames = pull(&mut queue, session, later);
    assert_eq!(frames.len(), 1, "the delay is over");
    append(&mut queue, 3, later);
    let receipts = [receipt(1, 0, false)];
    let (_, result) = done_by(|effects| queue.receipts(session, &receipts, effects));
    result.unwrap();
    assert_eq!(pull(&mut queue, session, later).len(), 1, "a receipt came");
    append(&mut queue, 4, later);
    assert!(
        pull(&mut queue, session, later).is_empty(),
        "it counts once"
    );
}

#[test]
fn without_adaptivity_only_the_bounds_count() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(10_000, false), None);
    let session = begin(&mut queue);
    append(&mut queue, 0, now);
    assert!(pull(&mut queue, session, now).is_empty());
    assert!(matches!(
        queue.next(session, now, Waker::noop()),
        Next::WaitUntil(at) if at == now + Duration::from_secs(1)
    ));
    queue.flush(&mut Wakers::default());
    assert_eq!(pull(&mut queue, session, now).len(), 1);
}

/// A later batch must not overtake one that the stream of an earlier session still seals.
#[test]
fn nothing_overtakes_a_batch_that_is_being_sealed() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(20, true), None);
    let old = begin(&mut queue);
    append(&mut queue, 0, now);
    append(&mut queue, 1, now);
    let Next::Seal(mut batch) = queue.next(old, now, Waker::noop()) else {
        panic!("the first batch is full");
    };
    let new = begin(&mut queue);
    assert!(matches!(queue.next(old, now, Waker::noop()), Next::End));
    assert!(pull(&mut queue, new, now).is_empty());
    let bytes = batch.encode(&Bytes::from_static(b"p"), INSTANCE, 7, Compression::None);
    let (_, is_told) = done_by(|effects| {
        queue.sealed(old, &batch, bytes, effects);
        !effects.wakers.is_empty()
    });
    assert!(is_told, "the new session's stream is told");
    let first_ids: Vec<u64> = pull(&mut queue, new, now)
        .into_iter()
        .map(|(_, bytes)| Batch::parse(bytes).unwrap().fields().lowest_sequence_id)
        .collect();
    assert_eq!(first_ids, [0, 1]);
}

/// Everything behind a failure fails, a batch that is just being sealed included.
#[test]
fn a_failure_takes_everything_along() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(40, true), None);
    let session = begin(&mut queue);
    let sent: Vec<_> = (0..4).map(|n| append(&mut queue, n, now)).collect();
    let Next::Seal(mut sealing) = queue.next(session, now, Waker::noop()) else {
        panic!("the first batch is full");
    };
    let error = ClientError::Timeout {
        what: "sending",
        after: Duration::from_secs(1),
        outcome: Outcome::Unknown,
        last: None,
    };
    let (completed, ()) = done_by(|effects| queue.fail(&error, false, effects));
    assert_eq!(completed.len(), 4);
    let bytes = sealing.encode(&Bytes::from_static(b"p"), INSTANCE, 7, Compression::None);
    let (last, ()) = done_by(|effects| queue.sealed(session, &sealing, bytes, effects));
    assert!(last.is_empty(), "it is completed once");
    let released: u32 = completed
        .into_iter()
        .map(|completed| {
            let cost = completed.cost;
            completed.outcome.set(completed.result);
            cost.messages
        })
        .sum();
    assert_eq!(released, 4, "all budget is given back");
    for (outcome, _, _) in sent {
        let result = outcome.wait().now_or_never().expect("completed");
        let error = result.as_ref().unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotApplied, "none was sent");
    }
    let session = begin(&mut queue);
    let (_, _, id) = append(&mut queue, 4, now);
    assert_eq!(id, 4, "ids go on");
    assert_eq!(pull(&mut queue, session, now).len(), 1);
}

#[test]
fn receipts_out_of_order_break_the_session() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(40, true), None);
    let session = begin(&mut queue);
    let wrong = |queue: &mut Queue, number| {
        let receipts = [receipt(number, 0, false)];
        let (_, result) = done_by(|effects| queue.receipts(session, &receipts, effects));
        result.is_err()
    };
    assert!(wrong(&mut queue, 1), "nothing was sent");
    append(&mut queue, 0, now);
    append(&mut queue, 1, now);
    pull(&mut queue, session, now);
    assert!(wrong(&mut queue, 2));
    assert!(!wrong(&mut queue, 1));
    assert!(wrong(&mut queue, 1));
}

/// Buffers of acknowledged batches are used again: a steady producer allocates none.
/// The batch has the trace of its first message with one; what is not sampled has none.
#[test]
fn a_batch_belongs_to_the_trace_of_its_first_sampled_message() {
    let traced = |context: &str| Message::new("m").property("traceparent", context);
    let first = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let second = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-01";
    let unsampled = "00-0af7651916cd43dd8448eb211c80319e-b7ad6b7169203331-00";
    let trace_of = |messages: &[Message]| {
        let now = Instant::now();
        let mut queue = Queue::new(batching(1_000_000, true), None);
        let session = begin(&mut queue);
        for message in messages {
            let wakers = &mut Wakers::default();
            queue.append(message, cost(), || now, wakers).unwrap();
        }
        let frames = pull(&mut queue, session, now);
        let batch = aquifer_model::batch::Batch::parse(frames[0].1.clone()).unwrap();
        assert_eq!(batch.message_count() as usize, messages.len());
        batch.fields().trace.map(|trace| trace.to_string())
    };
    let plain = Message::new("m").property("other", first);
    assert_eq!(trace_of(&[plain.clone(), traced(unsampled)]), None);
    let both = [plain, traced(unsampled), traced(first), traced(second)];
    assert_eq!(trace_of(&both).as_deref(), Some(first));
}

#[test]
fn acknowledged_buffers_are_reused() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(10_000, true), None);
    let session = begin(&mut queue);
    append(&mut queue, 0, now);
    let frames = pull(&mut queue, session, now);
    drop(frames);
    let receipts = [receipt(1, 0, false)];
    let (_, result) = done_by(|effects| queue.receipts(session, &receipts, effects));
    result.unwrap();
    assert_eq!(queue.spare.len(), 1);
    append(&mut queue, 1, now);
    assert!(queue.spare.is_empty());
}

fn message() -> impl Strategy<Value = Message> {
    let parts = (
        proptest::collection::vec(0u8..3, 0..200),
        proptest::option::of("[a-z]{0,5}"),
        proptest::collection::vec(("[a-z]{1,3}", "[a-z]{0,9}"), 0..3),
        proptest::option::of(any::<u64>()),
    );
    parts.prop_map(|(payload, key, properties, event_time_ms)| {
        let message = Message::new(payload);
        let message = properties
            .into_iter()
            .fold(message, |message, (name, value)| {
                message.property(name, value)
            });
        let message = match key {
            Some(key) => message.key(key),
            None => message,
        };
        match event_time_ms {
            Some(ms) => message.event_time_ms(ms),
            None => message,
        }
    })
}

proptest! {
    /// What a producer packs a consumer unpacks, compressed or not.
    #[test]
    fn messages_survive_the_way_from_producer_to_consumer(
        messages in proptest::collection::vec(message(), 1..30),
        compression in prop_oneof![
            Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)
        ],
    ) {
        let now = Instant::now();
        let mut queue = Queue::new(batching(1 << 20, true), None);
        queue.begin(Some(99), None).unwrap();
        let session = begin(&mut queue);
        for message in &messages {
            queue.append(message, cost(), || now, &mut Wakers::default()).unwrap();
        }
        let Next::Seal(mut batch) = queue.next(session, now, Waker::noop()) else {
            panic!("nothing is in flight, so it goes at once");
        };
        let batch = batch.encode(&Bytes::from_static(b"p"), INSTANCE, 7, compression).unwrap();
        let delivery = v1::Delivery { base_index: 500, body: batch, format: 1, ..v1::Delivery::default() };
        let delivered = crate::batch::Delivered::parse(delivery);
        let topic = Arc::new("t".parse().unwrap());
        let mut unpacked = delivered.open(&topic, crate::message::Origin::default()).unwrap();
        for (at, sent) in messages.iter().enumerate() {
            let received = unpacked.next().unwrap().1.unwrap();
            prop_assert_eq!(received.index, Index(500 + at as u64));
            prop_assert_eq!(received.sequence_id, 100 + at as u64);
            prop_assert_eq!(&received.payload, &sent.record.value);
            prop_assert_eq!(received.key, sent.has_key.then(|| sent.record.key.clone()));
            prop_assert_eq!(received.event_time_ms, sent.event_time_ms);
            prop_assert_eq!((&*received.producer_name, received.publish_time_ms), ("p", 7));
            let properties = received.properties.iter();
            let properties: Vec<(Bytes, Bytes)> = properties
                .map(|(name, value)| (name.clone().into(), value.clone().into()))
                .collect();
            prop_assert_eq!(&properties, &sent.record.properties);
        }
        prop_assert!(unpacked.next().is_none());
    }
}

/// A deadline that passes on a full disk says why, and that the refused batch is not stored; one
/// that was left without an answer before may be.
#[test]
fn a_refused_batch_is_as_if_it_had_never_been_sent() {
    let full: ClientError = v1::ErrorDetail {
        code: v1::ErrorCode::StorageFull.into(),
        retryable: true,
        outcome: v1::Outcome::NotApplied.into(),
        message: "no space".to_owned(),
        ..v1::ErrorDetail::default()
    }
    .into();
    let lost = ClientError::Connection {
        what: "sending",
        reason: "gone".to_owned(),
        outcome: Outcome::Unknown,
    };
    let refused = [full.clone()];
    let in_doubt = [lost, full];
    for (failures, outcome) in [
        (&refused[..], Outcome::NotApplied),
        (&in_doubt[..], Outcome::Unknown),
    ] {
        let now = Instant::now();
        let mut queue = Queue::new(batching(40, true), None);
        let mut session = begin(&mut queue);
        append(&mut queue, 0, now);
        if let Next::Seal(mut batch) = queue.next(session, now, Waker::noop()) {
            let bytes = batch.encode(&Bytes::from_static(b"p"), INSTANCE, 7, Compression::None);
            done_by(|effects| queue.sealed(session, &batch, bytes, effects));
        }
        for failure in failures {
            let next = queue.next(session, now, Waker::noop());
            assert!(matches!(next, Next::Frame(1, _)), "{next:?}");
            queue.interrupted(failure);
            session = begin(&mut queue);
        }
        let timeout = ClientError::Timeout {
            what: "sending",
            after: Duration::from_secs(2),
            outcome: Outcome::Unknown,
            last: None,
        };
        let timeout = timeout.because_of(queue.last_error().cloned());
        assert!(timeout.to_string().contains("no space"), "{timeout}");
        assert_eq!(timeout.code(), Some(v1::ErrorCode::StorageFull));
        assert!(timeout.is_retryable());
        let (completed, ()) = done_by(|effects| queue.fail(&timeout, false, effects));
        let result = completed
            .into_iter()
            .next()
            .map(|completed| completed.result);
        let error = result.unwrap().unwrap_err();
        assert_eq!(error.outcome(), outcome, "{error}");
    }
}

/// H20: an id that an earlier producer of the name stored says nothing about this one's message.
#[test]
fn without_deduplication_only_own_ids_are_taken_for_stored() {
    let mut queue = Queue::new(Batching::disabled(), None);
    let now = Instant::now();
    queue.begin(Some(10), None).unwrap();
    let session = begin(&mut queue);
    let send = |queue: &mut Queue, id: u64| {
        let message = Message::new("x").sequence_id(id);
        let accepted = queue.append(&message, cost(), || now, &mut Wakers::default());
        accepted.unwrap().outcome
    };
    let below = send(&mut queue, 5);
    assert_eq!(pull(&mut queue, session, now).len(), 1);
    let session = begin_session(&mut queue);
    let (completed, ()) = done_by(|effects| queue.opened(session, Some(10), effects));
    assert!(completed.is_empty(), "it is not known");
    assert_eq!(
        pull(&mut queue, session, now).len(),
        1,
        "so it is sent again"
    );
    // What was sent before something that is stored is stored.
    let above = send(&mut queue, 11);
    let behind = send(&mut queue, 12);
    assert_eq!(pull(&mut queue, session, now).len(), 2);
    let session = begin_session(&mut queue);
    let (completed, ()) = done_by(|effects| queue.opened(session, Some(11), effects));
    let outcomes: Vec<_> = completed.iter().map(|one| &one.outcome).collect();
    assert_eq!(outcomes.len(), 2);
    assert!(Arc::ptr_eq(outcomes[0], &below) && Arc::ptr_eq(outcomes[1], &above));
    assert!(completed.iter().all(|one| one.result.is_ok()));
    let again = pull(&mut queue, session, now);
    assert_eq!(again.len(), 1);
    drop(behind);
}

/// A later session's error says nothing about what an earlier one left open.
#[test]
fn what_an_earlier_session_sent_is_unknown_when_the_name_is_lost() {
    let mut queue = Queue::new(Batching::disabled(), None);
    let now = Instant::now();
    let session = begin(&mut queue);
    append(&mut queue, 0, now);
    assert_eq!(pull(&mut queue, session, now).len(), 1);
    append(&mut queue, 1, now);
    let cut = ClientError::Connection {
        what: "sending",
        reason: "cut".to_owned(),
        outcome: Outcome::Unknown,
    };
    queue.interrupted(&cut);
    begin_session(&mut queue);
    let fenced: ClientError = v1::ErrorDetail {
        code: v1::ErrorCode::Fenced.into(),
        ..v1::ErrorDetail::default()
    }
    .into();
    let fenced = fenced.with_outcome(Outcome::NotApplied);
    let (completed, ()) = done_by(|effects| queue.fail(&fenced, true, effects));
    let outcome = |completed: &Completed| completed.result.as_ref().unwrap_err().outcome();
    let outcomes: Vec<_> = completed.iter().map(outcome).collect();
    assert_eq!(outcomes, [Outcome::Unknown, Outcome::NotApplied]);
}
