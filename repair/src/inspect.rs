//! Ledgers for people: what their records say, what their replicas hold, and the repairs that an
//! operator may ask for.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::deletion::{self, Intent, Progress};
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::marks::Mark;
use aquifer_ledger::members::Members;
use aquifer_ledger::recovery::driver::close_by_recovery;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::store::{Expect, Guard, MetadataStore, PageToken, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{scan, segments};
use aquifer_model::id::{BookieId, EntryId, LEDGER_ID_MAX, LedgerId};
use aquifer_model::inventory::LedgerView;
use aquifer_model::storage::{BookieError, ReadRange};
use aquifer_runtime::clock;

use crate::context::RepairContext;
use crate::copy::{Copier, Depth, Trouble};
use crate::pace::Pace;

/// How long a bookie may take to answer whether it is there.
const PING: Duration = Duration::from_secs(3);
/// Unreadable values that are named.
const DAMAGED_LISTED_MAX: usize = 100;

/// Reads one ledger's record.
///
/// # Errors
/// When metadata cannot be read or the record is damaged.
pub async fn view(
    store: &dyn MetadataStore,
    ledger: LedgerId,
) -> Result<Option<LedgerView>, LedgerError> {
    let info = ledger_metadata::load(store, ledger).await?;
    Ok(info.as_ref().map(LedgerView::from))
}

/// A page of ledgers, and where the next begins. A damaged record is its key and the reason.
pub type LedgerPage = (Vec<Result<LedgerView, String>>, Option<PageToken>);

/// Reads a page of ledgers in order of ids.
///
/// # Errors
/// When metadata cannot be read.
pub async fn list(
    store: &dyn MetadataStore,
    page: Option<PageToken>,
    limit: usize,
) -> Result<LedgerPage, LedgerError> {
    let found = store.scan(keys::LEDGERS_PREFIX, page, limit).await?;
    let ledgers = found.items.iter().map(|item| {
        let Ok(Key::Ledger(id)) = item.key.parse() else {
            return Err(format!("{}: not the key of a ledger", item.key));
        };
        let info = LedgerInfo::decode(id, item);
        info.as_ref()
            .map(LedgerView::from)
            .map_err(|error| format!("{}: {error}", item.key))
    });
    Ok((ledgers.collect(), found.next))
}

/// What one bookie holds of one position of a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// First entry of the fragment.
    pub fragment: EntryId,
    /// The position.
    pub position: usize,
    /// The bookie that is there.
    pub bookie: BookieId,
    /// Entries that it must have.
    pub entries: u64,
    /// Ranges of these that it has not, or has damaged; or why that is not known.
    pub gaps: Result<Vec<(EntryId, EntryId)>, String>,
}

impl Replica {
    /// How many entries are missing or damaged.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let gaps = self.gaps.as_deref().unwrap_or_default();
        gaps.iter().map(|(from, to)| to.0 - from.0 + 1).sum()
    }

    /// Whether everything is there.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.gaps.as_ref().is_ok_and(Vec::is_empty)
    }
}

/// What was found of a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its replicas whose entries cannot change any more.
    pub replicas: Vec<Replica>,
    /// Whether those are all: more can be written to a ledger that is not closed, and the entries
    /// of its last fragment are not looked at.
    pub is_closed: bool,
}

/// Looks at every replica of every entry whose place is fixed: all of a closed ledger, and all but
/// the last fragment of another. A ledger that is being deleted has none that is missed;
/// `None` when there is no such ledger, or none any more.
///
/// # Errors
/// When metadata cannot be read, or the ledger's record is damaged.
pub async fn verify(
    ctx: &Arc<RepairContext>,
    ledger: LedgerId,
    bytes_per_second: u64,
) -> Result<Option<Verified>, LedgerError> {
    let Some(info) = ledger_metadata::load(&*ctx.ledgers.store, ledger).await? else {
        return Ok(None);
    };
    let found = |replicas| {
        Some(Verified {
            replicas,
            is_closed: matches!(info.state, LedgerState::Closed { .. }),
        })
    };
    let replicas = match is_going(ctx, &info).await? {
        true => Vec::new(),
        false => replicas(ctx, &info, bytes_per_second).await?,
    };
    if replicas.iter().all(Replica::is_intact) {
        return Ok(found(replicas));
    }
    // What is missing may have been deleted meanwhile.
    Ok(
        match ledger_metadata::load(&*ctx.ledgers.store, ledger).await? {
            None => None,
            Some(now) if is_going(ctx, &now).await? => found(Vec::new()),
            Some(_) => found(replicas),
        },
    )
}

/// Whether all of a ledger is being deleted.
async fn is_going(ctx: &RepairContext, info: &LedgerInfo) -> Result<bool, LedgerError> {
    let intent = deletion::load(&*ctx.ledgers.store, info.id).await?;
    Ok(intent.is_some_and(|intent| intent.deletes(info)))
}

async fn replicas(
    ctx: &Arc<RepairContext>,
    info: &LedgerInfo,
    bytes_per_second: u64,
) -> Result<Vec<Replica>, LedgerError> {
    let members = Members::load(&*ctx.ledgers.store).await?;
    let (none_lost, pace) = (BTreeSet::new(), Pace::new(bytes_per_second));
    let copier = Copier::new(ctx, info, &members, &none_lost, &pace);
    let mut replicas = Vec::new();
    for fragment in info.duties().fixed() {
        for (position, bookie) in fragment.members.iter().enumerate() {
            let runs = || fragment.of(position);
            let gaps = copier.gaps(*bookie, runs(), Depth::Bytes, false).await;
            replicas.push(Replica {
                fragment: fragment.first,
                position,
                bookie: *bookie,
                entries: runs().map(|(from, to)| to.0 - from.0 + 1).sum(),
                gaps: gaps.map_err(|trouble: Trouble| trouble.to_string()),
            });
        }
    }
    Ok(replicas)
}

/// The topic that refers to a ledger: a scan of all topics, for a caller that can wait.
///
/// # Errors
/// When topics cannot be listed, or one is damaged.
pub async fn topic_of(
    store: &dyn MetadataStore,
    ledger: LedgerId,
) -> Result<Option<String>, LedgerError> {
    let take = |found: &mut Option<String>, item: &Versioned| {
        if let Some(listed) = segments::listed(item)?
            && listed.ledgers.contains(&ledger)
        {
            *found = Some(listed.topic.to_string());
        }
        Ok::<(), LedgerError>(())
    };
    for prefix in [keys::RESTORES_PREFIX, keys::TENANTS_PREFIX] {
        let (found, _) = scan::each(store, prefix, || None, take).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What waits to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pending {
    /// Ledgers that are marked as under-replicated.
    pub marks: u64,
    /// Ledgers that some bookie has still to delete.
    pub deletions: u64,
    /// Marks and intents that cannot be read.
    pub damaged: Vec<String>,
    /// Processes that repair ledgers.
    pub workers: u64,
    /// The auditor.
    pub auditor: Option<String>,
}

/// Counts what waits to be done.
///
/// # Errors
/// When metadata cannot be read.
pub async fn pending(store: &dyn MetadataStore) -> Result<Pending, LedgerError> {
    let marks = count(store, keys::UNDER_REPLICATED_PREFIX, |item| {
        Mark::decode(item).map(drop)
    });
    let (marks, mut damaged) = marks.await?;
    let intents = count(store, keys::DELETIONS_PREFIX, |item| {
        Intent::decode(item).map(drop)
    });
    let (deletions, others) = intents.await?;
    damaged.extend(others);
    damaged.truncate(DAMAGED_LISTED_MAX);
    let (workers, _) = count(store, keys::REPAIR_WORKERS_PREFIX, |_| Ok(())).await?;
    let auditor = store.get(&keys::leader(keys::ELECTION_AUDITOR)).await?;
    Ok(Pending {
        marks,
        deletions,
        damaged,
        workers,
        auditor: auditor.map(|found| String::from_utf8_lossy(&found.value).into_owned()),
    })
}

/// How many values below a prefix can be read; the first that cannot, and why.
async fn count(
    store: &dyn MetadataStore,
    prefix: &str,
    check: impl Fn(&Versioned) -> Result<(), LedgerError>,
) -> Result<(u64, Vec<String>), LedgerError> {
    let take = |(good, damaged): &mut (u64, Vec<String>), item: &Versioned| {
        match check(item) {
            Ok(()) => *good += 1,
            Err(error) if damaged.len() < DAMAGED_LISTED_MAX => {
                damaged.push(format!("{}: {error}", item.key));
            }
            Err(_) => {}
        }
        Ok::<(), LedgerError>(())
    };
    let (counted, _) = scan::each(store, prefix, Default::default, take).await?;
    Ok(counted)
}

/// Asks a bookie anything; what it answers does not matter.
///
/// # Errors
/// Why there was no answer.
pub async fn ping(ctx: &RepairContext, bookie: BookieId) -> Result<(), String> {
    let range = ReadRange {
        ledger: LedgerId(LEDGER_ID_MAX),
        token: None,
        first: EntryId::FIRST,
        last: EntryId::FIRST,
        bytes_max: 1,
        entries_max: 1,
        prefix_bytes: Some(1),
    };
    let read = ctx.ledgers.transport.read(bookie, range);
    match clock::timeout(PING, read).await {
        Ok(Err(error @ (BookieError::Unreachable(_) | BookieError::Timeout))) => {
            Err(error.to_string())
        }
        Ok(_) => Ok(()),
        Err(_) => Err(format!("no answer within {PING:?}")),
    }
}

/// Closes an open ledger, as the next owner of its topic would: a writer that is still there finds
/// itself fenced. Returns its record.
///
/// # Errors
/// When too few bookies answer.
pub async fn recover(
    ctx: &Arc<RepairContext>,
    ledger: LedgerId,
) -> Result<LedgerView, LedgerError> {
    let (info, _) = close_by_recovery(&ctx.ledgers, ledger, &[]).await?;
    Ok(LedgerView::from(&info))
}

/// Deletes a ledger by intent, whether or not a topic refers to it. A deletion that was begun
/// before goes on from where it is. Returns how many bookies have still to do it; `None` when there
/// is no such ledger.
///
/// # Errors
/// When metadata does not do it, the record changes meanwhile, or an earlier ledger of the same id
/// is still to be deleted.
pub async fn delete(
    ctx: &Arc<RepairContext>,
    ledger: LedgerId,
) -> Result<Option<usize>, LedgerError> {
    let store = &*ctx.ledgers.store;
    let Some(info) = ledger_metadata::load(store, ledger).await? else {
        return Ok(None);
    };
    let as_it_is = Guard {
        key: keys::ledger(ledger),
        expect: Expect::Revision(info.revision),
    };
    let begin = |stored: Option<Versioned>| ready(begin_deletion(&info, stored.as_ref()));
    let begun = store
        .update(&keys::deletion(ledger), &[as_it_is], begin)
        .await;
    begun.map_err(UpdateError::<LedgerError>::flatten)?;
    Ok(Some(
        match deletion::carry_out(&ctx.ledgers, ledger).await? {
            Progress::Done => 0,
            Progress::Waiting(bookies) => bookies,
        },
    ))
}

/// The change of a ledger's intent after which all of the ledger is deleted. What is stored stays
/// as it is if it says so: it notes which bookies have done it. The bookies of an intent for single
/// copies are asked too. One that cannot be read is replaced, since nothing carries it out.
fn begin_deletion(
    info: &LedgerInfo,
    stored: Option<&Versioned>,
) -> Result<Change<()>, LedgerError> {
    let mut intent = Intent::of(info);
    match stored.map(Intent::decode).transpose() {
        Ok(None) => {}
        Ok(Some(earlier)) if earlier.deletes(info) => return Ok(Change::none(())),
        Ok(Some(earlier)) if earlier.is_of(info) => intent.add_bookies_of(&earlier),
        Ok(Some(_)) => {
            let why = "its deletion intent is of an earlier ledger with this id, which the bookies \
                       that it names must delete first";
            return Err(LedgerError::BadRecord(info.id.0, why.to_owned()));
        }
        Err(error @ LedgerError::Metadata(MetadataError::NewerFormat { .. })) => return Err(error),
        Err(error) => {
            tracing::error!(ledger = info.id.0, %error, "an unreadable deletion intent is replaced");
        }
    }
    Ok(Change::put(&info.home, intent.value(), ()))
}
