//! `aquifer bookie list|cookie|decommission`: looks after the bookies of a cluster.

use std::time::Duration;

use aquifer_ledger::replication::decommission::{self, Retired, Retirement};
use aquifer_ledger::replication::{
    Auditor, LedgerIndex, Member, Members, RepairWorker, ReplicationConfig,
};
use aquifer_model::id::BookieId;
use aquifer_runtime::clock;
use serde_json::{Value, json};

use crate::args::BookieCommand;
use crate::cluster::{Cluster, failed};
use crate::exit::CliError;
use crate::output::{Output, Table};

/// How often a decommission looks how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// How long the locks of this process outlive it.
const SESSION_TTL: Duration = Duration::from_secs(15);

/// Runs the command.
///
/// # Errors
/// When metadata does not do it.
pub async fn run(command: BookieCommand, out: &Output) -> Result<(), CliError> {
    let cluster = Cluster::open(command.source()).await?;
    let result = match command {
        BookieCommand::List { .. } => list(&cluster, out).await,
        BookieCommand::Cookie { bookie, .. } => cookie(&cluster, bookie, out).await,
        BookieCommand::Decommission { bookie, undo, .. } if undo => {
            undo_decommission(&cluster, bookie, out).await
        }
        BookieCommand::Decommission {
            bookie,
            no_wait,
            repair_here,
            ..
        } => decommission(&cluster, bookie, no_wait, repair_here, out).await,
    };
    cluster.close().await;
    result
}

/// What a bookie is, in a word.
fn state(member: Option<&Member>) -> &'static str {
    let Some(member) = member else {
        return "away";
    };
    match &member.registration {
        _ if member.is_decommissioned() => "decommissioned",
        Some(_) if member.is_leaving() => "draining",
        None if member.is_leaving() => "away, draining",
        Some(_) if member.is_in_limbo() => "limbo",
        Some(registration) if registration.read_only => "read-only",
        Some(_) => "writable",
        None => "away",
    }
}

async fn list(cluster: &Cluster, out: &Output) -> Result<(), CliError> {
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

async fn cookie(cluster: &Cluster, bookie: BookieId, out: &Output) -> Result<(), CliError> {
    let members = Members::load(cluster.store())
        .await
        .map_err(|e| failed(&e))?;
    let cookie = members.get(bookie).and_then(|member| member.cookie.clone());
    let Some(cookie) = cookie else {
        return Err(CliError::failed(format!("bookie {bookie} has no cookie")));
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

async fn undo_decommission(
    cluster: &Cluster,
    bookie: BookieId,
    out: &Output,
) -> Result<(), CliError> {
    let members = Members::load(cluster.store())
        .await
        .map_err(|e| failed(&e))?;
    if members.get(bookie).is_some_and(Member::is_decommissioned) {
        return Err(
            CliError::failed(format!("bookie {bookie} is decommissioned for good"))
                .advise("start it with an empty directory: then it is another bookie"),
        );
    }
    decommission::set_draining(cluster.store(), bookie, false)
        .await
        .map_err(|e| failed(&e))?;
    report(out, bookie, "in use again", 0)
}

async fn decommission(
    cluster: &Cluster,
    bookie: BookieId,
    no_wait: bool,
    repair_here: bool,
    out: &Output,
) -> Result<(), CliError> {
    decommission::set_draining(cluster.store(), bookie, true)
        .await
        .map_err(|e| failed(&e))?;
    let (total, _) = decommission::references(cluster.store(), bookie)
        .await
        .map_err(|e| failed(&e))?;
    let mut here = match repair_here {
        true => Some(Here::start(cluster).await?),
        false => None,
    };
    let mut retirement = Retirement::new(cluster.ctx.clone(), bookie);
    let progress = out.progress("ledgers moved", Some(total));
    let mut left = total;
    loop {
        match retirement.step().await.map_err(|e| failed(&e))? {
            Retired::Yes => {
                drop(progress);
                return report(out, bookie, "decommissioned", 0);
            }
            Retired::Unknown(damaged) => {
                return Err(CliError::failed(format!(
                    "a ledger record cannot be read, and may name the bookie: {damaged}"
                ))
                .advise("restore that record; the bookie stays as it is, draining"));
            }
            Retired::Referenced(ledgers) => {
                progress.add(left.saturating_sub(ledgers));
                left = ledgers;
            }
            // Nothing names it now; whoever does not know yet that it leaves may still choose it.
            Retired::Announced => {
                progress.add(left);
                left = 0;
            }
        }
        if no_wait {
            return report(out, bookie, "draining", left);
        }
        match &mut here {
            Some(here) if left > 0 => here.work().await?,
            _ => clock::sleep(LOOK).await,
        }
    }
}

/// An auditor and a worker in this process.
struct Here {
    auditor: Auditor,
    worker: RepairWorker,
}

impl Here {
    async fn start(cluster: &Cluster) -> Result<Here, CliError> {
        let ctx = &cluster.ctx;
        let config = ReplicationConfig {
            // Only what is asked for: losses are left to the cluster's auditor.
            lost_after_ms: u64::MAX,
            check_cycle_ms: 0,
            orphan_audit_ms: 0,
            ..ReplicationConfig::default()
        };
        let session = ctx.store.open_session(SESSION_TTL).await;
        let session = session.map_err(|error| failed(&error.into()))?;
        let holder = format!(
            "aquifer bookie decommission, process {}",
            std::process::id()
        );
        Ok(Here {
            auditor: Auditor::new(ctx.clone(), config.clone()),
            worker: RepairWorker::new(ctx.clone(), session.into(), &config, holder),
        })
    }

    async fn work(&mut self) -> Result<(), CliError> {
        self.auditor.pass().await.map_err(|e| failed(&e))?;
        let round = self.worker.round().await.map_err(|e| failed(&e))?;
        if round.repaired == 0 {
            clock::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn report(out: &Output, bookie: BookieId, state: &str, left: u64) -> Result<(), CliError> {
    if out.is_json() {
        let object: Value = json!({
            "bookie": bookie.to_string(),
            "state": state,
            "ledgers": left,
        });
        return out.object(&object);
    }
    match left {
        0 => out.line(format!("bookie {bookie} is {state}")),
        _ => out.line(format!(
            "bookie {bookie} is {state}: {left} ledgers to move"
        )),
    }
}
