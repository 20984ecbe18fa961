use aquifer_protocol_api::security::{Refuses, RevocationInfo};

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

fn role(tenant: &str, name: &str) -> Versioned {
    let record = RoleRecord {
        actions: vec!["describe".to_owned()],
        ..RoleRecord::default()
    };
    stored(keys::role(Some(tenant), name), record::encode(record))
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
        role("acme", "reader"),
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
