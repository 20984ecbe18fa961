//! Arguments of `aquifer tenant`, `namespace` and `subscription`.

use std::time::Duration;

use aquifer_model::place::Place;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use clap::{Args, Subcommand};

use crate::args::policy::{PolicyCommand, PolicyValue};
use crate::args::properties::key_value;

/// Arguments of `aquifer tenant`.
#[derive(Debug, Args)]
pub struct TenantArgs {
    /// What to do with tenants.
    #[command(subcommand)]
    pub command: TenantCommand,
}

/// What to do with tenants.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Create a tenant.
    Create {
        /// The tenant.
        #[arg(value_parser = tenant)]
        tenant: String,
    },
    /// List the tenants.
    List,
    /// Delete a tenant with its tokens, grants and policies.
    Delete {
        /// The tenant.
        #[arg(value_parser = tenant)]
        tenant: String,
        /// How.
        #[command(flatten)]
        how: DeleteArgs,
    },
    /// Read and change the policies of a tenant.
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// Arguments of `aquifer namespace`.
#[derive(Debug, Args)]
pub struct NamespaceArgs {
    /// What to do with namespaces.
    #[command(subcommand)]
    pub command: NamespaceCommand,
}

/// What to do with namespaces.
#[derive(Debug, Subcommand)]
pub enum NamespaceCommand {
    /// Create a namespace; policies that are not given are inherited.
    Create {
        /// The namespace, TENANT/NAMESPACE.
        namespace: NamespaceName,
        /// Its policies; `aquifer namespace policy set --help` lists them.
        #[arg(long = "policy", value_name = "NAME=VALUE")]
        policies: Vec<PolicyValue>,
    },
    /// List the namespaces of a tenant.
    List {
        /// The tenant.
        #[arg(default_value = "public", value_parser = tenant)]
        tenant: String,
    },
    /// Delete a namespace with its policies and grants.
    Delete {
        /// The namespace, TENANT/NAMESPACE.
        namespace: NamespaceName,
        /// How.
        #[command(flatten)]
        how: DeleteArgs,
    },
    /// Show the policies in force for topics of a namespace, each with the level that sets it.
    Show {
        /// The namespace, TENANT/NAMESPACE.
        #[arg(default_value = "public/default")]
        namespace: NamespaceName,
    },
    /// Read and change the policies of a namespace.
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// Arguments of `aquifer subscription`.
#[derive(Debug, Args)]
pub struct SubscriptionArgs {
    /// What to do with subscriptions.
    #[command(subcommand)]
    pub command: SubscriptionCommand,
}

/// What to do with subscriptions.
#[derive(Debug, Subcommand)]
pub enum SubscriptionCommand {
    /// Create a subscription before its first consumer, so that it misses nothing.
    Create {
        /// The topic.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
        /// Where it begins.
        #[arg(long, default_value = "latest", value_name = "PLACE")]
        from: Place,
        /// A property that is recorded of it; may be given several times.
        #[arg(long = "property", value_name = "k=v", value_parser = key_value)]
        properties: Vec<(String, String)>,
    },
    /// List the subscriptions of a topic, their backlog and properties.
    List {
        /// The topic.
        topic: TopicName,
    },
    /// Show a subscription: where it stands, its backlog, the oldest message that is not
    /// acknowledged, its consumers and properties, and each partition.
    Show(ShowArgs),
    /// Move a subscription; its consumers continue from there.
    Seek {
        /// The topic.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
        /// Where to: earliest, latest, an index, a position L:E, a time or @milliseconds.
        place: Place,
    },
    /// Give up messages that cannot be read, as if they had been acknowledged.
    Skip {
        /// The topic, or one partition.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
        /// First index [default: what was found damaged by the last read].
        #[arg(long, requires = "last", value_name = "INDEX")]
        first: Option<u64>,
        /// Last index, inclusive.
        #[arg(long, requires = "first", value_name = "INDEX")]
        last: Option<u64>,
    },
    /// Show the next messages that a subscription has not acknowledged, and change nothing.
    Peek(PeekArgs),
    /// Give up everything that a subscription has not acknowledged, as if it had been.
    Clear(ClearArgs),
    /// Give up what a subscription has not acknowledged and is older than a time.
    Expire(ExpireArgs),
    /// Let subscriptions continue whose record is damaged, from what of it is intact.
    Reset {
        /// The topic, or one partition.
        topic: TopicName,
    },
    /// Delete a subscription; messages that only it kept can be trimmed then.
    Delete {
        /// The topic.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
        /// Delete it although consumers are connected.
        #[arg(long)]
        force: bool,
    },
}

/// Which subscription is shown.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The topic, or one partition.
    pub topic: TopicName,
    /// The subscription.
    pub subscription: SubscriptionName,
}

/// How a tenant or namespace is deleted.
#[derive(Debug, Clone, Copy, Args)]
pub struct DeleteArgs {
    /// Delete everything that is in it first, although clients are connected.
    #[arg(long)]
    pub force: bool,
    /// Say what is in it, and delete nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `aquifer subscription peek`.
#[derive(Debug, Args)]
pub struct PeekArgs {
    /// The topic.
    pub topic: TopicName,
    /// The subscription.
    pub subscription: SubscriptionName,
    /// Number of messages; fewer are shown where they are large.
    #[arg(
        long,
        default_value_t = 10,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000)
    )]
    pub count: u32,
}

/// Arguments of `aquifer subscription clear`.
#[derive(Debug, Args)]
pub struct ClearArgs {
    /// The topic.
    pub topic: TopicName,
    /// The subscription.
    pub subscription: SubscriptionName,
    /// Say how many messages that would be, and give up nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `aquifer subscription expire`.
#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// What is given up.
    #[command(flatten)]
    pub clear: ClearArgs,
    /// How long ago the broker took the newest of them, such as 12h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub older_than: Duration,
}

/// The name of a tenant, by the rules of those that have namespaces.
fn tenant(text: &str) -> Result<String, String> {
    let checked = NamespaceName::new(text, "default");
    checked.map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}
