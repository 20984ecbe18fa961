//! Arguments of backups.

mod new_name;

use std::time::{Duration, SystemTime};

use aquifer_model::id::BackupId;
use aquifer_model::topic::TopicName;
use clap::{Args, Subcommand};

use crate::args::StoreArgs;

pub use self::new_name::NewName;

/// Which backup.
#[derive(Debug, Clone, Args)]
pub struct WhichBackup {
    /// The place of the objects of the cluster that has made it: what its brokers have as
    /// --cold-store.
    #[arg(value_name = "URL")]
    pub place: String,

    /// The backup; the newest one unless it is given.
    #[arg(long = "backup", value_name = "ID")]
    pub id: Option<BackupId>,

    /// The newest one that was finished by this time, such as 2026-01-31T12:00:00Z.
    #[arg(
        long,
        value_name = "TIME",
        value_parser = humantime::parse_rfc3339_weak,
        conflicts_with = "id"
    )]
    pub at: Option<SystemTime>,

    /// The cluster that has made it, where several have backups in the place.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,

    /// How the store is reached.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// What to do with backups. A URL is file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or
/// az://CONTAINER/PREFIX.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Back up all topics, with their subscriptions and policies.
    Create {
        /// The place of the cluster's objects: what its brokers have as --cold-store.
        #[arg(value_name = "URL")]
        place: String,
        /// Only this tenant.
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Only this topic.
        #[arg(long, conflicts_with = "tenant")]
        topic: Option<TopicName>,
        /// How the store is reached.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// List the backups in a place. No cluster is needed.
    List {
        /// The place.
        #[arg(value_name = "URL")]
        place: String,
        /// How its store is reached.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show what a backup has. No cluster is needed.
    Show {
        /// Which one.
        #[command(flatten)]
        which: WhichBackup,
    },
    /// Check that everything that a backup names is there; exit code 1 when something is not. No
    /// cluster is needed.
    Verify {
        /// Which one.
        #[command(flatten)]
        which: WhichBackup,
        /// Read every byte of the objects.
        #[arg(long)]
        deep: bool,
    },
    /// Delete all backups of the cluster but the newest ones. Objects that only they kept go.
    Expire {
        /// The place of the cluster's objects.
        #[arg(value_name = "URL")]
        place: String,
        /// How many stay.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
        /// How its store is reached.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Bring topics of a backup back. Topics that exist stay as they are. Run again, it goes on.
    Restore {
        /// Which backup.
        #[command(flatten)]
        which: WhichBackup,
        /// Only topics of this tenant.
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Only this topic.
        #[arg(long)]
        topic: Option<TopicName>,
        /// Bring them back under another name, beside what runs: topics of one tenant into another
        /// tenant, those of one namespace into another namespace, or one topic as another. Their
        /// messages are written again.
        #[arg(long = "as", value_name = "TENANT[/NAMESPACE[/TOPIC]]")]
        new_name: Option<NewName>,
        /// Only show what would be done: tenants, namespaces, policies, topics, subscriptions and
        /// access. Nothing is changed.
        #[arg(long)]
        dry_run: bool,
        /// Bring tokens, grants and revocations back too, where nothing stands in their place.
        #[arg(long, conflicts_with_all = ["topic", "new_name"])]
        access: bool,
        /// For how long nothing of the restored topics is deleted by retention or TTL.
        #[arg(
            long,
            value_name = "TIME",
            value_parser = humantime::parse_duration,
            default_value = "7days"
        )]
        trim_after: Duration,
    },
}
