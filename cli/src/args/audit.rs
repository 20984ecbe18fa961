//! Arguments of `aquifer audit`.

use aquifer_model::place::Place;
use clap::{Args, Subcommand};

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show the newest lines.
    Tail {
        /// How many.
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        lines: usize,
        /// Go on with those that come.
        #[arg(long)]
        follow: bool,
        /// Those about a tenant [default: all of the cluster].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
    },
    /// Show the lines that all given conditions apply to.
    Search {
        /// What is searched for.
        #[command(flatten)]
        wanted: AuditSearch,
    },
    /// Check that no line is missing, changed or moved; exit code 1 when one is.
    Verify {
        /// Where to begin: a time, or an index.
        #[arg(long, value_name = "PLACE", default_value = "earliest")]
        from: Place,
        /// The key that checkpoints must be signed with, as `audit key` printed it [default: the
        /// one that the cluster names now].
        #[arg(long, value_name = "HEX")]
        key: Option<String>,
    },
    /// Print the public key that checkpoints are signed with.
    Key,
}

/// Conditions on lines of the audit log.
#[derive(Debug, Clone, Args)]
pub struct AuditSearch {
    /// Where to begin: a time, or an index.
    #[arg(long, value_name = "PLACE", default_value = "earliest")]
    pub from: Place,
    /// Those about a tenant [default: all of the cluster].
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// The principal that did it: the whole name.
    #[arg(long, value_name = "PRINCIPAL")]
    pub principal: Option<String>,
    /// What was asked for, such as delete_topic.
    #[arg(long, value_name = "REQUEST")]
    pub request: Option<String>,
    /// A part of what it was about, such as the name of a topic.
    #[arg(long, value_name = "TEXT")]
    pub resource: Option<String>,
    /// How it came out: intended, done, failed, unknown, counted.
    #[arg(long, value_name = "OUTCOME")]
    pub outcome: Option<String>,
    /// The id of one request.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// End after N lines.
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
}
