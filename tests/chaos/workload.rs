//! What is written and consumed through every fault: the topics, and of each a subscription of
//! every kind with its processes.

use aquifer_client::SubscriptionType;
use clap::ValueEnum;

/// Topics that are written and read at once.
pub const TOPICS: usize = 3;

/// The name of a topic.
pub fn topic(number: usize) -> String {
    format!("public/default/chaos-{number}")
}

/// How a subscription is consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One consumer.
    Exclusive,
    /// One consumer, and one that stands by.
    Failover,
    /// Three consumers.
    Shared,
}

impl From<Kind> for SubscriptionType {
    fn from(kind: Kind) -> SubscriptionType {
        match kind {
            Kind::Exclusive => SubscriptionType::Exclusive,
            Kind::Failover => SubscriptionType::Failover,
            Kind::Shared => SubscriptionType::Shared,
        }
    }
}

/// Each kind with its number of processes.
pub const KINDS: [(Kind, usize); 3] =
    [(Kind::Exclusive, 1), (Kind::Failover, 2), (Kind::Shared, 3)];

/// The processes: kind and name.
pub fn processes() -> impl Iterator<Item = (Kind, String)> {
    KINDS.into_iter().flat_map(|(kind, count)| {
        (1..=count).map(move |number| (kind, format!("{}-{number}", name_of(kind.into()))))
    })
}

/// The name of the subscription that is consumed so.
pub fn name_of(kind: SubscriptionType) -> String {
    format!("{kind:?}").to_lowercase()
}
