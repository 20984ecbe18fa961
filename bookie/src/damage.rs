//! Damaged files of the ledger store: which they are and which ledgers they may have touched (H17).
//!
//! Reads serve what is whole, and repair rewrites entries beside their damaged blocks. But a file
//! that a compaction cannot read stops all compactions, so from then on none runs, here and after
//! every start, until a start sets the files aside. What is known is stored in the ledger store.

use std::collections::BTreeSet;

use aquifer_model::id::{EntryId, LedgerId};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::report::DamageReport;

/// Entries that are remembered as told of.
const TOLD_MAX: usize = 1024;

/// What a running bookie knows of damaged files.
pub struct Damage {
    report: Mutex<Option<DamageReport>>,
    news: watch::Sender<()>,
    told: Mutex<BTreeSet<(LedgerId, EntryId)>>,
}

impl Damage {
    /// Known damage, or none.
    #[must_use]
    pub fn new(report: Option<DamageReport>) -> Damage {
        Damage {
            news: watch::Sender::new(()),
            report: Mutex::new(report),
            told: Mutex::default(),
        }
    }

    /// Whether an entry that cannot be read is to be told of at once: readers ask for the same one
    /// again and again, and each is told of once until many others were.
    pub fn is_news(&self, ledger: LedgerId, entry: EntryId) -> bool {
        let mut told = self.told.lock();
        if told.len() >= TOLD_MAX && !told.contains(&(ledger, entry)) {
            told.clear();
        }
        told.insert((ledger, entry))
    }

    /// What is known.
    #[must_use]
    pub fn report(&self) -> Option<DamageReport> {
        self.report.lock().clone()
    }

    /// More is known.
    pub fn found(&self, report: DamageReport) {
        *self.report.lock() = Some(report);
        self.news.send_replace(());
    }

    /// Waits until something else is known than `before`, and says what.
    pub async fn wait(&self, before: Option<&DamageReport>) -> DamageReport {
        let mut news = self.news.subscribe();
        loop {
            match self.report() {
                Some(report) if Some(&report) != before => return report,
                _ => {}
            }
            if news.changed().await.is_err() {
                // The sender lives as long as self.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_news_once_until_many_others_were() {
        let damage = Damage::new(None);
        let ledger = LedgerId(7);
        let last = EntryId(TOLD_MAX as u64 - 1);
        for entry in 0..=last.0 {
            assert!(damage.is_news(ledger, EntryId(entry)));
        }
        assert!(!damage.is_news(ledger, last));
        assert!(!damage.is_news(ledger, EntryId::FIRST));
        assert!(damage.is_news(LedgerId(8), last));
        assert!(
            damage.is_news(ledger, EntryId::FIRST),
            "room was made for others"
        );
    }
}
