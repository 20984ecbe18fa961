//! Every request, with every action: exactly those are let in that it declares.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use aquifer_broker::Broker;
use aquifer_model::backup::{BackupScope, ForgetBackup, RestoreAccess, RestoreTopic};
use aquifer_model::bundle::BundleRange;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{BackupId, BookieId, Index, LedgerId};
use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate};
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_protocol_api::access::{Action, Resource};
use aquifer_protocol_api::admin::{Admin, Clear, Deletion, Reimport, Removal};
use aquifer_protocol_api::backup::Backups;
use aquifer_protocol_api::consumer::Held;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::operator::Operator;
use aquifer_protocol_api::pull::{Append, Commit, Locate, Read, ReadLimits};
use aquifer_protocol_api::security::{
    CheckAccess, CreateToken, ReadAudit, Revoke, RoleName, Security,
};
use bytes::Bytes;

use crate::security::{Secured, grant, page, scope};
use crate::support::{kind, open, subscribe};

type Outcome = Pin<Box<dyn Future<Output = Option<ErrorKind>> + Send>>;

/// A request: its name on the wire, the actions of which each lets it in, and the request.
struct Row {
    rpc: &'static str,
    allowed: &'static [Action],
    call: fn(Arc<Broker>, RequestContext) -> Outcome,
}

macro_rules! rows {
    ($($rpc:literal $allowed:expr, |$broker:ident, $ctx:ident| $call:expr;)*) => {
        [$(Row {
            rpc: $rpc,
            allowed: $allowed,
            call: |$broker, $ctx| Box::pin(async move { kind(&$call.await) }),
        }),*]
    };
}

/// What the handshake tells is no tenant's; the streams of bookies have certificates.
const WITHOUT: [&str; 5] = [
    "Bookie/Has",
    "Bookie/Ordered",
    "Bookie/Read",
    "Bookie/Wait",
    "Broker/Handshake",
];

fn topic() -> TopicName {
    "acme/shop/orders".parse().unwrap()
}

fn shop() -> NamespaceName {
    "acme/shop".parse().unwrap()
}

fn id() -> String {
    "aaaaaaaaaaaaaaaaaaaaaaaaab".to_owned()
}

fn role(name: &str) -> RoleName {
    RoleName {
        tenant: Some("acme".to_owned()),
        name: name.to_owned(),
    }
}

fn no_bundle() -> BundleRange {
    BundleRange { first: 1, last: 2 }
}

fn rows() -> impl Iterator<Item = Row> {
    rows_of_tenants().chain(rows_of_the_rest())
}

#[rustfmt::skip]
fn rows_of_tenants() -> impl Iterator<Item = Row> {
    use Action::{Consume, Describe, Manage, Produce};
    rows![
        "Admin/CreateTenant" &[Manage], |b, c| b.create_tenant(&c, "acme".to_owned());
        "Admin/ListTenants" &[Describe], |b, c| b.list_tenants(&c, page());
        "Admin/DeleteTenant" &[Manage], |b, c| b.delete_tenant(&c, "nothing".to_owned(), Removal { force: false, dry_run: true });
        "Admin/DeleteNamespace" &[Manage], |b, c| b.delete_namespace(&c, "acme/nothing".parse().unwrap(), Removal { force: true, dry_run: false });
        "Admin/CreateNamespace" &[Manage], |b, c| b.create_namespace(&c, shop(), Policies::default());
        "Admin/GetPolicies" &[Describe], |b, c| b.get_policies(&c, PolicyScope::Topic(topic()));
        "Admin/UpdatePolicies" &[Manage], |b, c| b.update_policies(&c, PolicyScope::Namespace(shop()), PolicyUpdate::default());
        "Admin/ListNamespaces" &[Describe], |b, c| b.list_namespaces(&c, "acme".to_owned(), page());
        "Admin/CreateTopic" &[Manage], |b, c| b.create_topic(&c, topic(), 0);
        "Admin/DescribeTopic" &[Describe], |b, c| b.describe_topic(&c, topic(), false);
        "Admin/DescribeTopic" &[Describe, Produce, Consume], |b, c| b.describe_topic(&c, topic(), true);
        "Admin/DeleteTopic" &[Manage], |b, c| b.delete_topic(&c, topic(), Deletion::Check);
        "Admin/DeleteTopic" &[Manage], |b, c| b.delete_topic_dry_run(&c, topic());
        "Admin/OffloadTopic" &[Manage], |b, c| b.offload_topic(&c, topic(), Place::Latest);
        "Admin/ReimportTopic" &[Manage], |b, c| b.reimport_topic(&c, topic(), Reimport::Cancel);
        "Admin/GrowTopic" &[Manage], |b, c| b.grow_topic(&c, topic(), 3);
        "Admin/UnloadTopic" &[Manage], |b, c| b.unload_topic(&c, topic());
        "Admin/TerminateTopic" &[Manage], |b, c| b.terminate_topic(&c, "acme/shop/none".parse().unwrap());
        "Admin/ListTopics" &[Describe], |b, c| b.list_topics(&c, shop(), page());
        "Admin/TopicStats" &[Describe], |b, c| b.topic_stats(&c, topic());
        "Admin/DeleteSubscription" &[Consume], |b, c| b.delete_subscription(&c, topic(), "s".parse().unwrap(), false);
        "Admin/CreateSubscription" &[Consume], |b, c| b.create_subscription(&c, topic(), "s".parse().unwrap(), Place::Earliest, Default::default());
        "Admin/SeekSubscription" &[Consume], |b, c| b.seek_subscription(&c, topic(), "s".parse().unwrap(), Place::Earliest);
        "Admin/SkipMessages" &[Consume], |b, c| b.skip_messages(&c, topic(), "s".parse().unwrap(), None);
        "Admin/ClearSubscription" &[Consume], |b, c| b.clear_subscription(&c, topic(), "s".parse().unwrap(), Clear { older_than_ms: None, dry_run: false });
        "Admin/ClearSubscription" &[Consume], |b, c| b.clear_subscription(&c, topic(), "s".parse().unwrap(), Clear { older_than_ms: Some(1), dry_run: true });
        "Admin/PeekMessages" &[Consume], |b, c| b.peek_messages(&c, topic(), "s".parse().unwrap(), 1);
        "Admin/ResetSubscriptions" &[Manage], |b, c| b.reset_subscriptions(&c, topic());
    ]
    .into_iter()
}

#[rustfmt::skip]
fn rows_of_the_rest() -> impl Iterator<Item = Row> {
    use Action::{Audit, Consume, Describe, Grant, Manage, Operate, Produce};
    const ANY: &[Action] = &Action::GRANTED;
    rows![
        "Operator/ListBrokers" &[Describe], |b, c| b.list_brokers(&c);
        "Operator/ListBundles" &[Describe], |b, c| b.list_bundles(&c, shop());
        "Operator/TransferBundle" &[Operate], |b, c| b.transfer_bundle(&c, shop(), no_bundle(), None);
        "Operator/SplitBundle" &[Operate], |b, c| b.split_bundle(&c, shop(), no_bundle(), None);
        "Operator/LoadReport" &[Operate], |b, c| b.load_report(&c);
        "Operator/ListBookies" &[Describe], |b, c| b.list_bookies(&c, true);
        "Operator/GetBookie" &[Describe], |b, c| b.get_bookie(&c, BookieId([1; 16]), false);
        "Operator/ListLedgers" &[Operate], |b, c| b.list_ledgers(&c, page());
        "Operator/ListTopicLedgers" &[Manage], |b, c| b.list_topic_ledgers(&c, topic(), page());
        "Operator/GetLedger" &[Operate], |b, c| b.get_ledger(&c, LedgerId(1));
        "Backup/BeginBackup" &[Operate], |b, c| b.begin_backup(&c, "mem://1".to_owned(), BackupScope::Cluster);
        "Backup/BackupTopic" &[Operate], |b, c| b.backup_topic(&c, BackupId([1; 16]), topic(), None);
        "Backup/FinishBackup" &[Operate], |b, c| b.finish_backup(&c, BackupId([1; 16]));
        "Backup/ForgetBackup" &[Operate], |b, c| b.forget_backup(&c, ForgetBackup { url: "mem://1".to_owned(), backup: None, unfinished: false });
        "Backup/RestoreAccess" &[Operate], |b, c| b.restore_access(&c, RestoreAccess { url: "mem://1".to_owned(), cluster: "c".to_owned(), backup: BackupId([1; 16]), files: Vec::new(), tenant: None });
        "Backup/RestoreTopic" &[Operate], |b, c| b.restore_topic(&c, restore());
        "Broker/Produce" &[Produce], |b, c| b.open_producer(&c, open("acme/shop/orders", "p"));
        "Broker/Consume" &[Consume], |b, c| b.subscribe(&c, subscribe("acme/shop/orders", "s"));
        "Pull/Append" &[Produce], |b, c| b.append(&c, append());
        "Pull/Read" &[Consume], |b, c| b.read(&c, read());
        "Pull/Locate" &[Describe], |b, c| b.locate(&c, Locate { topic: topic(), incarnation: None, place: Place::Earliest });
        "Pull/Bounds" &[Describe], |b, c| b.bounds(&c, topic());
        "Pull/Commit" &[Consume], |b, c| b.commit(&c, commit());
        "Pull/Committed" &[Describe], |b, c| b.committed(&c, topic(), "s".parse().unwrap());
        "Security/WhoAmI" ANY, |b, c| b.who_am_i(&c);
        "Security/CheckAccess" ANY, |b, c| b.check_access(&c, check(None));
        "Security/CheckAccess" &[Grant], |b, c| b.check_access(&c, check(Some("token:other")));
        "Security/CreateToken" &[Grant], |b, c| b.create_token(&c, CreateToken { name: "admin".to_owned() + "x", tenant: Some("acme".to_owned()), lifetime_ms: Some(0) });
        "Security/ListTokens" &[Grant], |b, c| b.list_tokens(&c, Some("acme".to_owned()), page());
        "Security/RotateToken" &[Grant], |b, c| b.rotate_token(&c, id(), None);
        "Security/RevokeToken" &[Grant], |b, c| b.revoke_token(&c, id());
        "Security/ReadAudit" &[Audit], |b, c| b.read_audit(&c, ReadAudit { tenant: Some("acme".to_owned()), from: Place::Earliest, before: None, limit: 1, wait: std::time::Duration::ZERO });
        "Security/AddGrant" &[Grant], |b, c| b.add_grant(&c, grant("token:other", &[Describe], "acme/shop"));
        "Security/ListGrants" &[Grant], |b, c| b.list_grants(&c, scope("acme"), None, page());
        "Security/RemoveGrant" &[Grant], |b, c| b.remove_grant(&c, id(), scope("acme"));
        "Security/CreateRole" &[Grant], |b, c| b.create_role(&c, role("viewer"), vec![Describe]);
        "Security/ListRoles" &[Describe], |b, c| b.list_roles(&c, Some("acme".to_owned()));
        "Security/GetRole" &[Describe], |b, c| b.get_role(&c, role("none"));
        "Security/UpdateRole" &[Grant], |b, c| b.update_role(&c, role("none"), vec![Describe]);
        "Security/DeleteRole" &[Grant], |b, c| b.delete_role(&c, role("none"));
        "Security/AddRevocation" &[Grant], |b, c| b.add_revocation(&c, Revoke::Token("sso:1".to_owned()));
        "Security/ListRevocations" &[Grant], |b, c| b.list_revocations(&c, page());
        "Security/RemoveRevocation" &[Grant], |b, c| b.remove_revocation(&c, id());
    ]
    .into_iter()
}

fn restore() -> RestoreTopic {
    RestoreTopic {
        url: "mem://1".to_owned(),
        cluster: "c".to_owned(),
        backup: BackupId([1; 16]),
        topic: topic(),
        as_topic: None,
        files: Vec::new(),
        last_ledger: LedgerId(1),
        trim_after_ms: None,
        prepare: false,
    }
}

fn append() -> Append {
    Append {
        topic: topic(),
        incarnation: None,
        format: FORMAT_NATIVE,
        body: Bytes::from_static(b"no batch"),
        held: Held::default(),
    }
}

fn read() -> Read {
    Read {
        topic: topic(),
        incarnation: None,
        from: Index(0),
        limits: ReadLimits {
            bytes_max: 1,
            batches_max: 1,
            bytes_min: 0,
        },
        wait: std::time::Duration::ZERO,
    }
}

fn commit() -> Commit {
    Commit {
        topic: topic(),
        incarnation: None,
        subscription: "s".parse().unwrap(),
        index: Index(0),
        create: true,
    }
}

fn check(principal: Option<&str>) -> CheckAccess {
    CheckAccess {
        principal: principal.map(str::to_owned),
        action: Action::Describe,
        resource: Resource::Topic(topic()),
    }
}

/// An RPC that is added without a row fails here.
#[test]
fn every_rpc_has_a_row() {
    let mut known: BTreeSet<&str> = rows().map(|row| row.rpc).collect();
    known.extend(WITHOUT);
    let all: BTreeSet<&str> = aquifer_proto::METHODS.iter().copied().collect();
    assert_eq!(known, all);
}

#[tokio::test]
async fn every_request_needs_exactly_what_it_declares() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let nothing = secured.with("nothing", &[]).await;
    let mut callers = Vec::new();
    for action in Action::GRANTED {
        let grants = [(&[action][..], "")];
        callers.push((action, secured.with(action.name(), &grants).await));
    }
    let broker = secured.broker();
    let unknown = RequestContext::anonymous("test");
    for row in rows() {
        let call = |ctx: &RequestContext| (row.call)(Arc::clone(broker), ctx.clone());
        let (rpc, any) = (row.rpc, row.allowed.len() == Action::GRANTED.len());
        assert_eq!(
            call(&unknown).await,
            Some(ErrorKind::Unauthenticated),
            "{rpc}"
        );
        let denied = Some(ErrorKind::PermissionDenied);
        assert_eq!(call(&nothing).await == denied, !any, "{rpc} without grants");
        for (action, caller) in &callers {
            let outcome = call(caller).await;
            let allowed = row.allowed.contains(action);
            let text = format!("{rpc} with {}: {outcome:?}", action.name());
            assert_eq!(outcome != denied, allowed, "{text}");
            assert_ne!(outcome, Some(ErrorKind::Unauthenticated), "{text}");
        }
    }
}
