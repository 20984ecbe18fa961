//! Topics that another broker serves, asked for by callers that cannot go there: whichever broker
//! is asked has the owner answer. Callers that can are told where.

use std::sync::Arc;

use aquifer_model::content::TopicContent;
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::subscription::Properties;
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::admin::{Admin, Clear, Deletion, PageRequest};
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiResult, ErrorKind, Outcome};
use aquifer_protocol_api::operator::Operator;
use tokio::sync::Barrier;

use crate::cluster::{Cluster, Member};
use crate::partitions::several;
use crate::support::{ctx, kind, name, soon};

const PARTITIONS: u32 = 6;
const ALL: Clear = Clear {
    older_than_ms: None,
    dry_run: false,
};

/// A caller that knows nothing of brokers.
fn stranger() -> RequestContext {
    RequestContext {
        follows_redirects: false,
        ..ctx()
    }
}

fn s() -> SubscriptionName {
    SubscriptionName::new("s").unwrap()
}

/// What is done to one topic over one broker, from its creation to its deletion.
async fn life(cluster: &Cluster, at: &Member, topic: &str) {
    let (broker, context, named) = (&at.broker, stranger(), || name(topic));
    let created = broker.create_topic(&context, named(), 0);
    soon("a topic", created).await.unwrap();
    let subscribed =
        broker.create_subscription(&context, named(), s(), Place::Earliest, Properties::new());
    assert_eq!(soon("a subscription", subscribed).await, Ok(Index(0)));
    for _ in 0..4 {
        cluster.publish(at, &[topic.to_owned()]).await;
    }
    let peeked = broker.peek_messages(&context, named(), s(), 10);
    let peeked = soon("a look", peeked).await.unwrap();
    assert_eq!(peeked.batches.len(), 4);
    let range = IndexRange {
        first: Index(1),
        last: Index(1),
    };
    let skipped = broker.skip_messages(&context, named(), s(), Some(range));
    assert_eq!(soon("a skip", skipped).await, Ok(vec![range]));
    let moved = broker.seek_subscription(&context, named(), s(), Place::Index(Index(2)));
    assert_eq!(soon("a move", moved).await, Ok(Index(2)));
    let cleared = broker.clear_subscription(&context, named(), s(), ALL);
    assert_eq!(soon("clearing", cleared).await, Ok(2));
    let reset = broker.reset_subscriptions(&context, named());
    assert_eq!(soon("a reset", reset).await, Ok(Vec::new()));
    let stats = broker.topic_stats(&context, named());
    let stats = soon("statistics", stats).await.unwrap();
    assert_eq!((stats.end_index, stats.is_terminated()), (Index(4), false));
    let ends = soon("an end", broker.terminate_topic(&context, named())).await;
    assert_eq!(ends.unwrap()[0].end, Index(4));
    let unloaded = broker.unload_topic(&context, named());
    assert_eq!(soon("the topic to end", unloaded).await, Ok(1));
    let stats = broker.topic_stats(&context, named());
    let stats = soon("statistics", stats).await.unwrap();
    assert_eq!((stats.ends[0].end, stats.is_terminated()), (Index(4), true));
    let deleted = broker.delete_subscription(&context, named(), s(), false);
    soon("a deletion", deleted).await.unwrap();
    let content = broker.delete_topic_dry_run(&context, named());
    let content = soon("a dry run", content).await.unwrap();
    let expected = TopicContent {
        messages: content.messages,
        stored_bytes: content.stored_bytes,
        ..TopicContent::default()
    };
    assert_eq!(content, expected);
    let deleted = broker.delete_topic(&context, named(), Deletion::IfUnused);
    soon("a deletion", deleted).await.unwrap();
    let absent = broker.topic_stats(&context, named()).await;
    assert_eq!(kind(&absent), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn whichever_broker_is_asked_does_it() {
    let (cluster, members) = several(3).await;
    let (mut elsewhere, context) = (0, ctx());
    for (number, member) in members.iter().enumerate() {
        for other in 0..4 {
            let topic = format!("orders-{number}-{other}");
            // One that can go there is told where, and nothing is done here.
            let told = member.broker.unload_topic(&context, name(&topic)).await;
            assert_eq!(kind(&told), Some(ErrorKind::NotFound));
            let created = member.broker.create_topic(&context, name(&topic), 0).await;
            match kind(&created) {
                Some(ErrorKind::Redirect) => elsewhere += 1,
                _ => {
                    created.unwrap();
                    let deletion = Deletion::Force;
                    let deleted = member.broker.delete_topic(&context, name(&topic), deletion);
                    soon("a deletion", deleted).await.unwrap();
                }
            }
            life(&cluster, member, &topic).await;
        }
    }
    assert!(
        elsewhere > 0,
        "every topic is served by the first that is asked"
    );
}

/// A topic that the second of two brokers serves.
async fn served_there(members: &[Member]) -> String {
    let context = ctx();
    for number in 0..100 {
        let topic = format!("there-{number}");
        let broker = &members[1].broker;
        let created = broker.create_topic(&context, name(&topic), 0).await;
        if kind(&created) != Some(ErrorKind::Redirect) {
            created.unwrap();
            return topic;
        }
    }
    panic!("the second broker serves no topic");
}

/// The answer to a change that another broker makes; that broker's own gets lost, after something
/// else was done.
async fn without_answer<T>(
    cluster: &Cluster,
    change: impl Future<Output = ApiResult<T>>,
    meanwhile: impl Future<Output = ()>,
) -> ApiResult<T> {
    let made = Arc::new(Barrier::new(2));
    *cluster.peers.lost.lock() = Some(Arc::clone(&made));
    let meanwhile = async {
        made.wait().await;
        meanwhile.await;
        made.wait().await;
    };
    let both = async { tokio::join!(change, meanwhile) };
    soon("an answer", both).await.0
}

/// What comes after a change that was made is not given up by a second attempt (I4).
#[tokio::test]
async fn a_change_whose_answer_is_lost_is_not_made_twice() {
    let (cluster, members) = several(2).await;
    let (asked, there, context) = (&members[0].broker, &members[1], stranger());
    let topic = served_there(&members).await;
    let named = || name(&topic);
    let publish = || async { cluster.publish(there, std::slice::from_ref(&topic)).await };
    let found = || async {
        let stats = there.broker.topic_stats(&ctx(), named()).await.unwrap();
        let all = stats.subscriptions.into_iter();
        all.map(|s| (s.name, s.backlog_messages))
            .collect::<Vec<_>>()
    };
    let one_left = vec![("s".to_owned(), 1)];
    publish().await;
    publish().await;

    // It is told where it begins although the answer was lost.
    let created =
        asked.create_subscription(&context, named(), s(), Place::Latest, Properties::new());
    let created = without_answer(&cluster, created, publish()).await;
    assert_eq!(created, Ok(Index(2)));
    assert_eq!(found().await, one_left);

    let cleared = asked.clear_subscription(&context, named(), s(), ALL);
    let error = without_answer(&cluster, cleared, publish()).await;
    let error = error.expect_err("its outcome is unknown");
    assert_eq!(
        (error.kind, error.outcome),
        (ErrorKind::Unavailable, Outcome::Unknown)
    );
    assert_eq!(found().await, one_left);

    let moved = asked.seek_subscription(&context, named(), s(), Place::Latest);
    let moved = without_answer(&cluster, moved, publish()).await;
    assert_eq!(kind(&moved), Some(ErrorKind::Unavailable));
    assert_eq!(found().await, one_left);
    // One to a place that stays the same is made again.
    let moved = asked.seek_subscription(&context, named(), s(), Place::Index(Index(4)));
    let moved = without_answer(&cluster, moved, publish()).await;
    assert_eq!(moved, Ok(Index(4)));

    let deleted = asked.delete_subscription(&context, named(), s(), true);
    let again = async {
        let (context, place) = (ctx(), Place::Index(Index(5)));
        let created =
            there
                .broker
                .create_subscription(&context, named(), s(), place, Properties::new());
        created.await.unwrap();
    };
    let deleted = without_answer(&cluster, deleted, again).await;
    assert_eq!(kind(&deleted), Some(ErrorKind::Unavailable));
    assert_eq!(found().await, one_left);
}

#[tokio::test]
async fn a_subscription_creates_its_topic_wherever_that_is_served() {
    let (_cluster, members) = several(3).await;
    for (number, member) in members.iter().enumerate() {
        for other in 0..3 {
            let (context, topic) = (stranger(), name(&format!("new-{number}-{other}")));
            let created = member.broker.create_subscription(
                &context,
                topic.clone(),
                s(),
                Place::Latest,
                Properties::new(),
            );
            assert_eq!(soon("a subscription", created).await, Ok(Index(0)));
            let stats = soon("statistics", member.broker.topic_stats(&context, topic)).await;
            assert_eq!(stats.unwrap().subscriptions.len(), 1);
        }
    }
}

#[tokio::test]
async fn a_partitioned_topic_is_done_to_partition_by_partition() {
    let (cluster, members) = several(3).await;
    let (asked, context) = (&members[0].broker, stranger());
    let created = asked.create_topic(&context, name("orders"), PARTITIONS);
    soon("a topic", created).await.unwrap();
    let parts = (0..PARTITIONS).map(|number| name("orders").partition_name(number).to_string());
    cluster
        .publish(&members[0], &parts.collect::<Vec<_>>())
        .await;
    let subscribed = asked.create_subscription(
        &context,
        name("orders"),
        s(),
        Place::Earliest,
        Properties::new(),
    );
    soon("a subscription", subscribed).await.unwrap();
    for member in &members {
        let broker = &member.broker;
        let reset = broker.reset_subscriptions(&context, name("orders"));
        assert_eq!(
            soon("a reset", reset).await,
            Ok(Vec::new()),
            "none is damaged"
        );
        let skipped = broker.skip_messages(&context, name("orders"), s(), None);
        let refused = soon("a refusal", skipped).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidArgument);
        let told = format!("{refused}: {}", refused.advice);
        assert!(told.contains("orders-partition-0"), "{told}");
        let nowhere = broker.offload_topic(&context, name("orders"), Place::Index(Index(0)));
        let refused = soon("a refusal", nowhere).await;
        assert_eq!(kind(&refused), Some(ErrorKind::InvalidArgument));
        let content = broker.delete_topic_dry_run(&context, name("orders"));
        let content = soon("a dry run", content).await.unwrap();
        assert_eq!(content.partitions, PARTITIONS);
        assert_eq!(content.messages, u64::from(PARTITIONS));
        assert_eq!(content.subscriptions, 1);
    }
    let part = name("orders").partition_name(1);
    let refused = asked.delete_topic_dry_run(&context, part.clone()).await;
    assert_eq!(kind(&refused), Some(ErrorKind::InvalidArgument));

    let ended = asked.terminate_topic(&context, part.clone());
    soon("an end", ended).await.unwrap();
    let stats = asked.topic_stats(&context, name("orders")).await.unwrap();
    assert_eq!(stats.ends.len(), 1);
    assert_eq!(
        (&stats.ends[0].topic, stats.is_terminated()),
        (&part, false)
    );
    let ended = asked.terminate_topic(&context, name("orders"));
    soon("the ends", ended).await.unwrap();
    let stats = members[1].broker.topic_stats(&context, name("orders"));
    let stats = soon("statistics", stats).await.unwrap();
    assert_eq!(stats.ends.len(), PARTITIONS as usize);
    assert!(stats.is_terminated());
}

#[tokio::test]
async fn operators_see_bookies_and_ledgers_from_any_broker() {
    let (cluster, members) = several(2).await;
    cluster
        .publish(&members[0], &["a".to_owned(), "b".to_owned()])
        .await;
    let context = ctx();
    for member in &members {
        let broker = &member.broker;
        let bookies = broker.list_bookies(&context, true).await.unwrap();
        assert_eq!(bookies.len(), 1, "{bookies:?}");
        assert!(bookies[0].ledgers >= Some(2), "{bookies:?}");
        let plain = broker.get_bookie(&context, bookies[0].bookie, true).await;
        assert_eq!(plain.unwrap(), bookies[0]);

        let page = |after| PageRequest { after, limit: 1 };
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let found = broker.list_ledgers(&context, page(after)).await.unwrap();
            assert!(found.items.len() <= 1);
            all.extend(found.items);
            after = found.next;
            if after.is_none() {
                break;
            }
        }
        let ids: Vec<_> = all.iter().map(|found| found.ledger).collect();
        assert!(ids.is_sorted() && ids.len() >= 2, "{ids:?}");
        let stats = broker.topic_stats(&stranger(), name("a")).await.unwrap();
        let of_messages = stats.ledgers[0].ledger;
        let (mut of_topic, mut after) = (Vec::new(), None);
        loop {
            let found = broker.list_topic_ledgers(&context, name("a"), page(after));
            let found = found.await.unwrap();
            of_topic.extend(found.items);
            after = found.next;
            if after.is_none() {
                break;
            }
        }
        assert!(of_topic.iter().any(|found| found.ledger == of_messages));
        assert!(
            of_topic.len() < all.len(),
            "those of the other topic are not its"
        );
        let shown = broker.get_ledger(&context, of_messages).await.unwrap();
        assert!(
            of_topic
                .iter()
                .any(|found| found.record.as_ref() == Ok(&shown))
        );
        let absent = broker.list_topic_ledgers(&context, name("none"), page(None));
        assert_eq!(kind(&absent.await), Some(ErrorKind::NotFound));
        let wrong = broker.list_ledgers(&context, page(Some("x".to_owned())));
        assert_eq!(kind(&wrong.await), Some(ErrorKind::InvalidArgument));
    }
}
