//! Roles that are made: what they give, who may make them, and that none goes while it is given.

use aquifer_metadata::store::Expect;
use aquifer_metadata::{keys, record};
use aquifer_proto::v1::RoleRecord;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ApiResult, ErrorKind};
use aquifer_protocol_api::security::{AddGrant, Given, GrantInfo, RoleInfo, RoleName, Security};

use crate::security::{Secured, grant, refused, scope};
use crate::support::{kind, open, soon, subscribe};

const DENIED: Option<ErrorKind> = Some(ErrorKind::PermissionDenied);
const READER: [Action; 2] = [Action::Describe, Action::Consume];

fn named(tenant: Option<&str>, name: &str) -> RoleName {
    RoleName {
        tenant: tenant.map(str::to_owned),
        name: name.to_owned(),
    }
}

async fn create(
    secured: &Secured,
    by: &RequestContext,
    name: &RoleName,
    actions: &[Action],
) -> ApiResult<RoleInfo> {
    let broker = secured.broker();
    broker.create_role(by, name.clone(), actions.to_vec()).await
}

async fn give(
    secured: &Secured,
    by: &RequestContext,
    principal: &str,
    role: &str,
    of: &str,
) -> ApiResult<GrantInfo> {
    let given = AddGrant {
        given: Given::Role(role.to_owned()),
        ..grant(principal, &[], of)
    };
    secured.broker().add_grant(by, given).await
}

#[tokio::test]
async fn a_role_gives_what_it_says_now_at_every_broker() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let another = secured.another().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let role = named(Some("acme"), "reader");
    create(&secured, &admin, &role, &READER).await.unwrap();
    let made = secured.token(Some("acme"), "app").await;
    let principal = &made.token.principal;
    let given = give(&secured, &admin, principal, "reader", "acme/shop").await;
    let given = given.unwrap();
    assert_eq!(
        (given.role.as_deref(), &given.actions[..]),
        (Some("reader"), &READER[..])
    );
    let caller = secured.caller(&made.secret);
    let topic = "acme/shop/orders";
    let session = broker
        .subscribe(&caller, subscribe(topic, "s"))
        .await
        .unwrap();
    let produced = broker.open_producer(&caller, open(topic, "p")).await;
    assert_eq!(kind(&produced), DENIED);

    // The other broker changes it: a session that it no longer allows ends here.
    let writer = vec![Action::Describe, Action::Produce];
    let changed = another
        .broker
        .update_role(&admin, role.clone(), writer.clone());
    assert_eq!(changed.await.unwrap().actions, writer);
    let ended = soon("the session to end", session.end.wait()).await;
    assert_eq!(ended.kind, ErrorKind::PermissionDenied);
    let produced = broker.open_producer(&caller, open(topic, "p")).await;
    assert_eq!(kind(&produced), None);
    let listed = broker
        .list_grants(&admin, scope("acme"), None, super::page())
        .await;
    let listed = listed.unwrap().items;
    assert_eq!(
        listed
            .iter()
            .find(|grant| grant.id == given.id)
            .unwrap()
            .actions,
        writer
    );
}

#[tokio::test]
async fn a_role_that_is_given_is_not_deleted() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    // Both may have one name: the one of the tenant is given within it.
    let (own, common) = (named(Some("acme"), "reader"), named(None, "reader"));
    create(&secured, &admin, &own, &READER).await.unwrap();
    create(&secured, &admin, &common, &[Action::Describe])
        .await
        .unwrap();
    let within = give(&secured, &admin, "token:acme/app", "reader", "acme/shop")
        .await
        .unwrap();
    assert_eq!(within.actions, READER);
    let elsewhere = give(&secured, &admin, "token:acme/app", "reader", "beta")
        .await
        .unwrap();
    assert_eq!(elsewhere.actions, [Action::Describe]);
    for (role, id, of) in [(&own, &within.id, "acme"), (&common, &elsewhere.id, "beta")] {
        let error = refused(broker.delete_role(&admin, role.clone()).await);
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);
        assert!(error.message.contains(id.as_str()), "{}", error.message);
        // Refused, it may be given still.
        give(&secured, &admin, "token:acme/other", "reader", of)
            .await
            .unwrap();
        let grants = broker
            .list_grants(&admin, scope(of), None, super::page())
            .await;
        for grant in grants.unwrap().items {
            broker
                .remove_grant(&admin, grant.id, scope(of))
                .await
                .unwrap();
        }
        broker.delete_role(&admin, role.clone()).await.unwrap();
        let gone = broker.delete_role(&admin, role.clone()).await;
        assert_eq!(kind(&gone), Some(ErrorKind::NotFound));
    }
    let none = give(&secured, &admin, "token:acme/app", "reader", "acme").await;
    assert!(refused(none).message.contains("aquifer role list"));
}

#[tokio::test]
async fn a_role_that_is_being_deleted_is_not_given() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let role = named(Some("acme"), "reader");
    create(&secured, &admin, &role, &READER).await.unwrap();
    // As a broker leaves it that ends in the middle.
    let key = keys::role(Some("acme"), "reader");
    let found = secured.store.get(&key).await.unwrap().unwrap();
    let mut marked: RoleRecord = record::decode(&found).unwrap();
    marked.deleting = true;
    let put = secured.store.put(
        keys::CLUSTER_PARTITION,
        &key,
        record::encode(marked),
        Expect::Any,
    );
    put.await.unwrap();
    let given = give(&secured, &admin, "token:acme/app", "reader", "acme").await;
    assert_eq!(kind(&given), Some(ErrorKind::FailedPrecondition));
    // Changed, it stays; deleted again, it goes.
    broker
        .update_role(&admin, role.clone(), READER.to_vec())
        .await
        .unwrap();
    let given = give(&secured, &admin, "token:acme/app", "reader", "acme")
        .await
        .unwrap();
    broker
        .remove_grant(&admin, given.id, scope("acme"))
        .await
        .unwrap();
    broker.delete_role(&admin, role).await.unwrap();
}

#[tokio::test]
async fn who_may_grant_in_a_tenant_makes_its_roles_and_no_more() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let broker = secured.broker();
    let made = secured.token(Some("acme"), "boss").await;
    let admin = secured.admin();
    let given = give(
        &secured,
        &admin,
        &made.token.principal,
        "tenant-admin",
        "acme",
    );
    given.await.unwrap();
    let boss = secured.caller(&made.secret);
    let own = named(Some("acme"), "reader");
    create(&secured, &boss, &own, &READER).await.unwrap();
    // The same again answers the same, and another of the name is refused.
    create(&secured, &boss, &own, &READER).await.unwrap();
    let other = create(&secured, &boss, &own, &[Action::Describe]).await;
    assert_eq!(kind(&other), Some(ErrorKind::AlreadyExists));
    give(&secured, &boss, "token:acme/app", "reader", "acme/sh*")
        .await
        .unwrap();
    for foreign in [
        named(None, "reader"),
        named(Some("beta"), "reader"),
        named(Some("no"), "r"),
    ] {
        let created = create(&secured, &boss, &foreign, &READER).await;
        assert_eq!(kind(&created), DENIED, "{foreign:?}");
        let deleted = broker.delete_role(&boss, foreign).await;
        assert_eq!(kind(&deleted), DENIED);
    }
    let invalid = Some(ErrorKind::InvalidArgument);
    for actions in [
        &[Action::Grant][..],
        &[Action::Operate],
        &[Action::Audit],
        &[],
    ] {
        let role = named(Some("acme"), "more");
        let created = create(&secured, &boss, &role, actions).await;
        assert_eq!(kind(&created), invalid, "{actions:?}");
        let changed = broker
            .update_role(&boss, own.clone(), actions.to_vec())
            .await;
        assert_eq!(kind(&changed), invalid, "{actions:?}");
    }
    for kept in ["viewer", "super-user"] {
        let created = create(&secured, &boss, &named(Some("acme"), kept), &READER).await;
        assert_eq!(kind(&created), invalid, "{kept}");
    }
    let roles = broker
        .list_roles(&boss, Some("acme".to_owned()))
        .await
        .unwrap();
    let own: Vec<&RoleInfo> = roles.iter().filter(|role| !role.built_in).collect();
    assert_eq!((own.len(), &own[0].name.name[..]), (1, "reader"));
}
