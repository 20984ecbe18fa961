//! Open sessions, and what ends them.

use std::time::Duration;

use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::consumer::Subscribe;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::producer::OpenProducer;
use aquifer_protocol_api::scope::Pattern;
use aquifer_protocol_api::security::{AddGrant, CreateToken, Security};
use futures::FutureExt as _;

use crate::security::{Secured, authenticate, grant, scope};
use crate::support::{Harness, instance, kind, open, soon, subscribe};

const TOPIC: &str = "acme/shop/orders";

/// The errors that end a producer and a consumer that are open now.
async fn both(harness: &Harness, ctx: &RequestContext) -> impl Future<Output = [ApiError; 2]> {
    let producer = harness.broker.open_producer(ctx, open(TOPIC, "p")).await;
    let consumer = harness.broker.subscribe(ctx, subscribe(TOPIC, "s")).await;
    let (producer, consumer) = (producer.unwrap(), consumer.unwrap());
    let open = (
        producer.port,
        producer.receipts,
        consumer.port,
        consumer.events,
    );
    let (first, second) = (producer.end, consumer.end);
    async move {
        let ends = async { [first.wait().await, second.wait().await] };
        let ended = soon("the sessions to end", ends).await;
        drop(open);
        ended
    }
}

#[tokio::test]
async fn a_grant_that_is_taken_away_ends_sessions_at_every_broker() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let another = secured.another().await;
    let made = secured.token(Some("acme"), "app").await;
    let principal = &made.token.principal;
    let granted = secured
        .grant(principal, &[Action::Produce, Action::Consume], "acme/shop")
        .await;
    let caller = secured.caller(&made.secret);
    let ended = both(&secured.harness, &caller).await;
    let admin = secured.admin();
    let removed = another
        .broker
        .remove_grant(&admin, granted.id, scope("acme"));
    soon("the removal", removed).await.unwrap();
    for error in ended.await {
        assert_eq!(error.kind, ErrorKind::PermissionDenied);
        assert!(!error.kind.is_retryable());
    }
    let again = secured
        .broker()
        .open_producer(&caller, open(TOPIC, "p"))
        .await;
    assert_eq!(kind(&again), Some(ErrorKind::PermissionDenied));
}

#[tokio::test]
async fn a_token_that_is_revoked_ends_sessions_and_others_go_on() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let made = secured.token(Some("acme"), "app").await;
    let actions = [Action::Produce, Action::Consume];
    secured
        .grant(&made.token.principal, &actions, "acme/shop")
        .await;
    let other = secured.with("other", &[(&actions, "acme")]).await;
    let kept = secured
        .broker()
        .open_producer(&other, open(TOPIC, "kept"))
        .await;
    let mut kept = kept.unwrap();
    let caller = secured.caller(&made.secret);
    let ended = both(&secured.harness, &caller).await;
    let marker = secured.token(Some("acme"), "marker").await;
    let given = secured.grant(&marker.token.principal, &[Action::Produce], "acme/shop");
    given.await;
    let marks = secured
        .broker()
        .open_producer(&secured.caller(&marker.secret), open(TOPIC, "marker"))
        .await;
    let marks = marks.unwrap();
    let admin = secured.admin();
    let revoke = async |id: String| secured.broker().revoke_token(&admin, id).await.unwrap();
    revoke(made.token.id).await;
    for error in ended.await {
        assert_eq!(error.kind, ErrorKind::Unauthenticated);
    }
    // Sessions are judged in the order in which they were opened, all of them after a change: when
    // a later one ends of a later change, the one before it has been judged with both.
    revoke(marker.token.id).await;
    soon("the last session to end", marks.end.wait()).await;
    let end = kept.end.wait().now_or_never();
    assert_eq!(end, None, "another caller's session goes on");
    kept.receipts.close();
}

#[tokio::test]
async fn an_expired_token_ends_sessions_after_the_leeway() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let create = CreateToken {
        name: "short".to_owned(),
        tenant: None,
        lifetime_ms: Some(60_000),
    };
    let made = secured
        .broker()
        .create_token(&secured.admin(), create)
        .await;
    let made = made.unwrap();
    secured
        .grant("token:short", &[Action::Produce, Action::Consume], "acme")
        .await;
    let caller = secured.caller(&made.secret);
    let ended = both(&secured.harness, &caller).await;
    secured.clock.advance(Duration::from_secs(61));
    let late = authenticate(secured.broker(), Some(made.secret.expose()));
    assert_eq!(
        kind(&late),
        Some(ErrorKind::Unauthenticated),
        "no leeway for new ones"
    );
    secured.clock.advance(Duration::from_secs(30));
    for error in ended.await {
        assert_eq!(error.kind, ErrorKind::Unauthenticated);
    }
}

#[tokio::test]
async fn a_grant_that_ends_ends_sessions() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let made = secured.token(None, "app").await;
    let short = AddGrant {
        lifetime_ms: Some(60_000),
        ..grant("token:app", &[Action::Produce, Action::Consume], "acme")
    };
    let added = secured.broker().add_grant(&secured.admin(), short).await;
    added.unwrap();
    let caller = secured.caller(&made.secret);
    let ended = both(&secured.harness, &caller).await;
    secured.clock.advance(Duration::from_secs(61));
    for error in ended.await {
        assert_eq!(error.kind, ErrorKind::PermissionDenied);
    }
}

#[tokio::test]
async fn subscriptions_and_names_of_producers_are_their_own() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let broker = secured.broker();
    let made = secured.token(None, "app").await;
    let billing = AddGrant {
        subscriptions: Pattern::of_subscriptions("billing*").unwrap(),
        ..grant("token:app", &[Action::Produce, Action::Consume], TOPIC)
    };
    broker.add_grant(&secured.admin(), billing).await.unwrap();
    let caller = secured.caller(&made.secret);
    let subscribed = broker
        .subscribe(&caller, subscribe(TOPIC, "billing-eu"))
        .await;
    assert_eq!(kind(&subscribed), None);
    let foreign = broker.subscribe(&caller, subscribe(TOPIC, "audit")).await;
    assert_eq!(kind(&foreign), Some(ErrorKind::PermissionDenied));
    // A reader sees the same, since a subscription may be moved.
    let reader = Subscribe {
        subscription: None,
        ..subscribe(TOPIC, "unused")
    };
    assert_eq!(kind(&broker.subscribe(&caller, reader).await), None);
    let partition = format!("{TOPIC}-partition-0");
    let partition = broker.open_producer(&caller, open(&partition, "p")).await;
    assert_eq!(
        kind(&partition),
        Some(ErrorKind::InvalidArgument),
        "the grant is its topic's, which has no partitions"
    );
    let first = broker
        .open_producer(&secured.admin(), open(TOPIC, "p"))
        .await;
    let take = || OpenProducer {
        take_over: true,
        instance: instance(2),
        ..open(TOPIC, "p")
    };
    let taken = broker.open_producer(&caller, take()).await;
    assert_eq!(kind(&taken), Some(ErrorKind::PermissionDenied));
    secured.grant("token:app", &[Action::Manage], TOPIC).await;
    let taken = broker.open_producer(&caller, take()).await;
    assert_eq!(kind(&taken), None);
    drop(first);
}
