use std::collections::VecDeque;

use futures::future::poll_fn;
use futures::{FutureExt, task::noop_waker};
use proptest::prelude::*;

use super::*;

/// A peer that sends these pieces, and then ends the stream or falls silent.
struct Peer {
    pieces: VecDeque<Bytes>,
    silent: bool,
}

impl Body for Peer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if self.silent => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

fn message(bytes: usize) -> Vec<u8> {
    let mut message = vec![0];
    message.extend(u32::try_from(bytes).unwrap().to_be_bytes());
    message.resize(HEADER_BYTES + bytes, 7);
    message
}

const LIMITS: InboundLimits = InboundLimits {
    message_bytes_max: 1_000,
    message_timeout: Duration::from_secs(30),
    unary: false,
    decoded_bytes: |bytes| bytes / 2,
};

fn budgets(room: usize, waiting: usize) -> InboundBudgets {
    InboundBudgets {
        room: ByteBudget::new(room),
        waiting: ByteBudget::new(waiting),
        calls: Arc::new(Semaphore::new(1)),
    }
}

fn body(
    pieces: &[&[u8]],
    silent: bool,
    limits: InboundLimits,
    budgets: &InboundBudgets,
) -> (InboundBody<Peer>, Inbound) {
    let pieces = pieces.iter().map(|piece| Bytes::copy_from_slice(piece));
    let peer = Peer {
        pieces: pieces.collect(),
        silent,
    };
    InboundBody::new(peer, limits, budgets.clone(), |error| Box::new(error))
}

/// The next that the handler gets: with the header of a message, what has come of it.
async fn next(body: &mut InboundBody<Peer>) -> Option<Result<Bytes, InboundError>> {
    let header = match piece(body).await? {
        Ok(piece) if body.left > 0 && piece.len() == HEADER_BYTES => piece,
        other => return Some(other),
    };
    Some(match piece(body).now_or_never().flatten() {
        Some(Ok(rest)) => Ok([header, rest].concat().into()),
        Some(Err(error)) => Err(error),
        None => Ok(header),
    })
}

/// The next piece that the handler gets.
async fn piece(body: &mut InboundBody<Peer>) -> Option<Result<Bytes, InboundError>> {
    let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
    Some(match frame {
        Ok(frame) => Ok(frame.into_data().expect("no trailers here")),
        Err(error) => Err(*error.downcast().expect("an error of ours")),
    })
}

fn is_waiting(body: &mut InboundBody<Peer>) -> bool {
    let waker = noop_waker();
    let mut context = Context::from_waker(&waker);
    Pin::new(body).poll_frame(&mut context).is_pending()
}

#[tokio::test]
async fn a_message_is_paid_for_before_it_is_read_until_the_next_is_asked_for() {
    let budgets = budgets(10_000, 100);
    let (one, two) = (message(100), message(10));
    let both = [one.clone(), two.clone()].concat();
    let (mut body, _inbound) = body(
        &[&both[..3], &both[3..50], &both[50..]],
        true,
        LIMITS,
        &budgets,
    );
    let mut got = next(&mut body).await.unwrap().unwrap().to_vec();
    assert_eq!(budgets.room.used_bytes(), 155, "all of it at its beginning");
    got.extend(next(&mut body).await.unwrap().unwrap());
    assert_eq!(got, one);
    assert_eq!(next(&mut body).await.unwrap().unwrap(), two);
    assert_eq!(budgets.room.used_bytes(), 20);
    assert!(is_waiting(&mut body));
    assert_eq!(budgets.room.used_bytes(), 0, "an idle stream holds nothing");
}

#[tokio::test]
async fn the_header_of_a_message_goes_alone_so_that_the_codec_makes_room_once() {
    let budgets = budgets(10_000, 100);
    let both = [message(100), message(0)].concat();
    let (mut body, _inbound) = body(&[&both[..60], &both[60..]], true, LIMITS, &budgets);
    let mut lengths = Vec::new();
    while let Some(Some(Ok(piece))) = piece(&mut body).now_or_never() {
        lengths.push(piece.len());
    }
    assert_eq!(lengths, [HEADER_BYTES, 55, 45, HEADER_BYTES]);
}

#[tokio::test]
async fn a_handler_keeps_the_bytes_or_has_them_from_elsewhere() {
    let budgets = budgets(10_000, 100);
    let topic = ByteBudget::new(1_000);
    let both = [message(100), message(10)].concat();
    let (mut body, inbound) = body(&[&both], true, LIMITS, &budgets);
    next(&mut body).await.unwrap().unwrap();
    let (kept, bytes) = inbound.take();
    assert_eq!(bytes, 100);
    inbound.read_into(topic.clone());
    next(&mut body).await.unwrap().unwrap();
    assert_eq!((budgets.room.used_bytes(), topic.used_bytes()), (155, 20));
    drop((kept, body, inbound));
    assert_eq!((budgets.room.used_bytes(), topic.used_bytes()), (0, 0));
}

#[tokio::test]
async fn messages_wait_for_room_and_too_many_that_wait_are_refused() {
    let budgets = budgets(200, 150);
    let held = budgets.room.try_acquire(200).unwrap();
    let large = message(100);
    let (mut first, _held) = body(&[&large], true, LIMITS, &budgets);
    assert!(is_waiting(&mut first));
    let (mut second, _other) = body(&[&large], true, LIMITS, &budgets);
    assert_eq!(next(&mut second).await, Some(Err(InboundError::Overloaded)));
    assert_eq!(
        next(&mut second).await,
        None,
        "nothing comes after an error"
    );
    drop(held);
    assert_eq!(next(&mut first).await.unwrap().unwrap(), large);
    assert_eq!(budgets.waiting.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_never_ends_gives_its_bytes_back() {
    let budgets = budgets(10_000, 100);
    for cut in [1, 5, 104] {
        let (mut body, inbound) = body(&[&message(100)[..cut]], true, LIMITS, &budgets);
        let late = loop {
            if let Err(error) = next(&mut body).await.unwrap() {
                break error;
            }
        };
        assert_eq!(late, InboundError::Late(LIMITS.message_timeout), "{cut}");
        drop((body, inbound));
        assert_eq!(budgets.room.used_bytes(), 0);
    }
    // A stream between two messages may be silent for ever.
    let (mut body, _inbound) = body(&[&message(100)], true, LIMITS, &budgets);
    next(&mut body).await.unwrap().unwrap();
    let day = sleep(Duration::from_secs(86_400));
    tokio::select! {
        end = next(&mut body) => unreachable!("an idle stream ended: {end:?}"),
        () = day => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_is_counted_until_its_answer_and_must_come_at_once() {
    let budgets = budgets(10_000, 100);
    let unary = InboundLimits {
        unary: true,
        ..LIMITS
    };
    let (mut call, answering) = body(&[&message(100)], false, unary, &budgets);
    next(&mut call).await.unwrap().unwrap();
    assert_eq!(next(&mut call).await, None);
    drop(call);
    assert_eq!(budgets.room.used_bytes(), 155, "its handler is at work");
    let (mut more, _more) = body(&[&message(1)], false, unary, &budgets);
    assert_eq!(next(&mut more).await, Some(Err(InboundError::Overloaded)));
    drop(answering);
    assert_eq!(budgets.room.used_bytes(), 0);
    let (mut silent, _silent) = body(&[], true, unary, &budgets);
    let late = InboundError::Late(LIMITS.message_timeout);
    assert_eq!(next(&mut silent).await, Some(Err(late)));
}

#[tokio::test]
async fn a_message_above_its_limit_is_refused_at_its_header() {
    let budgets = budgets(10_000, 100);
    let (mut body, _inbound) = body(&[&message(1_001)[..5]], true, LIMITS, &budgets);
    let too_large = InboundError::TooLarge {
        bytes: 1_001,
        max: 1_000,
    };
    assert_eq!(next(&mut body).await, Some(Err(too_large)));
    assert_eq!(budgets.room.used_bytes(), 0);
}

proptest! {
    /// However a stream is cut, the handler gets the same bytes, never two messages in a piece.
    #[test]
    fn every_cut_gives_the_same_messages(
        lengths in prop::collection::vec(0..300_usize, 0..8),
        cuts in prop::collection::vec(1..400_usize, 0..40),
    ) {
        let all: Vec<u8> = lengths.iter().flat_map(|bytes| message(*bytes)).collect();
        let mut pieces = Vec::new();
        let mut rest = all.as_slice();
        for cut in cuts {
            let (piece, tail) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        pieces.push(rest);
        let budgets = budgets(1_000, 100);
        let (mut body, inbound) = body(&pieces, false, LIMITS, &budgets);
        let mut got = Vec::new();
        while let Some(piece) = next(&mut body).now_or_never().expect("there is room") {
            let piece = piece.expect("every message is within its limit");
            let ends: Vec<usize> = lengths
                .iter()
                .scan(0, |end, bytes| {
                    *end += bytes + HEADER_BYTES;
                    Some(*end)
                })
                .collect();
            let (from, to) = (got.len(), got.len() + piece.len());
            prop_assert!(!ends.iter().any(|end| from < *end && *end < to));
            got.extend(piece);
        }
        prop_assert_eq!(got, all);
        drop((body, inbound));
        prop_assert_eq!(budgets.room.used_bytes(), 0);
    }
}
