//! The topic of the audit log: lines reach it, a tenant's auditors see theirs, and only brokers
//! write there.

use std::time::Duration;

use aquifer_model::backup::RestoreTopic;
use aquifer_model::id::{BackupId, LedgerId};
use aquifer_model::place::Place;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::admin::{Admin, Removal};
use aquifer_protocol_api::backup::Backups;
use aquifer_protocol_api::consumer::Held;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::pull::Append;
use aquifer_protocol_api::security::{ReadAudit, Security};
use serde_json::Value;

use crate::security::Secured;
use crate::support::{batch, kind, name};

const TOPIC: &str = "aquifer/system/audit";
/// Tries to find a line, each after a pause.
const TRIES: u32 = 500;

/// All lines that a caller may read, page by page.
async fn lines(secured: &Secured, caller: &RequestContext, tenant: Option<&str>) -> Vec<Value> {
    let mut from = Place::Earliest;
    let mut found = Vec::new();
    loop {
        let request = ReadAudit {
            tenant: tenant.map(str::to_owned),
            from,
            before: None,
            limit: 3,
            wait: Duration::ZERO,
        };
        let page = secured.broker().read_audit(caller, request).await.unwrap();
        assert!(page.lines.len() <= 3 && page.missing == 0, "{page:?}");
        let parsed = page.lines.iter().map(|line| serde_json::from_str(line));
        found.extend(parsed.map(Result::unwrap));
        if page.at_end || from == Place::Index(page.next) {
            return found;
        }
        from = Place::Index(page.next);
    }
}

/// The same once a request was done.
async fn lines_with(secured: &Secured, request: &str, resource: &str) -> Vec<Value> {
    for _ in 0..TRIES {
        let found = lines(secured, &secured.admin(), None).await;
        let is_there = |line: &Value| {
            line["request"] == request && line["resource"] == resource && line["outcome"] == "done"
        };
        if found.iter().any(is_there) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{request} of {resource} is not in the topic");
}

/// Not even one that may do everything in the cluster deletes the lines, or puts others there.
#[tokio::test]
async fn the_tenant_of_the_topic_is_neither_deleted_nor_restored_into() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let last = name("beta/shop/returns").to_string();
    lines_with(&secured, "create_topic", &format!("topic {last}")).await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let force = Removal {
        force: true,
        dry_run: false,
    };
    let deleted = broker.delete_tenant(&admin, "aquifer".to_owned(), force);
    assert_eq!(kind(&deleted.await), Some(ErrorKind::InvalidArgument));
    let wanted = RestoreTopic {
        url: "mem://1".to_owned(),
        cluster: "test".to_owned(),
        backup: BackupId([1; 16]),
        topic: name("aquifer/system/other"),
        as_topic: None,
        files: Vec::new(),
        last_ledger: LedgerId(1),
        trim_after_ms: None,
        prepare: false,
    };
    let restored = broker.restore_topic(&admin, wanted).await.unwrap_err();
    assert_eq!(restored.kind, ErrorKind::InvalidArgument);
    let text = restored.message;
    assert!(text.contains("kept for topics of the brokers"), "{text}");
    assert!(!lines(&secured, &admin, None).await.is_empty());
}

#[tokio::test]
async fn lines_are_in_the_topic_and_a_tenants_auditor_reads_its_own() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let last = name("beta/shop/returns").to_string();
    let all = lines_with(&secured, "create_topic", &format!("topic {last}")).await;
    let numbers: Vec<u64> = all.iter().filter_map(|line| line["seq"].as_u64()).collect();
    let expected: Vec<u64> = (0..numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "each line once, in order");
    assert_eq!(all[0]["request"], "start_broker");
    for (before, after) in all.iter().zip(&all[1..]) {
        assert_eq!(after["prev"], before["hash"]);
        assert_eq!(after["chain"], before["chain"]);
    }

    let auditor = secured.with("auditor", &[(&[Action::Audit], "acme")]).await;
    let own = lines(&secured, &auditor, Some("acme")).await;
    assert!(own.len() >= 8, "{own:?}");
    assert!(own.iter().all(|line| line["tenant"] == "acme"), "{own:?}");
    // What needs a permission for something larger is about the tenant all the same.
    for (request, resource) in [
        ("create_tenant", "tenant acme"),
        ("create_namespace", "namespace acme/shop"),
    ] {
        let made = own.iter().filter(|line| line["request"] == request);
        let made: Vec<_> = made.map(|line| &line["resource"]).collect();
        assert_eq!(made, [resource, resource], "intended and done");
    }
    for foreign in [None, Some("beta")] {
        let request = ReadAudit {
            tenant: foreign.map(str::to_owned),
            from: Place::Earliest,
            before: None,
            limit: 1,
            wait: Duration::ZERO,
        };
        let refused = secured.broker().read_audit(&auditor, request).await;
        assert_eq!(kind(&refused), Some(ErrorKind::PermissionDenied));
    }
}

#[tokio::test]
async fn only_brokers_write_what_proves_something() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let last = name("beta/shop/returns").to_string();
    let before = lines_with(&secured, "create_topic", &format!("topic {last}")).await;
    let granted = secured.with("forger", &[(&Action::GRANTED, "")]).await;
    let broker = secured.broker();
    for caller in [&granted, &secured.admin()] {
        let append = Append {
            topic: name(TOPIC),
            incarnation: None,
            format: aquifer_model::format::FORMAT_NATIVE,
            body: batch("p", 0, &["{\"seq\":0}"]),
            held: Held::default(),
        };
        let forged = broker.append(caller, append).await;
        assert_eq!(kind(&forged), Some(ErrorKind::PermissionDenied));
        let how = aquifer_protocol_api::admin::Deletion::Force;
        let deleted = broker.delete_topic(caller, name(TOPIC), how).await;
        assert_eq!(kind(&deleted), Some(ErrorKind::PermissionDenied));
        let made = broker.create_tenant(caller, "aquifer".to_owned()).await;
        assert!(kind(&made).is_some(), "the tenant is the brokers'");
    }
    let after = lines(&secured, &secured.admin(), None).await;
    assert_eq!(after[..before.len()], before[..]);
}
