//! Which level decides, against a model that asks each level in turn.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use super::*;
use crate::policy::bounds::{
    BacklogAction, BacklogQuota, Counts, SubscriptionTypes, TimeToLive, Unacked,
};
use crate::policy::offload::{OffloadCompression, OffloadPolicy};
use crate::policy::rate::{AggregateRate, Rate};

fn rate() -> impl Strategy<Value = Rate> {
    let bound = || proptest::option::of(0u64..5);
    (bound(), bound(), 1u64..4).prop_map(|(messages, bytes, burst_ms)| Rate {
        messages,
        bytes,
        burst_ms,
    })
}

fn counts() -> impl Strategy<Value = Counts> {
    let bound = || proptest::option::of(0u64..5);
    (bound(), 0u64..5, 0u64..5, bound()).prop_map(
        |(topics, producers, subscriptions, consumers)| Counts {
            topics,
            producers,
            subscriptions,
            consumers,
        },
    )
}

fn overrides() -> impl Strategy<Value = Policies> {
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
        proptest::option::of(rate()),
    )
        .prop_map(
            |(persistence, retention, rollover, deduplication, auto, publish_rate)| Policies {
                persistence,
                retention,
                rollover,
                deduplication,
                auto_create_topics: auto,
                publish_rate,
                ..Policies::default()
            },
        )
}

/// The overrides that are not among [`overrides`].
fn more_overrides() -> impl Strategy<Value = Policies> {
    let bound = || proptest::option::of(0u64..5);
    let compression = proptest::sample::select(&OffloadCompression::ALL[..]);
    let offload = (any::<bool>(), bound(), bound(), 0u64..5, compression).prop_map(
        |(enabled, age_ms, bytes, lag_ms, compression)| OffloadPolicy {
            enabled,
            age_ms,
            bytes,
            lag_ms,
            compression,
        },
    );
    let every_type = SubscriptionTypes::ALL.iter().collect::<Vec<_>>();
    let types = proptest::sample::subsequence(every_type, 0..4).prop_map(|kinds| {
        kinds
            .into_iter()
            .fold(SubscriptionTypes::NONE, SubscriptionTypes::with)
    });
    let action = proptest::sample::select(&BacklogAction::ALL[..]);
    let backlog_quota =
        (bound(), bound(), action).prop_map(|(bytes, age_ms, action)| BacklogQuota {
            bytes,
            age_ms,
            action,
        });
    let ttl = bound().prop_map(|after_ms| TimeToLive { after_ms });
    (
        proptest::option::of(offload),
        proptest::option::of(any::<bool>()),
        proptest::option::of(types),
        proptest::option::of(ttl),
        proptest::option::of(backlog_quota),
        proptest::option::of(rate()),
        proptest::option::of(rate()),
        proptest::option::of(rate()),
    )
        .prop_map(
            |(offload, auto, types, ttl, backlog_quota, producer, dispatch, subscription)| {
                Policies {
                    offload,
                    auto_create_subscriptions: auto,
                    subscription_types: types,
                    ttl,
                    backlog_quota,
                    producer_rate: producer,
                    dispatch_rate: dispatch,
                    subscription_rate: subscription,
                    ..Policies::default()
                }
            },
        )
}

fn policies() -> impl Strategy<Value = Policies> {
    let aggregate =
        (rate(), rate()).prop_map(|(publish, dispatch)| AggregateRate { publish, dispatch });
    let unacked = (0u64..5, 0u64..5).prop_map(|(consumer, subscription)| Unacked {
        consumer,
        subscription,
    });
    (
        (overrides(), more_overrides()).prop_map(|(some, more)| some.or(more)),
        proptest::option::of(aggregate),
        proptest::option::of(0u64..5),
        proptest::option::of(unacked),
        proptest::option::of(counts()),
        proptest::option::of(1u32..9),
    )
        .prop_map(
            |(overrides, aggregate_rate, message_bytes_max, unacked, counts, weight)| Policies {
                aggregate_rate,
                weight,
                message_bytes_max,
                unacked,
                counts,
                ..overrides
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

/// A number that a level says; `None` where it sets no bound.
type Number = fn(&Policies) -> Option<u64>;

/// Every number of every ceiling that each bounds for itself.
const CEILINGS: [(&str, Number); 11] = [
    ("message bytes", |said| said.message_bytes_max),
    ("unacked of a consumer", |said| Some(said.unacked?.consumer)),
    ("unacked of a subscription", |said| {
        Some(said.unacked?.subscription)
    }),
    ("topics", |said| said.counts?.topics),
    ("producers", |said| Some(said.counts?.producers)),
    ("subscriptions", |said| Some(said.counts?.subscriptions)),
    ("consumers", |said| said.counts?.consumers),
    ("messages published", |said| {
        said.aggregate_rate?.publish.messages
    }),
    ("bytes published", |said| said.aggregate_rate?.publish.bytes),
    ("messages delivered", |said| {
        said.aggregate_rate?.dispatch.messages
    }),
    ("bytes delivered", |said| {
        said.aggregate_rate?.dispatch.bytes
    }),
];

/// A policy that is added without being drawn would be tested where no level says anything only.
#[test]
fn every_policy_is_drawn() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut drawn = std::collections::BTreeSet::new();
    for _ in 0..1_000 {
        let said = policies().new_tree(&mut runner).unwrap().current();
        drawn.extend(PolicyName::ALL.iter().filter(|name| said.has(**name)));
    }
    assert_eq!(drawn, PolicyName::ALL.iter().collect());
}

proptest! {
    #[test]
    fn of_an_override_the_nearest_level_that_says_something_decides(
        tenant in policies(),
        namespace in policies(),
        topic in policies(),
    ) {
        let levels = [
            (Level::Tenant, tenant),
            (Level::Namespace, namespace),
            (Level::Topic, topic),
        ];
        let (effective, origins) = resolve(EffectivePolicies::default(), &levels);
        let names: Vec<PolicyName> = origins.iter().map(|(name, _)| *name).collect();
        prop_assert_eq!(names.as_slice(), PolicyName::ALL);
        let all = Policies::from(effective);
        for (name, origin) in origins {
            let mut said = levels.iter().filter(|(_, policies)| policies.has(name));
            let nearest = said.next_back();
            prop_assert_eq!(origin.level, nearest.map_or(Level::Default, |(level, _)| *level));
            let Some((_, said)) = nearest.filter(|_| origin.capped_by.is_none()) else {
                continue;
            };
            // What is in force is what that level says: nothing else differs when it is put in.
            let mut without = all;
            without.unset(name);
            prop_assert_eq!(without.or(*said).or(all), all, "{}", name);
        }
    }

    /// Of a ceiling each number is the lowest of all levels, and the level that caps it is lower
    /// than what the origin says.
    #[test]
    fn of_a_ceiling_the_lowest_number_of_all_levels_decides(
        tenant in policies(),
        namespace in policies(),
        topic in policies(),
    ) {
        let levels = [
            (Level::Tenant, tenant),
            (Level::Namespace, namespace),
            (Level::Topic, topic),
        ];
        let defaults = EffectivePolicies::default();
        let (effective, origins) = resolve(defaults, &levels);
        let (default, in_force) = (Policies::from(defaults), Policies::from(effective));
        for (what, number) in CEILINGS {
            let said = levels.iter().filter_map(|(_, said)| number(said));
            let lowest = said.chain(number(&default)).min();
            prop_assert_eq!(number(&in_force), lowest, "{}", what);
        }
        for (name, origin) in origins.iter().filter(|(_, origin)| origin.capped_by.is_some()) {
            let is_ceiling = matches!(
                name,
                PolicyName::AggregateRate
                    | PolicyName::MessageBytesMax
                    | PolicyName::Unacked
                    | PolicyName::Counts
            );
            prop_assert!(is_ceiling, "{}", name);
            let own = levels.iter().find(|(level, _)| *level == origin.level);
            let own = own.map(|(_, said)| *said).unwrap_or_default();
            prop_assert_ne!(own.or(effective.into()), effective.into());
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
