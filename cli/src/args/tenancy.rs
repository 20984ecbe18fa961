//! Arguments of `aquifer tenant`, `namespace` and `subscription`.

use std::time::Duration;

use aquifer_model::place::Place;
use aquifer_model::policy::Bound;
use aquifer_model::quorum::Quorum;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use clap::{Args, Subcommand};

use super::roles::quorum;

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
    /// Create a namespace; what is not given is as the cluster has it by default.
    Create {
        /// The namespace, TENANT/NAMESPACE.
        namespace: NamespaceName,
        /// Its policies.
        #[command(flatten)]
        policies: PolicyArgs,
    },
    /// List the namespaces of a tenant.
    List {
        /// The tenant.
        #[arg(default_value = "public", value_parser = tenant)]
        tenant: String,
    },
    /// Show the policies of a namespace.
    Show {
        /// The namespace, TENANT/NAMESPACE.
        #[arg(default_value = "public/default")]
        namespace: NamespaceName,
    },
    /// Change policies of a namespace; what is not given stays.
    Update {
        /// The namespace, TENANT/NAMESPACE.
        namespace: NamespaceName,
        /// What changes.
        #[command(flatten)]
        policies: PolicyArgs,
    },
}

/// Policies of a namespace, those that are given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct PolicyArgs {
    /// Replication of new ledgers: ensemble, write quorum, ack quorum.
    #[arg(long, value_name = "E,Qw,Qa", value_parser = quorum)]
    pub quorum: Option<Quorum>,

    /// How long what all subscriptions acknowledged is kept: 7days, 12h, or forever.
    #[arg(long, value_name = "DURATION", value_parser = retention_time)]
    pub retention_time: Option<Bound>,

    /// How many of the newest bytes are kept beyond that time: 500MiB, 10GiB, 0, or everything.
    #[arg(long, value_name = "BYTES", value_parser = retention_size)]
    pub retention_size: Option<Bound>,

    /// Whether what a producer sends again is stored once.
    #[arg(long, value_name = "BOOL")]
    pub deduplication: Option<bool>,

    /// Whether topics are created when they are first used.
    #[arg(long, value_name = "BOOL")]
    pub auto_create_topics: Option<bool>,

    /// Begin another ledger at so many bytes.
    #[arg(long, value_name = "BYTES", value_parser = positive_size)]
    pub rollover_size: Option<u64>,

    /// Begin another ledger at this age.
    #[arg(long, value_name = "DURATION", value_parser = positive_time)]
    pub rollover_time: Option<Duration>,

    /// Begin another ledger at so many entries.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rollover_entries: Option<u64>,
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
    /// Create a subscription that nobody consumes from yet, so that it misses nothing.
    Create {
        /// The topic.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
        /// Where it begins.
        #[arg(long, default_value = "latest", value_name = "PLACE")]
        from: Place,
    },
    /// List the subscriptions of a topic and how far they are.
    List {
        /// The topic.
        topic: TopicName,
    },
    /// Move a subscription; its consumers continue from there.
    Seek {
        /// The topic.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
        /// Where to: earliest, latest, an index, a position L:E, a time or @milliseconds.
        place: Place,
    },
    /// Give up messages that storage cannot give, as if they had been acknowledged.
    Skip {
        /// The topic, or one partition.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
        /// From this index on; otherwise what was found damaged when it was read last.
        #[arg(long, requires = "last", value_name = "INDEX")]
        first: Option<u64>,
        /// Up to this index, which is given up too.
        #[arg(long, requires = "first", value_name = "INDEX")]
        last: Option<u64>,
    },
    /// Let subscriptions go on whose record is damaged, from what of it is whole.
    Reset {
        /// The topic, or one partition.
        topic: TopicName,
    },
    /// Delete a subscription; what only it kept can be trimmed then.
    Delete {
        /// The topic.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
        /// Also when consumers are connected.
        #[arg(long)]
        force: bool,
    },
}

/// The name of a tenant, by the rules of those that have namespaces.
fn tenant(text: &str) -> Result<String, String> {
    let checked = NamespaceName::new(text, "default");
    checked.map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn positive_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("it is at least one byte".to_owned()),
        size => Ok(size),
    }
}

fn positive_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time.as_millis() {
        0 => Err("it is at least a millisecond".to_owned()),
        _ => Ok(time),
    }
}

fn retention_time(text: &str) -> Result<Bound, String> {
    if text == "forever" {
        return Ok(Bound::Unbounded);
    }
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; it is a duration such as 7days, or forever"))?;
    let limit = u64::try_from(time.as_millis()).map_err(|_| "that is forever".to_owned())?;
    Ok(Bound::Limit(limit))
}

fn retention_size(text: &str) -> Result<Bound, String> {
    match text {
        "everything" => Ok(Bound::Unbounded),
        _ => size(text)
            .map(Bound::Limit)
            .map_err(|error| format!("{error}, or everything")),
    }
}

/// A number of bytes, with a binary unit or without one.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err("units are KiB, MiB, GiB and TiB".to_owned()),
    };
    let number = digits.trim_end().parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| "it is a number of bytes such as 1048576, 500MiB or 10GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_with_their_units() {
        assert_eq!(size("7"), Ok(7));
        assert_eq!(size("10GiB"), Ok(10 << 30));
        assert_eq!(size("500 MiB"), Ok(500 << 20));
        for wrong in ["", "GiB", "1GB", "-1", "99999999TiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(retention_size("everything"), Ok(Bound::Unbounded));
        assert_eq!(retention_time("forever"), Ok(Bound::Unbounded));
        assert_eq!(retention_time("12h"), Ok(Bound::Limit(12 * 3_600_000)));
        assert!(retention_time("soon").is_err());
    }
}
