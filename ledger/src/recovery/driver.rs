//! Runs a [`Recovery`] against bookies and metadata until a ledger is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::Guard;
use aquifer_model::id::{BookieId, EntryId, LedgerId, TenantKey};
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest, StoredEntry,
};
use aquifer_runtime::clock;
use tokio::sync::mpsc;

use crate::context::LedgerContext;
use crate::deletion;
use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo, LedgerState};
use crate::marks::Mark;
use crate::reader::{self, Wanted, newest_whole};
use crate::recovery::machine::{
    FenceReply, Recovery, RecoveryAction, RecoveryEvent, RecoveryReadReply,
};
use crate::writer::machine::LedgerEnd;

/// Times that a rival recoverer may be ahead of us in one call.
const RIVALS_MAX: usize = 16;

/// Closes a ledger: adopts its end if it is closed, else fences it and finds its end (I3, I4).
///
/// # Errors
/// [`LedgerError::Undecided`] when too few bookies gave clear answers: nothing is changed but the
/// fence, and it may be tried again. [`LedgerError::Fenced`] when a guard does not hold.
pub async fn close_by_recovery(
    ctx: &Arc<LedgerContext>,
    ledger: LedgerId,
    guards: &[Guard],
) -> Result<(LedgerInfo, LedgerEnd), LedgerError> {
    let info = ledger_metadata::load_existing(&*ctx.store, ledger).await?;
    close_known(ctx, info, guards).await
}

/// The same for a ledger whose record the caller has just read.
pub async fn close_known(
    ctx: &Arc<LedgerContext>,
    mut info: LedgerInfo,
    guards: &[Guard],
) -> Result<(LedgerInfo, LedgerEnd), LedgerError> {
    let ledger = info.id;
    let started = ctx.clock.monotonic();
    let mut rival = MetadataError::Unavailable("another recovery is in progress".to_owned());
    for _ in 0..RIVALS_MAX {
        if let LedgerState::Closed(end) = info.state {
            return Ok((info, end));
        }
        info.state = LedgerState::InRecovery;
        info.recovery_epoch += 1;
        match claim_and_recover(ctx, &mut info, guards).await {
            // Without an outcome the record says how far it came.
            Err(LedgerError::Metadata(
                error @ (MetadataError::Conflict { .. } | MetadataError::UnknownOutcome(_)),
            )) => {
                rival = error;
                clock::sleep(ctx.rng.jitter(ctx.settings.retry_backoff_min)).await;
                info = ledger_metadata::load_existing(&*ctx.store, ledger).await?;
            }
            Ok(end) => {
                let seconds = (ctx.clock.monotonic() - started).as_secs_f64();
                ctx.metrics.recoveries.add(1, &[]);
                ctx.metrics.recovery_seconds.record(seconds, &[]);
                tracing::info!(
                    ledger = ledger.0,
                    last_entry = end.last_entry.map(|entry| entry.0),
                    "ledger recovered and closed"
                );
                return Ok((info, end));
            }
            Err(error) => return Err(error),
        }
    }
    Err(rival.into())
}

async fn claim_and_recover(
    ctx: &Arc<LedgerContext>,
    info: &mut LedgerInfo,
    guards: &[Guard],
) -> Result<LedgerEnd, LedgerError> {
    ledger_metadata::replace(&*ctx.store, info, guards).await?;
    let without = deletion::named(&*ctx.store, info.id).await?;
    let Found {
        fragments,
        last_entry,
        length,
        damaged,
    } = Run::new(ctx, info, without).run().await?;
    let length = match (last_entry, length) {
        (None, _) => 0,
        (Some(_), Some(length)) => length,
        (Some(last), None) => length_up_to(ctx, info, last).await?,
    };
    if damaged > 0 {
        tracing::error!(
            ledger = info.id.0,
            last_entry = last_entry.map(|entry| entry.0),
            damaged,
            "the end of a ledger is damaged in every copy: it stays part of the ledger, as a gap"
        );
    }
    let end = LedgerEnd { last_entry, length };
    // Only now: until the ledger is closed, recoveries read what the writer's ensemble has.
    info.fragments.extend(fragments);
    info.state = LedgerState::Closed(end);
    let doubted = doubted_after_recovery(ctx, info, end);
    ledger_metadata::close(&*ctx.store, info, guards, doubted.as_ref()).await?;
    Ok(end)
}

/// Bytes of a ledger up to an entry, or up to one before it where that cannot be read any more.
async fn length_up_to(
    ctx: &Arc<LedgerContext>,
    info: &LedgerInfo,
    last: EntryId,
) -> Result<u64, LedgerError> {
    let found = newest_whole(last, |entry| length_at(ctx, info, entry)).await?;
    Ok(found.map_or(0, |(_, length)| length))
}

/// Bytes of a ledger up to an entry; `None` where it is damaged in every copy.
async fn length_at(
    ctx: &Arc<LedgerContext>,
    info: &LedgerInfo,
    entry: EntryId,
) -> Result<Option<u64>, LedgerError> {
    match reader::read_range(ctx, info, Wanted::one(entry)).await {
        Ok(stored) => Ok(Some(stored[0].ledger_length)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// It is no longer known which bookies the former writer has waited for: where an acknowledged
/// entry need not be at all of its places, each of them is asked what it has (H16).
///
/// `marks_max` does not count these, because a close without its mark would forget what is
/// incomplete: after the crash of an owner of thousands of topics there are as many. They are
/// bounded all the same. A ledger has one mark, which is smaller than its record and written with
/// it; only ledgers that were open leave one, which is about one a topic; it goes when its copies
/// were looked at.
/// While a bookie that it names is away it waits, and the auditor needs no room to add that the
/// bookie is lost.
fn doubted_after_recovery(ctx: &LedgerContext, info: &LedgerInfo, end: LedgerEnd) -> Option<Mark> {
    let may_be_incomplete = info.quorum.ack() < info.quorum.write() && end.last_entry.is_some();
    may_be_incomplete.then(|| {
        let now_ms = ctx.clock.wall_ms();
        let reason = "recovered: copies may be missing";
        let all = info.duties().bookies().into_iter();
        let mark = Mark::new(info.id, &info.home, reason, now_ms);
        mark.incomplete(all.map(|bookie| (bookie, EntryId::FIRST)))
    })
}

/// A request in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Fence(usize),
    Read(usize, EntryId),
    Write(usize, BookieId, EntryId),
}

/// Where the ledger ends.
struct Found {
    fragments: BTreeMap<EntryId, Vec<BookieId>>,
    last_entry: Option<EntryId>,
    length: Option<u64>,
    damaged: u64,
}

type Answer = (Asked, BookieResult<OrderedReply>);

struct Run<'a> {
    ctx: &'a Arc<LedgerContext>,
    info: &'a LedgerInfo,
    /// Where write-backs go.
    members: Vec<BookieId>,
    /// Where they must not go.
    without: Vec<BookieId>,
    machine: Recovery,
    actions: Vec<RecoveryAction>,
    answers: mpsc::Receiver<Answer>,
    answer: mpsc::Sender<Answer>,
    outstanding: BTreeSet<Asked>,
    found: BTreeMap<EntryId, StoredEntry>,
    trouble: Option<BookieError>,
}

impl<'a> Run<'a> {
    fn new(ctx: &'a Arc<LedgerContext>, info: &'a LedgerInfo, without: Vec<BookieId>) -> Run<'a> {
        let (floor, members) = info.last_fragment();
        let window = ctx.settings.recovery_window_entries.max(1);
        // Space for every request that can be in flight: a read and a write of each entry of the
        // window and of those being written behind it, and the fences.
        let room =
            info.quorum.ensemble() * (1 + 4 * usize::try_from(window).unwrap_or(usize::MAX / 1024));
        let (answer, answers) = mpsc::channel(room);
        let (machine, actions) = Recovery::start(info.quorum, members.clone(), floor, window);
        Run {
            ctx,
            info,
            members,
            without,
            machine,
            actions,
            answers,
            answer,
            outstanding: BTreeSet::new(),
            found: BTreeMap::new(),
            trouble: None,
        }
    }

    async fn run(mut self) -> Result<Found, LedgerError> {
        loop {
            for action in std::mem::take(&mut self.actions) {
                match action {
                    RecoveryAction::Close {
                        fragments,
                        last_entry,
                        length,
                        damaged,
                    } => {
                        return Ok(Found {
                            fragments,
                            last_entry,
                            length,
                            damaged,
                        });
                    }
                    RecoveryAction::Abort => {
                        let cause = self.trouble.take().unwrap_or(BookieError::Timeout);
                        return Err(LedgerError::Undecided(cause));
                    }
                    RecoveryAction::Fence { position, bookie } => {
                        self.ask(Asked::Fence(position), bookie);
                    }
                    RecoveryAction::Read {
                        position,
                        bookie,
                        entry,
                    } => self.ask(Asked::Read(position, entry), bookie),
                    RecoveryAction::Write {
                        position,
                        bookie,
                        entry,
                    } => self.ask(Asked::Write(position, bookie, entry), bookie),
                    RecoveryAction::Replace { failed } => self.replace(&failed),
                }
            }
            if !self.actions.is_empty() {
                continue;
            }
            let next = clock::timeout(self.ctx.settings.request_timeout, self.answers.recv());
            match next.await {
                Ok(Some((asked, result))) => {
                    if self.outstanding.remove(&asked) {
                        self.take(asked, result);
                    }
                }
                // After this long a silence, a bookie that has not answered has failed.
                Ok(None) | Err(_) => {
                    for asked in std::mem::take(&mut self.outstanding) {
                        self.take(asked, Err(BookieError::Timeout));
                    }
                }
            }
            let machine = &self.machine;
            self.found.retain(|entry, _| machine.needs(*entry));
        }
    }

    /// Looks for other bookies that take write-backs; metadata learns of them with the close.
    fn replace(&mut self, failed: &[usize]) {
        let (bookies, settings) = (&self.ctx.bookies, &self.ctx.settings);
        for &position in failed {
            bookies.quarantine(self.members[position], settings.quarantine);
        }
        let chosen = bookies.replacements_without(
            self.info.quorum,
            settings.zones_min,
            &self.members,
            failed,
            &self.without,
            &*self.ctx.rng,
        );
        let event = match chosen {
            Ok(members) => {
                self.members.clone_from(&members);
                RecoveryEvent::Replaced { members }
            }
            Err(error) => {
                tracing::warn!(ledger = self.info.id.0, %error, "no bookie can replace one that failed in recovery");
                RecoveryEvent::ReplaceFailed
            }
        };
        self.machine.on(event, &mut self.actions);
    }

    fn ask(&mut self, asked: Asked, bookie: BookieId) {
        let operation = match asked {
            Asked::Fence(_) => OrderedOperation::Fence,
            Asked::Read(_, entry) => OrderedOperation::RecoveryRead(entry),
            Asked::Write(_, _, entry) => {
                let Some(stored) = self.found.get(&entry) else {
                    return;
                };
                OrderedOperation::Add(stored.clone().into_recovery_add())
            }
        };
        let request = OrderedRequest {
            ledger: self.info.id,
            token: self.info.token,
            tenant: TenantKey::of_home(&self.info.home),
            operation,
        };
        let answer = self.answer.clone();
        self.outstanding.insert(asked);
        self.ctx.transport.submit(
            bookie,
            request,
            // A full or closed channel means that this answer is no longer waited for, or that
            // the silence timeout will speak for it.
            Box::new(move |result| drop(answer.try_send((asked, result)))),
        );
    }

    fn take(&mut self, asked: Asked, result: BookieResult<OrderedReply>) {
        let event = match asked {
            Asked::Fence(position) => RecoveryEvent::Fence {
                position,
                reply: FenceReply::of(&self.note(result)),
            },
            Asked::Read(position, entry) => RecoveryEvent::Read {
                position,
                entry,
                reply: self.read_reply(entry, result),
            },
            Asked::Write(position, bookie, entry) => RecoveryEvent::Write {
                position,
                bookie,
                entry,
                stored: self.note(result).is_ok(),
            },
        };
        self.machine.on(event, &mut self.actions);
    }

    fn read_reply(
        &mut self,
        entry: EntryId,
        result: BookieResult<OrderedReply>,
    ) -> RecoveryReadReply {
        let result = self.note(result);
        let reply = RecoveryReadReply::of(self.info.id, entry, &result);
        match (reply, result) {
            (RecoveryReadReply::Found { .. }, Ok(OrderedReply::Entry(stored))) => {
                self.found.entry(entry).or_insert(stored);
            }
            (RecoveryReadReply::Unknown, Ok(_)) => {
                self.ctx.metrics.digest_failures.add(1, &[]);
                self.trouble
                    .get_or_insert_with(|| BookieError::Digest(format!("entry {entry}")));
            }
            _ => {}
        }
        reply
    }

    /// Remembers why a bookie could not help. Limbo is the reason only where no other bookie may
    /// still tell: one that did not answer is asked again.
    fn note(&mut self, result: BookieResult<OrderedReply>) -> BookieResult<OrderedReply> {
        if let Err(error) = &result {
            let says_what_it_has = matches!(
                error,
                BookieError::NoSuchEntry
                    | BookieError::NoSuchLedger
                    | BookieError::Digest(_)
                    | BookieError::EndHidden(_)
            );
            if !says_what_it_has && matches!(self.trouble, None | Some(BookieError::Limbo)) {
                self.trouble = Some(error.clone());
            }
        }
        result
    }
}
