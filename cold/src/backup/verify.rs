//! Whether everything that a backup names is there, as it was written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use aquifer_model::backup::BackupTotals;
use aquifer_model::id::{AttemptId, CreationToken, EntryId, LedgerId, LocationId};
use aquifer_proto::convert::backup::files;
use aquifer_proto::v1;
use aquifer_runtime::secret::sha256;

use crate::backup::{Lists, TopicParts, damaged, id_of, read_topic};
use crate::error::{ColdError, ColdResult};
use crate::format::Expected;
use crate::listing;
use crate::location::PlaceOfObjects;
use crate::object;
use crate::replaced::Replaced;
use crate::store::{ColdStore, Listed};

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Topics that store something.
    pub topics: u64,
    /// Ledgers, each in an object.
    pub ledgers: u64,
    /// Their entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of the objects.
    pub object_bytes: u64,
    /// SHA-256 of the names of all objects.
    pub objects_sha256: [u8; 32],
    /// The highest ledger.
    pub last_ledger: u64,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// An object as a record of a ledger describes it.
struct Named {
    topic: String,
    /// That of the object that took its place, if it was damaged since.
    name: String,
    size: u64,
    expected: Expected,
}

/// Opens the store of a place.
pub type Open<'a> = &'a (dyn Fn(&PlaceOfObjects) -> ColdResult<Arc<dyn ColdStore>> + Sync);

/// Reads all lists and parts of a backup and looks whether the objects are there with their sizes;
/// `deep` reads every byte of these. What is wrong is in the answer.
///
/// # Errors
/// When a list or a part cannot be read, or a store does not answer.
pub async fn verify(
    store: &dyn ColdStore,
    root: &v1::BackupRoot,
    lists: &Lists,
    open: Open<'_>,
    deep: bool,
) -> ColdResult<Verified> {
    let backup = id_of(root).map_err(|reason| damaged("root", reason))?;
    let mut found = Verified::default();
    let replaced = Replaced::list(store, &root.cluster).await?;
    let mut places: BTreeMap<LocationId, PlaceOfObjects> = BTreeMap::new();
    let mut named: BTreeMap<(LocationId, String), Named> = BTreeMap::new();
    for entry in &lists.topics {
        let wrong = |reason: String| damaged(&entry.topic, reason);
        let parts = files(entry.parts.clone()).map_err(wrong)?;
        let parts = read_topic(store, &root.cluster, backup, &entry.topic, &parts).await?;
        let totals = entry.totals.unwrap_or_default();
        let sums = sums_of(&parts);
        if sums != said(totals) {
            let what = format!("{}: its parts are not what its list says", entry.topic);
            found.problems.push(what);
        }
        found.topics += u64::from(entry.partitions.is_empty());
        found.ledgers += sums.ledgers;
        found.entries += sums.entries;
        found.bytes += sums.bytes;
        found.object_bytes += sums.object_bytes;
        found.last_ledger = found.last_ledger.max(sums.last_ledger);
        for place in parts.places.values() {
            places.insert(place.id, place.clone());
        }
        for ledger in &parts.ledgers {
            let (key, _) = named_by(&entry.topic, &parts, ledger)?;
            let mut now = ledger.clone();
            if let Some(record) = &mut now.ledger {
                replaced.apply(store, record).await?;
            }
            let (_, object) = named_by(&entry.topic, &parts, &now)?;
            named.insert(key, object);
        }
    }
    let mut names = String::new();
    for (_, name) in named.keys() {
        // A text takes everything.
        let _ = writeln!(names, "{name}");
    }
    found.objects_sha256 = sha256(names.as_bytes());
    look(&places, &named, open, deep, &mut found.problems).await?;
    Ok(found)
}

/// What the parts of a topic come to, as far as these alone say it.
#[must_use]
pub fn sums_of(parts: &TopicParts) -> BackupTotals {
    let mut sums = BackupTotals::default();
    for (at, ledger) in parts.ledgers.iter().enumerate() {
        let segment = ledger.segment.unwrap_or_default();
        let object = ledger.ledger.as_ref().and_then(|l| l.offload.as_ref());
        let object = object.and_then(|offload| offload.object.as_ref());
        if at == 0 {
            sums.first.0 = segment.first_index;
        }
        sums.end.0 = segment.end_index;
        sums.ledgers += 1;
        sums.entries = sums.entries.saturating_add(segment.entries);
        sums.bytes = sums.bytes.saturating_add(segment.bytes);
        let size = object.map_or(0, |object| object.size_bytes);
        sums.object_bytes = sums.object_bytes.saturating_add(size);
        sums.last_ledger = sums.last_ledger.max(segment.ledger_id);
    }
    sums
}

/// The same of what a list says; a topic without ledgers has its indexes in its head alone.
fn said(totals: v1::BackupTotals) -> BackupTotals {
    let totals = BackupTotals::from(totals);
    let mut said = BackupTotals {
        ledgers: totals.ledgers,
        entries: totals.entries,
        bytes: totals.bytes,
        object_bytes: totals.object_bytes,
        last_ledger: totals.last_ledger,
        ..BackupTotals::default()
    };
    if totals.ledgers > 0 {
        (said.first, said.end) = (totals.first, totals.end);
    }
    said
}

fn named_by(
    topic: &str,
    parts: &TopicParts,
    ledger: &v1::BackupLedger,
) -> ColdResult<((LocationId, String), Named)> {
    let wrong = |reason: &str| damaged(topic, reason);
    let segment = ledger.segment.as_ref();
    let id = LedgerId(segment.map_or(0, |segment| segment.ledger_id));
    let record = ledger.ledger.as_ref();
    let record = record.ok_or_else(|| wrong("a ledger has no record"))?;
    let offload = record.offload.as_ref();
    let object = offload.and_then(|offload| offload.object.as_ref());
    let (Some(offload), Some(object)) = (offload, object) else {
        return Err(wrong("a ledger has no object"));
    };
    let attempt = AttemptId::try_from(offload.attempt.as_ref());
    let token = CreationToken::try_from(record.creation_token.as_ref());
    let place = parts.places.get(&object.location);
    let place = place.ok_or_else(|| wrong("a ledger is in an unknown place"))?;
    let expected = Expected {
        attempt: attempt.map_err(|_| wrong("the attempt of a ledger is malformed"))?,
        ledger: id,
        token: token.map_err(|_| wrong("the token of a ledger is malformed"))?,
        last_entry: EntryId(record.last_entry_id.unwrap_or_default()),
        length: record.length_bytes,
    };
    let named = Named {
        topic: topic.to_owned(),
        name: object.name.clone(),
        size: object.size_bytes,
        expected,
    };
    Ok(((place.id, object.name.clone()), named))
}

/// Looks for the objects, namespace by namespace.
async fn look(
    places: &BTreeMap<LocationId, PlaceOfObjects>,
    named: &BTreeMap<(LocationId, String), Named>,
    open: Open<'_>,
    deep: bool,
    problems: &mut Vec<String>,
) -> ColdResult<()> {
    for (id, place) in places {
        let store = open(place)?;
        let wanted = || {
            let of_place = named.iter().filter(move |((at, _), _)| at == id);
            of_place.map(|(_, object)| (&object.name, object))
        };
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        for directory in wanted()
            .map(|(name, _)| directory_of(name))
            .collect::<BTreeSet<_>>()
        {
            let note = |object: Listed| -> ColdResult<()> {
                sizes.insert(object.name, object.bytes);
                Ok(())
            };
            listing::each(&*store, directory, note).await??;
        }
        for (name, object) in wanted() {
            let topic = &object.topic;
            match sizes.get(name) {
                None => problems.push(format!("{topic}: object {name} is missing")),
                Some(size) if *size != object.size => problems.push(format!(
                    "{topic}: object {name} has {size} bytes, not {}",
                    object.size
                )),
                Some(_) if !deep => {}
                Some(size) => {
                    let expected = Some(&object.expected);
                    let checked = object::verify(&*store, name, *size, expected, |_, _| {}).await;
                    match checked {
                        Ok(_) => {}
                        Err(error @ (ColdError::Damaged { .. } | ColdError::NotFound(_))) => {
                            problems.push(format!("{topic}: {error}"));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
    Ok(())
}

/// What comes before what is random in the name of an object: its namespace.
fn directory_of(name: &str) -> &str {
    let cut = name.rfind('/').and_then(|end| name[..end].rfind('/'));
    cut.map_or("", |end| &name[..end])
}
