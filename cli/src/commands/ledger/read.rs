//! `aquifer ledger read`: the entries of a ledger as a reader sees them that does not own it, up to
//! what is confirmed. It fences nothing and confirms nothing.

use std::time::Duration;

use aquifer_ledger::tail::{TailRead, TailReader};
use aquifer_model::entry::{EntryData, EntryHead};
use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::StoredEntry;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::json;

use crate::exit::CliError;
use crate::output::Output;
use crate::tool::{ToolContext, failed};

/// Most of one read.
const READ_BYTES: usize = 1 << 20;
const READ_ENTRIES: usize = 1_000;
/// How long bookies hold a question about the end before they answer that there is nothing new.
const WAIT: Duration = Duration::from_secs(20);
/// The same without --follow.
const WAIT_AT_END: Duration = Duration::from_millis(200);

/// What to read.
pub struct Wanted {
    /// The ledger.
    pub ledger: LedgerId,
    /// First entry.
    pub from: u64,
    /// End after this many entries.
    pub count: Option<u64>,
    /// Wait for more until the ledger is closed.
    pub follow: bool,
}

/// Prints entries.
///
/// # Errors
/// When the ledger does not exist, no replica has an entry, or standard output is closed.
pub async fn read(cluster: &ToolContext, wanted: &Wanted, out: &Output) -> Result<(), CliError> {
    let ledger = wanted.ledger;
    let opened = TailReader::open(cluster.ctx.ledgers.clone(), ledger, EntryId(wanted.from)).await;
    let mut tail = opened.map_err(|error| failed(&error))?;
    let mut left = wanted.count.unwrap_or(u64::MAX);
    let wait = if wanted.follow { WAIT } else { WAIT_AT_END };
    while left > 0 {
        let entries_max = READ_ENTRIES.min(usize::try_from(left).unwrap_or(READ_ENTRIES));
        let next = tail.next(READ_BYTES, entries_max, wait).await;
        match next.map_err(|error| failed(&error))? {
            TailRead::Entries(entries) => {
                left = left.saturating_sub(entries.len() as u64);
                for entry in entries {
                    print(ledger, &entry, out)?;
                }
                // With --follow each entry is shown at once.
                out.flush()?;
            }
            TailRead::Nothing if wanted.follow => {}
            TailRead::Nothing | TailRead::End => break,
        }
    }
    out.flush()
}

fn print(ledger: LedgerId, entry: &StoredEntry, out: &Output) -> Result<(), CliError> {
    let head = head_of(entry);
    if out.is_json() {
        return out.object(&json!({
            "ledger": ledger.0,
            "entry": entry.entry.0,
            "bytes": entry.data.len(),
            "last_add_confirmed": entry.last_add_confirmed.map(|entry| entry.0),
            "ledger_bytes": entry.ledger_length,
            "format": head.as_ref().map(|head| head.format),
            "base_index": head.as_ref().map(|head| head.base_index.0),
            "messages": head.as_ref().map(|head| head.message_count),
            "broker_time": head.as_ref().map(|head| head.broker_time_ms),
            "data_base64": STANDARD.encode(&entry.data),
        }));
    }
    let what = match head {
        Some(head) => {
            let last = head.base_index.0 + u64::from(head.message_count.max(1)) - 1;
            format!(
                "messages {}-{last}, format {}",
                head.base_index.0, head.format
            )
        }
        None => "not an entry of a topic".to_owned(),
    };
    out.line(format!(
        "{ledger}:{} {} bytes, {what}",
        entry.entry,
        entry.data.len()
    ))
}

/// What the broker says of an entry, where it is one of a topic.
fn head_of(entry: &StoredEntry) -> Option<EntryHead> {
    let data = EntryData {
        head: Bytes::new(),
        body: entry.data.clone(),
    };
    data.split().ok().map(|(head, _)| head)
}
