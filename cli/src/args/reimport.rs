//! The arguments of `aquifer topic reimport`.

use aquifer_model::place::Place;
use aquifer_model::topic::TopicName;
use clap::Args;

/// Which ledgers come back to bookies.
#[derive(Debug, Args)]
pub struct ReimportArgs {
    /// The topic, or a partition.
    pub topic: TopicName,
    /// Only ledgers that end behind this place.
    #[arg(long, default_value = "earliest", value_name = "PLACE")]
    pub from: Place,
    /// Only ledgers that begin before this place.
    #[arg(long, default_value = "latest", value_name = "PLACE")]
    pub to: Place,
    /// Wait until all of them are back.
    #[arg(long)]
    pub wait: bool,
    /// End what was begun instead.
    #[arg(long, conflicts_with_all = ["from", "to", "wait"])]
    pub cancel: bool,
}
