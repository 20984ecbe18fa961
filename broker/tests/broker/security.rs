//! Authentication, grants and their decisions (I12): who may do what, that what is forbidden looks
//! like what is absent, and that sessions end with what allowed them.

mod acceptance;
mod audit;
mod audit_topic;
mod ended;
mod escalation;
mod matrix;
mod pages;
mod restored;
mod revocations;
mod roles;
mod room;
mod sessions;

use std::sync::Arc;

use aquifer_broker::{AuthConfig, Broker, BrokerConfig, create_first_token};
use aquifer_ledger::testing::TestWorld;
use aquifer_log::offload::tier::OffloadSettings;
use aquifer_log::testing::{MemoryColdStore, TestLogs, over_cold};
use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::store::MetadataStore;
use aquifer_model::policy::Policies;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::admin::{Admin, PageRequest};
use aquifer_protocol_api::context::{Principal, RequestContext};
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind};
use aquifer_protocol_api::scope::{GrantScope, Pattern};
use aquifer_protocol_api::security::{
    AddGrant, Authenticator, CreateToken, Given, GrantInfo, NewToken, Security, Shown,
};
use aquifer_runtime::clock::{ManualClock, SystemClock};
use aquifer_runtime::disk::{Disk, SimDisk};
use aquifer_runtime::secret::Secret;
use aquifer_runtime::task::TaskGroup;

use crate::support::{Harness, config, kind, name};

/// A broker that authenticates its callers, and its first token.
pub struct Secured {
    pub harness: Harness,
    pub admin: Secret,
    pub store: Arc<dyn MetadataStore>,
    pub clock: Arc<ManualClock>,
    config: BrokerConfig,
    _tasks: TaskGroup,
}

pub fn auth_config() -> BrokerConfig {
    BrokerConfig {
        auth: AuthConfig {
            enabled: true,
            ..AuthConfig::default()
        },
        ..config()
    }
}

impl Secured {
    pub async fn start() -> Secured {
        Secured::start_with(None).await
    }

    /// With objects in this store.
    pub async fn start_with(cold: Option<&MemoryColdStore>) -> Secured {
        Secured::start_as(auth_config(), cold).await
    }

    /// With these settings.
    pub async fn start_as(config: BrokerConfig, cold: Option<&MemoryColdStore>) -> Secured {
        let disk = SimDisk::new();
        disk.create_dir_all("/data".as_ref()).unwrap();
        let tasks = TaskGroup::new("store");
        let store = EmbeddedStore::open(
            "/data/metadata.redb".into(),
            EmbeddedOptions::default(),
            disk.shared(),
            SystemClock::shared(),
            &tasks,
        );
        let store: Arc<dyn MetadataStore> = Arc::new(store.await.unwrap());
        let mut kept = None;
        let keep = |secret: &Secret| {
            kept = Some(secret.clone());
            Ok(())
        };
        assert!(create_first_token(&*store, 1, keep).await.unwrap());
        let world = TestWorld::new(1);
        let clock = world.clock.clone().unwrap();
        let harness = over(world, &store, cold, config.clone()).await;
        Secured {
            harness,
            admin: kept.unwrap(),
            store,
            clock,
            config,
            _tasks: tasks,
        }
    }

    /// Another broker over the same storage.
    pub async fn another(&self) -> Harness {
        let world = self.harness.world.clone();
        over(world, &self.store, None, self.config.clone()).await
    }

    pub fn broker(&self) -> &Arc<Broker> {
        &self.harness.broker
    }

    pub fn admin(&self) -> RequestContext {
        self.caller(&self.admin)
    }

    /// The context of a caller that shows a token.
    pub fn caller(&self, secret: &Secret) -> RequestContext {
        let principal = authenticate(self.broker(), Some(secret.expose()));
        RequestContext::of(principal.unwrap(), "test")
    }

    pub async fn token(&self, tenant: Option<&str>, name: &str) -> NewToken {
        let create = CreateToken {
            name: name.to_owned(),
            tenant: tenant.map(str::to_owned),
            lifetime_ms: None,
        };
        let made = self.broker().create_token(&self.admin(), create).await;
        made.unwrap()
    }

    /// A caller with a new token and these grants.
    pub async fn with(&self, token: &str, grants: &[(&[Action], &str)]) -> RequestContext {
        let made = self.token(None, token).await;
        for (actions, scope) in grants {
            let grant = grant(&made.token.principal, actions, scope);
            let added = self.broker().add_grant(&self.admin(), grant).await;
            added.unwrap();
        }
        self.caller(&made.secret)
    }

    pub async fn grant(&self, principal: &str, actions: &[Action], scope: &str) -> GrantInfo {
        let grant = grant(principal, actions, scope);
        let added = self.broker().add_grant(&self.admin(), grant).await;
        added.unwrap()
    }

    /// Tenants `acme` and `beta`, each with a namespace `shop` and two topics.
    pub async fn tenants(&self) {
        let (broker, admin) = (self.broker(), self.admin());
        for tenant in ["acme", "beta"] {
            let created = broker.create_tenant(&admin, tenant.to_owned()).await;
            created.unwrap();
            let shop = NamespaceName::new(tenant, "shop").unwrap();
            let created = broker.create_namespace(&admin, shop, Policies::default());
            created.await.unwrap();
            for topic in ["orders", "returns"] {
                let topic = name(&format!("{tenant}/shop/{topic}"));
                broker.create_topic(&admin, topic, 0).await.unwrap();
            }
        }
    }
}

async fn over(
    world: TestWorld,
    store: &Arc<dyn MetadataStore>,
    cold: Option<&MemoryColdStore>,
    config: BrokerConfig,
) -> Harness {
    let transport = Arc::new(world.bookies.clone());
    let (store, settings) = (Arc::clone(store), TestWorld::settings());
    let log = match cold {
        None => world.logs_with(store, transport, settings),
        Some(cold) => {
            let ledgers = world.process_with(store, transport, settings);
            over_cold(ledgers, cold, OffloadSettings::default())
        }
    };
    Harness::over(world, config, log).await
}

pub fn authenticate(broker: &Broker, bearer: Option<&str>) -> ApiResult<Principal> {
    broker.authenticate(&Shown {
        bearer: Ok(bearer),
        certificate: None,
        peer: None,
        protocol: "test",
        request: "test",
        request_id: None,
    })
}

/// A scope of `tenant/namespace/topic`, or less of it.
pub fn scope(text: &str) -> GrantScope {
    let mut parts = text.split('/').chain(std::iter::repeat(""));
    let mut next = || parts.next().unwrap_or_default();
    GrantScope::new(next(), next(), next()).unwrap()
}

pub fn grant(principal: &str, actions: &[Action], of: &str) -> AddGrant {
    AddGrant {
        principal: principal.to_owned(),
        given: Given::Actions(actions.to_vec()),
        scope: scope(of),
        subscriptions: Pattern::any(),
        lifetime_ms: None,
        request_id: None,
    }
}

pub fn refused<T>(result: ApiResult<T>) -> ApiError {
    match result {
        Ok(_) => panic!("it is not refused"),
        Err(error) => error,
    }
}

fn page() -> PageRequest {
    PageRequest {
        after: None,
        limit: 100,
    }
}

#[tokio::test]
async fn only_what_is_a_live_token_authenticates() {
    let secured = Secured::start().await;
    let broker = secured.broker();
    let made = secured.token(None, "billing").await;
    assert_eq!(made.token.principal, "token:billing");
    let text = made.secret.expose();
    assert_eq!(text.len(), 80, "{text}");
    assert!(authenticate(broker, Some(text)).is_ok());
    let mut other = text.to_owned();
    other.replace_range(10..11, if &text[10..11] == "a" { "b" } else { "a" });
    for bad in [
        None,
        Some(""),
        Some("aqf_"),
        Some(&*other),
        Some(&text[..79]),
    ] {
        let error = refused(authenticate(broker, bad));
        assert_eq!(error.kind, ErrorKind::Unauthenticated, "{bad:?}");
    }
    let again = CreateToken {
        name: "billing".to_owned(),
        tenant: None,
        lifetime_ms: None,
    };
    let again = broker.create_token(&secured.admin(), again).await;
    assert_eq!(kind(&again), Some(ErrorKind::AlreadyExists));
    // Nothing of the secret is stored.
    let stored = secured.store.scan("auth/", None, 100).await.unwrap();
    let secret = &text.as_bytes()[31..];
    for item in stored.items {
        let found = item.value.windows(secret.len()).any(|part| part == secret);
        assert!(!found, "{}", item.key);
    }
}

#[tokio::test]
async fn a_rotated_secret_goes_on_for_its_grace_period_and_a_revoked_one_does_not() {
    let secured = Secured::start().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let made = secured.token(None, "billing").await;
    let rotated = broker.rotate_token(&admin, made.token.id.clone(), Some(60_000));
    let rotated = rotated.await.unwrap();
    let accepts = |secret: &Secret| authenticate(broker, Some(secret.expose())).is_ok();
    assert!(accepts(&made.secret) && accepts(&rotated.secret));
    secured.clock.advance(std::time::Duration::from_secs(61));
    assert!(!accepts(&made.secret) && accepts(&rotated.secret));
    // Its holder may, without a grant.
    let own = secured.caller(&rotated.secret);
    let revoked = broker.revoke_token(&own, made.token.id.clone()).await;
    revoked.unwrap();
    assert!(!accepts(&rotated.secret));
    let revived = broker.rotate_token(&admin, made.token.id, None).await;
    assert_eq!(kind(&revived), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn what_is_forbidden_and_what_is_absent_are_told_alike() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let broker = secured.broker();
    let caller = secured
        .with("acme", &[(&Action::GRANTED[..5], "acme")])
        .await;
    let foreign = secured.token(Some("beta"), "hidden").await;
    let granted = secured.grant("token:x", &[Action::Describe], "beta").await;
    let mut told = Vec::new();
    for topic in [
        "beta/shop/orders",
        "beta/shop/none",
        "beta/none/x",
        "gamma/none/x",
    ] {
        told.push(refused(broker.topic_stats(&caller, name(topic)).await));
        told.push(refused(
            broker.describe_topic(&caller, name(topic), true).await,
        ));
        let deleted = aquifer_protocol_api::admin::Deletion::Force;
        told.push(refused(
            broker.delete_topic(&caller, name(topic), deleted).await,
        ));
    }
    for tenant in ["beta", "gamma"] {
        let listed = broker
            .list_namespaces(&caller, tenant.to_owned(), page())
            .await;
        told.push(refused(listed));
        let shop = NamespaceName::new(tenant, "shop").unwrap();
        told.push(refused(broker.list_topics(&caller, shop, page()).await));
    }
    for id in [&*foreign.token.id, "aaaaaaaaaaaaaaaaaaaaaaaaab"] {
        told.push(refused(broker.revoke_token(&caller, id.to_owned()).await));
        told.push(refused(
            broker.rotate_token(&caller, id.to_owned(), None).await,
        ));
    }
    for id in [&*granted.id, "aaaaaaaaaaaaaaaaaaaaaaaaab"] {
        let removed = broker
            .remove_grant(&caller, id.to_owned(), scope("beta"))
            .await;
        told.push(refused(removed));
    }
    assert!(told.iter().all(|error| *error == told[0]), "{told:?}");
    assert_eq!(told[0].kind, ErrorKind::PermissionDenied);
    // A caller that may describe it is told that it is not there.
    let absent = broker.topic_stats(&caller, name("acme/shop/none")).await;
    assert_eq!(kind(&absent), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn lists_show_what_may_be_described() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let broker = secured.broker();
    let one = secured
        .with("one", &[(&[Action::Describe], "acme/shop/ord*")])
        .await;
    let tenants = broker.list_tenants(&one, page()).await.unwrap();
    assert_eq!(tenants.items, ["acme"]);
    let namespaces = broker
        .list_namespaces(&one, "acme".to_owned(), page())
        .await;
    let namespaces = namespaces.unwrap().items;
    assert_eq!(namespaces, ["acme/shop".parse().unwrap()]);
    let shop = || NamespaceName::new("acme", "shop").unwrap();
    let topics = broker.list_topics(&one, shop(), page()).await.unwrap();
    let topics: Vec<&str> = topics
        .items
        .iter()
        .map(|found| found.topic.name())
        .collect();
    assert_eq!(topics, ["orders"]);
    let nothing = broker
        .list_topics(&one, "beta/shop".parse().unwrap(), page())
        .await;
    assert_eq!(kind(&nothing), Some(ErrorKind::PermissionDenied));
    // With a grant on names that are not there nothing is shown, wherever that ends.
    let other = [(&[Action::Describe][..], "acme/none/x")];
    let other = secured.with("other", &other).await;
    let empty = broker
        .list_topics(&other, "acme/none".parse().unwrap(), page())
        .await;
    assert!(empty.unwrap().items.is_empty());
    let all = broker.list_topics(&secured.admin(), shop(), page()).await;
    assert_eq!(all.unwrap().items.len(), 2);
}

/// Without news of the store, decisions go on for ten minutes and no longer.
#[tokio::test]
async fn what_is_known_for_too_long_decides_nothing() {
    let world = TestWorld::new(1);
    let mut kept = None;
    let keep = |secret: &Secret| {
        kept = Some(secret.clone());
        Ok(())
    };
    create_first_token(&world.store, 1, keep).await.unwrap();
    let clock = world.clock.clone().unwrap();
    let log = world.logs();
    let harness = Harness::over(world, auth_config(), log).await;
    harness.world.store.set_unavailable(true);
    let (broker, admin) = (&harness.broker, kept.unwrap());
    clock.advance(std::time::Duration::from_secs(599));
    let principal = authenticate(broker, Some(admin.expose())).unwrap();
    let caller = RequestContext::of(principal, "test");
    assert!(broker.who_am_i(&caller).await.unwrap().super_user);
    clock.advance(std::time::Duration::from_secs(2));
    let late = broker.who_am_i(&caller).await;
    assert_eq!(kind(&late), Some(ErrorKind::Unavailable));
    let late = authenticate(broker, Some(admin.expose()));
    assert_eq!(kind(&late), Some(ErrorKind::Unavailable));
}
