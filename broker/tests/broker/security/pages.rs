//! Where lists go on: of one list, one caller and its arguments, at every broker.

use std::sync::Arc;

use aquifer_metadata::keys;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::policy::Policies;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::admin::{Admin, Page, PageRequest};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiResult, ErrorKind};
use aquifer_protocol_api::security::Security;

use crate::cluster::HeldStore;
use crate::security::{Secured, over, refused, scope};
use crate::support::{Harness, kind, name};

/// Scans of one page at most: 32 that find nothing and that of an item, each with one before it
/// that tells the revision.
const SCANS_MAX: usize = 70;

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

/// Another broker, and the store under it, which counts scans.
async fn counted(secured: &Secured) -> (Harness, Arc<HeldStore>) {
    let counting = HeldStore::over(&secured.store);
    let store: Arc<dyn MetadataStore> = counting.clone();
    let world = secured.harness.world.clone();
    let harness = over(world, &store, None, secured.config.clone()).await;
    (harness, counting)
}

async fn create(secured: &Secured, namespace: &NamespaceName, topics: usize) {
    let (broker, admin) = (secured.broker(), secured.admin());
    let created = broker.create_namespace(&admin, namespace.clone(), Policies::default());
    created.await.unwrap();
    for number in 0..topics {
        let topic = name(&format!("{namespace}/t{number:03}"));
        broker.create_topic(&admin, topic, 0).await.unwrap();
    }
}

/// One request reads a bounded part of the store, however little its caller may see (I13): a page
/// ends early, and its `next` goes on.
#[tokio::test]
async fn a_list_of_which_little_is_seen_comes_in_bounded_parts() {
    let secured = Secured::start().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let tenant = || "acme".to_owned();
    broker.create_tenant(&admin, tenant()).await.unwrap();
    let last: NamespaceName = "acme/n079".parse().unwrap();
    for number in 0..80 {
        let namespace = NamespaceName::new("acme", &format!("n{number:03}")).unwrap();
        // What is below a namespace is jumped over, which takes a scan.
        create(&secured, &namespace, 1).await;
    }
    let grants = [(&[Action::Describe][..], "acme/n079")];
    let caller = secured.with("one", &grants).await;
    let (asked, counting) = counted(&secured).await;
    let prefix = keys::tenant_prefix("acme");
    let (mut pages, mut found, mut after) = (0, Vec::new(), None);
    loop {
        let before = counting.scans(&prefix);
        let listed = asked.broker.list_namespaces(&caller, tenant(), one(after));
        let listed = listed.await.unwrap();
        let scans = counting.scans(&prefix) - before;
        assert!(scans <= SCANS_MAX, "{scans} scans for one page");
        pages += 1;
        found.extend(listed.items);
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, [last]);
    assert!(pages > 1);
}

/// How many keys are read at a time does not depend on how many items are asked for.
#[tokio::test]
async fn a_small_page_takes_few_scans() {
    let secured = Secured::start().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let created = broker.create_tenant(&admin, "acme".to_owned());
    created.await.unwrap();
    create(&secured, &shop(), 200).await;
    let grants = [(&[Action::Describe][..], "acme/shop/t199")];
    let caller = secured.with("one", &grants).await;
    let (asked, counting) = counted(&secured).await;
    let listed = asked.broker.list_topics(&caller, shop(), one(None)).await;
    let listed = listed.unwrap();
    assert_eq!((listed.items[0].topic.name(), listed.next), ("t199", None));
    let scans = counting.scans(&keys::topics_prefix(&shop()));
    assert!(scans <= 20, "{scans} scans");
}

/// What a caller is told of itself is bounded (I13); a list has the rest, in pages.
#[tokio::test]
async fn a_caller_is_shown_some_of_its_grants_and_lists_all() {
    const SHOWN: usize = 1_000;
    let secured = Secured::start().await;
    secured.tenants().await;
    let caller = secured.with("many", &[]).await;
    let give = async |number: usize| {
        let scope = format!("acme/shop/t{number:04}");
        let describe = [Action::Describe];
        secured.grant("token:many", &describe, &scope).await
    };
    for number in 0..SHOWN {
        give(number).await;
    }
    let said = secured.broker().who_am_i(&caller).await.unwrap();
    assert_eq!((said.grants.len(), said.more_grants), (SHOWN, false));
    give(SHOWN).await;
    let said = secured.broker().who_am_i(&caller).await.unwrap();
    assert_eq!((said.grants.len(), said.more_grants), (SHOWN, true));

    let (mut listed, mut after) = (0, None);
    loop {
        let page = PageRequest { after, limit: 400 };
        let own = Some("token:many".to_owned());
        let page = secured
            .broker()
            .list_grants(&caller, scope(""), own, page)
            .await
            .unwrap();
        listed += page.items.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, SHOWN + 1);
}
