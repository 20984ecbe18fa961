use aquifer_ledger::testing::MemoryStore;
use aquifer_proto::v1::AuditEndsRecord;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::security::{Refuses, RevocationInfo};
use aquifer_runtime::clock::SystemClock;

use super::*;

fn stored(key: String, value: bytes::Bytes) -> Versioned {
    Versioned {
        key,
        value,
        revision: Revision(1),
    }
}

fn token(id: &str, tenant: &str) -> Versioned {
    let record = TokenRecord {
        name: id.to_owned(),
        tenant: tenant.to_owned(),
        ..TokenRecord::default()
    };
    stored(keys::token(id), record::encode(record))
}

fn grant(tenant: Option<&str>, id: &str, principal: &str) -> Versioned {
    let record = GrantRecord {
        principal: principal.to_owned(),
        actions: vec!["describe".to_owned()],
        tenant: tenant.unwrap_or_default().to_owned(),
        subscriptions: "*".to_owned(),
        ..GrantRecord::default()
    };
    stored(keys::grant(tenant, id), record::encode(record))
}

fn role(tenant: &str, name: &str, actions: &[&str]) -> Versioned {
    let actions = actions.iter().map(|action| (*action).to_owned());
    let record = RoleRecord {
        actions: actions.collect(),
        ..RoleRecord::default()
    };
    stored(keys::role(Some(tenant), name), record::encode(record))
}

/// A grant of a role of `acme`, in that tenant.
fn grant_of_role(name: &str, id: &str, principal: &str) -> Versioned {
    let record = GrantRecord {
        principal: principal.to_owned(),
        role: name.to_owned(),
        role_of: Some("acme".to_owned()),
        tenant: "acme".to_owned(),
        subscriptions: "*".to_owned(),
        ..GrantRecord::default()
    };
    stored(keys::grant(Some("acme"), id), record::encode(record))
}

fn is_full(result: Result<(), BrokerError>) -> bool {
    matches!(result, Err(BrokerError::Quota { .. }))
}

/// What is counted of a tenant follows what comes, is replaced and goes.
#[test]
fn a_tenant_at_its_bound_leaves_room_to_others() {
    let bounds = Bounds::of_tenants(3);
    let mut state = State::default();
    let all = [
        token("1", "acme"),
        grant(Some("acme"), "2", "jwt:sso:alice"),
        role("acme", "reader", &["describe"]),
    ];
    let acme = Some("acme");
    for record in &all {
        assert!(!is_full(state.check_room(&bounds, acme)));
        state.put(record);
        // The same again is not another one.
        state.put(record);
    }
    assert!(is_full(state.check_room(&bounds, acme)));
    for other in [Some("beta"), None] {
        assert!(!is_full(state.check_room(&bounds, other)), "{other:?}");
    }
    // One that cannot be read any more is not there.
    state.put(&stored(all[0].key.clone(), bytes::Bytes::from_static(b"?")));
    assert!(!is_full(state.check_room(&bounds, acme)));
    for record in &all {
        state.remove(&record.key);
    }
    assert!(state.owned.is_empty(), "{:?}", state.owned);
}

/// Each broker writes one a minute: no session is judged again for it.
#[tokio::test]
async fn a_checkpoint_of_the_audit_log_changes_no_decision() {
    let store: Arc<dyn MetadataStore> = Arc::new(MemoryStore::default());
    let bounds = Bounds::of_tenants(9);
    let records = Records::load(store, SystemClock::shared(), bounds).await;
    let records = records.unwrap();
    let changes = records.changes();
    let ends = record::encode(AuditEndsRecord::default());
    records.take(WatchEvent::Put(stored(keys::AUDIT_ENDS.to_owned(), ends)));
    assert!(!changes.has_changed().unwrap());
    assert_eq!(*changes.borrow(), Revision(1), "it is known");
    records.take(WatchEvent::Put(token("2", "acme")));
    assert!(changes.has_changed().unwrap());
}

#[test]
fn what_is_full_for_grants_has_room_to_revoke() {
    let bounds = Bounds {
        tenant: 2,
        all: 3,
        revoking: 4,
    };
    let mut state = State::default();
    for id in ["1", "2", "3"] {
        state.put(&grant(None, id, "jwt:sso:alice"));
    }
    assert!(is_full(state.check_room(&bounds, None)));
    assert!(is_full(state.check_room(&bounds, Some("beta"))));
    assert!(!is_full(state.check_all(bounds.revoking)));
    let revocation = RevocationInfo {
        id: "4".to_owned(),
        refuses: Refuses::Token("sso:t-1".to_owned()),
        created_ms: 1,
        created_by: "token:admin".to_owned(),
        ends_ms: 9,
    };
    let record = record::encode(revoked::record(&revocation));
    state.put(&stored(keys::revocation("4"), record));
    assert!(is_full(state.check_all(bounds.revoking)));
}

/// A role changes under the lock that every decision takes: no grant is made again that does not
/// change, and the index by principals shows what is there.
#[test]
fn a_role_that_changes_touches_its_own_grants_alone() {
    let mut state = State::default();
    let alice = "jwt:sso:alice";
    let all = [
        grant_of_role("reader", "1", alice),
        grant(Some("acme"), "2", alice),
        grant_of_role("reader", "3", alice),
        grant_of_role("writer", "4", alice),
        grant_of_role("reader", "5", "jwt:sso:bob"),
    ];
    for stored in &all {
        state.put(stored);
    }
    let held = |state: &State| -> Vec<Arc<Grant>> {
        let bob = state.grants_of("jwt:sso:bob");
        let held: Vec<Arc<Grant>> = state.grants_of(alice).chain(bob).cloned().collect();
        // Both indexes have the same.
        let indexed = state.grants.values().zip(&held);
        assert!(indexed.clone().all(|(one, other)| Arc::ptr_eq(one, other)));
        assert_eq!((indexed.count(), held.len()), (5, 5));
        held
    };
    let kept = |before: &[Arc<Grant>], after: &[Arc<Grant>]| -> Vec<bool> {
        let both = before.iter().zip(after);
        both.map(|(before, after)| Arc::ptr_eq(before, after))
            .collect()
    };
    let before = held(&state);
    let reader = role("acme", "reader", &["describe", "consume"]);
    state.put(&reader);
    let given = held(&state);
    assert_eq!(kept(&before, &given), [false, true, false, true, false]);
    let both = [Action::Describe, Action::Consume];
    assert_eq!(given[0].info.actions, both);
    assert_eq!(given[4].info.actions, both);
    assert!(given[3].info.actions.is_empty());
    // The same again changes nothing.
    state.put(&reader);
    assert_eq!(kept(&given, &held(&state)), [true; 5]);
    state.remove(&reader.key);
    let taken = held(&state);
    assert_eq!(kept(&given, &taken), [false, true, false, true, false]);
    assert!(taken[0].info.actions.is_empty());
    for stored in &all {
        state.remove(&stored.key);
    }
    assert!(state.by_principal.is_empty() && state.naming.is_empty());
}
