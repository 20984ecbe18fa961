//! Who may produce under a name.

use aquifer_protocol_api::broker::OpenProducer;
use aquifer_protocol_api::error::ErrorKind;

use crate::support::{Harness, ctx, instance, kind, open, soon};
use aquifer_protocol_api::broker::BrokerApi;

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
    // A delayed request is refused even when nobody is there any more.
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
    crate::support::until("the add to be on its way", || async {
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
