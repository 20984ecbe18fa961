//! Deletion of ledgers from bookies, on positive intents only.
//!
//! An intent (`g/ID`) names the bookies that are to delete a ledger and notes which of them have. A
//! bookie that is away when a ledger is deleted finds the intent when it returns; a decommissioned
//! bookie is not waited for. Invariants:
//! - A bookie is counted only after its tombstone is durable in its journal (H15).
//! - The ledger's record goes with the intent, in one transaction, after every bookie is counted:
//!   as long as a bookie may still hold entries, something says that they are to go.
//! - An intent for single copies leaves the ledger's record in place but rewrites it, when it
//!   begins and when it ends, so that a repair that counts on such a copy notices.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::scan::{self, Pages};
use aquifer_metadata::store::{
    Expect, Guard, MetadataStore, Operation, Revision, Transaction, Until, Versioned,
};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, CreationToken, LedgerId, TenantKey};
use aquifer_model::storage::{BookieError, OrderedOperation, OrderedRequest};
use aquifer_proto::v1;
use aquifer_runtime::clock;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::context::LedgerContext;
use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo};
use crate::objects;
use crate::offload::{Copies, Offload, OffloadStep};

const NO_TOKEN: CreationToken = CreationToken([0; 16]);

/// An intent as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The ledger.
    pub ledger: LedgerId,
    pub(crate) token: CreationToken,
    pub(crate) bookies: BTreeSet<BookieId>,
    pub(crate) acknowledged: BTreeSet<BookieId>,
    pub(crate) home: String,
    /// Only the copies of the named bookies go.
    pub(crate) copies_only: bool,
    revision: Revision,
}

/// What became of an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is carried out, and gone.
    Done,
    /// This many bookies have not acknowledged yet.
    Waiting(usize),
}

impl Intent {
    /// The intent to delete a ledger everywhere.
    #[must_use]
    pub fn of(info: &LedgerInfo) -> Intent {
        Intent {
            ledger: info.id,
            token: info.token,
            bookies: info.bookies(),
            acknowledged: BTreeSet::new(),
            home: info.home.clone(),
            copies_only: false,
            revision: Revision(0),
        }
    }

    /// The intent that one bookie deletes what it has of a ledger, which lives on, or which has
    /// no record.
    #[must_use]
    pub fn of_copy(
        ledger: LedgerId,
        token: CreationToken,
        bookie: BookieId,
        info: Option<&LedgerInfo>,
    ) -> Intent {
        Intent {
            ledger,
            token,
            bookies: BTreeSet::from([bookie]),
            acknowledged: BTreeSet::new(),
            home: info.map(|info| info.home.clone()).unwrap_or_default(),
            copies_only: info.is_some(),
            revision: Revision(0),
        }
    }

    /// The intent that every bookie deletes what it has of a ledger that lives on in an object.
    #[must_use]
    pub(crate) fn of_copies(info: &LedgerInfo) -> Intent {
        Intent {
            copies_only: true,
            ..Intent::of(info)
        }
    }

    /// The change that writes it.
    #[must_use]
    pub fn put(&self, expect: Expect) -> Operation {
        Operation::Put {
            key: keys::deletion(self.ledger),
            value: self.value(),
            expect,
        }
    }

    /// The bytes that are stored.
    #[must_use]
    pub fn value(&self) -> Bytes {
        let ids = |set: &BTreeSet<BookieId>| -> Vec<Bytes> {
            set.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect()
        };
        record::encode(v1::DeletionIntent {
            ledger_id: self.ledger.0,
            bookies: ids(&self.bookies),
            acknowledged: ids(&self.acknowledged),
            creation_token: Bytes::copy_from_slice(&self.token.0),
            home: self.home.clone(),
            copies_only: self.copies_only,
        })
    }

    /// Reads a stored intent.
    ///
    /// # Errors
    /// [`LedgerError::BadRecord`] when it is damaged.
    pub fn decode(stored: &Versioned) -> Result<Intent, LedgerError> {
        let intent: v1::DeletionIntent = record::decode(stored)?;
        let bad = |what: &str| {
            LedgerError::BadRecord(intent.ledger_id, format!("its deletion intent: {what}"))
        };
        if keys::deletion(LedgerId(intent.ledger_id)) != stored.key {
            return Err(bad("it names another ledger than its key"));
        }
        let ids = |list: &[Bytes]| -> Result<BTreeSet<BookieId>, LedgerError> {
            let ids = list.iter().map(|id| BookieId::try_from(id.as_ref()));
            let ids: Result<_, _> = ids.collect();
            ids.map_err(|_| bad("a bookie id is malformed"))
        };
        Ok(Intent {
            ledger: LedgerId(intent.ledger_id),
            token: match intent.creation_token.as_ref() {
                // Written by an earlier version: the ledger's record has it.
                [] => NO_TOKEN,
                token => CreationToken::try_from(token)
                    .map_err(|_| bad("its creation token is malformed"))?,
            },
            bookies: ids(&intent.bookies)?,
            acknowledged: ids(&intent.acknowledged)?,
            home: intent.home.clone(),
            copies_only: intent.copies_only,
            revision: stored.revision,
        })
    }

    /// Whether a bookie is to delete what it has, or has just done so.
    #[must_use]
    pub fn names(&self, bookie: BookieId) -> bool {
        self.bookies.contains(&bookie)
    }

    /// What a change expects that counts on the intent as it was read.
    #[must_use]
    pub fn expect(&self) -> Expect {
        Expect::Revision(self.revision)
    }

    /// Whether it is about the ledger of that record: with another token it is about one that had
    /// the same id before (H14).
    #[must_use]
    pub fn is_of(&self, info: &LedgerInfo) -> bool {
        self.token == NO_TOKEN || self.token == info.token
    }

    /// Whether it is about all of the ledger of that record. One without a home was written where
    /// there was no record: one that is there by now was restored since, and stays.
    #[must_use]
    pub fn deletes(&self, info: &LedgerInfo) -> bool {
        !self.copies_only && !self.home.is_empty() && self.is_of(info)
    }

    /// Makes it ask the bookies of an earlier intent too.
    pub fn add_bookies_of(&mut self, earlier: &Intent) {
        self.bookies.extend(&earlier.bookies);
    }

    /// The bookies without which it does not end: those that have not acknowledged, but for those
    /// that are decommissioned.
    ///
    /// # Errors
    /// When metadata cannot be read.
    pub async fn awaited(&self, store: &dyn MetadataStore) -> Result<Vec<BookieId>, LedgerError> {
        let mut awaited = Vec::new();
        for bookie in self.waiting() {
            if !is_decommissioned(store, bookie).await? {
                awaited.push(bookie);
            }
        }
        Ok(awaited)
    }

    fn waiting(&self) -> impl Iterator<Item = BookieId> + '_ {
        self.bookies.difference(&self.acknowledged).copied()
    }
}

/// Reads a ledger's intent.
pub async fn load(
    store: &dyn MetadataStore,
    ledger: LedgerId,
) -> Result<Option<Intent>, LedgerError> {
    let stored = store.get(&keys::deletion(ledger)).await?;
    stored.map(|stored| Intent::decode(&stored)).transpose()
}

/// The bookies that are to delete what they have of a ledger: nothing of it is placed there. An
/// intent that is written later changes the ledger's record, so that a change which was decided
/// without it conflicts.
///
/// # Errors
/// When the intent cannot be read, `NewerFormat` included: this build cannot tell which bookies it
/// names, and another build may carry it out.
pub(crate) async fn named(
    store: &dyn MetadataStore,
    ledger: LedgerId,
) -> Result<Vec<BookieId>, LedgerError> {
    let intent = load(store, ledger).await?;
    Ok(intent.map_or_else(Vec::new, |intent| intent.bookies.into_iter().collect()))
}

/// The ledgers that are being deleted everywhere: they are not read, and their copies are not
/// needed. One whose intent cannot be read is not counted.
pub async fn going(store: &dyn MetadataStore) -> Result<BTreeSet<LedgerId>, LedgerError> {
    let take = |going: &mut BTreeSet<LedgerId>, item: &Versioned| {
        match Intent::decode(item) {
            // A ledger that had no record then has another one of the same id by now, if any (H14).
            Ok(intent) if intent.copies_only || intent.home.is_empty() => {}
            Ok(intent) => {
                going.insert(intent.ledger);
            }
            Err(error) => {
                tracing::error!(key = item.key, %error, "a deletion intent is unreadable");
            }
        }
        Ok::<(), LedgerError>(())
    };
    let (going, _) = scan::each(store, keys::DELETIONS_PREFIX, BTreeSet::new, take).await?;
    Ok(going)
}

/// Ends the intents that wait only for bookies that are gone for good: the other bookies that were
/// named have acknowledged already, and do not look at them any more. Returns how many they were.
pub async fn finish_without(
    store: &dyn MetadataStore,
    gone: impl Fn(BookieId) -> bool,
) -> Result<usize, LedgerError> {
    let take = |left: &mut Vec<LedgerId>, item: &Versioned| {
        if let Ok(intent) = Intent::decode(item)
            && intent.waiting().all(&gone)
        {
            left.push(intent.ledger);
        }
        Ok::<(), LedgerError>(())
    };
    let (left, _) = scan::each(store, keys::DELETIONS_PREFIX, Vec::new, take).await?;
    let mut finished = 0;
    for ledger in left {
        match acknowledge(store, ledger, &BTreeSet::new()).await {
            Ok(progress) => finished += usize::from(progress == Progress::Done),
            Err(error) => {
                tracing::warn!(%ledger, %error, "a deletion that waits for no bookie does not end");
            }
        }
    }
    Ok(finished)
}

/// Writes an intent for single copies; the ledger's record, if there is one, is rewritten over
/// the revision that was judged. `false` when it, or an intent of another, got in between.
pub async fn begin_copy(
    store: &dyn MetadataStore,
    intent: &Intent,
    judged: Option<&LedgerInfo>,
) -> Result<bool, LedgerError> {
    let mut guards = Vec::new();
    let mut operations = vec![intent.put(Expect::Absent)];
    match judged {
        Some(info) => operations.push(info.put(Expect::Revision(info.revision))),
        None => guards.push(Guard {
            key: keys::ledger(intent.ledger),
            expect: Expect::Absent,
        }),
    }
    let transaction = Transaction {
        partition: intent.home.clone(),
        guards,
        operations,
    };
    match store.commit_until(transaction, Until::Known).await {
        Ok(_) => Ok(true),
        Err(MetadataError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Counts bookies that have deleted their copies, durably; ends the intent after the last.
pub(crate) async fn acknowledge(
    store: &dyn MetadataStore,
    ledger: LedgerId,
    bookies: &BTreeSet<BookieId>,
) -> Result<Progress, LedgerError> {
    let count = |stored: Option<Versioned>| async move {
        let Some(stored) = stored else {
            return Ok(Change::none(Progress::Done));
        };
        let mut intent = Intent::decode(&stored)?;
        let before = intent.acknowledged.len();
        let named = bookies.intersection(&intent.bookies).copied();
        intent.acknowledged.extend(named.collect::<Vec<_>>());
        let waiting = intent.awaited(store).await?.len();
        let progress = Progress::Waiting(waiting);
        Ok(match waiting {
            0 => Change::delete(&intent.home, Progress::Done).with(end(store, &intent).await?),
            _ if intent.acknowledged.len() == before => Change::none(progress),
            _ => Change::put(&intent.home, intent.value(), progress),
        })
    };
    let updated = store.update(&keys::deletion(ledger), &[], count).await;
    let updated = updated.map_err(UpdateError::<LedgerError>::flatten)?;
    Ok(updated.answer)
}

/// What goes with an intent that is carried out.
async fn end(store: &dyn MetadataStore, intent: &Intent) -> Result<Vec<Operation>, LedgerError> {
    let mut operations = Vec::new();
    let Some(info) = ledger_metadata::load(store, intent.ledger).await? else {
        if !intent.copies_only {
            operations.push(forget_mark(intent.ledger));
        }
        return Ok(operations);
    };
    let as_it_is = Expect::Revision(info.revision);
    if intent.deletes(&info) {
        operations.push(Operation::Delete {
            key: keys::ledger(intent.ledger),
            expect: as_it_is,
        });
        operations.push(forget_mark(intent.ledger));
        operations.extend(objects::condemned(store, &info).await?);
    } else if intent.copies_only {
        operations.push(without_copies(info, intent)?.put(as_it_is));
    }
    Ok(operations)
}

/// The record of a ledger after an intent for copies of it: the last of those that were to go are
/// gone.
fn without_copies(info: LedgerInfo, intent: &Intent) -> Result<LedgerInfo, LedgerError> {
    let attempt = match &info.offload {
        Some(Offload::Stored {
            attempt,
            copies: Copies::Going,
            ..
        }) if info.bookies().is_subset(&intent.bookies) => *attempt,
        _ => return Ok(info),
    };
    let next = info.offloaded(attempt, &OffloadStep::CopiesGone)?;
    Ok(next.unwrap_or(info))
}

/// A mark of a ledger that is no more says nothing.
fn forget_mark(ledger: LedgerId) -> Operation {
    Operation::Delete {
        key: keys::under_replicated(ledger),
        expect: Expect::Any,
    }
}

async fn is_decommissioned(
    store: &dyn MetadataStore,
    bookie: BookieId,
) -> Result<bool, LedgerError> {
    let Some(stored) = store.get(&keys::cookie(bookie)).await? else {
        // Nothing says that it is gone for good.
        return Ok(false);
    };
    let cookie: v1::CookieRecord = record::decode(&stored)?;
    Ok(cookie.decommissioned_ms > 0)
}

/// Asks every bookie of a ledger's intent that has not acknowledged, and counts those that do.
pub async fn carry_out(
    ctx: &Arc<LedgerContext>,
    ledger: LedgerId,
) -> Result<Progress, LedgerError> {
    let Some(intent) = load(&*ctx.store, ledger).await? else {
        return Ok(Progress::Done);
    };
    let asked: Vec<BookieId> = intent.waiting().collect();
    let (progress, _) = carry_out_on(ctx, intent, &asked).await?;
    Ok(progress)
}

/// Asks these bookies of an intent; returns its progress and how many of them have deleted.
async fn carry_out_on(
    ctx: &Arc<LedgerContext>,
    mut intent: Intent,
    bookies: &[BookieId],
) -> Result<(Progress, usize), LedgerError> {
    if intent.token == NO_TOKEN
        && let Some(info) = ledger_metadata::load(&*ctx.store, intent.ledger).await?
    {
        intent.token = info.token;
    }
    let answers: Vec<_> = bookies
        .iter()
        .map(|bookie| (*bookie, ask_to_delete(ctx, *bookie, &intent)))
        .collect();
    let mut deleted = BTreeSet::new();
    for (bookie, answer) in answers {
        match clock::timeout(ctx.settings.request_timeout, answer).await {
            // With another token it is another ledger, which is not ours to delete (H14).
            Ok(Ok(
                Ok(()) | Err(BookieError::NoSuchLedger | BookieError::Deleted | BookieError::Token),
            )) => {
                deleted.insert(bookie);
            }
            Ok(Ok(Err(error))) => {
                tracing::debug!(%bookie, ledger = intent.ledger.0, %error, "copy is not deleted yet");
            }
            Ok(Err(_)) | Err(_) => {
                tracing::debug!(%bookie, ledger = intent.ledger.0, "no answer to a deletion");
            }
        }
    }
    let progress = acknowledge(&*ctx.store, intent.ledger, &deleted).await?;
    if progress == Progress::Done && !intent.copies_only {
        ctx.metrics.ledgers_deleted.add(1, &[]);
    }
    Ok((progress, deleted.len()))
}

fn ask_to_delete(
    ctx: &LedgerContext,
    bookie: BookieId,
    intent: &Intent,
) -> oneshot::Receiver<Result<(), BookieError>> {
    let (tell, answer) = oneshot::channel();
    let request = OrderedRequest {
        ledger: intent.ledger,
        token: intent.token,
        tenant: TenantKey::of_home(&intent.home),
        operation: OrderedOperation::Delete,
    };
    ctx.transport.submit(
        bookie,
        request,
        Box::new(move |result| drop(tell.send(result.map(drop)))),
    );
    answer
}

/// Carries out every intent, as far as bookies answer: after a crash of the process that had begun.
/// Returns how many are done for good.
///
/// # Errors
/// When intents cannot be listed.
pub async fn sweep_intents(ctx: &Arc<LedgerContext>) -> Result<usize, LedgerError> {
    sweep(ctx, None).await
}

/// Carries out the intents that name one bookie, on that bookie alone: what it does when it
/// returns, and now and then. Returns how many ledgers it acknowledged.
///
/// # Errors
/// When intents cannot be listed.
pub async fn sweep_intents_of(
    ctx: &Arc<LedgerContext>,
    bookie: BookieId,
) -> Result<usize, LedgerError> {
    sweep(ctx, Some(bookie)).await
}

async fn sweep(ctx: &Arc<LedgerContext>, only: Option<BookieId>) -> Result<usize, LedgerError> {
    let mut pages = Pages::new(&*ctx.store, keys::DELETIONS_PREFIX);
    let mut done = 0;
    while let Some(items) = pages.next().await? {
        for item in &items {
            let intent = match Intent::decode(item) {
                Ok(intent) => intent,
                Err(error) => {
                    tracing::error!(key = item.key, %error, "a deletion intent is unreadable");
                    continue;
                }
            };
            let waiting: Vec<BookieId> = intent
                .waiting()
                .filter(|bookie| only.is_none_or(|only| only == *bookie))
                .collect();
            if waiting.is_empty() && only.is_some() {
                continue;
            }
            let ledger = intent.ledger;
            match carry_out_on(ctx, intent, &waiting).await {
                Ok((progress, deleted)) => {
                    done += match only {
                        Some(_) => deleted,
                        None => usize::from(progress == Progress::Done),
                    };
                }
                Err(error) => {
                    tracing::warn!(ledger = ledger.0, %error, "ledger is not deleted yet");
                }
            }
        }
    }
    Ok(done)
}
