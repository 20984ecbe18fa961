//! What the doctor finds at machines: members of etcd, disks, versions, clocks, certificates, and
//! policies that the bookies there are cannot meet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_ledger::members::{Member, Members};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::etcd::EtcdMember;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_metadata::{keys, record, scan};
use aquifer_proto::v1::{BrokerRecord, PolicyRecord};
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::net::tls::describe;
use toml::{Table, Value};

use crate::commands::doctor::{Finding, Level};
use crate::exit::CliError;
use crate::probe::Probed;
use crate::tool::failed;

/// With less of its disk free than this a bookie will soon take no entries, in percent.
const FREE_PERCENT_LOW: u64 = 10;
/// Clocks of one cluster are closer than this, in seconds. The date of an answer has no fractions.
const CLOCK_SKEW_MAX_S: u64 = 2;
/// Messages of one subscription that are worth a word.
const BACKLOG_LARGE: f64 = 1_000_000.0;
/// Metrics of the subscription that has most, and whose that is.
const BACKLOGS: [(&str, &str); 2] = [
    ("aquifer_broker_backlog_messages_max", ""),
    (
        "aquifer_broker_unloaded_backlog_messages_max",
        " of a topic that is not loaded",
    ),
];
const DAY_S: u64 = 86_400;
/// A certificate with less time than this must be renewed now, and soon.
const EXPIRES_NOW_DAYS: u64 = 7;
const EXPIRES_SOON_DAYS: u64 = 30;
/// Policies that one line names.
const NAMED_MAX: usize = 5;

/// Members of etcd that do not answer, know no leader, or are of different versions.
pub(super) fn etcd(members: &[EtcdMember]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut versions = BTreeSet::new();
    let mut answer = 0;
    for member in members {
        match &member.status {
            Ok(Some(status)) if !status.has_leader => {
                let what = format!("etcd at {} knows no leader", member.url);
                let advice = "look at its log, and whether most members run and reach each other";
                findings.push(Finding::new(Level::Problem, what, advice));
            }
            Ok(Some(status)) => {
                answer += 1;
                versions.insert(status.version.as_str());
            }
            Ok(None) => answer += 1,
            Err(why) => {
                let what = format!("etcd at {} does not answer: {why}", member.url);
                let advice = "start it, or replace it: the next one that goes may stop the cluster";
                findings.push(Finding::new(Level::Problem, what, advice));
            }
        }
    }
    if versions.len() > 1 {
        let versions: Vec<&str> = versions.into_iter().collect();
        let what = format!("members of etcd are of versions {}", versions.join(", "));
        let advice = "finish the upgrade of etcd";
        findings.push(Finding::new(Level::Warning, what, advice));
    }
    if findings.is_empty() && !members.is_empty() {
        findings.push(Finding::fine(format!("{answer} members of etcd answer")));
    }
    findings
}

/// Disks of bookies that are nearly full.
pub(super) fn disks(members: &Members) -> Vec<Finding> {
    let low = members.iter().filter_map(|member| {
        let record = member.registration.as_ref()?;
        let capacity = record.capacity_bytes;
        let percent = record
            .free_bytes
            .saturating_mul(100)
            .checked_div(capacity)?;
        (percent < FREE_PERCENT_LOW).then(|| {
            let free = record.free_bytes >> 20;
            let what = format!("bookie {} has {free} MiB free, {percent} %", member.id);
            let advice = "add a bookie, shorten retention, or enlarge its disk";
            Finding::new(Level::Warning, what, advice)
        })
    });
    low.collect()
}

/// Brokers of different versions.
pub(super) fn versions(brokers: &[BrokerRecord]) -> Vec<Finding> {
    let mut by_version: BTreeMap<&str, usize> = BTreeMap::new();
    for broker in brokers {
        *by_version.entry(&broker.version).or_default() += 1;
    }
    let shown = by_version.iter();
    let shown: Vec<String> = shown
        .map(|(version, n)| format!("{n} of {version}"))
        .collect();
    let shown = shown.join(", ");
    match by_version.len() {
        0 => {
            let advice = "start one: clients cannot connect";
            let what = "no broker is announced".to_owned();
            vec![Finding::new(Level::Problem, what, advice)]
        }
        1 => vec![Finding::fine(format!("brokers: {shown}"))],
        _ => {
            let advice = "finish the upgrade: restart the others with the newer version";
            let what = format!("brokers are of different versions: {shown}");
            vec![Finding::new(Level::Warning, what, advice)]
        }
    }
}

/// Policies that ask for more bookies than take entries.
///
/// # Errors
/// When policies cannot be listed.
pub(super) async fn quorums(
    store: &dyn MetadataStore,
    members: &Members,
) -> Result<Option<Finding>, CliError> {
    let is_writable = |member: &&Member| {
        let record = member.registration.as_ref();
        record.is_some_and(|record| !record.read_only) && !member.is_leaving()
    };
    let writable = members.iter().filter(is_writable).count();
    let take = |found: &mut (usize, Vec<String>), item: &Versioned| {
        // One that cannot be read asks for nothing.
        let policies = record::decode::<PolicyRecord>(item).ok();
        let persistence = policies.and_then(|record| record.policies?.persistence);
        let ensemble = persistence.map_or(0, |quorum| quorum.ensemble);
        if usize::try_from(ensemble).unwrap_or(usize::MAX) > writable {
            found.0 += 1;
            if found.1.len() < NAMED_MAX {
                found.1.push(format!("{} ({ensemble})", item.key));
            }
        }
        Ok::<(), MetadataError>(())
    };
    let listed = scan::each(store, keys::POLICIES_PREFIX, Default::default, take).await;
    let ((count, named), _) = listed.map_err(|error| failed(&error.into()))?;
    let what = format!(
        "{count} policies ask for more bookies than the {writable} that take entries: {}",
        named.join(", ")
    );
    let advice =
        "start bookies, or lower `persistence` there: new ledgers have fewer copies or fail";
    Ok((count > 0).then(|| Finding::new(Level::Problem, what, advice)))
}

/// What processes say of themselves over HTTP.
pub(super) fn processes(probed: &[Probed]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for process in probed {
        let url = &process.url;
        if let Some((_, Err(why))) = process.answers.first() {
            let what = format!("{url} does not answer: {why}");
            let advice = "check whether the process runs, its log, and the address";
            findings.push(Finding::new(Level::Problem, what, advice));
            continue;
        }
        for (path, answer) in &process.answers {
            if let Ok((status, text)) = answer
                && *status != 200
            {
                let what = format!("{url}/{path} is {status}: {}", text.trim_end());
                let advice = match *path {
                    "metrics" => "show the token of scrapers with --token-file",
                    _ => "look at its log",
                };
                findings.push(Finding::new(Level::Warning, what, advice));
            }
        }
        if let Some(ahead) = process.ahead_s
            && ahead.unsigned_abs() > CLOCK_SKEW_MAX_S
        {
            let what = format!("the clock of {url} is {ahead} s ahead of this machine's");
            let advice = "let all machines synchronize their clocks (chrony, ntpd)";
            findings.push(Finding::new(Level::Warning, what, advice));
        }
        for (labels, expires) in process.metric("aquifer_tls_certificate_expires_seconds") {
            let left = Duration::try_from_secs_f64(expires).unwrap_or_default();
            findings.extend(expiry(
                &format!("a certificate of {url} {labels}"),
                left.as_secs(),
            ));
        }
        findings.extend(BACKLOGS.iter().flat_map(|one| behind(process, one)));
    }
    if findings.is_empty() && !probed.is_empty() {
        let count = probed.len();
        findings.push(Finding::fine(format!(
            "{count} processes answer and are ready"
        )));
    }
    findings
}

/// Subscriptions that are far behind, by one of the metrics.
fn behind(process: &Probed, (metric, whose): &(&str, &str)) -> Vec<Finding> {
    let large = process
        .metric(metric)
        .filter(|(_, backlog)| *backlog >= BACKLOG_LARGE);
    let finding = large.map(|(_, backlog)| {
        let url = &process.url;
        let what = format!("a subscription{whose} at {url} is {backlog:.0} messages behind");
        let advice = "find it by the metrics that broker.subscriptions_shown asks for, or with \
                      aquifer topic stats, and start consumers, or delete it";
        Finding::new(Level::Warning, what, advice)
    });
    finding.collect()
}

/// Certificates that the configuration file names, and that are over soon.
pub(super) fn certificates(config: Option<&Path>) -> Vec<Finding> {
    let text = config.and_then(|path| std::fs::read_to_string(path).ok());
    let Some(table) = text.and_then(|text| text.parse::<Table>().ok()) else {
        return Vec::new();
    };
    let mut files = BTreeSet::new();
    certificate_files(&Value::Table(table), &mut files);
    let mut findings = Vec::new();
    for file in files {
        let shown = file.display();
        match describe(&file) {
            Ok(all) => {
                for one in all {
                    findings.extend(expiry(&format!("{shown}: {}", one.subject), one.expires_s));
                }
            }
            Err(error) => {
                let advice = "correct the path or the file: a process cannot start with it";
                findings.push(Finding::new(Level::Problem, error.to_string(), advice));
            }
        }
    }
    findings
}

fn certificate_files(of: &Value, found: &mut BTreeSet<PathBuf>) {
    match of {
        Value::Table(table) => {
            for (key, value) in table {
                match value {
                    Value::String(path)
                        if (key.ends_with("cert_file") || key.ends_with("ca_file"))
                            && !path.is_empty() =>
                    {
                        found.insert(PathBuf::from(path));
                    }
                    other => certificate_files(other, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|one| certificate_files(one, found)),
        _ => {}
    }
}

/// A certificate that is over at this second since 1970.
fn expiry(what: &str, expires_s: u64) -> Option<Finding> {
    let now_s = SystemClock.wall_ms() / 1000;
    let days = expires_s.saturating_sub(now_s) / DAY_S;
    let advice = "renew it with `aquifer tls init --renew`, or as its authority says: processes load new files by themselves";
    let level = match days {
        _ if expires_s <= now_s => {
            let what = format!("{what} has expired");
            return Some(Finding::new(Level::Problem, what, advice));
        }
        days if days < EXPIRES_NOW_DAYS => Level::Problem,
        days if days < EXPIRES_SOON_DAYS => Level::Warning,
        _ => return None,
    };
    Some(Finding::new(
        level,
        format!("{what} expires in {days} days"),
        advice,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_told_of_before_they_are_over() {
        let now_s = SystemClock.wall_ms() / 1000;
        let level = |expires_s: u64| expiry("it", expires_s).map(|found| found.level);
        assert_eq!(level(now_s - 1), Some(Level::Problem));
        assert_eq!(level(now_s + 3 * DAY_S), Some(Level::Problem));
        assert_eq!(level(now_s + 20 * DAY_S), Some(Level::Warning));
        assert_eq!(level(now_s + 60 * DAY_S), None);
    }

    #[test]
    fn files_of_certificates_are_found_wherever_they_are_named() {
        let text = "[internal_tls]\ncert_file = \"a\"\nkey_file = \"k\"\n[etcd]\nca_file = \"b\"\n\
                    [[protocols.grpc.listeners]]\nname = \"x\"\n[protocols.grpc.listeners.tls]\ncert_file = \"c\"\n";
        let mut found = BTreeSet::new();
        certificate_files(&Value::Table(text.parse().unwrap()), &mut found);
        let names: Vec<_> = found
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn clocks_and_backlogs_of_processes_are_told_of() {
        let text = "aquifer_broker_backlog_messages_max 2000000\n\
                    aquifer_broker_unloaded_backlog_messages_max 3000000\n"
            .to_owned();
        let answers = vec![
            ("healthz", Ok((200, "ok\n".to_owned()))),
            ("readyz", Ok((503, "not serving: starting\n".to_owned()))),
            ("metrics", Ok((200, text))),
        ];
        let process = |ahead_s| Probed {
            url: "http://b1".to_owned(),
            ahead_s,
            answers: answers.clone(),
        };
        let found = processes(&[process(Some(-10))]);
        let what: Vec<&str> = found.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(what.len(), 4, "{what:?}");
        assert!(what[0].contains("readyz is 503: not serving"), "{what:?}");
        assert!(what[1].contains("-10 s ahead"), "{what:?}");
        assert!(what[2].contains("2000000 messages behind"), "{what:?}");
        assert!(
            what[3].contains("not loaded at http://b1 is 3000000"),
            "{what:?}"
        );
        assert_eq!(processes(&[process(Some(1))]).len(), 3);
    }

    #[test]
    fn brokers_of_two_versions_are_told_of() {
        let broker = |version: &str| BrokerRecord {
            version: version.to_owned(),
            ..BrokerRecord::default()
        };
        let level = |all: &[BrokerRecord]| versions(all)[0].level;
        assert_eq!(level(&[]), Level::Problem);
        assert_eq!(level(&[broker("1"), broker("1")]), Level::Fine);
        assert_eq!(level(&[broker("1"), broker("2")]), Level::Warning);
    }
}
