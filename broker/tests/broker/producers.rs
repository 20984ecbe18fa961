//! Which producer may produce under a name.

use aquifer_model::place::Place;
use aquifer_model::policy::EffectivePolicies;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ErrorKind, Outcome};
use aquifer_protocol_api::producer::OpenProducer;

use crate::support::{Harness, ctx, instance, kind, known, open, soon};

#[tokio::test]
async fn a_live_foreign_instance_keeps_the_name_unless_it_is_taken_over() {
    let harness = Harness::start().await;
    let mut first = harness.producer("orders", "p").await;
    first.publish(&["a"]).await;
    let rival = OpenProducer {
        instance: instance(2),
        ..open("orders", "p")
    };
    let busy = harness.try_producer(rival.clone()).await;
    assert_eq!(kind(&busy), Some(ErrorKind::ProducerBusy));
    let taking = OpenProducer {
        take_over: true,
        ..rival
    };
    let mut second = harness.try_producer(taking).await.unwrap();
    assert_eq!(second.opened.last_sequence_id, Some(0));
    assert_eq!(first.error().await.kind, ErrorKind::Fenced);
    second.publish(&["b"]).await;
    // The loser comes back and finds the name in use.
    let back = OpenProducer {
        epoch: 1,
        ..open("orders", "p")
    };
    assert_eq!(
        kind(&harness.try_producer(back).await),
        Some(ErrorKind::ProducerBusy)
    );
}

#[tokio::test]
async fn an_instance_that_reconnects_replaces_itself_and_never_goes_back() {
    let harness = Harness::start().await;
    let epoch = |epoch| OpenProducer {
        epoch,
        ..open("orders", "p")
    };
    let mut first = harness.try_producer(epoch(3)).await.unwrap();
    let mut second = harness.try_producer(epoch(4)).await.unwrap();
    assert_eq!(first.error().await.kind, ErrorKind::Fenced);
    second.publish(&["a"]).await;
    let late = harness.try_producer(epoch(3)).await;
    assert_eq!(kind(&late), Some(ErrorKind::Fenced));
    second.publish(&["b"]).await;
    drop(second);
    // A delayed request is refused even when no producer is there any more.
    let late = harness.try_producer(epoch(2)).await;
    assert_eq!(kind(&late), Some(ErrorKind::Fenced));
    assert!(harness.try_producer(epoch(5)).await.is_ok());
}

#[tokio::test]
async fn opening_waits_for_adds_in_flight_and_answers_what_they_became() {
    let harness = Harness::start().await;
    let bookie = harness.world.bookies.ids()[0];
    let mut first = harness.producer("orders", "p").await;
    first.publish(&["a"]).await;
    harness.world.bookies.hold(bookie);
    first.send(&["b"]).await;
    crate::support::until("the add to be in flight", || async {
        harness.world.bookies.held(bookie) > 0
    })
    .await;
    drop(first);
    let context = ctx();
    let opening = harness.broker.open_producer(
        &context,
        OpenProducer {
            epoch: 1,
            ..open("orders", "p")
        },
    );
    tokio::pin!(opening);
    // It cannot know the answer yet.
    tokio::select! {
        biased;
        _ = &mut opening => panic!("opened although an add is in flight"),
        () = tokio::task::yield_now() => {}
    }
    harness.world.bookies.release(bookie);
    let session = soon("the open", opening).await.unwrap();
    assert_eq!(session.opened.last_sequence_id, Some(1));
}

#[tokio::test]
async fn a_producer_that_went_away_frees_its_name() {
    let harness = Harness::start().await;
    let first = harness.producer("orders", "p").await;
    drop(first);
    let rival = OpenProducer {
        instance: instance(2),
        ..open("orders", "p")
    };
    crate::support::until("the name to be free", || async {
        harness.try_producer(rival.clone()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn drawn_names_are_unique() {
    let harness = Harness::start().await;
    let anonymous = OpenProducer {
        name: None,
        ..open("orders", "p")
    };
    let one = harness.try_producer(anonymous.clone()).await.unwrap();
    let two = harness.try_producer(anonymous).await.unwrap();
    assert_ne!(one.opened.name, two.opened.name);
}

/// How a topic comes to its next owner.
#[derive(Debug, Clone, Copy)]
enum Next {
    Stays,
    HandedOver,
    TakenOver,
}

/// H20: `p` of the first object has stored a message and gone away; another object stores under the
/// name. The first comes back with a message of its own under the other's id.
async fn superseded(deduplication: bool, next: Next) {
    let harness = Harness::start().await;
    harness
        .set_policies(EffectivePolicies {
            deduplication,
            ..EffectivePolicies::default()
        })
        .await;
    let mut first = harness.producer("orders", "p").await;
    first.publish(&["m0"]).await;
    let incarnation = first.opened.incarnation;
    drop(first);
    let rival = OpenProducer {
        instance: instance(2),
        ..open("orders", "p")
    };
    let mut second = crate::support::eventually("the name to be free", || async {
        harness.try_producer(rival.clone()).await.ok()
    })
    .await;
    second.publish(&["mb"]).await;
    drop(second);
    let harness = match next {
        Next::Stays => harness,
        Next::HandedOver => harness.restart().await,
        Next::TakenOver => harness.rival().await,
    };
    let back = OpenProducer {
        epoch: 1,
        ..open("orders", "p")
    };
    let back = known(incarnation, back);
    let refused = harness.try_producer(back).await;
    assert_eq!(kind(&refused), Some(ErrorKind::Fenced), "{next:?}");
    // The last instance of the name may come back, and so may a new one.
    let rival = OpenProducer { epoch: 1, ..rival };
    let last = harness.try_producer(known(incarnation, rival)).await;
    assert_eq!(last.unwrap().opened.last_sequence_id, Some(1));
    let fresh = OpenProducer {
        instance: instance(3),
        take_over: true,
        ..open("orders", "p")
    };
    let mut fresh = harness.try_producer(fresh).await.unwrap();
    assert!(!fresh.publish(&["mc"]).await.duplicate);
    let mut reader = harness.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(3).await, ["m0", "mb", "mc"]);
}

#[tokio::test]
async fn who_comes_back_after_another_had_its_name_is_fenced_h20() {
    for deduplication in [true, false] {
        superseded(deduplication, Next::Stays).await;
    }
}

#[tokio::test]
async fn the_last_instance_of_a_name_is_known_after_a_hand_over_h20() {
    for deduplication in [true, false] {
        superseded(deduplication, Next::HandedOver).await;
    }
}

#[tokio::test]
async fn the_last_instance_of_a_name_is_known_after_a_crash_h20() {
    for deduplication in [true, false] {
        superseded(deduplication, Next::TakenOver).await;
    }
}

/// What the log remembers of a name is whose batches it holds.
#[tokio::test]
async fn a_batch_of_another_instance_is_refused_h20() {
    let harness = Harness::start().await;
    let rival = OpenProducer {
        instance: instance(2),
        ..open("orders", "p")
    };
    let mut second = harness.try_producer(rival).await.unwrap();
    let foreign = crate::support::batch("p", 0, &["x"]);
    second.send_batch(foreign).await.unwrap();
    assert_eq!(second.error().await.kind, ErrorKind::InvalidArgument);
}

/// A name that the broker drew pushes out no name that a client chose.
#[tokio::test]
async fn any_number_of_drawn_names_forget_no_named_producer() {
    let harness = Harness::start().await;
    let mut named = harness.producer("orders", "p").await;
    let stored = named.publish(&["a"]).await;
    drop(named);
    let anonymous = OpenProducer {
        name: None,
        ..open("orders", "p")
    };
    for _ in 0..=aquifer_model::limits::DEDUP_PRODUCERS_MAX {
        let session = harness.try_producer(anonymous.clone()).await.unwrap();
        assert!(session.opened.name.is_drawn());
    }
    let again = OpenProducer {
        epoch: 1,
        ..open("orders", "p")
    };
    let mut named = harness.try_producer(again).await.unwrap();
    assert_eq!(named.opened.last_sequence_id, Some(0));
    let again = crate::support::batch("p", 0, &["a"]);
    named.send_batch(again).await.unwrap();
    let receipt = named.receipt().await.unwrap();
    assert!(receipt.duplicate);
    assert_eq!(receipt.stored, stored.stored);
}

/// A producer that loses its name with messages in flight does not know what became of them.
#[tokio::test]
async fn a_fenced_producer_is_not_told_that_what_is_in_flight_is_not_stored() {
    let harness = Harness::start().await;
    let bookie = harness.world.bookies.ids()[0];
    let mut first = harness.producer("orders", "p").await;
    first.publish(&["a"]).await;
    harness.world.bookies.hold(bookie);
    first.send(&["b"]).await;
    crate::support::until("the add to be in flight", || async {
        harness.world.bookies.held(bookie) > 0
    })
    .await;
    let context = ctx();
    let taking = OpenProducer {
        instance: instance(2),
        take_over: true,
        ..open("orders", "p")
    };
    let opening = harness.broker.open_producer(&context, taking);
    let told = async {
        let error = first.error().await;
        harness.world.bookies.release(bookie);
        error
    };
    let (second, error) = soon("the take-over", async { tokio::join!(opening, told) }).await;
    assert_eq!(
        (error.kind, error.outcome),
        (ErrorKind::Fenced, Outcome::Unknown)
    );
    // And this one was stored.
    assert_eq!(second.unwrap().opened.last_sequence_id, Some(1));
}

/// What producers have stored since the last snapshot is learnt from the heads of entries: a load
/// reads no message.
#[tokio::test]
async fn a_topic_that_is_loaded_again_knows_its_producers_without_reading_messages() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let mut stored = Vec::new();
    for at in 0..20 {
        stored.push(producer.publish(&[&format!("message {at}")]).await);
    }
    let incarnation = producer.opened.incarnation;
    // It crashes: nothing is put into a snapshot.
    let rival = harness.rival().await;
    let before = rival.world.bookies.reads();
    let again = OpenProducer {
        epoch: 1,
        ..open("orders", "p")
    };
    let mut producer = rival.try_producer(known(incarnation, again)).await.unwrap();
    assert_eq!(producer.opened.last_sequence_id, Some(19));
    let after = rival.world.bookies.reads();
    assert!(after.prefixes >= before.prefixes + 20, "{after:?}");
    // The last entry is read whole, to know where the log ends.
    assert!(after.entries <= before.entries + 1, "{after:?}");
    let repeated = crate::support::batch("p", 7, &["message 7"]);
    producer.send_batch(repeated).await.unwrap();
    let receipt = producer.receipt().await.unwrap();
    assert!(receipt.duplicate);
    assert_eq!(receipt.stored, stored[7].stored);
}
