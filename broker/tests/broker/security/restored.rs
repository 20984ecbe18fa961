//! Tokens and grants that a backup brings back.

use std::sync::Arc;

use aquifer_log::testing::MemoryColdStore;
use aquifer_metadata::error::MetadataResult;
use aquifer_metadata::intercept::Intercept;
use aquifer_metadata::store::{Expect, MetadataStore, Versioned};
use aquifer_metadata::{keys, record};
use aquifer_model::backup::{BackupScope, RestoreAccess, RestoredAccess};
use aquifer_proto::v1::GrantRecord;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::admin::{Admin, Removal};
use aquifer_protocol_api::backup::Backups;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::security::{AddGrant, Given, Revoke, RoleName, Security};
use aquifer_runtime::clock::Clock as _;
use async_trait::async_trait;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::security::revocations::{token, trusting};
use crate::security::{Secured, auth_config, authenticate, grant, over, page};
use crate::support::{Harness, kind, until};

const EVERYTHING: Removal = Removal {
    force: true,
    dry_run: false,
};

/// Metadata of which something changes after a key was read, and before that is answered.
struct Between {
    inner: Arc<dyn MetadataStore>,
    key: String,
    then: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl Between {
    /// A second broker over this, and the administrator there.
    async fn of(
        secured: &Secured,
        cold: &MemoryColdStore,
        key: String,
    ) -> (Arc<Between>, Harness, RequestContext) {
        let between = Arc::new(Between {
            inner: Arc::clone(&secured.store),
            key,
            then: Mutex::new(None),
        });
        let store: Arc<dyn MetadataStore> = Arc::clone(&between) as _;
        let world = secured.harness.world.clone();
        let other = over(world, &store, Some(cold), auth_config()).await;
        let caller = authenticate(&other.broker, Some(secured.admin.expose())).unwrap();
        (between, other, RequestContext::of(caller, "test"))
    }

    /// Has tenant `acme` deleted, and created again, when the key is read next.
    fn renew_acme(&self, secured: &Secured) {
        let (broker, admin) = (Arc::clone(secured.broker()), secured.admin());
        *self.then.lock() = Some(Box::pin(async move {
            let acme = || "acme".to_owned();
            loop {
                let deleted = broker.delete_tenant(&admin, acme(), EVERYTHING).await;
                // The broker that has just started may take topics over meanwhile.
                if kind(&deleted) != Some(ErrorKind::Unavailable) {
                    deleted.unwrap();
                    break;
                }
                tokio::task::yield_now().await;
            }
            broker.create_tenant(&admin, acme()).await.unwrap();
        }));
    }

    fn was_reached(&self) -> bool {
        self.then.lock().is_none()
    }
}

#[async_trait]
impl Intercept for Between {
    fn inner(&self) -> &dyn MetadataStore {
        &*self.inner
    }

    async fn on_get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        let found = self.inner.get(key).await;
        if key == self.key {
            let then = self.then.lock().take();
            if let Some(then) = then {
                then.await;
            }
        }
        found
    }
}

/// What a new cluster is asked for.
pub async fn saved(old: &Secured, scope: BackupScope) -> RestoreAccess {
    let (broker, admin) = (old.broker(), old.admin());
    let begun = broker
        .begin_backup(&admin, "mem://1".to_owned(), scope)
        .await;
    let begun = begun.unwrap();
    broker.finish_backup(&admin, begun.id).await.unwrap();
    RestoreAccess {
        url: "mem://1".to_owned(),
        cluster: begun.cluster,
        backup: begun.id,
        files: begun.lists,
        tenant: None,
    }
}

#[tokio::test]
async fn tokens_and_grants_come_back_and_nothing_that_is_here_changes() {
    let cold = MemoryColdStore::default();
    let old = Secured::start_with(Some(&cold)).await;
    old.tenants().await;
    let saves = old.token(Some("acme"), "shop").await;
    let again = old.token(Some("acme"), "again").await;
    old.grant(&saves.token.principal, &[Action::Produce], "acme/shop")
        .await;
    let wanted = saved(&old, BackupScope::Cluster).await;

    let new = Secured::start_with(Some(&cold)).await;
    new.tenants().await;
    let newer = new.token(Some("acme"), "again").await;
    let restore = async |wanted: &RestoreAccess| {
        let admin = new.admin();
        let restored = new.broker().restore_access(&admin, wanted.clone());
        restored.await.unwrap()
    };
    let restored = restore(&wanted).await;
    // The first tokens of both clusters have one name, too.
    assert_eq!((restored.tokens, restored.refused), (1, 0), "{restored:?}");
    assert!(restored.grants >= 1 && restored.kept >= 2, "{restored:?}");
    let shown = |secret: &str| authenticate(new.broker(), Some(secret));
    let caller = shown(saves.secret.expose()).unwrap();
    let caller = RequestContext::of(caller, "test");
    let grants = new.broker().who_am_i(&caller).await.unwrap().grants;
    assert_eq!(grants.len(), 1);
    assert_eq!(grants[0].actions, [Action::Produce]);
    shown(newer.secret.expose()).unwrap();
    assert!(shown(again.secret.expose()).is_err(), "it was made again");
    assert!(shown(old.admin.expose()).is_err(), "of the other cluster");
    // Once more nothing happens, and what was revoked since stays so.
    let id = saves.token.id.clone();
    new.broker().revoke_token(&new.admin(), id).await.unwrap();
    let repeated = restore(&wanted).await;
    assert_eq!((repeated.tokens, repeated.grants), (0, 0), "{repeated:?}");
    assert!(shown(saves.secret.expose()).is_err());
    // A file that is named again is not read again.
    let mut twice = wanted.clone();
    twice.files.extend(wanted.files.clone());
    let refused = new.broker().restore_access(&new.admin(), twice).await;
    assert!(refused.is_err(), "{refused:?}");
    let mut long = wanted;
    long.files[0].bytes = 1 << 40;
    let refused = new.broker().restore_access(&new.admin(), long).await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn nothing_is_given_in_the_tenant_of_the_brokers() {
    let cold = MemoryColdStore::default();
    let old = Secured::start_with(Some(&cold)).await;
    old.tenants().await;
    let made = old.token(Some("acme"), "shop").await;
    let principal = &made.token.principal;
    let given = old.grant(principal, &[Action::Produce], "acme/shop").await;
    let key = keys::grant(Some("acme"), &given.id);
    let found = old.store.get(&key).await.unwrap().unwrap();
    let mut forged: GrantRecord = record::decode(&found).unwrap();
    forged.tenant = "aquifer".to_owned();
    let (key, value) = (
        keys::grant(Some("aquifer"), &given.id),
        record::encode(forged),
    );
    let put = old
        .store
        .put(keys::CLUSTER_PARTITION, &key, value, Expect::Any);
    put.await.unwrap();
    let wanted = saved(&old, BackupScope::Cluster).await;

    let new = Secured::start_with(Some(&cold)).await;
    new.tenants().await;
    until("the tenant to be there", || async {
        let found = new.store.get(&keys::tenant("aquifer")).await;
        found.unwrap().is_some()
    })
    .await;
    let restored = new.broker().restore_access(&new.admin(), wanted).await;
    let restored = restored.unwrap();
    assert!(restored.refused >= 1, "{restored:?}");
    assert_eq!(new.store.get(&key).await.unwrap(), None);
}

#[tokio::test]
async fn a_backup_of_a_tenant_gives_nothing_elsewhere_and_no_one_gives_what_it_lacks() {
    let cold = MemoryColdStore::default();
    let old = Secured::start_with(Some(&cold)).await;
    old.tenants().await;
    for tenant in ["acme", "beta"] {
        let made = old.token(Some(tenant), "shop").await;
        let scope = format!("{tenant}/shop");
        old.grant(&made.token.principal, &[Action::Consume], &scope)
            .await;
    }
    let of_tenant = saved(&old, BackupScope::Tenant("acme".to_owned())).await;
    let of_all = saved(&old, BackupScope::Cluster).await;

    let new = Secured::start_with(Some(&cold)).await;
    new.tenants().await;
    // One that may operate may not grant.
    let operator = new.with("operator", &[(&[Action::Operate], "")]).await;
    let refused = new.broker().restore_access(&operator, of_all.clone()).await;
    let refused = refused.unwrap();
    assert_eq!(
        (refused.tokens, refused.grants, refused.kept),
        (0, 0, 0),
        "{refused:?}"
    );
    assert!(refused.refused >= 4, "{refused:?}");
    let restore = async |wanted: RestoreAccess| {
        let restored = new.broker().restore_access(&new.admin(), wanted).await;
        restored.unwrap()
    };
    let one = RestoredAccess {
        tokens: 1,
        grants: 1,
        ..RestoredAccess::default()
    };
    assert_eq!(restore(of_tenant).await, one);
    let other = RestoreAccess {
        tenant: Some("beta".to_owned()),
        ..of_all
    };
    assert_eq!(restore(other).await, one);
}

/// Roles come back with the grants that name them; what went with its tenant does not.
#[tokio::test]
async fn roles_come_back_and_what_was_deleted_with_its_tenant_does_not() {
    let cold = MemoryColdStore::default();
    let old = Secured::start_with(Some(&cold)).await;
    old.tenants().await;
    let (broker, admin) = (old.broker(), old.admin());
    let name = RoleName {
        tenant: Some("acme".to_owned()),
        name: "reader".to_owned(),
    };
    let actions = vec![Action::Describe, Action::Consume];
    let made = broker.create_role(&admin, name.clone(), actions.clone());
    made.await.unwrap();
    let token = old.token(Some("acme"), "shop").await;
    let given = AddGrant {
        given: Given::Role("reader".to_owned()),
        ..grant(&token.token.principal, &[], "acme/shop")
    };
    broker.add_grant(&admin, given).await.unwrap();
    let wanted = saved(&old, BackupScope::Tenant("acme".to_owned())).await;

    let new = Secured::start_with(Some(&cold)).await;
    new.tenants().await;
    let admin = new.admin();
    let restored = new.broker().restore_access(&admin, wanted.clone());
    let restored = restored.await.unwrap();
    assert_eq!(
        (restored.tokens, restored.grants, restored.refused),
        (1, 2, 0)
    );
    let caller = new.caller(&token.secret);
    let found = new.broker().who_am_i(&caller).await.unwrap().grants;
    assert_eq!(found[0].actions, actions);

    // The tenant goes, and one of its name is made.
    let admin = new.admin();
    let deleted = new
        .broker()
        .delete_tenant(&admin, "acme".to_owned(), EVERYTHING);
    deleted.await.unwrap();
    let created = new.broker().create_tenant(&admin, "acme".to_owned());
    created.await.unwrap();
    until("the role to go with its tenant", || async {
        let roles = new.broker().list_roles(&admin, name.tenant.clone()).await;
        roles.unwrap().iter().all(|role| role.built_in)
    })
    .await;
    let again = new.broker().restore_access(&admin, wanted).await.unwrap();
    assert_eq!(
        (again.tokens, again.grants, again.refused),
        (0, 0, 3),
        "{again:?}"
    );
    assert!(authenticate(new.broker(), Some(token.secret.expose())).is_err());
}

/// Grants go with the namespaces of a tenant, before the rest of it, and the clock of the broker
/// that has made one may be ahead of that of the broker that deletes the tenant.
#[tokio::test]
async fn grants_that_went_with_a_namespace_of_a_deleted_tenant_do_not_come_back() {
    for ahead_ms in [0, 3_600_000] {
        let cold = MemoryColdStore::default();
        let old = Secured::start_with(Some(&cold)).await;
        old.tenants().await;
        let now = old.clock.wall_ms();
        old.clock.set_wall_ms(now + ahead_ms);
        old.grant("jwt:sso:alice", &[Action::Consume], "acme/shop")
            .await;
        old.clock.set_wall_ms(now);
        let wanted = saved(&old, BackupScope::Tenant("acme".to_owned())).await;

        let new = Secured::start_with(Some(&cold)).await;
        new.tenants().await;
        let (broker, admin) = (new.broker(), new.admin());
        let restored = broker.restore_access(&admin, wanted.clone()).await;
        assert_eq!(restored.unwrap().grants, 1);
        let everything = Removal {
            force: true,
            dry_run: false,
        };
        let deleted = broker.delete_tenant(&admin, "acme".to_owned(), everything);
        deleted.await.unwrap();
        let created = broker.create_tenant(&admin, "acme".to_owned());
        created.await.unwrap();
        let again = broker.restore_access(&admin, wanted).await.unwrap();
        assert_eq!(
            (again.grants, again.refused),
            (0, 1),
            "{ahead_ms}: {again:?}"
        );
    }
}

/// A caller whose token of an issuer was refused does not get in again after a restore.
#[tokio::test]
async fn revoked_tokens_of_issuers_stay_revoked() {
    let (cold, folder) = (MemoryColdStore::default(), tempfile::tempdir().unwrap());
    let start = async || Secured::start_as(trusting(folder.path()), Some(&cold)).await;
    let old = start().await;
    old.tenants().await;
    for revoke in [
        Revoke::Token("sso:t-1".to_owned()),
        Revoke::Principal("jwt:sso:bob".to_owned(), None),
    ] {
        let made = old.broker().add_revocation(&old.admin(), revoke).await;
        made.unwrap();
    }
    let of_tenant = saved(&old, BackupScope::Tenant("acme".to_owned())).await;
    let of_all = saved(&old, BackupScope::Cluster).await;

    let new = start().await;
    let (broker, admin) = (new.broker(), new.admin());
    let revoked = [token(&new, "alice", "t-1", 5), token(&new, "bob", "t-2", 5)];
    let other = token(&new, "alice", "t-3", 5);
    let accepted = |text: &String| authenticate(broker, Some(text)).is_ok();
    let restored = broker.restore_access(&admin, of_tenant).await.unwrap();
    assert_eq!(restored.revocations, 0, "{restored:?}");
    assert!(revoked.iter().all(accepted) && accepted(&other));
    // They are of the whole cluster, whichever tenant is asked for.
    let wanted = RestoreAccess {
        tenant: Some("acme".to_owned()),
        ..of_all
    };
    let restored = broker.restore_access(&admin, wanted.clone()).await;
    let restored = restored.unwrap();
    assert_eq!((restored.revocations, restored.refused), (2, 0));
    assert!(!revoked.iter().any(accepted) && accepted(&other));
    let again = broker.restore_access(&admin, wanted.clone()).await.unwrap();
    assert_eq!((again.revocations, again.kept), (0, 2));
    // One that refuses nothing any more does not come back.
    for made in broker.list_revocations(&admin, page()).await.unwrap().items {
        let removed = broker.remove_revocation(&admin, made.id).await;
        removed.unwrap();
    }
    new.clock.set_wall_ms(new.clock.wall_ms() + 3_600_000);
    let later = broker.restore_access(&admin, wanted).await.unwrap();
    assert_eq!((later.revocations, later.kept), (0, 0), "{later:?}");
}

/// A tenant is deleted, and created again, between two looks of a restore: what went with it does
/// not come back (I12).
#[tokio::test]
async fn what_is_forgotten_while_it_is_restored_does_not_come_back() {
    let cold = MemoryColdStore::default();
    let old = Secured::start_with(Some(&cold)).await;
    old.tenants().await;
    let saves = old.token(Some("acme"), "shop").await;
    let wanted = saved(&old, BackupScope::Tenant("acme".to_owned())).await;

    let new = Secured::start_with(Some(&cold)).await;
    new.tenants().await;
    new.token(Some("acme"), "other").await;
    let (between, other, admin) = Between::of(&new, &cold, keys::forgotten(Some("acme"))).await;
    between.renew_acme(&new);
    let restored = other.broker.restore_access(&admin, wanted.clone()).await;
    assert!(between.was_reached());
    assert!(restored.is_err(), "{restored:?}");
    let again = other.broker.restore_access(&admin, wanted).await.unwrap();
    assert_eq!((again.tokens, again.refused), (0, 1), "{again:?}");
    let key = keys::token(&saves.token.id);
    assert_eq!(new.store.get(&key).await.unwrap(), None);
}

/// A grant to a token is not made while the token's tenant is deleted, wherever the grant is: the
/// next tenant of the name may give the token's name again (I12).
#[tokio::test]
async fn a_grant_elsewhere_does_not_survive_the_tenant_of_its_token() {
    let cold = MemoryColdStore::default();
    let secured = Secured::start_with(Some(&cold)).await;
    secured.tenants().await;
    secured.token(Some("acme"), "ci").await;
    let (between, other, admin) = Between::of(&secured, &cold, keys::tenant("beta")).await;
    between.renew_acme(&secured);
    let grant = |principal: &str| grant(principal, &[Action::Consume], "beta/shop");
    let added = other.broker.add_grant(&admin, grant("token:acme/ci")).await;
    assert!(between.was_reached());
    assert!(added.is_err(), "{added:?}");
    // A tenant that is not there yet is not being deleted.
    for principal in ["token:acme/ci", "token:later/ci"] {
        let added = other.broker.add_grant(&admin, grant(principal)).await;
        assert!(added.is_ok(), "{added:?}");
    }
}
