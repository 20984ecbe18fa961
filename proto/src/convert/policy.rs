//! Policies, what is in force, and changes of them.

mod bounds;
mod offload;
mod rate;

use aquifer_model::limits::TENANT_WEIGHT_MAX;
use aquifer_model::policy::bounds::{Counts, Unacked};
use aquifer_model::policy::{
    EffectivePolicies, Level, Origin, Policies, PolicyName, PolicyScope, PolicyUpdate, PolicyView,
    Retention, Rollover,
};
use aquifer_model::quorum::Quorum;

use crate::v1;
use crate::v1::policy_scope::Scope;

impl From<Policies> for v1::Policies {
    fn from(policies: Policies) -> v1::Policies {
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        v1::Policies {
            persistence: policies.persistence.map(|quorum| v1::Persistence {
                ensemble: size(quorum.ensemble()),
                write_quorum: size(quorum.write()),
                ack_quorum: size(quorum.ack()),
            }),
            retention: policies.retention.map(|retention| v1::Retention {
                time_ms: retention.time_ms,
                size_bytes: retention.size_bytes,
            }),
            rollover: policies.rollover.map(|rollover| v1::Rollover {
                size_bytes: rollover.size_bytes,
                age_ms: rollover.age_ms,
                entries: rollover.entries,
            }),
            offload: policies.offload.map(Into::into),
            deduplication: policies.deduplication,
            auto_create_topics: policies.auto_create_topics,
            auto_create_subscriptions: policies.auto_create_subscriptions,
            subscription_types: policies.subscription_types.map(Into::into),
            ttl: policies.ttl.map(Into::into),
            backlog_quota: policies.backlog_quota.map(Into::into),
            publish_rate: policies.publish_rate.map(Into::into),
            producer_rate: policies.producer_rate.map(Into::into),
            dispatch_rate: policies.dispatch_rate.map(Into::into),
            subscription_rate: policies.subscription_rate.map(Into::into),
            aggregate_rate: policies.aggregate_rate.map(Into::into),
            message_bytes_max: policies.message_bytes_max,
            unacked: policies.unacked.map(Into::into),
            counts: policies.counts.map(Into::into),
            weight: policies.weight,
        }
    }
}

impl TryFrom<v1::Policies> for Policies {
    type Error = String;

    fn try_from(policies: v1::Policies) -> Result<Policies, String> {
        let quorum = |p: v1::Persistence| Quorum::new(p.ensemble, p.write_quorum, p.ack_quorum);
        let rollover = policies.rollover.map(|rollover| Rollover {
            size_bytes: rollover.size_bytes,
            age_ms: rollover.age_ms,
            entries: rollover.entries,
        });
        if rollover.is_some_and(|r| [r.size_bytes, r.age_ms, r.entries].contains(&0)) {
            return Err("a bound of a ledger is at least 1".to_owned());
        }
        if policies
            .weight
            .is_some_and(|weight| !(1..=TENANT_WEIGHT_MAX).contains(&weight))
        {
            return Err(format!("a weight is from 1 to {TENANT_WEIGHT_MAX}"));
        }
        let persistence = policies.persistence.map(quorum).transpose();
        Ok(Policies {
            persistence: persistence.map_err(|error| error.to_string())?,
            retention: policies.retention.map(|retention| Retention {
                time_ms: retention.time_ms,
                size_bytes: retention.size_bytes,
            }),
            rollover,
            offload: policies.offload.map(TryInto::try_into).transpose()?,
            deduplication: policies.deduplication,
            auto_create_topics: policies.auto_create_topics,
            auto_create_subscriptions: policies.auto_create_subscriptions,
            subscription_types: (policies.subscription_types)
                .map(TryInto::try_into)
                .transpose()?,
            ttl: policies.ttl.map(Into::into),
            backlog_quota: policies.backlog_quota.map(TryInto::try_into).transpose()?,
            publish_rate: policies.publish_rate.map(Into::into),
            producer_rate: policies.producer_rate.map(Into::into),
            dispatch_rate: policies.dispatch_rate.map(Into::into),
            subscription_rate: policies.subscription_rate.map(Into::into),
            aggregate_rate: policies.aggregate_rate.map(Into::into),
            message_bytes_max: policies.message_bytes_max,
            unacked: policies.unacked.map(Unacked::from),
            counts: policies.counts.map(Counts::from),
            weight: policies.weight,
        })
    }
}

impl From<PolicyScope> for v1::PolicyScope {
    fn from(scope: PolicyScope) -> v1::PolicyScope {
        let scope = match scope {
            PolicyScope::Tenant(name) => Scope::Tenant(name),
            PolicyScope::Namespace(name) => Scope::Namespace(name.to_string()),
            PolicyScope::Topic(name) => Scope::Topic(name.to_string()),
        };
        v1::PolicyScope { scope: Some(scope) }
    }
}

impl From<PolicyUpdate> for v1::UpdatePoliciesRequest {
    fn from(update: PolicyUpdate) -> v1::UpdatePoliciesRequest {
        v1::UpdatePoliciesRequest {
            scope: None,
            set: Some(update.set.into()),
            unset: update.unset.iter().map(ToString::to_string).collect(),
            version: update.version,
        }
    }
}

/// The change that a request asks for.
impl TryFrom<v1::UpdatePoliciesRequest> for PolicyUpdate {
    type Error = String;

    fn try_from(request: v1::UpdatePoliciesRequest) -> Result<PolicyUpdate, String> {
        let unset = request.unset.iter().map(|name| name.parse());
        Ok(PolicyUpdate {
            set: request.set.unwrap_or_default().try_into()?,
            unset: unset.collect::<Result<Vec<PolicyName>, String>>()?,
            version: request.version,
        })
    }
}

fn level(level: Level) -> v1::PolicyLevel {
    match level {
        Level::Default => v1::PolicyLevel::Default,
        Level::Tenant => v1::PolicyLevel::Tenant,
        Level::Namespace => v1::PolicyLevel::Namespace,
        Level::Topic => v1::PolicyLevel::Topic,
    }
}

fn level_of(level: v1::PolicyLevel) -> Option<Level> {
    match level {
        v1::PolicyLevel::Unspecified => None,
        v1::PolicyLevel::Default => Some(Level::Default),
        v1::PolicyLevel::Tenant => Some(Level::Tenant),
        v1::PolicyLevel::Namespace => Some(Level::Namespace),
        v1::PolicyLevel::Topic => Some(Level::Topic),
    }
}

impl From<PolicyView> for v1::PolicyView {
    fn from(view: PolicyView) -> v1::PolicyView {
        let origins = view.origins.iter().map(|(name, from)| v1::PolicyOrigin {
            policy: name.to_string(),
            level: level(from.level).into(),
            capped_by: from.capped_by.map_or(0, |by| level(by).into()),
        });
        v1::PolicyView {
            own: Some(view.own.into()),
            version: view.version,
            effective: Some(Policies::from(view.effective).into()),
            origins: origins.collect(),
        }
    }
}

impl TryFrom<v1::PolicyView> for PolicyView {
    type Error = String;

    fn try_from(view: v1::PolicyView) -> Result<PolicyView, String> {
        let effective = Policies::try_from(view.effective.unwrap_or_default())?;
        let effective = EffectivePolicies::try_from(effective);
        let origin = |origin: &v1::PolicyOrigin| {
            let level = level_of(origin.level()).ok_or("an origin without a level")?;
            let capped_by = level_of(origin.capped_by());
            // A newer broker may have policies that this build does not know.
            let policy = origin.policy.parse::<PolicyName>().ok();
            Ok(policy.map(|policy| (policy, Origin { level, capped_by })))
        };
        Ok(PolicyView {
            own: view.own.unwrap_or_default().try_into()?,
            version: view.version,
            effective: effective.map_err(|missing| format!("no {missing} is in force"))?,
            origins: view
                .origins
                .iter()
                .filter_map(|found| origin(found).transpose())
                .collect::<Result<_, String>>()?,
        })
    }
}

#[cfg(test)]
mod tests;
