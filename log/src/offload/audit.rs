//! What a store has that no record refers to, and which records refer to objects that are not
//! there: found by a listing. No cleaning up needs it; it finds what should not be.
//!
//! It fails closed:
//! - A listing or a reading of metadata that is not whole is an error, and says nothing.
//! - Records are read before the store is listed, and again one by one before a judgement. Objects
//!   that are younger than a bound are never orphans, by their attempt's clock and by the store's.
//! - An object whose end cannot be read, or says something else than its name, is only told of.
//! - Metadata that is older than the store (of a restored snapshot, H14) knows nothing of newer
//!   objects, and may name bookies that have deleted their copies since. So an object is doubtful
//!   as long as its ledger could be read from nothing else; and when any object of any place, a
//!   young one too, is of a ledger that metadata has not handed out, nothing is deleted anywhere.
//! - Nothing is deleted either when there are more orphans than can be believed.

use std::collections::HashSet;

use aquifer_cold::error::ColdError;
use aquifer_cold::listing;
use aquifer_cold::location::Location;
use aquifer_cold::object::{NameParts, parse_name, read_tail};
use aquifer_cold::store::Listed;
use aquifer_ledger::ledger_metadata;
use aquifer_ledger::objects::orphans::{self, Named, Orphan, Standing};
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::{AttemptId, CreationToken, LedgerId};

use crate::error::LogError;
use crate::offload::upload::of_store;

/// Findings of a kind that one audit has in memory.
const FINDINGS_MAX: usize = 100_000;
/// Orphans that are believed of any place.
const ORPHANS_FEW: usize = 20;
/// Of more objects, this part of them.
const ORPHANS_SHARE: usize = 100;

/// An object that a record names and that is not as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// The ledger.
    pub ledger: LedgerId,
    /// The object.
    pub name: String,
    /// The length that it has instead; `None`: it is missing.
    pub bytes: Option<u64>,
}

/// What an audit has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// Objects of this cluster in the place.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Those that ledgers are in.
    pub stored: usize,
    /// Those that are being written, or are to be deleted.
    pub passing: usize,
    /// Those that no record names, and that are too young to be judged.
    pub young: usize,
    /// Those that no record names.
    pub orphans: Vec<Orphan>,
    /// Bytes of these.
    pub orphan_bytes: u64,
    /// Those that no record names and that are not what their name says, or whose ledger is not in
    /// another object: they are never deleted.
    pub doubtful: Vec<String>,
    /// What records name and the store does not have so.
    pub absent: Vec<Absent>,
    /// The newest ledger that the name of any object says.
    pub newest: Option<LedgerId>,
    /// Metadata has not handed out the id of a ledger that is here: it is older than the store.
    pub is_rolled_back: bool,
}

impl Audit {
    /// Why no orphan of this audit is deleted.
    #[must_use]
    pub fn objection(&self) -> Option<String> {
        if self.is_rolled_back {
            return Some(
                "metadata is older than the objects: it was restored, and does not know them"
                    .to_owned(),
            );
        }
        let most = (self.objects / ORPHANS_SHARE).max(ORPHANS_FEW);
        let found = self.orphans.len();
        (found > most).then(|| {
            format!(
                "{found} orphans among {} objects are more than can be believed ({most})",
                self.objects
            )
        })
    }
}

/// What is listed and not named, with what its name says.
struct Suspect {
    name: String,
    bytes: u64,
    parts: NameParts,
}

/// Compares the objects of a cluster in a place with the records. Objects that came to be after
/// `young_since_ms` are not judged.
///
/// # Errors
/// When anything cannot be read whole, or the place is not the right one.
pub async fn audit(
    metadata: &dyn MetadataStore,
    location: &Location,
    young_since_ms: u64,
) -> Result<Audit, LogError> {
    if location.is_foreign {
        return Err(LogError::Invalid(format!(
            "{} has the objects of cluster {}: it audits them",
            location.url, location.owner
        )));
    }
    location.check().await.map_err(of_store)?;
    let named = orphans::named(metadata, location.number).await?;
    let mut audit = Audit::default();
    let (suspects, seen) = list(location, young_since_ms, &named, &mut audit).await?;
    // Ids that were handed out while the store was listed count too.
    let unused = ledger_metadata::unused_from(metadata).await?;
    audit.is_rolled_back = audit.newest.is_some_and(|newest| newest >= unused);
    for suspect in suspects {
        judge(metadata, location, suspect, &mut audit).await?;
    }
    for (attempt, (ledger, _)) in named.stored.iter().filter(|(a, _)| !seen.contains(*a)) {
        confirm(metadata, location, (*ledger, *attempt), &mut audit).await?;
    }
    Ok(audit)
}

/// Lists everything. Answers what no record names, and which of the named objects are there as
/// their records say.
async fn list(
    location: &Location,
    young_since_ms: u64,
    named: &Named,
    audit: &mut Audit,
) -> Result<(Vec<Suspect>, HashSet<AttemptId>), LogError> {
    let below = format!("{}/data", location.owner);
    let (mut suspects, mut seen) = (Vec::new(), HashSet::new());
    let look = |object: Listed| {
        audit.objects += 1;
        audit.bytes += object.bytes;
        let Some(parts) = parse_name(&location.owner, &object.name) else {
            return note(&mut audit.doubtful, object.name);
        };
        audit.newest = audit.newest.max(Some(parts.ledger));
        if let Some((_, bytes)) = named.stored.get(&parts.attempt) {
            audit.stored += 1;
            if *bytes == object.bytes {
                seen.insert(parts.attempt);
            }
        } else if named.passing.contains(&parts.attempt) {
            audit.passing += 1;
        } else if is_young(&object, &parts, young_since_ms) {
            audit.young += 1;
        } else {
            let (name, bytes) = (object.name, object.bytes);
            return note(&mut suspects, Suspect { name, bytes, parts });
        }
        Ok(())
    };
    let listed = listing::each(&*location.store, &below, look).await;
    listed.map_err(of_store)??;
    Ok((suspects, seen))
}

fn is_young(object: &Listed, parts: &NameParts, since_ms: u64) -> bool {
    parts.began_ms() >= since_ms || object.modified_ms >= since_ms
}

fn note<T>(findings: &mut Vec<T>, finding: T) -> Result<(), LogError> {
    if findings.len() == FINDINGS_MAX {
        return Err(LogError::Invalid(format!(
            "more than {FINDINGS_MAX} objects are not what they should be: this is not the place \
             of this cluster's objects, or its metadata is another's"
        )));
    }
    findings.push(finding);
    Ok(())
}

/// Looks at a suspect by itself.
async fn judge(
    metadata: &dyn MetadataStore,
    location: &Location,
    suspect: Suspect,
    audit: &mut Audit,
) -> Result<(), LogError> {
    let (parts, name) = (suspect.parts, suspect.name);
    let (attempt, ledger) = (parts.attempt, parts.ledger);
    if orphans::is_named(metadata, attempt, ledger).await? {
        audit.passing += 1;
        return Ok(());
    }
    let tail = match read_tail(&*location.store, &name, suspect.bytes, None).await {
        Ok((tail, _)) => tail,
        Err(ColdError::Damaged { .. }) => return note(&mut audit.doubtful, name),
        // It went meanwhile.
        Err(ColdError::NotFound(_)) => return Ok(()),
        Err(error) => return Err(of_store(error)),
    };
    let is_what_it_says =
        tail.attempt == attempt && tail.ledger() == ledger && tail.footer.cluster == location.owner;
    let token = CreationToken::try_from(tail.section.creation_token.as_ref()).ok();
    let Some(token) = token.filter(|_| is_what_it_says) else {
        return note(&mut audit.doubtful, name);
    };
    let orphan = Orphan {
        attempt,
        ledger,
        token,
        home: parts.home,
        location: location.number,
        name,
    };
    match orphans::standing(metadata, &orphan).await? {
        Standing::Named => audit.passing += 1,
        Standing::Doubtful => note(&mut audit.doubtful, orphan.name)?,
        Standing::Orphan => {
            audit.orphan_bytes += suspect.bytes;
            note(&mut audit.orphans, orphan)?;
        }
    }
    Ok(())
}

/// Looks at an object by itself that the listing did not have as its record says.
async fn confirm(
    metadata: &dyn MetadataStore,
    location: &Location,
    (ledger, attempt): (LedgerId, AttemptId),
    audit: &mut Audit,
) -> Result<(), LogError> {
    let now = orphans::stored_now(metadata, ledger).await?;
    let Some((_, object)) = now.filter(|(now, _)| *now == attempt) else {
        return Ok(());
    };
    let bytes = match location.store.size(&object.name).await {
        Ok(bytes) if bytes == object.size_bytes => return Ok(()),
        Ok(bytes) => Some(bytes),
        Err(ColdError::NotFound(_)) => {
            location.check().await.map_err(of_store)?;
            None
        }
        Err(error) => return Err(of_store(error)),
    };
    let name = object.name;
    note(
        &mut audit.absent,
        Absent {
            ledger,
            name,
            bytes,
        },
    )
}

/// Writes down that the orphans of the audits of all places are to be deleted: the reapers do it.
/// Answers how many were, place by place; what a record names by now is left alone.
///
/// # Errors
/// `Invalid`, before the first, when there is an [objection](Audit::objection) to any of them; when
/// metadata cannot be read or changed.
pub async fn condemn(
    metadata: &dyn MetadataStore,
    audits: &[Audit],
) -> Result<Vec<usize>, LogError> {
    if let Some(objection) = audits.iter().find_map(Audit::objection) {
        return Err(LogError::Invalid(objection));
    }
    let mut all = Vec::with_capacity(audits.len());
    for audit in audits {
        let mut condemned = 0;
        for orphan in &audit.orphans {
            condemned += usize::from(orphans::condemn(metadata, orphan).await?);
        }
        all.push(condemned);
    }
    Ok(all)
}
