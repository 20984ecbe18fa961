//! `aquifer doctor`: looks at everything that metadata shows and says what needs a person.

mod machines;

use std::path::Path;

use aquifer_ledger::index::LedgerIndex;
use aquifer_ledger::members::{Member, Members};
use aquifer_metadata::store::{FreeSpace, Usage};
use aquifer_repair::inspect;
use aquifer_repair::outlook::{self, Outlook};
use serde_json::json;

use crate::args::DoctorArgs;
use crate::commands::cluster::check;
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;
use crate::probe::{Probed, Prober};
use crate::tool::{ToolContext, failed};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing is to be done.
    Fine,
    /// Something is to be done in time.
    Warning,
    /// Something is to be done.
    Problem,
}

impl Level {
    /// Its name in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Fine => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What to do; may be empty.
    pub advice: &'static str,
}

impl Finding {
    fn fine(what: String) -> Finding {
        Finding {
            level: Level::Fine,
            what,
            advice: "",
        }
    }

    fn new(level: Level, what: String, advice: &'static str) -> Finding {
        Finding {
            level,
            what,
            advice,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When metadata cannot be read, or something needs a person.
pub async fn run(args: DoctorArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let mut probed = Vec::new();
    if !args.http.is_empty() {
        let prober = Prober::new(connect.args())?;
        for url in &args.http {
            probed.push(prober.ask(url).await);
        }
    }
    let cluster = ToolContext::open(&args.source).await?;
    let findings = examine(&cluster, args.source.config.as_deref(), &probed).await;
    cluster.close().await;
    let findings = findings?;
    for finding in &findings {
        let level = finding.level.as_str();
        if out.is_json() {
            out.object(&json!({
                "level": level,
                "message": finding.what,
                "advice": finding.advice,
            }))?;
            continue;
        }
        out.line(format!("{level:<8} {}", finding.what))?;
        if !finding.advice.is_empty() {
            out.line(format!("         {}", finding.advice))?;
        }
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    match (count(Level::Problem), count(Level::Warning)) {
        (0, warnings) if warnings > 0 && args.strict => {
            Err(CliError::failed(format!("{warnings} warnings")))
        }
        (0, _) => Ok(()),
        (problems, _) => Err(CliError::failed(format!("{problems} problems"))),
    }
}

/// Looks at everything. `config` names certificates, `probed` are processes that were asked.
///
/// # Errors
/// When metadata cannot be read.
pub async fn examine(
    cluster: &ToolContext,
    config: Option<&Path>,
    probed: &[Probed],
) -> Result<Vec<Finding>, CliError> {
    let mut findings = of_metadata(cluster).await?;
    findings.extend(machines::certificates(config));
    findings.extend(machines::processes(probed));
    if cluster.is_standalone() {
        return Ok(findings);
    }
    let store = cluster.store();
    let members = Members::load(store).await.map_err(|error| failed(&error))?;
    findings.extend(machines::etcd(&cluster.etcd_members().await));
    findings.extend(machines::disks(&members));
    findings.extend(machines::quorums(store, &members).await?);
    findings.extend(machines::versions(&check::brokers(store).await?));
    Ok(findings)
}

async fn of_metadata(cluster: &ToolContext) -> Result<Vec<Finding>, CliError> {
    let store = cluster.store();
    let index = LedgerIndex::scan(store)
        .await
        .map_err(|error| failed(&error))?;
    let members = Members::load(store).await.map_err(|error| failed(&error))?;
    let pending = inspect::pending(store)
        .await
        .map_err(|error| failed(&error))?;
    let mut findings = vec![Finding::fine(format!(
        "{} ledgers, {} of them not closed",
        index.ledgers(),
        index.not_closed()
    ))];
    findings.extend(index.damaged().iter().map(|damaged| {
        let advice = "restore this record from a backup of the metadata";
        Finding::new(
            Level::Problem,
            format!("unreadable record {damaged}"),
            advice,
        )
    }));
    let unreadable = members.damaged().iter().chain(&pending.damaged);
    findings.extend(unreadable.map(|damaged| {
        let advice =
            "remove it if no process uses it; a bookie announces itself again when it restarts";
        let what = format!("unreadable record {damaged}");
        Finding::new(Level::Problem, what, advice)
    }));
    findings.extend(bookies(&index, &members, cluster.is_standalone()));
    if !cluster.is_standalone() {
        findings.extend(silent(cluster, &members).await);
        findings.push(repair(pending.workers, pending.auditor.as_deref()));
        let outlook = outlook::of_marks(store, &members).await;
        findings.extend(nowhere_to_go(&outlook.map_err(|error| failed(&error))?));
    }
    findings.extend(store.usage().map(space_of_metadata));
    if pending.marks > 0 {
        let what = format!("{} ledgers wait for repair", pending.marks);
        let advice = "repair continues by itself; see aquifer_repair_* in the bookies' metrics";
        findings.push(Finding::new(Level::Warning, what, advice));
    }
    if pending.deletions > 0 {
        let what = format!(
            "{} ledgers wait for bookies to delete them",
            pending.deletions
        );
        let advice = "absent bookies do it when they return; decommission those that do not";
        findings.push(Finding::new(Level::Warning, what, advice));
    }
    Ok(findings)
}

/// Whether metadata has room for what is to come.
fn space_of_metadata(usage: Usage) -> Finding {
    let advice = "compact and defragment etcd, or raise its quota: docs/operations/cluster.md, When etcd is full";
    match usage.free_space() {
        FreeSpace::Enough => Finding::fine(format!(
            "metadata uses {} of {} MiB",
            usage.used_bytes >> 20,
            usage.quota_bytes >> 20
        )),
        FreeSpace::Low(why) => {
            let what =
                format!("metadata is nearly full, new ledgers and topics are put off: {why}");
            Finding::new(Level::Problem, what, advice)
        }
        FreeSpace::Full(why) => {
            Finding::new(Level::Problem, format!("metadata is full: {why}"), advice)
        }
    }
}

/// Bookies that are announced and do not answer.
async fn silent(cluster: &ToolContext, members: &Members) -> Vec<Finding> {
    let mut findings = Vec::new();
    for bookie in members.registered() {
        let Err(why) = inspect::ping(&cluster.ctx, bookie).await else {
            continue;
        };
        let what = format!("bookie {bookie} is announced and does not answer: {why}");
        let advice = "check whether its process runs, its log, and the network";
        findings.push(Finding::new(Level::Problem, what, advice));
    }
    findings
}

fn repair(workers: u64, auditor: Option<&str>) -> Finding {
    match auditor {
        Some(auditor) if workers > 0 => Finding::fine(format!(
            "{workers} processes repair ledgers, {auditor} audits"
        )),
        _ => {
            let what = format!("{workers} processes repair ledgers, and none audits");
            let advice = "start bookies without --no-autorecovery, or aquifer autorecovery";
            Finding::new(Level::Warning, what, advice)
        }
    }
}

/// Ledgers that lost a bookie, or are to leave one, while no other can take its place.
fn nowhere_to_go(outlook: &Outlook) -> Option<Finding> {
    let Outlook {
        stuck,
        ensemble,
        writable,
        ..
    } = outlook;
    let what = format!(
        "{stuck} ledgers cannot be repaired: they have up to {ensemble} bookies each, and \
         {writable} are writable"
    );
    let advice = "start another bookie, or bring back those that are absent or read-only";
    (*stuck > 0).then(|| Finding::new(Level::Problem, what, advice))
}

fn bookies(index: &LedgerIndex, members: &Members, standalone: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let registered = members.registered().len();
    if !standalone {
        findings.push(Finding::fine(format!("{registered} bookies are announced")));
    }
    for bookie in index.bookies() {
        // The bookie of a standalone server is part of it and is not announced.
        if standalone || members.is_registered(bookie) {
            continue;
        }
        // What still names it is being deleted, and waits for others.
        if members.get(bookie).is_some_and(Member::is_decommissioned) {
            continue;
        }
        let ledgers = index.count_of(bookie);
        let what = format!("bookie {bookie} holds {ledgers} ledgers and is away");
        let advice = "start it; if it is lost: aquifer bookie decommission";
        findings.push(Finding::new(Level::Problem, what, advice));
    }
    for member in members.iter() {
        let registration = member.registration.as_ref();
        if member.is_in_limbo() && registration.is_some() {
            let what = format!("bookie {} is in limbo: it lost synced data", member.id);
            let advice =
                "it is restored from other copies by itself; see its log when that takes long";
            findings.push(Finding::new(Level::Warning, what, advice));
        } else if let Some(record) = registration.filter(|record| record.read_only) {
            let why = &record.read_only_reason;
            let what = format!("bookie {} is read-only: {why}", member.id);
            let advice = "free space on its disks, or look at its log; docs/operations/storage.md explains what \
                          to do about damaged files";
            findings.push(Finding::new(Level::Warning, what, advice));
        }
        if member.is_leaving() && !member.is_decommissioned() {
            let ledgers = index.count_of(member.id);
            let what = format!("bookie {} is draining, {ledgers} ledgers left", member.id);
            let advice = "finish with: aquifer bookie decommission";
            findings.push(Finding::new(Level::Warning, what, advice));
        }
    }
    findings
}
