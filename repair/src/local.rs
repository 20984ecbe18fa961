//! The slow audit of one bookie: what it stores, compared with the ledgers that there are.
//!
//! It finds copies that nothing refers to any more: of ledgers that are gone, and of ledgers that
//! live without this bookie. It writes intents for them, never deletes by absence alone, and fails
//! closed: if the records could not be read completely, if metadata seems to be older than the data
//! (H14), or if too many ledgers have no record, nothing happens. A record with the same token that
//! names others proves by itself that a copy is superfluous: of these a pass takes a bounded
//! number. What a repair copies to a bookie is named by no record before it is complete: a ledger
//! that is being repaired is left alone, however long that takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_ledger::deletion::{self, Intent};
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::index::LedgerIndex;
use aquifer_ledger::ledger_metadata;
use aquifer_metadata::store::Revision;
use aquifer_metadata::{keys, record};
use aquifer_model::id::{BookieId, CreationToken, LedgerId};
use aquifer_proto::v1;

use crate::config::ReplicationConfig;
use crate::context::RepairContext;

/// A ledger that a bookie stores and that is not deleted there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalLedger {
    /// The ledger.
    pub ledger: LedgerId,
    /// The creation token that is stored with it.
    pub token: CreationToken,
}

/// What a pass found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalReport {
    /// Ledgers that the bookie stores.
    pub stored: u64,
    /// Those that nothing refers to here.
    pub suspects: u64,
    /// Those for which an intent was written.
    pub intents: Vec<LedgerId>,
}

/// Remembers the suspects of the last pass.
pub struct LocalAudit {
    ctx: Arc<RepairContext>,
    bookie: BookieId,
    suspects_max: usize,
    /// With the revision of the ledger's record, where there is one.
    suspects: BTreeMap<LedgerId, Option<Revision>>,
}

/// A pass that has read metadata and is shown what the bookie stores.
pub struct LocalPass {
    bookie: BookieId,
    index: LedgerIndex,
    stored: u64,
    suspects_max: usize,
    /// Ledgers without a record, the first of them, and how many there are.
    unknown: Vec<LocalLedger>,
    unknown_count: u64,
    /// Ledgers whose record names others, the first of them, and how many there are.
    moved: Vec<LocalLedger>,
    moved_count: u64,
    /// Suspects of the pass before.
    before: BTreeMap<LedgerId, Option<Revision>>,
}

impl LocalPass {
    /// Takes a page of what is stored.
    pub fn look_at(&mut self, page: &[LocalLedger]) {
        self.stored += page.len() as u64;
        for local in page {
            if self.index.names(local.ledger, self.bookie) {
                continue;
            }
            let (suspects, count) = match self.index.contains(local.ledger) {
                true => (&mut self.moved, &mut self.moved_count),
                false => (&mut self.unknown, &mut self.unknown_count),
            };
            *count += 1;
            if suspects.len() < self.suspects_max {
                suspects.push(*local);
            }
        }
    }

    fn suspects(&self) -> impl Iterator<Item = &LocalLedger> {
        self.moved.iter().chain(&self.unknown)
    }
}

impl LocalAudit {
    /// An audit without suspects.
    #[must_use]
    pub fn new(
        ctx: Arc<RepairContext>,
        bookie: BookieId,
        config: &ReplicationConfig,
    ) -> LocalAudit {
        LocalAudit {
            ctx,
            bookie,
            suspects_max: config.orphans_max,
            suspects: BTreeMap::new(),
        }
    }

    /// Reads metadata. Show the result everything that is stored, then [`LocalAudit::finish`] it.
    /// Suspects of before are none any more if it is dropped instead.
    ///
    /// # Errors
    /// When not every ledger record could be read.
    pub async fn begin(&mut self) -> Result<LocalPass, LedgerError> {
        let before = std::mem::take(&mut self.suspects);
        let index = LedgerIndex::scan(&*self.ctx.ledgers.store).await?;
        if let Some(damaged) = index.damaged().first() {
            let what = format!("not all ledger records are readable: {damaged}");
            return Err(LedgerError::BadRecord(0, what));
        }
        Ok(LocalPass {
            bookie: self.bookie,
            index,
            stored: 0,
            suspects_max: self.suspects_max,
            unknown: Vec::new(),
            unknown_count: 0,
            moved: Vec::new(),
            moved_count: 0,
            before,
        })
    }

    /// Writes intents for what was a suspect in the pass before, too.
    ///
    /// # Errors
    /// When anything could not be read or looks wrong.
    pub async fn finish(&mut self, pass: LocalPass) -> Result<LocalReport, LedgerError> {
        let mut report = LocalReport {
            stored: pass.stored,
            suspects: pass.unknown_count + pass.moved_count,
            intents: Vec::new(),
        };
        self.check(&pass).await?;
        for local in pass.suspects() {
            if self.judge(*local, &pass.before).await? {
                report.intents.push(local.ledger);
            }
        }
        Ok(report)
    }

    /// Whether the suspects are plausible as a whole.
    async fn check(&self, pass: &LocalPass) -> Result<(), LedgerError> {
        if pass.unknown_count > self.suspects_max as u64 {
            let first = pass.unknown.first().map_or(0, |local| local.ledger.0);
            let what = format!(
                "{} of {} ledgers stored here have no record, which is more than {}: nothing is \
                 deleted; is this the right cluster?",
                pass.unknown_count, pass.stored, self.suspects_max
            );
            return Err(LedgerError::BadRecord(first, what));
        }
        let Some(highest) = pass.suspects().map(|local| local.ledger.0).max() else {
            return Ok(());
        };
        let ids = keys::id_range(keys::IDS_LEDGER);
        let next = match self.ctx.ledgers.store.get(&ids).await? {
            Some(stored) => record::decode::<v1::IdRangeRecord>(&stored)?.next,
            None => 0,
        };
        if highest >= next {
            let what = "metadata has never given out this id: it is older than the data, or of \
                        another cluster; nothing is deleted";
            return Err(LedgerError::BadRecord(highest, what.to_owned()));
        }
        Ok(())
    }

    /// Writes an intent for a suspect that was one before, and whose record is as it was then.
    async fn judge(
        &mut self,
        local: LocalLedger,
        before: &BTreeMap<LedgerId, Option<Revision>>,
    ) -> Result<bool, LedgerError> {
        let store = &*self.ctx.ledgers.store;
        if deletion::load(store, local.ledger).await?.is_some() {
            return Ok(false);
        }
        let info = ledger_metadata::load(store, local.ledger).await?;
        if let Some(info) = &info
            && (info.duties().binds(self.bookie) || info.token != local.token)
        {
            // It has been put back; or another ledger has this id, which people must look at.
            return Ok(false);
        }
        let lock = keys::repair_lock(local.ledger);
        if store.get(&lock).await?.is_some() {
            return Ok(false);
        }
        let seen = info.as_ref().map(|info| info.revision);
        self.suspects.insert(local.ledger, seen);
        if before.get(&local.ledger) != Some(&seen) {
            return Ok(false);
        }
        let intent = Intent::of_copy(local.ledger, local.token, self.bookie, info.as_ref());
        if !deletion::begin_copy(store, &intent, info.as_ref()).await? {
            return Ok(false);
        }
        self.suspects.remove(&local.ledger);
        self.ctx.metrics.orphans.add(1, &[]);
        tracing::info!(
            ledger = local.ledger.0, lives = info.is_some(), bookie = %self.bookie,
            "a copy that nothing refers to is deleted"
        );
        Ok(true)
    }
}
