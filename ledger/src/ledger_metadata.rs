//! Ledger records in metadata: creation, changes by compare-and-swap (I6), and ids that are never
//! used twice.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{
    Expect, Guard, MetadataStore, Operation, Revision, Transaction, Until, Versioned,
};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, CreationToken, EntryId, LEDGER_ID_MAX, LedgerId};
use aquifer_model::quorum::Quorum;
use aquifer_proto::v1;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::error::LedgerError;
use crate::marks::{self, Mark};
use crate::offload::Offload;
use crate::writer::machine::LedgerEnd;

/// Ids reserved at once; what a process does not use is lost, which 2^53 can afford.
const IDS_RESERVED: u64 = 256;

/// Where a ledger is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerState {
    /// Its writer adds entries.
    Open,
    /// A recovery looks for its end.
    InRecovery,
    /// It never changes again (I3).
    Closed(LedgerEnd),
}

/// A ledger's record, checked, with the revision it was read at.
#[derive(Debug, Clone)]
pub struct LedgerInfo {
    /// Its id.
    pub id: LedgerId,
    /// What bookies compare, so that an id that is issued twice is noticed (H14).
    pub token: CreationToken,
    /// E, Qw and Qa.
    pub quorum: Quorum,
    /// Where it is in its life.
    pub state: LedgerState,
    /// Members by position, by the first entry of each fragment; empty only when the ledger is
    /// offloaded and no bookie has a copy. What they must hold, [`LedgerInfo::duties`] says.
    pub fragments: BTreeMap<EntryId, Vec<BookieId>>,
    /// The metadata partition of the topic that owns it.
    pub home: String,
    /// Counts recoveries that began.
    pub recovery_epoch: u64,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// How far its offload into an object store is.
    pub offload: Option<Offload>,
    /// The revision at which the record was read; changes compare it (I6).
    pub revision: Revision,
}

impl LedgerInfo {
    /// First entry and members of the last fragment.
    #[must_use]
    pub fn last_fragment(&self) -> (EntryId, Vec<BookieId>) {
        self.fragments
            .last_key_value()
            .map(|(first, members)| (*first, members.clone()))
            .unwrap_or((EntryId::FIRST, Vec::new()))
    }

    /// Every bookie that may hold entries, whether or not it must: those that a deletion asks.
    #[must_use]
    pub fn bookies(&self) -> BTreeSet<BookieId> {
        self.fragments.values().flatten().copied().collect()
    }

    /// The change that writes this record.
    #[must_use]
    pub fn put(&self, expect: Expect) -> Operation {
        Operation::Put {
            key: keys::ledger(self.id),
            value: self.value(),
            expect,
        }
    }

    pub(crate) fn value(&self) -> Bytes {
        record::encode(self.to_record())
    }

    /// What is written down of it.
    #[must_use]
    pub fn to_record(&self) -> v1::LedgerRecord {
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (state, end) = match self.state {
            LedgerState::Open => (v1::LedgerState::Open, LedgerEnd::default()),
            LedgerState::InRecovery => (v1::LedgerState::InRecovery, LedgerEnd::default()),
            LedgerState::Closed(end) => (v1::LedgerState::Closed, end),
        };
        let fragment = |(first, members): (&EntryId, &Vec<BookieId>)| v1::Fragment {
            first_entry_id: first.0,
            bookies: members.iter().map(|id| id.0.to_vec().into()).collect(),
        };
        v1::LedgerRecord {
            ensemble: size(self.quorum.ensemble()),
            write_quorum: size(self.quorum.write()),
            ack_quorum: size(self.quorum.ack()),
            state: state.into(),
            fragments: self.fragments.iter().map(fragment).collect(),
            last_entry_id: end.last_entry.map(|entry| entry.0),
            length_bytes: end.length,
            creation_token: self.token.0.to_vec().into(),
            home: self.home.clone(),
            recovery_epoch: self.recovery_epoch,
            created_ms: self.created_ms,
            offload: self.offload.as_ref().map(Offload::to_record),
        }
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// [`LedgerError::BadRecord`] when it is damaged.
    pub fn decode(id: LedgerId, stored: &Versioned) -> Result<LedgerInfo, LedgerError> {
        LedgerInfo::of_record(id, record::decode(stored)?, stored.revision)
    }

    /// The ledger that a record describes, which was read at a revision.
    ///
    /// # Errors
    /// [`LedgerError::BadRecord`] when it is damaged.
    pub fn of_record(
        id: LedgerId,
        ledger: v1::LedgerRecord,
        revision: Revision,
    ) -> Result<LedgerInfo, LedgerError> {
        let bad = |reason: &str| LedgerError::BadRecord(id.0, reason.to_owned());
        let quorum = Quorum::new(ledger.ensemble, ledger.write_quorum, ledger.ack_quorum)
            .map_err(|error| bad(&error.to_string()))?;
        let state = match ledger.state() {
            v1::LedgerState::Open => LedgerState::Open,
            v1::LedgerState::InRecovery => LedgerState::InRecovery,
            v1::LedgerState::Closed => LedgerState::Closed(LedgerEnd {
                last_entry: ledger.last_entry_id.map(EntryId),
                length: ledger.length_bytes,
            }),
            v1::LedgerState::Unspecified => return Err(bad("it has no state")),
        };
        let mut fragments = BTreeMap::new();
        for fragment in &ledger.fragments {
            let members: Result<Vec<BookieId>, _> = fragment
                .bookies
                .iter()
                .map(|id| BookieId::try_from(id.as_ref()))
                .collect();
            let members = members.map_err(|_| bad("a bookie id is malformed"))?;
            if members.len() != quorum.ensemble() {
                return Err(bad("a fragment has not E members"));
            }
            // An ack quorum counts positions: one bookie at two of them would count twice (I1).
            if members.iter().collect::<BTreeSet<_>>().len() != members.len() {
                return Err(bad("a fragment names a bookie twice"));
            }
            let first = EntryId(fragment.first_entry_id);
            if fragments.insert(first, members).is_some() {
                return Err(bad("two fragments begin at the same entry"));
            }
        }
        let offload = ledger.offload.map(Offload::from_record).transpose();
        let offload = offload.map_err(bad)?;
        let closed = matches!(state, LedgerState::Closed(_));
        let copies_gone = match &offload {
            Some(_) if !closed => return Err(bad("it is offloaded and not closed")),
            Some(offload) => offload.copies_are_gone(),
            None => false,
        };
        let first = fragments.first_key_value().map(|(first, _)| first.0);
        match (first, copies_gone) {
            (None, true) | (Some(0), false) => {}
            (Some(_), true) => return Err(bad("its copies are gone and it has fragments")),
            (_, false) => return Err(bad("its fragments do not begin at entry 0")),
        }
        if ledger.last_entry_id == Some(u64::MAX) {
            return Err(bad("its last entry has no successor"));
        }
        Ok(LedgerInfo {
            id,
            token: CreationToken::try_from(ledger.creation_token.as_ref())
                .map_err(|_| bad("its creation token is malformed"))?,
            quorum,
            state,
            fragments,
            home: ledger.home,
            recovery_epoch: ledger.recovery_epoch,
            created_ms: ledger.created_ms,
            offload,
            revision,
        })
    }
}

/// Reads a ledger's record.
pub async fn load(
    store: &dyn MetadataStore,
    id: LedgerId,
) -> Result<Option<LedgerInfo>, LedgerError> {
    match store.get(&keys::ledger(id)).await? {
        Some(stored) => LedgerInfo::decode(id, &stored).map(Some),
        None => Ok(None),
    }
}

/// Reads the record of a ledger that must exist.
pub async fn load_existing(
    store: &dyn MetadataStore,
    id: LedgerId,
) -> Result<LedgerInfo, LedgerError> {
    load(store, id)
        .await?
        .ok_or_else(|| LedgerError::BadRecord(id.0, "the record is missing".to_owned()))
}

/// Writes a changed record over the revision that it was read at.
pub async fn replace(
    store: &dyn MetadataStore,
    info: &mut LedgerInfo,
    guards: &[Guard],
) -> Result<(), LedgerError> {
    replace_and(store, info, guards, Vec::new()).await
}

/// The same together with other changes in the ledger's partition.
pub async fn replace_and(
    store: &dyn MetadataStore,
    info: &mut LedgerInfo,
    guards: &[Guard],
    others: Vec<Operation>,
) -> Result<(), LedgerError> {
    let mut operations = vec![info.put(Expect::Revision(info.revision))];
    operations.extend(others);
    change(store, info, guards, operations).await
}

async fn change(
    store: &dyn MetadataStore,
    info: &mut LedgerInfo,
    guards: &[Guard],
    operations: Vec<Operation>,
) -> Result<(), LedgerError> {
    let transaction = Transaction {
        partition: info.home.clone(),
        guards: guards.to_vec(),
        operations,
    };
    match store.commit_until(transaction, Until::Known).await {
        Ok(revision) => {
            info.revision = revision;
            Ok(())
        }
        Err(MetadataError::Conflict { key, .. }) if guards.iter().any(|g| g.key == key) => {
            Err(LedgerError::Fenced)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes a record that says CLOSED, and with it a mark of the bookies that may lack entries, so
/// that nothing stays incomplete for longer than repair takes (H16).
pub(crate) async fn close(
    store: &dyn MetadataStore,
    info: &mut LedgerInfo,
    guards: &[Guard],
    doubted: Option<&Mark>,
) -> Result<(), LedgerError> {
    let Some(mark) = doubted else {
        return replace(store, info, guards).await;
    };
    let as_it_was = Guard {
        key: keys::ledger(info.id),
        expect: Expect::Revision(info.revision),
    };
    let all: Vec<Guard> = guards.iter().cloned().chain([as_it_was.clone()]).collect();
    let (home, put) = (info.home.clone(), info.put(as_it_was.expect));
    let write = |stored: Option<Versioned>| {
        let (home, put) = (&home, put.clone());
        async move {
            let mark = marks::merged(store, mark, stored.as_ref()).await?;
            Ok(Change::put(home, mark.value(), ()).with([put]))
        }
    };
    let key = keys::under_replicated(info.id);
    match store.update(&key, &all, write).await {
        Ok(updated) => {
            info.revision = updated.applied.unwrap_or(info.revision);
            Ok(())
        }
        Err(UpdateError::Guard { key, .. }) if key != as_it_was.key => Err(LedgerError::Fenced),
        Err(error) => Err(error.flatten()),
    }
}

/// Ledger ids that this process has reserved.
#[derive(Debug)]
pub struct LedgerIds {
    /// The next id and the end of the range.
    reserved: Mutex<(u64, u64)>,
    /// One reservation at a time: many topics that open together would only stand in each other's
    /// way.
    turn: Semaphore,
}

impl Default for LedgerIds {
    fn default() -> LedgerIds {
        LedgerIds {
            reserved: Mutex::default(),
            turn: Semaphore::new(1),
        }
    }
}

impl LedgerIds {
    /// An id that was never used and never will be again, above another one: positions of a topic
    /// rise, whichever brokers have created its ledgers.
    pub async fn next(
        &self,
        store: &dyn MetadataStore,
        above: LedgerId,
    ) -> Result<LedgerId, LedgerError> {
        if let Some(id) = self.take(above) {
            return Ok(id);
        }
        let _turn = self.turn.acquire().await;
        if let Some(id) = self.take(above) {
            return Ok(id);
        }
        // After an unknown outcome the range may be ours, but a new one is as good.
        let key = keys::id_range(keys::IDS_LEDGER);
        let reserved = store.update(&key, &[], |stored| ready(reserve(stored.as_ref())));
        let first = reserved.await.map_err(UpdateError::flatten)?.answer;
        *self.reserved.lock() = (first + 1, first + IDS_RESERVED);
        Ok(LedgerId(first))
    }

    /// The next of the range. Another process had `above` from the same counter, so a range that
    /// begins below it is given up: a new one begins above everything that was ever handed out.
    fn take(&self, above: LedgerId) -> Option<LedgerId> {
        let mut reserved = self.reserved.lock();
        if reserved.0 >= reserved.1 || reserved.0 <= above.0 {
            return None;
        }
        reserved.0 += 1;
        Some(LedgerId(reserved.0 - 1))
    }

    /// Lets this process, and every range that is reserved from now on, have no id up to one that
    /// is to be restored. What other processes have reserved before stays theirs.
    ///
    /// # Errors
    /// When metadata cannot be changed, or there is no such id.
    pub async fn reserve_up_to(
        &self,
        store: &dyn MetadataStore,
        last: LedgerId,
    ) -> Result<(), LedgerError> {
        // A reservation that is under way would come to lie below.
        let _turn = self.turn.acquire().await;
        let key = keys::id_range(keys::IDS_LEDGER);
        let raised = store.update(&key, &[], |stored| ready(raise(stored.as_ref(), last)));
        raised.await.map_err(UpdateError::flatten)?;
        let mut reserved = self.reserved.lock();
        if reserved.0 <= last.0 {
            *reserved = (0, 0);
        }
        Ok(())
    }
}

/// No id from this on was ever handed out.
///
/// # Errors
/// When metadata cannot be read.
pub async fn unused_from(store: &dyn MetadataStore) -> Result<LedgerId, LedgerError> {
    let stored = store.get(&keys::id_range(keys::IDS_LEDGER)).await?;
    let next = match &stored {
        None => 1,
        Some(stored) => record::decode::<v1::IdRangeRecord>(stored)?.next,
    };
    Ok(LedgerId(next))
}

/// The change after which the next range begins above an id.
fn raise(stored: Option<&Versioned>, last: LedgerId) -> Result<Change<()>, LedgerError> {
    let next = match stored {
        None => 1,
        Some(stored) => record::decode::<v1::IdRangeRecord>(stored)?.next,
    };
    if last.0 < next {
        return Ok(Change::none(()));
    }
    if last.0 >= LEDGER_ID_MAX {
        let none = "there is no such id of a ledger".to_owned();
        return Err(LedgerError::BadRecord(last.0, none));
    }
    let value = record::encode(v1::IdRangeRecord { next: last.0 + 1 });
    Ok(Change::put(keys::CLUSTER_PARTITION, value, ()))
}

/// The change that reserves the next range; answers its first id.
fn reserve(stored: Option<&Versioned>) -> Result<Change<u64>, LedgerError> {
    let first = match stored {
        // Ids begin at 1, so that 0 never names a ledger.
        None => 1,
        Some(stored) => record::decode::<v1::IdRangeRecord>(stored)?.next,
    };
    let next = first.saturating_add(IDS_RESERVED);
    if next > LEDGER_ID_MAX {
        return Err(LedgerError::BadRecord(first, "ids are used up".to_owned()));
    }
    let value = record::encode(v1::IdRangeRecord { next });
    Ok(Change::put(keys::CLUSTER_PARTITION, value, first))
}

#[cfg(test)]
mod tests;
