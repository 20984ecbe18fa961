//! Arguments of the tools for objects, most of which need no cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::args::storage::SourceArgs;

/// How a store is reached. Credentials come from files or from the variables of its vendor.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// The URL of a server that speaks S3, where that is not Amazon's.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,

    /// The region of the bucket.
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,

    /// Speak plain HTTP to the endpoint.
    #[arg(long)]
    pub allow_http: bool,

    /// Certificates that the server's is checked against (PEM).
    #[arg(long, value_name = "PATH")]
    pub store_ca_file: Option<PathBuf>,

    /// A file with the id of the access key.
    #[arg(long, value_name = "PATH", requires = "secret_key_file")]
    pub access_key_file: Option<PathBuf>,

    /// A file with its secret.
    #[arg(long, value_name = "PATH", requires = "access_key_file")]
    pub secret_key_file: Option<PathBuf>,
}

/// What to do with objects. A URL is file:///PATH, s3://BUCKET/NAME, gs://BUCKET/NAME or
/// az://CONTAINER/NAME.
#[derive(Debug, Subcommand)]
pub enum ObjectCommand {
    /// List the objects below a URL.
    List {
        /// The place.
        url: String,
        /// End after N objects.
        #[arg(long, value_name = "N")]
        count: Option<usize>,
        /// How its store is reached.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show what an object says of itself: its ledger, its topic, its indexes and times.
    Inspect {
        /// The object.
        url: String,
        /// How its store is reached.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Read every byte of an object and check it; exit code 1 when one is damaged.
    Verify {
        /// The object.
        url: String,
        /// How its store is reached.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Print the messages of an object.
    Cat {
        /// The object.
        url: String,
        /// Begin with the message of this index.
        #[arg(long, value_name = "INDEX")]
        from: Option<u64>,
        /// End after N messages.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// How its store is reached.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Compare the places of a cluster with its metadata: which objects no ledger refers to, and
    /// which ledgers refer to objects that are not there; exit code 1 when there are any.
    Audit {
        /// Objects that came to be in this time are not judged.
        #[arg(
            long,
            value_name = "TIME",
            value_parser = humantime::parse_duration,
            default_value = "7days"
        )]
        young: Duration,
        /// Have the brokers delete what no record refers to.
        #[arg(long)]
        delete: bool,
        /// Confirm --delete.
        #[arg(long, requires = "delete")]
        yes: bool,
        /// Have ledgers that are in no object use doubtful ones that hold them, after reading all
        /// of these.
        #[arg(long)]
        adopt: bool,
        /// What to examine.
        #[command(flatten)]
        source: SourceArgs,
        /// How the stores are reached.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Read every byte of all objects that ledgers of a cluster are in, and check it; exit code 1
    /// when one is not whole.
    Scrub {
        /// Maximum number of bytes read a second; 0: no bound.
        #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
        rate: u64,
        /// What to examine.
        #[command(flatten)]
        source: SourceArgs,
        /// How the stores are reached.
        #[command(flatten)]
        store: StoreArgs,
    },
}
