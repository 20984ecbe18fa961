//! `aquifer cluster bookies|ledgers`: bookies and ledgers as a broker sees them in metadata.

use aquifer_client::admin::{Admin, LedgerInfo};
use aquifer_model::id::LedgerId;
use aquifer_model::topic::TopicName;
use serde_json::{Value, json};

use crate::exit::CliError;
use crate::output::{Output, Table};

pub(super) async fn bookies(
    admin: &Admin,
    count_ledgers: bool,
    out: &Output,
) -> Result<(), CliError> {
    let columns = [
        "bookie",
        "state",
        "address",
        "zone",
        "ledgers",
        "free bytes",
    ];
    let mut table = Table::new(columns);
    for bookie in admin.list_bookies(count_ledgers).await? {
        if out.is_json() {
            out.object(&json!({
                "bookie": bookie.bookie,
                "state": bookie.state,
                "address": bookie.address,
                "zone": bookie.zone,
                "ledgers": bookie.ledgers,
                "free_bytes": bookie.free_bytes,
                "capacity_bytes": bookie.capacity_bytes,
                "draining": bookie.draining,
                "decommissioned_ms": bookie.decommissioned_ms,
                "limbo_since_ms": bookie.limbo_since_ms,
                "directories": bookie.directories,
            }))?;
            continue;
        }
        let ledgers = bookie.ledgers.map(|ledgers| ledgers.to_string());
        table.row([
            bookie.bookie,
            bookie.state,
            bookie.address.unwrap_or_default(),
            bookie.zone,
            ledgers.unwrap_or_else(|| "-".to_owned()),
            bookie.free_bytes.to_string(),
        ]);
    }
    match out.is_json() {
        true => Ok(()),
        false => out.table(&table),
    }
}

pub(super) async fn ledgers(
    admin: &Admin,
    topic: Option<TopicName>,
    ledger: Option<u64>,
    out: &Output,
) -> Result<(), CliError> {
    if let Some(ledger) = ledger {
        return show(&admin.get_ledger(LedgerId(ledger)).await?, out);
    }
    let mut table = Table::new(["ledger", "state", "bytes", "fragments", "quorum", "home"]);
    if let Some(topic) = topic {
        let all = admin.list_topic_ledgers(&topic.to_string()).await?;
        list(all, &mut table, out)?;
    } else {
        let mut after = None;
        loop {
            let (all, next) = admin.list_ledgers(after).await?;
            list(all, &mut table, out)?;
            if next.is_none() {
                break;
            }
            after = next;
        }
    }
    match out.is_json() {
        true => Ok(()),
        false => out.table(&table),
    }
}

fn list(ledgers: Vec<LedgerInfo>, table: &mut Table, out: &Output) -> Result<(), CliError> {
    for ledger in ledgers {
        if out.is_json() {
            out.object(&object(&ledger))?;
            continue;
        }
        table.row([
            ledger.ledger.to_string(),
            ledger.state.clone(),
            ledger.bytes.to_string(),
            ledger.fragments.len().to_string(),
            quorum(&ledger),
            ledger.home,
        ]);
    }
    Ok(())
}

fn quorum(ledger: &LedgerInfo) -> String {
    let (ensemble, write, ack) = ledger.quorum;
    format!("{ensemble}/{write}/{ack}")
}

fn object(ledger: &LedgerInfo) -> Value {
    let fragments = ledger
        .fragments
        .iter()
        .map(|fragment| json!({"first_entry": fragment.first_entry, "bookies": fragment.bookies}));
    let (ensemble, write, ack) = ledger.quorum;
    json!({
        "ledger": ledger.ledger.0,
        "state": ledger.state,
        "ensemble": ensemble,
        "write_quorum": write,
        "ack_quorum": ack,
        "last_entry": ledger.last_entry,
        "bytes": ledger.bytes,
        "home": ledger.home,
        "created_ms": ledger.created_ms,
        "recovery_epoch": ledger.recovery_epoch,
        "fragments": fragments.collect::<Vec<_>>(),
        "error": ledger.error,
    })
}

fn show(ledger: &LedgerInfo, out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        return out.object(&object(ledger));
    }
    out.line(format!("ledger    {}", ledger.ledger))?;
    out.line(format!("state     {}", ledger.state))?;
    out.line(format!("home      {}", ledger.home))?;
    out.line(format!("quorum    {}", quorum(ledger)))?;
    out.line(format!("bytes     {}", ledger.bytes))?;
    out.line("")?;
    let mut table = Table::new(["from entry", "bookies"]);
    for fragment in &ledger.fragments {
        let bookies = fragment.bookies.join(", ");
        table.row([fragment.first_entry.to_string(), bookies]);
    }
    out.table(&table)
}
