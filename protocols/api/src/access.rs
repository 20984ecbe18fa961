//! What a call needs a permission for: an action on a resource.

use std::fmt;

use aquifer_model::bundle::BundleRange;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};

use crate::scope::GrantScope;

/// What is done to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Learn of it: lists, descriptions, statistics.
    Describe,
    /// Send messages to it.
    Produce,
    /// Receive messages of it, and say which are done.
    Consume,
    /// Produce or consume: creates a topic on first use, where its namespace allows that.
    Use,
    /// Create, change or delete it, or what is in it.
    Manage,
    /// Say what others may do with it.
    Grant,
    /// Operate the cluster.
    Operate,
    /// Read the record of what was done to it.
    Audit,
    /// See what may be described of it: of a list, only that is answered.
    List,
    /// Be known: every authenticated caller may.
    Authenticate,
}

impl Action {
    /// Those that a grant gives. The others are made of them.
    pub const GRANTED: [Action; 7] = [
        Action::Describe,
        Action::Produce,
        Action::Consume,
        Action::Manage,
        Action::Grant,
        Action::Operate,
        Action::Audit,
    ];

    /// The granted action of a name.
    #[must_use]
    pub fn granted(name: &str) -> Option<Action> {
        let mut all = Action::GRANTED.into_iter();
        all.find(|action| action.name() == name)
    }

    /// Its name in spans, logs and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Action::Describe => "describe",
            Action::Produce => "produce",
            Action::Consume => "consume",
            Action::Use => "use",
            Action::Manage => "manage",
            Action::Grant => "grant",
            Action::Operate => "operate",
            Action::Audit => "audit",
            Action::List => "list",
            Action::Authenticate => "authenticate",
        }
    }
}

/// What an action is done to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Everything.
    Cluster,
    /// A tenant.
    Tenant(String),
    /// A namespace.
    Namespace(NamespaceName),
    /// A topic, or one of its partitions.
    Topic(TopicName),
    /// A subscription of a topic.
    Subscription(TopicName, SubscriptionName),
    /// A bundle of a namespace's topics.
    Bundle(NamespaceName, BundleRange),
    /// Everything that a grant of this scope applies to.
    Scope(GrantScope),
    /// The caller itself.
    Caller,
}

impl Resource {
    /// The tenant whose it is; `None` for what is the cluster's, or of several tenants.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        match self {
            Resource::Tenant(tenant) => Some(tenant),
            Resource::Namespace(namespace) | Resource::Bundle(namespace, _) => {
                Some(namespace.tenant())
            }
            Resource::Topic(topic) | Resource::Subscription(topic, _) => {
                Some(topic.namespace().tenant())
            }
            Resource::Scope(scope) => scope.tenant(),
            Resource::Cluster | Resource::Caller => None,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Cluster => f.write_str("cluster"),
            Resource::Tenant(tenant) => write!(f, "tenant {tenant}"),
            Resource::Namespace(namespace) => write!(f, "namespace {namespace}"),
            Resource::Topic(topic) => write!(f, "topic {topic}"),
            Resource::Subscription(topic, name) => {
                write!(f, "subscription {name} of topic {topic}")
            }
            Resource::Bundle(namespace, bundle) => {
                write!(f, "bundle {bundle} of namespace {namespace}")
            }
            Resource::Scope(scope) => scope.fmt(f),
            Resource::Caller => f.write_str("caller"),
        }
    }
}

/// What a call needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Access {
    /// The call, by the name that spans and metrics use.
    pub request: &'static str,
    /// What it does.
    pub action: Action,
    /// To what.
    pub resource: Resource,
    /// What it is about, where the permission is needed for something larger: a tenant that is
    /// created, in the cluster. It decides nothing.
    pub about: Option<Resource>,
}

impl Access {
    /// What a record of it names.
    #[must_use]
    pub fn subject(&self) -> &Resource {
        self.about.as_ref().unwrap_or(&self.resource)
    }
}

#[test]
fn resources_are_named_for_people() {
    let topic: TopicName = "a/b/c".parse().expect("a name");
    let name = SubscriptionName::new("s").expect("a name");
    let shown = |resource: Resource| resource.to_string();
    assert_eq!(shown(Resource::Cluster), "cluster");
    assert_eq!(
        shown(Resource::Subscription(topic.clone(), name)),
        format!("subscription s of topic {topic}")
    );
    assert_eq!(
        shown(Resource::Topic(topic.clone())),
        format!("topic {topic}")
    );
}
