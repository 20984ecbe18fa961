//! Arguments of `policy`, which tenants, namespaces and topics have.

mod value;

use aquifer_model::policy::PolicyName;
use clap::Subcommand;

pub(super) use self::value::size;
pub use self::value::{BacklogPart, CountName, OffloadPart, PolicyValue, RateName, RatePart};

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show the policies that are set here, or all that are in force.
    Get {
        /// The tenant, namespace or topic.
        scope: String,
        /// Show all policies in force, each with the level that sets it.
        #[arg(long)]
        effective: bool,
    },
    /// Set policies; policies that are not given stay as they are.
    ///
    /// Policies, with values of each kind:
    ///   persistence=3,3,2            copies of new ledgers: ensemble, write quorum, ack quorum
    ///   retention.time=7days         minimum time that messages are kept, or forever
    ///   retention.size=10GiB         minimum of newest bytes that are kept, or everything
    ///   rollover.size=1GiB           a ledger ends at this size,
    ///   rollover.age=4h              at this age,
    ///   rollover.entries=1000000     or at this number of entries
    ///   offload=on                   whether closed ledgers go into objects: on or off
    ///   offload.age=4h               when their last entry is this old, or never
    ///   offload.bytes=10GiB          when the topic has this many newer bytes, or unlimited
    ///   offload.lag=1h               how long bookies keep copies after that
    ///   offload.compression=auto     auto or none
    ///   deduplication=on             on or off
    ///   autoCreateTopics=off         on or off
    ///   autoCreateSubscriptions=off  on or off
    ///   subscriptionTypes=shared     all, or some of exclusive,failover,shared,key-shared
    ///   ttl=7days                    age at which messages are acknowledged, or off
    ///   backlogQuota.bytes=10GiB     most bytes that subscriptions leave unacknowledged,
    ///   backlogQuota.age=3days       and for how long; each may be unlimited
    ///   backlogQuota.action=hold     at the quota: hold, refuse or evict
    ///   publishRate.messages=10000   what a topic takes in a second,
    ///   publishRate.bytes=10MiB      in bytes; each may be unlimited
    ///   publishRate.burst=1s         what may gather while nothing is sent
    ///   producerRate                 the same for each producer
    ///   dispatchRate                 what a topic delivers in a second
    ///   subscriptionRate             the same for each subscription
    ///   aggregateRate.publish        what all topics of a tenant or namespace take in a second
    ///   aggregateRate.dispatch       what they deliver
    ///   messageBytesMax=1MiB         largest message
    ///   unacked.consumer=1000        messages delivered and not acknowledged, of a consumer
    ///   unacked.subscription=10000   and of a subscription
    ///   counts.topics=1000           topics of a namespace, partitions counted, or unlimited
    ///   counts.producers=100         producers of a topic
    ///   counts.subscriptions=100     subscriptions and readers of a topic
    ///   counts.consumers=100         consumers and readers of a topic, or unlimited
    ///   weight=3                     shares of a tenant where servers have too much to do
    ///
    /// Of aggregateRate, messageBytesMax, unacked and counts the lowest value of tenant, namespace
    /// and topic is in force; of the others that of the nearest.
    #[command(verbatim_doc_comment)]
    Set {
        /// The tenant, namespace or topic.
        scope: String,
        /// Policies.
        #[arg(required = true, value_name = "NAME=VALUE")]
        values: Vec<PolicyValue>,
        /// Fail unless the policies have this version, which `get` shows.
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
    /// Unset policies, so that they are inherited again.
    Unset {
        /// The tenant, namespace or topic.
        scope: String,
        /// Policies, without their parts: `retention`, `publishRate`.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<PolicyName>,
        /// Fail unless the policies have this version, which `get` shows.
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
}
