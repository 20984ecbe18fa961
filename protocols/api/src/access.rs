//! What a call needs a permission for: an action on a resource.

use std::fmt;

use aquifer_model::bundle::BundleRange;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};

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
    /// Operate the cluster.
    Operate,
}

impl Action {
    /// Its name in spans, logs and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Action::Describe => "describe",
            Action::Produce => "produce",
            Action::Consume => "consume",
            Action::Use => "use",
            Action::Manage => "manage",
            Action::Operate => "operate",
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
