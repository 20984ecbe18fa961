//! Where lists go on: of one list, one caller and its arguments, at every broker.

use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::admin::{Admin, Page, PageRequest};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiResult, ErrorKind};
use aquifer_protocol_api::security::Security;

use crate::security::{Secured, refused, scope};
use crate::support::kind;

fn one(after: Option<String>) -> PageRequest {
    PageRequest { after, limit: 1 }
}

fn shop() -> NamespaceName {
    "acme/shop".parse().unwrap()
}

fn next<T>(page: ApiResult<Page<T>>) -> String {
    page.unwrap().next.unwrap()
}

/// The error of each list with a place that is not its own.
async fn foreign(secured: &Secured, ctx: &RequestContext, place: &str) -> [Option<ErrorKind>; 5] {
    let broker = secured.broker();
    let after = || one(Some(place.to_owned()));
    [
        kind(&broker.list_tenants(ctx, after()).await),
        kind(
            &broker
                .list_namespaces(ctx, "beta".to_owned(), after())
                .await,
        ),
        kind(
            &broker
                .list_topics(ctx, "beta/shop".parse().unwrap(), after())
                .await,
        ),
        kind(
            &broker
                .list_tokens(ctx, Some("beta".to_owned()), after())
                .await,
        ),
        kind(&broker.list_grants(ctx, scope("beta"), None, after()).await),
    ]
}

#[tokio::test]
async fn a_place_is_refused_where_it_does_not_belong() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let another = secured.another().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    for name in ["a", "b"] {
        let made = secured.token(Some("acme"), name).await;
        secured
            .grant(&made.token.principal, &[Action::Describe], "acme")
            .await;
    }
    let topics = next(broker.list_topics(&admin, shop(), one(None)).await);
    let tokens = next(
        broker
            .list_tokens(&admin, Some("acme".to_owned()), one(None))
            .await,
    );
    let grants = next(
        broker
            .list_grants(&admin, scope("acme"), None, one(None))
            .await,
    );
    let places = [
        topics.clone(),
        tokens,
        grants,
        "orders".to_owned(),
        "AAAA".repeat(20),
    ];
    for place in places {
        assert!(!place.contains("acme"), "it tells nothing: {place}");
        let all = foreign(&secured, &admin, &place).await;
        assert_eq!(all, [Some(ErrorKind::InvalidArgument); 5], "{place}");
    }
    // Another caller with the same rights cannot use it, and the same one can at another broker.
    let other = secured.with("other", &[(&[Action::Describe], "")]).await;
    let used = broker
        .list_topics(&other, shop(), one(Some(topics.clone())))
        .await;
    let error = refused(used);
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.message.contains("its caller"), "{}", error.message);
    let used = another
        .broker
        .list_topics(&admin, shop(), one(Some(topics)))
        .await;
    let used = used.unwrap();
    assert_eq!((used.items[0].topic.name(), used.next), ("returns", None));
}
