//! Policies, what is in force, and changes of them.

use aquifer_model::policy::{
    EffectivePolicies, Level, Policies, PolicyName, PolicyScope, PolicyUpdate, PolicyView,
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
            deduplication: policies.deduplication,
            auto_create_topics: policies.auto_create_topics,
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
        let persistence = policies.persistence.map(quorum).transpose();
        Ok(Policies {
            persistence: persistence.map_err(|error| error.to_string())?,
            retention: policies.retention.map(|retention| Retention {
                time_ms: retention.time_ms,
                size_bytes: retention.size_bytes,
            }),
            rollover,
            deduplication: policies.deduplication,
            auto_create_topics: policies.auto_create_topics,
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

impl From<PolicyView> for v1::PolicyView {
    fn from(view: PolicyView) -> v1::PolicyView {
        let origins = view.origins.iter().map(|(name, from)| v1::PolicyOrigin {
            policy: name.to_string(),
            level: level(*from).into(),
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
        let missing = |name: PolicyName| move || format!("no {name} is in force");
        let effective = EffectivePolicies {
            persistence: (effective.persistence).ok_or_else(missing(PolicyName::Persistence))?,
            retention: (effective.retention).ok_or_else(missing(PolicyName::Retention))?,
            rollover: (effective.rollover).ok_or_else(missing(PolicyName::Rollover))?,
            deduplication: (effective.deduplication)
                .ok_or_else(missing(PolicyName::Deduplication))?,
            auto_create_topics: (effective.auto_create_topics)
                .ok_or_else(missing(PolicyName::AutoCreateTopics))?,
        };
        let origin = |origin: &v1::PolicyOrigin| {
            let from = match origin.level() {
                v1::PolicyLevel::Unspecified => return Err("an origin without a level".to_owned()),
                v1::PolicyLevel::Default => Level::Default,
                v1::PolicyLevel::Tenant => Level::Tenant,
                v1::PolicyLevel::Namespace => Level::Namespace,
                v1::PolicyLevel::Topic => Level::Topic,
            };
            // A newer broker may have policies that this build does not know.
            let policy = origin.policy.parse::<PolicyName>().ok();
            Ok(policy.map(|policy| (policy, from)))
        };
        Ok(PolicyView {
            own: view.own.unwrap_or_default().try_into()?,
            version: view.version,
            effective,
            origins: view
                .origins
                .iter()
                .filter_map(|found| origin(found).transpose())
                .collect::<Result<_, String>>()?,
        })
    }
}
