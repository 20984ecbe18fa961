//! `aquifer ledger`: shows, reads, checks, closes and deletes single ledgers.

mod read;

use aquifer_ledger::marks::{self, Mark};
use aquifer_model::id::LedgerId;
use aquifer_model::inventory::LedgerView;
use aquifer_repair::inspect::{self, Replica};
use serde_json::{Value, json};

use crate::args::{LedgerArgs, LedgerCommand, StateArg};
use crate::exit::{CliError, Exit};
use crate::output::{Output, Table};
use crate::tool::{ToolContext, failed};

/// Ledgers that are listed at once.
const PAGE: usize = 500;

/// Runs the command.
///
/// # Errors
/// When storage does not do it, or `verify` found replicas that are not whole.
pub async fn run(args: LedgerArgs, out: &Output) -> Result<(), CliError> {
    let cluster = ToolContext::open(&args.source).await?;
    let result = match args.command {
        LedgerCommand::List {
            state,
            bookie,
            count,
        } => {
            let wanted = |view: &LedgerView| {
                state.is_none_or(|state| view.state == state_name(state))
                    && bookie.is_none_or(|bookie| {
                        let mut fragments = view.fragments.iter();
                        fragments.any(|(_, members)| members.contains(&bookie))
                    })
            };
            list(&cluster, wanted, count.unwrap_or(u64::MAX), out).await
        }
        LedgerCommand::Inspect { ledger } => inspect_one(&cluster, ledger, out).await,
        LedgerCommand::Read {
            ledger,
            from,
            count,
            follow,
        } => {
            let wanted = read::Wanted {
                ledger,
                from,
                count,
                follow,
            };
            read::read(&cluster, &wanted, out).await
        }
        LedgerCommand::Recover { ledger } => recover(&cluster, ledger, out).await,
        LedgerCommand::Delete { ledger, force } => delete(&cluster, ledger, force, out).await,
        LedgerCommand::Verify {
            ledgers,
            mark,
            rate,
        } => verify(&cluster, ledgers, mark, rate, out).await,
    };
    cluster.close().await;
    result
}

fn no_ledger(ledger: LedgerId) -> CliError {
    CliError::failed(format!("there is no ledger {ledger}"))
        .advise("aquifer ledger list shows those that there are; a deleted one never comes back")
}

fn state_name(state: StateArg) -> &'static str {
    match state {
        StateArg::Open => "open",
        StateArg::InRecovery => "in-recovery",
        StateArg::Closed => "closed",
    }
}

fn object(view: &LedgerView) -> Value {
    let fragments: Vec<Value> = view
        .fragments
        .iter()
        .map(|(first, members)| {
            let members: Vec<String> = members.iter().map(ToString::to_string).collect();
            json!({"first_entry": first.0, "bookies": members})
        })
        .collect();
    json!({
        "ledger": view.ledger.0,
        "state": view.state,
        "ensemble": view.quorum.ensemble(),
        "write_quorum": view.quorum.write(),
        "ack_quorum": view.quorum.ack(),
        "last_entry": view.last_entry.map(|entry| entry.0),
        "bytes": view.length_bytes,
        "home": view.home,
        "created_ms": view.created_ms,
        "recovery_epoch": view.recovery_epoch,
        "fragments": fragments,
    })
}

fn entries(view: &LedgerView) -> String {
    match view.state {
        "closed" => view.last_entry.map_or(0, |last| last.0 + 1).to_string(),
        _ => "-".to_owned(),
    }
}

/// Calls `each` for every ledger; unreadable records are named on standard error. Returns how many
/// those were.
async fn for_each(
    cluster: &ToolContext,
    out: &Output,
    mut each: impl FnMut(LedgerView) -> Result<bool, CliError>,
) -> Result<u64, CliError> {
    let (mut page, mut damaged) = (None, 0);
    loop {
        let found = inspect::list(cluster.store(), page, PAGE).await;
        let (views, next) = found.map_err(|error| failed(&error))?;
        for view in views {
            match view {
                Ok(view) => {
                    if !each(view)? {
                        return Ok(damaged);
                    }
                }
                Err(what) => {
                    out.note(&format!("unreadable record {what}"));
                    damaged += 1;
                }
            }
        }
        page = next;
        if page.is_none() {
            return Ok(damaged);
        }
    }
}

async fn list(
    cluster: &ToolContext,
    wanted: impl Fn(&LedgerView) -> bool,
    count: u64,
    out: &Output,
) -> Result<(), CliError> {
    let mut table = Table::new([
        "ledger",
        "state",
        "entries",
        "bytes",
        "fragments",
        "quorum",
        "home",
    ]);
    let mut left = count;
    let damaged = for_each(cluster, out, |view| {
        if !wanted(&view) {
            return Ok(true);
        }
        if left == 0 {
            return Ok(false);
        }
        left -= 1;
        if out.is_json() {
            out.object(&object(&view))?;
        } else {
            table.row([
                view.ledger.to_string(),
                view.state.to_owned(),
                entries(&view),
                view.length_bytes.to_string(),
                view.fragments.len().to_string(),
                view.quorum.to_string(),
                view.home,
            ]);
        }
        Ok(true)
    })
    .await?;
    if !out.is_json() {
        out.table(&table)?;
    }
    match damaged {
        0 => Ok(()),
        _ => Err(CliError::failed(format!(
            "{damaged} records are unreadable"
        ))),
    }
}

async fn inspect_one(
    cluster: &ToolContext,
    ledger: LedgerId,
    out: &Output,
) -> Result<(), CliError> {
    let view = inspect::view(cluster.store(), ledger).await;
    let Some(view) = view.map_err(|error| failed(&error))? else {
        return Err(no_ledger(ledger));
    };
    let topic = inspect::topic_of(cluster.store(), ledger).await;
    let topic = topic.map_err(|error| failed(&error))?;
    show(&view, topic.as_deref(), out)
}

fn show(view: &LedgerView, topic: Option<&str>, out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        let mut shown = object(view);
        shown["topic"] = json!(topic);
        return out.object(&shown);
    }
    out.line(format!("ledger    {}", view.ledger))?;
    out.line(format!("topic     {}", topic.unwrap_or("none")))?;
    out.line(format!("state     {}", view.state))?;
    out.line(format!("quorum    {}", view.quorum))?;
    out.line(format!("entries   {}", entries(view)))?;
    out.line(format!("bytes     {}", view.length_bytes))?;
    out.line("")?;
    let mut table = Table::new(["from entry", "position", "bookie"]);
    for (first, members) in &view.fragments {
        for (position, bookie) in members.iter().enumerate() {
            table.row([first.to_string(), position.to_string(), bookie.to_string()]);
        }
    }
    out.table(&table)
}

async fn recover(cluster: &ToolContext, ledger: LedgerId, out: &Output) -> Result<(), CliError> {
    let recovered = inspect::recover(&cluster.ctx, ledger).await;
    let view = recovered.map_err(|error| failed(&error).context("recovery gave up"))?;
    if out.is_json() {
        return out.object(&object(&view));
    }
    out.line(format!(
        "ledger {ledger} is closed with {} entries",
        entries(&view)
    ))
}

async fn delete(
    cluster: &ToolContext,
    ledger: LedgerId,
    force: bool,
    out: &Output,
) -> Result<(), CliError> {
    if !force {
        let topic = inspect::topic_of(cluster.store(), ledger).await;
        if let Some(topic) = topic.map_err(|error| failed(&error))? {
            let message = format!("ledger {ledger} holds messages of {topic}");
            return Err(CliError::new(Exit::Refused, message)
                .advise("delete the topic; or lose these messages with --force"));
        }
    }
    let deleted = inspect::delete(&cluster.ctx, ledger).await;
    let Some(waiting) = deleted.map_err(|error| failed(&error))? else {
        return Err(no_ledger(ledger));
    };
    if out.is_json() {
        return out.object(&json!({"ledger": ledger.0, "bookies_waiting": waiting}));
    }
    match waiting {
        0 => out.line(format!("deleted ledger {ledger}")),
        _ => out.line(format!(
            "deleting ledger {ledger}: {waiting} absent bookies do it when they return"
        )),
    }
}

/// What `verify` has found so far.
struct Verified {
    replicas: usize,
    bad: usize,
    /// Ledgers that are written, whose last fragments were not looked at.
    not_closed: u64,
    /// Ledgers that could not be looked at, unreadable records included.
    failed: u64,
    table: Table,
}

impl Verified {
    fn new() -> Verified {
        let columns = [
            "ledger",
            "from entry",
            "bookie",
            "entries",
            "missing",
            "why",
        ];
        Verified {
            replicas: 0,
            bad: 0,
            not_closed: 0,
            failed: 0,
            table: Table::new(columns),
        }
    }

    fn incomplete(
        &mut self,
        ledger: LedgerId,
        replica: &Replica,
        out: &Output,
    ) -> Result<(), CliError> {
        let why = replica.gaps.as_ref().err();
        if out.is_json() {
            return out.object(&json!({
                "ledger": ledger.0,
                "first_entry": replica.fragment.0,
                "bookie": replica.bookie.to_string(),
                "entries": replica.entries,
                "missing": replica.missing(),
                "error": why,
            }));
        }
        self.table.row([
            ledger.to_string(),
            replica.fragment.to_string(),
            replica.bookie.to_string(),
            replica.entries.to_string(),
            replica.missing().to_string(),
            why.cloned().unwrap_or_default(),
        ]);
        Ok(())
    }

    /// What is wrong with one ledger ends nothing; metadata that does not answer ends everything.
    fn failed(&mut self, ledger: LedgerId, error: CliError, out: &Output) -> Result<(), CliError> {
        if error.exit() != Exit::Failed {
            return Err(error);
        }
        self.failed += 1;
        let why = error.to_string();
        if out.is_json() {
            return out.object(&json!({"ledger": ledger.0, "error": why}));
        }
        let unknown = || "-".to_owned();
        let row = [
            ledger.to_string(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            why,
        ];
        self.table.row(row);
        Ok(())
    }

    /// Says it all, and fails unless everything is whole.
    fn report(&self, out: &Output) -> Result<(), CliError> {
        let (replicas, not_closed) = (self.replicas, self.not_closed);
        if self.bad == 0 && self.failed == 0 {
            return match out.is_json() {
                true => out.object(&json!({
                    "replicas": replicas,
                    "missing": 0,
                    "ledgers_not_closed": not_closed,
                })),
                false if not_closed == 0 => out.line(format!("{replicas} replicas are intact")),
                false => out.line(format!(
                    "{replicas} replicas are intact; {not_closed} ledgers are not closed, and what \
                     they wrote since their bookies last changed was not looked at"
                )),
            };
        }
        if !out.is_json() {
            out.table(&self.table)?;
        }
        Err(CliError::failed(format!(
            "{} of {replicas} replicas are not intact, {} ledgers could not be checked",
            self.bad, self.failed
        )))
    }
}

async fn verify(
    cluster: &ToolContext,
    named: Vec<LedgerId>,
    mark: bool,
    rate: u64,
    out: &Output,
) -> Result<(), CliError> {
    let mut verified = Verified::new();
    let all = named.is_empty();
    let mut ledgers = named;
    if all {
        verified.failed = for_each(cluster, out, |view| {
            ledgers.push(view.ledger);
            Ok(true)
        })
        .await?;
    }
    let progress = out.progress("ledgers", Some(ledgers.len() as u64));
    for ledger in ledgers {
        match inspect::verify(&cluster.ctx, ledger, rate).await {
            Ok(Some(found)) => {
                verified.replicas += found.replicas.len();
                verified.not_closed += u64::from(!found.is_closed);
                let all = found.replicas.iter();
                let incomplete: Vec<&Replica> =
                    all.filter(|replica| !replica.is_intact()).collect();
                verified.bad += incomplete.len();
                for replica in &incomplete {
                    verified.incomplete(ledger, replica, out)?;
                }
                if mark && !incomplete.is_empty() {
                    let marked = mark_incomplete(cluster, ledger, &incomplete).await;
                    marked.or_else(|error| verified.failed(ledger, error, out))?;
                }
            }
            // It was deleted since it was listed.
            Ok(None) if all => {}
            Ok(None) => verified.failed(ledger, no_ledger(ledger), out)?,
            Err(error) => verified.failed(ledger, failed(&error), out)?,
        }
        progress.add(1);
    }
    drop(progress);
    verified.report(out)
}

async fn mark_incomplete(
    cluster: &ToolContext,
    ledger: LedgerId,
    incomplete: &[&Replica],
) -> Result<(), CliError> {
    let view = inspect::view(cluster.store(), ledger).await;
    let Some(view) = view.map_err(|error| failed(&error))? else {
        return Ok(());
    };
    let now_ms = cluster.ctx.ledgers.clock.wall_ms();
    let mark = Mark::new(
        ledger,
        &view.home,
        "found by `aquifer ledger verify`",
        now_ms,
    )
    .doubted(incomplete.iter().map(|replica| replica.bookie));
    let written = marks::write(cluster.store(), &mark).await;
    written.map(drop).map_err(|error| failed(&error))
}
