//! Ledgers that no topic refers to: what a defect, or a deletion by hand, has left behind.
//!
//! A topic refers to a ledger in its record, also while it is being restored, or in a page below
//! it; the record of an offloaded ledger refers to the ledger that a re-import has written. A
//! ledger's record and the reference to it are written in one transaction, and a reference goes
//! only together with an intent. So a ledger that has a record, no reference and no intent, in
//! this order of looking, is an orphan. Fails closed: anything that cannot be read, and anything
//! unusual, ends the pass without a consequence; and an orphan must be one in two passes.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_ledger::deletion::{self, Intent};
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo};
use aquifer_ledger::offload::{Copies, Offload};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::store::{Expect, Guard, Transaction, Until, Versioned};
use aquifer_metadata::{scan, segments};
use aquifer_model::id::LedgerId;
use roaring::RoaringTreemap;

use crate::config::ReplicationConfig;
use crate::context::RepairContext;

/// What a pass found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OrphanReport {
    /// Ledgers that are old enough to be judged.
    pub judged: u64,
    /// Those that nothing refers to.
    pub suspects: u64,
    /// Those that were suspects before, and are to be deleted now.
    pub deleted: Vec<LedgerId>,
}

/// Remembers the suspects of the last pass.
pub struct OrphanAudit {
    ctx: Arc<RepairContext>,
    age_ms: u64,
    orphans_max: usize,
    suspects: BTreeSet<LedgerId>,
}

impl OrphanAudit {
    /// An audit without suspects.
    #[must_use]
    pub fn new(ctx: Arc<RepairContext>, config: &ReplicationConfig) -> OrphanAudit {
        OrphanAudit {
            ctx,
            age_ms: config.orphan_age_ms,
            orphans_max: config.orphans_max,
            suspects: BTreeSet::new(),
        }
    }

    /// Compares all ledgers with all topics once.
    ///
    /// # Errors
    /// When anything could not be read, or there are more orphans than there can be. Nothing is
    /// deleted then, and suspects of before are none any more.
    pub async fn pass(&mut self) -> Result<OrphanReport, LedgerError> {
        let before = std::mem::take(&mut self.suspects);
        let mut orphans = self.old_ledgers().await?;
        let judged = orphans.len();
        orphans -= self.referenced().await?;
        orphans -= self.intended().await?;
        let suspects: BTreeSet<LedgerId> = orphans.iter().map(LedgerId).collect();
        if suspects.len() > self.orphans_max {
            return Err(LedgerError::BadRecord(
                suspects.first().map_or(0, |ledger| ledger.0),
                format!(
                    "{} of {judged} ledgers have no topic, which is more than {}: nothing is \
                     deleted; are topic records missing?",
                    suspects.len(),
                    self.orphans_max
                ),
            ));
        }
        let mut report = OrphanReport {
            judged,
            suspects: suspects.len() as u64,
            deleted: Vec::new(),
        };
        for ledger in suspects.intersection(&before) {
            if self.condemn(*ledger).await? {
                report.deleted.push(*ledger);
            }
        }
        self.suspects = suspects;
        Ok(report)
    }

    async fn old_ledgers(&self) -> Result<RoaringTreemap, LedgerError> {
        let newest_ms = self.ctx.ledgers.clock.wall_ms().saturating_sub(self.age_ms);
        let take = |ledgers: &mut RoaringTreemap, item: &Versioned| {
            let Ok(Key::Ledger(id)) = item.key.parse() else {
                return Err(LedgerError::BadRecord(0, format!("key {}", item.key)));
            };
            let info = LedgerInfo::decode(id, item)?;
            if info.created_ms <= newest_ms {
                ledgers.insert(id.0);
            }
            Ok(())
        };
        self.collect(keys::LEDGERS_PREFIX, take).await
    }

    async fn referenced(&self) -> Result<RoaringTreemap, LedgerError> {
        let take = |referenced: &mut RoaringTreemap, item: &Versioned| {
            let listed = segments::listed(item)?;
            let ledgers = listed.into_iter().flat_map(|listed| listed.ledgers);
            referenced.extend(ledgers.map(|ledger| ledger.0));
            Ok(())
        };
        // A topic that is restored meanwhile moves from here to there.
        let restoring = self.collect(keys::RESTORES_PREFIX, take).await?;
        let of_topics = restoring | self.collect(keys::TENANTS_PREFIX, take).await?;
        Ok(of_topics | self.imported().await?)
    }

    /// The ledgers with copies that a re-import has brought back, by the records of those that they
    /// belong to.
    async fn imported(&self) -> Result<RoaringTreemap, LedgerError> {
        let take = |imported: &mut RoaringTreemap, item: &Versioned| {
            let Ok(Key::Ledger(id)) = item.key.parse() else {
                return Err(LedgerError::BadRecord(0, format!("key {}", item.key)));
            };
            let offload = LedgerInfo::decode(id, item)?.offload;
            let copies = offload.as_ref().and_then(Offload::copies);
            imported.extend(copies.and_then(Copies::other_ledger).map(|copy| copy.0));
            Ok(())
        };
        self.collect(keys::LEDGERS_PREFIX, take).await
    }

    async fn intended(&self) -> Result<RoaringTreemap, LedgerError> {
        let take = |intended: &mut RoaringTreemap, item: &Versioned| {
            intended.insert(Intent::decode(item)?.ledger.0);
            Ok(())
        };
        self.collect(keys::DELETIONS_PREFIX, take).await
    }

    async fn collect(
        &self,
        prefix: &str,
        take: impl FnMut(&mut RoaringTreemap, &Versioned) -> Result<(), LedgerError>,
    ) -> Result<RoaringTreemap, LedgerError> {
        let store = &*self.ctx.ledgers.store;
        let (found, _) = scan::each(store, prefix, RoaringTreemap::new, take).await?;
        Ok(found)
    }

    /// Writes the intent to delete an orphan, if its record is still what it is now.
    async fn condemn(&self, ledger: LedgerId) -> Result<bool, LedgerError> {
        let store = &*self.ctx.ledgers.store;
        let Some(info) = ledger_metadata::load(store, ledger).await? else {
            return Ok(false);
        };
        let transaction = Transaction {
            partition: info.home.clone(),
            guards: vec![Guard {
                key: keys::ledger(ledger),
                expect: Expect::Revision(info.revision),
            }],
            operations: vec![Intent::of(&info).put(Expect::Absent)],
        };
        match store.commit_until(transaction, Until::Known).await {
            Ok(_) => {}
            Err(MetadataError::Conflict { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        tracing::warn!(
            ledger = ledger.0,
            "no topic refers to this ledger: it is deleted"
        );
        self.ctx.metrics.orphans.add(1, &[]);
        deletion::carry_out(&self.ctx.ledgers, ledger).await?;
        Ok(true)
    }
}
