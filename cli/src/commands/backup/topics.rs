//! Topics of a backup as they are printed.

use aquifer_model::backup::BackupTotals;
use aquifer_proto::v1;
use serde_json::{Value, json};

use crate::output::Table;

pub(super) fn totals_of(entry: &v1::BackupTopicEntry) -> BackupTotals {
    entry.totals.unwrap_or_default().into()
}

pub(super) fn topic_object(topic: &str, outcome: &str, totals: &BackupTotals) -> Value {
    json!({
        "topic": topic,
        "outcome": outcome,
        "first_index": totals.first.0,
        "end_index": totals.end.0,
        "messages": totals.end.0.saturating_sub(totals.first.0),
        "entries": totals.entries,
        "bytes": totals.bytes,
        "ledgers": totals.ledgers,
        "subscriptions": totals.subscriptions,
    })
}

pub(super) fn topics_table(rows: impl Iterator<Item = (String, String, BackupTotals)>) -> Table {
    let mut table = Table::new([
        "topic",
        "state",
        "first",
        "end",
        "entries",
        "bytes",
        "ledgers",
        "subscriptions",
    ]);
    for (topic, state, totals) in rows {
        table.row([
            topic,
            state,
            totals.first.to_string(),
            totals.end.to_string(),
            totals.entries.to_string(),
            totals.bytes.to_string(),
            totals.ledgers.to_string(),
            totals.subscriptions.to_string(),
        ]);
    }
    table
}
