use aquifer_model::policy::bounds::{BacklogAction, BacklogQuota, SubscriptionTypes, TimeToLive};
use aquifer_model::policy::offload::{OffloadCompression, OffloadPolicy};
use aquifer_model::policy::rate::{AggregateRate, Rate};
use aquifer_model::subscription::SubscriptionType;

use super::*;

/// A value of each policy that differs from its default.
fn unusual() -> EffectivePolicies {
    let rate = |messages, bytes| Rate {
        messages: Some(messages),
        bytes,
        burst_ms: 7,
    };
    EffectivePolicies {
        offload: OffloadPolicy {
            enabled: false,
            age_ms: Some(0),
            bytes: Some(9),
            lag_ms: 0,
            compression: OffloadCompression::Auto,
        },
        deduplication: false,
        auto_create_topics: false,
        auto_create_subscriptions: false,
        subscription_types: SubscriptionTypes::NONE
            .with(SubscriptionType::Shared)
            .with(SubscriptionType::KeyShared),
        ttl: TimeToLive { after_ms: Some(0) },
        backlog_quota: BacklogQuota {
            bytes: Some(0),
            age_ms: None,
            action: BacklogAction::Evict,
        },
        publish_rate: rate(1, None),
        producer_rate: rate(2, Some(0)),
        dispatch_rate: rate(3, Some(3)),
        subscription_rate: rate(0, None),
        aggregate_rate: AggregateRate {
            publish: rate(5, None),
            dispatch: rate(6, None),
        },
        message_bytes_max: 0,
        unacked: Unacked {
            consumer: 1,
            subscription: 2,
        },
        counts: Counts {
            topics: Some(0),
            producers: 1,
            subscriptions: 2,
            consumers: Some(3),
        },
        weight: TENANT_WEIGHT_MAX,
        ..EffectivePolicies::default()
    }
}

#[test]
fn a_weight_has_bounds() {
    for (weight, is_one) in [(0, false), (1, true), (100, true), (101, false)] {
        let policies = v1::Policies {
            weight: Some(weight),
            ..v1::Policies::default()
        };
        assert_eq!(Policies::try_from(policies).is_ok(), is_one, "{weight}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    for policies in [
        Policies::default(),
        EffectivePolicies::default().into(),
        unusual().into(),
    ] {
        let wire = v1::Policies::from(policies);
        assert_eq!(Policies::try_from(wire), Ok(policies));
    }
}

#[test]
fn what_no_policy_can_be_is_refused() {
    let types = |types: Vec<i32>| v1::Policies {
        subscription_types: Some(v1::SubscriptionTypes { types }),
        ..v1::Policies::default()
    };
    let shared = i32::from(v1::SubscriptionType::Shared);
    let quota = v1::Policies {
        backlog_quota: Some(v1::BacklogQuota::default()),
        ..v1::Policies::default()
    };
    let offload = v1::Policies {
        offload: Some(v1::Offload::default()),
        ..v1::Policies::default()
    };
    for wrong in [
        offload,
        types(Vec::new()),
        types(vec![0]),
        types(vec![99]),
        types(vec![shared, 99]),
        types(vec![shared, shared]),
        quota,
    ] {
        assert!(Policies::try_from(wrong.clone()).is_err(), "{wrong:?}");
    }
    assert!(Policies::try_from(types(vec![shared])).is_ok());
}

/// Nothing that a request leaves out becomes a default.
#[test]
fn an_update_sets_what_it_names_and_nothing_else() {
    let nothing = PolicyUpdate::try_from(v1::UpdatePoliciesRequest::default()).unwrap();
    assert_eq!(nothing, PolicyUpdate::default());
    assert!(nothing.is_empty());
    let request = v1::UpdatePoliciesRequest {
        set: Some(v1::Policies {
            deduplication: Some(false),
            ..v1::Policies::default()
        }),
        ..v1::UpdatePoliciesRequest::default()
    };
    let update = PolicyUpdate::try_from(request).unwrap();
    let expected = Policies {
        deduplication: Some(false),
        ..Policies::default()
    };
    assert_eq!(update.set, expected);
    assert_eq!((update.unset, update.version), (Vec::new(), None));
}
