//! Arguments of `aquifer cluster`.

use std::path::PathBuf;
use std::time::Duration;

use aquifer_model::bundle::BundleRange;
use aquifer_model::topic::{NamespaceName, TopicName};
use clap::{Args, Subcommand};

use crate::args::storage::SourceArgs;

/// Arguments of `aquifer cluster`.
#[derive(Debug, Args)]
pub struct ClusterToolArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// What to do with brokers and bundles.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the brokers, and how many bundles of the namespace each of them owns.
    Status {
        /// The namespace, TENANT/NAMESPACE.
        #[arg(default_value = "public/default")]
        namespace: NamespaceName,
    },
    /// List the brokers.
    Brokers,
    /// Check that the cluster is whole, as before an upgrade: every bookie that ever joined and was
    /// not retired is there and takes entries, brokers are there, no ledger lacks copies, no bookie
    /// is being retired, and etcd has a quorum. Exit code 1 when it is not.
    Check {
        /// At least N bookies must be there [default: those that have joined].
        #[arg(long, value_name = "N")]
        bookies: Option<usize>,
        /// At least N brokers must be there.
        #[arg(long, value_name = "N", default_value_t = 1)]
        brokers: usize,
        /// Look again and again for that long, until the cluster is whole.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        /// The cluster.
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Make the token of the administrator, token:admin, in the metadata of a cluster: before its
    /// brokers start with --auth. It is made once.
    InitAuth {
        /// The new file that gets it, which only you can read.
        #[arg(long, default_value = "admin.token", value_name = "PATH")]
        to_file: PathBuf,
        /// The cluster.
        #[command(flatten)]
        source: SourceArgs,
    },
    /// List the bookies as a broker sees them in metadata.
    Bookies {
        /// Count the ledgers of each: the broker reads the records of all ledgers.
        #[arg(long)]
        count_ledgers: bool,
    },
    /// List the ledgers of a topic or of the whole cluster, or show one, as a broker sees their
    /// records in metadata.
    Ledgers {
        /// Only those of this topic or partition.
        #[arg(long, value_name = "TOPIC", conflicts_with = "ledger")]
        topic: Option<TopicName>,
        /// The one to show, by its number.
        ledger: Option<u64>,
    },
    /// List the bundles of a namespace and their owners.
    Bundles {
        /// The namespace, TENANT/NAMESPACE.
        #[arg(default_value = "public/default")]
        namespace: NamespaceName,
    },
    /// Move a bundle from its broker to any other.
    Unload {
        /// The namespace, TENANT/NAMESPACE.
        namespace: NamespaceName,
        /// The bundle, FIRST-LAST as `bundles` lists it; all of the namespace when left out.
        bundle: Option<BundleRange>,
    },
    /// Move a bundle to a given broker.
    Transfer {
        /// The namespace, TENANT/NAMESPACE.
        namespace: NamespaceName,
        /// The bundle, FIRST-LAST as `bundles` lists it.
        bundle: BundleRange,
        /// The broker, by its id as `brokers` lists it.
        #[arg(long, value_name = "ID")]
        to: String,
    },
    /// Split a bundle in two; both stay where they are.
    Split {
        /// The namespace, TENANT/NAMESPACE.
        namespace: NamespaceName,
        /// The bundle, FIRST-LAST as `bundles` lists it.
        bundle: BundleRange,
        /// Split at this hash, eight hexadecimal digits [default: where it halves the load, or in
        /// the middle when the load is not known].
        #[arg(long, value_name = "HASH", value_parser = hash)]
        at: Option<u32>,
    },
}

fn hash(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 16).map_err(|_| format!("{text} is no hexadecimal number"))
}
