//! The decision: whether grants allow an action on a resource. Pure, on names alone: nothing is
//! looked up, so that what is forbidden and what is absent cannot be told apart (I12).
//!
//! Invariants:
//! - Nothing is allowed that no grant allows; no grant forbids anything, so that another one never
//!   takes access away.
//! - A partition is its topic.

use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_protocol_api::access::{Action, Resource};
use aquifer_protocol_api::scope::{GrantScope, PatternRef};

use crate::security::grant::Grant;

/// What separates a topic's name from the number of its partition.
const PARTITION: &str = "-partition-";

/// What a request is about, as the parts of scopes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    parts: [Option<PatternRef<'a>>; 3],
    subscription: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// The parts of a resource; `None` for what no grant is about.
    pub(crate) fn of(resource: &'a Resource) -> Option<Target<'a>> {
        let parts = match resource {
            Resource::Cluster => [None; 3],
            Resource::Tenant(tenant) => [Some(PatternRef::name(tenant)), None, None],
            Resource::Namespace(name) | Resource::Bundle(name, _) => of_namespace(name),
            Resource::Topic(topic) | Resource::Subscription(topic, _) => of_topic(topic),
            Resource::Scope(scope) => scope.parts(),
            Resource::Caller => return None,
        };
        let subscription = match resource {
            Resource::Subscription(_, name) => Some(name.as_str()),
            _ => None,
        };
        Some(Target {
            parts,
            subscription,
        })
    }
}

fn of_namespace(name: &NamespaceName) -> [Option<PatternRef<'_>>; 3] {
    [
        Some(PatternRef::name(name.tenant())),
        Some(PatternRef::name(name.namespace())),
        None,
    ]
}

fn of_topic(topic: &TopicName) -> [Option<PatternRef<'_>>; 3] {
    let name = topic.name();
    let base = match topic.partition() {
        Some(_) => name.rsplit_once(PARTITION).map_or(name, |(base, _)| base),
        None => name,
    };
    let [tenant, namespace, _] = of_namespace(topic.namespace());
    [tenant, namespace, Some(PatternRef::name(base))]
}

/// Whether a scope holds everything of a target.
pub(crate) fn covers(scope: &GrantScope, target: &Target<'_>) -> bool {
    for (part, wanted) in scope.parts().into_iter().zip(target.parts) {
        match (part, wanted) {
            (None, _) => return true,
            (Some(part), Some(wanted)) if part.contains(wanted) => {}
            (Some(_), _) => return false,
        }
    }
    true
}

/// Whether a scope and a target have something in common.
fn meets(scope: &GrantScope, target: &Target<'_>) -> bool {
    for (part, wanted) in scope.parts().into_iter().zip(target.parts) {
        match (part, wanted) {
            (None, _) | (_, None) => return true,
            (Some(part), Some(wanted)) if part.meets(wanted) => {}
            (Some(_), Some(_)) => return false,
        }
    }
    true
}

/// Whether one grant allows an action.
pub(crate) fn allows(grant: &Grant, action: Action, target: &Target<'_>, now_ms: u64) -> bool {
    if grant.is_over(now_ms) {
        return false;
    }
    let has = |action| grant.actions.has(action);
    let scope = &grant.info.scope;
    match action {
        Action::Use => (has(Action::Produce) || has(Action::Consume)) && covers(scope, target),
        Action::List => has(Action::Describe) && meets(scope, target),
        Action::Consume => {
            let subscriptions = grant.info.subscriptions.borrowed();
            let wanted = target.subscription.map(PatternRef::name);
            has(Action::Consume)
                && covers(scope, target)
                && wanted.is_none_or(|wanted| subscriptions.contains(wanted))
        }
        Action::Authenticate => false,
        Action::Describe
        | Action::Produce
        | Action::Manage
        | Action::Grant
        | Action::Operate
        | Action::Audit => has(action) && covers(scope, target),
    }
}

#[cfg(test)]
mod tests;
