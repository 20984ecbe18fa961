//! `aquifer bookie decommission`: empties a bookie and retires it, and says why that takes long.

use std::collections::BTreeSet;
use std::time::Duration;

use aquifer_ledger::members::{Member, Members};
use aquifer_model::id::{BookieId, LedgerId};
use aquifer_repair::decommission::{self, Lost, Retired, Retirement};
use aquifer_repair::inspect::{self, Pending};
use aquifer_repair::outlook::{self, Outlook};
use aquifer_repair::{Auditor, RepairWorker, ReplicationConfig};
use aquifer_runtime::clock;
use serde_json::{Value, json};

use crate::commands::bookie::LIST;
use crate::exit::{CliError, Exit};
use crate::output::Output;
use crate::tool::{ToolContext, failed};

/// How often a decommission looks how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// How long nothing may happen before it says what it waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ranges of lost entries that are printed.
const LOST_LISTED_MAX: usize = 1_000;
/// How long the locks of this process outlive it.
const SESSION_TTL: Duration = Duration::from_secs(15);

/// Takes it back.
///
/// # Errors
/// When there is no such bookie, it is decommissioned already, or metadata does not do it.
pub async fn undo(cluster: &ToolContext, bookie: BookieId, out: &Output) -> Result<(), CliError> {
    let members = Members::load(cluster.store())
        .await
        .map_err(|e| failed(&e))?;
    if members.get(bookie).is_none() {
        return Err(unknown(bookie));
    }
    if members.get(bookie).is_some_and(Member::is_decommissioned) {
        return Err(
            CliError::failed(format!("bookie {bookie} is decommissioned for good"))
                .advise("start it with an empty directory: then it is another bookie"),
        );
    }
    decommission::set_draining(cluster.store(), bookie, false)
        .await
        .map_err(|e| failed(&e))?;
    report(out, bookie, "in use again", 0, &[])
}

/// How it is to be done.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Return at once.
    pub no_wait: bool,
    /// Copy in this process too.
    pub repair_here: bool,
    /// Also when its ledgers have nowhere to go now.
    pub force: bool,
    /// Continue when it is away and no other bookie has some of its entries.
    pub accept_loss: bool,
}

/// Moves everything off a bookie, and removes it for good.
///
/// # Errors
/// When there is no such bookie, its ledgers have nowhere to go, or metadata does not do it.
pub async fn run(
    cluster: &ToolContext,
    bookie: BookieId,
    how: How,
    out: &Output,
) -> Result<(), CliError> {
    let store = cluster.store();
    let outlook = outlook::of_bookie(store, bookie)
        .await
        .map_err(|e| failed(&e))?;
    let members = Members::load(store).await.map_err(|e| failed(&e))?;
    if members.get(bookie).is_none() && outlook.ledgers == 0 {
        return Err(unknown(bookie));
    }
    if outlook.stuck > 0 && !how.force {
        return Err(nowhere_to_go(bookie, &outlook));
    }
    decommission::set_draining(store, bookie, true)
        .await
        .map_err(|e| failed(&e))?;
    let mut here = match how.repair_here {
        true => Some(Here::start(cluster).await?),
        false => None,
    };
    let retirement = Retirement::new(cluster.ctx.clone(), bookie);
    let mut retirement = retirement.accept_loss(how.accept_loss);
    let progress = out.progress("ledgers moved", Some(outlook.ledgers));
    let mut left = outlook.ledgers;
    let mut patience = Patience::new(cluster.ctx.ledgers.clock.monotonic(), left);
    loop {
        let now_left = match retirement.step().await.map_err(|e| failed(&e))? {
            Retired::Yes => {
                drop(progress);
                let lost: Vec<Lost> = retirement.lost().copied().collect();
                return report(out, bookie, "decommissioned", 0, &lost);
            }
            Retired::Unknown(damaged) => {
                return Err(CliError::failed(format!(
                    "a ledger record cannot be read, and may name the bookie: {damaged}"
                ))
                .advise("restore that record; the bookie stays as it is, draining"));
            }
            Retired::LastHope(lost) if !how.no_wait => {
                drop(progress);
                tell_lost(out, &lost)?;
                return Err(last_hope(bookie, &lost));
            }
            Retired::LastHope(lost) => ledgers_of(&lost),
            Retired::Referenced(ledgers) => ledgers,
            // Nothing names it now; a writer that has not seen yet that it leaves may still choose
            // it.
            Retired::Announced => 0,
        };
        progress.add(left.saturating_sub(now_left));
        left = now_left;
        if how.no_wait {
            return report(out, bookie, "draining", left, &[]);
        }
        if patience.is_over(cluster.ctx.ledgers.clock.monotonic(), left) {
            out.note(&explain(cluster, bookie, left).await?);
        }
        match &mut here {
            Some(here) if left > 0 => here.work().await?,
            _ => clock::sleep(LOOK).await,
        }
    }
}

fn unknown(bookie: BookieId) -> CliError {
    CliError::failed(format!("there is no bookie {bookie}")).advise(LIST)
}

fn nowhere_to_go(bookie: BookieId, outlook: &Outlook) -> CliError {
    let Outlook {
        ledgers,
        stuck,
        ensemble,
        writable,
    } = outlook;
    let message = format!(
        "{stuck} of the {ledgers} ledgers of bookie {bookie} have nowhere to go: they have up to \
         {ensemble} bookies each, and {writable} others are writable"
    );
    CliError::new(Exit::Refused, message)
        .advise("start another bookie first; or begin now, and wait for one, with --force")
}

fn ledgers_of(lost: &[Lost]) -> u64 {
    let ledgers: BTreeSet<LedgerId> = lost.iter().map(|lost| lost.ledger).collect();
    ledgers.len() as u64
}

fn entries_of(lost: &[Lost]) -> u64 {
    lost.iter().map(|lost| lost.last.0 - lost.first.0 + 1).sum()
}

/// Lists entries that no bookie has, the first of them one by one.
fn tell_lost(out: &Output, lost: &[Lost]) -> Result<(), CliError> {
    for lost in lost.iter().take(LOST_LISTED_MAX) {
        let Lost {
            ledger,
            first,
            last,
        } = lost;
        if out.is_json() {
            out.object(&json!({
                "state": "lost",
                "ledger": ledger.0,
                "first_entry": first.0,
                "last_entry": last.0,
            }))?;
        } else {
            out.line(format!("lost: ledger {ledger}, entries {first} to {last}"))?;
        }
    }
    if lost.len() > LOST_LISTED_MAX {
        out.note("more are lost: aquifer ledger verify lists those of a ledger");
    }
    Ok(())
}

fn last_hope(bookie: BookieId, lost: &[Lost]) -> CliError {
    let (entries, ledgers) = (entries_of(lost), ledgers_of(lost));
    let message = format!(
        "everything that other bookies have is moved; {entries} entries of {ledgers} ledgers are \
         nowhere else, and bookie {bookie} is away, so that it cannot be asked for them"
    );
    CliError::new(Exit::Refused, message)
        .advise("start it again, and call this again; or give these entries up with --accept-loss")
}

/// Notices that nothing happens.
struct Patience {
    left: u64,
    since: Duration,
}

impl Patience {
    fn new(now: Duration, left: u64) -> Patience {
        Patience { left, since: now }
    }

    /// Whether for another while nothing has changed.
    fn is_over(&mut self, now: Duration, left: u64) -> bool {
        let is_over = left == self.left && now.saturating_sub(self.since) >= PATIENCE;
        if is_over || left != self.left {
            *self = Patience::new(now, left);
        }
        is_over
    }
}

/// What waits, and why it probably does.
async fn explain(cluster: &ToolContext, bookie: BookieId, left: u64) -> Result<String, CliError> {
    let store = cluster.store();
    let pending = inspect::pending(store).await.map_err(|e| failed(&e))?;
    let outlook = outlook::of_bookie(store, bookie)
        .await
        .map_err(|e| failed(&e))?;
    Ok(format!(
        "no progress for a while: {left} ledgers left, {} marks wait for repair. {}",
        pending.marks,
        cause(&pending, &outlook)
    ))
}

fn cause(pending: &Pending, outlook: &Outlook) -> String {
    let repair = "start bookies without --no-autorecovery, or aquifer autorecovery";
    match outlook {
        Outlook { ledgers: 0, .. } => {
            "The bookie still announces itself as writable: look at its log".to_owned()
        }
        Outlook {
            stuck, writable, ..
        } if *stuck > 0 => format!(
            "{stuck} ledgers have nowhere to go, because all {writable} other writable bookies \
             hold them: start another bookie"
        ),
        _ if pending.workers == 0 => {
            format!("No process repairs ledgers: {repair}, or use --repair-here")
        }
        _ if pending.marks == 0 && pending.auditor.is_none() => {
            format!("No process audits, so that nothing is marked: {repair}")
        }
        _ => {
            "The logs of the processes that repair say why: look for \"ledger is not repaired yet\""
                .to_owned()
        }
    }
}

/// An auditor and a worker in this process.
struct Here {
    auditor: Auditor,
    worker: RepairWorker,
}

impl Here {
    async fn start(cluster: &ToolContext) -> Result<Here, CliError> {
        let ctx = &cluster.ctx;
        let config = ReplicationConfig {
            // Only what is asked for: losses are left to the cluster's auditor.
            lost_after_ms: u64::MAX,
            check_cycle_ms: 0,
            orphan_audit_ms: 0,
            ..ReplicationConfig::default()
        };
        let session = ctx.ledgers.store.open_session(SESSION_TTL).await;
        let session = session.map_err(|error| failed(&error.into()))?;
        // No other may have the same name.
        let holder = format!(
            "aquifer bookie decommission, {:016x}",
            ctx.ledgers.rng.next_u64()
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

fn report(
    out: &Output,
    bookie: BookieId,
    state: &str,
    left: u64,
    lost: &[Lost],
) -> Result<(), CliError> {
    tell_lost(out, lost)?;
    if out.is_json() {
        let object: Value = json!({
            "bookie": bookie.to_string(),
            "state": state,
            "ledgers": left,
            "lost_entries": entries_of(lost),
        });
        return out.object(&object);
    }
    match (left, entries_of(lost)) {
        (0, 0) => out.line(format!("bookie {bookie} is {state}")),
        (0, entries) => out.line(format!(
            "bookie {bookie} is {state}: {entries} entries of {} ledgers are lost",
            ledgers_of(lost)
        )),
        _ => out.line(format!(
            "bookie {bookie} is {state}: {left} ledgers to move"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_without_progress_is_noticed_again_and_again() {
        let at = Duration::from_secs;
        let mut patience = Patience::new(at(0), 5);
        assert!(!patience.is_over(at(59), 5));
        assert!(patience.is_over(at(60), 5));
        assert!(!patience.is_over(at(61), 5));
        assert!(!patience.is_over(at(119), 4), "there is progress");
        assert!(!patience.is_over(at(178), 4));
        assert!(patience.is_over(at(179), 4));
    }

    #[test]
    fn the_likely_cause_is_named() {
        let busy = Pending {
            marks: 2,
            workers: 3,
            auditor: Some("a".to_owned()),
            ..Pending::default()
        };
        let outlook = Outlook {
            ledgers: 4,
            stuck: 2,
            ensemble: 3,
            writable: 2,
        };
        let moving = Outlook {
            stuck: 0,
            ..outlook
        };
        let idle = Pending::default();
        let unaudited = Pending {
            workers: 1,
            ..Pending::default()
        };
        assert!(cause(&busy, &outlook).contains("start another bookie"));
        assert!(cause(&idle, &moving).contains("--repair-here"));
        assert!(cause(&unaudited, &moving).contains("audits"));
        assert!(cause(&busy, &moving).contains("logs"));
        assert!(cause(&busy, &Outlook::default()).contains("announces"));
    }
}
