//! Bounds of what waits, and of how many of each thing there may be.

use aquifer_model::policy::bounds::{
    BacklogAction, BacklogQuota, Counts, SubscriptionTypes, TimeToLive, Unacked,
};
use aquifer_model::subscription::SubscriptionType;

use crate::v1;

impl From<SubscriptionTypes> for v1::SubscriptionTypes {
    fn from(types: SubscriptionTypes) -> v1::SubscriptionTypes {
        let types = types
            .iter()
            .map(|kind| v1::SubscriptionType::from(kind).into());
        v1::SubscriptionTypes {
            types: types.collect(),
        }
    }
}

impl TryFrom<v1::SubscriptionTypes> for SubscriptionTypes {
    type Error = String;

    fn try_from(given: v1::SubscriptionTypes) -> Result<SubscriptionTypes, String> {
        let mut types = SubscriptionTypes::NONE;
        for kind in given.types() {
            let kind = SubscriptionType::try_from(kind).map_err(|error| error.to_string())?;
            types = types.with(kind);
        }
        // Those that this build does not know are left out by `types()`.
        match types == SubscriptionTypes::NONE || types.iter().count() < given.types.len() {
            true => Err("subscription types: name each type once, and at least one".to_owned()),
            false => Ok(types),
        }
    }
}

impl From<TimeToLive> for v1::TimeToLive {
    fn from(ttl: TimeToLive) -> v1::TimeToLive {
        v1::TimeToLive {
            after_ms: ttl.after_ms,
        }
    }
}

impl From<v1::TimeToLive> for TimeToLive {
    fn from(ttl: v1::TimeToLive) -> TimeToLive {
        TimeToLive {
            after_ms: ttl.after_ms,
        }
    }
}

impl From<BacklogQuota> for v1::BacklogQuota {
    fn from(quota: BacklogQuota) -> v1::BacklogQuota {
        let action = match quota.action {
            BacklogAction::Hold => v1::BacklogAction::Hold,
            BacklogAction::Refuse => v1::BacklogAction::Refuse,
            BacklogAction::Evict => v1::BacklogAction::Evict,
        };
        v1::BacklogQuota {
            bytes: quota.bytes,
            age_ms: quota.age_ms,
            action: action.into(),
        }
    }
}

impl TryFrom<v1::BacklogQuota> for BacklogQuota {
    type Error = String;

    fn try_from(quota: v1::BacklogQuota) -> Result<BacklogQuota, String> {
        let action = match quota.action() {
            v1::BacklogAction::Hold => BacklogAction::Hold,
            v1::BacklogAction::Refuse => BacklogAction::Refuse,
            v1::BacklogAction::Evict => BacklogAction::Evict,
            v1::BacklogAction::Unspecified => {
                return Err("a backlog quota without an action: hold, refuse or evict".to_owned());
            }
        };
        Ok(BacklogQuota {
            bytes: quota.bytes,
            age_ms: quota.age_ms,
            action,
        })
    }
}

impl From<Unacked> for v1::Unacked {
    fn from(unacked: Unacked) -> v1::Unacked {
        v1::Unacked {
            consumer: unacked.consumer,
            subscription: unacked.subscription,
        }
    }
}

impl From<v1::Unacked> for Unacked {
    fn from(unacked: v1::Unacked) -> Unacked {
        Unacked {
            consumer: unacked.consumer,
            subscription: unacked.subscription,
        }
    }
}

impl From<Counts> for v1::Counts {
    fn from(counts: Counts) -> v1::Counts {
        v1::Counts {
            topics: counts.topics,
            producers: counts.producers,
            subscriptions: counts.subscriptions,
            consumers: counts.consumers,
        }
    }
}

impl From<v1::Counts> for Counts {
    fn from(counts: v1::Counts) -> Counts {
        Counts {
            topics: counts.topics,
            producers: counts.producers,
            subscriptions: counts.subscriptions,
            consumers: counts.consumers,
        }
    }
}
