//! Tokens and grants have bounds, and no tenant takes the room of the others (I13).

use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::security::{CreateToken, Revoke, RoleName, Security};

use crate::security::revocations::trusting;
use crate::security::{Secured, grant, refused, scope};

#[tokio::test]
async fn one_tenant_does_not_take_the_room_of_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = trusting(folder.path());
    config.auth.tenant_records_max = 3;
    let secured = Secured::start_as(config, None).await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let principal = secured.token(Some("acme"), "app").await.token.principal;
    let first = secured.grant(&principal, &[Action::Describe], "acme").await;
    let again = || grant(&principal, &[Action::Describe], "acme");
    broker.add_grant(&admin, again()).await.unwrap();
    let full = refused(broker.add_grant(&admin, again()).await);
    assert_eq!(full.kind, ErrorKind::QuotaExceeded);
    assert!(full.message.contains("tenant acme has 3"), "{full:?}");
    let token = CreateToken {
        name: "more".to_owned(),
        tenant: Some("acme".to_owned()),
        lifetime_ms: None,
    };
    let full = refused(broker.create_token(&admin, token).await);
    assert_eq!(full.kind, ErrorKind::QuotaExceeded);
    let role = RoleName {
        tenant: Some("acme".to_owned()),
        name: "reader".to_owned(),
    };
    let full = refused(
        broker
            .create_role(&admin, role, vec![Action::Describe])
            .await,
    );
    assert_eq!(full.kind, ErrorKind::QuotaExceeded);

    // The others go on.
    let other = secured.token(Some("beta"), "app").await.token.principal;
    secured.grant(&other, &[Action::Describe], "beta").await;
    secured.grant("token:ops", &[Action::Describe], "").await;
    let revoke = Revoke::Token("sso:t-1".to_owned());
    broker.add_revocation(&admin, revoke).await.unwrap();
    // So does the tenant when it has let something go.
    let removed = broker.remove_grant(&admin, first.id, scope("acme")).await;
    removed.unwrap();
    broker.add_grant(&admin, again()).await.unwrap();
}
