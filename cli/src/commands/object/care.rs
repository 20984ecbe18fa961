//! `aquifer object audit` and `scrub`: compares the places of a cluster with its metadata, and
//! reads everything that its ledgers are in.

use std::sync::Arc;
use std::time::Duration;

use aquifer_cold::library;
use aquifer_cold::location::{Location, Locations};
use aquifer_cold::paced::Pace;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_log::error::LogError;
use aquifer_log::offload::adopt::adopt_doubtful;
use aquifer_log::offload::audit::{self, Audit};
use aquifer_log::offload::scrub::{Condition, Looked, Looks, Subject};
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::scan::{self, Pages};
use aquifer_runtime::clock;
use serde_json::{Value, json};

use crate::args::{SourceArgs, StoreArgs};
use crate::commands::object::{config_of, failed};
use crate::exit::{CliError, Exit};
use crate::output::Output;
use crate::tool::{self, ToolContext};

/// Places that a cluster may have had.
const LOCATIONS_MAX: usize = 10_000;

/// What to audit, and whether orphans go.
pub(super) struct AuditRequest {
    pub(super) source: SourceArgs,
    pub(super) store: StoreArgs,
    pub(super) young: Duration,
    pub(super) delete: bool,
    pub(super) yes: bool,
    pub(super) adopt: bool,
}

/// What was done about an audit.
#[derive(Clone, Copy, Default)]
struct Acted {
    /// Orphans that are to be deleted.
    condemned: Option<usize>,
    /// Doubtful objects that ledgers use now.
    adopted: Option<usize>,
}

/// The places of the cluster, opened when they are needed.
fn places(cluster: &ToolContext, store: &StoreArgs) -> Locations {
    let (ledgers, config) = (&cluster.ctx.ledgers, config_of(store));
    let opener = Box::new(move |url: &str| library::open(url, &config));
    let sources = (Arc::clone(&ledgers.clock), Arc::clone(&ledgers.rng));
    let metadata = Arc::clone(&ledgers.store);
    Locations::new(metadata, sources, &cluster.cluster, "", opener)
}

/// The numbers of the places that metadata knows.
async fn numbers(cluster: &ToolContext) -> Result<Vec<u32>, CliError> {
    let found = scan::all(cluster.store(), keys::LOCATIONS_PREFIX, LOCATIONS_MAX).await;
    let (found, _) = found.map_err(|error| tool::failed(&error.into()))?;
    let number = |key: &str| match key.parse() {
        Ok(Key::Location(number)) => Some(number),
        _ => None,
    };
    Ok(found.iter().filter_map(|item| number(&item.key)).collect())
}

fn of_log(error: LogError) -> CliError {
    match error {
        LogError::Metadata(error) => tool::failed(&LedgerError::from(error)),
        LogError::Invalid(reason) => CliError::new(Exit::Refused, reason),
        error => CliError::failed(error.to_string()),
    }
}

/// Audits all places of a cluster.
///
/// # Errors
/// Exit code 1 when something is not as it should be, or cannot be known; 5 when orphans are not
/// deleted because of what was found.
pub(super) async fn audit(request: AuditRequest, out: &Output) -> Result<(), CliError> {
    if request.delete && !request.yes {
        return Err(
            CliError::usage("--delete deletes objects for good: confirm it with --yes")
                .advise("run it without --delete first, and look at the orphans that it names"),
        );
    }
    let cluster = ToolContext::open(&request.source).await?;
    let done = audit_all(&cluster, &request, out).await;
    cluster.close().await;
    match done? {
        0 => Ok(()),
        found => Err(CliError::failed(format!(
            "{found} objects or places are not as they should be, or cannot be asked"
        ))),
    }
}

async fn audit_all(
    cluster: &ToolContext,
    request: &AuditRequest,
    out: &Output,
) -> Result<usize, CliError> {
    let places = places(cluster, &request.store);
    let young = clock::millis(request.young);
    let since_ms = cluster.ctx.ledgers.clock.wall_ms().saturating_sub(young);
    let (mut seen, mut audits, mut unknown) = (Vec::new(), Vec::new(), 0);
    for number in numbers(cluster).await? {
        if places.is_foreign(number).await.map_err(failed)? {
            continue;
        }
        match audit_one(cluster, &places, number, since_ms).await {
            Ok((location, audited)) => {
                seen.push(location);
                audits.push(audited);
            }
            Err(error) => {
                unknown += 1;
                out.note(&format!("place {number} is not audited: {error}"));
            }
        }
    }
    // Each place may show that metadata is older than the objects of all.
    let objection = match unknown {
        0 => audits.iter().find_map(Audit::objection),
        places => Some(format!("{places} places could not be audited")),
    };
    let mut acted = vec![Acted::default(); audits.len()];
    if request.adopt {
        for ((location, audited), acted) in seen.iter().zip(&mut audits).zip(&mut acted) {
            acted.adopted = Some(adopt(cluster, location, audited).await?);
        }
    }
    if request.delete && objection.is_none() {
        let counts = audit::condemn(cluster.store(), &audits).await;
        for (count, acted) in counts.map_err(of_log)?.into_iter().zip(&mut acted) {
            acted.condemned = Some(count);
        }
    }
    let mut found = unknown;
    for ((location, audited), acted) in seen.iter().zip(&audits).zip(acted) {
        show(out, location, audited, acted)?;
        let condemned = acted.condemned.unwrap_or(0);
        let orphans = audited.orphans.len().saturating_sub(condemned);
        found += orphans + audited.absent.len() + audited.doubtful.len();
    }
    match objection.filter(|_| request.delete) {
        Some(objection) => Err(CliError::new(Exit::Refused, objection)
            .advise("nothing was deleted; look at what is named above")),
        None => Ok(found),
    }
}

/// Has ledgers use what is doubtful and holds them, which is doubtful no more then. Answers how
/// many objects these are.
async fn adopt(
    cluster: &ToolContext,
    location: &Location,
    audited: &mut Audit,
) -> Result<usize, CliError> {
    let now_ms = cluster.ctx.ledgers.clock.wall_ms();
    let adopted = adopt_doubtful(cluster.store(), location, audited, now_ms).await;
    let adopted = adopted.map_err(of_log)?;
    audited.doubtful.retain(|name| !adopted.contains(name));
    audited.stored += adopted.len();
    Ok(adopted.len())
}

async fn audit_one(
    cluster: &ToolContext,
    places: &Locations,
    number: u32,
    since_ms: u64,
) -> Result<(Arc<Location>, Audit), CliError> {
    let location = places.get(number).await.map_err(failed)?;
    let audited = audit::audit(cluster.store(), &location, since_ms).await;
    Ok((location, audited.map_err(of_log)?))
}

fn object(location: &Location, audit: &Audit, acted: Acted) -> Value {
    let absent = audit.absent.iter().map(
        |absent| json!({"ledger": absent.ledger.0, "object": absent.name, "bytes": absent.bytes}),
    );
    let orphans = audit.orphans.iter().map(|orphan| orphan.name.as_str());
    json!({
        "location": location.number,
        "url": location.url,
        "objects": audit.objects,
        "bytes": audit.bytes,
        "stored": audit.stored,
        "passing": audit.passing,
        "young": audit.young,
        "orphans": orphans.collect::<Vec<_>>(),
        "orphan_bytes": audit.orphan_bytes,
        "doubtful": audit.doubtful,
        "absent": absent.collect::<Vec<_>>(),
        "objection": audit.objection(),
        "deleting": acted.condemned,
        "adopted": acted.adopted,
    })
}

fn show(out: &Output, location: &Location, audit: &Audit, acted: Acted) -> Result<(), CliError> {
    if out.is_json() {
        return out.object(&object(location, audit, acted));
    }
    out.line(format!(
        "{}: {} objects, {} bytes; ledgers are in {}, {} come or go, {} are too young to be judged",
        location.url, audit.objects, audit.bytes, audit.stored, audit.passing, audit.young
    ))?;
    for orphan in &audit.orphans {
        out.line(format!("orphan    {}", orphan.name))?;
    }
    for name in &audit.doubtful {
        out.line(format!("doubtful  {name}"))?;
    }
    for absent in &audit.absent {
        let what = match absent.bytes {
            None => "missing".to_owned(),
            Some(bytes) => format!("of {bytes} bytes instead"),
        };
        let (ledger, name) = (absent.ledger, &absent.name);
        out.line(format!("absent    {name} of ledger {ledger} is {what}"))?;
    }
    if let Some(count) = acted.adopted {
        out.line(format!("{count} objects are used by their ledgers now"))?;
    }
    match acted.condemned {
        Some(count) => out.line(format!("{count} orphans are deleted by the brokers now")),
        None => Ok(()),
    }
}

/// Reads every object that a ledger of the cluster is in.
///
/// # Errors
/// Exit code 1 when one is not whole, or cannot be read.
pub(super) async fn scrub(
    source: &SourceArgs,
    store: &StoreArgs,
    rate: u64,
    out: &Output,
) -> Result<(), CliError> {
    let cluster = ToolContext::open(source).await?;
    let done = scrub_all(&cluster, store, rate, out).await;
    cluster.close().await;
    match done? {
        0 => Ok(()),
        bad => Err(CliError::failed(format!(
            "{bad} objects are not whole, or cannot be read"
        ))),
    }
}

async fn scrub_all(
    cluster: &ToolContext,
    store: &StoreArgs,
    rate: u64,
    out: &Output,
) -> Result<u64, CliError> {
    let places = places(cluster, store);
    let clock = Arc::clone(&cluster.ctx.ledgers.clock);
    let pace = Arc::new(Pace::new(Some(rate).filter(|rate| *rate > 0), clock));
    let mut pages = Pages::new(cluster.store(), keys::LEDGERS_PREFIX);
    let (mut objects, mut bytes, mut bad) = (0_u64, 0_u64, 0_u64);
    let mut unknown = 0_u64;
    let mut looks = Looks::new(cluster.store(), &places, &pace);
    loop {
        let page = pages.next().await;
        let Some(page) = page.map_err(|error| tool::failed(&error.into()))? else {
            break;
        };
        for stored in page {
            let Ok(Key::Ledger(ledger)) = stored.key.parse() else {
                continue;
            };
            let info = LedgerInfo::decode(ledger, &stored).map_err(|e| tool::failed(&e))?;
            let Some(subject) = Subject::of(info) else {
                continue;
            };
            let what = match looks.at(&subject).await.map_err(of_log)? {
                Looked::Unreadable(error) => {
                    unknown += 1;
                    out.note(&format!("{} is not read: {error}", subject.object.name));
                    continue;
                }
                Looked::Away => {
                    unknown += 1;
                    continue;
                }
                Looked::Is(Condition::Passed) => continue,
                Looked::Is(Condition::Whole) => None,
                Looked::Is(Condition::Damaged(reason)) => Some(reason),
                Looked::Is(Condition::Missing) => Some("it is missing".to_owned()),
            };
            objects += 1;
            bytes += subject.object.size_bytes;
            if let Some(what) = what {
                bad += 1;
                show_bad(out, &subject, &what)?;
            }
        }
    }
    match out.is_json() {
        true => out
            .object(&json!({"objects": objects, "bytes": bytes, "bad": bad, "unknown": unknown}))?,
        false => out.line(format!(
            "{objects} objects, {bytes} bytes: {bad} are not whole; {unknown} could not be read"
        ))?,
    }
    Ok(bad + unknown)
}

fn show_bad(out: &Output, subject: &Subject, what: &str) -> Result<(), CliError> {
    let (ledger, name) = (subject.info.id, &subject.object.name);
    let is_kept = subject.info.is_kept_by(subject.attempt);
    if out.is_json() {
        return out
            .object(&json!({"ledger": ledger.0, "object": name, "what": what, "local": is_kept}));
    }
    let copies = match is_kept {
        true => "bookies have copies",
        false => "bookies have no copies",
    };
    out.line(format!("{name} of ledger {ledger}: {what}; {copies}"))
}
