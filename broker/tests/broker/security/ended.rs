//! Tokens that were revoked or have expired, and grants that have expired, are removed after a
//! while, and do not come back (I12, I13).

use aquifer_broker::create_first_token;
use aquifer_log::testing::MemoryColdStore;
use aquifer_model::backup::BackupScope;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::backup::Backups;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::security::{AddGrant, CreateToken, Security};
use aquifer_runtime::clock::Clock as _;

use crate::security::restored::saved;
use crate::security::{Secured, auth_config, authenticate, grant, page, refused, scope};
use crate::support::{kind, until};

const DAY_MS: u64 = 24 * 3_600 * 1_000;

/// Waits until no token of tenant `acme` is listed but these, by their names.
async fn left(secured: &Secured, caller: &RequestContext, names: &[&str]) {
    until("the tokens to be removed", || async {
        let acme = Some("acme".to_owned());
        let listed = secured.broker().list_tokens(caller, acme, page()).await;
        let mut listed: Vec<String> = listed
            .unwrap()
            .items
            .into_iter()
            .map(|token| token.name)
            .collect();
        listed.sort_unstable();
        listed == names
    })
    .await;
}

#[tokio::test]
async fn what_ended_long_ago_is_removed_and_makes_room() {
    let mut config = auth_config();
    config.auth.tenant_records_max = 4;
    let secured = Secured::start_as(config, None).await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let revoked = secured.token(Some("acme"), "revoked").await;
    let expiring = CreateToken {
        name: "expired".to_owned(),
        tenant: Some("acme".to_owned()),
        lifetime_ms: Some(1_000),
    };
    let expired = broker.create_token(&admin, expiring).await.unwrap();
    let lives = secured.token(Some("acme"), "lives").await;
    let short = AddGrant {
        lifetime_ms: Some(1_000),
        ..grant(&lives.token.principal, &[Action::Describe], "acme")
    };
    broker.add_grant(&admin, short).await.unwrap();
    let id = revoked.token.id.clone();
    broker.revoke_token(&admin, id).await.unwrap();

    // As long as they are listed they count, and the error says for how long.
    let more = || grant(&lives.token.principal, &[Action::Produce], "acme");
    let full = refused(broker.add_grant(&admin, more()).await);
    assert_eq!(full.kind, ErrorKind::QuotaExceeded);
    assert!(format!("{full:?}").contains("ended_kept_ms"), "{full:?}");
    // Metadata is not older than it was: only the wall clock moves.
    secured
        .clock
        .set_wall_ms(secured.clock.wall_ms() + 8 * DAY_MS);
    left(&secured, &admin, &["lives"]).await;
    until("the grant to be removed", || async {
        let listed = broker.list_grants(&admin, scope("acme"), None, page());
        listed.await.unwrap().items.is_empty()
    })
    .await;
    for gone in [&revoked, &expired] {
        let shown = authenticate(broker, Some(gone.secret.expose()));
        assert_eq!(kind(&shown), Some(ErrorKind::Unauthenticated));
        let rotated = broker.rotate_token(&admin, gone.token.id.clone(), None);
        assert_eq!(kind(&rotated.await), Some(ErrorKind::NotFound));
    }
    authenticate(broker, Some(lives.secret.expose())).unwrap();
    broker.add_grant(&admin, more()).await.unwrap();
    secured.token(Some("acme"), "revoked").await;
}

#[tokio::test]
async fn a_revoked_token_that_is_removed_comes_back_with_no_backup() {
    let cold = MemoryColdStore::default();
    let secured = Secured::start_with(Some(&cold)).await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let of_tenant = secured.token(Some("acme"), "app").await;
    let of_cluster = secured.token(None, "app").await;
    let wanted = saved(&secured, BackupScope::Cluster).await;
    let both = [&of_tenant, &of_cluster];
    for token in both {
        let revoked = broker.revoke_token(&admin, token.token.id.clone());
        revoked.await.unwrap();
    }
    secured
        .clock
        .set_wall_ms(secured.clock.wall_ms() + 8 * DAY_MS);
    left(&secured, &admin, &[]).await;
    until("the token of the cluster to be removed", || async {
        let listed = broker.list_tokens(&admin, None, page()).await.unwrap();
        listed.items.len() == 1
    })
    .await;
    let restored = broker.restore_access(&admin, wanted).await.unwrap();
    assert_eq!((restored.tokens, restored.refused), (0, 0), "{restored:?}");
    for token in both {
        let shown = authenticate(broker, Some(token.secret.expose()));
        assert_eq!(kind(&shown), Some(ErrorKind::Unauthenticated));
    }
}

/// A clock that is a few minutes ahead removes it; one that is right would restore it.
#[tokio::test]
async fn a_revoked_token_that_expires_as_it_is_removed_comes_back_at_no_clock() {
    const MINUTES_MS: u64 = 10 * 60 * 1_000;
    let cold = MemoryColdStore::default();
    let secured = Secured::start_with(Some(&cold)).await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let create = CreateToken {
        name: "app".to_owned(),
        tenant: Some("acme".to_owned()),
        lifetime_ms: Some(8 * DAY_MS),
    };
    let made = broker.create_token(&admin, create).await.unwrap();
    let wanted = saved(&secured, BackupScope::Cluster).await;
    let id = made.token.id.clone();
    broker.revoke_token(&admin, id).await.unwrap();
    let end_ms = made.token.expires_ms.unwrap();
    secured.clock.set_wall_ms(end_ms + MINUTES_MS);
    left(&secured, &admin, &[]).await;
    secured.clock.set_wall_ms(end_ms - MINUTES_MS);
    let restored = broker.restore_access(&admin, wanted).await.unwrap();
    assert_eq!((restored.tokens, restored.refused), (0, 0), "{restored:?}");
    let shown = authenticate(broker, Some(made.secret.expose()));
    assert_eq!(kind(&shown), Some(ErrorKind::Unauthenticated));
}

#[tokio::test]
async fn the_first_token_stays_when_it_is_revoked_so_that_there_is_no_second_one() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let other = secured.token(Some("acme"), "app").await;
    let first = broker.list_tokens(&admin, None, page()).await.unwrap();
    let id = other.token.id.clone();
    broker.revoke_token(&admin, id).await.unwrap();
    let may = [(&Action::GRANTED[..5], "acme")];
    let ops = secured.with("ops", &may).await;
    let id = first.items[0].id.clone();
    broker.revoke_token(&admin, id).await.unwrap();
    secured
        .clock
        .set_wall_ms(secured.clock.wall_ms() + 8 * DAY_MS);
    // One round looks at all tokens: that of the tenant is behind the first one.
    left(&secured, &ops, &[]).await;
    let made = create_first_token(&*secured.store, 1, |_| Ok(())).await;
    assert!(!made.unwrap());
}
