//! Nothing is given that its giver does not have, or may not give.

use aquifer_model::policy::{Policies, PolicyName, PolicyScope, PolicyUpdate};
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::access::{Action, Resource};
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::security::{AddGrant, CheckAccess, CreateToken, Given, Security};

use crate::security::{Secured, authenticate, grant, page, refused, scope};
use crate::support::{kind, name};

const DENIED: Option<ErrorKind> = Some(ErrorKind::PermissionDenied);

fn role(principal: &str, role: &str, of: &str) -> AddGrant {
    AddGrant {
        given: Given::Role(role.to_owned()),
        ..grant(principal, &[], of)
    }
}

/// To others and to itself.
fn within_its_tenant() -> [AddGrant; 4] {
    [
        grant(
            "token:acme/app",
            &[Action::Describe, Action::Produce],
            "acme/shop/orders",
        ),
        grant(
            "group:sso:shop",
            &[Action::Consume, Action::Manage],
            "acme/sh*",
        ),
        role("token:acme/boss", "developer", "acme"),
        // It holds this one itself.
        role("token:acme/deputy", "namespace-admin", "acme/shop"),
    ]
}

fn beyond_its_tenant() -> [AddGrant; 4] {
    [
        grant("token:acme/app", &[Action::Describe], "beta"),
        grant("token:acme/app", &[Action::Describe], ""),
        grant("token:acme/app", &[Action::Describe], "acm*"),
        grant("token:acme/app", &[Action::Audit], "acme"),
    ]
}

#[tokio::test]
async fn a_tenant_is_administered_within_its_bounds() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let broker = secured.broker();
    let made = secured.token(Some("acme"), "boss").await;
    let boss = &made.token.principal;
    let admin = secured.admin();
    let added = broker.add_grant(&admin, role(boss, "tenant-admin", "acme"));
    added.await.unwrap();
    let boss = secured.caller(&made.secret);
    for grant in within_its_tenant() {
        assert_eq!(
            kind(&broker.add_grant(&boss, grant.clone()).await),
            None,
            "{grant:?}"
        );
    }
    for grant in beyond_its_tenant() {
        assert_eq!(
            kind(&broker.add_grant(&boss, grant.clone()).await),
            DENIED,
            "{grant:?}"
        );
    }
    let create = |tenant: Option<&str>, name: &str| CreateToken {
        name: name.to_owned(),
        tenant: tenant.map(str::to_owned),
        lifetime_ms: None,
    };
    assert_eq!(
        kind(
            &broker
                .create_token(&boss, create(Some("acme"), "app"))
                .await
        ),
        None
    );
    for foreign in [create(Some("beta"), "app"), create(None, "app")] {
        assert_eq!(kind(&broker.create_token(&boss, foreign).await), DENIED);
    }
    // A caller that gets the secret of this one could do more than its maker may give.
    let foreign = secured
        .grant("token:acme/strong", &[Action::Describe], "beta")
        .await;
    let strong = broker
        .create_token(&boss, create(Some("acme"), "strong"))
        .await;
    let strong = refused(strong);
    assert_eq!(strong.kind, ErrorKind::PermissionDenied);
    // It says which grant that is, and not where.
    let text = "gives token:acme/strong what you may not give";
    assert_eq!(strong.message, format!("grant {} {text}", foreign.id));
    let strong = secured.token(Some("acme"), "strong").await;
    let id = strong.token.id.clone();
    let rotated = broker.rotate_token(&boss, id.clone(), None).await;
    assert_eq!(kind(&rotated), DENIED);
    // What others give to a token of the tenant does not keep it in force.
    assert_eq!(kind(&broker.revoke_token(&boss, id).await), None);
    assert!(authenticate(broker, Some(strong.secret.expose())).is_err());
    let listed = broker
        .list_tokens(&boss, Some("acme".to_owned()), page())
        .await;
    assert_eq!(listed.unwrap().items.len(), 3);
    let grants = broker
        .list_grants(&boss, scope("acme"), None, page())
        .await
        .unwrap();
    assert_eq!(grants.items.len(), 5);
}

#[tokio::test]
async fn no_grant_makes_a_super_user() {
    let secured = Secured::start().await;
    let broker = secured.broker();
    let granter = secured.with("granter", &[(&[Action::Grant], "")]).await;
    for action in [Action::Operate, Action::Audit] {
        let added = broker
            .add_grant(&granter, grant("token:granter", &[action], ""))
            .await;
        assert_eq!(kind(&added), DENIED, "{action:?}");
    }
    let tokens = broker.list_tokens(&granter, None, page()).await.unwrap();
    let admin = tokens
        .items
        .iter()
        .find(|token| token.name == "admin")
        .unwrap();
    for denied in [
        kind(&broker.rotate_token(&granter, admin.id.clone(), None).await),
        kind(&broker.revoke_token(&granter, admin.id.clone()).await),
    ] {
        assert_eq!(denied, DENIED);
    }
    assert!(!broker.who_am_i(&granter).await.unwrap().super_user);
    let role = AddGrant {
        given: Given::Role("super-user".to_owned()),
        ..grant("token:granter", &[], "")
    };
    let role = broker.add_grant(&secured.admin(), role).await;
    assert_eq!(kind(&role), Some(ErrorKind::InvalidArgument));
}

#[tokio::test]
async fn a_repeated_request_makes_one_grant_and_checks_say_which_decides() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let add = || AddGrant {
        request_id: Some([7; 16]),
        ..grant("token:app", &[Action::Describe], "acme")
    };
    let first = broker.add_grant(&admin, add()).await.unwrap();
    let second = broker.add_grant(&admin, add()).await.unwrap();
    assert_eq!(first, second);
    let other = AddGrant {
        scope: scope("acme/shop"),
        ..add()
    };
    let other = broker.add_grant(&admin, other).await;
    assert_eq!(kind(&other), Some(ErrorKind::AlreadyExists));
    let ask = |action, resource| CheckAccess {
        principal: Some("token:app".to_owned()),
        action,
        resource,
    };
    let topic = || Resource::Topic(name("acme/shop/orders"));
    let yes = broker
        .check_access(&admin, ask(Action::Describe, topic()))
        .await;
    assert_eq!(yes.unwrap().grant, Some(first.id.clone()));
    let subscription = SubscriptionName::new("s").unwrap();
    let resource = Resource::Subscription(name("acme/shop/orders"), subscription);
    let no = broker
        .check_access(&admin, ask(Action::Consume, resource))
        .await;
    assert!(!no.unwrap().allowed);
    let removed = broker.remove_grant(&admin, first.id, scope("acme")).await;
    removed.unwrap();
    let gone = broker
        .check_access(&admin, ask(Action::Describe, topic()))
        .await;
    assert!(!gone.unwrap().allowed);
}

/// A caller that has found a former text of a token cannot keep its holder out with it.
#[tokio::test]
async fn a_former_secret_changes_nothing() {
    let secured = Secured::start().await;
    let broker = secured.broker();
    let made = secured.token(None, "app").await;
    let id = made.token.id.clone();
    let holder = secured.caller(&made.secret);
    let rotated = broker.rotate_token(&holder, id.clone(), None).await;
    let present = secured.caller(&rotated.unwrap().secret);
    // The former text still authenticates, and no more than that.
    let former = secured.caller(&made.secret);
    let rotated = broker.rotate_token(&former, id.clone(), Some(0)).await;
    assert_eq!(kind(&rotated), DENIED);
    let revoked = broker.revoke_token(&former, id.clone()).await;
    assert_eq!(kind(&revoked), DENIED);
    assert_eq!(kind(&broker.revoke_token(&present, id).await), None);
}

/// Ceilings, and shares of servers, are set by those who manage the level above.
#[tokio::test]
async fn a_tenant_does_not_lift_its_own_ceilings_or_take_a_larger_share() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let broker = secured.broker();
    let manager = secured
        .with("manager", &[(&[Action::Manage], "acme")])
        .await;
    let tenant = PolicyScope::Tenant("acme".to_owned());
    let lower = || PolicyUpdate {
        set: Policies {
            message_bytes_max: Some(1_000),
            ..Policies::default()
        },
        unset: Vec::new(),
        version: None,
    };
    let lift = PolicyUpdate {
        set: Policies::default(),
        unset: vec![PolicyName::MessageBytesMax],
        version: None,
    };
    let heavier = || PolicyUpdate {
        set: Policies {
            weight: Some(100),
            ..Policies::default()
        },
        unset: Vec::new(),
        version: None,
    };
    let admin = secured.admin();
    for update in [lower(), heavier()] {
        let set = broker.update_policies(&admin, tenant.clone(), update);
        assert_eq!(kind(&set.await), None);
    }
    let lighter = PolicyUpdate {
        set: Policies::default(),
        unset: vec![PolicyName::Weight],
        version: None,
    };
    for update in [lower(), lift, heavier(), lighter] {
        let refused = broker.update_policies(&manager, tenant.clone(), update);
        assert_eq!(kind(&refused.await), DENIED);
    }
    let others = PolicyUpdate {
        set: Policies {
            deduplication: Some(true),
            ..Policies::default()
        },
        unset: Vec::new(),
        version: None,
    };
    let set = broker.update_policies(&manager, tenant, others);
    assert_eq!(kind(&set.await), None);
    // Of what is below its own level it may.
    let below = PolicyScope::Namespace("acme/shop".parse().unwrap());
    let set = broker.update_policies(&manager, below, lower());
    assert_eq!(kind(&set.await), None);
}
