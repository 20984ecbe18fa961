//! What several changes at once, and a tenant that is made again, leave behind.

use std::collections::BTreeSet;

use aquifer_model::policy::Policies;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::admin::{Admin, PageRequest, Removal};
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::security::Security;
use futures::future::join_all;

use crate::security::{Secured, authenticate, grant, page, scope};
use crate::support::{kind, name, until};

const AT_ONCE: usize = 200;

#[tokio::test]
async fn grants_that_are_given_at_once_are_all_there() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let adding = (0..AT_ONCE).map(|number| {
        let principal = format!("token:app-{number}");
        broker.add_grant(&admin, grant(&principal, &[Action::Describe], "acme/shop"))
    });
    let added: Vec<_> = join_all(adding)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let added: BTreeSet<String> = added.into_iter().map(|grant| grant.id).collect();
    let (mut listed, mut after) = (BTreeSet::new(), None);
    loop {
        let request = PageRequest { after, limit: 30 };
        let found = broker
            .list_grants(&admin, scope("acme"), None, request)
            .await
            .unwrap();
        listed.extend(found.items.into_iter().map(|grant| grant.id));
        after = found.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed.len(), AT_ONCE);
    assert_eq!(listed, added);
}

/// Others make a tenant of the name of one that was deleted: what was given in that gives nothing.
#[tokio::test]
async fn a_tenant_that_is_made_again_has_nothing_of_the_former_one() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let topic = || name("acme/shop/orders");
    let of_tenant = secured.token(Some("acme"), "app").await;
    let actions = [Action::Describe, Action::Consume];
    let partner = secured.with("partner", &[(&actions, "acme")]).await;
    secured.grant("token:acme/app", &actions, "acme/shop").await;
    broker.topic_stats(&partner, topic()).await.unwrap();
    assert!(authenticate(broker, Some(of_tenant.secret.expose())).is_ok());

    let force = Removal {
        force: true,
        dry_run: false,
    };
    let deleted = broker.delete_tenant(&admin, "acme".to_owned(), force);
    deleted.await.unwrap();
    let created = broker.create_tenant(&admin, "acme".to_owned());
    created.await.unwrap();
    let shop = NamespaceName::new("acme", "shop").unwrap();
    let created = broker.create_namespace(&admin, shop, Policies::default());
    created.await.unwrap();
    broker.create_topic(&admin, topic(), 0).await.unwrap();

    until("the former token is refused", || async {
        let shown = authenticate(broker, Some(of_tenant.secret.expose()));
        kind(&shown) == Some(ErrorKind::Unauthenticated)
    })
    .await;
    until("the former grant gives nothing", || async {
        let stats = broker.topic_stats(&partner, topic()).await;
        kind(&stats) == Some(ErrorKind::PermissionDenied)
    })
    .await;
    let tokens = broker.list_tokens(&admin, Some("acme".to_owned()), page());
    assert!(tokens.await.unwrap().items.is_empty());
    let grants = broker.list_grants(&admin, scope("acme"), None, page());
    assert!(grants.await.unwrap().items.is_empty());
}
