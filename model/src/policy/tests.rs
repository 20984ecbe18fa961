//! Which level decides, against a model that asks each level in turn.

use proptest::prelude::*;

use super::*;

fn policies() -> impl Strategy<Value = Policies> {
    let quorum = (1u32..4).prop_map(|n| Quorum::new(n, n, 1).unwrap());
    let bound = || proptest::option::of(0u64..1_000);
    let retention = (bound(), bound()).prop_map(|(time_ms, size_bytes)| Retention {
        time_ms,
        size_bytes,
    });
    let rollover = (1u64..9).prop_map(|entries| Rollover {
        entries,
        ..Rollover::default()
    });
    (
        proptest::option::of(quorum),
        proptest::option::of(retention),
        proptest::option::of(rollover),
        proptest::option::of(any::<bool>()),
        proptest::option::of(any::<bool>()),
    )
        .prop_map(
            |(persistence, retention, rollover, deduplication, auto)| Policies {
                persistence,
                retention,
                rollover,
                deduplication,
                auto_create_topics: auto,
            },
        )
}

fn update() -> impl Strategy<Value = PolicyUpdate> {
    let unset = proptest::sample::subsequence(PolicyName::ALL.to_vec(), 0..3);
    (policies(), unset).prop_map(|(set, unset)| PolicyUpdate {
        set,
        unset,
        version: None,
    })
}

/// What a change touches.
fn touched(update: &PolicyUpdate) -> Vec<PolicyName> {
    let of = |name: &PolicyName| update.set.has(*name) || update.unset.contains(name);
    PolicyName::ALL.iter().copied().filter(of).collect()
}

/// One level, of which every policy is in force.
fn whole(policies: Policies, defaults: EffectivePolicies) -> EffectivePolicies {
    EffectivePolicies {
        persistence: policies.persistence.unwrap_or(defaults.persistence),
        retention: policies.retention.unwrap_or(defaults.retention),
        rollover: policies.rollover.unwrap_or(defaults.rollover),
        deduplication: policies.deduplication.unwrap_or(defaults.deduplication),
        auto_create_topics: policies
            .auto_create_topics
            .unwrap_or(defaults.auto_create_topics),
    }
}

proptest! {
    #[test]
    fn the_nearest_level_that_says_something_decides(
        tenant in policies(),
        namespace in policies(),
        topic in policies(),
    ) {
        let defaults = EffectivePolicies::default();
        let levels = [
            (Level::Tenant, tenant),
            (Level::Namespace, namespace),
            (Level::Topic, topic),
        ];
        let (effective, origins) = resolve(defaults, &levels);
        let expected = whole(topic, whole(namespace, whole(tenant, defaults)));
        prop_assert_eq!(effective, expected);
        let names: Vec<PolicyName> = origins.iter().map(|(name, _)| *name).collect();
        prop_assert_eq!(names.as_slice(), PolicyName::ALL);
        for (name, origin) in origins {
            let said = levels.iter().filter(|(_, policies)| policies.has(name));
            let nearest = said.map(|(level, _)| *level).max();
            prop_assert_eq!(origin, nearest.unwrap_or(Level::Default));
        }
    }

    #[test]
    fn what_is_unset_is_inherited_again(
        namespace in policies(),
        topic in policies(),
        name in proptest::sample::select(PolicyName::ALL.to_vec()),
    ) {
        let defaults = EffectivePolicies::default();
        let above = [(Level::Namespace, namespace)];
        let mut less = topic;
        less.unset(name);
        let of = |topic: Policies| {
            let levels = [(Level::Namespace, namespace), (Level::Topic, topic)];
            resolve(defaults, &levels).1
        };
        let inherited = resolve(defaults, &above).1;
        for ((now, before), above) in of(less).iter().zip(of(topic)).zip(inherited) {
            let expected = if now.0 == name { above } else { before };
            prop_assert_eq!(*now, expected);
        }
    }

    /// Changes of different policies do not disturb each other, in either order.
    #[test]
    fn changes_of_different_policies_commute(
        before in policies(),
        one in update(),
        other in update(),
    ) {
        let mut other = other;
        for name in touched(&one) {
            other.set.unset(name);
            other.unset.retain(|unset| *unset != name);
        }
        prop_assert_eq!(other.apply(one.apply(before)), one.apply(other.apply(before)));
    }
}

#[test]
fn every_policy_has_a_name_that_is_read_back() {
    for name in PolicyName::ALL {
        assert_eq!(name.as_str().parse(), Ok(*name));
    }
    let refused = "quotas".parse::<PolicyName>().unwrap_err();
    assert!(refused.contains("persistence, retention"), "{refused}");
}

#[test]
fn a_scope_inherits_from_what_is_above_it() {
    let topic: TopicName = "acme/shop/orders".parse().unwrap();
    let path = PolicyScope::Topic(topic).path();
    for (at, scope) in path.iter().enumerate() {
        let covered: Vec<bool> = path.iter().map(|other| scope.covers(other)).collect();
        let expected: Vec<bool> = (0..path.len()).map(|other| at <= other).collect();
        assert_eq!(covered, expected, "{scope}");
        let other = PolicyScope::Topic("acme2/shop/orders".parse().unwrap());
        assert!(!scope.covers(&other), "{scope}");
    }
    let shown: Vec<String> = path.iter().map(ToString::to_string).collect();
    let expected = [
        "tenant acme",
        "namespace acme/shop",
        "topic persistent://acme/shop/orders",
    ];
    assert_eq!(shown[..2], expected[..2]);
    assert!(shown[2].ends_with("acme/shop/orders"), "{}", shown[2]);
}
