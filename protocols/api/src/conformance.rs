//! What every protocol handler must do, whatever its wire looks like. A handler's tests serve a
//! [`FakeBroker`], implement [`ConformanceClient`] with their protocol's own client, and call
//! [`check_all`]; [`pull`] has the same for requests that stand alone. Failed checks panic: this
//! module is for tests only.

mod fake;
pub mod pull;

use aquifer_model::id::Index;
use async_trait::async_trait;
use bytes::Bytes;

use crate::consumer::Delivery;
use crate::error::{ErrorKind, Outcome};
use crate::producer::Receipt;

pub use fake::FakeBroker;

/// What a client was told when its request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind, as the client understood it.
    pub kind: ErrorKind,
    /// What may have become of the request.
    pub outcome: Outcome,
    /// What happened, for people.
    pub message: String,
}

/// A client of the protocol under test.
#[async_trait]
pub trait ConformanceClient: Send + Sync {
    /// Opens a producer, publishes the batches in order, waits for all receipts, closes.
    async fn publish(&self, topic: &str, batches: Vec<Bytes>) -> Result<Vec<Receipt>, Refusal>;

    /// Opens a reader at the earliest message, grants credit for this many messages, and returns
    /// when they have come; closes.
    async fn read(&self, topic: &str, messages: u64) -> Result<Vec<Delivery>, Refusal>;

    /// Consumes this many messages of a subscription, acknowledges each, waits until that is
    /// confirmed; closes.
    async fn consume(&self, topic: &str, subscription: &str, messages: u64) -> Result<(), Refusal>;

    /// Creates a topic.
    async fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), Refusal>;
}

/// Runs every check.
pub async fn check_all(broker: &FakeBroker, client: &dyn ConformanceClient) {
    what_is_published_is_read_back(client).await;
    deliveries_wait_for_credit(broker, client).await;
    acknowledgements_arrive_and_are_confirmed(broker, client).await;
    a_failed_batch_fails_the_producer(broker, client).await;
    errors_keep_their_kind_and_outcome(client).await;
    bad_names_never_reach_the_broker(broker, client).await;
    sessions_end_with_their_clients(broker).await;
}

/// I2, I7: the same bytes, in the order sent, at dense indexes that the receipts tell.
async fn what_is_published_is_read_back(client: &dyn ConformanceClient) {
    let sizes = [1, 100, 70_000, 3, 1_500_000, 0, 20];
    let batches: Vec<Bytes> = (0_u8..)
        .zip(sizes)
        .map(|(fill, size)| vec![fill; size].into())
        .collect();
    let receipts = client.publish("round-trip", batches.clone()).await;
    let receipts = receipts.expect("the fake broker stores everything on this topic");
    let bases: Vec<Index> = receipts
        .iter()
        .map(|receipt| receipt.stored.expect("stored with a position").base_index)
        .collect();
    let expected: Vec<Index> = (0..7).map(Index).collect();
    assert_eq!(bases, expected, "receipts come in order and say where");
    let numbers: Vec<u64> = receipts
        .iter()
        .map(|receipt| receipt.frame_number)
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    let read = client.read("round-trip", 7).await;
    let read = read.expect("the fake broker serves this topic");
    let found: Vec<Bytes> = read.iter().map(|delivery| delivery.body.clone()).collect();
    assert_eq!(found, batches, "payloads are byte-identical and in order");
    let places: Vec<_> = read.iter().map(|delivery| Some(delivery.at)).collect();
    let stored: Vec<_> = receipts.iter().map(|receipt| receipt.stored).collect();
    assert_eq!(places, stored, "a delivery says where it is stored");
}

/// I13: the broker is told exactly the credit that the client gave.
async fn deliveries_wait_for_credit(broker: &FakeBroker, client: &dyn ConformanceClient) {
    let batches = vec![Bytes::from_static(b"x"); 10];
    let published = client.publish("credit", batches).await;
    published.expect("the fake broker stores everything on this topic");
    let read = client.read("credit", 3).await;
    assert_eq!(read.expect("three are there").len(), 3);
    assert_eq!(broker.credit_granted("credit"), 3);
}

/// I9: what the client acknowledged is what the broker hears, and the confirmation comes back.
async fn acknowledgements_arrive_and_are_confirmed(
    broker: &FakeBroker,
    client: &dyn ConformanceClient,
) {
    let batches = vec![Bytes::from_static(b"x"); 5];
    let published = client.publish("acks", batches).await;
    published.expect("the fake broker stores everything on this topic");
    let consumed = client.consume("acks", "s", 4).await;
    consumed.expect("four are there");
    let expected: Vec<Index> = (0..4).map(Index).collect();
    assert_eq!(broker.acknowledged("acks", "s"), expected);
}

/// H7: the error of the first failed batch reaches the client, and what came before is stored.
async fn a_failed_batch_fails_the_producer(broker: &FakeBroker, client: &dyn ConformanceClient) {
    let good = Bytes::from_static(b"good");
    let batches = vec![good.clone(), FakeBroker::POISON, good];
    let refusal = client.publish("poisoned", batches).await.map(|_| ());
    let refusal = refusal.expect_err("the second batch is refused");
    assert_eq!(refusal.kind, ErrorKind::Overloaded);
    assert_eq!(
        broker.stored("poisoned"),
        1,
        "nothing overtakes a failed batch"
    );
}

/// Every kind of failure is told apart on every kind of request.
async fn errors_keep_their_kind_and_outcome(client: &dyn ConformanceClient) {
    for kind in ErrorKind::ALL {
        let topic = FakeBroker::failing_topic(kind);
        let refusals = [
            client.publish(&topic, Vec::new()).await.map(|_| ()),
            client.read(&topic, 1).await.map(|_| ()),
            client.create_topic(&topic, 0).await,
        ];
        for refusal in refusals {
            let refusal = refusal.expect_err("this topic fails");
            assert_eq!(refusal.kind, kind, "{refusal:?}");
            assert_eq!(refusal.outcome, FakeBroker::outcome_of(kind), "{refusal:?}");
            assert!(!refusal.message.is_empty());
        }
    }
}

/// Names that could be misread anywhere further down are refused at the door, on every path.
async fn bad_names_never_reach_the_broker(broker: &FakeBroker, client: &dyn ConformanceClient) {
    let long = "x".repeat(64 * 1024);
    let before = broker.calls();
    for name in [
        "",
        "../etc",
        "a/b",
        "nul\0",
        "tab\t",
        "\u{202e}x",
        "..",
        &long,
    ] {
        refused(name, client.publish(name, Vec::new()).await);
        refused(name, client.read(name, 1).await);
        refused(name, client.create_topic(name, 0).await);
    }
    // An empty subscription is a reader, and slashes are allowed in these names.
    for name in ["nul\0", "tab\t", "\u{202e}x", "..", &long] {
        refused(name, client.consume("acks", name, 1).await);
    }
    refused(
        "many partitions",
        client.create_topic("many", u32::MAX).await,
    );
    assert_eq!(broker.calls(), before, "the broker never sees a bad name");
}

fn refused<T>(what: &str, result: Result<T, Refusal>) {
    let kind = result.err().map(|refusal| refusal.kind);
    let what = what.get(..40).unwrap_or(what).escape_debug();
    assert_eq!(kind, Some(ErrorKind::InvalidArgument), "{what}");
}

/// A session that outlives its client would hold memory and a producer's name for ever.
async fn sessions_end_with_their_clients(broker: &FakeBroker) {
    broker.wait_until_no_sessions().await;
}
