//! Bundles that are handed over while their topics wait for their turn to be sealed (H21).

use std::sync::Arc;

use aquifer_broker::{BalanceConfig, BrokerConfig};
use aquifer_metadata::{keys, record};
use aquifer_model::bundle::BundleRange;
use aquifer_model::listener::Listeners;
use aquifer_model::policy::Policies;
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::TopicRecord;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::{ConsumerEvent, Subscribe};
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ApiError, ErrorKind};

use crate::cluster::{Cluster, HeldStore, Member, config};
use crate::support::{Consumer, ctx, eventually, name, open, soon, subscribe};

const VICTIM: &str = "waiting";
/// Topics of one bundle that seal their ledgers at once.
const AT_ONCE: usize = 4;

/// Two brokers. The old owner of a bundle hands it over, and has no turn for its topics: as many as
/// have one hang.
struct HandOver {
    cluster: Cluster,
    held: Arc<HeldStore>,
    old: Member,
    new: Member,
    /// Their sessions stay open.
    blockers: Vec<String>,
    blocking: BundleRange,
    waiting: BundleRange,
}

impl HandOver {
    /// Everything is the new owner's at first, and what it has written is sealed by the old one's
    /// turn.
    async fn prepare() -> HandOver {
        let cluster = Cluster::new(BrokerConfig {
            balance: BalanceConfig {
                enabled: false,
                ..BalanceConfig::default()
            },
            ..config(16)
        })
        .await;
        let new = cluster.join("new").await;
        let held = HeldStore::over(&cluster.store);
        let waiting = cluster.bundle_of(&new, VICTIM).await;
        let (mut blockers, mut blocking) = (Vec::new(), None);
        for number in 0.. {
            let topic = format!("blocker-{number}");
            let bundle = cluster.bundle_of(&new, &topic).await;
            if bundle != waiting && *blocking.get_or_insert(bundle) == bundle {
                blockers.push(topic);
            }
            if blockers.len() == AT_ONCE {
                break;
            }
        }
        let blocking = blocking.unwrap();
        cluster.publish(&new, &[VICTIM.to_owned()]).await;
        let subscribed = attach(&new, shared()).await.unwrap();
        drop(subscribed);
        let old = cluster.join_over("old", held.clone()).await;
        cluster.transfer(blocking, &new, &old).await;
        cluster.transfer(waiting, &new, &old).await;
        HandOver {
            cluster,
            held,
            old,
            new,
            blockers,
            blocking,
            waiting,
        }
    }

    /// Hands the topic over; the old owner has no turn for it.
    async fn begin(&self) {
        self.cluster.publish(&self.old, &self.blockers).await;
        self.held.hold(Some("blocker"));
        let (old, new) = (&self.old, &self.new);
        self.cluster.transfer(self.blocking, old, new).await;
        self.held.holds(AT_ONCE).await;
        self.cluster.transfer(self.waiting, old, new).await;
    }
}

fn shared() -> Subscribe {
    Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe(VICTIM, "s")
    }
}

async fn attach(member: &Member, request: Subscribe) -> Result<Consumer, ApiError> {
    let context = ctx();
    let session = member.broker.subscribe(&context, request);
    soon("a consumer", session).await.map(Consumer::new)
}

/// A consumer, once the broker knows that it has the topic.
async fn attach_at_last(member: &Member) -> Consumer {
    eventually("a consumer", || async {
        attach(member, shared()).await.ok()
    })
    .await
}

/// Acknowledges, and asserts that no confirmation of it comes.
async fn is_not_confirmed(consumer: &mut Consumer, index: u64) {
    let acknowledge = consumer.ack(&[index], None);
    let id = acknowledge.request_id;
    if consumer.port.acknowledge(acknowledge).await.is_err() {
        return; // the session had ended by then
    }
    loop {
        match consumer.event().await {
            ConsumerEvent::Confirmed { request_id } => assert_ne!(request_id, id, "confirmed"),
            ConsumerEvent::Failed(_) => return,
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_owner_confirms_nothing_after_the_next_one_has_fenced_h21() {
    let world = HandOver::prepare().await;
    let mut before = attach_at_last(&world.old).await;
    world
        .cluster
        .publish(&world.old, &[VICTIM.to_owned()])
        .await;
    let taken = before.take(2).await;
    before.acknowledge(&[taken[0].0], None).await;
    world.begin().await;
    // The former owner does not seal the topic: the new owner fences it.
    let mut after = attach_at_last(&world.new).await;
    is_not_confirmed(&mut before, taken[1].0).await;
    // What was confirmed before stays so.
    assert_eq!(after.take(1).await, taken[1..]);
    after.acknowledge(&[taken[1].0], None).await;
    world.held.hold(None);
}

#[tokio::test]
async fn an_owner_without_an_open_ledger_opens_none_after_the_hand_over_h21() {
    let world = HandOver::prepare().await;
    let mut before = attach_at_last(&world.old).await;
    let taken = before.take(1).await;
    world.begin().await;
    // Everything is sealed: the new owner need not wait.
    let mut after = attach_at_last(&world.new).await;
    assert_eq!(after.take(1).await, taken);
    is_not_confirmed(&mut before, taken[0].0).await;
    after.acknowledge(&[taken[0].0], None).await;
    world.held.hold(None);
}

#[tokio::test]
async fn sessions_go_on_and_none_begins_until_the_turn_to_seal_comes_h21() {
    let world = HandOver::prepare().await;
    let mut before = attach_at_last(&world.old).await;
    world
        .cluster
        .publish(&world.old, &[VICTIM.to_owned()])
        .await;
    let taken = before.take(2).await;
    before.acknowledge(&[taken[0].0], None).await;
    world.begin().await;
    let (old, new) = (&world.old, &world.new);
    eventually("the old owner to refuse a session", || async {
        let error = attach(old, shared()).await.err()?;
        assert_eq!(error.kind, ErrorKind::Redirect, "{error}");
        assert_eq!(error.redirect, Some(Listeners::only_default(&new.url)));
        Some(())
    })
    .await;
    // With the ledgers that are open it goes on.
    before.acknowledge(&[taken[1].0], None).await;
    let context = ctx();
    let refused = world
        .old
        .broker
        .open_producer(&context, open(VICTIM, "other"));
    let refused = soon("an answer", refused).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Redirect, "{refused}");
    let stats = world
        .old
        .broker
        .topic_stats(&context, VICTIM.parse().unwrap());
    let refused = soon("an answer", stats).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Redirect, "{refused}");
    // Its turn comes: the session ends, and what it was told counts at the new owner.
    world.held.hold(None);
    let error = before.error().await;
    let at = Listeners::only_default(&world.new.url);
    assert_eq!(error.redirect, Some(at), "{error}");
    let mut after = attach_at_last(&world.new).await;
    world
        .cluster
        .publish(&world.new, &[VICTIM.to_owned()])
        .await;
    assert!(after.take(1).await[0].0 > taken[1].0);
}

/// What the old owner could not record any more is no part of what it notes in the topic's record.
#[tokio::test]
async fn a_note_counts_no_acknowledgement_that_was_given_up_h21() {
    let world = HandOver::prepare().await;
    let (old, new) = (&world.old, &world.new);
    let mut before = attach_at_last(old).await;
    // Its ledger of messages is open, and that of its cursors is not.
    world.cluster.publish(old, &[VICTIM.to_owned()]).await;
    let taken = before.take(2).await;
    world.begin().await;
    eventually("the old owner to refuse a session", || async {
        let error = attach(old, shared()).await.err()?;
        (error.redirect == Some(Listeners::only_default(&new.url))).then_some(())
    })
    .await;
    is_not_confirmed(&mut before, taken[1].0).await;
    let key = keys::topic(&name(VICTIM));
    let record = eventually("the messages to be sealed", || async {
        let stored = world.cluster.store.get(&key).await.unwrap()?;
        let record: TopicRecord = record::decode(&stored).unwrap();
        record.segments.last()?.sealed.then_some(record)
    })
    .await;
    let end = record.segments.last().unwrap().end_index;
    let noted = record.at_rest.filter(|noted| noted.end_index == end);
    let messages = noted.map(|noted| noted.messages);
    assert!(
        messages.is_none_or(|messages| messages == 2),
        "{messages:?}"
    );
    world.held.hold(None);
}

/// Metadata that does not answer for one bundle keeps no broker from seeing that another has moved.
#[tokio::test]
async fn a_move_is_seen_while_another_bundle_is_being_acquired() {
    let world = HandOver::prepare().await;
    drop(attach_at_last(&world.old).await);
    let (old, new) = (&world.old, &world.new);
    let context = ctx();
    let fresh: NamespaceName = "public/fresh".parse().unwrap();
    let made = old
        .broker
        .create_namespace(&context, fresh, Policies::default());
    soon("a namespace", made).await.unwrap();
    world.held.hold(Some("public/fresh"));
    let acquires = old
        .broker
        .open_producer(&context, open("public/fresh/topic", "p"));
    let moves = async {
        world.held.holds(1).await;
        world.cluster.transfer(world.waiting, old, new).await;
        eventually("the move to be seen", || async {
            let error = attach(old, shared()).await.err()?;
            (error.kind == ErrorKind::Redirect).then_some(())
        })
        .await;
        world.held.hold(None);
    };
    let (acquired, ()) = tokio::join!(acquires, moves);
    let found = acquired.map(drop).map_err(|error| error.kind);
    assert!(
        matches!(found, Ok(()) | Err(ErrorKind::Redirect)),
        "{found:?}"
    );
}
