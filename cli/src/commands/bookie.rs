//! `aquifer bookie list|cookie|decommission`: looks after the bookies of a cluster.

mod decommission;

use aquifer_ledger::index::LedgerIndex;
use aquifer_ledger::members::{Member, Members};
use aquifer_model::id::BookieId;
use aquifer_model::inventory::BookieView;
use serde_json::json;

use crate::args::BookieCommand;
use crate::exit::CliError;
use crate::output::{Output, Table};
use crate::tool::{ToolContext, failed};

/// What to do when there is no such bookie.
const LIST: &str = "aquifer bookie list shows those that there are";

/// Runs the command.
///
/// # Errors
/// When metadata does not do it.
pub async fn run(command: BookieCommand, out: &Output) -> Result<(), CliError> {
    let cluster = ToolContext::open(command.source()).await?;
    let result = match command {
        BookieCommand::List { .. } => list(&cluster, out).await,
        BookieCommand::Cookie { bookie, .. } => cookie(&cluster, bookie, out).await,
        BookieCommand::Decommission { bookie, undo, .. } if undo => {
            decommission::undo(&cluster, bookie, out).await
        }
        BookieCommand::Decommission {
            bookie,
            no_wait,
            repair_here,
            force,
            accept_loss,
            ..
        } => {
            let how = decommission::How {
                no_wait,
                repair_here,
                force,
                accept_loss,
            };
            decommission::run(&cluster, bookie, how, out).await
        }
    };
    cluster.close().await;
    result
}

/// What a bookie is, in a word.
fn state(member: Option<&Member>) -> &'static str {
    member.map_or(BookieView::AWAY, Member::state)
}

async fn list(cluster: &ToolContext, out: &Output) -> Result<(), CliError> {
    let members = Members::load(cluster.store())
        .await
        .map_err(|e| failed(&e))?;
    let index = LedgerIndex::scan(cluster.store())
        .await
        .map_err(|e| failed(&e))?;
    let mut ids: Vec<BookieId> = members.iter().map(|member| member.id).collect();
    ids.extend(index.bookies());
    ids.sort_unstable();
    ids.dedup();
    let mut table = Table::new([
        "bookie",
        "state",
        "address",
        "zone",
        "ledgers",
        "free bytes",
    ]);
    for id in ids {
        let member = members.get(id);
        let registration = member.and_then(|member| member.registration.clone());
        let registration = registration.unwrap_or_default();
        if out.is_json() {
            out.object(&json!({
                "bookie": id.to_string(),
                "state": state(member),
                "address": registration.address,
                "zone": registration.zone,
                "ledgers": index.count_of(id),
                "free_bytes": registration.free_bytes,
                "capacity_bytes": registration.capacity_bytes,
            }))?;
        } else {
            table.row([
                id.to_string(),
                state(member).to_owned(),
                registration.address,
                registration.zone,
                index.count_of(id).to_string(),
                registration.free_bytes.to_string(),
            ]);
        }
    }
    if out.is_json() {
        return Ok(());
    }
    out.table(&table)
}

async fn cookie(cluster: &ToolContext, bookie: BookieId, out: &Output) -> Result<(), CliError> {
    let members = Members::load(cluster.store())
        .await
        .map_err(|e| failed(&e))?;
    let cookie = members.get(bookie).and_then(|member| member.cookie.clone());
    let Some(cookie) = cookie else {
        return Err(CliError::failed(format!("bookie {bookie} has no cookie")).advise(LIST));
    };
    if out.is_json() {
        return out.object(&json!({
            "bookie": bookie.to_string(),
            "cluster": cookie.cluster,
            "directories": cookie.directories,
            "draining": cookie.draining,
            "decommissioned_ms": cookie.decommissioned_ms,
            "limbo_since_ms": cookie.limbo_since_ms,
        }));
    }
    out.line(format!("bookie       {bookie}"))?;
    out.line(format!("cluster      {}", cookie.cluster))?;
    out.line(format!("directories  {}", cookie.directories.join(", ")))?;
    out.line(format!("state        {}", state(members.get(bookie))))
}
