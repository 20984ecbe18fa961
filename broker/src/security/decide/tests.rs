//! Decisions against a naive model that enumerates names.

use aquifer_protocol_api::scope::Pattern;
use aquifer_protocol_api::security::GrantInfo;
use proptest::prelude::*;

use super::*;

const NAMES: [&str; 5] = ["a", "ab", "abc", "b", "ba"];

fn any_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&NAMES[..])
}

fn any_pattern() -> impl Strategy<Value = String> {
    prop_oneof![
        any_name().prop_map(str::to_owned),
        any_name().prop_map(|name| format!("{name}*")),
        Just("*".to_owned()),
    ]
}

fn any_scope() -> impl Strategy<Value = [String; 3]> {
    (any_pattern(), any_pattern(), any_pattern(), 0_usize..4).prop_map(|(t, n, x, depth)| {
        let mut parts = [t, n, x];
        parts[depth..].iter_mut().for_each(String::clear);
        parts
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    prop::sample::select(&Action::GRANTED[..])
}

fn any_grant() -> impl Strategy<Value = Grant> {
    let actions = prop::collection::vec(any_action(), 0..4);
    (any_scope(), actions, any_pattern()).prop_map(|([t, n, x], actions, subscriptions)| {
        Grant::new(GrantInfo {
            id: String::new(),
            principal: "token:a".to_owned(),
            role: None,
            actions,
            scope: GrantScope::new(&t, &n, &x).unwrap(),
            subscriptions: Pattern::of_subscriptions(&subscriptions).unwrap(),
            created_ms: 0,
            created_by: String::new(),
            expires_ms: None,
        })
    })
}

fn any_resource() -> impl Strategy<Value = Resource> {
    let names = [any_name(), any_name(), any_name(), any_name()];
    (names, 0_usize..6).prop_map(|([tenant, namespace, topic, subscription], kind)| {
        let name = NamespaceName::new(tenant, namespace).unwrap();
        let local = TopicName::new(name.clone(), topic).unwrap();
        match kind {
            0 => Resource::Cluster,
            1 => Resource::Tenant(tenant.to_owned()),
            2 => Resource::Namespace(name),
            3 => Resource::Topic(local),
            4 => Resource::Topic(local.partition_name(3)),
            _ => Resource::Subscription(local.partition_name(0), subscription.parse().unwrap()),
        }
    })
}

/// What a person would say: name by name, with strings.
fn naive(grant: &Grant, action: Action, resource: &Resource) -> bool {
    let fits = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.len() >= start.len() && &name[..start.len()] == start,
        None => pattern == name,
    };
    let path: Vec<String> = match resource {
        Resource::Cluster => Vec::new(),
        Resource::Tenant(tenant) => vec![tenant.clone()],
        Resource::Namespace(name) => vec![name.tenant().to_owned(), name.namespace().to_owned()],
        Resource::Topic(topic) | Resource::Subscription(topic, _) => {
            let namespace = topic.namespace();
            let base = topic.base().name().to_owned();
            vec![
                namespace.tenant().to_owned(),
                namespace.namespace().to_owned(),
                base,
            ]
        }
        _ => unreachable!("not drawn"),
    };
    let given: Vec<String> = grant
        .info
        .scope
        .texts()
        .into_iter()
        .filter(|t| !t.is_empty())
        .collect();
    let inside = given.len() <= path.len()
        && given
            .iter()
            .zip(&path)
            .all(|(pattern, name)| fits(pattern, name));
    let subscription = match (action, resource) {
        (Action::Consume, Resource::Subscription(_, name)) => {
            fits(&grant.info.subscriptions.to_string(), name.as_str())
        }
        _ => true,
    };
    grant.info.actions.contains(&action) && inside && subscription
}

fn decided(grants: &[Grant], action: Action, resource: &Resource) -> bool {
    let target = Target::of(resource).unwrap();
    grants.iter().any(|grant| allows(grant, action, &target, 1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn decisions_equal_those_of_a_naive_model(
        grants in prop::collection::vec(any_grant(), 0..4),
        action in any_action(),
        resource in any_resource(),
    ) {
        let expected = grants.iter().any(|grant| naive(grant, action, &resource));
        prop_assert_eq!(decided(&grants, action, &resource), expected);
    }

    #[test]
    fn another_grant_takes_nothing_away(
        mut grants in prop::collection::vec(any_grant(), 0..4),
        more in any_grant(),
        action in any_action(),
        resource in any_resource(),
    ) {
        let before = decided(&grants, action, &resource);
        grants.push(more);
        prop_assert!(!before || decided(&grants, action, &resource));
    }

    /// What is given within a scope is never more than the scope.
    #[test]
    fn a_scope_within_another_covers_nothing_outside(
        outer in any_scope(),
        inner in any_scope(),
        resource in any_resource(),
    ) {
        let scope = |[t, n, x]: &[String; 3]| GrantScope::new(t, n, x).unwrap();
        let (outer, inner) = (scope(&outer), scope(&inner));
        let within = Resource::Scope(inner.clone());
        let target = Target::of(&resource).unwrap();
        if covers(&outer, &Target::of(&within).unwrap()) && covers(&inner, &target) {
            prop_assert!(covers(&outer, &target));
        }
    }

    /// A list may be asked for exactly where something of it may be described.
    #[test]
    fn lists_are_for_those_who_see_something(grant in any_grant(), resource in any_resource()) {
        let grant = Grant::new(GrantInfo {
            actions: vec![Action::Describe],
            ..grant.info
        });
        let below = NAMES.iter().flat_map(|tenant| {
            NAMES.iter().flat_map(move |namespace| {
                let name = NamespaceName::new(tenant, namespace).unwrap();
                NAMES.iter().map(move |topic| TopicName::new(name.clone(), topic).unwrap())
            })
        });
        let namespace = match &resource {
            Resource::Namespace(name) => name.clone(),
            _ => return Ok(()),
        };
        let mut below = below.filter(|topic| *topic.namespace() == namespace);
        let grants = [grant];
        let sees = below.any(|topic| {
            decided(&grants, Action::Describe, &Resource::Topic(topic))
        });
        // A pattern may be of names that are not drawn here.
        prop_assert!(!sees || decided(&grants, Action::List, &resource));
    }
}

#[test]
fn managing_is_neither_producing_nor_consuming_and_ends() {
    let mut grant = Grant::new(GrantInfo {
        id: String::new(),
        principal: "token:a".to_owned(),
        role: None,
        actions: vec![Action::Manage],
        scope: GrantScope::cluster(),
        subscriptions: Pattern::any(),
        created_ms: 0,
        created_by: String::new(),
        expires_ms: Some(2),
    });
    let topic = Resource::Topic("a/b/c".parse().unwrap());
    let target = Target::of(&topic).unwrap();
    assert!(allows(&grant, Action::Manage, &target, 1));
    for other in [
        Action::Produce,
        Action::Consume,
        Action::Use,
        Action::Describe,
        Action::List,
    ] {
        assert!(!allows(&grant, other, &target, 1), "{other:?}");
    }
    assert!(!allows(&grant, Action::Manage, &target, 2));
    grant.info.expires_ms = None;
    assert!(allows(&grant, Action::Manage, &target, 2));
}
