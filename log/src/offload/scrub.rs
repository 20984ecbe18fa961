//! Reads objects again, at a bounded rate, and checks every byte (H23). One that is damaged or
//! missing is marked, so that the copies at bookies stay, and is written again from these at once
//! or in a later step; without copies a person has to bring it back.
//!
//! Each object has its moment within a pass, which its attempt's random id decides. So nothing is
//! remembered, work is spread over the pass, and a process that starts goes on where time is.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aquifer_cold::error::ColdError;
use aquifer_cold::format::Expected;
use aquifer_cold::location::{Location, Locations};
use aquifer_cold::object::{read_tail, verify};
use aquifer_cold::paced::{Pace, Paced};
use aquifer_cold::store::ColdStore;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::objects::replacing;
use aquifer_ledger::offload::{Copies, Offload, StoredObject};
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::scan::Pages;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::{AttemptId, EntryId, LedgerId};
use aquifer_runtime::clock;
use bytes::Bytes;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::tier::ColdTier;
use crate::offload::upload::{Origin, of_store, replace_object};

/// What an object is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Every byte is as it was written.
    Whole,
    /// It is not.
    Damaged(String),
    /// It is not there, in the right place.
    Missing,
    /// The ledger is not in this object any more, or the object is another cluster's.
    Passed,
}

/// What a scrub has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrubbed {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were damaged.
    pub damaged: u64,
    /// Those that were missing.
    pub missing: u64,
    /// Those of both that were written again.
    pub replaced: u64,
    /// Those that could not be read, each by itself or with its place: of these nothing is known.
    pub unknown: u64,
}

/// The object that a ledger is in.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The ledger.
    pub info: LedgerInfo,
    /// The attempt that wrote the object.
    pub attempt: AttemptId,
    /// The object.
    pub object: StoredObject,
}

impl Subject {
    /// The object of a ledger, if it is in one.
    #[must_use]
    pub fn of(info: LedgerInfo) -> Option<Subject> {
        let Some(Offload::Stored {
            attempt, object, ..
        }) = info.offload.clone()
        else {
            return None;
        };
        Some(Subject {
            info,
            attempt,
            object,
        })
    }

    /// Whether its moment in passes of this length is between two times.
    #[must_use]
    pub fn is_due(&self, pass: Duration, between: &Range<u64>) -> bool {
        let pass = clock::millis(pass).max(1);
        let [.., a, b, c, d, e, f, g, h] = self.attempt.0;
        let moment = u64::from_be_bytes([a, b, c, d, e, f, g, h]) % pass;
        let wait = (moment + (pass - between.start % pass)) % pass;
        between.start.saturating_add(wait) < between.end
    }

    /// Whether it is known to be bad, and could be written again.
    fn waits_for_replacement(&self) -> bool {
        self.object.is_damaged && self.info.is_kept_by(self.attempt)
    }

    async fn is_current(&self, store: &dyn MetadataStore) -> Result<bool, LogError> {
        let now = ledger_metadata::load(store, self.info.id).await?;
        let now = now.and_then(|info| info.offload);
        Ok(now.is_some_and(|now| now.is_stored() && now.attempt() == self.attempt))
    }
}

/// Reads an object, and a second time before it is called damaged or missing.
///
/// # Errors
/// When the store or metadata cannot be asked, or the place is not the right one: nothing is known
/// of the object then.
async fn examine(
    metadata: &dyn MetadataStore,
    (locations, pace): (&Locations, &Arc<Pace>),
    subject: &Subject,
) -> Result<Condition, LogError> {
    let place = subject.object.location;
    // A place of others may be gone, which is not this cluster's matter.
    if locations.is_foreign(place).await.map_err(of_store)? {
        return Ok(Condition::Passed);
    }
    let location = locations.get(place).await.map_err(of_store)?;
    let store = Paced::new(Arc::clone(&location.store), Arc::clone(pace));
    let mut found = read_once(&store, subject).await?;
    if found != Condition::Whole {
        check(&location).await?;
        found = read_once(&store, subject).await?;
    }
    match found {
        Condition::Whole => Ok(Condition::Whole),
        _ if !subject.is_current(metadata).await? => Ok(Condition::Passed),
        found => Ok(found),
    }
}

/// What a look at an object came to.
#[derive(Debug)]
pub enum Looked {
    /// The object is like this.
    Is(Condition),
    /// It, or its place, cannot be asked.
    Unreadable(LogError),
    /// Its place could not be asked before, and is not asked again.
    Away,
}

/// One look at many objects, which remembers the places that cannot be asked.
pub struct Looks<'a> {
    metadata: &'a dyn MetadataStore,
    locations: &'a Locations,
    pace: &'a Arc<Pace>,
    away: BTreeSet<u32>,
}

impl<'a> Looks<'a> {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(
        metadata: &'a dyn MetadataStore,
        locations: &'a Locations,
        pace: &'a Arc<Pace>,
    ) -> Looks<'a> {
        Looks {
            metadata,
            locations,
            pace,
            away: BTreeSet::new(),
        }
    }

    /// Examines an object.
    ///
    /// # Errors
    /// When metadata cannot be asked.
    pub async fn at(&mut self, subject: &Subject) -> Result<Looked, LogError> {
        let place = subject.object.location;
        if self.away.contains(&place) {
            return Ok(Looked::Away);
        }
        match examine(self.metadata, (self.locations, self.pace), subject).await {
            Err(error) if is_of_store(&error) => {
                if is_away(self.locations, place).await {
                    self.away.insert(place);
                }
                Ok(Looked::Unreadable(error))
            }
            condition => condition.map(Looked::Is),
        }
    }
}

/// Whether an error is about one object or its place: the others can be asked all the same.
fn is_of_store(error: &LogError) -> bool {
    matches!(
        error,
        LogError::Unavailable(_) | LogError::Invalid(_) | LogError::Damaged(_)
    )
}

/// Whether nothing can be said of any object of a place.
async fn is_away(locations: &Locations, place: u32) -> bool {
    match locations.get(place).await {
        Ok(location) => location.check().await.is_err(),
        Err(_) => true,
    }
}

/// A marker that cannot be read says nothing about objects.
async fn check(location: &Location) -> Result<(), LogError> {
    let checked = location.check().await;
    checked.map_err(|error| LogError::Unavailable(error.to_string()))
}

async fn read_once(store: &dyn ColdStore, subject: &Subject) -> Result<Condition, LogError> {
    let (name, info) = (&subject.object.name, &subject.info);
    let LedgerState::Closed(end) = info.state else {
        return Ok(Condition::Passed);
    };
    let expected = Expected {
        attempt: subject.attempt,
        ledger: info.id,
        token: info.token,
        last_entry: end.last_entry.unwrap_or(EntryId::FIRST),
        length: end.length,
    };
    let size = subject.object.size_bytes;
    let found = async {
        let now = store.size(name).await?;
        if now != size {
            let reason = format!("it has {now} bytes, not {size}");
            let name = name.clone();
            return Err(ColdError::Damaged { name, reason });
        }
        verify(store, name, size, Some(&expected), |_, _| {}).await
    };
    match found.await {
        Ok(tail) if tail.trailer.body_crc64 == subject.object.checksum => Ok(Condition::Whole),
        Ok(_) => Ok(Condition::Damaged("it is another object".to_owned())),
        Err(ColdError::NotFound(_)) => Ok(Condition::Missing),
        Err(ColdError::Damaged { reason, .. }) => Ok(Condition::Damaged(reason)),
        Err(error) => Err(of_store(error)),
    }
}

/// Examines the objects whose moment is between two times, of the ledgers that are this process'.
/// Writes those again that are not whole, where bookies have copies. What cannot be read is counted
/// and passed over, and so is what else is in a place that is away.
///
/// # Errors
/// When metadata cannot be asked: the same time is to be looked at again.
pub async fn scrub(
    ctx: &LogContext,
    tier: &ColdTier,
    (pass, between): (Duration, Range<u64>),
    is_mine: impl Fn(LedgerId) -> bool,
) -> Result<Scrubbed, LogError> {
    let mut pages = Pages::new(&*ctx.ledgers.store, keys::LEDGERS_PREFIX);
    let mut scrubbed = Scrubbed::default();
    let mut looks = Looks::new(&*ctx.ledgers.store, &tier.locations, &tier.scrub_pace);
    while let Some(page) = pages.next().await? {
        for stored in page {
            let Ok(Key::Ledger(ledger)) = stored.key.parse() else {
                continue;
            };
            // Records that cannot be read are the auditor's.
            let info = LedgerInfo::decode(ledger, &stored).ok();
            let subject = info.and_then(Subject::of);
            let is_due = |s: &Subject| {
                is_mine(ledger) && (s.is_due(pass, &between) || s.waits_for_replacement())
            };
            let Some(subject) = subject.filter(is_due) else {
                continue;
            };
            let done = match looks.at(&subject).await? {
                Looked::Is(condition) => act(ctx, tier, &subject, condition, &mut scrubbed).await,
                Looked::Unreadable(error) => Err(error),
                Looked::Away => {
                    scrubbed.unknown += 1;
                    continue;
                }
            };
            match done {
                Err(error) if is_of_store(&error) => {
                    scrubbed.unknown += 1;
                    let object = &subject.object.name;
                    tracing::warn!(%ledger, object, %error, "an object is not scrubbed");
                }
                done => done?,
            }
        }
    }
    Ok(scrubbed)
}

/// Counts what an object is like, and does what follows from it.
async fn act(
    ctx: &LogContext,
    tier: &ColdTier,
    subject: &Subject,
    condition: Condition,
    scrubbed: &mut Scrubbed,
) -> Result<(), LogError> {
    let reason = match condition {
        Condition::Passed => return Ok(()),
        Condition::Whole => None,
        Condition::Damaged(reason) => {
            ctx.metrics.found_bad_object("damaged");
            scrubbed.damaged += 1;
            Some(reason)
        }
        Condition::Missing => {
            ctx.metrics.found_bad_object("missing");
            scrubbed.missing += 1;
            Some("it is missing".to_owned())
        }
    };
    scrubbed.objects += 1;
    scrubbed.bytes += subject.object.size_bytes;
    ctx.metrics
        .scrubbed(subject.object.size_bytes, reason.is_none());
    let (ledger, object) = (subject.info.id, &subject.object.name);
    let is_kept = subject.info.is_kept_by(subject.attempt);
    let Some(reason) = reason else {
        if subject.object.is_damaged {
            // A person has brought it back.
            replacing::mark(&*ctx.ledgers.store, ledger, subject.attempt, false).await?;
        }
        return Ok(());
    };
    // Before anything else: the owner of the topic may be about to drop the copies, those too that
    // a re-import has brought back.
    let copies = subject.info.offload.as_ref().and_then(Offload::copies);
    let is_still_in_it = !copies.is_some_and(Copies::serve)
        || replacing::mark(&*ctx.ledgers.store, ledger, subject.attempt, true).await?;
    if !is_still_in_it {
        return Ok(());
    }
    tracing::error!(%ledger, object, reason, is_kept, "a scrub found a bad object");
    if !is_kept || !tier.locations.takes_objects() {
        return Ok(());
    }
    let origin = origin_of(tier, subject).await;
    let damaged = (&subject.info, subject.attempt);
    match replace_object(ctx, tier, damaged, &origin).await {
        Ok(()) => scrubbed.replaced += 1,
        // The next step, or a person: the error above was told, and copies stay.
        Err(error) => tracing::warn!(%ledger, %error, "bad object is not replaced"),
    }
    Ok(())
}

/// What the damaged object still says of its topic: nothing reads that but tools.
async fn origin_of(tier: &ColdTier, subject: &Subject) -> Origin {
    let tail = async {
        let location = tier.locations.get(subject.object.location).await?;
        let (name, size) = (&subject.object.name, subject.object.size_bytes);
        read_tail(&*location.store, name, size, None).await
    };
    match tail.await {
        Ok((tail, _)) => Origin {
            topic: tail.section.topic.clone(),
            incarnation: tail.section.incarnation.clone(),
        },
        Err(_) => Origin {
            topic: String::new(),
            incarnation: Bytes::new(),
        },
    }
}
