//! Copying entries between bookies at a bounded rate, and seeing what a bookie holds.
//!
//! Invariants:
//! - Only entries whose digest matches are copied, and only a durable answer counts (I5).
//! - A negative answer for an entry that the ledger has means that it is missing there, never that
//!   it does not exist (H16).

use std::collections::BTreeSet;

use aquifer_ledger::duties::EntryRange;
use aquifer_ledger::error::{LedgerError, lacks_entry};
use aquifer_ledger::ledger_metadata::{LedgerInfo, LedgerState};
use aquifer_ledger::members::Members;
use aquifer_model::id::{BookieId, EntryId, TenantKey};
use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedRequest, Presence, PresenceRange,
    ReadRange, StoredEntry,
};
use aquifer_runtime::clock;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::context::RepairContext;
use crate::pace::Pace;

/// Entry bytes of one ledger in flight at once, or one entry that is larger. What all ledgers of
/// a worker have in flight together is bounded by its [`Pace`].
const BATCH_BYTES: usize = 1 << 20;
/// Entries of one ledger in flight at once.
const BATCH_ENTRIES: usize = 1_000;
/// Resends to an overloaded bookie without progress.
const OVERLOADED_MAX: usize = 200;

const _: () = assert!(BATCH_BYTES < ENTRY_BYTES_MAX);

/// A range of entries, both ends included.
pub(crate) type Run = EntryRange;

/// Why a copy did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Every replica said that it has not, or has damaged, an entry that the ledger has, or is
    /// lost.
    Missing { entry: EntryId, last: BookieError },
    /// Bookies did not answer; another attempt may succeed.
    Blocked(String),
    /// The bookie that was to get the entries refuses them for good.
    Refused(BookieError),
    /// The bookie that was to get the entries does not answer.
    Silent(String),
    /// The ledger or its record stands in the way.
    Ledger(LedgerError),
}

impl From<LedgerError> for Trouble {
    fn from(error: LedgerError) -> Trouble {
        Trouble::Ledger(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Missing { entry, last } => {
                write!(f, "no replica has entry {entry}: {last}")
            }
            Trouble::Blocked(why) | Trouble::Silent(why) => f.write_str(why),
            Trouble::Refused(error) => write!(f, "a bookie refused the copy: {error}"),
            Trouble::Ledger(error) => error.fmt(f),
        }
    }
}

/// How closely a copy is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// Whether the entries are there.
    Keys,
    /// Whether they are intact: every byte is read.
    Bytes,
}

/// Entries that no replica has, in order, among those that were to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Holes {
    pub(crate) runs: Vec<Run>,
    /// What was said of the first of them.
    why: Option<BookieError>,
}

impl Holes {
    fn add(&mut self, run: Run, why: BookieError) {
        push_gap(&mut self.runs, run);
        self.why.get_or_insert(why);
    }

    /// The first of them as an error, if there are any.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        match (self.runs.first(), &self.why) {
            (Some((entry, _)), Some(why)) => Err(Trouble::Missing {
                entry: *entry,
                last: why.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// Copies within one ledger.
pub(crate) struct Copier<'a> {
    ctx: &'a RepairContext,
    info: &'a LedgerInfo,
    members: &'a Members,
    /// Bookies that are lost, unless they are registered again: their silence is not waited for.
    lost: &'a BTreeSet<BookieId>,
    pace: &'a Pace,
    /// Those of them that were asked once and did not answer.
    silent: Mutex<BTreeSet<BookieId>>,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(
        ctx: &'a RepairContext,
        info: &'a LedgerInfo,
        members: &'a Members,
        lost: &'a BTreeSet<BookieId>,
        pace: &'a Pace,
    ) -> Copier<'a> {
        Copier {
            ctx,
            info,
            members,
            lost,
            pace,
            silent: Mutex::default(),
        }
    }

    /// The parts of `runs` that a bookie does not hold. With `prefix_only` everything behind the
    /// first gap counts as missing: for a copy that was interrupted.
    pub(crate) async fn gaps(
        &self,
        bookie: BookieId,
        runs: impl Iterator<Item = Run>,
        depth: Depth,
        prefix_only: bool,
    ) -> Result<Vec<Run>, Trouble> {
        let mut gaps = Vec::new();
        for (first, last) in runs {
            let mut next = first;
            while next <= last {
                if prefix_only && !gaps.is_empty() {
                    gaps.push((next, last));
                    break;
                }
                let found = match depth {
                    Depth::Keys => self.look(bookie, next, last).await?,
                    Depth::Bytes => self.read_through(bookie, next, last).await?,
                };
                for gap in found.gaps_from(next) {
                    push_gap(&mut gaps, gap);
                }
                self.pace.spend(self.ctx, found.bytes).await;
                next = found.until.next();
            }
        }
        Ok(gaps)
    }

    /// Asks which entries from `first` on a bookie has: their bytes are left to its scrubber.
    async fn look(
        &self,
        bookie: BookieId,
        first: EntryId,
        last: EntryId,
    ) -> Result<Presence, Trouble> {
        let range = PresenceRange {
            ledger: self.info.id,
            token: Some(self.info.token),
            first,
            last,
        };
        let has = self.ctx.ledgers.transport.has(bookie, range);
        let answer = clock::timeout(self.ctx.ledgers.settings.request_timeout, has).await;
        match answer.unwrap_or(Err(BookieError::Timeout)) {
            // Whatever it says, this comes to an end.
            Ok(found) if found.until >= first => Ok(found),
            Ok(_) => Ok(Presence::nothing_until(first)),
            Err(error) => nothing_after(&error, first, last)
                .ok_or_else(|| Trouble::Silent(format!("bookie {bookie}: {error}"))),
        }
    }

    /// Looks for an unbroken sequence of intact entries from `first` on. The bookie reads them
    /// whole.
    async fn read_through(
        &self,
        bookie: BookieId,
        first: EntryId,
        last: EntryId,
    ) -> Result<Presence, Trouble> {
        let range = ReadRange {
            ledger: self.info.id,
            token: Some(self.info.token),
            first,
            last,
            bytes_max: BATCH_BYTES,
            entries_max: BATCH_ENTRIES,
            // The bookie verifies the whole entry all the same.
            prefix_bytes: Some(1),
        };
        match self.read(bookie, range).await {
            Ok(entries) => {
                let length = |entry: Option<&StoredEntry>| entry.map_or(0, |e| e.ledger_length);
                let end = entries.last().map_or(first, |entry| entry.entry);
                // Whether these are the right numbers is not checked: they only pace. How long the
                // first of them is they do not tell, unless it is the first of all.
                let before = match first {
                    EntryId::FIRST => 0,
                    _ => length(entries.first()),
                };
                Ok(Presence {
                    runs: vec![(first, end)],
                    until: end,
                    bytes: length(entries.last()).saturating_sub(before),
                })
            }
            Err(error) => nothing_after(&error, first, last)
                .ok_or_else(|| Trouble::Silent(format!("bookie {bookie}: {error}"))),
        }
    }

    /// Copies entries to a bookie from whichever replica has them. An entry that no replica has
    /// does not keep those behind it incomplete (I2): such entries are returned when everything
    /// else is copied.
    pub(crate) async fn copy(&self, runs: &[Run], to: BookieId) -> Result<Holes, Trouble> {
        let mut holes = Holes::default();
        for (first, last) in runs {
            let mut next = *first;
            while next <= *last {
                match self.copy_run((next, *last), to).await {
                    Err(Trouble::Missing { entry, last: why }) => {
                        let until = self.hole_until(entry, *last, &why);
                        holes.add((entry, until), why);
                        next = until.next();
                    }
                    copied => {
                        copied?;
                        break;
                    }
                }
            }
        }
        Ok(holes)
    }

    /// Which of these entries no replica has, without copying anything; `None` as soon as one has
    /// any.
    pub(crate) async fn lost_by_all(
        &self,
        runs: impl Iterator<Item = Run>,
    ) -> Result<Option<Holes>, Trouble> {
        let mut holes = Holes::default();
        for (first, last) in runs {
            let mut next = first;
            while next <= last {
                match self.fetch((next, next), None).await {
                    Ok(_) => return Ok(None),
                    // A disk may work again.
                    Err(Trouble::Missing {
                        last: BookieError::Io(_),
                        ..
                    }) => return Ok(None),
                    Err(Trouble::Missing { entry, last: why }) => {
                        let until = self.hole_until(entry, last, &why);
                        holes.add((entry, until), why);
                        next = until.next();
                    }
                    Err(trouble) => return Err(trouble),
                }
            }
        }
        Ok(Some(holes))
    }

    /// Where a hole ends that is known to begin at an entry: where all of the same bookies have
    /// nothing of the ledger, they have not the next entries either.
    fn hole_until(&self, entry: EntryId, last: EntryId, why: &BookieError) -> EntryId {
        let quorum = self.info.quorum;
        let everywhere = quorum.ensemble() == quorum.write();
        match why {
            BookieError::NoSuchLedger if everywhere => last,
            _ => entry,
        }
    }

    /// Whether a bookie is lost, and not merely silent.
    fn is_lost(&self, bookie: BookieId) -> bool {
        let named = self.lost.contains(&bookie) || self.members.is_leaving(bookie);
        named && !self.members.is_registered(bookie)
    }

    async fn copy_run(&self, (first, last): Run, to: BookieId) -> Result<(), Trouble> {
        let mut next = first;
        while next <= last {
            let mut in_flight = self.pace.reserve(self.batch_bytes_max()).await;
            let entries = self.fetch((next, last), Some(to)).await?;
            let Some(end) = entries.last().map(|entry| entry.entry) else {
                return Err(Trouble::Blocked("a read returned nothing".to_owned()));
            };
            let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
            in_flight.shrink_to(bytes);
            let metrics = &self.ctx.metrics;
            metrics.copied_entries.add(entries.len() as u64, &[]);
            metrics.copied_bytes.add(bytes as u64, &[]);
            self.store(entries, to).await?;
            drop(in_flight);
            self.pace.spend(self.ctx, bytes as u64).await;
            next = end.next();
        }
        Ok(())
    }

    /// What one read may bring: the largest entry, or all of the ledger where that is less, so that
    /// small ledgers do not wait for each other.
    fn batch_bytes_max(&self) -> usize {
        match self.info.state {
            LedgerState::Closed(end) => usize::try_from(end.length)
                .unwrap_or(ENTRY_BYTES_MAX)
                .min(ENTRY_BYTES_MAX),
            LedgerState::Open | LedgerState::InRecovery => ENTRY_BYTES_MAX,
        }
    }

    /// Consecutive intact entries from the first on, from any replica but one.
    async fn fetch(
        &self,
        (first, last): Run,
        not: Option<BookieId>,
    ) -> Result<Vec<StoredEntry>, Trouble> {
        let Some((bookies, fragment_last)) = self.info.duties().at(first) else {
            return Err(Trouble::Blocked("no bookie must have it".to_owned()));
        };
        let range = ReadRange {
            ledger: self.info.id,
            token: Some(self.info.token),
            first,
            last: fragment_last.map_or(last, |end| end.min(last)),
            bytes_max: BATCH_BYTES,
            entries_max: BATCH_ENTRIES,
            prefix_bytes: None,
        };
        let write_set = self.info.quorum.write_set(first.0);
        let mut sources: Vec<BookieId> = write_set.map(|position| bookies[position]).collect();
        sources.retain(|bookie| Some(*bookie) != not && !self.silent.lock().contains(bookie));
        // Those that are away may answer all the same, but are asked when no other bookie has it.
        sources.sort_by_key(|bookie| !self.members.is_registered(*bookie));
        // That nothing of the ledger is anywhere is said only when all say so.
        let mut missing = BookieError::NoSuchLedger;
        let (mut unclear, mut blocked) = (None, None);
        for bookie in sources {
            match self.read(bookie, range).await {
                Ok(entries) => return Ok(entries),
                Err(error) if has_nothing(&error) => {}
                Err(error) if lacks_entry(&error) => missing = error,
                // It has lost it, or cannot read it now: whatever is behind it is copied all the
                // same.
                Err(error @ (BookieError::Limbo | BookieError::Io(_))) => unclear = Some(error),
                // What a lost bookie had is lost as far as is known, and waiting for it would
                // keep incomplete what others have.
                Err(_) if self.is_lost(bookie) => {
                    self.silent.lock().insert(bookie);
                }
                Err(error) => blocked = Some(format!("bookie {bookie}: {error}")),
            }
        }
        Err(match blocked {
            Some(why) => Trouble::Blocked(why),
            None => Trouble::Missing {
                entry: first,
                last: unclear.unwrap_or(missing),
            },
        })
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<Vec<StoredEntry>> {
        let read = self.ctx.ledgers.transport.read(bookie, range);
        let batch = clock::timeout(self.ctx.ledgers.settings.request_timeout, read)
            .await
            .unwrap_or(Err(BookieError::Timeout))?;
        let mut entries = batch.entries;
        let good = entries
            .iter()
            .zip(range.first.0..=range.last.0)
            .take_while(|(entry, id)| {
                let intact = range.prefix_bytes.is_some() || entry.is_intact(range.ledger);
                entry.entry.0 == *id && intact
            })
            .count();
        if good == 0 {
            self.ctx.ledgers.metrics.digest_failures.add(1, &[]);
            return Err(BookieError::Digest(
                "what was sent is not intact".to_owned(),
            ));
        }
        entries.truncate(good);
        Ok(entries)
    }

    /// Stores entries on a bookie, durably, whether or not the ledger is fenced there.
    async fn store(&self, entries: Vec<StoredEntry>, to: BookieId) -> Result<(), Trouble> {
        let adds = entries.into_iter().map(StoredEntry::into_recovery_add);
        let mut left: Vec<AddEntry> = adds.collect();
        for _ in 0..OVERLOADED_MAX {
            let sent: Vec<_> = left
                .into_iter()
                .map(|add| (add.clone(), self.submit(add, to)))
                .collect();
            left = Vec::new();
            for (add, answer) in sent {
                let answer =
                    clock::timeout(self.ctx.ledgers.settings.request_timeout, answer).await;
                match answer {
                    Ok(Ok(Ok(()))) => {}
                    Ok(Ok(Err(BookieError::Overloaded))) => left.push(add),
                    Ok(Ok(Err(error))) if is_final(&error) => return Err(Trouble::Refused(error)),
                    Ok(Ok(Err(error))) => {
                        return Err(Trouble::Silent(format!("bookie {to}: {error}")));
                    }
                    Ok(Err(_)) | Err(_) => {
                        return Err(Trouble::Silent(format!("bookie {to} did not answer")));
                    }
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            let pause = self.ctx.ledgers.settings.overload_backoff;
            clock::sleep(self.ctx.ledgers.rng.jitter(pause)).await;
        }
        Err(Trouble::Silent(format!("bookie {to} is overloaded")))
    }

    fn submit(&self, add: AddEntry, to: BookieId) -> oneshot::Receiver<BookieResult<()>> {
        let (tell, answer) = oneshot::channel();
        let request = OrderedRequest {
            ledger: self.info.id,
            token: self.info.token,
            tenant: TenantKey::of_home(&self.info.home),
            operation: OrderedOperation::Add(add),
        };
        let reply = Box::new(move |result: BookieResult<_>| drop(tell.send(result.map(drop))));
        self.ctx.ledgers.transport.submit(to, request, reply);
        answer
    }
}

/// What an error says of what a bookie has from an entry on, if it says anything.
fn nothing_after(error: &BookieError, first: EntryId, last: EntryId) -> Option<Presence> {
    match error {
        _ if has_nothing(error) => Some(Presence::nothing_until(last)),
        BookieError::NoSuchEntry
        | BookieError::Digest(_)
        | BookieError::Limbo
        | BookieError::Io(_) => Some(Presence::nothing_until(first)),
        _ => None,
    }
}

fn push_gap(gaps: &mut Vec<Run>, gap: Run) {
    match gaps.last_mut() {
        Some(last) if last.1.next() == gap.0 => last.1 = gap.1,
        _ => gaps.push(gap),
    }
}

/// Whether an answer says that the replica has nothing of the ledger.
fn has_nothing(error: &BookieError) -> bool {
    matches!(
        error,
        BookieError::NoSuchLedger | BookieError::Deleted | BookieError::Token
    )
}

/// Whether the bookie will answer the same the next time.
fn is_final(error: &BookieError) -> bool {
    match error {
        BookieError::Deleted
        | BookieError::Token
        | BookieError::Conflict
        | BookieError::Digest(_)
        | BookieError::EndHidden(_)
        | BookieError::ReadOnly(_)
        | BookieError::Fenced
        | BookieError::Limbo
        | BookieError::Io(_)
        | BookieError::Invalid(_) => true,
        BookieError::NoSuchLedger
        | BookieError::NoSuchEntry
        | BookieError::Overloaded
        | BookieError::ShuttingDown
        | BookieError::Unreachable(_)
        | BookieError::Timeout => false,
    }
}
