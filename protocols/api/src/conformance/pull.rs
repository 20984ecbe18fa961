//! What requests that stand alone must do, for a broker behind its port and for a protocol
//! handler in front of one.

use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::topic::{NameError, SubscriptionName, TopicName};
use aquifer_runtime::clock::{SystemClock, sleep};
use async_trait::async_trait;
use bytes::Bytes;

use crate::conformance::{FakeBroker, Refusal};
use crate::consumer::Held;
use crate::context::RequestContext;
use crate::data_plane::DataPlane;
use crate::error::{ApiError, ErrorKind};
use crate::pull::{
    Append, Appended, Commit, Locate, Located, Read, ReadBatches, ReadLimits, TopicBounds,
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
/// Long enough for a request to reach its broker.
const SHORT: Duration = Duration::from_millis(100);
/// Of everything.
const ALL: ReadLimits = ReadLimits {
    bytes_max: 1 << 20,
    batches_max: 100,
    bytes_min: 0,
};
/// A topic that the checks have for themselves, and which may be created by using it.
const TOPIC: &str = "pulled";

/// A client under test.
#[async_trait]
pub trait PullClient: Send + Sync {
    /// Stores a body.
    async fn append(&self, topic: &str, body: Bytes) -> Result<Appended, Refusal>;

    /// Reads from an index.
    async fn read(
        &self,
        topic: &str,
        from: Index,
        limits: ReadLimits,
        wait: Duration,
    ) -> Result<ReadBatches, Refusal>;

    /// Finds a place.
    async fn locate(&self, topic: &str, place: Place) -> Result<Located, Refusal>;

    /// Asks for the extent of a topic.
    async fn bounds(&self, topic: &str) -> Result<TopicBounds, Refusal>;

    /// Moves a subscription.
    async fn commit(
        &self,
        topic: &str,
        subscription: &str,
        index: Index,
        create: bool,
    ) -> Result<Index, Refusal>;

    /// Asks where a subscription stands.
    async fn committed(&self, topic: &str, subscription: &str) -> Result<Option<Index>, Refusal>;
}

/// A client that calls the port itself.
pub struct Direct<'a>(pub &'a dyn DataPlane);

/// Runs every check that any broker passes. `batch` makes a body of one message and no producer
/// from a number.
pub async fn check_pull(client: &dyn PullClient, batch: &(dyn Fn(u64) -> Bytes + Sync)) {
    what_is_appended_is_read_back(client, batch).await;
    reads_keep_their_limits(client).await;
    places_are_found(client).await;
    reads_wait_for_what_is_appended(client, batch).await;
    commits_go_forwards_and_backwards(client).await;
}

/// What a handler must do besides: pass failures on, and refuse bad names itself.
pub async fn check_pull_handler(broker: &FakeBroker, client: &dyn PullClient) {
    check_pull(client, &|number| number.to_be_bytes().to_vec().into()).await;
    for kind in ErrorKind::ALL {
        let topic = FakeBroker::failing_topic(kind);
        for refusal in refusals(client, &topic, "s").await {
            let refusal = refusal.expect("this topic fails");
            assert_eq!(refusal.kind, kind, "{refusal:?}");
            assert_eq!(refusal.outcome, FakeBroker::outcome_of(kind), "{refusal:?}");
        }
    }
    let before = broker.calls();
    for (topic, subscription) in [
        ("../etc", "s"),
        ("nul\0", "s"),
        (TOPIC, "\u{202e}x"),
        (TOPIC, ""),
    ] {
        let refusals = refusals(client, topic, subscription).await;
        // Only the last two name a subscription.
        let wrong = if topic == TOPIC {
            &refusals[4..]
        } else {
            &refusals
        };
        for refusal in wrong {
            let kind = refusal.as_ref().map(|refusal| refusal.kind);
            assert_eq!(kind, Some(ErrorKind::InvalidArgument));
        }
        if topic != TOPIC {
            assert_eq!(broker.calls(), before, "the broker never sees a bad name");
        }
    }
}

async fn refusals(client: &dyn PullClient, topic: &str, name: &str) -> [Option<Refusal>; 6] {
    let body = Bytes::from_static(b"x");
    [
        client.append(topic, body).await.err(),
        client
            .read(topic, Index(0), ALL, Duration::ZERO)
            .await
            .err(),
        client.locate(topic, Place::Latest).await.err(),
        client.bounds(topic).await.err(),
        client.commit(topic, name, Index(0), true).await.err(),
        client.committed(topic, name).await.err(),
    ]
}

/// I2: the same bytes at dense indexes.
async fn what_is_appended_is_read_back(
    client: &dyn PullClient,
    batch: &(dyn Fn(u64) -> Bytes + Sync),
) {
    let mut stored = Vec::new();
    for number in 0..5 {
        let appended = client.append(TOPIC, batch(number)).await;
        let appended = appended.expect("this topic takes everything");
        assert_eq!((appended.message_count, appended.duplicate), (1, false));
        assert!(appended.broker_time_ms.is_some());
        stored.push(appended.stored.expect("it says where"));
    }
    let bases: Vec<u64> = stored.iter().map(|at| at.base_index.0).collect();
    assert_eq!(bases, [0, 1, 2, 3, 4]);
    let read = client.read(TOPIC, Index(0), ALL, Duration::ZERO).await;
    let read = read.expect("this topic can be read");
    let bodies: Vec<Bytes> = read
        .batches
        .iter()
        .map(|found| found.body.clone())
        .collect();
    assert_eq!(bodies, (0..5).map(batch).collect::<Vec<_>>());
    let places: Vec<_> = read.batches.iter().map(|found| found.at).collect();
    assert_eq!(places, stored, "a batch says where it is stored");
    assert_eq!((read.next, read.gap), (Index(5), None));
    let bounds = client.bounds(TOPIC).await.expect("bounds");
    assert_eq!(bounds, read.bounds);
    assert_eq!((bounds.first, bounds.visible_end), (Index(0), Index(5)));
    assert!(bounds.end >= bounds.visible_end);
}

async fn reads_keep_their_limits(client: &dyn PullClient) {
    let limited = async |from, limits| {
        let read = client
            .read(TOPIC, Index(from), limits, Duration::ZERO)
            .await;
        let read = read.expect("this topic can be read");
        (read.batches.len(), read.next.0)
    };
    let few = ReadLimits {
        batches_max: 2,
        ..ALL
    };
    assert_eq!(limited(1, few).await, (2, 3));
    let small = ReadLimits {
        bytes_max: 1,
        ..ALL
    };
    assert_eq!(limited(1, small).await, (1, 2), "one in any case");
    assert_eq!(limited(5, ALL).await, (0, 5), "nothing at the end");
    let behind = client.read(TOPIC, Index(6), ALL, Duration::ZERO).await;
    let refused = behind.expect_err("nothing is behind the end");
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
}

async fn places_are_found(client: &dyn PullClient) {
    let read = client.read(TOPIC, Index(0), ALL, Duration::ZERO).await;
    let third = read.expect("this topic can be read").batches[3].clone();
    let found = async |place| client.locate(TOPIC, place).await.expect("a place");
    let by_index = found(Place::Index(Index(3))).await;
    let message = by_index.message.expect("a message is there");
    assert_eq!(message.position.ledger, third.at.ledger);
    assert_eq!(message.position.entry, third.at.entry);
    assert_eq!(message.broker_time_ms, third.broker_time_ms);
    assert_eq!(found(Place::Position(message.position)).await, by_index);
    // Several may be of one time.
    let by_time = found(Place::TimeMs(third.broker_time_ms)).await;
    let time = by_time.message.map(|message| message.broker_time_ms);
    assert_eq!(time, Some(third.broker_time_ms));
    assert!(by_time.index <= Index(3));
    assert_eq!(found(Place::Earliest).await.index, Index(0));
    let late = Place::TimeMs(third.broker_time_ms + 1_000_000_000);
    for place in [Place::Latest, Place::Index(Index(99)), late] {
        let end = found(place).await;
        assert_eq!((end.index, end.message), (Index(5), None), "{place}");
    }
}

async fn reads_wait_for_what_is_appended(
    client: &dyn PullClient,
    batch: &(dyn Fn(u64) -> Bytes + Sync),
) {
    let two = ReadLimits {
        bytes_min: 2 * batch(5).len(),
        ..ALL
    };
    let appends = async {
        for number in 5..7 {
            sleep(SHORT).await;
            client.append(TOPIC, batch(number)).await.expect("stored");
        }
    };
    let clock = SystemClock::shared();
    let began = clock.monotonic();
    let (read, ()) = tokio::join!(client.read(TOPIC, Index(5), two, LONG), appends);
    let read = read.expect("this topic can be read");
    assert_eq!((read.batches.len(), read.next), (2, Index(7)));
    assert!(
        clock.monotonic() - began < LONG,
        "nothing is waited for in vain"
    );
    let waited = client.read(TOPIC, Index(6), two, SHORT).await;
    let waited = waited.expect("this topic can be read");
    assert_eq!(waited.batches.len(), 1, "what is there when time is over");
    let ends = client.read(TOPIC, Index(7), two, SHORT).await;
    assert_eq!(ends.expect("this topic can be read").next, Index(7));
}

async fn commits_go_forwards_and_backwards(client: &dyn PullClient) {
    let commit = |index, create| client.commit(TOPIC, "group", Index(index), create);
    let stands = async || client.committed(TOPIC, "group").await.expect("an answer");
    assert_eq!(stands().await, None);
    let absent = commit(2, false).await.map_err(|refusal| refusal.kind);
    assert_eq!(absent, Err(ErrorKind::NotFound));
    for (index, create) in [
        (2, true),
        (2, true),
        (5, false),
        (1, false),
        (7, true),
        (0, false),
    ] {
        assert_eq!(commit(index, create).await, Ok(Index(index)));
        assert_eq!(stands().await, Some(Index(index)));
    }
    let behind = commit(8, false).await.map_err(|refusal| refusal.kind);
    assert_eq!(behind, Err(ErrorKind::InvalidArgument));
    assert_eq!(stands().await, Some(Index(0)));
}

fn topic_of(text: &str) -> Result<TopicName, Refusal> {
    text.parse().map_err(bad_name)
}

fn bad_name(error: NameError) -> Refusal {
    refusal(ApiError::new(ErrorKind::InvalidArgument, error.to_string()))
}

fn refusal(error: ApiError) -> Refusal {
    Refusal {
        kind: error.kind,
        outcome: error.outcome,
        message: error.message,
    }
}

#[async_trait]
impl PullClient for Direct<'_> {
    async fn append(&self, topic: &str, body: Bytes) -> Result<Appended, Refusal> {
        let request = Append {
            topic: topic_of(topic)?,
            incarnation: None,
            format: 1,
            body,
            held: Held::default(),
        };
        let appended = self
            .0
            .append(&RequestContext::anonymous("test"), request)
            .await;
        appended.map_err(refusal)
    }

    async fn read(
        &self,
        topic: &str,
        from: Index,
        limits: ReadLimits,
        wait: Duration,
    ) -> Result<ReadBatches, Refusal> {
        let request = Read {
            topic: topic_of(topic)?,
            incarnation: None,
            from,
            limits,
            wait,
        };
        let read = self
            .0
            .read(&RequestContext::anonymous("test"), request)
            .await;
        read.map_err(refusal)
    }

    async fn locate(&self, topic: &str, place: Place) -> Result<Located, Refusal> {
        let request = Locate {
            topic: topic_of(topic)?,
            incarnation: None,
            place,
        };
        let located = self
            .0
            .locate(&RequestContext::anonymous("test"), request)
            .await;
        located.map_err(refusal)
    }

    async fn bounds(&self, topic: &str) -> Result<TopicBounds, Refusal> {
        let (topic, ctx) = (topic_of(topic)?, RequestContext::anonymous("test"));
        self.0.bounds(&ctx, topic).await.map_err(refusal)
    }

    async fn commit(
        &self,
        topic: &str,
        subscription: &str,
        index: Index,
        create: bool,
    ) -> Result<Index, Refusal> {
        let request = Commit {
            topic: topic_of(topic)?,
            incarnation: None,
            subscription: SubscriptionName::new(subscription).map_err(bad_name)?,
            index,
            create,
        };
        let committed = self
            .0
            .commit(&RequestContext::anonymous("test"), request)
            .await;
        committed.map_err(refusal)
    }

    async fn committed(&self, topic: &str, subscription: &str) -> Result<Option<Index>, Refusal> {
        let topic = topic_of(topic)?;
        let name = SubscriptionName::new(subscription).map_err(bad_name)?;
        let committed = self
            .0
            .committed(&RequestContext::anonymous("test"), topic, name)
            .await;
        committed.map_err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fake_passes_the_checks_of_a_broker() {
        let broker = FakeBroker::default();
        check_pull_handler(&broker, &Direct(&broker)).await;
    }
}
