//! `aquifer cluster check`: whether a cluster is whole, for what must not touch one that is not, as
//! an upgrade. `aquifer doctor` looks at more: every check here is a reason to wait.

use std::collections::BTreeMap;
use std::time::Duration;

use aquifer_ledger::members::{Member, Members};
use aquifer_metadata::etcd::EtcdMember;
use aquifer_metadata::record;
use aquifer_metadata::store::{FreeSpace, MetadataStore};
use aquifer_metadata::{keys, scan};
use aquifer_model::id::BookieId;
use aquifer_proto::v1::BrokerRecord;
use aquifer_repair::inspect;
use aquifer_repair::inspect::Pending;
use aquifer_runtime::clock::{self, Clock, SystemClock};
use aquifer_runtime::telemetry::Telemetry;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::SourceArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::settings::ClusterSection;
use crate::tool::{self, ToolContext, failed};

/// Pause before the cluster is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// More brokers than a cluster has.
const BROKERS_MAX: usize = 10_000;
/// Bookies that one line names.
const NAMED_MAX: usize = 5;

/// What must be there beyond what metadata says.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Bookies.
    pub bookies: Option<usize>,
    /// Brokers.
    pub brokers: usize,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    ok: bool,
    detail: String,
}

/// What was found in a cluster.
#[derive(Debug, Default)]
struct Seen {
    etcd: Vec<EtcdMember>,
    members: Members,
    /// Bookies that are announced and do not answer.
    silent: BTreeMap<BookieId, String>,
    pending: Pending,
    brokers: Vec<BrokerRecord>,
}

/// Runs the command.
///
/// # Errors
/// When the cluster is not whole, or cannot be looked at.
pub async fn run(
    expected: &Expected,
    wait: Option<Duration>,
    source: &SourceArgs,
    out: &Output,
) -> Result<(), CliError> {
    let cluster = tool::named_cluster(source)?.ok_or_else(|| {
        CliError::usage("no cluster is named")
            .advise("give --metadata etcd://HOST:PORT; `aquifer doctor` looks at a data directory")
    })?;
    let telemetry = tool::telemetry()?;
    let deadline = SystemClock.monotonic() + wait.unwrap_or_default();
    loop {
        let looked = look(&cluster, &telemetry).await;
        let checks = looked.map(|seen| judge(&seen, expected));
        let is_whole = matches!(&checks, Ok(checks) if checks.iter().all(|check| check.ok));
        if is_whole || SystemClock.monotonic() >= deadline {
            return report(&checks?, out);
        }
        clock::sleep(AGAIN).await;
    }
}

fn report(checks: &[Check], out: &Output) -> Result<(), CliError> {
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| check.check)
        .collect();
    if out.is_json() {
        out.object(&json!({"whole": failed.is_empty(), "checks": checks}))?;
    } else {
        for Check { check, ok, detail } in checks {
            let state = match ok {
                true => "ok",
                false => "failed",
            };
            out.line(format!("{state:<7} {check}: {detail}"))?;
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let message = format!("the cluster is not whole: {}", failed.join(", "));
    Err(CliError::failed(message).advise("`aquifer doctor` says what to do"))
}

async fn look(cluster: &ClusterSection, telemetry: &Telemetry) -> Result<Seen, CliError> {
    let opened = tool::connect(cluster, telemetry).await?;
    let seen = look_into(&opened).await;
    opened.close().await;
    seen
}

async fn look_into(cluster: &ToolContext) -> Result<Seen, CliError> {
    let store = cluster.store();
    let members = Members::load(store).await.map_err(|error| failed(&error))?;
    let pending = inspect::pending(store).await;
    let pending = pending.map_err(|error| failed(&error))?;
    let mut silent = BTreeMap::new();
    for bookie in members.registered() {
        if let Err(why) = inspect::ping(&cluster.ctx, bookie).await {
            silent.insert(bookie, why);
        }
    }
    Ok(Seen {
        etcd: cluster.etcd_members().await,
        brokers: brokers(store).await?,
        members,
        silent,
        pending,
    })
}

/// Everything that is known of a cluster's processes, as JSON.
///
/// # Errors
/// When metadata cannot be read.
pub async fn describe(cluster: &ToolContext) -> Result<Value, CliError> {
    let seen = look_into(cluster).await?;
    let bookies = seen.members.iter().map(|member| {
        let registration = member.registration.as_ref().map(|record| {
            json!({
                "address": record.address,
                "zone": record.zone,
                "read_only": record.read_only_reason,
                "capacity_bytes": record.capacity_bytes,
                "free_bytes": record.free_bytes,
            })
        });
        json!({
            "bookie": member.id.to_string(),
            "registration": registration,
            "silent": seen.silent.get(&member.id),
            "limbo": member.is_in_limbo(),
            "leaving": member.is_leaving(),
            "decommissioned": member.is_decommissioned(),
        })
    });
    let brokers = seen.brokers.iter().map(|broker| {
        let urls: Vec<&str> = broker.listeners.iter().map(|one| &*one.url).collect();
        json!({"urls": urls, "version": broker.version, "draining": broker.draining})
    });
    let etcd = seen.etcd.iter().map(|member| {
        let status = match &member.status {
            Ok(Some(status)) => json!({
                "version": status.version,
                "has_leader": status.has_leader,
                "used_bytes": status.usage.used_bytes,
                "quota_bytes": status.usage.quota_bytes,
            }),
            Ok(None) => json!("answers"),
            Err(why) => json!(why),
        };
        json!({"url": member.url, "status": status})
    });
    Ok(json!({
        "etcd": etcd.collect::<Vec<_>>(),
        "bookies": bookies.collect::<Vec<_>>(),
        "brokers": brokers.collect::<Vec<_>>(),
        "checks": judge(&seen, &Expected::default()),
        "marks": seen.pending.marks,
        "deletions": seen.pending.deletions,
        "repair_workers": seen.pending.workers,
        "auditor": seen.pending.auditor,
    }))
}

/// The brokers that are announced. One that cannot be read is not counted.
pub async fn brokers(store: &dyn MetadataStore) -> Result<Vec<BrokerRecord>, CliError> {
    let found = scan::all(store, keys::BROKERS_PREFIX, BROKERS_MAX).await;
    let (found, _) = found.map_err(|error| failed(&error.into()))?;
    let readable = found.iter().filter_map(|item| record::decode(item).ok());
    Ok(readable.collect())
}

fn judge(seen: &Seen, expected: &Expected) -> Vec<Check> {
    vec![
        etcd(&seen.etcd),
        bookies(seen, expected.bookies),
        decommission(&seen.members),
        brokers_are_there(&seen.brokers, expected.brokers),
        replication(&seen.pending),
        repair(&seen.pending),
    ]
}

/// What was read came from a quorum; one more member that goes must not end it, where there are
/// enough of them for that.
fn etcd(members: &[EtcdMember]) -> Check {
    let answer = members.iter().filter(|member| member.status.is_ok());
    let (answer, all) = (answer.count(), members.len());
    let mut wrong = Vec::new();
    for member in members {
        match &member.status {
            Err(why) => wrong.push(format!("{} does not answer: {why}", member.url)),
            Ok(Some(status)) if !status.has_leader => {
                wrong.push(format!("{} knows no leader", member.url));
            }
            Ok(Some(status)) => {
                if let FreeSpace::Full(why) = status.usage.free_space() {
                    wrong.push(format!("{} is full: {why}", member.url));
                }
            }
            Ok(None) => {}
        }
    }
    let spare = usize::from(all >= 3);
    let is_lost = answer < all / 2 + 1 + spare;
    let is_wrong = wrong.len() > all - answer;
    let mut detail = format!("{answer} of {all} members answer");
    for one in wrong {
        detail.push_str(&format!("; {one}"));
    }
    Check {
        check: "etcd",
        ok: !is_lost && !is_wrong,
        detail,
    }
}

/// Every bookie that has joined and was not retired takes entries.
fn bookies(seen: &Seen, expected: Option<usize>) -> Check {
    let mut wrong = Vec::new();
    let mut writable = 0;
    for member in seen.members.iter().filter(|one| !one.is_decommissioned()) {
        match why_not(member, &seen.silent) {
            Some(why) => wrong.push(format!("{} {why}", member.id)),
            None => writable += 1,
        }
    }
    wrong.extend(seen.members.damaged().iter().cloned());
    let missing = expected.unwrap_or(1).saturating_sub(writable);
    let mut detail = format!("{writable} are there and take entries");
    if missing > 0 {
        detail.push_str(&format!("; {missing} more are expected"));
    }
    let left = wrong.len().saturating_sub(NAMED_MAX);
    for one in wrong.iter().take(NAMED_MAX) {
        detail.push_str(&format!("; {one}"));
    }
    if left > 0 {
        detail.push_str(&format!("; and {left} more"));
    }
    Check {
        check: "bookies",
        ok: wrong.is_empty() && missing == 0,
        detail,
    }
}

fn why_not(member: &Member, silent: &BTreeMap<BookieId, String>) -> Option<String> {
    let Some(registration) = &member.registration else {
        return Some("is away".to_owned());
    };
    if let Some(why) = silent.get(&member.id) {
        return Some(format!("does not answer: {why}"));
    }
    if member.is_in_limbo() {
        return Some("is in limbo".to_owned());
    }
    let why = &registration.read_only_reason;
    registration
        .read_only
        .then(|| format!("is read-only: {why}"))
}

fn decommission(members: &Members) -> Check {
    let leaving = members
        .iter()
        .filter(|member| member.is_leaving() && !member.is_decommissioned())
        .map(|member| member.id.to_string());
    let leaving: Vec<String> = leaving.collect();
    let detail = match leaving.is_empty() {
        true => "no bookie is being retired".to_owned(),
        false => format!("being retired: {}", leaving.join(", ")),
    };
    Check {
        check: "decommission",
        ok: leaving.is_empty(),
        detail,
    }
}

fn brokers_are_there(brokers: &[BrokerRecord], expected: usize) -> Check {
    let serving = brokers
        .iter()
        .filter(|broker| !broker.draining && !broker.listeners.is_empty());
    let count = serving.count();
    Check {
        check: "brokers",
        ok: count >= expected,
        detail: format!("{count} serve, {expected} are expected"),
    }
}

fn replication(pending: &Pending) -> Check {
    let mut detail = format!("{} ledgers lack copies", pending.marks);
    for damaged in pending.damaged.iter().take(NAMED_MAX) {
        detail.push_str(&format!("; unreadable record {damaged}"));
    }
    Check {
        check: "replication",
        ok: pending.marks == 0 && pending.damaged.is_empty(),
        detail,
    }
}

/// Without an auditor it would not be known that ledgers lack copies.
fn repair(pending: &Pending) -> Check {
    let auditor = pending.auditor.as_deref();
    let workers = pending.workers;
    Check {
        check: "repair",
        ok: workers > 0 && auditor.is_some(),
        detail: match auditor {
            Some(auditor) => format!("{auditor} audits, {workers} processes repair"),
            None => format!("none audits, {workers} processes repair"),
        },
    }
}

#[cfg(test)]
mod tests {
    use aquifer_metadata::etcd::MemberStatus;
    use aquifer_metadata::store::Usage;
    use aquifer_proto::v1::Listener;

    use super::*;

    fn member(url: &str, has_leader: bool) -> EtcdMember {
        EtcdMember {
            url: url.to_owned(),
            status: Ok(Some(MemberStatus {
                version: "3.6.0".to_owned(),
                has_leader,
                usage: Usage {
                    used_bytes: 1,
                    quota_bytes: 100,
                    refuses: false,
                },
            })),
        }
    }

    fn away(url: &str) -> EtcdMember {
        EtcdMember {
            url: url.to_owned(),
            status: Err("refused".to_owned()),
        }
    }

    #[test]
    fn etcd_needs_one_more_than_most_of_its_members_and_a_leader() {
        let judged = |members: &[EtcdMember]| etcd(members).ok;
        assert!(judged(&[member("a", true)]));
        let three = [member("a", true), member("b", true), member("c", true)];
        assert!(judged(&three));
        assert!(!judged(&[member("a", true), member("b", true), away("c")]));
        let five = ["d", "e"].map(|url| member(url, true));
        let five: Vec<EtcdMember> = three.into_iter().chain(five).collect();
        assert!(judged(&[&five[..4], &[away("e")]].concat()));
        assert!(!judged(&[&five[..3], &[away("d"), away("e")]].concat()));
        assert!(!judged(&[
            member("a", true),
            member("b", false),
            member("c", true)
        ]));
        let unknown = EtcdMember {
            status: Ok(None),
            ..away("a")
        };
        assert!(judged(&[unknown]), "it answers, if only to refuse");
        let mut full = member("a", true);
        if let Ok(Some(status)) = &mut full.status {
            status.usage.refuses = true;
        }
        assert!(!judged(&[full]));
        let missing = etcd(&[member("a", true), member("b", true), away("c")]);
        assert!(
            missing.detail.contains("c does not answer: refused"),
            "{missing:?}"
        );
    }

    #[test]
    fn brokers_that_end_or_do_not_serve_yet_are_not_counted() {
        let serves = BrokerRecord {
            listeners: vec![Listener::default()],
            ..BrokerRecord::default()
        };
        let ends = BrokerRecord {
            draining: true,
            ..serves.clone()
        };
        let starts = BrokerRecord::default();
        let all = [serves, ends, starts];
        assert!(brokers_are_there(&all, 1).ok);
        let check = brokers_are_there(&all, 2);
        assert!(!check.ok);
        assert_eq!(check.detail, "1 serve, 2 are expected");
    }

    #[test]
    fn marks_and_a_missing_auditor_are_reasons_to_wait() {
        let whole = Pending {
            workers: 3,
            auditor: Some("b1".to_owned()),
            ..Pending::default()
        };
        assert!(replication(&whole).ok && repair(&whole).ok);
        let marked = Pending {
            marks: 1,
            ..whole.clone()
        };
        assert!(!replication(&marked).ok);
        let unaudited = Pending {
            auditor: None,
            ..whole
        };
        assert!(!repair(&unaudited).ok);
        let nothing = judge(&Seen::default(), &Expected::default());
        let failed: Vec<&str> = nothing.iter().filter(|c| !c.ok).map(|c| c.check).collect();
        assert_eq!(failed, ["etcd", "bookies", "repair"]);
    }
}
